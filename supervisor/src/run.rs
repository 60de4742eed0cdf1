//! `tcptwin run`, from the options to the last line: plan, checks, region, sockets, roles, end. Nothing is started before
//! all checks passed, and whatever way it ends, region, rules and socket go.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use capturer::expression::ExpressionError;
use shm::{LockFile, Region};
use topology::plan::{CaptureEngine, Clients};
use topology::recording::plan_to_record;
use topology::{Command, Given, Key, Options, Plan, Refusal, plan_from, planner, wiring};

use crate::adopt::{self, Found};
use crate::control::Server;
use crate::preflight::{self, Ready};
use crate::service::Service;
use crate::signals::Signals;
use crate::sockets::{Kept, Sockets};
use crate::stats::Stats;
use crate::supervise::{Ended, House, Setup, Supervisor};
use crate::terminal::Terminal;
use crate::upgrade::{self, Handover};
use crate::{
    canary, confine, guarding, host, key, logging, metrics, procfs, recording, relay, replaying, summary,
    survey,
};

/// Removes the region's file at the end, whatever the end is. Sessions of a run before this one are not given up before
/// this one works.
struct Tidy {
    name: String,
    armed: bool,
}

impl Drop for Tidy {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = Region::remove(&self.name)
        {
            tracing::warn!("{error}");
        }
    }
}

/// Runs until the end.
///
/// # Errors
/// A [`Refusal`] before the start; anything else is a failure while running.
pub(crate) fn run(options: &Options, of: Command) -> anyhow::Result<ExitCode> {
    let started_us = shm::monotonic_us();
    let (quiet, json) = (options.has(Key::Quiet), options.has(Key::Json));
    logging::start_apart("supervisor", logging::level(quiet));
    procfs::volunteer_for_oom(procfs::OOM_OF_SUPERVISORS);
    let kept = Service::kept();
    close_for_roles(options)?;
    let mut plan = match of {
        Command::Record => plan_to_record(options, &host::facts(None)?)?,
        _ => plan_from(options, &host::facts(key::of_options(options)?)?)?,
    };
    compile(&mut plan, options)?;
    replaying::settle(&mut plan)?;
    let metrics = planner::metrics_addr(options)?;
    let standing = confine::ready(plan.sandbox)?;
    let Ready { plan, found, lock, directory, halt_file, notes } = preflight::check(plan, options)?;
    let service = Service::of_environment();

    // From here on things are made, in an order in which each can still be refused without leaving any behind.
    let (sockets, renewed) = sockets(&plan, found, kept, &service)?;
    let board = match metrics.map(exporter) {
        None => None,
        Some(Ok(board)) => Some(board),
        Some(Err(sentence)) => return Err(Refusal::preflight(sentence).into()),
    };
    let region = region(&plan, found)?;
    let tidy = Tidy { name: plan.name.clone(), armed: !matches!(found, Found::Adopt(_)) };
    let guarding = guarding::set_up(region, &plan, &directory);
    let (engines, inject) = guarding.foresee(&plan, &sockets);
    if !matches!(found, Found::Adopt(_)) {
        canary::must_pass(region, &plan, &sockets.inject)?;
    }
    for (name, socket) in sockets.named(&plan).iter().filter(|_| renewed.is_some()) {
        service.keep(name, *socket);
    }
    let server = Server::bind(&directory, &plan.name)
        .with_context(|| format!("opening the control socket in {} failed", directory.display()))?;
    let signals = Signals::listen()?;

    let mut terminal = Terminal::new();
    let confined = confine::note(plan.sandbox, &standing);
    for note in notes.iter().chain(&guarding.notes).chain([&confined]) {
        tracing::info!("{note}");
    }
    if !quiet && !json {
        let lines = match &plan.record {
            Some(record) if plan.records_only() => recording::opening(&plan, record, &engine(&plan.capture)),
            _ => opening(&plan, &inject),
        };
        lines.into_iter().for_each(|line| terminal.line(line));
        if let Some(record) = plan.record.as_ref().filter(|_| !plan.records_only()) {
            terminal.line(recording::whereto(record));
        }
    }
    let program = std::env::current_exe().context("asking for the path of this program failed")?;
    let house = House {
        directory,
        program,
        halt_file,
        quiet,
        json,
        metrics,
        log: relay::numbers(),
        lock: lock.as_fd().as_raw_fd(),
        started_us,
    };
    let renewed = renewed == Some(Renewed::OldRegion);
    let setup = Setup {
        region,
        plan,
        sockets,
        renewed,
        ids: standing.user().map(|user| user.ids),
        server,
        signals,
        terminal,
        service,
        board,
        house,
        fence: guarding.fence,
        engines: Some(engines),
        before: None,
    };
    finish(setup, Made { tidy, lock })
}

