//! Captured packets into pcapng files that rotate, stay within a total, and hold the capture up under no circumstances.
//!
//! ```text
//! capture thread ─ Intake::packet ─▶ byte ring (rtrb) ─▶ writer thread ─▶ DIR/tcptwin-TIME-NAME-….pcapng.part ─▶ ….pcapng
//! ```
//! The capture thread copies into the ring and counts what finds no room there: no lock, no allocation, no system call. All
//! the rest, log lines included, is the writer's. A disk that is full or fails costs packets under that name, and is tried again
//! each second.
//!
//! | file | holds |
//! |---|---|
//! | `intake` | the capture thread's end of the ring, and the form of what lies in it |
//! | `writer` | the thread: ring → blocks → files; when a file ends; what goes wrong |
//! | `part` | one file while it is written, plain or zstd |
//! | `store` | the directory: names, what a dead recorder left, the total |
//! | `pcapng` | the four kinds of blocks |
//! | `recount` | what a file holds of which its writer died |
//! | `tally` | what both ends count |

mod intake;
mod part;
mod pcapng;
mod recount;
mod store;
mod tally;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Release};
use std::thread::JoinHandle;

pub use intake::Intake;
pub use part::Amount;
pub use store::{PrepareError, prepare};
pub use tally::{Figure, Tally};

use writer::Writer;

/// Whose files they are. Files of the same name and host are one collection, of which the oldest go first; the run's number
/// keeps two recorders apart that work in one directory at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The instance's name.
    pub name: String,
    /// A number of the host.
    pub host: u32,
    /// A number of the run.
    pub run: u32,
}

/// What is recorded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where the files go; made by [`prepare`].
    pub directory: PathBuf,
    /// Whose they are.
    pub owner: Owner,
    /// What the files call the interface.
    pub interface: String,
    /// A file ends before it is longer than this, bytes.
    pub rotate_bytes: u64,
    /// A file ends when it is so old, milliseconds.
    pub rotate_ms: u64,
    /// All files of the owner together stay below this, bytes; none: no bound.
    pub keep_bytes: Option<u64>,
    /// Bytes kept of a packet from its IP header on; 0: all.
    pub snap: u32,
    /// Compressed, each file as one zstd frame.
    pub zstd: bool,
    /// Room between the capture and the disk, bytes.
    pub ring_bytes: usize,
}

/// The writer's thread, seen from the one that captures.
#[derive(Debug)]
pub struct Recorder {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    tally: Tally,
}

impl Recorder {
    /// Starts the writer. It begins with what a dead recorder of the same owner left, whose figures `tally` has: `owed` is what
    /// that one had taken and not dropped, and what of it is in no file is lost. `before` is what its thread does first: it has
    /// core and CPU priority of the one that captures, and should have neither.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(
        options: &Options,
        tally: Tally,
        owed: Amount,
        before: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<(Intake, Self)> {
        let (producer, consumer) = rtrb::RingBuffer::new(options.ring_bytes);
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer::new(options, consumer, tally);
        let asked = Arc::clone(&stop);
        let begin = move || {
            before();
            writer.run(owed, &asked);
        };
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(begin)?;
        Ok((Intake::new(producer, options.snap, tally), Self { thread, stop, tally }))
    }

    /// What was counted so far.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// No packet comes any more: the writer empties the ring, ends its file, and ends.
    pub fn stop(&self) {
        // Release: what was put into the ring before is there for who sees this.
        self.stop.store(true, Release);
        self.thread.thread().unpark();
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}
