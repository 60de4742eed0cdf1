//! One ring on the heap, mostly with both ends in one thread, so that every sequence can be repeated. Miri can follow:
//!
//! ```text
//! rustup +nightly component add miri rust-src
//! MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR=target/miri cargo +nightly miri test -p shm --lib -- ring:: doorbell
//! ```
//!
//! The oracle is rtrb with one slot a line: a ring of ours is exactly as full as that, pads included.
#![allow(unsafe_code)]

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;

/// Few cases under Miri (each takes seconds there), and no files.
fn cases(count: u32) -> Config {
    if cfg!(miri) {
        Config { cases: 3, failure_persistence: None, ..Config::default() }
    } else {
        Config::with_cases(count)
    }
}

fn payload(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (number * 31 + i * 7) as u8).collect()
}

/// Both ends over the same memory, and that memory.
fn ends(capacity: usize) -> (Producer, Consumer, Memory) {
    let memory = Memory::heap(capacity);
    (Producer::new(memory.clone()), Consumer::new(memory.clone()), memory)
}

#[test]
fn a_full_ring_whose_tail_was_overwritten_is_not_stuck() {
    let (mut producer, mut consumer, memory) = ends(1024);
    while producer.push(&[]) {}
    producer.publish();
    memory.indices().tail.store(0, Relaxed);
    assert!(consumer.next().is_none());
    // Full for the producer, empty for the consumer: only the producer knows better.
    assert_eq!((producer.credits(), producer.faults()), (0, 1));
    assert!(consumer.next().is_some());
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let (mut producer, mut consumer) = heap(1024);
    assert!(producer.push(b"one") && producer.push(b"two"));
    assert_eq!(consumer.next(), None);
    assert!(producer.publish());
    assert!(!producer.publish(), "a second time there is nothing new");
    assert_eq!(consumer.next(), Some(&b"one"[..]));
    assert_eq!(consumer.next(), Some(&b"two"[..]));
    assert_eq!(consumer.next(), None);
}

#[test]
fn a_record_is_free_again_only_when_released() {
    let (mut producer, mut consumer) = heap(256);
    for _ in 0..4 {
        assert!(producer.push(&[7; 56]));
    }
    assert!(!producer.push(&[]), "four lines are four records");
    producer.publish();
    assert!(consumer.next().is_some());
    assert!(!producer.push(&[]), "walked is not released");
    consumer.release();
    assert!(producer.push(&[]));
}

#[test]
fn a_commit_may_be_shorter_than_its_reserve() {
    let (mut producer, mut consumer) = heap(1024);
    let room = producer.reserve(400).unwrap();
    room[..5].copy_from_slice(b"short");
    producer.commit(5);
    producer.publish();
    assert_eq!(consumer.next(), Some(&b"short"[..]));
    assert_eq!(producer.credits(), 1024 - 64);
}

#[test]
fn the_longest_record_fits_at_every_position() {
    for lines_before in 0..16 {
        let (mut producer, mut consumer) = heap(1024);
        for _ in 0..lines_before {
            assert!(producer.push(&[]));
        }
        producer.publish();
        while consumer.next().is_some() {}
        consumer.release();
        let longest = vec![3; producer.max_record()];
        assert!(producer.push(&longest), "behind {lines_before} lines");
        producer.publish();
        assert_eq!(consumer.next(), Some(&longest[..]));
        assert!(producer.reserve(producer.max_record() + 1).is_none());
    }
}

#[test]
fn all_records_of_a_batch_can_be_held_and_some_released() {
    let (mut producer, mut consumer) = heap(4096);
    for number in 0..5 {
        assert!(producer.push(&payload(number, number * 60)));
    }
    producer.publish();
    let batch = consumer.peek_batch(4);
    let held: Vec<&[u8]> = batch.iter().collect();
    assert_eq!(held.len(), 4);
    assert!(held.iter().enumerate().all(|(number, bytes)| *bytes == payload(number, number * 60)));
    batch.release_first(3);
    let batch = consumer.peek_batch(usize::MAX);
    assert_eq!(batch.len(), 2);
    assert_eq!(batch.get(0), Some(&payload(3, 180)[..]));
    assert_eq!(consumer.peek_batch(9).len(), 2, "a batch that is only looked at frees nothing");
    consumer.peek_batch(9).release();
    assert!(consumer.is_empty());
}

