//! What a run is. The supervisor makes one plan from arguments, configuration file and machine facts, writes it as JSON
//! into the region, and every role reads it there at boot and never again. What can change while running (percent,
//! copies, pause, halt) stands in the region's control words instead, with the plan's values as start.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use flow::Range;
use serde::{Deserialize, Serialize};

use crate::wiring::Process;

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
    /// Packet files instead of live capture.
    #[serde(default)]
    pub trace: Option<TracePlan>,
    /// Where captured packets are recorded, if they are.
    #[serde(default)]
    pub record: Option<RecordPlan>,
    /// How packets leave.
    #[serde(default)]
    pub inject: InjectEngine,
    /// Whether and from where the way to each target and back is probed.
    #[serde(default)]
    pub canary: CanaryPlan,
    /// What the roles give up.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// `-n` in thousandths: 1000 is one copy of each flow.
    pub copies_milli: u32,
    /// `-r` in parts per million: 1,000,000 is all flows.
    pub percent_ppm: u32,
    /// Number of shard workers; none where captured packets are recorded only.
    pub shards: u16,
    /// Core of each role: capturer, injector, then the shards; empty means no pinning.
    pub cores: Vec<u16>,
    /// Bounds.
    pub limits: Limits,
    /// Sizes of the rings of one shard.
    pub rings: Rings,
    /// How the replay behaves.
    pub replay: ReplayPlan,
    /// What the run keeps itself to.
    #[serde(default)]
    pub restraint: Restraint,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Index into [`Plan::targets`]; [`NOWHERE`] where nothing is replayed.
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
    /// libpcap, opened at run time.
    Pcap,
    /// AF_XDP, on an interface that carries nothing else.
    Xdp,
}

impl CaptureEngine {
    /// As `--capture` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            CaptureEngine::Ring => "ring",
            CaptureEngine::Simple => "simple",
            CaptureEngine::Pcap => "pcap",
            CaptureEngine::Xdp => "xdp",
        }
    }
}

/// Which of the mapped traffic is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterPlan {
    /// `-F`: an expression of pcap-filter(7).
    pub expression: Option<String>,
    /// Its program for frames that begin at the IP header, each instruction as 16 hexadecimal digits; empty where it
    /// asks for a link layer, which the pcap engine alone has. At most [`MAX_EXPRESSION`] instructions.
    pub program: String,
    /// `--net`: only clients in one of these; empty for all.
    pub inside: Vec<Range>,
    /// `--not-net`: no client in one of these.
    pub outside: Vec<Range>,
}

/// How packets leave (`--inject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InjectEngine {
    /// By link where next hop and guard are proven, else by raw IP.
    #[default]
    Auto,
    /// Frames on the link; raw IP while the next hop is not known.
    Link,
    /// Raw IP packets, which the kernel routes.
    Raw,
    /// Frames through libpcap; raw IP while the next hop is not known.
    Pcap,
}

/// The probe of the way to each target and back (`--canary`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CanaryPlan {
    /// From an endpoint that no session has: of the client range, or with kept clients of a range that nobody has.
    #[default]
    On,
    /// From these addresses, one of a family.
    From(Vec<IpAddr>),
    /// Not at all.
    Off,
}

/// What processes give up before they meet a packet (`--sandbox`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// All that they do not need.
    #[default]
    On,
    /// All but files, where the kernel cannot keep them away.
    NoLandlock,
    /// Nothing.
    Off,
}

/// Live capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturePlan {
    /// Ring, simple, pcap or xdp.
    pub engine: CaptureEngine,
    /// Interface names; empty means all (`any`).
    pub interfaces: Vec<String>,
    /// Bytes of both kernel rings of one interface together.
    pub buffer_bytes: u64,
    /// Ask the device for frames of others too.
    pub promiscuous: bool,
    /// Which of the mapped traffic is meant.
    #[serde(default)]
    pub filter: FilterPlan,
    /// `--xdp-force`: the xdp engine may take an interface's whole traffic from this host.
    #[serde(default)]
    pub xdp_force: bool,
}

/// Packet files as the source, and when their packets are due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePlan {
    /// Absolute paths, or `-` for standard input.
    pub files: Vec<PathBuf>,
    /// How much faster than captured, thousandths; none is as fast as possible.
    pub speed_milli: Option<u32>,
    /// Longest pause between two packets of the files that is kept, milliseconds of the files' time.
    pub max_gap_ms: Option<u64>,
    /// How often the files are replayed.
    pub loops: u32,
    /// What is before is left out.
    pub from: Option<TraceTime>,
    /// What is behind is left out.
    pub until: Option<TraceTime>,
    /// Packets of one loop at most.
    pub limit: Option<u64>,
    /// Packets a second at most.
    pub rate: Option<u32>,
    /// Packets are taken out of VXLAN and GENEVE.
    pub decap: bool,
}

/// A moment in packet files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceTime {
    /// Nanoseconds since the Unix epoch.
    At(u64),
    /// Nanoseconds behind the first packet.
    After(u64),
}

