//! Packet files of every shape: what was captured on the online host is cut, divided, moved in time or piped, and replayed. Which
//! requests must reach the target is counted in the altered file itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::PipeReader;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flow::record::flag;
use flow::{Endpoint, Segment};
use lab::dump::{self, Order};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::twin::Kind;
use lab::{Instance, Load, Mode, Stats, wait};

use crate::offline::{self, ETHERNET, LIMIT, Recorded};
use crate::stage::{ONLINE_PORT, SETTLE, Stage, clean};
use crate::surviving::name;

pub(crate) const STORIES: &[Story] = &[
    ("a_file_that_begins_midstream", 90, a_file_that_begins_midstream),
    ("a_file_that_ends_within_a_packet", 60, a_file_that_ends_within_a_packet),
    ("requests_that_are_not_in_the_file", 120, requests_that_are_not_in_the_file),
    ("requests_that_the_snap_length_cut", 60, requests_that_the_snap_length_cut),
    ("two_files_that_share_every_connection", 60, two_files_that_share_every_connection),
    ("long_pauses_are_shortened", 60, long_pauses_are_shortened),
    ("so_many_packets_a_second", 60, so_many_packets_a_second),
    ("a_replay_that_is_paused", 60, a_replay_that_is_paused),
    ("a_part_of_a_file", 90, a_part_of_a_file),
    ("a_file_goes_on_when_its_reader_is_killed", 90, a_file_goes_on_when_its_reader_is_killed),
    ("a_file_goes_on_when_the_supervisor_is_killed", 90, a_file_goes_on_when_the_supervisor_is_killed),
    ("a_file_waits_for_memory_and_sessions", 120, a_file_waits_for_memory_and_sessions),
    ("kept_clients_in_copies_and_loops_do_not_meet", 90, kept_clients_in_copies_and_loops_do_not_meet),
    ("a_replay_of_nothing_says_why", 60, a_replay_of_nothing_says_why),
    ("a_file_of_datagrams_alone", 60, a_file_of_datagrams_alone),
];

/// Ids of requests stay below it.
const IDS: u64 = 2_000;
pub(crate) const FAST: [&str; 2] = ["--speed", "max"];

/// A captured frame.
#[derive(Clone)]
pub(crate) struct Part {
    time_ns: u64,
    frame: Vec<u8>,
    wire_len: u32,
}

impl Part {
    fn segment(&self) -> Option<Segment<'_>> {
        flow::segment::parse(self.frame.get(14..)?, self.wire_len - 14).ok()
    }

    fn is_ip(&self) -> bool {
        matches!(self.frame.get(12..14), Some([8, 0] | [0x86, 0xdd]))
    }

    /// The client that begins a request here, the request's id, and its bytes in this frame.
    fn request(&self) -> Option<(Endpoint, u64, u64)> {
        let segment = self.segment().filter(|segment| segment.dst.port == ONLINE_PORT)?;
        let text = String::from_utf8_lossy(segment.payload);
        let id = text.split(" /id/").nth(1)?.split(' ').next()?.parse().ok()?;
        Some((segment.src, id, segment.payload.len() as u64))
    }
}

/// Requests by their ids, with their bytes.
pub(crate) type Asked = BTreeMap<u64, u64>;

pub(crate) fn asked<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Asked {
    parts.into_iter().filter_map(Part::request).map(|(_, id, bytes)| (id, bytes)).collect()
}

fn bytes_of(asked: &Asked) -> u64 {
    asked.values().sum()
}

/// A recording taken apart, and everything that replays what is made of it.
pub(crate) struct Bench {
    pub(crate) recorded: Recorded,
    pub(crate) parts: Vec<Part>,
    pub(crate) dir: Scratch,
    _intercept: Instance,
}

/// How a replay ended.
pub(crate) struct Replayed {
    pub(crate) stats: Stats,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    /// How often the target answered each id meanwhile.
    pub(crate) heard: BTreeMap<u64, u32>,
}

