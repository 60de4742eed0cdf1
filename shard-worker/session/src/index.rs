//! A hash index from keys to slot numbers. The keys themselves stay in the slots, so equality is asked of the caller. The table's
//! two stand in the arena and survive their writer, as a hint: what they say is believed of a slot that agrees.
//!
//! Open addressing with linear probing at a load of at most two thirds; removal shifts back, so there are no tombstones
//! and the probe length does not grow with the run: 5 steps on average for a key that is not there and 2 for one that is, in
//! a full table (Knuth, 6.4), eight entries to a cache line. An entry is 8 bytes: 32 bits of the hash (which, scaled to
//! the length, also give its home position) and the slot number. Any capacity takes the same 12 bytes a slot. The hash
//! must be keyed (`flow::hash`): crafted tuples cannot pile up.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use zerocopy::FromZeros as _;

use crate::sys::prefetch;

/// Entries that can be indexed are at most half of this crate's largest table.
const MAX_CAPACITY: u32 = 1 << 30;
/// A place without an entry.
const EMPTY: u64 = 0;

/// Hash index over slots.
pub struct Index {
    /// The hash's half above, one more than the slot below.
    entries: &'static [AtomicU64],
    /// One more than the place that a removal is closing; 0 while none is.
    hole: &'static AtomicU64,
}

/// Words that an index for so many slots has, after the one for its hole.
pub(crate) const fn words(capacity: u32) -> usize {
    let capacity = if capacity < MAX_CAPACITY { capacity } else { MAX_CAPACITY } as usize;
    capacity + capacity.div_ceil(2)
}

impl Index {
    /// For at most `capacity` slots (at most 2^30), in memory of its own that is never given back: for what lives as long as its
    /// process does.
    pub fn new(capacity: u32) -> Self {
        let memory = AtomicU64::new_vec_zeroed(1 + words(capacity.max(1))).expect("memory for an index");
        let (hole, entries) = Vec::leak(memory).split_first().expect("one for the hole");
        Self { entries, hole }
    }

    /// Over words that a predecessor may have left, in whatever state; zeros are an empty one. A removal that it was killed in
    /// is done to its end.
    pub(crate) fn over(hole: &'static AtomicU64, entries: &'static [AtomicU64]) -> Self {
        let index = Self { entries, hole };
        let closing = hole.load(Acquire) as usize;
        if (1..=entries.len()).contains(&closing) {
            index.close(closing - 1);
        }
        hole.store(0, Release);
        index
    }

    /// How many entries there are: counted, which takes a while.
    pub fn count(&self) -> usize {
        self.entries.iter().filter(|entry| entry.load(Relaxed) != EMPTY).count()
    }

    /// Its hole and its entries as they stand in memory.
    pub(crate) fn image(&self) -> (u64, Vec<u64>) {
        let entries = self.entries.iter().map(|entry| entry.load(Relaxed)).collect();
        (self.hole.load(Relaxed), entries)
    }

    /// Places for entries.
    pub(crate) fn places(&self) -> usize {
        self.entries.len()
    }

    /// The slot whose entry is at a place.
    pub(crate) fn at(&self, place: usize) -> Option<u32> {
        let entry = self.entries[place].load(Relaxed);
        (entry != EMPTY).then(|| slot_of(entry))
    }

    /// The slot with this hash of which `is` says yes. It is asked about slots that may be none: entries can be damaged.
    pub fn find(&self, hash: u64, is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.look_up(hash, is).map(|(_, slot)| slot)
    }

    /// Where the entry is under which a slot is found, if any.
    pub(crate) fn place_of(&self, hash: u64, slot: u32) -> Option<usize> {
        self.look_up(hash, |found| found == slot).map(|(place, _)| place)
    }

    #[inline]
    fn look_up(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
        let tag = tag(hash);
        let mut at = self.home(tag);
        // Damage may have filled every place.
        for _ in 0..self.entries.len() {
            let entry = self.entries[at].load(Relaxed);
            if entry == EMPTY {
                return None;
            }
            if tag_of(entry) == tag && is(slot_of(entry)) {
                return Some((at, slot_of(entry)));
            }
            at = self.after(at);
        }
        None
    }

    /// Asks for the entry where a hash begins.
    pub(crate) fn ask_for(&self, hash: u64) {
        prefetch(&self.entries[self.home(tag(hash))]);
    }

