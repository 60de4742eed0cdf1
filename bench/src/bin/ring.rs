//! What does a record cost on its way through a ring? Ours on the heap and between two processes, against rtrb (a ring of
//! equal slots between threads) and against copying the bytes in and out without any ring.
//!
//! `cargo run --release -p bench --bin ring [-- --json]`. Each figure is the best of several rounds: on a busy machine the others
//! measure the neighbours. Batches of 32 records, as in the pipeline; every record is copied in and copied out, so that all
//! columns move the same bytes. Threads give way to each other when there is nothing to do, processes sleep on doorbells.

use std::hint::black_box;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shm::{Consumer, Doorbell, Link, Producer, Region, Role, Spec, ring};

/// Records in a batch.
const BATCH: usize = 32;
/// Ring size in all comparisons, bytes.
const CAPACITY: u32 = 1 << 20;
/// Rounds, of which the best counts.
const ROUNDS: usize = 7;
/// Bytes that one round moves at least.
const ROUND_BYTES: usize = 256 << 20;
/// Payloads: what fills one line, a small captured segment, a full one, a super-frame.
const PAYLOADS: [usize; 4] = [56, 296, 1_544, 65_000];
/// Nothing takes this long but a lost wake-up.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let (json, args) = bench::arguments();
    if let [name, len, records] = &args[..] {
        return write_to(name, len.parse()?, records.parse()?);
    }
    ensure!(args.is_empty(), "{}: there is --json", args.join(" "));
    if !json {
        println!(
            "ns per record, best of {ROUNDS} rounds, batches of {BATCH}, rings of {} KiB",
            CAPACITY >> 10
        );
        println!("{:>8} {:>32} {:>21} {:>10}", "payload", "one thread", "two threads", "processes");
        println!(
            "{:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "bytes", "memcpy", "rtrb", "shm", "rtrb", "shm", "shm"
        );
    }
    let mut found = Vec::new();
    for len in PAYLOADS {
        let records = (ROUND_BYTES / Producer::record_bytes(len)).clamp(BATCH, 2_000_000) / BATCH * BATCH;
        // rtrb has slots of one size: the comparison makes sense for one-line records only.
        let slots = len == PAYLOADS[0];
        let row = json!({
            "payload_bytes": len,
            "memcpy_ns": best(records, || copy_only(len, records)),
            "rtrb_one_thread_ns": slots.then(|| best(records, || rtrb_one_thread(records))),
            "shm_one_thread_ns": best(records, || shm_one_thread(len, records)),
            "rtrb_two_threads_ns": slots.then(|| best(records, || rtrb_two_threads(records))),
            "shm_two_threads_ns": best(records, || shm_two_threads(len, records)),
            "shm_processes_ns": best_result(records, || two_processes(len, records))?,
        });
        if !json {
            print!("{len:>8}");
            for name in COLUMNS {
                print!(" {:>10}", row[name].as_f64().map_or("-".into(), |ns| format!("{ns:.1}")));
            }
            println!();
        }
        found.push(row);
    }
    if json {
        println!("{}", serde_json::Value::from(found));
    }
    Ok(())
}

/// What the table shows of a row, in order.
const COLUMNS: [&str; 6] = [
    "memcpy_ns",
    "rtrb_one_thread_ns",
    "shm_one_thread_ns",
    "rtrb_two_threads_ns",
    "shm_two_threads_ns",
    "shm_processes_ns",
];

fn best(records: usize, mut round: impl FnMut() -> Duration) -> f64 {
    let shortest = (0..ROUNDS).map(|_| round()).min().expect("at least one round");
    shortest.as_secs_f64() * 1e9 / records as f64
}

fn best_result(records: usize, mut round: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let mut shortest = Duration::MAX;
    for _ in 0..ROUNDS {
        shortest = shortest.min(round()?);
    }
    Ok(shortest.as_secs_f64() * 1e9 / records as f64)
}

/// The bytes in and out of a buffer as large as the ring, at the ring's pace and stride, and nothing else.
fn copy_only(len: usize, records: usize) -> Duration {
    let mut buffer = vec![0_u8; CAPACITY as usize];
    let (source, mut sink) = (vec![7_u8; len], vec![0_u8; len]);
    let stride = Producer::record_bytes(len);
    let places = CAPACITY as usize / stride;
    // A super-frame ring holds fewer than a batch.
    let batch = BATCH.min(places);
    let since = Instant::now();
    let mut first = 0;
    for _ in 0..records.div_ceil(batch) {
        for place in first..first + batch {
            let at = place % places * stride;
            buffer[at..at + len].copy_from_slice(black_box(&source));
        }
        for place in first..first + batch {
            let at = place % places * stride;
            sink.copy_from_slice(&buffer[at..at + len]);
            black_box(&mut sink);
        }
        first = (first + batch) % places;
    }
    since.elapsed()
}

type Slot = [u8; 64];

fn rtrb_push(producer: &mut rtrb::Producer<Slot>, want: usize) -> usize {
    let count = producer.slots().min(want);
    if count > 0 {
        let chunk = producer.write_chunk_uninit(count).expect("as many as there are");
        chunk.fill_from_iter(std::iter::repeat_with(|| black_box([7_u8; 64])));
    }
    count
}

fn rtrb_pop(consumer: &mut rtrb::Consumer<Slot>) -> usize {
    let count = consumer.slots().min(BATCH);
    if count > 0 {
        for slot in consumer.read_chunk(count).expect("as many as there are") {
            black_box(slot);
        }
    }
    count
}

