//! Is a role that does not beat hung, or does the host only keep it from a core? Killing it in the second case would lose
//! its sessions for nothing, and on a busy host again and again.
//!
//! A role beats when it works and every 100 ms when idle. After a beat and a half of silence it is *suspect* and looked at in
//! /proc, every 10 ms. That it sleeps is held against it if input is pending (it said so, or bytes stand in its rings: one
//! that was stopped while asleep cannot say so any more), and after a second in any case:
//!
//! | seen | judged |
//! |---|---|
//! | stopped (T, t), input pending or not | hung at once |
//! | silent for 250 ms, and used more than 50 ms of CPU since the suspicion, input pending or not | hung: it spins |
//! | asleep (S, D) at each look for 250 ms, without any CPU time, input pending | hung: it waits for what does not come |
//! | runnable (R), hardly any CPU time | starved: given up to 5 s |
//! | anything for 5 s | hung |
//!
//! One that is being taken apart by the kernel is not judged: giving its memory back may take seconds where the host is busy, and
//! who waits for that did not hang by itself.
//!
//! One that is starting takes over what its predecessor left, in one go, and may compute for as long as a starved one.

use std::time::{Duration, Instant};

/// One look at a role.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Input waits for it, by its own word or by its rings.
    pub(crate) pending: bool,
    /// It is still starting.
    pub(crate) starting: bool,
    /// Its last beat, CLOCK_MONOTONIC milliseconds.
    pub(crate) beat_ms: u64,
    /// Now, on the same clock.
    pub(crate) now_ms: u64,
}

/// Why a role is taken for hung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hung {
    /// Somebody stopped it (SIGSTOP).
    Stopped,
    /// It computes without end.
    Spins,
    /// It waits for something that does not come.
    Waits,
    /// It got no core for five seconds, or something else that took too long.
    TooLong,
}

impl Hung {
    /// Whether it is the role's own doing: not that of somebody who stopped it, or of a busy host.
    pub(crate) const fn is_its_own(self) -> bool {
        matches!(self, Self::Spins | Self::Waits)
    }

    /// As the end of "shard-worker 2 ...".
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Hung::Stopped => "was stopped",
            Hung::Spins => "computed without end",
            Hung::Waits => "waited without end",
            Hung::TooLong => "did nothing for 5 s",
        }
    }
}

/// What is known about one role's silence.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    suspicion: Option<Suspicion>,
    /// It was judged hung, and is being killed: until its successor starts there is nothing more to say.
    judged: bool,
}

#[derive(Debug)]
struct Suspicion {
    beat_ms: u64,
    since: Instant,
    cpu: Duration,
    /// When the series of looks that all saw it asleep and idle began.
    asleep_since: Option<(Instant, Duration)>,
}

/// Silence that makes suspect: more than an idle role ever leaves between two beats. Being stopped is
/// no matter of degree, so then nothing more is waited for.
pub(crate) const NOTICE_MS: u64 = 150;
/// Silence before which nothing but a stop is judged.
const HUNG_MS: u64 = 250;
/// Silence in which a role may sleep if nothing is pending: ten beats.
const SILENT_MS: u64 = 1_000;
/// CPU time without a beat that proves spinning: a step between two beats takes a millisecond or two. A spinning role on a busy
/// host gets half a core, and has to be found within 350 ms all the same.
const SPIN: Duration = Duration::from_millis(50);
/// Sleep without CPU time, while input is pending, that proves waiting for nothing.
const ASLEEP: Duration = Duration::from_millis(250);
/// CPU time below which a role did nothing at all between looks.
const NOTHING: Duration = Duration::from_micros(200);
/// The longest that a busy host may keep a role from a core.
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);
/// The same in milliseconds.
pub(crate) const PATIENCE_MS: u64 = 5_000;

impl Watchdog {
    /// Whether the role is suspect.
    pub(crate) const fn suspects(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Judges a role, hung once at most; `look` asks /proc for state and CPU time and is called for suspects only.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        sample: Sample,
        look: impl FnOnce() -> Option<(char, Duration)>,
    ) -> Option<Hung> {
        if self.judged {
            return None;
        }
        let hung = self.weigh(now, sample, look);
        self.judged = hung.is_some();
        hung
    }

