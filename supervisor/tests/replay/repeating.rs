//! A replay of a file is the same whenever it is made: by the same seed, against a target that behaves as it did before, each
//! connection's packets are the same on the wire. What two hosts' clocks decide is left out: time stamps, the target's initial
//! number, and when a bare acknowledgement leaves on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flow::record::flag;
use flow::{Endpoint, Seq};
use lab::story::{Story, step};
use lab::{Load, Mode};

use crate::offline::{Recorded, Watch, record};
use crate::stage::Stage;

pub(crate) const STORIES: &[Story] = &[
    ("the_same_seed_sends_the_same_packets", 90, the_same_seed_sends_the_same_packets),
    ("the_same_seed_sends_the_same_uploads", 90, the_same_seed_sends_the_same_uploads),
];

/// A packet that says something, without what clocks decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    flags: u16,
    seq: u32,
    /// Answer bytes that it acknowledges.
    read: u32,
    window: u16,
    /// Presence, segment size, window scale.
    options: (u8, u16, u8),
    payload: Vec<u8>,
}

/// What each replayed client said, in order; what the wire brought twice counts once.
type Wire = BTreeMap<Endpoint, Vec<Said>>;

fn wire_of(recorded: &Recorded, seed: &str) -> Result<Wire> {
    let stage = &recorded.stage;
    let watch = Watch::begin(&stage.net.target)?;
    recorded.replay(&[
        "--speed",
        "max",
        "--seed",
        seed,
        "--inject",
        "raw",
        "-c",
        "198.18.0.0/20",
        "--canary",
        "off",
    ])?;
    std::thread::sleep(Duration::from_millis(100));
    let file = recorded.file.with_extension("wire");
    fs::write(&file, watch.end()?)?;
    step("the packets on the wire");
    let target = Endpoint::from(stage.at_target());
    let mut reader = trace::Reader::open(&[file], trace::Options::default())?;
    let (mut wire, mut anchors, mut seen) = (Wire::new(), BTreeMap::<Endpoint, Seq>::new(), BTreeSet::new());
    let mut said_up_to = BTreeMap::<Endpoint, Seq>::new();
    while let Some(packet) = reader.next() {
        let Ok(segment) = flow::segment::parse(packet.ip, packet.wire_len) else { continue };
        let tcp = &segment.tcp;
        let speaks = !segment.payload.is_empty() || tcp.flags & (flag::SYN | flag::FIN | flag::RST) != 0;
        if segment.dst != target {
            continue;
        }
        if tcp.has(flag::ACK) {
            anchors.entry(segment.src).or_insert(tcp.ack);
        }
        if !speaks || !seen.insert((segment.src, tcp.seq.0, segment.payload.len(), tcp.flags)) {
            continue;
        }
        // What is sent again, because an acknowledgement was slow, may be cut otherwise.
        let end = tcp.seq + segment.payload.len() as u32;
        let up_to = said_up_to.entry(segment.src).or_insert(tcp.seq);
        if !segment.payload.is_empty() && !end.after(*up_to) {
            continue;
        }
        *up_to = up_to.max(end);
        let read = anchors.get(&segment.src).map_or(0, |anchor| tcp.ack.since(*anchor) as u32);
        wire.entry(segment.src).or_default().push(Said {
            flags: tcp.flags,
            seq: tcp.seq.0,
            read,
            window: tcp.window,
            options: (tcp.options, tcp.mss, tcp.window_scale),
            payload: segment.payload.to_vec(),
        });
    }
    Ok(wire)
}

/// Replays the file twice by one seed and once by another, each time against a fresh service.
fn is_repeatable(load: impl FnOnce(Load) -> Load) -> Result<()> {
    let mut recorded = record(load)?;
    let mut wires = Vec::new();
    for seed in ["7", "7", "8"] {
        let stage: &mut Stage = &mut recorded.stage;
        drop(stage.target_service.take());
        stage.restart_target()?;
        wires.push(wire_of(&recorded, seed)?);
    }
    let [first, second, other] = &wires[..] else { unreachable!("three replays") };
    let packets = first.values().map(Vec::len).sum::<usize>();
    println!("    {packets} packets of {} connections", first.len());
    ensure!(packets as u64 >= recorded.report.sent, "only {packets} packets were seen");
    for (client, said) in first {
        let again = second.get(client).with_context(|| format!("{client} spoke in the first replay only"))?;
        if let Some((one, two)) = said.iter().zip(again).find(|(one, two)| one != two) {
            anyhow::bail!("{client} said {one:?} and then {two:?}");
        }
        ensure!(said.len() == again.len(), "{client} sent {} and then {} packets", said.len(), again.len());
    }
    ensure!(first.len() == second.len(), "{} clients and then {}", first.len(), second.len());
    ensure!(first != other, "another seed made no other replay");
    Ok(())
}

fn the_same_seed_sends_the_same_packets() -> Result<()> {
    is_repeatable(|load| Load { mode: Mode::ClientCloses, rate: Some(1_000.0), ..load })
}

/// Where segments of an upload end does not depend on when its writes met at the shard, nor on the target's acknowledgements.
fn the_same_seed_sends_the_same_uploads() -> Result<()> {
    is_repeatable(|load| Load {
        connections: 8,
        requests: 240,
        rate: Some(120.0),
        body_bytes: 60_000,
        ..load
    })
}
