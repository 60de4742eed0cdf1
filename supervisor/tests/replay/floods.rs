//! More of everything than anybody means: SYNs at the captured service, strangers at the return channel. Those who were there
//! before are served, and memory is what it was.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::story::{Story, step};
use lab::twin::RETURN_PORT;
use lab::{Flood, Histogram, Host, Instance, Load, Mode, Outside, process, wait};
use returns::{Hello, Link, Policy};

use crate::stage::{ONLINE_PORT, SETTLE, Stage};

/// They take the machine: a neighbour would be flooded, too.
pub(crate) const ALONE: &[Story] = &[
    ("a_flood_of_syns_harms_no_established_session", 240, a_flood_of_syns_harms_no_established_session),
    ("strangers_at_the_return_channel_harm_no_peer", 120, strangers_at_the_return_channel_harm_no_peer),
];

/// Private memory of all processes may differ by this: a page here and there.
const MEMORY: u64 = 4 << 20;

fn private_bytes(of: &Instance) -> u64 {
    process::tree(of.pid()).iter().filter_map(|one| process::private_bytes(one.pid)).sum()
}

/// Latest first answer of the target behind the online server's, of these ids.
fn lag(stage: &Stage, ids: std::ops::Range<u64>) -> Histogram {
    let mut lag = Histogram::default();
    for id in ids {
        if let (Some(online), Some(target)) = (stage.online.first_us(id), stage.target.first_us(id)) {
            lag.record(target.saturating_sub(online));
        }
    }
    lag
}

fn a_flood_of_syns_harms_no_established_session() -> Result<()> {
    // As many as a host can be made to take: bench --bin flood.
    let (rate, seconds) = (40_000, 4);
    let stage = Stage::new()?;
    let mut outside = Outside::new(&stage.net, stage.at_target())?.but_for(&stage.net.client);
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = Load { connections: 50, rate: Some(500.0), ..stage.load(100_000) };
    let load = stage.start(Load { time: Duration::from_secs(seconds + 60), ..load })?;
    wait::until("it replays", SETTLE, || stage.target.answered() > 500)?;
    let (memory, asked) = (private_bytes(&run), load.progress.sent.load(Relaxed));
    step(format!("{rate} SYNs a second for {seconds} s"));
    let before = run.stats()?;
    let flood =
        Flood::start(&stage.net.client, &stage.net.online, ONLINE_PORT, rate, Duration::from_secs(seconds))?;
    std::thread::sleep(Duration::from_secs(seconds));
    let (sent, took) = flood.stop()?;
    let grown = private_bytes(&run).saturating_sub(memory);
    let asked = asked..load.progress.sent.load(Relaxed);
    let after = run.stats()?;
    let since = |path: &str| -> Result<u64> { Ok(after.number(path)? - before.number(path)?) };
    step(format!(
        "{:.0} SYNs a second left; captured {}, kernel drops {}, ring full {}, sessions {} half open {} table full {}; {grown} bytes more",
        sent as f64 / took.as_secs_f64(),
        since("/ledger/captured/segments")?,
        since("/capture/kernel_drops")?,
        since("/ledger/dropped/ring_full/segments")?,
        since("/sessions/started")?,
        since("/sessions/failed/half_open")?,
        since("/sessions/failed/table_full")?,
    ));
    step("who means it is served again");
    // What of it still waits has gone by then.
    std::thread::sleep(Duration::from_secs(2));
    let ids = 150_000..150_100;
    let new = Load { mode: Mode::ClientCloses, rate: Some(50.0), first_id: ids.start, ..stage.load(100) };
    stage.send(new)?;
    let served = || ids.clone().filter(|id| stage.target.times(*id) == 1).count();
    let _ = wait::until("the new ones reach the target", SETTLE, || served() == 100);
    let report = load.stop()?;
    let _ = wait::until("all has arrived", SETTLE, || stage.target.answered() >= stage.online.answered());
    let during = lab::Fidelity::of_ids(&stage.online, &stage.target, 1, asked.clone());
    let lag = lag(&stage, asked.clone());
    step(format!(
        "of {} requests asked meanwhile {} were answered online ({} failed), {} of them by the target; lag p50 {} p99 {} us; {} of 100 new ones",
        during.ids + report.failed,
        during.ids,
        report.failed,
        during.equal,
        lag.percentile(50.0),
        lag.percentile(99.0),
        served()
    ));
    step(run.stats()?.ledger());
    ensure!(served() == 100, "only {} of 100 new connections were replayed", served());
    ensure!(during.equal * 1_000 >= during.ids * 999, "{during}");
    ensure!(grown <= MEMORY, "{grown} bytes more than before");
    ensure!(outside.look()? == 0, "astray: {:?}", outside.examples());
    run.wait_quiet(SETTLE)?.check_ledger()?;
    run.stop_run()?;
    Ok(())
}

