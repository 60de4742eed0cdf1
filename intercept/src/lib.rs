//! The intercept role: sees the targets' answers, returns their headers to the owners. One process, two threads:
//!
//! ```text
//! packet rings or TUN -> capture thread: parse, find owner, queue, seal, send ---> peers' sockets
//!                              ^ rtrb: attach, detach, claims, pings                    |
//!                        link thread: accept, handshake, hello, read <-----------------+
//! ```
//! The capture thread sends what it drained at once and never waits: what a full socket refuses stays in that instance's
//! window. The link thread never touches what the capture thread uses, so that handshakes, strangers and floods of claims
//! cost the forwarding nothing.
//!
//! | file | holds |
//! |---|---|
//! | `run` | opening and ending |
//! | `options` | options, limits, summary, errors |
//! | `capture` | the capture thread |
//! | `source`, `ring_source`, `tun` | where headers come from |
//! | `sys`, `netlink` | the device of `--tun` and its routes |
//! | `forward` | one header's way to its owner |
//! | `icmp` | ICMP errors to replayed clients |
//! | `owners`, `claims`, `held` | whose client it is: by range, by claim, or not known yet |
//! | `peers`, `window` | queues and the sending side of connections |
//! | `command` | from the link thread to the capture thread |
//! | `door`, `listen` | the link thread and its listeners |
//! | `advice`, `guide` | commands that the operator needs |
//! | `stats`, `limiter` | counters, and log lines with a limit |

mod advice;
mod capture;
mod claims;
mod command;
mod door;
mod forward;
mod guide;
mod held;
mod icmp;
mod limiter;
mod listen;
mod netlink;
mod options;
mod owners;
mod peers;
mod ring_source;
mod run;
pub mod source;
mod stats;
mod sys;
#[cfg(test)]
mod testing;
mod tun;
mod window;

pub use options::{
    DEFAULT_CAPTURE_BYTES, DEFAULT_PORT, DEFAULT_TUN, InterceptError, Limits, Options, Summary, TunOptions,
};
pub use run::{Intercept, run};
pub use stats::{Count, Door, PeerStats, Stats};
pub use tun::TunError;

/// Instances connected at a time.
pub const MAX_PEERS: usize = 64;
