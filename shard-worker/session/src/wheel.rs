//! A hierarchical timer wheel over slots. Private memory, rebuilt from the slots after a restart.
//!
//! Four levels of 256 buckets at a tick of 256 µs reach 12 days. A bucket is a row of timers in blocks of a cache line each;
//! a timer knows its place there, and when it leaves, the last of the row takes it. With lists through the slots instead, whoever
//! left met two neighbours that nobody had met for long, and a timer was found only through the one that fired before it: with
//! many sessions a miss each.
//!
//! A slot has two timers, one for what is near and one for what is 17 s away or more. A session that is mostly idle has a
//! near deadline for a few milliseconds of each turn; meanwhile the far timer stays where it is, in a row that nobody has met since
//! the last turn. Some 25 bytes a slot, no allocation after `new`.
//!
//! A timer never fires early; it fires at most one tick late, plus the caller's own delay.

use zerocopy::FromZeros;

use crate::sys::prefetch;

/// Microseconds per tick, as a shift.
const TICK_SHIFT: u32 = 8;
#[cfg(test)]
const TICK_US: u64 = 1 << TICK_SHIFT;
const LEVELS: usize = 4;
const BUCKETS: usize = 256;
/// The place of a link: nobody's.
const UNARMED: u32 = 0;
/// Deadlines further away than this many ticks are brought forward to it (about 6 days); they re-arm when they fire.
const FARTHEST: u32 = i32::MAX as u32;
/// Ticks from which on a deadline is far away: what fills the two upper levels, 17 s.
const FAR: u32 = (BUCKETS * BUCKETS) as u32;
/// Words of a block: a link, and timers.
const WORDS: u32 = 16;
const ROOM: u32 = WORDS - 1;
/// Bits of a link that are a block's number; the level stands above them. A wheel of 2^30 slots has a seventh as many blocks.
const LINK_BITS: u32 = 30;
const LINK: u32 = (1 << LINK_BITS) - 1;

/// One timer. All zeros when it is not armed: memory that nobody has touched yet.
#[derive(Clone, Copy, FromZeros)]
struct Node {
    /// Where it stands, counted in words of all blocks; [`UNARMED`] when it is not armed.
    place: u32,
    /// Tick of the deadline, low 32 bits.
    tick: u32,
}

/// The near timer of a slot and the far one, in one cache line.
#[derive(Clone, Copy, FromZeros)]
#[repr(align(16))]
struct Pair([Node; 2]);

/// A link, and timers. It leads to the block of the bucket that was filled before this one, or from one free block to another.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(64))]
struct Block([u32; WORDS as usize]);

impl Block {
    fn link(&self) -> u32 {
        self.0[0] & LINK
    }

    fn level(&self) -> usize {
        (self.0[0] >> LINK_BITS) as usize
    }
}

/// The timers of one span of time.
#[derive(Clone, Copy)]
struct Bucket {
    len: u32,
    /// The block that is being filled; means nothing when there are none.
    block: u32,
}

impl Bucket {
    /// Timers in the block that is being filled.
    fn in_block(self) -> u32 {
        (self.len - 1) % ROOM + 1
    }
}

/// The wheel.
pub struct Wheel {
    nodes: Box<[Pair]>,
    /// As many as the timers fill, and one for each bucket, which may leave one unfilled.
    blocks: Box<[Block]>,
    /// The first free block of those that were used; [`LINK`] for none.
    free: u32,
    /// Blocks from here on were never used.
    fresh: u32,
    buckets: Box<[[Bucket; BUCKETS]; LEVELS]>,
    occupied: [[u64; BUCKETS / 64]; LEVELS],
    /// Everything due at or before this tick has fired.
    now: u64,
    len: u32,
}

impl Wheel {
    /// For slots `0..slots`, none armed.
    pub fn new(slots: u32, now_us: u64) -> Self {
        let nodes = Pair::new_vec_zeroed(slots as usize).expect("memory for a wheel");
        let blocks = (2 * slots).div_ceil(ROOM) as usize + LEVELS * BUCKETS;
        let blocks = Block::new_vec_zeroed(blocks).expect("memory for a wheel");
        Self {
            nodes: nodes.into_boxed_slice(),
            blocks: blocks.into_boxed_slice(),
            free: LINK,
            fresh: 0,
            buckets: Box::new([[Bucket { len: 0, block: 0 }; BUCKETS]; LEVELS]),
            occupied: [[0; BUCKETS / 64]; LEVELS],
            now: now_us >> TICK_SHIFT,
            len: 0,
        }
    }

