//! Target `receive`: the injector's return receiver with its sockets and return rings, between an honest intercept and one that
//! says anything, or whose line alters what it says.
//!
//! The first byte: bit 0 encrypts. Then operations: what, a length, as many bytes. One of them is hundreds of frames (`forger`).
//!
//! The oracle: the honest one's connection stays, and each of its headers comes at once, in order and unchanged, whatever the other
//! does. Of the other's frames comes what each of them means (`hearing`), up to the first that breaks the rules; with that one its
//! connection ends. Under encryption nothing comes of what was altered, invented or said twice on the line. Each header lies in its
//! client's ring, and none comes that is not counted.

mod forger;
mod hearing;

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
use nix::libc::linger;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};
use returns::{Link, MAX_RECORD, Policy, Welcome, encode};
use shm::{Consumer, Region, Role};
use topology::Plan;

use self::forger::Forger;
use self::hearing::{Hearing, Place, tag};
use crate::data::Data;
use crate::reach;
use crate::stream::Sum;

/// Operations of one input at most.
const MOST: usize = 24;
const KEY: [u8; 32] = [7; 32];
/// Frames of one burst at most, and bytes that are under way at once.
const BURST: usize = 512;
const UNDER_WAY: usize = 32 * 1024;
/// Longer than any frame: behind it, whatever length a frame is said to have, the receiver can judge it.
static FILLER: [u8; 20 * 1024] = [0; 20 * 1024];
/// A connection that has lived for longer is dialled again soon, and this is soon.
const LIFE_US: u64 = 1_100_000;
const PAUSE_US: u64 = 200_000;
/// What was said is heard within this time and so many rounds; mostly in the next one. Rounds alone may pass in no time, and time
/// alone may pass without a round: whoever gets no core for ten seconds, or no disk for its code, has not been deaf.
const PATIENCE: (Duration, u32) = (Duration::from_secs(10), 1_000);
/// Rounds without a sleep: loopback needs none.
const AT_ONCE: u32 = 8;
/// A close that leaves nothing to wait for.
const GONE: linger = linger { l_onoff: 1, l_linger: 0 };
const SHARDS: usize = 2;

/// Any bytes from an intercept.
pub fn receive(data: &[u8]) {
    let mut data = Data::new(data);
    let Some(mode) = data.u8() else { return };
    let encrypted = mode & 1 != 0;
    let kept = KEPT.with_borrow_mut(|kept| kept[usize::from(encrypted)].take());
    let mut scene = kept.unwrap_or_else(|| Scene::new(encrypted));
    for _ in 0..MOST {
        let (Some(what), Some(len)) = (data.u8(), data.u8()) else { break };
        scene.connect();
        scene.step(what, data.up_to(len.into()));
        scene.settle();
    }
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
    other: Option<Other>,
    now_us: u64,
    epoch: u64,
    /// Headers that have to come, by who said them and shard.
    said: [[VecDeque<Returned>; SHARDS]; 2],
    /// Headers taken out of the rings.
    taken: u64,
}

/// Whose headers.
const HONEST: usize = 0;
const OTHERS: usize = 1;

/// An intercept's end of a connection.
struct End {
    stream: TcpStream,
    link: Link,
    /// Position of its next header.
    next: u64,
}

