//! What does a segment cost to send, by each engine?
//!
//! ```text
//! cargo run --release -p bench --bin inject [-- --json]
//! ```
//!
//! The role's own sender on batches as the shards' rings give them, over a pair of Ethernet devices between two namespaces of
//! its own; the frames are for no address there, so that the other end drops them at once. CPU time of the sending thread, which on
//! such devices includes a part of the receiving kernel's work, for every engine alike; the best of several rounds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flow::record::flag;
use flow::{Inject, Seq, TcpFields};
use injector::guard::Guard;
use injector::sender::{Engine as _, Sender};
use injector::tally::Tally;
use injector::{Choice, Count};
use lab::user::become_root_in_user_namespace;
use lab::{Namespace, netlink};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use shm::{ANY_DEVICE, Region, Spec};
use topology::planner::Facts;
use topology::{Key, Options, Place, Plan, plan_from};
use zerocopy::IntoBytes as _;

/// Records of one batch, as the injector takes them from a ring.
const BATCH: usize = 64;
const ROUNDS: usize = 7;
/// Payload bytes sent in one round at most, and segments at least.
const ROUND_BYTES: usize = 64 << 20;
const ROUND_SEGMENTS: usize = 50_000;
/// Payloads: an acknowledgement, a frame of 200 bytes, a full segment, a super-frame.
const PAYLOADS: [usize; 4] = [0, 146, 1_448, 60_000];
const SEGMENT: u16 = 1_448;

fn main() -> Result<()> {
    let as_json = std::env::args().skip(1).any(|arg| arg == "--json");
    become_root_in_user_namespace()?;
    let sink = Namespace::new("sink")?;
    let source = Namespace::new("source")?;
    let peer = std::os::fd::AsRawFd::as_raw_fd(&sink.fd());
    source.enter(move || netlink::add_veth("eth0", "eth0", peer))?;
    sink.enter(|| netlink::set_up("eth0", true))?;
    source.enter(move || run(as_json))
}

