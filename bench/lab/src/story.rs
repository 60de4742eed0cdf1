//! A test runner for stories in namespaces (`harness = false`): one at a time on the whole machine, each in a process of
//! its own, each bounded in time, and none skipped silently.
//!
//! The standard harness runs tests as threads of one process that already has several when the first begins, which
//! forbids a user namespace; it has no time limit, and it hides what a passing test prints, so that a test that skipped
//! itself looks like one that passed. `cargo test` arguments that matter work as usual: name filters, `--exact`,
//! `--list`, `--nocapture`.

use std::any::Any;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::user::become_root_in_user_namespace;

/// A test: its name, its longest time in seconds, and the test.
pub type Story = (&'static str, u64, fn() -> anyhow::Result<()>);

/// A story returns this when this machine lacks what it needs.
#[derive(Debug, Error)]
pub enum Skipped {
    /// A program that a package would bring. In CI, where everything is supposed to be installed, this is a failure: a
    /// skipped story would hide a broken set-up.
    #[error("{0}")]
    NotInstalled(String),
    /// Something that this host does not offer to this user.
    #[error("{0}")]
    NotHere(String),
}

/// What the story is doing; printed when it hangs.
static STEP: Mutex<String> = Mutex::new(String::new());

/// Notes what the story does next, for the message when it hangs or fails.
pub fn step(what: impl Into<String>) {
    let what = what.into();
    println!("  - {what}");
    *STEP.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = what;
}

/// Runs the stories that the command line asks for. Called by `main` before it starts any thread.
pub fn run_all(stories: &[Story]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|a| a == CHILD) {
        return tell(stories, args.get(at + 1).map_or("", String::as_str));
    }
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if flag("--exact") { name == *f } else { name.contains(f.as_str()) })
    };
    let chosen: Vec<&Story> = stories.iter().filter(|s| wanted(s.0)).collect();
    if flag("--list") {
        chosen.iter().for_each(|s| println!("{}: test", s.0));
        return ExitCode::SUCCESS;
    }
    match run_chosen(&chosen, flag("--nocapture") || flag("--no-capture"), stories.len() - chosen.len()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(101),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(101)
        }
    }
}

/// How one story ended.
enum End {
    Passed,
    Skipped(String),
    Failed,
}

fn run_chosen(chosen: &[&Story], show: bool, filtered: usize) -> Result<bool, Box<dyn Error>> {
    println!("\nrunning {} stories, one at a time", chosen.len());
    let mut skipped = Vec::new();
    let mut failed = Vec::new();
    for story in chosen {
        let lock = wait_for_turn()?;
        let started = Instant::now();
        let (end, output) = run_one(story, show)?;
        drop(lock);
        let took = started.elapsed().as_secs_f32();
        match end {
            End::Passed => println!("test {} ... ok ({took:.1} s)", story.0),
            End::Skipped(why) => {
                println!("test {} ... SKIPPED: {why}", story.0);
                skipped.push((story.0, why));
            }
            End::Failed => {
                println!("test {} ... FAILED ({took:.1} s)\n{output}", story.0);
                failed.push(story.0);
            }
        }
    }
    for (name, why) in &skipped {
        println!("\nSKIPPED: {name}: {why}");
    }
    for name in &failed {
        println!("\nFAILED: {name}; again with: cargo test -- --exact {name} --nocapture");
    }
    let passed = chosen.len() - skipped.len() - failed.len();
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {} SKIPPED; {filtered} filtered out\n",
        failed.len(),
        skipped.len()
    );
    Ok(failed.is_empty())
}

/// Runs one story in a process of its own; its exit code says how it ended.
fn run_one(story: &Story, show: bool) -> Result<(End, String), Box<dyn Error>> {
    let mut log = tempfile()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(CHILD).arg(story.0).stdin(Stdio::null());
    if !show {
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    }
    let status = command.status()?;
    let mut output = String::new();
    log.rewind()?;
    log.read_to_string(&mut output)?;
    Ok(match status.code() {
        Some(0) => (End::Passed, output),
        Some(SKIPPED) => {
            let why = output.lines().rev().find_map(|l| l.strip_prefix("SKIPPED: ")).unwrap_or("see above");
            (End::Skipped(why.to_owned()), String::new())
        }
        Some(_) => (End::Failed, output),
        None => (End::Failed, format!("{output}\nthe story's process ended by {status}")),
    })
}

/// The story's own process.
fn tell(stories: &[Story], name: &str) -> ExitCode {
    let Some(story) = stories.iter().find(|s| s.0 == name) else {
        eprintln!("there is no story {name}");
        return ExitCode::from(101);
    };
    if let Err(error) = become_root_in_user_namespace() {
        return end_of(Err(anyhow::Error::new(Skipped::NotHere(error.to_string()))));
    }
    // By hand, for a story that is asked for more than usual: so many times as long.
    let patience = std::env::var("LAB_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let limit = Duration::from_secs(story.1) * patience;
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let step = STEP.lock().map(|s| s.clone()).unwrap_or_default();
        println!("hung: not over after {} s; it was at: {step}", limit.as_secs());
        describe_children();
        // Everything that was started dies with this process.
        std::process::exit(101);
    });
    match catch_unwind(AssertUnwindSafe(story.2)) {
        Ok(result) => end_of(result),
        Err(panic) => {
            println!("panicked: {}", panic_text(panic.as_ref()));
            ExitCode::from(101)
        }
    }
}

fn end_of(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Skipped>() {
            Some(skipped) => {
                println!("SKIPPED: {skipped}");
                let in_ci = std::env::var_os("CI").is_some_and(|v| v == "true" || v == "1");
                let fails = in_ci && matches!(skipped, Skipped::NotInstalled(_));
                ExitCode::from(if fails { 101 } else { SKIPPED as u8 })
            }
            None => {
                println!("failed: {error:#}");
                ExitCode::from(101)
            }
        },
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("?")
}

/// Which processes a hung story still has, and where they wait.
fn describe_children() {
    let me = std::process::id();
    for process in crate::process::all().into_iter().filter(|p| crate::process::descends_from(p.pid, me)) {
        let wchan = std::fs::read_to_string(format!("/proc/{}/wchan", process.pid)).unwrap_or_default();
        println!("  process {} {} waits in {wchan}: {}", process.pid, process.state, process.command_line());
    }
}

/// Two test programs at once would take each other's cores: one story at a time on this machine.
fn wait_for_turn() -> Result<Flock<File>, Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("lab-{}.lock", nix::unistd::getuid()));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| format!("locking {}: {errno}", path.display()).into())
}

/// A file without a name, gone with its last descriptor.
fn tempfile() -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir())?;
    file.write_all(b"")?;
    Ok(file)
}

const CHILD: &str = "--one-story";
/// Exit code of a story that skipped itself.
const SKIPPED: i32 = 77;
