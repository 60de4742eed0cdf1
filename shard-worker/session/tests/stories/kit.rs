//! The kit: `World` runs a table against `Target` in virtual time, `Client` writes what the online host captures.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use flow::record::{SackBlock, flag, kind, opt};
use flow::{Captured, Drop, Endpoint, Inject, Returned, Seq, TcpFields};
use session::{
    Clients, Config, Count, Join, Limits, OnGap, Pace, Rtt, Seeds, Sink, Table, TargetConfig, Times,
};

pub const TARGET: &str = "10.0.3.2:8080";
pub const SERVER: &str = "10.0.1.1:80";
pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;
/// One way between us and the target.
pub const WIRE_US: u64 = 50;

pub fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}

pub fn config() -> Config {
    Config {
        shards: 1,
        shard: 0,
        seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
        clients: Clients::Pool {
            v4: Some("198.18.0.0/20".parse().expect("a range")),
            v6: Some("2001:2::/64".parse().expect("a range")),
        },
        targets: vec![TargetConfig { endpoint: endpoint(TARGET), mtu: 1500 }],
        mappings: vec![0],
        wait: true,
        rtt: Rtt::None,
        join: Join::Boundary,
        on_gap: OnGap::Skip,
        pace: Pace::default(),
        limits: Limits { sessions: 64, chunks: 2048, held_per_session: 1 << 20 },
        times: Times::default(),
        claim: false,
        file_us: None,
        repeatable: false,
    }
}

/// Zeroed memory, aligned, never freed: as a region is.
pub fn arena(limits: &Limits) -> &'static mut [u8] {
    let bytes = Table::arena_bytes(limits.sessions, limits.chunks) as usize;
    let words: &'static mut [u64] = vec![0u64; bytes.div_ceil(8)].leak();
    zerocopy::IntoBytes::as_mut_bytes(words)
}

/// One segment on the way to the target, cut by the injector.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at_us: u64,
    pub head: Inject,
    pub payload: Vec<u8>,
}

impl Sent {
    pub fn is(&self, flags: u16) -> bool {
        self.head.tcp.has(flags)
    }
}

struct Wire<'a> {
    at_us: u64,
    sent: &'a mut Vec<Sent>,
    records: usize,
    bytes: usize,
}

impl Sink for Wire<'_> {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        let payload: Vec<u8> = parts.flatten().copied().collect();
        assert_eq!(payload.len(), head.payload_len as usize, "parts are what the head says: {head:?}");
        assert!(head.client.port != 0, "no session sends without an endpoint: {head:?}");
        self.records += 1;
        self.bytes += payload.len();
        self.sent.push(Sent { at_us: self.at_us, head: *head, payload });
    }
}

/// What happens to a packet under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Lose,
    /// Arrives later by so much.
    Late(u64),
    Twice,
}

/// How the target's application answers.
#[derive(Clone, Debug)]
pub enum App {
    /// Each line gets an answer; its length stands in the line (`... 500\n`), in so many writes. `then_close` closes after.
    Lines { writes: u32, delay_us: u64, close_after: u32 },
    /// Reads and says nothing.
    Silent,
    /// Answers so many bytes once the client has closed its side.
    AfterFin(u32),
    /// Says so many bytes first, then lines.
    Greets(u32),
}

pub const LINES: App = App::Lines { writes: 1, delay_us: 100, close_after: 0 };

#[derive(Clone, Debug)]
pub struct TargetOptions {
    pub app: App,
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub timestamps: bool,
    pub sack: bool,
    /// Most bytes that the application leaves unread; the rest of this is the window.
    pub buffer: u32,
    /// Reads nothing while set.
    pub stalled: bool,
    pub refuse: bool,
    pub dead: bool,
    /// Closes as soon as the client does.
    pub close_with_client: bool,
    /// After its close, acknowledges what still comes and throws it away, instead of a reset.
    pub discards_after_close: bool,
    /// Holds a write back while an earlier one is unacknowledged (Nagle's algorithm).
    pub nagle: bool,
    /// Initial sequence number of its next connection.
    pub isn: u32,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            app: LINES,
            mss: Some(1460),
            window_scale: Some(7),
            timestamps: true,
            sack: true,
            buffer: 1 << 20,
            stalled: false,
            refuse: false,
            dead: false,
            close_with_client: true,
            discards_after_close: false,
            nagle: false,
            isn: 700_000,
        }
    }
}

