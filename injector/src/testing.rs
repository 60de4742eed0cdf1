//! What the tests of this crate share: a plan, ring records, a network namespace of one's own, a scripted intercept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use flow::{Inject, Returned};
use nix::sched::{CloneFlags, unshare};
use returns::{Hello, Link, Message, Policy, Refused, Welcome};
use shm::{Region, Spec};
use topology::Plan;
use topology::plan::{
    CaptureEngine, CapturePlan, Clients, Join, Limits, Mapping, OnGap, Protocol, ReplayPlan, Rings, Rtt,
    Seeds, Target,
};
use zerocopy::IntoBytes;

/// A plan with these targets and the default pools.
pub(crate) fn plan(targets: &[&str]) -> Plan {
    Plan {
        name: "test".to_owned(),
        instance: 7,
        format: 0,
        seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
        mappings: vec![Mapping { online_ip: None, online_port: 80, target: 0, protocol: Protocol::Tcp }],
        targets: targets
            .iter()
            .map(|t| Target { addr: t.parse().unwrap(), mtu: 1_500, protocol: Protocol::Tcp })
            .collect(),
        clients: Clients::Pool {
            v4: Some("198.18.0.0/15".parse().unwrap()),
            v6: Some("2001:2::/48".parse().unwrap()),
            chosen: false,
        },
        intercepts: Vec::new(),
        key: None,
        capture: CapturePlan {
            engine: CaptureEngine::Ring,
            interfaces: Vec::new(),
            buffer_bytes: 1 << 20,
            promiscuous: false,
        },
        copies_milli: 1_000,
        percent_ppm: 1_000_000,
        shards: 2,
        cores: Vec::new(),
        limits: Limits { sessions_per_shard: 64, chunks_per_shard: 64, held_per_session: 1 << 16 },
        rings: Rings { capture: 1 << 18, inject: 1 << 18, returns: 1 << 18 },
        replay: ReplayPlan {
            wait: true,
            rtt: Rtt::None,
            join: Join::Boundary,
            on_gap: OnGap::Skip,
            idle_s: 60,
            drain_ms: 1_000,
        },
    }
}

/// A ring record: the head with its payload length set, then the payload.
pub(crate) fn record(head: Inject, payload: &[u8]) -> Vec<u8> {
    let head = Inject { payload_len: payload.len() as u32, ..head };
    [head.as_bytes(), payload].concat()
}

