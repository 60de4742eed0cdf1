//! Requests of every shape, each held against both servers by its id.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::real::{self, Nginx, nginx};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::{Load, Mode, Network, wait};

use crate::stage::{ONLINE_PORT, SETTLE, Stage, TARGET_PORT, answered, clean, end, twin};

pub(crate) const STORIES: &[Story] = &[
    ("keep_alive_requests_reach_nginx_once_each", 60, keep_alive_requests_reach_nginx_once_each),
    ("keep_alive_at_two_thousand_a_second", 60, keep_alive_at_two_thousand_a_second),
    ("a_connection_for_each_request_the_client_closes", 60, a_connection_for_each_request_the_client_closes),
    ("a_connection_for_each_request_the_server_closes", 60, a_connection_for_each_request_the_server_closes),
    ("pipelined_requests_arrive_in_order", 60, pipelined_requests_arrive_in_order),
    ("one_closed_loop_connection", 60, one_closed_loop_connection),
    ("ipv6_requests_reach_the_target", 60, ipv6_requests_reach_the_target),
    (
        "answers_of_another_length_do_not_hold_requests_back",
        60,
        answers_of_another_length_do_not_hold_requests_back,
    ),
    ("wrk_against_nginx", 60, wrk_against_nginx),
];

fn keep_alive_requests_reach_nginx_once_each() -> Result<()> {
    let net = Network::standard()?;
    let online = Nginx::start(&net.online, ONLINE_PORT)?;
    let target = Nginx::start(&net.target, TARGET_PORT)?;
    let twin = twin()?;
    let _intercept = twin.intercept(&net.assistant, &["-x", "10.88.0.4:8080", "-i", "eth0"])?;
    let run = twin.run(&net.online, &["-x", "80-10.88.0.4:8080", "-s", "10.88.0.5", "-i", "eth0"])?;
    let to = SocketAddr::new(net.online.v4(), ONLINE_PORT);
    let load = Load { connections: 20, rate: Some(2_000.0), ..Load::new(to, 4_000) };
    let report = answered(load.run(&net.client.ns)?)?;
    same_requests(&online, &target, 4_000)?;
    clean(&end(run)?, report.request_bytes)
}

/// Waits until the target's log has as many requests as the online one, and compares them.
fn same_requests(online: &Nginx, target: &Nginx, wanted: u64) -> Result<()> {
    step("both access logs");
    let _ = wait::until("nginx at the target has answered everything", SETTLE, || {
        target.answered().is_ok_and(|n| n >= wanted)
    });
    let found = nginx::differences(&online.requests()?, &target.requests()?, 1);
    ensure!(found.is_empty(), "the logs differ: {found:#?}");
    ensure!(online.answered()? == wanted, "{} requests online", online.answered()?);
    Ok(())
}

