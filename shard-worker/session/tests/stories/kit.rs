//! The kit: `World` runs a table against a target in virtual time, `Client` writes what the online host captures.
//!
//! | file | holds |
//! |---|---|
//! | `world` | virtual time: what was captured, what is under way, what the table does |
//! | `wire` | what the table sends, and what happens to it under way |
//! | `peer` | the target: its options, and a connection as it sees it |
//! | `target` | the target's TCP and its application |
//! | `client` | a real client |

mod client;
mod peer;
mod target;
mod wire;
mod world;

use flow::Endpoint;
use session::{Clients, Config, Join, Limits, OnGap, Pace, Rtt, Seeds, Table, TargetConfig, Times};

pub use client::Client;
pub use peer::{App, LINES, Peer, TargetOptions};
pub use wire::{Fate, Sent};
pub use world::World;

pub const TARGET: &str = "10.0.3.2:8080";
pub const SERVER: &str = "10.0.1.1:80";
pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;
/// One way between us and the target.
pub const WIRE_US: u64 = 50;

pub fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}

pub fn config() -> Config {
    Config {
        shards: 1,
        shard: 0,
        seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
        clients: Clients::Pool {
            v4: Some("198.18.0.0/20".parse().expect("a range")),
            v6: Some("2001:2::/64".parse().expect("a range")),
        },
        targets: vec![TargetConfig { endpoint: endpoint(TARGET), mtu: 1500 }],
        mappings: vec![0],
        wait: true,
        rtt: Rtt::None,
        join: Join::Boundary,
        on_gap: OnGap::Skip,
        pace: Pace::default(),
        limits: Limits { sessions: 64, chunks: 2048, held_per_session: 1 << 20 },
        times: Times::default(),
        claim: false,
        file_us: None,
        repeatable: false,
    }
}

/// Zeroed memory, aligned, never freed: as a region is.
pub fn arena(limits: &Limits) -> &'static mut [u8] {
    let bytes = Table::arena_bytes(limits.sessions, limits.chunks) as usize;
    let words: &'static mut [u64] = vec![0u64; bytes.div_ceil(8)].leak();
    zerocopy::IntoBytes::as_mut_bytes(words)
}
