//! The table of sessions: what the shard worker calls. Captured and returned packets and timers only change slots and
//! put them on the ready list; [`Table::pump`] alone emits, in turn for each ready session and in bounded portions, so
//! acknowledgements ride on data that leaves anyway and no session starves another.
//!
//! What happens between two calls of [`Table::settle`] is one transaction: a table made on the arena of one that died in
//! between finds everything as it was at the last `settle`. The caller ends it before the undo log is full, which
//! [`Table::admits`] and [`Table::is_full`] tell, and before it lets anybody see what was emitted ([`Table::seal`], then
//! [`Table::conclude`]).
//!
//! | file | this table's |
//! |---|---|
//! | `online` | captured side: duplicates, holes, turns |
//! | `birth` | new sessions: copies, endpoints, joining |
//! | `target` | returned side: handshake, acknowledgements, answers |
//! | `sender` | what leaves: windows, gates, retransmission |
//! | `timers` | deadlines |
//! | `hearing` | who asks again once answers can come back |
//! | `walk` | what a predecessor's slots hold, found out while this goes on |
//! | `foresight` | memory asked for before it is needed |
//! | `shedding` | flows ended to make room |
//! | `ending` | FIN, RST, reconnect, the end |

use flow::hash::flow_hash;
use flow::{Captured, Drop, Endpoint, Inject, Returned};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::compiler_fence;

use zerocopy::{FromBytes, IntoBytes};

use crate::answers::Answers;
use crate::arena::{self, Arena, Header};
use crate::chunks::Chunks;
use crate::config::{Clients, Config, TargetConfig};
use crate::diary::Diary;
use crate::endpoints::Pool;
use crate::file_clock::FileClock;
use crate::foresight::Foresight;
use crate::hearing::Hearing;
use crate::index::Index;
use crate::lingering::Lingering;
use crate::nearest::Nearest;
use crate::ready::Ready;
use crate::shedding::Shedding;
use crate::slot::{NEVER, Slot, is};
use crate::strangers::Strangers;
use crate::tally::{Count, Tally};
use crate::targets::Targets;
use crate::undo::{ITEM_IMAGES, SESSION_IMAGES, Slots, Sums};
use crate::walk::{SLICE, Walk};
use crate::wheel::Wheel;

/// Records one [`Table::pump`] emits at most.
pub const BURST: usize = 16;
/// Payload bytes one [`Table::pump`] emits at most.
pub const BURST_BYTES: usize = 128 * 1024;
/// Timers that one [`Table::tick`] runs at most.
///
/// Few enough that what they bring about is emitted while their slots and images are in a core's own cache: half a kilobyte each.
pub(crate) const DUE: usize = 256;

/// Where [`Table::pump`] puts what it emits. Must take [`BURST`] records with [`BURST_BYTES`] of payload together.
pub trait Sink {
    /// One record; the parts together are `head.payload_len` bytes.
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>);

    /// Books the moment at which a connection may be begun: now, unless there is a rate to be kept. None when that would be too
    /// late.
    fn book(&mut self, now_us: u64) -> Option<u64> {
        Some(now_us)
    }
}

/// A session found in an arena, as far as those may know that condemn it.
pub struct Held<'s> {
    /// Its number.
    pub id: u32,
    slot: &'s Slot,
}

impl<'s> Held<'s> {
    pub(crate) fn new(id: u32, slot: &'s Slot) -> Self {
        Self { id, slot }
    }

    /// Whether it is of the flow that a captured segment belongs to.
    pub fn is_of(&self, segment: &Captured) -> bool {
        self.slot.is_of(segment)
    }

    /// Whether a returned header is addressed to it.
    pub fn is_answered_by(&self, record: &Returned) -> bool {
        self.slot.replayed == record.client
    }
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
    pub(crate) lingering: Lingering,
    /// Where the next half-open session is looked for, see `birth`.
    pub(crate) half_open_hand: u32,
    /// Free slots, last freed first: what is in cache is used again. After them come those that were never used.
    pub(crate) free: Vec<u32>,
    pub(crate) walk: Walk,
    pub(crate) due: Vec<u32>,
    pub(crate) strangers: Strangers,
    pub(crate) nearest: Nearest,
    pub(crate) answers: Answers,
    pub(crate) targets: Targets,
    pub(crate) diary: Diary,
    /// IPv4 and IPv6.
    pub(crate) pools: [Option<Pool>; 2],
    pub(crate) draining: bool,
    pub(crate) file_clock: FileClock,
    pub(crate) hearing: Hearing,
    /// Sessions before this one were given up.
    abandoned: u32,
    /// Sessions before this one have their last answers.
    pub(crate) answered: u32,
    /// Where the search for the oldest backlogs goes on.
    pub(crate) hand: u32,
    pub(crate) shedding: Shedding,
    /// Challenges in the present second (RFC 5961, section 7).
    pub(crate) challenges: (u64, u32),
    pub(crate) foresight: Foresight,
}

