//! Sends through raw IP sockets: the kernel routes, this cuts super-frames to segments and writes every header.
//!
//! Nothing here is fatal. A message that the kernel refuses is counted under its errno and skipped, the rest of the burst
//! goes on. Where the kernel merely has no room (`EAGAIN`, `ENOBUFS`) it is asked again a few times, then the message is
//! given up: the shard retransmits. When nothing at all gets through, each further burst waits a little longer, so that an
//! outage never becomes a busy loop.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use flow::emit::emit;
use flow::emit_udp;
use flow::record::{flag, inject_bit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::count::Count;
use crate::cut::Pieces;
use crate::guard::Outgoing;
use crate::open::Sockets;
use crate::sys::{BURST, Burst, Scratch};
use crate::tally::Tally;
use topology::plan::Protocol;

/// What puts records on the wire.
pub trait Engine {
    /// Sends every record of the batch, in order, and counts what became of it. Returns when the kernel has taken or
    /// refused the last one; waits some milliseconds at most.
    fn send<'p>(&mut self, batch: impl Iterator<Item = Outgoing<'p>>, tally: &mut Tally);
}

/// The raw IP engine.
pub struct RawEngine {
    sockets: Sockets,
    scratch: Scratch,
    /// What to count when the kernel has taken a message.
    sent: Box<[Sent; BURST]>,
    ip_id: u16,
    /// Identification of the datagrams that leave in fragments, IPv6's too.
    datagram_id: u32,
    pacer: Pacer,
}

/// One message's share in the counters.
#[derive(Clone, Copy, Default)]
struct Sent {
    bytes: u32,
    payload: u32,
    flags: u16,
    again: bool,
    datagram: Datagram,
}

/// Which part of a datagram a message is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Datagram {
    /// None: a segment.
    #[default]
    No,
    Whole,
    /// A fragment behind which others come.
    Part,
    /// The last one; the payload of all of them.
    Last(u32),
}

/// Times that one batch asks again when the kernel has no room.
const RETRIES: u32 = 8;

impl RawEngine {
    /// Takes the sockets over. `ip_id` is where the IPv4 identification starts.
    pub fn new(sockets: Sockets, ip_id: u16) -> Self {
        Self {
            sockets,
            scratch: Scratch::new(),
            sent: Box::new([Sent::default(); BURST]),
            ip_id,
            datagram_id: shm::monotonic_ns() as u32,
            pacer: Pacer::default(),
        }
    }
}

impl Engine for RawEngine {
    fn send<'p>(&mut self, batch: impl Iterator<Item = Outgoing<'p>>, tally: &mut Tally) {
        let Self { sockets, scratch, sent, ip_id, datagram_id, pacer } = self;
        let mut burst = scratch.burst();
        let mut retries = RETRIES;
        let mut socket: Option<&OwnedFd> = None;
        let mut family_v4 = None;
        for out in batch {
            let v4 = out.target.endpoint.addr.is_v4();
            if family_v4 != Some(v4) {
                flush(&mut burst, sent, socket, &mut retries, pacer, tally);
                family_v4 = Some(v4);
                socket = if v4 { sockets.v4.as_ref() } else { sockets.v6.as_ref() };
            }
            if socket.is_none() {
                tally.add(Count::WrongFamily, 1);
                continue;
            }
            if out.target.protocol == Protocol::Udp {
                *datagram_id = datagram_id.wrapping_add(1);
                let (from, to) = (out.head.client, out.target.endpoint);
                let mut pieces =
                    emit_udp::Pieces::new(from, to, out.payload, out.target.mtu, *datagram_id).peekable();
                while let Some(piece) = pieces.next() {
                    if !burst.has_room() {
                        flush(&mut burst, sent, socket, &mut retries, pacer, tally);
                    }
                    let at = burst.len();
                    let bytes = burst.push(&out.target.to, piece.payload, |header| piece.emit(header));
                    let datagram = match (piece.is_fragment(), pieces.peek()) {
                        (false, _) => Datagram::Whole,
                        (true, Some(_)) => Datagram::Part,
                        (true, None) => Datagram::Last(out.payload.len() as u32),
                    };
                    let payload = piece.payload.len() as u32;
                    sent[at] = Sent { bytes: bytes as u32, payload, datagram, ..Sent::default() };
                }
                continue;
            }
            for (tcp, payload) in Pieces::new(&out.head, out.payload, out.target.mtu, v4) {
                if !burst.has_room() {
                    flush(&mut burst, sent, socket, &mut retries, pacer, tally);
                }
                *ip_id = ip_id.wrapping_add(1);
                let at = burst.len();
                let bytes = burst.push(&out.target.to, payload, |header| {
                    emit(header, out.head.client, out.target.endpoint, &tcp, &[payload], *ip_id)
                });
                sent[at] = Sent {
                    bytes: bytes as u32,
                    payload: payload.len() as u32,
                    flags: tcp.flags,
                    again: out.head.bits & inject_bit::AGAIN != 0,
                    datagram: Datagram::No,
                };
            }
        }
        flush(&mut burst, sent, socket, &mut retries, pacer, tally);
    }
}

