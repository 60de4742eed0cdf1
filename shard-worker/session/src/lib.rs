//! The replay machine: a pure, sans-io TCP client that replays captured flows.

pub mod config;
pub mod endpoints;
pub mod histogram;
pub mod index;
pub mod table;
pub mod tally;
pub mod wheel;

pub use config::{Clients, Config, Join, Limits, Rtt, Seeds, TargetConfig, Times};
pub use histogram::Histogram;
pub use table::{BURST, BURST_BYTES, Sink, Table};
pub use tally::{Count, Dropped, Tally};
