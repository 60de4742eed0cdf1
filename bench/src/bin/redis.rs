//! How many turns a second does one closed-loop redis connection make at the target? Each waits for the answer to the one
//! before it, so this is the pipeline's own round trip: capture, shard, injection, answer, return channel.
//!
//! ```text
//! cargo build --release -p tcptwin -p bench
//! target/release/redis [COMMANDS]
//! ```
//!
//! Real redis-servers as online service and target, in namespaces. The commands append to a list, so that the target's list
//! shows every loss, repeat and change of order.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::real::{Redis, RedisLoad};
use lab::{Network, Twin, wait};

const COMMANDS: u64 = 100_000;
const PORT: u16 = 6_379;
/// Time for the last commands to arrive, at a tenth of the turns that are asked for.
const SETTLE: Duration = Duration::from_secs(250);

fn main() -> ExitCode {
    bench::in_namespaces(measure)
}

fn measure() -> Result<()> {
    let commands = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("{text} is not a number of commands"))?,
        None => COMMANDS,
    };
    let net = Network::standard()?;
    let (online, target) = (Redis::start(&net.online, PORT)?, Redis::start(&net.target, PORT)?);
    let twin = Twin::new(std::env::current_exe()?.with_file_name("tcptwin"))?;
    let _intercept = twin.intercept(&net.assistant, &["-x", &target.address.to_string(), "-i", "eth0"])?;
    let map = format!("{}-{}", online.address, target.address);
    let run = twin.run(&net.online, &["-x", &map, "-s", "10.88.0.5", "-i", "eth0"])?;
    let load = RedisLoad { to: online.address, connections: 1, commands, pipeline: 1, value_bytes: 0 };

    let started = Instant::now();
    load.run(&net.client.ns)?;
    let online_s = started.elapsed().as_secs_f64();
    wait::until("the target's calls", SETTLE, || {
        target.calls(&net.target.ns, "rpush").is_ok_and(|n| n >= commands)
    })?;
    let target_s = started.elapsed().as_secs_f64();

    let stats = run.stop()?;
    let stats = stats.stats().with_context(|| format!("the summary of run: {}", stats.stderr))?;
    ensure!(target.list(&net.target.ns, 0)? == online.list(&net.online.ns, 0)?, "the lists differ");
    stats.check_ledger()?;
    println!("online {:>9.0} turns/s", commands as f64 / online_s);
    println!("target {:>9.0} turns/s", commands as f64 / target_s);
    println!("turns  {}", stats.value()["turns"]);
    Ok(())
}
