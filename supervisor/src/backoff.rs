//! When a role that died is started again. One death is an accident and costs nothing; a crash loop slows down, and one
//! that does not end stops the run safely.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What to do after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start a successor after this pause.
    Restart(Duration),
    /// Stop the run: it dies again and again.
    Stop,
}

/// The deaths of one role that still count.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: VecDeque<Instant>,
}

/// Deaths within [`SHORT`] that are answered at once.
const QUICK: usize = 5;
/// Deaths within [`LONG`] that are answered at all.
const ENOUGH: usize = 20;
/// Window of the quick answers.
const SHORT: Duration = Duration::from_secs(10);
/// Window of the last straw.
const LONG: Duration = Duration::from_secs(60);
/// The longest pause.
const CAP: Duration = Duration::from_secs(10);

impl Backoff {
    /// Counts a death and says what to do. Up to five in ten seconds cost no pause; with more it doubles from 100 ms to
    /// 10 s. More than twenty in a minute are the last straw; the doubling pauses count against it, so a
    /// role that never comes up is given up once the pauses of a minute have shown that time does not heal it.
    pub(crate) fn died(&mut self, now: Instant) -> Verdict {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|first| now.duration_since(*first) > LONG) {
            self.deaths.pop_front();
        }
        let in_long = self.deaths.len();
        let in_short = self.deaths.iter().filter(|death| now.duration_since(**death) <= SHORT).count();
        match (in_short, in_long) {
            (_, long) if long > ENOUGH => Verdict::Stop,
            (short, _) if short <= QUICK => Verdict::Restart(Duration::ZERO),
            (short, _) => {
                let doublings = (short - QUICK - 1).min(7) as u32;
                Verdict::Restart((Duration::from_millis(100) * 2u32.pow(doublings)).min(CAP))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_death_costs_nothing_and_a_series_slows_down() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let pauses: Vec<u64> = (0..8)
            .map(|i| match backoff.died(start + Duration::from_millis(i)) {
                Verdict::Restart(pause) => pause.as_millis() as u64,
                Verdict::Stop => panic!("too early"),
            })
            .collect();
        assert_eq!(pauses, [0, 0, 0, 0, 0, 100, 200, 400]);
        assert_eq!(backoff.died(start + Duration::from_secs(50)), Verdict::Restart(Duration::ZERO));
    }

    #[test]
    fn a_role_that_never_comes_up_ends_the_run() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let start = now;
        let deaths = (1..100)
            .find(|_| match backoff.died(now) {
                Verdict::Stop => true,
                Verdict::Restart(pause) => {
                    now += pause + Duration::from_millis(20);
                    false
                }
            })
            .unwrap();
        assert_eq!(deaths, ENOUGH + 1);
        assert!(now - start < LONG);
    }

    #[test]
    fn deaths_far_apart_never_end_the_run() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        for i in 0..1_000u32 {
            assert_eq!(
                backoff.died(start + SHORT * i + Duration::from_millis(u64::from(i))),
                Verdict::Restart(Duration::ZERO)
            );
        }
    }
}
