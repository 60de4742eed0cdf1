//! How many instructions does each part of the packet path take? What can be repeated on any machine, kept as a baseline.
//!
//! ```text
//! cargo run --release -p bench --bin instructions [-- --json]                         a table
//! cargo run --release -p bench --bin instructions -- --scale [--json]                 with shards and sessions added
//! cargo run --release -p bench --bin instructions -- --check bench/instructions.json  fails on what became dearer
//! cargo run --release -p bench --bin instructions -- --write bench/instructions.json  the new baseline
//! ```
//!
//! Each part is run in this program under callgrind, with n items and with 2 n; the difference is theirs alone. Needs valgrind.
//! A part that takes more than 5 % above the baseline fails the check; of one that takes as much less it is said that the
//! baseline should be written anew, so that the gain is kept.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use bench::machine::Machine;
use bench::{Client, REQUEST};
use capturer::dispatch::Dispatcher;
use capturer::source::Frame;
use flow::emit::{MAX_HEADERS, emit};
use flow::record::{flag, opt};
use flow::{Endpoint, Returned, Seq, TcpFields};
use returns::{Hello, Link as Channel, Message, Mode, Policy, Welcome};
use shm::{Link, Region, Spec, ring};
use topology::Plan;
use topology::plan::Rings;

/// Share of the baseline that a part may differ by: compilers and libraries of neighbouring versions differ by less.
const TOLERANCE: f64 = 0.05;
/// Longer than an acknowledgement is withheld.
const PAUSE_US: u64 = 50_000;
/// Records of one batch.
const BATCH: usize = 32;

/// A part: its name, the items of a short run, and what does so many, among so many shards or sessions.
struct Part {
    name: &'static str,
    items: u32,
    among: u32,
    run: fn(u32, u32),
}

impl Part {
    const fn new(name: &'static str, items: u32, among: u32, run: fn(u32, u32)) -> Self {
        Self { name, items, among, run }
    }
}

const PARTS: &[Part] = &[
    Part::new("ring: a record of 296 bytes in and out", 20_000, 1, through_ring),
    Part::new("capture: a frame of a 200-byte request to its shard", 8_000, 2, dispatch),
    Part::new("inject: headers and checksum of 200 bytes", 20_000, 1, headers),
    Part::new("return: a header through the plain channel", 20_000, 1, returned),
    Part::new("return: a header through the encrypted channel", 20_000, 1, returned_encrypted),
    Part::new("machine: a turn, 10 sessions", 10_000, 10, turns),
    Part::new("machine: a turn, 10,000 sessions", 20_000, 10_000, turns),
    Part::new("machine: a connection of one turn", 4_000, 1, connections),
    Part::new("machine: a super-frame of 60,000 bytes", 200, 1, super_frames),
];

/// What must not grow with shards or sessions. Here a client thinks for longer than an acknowledgement is withheld, however few
/// there are, so that all turns are the same work; in batches of 32 but for the first.
const SCALE: &[Part] = &[
    Part::new("a frame to one of 1 shard", 8_000, 1, dispatch),
    Part::new("a frame to one of 2 shards", 8_000, 2, dispatch),
    Part::new("a frame to one of 4 shards", 8_000, 4, dispatch),
    Part::new("a frame to one of 8 shards", 8_000, 8, dispatch),
    Part::new("a turn of one of 32 sessions", 10_240, 32, spread),
    Part::new("a turn of one of 1,000 sessions", 10_240, 1_000, spread),
    Part::new("a turn of one of 100,000 sessions", 10_240, 100_000, spread),
    Part::new("a turn of one of 1,000,000 sessions", 10_240, 1_000_000, spread),
];

fn main() -> Result<()> {
    let (json, args) = bench::arguments();
    let show = |baseline: &Figures, measured: &Figures| match json {
        true => println!("{}", serde_json::json!(measured)),
        false => table(baseline, measured),
    };
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(&BTreeMap::new(), &measure(PARTS)?),
        ["--scale"] => show(&BTreeMap::new(), &measure(SCALE)?),
        ["--check", file] => {
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
            let baseline = serde_json::from_str(&text).with_context(|| format!("reading {file}"))?;
            let measured = measure(PARTS)?;
            show(&baseline, &measured);
            check(&baseline, &measured).with_context(|| {
                format!("if that is meant: cargo run --release -p bench --bin instructions -- --write {file}")
            })?;
        }
        ["--write", file] => {
            let measured = measure(PARTS)?;
            show(&BTreeMap::new(), &measured);
            let text = serde_json::to_string_pretty(&measured)? + "\n";
            std::fs::write(file, text).with_context(|| format!("writing {file}"))?;
        }
        ["--run", name, items] => {
            let part = PARTS.iter().chain(SCALE).find(|part| part.name == name).context("no such part")?;
            (part.run)(part.among, items.parse()?);
        }
        _ => bail!("there are --scale, --check FILE, --write FILE, and --json with each"),
    }
    Ok(())
}

