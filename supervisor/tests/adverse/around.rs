//! Loss beside the way to the target: between clients and the online host, on the return channel, in the capture.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::impair::{ALL, Way, lose, mirror};
use lab::story::{Story, step};
use lab::{Fidelity, Load, Network, netlink};

use crate::counted;
use crate::stage::{Stage, answered, end};

pub(crate) const STORIES: &[Story] = &[
    ("clients_lose_packets_on_their_own_way", 60, clients_lose_packets_on_their_own_way),
    ("clients_upload_over_a_way_that_loses_packets", 60, clients_upload_over_a_way_that_loses_packets),
    ("the_return_channel_loses_packets", 60, the_return_channel_loses_packets),
    ("intercept_is_cut_off_for_two_seconds", 60, intercept_is_cut_off_for_two_seconds),
    ("the_capture_misses_one_packet_in_a_hundred", 60, the_capture_misses_one_packet_in_a_hundred),
];

fn clients_lose_packets_on_their_own_way() -> Result<()> {
    let stage = Stage::new()?;
    client_path(&stage, Load { rate: Some(1_000.0), connections: 50, ..stage.load(3_000) })
}

fn clients_upload_over_a_way_that_loses_packets() -> Result<()> {
    let stage = Stage::new()?;
    client_path(&stage, Load { rate: Some(50.0), connections: 16, body_bytes: 100_000, ..stage.load(150) })
}

/// The captured clients retransmit, in any order that their kernel likes; the target sees each byte once.
fn client_path(stage: &Stage, load: Load) -> Result<()> {
    let net = &stage.net;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    step("two packets in a hundred between clients and online service are lost, each way");
    let ways = [
        Way { from: &net.client, to: &net.online, what: "tcp dport 80" },
        Way { from: &net.online, to: &net.client, what: "tcp sport 80" },
    ];
    let loss = lose(net, &ways, 20_000)?;
    let report = stage.send(load)?;
    ensure!(loss.end()? > 0, "no packet was lost");
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(
        counted(&stats, "stashed_segments") + stats.dropped("duplicate") > 0,
        "no client sent anything again"
    );
    Ok(())
}

/// The segments of the return channel, both directions.
fn return_path(net: &Network) -> [Way<'_>; 2] {
    [
        Way { from: &net.online, to: &net.assistant, what: "tcp dport 36524" },
        Way { from: &net.assistant, to: &net.online, what: "tcp sport 36524" },
    ]
}

fn the_return_channel_loses_packets() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    step("two packets in a hundred between intercept and run are lost, each way");
    let loss = lose(&stage.net, &return_path(&stage.net), 20_000)?;
    let report = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(3_000) })?;
    stage.wait_for_target(1)?;
    ensure!(loss.end()? > 0, "no packet was lost");
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn intercept_is_cut_off_for_two_seconds() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { connections: 50, rate: Some(1_000.0), ..stage.load(5_000) })?;
    std::thread::sleep(Duration::from_millis(500));
    step("intercept and run do not reach each other");
    let cut = lose(&stage.net, &return_path(&stage.net), ALL)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(cut.end()? > 0, "nothing was cut off");
    step("they do again");
    let report = answered(load.wait()?)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

/// Production is not touched: the capture sits on a mirror port, and the mirror loses frames.
fn the_capture_misses_one_packet_in_a_hundred() -> Result<()> {
    let stage = Stage::new()?;
    let net = &stage.net;
    let _intercept = stage.intercept()?;
    step("a mirror port that misses one packet in a hundred");
    let peer = std::os::fd::AsRawFd::as_raw_fd(&net.online.ns.fd());
    net.switch.enter(move || {
        netlink::add_veth("to-mirror", "mirror0", peer)?;
        netlink::set_up("to-mirror", true)
    })?;
    net.online.ns.enter(|| netlink::set_up("mirror0", true))?;
    // What opens and ends a connection is always seen: then every missing byte lies between two that tell of it.
    let between = "tcp flags & (syn | fin | rst) == 0";
    let leak = mirror(net, &net.client, "ip daddr 10.88.0.3 tcp dport 80", "to-mirror", between, 10_000)?;
    let (map, assistant) =
        (format!("{}-{}", stage.at_online(), stage.at_target()), net.assistant.v4().to_string());
    let args = ["-x", &map, "-s", &assistant, "-i", "mirror0", "--mirror", "--shards", "2"];
    let run = stage.twin.run(&net.online, &args)?;
    let report = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(4_000) })?;
    let stats = end(run)?;
    let missed = leak.end()?;
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    println!("    {missed} packets missed; {fidelity}; {}", stats.ledger());
    ensure!(missed > 20 && stats.missed() > 0, "the mirror missed {missed} packets: {}", stats.ledger());
    ensure!(
        fidelity.percent() >= 97.0 && fidelity.surplus == 0 && fidelity.altered == 0,
        "{missed} packets missed; {fidelity}; {}",
        stats.ledger()
    );
    ensure!(fidelity.missing <= missed, "more requests than packets are missing: {fidelity}");
    // What was not delivered was never captured, or captured and given up: each byte under its name.
    let named = stats.missed() + stats.dropped_in_all() - stats.dropped("duplicate");
    ensure!(stats.delivered() + named == report.request_bytes, "bytes without a name: {}", stats.ledger());
    Ok(())
}
