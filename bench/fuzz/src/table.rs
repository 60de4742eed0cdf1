//! Target `table`: a whole session table, with any sequence of captured segments, returned headers, time and pumping.
//!
//! Four bytes choose the configuration, then operations of twelve bytes (see [`Op`]). Numbers are mostly near the valid
//! ones: the table is told apart from noise at once, and everything interesting lies behind the first checks.
//!
//! The oracle: the ledger's identity and the bounds after every operation, all invariants of [`session::Table::check`] at
//! the end, and after the end of the run nothing is open or in flight.

use flow::record::{SackBlock, flag, kind, opt};
use flow::{Captured, Drop, Endpoint, Inject, Returned, Seq, TcpFields};
use session::{
    BURST, BURST_BYTES, Clients, Config, Count, Join, Limits, OnGap, Pace, Rtt, Seeds, Sink, Table,
    TargetConfig, Times,
};

use crate::data::Data;
use crate::lease::Leased;
use crate::reach;
use crate::rewrite::TARGETS;

/// Bytes before the first operation.
pub(crate) const HEAD: usize = 4;
/// Operations of one input at most.
const MOST: usize = 192;
/// Restarts of one input at most: each copies the arena.
const RESTARTS: u32 = 2;
/// Flows of one input.
const FLOWS: usize = 4;
const LIMITS: Limits = Limits { sessions: 6, chunks: 40, held_per_session: 16_000 };
/// Calls of pump that one instant may need: far more than the held bytes make at the smallest segments.
const PUMPS: usize = 4_096;
const START_US: u64 = 1_000_000_000;
const SECOND: u64 = 1_000_000;

/// What is done, [`OP`] bytes: kind and pump bit, which flow or answer, how numbers are bent, and arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// Low four bits: see [`act`]; top bit: nothing is pumped afterwards.
    pub(crate) what: u8,
    pub(crate) which: u8,
    /// Low nibble bends the sequence number, high nibble the acknowledgement number: see [`near`].
    pub(crate) bend: u8,
    pub(crate) extra: u8,
    pub(crate) flags: u16,
    pub(crate) len: u16,
    pub(crate) word: u32,
}

/// Bytes of one operation.
pub(crate) const OP: usize = 12;

/// Kinds of operations.
pub(crate) mod act {
    /// A client's segment in order, flags as given (0: acknowledgement), `len` bytes of payload.
    pub(crate) const CAPTURE: u8 = 0;
    /// The target acknowledges what it was last sent, flags as given in addition, `len` bytes of answer.
    pub(crate) const ANSWER: u8 = 5;
    /// Time: `word` µs.
    pub(crate) const WAIT: u8 = 9;
    /// Time: to the next deadline, plus `len` µs.
    pub(crate) const DEADLINE: u8 = 10;
    /// A captured segment with all fields from the arguments.
    pub(crate) const ANY_CAPTURE: u8 = 11;
    /// A returned header likewise.
    pub(crate) const ANY_ANSWER: u8 = 12;
    /// An ICMP error.
    pub(crate) const ICMP: u8 = 13;
    /// The online server's answer arrives at the client: `len` bytes.
    pub(crate) const READ: u8 = 14;
    /// Drain, restart, or change how much is replayed.
    pub(crate) const CONTROL: u8 = 15;
}

impl Op {
    fn read(bytes: [u8; OP]) -> Self {
        let [what, which, bend, extra, f0, f1, l0, l1, word @ ..] = bytes;
        let (flags, len) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([l0, l1]));
        Self { what, which, bend, extra, flags, len, word: u32::from_le_bytes(word) }
    }

    pub(crate) fn write(self) -> [u8; OP] {
        let ([f0, f1], [l0, l1]) = (self.flags.to_le_bytes(), self.len.to_le_bytes());
        let [a, b, c, d] = self.word.to_le_bytes();
        [self.what, self.which, self.bend, self.extra, f0, f1, l0, l1, a, b, c, d]
    }
}

/// Any sequence of operations on a table.
pub fn table(data: &[u8]) {
    let mut data = Data::new(data);
    let Some(choices) = data.array::<HEAD>() else { return };
    let config = config(choices);
    let mut world = World {
        leased: Leased::new(&config),
        now_us: START_US,
        flows: std::array::from_fn(Flow::new),
        wire: Wire::default(),
        percent_ppm: 1_000_000,
        copies_milli: 1_000 + 500 * u32::from(choices[3] % 5),
        restarts: 0,
    };
    for _ in 0..MOST {
        let Some(op) = data.array().map(Op::read) else { break };
        world.act(op);
        if op.what & 0x80 == 0 {
            world.pump();
        }
        world.holds();
    }
    world.end();
}