impl Bench {
    pub(crate) fn new(load: impl FnOnce(Load) -> Load) -> Result<Self> {
        let recorded = offline::record(load)?;
        let bytes = fs::read(&recorded.file)?;
        let mut parts = Vec::new();
        let mut rest = &bytes[24..];
        while let Some((head, body)) = rest.split_first_chunk::<16>() {
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
            let (frame, behind) = body.split_at(word(8) as usize);
            let time_ns = u64::from(word(0)) * 1_000_000_000 + u64::from(word(4));
            parts.push(Part { time_ns, frame: frame.to_vec(), wire_len: word(12) });
            rest = behind;
        }
        let intercept = recorded.stage.intercept()?;
        Ok(Self { recorded, parts, dir: Scratch::new("files")?, _intercept: intercept })
    }

    /// Writes a file of these parts.
    fn file<'a>(&self, name: &str, parts: impl IntoIterator<Item = &'a Part>) -> Result<PathBuf> {
        let path = self.dir.file(name);
        fs::write(&path, pcap(parts))?;
        Ok(path)
    }

    pub(crate) fn begin(
        &self,
        files: &[&Path],
        options: &[&str],
        stdin: Option<PipeReader>,
    ) -> Result<Instance> {
        step(format!("replay {options:?}"));
        let stage = &self.recorded.stage;
        let map = lab::twin::map(ONLINE_PORT, stage.at_target());
        let assistant = stage.net.assistant.v4().to_string();
        let mut args = Vec::new();
        for file in files {
            args.push(file.to_str().context("a path of plain text")?);
        }
        args.extend(["-x", &map, "-s", &assistant]);
        args.extend(options);
        match stdin {
            Some(pipe) => stage.twin.begin_fed(Kind::Replay, &stage.net.online, &args, pipe),
            None => stage.twin.begin(Kind::Replay, &stage.net.online, &args),
        }
    }

    pub(crate) fn heard(&self) -> BTreeMap<u64, u32> {
        (0..IDS).map(|id| (id, self.recorded.stage.target.times(id))).collect()
    }

    /// Replays until it ends by itself.
    fn replay(&self, files: &[&Path], options: &[&str]) -> Result<Replayed> {
        let (before, began) = (self.heard(), Instant::now());
        self.ended(self.begin(files, options, None)?, &before, began)
    }

    /// The same of one that takes its time, with something done to it meanwhile.
    fn replay_with(
        &self,
        files: &[&Path],
        options: &[&str],
        meanwhile: impl FnOnce(&Instance) -> Result<()>,
    ) -> Result<Replayed> {
        let (before, began) = (self.heard(), Instant::now());
        let mut instance = self.begin(files, options, None)?;
        instance.wait_ready()?;
        meanwhile(&instance)?;
        self.ended(instance, &before, began)
    }

    pub(crate) fn ended(
        &self,
        instance: Instance,
        before: &BTreeMap<u64, u32>,
        began: Instant,
    ) -> Result<Replayed> {
        let ended = instance.wait(LIMIT)?;
        let took = began.elapsed();
        ensure!(ended.status.success(), "it ended with {}:\n{}", ended.status, ended.stderr);
        let stats = ended.stats().with_context(|| ended.stdout.clone())?;
        stats.check_ledger()?;
        let mut heard = self.heard();
        heard.iter_mut().for_each(|(id, times)| *times -= before[id]);
        Ok(Replayed { stats, stderr: ended.stderr, took, heard })
    }
}

impl Replayed {
    /// The target answered these requests so often each, and no others.
    pub(crate) fn heard_exactly(&self, wanted: &Asked, times: u32) -> Result<()> {
        let wants = |id: &u64| if wanted.contains_key(id) { times } else { 0 };
        let other = |(id, heard): &(&u64, &u32)| **heard != wants(id);
        let wrong: Vec<String> = self
            .heard
            .iter()
            .filter(other)
            .map(|(id, heard)| format!("{id}: {heard} instead of {}", wants(id)))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let first = wrong.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        bail!("{} of {} ids: {first}; {}", wrong.len(), wanted.len(), self.stats.ledger())
    }

