//! A test runner for stories in namespaces (`harness = false`): three at a time on the whole machine, or one that needs it
//! for itself, each in a process of its own, each bounded in time, and none skipped silently.
//!
//! Most stories wait for most of their time: for a timer, a drain, a fault to be noticed (174 took 856 s and 160 s of CPU time). What
//! a story must have the machine for itself for is a figure that a neighbour could spoil: how long something took, how much CPU time it may use.
//!
//! The standard harness runs tests as threads of one process that already has several when the first begins, which
//! forbids a user namespace; it has no time limit, and it hides what a passing test prints, so that a test that skipped
//! itself looks like one that passed. `cargo test` arguments that matter work as usual: name filters, `--exact`,
//! `--list`, `--nocapture`.

use std::any::Any;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::sys;
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

/// Runs the stories that the command line asks for: `shared` ones side by side, `alone` ones with the machine for themselves.
/// Called by `main` before it starts any thread.
pub fn run_all(shared: &[Story], alone: &[Story]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|a| a == CHILD) {
        let name = args.get(at + 1).map_or("", String::as_str);
        return tell(shared.iter().chain(alone).find(|s| s.0 == name), name);
    }
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let wanted = |story: &&Story| {
        filters.is_empty()
            || filters
                .iter()
                .any(|f| if flag("--exact") { story.0 == *f } else { story.0.contains(f.as_str()) })
    };
    let chosen = Chosen {
        shared: shared.iter().filter(wanted).collect(),
        alone: alone.iter().filter(wanted).collect(),
        show: flag("--nocapture") || flag("--no-capture"),
    };
    if flag("--list") {
        chosen.all().for_each(|s| println!("{}: test", s.0));
        return ExitCode::SUCCESS;
    }
    match chosen.run(shared.len() + alone.len()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(101),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(101)
        }
    }
}

/// The stories to run.
struct Chosen<'a> {
    shared: Vec<&'a Story>,
    alone: Vec<&'a Story>,
    /// What they print goes to the terminal as it comes.
    show: bool,
}

/// How one story ended.
enum End {
    Passed,
    Skipped(String),
    Failed,
}

/// A story that is over.
struct Told {
    name: &'static str,
    end: End,
    output: String,
    took: Duration,
    /// Of its process and of all that it waited for.
    cpu: Duration,
}

impl Chosen<'_> {
    fn all(&self) -> impl Iterator<Item = &Story> {
        self.shared.iter().chain(&self.alone).copied()
    }

    /// Runs them, says how each ended, and whether none failed. `known` stories there are in all.
    fn run(&self, known: usize) -> Result<bool, Box<dyn Error>> {
        let chosen = self.all().count();
        // What two stories print at once could not be told apart.
        let at_once = if self.show { 1 } else { SLOTS };
        println!("\nrunning {} stories, {at_once} at a time, {} alone", chosen, self.alone.len());
        let began = Instant::now();
        let mut told = run_each(&self.shared, at_once, 1, self.show)?;
        told.extend(run_each(&self.alone, 1, SLOTS, self.show)?);
        let mut counts = [0; 3];
        for story in &told {
            match &story.end {
                End::Passed => counts[0] += 1,
                End::Skipped(why) => {
                    counts[2] += 1;
                    println!("\nSKIPPED: {}: {why}", story.name);
                }
                End::Failed => {
                    counts[1] += 1;
                    println!("\nFAILED: {0}; again with: cargo test -- --exact {0} --nocapture", story.name);
                }
            }
        }
        let [passed, failed, skipped] = counts;
        println!(
            "\ntest result: {}. {passed} passed; {failed} failed; {skipped} SKIPPED; {} filtered out; {:.0} s, CPU {:.0} s\n",
            if failed == 0 { "ok" } else { "FAILED" },
            known - chosen,
            began.elapsed().as_secs_f32(),
            told.iter().map(|t| t.cpu.as_secs_f32()).sum::<f32>(),
        );
        Ok(failed == 0)
    }
}

