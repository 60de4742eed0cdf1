//! Connections that are older than the capture.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Result, ensure};
use lab::story::{Story, step};
use lab::{Fidelity, Load, wait};

use crate::stage::{SETTLE, Stage, answered, end};

pub(crate) const STORIES: &[Story] = &[
    ("older_connections_are_joined_at_a_request", 60, older_connections_are_joined_at_a_request),
    ("older_connections_are_left_alone_when_asked", 60, older_connections_are_left_alone_when_asked),
];

fn older_connections_are_joined_at_a_request() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(20_000) })?;
    let before = load.progress.sent.load(Relaxed);
    let run = stage.run(&["--shards", "2"])?;
    // Each of the 20 connections has a new request within 20 ms; a thousand requests are more than enough for all.
    let settled = load.progress.sent.load(Relaxed) + 1_000;
    step("the load goes on");
    wait::until("three thousand requests more", SETTLE, || {
        load.progress.sent.load(Relaxed) > settled + 3_000
    })?;
    let report = answered(load.stop()?)?;
    stage.wait_for(settled..report.sent)?;
    let stats = end(run)?;
    let fidelity = Fidelity::of_ids(&stage.online, &stage.target, 1, settled..report.sent);
    ensure!(fidelity.is_exact() && fidelity.ids == report.sent - settled, "{fidelity}; {}", stats.ledger());
    ensure!(
        Fidelity::of_ids(&stage.online, &stage.target, 1, 0..settled).surplus == 0,
        "a request came twice"
    );
    let early = (0..before.saturating_sub(20)).filter(|&id| stage.target.times(id) > 0).count();
    ensure!(early == 0, "{early} requests reached the target that were over before the start");
    let others = stats.dropped_in_all() - stats.dropped("duplicate") - stats.dropped("joined_midturn");
    ensure!(others == 0 && stats.missed() == 0 && stats.in_flight() == 0, "{}", stats.ledger());
    ensure!(stats.number("/sessions/started")? == 20, "{} sessions", stats.number("/sessions/started")?);
    Ok(())
}

fn older_connections_are_left_alone_when_asked() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(10_000) })?;
    let run = stage.run(&["--join", "never"])?;
    step("new connections beside the old ones");
    let new = stage.send(Load { first_id: 20_000, ..stage.load(500) })?;
    answered(load.stop()?)?;
    stage.wait_for(20_000..20_500)?;
    let stats = end(run)?;
    let fidelity = Fidelity::of_ids(&stage.online, &stage.target, 1, 20_000..20_500);
    ensure!(fidelity.is_exact() && fidelity.ids == 500, "{fidelity}; {}", stats.ledger());
    ensure!(stage.target.answered() == 500, "{} requests at the target", stage.target.answered());
    ensure!(stats.delivered() == new.request_bytes && stats.dropped("not_joined") > 0, "{}", stats.ledger());
    Ok(())
}
