//! Memory that packets will need, asked for before it is their turn. With more sessions than the cache holds, each packet finds its
//! index entry and its slot in memory, one miss after the other; asked for early, the misses of several packets overlap
//! with each other and with the work on those before them.
//!
//! | asked for | when |
//! |---|---|
//! | where a hash begins in its index | for the whole batch, before the first packet |
//! | the slot that probably has it, and what stands elsewhere under its number | [`AHEAD`] packets ahead |
//! | where the wheel has it | [`AHEAD_OF_PLACE`] packets ahead |
//!
//! Not all slots of a batch at once: a core waits for some sixteen lines at a time, and one that has asked for hundreds does nothing
//! else meanwhile.
//!
//! What was foreseen is never relied on: packets look for their sessions as if nothing had been. Plain loads instead of
//! prefetches made it worse than nothing (the processor cannot retire past them).

use flow::{Captured, Returned};

use crate::sys::prefetch;
use crate::table::Table;

/// With fewer sessions their slots are in a common last-level cache, and looking ahead costs as much as it saves (measured: even
/// at 50,000 sessions, 40 % less at a million).
const WORTH_IT: u64 = 65_536;
/// Packets of each kind foreseen at once.
pub(crate) const FORESEEN: usize = 64;
/// Packets between the one whose slot is asked for and the one that is worked on: the time of a miss and of what it waits for.
const AHEAD: usize = 6;
/// The same of the place in the wheel.
const AHEAD_OF_PLACE: usize = 3;

/// A batch, returned headers first, as it is worked on.
pub(crate) struct Foresight {
    packets: [Packet; 2 * FORESEEN],
    /// Of these, returned headers.
    returned: usize,
    count: usize,
    /// The next packet to be worked on.
    next: usize,
}

#[derive(Clone, Copy, Default)]
struct Packet {
    hash: u64,
    /// Its session, probably.
    id: Option<u32>,
}

impl Default for Foresight {
    fn default() -> Self {
        Self { packets: [Packet::default(); 2 * FORESEEN], returned: 0, count: 0, next: 0 }
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
            let hash = self.replayed_hash(&header.client, &header.target);
            self.by_replayed.ask_for(hash);
            self.foresight.add(hash);
        }
        self.foresight.returned = self.foresight.count;
        for segment in captured.take(FORESEEN) {
            let hash = self.hash_of(&segment);
            self.by_flow.ask_for(hash);
            self.foresight.add(hash);
        }
        (0..AHEAD).for_each(|at| self.foresee_packet(at));
    }

    /// Before each packet.
    pub(crate) fn foresee_next(&mut self) {
        let next = self.foresight.next;
        if next < self.foresight.count {
            self.foresight.next = next + 1;
            self.foresee_packet(next + AHEAD);
            let packets = &self.foresight.packets[..self.foresight.count];
            if let Some(Packet { id: Some(id), .. }) = packets.get(next + AHEAD_OF_PLACE) {
                self.wheel.ask_for_place(*id);
            }
        }
    }

    fn foresee_packet(&mut self, at: usize) {
        if at < self.foresight.count {
            let index = if at < self.foresight.returned { &self.by_replayed } else { &self.by_flow };
            let id = index.guess(self.foresight.packets[at].hash).filter(|id| *id < self.slots.len());
            self.foresight.packets[at].id = id;
            id.inspect(|id| self.ask_for(*id));
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
        prefetch(self.slots.get(id));
        self.wheel.ask_for(id);
        self.diary.ask_for(id);
    }
}

impl Foresight {
    fn add(&mut self, hash: u64) {
        self.packets[self.count] = Packet { hash, id: None };
        self.count += 1;
    }
}
