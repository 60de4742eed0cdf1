//! The capture thread: drains the sources, gives each header to its owner's queue, sends, and sleeps as a network card
//! would moderate its interrupts. Nothing in it waits for a peer.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtrb::Consumer;
use shm::{Moderator, Pause, monotonic_us};
use tracing::{info, warn};

use crate::command::{Bell, COMMANDS, Command};
use crate::forward::Forward;
use crate::source::Source;
use crate::stats::{Count, Stats};

/// Everything the thread works with.
pub(crate) struct Capture {
    pub(crate) sources: Vec<Box<dyn Source>>,
    pub(crate) forward: Forward,
    pub(crate) commands: Consumer<Command>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: Arc<AtomicBool>,
}

/// Frames taken from one source before the next has its turn, and before what was taken is sent.
const BUDGET: usize = 512;
/// The longest sleep: stop is noticed that late.
const LONGEST_SLEEP_US: u64 = 200_000;
/// Sources are looked after that often; full sockets are tried that often while napping.
const HOUSEKEEPING_US: u64 = 200_000;
const RETRY_US: u64 = 5_000;

impl Capture {
    /// Works until told to stop.
    pub(crate) fn run(mut self) {
        if let Err(error) = shm::set_fine_timers() {
            warn!("short naps will be longer than meant: setting the timer slack failed: {error}");
        }
        let mut moderator = Moderator::of_answers();
        let (mut housekeeping_us, mut retry_us) = (0, 0);
        let (mut frames, mut bytes, mut slept_us, mut writable) = (0_u32, 0_u64, 0_u32, false);
        while !self.stop.load(Ordering::Relaxed) {
            let now_us = monotonic_us();
            self.forward.at(now_us);
            // At most a ringful, so that a flood of claims does not keep headers waiting.
            for command in std::iter::from_fn(|| self.commands.pop().ok()).take(COMMANDS) {
                self.forward.command(command);
            }
            let mut more = false;
            for source in &mut self.sources {
                let forward = &mut self.forward;
                let taken = source.drain(BUDGET, &mut |frame| {
                    bytes += u64::from(frame.wire_len);
                    forward.frame(frame);
                });
                self.stats.count(Count::Captured, taken as u64);
                frames = frames.saturating_add(taken as u32);
                more |= taken == BUDGET;
            }
            self.stats.count(Count::Drains, 1);
            let retry = writable || now_us >= retry_us;
            if retry {
                retry_us = now_us + RETRY_US;
            }
            self.forward.peers.flush(retry);
            if now_us >= housekeeping_us {
                housekeeping_us = now_us + HOUSEKEEPING_US;
                self.stats.count(Count::KernelDrops, self.sources.iter_mut().map(|s| s.tend()).sum());
            }
            if more {
                continue;
            }
            let before_us = monotonic_us();
            moderator.set_eager(self.forward.peers.is_waited_for());
            let pause = moderator.after_drain(before_us, frames, bytes, slept_us);
            writable = match pause {
                Pause::Block => self.block(before_us),
                Pause::Nap(nap) => {
                    std::thread::sleep(nap);
                    false
                }
            };
            let slept = monotonic_us() - before_us;
            if let Pause::Nap(_) = pause {
                self.sources.iter_mut().for_each(|source| source.napped(Duration::from_micros(slept)));
            }
            slept_us = slept.min(u64::from(u32::MAX)) as u32;
            (frames, bytes) = (0, 0);
        }
        self.forward.peers.bye("intercept is stopping");
    }

    /// Waits for a frame, a ring of the bell, room in a full socket, or the next deadline. Tells whether a full socket may
    /// have room again.
    fn block(&mut self, now_us: u64) -> bool {
        self.bell.will_wait(self.forward.is_holding());
        if !self.commands.is_empty() {
            return false;
        }
        let deadline_us = self.forward.deadline_us().unwrap_or(u64::MAX).min(now_us + LONGEST_SLEEP_US);
        let timeout = Duration::from_micros(deadline_us.saturating_sub(now_us).max(1_000));
        let timeout = PollTimeout::try_from(timeout).expect("200 ms are a valid time-out");
        let (bell, sources) = (&self.bell, &self.sources);
        let mut fds = [const { None::<PollFd<'_>> }; MAX_FDS];
        let wanted = std::iter::once(PollFd::new(bell.event().as_fd(), PollFlags::POLLIN))
            .chain(sources.iter().map(|s| PollFd::new(s.fd(), PollFlags::POLLIN)))
            .chain(self.forward.peers.stuck().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        let mut count = 0;
        for fd in wanted.take(MAX_FDS) {
            fds[count] = Some(fd);
            count += 1;
        }
        let mut fds =
            fds.map(|fd| fd.unwrap_or_else(|| PollFd::new(bell.event().as_fd(), PollFlags::empty())));
        match poll(&mut fds[..count], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => warn!("waiting for answers failed: {error}"),
        }
        let reported = |i: usize| fds[i].revents().unwrap_or(PollFlags::empty());
        if reported(0).contains(PollFlags::POLLIN) {
            bell.heard();
        }
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        let mut failed = [false; MAX_SOURCES];
        for (i, failed) in failed.iter_mut().enumerate().take(sources.len()) {
            *failed = reported(1 + i).intersects(broken);
        }
        let writable = (1 + sources.len()..count).any(|i| !reported(i).is_empty());
        for (source, _) in self.sources.iter_mut().zip(failed).filter(|(_, failed)| *failed) {
            recover(source.as_mut(), &self.stats);
        }
        writable
    }
}

/// Takes the error off a source. A link that is down reports one once, and frames come again when it is up.
fn recover(source: &mut dyn Source, stats: &Stats) {
    stats.count(Count::CaptureErrors, 1);
    match source.recover() {
        Some(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
            info!("{} is down; answers are captured again when it is up", source.name());
        }
        Some(error) => warn!("capturing on {} reported: {error}", source.name()),
        // Reported but nothing to take: without a pause the loop would spin on it.
        None => std::thread::sleep(Duration::from_millis(10)),
    }
}

/// Interfaces at most.
pub(crate) const MAX_SOURCES: usize = 64;
/// Bell, sources, and all peers.
const MAX_FDS: usize = 1 + MAX_SOURCES + crate::MAX_PEERS;

/// A source that cannot be polled any more would be asked for ever; checked once at the start.
pub(crate) fn check_count(sources: usize) -> Result<(), io::Error> {
    if sources <= MAX_SOURCES {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{sources} interfaces are more than {MAX_SOURCES}; capture on all of them without -i"
    )))
}
