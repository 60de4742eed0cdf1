//! What makes a batch one step of a role, whatever kills it: a redo record of absolute values (ring cursors and counters)
//! beside the role's other blocks.
//!
//! | state | entered by | a successor |
//! |---|---|---|
//! | idle | [`Journal::done`] | has nothing to do here: cursors and counters are those of the last whole batch |
//! | committed | [`Journal::commit`] | stores all values again, in the order of the record, and says `done` |
//!
//! A role that dies leaves a prefix of its stores in memory, and its successor begins only after it is reaped. So nothing
//! has to be ordered for other processors that is not ordered anyway; only the compiler must not move a store over the
//! change of state, which a Release store alone does not forbid for the stores that follow it.
//!
//! Beside the record stands what the role is at ([`Item`]): one store an item, read by the supervisor when the role has
//! died of it, and what its successor shall leave out.

use std::sync::atomic::compiler_fence;

use crate::layout::{Link, Role};
use crate::region::Region;
use crate::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

/// Values that one record holds at most: every counter of a role and a cursor of each of the longest list of rings.
const ENTRIES: usize = crate::COUNTERS_PER_ROLE + crate::MAX_SHARDS as usize;

/// A value and where it belongs.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    word: AtomicU64,
    value: AtomicU64,
}

/// One role's record as it lies in the region.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Record {
    /// Entries of a committed record; 0 while idle.
    committed: AtomicU64,
    /// See [`Item`].
    at: AtomicU64,
    leave_out: AtomicU64,
    reserved: [AtomicU64; 5],
    entries: [Entry; ENTRIES],
}

/// A word that belongs to a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// One of its counters.
    Counter(usize),
    /// Up to where a ring that it writes is published.
    Tail(Link),
    /// Up to where a ring that it reads is released.
    Head(Link),
}

const TAIL: u64 = 1 << 32;
const HEAD: u64 = 2 << 32;

/// What a role is working on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Nothing that could be left out.
    Nothing,
    /// The record at this position of the shard's capture ring.
    Captured(u64),
    /// The record at this position of the shard's return ring.
    Returned(u64),
    /// Timers and sending: some session of the shard, which its table knows.
    Sessions,
    /// The session with this number in the shard's table.
    Session(u32),
}

const KIND_SHIFT: u32 = 56;

impl Item {
    #[inline]
    fn to_word(self) -> u64 {
        match self {
            Self::Nothing => 0,
            // Rings count bytes: 2^56 of them are two centuries of 10 MB/s.
            Self::Captured(position) => 1 << KIND_SHIFT | position,
            Self::Returned(position) => 2 << KIND_SHIFT | position,
            Self::Sessions => 4 << KIND_SHIFT,
            Self::Session(id) => 3 << KIND_SHIFT | u64::from(id),
        }
    }

    /// Any word is some item: what makes no sense is nothing.
    fn of_word(word: u64) -> Self {
        let rest = word & ((1 << KIND_SHIFT) - 1);
        match word >> KIND_SHIFT {
            1 => Self::Captured(rest),
            2 => Self::Returned(rest),
            4 => Self::Sessions,
            3 => u32::try_from(rest).map_or(Self::Nothing, Self::Session),
            _ => Self::Nothing,
        }
    }
}

impl Record {
    /// What the role is or was at.
    pub(crate) fn item(&self) -> Item {
        Item::of_word(self.at.load(Relaxed))
    }

    /// Tells a successor what to leave out.
    pub(crate) fn leave_out(&self, item: Item) {
        self.leave_out.store(item.to_word(), Relaxed);
    }
}

/// The writing end of a role's record.
#[derive(Debug)]
pub struct Journal {
    region: &'static Region,
    role: Role,
    record: &'static Record,
    len: usize,
    repeated: bool,
}

