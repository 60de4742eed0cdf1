//! Packets out of pipes, which can be read once and have no end that anybody knows: standard input, and names made by mkfifo.

use std::fs::OpenOptions;
use std::io::{PipeReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::story::{Story, step};
use lab::twin::Ended;
use lab::{Instance, Load, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::files::{Bench, FAST, asked, pcap};
use crate::offline::LIMIT;
use crate::stage::SETTLE;

pub(crate) const STORIES: &[Story] = &[
    ("a_file_from_standard_input", 90, a_file_from_standard_input),
    ("a_named_pipe_is_replayed", 60, a_named_pipe_is_replayed),
    ("a_named_pipe_that_nobody_writes_to", 60, a_named_pipe_that_nobody_writes_to),
    ("a_named_pipe_whose_writer_or_reader_dies", 90, a_named_pipe_whose_writer_or_reader_dies),
];

/// Compressed, and in two halves, as from a program that is slow.
fn feed(bytes: Vec<u8>, pause: Duration) -> Result<(PipeReader, std::thread::JoinHandle<()>)> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes)?;
    let packed = encoder.finish()?;
    let (reader, mut writer) = std::io::pipe()?;
    let feeding = std::thread::spawn(move || {
        for half in packed.chunks(packed.len().div_ceil(2)) {
            // A reader that is gone is what some stories are about.
            if writer.write_all(half).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    });
    Ok((reader, feeding))
}

fn a_file_from_standard_input() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), ..load })?;
    // Longer than a role may be silent.
    let pause = Duration::from_millis(2_500);
    let (before, began) = (bench.heard(), Instant::now());
    let (pipe, feeding) = feed(pcap(&bench.parts), pause)?;
    let replay = bench.begin(&[Path::new("-")], &FAST, Some(pipe))?;
    let replayed = bench.ended(replay, &before, began)?;
    replayed.is_whole(&asked(&bench.parts), 1)?;
    ensure!(replayed.took >= pause * 2, "it ended before its input, after {:?}", replayed.took);
    let capturer = replayed.stats.roles()?.into_iter().find(|role| role.role == "capturer");
    ensure!(
        capturer.is_some_and(|role| role.restarts == 0),
        "its reader was taken for hung: {}",
        replayed.stderr
    );
    feeding.join().expect("it does not panic");
    step("a reader that is killed cannot read it again");
    let before = bench.heard();
    let (pipe, feeding) = feed(pcap(&bench.parts), Duration::from_secs(3))?;
    let mut replay = bench.begin(&[Path::new("-")], &FAST, Some(pipe))?;
    replay.wait_ready()?;
    let target = &bench.recorded.stage.target;
    wait::until("some requests are replayed", SETTLE, || target.answered() >= 1_050)?;
    replay.kill_role("capturer", 0)?;
    let replayed = bench.ended(replay, &before, began)?;
    ensure!(replayed.stderr.contains("which cannot be read again"), "it said: {}", replayed.stderr);
    ensure!(replayed.heard.values().all(|times| *times <= 1), "a request came twice");
    ensure!(replayed.stats.in_flight() == 0, "{}", replayed.stats.ledger());
    feeding.join().expect("it does not panic");
    Ok(())
}

fn pipe(bench: &Bench) -> Result<PathBuf> {
    let path = bench.dir.file("pipe");
    mkfifo(&path, Mode::from_bits_truncate(0o600))?;
    Ok(path)
}

/// Writes to a pipe, as `tcpdump -w` would; what it cannot write because its reader is gone it keeps.
fn write(path: &Path, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    let path = path.to_owned();
    std::thread::spawn(move || {
        // Opening waits for the reader.
        let _ = OpenOptions::new().write(true).open(path).and_then(|mut pipe| pipe.write_all(&bytes));
    })
}