/// A connection as the target sees it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub client: Endpoint,
    pub established: bool,
    pub reset: bool,
    pub irs: Seq,
    pub rcv_nxt: Seq,
    pub iss: Seq,
    pub snd_una: Seq,
    pub snd_nxt: Seq,
    out_of_order: Vec<(Seq, Vec<u8>)>,
    /// Everything the application read.
    pub read: Vec<u8>,
    unread: Vec<u8>,
    parsed: usize,
    pub lines: u32,
    pub client_fin: bool,
    fin_at: Option<Seq>,
    pub fin_sent: bool,
    ts_recent: u32,
    timestamps: bool,
    sack: bool,
    answers: Vec<(u64, u32, bool)>,
    retry_at: u64,
    tries: u32,
    pub largest: usize,
    sacks: Vec<SackBlock>,
}

impl Peer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    pub fn is_closed(&self) -> bool {
        self.client_fin && self.fin_sent && self.snd_una == self.snd_nxt
    }
}

enum Event {
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
    ts: u32,
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

    fn later(&mut self, at_us: u64, event: Event) {
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

    pub fn data_sent(&self) -> Vec<&Sent> {
        self.sent.iter().filter(|sent| !sent.payload.is_empty()).collect()
    }

    fn at_target(&mut self, head: &Inject, payload: &[u8]) {
        if self.options.dead {
            return;
        }
        let tcp = &head.tcp;
        let found = self.peers.iter().rposition(|peer| peer.client == head.client && !peer.reset);
        match found {
            Some(i) if tcp.has(flag::SYN) && self.peers[i].irs == tcp.seq => {
                self.reply(i, flag::SYN | flag::ACK, 0);
            }
            Some(i) if tcp.has(flag::SYN) && self.peers[i].is_closed() => self.after_time_wait(i, head),
            Some(i) if tcp.has(flag::RST) && self.peers[i].is_closed() => self.peers[i].reset = true,
            Some(i) => self.segment(i, head, payload),
            None if tcp.has(flag::SYN) && !self.options.refuse => self.accept(head),
            None if tcp.has(flag::RST) => {}
            None => {
                let mut record = record(head);
                record.tcp.flags = flag::RST | if tcp.has(flag::SYN) { flag::ACK } else { 0 };
                record.tcp.seq = if tcp.has(flag::ACK) { tcp.ack } else { Seq(0) };
                record.tcp.ack = tcp.seq + payload.len() as u32 + u32::from(tcp.has(flag::SYN));
                self.give_back(record);
            }
        }
    }

    /// A SYN finds an old connection of its four-tuple: it must be newer by its time stamp or by its number (RFC 6191,
    /// RFC 9293 section 3.10.7.4), else only an acknowledgement comes back.
    fn after_time_wait(&mut self, i: usize, head: &Inject) {
        let peer = &self.peers[i];
        let newer_stamp = peer.timestamps && Seq(head.tcp.ts_val).after(Seq(peer.ts_recent));
        if newer_stamp || head.tcp.seq.after(peer.rcv_nxt) {
            self.accept(head);
        } else {
            self.stale_syns += 1;
            self.reply(i, flag::ACK, 0);
        }
    }

    fn accept(&mut self, head: &Inject) {
        let tcp = &head.tcp;
        let iss = Seq(self.options.isn);
        self.options.isn = self.options.isn.wrapping_add(10_000_000);
        self.peers.push(Peer {
            client: head.client,
            established: false,
            reset: false,
            irs: tcp.seq,
            rcv_nxt: tcp.seq + 1,
            iss,
            snd_una: iss,
            snd_nxt: iss + 1,
            out_of_order: Vec::new(),
            read: Vec::new(),
            unread: Vec::new(),
            parsed: 0,
            lines: 0,
            client_fin: false,
            fin_at: None,
            fin_sent: false,
            ts_recent: tcp.ts_val,
            timestamps: self.options.timestamps && tcp.has_option(opt::TIMESTAMPS),
            sack: self.options.sack && tcp.has_option(opt::SACK_PERMITTED),
            answers: Vec::new(),
            retry_at: u64::MAX,
            tries: 0,
            largest: 0,
            sacks: Vec::new(),
        });
        let i = self.peers.len() - 1;
        self.reply(i, flag::SYN | flag::ACK, 0);
        self.arm(i);
    }

    fn arm(&mut self, i: usize) {
        let at = self.now_us + (200_000 << self.peers[i].tries.min(6));
        self.peers[i].retry_at = at;
        self.later(at, Event::Target);
    }

    fn segment(&mut self, i: usize, head: &Inject, payload: &[u8]) {
        let tcp = &head.tcp;
        let peer = &mut self.peers[i];
        let end = tcp.seq + payload.len() as u32;
        if tcp.has(flag::RST) {
            if tcp.seq == peer.rcv_nxt {
                peer.reset = true;
            } else if tcp.seq.after(peer.rcv_nxt) {
                self.reply(i, flag::ACK, 0);
            }
            return;
        }
        if tcp.has(flag::SYN) {
            // A stranger's SYN into a live connection: a challenge.
            self.reply(i, flag::ACK, 0);
            return;
        }
        if tcp.has(flag::ACK) {
            if tcp.ack.after(peer.snd_nxt) {
                self.reply(i, flag::ACK, 0);
                return;
            }
            if tcp.ack.after(peer.snd_una) {
                peer.snd_una = tcp.ack;
                peer.tries = 0;
                if !peer.established {
                    peer.established = true;
                    if let App::Greets(n) = self.options.app {
                        self.peers[i].answers.push((self.now_us, n, true));
                        self.later(self.now_us, Event::Target);
                    }
                }
                let peer = &mut self.peers[i];
                if peer.snd_una == peer.snd_nxt {
                    peer.retry_at = u64::MAX;
                    self.later(self.now_us, Event::Target);
                } else {
                    self.arm(i);
                }
            }
        }
        let peer = &mut self.peers[i];
        if !peer.established {
            return;
        }
        peer.largest = peer.largest.max(payload.len());
        let old = end.at_or_before(peer.rcv_nxt)
            && !(tcp.has(flag::FIN) && end == peer.rcv_nxt && !peer.client_fin);
        if peer.timestamps && tcp.seq.at_or_before(peer.rcv_nxt) {
            peer.ts_recent = tcp.ts_val;
        }
        if payload.is_empty() && !tcp.has(flag::FIN) {
            if tcp.seq.before(peer.rcv_nxt) {
                self.reply(i, flag::ACK, 0);
            }
            return;
        }
        if peer.fin_sent && !payload.is_empty() && !self.options.discards_after_close {
            // Closed for good: nobody reads any more.
            self.reply(i, flag::RST | flag::ACK, 0);
            self.peers[i].reset = true;
            return;
        }
        let gone = peer.fin_sent && peer.client_fin;
        if old || gone {
            self.reply(i, flag::ACK, 0);
            return;
        }
        if tcp.has(flag::FIN) {
            peer.fin_at = Some(end);
        }
        let window = self.options.buffer.saturating_sub(peer.unread.len() as u32);
        if i64::from(end.since(peer.rcv_nxt)) <= i64::from(window) {
            peer.out_of_order.push((tcp.seq, payload.to_vec()));
            peer.sacks.insert(0, SackBlock { left: tcp.seq, right: end });
        }
        self.assemble(i);
        self.reply(i, flag::ACK, 0);
        self.serve(i);
    }

    fn assemble(&mut self, i: usize) {
        let peer = &mut self.peers[i];
        while let Some(at) = peer.out_of_order.iter().position(|(seq, bytes)| {
            seq.at_or_before(peer.rcv_nxt) && (*seq + bytes.len() as u32).after(peer.rcv_nxt)
        }) {
            let (seq, bytes) = peer.out_of_order.remove(at);
            let skip = peer.rcv_nxt.since(seq) as usize;
            peer.unread.extend_from_slice(&bytes[skip..]);
            peer.rcv_nxt += (bytes.len() - skip) as u32;
        }
        let next = peer.rcv_nxt;
        peer.out_of_order.retain(|(seq, bytes)| (*seq + bytes.len() as u32).after(next));
        let kept: Vec<_> =
            peer.out_of_order.iter().map(|(seq, bytes)| (*seq, *seq + bytes.len() as u32)).collect();
        peer.sacks.retain(|b| kept.iter().any(|(l, r)| b.left == *l && b.right == *r));
        if peer.fin_at == Some(peer.rcv_nxt) && !peer.client_fin {
            peer.client_fin = true;
            peer.rcv_nxt += 1;
        }
    }

    /// The application reads and answers.
    pub fn serve(&mut self, i: usize) {
        if self.options.stalled {
            return;
        }
        let now = self.now_us;
        let peer = &mut self.peers[i];
        let reading = std::mem::take(&mut peer.unread);
        peer.read.extend_from_slice(&reading);
        let mut at = now;
        match self.options.app {
            App::Lines { .. } | App::Greets(_) => {
                let (writes, delay, close_after) = match self.options.app {
                    App::Lines { writes, delay_us, close_after } => (writes, delay_us, close_after),
                    _ => (1, 100, 0),
                };
                while let Some(n) = peer.read[peer.parsed..].iter().position(|&b| b == b'\n') {
                    let line = &peer.read[peer.parsed..peer.parsed + n];
                    let size = std::str::from_utf8(line)
                        .ok()
                        .and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok())
                        .unwrap_or(0);
                    peer.parsed += n + 1;
                    peer.lines += 1;
                    at += delay;
                    for w in 0..writes {
                        let part = size / writes + if w == 0 { size % writes } else { 0 };
                        let close = close_after > 0 && peer.lines == close_after && w + 1 == writes;
                        if part > 0 || close {
                            peer.answers.push((at + u64::from(w) * 300, part, close_after == 0 || !close));
                        }
                        if close {
                            peer.answers.push((at + u64::from(w) * 300, 0, false));
                        }
                    }
                }
            }
            App::AfterFin(n) if peer.client_fin && peer.lines == 0 => {
                peer.lines = 1;
                peer.answers.push((at + 100, n, true));
            }
            App::AfterFin(_) | App::Silent => {}
        }
        if peer.client_fin && self.options.close_with_client {
            peer.answers.push((at + 150, 0, false));
        }
        let times: Vec<u64> = self.peers[i].answers.iter().map(|(at, ..)| *at).collect();
        for at in times {
            self.later(at, Event::Target);
        }
    }

