//! The world: virtual time around a table, with its invariants looked at after every step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use flow::record::{flag, kind, opt};
use flow::{Captured, Drop, Inject, Returned, Seq, TcpFields};
use session::{Config, Count, Table};

use super::target::endpoint_of;
use super::wire::{Wire, cut};
use super::{Fate, Peer, SECOND, Sent, TargetOptions, WIRE_US, arena, config};

pub(super) enum Event {
    ToTarget(Inject, Vec<u8>),
    ToUs(Returned),
    /// Look at the target's timers.
    Target,
}

pub type Choose = Box<dyn FnMut(u64, &Inject) -> Fate>;
pub type ChooseReturned = Box<dyn FnMut(u64, &Returned) -> Fate>;

pub struct World {
    pub now_us: u64,
    pub table: Table,
    pub options: TargetOptions,
    /// Connections at the target, oldest first; the last of an endpoint is the live one.
    pub peers: Vec<Peer>,
    pub sent: Vec<Sent>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    queue: BTreeMap<u64, Event>,
    serial: u64,
    pub to_target: Choose,
    pub to_us: ChooseReturned,
    pub percent_ppm: u32,
    pub copies_milli: u32,
    pub returned: u64,
    /// SYNs that found an old connection and were not newer.
    pub stale_syns: u32,
    pub(super) ts: u32,
    steps: std::cell::Cell<u64>,
}

impl World {
    pub fn new() -> Self {
        Self::with(config(), TargetOptions::default())
    }

    pub fn with(config: Config, options: TargetOptions) -> Self {
        let table = Table::new(arena(&config.limits), config);
        Self::on(table, options)
    }

    pub fn on(table: Table, options: TargetOptions) -> Self {
        Self {
            now_us: 1_000 * SECOND,
            table,
            options,
            peers: Vec::new(),
            sent: Vec::new(),
            events: BinaryHeap::new(),
            queue: BTreeMap::new(),
            serial: 0,
            to_target: Box::new(|_, _| Fate::Pass),
            to_us: Box::new(|_, _| Fate::Pass),
            percent_ppm: 1_000_000,
            copies_milli: 1_000,
            returned: 0,
            stale_syns: 0,
            ts: 5_000,
            steps: std::cell::Cell::new(0),
        }
    }

    /// The value of the target's time stamps from now on.
    pub fn set_stamps(&mut self, ts: u32) {
        self.ts = ts;
    }

    pub fn count(&self, count: Count) -> u64 {
        self.table.tally().count(count)
    }

    pub fn dropped(&self, reason: Drop) -> u64 {
        self.table.tally().dropped(reason).payload_bytes
    }

    /// Everything but `reason` was delivered.
    pub fn assert_delivered_but(&self, reason: Drop, bytes: u64) {
        let tally = self.table.tally();
        assert_eq!(self.dropped(reason), bytes, "dropped as {}", reason.name());
        assert_eq!(tally.count(Count::Wanted), tally.count(Count::Delivered) + bytes);
        assert_eq!(tally.in_flight, 0);
    }

    pub fn assert_all_delivered(&self) {
        self.assert_delivered_but(Drop::Gap, 0);
    }

    pub fn capture(&mut self, segment: &Captured, payload: &[u8]) {
        let mut segment = *segment;
        segment.time_ns = self.now_us * 1000;
        segment.stamp_us = self.now_us as u32;
        segment.payload_len = payload.len() as u32;
        let (percent_ppm, copies_milli) = (self.percent_ppm, self.copies_milli);
        if !self.table.admits(self.now_us, &segment, payload.len(), percent_ppm, copies_milli) {
            self.table.settle();
        }
        self.table.captured(self.now_us, &segment, payload, percent_ppm, copies_milli);
        self.check();
        self.pump();
    }

    /// The table's invariants: after every step, of large tables after some.
    fn check(&self) {
        self.steps.set(self.steps.get() + 1);
        if self.table.config().limits.sessions > 256 && !self.steps.get().is_multiple_of(64) {
            return;
        }
        if let Err(why) = self.table.check() {
            panic!("at {} us: {why}", self.now_us - 1_000 * SECOND);
        }
    }

    pub(super) fn later(&mut self, at_us: u64, event: Event) {
        self.serial += 1;
        self.queue.insert(self.serial, event);
        self.events.push(Reverse((at_us, self.serial)));
    }

