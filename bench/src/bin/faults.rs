//! What does a fault cost, and how soon is all as before?
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/faults [--json] [--tcptwin PATH] [ROW...]
//! ```
//!
//! Each row replays 1,000 keep-alive requests a second between namespaces, in a network of its own. Two seconds after its begin
//! something happens, for two seconds where it lasts, and three seconds later the load ends. `fidelity` is by request id, over
//! all; `lost outside` are requests from before the fault, or from after all was as before, that did not arrive; `again` is
//! how long after the fault's end the target answered in 100 ms nine tenths at least of what the online service did; `lag` is how far
//! the target's answers were behind after that. Needs nftables.
//!
//! What chance does with every process, many times over: `scripts/chaos.sh`.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::impair::{ALL, Impairment, Way, lose, mirror, refuse_frames, refuse_sends};
use lab::witness::lag;
use lab::{
    Fidelity, HttpOptions, HttpService, Instance, Load, Network, Stats, Twin, Witness, clock, netlink, wait,
};
use serde_json::{Value, json};

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One in a hundred packets is not captured, from the begin to the end.
    Missed,
    /// The target's service is gone.
    TargetAway,
    InterceptKilled,
    /// Between the run and intercept nothing gets through.
    ChannelCut,
    /// Raw sends fail with EPERM.
    SendsRefused,
    /// Frames fail with ENOBUFS.
    FramesRefused,
    /// A role gets SIGKILL.
    Killed(&'static str),
    /// Every role, one after the other.
    AllKilled,
}

const ROWS: &[(&str, Fault)] = &[
    ("capture-misses-1", Fault::Missed),
    ("target-away-2s", Fault::TargetAway),
    ("intercept-killed-2s", Fault::InterceptKilled),
    ("channel-cut-2s", Fault::ChannelCut),
    ("sends-refused-2s", Fault::SendsRefused),
    ("frames-refused-2s", Fault::FramesRefused),
    ("capturer-killed", Fault::Killed("capturer")),
    ("shard-killed", Fault::Killed("shard-worker")),
    ("injector-killed", Fault::Killed("injector")),
    ("all-killed", Fault::AllKilled),
];

const ROLES: [&str; 3] = ["capturer", "shard-worker", "injector"];
const PER_S: f64 = 1_000.0;
const CONNECTIONS: usize = 50;
const BEFORE: Duration = Duration::from_secs(2);
const LASTS: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(3);
/// Room for the ids of a load that a busy machine stretches.
const IDS: usize = 100_000;
/// Time for the last requests to arrive.
const SETTLE: Duration = Duration::from_secs(20);
/// In a stretch of this length it is told whether all is as before.
const LOOK_US: u64 = 100_000;

/// What a row showed.
struct Finding {
    all: Fidelity,
    lost_outside: u64,
    /// None when it did not become as before.
    again_ms: Option<u64>,
    lag_us: [u64; 2],
    stats: Stats,
}

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

fn measure() -> Result<()> {
    let (json, args) = bench::arguments();
    let mut binary = std::env::current_exe()?.with_file_name("tcptwin");
    let mut rows = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match ROWS.iter().find(|row| row.0 == arg) {
            Some(row) => rows.push(row),
            None if arg == "--tcptwin" => {
                binary = PathBuf::from(args.next().context("--tcptwin needs a path")?);
            }
            None => {
                let names: Vec<_> = ROWS.iter().map(|row| row.0).collect();
                bail!("there is no row {arg}; rows are {}", names.join(", "));
            }
        }
    }
    if rows.is_empty() {
        rows = ROWS.iter().collect();
    }
    if !json {
        println!(
            "{:<20} {:>9} {:>13} {:>9} {:>12}  dropped or missed, bytes",
            "row", "fidelity", "lost outside", "again ms", "lag p50/p99"
        );
    }
    let mut objects = Vec::new();
    for &(name, fault) in rows {
        let finding = run(fault, &binary).with_context(|| format!("row {name}"))?;
        if json {
            objects.push(object(name, &finding));
        } else {
            print(name, &finding);
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&Value::from(objects))?);
    }
    Ok(())
}

/// Hosts, services, and what replays between them.
struct Stage<'a> {
    net: &'a Network,
    twin: &'a Twin,
    target: Option<HttpService>,
    target_book: Arc<Witness>,
    intercept: Option<Instance>,
    run: Instance,
}

