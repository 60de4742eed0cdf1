//! How far a replayed file has been read, and when: the clock by which its holes are judged. A file can be read a thousand times
//! faster than it was captured, and stands still while sessions hold as much as they may; so the time of day says nothing of
//! whether the missing bytes may still come.

/// The clock; without a file it judges nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileClock {
    beyond_us: Option<u64>,
    /// Latest capture time read.
    at_us: u64,
    /// When something was last read.
    read_us: u64,
}

/// A file from which nothing was read for so long is at its end, in a pause, or held up by the very sessions that wait.
const STALLED_US: u64 = 1_000_000;

impl FileClock {
    /// Judges holes when the file has gone on so far behind them.
    pub(crate) const fn new(beyond_us: Option<u64>) -> Self {
        Self { beyond_us, at_us: 0, read_us: 0 }
    }

    /// A segment of this capture time was read.
    pub(crate) fn read(&mut self, now_us: u64, time_us: u64) {
        self.at_us = self.at_us.max(time_us);
        self.read_us = now_us;
    }

    /// Whether what is missing in front of a segment captured at `behind_us` may still come; `within_us` where more is known of
    /// it than how far a file usually has to go on.
    pub(crate) fn may_fill(&self, now_us: u64, behind_us: u64, within_us: Option<u64>) -> bool {
        self.beyond_us.is_some_and(|usual_us| {
            let beyond_us = within_us.unwrap_or(usual_us);
            self.at_us < behind_us.saturating_add(beyond_us) && now_us < self.read_us + STALLED_US
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_waits_for_the_file_and_not_for_the_day() {
        let mut clock = FileClock::new(Some(3_000_000));
        clock.read(1_000, 50_000_000);
        assert!(clock.may_fill(500_000, 50_000_000, None), "half a second of the day, nothing of the file");
        clock.read(2_000, 53_000_000);
        assert!(
            !clock.may_fill(2_001, 50_000_000, None),
            "a millisecond of the day, three seconds of the file"
        );
    }

    #[test]
    fn a_file_that_stands_still_holds_nobody_up() {
        let mut clock = FileClock::new(Some(3_000_000));
        clock.read(1_000, 50_000_000);
        assert!(!clock.may_fill(1_001_000, 50_000_000, None));
        assert!(!clock.may_fill(1_001_000, 50_000_000, Some(15_000_000)));
    }

    #[test]
    fn live_capture_is_not_judged() {
        assert!(!FileClock::new(None).may_fill(1, 1, Some(1)));
    }
}
