//! Random bytes of the region are flipped under load: what a crashed or hostile process of the same user could have
//! written. Who reads foreign bytes (capturer, injector, supervisor) must not die of them, nothing may hang for good or
//! leave for anybody but the target, and fresh flows must be replayed afterwards. A shard worker whose own arena was hit
//! may die and be started again. Now and then capturer or injector is killed, so that their successors have to begin with
//! what stands there.
//!
//! Left out are header and plan, which are written once and read at a start, and the control words: a flipped halt word is
//! an order to halt.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Fidelity, Instance};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shm::{Link, Part, Region};
use topology::Process;

use crate::args::Args;
use crate::random::Random;
use crate::stage::{FRESH, Stage};
use crate::verdict::Verdict;
use crate::watch::roles_of;

/// The region's file, and what stands where in it.
struct Victim {
    file: File,
    parts: Vec<(Part, Range<u64>)>,
    random: Random,
    flipped: BTreeMap<&'static str, u64>,
}

/// Which processes work, and how often each was replaced.
struct Census {
    supervisor: u32,
    pids: BTreeMap<String, u32>,
    replaced: BTreeMap<String, u64>,
    /// Deaths that we asked for.
    killed: BTreeMap<String, u64>,
}

/// Flips between two looks at the clock and at the processes.
const BURST: u64 = 64;
const LOOK: Duration = Duration::from_millis(50);
/// Between two questions to the supervisor.
const QUESTION: Duration = Duration::from_secs(1);
/// Between two kills: less than 20 a minute, which would end the run.
const KILL: Duration = Duration::from_secs(6);
/// Half of the flips in a ring go where its records are, half of those in an arena to its begin, where the slots are.
const NEAR: u64 = 16 * 1024;
const ARENA_BEGIN: u64 = 4 << 20;
/// Time for what was damaged to be noticed.
const CALM: Duration = Duration::from_secs(5);
/// Rounds of fresh flows: a slot that was damaged in its sleep may still cost a worker in the first.
pub(crate) const ROUNDS: u64 = 3;

