//! What does a flood of SYNs cost whoever is connected?
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/flood [--json] [--tcptwin PATH] [--rate 500000] [--seconds 20] [TCPTWIN OPTION...]
//! ```
//!
//! 50 connections ask a mapped service 500 times a second, all is replayed between namespaces. Then SYNs from addresses that nobody has
//! come to the mapped port, by a wire of their own (no bridge and no switch works for them); the online host drops them in its
//! firewall, at ingress, behind the capture, as a host does that defends itself: so what is measured is what a flood costs the
//! replay. `left` is what the generator managed. Of the requests asked meanwhile it is told how many the target answered, and how far
//! behind it was. Needs nftables.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::flood::{FROM_NOBODY, HOSE};
use lab::impair::shield;
use lab::witness::lag;
use lab::{
    Fidelity, Histogram, Hose, HttpOptions, HttpService, Instance, Load, Network, Stats, Twin, Witness,
    process, wait,
};
use serde_json::json;

const CONNECTIONS: usize = 50;
const PER_S: f64 = 500.0;
const IDS: usize = 1 << 20;
/// Load before the flood, which lag under it is compared with.
const BEFORE: Duration = Duration::from_secs(4);
/// Time for the last requests to arrive.
const SETTLE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

struct Asked {
    binary: PathBuf,
    rate: u64,
    seconds: u64,
    /// Options for `tcptwin run`.
    options: Vec<String>,
}

fn asked(args: Vec<String>) -> Result<Asked> {
    let binary = std::env::current_exe()?.with_file_name("tcptwin");
    let mut asked = Asked { binary, rate: 500_000, seconds: 20, options: Vec::new() };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--tcptwin" => asked.binary = value()?.into(),
            "--rate" => asked.rate = value()?.parse()?,
            "--seconds" => asked.seconds = value()?.parse()?,
            _ => asked.options.push(arg),
        }
    }
    Ok(asked)
}

/// CPU time of each role, private memory of all of them.
fn costs(run: &Instance, stats: &Stats) -> Result<(BTreeMap<String, f64>, u64)> {
    let cpu = stats.roles()?.into_iter().map(|role| (format!("{}-{}", role.role, role.index), role.cpu_s));
    let private = process::tree(run.pid()).iter().filter_map(|one| process::private_bytes(one.pid)).sum();
    Ok((cpu.collect(), private))
}

fn measure() -> Result<()> {
    let (as_json, args) = bench::arguments();
    let Asked { binary, rate, seconds, options } = asked(args)?;
    let net = Network::standard()?;
    let (online, target) = (Arc::new(Witness::new(IDS)), Arc::new(Witness::new(IDS)));
    let at_online = SocketAddr::new(net.online.v4(), 80);
    let at_target = SocketAddr::new(net.target.v4(), 8_080);
    let http = HttpOptions::default();
    let _online = HttpService::start(&net.online.ns, at_online, http, Arc::clone(&online))?;
    let _target = HttpService::start(&net.target.ns, at_target, http, Arc::clone(&target))?;
    let hose = Hose::plug(&net.online)?;
    let shield = shield(&net.online, HOSE, FROM_NOBODY)?;
    let twin = Twin::new(binary)?;
    let intercept = twin.intercept(&net.assistant, &["-x", &at_target.to_string(), "-i", "eth0"])?;
    let map = lab::twin::map(80, at_target);
    // On all interfaces: whoever is connected shares the kernel's ring with the flood.
    let mut given = vec!["-x", map.as_str(), "-s", "10.88.0.5"];
    given.extend(options.iter().map(String::as_str));
    let run = twin.run(&net.online, &given)?;

    let time = Duration::from_secs(3_600);
    let load = Load { connections: CONNECTIONS, rate: Some(PER_S), time, ..Load::new(at_online, IDS as u64) };
    let load = load.start(&net.client.ns)?;
    wait::until("it replays", SETTLE, || target.answered() > 100)?;
    let first = load.progress.sent.load(Relaxed);
    std::thread::sleep(BEFORE);
    let calm = first..load.progress.sent.load(Relaxed);
    let before = run.stats()?;
    let (cpu_before, memory_before) = costs(&run, &before)?;
    let intercept_s = intercept.cpu_s();
    let flood = hose.flood(&net.online, 80, rate, Duration::from_secs(seconds))?;
    std::thread::sleep(Duration::from_secs(seconds));
    let (sent, took) = flood.stop()?;
    let asked = calm.end..load.progress.sent.load(Relaxed);
    let after = run.stats()?;
    let (cpu_after, memory_after) = costs(&run, &after)?;
    let intercept_s = intercept.cpu_s() - intercept_s;
    let dropped_by_shield = shield.hits()?;
    std::thread::sleep(BEFORE);
    let report = load.stop()?;
    // What does not arrive shows below.
    let _ = wait::until("everything has arrived", SETTLE, || target.answered() >= online.answered());
    let served = Fidelity::of_ids(&online, &target, 1, asked.clone());
    let (calm, under) = (lag(&online, &target, calm), lag(&online, &target, asked));
    run.wait_quiet(SETTLE)?.check_ledger()?;
    let stats = run.stop_run()?;

    let left_per_s = sent as f64 / took.as_secs_f64();
    let counted = [
        ("captured", "/ledger/captured/segments"),
        ("kernel_drops", "/capture/kernel_drops"),
        ("ring_full", "/ledger/dropped/ring_full/segments"),
        ("sessions", "/sessions/started"),
        ("half_open", "/sessions/failed/half_open"),
        ("table_full", "/sessions/failed/table_full"),
        ("sent", "/inject/segments"),
        ("returned", "/returned/headers"),
    ];
    let counted = counted
        .iter()
        .map(|(name, path)| Ok((*name, after.number(path)? - before.number(path)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let cpu: BTreeMap<_, _> = cpu_after
        .iter()
        .map(|(role, s)| (role.clone(), s - cpu_before.get(role).copied().unwrap_or(0.0)))
        .chain([("intercept".to_owned(), intercept_s)])
        .collect();
    let at = |histogram: &Histogram| [50.0, 99.0].map(|p| histogram.percentile(p));
    let grown = memory_after.saturating_sub(memory_before);
    let percent = served.equal as f64 * 100.0 / served.ids.max(1) as f64;
    if as_json {
        let found = json!({
            "wanted_per_s": rate, "left_per_s": left_per_s, "seconds": took.as_secs_f64(), "left": sent,
            "shield_drops": dropped_by_shield, "counted": counted, "cpu_s": cpu, "grown_bytes": grown,
            "asked": served.ids, "served": served.equal, "served_percent": percent, "online_failed": report.failed,
            "lag_us_before": at(&calm), "lag_us_under_flood": at(&under), "dropped": stats.drops(),
        });
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    println!(
        "flood      {left_per_s:.0} SYNs/s for {:.1} s ({sent} left, {rate}/s wanted)",
        took.as_secs_f64()
    );
    println!("           the host's own firewall dropped {dropped_by_shield} behind the capture");
    let words = counted.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>();
    println!("counted    {}", words.join(", "));
    let words = cpu.iter().map(|(role, s)| format!("{role} {s:.2}")).collect::<Vec<_>>();
    println!("cpu s      {}", words.join(", "));
    println!("memory     {grown} bytes more");
    println!("served     {percent:.3} % of {} requests ({} failed online)", served.ids, report.failed);
    println!("lag us     p50/p99 before {:?}, under the flood {:?}", at(&calm), at(&under));
    println!("ledger     {}", stats.ledger());
    Ok(())
}
