//! A receive ring shared with the kernel (AF_PACKET, TPACKET_V2): frames are visible the moment they arrive, read in place, and given
//! back in batches. Used by the capturer and, with small slots and its own filter, by intercept.
//!
//! Slots are fixed; the kernel fills them in order and drops frames when the next one is not free yet. What must hold: one
//! reader at a time, in order. The socket outlives its reader: a successor maps it again and goes on where the other stopped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::filter::Instruction;
use crate::source::Carries;
use crate::sys::{
    Begin, Bound, OFFLOAD_BYTES, PacketSocket, RingMemory, SLOT_ALIGNMENT, SLOT_OVERHEAD, Slot, SlotHeader,
};
use crate::vlan::behind_tag;

/// Blocks are what the kernel allocates in one piece; this is 256 pages, and a slot never crosses one.
const BLOCK_BYTES: u32 = 1 << 20;
const PAGE_BYTES: u32 = 4_096;
/// Of a second VLAN tag.
const TAG_BYTES: u32 = 4;

/// The form and sizes of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSpec {
    /// What the kernel's frames begin with; a reader is shown packets from the IP header on, whatever it is. In front of a
    /// link header the kernel writes what offloads made of the frame.
    begin: Begin,
    slot_bytes: u32,
    block_bytes: u32,
    blocks: u32,
    slots_per_block: u32,
}

impl RingSpec {
    /// Slots for packets of `packet_bytes` at most, as many as go into `ring_bytes` (at least one block). Sizes are rounded as
    /// the kernel wants them.
    pub fn for_packets(packet_bytes: u32, ring_bytes: u64) -> Self {
        Self::with_slots(packet_bytes.saturating_add(SLOT_OVERHEAD), ring_bytes)
    }

    /// Slots of `slot_bytes`, kernel's header included, as many as go into `ring_bytes` (at least one block).
    pub fn with_slots(slot_bytes: u32, ring_bytes: u64) -> Self {
        let slot_bytes = slot_bytes.clamp(SLOT_OVERHEAD + 16, BLOCK_BYTES).next_multiple_of(SLOT_ALIGNMENT);
        let wanted = u32::try_from(ring_bytes).unwrap_or(u32::MAX).min(BLOCK_BYTES);
        let smallest = slot_bytes.next_multiple_of(PAGE_BYTES);
        let block_bytes = wanted.next_multiple_of(PAGE_BYTES).clamp(smallest, BLOCK_BYTES);
        let blocks = u32::try_from(ring_bytes / u64::from(block_bytes)).unwrap_or(u32::MAX);
        // The kernel counts slots and bytes of the whole ring in 32 bits.
        let blocks = blocks.clamp(1, (i32::MAX as u32) / block_bytes);
        let slots_per_block = block_bytes / slot_bytes;
        Self { begin: Begin::Network, slot_bytes, block_bytes, blocks, slots_per_block }
    }

    /// The same, and it tells which packets are several datagrams ([`FrameMeta::carries`]).
    #[must_use]
    pub const fn telling_datagrams(self) -> Self {
        Self { begin: Begin::Link, ..self }
    }

    /// What the kernel's frames begin with.
    pub const fn begin(&self) -> Begin {
        self.begin
    }

    /// Bytes of one slot.
    pub const fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }

    /// The longest frame that a slot holds, counted as the socket delivers it: from its IP header (and a second VLAN tag, if any)
    /// on, or from the link header. Longer ones are cut.
    pub const fn packet_bytes(&self) -> u32 {
        match self.begin {
            Begin::Network => self.slot_bytes - SLOT_OVERHEAD,
            // The kernel aligns what is behind the link header, so that a link header takes of the room in front of it.
            Begin::Link => self.slot_bytes - SLOT_OVERHEAD - OFFLOAD_BYTES,
        }
    }

    /// How many slots.
    pub const fn slots(&self) -> u32 {
        self.blocks * self.slots_per_block
    }

    /// Memory of the ring, bytes.
    pub const fn bytes(&self) -> usize {
        self.blocks as usize * self.block_bytes as usize
    }

    pub(crate) const fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    pub(crate) const fn blocks(&self) -> u32 {
        self.blocks
    }

    const fn slot(&self, index: u32) -> Slot {
        let (block, within) = (index / self.slots_per_block, index % self.slots_per_block);
        Slot(block as usize * self.block_bytes as usize + (within * self.slot_bytes) as usize)
    }
}

