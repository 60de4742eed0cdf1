//! A hierarchical timer wheel over slots: one deadline a slot, the slot number is the timer's name. Private memory,
//! rebuilt from the slots after a restart.
//!
//! Four levels of 256 buckets at a tick of 256 µs reach 12 days; intrusive lists in arrays, 12 bytes a slot, no
//! allocation after `new`. A timer never fires early; it fires at most one tick late, plus the caller's own delay.

use zerocopy::FromZeros;

use crate::sys::prefetch;

/// Microseconds per tick, as a shift.
const TICK_SHIFT: u32 = 8;
#[cfg(test)]
const TICK_US: u64 = 1 << TICK_SHIFT;
const LEVELS: usize = 4;
const BUCKETS: usize = 256;
const NONE: u32 = u32::MAX;
const UNARMED: u32 = 0;
const HEADS: u32 = 1;
/// Deadlines further away than this many ticks are brought forward to it (about 6 days); they re-arm when they fire.
const FARTHEST: u32 = i32::MAX as u32;

/// All zeros when not armed: memory that nobody has touched yet.
#[derive(Clone, Copy, Default, FromZeros)]
struct Node {
    /// Next slot in the list, or `NONE`. Means nothing when not armed.
    next: u32,
    /// Two more than the previous slot in the list; [`HEADS`] at its head, [`UNARMED`] when the slot is not armed.
    prev: u32,
    /// Tick of the deadline, low 32 bits.
    tick: u32,
}

/// The wheel.
pub struct Wheel {
    nodes: Box<[Node]>,
    heads: Box<[[u32; BUCKETS]; LEVELS]>,
    occupied: [[u64; BUCKETS / 64]; LEVELS],
    /// Everything due at or before this tick has fired.
    now: u64,
    len: u32,
}

impl Wheel {
    /// For slots `0..slots`, none armed.
    pub fn new(slots: u32, now_us: u64) -> Self {
        let nodes = Node::new_vec_zeroed(slots as usize).expect("memory for a wheel");
        Self {
            nodes: nodes.into_boxed_slice(),
            heads: Box::new([[NONE; BUCKETS]; LEVELS]),
            occupied: [[0; BUCKETS / 64]; LEVELS],
            now: now_us >> TICK_SHIFT,
            len: 0,
        }
    }

    /// Memory that each slot takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.nodes)
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
        self.nodes[slot as usize].prev != UNARMED
    }

    /// Asks for the node of a slot.
    pub(crate) fn ask_for(&self, slot: u32) {
        prefetch(&self.nodes[slot as usize]);
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
            while self.heads[0][bucket] != NONE {
                if due.len() >= max {
                    return;
                }
                let slot = self.heads[0][bucket];
                self.unlink(slot);
                due.push(slot);
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
            let mut slot = self.heads[level][bucket];
            self.heads[level][bucket] = NONE;
            self.occupied[level][bucket / 64] &= !(1 << (bucket % 64));
            while slot != NONE {
                let Node { next, tick: deadline, .. } = self.nodes[slot as usize];
                self.len -= 1;
                self.nodes[slot as usize].prev = UNARMED;
                self.link_from(slot, deadline, tick);
                slot = next;
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
        let full = now + u64::from(ahead);
        let bucket = (full >> (8 * level as u32)) as usize % BUCKETS;
        let head = self.heads[level][bucket];
        self.nodes[slot as usize] = Node { next: head, prev: HEADS, tick };
        if head != NONE {
            self.nodes[head as usize].prev = slot + 2;
        }
        self.heads[level][bucket] = slot;
        self.occupied[level][bucket / 64] |= 1 << (bucket % 64);
        self.len += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Node { next, prev, .. } = self.nodes[slot as usize];
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        if prev != HEADS {
            self.nodes[prev as usize - 2].next = next;
        } else {
            let (level, bucket) = self.list_of(slot);
            self.heads[level][bucket] = next;
            if next == NONE {
                self.occupied[level][bucket / 64] &= !(1 << (bucket % 64));
            }
        }
        self.nodes[slot as usize] = Node::default();
        self.len -= 1;
    }

    /// Which list a slot heads. Only heads ask, so at most four candidates are compared.
    fn list_of(&self, slot: u32) -> (usize, usize) {
        let tick = self.nodes[slot as usize].tick;
        let full = self.now.wrapping_add(u64::from(tick.wrapping_sub(self.now as u32)));
        (0..LEVELS)
            .map(|level| (level, (full >> (8 * level as u32)) as usize % BUCKETS))
            .find(|&(level, bucket)| self.heads[level][bucket] == slot)
            .expect("an armed slot without predecessor heads the list of its tick")
    }
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

    proptest! {
        /// Against a sorted map: nothing early, nothing late, nothing lost, across all levels and long pauses; the
        /// announced next look never lies after the earliest deadline.
        #[test]
        fn agrees_with_a_sorted_map(
            start in 0u64..1 << 40,
            ops in prop::collection::vec((0u32..8, 0u8..4, 0u64..40, 0u32..40), 1..300),
        ) {
            let mut now = start;
            let mut wheel = Wheel::new(8, now);
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