#[test]
fn a_successor_of_the_consumer_gets_what_was_not_released() {
    let (mut producer, mut consumer, memory) = ends(1024);
    for number in 0..3 {
        producer.push(&payload(number, 10));
    }
    producer.publish();
    consumer.next();
    consumer.release();
    consumer.next();
    let mut successor = Consumer::new(memory);
    assert_eq!(successor.next(), Some(&payload(1, 10)[..]));
    assert_eq!(successor.next(), Some(&payload(2, 10)[..]));
}

#[test]
fn a_successor_of_the_producer_goes_on_behind_what_was_published() {
    let (mut producer, mut consumer, memory) = ends(1024);
    producer.push(b"published");
    producer.publish();
    producer.push(b"committed only");
    let mut successor = Producer::new(memory);
    successor.push(b"successor's");
    successor.publish();
    assert_eq!(consumer.next(), Some(&b"published"[..]));
    assert_eq!(consumer.next(), Some(&b"successor's"[..]));
    assert_eq!(consumer.next(), None);
}

#[test]
fn a_batch_ends_before_nonsense_and_the_next_one_skips_it() {
    let (mut producer, mut consumer, memory) = ends(1024);
    for number in 0..3 {
        producer.push(&payload(number, 10));
    }
    producer.publish();
    // SAFETY: one thread; no slice of the ring is alive.
    unsafe { memory.write_head(64, 0xdead_beef) };
    let batch = consumer.peek_batch(9);
    assert_eq!((batch.len(), batch.get(0)), (1, Some(&payload(0, 10)[..])));
    batch.release();
    assert_eq!(consumer.faults(), 0);
    assert!(consumer.peek_batch(9).is_empty());
    assert_eq!(consumer.faults(), 1);
    producer.push(b"after");
    producer.publish();
    assert_eq!(consumer.next(), Some(&b"after"[..]));
}

#[test]
fn a_record_of_an_earlier_lap_is_not_taken_for_a_new_one() {
    let (mut producer, mut consumer, memory) = ends(256);
    for _ in 0..4 {
        producer.push(b"old");
    }
    producer.publish();
    consumer.peek_batch(9).release();
    // A tail that moved on although nothing was written.
    memory.indices().tail.store(512, Relaxed);
    assert_eq!(consumer.next(), None);
    assert_eq!(consumer.faults(), 1);
}

#[test]
fn a_scribbled_head_blocks_the_producer_only_until_the_consumer_looks() {
    let (mut producer, mut consumer, memory) = ends(256);
    memory.indices().head.store(1 << 50, Relaxed);
    for _ in 0..4 {
        assert!(producer.push(&[]));
    }
    assert!(!producer.push(&[]));
    assert!(producer.faults() > 0);
    producer.publish();
    consumer.peek_batch(9).release();
    assert!(producer.push(&[]));

    memory.indices().head.store(3, Relaxed);
    assert!(consumer.next().is_none());
    assert_eq!(memory.indices().head.load(Relaxed), 256, "an idle consumer repairs its head");
}

/// Found by `both_ends_survive_any_bytes_under_way`: the consumer followed the false tail, and each end waited for the other.
#[test]
fn a_scribbled_tail_of_a_full_ring_does_not_block_it_for_ever() {
    let (mut producer, mut consumer, memory) = ends(1024);
    while producer.push(&[]) {}
    producer.publish();
    memory.indices().tail.store(1024 + 64, Relaxed);
    assert!(consumer.next().is_none());
    assert!(!producer.push(b"refused, but it repairs the tail"));
    assert!(consumer.next().is_none());
    assert!(producer.push(b"alive") && producer.publish());
    assert_eq!(consumer.next(), Some(&b"alive"[..]));
}

#[test]
fn depth_is_what_is_published_and_not_released() {
    let (mut producer, mut consumer, memory) = ends(1024);
    producer.push(&[0; 100]);
    assert_eq!(memory.indices().depth(1024), 0);
    producer.publish();
    assert_eq!(memory.indices().depth(1024), 128);
    consumer.next();
    consumer.release();
    assert_eq!(memory.indices().depth(1024), 0);
    memory.indices().head.store(u64::MAX, Relaxed);
    assert!(memory.indices().depth(1024) <= 1024);
}

#[test]
#[should_panic(expected = "commit follows a reserve")]
fn a_commit_without_a_reserve_is_a_bug() {
    heap(1024).0.commit(0);
}

