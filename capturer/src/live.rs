//! The live source: memory-mapped packet rings, three for each interface (or for all together). Small frames go to one and
//! super-frames to another, since slots are fixed; frame times put them back in order. Bare acknowledgements have one of their own
//! that nobody waits for: they say what the client has seen, which is of use with its next bytes and no sooner, and half
//! of the wake-ups would be theirs at 500 requests a second, five of six with answers of 1 MB.

use std::os::fd::{AsFd as _, BorrowedFd};

use topology::Plan;

use crate::again::Again;
use crate::error::RoleError;
use crate::interfaces;
use crate::open::{CaptureSocket, interface_names, ring_specs};
use crate::packet_ring::{PacketRing, Start};
use crate::role::realtime_ns;
use crate::source::{Carries, Frame, Links, Source};
use crate::sys::{Begin, mtu};

/// Rings of one interface.
pub(crate) const RINGS: usize = 3;
/// Those that are waited for, the first ones.
const AWAITED: usize = 2;

/// The live source.
#[derive(Debug)]
pub struct Live {
    interfaces: Vec<Interface>,
    /// Whose turn it is to be drained first.
    turn: usize,
    promiscuous: bool,
    downs: u64,
    /// Frames seen later than this are not taken any more, CLOCK_REALTIME nanoseconds: the sockets are closed one after the other,
    /// and a stream of which only the large frames went on for a while would have holes.
    until_ns: u64,
}

#[derive(Debug)]
struct Interface {
    /// `None`: all interfaces, which are not looked after.
    name: Option<String>,
    /// Small frames, large ones, bare acknowledgements.
    rings: [PacketRing; RINGS],
    /// Number of the first ring.
    first: u16,
    link: Link,
    /// Where all interfaces are captured: what was seen last.
    again: Option<Again>,
    /// Packets longer than this were several datagrams, where the kernel does not say.
    mtu: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Down,
    Gone,
}

impl Live {
    /// Maps the rings of sockets made by [`crate::open`] for the same plan. `position` gives the number of the next frame of each
    /// ring, 0 for a fresh one.
    pub fn new(
        plan: &Plan,
        sockets: Vec<CaptureSocket>,
        position: impl Fn(u16) -> u64,
    ) -> Result<Self, RoleError> {
        let specs = ring_specs(plan);
        let mut sockets = sockets.into_iter();
        let mut interfaces = vec![];
        for (name, first) in interface_names(plan).into_iter().zip((0..).step_by(RINGS)) {
            let label = name.clone().unwrap_or_else(|| "any".to_owned());
            let mut rings = vec![];
            for (spec, ring) in specs.into_iter().zip(first..) {
                let Some(socket) = sockets.next() else { break };
                let start = match position(ring) {
                    0 => Start::Fresh,
                    number => Start::At(number),
                };
                let ring = PacketRing::map(socket.into(), spec, start)
                    .map_err(|source| RoleError::Map { interface: label.clone(), source })?;
                rings.push(ring);
            }
            let Ok(rings) = rings.try_into() else { break };
            let told = specs.iter().any(|spec| spec.begin() == Begin::Link);
            let mtu = name.as_deref().filter(|_| !told).and_then(|name| mtu(name).ok());
            let again = name.is_none().then(Again::default);
            interfaces.push(Interface { name, rings, first, link: Link::Up, again, mtu });
        }
        let promiscuous = plan.capture.promiscuous;
        Ok(Self { interfaces, turn: 0, promiscuous, downs: 0, until_ns: u64::MAX })
    }
}

