//! All files as one stream in order of time. Each file's own order is kept; packets of the same time come in the order of the files.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::file::File;
use crate::input::{Feed, Idle};
use crate::report::Report;
use crate::{Packet, Place, input};

/// A bound in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Nanoseconds since the Unix epoch.
    At(u64),
    /// Nanoseconds behind the first packet of all files.
    After(u64),
}

/// What is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Take packets out of VXLAN and GENEVE.
    pub decap: bool,
    /// Packets before it are left out.
    pub from: Option<Bound>,
    /// Packets behind it are left out.
    pub until: Option<Bound>,
    /// Packets at most.
    pub limit: Option<u64>,
}

/// How far it has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read of the files as they lie on the disk.
    pub read: u64,
    /// Their size; none when one of them is a pipe.
    pub total: Option<u64>,
}

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No file was named.
    #[error("no file is named. Write at least one pcap or pcapng file, or - for standard input")]
    NoFiles,
    /// Standard input was named twice.
    #[error("standard input (-) is named twice, and can be read once. Write - once")]
    StdinTwice,
    /// Not one file can be used; the reasons are in the report's words.
    #[error("none of the files can be read: {0}. Name a file that `tcpdump -w` or Wireshark has written")]
    Nothing(String),
}

/// Why it cannot be read again.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// It is a pipe.
    #[error("{0} is a pipe and cannot be read a second time. Save it to a file, and name that")]
    Pipe(PathBuf),
}

/// The files.
pub struct Reader {
    paths: Vec<PathBuf>,
    options: Options,
    states: Vec<State>,
    /// Time and number of each file that has a packet to come.
    next: BinaryHeap<Reverse<(u64, u32)>>,
    /// The file whose packet was handed over last: it still stands there.
    last: Option<u32>,
    from_ns: u64,
    until_ns: u64,
    ended: bool,
    feed: Arc<Feed>,
    total: Option<u64>,
    report: Report,
}

enum State {
    /// Its first packet's time is known, and it is closed until that has come.
    Waiting,
    Open(Box<File>),
    Done,
}

/// Up to so many files are all open at once. Of more, each is looked at and closed again, because a descriptor and a buffer for every
/// file of a day's rotation would be too much.
const ALL_OPEN: usize = 16;

impl Reader {
    /// Opens the files; `-` is standard input. Files that cannot be used are named in the report while others can.
    ///
    /// # Errors
    /// When none can be used.
    pub fn open(files: &[PathBuf], options: Options) -> Result<Self, OpenError> {
        Self::of(files, options, Feed::default())
    }

    /// The same; `idle` is called again and again while a pipe has nothing to read. As soon as it says false the pipe is taken for
    /// ended.
    ///
    /// # Errors
    /// When none can be used.
    pub fn open_patiently(files: &[PathBuf], options: Options, idle: Idle) -> Result<Self, OpenError> {
        Self::of(files, options, Feed { idle: Some(idle), ..Feed::default() })
    }

    fn of(files: &[PathBuf], options: Options, feed: Feed) -> Result<Self, OpenError> {
        if files.is_empty() {
            return Err(OpenError::NoFiles);
        }
        if files.iter().filter(|path| path.as_path() == Path::new(input::STDIN)).count() > 1 {
            return Err(OpenError::StdinTwice);
        }
        let mut reader = Self {
            paths: files.to_vec(),
            options,
            states: Vec::new(),
            next: BinaryHeap::with_capacity(files.len()),
            last: None,
            from_ns: 0,
            until_ns: u64::MAX,
            ended: false,
            feed: Arc::new(feed),
            total: total(files),
            report: Report::default(),
        };
        if reader.begin() == 0 {
            let notes: Vec<String> = reader.report.notes().iter().map(ToString::to_string).collect();
            return Err(OpenError::Nothing(notes.join("; ")));
        }
        Ok(reader)
    }

