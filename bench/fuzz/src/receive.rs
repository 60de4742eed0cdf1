//! Target `receive`: the injector's return receiver with its sockets and return rings, between an honest intercept and one that
//! says anything, or whose line alters what it says.
//!
//! The first byte: bit 0 encrypts. Then operations: what, a length, as many bytes.
//!
//! The oracle: the honest one's connection stays, and each of its headers comes at once, in order and unchanged, whatever the other
//! does. Each header lies in its client's ring, and none comes that is not counted. Under encryption the other's headers are those
//! that it said, and of what was altered, invented or said twice on the line none comes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flow::record::split;
use flow::{Endpoint, Returned, Seq, hash};
use injector::receiver::Receiver;
use injector::{ReturnCount, claims};
use nix::sys::eventfd::{EfdFlags, EventFd};
use returns::{Link, Policy, Welcome};
use shm::{Consumer, Region, Role, Spec};
use topology::Plan;

use crate::data::Data;
use crate::reach;

/// Operations of one input at most.
const MOST: usize = 24;
const KEY: [u8; 32] = [7; 32];
/// The honest one's headers, by their capture times; the other's own, likewise.
const HONEST: u64 = 0xa5c3_0f69_0000_0000;
const OTHERS: u64 = 0x3c5a_96f0_0000_0000;
const TAG: u64 = 0xffff_ffff_0000_0000;
/// A connection that has lived for longer is dialled again soon, and this is soon.
const LIFE_US: u64 = 1_100_000;
const PAUSE_US: u64 = 200_000;
/// What was said is heard within this time, on a machine that is busy with other things; mostly in the next round.
const PATIENCE: Duration = Duration::from_secs(10);

/// Any bytes from an intercept.
pub fn receive(data: &[u8]) {
    let mut data = Data::new(data);
    let Some(mode) = data.u8() else { return };
    let encrypted = mode & 1 != 0;
    let kept = KEPT.with_borrow_mut(|kept| kept[usize::from(encrypted)].take());
    let mut scene = kept.unwrap_or_else(|| Scene::new(encrypted));
    scene.connect();
    for _ in 0..MOST {
        let (Some(what), Some(len)) = (data.u8(), data.u8()) else { break };
        if !scene.step(what, data.up_to(len.into())) {
            break;
        }
    }
    scene.honest();
    KEPT.with_borrow_mut(|kept| kept[usize::from(encrypted)] = Some(scene));
}

thread_local! {
    /// Plain and encrypted: a region and its connections take as long as a hundred inputs.
    static KEPT: RefCell<[Option<Scene>; 2]> = const { RefCell::new([None, None]) };
}

struct Scene {
    encrypted: bool,
    plan: Plan,
    region: &'static Region,
    receiver: Receiver,
    rings: Vec<Consumer>,
    listeners: [TcpListener; 2],
    honest: End,
    other: Option<End>,
    now_us: u64,
    epoch: u64,
    /// Headers said that were not heard yet.
    said: VecDeque<Returned>,
    others_said: VecDeque<Returned>,
    /// Headers taken out of the rings.
    taken: u64,
}

/// An intercept's end of a connection.
struct End {
    stream: TcpStream,
    link: Link,
    /// Position of its next header.
    next: u64,
    epoch: u64,
    /// What it wrote last.
    last: Vec<u8>,
}