    /// So, and nothing dropped or missed.
    pub(crate) fn is_whole(&self, wanted: &Asked, times: u32) -> Result<()> {
        self.heard_exactly(wanted, times)?;
        clean(&self.stats, bytes_of(wanted) * u64::from(times))
    }

    /// What was dropped, doubled bytes and those of this reason aside, is nothing; says how many bytes this reason has.
    pub(crate) fn dropped_only(&self, reason: &str) -> Result<u64> {
        let (stats, named) = (&self.stats, self.stats.dropped(reason));
        ensure!(stats.dropped_in_all() - stats.dropped("duplicate") == named, "{}", stats.ledger());
        ensure!(stats.in_flight() == 0, "{}", stats.ledger());
        Ok(named)
    }
}

pub(crate) fn pcap<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Vec<u8> {
    let mut bytes = dump::pcap(Order::Little, true, ETHERNET);
    for part in parts {
        let (seconds, fraction) = (part.time_ns / 1_000_000_000, part.time_ns % 1_000_000_000);
        let (seconds, fraction) = (seconds as u32, fraction as u32);
        bytes.extend(dump::record(Order::Little, seconds, fraction, &part.frame, part.wire_len));
    }
    bytes
}

fn a_file_that_begins_midstream() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(500.0), ..load })?;
    let later = &bench.parts[bench.parts.len() / 2..];
    let file = bench.file("later.pcap", later)?;
    let all = asked(later);
    ensure!((300..700).contains(&all.len()), "{} requests in half a file", all.len());
    let first = bench.replay(&[&file], &[&FAST[..], &["--join", "first"]].concat())?;
    first.is_whole(&all, 1)?;
    ensure!(first.stats.number("/sessions/started")? == 20, "{}", first.stats.value()["sessions"]);
    step("from the second request of each connection on");
    let boundary = bench.replay(&[&file], &FAST)?;
    let mut firsts = BTreeMap::new();
    for (client, id, _) in later.iter().filter_map(Part::request) {
        firsts.entry(client).or_insert(id);
    }
    let left_out: Asked = firsts
        .into_values()
        .filter(|id| boundary.heard.get(id) == Some(&0))
        .filter_map(|id| Some((id, *all.get(&id)?)))
        .collect();
    ensure!(!left_out.is_empty(), "every connection was joined at its first packet");
    let wanted: Asked =
        all.iter().filter(|(id, _)| !left_out.contains_key(id)).map(|(id, n)| (*id, *n)).collect();
    boundary.heard_exactly(&wanted, 1)?;
    let dropped = boundary.dropped_only("joined_midturn")?;
    ensure!(dropped == bytes_of(&left_out), "{dropped} bytes; {}", boundary.stats.ledger());
    let never = bench.replay(&[&file], &[&FAST[..], &["--join", "never"]].concat())?;
    never.heard_exactly(&Asked::new(), 1)?;
    ensure!(never.dropped_only("not_joined")? == bytes_of(&all), "{}", never.stats.ledger());
    Ok(())
}

fn a_file_that_ends_within_a_packet() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), ..load })?;
    let requests: Vec<usize> =
        (0..bench.parts.len()).filter(|&at| bench.parts[at].request().is_some()).collect();
    let last = requests[requests.len() * 2 / 3];
    let before = &bench.parts[..last];
    let mut bytes = pcap(before);
    let offset = bytes.len();
    bytes.extend(&pcap([&bench.parts[last]])[24..]);
    bytes.truncate(offset + 16 + bench.parts[last].frame.len() / 2);
    let file = bench.dir.file("cut.pcap");
    fs::write(&file, bytes)?;
    let replayed = bench.replay(&[&file], &FAST)?;
    replayed.is_whole(&asked(before), 1)?;
    let wanted = format!("cut.pcap at byte {offset}: the file ends within a record; all before it was used");
    ensure!(replayed.stderr.contains(&wanted), "it said: {}", replayed.stderr);
    Ok(())
}