    /// The next packet in order of time; none at the end of all files.
    #[expect(
        clippy::should_implement_trait,
        reason = "a packet lies in the reader's buffer, which no iterator can lend"
    )]
    pub fn next(&mut self) -> Option<Packet<'_>> {
        let number = loop {
            let number = self.step()?;
            let time_ns = self.file(number).found().time_ns;
            if time_ns > self.until_ns || self.options.limit.is_some_and(|most| self.report.packets >= most) {
                self.ended = true;
                return None;
            }
            if time_ns >= self.from_ns {
                break number;
            }
            self.report.before += 1;
        };
        let State::Open(file) = &self.states[number as usize] else { unreachable!("step says so") };
        let (found, ip) = (file.found(), file.ip());
        let report = &mut self.report;
        report.packets += 1;
        report.bytes += ip.len() as u64;
        report.cut_packets += u64::from(found.wire_len as usize > ip.len());
        report.fragments += u64::from(is_fragment(ip, found.wire_len));
        report.decapsulated += u64::from(found.decapsulated);
        report.untimed += u64::from(found.untimed);
        report.first_ns.get_or_insert(found.time_ns);
        report.last_ns = Some(found.time_ns);
        let place = Place { file: number, offset: found.offset };
        Some(Packet { time_ns: found.time_ns, ip, wire_len: found.wire_len, place })
    }

    /// Begins again, with a fresh report.
    ///
    /// # Errors
    /// A pipe cannot.
    pub fn rewind(&mut self) -> Result<(), RewindError> {
        if let Some(pipe) = self.paths.iter().find(|path| is_pipe(path)) {
            return Err(RewindError::Pipe(pipe.clone()));
        }
        (self.last, self.ended, self.report) = (None, false, Report::default());
        self.states.clear();
        self.next.clear();
        self.feed.read.store(0, Relaxed);
        self.begin();
        Ok(())
    }

    /// How far it has read.
    pub fn progress(&self) -> Progress {
        Progress { read: self.feed.read.load(Relaxed), total: self.total }
    }

    /// Whether a pipe is among the files that had nothing more when it was last read, so that the next packet may be long in coming.
    pub fn may_wait(&self) -> bool {
        self.feed.is_drained.load(Relaxed)
    }

    /// What this pass found so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The files, by the numbers that packets' places use.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Goes to the first packet of each file; says how many files are packet files.
    fn begin(&mut self) -> usize {
        let mut usable = 0;
        for (path, number) in self.paths.clone().iter().zip(0..) {
            let closes = self.paths.len() > ALL_OPEN && input::is_regular(path);
            // What a look at a file reads and finds is counted when its time has come.
            let (mut found, feed) = if closes {
                (Report::default(), Arc::default())
            } else {
                (std::mem::take(&mut self.report), Arc::clone(&self.feed))
            };
            let mut file = File::open(path, &feed, &mut found);
            usable += usize::from(file.is_some());
            let has_packet = file.as_mut().is_some_and(|file| file.advance(self.options.decap, &mut found));
            let state = match file {
                Some(file) if has_packet => {
                    self.next.push(Reverse((file.found().time_ns, number)));
                    if closes { State::Waiting } else { State::Open(Box::new(file)) }
                }
                _ => State::Done,
            };
            match state {
                State::Waiting => {}
                State::Done if closes => {
                    self.feed.read.fetch_add(feed.read.load(Relaxed), Relaxed);
                    self.report.absorb(found);
                }
                _ => self.report = found,
            }
            self.states.push(state);
        }
        let first_ns = self.next.peek().map_or(0, |Reverse((time_ns, _))| *time_ns);
        let at = |bound| match bound {
            Bound::At(ns) => ns,
            Bound::After(ns) => first_ns.saturating_add(ns),
        };
        self.from_ns = self.options.from.map_or(0, at);
        self.until_ns = self.options.until.map_or(u64::MAX, at);
        usable
    }

    /// Lets the file that was read last go on, and says which has the earliest packet now.
    fn step(&mut self) -> Option<u32> {
        if self.ended {
            return None;
        }
        if let Some(number) = self.last.take() {
            self.advance(number);
        }
        loop {
            let Reverse((_, number)) = self.next.pop()?;
            if let State::Waiting = self.states[number as usize] {
                let path = &self.paths[number as usize];
                let file = File::open(path, &self.feed, &mut self.report);
                self.states[number as usize] = file.map_or(State::Done, |file| State::Open(Box::new(file)));
                self.advance(number);
                continue;
            }
            self.last = Some(number);
            return Some(number);
        }
    }

    /// Goes to a file's next packet, and closes it at its end.
    fn advance(&mut self, number: u32) {
        let state = &mut self.states[number as usize];
        let State::Open(file) = state else { return };
        if file.advance(self.options.decap, &mut self.report) {
            self.next.push(Reverse((file.found().time_ns, number)));
        } else {
            *state = State::Done;
        }
    }

    fn file(&self, number: u32) -> &File {
        match &self.states[number as usize] {
            State::Open(file) => file,
            _ => unreachable!("a file that is stepped to is open"),
        }
    }
}

fn total(files: &[PathBuf]) -> Option<u64> {
    let size = |path: &PathBuf| match is_pipe(path) {
        true => None,
        false => Some(std::fs::metadata(path).map_or(0, |is| if is.is_file() { is.len() } else { 0 })),
    };
    files.iter().map(size).sum()
}

/// Neither a file nor something that cannot be read at all.
fn is_pipe(path: &Path) -> bool {
    path == Path::new(input::STDIN) || std::fs::metadata(path).is_ok_and(|is| !is.is_file() && !is.is_dir())
}

fn is_fragment(ip: &[u8], wire_len: u32) -> bool {
    matches!(flow::ip::parse(ip, wire_len), Err(flow::Malformed::Fragment))
}
