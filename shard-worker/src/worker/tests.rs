//! A whole shard in one process: a real region, the worker in a thread, the other roles played by hand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use flow::record::{flag, inject_bit, opt};
use flow::{Captured, Drop as Reason, Endpoint, Inject, Returned, Seq, TcpFields, hash};
use session::{Count, DatagramCount};
use shm::{Consumer, Item, Link, Producer, RoleState, Spec};
use topology::plan::{Clients, Limits, Protocol};
use zerocopy::IntoBytes;

use super::*;
use crate::counters::{
    Gauge, offset_count, offset_datagrams, offset_dropped_bytes, offset_gauge, offset_worker,
};

/// The shard under test; the plan has two, so that the hash rule has something to say.
const SHARD: u16 = 1;
const TARGET: &str = "10.0.3.2:8080";

fn plan() -> Plan {
    let limits = Limits { sessions_per_shard: 8_192, chunks_per_shard: 4_096, held_per_session: 1 << 20 };
    Plan { shards: 2, limits, ..Plan::small(&["80-10.0.3.2:8080"]) }
}

/// The worker, and the roles around it.
struct Rig {
    plan: Plan,
    region: &'static Region,
    name: String,
    capturer: Producer,
    receiver: Producer,
    injector: Consumer,
    worker: Option<JoinHandle<Result<(), WorkerError>>>,
}

impl Rig {
    fn new() -> Self {
        Self::with(plan())
    }

    fn with(plan: Plan) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("shard-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let spec = Spec {
            shards: plan.shards,
            capture_ring: plan.rings.capture,
            inject_ring: plan.rings.inject,
            return_ring: plan.rings.returns,
            arena: arena_bytes(&plan).next_multiple_of(4_096),
        };
        let region = Region::create(&name, &spec, &plan.to_bytes(), plan.instance).unwrap();
        let control = region.control();
        control.set_percent_ppm(plan.percent_ppm);
        control.set_copies_milli(plan.copies_milli);
        let rig = Self {
            region,
            name,
            capturer: region.producer(Link::Capture(SHARD)),
            receiver: region.producer(Link::Returns(SHARD)),
            injector: region.consumer(Link::Inject(SHARD)),
            worker: None,
            plan,
        };
        rig.started(region)
    }

    /// Starts the worker in this mapping of the region.
    fn started(mut self, region: &'static Region) -> Self {
        let plan = self.plan.clone();
        self.worker = Some(std::thread::spawn(move || run(region, &plan, SHARD)));
        self
    }

    fn capture(&mut self, segment: &Captured, payload: &[u8]) {
        let head = Captured { payload_len: payload.len() as u32, time_ns: shm::monotonic_ns(), ..*segment };
        assert!(self.capturer.push(&[head.as_bytes(), payload].concat()), "the capture ring has room");
        self.capturer.publish();
        self.region.doorbell(Role::Shard(SHARD)).ring();
    }

    fn answer(&mut self, header: &Returned) {
        assert!(self.receiver.push(header.as_bytes()));
        self.receiver.publish();
        self.region.doorbell(Role::Shard(SHARD)).ring();
    }

    /// The next injected record that `wanted` recognises; others are let through.
    fn injected(&mut self, what: &str, wanted: impl Fn(&Inject, &[u8]) -> bool) -> (Inject, Vec<u8>) {
        let mut found = None;
        until(what, || {
            while let Some(bytes) = self.injector.next() {
                let (head, payload) = Inject::split(bytes).expect("a whole record");
                if wanted(&head, payload) {
                    found = Some((head, payload.to_vec()));
                    break;
                }
            }
            self.injector.release();
            found.is_some()
        });
        found.unwrap()
    }

    fn read(&self, index: usize) -> u64 {
        self.region.read_counter(Role::Shard(SHARD), index)
    }

    fn count(&self, count: Count) -> u64 {
        self.read(offset_count(count))
    }

    fn ledger_holds(&self) -> bool {
        let dropped: u64 = Reason::ALL.iter().map(|&r| self.read(offset_dropped_bytes(r))).sum();
        let in_flight = self.read(offset_gauge(Gauge::InFlight));
        self.count(Count::Wanted) == self.count(Count::Delivered) + in_flight + dropped
    }

    fn finish(&mut self) {
        self.worker.take().unwrap().join().unwrap().unwrap();
    }

    fn halt(&mut self) {
        self.region.control().set_halt(true);
        self.region.doorbell(Role::Shard(SHARD)).ring();
        self.finish();
    }

    /// A client's connection, greeted by the target: what was sent to it last.
    fn open(&mut self, client: &str) -> Session {
        let mut session = Session::new(client);
        let syn = session.segment(flag::SYN, 0);
        self.capture(&syn, &[]);
        let (syn, _) = self.injected("a SYN", |head, _| head.tcp.has(flag::SYN));
        session.replayed = syn.client;
        session.target_next = Seq(70_001);
        session.sent_next = syn.tcp.seq + 1;
        let options = TcpFields {
            seq: Seq(70_000),
            ack: syn.tcp.seq + 1,
            flags: flag::SYN | flag::ACK,
            window: 65_535,
            mss: 1_460,
            window_scale: 7,
            options: opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED,
            ..TcpFields::default()
        };
        self.answer(&session.returned(options, 0));
        session
    }

    /// The client asks; the target's answer is `answer` bytes long.
    fn ask(&mut self, session: &mut Session, request: &[u8], answer: u32) {
        let data = session.segment(flag::ACK | flag::PSH, request.len() as u32);
        self.capture(&data, request);
        let (sent, payload) = self.injected("the request", |_, payload| !payload.is_empty());
        assert_eq!(payload, request);
        assert_eq!(sent.client, session.replayed);
        session.sent_next += request.len() as u32;
        let header = TcpFields {
            seq: session.target_next,
            ack: session.sent_next,
            flags: flag::ACK | flag::PSH,
            window: 501,
            ..TcpFields::default()
        };
        self.answer(&session.returned(header, answer));
        session.target_next += answer;
        session.online_ack += answer;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        Region::remove(&self.name).unwrap();
        if self.worker.is_some() && !std::thread::panicking() {
            self.halt();
        }
    }
}

