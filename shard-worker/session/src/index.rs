//! A hash index from keys to slot numbers. Private memory, rebuilt from the slots after a restart; the keys themselves
//! stay in the slots, so equality is asked of the caller.
//!
//! Open addressing with linear probing at a load of at most two thirds; removal shifts back, so there are no tombstones
//! and the probe length does not grow with the run: 5 steps on average for a key that is not there and 2 for one that is, in
//! a full table (Knuth, 6.4), eight entries to a cache line. An entry is 8 bytes: 32 bits of the hash (which, scaled to
//! the length, also give its home position) and the slot number. Any capacity takes the same 12 bytes a slot. The hash
//! must be keyed (`flow::hash`): crafted tuples cannot pile up.

use crate::sys::prefetch;

/// Entries that can be indexed are at most half of this crate's largest table.
const MAX_CAPACITY: u32 = 1 << 30;

#[derive(Clone, Copy)]
struct Entry {
    tag: u32,
    slot: u32,
}

const EMPTY: Entry = Entry { tag: 0, slot: u32::MAX };

/// Hash index over slots.
pub struct Index {
    entries: Box<[Entry]>,
    len: u32,
    limit: u32,
}

/// Slots that are to be indexed together: tag and number in one word, which sorts fast.
#[derive(Default)]
pub(crate) struct Batch(Vec<u64>);

impl Batch {
    /// Adds a slot under a hash.
    pub(crate) fn add(&mut self, hash: u64, slot: u32) {
        self.0.push(u64::from(tag(hash)) << 32 | u64::from(slot));
    }
}

impl Index {
    /// For at most `capacity` slots (at most 2^30). Allocates once.
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity.clamp(1, MAX_CAPACITY);
        let entries = capacity as usize + (capacity as usize).div_ceil(2);
        Self { entries: vec![EMPTY; entries].into_boxed_slice(), len: 0, limit: capacity }
    }

    /// How many slots are indexed.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot with this hash of which `is` says yes.
    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        let mut at = self.home(tag);
        loop {
            let entry = self.entries[at];
            if entry.slot == EMPTY.slot {
                return None;
            }
            if entry.tag == tag && is(entry.slot) {
                return Some(entry.slot);
            }
            at = self.after(at);
        }
    }

    /// Asks for the entry where a hash begins.
    pub(crate) fn ask_for(&self, hash: u64) {
        prefetch(&self.entries[self.home(tag(hash))]);
    }

    /// The first slot under this hash or one that is equal in its lower half: nearly always the right one.
    pub(crate) fn guess(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Adds a slot under a hash; false when the index is full. Equal keys may stand more than once.
    pub fn insert(&mut self, hash: u64, slot: u32) -> bool {
        if self.len == self.limit || slot == EMPTY.slot {
            return false;
        }
        let tag = tag(hash);
        let mut at = self.home(tag);
        while self.entries[at].slot != EMPTY.slot {
            at = self.after(at);
        }
        self.entries[at] = Entry { tag, slot };
        self.len += 1;
        true
    }

    /// Adds many, in the order of their homes: memory is walked over instead of jumped about in.
    pub(crate) fn extend(&mut self, Batch(mut entries): Batch) {
        entries.sort_unstable();
        for entry in entries {
            self.insert(entry >> 32, entry as u32);
        }
    }

    /// Removes a slot that was added under this hash; false when it was not there.
    pub fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let tag = tag(hash);
        let mut hole = self.home(tag);
        loop {
            let entry = self.entries[hole];
            if entry.slot == EMPTY.slot {
                return false;
            }
            if entry.slot == slot && entry.tag == tag {
                break;
            }
            hole = self.after(hole);
        }
        self.len -= 1;
        // Shift back every later entry of the run whose home does not lie between the hole and itself.
        let mut at = hole;
        loop {
            at = self.after(at);
            let entry = self.entries[at];
            if entry.slot == EMPTY.slot {
                break;
            }
            if self.distance(self.home(entry.tag), at) >= self.distance(hole, at) {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = EMPTY;
        true
    }

    fn home(&self, tag: u32) -> usize {
        // Multiply-shift: no division, and the length need not be a power of two.
        ((u64::from(tag) * self.entries.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.entries.len() { 0 } else { at + 1 }
    }

    /// Steps from one position forward to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.entries.len() - from }
    }

    /// Memory that it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.entries)
    }
}

/// The half of the hash that the shard choice does not use up first.
fn tag(hash: u64) -> u32 {
    hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_full_index_refuses_and_goes_on_finding() {
        let mut index = Index::new(2);
        assert!(index.insert(7, 1) && index.insert(7, 2));
        assert!(!index.insert(8, 3));
        assert_eq!(index.find(7, |s| s == 2), Some(2));
        assert_eq!(index.find(9, |_| true), None);
    }

    #[test]
    fn many_at_once_are_found_as_if_they_came_one_by_one() {
        let hash = |slot: u32| u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (mut index, mut batch) = (Index::new(1_000), Batch::default());
        (0..1_000).for_each(|slot| batch.add(hash(slot), slot));
        index.extend(batch);
        assert_eq!(index.len(), 1_000);
        assert!((0..1_000).all(|slot| index.find(hash(slot), |found| found == slot) == Some(slot)));
        assert!((0..1_000).all(|slot| index.remove(hash(slot), slot)) && index.is_empty());
    }

    proptest! {
        /// The same operations on a plain set: what was inserted is found, what was removed is not.
        #[test]
        fn agrees_with_a_set(
            ops in prop::collection::vec((any::<bool>(), 0u64..12, 0u32..12), 1..400),
            capacity in 1u32..24,
            // Homes lie all in one place, over the whole length, or at its end so that runs go round.
            (scale, offset) in prop_oneof![Just((1, 0)), Just((0x1555_5555, 0)), Just((1, u64::from(u32::MAX) - 11))],
        ) {
            let ops = ops.into_iter().map(|(add, hash, slot)| (add, hash * scale + offset, slot));
            let mut index = Index::new(capacity);
            let mut oracle = BTreeSet::new();
            for (add, hash, slot) in ops {
                if add {
                    if !oracle.contains(&(hash, slot)) && index.insert(hash, slot) {
                        oracle.insert((hash, slot));
                    }
                } else {
                    prop_assert_eq!(index.remove(hash, slot), oracle.remove(&(hash, slot)));
                }
                prop_assert_eq!(index.len() as usize, oracle.len());
                for h in (0..12).map(|h| h * scale + offset) {
                    for s in 0..12 {
                        let found = index.find(h, |candidate| candidate == s).is_some();
                        prop_assert_eq!(found, oracle.contains(&(h, s)));
                    }
                }
            }
        }
    }
}