/// What a careless shell left open is nobody's here; but for what packet files name.
fn close_for_roles(options: &Options) -> anyhow::Result<()> {
    let named = confine::named_by(options.all(Key::Files).map(|given| Path::new(&given.text)));
    sandbox::keep_from_children(&named)
        .context("looking at the descriptors that are open failed; is /proc mounted?")
}

/// Puts the program of `-F` into the plan.
fn compile(plan: &mut Plan, options: &Options) -> Result<(), Refusal> {
    let Some(given) = options.one(Key::Filter) else { return Ok(()) };
    capturer::expression::put_in(plan).map_err(|error| refused(given, error))
}

/// An expression that cannot be used, as a sentence.
pub(crate) fn refused(given: &Given, error: ExpressionError) -> Refusal {
    match error.is_of_the_text() {
        true => given.refuse(error),
        false => Refusal::preflight(format!("{given}: {error}")),
    }
}

/// Goes on where the image before this one stopped.
///
/// # Errors
/// What it handed over cannot be taken over, which ends the run; or a failure while running.
pub(crate) fn resume(before: Handover) -> anyhow::Result<ExitCode> {
    if let Some(numbers) = before.house.log {
        relay::inherit(numbers).context("taking over the log of the image before failed")?;
    }
    logging::start_apart("supervisor", logging::level(before.house.quiet));
    let signals = Signals::listen()?;
    upgrade::listens_again();
    let lock = LockFile::inherit(&before.name, &before.house.directory, before.house.lock)?;
    let region = Region::attach(&before.name)?;
    let plan = adopt::usable_plan(region).map_err(|why| anyhow::anyhow!("{}: {why}", before.name))?;
    let standing = confine::ready(plan.sandbox)?;
    let tidy = Tidy { name: plan.name.clone(), armed: false };
    let kept = before.sockets.iter().map(|(name, fd)| Ok((name.clone(), shm::inherit(*fd)?)));
    let kept = kept.collect::<std::io::Result<Vec<_>>>().context("taking over the sockets failed")?;
    let service = Service::of_environment();
    let (sockets, renewed) = sockets(&plan, Found::Adopt(region), kept, &service)?;
    for (name, socket) in sockets.named(&plan).iter().filter(|_| renewed.is_some()) {
        service.keep(name, *socket);
    }
    let guarding = guarding::set_up(region, &plan, &before.house.directory);
    for note in &guarding.notes {
        tracing::info!("{note}");
    }
    let server = Server::inherit(&before.house.directory, &plan.name, before.listener)
        .context("taking over the control socket failed")?;
    let board = before.house.metrics.and_then(|at| {
        exporter(at).map_err(|sentence| tracing::warn!("{sentence}. The run goes on without")).ok()
    });
    let house = House { lock: lock.as_fd().as_raw_fd(), ..before.house.clone() };
    let setup = Setup {
        region,
        plan,
        sockets,
        renewed: renewed.is_some(),
        ids: standing.user().map(|user| user.ids),
        server,
        signals,
        terminal: Terminal::new(),
        service,
        board,
        house,
        fence: guarding.fence,
        engines: None,
        before: Some(before),
    };
    finish(setup, Made { tidy, lock })
}

/// What was made outside this process; it goes in this order.
struct Made {
    tidy: Tidy,
    lock: LockFile,
}

