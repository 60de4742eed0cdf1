//! Flows that are ended to make room for others, and for production: whole ones, all copies of them, those with the highest draws
//! first (`flow::sample::draw`). What they held is dropped as `shed`, and their targets get a reset.

use flow::Drop;
use flow::sample::draw;

use crate::slot::Phase;
use crate::table::Table;
use crate::tally::Count;
use crate::undo::SESSION_IMAGES;

/// Sessions looked at in one call of [`Table::shed`] at most: a tenth of a millisecond, when none of them is in cache.
const LOOKS: u32 = 512;
const MILLION: u32 = 1_000_000;

/// Where the walk over the sessions stands.
pub(crate) struct Shedding {
    /// Flows with draws below this stay.
    kept_ppm: u32,
    /// The next session to be looked at.
    hand: u32,
}

impl Default for Shedding {
    fn default() -> Self {
        Self { kept_ppm: MILLION, hand: u32::MAX }
    }
}

impl Table {
    /// Ends the sessions of flows whose draw is not below `kept_ppm`, as many as one call and the transaction have room for;
    /// true when there are more to be looked at. Whoever asks for it admits no new flows with such draws.
    pub fn shed(&mut self, now_us: u64, kept_ppm: u32) -> bool {
        if kept_ppm < self.shedding.kept_ppm {
            self.shedding.hand = 0;
        }
        self.shedding.kept_ppm = kept_ppm;
        if self.is_walking() {
            return false;
        }
        let fresh = self.header.fresh.min(self.slots.len());
        let end = fresh.min(self.shedding.hand.saturating_add(LOOKS));
        while self.shedding.hand < end && self.slots.has_room(SESSION_IMAGES) {
            let id = self.shedding.hand;
            self.shedding.hand += 1;
            let slot = self.slots.get(id);
            if matches!(slot.phase(), Phase::Free | Phase::Resetting | Phase::Lingering)
                || draw(self.config.seeds.sample, &slot.client, &slot.server, 0) < kept_ppm
            {
                continue;
            }
            self.at(id);
            self.fail(now_us, id, Drop::Shed, Count::FailedShed);
        }
        self.shedding.hand < fresh
    }
}