/// Both numberings of one connection.
struct Session {
    client: Endpoint,
    replayed: Endpoint,
    online_seq: Seq,
    online_ack: Seq,
    sent_next: Seq,
    target_next: Seq,
}

impl Session {
    fn new(client: &str) -> Self {
        Self {
            client: endpoint(client),
            replayed: Endpoint::default(),
            online_seq: Seq(1_000),
            online_ack: Seq(9_001),
            sent_next: Seq(0),
            target_next: Seq(0),
        }
    }

    /// The client's next segment.
    fn segment(&mut self, flags: u16, len: u32) -> Captured {
        let mut tcp = TcpFields { seq: self.online_seq, flags, window: 502, ..TcpFields::default() };
        if flags & flag::ACK != 0 {
            tcp.ack = self.online_ack;
        }
        self.online_seq += len + u32::from(flags & flag::SYN != 0);
        Captured { tcp, client: self.client, server: endpoint("10.0.0.10:80"), ..Captured::default() }
    }

    fn returned(&self, tcp: TcpFields, payload_len: u32) -> Returned {
        Returned { tcp, payload_len, client: self.replayed, target: endpoint(TARGET), ..Returned::default() }
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

impl Rig {
    /// A real client whose records this shard gets.
    fn client(&self) -> Endpoint {
        let of_shard = |client: &Endpoint| {
            hash::shard_of(hash::endpoint_hash(self.plan.seeds.shard, client), self.plan.shards) == SHARD
        };
        let clients = (1..100).map(|port| endpoint(&format!("203.0.113.5:{port}")));
        clients.into_iter().find(of_shard).expect("one of many")
    }
}

/// Waits for something that the worker brings about; a bug makes it fail after a while instead of hanging.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} never came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_request_goes_out_as_another_client_and_its_delivery_is_counted() {
    let mut rig = Rig::new();
    let mut session = rig.open("203.0.113.5:40000");
    let hash = hash::endpoint_hash(rig.plan.seeds.shard, &session.replayed);
    assert_eq!(hash::shard_of(hash, rig.plan.shards), SHARD, "answers find this shard");
    assert!(session.replayed.addr.to_ip().to_string().starts_with("198.1"), "{}", session.replayed);
    for request in [&b"GET /1 HTTP/1.1\r\n\r\n"[..], b"GET /22 HTTP/1.1\r\n\r\n"] {
        rig.ask(&mut session, request, 100);
    }
    until("the delivery", || rig.count(Count::Delivered) == 39);
    assert_eq!(rig.count(Count::Wanted), 39);
    assert!(rig.ledger_holds());
    assert_eq!(rig.read(offset_gauge(Gauge::Open)), 1);
    assert_eq!(rig.region.heartbeat(Role::Shard(SHARD)).state(), RoleState::Running);
    until("the release of the inputs", || rig.region.link_depth(Link::Capture(SHARD)) == 0);
    rig.halt();
    let lag: u64 = (0..session::histogram::BUCKETS)
        .map(|i| rig.read(crate::counters::offset_histogram(crate::Latency::Lag) + i))
        .sum();
    assert!(lag >= 2, "both requests have a lag");
    assert_eq!(rig.read(offset_worker(WorkerCount::OutboxRefused)), 0);
}

#[test]
fn real_clients_are_claimed_before_their_syn() {
    let mut rig = Rig::with(Plan { clients: Clients::Keep, ..plan() });
    // The capturer brings only clients of this shard.
    let client = (40_000..60_000u16)
        .map(|port| format!("203.0.113.5:{port}"))
        .find(|c| hash::shard_of(hash::endpoint_hash(rig.plan.seeds.shard, &endpoint(c)), 2) == SHARD)
        .unwrap();
    let mut session = Session::new(&client);
    let syn = session.segment(flag::SYN, 0);
    rig.capture(&syn, &[]);
    let (syn, _) = rig.injected("a SYN", |head, _| head.tcp.has(flag::SYN));
    assert_eq!(syn.client, endpoint(&client));
    assert!(syn.bits & inject_bit::CLAIM != 0);
}

#[test]
fn drain_lets_answers_come_and_resets_what_is_left() {
    let mut rig = Rig::new();
    let mut session = rig.open("203.0.113.5:40000");
    rig.ask(&mut session, b"GET / HTTP/1.1\r\n\r\n", 100);
    let last = session.segment(flag::ACK | flag::PSH, 3);
    rig.capture(&last, b"end");
    let (sent, _) = rig.injected("the last request", |_, payload| payload == b"end");
    rig.region.control().set_draining(true);
    rig.region.doorbell(Role::Shard(SHARD)).ring();
    until("the drain", || rig.region.heartbeat(Role::Shard(SHARD)).state() == RoleState::Draining);
    // A flow that begins now is not replayed.
    let mut late = Session::new("203.0.113.6:40000");
    let (syn, data) = (late.segment(flag::SYN, 0), late.segment(flag::ACK, 4));
    rig.capture(&syn, &[]);
    rig.capture(&data, b"late");
    let acked = TcpFields {
        seq: session.target_next,
        ack: sent.tcp.seq + 3,
        flags: flag::ACK,
        window: 501,
        ..TcpFields::default()
    };
    let header = session.returned(acked, 0);
    rig.answer(&header);
    until("the last delivery", || rig.count(Count::Delivered) == 21);
    rig.region.heartbeat(Role::Capturer).set_state(RoleState::Done);
    rig.injected("a reset", |head, _| head.tcp.has(flag::RST));
    rig.finish();
    assert_eq!(rig.region.heartbeat(Role::Shard(SHARD)).state(), RoleState::Done);
    assert_eq!(rig.read(offset_gauge(Gauge::Open)), 0);
    assert_eq!(rig.read(offset_gauge(Gauge::InFlight)), 0);
    let dropped: u64 = Reason::ALL.iter().map(|&reason| rig.read(offset_dropped_bytes(reason))).sum();
    assert_eq!((dropped, rig.count(Count::SessionsStarted)), (4, 1), "the late flow's bytes, no session");
    assert!(rig.ledger_holds());
}

#[test]
fn the_end_of_the_drain_time_drops_what_the_target_never_took() {
    let mut plan = plan();
    plan.replay.drain_ms = 50;
    let mut rig = Rig::with(plan);
    let mut session = rig.open("203.0.113.5:40000");
    let data = session.segment(flag::ACK | flag::PSH, 5);
    rig.capture(&data, b"hello");
    rig.injected("the request", |_, payload| payload == b"hello");
    rig.region.heartbeat(Role::Capturer).set_state(RoleState::Done);
    rig.region.control().set_draining(true);
    rig.region.doorbell(Role::Shard(SHARD)).ring();
    rig.finish();
    assert_eq!(rig.read(offset_dropped_bytes(Reason::Stopped)), 5);
    assert!(rig.ledger_holds());
}

#[test]
fn a_pause_spares_what_runs_and_counts_what_it_refuses() {
    let mut rig = Rig::new();
    let mut running = rig.open("203.0.113.5:40000");
    rig.ask(&mut running, b"before", 10);
    rig.region.control().set_paused(true);
    rig.region.control().set_copies_milli(3_000);
    let mut refused = Session::new("203.0.113.6:40000");
    let (syn, data) = (refused.segment(flag::SYN, 0), refused.segment(flag::ACK | flag::PSH, 4));
    rig.capture(&syn, &[]);
    rig.capture(&data, b"late");
    rig.ask(&mut running, b"during", 10);
    until("the delivery", || rig.count(Count::Delivered) == 12);
    assert_eq!(rig.read(offset_dropped_bytes(Reason::Paused)), 12, "three copies of four bytes");
    assert_eq!(rig.count(Count::Wanted), 24);
    assert_eq!((rig.count(Count::SampledOut), rig.count(Count::SessionsStarted)), (0, 1));
    assert!(rig.ledger_holds());
}

#[test]
fn a_slow_injector_stops_the_intake_and_nothing_is_lost() {
    let mut rig = Rig::new();
    let flows = 6_000u32;
    for i in 0..flows {
        let client = format!("203.0.{}.{}:{}", 100 + i / 250, i % 250, 10_000 + i % 1_000);
        let syn = Session::new(&client).segment(flag::SYN, 0);
        rig.capture(&syn, &[]);
    }
    until("a wait for credits", || rig.read(offset_worker(WorkerCount::CreditWaits)) > 2);
    assert!(rig.count(Count::TakenSegments) < u64::from(flows), "the rest stays in the capture ring");
    assert!(rig.region.link_depth(Link::Capture(SHARD)) > 0);
    let mut syns = 0;
    until("all SYNs", || {
        while let Some(bytes) = rig.injector.next() {
            let (head, _) = Inject::split(bytes).unwrap();
            // Repeats come too when the test is slow.
            syns += u32::from(head.tcp.has(flag::SYN) && head.bits & inject_bit::AGAIN == 0);
        }
        rig.injector.release();
        syns == flows
    });
    assert_eq!(rig.read(offset_worker(WorkerCount::OutboxRefused)), 0);
}

#[test]
fn a_datagram_whose_copies_fill_the_ring_many_times_leaves_each_of_them_once() {
    let mut plan = plan();
    plan.mappings[0].protocol = Protocol::Udp;
    plan.targets[0].protocol = Protocol::Udp;
    plan.copies_milli = 40_000;
    let mut rig = Rig::with(plan);
    let client = rig.client();
    let payload: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
    let segment = Captured { client, server: endpoint("10.0.0.9:80"), ..Captured::default() };
    rig.capture(&segment, &payload);
    rig.capture(&segment, b"next");
    let mut clients = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let (head, copy) = rig.injected("a copy", |_, _| true);
        assert!(copy == payload && clients.insert(head.client), "each copy once, from a client of its own");
    }
    for _ in 0..40 {
        let (head, copy) = rig.injected("a copy of the next one", |_, _| true);
        assert!(copy == b"next" && clients.contains(&head.client));
    }
    let read = |rig: &Rig, count| rig.read(offset_datagrams(count));
    until("the ledger", || read(&rig, DatagramCount::Sent) == 80);
    assert_eq!(read(&rig, DatagramCount::Taken), 2, "one that is resumed is taken once");
    assert_eq!(read(&rig, DatagramCount::WantedBytes), 40 * 60_004);
    assert_eq!(read(&rig, DatagramCount::SentBytes), 40 * 60_004);
    assert_eq!(rig.read(offset_gauge(Gauge::DatagramFlows)), 40);
    assert_eq!(rig.read(offset_gauge(Gauge::DatagramCopies)), 0);
    let reply = Returned {
        kind: flow::record::kind::UDP,
        client: *clients.first().unwrap(),
        target: endpoint(TARGET),
        payload_len: 9,
        ..Returned::default()
    };
    rig.answer(&reply);
    until("the reply", || read(&rig, DatagramCount::ReplyBytes) == 9);
    rig.halt();
    assert_eq!(rig.read(offset_worker(WorkerCount::OutboxRefused)), 0);
}

