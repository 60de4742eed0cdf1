//! `sim`: runs worlds and says what came of them: one looked at closely, or many over child processes (`fleet`).

use std::process::ExitCode;

use lab::user::become_root_in_user_namespace;
use sim::{Options, Profile, Scenario, run_within};

use crate::fleet::Fleet;

mod fleet;
mod tables;

const USAGE: &str = "\
usage: sim [--seeds N] [--from K] [--seconds S] [--jobs J] [--profile P]
       sim --seed N [--profile P] [--trace]
       either with --kernel

  --seeds N     worlds to run (default 1000; with --seconds: as many as the time allows)
  --from K      first seed (default 1)
  --seconds S   begin no more worlds after so many seconds
  --jobs J      processes at once (default 1; with --kernel, whose worlds mostly wait: 8 for each processor)
  --profile P   one family of worlds instead of a mixture; a list is printed by --profile help
  --seed N      one world, looked at closely
  --kernel      the kernel's own TCP as the target, in real time; needs root or user namespaces, and /dev/net/tun
  --trace       with --seed: print every packet
";

/// How a child says that the world after its last line hangs.
const HANGS: u8 = 4;

struct Args {
    from: u64,
    seeds: Option<u64>,
    seconds: Option<u64>,
    jobs: Option<u64>,
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
        jobs: None,
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
            "--jobs" => args.jobs = Some(number(value()?)?.max(1)),
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
    let options = Options { trace: args.trace, every_step: !args.trace };
    match run_within(scenario.most_wall(), &scenario, options) {
        Some(Ok(figures)) => {
            tables::print_figures(&figures);
            ExitCode::SUCCESS
        }
        Some(Err(failure)) => {
            println!("BROKEN after {} us: {}", failure.at_us, failure.what);
            ExitCode::FAILURE
        }
        None => {
            println!("BROKEN: {}", hangs(&scenario));
            ExitCode::FAILURE
        }
    }
}

/// A share of the seeds, a line for each: what the parent reads.
fn child(args: &Args) -> ExitCode {
    for seed in args.from..args.from + args.seeds.unwrap_or(1) {
        let scenario = scenario_of(seed, args);
        let profile = scenario.profile.index();
        match run_within(scenario.most_wall(), &scenario, Options::default()) {
            Some(Ok(figures)) => println!("{seed} {profile} {}", figures.line()),
            Some(Err(failure)) => println!("{seed} {profile} BROKEN {}", failure.what.replace('\n', " ")),
            None => return ExitCode::from(HANGS),
        }
    }
    ExitCode::SUCCESS
}

fn hangs(scenario: &Scenario) -> String {
    format!("it hangs: nothing came of it within {} s on the wall", scenario.most_wall().as_secs())
}
