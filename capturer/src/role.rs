//! The process: drains the source, dispatches, sleeps. One thread.
//!
//! A batch in order: sample the clocks, drain, commit (records, counters and positions in one step), give the slots back. So a
//! successor of a capturer that died anywhere in between begins either before the batch or behind it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shm::{Control, Counters, Heartbeat, Moderator, Pause, Region, Role, RoleState, monotonic_ns};
use topology::Plan;
use topology::plan::CaptureEngine;

use crate::clock::FrameClock;
use crate::count::Count;
use crate::dispatch::Dispatcher;
use crate::error::RoleError;
use crate::live::Live;
use crate::offline;
use crate::open::CaptureSocket;
use crate::pcap::Pcap;
use crate::recording::Recording;
use crate::simple::Simple;
use crate::source::Source;
use crate::xdp;

/// Frames of one batch: large enough to share publication and wake-up, small enough that a shard starts early.
const BATCH: u32 = 256;
/// A role beats at least this often.
const BEAT_MS: u64 = 100;
/// Frames that no wait reports are drained so long after others at most, ms.
const UNAWAITED_MS: u64 = 10;
/// How often interfaces are looked after unasked.
const ATTEND_MS: u64 = 1_000;
/// Waits in a row that report frames which a drain does not find, before the ring is searched. A frame that another core is still
/// writing causes one or two.
const BLIND_WAITS: u32 = 64;

/// Captures until the control words say stop. `sockets` are those of [`crate::open`] for the same plan, or
/// [`crate::inherit`]ed. `confine` is called once all is open that needs privileges, before the first packet is looked at and the
/// first thread started.
///
/// # Errors
/// Only at the beginning: sockets that are not what they should be. Later nothing ends it, every fault is counted.
pub fn run(
    region: &'static Region,
    plan: &Plan,
    sockets: Vec<CaptureSocket>,
    confine: impl FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), RoleError> {
    boot(region.heartbeat(Role::Capturer));
    let dispatcher = Dispatcher::new(region, plan);
    if let Some(trace) = &plan.trace {
        confine().map_err(RoleError::Confine)?;
        // Naps between packets end up to 50 µs late without.
        let _ = shm::set_fine_timers();
        return offline::run(region, trace, dispatcher);
    }
    let position = |ring: u16| dispatcher.position(ring);
    let source: Box<dyn Source> = match plan.capture.engine {
        CaptureEngine::Ring => Box::new(Live::new(plan, sockets, position)?),
        CaptureEngine::Simple => Box::new(Simple::new(plan, sockets)?),
        CaptureEngine::Pcap => Box::new(Pcap::new(plan)),
        CaptureEngine::Xdp => xdp::source(plan, sockets, position)?,
    };
    if plan.capture.engine == CaptureEngine::Pcap {
        let away_ms = unseen(dispatcher.counters());
        if away_ms > 0 {
            tracing::warn!(
                "nobody captured for {away_ms} ms: with --capture pcap what the kernel held for a capturer goes with it. Requests of that time are missing"
            );
        }
    }
    confine().map_err(RoleError::Confine)?;
    let recording = Recording::start(plan, dispatcher.counters()).map_err(RoleError::Recorder)?;
    // Naps end up to 50 µs late without; that is all.
    let _ = shm::set_fine_timers();
    let waiter = Waiter::new(source.as_ref()).map_err(RoleError::Wait)?;
    Capturer {
        control: region.control(),
        heartbeat: region.heartbeat(Role::Capturer),
        dispatcher,
        recording,
        source,
        waiter,
        clock: FrameClock::default(),
        moderator: Moderator::of_requests(),
        last_beat_ms: 0,
        last_attend_ms: 0,
        told_unsplit: false,
        budgeted: plan.restraint.cpu_milli.is_some(),
    }
    .run();
    Ok(())
}

/// A killed predecessor's last word may be that input is pending, which makes who is only booting look hung. The epoch says
/// how often this role was started.
fn boot(heartbeat: &Heartbeat) {
    heartbeat.set_pending(false);
    heartbeat.set_state(RoleState::Starting);
    heartbeat.set_epoch(heartbeat.epoch() + 1);
    heartbeat.beat(shm::monotonic_ms());
}

