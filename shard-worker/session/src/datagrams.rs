//! Datagrams: each captured one is sent on as it comes, once for each copy of its flow. No turns, no acknowledgements, nothing
//! held: a flow is nothing but the replayed endpoint that its client has been given, for as long as it speaks.
//!
//! A flow is what goes from one client endpoint to one service; each copy of it is an entry of its own, with an endpoint of its
//! own. The endpoint follows the hash rule, is free in this table (TCP has endpoints of its own: another protocol, another
//! space of ports), and is the first such one of a walk that the flow's own hash begins: who comes back after an
//! expiry comes back as the same client, most times.
//!
//! **What survives.** Entries lie in the arena; index and order of age are private memory, made anew from them. No undo log
//! is needed, because an entry that stands although its transaction was undone is what the same records make again: a flow
//! is found where it was begun, with the same endpoint. An entry is written first and sealed then, so a torn one is none. How many
//! were opened is in the arena too, beside the entries' own numbers, so that both agree after any death. How far a
//! datagram's copies are sent is the worker's to remember with its transaction ([`Datagrams::copies`]).
//!
//! **Bounded.** [`FLOWS`] entries. When all are taken the one that was silent longest gives way, if that is at least
//! [`YIELDS_US`]; else the copy is dropped as `table_full`.

use std::sync::atomic::{Ordering, compiler_fence};

use flow::hash::{endpoint_hash, flow_hash, shard_of};
use flow::record::{inject_bit, kind};
use flow::{Addr, Captured, Drop, Endpoint, Inject, Range, Returned, named_enum, sample};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::config::{Clients, Config};
use crate::index::Index;
use crate::specimen::Part;
use crate::table::Sink;

named_enum! {
    /// What is counted, in the order of the counters that a shard publishes.
    pub enum DatagramCount {
        /// Captured datagrams taken from the ring.
        Taken => "datagrams_taken",
        /// Their payload bytes.
        TakenBytes => "datagram_bytes_taken",
        /// Datagrams of flows that are sampled out.
        SampledOut => "datagrams_sampled_out",
        /// Ledger: copies that were wanted.
        Wanted => "datagrams_wanted",
        /// Their payload bytes.
        WantedBytes => "datagram_bytes_wanted",
        /// Ledger: copies handed to the injector.
        Sent => "datagrams_sent",
        /// Their payload bytes.
        SentBytes => "datagram_bytes_sent",
        /// Answers of targets that came back.
        Replies => "datagram_replies",
        /// Their payload bytes.
        ReplyBytes => "datagram_reply_bytes",
        /// Replies that were the first one after a datagram: those whose time is taken.
        FirstReplies => "datagram_first_replies",
        /// Microseconds from that datagram to the reply, in all.
        FirstReplyUs => "datagram_first_reply_us",
        /// ICMP errors about datagrams: port unreachable, for one.
        Unreachable => "datagram_icmp_errors",
        /// Returned headers that belong to no flow, any more.
        Strays => "datagram_strays",
        /// Flows that made room for others before their time was over.
        Yielded => "datagram_flows_yielded",
    }
}

/// Entries of one shard. A name server's clients come from a new port each time: with all of them taken, 32,768 flows a second
/// still get one.
pub const FLOWS: u32 = 32_768;
/// Silence after which a flow is forgotten, µs.
pub const SILENCE_US: u64 = 60_000_000;
/// Silence after which it gives way when room is needed, µs.
pub const YIELDS_US: u64 = 1_000_000;
/// Entries looked at in one call of [`Datagrams::tick`] at most.
const EXPIRES: usize = 256;
/// Endpoints tried for one entry, for each shard.
const TRIES: u64 = 64;
/// A claim is repeated after this, µs: intercept forgets those that are silent.
const CLAIM_AGAIN_US: u64 = 10_000_000;
/// Names the layout; changes with it.
const FORMAT: u64 = 0x7477_696e_7564_0002;
const NONE: u32 = u32::MAX;
/// Keeps the hashes of the two indices apart.
const REPLAYED: u64 = 0x6461_7461_6772_616d;

