//! What do sessions cost that do nothing: memory of each process, and CPU while all of them are idle?
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/memory [--json] [--tcptwin PATH] [CONNECTIONS...]
//! ```
//!
//! So many connections are opened through the whole pipeline, one request each, and stay open while nothing happens for ten
//! seconds. The region is memory from the start, whatever happens in it, so its share of a session is computed from what the
//! run asked for; anonymous memory is measured, and intercept's compared with the same without a session. A process may have 20,000
//! descriptors open and no more on some hosts, so each 15,000 connections have a client and services, and ports, of their own:
//! this program again, with `--hold`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::process::{private_bytes, tree};
use lab::user::become_root_in_user_namespace;
use lab::{HttpOptions, HttpService, Instance, Load, Namespace, Network, Twin, Witness, wait};

/// Connections of one client process.
const OF_ONE: usize = 15_000;
/// Connections opened a second, by one client process.
const RATE: f64 = 4_000.0;
/// How long they may take to be opened and answered.
const OPENED: Duration = Duration::from_secs(60);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(10);
/// Ports that the load's client may use: its one address is enough for 64,000 connections.
const PORTS: &str = "1024 65535";

/// What so many connections came to.
struct Row {
    sessions: u64,
    region: u64,
    run: u64,
    intercept: u64,
    intercept_before: u64,
    idle_percent: f64,
}

impl Row {
    /// Anonymous memory of intercept for each session, bytes.
    fn intercept_each(&self) -> f64 {
        self.intercept.saturating_sub(self.intercept_before) as f64 / self.sessions as f64
    }
}

fn main() -> Result<()> {
    if let Some(what) = std::env::args().nth(1).filter(|arg| arg.starts_with("--hold=")) {
        return hold(&what["--hold=".len()..]);
    }
    become_root_in_user_namespace().map_err(|error| anyhow::anyhow!("{error}"))?;
    let (mut json, mut counts) = (false, Vec::new());
    let mut binary = std::env::current_exe()?.with_file_name("tcptwin");
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), arg.parse()) {
            ("--json", _) => json = true,
            ("--tcptwin", _) => binary = PathBuf::from(args.next().context("--tcptwin needs a path")?),
            (_, Ok(count)) => counts.push(count),
            (other, _) => bail!("{other}: neither --json, --tcptwin PATH nor a number of connections"),
        }
    }
    if counts.is_empty() {
        counts = vec![1_000, 5_000];
    }
    let mut objects = Vec::new();
    if !json {
        println!(
            "{:>9} {:>8} {:>12} {:>14} {:>15} {:>12} {:>8}",
            "sessions", "slot B", "region MiB", "run anon MiB", "intercept MiB", "B a session", "idle %"
        );
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for count in counts {
        let row = measure(&binary, count).with_context(|| format!("{count} connections"))?;
        if !json {
            println!(
                "{:>9} {:>8} {:>12.0} {:>14.1} {:>15.1} {:>12.0} {:>8.2}",
                row.sessions,
                session::Table::SLOT_BYTES,
                mib(row.region),
                mib(row.run),
                mib(row.intercept),
                row.intercept_each(),
                row.idle_percent
            );
        }
        objects.push(serde_json::json!({
            "sessions": row.sessions, "slot_bytes": session::Table::SLOT_BYTES, "region_bytes": row.region,
            "run_private_bytes": row.run, "intercept_private_bytes": row.intercept,
            "intercept_bytes_a_session": row.intercept_each(), "idle_cpu_percent": row.idle_percent,
        }));
    }
    if json {
        println!("{}", serde_json::Value::from(objects));
    }
    Ok(())
}

