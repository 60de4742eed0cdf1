//! Recordings, read again by the reader of packet files: every request and every answer is there, once, and nothing else; and
//! mirror ports, whose machine is not the online host.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::impair::{ALL, Impairment, mirror};
use lab::real::{self, Nginx};
use lab::scratch::Scratch;
use lab::story::{Skipped, Story, step};
use lab::twin::Kind;
use lab::{Fidelity, HttpOptions, HttpService, Instance, Load, Network, Stats, Twin, netlink};

use crate::faults::more;
use crate::stage::{ONLINE_PORT, SETTLE, Stage, answered, clean, end, twin};
use crate::surviving::stage_with_copy;
use crate::udp::{self, Echo};

pub(crate) const STORIES: &[Story] = &[
    ("a_recording_holds_every_request_and_answer_of_nginx", 60, a_recording_of_nginx),
    ("a_compressed_recording_of_all_interfaces_with_loopback", 60, a_recording_of_all_interfaces),
    ("a_run_replays_and_records_at_once", 60, a_run_replays_and_records_at_once),
    ("what_was_recorded_is_replayed", 90, what_was_recorded_is_replayed),
    ("a_recording_goes_on_when_its_capturer_is_killed", 60, a_recording_goes_on_when_its_capturer_is_killed),
    ("a_recording_by_the_simple_engine", 60, || a_recording_by("simple", "eth0")),
    ("a_recording_by_the_pcap_engine", 60, || a_recording_by("pcap", "eth0")),
    ("a_recording_by_the_pcap_engine_on_any_interface", 60, || a_recording_by("pcap", "any")),
    ("a_run_records_by_the_simple_engine", 60, || a_run_records_by("simple")),
    ("a_run_records_by_the_pcap_engine", 60, || a_run_records_by("pcap")),
    ("a_mirror_port_is_recorded_by_the_xdp_engine", 60, a_mirror_port_by_xdp),
    ("an_upgrade_of_a_recording_loses_nothing", 60, || an_upgrade_of_a_recording("ring", Kind::Record)),
    ("an_upgrade_of_a_recording_by_pcap_says_what_it_cost", 60, || {
        an_upgrade_of_a_recording("pcap", Kind::Record)
    }),
    ("an_upgrade_of_a_run_that_records_loses_nothing", 60, || an_upgrade_of_a_recording("ring", Kind::Run)),
    ("an_upgrade_of_a_run_that_records_by_pcap_says_what_it_cost", 60, || {
        an_upgrade_of_a_recording("pcap", Kind::Run)
    }),
    ("an_upgrade_of_a_recorded_mirror_port_loses_nothing", 60, an_upgrade_of_a_mirror_port),
    ("a_recording_goes_on_under_the_next_supervisor", 60, || {
        a_recording_goes_on_under_the_next_supervisor(Kind::Record)
    }),
    ("a_run_that_records_goes_on_under_the_next_supervisor", 60, || {
        a_recording_goes_on_under_the_next_supervisor(Kind::Run)
    }),
    ("datagrams_are_recorded_and_replayed_in_loops", 90, datagrams_are_recorded_and_replayed_in_loops),
    ("a_recording_stays_within_its_total", 60, a_recording_stays_within_its_total),
    ("a_disk_that_cannot_keep_up_costs_packets_by_name", 60, a_disk_that_cannot_keep_up),
    ("a_mirror_port_is_replayed_by_another_machine", 60, a_mirror_port_is_replayed_by_another_machine),
    ("a_mirror_port_is_recorded_by_another_machine", 60, a_mirror_port_is_recorded_by_another_machine),
    ("without_mirror_frames_of_others_stay_out", 60, without_mirror_frames_of_others_stay_out),
];

/// What files hold, judged without any code of the recorder's or the capturer's.
#[derive(Debug, Default)]
struct Found {
    /// Packets that begin a request with this id.
    requests: BTreeMap<u64, u64>,
    /// Packets that begin an answer.
    answers: u64,
    packets: u64,
    /// Packets between other ends than the service and its clients.
    strange: u64,
}

