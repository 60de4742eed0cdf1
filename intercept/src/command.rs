//! What the link thread tells the capture thread: one ring, so that a claim never overtakes the welcome of its owner, and
//! a bell for what cannot wait for the next frame.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use flow::{Endpoint, Range};
use nix::sys::eventfd::{EfdFlags, EventFd};
use returns::{Outgoing, Position};

use crate::window::Window;

/// One command.
pub(crate) enum Command {
    /// A connection may be written to from now on.
    Attach(Box<Attach>),
    /// A connection ended.
    Detach { slot: u8, connection: u64 },
    /// The instance of a slot is forgotten.
    Forget { slot: u8 },
    /// A flow belongs to the instance of a slot.
    Claim { slot: u8, tenure: u32, client: Endpoint, target: Endpoint },
    /// Whether the instance's sessions can do nothing but wait for answers.
    Pace { slot: u8, connection: u64, eager: bool },
    /// Ask for a sign of life.
    Ping { slot: u8, connection: u64, token: u64 },
    /// Give one.
    Pong { slot: u8, connection: u64, token: u64 },
}

/// A connection whose hello was accepted.
pub(crate) struct Attach {
    pub(crate) slot: usize,
    pub(crate) tenure: u32,
    pub(crate) connection: u64,
    pub(crate) stream: Arc<TcpStream>,
    pub(crate) outgoing: Outgoing,
    /// Its ranges, or none: then it claims its flows.
    pub(crate) ranges: Vec<Range>,
    /// A new window for an instance without a stream to resume.
    pub(crate) fresh: Option<Window>,
    pub(crate) last: Option<Position>,
    pub(crate) software: String,
}

/// Commands that fit in the ring: twice what one read from a socket can hold, and more.
pub(crate) const COMMANDS: usize = 16_384;

/// Wakes the capture thread from its poll.
pub(crate) struct Bell {
    event: EventFd,
    /// The capture thread holds headers whose claim may come: then a claim is worth a wake-up.
    holding: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Result<Self, nix::Error> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, holding: AtomicBool::new(false) })
    }

    /// Wakes it.
    pub(crate) fn ring(&self) {
        // Can only fail when 2^64 - 2 rings were not heard.
        let _ = self.event.write(1);
    }

    /// Wakes it if it waits for claims. Called after a claim was put into the ring.
    pub(crate) fn ring_for_claims(&self) {
        // Pairs with the fence in `will_wait`: either we see that it holds, or it sees our claim.
        fence(Ordering::SeqCst);
        if self.holding.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    /// Says whether headers are held; the caller looks into the ring once more before it waits.
    pub(crate) fn will_wait(&self, holding: bool) {
        self.holding.store(holding, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// To poll for input.
    pub(crate) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes all rings.
    pub(crate) fn heard(&self) {
        let _ = self.event.read();
    }
}