fn keep_alive_at_two_thousand_a_second() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let report = stage.send(Load { connections: 50, rate: Some(2_000.0), ..stage.load(6_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.number("/sessions/started")? == 50, "{} sessions", stats.number("/sessions/started")?);
    ensure!(stage.target.connections() == 50, "{} connections at the target", stage.target.connections());
    Ok(())
}

fn a_connection_for_each_request_the_client_closes() -> Result<()> {
    a_connection_for_each_request(Mode::ClientCloses)
}

fn a_connection_for_each_request_the_server_closes() -> Result<()> {
    a_connection_for_each_request(Mode::ServerCloses)
}

fn a_connection_for_each_request(mode: Mode) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let report = stage.send(Load { mode, rate: Some(1_000.0), ..stage.load(2_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.number("/sessions/started")? == 2_000, "{} sessions", stats.number("/sessions/started")?);
    ensure!(
        stats.number("/sessions/completed")? == 2_000,
        "{} completed",
        stats.number("/sessions/completed")?
    );
    ensure!(stage.target.connections() == 2_000, "{} connections at the target", stage.target.connections());
    Ok(())
}

fn pipelined_requests_arrive_in_order() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let load = Load { mode: Mode::Pipelined(16), connections: 10, rate: Some(4_000.0), ..stage.load(8_000) };
    let report = stage.send(load)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn one_closed_loop_connection() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let report = stage.send(Load { connections: 1, ..stage.load(2_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    // Each request is a turn of its own, and equal servers leave nothing to guess.
    ensure!(stats.number("/turns/sent")? == 2_000, "{} turns", stats.number("/turns/sent")?);
    ensure!(stats.number("/turns/guessed")? == 0, "{} guessed", stats.number("/turns/guessed")?);
    Ok(())
}

fn ipv6_requests_reach_the_target() -> Result<()> {
    let stage = Stage::new()?;
    let target = SocketAddr::new(stage.net.target.v6(), TARGET_PORT);
    let online = SocketAddr::new(stage.net.online.v6(), ONLINE_PORT);
    let _intercept =
        stage.twin.intercept(&stage.net.assistant, &["-x", &target.to_string(), "-i", "eth0"])?;
    let map = lab::twin::map(ONLINE_PORT, target);
    // The return channel crosses IPv6 too.
    let run = stage.twin.run(&stage.net.online, &["-x", &map, "-s", "[fd88::5]:36524", "-i", "eth0"])?;
    let load = Load { to: online, rate: Some(1_000.0), ..stage.load(2_000) };
    let mut report = stage.send(load)?;
    step("a connection per request");
    let load = Load { to: online, mode: Mode::ClientCloses, first_id: 5_000, ..stage.load(500) };
    report.request_bytes += stage.send(load)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn answers_of_another_length_do_not_hold_requests_back() -> Result<()> {
    let mut stage = Stage::new()?;
    drop(stage.target_service.take());
    let longer = lab::HttpOptions { response_bytes: 777, ..lab::HttpOptions::default() };
    let witness = std::sync::Arc::clone(&stage.target);
    stage.target_service =
        Some(lab::HttpService::start(&stage.net.target.ns, stage.at_target(), longer, witness)?);
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let report = stage.send(Load { connections: 10, rate: Some(500.0), ..stage.load(1_500) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn wrk_against_nginx() -> Result<()> {
    let net = Network::standard()?;
    real::find("wrk")?;
    let online = Nginx::start(&net.online, ONLINE_PORT)?;
    let target = Nginx::start(&net.target, TARGET_PORT)?;
    let twin = twin()?;
    let _intercept = twin.intercept(&net.assistant, &["-x", "10.88.0.4:8080", "-i", "eth0"])?;
    let run = twin.run(&net.online, &["-x", "80-10.88.0.4:8080", "-s", "10.88.0.5", "-i", "eth0"])?;
    // wrk closes its connections in the middle of a request when its time is over; 10,000 ids a connection are more
    // than it can use, and which it used last on each tells what may differ.
    let scratch = Scratch::new("wrk")?;
    let mut script = String::new();
    writeln!(script, "local id = 0")?;
    writeln!(script, "request = function() id = id + 1; return wrk.format('GET', '/id/' .. id) end")?;
    let file = scratch.file("ids.lua");
    std::fs::write(&file, script)?;
    step("wrk for two seconds");
    let file = file.to_string_lossy().into_owned();
    let args = ["-t1", "-c8", "-d2s", "-s", &file, "http://10.88.0.3/id/0"];
    real::run(&net.client.ns, "wrk", &args, Duration::from_secs(20))?;
    step("both access logs");
    let wanted = online.answered()?;
    let _ = wait::until("the target has answered", SETTLE, || target.answered().is_ok_and(|n| n >= wanted));
    let stats = end(run)?;
    // A request on the wire when wrk hung up may be answered by one server and find a closed connection at the other:
    // one on each of the eight connections at most.
    let found = nginx::differences(&online.requests()?, &target.requests()?, 1);
    ensure!(found.len() <= 8 && !found.iter().any(|d| d.starts_with("and ")), "the logs differ: {found:#?}");
    let doubled = target.requests()?.into_iter().find(|(_, times)| *times > 1);
    ensure!(doubled.is_none(), "answered twice: {doubled:?}");
    ensure!(wanted > 500, "wrk made only {wanted} requests");
    let lost = stats.dropped_in_all() - stats.dropped("duplicate") - stats.dropped("client_reset");
    ensure!(lost == 0, "{}", stats.ledger());
    Ok(())
}