fn a_named_pipe_is_replayed() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), requests: 500, ..load })?;
    let pipe = pipe(&bench)?;
    let (before, began) = (bench.heard(), Instant::now());
    let replay = bench.begin(&[&pipe], &FAST, None)?;
    let writer = write(&pipe, pcap(&bench.parts));
    bench.ended(replay, &before, began)?.is_whole(&asked(&bench.parts), 1)?;
    writer.join().expect("it does not panic");
    Ok(())
}

/// It ends by itself, not in order, and says this.
fn ends_saying(replay: Instance, within: Duration, sentences: &[&str]) -> Result<()> {
    let Ended { status, stderr, .. } = replay.wait(within)?;
    ensure!(status.code() == Some(1), "it ended with {status}: {stderr}");
    let missing: Vec<_> = sentences.iter().filter(|sentence| !stderr.contains(**sentence)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not in: {stderr}");
    Ok(())
}

fn a_named_pipe_that_nobody_writes_to() -> Result<()> {
    let bench = Bench::new(|load| Load { requests: 20, ..load })?;
    let pipe = pipe(&bench)?;
    let nothing = format!("no packet came out of the pipe {}", pipe.display());
    step("nobody comes");
    let began = Instant::now();
    let replay = bench.begin(&[&pipe], &FAST, None)?;
    ends_saying(replay, SETTLE * 2, &["is a pipe that nobody has written to for 10 s", &nothing])?;
    ensure!(began.elapsed() >= Duration::from_secs(10), "it did not wait: {:?}", began.elapsed());
    step("Ctrl-C while it waits");
    let mut replay = bench.begin(&[&pipe], &FAST, None)?;
    replay.wait_ready()?;
    let began = Instant::now();
    replay.signal(Signal::SIGINT)?;
    ends_saying(replay, SETTLE, &[&nothing])?;
    ensure!(began.elapsed() < Duration::from_secs(5), "that took {:?}", began.elapsed());
    Ok(())
}

fn a_named_pipe_whose_writer_or_reader_dies() -> Result<()> {
    let bench = Bench::new(|load| Load { rate: Some(1_000.0), requests: 500, ..load })?;
    let pipe = pipe(&bench)?;
    step("its writer dies within a packet");
    let (before, began) = (bench.heard(), Instant::now());
    let middle = bench.parts.len() / 2;
    let mut bytes = pcap(&bench.parts[..middle]);
    bytes.extend_from_slice(&pcap(&bench.parts[middle..])[24..24 + 16 + 7]);
    let replay = bench.begin(&[&pipe], &FAST, None)?;
    let writer = write(&pipe, bytes);
    let replayed = bench.ended(replay, &before, began)?;
    writer.join().expect("it does not panic");
    let heard = replayed.heard.values().sum::<u32>();
    ensure!((200..300).contains(&heard), "{heard} of the first 250 requests: {}", replayed.stderr);
    ensure!(replayed.stderr.contains("ends within"), "it did not say so: {}", replayed.stderr);
    step("its reader is killed");
    let before = bench.heard();
    let mut replay = bench.begin(&[&pipe], &[], None)?;
    // So much that the writer waits for its reader when that is killed.
    let mut bytes = pcap(&bench.parts);
    bytes.extend(pcap(&bench.parts)[24..].repeat(20));
    let writer = write(&pipe, bytes);
    replay.wait_ready()?;
    let target = &bench.recorded.stage.target;
    let heard = target.answered();
    wait::until("some requests are replayed", SETTLE, || target.answered() >= heard + 50)?;
    replay.kill_role("capturer", 0)?;
    let replayed = bench.ended(replay, &before, began)?;
    let said = format!("while it read {}, which cannot be read again", pipe.display());
    ensure!(replayed.stderr.contains(&said), "it said: {}", replayed.stderr);
    ensure!(replayed.heard.values().all(|times| *times <= 1), "a request came twice");
    wait::until("its writer is told", LIMIT, || writer.is_finished())?;
    Ok(())
}