/// A hole in each of the connections, of one whole request.
fn requests_that_are_not_in_the_file() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), ..load })?;
    let lacks = |part: &Part| part.request().is_some_and(|(_, id, _)| (400..420).contains(&id));
    let (missing, there): (Vec<Part>, Vec<Part>) = bench.parts.iter().cloned().partition(lacks);
    let (missing, all) = (asked(&missing), asked(&there));
    let file = bench.file("gap.pcap", &there)?;
    ensure!((missing.len(), all.len()) == (20, 980), "{} of {} requests", missing.len(), all.len());
    for on_gap in ["skip", "resync"] {
        let replayed = bench.replay(&[&file], &[&FAST[..], &["--on-gap", on_gap]].concat())?;
        replayed.heard_exactly(&all, 1)?;
        ensure!(replayed.dropped_only("gap")? == 0, "{}", replayed.stats.ledger());
        ensure!(replayed.stats.missed() == bytes_of(&missing), "{}", replayed.stats.ledger());
    }
    step("with abort a connection ends at its hole");
    // Not as fast as possible: what the target has not taken yet when its hole is given up is lost too, and a file that is read
    // in one go leaves a busy target no time.
    let replayed = bench.replay(&[&file], &["--speed", "0.5", "--on-gap", "abort"])?;
    let holes: BTreeMap<Endpoint, u64> =
        bench.parts.iter().filter(|part| lacks(part)).filter_map(Part::request).fold(
            BTreeMap::new(),
            |mut holes, (client, id, _)| {
                holes.entry(client).or_insert(id);
                holes
            },
        );
    let (before, behind): (Vec<Part>, Vec<Part>) = there.iter().cloned().partition(|part| {
        part.request().is_some_and(|(client, id, _)| holes.get(&client).is_none_or(|hole| id < *hole))
    });
    let (before, behind) = (asked(&before), asked(&behind));
    ensure!(before.len() > 300 && behind.len() > 300, "{} before the holes", before.len());
    replayed.heard_exactly(&before, 1)?;
    ensure!(replayed.dropped_only("gap")? == bytes_of(&behind), "{}", replayed.stats.ledger());
    Ok(())
}

/// Only the first bytes of some requests were captured: the rest is a hole.
fn requests_that_the_snap_length_cut() -> Result<()> {
    const LEFT: usize = 20;
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), ..load })?;
    let is_cut = |id: &u64| (400..420).contains(id);
    let mut parts = bench.parts.clone();
    let mut lost = 0;
    for part in &mut parts {
        if let Some((_, _, bytes)) = part.request().filter(|(_, id, _)| is_cut(id)) {
            let cut = bytes as usize - LEFT;
            part.frame.truncate(part.frame.len() - cut);
            lost += cut as u64;
        }
    }
    let file = bench.file("snap.pcap", &parts)?;
    let replayed = bench.replay(&[&file], &FAST)?;
    let mut wanted = asked(&bench.parts);
    wanted.retain(|id, _| !is_cut(id));
    replayed.heard_exactly(&wanted, 1)?;
    let stats = &replayed.stats;
    ensure!(stats.number("/counters/capturer-0/cut_segments")? == 20, "{}", stats.value()["counters"]);
    ensure!(
        stats.number("/counters/capturer-0/cut_bytes")? == lost && stats.missed() == lost,
        "{lost} bytes"
    );
    let begun = replayed.dropped_only("gap")?;
    ensure!(begun <= 20 * LEFT as u64, "{begun} bytes of requests that were cut; {}", stats.ledger());
    Ok(())
}