    /// The application reads again, and says so.
    pub fn unstall(&mut self) {
        self.options.stalled = false;
        for i in 0..self.peers.len() {
            self.serve(i);
        }
    }

    pub fn window_update(&mut self) {
        let i = self.peers.len() - 1;
        self.reply(i, flag::ACK, 0);
    }

    /// Closes the target's side of its newest connection.
    pub fn target_closes(&mut self) {
        let i = self.peers.len() - 1;
        self.peers[i].answers.push((self.now_us, 0, false));
        self.later(self.now_us, Event::Target);
    }

    /// The target's newest connection is reset.
    pub fn target_resets(&mut self) {
        let i = self.peers.len() - 1;
        self.reply(i, flag::RST | flag::ACK, 0);
        self.peers[i].reset = true;
    }

    fn target_timers(&mut self) {
        let now = self.now_us;
        for i in 0..self.peers.len() {
            if self.peers[i].reset {
                continue;
            }
            let mut due: Vec<_> =
                self.peers[i].answers.iter().filter(|(at, ..)| *at <= now).copied().collect();
            self.peers[i].answers.retain(|(at, ..)| *at > now);
            due.sort_by_key(|(at, ..)| *at);
            for (at, n, open) in due {
                if self.peers[i].fin_sent {
                    continue;
                }
                if self.options.nagle && self.peers[i].snd_una != self.peers[i].snd_nxt {
                    self.peers[i].answers.push((at, n, open));
                    continue;
                }
                if n > 0 {
                    self.reply(i, flag::ACK | flag::PSH, n);
                    self.peers[i].snd_nxt += n;
                }
                if n == 0 && !open {
                    self.reply(i, flag::ACK | flag::FIN, 0);
                    self.peers[i].snd_nxt += 1;
                    self.peers[i].fin_sent = true;
                }
                self.arm(i);
            }
            if self.peers[i].retry_at <= now && self.peers[i].snd_una != self.peers[i].snd_nxt {
                self.peers[i].tries += 1;
                if self.peers[i].tries > 8 {
                    self.peers[i].retry_at = u64::MAX;
                    continue;
                }
                self.repeat(i);
                self.arm(i);
            }
        }
    }