/// One copy of one flow; 104 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    /// Over `key`, `replayed` and `number`; 0 is free.
    seal: u64,
    /// Which of all entries ever opened, from 1.
    number: u64,
    /// When it spoke last, CLOCK_MONOTONIC µs.
    last_us: u64,
    /// When it spoke and was not answered since; 0 when it was.
    asked_us: u64,
    /// When it was claimed last.
    claimed_us: u64,
    client: Endpoint,
    server: Endpoint,
    replayed: Endpoint,
    mapping: u16,
    copy: u16,
    /// Copies of its flow.
    copies: u16,
    /// Which loop of a file it is of: each has clients of its own.
    lap: u8,
    reserved: [u8; 3],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u64,
    /// Entries ever opened.
    opened: u64,
}

/// The flows of one shard.
pub struct Datagrams {
    config: Config,
    udp: Vec<bool>,
    header: &'static mut Header,
    entries: &'static mut [Entry],
    by_flow: Index,
    by_replayed: Index,
    age: Age,
    free: Vec<u32>,
    draining: bool,
    counts: [u64; DatagramCount::COUNT],
    dropped: [(u64, u64); Drop::COUNT],
}

/// What the control words say about a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Flows that are not known are not begun.
    pub paused: bool,
    /// Share of the flows.
    pub percent_ppm: u32,
    /// Copies of each.
    pub copies_milli: u32,
    /// Flows that are not known are begun when their draw is below.
    pub admitted_ppm: u32,
    /// Flows that are known go on when their draw is below.
    pub kept_ppm: u32,
}

impl Datagrams {
    /// Bytes of arena that the entries take.
    pub const fn arena_bytes() -> u64 {
        (size_of::<Header>() + FLOWS as usize * size_of::<Entry>()) as u64
    }

    /// Over the arena in whatever state it was left. `udp` says of each mapping whether it is one of datagrams.
    ///
    /// Panics when the arena is smaller than [`Datagrams::arena_bytes`] or not aligned to eight: the caller made it.
    pub fn successor(arena: &'static mut [u8], config: Config, udp: Vec<bool>) -> Self {
        let (header, rest) = Header::mut_from_prefix(arena).expect("the arena is aligned");
        let (entries, _) =
            <[Entry]>::mut_from_prefix_with_elems(rest, FLOWS as usize).expect("the arena is large enough");
        if header.magic != FORMAT {
            entries.iter_mut().for_each(|entry| entry.seal = 0);
            (header.magic, header.opened) = (FORMAT, 0);
        }
        let mut table = Self {
            config,
            udp,
            header,
            entries,
            by_flow: Index::new(FLOWS),
            by_replayed: Index::new(FLOWS),
            age: Age::new(),
            free: Vec::with_capacity(FLOWS as usize),
            draining: false,
            counts: [0; DatagramCount::COUNT],
            dropped: [(0, 0); Drop::COUNT],
        };
        let mut used: Vec<u32> = Vec::new();
        for id in (0..FLOWS).rev() {
            let entry = &mut table.entries[id as usize];
            if entry.seal != 0 && entry.seal == entry.sealed() {
                used.push(id);
            } else {
                entry.seal = 0;
                table.free.push(id);
            }
        }
        used.sort_by_key(|&id| table.entries[id as usize].last_us);
        for id in used {
            let number = table.entries[id as usize].number;
            table.header.opened = table.header.opened.max(number);
            table.enlist(id);
        }
        table
    }

    /// Cuts the flow that a returned record is about out of an arena, so that another table can be made of it; what begins the
    /// arena, and no flow, where there is none.
    pub fn specimen(arena: &[u8], record: &Returned) -> Vec<Part> {
        let Some((header, entries)) = arena.split_at_checked(size_of::<Header>()) else { return vec![] };
        let mut parts = vec![Part { at: 0, bytes: header.to_vec() }];
        for (i, bytes) in entries.chunks_exact(size_of::<Entry>()).take(FLOWS as usize).enumerate() {
            let Ok(entry) = Entry::read_from_bytes(bytes) else { continue };
            if entry.seal != 0 && entry.replayed == record.client {
                let at = (header.len() + i * size_of::<Entry>()) as u64;
                parts.push(Part { at, bytes: bytes.to_vec() });
            }
        }
        parts
    }

    /// Whether a captured record is a datagram: its mapping says so.
    pub fn concerns(&self, mapping: u16) -> bool {
        self.udp.get(usize::from(mapping)).copied().unwrap_or(false)
    }

    /// Whether a returned record is about one.
    pub const fn is_answer(record: &Returned) -> bool {
        matches!(record.kind, kind::UDP | kind::UDP_ICMP)
    }

