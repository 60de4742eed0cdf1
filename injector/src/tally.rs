//! Counts of one batch, gathered in private memory and added to the role's block in the region once a batch.

use crate::count::Count;

/// What a batch added to each counter.
#[derive(Clone, Debug)]
pub struct Tally([u64; Count::COUNT]);

impl Default for Tally {
    fn default() -> Self {
        Self([0; Count::COUNT])
    }
}

impl Tally {
    /// Adds `n` to one counter.
    pub fn add(&mut self, count: Count, n: u64) {
        self.0[count.index()] += n;
    }

    /// What one counter holds.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count.index()]
    }

    /// Gives every non-zero counter with its index to `publish`, and starts over.
    pub fn drain(&mut self, mut publish: impl FnMut(usize, u64)) {
        for (index, n) in self.0.iter_mut().enumerate().filter(|(_, n)| **n != 0) {
            publish(index, std::mem::take(n));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_tally_starts_over() {
        let mut tally = Tally::default();
        tally.add(Count::Syn, 2);
        let mut seen = Vec::new();
        tally.drain(|index, n| seen.push((index, n)));
        tally.drain(|index, n| seen.push((index, n)));
        assert_eq!(seen, [(Count::Syn.index(), 2)]);
    }
}