    /// The target's retransmission of everything unacknowledged.
    fn repeat(&mut self, i: usize) {
        let peer = &self.peers[i];
        if !peer.established {
            self.reply(i, flag::SYN | flag::ACK, 0);
            return;
        }
        let fin = u32::from(peer.fin_sent);
        let n = peer.snd_nxt.since(peer.snd_una) as u32 - fin;
        let next = peer.snd_nxt;
        let una = peer.snd_una;
        self.peers[i].snd_nxt = una;
        let flags = flag::ACK | if n > 0 { flag::PSH } else { 0 } | if fin > 0 { flag::FIN } else { 0 };
        self.reply(i, flags, n);
        self.peers[i].snd_nxt = next;
    }

    fn reply(&mut self, i: usize, flags: u16, payload_len: u32) {
        let options = &self.options;
        let peer = &self.peers[i];
        let mut record =
            Returned { client: peer.client, target: endpoint_of(&self.table), ..Returned::default() };
        let scale = if flags & flag::SYN != 0 { 0 } else { options.window_scale.unwrap_or(0) };
        let window = options.buffer.saturating_sub(peer.unread.len() as u32) >> scale;
        record.tcp = TcpFields {
            seq: if flags & flag::SYN != 0 { peer.iss } else { peer.snd_nxt },
            ack: peer.rcv_nxt,
            flags,
            window: window.min(65_535) as u16,
            ..TcpFields::default()
        };
        if flags & flag::SYN != 0 {
            if let Some(mss) = options.mss {
                record.tcp.options |= opt::MSS;
                record.tcp.mss = mss;
            }
            if let Some(scale) = options.window_scale {
                record.tcp.options |= opt::WINDOW_SCALE;
                record.tcp.window_scale = scale;
            }
            if peer.sack {
                record.tcp.options |= opt::SACK_PERMITTED;
            }
        }
        if peer.timestamps {
            self.ts = self.ts.wrapping_add(1);
            record.tcp.options |= opt::TIMESTAMPS;
            record.tcp.ts_val = self.ts;
            record.tcp.ts_ecr = peer.ts_recent;
        }
        if peer.sack && flags & flag::SYN == 0 {
            for (to, block) in record.sack.iter_mut().zip(peer.sacks.iter().take(3)) {
                *to = *block;
                record.sack_count += 1;
            }
        }
        record.payload_len = payload_len;
        self.give_back(record);
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

fn endpoint_of(table: &Table) -> Endpoint {
    table.config().targets[0].endpoint
}

fn record(head: &Inject) -> Returned {
    Returned { client: head.client, target: endpoint(TARGET), ..Returned::default() }
}

/// What the injector does with a super-frame.
fn cut(sent: &Sent) -> Vec<(Inject, Vec<u8>)> {
    if sent.payload.is_empty() {
        return vec![(sent.head, Vec::new())];
    }
    let mss = usize::from(sent.head.mss);
    let last = sent.payload.len().div_ceil(mss) - 1;
    let pieces = sent.payload.chunks(mss).enumerate();
    pieces
        .map(|(i, bytes)| {
            let mut head = sent.head;
            head.tcp.seq += (i * mss) as u32;
            head.payload_len = bytes.len() as u32;
            if i < last {
                head.tcp.flags &= !(flag::FIN | flag::PSH);
            }
            (head, bytes.to_vec())
        })
        .collect()
}

/// A real client: writes captured segments.
#[derive(Clone, Debug)]
pub struct Client {
    pub at: Endpoint,
    pub server: Endpoint,
    pub seq: Seq,
    pub ack: Seq,
    pub isn: Seq,
    pub mss: u16,
    pub written: Vec<u8>,
}

impl Client {
    pub fn new(n: u16) -> Self {
        let at = Endpoint::new(endpoint("10.9.0.1:1").addr, 40_000 + n);
        let isn = Seq(5_000_000 + u32::from(n) * 1_000_000);
        Self { at, server: endpoint(SERVER), seq: isn, ack: Seq(0), isn, mss: 1460, written: Vec::new() }
    }

    pub fn starting_at(n: u16, isn: u32) -> Self {
        Self { seq: Seq(isn), isn: Seq(isn), ..Self::new(n) }
    }

    pub fn segment(&self, flags: u16) -> Captured {
        Captured {
            tcp: TcpFields { seq: self.seq, ack: self.ack, flags, window: 500, ..TcpFields::default() },
            client: self.at,
            server: self.server,
            ..Captured::default()
        }
    }

    pub fn syn(&mut self, world: &mut World) {
        let mut segment = self.segment(flag::SYN);
        segment.tcp.options = opt::MSS | opt::WINDOW_SCALE;
        segment.tcp.mss = self.mss;
        world.capture(&segment, &[]);
        self.seq += 1;
        self.ack = Seq(90_000);
    }

    /// SYN and third packet, as a client next door does it.
    pub fn opens(&mut self, world: &mut World) {
        self.syn(world);
        world.run(100);
        self.acks(world);
    }

    pub fn acks(&mut self, world: &mut World) {
        world.capture(&self.segment(flag::ACK), &[]);
    }

    /// A data segment that the capture sees.
    pub fn sends(&mut self, world: &mut World, bytes: &[u8]) {
        world.capture(&self.segment(flag::ACK | flag::PSH), bytes);
        self.seq += bytes.len() as u32;
        self.written.extend_from_slice(bytes);
    }

    /// One that the capture misses.
    pub fn sends_unseen(&mut self, bytes: &[u8]) {
        self.seq += bytes.len() as u32;
    }

    /// The online server's answer arrives: the next segment acknowledges it.
    pub fn reads(&mut self, n: u32) {
        self.ack += n;
    }

    /// One request and its answer, online; the target's answer has the same length.
    pub fn asks(&mut self, world: &mut World, text: &str, answer: u32) {
        self.sends(world, format!("{text} {answer}\n").as_bytes());
        world.run(400);
        self.reads(answer);
    }

    pub fn closes(&mut self, world: &mut World) {
        world.capture(&self.segment(flag::ACK | flag::FIN), &[]);
        self.seq += 1;
    }

    pub fn resets(&mut self, world: &mut World) {
        world.capture(&self.segment(flag::RST), &[]);
    }

    /// The server's FIN and the last acknowledgement.
    pub fn leaves(&mut self, world: &mut World) {
        self.ack += 1;
        self.acks(world);
    }
}
