//! How long after a worker's death does its successor take a record, with a million sessions in the shard?
//!
//! ```text
//! cargo run --release -p bench --bin takeover [-- --json]
//! ```
//!
//! A real process over a real region, killed again and again, its successor started at once as the supervisor does (fork and exec
//! of the program itself). A captured segment of one of the sessions waits in the ring meanwhile. Time runs from the kill to the
//! moment at which that segment is taken; beside it stands how much of it the kernel takes to be rid of the dead process and the
//! pages that it had mapped, before which nobody may touch them.

use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::machine::Machine;
use bench::{Client, REQUEST};
use flow::record::flag;
use serde_json::{Map, json};
use session::{Count, Table};
use shard_worker::counters::{Gauge, offset_count, offset_gauge};
use shm::{Link, Region, Role};
use topology::Plan;
use topology::plan::Limits;
use zerocopy::IntoBytes as _;

const SHARD: Role = Role::Shard(0);
/// Deaths of each size.
const DEATHS: usize = 60;
/// A successor may work for so long before it is killed, at most: with many sessions, not all of them die after the walk.
const LIVES_MS: u64 = 300;

fn main() -> ExitCode {
    let (json, args) = bench::arguments();
    bench::ended(match args.as_slice() {
        [] => measure(json),
        [role, name] if role == "worker" => work(name),
        _ => Err(anyhow::anyhow!("{}: there is --json", args.join(" "))),
    })
}

/// What the killed process does.
fn work(name: &str) -> Result<()> {
    let region = Region::attach(name)?;
    let plan = Plan::from_bytes(&region.plan_bytes())?;
    Ok(shard_worker::run(region, &plan, 0)?)
}

fn measure(json: bool) -> Result<()> {
    let mut found = Map::new();
    for sessions in [1_000, 1_000_000] {
        let name = format!("bench-takeover-{}-{sessions}", std::process::id());
        let measured = deaths(&name, sessions);
        let _ = Region::remove(&name);
        let (mut whole, mut reaped): (Vec<Duration>, Vec<Duration>) = measured?.into_iter().unzip();
        for (what, times) in [("to the first record", &mut whole), ("until it is reaped", &mut reaped)] {
            times.sort_unstable();
            let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
            let [p50, p99, max] = [at(50), at(99), at(100)];
            if !json {
                let name = format!("{sessions} sessions, {DEATHS} deaths, {what}");
                println!("{name:<54} p50 {p50:.1} p99 {p99:.1} max {max:.1} ms");
            }
            let figures = json!({ "p50_ms": p50, "p99_ms": p99, "max_ms": max });
            found.insert(format!("{sessions} sessions, {what}"), figures);
        }
    }
    if json {
        println!("{}", serde_json::Value::Object(found));
    }
    Ok(())
}

/// From each kill to the first record, and to the end of the dead process.
fn deaths(name: &str, sessions: u32) -> Result<Vec<(Duration, Duration)>> {
    let small = Plan::small(&["8080-10.0.3.2:8080"]);
    let limits = Limits { sessions_per_shard: sessions, chunks_per_shard: 65_536, held_per_session: 1 << 20 };
    let plan = Plan { name: name.to_owned(), limits, ..small };
    let spec = topology::wiring::region_spec(&plan, shard_worker::arena_bytes);
    let region = Region::create(name, &spec, &plan.to_bytes(), 1)?;
    region.control().set_percent_ppm(plan.percent_ppm);
    region.control().set_copies_milli(plan.copies_milli);
    let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
    let server = {
        let table = Table::new(region.arena(0), shard_worker::machine_config(&plan, 0));
        let mut rig = Machine::on(table, shm::monotonic_us());
        clients.iter_mut().for_each(|client| rig.open(client));
        ensure!(rig.table.tally().open == u64::from(sessions), "not all sessions are open");
        rig.table.config().targets[0].endpoint
    };
    let mut capturer = region.producer(Link::Capture(0));
    let mut injector = region.consumer(Link::Inject(0));
    let mut times = Vec::new();
    let mut worker = None;
    for death in 0..=DEATHS {
        let client = &mut clients[death * sessions as usize / (DEATHS + 1)];
        let head = client.segment(server, shm::monotonic_ns(), flag::ACK | flag::PSH, REQUEST);
        ensure!(capturer.push(&[head.as_bytes(), &[b'r'; REQUEST as usize]].concat()), "no room in the ring");
        let killed = Instant::now();
        // Dead and reaped: only then a successor may begin.
        drop(worker.take());
        let reaped = killed.elapsed();
        capturer.publish();
        region.doorbell(SHARD).ring();
        worker = Some(Worker::start(name)?);
        let taken = offset_count(Count::TakenSegments);
        while region.read_counter(SHARD, taken) <= death as u64 {
            ensure!(killed.elapsed() < Duration::from_secs(20), "the worker takes nothing");
            std::thread::yield_now();
        }
        if death > 0 {
            times.push((killed.elapsed(), reaped));
        }
        let lives = Duration::from_millis(death as u64 * 7 % LIVES_MS);
        std::thread::sleep(lives);
        while injector.next().is_some() {}
        injector.release();
    }
    let until = Instant::now() + Duration::from_secs(20);
    while region.read_counter(SHARD, offset_gauge(Gauge::Open)) != u64::from(sessions)
        && Instant::now() < until
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    for (what, count) in [("unusable", Count::SlotsUnusable), ("started", Count::SessionsStarted)] {
        let n = region.read_counter(SHARD, offset_count(count));
        ensure!(n == 0, "{n} sessions {what}");
    }
    Ok(times)
}

/// The worker's process: killed, and gone for good afterwards.
struct Worker(Child);

impl Worker {
    fn start(name: &str) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        let child = command.args(["worker", name]).stdout(Stdio::null()).spawn();
        Ok(Self(child.context("starting a worker")?))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
