//! What intercept counts. Plain atomics, each with one writer, read by anyone at any time: the supervisor serves a
//! [`Stats::snapshot`] on its control socket. Counters only ever grow.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flow::named_enum;
use flow::segment::Malformed;
use returns::{Reason, RefusedCode};
use serde_json::{Map, Value, json};

use crate::MAX_PEERS;

named_enum! {
    /// Counters of the capture thread.
    pub enum Count {
        /// Headers taken from the kernel.
        Captured => "captured",
        /// Frames that the kernel had no room for.
        KernelDrops => "kernel_drops",
        /// Answers given to an owner's queue.
        Headers => "headers",
        /// ICMP errors given to an owner's queue.
        Icmp => "icmp",
        /// ICMP that is no error about a segment of ours.
        IcmpOther => "icmp_other",
        /// From an address and port that is not watched.
        NotTarget => "not_target",
        /// To a client that no instance owns.
        Unknown => "unknown",
        /// Held for its claim.
        Held => "held",
        /// Held, and no claim came in time.
        Unclaimed => "unclaimed",
        /// Not held because as many as allowed were.
        HeldFull => "held_full",
        /// Claims noted.
        Claims => "claims",
        /// Claims refused because the table had no place for them.
        ClaimsFull => "claims_table_full",
        /// Claims of flows to a target that is not watched here.
        ClaimsForeign => "claims_foreign",
        /// Records that left in a batch.
        Sent => "sent",
        /// Records that a peer was too slow, or too long away, to get.
        QueueDropped => "queue_dropped",
        /// Sends that the socket took only in part or not at all.
        Blocked => "blocked",
        /// Drains of the capture.
        Drains => "drains",
        /// Errors of the capture sockets, such as a link that went down.
        CaptureErrors => "capture_errors",
    }
}

named_enum! {
    /// Counters of the link thread.
    pub enum Door {
        /// Connections accepted by the kernel.
        Accepted => "accepted",
        /// Turned away because too many handshakes were going on.
        Busy => "busy",
        /// Handshakes that took longer than allowed.
        Slow => "slow",
        /// Closed by the other end before their hello.
        Left => "left",
        /// Instances welcomed.
        Welcomed => "welcomed",
        /// Connections of an instance that took the place of an older one.
        Replaced => "replaced",
        /// Peers that closed their connection, or whose connection broke.
        Gone => "gone",
        /// Peers that gave no sign of life for too long.
        Silent => "silent",
        /// Peers that broke the protocol after their hello.
        Violations => "violations",
        /// Instances forgotten after they stayed away.
        Forgotten => "forgotten",
        /// Errors of accept, such as too many open files.
        AcceptErrors => "accept_errors",
        /// Turns of the loop that serves the connections.
        Turns => "turns",
    }
}

/// All counters of one intercept.
#[derive(Debug)]
pub struct Stats {
    capture: Block<{ Count::COUNT }>,
    malformed: Block<{ Malformed::COUNT }>,
    door: Block<{ Door::COUNT }>,
    bad_handshakes: Block<{ Reason::COUNT }>,
    refused: Block<{ RefusedCode::COUNT }>,
    peers: [PeerStats; MAX_PEERS],
    listening: Mutex<Vec<SocketAddr>>,
    ready: AtomicBool,
}

/// Counters of one thread: on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
struct Block<const N: usize>([AtomicU64; N]);

impl<const N: usize> Block<N> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }

    fn add(&self, index: usize, n: u64) {
        add(&self.0[index], n);
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    fn object(&self, name: impl Fn(usize) -> &'static str) -> Map<String, Value> {
        (0..N).map(|i| (name(i).to_owned(), self.get(i).into())).collect()
    }
}

/// Counters of one peer, written by the capture thread; its description by the link thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PeerStats {
    pub(crate) sent: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) queued: AtomicU64,
    /// Its sessions can do nothing but wait for answers.
    pub(crate) eager: AtomicBool,
    about: Mutex<Option<PeerAbout>>,
}

