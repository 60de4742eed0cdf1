//! What a person sees of a running instance: lines on stdout, written by a thread of their own.
//!
//! A terminal that is stopped (Ctrl-S) or a pipe that nobody reads blocks its writer for ever; the supervisor must go on
//! watching its roles meanwhile. So lines cross a bounded queue, and those that find it full are counted and forgotten.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::logging;

/// Lines waiting at most.
const QUEUE: usize = 256;
/// Time that the last lines are given at the end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The writing end.
pub(crate) struct Terminal {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
    lost: u64,
    /// Stdout is a terminal.
    pub(crate) is_terminal: bool,
    /// Colours may be used.
    pub(crate) colour: bool,
}

impl Terminal {
    /// Begins to write.
    pub(crate) fn new() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let (sender, receiver) = sync_channel(QUEUE);
        // Without the thread there is no view, and the run goes on.
        let writer =
            std::thread::Builder::new().name("terminal".to_owned()).spawn(move || write(&receiver)).ok();
        let colour = is_terminal && logging::colour_allowed();
        Self { lines: Some(sender), writer, lost: 0, is_terminal, colour }
    }

    /// Writes a line when there is room for it.
    pub(crate) fn line(&mut self, text: impl Into<String>) {
        let Some(lines) = &self.lines else { return };
        let mut text = text.into();
        if self.lost > 0 {
            text = format!("({} lines were not shown: the terminal did not take them)\n{text}", self.lost);
        }
        match lines.try_send(text) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_)) => self.lost += 1,
            Err(TrySendError::Disconnected(_)) => self.lines = None,
        }
    }

    /// Writes the last lines and waits for them, but not for ever.
    pub(crate) fn end(mut self, last: impl IntoIterator<Item = String>) {
        let until = Instant::now() + LAST_WORDS;
        if let Some(lines) = self.lines.take() {
            for mut line in last {
                while let Err(TrySendError::Full(again)) = lines.try_send(line) {
                    if Instant::now() >= until {
                        return;
                    }
                    line = again;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        if let Some(writer) = self.writer.take() {
            while !writer.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn write(lines: &Receiver<String>) {
    let mut out = io::stdout();
    for line in lines {
        // A reader that is gone (`| head`) ends the view, not the run.
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// Columns of the terminal, 80 where it does not say.
pub(crate) fn columns() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|columns| *columns >= 40)
        .unwrap_or(80)
}