impl Found {
    /// Reads all files of a directory. A packet is told twice when both its headers say so: retransmissions are counted by
    /// what they carry.
    fn of(directory: &Path, service: &[SocketAddr]) -> Result<Self> {
        let files = files(directory)?;
        let mut reader = trace::Reader::open(&files, trace::Options::default())?;
        let mut found = Self::default();
        while let Some(packet) = reader.next() {
            found.packets += 1;
            let segment = flow::segment::parse(packet.ip, packet.wire_len)
                .map_err(|why| anyhow::anyhow!("a recorded packet is none: {}", why.name()))?;
            let (to, from) = (
                service.iter().any(|at| segment.dst == (*at).into()),
                service.iter().any(|at| segment.src == (*at).into()),
            );
            if to == from {
                found.strange += 1;
            }
            let text = String::from_utf8_lossy(segment.payload);
            let mut heads = text.split(" /id/").skip(1);
            if to && let Some(id) = heads.next().and_then(|rest| rest.split(' ').next()?.parse().ok()) {
                *found.requests.entry(id).or_default() += 1;
            }
            found.answers += u64::from(from && text.starts_with("HTTP/1.1 200 "));
        }
        // The kernel takes the time before it takes a slot: packets that two cores receive at once may be microseconds apart
        // the other way round, in any capture.
        let is_fault = |note: &&trace::Note| note.trouble != trace::Trouble::TimeBackwards;
        let faults: Vec<_> = reader.report().notes().iter().filter(is_fault).collect();
        ensure!(faults.is_empty(), "the reader found fault: {faults:?}");
        Ok(found)
    }

    /// Ids from 0 on, each once, with as many answers, and nothing else.
    fn is_whole(&self, requests: u64) -> Result<()> {
        let missing = (0..requests).filter(|id| !self.requests.contains_key(id)).count();
        let twice = self.requests.values().filter(|times| **times > 1).count();
        ensure!(
            missing == 0 && twice == 0 && self.answers == requests && self.strange == 0,
            "{missing} requests missing, {twice} twice, {} answers, {} strange packets of {}",
            self.answers,
            self.strange,
            self.packets
        );
        Ok(())
    }

    /// Stretches of missing ids. Ids come in order, up to those that are under way on 20 connections at a time.
    fn gaps(&self, requests: u64) -> usize {
        let missing: Vec<u64> = (0..requests).filter(|id| !self.requests.contains_key(id)).collect();
        missing.chunk_by(|one, next| next - one <= 40).count()
    }
}

pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(directory)? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// Ends a recording as Ctrl-C does. Its ledger is exact, and nothing was on its way when it ended.
pub(crate) fn finished(record: Instance) -> Result<Stats> {
    step("the recording ends");
    let stats = record.stop_run()?;
    balanced(&stats)?;
    ensure!(stats.number("/record/waiting/packets")? == 0, "packets were not written: {}", shown(&stats));
    Ok(stats)
}

fn balanced(stats: &Stats) -> Result<()> {
    for unit in ["packets", "bytes"] {
        let of = |path: &str| stats.number(&format!("/record/{path}/{unit}"));
        let dropped = of("dropped/ring_full")? + of("dropped/disk")? + of("dropped/capturer_lost")?;
        let sum = of("written")? + of("waiting")? + dropped;
        ensure!(of("wanted")? == sum, "the recording's {unit} do not add up: {}", shown(stats));
    }
    Ok(())
}

fn shown(stats: &Stats) -> String {
    stats.value()["record"].to_string()
}

fn dropped(stats: &Stats, reason: &str) -> Result<u64> {
    stats.number(&format!("/record/dropped/{reason}/packets"))
}

pub(crate) fn as_text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of plain text")
}