/// The end of one that says anything.
struct Other {
    end: End,
    /// What its frames mean.
    hearing: Hearing,
    /// What it wrote last.
    last: Vec<u8>,
    /// The line was altered under encryption: nothing comes of whatever follows.
    altered: bool,
    /// The receiver has what it needs to see that.
    judged: bool,
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
        let plan = Plan {
            instance: 7,
            shards: SHARDS as u16,
            intercepts: at.to_vec(),
            key,
            ..Plan::small(&["80-10.0.0.1:80"])
        };
        let spec = topology::wiring::region_spec(&plan, |_| 4_096);
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
        let honest = greet(&mut receiver, &listeners[HONEST], key, &mut now_us, 1);
        Self {
            encrypted,
            plan,
            region,
            receiver,
            rings,
            listeners,
            honest,
            other: None,
            now_us,
            epoch: 1,
            said: Default::default(),
            taken: 0,
        }
    }

    /// Makes sure that the other one is connected, and that what it says can be heard.
    fn connect(&mut self) {
        let lives = |other: &mut Other| !other.hearing.is_over() && !other.altered && other.end.listen();
        if self.other.as_mut().is_some_and(lives) {
            return;
        }
        self.other = None;
        self.now_us += PAUSE_US;
        self.epoch += 1;
        let key = self.encrypted.then_some(KEY);
        let end = greet(&mut self.receiver, &self.listeners[OTHERS], key, &mut self.now_us, self.epoch);
        self.now_us += LIFE_US;
        let hearing = Hearing::new(Place { epoch: self.epoch, next: end.next });
        self.other = Some(Other { end, hearing, last: Vec::new(), altered: false, judged: false });
    }

    fn step(&mut self, what: u8, bytes: &[u8]) {
        let few = bytes.first().copied().unwrap_or(0);
        match what % 9 {
            // Headers at the right place of the stream, whatever they are.
            0 | 1 => {
                let body = [&self.head(few.into()), bytes.get(1..).unwrap_or_default()].concat();
                self.says(&body);
            }
            2 => self.says(bytes),
            3 => self.writes(bytes.to_vec()),
            4 => {
                let body = self.headers(usize::from(few % 8) + 1);
                self.says(&body);
            }
            5 => {
                let next = self.other().hearing.place().next.saturating_add(few.into());
                self.says(&[&[tag::GAP][..], &1u64.to_le_bytes(), &next.to_le_bytes()].concat());
            }
            6 => {
                let body = self.headers(usize::from(few % 8) + 1);
                let mut altered = self.other().framed(&body);
                let at = usize::from(bytes.get(1).copied().unwrap_or(0)) * 7 % altered.len();
                altered[at] ^= bytes.get(2).copied().unwrap_or(1).max(1);
                self.writes(altered);
            }
            7 => {
                let again = self.other().last.clone();
                self.writes(again);
            }
            _ => {
                let mut seed = Sum::new("burst");
                seed.bytes(bytes);
                self.burst(Forger::new(seed.0));
            }
        }
    }

    /// Hundreds of frames, each another, up to the first that ends the connection; or the line alters the last.
    fn burst(&mut self, mut forger: Forger) {
        let meddles = self.encrypted && forger.dice().once_in(2);
        if meddles {
            forger.keep_on();
        }
        let frames = 1 + forger.dice().below(BURST);
        let mut bytes = Vec::new();
        for _ in 0..frames {
            let body = forger.body(self.other().hearing.place());
            bytes.extend_from_slice(&self.said_as(body));
            if self.other().hearing.is_over() {
                break;
            }
            if bytes.len() > UNDER_WAY {
                self.other().write(std::mem::take(&mut bytes));
                self.hear(0);
            }
        }
        self.other().write(bytes);
        self.hear(0);
        if meddles {
            self.meddle(&mut forger);
        }
    }

    /// Two more frames, and what somebody on the line makes of them.
    fn meddle(&mut self, forger: &mut Forger) {
        let last = self.other().last.clone();
        let [mut one, two] = [(); 2].map(|()| {
            let body = forger.body(self.other().hearing.place());
            self.other().framed(body)
        });
        let dice = forger.dice();
        let mut bytes = match dice.below(6) {
            0..=1 => {
                let at = dice.below(one.len());
                one[at] ^= 1 << dice.below(8);
                [one, two].concat()
            }
            2 => [two, one].concat(),
            3 => two,
            4 if !last.is_empty() => [last, one].concat(),
            _ => {
                one.truncate(dice.below(one.len()));
                [one, two].concat()
            }
        };
        bytes.extend_from_slice(&FILLER);
        self.writes(bytes);
        self.other().judged = true;
        reach::count("altered", 1);
    }

    fn other(&mut self) -> &mut Other {
        self.other.as_mut().expect("each operation begins with a connection")
    }

    /// The other one says a frame.
    fn says(&mut self, body: &[u8]) {
        let bytes = self.said_as(body);
        self.other().write(bytes);
        self.hear(0);
    }

    /// What is on the line when the other one says a frame; its headers have to come.
    fn said_as(&mut self, body: &[u8]) -> Vec<u8> {
        let Self { other, said, plan, .. } = self;
        let other = other.as_mut().expect("each operation begins with a connection");
        let bytes = other.framed(body);
        let mut heard = |header: Returned| said[OTHERS][shard_of(plan, &header)].push_back(header);
        if self.encrypted {
            other.hearing.body(body, &mut heard);
        } else {
            other.hearing.line(&bytes, &mut heard);
        }
        bytes
    }

    /// The line carries these bytes.
    fn writes(&mut self, bytes: Vec<u8>) {
        let Self { other, said, plan, .. } = self;
        let other = other.as_mut().expect("each operation begins with a connection");
        if self.encrypted {
            other.altered |= !bytes.is_empty();
        } else {
            let mut heard = |header: Returned| said[OTHERS][shard_of(plan, &header)].push_back(header);
            other.hearing.line(&bytes, &mut heard);
        }
        other.write(bytes);
        self.hear(0);
    }

    /// The front of a batch at the right place.
    fn head(&mut self, count: u16) -> Vec<u8> {
        let Place { epoch, next } = self.other().hearing.place();
        [&[tag::BATCH][..], &epoch.to_le_bytes(), &next.to_le_bytes(), &count.to_le_bytes()].concat()
    }

    /// A batch as an honest one says it.
    fn headers(&mut self, count: usize) -> Vec<u8> {
        let mut body = self.head(count as u16);
        let next = self.other().hearing.place().next;
        for n in 0..count as u64 {
            let mut room = [0; MAX_RECORD];
            let len = encode(&header(next.wrapping_add(n)), &mut room);
            body.extend_from_slice(&room[..len]);
        }
        body
    }

    /// All that has to come comes, what has to end ends, and the honest one is heard as ever.
    fn settle(&mut self) {
        self.say_honest();
        let waits = Waits::new();
        for round in 0.. {
            let missing = self.said.each_ref().map(|who| who.iter().map(VecDeque::len).sum::<usize>());
            let ends = self
                .other
                .as_mut()
                .is_some_and(|other| (other.hearing.is_over() || other.judged) && other.end.listen());
            if missing == [0, 0] && !ends {
                return;
            }
            assert!(
                !waits.too_long(round),
                "of the honest one's headers {} do not come, of the other's {}; its connection stays: {ends}",
                missing[HONEST],
                missing[OTHERS]
            );
            self.hear(u64::from(round > AT_ONCE));
        }
    }

    fn say_honest(&mut self) {
        assert!(self.honest.listen(), "the honest one's connection has ended");
        let header = header(self.honest.next);
        assert!(self.honest.link.outgoing().record(&header), "all that it said before has left");
        self.honest.next += 1;
        self.said[HONEST][shard_of(&self.plan, &header)].push_back(header);
        assert!(self.honest.push(), "the honest one's connection has ended");
    }

    /// Lets the receiver work, and takes what it put into the rings.
    fn hear(&mut self, most_ms: u64) {
        self.receiver.round(self.now_us, most_ms);
        for (shard, ring) in self.rings.iter_mut().enumerate() {
            while let Some(bytes) = ring.next() {
                let (header, rest) = split::<Returned>(bytes).expect("a whole header");
                assert!(rest.is_empty());
                self.taken += 1;
                let of =
                    self.said.iter_mut().map(|who| &mut who[shard]).find(|of| of.front() == Some(&header));
                of.unwrap_or_else(|| panic!("shard {shard}: nobody said {header:?} now")).pop_front();
            }
            ring.release();
        }
        assert_eq!(self.taken, self.region.read_counter(Role::Receiver, ReturnCount::Headers.index()));
    }
}