#[test]
fn records_that_lie_about_their_length_are_counted() {
    let mut rig = Rig::new();
    let lying = Captured { payload_len: 9, ..Captured::default() };
    assert!(rig.capturer.push(lying.as_bytes()) && rig.receiver.push(b"short"));
    assert!(rig.capturer.publish() && rig.receiver.publish());
    rig.region.doorbell(Role::Shard(SHARD)).ring();
    until("both counts", || {
        rig.read(offset_worker(WorkerCount::MalformedCaptured)) == 1
            && rig.read(offset_worker(WorkerCount::MalformedReturned)) == 1
    });
    rig.open("203.0.113.5:40000");
}

#[test]
fn a_successor_continues_sessions_and_settles_the_ledger() {
    let mut rig = Rig::new();
    let mut session = rig.open("203.0.113.5:40000");
    rig.ask(&mut session, b"before", 10);
    until("the delivery", || rig.count(Count::Delivered) == 6);
    let data = session.segment(flag::ACK | flag::PSH, 5);
    rig.capture(&data, b"hello");
    rig.injected("the second request", |_, payload| payload == b"hello");
    until("its count", || rig.count(Count::Wanted) == 11);
    rig.halt();
    // As if the predecessor had died before it counted that request.
    let tampered = Region::attach(&rig.name).unwrap();
    tampered.counters(Role::Shard(SHARD)).add(offset_count(Count::Wanted), 5u64.wrapping_neg());
    assert!(!rig.ledger_holds());

    rig.region.control().set_halt(false);
    let mut rig = {
        let region = Region::attach(&rig.name).unwrap();
        rig.started(region)
    };
    until("the successor", || rig.read(offset_worker(WorkerCount::SettledWanted)) == 5);
    let header = TcpFields {
        seq: session.target_next,
        ack: session.sent_next + 5,
        flags: flag::ACK,
        window: 501,
        ..TcpFields::default()
    };
    let header = session.returned(header, 0);
    rig.answer(&header);
    until("the delivery", || rig.count(Count::Delivered) == 11);
    assert!(rig.ledger_holds());
    assert_eq!(rig.count(Count::SessionsStarted), 1);
}

