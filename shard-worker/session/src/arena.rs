//! The shard's part of the shared region, carved into a header, marks, undo log, indices, slots and chunks. Plain data all of
//! it: what stands here survives the worker. The slots are the truth, the indices a hint (`walk`). Everything else that the
//! table has (wheel, free lists, ready list) is private memory and made anew from the slots.

use std::sync::atomic::AtomicU64;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::chunks::{CHUNK, Chunk, Chunks};
use crate::endpoints::PoolState;
use crate::index::{self, Index};
use crate::numbering::LastNumbers;
use crate::slot::Slot;
use crate::sys::LINE;
use crate::undo::{self, Image, Slots};

/// What stands once in an arena.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    /// [`FORMAT`] once the arena has been used; zero before.
    magic: u64,
    sessions: u32,
    chunks: u32,
    /// The session whose timers run or that emits: who died of it can be asked (`Table::last_at`).
    pub(crate) at: u32,
    /// Slots from here on were never handed out: a successor need not look at them, nor touch their memory.
    pub(crate) fresh: u32,
    /// The latest time the table has seen: time never goes back across a restart.
    pub(crate) clock_us: u64,
    /// The walks over the client ranges, IPv4 and IPv6.
    pub(crate) pools: [PoolState; 2],
    /// What targets may remember of four-tuples.
    pub(crate) last_numbers: LastNumbers,
}

impl Header {
    /// Bytes before the walks and the numbers.
    pub(crate) const FIRST: usize = std::mem::offset_of!(Header, pools);

    /// Whether an arena of this layout and these sizes begins here.
    pub(crate) const fn is_of(&self, format: u64, sessions: u32, chunks: u32) -> bool {
        self.magic == format && self.sessions == sessions && self.chunks == chunks
    }
}

/// Names the layout of header, slot and chunk; changes with any of them.
pub const FORMAT: u64 = 0x7477_696e_5f73_000a;

/// Single words that transactions have no part in.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct Marks {
    /// See [`Index::over`], one for each.
    holes: [AtomicU64; 2],
    /// Chunks from here on were never taken.
    fresh_chunks: AtomicU64,
}

/// Where the marks begin and end; the undo log begins behind them.
pub(crate) const MARKS: std::ops::Range<usize> =
    size_of::<Header>()..size_of::<Header>() + size_of::<Marks>();

/// The parts of an arena.
pub(crate) struct Arena {
    pub(crate) header: &'static mut Header,
    pub(crate) slots: Slots,
    /// Of flows, and of replayed endpoints.
    pub(crate) indices: [Index; 2],
    pub(crate) chunks: Chunks,
}

/// Bytes that the arena must have.
pub(crate) const fn bytes(sessions: u32, chunks: u32) -> u64 {
    (slots_at(sessions) + sessions as usize * size_of::<Slot>() + chunks as usize * CHUNK) as u64
}

/// Where the slots begin: with a cache line, as an arena does. The chunks stand behind them.
pub(crate) const fn slots_at(sessions: u32) -> usize {
    indices_end(sessions).next_multiple_of(LINE)
}

const fn indices_end(sessions: u32) -> usize {
    MARKS.end + undo::bytes(sessions) + 2 * index::words(sessions) * size_of::<AtomicU64>()
}

/// Bytes before the slots that mean nothing.
pub(crate) const fn gap(sessions: u32) -> usize {
    slots_at(sessions) - indices_end(sessions)
}

impl Arena {
    /// Carves the memory. What was written with another layout or other sizes is zeroed first.
    ///
    /// Panics when the arena is smaller than [`bytes`] or not aligned to eight: the caller made it.
    pub(crate) fn carve(memory: &'static mut [u8], sessions: u32, chunks: u32) -> Self {
        assert!(
            memory.len() as u64 >= bytes(sessions, chunks),
            "the arena is as large as Table::arena_bytes says"
        );
        let (header, _) = Header::ref_from_prefix(memory).expect("the arena is page aligned");
        let used = header.is_of(FORMAT, sessions, chunks);
        if !used && header.magic != 0 {
            memory.fill(0);
        }
        let (header, rest) = Header::mut_from_prefix(memory).expect("the arena is page aligned");
        (header.magic, header.sessions, header.chunks) = (FORMAT, sessions, chunks);
        let (marks, rest) = Marks::mut_from_prefix(rest).expect("the size was checked");
        let marks: &'static Marks = marks;
        let (log, rest) = undo::Head::mut_from_prefix(rest).expect("the size was checked");
        let images = undo::capacity(sessions) as usize;
        let (images, rest) =
            <[Image]>::mut_from_prefix_with_elems(rest, images).expect("the size was checked");
        let words = index::words(sessions);
        let (flows, rest) =
            <[AtomicU64]>::mut_from_prefix_with_elems(rest, words).expect("the size was checked");
        let (replayed, rest) =
            <[AtomicU64]>::mut_from_prefix_with_elems(rest, words).expect("the size was checked");
        let (_, rest) = rest.split_at_mut(gap(sessions));
        let (slots, rest) =
            <[Slot]>::mut_from_prefix_with_elems(rest, sessions as usize).expect("the size was checked");
        let (chunks, _) =
            <[Chunk]>::mut_from_prefix_with_elems(rest, chunks as usize).expect("the size was checked");
        let [of_flows, of_replayed] = &marks.holes;
        Self {
            header,
            slots: Slots::new(slots, log, images),
            indices: [Index::over(of_flows, flows), Index::over(of_replayed, replayed)],
            chunks: Chunks::new(chunks, &marks.fresh_chunks),
        }
    }
}
