//! A program with a defect: one kind of answer kills whoever takes it. The defect is real, a trap put into the file of a
//! copy of the program where that answer is dealt with; what runs has nothing in it for the sake of this story. Other copies do
//! there what a payload would do that had taken the process over, and hold the autopsy to what it may.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lab::story::{Story, step};
use lab::{Fidelity, HttpOptions, HttpService, Load, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::confined::{Shown, nobody};
use crate::faults::more;
use crate::stage::{ONLINE_PORT, SETTLE, TARGET_PORT, answered, end};
use crate::surviving::{name, stage_with_copy};

pub(crate) const STORIES: &[Story] = &[(
    "an_answer_that_kills_twice_costs_its_session_alone",
    90,
    an_answer_that_kills_twice_costs_its_session_alone,
)];

/// What deals with a target's refusal, as the linker knows it.
const REFUSED: [&str; 2] = ["session..table..Table", "7refused17h"];
/// `int3` of x86-64: the process dies of SIGTRAP.
const TRAP: &[u8] = &[0xcc];
/// `mov eax, 41; syscall; int3`: socket(2), of whatever stands in the registers, which no worker makes.
const CALL: &[u8] = &[0xb8, 41, 0, 0, 0, 0x0f, 0x05, 0xcc];
/// `jmp .`: the process stays where it is.
const HANG: &[u8] = &[0xeb, 0xfe];
const SIGTRAP: i32 = 5;
/// A request to the service whose twin does not run, and the others.
const POISON: u64 = 150_000;

fn an_answer_that_kills_twice_costs_its_session_alone() -> Result<()> {
    let (stage, _place, program) = stage_with_copy()?;
    let innocent = fs::read(&program)?;
    put(&program, &innocent, TRAP)?;
    let second = SocketAddr::new(stage.net.online.v4(), ONLINE_PORT + 1);
    let witness = Arc::clone(&stage.online);
    let _second = HttpService::start(&stage.net.online.ns, second, HttpOptions::default(), witness)?;
    let nobody = SocketAddr::new(stage.net.target.v4(), TARGET_PORT + 1);
    let targets = format!("{},{nobody}", stage.at_target());
    step("intercept for both targets, of which the second does not run");
    let _intercept = stage.twin.intercept(&stage.net.assistant, &["-x", &targets, "-i", "eth0"])?;
    let maps = format!(
        "{},{}",
        lab::twin::map(ONLINE_PORT, stage.at_target()),
        lab::twin::map(second.port(), nobody)
    );
    let (name, assistant) = (name("poison"), stage.net.assistant.v4().to_string());
    let options = ["-x", &maps, "-s", &assistant, "-i", "eth0", "--shards", "2", "--name", &name];
    let run = stage.twin.run(&stage.net.online, &options)?;
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(100_000) })?;
    more(&load, 300)?;
    for round in 0..3 {
        step(format!("a request whose connection the target refuses, number {}", round + 1));
        let one = Load { connections: 1, first_id: POISON + round, ..Load::new(second, 1) };
        answered(one.run(&stage.net.client.ns)?)?;
        wait::until("its answer is left out", SETTLE, || {
            run.stderr().matches("is left out, with its session").count() as u64 == round + 1
        })
        .with_context(|| run.stderr())?;
        more(&load, 300)?;
    }
    let restarts: u64 = run.stats()?.roles()?.iter().map(|role| role.restarts).sum();
    ensure!(
        restarts == 6,
        "three such answers cost {restarts} restarts instead of two each: {}",
        run.stderr()
    );
    step(
        "what it died of is kept, for its owner only, and kills this program again, but not one without the defect",
    );
    for number in 1..=3 {
        let file = stage.twin.runtime().join(format!("tcptwin/{name}.quarantine/{number}.json"));
        let mode = std::os::unix::fs::MetadataExt::mode(
            &fs::metadata(&file).with_context(|| file.display().to_string())?,
        );
        ensure!(mode & 0o777 == 0o600, "{} has mode {mode:o}", file.display());
        run.wait_said(&format!("tcptwin autopsy {}", file.display()))?;
        let (well, said) = autopsy(&program, &file)?;
        ensure!(!well && said.contains(&format!("dies of it (signal {SIGTRAP})")), "it said: {said}");
        ensure!(said.contains(&format!("a returned header {nobody} -> ")), "it said: {said}");
        let (well, said) = autopsy(Path::new(env!("CARGO_BIN_EXE_tcptwin")), &file)?;
        ensure!(well && said.contains("survives it"), "it said: {said}");
    }
    step("whoever takes it again may do nothing else");
    let file = stage.twin.runtime().join(format!("tcptwin/{name}.quarantine/1.json"));
    let other = program.with_extension("other");
    put(&other, &innocent, CALL)?;
    let (well, said) = autopsy(&other, &file)?;
    ensure!(!well && said.contains("makes a system call at it that it must not make"), "it said: {said}");
    put(&other, &innocent, HANG)?;
    is_confined(&other, &file)?;
    let report = answered(load.stop()?)?;
    stage.wait_for(0..report.sent)?;
    let stats = end(run)?;
    println!("    {}", stats.ledger());
    let others = Fidelity::of_ids(&stage.online, &stage.target, 1, 0..report.sent);
    ensure!(others.is_exact(), "others: {others}; {}", stats.ledger());
    ensure!(
        stats.delivered() == report.request_bytes,
        "{} bytes were sent: {}",
        report.request_bytes,
        stats.ledger()
    );
    let lost = stats.number("/sessions/failed/worker_lost")?;
    ensure!(lost == 3, "{lost} sessions were lost with their workers: {}", stats.ledger());
    ensure!(stats.in_flight() == 0 && stats.missed() == 0, "{}", stats.ledger());
    stats.check_ledger()
}

