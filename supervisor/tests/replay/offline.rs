//! Packet files: what a packet socket saw on the online host is written to a file and replayed afterwards, held against the
//! online service request by request.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lab::dump::{self, Order};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::twin::{Ended, Kind};
use lab::{Fidelity, Host, Instance, Load, LoadReport, Mode, Stats};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

use crate::stage::{ONLINE_PORT, Stage, clean};

pub(crate) const STORIES: &[Story] = &[
    ("a_file_takes_as_long_as_it_was_captured", 90, a_file_takes_as_long_as_it_was_captured),
    ("a_file_at_four_times_its_speed", 90, a_file_at_four_times_its_speed),
    ("a_file_as_fast_as_possible_loses_nothing", 90, a_file_as_fast_as_possible_loses_nothing),
    ("copies_times_loops_are_exact", 90, copies_times_loops_are_exact),
    (
        "a_file_without_mapped_traffic_says_what_it_holds",
        60,
        a_file_without_mapped_traffic_says_what_it_holds,
    ),
];

/// Longest replay.
pub(crate) const LIMIT: Duration = Duration::from_secs(45);
/// DLT_EN10MB.
pub(crate) const ETHERNET: u16 = 1;

/// A stage, and a file of what its clients asked.
pub(crate) struct Recorded {
    pub(crate) stage: Stage,
    pub(crate) file: PathBuf,
    pub(crate) report: LoadReport,
    _scratch: Scratch,
}

/// Records a load at the online service, both directions.
pub(crate) fn record(load: impl FnOnce(Load) -> Load) -> Result<Recorded> {
    let stage = Stage::new()?;
    let scratch = Scratch::new("offline")?;
    let file = scratch.file("load.pcap");
    let watch = Watch::begin(&stage.net.online)?;
    let report = stage.send(load(stage.load(1_000)))?;
    std::thread::sleep(Duration::from_millis(100));
    fs::write(&file, watch.end()?)?;
    Ok(Recorded { stage, file, report, _scratch: scratch })
}

/// A packet socket that sees all frames of a host, written down as a packet file.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<u8>>>,
}

impl Watch {
    pub(crate) fn begin(host: &Host) -> Result<Self> {
        let open =
            || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll);
        let socket = host.ns.enter(open)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &(8 << 20)))?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let record = move || {
            let mut bytes = dump::pcap(Order::Little, true, ETHERNET);
            let mut frame = vec![0; 1 << 17];
            loop {
                match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                    Ok(len) => {
                        let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
                        let (seconds, fraction) = (time.as_secs() as u32, time.subsec_nanos());
                        bytes.extend(dump::record(
                            Order::Little,
                            seconds,
                            fraction,
                            &frame[..len],
                            len as u32,
                        ));
                    }
                    Err(Errno::EAGAIN) if ends.load(Relaxed) => return Ok(bytes),
                    Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_micros(100)),
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(record)?;
        Ok(Self { over, thread })
    }

    /// The file.
    pub(crate) fn end(self) -> Result<Vec<u8>> {
        self.over.store(true, Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

impl Recorded {
    fn begin(&self, map: &str, options: &[&str]) -> Result<Instance> {
        step(format!("replay {options:?}"));
        let file = self.file.to_string_lossy().into_owned();
        let assistant = self.stage.net.assistant.v4().to_string();
        let mut args = vec![file.as_str(), "-x", map, "-s", &assistant];
        args.extend(options);
        self.stage.twin.begin(Kind::Replay, &self.stage.net.online, &args)
    }

    /// Replays until it ends by itself, and says how long that took.
    pub(crate) fn replay(&self, options: &[&str]) -> Result<(Stats, Duration)> {
        let _intercept = self.stage.intercept()?;
        let began = Instant::now();
        let ended = self.begin(&lab::twin::map(ONLINE_PORT, self.stage.at_target()), options)?.wait(LIMIT)?;
        let took = began.elapsed();
        ensure!(ended.status.success(), "it ended with {}:\n{}", ended.status, ended.stderr);
        let stats = ended.stats().with_context(|| ended.stdout.clone())?;
        stats.check_ledger()?;
        Ok((stats, took))
    }

    /// Every request as often as wanted, and nothing dropped but doubled bytes.
    fn is_exact(&self, stats: &Stats, times: u32) -> Result<()> {
        let fidelity = Fidelity::of(&self.stage.online, &self.stage.target, times);
        ensure!(fidelity.is_exact(), "{fidelity}; {}", stats.ledger());
        clean(stats, self.report.request_bytes * u64::from(times))
    }
}

fn a_file_takes_as_long_as_it_was_captured() -> Result<()> {
    let recorded = record(|load| Load { rate: Some(250.0), ..load })?;
    let (stats, took) = recorded.replay(&[])?;
    recorded.is_exact(&stats, 1)?;
    ensure!(took >= Duration::from_millis(3_800), "four seconds of traffic took {took:?}");
    Ok(())
}

fn a_file_at_four_times_its_speed() -> Result<()> {
    let recorded = record(|load| Load { rate: Some(125.0), ..load })?;
    let (stats, took) = recorded.replay(&["--speed", "4"])?;
    recorded.is_exact(&stats, 1)?;
    let range = Duration::from_millis(1_900)..Duration::from_millis(7_000);
    ensure!(range.contains(&took), "eight seconds of traffic at four times the speed took {took:?}");
    Ok(())
}

fn a_file_as_fast_as_possible_loses_nothing() -> Result<()> {
    let recorded = record(|load| Load { requests: 10_000, ..load })?;
    let (stats, took) = recorded.replay(&["--speed", "max"])?;
    println!("    10,000 keep-alive requests, start and end included: {took:?}");
    recorded.is_exact(&stats, 1)
}

fn copies_times_loops_are_exact() -> Result<()> {
    let recorded = record(|load| Load { mode: Mode::ClientCloses, rate: Some(1_000.0), ..load })?;
    let (stats, _) = recorded.replay(&["--speed", "max", "-n", "2", "--loops", "3"])?;
    recorded.is_exact(&stats, 6)?;
    let connections = recorded.stage.target.connections();
    ensure!(connections == 6_000, "{connections} connections at the target");
    Ok(())
}

fn a_file_without_mapped_traffic_says_what_it_holds() -> Result<()> {
    let recorded = record(|load| Load { requests: 20, ..load })?;
    let _intercept = recorded.stage.intercept()?;
    let map = lab::twin::map(81, recorded.stage.at_target());
    let Ended { status, stderr, .. } = recorded.begin(&map, &["--speed", "max"])?.wait(LIMIT)?;
    ensure!(status.code() == Some(1), "it ended with {status}: {stderr}");
    let online = recorded.stage.at_online().to_string();
    let wanted = ["no packet from a client to port 81", &online, " SYNs\nTry: -x 80-"];
    ensure!(wanted.iter().all(|part| stderr.contains(part)), "{stderr}");
    Ok(())
}