/// The loop, and the last line.
fn finish(setup: Setup, mut made: Made) -> anyhow::Result<ExitCode> {
    let (plan, json) = (setup.plan.clone(), setup.house.json);
    relay::carry()
        .context("starting the thread of the log failed; is the limit on processes (ulimit -u) reached?")?;
    let supervisor = Supervisor::new(setup)?;
    made.tidy.armed = true;
    let Ended { sample, failure, terminal, service, sockets, fence } = supervisor.run();
    for (name, _) in sockets.named(&plan) {
        service.forget(&name);
    }
    let Made { tidy, lock } = made;
    drop(fence);
    drop(tidy);
    drop(lock);

    let last = if json {
        vec![serde_json::to_string(&sample.stats).context("the summary cannot be written")?]
    } else {
        summary::lines(&sample.stats)
    };
    terminal.end(last);
    if sample.stats.ledger.imbalance() != 0 {
        tracing::error!(
            "the ledger is off by {} bytes: this is a bug, please report it with the summary",
            sample.stats.ledger.imbalance()
        );
    }
    match (failure, &plan.trace) {
        (None, Some(trace)) if has_captured_nothing(&sample.stats) => {
            anyhow::bail!("{}", survey::nothing_replayed(&plan, trace, sample.stats.capture.frames))
        }
        (None, _) => Ok(ExitCode::SUCCESS),
        (Some(why), _) => anyhow::bail!("the run {} was stopped: {why}", plan.name),
    }
}

/// Neither a segment nor a datagram.
fn has_captured_nothing(stats: &Stats) -> bool {
    stats.ledger.captured.segments == 0 && stats.udp.as_ref().is_none_or(|udp| udp.captured.datagrams == 0)
}

/// Sockets that were opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewed {
    /// For a region made now.
    NewRegion,
    /// For one in which frame numbers of others stand.
    OldRegion,
}

/// Those that were kept, where they are of use; else new ones.
fn sockets(
    plan: &Plan,
    found: Found,
    mut kept: Vec<Kept>,
    service: &Service,
) -> Result<(Sockets, Option<Renewed>), Refusal> {
    let names: Vec<String> = kept.iter().map(|(name, _)| name.clone()).collect();
    let renewed = match found {
        Found::Adopt(_) if kept.is_empty() => Renewed::OldRegion,
        Found::Adopt(_) => match Sockets::take_over(plan, &mut kept) {
            Ok(sockets) => {
                kept.iter().for_each(|(name, _)| service.forget(name));
                return Ok((sockets, None));
            }
            Err(why) => {
                tracing::warn!("capture begins anew, with a gap: {why}");
                Renewed::OldRegion
            }
        },
        Found::Nothing | Found::Remove => {
            if !kept.is_empty() {
                let count = crate::words::counted(kept.len() as u64, "kept descriptor");
                tracing::warn!("{count} closed: the run that they belonged to does not go on");
            }
            Renewed::NewRegion
        }
    };
    names.iter().for_each(|name| service.forget(name));
    Ok((Sockets::open(plan)?, Some(renewed)))
}

/// The leftover in our hands, or a new region.
fn region(plan: &Plan, found: Found) -> Result<&'static Region, Refusal> {
    let refused = |error: shm::RegionError| Refusal::preflight(error.to_string());
    if let Found::Adopt(region) = found {
        adopt::take(region, plan).map_err(refused)?;
        return Ok(region);
    }
    if let Found::Remove = found {
        Region::remove(&plan.name).map_err(refused)?;
    }
    let spec = wiring::region_spec(plan, shard_worker::arena_bytes);
    let region = Region::create(&plan.name, &spec, &plan.to_bytes(), plan.instance).map_err(refused)?;
    region.control().set_asked_ppm(plan.percent_ppm);
    // A ramp begins with nothing.
    region.control().set_percent_ppm(if plan.restraint.ramp_ms == 0 { plan.percent_ppm } else { 0 });
    region.control().set_copies_milli(plan.copies_milli);
    Ok(region)
}

/// Serves the figures from now on.
fn exporter(at: SocketAddr) -> Result<metrics::Board, String> {
    let board: metrics::Board = Arc::new(Mutex::new(None));
    metrics::serve_board(at, Arc::clone(&board)).map_err(|error| {
        let why = crate::words::of_io(&error);
        format!("--metrics {at}: listening there failed ({why}). Choose another address or port")
    })?;
    Ok(board)
}

