//! What happens when payload memory runs out: sessions whose backlog the target has left alone for longest are closed, until
//! the bytes that are captured now find room.
//!
//! There is no list to keep in order with every packet for a case that healthy targets never bring about. Instead a hand
//! moves over the slots, [`LOOKS`] at a time, and the oldest backlogs found there go: the oldest of all in tables up to
//! that size.

use crate::chunks::ROOM;
use crate::slot::Phase;
use crate::table::Table;

/// Slots looked at for one segment that finds no room.
const LOOKS: u32 = 1_024;
/// Sessions closed for one segment at most.
const CLOSED: usize = 8;
/// Chunks that a segment may need beyond those its bytes fill: begun ones, and headers.
const BESIDES: usize = 3;

impl Table {
    /// Makes room for `len` more bytes of session `id`; false when there is none to be had, or that session's own backlog is
    /// the oldest.
    pub(crate) fn has_room(&mut self, now_us: u64, id: u32, len: usize) -> bool {
        let needed = len / ROOM + BESIDES;
        self.chunks.available() >= needed || self.make_room(now_us, id, needed)
    }

    fn make_room(&mut self, now_us: u64, id: u32, needed: usize) -> bool {
        let mut oldest = [(u64::MAX, 0); CLOSED];
        let slots = self.slots.len();
        for _ in 0..LOOKS.min(slots) {
            self.hand = (self.hand + 1) % slots;
            let slot = self.slots.get(self.hand);
            let closable = matches!(slot.phase(), Phase::Open | Phase::Opening);
            if !closable
                || slot.held.count + slot.stash.count == 0
                || slot.progress_us >= oldest[CLOSED - 1].0
            {
                continue;
            }
            let at = oldest.partition_point(|(since_us, _)| *since_us <= slot.progress_us);
            oldest.copy_within(at..CLOSED - 1, at + 1);
            oldest[at] = (slot.progress_us, self.hand);
        }
        for (since_us, victim) in oldest {
            if self.chunks.available() >= needed {
                return true;
            }
            if since_us == u64::MAX || victim == id {
                return false;
            }
            self.overflow(now_us, victim, self.slots.get(victim).online_next);
        }
        self.chunks.available() >= needed
    }
}
