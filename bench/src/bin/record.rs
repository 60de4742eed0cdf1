//! How many bits a second does `tcptwin record` write without loss?
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/record [--json] [--zstd] [--seconds N] [GBIT/S]...
//! ```
//!
//! A packet socket sends segments of 1,400 bytes from the IP header on over a veth, from a namespace of its own; in another one the
//! program records them as from a mirror port, into a directory in /dev/shm of which `--keep` leaves half a GiB. A packet that was
//! sent and is in no file is lost, wherever: the kernel's ring, the recorder's, the disk. Each rate has a recorder of its own.
//! The sender's core does the kernel's part of the receiving too, as veth has it, so with two cores the highest rates tell of
//! the sender.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use capturer::sys::{Begin, PacketSocket};
use flow::record::flag;
use flow::{Addr, Endpoint, Seq, TcpFields};
use lab::dump;
use lab::{Host, Namespace, Stats, Twin, netlink, wait};
use serde_json::json;

const PACKET_BYTES: usize = 1_400;
const SETTLE: Duration = Duration::from_secs(20);
/// Longest that one rate is kept up.
const MAX_SECONDS: u64 = 30;

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

struct Asked {
    json: bool,
    zstd: bool,
    seconds: u64,
    rates: Vec<f64>,
}

fn asked() -> Result<Asked> {
    let mut asked = Asked { json: false, zstd: false, seconds: 4, rates: vec![] };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => asked.json = true,
            "--zstd" => asked.zstd = true,
            "--seconds" => {
                let text = args.next().context("--seconds wants a number")?;
                asked.seconds = text.parse().with_context(|| format!("{text} is no number of seconds"))?;
                ensure!((1..=MAX_SECONDS).contains(&asked.seconds), "from 1 to {MAX_SECONDS} seconds");
            }
            rate => match rate.parse::<f64>() {
                Ok(gbit) if gbit > 0.0 => asked.rates.push(gbit),
                _ => bail!("{rate} is no rate in Gbit/s"),
            },
        }
    }
    if asked.rates.is_empty() {
        asked.rates = vec![1.0, 2.0, 3.0, 4.0, 100.0];
    }
    Ok(asked)
}

/// What came of one rate.
struct Row {
    wanted_gbit: f64,
    sent: u64,
    seconds: f64,
    stats: Stats,
    /// CPU seconds of the role, both threads, while it was sent.
    cpu_s: f64,
}

impl Row {
    fn number(&self, path: &str) -> u64 {
        self.stats.number(path).unwrap_or(0)
    }

    fn written(&self) -> u64 {
        self.number("/record/written/packets")
    }

    fn sent_gbit(&self) -> f64 {
        (self.sent * PACKET_BYTES as u64 * 8) as f64 / 1e9 / self.seconds
    }

    fn value(&self) -> serde_json::Value {
        json!({
            "wanted_gbit_s": self.wanted_gbit,
            "sent_gbit_s": self.sent_gbit(),
            "sent": self.sent,
            "written": self.written(),
            "lost": self.sent - self.written().min(self.sent),
            "kernel_drops": self.number("/capture/kernel_drops"),
            "ring_full": self.number("/record/dropped/ring_full/packets"),
            "disk": self.number("/record/dropped/disk/packets"),
            "cpu_percent": self.cpu_s * 100.0 / self.seconds,
        })
    }
}