/// Runs stories, so many at once, each in so many of the machine's slots, and says how each ended as it ends.
fn run_each(stories: &[&Story], at_once: usize, slots: usize, show: bool) -> Result<Vec<Told>, String> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Told>, String> {
        let mut told = Vec::new();
        while let Some(story) = stories.get(next.fetch_add(1, Relaxed)) {
            let turn = wait_for_turn(slots)?;
            let one = run_one(story, show).map_err(|error| format!("running {}: {error}", story.0))?;
            drop(turn);
            let figures = format!("({:.1} s, CPU {:.1} s)", one.took.as_secs_f32(), one.cpu.as_secs_f32());
            match &one.end {
                End::Passed => println!("test {} ... ok {figures}", one.name),
                End::Skipped(why) => println!("test {} ... SKIPPED: {why}", one.name),
                End::Failed => println!("test {} ... FAILED {figures}\n{}", one.name, one.output),
            }
            told.push(one);
        }
        Ok(told)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_fold(Vec::new(), |mut all, worker| {
            all.extend(worker.join().map_err(|_| "a thread of the runner panicked")??);
            Ok(all)
        })
    })
}

/// Runs one story in a process of its own; its exit code says how it ended.
fn run_one(story: &Story, show: bool) -> io::Result<Told> {
    let mut log = tempfile()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(CHILD).arg(story.0).stdin(Stdio::null());
    if !show {
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    }
    let began = Instant::now();
    let (status, cpu) = sys::wait_with_cpu_time(command.spawn()?)?;
    let took = began.elapsed();
    let mut output = String::new();
    log.rewind()?;
    log.read_to_string(&mut output)?;
    let end = match status.code() {
        Some(0) => End::Passed,
        Some(SKIPPED) => {
            let why = output.lines().rev().find_map(|l| l.strip_prefix("SKIPPED: ")).unwrap_or("see above");
            End::Skipped(why.to_owned())
        }
        Some(_) => End::Failed,
        None => {
            output += &format!("\nthe story's process ended by {status}");
            End::Failed
        }
    };
    Ok(Told { name: story.0, end, output, took, cpu })
}

/// The story's own process.
fn tell(story: Option<&Story>, name: &str) -> ExitCode {
    let Some(story) = story else {
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

/// Waits for so many of the machine's slots; other test programs wait for them too. Only one of all waits at a time: who
/// needs every slot would never find them free together otherwise.
fn wait_for_turn(slots: usize) -> Result<Vec<Flock<File>>, String> {
    let _first = lock("turn", FlockArg::LockExclusive)?;
    let mut held: [Option<Flock<File>>; SLOTS] = Default::default();
    let mut missing = slots;
    loop {
        for (number, slot) in held.iter_mut().enumerate() {
            if missing > 0 && slot.is_none() {
                *slot = lock(&number.to_string(), FlockArg::LockExclusiveNonblock)?;
                missing -= usize::from(slot.is_some());
            }
        }
        if missing == 0 {
            return Ok(held.into_iter().flatten().collect());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Takes one of this machine's locks; none when it is held and the call does not wait.
fn lock(name: &str, how: FlockArg) -> Result<Option<Flock<File>>, String> {
    let path = std::env::temp_dir().join(format!("lab-{}-{name}.lock", nix::unistd::getuid()));
    let taken = |errno: Errno| match errno {
        Errno::EWOULDBLOCK => Ok(None),
        other => Err(format!("locking {}: {other}", path.display())),
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| format!("opening {}: {error}", path.display()))?;
    Flock::lock(file, how).map(Some).or_else(|(_, errno)| taken(errno))
}

/// A file without a name, gone with its last descriptor.
fn tempfile() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir())?;
    file.write_all(b"")?;
    Ok(file)
}

/// Stories at once on this machine: together they take less than one core.
const SLOTS: usize = 3;
const CHILD: &str = "--one-story";
/// Exit code of a story that skipped itself.
const SKIPPED: i32 = 77;