impl Scene {
    fn new(encrypted: bool) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let listeners = [(); 2].map(|()| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
            listener.set_nonblocking(true).expect("a socket can be non-blocking");
            listener
        });
        let at = listeners.each_ref().map(|one| one.local_addr().expect("it is bound"));
        let key = encrypted.then_some(KEY);
        let plan =
            Plan { instance: 7, shards: 2, intercepts: at.to_vec(), key, ..Plan::small(&["80-10.0.0.1:80"]) };
        let spec = Spec {
            shards: plan.shards,
            capture_ring: plan.rings.capture,
            inject_ring: plan.rings.inject,
            return_ring: plan.rings.returns,
            arena: 4_096,
        };
        let name = format!("fuzz-receive-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let region: &'static Region =
            Region::create(&name, &spec, &plan.to_bytes(), plan.instance).expect("a small region");
        Region::remove(&name).expect("it was made above");
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an event counter"));
        let (_, claimed) = claims::queue(wake.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let mut receiver = Receiver::new(region, &plan, claimed, wake, stop).expect("an event poll");
        let rings = (0..plan.shards).map(|shard| region.consumer(shm::Link::Returns(shard))).collect();
        // The receiver was made at the time of day.
        let mut now_us = shm::monotonic_us();
        let mut greet = |n: usize| greet(&mut receiver, &listeners[n], key, &mut now_us, 1);
        let honest = greet(0);
        let other = Some(greet(1));
        Self {
            encrypted,
            plan,
            region,
            receiver,
            rings,
            listeners,
            honest,
            other,
            now_us,
            epoch: 1,
            said: VecDeque::new(),
            others_said: VecDeque::new(),
            taken: 0,
        }
    }

    /// Makes sure that the other one is connected.
    fn connect(&mut self) {
        self.honest.listen();
        if self.other.as_mut().is_some_and(End::listen) {
            return;
        }
        // The receiver has closed it, so nothing of it is under way. Each input ends with a sign of life of the honest one.
        self.other = None;
        self.others_said.clear();
        self.now_us += PAUSE_US;
        self.epoch += 1;
        let key = self.encrypted.then_some(KEY);
        self.other = Some(greet(&mut self.receiver, &self.listeners[1], key, &mut self.now_us, self.epoch));
        self.now_us += LIFE_US;
    }

    /// False when the other's connection has ended.
    fn step(&mut self, what: u8, bytes: &[u8]) -> bool {
        let Some(other) = &mut self.other else { return false };
        let few = bytes.first().copied().unwrap_or(0);
        let went = match what % 8 {
            // Headers at the right place of the stream, whatever they are.
            0 | 1 if !self.encrypted => {
                let count = u16::from(few);
                let mut body = vec![5];
                body.extend_from_slice(&other.epoch.to_le_bytes());
                body.extend_from_slice(&other.next.to_le_bytes());
                body.extend_from_slice(&count.to_le_bytes());
                body.extend_from_slice(bytes.get(1..).unwrap_or_default());
                other.next += u64::from(count);
                other.frame(&body)
            }
            0 | 1 => other.write(bytes),
            2 => other.frame(bytes),
            3 => other.write(bytes),
            4 => {
                let said = other.say(OTHERS, usize::from(few % 8) + 1);
                self.others_said.extend(said);
                other.push()
            }
            5 => {
                other.link.outgoing().gap(1, other.next + u64::from(few)) && {
                    other.next += u64::from(few);
                    other.push()
                }
            }
            6 => {
                other.say(OTHERS, usize::from(few % 8) + 1);
                other.link.outgoing().flush();
                let mut altered = other.link.pending().to_vec();
                other.link.sent(altered.len());
                let at = usize::from(bytes.get(1).copied().unwrap_or(0)) * 7 % altered.len();
                altered[at] ^= bytes.get(2).copied().unwrap_or(1).max(1);
                // It has said them, so nothing after this is at its place: the line has to be dead.
                other.write(&altered)
            }
            _ => {
                let again = other.last.clone();
                other.write(&again)
            }
        };
        self.hear(0);
        went && self.other.as_mut().is_some_and(End::listen)
    }

    /// One header of the honest one's comes at once.
    fn honest(&mut self) {
        self.say_honest();
        let begun = Instant::now();
        while !self.said.is_empty() {
            assert!(
                begun.elapsed() < PATIENCE,
                "{} of the honest one's headers do not come",
                self.said.len()
            );
            self.hear(1);
        }
    }

    fn say_honest(&mut self) {
        assert!(self.honest.listen(), "the honest one's connection has ended");
        let said = self.honest.say(HONEST, 1);
        self.said.extend(said);
        assert!(self.honest.push(), "the honest one's connection has ended");
    }

    /// Lets the receiver work, and takes what it put into the rings.
    fn hear(&mut self, most_ms: u64) {
        self.receiver.round(self.now_us, most_ms);
        for (shard, ring) in self.rings.iter_mut().enumerate() {
            let batch = ring.peek_batch(usize::MAX);
            for bytes in &batch {
                let (header, rest) = split::<Returned>(bytes).expect("a whole header");
                assert!(rest.is_empty());
                let hash = hash::endpoint_hash(self.plan.seeds.shard, &header.client);
                assert_eq!(usize::from(hash::shard_of(hash, self.plan.shards)), shard, "{header:?}");
                self.taken += 1;
                if header.time_ns & TAG == HONEST {
                    assert_eq!(self.said.pop_front(), Some(header), "the honest one said another");
                } else if self.encrypted {
                    // In order, but in two rings.
                    let at = self.others_said.iter().position(|said| *said == header);
                    self.others_said.remove(at.unwrap_or_else(|| panic!("nobody said {header:?}")));
                }
            }
            batch.release();
        }
        assert_eq!(self.taken, self.region.read_counter(Role::Receiver, ReturnCount::Headers.index()));
    }
}

