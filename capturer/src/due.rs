//! When a file's packets are due. The pause between two packets is the file's, no longer than the longest that is wanted, and divided
//! by the speed; the sum of them counts from when the replay began. So a packet that was late makes none of its followers late.

use topology::plan::TracePlan;

/// Where a replay stands in time; kept in the journal at the beginning of each loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    speed_milli: Option<u32>,
    max_gap_ns: u64,
    /// Monotonic time of the file's first packet.
    pub(crate) start_ns: u64,
    /// The file's time since then, pauses shortened.
    pub(crate) passed_ns: u64,
    last_ns: Option<u64>,
}

impl Due {
    /// At the beginning.
    pub(crate) fn new(trace: &TracePlan, start_ns: u64, passed_ns: u64) -> Self {
        let max_gap_ns = trace.max_gap_ms.map_or(u64::MAX, |ms| ms.saturating_mul(1_000_000));
        Self { speed_milli: trace.speed_milli, max_gap_ns, start_ns, passed_ns, last_ns: None }
    }

    /// The next packet, captured at `time_ns`: says when it counts as captured, CLOCK_MONOTONIC. As fast as possible the
    /// pauses are the file's own, so that what is measured between packets keeps its meaning.
    pub(crate) fn next(&mut self, time_ns: u64) -> u64 {
        let gap_ns = self.last_ns.map_or(0, |last_ns| time_ns.saturating_sub(last_ns));
        self.last_ns = Some(time_ns);
        self.passed_ns = self.passed_ns.saturating_add(gap_ns.min(self.max_gap_ns));
        let milli = self.speed_milli.unwrap_or(1_000).max(1);
        let scaled_ns = u128::from(self.passed_ns) * 1_000 / u128::from(milli);
        self.start_ns.saturating_add(u64::try_from(scaled_ns).unwrap_or(u64::MAX))
    }

    /// Whether packets wait for their time at all.
    pub(crate) const fn waits(&self) -> bool {
        self.speed_milli.is_some()
    }

    /// The file begins again: no pause lies between its last packet and its first.
    pub(crate) const fn again(&mut self) {
        self.last_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(speed_milli: Option<u32>, max_gap_ms: Option<u64>) -> TracePlan {
        TracePlan {
            files: vec!["-".into()],
            speed_milli,
            max_gap_ms,
            loops: 1,
            from: None,
            until: None,
            limit: None,
            rate: None,
            decap: false,
        }
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn pauses_are_divided_by_the_speed_and_kept_short() {
        let mut due = Due::new(&trace(Some(2_000), Some(1_000)), 100, 0);
        let at = [5 * SECOND, 6 * SECOND, 66 * SECOND, 66 * SECOND].map(|time_ns| due.next(time_ns));
        assert_eq!(at, [100, 100 + SECOND / 2, 100 + SECOND, 100 + SECOND]);
    }

    #[test]
    fn the_next_loop_follows_at_once() {
        let mut due = Due::new(&trace(Some(1_000), None), 0, 0);
        let first = [due.next(SECOND), due.next(3 * SECOND)];
        due.again();
        assert_eq!(
            (first, due.next(SECOND), due.next(2 * SECOND)),
            ([0, 2 * SECOND], 2 * SECOND, 3 * SECOND)
        );
    }
}
