//! Packets that never arrive, on the way to the target and back, or arrive late and out of order. Nothing that a client's
//! own TCP would have brought through may be lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::impair::{Way, lose};
use lab::real::{Redis, RedisLoad};
use lab::story::{Story, step};
use lab::{Course, Fidelity, Load, LoadReport, Network, Stats, Wire, wait};

use crate::counted;
use crate::stage::{SETTLE, Stage, answered, clean, end, twin};

pub(crate) const STORIES: &[Story] = &[
    ("keep_alive_with_one_packet_lost_in_a_thousand", 60, || keep_alive(1_000, 100.0)),
    ("keep_alive_with_one_packet_lost_in_a_hundred", 60, || keep_alive(10_000, 100.0)),
    ("keep_alive_with_one_packet_lost_in_twenty", 60, || keep_alive(50_000, 99.9)),
    ("posts_of_100_kb_with_one_packet_lost_in_a_thousand", 60, || posts(1_000, 100.0, 800)),
    ("posts_of_100_kb_with_one_packet_lost_in_a_hundred", 60, || posts(10_000, 100.0, 200)),
    ("posts_of_100_kb_with_one_packet_lost_in_twenty", 60, || posts(50_000, 99.0, 200)),
    ("keep_alive_with_one_packet_in_twenty_lost_on_the_way_there", 60, || one_way(there)),
    ("keep_alive_with_one_packet_in_twenty_lost_on_the_way_back", 60, || one_way(back)),
    ("a_connection_per_request_with_one_packet_lost_in_a_hundred", 60, a_connection_per_request),
    ("requests_overtake_each_other_on_a_cable_of_1_to_20_ms", 60, reordering),
    ("a_bad_cable_loses_doubles_alters_and_reorders_requests", 60, || {
        a_bad_cable(|stage| Load { connections: 50, rate: Some(1_000.0), ..stage.load(4_000) })
    }),
    ("a_bad_cable_loses_doubles_alters_and_reorders_posts", 60, || {
        a_bad_cable(|stage| Load {
            connections: 16,
            rate: Some(50.0),
            body_bytes: 100_000,
            ..stage.load(150)
        })
    }),
    ("redis_in_a_closed_loop_with_one_packet_lost_in_a_hundred", 60, redis),
];

/// Seed of the cables' draws.
const SEED: u64 = 0x7465_7374;

/// The segments of the replayed clients.
fn there(net: &Network) -> Way<'_> {
    Way { from: &net.online, to: &net.target, what: "tcp dport 8080" }
}

/// The target's.
fn back(net: &Network) -> Way<'_> {
    Way { from: &net.target, to: &net.assistant, what: "tcp sport 8080" }
}

fn one_way(way: impl Fn(&Network) -> Way<'_>) -> Result<()> {
    let stage = Stage::new()?;
    let load = Load { connections: 50, rate: Some(2_000.0), ..stage.load(6_000) };
    through_loss(&stage, &[way(&stage.net)], 50_000, 99.9, load)
}

fn keep_alive(ppm: u32, percent: f64) -> Result<()> {
    let stage = Stage::new()?;
    let load = Load { connections: 50, rate: Some(2_000.0), ..stage.load(6_000) };
    through_loss(&stage, &[there(&stage.net), back(&stage.net)], ppm, percent, load)
}

/// So many requests that hardly a run loses no packet: each is a dozen packets.
fn posts(ppm: u32, percent: f64, requests: u64) -> Result<()> {
    let stage = Stage::new()?;
    let rate = Some(requests as f64 / 5.0);
    let load = Load { connections: 16, rate, body_bytes: 100_000, ..stage.load(requests) };
    through_loss(&stage, &[there(&stage.net), back(&stage.net)], ppm, percent, load)
}

fn a_connection_per_request() -> Result<()> {
    let stage = Stage::new()?;
    let load = Load { mode: lab::Mode::ClientCloses, rate: Some(500.0), ..stage.load(1_500) };
    through_loss(&stage, &[there(&stage.net), back(&stage.net)], 10_000, 100.0, load)
}

