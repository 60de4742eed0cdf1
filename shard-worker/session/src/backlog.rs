//! What happens when payload memory runs out: sessions whose backlog the target has left alone for longest are closed, until
//! the bytes that are captured now find room.
//!
//! What they held is free only when the transaction has ended, so this comes before a segment is taken ([`Table::admits`])
//! or a hole given up, and who takes the bytes finds the room or does not.
//!
//! There is no list to keep in order with every packet for a case that healthy targets never bring about. Instead a hand
//! moves over the slots, [`LOOKS`] at a time, and the oldest backlogs found there go: the oldest of all in tables up to
//! that size.

use flow::Captured;

use crate::chunks::ROOM;
use crate::slot::{NONE, Phase, Slot, is};
use crate::table::Table;
use crate::undo::SESSION_IMAGES;

/// Slots looked at for one segment that finds no room.
const LOOKS: u32 = 1_024;
/// Sessions closed in one go.
const CLOSED: usize = 8;
/// Goes for one segment at most: what many copies of one flow need.
const GOES: u32 = 8;
/// Chunks that a segment may need beyond those its bytes fill: begun ones, and headers.
const BESIDES: usize = 3;
/// With this share of the chunks free, nobody counts what a segment needs.
const PLENTY: usize = 8;

impl Table {
    /// Whether `len` more bytes of a session find room.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.chunks.available() >= needed(len)
    }

    /// Whether half of the payload memory is held: a source that can wait is left alone until it is not.
    pub fn is_crowded(&self) -> bool {
        self.tally.in_flight > 0 && self.chunks.available() < self.chunks.len() / 2
    }

    /// Whether a captured segment had better wait, because what it needs will be free without any more input: room in a session
    /// that holds as much as it may and has something to send, or slots while sessions are at their end. Where no
    /// session can end by itself, waiting would last for ever, and the flow is refused and counted.
    pub fn should_wait(
        &mut self,
        segment: &Captured,
        payload_bytes: usize,
        percent_ppm: u32,
        copies_milli: u32,
    ) -> bool {
        if segment.is_answer() {
            return false;
        }
        let mut id = match self.find_flow(self.hash_of(segment), segment) {
            Some(first) => first,
            None => return self.lacks_slots(self.copies_wanted(segment, percent_ppm, copies_milli) as usize),
        };
        while id != NONE {
            let slot = self.slots.get(id);
            let held = u64::from(slot.held_len) + u64::from(slot.rare().stash_bytes) + payload_bytes as u64;
            if slot.held_len > 0 && held > u64::from(self.config.limits.held_per_session) {
                return true;
            }
            id = slot.rare().next_copy;
        }
        false
    }

    /// Whether fewer slots than these can be had now, and a session is about to leave its own.
    fn lacks_slots(&self, wanted: usize) -> bool {
        let lacking = wanted.saturating_sub(self.free_slots());
        let ends = || !self.lingering.are(lacking, &self.slots) && self.is_one_ending();
        lacking > 0 && (self.is_walking() || ends())
    }

    fn is_one_ending(&self) -> bool {
        (0..self.header.fresh.min(self.slots.len())).map(|id| self.slots.get(id)).any(|slot| {
            matches!(slot.phase(), Phase::Lingering | Phase::Resetting)
                || slot.is(is::END_HELD | is::DETACHED)
        })
    }

    /// Makes sure that the bytes of a captured segment find room in every copy of its flow. False when some was made, but is
    /// free only after the transaction.
    pub(crate) fn reserve(
        &mut self,
        now_us: u64,
        segment: &Captured,
        payload_bytes: usize,
        percent_ppm: u32,
        copies_milli: u32,
    ) -> bool {
        if self.chunks.available() >= self.chunks.len() / PLENTY {
            return true;
        }
        let first = self.find_flow(self.hash_of(segment), segment);
        let needed = match first {
            Some(first) => self.needed_by_copies(first, payload_bytes),
            None => {
                let copies = self.copies_wanted(segment, percent_ppm, copies_milli) as usize;
                copies * needed(payload_bytes)
            }
        };
        self.make_room(now_us, needed, |slot| slot.client == segment.client && slot.server == segment.server)
    }

    /// The same for what a session moves on when its hole is given up.
    pub(crate) fn reserve_for_stash(&mut self, now_us: u64, id: u32) -> bool {
        if self.chunks.available() >= self.chunks.len() / PLENTY {
            return true;
        }
        let slot = *self.slots.get(id);
        let own = |other: &Slot| other.client == slot.client && other.server == slot.server;
        self.make_room(now_us, needed(slot.rare().stash_bytes as usize), own)
    }

    fn needed_by_copies(&self, first: u32, payload_bytes: usize) -> usize {
        let (mut id, mut chunks) = (first, 0);
        while id != NONE {
            let slot = self.slots.get(id);
            chunks += needed(payload_bytes + slot.rare().stash_bytes as usize);
            id = slot.rare().next_copy;
        }
        chunks
    }

    /// True when `needed` chunks are free, or cannot be: nothing is left to be closed, or the oldest backlog is their own.
    fn make_room(&mut self, now_us: u64, needed: usize, own: impl Fn(&Slot) -> bool) -> bool {
        // What a predecessor has left is looked through for free chunks before anybody is closed.
        self.walk_until(|table| table.chunks.available() >= needed);
        if self.chunks.available() >= needed {
            return true;
        }
        for _ in 0..GOES {
            if self.chunks.unused() >= needed || !self.close_oldest(now_us, needed, &own) {
                break;
            }
        }
        self.chunks.unused() == self.chunks.available()
    }

    /// Closes some of the oldest backlogs; false when there are none, or the next one is the own.
    fn close_oldest(&mut self, now_us: u64, needed: usize, own: impl Fn(&Slot) -> bool) -> bool {
        let mut oldest = [(u64::MAX, 0); CLOSED];
        let slots = self.slots.len();
        for _ in 0..LOOKS.min(slots) {
            self.hand = (self.hand + 1) % slots;
            let slot = self.slots.get(self.hand);
            let closable = matches!(slot.phase(), Phase::Open | Phase::Opening);
            if !closable
                || slot.held.count + slot.rare().stash.count == 0
                || slot.progress_us >= oldest[CLOSED - 1].0
            {
                continue;
            }
            let at = oldest.partition_point(|(since_us, _)| *since_us <= slot.progress_us);
            oldest.copy_within(at..CLOSED - 1, at + 1);
            oldest[at] = (slot.progress_us, self.hand);
        }
        for (since_us, victim) in oldest {
            if self.chunks.unused() >= needed {
                return true;
            }
            let slot = self.slots.get(victim);
            if since_us == u64::MAX || own(slot) || !self.slots.has_room(SESSION_IMAGES) {
                return false;
            }
            let to = slot.online_next;
            self.overflow(now_us, victim, to);
        }
        true
    }
}

const fn needed(len: usize) -> usize {
    len / ROOM + BESIDES
}
