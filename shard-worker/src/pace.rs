//! Whether this shard's sessions are behind for want of answers alone: they hold what was captured a while ago, and each turn is
//! answered soon after it left. Then how long an answer takes to come back here decides how far they fall behind, and the return
//! path had better not rest between answers (`shm::moderate`); at any other time its rests are what makes it cheap.
//!
//! Judged over [`WINDOW_US`]: a single session that is late says nothing, and neither do sessions whose target is slow.

/// Turns are counted for so long, µs.
const WINDOW_US: u64 = 10_000;
/// Fewer awaited turns in a window come too far apart for anybody to rest between them: one session makes more when it waits for
/// the longest rest each time.
const LEAST: u64 = 5;

/// What was counted when the present window began.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    since_us: u64,
    answered: u64,
    awaited: u64,
}

impl Pace {
    /// Told, once a step, of all turns that were ever `answered`, and of those that were `awaited`: true at the end of a window in
    /// which half of the turns were.
    pub(crate) fn is_behind(&mut self, now_us: u64, answered: u64, awaited: u64) -> bool {
        if now_us < self.since_us + WINDOW_US {
            return false;
        }
        let turns = answered - self.answered;
        let late = awaited - self.awaited;
        *self = Self { since_us: now_us, answered, awaited };
        late >= LEAST && 2 * late >= turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_behind_while_half_of_its_turns_are_late() {
        let mut pace = Pace::default();
        assert!(!pace.is_behind(10_000, 1_000, 499), "nearly");
        assert!(!pace.is_behind(19_999, 1_100, 599), "the window is not over");
        assert!(pace.is_behind(20_000, 1_200, 699), "all of 200");
        assert!(pace.is_behind(30_000, 1_400, 799), "half of them");
        assert!(!pace.is_behind(40_000, 1_401, 799), "as soon as they are not");
    }

    #[test]
    fn a_few_late_turns_are_no_reason_to_hurry() {
        let mut pace = Pace::default();
        assert!(!pace.is_behind(10_000, 4, 4));
        assert!(pace.is_behind(20_000, 9, 9));
    }
}
