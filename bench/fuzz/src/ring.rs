//! Target `ring`: a ring whose indices and bytes anybody may have written.
//!
//! Operations of twelve bytes: what, one byte, two bytes, eight bytes. As long as only the ends write, the oracle is a
//! queue; as long as only bytes are scribbled over, what is read was published; from the first wrong index on, what is read
//! lies in the ring and has an end. The ring works again afterwards in any case.

use std::collections::VecDeque;

use shm::ring::Scribbled;

use crate::data::Data;

/// Bytes of one operation.
pub(crate) const OP: usize = 12;
/// Operations of one input at most.
const MOST: usize = 128;
const CAPACITY: usize = 1024;
const SET_HEAD: u8 = 12;
const SET_TAIL: u8 = 13;
/// A cache line: what a record takes at least.
const LINE: usize = 64;

/// Any sequence of operations and scribbles.
pub fn ring(data: &[u8]) {
    let mut data = Data::new(data);
    let mut ring = Scribbled::new(CAPACITY as u32);
    let mut oracle = Some(Oracle::default());
    let mut indices_hold = true;
    for number in 0..MOST {
        let Some(op) = data.array::<OP>() else { break };
        let span = ring.tail().wrapping_sub(ring.head());
        let seen = step(&mut ring, &mut oracle, op, number as u8);
        indices_hold &= !matches!(op[0] % 16, SET_HEAD | SET_TAIL);
        assert!(!indices_hold || seen as u64 <= span, "{seen} bytes were read of {span} published");
    }
    if oracle.is_some() {
        assert_eq!(ring.faults(), (0, 0), "nobody scribbled");
    }
    exhaust(&mut ring);
    works_again(&mut ring);
}

/// What a queue would hold.
#[derive(Default)]
struct Oracle {
    staged: VecDeque<Vec<u8>>,
    published: VecDeque<Vec<u8>>,
    /// Of `published`, walked but not released.
    walked: usize,
}

/// Does one thing; how many bytes of the ring the records that it showed take.
fn step(
    ring: &mut Scribbled,
    oracle: &mut Option<Oracle>,
    [what, few, a, b, word @ ..]: [u8; OP],
    number: u8,
) -> usize {
    let small = u16::from_le_bytes([a, b]);
    let word = u64::from_le_bytes(word);
    match what % 16 {
        0..=3 => {
            let payload: Vec<u8> = (0..small % 560).map(|i| number ^ i as u8).collect();
            let credits = ring.credits();
            let pushed = ring.push(&payload);
            let promised =
                payload.len() < CAPACITY / 2 - 8 && shm::Producer::record_bytes(payload.len()) <= credits;
            assert!(pushed || !promised, "{} bytes refused, {credits} credits", payload.len());
            if let (Some(oracle), true) = (oracle.as_mut(), pushed) {
                oracle.staged.push_back(payload);
            }
        }
        4..=5 => {
            let published = ring.publish();
            if let Some(oracle) = oracle {
                assert_eq!(published, !oracle.staged.is_empty());
                oracle.published.append(&mut oracle.staged);
            }
        }
        6..=7 => {
            let found = ring.next();
            if let Some(oracle) = oracle {
                assert_eq!(found, oracle.published.get(oracle.walked).map(Vec::as_slice));
                oracle.walked += usize::from(found.is_some());
            }
            return found.map_or(0, |record| shm::Producer::record_bytes(record.len()));
        }
        8 => {
            ring.release();
            if let Some(oracle) = oracle {
                oracle.published.drain(..std::mem::take(&mut oracle.walked));
            }
        }
        9 => {
            let (look, free) = (usize::from(few % 32), usize::from(a % 32));
            let (mut count, mut bytes) = (0, 0);
            ring.peek(look, free, |record| {
                if let Some(oracle) = oracle.as_ref() {
                    assert_eq!(Some(record), oracle.published.get(oracle.walked + count).map(Vec::as_slice));
                }
                count += 1;
                bytes += shm::Producer::record_bytes(record.len());
            });
            assert!(count <= look && bytes <= CAPACITY, "{count} records of {bytes} bytes");
            if let Some(oracle) = oracle {
                assert_eq!(count, look.min(oracle.published.len() - oracle.walked));
                if free.min(count) > 0 {
                    oracle.published.drain(..oracle.walked + free.min(count));
                    oracle.walked = 0;
                }
            }
            return bytes;
        }
        10 => {
            ring.new_producer();
            if let Some(oracle) = oracle {
                oracle.staged.clear();
            }
        }
        11 => {
            ring.new_consumer();
            if let Some(oracle) = oracle {
                oracle.walked = 0;
            }
        }
        SET_HEAD => {
            *oracle = None;
            ring.set_head(near(ring.head(), few, word));
        }
        SET_TAIL => {
            *oracle = None;
            ring.set_tail(near(ring.tail(), few, word));
        }
        14 => {
            *oracle = None;
            ring.scribble(usize::from(small) % CAPACITY, &word.to_le_bytes()[..usize::from(few % 9)]);
        }
        _ => {
            // A head that passes its seal, with any length.
            *oracle = None;
            let position = ring.head().wrapping_add(u64::from(few % 20) * LINE as u64);
            ring.forge(
                position,
                if few & 0x20 == 0 { u32::from(small) } else { word as u32 },
                few & 0x40 != 0,
            );
        }
    }
    0
}

/// An index a little off, a lap off, or anything.
const fn near(index: u64, how: u8, word: u64) -> u64 {
    match how % 4 {
        0 => index.wrapping_add((word % 40) * LINE as u64),
        1 => index.wrapping_sub((word % 40) * LINE as u64),
        2 => index.wrapping_add(word % 200),
        _ => word,
    }
}

/// Reads all there is, both ways; how much that can be is bounded by the ring's size.
fn exhaust(ring: &mut Scribbled) {
    let bound = 2 * CAPACITY / LINE;
    let (mut records, mut bytes) = (0, 0);
    while let Some(record) = ring.next() {
        records += 1;
        bytes += shm::Producer::record_bytes(record.len());
        assert!(records <= bound && bytes <= 2 * CAPACITY, "{records} records of {bytes} bytes have no end");
    }
    ring.release();
    for _ in 0..3 {
        ring.peek(3, 2, |record| assert!(record.len() <= CAPACITY));
    }
}

/// After whatever happened, a few tries carry a record from one end to the other.
fn works_again(ring: &mut Scribbled) {
    for _ in 0..4 {
        let pushed = ring.push(b"alive");
        ring.publish();
        while let Some(record) = ring.next() {
            if pushed && record == b"alive" {
                return;
            }
        }
        ring.release();
    }
    panic!("the ring is stuck: {ring:?}");
}
