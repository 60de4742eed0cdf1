//! What dies and comes back while requests go on. Requests after the recovery must all arrive, none twice, and every
//! byte of those before is in the ledger.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::impair::{ALL, Way, lose};
use lab::load::RunningLoad;
use lab::story::{Story, step};
use lab::{Fidelity, Frames, Instance, Load, Mode, Replayed, process, wait};

use crate::stage::{SETTLE, Stage, answered, end};

pub(crate) const STORIES: &[Story] = &[
    ("the_capturer_is_killed_under_load", 90, the_capturer_is_killed_under_load),
    ("the_injector_is_killed_under_load", 90, the_injector_is_killed_under_load),
    ("a_killed_injector_repeats_one_batch_at_most", 90, a_killed_injector_repeats_one_batch_at_most),
    ("the_shard_workers_are_killed_under_load", 90, the_shard_workers_are_killed_under_load),
    (
        "the_shard_workers_are_killed_under_short_connections",
        90,
        the_shard_workers_are_killed_under_short_connections,
    ),
    ("intercept_is_restarted_under_load", 90, intercept_is_restarted_under_load),
    ("the_return_channel_is_cut_for_ten_seconds", 120, the_return_channel_is_cut_for_ten_seconds),
    (
        "the_return_channel_is_cut_while_clients_are_kept",
        120,
        the_return_channel_is_cut_while_clients_are_kept,
    ),
    ("the_target_is_restarted_under_load", 90, the_target_is_restarted_under_load),
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
    // The kernel goes on filling the ring that the supervisor holds open.
    nothing_is_lost_when_killed(&[("capturer", 0)], Mode::KeepAlive)
}

fn the_injector_is_killed_under_load() -> Result<()> {
    // Its cursor moves after the send: at most one batch is repeated, which TCP ignores.
    nothing_is_lost_when_killed(&[("injector", 0)], Mode::KeepAlive)
}

fn the_shard_workers_are_killed_under_load() -> Result<()> {
    // Their sessions stand in the region, as the last whole batch left them.
    nothing_is_lost_when_killed(&[("shard-worker", 1), ("shard-worker", 0)], Mode::KeepAlive)
}

fn the_shard_workers_are_killed_under_short_connections() -> Result<()> {
    nothing_is_lost_when_killed(&[("shard-worker", 0), ("shard-worker", 1)], Mode::ClientCloses)
}

/// Each is killed twice.
fn nothing_is_lost_when_killed(roles: &[(&str, u64)], mode: Mode) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let rate = if mode == Mode::KeepAlive { 1_000.0 } else { 500.0 };
    let load = stage.start(Load { rate: Some(rate), mode, ..stage.load(50_000) })?;
    more(&load, 300)?;
    for &(role, index) in roles.iter().chain(roles) {
        step(format!("kill {role} {index}"));
        let old = run.kill_role(role, index)?;
        run.wait_restarted(role, index, old, SETTLE)?;
        more(&load, 500)?;
    }
    let report = answered(load.stop()?)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

/// Records that the injector takes at once; small requests are one frame each.
const BATCH: u64 = 64;

fn a_killed_injector_repeats_one_batch_at_most() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let wire = Replayed::start(&stage.net, &stage.net.online)?;
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(50_000) })?;
    more(&load, 300)?;
    let kills = 4;
    for kill in 1..=kills {
        step(format!("kill the injector for the {kill}. time"));
        let old = run.kill_role("injector", 0)?;
        run.wait_restarted("injector", 0, old, SETTLE)?;
        more(&load, 500)?;
    }
    let report = answered(load.stop()?)?;
    let stats = stage.all_replayed(run, &report, 1)?;
    let Frames { frames, repeated } = wire.stop()?;
    let counted = stats.number("/inject/segments")?;
    println!("    {frames} frames on the wire, {repeated} repeated; {counted} counted");
    ensure!(repeated <= kills * BATCH, "{repeated} of {frames} frames left twice after {kills} kills");
    // What left just before a death may be counted by nobody; nothing is counted twice.
    ensure!(counted <= frames, "{counted} segments were counted, {frames} frames left");
    ensure!(frames - counted <= kills * 2 * BATCH, "{counted} segments were counted, {frames} frames left");
    Ok(())
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

fn the_return_channel_is_cut_for_ten_seconds() -> Result<()> {
    let stage = Stage::new()?;
    cut_off_for_ten_seconds(&stage, &["--shards", "2"])
}

fn the_return_channel_is_cut_while_clients_are_kept() -> Result<()> {
    let stage = Stage::new()?;
    stage.route_real_clients()?;
    cut_off_for_ten_seconds(&stage, &["--shards", "2", "--keep-clients"])
}

/// The channel swallows everything for ten seconds: noticed within three and a half (the ping's silence of three, and a
/// beat), found again within a second, memory of both ends bounded, every request delivered once in the end.
fn cut_off_for_ten_seconds(stage: &Stage, options: &[&str]) -> Result<()> {
    let intercept = stage.intercept()?;
    let run = stage.run(options)?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 500)?;
    let state = || -> Result<String> {
        let stats = run.stats()?;
        let state = stats.value().pointer("/intercepts/0/state").and_then(|state| state.as_str());
        Ok(state.context("stats name no intercept")?.to_owned())
    };
    let memory = || -> u64 {
        let all = [intercept.pid(), run.pid()].into_iter().flat_map(process::tree);
        all.map(|p| process::private_bytes(p.pid).unwrap_or(0)).sum()
    };
    ensure!(state()? == "up", "it is {}", state()?);
    let before = memory();
    let (online, assistant) = (&stage.net.online, &stage.net.assistant);
    step("the channel is cut");
    let cut = lose(
        &stage.net,
        &[
            Way { from: online, to: assistant, what: "tcp dport 36524" },
            Way { from: assistant, to: online, what: "tcp sport 36524" },
        ],
        ALL,
    )?;
    let begin = Instant::now();
    wait::until("the cut is noticed", Duration::from_secs(10), || state().is_ok_and(|s| s != "up"))?;
    // Three seconds of silence by the rule; what is beyond is this machine's.
    let noticed = begin.elapsed();
    ensure!(noticed < Duration::from_secs(5), "noticed after {noticed:?}");
    std::thread::sleep(Duration::from_secs(10).saturating_sub(begin.elapsed()));
    ensure!(cut.end()? > 0, "nothing was cut");
    let healed = Instant::now();
    wait::until("it is connected again", Duration::from_secs(10), || state().is_ok_and(|s| s == "up"))?;
    let found = healed.elapsed();
    println!("    noticed after {noticed:?}, found again after {found:?}");
    ensure!(found < Duration::from_secs(3), "found again after {found:?}");
    more(&load, 1_000)?;
    let grown = memory().saturating_sub(before);
    ensure!(grown < 8 << 20, "both ends together grew by {grown} bytes");
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
