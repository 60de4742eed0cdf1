//! The kernel's frame times (CLOCK_REALTIME) as CLOCK_MONOTONIC. Pure: the role samples both clocks once a batch.
//!
//! Wall clocks step (NTP, an operator, a resumed machine). A frame's time is therefore held between two monotonic facts: it
//! came after the kernel was last seen empty, and before now. A step can move a time within these bounds and not beyond.

/// Frames are stamped a little before they are visible, on another core perhaps.
const SLACK_NS: u64 = 1_000_000;

/// Turns frame times into monotonic time.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameClock {
    /// Wall clock minus monotonic clock at the last sample, nanoseconds.
    offset_ns: i64,
    now_ns: u64,
    floor_ns: u64,
}

impl FrameClock {
    /// Before a batch: both clocks now.
    pub fn sample(&mut self, monotonic_ns: u64, realtime_ns: u64) {
        self.offset_ns = (realtime_ns as i64).wrapping_sub(monotonic_ns as i64);
        self.now_ns = self.now_ns.max(monotonic_ns);
    }

    /// Since the last sample the kernel was seen empty: later frames came after it.
    pub fn emptied(&mut self) {
        self.floor_ns = self.now_ns.saturating_sub(SLACK_NS);
    }

    /// A frame's time, CLOCK_MONOTONIC nanoseconds.
    pub fn monotonic_ns(&self, frame_realtime_ns: u64) -> u64 {
        let time = (frame_realtime_ns as i64).wrapping_sub(self.offset_ns);
        u64::try_from(time).unwrap_or(0).clamp(self.floor_ns, self.now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;
    const NOW: u64 = 50_000_000_000;
    const WALL: u64 = 1_700_000_000_000_000_000;

    #[test]
    fn steps_of_the_wall_clock_stay_within_a_batch() {
        for (before, after) in [(WALL, WALL + HOUR), (WALL, WALL - HOUR), (WALL, 0)] {
            let mut clock = FrameClock::default();
            clock.sample(NOW, before);
            clock.emptied();
            // A frame 3 ms later, then the step, then we look, 5 ms after the first look.
            clock.sample(NOW + 5_000_000, after + 5_000_000);
            let seen = clock.monotonic_ns(before + 3_000_000);
            assert!((NOW - SLACK_NS..=NOW + 5_000_000).contains(&seen), "{seen}");
            // The next batch is exact again.
            clock.emptied();
            clock.sample(NOW + 9_000_000, after + 9_000_000);
            assert_eq!(clock.monotonic_ns(after + 7_000_000), NOW + 7_000_000);
        }
    }

    #[test]
    fn a_backlog_keeps_its_times() {
        let mut clock = FrameClock::default();
        clock.sample(NOW, WALL);
        // Nothing is known about when the kernel was empty, so two seconds ago is possible.
        assert_eq!(clock.monotonic_ns(WALL - 2_000_000_000), NOW - 2_000_000_000);
        assert_eq!(clock.monotonic_ns(WALL + 1), NOW, "nothing comes from the future");
    }
}
