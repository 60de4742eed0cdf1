//! How fast is a packet file replayed, from its first byte to the last answered turn?
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/offline [--json] [--nginx] [--times N] [--shards N] [--connections N] [--with OPTIONS] [--tcptwin PATH] [ROW...]
//! ```
//!
//! Each row records real traffic between namespaces with `tcptwin record`, both directions, and replays the file with
//! `--speed max` against a fresh target, so often; everything shares this machine's cores. Whether all arrived is told by the
//! target's own book (request ids of the embedded service, or nginx's log), when by the shards' clock: from when the first byte
//! of the file was read until the last turn was answered. Beside it the whole time of the process, from its start to its end.
//! `--with` adds options of `tcptwin replay`: `--with "--nice 0"`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::network::Host;
use lab::real::Nginx;
use lab::scratch::Scratch;
use lab::twin::{self, Kind};
use lab::{Fidelity, HttpOptions, HttpService, Load, Mode, Network, Stats, Twin, Witness};
use serde_json::{Value, json};

/// What a file holds.
struct Row {
    name: &'static str,
    mode: Mode,
    /// Seconds to reach (the design's figures).
    to_reach_s: f64,
}

const ROWS: [Row; 2] = [
    Row { name: "keepalive", mode: Mode::KeepAlive, to_reach_s: 0.1 },
    Row { name: "connections", mode: Mode::ClientCloses, to_reach_s: 0.5 },
];

/// Requests of each file.
const REQUESTS: u64 = 10_000;
/// Requests a second while they are recorded: none is lost by the capture.
const RECORDED_PER_S: f64 = 4_000.0;
/// Longest replay.
const LIMIT: Duration = Duration::from_secs(30);

struct Asked {
    json: bool,
    nginx: bool,
    times: u32,
    shards: String,
    connections: usize,
    /// Further options of `tcptwin replay`.
    with: Vec<String>,
    binary: PathBuf,
    rows: Vec<&'static Row>,
}

/// One replay.
struct Finding {
    answered_s: f64,
    read_s: f64,
    process_s: f64,
    fidelity: f64,
    stats: Stats,
}

/// The service, online or under test, and its book.
enum Service {
    Embedded { book: Arc<Witness>, _service: HttpService },
    Nginx(Nginx),
}

impl Service {
    fn start(host: &Host, at: SocketAddr, nginx: bool) -> Result<Self> {
        if nginx {
            return Ok(Self::Nginx(Nginx::start(host, at.port())?));
        }
        let book = Arc::new(Witness::new(REQUESTS as usize));
        let service = HttpService::start(&host.ns, at, HttpOptions::default(), Arc::clone(&book))?;
        Ok(Self::Embedded { book, _service: service })
    }

    /// Of the requests that were answered online, those that were answered here just as often.
    fn percent_of(&self, online: &Self) -> Result<f64> {
        match (online, self) {
            (Self::Embedded { book: online, .. }, Self::Embedded { book: target, .. }) => {
                Ok(Fidelity::of(online, target, 1).percent())
            }
            (Self::Nginx(online), Self::Nginx(target)) => {
                let (online, target) = (online.requests()?, target.requests()?);
                let equal = online.iter().filter(|(request, times)| target.get(*request) == Some(times));
                Ok(equal.count() as f64 * 100.0 / online.len().max(1) as f64)
            }
            _ => bail!("two kinds of services"),
        }
    }
}

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

fn asked() -> Result<Asked> {
    let mut asked = Asked {
        json: false,
        nginx: false,
        times: 3,
        shards: "1".to_owned(),
        connections: 50,
        with: Vec::new(),
        binary: std::env::current_exe()?.with_file_name("tcptwin"),
        rows: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => asked.json = true,
            "--nginx" => asked.nginx = true,
            "--times" => asked.times = value()?.parse().context("--times takes a number")?,
            "--shards" => asked.shards = value()?,
            "--connections" => {
                asked.connections = value()?.parse().context("--connections takes a number")?;
            }
            "--with" => asked.with = value()?.split_whitespace().map(str::to_owned).collect(),
            "--tcptwin" => asked.binary = value()?.into(),
            name => match ROWS.iter().find(|row| row.name == name) {
                Some(row) => asked.rows.push(row),
                None => bail!("there is no row {name}; rows are keepalive and connections"),
            },
        }
    }
    if asked.rows.is_empty() {
        asked.rows.extend(&ROWS);
    }
    ensure!(
        asked.binary.exists(),
        "{} is not built: cargo build --release -p tcptwin, or name it with --tcptwin",
        asked.binary.display()
    );
    Ok(asked)
}

