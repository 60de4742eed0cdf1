//! A hierarchical timer wheel over slots: one deadline a slot, the slot number is the timer's name. Private memory,
//! rebuilt from the slots after a restart.
//!
//! Four levels of 256 buckets at a tick of 256 µs reach 12 days. A bucket is a row of slot numbers in blocks of a cache line each;
//! a slot knows its place there, and when it leaves, the last of the row takes it. Some 12 bytes a slot, no allocation
//! after `new`. With lists through the slots instead, whoever left met two neighbours that nobody had met for long, and a
//! timer was found only through the one that fired before it: with many sessions a miss each.
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
/// Words of a block: a link, and slots.
const WORDS: u32 = 16;
const ROOM: u32 = WORDS - 1;
/// Bits of a link that are a block's number; the level stands above them. A wheel of 2^30 slots has a fifteenth as many blocks.
const LINK_BITS: u32 = 30;
const LINK: u32 = (1 << LINK_BITS) - 1;

/// All zeros when not armed: memory that nobody has touched yet.
#[derive(Clone, Copy, FromZeros)]
struct Node {
    /// Where the slot stands, counted in words of all blocks; [`UNARMED`] when it is not armed.
    place: u32,
    /// Tick of the deadline, low 32 bits.
    tick: u32,
}

/// A link, and slots. It leads to the block of the bucket that was filled before this one, or from one free block to another.
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

/// The slots of one span of time.
#[derive(Clone, Copy)]
struct Bucket {
    len: u32,
    /// The block that is being filled; means nothing when there are no slots.
    block: u32,
}

impl Bucket {
    /// Slots in the block that is being filled.
    fn in_block(self) -> u32 {
        (self.len - 1) % ROOM + 1
    }
}

/// The wheel.
pub struct Wheel {
    nodes: Box<[Node]>,
    /// As many as the slots fill, and one for each bucket, which may leave one unfilled.
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
        let nodes = Node::new_vec_zeroed(slots as usize).expect("memory for a wheel");
        let blocks = slots.div_ceil(ROOM) as usize + LEVELS * BUCKETS;
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

    /// How many slots are armed.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the slot is armed.
    pub fn is_armed(&self, slot: u32) -> bool {
        self.nodes[slot as usize].place != UNARMED
    }

    /// Asks for the node of a slot.
    pub(crate) fn ask_for(&self, slot: u32) {
        prefetch(&self.nodes[slot as usize]);
    }

    /// Asks for where the slot stands: once its node is here.
    pub(crate) fn ask_for_place(&self, slot: u32) {
        prefetch(&self.blocks[(self.nodes[slot as usize].place / WORDS) as usize]);
    }

    /// Arms the slot for a deadline, in place of any earlier one.
    pub fn arm(&mut self, slot: u32, deadline_us: u64) {
        let tick = self.tick_of(deadline_us);
        if self.is_armed(slot) {
            if self.nodes[slot as usize].tick == tick {
                return;
            }
            self.unlink(slot);
        }
        self.link(slot, tick);
    }

    /// Arms the slot for a deadline, but leaves an arm that fires no later in place: what most packets do, since their
    /// deadlines only move away. The slot then fires early and its owner arms it again.
    pub fn arm_no_later(&mut self, slot: u32, deadline_us: u64) {
        let tick = self.tick_of(deadline_us);
        if self.is_armed(slot) {
            if tick.wrapping_sub(self.nodes[slot as usize].tick) as i32 >= 0 {
                return;
            }
            self.unlink(slot);
        }
        self.link(slot, tick);
    }

    /// Disarms the slot; nothing happens when it is not armed.
    pub fn disarm(&mut self, slot: u32) {
        if self.is_armed(slot) {
            self.unlink(slot);
        }
    }

    /// Moves the wheel to `now_us` and appends the slots that became due, at most until `due` holds `max`; they are
    /// disarmed. When `max` was reached the rest comes with the next call.
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
                due.push(self.pop_of_many(0, bucket));
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
                let slot = self.pop_of_many(level, bucket);
                self.link_from(slot, self.nodes[slot as usize].tick, tick);
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

    fn link(&mut self, slot: u32, tick: u32) {
        self.link_from(slot, tick, self.now);
    }

    /// Links a slot into the level that fits its distance from `now`: none when it is due at the tick being cascaded.
    fn link_from(&mut self, slot: u32, tick: u32, now: u64) {
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
        self.put(slot, block * WORDS + bucket.in_block());
        self.nodes[slot as usize].tick = tick;
        self.buckets[level][index] = bucket;
        self.len += 1;
    }

    /// Takes a slot out of its bucket.
    fn unlink(&mut self, slot: u32) {
        let Node { place, tick } = self.nodes[slot as usize];
        let level = self.blocks[(place / WORDS) as usize].level();
        let last = self.pop(level, index_of(level, tick));
        if last != slot {
            self.put(last, place);
            self.nodes[slot as usize].place = UNARMED;
        }
    }

