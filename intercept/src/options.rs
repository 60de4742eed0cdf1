//! What intercept was asked to do, its bounds, what it ends with, and why it could not start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flow::Range;
use serde::Serialize;

use crate::stats::{Count, Door, Stats};

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this intercept, for logs.
    pub name: String,
    /// The targets whose answers are returned (`-x`); at least one, or one of `datagrams`.
    pub targets: Vec<SocketAddr>,
    /// Those that answer in datagrams (`-x udp:`).
    pub datagrams: Vec<SocketAddr>,
    /// Interfaces that the answers arrive on; empty means all. Not used with `tun`.
    pub interfaces: Vec<String>,
    /// A device of its own that takes the clients' route, on the target host itself.
    pub tun: Option<TunOptions>,
    /// Where to listen; empty means every address, IPv4 and IPv6, at [`DEFAULT_PORT`].
    pub listen: Vec<SocketAddr>,
    /// The pre-shared key of the return channel.
    pub key: Option<[u8; 32]>,
    /// `--plain`: peers beyond loopback may come without a key.
    pub plain: bool,
    /// Bytes of the capture ring of one interface.
    pub capture_bytes: usize,
    /// Bounds.
    pub limits: Limits,
    /// Where it counts; keep a clone to read.
    pub stats: Arc<Stats>,
    /// Version text that is told to peers.
    pub software: String,
}

/// The device of `--tun`.
#[derive(Clone, Debug)]
pub struct TunOptions {
    /// Its name; [`DEFAULT_TUN`] unless there are several on one host.
    pub name: String,
    /// The client ranges whose route it takes.
    pub ranges: Vec<Range>,
}

/// Bounds. Each has a counter for when it bites.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows that can be claimed at a time; about 100 bytes each, paid when used.
    pub claims: usize,
    /// A claim whose flow was silent for this long is forgotten.
    pub claim_idle: Duration,
    /// Headers held for a claim that may still come.
    pub held: usize,
    /// For this long.
    pub hold: Duration,
    /// Records kept for one instance, sent or not: the queue of a slow peer, and what a reconnecting one may ask for
    /// again. 128 bytes each. A power of two.
    pub window: usize,
    /// Handshakes at a time.
    pub pending: usize,
    /// Time for a handshake.
    pub handshake: Duration,
    /// A peer that was silent for this long is dead.
    pub silence: Duration,
    /// An instance that stayed away this long is forgotten, and its queue with it.
    pub away: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            claims: 1 << 20,
            claim_idle: Duration::from_secs(900),
            held: 4096,
            hold: Duration::from_millis(200),
            window: 1 << 14,
            pending: 8,
            handshake: Duration::from_secs(3),
            silence: Duration::from_secs(3),
            away: Duration::from_secs(60),
        }
    }
}

/// The port that intercept listens on unless told otherwise; the predecessor's.
pub const DEFAULT_PORT: u16 = 36524;
/// Name of the TUN device unless given.
pub const DEFAULT_TUN: &str = "tcptwin0";
/// Bytes of the capture ring of one interface: 8,192 headers, 40 ms at 200,000 a second, and small enough to stay in a
/// cache.
pub const DEFAULT_CAPTURE_BYTES: usize = 2 << 20;

impl Options {
    /// The usual options for these targets.
    pub fn new(targets: Vec<SocketAddr>) -> Self {
        Self {
            name: "intercept".to_owned(),
            targets,
            datagrams: Vec::new(),
            interfaces: Vec::new(),
            tun: None,
            listen: Vec::new(),
            key: None,
            plain: false,
            capture_bytes: DEFAULT_CAPTURE_BYTES,
            limits: Limits::default(),
            stats: Arc::new(Stats::default()),
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl TunOptions {
    /// The usual device for these ranges.
    pub fn new(ranges: Vec<Range>) -> Self {
        Self { name: DEFAULT_TUN.to_owned(), ranges }
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Headers captured.
    pub captured: u64,
    /// Frames that the kernel had no room for.
    pub kernel_drops: u64,
    /// Records sent to their owners.
    pub sent: u64,
    /// Records that a peer was too slow, or too long away, to get.
    pub queue_dropped: u64,
    /// Headers to clients that nobody owned or claimed.
    pub without_owner: u64,
    /// Instances welcomed, reconnects included.
    pub welcomed: u64,
}

impl Summary {
    /// As counted so far.
    pub fn of(stats: &Stats) -> Self {
        Self {
            captured: stats.get(Count::Captured),
            kernel_drops: stats.get(Count::KernelDrops),
            sent: stats.get(Count::Sent),
            queue_dropped: stats.get(Count::QueueDropped),
            without_owner: stats.get(Count::Unknown)
                + stats.get(Count::Unclaimed)
                + stats.get(Count::HeldFull),
            welcomed: stats.door(Door::Welcomed),
        }
    }
}

/// Why intercept cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// No target.
    #[error(
        "intercept has no target to watch. Give at least one: -x TARGET:PORT, for example -x 10.0.3.2:8080"
    )]
    NoTarget,
    /// The listening socket.
    #[error("listening for the return channel on {addr} failed: {source}. {hint}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The capture sockets.
    #[error("{0}")]
    Capture(String),
    /// The TUN device.
    #[error("{0}")]
    Tun(#[from] crate::tun::TunError),
    /// A thread, an eventfd.
    #[error("starting intercept failed at {what}: {source}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread ended on its own.
    #[error("the {0} thread of intercept ended unexpectedly; this is a bug, please report it with the log")]
    Thread(&'static str),
}