#[test]
fn what_was_died_of_twice_is_left_out_with_its_session() {
    let mut rig = Rig::new();
    let mut killer = rig.open("203.0.113.5:40000");
    let mut other = rig.open("203.0.113.6:40000");
    rig.ask(&mut killer, b"before", 10);
    rig.ask(&mut other, b"others", 10);
    until("the deliveries", || rig.count(Count::Delivered) == 12);
    rig.halt();
    // As a supervisor would after the second crash, of a record that the next worker finds in its ring.
    let data = killer.segment(flag::ACK | flag::PSH, 6);
    rig.capture(&data, b"killer");
    let region = Region::attach(&rig.name).unwrap();
    let position = region.consumer(Link::Capture(SHARD)).peek_batch(1).position(0).unwrap();
    region.leave_out(Role::Shard(SHARD), Item::Captured(position));
    rig.region.control().set_halt(false);
    let mut rig = {
        let region = Region::attach(&rig.name).unwrap();
        rig.started(region)
    };
    until("it is left out", || rig.read(offset_worker(WorkerCount::LeftOut)) == 1);
    assert_eq!(rig.read(offset_dropped_bytes(Reason::Quarantined)), 6);
    assert_eq!((rig.count(Count::SlotsUnusable), rig.read(offset_gauge(Gauge::Open))), (1, 1));
    rig.ask(&mut other, b"goes on", 10);
    until("the other's delivery", || rig.count(Count::Delivered) == 19);
    assert!(rig.ledger_holds());
    assert_eq!(rig.read(offset_worker(WorkerCount::SettledLost)), 0);
    // The order was obeyed once.
    assert_eq!(region.journal(Role::Shard(SHARD)).left_out(), Item::Nothing);
}

