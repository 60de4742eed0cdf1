//! What does the replay machine cost: a turn, a short connection, a byte of a long upload, a transaction?
//!
//! ```text
//! cargo run --release -p bench --bin session [-- --scale [32,1000000]] [--json]
//! ```
//!
//! One table, virtual time, and a target that answers at once with everything it was asked for; only the table's calls are
//! timed, the target's few instructions included, in CPU time. Each figure is the best of several rounds: on a busy machine
//! the others measure the neighbours. A turn is one captured request, its record out, one returned answer and whatever
//! acknowledgement that draws. With 50,000 sessions each turn finds its slot cold. A transaction's share of a packet is what turns
//! cost more when each of their two batches is a transaction than when sixteen turns are one: image, checksum, commit.
//!
//! With `--scale` only what a turn costs among many sessions, all of whose turns are the same work. Who asks after whom has nothing to
//! do with where their sessions lie: in the order in which they were opened, neighbours share lines and pages, and the
//! processor fetches the next one by itself. `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` puts everything into large pages.

use anyhow::{Context as _, Result, bail, ensure};
use bench::machine::{Machine, place};
use bench::{Client, cpu_ns};
use flow::hash::endpoint_hash;
use flow::record::flag;
use serde_json::{Map, Value};
use session::{Config, Count, Table};

const ROUNDS: usize = 9;
/// Records of one batch, which is one transaction.
const BATCH: usize = 32;
/// How often a client asks, where the work of all turns is to be the same: longer than any acknowledgement is withheld.
const EVERY_US: u64 = 4_000_000;
/// Batches that are timed together: a millisecond or two.
const PIECE: u32 = 64;
/// Turns of one transaction, where several are.
const TOGETHER: u32 = 16;

fn main() -> Result<()> {
    let (json, args) = bench::arguments();
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    let sessions = match words[..] {
        ["--scale", list] => list.split(',').map(str::parse).collect::<Result<_, _>>().context("sessions")?,
        [] | ["--scale"] => vec![32, 1_000, 10_000, 100_000, 1_000_000],
        _ => bail!("{}: there are --scale and --json", words.join(" ")),
    };
    let mut figures = Figures { json, found: Map::new() };
    if words.is_empty() {
        turns_and_bytes(&mut figures)?;
    }
    among_many(&sessions, &mut figures);
    if json {
        println!("{}", Value::Object(figures.found));
    }
    Ok(())
}

fn turns_and_bytes(figures: &mut Figures) -> Result<()> {
    if !figures.json {
        println!("{:<54} {:>9}", "", "ns each");
    }
    for sessions in [1, 1_000, 50_000] {
        let turns = 400_000 / sessions;
        let (mut rig, mut clients) = opened(sessions.max(64) * 2, sessions);
        let best = best_of(|| {
            timed(turns * sessions, || {
                (0..turns).for_each(|_| clients.iter_mut().for_each(|client| rig.turn(client)));
            })
        });
        figures.add(format!("turn, {sessions} sessions"), best);
        assert_eq!(rig.table.tally().in_flight, 0);
    }
    for sessions in [BATCH as u32, 50_000] {
        let turns = 400_000 / sessions;
        let (mut rig, mut clients) = opened(sessions * 2, sessions);
        let mut apart = || {
            timed(turns * sessions, || {
                (0..turns).for_each(|_| clients.chunks_mut(BATCH).for_each(|some| rig.turns(some)));
            })
        };
        let best = best_of(&mut apart);
        figures.add(format!("turn, {sessions} sessions, {BATCH} a batch"), best);
    }
    // Alternately, so that both meet the same neighbours.
    let (mut rig, mut clients) = opened(2 * BATCH as u32, BATCH as u32);
    let (mut apart, mut together) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 * ROUNDS {
        let turns = 4_096;
        let n = turns * BATCH as u32;
        let (ns, _) = timed(n, || (0..turns).for_each(|_| rig.turns(&mut clients)));
        apart = apart.min(ns as f64 / f64::from(n));
        let (ns, _) = timed(n, || {
            (0..turns / TOGETHER).for_each(|_| rig.turns_together(&mut clients, TOGETHER));
        });
        together = together.min(ns as f64 / f64::from(n));
    }
    // Two batches a turn, of which one in sixteen times two ends a transaction in the other case.
    let share = 1.0 - 1.0 / f64::from(2 * TOGETHER);
    figures.add("transaction, of a packet".to_owned(), (apart - together) / 2.0 / share);
    let mut rig = Machine::new(4_096);
    let mut serial = 0;
    let best = best_of(|| {
        timed(20_000, || {
            for _ in 0..20_000u32 {
                serial += 1;
                rig.short(serial);
            }
        })
    });
    figures.add("short connection (SYN, request, FIN)".to_owned(), best);
    let (mut rig, mut clients) = opened(64, 1);
    let payload = vec![b'x'; 60_000];
    let best = best_of(|| {
        timed(2_000, || {
            (0..2_000).for_each(|_| rig.captures(&mut clients[0], flag::ACK | flag::PSH, &payload));
        })
    });
    figures.add("super-frame of 60,000 bytes".to_owned(), best);
    let best = best_of(|| {
        const BEHIND: u32 = 48;
        timed(10 * BEHIND, || {
            for _ in 0..10 {
                // What comes last begins first.
                let mut late = clients[0].clone();
                clients[0].segment(late.at, 0, flag::ACK, payload.len() as u32);
                for _ in 0..BEHIND {
                    clients[0].has_read(1);
                    rig.captures(&mut clients[0], flag::ACK | flag::PSH, &payload);
                }
                rig.captures(&mut late, flag::ACK | flag::PSH, &payload);
            }
        })
    });
    figures.add("the same behind a hole, 48 in a row".to_owned(), best);
    assert!(rig.table.tally().count(Count::Delivered) > 0);
    for sessions in [5_000, 50_000, 1_000_000] {
        let (rig, clients) = opened(sessions, sessions);
        let (image, config) = (rig.table.image(), rig.table.config().clone());
        drop(rig);
        let mut best = TakenOver { first: i64::MAX, slice: i64::MAX, all: i64::MAX };
        // Arenas are never given back.
        for _ in 0..if sessions > 50_000 { 3 } else { ROUNDS } {
            let place = place(&config);
            place[..image.len()].copy_from_slice(&image);
            best.better(taken_over(place, &config, &mut clients.clone())?);
        }
        let name = format!("a dead worker's {sessions} sessions");
        figures.add(format!("{name}: until a first turn"), best.first as f64);
        figures.add(format!("{name}: longest slice"), best.slice as f64);
        figures.add(format!("{name}: all looked at"), best.all as f64);
    }
    Ok(())
}