impl Stage<'_> {
    fn at_target(&self) -> SocketAddr {
        SocketAddr::new(self.net.target.v4(), 8_080)
    }

    fn serve(&mut self) -> Result<()> {
        let (at, book) = (self.at_target(), Arc::clone(&self.target_book));
        self.target = Some(HttpService::start(&self.net.target.ns, at, HttpOptions::default(), book)?);
        Ok(())
    }

    fn listen(&mut self) -> Result<()> {
        let at = self.at_target().to_string();
        self.intercept = Some(self.twin.intercept(&self.net.assistant, &["-x", &at, "-i", "eth0"])?);
        Ok(())
    }

    /// Until it is over.
    fn suffers(&mut self, fault: Fault) -> Result<()> {
        let net = self.net;
        let while_it_lasts = |rules: Impairment<'_>| {
            std::thread::sleep(LASTS);
            anyhow::ensure!(rules.end()? > 0, "nothing was hit");
            Ok(())
        };
        let to_target = "ip daddr 10.88.0.4 tcp dport 8080";
        match fault {
            Fault::Missed => Ok(()),
            Fault::TargetAway => {
                self.target.take();
                std::thread::sleep(LASTS);
                self.serve()
            }
            Fault::InterceptKilled => {
                self.intercept.take().context("an intercept")?.kill()?;
                std::thread::sleep(LASTS);
                self.listen()
            }
            Fault::ChannelCut => {
                let ways = [
                    Way { from: &net.online, to: &net.assistant, what: "tcp dport 36524" },
                    Way { from: &net.assistant, to: &net.online, what: "tcp sport 36524" },
                ];
                while_it_lasts(lose(net, &ways, ALL)?)
            }
            Fault::SendsRefused => while_it_lasts(refuse_sends(&net.online, to_target)?),
            Fault::FramesRefused => while_it_lasts(refuse_frames(&net.online, to_target)?),
            Fault::Killed(role) => self.run.kill_role(role, 0).map(drop),
            Fault::AllKilled => {
                for role in ROLES {
                    let old = self.run.kill_role(role, 0)?;
                    self.run.wait_restarted(role, 0, old, SETTLE)?;
                }
                Ok(())
            }
        }
    }
}

fn run(fault: Fault, binary: &Path) -> Result<Finding> {
    let net = Network::standard()?;
    let (online, target) = (Arc::new(Witness::new(IDS)), Arc::new(Witness::new(IDS)));
    let at_online = SocketAddr::new(net.online.v4(), 80);
    let at_target = SocketAddr::new(net.target.v4(), 8_080);
    let options = HttpOptions::default();
    let _online = HttpService::start(&net.online.ns, at_online, options, Arc::clone(&online))?;
    let service = HttpService::start(&net.target.ns, at_target, options, Arc::clone(&target))?;
    let twin = Twin::new(binary)?;
    let intercept = twin.intercept(&net.assistant, &["-x", &at_target.to_string(), "-i", "eth0"])?;
    let leak = if fault == Fault::Missed { Some(leaky_mirror(&net)?) } else { None };
    let map = match fault {
        Fault::Missed => format!("{at_online}-{at_target}"),
        _ => lab::twin::map(80, at_target),
    };
    let mut args = vec!["-x", map.as_str(), "-s", "10.88.0.5", "--shards", "1"];
    args.extend_from_slice(if fault == Fault::Missed {
        &["-i", "mirror0", "--mirror"]
    } else {
        &["-i", "eth0"]
    });
    args.extend_from_slice(if fault == Fault::SendsRefused { &["--inject", "raw"] } else { &[] });
    let run = twin.run(&net.online, &args)?;
    let (target_book, intercept) = (Arc::clone(&target), Some(intercept));
    let mut stage = Stage { net: &net, twin: &twin, target: Some(service), target_book, intercept, run };

    let time = Duration::from_secs(60);
    let load = Load { connections: CONNECTIONS, rate: Some(PER_S), time, ..Load::new(at_online, IDS as u64) };
    let load = load.start(&net.client.ns)?;
    std::thread::sleep(BEFORE);
    let begin_us = clock::now_us();
    stage.suffers(fault)?;
    let end_us = clock::now_us();
    std::thread::sleep(AFTER);
    let sent = load.progress.sent.load(Relaxed);
    let report = load.stop()?;
    anyhow::ensure!(report.failed == 0, "online: {} failed: {:?}", report.failed, report.error);
    // What does not arrive shows in the fidelity.
    let _ = wait::until("everything has arrived", SETTLE, || target.answered() >= online.answered());
    drop(leak);
    let stats = stage.run.stop_run()?;

    let again_us = again_us(&online, &target, end_us, sent);
    let asked = |us: Range<u64>| {
        // Ids are asked in order, and a closed loop of so many connections is out of step by as many at most.
        let within = |id: &u64| online.first_us(*id).is_some_and(|at| us.contains(&at));
        (0..report.sent).filter(within).collect::<Vec<_>>()
    };
    let outside = asked(0..begin_us.saturating_sub(LOOK_US)).into_iter();
    let outside: Vec<u64> = outside.chain(asked(again_us.unwrap_or(u64::MAX)..u64::MAX)).collect();
    let lags = match again_us.and_then(|again| asked(again..u64::MAX).first().copied()) {
        Some(first) => lag(&online, &target, first..report.sent),
        None => lab::Histogram::default(),
    };
    let lost_outside = match fault {
        // A hole is where it is.
        Fault::Missed => 0,
        _ => outside.iter().filter(|&&id| target.times(id) == 0).count() as u64,
    };
    Ok(Finding {
        all: Fidelity::of(&online, &target, 1),
        lost_outside,
        again_ms: again_us.map(|us| (us - end_us) / 1_000),
        lag_us: [50.0, 99.0].map(|p| lags.percentile(p)),
        stats,
    })
}

