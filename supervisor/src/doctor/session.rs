//! `tcptwin doctor ADDRESS:PORT`: the sessions of one client of a run that goes on, read from the region's file beside the
//! workers, who notice nothing of it.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;

use serde_json::{Value, json};
use session::glance::{self, Glance, Slots};
use shm::Region;
use topology::Plan;

use super::Visit;
use super::finding::{Fault, Finding, Host};

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
    let file = File::open(shm::path(&plan.name))?;
    let now_us = shm::monotonic_us();
    let mut found: Vec<Glance> = Vec::new();
    for shard in 0..plan.shards {
        found.extend(of_arena(plan, &file, region.arena_at(shard), client, now_us)?);
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

fn of_arena(
    plan: &Plan,
    file: &File,
    begin: u64,
    client: SocketAddr,
    now_us: u64,
) -> io::Result<Vec<Glance>> {
    let limits = session::Limits {
        sessions: plan.limits.sessions_per_shard,
        chunks: plan.limits.chunks_per_shard,
        held_per_session: plan.limits.held_per_session,
    };
    let mut head = vec![0; glance::HEAD];
    file.read_exact_at(&mut head, begin)?;
    let Some(Slots { at, each, used }) = glance::slots(&head, &limits) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut batch = vec![0; each * BATCH as usize];
    for first in (0..used).step_by(BATCH as usize) {
        let count = BATCH.min(used - first) as usize;
        let place = |index: usize| begin + at + (first as usize + index) as u64 * each as u64;
        file.read_exact_at(&mut batch[..count * each], place(0))?;
        for index in 0..count {
            let bytes = &mut batch[index * each..(index + 1) * each];
            let mut read = glance::glance(bytes, now_us);
            for _ in 0..TRIES {
                if read.is_ok() {
                    break;
                }
                file.read_exact_at(bytes, place(index))?;
                read = glance::glance(bytes, now_us);
            }
            found.extend(read.ok().flatten().filter(|one| one.client == client || one.replayed == client));
        }
    }
    Ok(found)
}

fn finding(plan: &Plan, one: &Glance) -> Finding {
    let target = plan
        .targets
        .get(usize::from(one.target))
        .map_or_else(|| "?".to_owned(), |target| target.addr.to_string());
    let (copy, copies) = one.copy;
    let copy = if copies > 1 { format!(", copy {} of {copies}", copy + 1) } else { String::new() };
    let seen = format!("as {} -> {target}{copy}: {}", one.replayed, one.phase);
    let failure = one.failure.map_or_else(String::new, |why| format!(" It {}.", why.replace('_', " ")));
    let told = format!("{}.{failure}", one.facts.join("; "));
    let stuck = one.failure.is_some() || one.backoff >= 2;
    let check = one.client.to_string();
    match stuck {
        true => Finding::failed(Host::Run, check, Fault::SessionsFail, seen).because(told),
        false => Finding { wrong: told, ..Finding::ok(Host::Run, check, seen) },
    }
}

fn object(one: &Glance) -> Value {
    json!({
        "client": one.client.to_string(), "replayed": one.replayed.to_string(), "target": one.target,
        "phase": one.phase, "copy": one.copy.0, "copies": one.copy.1, "in_flight": one.in_flight,
        "timeouts": one.backoff, "failure": one.failure, "steps": one.facts,
    })
}
