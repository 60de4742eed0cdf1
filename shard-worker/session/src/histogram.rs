//! Log-linear histograms of microseconds: eight buckets to each power of two, so a quantile is off by at most one
//! eighth. Plain counters, so they can be published to shared memory and subtracted from one another.

/// Number of buckets; the last holds everything from 2^31 µs (36 minutes) on.
pub const BUCKETS: usize = 8 + (31 - 3) * 8 + 1;

/// Counts per bucket. Counters only grow.
#[derive(Clone)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], max_us: 0 }
    }
}

impl Histogram {
    /// Adds one sample.
    pub fn record(&mut self, us: u64) {
        self.counts[bucket(us)] += 1;
        self.max_us = self.max_us.max(us);
    }

    /// The counts, by bucket.
    pub fn counts(&self) -> &[u64; BUCKETS] {
        &self.counts
    }

    /// The largest sample so far.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// The upper bound of the bucket in which the `q`-quantile (0 to 1) of these counts lies; 0 when there are none.
    pub fn quantile(counts: &[u64], q: f64) -> u64 {
        // They may come from memory that was damaged.
        let total = counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        let rank = ((total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0_u64;
        for (i, &n) in counts.iter().enumerate() {
            seen = seen.saturating_add(n);
            if seen >= rank {
                return Self::bucket_bounds(i).1;
            }
        }
        0
    }

    /// First and last value (µs) of a bucket.
    pub fn bucket_bounds(i: usize) -> (u64, u64) {
        (lower(i), if i + 1 < BUCKETS { lower(i + 1) - 1 } else { u64::MAX })
    }
}

fn bucket(us: u64) -> usize {
    if us < 8 {
        return us as usize;
    }
    let power = 63 - us.leading_zeros() as usize;
    (8 + (power - 3) * 8 + ((us >> (power - 3)) & 7) as usize).min(BUCKETS - 1)
}

fn lower(i: usize) -> u64 {
    if i < 8 {
        return i as u64;
    }
    let (power, step) = ((i - 8) / 8 + 3, (i - 8) % 8);
    (8 + step as u64) << (power - 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_off_by_an_eighth_at_most() {
        let mut h = Histogram::default();
        (1..=10_000).for_each(|us| h.record(us));
        for (q, exact) in [(0.5, 5_000.0), (0.9, 9_000.0), (0.99, 9_900.0)] {
            let got = Histogram::quantile(h.counts(), q) as f64;
            assert!((got / exact - 1.0).abs() < 0.126, "{q}: {got}");
        }
        assert_eq!(h.max_us(), 10_000);
        assert_eq!(Histogram::quantile(&[0; BUCKETS], 0.5), 0);
        assert_eq!(Histogram::quantile(&[u64::MAX; BUCKETS], 0.5), 0, "all that is certain of nonsense");
    }

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket(us in any::<u64>(), shift in 0u32..64) {
            let us = us >> shift;
            let (low, high) = Histogram::bucket_bounds(bucket(us));
            prop_assert!(low <= us && us <= high, "{us}: {low}..={high}");
        }
    }
}
