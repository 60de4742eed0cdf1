//! What real servers answered, recorded in both directions and replayed against the same servers begun anew: each request once, in
//! order, at the file's own speed and as fast as possible.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::real::{self, Nginx, Redis, RedisLoad, nginx};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::{Load, Network, Stats, Twin};

use crate::recording::{as_text, files, finished, replayed};
use crate::stage::{ONLINE_PORT, TARGET_PORT, answered, clean, twin};

pub(crate) const STORIES: &[Story] = &[
    ("a_recording_of_nginx_is_replayed_against_nginx", 120, against_nginx),
    ("a_recording_of_redis_is_replayed_against_redis", 120, against_redis),
];

/// As it was, and as fast as possible.
const SPEEDS: [&str; 2] = ["1", "max"];

/// What a service's clients did, recorded on the online host.
fn record(
    twin: &Twin,
    net: &Network,
    port: u16,
    scratch: &Scratch,
    clients: impl FnOnce() -> Result<()>,
) -> Result<Vec<PathBuf>> {
    step(format!("record port {port}"));
    let (port, directory) = (port.to_string(), as_text(scratch.path())?);
    let record = twin.record(&net.online, &["-x", &port, "-i", "eth0", "-o", directory])?;
    clients()?;
    finished(record)?;
    files(scratch.path())
}

/// The ledger of a replay that lost nothing, and knew the answers that it waited for.
fn nothing_is_lost(stats: &Stats) -> Result<()> {
    clean(stats, stats.wanted() - stats.dropped("duplicate"))?;
    let answers = stats.number("/replay/online_answers")?;
    ensure!(answers > 0, "the file has no answers");
    let turns = |what: &str| stats.number(&format!("/turns/{what}"));
    println!(
        "    {} turns, {} guessed, {} unanswered, {:.3} s",
        turns("sent")?,
        turns("guessed")?,
        turns("unanswered")?,
        stats.value()["replay"]["answered_s"].as_f64().unwrap_or(0.0)
    );
    ensure!(turns("unanswered")? == 0, "{}", stats.value()["turns"]);
    Ok(())
}

fn against_nginx() -> Result<()> {
    real::find("curl")?;
    let (net, twin, scratch) = (Network::standard()?, twin()?, Scratch::new("recorded")?);
    let online = Nginx::start(&net.online, ONLINE_PORT)?;
    let body = Scratch::new("body")?;
    std::fs::write(body.file("100k"), vec![b'p'; 100_000])?;
    let data = format!("@{}", body.file("100k").display());
    let to = SocketAddr::new(net.online.v4(), ONLINE_PORT);
    let curl = |args: &[&str]| {
        let quiet = ["-sS", "--fail", "-o", "/dev/null", "-o", "/dev/null", "-H", "Expect:"];
        real::run(&net.client.ns, "curl", &[&quiet, args].concat(), Duration::from_secs(20)).map(drop)
    };
    let files = record(&twin, &net, ONLINE_PORT, &scratch, || {
        let load = Load { connections: 20, rate: Some(1_000.0), ..Load::new(to, 2_000) };
        answered(load.run(&net.client.ns)?)?;
        let posts = Load { connections: 4, rate: Some(100.0), ..Load::new(to, 100) };
        answered(Load { body_bytes: 30_000, first_id: 2_000, ..posts }.run(&net.client.ns)?)?;
        for n in 0..4 {
            let url = |what: &str, n: u32| format!("http://{to}/{what}/{n}");
            // A file of 1 MiB twice on one connection, then an upload on another.
            curl(&[&url("big", n), &url("big", 100 + n)])?;
            curl(&["--data-binary", &data, &url("upload", n)])?;
        }
        Ok(())
    })?;
    let wanted = online.requests()?;
    ensure!(wanted.values().sum::<u32>() == 2_112, "{} requests online", online.answered()?);
    for speed in SPEEDS {
        let target = Nginx::start(&net.target, TARGET_PORT)?;
        let at = SocketAddr::new(net.target.v4(), TARGET_PORT);
        let _intercept = twin.intercept(&net.assistant, &["-x", &at.to_string(), "-i", "eth0"])?;
        let map = lab::twin::map(ONLINE_PORT, at);
        let stats = replayed(&twin, &net, &files, &map, &["--speed", speed, "--shards", "2"])?;
        let found = nginx::differences(&wanted, &target.requests()?, 1);
        ensure!(found.is_empty(), "--speed {speed}: the logs differ: {found:#?}; {}", stats.ledger());
        nothing_is_lost(&stats)?;
    }
    Ok(())
}

fn against_redis() -> Result<()> {
    const PORT: u16 = 6_379;
    let (net, twin, scratch) = (Network::standard()?, twin()?, Scratch::new("recorded")?);
    let online = Redis::start(&net.online, PORT)?;
    let load = RedisLoad { to: online.address, connections: 4, commands: 2_000, pipeline: 1, value_bytes: 0 };
    let files = record(&twin, &net, PORT, &scratch, || load.run(&net.client.ns))?;
    for speed in SPEEDS {
        let target = Redis::start(&net.target, PORT)?;
        let _intercept =
            twin.intercept(&net.assistant, &["-x", &target.address.to_string(), "-i", "eth0"])?;
        // Only the address that clients use: our own questions go over loopback.
        let map = format!("{}-{}", online.address, target.address);
        let stats = replayed(&twin, &net, &files, &map, &["--speed", speed])?;
        for n in 0..load.connections {
            let [wanted, got] =
                [(&online, &net.online), (&target, &net.target)].map(|(redis, host)| redis.list(&host.ns, n));
            let (wanted, got) = (wanted?, got?);
            let first = wanted.iter().zip(&got).position(|(a, b)| a != b);
            ensure!(
                wanted == got,
                "--speed {speed}, list {n}: {} online, {} at the target, first difference at {first:?}; {}",
                wanted.len(),
                got.len(),
                stats.ledger()
            );
        }
        ensure!(online.keys(&net.online.ns)? == target.keys(&net.target.ns)?, "different keys");
        nothing_is_lost(&stats)?;
    }
    Ok(())
}
