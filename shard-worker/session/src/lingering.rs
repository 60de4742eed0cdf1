//! The sessions that are over and linger, oldest first: who leaves when a full table needs a slot (`birth`). Private memory, made
//! anew from the slots (`walk`).

use std::collections::VecDeque;

use crate::slot::{Phase, Slot, Timer, is};
use crate::undo::Slots;

/// So many are remembered: 64 KiB. Of more the newest are not, and leave when their time is over.
const MOST: u32 = 4_096;

/// The queue. Entries of sessions that left by themselves stay in it until they are at its front.
pub(crate) struct Lingering {
    queue: VecDeque<Entry>,
    most: usize,
    /// See [`Lingering::find`].
    found: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    id: u32,
    /// When it leaves by itself; tells it from a later session in the same slot.
    until_us: u64,
}

impl Entry {
    /// Whether it lingers still, and owes nothing. One that owes an acknowledgement is about to send it.
    fn may_leave(&self, slot: &Slot) -> bool {
        slot.phase() == Phase::Lingering
            && slot.deadline(Timer::End) == self.until_us
            && !slot.is(is::OWE_ACK)
    }
}

impl Lingering {
    pub(crate) fn new(sessions: u32) -> Self {
        let most = sessions.min(MOST) as usize;
        // Twice: see `join`.
        Self { queue: VecDeque::with_capacity(2 * most), most, found: Vec::with_capacity(most) }
    }

    /// One more.
    pub(crate) fn push(&mut self, slots: &Slots, id: u32) {
        while self.queue.front().is_some_and(|oldest| !oldest.may_leave(slots.get(oldest.id))) {
            self.queue.pop_front();
        }
        if self.queue.len() < self.most {
            let until_us = slots.get(id).deadline(Timer::End);
            self.queue.push_back(Entry { id, until_us });
        }
    }

    /// The oldest that may leave.
    pub(crate) fn pop(&mut self, slots: &Slots) -> Option<u32> {
        std::iter::from_fn(|| self.queue.pop_front())
            .find(|oldest| oldest.may_leave(slots.get(oldest.id)))
            .map(|oldest| oldest.id)
    }

    /// Whether none may leave; some of those remembered may have left by themselves.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether so many may leave.
    pub(crate) fn are(&self, wanted: usize, slots: &Slots) -> bool {
        self.queue.iter().filter(|one| one.may_leave(slots.get(one.id))).take(wanted).count() == wanted
    }

    /// Notes one of a predecessor's, in any order, for [`Lingering::join`]. It lingers since before all that were pushed.
    pub(crate) fn find(&mut self, slots: &Slots, id: u32) {
        if self.found.len() < self.most {
            let until_us = slots.get(id).deadline(Timer::End);
            self.found.push(Entry { id, until_us });
        }
    }

    /// All of a predecessor's are found: they stand in front, oldest first.
    pub(crate) fn join(&mut self) {
        let mut found = std::mem::take(&mut self.found);
        found.sort_by_key(|entry| std::cmp::Reverse(entry.until_us));
        found.into_iter().for_each(|entry| self.queue.push_front(entry));
        self.queue.truncate(self.most);
    }
}