impl Source for Live {
    fn drain(&mut self, max: u32, sink: &mut dyn FnMut(&Frame<'_>)) -> u32 {
        let count = self.interfaces.len();
        let mut taken = 0;
        for i in 0..count {
            let interface = &mut self.interfaces[(self.turn + i) % count];
            taken += interface.drain(max - taken, self.until_ns, sink);
        }
        self.turn = (self.turn + 1) % count.max(1);
        taken
    }

    fn release(&mut self) {
        for ring in self.interfaces.iter_mut().flat_map(|interface| &mut interface.rings) {
            ring.release();
        }
    }

    fn positions(&self, note: &mut dyn FnMut(u16, u64)) {
        for interface in &self.interfaces {
            for (ring, number) in interface.rings.iter().zip(interface.first..) {
                note(number, ring.position());
            }
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let awaited = self.interfaces.iter().flat_map(|interface| &interface.rings[..AWAITED]);
        awaited.map(PacketRing::as_fd).collect()
    }

    fn has_unawaited(&self) -> bool {
        true
    }

    fn take_dropped(&mut self) -> u64 {
        let rings = self.interfaces.iter_mut().flat_map(|interface| &mut interface.rings);
        rings.map(|ring| ring.take_dropped().unwrap_or(0)).sum()
    }

    fn attend(&mut self) -> Links {
        let (promiscuous, open) = (self.promiscuous, self.until_ns == u64::MAX);
        for interface in &mut self.interfaces {
            let before = interface.link;
            interface.attend(promiscuous, open);
            self.downs += u64::from(before == Link::Up && interface.link != Link::Up);
        }
        let count = |link| self.interfaces.iter().filter(|interface| interface.link == link).count() as u64;
        Links { downs: self.downs, down: count(Link::Down), gone: count(Link::Gone) }
    }

    fn relocate(&mut self) {
        for ring in self.interfaces.iter_mut().flat_map(|interface| &mut interface.rings) {
            ring.relocate();
        }
    }

    fn close(&mut self) {
        self.until_ns = realtime_ns();
        for ring in self.interfaces.iter().flat_map(|interface| &interface.rings) {
            if let Err(error) = ring.socket().close() {
                tracing::warn!(
                    "closing a capture socket failed ({error}); its frames are not taken any more"
                );
            }
        }
    }

    fn reopen(&mut self) {
        self.until_ns = u64::MAX;
        for ring in self.interfaces.iter().flat_map(|interface| &interface.rings) {
            if let Err(error) = ring.socket().reopen() {
                tracing::warn!(
                    "opening a capture socket again failed ({error}); the run has to be started anew"
                );
            }
        }
    }
}

impl Interface {
    /// Hands over frames of all rings by their time, up to this one.
    fn drain(&mut self, max: u32, until_ns: u64, sink: &mut dyn FnMut(&Frame<'_>)) -> u32 {
        let mut taken = 0;
        while taken < max
            && let Some(number) = self.oldest()
        {
            let ring = &mut self.rings[number];
            let Some((meta, packet)) = ring.peek() else { break };
            if meta.time_ns <= until_ns {
                let again =
                    self.again.as_mut().is_some_and(|seen| seen.is(meta.time_ns, meta.interface, packet));
                sink(&Frame {
                    packet,
                    wire_len: meta.len,
                    time_ns: meta.time_ns,
                    checksum_unfilled: meta.checksum_unfilled(),
                    again,
                    carries: self.mtu.map_or(meta.carries, |mtu| Carries::guessed(meta.len, mtu)),
                });
            }
            ring.advance();
            taken += 1;
        }
        taken
    }

    /// The ring with the oldest frame.
    fn oldest(&mut self) -> Option<usize> {
        let mut times = self.rings.each_mut().map(|ring| ring.peek_time_ns());
        if times.iter().all(Option::is_none) {
            return None;
        }
        // An earlier frame than those may have become visible in a ring that was empty before they were seen; now it is there.
        for (time, ring) in times.iter_mut().zip(&mut self.rings).filter(|(time, _)| time.is_none()) {
            *time = ring.peek_time_ns();
        }
        let frames = times.iter().zip(0..).filter_map(|(time, number)| Some(((*time)?, number)));
        frames.min().map(|(_, number)| number)
    }

    fn attend(&mut self, promiscuous: bool, open: bool) {
        let Some(name) = self.name.clone() else {
            self.take_errors();
            return;
        };
        let errors = self.take_errors();
        let gone = self.rings.iter().any(PacketRing::interface_gone);
        let link = match self.link {
            // Closed sockets are left as they are: they would see frames again.
            _ if gone && open => self.bind_again(&name, promiscuous),
            _ if gone => Link::Gone,
            Link::Up if errors => Link::Down,
            Link::Up => Link::Up,
            Link::Down | Link::Gone => match interfaces::find(&name) {
                Some(interface) if interface.up => Link::Up,
                _ => Link::Down,
            },
        };
        if link != self.link {
            match link {
                Link::Up => tracing::info!("{name} is up again; capturing goes on"),
                Link::Down => tracing::warn!("{name} is down; nothing is captured on it until it is up"),
                Link::Gone => tracing::warn!(
                    "{name} is gone; capturing goes on elsewhere, and on {name} when it is back"
                ),
            }
            self.link = link;
        }
    }

    /// Takes pending errors, which poll(2) would report for ever; true if there was one.
    fn take_errors(&self) -> bool {
        self.rings
            .iter()
            .fold(false, |any, ring| any | matches!(ring.socket().take_error(), Ok(Some(_)) | Err(_)))
    }

    /// An interface of the same name is another one to the kernel.
    fn bind_again(&self, name: &str, promiscuous: bool) -> Link {
        let Ok(index) = nix::net::if_::if_nametoindex(name) else { return Link::Gone };
        for ring in &self.rings {
            if let Err(error) = ring.socket().bind(index) {
                tracing::warn!("{name} is back but cannot be captured on: {error}");
                return Link::Gone;
            }
            if promiscuous && let Err(error) = ring.socket().promiscuous(index) {
                tracing::warn!("{name} is back but does not become promiscuous: {error}");
            }
        }
        match interfaces::find(name) {
            Some(interface) if interface.up => Link::Up,
            _ => Link::Down,
        }
    }
}