/// Counts the time since somebody captured last, and says how much it is; none before the first capturer.
pub(crate) fn unseen(counters: &Counters) -> u64 {
    let now_ms = shm::monotonic_ms();
    let away_ms = match counters.get(Count::SeenMs.index()) {
        0 => 0,
        seen_ms => now_ms.saturating_sub(seen_ms),
    };
    counters.add(Count::UnseenMs.index(), away_ms);
    counters.set(Count::SeenMs.index(), now_ms);
    away_ms
}

struct Capturer {
    control: &'static Control,
    heartbeat: &'static Heartbeat,
    dispatcher: Dispatcher,
    recording: Option<Recording>,
    source: Box<dyn Source>,
    waiter: Waiter,
    clock: FrameClock,
    moderator: Moderator,
    last_beat_ms: u64,
    last_attend_ms: u64,
    /// It was said that packets of several datagrams are left out.
    told_unsplit: bool,
    /// Capture may be stopped for a while.
    budgeted: bool,
}

impl Capturer {
    fn run(mut self) {
        self.heartbeat.set_state(RoleState::Running);
        let mut draining = false;
        // A predecessor may have died with its sockets closed or open: the other of what is wanted, so that it is seen to.
        let mut open = !self.budgeted || self.control.blind();
        // Frames since the last pause, and how long that was.
        let (mut frames, mut slept_us) = (0, u32::MAX);
        let mut blind = 0;
        while !self.control.halt() {
            if self.control.draining() && !draining {
                draining = true;
                self.source.close();
                self.heartbeat.set_state(RoleState::Draining);
            }
            if open == self.control.blind() && !draining {
                open = !open;
                if open { self.source.reopen() } else { self.source.close() }
            }
            let leaving = self.control.leaving() == self.heartbeat.epoch();
            let taken = self.batch();
            frames += taken;
            if taken == BATCH {
                continue;
            }
            if leaving {
                // A successor takes this place: what the kernel held is taken, and what comes now waits for it where it can.
                break;
            }
            self.clock.emptied();
            if draining && taken == 0 {
                break;
            }
            blind = if frames == 0 && self.waiter.reported { blind + 1 } else { 0 };
            if blind >= BLIND_WAITS {
                blind = 0;
                self.source.relocate();
            }
            slept_us = self.pause(frames, slept_us);
            frames = 0;
        }
        self.look_at_drops();
        self.finish_recording();
        self.heartbeat.set_state(RoleState::Done);
    }

