//! One process of the pipeline over its whole life: started, alive, dead, started again, finished.

use std::cell::Cell;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use topology::Process;

use crate::backoff::Backoff;
use crate::hang::{Hung, Watchdog};
use crate::procfs;
use crate::spawn::Started;
use crate::undertaker::Undertaker;
use crate::upgrade::Heir;

/// One process of the pipeline.
pub(crate) struct Member {
    /// Which.
    pub(crate) process: Process,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// Judges its silence.
    pub(crate) watchdog: Watchdog,
    /// It was killed for hanging by itself.
    hung: bool,
    /// Its deaths.
    pub(crate) backoff: Backoff,
    /// It is being replaced on purpose: its death is no fault.
    pub(crate) leaving: bool,
    /// How long it was away.
    pub(crate) recovery: Recovery,
    /// The system call that its sandbox stopped it at last.
    pub(crate) stopped_at: Option<String>,
    life: Life,
    /// CPU time of its dead predecessors.
    cpu_before: Duration,
    /// Resident memory at the last look at a living one: the dead have none.
    rss_bytes: Cell<u64>,
}

/// From a death to a successor that runs, microseconds; 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// The last one.
    pub(crate) last_us: u64,
    /// The longest.
    pub(crate) worst_us: u64,
    /// When the last death was seen, until the successor runs.
    dead_us: Option<u64>,
}

enum Life {
    /// Not started yet, or dead until this time.
    Due(Instant),
    /// There.
    Alive(Started),
    /// Over for good.
    Finished,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// With exit code 0: its work was done.
    InOrder,
    /// Of something it did; the end of "shard-worker 2 was ...".
    Crash(String),
    /// Its sandbox stopped it.
    Forbidden,
    /// Of a SIGKILL, which somebody sent.
    Kill(String),
}

impl Member {
    /// To be started now.
    pub(crate) fn new(process: Process) -> Self {
        Self {
            process,
            restarts: 0,
            watchdog: Watchdog::default(),
            hung: false,
            backoff: Backoff::default(),
            leaving: false,
            recovery: Recovery::default(),
            stopped_at: None,
            life: Life::Due(Instant::now()),
            cpu_before: Duration::ZERO,
            rss_bytes: Cell::new(0),
        }
    }

    /// As the image before this one had it: alive still, or to be started now.
    ///
    /// # Errors
    /// The descriptor that tells of its death is none.
    pub(crate) fn inherited(process: Process, heir: Heir) -> std::io::Result<Self> {
        let (last_us, worst_us) = heir.recovery_us;
        let mut member = Self {
            restarts: heir.restarts,
            cpu_before: Duration::from_nanos(heir.cpu_before_ns),
            recovery: Recovery { last_us, worst_us, dead_us: None },
            ..Self::new(process)
        };
        if let Some((pid, alive)) = heir.alive {
            member.life = Life::Alive(Started { pid, alive: shm::inherit(alive)? });
        }
        Ok(member)
    }

    /// For the next image.
    pub(crate) fn heir(&self) -> Heir {
        let alive = match &self.life {
            Life::Alive(started) => Some((started.pid, started.alive.as_raw_fd())),
            _ => None,
        };
        Heir {
            alive,
            restarts: self.restarts,
            cpu_before_ns: self.cpu_before.as_nanos() as u64,
            recovery_us: (self.recovery.last_us, self.recovery.worst_us),
        }
    }