/// Instructions an item, by the part's name.
type Figures = BTreeMap<String, u64>;

fn measure(parts: &[Part]) -> Result<Figures> {
    parts
        .iter()
        .map(|part| {
            let (short, long) = (count(part, part.items)?, count(part, 2 * part.items)?);
            Ok((part.name.to_owned(), long.saturating_sub(short) / u64::from(part.items)))
        })
        .collect()
}

/// Instructions of one run under callgrind, all of its start included.
fn count(part: &Part, items: u32) -> Result<u64> {
    let program = std::env::current_exe().context("finding this program")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--run", part.name, &items.to_string()])
        .output()
        .context("starting valgrind (apt-get install valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", part.name);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.with_context(|| format!("callgrind told no count: {said}"))?;
    number.trim().parse().with_context(|| format!("callgrind's count: {number}"))
}

fn table(baseline: &Figures, measured: &Figures) {
    println!("{:<54} {:>9} {:>12}", "instructions an item", "baseline", "now");
    for (name, now) in measured {
        let before = baseline.get(name).map_or("-".to_owned(), u64::to_string);
        println!("{name:<54} {before:>9} {now:>12}");
    }
}

fn check(baseline: &Figures, measured: &Figures) -> Result<()> {
    let beyond = |sign: f64| -> Vec<_> {
        let share = |name: &String, now: u64| {
            let before = *baseline.get(name).unwrap_or(&0) as f64;
            sign * (now as f64 - before) > before * TOLERANCE
        };
        measured.iter().filter(|(name, now)| share(name, **now)).map(|(name, _)| name).collect()
    };
    let (dearer, cheaper) = (beyond(1.0), beyond(-1.0));
    if !cheaper.is_empty() {
        println!("cheaper by more than {} %, so write the baseline anew: {cheaper:?}", TOLERANCE * 100.0);
    }
    ensure!(dearer.is_empty(), "dearer by more than {} %: {dearer:?}", TOLERANCE * 100.0);
    let gone: Vec<_> = baseline.keys().filter(|name| !measured.contains_key(*name)).collect();
    ensure!(gone.is_empty(), "in the baseline, but not measured: {gone:?}");
    Ok(())
}

fn through_ring(_: u32, items: u32) {
    let (mut producer, mut consumer) = ring::heap(1 << 20);
    let record = [7; 296];
    for _ in 0..items as usize / BATCH {
        (0..BATCH).for_each(|_| assert!(producer.push(black_box(&record))));
        producer.publish();
        let batch = consumer.peek_batch(BATCH);
        batch.iter().for_each(|record| assert_eq!(black_box(record).len(), 296));
        batch.release();
    }
}

fn dispatch(shards: u32, items: u32) {
    let online = endpoint("10.0.0.9:8080");
    let plan = Plan {
        shards: shards as u16,
        rings: Rings { capture: 1 << 20, ..Plan::small(&[]).rings },
        ..Plan::small(&["8080-10.0.3.2:8080"])
    };
    let name = format!("bench-instructions-{}", std::process::id());
    let Rings { capture: capture_ring, inject: inject_ring, returns: return_ring } = plan.rings;
    let spec = Spec { shards: plan.shards, capture_ring, inject_ring, return_ring, arena: 4_096 };
    let region = Region::create(&name, &spec, &plan.to_bytes(), 1).expect("a few MiB");
    Region::remove(&name).expect("it was just made");
    let mut shards: Vec<_> = (0..plan.shards).map(|shard| region.consumer(Link::Capture(shard))).collect();
    let mut dispatcher = Dispatcher::new(region, &plan);
    let packets: Vec<_> = (0..64).map(|n| Client::new(n).request_packet(online)).collect();
    for _ in 0..items as usize / packets.len() {
        for packet in &packets {
            let frame = Frame::plain(packet, packet.len() as u32, 1);
            dispatcher.frame(black_box(&frame), 1);
        }
        dispatcher.commit(|_| ());
        for shard in &mut shards {
            while shard.next().is_some() {}
            shard.release();
        }
    }
}

