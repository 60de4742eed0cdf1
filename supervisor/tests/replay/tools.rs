//! A second opinion on packet files: what tcpdump, editcap and mergecap have written is read, and holds as many packets from then to
//! then as capinfos says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::dump::{self, Order};
use lab::real::tool::{find, wait_for};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::twin::Kind;
use lab::{Fidelity, Host, Load, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::offline::{self, ETHERNET, LIMIT};
use crate::stage::{ONLINE_PORT, SETTLE, Stage, clean};

pub(crate) const STORIES: &[Story] = &[
    ("files_of_tcpdump_are_read_and_replayed", 90, files_of_tcpdump_are_read_and_replayed),
    ("files_of_editcap_and_mergecap_are_read", 90, files_of_editcap_and_mergecap_are_read),
];

/// Longest run of a tool.
const TOOL: Duration = Duration::from_secs(20);

/// A tcpdump at work on a host.
struct Tcpdump(Child);

impl Tcpdump {
    fn begin(host: &Host, dir: &Scratch, file: &str, options: &[&str]) -> Result<Self> {
        let said = dir.file(&format!("{file}.said"));
        let mut command = Command::new(find("tcpdump")?);
        // As root, or it gives up the right to write here.
        command.args(["-i", "eth0", "-n", "-Z", "root", "-w"]).arg(dir.file(file));
        command.args(options).args(["tcp", "port", "80"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said)?);
        let child = Self(host.ns.spawn(command)?);
        let text = || fs::read_to_string(&said).unwrap_or_default();
        wait::until("tcpdump listens", SETTLE, || text().contains("listening on")).with_context(text)?;
        Ok(child)
    }

    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT)?;
        ensure!(wait_for(&mut self.0, TOOL)?, "tcpdump did not end");
        Ok(())
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a tool printed.
fn tool(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(find(program)?).args(args).stdin(Stdio::null()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?} ended with {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Packets, and the time of the first and the last of them, nanoseconds.
type Told = (u64, u64, u64);

/// By capinfos, of one file.
fn capinfos(file: &Path) -> Result<Told> {
    let text = tool("capinfos", &["-M", "-S", "-c", "-a", "-e", text_of(file)?])?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("capinfos tells no {name}: {text}"))
    };
    let ns = |name: &str| -> Result<u64> {
        let (seconds, fraction) = value(name)?.split_once('.').context("no fraction of a second")?;
        Ok(seconds.parse::<u64>()? * 1_000_000_000 + format!("{fraction:0<9}").parse::<u64>()?)
    };
    Ok((value("Number of packets")?.parse()?, ns("First packet time")?, ns("Last packet time")?))
}

/// By a dry run, of files together.
fn dry_run(files: &[&Path]) -> Result<(Told, serde_json::Value)> {
    let output = Command::new(env!("CARGO_BIN_EXE_tcptwin"))
        .arg("replay")
        .args(files)
        .args(["-x", "80-10.88.0.4:8080", "--dry-run", "--json"])
        .stdin(Stdio::null())
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the dry run ended with {}: {error}", output.status);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    // A tool that captures on two cores may write two packets in another order than their times have, and that is told.
    let is_order =
        |note: &serde_json::Value| note.as_str().is_some_and(|note| note.contains("time goes backwards"));
    let notes = found["notes"].as_array().context("no notes")?;
    ensure!(notes.iter().all(is_order), "it found fault: {}", found["notes"]);
    let number = |path: &str| found.pointer(path).and_then(serde_json::Value::as_u64).context("no number");
    let packets = number("/packets")? + number("/other/not_ip")?;
    Ok(((packets, number("/first_ns")?, number("/last_ns")?), found))
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path of plain text")
}

/// Both say the same of a file.
fn agree(file: &Path) -> Result<(Told, serde_json::Value)> {
    let (theirs, (ours, found)) = (capinfos(file)?, dry_run(&[file])?);
    ensure!(theirs == ours, "{}: {theirs:?} by capinfos, {ours:?} by the dry run", file.display());
    println!("    {}: {} packets", file.file_name().unwrap_or_default().display(), ours.0);
    Ok((ours, found))
}

fn files_of_tcpdump_are_read_and_replayed() -> Result<()> {
    find("tcpdump")?;
    find("capinfos")?;
    let stage = Stage::new()?;
    let dir = Scratch::new("tcpdump")?;
    let host = &stage.net.online;
    let dumps = [
        ("micro.pcap", &["--time-stamp-precision=micro"][..]),
        ("nano.pcap", &["--time-stamp-precision=nano"]),
        ("snap.pcap", &["-s", "100"]),
        // A file of a million bytes, and then the next.
        ("part.pcap", &["-C", "1"]),
    ];
    let dumps: Vec<Tcpdump> = dumps
        .into_iter()
        .map(|(file, options)| Tcpdump::begin(host, &dir, file, options))
        .collect::<Result<_>>()?;
    let report = stage.send(Load { rate: Some(500.0), body_bytes: 4_000, ..stage.load(1_000) })?;
    // The kernel hands what it has gathered to tcpdump once a second, and what it has not at tcpdump's end is lost.
    std::thread::sleep(Duration::from_millis(1_500));
    dumps.into_iter().try_for_each(Tcpdump::end)?;
    let named = |name: &str| dir.file(name);
    step("capinfos and the dry run say the same");
    let (whole, found) = agree(&named("nano.pcap"))?;
    ensure!(found["traffic"]["sessions"] == 20 && found["traffic"]["turns"] == 1_000, "{found}");
    ensure!(found["traffic"]["request_bytes"] == report.request_bytes, "{found}");
    ensure!(agree(&named("micro.pcap"))?.0.0 == whole.0, "not as many packets in microseconds");
    let (snap, found) = agree(&named("snap.pcap"))?;
    ensure!(snap.0 == whole.0 && found["other"]["cut"].as_u64() >= Some(1_000), "{found}");
    ensure!(found["traffic"]["missing_bytes"].as_u64() > Some(3_000_000), "{found}");
    let mut parts: Vec<PathBuf> = fs::read_dir(dir.path())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("part.pcap") && !path.ends_with("part.pcap.said"))
        .collect();
    parts.sort();
    ensure!(parts.len() >= 4, "{parts:?}");
    let parts: Vec<&Path> = parts.iter().map(PathBuf::as_path).collect();
    let mut packets = 0;
    for part in &parts {
        packets += agree(part)?.0.0;
    }
    ensure!((packets, dry_run(&parts)?.0.0) == (whole.0, whole.0), "{packets} packets in the parts");
    step("the parts are replayed");
    let _intercept = stage.intercept()?;
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let assistant = stage.net.assistant.v4().to_string();
    let mut args = parts.into_iter().map(text_of).collect::<Result<Vec<_>>>()?;
    args.extend(["-x", &map, "-s", &assistant, "--speed", "max"]);
    let ended = stage.twin.begin(Kind::Replay, host, &args)?.wait(LIMIT)?;
    ensure!(ended.status.success(), "it ended with {}: {}", ended.status, ended.stderr);
    let stats = ended.stats()?;
    stats.check_ledger()?;
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(fidelity.is_exact(), "{fidelity}; {}", stats.ledger());
    clean(&stats, report.request_bytes)
}

