//! The undo log: the images of the slots that the open transaction has touched, in the arena. Whoever wants a slot for
//! writing gets it through [`Slots::get_mut`], which notes the slot's image first, once a transaction.
//!
//! | log | a successor |
//! |---|---|
//! | empty | finds the slots as the last transaction left them |
//! | not empty | puts the images back: the transaction never happened |
//!
//! Beside it stands what the slots come to in all, so that a successor knows it before it has looked at any of them.
//!
//! A worker that dies leaves a prefix of its stores in memory and its successor begins after it was reaped, so only the
//! compiler must keep the order: the image before the count, the count before the first change. With plain or Relaxed
//! stores rustc deleted the copy, since the slot that it is made of is overwritten next; a Release store between two
//! compiler fences keeps it.
//!
//! Chunks need no images. Payload goes only where no image points to: behind the tail of a list, or into chunks that were
//! free when the transaction began; what it frees joins the free list when it has ended (`chunks`).

use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::slot::Slot;

/// Images at most; a table of fewer sessions never needs more than it has sessions.
const IMAGES: u32 = 4_096;
/// Slots that one captured segment touches at most: all copies of its flow, those of the flow that it takes the place
/// of, and what these have to do with others.
pub(crate) const ITEM_IMAGES: u32 = 2 * 1_000 + 96;
/// Slots that a session's timers or its turn to emit touch at most: itself, the one that waits for it, its neighbours in
/// the chain of copies.
pub(crate) const SESSION_IMAGES: u32 = 8;

/// What stands before the images.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub(crate) struct Head {
    /// Images in the log.
    count: AtomicU64,
    /// At the end of the last transaction, and of the one that is open once it is sealed.
    settled: Sums,
    sealed: Sums,
}

/// What all slots come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Sums {
    /// Sessions that exist.
    pub(crate) open: u64,
    /// Ledger bytes held, or sent and not acknowledged.
    pub(crate) in_flight: u64,
}

/// A slot as it was.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Image {
    id: u32,
    reserved: u32,
    slot: Slot,
}

impl Image {
    /// Which slot.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// As it was.
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }
}

/// The images of the transaction that a dead worker left open, given the bytes of its log.
pub(crate) fn images(log: &[u8]) -> &[Image] {
    let Some((head, images)) = log.split_at_checked(size_of::<Head>()) else { return &[] };
    let count = u64::read_from_prefix(head).map_or(0, |(count, _)| count) as usize;
    let all = <[Image]>::ref_from_bytes(images).unwrap_or(&[]);
    all.get(..count).unwrap_or(&[])
}

/// Images that a log for so many sessions has.
pub(crate) const fn capacity(sessions: u32) -> u32 {
    if sessions < IMAGES { sessions } else { IMAGES }
}

/// Bytes of a log for so many sessions.
pub(crate) const fn bytes(sessions: u32) -> usize {
    size_of::<Head>() + capacity(sessions) as usize * size_of::<Image>()
}

/// All slots, and the log.
pub(crate) struct Slots {
    slots: &'static mut [Slot],
    head: &'static mut Head,
    images: &'static mut [Image],
    /// Images in the log, our copy.
    count: usize,
}

impl Slots {
    /// Over the slots and log of an arena. What a predecessor left open is still so: see [`Slots::left_open`].
    pub(crate) fn new(
        slots: &'static mut [Slot],
        head: &'static mut Head,
        images: &'static mut [Image],
    ) -> Self {
        Self { slots, head, images, count: 0 }
    }

    /// What all slots come to, as a predecessor left them: its last transaction stands if it was `committed`.
    pub(crate) fn sums(&self, committed: bool) -> Sums {
        if committed { self.head.sealed } else { self.head.settled }
    }

    /// How many images a predecessor left in the log.
    pub(crate) fn left_open(&self) -> usize {
        // Acquire: pairs with the Release in `note`.
        self.head.count.load(Acquire).min(self.images.len() as u64) as usize
    }

    /// The slot of such an image; none where the image makes no sense.
    pub(crate) fn left_open_slot(&self, image: usize) -> Option<u32> {
        Some(self.images[image].id).filter(|id| *id < self.len())
    }

    /// Puts such an image back. Can be repeated, and be interrupted: the log stays until [`Slots::forget`].
    pub(crate) fn put_back(&mut self, image: usize) {
        let Image { id, slot, .. } = &self.images[image];
        self.slots[*id as usize].copy_from(slot);
        compiler_fence(SeqCst);
    }

    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.slots.as_bytes()
    }

    /// The log as it stands in the arena.
    pub(crate) fn log_bytes(&self) -> Vec<u8> {
        let Sums { open, in_flight } = self.head.settled;
        let Sums { open: then_open, in_flight: then_in_flight } = self.head.sealed;
        let head = [self.count as u64, open, in_flight, then_open, then_in_flight];
        [head.as_bytes(), self.images.as_bytes()].concat()
    }

    #[inline]
    pub(crate) fn get(&self, id: u32) -> &Slot {
        &self.slots[id as usize]
    }

    /// A slot for writing: what it was is in the log first.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> &mut Slot {
        if self.slots[id as usize].is_sealed() {
            self.note(id);
        }
        &mut self.slots[id as usize]
    }

    #[inline(never)]
    fn note(&mut self, id: u32) {
        assert!(self.count < self.images.len(), "a transaction ends before its undo log is full");
        let slot = &mut self.slots[id as usize];
        let image = &mut self.images[self.count];
        // Not as one value, which would be copied twice.
        image.id = id;
        image.slot.copy_from(slot);
        self.count += 1;
        compiler_fence(SeqCst);
        self.head.count.store(self.count as u64, Release);
        compiler_fence(SeqCst);
        slot.unseal();
    }

    /// Empties a slot that nobody can trust, in the open transaction, which has not touched it.
    pub(crate) fn lose(&mut self, id: u32) {
        self.note(id);
        self.slots[id as usize].reset();
    }

    /// Whether the open transaction has touched none.
    pub(crate) fn is_untouched(&self) -> bool {
        self.count == 0
    }

    /// Whether `n` more slots can be touched before the transaction has to end. Those that are in the log already do not
    /// count, so a log with room for every slot is never full.
    pub(crate) fn has_room(&self, n: u32) -> bool {
        self.images.len() == self.slots.len() || self.count + n as usize <= self.images.len()
    }

    /// Puts the checksums of all touched slots in place, the last thing before the commit.
    pub(crate) fn seal(&mut self, sums: Sums) {
        for image in &self.images[..self.count] {
            self.slots[image.id as usize].seal();
        }
        self.head.sealed = sums;
        compiler_fence(SeqCst);
    }

    /// The transaction has happened, with these sums.
    pub(crate) fn forget(&mut self, sums: Sums) {
        self.head.settled = sums;
        compiler_fence(SeqCst);
        self.head.count.store(0, Release);
        compiler_fence(SeqCst);
        self.count = 0;
    }
}
