//! When the two roles that wait on the kernel (capturer, intercept) sleep, and when they nap, as a network card moderates
//! its interrupts. Pure: the caller drains, tells what it found, and does as told.
//!
//! | mode | what happened | next |
//! |---|---|---|
//! | blocking | it slept T/2 or longer, or left napping less than 20 ms ago | block |
//! | blocking | frames came and the sleep was shorter than T/2 | nap |
//! | napping | two frames or more in this nap | nap |
//! | napping | fewer, the third time in a row | block, and no nap for 20 ms |
//!
//! Where somebody can do nothing but wait for what comes (`eager`), there is no mode: two frames or more in a drain make it nap, for
//! 50 µs, so that a burst of answers crosses as one and no turn waits for the rest of a nap.
//!
//! Otherwise a nap is T: 500 µs for who captures, which grow towards 1,000 when frames are many; 1,000 for who brings answers, which
//! grow towards 2,000 when they are large. So a lone closed-loop connection blocks (no added latency) and a busy pipeline pays no
//! wake-up a packet: at 20,000 messages/s 10.9–11.3 µs of CPU each for all hops at 500 µs (lag p50 405 µs) and 8.7–9.7 at 1,000
//! (800 µs), against 27–30 without. Requests are late by what capture naps; by what answers do, only a turn that waits for one.

use std::time::Duration;

/// Of who captures requests; busy with so many frames.
const REQUESTS: Naps = Naps { usual_us: 500, longest_us: 1_000, busy_per_s: 20_000 };
/// Of who brings answers; busy with so many bytes on the wire.
const ANSWERS: Naps = Naps { usual_us: 1_000, longest_us: 2_000, busy_per_s: 64_000_000 };
/// The nap of who is waited for.
const EAGER_NAP: Duration = Duration::from_micros(50);
/// A nap with fewer frames is not worth it.
const WORTH_FRAMES: u32 = 2;
/// That many naps in a row that were not worth it end the napping.
const PATIENCE: u32 = 3;
/// For so long after that there is no napping, µs.
const HOLD_OFF_US: u64 = 20_000;

/// What to do until the next drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Wait for the kernel to report a frame.
    Block,
    /// Sleep this long, whatever comes.
    Nap(Duration),
}

/// The moderation of one waiting thread, which should also call [`crate::set_fine_timers`].
#[derive(Clone, Debug)]
pub struct Moderator {
    naps: Naps,
    mode: Mode,
    /// No napping before this time, µs.
    not_before_us: u64,
    eager: bool,
}

#[derive(Clone, Copy, Debug)]
struct Naps {
    usual_us: u32,
    longest_us: u32,
    /// Load from which on they grow.
    busy_per_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Blocking,
    Napping { poor: u32, nap_us: u32 },
}

impl Moderator {
    /// For who captures requests.
    pub const fn of_requests() -> Self {
        Self::new(REQUESTS)
    }

    /// For who brings answers.
    pub const fn of_answers() -> Self {
        Self::new(ANSWERS)
    }

    /// Begins by blocking.
    const fn new(naps: Naps) -> Self {
        Self { naps, mode: Mode::Blocking, not_before_us: 0, eager: false }
    }

    /// Whether somebody can do nothing but wait for what comes.
    pub const fn set_eager(&mut self, eager: bool) {
        self.eager = eager;
    }

    /// Called when everything the kernel had was taken. `frames`: how many that were since the last pause; `load`: what naps grow with,
    /// so many frames where requests are captured, bytes on the wire where answers are; `slept_us`: how long that pause was.
    pub fn after_drain(&mut self, now_us: u64, frames: u32, load: u64, slept_us: u32) -> Pause {
        if self.eager {
            self.mode = Mode::Blocking;
            return if frames >= WORTH_FRAMES { Pause::Nap(EAGER_NAP) } else { Pause::Block };
        }
        let usual_us = self.naps.usual_us;
        self.mode = match self.mode {
            // So short a sleep says that frames come faster than naps would.
            Mode::Blocking if frames > 0 && slept_us < usual_us / 2 && now_us >= self.not_before_us => {
                Mode::Napping { poor: 0, nap_us: usual_us }
            }
            Mode::Blocking => Mode::Blocking,
            Mode::Napping { nap_us, .. } if frames >= WORTH_FRAMES => {
                Mode::Napping { poor: 0, nap_us: self.naps.next(nap_us, load) }
            }
            Mode::Napping { poor, .. } if poor + 1 < PATIENCE => {
                Mode::Napping { poor: poor + 1, nap_us: usual_us }
            }
            Mode::Napping { .. } => {
                self.not_before_us = now_us + HOLD_OFF_US;
                Mode::Blocking
            }
        };
        match self.mode {
            Mode::Blocking => Pause::Block,
            Mode::Napping { nap_us, .. } => Pause::Nap(Duration::from_micros(nap_us.into())),
        }
    }
}

