//! The writing end of a ring: reserve, write, commit, and publish a batch with one store.
#![allow(unsafe_code)]

use super::{HEAD, LINE, align_down, head_word, max_record, record_bytes};
use crate::memory::Memory;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// The writing end of a ring.
#[derive(Debug)]
pub struct Producer {
    memory: Memory,
    /// Committed up to here, visible to nobody yet.
    staged: u64,
    /// Our copy of the published tail.
    published: u64,
    /// The consumer's head as last seen; `staged - head <= capacity` always.
    head: u64,
    reserved: Option<Reserved>,
    faults: u64,
}

/// A record being written.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    /// Position of its head, behind the pad if there is one.
    position: u64,
    /// Payload bytes.
    len: usize,
}

impl Producer {
    /// Goes on where the ring's published tail is.
    pub(crate) fn new(memory: Memory) -> Self {
        let indices = memory.indices();
        // Acquire: pairs with the Release in our predecessor's `publish` and the consumer's `release`.
        let (mut tail, head) = (indices.tail.load(Acquire), indices.head.load(Acquire));
        let mut faults = 0;
        if !tail.is_multiple_of(LINE as u64) || tail.wrapping_sub(head) > memory.capacity() as u64 {
            // No predecessor of ours left that. Begin with an empty ring; the consumer finds its way to the new tail.
            faults = 1;
            tail = align_down(head);
            indices.tail.store(tail, Release);
        }
        let head = align_down(head);
        Self { memory, staged: tail, published: tail, head, reserved: None, faults }
    }

    /// How many bytes of records are sure to be taken now: any records whose [`Producer::record_bytes`] sum up to no more,
    /// in any order, whatever pad they cause. Looks at the consumer's progress.
    pub fn credits(&mut self) -> usize {
        self.refresh();
        let free = self.free();
        let to_end = self.to_end();
        if free <= to_end {
            return free;
        }
        // The records lie before the end, or those from the first that does not fit on lie behind it.
        to_end.max(free - to_end)
    }

    /// Room for one record's payload, contiguous; `None` when the ring is too full (or `len` above
    /// [`Producer::max_record`]). Nothing is taken until [`Producer::commit`]; reserving again starts over.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.reserved = None;
        if len > self.max_record() {
            return None;
        }
        let bytes = record_bytes(len);
        let to_end = self.to_end();
        let pad = if bytes > to_end { to_end } else { 0 };
        if self.free() < pad + bytes {
            self.refresh();
            if self.free() < pad + bytes {
                return None;
            }
        }
        let position = self.staged.wrapping_add(pad as u64);
        self.reserved = Some(Reserved { position, len });
        let at = self.offset(position);
        // SAFETY: the bytes lie between staged and head + capacity: the producer's own, and `&mut self` makes this end's
        // only slice. The consumer stopped reading them before its Release of `head`, which `refresh` acquired.
        Some(unsafe { self.memory.write(at + HEAD, len) })
    }

    /// Stages the reserved record with the first `len` bytes of its payload; not visible until [`Producer::publish`].
    ///
    /// Panics when nothing is reserved or `len` is more than was reserved.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        let reserved = self.reserved.take().expect("commit follows a reserve");
        assert!(len <= reserved.len, "committed {len} bytes of {} reserved", reserved.len);
        let pad = reserved.position.wrapping_sub(self.staged);
        if pad != 0 {
            let at = self.offset(self.staged);
            // SAFETY: a line between staged and the reserved record, the producer's own as in `reserve`.
            unsafe { self.memory.write_head(at, head_word(self.staged, pad as u32 - HEAD as u32, true)) };
        }
        let at = self.offset(reserved.position);
        // SAFETY: the head of the reserved record, the producer's own as in `reserve`.
        unsafe { self.memory.write_head(at, head_word(reserved.position, len as u32, false)) };
        self.staged = reserved.position.wrapping_add(record_bytes(len) as u64);
    }

    /// Up to where the consumer has released, as of now.
    pub fn released(&mut self) -> u64 {
        self.refresh();
        self.head
    }

    /// Reserves, copies and commits; false when there is no room.
    #[inline]
    pub fn push(&mut self, payload: &[u8]) -> bool {
        let Some(room) = self.reserve(payload.len()) else { return false };
        room.copy_from_slice(payload);
        self.commit(payload.len());
        true
    }

    /// Makes everything committed visible, with one store; true if there was anything. The caller then rings the
    /// consumer's doorbell once.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.staged == self.published {
            return false;
        }
        // Release: pairs with the Acquire in the consumer's `refresh`, which then sees the records' bytes.
        self.memory.indices().tail.store(self.staged, Release);
        self.published = self.staged;
        true
    }

    /// Whether anything was committed that is not published.
    pub const fn is_staged(&self) -> bool {
        self.staged != self.published
    }

    /// Up to where [`Producer::publish`] will have published: the tail to be.
    pub const fn staged(&self) -> u64 {
        self.staged
    }

    /// Ring bytes that a record with `len` bytes of payload takes.
    pub const fn record_bytes(len: usize) -> usize {
        record_bytes(len)
    }

    /// The longest payload that this ring ever takes, bytes: just under half its capacity.
    pub const fn max_record(&self) -> usize {
        max_record(self.memory.capacity())
    }

    /// Capacity of the ring, bytes.
    pub const fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Heads of the consumer that made no sense and were ignored.
    pub const fn faults(&self) -> u64 {
        self.faults
    }

    /// Takes over the consumer's progress, if it is one that a consumer can make.
    fn refresh(&mut self) {
        // Acquire: pairs with the Release in the consumer's `release`; it has finished reading what it freed.
        let head = self.memory.indices().head.load(Acquire);
        if head == self.head {
            // Nothing was freed. A consumer that waits for us because somebody scribbled over our tail would never free any.
            self.mend_tail();
            return;
        }
        let capacity = self.memory.capacity() as u64;
        let released_what_was_published = self.published.wrapping_sub(head) <= capacity;
        let still_fits = self.staged.wrapping_sub(head) <= capacity;
        if released_what_was_published && still_fits && head.is_multiple_of(LINE as u64) {
            self.head = head;
        } else {
            // Keep the last good one: the ring may look full, until the consumer stores a head that makes sense, which
            // it does when it finds the ring empty at the latest.
            self.faults += 1;
            self.mend_tail();
        }
    }

    /// When somebody scribbled over our tail the consumer follows it; only we know the true one.
    fn mend_tail(&mut self) {
        let tail = &self.memory.indices().tail;
        if tail.load(Relaxed) != self.published {
            self.faults += 1;
            // Release: as in `publish`.
            tail.store(self.published, Release);
        }
    }

    fn free(&self) -> usize {
        self.memory.capacity() - self.staged.wrapping_sub(self.head) as usize
    }

    fn to_end(&self) -> usize {
        self.memory.capacity() - self.offset(self.staged)
    }

    fn offset(&self, position: u64) -> usize {
        position as usize & (self.memory.capacity() - 1)
    }
}
