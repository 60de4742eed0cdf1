//! Any bytes at all, by the million: `scripts/fuzz.sh` calls this.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use fuzzing::engine::Amount;
use fuzzing::{TARGETS, engine};

/// Generated inputs at every place where bytes come in.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Writes the valid inputs of every kind into the corpus.
    Seeds,
    /// Runs generated inputs.
    Run {
        /// Only these targets; all when none is named.
        targets: Vec<String>,
        /// How many inputs for each target.
        #[arg(long, default_value_t = 1_000_000)]
        inputs: u64,
        /// Instead: inputs until they held so many frames, for a target that counts them, and no more memory than after the first
        /// tenth of them.
        #[arg(long, conflicts_with = "inputs")]
        frames: Option<u64>,
        /// Another seed is other inputs.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of the first input.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Where an input that breaks something is left.
        #[arg(long, default_value = "target/fuzz/found")]
        found: PathBuf,
    },
    /// Runs one input from a file.
    Input {
        /// The target.
        target: String,
        /// The file.
        file: PathBuf,
    },
}

/// Private memory may differ by so much between two looks, bytes.
const GROWTH: u64 = 2 << 20;

fn main() -> ExitCode {
    match act(Options::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(what: What) -> anyhow::Result<()> {
    match what {
        What::Seeds => engine::write_seeds(),
        What::Input { target, file } => {
            let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            (engine::target(&target)?.run)(&bytes);
            println!("{target}: {} bytes, nothing broke", bytes.len());
            Ok(())
        }
        What::Run { targets, inputs, frames, seed, first, found } => {
            engine::report_failures(found);
            let chosen = match targets.as_slice() {
                [] => TARGETS.iter().collect(),
                names => names.iter().map(|name| engine::target(name)).collect::<Result<Vec<_>, _>>()?,
            };
            for target in chosen {
                let amount = frames.map_or(Amount::Inputs(inputs), Amount::Parts);
                let done = engine::run(target, seed, first, amount)?;
                let each = done.took.as_secs_f64() * 1e6 / done.inputs.max(1) as f64;
                println!(
                    "{:<9} {:>9} inputs from seed {seed}, nothing broke; {:.1} s, {each:.1} us each",
                    target.name,
                    done.inputs,
                    done.took.as_secs_f64()
                );
                if !done.parts.is_empty() {
                    let parts: Vec<_> = done.parts.iter().map(|(name, n)| format!("{n} {name}")).collect();
                    println!(
                        "          {} frames ({}); input {} took longest, {:.1} ms ({:.1} at work); {} KiB of memory more than after a tenth",
                        done.parts.values().sum::<u64>(),
                        parts.join(", "),
                        done.longest.number,
                        done.longest.took.as_secs_f64() * 1e3,
                        done.longest.cpu.as_secs_f64() * 1e3,
                        done.grown / 1_024
                    );
                }
                ensure!(frames.is_none() || done.grown <= GROWTH, "memory grows by {} bytes", done.grown);
            }
            Ok(())
        }
    }
}