#[test]
#[should_panic(expected = "committed 11 bytes of 10 reserved")]
fn a_commit_longer_than_its_reserve_is_a_bug() {
    let (mut producer, _consumer) = heap(1024);
    producer.reserve(10);
    producer.commit(11);
}

#[test]
#[should_panic(expected = "power of two")]
fn a_ring_of_an_odd_size_is_a_bug() {
    heap(1000);
}

/// Both ends asleep when there is nothing to do, as processes are; under Miri this looks for data races.
#[test]
fn two_threads_pass_records_on() {
    use crate::Doorbell;
    use std::time::{Duration, Instant};

    const LOST: Duration = Duration::from_secs(60);
    let records = if cfg!(miri) { 60 } else { 50_000 };
    let (mut producer, mut consumer) = heap(512);
    let (data, room) = (Doorbell::new(), Doorbell::new());
    let sleep_until = |bell: &Doorbell, ready: &mut dyn FnMut() -> bool| {
        let since = Instant::now();
        while !ready() {
            let ticket = bell.prepare();
            // Once it is ready it is not asked again: that would do it twice.
            if ready() {
                return bell.cancel();
            }
            bell.wait(ticket, LOST);
            assert!(since.elapsed() < LOST, "a wake-up was lost");
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..records {
                let bytes = payload(number, number % 200);
                sleep_until(&room, &mut || producer.push(&bytes));
                producer.publish();
                data.ring();
            }
        });
        let mut expected = 0;
        while expected < records {
            sleep_until(&data, &mut || !consumer.is_empty());
            let batch = consumer.peek_batch(3);
            for record in &batch {
                assert_eq!(record, payload(expected, expected % 200));
                expected += 1;
            }
            batch.release();
            room.ring();
        }
    });
}

/// What is done to both rings.
#[derive(Clone, Debug)]
enum Op {
    /// Reserve the first, commit the second (never more).
    Push(usize, usize),
    Publish,
    Next,
    Release,
    /// Look at so many, free so many of them.
    Peek(usize, usize),
    Credits,
    NewProducer,
    NewConsumer,
}

fn op(capacity: usize) -> impl Strategy<Value = Op> {
    let len = prop_oneof![3 => 0..57usize, 2 => 0..max_record(capacity) + 1, 1 => 0..capacity];
    prop_oneof![
        8 => (len, 0..=8usize).prop_map(|(len, eighths)| Op::Push(len, len * eighths / 8)),
        4 => Just(Op::Publish),
        6 => Just(Op::Next),
        3 => Just(Op::Release),
        3 => (0..9usize, 0..9usize).prop_map(|(look, free)| Op::Peek(look, free)),
        2 => Just(Op::Credits),
        1 => Just(Op::NewProducer),
        1 => Just(Op::NewConsumer),
    ]
}

fn capacity_and_ops() -> impl Strategy<Value = (usize, Vec<Op>)> {
    let longest = if cfg!(miri) { 60 } else { 400 };
    (1..6u32).prop_flat_map(move |power| {
        let capacity = LINE << power;
        (Just(capacity), prop::collection::vec(op(capacity), 1..longest))
    })
}

/// What stands in one line of the oracle's ring.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    First(Vec<u8>, usize),
    Filler,
}

/// The same ring as told by rtrb, one slot a line.
struct Oracle {
    capacity: usize,
    producer: rtrb::Producer<Slot>,
    consumer: rtrb::Consumer<Slot>,
    staged: Vec<Slot>,
    /// Lines ever published.
    published: usize,
    /// Lines at the front that the consumer walked over.
    walked: usize,
}

impl Oracle {
    fn new(capacity: usize) -> Self {
        let (producer, consumer) = rtrb::RingBuffer::new(capacity / LINE);
        Self { capacity, producer, consumer, staged: Vec::new(), published: 0, walked: 0 }
    }

    fn push(&mut self, reserve: usize, bytes: &[u8]) -> bool {
        let lines = self.capacity / LINE;
        let offset = (self.published + self.staged.len()) % lines;
        let need = (reserve + HEAD).div_ceil(LINE);
        let pad = if offset + need > lines { lines - offset } else { 0 };
        if reserve > max_record(self.capacity) || self.producer.slots() - self.staged.len() < pad + need {
            return false;
        }
        self.staged.extend(std::iter::repeat_n(Slot::Filler, pad));
        let taken = (bytes.len() + HEAD).div_ceil(LINE);
        self.staged.push(Slot::First(bytes.to_vec(), taken));
        self.staged.extend(std::iter::repeat_n(Slot::Filler, taken - 1));
        true
    }

