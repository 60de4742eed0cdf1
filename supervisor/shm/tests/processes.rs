//! Two processes over one region, asleep on doorbells most of the time; and processes that are killed.
//!
//! The other process is this test binary again, running only the test `the_other_process` with its part in the
//! environment. `SHM_SOAK_RECORDS` makes the soak longer (default two million), `SHM_KILLS` the kill tests (default 40 each).
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shm::{Consumer, Doorbell, Link, Producer, Region, Role, RoleState, Spec, path};

const SPEC: Spec =
    Spec { shards: 1, capture_ring: 1 << 16, inject_ring: 1 << 15, return_ring: 4096, arena: 4096 };
/// A wake-up that comes later than this was lost. Nothing here takes a hundredth of it, even on a busy machine.
const LOST: Duration = Duration::from_secs(60);
const PART: &str = "SHM_TEST_PART";
const NAME: &str = "SHM_TEST_NAME";
const FIRST: &str = "SHM_TEST_FIRST";
const RECORDS: &str = "SHM_TEST_RECORDS";

/// A region's name, removed at the end whatever happens.
struct Name(String);

impl Name {
    fn new(test: &str) -> Self {
        Self(format!("test-{test}-{}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(path(&self.0));
    }
}

/// A child that does not outlive its test.
struct Other(Child);

impl Other {
    fn start(name: &Name, part: &str, first: u64, records: u64) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["the_other_process", "--exact", "--nocapture", "--test-threads=1"])
            .env(PART, part)
            .env(NAME, &name.0)
            .env(FIRST, first.to_string())
            .env(RECORDS, records.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGKILL, and gone for good when this returns.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Its part went well. Waits no longer than for a lost wake-up.
    fn finish(mut self) {
        let since = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "the other process: {status}");
                return;
            }
            assert!(since.elapsed() < LOST, "the other process hangs");
            std::thread::yield_now();
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// splitmix64: what follows from a number, and nothing else.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Payload length of record `number`: mostly small, some of a segment's size, a few as long as the ring takes.
fn length(number: u64, longest: usize) -> usize {
    let random = mix(number) as usize;
    let limit = match random % 256 {
        0 => longest - 16,
        1..40 => 1460.min(longest - 16),
        _ => 150.min(longest - 16),
    };
    16 + (random >> 8) % limit
}

/// Number, bytes made of it, checksum at the end of the first sixteen.
fn fill(number: u64, bytes: &mut [u8]) {
    let mut sum = mix(!number);
    for (at, chunk) in bytes[16..].chunks_mut(8).enumerate() {
        let word = number ^ (at as u64).wrapping_mul(0x0101_0101_0101_0101);
        sum = sum.rotate_left(5) ^ word;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&sum.to_le_bytes());
}

/// The number of a whole record; panics when a byte is not what its number says.
fn check(bytes: &[u8], longest: usize) -> u64 {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let number = word(0);
    assert_eq!(bytes.len(), length(number, longest), "length of record {number}");
    let mut sum = mix(!number);
    for (at, chunk) in bytes[16..].chunks(8).enumerate() {
        let expected = number ^ (at as u64).wrapping_mul(0x0101_0101_0101_0101);
        assert_eq!(chunk, &expected.to_le_bytes()[..chunk.len()], "record {number} is torn");
        sum = sum.rotate_left(5) ^ expected;
    }
    assert_eq!(word(8), sum, "checksum of record {number}");
    number
}

/// Sleeps until `ready`; true if it slept. Panics when the bell should have rung and did not.
fn sleep_until(bell: &Doorbell, mut ready: impl FnMut() -> bool) -> bool {
    let (since, mut slept) = (Instant::now(), false);
    while !ready() {
        let ticket = bell.prepare();
        if ready() {
            bell.cancel();
            break;
        }
        slept = true;
        // May return for no reason (a late wake-up for the sleep before), but not for want of one.
        bell.wait(ticket, LOST);
        assert!(since.elapsed() < LOST, "a wake-up was lost, or the other process went away");
    }
    slept
}

/// Puts record `number` in, sleeping on `room` while the ring is full.
fn put(producer: &mut Producer, number: u64, data: &Doorbell, room: &Doorbell) -> bool {
    let len = length(number, producer.max_record());
    let mut slept = false;
    if producer.reserve(len).is_none() {
        // What is staged must go first, or the ring would never become empty enough.
        if producer.publish() {
            data.ring();
        }
        slept = sleep_until(room, || producer.reserve(len).is_some());
    }
    fill(number, producer.reserve(len).expect("there was room"));
    producer.commit(len);
    slept
}

/// shard 0 → injector: bursts of random length; after some the writer waits until all was taken, so that both sleep often.
fn write_soak(region: &'static Region, records: u64) {
    let (data, room) = (region.doorbell(Role::Injector), region.doorbell(Role::Shard(0)));
    let mut producer = region.producer(Link::Inject(0));
    let (mut number, mut sleeps) = (0, 0_u64);
    while number < records {
        let random = mix(records ^ number);
        for _ in 0..(1 + random % 64).min(records - number) {
            sleeps += u64::from(put(&mut producer, number, data, room));
            number += 1;
        }
        if producer.publish() {
            data.ring();
        }
        if random >> 60 == 0 {
            sleeps += u64::from(sleep_until(room, || region.link_depth(Link::Inject(0)) == 0));
        }
    }
    region.counters(Role::Shard(0)).set(0, sleeps);
    region.heartbeat(Role::Shard(0)).set_state(RoleState::Done);
}

/// The numbers of what lies in the ring, in order from `expected` on; then all of it is free.
fn take(consumer: &mut Consumer, max: usize, mut expected: u64, longest: usize) -> u64 {
    let batch = consumer.peek_batch(max);
    for record in &batch {
        assert_eq!(check(record, longest), expected, "a gap, or a record twice");
        expected += 1;
    }
    batch.release();
    expected
}

#[test]
fn two_processes_soak() {
    let name = Name::new("soak");
    let records = count("SHM_SOAK_RECORDS", 2_000_000);
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    let (data, room) = (region.doorbell(Role::Injector), region.doorbell(Role::Shard(0)));
    let mut consumer = region.consumer(Link::Inject(0));
    let longest = shm::ring::max_record(consumer.capacity());
    let writer = Other::start(&name, "write_soak", 0, records);
    let (mut expected, mut sleeps) = (0, 0_u64);
    while expected < records {
        sleeps += u64::from(sleep_until(data, || !consumer.is_empty()));
        expected = take(&mut consumer, 32, expected, longest);
        room.ring();
    }
    writer.finish();
    assert_eq!((expected, consumer.faults(), region.link_depth(Link::Inject(0))), (records, 0, 0));
    assert_eq!(region.heartbeat(Role::Shard(0)).state(), RoleState::Done);
    let writer_sleeps = region.read_counter(Role::Shard(0), 0);
    println!("{records} records, the reader slept {sleeps} times, the writer {writer_sleeps} times");
    assert!(sleeps > 100 && writer_sleeps > 100, "{sleeps} and {writer_sleeps} sleeps prove nothing");
}

/// capturer → shard 0, numbered from `first` on, until killed. Waits for room by looking again: the capturer never sleeps
/// on a shard.
fn write_for_ever(region: &'static Region, first: u64) {
    let bell = region.doorbell(Role::Shard(0));
    let mut producer = region.producer(Link::Capture(0));
    let mut number = first;
    loop {
        for _ in 0..1 + mix(number) % 32 {
            let len = length(number, producer.max_record());
            let Some(room) = producer.reserve(len) else { break };
            fill(number, room);
            producer.commit(len);
            number += 1;
        }
        if producer.publish() {
            bell.ring();
        } else {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_killed_writer_leaves_whole_records_and_its_successor_goes_on() {
    let name = Name::new("killed-writer");
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    let bell = region.doorbell(Role::Shard(0));
    let mut consumer = region.consumer(Link::Capture(0));
    let longest = shm::ring::max_record(consumer.capacity());
    let mut expected = 0;
    for kill in 0..count("SHM_KILLS", 40) {
        let writer = Other::start(&name, "write_for_ever", expected, 0);
        // Some records, so that it is under way; then a random number of loads more, so that it is anywhere.
        let until = expected + 1 + mix(kill) % 5_000;
        while expected < until {
            sleep_until(bell, || !consumer.is_empty());
            expected = take(&mut consumer, 7, expected, longest);
        }
        for _ in 0..mix(!kill) % 20_000 {
            std::hint::spin_loop();
        }
        writer.kill();
        // Everything that was published is whole and in order, however it died.
        while !consumer.is_empty() {
            expected = take(&mut consumer, 256, expected, longest);
        }
        assert_eq!(consumer.faults(), 0, "after kill {kill}");
    }
}

/// return receiver → shard 0: takes records, says how far it is before it releases them, until killed.
fn read_for_ever(region: &'static Region) {
    let (data, room) = (region.doorbell(Role::Shard(0)), region.doorbell(Role::Receiver));
    let mut consumer = region.consumer(Link::Returns(0));
    let longest = shm::ring::max_record(consumer.capacity());
    let counters = region.counters(Role::Shard(0));
    loop {
        sleep_until(data, || !consumer.is_empty());
        let batch = consumer.peek_batch(16);
        let mut done = counters.get(0);
        for record in &batch {
            let number = check(record, longest);
            assert!(number <= done, "record {done} was lost, {number} came");
            done = done.max(number + 1);
        }
        counters.set(0, done);
        batch.release();
        assert_eq!(consumer.faults(), 0);
        room.ring();
    }
}

#[test]
fn a_killed_reader_loses_nothing_to_its_successor() {
    let name = Name::new("killed-reader");
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    let (data, room) = (region.doorbell(Role::Shard(0)), region.doorbell(Role::Receiver));
    let mut producer = region.producer(Link::Returns(0));
    let mut number = 0;
    for kill in 0..count("SHM_KILLS", 40) {
        let reader = Other::start(&name, "read_for_ever", 0, 0);
        let until = number + 2_000 + mix(kill) % 5_000;
        while number < until {
            put(&mut producer, number, data, room);
            number += 1;
            if number % 8 == 0 && producer.publish() {
                data.ring();
            }
        }
        producer.publish();
        data.ring();
        for _ in 0..mix(!kill) % 20_000 {
            std::hint::spin_loop();
        }
        reader.kill();
        let done = region.read_counter(Role::Shard(0), 0);
        assert!(done <= number, "it took {done} of {number}");
        assert!(done > 0);
    }
    // The last one lives until everything is taken.
    let reader = Other::start(&name, "read_for_ever", 0, 0);
    sleep_until(room, || region.link_depth(Link::Returns(0)) == 0);
    assert_eq!(region.read_counter(Role::Shard(0), 0), number);
    reader.kill();
}

/// Not a test: the other process of those above, when it is told a part.
#[test]
fn the_other_process() {
    let Ok(part) = std::env::var(PART) else { return };
    let region = Region::attach(&std::env::var(NAME).unwrap()).unwrap();
    match part.as_str() {
        "write_soak" => write_soak(region, count(RECORDS, 0)),
        "write_for_ever" => write_for_ever(region, count(FIRST, 0)),
        "read_for_ever" => read_for_ever(region),
        other => panic!("no part {other}"),
    }
}
