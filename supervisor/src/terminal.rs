//! What a person sees of a running instance: lines on stdout, written by a thread of their own.
//!
//! A terminal that is stopped (Ctrl-S) or a pipe that nobody reads blocks its writer for ever; the supervisor must go on
//! watching its roles meanwhile. So lines cross a bounded queue, and those that find it full are counted and forgotten.
//!
//! Below the last line one may stand that is written anew each time (a bar). The cursor waits at its beginning, because the roles
//! write their log to the same terminal by themselves: what they say begins a line, and the bar comes back below it.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::logging;
use crate::relay::{self, LAST_WORDS};

/// Lines waiting at most.
const QUEUE: usize = 256;

/// The writing end.
pub(crate) struct Terminal {
    lines: Option<SyncSender<Said>>,
    writer: Option<JoinHandle<()>>,
    lost: u64,
    /// Stdout is a terminal.
    pub(crate) is_terminal: bool,
    /// Colours may be used.
    pub(crate) colour: bool,
    /// A line may be written anew: on a terminal for a person, and not in the log of a CI job that pretends to be one.
    pub(crate) rewrites: bool,
}

/// What the writer is told.
enum Said {
    Line(String),
    /// What stands below the last line from now on.
    Below(String),
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
        let rewrites = colour && std::env::var_os("CI").is_none_or(|value| value.is_empty());
        Self { lines: Some(sender), writer, lost: 0, is_terminal, colour, rewrites }
    }

    /// Writes a line when there is room for it.
    pub(crate) fn line(&mut self, text: impl Into<String>) {
        let Some(lines) = &self.lines else { return };
        let mut text = text.into();
        if self.lost > 0 {
            text = format!("({} lines were not shown: the terminal did not take them)\n{text}", self.lost);
        }
        match lines.try_send(Said::Line(text)) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_)) => self.lost += 1,
            Err(TrySendError::Disconnected(_)) => self.lines = None,
        }
    }

    /// Writes a line anew that stands below all others.
    pub(crate) fn below(&self, text: String) {
        // One that finds no room is followed by a newer one.
        let _ = self.lines.as_ref().map(|lines| lines.try_send(Said::Below(text)));
    }

    /// Writes the last lines and waits for them, but not for ever.
    pub(crate) fn end(mut self, last: impl IntoIterator<Item = String>) {
        let until = Instant::now() + LAST_WORDS;
        if let Some(lines) = self.lines.take() {
            for mut line in last.into_iter().map(Said::Line) {
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
            relay::wait_for(&writer, until);
        }
    }
}

fn write(lines: &Receiver<Said>) {
    let mut out = io::stdout();
    let mut page = Page::default();
    for said in lines {
        // A reader that is gone (`| head`) ends the view, not the run.
        if out.write_all(page.bytes(said).as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
    let _ = out.write_all(page.last().as_bytes()).and_then(|()| out.flush());
}

/// What stands below the last line.
#[derive(Default)]
struct Page {
    below: String,
}

impl Page {
    /// What to write.
    fn bytes(&mut self, said: Said) -> String {
        match said {
            Said::Line(line) if self.below.is_empty() => format!("{line}\n"),
            Said::Line(line) => format!("{ERASE}{line}\n{}", self.bar()),
            Said::Below(text) => {
                self.below = text;
                self.bar()
            }
        }
    }

    /// Nothing stands below any more.
    fn last(&self) -> &'static str {
        if self.below.is_empty() { "" } else { ERASE }
    }

    /// Cut at the edge, since half of a line that was broken in two could not be erased.
    fn bar(&self) -> String {
        format!("\x1b[?7l{}\x1b[K\x1b[?7h\r", self.below)
    }
}

/// Erases the line that the cursor stands on.
const ERASE: &str = "\r\x1b[K";

/// A bar of so many cells, `share` of them full.
pub(crate) fn bar(share: f64, cells: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * cells as f64) as usize;
    let tip = if full < cells { ">" } else { "" };
    format!("[{:<cells$}]", format!("{}{tip}", "=".repeat(full)))
}

/// Columns of the terminal, 80 where it does not say.
pub(crate) fn columns() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|columns| *columns >= 40)
        .unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_the_place_of_the_bar_which_comes_below_it() {
        let mut page = Page::default();
        assert_eq!(page.bytes(Said::Line("one".into())), "one\n");
        let bar = "\x1b[?7l45 %\x1b[K\x1b[?7h\r";
        assert_eq!(page.bytes(Said::Below("45 %".into())), bar);
        assert_eq!(page.bytes(Said::Line("two".into())), format!("\r\x1b[Ktwo\n{bar}"));
        assert_eq!(page.last(), "\r\x1b[K");
    }

    #[test]
    fn a_bar_is_as_long_as_it_is_told_whatever_its_share() {
        for (share, drawn) in [
            (0.0, "[>         ]"),
            (0.5, "[=====>    ]"),
            (0.99, "[=========>]"),
            (1.0, "[==========]"),
            (7.0, "[==========]"),
        ] {
            assert_eq!(bar(share, 10), drawn);
        }
    }
}
