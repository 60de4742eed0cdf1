//! Packet files as one stream of IP packets in order of time: pcap and pcapng, plain, gzip or zstd, one or many, files or pipes.
//! Files in, packets out; no socket, no thread, and after the first packets no allocation.
//!
//! Called by the survey of `replay --dry-run` and by whatever replays a file. What must hold: any bytes give packets and named
//! troubles, never a panic, a hang or growth; memory is one buffer ([`window`]) a file that is open, and of many files only those
//! are open whose time has come.
//!
//! | file | holds |
//! |---|---|
//! | `reader` | all files merged by time, bounds, rewinding |
//! | `file` | one file: records → IP packets in its own order |
//! | `pcap`, `pcapng` | the two formats, record by record |
//! | `link` | link-layer headers; the live engines use it too |
//! | `decap` | VXLAN and GENEVE |
//! | `input` | opening, compression, how much was read |
//! | `window` | the buffer |
//! | `report` | what was read, what was left out and where |

mod decap;
mod file;
mod input;
pub mod link;
mod pcap;
mod pcapng;
mod reader;
mod report;
mod window;

pub use input::{Idle, is_regular};
pub use reader::{Bound, OpenError, Options, Progress, Reader, RewindError};
pub use report::{Note, Report, Trouble};

/// One packet from its IP header on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// When it was seen, nanoseconds since the Unix epoch. Never less than that of the packet before.
    pub time_ns: u64,
    /// The packet, as far as it was captured.
    pub ip: &'a [u8],
    /// Its length on the wire, from the IP header on; at least `ip.len()`.
    pub wire_len: u32,
    /// Where it stands.
    pub place: Place,
}

/// A place in the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Which of the files, from 0.
    pub file: u32,
    /// Byte at which its record begins, in the uncompressed file.
    pub offset: u64,
}

/// Longest captured packet that is believed, bytes: what libpcap itself writes at most (MAXIMUM_SNAPLEN).
pub const MAX_PACKET: u32 = 262_144;
