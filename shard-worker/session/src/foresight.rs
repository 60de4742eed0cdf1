//! Memory that packets will need, asked for before it is their turn. With more sessions than the cache holds, each packet finds its
//! index entry and its slot in memory, one miss after the other; asked for early, the misses of several packets overlap
//! with each other and with the work on those before them.
//!
//! | asked for | when |
//! |---|---|
//! | where a hash begins in its index | [`ENTRY_AHEAD`] packets ahead |
//! | the slot that probably has it, and what stands elsewhere under its number | [`AHEAD`] packets ahead |
//!
//! Not all of a batch at once: a core waits for some sixteen lines at a time, and one that has asked for hundreds does nothing
//! else meanwhile.
//!
//! What was foreseen is never relied on: a slot that was asked for is taken only where it says itself that it is the packet's, else
//! the packet looks for its session as if nothing had been. Plain loads instead of prefetches made it worse than nothing
//! (the processor cannot retire past them), and so did asking for four or eight slots together.

use flow::{Captured, Returned};

use crate::index::Index;
use crate::slot::{NONE, Phase};
use crate::sys::prefetch;
use crate::table::Table;

/// With fewer sessions most of their slots are in a core's own cache, and there is nothing to save (measured: even at 2,000 sessions,
/// a tenth less at 10,000, two fifths at 50,000).
const WORTH_IT: u64 = 1_024;
/// Packets of each kind foreseen at once.
pub(crate) const FORESEEN: usize = 64;
/// Packets between the one whose slot is asked for and the one that is worked on: the time of a miss and of what it waits for.
const AHEAD: usize = 3;
/// The same for entries of indices: those are to have come when the slot is asked for.
const ENTRY_AHEAD: usize = 8;

/// The hashes of a batch's packets, returned headers first, as it is worked on.
pub(crate) struct Foresight {
    hashes: [u64; 2 * FORESEEN],
    /// The slots that were asked for, [`NONE`] where none was found.
    guesses: [u32; 2 * FORESEEN],
    /// Of these, returned headers.
    returned: usize,
    count: usize,
    /// The next packet to be worked on.
    next: usize,
}

impl Default for Foresight {
    fn default() -> Self {
        Self { hashes: [0; 2 * FORESEEN], guesses: [NONE; 2 * FORESEEN], returned: 0, count: 0, next: 0 }
    }
}

impl Table {
    /// Asks for the memory that these packets will need, which are worked on in this order: returned ones first. Changes nothing.
    pub fn foresee(
        &mut self,
        captured: impl Iterator<Item = Captured>,
        returned: impl Iterator<Item = Returned>,
    ) {
        (self.foresight.count, self.foresight.next) = (0, 0);
        if self.tally.open < WORTH_IT {
            return;
        }
        for header in returned.take(FORESEEN) {
            self.foresight.add(self.replayed_hash(&header.client, &header.target));
        }
        self.foresight.returned = self.foresight.count;
        for segment in captured.take(FORESEEN) {
            self.foresight.add(self.hash_of(&segment));
        }
        (0..ENTRY_AHEAD).for_each(|at| self.foresee_entry(at));
        (0..AHEAD).for_each(|at| self.foresee_packet(at));
    }

    /// The flow of a captured segment, which is worked on now, and its hash.
    pub(crate) fn flow_of(&mut self, segment: &Captured) -> (u64, Option<u32>) {
        if let Some((hash, guess)) = self.foreseen(false)
            && self.is_first_of(guess, segment)
            && self.is_known(guess)
        {
            return (hash, Some(guess));
        }
        let hash = self.hash_of(segment);
        (hash, self.find_flow(hash, segment))
    }

    /// The session of a returned header, which is worked on now.
    pub(crate) fn session_of(&mut self, header: &Returned) -> Option<u32> {
        if let Some((_, guess)) = self.foreseen(true)
            && self.has_endpoint(guess, &header.client, &header.target)
            // One that waits for its endpoint is not who is meant.
            && self.slots.get(guess).phase() != Phase::Queued
            && self.is_known(guess)
        {
            return Some(guess);
        }
        self.find_replayed(&header.client, &header.target)
    }

    /// Asks for what packets behind the one that is worked on now need; its own hash and slot, if the order is what was foreseen.
    #[inline]
    fn foreseen(&mut self, is_returned: bool) -> Option<(u64, u32)> {
        let Foresight { next, count, returned, .. } = self.foresight;
        if next >= count {
            return None;
        }
        self.foresight.next = next + 1;
        self.foresee_entry(next + ENTRY_AHEAD);
        self.foresee_packet(next + AHEAD);
        // Each index has hashes of its own.
        ((next < returned) == is_returned)
            .then(|| (self.foresight.hashes[next], self.foresight.guesses[next]))
    }

    /// Asks for where its hash begins in its index.
    fn foresee_entry(&self, at: usize) {
        if at < self.foresight.count {
            self.index_of(at).ask_for(self.foresight.hashes[at]);
        }
    }

    fn index_of(&self, at: usize) -> &Index {
        if at < self.foresight.returned { &self.by_replayed } else { &self.by_flow }
    }

    /// Asks for the slot that it probably has.
    fn foresee_packet(&mut self, at: usize) {
        if at < self.foresight.count {
            let guess = self.index_of(at).guess(self.foresight.hashes[at]);
            let id = guess.filter(|id| *id < self.slots.len()).unwrap_or(NONE);
            self.foresight.guesses[at] = id;
            if id != NONE {
                self.ask_for(id);
            }
        }
    }

    /// Asks for the slot of a session whose turn comes soon.
    pub(crate) fn foresee_slot(&self, id: u32) {
        if self.tally.open >= WORTH_IT {
            self.ask_for(id);
        }
    }

    /// A slot, and what stands elsewhere under its number.
    fn ask_for(&self, id: u32) {
        prefetch(self.slots.get(id).usual());
        self.wheel.ask_for(id);
        self.diary.ask_for(id);
    }
}

impl Foresight {
    fn add(&mut self, hash: u64) {
        self.hashes[self.count] = hash;
        self.count += 1;
    }
}
