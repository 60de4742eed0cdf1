//! A packet socket's transmit ring (`Documentation/networking/packet_mmap.rst`), for runs of small frames to one device.
//!
//! The kernel takes a run in one go, where `sendmmsg` gives way between any two messages to whoever is more important
//! (`cond_resched`): on a host that also runs the target, to the very server that the frame just woke. At 20,000 requests a second an
//! injector was put aside 13,000 times a second, each time for one request.
//!
//! Each slot is a state word and a frame. The kernel copies a frame whole while it takes it (`hdr_len` says so), so that no memory
//! of the ring is ever read by whoever receives it. What it has no slot for at the moment leaves by `sendmmsg`.
//!
//! Where the kernel goes on in the ring it tells nobody, and the ring outlives the process that it serves. So a successor asks: it
//! offers a frame of no length in each free slot; the kernel refuses the one it is at, and marks it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Destination, VNET, open_packet, set, set_int};

/// Slots of the ring: some bursts, so that a device which is slow to give them back still finds the next one's free.
const SLOTS: usize = 256;
/// Bytes of a slot, and of the whole.
const SLOT: usize = 2_048;
const BYTES: usize = SLOTS * SLOT;
/// Frames that the kernel takes in one go at most, for nobody else has this core meanwhile: some 0.1 ms where the target is on this
/// host too. Larger runs save nothing more.
const AT_ONCE: usize = 16;
/// A block is contiguous memory of the kernel's.
const BLOCK: usize = 64 << 10;
/// `tpacket2_hdr` of linux/if_packet.h, behind which a frame begins; in it, the state and the frame's length.
const HEAD: usize = 32;
const STATE_AT: usize = 0;
const LEN_AT: usize = 4;
/// `hdr_len` in the `virtio_net_hdr` that a frame begins with.
const VNET_HDR_LEN: usize = 2;
/// The longest frame, with what stands before it.
pub(crate) const MOST: usize = SLOT - HEAD;
/// `TPACKET_V2` of linux/if_packet.h.
const V2: libc::c_int = libc::tpacket_versions::TPACKET_V2 as libc::c_int;

/// States of a slot.
const AVAILABLE: u32 = libc::TP_STATUS_AVAILABLE;
const WANTED: u32 = libc::TP_STATUS_SEND_REQUEST;
const REFUSED: u32 = libc::TP_STATUS_WRONG_FORMAT;

/// Opens a packet socket with a transmit ring: see [`open_packet`].
pub(crate) fn open_ring() -> io::Result<OwnedFd> {
    let fd = open_packet()?;
    set_int(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, V2)?;
    let ring = libc::tpacket_req {
        tp_block_size: BLOCK as u32,
        tp_block_nr: (BYTES / BLOCK) as u32,
        tp_frame_size: SLOT as u32,
        tp_frame_nr: SLOTS as u32,
    };
    set(&fd, libc::SOL_PACKET, libc::PACKET_TX_RING, &ring)?;
    Ok(fd)
}

/// The ring of such a socket, mapped.
pub(crate) struct TxRing {
    socket: OwnedFd,
    memory: NonNull<u8>,
    /// The slot that the kernel looks at next.
    next: Option<usize>,
}

// SAFETY: the memory is of this value alone in this process; whoever holds it may use it from any thread.
unsafe impl Send for TxRing {}

impl TxRing {
    /// Maps the ring of a socket as [`open_ring`] makes them; fails for any other.
    pub(crate) fn map(socket: OwnedFd) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is open. The kernel refuses a length that is not
        // the ring's.
        let at =
            unsafe { libc::mmap(ptr::null_mut(), BYTES, access, libc::MAP_SHARED, socket.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { socket, memory, next: None })
    }

