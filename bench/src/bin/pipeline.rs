//! What does the whole pipeline cost without sockets: captured frames from memory → dispatch → shards → a null injector?
//!
//! ```text
//! cargo run --release -p bench --bin pipeline -- [--load even,skewed] [--shards 1,2,4,8] [--sessions 10,10000] [--turns 400000] [--rate PER_S] [--json]
//! ```
//!
//! The roles' own code on rings of a real region, each role a thread. The null injector is the target too: it answers each
//! request at once with one header, so a turn is one captured request and one returned header. A client asks again only
//! when it was answered; 4,096 requests are on their way at most. CPU time of each role, its sleeping and waking included: with
//! more shards than cores the wall clock says nothing.
//!
//! | load | what is captured |
//! |---|---|
//! | `even` | each session asks as often as any other |
//! | `skewed` | a tenth of the sessions asks nine of ten times |
//! | `elephant` | each session asks as often as any other, and beside them one connection uploads in super-frames as fast as they are taken |
//! | `upload` | that connection alone |
//!
//! With a million sessions a client thinks for longer than the machine withholds an acknowledgement, so each turn has a timer and
//! a record more: `records` counts what was emitted for each turn. `wait` is from the capture of a request to its record, of
//! those sessions that are not the busy ones; `backlog` is how many requests were on their way at most; `busiest` is the CPU time of
//! the busiest shard against the mean. Without `--rate`, which sets how many requests are asked a second, both say how long a full
//! window takes; with it they say what an elephant costs the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::{Client, REQUEST, cpu_ns};
use capturer::dispatch::Dispatcher;
use capturer::source::Frame;
use flow::hash::endpoint_hash;
use flow::{Endpoint, Inject, Seq};
use lab::Histogram;
use shard_worker::WorkerError;
use shm::{Link, Region, Role, Spec};
use topology::Plan;
use topology::plan::{Limits, Rings};
use zerocopy::IntoBytes as _;

/// Frames of one capture batch, as in the role.
const BATCH: usize = 256;
/// Records of one batch of the null injector.
const INJECT_BATCH: usize = 32;
/// Requests on their way at most: what a shard's ring holds several times over, so that none is dropped.
const WINDOW: usize = 4_096;
/// Payload bytes of a super-frame, and how many may be on their way: a part of what a session may hold.
const SUPER_FRAME: u64 = 60_000;
const UPLOAD_WINDOW: u64 = 8 * SUPER_FRAME;
/// Of so many sessions one is busy in the skewed load, and asks so many times as often as the others: nine of ten requests.
const BUSY_ONE_OF: u32 = 10;
const BUSY_TIMES: usize = 81;
/// The pause between two looks of a capturer that naps.
const NAP_S: f64 = 500e-6;
/// A turn that takes this long will not end any more.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let args = Args::read()?;
    let mut rows = Vec::new();
    if !args.json {
        println!("CPU of each role, ns; a packet is one captured or returned");
        println!(
            "{:<9} {:>6} {:>9} {:>9} {:>15} {:>14} {:>10} {:>8} {:>8} {:>15} {:>8} {:>11} {:>7}",
            "load",
            "shards",
            "sessions",
            "turns",
            "capturer/frame",
            "shards/packet",
            "Mpackets/s",
            "records",
            "busiest",
            "wait p50/p99 µs",
            "backlog",
            "frames up",
            "Gbit/s"
        );
    }
    for &load in &args.loads {
        for &sessions in &args.sessions {
            for &shards in &args.shards {
                let row = measure(load, shards, sessions, &args)
                    .with_context(|| format!("{}, {shards} shards, {sessions} sessions", load.name()))?;
                if !args.json {
                    row.print();
                }
                rows.push(row.json());
            }
        }
    }
    if args.json {
        println!("{}", serde_json::Value::from(rows));
    }
    Ok(())
}

/// What is captured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Even,
    Skewed,
    Elephant,
    Upload,
}

impl Load {
    const ALL: [Load; 4] = [Load::Even, Load::Skewed, Load::Elephant, Load::Upload];