    pub fn pump(&mut self) {
        loop {
            let from = self.sent.len();
            let mut wire = Wire { at_us: self.now_us, sent: &mut self.sent, records: 0, bytes: 0 };
            let more = self.table.pump(self.now_us, &mut wire);
            let (records, bytes) = (wire.records, wire.bytes);
            assert!(
                records <= session::BURST && bytes <= session::BURST_BYTES,
                "{records} records, {bytes} bytes"
            );
            self.check();
            for i in from..self.sent.len() {
                let sent = self.sent[i].clone();
                for (head, payload) in cut(&sent) {
                    let fate = (self.to_target)(self.now_us, &head);
                    let at = self.now_us + WIRE_US;
                    match fate {
                        Fate::Pass => self.later(at, Event::ToTarget(head, payload)),
                        Fate::Lose => {}
                        Fate::Late(us) => self.later(at + us, Event::ToTarget(head, payload)),
                        Fate::Twice => {
                            self.later(at, Event::ToTarget(head, payload.clone()));
                            self.later(at + 1, Event::ToTarget(head, payload));
                        }
                    }
                }
            }
            if !more {
                self.table.settle();
                return;
            }
        }
    }

    /// Lets the time pass with everything that happens in it.
    pub fn run(&mut self, us: u64) {
        let end = self.now_us + us;
        loop {
            let event = self.events.peek().map(|Reverse((at, _))| *at);
            let timer = self.table.next_deadline_us();
            let next = [event, timer].into_iter().flatten().min().unwrap_or(u64::MAX);
            if next > end {
                break;
            }
            self.now_us = self.now_us.max(next);
            if event.is_some_and(|at| at <= self.now_us) {
                let Some(Reverse((_, serial))) = self.events.pop() else { break };
                match self.queue.remove(&serial).expect("queued") {
                    Event::ToTarget(head, payload) => self.at_target(&head, &payload),
                    Event::ToUs(record) => {
                        self.returned += 1;
                        self.table.returned(self.now_us, &record);
                        self.check();
                    }
                    Event::Target => self.target_timers(),
                }
            }
            self.table.tick(self.now_us);
            self.check();
            self.pump();
        }
        self.now_us = end;
        self.table.tick(end);
        self.pump();
    }

    /// The live connection of the target, when there is one client only.
    pub fn peer(&self) -> &Peer {
        self.peers.last().expect("the target saw a connection")
    }

    /// Data segments as they are on the wire: first number, length, PSH.
    pub fn segments_sent(&self) -> Vec<(Seq, u32, bool)> {
        let cut = self.data_sent().into_iter().flat_map(cut);
        cut.map(|(head, _)| (head.tcp.seq, head.payload_len, head.tcp.has(flag::PSH))).collect()
    }

    pub fn data_sent(&self) -> Vec<&Sent> {
        self.sent.iter().filter(|sent| !sent.payload.is_empty()).collect()
    }

    /// A bare acknowledgement of the newest connection, in step: what a story changes a field of.
    pub fn in_step(&self) -> Returned {
        let peer = self.peer();
        let mut record =
            Returned { client: peer.client, target: endpoint_of(&self.table), ..Returned::default() };
        record.tcp.flags = flag::ACK;
        (record.tcp.seq, record.tcp.ack) = (peer.snd_nxt, peer.rcv_nxt);
        record.tcp.window = 8_000;
        if peer.timestamps {
            record.tcp.options = opt::TIMESTAMPS;
            record.tcp.ts_val = self.ts;
        }
        record
    }

    /// An ICMP error about the newest connection that quotes this number.
    pub fn icmp(&self, icmp_type: u8, icmp_code: u8, seq: Seq, mtu: u32) -> Returned {
        Returned {
            client: self.sent.last().expect("something was sent").head.client,
            target: endpoint_of(&self.table),
            kind: kind::ICMP,
            tcp: TcpFields { seq, ..TcpFields::default() },
            icmp_type,
            icmp_code,
            mtu,
            ..Returned::default()
        }
    }

    /// What leaves because of one record that arrives now.
    pub fn drawn_by(&mut self, record: Returned) -> Vec<Sent> {
        let mark = self.sent.len();
        self.table.returned(self.now_us, &record);
        self.check();
        self.pump();
        self.sent[mark..].to_vec()
    }

    pub fn give_back(&mut self, record: Returned) {
        let at = self.now_us + WIRE_US;
        match (self.to_us)(self.now_us, &record) {
            Fate::Pass => self.later(at, Event::ToUs(record)),
            Fate::Lose => {}
            Fate::Late(us) => self.later(at + us, Event::ToUs(record)),
            Fate::Twice => {
                self.later(at, Event::ToUs(record));
                self.later(at + 1, Event::ToUs(record));
            }
        }
    }
}
