//! More and less than the real traffic: copies, fractions of copies, percent. Exact, never "about".

use anyhow::{Result, ensure};
use lab::story::{Story, step};
use lab::{Load, Mode};

use crate::stage::{Stage, clean, end};

pub(crate) const STORIES: &[Story] = &[
    ("three_copies_are_three_of_each_request", 60, three_copies_are_three_of_each_request),
    ("three_copies_of_short_connections_never_collide", 60, three_copies_of_short_connections_never_collide),
    ("one_and_a_half_copies", 60, one_and_a_half_copies),
    ("a_quarter_of_a_copy", 60, a_quarter_of_a_copy),
    ("half_of_the_flows", 60, half_of_the_flows),
];

fn three_copies_are_three_of_each_request() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["-n", "3", "--shards", "2"])?;
    let report = stage.send(Load { rate: Some(500.0), ..stage.load(1_500) })?;
    let stats = stage.all_replayed(run, &report, 3)?;
    ensure!(stats.number("/sessions/started")? == 60, "{} sessions", stats.number("/sessions/started")?);
    ensure!(stage.target.connections() == 60, "{} connections at the target", stage.target.connections());
    ensure!(stats.captured() == report.request_bytes, "a captured byte counts once: {}", stats.ledger());
    Ok(())
}

fn three_copies_of_short_connections_never_collide() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["-n", "3"])?;
    let report = stage.send(Load { mode: Mode::ClientCloses, rate: Some(400.0), ..stage.load(1_000) })?;
    let stats = stage.all_replayed(run, &report, 3)?;
    ensure!(stats.number("/sessions/started")? == 3_000, "{} sessions", stats.number("/sessions/started")?);
    ensure!(stage.target.connections() == 3_000, "{} connections", stage.target.connections());
    Ok(())
}

fn one_and_a_half_copies() -> Result<()> {
    fraction(&["-n", "1.5"], [1, 2], 0.5)
}

fn a_quarter_of_a_copy() -> Result<()> {
    fraction(&["-n", "0.25"], [0, 1], 0.25)
}

fn half_of_the_flows() -> Result<()> {
    fraction(&["-r", "50"], [0, 1], 0.5)
}

/// Each flow is replayed `low` or `high` times, the higher with probability `p`, and nothing is lost of what is wanted.
fn fraction(options: &[&str], [low, high]: [u32; 2], p: f64) -> Result<()> {
    const FLOWS: u64 = 400;
    const EACH: u64 = 5;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(options)?;
    // One batch of five requests on each connection; ids of five digits, so that all requests are of one length.
    let first_id = 10_000;
    let load = Load {
        connections: FLOWS as usize,
        mode: Mode::Pipelined(EACH as usize),
        rate: Some(1_500.0),
        first_id,
        ..stage.load(FLOWS * EACH)
    };
    let report = stage.send(load)?;
    step("the target has what it should have");
    let stats = end(run)?;
    let times: Vec<u32> = (first_id..first_id + FLOWS * EACH).map(|id| stage.target.times(id)).collect();
    ensure!(times.iter().all(|&t| t == low || t == high), "some id has neither {low} nor {high} copies");
    // The five requests of one batch were on one connection, so they share its fate.
    let batches = times.chunks(EACH as usize);
    ensure!(batches.clone().all(|b| b.iter().all(|t| t == &b[0])), "a connection was replayed in part");
    let answers: u64 = times.iter().map(|&t| u64::from(t)).sum();
    ensure!(stage.target.answered() == answers, "requests with other ids at the target");
    clean(&stats, report.request_bytes / report.sent * answers)?;
    ensure!(
        stats.number("/sessions/started")? == stage.target.connections(),
        "sessions and connections differ"
    );
    // Connections used at all are independent draws; six standard deviations.
    let more = times.iter().filter(|&&t| t == high).count() as f64 / times.len() as f64;
    let used = stage.online.connections() as f64;
    let sigma = (p * (1.0 - p) / used).sqrt();
    ensure!(
        (more - p).abs() < 6.0 * sigma + 0.05,
        "{more:.3} of the requests have {high} copies, {p} were wanted"
    );
    Ok(())
}