fn rtrb_one_thread(records: usize) -> Duration {
    let (mut producer, mut consumer) = rtrb::RingBuffer::new(CAPACITY as usize / 64);
    let since = Instant::now();
    for _ in 0..records / BATCH {
        assert_eq!(rtrb_push(&mut producer, BATCH), BATCH);
        assert_eq!(rtrb_pop(&mut consumer), BATCH);
    }
    since.elapsed()
}

fn rtrb_two_threads(records: usize) -> Duration {
    let (mut producer, mut consumer) = rtrb::RingBuffer::new(CAPACITY as usize / 64);
    let since = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut left = records;
            while left > 0 {
                match rtrb_push(&mut producer, left.min(BATCH)) {
                    0 => std::thread::yield_now(),
                    pushed => left -= pushed,
                }
            }
        });
        let mut left = records;
        while left > 0 {
            match rtrb_pop(&mut consumer) {
                0 => std::thread::yield_now(),
                popped => left -= popped,
            }
        }
    });
    since.elapsed()
}

/// Up to a batch of records, written in place, published once.
fn shm_push(producer: &mut Producer, source: &[u8], want: usize) -> usize {
    let mut pushed = 0;
    while pushed < want.min(BATCH) && producer.push(black_box(source)) {
        pushed += 1;
    }
    producer.publish();
    pushed
}

/// Up to a batch of records, copied out and released with one store.
fn shm_pop(consumer: &mut Consumer, sink: &mut [u8]) -> usize {
    let batch = consumer.peek_batch(BATCH);
    let popped = batch.len();
    for record in &batch {
        sink[..record.len()].copy_from_slice(record);
        black_box(&mut *sink);
    }
    batch.release();
    popped
}

fn shm_one_thread(len: usize, records: usize) -> Duration {
    let (mut producer, mut consumer) = ring::heap(CAPACITY);
    let (source, mut sink) = (vec![7_u8; len], vec![0_u8; len]);
    let since = Instant::now();
    let mut left = records;
    while left > 0 {
        let pushed = shm_push(&mut producer, &source, left);
        let mut popped = 0;
        while popped < pushed {
            popped += shm_pop(&mut consumer, &mut sink);
        }
        left -= pushed;
    }
    since.elapsed()
}

fn shm_two_threads(len: usize, records: usize) -> Duration {
    let (mut producer, mut consumer) = ring::heap(CAPACITY);
    let (source, mut sink) = (vec![7_u8; len], vec![0_u8; len]);
    let since = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut left = records;
            while left > 0 {
                match shm_push(&mut producer, &source, left) {
                    0 => std::thread::yield_now(),
                    pushed => left -= pushed,
                }
            }
        });
        let mut left = records;
        while left > 0 {
            match shm_pop(&mut consumer, &mut sink) {
                0 => std::thread::yield_now(),
                popped => left -= popped,
            }
        }
    });
    since.elapsed()
}

/// A child that does not outlive its round.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A region's file that does not outlive its round.
struct Name(String);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(shm::path(&self.0));
    }
}

/// This program again as the writer; both asleep on doorbells when there is nothing to do. From the first record seen to
/// the last, so that starting the writer does not count.
fn two_processes(len: usize, records: usize) -> Result<Duration> {
    static ROUND: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let round = ROUND.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = Name(format!("bench-ring-{}-{round}", std::process::id()));
    let spec = Spec { shards: 1, capture_ring: CAPACITY, inject_ring: 4096, return_ring: 4096, arena: 4096 };
    let region = Region::create(&name.0, &spec, &[], 0)?;
    let mut consumer = region.consumer(Link::Capture(0));
    let program = std::env::current_exe().context("finding this program")?;
    let writer = Command::new(program)
        .args([&name.0, &len.to_string(), &records.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .context("starting this program again as the writer")?;
    let _writer = Writer(writer);
    let mut sink = vec![0_u8; len];
    let (data, room) = (region.doorbell(Role::Shard(0)), region.doorbell(Role::Capturer));
    sleep_until(data, || !consumer.is_empty())?;
    let since = Instant::now();
    let mut left = records;
    while left > 0 {
        match shm_pop(&mut consumer, &mut sink) {
            0 => sleep_until(data, || !consumer.is_empty())?,
            popped => {
                left -= popped;
                room.ring();
            }
        }
    }
    ensure!(consumer.faults() == 0, "the ring was damaged");
    Ok(since.elapsed())
}

fn write_to(name: &str, len: usize, records: usize) -> Result<()> {
    let region = Region::attach(name)?;
    let mut producer = region.producer(Link::Capture(0));
    let source = vec![7_u8; len];
    let (data, room) = (region.doorbell(Role::Shard(0)), region.doorbell(Role::Capturer));
    let mut left = records;
    while left > 0 {
        match shm_push(&mut producer, &source, left) {
            0 => sleep_until(room, || producer.reserve(len).is_some())?,
            pushed => {
                left -= pushed;
                data.ring();
            }
        }
    }
    Ok(())
}

fn sleep_until(bell: &Doorbell, mut ready: impl FnMut() -> bool) -> Result<()> {
    let mut since = None;
    while !ready() {
        let ticket = bell.prepare();
        if ready() {
            bell.cancel();
            break;
        }
        let since = *since.get_or_insert_with(Instant::now);
        bell.wait(ticket, PATIENCE);
        ensure!(since.elapsed() < PATIENCE, "the other process went away");
    }
    Ok(())
}