fn a_recording_of_nginx() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let net = Network::standard()?;
    let online = Nginx::start(&net.online, ONLINE_PORT)?;
    let scratch = Scratch::new("recording")?;
    let directory = scratch.file("web");
    let record = twin()?.record(&net.online, &["-x", "80", "-i", "eth0", "-o", as_text(&directory)?])?;
    let to = SocketAddr::new(net.online.v4(), ONLINE_PORT);
    let load = Load { connections: 20, rate: Some(2_000.0), ..Load::new(to, 4_000) };
    answered(load.run(&net.client.ns)?)?;
    step("and one by curl");
    let url = format!("http://{to}/id/4000");
    real::run(&net.client.ns, "curl", &["-s", "-o", "/dev/null", &url], Duration::from_secs(10))?;
    ensure!(online.answered()? == 4_001, "{} requests online", online.answered()?);
    let part = files(&directory)?;
    ensure!(part.len() == 1 && as_text(&part[0])?.ends_with(".pcapng.part"), "{part:?} while it is written");
    let stats = finished(record)?;
    let found = Found::of(&directory, &[to])?;
    println!("    {} packets, {} answers; {}", found.packets, found.answers, shown(&stats));
    found.is_whole(4_001)?;
    ensure!(stats.number("/record/written/packets")? == found.packets, "{}", shown(&stats));
    let file = &files(&directory)?[0];
    ensure!(as_text(file)?.ends_with(".pcapng"), "{} when it is whole", file.display());
    ensure!(fs::metadata(&directory)?.permissions().mode() & 0o777 == 0o700);
    ensure!(fs::metadata(file)?.permissions().mode() & 0o777 == 0o600);
    Ok(())
}

/// On loopback each packet is seen going out and coming in; it is recorded once.
fn a_recording_of_all_interfaces() -> Result<()> {
    let stage = Stage::new()?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ONLINE_PORT);
    let witness = std::sync::Arc::clone(&stage.online);
    let _service = HttpService::start(&stage.net.online.ns, local, HttpOptions::default(), witness)?;
    let scratch = Scratch::new("recording")?;
    let directory = as_text(scratch.path())?;
    let record = stage.twin.record(&stage.net.online, &["-x", "80", "-o", directory, "--zstd"])?;
    stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    step("clients on the online host itself");
    let load = Load { to: local, rate: Some(1_000.0), first_id: 1_000, ..stage.load(1_000) };
    answered(load.run(&stage.net.online.ns)?)?;
    step("and over IPv6");
    let to = SocketAddr::new(stage.net.online.v6(), ONLINE_PORT);
    stage.send(Load { to, first_id: 2_000, ..stage.load(500) })?;
    finished(record)?;
    ensure!(as_text(&files(scratch.path())?[0])?.ends_with(".pcapng.zst"));
    Found::of(scratch.path(), &[stage.at_online(), local, to])?.is_whole(2_500)
}

fn a_run_replays_and_records_at_once() -> Result<()> {
    let stage = Stage::new()?;
    let scratch = Scratch::new("recording")?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--record", as_text(scratch.path())?, "--shards", "2"])?;
    let report = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(3_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    balanced(&stats)?;
    step("the recording has real clients' packets, and none of ours");
    let found = Found::of(scratch.path(), &[stage.at_online()])?;
    found.is_whole(3_000)?;
    ensure!(stats.number("/record/written/packets")? == found.packets, "{}", shown(&stats));
    Ok(())
}

/// Several compressed files of one recording, super-frames among them, are what a live replay of the same traffic is.
fn what_was_recorded_is_replayed() -> Result<()> {
    let stage = Stage::new()?;
    let scratch = Scratch::new("recording")?;
    let args = ["-x", "80", "-i", "eth0", "-o", as_text(scratch.path())?, "--zstd", "--rotate-every", "1s"];
    let record = stage.twin.record(&stage.net.online, &args)?;
    let mut report = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(2_000) })?;
    let bodies = Load { body_bytes: 100_000, rate: Some(50.0), first_id: 2_000, ..stage.load(50) };
    report.request_bytes += stage.send(bodies)?.request_bytes;
    finished(record)?;
    let files = files(scratch.path())?;
    ensure!(files.len() >= 3, "{files:?}");
    let _intercept = stage.intercept()?;
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let stats = replayed(&stage.twin, &stage.net, &files, &map, &["--speed", "max"])?;
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(fidelity.is_exact(), "{fidelity}; {}", stats.ledger());
    clean(&stats, report.request_bytes)
}