/// The capture engine, and why this one where there was a choice.
fn engine(capture: &topology::plan::CapturePlan) -> String {
    let by = match capture.engine {
        CaptureEngine::Ring => "AF_PACKET".to_owned(),
        CaptureEngine::Simple => "pnet, as asked".to_owned(),
        CaptureEngine::Pcap => {
            let version = libpcap::version().unwrap_or_else(|error| error.to_string());
            // "libpcap version 1.10.3 (with TPACKET_V3)".
            let words: Vec<&str> = version.split_whitespace().filter(|word| *word != "version").collect();
            format!("{}, as asked", words.iter().take(2).copied().collect::<Vec<_>>().join(" "))
        }
        CaptureEngine::Xdp => "AF_XDP, as asked: the host sees nothing of it".to_owned(),
    };
    format!("{} ({by})", capture.engine.name())
}

/// What is read, and how fast.
fn files(plan: &Plan) -> String {
    let Some(trace) = &plan.trace else { return String::new() };
    let name = |file: &std::path::PathBuf| file.file_name().unwrap_or(file.as_os_str()).display().to_string();
    let what = match trace.files.as_slice() {
        [one] => name(one),
        files => crate::words::counted(files.len() as u64, "file"),
    };
    let speed = match trace.speed_milli {
        Some(1_000) => String::new(),
        Some(milli) => format!(" at {} times its speed", f64::from(milli) / 1e3),
        None => " as fast as possible".to_owned(),
    };
    let loops = if trace.loops > 1 { format!(", {} times", trace.loops) } else { String::new() };
    format!("{what}{speed}{loops}")
}

/// The first two lines: what is replayed where, and by what.
fn opening(plan: &Plan, inject: &str) -> [String; 2] {
    let from = match plan.capture.interfaces.as_slice() {
        _ if plan.trace.is_some() => files(plan),
        [] => "any interface".to_owned(),
        names => names.join(","),
    };
    let what = |mapping: &topology::plan::Mapping| {
        let target = plan.targets[usize::from(mapping.target)].addr;
        let online = mapping
            .online_ip
            .map_or_else(String::new, |ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
        format!("{}{online}:{} -> {target}", mapping.protocol.prefix(), mapping.online_port)
    };
    let mut pairs: Vec<String> = plan.mappings.iter().take(3).map(what).collect();
    if plan.mappings.len() > 3 {
        pairs.push(format!("and {} more", plan.mappings.len() - 3));
    }
    let intercepts: Vec<String> = plan.intercepts.iter().map(ToString::to_string).collect();
    let key = if plan.key.is_some() { "key ok" } else { "plain" };
    let clients = match &plan.clients {
        Clients::Keep => "their own".to_owned(),
        Clients::Pool { v4, v6, .. } => {
            v4.iter().chain(v6).map(ToString::to_string).collect::<Vec<_>>().join(" and ")
        }
    };
    let share = match (plan.copies_milli, plan.percent_ppm) {
        (1_000, 1_000_000) => String::new(),
        (copies, percent) => format!(", x{} of {} %", f64::from(copies) / 1e3, f64::from(percent) / 1e4),
    };
    let engine = engine(&plan.capture);
    let mut cores = plan.cores.clone();
    cores.sort_unstable();
    cores.dedup();
    let cores = if cores.is_empty() {
        "not pinned".to_owned()
    } else {
        format!("on cores {}", planner::spans(&cores))
    };
    [
        format!(
            "tcptwin {}: {from} {}{share}, answers by {} ({key}), clients as {clients}",
            env!("CARGO_PKG_VERSION"),
            pairs.join(", "),
            intercepts.join(", ")
        ),
        format!(
            "engines: capture {engine}, inject {inject}; {} {cores}; stop with Ctrl-C",
            crate::words::counted(plan.shards.into(), "shard")
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_engine_is_named_with_what_it_stands_on() {
        let said = |name: &str| {
            engine(&testing::plan("engine", &[(Key::Capture, name), (Key::Interface, "lo")]).capture)
        };
        assert_eq!(said("ring"), "ring (AF_PACKET)");
        assert_eq!(said("simple"), "simple (pnet, as asked)");
        assert!(said("pcap").starts_with("pcap (libpcap "), "{}", said("pcap"));
        assert!(said("xdp").contains("the host sees nothing of it"));
    }
}
