//! The reading end of a ring: look at a batch of records where they lie, then release them with one store.
#![allow(unsafe_code)]

use super::{BATCH_MAX, HEAD, align_down, parse_head, record_bytes};
use crate::memory::Memory;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// The reading end of a ring.
pub struct Consumer {
    memory: Memory,
    /// Walked up to here by `next`.
    cursor: u64,
    /// Our copy of the published head; `released <= cursor <= tail`.
    released: u64,
    /// The producer's tail as last seen and found sensible; `tail - released <= capacity` always.
    tail: u64,
    /// The records of the current batch.
    batch: Box<[Held; BATCH_MAX]>,
    faults: u64,
}

/// A record whose head was checked.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    position: u64,
    len: u32,
}

/// What lies at a position.
enum Look {
    Record(Held),
    /// Nothing but pads up to the tail.
    End,
    /// No record that our producer wrote there.
    Nonsense,
}

impl Held {
    fn end(self) -> u64 {
        self.position.wrapping_add(record_bytes(self.len as usize) as u64)
    }
}

impl Consumer {
    /// Goes on where the ring's released head is.
    pub(crate) fn new(memory: Memory) -> Self {
        // Acquire: pairs with the Release in our predecessor's `release`.
        let head = memory.indices().head.load(Acquire);
        let aligned = align_down(head);
        let faults = u64::from(head != aligned);
        if head != aligned {
            memory.indices().head.store(aligned, Release);
        }
        let batch = Box::new([Held::default(); BATCH_MAX]);
        Self { memory, cursor: aligned, released: aligned, tail: aligned, batch, faults }
    }

    /// The next record's payload, or `None` when the ring is empty. The record is not free before [`Consumer::release`].
    #[expect(clippy::should_implement_trait, reason = "it lends from the ring, which Iterator cannot say")]
    #[inline]
    pub fn next(&mut self) -> Option<&[u8]> {
        if self.is_empty() {
            return None;
        }
        match self.look(self.cursor) {
            Look::Record(held) => {
                self.cursor = held.end();
                Some(self.payload(held))
            }
            Look::End => {
                self.cursor = self.tail;
                None
            }
            Look::Nonsense => {
                self.resynchronise(self.tail);
                None
            }
        }
    }

