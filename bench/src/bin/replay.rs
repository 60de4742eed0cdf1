//! What does live replay cost, and does everything arrive? The whole pipeline on loads in namespaces.
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/replay [--json] [--harm] [--roles] [--runs N] [--with OPTIONS] [--tcptwin PATH] [ROW...]
//! ```
//!
//! Every row builds a network of its own with embedded services, runs `tcptwin run --shards 2` and `tcptwin intercept`,
//! and measures: fidelity by request id; lag of the target's answer behind the online one; CPU run time of all our
//! processes on all hosts per replayed request; bytes dropped. Everything shares this machine's cores, the load too, so
//! compare rows of one run only. Without names the rows marked `usual` are run. With `--harm` each row's load is also run
//! without any copying, before and after: what the online service's own clients lose by it. With `--runs N` all rows are run N
//! times, one after the other; each line is the run of the median cost, and its `runs` the least and the most. `--with` adds
//! options of `tcptwin run`: `--with "--nice 0"`. `--roles` tells what of a request's cost is whose, user and kernel time.
//!
//! The rows `upload-…` tell the cost of a Gbit instead, by role: user and kernel time of the capturer, of the one shard and of the
//! injector, which on a veth does the receiving host's part too. One core carries 10 Gbit/s of what costs less than 100 ms.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::impair::{Way, lose};
use lab::process::tree;
use lab::witness::lag;
use lab::{Fidelity, HttpOptions, HttpService, Instance, Load, Mode, Network, Stats, Twin, Witness, wait};
use serde_json::{Value, json};

/// One line of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    /// Run when no row is named.
    usual: bool,
    connections: usize,
    mode: Mode,
    rate: Option<f64>,
    seconds: u64,
    body_bytes: usize,
    response_bytes: usize,
    copies: u32,
    shards: u16,
    /// Packets lost between replayed clients and target, each way, parts per million.
    lost_ppm: u32,
}

impl Row {
    /// Requests at most.
    fn requests(&self) -> u64 {
        self.rate.map_or(UNTHROTTLED_PER_S, |rate| rate as u64) * self.seconds
    }
}

const BASE: Row = Row {
    name: "",
    usual: false,
    connections: 50,
    mode: Mode::KeepAlive,
    rate: None,
    seconds: 5,
    body_bytes: 0,
    response_bytes: 200,
    copies: 1,
    shards: 2,
    lost_ppm: 0,
};

/// Large bodies through one shard.
const UPLOAD: Row = Row { connections: 4, body_bytes: 1 << 20, shards: 1, ..BASE };

/// Requests over a path that loses packets.
const LOSSY: Row = Row { rate: Some(2_000.0), ..BASE };
/// Uploads over one.
const LOSSY_POST: Row = Row { rate: Some(50.0), body_bytes: 100_000, ..BASE };

const ROWS: &[Row] = &[
    Row { name: "keepalive-20k", usual: true, rate: Some(20_000.0), ..BASE },
    Row { name: "connections-5k", usual: true, mode: Mode::ClientCloses, rate: Some(5_000.0), ..BASE },
    Row { name: "closed-loop-1k", usual: true, connections: 1, rate: Some(1_000.0), seconds: 20, ..BASE },
    Row { name: "idle", usual: true, connections: 0, seconds: 10, ..BASE },
    Row { name: "keepalive-500", rate: Some(500.0), ..BASE },
    // As many as the predecessor lets through unthrottled, and more than that.
    Row { name: "keepalive-56k", rate: Some(56_000.0), ..BASE },
    Row { name: "keepalive-80k", rate: Some(80_000.0), ..BASE },
    Row { name: "keepalive-max", ..BASE },
    Row { name: "connections-8k", mode: Mode::ClientCloses, rate: Some(8_000.0), ..BASE },
    Row { name: "connections-12k", mode: Mode::ClientCloses, rate: Some(12_000.0), ..BASE },
    Row { name: "connections-max", mode: Mode::ClientCloses, ..BASE },
    Row { name: "connections-at-once", connections: 5_000, rate: Some(5_000.0), seconds: 1, ..BASE },
    Row { name: "copies-2-of-1500c", mode: Mode::ClientCloses, rate: Some(1_500.0), copies: 2, ..BASE },
    Row { name: "copies-4-of-1500c", mode: Mode::ClientCloses, rate: Some(1_500.0), copies: 4, ..BASE },
    Row { name: "copies-8-max", copies: 8, ..BASE },
    Row { name: "post-1m-10", rate: Some(10.0), body_bytes: 1 << 20, ..BASE },
    Row { name: "answer-1m-max", rate: Some(1_800.0), response_bytes: 1 << 20, ..BASE },
    Row { name: "upload-2g", rate: Some(240.0), ..UPLOAD },
    Row { name: "upload-max", ..UPLOAD },
    Row { name: "closed-loop-max", connections: 1, ..BASE },
    Row { name: "pipelined-20k", mode: Mode::Pipelined(16), rate: Some(20_000.0), ..BASE },
    Row { name: "copies-8-of-5k", rate: Some(5_000.0), copies: 8, ..BASE },
    Row { name: "post-100k-300", rate: Some(300.0), body_bytes: 100_000, ..BASE },
    Row { name: "answer-1m-300", rate: Some(300.0), response_bytes: 1 << 20, ..BASE },
    Row { name: "loss-0.1", lost_ppm: 1_000, ..LOSSY },
    Row { name: "loss-1", lost_ppm: 10_000, ..LOSSY },
    Row { name: "loss-5", lost_ppm: 50_000, ..LOSSY },
    Row { name: "post-loss-0.1", lost_ppm: 1_000, ..LOSSY_POST },
    Row { name: "post-loss-1", lost_ppm: 10_000, ..LOSSY_POST },
    Row { name: "post-loss-5", lost_ppm: 50_000, ..LOSSY_POST },
];

