//! How a table learns what a predecessor's slots hold, while it goes on already.
//!
//! Slots are the truth. A successor serves at once, because the two indices stand in the arena as a hint: a flow or an endpoint
//! is found there, and before the slot is believed it is *looked at* (checksum, sense, links, chunks), once. The walk looks at
//! all the others, some in each turn of the worker's loop.
//!
//! | stage | looks at | after it |
//! |---|---|---|
//! | `Slots` | slots, from the last used one down | all sessions have timers and may emit; free slots are known |
//! | `Chunks` | which chunks no list has | they are free |
//! | `Over` | | nothing here costs anything any more |
//!
//! Until then free slots and chunks are those that were never used, and what sessions that were looked at give back; who finds
//! none lets the walk go on at once. Timers of a session that was not looked at fire late, by what the walk takes at most.
//!
//! **What indices say after a death.** Nothing changes in them but for slots whose images are in the log (`Table::index_flow`),
//! and each change can be done again from where it was (`index`). So only the entries of these slots can be wrong, and
//! [`Table::take_over`] puts them right. Damage can make more of them wrong: the walk adds what is missing, and of two slots
//! that stand for one flow or endpoint the one that was looked at first stays. An entry that leads nowhere costs nothing but its
//! place, until an index has no other left and is looked through ([`Table::put_flow`]).
//!
//! **What is lost** is emptied in the open transaction like any session that ends, and counted in it. Others may still point
//! to its slot: a link is believed only if what it leads to agrees. The ledger knows from the log's sums what all slots held
//! together; what the walk does not find of it went with those that are lost.

use flow::Endpoint;

use crate::index::Index;
use crate::slot::{NONE, Phase, Slot, is};
use crate::sys::prefetch;
use crate::table::{Held, Table};
use crate::tally::Count;
use crate::undo::{ITEM_IMAGES, Sums};

/// Steps of one turn of a worker's loop: a tenth of a millisecond with a million sessions, for which a packet may wait.
pub const SLICE: u32 = 128;
/// Slots whose memory is asked for ahead.
const AHEAD: u32 = 8;

/// Where the walk is.
pub(crate) struct Walk {
    stage: Stage,
    /// Slots from here on were looked at, or never used.
    left: u32,
    /// Those before it that were needed earlier, a bit each.
    early: Vec<u64>,
    /// Slots that a link leads to, still to be looked at, behind the one that has the link.
    linked: Vec<(u32, u32)>,
    condemned: Box<dyn Fn(&Held<'_>) -> bool>,
    /// What all slots held together, less what was found.
    missing: Sums,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Slots,
    Chunks,
    Over,
}

impl Walk {
    pub(crate) fn new(used: u32, sums: Sums, condemned: impl Fn(&Held<'_>) -> bool + 'static) -> Self {
        Self {
            stage: if used == 0 { Stage::Over } else { Stage::Slots },
            left: used,
            early: vec![0; (used as usize).div_ceil(64)],
            linked: Vec::with_capacity(LINKED),
            condemned: Box::new(condemned),
            missing: sums,
        }
    }

    fn was_looked_at(&self, id: u32) -> bool {
        id >= self.left || self.early[id as usize / 64] >> (id % 64) & 1 != 0
    }
}

/// Links that are still to be followed: two for each copy of a flow at the very most, and in truth one or two.
const LINKED: usize = 64;

impl Table {
    /// Looks at some more of what a predecessor left, in the open transaction: so many slots, or words of 64 chunks; true while there
    /// is more. To be called in each turn, and all the time when there is nothing else to do.
    pub fn walk(&mut self, steps: u32) -> bool {
        match self.walk.stage {
            Stage::Slots => self.walk_slots(steps),
            Stage::Chunks => {
                if self.chunks.sweep(steps as usize) {
                    self.walk.stage = Stage::Over;
                }
            }
            Stage::Over => {}
        }
        self.is_walking()
    }

    /// Whether [`Table::walk`] has anything to do: there are slots that nobody has looked at, or chunks that nobody knows to be
    /// free.
    pub fn is_walking(&self) -> bool {
        self.walk.stage != Stage::Over
    }

    /// What makes the table from the memory that a predecessor left, before anything else: its open transaction undone.
    pub(crate) fn take_over(&mut self, sums: Sums, committed: bool) {
        (self.tally.open, self.tally.in_flight, self.tally.inherited) =
            (sums.open, sums.in_flight, sums.in_flight);
        let images = if committed { 0 } else { self.slots.left_open() };
        for image in 0..images {
            let Some(id) = self.slots.left_open_slot(image) else { continue };
            // Whatever of its keys was indexed in between: an entry is made after the key is in the slot, and goes before it.
            let slot = self.slots.get(id);
            let endpoint = self.target_of(slot).map(|target| self.replayed_hash(&slot.replayed, &target));
            self.by_flow.remove(self.flow_hash(&slot.client, &slot.server, slot.lap), id);
            endpoint.inspect(|hash| _ = self.by_replayed.remove(*hash, id));
            self.slots.put_back(image);
            self.index(id, self.keys(self.slots.get(id)));
        }
        self.slots.forget(sums);
        if self.walk.stage == Stage::Over {
            self.forget_missing();
        }
    }

