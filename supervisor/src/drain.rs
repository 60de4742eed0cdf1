//! The ordered end: capture first, then the shards finish what is open, then the injector sends what is left. Each stage
//! has its time; what is not over by then is made to be.

use std::time::{Duration, Instant};

use topology::Process;

/// Which processes are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It empties the kernel's ring and ends.
    Capturer,
    /// They finish what is open, and reset what is left after the drain time.
    Shards,
    /// It sends what the shards left in its rings.
    Injector,
}

impl Stage {
    /// Whether this stage waits for the process.
    pub(crate) const fn holds(self, process: Process) -> bool {
        matches!(
            (self, process),
            (Stage::Capturer, Process::Capturer)
                | (Stage::Shards, Process::Shard(_))
                | (Stage::Injector, Process::Injector)
        )
    }
}

/// Where the end stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    stage: Stage,
    since: Instant,
    /// Time for the shards.
    time: Duration,
    at_once: bool,
}

/// Time for the capturer to empty the kernel's ring, and its recorder's: a disk of 10 MB/s takes that long for it.
const CAPTURER_TIME: Duration = Duration::from_secs(10);
/// Time for a shard beyond the drain time: it resets what is open and publishes its counters.
const SHARD_GRACE: Duration = Duration::from_secs(3);
/// Time for the injector to empty its rings.
const INJECTOR_TIME: Duration = Duration::from_secs(3);
/// Between the word halt and SIGKILL.
const HALT_TIME: Duration = Duration::from_secs(1);

impl Drain {
    /// Begins; open requests have `drain_ms` to finish.
    pub(crate) const fn begin(now: Instant, drain_ms: u32) -> Self {
        Self {
            stage: Stage::Capturer,
            since: now,
            time: Duration::from_millis(drain_ms as u64),
            at_once: false,
        }
    }

    /// Ends everything at once: halt now, SIGKILL a second later.
    pub(crate) const fn at_once(now: Instant) -> Self {
        Self { stage: Stage::Capturer, since: now, time: Duration::ZERO, at_once: true }
    }

    /// Which processes are waited for.
    pub(crate) const fn stage(&self) -> Stage {
        self.stage
    }

    /// Nothing is waited for longer than must be.
    pub(crate) const fn is_at_once(&self) -> bool {
        self.at_once
    }

    /// The next stage, begun now; `None` after the last.
    pub(crate) const fn next(self, now: Instant) -> Option<Self> {
        let stage = match self.stage {
            Stage::Capturer => Stage::Shards,
            Stage::Shards => Stage::Injector,
            Stage::Injector => return None,
        };
        // At once means one second for all of them together.
        let since = if self.at_once { self.since } else { now };
        Some(Self { stage, since, ..self })
    }

    /// Time left for this stage.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        let time = match self.stage {
            _ if self.at_once => HALT_TIME,
            Stage::Capturer => CAPTURER_TIME,
            Stage::Shards => self.time,
            Stage::Injector => INJECTOR_TIME,
        };
        time.saturating_sub(now.duration_since(self.since))
    }

    /// Time left until open requests are given up, for the count-down.
    pub(crate) fn left_for_requests(&self, now: Instant) -> Duration {
        match self.stage {
            Stage::Capturer if !self.at_once => self.time,
            _ => self.left(now),
        }
    }

    /// Whether the control word halt is to be set.
    pub(crate) fn wants_halt(&self, now: Instant) -> bool {
        // Shards need the injector: halting it before they are through would lose their last segments.
        self.at_once || (self.stage == Stage::Injector && self.left(now).is_zero())
    }

    /// Whether what still lives in this stage is to be killed.
    pub(crate) fn wants_kill(&self, now: Instant) -> bool {
        let grace = match self.stage {
            _ if self.at_once => Duration::ZERO,
            Stage::Capturer => Duration::ZERO,
            Stage::Shards => SHARD_GRACE,
            Stage::Injector => HALT_TIME,
        };
        self.left(now).is_zero() && self.left(now.checked_sub(grace).unwrap_or(now)).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_the_packets() {
        let now = Instant::now();
        let drain = Drain::begin(now, 10_000);
        assert!(drain.stage().holds(Process::Capturer) && !drain.stage().holds(Process::Injector));
        let shards = drain.next(now).unwrap();
        assert!(shards.stage().holds(Process::Shard(3)));
        let injector = shards.next(now).unwrap();
        assert!(injector.stage().holds(Process::Injector) && injector.next(now).is_none());
    }

    #[test]
    fn a_stage_that_does_not_end_is_ended() {
        let now = Instant::now();
        let shards = Drain::begin(now, 10_000).next(now).unwrap();
        let at = |ms: u64| now + Duration::from_millis(ms);
        assert!(!shards.wants_halt(at(60_000)), "the injector still sends for the shards");
        assert!(!shards.wants_kill(at(12_900)) && shards.wants_kill(at(13_100)));
        assert_eq!(shards.left(at(4_000)), Duration::from_secs(6));
        let injector = shards.next(now).unwrap();
        assert!(!injector.wants_halt(at(2_900)) && injector.wants_halt(at(3_100)));
        assert!(!injector.wants_kill(at(3_900)) && injector.wants_kill(at(4_100)));
    }

    #[test]
    fn at_once_means_a_second_for_all() {
        let now = Instant::now();
        let drain = Drain::at_once(now);
        assert!(drain.wants_halt(now) && !drain.wants_kill(now));
        let later = now + HALT_TIME;
        assert!(drain.wants_kill(later) && drain.next(later).unwrap().wants_kill(later));
    }
}