/// `service ADDRESS`, or `client ADDRESS CONNECTIONS`: in the namespace that it was started in, until its standard input ends.
fn hold(what: &str) -> Result<()> {
    let words: Vec<&str> = what.split(' ').collect();
    let here = Namespace::here("held")?;
    match words[..] {
        ["service", at] => {
            let options = HttpOptions::default();
            let _service = HttpService::start(&here, at.parse()?, options, Arc::new(Witness::new(0)))?;
            println!("ready");
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
        ["client", at, connections] => {
            let connections: usize = connections.parse()?;
            let load = Load {
                connections,
                rate: Some(RATE),
                time: 2 * OPENED,
                stays: 10 * OPENED,
                ..Load::new(at.parse()?, connections as u64)
            };
            let load = load.start(&here)?;
            let all = connections as u64;
            let answered = wait::until("every connection has had its answer", OPENED, || {
                load.progress.answered.load(Relaxed) >= all
            });
            if let Err(error) = answered {
                let report = load.stop()?;
                bail!(
                    "{error}: {} sent, {} answered, {} failed: {:?}",
                    report.sent,
                    report.answered,
                    report.failed,
                    report.error
                );
            }
            println!("ready");
            std::io::stdin().read_to_end(&mut Vec::new())?;
            load.stop()?;
        }
        _ => bail!("--hold={what}: neither a service nor a client"),
    }
    Ok(())
}

/// This program again, in a namespace; it ends with what is returned.
struct Holder(Child);

impl Holder {
    fn start(ns: &Namespace, what: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(format!("--hold={what}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(ns.spawn(command).with_context(|| format!("starting the {what}"))?))
    }

    /// A service listens, a client has had all its answers.
    fn wait_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().context("asked twice")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the process that holds connections ended: {}", self.0.wait()?);
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends when its input has.
        let _ = self.0.wait();
    }
}

fn measure(binary: &std::path::Path, connections: usize) -> Result<Row> {
    let net = Network::standard()?;
    let (mut services, mut maps, mut targets, mut shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for part in 0..connections.div_ceil(OF_ONE) {
        let online = SocketAddr::new(net.online.v4(), 80 + part as u16);
        let target = SocketAddr::new(net.target.v4(), 8_080 + part as u16);
        services.push(Holder::start(&net.online.ns, &format!("service {online}"))?);
        services.push(Holder::start(&net.target.ns, &format!("service {target}"))?);
        maps.push(lab::twin::map(online.port(), target));
        targets.push(target.to_string());
        shares.push((online, (connections - part * OF_ONE).min(OF_ONE)));
    }
    services.iter_mut().try_for_each(Holder::wait_ready)?;
    let twin = Twin::new(binary)?;
    let intercept = twin.intercept(&net.assistant, &["-x", &targets.join(","), "-i", "eth0"])?;
    let (maps, most) = (maps.join(","), (connections * 9 / 8).to_string());
    let args = ["-x", &maps, "-s", "10.88.0.5", "-i", "eth0", "--shards", "2", "--max-sessions", &most];
    // A range for as many clients as there may be, whatever the instance would choose by itself.
    let run = twin.run(&net.online, &[&args[..], &["-c", "198.18.0.0/16", "--memory", "512MiB"]].concat())?;
    let intercept_before = private(&intercept)?;
    net.client.ns.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", PORTS))?;
    let mut clients = Vec::new();
    for (at, share) in shares {
        let mut client = Holder::start(&net.client.ns, &format!("client {at} {share}"))?;
        client.wait_ready()?;
        clients.push(client);
    }
    let all = connections as u64;
    let stats = run.wait_quiet(Duration::from_secs(30))?;
    let sessions = stats.value()["sessions"]["open"].as_u64().context("sessions.open")?;
    ensure!(sessions == all, "{sessions} of {all} sessions are open: {}", stats.ledger());
    let cpu = || run.cpu_s() + intercept.cpu_s();
    let (before, since) = (cpu(), Instant::now());
    std::thread::sleep(IDLE);
    let idle_percent = (cpu() - before) * 100.0 / since.elapsed().as_secs_f64();
    let region = std::fs::metadata(shm::path(&run.name)).context("the size of the region")?.len();
    let row = Row {
        sessions,
        region,
        run: private(&run)?,
        intercept: private(&intercept)?,
        intercept_before,
        idle_percent,
    };
    drop(clients);
    run.stop_run()?;
    Ok(row)
}

/// Anonymous memory of all processes of an instance.
fn private(instance: &Instance) -> Result<u64> {
    let all: Vec<u64> =
        tree(instance.pid()).iter().filter_map(|process| private_bytes(process.pid)).collect();
    ensure!(!all.is_empty(), "`{}` has no process", instance.command_line);
    Ok(all.iter().sum())
}