fn headers(_: u32, items: u32) {
    let (client, target) = (endpoint("198.18.0.1:40001"), endpoint("10.0.3.2:8080"));
    let payload = [b'r'; REQUEST as usize];
    let mut buffer = [0; MAX_HEADERS];
    for n in 0..items {
        let tcp =
            TcpFields { seq: Seq(n), flags: flag::ACK, options: opt::TIMESTAMPS, ..TcpFields::default() };
        black_box(emit(&mut buffer, client, target, black_box(&tcp), &[&payload], n as u16));
    }
}

fn returned(_: u32, items: u32) {
    through_channel(Policy::PlainLocal, items);
}

fn returned_encrypted(_: u32, items: u32) {
    through_channel(Policy::Keyed([7; 32]), items);
}

/// Headers from intercept's end of the return channel to the receiver's, in batches.
fn through_channel(policy: Policy, items: u32) {
    let (client, target) = (endpoint("198.18.0.1:40001"), endpoint("10.0.3.2:8080"));
    let peer = SocketAddr::from(([127, 0, 0, 1], 36_524));
    let hello = Hello {
        software: String::new(),
        instance: 1,
        incarnation: 1,
        name: String::new(),
        mode: Mode::Ranges(vec!["198.18.0.0/15".parse().expect("a range")]),
        targets: vec![target],
        last: None,
    };
    let mut receiver = Channel::dialer(policy, &hello, peer).expect("random numbers");
    let mut intercept = Channel::listener(policy, peer);
    for _ in 0..2 {
        carry(&mut receiver, &mut intercept);
        let _ = intercept.next().expect("the ends agree");
        carry(&mut intercept, &mut receiver);
        assert!(receiver.next().expect("the ends agree").is_none());
    }
    assert!(intercept.outgoing().welcome(&Welcome { software: String::new(), epoch: 1, next: 0 }));
    let mut seen = 0;
    for n in 0..items {
        let tcp =
            TcpFields { seq: Seq(n), flags: flag::ACK, options: opt::TIMESTAMPS, ..TcpFields::default() };
        let record =
            Returned { client, target, tcp, position: n.into(), payload_len: 600, ..Returned::default() };
        assert!(intercept.outgoing().record(black_box(&record)));
        if n as usize % BATCH == BATCH - 1 {
            intercept.outgoing().flush();
            carry(&mut intercept, &mut receiver);
            while let Some(message) = receiver.next().expect("sound bytes") {
                let Message::Batch(batch) = message else { continue };
                seen += batch.records().filter(|record| black_box(record).is_ok()).count();
            }
        }
    }
    assert_eq!(seen, items as usize / BATCH * BATCH);
}

fn carry(from: &mut Channel, to: &mut Channel) {
    let n = from.pending().len();
    to.receive_buffer()[..n].copy_from_slice(from.pending());
    to.received(n);
    from.sent(n);
}

fn turns(sessions: u32, items: u32) {
    let mut machine = Machine::new(sessions * 2);
    let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
    clients.iter_mut().for_each(|client| machine.open(client));
    for _ in 0..items / sessions {
        clients.chunks_mut(BATCH).for_each(|some| machine.turns(some));
    }
}

/// Of many sessions only some ask, in turn.
fn spread(sessions: u32, items: u32) {
    let mut machine = Machine::new(sessions + sessions / 8);
    let mut clients: Vec<Client> = (0..sessions).map(Client::new).collect();
    clients.iter_mut().for_each(|client| machine.open(client));
    let all = clients.len();
    let batch = BATCH.min(all);
    for n in 0..items as usize / batch {
        let from = n * batch % (all - all % batch);
        machine.turns(&mut clients[from..from + batch]);
        // Until nobody waits any more: the acknowledgement and what timers it leaves.
        machine.passes(PAUSE_US);
        machine.passes(PAUSE_US);
    }
}

fn connections(_: u32, items: u32) {
    let mut machine = Machine::new(4_096);
    (0..items).for_each(|n| machine.short(n));
}

fn super_frames(_: u32, items: u32) {
    let mut machine = Machine::new(64);
    let mut client = Client::new(1);
    machine.open(&mut client);
    let payload = vec![b'x'; 60_000];
    (0..items).for_each(|_| machine.captures(&mut client, flag::ACK | flag::PSH, &payload));
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}
