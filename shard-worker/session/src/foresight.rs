//! Memory that packets will need, asked for before it is their turn. With more sessions than the cache holds, each packet finds its
//! index entry and its slot in memory, one miss after the other; asked for early, the misses of several packets overlap
//! with each other and with the work on those before them.
//!
//! | asked for | when |
//! |---|---|
//! | where a hash begins in its index | for the whole batch, before the first packet |
//! | the slot that probably has it, and what stands elsewhere under its number | [`AHEAD`] packets ahead |
//!
//! Not all slots of a batch at once: a core waits for some sixteen lines at a time, and one that has asked for hundreds does nothing
//! else meanwhile.
//!
//! What was foreseen is never relied on: packets look for their sessions as if nothing had been, and take a hash that was made for
//! it only where it was made of the same ends. Plain loads instead of prefetches made it worse than nothing (the processor
//! cannot retire past them).

use flow::{Captured, Endpoint, Returned};

use crate::sys::prefetch;
use crate::table::Table;

/// With fewer sessions most of their slots are in a core's own cache, and there is little to save (measured: even at 10,000 sessions,
/// 40 % less at 50,000).
const WORTH_IT: u64 = 16_384;
/// Packets of each kind foreseen at once.
pub(crate) const FORESEEN: usize = 64;
/// Packets between the one whose slot is asked for and the one that is worked on: the time of a miss and of what it waits for.
const AHEAD: usize = 6;

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
    /// What the hash is of.
    key: Key,
}

/// Two ends, and the lap of captured packets.
type Key = (Endpoint, Endpoint, u8);

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
            self.foresight.add(hash, (header.client, header.target, 0));
        }
        self.foresight.returned = self.foresight.count;
        for segment in captured.take(FORESEEN) {
            let hash = self.hash_of(&segment);
            self.by_flow.ask_for(hash);
            self.foresight.add(hash, key_of(&segment));
        }
        (0..AHEAD).for_each(|at| self.foresee_packet(at));
    }

    /// The hash of a captured segment, which is worked on now.
    pub(crate) fn hash_of_captured(&mut self, segment: &Captured) -> u64 {
        let foreseen =
            if self.foresight.is_over() { None } else { self.foresee_next(false, &key_of(segment)) };
        foreseen.unwrap_or_else(|| self.hash_of(segment))
    }

    /// The hash of a returned header, which is worked on now.
    pub(crate) fn hash_of_returned(&mut self, header: &Returned) -> u64 {
        let foreseen = match self.foresight.is_over() {
            true => None,
            false => self.foresee_next(true, &(header.client, header.target, 0)),
        };
        foreseen.unwrap_or_else(|| self.replayed_hash(&header.client, &header.target))
    }

    /// Asks for what packets behind this one need; its own hash, if it was foreseen.
    #[inline(never)]
    fn foresee_next(&mut self, is_returned: bool, key: &Key) -> Option<u64> {
        let Foresight { next, count, returned, .. } = self.foresight;
        self.foresight.next = next + 1;
        self.foresee_packet(next + AHEAD);
        let packets = &self.foresight.packets[..count];
        // Each index has hashes of its own.
        let foreseen = (next < returned) == is_returned && packets[next].key == *key;
        foreseen.then_some(packets[next].hash)
    }

    fn foresee_packet(&mut self, at: usize) {
        if at < self.foresight.count {
            let index = if at < self.foresight.returned { &self.by_replayed } else { &self.by_flow };
            let id = index.guess(self.foresight.packets[at].hash).filter(|id| *id < self.slots.len());
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

fn key_of(segment: &Captured) -> Key {
    (segment.client, segment.server, segment.lap)
}

impl Foresight {
    /// Whether all packets were worked on, or none was foreseen.
    fn is_over(&self) -> bool {
        self.next >= self.count
    }

    fn add(&mut self, hash: u64, key: Key) {
        self.packets[self.count] = Packet { hash, key };
        self.count += 1;
    }
}