    /// Takes a captured datagram: how often it is to be sent. Called again for the same one when its copies did not fit
    /// into one transaction, with `resumed`; it is counted once.
    pub fn copies(&mut self, segment: &Captured, order: &Order, resumed: bool) -> u32 {
        let known = self.find(segment, 0).map(|id| u32::from(self.entries[id as usize].copies));
        let sampled = || {
            let seed = self.config.seeds.sample;
            sample::copies(seed, &segment.client, &segment.server, 0, order.percent_ppm, order.copies_milli)
        };
        let copies = known.unwrap_or_else(sampled);
        if resumed {
            return copies;
        }
        self.count(DatagramCount::Taken, 1);
        self.count(DatagramCount::TakenBytes, segment.payload_len.into());
        if copies == 0 {
            self.count(DatagramCount::SampledOut, 1);
            return 0;
        }
        let bound = if known.is_some() { order.kept_ppm } else { order.admitted_ppm };
        let is_shed = bound < 1_000_000
            && sample::draw(self.config.seeds.sample, &segment.client, &segment.server, 0) >= bound;
        let reason = match known {
            _ if is_shed => Some(Drop::Shed),
            None if order.paused => Some(Drop::Paused),
            None if self.draining => Some(Drop::Stopped),
            _ => None,
        };
        let Some(reason) = reason else { return copies };
        self.drop_copies(reason, copies, segment.payload_len);
        0
    }

    /// Sends one copy of a captured datagram, or drops it under a reason.
    pub fn send(
        &mut self,
        now_us: u64,
        segment: &Captured,
        payload: &[u8],
        [copy, copies]: [u32; 2],
        out: &mut impl Sink,
    ) {
        let id = match self.find(segment, copy) {
            Some(id) => id,
            None => match self.open(now_us, segment, copy, copies) {
                Ok(id) => id,
                Err(reason) => return self.drop_copies(reason, 1, segment.payload_len),
            },
        };
        let claims = self.config.claim;
        let entry = &mut self.entries[id as usize];
        entry.last_us = now_us;
        if entry.asked_us == 0 {
            entry.asked_us = now_us;
        }
        let mut bits = 0;
        if claims && (entry.claimed_us == 0 || now_us.saturating_sub(entry.claimed_us) > CLAIM_AGAIN_US) {
            entry.claimed_us = now_us;
            bits = inject_bit::CLAIM;
        }
        let target = self.config.mappings[usize::from(segment.mapping)];
        let payload_len = payload.len() as u32;
        let head = Inject { client: entry.replayed, target, payload_len, bits, ..Inject::default() };
        self.age.touch(id);
        out.emit(&head, std::iter::once(payload));
        self.count(DatagramCount::Wanted, 1);
        self.count(DatagramCount::WantedBytes, payload_len.into());
        self.count(DatagramCount::Sent, 1);
        self.count(DatagramCount::SentBytes, payload_len.into());
    }

    /// Counts a datagram that is turned away, with all its copies but those that are `done`.
    pub fn turn_away(&mut self, segment: &Captured, reason: Drop, order: &Order, done: u32) {
        let copies = self.copies(segment, &Order { paused: false, ..*order }, done > 0);
        self.drop_copies(reason, copies.saturating_sub(done), segment.payload_len);
    }

    /// Takes an answer of a target, or an ICMP error.
    pub fn returned(&mut self, now_us: u64, record: &Returned) {
        let hash = self.replayed_hash(&record.client);
        let target_of = |entry: &Entry| {
            let target = self.config.mappings.get(usize::from(entry.mapping))?;
            Some(self.config.targets.get(usize::from(*target))?.endpoint)
        };
        let found = self.by_replayed.find(hash, |id| {
            let entry = &self.entries[id as usize];
            entry.replayed == record.client && target_of(entry) == Some(record.target)
        });
        let Some(id) = found else { return self.count(DatagramCount::Strays, 1) };
        if record.kind == kind::UDP_ICMP {
            return self.count(DatagramCount::Unreachable, 1);
        }
        self.count(DatagramCount::Replies, 1);
        self.count(DatagramCount::ReplyBytes, record.payload_len.into());
        let asked_us = std::mem::take(&mut self.entries[id as usize].asked_us);
        if asked_us != 0 {
            self.count(DatagramCount::FirstReplies, 1);
            self.count(DatagramCount::FirstReplyUs, now_us.saturating_sub(asked_us));
        }
    }

