//! A worker that is killed at any instruction, again and again: a real process over a real region, with clients and a target
//! played by hand around it. Whatever moment it dies at, the target gets each client's stream once and in order, no record
//! is published twice, and the ledger is exact.
//!
//! The worker is this test binary again, running only the test `the_worker` with the region's name in the environment.
//! `WORKER_KILLS` says how many kills (default 400); the optimised build is killed with `cargo test --release`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flow::record::{flag, inject_bit, opt};
use flow::{Captured, Drop as Reason, Endpoint, Inject, Returned, Seq, TcpFields};
use session::Count;
use shard_worker::counters::{
    Gauge, WorkerCount, offset_count, offset_dropped_bytes, offset_gauge, offset_worker,
};
use shm::{Consumer, Link, Producer, Region, Role, path};
use topology::Plan;
use topology::plan::{Join, Limits, ReplayPlan};
use zerocopy::IntoBytes as _;

const NAME: &str = "WORKER_TEST_NAME";
const SHARD: Role = Role::Shard(0);
const CLIENTS: usize = 64;
/// Answer to each request, bytes; as long online as at the target.
const ANSWER: u32 = 100;
/// Requests of a client that may be captured before the target has the first of them.
const AHEAD: u32 = 4;
/// Requests of one connection. Sessions linger when they are over: few enough of them for the table.
const REQUESTS: u32 = 50;
/// Client, number, length: what stands before a request's body.
const HEAD: usize = 12;

fn plan(name: &str) -> Plan {
    let small = Plan::small(&["80-10.0.3.2:8080"]);
    let limits = Limits { sessions_per_shard: 16_384, chunks_per_shard: 16_384, held_per_session: 1 << 22 };
    let replay = ReplayPlan { join: Join::Never, ..small.replay };
    Plan { name: name.to_owned(), limits, replay, ..small }
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// The worker's process.
struct Worker(Child);

impl Worker {
    fn start(name: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["the_worker", "--exact", "--nocapture", "--test-threads=1"])
            .env(NAME, name)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Worker {
    /// SIGKILL, and gone for good afterwards.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The region's file, removed whatever happens.
struct File<'n>(&'n str);

impl Drop for File<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(path(self.0));
    }
}

#[test]
fn the_worker() {
    let Ok(name) = std::env::var(NAME) else { return };
    let region = Region::attach(&name).unwrap();
    let plan = Plan::from_bytes(&region.plan_bytes()).unwrap();
    shard_worker::run(region, &plan, 0).unwrap();
}

/// A client online: what it has sent, which its server answers at once.
struct Client {
    at: Endpoint,
    seq: Seq,
    ack: Seq,
    requests: u32,
}

/// One connection at the target.
struct Peer {
    next: Seq,
    sent: Seq,
    stream: Vec<u8>,
    closed: bool,
}

struct World {
    region: &'static Region,
    capturer: Producer,
    receiver: Producer,
    injector: Consumer,
    dice: Dice,
    clients: Vec<Client>,
    peers: HashMap<Endpoint, Peer>,
    /// Requests that the target has read, by client.
    read: BTreeMap<u32, u32>,
    captured_bytes: u64,
    again: u64,
}

fn server() -> Endpoint {
    "10.0.0.10:80".parse::<std::net::SocketAddr>().unwrap().into()
}

impl World {
    fn new(region: &'static Region, seed: u64) -> Self {
        let client = |number: usize| Client {
            at: std::net::SocketAddr::new([203, 0, 113, number as u8].into(), 40_000).into(),
            seq: Seq(number as u32 * 1_000_003),
            ack: Seq(5_000),
            requests: 0,
        };
        Self {
            region,
            capturer: region.producer(Link::Capture(0)),
            receiver: region.producer(Link::Returns(0)),
            injector: region.consumer(Link::Inject(0)),
            dice: Dice(seed),
            clients: (0..CLIENTS).map(client).collect(),
            peers: HashMap::new(),
            read: BTreeMap::new(),
            captured_bytes: 0,
            again: 0,
        }
    }

    fn capture(&mut self, number: usize, flags: u16, payload: &[u8]) {
        let client = &mut self.clients[number];
        let head = Captured {
            time_ns: shm::monotonic_ns(),
            tcp: TcpFields {
                seq: client.seq,
                ack: client.ack,
                flags,
                mss: 1_460,
                options: opt::MSS,
                ..TcpFields::default()
            },
            payload_len: payload.len() as u32,
            client: client.at,
            server: server(),
            ..Captured::default()
        };
        assert!(self.capturer.push(&[head.as_bytes(), payload].concat()), "room was looked for");
        client.seq += payload.len() as u32 + u32::from(flags & (flag::SYN | flag::FIN) != 0);
        self.captured_bytes += payload.len() as u64;
    }

