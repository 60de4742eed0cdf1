//! Latencies in microseconds, in log-linear buckets: 32 to an octave, so a percentile is at most 3.2 % too high.

/// Counts of values; fixed size, whatever the number of values.
#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Up to 2^40 µs, twelve days.
const BUCKETS: usize = (STEPS as usize) * 37;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, us: u64) {
        self.buckets[bucket(us)] += 1;
        self.count += 1;
        self.max = self.max.max(us);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest value, exact; 0 without values.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `percent` of the values do not exceed (upper edge of its bucket); 0 without values.
    pub fn percentile(&self, percent: f64) -> u64 {
        let wanted = ((self.count as f64) * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_edge(index).min(self.max);
            }
        }
        self.max
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }
}

fn bucket(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let octave = us.ilog2() - STEP_BITS;
    let index = u64::from(octave) * STEPS + (us >> octave);
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

fn upper_edge(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index;
    }
    let octave = index / STEPS - 1;
    let step = index % STEPS + STEPS;
    ((step + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_whose_edge_is_close() {
        for us in (0..2_000).chain([65_535, 65_536, 1_000_003, 987_654_321]) {
            let edge = upper_edge(bucket(us));
            assert!(edge >= us, "{us} above its edge {edge}");
            assert!(edge - us <= us / STEPS, "{us} too far below its edge {edge}");
        }
    }

    #[test]
    fn percentiles_of_a_uniform_series() {
        let mut h = Histogram::default();
        (1..=1_000).for_each(|us| h.record(us));
        assert!((500..=516).contains(&h.percentile(50.0)), "{}", h.percentile(50.0));
        assert!((990..=1_000).contains(&h.percentile(99.0)));
        assert_eq!(h.percentile(100.0), 1_000);
        assert_eq!(Histogram::default().percentile(50.0), 0);
    }
}
