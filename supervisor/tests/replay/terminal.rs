//! What a replay shows: a bar below the lines on a terminal, plain lines everywhere else.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Load;
use lab::real;
use lab::scratch::Scratch;
use lab::story::{Story, step};

use crate::offline::{Recorded, record};
use crate::stage::ONLINE_PORT;
use crate::surviving::name;

pub(crate) const STORIES: &[Story] = &[
    ("a_terminal_shows_how_far_a_file_is", 90, a_terminal_shows_how_far_a_file_is),
    ("a_pipe_has_a_wheel_for_a_bar", 60, a_pipe_has_a_wheel_for_a_bar),
];

/// Erases the rest of the line: what a bar ends with.
const ERASES: &str = "\x1b[K";

/// What a replay writes to a terminal; `{}` in `around` is its command line.
fn shown(recorded: &Recorded, file: &str, environment: &str, around: &str) -> Result<String> {
    let stage = &recorded.stage;
    let (map, assistant) = (lab::twin::map(ONLINE_PORT, stage.at_target()), stage.net.assistant.v4());
    let (dir, name) = (Scratch::new("terminal")?, name("terminal"));
    let (runtime, program) = (stage.twin.runtime().display().to_string(), env!("CARGO_BIN_EXE_tcptwin"));
    let line = format!(
        "env -u CI -u NO_COLOR TERM=xterm {environment} XDG_RUNTIME_DIR={runtime} \
         {program} replay {file} -x {map} -s {assistant} --plain --name {name}"
    );
    step(format!("a replay on a terminal {environment}"));
    let typescript = dir.file("typescript");
    let path = typescript.to_str().context("a path of plain text")?;
    let args = ["-q", "-e", "-c", &around.replace("{}", &line), path];
    real::run(&stage.net.online.ns, "script", &args, Duration::from_secs(30))?;
    Ok(fs::read_to_string(&typescript)?)
}

fn path(file: &Path) -> Result<&str> {
    file.to_str().context("a path of plain text")
}

fn a_terminal_shows_how_far_a_file_is() -> Result<()> {
    let recorded = record(|load| Load { rate: Some(250.0), ..load })?;
    let _intercept = recorded.stage.intercept()?;
    let file = path(&recorded.file)?;
    let said = shown(&recorded, file, "", "{}")?;
    let bars: Vec<&str> = said.split(ERASES).filter_map(|part| part.split("\x1b[?7l").nth(1)).collect();
    let drawn = |bar: &&&str| bar.contains("=>") && bar.contains(" % read, ") && bar.ends_with(" left");
    ensure!(bars.iter().filter(drawn).count() >= 2, "no bar in: {said:?}");
    // What stood where a line was written is erased first.
    let lines = said.lines().filter_map(|line| line.rsplit(ERASES).next());
    let lines: Vec<&str> = lines.filter(|line| line.contains("B/s")).collect();
    ensure!(lines.len() >= 2 && !lines.iter().any(|line| line.contains("% read")), "{said:?}");
    ensure!(said.rfind(ERASES) < said.rfind("ledger"), "the bar stands below the summary: {said:?}");
    for environment in ["NO_COLOR=1", "CI=true", "TERM=dumb"] {
        let said = shown(&recorded, file, environment, "{}")?;
        ensure!(!said.contains(ERASES), "{environment}: {said:?}");
        ensure!(said.lines().any(|line| line.contains("B/s") && line.contains("% read, ")), "{said:?}");
    }
    step("and where nobody looks");
    let said = shown(&recorded, file, "", "{} | cat")?;
    ensure!(!said.contains(ERASES), "{said:?}");
    Ok(())
}

fn a_pipe_has_a_wheel_for_a_bar() -> Result<()> {
    let recorded = record(|load| Load { rate: Some(250.0), ..load })?;
    let _intercept = recorded.stage.intercept()?;
    let around = format!("cat {} | {{}}", path(&recorded.file)?);
    let said = shown(&recorded, "-", "", &around)?;
    let wheels = said.split(ERASES).filter(|part| part.contains(" read, ") && part.ends_with(" packets"));
    ensure!(wheels.count() >= 2 && !said.contains("% read"), "{said:?}");
    Ok(())
}
