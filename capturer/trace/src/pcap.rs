//! The classic format (draft-ietf-opsawg-pcap): a header, then records with two lengths each.

use pcap_parser::pcap::parse_pcap_header;

use crate::MAX_PACKET;
use crate::file::{Raw, Stop};
use crate::window::Window;

/// What the file's header says.
pub(crate) struct Pcap {
    big_endian: bool,
    nanoseconds: bool,
    link: u16,
}

const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

impl Pcap {
    /// From the file's header, if it is one.
    pub(crate) fn begin(window: &mut Window) -> Option<Self> {
        if !window.fill(FILE_HEADER) {
            return None;
        }
        let (_, header) = parse_pcap_header(window.bytes()).ok()?;
        window.consume(FILE_HEADER as u64);
        // The upper half holds the length of a frame check sequence, which is padding to us.
        let link = header.network.0 as u32 as u16;
        Some(Self { big_endian: header.is_bigendian(), nanoseconds: header.is_nanosecond_precision(), link })
    }

    /// The record at the window's start, which stays there.
    pub(crate) fn record(&self, window: &mut Window) -> Result<Raw, Stop> {
        if !window.fill(RECORD_HEADER) {
            return Err(if window.bytes().is_empty() { Stop::End } else { Stop::Cut });
        }
        let word = |at: usize| {
            let bytes = window.bytes()[at..].first_chunk().expect("a record header is buffered");
            if self.big_endian { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) }
        };
        let (seconds, fraction, captured, original) = (word(0), word(4), word(8), word(12));
        if captured > MAX_PACKET {
            return Err(Stop::Damaged(format!("a packet of {captured} bytes")));
        }
        let len = RECORD_HEADER + captured as usize;
        if !window.fill(len) {
            return Err(Stop::Cut);
        }
        let unit = if self.nanoseconds { 1 } else { 1_000 };
        let time_ns = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * unit;
        Ok(Raw {
            time_ns: Some(time_ns),
            link: self.link,
            frame: RECORD_HEADER..len,
            wire_len: original.max(captured),
            record_len: len as u64,
        })
    }
}
