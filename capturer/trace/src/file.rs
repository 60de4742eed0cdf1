//! One file: its records as IP packets, in its own order. Called by `reader`, which keeps each file at its next packet.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::input::Feed;
use crate::link::{Without, ip_offset};
use crate::pcap::Pcap;
use crate::pcapng::{Block, PcapNg};
use crate::report::{Report, Trouble};
use crate::window::Window;
use crate::{decap, input};

/// A captured frame as a format gives it; its record stands at the window's start.
pub(crate) struct Raw {
    /// Nanoseconds since the Unix epoch, where the record has a time.
    pub(crate) time_ns: Option<u64>,
    pub(crate) link: u16,
    /// Where in the window.
    pub(crate) frame: Range<usize>,
    /// At least the frame's captured length.
    pub(crate) wire_len: u32,
    pub(crate) record_len: u64,
}

/// Why no more records come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The file ends where a record ends.
    End,
    /// It ends within one.
    Cut,
    /// A record's lengths cannot be.
    Damaged(String),
}

/// A file at its next packet.
pub(crate) struct File {
    path: PathBuf,
    window: Window,
    format: Format,
    latest_ns: u64,
    found: Found,
    /// Bytes of the record at the window's start.
    record_len: u64,
}

/// The packet that a file stands at.
#[derive(Clone, Default)]
pub(crate) struct Found {
    pub(crate) time_ns: u64,
    pub(crate) wire_len: u32,
    pub(crate) offset: u64,
    pub(crate) untimed: bool,
    pub(crate) decapsulated: bool,
    ip: Range<usize>,
}

enum Format {
    Pcap(Pcap),
    PcapNg(PcapNg),
}

impl File {
    /// Opens a file in front of its first packet; none when it cannot be opened or is no packet file, which the report then says.
    pub(crate) fn open(path: &Path, feed: &Arc<Feed>, report: &mut Report) -> Option<Self> {
        let mut note = |trouble, detail| report.add(trouble, || (path.to_owned(), 0, detail));
        let mut window = match input::open(path, feed) {
            Ok(window) => window,
            Err(why) => {
                note(Trouble::Unopened, why);
                return None;
            }
        };
        let format = match Pcap::begin(&mut window) {
            Some(pcap) => Some(Format::Pcap(pcap)),
            None => PcapNg::begin(&mut window).map(Format::PcapNg),
        };
        let Some(format) = format else {
            match window.failure() {
                Some(error) => note(Trouble::Unreadable, input::words(&error)),
                None if window.bytes().is_empty() => note(Trouble::Empty, String::new()),
                None => note(Trouble::UnknownFormat, String::new()),
            }
            return None;
        };
        let path = path.to_owned();
        Some(Self { path, window, format, latest_ns: 0, found: Found::default(), record_len: 0 })
    }

    /// The packet that it stands at.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    /// Its bytes.
    pub(crate) fn ip(&self) -> &[u8] {
        &self.window.bytes()[self.found.ip.clone()]
    }

    /// Goes on to the next IP packet; false at the end.
    pub(crate) fn advance(&mut self, decapsulate: bool, report: &mut Report) -> bool {
        loop {
            let len = std::mem::take(&mut self.record_len);
            if !self.window.consume(len) {
                self.stopped(Stop::Cut, report);
                return false;
            }
            let offset = self.window.offset();
            let raw = match self.record(report) {
                Ok(Some(raw)) => raw,
                Ok(None) => continue,
                Err(stop) => {
                    self.stopped(stop, report);
                    return false;
                }
            };
            self.record_len = raw.record_len;
            match self.packet(&raw, decapsulate) {
                Ok(found) => {
                    let time_ns = self.in_order(raw.time_ns, offset, report);
                    self.found = Found { time_ns, offset, untimed: raw.time_ns.is_none(), ..found };
                    return true;
                }
                Err(Without::NotIp) => report.not_ip += 1,
                Err(Without::DeepTags) => self.note(report, Trouble::DeepTags, offset, ""),
                Err(Without::Short) => self.note(report, Trouble::ShortFrame, offset, ""),
                Err(Without::Unknown) => {
                    let path = &self.path;
                    report.add(Trouble::UnknownLink, || {
                        (path.clone(), offset, format!("link type {}", raw.link))
                    });
                }
            }
        }
    }

    /// The record at the window's start, if it holds a frame.
    fn record(&mut self, report: &mut Report) -> Result<Option<Raw>, Stop> {
        let offset = self.window.offset();
        let section = match &mut self.format {
            Format::Pcap(pcap) => return pcap.record(&mut self.window).map(Some),
            Format::PcapNg(section) => section,
        };
        match section.block(&mut self.window)? {
            Block::Packet(raw) => return Ok(Some(raw)),
            Block::Other => {}
            Block::Bad(why) => self.note(report, Trouble::BadRecord, offset, why),
            Block::UnknownInterface(number) => {
                let path = &self.path;
                report
                    .add(Trouble::UnknownInterface, || (path.clone(), offset, format!("interface {number}")));
            }
        }
        Ok(None)
    }

    /// The IP packet in a frame, without its time and place.
    fn packet(&self, raw: &Raw, decapsulate: bool) -> Result<Found, Without> {
        let frame = &self.window.bytes()[raw.frame.clone()];
        let at = ip_offset(raw.link, frame)?;
        let whole = Found {
            ip: raw.frame.start + at..raw.frame.end,
            wire_len: raw.wire_len - at as u32,
            ..Found::default()
        };
        if !decapsulate {
            return Ok(whole);
        }
        match decap::inner(&frame[at..], whole.wire_len)? {
            None => Ok(whole),
            Some(inner) => {
                let start = whole.ip.start + inner.at;
                // Bytes behind the outer packet are padding of its frame.
                let end = whole.ip.end.min(start + inner.wire_len as usize);
                Ok(Found { ip: start..end, wire_len: inner.wire_len, decapsulated: true, ..whole })
            }
        }
    }

    /// A time that does not go backwards.
    fn in_order(&mut self, time_ns: Option<u64>, offset: u64, report: &mut Report) -> u64 {
        match time_ns {
            Some(time_ns) if time_ns >= self.latest_ns => self.latest_ns = time_ns,
            Some(time_ns) => {
                let (path, back_ms) = (&self.path, (self.latest_ns - time_ns) as f64 / 1e6);
                report.add(Trouble::TimeBackwards, || (path.clone(), offset, format!("by {back_ms:.3} ms")));
            }
            None => {}
        }
        self.latest_ns
    }

    fn stopped(&mut self, stop: Stop, report: &mut Report) {
        let offset = self.window.offset();
        let (trouble, detail) = match (self.window.failure(), stop) {
            (Some(error), _) => (Trouble::Unreadable, input::words(&error)),
            (None, Stop::End) => return,
            (None, Stop::Cut) => (Trouble::Cut, String::new()),
            (None, Stop::Damaged(how)) => (Trouble::Damaged, how),
        };
        report.add(trouble, || (self.path.clone(), offset, detail));
    }

    fn note(&self, report: &mut Report, trouble: Trouble, offset: u64, detail: &str) {
        report.add(trouble, || (self.path.clone(), offset, detail.to_owned()));
    }
}