/// A frame number and its slot, side by side: three divisions for every frame would cost more than reading its header.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    number: u64,
    index: u32,
    /// Slots before this one in its block.
    within: u32,
    slot: Slot,
}

impl Cursor {
    fn at(number: u64, spec: &RingSpec) -> Self {
        let index = (number % u64::from(spec.slots())) as u32;
        Self { number, index, within: index % spec.slots_per_block, slot: spec.slot(index) }
    }

    #[inline]
    fn step(&mut self, spec: &RingSpec) {
        self.number += 1;
        self.index += 1;
        self.within += 1;
        self.slot.0 += spec.slot_bytes as usize;
        if self.within == spec.slots_per_block {
            self.within = 0;
            // A block may end with room too small for a slot.
            self.slot.0 += (spec.block_bytes - spec.slots_per_block * spec.slot_bytes) as usize;
            if self.index == spec.slots() {
                self.index = 0;
                self.slot = Slot(0);
            }
        }
    }
}

/// What the kernel says about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// Length when it passed, from the IP header on.
    pub len: u32,
    /// Bytes captured, from the IP header on.
    pub snaplen: u32,
    /// When the kernel saw it, CLOCK_REALTIME nanoseconds.
    pub time_ns: u64,
    /// The outer VLAN tag (TCI). Neither it nor a second one is among the bytes.
    pub vlan: Option<u16>,
    /// The interface that it came through.
    pub interface: u32,
    /// EtherType of the packet, behind all tags.
    pub protocol: u16,
    /// To whom it was addressed (`PACKET_HOST`, ...).
    pub packet_type: u8,
    /// Of how many datagrams it is, in a ring that tells.
    pub carries: Carries,
    /// The slot's status word.
    status: u32,
}

impl FrameMeta {
    /// The transport's checksum is not filled in yet: the frame has not left a host.
    pub const fn checksum_unfilled(&self) -> bool {
        self.status & libc::TP_STATUS_CSUMNOTREADY != 0
    }

    /// Device or kernel have verified the transport's checksum.
    pub const fn checksum_valid(&self) -> bool {
        self.status & libc::TP_STATUS_CSUM_VALID != 0
    }

    /// Frames were dropped since the last look at the statistics.
    pub const fn losing(&self) -> bool {
        self.status & libc::TP_STATUS_LOSING != 0
    }

    fn new(header: &SlotHeader) -> Self {
        let tagged = header.status & libc::TP_STATUS_VLAN_VALID != 0;
        Self {
            len: header.len.saturating_sub(header.link_bytes()),
            snaplen: header.snaplen,
            time_ns: header.time_ns(),
            vlan: tagged.then_some(header.vlan_tci),
            interface: header.interface,
            protocol: header.protocol,
            packet_type: header.packet_type,
            carries: Carries::One,
            status: header.status,
        }
    }
}

/// What a socket hears beside the frames that come in for this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hearing {
    /// What other hosts get.
    pub promiscuous: bool,
    /// What this host sends.
    pub outgoing: bool,
}

