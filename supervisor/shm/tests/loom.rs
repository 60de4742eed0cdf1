//! The orderings, checked by loom in every interleaving it can find: ring bytes are seen only after they were published
//! and overwritten only after they were released; a sleeper is always woken.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p shm --release --test loom
//! ```
//! Loom watches the ring's lines, not its bytes: an access that does not happen after the other end's last one fails. Its
//! futex has no timeout, so that a lost wake-up is a deadlock. Neither end spins; whoever finds nothing gives up or sleeps.
#![cfg(loom)]

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;
use shm::{Consumer, Doorbell, Producer, ring};

const FOR_EVER: Duration = Duration::MAX;

/// Preemptions at most in one execution where there are too many otherwise; two or three find nearly all bugs (loom's
/// manual).
fn bounded(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

fn push(producer: &mut Producer, number: u8) -> bool {
    producer.push(&[number; 8])
}

/// All that is there, each record whole.
fn drain(consumer: &mut Consumer, seen: &mut Vec<u8>) {
    while let Some(record) = consumer.next() {
        assert_eq!(record, [record[0]; 8]);
        let number = record[0];
        seen.push(number);
        consumer.release();
    }
}

#[test]
fn records_arrive_in_order_through_two_laps() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::heap(128);
        let writer = thread::spawn(move || {
            let mut pushed = 0;
            for number in 0..4 {
                if push(&mut producer, number) {
                    producer.publish();
                    pushed += 1;
                } else {
                    // Full: what follows would leave a gap.
                    break;
                }
            }
            pushed
        });
        let mut seen = Vec::new();
        for _ in 0..3 {
            drain(&mut consumer, &mut seen);
        }
        let pushed = writer.join().unwrap();
        drain(&mut consumer, &mut seen);
        assert_eq!(seen, (0..pushed).collect::<Vec<u8>>());
        assert_eq!(consumer.faults(), 0);
    });
}

#[test]
fn a_batch_becomes_visible_as_a_whole() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::heap(256);
        let writer = thread::spawn(move || {
            assert!(push(&mut producer, 0) && push(&mut producer, 1));
            producer.publish();
            assert!(push(&mut producer, 2));
            // Two lines: a pad first, if there is room at all.
            if producer.push(&[3; 100]) {
                producer.publish();
            }
        });
        for _ in 0..2 {
            let batch = consumer.peek_batch(8);
            assert!(matches!(batch.len(), 0 | 2 | 4), "a part of a batch: {}", batch.len());
            let first: Vec<u8> = batch.iter().map(|record| record[0]).collect();
            assert!(first.iter().zip(0..).all(|(found, expected)| *found == expected));
        }
        consumer.peek_batch(1).release();
        writer.join().unwrap();
        assert_eq!(consumer.faults(), 0);
    });
}

#[test]
fn a_line_is_written_again_only_after_it_was_released() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::heap(128);
        assert!(push(&mut producer, 0) && push(&mut producer, 1));
        producer.publish();
        let reader = thread::spawn(move || {
            let batch = consumer.peek_batch(2);
            assert_eq!(batch.iter().map(|record| record[0]).collect::<Vec<_>>(), [0, 1]);
            batch.release();
        });
        let refilled = push(&mut producer, 2) && push(&mut producer, 3);
        producer.publish();
        reader.join().unwrap();
        assert!(refilled || push(&mut producer, 4));
    });
}

/// The consumer of every role: drain, announce, look again, sleep.
fn consume(mut consumers: Vec<Consumer>, bell: &Doorbell, expected: usize) {
    let mut seen = Vec::new();
    loop {
        for consumer in &mut consumers {
            drain(consumer, &mut seen);
        }
        if seen.len() == expected {
            return;
        }
        let ticket = bell.prepare();
        if consumers.iter_mut().all(Consumer::is_empty) {
            bell.wait(ticket, FOR_EVER);
        } else {
            bell.cancel();
        }
    }
}

#[test]
fn a_sleeper_is_woken_for_every_record() {
    bounded(3, || {
        let (mut producer, consumer) = ring::heap(256);
        let bell = Arc::new(Doorbell::new());
        let theirs = Arc::clone(&bell);
        let writer = thread::spawn(move || {
            for number in 0..2 {
                assert!(push(&mut producer, number));
                assert!(producer.publish());
                theirs.ring();
            }
        });
        consume(vec![consumer], &bell, 2);
        writer.join().unwrap();
    });
}

#[test]
fn two_ringers_of_one_bell_lose_nothing() {
    bounded(2, || {
        let bell = Arc::new(Doorbell::new());
        let (writers, consumers): (Vec<_>, Vec<_>) = (0..2)
            .map(|number| {
                let (mut producer, consumer) = ring::heap(128);
                let theirs = Arc::clone(&bell);
                let writer = thread::spawn(move || {
                    assert!(push(&mut producer, number));
                    assert!(producer.publish());
                    theirs.ring();
                });
                (writer, consumer)
            })
            .unzip();
        consume(consumers, &bell, 2);
        for writer in writers {
            writer.join().unwrap();
        }
    });
}

#[test]
fn a_full_ring_sleeps_until_there_is_room() {
    bounded(2, || {
        let (mut producer, mut consumer) = ring::heap(128);
        let (data, room) = (Arc::new(Doorbell::new()), Arc::new(Doorbell::new()));
        let (their_data, their_room) = (Arc::clone(&data), Arc::clone(&room));
        let writer = thread::spawn(move || {
            for number in 0..3 {
                while !push(&mut producer, number) {
                    let ticket = their_room.prepare();
                    if producer.credits() == 0 {
                        their_room.wait(ticket, FOR_EVER);
                    } else {
                        their_room.cancel();
                    }
                }
                producer.publish();
                their_data.ring();
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 3 {
            drain(&mut consumer, &mut seen);
            room.ring();
            if seen.len() == 3 {
                break;
            }
            let ticket = data.prepare();
            if consumer.is_empty() {
                data.wait(ticket, FOR_EVER);
            } else {
                data.cancel();
            }
        }
        writer.join().unwrap();
        assert_eq!(seen, [0, 1, 2]);
    });
}