    /// The first slot under this hash or one that is equal in its lower half: nearly always the right one.
    pub(crate) fn guess(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Adds a slot under a hash; false when no place is left. Equal keys may stand more than once. One store, after all those
    /// before it.
    pub fn insert(&self, hash: u64, slot: u32) -> bool {
        let tag = tag(hash);
        let mut at = self.home(tag);
        for _ in 0..self.entries.len() {
            if self.entries[at].load(Relaxed) == EMPTY {
                self.put(at, u64::from(tag) << 32 | (u64::from(slot) + 1));
                return true;
            }
            at = self.after(at);
        }
        false
    }

    /// Removes a slot that was added under this hash; false when it was not there.
    pub fn remove(&self, hash: u64, slot: u32) -> bool {
        let place = self.place_of(hash, slot);
        if let Some(place) = place {
            self.close(place);
        }
        place.is_some()
    }

    /// Takes out the entry at a place: every later entry of the run whose home does not lie between the hole and itself
    /// shifts back. Whoever dies in it has left the hole's place, from where on this can be done again: what has been
    /// shifted stands where it did as well.
    pub(crate) fn close(&self, place: usize) {
        let mut hole = place;
        self.note_hole(hole + 1);
        let mut at = hole;
        for _ in 1..self.entries.len() {
            at = self.after(at);
            let entry = self.entries[at].load(Relaxed);
            if entry == EMPTY {
                break;
            }
            if self.distance(self.home(tag_of(entry)), at) >= self.distance(hole, at) {
                self.put(hole, entry);
                hole = at;
                self.note_hole(hole + 1);
            }
        }
        self.put(hole, EMPTY);
        self.note_hole(0);
    }

    /// Whatever was stored before stands in memory before this, as far as a successor in another process can tell: it begins
    /// after the death of this one, so only the compiler must keep the order.
    fn put(&self, place: usize, entry: u64) {
        compiler_fence(SeqCst);
        self.entries[place].store(entry, Release);
        compiler_fence(SeqCst);
    }

    fn note_hole(&self, word: usize) {
        self.hole.store(word as u64, Release);
        compiler_fence(SeqCst);
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
        size_of_val(self.entries)
    }
}

/// The half of the hash that the shard choice does not use up first.
fn tag(hash: u64) -> u32 {
    hash as u32
}

fn tag_of(entry: u64) -> u32 {
    (entry >> 32) as u32
}

fn slot_of(entry: u64) -> u32 {
    (entry as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_full_index_refuses_and_goes_on_finding() {
        let index = Index::new(2);
        assert!((1..=3).all(|slot| index.insert(7, slot)));
        assert!(!index.insert(8, 4));
        assert_eq!(index.find(7, |s| s == 2), Some(2));
        assert_eq!(index.find(9, |_| true), None);
        assert!(!index.remove(9, 1) && index.remove(7, 1));
        assert_eq!((index.find(7, |s| s == 3), index.count()), (Some(3), 2));
    }

    /// Every prefix of a removal's stores, for every entry of a crowded index.
    #[test]
    fn a_removal_that_was_killed_is_done_to_its_end() {
        let homes = |slot: u32| u64::from(slot / 3 % 9) * 0x1555_5555;
        let filled = || {
            let index = Index::new(24);
            assert!((0..24).all(|slot| index.insert(homes(slot), slot)));
            index
        };
        for gone in 0..24 {
            for stores in 0.. {
                let index = filled();
                let words = || index.entries.iter().chain([index.hole]);
                // What each store leaves: one word differs from the state before.
                let place = index.place_of(homes(gone), gone).unwrap();
                let Some(states) = prefix_of_close(&index, place, stores) else { break };
                words().zip(states).for_each(|(word, value)| word.store(value, Relaxed));
                let after = Index::over(index.hole, index.entries);
                let begun = stores > 0;
                assert_eq!(after.place_of(homes(gone), gone).is_none(), begun, "{gone} after {stores}");
                assert_eq!(after.count(), 24 - usize::from(begun), "{gone} after {stores}");
                let found = (0..24).filter(|slot| after.place_of(homes(*slot), *slot).is_some()).count();
                assert_eq!(found, 24 - usize::from(begun), "{gone} after {stores}");
            }
        }
    }

    /// The words after the first `stores` stores of [`Index::close`], made by another hand; none when it has fewer.
    fn prefix_of_close(index: &Index, place: usize, stores: usize) -> Option<Vec<u64>> {
        let mut words: Vec<u64> = index.entries.iter().map(|word| word.load(Relaxed)).collect();
        let len = words.len();
        words.push(0);
        let (mut hole, mut at, mut done) = (place, place, 0);
        let mut store = |words: &mut Vec<u64>, at: usize, value: u64| {
            let goes = done < stores;
            if goes {
                words[at] = value;
            }
            done += 1;
            goes
        };
        let mut goes = store(&mut words, len, place as u64 + 1);
        loop {
            at = (at + 1) % len;
            let entry = index.entries[at].load(Relaxed);
            if entry == EMPTY {
                break;
            }
            let home = ((u64::from(tag_of(entry)) * len as u64) >> 32) as usize;
            if (at + len - home) % len >= (at + len - hole) % len {
                goes = goes && store(&mut words, hole, entry) && store(&mut words, len, at as u64 + 1);
                hole = at;
            }
        }
        goes = goes && store(&mut words, hole, EMPTY) && store(&mut words, len, 0);
        (!goes || done == stores).then_some(words)
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
            let index = Index::new(capacity);
            let mut oracle = BTreeSet::new();
            for (add, hash, slot) in ops {
                if add {
                    if oracle.len() < capacity as usize && !oracle.contains(&(hash, slot)) {
                        prop_assert!(index.insert(hash, slot));
                        oracle.insert((hash, slot));
                    }
                } else {
                    prop_assert_eq!(index.remove(hash, slot), oracle.remove(&(hash, slot)));
                }
                prop_assert_eq!(index.count(), oracle.len());
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