/// Ids of an unthrottled row at most.
const UNTHROTTLED_PER_S: u64 = 150_000;
/// Time for the last requests to arrive.
const SETTLE: Duration = Duration::from_secs(20);

/// What a row showed.
struct Finding {
    fidelity: Fidelity,
    online_per_s: f64,
    online_p99_us: u64,
    /// The same without copying; 0 when that was not asked for.
    bare_p99_us: u64,
    lag: [u64; 3],
    /// Median lag of the first and the last fifth of the requests.
    drift: [u64; 2],
    cpu_us_per_request: f64,
    /// The least and the most of all runs.
    range: [f64; 2],
    cpu_percent: f64,
    upload: Option<Upload>,
    /// CPU time of each role, seconds.
    roles: Vec<RoleCost>,
    stats: Stats,
}

/// What a long upload cost.
struct Upload {
    gbit_per_s: f64,
    gbit: f64,
}

/// CPU time of a role, seconds.
struct RoleCost {
    name: &'static str,
    user_s: f64,
    kernel_s: f64,
}

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

fn measure() -> Result<()> {
    let (mut json, mut harm, mut roles) = (false, false, false);
    let mut binary = None;
    let mut with = String::new();
    let mut runs = 1;
    let mut names = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--harm" => harm = true,
            "--roles" => roles = true,
            "--runs" => {
                let text = args.next().context("--runs needs a number")?;
                runs = text.parse().with_context(|| format!("{text} is not a number of runs"))?;
                anyhow::ensure!((1..=99).contains(&runs), "{runs}: 1 to 99 runs can be made");
            }
            "--with" => with = args.next().context("--with needs options of tcptwin run")?,
            "--tcptwin" => binary = Some(PathBuf::from(args.next().context("--tcptwin needs a path")?)),
            name if ROWS.iter().any(|r| r.name == name) => names.push(arg),
            other => bail!("there is no row {other}; rows are {}", names_of_rows()),
        }
    }
    let binary = match binary {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("tcptwin"),
    };
    if !binary.exists() {
        bail!(
            "{} is not built: cargo build --release -p tcptwin, or name it with --tcptwin",
            binary.display()
        );
    }
    if !json {
        println!(
            "{:<16} {:>9} {:>9}  {:>8} {:>17} {:>13} {:>8} {:>7} {:>9}",
            "row",
            "online/s",
            "fidelity",
            "p99 ms",
            "lag p50/p99/max",
            "drift p50 ms",
            "µs/req",
            "cpu %",
            "dropped"
        );
    }
    let rows: Vec<&Row> = ROWS
        .iter()
        .filter(|r| if names.is_empty() { r.usual } else { names.iter().any(|n| n == r.name) })
        .collect();
    let mut found: Vec<Vec<Finding>> = rows.iter().map(|_| Vec::new()).collect();
    let mut objects = Vec::new();
    for left in (0..runs).rev() {
        for (row, findings) in rows.iter().zip(&mut found) {
            let measured = || -> Result<Finding> {
                let before = if harm { bare_p99_us(row)? } else { 0 };
                let finding = run(row, &binary, &with)?;
                let after = if harm { bare_p99_us(row)? } else { 0 };
                Ok(Finding { bare_p99_us: (before + after) / 2, ..finding })
            };
            findings.push(measured().with_context(|| format!("row {}", row.name))?);
            if left == 0 {
                let result = median(std::mem::take(findings));
                if json {
                    objects.push(object(row, &result));
                } else {
                    print(row, &result, runs, roles);
                }
            }
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&Value::Array(objects))?);
    }
    Ok(())
}

