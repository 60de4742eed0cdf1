//! `tcptwin demo`: the whole pipeline on real traffic with one command, no configuration and no second machine.
//!
//! Builds client, online, target and assistant hosts in network namespaces (as root, or as root of a user namespace),
//! answers a load on the online host, and lets `tcptwin run` and `tcptwin intercept`, started from this very program
//! with the command lines it prints, replay it to the target. Both services write down every request id, so the end
//! result does not rest on the pipeline's own counters.
//!
//! | file | holds |
//! |---|---|
//! | `stage` | the hosts, services and processes |
//! | `view` | what is printed |

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use lab::Fidelity;
use lab::user::{Privilege, become_root_in_user_namespace};

use stage::Stage;
use view::{Line, View};

mod stage;
mod view;

/// Options of `tcptwin demo`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct DemoArgs {
    /// Seconds of load
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    rate: u32,
    /// Connections of the load
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
}

/// How long the last requests may take to reach the target after the load has ended.
const SETTLE: Duration = Duration::from_secs(8);

/// Runs the demo to its end. Must be called while this process has one thread. Exit code 0: every request answered
/// online was answered by the target, once; 1: not so, or something broke; 3: this host allows no namespaces.
pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    let privilege = match become_root_in_user_namespace() {
        Ok(privilege) => privilege,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(3);
        }
    };
    match play(*args, privilege) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Whether every request arrived.
fn play(args: DemoArgs, privilege: Privilege) -> anyhow::Result<bool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    // Children have process groups of their own: Ctrl-C comes here, and this process ends them in order.
    ctrlc::set_handler(move || flag.store(true, Relaxed))?;

    let view = View;
    view.title(privilege);
    let mut stage = Stage::build(args)?;
    view.scene(&stage);

    let load = stage.start_load()?;
    let started = Instant::now();
    view.header();
    let mut last = Line::default();
    while !load.is_over() && !interrupted.load(Relaxed) {
        let due = Duration::from_secs(last.second + 1);
        if started.elapsed() < due {
            std::thread::sleep((due - started.elapsed()).min(Duration::from_millis(50)));
            continue;
        }
        anyhow::ensure!(!stage.run_ended(), "`{}` ended in the middle of the demo", stage.commands[0]);
        let line = stage.line(&last, started.elapsed())?;
        view.line(&last, &line);
        last = line;
    }
    let report = if interrupted.load(Relaxed) { load.stop()? } else { load.wait()? };

    let waiting = Instant::now();
    while !stage.has_arrived() && waiting.elapsed() < SETTLE && !stage.run_ended() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let cpu = stage.cpu(started.elapsed())?;
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    let end = stage.finish()?;
    view.result(&fidelity, &report, &end, &cpu);
    let well = fidelity.is_exact() && fidelity.ids > 0 && report.failed == 0 && end.check_ledger().is_ok();
    if interrupted.load(Relaxed) {
        view.interrupted();
    }
    view.farewell(well);
    Ok(well)
}
