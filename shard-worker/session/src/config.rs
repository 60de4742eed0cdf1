//! What a table is told at its start and never again: keys, clients, targets, behaviour, limits, times.
//! The shard worker fills it from the plan; tests fill it by hand.

use flow::{Endpoint, Range};

/// Everything that does not change during a run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of shards.
    pub shards: u16,
    /// Which one this table is of.
    pub shard: u16,
    /// Keys of the hashes.
    pub seeds: Seeds,
    /// How replayed clients get their addresses.
    pub clients: Clients,
    /// The sealed list of targets, in the order of their indices.
    pub targets: Vec<TargetConfig>,
    /// Index of the target of each mapping.
    pub mappings: Vec<u16>,
    /// Turns wait for the answer to the previous one.
    pub wait: bool,
    /// Whose distance the replayed clients keep.
    pub rtt: Rtt,
    /// When flows older than the capture are joined.
    pub join: Join,
    /// What becomes of a session with a hole in its captured stream.
    pub on_gap: OnGap,
    /// How a target in trouble is spared.
    pub pace: Pace,
    /// Bounds.
    pub limits: Limits,
    /// Time-outs.
    pub times: Times,
    /// SYNs ask to be claimed at the intercepts (`--keep-clients`).
    pub claim: bool,
    /// What is captured comes from a file: how far, µs of its time, it must have gone on behind a hole before the hole counts
    /// as one. None in live capture, where the time of day alone tells.
    pub file_us: Option<u64>,
    /// Initial sequence numbers follow from the client's own, endpoints and keys, and the ends of segments from those that were
    /// captured: not from any clock, so that a replay can be repeated.
    pub repeatable: bool,
}

/// Keys of the hashes; see the plan's seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seeds {
    /// Client endpoint as replayed → shard.
    pub shard: u64,
    /// Flow → number of copies.
    pub sample: u64,
    /// Permutation of the client range, and of the ports of further copies.
    pub endpoint: u64,
    /// Initial sequence numbers and time stamps.
    pub isn: u64,
    /// Hash tables against crafted tuples.
    pub table: u64,
}

/// How replayed clients get their addresses.
#[derive(Clone, Copy, Debug)]
pub enum Clients {
    /// Endpoints of these ranges; the family of the target decides. A family without a range is not replayed.
    Pool {
        /// For IPv4 targets.
        v4: Option<Range>,
        /// For IPv6 targets.
        v6: Option<Range>,
    },
    /// The real clients' addresses.
    Keep,
}

/// One service under test.
#[derive(Clone, Copy, Debug)]
pub struct TargetConfig {
    /// Its address and port.
    pub endpoint: Endpoint,
    /// MTU of the route to it, bytes.
    pub mtu: u16,
}

/// Whose distance the replayed clients keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rtt {
    /// The real client's, measured at its handshake.
    Measured,
    /// None.
    None,
    /// This many microseconds.
    Fixed(u32),
}

/// When a flow older than the capture is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// At the first data segment seen.
    First,
    /// At the first data segment that acknowledges more than an earlier packet of the flow did.
    Boundary,
    /// Not at all.
    Never,
}

/// What becomes of a session when a hole in its captured stream has not been filled in time (`--on-gap`). Other sessions
/// are never touched. In all three the captured bytes given up are dropped as `gap`, the missing ones counted as `missed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    /// The request with the hole is left out and the next one goes on. When part of it was sent already, its connection is
    /// reset and the next request goes out on a new one, so that the target never sees bytes of two requests as one.
    #[default]
    Skip,
    /// The same, but the connection is kept: a request that was partly sent ends where the hole begins, and the client's
    /// next turn that began after the hole follows directly. For protocols that find their own place again, and for
    /// services that are to be tested with cut requests.
    Resync,
    /// The connection is reset and nothing more of the flow is replayed: the target sees whole streams or their beginnings.
    Abort,
}

/// How a target in trouble is spared. Each target of each table has its own bucket and its own breaker.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Connections in a second at most that are not a flow's first: reconnects, and first ones that had to wait.
    pub reconnects_per_s: u32,
    /// Of these, at once.
    pub reconnect_burst: u32,
    /// Attempts whose outcome must be known before a target can be called sick; at most 64.
    pub sick_attempts: u32,
    /// Share of refused, reset and timed-out ones among the last 64 attempts at which it is.
    pub sick_percent: u32,
    /// Outcomes are forgotten when none came for so long, µs.
    pub forget_us: u64,
    /// First pause between two single attempts at a sick target, µs; it doubles.
    pub probe_least_us: u64,
    /// Longest such pause, µs.
    pub probe_most_us: u64,
    /// Single attempts in a row that must succeed before all go on.
    pub well_after: u8,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            reconnects_per_s: 4_000,
            reconnect_burst: 1_000,
            sick_attempts: 16,
            sick_percent: 50,
            forget_us: 10_000_000,
            probe_least_us: 250_000,
            probe_most_us: 10_000_000,
            well_after: 3,
        }
    }
}

/// Bounds; reaching one closes or refuses a session under a named reason.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Session slots.
    pub sessions: u32,
    /// Payload chunks of 1 KiB.
    pub chunks: u32,
    /// Payload bytes that one session may hold.
    pub held_per_session: u32,
}

/// Time-outs, all in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Longest silence of an open session with nothing to do before it is closed.
    pub idle_us: u64,
    /// Longest silence of a client after its SYN: the longest pause between two SYNs of Linux is 64 s.
    pub half_open_us: u64,
    /// How long a hole is waited for that the server has none of: it answered what lies behind. So the capture missed the
    /// bytes, and reordering on one host is over within a few milliseconds.
    pub hole_us: u64,
    /// How long one is waited for that the server may have too: the segment was lost on the client's way, and the client
    /// sends it again. Four tries of a retransmission timer that begins at 200 ms.
    pub loss_us: u64,
    /// How long the target may leave a session without any acknowledgement before it counts as timed out.
    pub dead_us: u64,
    /// How long a session whose four-tuple came back waits for the old one to drain (`Clients::Keep`).
    pub queue_us: u64,
    /// How long a session whose client is gone waits for the target's FIN.
    pub orphan_us: u64,
    /// How long a finished session's numbers are kept, so that a repeated FIN of the target is still acknowledged.
    pub linger_us: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            idle_us: 600_000_000,
            half_open_us: 75_000_000,
            hole_us: 50_000,
            loss_us: 3_000_000,
            dead_us: 60_000_000,
            queue_us: 5_000_000,
            orphan_us: 10_000_000,
            linger_us: 500_000,
        }
    }
}
