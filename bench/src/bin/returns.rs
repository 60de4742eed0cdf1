//! What does a header cost on the return channel, at either end, encrypted and plain?
//!
//! ```text
//! cargo run --release -p bench --bin returns [-- --json] [RATE...]
//! ```
//!
//! A whole intercept whose frames come from memory (answers of 252 bytes with time stamps) and the injector's receiver, over
//! one connection on loopback, with a reader at the end of the return ring that sleeps as a shard does. Frames come at a
//! rate, as many as are due when intercept looks, or (`max`) as fast as the other end takes them. CPU time of intercept's
//! capture thread and of the receiver's for each header, the kernel's work in their name included: on loopback all of TCP is the
//! sender's. Every header must arrive.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bench::{arguments, ended};
use flow::record::{flag, opt};
use flow::{Addr, Endpoint, Seq, TcpFields};
use injector::receiver::Receiver;
use injector::{ReturnCount, claims};
use intercept::source::{Frame, Source};
use intercept::{Count, Intercept};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde_json::json;
use shm::{Link, Region, Role, Spec, monotonic_ns};
use topology::planner::Facts;
use topology::{Key, Options, Place, Plan, plan_from};

/// Headers a second; the last is as fast as they are taken.
const RATES: [u64; 4] = [20_000, 200_000, 1_000_000, UNLIMITED];
const UNLIMITED: u64 = u64::MAX;
/// Time of one row.
const ROW: Duration = Duration::from_millis(1_500);
/// Headers on the way at most: half of what intercept keeps for an instance, so that none is dropped.
const ON_THE_WAY: u64 = 8_192;
/// What the source is polled by: frames are due at any time, and a card tells of them about as often.
const TICK: Duration = Duration::from_micros(50);
const TARGET: &str = "10.0.3.2:8080";
const FRAMES: u32 = 4_096;
const WAIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    ended(measure())
}

