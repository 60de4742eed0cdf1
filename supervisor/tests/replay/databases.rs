//! Redis: lists show every loss, repeat and change of order.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::real::{self, Redis, RedisLoad};
use lab::story::{Story, step};
use lab::{Instance, Network, Twin, wait};

use crate::stage::{SETTLE, clean, end, twin};

pub(crate) const STORIES: &[Story] = &[
    ("redis_in_a_closed_loop", 60, redis_in_a_closed_loop),
    ("redis_pipelined_with_10_kb_values", 60, redis_pipelined_with_10_kb_values),
    ("redis_benchmark_closed_and_pipelined", 60, redis_benchmark_closed_and_pipelined),
];

/// Two servers and the pipeline between them.
struct Pair {
    online: Redis,
    target: Redis,
    run: Instance,
    _intercept: Instance,
    _twin: Twin,
    net: Network,
}

fn pair() -> Result<Pair> {
    let net = Network::standard()?;
    let online = Redis::start(&net.online, 6_379)?;
    let target = Redis::start(&net.target, 6_379)?;
    let twin = twin()?;
    let intercept = twin.intercept(&net.assistant, &["-x", "10.88.0.4:6379", "-i", "eth0"])?;
    // Only the address that clients use: our own questions go over loopback.
    let map = "10.88.0.3:6379-10.88.0.4:6379";
    let run = twin.run(&net.online, &["-x", map, "-s", "10.88.0.5", "-i", "eth0"])?;
    Ok(Pair { online, target, run, _intercept: intercept, _twin: twin, net })
}

fn lists_are_equal(pair: Pair, load: RedisLoad) -> Result<()> {
    load.run(&pair.net.client.ns)?;
    let wanted = load.connections as u64 * load.commands;
    step("the last commands arrive");
    let _ = wait::until("the target's calls", SETTLE, || {
        pair.target.calls(&pair.net.target.ns, "rpush").is_ok_and(|n| n >= wanted)
    });
    let stats = end(pair.run)?;
    for n in 0..load.connections {
        let online = pair.online.list(&pair.net.online.ns, n)?;
        let target = pair.target.list(&pair.net.target.ns, n)?;
        let first = online.iter().zip(&target).position(|(a, b)| a != b);
        ensure!(
            online == target,
            "list {n}: {} online, {} at the target, first difference at {first:?}; {}",
            online.len(),
            target.len(),
            stats.ledger()
        );
    }
    ensure!(
        pair.online.keys(&pair.net.online.ns)? == pair.target.keys(&pair.net.target.ns)?,
        "different keys"
    );
    clean(&stats, stats.wanted() - stats.dropped("duplicate"))
}

fn redis_in_a_closed_loop() -> Result<()> {
    let pair = pair()?;
    let load =
        RedisLoad { to: pair.online.address, connections: 4, commands: 2_000, pipeline: 1, value_bytes: 0 };
    lists_are_equal(pair, load)
}

fn redis_pipelined_with_10_kb_values() -> Result<()> {
    let pair = pair()?;
    let load = RedisLoad {
        to: pair.online.address,
        connections: 4,
        commands: 400,
        pipeline: 8,
        value_bytes: 10_000,
    };
    lists_are_equal(pair, load)
}

fn redis_benchmark_closed_and_pipelined() -> Result<()> {
    let pair = pair()?;
    let client = &pair.net.client.ns;
    let limit = Duration::from_secs(30);
    for pipeline in ["1", "16"] {
        step(format!("redis-benchmark with {pipeline} commands at once"));
        let args = [
            "-h",
            "10.88.0.3",
            "-t",
            "set,incr,lpush",
            "-n",
            "3000",
            "-r",
            "1000",
            "-c",
            "10",
            "-P",
            pipeline,
            "-q",
        ];
        real::run(client, "redis-benchmark", &args, limit)?;
    }
    step("the last commands arrive");
    let commands = ["set", "incr", "lpush"];
    let calls = |command: &str| -> Result<[u64; 2]> {
        Ok([
            pair.online.calls(&pair.net.online.ns, command)?,
            pair.target.calls(&pair.net.target.ns, command)?,
        ])
    };
    // Each command has connections of its own, and the first may be the last to arrive: where connections overtake each
    // other at the target, counters have other lengths than online, and INCR waits for the silence after such an answer.
    let _ = wait::until("the target's calls", SETTLE, || {
        commands.iter().all(|command| calls(command).is_ok_and(|[a, b]| a == b))
    });
    for command in commands {
        let [online, target] = calls(command)?;
        // redis-benchmark fills its last pipelines, so that it may send a few more than asked.
        ensure!(
            online >= 6_000 && target == online,
            "{command}: {online} calls online, {target} at the target"
        );
    }
    ensure!(
        pair.online.keys(&pair.net.online.ns)? == pair.target.keys(&pair.net.target.ns)?,
        "different keys"
    );
    let stats = end(pair.run)?;
    let lost = stats.dropped_in_all() - stats.dropped("duplicate");
    ensure!(lost == 0 && stats.in_flight() == 0, "{}", stats.ledger());
    Ok(())
}