fn config([wait, clients, rtt, join]: [u8; HEAD]) -> Config {
    let range = |text: &str| Some(text.parse().expect("a range"));
    Config {
        shards: 1,
        shard: 0,
        seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
        clients: match clients % 3 {
            0 => Clients::Pool { v4: range("198.18.0.0/20"), v6: range("2001:2::/64") },
            1 => Clients::Keep,
            _ => Clients::Pool { v4: range("198.18.0.7/32"), v6: None },
        },
        targets: TARGETS
            .iter()
            .zip([1_500, if clients & 0x40 == 0 { 1_280 } else { 90 }])
            .map(|(text, mtu)| TargetConfig { endpoint: endpoint(text), mtu })
            .collect(),
        mappings: vec![0, 1],
        wait: wait % 4 != 0,
        rtt: [Rtt::None, Rtt::Measured, Rtt::Fixed(5_000)][usize::from(rtt % 3)],
        join: [Join::Boundary, Join::First, Join::Never][usize::from(join / 5 % 3)],
        on_gap: [OnGap::Skip, OnGap::Resync, OnGap::Abort][usize::from(wait / 4 % 3)],
        pace: Pace::default(),
        limits: LIMITS,
        times: Times { idle_us: 30 * SECOND, dead_us: 10 * SECOND, ..Times::default() },
        claim: wait & 0x40 != 0,
        file_us: (join & 0x80 != 0).then_some(SECOND),
        repeatable: join & 0x80 != 0,
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}

/// A client as the capture sees it.
struct Flow {
    client: Endpoint,
    server: Endpoint,
    seq: Seq,
    ack: Seq,
}

impl Flow {
    fn new(n: usize) -> Self {
        let (client, server) = match n % 4 {
            3 => (endpoint("[fd00:9::1]:40000"), endpoint("[fd00:1::1]:80")),
            _ => (endpoint("10.9.0.1:40000"), endpoint("10.0.1.1:80")),
        };
        let client = Endpoint::new(client.addr, client.port + n as u16);
        // One begins just before the wrap.
        let seq = if n == 1 { Seq(u32::MAX - 700) } else { Seq(5_000_000 + n as u32 * 1_000_000) };
        Self { client, server, seq, ack: Seq(90_000) }
    }
}

struct World {
    leased: Leased,
    now_us: u64,
    flows: [Flow; FLOWS],
    wire: Wire,
    percent_ppm: u32,
    copies_milli: u32,
    restarts: u32,
}

impl World {
    fn act(&mut self, op: Op) {
        match op.what & 15 {
            act::CAPTURE..act::ANSWER => self.capture(op),
            act::ANSWER..act::WAIT => self.answer(op),
            act::WAIT => self.wait(u64::from(op.word % (64 * SECOND as u32))),
            act::DEADLINE => {
                let next = self.leased.table().next_deadline_us().unwrap_or(self.now_us);
                self.wait(next.saturating_sub(self.now_us) + u64::from(op.len));
            }
            act::ANY_CAPTURE => self.any_capture(op),
            act::ANY_ANSWER => self.any_answer(op),
            act::ICMP => self.icmp(op),
            act::READ => {
                let flow = &mut self.flows[usize::from(op.which) % FLOWS];
                flow.ack += u32::from(op.len);
            }
            _ => self.control(op),
        }
    }

    fn capture(&mut self, op: Op) {
        let flow = &mut self.flows[usize::from(op.which) % FLOWS];
        let flags = if op.flags == 0 { flag::ACK } else { op.flags & 0x1ff };
        let len = u32::from(op.len % 20_000);
        let tcp = TcpFields {
            seq: near(flow.seq, op.bend, op.word),
            ack: near(flow.ack, op.bend >> 4, op.word),
            flags,
            window: 500,
            mss: 1_460,
            options: if flags & flag::SYN != 0 { opt::MSS | opt::WINDOW_SCALE } else { 0 },
            urgent: u16::from(op.extra),
            ..TcpFields::default()
        };
        if op.bend & 15 == 0 {
            flow.seq += len + u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
        }
        let (client, server) = (flow.client, flow.server);
        let mapping = u16::from(!client.addr.is_v4());
        self.take(Captured {
            tcp,
            payload_len: len,
            cut_len: if op.extra & 0xe0 == 0xe0 { op.word % 3_000 } else { 0 },
            client,
            server,
            mapping,
            ..Captured::default()
        });
    }

    fn any_capture(&mut self, op: Op) {
        let flow = &self.flows[usize::from(op.which) % FLOWS];
        let tcp = TcpFields {
            seq: Seq(op.word),
            ack: near(flow.ack, op.bend, op.word.rotate_left(16)),
            flags: op.flags,
            window: op.flags,
            ts_val: op.word,
            ts_ecr: !op.word,
            mss: op.len,
            window_scale: op.extra,
            options: op.bend,
            urgent: op.len,
            reserved: op.flags,
        };
        let (client, server) = (flow.client, flow.server);
        self.take(Captured {
            tcp,
            payload_len: u32::from(op.len) % 65_000,
            cut_len: if op.extra & 1 == 0 { 0 } else { op.word },
            client: match op.extra & 6 {
                2 => Endpoint::default(),
                6 => Endpoint::new(client.addr, op.flags),
                _ => client,
            },
            server: if op.extra & 8 == 0 { server } else { client },
            mapping: u16::from(op.which >> 2),
            answer: op.extra & 16,
            stamp_us: op.word,
            ..Captured::default()
        });
    }

    fn take(&mut self, mut segment: Captured) {
        segment.time_ns = (self.now_us - u64::from(segment.tcp.urgent % 100)) * 1_000;
        let payload = &PAYLOAD[..segment.payload_len as usize];
        let (percent, copies) = (self.percent_ppm, self.copies_milli);
        let table = self.leased.table();
        if !table.admits(self.now_us, &segment, payload.len(), percent, copies) {
            table.settle();
        }
        table.captured(self.now_us, &segment, payload, percent, copies);
    }

    /// An answer to what was last sent in some session.
    fn answer(&mut self, op: Op) {
        let Some(head) = self.wire.last(op.which) else { return };
        let end = head.tcp.seq + head.payload_len + u32::from(head.tcp.flags & (flag::SYN | flag::FIN) != 0);
        let syn = if head.tcp.has(flag::SYN) { flag::SYN } else { 0 };
        let mut record = self.returned(&head);
        record.payload_len = u32::from(op.len);
        record.tcp = TcpFields {
            seq: near(if syn == 0 { head.tcp.ack } else { Seq(700_000) }, op.bend, op.word),
            ack: near(end, op.bend >> 4, op.word),
            flags: flag::ACK | syn ^ (op.flags & 0x1ff),
            window: if op.extra == 0 { 30_000 } else { u16::from(op.extra - 1) },
            mss: if op.extra & 0x80 == 0 { 1_460 } else { op.len },
            window_scale: op.extra & 15,
            ts_val: op.word,
            ts_ecr: head.tcp.ts_val,
            options: if op.extra & 0x40 == 0 { opt::MSS | opt::SACK_PERMITTED } else { op.extra & 15 },
            ..TcpFields::default()
        };
        record.sack_count = op.which >> 5;
        for (i, block) in record.sack.iter_mut().enumerate() {
            let left = near(head.tcp.seq, op.bend >> i, op.word);
            *block = SackBlock { left, right: left + u32::from(op.len) * i as u32 };
        }
        self.leased.table().returned(self.now_us, &record);
    }

    fn any_answer(&mut self, op: Op) {
        let Some(head) = self.wire.last(op.which) else { return };
        let mut record = self.returned(&head);
        record.tcp = TcpFields {
            seq: Seq(op.word),
            ack: Seq(op.word.rotate_left(16)),
            flags: op.flags,
            window: op.len,
            ts_val: op.word,
            ts_ecr: !op.word,
            mss: op.len,
            window_scale: op.extra,
            options: op.bend,
            urgent: op.flags,
            reserved: op.len,
        };
        record.payload_len = op.word >> (op.extra & 31);
        record.segments = op.len;
        (record.kind, record.bits, record.sack_count) = (op.bend, op.extra, op.extra);
        record.sack = [SackBlock { left: Seq(op.word), right: Seq(!op.word) }; 4];
        if op.extra & 0x80 != 0 {
            record.client = Endpoint::default();
        }
        self.leased.table().returned(self.now_us, &record);
    }

    fn icmp(&mut self, op: Op) {
        let Some(head) = self.wire.last(op.which) else { return };
        let mut record = self.returned(&head);
        record.kind = kind::ICMP;
        record.tcp.seq = near(head.tcp.seq, op.bend, op.word);
        (record.icmp_type, record.icmp_code) = (op.flags as u8, op.extra);
        record.mtu = u32::from(op.len);
        self.leased.table().returned(self.now_us, &record);
    }

    fn returned(&mut self, head: &Inject) -> Returned {
        let target = self.leased.table().config().targets[usize::from(head.target)].endpoint;
        Returned { client: head.client, target, ..Returned::default() }
    }

    fn wait(&mut self, us: u64) {
        self.now_us += us;
        let now_us = self.now_us;
        let table = self.leased.table();
        table.tick(now_us);
        let next = table.next_deadline_us();
        assert!(
            next.is_none_or(|next| next + 1_000 > now_us),
            "a deadline at {next:?} is not served at {now_us}"
        );
    }

    fn control(&mut self, op: Op) {
        match op.which % 8 {
            0 => self.leased.table().drain(self.now_us),
            1 if self.restarts < RESTARTS => {
                self.restarts += 1;
                self.leased.table().settle();
                let before = self.leased.table().tally().in_flight;
                self.leased.restart();
                let tally = self.leased.table().tally();
                assert_eq!((tally.in_flight, tally.inherited), (before, before), "a restart loses nothing");
                assert_eq!(tally.count(Count::SlotsUnusable), 0, "what stood in the arena was a table's");
            }
            2 => self.percent_ppm = op.word % 1_200_000,
            3 => self.copies_milli = u32::from(op.len % 5_000),
            4 => {
                let (now_us, table) = (self.now_us, self.leased.table());
                while table.shed(now_us, op.word % 1_200_000) {
                    table.settle();
                }
                table.settle();
            }
            _ => self.wait(1),
        }
    }

    fn pump(&mut self) {
        for _ in 0..PUMPS {
            (self.wire.records, self.wire.bytes) = (0, 0);
            let more = self.leased.table().pump(self.now_us, &mut self.wire);
            assert!(self.wire.records <= BURST && self.wire.bytes <= BURST_BYTES, "a burst is too large");
            if !more {
                self.leased.table().settle();
                return;
            }
        }
        panic!("pump finds no end within one instant");
    }

    /// What holds at every moment.
    fn holds(&mut self) {
        let tally = self.leased.table().tally();
        assert!(tally.balanced(), "the ledger does not balance");
        assert!(tally.open <= u64::from(LIMITS.sessions), "{} sessions are open", tally.open);
        assert!(tally.in_flight <= u64::from(LIMITS.chunks) * 1_024, "{} bytes are held", tally.in_flight);
    }

    fn note_counters(&mut self) {
        let tally = self.leased.table().tally();
        reach::note_all(|| {
            let counts = Count::ALL.iter().filter(|count| tally.count(**count) > 0).map(|count| count.name());
            let drops = Drop::ALL.iter().filter(|reason| tally.dropped(**reason).segments > 0);
            counts.chain(drops.map(|reason| reason.name())).collect()
        });
    }

    fn end(&mut self) {
        let now_us = self.now_us;
        let checked = |table: &Table| table.check().unwrap_or_else(|why| panic!("{why}"));
        checked(self.leased.table());
        self.leased.table().drain(now_us);
        self.leased.table().abandon(now_us);
        self.pump();
        self.note_counters();
        let table = self.leased.table();
        checked(table);
        assert_eq!(
            (table.tally().open, table.tally().in_flight),
            (0, 0),
            "left behind by the end of the run"
        );
    }
}

/// A number that is right, a little off, or anything.
const fn near(seq: Seq, how: u8, word: u32) -> Seq {
    let seq = seq.0;
    Seq(match how & 15 {
        9 => seq.wrapping_add(1),
        10 => seq.wrapping_sub(1),
        11 => seq.wrapping_add(word % 3_000),
        12 => seq.wrapping_sub(word % 3_000),
        13 => seq.wrapping_add(word % 200_000),
        14 => seq.wrapping_sub(word % 200_000),
        15 => word,
        _ => seq,
    })
}

/// Remembers the last records of some clients, to answer them.
#[derive(Default)]
struct Wire {
    heads: Vec<Inject>,
    records: usize,
    bytes: usize,
}

impl Wire {
    fn last(&self, which: u8) -> Option<Inject> {
        let n = self.heads.len();
        (n > 0).then(|| self.heads[usize::from(which & 0x1f) % n])
    }
}

impl Sink for Wire {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        let bytes: usize = parts.map(<[u8]>::len).sum();
        assert_eq!(bytes, head.payload_len as usize, "parts are what the head says: {head:?}");
        assert!(head.mss != 0 || bytes == 0, "{head:?}");
        assert!(usize::from(head.target) < TARGETS.len(), "{head:?}");
        assert!(bytes == 0 || !head.tcp.has(flag::RST), "a reset carries nothing: {head:?}");
        self.records += 1;
        self.bytes += bytes;
        match self.heads.iter_mut().find(|old| old.client == head.client) {
            Some(old) => *old = *head,
            None => {
                if self.heads.len() == 8 {
                    self.heads.remove(0);
                }
                self.heads.push(*head);
            }
        }
    }
}

/// What clients say.
static PAYLOAD: [u8; 65_536] = {
    let mut bytes = [0; 65_536];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = b'a' + (i % 26) as u8;
        i += 1;
    }
    bytes
};
