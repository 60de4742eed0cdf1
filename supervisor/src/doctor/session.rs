//! `tcptwin doctor ADDRESS:PORT`: the sessions of one client of a run that goes on, and its diary, read from the region's file
//! beside the workers, who notice nothing of it; and those that failed last.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use session::diary::{Diaries, Told};
use session::glance::{self, Glance, Slots};
use session::{Diary, Limits};
use shm::Region;
use topology::Plan;

use super::Visit;
use super::finding::{Fault, Finding, Host};
use super::running;
use crate::words;

/// Slots read at once.
const BATCH: u32 = 256;
/// Times that a slot is read again which changed meanwhile.
const TRIES: u32 = 8;
/// Sessions told of at most: copies of one flow, and flows of one client's port.
const TOLD: usize = 16;

/// Notes each session of a client's endpoint, real or replayed, for the JSON object too.
///
/// # Errors
/// The region cannot be read.
pub(crate) fn check(visit: &mut Visit<'_>, region: &Region, client: SocketAddr) -> io::Result<Value> {
    let plan = visit.plan;
    let is_its = |one: &Glance| one.client == client || one.replayed == Some(client);
    let now_us = shm::monotonic_us();
    let mut found: Vec<Glance> = Vec::new();
    for shard in Shard::all(plan, region)? {
        found.extend(shard.present(now_us, is_its)?);
        found.extend(shard.failed(now_us).into_iter().filter(is_its));
    }
    found.truncate(TOLD);
    if found.is_empty() {
        visit.book.note(
            Finding::warning(Host::Run, client.to_string(), Fault::SessionsFail, "no session of this client now")
                .because("It has ended, was not sampled (-r), is not captured, or has another address here. The reasons of all that failed are told by the command without an address.")
                .mend(visit.this_host(), format!("tcptwin doctor --name {}", plan.name)),
        );
    }
    for one in &found {
        visit.book.note(finding(plan, one));
    }
    Ok(json!({ "sessions": found.iter().map(object).collect::<Vec<_>>() }))
}

/// The sessions that failed last, the latest first.
///
/// # Errors
/// The region cannot be read.
pub(crate) fn failed_last(plan: &Plan, region: &Region) -> io::Result<Vec<Glance>> {
    let now_us = shm::monotonic_us();
    let shards = Shard::all(plan, region)?;
    let mut all: Vec<Glance> = shards.iter().flat_map(|shard| shard.failed(now_us)).collect();
    all.sort_by_key(|one| one.over_us);
    all.truncate(TOLD);
    Ok(all)
}

/// What one shard keeps of its sessions, for a reader beside it.
struct Shard {
    file: File,
    /// Where its arena begins.
    begin: u64,
    limits: Limits,
    /// None before a worker has begun.
    diaries: Option<Diaries>,
}

impl Shard {
    fn all(plan: &Plan, region: &Region) -> io::Result<Vec<Self>> {
        let limits = Limits {
            sessions: plan.limits.sessions_per_shard,
            chunks: plan.limits.chunks_per_shard,
            held_per_session: plan.limits.held_per_session,
        };
        let mut diaries = vec![0; Diary::bytes(limits.sessions) as usize];
        let shard = |shard| {
            let (file, begin) = (File::open(shm::path(&plan.name))?, region.arena_at(shard));
            file.read_exact_at(&mut diaries, begin + shard_worker::diary_at(plan))?;
            Ok(Self { file, begin, limits, diaries: Diaries::of(&diaries, limits.sessions) })
        };
        (0..plan.shards).map(shard).collect()
    }

    fn failed(&self, now_us: u64) -> Vec<Glance> {
        self.diaries.as_ref().map_or_else(Vec::new, |diaries| glance::past(diaries, now_us))
    }

    /// All sessions that are there and of which `is_wanted`.
    fn present(&self, now_us: u64, is_wanted: impl Fn(&Glance) -> bool) -> io::Result<Vec<Glance>> {
        let mut head = vec![0; glance::HEAD];
        self.file.read_exact_at(&mut head, self.begin)?;
        let Some(Slots { at, each, used }) = glance::slots(&head, &self.limits) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut batch = vec![0; each * BATCH as usize];
        for first in (0..used).step_by(BATCH as usize) {
            let count = BATCH.min(used - first) as usize;
            let place = |index: usize| self.begin + at + (first as usize + index) as u64 * each as u64;
            self.file.read_exact_at(&mut batch[..count * each], place(0))?;
            for index in 0..count {
                let bytes = &mut batch[index * each..(index + 1) * each];
                let look = |bytes: &[u8]| {
                    glance::present(bytes, first + index as u32, self.diaries.as_ref(), now_us)
                };
                let mut read = look(bytes);
                for _ in 0..TRIES {
                    if read.is_ok() {
                        break;
                    }
                    self.file.read_exact_at(bytes, place(index))?;
                    read = look(bytes);
                }
                found.extend(read.ok().flatten().filter(&is_wanted));
            }
        }
        Ok(found)
    }
}

fn finding(plan: &Plan, one: &Glance) -> Finding {
    let target = plan
        .targets
        .get(usize::from(one.target))
        .map_or_else(|| "?".to_owned(), |target| target.addr.to_string());
    let (copy, copies) = one.copy;
    let copy = if copies > 1 { format!(", copy {} of {copies}", copy + 1) } else { String::new() };
    // A session without a connection has no endpoint.
    let replayed = one.replayed.map_or_else(String::new, |replayed| format!("as {replayed} "));
    let phase = match one.over_us {
        Some(over_us) => format!("over since {}", ago(over_us)),
        None => one.phase.to_owned(),
    };
    let seen = format!("{replayed}-> {target}{copy}: {phase}");
    let stuck = one.failure.is_some() || one.backoff >= 2;
    let check = one.client.to_string();
    let failure = one.failure.map(|why| format!("It failed: {}.", running::told(why)));
    let facts = match one.over_us {
        Some(_) => None,
        None => Some(format!("{}.", one.facts.join("; "))),
    };
    let told = failure.into_iter().chain(facts).collect::<Vec<_>>().join(" ");
    let finding = match stuck {
        true => Finding::failed(Host::Run, check, Fault::SessionsFail, seen).because(told),
        false => Finding { wrong: told, ..Finding::ok(Host::Run, check, seen) },
    };
    finding.after(one.steps.iter().map(line))
}

/// One step, in columns.
fn line(step: &Told) -> String {
    format!("{:>14} ago  {}", ago(step.ago_us), step.words())
}

fn ago(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{:.3} ms", us as f64 / 1e3),
        1_000_000..100_000_000 => format!("{:.3} s", us as f64 / 1e6),
        _ => words::elapsed(Duration::from_micros(us)),
    }
}

/// For the JSON object.
pub(crate) fn object(one: &Glance) -> Value {
    let step = |step: &Told| json!({"ago_us": step.ago_us, "step": step.step.name(), "number": step.number, "words": step.words()});
    json!({
        "client": one.client.to_string(), "replayed": one.replayed.map(|replayed| replayed.to_string()),
        "target": one.target, "phase": if one.over_us.is_some() { "over" } else { one.phase },
        "over_us": one.over_us, "copy": one.copy.0, "copies": one.copy.1, "in_flight": one.in_flight,
        "timeouts": one.backoff, "failure": one.failure, "facts": one.facts,
        "steps": one.steps.iter().map(step).collect::<Vec<_>>(),
    })
}