fn autopsy(program: &Path, file: &Path) -> Result<(bool, String)> {
    let done = Command::new(program).arg("autopsy").arg(file).output()?;
    ensure!(done.status.signal().is_none(), "the autopsy itself died: {}", done.status);
    Ok((done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned()))
}

/// An autopsy that hangs at it, as the kernel shows its process.
fn is_confined(program: &Path, file: &Path) -> Result<()> {
    let uid = nobody().ok();
    let mut autopsy = Command::new(program).arg("autopsy").arg(file).stdout(Stdio::piped()).spawn()?;
    let inside = || process::tree(autopsy.id()).into_iter().find(|one| one.pid != autopsy.id());
    let hangs = || inside().is_some_and(|one| one.cpu_s > HANGS_S);
    let found = wait::until("somebody hangs at it", SETTLE, hangs).and_then(|()| {
        let pid = inside().context("it was there")?.pid;
        let shown = Shown::of(pid)?;
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        Ok(shown)
    });
    if found.is_err() {
        autopsy.kill()?;
    }
    let ended = autopsy.wait_with_output()?;
    let shown = found?;
    shown.is_bare("the autopsy")?;
    uid.map_or(Ok(()), |uid| shown.is("the autopsy", uid))?;
    ensure!(shown.open.len() <= 3, "the autopsy has {:?}", shown.open);
    let said = String::from_utf8_lossy(&ended.stdout);
    ensure!(said.contains("dies of it (signal 9)"), "it said: {said}");
    Ok(())
}

/// CPU time that only a loop takes.
const HANGS_S: f64 = 0.2;

/// Makes a program of these bytes that has `code` at the begin of what deals with a refusal.
fn put(program: &Path, innocent: &[u8], code: &[u8]) -> Result<()> {
    let mut bytes = innocent.to_vec();
    let at = place_of(&bytes, |name| REFUSED.iter().all(|part| name.contains(part))).context(
        "the program has no such function any more, or it is inlined: choose another for this story",
    )?;
    bytes[at..at + code.len()].copy_from_slice(code);
    let new = program.with_extension("new");
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, program)?)
}

/// Where in an ELF file (elf(5), 64 bits) the code of a function begins, by its name in the symbol table.
fn place_of(file: &[u8], is: impl Fn(&str) -> bool) -> Option<usize> {
    let word = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?) as usize);
    let half = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?)));
    let (segments, sections) = (word(32)?, word(40)?);
    let sections: Vec<usize> = (0..short(60)?).map(|i| sections + i * 64).collect();
    let symbols = *sections.iter().find(|at| half(**at + 4) == Some(SYMBOLS))?;
    let names = word(*sections.get(half(symbols + 40)?)? + 24)?;
    let (first, bytes) = (word(symbols + 24)?, word(symbols + 32)?);
    let address = (first..first + bytes).step_by(24).find_map(|symbol| {
        let name = file.get(names + half(symbol)?..)?.split(|byte| *byte == 0).next()?;
        is(std::str::from_utf8(name).ok()?).then(|| word(symbol + 8))?
    })?;
    (0..short(56)?).map(|i| segments + i * 56).find_map(|segment| {
        let from = word(segment + 16)?;
        let within = half(segment) == Some(LOADED) && (from..from + word(segment + 32)?).contains(&address);
        if within { Some(address - from + word(segment + 8)?) } else { None }
    })
}

/// Kind of a section, and of a segment.
const SYMBOLS: usize = 2;
const LOADED: usize = 1;