/// Opens a packet socket with ring and filter in place, the filter for good, and then binds it: to an interface, or to all with 0. Nothing is mapped
/// yet; the descriptor may be handed to another process first.
pub fn open_socket(
    spec: &RingSpec,
    filter: &[Instruction],
    interface: u32,
    hearing: Hearing,
) -> io::Result<PacketSocket> {
    let socket = PacketSocket::open(spec.begin)?;
    socket.filter_for_good(filter)?;
    if spec.begin == Begin::Link {
        socket.tell_offload()?;
    }
    socket.set_ring(spec)?;
    if !hearing.outgoing {
        // The filter drops outgoing frames too; kernels before 4.20 do not know this option.
        let _ = socket.ignore_outgoing();
    }
    if hearing.promiscuous && interface != 0 {
        socket.promiscuous(interface)?;
    }
    socket.bind(interface)?;
    Ok(socket)
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first slot of a ring that nobody has read from.
    Fresh,
    /// At this frame number, where a predecessor stopped; searched if that is not where the frames are.
    At(u64),
    /// Wherever the frames are. With none there, at the first slot; then [`PacketRing::relocate`] finds them later.
    Unknown,
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct PacketRing {
    socket: PacketSocket,
    memory: RingMemory,
    spec: RingSpec,
    /// The next frame to read; its slot is its number modulo the number of slots.
    next: Cursor,
    /// The first frame not given back yet.
    kept: Cursor,
}

impl PacketRing {
    /// Maps the ring of a socket made by [`open_socket`] with the same spec.
    pub fn map(socket: PacketSocket, spec: RingSpec, start: Start) -> io::Result<Self> {
        let memory = RingMemory::map(&socket, spec)?;
        let number = if let Start::At(number) = start { number } else { 0 };
        let next = Cursor::at(number, &spec);
        let mut ring = Self { socket, memory, spec, next, kept: next };
        if let Start::At(_) = start {
            ring.give_back_predecessors();
        }
        if start != Start::Fresh {
            ring.relocate();
        }
        Ok(ring)
    }

    /// The oldest frame not read yet: what the kernel says of it, and its captured bytes from the IP header on.
    #[inline]
    pub fn peek(&self) -> Option<(FrameMeta, &[u8])> {
        // All slots are read and not given back: what stands in the next one was seen already.
        if self.next.number - self.kept.number == u64::from(self.spec.slots()) {
            return None;
        }
        let header = self.memory.header(self.next.slot)?;
        let (mut meta, mut bytes) = (FrameMeta::new(&header), self.memory.packet(self.next.slot, &header));
        if self.spec.begin == Begin::Link {
            meta.carries = Carries::told(self.memory.datagram_bytes(self.next.slot, &header));
        }
        if let Some(inner) = behind_tag(meta.protocol, meta.vlan.is_some(), meta.len, bytes) {
            bytes = bytes.get(TAG_BYTES as usize..).unwrap_or_default();
            meta.protocol = inner;
            meta.len = meta.len.saturating_sub(TAG_BYTES);
        }
        meta.snaplen = bytes.len() as u32;
        Some((meta, bytes))
    }

    /// When the oldest frame not read yet was seen, CLOCK_REALTIME nanoseconds.
    #[inline]
    pub fn peek_time_ns(&self) -> Option<u64> {
        if self.next.number - self.kept.number == u64::from(self.spec.slots()) {
            return None;
        }
        self.memory.header(self.next.slot).map(|header| header.time_ns())
    }

    /// Steps over the frame that [`PacketRing::peek`] showed. Its slot stays ours until [`PacketRing::release`].
    #[inline]
    pub fn advance(&mut self) {
        self.next.step(&self.spec);
    }

    /// Gives all slots read so far back to the kernel.
    pub fn release(&mut self) {
        while self.kept.number < self.next.number {
            self.memory.give_back(self.kept.slot);
            self.kept.step(&self.spec);
        }
    }

    /// The number of the next frame: how many were read since the ring was made.
    pub const fn position(&self) -> u64 {
        self.next.number
    }

    /// Frames that found no slot since the last call, by whomever. One system call.
    pub fn take_dropped(&mut self) -> io::Result<u64> {
        let (_, dropped) = self.socket.statistics()?;
        Ok(dropped.into())
    }

    /// Its sizes.
    pub const fn spec(&self) -> &RingSpec {
        &self.spec
    }

    /// The socket below: for its error and its interface.
    pub const fn socket(&self) -> &PacketSocket {
        &self.socket
    }

    /// Whether the socket's interface is gone. Such a socket never sees a frame again unless it is bound anew.
    pub fn interface_gone(&self) -> bool {
        matches!(self.socket.bound(), Ok(Bound::Gone))
    }

    /// Whether the kernel says that a frame waits: one system call, for when looking is not enough.
    pub fn readable(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) && fds[0].any().unwrap_or(false)
    }

    /// Searches the oldest frame when the next slot is empty although the kernel reports frames: for a reader that is told of frames
    /// but sees none. It is the first visible one whose predecessor is not visible; when all are visible, the earliest.
    pub fn relocate(&mut self) {
        let slots = self.spec.slots();
        let ours = |index: u32| self.memory.is_ours(self.spec.slot(index));
        let begins = |index: u32| ours(index) && !ours((index + slots - 1) % slots);
        let expected = self.next.index;
        // Looking through an empty ring would cost a cache miss for every slot, so ask first.
        if self.kept.number != self.next.number || begins(expected) || !self.readable() {
            return;
        }
        let earliest = || {
            let times = (0..slots).filter_map(|i| Some((time(&self.memory, self.spec.slot(i))?, i)));
            times.min().map(|(_, index)| index)
        };
        let Some(index) = (0..slots).find(|&index| begins(index)).or_else(earliest) else { return };
        // Numbers go on and never back: the next one that falls on this slot.
        let ahead = u64::from((index + slots - expected) % slots);
        self.next = Cursor::at(self.next.number + ahead, &self.spec);
        self.kept = self.next;
    }

    /// Gives back what a predecessor had read but not given back. Such slots lie before its position and are older than what lies
    /// at it; when the position itself is empty, everything visible right before it is such a slot.
    fn give_back_predecessors(&mut self) {
        let here = time(&self.memory, self.next.slot);
        for back in 1..=u64::from(self.spec.slots()).min(self.next.number) {
            let slot = Cursor::at(self.next.number - back, &self.spec).slot;
            match (time(&self.memory, slot), here) {
                (Some(then), Some(here)) if then > here => break,
                (Some(_), _) => self.memory.give_back(slot),
                (None, _) => break,
            }
        }
    }
}