impl Table {
    /// Bytes of one session in an arena, without what it holds.
    pub const SLOT_BYTES: usize = size_of::<Slot>();

    /// Bytes that the arena must have for so many sessions and chunks.
    pub const fn arena_bytes(sessions: u32, chunks: u32) -> u64 {
        arena::bytes(sessions, chunks)
    }

    /// Bytes at an arena's begin that outlive its sessions: who zeroes the rest has an empty table that knows which endpoints
    /// targets may remember.
    pub const LASTING_BYTES: usize = size_of::<Header>();

    /// A table over an arena: empty when the arena is zeroed, else with the sessions that stand there as they were at their
    /// table's last [`Table::settle`]. All of them are known when this returns.
    ///
    /// Panics when the arena is smaller than [`Table::arena_bytes`] or not aligned to eight bytes.
    pub fn new(arena: &'static mut [u8], config: Config) -> Table {
        let mut table = Self::successor(arena, config, false, |_| false);
        while table.walk(SLICE) {
            if table.is_full() {
                table.settle();
            }
        }
        if table.has_changed() {
            table.settle();
        }
        table
    }

    /// The same after a predecessor's death, at once: what its slots hold is found out by [`Table::walk`], or when it is needed.
    /// `committed`: it died between [`Table::seal`] and [`Table::settle`], and what it had sealed was made public; its last
    /// transaction stands. Sessions that are `condemned` are lost, without a look at what they hold.
    pub fn successor(
        arena: &'static mut [u8],
        config: Config,
        committed: bool,
        condemned: impl Fn(&Held<'_>) -> bool + 'static,
    ) -> Table {
        let (sessions, chunks) = (config.limits.sessions, config.limits.chunks);
        let arena = Arena::carve(arena, sessions, chunks);
        let pool = |range| {
            Pool::new(range, config.seeds.endpoint, config.seeds.shard, config.shard, config.shards.max(1))
        };
        let pools = match config.clients {
            Clients::Pool { v4, v6 } => [v4.map(pool), v6.map(pool)],
            Clients::Keep => [None, None],
        };
        let [by_flow, by_replayed] = arena.indices;
        let sums = arena.slots.sums(committed);
        let walk = Walk::new(arena.header.fresh.min(sessions), sums, condemned);
        let mut table = Table {
            tally: Tally::of_targets(config.targets.len()),
            wheel: Wheel::new(sessions, arena.header.clock_us),
            header: arena.header,
            slots: arena.slots,
            chunks: arena.chunks,
            by_flow,
            by_replayed,
            ready: Ready::new(sessions),
            lingering: Lingering::new(sessions),
            half_open_hand: 0,
            free: Vec::with_capacity(sessions as usize),
            walk,
            due: Vec::with_capacity(DUE),
            strangers: Strangers::new(sessions),
            nearest: Nearest::new(config.seeds.table),
            answers: Answers::new(if config.file_us.is_some() { sessions } else { 0 }),
            targets: Targets::new(config.targets.len(), config.pace, config.seeds.isn),
            diary: Diary::default(),
            pools,
            draining: false,
            file_clock: FileClock::new(config.file_us),
            hearing: Hearing::default(),
            abandoned: 0,
            answered: 0,
            hand: 0,
            shedding: Shedding::default(),
            challenges: (0, 0),
            foresight: Foresight::default(),
            config,
        };
        table.take_over(sums, committed);
        table
    }

    /// Notes what happens to sessions from now on.
    pub fn keep_diary(&mut self, diary: Diary) {
        self.diary = diary;
    }

    /// Whether a captured segment can be taken in the open transaction. If not, it can be taken after [`Table::settle`], as well
    /// as it ever will: memory is short, and what was closed for its sake is free only then.
    #[must_use]
    pub fn admits(
        &mut self,
        now_us: u64,
        segment: &Captured,
        payload_bytes: usize,
        percent_ppm: u32,
        copies_milli: u32,
    ) -> bool {
        !self.is_full()
            && (segment.is_answer()
                || self.reserve(now_us, segment, payload_bytes, percent_ppm, copies_milli))
    }

    /// Whether the open transaction has to end before anything more happens. What cannot be done in it waits.
    pub fn is_full(&self) -> bool {
        !self.slots.has_room(ITEM_IMAGES)
    }

    /// Whether the open transaction has touched anything.
    pub fn has_changed(&self) -> bool {
        !self.slots.is_untouched()
    }

    /// Makes the slots ready for the end of the transaction: the last thing before the caller's point of no return.
    pub fn seal(&mut self) {
        self.slots.seal(self.sums());
    }

    /// The transaction has happened: the first thing after what it emitted can be seen.
    pub fn conclude(&mut self) {
        self.slots.forget(self.sums());
        self.chunks.settle();
    }

    fn sums(&self) -> Sums {
        Sums { open: self.tally.open, in_flight: self.tally.in_flight }
    }

    /// Ends a transaction that nobody else has a part in.
    pub fn settle(&mut self) {
        self.seal();
        self.conclude();
    }

    /// Takes one captured segment, see [`Table::admits`], or the header of an answer that a file holds.
    pub fn captured(
        &mut self,
        now_us: u64,
        segment: &Captured,
        payload: &[u8],
        percent_ppm: u32,
        copies_milli: u32,
    ) {
        self.clock(now_us);
        if segment.is_answer() {
            self.take_online_answer(now_us, segment);
        } else {
            self.take_captured(now_us, segment, payload, percent_ppm, copies_milli);
        }
    }

    /// Counts one captured segment as wanted and dropped under `reason`, without a look at any session.
    pub fn turn_away(
        &mut self,
        segment: &Captured,
        payload_bytes: usize,
        reason: Drop,
        percent_ppm: u32,
        copies_milli: u32,
    ) {
        self.tally.one(Count::TakenSegments);
        self.tally.add(Count::TakenBytes, payload_bytes as u64);
        let copies = self.copies_wanted(segment, percent_ppm, copies_milli);
        self.refuse(reason, copies, payload_bytes);
    }

    /// Takes one returned header.
    pub fn returned(&mut self, now_us: u64, record: &Returned) {
        self.clock(now_us);
        self.take_returned(now_us, record);
    }

    /// Runs the timers that are due, as many as the transaction has room for.
    pub fn tick(&mut self, now_us: u64) {
        self.clock(now_us);
        self.ask_again(now_us);
        self.run_timers(now_us);
    }

    /// Emits what may leave now, at most [`BURST`] records and [`BURST_BYTES`] of payload; true when more waits.
    pub fn pump(&mut self, now_us: u64, out: &mut impl Sink) -> bool {
        self.clock(now_us);
        self.send_ready(now_us, out)
    }

    /// When [`Table::tick`] should run next.
    pub fn next_deadline_us(&self) -> Option<u64> {
        let timer =
            if self.due.is_empty() { self.wheel.next_deadline_us() } else { Some(self.header.clock_us) };
        let resumes = Some(self.hearing.resumes_us()).filter(|&at_us| at_us != NEVER);
        timer.into_iter().chain(resumes).min()
    }

    /// Whether [`Table::tick`] has anything to do.
    pub fn is_due(&self, now_us: u64) -> bool {
        !self.due.is_empty() || self.wheel.is_due(now_us) || self.asks_again(now_us)
    }

    /// No new sessions from now on.
    pub fn drain(&mut self, now_us: u64) {
        self.clock(now_us);
        self.draining = true;
    }

    /// Nothing is held, or sent and unacknowledged.
    pub fn is_quiet(&self) -> bool {
        self.tally.in_flight == 0 && self.ready.is_empty() && !self.is_walking()
    }

    /// Gives up everything: the rest is dropped as `stopped`, [`Table::pump`] emits the resets. False: the transaction is full,
    /// or [`Table::walk`] is not through, and it is to be called again later.
    pub fn abandon(&mut self, now_us: u64) -> bool {
        self.clock(now_us);
        self.draining = true;
        if self.is_walking() {
            return false;
        }
        while self.abandoned < self.header.fresh.min(self.slots.len()) {
            if !self.slots.has_room(SESSION_IMAGES) {
                return false;
            }
            self.stop(now_us, self.abandoned);
            self.abandoned += 1;
        }
        true
    }

    /// The session that the table of an arena was at when it last ran timers or emitted; its number means something only if
    /// that is what it died of.
    pub fn last_at(arena: &[u8]) -> Option<u32> {
        Header::ref_from_prefix(arena).ok().map(|(header, _)| header.at)
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
        let [(hole, flows), (other_hole, replayed)] = [self.by_flow.image(), self.by_replayed.image()];
        let marks = [hole, other_hole, self.chunks.mark_word()];
        let indices = [flows, replayed].concat();
        let log = self.slots.log_bytes();
        let gap = vec![0; arena::gap(self.slots.len())];
        let before = [self.header.as_bytes(), marks.as_bytes(), &log, indices.as_bytes(), &gap];
        [&before.concat(), self.slots.as_bytes(), self.chunks.as_bytes()].concat()
    }

    /// Time never goes back, not even across a restart.
    fn clock(&mut self, now_us: u64) {
        if self.wheel.is_empty() {
            self.wheel.expire(now_us, 0, &mut self.due);
        }
        self.header.clock_us = self.header.clock_us.max(now_us);
    }

    /// Notes which session is worked on, before that begins.
    pub(crate) fn at(&mut self, id: u32) {
        self.header.at = id;
        compiler_fence(SeqCst);
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

    pub(crate) fn flow_hash(&self, client: &Endpoint, server: &Endpoint, lap: u8) -> u64 {
        flow_hash(self.config.seeds.table ^ u64::from(lap), client, server)
    }

    /// The hash of a segment's flow.
    pub(crate) fn hash_of(&self, segment: &Captured) -> u64 {
        self.flow_hash(&segment.client, &segment.server, segment.lap)
    }

    pub(crate) fn replayed_hash(&self, replayed: &Endpoint, target: &Endpoint) -> u64 {
        flow_hash(self.replayed_seed(), replayed, target)
    }

    pub(crate) fn replayed_seed(&self) -> u64 {
        self.config.seeds.table ^ REPLAYED
    }

    /// The session of a replayed client at a target.
    pub(crate) fn find_replayed(&mut self, replayed: &Endpoint, target: &Endpoint) -> Option<u32> {
        loop {
            let id = self.peek_replayed(replayed, target)?;
            if self.is_known(id) {
                return Some(id);
            }
        }
    }

    /// The same as far as slots say that nobody has looked at: for who only asks whether there is one.
    pub(crate) fn peek_replayed(&self, replayed: &Endpoint, target: &Endpoint) -> Option<u32> {
        let hash = self.replayed_hash(replayed, target);
        self.by_replayed.find(hash, |id| self.has_endpoint(id, replayed, target))
    }

    pub(crate) fn has_endpoint(&self, id: u32, replayed: &Endpoint, target: &Endpoint) -> bool {
        id < self.header.fresh && has_endpoint(self.slots.get(id), &self.config.targets, replayed, target)
    }

    /// The first copy of a segment's flow.
    pub(crate) fn find_flow(&mut self, hash: u64, segment: &Captured) -> Option<u32> {
        loop {
            let id = self.peek_flow(hash, segment)?;
            if self.is_known(id) {
                return Some(id);
            }
        }
    }

    pub(crate) fn peek_flow(&self, hash: u64, segment: &Captured) -> Option<u32> {
        self.by_flow.find(hash, |id| self.is_first_of(id, segment))
    }

    /// Whether captured segments of this flow find this session.
    pub(crate) fn is_first_of(&self, id: u32, segment: &Captured) -> bool {
        id < self.header.fresh && {
            let slot = self.slots.get(id);
            slot.is_of(segment) && slot.is(is::FIRST)
        }
    }

    /// Where a session sends to. A slot that was not looked at may say anything.
    pub(crate) fn target_of(&self, slot: &Slot) -> Option<Endpoint> {
        self.config.targets.get(usize::from(slot.target)).map(|target| target.endpoint)
    }

    /// Slots that can be had at once.
    pub(crate) fn free_slots(&self) -> usize {
        self.free.len() + (self.slots.len() - self.header.fresh.min(self.slots.len())) as usize
    }

    /// Takes a free slot.
    pub(crate) fn take_slot(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let id = self.header.fresh;
            (id < self.slots.len()).then(|| {
                self.header.fresh = id + 1;
                id
            })
        })
    }

    /// Lets captured segments find the flow whose first copy this session is from now on. What an index says changes only after
    /// the slot's image is in the log, so that a successor knows of which slots the indices may be wrong.
    pub(crate) fn index_flow(&mut self, hash: u64, id: u32) {
        self.slots.get_mut(id).set(is::FIRST);
        self.put_flow(hash, id);
    }

    /// They find it no more.
    pub(crate) fn unindex_flow(&mut self, hash: u64, id: u32) {
        self.slots.get_mut(id).unset(is::FIRST);
        self.by_flow.remove(hash, id);
    }
}

/// Whether a slot, which may say anything, is of a session with this endpoint at this target.
pub(crate) fn has_endpoint(
    slot: &Slot,
    targets: &[TargetConfig],
    replayed: &Endpoint,
    target: &Endpoint,
) -> bool {
    slot.replayed == *replayed
        && targets.get(usize::from(slot.target)).is_some_and(|config| config.endpoint == *target)
}

/// Keeps the two indices' hashes apart.
const REPLAYED: u64 = 0x7265_706c_6179_6564;