/// When after the fault's end the target answered as much as the online service did for the first time.
fn again_us(online: &Witness, target: &Witness, end_us: u64, sent: u64) -> Option<u64> {
    let times = |book: &Witness| {
        let mut times: Vec<u64> =
            (0..sent).filter_map(|id| book.first_us(id)).filter(|&at| at >= end_us).collect();
        times.sort_unstable();
        times
    };
    let (online, target) = (times(online), times(target));
    let within = |times: &[u64], from: u64| {
        times.partition_point(|&at| at < from + LOOK_US) - times.partition_point(|&at| at < from)
    };
    let last = *online.last()?;
    let looks = (end_us..last.saturating_sub(LOOK_US)).step_by(5_000);
    looks.into_iter().find(|&from| within(&target, from) * 10 >= within(&online, from) * 9)
}

/// A mirror port at the online host that misses one in a hundred packets of those within connections.
fn leaky_mirror(net: &Network) -> Result<Impairment<'_>> {
    let peer = net.online.ns.fd().as_raw_fd();
    net.switch.enter(move || {
        netlink::add_veth("to-mirror", "mirror0", peer)?;
        netlink::set_up("to-mirror", true)
    })?;
    net.online.ns.enter(|| netlink::set_up("mirror0", true))?;
    let within = "tcp flags & (syn | fin | rst) == 0";
    mirror(net, &net.client, "ip daddr 10.88.0.3 tcp dport 80", "to-mirror", within, 10_000)
}

/// What became of bytes that were not delivered, doubled ones aside.
fn losses(stats: &Stats) -> Vec<(String, u64)> {
    let dropped = stats.drops().into_iter().filter(|(reason, _)| reason != "duplicate");
    let missed = Some(("missed".to_owned(), stats.missed())).filter(|(_, bytes)| *bytes > 0);
    dropped.chain(missed).collect()
}

fn print(name: &str, r: &Finding) {
    let losses: Vec<_> = losses(&r.stats).iter().map(|(reason, bytes)| format!("{reason} {bytes}")).collect();
    println!(
        "{name:<20} {:>7.3} % {:>13} {:>9} {:>12}  {}",
        r.all.percent(),
        r.lost_outside,
        r.again_ms.map_or("never".to_owned(), |ms| ms.to_string()),
        format!("{:.1}/{:.1}", r.lag_us[0] as f64 / 1e3, r.lag_us[1] as f64 / 1e3),
        if losses.is_empty() { "-".to_owned() } else { losses.join(", ") },
    );
    if r.all.surplus + r.all.altered > 0 {
        println!("                     {}", r.all);
    }
}

fn object(name: &str, r: &Finding) -> Value {
    json!({
        "row": name,
        "fidelity_percent": r.all.percent(), "ids": r.all.ids, "missing": r.all.missing,
        "surplus": r.all.surplus, "altered": r.all.altered,
        "lost_outside": r.lost_outside, "again_ms": r.again_ms,
        "lag_us": {"p50": r.lag_us[0], "p99": r.lag_us[1]},
        "losses": losses(&r.stats).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}
