//! The replay machine: a pure, sans-io TCP client that replays captured flows against a target.
//!
//! Captured segments, returned headers and the time go in; records for the injector come out through a
//! [`Sink`]. No clock, no I/O, no allocation after the start. `REPLAY.md` has the rules.
//!
//! | file | holds |
//! |---|---|
//! | `config` | what a table is told at its start |
//! | `table` | the table of sessions: all that callers use |
//! | `slot` | one session as plain data, and its phases |
//! | `arena`, `chunks` | the shard's part of the region, carved; payload memory |
//! | `walk` | what a successor finds out about a predecessor's slots, while it serves |
//! | `undo` | what brings the slots back when a transaction is left open |
//! | `online` | captured segments become the held stream: order, doubles, holes |
//! | `answers` | what the online service's answers tell, where a file has them |
//! | `held`, `stash` | bytes in order for the target; bytes behind a hole |
//! | `turns` | when a turn may go out |
//! | `backlog` | what goes when payload memory runs out |
//! | `birth` | new sessions: copies, endpoints, connections |
//! | `strangers` | what is remembered of flows without a session |
//! | `nearest` | how near each client is at least |
//! | `targets` | each target as a whole: breaker, pace of connections, path |
//! | `target` | returned headers: handshake, acknowledgements, answers |
//! | `congestion`, `sack` | what may be under way, what is lost |
//! | `sender` | what leaves |
//! | `numbering` | our sequence numbers, time stamps, segment sizes |
//! | `timers`, `wheel` | deadlines |
//! | `hearing` | the way back, and who asks again when it is whole |
//! | `ending`, `lingering` | FIN, RST, reconnect, the end; who leaves when a slot is needed |
//! | `diary` | what happened to each session lately |
//! | `glance` | one session in words, from a copy of its slot and its diary |
//! | `specimen` | what is kept of an arena when a worker died of a record |
//! | `check` | the invariants, for tests |
//! | `endpoints` | the walk over the client range |
//! | `foresight`, `sys` | memory asked for before it is needed |
//! | `datagrams` | UDP: copies of datagrams, each from an endpoint of its own |
//! | `index`, `ready` | hash index over slots; the queue of sessions that may emit |
//! | `wide` | numbers of answer bytes beyond 32 bits |
//! | `tally`, `histogram` | counters, latencies |

mod answers;
mod arena;
mod backlog;
mod birth;
mod check;
mod chunks;
pub mod config;
mod congestion;
pub mod datagrams;
pub mod diary;
mod ending;
pub mod endpoints;
mod file_clock;
mod foresight;
pub mod glance;
mod hearing;
mod held;
pub mod histogram;
pub mod index;
mod lingering;
mod nearest;
mod numbering;
mod online;
mod ready;
mod sack;
mod sender;
mod shedding;
mod slot;
mod specimen;
mod stash;
mod strangers;
mod sys;
pub mod table;
pub mod tally;
mod target;
mod targets;
mod timers;
mod turns;
mod undo;
mod walk;
pub mod wheel;
mod wide;

pub use arena::FORMAT;
pub use config::{Clients, Config, Join, Limits, OnGap, Pace, Rtt, Seeds, TargetConfig, Times};
pub use datagrams::{DatagramCount, Datagrams, Order};
pub use diary::Diary;
pub use histogram::Histogram;
pub use specimen::{Part, specimen};
pub use table::{BURST, BURST_BYTES, Held, Sink, Table};
pub use tally::{Count, Dropped, Health, Tally};
pub use walk::SLICE;
