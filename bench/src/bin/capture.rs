//! What does a captured frame cost in user space, from the kernel's ring into a shard's ring?
//!
//! ```text
//! cargo run --release -p bench --bin capture [-- --json] [ring|simple|pcap]
//! ```
//!
//! Frames are sent over loopback in a namespace of its own until the ring holds a good part of them, then drained in batches as the
//! role does; only draining, dispatch, publication and release are timed. The frames are cold: another core, or this one long
//! ago, wrote them. Rows: bytes of TCP payload; the ring alone (frames looked at, nothing copied); with dispatch.

use anyhow::{Context as _, Result};
use bench::cpu_ns;
use capturer::dispatch::Dispatcher;
use capturer::live::Live;
use capturer::pcap::Pcap;
use capturer::simple::Simple;
use capturer::source::Source;
use capturer::sys::{Begin, PacketSocket};
use flow::record::flag;
use flow::{Addr, Endpoint, Seq, TcpFields};
use lab::user::become_root_in_user_namespace;
use lab::{Namespace, netlink};
use shm::{Consumer, Link, Region, Spec};
use topology::Plan;
use topology::plan::{CaptureEngine, CapturePlan, Clients, Rings};

const SHARDS: u16 = 2;
const BATCH: u32 = 256;
const ROUNDS: usize = 7;
/// Rounds before anything is timed.
const LAPS: usize = 6;

fn main() -> Result<()> {
    let (json, args) = bench::arguments();
    let (engine, name) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["ring"] => (CaptureEngine::Ring, "ring"),
        ["simple"] => (CaptureEngine::Simple, "simple"),
        ["pcap"] => (CaptureEngine::Pcap, "pcap"),
        _ => anyhow::bail!("there is no engine {} to measure; ring, simple and pcap can be", args.join(" ")),
    };
    become_root_in_user_namespace()?;
    let ns = Namespace::new("capture")?;
    ns.enter(move || run(json, engine, name))
}

fn run(json: bool, engine: CaptureEngine, name: &str) -> Result<()> {
    netlink::set_up("lo", true)?;
    // libpcap's slots are of one size, so its ring holds as few small frames as large ones.
    let small = if engine == CaptureEngine::Ring { 20_000 } else { 700 };
    if !json {
        println!("payload bytes   frames  source alone ns/frame   with dispatch ns/frame   GB/s");
    }
    let mut found = Vec::new();
    for (payload, frames) in [(0, small), (200, small), (1_448, small), (8_000, 700), (60_000, 700)] {
        let mut bench = Bench::new(engine)?;
        // The first laps through a shard's ring map its pages; a capturer that has run for a second is past that.
        for _ in 0..LAPS {
            bench.round(payload, frames, true)?;
        }
        let (mut alone, mut dispatched) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            alone.push(bench.round(payload, frames, false)?);
            dispatched.push(bench.round(payload, frames, true)?);
        }
        let (alone, dispatched) = (median(alone), median(dispatched));
        if !json {
            let gigabytes = f64::from(payload) / dispatched;
            println!("{payload:>13} {frames:>8} {alone:>21.0} {dispatched:>24.0} {gigabytes:>6.1}");
        }
        found.push(serde_json::json!({
            "engine": name, "payload_bytes": payload, "frames": frames, "source_ns_per_frame": alone,
            "dispatched_ns_per_frame": dispatched,
        }));
    }
    if json {
        println!("{}", serde_json::Value::from(found));
    }
    Ok(())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

struct Bench {
    shards: Vec<Consumer>,
    dispatcher: Dispatcher,
    source: Box<dyn Source>,
}

impl Bench {
    fn new(engine: CaptureEngine) -> Result<Self> {
        let mut plan = plan();
        plan.capture.engine = engine;
        let name = format!("bench-capture-{}", std::process::id());
        let rings = plan.rings;
        let spec = Spec {
            shards: SHARDS,
            capture_ring: rings.capture,
            inject_ring: rings.inject,
            return_ring: rings.returns,
            arena: 4_096,
        };
        let region = Region::create(&name, &spec, &plan.to_bytes(), 1)?;
        Region::remove(&name)?;
        let sockets = capturer::open(&plan)?;
        let source: Box<dyn Source> = match engine {
            CaptureEngine::Simple => Box::new(Simple::new(&plan, sockets)?),
            CaptureEngine::Pcap => Box::new(Pcap::new(&plan)),
            _ => Box::new(Live::new(&plan, sockets, |_| 0)?),
        };
        Ok(Self {
            shards: (0..SHARDS).map(|shard| region.consumer(Link::Capture(shard))).collect(),
            dispatcher: Dispatcher::new(region, &plan),
            source,
        })
    }

    /// Nanoseconds of this thread's CPU time for each of `frames` frames.
    fn round(&mut self, payload: u32, frames: u32, dispatch: bool) -> Result<f64> {
        send(payload, frames)?;
        let (mut taken, mut bytes, mut spent_ns) = (0, 0, 0);
        while taken < frames {
            let begun = cpu_ns();
            let got = self.source.drain(BATCH, &mut |frame| {
                bytes += frame.packet.len();
                if dispatch {
                    self.dispatcher.frame(frame, frame.time_ns);
                }
            });
            self.dispatcher.commit(|note| self.source.positions(note));
            self.source.release();
            spent_ns += cpu_ns() - begun;
            taken += got;
            let dropped = self.source.take_dropped();
            anyhow::ensure!(
                got > 0,
                "{taken} of {frames} frames came ({bytes} bytes); {dropped} were dropped"
            );
            for shard in &mut self.shards {
                while shard.next().is_some() {}
                shard.release();
            }
        }
        Ok(spent_ns as f64 / f64::from(frames))
    }
}

/// Sends segments of many clients; what comes back over loopback is addressed to this host.
fn send(payload: u32, frames: u32) -> Result<()> {
    let socket = PacketSocket::open(Begin::Link)?;
    socket.bind(netlink::index("lo")?)?;
    // A frame above the MTU is refused, and 64 KiB is what loopback has.
    let payload = vec![7; payload as usize];
    let server = Endpoint::new(Addr::v4([10, 0, 0, 9]), 8080);
    for i in 0..frames {
        let client = Endpoint::new(Addr::v4([10, 9, (i >> 6) as u8, i as u8]), 30_000 + (i % 1_000) as u16);
        let tcp = TcpFields { seq: Seq(i), flags: flag::ACK, ..TcpFields::default() };
        // Loopback's own addresses are all zeros.
        let frame = [&[0; 12][..], &[8, 0], &bench::packet(client, server, &tcp, &payload)].concat();
        nix::unistd::write(&socket, &frame).context("sending over loopback")?;
    }
    Ok(())
}

fn plan() -> Plan {
    let small = Plan::small(&["8080-10.0.3.2:8080"]);
    Plan {
        clients: Clients::Keep,
        capture: CapturePlan { buffer_bytes: 128 << 20, ..small.capture },
        shards: SHARDS,
        rings: Rings { capture: 8 << 20, ..small.rings },
        ..small
    }
}