    /// Whether it is to be started by now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        matches!(self.life, Life::Due(at) if at <= now)
    }

    /// When it is to be started.
    pub(crate) const fn due(&self) -> Option<Instant> {
        match self.life {
            Life::Due(at) => Some(at),
            _ => None,
        }
    }

    /// It was started.
    pub(crate) fn started(&mut self, started: Started) {
        self.life = Life::Alive(started);
        self.watchdog = Watchdog::default();
        self.hung = false;
    }

    /// It shall be started at this time.
    pub(crate) fn start_at(&mut self, at: Instant) {
        self.life = Life::Due(at);
    }

    /// It shall not be started again.
    pub(crate) fn finish(&mut self) {
        self.life = Life::Finished;
    }

    /// Whether there is a process.
    pub(crate) const fn is_alive(&self) -> bool {
        matches!(self.life, Life::Alive(_))
    }

    /// Whether its work is over for good.
    pub(crate) const fn is_finished(&self) -> bool {
        matches!(self.life, Life::Finished)
    }

    /// Its process id, while it has one.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.life {
            Life::Alive(started) => Some(started.pid),
            _ => None,
        }
    }

    /// Becomes readable when it dies.
    pub(crate) fn alive(&self) -> Option<BorrowedFd<'_>> {
        match &self.life {
            Life::Alive(started) => Some(started.alive.as_fd()),
            _ => None,
        }
    }

    /// CPU time so far, predecessors included.
    pub(crate) fn cpu(&self) -> Duration {
        let now = self.pid().and_then(procfs::look).map_or(Duration::ZERO, |look| look.cpu);
        self.cpu_before + now
    }

    /// The same to the microsecond, for who looks often.
    pub(crate) fn cpu_exact(&self) -> Duration {
        let now = self.pid().and_then(procfs::cpu_of_process).unwrap_or_default();
        self.cpu_before + now
    }

    /// Resident memory, bytes: now, or when it was last looked at alive.
    pub(crate) fn rss_bytes(&self) -> u64 {
        if let Some(look) = self.pid().and_then(procfs::look).filter(|look| look.rss_bytes > 0) {
            self.rss_bytes.set(look.rss_bytes);
        }
        self.rss_bytes.get()
    }

    /// Kills it; the death is seen by [`Member::has_died`].
    pub(crate) fn kill(&self) {
        if let Some(pid) = self.pid() {
            // It is our child and not reaped yet, so the number cannot be another's; it may be dead already.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// Kills it because it hangs.
    pub(crate) fn kill_hung(&mut self, hung: Hung) {
        self.hung = hung.is_its_own();
        self.kill();
    }

    /// Whether it died because it hung, and nobody had stopped it.
    pub(crate) const fn was_hung(&self) -> bool {
        self.hung
    }

    /// How it died, once. All its threads and its memory are gone then, and nobody writes any more what was its own; the
    /// undertaker takes it out of the process table.
    pub(crate) fn has_died(&mut self, undertaker: &Undertaker) -> Option<Death> {
        let pid = Pid::from_raw(self.pid()?.cast_signed());
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let death = match waitid(Id::Pid(pid), look) {
            Ok(WaitStatus::StillAlive) => return None,
            Ok(WaitStatus::Exited(_, 0)) => Death::InOrder,
            Ok(WaitStatus::Exited(_, code)) => Death::Crash(format!("ended with exit code {code}")),
            Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => Death::Kill("killed by SIGKILL".to_owned()),
            Ok(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => Death::Forbidden,
            Ok(WaitStatus::Signaled(_, signal, _)) => Death::Crash(format!("killed by {signal}")),
            // No such child: somebody reaped it, which nobody does.
            other => Death::Crash(format!("lost ({other:?})")),
        };
        // Read first: out of the table it is gone.
        self.cpu_before = self.cpu();
        undertaker.bury(pid);
        self.life = Life::Finished;
        self.recovery.dead_us = Some(shm::monotonic_us());
        Some(death)
    }
}

impl Recovery {
    /// The role says that it runs since `running_us`; a predecessor may have said it.
    pub(crate) fn runs(&mut self, running_us: u64) {
        if let Some(dead_us) = self.dead_us.filter(|dead_us| running_us > *dead_us) {
            self.dead_us = None;
            self.last_us = running_us - dead_us;
            self.worst_us = self.worst_us.max(self.last_us);
        }
    }

    /// Whether a death is not made good yet.
    pub(crate) const fn is_due(&self) -> bool {
        self.dead_us.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_ends_with_the_successors_word_not_the_predecessors() {
        let mut recovery = Recovery { dead_us: Some(1_000), ..Recovery::default() };
        recovery.runs(900);
        assert!(recovery.is_due());
        recovery.runs(6_000);
        assert_eq!((recovery.last_us, recovery.worst_us, recovery.is_due()), (5_000, 5_000, false));
        recovery.dead_us = Some(10_000);
        recovery.runs(12_000);
        assert_eq!((recovery.last_us, recovery.worst_us), (2_000, 5_000));
        recovery.runs(90_000);
        assert_eq!(recovery.last_us, 2_000, "only after a death");
    }
}