    const fn name(self) -> &'static str {
        match self {
            Load::Even => "even",
            Load::Skewed => "skewed",
            Load::Elephant => "elephant",
            Load::Upload => "upload",
        }
    }

    const fn uploads(self) -> bool {
        matches!(self, Load::Elephant | Load::Upload)
    }

    /// The first so many sessions ask more often than the others.
    const fn busy(self, sessions: u32) -> u32 {
        if matches!(self, Load::Skewed) { sessions.div_ceil(BUSY_ONE_OF) } else { 0 }
    }

    /// Who asks in one round, in order.
    fn round(self, sessions: u32) -> Vec<u32> {
        match self {
            Load::Even | Load::Elephant => mixed(0..sessions),
            Load::Upload => Vec::new(),
            Load::Skewed => {
                let busy = self.busy(sessions);
                let (some_busy, others) = (mixed(0..busy), mixed(busy..sessions));
                let some = others.len().div_ceil(BUSY_TIMES).max(1);
                let mut some_others = others.chunks(some);
                let mut round = Vec::new();
                for _ in 0..BUSY_TIMES {
                    round.extend(some_busy.iter().chain(some_others.next().unwrap_or_default()));
                }
                round
            }
        }
    }
}

/// These clients in an order that has nothing to do with where their sessions lie.
fn mixed(clients: std::ops::Range<u32>) -> Vec<u32> {
    let mut order: Vec<u32> = clients.collect();
    order.sort_by_cached_key(|&n| endpoint_hash(0, &Client::new(n).at));
    order
}

impl std::str::FromStr for Load {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Load::ALL.into_iter().find(|load| load.name() == text).ok_or(())
    }
}

struct Args {
    loads: Vec<Load>,
    shards: Vec<u16>,
    sessions: Vec<u32>,
    turns: u64,
    /// Requests a second; as many as there is room for without.
    rate: Option<f64>,
    json: bool,
}

impl Args {
    fn read() -> Result<Self> {
        let (shards, sessions) = (vec![1, 2, 4, 8], vec![10, 10_000]);
        let mut args =
            Self { loads: vec![Load::Even], shards, sessions, turns: 400_000, rate: None, json: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--load" => args.loads = list(&value()?)?,
                "--shards" => args.shards = list(&value()?)?,
                "--sessions" => args.sessions = list(&value()?)?,
                "--turns" => args.turns = value()?.parse().context("--turns: a number")?,
                "--rate" => args.rate = Some(value()?.parse().context("--rate: a number")?),
                "--json" => args.json = true,
                other => {
                    anyhow::bail!(
                        "{other}: there are --load, --shards, --sessions, --turns, --rate and --json"
                    )
                }
            }
        }
        ensure!(
            args.shards.iter().all(|&n| n > 0)
                && args.sessions.iter().all(|&n| n > 0)
                && args.turns > 0
                && args.rate.is_none_or(|rate| rate >= 1.0),
            "shards, sessions, turns and rate are at least one"
        );
        Ok(args)
    }
}

fn list<T: std::str::FromStr>(text: &str) -> Result<Vec<T>> {
    let parse = |part: &str| {
        part.parse().ok().with_context(|| format!("{part} is none of the values that there are"))
    };
    text.split(',').map(parse).collect()
}

/// What one configuration came to.
struct Row {
    load: Load,
    shards: u16,
    sessions: u32,
    turns: u64,
    /// Super-frames.
    uploaded: u64,
    seconds: f64,
    capturer_ns: i64,
    /// Of each shard.
    shards_ns: Vec<i64>,
    records: u64,
    wait: Histogram,
    backlog: u64,
}

impl Row {
    fn frames(&self) -> u64 {
        self.turns + self.uploaded
    }

    fn shards_ns(&self) -> f64 {
        self.shards_ns.iter().sum::<i64>() as f64
    }

