//! `sim`: runs worlds and says what came of them. Worlds run in child processes, a share of the seeds each: a table that
//! panics ends only its child, and its memory (a region lives as long as its process) goes with it.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use flow::Drop;
use lab::user::become_root_in_user_namespace;
use session::Count;
use sim::{Figure, Figures, Options, Profile, Scenario, run};

const USAGE: &str = "\
usage: sim [--seeds N] [--from K] [--seconds S] [--jobs J] [--profile P]
       sim --seed N [--profile P] [--trace]
       either with --kernel

  --seeds N     worlds to run (default 1000; with --seconds: as many as the time allows)
  --from K      first seed (default 1)
  --seconds S   begin no more worlds after so many seconds
  --jobs J      processes at once (default 1)
  --profile P   one family of worlds instead of a mixture; a list is printed by --profile help
  --seed N      one world, looked at closely
  --kernel      the kernel's own TCP as the target, in real time; needs root or user namespaces, and /dev/net/tun
  --trace       with --seed: print every packet
";

/// Seeds that one child runs: its tables together take some hundred megabytes at most. In real time it is one.
const SHARE: u64 = 50;
/// Failures that are printed in full; all are counted.
const PRINTED: u64 = 20;

struct Args {
    from: u64,
    seeds: Option<u64>,
    seconds: Option<u64>,
    jobs: u64,
    profile: Option<Profile>,
    seed: Option<u64>,
    kernel: bool,
    trace: bool,
    child: bool,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if args.kernel
        && let Err(error) = become_root_in_user_namespace()
    {
        eprintln!("--kernel: {error}");
        return ExitCode::from(3);
    }
    match args.seed {
        Some(seed) => one(seed, &args),
        None if args.child => child(&args),
        None => Fleet::new(&args).run(),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        from: 1,
        seeds: None,
        seconds: None,
        jobs: 1,
        profile: None,
        seed: None,
        kernel: false,
        trace: false,
        child: false,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("`{text}` is not a number"));
        match word.as_str() {
            "--from" => args.from = number(value()?)?,
            "--seeds" => args.seeds = Some(number(value()?)?),
            "--seconds" => args.seconds = Some(number(value()?)?),
            "--jobs" => args.jobs = number(value()?)?.max(1),
            "--seed" => args.seed = Some(number(value()?)?),
            "--profile" => {
                let name = value()?;
                let names: Vec<_> = Profile::ALL.iter().map(|profile| profile.name()).collect();
                let profile = Profile::named(&name);
                args.profile = Some(profile.ok_or_else(|| format!("profiles are: {}", names.join(", ")))?);
            }
            "--kernel" => args.kernel = true,
            "--trace" => args.trace = true,
            "--child" => args.child = true,
            "--help" => return Err(String::new()),
            _ => return Err(format!("`{word}` is not an option of sim")),
        }
    }
    match args.profile {
        Some(profile) if args.kernel && !Profile::OF_THE_KERNEL.contains(&profile) => {
            Err(format!("{} asks of the target what the kernel does not do", profile.name()))
        }
        _ => Ok(args),
    }
}

fn scenario_of(seed: u64, args: &Args) -> Scenario {
    match args.kernel {
        true => Scenario::on_kernel(seed, args.profile.unwrap_or_else(|| Profile::of_kernel_seed(seed))),
        false => Scenario::new(seed, args.profile.unwrap_or_else(|| Profile::of_seed(seed))),
    }
}

/// One world, with everything that may help to understand it.
fn one(seed: u64, args: &Args) -> ExitCode {
    let scenario = scenario_of(seed, args);
    println!("seed {seed}: {scenario}");
    match run(&scenario, Options { trace: args.trace, every_step: !args.trace }) {
        Ok(figures) => {
            print_figures(&figures);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("BROKEN after {} us: {}", failure.at_us, failure.what);
            ExitCode::FAILURE
        }
    }
}

/// A share of the seeds, a line for each: what the parent reads.
fn child(args: &Args) -> ExitCode {
    for seed in args.from..args.from + args.seeds.unwrap_or(1) {
        let scenario = scenario_of(seed, args);
        let profile = scenario.profile.index();
        match run(&scenario, Options::default()) {
            Ok(figures) => println!("{seed} {profile} {}", figures.line()),
            Err(failure) => println!("{seed} {profile} BROKEN {}", failure.what.replace('\n', " ")),
        }
    }
    ExitCode::SUCCESS
}

/// A child at work.
struct Worker {
    child: Child,
    lines: BufReader<ChildStdout>,
    next: u64,
    until: u64,
}

/// All seeds, over children.
struct Fleet<'a> {
    args: &'a Args,
    next: u64,
    until: u64,
    start: Instant,
    sums: Vec<Figures>,
    failures: u64,
}

impl<'a> Fleet<'a> {
    fn new(args: &'a Args) -> Self {
        let seeds = args.seeds.unwrap_or(if args.seconds.is_some() { u64::MAX / 2 } else { 1000 });
        Self {
            args,
            next: args.from,
            until: args.from.saturating_add(seeds),
            start: Instant::now(),
            sums: vec![Figures::default(); Profile::COUNT],
            failures: 0,
        }
    }