    /// Waits until what was captured is in files; the supervisor waits for so long as it likes.
    fn finish_recording(&mut self) {
        let Some(recording) = &self.recording else { return };
        recording.stop();
        while !recording.is_finished() {
            self.heartbeat.beat(shm::monotonic_ms());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Drains up to [`BATCH`] frames and hands them to the shards.
    fn batch(&mut self) -> u32 {
        let (now_ns, realtime_ns) = both_clocks();
        self.clock.sample(now_ns, realtime_ns);
        let (dispatcher, clock, recording) = (&mut self.dispatcher, &self.clock, &mut self.recording);
        let taken = self.source.drain(BATCH, &mut |frame| {
            let wanted = dispatcher.frame(frame, clock.monotonic_ns(frame.time_ns));
            if wanted && let Some(recording) = recording {
                dispatcher.record(frame, |packet| recording.packet(packet));
            }
        });
        if taken > 0 {
            dispatcher.commit(|note| self.source.positions(note));
            self.source.release();
        }
        self.housekeeping(now_ns / 1_000_000, taken > 0);
        taken
    }

    fn housekeeping(&mut self, now_ms: u64, busy: bool) {
        let due = now_ms.saturating_sub(self.last_beat_ms) >= BEAT_MS;
        if busy || due {
            self.heartbeat.beat(now_ms);
            self.dispatcher.counters().set(Count::SeenMs.index(), now_ms);
        }
        if due {
            self.last_beat_ms = now_ms;
            self.look_at_drops();
        }
        if now_ms.saturating_sub(self.last_attend_ms) >= ATTEND_MS {
            self.last_attend_ms = now_ms;
            self.attend();
        }
    }

    fn look_at_drops(&mut self) {
        let dropped = self.source.take_dropped();
        let counters = self.dispatcher.counters();
        counters.add(Count::KernelDrops.index(), dropped);
        if let Some(recording) = &self.recording {
            recording.kernel_drops(counters.get(Count::KernelDrops.index()));
        }
    }

    fn attend(&mut self) {
        let links = self.source.attend();
        let opened = self.source.take_opened();
        if opened > 0 {
            self.waiter.watch(self.source.as_ref());
        }
        let counters = self.dispatcher.counters();
        counters.add(Count::Opened.index(), opened);
        counters.set(Count::LinkDowns.index(), links.downs);
        counters.set(Count::InterfacesDown.index(), links.down);
        counters.set(Count::InterfacesGone.index(), links.gone);
        if !self.told_unsplit && counters.get(Count::DatagramsUnsplit.index()) > 0 {
            self.told_unsplit = true;
            tracing::warn!(
                "packets of several datagrams come up (UDP_SEGMENT, UDP_GRO), whose sizes the kernel does not tell here: they are left out, counted as datagrams_unsplit. --capture ring on Linux 6.2 or later takes them apart; or have the device not make them: ethtool -K DEVICE gro off rx-gro-list off, and at a sender on this machine ethtool -K DEVICE tx-udp-segmentation off"
            );
        }
    }

    /// Sleeps as the moderator says; returns for how long it did, µs.
    fn pause(&mut self, frames: u32, slept_us: u32) -> u32 {
        let before_ns = monotonic_ns();
        self.heartbeat.set_pending(false);
        let counters = self.dispatcher.counters();
        match self.moderator.after_drain(before_ns / 1_000, frames, frames.into(), slept_us) {
            Pause::Block => {
                counters.add(Count::Sleeps.index(), 1);
                // Where frames came, others that no wait reports may follow, and their ring has an end.
                let most = if frames > 0 && self.source.has_unawaited() { UNAWAITED_MS } else { BEAT_MS };
                if self.waiter.wait(Duration::from_millis(most)) {
                    self.attend();
                }
            }
            Pause::Nap(nap) => {
                counters.add(Count::Naps.index(), 1);
                self.waiter.reported = false;
                std::thread::sleep(nap);
            }
        }
        self.heartbeat.set_pending(true);
        u32::try_from((monotonic_ns() - before_ns) / 1_000).unwrap_or(u32::MAX)
    }
}

/// Waits for the kernel to report a frame or an error on any socket.
struct Waiter {
    epoll: Epoll,
    /// The last wait ended because frames were reported.
    reported: bool,
}

impl Waiter {
    fn new(source: &dyn Source) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let waiter = Self { epoll, reported: false };
        source.fds().iter().try_for_each(|fd| waiter.add(fd))?;
        Ok(waiter)
    }

    fn add(&self, fd: &BorrowedFd<'_>) -> io::Result<()> {
        // Errors are reported without being asked for.
        match self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for devices that were opened since, too; those that were closed are forgotten by the kernel.
    fn watch(&self, source: &dyn Source) {
        for fd in source.fds() {
            if let Err(error) = self.add(&fd) {
                tracing::warn!(
                    "frames of a device that was opened again are seen late: waiting for them failed ({error})"
                );
            }
        }
    }

    /// Waits; true when a socket has an error to be taken.
    fn wait(&mut self, timeout: Duration) -> bool {
        let mut events = [EpollEvent::empty(); 16];
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::ZERO);
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            // It cannot fail otherwise with valid arguments; if it does, slow polling is what is left.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                0
            }
        };
        let any = |flags| events[..count].iter().any(|event| event.events().intersects(flags));
        self.reported = any(EpollFlags::EPOLLIN);
        any(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP)
    }
}

/// Monotonic and wall clock of nearly one moment: a preemption between the two readings would shift every frame of the batch, so
/// such a pair is read again.
fn both_clocks() -> (u64, u64) {
    const CLOSE_NS: u64 = 1_000;
    let mut before = monotonic_ns();
    for _ in 0..3 {
        let realtime = realtime_ns();
        let after = monotonic_ns();
        if after - before < CLOSE_NS {
            return (before, realtime);
        }
        before = after;
    }
    (before, realtime_ns())
}

pub(crate) fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
