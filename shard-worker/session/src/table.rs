//! The table of sessions: what the shard worker calls. Captured and returned packets and timers only change slots and
//! put them on the ready list; [`Table::pump`] alone emits, in turn for each ready session and in bounded portions, so
//! acknowledgements ride on data that leaves anyway and no session starves another.
//!
//! | file | this table's |
//! |---|---|
//! | `online` | captured side: duplicates, holes, turns |
//! | `birth` | new sessions: copies, endpoints, joining |
//! | `target` | returned side: handshake, acknowledgements, answers |
//! | `sender` | what leaves: windows, gates, retransmission |
//! | `timers` | deadlines |
//! | `ending` | FIN, RST, reconnect, the end |

use flow::hash::flow_hash;
use flow::{Captured, Drop, Endpoint, Inject, Returned};
use zerocopy::IntoBytes;

use crate::arena::{self, Arena, Header, Slots};
use crate::chunks::Chunks;
use crate::config::{Clients, Config};
use crate::congestion::RTO_MOST_US;
use crate::endpoints::Pool;
use crate::index::Index;
use crate::numbering::LastNumbers;
use crate::ready::Ready;
use crate::slot::{NEVER, NONE, Phase, Slot, is};
use crate::strangers::Strangers;
use crate::tally::{Count, Tally};
use crate::targets::Targets;
use crate::wheel::Wheel;

/// Records one [`Table::pump`] emits at most.
pub const BURST: usize = 16;
/// Payload bytes one [`Table::pump`] emits at most.
pub const BURST_BYTES: usize = 128 * 1024;
/// Timers that one [`Table::tick`] runs at most.
pub(crate) const DUE: usize = 1024;

/// Where [`Table::pump`] puts what it emits. Must take [`BURST`] records with [`BURST_BYTES`] of payload together.
pub trait Sink {
    /// One record; the parts together are `head.payload_len` bytes.
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>);
}

/// The sessions of one shard.
pub struct Table {
    pub(crate) config: Config,
    pub(crate) tally: Tally,
    pub(crate) header: &'static mut Header,
    pub(crate) slots: Slots,
    pub(crate) chunks: Chunks,
    /// (client, server, mapping) → first copy.
    pub(crate) by_flow: Index,
    /// (client as replayed, target) → session.
    pub(crate) by_replayed: Index,
    pub(crate) wheel: Wheel,
    pub(crate) ready: Ready,
    /// Free slots, last freed first: what is in cache is used again.
    pub(crate) free: Vec<u32>,
    pub(crate) due: Vec<u32>,
    pub(crate) strangers: Strangers,
    pub(crate) last_numbers: LastNumbers,
    pub(crate) targets: Targets,
    /// IPv4 and IPv6.
    pub(crate) pools: [Option<Pool>; 2],
    pub(crate) draining: bool,
    /// Until then no answer could come back, whatever the targets did.
    pub(crate) deaf_us: u64,
    /// Where the search for the oldest backlogs goes on.
    pub(crate) hand: u32,
    /// Challenges in the present second (RFC 5961, section 7).
    pub(crate) challenges: (u64, u32),
}

impl Table {
    /// Bytes that the arena must have for so many sessions and chunks.
    pub fn arena_bytes(sessions: u32, chunks: u32) -> u64 {
        arena::bytes(sessions, chunks)
    }