    fn json(&self) -> serde_json::Value {
        let busiest = self.shards_ns.iter().max().map_or(0.0, |&ns| ns as f64);
        serde_json::json!({
            "load": self.load.name(), "shards": self.shards, "sessions": self.sessions, "turns": self.turns,
            "capturer_ns_per_frame": self.capturer_ns as f64 / self.frames() as f64,
            "shards_ns_per_packet": self.shards_ns() / (2 * self.frames()) as f64,
            "packets_per_second": (2 * self.frames()) as f64 / self.seconds,
            "records_per_frame": self.records as f64 / self.frames() as f64,
            "busiest_shard": busiest * f64::from(self.shards) / self.shards_ns(),
            "wait_us": {"p50": self.wait.percentile(50.0), "p99": self.wait.percentile(99.0)},
            "backlog": self.backlog,
            "super_frames": self.uploaded,
            "upload_gbit_per_s": (self.uploaded * SUPER_FRAME * 8) as f64 / self.seconds / 1e9,
        })
    }

    fn print(&self) {
        let value = self.json();
        let number = |name: &str| value[name].as_f64().unwrap_or(0.0);
        let wait = format!("{}/{}", self.wait.percentile(50.0), self.wait.percentile(99.0));
        println!(
            "{:<9} {:>6} {:>9} {:>9} {:>15.0} {:>14.0} {:>10.2} {:>8.2} {:>8.2} {:>15} {:>8} {:>11} {:>7.1}",
            self.load.name(),
            self.shards,
            self.sessions,
            self.turns,
            number("capturer_ns_per_frame"),
            number("shards_ns_per_packet"),
            number("packets_per_second") / 1e6,
            number("records_per_frame"),
            number("busiest_shard"),
            if self.turns == 0 { "-".to_owned() } else { wait },
            self.backlog,
            self.uploaded,
            number("upload_gbit_per_s"),
        );
    }
}

/// What the capturer's side and the null injector know of each other.
struct Shared {
    stop: AtomicBool,
    /// Until then waits are not noted.
    measuring: AtomicBool,
    /// Requests.
    answered: AtomicU64,
    /// Payload bytes of the upload.
    uploaded: AtomicU64,
    /// Records that the shards emitted.
    records: AtomicU64,
    /// When each session last asked.
    asked_us: Box<[AtomicU64]>,
    /// The wait of sessions from this one on is noted.
    watched: u32,
}

/// The threads of one configuration, until they are told to stop.
struct Pipeline {
    region: &'static Region,
    shared: Arc<Shared>,
    target: JoinHandle<Histogram>,
    workers: Vec<Worker>,
    capturer: Capturer,
}

struct Worker {
    thread: JoinHandle<Result<(), WorkerError>>,
    /// Its thread id, for its CPU time.
    tid: i32,
}

impl Pipeline {
    fn start(plan: &Plan, load: Load, sessions: u32) -> Result<Self> {
        let mut views = regions(plan)?;
        let region = views.pop().context("a view of the region for each thread")?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            measuring: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            records: AtomicU64::new(0),
            asked_us: (0..sessions).map(|_| AtomicU64::new(0)).collect(),
            watched: load.busy(sessions),
        });
        let target = null_injector(region, plan.shards, Arc::clone(&shared));
        let start = |(view, shard)| Worker::start(view, plan.clone(), shard);
        let workers = views.into_iter().zip(0..plan.shards).map(start).collect::<Result<_>>()?;
        let capturer = Capturer {
            dispatcher: Dispatcher::new(region, plan),
            shared: Arc::clone(&shared),
            clients: (0..sessions).map(Client::new).collect(),
            uploader: load.uploads().then(|| Client::new(sessions)),
            asked: 0,
            offered: 0,
            spent_ns: 0,
            backlog: 0,
            pace: None,
        };
        Ok(Self { region, shared, target, workers, capturer })
    }

    fn workers_ns(&self) -> Result<Vec<i64>> {
        self.workers.iter().map(|worker| thread_cpu_ns(worker.tid)).collect()
    }

    /// Ends all threads: how long the watched sessions' requests were on their way.
    fn end(self) -> Result<Histogram> {
        self.region.control().set_halt(true);
        for (worker, shard) in self.workers.into_iter().zip(0..) {
            self.region.doorbell(Role::Shard(shard)).ring();
            worker.thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        self.region.doorbell(Role::Injector).ring();
        self.target.join().map_err(|_| anyhow::anyhow!("the null injector panicked"))
    }
}