    fn publish(&mut self) -> bool {
        let any = !self.staged.is_empty();
        self.published += self.staged.len();
        for slot in self.staged.drain(..) {
            self.producer.push(slot).expect("push made sure of the slots");
        }
        any
    }

    /// Records from the walked position on, each with the number of lines up to its end.
    fn ahead(&mut self) -> VecDeque<(Vec<u8>, usize)> {
        let slots = self.consumer.slots();
        let chunk = self.consumer.read_chunk(slots).expect("as many as there are");
        let (left, right) = chunk.as_slices();
        left.iter()
            .chain(right)
            .enumerate()
            .skip(self.walked)
            .filter_map(|(at, slot)| match slot {
                Slot::First(bytes, lines) => Some((bytes.clone(), at + lines)),
                Slot::Filler => None,
            })
            .collect()
    }

    fn free(&mut self, lines: usize) {
        self.consumer.read_chunk(lines).expect("walked over already").commit_all();
        self.walked = 0;
    }
}

fn both_agree(capacity: usize, ops: Vec<Op>) {
    let (mut producer, mut consumer, memory) = ends(capacity);
    let mut oracle = Oracle::new(capacity);
    for (number, op) in ops.into_iter().enumerate() {
        match op {
            Op::Push(reserve, commit) => {
                let bytes = payload(number, commit);
                let room = producer.reserve(reserve);
                assert_eq!(room.is_some(), oracle.push(reserve, &bytes), "push {reserve} at {number}");
                if let Some(room) = room {
                    assert_eq!(room.len(), reserve);
                    room[..commit].copy_from_slice(&bytes);
                    producer.commit(commit);
                }
            }
            Op::Publish => assert_eq!(producer.publish(), oracle.publish()),
            Op::Next => {
                let expected = oracle.ahead().pop_front();
                assert_eq!(
                    consumer.next(),
                    expected.as_ref().map(|(bytes, _)| &bytes[..]),
                    "next at {number}"
                );
                if let Some((_, end)) = expected {
                    oracle.walked = end;
                }
            }
            Op::Release => {
                consumer.release();
                oracle.free(oracle.walked);
            }
            Op::Peek(look, free) => {
                let expected = oracle.ahead();
                let batch = consumer.peek_batch(look);
                assert_eq!(batch.len(), look.min(expected.len()), "peek at {number}");
                assert!(batch.iter().zip(&expected).all(|(found, (bytes, _))| found == bytes));
                let freed = free.min(batch.len());
                batch.release_first(free);
                if freed > 0 {
                    oracle.free(expected[freed - 1].1);
                }
            }
            Op::Credits => {
                let credits = producer.credits();
                assert!(credits <= (oracle.producer.slots() - oracle.staged.len()) * LINE);
            }
            Op::NewProducer => {
                producer = Producer::new(memory.clone());
                oracle.staged.clear();
            }
            Op::NewConsumer => {
                consumer = Consumer::new(memory.clone());
                oracle.walked = 0;
            }
        }
    }
    assert_eq!((producer.faults(), consumer.faults()), (0, 0));
}

/// Lays the ring's state out at will: indices, then bytes, a share of them heads that would pass their seal.
#[derive(Clone, Debug)]
struct Damage {
    head: u64,
    tail: u64,
    bytes: Vec<u8>,
    heads: Vec<(u64, u32, bool)>,
}

fn damage(capacity: usize) -> impl Strategy<Value = Damage> {
    let position = prop_oneof![
        any::<u64>(),
        (0..64u64).prop_map(|line| line * LINE as u64),
        (0..64u64).prop_map(|line| (line * LINE as u64).wrapping_sub(1024)),
    ];
    let span = prop_oneof![any::<u64>(), (0..64u64).prop_map(|line| line * LINE as u64)];
    let len = prop_oneof![any::<u32>(), 0..capacity as u32 + 9];
    (
        position,
        span,
        prop::collection::vec(any::<u8>(), 0..capacity),
        prop::collection::vec((0..64u64, len, any::<bool>()), 0..20),
    )
        .prop_map(|(head, span, bytes, heads)| Damage {
            head,
            tail: head.wrapping_add(span),
            bytes,
            heads,
        })
}