    /// Memory that it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.blocks)
    }

    /// Whether no slot is armed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the slot is armed.
    pub fn is_armed(&self, slot: u32) -> bool {
        timers_of(slot).iter().any(|&timer| self.node(timer).place != UNARMED)
    }

    /// Asks for the timers of a slot.
    pub(crate) fn ask_for(&self, slot: u32) {
        prefetch(&self.nodes[slot as usize]);
    }

    /// Arms the slot for a deadline, but leaves an arm that fires no later in place: what most packets do, since their
    /// deadlines only move away. The slot then fires early and its owner arms it again.
    pub fn arm_no_later(&mut self, slot: u32, deadline_us: u64) {
        let tick = self.tick_of(deadline_us);
        let [near, far] = timers_of(slot);
        if self.fires_by(near, tick) || self.fires_by(far, tick) {
            return;
        }
        let timer = if tick.wrapping_sub(self.now as u32) < FAR { near } else { far };
        self.disarm_one(timer);
        self.link_from(timer, tick, self.now);
    }

    /// Disarms the slot; nothing happens when it is not armed.
    pub fn disarm(&mut self, slot: u32) {
        timers_of(slot).into_iter().for_each(|timer| self.disarm_one(timer));
    }

    fn disarm_one(&mut self, timer: u32) {
        if self.node(timer).place != UNARMED {
            self.unlink(timer);
        }
    }

    /// Whether a timer is armed and fires at this tick or before it.
    fn fires_by(&self, timer: u32, tick: u32) -> bool {
        let node = self.node(timer);
        node.place != UNARMED && tick.wrapping_sub(node.tick) as i32 >= 0
    }

    fn node(&self, timer: u32) -> Node {
        self.nodes[timer as usize / 2].0[timer as usize % 2]
    }

    fn node_mut(&mut self, timer: u32) -> &mut Node {
        &mut self.nodes[timer as usize / 2].0[timer as usize % 2]
    }

    /// Moves the wheel to `now_us` and appends the slots that became due, at most until `due` holds `max`. What fired is disarmed,
    /// and the slot's deadlines behind it are known to its owner alone, who arms it again. When `max` was reached the rest comes with the next call.
    pub fn expire(&mut self, now_us: u64, max: usize, due: &mut Vec<u32>) {
        let target = now_us >> TICK_SHIFT;
        while self.now < target {
            if self.len == 0 {
                self.now = target;
                return;
            }
            let tick = self.now + 1;
            let bucket = tick as usize % BUCKETS;
            if bucket == 0 {
                self.cascade(tick);
            }
            self.ask_for_block(self.buckets[0][bucket]);
            while self.buckets[0][bucket].len > 0 {
                if due.len() >= max {
                    return;
                }
                due.push(self.pop_of_many(0, bucket) / 2);
            }
            self.now = tick;
            // Over the empty buckets of all levels in one step: a long pause costs no more than what is due in it.
            self.now = self.next_bucket().map_or(target, |next| (next - 1).min(target));
        }
    }

    /// When the caller has to look again: never after the earliest deadline, possibly before it.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.next_bucket().map(|tick| tick << TICK_SHIFT)
    }

    /// Whether anything is due, as far as the buckets tell: cheaper to ask than when that will be.
    pub(crate) fn is_due(&self, now_us: u64) -> bool {
        let target = now_us >> TICK_SHIFT;
        target > self.now && self.next_bucket().is_some_and(|tick| tick <= target)
    }

    /// First tick of the next occupied bucket of any level.
    fn next_bucket(&self) -> Option<u64> {
        (0..LEVELS).filter_map(|level| self.next_in_level(level)).min()
    }

    /// First tick of the next occupied bucket of a level.
    fn next_in_level(&self, level: usize) -> Option<u64> {
        let shift = 8 * level as u32;
        let current = self.now >> shift;
        let from = (current as usize + 1) % BUCKETS;
        let distance = self.distance_to_occupied(level, from)?;
        Some((current + 1 + distance as u64) << shift)
    }

    /// Buckets from `from` on, around the level, to the first occupied one.
    fn distance_to_occupied(&self, level: usize, from: usize) -> Option<usize> {
        let words = &self.occupied[level];
        let (first, bit) = (from / 64, from % 64);
        let head = words[first] >> bit;
        if head != 0 {
            return Some(head.trailing_zeros() as usize);
        }
        for step in 1..=words.len() {
            let word = words[(first + step) % words.len()];
            let word = if step == words.len() { word & ((1 << bit) - 1) } else { word };
            if word != 0 {
                return Some(step * 64 - bit + word.trailing_zeros() as usize);
            }
        }
        None
    }

    /// Spreads the bucket that begins at `tick` of each higher level over the levels below.
    fn cascade(&mut self, tick: u64) {
        for level in 1..LEVELS {
            let position = tick >> (8 * level as u32);
            let bucket = position as usize % BUCKETS;
            self.ask_for_block(self.buckets[level][bucket]);
            while self.buckets[level][bucket].len > 0 {
                let timer = self.pop_of_many(level, bucket);
                self.link_from(timer, self.node(timer).tick, tick);
            }
            if bucket != 0 {
                break;
            }
        }
    }

    /// The tick at which a deadline has passed for sure; never one that has fired already.
    fn tick_of(&self, deadline_us: u64) -> u32 {
        let tick = deadline_us.div_ceil(1 << TICK_SHIFT);
        let ahead = tick.saturating_sub(self.now).clamp(1, u64::from(FARTHEST));
        (self.now + ahead) as u32
    }

    /// Links a timer into the level that fits its distance from `now`: none when it is due at the tick being cascaded.
    fn link_from(&mut self, timer: u32, tick: u32, now: u64) {
        let ahead = tick.wrapping_sub(now as u32);
        let level = (31 - ahead.max(1).leading_zeros()) as usize / 8;
        let index = index_of(level, tick);
        let Bucket { mut len, mut block } = self.buckets[level][index];
        if len.is_multiple_of(ROOM) {
            let before = std::mem::replace(&mut block, self.take_block());
            self.blocks[block as usize].0[0] = (level as u32) << LINK_BITS | before;
            self.occupied[level][index / 64] |= 1 << (index % 64);
        }
        len += 1;
        let bucket = Bucket { len, block };
        self.put(timer, block * WORDS + bucket.in_block());
        self.node_mut(timer).tick = tick;
        self.buckets[level][index] = bucket;
        self.len += 1;
    }

    /// Takes a timer out of its bucket.
    fn unlink(&mut self, timer: u32) {
        let Node { place, tick } = self.node(timer);
        let level = self.blocks[(place / WORDS) as usize].level();
        let last = self.pop(level, index_of(level, tick));
        if last != timer {
            self.put(last, place);
            self.node_mut(timer).place = UNARMED;
        }
    }

    /// Takes out the last timer of a bucket, which has one.
    fn pop(&mut self, level: usize, index: usize) -> u32 {
        let bucket = &mut self.buckets[level][index];
        let (block, at) = (bucket.block, bucket.in_block());
        bucket.len -= 1;
        let timer = self.blocks[block as usize].0[at as usize];
        if at == 1 {
            // The block's only one.
            bucket.block = self.blocks[block as usize].link();
            if bucket.len == 0 {
                self.occupied[level][index / 64] &= !(1 << (index % 64));
            }
            self.blocks[block as usize].0[0] = self.free;
            self.free = block;
        }
        self.node_mut(timer).place = UNARMED;
        self.len -= 1;
        timer
    }

    /// The same where all of a bucket are taken: those that follow are asked for.
    fn pop_of_many(&mut self, level: usize, index: usize) -> u32 {
        let timer = self.pop(level, index);
        let bucket = self.buckets[level][index];
        if bucket.len.is_multiple_of(ROOM) {
            self.ask_for_block(bucket);
        }
        timer
    }

    /// Asks for the nodes of the timers in the block that is being filled, and for the block before it.
    fn ask_for_block(&self, bucket: Bucket) {
        if bucket.len > 0 {
            let block = &self.blocks[bucket.block as usize];
            prefetch(&self.blocks[block.link() as usize]);
            block.0[1..=bucket.in_block() as usize].iter().for_each(|&timer| self.ask_for(timer / 2));
        }
    }

    fn put(&mut self, timer: u32, place: u32) {
        self.blocks[(place / WORDS) as usize].0[(place % WORDS) as usize] = timer;
        self.node_mut(timer).place = place;
    }

    fn take_block(&mut self) -> u32 {
        if self.free == LINK {
            self.fresh += 1;
            return self.fresh - 1;
        }
        let block = self.free;
        self.free = self.blocks[block as usize].link();
        block
    }
}

