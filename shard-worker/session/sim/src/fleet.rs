//! Many worlds, over child processes, a share of the seeds each: a table that panics ends only its child, and its memory
//! (a region lives as long as its process) goes with it. How far it is goes to stderr, every few seconds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Scope, available_parallelism, scope};
use std::time::{Duration, Instant};

use sim::{Figures, Profile};

use crate::{Args, HANGS, hangs, scenario_of, tables};

/// All seeds, over children.
pub(crate) struct Fleet<'a> {
    args: &'a Args,
    next: u64,
    until: u64,
    start: Instant,
    /// Each child by the end of its share: the seed it is at, and since when.
    at_work: BTreeMap<u64, (u64, Instant)>,
    done: u64,
    sums: Vec<Figures>,
    failures: u64,
}

/// Seeds that one child runs: its tables together take some hundred megabytes at most. In real time it is one.
const SHARE: u64 = 50;
/// A world in real time computes for a quarter of a second and lasts some twenty.
const KERNEL_JOBS: u64 = 8;
/// Failures that are printed in full; all are counted.
const PRINTED: u64 = 20;
/// Between two words on how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

impl<'a> Fleet<'a> {
    pub(crate) fn new(args: &'a Args) -> Self {
        let seeds = args.seeds.unwrap_or(if args.seconds.is_some() { u64::MAX / 2 } else { 1000 });
        Self {
            args,
            next: args.from,
            until: args.from.saturating_add(seeds),
            start: Instant::now(),
            at_work: BTreeMap::new(),
            done: 0,
            sums: vec![Figures::default(); Profile::COUNT],
            failures: 0,
        }
    }

