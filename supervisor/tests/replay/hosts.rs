//! Several online hosts, several intercepts.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use lab::story::{Story, step};
use lab::{Answers, Fidelity, HttpOptions, HttpService, Load};

use crate::stage::{ONLINE_PORT, Stage, answered, clean, end};

pub(crate) const STORIES: &[Story] = &[
    ("two_online_hosts_one_intercept_one_target", 60, two_online_hosts_one_intercept_one_target),
    ("one_run_with_two_intercepts", 60, one_run_with_two_intercepts),
    ("two_runs_on_one_host_with_ports_of_their_own", 60, two_runs_on_one_host_with_ports_of_their_own),
];

fn two_online_hosts_one_intercept_one_target() -> Result<()> {
    let stage = Stage::new()?;
    let second = SocketAddr::new(stage.net.online2.v4(), ONLINE_PORT);
    // Both online services write into one book: their ids differ.
    let witness = Arc::clone(&stage.online);
    let _service = HttpService::start(&stage.net.online2.ns, second, HttpOptions::default(), witness)?;
    let _intercept = stage.intercept()?;
    let first_run = stage.run(&[])?;
    step("run on the second online host");
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let second_run = stage.twin.run(&stage.net.online2, &["-x", &map, "-s", "10.88.0.5", "-i", "eth0"])?;
    step("both loads at once");
    let load = Load { rate: Some(500.0), ..stage.load(1_500) };
    let one = load.clone().start(&stage.net.client.ns)?;
    let two = Load { to: second, first_id: 50_000, ..load }.start(&stage.net.client.ns)?;
    let (one, two) = (answered(one.wait()?)?, answered(two.wait()?)?);
    stage.wait_for_target(1)?;
    let (first, second) = (end(first_run)?, end(second_run)?);
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(
        fidelity.is_exact() && fidelity.ids == 3_000,
        "{fidelity}; {}; {}",
        first.ledger(),
        second.ledger()
    );
    clean(&first, one.request_bytes)?;
    clean(&second, two.request_bytes)
}

fn one_run_with_two_intercepts() -> Result<()> {
    let stage = Stage::with(Answers::ViaTwoAssistants, HttpOptions::default())?;
    let _first = stage.intercept()?;
    let target = stage.at_target().to_string();
    let _second = stage.twin.intercept(&stage.net.assistant2, &["-x", &target, "-i", "eth0"])?;
    // The route of each half of the range leads to another assistant, so both must return headers.
    let run = stage.run(&["-s", "10.88.0.7", "-c", "198.18.0.0/15", "--shards", "2"])?;
    let load = Load { connections: 60, rate: Some(1_000.0), ..stage.load(2_000) };
    let report = stage.send(load)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn two_runs_on_one_host_with_ports_of_their_own() -> Result<()> {
    let stage = Stage::new()?;
    let other = SocketAddr::new(stage.net.online.v4(), 81);
    let witness = Arc::clone(&stage.online);
    let _service = HttpService::start(&stage.net.online.ns, other, HttpOptions::default(), witness)?;
    let _intercept = stage.intercept()?;
    let first_run = stage.run(&[])?;
    step("run for port 81");
    let map = lab::twin::map(81, stage.at_target());
    let second_run = stage.twin.run(&stage.net.online, &["-x", &map, "-s", "10.88.0.5", "-i", "eth0"])?;
    let one = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    let two = stage.send(Load { to: other, first_id: 50_000, rate: Some(1_000.0), ..stage.load(1_000) })?;
    stage.wait_for_target(1)?;
    let (first, second) = (end(first_run)?, end(second_run)?);
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(fidelity.is_exact(), "{fidelity}; {}; {}", first.ledger(), second.ledger());
    clean(&first, one.request_bytes)?;
    clean(&second, two.request_bytes)
}