    /// Hands frames to the kernel, each in two parts, at most [`MOST`] bytes together; how many it took, or why it refused the first.
    /// None, when there is no room for now. Never blocks.
    pub(crate) fn send<'f>(
        &mut self,
        to: &Destination,
        frames: impl Iterator<Item = [&'f [u8]; 2]>,
    ) -> io::Result<usize> {
        let Some(first) = self.next.or_else(|| self.ask(to)) else { return Ok(0) };
        let mut filled = 0;
        for frame in frames.take(AT_ONCE) {
            let at = (first + filled) % SLOTS;
            if self.state(at).load(Ordering::Acquire) != AVAILABLE {
                break;
            }
            self.fill(at, frame);
            filled += 1;
        }
        if filled == 0 {
            return Ok(0);
        }
        let done = self.kick(to);
        let slots = || (0..filled).map(|k| (first + k) % SLOTS);
        let is_left = |at: usize| matches!(self.state(at).load(Ordering::Acquire), WANTED | REFUSED);
        let taken = slots().position(is_left).unwrap_or(filled);
        for at in slots().skip(taken) {
            self.state(at).store(AVAILABLE, Ordering::Release);
        }
        // It took none and has nothing against the first: it is not there.
        self.next = (taken > 0 || done.is_err()).then_some((first + taken) % SLOTS);
        match done {
            Err(error) if taken == 0 && error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Where the kernel is in the ring; unknown when it does not look into it, as with a device that is down.
    fn ask(&mut self, to: &Destination) -> Option<usize> {
        let mut ours = [false; SLOTS];
        for (at, ours) in ours.iter_mut().enumerate() {
            *ours = self.is_ours(at);
            if *ours {
                self.fill(at, [&[], &[]]);
            }
        }
        // It refuses.
        let _ = self.kick(to);
        let next = (0..SLOTS).find(|at| self.state(*at).load(Ordering::Acquire) == REFUSED);
        for at in (0..SLOTS).filter(|at| ours[*at]) {
            self.state(at).store(AVAILABLE, Ordering::Release);
        }
        next
    }

    /// Whether the kernel is done with a slot: a predecessor may have been killed before it said that it had filled it.
    fn is_ours(&self, at: usize) -> bool {
        matches!(self.state(at).load(Ordering::Acquire), AVAILABLE | WANTED | REFUSED)
    }

    /// Has the kernel send what is wanted, from where it is on.
    fn kick(&self, to: &Destination) -> io::Result<()> {
        let (name, len) = to.name();
        // SAFETY: nothing is read but the name, which `to` holds for the call. The descriptor is open.
        let sent = unsafe {
            libc::sendto(self.socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, name.cast(), len)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn slot(&self, at: usize) -> NonNull<u8> {
        assert!(at < SLOTS, "there are no more slots");
        // SAFETY: within the mapping, by the check.
        unsafe { self.memory.add(at * SLOT) }
    }

    fn state(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the mapping lives as long as `self`, the word is aligned (slots are pages' parts) and inside its slot, and the
        // kernel and we change it as one word only.
        unsafe { self.slot(at).add(STATE_AT).cast::<AtomicU32>().as_ref() }
    }

    /// Writes a frame into a slot that is ours, and says that it is wanted.
    fn fill(&mut self, at: usize, [head, payload]: [&[u8]; 2]) {
        let len = head.len() + payload.len();
        assert!(len <= MOST, "a frame of {len} bytes is longer than a slot");
        let slot = self.slot(at);
        // SAFETY: all within the slot, by the check and by the sizes of HEAD and VNET, at places that are aligned for what is written
        // (HEAD is a multiple of 8). The kernel does not read a slot before its state says that it is wanted, and nobody else has this
        // memory mapped: the run has one injector.
        unsafe {
            slot.add(LEN_AT).cast::<u32>().write(len as u32);
            slot.add(HEAD).copy_from_nonoverlapping(NonNull::from(head).cast(), head.len());
            slot.add(HEAD + head.len())
                .copy_from_nonoverlapping(NonNull::from(payload).cast(), payload.len());
            slot.add(HEAD + VNET_HDR_LEN).cast::<u16>().write(len.saturating_sub(VNET) as u16);
        }
        self.state(at).store(WANTED, Ordering::Release);
    }
}

impl Drop for TxRing {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, which nothing uses any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests;
