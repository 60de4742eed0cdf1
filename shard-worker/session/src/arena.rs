//! The shard's part of the shared region, carved into a header, undo log, slots and chunks. Plain data all of it: what stands here
//! survives the worker. Everything else that the table has (indices, wheel, free lists, ready list) is private memory
//! and made anew from the slots.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::chunks::{CHUNK, Chunk, Chunks};
use crate::endpoints::PoolState;
use crate::numbering::LastNumbers;
use crate::slot::Slot;
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
pub const FORMAT: u64 = 0x7477_696e_5f73_0008;

/// The parts of an arena.
pub(crate) struct Arena {
    pub(crate) header: &'static mut Header,
    pub(crate) slots: Slots,
    pub(crate) chunks: Chunks,
    /// Whether slots may be in use already.
    pub(crate) used: bool,
}

/// Bytes that the arena must have.
pub(crate) const fn bytes(sessions: u32, chunks: u32) -> u64 {
    let slots = sessions as usize * size_of::<Slot>();
    (size_of::<Header>() + undo::bytes(sessions) + slots + chunks as usize * CHUNK) as u64
}

impl Arena {
    /// Carves the memory. What was written with another layout or other sizes is zeroed first. A transaction that a
    /// predecessor left open is undone, unless it was `committed`.
    ///
    /// Panics when the arena is smaller than [`bytes`] or not aligned to eight: the caller made it.
    pub(crate) fn carve(memory: &'static mut [u8], sessions: u32, chunks: u32, committed: bool) -> Self {
        assert!(
            memory.len() as u64 >= bytes(sessions, chunks),
            "the arena is as large as Table::arena_bytes says"
        );
        let (header, _) = Header::ref_from_prefix(memory).expect("the arena is page aligned");
        let used = header.magic == FORMAT && header.sessions == sessions && header.chunks == chunks;
        if !used && header.magic != 0 {
            memory.fill(0);
        }
        let (header, rest) = Header::mut_from_prefix(memory).expect("the arena is page aligned");
        (header.magic, header.sessions, header.chunks) = (FORMAT, sessions, chunks);
        let (log, rest) = undo::Head::mut_from_prefix(rest).expect("the size was checked");
        let images = undo::capacity(sessions) as usize;
        let (images, rest) =
            <[Image]>::mut_from_prefix_with_elems(rest, images).expect("the size was checked");
        let (slots, rest) =
            <[Slot]>::mut_from_prefix_with_elems(rest, sessions as usize).expect("the size was checked");
        let (chunks, _) =
            <[Chunk]>::mut_from_prefix_with_elems(rest, chunks as usize).expect("the size was checked");
        Self { header, slots: Slots::new(slots, log, images, committed), chunks: Chunks::new(chunks), used }
    }
}
