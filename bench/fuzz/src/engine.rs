//! Generated inputs by the million. Input number n of a target follows from the run's seed, the target's name, n and the
//! corpus alone, so a failure is repeated by its number; the bytes themselves are left in a file as well.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::dice::Dice;
use crate::mutate::mutate;
use crate::stream::Sum;
use crate::{TARGETS, Target, reach};

/// An input that takes longer than this hangs: the slowest takes a millisecond.
const HANGS: Duration = Duration::from_secs(20);

/// Where the corpus stands in the tree.
pub fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The target of this name.
pub fn target(name: &str) -> anyhow::Result<&'static Target> {
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .with_context(|| format!("no target is named {name}; there are {}", names()))
}

/// The corpus of a target: names and inputs, in the order of their names.
pub fn corpus(target: &Target) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let dir = corpus_dir().join(target.name);
    let listed =
        std::fs::read_dir(&dir).with_context(|| format!("reading the corpus in {}", dir.display()))?;
    let mut entries = Vec::new();
    for entry in listed {
        let path = entry?.path();
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        entries.push((name, bytes));
    }
    entries.sort();
    Ok(entries)
}

/// Writes what [`crate::seeds`] makes into the corpus.
pub fn write_seeds() -> anyhow::Result<()> {
    for target in TARGETS {
        let dir = corpus_dir().join(target.name);
        std::fs::create_dir_all(&dir)?;
        for (name, bytes) in (target.seeds)() {
            let path = dir.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

/// How much of a target a run is.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// So many inputs.
    Inputs(u64),
    /// Inputs until so many parts were counted, of a target that counts any.
    Parts(u64),
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Summary {
    /// Inputs run.
    pub inputs: u64,
    /// What they were made of, where the target counts that.
    pub parts: BTreeMap<&'static str, u64>,
    /// Time it took.
    pub took: Duration,
    /// Of that, the input that took longest.
    pub longest: Longest,
    /// Private memory at the end beyond that after the first tenth, bytes.
    pub grown: u64,
}

/// The input that took longest.
#[derive(Debug, Default)]
pub struct Longest {
    /// Its number.
    pub number: u64,
    /// Time it took.
    pub took: Duration,
    /// Of that, time at work: the rest it slept, or waited for a core or a disk of a busy machine.
    pub cpu: Duration,
}

impl Summary {
    /// The part of the amount that is done.
    fn done(&self, amount: Amount) -> (u64, u64) {
        match amount {
            Amount::Inputs(wanted) => (self.inputs, wanted),
            Amount::Parts(wanted) => (self.parts.values().sum(), wanted),
        }
    }
}

/// Runs generated inputs from number `first` on. A panic in the target is left to the caller.
pub fn run(target: &Target, seed: u64, first: u64, amount: Amount) -> anyhow::Result<Summary> {
    let corpus: Vec<Vec<u8>> = corpus(target)?.into_iter().map(|(_, bytes)| bytes).collect();
    anyhow::ensure!(!corpus.is_empty(), "the corpus of {} is empty: fuzz seeds", target.name);
    let mut name = Sum::new(target.name);
    name.number(seed);
    let begun = Instant::now();
    let mut input = Vec::new();
    let mut summary = Summary::default();
    let mut memory = None;
    reach::take_parts();
    for number in first.. {
        let (done, wanted) = summary.done(amount);
        if done >= wanted {
            break;
        }
        if done * 10 >= wanted {
            memory.get_or_insert_with(private_bytes);
        }
        let mut dice = Dice::new(name.0 ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
        input.clear();
        input.extend_from_slice(dice.pick::<Vec<u8>>(&corpus));
        mutate(&mut dice, &target.shape, &mut input, &corpus);
        under_way(target, number, &input);
        let (begun, worked) = (Instant::now(), cpu_time());
        (target.run)(&input);
        let took = begun.elapsed();
        if took > summary.longest.took {
            summary.longest = Longest { number, took, cpu: cpu_time().saturating_sub(worked) };
        }
        summary.inputs += 1;
        for (name, parts) in reach::take_parts() {
            *summary.parts.entry(name).or_default() += parts;
        }
    }
    UNDER_WAY.lock().expect("nobody panics while holding it").name = "";
    summary.took = begun.elapsed();
    summary.grown = private_bytes().saturating_sub(memory.unwrap_or(u64::MAX));
    Ok(summary)
}

/// Of this thread.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}

fn private_bytes() -> u64 {
    lab::process::private_bytes(std::process::id()).unwrap_or(0)
}

/// The input that runs now, for whoever reports that it failed.
struct UnderWay {
    name: &'static str,
    number: u64,
    input: Vec<u8>,
}

static UNDER_WAY: Mutex<UnderWay> = Mutex::new(UnderWay { name: "", number: 0, input: Vec::new() });
/// Grows with every input.
static STARTED: AtomicU64 = AtomicU64::new(0);

fn under_way(target: &Target, number: u64, input: &[u8]) {
    let mut now = UNDER_WAY.lock().expect("nobody panics while holding it");
    (now.name, now.number) = (target.name, number);
    now.input.clear();
    now.input.extend_from_slice(input);
    STARTED.fetch_add(1, Relaxed);
}

/// From now on a panic leaves its input in a file and says how to repeat it, and an input that hangs ends the process in
/// the same way. Once a process.
pub fn report_failures(found: PathBuf) {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| found);
    let found = FOUND.get().expect("just set");
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        save(found, "broke");
    }));
    std::thread::spawn(move || {
        let mut seen = u64::MAX;
        loop {
            std::thread::sleep(HANGS);
            let now = STARTED.load(Relaxed);
            if now == seen && save(found, "hangs") {
                std::process::abort();
            }
            seen = now;
        }
    });
}

/// False when no input is under way.
fn save(found: &Path, how: &str) -> bool {
    let Ok(now) = UNDER_WAY.lock() else { return false };
    if now.name.is_empty() {
        return false;
    }
    let path = found.join(format!("{}-{}", now.name, now.number));
    let saved = std::fs::create_dir_all(found).and_then(|()| std::fs::write(&path, &now.input));
    // Not `eprintln!`: this runs in a panic hook, and a closed standard error must not panic again.
    let _ = match saved {
        Ok(()) => writeln!(
            std::io::stderr(),
            "input {} of target {} {how}; it stands in {p}. Repeat: scripts/fuzz.sh --input {} {p}",
            now.number,
            now.name,
            now.name,
            p = path.display(),
        ),
        Err(error) => writeln!(
            std::io::stderr(),
            "input {} of target {} {how}; writing it to {} failed: {error}",
            now.number,
            now.name,
            path.display()
        ),
    };
    true
}