    pub(crate) fn run(mut self) -> ExitCode {
        scope(|scope| {
            let (lines, heard) = channel();
            for _ in 0..self.jobs() {
                self.share(scope, &lines);
            }
            let mut spoke = self.start;
            while !self.at_work.is_empty() {
                match heard.recv_timeout(PROGRESS.saturating_sub(spoke.elapsed())) {
                    Ok(word) => self.hear(word, scope, &lines),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => unreachable!("this end keeps a sender"),
                }
                if spoke.elapsed() >= PROGRESS {
                    spoke = Instant::now();
                    self.progress();
                }
            }
        });
        tables::print_all(&self.sums);
        println!("{:.1} s; {} broken", self.start.elapsed().as_secs_f64(), self.failures);
        if self.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn jobs(&self) -> u64 {
        let usual = match self.args.kernel {
            true => available_parallelism().map_or(1, |n| n.get() as u64) * KERNEL_JOBS,
            false => 1,
        };
        self.args.jobs.unwrap_or(usual)
    }

    fn hear<'s, 'e>(&mut self, word: Heard, scope: &'s Scope<'s, 'e>, lines: &Sender<Heard>) {
        match word {
            Heard::Line { line, until, next } => {
                self.at_work.insert(until, (next, Instant::now()));
                self.take(&line);
            }
            Heard::Ended { until, death: None } => {
                self.at_work.remove(&until);
                self.share(scope, lines);
            }
            Heard::Ended { until, death: Some((seed, death)) } => {
                self.at_work.remove(&until);
                self.done += 1;
                match death {
                    Death::Panic => self.broken(seed, "the table panicked (the message is above)"),
                    Death::Hang => self.broken(seed, &hangs(&scenario_of(seed, self.args))),
                }
                if seed + 1 < until {
                    self.start(scope, lines, seed + 1, until);
                } else {
                    self.share(scope, lines);
                }
            }
        }
    }

    fn progress(&self) {
        let worlds = match self.until < u64::MAX / 2 {
            true => format!("{} of {} worlds", self.done, self.until - self.args.from),
            false => format!("{} worlds", self.done),
        };
        let oldest = self.at_work.values().min_by_key(|(_, since)| *since);
        let oldest = oldest.map_or(String::new(), |(seed, since)| {
            format!("; {} at work, seed {seed} for {} s", self.at_work.len(), since.elapsed().as_secs())
        });
        eprintln!(
            "sim: {worlds} done in {} s, {} broken{oldest}",
            self.start.elapsed().as_secs(),
            self.failures
        );
    }

    /// Gives the next seeds to a child, if there are some and there is time.
    fn share<'s, 'e>(&mut self, scope: &'s Scope<'s, 'e>, lines: &Sender<Heard>) {
        let late = self.args.seconds.is_some_and(|s| self.start.elapsed() >= Duration::from_secs(s));
        if self.next >= self.until || late {
            return;
        }
        let share = if self.args.kernel { 1 } else { SHARE };
        let (from, until) = (self.next, self.until.min(self.next + share));
        self.next = until;
        self.start(scope, lines, from, until);
    }

    fn start<'s, 'e>(&mut self, scope: &'s Scope<'s, 'e>, lines: &Sender<Heard>, from: u64, until: u64) {
        let program = std::env::current_exe().expect("a running program has a path");
        let mut command = Command::new(program);
        command.args(["--child", "--from", &from.to_string(), "--seeds", &(until - from).to_string()]);
        if self.args.kernel {
            command.arg("--kernel");
        }
        if let Some(profile) = self.args.profile {
            command.args(["--profile", profile.name()]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("this program starts another time");
        let stdout = child.stdout.take().expect("it was asked for");
        let mut worker = Worker { child, lines: BufReader::new(stdout), next: from, until };
        let lines = lines.clone();
        scope.spawn(move || worker.listen(&lines));
        self.at_work.insert(until, (from, Instant::now()));
    }

    fn take(&mut self, line: &str) {
        self.done += 1;
        let mut parts = line.splitn(3, ' ');
        let mut number = || parts.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(seed), Some(profile)) = (number(), number()) else { return };
        let rest = parts.next().unwrap_or_default();
        match (rest.strip_prefix("BROKEN "), Figures::parse(rest)) {
            (Some(why), _) => self.broken(seed, why),
            (None, Some(figures)) => self.sums[profile as usize].sum(&figures),
            (None, None) => self.broken(seed, "its figures make no sense"),
        }
    }

    fn broken(&mut self, seed: u64, why: &str) {
        self.failures += 1;
        if self.failures > PRINTED {
            return;
        }
        println!("BROKEN seed {seed}: {why}");
        println!("  {}", scenario_of(seed, self.args));
        let named =
            self.args.profile.map_or(String::new(), |profile| format!(" --profile {}", profile.name()));
        let kernel = if self.args.kernel { " --kernel" } else { "" };
        println!("  scripts/sim.sh --seed {seed}{named}{kernel}          (with --trace: every packet)");
    }
}

/// A child at work.
struct Worker {
    child: Child,
    lines: BufReader<ChildStdout>,
    next: u64,
    until: u64,
}

/// What a listener tells of its child; `until` says of which.
enum Heard {
    /// What came of a world, and the seed that it is at now.
    Line { line: String, until: u64, next: u64 },
    /// It is over; the seed at which it died, if it did.
    Ended { until: u64, death: Option<(u64, Death)> },
}

enum Death {
    Panic,
    Hang,
}

impl Worker {
    fn listen(&mut self, lines: &Sender<Heard>) {
        let until = self.until;
        let mut line = String::new();
        while self.lines.read_line(&mut line).is_ok_and(|n| n > 0) {
            self.next += 1;
            let _ = lines.send(Heard::Line { line: line.trim_end().to_owned(), until, next: self.next });
            line.clear();
        }
        let status = self.child.wait().ok();
        let well = status.is_some_and(|status| status.success());
        let hung = status.and_then(|status| status.code()) == Some(i32::from(HANGS));
        let death = if hung { Death::Hang } else { Death::Panic };
        let death = (!well || self.next < until).then_some((self.next, death));
        let _ = lines.send(Heard::Ended { until, death });
    }
}