/// Replays recorded files from the online host until they end.
pub(crate) fn replayed(
    twin: &Twin,
    net: &Network,
    files: &[PathBuf],
    map: &str,
    options: &[&str],
) -> Result<Stats> {
    step(format!("the files are replayed {options:?}"));
    let assistant = net.assistant.v4().to_string();
    let mut args = files.iter().map(|file| as_text(file)).collect::<Result<Vec<_>>>()?;
    args.extend(["-x", map, "-s", &assistant]);
    args.extend(options);
    let ended = twin.begin(Kind::Replay, &net.online, &args)?.wait(Duration::from_secs(45))?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    let stats = ended.stats()?;
    stats.check_ledger()?;
    Ok(stats)
}

fn a_recording_goes_on_when_its_capturer_is_killed() -> Result<()> {
    let stage = Stage::new()?;
    let scratch = Scratch::new("recording")?;
    let record =
        stage.twin.record(&stage.net.online, &["-x", "80", "-i", "eth0", "-o", as_text(scratch.path())?])?;
    let load = stage.start(Load { connections: 20, rate: Some(1_000.0), ..stage.load(4_000) })?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        step("its capturer is killed");
        let old = record.kill_role("capturer", 0)?;
        record.wait_restarted("capturer", 0, old, SETTLE)?;
    }
    answered(load.wait()?)?;
    let stats = finished(record)?;
    let found = Found::of(scratch.path(), &[stage.at_online()])?;
    let there = found.requests.len() as u64;
    println!("    {there} of 4000 requests recorded; {}", shown(&stats));
    let names = files(scratch.path())?;
    ensure!(
        names.len() == 4 && names.iter().all(|name| name.extension().is_some_and(|end| end == "pcapng")),
        "{names:?}"
    );
    // What a dead one had in hand, a batch and what had gathered in 10 ms, is lost by name: and nothing that is in a file.
    let lost = dropped(&stats, "capturer_lost")?;
    ensure!(
        4_000 - there <= lost && there >= 3_800,
        "{there} requests recorded, {lost} packets lost by name"
    );
    ensure!(found.packets == stats.number("/record/written/packets")?, "{} in files", found.packets);
    ensure!(found.packets + lost == stats.number("/record/wanted/packets")?, "{} in files", found.packets);
    ensure!(found.strange == 0);
    Ok(())
}

fn needs(engine: &str) -> Result<()> {
    if engine == "pcap" {
        libpcap::version().map_err(|error| Skipped::NotInstalled(error.to_string()))?;
    }
    Ok(())
}

/// Both directions, once each, also on loopback where all interfaces are captured.
fn a_recording_by(engine: &str, interface: &str) -> Result<()> {
    needs(engine)?;
    let stage = Stage::new()?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ONLINE_PORT);
    let witness = std::sync::Arc::clone(&stage.online);
    let _service = HttpService::start(&stage.net.online.ns, local, HttpOptions::default(), witness)?;
    let scratch = Scratch::new("recording")?;
    let args = ["-x", "80", "-i", interface, "--capture", engine, "-o", as_text(scratch.path())?];
    let record = stage.twin.record(&stage.net.online, &args)?;
    stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    let to = SocketAddr::new(stage.net.online.v6(), ONLINE_PORT);
    stage.send(Load { to, first_id: 2_000, body_bytes: 20_000, rate: Some(200.0), ..stage.load(200) })?;
    step("clients on the online host itself");
    let load = Load { to: local, rate: Some(500.0), first_id: 2_200, ..stage.load(500) };
    answered(load.run(&stage.net.online.ns)?)?;
    let stats = finished(record)?;
    let found = Found::of(scratch.path(), &[stage.at_online(), local, to])?;
    found.is_whole(if interface == "any" { 2_700 } else { 2_200 })?;
    ensure!(stats.number("/record/written/packets")? == found.packets, "{}", shown(&stats));
    Ok(())
}