/// Hands the burst to the kernel, to the last message, and empties it.
fn flush(
    burst: &mut Burst<'_, '_>,
    sent: &[Sent; BURST],
    socket: Option<&OwnedFd>,
    retries: &mut u32,
    pacer: &mut Pacer,
    tally: &mut Tally,
) {
    let Some(socket) = socket else { return burst.clear() };
    let (mut next, mut taken) = (0, 0);
    // Each turn takes a message, skips one, or uses up a retry; EINTR cannot come, the calls do not block.
    while next < burst.len() {
        tally.add(Count::Calls, 1);
        match burst.send(socket, next) {
            Ok(n) => {
                for one in &sent[next..next + n] {
                    one.count(tally);
                }
                next += n;
                taken += n;
            }
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(0);
                tally.add(Count::of_errno(errno), 1);
                if matches!(errno, libc::EAGAIN | libc::ENOBUFS) && *retries > 0 {
                    *retries -= 1;
                    tally.add(Count::Retries, 1);
                    wait_for_room(socket, errno, RETRIES - *retries);
                } else {
                    tally.add(Count::Dropped, 1);
                    tally.add(Count::DatagramPacketsRefused, u64::from(sent[next].datagram != Datagram::No));
                    next += 1;
                }
            }
        }
    }
    pacer.after(burst.len(), taken);
    burst.clear();
}

impl Sent {
    fn count(&self, tally: &mut Tally) {
        let whole = match self.datagram {
            Datagram::No => return self.count_segment(tally),
            Datagram::Whole => Some(self.payload),
            Datagram::Part => None,
            Datagram::Last(payload) => Some(payload),
        };
        tally.add(Count::DatagramFragments, u64::from(self.datagram != Datagram::Whole));
        if let Some(payload) = whole {
            tally.add(Count::Datagrams, 1);
            tally.add(Count::DatagramBytes, u64::from(payload));
        }
    }

    fn count_segment(&self, tally: &mut Tally) {
        tally.add(Count::Segments, 1);
        tally.add(Count::Bytes, u64::from(self.bytes));
        tally.add(Count::PayloadBytes, u64::from(self.payload));
        for (bit, count) in [(flag::SYN, Count::Syn), (flag::FIN, Count::Fin), (flag::RST, Count::Rst)] {
            tally.add(count, u64::from(self.flags & bit != 0));
        }
        tally.add(Count::Again, u64::from(self.again));
    }
}

/// `EAGAIN` ends when the socket's buffer drains, which poll tells; `ENOBUFS` comes from the device's queue, which
/// nothing tells: 50 µs, then twice that, up to 1 ms.
fn wait_for_room(socket: &OwnedFd, errno: i32, attempt: u32) {
    if errno == libc::EAGAIN {
        // Whatever poll says, the next send tells better.
        let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(1u8));
    } else {
        std::thread::sleep(Duration::from_micros(50 << attempt.min(5)).min(Duration::from_millis(1)));
    }
}

/// Slows down while nothing gets through, so that a dead route costs system calls at a bounded rate.
#[derive(Debug, Default)]
struct Pacer {
    /// Bursts in a row of which the kernel took nothing.
    failed: u32,
}

impl Pacer {
    /// Longest pause, small against the rings: at 64 messages a burst it still lets 32,000 a second be refused.
    const LONGEST: Duration = Duration::from_millis(2);

    fn after(&mut self, offered: usize, taken: usize) {
        if offered == 0 {
            return;
        }
        if taken > 0 {
            self.failed = 0;
            return;
        }
        let pause = self.pause();
        self.failed = self.failed.saturating_add(1);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    /// None after a first failure, then 100 µs, doubling.
    fn pause(&self) -> Duration {
        match self.failed {
            0 => Duration::ZERO,
            n => Duration::from_micros(50 << n.min(10)).min(Self::LONGEST),
        }
    }
}

#[cfg(test)]
mod tests;