impl Journal {
    /// Over a role's record. What a predecessor had committed is stored again, and stays committed until
    /// [`Journal::done`]: whoever keeps more state than this first makes it agree.
    pub(crate) fn new(region: &'static Region, role: Role, record: &'static Record) -> Self {
        let len = record.committed.load(Acquire) as usize;
        // More than there can be was not written by a predecessor of ours.
        let len = if len <= ENTRIES { len } else { 0 };
        let journal = Self { region, role, record, len, repeated: len > 0 };
        journal.store_all();
        Self { len: 0, ..journal }
    }

    /// Whether a predecessor died with a committed record, whose values have been stored again.
    pub const fn repeated(&self) -> bool {
        self.repeated
    }

    /// Adds a value to the record that is being written. Panics when the record is full.
    #[inline]
    pub fn put(&mut self, word: Word, value: u64) {
        let code = match word {
            Word::Counter(index) => index as u64,
            Word::Tail(link) => TAIL | self.region.link_number(link) as u64,
            Word::Head(link) => HEAD | self.region.link_number(link) as u64,
        };
        let entry = &self.record.entries[self.len];
        entry.word.store(code, Relaxed);
        entry.value.store(value, Relaxed);
        self.len += 1;
    }

    /// The point of no return: from here on the batch has happened. Stores all values; outputs become visible, inputs are
    /// given back. Whoever has ring ends tells them afterwards.
    pub fn commit(&mut self) {
        compiler_fence(SeqCst);
        self.record.committed.store(self.len as u64, Release);
        compiler_fence(SeqCst);
        self.store_all();
        self.len = 0;
    }

    /// Ends the commit: nothing of the record is needed any more, and nothing is worked on.
    pub fn done(&mut self) {
        compiler_fence(SeqCst);
        self.record.committed.store(0, Release);
        compiler_fence(SeqCst);
        self.record.at.store(Item::Nothing.to_word(), Relaxed);
        self.repeated = false;
    }

    /// Says what is worked on from now on.
    #[inline]
    pub fn at(&self, item: Item) {
        self.record.at.store(item.to_word(), Relaxed);
        // Before the work itself.
        compiler_fence(SeqCst);
    }

    /// What the supervisor wants left out.
    pub fn left_out(&self) -> Item {
        Item::of_word(self.record.leave_out.load(Relaxed))
    }

    /// It was left out.
    pub fn has_left_out(&self) {
        self.record.leave_out.store(0, Relaxed);
    }

    fn store_all(&self) {
        for entry in self.record.entries.iter().take(self.len) {
            self.region.store_word(self.role, entry.word.load(Relaxed), entry.value.load(Relaxed));
        }
    }
}

impl Region {
    /// Stores a value of a role's record where it belongs. A word that is none of the role's is passed over.
    fn store_word(&self, role: Role, word: u64, value: u64) {
        let index = word as u32 as usize;
        match word & !u64::from(u32::MAX) {
            0 => {
                if let Some(counter) = self.block(role).get(index) {
                    counter.store(value, Relaxed);
                }
            }
            TAIL => {
                if let Some(link) = self.link_of_number(index).filter(|link| writes(role, *link)) {
                    // Release: pairs with the Acquire in the consumer's `refresh`.
                    self.indices(link).tail.store(value, Release);
                }
            }
            HEAD => {
                if let Some(link) = self.link_of_number(index).filter(|link| reads(role, *link)) {
                    // Release: pairs with the Acquire in the producer's `refresh`.
                    self.indices(link).head.store(value, Release);
                }
            }
            _ => {}
        }
    }
}

const fn writes(role: Role, link: Link) -> bool {
    match (role, link) {
        (Role::Capturer, Link::Capture(_)) | (Role::Receiver, Link::Returns(_)) => true,
        (Role::Shard(shard), Link::Inject(of)) => shard == of,
        _ => false,
    }
}