/// The near timer of a slot, and the far one.
fn timers_of(slot: u32) -> [u32; 2] {
    [2 * slot, 2 * slot + 1]
}

/// Where in a level the bucket of a tick is.
fn index_of(level: usize, tick: u32) -> usize {
    (tick >> (8 * level as u32)) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl Wheel {
        /// Arms the slot for a deadline, in place of any earlier one.
        fn arm(&mut self, slot: u32, deadline_us: u64) {
            self.disarm(slot);
            self.arm_no_later(slot, deadline_us);
        }
    }

    fn drain(wheel: &mut Wheel, now_us: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(now_us, usize::MAX, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn fires_after_the_deadline_and_once() {
        let mut wheel = Wheel::new(4, 1_000_000);
        wheel.arm(2, 1_010_000);
        assert!(drain(&mut wheel, 1_009_900).is_empty());
        assert_eq!(drain(&mut wheel, 1_010_000 + TICK_US), [2]);
        assert!(drain(&mut wheel, 9_010_300).is_empty());
        assert_eq!(wheel.next_deadline_us(), None);
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_tick() {
        let mut wheel = Wheel::new(4, 1_000_000);
        wheel.arm(0, 5);
        assert!(wheel.next_deadline_us().unwrap() <= 1_000_000 + TICK_US);
        assert_eq!(drain(&mut wheel, 1_000_000 + TICK_US), [0]);
    }

    #[test]
    fn arm_no_later_keeps_the_earlier_one() {
        let mut wheel = Wheel::new(4, 0);
        wheel.arm(1, 50_000);
        wheel.arm_no_later(1, 90_000);
        assert_eq!(drain(&mut wheel, 60_000), [1]);
        wheel.arm(1, 190_000);
        wheel.arm_no_later(1, 70_000);
        assert_eq!(drain(&mut wheel, 80_000), [1]);
    }

    #[test]
    fn a_batch_limit_leaves_the_rest_for_the_next_call() {
        let mut wheel = Wheel::new(10, 0);
        (0..10).for_each(|slot| wheel.arm(slot, 1_000));
        let mut due = Vec::new();
        wheel.expire(2_000, 4, &mut due);
        assert_eq!(due.len(), 4);
        wheel.expire(2_000, 100, &mut due);
        due.sort_unstable();
        assert_eq!(due, (0..10).collect::<Vec<_>>());
    }

    /// Blocks go round: as many as there may be are never exceeded, whoever leaves a row and in whatever order.
    #[test]
    fn a_row_of_many_blocks_loses_any_of_its_slots() {
        const SLOTS: u32 = 200;
        let mut wheel = Wheel::new(SLOTS, 0);
        for round in 0..50 {
            let far = 10_000_000 + u64::from(round);
            (0..SLOTS).for_each(|slot| wheel.arm(slot, far));
            let leave = |slot: u32| (slot * 7 + round).is_multiple_of(3);
            (0..SLOTS).filter(|&slot| leave(slot)).for_each(|slot| wheel.disarm(slot));
            (0..SLOTS).filter(|&slot| leave(slot)).for_each(|slot| wheel.arm_no_later(slot, 5_000_000));
            assert!((0..SLOTS).all(|slot| wheel.is_armed(slot)) && wheel.len == SLOTS);
            assert!(wheel.fresh as usize <= SLOTS.div_ceil(ROOM) as usize + 2, "{} blocks", wheel.fresh);
        }
        let left: Vec<u32> = (0..SLOTS).filter(|slot| (slot * 7 + 49).is_multiple_of(3)).collect();
        assert_eq!(drain(&mut wheel, 5_001_000), left);
        assert_eq!(drain(&mut wheel, 11_000_000).len() + left.len(), SLOTS as usize);
    }

    /// A far deadline stays where it is while near ones come and go, and fires in its time; both can stand for every slot at once.
    #[test]
    fn a_far_deadline_stays_where_it_is() {
        const SLOTS: u32 = 100;
        let mut wheel = Wheel::new(SLOTS, 0);
        (0..SLOTS).for_each(|slot| wheel.arm_no_later(slot, 90_000_000));
        let places =
            |wheel: &Wheel| (0..SLOTS).map(|slot| wheel.node(2 * slot + 1).place).collect::<Vec<_>>();
        let before = places(&wheel);
        for turn in 1..=20 {
            let near = turn * 1_000_000;
            (0..SLOTS).for_each(|slot| wheel.arm_no_later(slot, near));
            assert_eq!((places(&wheel), wheel.len), (before.clone(), 2 * SLOTS));
            assert_eq!(drain(&mut wheel, near + TICK_US).len(), SLOTS as usize);
            (0..SLOTS).for_each(|slot| wheel.arm_no_later(slot, near + 100_000_000));
            assert_eq!(wheel.len, SLOTS, "the far one is early enough");
        }
        assert!(drain(&mut wheel, 89_999_999).is_empty());
        assert_eq!(drain(&mut wheel, 90_000_000 + TICK_US).len(), SLOTS as usize);
        assert!(wheel.is_empty());
        (0..SLOTS).for_each(|slot| wheel.arm_no_later(slot, 1 << 40));
        (0..SLOTS).for_each(|slot| wheel.arm_no_later(slot, 1_000_000_000));
        (0..SLOTS).for_each(|slot| wheel.disarm(slot));
        assert!(wheel.is_empty() && (0..SLOTS).all(|slot| !wheel.is_armed(slot)));
    }

    proptest! {
        /// Against a sorted map of all deadlines that were ever asked for, each of which its owner asks for again when an earlier
        /// one has fired: nothing early, nothing late, nothing lost, across all levels and long pauses; the
        /// announced next look never lies after the earliest deadline.
        #[test]
        fn agrees_with_a_sorted_map(
            start in 0u64..1 << 40,
            // Many in few buckets: rows of several blocks.
            ops in prop::collection::vec((0u32..64, 0u8..4, 0u64..40, 0u32..40), 1..300),
        ) {
            let mut now = start;
            let mut wheel = Wheel::new(64, now);
            // By slot: the ticks of its deadlines, and these.
            let mut oracle: BTreeMap<u32, BTreeMap<u64, u64>> = BTreeMap::new();
            for (slot, op, ahead_bits, advance_bits) in ops {
                // Distances from microseconds to days, all magnitudes alike.
                let deadline = now + (1u64 << ahead_bits.min(38)) + u64::from(slot);
                match op {
                    0 | 1 => {
                        wheel.arm_no_later(slot, deadline);
                        let tick = deadline.div_ceil(TICK_US).max((now >> TICK_SHIFT) + 1);
                        let of_tick = oracle.entry(slot).or_default().entry(tick).or_insert(deadline);
                        *of_tick = deadline.min(*of_tick);
                    }
                    2 => { wheel.disarm(slot); oracle.remove(&slot); }
                    _ => {
                        now += 1u64 << advance_bits.min(34);
                        let mut due = Vec::new();
                        wheel.expire(now, usize::MAX, &mut due);
                        due.sort_unstable();
                        due.dedup();
                        for slot in due {
                            let deadlines = oracle.get_mut(&slot).expect("it has deadlines");
                            let (_, &first) = deadlines.first_key_value().expect("one at least");
                            prop_assert!(first <= now, "early: {} at {}", first, now);
                            deadlines.retain(|&tick, _| tick > now >> TICK_SHIFT);
                            let Some((_, &next)) = deadlines.first_key_value() else { continue };
                            wheel.arm_no_later(slot, next);
                        }
                        oracle.retain(|_, deadlines| !deadlines.is_empty());
                        for (&slot, deadlines) in &oracle {
                            for &deadline in deadlines.values() {
                                prop_assert!(deadline + TICK_US > now, "slot {} late: {} at {}", slot, deadline, now);
                            }
                        }
                    }
                }
                prop_assert!((0..64).all(|slot| wheel.is_armed(slot) == oracle.contains_key(&slot)));
                let earliest = oracle.values().flat_map(BTreeMap::values).min();
                match (wheel.next_deadline_us(), earliest) {
                    (None, None) => {}
                    (Some(look), Some(&earliest)) => prop_assert!(look <= earliest.div_ceil(TICK_US).max((now >> TICK_SHIFT) + 1) * TICK_US),
                    (look, earliest) => prop_assert!(false, "{:?} against {:?}", look, earliest),
                }
            }
        }
    }
}