    /// The walk over slots goes on until it is through, or the condition holds; for who needs at once what it may find.
    pub(crate) fn walk_until(&mut self, enough: impl Fn(&Self) -> bool) {
        while self.is_walking() && !enough(self) && self.slots.has_room(ITEM_IMAGES) {
            self.walk(SLICE);
        }
    }

    /// Whether the session in a slot that an index led to may be believed, which it is asked only once: false when it is lost
    /// and its slot empty.
    pub(crate) fn is_known(&mut self, id: u32) -> bool {
        if self.walk.was_looked_at(id) {
            return true;
        }
        self.look_at(id);
        self.slots.get(id).phase() != Phase::Free
    }

    fn walk_slots(&mut self, steps: u32) {
        let end = self.walk.left.saturating_sub(steps);
        while self.walk.left > end && self.slots.has_room(ITEM_IMAGES) {
            let id = self.walk.left - 1;
            self.ask_ahead(id);
            if !self.walk.was_looked_at(id) {
                self.at(id);
                self.look_at(id);
            }
            self.walk.left = id;
        }
        if self.walk.left == 0 {
            self.lingering.join();
            self.forget_missing();
            self.walk.stage = Stage::Chunks;
        }
    }

    /// Asks for a slot that the walk comes to, and for where another one that is here by now stands in the indices.
    fn ask_ahead(&self, id: u32) {
        if let Some(slot) = id.checked_sub(2 * AHEAD) {
            prefetch(self.slots.get(slot).usual());
        }
        if let Some(slot) = id.checked_sub(AHEAD) {
            let [flow, endpoint] = self.keys(self.slots.get(slot));
            flow.inspect(|hash| self.by_flow.ask_for(*hash));
            endpoint.inspect(|hash| self.by_replayed.ask_for(*hash));
        }
    }

    /// Looks at a session, and at all that links lead to from it: none of them leads to one that is lost.
    fn look_at(&mut self, id: u32) {
        self.look_at_one(id);
        while let Some((from, to)) = self.walk.linked.pop() {
            if !self.walk.was_looked_at(to) {
                self.look_at_one(to);
            }
            if self.slots.get(to).phase() == Phase::Free {
                let slot = self.slots.get_mut(from);
                if let Some(rare) = slot.had_rare() {
                    rare.next_copy = if rare.next_copy == to { NONE } else { rare.next_copy };
                    rare.waiter = if rare.waiter == to { NONE } else { rare.waiter };
                }
            }
        }
    }

    /// Looks at one slot. What its links lead to is asked of what stands there now, whoever put it there.
    fn look_at_one(&mut self, id: u32) {
        self.walk.early[id as usize / 64] |= 1 << (id % 64);
        let slot = self.slots.get(id);
        if slot.phase() == Phase::Free {
            if !slot.is_intact() {
                self.slots.lose(id);
            }
            self.free.push(id);
            return;
        }
        let keys = self.keys(slot);
        let missing = &mut self.walk.missing;
        missing.open = missing.open.wrapping_sub(1);
        if !self.is_sound(id, keys) {
            self.tally.one(Count::SlotsUnusable);
            self.tally.one(Count::FailedWorkerLost);
            self.tally.open = self.tally.open.wrapping_sub(1);
            self.slots.lose(id);
            self.free.push(id);
            return;
        }
        let slot = self.slots.get(id);
        let missing = &mut self.walk.missing;
        missing.in_flight = missing.in_flight.wrapping_sub(slot.in_flight().into());
        if slot.phase() == Phase::Lingering {
            self.lingering.find(&self.slots, id);
        }
        if slot.rare().next_copy != NONE || slot.rare().waiter != NONE {
            self.follow_links(id);
        }
        self.index(id, keys);
        self.touch(id);
    }

    fn is_sound(&mut self, id: u32, keys: Keys) -> bool {
        let slot = self.slots.get(id);
        if !slot.is_intact()
            || !self.makes_sense(slot)
            || (self.walk.condemned)(&Held::new(id, slot))
            || self.is_double(id, slot, keys)
        {
            return false;
        }
        let (held, stash) = (slot.held, slot.rare().stash);
        if !held.mark(&mut self.chunks) {
            return false;
        }
        let sound = stash.mark(&mut self.chunks);
        if !sound {
            held.unmark(&mut self.chunks, held.count);
        }
        sound
    }

    fn makes_sense(&self, slot: &Slot) -> bool {
        let link = |id: u32| id == NONE || id < self.slots.len();
        self.target_of(slot).is_some()
            && link(slot.rare().next_copy)
            && link(slot.rare().waiter)
            // A session that owes its reset has given up its bytes but not their numbers.
            && (slot.phase() == Phase::Resetting || slot.outstanding() <= slot.held_len.saturating_add(2))
    }