fn measure() -> Result<()> {
    let (as_json, rates) = arguments();
    let rates = match rates.as_slice() {
        [] => RATES.to_vec(),
        given => given
            .iter()
            .map(|text| match text.as_str() {
                "max" => Ok(UNLIMITED),
                text => text.parse().with_context(|| format!("{text} is neither a rate nor max")),
            })
            .collect::<Result<_>>()?,
    };
    let mut found = Vec::new();
    if !as_json {
        println!(
            "{:<9} {:>9} {:>11} {:>9} {:>13} {:>13} {:>10} {:>13}",
            "channel",
            "rate",
            "headers/s",
            "a batch",
            "intercept ns",
            "receiver ns",
            "both ns",
            "one core M/s"
        );
    }
    for (name, key) in [("encrypted", Some([7; 32])), ("plain", None)] {
        for &rate in &rates {
            let row = row(name, key, rate)?;
            let text = if rate == UNLIMITED { "max".to_owned() } else { rate.to_string() };
            let (both, slower) = (row.intercept_ns + row.receiver_ns, row.intercept_ns.max(row.receiver_ns));
            if as_json {
                found.push(json!({ "channel": name, "rate": text, "headers_per_s": row.headers_per_s,
                    "headers_per_drain": row.batch, "intercept_ns": row.intercept_ns,
                    "receiver_ns": row.receiver_ns, "headers_per_core_s": 1e9 / slower,
                    "headers_per_core_s_both_ends": 1e9 / both }));
            } else {
                println!(
                    "{name:<9} {text:>9} {:>11.0} {:>9.1} {:>13.0} {:>13.0} {both:>10.0} {:>6.2} /{:>5.2}",
                    row.headers_per_s,
                    row.batch,
                    row.intercept_ns,
                    row.receiver_ns,
                    1e3 / slower,
                    1e3 / both
                );
            }
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("one core: the slower end on a core of its own / both ends on one core");
    }
    Ok(())
}

struct Row {
    headers_per_s: f64,
    batch: f64,
    intercept_ns: f64,
    receiver_ns: f64,
}

/// A connection of its own, from dial to farewell.
fn row(name: &str, key: Option<[u8; 32]>, rate: u64) -> Result<Row> {
    let gate = Arc::new(Gate::default());
    let mut options = intercept::Options::new(vec![TARGET.parse()?]);
    options.listen = vec!["127.0.0.1:0".parse()?];
    options.key = key;
    let stats = options.stats.clone();
    let intercept = Intercept::with_sources(options, vec![Box::new(Frames::new(gate.clone())?)])?;
    let at = intercept.listening()[0];
    let stop = Arc::new(AtomicBool::new(false));
    let ending = stop.clone();
    let intercept = thread::spawn(move || intercept.run(ending));
    let end = End::start(name, key, at, gate.clone(), stop.clone())?;

    let capture = thread_named("intercept-captu")?;
    end.wait_for(|end| end.count(ReturnCount::Connected) == 1, "the connection")?;
    gate.open(rate);
    // The first are for the caches.
    end.wait_for(|end| end.count(ReturnCount::Headers) > 1_000, "headers")?;
    let (begun, sent, drains) = (Instant::now(), stats.get(Count::Sent), stats.get(Count::Drains));
    let before = (cpu_ns(capture)?, cpu_ns(end.receiver)?);
    thread::sleep(ROW);
    let after = (cpu_ns(capture)?, cpu_ns(end.receiver)?);
    let (took, sent, drains) =
        (begun.elapsed(), stats.get(Count::Sent) - sent, stats.get(Count::Drains) - drains);
    gate.open(0);
    end.wait_for(|end| end.count(ReturnCount::Headers) == end.gate.given.load(Relaxed), "the last header")?;
    stop.store(true, Relaxed);
    ensure!(stats.get(Count::QueueDropped) == 0, "headers were dropped");
    end.stop()?;
    match intercept.join() {
        Ok(ended) => drop(ended?),
        Err(_) => bail!("intercept panicked"),
    }
    let each = |ns: u64| ns as f64 / sent as f64;
    Ok(Row {
        headers_per_s: sent as f64 / took.as_secs_f64(),
        batch: sent as f64 / drains as f64,
        intercept_ns: each(after.0 - before.0),
        receiver_ns: each(after.1 - before.1),
    })
}

/// How many frames are due.
#[derive(Default)]
struct Gate {
    rate: AtomicU64,
    since_ns: AtomicU64,
    /// Frames given since then.
    passed: AtomicU64,
    /// Frames given in all, and headers that have come to the end of the return ring.
    given: AtomicU64,
    taken: AtomicU64,
}

impl Gate {
    fn open(&self, rate: u64) {
        self.rate.store(0, Relaxed);
        self.passed.store(0, Relaxed);
        self.since_ns.store(monotonic_ns(), Relaxed);
        self.rate.store(rate, Relaxed);
    }

    fn due(&self) -> u64 {
        let room = (self.taken.load(Relaxed) + ON_THE_WAY).saturating_sub(self.given.load(Relaxed));
        let rate = self.rate.load(Relaxed);
        if rate == UNLIMITED {
            return room;
        }
        let since_ns = monotonic_ns().saturating_sub(self.since_ns.load(Relaxed));
        let all = u128::from(since_ns) * u128::from(rate) / 1_000_000_000;
        room.min((all as u64).saturating_sub(self.passed.load(Relaxed)))
    }

    fn pass(&self, frames: u64) {
        self.passed.fetch_add(frames, Relaxed);
        self.given.fetch_add(frames, Relaxed);
    }
}

/// Answers from memory.
struct Frames {
    gate: Arc<Gate>,
    timer: TimerFd,
    packets: Vec<Vec<u8>>,
    next: usize,
}

impl Frames {
    fn new(gate: Arc<Gate>) -> Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::Interval(TimeSpec::from_duration(TICK)), TimerSetTimeFlags::empty())?;
        let target: Endpoint = TARGET.parse::<SocketAddr>()?.into();
        let packets = (0..FRAMES)
            .map(|n| {
                let [_, _, c, d] = n.to_be_bytes();
                let tcp = TcpFields {
                    seq: Seq(n),
                    flags: flag::ACK | flag::PSH,
                    options: opt::TIMESTAMPS,
                    ..TcpFields::default()
                };
                let mut headers = [0; flow::emit::MAX_HEADERS];
                let client = Endpoint::new(Addr::v4([198, 18, c, d]), 40_000);
                let len = flow::emit::emit(&mut headers, target, client, &tcp, &[&[0; 200]], 0);
                headers[..len].to_vec()
            })
            .collect();
        Ok(Self { gate, timer, packets, next: 0 })
    }
}