    /// Takes out the last slot of a bucket, which has one.
    fn pop(&mut self, level: usize, index: usize) -> u32 {
        let bucket = &mut self.buckets[level][index];
        let (block, at) = (bucket.block, bucket.in_block());
        bucket.len -= 1;
        let slot = self.blocks[block as usize].0[at as usize];
        if at == 1 {
            // The block's only one.
            bucket.block = self.blocks[block as usize].link();
            if bucket.len == 0 {
                self.occupied[level][index / 64] &= !(1 << (index % 64));
            }
            self.blocks[block as usize].0[0] = self.free;
            self.free = block;
        }
        self.nodes[slot as usize].place = UNARMED;
        self.len -= 1;
        slot
    }

    /// The same where all of a bucket are taken: those that follow are asked for.
    fn pop_of_many(&mut self, level: usize, index: usize) -> u32 {
        let slot = self.pop(level, index);
        let bucket = self.buckets[level][index];
        if bucket.len.is_multiple_of(ROOM) {
            self.ask_for_block(bucket);
        }
        slot
    }

    /// Asks for the nodes of the slots in the block that is being filled, and for the block before it.
    fn ask_for_block(&self, bucket: Bucket) {
        if bucket.len > 0 {
            let block = &self.blocks[bucket.block as usize];
            prefetch(&self.blocks[block.link() as usize]);
            block.0[1..=bucket.in_block() as usize].iter().for_each(|&slot| self.ask_for(slot));
        }
    }

    fn put(&mut self, slot: u32, place: u32) {
        self.blocks[(place / WORDS) as usize].0[(place % WORDS) as usize] = slot;
        self.nodes[slot as usize].place = place;
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

/// Where in a level the bucket of a tick is.
fn index_of(level: usize, tick: u32) -> usize {
    (tick >> (8 * level as u32)) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

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
            assert!((0..SLOTS).all(|slot| wheel.is_armed(slot)) && wheel.len() == SLOTS);
            assert!(wheel.fresh as usize <= SLOTS.div_ceil(ROOM) as usize + 2, "{} blocks", wheel.fresh);
        }
        let left: Vec<u32> = (0..SLOTS).filter(|slot| (slot * 7 + 49).is_multiple_of(3)).collect();
        assert_eq!(drain(&mut wheel, 5_001_000), left);
        assert_eq!(drain(&mut wheel, 11_000_000).len() + left.len(), SLOTS as usize);
    }

    proptest! {
        /// Against a sorted map: nothing early, nothing late, nothing lost, across all levels and long pauses; the
        /// announced next look never lies after the earliest deadline.
        #[test]
        fn agrees_with_a_sorted_map(
            start in 0u64..1 << 40,
            // Many in few buckets: rows of several blocks.
            ops in prop::collection::vec((0u32..64, 0u8..4, 0u64..40, 0u32..40), 1..300),
        ) {
            let mut now = start;
            let mut wheel = Wheel::new(64, now);
            let mut oracle: BTreeMap<u32, u64> = BTreeMap::new();
            for (slot, op, ahead_bits, advance_bits) in ops {
                // Distances from microseconds to days, all magnitudes alike.
                let deadline = now + (1u64 << ahead_bits.min(38)) + u64::from(slot);
                match op {
                    0 => { wheel.arm(slot, deadline); oracle.insert(slot, deadline); }
                    1 => {
                        wheel.arm_no_later(slot, deadline);
                        let tick = |us: u64| us.div_ceil(TICK_US);
                        let kept = oracle.get(&slot).copied().filter(|&d| tick(d).max((now >> TICK_SHIFT) + 1) <= tick(deadline));
                        oracle.insert(slot, kept.unwrap_or(deadline));
                    }
                    2 => { wheel.disarm(slot); oracle.remove(&slot); }
                    _ => {
                        now += 1u64 << advance_bits.min(34);
                        let mut due = Vec::new();
                        wheel.expire(now, usize::MAX, &mut due);
                        for slot in due {
                            let deadline = oracle.remove(&slot).expect("fired once");
                            prop_assert!(deadline <= now, "early: {} at {}", deadline, now);
                        }
                        for (&slot, &deadline) in &oracle {
                            prop_assert!(deadline + TICK_US > now, "slot {} late: {} at {}", slot, deadline, now);
                        }
                    }
                }
                prop_assert_eq!(wheel.len() as usize, oracle.len());
                match (wheel.next_deadline_us(), oracle.values().min()) {
                    (None, None) => {}
                    (Some(look), Some(&earliest)) => prop_assert!(look <= earliest.div_ceil(TICK_US).max((now >> TICK_SHIFT) + 1) * TICK_US),
                    (look, earliest) => prop_assert!(false, "{:?} against {:?}", look, earliest),
                }
            }
        }
    }
}