fn two_files_that_share_every_connection() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), ..load })?;
    let every = |first: usize| bench.parts.iter().skip(first).step_by(2);
    let files = [bench.file("even.pcap", every(0))?, bench.file("odd.pcap", every(1))?];
    let replayed = bench.replay(&[&files[1], &files[0]], &[&FAST[..], &["--shards", "2"]].concat())?;
    replayed.is_whole(&asked(&bench.parts), 1)
}

fn long_pauses_are_shortened() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), ..load })?;
    let mut parts = bench.parts.clone();
    let middle = parts.len() / 2;
    parts[middle..].iter_mut().for_each(|part| part.time_ns += 3_600_000_000_000);
    let file = bench.file("pause.pcap", &parts)?;
    let replayed = bench.replay(&[&file], &["--max-gap", "1500ms"])?;
    replayed.is_whole(&asked(&parts), 1)?;
    let range = Duration::from_millis(2_400)..Duration::from_secs(20);
    ensure!(
        range.contains(&replayed.took),
        "one second of traffic and a pause of 1.5 took {:?}",
        replayed.took
    );
    Ok(())
}

fn so_many_packets_a_second() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(2_000.0), ..load })?;
    let packets = bench.parts.iter().filter(|part| part.is_ip()).count();
    let file = bench.file("rate.pcap", &bench.parts)?;
    let replayed = bench.replay(&[&file], &[&FAST[..], &["--rate", "1000"]].concat())?;
    replayed.is_whole(&asked(&bench.parts), 1)?;
    let least = Duration::from_millis(packets as u64).mul_f64(0.95);
    ensure!(replayed.took >= least, "{packets} packets took {:?}", replayed.took);
    println!("    {packets} packets at 1,000 a second: {:?}", replayed.took);
    Ok(())
}

fn a_replay_that_is_paused() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(250.0), ..load })?;
    let target = &bench.recorded.stage.target;
    let pause = Duration::from_millis(1_500);
    let replayed = bench.replay_with(&[&bench.recorded.file], &[], |replay| {
        wait::until("some requests are replayed", SETTLE, || target.answered() >= 100)?;
        replay.ctl(&["pause"])?;
        std::thread::sleep(Duration::from_millis(500));
        let before = target.answered();
        std::thread::sleep(pause);
        let meanwhile = target.answered() - before;
        ensure!(meanwhile == 0, "{meanwhile} requests came while it was paused");
        replay.ctl(&["resume"])?;
        Ok(())
    })?;
    replayed.is_whole(&asked(&bench.parts), 1)?;
    let least = Duration::from_millis(3_800) + pause;
    ensure!(replayed.took >= least, "four seconds of traffic and the pause took {:?}", replayed.took);
    Ok(())
}

fn a_part_of_a_file() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(500.0), ..load })?;
    let file = bench.file("whole.pcap", &bench.parts)?;
    let first_ns = bench.parts.iter().find(|part| part.is_ip()).context("no packet")?.time_ns;
    let span = first_ns + 500_000_000..=first_ns + 1_200_000_000;
    let wanted = asked(bench.parts.iter().filter(|part| span.contains(&part.time_ns)));
    ensure!((200..500).contains(&wanted.len()), "{} requests between the bounds", wanted.len());
    let bounds = ["--from", "500ms", "--until", "1200ms", "--join", "first"];
    bench.replay(&[&file], &[&FAST[..], &bounds].concat())?.is_whole(&wanted, 1)?;
    let most = 1_000;
    let wanted = asked(bench.parts.iter().filter(|part| part.is_ip()).take(most));
    ensure!((50..900).contains(&wanted.len()), "{} requests in {most} packets", wanted.len());
    let most = most.to_string();
    bench.replay(&[&file], &[&FAST[..], &["--limit", &most]].concat())?.is_whole(&wanted, 1)
}