/// The run of the median cost, which knows the range of all.
fn median(mut all: Vec<Finding>) -> Finding {
    let cost = |finding: &Finding| finding.cpu_us_per_request;
    all.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    let range = [cost(&all[0]), cost(&all[all.len() - 1])];
    Finding { range, ..all.swap_remove(all.len() / 2) }
}

fn run(row: &Row, binary: &std::path::Path, with: &str) -> Result<Finding> {
    let net = Network::standard()?;
    let ids = usize::try_from(row.requests())?;
    let (online, target) = (Arc::new(Witness::new(ids)), Arc::new(Witness::new(ids)));
    let options = HttpOptions { response_bytes: row.response_bytes, ..HttpOptions::default() };
    let at_online = SocketAddr::new(net.online.v4(), 80);
    let at_target = SocketAddr::new(net.target.v4(), 8_080);
    let _online = HttpService::start(&net.online.ns, at_online, options, Arc::clone(&online))?;
    let _target = HttpService::start(&net.target.ns, at_target, options, Arc::clone(&target))?;
    let twin = Twin::new(binary)?;
    let intercept = twin.intercept(&net.assistant, &["-x", &at_target.to_string(), "-i", "eth0"])?;
    let (map, copies) = (lab::twin::map(80, at_target), row.copies.to_string());
    let shards = row.shards.to_string();
    let mut args = vec!["-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--shards", &shards, "-n", &copies];
    args.extend(with.split_whitespace());
    let run = twin.run(&net.online, &args)?;
    let ways = [
        Way { from: &net.online, to: &net.target, what: "tcp dport 8080" },
        Way { from: &net.target, to: &net.assistant, what: "tcp sport 8080" },
    ];
    let _loss = if row.lost_ppm > 0 { Some(lose(&net, &ways, row.lost_ppm)?) } else { None };

    let cpu = |run: &Instance| run.cpu_s() + intercept.cpu_s();
    let (before, roles_before, started) = (cpu(&run), role_times(&run, &intercept), Instant::now());
    let report = load(row, &net, at_online)?;
    let elapsed = started.elapsed();
    let wanted = online.answered() * u64::from(row.copies);
    // What does not arrive shows in the fidelity.
    let _ = wait::until("everything has arrived", SETTLE, || target.answered() >= wanted);
    let mut roles = role_times(&run, &intercept);
    let cpu_s = cpu(&run) - before;
    for (after, before) in roles.iter_mut().zip(&roles_before) {
        after.user_s -= before.user_s;
        after.kernel_s -= before.kernel_s;
    }
    let gbit = (report.answered * row.body_bytes as u64 * 8) as f64 / 1e9;
    let upload =
        row.name.starts_with("upload").then(|| Upload { gbit_per_s: gbit / elapsed.as_secs_f64(), gbit });
    let sent = report.sent;
    let lags = lag(&online, &target, 0..sent);
    let fifth = (sent / 5).max(1);
    let drift =
        [0..fifth, sent - fifth.min(sent)..sent].map(|ids| lag(&online, &target, ids).percentile(50.0));
    let fidelity = Fidelity::of(&online, &target, row.copies);
    let ended = run.stop()?;
    let stats = ended.stats().with_context(|| format!("the summary of run: {}", ended.stderr))?;
    Ok(Finding {
        online_per_s: report.rate(),
        online_p99_us: report.first_byte.percentile(99.0),
        bare_p99_us: 0,
        lag: [50.0, 99.0, 100.0].map(|p| lags.percentile(p)),
        drift,
        cpu_us_per_request: cpu_s * 1e6 / (fidelity.target.max(1) as f64),
        range: [0.0; 2],
        upload,
        roles,
        cpu_percent: cpu_s * 100.0 / elapsed.as_secs_f64(),
        fidelity,
        stats,
    })
}

/// User and kernel time of each role so far.
fn role_times(run: &Instance, intercept: &Instance) -> Vec<RoleCost> {
    let all = tree(run.pid());
    let mut costs = ["capturer", "shard-worker", "injector", "supervisor", "intercept"]
        .map(|name| RoleCost { name, user_s: 0.0, kernel_s: 0.0 });
    let mut add = |at: usize, process: &lab::process::Process| {
        costs[at].user_s += process.user_s;
        costs[at].kernel_s += process.system_s;
    };
    for process in &all {
        let line = process.command_line();
        let role = ["capturer", "shard-worker", "injector"]
            .iter()
            .position(|role| line.contains(&format!("role {role}")));
        add(role.unwrap_or(3), process);
    }
    tree(intercept.pid()).iter().for_each(|process| add(4, process));
    costs.into()
}