fn files_of_editcap_and_mergecap_are_read() -> Result<()> {
    find("editcap")?;
    let recorded = offline::record(|load| Load { rate: Some(2_000.0), ..load })?;
    let dir = Scratch::new("editcap")?;
    step("one half by Ethernet, the other from the IP header on");
    let bytes = fs::read(&recorded.file)?;
    let (head, mut rest) = bytes.split_at(24);
    let (mut even, mut odd) = (head.to_vec(), dump::pcap(Order::Big, true, 101));
    ensure!(even == dump::pcap(Order::Little, true, ETHERNET));
    let mut nth = 0;
    while let Some(record) = rest.first_chunk::<16>() {
        let word = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
        let frame = &rest[16..16 + word(8) as usize];
        match frame[12..14] {
            [8, 0] if nth % 2 == 1 => {
                odd.extend(dump::record(Order::Big, word(0), word(4), &frame[14..], word(12) - 14));
            }
            [8, 0] => even.extend(&rest[..16 + frame.len()]),
            // What is no IPv4 would make the times of the first packet differ.
            _ => {}
        }
        nth += 1;
        rest = &rest[16 + frame.len()..];
    }
    let named = |name: &str| dir.file(name);
    fs::write(named("even.pcap"), even)?;
    fs::write(named("odd.pcap"), odd)?;
    let path = |name: &str| named(name).to_string_lossy().into_owned();
    let edit = |options: &[&str], from: &str, to: &str| {
        tool("editcap", &[options, &[path(from).as_str(), path(to).as_str()]].concat())
    };
    let merge = |options: &[&str], to: &str, from: &[&str]| {
        let (to, from) = (path(to), from.iter().map(|name| path(name)).collect::<Vec<_>>());
        let from: Vec<&str> = from.iter().map(String::as_str).collect();
        tool("mergecap", &[options, &["-w", to.as_str()], &from].concat())
    };
    merge(&["-F", "pcapng", "-I", "none"], "both.pcapng", &["even.pcap", "odd.pcap"])?;
    merge(&["-F", "pcapng", "-I", "all"], "same.pcapng", &["both.pcapng", "both.pcapng"])?;
    edit(
        &["-F", "pcapng", "-a", "1:a comment", "-a", "3:another, and longer"],
        "both.pcapng",
        "said.pcapng",
    )?;
    edit(&["-F", "pcapng", "-s", "80"], "both.pcapng", "snap.pcapng")?;
    edit(&["-F", "pcap"], "even.pcap", "micro.pcap")?;
    edit(&["-F", "nsecpcap", "-t", "3600.5"], "odd.pcap", "later.pcap")?;
    step("capinfos and the dry run say the same");
    let (whole, found) = agree(&named("both.pcapng"))?;
    let (even, odd) = (agree(&named("even.pcap"))?.0, agree(&named("odd.pcap"))?.0);
    ensure!(even.0 > 1_000 && odd.0 > 1_000 && even.0 + odd.0 == whole.0, "{even:?} {odd:?} {whole:?}");
    ensure!(found["traffic"]["turns"] == 1_000, "{found}");
    ensure!(found["traffic"]["request_bytes"] == recorded.report.request_bytes, "{found}");
    let (twice, found) = agree(&named("same.pcapng"))?;
    ensure!(twice.0 == 2 * whole.0, "{twice:?}");
    ensure!(found["traffic"]["request_bytes"] == recorded.report.request_bytes, "{found}");
    ensure!(found["traffic"]["repeated_bytes"] == recorded.report.request_bytes, "{found}");
    ensure!(agree(&named("said.pcapng"))?.0 == whole);
    let (snap, found) = agree(&named("snap.pcapng"))?;
    ensure!(snap == whole && found["other"]["cut"].as_u64() >= Some(1_000), "{found}");
    agree(&named("micro.pcap"))?;
    let later = agree(&named("later.pcap"))?.0;
    ensure!((later.0, later.1) == (odd.0, odd.1 + 3_600_500_000_000), "{later:?} after {odd:?}");
    Ok(())
}