/// Who waits for something since when.
struct Waits(Instant);

impl Waits {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn too_long(&self, rounds: u32) -> bool {
        rounds >= PATIENCE.1 && self.0.elapsed() >= PATIENCE.0
    }
}

fn shard_of(plan: &Plan, header: &Returned) -> usize {
    hash::shard_of(hash::endpoint_hash(plan.seeds.shard, &header.client), plan.shards).into()
}

/// A header of a session of its own, at its place of the stream.
fn header(position: u64) -> Returned {
    let n = position as u32;
    let client: SocketAddr = ([198, 18, (n >> 8) as u8, n as u8], 4_000).into();
    let target: SocketAddr = ([10, 0, 0, 1], 80).into();
    let mut header = Returned {
        position,
        age_ns: n.into(),
        kind: flow::record::kind::TCP,
        segments: 1,
        client: Endpoint::from(client),
        target: Endpoint::from(target),
        ..Returned::default()
    };
    header.tcp.seq = Seq(n);
    header
}

impl Other {
    /// A frame as it stands on the line: sealed, where the connection is.
    fn framed(&mut self, body: &[u8]) -> Vec<u8> {
        let link = &mut self.end.link;
        assert!(link.outgoing().frame(body), "all that it said before has left");
        let bytes = link.pending().to_vec();
        link.sent(bytes.len());
        bytes
    }

    /// The receiver may have closed.
    fn write(&mut self, bytes: Vec<u8>) {
        self.end.write(&bytes);
        self.last = bytes;
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

    /// Writes what was said; false when the connection has ended.
    fn push(&mut self) -> bool {
        self.link.outgoing().flush();
        let bytes = self.link.pending().to_vec();
        self.link.sent(bytes.len());
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "the receiver has stopped reading");
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
    let (mut end, waits) = (None::<End>, Waits::new());
    let until_us = *now_us + LIFE_US;
    let mut rounds = 0;
    loop {
        assert!(!waits.too_long(rounds), "it does not dial again");
        receiver.round(*now_us, u64::from(rounds > AT_ONCE));
        rounds += 1;
        let Some(one) = &mut end else {
            // It may have given up a dial a moment ago.
            *now_us = (*now_us + 10_000).min(until_us);
            if let Ok((stream, from)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket can be non-blocking");
                stream.set_nodelay(true).expect("a socket can send at once");
                // So many connections end here that none may leave anything behind.
                setsockopt(&stream, sockopt::Linger, &GONE).expect("a socket can end at once");
                let link = Link::listener(policy, from);
                end = Some(End { stream, link, next: 1 });
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
