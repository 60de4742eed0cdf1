//! What dies and comes back while requests go on. Requests after the recovery must all arrive, none twice, and every
//! byte of those before is in the ledger.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::load::RunningLoad;
use lab::story::{Story, step};
use lab::{Fidelity, Instance, Load, Mode, process, wait};

use crate::stage::{SETTLE, Stage, answered, end};

pub(crate) const STORIES: &[Story] = &[
    ("the_capturer_is_killed_under_load", 90, the_capturer_is_killed_under_load),
    ("the_injector_is_killed_under_load", 90, the_injector_is_killed_under_load),
    ("a_shard_worker_is_killed_under_load", 90, a_shard_worker_is_killed_under_load),
    (
        "a_shard_worker_is_killed_under_short_connections",
        90,
        a_shard_worker_is_killed_under_short_connections,
    ),
    ("intercept_is_restarted_under_load", 90, intercept_is_restarted_under_load),
    ("the_target_is_restarted_under_load", 90, the_target_is_restarted_under_load),
    ("the_supervisor_is_killed_and_started_again", 90, the_supervisor_is_killed_and_started_again),
];

impl Stage {
    /// Waits until the target has answered every one of these ids, or gets no further.
    pub(crate) fn wait_for(&self, ids: Range<u64>) -> Result<()> {
        step("the last requests arrive");
        // Not an error yet: the comparison that follows says which ids are missing.
        let _ = wait::until("the target has answered", SETTLE, || {
            ids.clone().all(|id| self.target.times(id) >= self.online.times(id))
        });
        Ok(())
    }
}

/// Waits until the load has sent so many requests more; returns how many those are in all.
pub(crate) fn more(load: &RunningLoad, requests: u64) -> Result<u64> {
    let goal = load.progress.sent.load(Relaxed) + requests;
    wait::until(&format!("{requests} requests more"), SETTLE, || load.progress.sent.load(Relaxed) >= goal)?;
    Ok(load.progress.sent.load(Relaxed))
}

fn the_capturer_is_killed_under_load() -> Result<()> {
    // The kernel goes on filling the ring that the supervisor holds open: nothing is lost.
    nothing_is_lost_when_killed("capturer")
}

fn the_injector_is_killed_under_load() -> Result<()> {
    // Its cursor moves after the send: at most one batch is repeated, which TCP ignores.
    nothing_is_lost_when_killed("injector")
}

fn nothing_is_lost_when_killed(role: &str) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(50_000) })?;
    more(&load, 500)?;
    for _ in 0..2 {
        step(format!("kill the {role}"));
        let old = run.kill_role(role, 0)?;
        run.wait_restarted(role, 0, old, SETTLE)?;
        more(&load, 700)?;
    }
    let report = answered(load.stop()?)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn a_shard_worker_is_killed_under_load() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(50_000) })?;
    more(&load, 500)?;
    step("kill shard worker 1");
    let old = run.kill_role("shard-worker", 1)?;
    run.wait_restarted("shard-worker", 1, old, SETTLE)?;
    // Its connections are joined again, each at its next request; twenty connections have one within 20 ms.
    let recovered = more(&load, 500)?;
    more(&load, 1_500)?;
    let report = answered(load.stop()?)?;
    arrived_after(&stage, run, recovered..report.sent)
}

fn a_shard_worker_is_killed_under_short_connections() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = Load { mode: Mode::ClientCloses, rate: Some(500.0), ..stage.load(50_000) };
    let load = stage.start(load)?;
    more(&load, 300)?;
    step("kill shard worker 0");
    let old = run.kill_role("shard-worker", 0)?;
    run.wait_restarted("shard-worker", 0, old, SETTLE)?;
    let recovered = more(&load, 200)?;
    more(&load, 700)?;
    let report = answered(load.stop()?)?;
    arrived_after(&stage, run, recovered..report.sent)
}

/// Every request of `ids` arrived once, none before them twice, and the ledger adds up.
fn arrived_after(stage: &Stage, run: Instance, ids: Range<u64>) -> Result<()> {
    stage.wait_for(ids.clone())?;
    let stats = end(run)?;
    let after = Fidelity::of_ids(&stage.online, &stage.target, 1, ids.clone());
    ensure!(
        after.is_exact() && after.ids == ids.end - ids.start,
        "after the recovery: {after}; {}",
        stats.ledger()
    );
    let all = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(all.surplus == 0 && all.altered == 0, "in all: {all}; {}", stats.ledger());
    println!("    in all: {all}; {}", stats.ledger());
    stats.check_ledger()
}

fn intercept_is_restarted_under_load() -> Result<()> {
    let stage = Stage::new()?;
    let intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 300)?;
    step("kill intercept, and start it again after half a second of load");
    intercept.kill()?;
    more(&load, 250)?;
    let _intercept = stage.intercept()?;
    more(&load, 1_000)?;
    let report = answered(load.stop()?)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn the_target_is_restarted_under_load() -> Result<()> {
    let mut stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 500)?;
    step("the target's service stops, and comes back after half a second of load");
    stage.target_service.take();
    more(&load, 250)?;
    stage.restart_target()?;
    // Connections are tried again with a back-off of a second.
    let recovered = more(&load, 1_000)?;
    more(&load, 1_000)?;
    let report = answered(load.stop()?)?;
    arrived_after(&stage, run, recovered..report.sent)
}

fn the_supervisor_is_killed_and_started_again() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let name = format!("again{}", std::process::id());
    let run = stage.run(&["--name", &name])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    let roles: Vec<u32> = run.stats()?.roles()?.iter().map(|r| r.pid).collect();
    step("kill the supervisor");
    run.kill()?;
    wait::until("its roles die with it", Duration::from_secs(5), || {
        roles.iter().all(|&pid| process::Process::read(pid).is_none_or(|p| p.is_zombie()))
    })?;
    step("the same name starts again");
    let run = stage.run(&["--name", &name])?;
    let recovered = more(&load, 500)?;
    more(&load, 700)?;
    let report = answered(load.stop()?)?;
    stage.wait_for(recovered..report.sent)?;
    let stats = end(run)?;
    let after = Fidelity::of_ids(&stage.online, &stage.target, 1, recovered..report.sent);
    ensure!(after.is_exact(), "after the start: {after}; {}", stats.ledger());
    let others = stats.dropped_in_all() - stats.dropped("duplicate") - stats.dropped("joined_midturn");
    ensure!(others == 0, "{}", stats.ledger());
    clean_after_join(&stats)
}

fn clean_after_join(stats: &lab::Stats) -> Result<()> {
    let joined = stats.dropped("joined_midturn");
    ensure!(stats.in_flight() == 0 && stats.missed() == 0, "{}", stats.ledger());
    ensure!(stats.delivered() + joined + stats.dropped("duplicate") == stats.wanted(), "{}", stats.ledger());
    Ok(())
}