/// Where captured packets of both directions are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordPlan {
    /// The directory, as an absolute path once the preflight saw it.
    pub directory: PathBuf,
    /// A number of the host, which tells its files from those of others.
    pub host: u32,
    /// A file ends before it is longer, bytes.
    pub rotate_bytes: u64,
    /// A file ends when it is so old, milliseconds.
    pub rotate_ms: u64,
    /// All files together stay below, bytes; none: no bound.
    pub keep_bytes: Option<u64>,
    /// Bytes kept of a packet; 0: all.
    pub snap: u32,
    /// Compressed.
    pub zstd: bool,
    /// Room between capture and disk, bytes.
    pub buffer_bytes: u64,
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

/// What a run keeps itself to, for the sake of its host and of the targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restraint {
    /// By how much the CPU priority of the roles is lower than the supervisor's, as nice(2) has it.
    pub nice: u8,
    /// CPU time of all processes together, thousandths of one core.
    pub cpu_milli: Option<u32>,
    /// Packets a second towards the targets.
    pub packets: Option<u64>,
    /// Bits a second towards the targets, from the IP header on.
    pub bits: Option<u64>,
    /// Connections begun a second.
    pub connections: Option<u64>,
    /// Time in which the share of flows grows from nothing, milliseconds.
    pub ramp_ms: u64,
}

impl Restraint {
    /// Whether what leaves is limited by packets or bits.
    pub const fn is_paced(&self) -> bool {
        self.packets.is_some() || self.bits.is_some()
    }
}

/// Mappings at most: each costs two instructions of the kernel filter, which holds 4,096.
pub const MAX_MAPPINGS: usize = 256;
/// Instructions of an expression at most: 32 KiB of the plan's 64, and half of what the kernel takes.
pub const MAX_EXPRESSION: usize = 2_000;
/// Ranges of `--net` and of `--not-net` at most: the program that looks for them runs for every frame.
pub const MAX_NETS: usize = 64;
/// The target of a mapping that is recorded only.
pub const NOWHERE: u16 = u16::MAX;
/// Targets at most.
pub const MAX_TARGETS: usize = 256;

impl Plan {
    /// By how much a process's CPU priority is lower than the supervisor's. That of a live capturer by half as much: what it has to
    /// leave in the kernel's ring for too long is lost, and all others find what they left. As high as the service's it would
    /// cost the service's clients more than it saves.
    pub fn nice(&self, process: Process) -> u8 {
        match process {
            Process::Capturer if self.trace.is_none() => self.restraint.nice / 2,
            _ => self.restraint.nice,
        }
    }

    /// The smallest plan that works, for one role alone in a test or a bench: these mappings (`[udp:][IP:]PORT-TARGET:PORT`),
    /// the default client ranges, one shard, no probes, a few MiB. Panics when a text is no such mapping.
    pub fn small(mappings: &[&str]) -> Self {
        let parse = |(text, target): (&&str, u16)| {
            let (protocol, text) =
                text.strip_prefix("udp:").map_or((Protocol::Tcp, *text), |text| (Protocol::Udp, text));
            let (online, addr) = text.split_once('-').expect("a mapping has a dash");
            let (online_ip, online_port) = match online.parse::<SocketAddr>() {
                Ok(addr) => (Some(addr.ip()), addr.port()),
                Err(_) => (None, online.parse().expect("a port")),
            };
            let target_addr = addr.parse().expect("a target's address and port");
            let mapping = Mapping { online_ip, online_port, target, protocol };
            (mapping, Target { addr: target_addr, mtu: 1_500, protocol })
        };
        let (mappings, targets) = mappings.iter().zip(0..).map(parse).unzip();
        Self {
            name: "test".to_owned(),
            instance: 1,
            format: 0,
            seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
            mappings,
            targets,
            clients: Clients::Pool {
                v4: Some("198.18.0.0/15".parse().expect("a range")),
                v6: Some("2001:2::/48".parse().expect("a range")),
                chosen: false,
            },
            intercepts: Vec::new(),
            key: None,
            capture: CapturePlan {
                engine: CaptureEngine::Ring,
                interfaces: vec!["lo".to_owned()],
                buffer_bytes: 1 << 20,
                promiscuous: false,
                filter: FilterPlan::default(),
                xdp_force: false,
            },
            trace: None,
            record: None,
            inject: InjectEngine::Auto,
            canary: CanaryPlan::Off,
            sandbox: Sandbox::On,
            copies_milli: 1_000,
            percent_ppm: 1_000_000,
            shards: 1,
            cores: Vec::new(),
            limits: Limits { sessions_per_shard: 64, chunks_per_shard: 64, held_per_session: 1 << 16 },
            rings: Rings { capture: 1 << 20, inject: 1 << 19, returns: 1 << 18 },
            replay: ReplayPlan {
                wait: true,
                rtt: Rtt::None,
                join: Join::Boundary,
                on_gap: OnGap::Skip,
                idle_s: 600,
                drain_ms: 10_000,
            },
            restraint: Restraint::default(),
        }
    }

    /// Whether nothing is replayed: the capturer alone works, and records.
    pub const fn records_only(&self) -> bool {
        self.shards == 0
    }

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