impl Source for Frames {
    fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn drain(&mut self, budget: usize, each: &mut dyn FnMut(&Frame<'_>)) -> usize {
        let due = self.gate.due().min(budget as u64) as usize;
        if due == 0 {
            // Until the next tick nothing can be read.
            let _ = self.timer.wait();
        }
        for _ in 0..due {
            let packet = &self.packets[self.next % self.packets.len()];
            each(&Frame { packet, wire_len: packet.len() as u32 + 200, time_ns: 1, segment_size: 0 });
            self.next += 1;
        }
        self.gate.pass(due as u64);
        due
    }

    fn tend(&mut self) -> u64 {
        0
    }

    fn recover(&mut self) -> Option<io::Error> {
        None
    }

    fn name(&self) -> &str {
        "memory"
    }
}

/// The injector's end: the receiver's thread, and one that reads the ring as a shard.
struct End {
    region: &'static Region,
    gate: Arc<Gate>,
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    /// Thread id of the receiver.
    receiver: i32,
    threads: [JoinHandle<()>; 2],
}

impl End {
    fn start(
        name: &str,
        key: Option<[u8; 32]>,
        at: SocketAddr,
        gate: Arc<Gate>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let plan = plan(at, key)?;
        let spec = Spec {
            shards: 1,
            capture_ring: 1 << 12,
            inject_ring: 1 << 12,
            return_ring: plan.rings.returns,
            arena: 4_096,
        };
        let region_name = format!("bench-returns-{}-{name}", std::process::id());
        let region: &'static Region = Region::create(&region_name, &spec, &plan.to_bytes(), 1)?;
        Region::remove(&region_name)?;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?);
        let (_, claimed) = claims::queue(wake.clone());
        let receiver = Receiver::new(region, &plan, claimed, wake.clone(), stop.clone())?;
        let (tell, told) = std::sync::mpsc::channel();
        let receiving = thread::spawn(move || {
            // Nobody listens any more only when the bench has failed.
            let _ = tell.send(nix::unistd::gettid().as_raw());
            receiver.run();
        });
        let (ending, counted) = (stop.clone(), gate.clone());
        let reading = thread::spawn(move || read_ring(region, &counted, &ending));
        Ok(Self { region, gate, stop, wake, receiver: told.recv()?, threads: [receiving, reading] })
    }

    fn count(&self, count: ReturnCount) -> u64 {
        self.region.read_counter(Role::Receiver, count.index())
    }

    fn wait_for(&self, done: impl Fn(&Self) -> bool, what: &str) -> Result<()> {
        let begun = Instant::now();
        while !done(self) {
            ensure!(begun.elapsed() < WAIT, "{what} did not come within {WAIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        self.wake.write(1)?;
        for thread in self.threads {
            ensure!(thread.join().is_ok(), "a thread panicked");
        }
        Ok(())
    }
}

/// Sleeps until headers come and lets them go.
fn read_ring(region: &'static Region, gate: &Gate, stop: &AtomicBool) {
    let mut ring = region.consumer(Link::Returns(0));
    let bell = region.doorbell(Role::Shard(0));
    while !stop.load(Relaxed) {
        let batch = ring.peek_batch(256);
        let headers = batch.into_iter().count() as u64;
        batch.release();
        gate.taken.fetch_add(headers, Relaxed);
        if headers == 0 {
            let ticket = bell.prepare();
            if ring.is_empty() {
                bell.wait(ticket, Duration::from_millis(20));
            } else {
                bell.cancel();
            }
        }
    }
}

fn thread_named(wanted: &str) -> Result<i32> {
    let begun = Instant::now();
    while begun.elapsed() < WAIT {
        for task in std::fs::read_dir("/proc/self/task")? {
            let task = task?;
            if std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == wanted) {
                return Ok(task.file_name().to_string_lossy().parse()?);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("no thread is named {wanted}")
}

/// CPU time of a thread of this process so far (proc_pid_schedstat: the first number, nanoseconds).
fn cpu_ns(tid: i32) -> Result<u64> {
    let path = format!("/proc/self/task/{tid}/schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.split(' ').next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path}: {text}"))
}

fn plan(at: SocketAddr, key: Option<[u8; 32]>) -> Result<Plan> {
    let mut options = Options::default();
    for (key, text) in [
        (Key::Map, format!("80-{TARGET}")),
        (Key::Intercept, at.to_string()),
        (Key::Clients, "198.18.0.0/15".to_owned()),
        (Key::Shards, "1".to_owned()),
    ] {
        options.give(key, &text, Place::CommandLine);
    }
    let facts = Facts {
        cores: vec![0],
        host_id: 1,
        random: [1; 6],
        key,
        arena_bytes: session::Table::arena_bytes,
        format: 0,
    };
    Ok(plan_from(&options, &facts)?)
}