fn a_file_goes_on_when_its_reader_is_killed() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(500.0), ..load })?;
    let files = [
        bench.file("even.pcap", bench.parts.iter().step_by(2))?,
        bench.file("odd.pcap", bench.parts.iter().skip(1).step_by(2))?,
    ];
    let target = &bench.recorded.stage.target;
    let options = ["--loops", "2", "--shards", "2"];
    let replayed = bench.replay_with(&[&files[0], &files[1]], &options, |replay| {
        // In the first loop, and in the second.
        for answered in [200, 700, 1_200, 1_700] {
            wait::until("some requests more", SETTLE, || target.answered() >= answered)?;
            step("its reader is killed");
            let old = replay.kill_role("capturer", 0)?;
            replay.wait_restarted("capturer", 0, old, SETTLE)?;
        }
        Ok(())
    })?;
    replayed.is_whole(&asked(&bench.parts), 2)?;
    let stats = &replayed.stats;
    let packets = 2 * bench.parts.iter().filter(|part| part.is_ip()).count() as u64;
    ensure!(stats.number("/capture/frames")? == packets, "{packets} packets; {}", stats.value()["capture"]);
    Ok(())
}

fn a_file_goes_on_when_the_supervisor_is_killed() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(250.0), ..load })?;
    let name = name("reader");
    let options = ["--name", name.as_str(), "--shards", "2"];
    let target = &bench.recorded.stage.target;
    let (before, began) = (bench.heard(), Instant::now());
    let mut replay = bench.begin(&[&bench.recorded.file], &options, None)?;
    for answered in [200, 500] {
        wait::until("some requests more", SETTLE, || target.answered() >= answered)?;
        step("kill the supervisor, and start it again");
        replay.kill()?;
        replay = bench.begin(&[&bench.recorded.file], &options, None)?;
        replay.wait_ready()?;
    }
    let epoch = replay.stats()?.number("/epoch")?;
    ensure!(epoch == 3, "the region was not adopted: {}", replay.stderr());
    bench.ended(replay, &before, began)?.is_whole(&asked(&bench.parts), 1)
}

fn a_file_waits_for_memory_and_sessions() -> Result<()> {
    let bench = Bench::new(|load| Load {
        connections: 12,
        mode: Mode::ClientCloses,
        requests: 600,
        body_bytes: 40_000,
        rate: Some(1_000.0),
        ..load
    })?;
    let sent = bench.recorded.report.request_bytes;
    let ids: Asked = (0..600).map(|id| (id, 0)).collect();
    let least = ["--max-sessions", "16", "--shards", "1", "--memory"];
    step("as little memory as it takes");
    let ended =
        bench.begin(&[&bench.recorded.file], &[&least[..], &["1MiB"]].concat(), None)?.wait(SETTLE)?;
    let memory = ended.stderr.split("need --memory ").nth(1).and_then(|rest| rest.split('.').next());
    let memory = memory.with_context(|| format!("it named no memory: {}", ended.stderr))?.to_owned();
    let options = [&FAST[..], &least, &[&memory]].concat();
    let replayed = bench.replay(&[&bench.recorded.file], &options)?;
    let waits = replayed.stats.number("/counters/capturer-0/room_waits")?;
    println!("    with {memory}: {:?}, {waits} waits for room", replayed.took);
    replayed.heard_exactly(&ids, 1)?;
    clean(&replayed.stats, sent)?;
    ensure!(waits > 0, "{sent} bytes and {memory} of memory: nothing was short");
    // Sessions that are over hold nobody up: with half a second each it would be nineteen.
    ensure!(replayed.took < Duration::from_secs(10), "600 connections took {:?}", replayed.took);
    Ok(())
}

/// The ends of new connections to the target, as they come in there.
fn ends(bytes: &[u8], target: Endpoint) -> Result<Vec<Endpoint>> {
    let dir = Scratch::new("ends")?;
    let path = dir.file("target.pcap");
    fs::write(&path, bytes)?;
    let mut reader = trace::Reader::open(&[path], trace::Options::default())?;
    let mut ends = Vec::new();
    while let Some(packet) = reader.next() {
        let Ok(segment) = flow::segment::parse(packet.ip, packet.wire_len) else { continue };
        if segment.dst == target && segment.tcp.flags & (flag::SYN | flag::ACK) == flag::SYN {
            ends.push(segment.src);
        }
    }
    Ok(ends)
}