fn measure() -> Result<()> {
    let asked = asked()?;
    let twin = Twin::new(std::env::current_exe()?.with_file_name("tcptwin"))?;
    let (sender, recorder) = (Namespace::new("sender")?, Host { ns: Namespace::new("recorder")?, number: 1 });
    let peer = recorder.ns.fd().as_raw_fd();
    sender.enter(move || -> Result<()> {
        netlink::add_veth("out0", "in0", peer)?;
        Ok(netlink::set_up("out0", true)?)
    })?;
    recorder.ns.enter(|| netlink::set_up("in0", true))?;
    if !asked.json {
        println!("wanted Gbit/s   sent Gbit/s      packets         lost   kernel   ring   disk   role cpu %");
    }
    let mut found = Vec::new();
    for &gbit in &asked.rates {
        let row = one(&twin, &sender, &recorder, gbit, &asked)?;
        let value = row.value();
        let number = |name: &str| value[name].as_u64().unwrap_or(0);
        if !asked.json {
            println!(
                "{:>13.1} {:>13.2} {:>12} {:>12} {:>8} {:>6} {:>6} {:>12.0}",
                row.wanted_gbit,
                row.sent_gbit(),
                row.sent,
                number("lost"),
                number("kernel_drops"),
                number("ring_full"),
                number("disk"),
                row.cpu_s * 100.0 / row.seconds
            );
        }
        found.push(value);
    }
    if asked.json {
        println!("{}", serde_json::Value::from(found));
    }
    Ok(())
}

/// A directory in memory that goes.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn one(twin: &Twin, sender: &Namespace, host: &Host, gbit: f64, asked: &Asked) -> Result<Row> {
    let directory = Directory(Path::new("/dev/shm").join(format!("bench-record-{}", std::process::id())));
    let path = directory.0.to_str().context("a path of plain text")?;
    let mut args = vec![
        "-x",
        "10.9.0.9:80",
        "-i",
        "in0",
        "--mirror",
        "-o",
        path,
        "--rotate",
        "64MiB",
        "--keep",
        "512MiB",
    ];
    if asked.zstd {
        args.push("--zstd");
    }
    let record = twin.record(host, &args)?;
    let before_s = cpu_s(&record.stats()?)?;
    let time = Duration::from_secs(asked.seconds);
    let (sent, seconds) = sender.enter(move || send(gbit, time))?;
    let cpu_s = cpu_s(&record.stats()?)? - before_s;
    wait::until("the last packets are written", SETTLE, || {
        record.stats().is_ok_and(|stats| {
            let of = |path: &str| stats.number(path).unwrap_or(0);
            of("/capture/frames") + of("/capture/kernel_drops") >= sent && of("/record/waiting/packets") == 0
        })
    })?;
    let stats = record.stop_run()?;
    Ok(Row { wanted_gbit: gbit, sent, seconds, stats, cpu_s })
}

fn cpu_s(stats: &Stats) -> Result<f64> {
    let roles = stats.value()["roles"].as_array().context("no roles")?;
    let capturer = roles.iter().find(|role| role["role"] == "capturer").context("no capturer")?;
    capturer["cpu_s"].as_f64().context("no CPU time")
}

/// Sends at a rate for a time: how many packets, in how many seconds.
fn send(gbit: f64, time: Duration) -> Result<(u64, f64)> {
    let socket = PacketSocket::open(Begin::Link)?;
    socket.bind(netlink::index("out0")?)?;
    let server = Endpoint::new(Addr::v4([10, 9, 0, 9]), 80);
    let client = Endpoint::new(Addr::v4([10, 9, 0, 1]), 40_000);
    let tcp = TcpFields { seq: Seq(1), flags: flag::ACK, ..TcpFields::default() };
    let packet = bench::packet(client, server, &tcp, &noise(PACKET_BYTES - 40));
    ensure!(packet.len() == PACKET_BYTES, "the packet has {} bytes", packet.len());
    // To a station that is not this one, as at a mirror port.
    let frame = dump::ethernet(0x0800, &packet);
    let a_second = gbit * 1e9 / 8.0 / PACKET_BYTES as f64;
    let begin = Instant::now();
    let mut sent = 0;
    loop {
        let passed = begin.elapsed();
        if passed >= time {
            return Ok((sent, passed.as_secs_f64()));
        }
        let due = (passed.as_secs_f64() * a_second) as u64;
        // Bursts of a device's size, and then whoever else wants the core may have it.
        for _ in 0..(due - sent.min(due)).min(64) {
            match nix::unistd::write(&socket, &frame) {
                Ok(_) => sent += 1,
                Err(nix::errno::Errno::ENOBUFS) => break,
                Err(error) => return Err(error).context("sending over the veth"),
            }
        }
        if due <= sent {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Bytes that do not compress, from a fixed seed.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| byte()).collect()
}