    /// Forgets flows that were silent for long; true if there were any.
    pub fn tick(&mut self, now_us: u64) -> bool {
        let mut expired = false;
        for _ in 0..EXPIRES {
            let Some(id) = self.age.oldest().filter(|&id| self.silence_us(id, now_us) >= SILENCE_US) else {
                break;
            };
            self.close(id);
            expired = true;
        }
        expired
    }

    /// No new flow is begun any more.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Flows that exist: one for each copy.
    pub fn open_flows(&self) -> u64 {
        u64::from(FLOWS) - self.free.len() as u64
    }

    /// Flows ever opened.
    pub fn opened(&self) -> u64 {
        self.header.opened
    }

    /// What was counted since the last call.
    pub fn take_counts(&mut self) -> [u64; DatagramCount::COUNT] {
        std::mem::replace(&mut self.counts, [0; DatagramCount::COUNT])
    }

    /// Copies and payload bytes dropped since the last call, by reason.
    pub fn take_dropped(&mut self) -> [(u64, u64); Drop::COUNT] {
        std::mem::replace(&mut self.dropped, [(0, 0); Drop::COUNT])
    }

    fn find(&self, segment: &Captured, copy: u32) -> Option<u32> {
        self.by_flow.find(self.key_hash(&segment.client, &segment.server, copy, segment.lap), |id| {
            let entry = &self.entries[id as usize];
            u32::from(entry.copy) == copy
                && (entry.client, entry.server, entry.mapping, entry.lap)
                    == (segment.client, segment.server, segment.mapping, segment.lap)
        })
    }

    fn open(&mut self, now_us: u64, segment: &Captured, copy: u32, copies: u32) -> Result<u32, Drop> {
        if self.free.is_empty() {
            let oldest = self.age.oldest().filter(|&id| self.silence_us(id, now_us) >= YIELDS_US);
            self.close(oldest.ok_or(Drop::TableFull)?);
            self.count(DatagramCount::Yielded, 1);
        }
        let replayed = self.endpoint(segment, copy).ok_or(Drop::EndpointsExhausted)?;
        let id = self.free.pop().ok_or(Drop::TableFull)?;
        let number = self.header.opened + 1;
        let entry = Entry {
            seal: 0,
            number,
            last_us: now_us,
            asked_us: 0,
            claimed_us: 0,
            client: segment.client,
            server: segment.server,
            replayed,
            mapping: segment.mapping,
            copy: copy as u16,
            copies: copies as u16,
            lap: segment.lap,
            reserved: [0; 3],
        };
        let seal = entry.sealed();
        self.entries[id as usize] = entry;
        // A successor must not find the seal of an entry that is not written.
        compiler_fence(Ordering::SeqCst);
        self.entries[id as usize].seal = seal;
        compiler_fence(Ordering::SeqCst);
        self.header.opened = number;
        self.enlist(id);
        Ok(id)
    }

    /// The first endpoint of the flow's walk that hashes back to this shard and is free.
    fn endpoint(&self, segment: &Captured, copy: u32) -> Option<Endpoint> {
        let target = *self.config.mappings.get(usize::from(segment.mapping))?;
        let v4 = self.config.targets.get(usize::from(target))?.endpoint.addr.is_v4();
        let range = match &self.config.clients {
            Clients::Keep if segment.client.addr.is_v4() != v4 => return None,
            Clients::Keep if copy == 0 && segment.lap == 0 => return Some(segment.client),
            Clients::Keep => None,
            Clients::Pool { v4: pool, v6: other } => {
                Some(if v4 { pool.as_ref()? } else { other.as_ref()? })
            }
        };
        let walk =
            self.key_hash(&segment.client, &segment.server, copy, segment.lap) ^ self.config.seeds.endpoint;
        (0..TRIES * u64::from(self.config.shards)).find_map(|step| {
            let drawn = spread(walk ^ spread(step + 1));
            let addr = range.map_or(segment.client.addr, |range| address(range, drawn, spread(drawn)));
            let candidate = Endpoint::new(addr, 1_024 + (drawn % (65_536 - 1_024)) as u16);
            let ours = shard_of(endpoint_hash(self.config.seeds.shard, &candidate), self.config.shards)
                == self.config.shard;
            let free = || {
                let hash = self.replayed_hash(&candidate);
                self.by_replayed.find(hash, |id| self.entries[id as usize].replayed == candidate).is_none()
            };
            (ours && free()).then_some(candidate)
        })
    }