impl Worker {
    fn start(region: &'static Region, plan: Plan, shard: u16) -> Result<Self> {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // Nobody listens any more only when the bench has failed.
            let _ = tell.send(nix::unistd::gettid().as_raw());
            shard_worker::run(region, &plan, shard)
        });
        Ok(Self { thread, tid: told.recv()? })
    }
}

/// CPU time of a thread of this process so far (proc_pid_schedstat: the first number, nanoseconds).
fn thread_cpu_ns(tid: i32) -> Result<i64> {
    let path = format!("/proc/self/task/{tid}/schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.split(' ').next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path}: {text}"))
}

/// The capturer's side: frames in memory, and whose turn it is.
struct Capturer {
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    clients: Vec<Client>,
    uploader: Option<Client>,
    /// Requests captured.
    asked: u64,
    /// Bytes of the upload captured.
    offered: u64,
    /// CPU time of parsing, dispatch and publication.
    spent_ns: i64,
    /// Requests that were on their way at most.
    backlog: u64,
    pace: Option<Pace>,
}

/// When requests may be captured.
#[derive(Clone, Copy)]
struct Pace {
    per_s: f64,
    begun: Instant,
    asked: u64,
}

impl Pace {
    /// Frames of one capture batch: a nap of the capturer's at most.
    fn batch(&self) -> usize {
        (self.per_s * NAP_S).ceil() as usize
    }
}

impl Capturer {
    /// One batch, as the role takes it.
    fn batch(&mut self, packets: &[Vec<u8>]) {
        let time_ns = shm::monotonic_ns();
        let begun_ns = cpu_ns();
        for packet in packets {
            let frame = Frame::plain(packet, packet.len() as u32, time_ns);
            self.dispatcher.frame(&frame, time_ns);
        }
        self.dispatcher.commit(|_| ());
        self.spent_ns += cpu_ns() - begun_ns;
    }

    /// The handshakes, and a first request of each.
    fn open(&mut self, online: Endpoint) -> Result<()> {
        if let Some(uploader) = &mut self.uploader {
            let greeting = uploader.greeting_packets(online);
            self.batch(&greeting);
        }
        let all: Vec<u32> = (0..self.clients.len() as u32).collect();
        for some in all.chunks(BATCH) {
            let of = some[0] as usize..=some[some.len() - 1] as usize;
            let greetings: Vec<_> =
                self.clients[of].iter_mut().flat_map(|client| client.greeting_packets(online)).collect();
            self.batch(&greetings);
            // The first turn of a session waits for its handshake and touches its memory for the first time.
            self.round(some, some.len(), online)?;
        }
        self.wait_for(self.asked, online)
    }

