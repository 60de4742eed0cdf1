//! One world: the table under virtual time between the captured flows and the target. The order of events is the seed's
//! alone: events of one moment in the order in which they came to be, then timers, then the pump.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use flow::emit::{MAX_HEADERS, emit};
use flow::hash::{endpoint_hash, flow_hash, shard_of};
use flow::record::{flag, kind, opt};
use flow::{Captured, Drop, Endpoint, Inject, Range, Returned, Seq, TcpFields};
use session::endpoints::REST_S;
use session::{BURST, BURST_BYTES, Clients, Config, Count, Pace, Seeds, Sink, Table, TargetConfig};

use crate::capture::{self, Had, Shot};
use crate::dice::Dice;
use crate::figures::{Figure, Figures};
use crate::flows::{self, Flow};
use crate::host::Host;
use crate::kernel::Kernel;
use crate::link::Link;
use crate::online::{self, Mark};
use crate::oracle::{Balance, Broken, Oracle};
use crate::scenario::{Profile, Scenario};
use crate::target::{Back, Packet, Target};

/// A broken rule: what, when, and the world that shows it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Its profile.
    pub profile: Profile,
    /// Since the start of the world, µs.
    pub at_us: u64,
    /// The rule, as a sentence.
    pub what: String,
}

/// How a world is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Prints every packet.
    pub trace: bool,
    /// Looks at the whole table after every step, not only now and then.
    pub every_step: bool,
}

/// Runs a world to its end.
pub fn run(scenario: &Scenario, options: Options) -> Result<Figures, Failure> {
    let failure = |at_us, what| Failure { seed: scenario.seed, profile: scenario.profile, at_us, what };
    let mut world = World::new(scenario, options).map_err(|what| failure(0, what))?;
    match world.live().and_then(|()| world.settle()) {
        Ok(()) => Ok(world.oracle.figures),
        Err(what) => Err(failure(world.now_us - scenario.start_us, what)),
    }
}

enum Event {
    /// A packet reaches the target.
    ToTarget(Packet),
    /// A header reaches the table.
    ToUs {
        track: usize,
        record: Returned,
    },
    /// A connection of the target wants attention.
    Conn(usize),
    /// The target's host forgets everything.
    Restart,
    Successor,
    Drain,
    Abandon,
}

struct Entry {
    at_us: u64,
    serial: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.serial).cmp(&(other.at_us, other.serial))
    }
}

struct World<'a> {
    scenario: &'a Scenario,
    options: Options,
    now_us: u64,
    config: Config,
    table: Table,
    flows: Vec<Flow>,
    shots: Vec<Shot>,
    next_shot: usize,
    events: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    to_target: Link,
    to_us: Link,
    target: Host,
    oracle: Oracle,
    /// Counted by tables that were replaced.
    past: Figures,
    back: Vec<Back>,
    sent: Vec<(Inject, Vec<u8>)>,
    steps: u64,
    narrow: Option<(u64, u16)>,
    ip_id: u16,
}

/// Steps after which a world that does not end is called live-locked.
const MOST_STEPS: u64 = 20_000_000;
/// The whole table is looked at after so many steps.
const LOOK: u64 = 4096;
/// Pumps in a row that each say that more waits.
const MOST_PUMPS: u32 = 100_000;
/// A successor learns so little at a time, and so slowly, that much happens before it knows everything.
const WALK_STEPS: u32 = 2;
const WALK_US: u64 = 700;

fn config(scenario: &Scenario) -> Config {
    let mut dice = Dice::new(scenario.seed, 31);
    let host = |port: u16| match scenario.v6 {
        true => format!("[fd00::3:2]:{port}"),
        false => format!("10.0.3.2:{port}"),
    };
    let endpoint = |port| host(port).parse::<std::net::SocketAddr>().expect("an address and a port").into();
    let range = |text: &str| Some(text.parse::<Range>().expect("a range"));
    let mtu = scenario.target.mtu.clamp(1280, 9000).max(if scenario.target.mtu < 1280 { 1500 } else { 0 });
    Config {
        shards: scenario.shards,
        shard: dice.below(u64::from(scenario.shards)) as u16,
        seeds: Seeds {
            shard: dice.next(),
            sample: dice.next(),
            endpoint: dice.next(),
            isn: dice.next(),
            table: dice.next(),
        },
        clients: match scenario.keep {
            true => Clients::Keep,
            false => Clients::Pool { v4: range("198.18.0.0/24"), v6: range("2001:2::/112") },
        },
        targets: [8080, 2525].map(|port| TargetConfig { endpoint: endpoint(port), mtu }).to_vec(),
        mappings: vec![0, 1],
        wait: scenario.wait,
        rtt: scenario.rtt,
        join: scenario.join,
        limits: scenario.limits,
        times: scenario.times,
        claim: scenario.keep,
        file_us: None,
        // As from a file, in one world of four; beside the dice, so that the worlds of known seeds stay what they were.
        repeatable: scenario.seed.is_multiple_of(4),
        on_gap: scenario.on_gap,
        pace: Pace::default(),
    }
}