fn apply(memory: &Memory, damage: &Damage) {
    memory.indices().head.store(damage.head, Relaxed);
    memory.indices().tail.store(damage.tail, Relaxed);
    // SAFETY: one thread; no slice of the ring is alive.
    unsafe { memory.write(0, damage.bytes.len()) }.copy_from_slice(&damage.bytes);
    for (line, len, pad) in &damage.heads {
        let position = align_down(damage.head).wrapping_add(line * LINE as u64);
        let at = position as usize & (memory.capacity() - 1);
        // SAFETY: as above.
        unsafe { memory.write_head(at, head_word(position, len & 0x7fff_ffff, *pad)) };
    }
}

/// Reads all that can be read; the time it may take is bounded by the ring's size.
fn exhaust(consumer: &mut Consumer, capacity: usize) {
    let bound = 2 * capacity / LINE;
    let mut records = 0;
    let mut bytes = 0;
    while let Some(record) = consumer.next() {
        records += 1;
        bytes += record_bytes(record.len());
        assert!(records <= bound && bytes <= 2 * capacity, "more records than bytes for them");
    }
    consumer.release();
    for _ in 0..bound {
        let batch = consumer.peek_batch(3);
        assert!(batch.iter().map(|record| record_bytes(record.len())).sum::<usize>() <= capacity);
        batch.release_first(2);
    }
}

/// After whatever happened, a few tries carry a record from one end to the other.
fn works_again(producer: &mut Producer, consumer: &mut Consumer) {
    for _ in 0..4 {
        let pushed = producer.push(b"alive");
        producer.publish();
        while let Some(record) = consumer.next() {
            if pushed && record == b"alive" {
                return;
            }
        }
        consumer.release();
    }
    panic!("the ring is stuck: {producer:?} {consumer:?}");
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn any_sequence_of_operations_gives_what_rtrb_gives((capacity, ops) in capacity_and_ops()) {
        both_agree(capacity, ops);
    }

    #[test]
    fn credits_are_kept(before in 0..16usize, drained in 0..16usize, lens in prop::collection::vec(0..600usize, 1..20)) {
        let (mut producer, mut consumer) = heap(1024);
        // Anywhere in the ring, with some of it taken.
        for _ in 0..before {
            producer.push(&[]);
        }
        producer.publish();
        consumer.peek_batch(drained).release();
        let mut left = producer.credits();
        for len in lens {
            let bytes = Producer::record_bytes(len);
            if bytes <= left && len <= producer.max_record() {
                prop_assert!(producer.push(&payload(1, len)), "{bytes} of {left} credits");
                left -= bytes;
            }
        }
    }

    #[test]
    fn a_reader_survives_any_bytes(damage in damage(1024)) {
        let (_, mut consumer, memory) = ends(1024);
        apply(&memory, &damage);
        exhaust(&mut consumer, 1024);
        let mut successor = Producer::new(memory.clone());
        works_again(&mut successor, &mut consumer);
    }

    #[test]
    fn a_new_reader_survives_any_bytes(damage in damage(1024)) {
        let memory = Memory::heap(1024);
        apply(&memory, &damage);
        let mut consumer = Consumer::new(memory.clone());
        exhaust(&mut consumer, 1024);
        let mut producer = Producer::new(memory);
        works_again(&mut producer, &mut consumer);
    }

    #[test]
    fn both_ends_survive_any_bytes_under_way(ops in prop::collection::vec(op(1024), 0..40), damage in damage(1024)) {
        let (mut producer, mut consumer, memory) = ends(1024);
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Push(len, _) => { producer.push(&payload(number, len)); }
                Op::Publish => { producer.publish(); }
                Op::Next => { consumer.next(); }
                Op::Release => consumer.release(),
                Op::Peek(look, free) => consumer.peek_batch(look).release_first(free),
                Op::Credits => { producer.credits(); }
                Op::NewProducer | Op::NewConsumer => apply(&memory, &damage),
            }
        }
        apply(&memory, &damage);
        producer.push(b"over it");
        producer.publish();
        exhaust(&mut consumer, 1024);
        works_again(&mut producer, &mut consumer);
    }
}
