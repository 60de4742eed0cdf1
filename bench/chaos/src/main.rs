//! Real traffic by request id between namespaces, while seeded faults hit every process; at the end every id is accounted
//! for, or the run has failed. `scripts/chaos.sh` builds and starts it.
//!
//! | file | holds |
//! |---|---|
//! | `args` | what can be asked for |
//! | `stage` | hosts, services, load, the instances under test |
//! | `faults` | drawing faults, committing them, taking them back |
//! | `watch` | who died and came back, and when, through the shared region |
//! | `flips` | random bytes of the region flipped under load |
//! | `verdict` | the rules, and the report |
//! | `random` | the seed |

mod args;
mod faults;
mod flips;
mod random;
mod stage;
mod verdict;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser as _;
use lab::user::become_root_in_user_namespace;
use lab::{Instance, Outside, process, wait};
use nix::sys::resource::{Resource, setrlimit};

use args::{Args, Kind};
use faults::{Faults, Survivors};
use stage::{FRESH, IdPlan, Stage};
use verdict::Verdict;
use watch::Watch;

/// Time for sessions to open and tables to fill before anything is measured.
const WARM_UP: Duration = Duration::from_secs(3);
/// The longest wait for the last successor.
const RECOVERY: Duration = Duration::from_secs(20);
/// The target may be silent for so long before nothing more is expected of it: longer than any pause of a reconnect.
const STILL: Duration = Duration::from_secs(15);
/// The longest wait for the last requests.
const SETTLE: Duration = Duration::from_secs(120);
/// Traffic beyond the faults, seconds: warm-up, recovery, and a machine that is busy.
const SLACK_S: f64 = 60.0;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = become_root_in_user_namespace() {
        eprintln!("error: {error}");
        return ExitCode::from(3);
    }
    // A hundred crashes shall not fill the disk. Refused or not, the run is the same.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    println!("repeat with: {}", args.again());
    let broken = match run(&args) {
        Ok(verdict) => verdict.count(),
        Err(error) => {
            println!("BROKEN     {error:#}");
            1
        }
    };
    if broken > 0 {
        println!("FAILED: {broken} rules were broken; repeat with: {}", args.again());
        return ExitCode::FAILURE;
    }
    println!("every rule held");
    ExitCode::SUCCESS
}

fn run(args: &Args) -> Result<Verdict> {
    let seconds = args.minutes * 60.0 + SLACK_S;
    let ids = IdPlan::new(args, seconds).in_all();
    let stage = Stage::new(args, ids + flips::ROUNDS * FRESH)?;
    let mut intercept = stage.begin_intercept()?;
    intercept.wait_ready()?;
    let mut run = stage.begin_run()?;
    run.wait_ready()?;
    let mut outside = Outside::new(&stage.net, stage.at_target)?;
    let mut verdict = Verdict::default();
    let until = Duration::from_secs_f64(args.minutes * 60.0);
    match args.flips {
        None => faults(args, &stage, run, intercept, until, &mut verdict)?,
        Some(flips) => {
            let loads = stage.start_loads(args, seconds)?;
            std::thread::sleep(WARM_UP);
            flips::campaign(args, &stage, &mut run, flips, Instant::now() + until, &mut verdict)?;
            verdict.load(&loads.stop()?);
            flips::fresh_flows(&mut verdict, &stage, ids)?;
            // Its ledger may be damaged, its end may not.
            if let Err(error) = run.stop() {
                verdict.broken(format!("the end: {error:#}"));
            }
            end_of(intercept, &mut verdict);
            // A byte that was flipped in a record may well kill two workers: that record is kept, and skipped.
            verdict.specimens(&stage.specimens()?);
        }
    }
    verdict.outside(outside.look()?, outside.examples());
    for left in stage.leftovers()? {
        verdict.broken(format!("left behind: {left}"));
    }
    Ok(verdict)
}

/// Traffic and faults, and then the account of every request.
fn faults(
    args: &Args,
    stage: &Stage,
    run: Instance,
    intercept: Instance,
    time: Duration,
    verdict: &mut Verdict,
) -> Result<()> {
    let watch = Watch::start(stage.name(), run.pid(), args.shards)?;
    let loads = stage.start_loads(args, time.as_secs_f64() + SLACK_S)?;
    std::thread::sleep(WARM_UP);
    let before = memory(&watch, &intercept);
    let mut faults = Faults::new(stage, &watch, args, run, intercept);
    let until = Instant::now() + time;
    while Instant::now() < until && !faults.is_over() {
        faults.turn()?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let Survivors { run, intercept, blind } = faults.end()?;
    if wait::until("every role works again", RECOVERY, || watch.book().is_calm()).is_err() {
        verdict.broken(format!(
            "not recovered within {} s: {}",
            RECOVERY.as_secs(),
            watch.book().who_is_down()
        ));
    }
    let after = memory(&watch, &intercept);
    let report = loads.stop()?;
    Verdict::table(watch.book().tallies());
    verdict.load(&report);
    settle(stage);
    println!(
        "starts     {} successors, each judged against its predecessor's process",
        watch.book().starts()
    );
    for broken in watch.book().broken() {
        verdict.broken(broken.clone());
    }
    // It would take the ordered end for deaths.
    drop(watch);
    verdict.fidelity(stage, &blind);
    judge_end(verdict, run, args.faults.contains(&Kind::Supervisor));
    end_of(intercept, verdict);
    verdict.memory(&before, &after, args.keep_clients);
    Ok(())
}

/// Waits until the target has answered everything, or gets no further.
fn settle(stage: &Stage) {
    let begin = Instant::now();
    let (mut last, mut since) = (0, Instant::now());
    while begin.elapsed() < SETTLE && since.elapsed() < STILL {
        let now = stage.target.answered();
        if now >= stage.online.answered() {
            return;
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end_of(intercept: Instance, verdict: &mut Verdict) {
    match intercept.stop() {
        Ok(ended) if ended.status.success() => {}
        Ok(ended) => verdict.broken(format!("intercept ended with {}: {}", ended.status, ended.stderr)),
        Err(error) => verdict.broken(format!("the end of intercept: {error:#}")),
    }
}

/// A quiet moment, the drain, the summary.
fn judge_end(verdict: &mut Verdict, run: Instance, blind: bool) {
    if let Err(error) = run.wait_quiet(Duration::from_secs(30)).and_then(|stats| stats.check_ledger()) {
        verdict.broken(format!("at a quiet moment: {error:#}"));
    }
    match run.stop_run() {
        Ok(stats) => verdict.ledger(&stats, blind),
        Err(error) => verdict.broken(format!("the end: {error:#}")),
    }
}

fn memory(watch: &Watch, intercept: &Instance) -> Vec<(String, u64)> {
    let mut all = watch.book().private_bytes();
    all.extend(process::private_bytes(intercept.pid()).map(|bytes| ("intercept".to_owned(), bytes)));
    all
}
