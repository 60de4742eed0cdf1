//! How many turns a second does one closed-loop redis connection make at the target? Each waits for the answer to the one
//! before it, so this is the pipeline's own round trip: capture, shard, injection, answer, return channel.
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/redis [--json] [--connections N] [--value BYTES] [--no-wait] [--with OPTIONS] [COMMANDS]
//! ```
//!
//! Real redis-servers as online service and target, in namespaces. The commands append to a list, so that the target's list
//! shows every loss, repeat and change of order. COMMANDS are of each connection. `--with` gives options of `tcptwin run`:
//! `--with "--memory 1GiB"`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::real::{Redis, RedisLoad};
use lab::{Network, Twin};

const COMMANDS: u64 = 100_000;
const PORT: u16 = 6_379;
/// When nothing has arrived for so long, nothing will.
const QUIET: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

struct Asked {
    json: bool,
    connections: usize,
    value_bytes: usize,
    no_wait: bool,
    /// Options of the run.
    with: String,
    /// Of each connection.
    commands: u64,
}

impl Asked {
    fn read() -> Result<Self> {
        let (json, args) = bench::arguments();
        let with = String::new();
        let mut asked =
            Self { json, connections: 1, value_bytes: 0, no_wait: false, with, commands: COMMANDS };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--connections" => asked.connections = value()?.parse().context("--connections")?,
                "--value" => asked.value_bytes = value()?.parse().context("--value")?,
                "--no-wait" => asked.no_wait = true,
                "--with" => asked.with = value()?,
                text => {
                    asked.commands =
                        text.parse().with_context(|| format!("{text} is not a number of commands"))?;
                }
            }
        }
        ensure!(asked.connections > 0 && asked.commands > 0, "connections and commands are at least one");
        Ok(asked)
    }
}

fn measure() -> Result<()> {
    let asked = Asked::read()?;
    let net = Network::standard()?;
    let (online, target) = (Redis::start(&net.online, PORT)?, Redis::start(&net.target, PORT)?);
    let twin = Twin::new(std::env::current_exe()?.with_file_name("tcptwin"))?;
    let _intercept = twin.intercept(&net.assistant, &["-x", &target.address.to_string(), "-i", "eth0"])?;
    let map = format!("{}-{}", online.address, target.address);
    let mut args = vec!["-x", map.as_str(), "-s", "10.88.0.5", "-i", "eth0"];
    args.extend(asked.no_wait.then_some("--no-wait"));
    args.extend(asked.with.split_whitespace());
    let run = twin.run(&net.online, &args)?;
    let Asked { connections, value_bytes, commands, .. } = asked;
    let load = RedisLoad { to: online.address, connections, commands, pipeline: 1, value_bytes };
    let all = commands * connections as u64;

    let started = Instant::now();
    load.run(&net.client.ns)?;
    let online_s = started.elapsed().as_secs_f64();
    let (mut arrived, mut last) = (0, Instant::now());
    while arrived < all && last.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(50));
        let calls = target.calls(&net.target.ns, "rpush")?;
        if calls != arrived {
            (arrived, last) = (calls, Instant::now());
        }
    }
    let target_s = last.duration_since(started).as_secs_f64();

    let stats = run.stop()?;
    let stats = stats.stats().with_context(|| format!("the summary of run: {}", stats.stderr))?;
    stats.check_ledger()?;
    let dropped = stats.drops();
    ensure!(arrived == all || !dropped.is_empty(), "{arrived} of {all} arrived: {}", stats.ledger());
    for n in (0..connections).filter(|_| arrived == all) {
        let same = target.list(&net.target.ns, n)? == online.list(&net.online.ns, n)?;
        ensure!(same, "the lists of connection {n} differ: {}", stats.ledger());
    }
    let (online_per_s, target_per_s) = (all as f64 / online_s, arrived as f64 / target_s);
    let turns = &stats.value()["turns"];
    if asked.json {
        println!(
            "{}",
            serde_json::json!({
                "connections": connections, "value_bytes": value_bytes, "no_wait": asked.no_wait,
                "commands": all, "arrived": arrived, "dropped_bytes": dropped,
                "online_per_s": online_per_s, "target_per_s": target_per_s, "turns": turns,
            })
        );
    } else {
        println!("online {online_per_s:>9.0} commands/s");
        if arrived == all {
            println!("target {target_per_s:>9.0} commands/s, every list equal");
        } else {
            println!(
                "target {target_per_s:>9.0} commands/s, {arrived} of {all}; dropped, in bytes: {dropped:?}"
            );
        }
        println!("turns  {turns}");
    }
    Ok(())
}
