//! libpcap, opened at run time, so that the program builds and starts without it. Used by the pcap engines of capturer and
//! injector, and to compile `-F EXPR` for every engine.
//!
//! | file | holds |
//! |---|---|
//! | `compile` | an expression → a classic BPF program |
//! | `live` | a device: frames read, frames sent |
//! | `error` | what can go wrong, as sentences |
//! | `sys` | the library's functions: the only unsafe code |

mod compile;
mod error;
mod live;
mod sys;

pub use compile::{Instruction, compile};
pub use error::Error;
pub use live::{Direction, Live, Options, Packet, Stats};
pub use sys::version;

/// Link types as libpcap numbers them on Linux (`pcap/dlt.h`).
pub mod link {
    /// Ethernet.
    pub const ETHERNET: i32 = 1;
    /// The IP header comes first.
    pub const RAW: i32 = 12;
    /// Linux cooked, 16 bytes.
    pub const LINUX_SLL: i32 = 113;
    /// Linux cooked of version 2, 20 bytes.
    pub const LINUX_SLL2: i32 = 276;
}

/// Longest frame that is asked for, as the library's own tools do.
pub const MAX_SNAPLEN: i32 = 262_144;