fn a_run_records_by(engine: &str) -> Result<()> {
    needs(engine)?;
    let stage = Stage::new()?;
    let scratch = Scratch::new("recording")?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--record", as_text(scratch.path())?, "--capture", engine])?;
    let report = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(2_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    balanced(&stats)?;
    Found::of(scratch.path(), &[stage.at_online()])?.is_whole(2_000)
}

/// What comes to the mirror port, in files there.
fn recording_by_xdp(stage: &Stage, scratch: &Scratch) -> Result<Instance> {
    let service = stage.at_online().to_string();
    let directory = as_text(scratch.path())?;
    let args = ["-x", &service, "-i", "mirror0", "--mirror", "--capture", "xdp", "-o", directory];
    stage.twin.record(&stage.net.online2, &args)
}

fn a_mirror_port_by_xdp() -> Result<()> {
    if !cfg!(feature = "xdp") {
        return Err(Skipped::NotHere("built without the feature xdp".to_owned()).into());
    }
    let stage = Stage::new()?;
    let _mirror = mirror_port(&stage.net, &stage.net.online2)?;
    let scratch = Scratch::new("recording")?;
    let record = recording_by_xdp(&stage, &scratch)?;
    stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    finished(record)?;
    Found::of(scratch.path(), &[stage.at_online()])?.is_whole(2_000)
}

/// The capturer ends its file before another takes its place. What arrives meanwhile waits in the ring's sockets; libpcap's buffer goes
/// with its process, and for how long nobody captured is said.
fn an_upgrade_of_a_recording(engine: &str, kind: Kind) -> Result<()> {
    needs(engine)?;
    let (stage, _place, _program) = stage_with_copy()?;
    let scratch = Scratch::new("recording")?;
    let _intercept = stage.intercept()?;
    let record = recording(&stage, kind, as_text(scratch.path())?, &["--capture", engine])?;
    upgraded(&stage, record, &scratch, engine, kind)
}

/// The program and its sockets are the supervisor's, and the next image's.
fn an_upgrade_of_a_mirror_port() -> Result<()> {
    if !cfg!(feature = "xdp") {
        return Err(Skipped::NotHere("built without the feature xdp".to_owned()).into());
    }
    let (stage, _place, _program) = stage_with_copy()?;
    let _mirror = mirror_port(&stage.net, &stage.net.online2)?;
    let scratch = Scratch::new("recording")?;
    let record = recording_by_xdp(&stage, &scratch)?;
    upgraded(&stage, record, &scratch, "xdp", Kind::Record)
}

fn upgraded(stage: &Stage, record: Instance, scratch: &Scratch, engine: &str, kind: Kind) -> Result<()> {
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(100_000) })?;
    for round in 1..=3 {
        more(&load, 500)?;
        step("ctl upgrade");
        record.ctl(&["upgrade"])?;
        let done = || record.stderr().matches("upgraded from version").count() == round;
        lab::wait::until("the upgrade is done", SETTLE, done)?;
    }
    more(&load, 500)?;
    let report = answered(load.stop()?)?;
    let stats = finished(record)?;
    let found = Found::of(scratch.path(), &[stage.at_online()])?;
    let unseen_ms = stats.number("/counters/capturer-0/unseen_ms")?;
    let missing = report.sent - found.requests.len() as u64;
    println!(
        "    {missing} of {} requests are missing, nobody captured for {unseen_ms} ms; {}",
        report.sent,
        shown(&stats)
    );
    ensure!(files(scratch.path())?.len() == 4, "a file for each capturer");
    ensure!(stats.number("/record/written/packets")? == found.packets, "{}", shown(&stats));
    ensure!(dropped(&stats, "capturer_lost")? == 0, "{}", shown(&stats));
    if engine != "pcap" {
        ensure!(unseen_ms == 0, "{unseen_ms} ms unseen");
        if kind == Kind::Run {
            let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
            ensure!(fidelity.is_exact(), "{fidelity}; {}", stats.ledger());
            clean(&stats, report.request_bytes)?;
        }
        return found.is_whole(report.sent);
    }
    // What is missing is what came while nobody captured, three times.
    let gaps = found.gaps(report.sent);
    ensure!(gaps <= 3 && (gaps == 0 || unseen_ms > 0), "{missing} requests missing in {gaps} stretches");
    Ok(())
}

