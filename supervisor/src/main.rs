//! `tcptwin`: the one binary. Which command runs, and what its end means to the shell.
//!
//! | file | holds |
//! |---|---|
//! | `cli` | the command line and its errors |
//! | `run` | `run` and `record`, from the options to the last line |
//! | `replaying` | `replay`: the same with packet files in front |
//! | `recording` | what `record` shows |
//! | `adopt`, `upgrade` | going on with what a dead supervisor left; going on as another image of the program |
//! | `service` | systemd |
//! | `preflight`, `host` | what is checked before anything starts; facts about this machine |
//! | `supervise` | the loop: deaths, orders, signals, figures |
//! | `sockets` | what outlives the roles |
//! | `confine` | what each process gives up before it meets a packet |
//! | `spawn`, `role`, `member`, `undertaker` | starting a role; being one; one process over its life, and after it |
//! | `backoff`, `hang`, `aftermath`, `drain` | how soon again; alive or hung; what a death costs; the ordered end |
//! | `budget` | how much may be replayed within a budget of CPU time |
//! | `halt` | the kill switch |
//! | `quarantine` | what workers died of twice, kept and shown again |
//! | `control`, `ctl`, `place` | the control socket, its clients, where it is |
//! | `collect`, `stats` | counters and /proc → the figures |
//! | `live`, `summary`, `metrics`, `terminal`, `words` | the figures for people and for Prometheus |
//! | `doctor` | `doctor`: which hop is broken |
//! | `intercepting` | `intercept` |
//! | `survey` | `replay --dry-run` |
//! | `demo` | `demo` |
//! | `generate` | manual pages and completions for a package |
//! | `format` | what a region's bytes mean to this program |
//! | `key`, `logging`, `procfs`, `signals` | keys, log lines, /proc, Ctrl-C |

mod adopt;
mod aftermath;
mod backoff;
mod blackhole;
mod budget;
mod canary;
mod cli;
mod collect;
mod confine;
mod control;
mod ctl;
mod demo;
mod doctor;
mod drain;
mod format;
mod generate;
mod guarding;
mod halt;
mod hang;
mod host;
mod intercepting;
mod key;
mod live;
mod logging;
mod member;
mod metrics;
mod place;
mod preflight;
mod procfs;
mod quarantine;
mod recording;
mod relay;
mod replaying;
mod role;
mod run;
mod service;
mod signals;
mod sockets;
mod spawn;
mod stats;
mod summary;
mod supervise;
mod survey;
mod terminal;
#[cfg(test)]
mod testing;
mod undertaker;
mod upgrade;
mod words;

use std::process::ExitCode;

use cli::Action;
use topology::{Command, Refusal};

fn main() -> ExitCode {
    if let Some(before) = upgrade::Handover::received() {
        return exit(before.and_then(run::resume));
    }
    let done = match cli::read() {
        Ok(Action::Role(args)) => return role::be(&args),
        Ok(Action::Demo(args)) => return demo::run(&args),
        Ok(Action::Print(text)) => print(&text),
        Ok(Action::Run(options)) => run::run(&options, Command::Run),
        Ok(Action::Record(options)) => run::run(&options, Command::Record),
        Ok(Action::Replay(options)) => replaying::run(&options),
        Ok(Action::Intercept(options)) => intercepting::run(&options),
        Ok(Action::Doctor(doctor)) => match doctor {
            cli::Doctor::Online { options, client } => doctor::run(&options, client.as_deref()),
            cli::Doctor::Intercept(options) => doctor::of_intercept(&options),
            cli::Doctor::Target(options) => doctor::of_target(&options),
        },
        Ok(Action::Stats { name, json }) => ctl::stats(&name, json),
        Ok(Action::Top { name }) => ctl::top(&name),
        Ok(Action::Ctl { name, order }) => ctl::ctl(&name, order),
        Ok(Action::Handover { name }) => {
            println!("{}", upgrade::answer(&name));
            Ok(ExitCode::SUCCESS)
        }
        Ok(Action::Autopsy { file, inside }) => quarantine::autopsy(&file, inside),
        Ok(Action::Generate { what, directory }) => generate::run(cli::command(), what, &directory),
        Ok(Action::Keygen { file }) => key::make(&file).map(|()| ExitCode::SUCCESS),
        Err(refusal) => Err(refusal.into()),
    };
    exit(done)
}

fn exit(done: anyhow::Result<ExitCode>) -> ExitCode {
    relay::end();
    match done {
        Ok(code) => code,
        Err(error) => {
            // Errors of other parts hold the system's words as they are.
            eprintln!("error: {}", flow::words::plain(&format!("{error:#}")));
            match error.downcast_ref::<Refusal>() {
                Some(refusal) => ExitCode::from(refusal.exit),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn print(text: &clap::builder::StyledStr) -> anyhow::Result<ExitCode> {
    use std::io::{IsTerminal as _, Write as _};
    let mut out = std::io::stdout();
    let shown = if out.is_terminal() && logging::colour_allowed() {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    // A reader that is gone (`| head`) is no failure.
    let _ = write!(out, "{shown}");
    Ok(ExitCode::SUCCESS)
}
