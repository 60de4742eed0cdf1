//! `tcptwin run`, from the options to the last line: plan, checks, region, sockets, roles, end. Nothing is started before
//! all checks passed, and whatever way it ends, region, rules and socket go.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use shm::Region;
use topology::plan::{CaptureEngine, Clients};
use topology::{Key, Options, Plan, Refusal, plan_from, planner, wiring};

use crate::control::Server;
use crate::preflight::{self, Ready};
use crate::signals::Signals;
use crate::spawn::Sockets;
use crate::supervise::{Ended, Supervisor};
use crate::terminal::Terminal;
use crate::{host, key, logging, metrics, summary};

/// Removes the region's file at the end, whatever the end is.
struct Tidy(String);

impl Drop for Tidy {
    fn drop(&mut self) {
        if let Err(error) = Region::remove(&self.0) {
            tracing::warn!("{error}");
        }
    }
}

/// Runs until the end.
///
/// # Errors
/// A [`Refusal`] before the start; anything else is a failure while running.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (quiet, json) = (options.has(Key::Quiet), options.has(Key::Json));
    logging::start("supervisor", logging::level(quiet));
    let facts = host::facts(key::of_options(options)?)?;
    let plan = plan_from(options, &facts)?;
    let exporter = planner::metrics_addr(options)?;
    let Ready { plan, lock, directory, notes } = preflight::check(plan, options)?;

    // From here on things are made, in an order in which each can still be refused without leaving any behind.
    let inject = injector::open(&plan).map_err(|error| Refusal::preflight(error.to_string()))?;
    let capture = capturer::open(&plan).map_err(|error| Refusal::preflight(error.to_string()))?;
    let board = match exporter {
        None => None,
        Some(at) => {
            let board: metrics::Board = Arc::new(Mutex::new(None));
            metrics::serve_board(at, Arc::clone(&board)).map_err(|error| {
                let why = crate::words::of_io(&error);
                Refusal::preflight(format!(
                    "--metrics {at}: listening there failed ({why}). Choose another address or port"
                ))
            })?;
            Some(board)
        }
    };
    let spec = wiring::region_spec(&plan, session::Table::arena_bytes);
    let region = Region::create(&plan.name, &spec, &plan.to_bytes(), plan.instance)
        .map_err(|error| Refusal::preflight(error.to_string()))?;
    let tidy = Tidy(plan.name.clone());
    region.control().set_percent_ppm(plan.percent_ppm);
    region.control().set_copies_milli(plan.copies_milli);
    let (rules, rules_note) = match injector::NoTrack::install(&plan) {
        Ok(rules) => (Some(rules), None),
        Err(note) => (None, Some(note.to_string())),
    };
    let server = Server::bind(&directory, &plan.name)
        .with_context(|| format!("opening the control socket in {} failed", directory.display()))?;
    let signals = Signals::listen()?;

    let mut terminal = Terminal::new();
    for note in notes.iter().chain(&rules_note) {
        tracing::info!("{note}");
    }
    if !quiet && !json {
        for line in opening(&plan, rules.is_some()) {
            terminal.line(line);
        }
    }
    let name = plan.name.clone();
    let supervisor = Supervisor::new(
        region,
        plan,
        Sockets { capture, inject },
        server,
        signals,
        terminal,
        !quiet && !json,
        quiet,
        board,
    );
    let Ended { sample, failure, terminal } = supervisor.run();
    drop(rules);
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
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => anyhow::bail!("the run {name} was stopped: {why}"),
    }
}

/// The first two lines: what is replayed where, and by what.
fn opening(plan: &Plan, no_track: bool) -> [String; 2] {
    let from = match plan.capture.interfaces.as_slice() {
        [] => "any interface".to_owned(),
        names => names.join(","),
    };
    let what = |mapping: &topology::plan::Mapping| {
        let target = plan.targets[usize::from(mapping.target)].addr;
        let online = mapping
            .online_ip
            .map_or_else(String::new, |ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
        format!("{online}:{} -> {target}", mapping.online_port)
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
    let engine = match plan.capture.engine {
        CaptureEngine::Ring => "ring (AF_PACKET)",
        CaptureEngine::Simple => "simple (pnet)",
    };
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
            "engines: capture {engine}, inject raw IP{}; {} {cores}; stop with Ctrl-C",
            if no_track { "" } else { " (tracked: no nftables)" },
            crate::words::counted(plan.shards.into(), "shard")
        ),
    ]
}