/// Zeroed memory, aligned, never freed: as a region is. A process runs a bounded number of worlds.
fn arena(bytes: u64) -> &'static mut [u8] {
    let words: &'static mut [u64] = vec![0u64; (bytes as usize).div_ceil(8)].leak();
    zerocopy::IntoBytes::as_mut_bytes(words)
}

fn plan(scenario: &Scenario, config: &Config) -> Vec<Flow> {
    let start = scenario.start_us;
    let mut flows = flows::plan(scenario, config.seeds.sample, |client, born_us| {
        if !scenario.keep {
            return true;
        }
        let ours = shard_of(endpoint_hash(config.seeds.shard, client), config.shards) == config.shard;
        if !ours || !scenario.wraps || born_us % 8 != 0 {
            return ours;
        }
        // The table's own first number, just below the wrap (RFC 6528's clock and hash).
        let clock = ((start + born_us) / 4) as u32;
        let hash = flow_hash(config.seeds.isn, client, &config.targets[0].endpoint) as u32;
        clock.wrapping_add(hash) > 0u32.wrapping_sub(20_000)
    });
    if scenario.reuse_percent > 0 {
        reuse(scenario, &mut flows);
    }
    flows
}

/// Some flows take the four-tuple of an earlier one; three at most have the same.
fn reuse(scenario: &Scenario, flows: &mut [Flow]) {
    let mut dice = Dice::new(scenario.seed, 41);
    for i in 1..flows.len() {
        let other = dice.below(i as u64) as usize;
        if !dice.percent(scenario.reuse_percent) || flows[i].mapping != flows[other].mapping {
            continue;
        }
        let former = &flows[other];
        let same = |flow: &&Flow| flow.client == former.client;
        if flows[..i].iter().filter(same).count() >= 3 {
            continue;
        }
        let isn = former.isn.wrapping_add(former.stream.len() as u32 + 1000 + dice.below(1 << 24) as u32);
        let (client, copies) = (former.client, former.copies);
        (flows[i].client, flows[i].copies, flows[i].isn) = (client, copies, isn);
    }
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, options: Options) -> Result<Self, Broken> {
        let config = config(scenario);
        let mut flows = plan(scenario, &config);
        let (mut shots, mut had) = (Vec::new(), Vec::new());
        let mut dice = Dice::new(scenario.seed, 51);
        for i in 0..flows.len() {
            let mut seen = online::play(&mut flows[i], &scenario.online, &mut dice);
            after_the_former(&flows, i, &shots, &mut seen, &mut dice);
            had.push(capture::capture(
                &flows[i],
                &seen,
                &scenario.online,
                scenario.times.hole_us,
                &mut dice,
                &mut shots,
            ));
        }
        shots.sort_by_key(|shot| shot.seen.at_us);
        mark_confused(&flows, &mut had);
        let start_us = scenario.start_us;
        let table = Table::new(
            arena(Table::arena_bytes(config.limits.sessions, config.limits.chunks)),
            config.clone(),
        );
        let rests_us = if scenario.keep { 0 } else { u64::from(REST_S - 1) * 1_000_000 };
        let oracle = Oracle::new(&flows, had, scenario, rests_us, config.targets[0].mtu);
        let addresses = config.targets.iter().map(|target| target.endpoint).collect();
        let target = match scenario.kernel {
            false => Host::Model(Box::new(Target::new(scenario, addresses))),
            true => {
                let kernel = Kernel::new(scenario, addresses);
                Host::Kernel(Box::new(kernel.map_err(|error| format!("a host in a namespace: {error}"))?))
            }
        };
        let mut world = World {
            scenario,
            options,
            now_us: start_us,
            table,
            flows,
            shots,
            next_shot: 0,
            events: BinaryHeap::new(),
            serial: 0,
            to_target: Link::new(&scenario.to_target, start_us, Dice::new(scenario.seed, 61)),
            to_us: Link::new(&scenario.to_us, start_us, Dice::new(scenario.seed, 62)),
            target,
            oracle,
            past: Figures::default(),
            back: Vec::new(),
            sent: Vec::new(),
            steps: 0,
            narrow: scenario.target.shrink.map(|(at, mtu)| (start_us + at, mtu)),
            ip_id: 0,
            config,
        };
        world.oracle.figures.add(Figure::Seeds, 1);
        if let Some((at, _)) = scenario.target.restart {
            world.later(start_us + at, Event::Restart);
        }
        if let Some(at) = scenario.successor_us {
            world.later(start_us + at, Event::Successor);
        }
        if let Some((at, end)) = scenario.drain {
            world.later(start_us + at, Event::Drain);
            world.later(start_us + at + end, Event::Abandon);
        }
        Ok(world)
    }

    fn later(&mut self, at_us: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse(Entry { at_us, serial: self.serial, event }));
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.options.trace {
            let us = self.now_us - self.scenario.start_us;
            println!("{:>6}.{:06} {}", us / 1_000_000, us % 1_000_000, text());
        }
    }

    /// From the first packet to the last session.
    fn live(&mut self) -> Result<(), Broken> {
        let last = self.shots.last().map_or(0, |shot| shot.seen.at_us);
        let limit = self.scenario.start_us + last + self.scenario.most_us;
        loop {
            let shot = self.shots.get(self.next_shot).map(|shot| self.scenario.start_us + shot.seen.at_us);
            if shot.is_none() && self.table.tally().open == 0 {
                return Ok(());
            }
            let event = self.events.peek().map(|Reverse(entry)| entry.at_us);
            let timer = self.table.next_deadline_us();
            let walk = self.table.is_walking().then_some(self.now_us + WALK_US);
            let Some(next) = [shot, event, timer, walk].into_iter().flatten().min() else {
                return Err(format!("{} sessions wait for nothing", self.table.tally().open));
            };
            let then = self.target.wait(next).map_err(|error| format!("waiting for the kernel: {error}"))?;
            self.now_us = self.now_us.max(then);
            if self.now_us > limit {
                return Err(self.endless());
            }
            self.step()?;
        }
    }

    /// What is left when the world should be over.
    fn endless(&self) -> Broken {
        format!(
            "{} sessions have not ended {} s after the last captured packet ({} of {} packets were captured)",
            self.table.tally().open,
            self.scenario.most_us / 1_000_000,
            self.next_shot,
            self.shots.len(),
        )
    }

    fn step(&mut self) -> Result<(), Broken> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err("so many steps that nothing can come of it".to_owned());
        }
        while let Some(&shot) = self.shots.get(self.next_shot)
            && self.scenario.start_us + shot.seen.at_us <= self.now_us
        {
            self.next_shot += 1;
            self.captured(&shot);
        }
        while self.events.peek().is_some_and(|Reverse(entry)| entry.at_us <= self.now_us) {
            let Some(Reverse(entry)) = self.events.pop() else { break };
            self.happen(entry.event)?;
        }
        self.target.hear(self.now_us, &self.flows, &mut self.oracle, &mut self.back)?;
        self.sent_back(None);
        self.table.walk(WALK_STEPS);
        self.table.tick(self.now_us);
        self.pump()?;
        self.look(self.options.every_step || self.steps.is_multiple_of(LOOK))
    }

    fn look(&self, closely: bool) -> Result<(), Broken> {
        let tally = self.table.tally();
        let limits = &self.config.limits;
        if !tally.balanced() || closely {
            self.table.check()?;
        }
        if tally.open > u64::from(limits.sessions) || tally.in_flight > u64::from(limits.chunks) * 1024 {
            return Err(format!("{} sessions open, {} bytes in flight", tally.open, tally.in_flight));
        }
        Ok(())
    }

    fn captured(&mut self, shot: &Shot) {
        let flow = &self.flows[shot.flow as usize];
        let seen = &shot.seen;
        let flags = match seen.mark {
            Mark::Syn => flag::SYN,
            Mark::None if seen.push => flag::ACK | flag::PSH,
            Mark::None => flag::ACK,
            Mark::Fin => flag::ACK | flag::FIN,
            Mark::Reset => flag::ACK | flag::RST,
        };
        let after_syn = u32::from(seen.mark != Mark::Syn);
        let mut tcp = TcpFields {
            seq: Seq(flow.isn) + after_syn + seen.offset,
            ack: if after_syn == 1 { Seq(flow.server_isn) + 1 + seen.ack } else { Seq(0) },
            flags,
            window: 502,
            ..TcpFields::default()
        };
        if seen.mark == Mark::Syn {
            tcp.options = opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED;
            (tcp.mss, tcp.window_scale) = (flow.mss as u16, 7);
        }
        let len = seen.len - shot.cut;
        let segment = Captured {
            time_ns: self.now_us * 1000,
            tcp,
            payload_len: len,
            cut_len: shot.cut,
            client: flow.client,
            server: flow.server,
            mapping: flow.mapping,
            ..Captured::default()
        };
        let payload = &flow.stream[seen.offset.min(flow.stream.len() as u32) as usize..][..len as usize];
        self.oracle.captured(self.now_us, flow, seen.offset, len);
        self.oracle.figures.add(Figure::Captured, 1);
        self.trace(|| {
            let of = format!("captured flow {} {} at {}+{len}", flow.id, flow.client, seen.offset);
            format!("{of} ack {} {:?}{}", seen.ack, seen.mark, if shot.cut > 0 { " cut" } else { "" })
        });
        let (percent_ppm, copies_milli) = (self.scenario.percent_ppm, self.scenario.copies_milli);
        if !self.table.admits(self.now_us, &segment, payload.len(), percent_ppm, copies_milli) {
            self.table.settle();
        }
        self.table.captured(self.now_us, &segment, payload, percent_ppm, copies_milli);
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::ToTarget(packet) => {
                let conn =
                    self.target.arrive(self.now_us, packet, &self.flows, &mut self.oracle, &mut self.back)?;
                self.sent_back(conn);
            }
            Event::Conn(conn) => {
                if self.target.due_us(conn) <= self.now_us {
                    self.target.due(self.now_us, conn, &self.flows, &mut self.oracle, &mut self.back)?;
                    self.sent_back(Some(conn));
                }
            }
            Event::ToUs { track, record } => {
                self.trace(|| format!("   <- {} {}", record.client, header(&record.tcp, record.payload_len)));
                if record.kind == kind::TCP {
                    self.oracle.returned(self.now_us, track, &record);
                }
                self.table.returned(self.now_us, &record);
            }
            Event::Restart => {
                self.trace(|| "the target restarts".to_owned());
                self.target.forget(&mut self.oracle);
            }
            Event::Successor => self.succeed(),
            Event::Drain => self.table.drain(self.now_us),
            Event::Abandon => {
                while !self.table.abandon(self.now_us) {
                    self.table.walk(1);
                    self.table.settle();
                }
            }
        }
        Ok(())
    }

    /// What the target has sent goes onto the link back; its connection's next deadline is noted.
    fn sent_back(&mut self, conn: Option<usize>) {
        let back = std::mem::take(&mut self.back);
        for (track, record) in &back {
            let arrivals = self.to_us.carry(self.now_us, record.payload_len as usize + 60);
            self.oracle.figures.add(Figure::ToUs, 1);
            let lost = arrivals.iter().flatten().all(|arrival| arrival.wrong);
            self.trace(|| {
                let text = header(&record.tcp, record.payload_len);
                format!("  < {} {text}{}", record.client, if lost { " LOST" } else { "" })
            });
            for arrival in arrivals.into_iter().flatten().filter(|arrival| !arrival.wrong) {
                self.later(arrival.at_us, Event::ToUs { track: *track, record: *record });
            }
        }
        self.back = back;
        self.back.clear();
        if let Some(conn) = conn {
            let due = self.target.due_us(conn);
            if due != u64::MAX {
                self.later(due, Event::Conn(conn));
            }
        }
    }

    /// The worker is gone; another takes over its arena.
    fn succeed(&mut self) {
        self.trace(|| "a successor takes the table over".to_owned());
        // What was captured at this instant is not captured again here, so it must have happened.
        self.table.settle();
        let image = self.table.image();
        let place = arena(image.len() as u64);
        place[..image.len()].copy_from_slice(&image);
        self.remember();
        self.table = Table::successor(place, self.config.clone(), false, |_| false);
    }

    fn pump(&mut self) -> Result<(), Broken> {
        for _ in 0..MOST_PUMPS {
            let mut sink = Collect { sent: std::mem::take(&mut self.sent), wrong: None };
            let more = self.table.pump(self.now_us, &mut sink);
            let Collect { sent, wrong } = sink;
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
            let bytes: usize = sent.iter().map(|(_, payload)| payload.len()).sum();
            if sent.len() > BURST || bytes > BURST_BYTES {
                return Err(format!("{} records and {bytes} bytes in one pump", sent.len()));
            }
            for (head, payload) in &sent {
                self.emitted(head, payload)?;
            }
            self.sent = sent;
            self.sent.clear();
            if !more {
                self.table.settle();
                return Ok(());
            }
        }
        Err("the pump never rests".to_owned())
    }

    fn emitted(&mut self, head: &Inject, payload: &[u8]) -> Result<(), Broken> {
        self.trace(|| format!("-> {} {}", head.client, header(&head.tcp, head.payload_len)));
        self.is_ours(head)?;
        let stale = head.tcp.has(flag::RST) && payload.is_empty();
        let track = match self.oracle.track(&head.client, head.target) {
            // The answer to what an older connection has left at the target.
            Some(track) if stale => track,
            _ => self.oracle.emitted(self.now_us, &self.flows, head, payload)?,
        };
        let mut done = 0;
        loop {
            let n = (payload.len() - done).min(usize::from(head.mss));
            let last = done + n == payload.len();
            let mut tcp = head.tcp;
            tcp.seq += done as u32;
            if !last {
                tcp.flags &= !(flag::FIN | flag::PSH);
            }
            self.packet(track, head, &tcp, &payload[done..done + n]);
            done += n;
            if last {
                return Ok(());
            }
        }
    }

    /// Nothing is sent under an endpoint that is not the table's own.
    fn is_ours(&self, head: &Inject) -> Result<(), Broken> {
        let Inject { client, target, .. } = head;
        if usize::from(*target) >= self.config.targets.len() {
            return Err(format!("a record for target {target}"));
        }
        let ours = match self.config.clients {
            Clients::Keep => self.flows.iter().any(|flow| flow.client.addr == client.addr),
            Clients::Pool { v4, v6 } => {
                [v4, v6].into_iter().flatten().any(|range| range.contains(client.addr)) && client.port >= 1024
            }
        };
        let shard = shard_of(endpoint_hash(self.config.seeds.shard, client), self.config.shards);
        match ours && shard == self.config.shard {
            true => Ok(()),
            false => Err(format!("a record from {client}, which is not this table's")),
        }
    }

    /// One packet onto the link to the target.
    fn packet(&mut self, track: usize, head: &Inject, tcp: &TcpFields, payload: &[u8]) {
        let mut headers = [0; MAX_HEADERS];
        let target = self.config.targets[usize::from(head.target)].endpoint;
        self.ip_id = self.ip_id.wrapping_add(1);
        let len = emit(&mut headers, head.client, target, tcp, &[payload], self.ip_id);
        let bytes = len + payload.len();
        self.oracle.figures.add(Figure::ToTarget, 1);
        if let Some((from, mtu)) = self.narrow
            && self.now_us >= from
            && bytes > usize::from(mtu)
        {
            self.too_big(track, head, tcp, target, mtu);
            return;
        }
        let arrivals = self.to_target.carry(self.now_us, bytes);
        if arrivals[0].is_none() {
            self.trace(|| "   LOST".to_owned());
        }
        for arrival in arrivals.into_iter().flatten() {
            let mut packet = Packet {
                track,
                client: head.client,
                target: head.target,
                tcp: *tcp,
                wrong: arrival.wrong,
                bytes: [&headers[..len], payload].concat(),
            };
            if arrival.wrong {
                self.to_target.spoil(&mut packet.bytes);
            }
            let event = Event::ToTarget(packet);
            self.later(arrival.at_us, event);
        }
    }

    /// A router cannot pass a packet on, and says so (RFC 1191, RFC 8201).
    fn too_big(&mut self, track: usize, head: &Inject, tcp: &TcpFields, target: Endpoint, mtu: u16) {
        let v4 = target.addr.is_v4();
        let record = Returned {
            kind: kind::ICMP,
            tcp: TcpFields { seq: tcp.seq, ..TcpFields::default() },
            client: head.client,
            target,
            icmp_type: if v4 { 3 } else { 2 },
            icmp_code: if v4 { 4 } else { 0 },
            mtu: u32::from(mtu),
            ..Returned::default()
        };
        for arrival in self.to_us.carry(self.now_us, 100).into_iter().flatten() {
            self.later(arrival.at_us, Event::ToUs { track, record });
        }
    }

    /// Adds the table's counters to those of its predecessors.
    fn remember(&mut self) {
        let tally = self.table.tally();
        for (sum, n) in self.past.counts.iter_mut().zip(tally.counts()) {
            *sum += n;
        }
        for (sum, reason) in self.past.dropped.iter_mut().zip(Drop::ALL) {
            *sum += tally.dropped(*reason).payload_bytes;
        }
    }

    /// The books at the end.
    fn settle(&mut self) -> Result<(), Broken> {
        self.look(true)?;
        let in_flight = self.table.tally().in_flight;
        if in_flight != 0 {
            return Err(format!("{in_flight} bytes in flight without a session"));
        }
        self.remember();
        let balance = self.oracle.close(&self.flows);
        let figures = &mut self.oracle.figures;
        (figures.counts, figures.dropped) = (self.past.counts, self.past.dropped);
        figures.add(Figure::Sessions, self.past.counts[Count::SessionsStarted.index()]);
        figures.add(Figure::Missed, self.past.counts[Count::Missed.index()]);
        figures.add(Figure::Lost, self.to_target.lost + self.to_us.lost);
        figures.add(Figure::Virtual, (self.now_us - self.scenario.start_us) / 1_000_000);
        let judged = judge(&balance, figures, self.scenario, &self.oracle.longest);
        figures.add(Figure::Early, balance.early.len() as u64);
        judged.map_err(|why| format!("{why}; dropped {}", reasons(&self.past.dropped)))
    }
}

