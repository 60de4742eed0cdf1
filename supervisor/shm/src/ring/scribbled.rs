//! A ring with both ends and a hand that writes anything anywhere in it: what a damaged or hostile process of the same user
//! could do. For fuzzing only (feature `scribble`); no slice of the ring outlives a call, so the hand is safe.
#![allow(unsafe_code)]

use super::{Consumer, Producer, align_down, head_word};
use crate::memory::Memory;
use crate::sync::Ordering::Relaxed;

/// A ring on the heap, both its ends, and its memory.
#[derive(Debug)]
pub struct Scribbled {
    memory: Memory,
    producer: Producer,
    consumer: Consumer,
    /// Faults of the ends that were replaced.
    past: (u64, u64),
}

impl Scribbled {
    /// An empty ring. `capacity` as for [`super::heap`].
    pub fn new(capacity: u32) -> Self {
        let memory = super::on_heap(capacity);
        let (producer, consumer) = (Producer::new(memory.clone()), Consumer::new(memory.clone()));
        Self { memory, producer, consumer, past: (0, 0) }
    }

    /// [`Producer::credits`].
    pub fn credits(&mut self) -> usize {
        self.producer.credits()
    }

    /// [`Producer::push`].
    pub fn push(&mut self, payload: &[u8]) -> bool {
        self.producer.push(payload)
    }

    /// [`Producer::publish`].
    pub fn publish(&mut self) -> bool {
        self.producer.publish()
    }

    /// [`Consumer::next`].
    #[expect(clippy::should_implement_trait, reason = "it lends from the ring, which Iterator cannot say")]
    pub fn next(&mut self) -> Option<&[u8]> {
        self.consumer.next()
    }

    /// [`Consumer::release`].
    pub fn release(&mut self) {
        self.consumer.release();
    }

    /// Shows the records of a batch of at most `max`, then frees the first `free` of them.
    pub fn peek(&mut self, max: usize, free: usize, look: impl FnMut(&[u8])) {
        let batch = self.consumer.peek_batch(max);
        batch.iter().for_each(look);
        batch.release_first(free);
    }

    /// The producer dies and a successor takes over.
    pub fn new_producer(&mut self) {
        self.past.0 += self.producer.faults();
        self.producer = Producer::new(self.memory.clone());
    }

    /// The consumer dies and a successor takes over.
    pub fn new_consumer(&mut self) {
        self.past.1 += self.consumer.faults();
        self.consumer = Consumer::new(self.memory.clone());
    }

    /// Faults that producers and consumers met.
    pub fn faults(&self) -> (u64, u64) {
        (self.past.0 + self.producer.faults(), self.past.1 + self.consumer.faults())
    }

    /// The consumer's index as it stands in memory.
    pub fn head(&self) -> u64 {
        self.memory.indices().head.load(Relaxed)
    }

    /// The producer's index as it stands in memory.
    pub fn tail(&self) -> u64 {
        self.memory.indices().tail.load(Relaxed)
    }

    /// Overwrites the consumer's index.
    pub fn set_head(&mut self, head: u64) {
        self.memory.indices().head.store(head, Relaxed);
    }

    /// Overwrites the producer's index.
    pub fn set_tail(&mut self, tail: u64) {
        self.memory.indices().tail.store(tail, Relaxed);
    }

    /// Overwrites bytes of the ring from offset `at` on, as far as it reaches.
    pub fn scribble(&mut self, at: usize, bytes: &[u8]) {
        let at = at.min(self.memory.capacity());
        let len = bytes.len().min(self.memory.capacity() - at);
        // SAFETY: both ends are ours, in this thread, and `&mut self` ends every slice they lent.
        unsafe { self.memory.write(at, len) }.copy_from_slice(&bytes[..len]);
    }

    /// Writes a head with a valid seal to a position, with any length (31 bits).
    pub fn forge(&mut self, position: u64, len: u32, pad: bool) {
        let position = align_down(position);
        let at = position as usize & (self.memory.capacity() - 1);
        // SAFETY: as in `scribble`; `at` is a multiple of a line.
        unsafe { self.memory.write_head(at, head_word(position, len & 0x7fff_ffff, pad)) };
    }
}