/// What records on the online host: `record`, or a run that replays too.
fn recording(stage: &Stage, kind: Kind, directory: &str, options: &[&str]) -> Result<Instance> {
    match kind {
        Kind::Run => stage.run(&[&["--shards", "2", "--record", directory], options].concat()),
        _ => stage
            .twin
            .record(&stage.net.online, &[&["-x", "80", "-i", "eth0", "-o", directory], options].concat()),
    }
}

fn a_recording_goes_on_under_the_next_supervisor(kind: Kind) -> Result<()> {
    let stage = Stage::new()?;
    let scratch = Scratch::new("recording")?;
    let _intercept = stage.intercept()?;
    let name = crate::surviving::name("tape");
    let (directory, options) = (as_text(scratch.path())?, ["--name", name.as_str()]);
    let mut record = recording(&stage, kind, directory, &options)?;
    let load = stage.start(Load { rate: Some(1_000.0), ..stage.load(100_000) })?;
    for _ in 0..2 {
        more(&load, 500)?;
        step("kill the supervisor, and start it again");
        record.kill()?;
        record = recording(&stage, kind, directory, &options)?;
    }
    more(&load, 500)?;
    let report = answered(load.stop()?)?;
    ensure!(record.stats()?.number("/epoch")? == 3, "not taken over: {}", record.stderr());
    let stats = finished(record)?;
    let found = Found::of(scratch.path(), &[stage.at_online()])?;
    let (lost, unseen_ms) =
        (dropped(&stats, "capturer_lost")?, stats.number("/counters/capturer-0/unseen_ms")?);
    let missing = report.sent - found.requests.len() as u64;
    println!("    {missing} requests missing, {unseen_ms} ms unseen, {lost} packets lost; {}", shown(&stats));
    ensure!(files(scratch.path())?.len() == 3 && found.strange == 0);
    ensure!(stats.number("/record/written/packets")? == found.packets, "{}", shown(&stats));
    // What came while nobody captured, and what a dead one had in hand before that.
    let gaps = found.gaps(report.sent);
    ensure!(unseen_ms > 0 && gaps <= 2, "{missing} requests missing in {gaps} stretches");
    Ok(())
}