fn through_loss(stage: &Stage, ways: &[Way<'_>], ppm: u32, percent: f64, load: Load) -> Result<()> {
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    step(format!("{ppm} of a million packets are lost on {} of two ways", ways.len()));
    let loss = lose(&stage.net, ways, ppm)?;
    let report = stage.send(load)?;
    stage.wait_for_target(1)?;
    let stats = end(run)?;
    let lost = loss.end()?;
    ensure!(lost > 0, "no packet was lost");
    println!("    {lost} packets lost; {}", sent_again(&stats));
    held_to(stage, &stats, &report, percent)
}

/// At least so many percent of the requests, none twice, none altered; at 100 percent every byte delivered, else every
/// byte that is missing counted.
fn held_to(stage: &Stage, stats: &Stats, report: &LoadReport, percent: f64) -> Result<()> {
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(
        fidelity.percent() >= percent && fidelity.surplus == 0 && fidelity.altered == 0,
        "{fidelity}; {}; {}",
        stats.ledger(),
        sent_again(stats)
    );
    if fidelity.is_exact() {
        return clean(stats, report.request_bytes);
    }
    let others = stats.dropped_in_all() - stats.dropped("duplicate");
    ensure!(stats.delivered() + others == report.request_bytes, "bytes without a name: {}", stats.ledger());
    stats.check_ledger()
}

/// How the losses were repaired, for the message.
fn sent_again(stats: &Stats) -> String {
    let names =
        ["retransmitted_records", "timeout_retransmitted_records", "tail_probes", "probes", "syn_repeated"];
    let counted = names.map(|name| format!("{name} {}", counted(stats, name)));
    format!("{}, turns {}", counted.join(", "), stats.value()["turns"])
}

fn reordering() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    step("a cable of 1 to 20 ms in both directions, on which frames overtake each other");
    let course = Course::between_ms(1, 20);
    let wire = Wire::new(&stage.net, &stage.net.target, course, course, SEED)?;
    let one = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(2_000) })?;
    let posts = Load { connections: 16, rate: Some(50.0), body_bytes: 100_000, ..stage.load(100) };
    let two = stage.send(Load { first_id: 100_000, ..posts })?;
    stage.wait_for_target(1)?;
    let stats = end(run)?;
    let fates = wire.fates();
    ensure!(fates.overtaken > 100 && fates.lost == 0, "the cable did not do its work: {fates:?}");
    let both = LoadReport { request_bytes: one.request_bytes + two.request_bytes, ..one };
    held_to(&stage, &stats, &both, 100.0)
}

/// Everything at once, and the cable is cut for a second. What is altered on the way there, the target's kernel notices.
fn a_bad_cable(load: impl Fn(&Stage) -> Load) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    // By raw IP: a frame whose checksum is left to the device cannot be altered in a way that its receiver would notice.
    let run = stage.run(&["--shards", "2", "--inject", "raw"])?;
    step(
        "a cable of 1 to 20 ms that loses, doubles and, on the way there, alters one frame in a hundred each",
    );
    let from = Course { lost_ppm: 10_000, doubled_ppm: 10_000, ..Course::between_ms(1, 20) };
    let to = Course { altered_ppm: 10_000, ..from };
    let wire = Wire::new(&stage.net, &stage.net.target, to, from, SEED)?;
    let load = stage.start(load(&stage))?;
    step("it is cut for a second");
    wire.cut(true);
    std::thread::sleep(Duration::from_secs(1));
    wire.cut(false);
    let report = answered(load.wait()?)?;
    stage.wait_for_target(1)?;
    let stats = end(run)?;
    let fates = wire.fates();
    ensure!(
        fates.overtaken > 100 && fates.lost > 10 && fates.doubled > 10 && fates.altered > 10,
        "the cable did not do its work: {fates:?}"
    );
    held_to(&stage, &stats, &report, 100.0)
}

fn redis() -> Result<()> {
    let net = Network::standard()?;
    let online = Redis::start(&net.online, 6_379)?;
    let target = Redis::start(&net.target, 6_379)?;
    let twin = twin()?;
    let _intercept = twin.intercept(&net.assistant, &["-x", "10.88.0.4:6379", "-i", "eth0"])?;
    let map = "10.88.0.3:6379-10.88.0.4:6379";
    let run = twin.run(&net.online, &["-x", map, "-s", "10.88.0.5", "-i", "eth0"])?;
    let ways = [
        Way { from: &net.online, to: &net.target, what: "tcp dport 6379" },
        Way { from: &net.target, to: &net.assistant, what: "tcp sport 6379" },
    ];
    step("one packet in a hundred is lost, each way");
    let loss = lose(&net, &ways, 10_000)?;
    let load = RedisLoad { to: online.address, connections: 8, commands: 1_000, pipeline: 1, value_bytes: 0 };
    load.run(&net.client.ns)?;
    let wanted = load.connections as u64 * load.commands;
    step("the last commands arrive");
    let _ = wait::until("the target's calls", SETTLE, || {
        target.calls(&net.target.ns, "rpush").is_ok_and(|n| n >= wanted)
    });
    let stats = end(run)?;
    ensure!(loss.end()? > 0, "no packet was lost");
    println!("    {}", sent_again(&stats));
    for n in 0..load.connections {
        let (a, b) = (online.list(&net.online.ns, n)?, target.list(&net.target.ns, n)?);
        let first = a.iter().zip(&b).position(|(x, y)| x != y);
        ensure!(
            a == b && a.len() as u64 == load.commands,
            "list {n}: {} online, {} at the target, first difference at {first:?}; {}",
            a.len(),
            b.len(),
            stats.ledger()
        );
    }
    clean(&stats, stats.wanted() - stats.dropped("duplicate"))
}
