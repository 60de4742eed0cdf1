//! `tcptwin replay`: the files are looked at first, then it is a run like any other. What was mapped is asked at its end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use topology::plan::TracePlan;
use topology::{Command, Key, Options, Plan, Refusal};
use trace::Reader;

use crate::{run, survey};

/// Replays until the files end.
///
/// # Errors
/// A [`Refusal`] before the start; anything else is a failure while running.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !options.has(Key::Files) {
        return Err(Refusal::usage(
            "which file? Name one that `tcpdump -w` or Wireshark has written, or - for standard input",
        )
        .into());
    }
    if options.has(Key::DryRun) {
        return survey::run(options);
    }
    run::run(options, Command::Replay)
}

/// Makes sure that the files can be read, here and by every successor of a role: their names no longer depend on where the
/// command was typed.
///
/// # Errors
/// None of them is a packet file.
pub(crate) fn settle(plan: &mut Plan) -> Result<(), Refusal> {
    let Some(trace) = &mut plan.trace else { return Ok(()) };
    for file in &mut trace.files {
        if file.as_os_str() != topology::trace::STDIN
            && let Ok(absolute) = std::path::absolute(&*file)
        {
            *file = absolute;
        }
    }
    // A pipe can be opened once, and that is for the capturer to do.
    if pipe(trace).is_none() {
        Reader::open(&trace.files, trace::Options::default())
            .map_err(|error| Refusal::preflight(error.to_string()))?;
    }
    Ok(())
}

/// What can be read once: standard input, or a named pipe.
pub(crate) fn pipe(trace: &TracePlan) -> Option<&Path> {
    let once = |file: &&PathBuf| {
        file.as_os_str() == topology::trace::STDIN
            || file.exists() && !file.is_dir() && !trace::is_regular(file)
    };
    trace.files.iter().find(once).map(PathBuf::as_path)
}

/// Whether standard input is among the files.
pub(crate) fn is_stdin(trace: &TracePlan) -> bool {
    trace.files.iter().any(|file| file.as_os_str() == topology::trace::STDIN)
}