/// Whole, in fragments, over both families, answers too; then twice over, two copies each.
fn datagrams_are_recorded_and_replayed_in_loops() -> Result<()> {
    const LENGTHS: &[usize] = &[1, 100, 1_472, 1_473, 8_000, 65_507];
    let stage = Stage::new()?;
    let net = &stage.net;
    let at = [SocketAddr::new(net.online.v4(), 53), SocketAddr::new(net.online.v6(), 53)];
    let online = [Echo::start(&net.online, at[0].ip(), 53)?, Echo::start(&net.online, at[1].ip(), 53)?];
    let scratch = Scratch::new("recording")?;
    let args = ["-x", "udp:53", "-x", "80", "-i", "eth0", "-o", as_text(scratch.path())?];
    let record = stage.twin.record(&net.online, &args)?;
    for to in at {
        udp::ask(&stage, to, 10, 2, LENGTHS)?;
    }
    stage.send(Load { rate: Some(1_000.0), ..stage.load(500) })?;
    let stats = finished(record)?;
    let sent = 2 * 10 * 2 * LENGTHS.len() as u64;
    let mut reader = trace::Reader::open(&files(scratch.path())?, trace::Options::default())?;
    let (mut requests, mut answers, mut segments) = (0, 0, 0);
    while let Some(packet) = reader.next() {
        segments += u64::from(flow::segment::parse(packet.ip, packet.wire_len).is_ok());
        let Ok(flow::datagram::Seen::Whole(datagram)) = flow::datagram::parse(packet.ip, packet.wire_len)
        else {
            continue;
        };
        ensure!(datagram.payload.len() as u32 == datagram.wire_payload_len, "a datagram is cut");
        requests += u64::from(at.iter().any(|to| datagram.dst == (*to).into()));
        answers += u64::from(at.iter().any(|from| datagram.src == (*from).into()));
    }
    ensure!((requests, answers) == (sent, sent), "{requests} and {answers} of {sent}; {}", shown(&stats));
    ensure!(
        segments >= 1_000 && stats.number("/record/written/packets")? == 2 * sent + segments,
        "{}",
        shown(&stats)
    );
    step("the file is replayed");
    let target = [
        Echo::start(&net.target, net.target.v4(), 5_353)?,
        Echo::start(&net.target, net.target.v6(), 5_353)?,
    ];
    let maps = [
        format!("udp:{}-{}:5353", at[0], net.target.v4()),
        format!("udp:{}-[{}]:5353", at[1], net.target.v6()),
    ];
    let services = [format!("udp:{}:5353", net.target.v4()), format!("udp:[{}]:5353", net.target.v6())];
    let _intercept =
        stage.twin.intercept(&net.assistant, &["-x", &services[0], "-x", &services[1], "-i", "eth0"])?;
    let assistant = net.assistant.v4().to_string();
    let file = files(scratch.path())?.remove(0);
    let more = ["-s", &assistant, "--loops", "2", "-n", "2", "--speed", "20"];
    let args = [&[as_text(&file)?, "-x", &maps[0], "-x", &maps[1]][..], &more].concat();
    let replay = stage.twin.begin(Kind::Replay, &net.online, &args)?;
    let ended = replay.wait(Duration::from_secs(45))?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    for (online, target) in online.iter().zip(&target) {
        udp::same(&online.read(), &target.read(), 4)?;
        let clients = udp::clients_of(&target.read()).len();
        ensure!(clients == 40, "{clients} clients, where 10 come twice in two copies");
    }
    let stats = ended.stats()?;
    ensure!(stats.number("/udp/sent/datagrams")? == 4 * sent, "{}", stats.value()["udp"]);
    Ok(())
}

fn a_recording_stays_within_its_total() -> Result<()> {
    let stage = Stage::new()?;
    let scratch = Scratch::new("recording")?;
    let directory = as_text(scratch.path())?;
    fs::write(scratch.file("notes.txt"), vec![0; 1 << 20])?;
    let args = ["-x", "80", "-i", "eth0", "-o", directory, "--keep", "4MiB", "--rotate", "1MiB"];
    let record = stage.twin.record(&stage.net.online, &args)?;
    let report = stage.send(Load { rate: Some(400.0), body_bytes: 20_000, ..stage.load(1_000) })?;
    let stats = finished(record)?;
    let found: Vec<PathBuf> = files(scratch.path())?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "pcapng"))
        .collect();
    let total: u64 = found.iter().map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum();
    println!("    {} files with {total} bytes; {}", found.len(), shown(&stats));
    ensure!(
        report.request_bytes > 16 << 20 && stats.number("/record/removed_files")? > 10,
        "{}",
        shown(&stats)
    );
    ensure!(total <= 4 << 20 && found.len() >= 3, "{total} bytes in {} files", found.len());
    ensure!(scratch.file("notes.txt").exists());
    Ok(())
}

/// A buffer of 1 MiB, and bursts over loopback that fill it while the writer sleeps: as a disk that stands still for a while.
fn a_disk_that_cannot_keep_up() -> Result<()> {
    let stage = Stage::new()?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ONLINE_PORT);
    let witness = std::sync::Arc::clone(&stage.online);
    let _service = HttpService::start(&stage.net.online.ns, local, HttpOptions::default(), witness)?;
    let scratch = Scratch::new("recording")?;
    let args = ["-x", "80", "-i", "lo", "-o", as_text(scratch.path())?, "--record-buffer", "1MiB"];
    let record = stage.twin.record(&stage.net.online, &args)?;
    let load = Load { to: local, connections: 8, body_bytes: 4 << 20, ..stage.load(60) };
    answered(load.run(&stage.net.online.ns)?)?;
    let stats = finished(record)?;
    println!("    {}", shown(&stats));
    ensure!(dropped(&stats, "ring_full")? > 0 && dropped(&stats, "disk")? == 0, "{}", shown(&stats));
    let restarts: u64 = stats.roles()?.iter().map(|role| role.restarts).sum();
    ensure!(restarts == 0, "a process was replaced");
    let found = Found::of(scratch.path(), &[local])?;
    ensure!(found.packets == stats.number("/record/written/packets")?, "{} packets in files", found.packets);
    Ok(())
}

