//! The invariants of a table, looked at from the slots: what tests ask after every step, and what a debug build may ask at
//! any quiet moment. Walks everything, so never on the packet path.

use zerocopy::IntoBytes;

use crate::held;
use crate::slot::{NONE, Phase, Slot, is};
use crate::stash;
use crate::table::Table;
use crate::tally::Count;

impl Table {
    /// The ledger's identity, gauges, chunk accounting and indices; `Err` says which does not hold. Of a table that does not
    /// know all its slots yet, the ledger's alone.
    pub fn check(&self) -> Result<(), String> {
        let tally = &self.tally;
        ensure(tally.balanced(), || {
            format!(
                "wanted {} + inherited {} != delivered {} + in flight {} + dropped {}",
                tally.count(Count::Wanted),
                tally.inherited,
                tally.count(Count::Delivered),
                tally.in_flight,
                tally.dropped_bytes()
            )
        })?;
        if self.is_walking() {
            return Ok(());
        }
        let mut used = vec![false; self.chunks.len()];
        let (mut in_flight, mut open, mut first, mut replayed) = (0, 0, 0, 0);
        for id in 0..self.slots.len() {
            let slot = self.slots.get(id);
            if slot.phase() == Phase::Free {
                ensure(slot.held.is_empty() && slot.rare().stash.is_empty(), || {
                    format!("free slot {id} has chunks")
                })?;
                continue;
            }
            open += 1;
            in_flight += u64::from(slot.in_flight());
            self.check_slot(id, slot, &mut used)?;
            first += usize::from(slot.is(is::FIRST));
            let target = self.config.targets[slot.target as usize].endpoint;
            if self.peek_replayed(&slot.replayed, &target) == Some(id) {
                replayed += 1;
            } else {
                let without = matches!(slot.phase(), Phase::Queued | Phase::Parted);
                ensure(without, || format!("slot {id} in {:?} is not found by its endpoint", slot.phase()))?;
            }
        }
        ensure(tally.in_flight == in_flight, || {
            format!("the gauge says {} in flight, the slots {in_flight}", tally.in_flight)
        })?;
        ensure(tally.open == open, || format!("the gauge says {} open, the slots {open}", tally.open))?;
        ensure(open + self.free_slots() as u64 == u64::from(self.slots.len()), || {
            format!("{open} slots open and {} free of {}", self.free_slots(), self.slots.len())
        })?;
        let taken = used.iter().filter(|&&used| used).count();
        ensure(taken + self.chunks.unused() == self.chunks.len(), || {
            format!("{taken} chunks in lists and {} free of {}", self.chunks.unused(), self.chunks.len())
        })?;
        ensure(self.by_flow.count() == first, || {
            format!("{} flows for {first} first copies", self.by_flow.count())
        })?;
        ensure(self.by_replayed.count() == replayed, || {
            format!("{} endpoints indexed, {replayed} found", self.by_replayed.count())
        })
    }

    /// One number for all slots and every byte they hold: tables with the same number have the same sessions.
    pub fn digest(&self) -> u64 {
        let mut all = Vec::new();
        for slot in (0..self.slots.len()).map(|id| self.slots.get(id)) {
            all.extend_from_slice(slot.usual());
            all.extend_from_slice(slot.rare().as_bytes());
            held::from_head(slot, &self.chunks, 0, u32::MAX).for_each(|bytes| all.extend_from_slice(bytes));
            stash::bytes(slot, &self.chunks).for_each(|bytes| all.extend_from_slice(bytes));
        }
        rapidhash::v3::rapidhash_v3(&all)
    }

    fn check_slot(&self, id: u32, slot: &Slot, used: &mut [bool]) -> Result<(), String> {
        let phase = slot.phase();
        ensure(slot.held.check(&self.chunks, used) && slot.rare().stash.check(&self.chunks, used), || {
            format!("slot {id} has a broken chunk list")
        })?;
        let counted = held::count_bytes(slot, &self.chunks);
        ensure(counted == slot.held_len, || {
            format!("slot {id} in {phase:?}: {} held, {counted} in its pieces", slot.held_len)
        })?;
        ensure(slot.sent_bytes() <= slot.held_len, || {
            format!("slot {id} in {phase:?}: {} sent, {} held", slot.sent_bytes(), slot.held_len)
        })?;
        let earliest = slot.earliest();
        ensure(earliest == u64::MAX || self.wheel.is_armed(id), || {
            format!("slot {id} in {phase:?} has no timer")
        })?;
        if slot.is(is::FIRST) {
            let flow = slot.flow();
            let found = self.peek_flow(self.hash_of(&flow), &flow);
            ensure(found == Some(id), || format!("slot {id} is first of its flow but {found:?} is found"))?;
        }
        let next = slot.rare().next_copy;
        ensure(next == NONE || self.slots.get(next).phase() != Phase::Free, || {
            format!("slot {id} has a freed copy")
        })
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
