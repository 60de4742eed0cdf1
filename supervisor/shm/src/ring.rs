//! SPSC byte ring of variable records: one producer process, one consumer process, no lock, no wait.
//!
//! ```text
//!            released            published        staged
//!   ...free...  |  records ...       |  being written |  ...free...
//!             head (consumer)      tail (producer)
//! ```
//! Positions are absolute byte counts that never wrap in practice; a position's offset is its low bits. A record is an
//! 8-byte head and its payload, contiguous, rounded up to 64 bytes; one that does not fit before the ring's end is
//! preceded by a pad record that fills up to it. The producer owns the bytes from tail to head + capacity, the consumer
//! those from head to tail. `tail` is stored with Release by [`Producer::publish`] and loaded with Acquire by the
//! consumer; `head` is stored with Release by [`Consumer::release`] and loaded with Acquire by the producer.
//!
//! Neither end trusts the other's bytes. A record's head carries a seal made of its position, so that bytes of an earlier
//! lap are not taken for a record; each head is read once, its length checked against the published span; indices are
//! checked against the capacity. What makes no sense is counted as a fault and the ring resynchronises to its tail.
//! (Held payload is handed out as plain slices. That is sound because a writer owns only what was released; a process of
//! the same user that writes there regardless can garble payload, never lengths or bounds.)
//!
//! A restarted consumer goes on at `head`: what its predecessor walked but did not release comes again. A restarted
//! producer goes on at `tail`: what was committed but not published never was.
#![allow(unsafe_code)]

mod consumer;
mod producer;
#[cfg(all(feature = "scribble", not(loom)))]
mod scribbled;
mod waiting;

use crossbeam_utils::CachePadded;

pub use consumer::{Batch, Consumer, Records};
pub use producer::Producer;
#[cfg(all(feature = "scribble", not(loom)))]
pub use scribbled::Scribbled;
pub use waiting::Waiting;

use crate::memory::Memory;
use crate::sync::AtomicU64;
#[cfg(not(loom))]
use crate::sync::Ordering::Relaxed;

/// Alignment of records, bytes: a cache line, so that two records never share one.
pub(crate) const LINE: usize = 64;
/// Bytes of a record's head.
pub(crate) const HEAD: usize = 8;
/// The most records one [`Consumer::peek_batch`] hands out.
pub const BATCH_MAX: usize = 256;
/// Smallest ring, bytes.
pub const MIN_CAPACITY: u32 = 2 * LINE as u32;
/// Largest ring, bytes: lengths have 31 bits.
pub const MAX_CAPACITY: u32 = 1 << 30;

/// The two positions, each on a line pair of its own (128 bytes: the prefetcher fetches lines in pairs).
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Indices {
    /// Published up to here; the producer's.
    pub(crate) tail: CachePadded<AtomicU64>,
    /// Released up to here; the consumer's.
    pub(crate) head: CachePadded<AtomicU64>,
}

impl Indices {
    /// Published and not yet released, bytes; never more than `capacity`, whatever the indices hold.
    #[cfg(not(loom))]
    pub(crate) fn depth(&self, capacity: u64) -> u64 {
        let head = self.head.load(Relaxed);
        let tail = self.tail.load(Relaxed);
        let depth = tail.wrapping_sub(head);
        // A head read just before the tail moved on can make the depth too large by a little, nonsense by a lot.
        depth.min(capacity)
    }
}

/// Ring bytes that a record with `len` bytes of payload takes: head and payload, rounded up to whole lines.
pub const fn record_bytes(len: usize) -> usize {
    (HEAD + len).next_multiple_of(LINE)
}

/// The longest payload that a ring of this capacity takes at any position: with its pad it fits even when it starts
/// just too late to fit before the end.
pub const fn max_record(capacity: usize) -> usize {
    capacity / 2 - HEAD
}

/// A ring on the heap, for two threads of one process. `capacity` in bytes, a power of two.
///
/// Panics when the capacity is not a power of two between [`MIN_CAPACITY`] and [`MAX_CAPACITY`].
pub fn heap(capacity: u32) -> (Producer, Consumer) {
    let memory = on_heap(capacity);
    (Producer::new(memory.clone()), Consumer::new(memory))
}

fn on_heap(capacity: u32) -> Memory {
    assert!(
        capacity.is_power_of_two() && (MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity),
        "a ring's capacity is a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}, not {capacity}"
    );
    Memory::heap(capacity as usize)
}

/// The head of a record: payload length (31 bits), pad bit, seal.
pub(crate) fn head_word(position: u64, len: u32, pad: bool) -> u64 {
    u64::from(len) | u64::from(pad) << 31 | u64::from(seal(position)) << 32
}

/// What a head word says at this position: length and whether it is a pad; `None` when its seal is not this position's.
pub(crate) fn parse_head(position: u64, word: u64) -> Option<(u32, bool)> {
    let (low, seal_found) = (word as u32, (word >> 32) as u32);
    (seal_found == seal(position)).then_some((low & 0x7fff_ffff, low >> 31 != 0))
}

/// A copy of the record at a position, if one of that position's seal stands there. For who looks at a ring that nobody
/// writes or reads.
#[cfg(not(loom))]
pub(crate) fn copy_record(memory: &Memory, position: u64) -> Option<Vec<u8>> {
    let offset = align_down(position) as usize & (memory.capacity() - 1);
    // SAFETY: the caller looks while nobody writes; in bounds, since both are multiples of a line.
    let word = unsafe { memory.read_head(offset) };
    let (len, pad) = parse_head(position, word)?;
    let fits = !pad && record_bytes(len as usize) <= memory.capacity() - offset;
    // SAFETY: as above; the length was checked against the ring's end.
    fits.then(|| unsafe { memory.read(offset + HEAD, len as usize) }.to_vec())
}

const fn align_down(position: u64) -> u64 {
    position & !(LINE as u64 - 1)
}

/// Differs from lap to lap and from line to line (multiplicative hashing, odd constant, so no two of 2^32 lines agree),
/// and is not zero for the first lines of a fresh ring.
fn seal(position: u64) -> u32 {
    ((position / LINE as u64) as u32).wrapping_mul(0x9E37_79B1) ^ 0x7477_696E
}

#[cfg(all(test, not(loom)))]
mod tests;