    /// Some client goes on, if it may.
    fn clients_go_on(&mut self) {
        if self.capturer.credits() < 64 << 10 {
            return;
        }
        let number = self.dice.roll(CLIENTS as u64) as usize;
        let (requests, read) = (self.clients[number].requests, self.read.get(&(number as u32)).copied());
        let connection = requests / (REQUESTS + 1);
        match requests % (REQUESTS + 1) {
            _ if requests - connection >= read.unwrap_or(0) + AHEAD => return,
            // The next connection begins when the target has read everything of the last.
            0 if read.unwrap_or(0) + connection < requests => return,
            0 => {
                self.clients[number].seq += 1 << 20;
                self.capture(number, flag::SYN, &[]);
                self.capture(number, flag::ACK, &[]);
                self.clients[number].requests += 1;
            }
            of_connection => {
                let longest = if self.dice.roll(8) == 0 { 40_000 } else { 600 };
                let length = HEAD + self.dice.roll(longest) as usize;
                let serial = requests - connection - 1;
                let head = [number as u32, serial, length as u32];
                let mut request = head.as_bytes().to_vec();
                request.extend((HEAD..length).map(|at| (at as u32 ^ serial) as u8));
                self.capture(number, flag::ACK | flag::PSH, &request);
                let client = &mut self.clients[number];
                client.ack += ANSWER;
                client.requests += 1;
                if of_connection == REQUESTS {
                    self.capture(number, flag::ACK | flag::FIN, &[]);
                }
            }
        }
        self.capturer.publish();
        self.region.doorbell(SHARD).ring();
    }

    /// The target takes what was injected.
    fn target_goes_on(&mut self) -> bool {
        let mut records = Vec::new();
        while let Some(bytes) = self.injector.next() {
            let (head, payload) = Inject::split(bytes).expect("a whole record");
            records.push((head, payload.to_vec()));
        }
        self.injector.release();
        for (head, payload) in &records {
            self.target_takes(head, payload);
        }
        self.receiver.publish();
        self.region.doorbell(SHARD).ring();
        !records.is_empty()
    }

    fn target_takes(&mut self, head: &Inject, payload: &[u8]) {
        let tcp = &head.tcp;
        let again = head.bits & inject_bit::AGAIN != 0;
        self.again += u64::from(again);
        if tcp.has(flag::SYN) {
            let known = self.peers.contains_key(&head.client);
            assert!(again || !known, "the SYN of {} was published twice", head.client);
            let sent = Seq(9_000);
            let peer = Peer { next: tcp.seq + 1, sent: sent + 1, stream: Vec::new(), closed: false };
            self.peers.entry(head.client).or_insert(peer);
            let options = opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED;
            let fields =
                TcpFields { seq: sent, options, mss: 1_460, window_scale: 7, ..TcpFields::default() };
            return self.answer(head, fields, flag::SYN | flag::ACK, tcp.seq + 1, 0);
        }
        assert!(!tcp.has(flag::RST), "{} was reset", head.client);
        let Some(peer) = self.peers.get_mut(&head.client) else { panic!("{} never began", head.client) };
        let fin = u32::from(tcp.has(flag::FIN));
        if payload.is_empty() && fin == 0 {
            return;
        }
        assert!(
            again || tcp.seq == peer.next,
            "{}: published {:?} where {:?} was next",
            head.client,
            tcp.seq,
            peer.next
        );
        if tcp.seq == peer.next && !peer.closed {
            peer.stream.extend_from_slice(payload);
            peer.next += payload.len() as u32 + fin;
            peer.closed = fin > 0;
        }
        let (ack, seq, closed) = (peer.next, peer.sent, peer.closed);
        let answers = self.requests_read(head.client);
        let peer = self.peers.get_mut(&head.client).expect("it was there");
        peer.sent += answers * ANSWER + u32::from(closed && fin > 0);
        let flags = flag::ACK | flag::PSH | if closed && fin > 0 { flag::FIN } else { 0 };
        self.answer(head, TcpFields { seq, ..TcpFields::default() }, flags, ack, answers * ANSWER);
    }

    /// Takes whole requests out of a connection's stream; how many there were.
    fn requests_read(&mut self, at: Endpoint) -> u32 {
        let stream = &mut self.peers.get_mut(&at).expect("it was there").stream;
        let mut count = 0;
        while stream.len() >= HEAD {
            let word = |at: usize| u32::from_ne_bytes(stream[at..at + 4].try_into().unwrap());
            let (client, serial, length) = (word(0), word(4), word(8) as usize);
            if stream.len() < length {
                break;
            }
            let read = self.read.entry(client).or_insert(0);
            assert_eq!(serial, *read, "the next request of client {client}");
            assert!((HEAD..length).all(|at| stream[at] == (at as u32 ^ serial) as u8), "its bytes");
            *read += 1;
            stream.drain(..length);
            count += 1;
        }
        count
    }

