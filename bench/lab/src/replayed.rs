//! Counts the replayed frames that leave an online host, and those of them that had left before: what a restarted injector
//! sends once more.
//!
//! A frame is the same when addresses and TCP header agree to the bit: its sequence numbers, time stamp and checksum, and
//! with that its payload. A retransmission has another time stamp. Used by tests, at loads of a few thousand frames a
//! second.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, recv};

use crate::netlink;
use crate::network::{Host, Network};
use crate::outside::{SNAP, VNET, foreign_sources, v4};
use crate::sys::filtered_socket;

/// A count under way.
pub struct Replayed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Frames>>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// In all.
    pub frames: u64,
    /// Of them the same as one before.
    pub repeated: u64,
}

impl Replayed {
    /// Counts what leaves this host under a source that is not its own.
    pub fn start(network: &Network, host: &Host) -> io::Result<Self> {
        let program = foreign_sources(v4(host.v4())?, None);
        let device = format!("to-{}", host.ns.name());
        let fd = network.switch.enter(move || filtered_socket(netlink::index(&device)?, &program))?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("replayed".to_owned()).spawn(move || count(&fd, &until))?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) -> io::Result<Frames> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the counting thread panicked")))
    }
}

fn count(fd: &OwnedFd, stop: &AtomicBool) -> io::Result<Frames> {
    let (mut seen, mut frames) = (HashSet::new(), Frames::default());
    let mut frame = [0_u8; VNET + SNAP as usize];
    while !stop.load(Relaxed) {
        poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], 20_u8)?;
        loop {
            match recv(fd.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(n) => {
                    frames.frames += 1;
                    let identity = identity(frame.get(VNET..n.min(frame.len())).unwrap_or_default());
                    frames.repeated += u64::from(identity.is_some_and(|identity| !seen.insert(identity)));
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(frames)
}

/// Addresses and TCP header.
fn identity(frame: &[u8]) -> Option<Vec<u8>> {
    let ip = frame.get(14..)?;
    let tcp = ip.get(usize::from(ip.first()? & 15) * 4..)?;
    let header = tcp.get(..usize::from(tcp.get(12)? >> 4) * 4)?;
    Some([ip.get(12..20)?, header].concat())
}
