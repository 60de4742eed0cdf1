//! Flows and segments: the vocabulary that every process of the pipeline shares. Pure: no clock, no I/O, no allocation.
//!
//! | file | holds |
//! |---|---|
//! | `endpoint` | addresses and ports, IPv4 as v4-mapped IPv6 |
//! | `seq` | sequence numbers in serial arithmetic |
//! | `range` | address ranges of replayed clients |
//! | `probe` | endpoints of clients that probes speak from |
//! | `record` | the records that cross the rings: captured, injected, returned |
//! | `reason` | why a byte was dropped |
//! | `ip` | the IP header of a captured packet, extension headers included |
//! | `segment` | a captured packet as a TCP segment |
//! | `datagram` | a captured packet as a UDP datagram, or as a fragment of one |
//! | `options` | TCP options, read and written |
//! | `emit` | the headers of a segment to be sent |
//! | `emit_udp` | the headers of a datagram to be sent, and of its fragments |
//! | `checksum` | the Internet checksum over bytes in several places |
//! | `hash` | keyed hashes of endpoints and flows; the shard of an endpoint |
//! | `sample` | how many times a flow is replayed |
//! | `names` | enums whose variants have stable names in counters and JSON |
//! | `words` | how an error of the system reads inside a sentence |

pub mod checksum;
pub mod datagram;
pub mod emit;
pub mod emit_udp;
pub mod endpoint;
pub mod hash;
pub mod ip;
pub mod names;
mod options;
pub mod probe;
pub mod range;
pub mod reason;
pub mod record;
pub mod sample;
pub mod segment;
pub mod seq;
pub mod words;

pub use datagram::Datagram;
pub use endpoint::{Addr, Endpoint};
pub use range::Range;
pub use reason::Drop;
pub use record::{Captured, Inject, Returned, TcpFields};
pub use segment::{Malformed, Segment};
pub use seq::Seq;
