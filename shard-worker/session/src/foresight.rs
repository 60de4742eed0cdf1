//! Memory that a batch will need, asked for before the first of its packets is worked on. With more sessions than the cache
//! holds, each packet finds its index entry and its slot in memory, one miss after the other; asked for together, the
//! misses of a batch overlap.
//!
//! What was foreseen is never relied on: packets look for their sessions as if nothing had been. Plain loads instead of
//! prefetches made it worse than nothing (the processor cannot retire past them).

use flow::{Captured, Returned};

use crate::index::Index;
use crate::sys::prefetch;
use crate::table::Table;

/// With fewer sessions their slots are in a common last-level cache, and looking ahead costs as much as it saves (measured: even
/// at 50,000 sessions, 40 % less at a million).
const WORTH_IT: u64 = 65_536;
/// Packets of each kind foreseen at once.
pub(crate) const FORESEEN: usize = 64;

/// The hashes of a batch, kept because they are made in one pass and used in the next.
pub(crate) struct Foresight {
    captured: [u64; FORESEEN],
    returned: [u64; FORESEEN],
}

impl Default for Foresight {
    fn default() -> Self {
        Self { captured: [0; FORESEEN], returned: [0; FORESEEN] }
    }
}

impl Table {
    /// Asks for the memory that these packets will need. Changes nothing.
    pub fn foresee(
        &mut self,
        captured: impl Iterator<Item = Captured>,
        returned: impl Iterator<Item = Returned>,
    ) {
        if self.tally.open < WORTH_IT {
            return;
        }
        let mut foresight = std::mem::take(&mut self.foresight);
        let captured = note(&mut foresight.captured, &self.by_flow, captured, |segment| {
            self.flow_hash(&segment.client, &segment.server, segment.lap)
        });
        let returned = note(&mut foresight.returned, &self.by_replayed, returned, |header| {
            self.replayed_hash(&header.client, &header.target)
        });
        captured.iter().for_each(|&hash| self.ask_for(&self.by_flow, hash));
        returned.iter().for_each(|&hash| self.ask_for(&self.by_replayed, hash));
        self.foresight = foresight;
    }

    /// Asks for the slot of a session whose turn comes soon.
    pub(crate) fn foresee_slot(&self, id: u32) {
        if self.tally.open >= WORTH_IT {
            prefetch(self.slots.get(id));
        }
    }

    /// The slot that probably has this hash, and what stands elsewhere under its number.
    fn ask_for(&self, index: &Index, hash: u64) {
        if let Some(id) = index.guess(hash).filter(|id| *id < self.slots.len()) {
            prefetch(self.slots.get(id));
            self.wheel.ask_for(id);
            self.ready.ask_for(id);
        }
    }
}

/// Hashes the packets and asks for their index entries.
fn note<'h, P>(
    hashes: &'h mut [u64; FORESEEN],
    index: &Index,
    packets: impl Iterator<Item = P>,
    hash_of: impl Fn(P) -> u64,
) -> &'h [u64] {
    let mut count = 0;
    for (place, packet) in hashes.iter_mut().zip(packets) {
        *place = hash_of(packet);
        index.ask_for(*place);
        count += 1;
    }
    &hashes[..count]
}