/// The addresses are those of the real clients; the ports of further copies and loops are others, and none is used twice.
fn kept_clients_in_copies_and_loops_do_not_meet() -> Result<()> {
    let bench =
        Bench::new(|load| Load { mode: Mode::ClientCloses, requests: 300, rate: Some(600.0), ..load })?;
    let stage = &bench.recorded.stage;
    let client = stage.net.client.v4();
    stage.route_real_clients()?;
    let watch = offline::Watch::begin(&stage.net.target)?;
    let options = ["--speed", "8", "--keep-clients", "-n", "2", "--loops", "3", "--shards", "2"];
    let replayed = bench.replay(&[&bench.recorded.file], &options)?;
    replayed.is_whole(&asked(&bench.parts), 6)?;
    let mut ends = ends(&watch.end()?, stage.at_target().into())?;
    // The canary's.
    ends.retain(|end| !end.to_string().starts_with("203.0.113."));
    ensure!(ends.iter().all(|end| end.addr == client.into()), "an address is not the client's");
    let all = ends.len();
    ends.sort_unstable();
    ends.dedup();
    ensure!((all, ends.len()) == (1_800, 1_800), "{all} connections from {} ends", ends.len());
    Ok(())
}

fn a_replay_of_nothing_says_why() -> Result<()> {
    let bench = Bench::new(|load| Load { requests: 20, ..load })?;
    let file = &bench.recorded.file;
    let packets = bench.parts.iter().filter(|part| part.is_ip()).count();
    for (options, part) in [
        (["--net", "10.99.0.0/16"], "-x: all packets of its services are left out, ".to_owned()),
        (["--from", "1h"], format!("no packet between --from and --until; {packets} packets lie before")),
    ] {
        let ended = bench.begin(&[file], &[&FAST[..], &options].concat(), None)?.wait(LIMIT)?;
        ensure!(ended.status.code() == Some(1), "it ended with {}: {}", ended.status, ended.stderr);
        ensure!(ended.stderr.contains(&part), "{part} is not in: {}", ended.stderr);
    }
    Ok(())
}

fn a_file_of_datagrams_alone() -> Result<()> {
    let stage = Stage::new()?;
    let dir = Scratch::new("datagrams")?;
    let file = dir.file("udp.pcap");
    let mut bytes = dump::pcap(Order::Little, true, 101);
    for n in 0..100_u32 {
        let packet = dump::udp(53, &n.to_be_bytes());
        bytes.extend(dump::record(Order::Little, 1, n * 1_000_000, &packet, packet.len() as u32));
    }
    fs::write(&file, bytes)?;
    let at = SocketAddr::new(stage.net.target.v4(), 5_353);
    let socket = stage.net.target.ns.enter(move || UdpSocket::bind(at))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let intercept = format!("udp:{at}");
    let _intercept = stage.twin.intercept(&stage.net.assistant, &["-x", &intercept, "-i", "eth0"])?;
    step("a file of one hundred datagrams");
    let (map, assistant) = (format!("udp:53-{at}"), stage.net.assistant.v4().to_string());
    let args = [file.to_str().context("a path of plain text")?, "-x", &map, "-s", &assistant];
    let ended = stage.twin.begin(Kind::Replay, &stage.net.online, &args)?.wait(LIMIT)?;
    ensure!(ended.status.success(), "it ended with {}: {}", ended.status, ended.stderr);
    let sent = ended.stats()?.number("/udp/sent/datagrams")?;
    let mut buffer = [0; 64];
    let mut heard = Vec::new();
    while let Ok(len) = socket.recv(&mut buffer) {
        heard.push(u32::from_be_bytes(buffer[..len].try_into()?));
    }
    ensure!(sent == 100 && heard == (0..100).collect::<Vec<_>>(), "{sent} sent, heard {heard:?}");
    Ok(())
}