const fn reads(role: Role, link: Link) -> bool {
    match (role, link) {
        (Role::Injector, Link::Inject(_)) => true,
        (Role::Shard(shard), Link::Capture(of) | Link::Returns(of)) => shard == of,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Spec;

    struct Scene {
        name: String,
        region: &'static Region,
    }

    impl Scene {
        fn new(tag: &str) -> Self {
            let name = format!("journal-{tag}-{}", std::process::id());
            let spec =
                Spec { shards: 2, capture_ring: 4096, inject_ring: 4096, return_ring: 4096, arena: 4096 };
            Self { region: Region::create(&name, &spec, b"{}", 1).unwrap(), name }
        }

        /// As another process sees it.
        fn successor(&self) -> &'static Region {
            Region::attach(&self.name).unwrap()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            Region::remove(&self.name).unwrap();
        }
    }

    const SHARD: Role = Role::Shard(1);

    #[test]
    fn a_commit_stores_everything_and_a_successor_stores_it_again() {
        let scene = Scene::new("again");
        let (mut ring, mut journal) = (scene.region.producer(Link::Inject(1)), scene.region.journal(SHARD));
        assert!(ring.push(b"an answer"));
        journal.put(Word::Counter(3), 33);
        journal.put(Word::Tail(Link::Inject(1)), ring.staged());
        journal.put(Word::Head(Link::Capture(1)), 640);
        assert_eq!(scene.region.read_counter(SHARD, 3), 0, "not before the commit");
        journal.commit();
        assert_eq!((scene.region.read_counter(SHARD, 3), scene.region.link_depth(Link::Inject(1))), (33, 64));
        // The role died inside: some of it is undone here, and stored again by the next.
        scene.region.counters(SHARD).set(3, 0);
        scene.region.indices(Link::Inject(1)).tail.store(0, Relaxed);
        let region = scene.successor();
        let mut journal = region.journal(SHARD);
        assert!(journal.repeated());
        assert_eq!((region.read_counter(SHARD, 3), region.link_depth(Link::Inject(1))), (33, 64));
        assert_eq!(region.consumer(Link::Inject(1)).next(), Some(&b"an answer"[..]));
        journal.done();
        assert!(!scene.successor().journal(SHARD).repeated());
    }

    #[test]
    fn a_record_that_was_not_committed_changes_nothing() {
        let scene = Scene::new("open");
        scene.region.journal(SHARD).put(Word::Counter(0), 1);
        let region = scene.successor();
        assert!(!region.journal(SHARD).repeated());
        assert_eq!(region.read_counter(SHARD, 0), 0);
    }

    #[test]
    fn what_is_not_the_roles_own_is_passed_over() {
        let scene = Scene::new("foreign");
        let mut journal = scene.region.journal(SHARD);
        journal.put(Word::Tail(Link::Capture(1)), 64);
        journal.put(Word::Head(Link::Inject(1)), 64);
        journal.put(Word::Tail(Link::Inject(0)), 64);
        journal.put(Word::Counter(u32::MAX as usize), 64);
        journal.commit();
        for link in [Link::Capture(1), Link::Inject(1), Link::Inject(0)] {
            let indices = scene.region.indices(link);
            assert_eq!((indices.tail.load(Relaxed), indices.head.load(Relaxed)), (0, 0), "{link:?}");
        }
        let record = scene.region.record(SHARD);
        record.committed.store(u64::MAX, Relaxed);
        record.entries[0].word.store(u64::MAX, Relaxed);
        assert!(!scene.successor().journal(SHARD).repeated(), "no record is as long as that");
    }

    #[test]
    fn an_item_is_named_in_one_word() {
        let scene = Scene::new("item");
        let journal = scene.region.journal(SHARD);
        for item in [
            Item::Captured(1 << 50),
            Item::Returned(64),
            Item::Sessions,
            Item::Session(u32::MAX),
            Item::Nothing,
        ] {
            journal.at(item);
            assert_eq!(scene.region.item(SHARD), item);
            scene.region.leave_out(SHARD, item);
            assert_eq!(journal.left_out(), item);
        }
        assert_eq!(Item::of_word(u64::MAX), Item::Nothing);
        assert_eq!(Item::of_word(3 << KIND_SHIFT | 1 << 40), Item::Nothing);
    }
}