impl Naps {
    /// Grows while busy, falls back at once.
    fn next(self, nap_us: u32, load: u64) -> u32 {
        let is_busy = load * 1_000_000 >= self.busy_per_s * u64::from(nap_us);
        if is_busy { (nap_us + self.usual_us / 4).min(self.longest_us) } else { self.usual_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAP: Pause = Pause::Nap(Duration::from_micros(500));

    /// Drives a moderator as a role would: frames arrive every `gap_us`, a blocked role wakes at the next one.
    fn drive(gap_us: u64, rounds: u32) -> (u32, u32, Moderator) {
        let mut moderator = Moderator::of_requests();
        let (mut now, mut next, mut slept) = (1_000_000_u64, 1_000_000_u64, u32::MAX);
        let (mut blocks, mut naps) = (0, 0);
        for _ in 0..rounds {
            let mut frames = 0;
            while next <= now {
                next += gap_us;
                frames += 1;
            }
            match moderator.after_drain(now, frames, frames.into(), slept) {
                Pause::Block => {
                    blocks += 1;
                    slept = (next - now) as u32;
                    now = next;
                }
                Pause::Nap(nap) => {
                    naps += 1;
                    slept = nap.as_micros() as u32;
                    now += u64::from(slept);
                }
            }
        }
        (blocks, naps, moderator)
    }

    #[test]
    fn one_frame_a_millisecond_never_naps() {
        assert_eq!(drive(1_000, 1_000).1, 0);
    }

    #[test]
    fn twenty_thousand_a_second_naps_all_the_time() {
        let (blocks, naps, _) = drive(50, 1_000);
        assert!(blocks <= 2 && naps >= 998, "{blocks} blocks, {naps} naps");
    }

    #[test]
    fn a_closed_loop_that_wakes_us_fast_but_stalls_on_naps_is_left_alone_for_20_ms() {
        let mut moderator = Moderator::of_requests();
        assert_eq!(moderator.after_drain(0, 1, 1, 100), NAP);
        assert_eq!(moderator.after_drain(500, 1, 1, 500), NAP);
        assert_eq!(moderator.after_drain(1_000, 1, 1, 500), NAP);
        assert_eq!(moderator.after_drain(1_500, 1, 1, 500), Pause::Block);
        assert_eq!(moderator.after_drain(1_600, 1, 1, 100), Pause::Block);
        assert_eq!(moderator.after_drain(21_499, 1, 1, 100), Pause::Block);
        assert_eq!(moderator.after_drain(21_500, 1, 1, 100), NAP);
    }

    #[test]
    fn one_good_nap_restores_patience() {
        let mut moderator = Moderator::of_requests();
        moderator.after_drain(0, 5, 5, 10);
        for round in 0..10 {
            assert_eq!(moderator.after_drain(round, 0, 0, 500), NAP);
            assert_eq!(moderator.after_drain(round, 1, 1, 500), NAP);
            assert_eq!(moderator.after_drain(round, 2, 2, 500), NAP);
        }
    }

    #[test]
    fn a_wake_up_for_nothing_is_no_reason_to_nap() {
        assert_eq!(Moderator::of_requests().after_drain(0, 0, 0, 0), Pause::Block);
    }

    #[test]
    fn a_sleep_of_half_a_nap_is_long_enough_to_block() {
        assert_eq!(Moderator::of_requests().after_drain(0, 9, 9, 250), Pause::Block);
        assert_eq!(Moderator::of_requests().after_drain(0, 9, 9, 249), NAP);
    }

    #[test]
    fn naps_grow_to_a_millisecond_at_high_rates_and_fall_back() {
        let mut moderator = Moderator::of_requests();
        let mut last = moderator.after_drain(0, 100, 100, 0);
        for _ in 0..10 {
            last = moderator.after_drain(0, 200, 200, 500);
        }
        assert_eq!(last, Pause::Nap(Duration::from_millis(1)));
        // 15 frames in a millisecond are 7 in the usual nap.
        assert_eq!(moderator.after_drain(0, 15, 15, 1_000), NAP);
    }

    #[test]
    fn answers_are_collected_for_a_millisecond_and_large_ones_for_two() {
        let mut moderator = Moderator::of_answers();
        let nap = |us| Pause::Nap(Duration::from_micros(us));
        assert_eq!(moderator.after_drain(0, 1, 60, 500), Pause::Block);
        assert_eq!(moderator.after_drain(0, 1, 60, 499), nap(1_000));
        for small in [2, 200, 2] {
            assert_eq!(moderator.after_drain(0, small, u64::from(small) * 250, 1_000), nap(1_000));
        }
        // 64 MB a second, for as long as the nap was.
        for (us, next_us) in [(1_000, 1_250), (1_250, 1_500), (1_500, 1_750), (1_750, 2_000), (2_000, 2_000)]
        {
            assert_eq!(moderator.after_drain(0, 4, 64 * u64::from(us), us), nap(next_us));
        }
        assert_eq!(moderator.after_drain(0, 4, 127_999, 2_000), nap(1_000));
    }

    #[test]
    fn who_is_waited_for_naps_shortly_after_a_burst_and_at_no_other_time() {
        let mut moderator = Moderator::of_requests();
        moderator.set_eager(true);
        let short = Pause::Nap(Duration::from_micros(50));
        for _ in 0..10 {
            assert_eq!(moderator.after_drain(0, 200, 200, 0), short);
            assert_eq!(moderator.after_drain(0, 2, 2, 100), short);
            assert_eq!(moderator.after_drain(0, 1, 1, 100), Pause::Block, "a lone connection");
            assert_eq!(moderator.after_drain(0, 0, 0, 100), Pause::Block);
        }
        moderator.set_eager(false);
        assert_eq!(moderator.after_drain(0, 2, 2, 100), NAP, "as soon as nobody waits any more");
    }
}
