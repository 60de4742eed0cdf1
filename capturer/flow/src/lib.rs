//! Flows and segments: the vocabulary that every process of the pipeline shares. Pure: no clock, no I/O, no allocation.
//!
//! | file | holds |
//! |---|---|
//! | `endpoint` | addresses and ports, IPv4 as v4-mapped IPv6 |
//! | `seq` | sequence numbers in serial arithmetic |
//! | `range` | address ranges of replayed clients |
//! | `record` | the records that cross the rings: captured, injected, returned |
//! | `reason` | why a byte was dropped |
//! | `names` | enums whose variants have stable names in counters and JSON |

pub mod endpoint;
pub mod names;
pub mod reason;
pub mod range;
pub mod record;
pub mod seq;

pub use endpoint::{Addr, Endpoint};
pub use range::Range;
pub use reason::Drop;
pub use record::{Captured, Inject, Returned, TcpFields};
pub use seq::Seq;