/// The row's load on the online service.
fn load(row: &Row, net: &Network, at: SocketAddr) -> Result<lab::LoadReport> {
    if row.connections == 0 {
        std::thread::sleep(Duration::from_secs(row.seconds));
        return Ok(lab::LoadReport::default());
    }
    let time = Duration::from_secs(row.seconds);
    let time = if row.rate.is_some() { time + Duration::from_secs(10) } else { time };
    let load = Load {
        connections: row.connections,
        mode: row.mode,
        rate: row.rate,
        body_bytes: row.body_bytes,
        time,
        ..Load::new(at, row.requests())
    };
    Ok(load.run(&net.client.ns)?)
}

/// First-byte latency of the online service under the row's load when nothing is copied, 99th percentile.
fn bare_p99_us(row: &Row) -> Result<u64> {
    let net = Network::standard()?;
    let options = HttpOptions { response_bytes: row.response_bytes, ..HttpOptions::default() };
    let at = SocketAddr::new(net.online.v4(), 80);
    let witness = Arc::new(Witness::new(usize::try_from(row.requests())?));
    let _online = HttpService::start(&net.online.ns, at, options, witness)?;
    Ok(load(row, &net, at)?.first_byte.percentile(99.0))
}

fn print(row: &Row, r: &Finding, runs: u32, roles: bool) {
    let ms = |us: u64| us as f64 / 1_000.0;
    let [p50, p99, max] = r.lag.map(ms);
    let [first, last] = r.drift.map(ms);
    let idle = row.connections == 0;
    let cost = if idle { "-".to_owned() } else { format!("{:.1}", r.cpu_us_per_request) };
    let fidelity = if idle { "-".to_owned() } else { format!("{:.3} %", r.fidelity.percent()) };
    println!(
        "{:<16} {:>9.0} {fidelity:>9}  {:>8.2} {:>17} {:>13} {cost:>8} {:>7.2} {:>9}",
        row.name,
        r.online_per_s,
        ms(r.online_p99_us),
        format!("{p50:.1}/{p99:.1}/{max:.0}"),
        format!("{first:.2} > {last:.2}"),
        r.cpu_percent,
        r.stats.dropped_in_all(),
    );
    if runs > 1 && !idle {
        println!("                 {:.1} to {:.1} µs/req in {runs} runs", r.range[0], r.range[1]);
    }
    if let Some(upload) = &r.upload {
        print!("                 {:.1} Gbit/s; ms of CPU a Gbit, user + kernel:", upload.gbit_per_s);
        print_roles(r, 1e3 / upload.gbit);
    }
    if roles && !idle {
        print!("                 µs of CPU a request, user + kernel:");
        print_roles(r, 1e6 / r.fidelity.target.max(1) as f64);
    }
    if r.bare_p99_us > 0 {
        let times = r.online_p99_us as f64 / r.bare_p99_us as f64;
        println!(
            "                 online p99 {times:.2} times that without copying ({:.2} ms)",
            ms(r.bare_p99_us)
        );
    }
    if !r.fidelity.is_exact() && !idle {
        println!("                 {}", r.fidelity);
    }
    if let Err(error) = r.stats.check_ledger() {
        println!("                 {error:#}");
    }
    for (reason, bytes) in r.stats.drops() {
        println!("                 dropped as {reason}: {bytes} bytes");
    }
}

fn print_roles(r: &Finding, scale: f64) {
    for RoleCost { name, user_s, kernel_s } in &r.roles {
        print!(" {name} {:.1} + {:.1}", user_s * scale, kernel_s * scale);
    }
    println!();
}

fn object(row: &Row, r: &Finding) -> Value {
    json!({
        "row": row.name,
        "online_per_s": r.online_per_s,
        "online_p99_us": r.online_p99_us,
        "online_p99_us_without_copying": r.bare_p99_us,
        "copies": row.copies,
        "lost_ppm": row.lost_ppm,
        "ids": r.fidelity.ids,
        "equal": r.fidelity.equal,
        "missing": r.fidelity.missing,
        "surplus": r.fidelity.surplus,
        "altered": r.fidelity.altered,
        "lag_us": {"p50": r.lag[0], "p99": r.lag[1], "max": r.lag[2]},
        "lag_p50_us_first_fifth": r.drift[0],
        "lag_p50_us_last_fifth": r.drift[1],
        "cpu_us_per_request": r.cpu_us_per_request,
        "cpu_us_per_request_range": r.range,
        "upload_gbit_per_s": r.upload.as_ref().map(|upload| upload.gbit_per_s),
        "cpu_s": r.roles.iter().map(|role| {
            (role.name.to_owned(), json!({"user": role.user_s, "kernel": role.kernel_s}))
        }).collect::<serde_json::Map<_, _>>(),
        "cpu_percent": r.cpu_percent,
        "ledger_exact": r.stats.check_ledger().is_ok(),
        "stats": r.stats.value(),
    })
}

/// The names of all rows, for a message.
fn names_of_rows() -> String {
    ROWS.iter().map(|r| r.name).collect::<Vec<_>>().join(", ")
}