impl End {
    /// Takes what came; false when the connection has ended.
    fn listen(&mut self) -> bool {
        loop {
            match self.stream.read(self.link.receive_buffer()) {
                Ok(0) => return false,
                Ok(n) => self.link.received(n),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            while let Some(_heard) = self.link.next().expect("the receiver speaks well") {}
        }
    }

    /// Headers of a session of its own, each another.
    fn say(&mut self, tag: u64, count: usize) -> Vec<Returned> {
        let mut said = Vec::new();
        for _ in 0..count {
            let n = self.next as u32;
            let client: SocketAddr = ([198, 18, (n >> 8) as u8, n as u8], 4_000).into();
            let target: SocketAddr = ([10, 0, 0, 1], 80).into();
            let mut header = Returned {
                position: self.next,
                time_ns: tag | u64::from(n),
                kind: flow::record::kind::TCP,
                segments: 1,
                client: Endpoint::from(client),
                target: Endpoint::from(target),
                ..Returned::default()
            };
            header.tcp.seq = Seq(n);
            if !self.link.outgoing().record(&header) {
                break;
            }
            self.next += 1;
            said.push(header);
        }
        said
    }

    /// Writes what was said; false when the connection has ended.
    fn push(&mut self) -> bool {
        self.link.outgoing().flush();
        let bytes = self.link.pending().to_vec();
        self.link.sent(bytes.len());
        self.write(&bytes)
    }

    /// Bytes as a frame.
    fn frame(&mut self, body: &[u8]) -> bool {
        self.write(&[&(body.len() as u16).to_le_bytes()[..], body].concat())
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.last = bytes.to_vec();
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "the receiver has stopped reading");
                reach::note("closed");
                false
            }
        }
    }
}

/// Accepts the receiver's dial and welcomes it.
fn greet(
    receiver: &mut Receiver,
    listener: &TcpListener,
    key: Option<[u8; 32]>,
    now_us: &mut u64,
    epoch: u64,
) -> End {
    let policy = key.map_or(Policy::PlainLocal, Policy::Keyed);
    let (mut end, begun) = (None::<End>, Instant::now());
    let until_us = *now_us + LIFE_US;
    loop {
        assert!(begun.elapsed() < PATIENCE, "it does not dial again");
        receiver.round(*now_us, 1);
        let Some(one) = &mut end else {
            // It may have given up a dial a moment ago.
            *now_us = (*now_us + 10_000).min(until_us);
            if let Ok((stream, from)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket can be non-blocking");
                let link = Link::listener(policy, from);
                end = Some(End { stream, link, next: 1, epoch, last: Vec::new() });
            }
            continue;
        };
        match one.stream.read(one.link.receive_buffer()) {
            // A dial of before that it has given up since.
            Ok(0) => end = None,
            Ok(n) => {
                one.link.received(n);
                let greeted = one.link.next().expect("the receiver speaks well").map(|m| m.noun());
                if greeted.is_some() {
                    assert_eq!(greeted, Some("a hello"));
                    let welcome = Welcome { software: String::new(), epoch, next: one.next };
                    assert!(one.link.outgoing().welcome(&welcome));
                }
                assert!(one.push(), "it closes while it is welcomed");
                if greeted.is_some() {
                    return end.expect("it is there");
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}
