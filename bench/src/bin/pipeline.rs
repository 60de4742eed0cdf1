//! What does the whole pipeline cost without sockets: captured frames from memory → dispatch → shards → a null injector?
//!
//! ```text
//! cargo run --release -p bench --bin pipeline -- [--shards 1,2,4,8] [--sessions 10,10000] [--turns 400000] [--json]
//! ```
//!
//! The roles' own code on rings of a real region, each role a thread. The null injector is the target too: it answers each
//! request at once with one header, so a turn is one captured request and one returned header. A client asks again only
//! when it was answered; 4,096 requests are on their way at most. CPU time of each role, its sleeping and waking included: with
//! more shards than cores the wall clock says nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::{Client, REQUEST, cpu_ns};
use capturer::dispatch::Dispatcher;
use capturer::source::Frame;
use flow::{Endpoint, Inject};
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
/// A turn that takes this long will not end any more.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let args = Args::read()?;
    let mut rows = Vec::new();
    if !args.json {
        println!("CPU of each role, ns");
        println!(
            "{:>7} {:>9} {:>9} {:>15} {:>15} {:>13} {:>9}",
            "shards", "sessions", "turns", "capturer/frame", "shards/packet", "both/turn", "Mpackets/s"
        );
    }
    for &sessions in &args.sessions {
        for &shards in &args.shards {
            let row = measure(shards, sessions, args.turns)?;
            if !args.json {
                println!(
                    "{shards:>7} {sessions:>9} {:>9} {:>15.0} {:>15.0} {:>13.0} {:>9.2}",
                    row.turns,
                    row.capturer_ns,
                    row.shard_ns,
                    row.capturer_ns + 2.0 * row.shard_ns,
                    row.packets_per_second / 1e6,
                );
            }
            rows.push(row.json(shards, sessions));
        }
    }
    if args.json {
        println!("{}", serde_json::Value::from(rows));
    }
    Ok(())
}

struct Args {
    shards: Vec<u16>,
    sessions: Vec<u32>,
    turns: u64,
    json: bool,
}

impl Args {
    fn read() -> Result<Self> {
        let mut args =
            Self { shards: vec![1, 2, 4, 8], sessions: vec![10, 10_000], turns: 400_000, json: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--shards" => args.shards = list(&value()?)?,
                "--sessions" => args.sessions = list(&value()?)?,
                "--turns" => args.turns = value()?.parse().context("--turns: a number")?,
                "--json" => args.json = true,
                other => anyhow::bail!("{other}: there are --shards, --sessions, --turns and --json"),
            }
        }
        Ok(args)
    }
}

fn list<T: std::str::FromStr>(text: &str) -> Result<Vec<T>> {
    let parse = |part: &str| part.parse().ok().with_context(|| format!("{part} is not a number"));
    text.split(',').map(parse).collect()
}

/// What one configuration came to.
struct Row {
    turns: u64,
    capturer_ns: f64,
    shard_ns: f64,
    packets_per_second: f64,
}

impl Row {
    fn json(&self, shards: u16, sessions: u32) -> serde_json::Value {
        serde_json::json!({
            "shards": shards, "sessions": sessions, "turns": self.turns,
            "capturer_ns_per_frame": self.capturer_ns, "shards_ns_per_packet": self.shard_ns,
            "packets_per_second": self.packets_per_second,
        })
    }
}

/// The threads of one configuration, until they are told to stop.
struct Pipeline {
    region: &'static Region,
    stop: Arc<AtomicBool>,
    target: JoinHandle<()>,
    workers: Vec<Worker>,
    capturer: Capturer,
}

struct Worker {
    thread: JoinHandle<Result<(), WorkerError>>,
    /// Its thread id, for its CPU time.
    tid: i32,
}

impl Pipeline {
    fn start(plan: &Plan) -> Result<Self> {
        let mut views = regions(plan)?;
        let region = views.pop().context("a view of the region for each thread")?;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let target = null_injector(region, plan.shards, Arc::clone(&answered), Arc::clone(&stop));
        let start = |(view, shard)| Worker::start(view, plan.clone(), shard);
        let workers = views.into_iter().zip(0..plan.shards).map(start).collect::<Result<_>>()?;
        let dispatcher = Dispatcher::new(region, plan);
        let capturer = Capturer { dispatcher, answered, asked: 0, spent_ns: 0 };
        Ok(Self { region, stop, target, workers, capturer })
    }

    fn workers_ns(&self) -> Result<i64> {
        self.workers.iter().map(|worker| thread_cpu_ns(worker.tid)).sum()
    }