/// When the frame of a slot was seen, if the slot is ours.
fn time(memory: &RingMemory, slot: Slot) -> Option<(u32, u32)> {
    memory.header(slot).map(|header| (header.sec, header.nsec))
}

impl AsFd for PacketRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_what_the_kernel_accepts() {
        for (packet, bytes) in [
            (1968, 64 << 20),
            (176, 1 << 20),
            (65_560, 32 << 20),
            (100, 0),
            (1968, 100_000),
            (u32::MAX, 1),
            (2_000, u64::MAX),
        ] {
            let spec = RingSpec::for_packets(packet, bytes);
            assert_eq!(spec.slot_bytes() % SLOT_ALIGNMENT, 0);
            assert_eq!(spec.block_bytes() % PAGE_BYTES, 0);
            assert!(spec.slots() >= 1 && spec.slot_bytes() <= spec.block_bytes());
            let last = spec.slot(spec.slots() - 1).0 + spec.slot_bytes() as usize;
            assert!(last <= spec.bytes() && i32::try_from(spec.bytes()).is_ok());
        }
    }

    #[test]
    fn a_cursor_walks_every_slot_and_starts_over() {
        for spec in [RingSpec::with_slots(2_048, 4 << 20), RingSpec::for_packets(65_540, 3 << 20)] {
            let mut cursor = Cursor::at(5, &spec);
            for number in 5..5 + 3 * u64::from(spec.slots()) {
                let fresh = Cursor::at(number, &spec);
                assert_eq!(
                    (cursor.number, cursor.index, cursor.within, cursor.slot),
                    (fresh.number, fresh.index, fresh.within, fresh.slot)
                );
                cursor.step(&spec);
            }
        }
    }

    #[test]
    fn the_usual_sizes() {
        let small = RingSpec::with_slots(2_048, 64 << 20);
        assert_eq!((small.slots(), small.packet_bytes()), (32_768, 1_968));
        let large = RingSpec::for_packets(65_536 + 4, 32 << 20);
        assert!(large.packet_bytes() >= 65_540);
        assert!(large.slots() >= 15 * 32);
    }
}
