//! How many records of a kind wait in a ring, known to whoever writes them without a word from the reader for each.

use super::Producer;

/// A bound on them, kept in two halves: those that were put in last, and those before, which are gone when the reader has come to
/// where they end.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Half of those that may wait.
    half: u32,
    /// Records put in behind `older_end`, before which as many more lie at most.
    newer: u32,
    older_end: u64,
}

impl Waiting {
    /// At most so many.
    pub const fn at_most(records: u32) -> Self {
        Self { half: records.div_ceil(2), newer: 0, older_end: 0 }
    }

    /// Whether one more may wait in this ring.
    pub fn has_room(&mut self, ring: &mut Producer) -> bool {
        if self.newer >= self.half {
            if ring.released() < self.older_end {
                return false;
            }
            (self.older_end, self.newer) = (ring.staged(), 0);
        }
        true
    }

    /// One more waits.
    pub const fn put(&mut self) {
        self.newer += 1;
    }
}