#[test]
fn a_slot_that_somebody_scribbled_over_costs_its_session_alone() {
    let mut rig = Rig::new();
    let mut damaged = rig.open("203.0.113.5:40000");
    let mut sound = rig.open("203.0.113.6:40000");
    let data = damaged.segment(flag::ACK | flag::PSH, 5);
    rig.capture(&data, b"hello");
    rig.injected("the request", |_, payload| payload == b"hello");
    until("its count", || rig.count(Count::Wanted) == 5);
    rig.halt();
    let arena = Region::attach(&rig.name).unwrap().arena(SHARD);
    // Slots are handed out from the first; somewhere in the first one.
    let slots = session::Table::arena_bytes(8_192, 0) as usize - 8_192 * session::Table::SLOT_BYTES;
    arena[slots + 100] ^= 4;
    rig.region.control().set_halt(false);
    let mut rig = {
        let region = Region::attach(&rig.name).unwrap();
        rig.started(region)
    };
    until("the loss", || rig.read(offset_dropped_bytes(Reason::WorkerLost)) == 5);
    assert_eq!(rig.count(Count::SlotsUnusable), 1);
    rig.ask(&mut sound, b"goes on", 10);
    until("the other's delivery", || rig.count(Count::Delivered) == 7);
    assert!(rig.ledger_holds());
    assert_eq!(rig.read(offset_worker(WorkerCount::SettledLost)), 0, "a damaged slot explains it");
}

#[test]
fn a_region_that_does_not_fit_the_plan_is_refused() {
    let plan = plan();
    let small =
        Spec { shards: 1, capture_ring: 1 << 16, inject_ring: 1 << 16, return_ring: 1 << 16, arena: 4_096 };
    let name = format!("shard-test-{}-small", std::process::id());
    let region = Region::create(&name, &small, &[], 1).unwrap();
    Region::remove(&name).unwrap();
    assert!(matches!(run(region, &plan, 0), Err(WorkerError::SmallRing { .. })));
    assert!(matches!(run(region, &plan, 1), Err(WorkerError::NoSuchShard { shard: 1, shards: 1 })));
}