    /// A table over an arena: empty when the arena is zeroed, else rebuilt from the slots that stand there.
    ///
    /// Panics when the arena is smaller than [`Table::arena_bytes`] or not aligned to eight bytes.
    pub fn new(arena: &'static mut [u8], config: Config) -> Table {
        let (sessions, chunks) = (config.limits.sessions, config.limits.chunks);
        let arena = Arena::carve(arena, sessions, chunks);
        let pool = |range| {
            Pool::new(range, config.seeds.endpoint, config.seeds.shard, config.shard, config.shards.max(1))
        };
        let pools = match config.clients {
            Clients::Pool { v4, v6 } => [v4.map(pool), v6.map(pool)],
            Clients::Keep => [None, None],
        };
        let mut table = Table {
            tally: Tally::of_targets(config.targets.len()),
            wheel: Wheel::new(sessions, arena.header.clock_us),
            header: arena.header,
            slots: arena.slots,
            chunks: arena.chunks,
            by_flow: Index::new(sessions),
            by_replayed: Index::new(sessions),
            ready: Ready::new(sessions),
            free: (0..sessions).rev().collect(),
            due: Vec::with_capacity(DUE),
            strangers: Strangers::new(sessions),
            last_numbers: LastNumbers::new(),
            targets: Targets::new(config.targets.len(), config.pace, config.seeds.isn),
            pools,
            draining: false,
            deaf_us: 0,
            hand: 0,
            challenges: (0, 0),
            config,
        };
        if arena.used {
            table.rebuild();
        }
        table
    }

    /// Takes one captured segment.
    pub fn captured(
        &mut self,
        now_us: u64,
        segment: &Captured,
        payload: &[u8],
        percent_ppm: u32,
        copies_milli: u32,
    ) {
        self.clock(now_us);
        self.take_captured(now_us, segment, payload, percent_ppm, copies_milli);
    }

    /// Takes one returned header.
    pub fn returned(&mut self, now_us: u64, record: &Returned) {
        self.clock(now_us);
        self.take_returned(now_us, record);
    }

    /// Runs the timers that are due.
    pub fn tick(&mut self, now_us: u64) {
        self.clock(now_us);
        self.run_timers(now_us);
    }

    /// Emits what may leave now, at most [`BURST`] records and [`BURST_BYTES`] of payload; true when more waits.
    pub fn pump(&mut self, now_us: u64, out: &mut impl Sink) -> bool {
        self.clock(now_us);
        self.send_ready(now_us, out)
    }