    /// Publishes that everything walked by [`Consumer::next`] is free again.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.cursor {
            self.store_head();
        }
    }

    /// Looks at the next records, at most `max` (and at most [`BATCH_MAX`]), without walking over them: they come again
    /// unless [`Batch::release`] or [`Batch::release_first`] frees them. They can all be held until then.
    #[inline]
    pub fn peek_batch(&mut self, max: usize) -> Batch<'_> {
        self.refresh();
        let mut count = 0;
        let mut position = self.cursor;
        while count < max.min(BATCH_MAX) && position != self.tail {
            match self.look(position) {
                Look::Record(held) => {
                    self.batch[count] = held;
                    count += 1;
                    position = held.end();
                }
                Look::End => break,
                Look::Nonsense => {
                    // Records found before it are good; it is met again, and counted, when it comes first.
                    if count == 0 {
                        self.resynchronise(self.tail);
                    }
                    break;
                }
            }
        }
        Batch { consumer: self, count }
    }

    /// Whether nothing is published beyond the cursor, as of now.
    pub fn is_empty(&mut self) -> bool {
        self.cursor == self.tail && !self.refresh()
    }

    /// How often bytes made no sense, so that all that was published was skipped.
    pub const fn faults(&self) -> u64 {
        self.faults
    }

    /// Capacity of the ring, bytes.
    pub const fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Looks at the producer's tail; true when there is something beyond the cursor.
    fn refresh(&mut self) -> bool {
        // Acquire: pairs with the Release in the producer's `publish`; the bytes of what it published are there.
        let tail = self.memory.indices().tail.load(Acquire);
        let aligned = align_down(tail);
        let published = aligned.wrapping_sub(self.released);
        let walked = self.cursor.wrapping_sub(self.released);
        let possible = published <= self.memory.capacity() as u64 && published >= walked;
        if possible && (tail == aligned || aligned == self.cursor) {
            self.tail = aligned;
        } else {
            self.resynchronise(aligned);
        }
        if self.tail == self.released && self.memory.indices().head.load(Relaxed) != self.released {
            // Somebody scribbled over our head. The producer ignores what makes no sense and may take the ring for full;
            // nothing else would ever correct it when nothing comes.
            self.store_head();
        }
        self.cursor != self.tail
    }

    /// Finds the record at `position`, which is before the tail, or behind the pads there. Reads each head once and
    /// believes nothing of it that leads out of the published span.
    fn look(&self, mut position: u64) -> Look {
        while position != self.tail {
            let offset = position as usize & (self.memory.capacity() - 1);
            let to_end = self.memory.capacity() - offset;
            let span = self.tail.wrapping_sub(position).min(to_end as u64) as usize;
            // SAFETY: `position` lies between released and tail, so the bytes are the consumer's since the Acquire in
            // `refresh`; positions are multiples of a line.
            let word = unsafe { self.memory.read_head(offset) };
            let Some((len, pad)) = parse_head(position, word) else { return Look::Nonsense };
            let bytes = record_bytes(len as usize);
            if bytes > span || (pad && bytes != to_end) {
                return Look::Nonsense;
            }
            let held = Held { position, len };
            if !pad {
                return Look::Record(held);
            }
            position = held.end();
        }
        Look::End
    }

    fn payload(&self, held: Held) -> &[u8] {
        let offset = held.position as usize & (self.memory.capacity() - 1);
        // SAFETY: `look` found the record within the published span and before the ring's end. The producer does not
        // write there until `store_head` releases it, which takes `&mut self` and so ends this borrow.
        unsafe { self.memory.read(offset + HEAD, held.len as usize) }
    }

    #[cold]
    fn resynchronise(&mut self, tail: u64) {
        self.faults += 1;
        self.tail = tail;
        self.cursor = tail;
        self.store_head();
    }

    fn store_head(&mut self) {
        // Release: pairs with the Acquire in the producer's `refresh`; our reads of what is freed come before.
        self.memory.indices().head.store(self.cursor, Release);
        self.released = self.cursor;
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the batch's 256 places.
        f.debug_struct("Consumer")
            .field("memory", &self.memory)
            .field("cursor", &self.cursor)
            .field("released", &self.released)
            .field("tail", &self.tail)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// Some records, looked at where they lie in the ring. Dropping it frees nothing: they come again.
#[derive(Debug)]
pub struct Batch<'c> {
    consumer: &'c mut Consumer,
    count: usize,
}

impl Batch<'_> {
    /// How many records.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The payload of record `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let held = self.consumer.batch[..self.count].get(index)?;
        Some(self.consumer.payload(*held))
    }

    /// The records' payloads, oldest first.
    pub fn iter(&self) -> Records<'_> {
        Records { consumer: self.consumer, left: self.consumer.batch[..self.count].iter() }
    }

    /// Where record `index` begins, counted in ring bytes: names it for good.
    pub fn position(&self, index: usize) -> Option<u64> {
        self.consumer.batch[..self.count].get(index).map(|held| held.position)
    }

    /// The head that freeing the first `n` records leaves.
    pub fn head_after(&self, n: usize) -> u64 {
        n.min(self.count)
            .checked_sub(1)
            .map_or(self.consumer.released, |last| self.consumer.batch[last].end())
    }

    /// Frees all records of the batch, seen or not.
    pub fn release(self) {
        let count = self.count;
        self.release_first(count);
    }

    /// Frees the first `n` records (all of them when there are fewer); the others come again.
    pub fn release_first(mut self, n: usize) {
        self.free_first(n);
    }

    /// Frees the first `n` records (all of them when there are fewer), and keeps the batch: the others can still be looked at.
    pub fn free_first(&mut self, n: usize) {
        if let Some(last) = n.min(self.count).checked_sub(1) {
            self.consumer.cursor = self.consumer.batch[last].end();
            self.consumer.store_head();
        }
    }
}

impl<'b> IntoIterator for &'b Batch<'_> {
    type Item = &'b [u8];
    type IntoIter = Records<'b>;

    fn into_iter(self) -> Records<'b> {
        self.iter()
    }
}

/// The payloads of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Records<'b> {
    consumer: &'b Consumer,
    left: std::slice::Iter<'b, Held>,
}

impl<'b> Iterator for Records<'b> {
    type Item = &'b [u8];

    #[inline]
    fn next(&mut self) -> Option<&'b [u8]> {
        let held = self.left.next()?;
        Some(self.consumer.payload(*held))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.left.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}