/// Who a peer is.
#[derive(Clone, Debug)]
pub(crate) struct PeerAbout {
    pub(crate) name: String,
    pub(crate) instance: u64,
    pub(crate) addr: SocketAddr,
    pub(crate) software: String,
    pub(crate) clients: String,
    pub(crate) encrypted: bool,
    pub(crate) connected: bool,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            capture: Block::new(),
            malformed: Block::new(),
            door: Block::new(),
            bad_handshakes: Block::new(),
            refused: Block::new(),
            peers: std::array::from_fn(|_| PeerStats::default()),
            listening: Mutex::default(),
            ready: AtomicBool::new(false),
        }
    }
}

impl Stats {
    /// A counter of the capture thread.
    pub fn get(&self, count: Count) -> u64 {
        self.capture.get(count.index())
    }

    /// A counter of the link thread.
    pub fn door(&self, count: Door) -> u64 {
        self.door.get(count.index())
    }

    /// Connections that failed before their hello, by reason.
    pub fn bad_handshakes(&self, reason: Reason) -> u64 {
        self.bad_handshakes.get(reason.index())
    }

    /// Instances refused, by code.
    pub fn refused(&self, code: RefusedCode) -> u64 {
        self.refused.get(code.index())
    }

    /// Where it listens, once it does.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.listening.lock().expect("no holder panics").clone()
    }

    /// Whether capture and listener work.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Everything as one JSON object.
    pub fn snapshot(&self) -> Value {
        let mut capture = self.capture.object(|i| Count::ALL[i].name());
        capture.insert("malformed".to_owned(), self.malformed.object(|i| Malformed::ALL[i].name()).into());
        let mut peers = Vec::new();
        for peer in &self.peers {
            let Some(about) = peer.about.lock().expect("no holder panics").clone() else { continue };
            peers.push(json!({
                "name": about.name,
                "instance": format!("{:016x}", about.instance),
                "addr": about.addr.to_string(),
                "version": about.software,
                "clients": about.clients,
                "encrypted": about.encrypted,
                "connected": about.connected,
                "sent": peer.sent.load(Ordering::Relaxed),
                "dropped": peer.dropped.load(Ordering::Relaxed),
                "queued": peer.queued.load(Ordering::Relaxed),
                "eager": peer.eager.load(Ordering::Relaxed),
            }));
        }
        let listening: Vec<String> = self.listening().iter().map(ToString::to_string).collect();
        json!({
            "ready": self.is_ready(),
            "listening": listening,
            "capture": capture,
            "links": self.door.object(|i| Door::ALL[i].name()),
            "bad_handshakes": self.bad_handshakes.object(|i| Reason::ALL[i].name()),
            "refused": self.refused.object(|i| RefusedCode::ALL[i].name()),
            "peers": peers,
        })
    }

    pub(crate) fn count(&self, count: Count, n: u64) {
        self.capture.add(count.index(), n);
    }

    pub(crate) fn count_malformed(&self, why: Malformed) {
        self.malformed.add(why.index(), 1);
    }

    pub(crate) fn count_door(&self, count: Door) {
        self.door.add(count.index(), 1);
    }

    pub(crate) fn count_bad(&self, reason: Reason) {
        self.bad_handshakes.add(reason.index(), 1);
    }

    pub(crate) fn count_refused(&self, code: RefusedCode) {
        self.refused.add(code.index(), 1);
    }

    pub(crate) fn peer(&self, slot: usize) -> &PeerStats {
        &self.peers[slot]
    }

    pub(crate) fn set_about(&self, slot: usize, about: Option<PeerAbout>) {
        *self.peers[slot].about.lock().expect("no holder panics") = about;
    }

    pub(crate) fn set_connected(&self, slot: usize, connected: bool) {
        if let Some(about) = &mut *self.peers[slot].about.lock().expect("no holder panics") {
            about.connected = connected;
        }
    }

    pub(crate) fn set_listening(&self, addrs: Vec<SocketAddr>) {
        *self.listening.lock().expect("no holder panics") = addrs;
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}

/// Adds to a counter that this thread alone writes: no locked instruction.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_names_every_counter() {
        let stats = Stats::default();
        stats.count(Count::Captured, 7);
        stats.count_bad(Reason::WrongKey);
        let json = stats.snapshot();
        assert_eq!(json["capture"]["captured"], 7);
        assert_eq!(json["bad_handshakes"]["wrong_key"], 1);
        assert_eq!(json["capture"]["malformed"]["fragment"], 0);
        assert_eq!(json["peers"], json!([]));
    }
}