/// Runs `story` in a network namespace of its own, on a thread of its own; says so loudly where that is not allowed.
pub(crate) fn in_namespace(name: &str, story: impl FnOnce() + Send + 'static) {
    let told = name.to_owned();
    let thread = std::thread::Builder::new().name(told.clone()).spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            return eprintln!("SKIPPED {told}: a network namespace needs root here ({e})");
        }
        story();
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip ARGUMENTS` in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Gives loopback an IPv6 address and waits until it is usable: the kernel adds its route a moment after `ip` returns, and
/// takes packets before that only to lose them.
pub(crate) fn add_v6(address: &str) {
    ip(&format!("addr add {address}/128 dev lo nodad"));
    let to = SocketAddr::new(address.parse().unwrap(), 9);
    while crate::route_to(to).map(|facts| facts.place).ok() != Some(topology::guard::Place::ThisHost) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// What the scripted intercept does with each connection.
pub(crate) enum Answer {
    /// Greets, then reads on.
    Welcome { epoch: u64, next: u64 },
    /// Says no.
    Refuse(Refused),
    /// Is no intercept at all.
    Bytes(&'static [u8]),
    /// Accepts and says nothing.
    Silence,
}

/// Listens on loopback and answers every connection alike; ends with the test process.
pub(crate) fn intercept(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            match &answer {
                Answer::Silence => {}
                Answer::Bytes(bytes) => stream.write_all(bytes).unwrap(),
                Answer::Welcome { epoch, next } => {
                    let mut end = ListenerEnd::new(stream.try_clone().unwrap());
                    if end.hello().is_some() {
                        let welcome = Welcome { software: "test".into(), epoch: *epoch, next: *next };
                        end.say(|out| out.welcome(&welcome));
                    }
                }
                Answer::Refuse(refused) => {
                    let mut end = ListenerEnd::new(stream.try_clone().unwrap());
                    if end.hello().is_some() {
                        end.say(|out| out.refuse(refused));
                    }
                }
            }
            kept.push(stream);
        }
    });
    at
}

/// The listening end of one connection, blocking, for scripts.
pub(crate) struct ListenerEnd {
    stream: TcpStream,
    link: Link,
}

impl ListenerEnd {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let peer = stream.peer_addr().unwrap();
        Self { stream, link: Link::listener(Policy::PlainLocal, peer) }
    }

    /// Reads until `wanted` recognises a message; None when the connection ends or fails before.
    pub(crate) fn wait_for<T>(&mut self, mut wanted: impl FnMut(&Message<'_>) -> Option<T>) -> Option<T> {
        loop {
            let pong = match self.link.next() {
                Ok(Some(message)) => {
                    if let Some(found) = wanted(&message) {
                        return Some(found);
                    }
                    if let Message::Ping(token) = message { Some(token) } else { continue }
                }
                Ok(None) => None,
                Err(_) => {
                    // The verdict for the other end.
                    let _ = self.stream.write_all(self.link.pending());
                    return None;
                }
            };
            if let Some(token) = pong {
                self.say(|out| out.pong(token));
                continue;
            }
            self.flush();
            match self.stream.read(self.link.receive_buffer()) {
                Ok(n @ 1..) => self.link.received(n),
                _ => return None,
            }
        }
    }

    /// The dialer's hello.
    pub(crate) fn hello(&mut self) -> Option<Hello> {
        self.wait_for(|m| if let Message::Hello(hello) = m { Some(hello.clone()) } else { None })
    }

    /// Sends messages, all of them.
    pub(crate) fn say(&mut self, what: impl FnOnce(&mut returns::Outgoing) -> bool) {
        assert!(what(self.link.outgoing()), "the buffer has room");
        self.link.outgoing().flush();
        self.flush();
    }

    /// Adds a record to the batch; false when what is pending must go out first.
    pub(crate) fn try_record(&mut self, record: &Returned) -> bool {
        self.link.outgoing().record(record)
    }

    /// Sends what is pending.
    pub(crate) fn push_out(&mut self) {
        self.link.outgoing().flush();
        self.flush();
    }

    /// Sends a part of what is pending, and resets the connection (socket(7): lingering for no time).
    pub(crate) fn reset_after(mut self, bytes: usize) {
        self.link.outgoing().flush();
        let pending = self.link.pending();
        let _ = self.stream.write_all(&pending[..bytes.min(pending.len())]);
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
    }

    /// Sends bytes that are no message.
    pub(crate) fn say_garbage(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn flush(&mut self) {
        let pending = self.link.pending().len();
        // The other end may be gone; the script notices when it reads.
        let _ = self.stream.write_all(self.link.pending());
        self.link.sent(pending);
    }
}

/// A region for this plan; its name is gone again, its memory stays until the process ends.
pub(crate) fn region(plan: &Plan) -> &'static Region {
    let (region, name) = named_region(plan);
    Region::remove(&name).unwrap();
    region
}

/// A region for this plan, and its name; the caller removes it.
pub(crate) fn named_region(plan: &Plan) -> (&'static Region, String) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("injector-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let rings = plan.rings;
    let spec = Spec {
        shards: plan.shards,
        capture_ring: rings.capture,
        inject_ring: rings.inject,
        return_ring: rings.returns,
        arena: 4_096,
    };
    (Region::create(&name, &spec, &plan.to_bytes(), plan.instance).unwrap(), name)
}