    fn weigh(
        &mut self,
        now: Instant,
        sample: Sample,
        look: impl FnOnce() -> Option<(char, Duration)>,
    ) -> Option<Hung> {
        let silent = sample.now_ms.saturating_sub(sample.beat_ms);
        if silent < NOTICE_MS {
            self.suspicion = None;
            return None;
        }
        // Dead or on the way out, which is seen elsewhere.
        let (state, cpu) = look()?;
        if matches!(state, 'T' | 't') {
            return Some(Hung::Stopped);
        }
        let same = self.suspicion.as_ref().is_some_and(|suspicion| suspicion.beat_ms == sample.beat_ms);
        if !same {
            self.suspicion = Some(Suspicion { beat_ms: sample.beat_ms, since: now, cpu, asleep_since: None });
        }
        let suspicion = self.suspicion.as_mut().expect("set just above");
        let used = cpu.saturating_sub(suspicion.cpu);
        match state {
            _ if sample.starting => {}
            _ if used > SPIN && silent >= HUNG_MS => return Some(Hung::Spins),
            'S' | 'D' | 'I' if sample.pending || silent >= SILENT_MS => {
                let (since, before) = *suspicion.asleep_since.get_or_insert((now, cpu));
                if cpu.saturating_sub(before) > NOTHING {
                    suspicion.asleep_since = Some((now, cpu));
                } else if now.duration_since(since) >= ASLEEP {
                    return Some(Hung::Waits);
                }
            }
            _ => suspicion.asleep_since = None,
        }
        (now.duration_since(suspicion.since) >= PATIENCE).then_some(Hung::TooLong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a role every 50 ms; `at` gives state and CPU milliseconds at each. Returns when it was judged hung.
    fn watch(looks: usize, at: impl Fn(usize) -> (char, u64)) -> Option<(usize, Hung)> {
        let mut watchdog = Watchdog::default();
        let start = Instant::now();
        (0..looks).find_map(|i| {
            let now_ms = 1_000 + NOTICE_MS + 50 * i as u64;
            let sample = Sample { pending: true, starting: false, beat_ms: 1_000, now_ms };
            let (state, cpu) = at(i);
            let now = start + Duration::from_millis(50 * i as u64);
            watchdog.judge(now, sample, || Some((state, Duration::from_millis(cpu)))).map(|hung| (i, hung))
        })
    }

    #[test]
    fn a_stopped_role_is_hung_at_once() {
        assert_eq!(watch(1, |_| ('T', 0)), Some((0, Hung::Stopped)));
    }

    #[test]
    fn a_spinning_role_is_hung_after_a_quarter_of_a_second() {
        assert_eq!(watch(20, |i| ('R', 50 * i as u64)), Some((2, Hung::Spins)));
        // On four cores at once: still not before.
        assert_eq!(watch(20, |i| ('R', 200 * i as u64)), Some((2, Hung::Spins)));
        // With half a core.
        assert_eq!(watch(20, |i| ('R', 25 * i as u64)), Some((3, Hung::Spins)));
    }

    #[test]
    fn a_role_spins_whether_its_input_can_be_seen_or_not() {
        let mut watchdog = Watchdog::default();
        let start = Instant::now();
        let mut at = |ms: u64, state: char, cpu_ms: u64| {
            let sample = Sample { pending: false, starting: false, beat_ms: 1_000, now_ms: 1_000 + ms };
            let look = || Some((state, Duration::from_millis(cpu_ms)));
            watchdog.judge(start + Duration::from_millis(ms), sample, look)
        };
        assert_eq!((at(160, 'R', 500), at(260, 'R', 600)), (None, Some(Hung::Spins)));
        let mut watchdog = Watchdog::default();
        let mut asleep = |ms: u64| {
            let sample = Sample { pending: false, starting: false, beat_ms: 1_000, now_ms: 1_000 + ms };
            watchdog.judge(start + Duration::from_millis(ms), sample, || Some(('S', Duration::ZERO)))
        };
        assert_eq!((asleep(160), asleep(500), asleep(990), asleep(1_000)), (None, None, None, None));
        assert_eq!((asleep(1_200), asleep(1_260)), (None, Some(Hung::Waits)));
    }

    #[test]
    fn one_that_starts_may_compute() {
        let mut watchdog = Watchdog::default();
        let start = Instant::now();
        let mut at = |ms: u64| {
            let sample = Sample { pending: true, starting: true, beat_ms: 1_000, now_ms: 1_000 + ms };
            let cpu = Duration::from_millis(ms);
            watchdog.judge(start + Duration::from_millis(ms), sample, || Some(('R', cpu)))
        };
        assert_eq!((at(200), at(900), at(4_900)), (None, None, None));
        assert_eq!(at(5_300), Some(Hung::TooLong));
    }

    #[test]
    fn a_role_asleep_before_its_input_is_hung_after_another_250_ms() {
        assert_eq!(watch(20, |_| ('S', 7)), Some((5, Hung::Waits)));
        assert_eq!(watch(20, |_| ('D', 7)), Some((5, Hung::Waits)));
    }

    #[test]
    fn a_starved_role_is_given_five_seconds() {
        assert_eq!(watch(99, |_| ('R', 7)), None);
        assert_eq!(watch(200, |_| ('R', 7)), Some((100, Hung::TooLong)));
        // Scheduled now and then between sleeps: slow, not hung.
        assert_eq!(watch(99, |i| (if i % 3 == 0 { 'R' } else { 'S' }, i as u64 / 2)), None);
    }

    #[test]
    fn one_that_was_stopped_is_found_whether_it_had_work_or_not() {
        let mut watchdog = Watchdog::default();
        let now = Instant::now();
        for pending in [false, true] {
            let at = |silent| Sample { pending, starting: false, beat_ms: 1_000, now_ms: 1_000 + silent };
            let stopped = || Some(('T', Duration::ZERO));
            assert_eq!(watchdog.judge(now, at(NOTICE_MS - 1), || panic!("it has just beaten")), None);
            assert_eq!(watchdog.judge(now, at(NOTICE_MS), || Some(('S', Duration::ZERO))), None);
            assert_eq!(watchdog.judge(now, at(NOTICE_MS), stopped), Some(Hung::Stopped));
            assert_eq!(watchdog.judge(now, at(NOTICE_MS), || panic!("it is being killed")), None);
            watchdog = Watchdog::default();
        }
    }

    #[test]
    fn a_beat_or_empty_input_clears_the_suspicion() {
        let mut watchdog = Watchdog::default();
        let now = Instant::now();
        let late = Sample { pending: true, starting: false, beat_ms: 1_000, now_ms: 1_300 };
        let asleep = || Some(('S', Duration::ZERO));
        assert_eq!(watchdog.judge(now, late, asleep), None);
        let beat = Sample { beat_ms: 1_310, now_ms: 1_320, ..late };
        assert_eq!(watchdog.judge(now + ASLEEP, beat, || panic!("not a suspect")), None);
        let idle = Sample { pending: false, now_ms: 1_900, ..late };
        assert_eq!(watchdog.judge(now + ASLEEP, idle, asleep), None);
        // Suspected anew, its time begins anew.
        let again = Sample { now_ms: 9_000, ..late };
        assert_eq!(watchdog.judge(now + ASLEEP * 2, again, asleep), None);
    }
}
