//! The way of log lines to stderr, which the loops never wait at: a pipe that takes a line at once or not at all, and a
//! thread that carries the lines on to where the person wants them.
//!
//! A terminal that is stopped (Ctrl-S) and a pipe that nobody reads hold up whoever writes there; so does a file, for as
//! long as the journal of its file system waits for the disk. Stderr of the supervisor and of intercept is this pipe, and
//! roles inherit it. Lines that it has no room for are counted, and the next one says how many.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{dup2_stderr, pipe2};

/// Of this process; stderr is a thing of the whole process as well.
static RELAY: OnceLock<Relay> = OnceLock::new();
/// Lines that found no room since the last one that did.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Time that the last lines are given at the end.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(3);

struct Relay {
    /// Where the lines come out.
    lines: File,
    /// The stderr that this process was started with.
    given: File,
    carrier: Mutex<Option<JoinHandle<()>>>,
}

/// Puts the pipe in the place of stderr. Lines wait in it (64 KiB) until [`carry`].
///
/// # Errors
/// The system is out of descriptors; stderr is as before.
pub(crate) fn lay() -> io::Result<()> {
    if RELAY.get().is_some() {
        return Ok(());
    }
    let given = io::stderr().as_fd().try_clone_to_owned()?;
    let (lines, room) = pipe2(OFlag::O_CLOEXEC)?;
    // Of this open file description, which is ours and our roles' alone; that of the given stderr is its owner's.
    fcntl(&room, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    dup2_stderr(room)?;
    set(lines, given);
    Ok(())
}

fn set(lines: OwnedFd, given: OwnedFd) {
    // The first one stays, as stderr does.
    let _ = RELAY.set(Relay { lines: lines.into(), given: given.into(), carrier: Mutex::new(None) });
}

/// Goes on with the pipe that the image before this one had laid: the numbers that it had in [`numbers`].
///
/// # Errors
/// They are no open descriptors.
pub(crate) fn inherit((lines, given): (RawFd, RawFd)) -> io::Result<()> {
    set(shm::inherit(lines)?, shm::inherit(given)?);
    Ok(())
}

/// Starts the thread. Not before this process has given up what it does not need: a thread keeps what it had when it began.
///
/// # Errors
/// No thread can be had.
pub(crate) fn carry() -> io::Result<()> {
    let Some(relay) = RELAY.get() else { return Ok(()) };
    let (mut from, mut to) = (&relay.lines, &relay.given);
    let work = move || {
        // A reader that is gone (`2>&1 | head`) ends the log, not the run: the lines are read all the same, or they would
        // be counted as lost.
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            let _ = to.write_all(&bytes[..length]);
        }
    };
    let carrier = std::thread::Builder::new().name("log".to_owned()).spawn(work)?;
    *relay.carrier.lock().expect("no holder panics") = Some(carrier);
    Ok(())
}

/// Gives stderr back, once the lines are out or had their time.
pub(crate) fn end() {
    let Some(relay) = RELAY.get() else { return };
    // Ours was the last writing end, or nearly so: the carrier comes to the end of the pipe.
    let Ok(()) = dup2_stderr(&relay.given) else { return };
    let Some(carrier) = relay.carrier.lock().expect("no holder panics").take() else {
        return pour(relay);
    };
    wait_for(&carrier, Instant::now() + LAST_WORDS);
}

/// Waits for a thread that may never end.
pub(crate) fn wait_for(thread: &JoinHandle<()>, until: Instant) {
    while !thread.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Without the thread: what was said before a refusal.
fn pour(relay: &Relay) {
    let _ = fcntl(&relay.lines, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let mut text = Vec::new();
    // What was read before an error is in the text.
    let _ = (&relay.lines).read_to_end(&mut text);
    let _ = io::stderr().write_all(&text);
}

/// For the next image of this process: both descriptors.
pub(crate) fn descriptors<'any>() -> impl Iterator<Item = BorrowedFd<'any>> {
    RELAY.get().into_iter().flat_map(|relay| [relay.lines.as_fd(), relay.given.as_fd()])
}

/// The same as numbers.
pub(crate) fn numbers() -> Option<(RawFd, RawFd)> {
    RELAY.get().map(|relay| (relay.lines.as_raw_fd(), relay.given.as_raw_fd()))
}

/// Whether what is said here comes to a terminal.
pub(crate) fn ends_at_a_terminal() -> bool {
    RELAY.get().map_or_else(|| io::stderr().is_terminal(), |relay| relay.given.is_terminal())
}

/// Writes lines to stderr, or loses and counts them where it has no room.
pub(crate) struct Lines<F>(F);

/// Those of this process.
pub(crate) fn lines() -> Lines<io::Stderr> {
    Lines(io::stderr())
}

impl<F: AsFd> Write for Lines<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = LOST.swap(0, Relaxed);
        let told = match lost {
            0 => Vec::new(),
            lost => format!("({lost} lines of the log were lost: stderr did not take them)\n").into_bytes(),
        };
        // One call: a pipe takes up to 4,096 bytes whole or not at all (pipe(7)), so lines of several processes stay lines.
        match nix::unistd::write(&self.0, &[&told, line].concat()) {
            Ok(length) if length >= told.len() => Ok(length - told.len()),
            Ok(_) => Ok(line.len()),
            Err(nix::errno::Errno::EINTR) => {
                LOST.fetch_add(lost, Relaxed);
                Err(io::ErrorKind::Interrupted.into())
            }
            // Nobody could be told of an error either.
            Err(_) => {
                LOST.fetch_add(lost + 1, Relaxed);
                Ok(line.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_no_time() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut lines = Lines(write);
        let line = [b"a".repeat(99), b"\n".to_vec()].concat();
        for _ in 0..2_000 {
            lines.write_all(&line).unwrap();
        }
        let mut text = String::new();
        let mut read = File::from(read);
        assert!(read.read_to_string(&mut text).is_err(), "it is open still");
        let whole = text.lines().count() as u64;
        assert!(
            (600..700).contains(&whole) && text.len() as u64 == whole * 100,
            "{whole} lines of 100 bytes in 64 KiB"
        );
        lines.write_all(b"after it\n").unwrap();
        drop(lines);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        let lost = 2_000 - whole;
        assert_eq!(
            text,
            format!("({lost} lines of the log were lost: stderr did not take them)\nafter it\n")
        );
    }
}