fn run(as_json: bool) -> Result<()> {
    netlink::set_up("eth0", true)?;
    netlink::add_address("eth0", [10, 8, 0, 1].into(), 24)?;
    let neighbour = ["neigh", "replace", "10.8.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0"];
    let done = std::process::Command::new("ip").args(neighbour).status().context("running ip")?;
    ensure!(done.success(), "ip {} failed", neighbour.join(" "));
    let mut found = Vec::new();
    if !as_json {
        println!(
            "{:<7} {:>14} {:>12} {:>12} {:>10} {:>15}",
            "engine", "payload bytes", "ns/segment", "ns/KiB", "Gbit/s", "segments/call"
        );
    }
    for (name, choice) in [("raw", Choice::RawAsked), ("link", Choice::Link), ("pcap", Choice::Pcap)] {
        if choice == Choice::Pcap
            && let Err(error) = libpcap::version()
        {
            eprintln!("pcap: {error}");
            continue;
        }
        let mut bench = Bench::new(name, choice)?;
        for payload in PAYLOADS {
            let rounds = (0..ROUNDS).map(|_| bench.round(payload)).collect::<Result<Vec<_>>>()?;
            let best = rounds.into_iter().min_by(|a, b| a.ns.total_cmp(&b.ns)).context("no round")?;
            let ns_a_kib = if payload == 0 { f64::NAN } else { best.ns_all / (best.bytes as f64 / 1_024.0) };
            let gbit = best.bytes as f64 * 8.0 / best.ns_all;
            if as_json {
                found.push(json!({ "engine": name, "payload_bytes": payload, "ns_per_segment": best.ns,
                    "gbit_per_s": gbit, "segments_per_call": best.per_call }));
            } else {
                println!(
                    "{name:<7} {payload:>14} {:>12.0} {ns_a_kib:>12.0} {gbit:>10.1} {:>15.1}",
                    best.ns, best.per_call
                );
            }
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    }
    Ok(())
}

struct Round {
    /// For each segment.
    ns: f64,
    ns_all: f64,
    bytes: u64,
    per_call: f64,
}

struct Bench {
    guard: Guard,
    sender: Sender,
}

impl Bench {
    fn new(engine: &str, wanted: Choice) -> Result<Self> {
        let plan = plan(engine)?;
        let name = format!("bench-inject-{}-{engine}", std::process::id());
        let spec = Spec {
            shards: plan.shards,
            capture_ring: 1 << 12,
            inject_ring: 1 << 12,
            return_ring: 1 << 12,
            arena: 4_096,
        };
        let region = Region::create(&name, &spec, &plan.to_bytes(), 1)?;
        Region::remove(&name)?;
        region.control().set_guarded(&[ANY_DEVICE]);
        let lookout = injector::Lookout::start(&plan)?;
        let sockets = injector::open(&plan)?.told_by(lookout.attach()?);
        let mut sender = Sender::open(&plan, sockets, region.control(), 0);
        let begun = Instant::now();
        let mut choices = vec![Choice::Unknown];
        while choices.contains(&Choice::Unknown) && begun.elapsed() < Duration::from_secs(10) {
            sender.look(&mut Tally::default());
            if let Some(news) = sender.news() {
                choices = news.collect();
            }
        }
        ensure!(choices == [wanted], "{engine} was wanted, {choices:?} was had");
        Ok(Self { guard: Guard::new(&plan), sender })
    }

    fn round(&mut self, payload: usize) -> Result<Round> {
        let segments = payload.div_ceil(SEGMENT.into()).max(1);
        let records = (ROUND_BYTES / payload.max(1)).min(ROUND_SEGMENTS / segments).max(BATCH);
        let batch: Vec<Vec<u8>> = (0..BATCH).map(|i| record(i as u16, payload)).collect();
        let mut tally = Tally::default();
        let begun = cpu_time()?;
        for _ in 0..records / BATCH {
            self.sender.look(&mut tally);
            let checked = batch.iter().filter_map(|bytes| self.guard.check(bytes).ok());
            self.sender.send(checked, &mut tally);
        }
        let ns_all = (cpu_time()? - begun).as_nanos() as f64;
        let sent = tally.get(Count::Segments);
        let wanted = (records / BATCH * BATCH * segments) as u64;
        // What is refused costs less: such a round says nothing.
        ensure!(sent == wanted, "{sent} of {wanted} segments left: {tally:?}");
        Ok(Round {
            ns: ns_all / sent as f64,
            ns_all,
            bytes: tally.get(Count::PayloadBytes),
            per_call: sent as f64 / tally.get(Count::Calls) as f64,
        })
    }
}

fn record(port: u16, payload: usize) -> Vec<u8> {
    let client: std::net::SocketAddr = ([198, 18, 0, 1], 10_000 + port).into();
    let tcp = TcpFields { seq: Seq(1), ack: Seq(1), flags: flag::ACK, window: 500, ..TcpFields::default() };
    let head =
        Inject { tcp, client: client.into(), mss: SEGMENT, payload_len: payload as u32, ..Inject::default() };
    [head.as_bytes(), &vec![7; payload]].concat()
}

/// CPU time rather than the wall clock's: this machine is shared.
fn cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(now))
}

fn plan(engine: &str) -> Result<Plan> {
    let mut options = Options::default();
    for (key, text) in [
        (Key::Map, "80-10.8.0.9:8080"),
        (Key::Intercept, "127.0.0.1"),
        (Key::Clients, "198.18.0.0/15"),
        (Key::Inject, engine),
    ] {
        options.give(key, text, Place::CommandLine);
    }
    let facts = Facts {
        cores: vec![0],
        host_id: 1,
        random: [1; 6],
        key: None,
        arena_bytes: session::Table::arena_bytes,
        format: 0,
    };
    Ok(plan_from(&options, &facts)?)
}