fn measure() -> Result<()> {
    let asked = asked()?;
    if !asked.json {
        println!("row            answered s   to reach    read s   process s   fidelity   guessed   dropped");
    }
    let mut objects = Vec::new();
    for row in &asked.rows {
        let findings = findings(row, &asked).with_context(|| format!("row {}", row.name))?;
        for found in &findings {
            if asked.json {
                objects.push(object(row, found));
            } else {
                print(row, found);
            }
        }
    }
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&Value::Array(objects))?);
    }
    Ok(())
}

/// Records the row's traffic and replays it.
fn findings(row: &Row, asked: &Asked) -> Result<Vec<Finding>> {
    let net = Network::standard()?;
    let at_online = SocketAddr::new(net.online.v4(), 80);
    let at_target = SocketAddr::new(net.target.v4(), 8_080);
    let online = Service::start(&net.online, at_online, asked.nginx)?;
    let twin = Twin::new(&asked.binary)?;
    let scratch = Scratch::new("offline")?;
    let directory = scratch.path().to_str().context("a path of plain text")?;
    let record = twin.record(&net.online, &["-x", "80", "-i", "eth0", "-o", directory])?;
    let load = Load {
        connections: asked.connections,
        mode: row.mode,
        rate: Some(RECORDED_PER_S),
        ..Load::new(at_online, REQUESTS)
    };
    let report = load.run(&net.client.ns)?;
    ensure!(report.answered == REQUESTS, "only {} of {REQUESTS} requests were answered", report.answered);
    let recorded = record.stop_run()?;
    ensure!(recorded.number("/record/dropped/ring_full/packets")? == 0, "the recording is not whole");
    let file = std::fs::read_dir(scratch.path())?.next().context("nothing was recorded")??.path();
    let file = file.to_str().context("a path of plain text")?;

    let map = twin::map(80, at_target);
    let assistant = net.assistant.v4().to_string();
    let intercept = ["-x", &at_target.to_string(), "-i", "eth0"];
    let mut args = vec![file, "-x", &map, "-s", &assistant, "--speed", "max", "--shards", &asked.shards];
    args.extend(asked.with.iter().map(String::as_str));
    let mut findings = Vec::new();
    for _ in 0..asked.times {
        // Fresh, so that none is slowed down by what the one before left in the target's tables.
        let _intercept = twin.intercept(&net.assistant, &intercept)?;
        let target = Service::start(&net.target, at_target, asked.nginx)?;
        let began = Instant::now();
        let ended = twin.begin(Kind::Replay, &net.online, &args)?.wait(LIMIT)?;
        let process_s = began.elapsed().as_secs_f64();
        ensure!(ended.status.success(), "it ended with {}: {}", ended.status, ended.stderr);
        let stats = ended.stats()?;
        stats.check_ledger()?;
        let fidelity = target.percent_of(&online)?;
        let seconds = |path: &str| stats.value().pointer(path).and_then(Value::as_f64).context("seconds");
        findings.push(Finding {
            answered_s: seconds("/replay/answered_s")?,
            read_s: seconds("/replay/read_s")?,
            process_s,
            fidelity,
            stats,
        });
    }
    Ok(findings)
}

fn print(row: &Row, found: &Finding) {
    println!(
        "{:<14} {:>10.3} {:>10.1} {:>9.3} {:>11.2} {:>8.2} % {:>9} {:>9}",
        row.name,
        found.answered_s,
        row.to_reach_s,
        found.read_s,
        found.process_s,
        found.fidelity,
        found.stats.number("/turns/guessed").unwrap_or(0),
        found.stats.dropped_in_all(),
    );
}

fn object(row: &Row, found: &Finding) -> Value {
    json!({
        "row": row.name,
        "requests": REQUESTS,
        "answered_s": found.answered_s,
        "to_reach_s": row.to_reach_s,
        "read_s": found.read_s,
        "process_s": found.process_s,
        "fidelity_percent": found.fidelity,
        "stats": found.stats.value(),
    })
}