    /// When [`Table::tick`] should run next.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.wheel.next_deadline_us()
    }

    /// Until this time, 0 for never, the way back was not whole: silence of a target up to then is not held against it.
    pub const fn was_deaf(&mut self, until_us: u64) {
        self.deaf_us = until_us;
    }

    /// Until when the one on a four-tuple may have to wait for the way back, and for its own next retransmission then.
    pub(crate) const fn hears_again_us(&self) -> u64 {
        if self.deaf_us == 0 { 0 } else { self.deaf_us + RTO_MOST_US }
    }

    /// No new sessions from now on.
    pub fn drain(&mut self, now_us: u64) {
        self.clock(now_us);
        self.draining = true;
    }

    /// Nothing is held, or sent and unacknowledged.
    pub fn is_quiet(&self) -> bool {
        self.tally.in_flight == 0 && self.ready.is_empty()
    }

    /// Gives up everything: the rest is dropped as `stopped`, [`Table::pump`] emits the resets.
    pub fn abandon(&mut self, now_us: u64) {
        self.clock(now_us);
        self.draining = true;
        for id in 0..self.slots.len() {
            self.stop(now_us, id);
        }
    }

    /// The counters.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What the table was told at its start.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A copy of the arena's bytes, from which another table can be made: for tests, and for looking at a table from
    /// outside.
    pub fn image(&self) -> Vec<u8> {
        [self.header.as_bytes(), self.slots.as_bytes(), self.chunks.as_bytes()].concat()
    }

    /// Time never goes back, not even across a restart.
    fn clock(&mut self, now_us: u64) {
        if self.wheel.is_empty() {
            self.wheel.expire(now_us, 0, &mut self.due);
        }
        self.header.clock_us = self.header.clock_us.max(now_us);
    }

    /// After any change to a session: it may have something to emit, and its deadlines may have moved closer.
    pub(crate) fn touch(&mut self, id: u32) {
        self.ready.push(id);
        self.rearm(id);
    }

    pub(crate) fn rearm(&mut self, id: u32) {
        let earliest = self.slots.get(id).earliest();
        if earliest != NEVER {
            self.wheel.arm_no_later(id, earliest);
        }
    }

    pub(crate) fn flow_hash(&self, client: &Endpoint, server: &Endpoint) -> u64 {
        flow_hash(self.config.seeds.table, client, server)
    }

    pub(crate) fn replayed_hash(&self, replayed: &Endpoint, target: &Endpoint) -> u64 {
        flow_hash(self.replayed_seed(), replayed, target)
    }

    pub(crate) fn replayed_seed(&self) -> u64 {
        self.config.seeds.table ^ REPLAYED
    }

    /// The session of a replayed client at a target.
    pub(crate) fn find_replayed(&self, replayed: &Endpoint, target: &Endpoint) -> Option<u32> {
        let (slots, targets) = (&self.slots, &self.config.targets);
        self.by_replayed.find(self.replayed_hash(replayed, target), |id| {
            let slot = slots.get(id);
            slot.replayed == *replayed && targets[slot.target as usize].endpoint == *target
        })
    }

    /// The first copy of a flow.
    pub(crate) fn find_flow(
        &self,
        hash: u64,
        client: &Endpoint,
        server: &Endpoint,
        mapping: u16,
    ) -> Option<u32> {
        let slots = &self.slots;
        self.by_flow.find(hash, |id| {
            let slot = slots.get(id);
            slot.client == *client && slot.server == *server && slot.mapping == mapping
        })
    }

    /// After a restart: indices, free lists, wheel and gauges from the slots. A slot that makes no sense is emptied and
    /// what it had in flight counted as `worker_lost`.
    fn rebuild(&mut self) {
        let mut used = vec![false; self.chunks.len()];
        self.free.clear();
        for id in (0..self.slots.len()).rev() {
            let slot = *self.slots.get(id);
            if slot.phase() == Phase::Free {
                self.free.push(id);
                continue;
            }
            self.tally.inherited += u64::from(slot.in_flight);
            let sound = self.is_sound(&slot)
                && slot.held.mark(&self.chunks, &mut used)
                && slot.stash.mark(&self.chunks, &mut used);
            if !sound {
                self.tally.one(Count::SlotsUnusable);
                self.tally.one(Count::FailedWorkerLost);
                self.tally.drop_bytes(Drop::WorkerLost, slot.in_flight);
                *self.slots.get_mut(id) = Slot::empty();
                self.free.push(id);
                continue;
            }
            self.tally.open += 1;
            self.tally.in_flight += u64::from(slot.in_flight);
        }
        self.chunks.rebuild(&used);
        for id in 0..self.slots.len() {
            self.reindex(id);
        }
    }

    fn is_sound(&self, slot: &Slot) -> bool {
        let link = |id: u32| id == NONE || id < self.slots.len();
        (slot.target as usize) < self.config.targets.len()
            && link(slot.next_copy)
            && link(slot.waiter)
            && slot.in_flight == slot.held_len.wrapping_add(slot.stash_bytes)
            // A session that owes its reset has given up its bytes but not their numbers.
            && (slot.phase() == Phase::Resetting || slot.outstanding() <= slot.held_len.saturating_add(2))
    }

    fn reindex(&mut self, id: u32) {
        let slot = *self.slots.get(id);
        if slot.phase() == Phase::Free {
            return;
        }
        for link in [slot.next_copy, slot.waiter] {
            if link != NONE && self.slots.get(link).phase() == Phase::Free {
                let slot = self.slots.get_mut(id);
                slot.next_copy = if slot.next_copy == link { NONE } else { slot.next_copy };
                slot.waiter = if slot.waiter == link { NONE } else { slot.waiter };
            }
        }
        if slot.is(is::FIRST) {
            self.by_flow.insert(self.flow_hash(&slot.client, &slot.server), id);
        }
        if slot.phase() != Phase::Queued && slot.replayed != Endpoint::default() {
            let target = self.config.targets[slot.target as usize].endpoint;
            self.by_replayed.insert(self.replayed_hash(&slot.replayed, &target), id);
        }
        self.touch(id);
    }
}

/// Keeps the two indices' hashes apart.
const REPLAYED: u64 = 0x7265_706c_6179_6564;
