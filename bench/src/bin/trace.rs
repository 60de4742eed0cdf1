//! How fast are packet files read? Packets and bytes a second on one core, and the memory it takes: reading alone, and with what
//! `replay --dry-run` does with each packet (parsed, mapped, counted).
//!
//! ```text
//! cargo build --release -p bench
//! target/release/trace [--json] [MIB]
//! ```
//!
//! The file (1 GiB unless given, at most 4) is made in the temporary directory and removed: 20,000 connections of requests and answers,
//! 64 to 1,448 bytes of payload a packet.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use capturer::online::Online;
use capturer::survey::{Bounds, Survey};
use flow::record::flag;
use flow::{Addr, Endpoint, Seq, TcpFields};
use lab::dump::{self, Order};
use lab::scratch::Scratch;
use trace::{Options, Reader};

const MIB: u64 = 1 << 20;
const CONNECTIONS: u32 = 20_000;

fn main() -> ExitCode {
    bench::ended(measure())
}

fn measure() -> Result<()> {
    let (json, args) = bench::arguments();
    let mib = match &args[..] {
        [] => 1_024,
        [text] => text.parse().with_context(|| format!("{text} is not a number of MiB"))?,
        more => anyhow::bail!("{}: there are --json and a number of MiB", more.join(" ")),
    };
    ensure!((1..=4_096).contains(&mib), "{mib} MiB: write 1 to 4096");
    let dir = Scratch::new("bench-trace")?;
    let path = dir.file("packets.pcap");
    let made = make(&path, mib * MIB)?;
    let before_mib = peak_mib()?;
    let online = || Online::of([(None, 80, 0)].into_iter(), vec![], vec![]);
    let mut survey = Survey::new(online(), 1, Bounds::default());
    let paths = [path];
    let read = pass("read", &paths, made, json, |_| {})?;
    let dry_run = pass("dry run", &paths, made, json, |packet| survey.packet(packet))?;
    let sums = survey.sums();
    ensure!(sums.packets + sums.answers == made, "{sums:?}: not all of {made} packets are mapped");
    if json {
        println!(
            "{}",
            serde_json::json!({"packets": made, "read": read, "dry_run": dry_run, "peak_mib": peak_mib()?, "before_mib": before_mib})
        );
        return Ok(());
    }
    println!("memory  {:>9.1} MiB at most, {before_mib:.1} before", peak_mib()?);
    println!(
        "found   {} sessions, {} turns, {} bytes missing",
        sums.begun + sums.midstream,
        sums.turns,
        sums.missing_bytes
    );
    Ok(())
}

fn pass(
    what: &str,
    paths: &[PathBuf],
    made: u64,
    json: bool,
    mut take: impl FnMut(&trace::Packet<'_>),
) -> Result<serde_json::Value> {
    let started = Instant::now();
    let mut reader = Reader::open(paths, Options::default())?;
    while let Some(packet) = reader.next() {
        take(&packet);
    }
    let took = started.elapsed().as_secs_f64();
    ensure!(reader.report().packets == made, "{} of {made} packets", reader.report().packets);
    let read = reader.progress().read as f64 / MIB as f64;
    let (packets_per_s, mib_per_s, each) = (made as f64 / took, read / took, took * 1e9 / made as f64);
    if !json {
        println!("{what:<7} {packets_per_s:>9.0} packets/s {mib_per_s:>7.0} MiB/s  {each:>4.0} ns each");
    }
    Ok(serde_json::json!({"packets_per_s": packets_per_s, "mib_per_s": mib_per_s, "ns_each": each}))
}

/// Writes the file and says how many packets it holds.
fn make(path: &Path, bytes: u64) -> Result<u64> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).context("making the file")?);
    file.write_all(&dump::pcap(Order::Little, true, 1))?;
    let server = Endpoint::new(Addr::v4([10, 0, 0, 9]), 80);
    let (mut written, mut packets) = (24, 0_u64);
    let payload = [b'x'; 1_448];
    let mut numbers = vec![(1_u32, 1_u32); CONNECTIONS as usize];
    while written < bytes {
        let n = (packets / 2 % u64::from(CONNECTIONS)) as u32;
        let client = Endpoint::new(Addr::v4([10, 1, (n >> 8) as u8, n as u8]), 40_000);
        let (sent, answered) = &mut numbers[n as usize];
        let request = packets.is_multiple_of(2);
        let len = if request { 64 + packets as usize % 400 } else { 200 + packets as usize * 7 % 1_249 };
        let (src, dst, seq, ack) = match request {
            true => (client, server, *sent, *answered),
            false => (server, client, *answered, *sent),
        };
        *(if request { sent } else { answered }) += len as u32;
        let tcp =
            TcpFields { seq: Seq(seq), ack: Seq(ack), flags: flag::ACK | flag::PSH, ..TcpFields::default() };
        let frame = dump::ethernet(0x0800, &bench::packet(src, dst, &tcp, &payload[..len]));
        let (s, ns) = (packets / 1_000_000, packets % 1_000_000 * 1_000);
        let record = dump::record(Order::Little, s as u32, ns as u32, &frame, frame.len() as u32);
        file.write_all(&record)?;
        written += record.len() as u64;
        packets += 1;
    }
    file.flush()?;
    Ok(packets)
}

/// The most memory that this process had, MiB.
fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.context("/proc/self/status has no VmHWM")? / 1_024.0)
}