    fn answer(&mut self, to: &Inject, fields: TcpFields, flags: u16, ack: Seq, payload_len: u32) {
        let tcp = TcpFields { ack, flags, window: 60_000, ..fields };
        let target = "10.0.3.2:8080".parse::<std::net::SocketAddr>().unwrap().into();
        let header = Returned { tcp, payload_len, client: to.client, target, ..Returned::default() };
        assert!(self.receiver.push(header.as_bytes()), "the return ring has room for a batch");
    }

    fn read_worker(&self, index: usize) -> u64 {
        self.region.read_counter(SHARD, index)
    }
}

#[test]
fn nothing_is_lost_torn_or_doubled() {
    let kills: u64 = std::env::var("WORKER_KILLS").map_or(400, |text| text.parse().expect("a number"));
    let seed = u64::from(std::process::id());
    let name = format!("kills-{seed}");
    let plan = plan(&name);
    let spec = topology::wiring::region_spec(&plan, shard_worker::arena_bytes);
    let region = Region::create(&name, &spec, &plan.to_bytes(), 1).unwrap();
    let _file = File(&name);
    region.control().set_percent_ppm(plan.percent_ppm);
    region.control().set_copies_milli(plan.copies_milli);
    let mut world = World::new(region, seed);
    let mut killed = 0;
    let mut starts: Vec<Duration> = Vec::new();
    while killed < kills {
        let before = world.read_worker(offset_count(Count::TakenSegments));
        let since = Instant::now();
        let worker = Worker::start(&name);
        // The moment of death is anywhere: while it boots, or up to some milliseconds after it began to work.
        let dies_while_booting = world.dice.roll(8) == 0;
        let mut until = since + Duration::from_micros(world.dice.roll(8_000));
        let mut works = dies_while_booting;
        while Instant::now() < until || !works {
            for _ in 0..8 {
                world.clients_go_on();
            }
            if !world.target_goes_on() {
                std::thread::yield_now();
            }
            if !works && world.read_worker(offset_count(Count::TakenSegments)) > before {
                works = true;
                starts.push(since.elapsed());
                until = Instant::now() + Duration::from_micros(world.dice.roll(8_000));
            }
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "seed {seed}: after {killed} kills the worker takes nothing; depths {:?}, {} in flight, {} open, {:?}",
                [Link::Capture(0), Link::Returns(0), Link::Inject(0)].map(|l| region.link_depth(l)),
                world.read_worker(offset_gauge(Gauge::InFlight)),
                world.read_worker(offset_gauge(Gauge::Open)),
                region.heartbeat(SHARD),
            );
        }
        drop(worker);
        killed += 1;
    }
    let _worker = Worker::start(&name);
    let since = Instant::now();
    let in_flight = |world: &World| world.read_worker(offset_gauge(Gauge::InFlight));
    while in_flight(&world) > 0
        || region.link_depth(Link::Capture(0)) > 0
        || region.link_depth(Link::Inject(0)) > 0
    {
        if !world.target_goes_on() {
            std::thread::sleep(Duration::from_micros(500));
        }
        assert!(since.elapsed() < Duration::from_secs(60), "seed {seed}: {} in flight", in_flight(&world));
    }
    let count = |count| world.read_worker(offset_count(count));
    let dropped: u64 =
        Reason::ALL.iter().map(|&reason| world.read_worker(offset_dropped_bytes(reason))).sum();
    assert_eq!(count(Count::TakenBytes), world.captured_bytes, "seed {seed}");
    assert_eq!((count(Count::Wanted), dropped), (world.captured_bytes, 0), "seed {seed}");
    assert_eq!(count(Count::Delivered), world.captured_bytes, "seed {seed}");
    for (what, index) in [
        ("lost", offset_worker(WorkerCount::SettledLost)),
        ("uncounted", offset_worker(WorkerCount::SettledWanted)),
        ("unusable", offset_count(Count::SlotsUnusable)),
    ] {
        assert_eq!(world.read_worker(index), 0, "seed {seed}: {what}");
    }
    for (number, client) in world.clients.iter().enumerate() {
        let sent = client.requests - client.requests.div_ceil(REQUESTS + 1);
        assert_eq!(
            world.read.get(&(number as u32)).copied().unwrap_or(0),
            sent,
            "seed {seed} client {number}"
        );
    }
    starts.sort_unstable();
    println!(
        "seed {seed}: {killed} kills, {} transactions made public again, {} bytes, {} records sent again; \
         start to first batch p50 {:?} max {:?}",
        world.read_worker(offset_worker(WorkerCount::Repeated)),
        world.captured_bytes,
        world.again,
        starts[starts.len() / 2],
        starts.last().unwrap()
    );
}