    fn end(self) -> Result<()> {
        self.region.control().set_halt(true);
        for (worker, shard) in self.workers.into_iter().zip(0..) {
            self.region.doorbell(Role::Shard(shard)).ring();
            worker.thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        self.stop.store(true, Ordering::Relaxed);
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
    answered: Arc<AtomicU64>,
    /// Requests captured.
    asked: u64,
    /// CPU time of parsing, dispatch and publication.
    spent_ns: i64,
}

impl Capturer {
    /// One batch, as the role takes it.
    fn batch(&mut self, packets: &[Vec<u8>]) {
        let time_ns = shm::monotonic_ns();
        let begun_ns = cpu_ns();
        for packet in packets {
            let frame = Frame { packet, wire_len: packet.len() as u32, time_ns, checksum_unfilled: false };
            self.dispatcher.frame(&frame, time_ns);
        }
        self.dispatcher.commit(|_| ());
        self.spent_ns += cpu_ns() - begun_ns;
    }

    /// A turn of each client. Who asks was answered before.
    fn round(&mut self, clients: &mut [Client], online: Endpoint) -> Result<()> {
        let window = clients.len().min(WINDOW) as u64;
        for some in clients.chunks_mut(BATCH) {
            let packets: Vec<_> = some.iter_mut().map(|client| client.request_packet(online)).collect();
            let asked = self.asked + packets.len() as u64;
            self.wait_for(asked.saturating_sub(window))?;
            self.batch(&packets);
            self.asked = asked;
        }
        Ok(())
    }

    /// Until so many requests were answered.
    fn wait_for(&self, answers: u64) -> Result<()> {
        let since = Instant::now();
        while self.answered.load(Ordering::Acquire) < answers {
            ensure!(
                since.elapsed() < PATIENCE,
                "{} of {} requests were answered, and no more came in {} s",
                self.answered.load(Ordering::Acquire),
                self.asked,
                PATIENCE.as_secs()
            );
            std::thread::yield_now();
        }
        Ok(())
    }
}

fn measure(shards: u16, sessions: u32, turns: u64) -> Result<Row> {
    let plan = plan(shards, sessions);
    let online: Endpoint = SocketAddr::from(([10, 0, 0, 9], 8080)).into();
    let mut pipeline = Pipeline::start(&plan)?;
    let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
    for some in clients.chunks_mut(BATCH) {
        let greetings: Vec<_> = some.iter_mut().flat_map(|client| client.greeting_packets(online)).collect();
        pipeline.capturer.batch(&greetings);
        // The first turn of a session waits for its handshake and touches its memory for the first time.
        pipeline.capturer.round(some, online)?;
    }
    pipeline.capturer.wait_for(pipeline.capturer.asked)?;
    let before_ns = pipeline.workers_ns()?;
    pipeline.capturer.spent_ns = 0;
    let since = Instant::now();
    let rounds = turns.div_ceil(u64::from(sessions)).max(1);
    for _ in 0..rounds {
        pipeline.capturer.round(&mut clients, online)?;
    }
    pipeline.capturer.wait_for(pipeline.capturer.asked)?;
    let elapsed = since.elapsed().as_secs_f64();
    let turns = rounds * u64::from(sessions);
    let row = Row {
        turns,
        capturer_ns: pipeline.capturer.spent_ns as f64 / turns as f64,
        shard_ns: (pipeline.workers_ns()? - before_ns) as f64 / (2 * turns) as f64,
        packets_per_second: 2.0 * turns as f64 / elapsed,
    };
    pipeline.end()?;
    Ok(row)
}

/// Takes the output of all shards and answers it into their return rings.
fn null_injector(
    region: &'static Region,
    shards: u16,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> JoinHandle<()> {
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
        while !stop.load(Ordering::Relaxed) {
            let ticket = bell.prepare();
            let mut taken = 0;
            for (input, output, shard) in &mut lanes {
                let batch = input.peek_batch(INJECT_BATCH);
                taken += batch.len();
                let mut requests = 0;
                for record in &batch {
                    let Some((head, payload)) = Inject::split(record) else { continue };
                    requests += u64::from(payload.len() == REQUEST as usize);
                    let Some(answer) = bench::answer(&head, target, payload.len()) else { continue };
                    while !output.push(answer.as_bytes()) {
                        output.publish();
                        shard.ring();
                        std::thread::yield_now();
                    }
                }
                batch.release();
                if output.publish() {
                    shard.ring();
                }
                answered.fetch_add(requests, Ordering::Release);
            }
            match taken {
                0 => drop(bell.wait(ticket, Duration::from_millis(100))),
                _ => bell.cancel(),
            }
        }
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