    fn run(mut self) -> ExitCode {
        std::thread::scope(|scope| {
            let (lines, heard) = std::sync::mpsc::channel();
            let mut working = 0;
            for _ in 0..self.args.jobs {
                working += u64::from(self.share(scope, &lines));
            }
            while working > 0 {
                match heard.recv().expect("this end keeps a sender") {
                    Heard::Line(line) => self.take(&line),
                    Heard::Ended { died_at, until } => {
                        working -= 1;
                        if let Some(seed) = died_at {
                            self.broken(seed, "the table panicked (the message is above)");
                            if seed + 1 < until {
                                working += u64::from(self.start(scope, &lines, seed + 1, until));
                            }
                        } else {
                            working += u64::from(self.share(scope, &lines));
                        }
                    }
                }
            }
        });
        self.report()
    }

    /// Gives the next seeds to a child; false when there are none, or no time.
    fn share<'s, 'e>(
        &mut self,
        scope: &'s std::thread::Scope<'s, 'e>,
        lines: &std::sync::mpsc::Sender<Heard>,
    ) -> bool {
        let late = self.args.seconds.is_some_and(|s| self.start.elapsed() >= Duration::from_secs(s));
        if self.next >= self.until || late {
            return false;
        }
        let share = if self.args.kernel { 1 } else { SHARE };
        let (from, until) = (self.next, self.until.min(self.next + share));
        self.next = until;
        self.start(scope, lines, from, until)
    }

    fn start<'s, 'e>(
        &self,
        scope: &'s std::thread::Scope<'s, 'e>,
        lines: &std::sync::mpsc::Sender<Heard>,
        from: u64,
        until: u64,
    ) -> bool {
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
        true
    }

    fn take(&mut self, line: &str) {
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

    fn report(self) -> ExitCode {
        println!(
            "{:<9} {:>6} {:>8} {:>9} {:>8} {:>9} {:>7} {:>7} {:>7} {:>7} {:>10}",
            "profile",
            "seeds",
            "sessions",
            "packets",
            "lost",
            "requests",
            "read %",
            "sound %",
            "guessed",
            "early",
            "wait p50/99"
        );
        let mut all = Figures::default();
        for (profile, figures) in Profile::ALL.iter().zip(&self.sums) {
            all.sum(figures);
            if figures.get(Figure::Seeds) > 0 {
                print_row(profile.name(), figures);
            }
        }
        print_row("all", &all);
        print_figures(&all);
        println!("{:.1} s; {} broken", self.start.elapsed().as_secs_f64(), self.failures);
        if self.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What a listener tells of its child.
enum Heard {
    Line(String),
    /// It is over; the seed at which it died, if it did.
    Ended {
        died_at: Option<u64>,
        until: u64,
    },
}

impl Worker {
    fn listen(&mut self, lines: &std::sync::mpsc::Sender<Heard>) {
        let mut line = String::new();
        while self.lines.read_line(&mut line).is_ok_and(|n| n > 0) {
            self.next += 1;
            let _ = lines.send(Heard::Line(line.trim_end().to_owned()));
            line.clear();
        }
        let well = self.child.wait().is_ok_and(|status| status.success());
        let died_at = (!well || self.next < self.until).then_some(self.next);
        let _ = lines.send(Heard::Ended { died_at, until: self.until });
    }
}

fn print_row(name: &str, figures: &Figures) {
    let get = |figure| figures.get(figure);
    println!(
        "{name:<9} {:>6} {:>8} {:>9} {:>8} {:>9} {:>7.3} {:>7.3} {:>7} {:>7} {:>5}/{} us",
        get(Figure::Seeds),
        get(Figure::Sessions),
        get(Figure::ToTarget) + get(Figure::ToUs),
        get(Figure::Lost),
        get(Figure::Requests),
        figures.fidelity(true),
        figures.fidelity(false),
        figures.counts[Count::TurnsGuessed.index()],
        get(Figure::Early),
        figures.wait_us(500),
        figures.wait_us(990),
    );
}

fn print_figures(figures: &Figures) {
    let named = Figure::ALL.iter().map(|figure| (figure.name(), figures.get(*figure)));
    let list: Vec<_> = named.map(|(name, n)| format!("{n} {name}")).collect();
    println!("{}", list.join(", "));
    let dropped = Drop::ALL.iter().zip(figures.dropped).filter(|(_, bytes)| *bytes > 0);
    let list: Vec<_> = dropped.map(|(reason, bytes)| format!("{} {bytes}", reason.name())).collect();
    println!("bytes dropped: {}", list.join(", "));
    let counts = Count::ALL.iter().zip(figures.counts).filter(|(_, n)| *n > 0);
    let list: Vec<_> = counts.map(|(count, n)| format!("{} {n}", count.name())).collect();
    println!("counters: {}", list.join(", "));
}