    fn close(&mut self, id: u32) {
        let entry = self.entries[id as usize];
        self.by_flow.remove(self.key_hash(&entry.client, &entry.server, entry.copy.into(), entry.lap), id);
        self.by_replayed.remove(self.replayed_hash(&entry.replayed), id);
        self.age.remove(id);
        self.entries[id as usize].seal = 0;
        self.free.push(id);
    }

    fn enlist(&mut self, id: u32) {
        let entry = self.entries[id as usize];
        let by_flow = self.key_hash(&entry.client, &entry.server, entry.copy.into(), entry.lap);
        let by_replayed = self.replayed_hash(&entry.replayed);
        let placed = self.by_flow.insert(by_flow, id) && self.by_replayed.insert(by_replayed, id);
        debug_assert!(placed, "the indices hold as many as there are entries");
        self.age.append(id);
    }

    fn silence_us(&self, id: u32, now_us: u64) -> u64 {
        now_us.saturating_sub(self.entries[id as usize].last_us)
    }

    fn key_hash(&self, client: &Endpoint, server: &Endpoint, copy: u32, lap: u8) -> u64 {
        spread(flow_hash(self.config.seeds.table, client, server) ^ u64::from(copy) ^ u64::from(lap) << 32)
    }

    fn replayed_hash(&self, endpoint: &Endpoint) -> u64 {
        endpoint_hash(self.config.seeds.table ^ REPLAYED, endpoint)
    }

    fn drop_copies(&mut self, reason: Drop, copies: u32, payload_len: u32) {
        let bytes = u64::from(copies) * u64::from(payload_len);
        self.count(DatagramCount::Wanted, copies.into());
        self.count(DatagramCount::WantedBytes, bytes);
        let (datagrams, dropped) = &mut self.dropped[reason.index()];
        *datagrams += u64::from(copies);
        *dropped += bytes;
    }

    fn count(&mut self, what: DatagramCount, n: u64) {
        self.counts[what.index()] += n;
    }
}

impl Entry {
    /// What its seal must be; never 0.
    fn sealed(&self) -> u64 {
        let numbers = u64::from(self.lap) << 48
            | u64::from(self.mapping) << 32
            | u64::from(self.copy) << 16
            | u64::from(self.copies);
        let ends = flow_hash(spread(self.number) ^ numbers, &self.client, &self.server);
        endpoint_hash(ends, &self.replayed) | 1
    }
}

/// Spreads every bit over all others (SplitMix64).
const fn spread(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// An address of a range, its free bits drawn.
fn address(range: &Range, high: u64, low: u64) -> Addr {
    let bits = u128::from_be_bytes(range.base().0);
    // Within the 128 bits of the mapped form.
    let prefix = u32::from(range.prefix()) + if range.is_v4() { 96 } else { 0 };
    let free = u128::MAX.checked_shr(prefix).unwrap_or(0);
    let drawn = u128::from(high) << 64 | u128::from(low);
    Addr((bits | drawn & free).to_be_bytes())
}

/// Entries by how long they were silent: a list through private memory.
struct Age {
    links: Box<[[u32; 2]]>,
    /// Silent longest, spoke last.
    ends: [u32; 2],
}

impl Age {
    fn new() -> Self {
        Self { links: vec![[NONE; 2]; FLOWS as usize].into_boxed_slice(), ends: [NONE; 2] }
    }

    fn oldest(&self) -> Option<u32> {
        (self.ends[0] != NONE).then_some(self.ends[0])
    }

    fn append(&mut self, id: u32) {
        let last = std::mem::replace(&mut self.ends[1], id);
        self.links[id as usize] = [last, NONE];
        match last {
            NONE => self.ends[0] = id,
            last => self.links[last as usize][1] = id,
        }
    }

    fn remove(&mut self, id: u32) {
        let [before, after] = self.links[id as usize];
        match before {
            NONE => self.ends[0] = after,
            before => self.links[before as usize][1] = after,
        }
        match after {
            NONE => self.ends[1] = before,
            after => self.links[after as usize][0] = before,
        }
    }

    fn touch(&mut self, id: u32) {
        if self.ends[1] != id {
            self.remove(id);
            self.append(id);
        }
    }
}

#[cfg(test)]
mod tests;
