//! A cable with faults: a loop in user space between a host and the switch that delays, reorders, doubles, loses, alters
//! and slows down frames, and can be cut. For kernels without netem.
//!
//! The host's port leaves the bridge, and a pair of Ethernet devices takes its place; one thread copies frames between
//! the two through packet sockets. Super-frames pass whole, with their offload header (`PACKET_VNET_HDR`), so that hosts
//! behave as with any other cable. All draws come from one seed; what the kernel's scheduler adds does not.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | putting a cable in, changing and ending it |
//! | `wire/course` | what happens to a frame on its way, and when it arrives |
//! | `wire/frame` | a frame with its offload header |

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::clock::now_ns;
use crate::netlink;
use crate::network::{Host, Network};
use crate::sys::packet_socket;

mod course;
mod frame;

pub use course::Course;
use course::Lane;
use frame::Frame;

/// A cable in place. Dropping it ends the copying: the host is cut off.
pub struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Frames by their fate, both ways together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Handed on, doubles included.
    pub passed: u64,
    /// Lost by a draw, in a cut, or because too much waited for a slow cable.
    pub lost: u64,
    /// Handed on twice.
    pub doubled: u64,
    /// Handed on with a bit changed.
    pub altered: u64,
    /// Handed on after a frame that had come later.
    pub overtaken: u64,
}

#[derive(Default)]
struct Shared {
    /// To the host, from the host.
    courses: Mutex<[Course; 2]>,
    cut: AtomicBool,
    stop: AtomicBool,
    fates: Counts,
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    altered: AtomicU64,
    overtaken: AtomicU64,
}

/// Longest sleep, so that the end of the cable is noticed.
const NAP: Duration = Duration::from_millis(20);
/// Frames read in a row from one side.
const BATCH: usize = 64;

impl Wire {
    /// Puts a cable between a host and the switch.
    pub fn new(network: &Network, host: &Host, to: Course, from: Course, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared { courses: Mutex::new([to, from]), ..Shared::default() });
        let (host_side, bridge_side, inner) = (
            format!("to-{}", host.ns.name()),
            format!("wire-{}", host.number),
            format!("wired-{}", host.number),
        );
        let here = network.switch.fd().as_raw_fd();
        let sockets = network.switch.enter(move || -> io::Result<[OwnedFd; 2]> {
            netlink::add_veth(&bridge_side, &inner, here)?;
            netlink::set_up(&bridge_side, true)?;
            netlink::set_up(&inner, true)?;
            // Listening before anything is plugged in anew: no frame falls between.
            let sockets =
                [packet_socket(netlink::index(&inner)?)?, packet_socket(netlink::index(&host_side)?)?];
            netlink::leave_bridge(&host_side)?;
            netlink::set_bridge(&bridge_side, "br0")?;
            Ok(sockets)
        })?;
        let mine = Arc::clone(&shared);
        let thread = network.switch.thread("wire", move || Loop::new(sockets, mine, seed).run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Other faults from now on.
    pub fn change(&self, to: Course, from: Course) {
        *self.shared.courses.lock().unwrap_or_else(PoisonError::into_inner) = [to, from];
    }

    /// Cuts the cable, or mends it. What is on its way when it is cut still arrives.
    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Relaxed);
    }

    /// What happened so far.
    pub fn fates(&self) -> Fates {
        let counts = &self.shared.fates;
        Fates {
            passed: counts.passed.load(Relaxed),
            lost: counts.lost.load(Relaxed),
            doubled: counts.doubled.load(Relaxed),
            altered: counts.altered.load(Relaxed),
            overtaken: counts.overtaken.load(Relaxed),
        }
    }

    /// Ends the copying; the error that ended it early, if one did.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.shared.stop.store(true, Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the cable's thread panicked")))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // An error of a cable nobody asks about any more has no reader.
        let _ = self.end();
    }
}

/// The thread's state. Lane 0 leads to the host, lane 1 from it; socket 0 is the switch's side, socket 1 the host's.
struct Loop {
    sockets: [OwnedFd; 2],
    lanes: [Lane; 2],
    shared: Arc<Shared>,
    buffer: Box<[u8]>,
}

impl Loop {
    fn new(sockets: [OwnedFd; 2], shared: Arc<Shared>, seed: u64) -> Self {
        let lanes = [Lane::new(seed), Lane::new(!seed)];
        Self { sockets, lanes, shared, buffer: vec![0; frame::LONGEST].into_boxed_slice() }
    }

    fn run(mut self) -> io::Result<()> {
        while !self.shared.stop.load(Relaxed) {
            self.wait()?;
            for lane in 0..2 {
                self.read(lane)?;
                self.deliver(lane)?;
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let due = self.lanes.iter().filter_map(Lane::next_due).min();
        let nap = due.map_or(NAP, |due| Duration::from_nanos(due.saturating_sub(now_ns())).min(NAP));
        let mut fds = self.sockets.each_ref().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut fds, Some(TimeSpec::from_duration(nap)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes what came for this lane and decides its fate.
    fn read(&mut self, lane: usize) -> io::Result<()> {
        let course = self.shared.courses.lock().unwrap_or_else(PoisonError::into_inner)[lane];
        for _ in 0..BATCH {
            let len = match nix::unistd::read(&self.sockets[lane], &mut self.buffer) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return Ok(()),
                // The device went down for a moment.
                Err(Errno::ENETDOWN | Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let fates = &self.shared.fates;
            if self.shared.cut.load(Relaxed) {
                fates.lost.fetch_add(1, Relaxed);
                continue;
            }
            let taken = self.lanes[lane].take(&course, Frame::new(&self.buffer[..len]), now_ns());
            fates.lost.fetch_add(u64::from(taken.lost), Relaxed);
            fates.doubled.fetch_add(u64::from(taken.doubled), Relaxed);
            fates.altered.fetch_add(u64::from(taken.altered), Relaxed);
        }
        Ok(())
    }

    /// Hands on what has arrived by now.
    fn deliver(&mut self, lane: usize) -> io::Result<()> {
        let now = now_ns();
        while let Some((frame, overtaken)) = self.lanes[lane].arrived(now) {
            match nix::unistd::write(&self.sockets[1 - lane], frame.bytes()) {
                Ok(_) => {
                    self.shared.fates.passed.fetch_add(1, Relaxed);
                    self.shared.fates.overtaken.fetch_add(u64::from(overtaken), Relaxed);
                }
                // No buffer, or a device on its way down or up: as lost as on any cable.
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENETDOWN | Errno::ENXIO | Errno::EINTR) => {
                    self.shared.fates.lost.fetch_add(1, Relaxed);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
