//! The shard worker role: captured and returned packets in, injected packets out. The session machine decides; this crate
//! moves bytes, time and counters between it and the shared region.
//!
//! | file | holds |
//! |---|---|
//! | `worker` | the poll loop, drain and end |
//! | `shard` | what one transaction moves together; pause; what was died of |
//! | `inbox` | both input rings, a batch of each, held until its consequences are published |
//! | `outbox` | the output ring as the machine's sink, and the credits |
//! | `counters` | where each value stands in the role's block; publishing a tally |
//! | `config` | the plan as the machine's configuration |

mod config;
pub mod counters;
mod inbox;
mod outbox;
mod pace;
mod shard;
mod worker;

pub use config::{arena_bytes, arena_of_datagrams, datagrams, diary_at, machine_config, session_bytes};
pub use counters::{Gauge, Latency, WorkerCount};
pub use session::Count;
pub use worker::{WorkerError, run};