/// What was dropped, by reason.
fn reasons(dropped: &[u64; Drop::COUNT]) -> String {
    let named = Drop::ALL.iter().zip(dropped).filter(|(_, bytes)| **bytes > 0);
    named.map(|(reason, bytes)| format!("{} {bytes}", reason.name())).collect::<Vec<_>>().join(", ")
}

/// When neither a flow's end nor the SYN of the next one on its four-tuple was captured, what comes of the next one looks
/// like the first one's rest: behind a hole, with whatever `--on-gap` does about it.
fn mark_confused(flows: &[Flow], had: &mut [Had]) {
    for (i, flow) in flows.iter().enumerate() {
        let same = |next: &&Flow| next.client == flow.client && next.server == flow.server;
        if !had[i].end && flows[i + 1..].iter().find(same).is_some_and(|next| !had[next.id as usize].syn) {
            had[i].whole = false;
        }
    }
}

/// A flow on a four-tuple that another one had begins after that one is over, as the kernel of its client sees to.
fn after_the_former(flows: &[Flow], i: usize, shots: &[Shot], seen: &mut [online::Seen], dice: &mut Dice) {
    let same = |shot: &&Shot| {
        let other = &flows[shot.flow as usize];
        other.client == flows[i].client && other.server == flows[i].server
    };
    let Some(last) = shots.iter().filter(same).map(|shot| shot.seen.at_us).max() else { return };
    let begins = last + 1000 + dice.size(5_000_000);
    let Some(first) = seen.first().map(|seen| seen.at_us) else { return };
    let shift = begins.saturating_sub(first);
    seen.iter_mut().for_each(|seen| seen.at_us += shift);
}