/// A device `mirror0` on a host, to which the switch copies what client and online host send each other.
fn mirror_port<'a>(net: &'a Network, host: &lab::Host) -> Result<[Impairment<'a>; 2]> {
    step("a mirror port on a machine that is not the online host");
    let peer = host.ns.fd().as_raw_fd();
    net.switch.enter(move || {
        netlink::add_veth("to-mirror", "mirror0", peer)?;
        netlink::set_up("to-mirror", true)
    })?;
    host.ns.enter(|| netlink::set_up("mirror0", true))?;
    let nothing = "tcp dport 1";
    Ok([
        mirror(net, &net.client, "ip daddr 10.88.0.3 tcp dport 80", "to-mirror", nothing, ALL)?,
        mirror(net, &net.online, "ip daddr 10.88.0.2 tcp sport 80", "to-mirror", nothing, ALL)?,
    ])
}

fn a_mirror_port_is_replayed_by_another_machine() -> Result<()> {
    let stage = Stage::new()?;
    let net = &stage.net;
    let _mirror = mirror_port(net, &net.online2)?;
    let _intercept = stage.intercept()?;
    let scratch = Scratch::new("recording")?;
    let map = format!("{}-{}", stage.at_online(), stage.at_target());
    let assistant = net.assistant.v4().to_string();
    let args =
        ["-x", &map, "-s", &assistant, "-i", "mirror0", "--mirror", "--record", as_text(scratch.path())?];
    let run = stage.twin.run(&net.online2, &args)?;
    let report = stage.send(Load { connections: 50, rate: Some(1_000.0), ..stage.load(3_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.captured() >= report.request_bytes);
    Found::of(scratch.path(), &[stage.at_online()])?.is_whole(3_000)
}

fn a_mirror_port_is_recorded_by_another_machine() -> Result<()> {
    let stage = Stage::new()?;
    let _mirror = mirror_port(&stage.net, &stage.net.online2)?;
    let scratch = Scratch::new("recording")?;
    let service = stage.at_online().to_string();
    let args = ["-x", &service, "-i", "mirror0", "--mirror", "-o", as_text(scratch.path())?];
    let record = stage.twin.record(&stage.net.online2, &args)?;
    stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    finished(record)?;
    Found::of(scratch.path(), &[stage.at_online()])?.is_whole(2_000)
}

fn without_mirror_frames_of_others_stay_out() -> Result<()> {
    let stage = Stage::new()?;
    let net = &stage.net;
    let _mirror = mirror_port(net, &net.online2)?;
    let _intercept = stage.intercept()?;
    let (assistant, target) = (net.assistant.v4().to_string(), stage.at_target());
    step("a mapping without an address is refused with --mirror");
    let map = lab::twin::map(ONLINE_PORT, target);
    let args = ["-x", &map, "-s", &assistant, "-i", "mirror0", "--mirror"];
    let refused = stage.twin.begin(Kind::Run, &net.online2, &args)?.wait(SETTLE)?;
    ensure!(
        refused.status.code() == Some(2) && refused.stderr.contains("Name the online address"),
        "{}",
        refused.stderr
    );
    step("and without --mirror nothing of another host is taken, which is said");
    let map = format!("{}-{target}", stage.at_online());
    let run = stage.twin.run(&net.online2, &["-x", &map, "-s", &assistant, "-i", "any"])?;
    stage.send(Load { rate: Some(1_000.0), ..stage.load(500) })?;
    run.wait_said("add --mirror")?;
    let stats = end(run)?;
    ensure!(stats.number("/capture/frames")? == 0, "{} frames were taken", stats.number("/capture/frames")?);
    ensure!(stage.target.answered() == 0, "{} requests at the target", stage.target.answered());
    Ok(())
}