/// A turn of one of ever more sessions.
fn among_many(sessions: &[u32], figures: &mut Figures) {
    if !figures.json {
        println!(
            "\n{:<44} {:>9} {:>10} {:>9}",
            "a client asks every 4 s; all in batches alike", "ns", "records", "ns/record"
        );
    }
    for &sessions in sessions {
        let (mut rig, mut clients) = opened(sessions + sessions / 8, sessions);
        clients.sort_by_cached_key(|client| endpoint_hash(0, &client.at));
        let batches = sessions.div_ceil(BATCH as u32);
        let step_us = EVERY_US / u64::from(batches);
        let laps = (200_000 / sessions).max(1);
        let mut records = 0;
        // Of each piece of a round, nanoseconds.
        let mut round = || {
            let (before, mut spent, mut batch) = (rig.records(), Vec::new(), 0);
            let mut start = cpu_ns();
            for _ in 0..laps {
                for some in clients.chunks_mut(BATCH) {
                    rig.turns(some);
                    rig.passes(step_us);
                    batch += 1;
                    if batch % PIECE == 0 {
                        let now = cpu_ns();
                        spent.push(now - start);
                        start = now;
                    }
                }
            }
            spent.push(cpu_ns() - start);
            records = rig.records() - before;
            spent
        };
        // The first rounds settle what connections begin with.
        for _ in 0..2 {
            let _ = round();
        }
        // A round lasts longer than neighbours leave a core alone; each of its pieces is the best of several.
        let mut best = round();
        for _ in 1..ROUNDS {
            best.iter_mut().zip(round()).for_each(|(best, spent)| *best = spent.min(*best));
        }
        let turns = f64::from(laps * sessions);
        figures.spread(sessions, best.iter().sum::<i64>() as f64 / turns, records as f64 / turns);
    }
}

/// What a successor takes, nanoseconds.
struct TakenOver {
    /// Until it has taken a request and its answer.
    first: i64,
    /// The longest turn of the loop in which it looks at what was left.
    slice: i64,
    /// All of these.
    all: i64,
}

impl TakenOver {
    fn better(&mut self, other: TakenOver) {
        self.first = self.first.min(other.first);
        self.slice = self.slice.min(other.slice);
        self.all = self.all.min(other.all);
    }
}

/// A table on the arena of one that is gone; a client goes on, then everything is looked at.
fn taken_over(place: &'static mut [u8], config: &Config, clients: &mut [Client]) -> Result<TakenOver> {
    let start = cpu_ns();
    let mut rig = Machine::on(Table::successor(place, config.clone(), false, |_| false), 2_000_000_000);
    rig.turn(&mut clients[0]);
    let first = cpu_ns() - start;
    ensure!(rig.table.tally().count(Count::SessionsStarted) == 0, "the client's session was not found");
    let (mut slice, mut all, mut more) = (0, 0, true);
    while more {
        let start = cpu_ns();
        more = rig.walks();
        let spent = cpu_ns() - start;
        slice = slice.max(spent);
        all += spent;
    }
    ensure!(rig.table.tally().open == clients.len() as u64, "a session was lost");
    Ok(TakenOver { first, slice, all })
}

/// What was found, nanoseconds by name.
struct Figures {
    json: bool,
    found: Map<String, Value>,
}

impl Figures {
    fn add(&mut self, name: String, ns: f64) {
        if !self.json {
            println!("{name:<54} {ns:>9.0}");
        }
        self.found.insert(name, ns.into());
    }

    /// A turn among so many sessions, and the records that it comes to.
    fn spread(&mut self, sessions: u32, ns: f64, records: f64) {
        let name = format!("turn of one of {sessions} sessions");
        if !self.json {
            println!("{name:<44} {ns:>9.0} {records:>10.2} {:>9.0}", ns / records);
        }
        self.found.insert(name, serde_json::json!({"ns": ns, "records": records}));
    }
}

/// A machine for so many sessions with so many connections open.
fn opened(limit: u32, sessions: u32) -> (Machine, Vec<Client>) {
    let mut rig = Machine::new(limit);
    let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
    clients.iter_mut().for_each(|client| rig.open(client));
    (rig, clients)
}

/// CPU time of `n` things.
fn timed(n: u32, things: impl FnOnce()) -> (i64, u32) {
    let start = cpu_ns();
    things();
    (cpu_ns() - start, n)
}

fn best_of(mut round: impl FnMut() -> (i64, u32)) -> f64 {
    (0..ROUNDS)
        .map(|_| {
            let (ns, n) = round();
            ns as f64 / f64::from(n)
        })
        .fold(f64::INFINITY, f64::min)
}
