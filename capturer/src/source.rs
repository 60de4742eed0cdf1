//! Where frames come from. The live ring, the simple engine and files stand behind one trait, so that dispatch and everything after it
//! are the same for all.

use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;

use trace::link::ip_offset;

/// A captured packet.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The captured bytes, from the IP header on.
    pub packet: &'a [u8],
    /// Length of the packet on the wire, from the IP header on.
    pub wire_len: u32,
    /// When it was seen, CLOCK_REALTIME nanoseconds.
    pub time_ns: u64,
    /// Its transport checksum is not filled in yet.
    pub checksum_unfilled: bool,
    /// Of how many datagrams it is, if it is UDP.
    pub carries: Carries,
    /// It was seen before, at a device below this one.
    pub again: bool,
}

/// Of how many datagrams a packet is. One on every wire; but the kernel carries several of one flow in one packet when a sender
/// says so (UDP_SEGMENT) and the device is a virtual one, and when a receiver does (UDP_GRO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carries {
    /// One.
    #[default]
    One,
    /// Several, of so many payload bytes each, the last of what is left.
    Each(NonZeroU16),
    /// Several, and nobody says of how many bytes.
    Several,
}

impl Carries {
    /// What the kernel told of a packet: the payload bytes of each datagram of several.
    pub(crate) fn told(bytes: Option<u16>) -> Self {
        match bytes.map(NonZeroU16::new) {
            None => Self::One,
            Some(Some(each)) => Self::Each(each),
            Some(None) => Self::Several,
        }
    }

    /// What its length tells where the kernel does not: what is longer than its device sends came in several pieces.
    pub(crate) const fn guessed(wire_len: u32, mtu: u32) -> Self {
        if wire_len > mtu { Self::Several } else { Self::One }
    }
}

impl<'a> Frame<'a> {
    /// A packet of which nobody says more than its bytes.
    pub fn plain(packet: &'a [u8], wire_len: u32, time_ns: u64) -> Self {
        Self { packet, wire_len, time_ns, checksum_unfilled: false, carries: Carries::One, again: false }
    }

    /// The packet behind a link header; none where the frame carries no IP. `link` is a number of [`kind`](trace::link::kind),
    /// `mtu` the device's.
    pub(crate) fn behind(link: u16, frame: &'a [u8], wire_len: u32, time_ns: u64, mtu: u32) -> Option<Self> {
        let at = ip_offset(link, frame).ok()?;
        let wire_len = wire_len.saturating_sub(at as u32);
        let carries = Carries::guessed(wire_len, mtu);
        Some(Self { carries, ..Self::plain(&frame[at..], wire_len, time_ns) })
    }
}

/// How the interfaces are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// How often one went down.
    pub downs: u64,
    /// How many are down.
    pub down: u64,
    /// How many do not exist any more.
    pub gone: u64,
}

/// A source of captured packets.
pub trait Source {
    /// Hands over at most `max` packets, oldest first, and says how many frames it took. Their memory stays untouched until
    /// [`Source::release`].
    fn drain(&mut self, max: u32, sink: &mut dyn FnMut(&Frame<'_>)) -> u32;

    /// Gives back the memory of everything handed over.
    fn release(&mut self);

    /// The number of the next frame of each ring, for a successor to go on there. Called between `drain` and `release`.
    fn positions(&self, note: &mut dyn FnMut(u16, u64));

    /// What to wait for; readable when frames are there.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Whether there are frames that no wait reports: they are to be drained a little later.
    fn has_unawaited(&self) -> bool {
        false
    }

    /// Frames that the kernel dropped for want of room, since the last call. A system call for each socket.
    fn take_dropped(&mut self) -> u64;

    /// How many devices were opened since the last call, by engines whose buffer is their own; 0 for those whose sockets
    /// outlive the role.
    fn take_opened(&mut self) -> u64 {
        0
    }

    /// Looks after the interfaces: takes pending errors, notices those that are gone or back. Called when a wait reports an
    /// error, and once a second. Says what changed in the log.
    fn attend(&mut self) -> Links;

    /// Called when waits report frames and `drain` finds none, again and again.
    fn relocate(&mut self);

    /// Takes no more frames from the network; what the kernel holds can still be drained.
    fn close(&mut self);

    /// Takes frames again.
    fn reopen(&mut self);
}
