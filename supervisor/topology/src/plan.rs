//! What a run is. The supervisor makes one plan from arguments, configuration file and machine facts, writes it as JSON
//! into the region, and every role reads it there at boot and never again. What can change while running (percent,
//! copies, pause, halt) stands in the region's control words instead, with the plan's values as start.

use std::net::{IpAddr, SocketAddr};

use flow::Range;
use serde::{Deserialize, Serialize};

/// Everything the roles need to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The instance's name (`--name`).
    pub name: String,
    /// Random number of this instance, constant over restarts of its roles; announced to intercept.
    pub instance: u64,
    /// What the region's bytes mean to the program that made it: another program with the same number can go on with them.
    pub format: u64,
    /// Keys of the hashes.
    pub seeds: Seeds,
    /// `-x`, in the order given. At most [`MAX_MAPPINGS`].
    pub mappings: Vec<Mapping>,
    /// The sealed list of targets. At most [`MAX_TARGETS`].
    pub targets: Vec<Target>,
    /// How replayed clients get their addresses.
    pub clients: Clients,
    /// `-s`: where intercept listens.
    pub intercepts: Vec<SocketAddr>,
    /// The pre-shared key of the return channel (32 bytes); none means plain.
    pub key: Option<[u8; 32]>,
    /// Live capture.
    pub capture: CapturePlan,
    /// `-n` in thousandths: 1000 is one copy of each flow.
    pub copies_milli: u32,
    /// `-r` in parts per million: 1,000,000 is all flows.
    pub percent_ppm: u32,
    /// Number of shard workers.
    pub shards: u16,
    /// Core of each role: capturer, injector, then the shards; empty means no pinning.
    pub cores: Vec<u16>,
    /// Bounds.
    pub limits: Limits,
    /// Sizes of the rings of one shard.
    pub rings: Rings,
    /// How the replay behaves.
    pub replay: ReplayPlan,
}

/// Keys of the hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds {
    /// Client endpoint as replayed → shard.
    pub shard: u64,
    /// Flow → sampled or not, number of copies.
    pub sample: u64,
    /// Permutation of the client range.
    pub endpoint: u64,
    /// Initial sequence numbers (RFC 6528).
    pub isn: u64,
    /// Hash tables against crafted tuples.
    pub table: u64,
}

/// What a mapped service speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections, replayed turn by turn.
    #[default]
    Tcp,
    /// Datagrams, copied as they come.
    Udp,
}

impl Protocol {
    /// What stands before a mapping or target of this kind; nothing before the usual one.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Udp => "udp:",
        }
    }
}

/// One `-x [udp:][online:]port-target:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Online address; none means any address of this host.
    pub online_ip: Option<IpAddr>,
    /// Online port.
    pub online_port: u16,
    /// Index into [`Plan::targets`].
    pub target: u16,
    /// Segments or datagrams; the target's is the same.
    pub protocol: Protocol,
}

/// Where replayed segments go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Address and port of the service under test.
    pub addr: SocketAddr,
    /// MTU of the route to it, bytes.
    pub mtu: u16,
    /// What is sent to it: the injector sends it nothing else.
    pub protocol: Protocol,
}

/// How replayed clients get their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clients {
    /// Endpoints of these ranges (`-c`); a family without a range is not replayed.
    Pool {
        /// IPv4 clients.
        v4: Option<Range>,
        /// IPv6 clients.
        v6: Option<Range>,
        /// The instance chose its part itself and may take another when intercept refuses it.
        chosen: bool,
    },
    /// The real clients' addresses (`--keep-clients`).
    Keep,
}

/// Which engine captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureEngine {
    /// Memory-mapped AF_PACKET rings.
    Ring,
    /// pnet_datalink.
    Simple,
}

/// Live capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturePlan {
    /// Ring or simple.
    pub engine: CaptureEngine,
    /// Interface names; empty means all (`any`).
    pub interfaces: Vec<String>,
    /// Bytes of both kernel rings of one interface together.
    pub buffer_bytes: u64,
    /// Ask the device for frames of others too.
    pub promiscuous: bool,
}

/// Bounds; reaching one closes or refuses a session under a named reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Session slots of one shard.
    pub sessions_per_shard: u32,
    /// Payload chunks of one shard.
    pub chunks_per_shard: u32,
    /// Payload bytes one session may hold.
    pub held_per_session: u32,
}

/// Ring sizes in bytes (powers of two), per shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// capturer → shard.
    pub capture: u32,
    /// shard → injector.
    pub inject: u32,
    /// return receiver → shard.
    pub returns: u32,
}

/// When a flow older than the capture is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// At the first data segment seen.
    First,
    /// At the first data segment whose acknowledgement number exceeds any earlier packet's.
    Boundary,
    /// Not at all.
    Never,
}

/// What becomes of a session with a hole in its captured stream (`--on-gap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    /// The request with the hole is left out; on a new connection when part of it was sent already.
    Skip,
    /// The same, always on the connection that there is.
    Resync,
    /// The connection is reset and nothing more of the flow is replayed.
    Abort,
}

/// Whose distance the replayed clients keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rtt {
    /// The real client's, measured at its handshake.
    Measured,
    /// None.
    None,
    /// This many microseconds.
    Fixed(u32),
}

/// How the replay behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayPlan {
    /// Turns wait for the answer to the previous one (`--no-wait` clears it).
    pub wait: bool,
    /// Whose distance the replayed clients keep.
    pub rtt: Rtt,
    /// When older flows are joined.
    pub join: Join,
    /// What becomes of a session with a hole in its captured stream.
    pub on_gap: OnGap,
    /// Longest silence of an open session with nothing to do before it is closed, seconds.
    pub idle_s: u32,
    /// Milliseconds allowed for the drain at the end.
    pub drain_ms: u32,
}

/// Mappings at most: each costs two instructions of the kernel filter, which holds 4,096.
pub const MAX_MAPPINGS: usize = 256;
/// Targets at most.
pub const MAX_TARGETS: usize = 256;

impl Plan {
    /// As the bytes that stand in the region.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan holds only plain values")
    }

    /// Whether any service of this protocol is replayed.
    pub fn replays(&self, protocol: Protocol) -> bool {
        self.mappings.iter().any(|mapping| mapping.protocol == protocol)
    }

    /// From the region's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}
