//! The way back, as far as it is whole: while an intercept is away no answer comes, whatever the targets do.
//!
//! Meanwhile a session asks at pauses that double, and the pause that it is in when the way is whole again may be longer than
//! the outage was. So a walk over the sessions lets each that has asked in vain ask once more, at once.

use crate::congestion::RTO_MOST_US;
use crate::slot::{NEVER, Phase, Slot, Timer, try_bit};
use crate::table::Table;
use crate::undo::SESSION_IMAGES;

/// Sessions looked at in one call of [`Table::tick`] at most, as in `shedding`.
const LOOKS: u32 = 512;
/// Who is deaf says so each 100 ms; after so long it is not any more.
const SURE_US: u64 = 150_000;
/// An outage that was over so long before the table's last step is no news, µs.
const OLD_US: u64 = 1_000_000;
/// Where the walk stands when there is none.
const OVER: u32 = u32::MAX;

/// What is known of it.
pub(crate) struct Hearing {
    /// Until then no answer could come back.
    pub(crate) deaf_us: u64,
    /// The next session to be looked at.
    hand: u32,
}

impl Default for Hearing {
    fn default() -> Self {
        Self { deaf_us: 0, hand: OVER }
    }
}

impl Hearing {
    /// When the walk may go on.
    pub(crate) fn resumes_us(&self) -> u64 {
        if self.hand == OVER { NEVER } else { self.deaf_us + SURE_US }
    }
}

impl Table {
    /// Until this time, 0 for never, the way back was not whole: silence of a target up to then is not held against it, and soon
    /// after it all who have asked in vain ask again.
    pub const fn was_deaf(&mut self, until_us: u64) {
        if self.hearing.deaf_us != until_us {
            // A successor finds the word of an outage that may have been over for days.
            let hand = if until_us + OLD_US < self.header.clock_us { OVER } else { 0 };
            self.hearing = Hearing { deaf_us: until_us, hand };
        }
    }

    /// Until when the one on a four-tuple may have to wait for the way back, and for its own next retransmission then.
    pub(crate) const fn hears_again_us(&self) -> u64 {
        if self.hearing.deaf_us == 0 { 0 } else { self.hearing.deaf_us + RTO_MOST_US }
    }

    /// Whether sessions are to be looked at.
    pub(crate) fn asks_again(&self, now_us: u64) -> bool {
        now_us >= self.hearing.resumes_us() && !self.is_walking()
    }

    /// Goes on with the walk as far as one call and the transaction have room.
    pub(crate) fn ask_again(&mut self, now_us: u64) {
        if !self.asks_again(now_us) {
            return;
        }
        let fresh = self.header.fresh.min(self.slots.len());
        let end = fresh.min(self.hearing.hand.saturating_add(LOOKS));
        while self.hearing.hand < end && self.slots.has_room(SESSION_IMAGES) {
            let id = self.hearing.hand;
            self.hearing.hand += 1;
            if let Some(timer) = asked_in_vain(self.slots.get(id)) {
                self.at(id);
                let slot = self.slots.get_mut(id);
                slot.arm(timer, now_us);
                if slot.phase() == Phase::Open {
                    // The next pause is a short one again; 0 would be the first loss of a window.
                    if let Some(rare) = slot.had_rare() {
                        (rare.backoff, rare.probes) = (rare.backoff.min(1), rare.probes.min(1));
                    }
                }
                self.rearm(id);
            }
        }
        if self.hearing.hand >= fresh {
            self.hearing.hand = OVER;
        }
    }
}

/// The timer of a session whose last try drew no answer.
fn asked_in_vain(slot: &Slot) -> Option<Timer> {
    let tried = |timer, tries: u8| (tries > 0 && slot.deadline(timer) != NEVER).then_some(timer);
    match slot.phase() {
        // It may wait for its turn to try, which nobody takes from it.
        Phase::Opening if slot.tries & try_bit::WAITING == 0 => tried(Timer::Rto, slot.rare().backoff),
        Phase::Open => {
            let probes = || {
                tried(Timer::Persist, slot.rare().probes).or_else(|| tried(Timer::Alive, slot.rare().probes))
            };
            tried(Timer::Rto, slot.rare().backoff).or_else(probes)
        }
        Phase::Free
        | Phase::Queued
        | Phase::Opening
        | Phase::Resetting
        | Phase::Lingering
        | Phase::Parted => None,
    }
}