    /// Whether another one, which is believed, stands for the same flow or has the same endpoint: an index was damaged, and this
    /// one was not found when its packets came.
    fn is_double(&self, id: u32, slot: &Slot, [flow, endpoint]: Keys) -> bool {
        let other = |other: u32| other != id && other < self.header.fresh && self.walk.was_looked_at(other);
        let of_flow = |found: u32| {
            let found = self.slots.get(found);
            found.is_of(&slot.flow()) && found.is(is::FIRST)
        };
        let target = self.target_of(slot).unwrap_or_default();
        flow.is_some_and(|hash| self.by_flow.find(hash, |found| other(found) && of_flow(found)).is_some())
            || endpoint.is_some_and(|hash| {
                let has = |found| other(found) && self.has_endpoint(found, &slot.replayed, &target);
                self.by_replayed.find(hash, has).is_some()
            })
    }

    /// Keeps the links whose ends agree, to be followed.
    fn follow_links(&mut self, id: u32) {
        let slot = *self.slots.get(id);
        let agrees = |link: u32, agrees: &dyn Fn(&Slot) -> bool| {
            let stays =
                link != NONE && self.slots.get(link).phase() != Phase::Free && agrees(self.slots.get(link));
            if stays { link } else { NONE }
        };
        let next = agrees(slot.rare().next_copy, &|other| {
            other.is_of(&slot.flow()) && other.rare().copy > slot.rare().copy
        });
        let waiter = agrees(slot.rare().waiter, &|other| {
            other.phase() == Phase::Queued && other.replayed == slot.replayed
        });
        if (next, waiter) != (slot.rare().next_copy, slot.rare().waiter) {
            let slot = self.slots.get_mut(id);
            let rare = slot.rare_mut();
            (rare.next_copy, rare.waiter) = (next, waiter);
        }
        for link in [next, waiter] {
            if link != NONE && !self.walk.was_looked_at(link) {
                self.walk.linked.push((id, link));
            }
        }
    }

    /// Under which hashes a session stands in the indices.
    fn keys(&self, slot: &Slot) -> Keys {
        [self.flow_key(slot), self.endpoint_key(slot)]
    }

    fn flow_key(&self, slot: &Slot) -> Option<u64> {
        slot.is(is::FIRST).then(|| self.flow_hash(&slot.client, &slot.server, slot.lap))
    }

    fn endpoint_key(&self, slot: &Slot) -> Option<u64> {
        let stands =
            !matches!(slot.phase(), Phase::Free | Phase::Queued) && slot.replayed != Endpoint::default();
        let target = self.target_of(slot).filter(|_| stands);
        target.map(|target| self.replayed_hash(&slot.replayed, &target))
    }

    /// Puts a session into the indices where it is not in them.
    fn index(&mut self, id: u32, [flow, endpoint]: Keys) {
        if let Some(hash) = flow
            && self.by_flow.place_of(hash, id).is_none()
        {
            self.put_flow(hash, id);
        }
        if let Some(hash) = endpoint
            && self.by_replayed.place_of(hash, id).is_none()
        {
            self.put_endpoint(hash, id);
        }
    }

    /// Adds a flow's first copy to the index. There is room for all, unless damage has filled it: then what leads nowhere goes.
    pub(crate) fn put_flow(&mut self, hash: u64, id: u32) {
        if !self.by_flow.insert(hash, id) {
            self.prove(&self.by_flow, |slot| self.flow_key(slot));
            self.by_flow.insert(hash, id);
        }
    }

    /// The same for an endpoint.
    pub(crate) fn put_endpoint(&mut self, hash: u64, id: u32) {
        if !self.by_replayed.insert(hash, id) {
            self.prove(&self.by_replayed, |slot| self.endpoint_key(slot));
            self.by_replayed.insert(hash, id);
        }
    }

    /// What the slots held together and was not found in any of them is lost.
    fn forget_missing(&mut self) {
        let Sums { open, in_flight } = std::mem::take(&mut self.walk.missing);
        let explained = open != 0 || self.tally.count(Count::SlotsUnusable) != 0;
        self.tally.add(Count::FailedWorkerLost, open.cast_signed().max(0).cast_unsigned());
        self.tally.open = self.tally.open.wrapping_sub(open);
        self.tally.settle(in_flight.cast_signed(), explained);
    }

    /// Takes out of an index what does not lead to a slot under whose key it is found.
    fn prove(&self, index: &Index, key: impl Fn(&Slot) -> Option<u64>) {
        for place in 0..index.places() {
            // What shifts back into the place is looked at in its turn.
            while let Some(id) = index.at(place) {
                let hash = if id < self.header.fresh { key(self.slots.get(id)) } else { None };
                if hash.is_some_and(|hash| index.place_of(hash, id) == Some(place)) {
                    break;
                }
                index.close(place);
            }
        }
    }
}

/// Hashes in the indices of flows and of replayed endpoints.
type Keys = [Option<u64>; 2];