/// Whether what is missing, doubled or early at the end is counted.
fn judge(
    balance: &Balance,
    figures: &mut Figures,
    scenario: &Scenario,
    longest: &(u64, String),
) -> Result<(), Broken> {
    let scarce = scenario.drain.is_some()
        || [Drop::Memory, Drop::TableFull, Drop::EndpointsExhausted]
            .iter()
            .any(|reason| figures.dropped[reason.index()] > 0)
        // One refused for want of room, or one that gave way before its client had said more than its SYN.
        || [Count::RefusedTableFull, Count::FailedHalfOpen].iter().any(|count| figures.counts[count.index()] > 0);
    let dropped = |reasons: &[Drop]| -> u64 { reasons.iter().map(|r| figures.dropped[r.index()]).sum() };
    let count = |count: Count| figures.counts[count.index()];
    let all = figures.dropped.iter().sum::<u64>() - dropped(&[Drop::Duplicate]);
    let missed = count(Count::Missed);
    // After a limit was reached a session takes nothing more up to the byte that broke it, and a flow that found no place
    // is a flow without a beginning: what was dropped first entails what is dropped under other names. What comes later
    // than the bytes behind it, which were joined at or gone on with, counts as a duplicate.
    let late = count(Count::SessionsJoined) + dropped(&[Drop::JoinedMidturn, Drop::Superseded]) + missed > 0;
    let all = if scarce || late { all + dropped(&[Drop::Duplicate]) } else { all };
    if balance.missing > all + balance.untouched + missed {
        return Err(format!(
            "{} bytes were not read, but {all} dropped, {missed} missed and {} left unread",
            balance.missing, balance.untouched
        ));
    }
    let general = balance.untouched
        + dropped(&[
            Drop::Memory,
            Drop::TableFull,
            Drop::EndpointsExhausted,
            Drop::TimedOut,
            Drop::Refused,
            Drop::Superseded,
            Drop::Stopped,
            Drop::ClientReset,
        ]);
    let general = if scarce { all + balance.untouched } else { general };
    if balance.unexplained > general {
        return Err(format!(
            "{} bytes of flows without a fault were not read (flow, bytes: {:?}), {general} dropped for others",
            balance.unexplained,
            &balance.whose[..balance.whose.len().min(5)]
        ));
    }
    let timed_out = dropped(&[Drop::TimedOut]);
    if timed_out > 0 && !scenario.may_time_out() {
        return Err(format!("{timed_out} bytes timed out at a target that was always there"));
    }
    if balance.excess > 0 && count(Count::Reconnects) == 0 && scenario.reuse_percent == 0 {
        return Err(format!("{} bytes were read twice", balance.excess));
    }
    let counted = count(Count::TurnsGuessed) + count(Count::TurnsUnanswered) + count(Count::TurnsOverlapped);
    let early = balance.early.len() as u64;
    if early > counted && count(Count::Duplex) == 0 {
        if scenario.target.answers != crate::scenario::Answers::Equal {
            figures.add(Figure::Coincidences, early - counted);
        } else {
            return Err(format!(
                "{early} requests left before their answer ({counted} counted), in flows {:?}",
                &balance.early[..balance.early.len().min(5)]
            ));
        }
    }
    if longest.0 > LONGEST_WAIT_US {
        return Err(format!("a turn waited for {} ms: {}", longest.0 / 1000, longest.1));
    }
    Ok(())
}

/// Row 7 waits for 60 s; with it a retransmission, a stalled window and a pause before a reconnect.
const LONGEST_WAIT_US: u64 = 150_000_000;

/// What a pump emits.
struct Collect {
    sent: Vec<(Inject, Vec<u8>)>,
    wrong: Option<String>,
}

impl Sink for Collect {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        let mut payload = Vec::with_capacity(head.payload_len as usize);
        parts.for_each(|part| payload.extend_from_slice(part));
        if payload.len() != head.payload_len as usize || (head.mss == 0 && !payload.is_empty()) {
            self.wrong = Some(format!("{} bytes under a head that says {head:?}", payload.len()));
        }
        self.sent.push((*head, payload));
    }
}

/// A header for a trace.
fn header(tcp: &TcpFields, len: u32) -> String {
    let names = [(flag::SYN, "S"), (flag::FIN, "F"), (flag::RST, "R"), (flag::PSH, "P"), (flag::ACK, ".")];
    let flags: String = names.iter().filter(|(bit, _)| tcp.has(*bit)).map(|(_, name)| *name).collect();
    format!("[{flags}] seq {} len {len} ack {} win {}", tcp.seq.0, tcp.ack.0, tcp.window)
}