    /// A turn of each. Who asks was answered before, when nobody is among `window` neighbours twice.
    fn round(&mut self, order: &[u32], window: usize, online: Endpoint) -> Result<()> {
        let batch = self.pace.as_ref().map_or(BATCH, Pace::batch).min(BATCH);
        for some in order.chunks(window.clamp(1, batch)) {
            let asked = self.asked + some.len() as u64;
            self.wait_for(asked.saturating_sub(window as u64), online)?;
            self.wait_until_due(online);
            let packets: Vec<_> =
                some.iter().map(|&n| self.clients[n as usize].request_packet(online)).collect();
            let now_us = shm::monotonic_us();
            for &n in some {
                self.shared.asked_us[n as usize].store(now_us, Ordering::Relaxed);
            }
            self.batch(&packets);
            self.asked = asked;
            self.backlog = self.backlog.max(asked - self.shared.answered.load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// Until the pace allows the next request. Who is behind catches up.
    fn wait_until_due(&mut self, online: Endpoint) {
        let Some(Pace { per_s, begun, asked }) = self.pace else { return };
        let due = begun + Duration::from_secs_f64((self.asked - asked) as f64 / per_s);
        while Instant::now() < due {
            self.upload(online);
            std::thread::yield_now();
        }
    }

    /// As many super-frames as may be on their way.
    fn upload(&mut self, online: Endpoint) {
        let Some(uploader) = &mut self.uploader else { return };
        let way = self.offered - self.shared.uploaded.load(Ordering::Acquire);
        let frames = (UPLOAD_WINDOW.saturating_sub(way)) / SUPER_FRAME;
        if frames > 0 {
            let payload = vec![b'u'; SUPER_FRAME as usize];
            let packets: Vec<_> = (0..frames).map(|_| uploader.upload_packet(online, &payload)).collect();
            self.offered += frames * SUPER_FRAME;
            self.batch(&packets);
        }
    }

    /// Until so many requests were answered.
    fn wait_for(&mut self, answers: u64, online: Endpoint) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let answered = || shared.answered.load(Ordering::Acquire);
        self.wait("requests were answered", answers, answered, online)
    }

    /// Until so many bytes of the upload have come out.
    fn wait_for_upload(&mut self, bytes: u64, online: Endpoint) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.wait("bytes of the upload came out", bytes, || shared.uploaded.load(Ordering::Acquire), online)
    }

    fn wait(&mut self, what: &str, wanted: u64, so_far: impl Fn() -> u64, online: Endpoint) -> Result<()> {
        let (mut since, mut before) = (Instant::now(), so_far());
        while so_far() < wanted {
            self.upload(online);
            std::thread::yield_now();
            if so_far() != before {
                (since, before) = (Instant::now(), so_far());
            }
            ensure!(
                since.elapsed() < PATIENCE,
                "{} of {wanted} {what}, and no more in {} s",
                so_far(),
                PATIENCE.as_secs()
            );
        }
        Ok(())
    }
}

fn measure(load: Load, shards: u16, sessions: u32, &Args { turns, rate, .. }: &Args) -> Result<Row> {
    let sessions = if load == Load::Upload { 0 } else { sessions };
    let plan = plan(shards, sessions);
    let online: Endpoint = SocketAddr::from(([10, 0, 0, 9], 8080)).into();
    let mut pipeline = Pipeline::start(&plan, load, sessions)?;
    let capturer = &mut pipeline.capturer;
    capturer.open(online)?;
    let order = load.round(sessions);
    let window = match load.busy(sessions) {
        0 => order.len(),
        busy => busy as usize,
    }
    .min(WINDOW);
    let (offered, asked) = (capturer.offered, capturer.asked);
    (capturer.spent_ns, capturer.backlog) = (0, 0);
    capturer.pace = rate.map(|per_s| Pace { per_s, begun: Instant::now(), asked: capturer.asked });
    let records = pipeline.shared.records.load(Ordering::Relaxed);
    pipeline.shared.measuring.store(true, Ordering::Relaxed);
    let before_ns = pipeline.workers_ns()?;
    let since = Instant::now();
    let capturer = &mut pipeline.capturer;
    if load == Load::Upload {
        capturer.wait_for_upload(offered + turns * SUPER_FRAME, online)?;
    }
    while load != Load::Upload && capturer.asked - asked < turns {
        capturer.round(&order, window, online)?;
    }
    capturer.wait_for(capturer.asked, online)?;
    let seconds = since.elapsed().as_secs_f64();
    let after_ns = pipeline.workers_ns()?;
    let capturer = &pipeline.capturer;
    let (turns, uploaded) = (capturer.asked - asked, (capturer.offered - offered) / SUPER_FRAME);
    let (capturer_ns, backlog) = (capturer.spent_ns, capturer.backlog);
    let records = pipeline.shared.records.load(Ordering::Relaxed) - records;
    let wait = pipeline.end()?;
    Ok(Row {
        load,
        shards,
        sessions,
        turns,
        uploaded,
        seconds,
        capturer_ns,
        shards_ns: after_ns.iter().zip(&before_ns).map(|(after, before)| after - before).collect(),
        records,
        wait,
        backlog,
    })
}

/// Takes the output of all shards and answers it into their return rings.
fn null_injector(region: &'static Region, shards: u16, shared: Arc<Shared>) -> JoinHandle<Histogram> {
    let mut lanes: Vec<_> = (0..shards)
        .map(|shard| {
            let (input, output) =
                (region.consumer(Link::Inject(shard)), region.producer(Link::Returns(shard)));
            (input, output, region.doorbell(Role::Shard(shard)))
        })
        .collect();
    let bell = region.doorbell(Role::Injector);
    let target = SocketAddr::from(([10, 0, 3, 2], 8080)).into();
    std::thread::spawn(move || {
        let mut wait = Histogram::default();
        // Where the upload's next byte stands. On a busy machine we come late, and some are sent again.
        let mut next: Option<Seq> = None;
        while !shared.stop.load(Ordering::Relaxed) {
            let ticket = bell.prepare();
            let mut taken = 0;
            let (now_us, measuring) = (shm::monotonic_us(), shared.measuring.load(Ordering::Relaxed));
            for (input, output, shard) in &mut lanes {
                let batch = input.peek_batch(INJECT_BATCH);
                taken += batch.len();
                let (mut requests, mut uploaded) = (0, 0);
                for record in &batch {
                    let Some((head, payload)) = Inject::split(record) else { continue };
                    if payload.len() == REQUEST as usize {
                        requests += 1;
                        let asked = bench::number_of(payload).filter(|&n| measuring && n >= shared.watched);
                        if let Some(asked_us) = asked.and_then(|n| shared.asked_us.get(n as usize)) {
                            wait.record(now_us.saturating_sub(asked_us.load(Ordering::Relaxed)));
                        }
                    } else if !payload.is_empty() {
                        let end = head.tcp.seq + payload.len() as u32;
                        uploaded += end.since(next.unwrap_or(head.tcp.seq)).max(0) as u64;
                        next = Some(next.filter(|next| end.before(*next)).unwrap_or(end));
                    }
                    let Some(answer) = bench::answer(&head, target, payload.len()) else { continue };
                    while !output.push(answer.as_bytes()) {
                        output.publish();
                        shard.ring();
                        std::thread::yield_now();
                    }
                }
                shared.records.fetch_add(batch.len() as u64, Ordering::Relaxed);
                batch.release();
                if output.publish() {
                    shard.ring();
                }
                shared.answered.fetch_add(requests, Ordering::Release);
                shared.uploaded.fetch_add(uploaded, Ordering::Release);
            }
            match taken {
                0 => drop(bell.wait(ticket, Duration::from_millis(100))),
                _ => bell.cancel(),
            }
        }
        wait
    })
}

fn plan(shards: u16, sessions: u32) -> Plan {
    let small = Plan::small(&["8080-10.0.3.2:8080"]);
    // Hashing is never quite even.
    let sessions_per_shard = sessions / u32::from(shards) * 5 / 4 + 256;
    Plan {
        shards,
        limits: Limits { sessions_per_shard, chunks_per_shard: 65_536, held_per_session: 1 << 20 },
        rings: Rings { capture: 8 << 20, inject: 4 << 20, returns: 2 << 20 },
        ..small
    }
}

/// A view of one region for each shard's thread and one for the others, as processes have them: an end of a ring can be taken
/// once in each.
fn regions(plan: &Plan) -> Result<Vec<&'static Region>> {
    let name = format!("bench-pipeline-{}-{}", std::process::id(), plan.shards);
    let spec = Spec {
        shards: plan.shards,
        capture_ring: plan.rings.capture,
        inject_ring: plan.rings.inject,
        return_ring: plan.rings.returns,
        arena: shard_worker::arena_bytes(plan),
    };
    let mut views = vec![Region::create(&name, &spec, &plan.to_bytes(), plan.instance)?];
    let attached: Result<Vec<_>, _> = (0..plan.shards).map(|_| Region::attach(&name)).collect();
    // Gone by name at once, also when attaching failed; the memory stays with this process.
    Region::remove(&name)?;
    views.extend(attached?);
    let control = views[0].control();
    control.set_percent_ppm(plan.percent_ppm);
    control.set_copies_milli(plan.copies_milli);
    Ok(views)
}