/// Flips `flips` bytes, evenly over the time until `until`, and judges what the processes made of it.
pub(crate) fn campaign(
    args: &Args,
    stage: &Stage,
    run: &mut Instance,
    flips: u64,
    until: Instant,
    verdict: &mut Verdict,
) -> Result<()> {
    let region = Region::attach(stage.name())?;
    let path = shm::path(stage.name());
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let random = Random::new(args.seed);
    let mut victim = Victim { file, parts: region.parts(), random, flipped: BTreeMap::new() };
    let mut census = Census::new(run.pid());
    let (begin, mut done) = (Instant::now(), 0);
    let all = until.saturating_duration_since(begin).as_secs_f64();
    let (mut next_look, mut next_question, mut next_kill) = (begin, begin, begin + KILL);
    while done < flips && !run.has_ended() {
        let due = (begin.elapsed().as_secs_f64() / all * flips as f64) as u64;
        while done < due.min(flips) {
            for _ in 0..BURST.min(flips - done) {
                victim.flip()?;
                done += 1;
            }
        }
        if Instant::now() >= next_look {
            next_look = Instant::now() + LOOK;
            census.take();
        }
        if Instant::now() >= next_question {
            next_question = Instant::now() + QUESTION;
            // It reads every counter of every role.
            run.stats().with_context(|| {
                format!("the supervisor is asked for its figures; it said: {}", run.stderr())
            })?;
        }
        if Instant::now() >= next_kill {
            next_kill = Instant::now() + KILL;
            let role = victim.random.of(&[Process::Capturer, Process::Injector]);
            census.kill(role.map_or("", Process::kind))?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let calm = Instant::now() + CALM;
    while Instant::now() < calm && !run.has_ended() {
        std::thread::sleep(LOOK);
        census.take();
    }
    let words: Vec<String> = victim.flipped.iter().map(|(part, n)| format!("{part} {n}")).collect();
    println!("flips      {done}: {}", words.join(", "));
    if run.has_ended() {
        verdict.broken(format!("the run ended after {done} flips: {}", run.stderr()));
    }
    let words = |of: &BTreeMap<String, u64>| {
        let words: Vec<String> = of.iter().map(|(role, n)| format!("{role} {n}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    println!("restarts   {}; of them killed by us: {}", words(&census.replaced), words(&census.killed));
    for (role, n) in census.replaced.iter().filter(|(role, _)| !role.starts_with("shard")) {
        let asked_for = census.killed.get(role).copied().unwrap_or(0);
        if *n > asked_for {
            verdict.broken(format!(
                "{role}, which only reads foreign bytes, died {n} times, killed {asked_for}"
            ));
        }
    }
    Ok(())
}

/// Fresh flows are replayed, every one.
pub(crate) fn fresh_flows(verdict: &mut Verdict, stage: &Stage, first_id: u64) -> Result<()> {
    let mut last = Fidelity::default();
    for round in 0..ROUNDS {
        let ids = first_id + round * FRESH..first_id + (round + 1) * FRESH;
        let report = stage.fresh_flows(ids.start)?;
        verdict.load(&report);
        let arrived = || ids.clone().all(|id| stage.target.times(id) >= stage.online.times(id));
        // Not an error yet: the comparison says what is missing.
        let _ = lab::wait::until("fresh flows arrive", Duration::from_secs(20), arrived);
        last = Fidelity::of_ids(&stage.online, &stage.target, 1, ids);
        println!("fresh      round {}: {} of {} flows arrived", round + 1, last.equal, last.ids);
        if last.is_exact() {
            return Ok(());
        }
    }
    verdict.broken(format!("fresh flows after the flips: {last}"));
    Ok(())
}

impl Victim {
    /// Flips bits of one byte.
    fn flip(&mut self) -> Result<()> {
        let Some(kind) = self.random.of(&KINDS) else { return Ok(()) };
        let of_kind: Vec<usize> = (0..self.parts.len()).filter(|&i| name(&self.parts[i].0) == kind).collect();
        let Some(index) = self.random.of(&of_kind) else { return Ok(()) };
        let (part, span) = self.parts[index].clone();
        let offset = match part {
            Part::Ring(link) if self.random.below(2) == 0 => self.near_the_records(link, &span)?,
            Part::Arena(_) if self.random.below(2) == 0 => {
                self.random.below(ARENA_BEGIN.min(span.end - span.start))
            }
            _ => self.random.below(span.end - span.start),
        };
        let at = span.start + offset;
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at)?;
        byte[0] ^= self.random.between(1, 255) as u8;
        self.file.write_all_at(&byte, at)?;
        *self.flipped.entry(kind).or_default() += 1;
        Ok(())
    }

    /// An offset just before or behind a ring's tail.
    fn near_the_records(&mut self, link: Link, span: &Range<u64>) -> Result<u64> {
        let indices = self.parts.iter().find(|(part, _)| *part == Part::Indices(link));
        let (_, indices) = indices.context("every ring has indices")?;
        let mut tail = [0; 8];
        self.file.read_exact_at(&mut tail, indices.start)?;
        let at = u64::from_ne_bytes(tail).wrapping_sub(NEAR / 2).wrapping_add(self.random.below(NEAR));
        Ok(at % (span.end - span.start))
    }
}

/// How often each kind is hit: rings and arenas, then indices, then the rest.
const KINDS: [&str; 13] = [
    "ring",
    "ring",
    "ring",
    "ring",
    "arena",
    "arena",
    "arena",
    "indices",
    "indices",
    "heartbeat",
    "doorbell",
    "counters",
    "journal",
];

const fn name(part: &Part) -> &'static str {
    match part {
        Part::Heartbeat => "heartbeat",
        Part::Doorbell => "doorbell",
        Part::Counters => "counters",
        Part::Journal => "journal",
        Part::Indices(_) => "indices",
        Part::Ring(_) => "ring",
        Part::Arena(_) => "arena",
    }
}

impl Census {
    fn new(supervisor: u32) -> Self {
        let (pids, replaced, killed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut census = Self { supervisor, pids, replaced, killed };
        census.take();
        census
    }

    fn kill(&mut self, role: &str) -> Result<()> {
        self.take();
        if let Some(pid) = self.pids.get(role) {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).context("killing a role")?;
            *self.killed.entry(role.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    fn take(&mut self) {
        for (kind, number, pid) in roles_of(self.supervisor) {
            let role = if kind == Process::Shard(0).kind() { format!("{kind} {number}") } else { kind };
            if let Some(before) = self.pids.insert(role.clone(), pid)
                && before != pid
            {
                *self.replaced.entry(role).or_default() += 1;
            }
        }
    }
}