/// Who bothers an intercept, until told to stop.
struct Strangers {
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// Connections that are held open without a word, and those that say a byte at a time.
const HELD: usize = 1_000;

impl Strangers {
    /// From one host: some that hang on silently, some that spell, some with another key as fast as they can.
    fn start(from: &Host, at: SocketAddr, hello: &Hello) -> Result<Self> {
        let (stop, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for kind in [hold_on, spell, knock] {
            let (stop, tries, hello) = (Arc::clone(&stop), Arc::clone(&tries), hello.clone());
            threads.push(from.ns.thread("stranger", move || kind(at, &hello, &stop, &tries))?);
        }
        Ok(Self { stop, tries, threads })
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            ensure!(thread.join().is_ok(), "a stranger panicked");
        }
        Ok(self.tries.load(Relaxed))
    }
}

fn dial(at: SocketAddr, tries: &AtomicU64) -> Option<TcpStream> {
    tries.fetch_add(1, Relaxed);
    let stream = TcpStream::connect_timeout(&at, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    Some(stream)
}

/// Many at a time that say nothing.
fn hold_on(at: SocketAddr, _: &Hello, stop: &AtomicBool, tries: &AtomicU64) {
    let mut held = std::collections::VecDeque::new();
    while !stop.load(Relaxed) {
        held.extend(dial(at, tries));
        if held.len() > HELD {
            held.pop_front();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Right first bytes, one at a time.
fn spell(at: SocketAddr, hello: &Hello, stop: &AtomicBool, tries: &AtomicU64) {
    while !stop.load(Relaxed) {
        let Ok(link) = Link::dialer(Policy::Keyed([9; 32]), hello, at) else { return };
        let Some(mut stream) = dial(at, tries) else { continue };
        for byte in link.pending() {
            if stop.load(Relaxed) || stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whole handshakes with another key, each judged before the next.
fn knock(at: SocketAddr, hello: &Hello, stop: &AtomicBool, tries: &AtomicU64) {
    while !stop.load(Relaxed) {
        let Ok(link) = Link::dialer(Policy::Keyed([9; 32]), hello, at) else { return };
        let Some(mut stream) = dial(at, tries) else { continue };
        let mut verdict = [0; 64];
        let _ = stream.write_all(link.pending()).and_then(|()| stream.read(&mut verdict));
    }
}

fn strangers_at_the_return_channel_harm_no_peer() -> Result<()> {
    const FOR: Duration = Duration::from_secs(8);
    let stage = Stage::new()?;
    let dir = lab::scratch::Scratch::new("key")?;
    let key = dir.file("key").display().to_string();
    let made = Command::new(env!("CARGO_BIN_EXE_tcptwin")).args(["keygen", &key]).output()?;
    ensure!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
    let target = stage.at_target().to_string();
    let intercept =
        stage.twin.intercept(&stage.net.assistant, &["-x", &target, "-i", "eth0", "--key", &key])?;
    let run = stage.run(&["--key", &key])?;
    let load = Load { connections: 50, rate: Some(1_000.0), ..stage.load(100_000) };
    let load = stage.start(Load { time: Duration::from_secs(60), ..load })?;
    wait::until("it replays", SETTLE, || stage.target.answered() > 1_000)?;
    let first = load.progress.sent.load(Relaxed);
    std::thread::sleep(FOR / 2);
    let quiet = first..load.progress.sent.load(Relaxed);
    let (memory, cpu_s) = (private_bytes(&intercept), intercept.cpu_s());
    step("strangers from two hosts");
    let at = SocketAddr::new(stage.net.assistant.v4(), RETURN_PORT);
    let hello = Hello {
        software: "0.1.0".to_owned(),
        instance: 99,
        incarnation: 1,
        name: "stranger".to_owned(),
        mode: returns::Mode::Claims,
        targets: vec![stage.at_target().into()],
        last: None,
    };
    let begun = Instant::now();
    let strangers = [&stage.net.client, &stage.net.assistant2].map(|host| Strangers::start(host, at, &hello));
    std::thread::sleep(FOR / 2);
    step("an honest one finds in meanwhile");
    let connects = || -> Result<u64> { run.stats()?.number("/intercepts/0/connects") };
    let before_connects = connects()?;
    let again = stage.net.online2.ns.enter({
        let (binary, runtime) = (env!("CARGO_BIN_EXE_tcptwin"), stage.twin.runtime().to_owned());
        let (map, key) = (lab::twin::map(ONLINE_PORT, stage.at_target()), key.clone());
        move || {
            let args =
                ["doctor", "-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--key", &key, "--name", "honest"];
            Command::new(binary).args(args).env("XDG_RUNTIME_DIR", runtime).env("NO_COLOR", "1").output()
        }
    })?;
    let again = String::from_utf8_lossy(&again.stdout).into_owned();
    std::thread::sleep(FOR.saturating_sub(begun.elapsed()));
    let (grown, spent_s) = (private_bytes(&intercept).saturating_sub(memory), intercept.cpu_s() - cpu_s);
    let mut tries = 0;
    for one in strangers {
        tries += one?.stop()?;
    }
    let took = begun.elapsed();
    let busy = quiet.end..load.progress.sent.load(Relaxed);
    load.stop()?;
    let reconnects = connects()? - before_connects;
    wait::until("all has arrived", SETTLE, || stage.target.answered() >= stage.online.answered())?;
    let before = lag(&stage, quiet).percentile(99.0);
    let after = lag(&stage, busy.clone()).percentile(99.0);
    step(format!(
        "{tries} tries in {took:.1?}: {} accepted, {} busy, {} slow, {} with another key; {spent_s:.2} s of CPU, {grown} bytes more; lag p99 {before} us before, {after} meanwhile",
        intercept.figure("/links/accepted")?,
        intercept.figure("/links/busy")?,
        intercept.figure("/links/slow")?,
        intercept.figure("/bad_handshakes/wrong_key")?
    ));
    ensure!(again.lines().any(|line| line.contains("key matches")), "an honest one was not let in:\n{again}");
    let all = lab::Fidelity::of_ids(&stage.online, &stage.target, 1, busy);
    ensure!(all.is_exact(), "{all}");
    ensure!(reconnects == 0, "the honest peer's connection was lost {reconnects} times");
    ensure!(
        intercept.figure("/bad_handshakes/wrong_key")? > 100
            && intercept.figure("/links/busy")? + intercept.figure("/links/slow")? > 100,
        "nobody came"
    );
    ensure!(grown <= MEMORY, "{grown} bytes more than before");
    // What it takes is told above; here, that nobody stands behind a shut door.
    ensure!(after <= before + 500_000, "lag p99 {after} us, {before} before");
    crate::stage::end(run)?;
    Ok(())
}
