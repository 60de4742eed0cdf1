//! Puts records on the wire, each by the engine that its target has at this moment, and cuts what is too large for it.
//!
//! | engine | socket | headers | larger than a segment |
//! |---|---|---|---|
//! | link | packet sockets, past the queueing discipline: small frames in a row by a transmit ring, the rest by `sendmmsg` | link layer, IP and TCP, checksum left to the device | whole, where the device cuts it |
//! | pcap | a handle of libpcap for each device ([`crate::pcap`]), one call a frame | link layer, IP and TCP | cut here |
//! | raw | a raw IP socket of each family; the kernel routes | IP and TCP | cut here, as a raw socket takes no more than the MTU |
//!
//! A target is sent to by link (or pcap, where that is asked for) when its way is known ([`crate::ways`]) and the kernel's guard stands on the device
//! ([`crate::fence`]); both may change between two batches, and what cannot go so goes by raw IP, which is counted.
//!
//! Nothing here is fatal. A message that the kernel refuses is counted under its errno and skipped, the rest of the burst
//! goes on. Where the kernel merely has no room (`EAGAIN`, `ENOBUFS`) it is asked again a few times, then the message is
//! given up: the shard retransmits. When nothing at all gets through, each further burst waits a little longer, so that an
//! outage never becomes a busy loop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use flow::emit::{MAX_HEADERS, emit, emit_partial};
use flow::record::{flag, inject_bit};
use flow::{Endpoint, TcpFields, emit_udp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtrb::Consumer;
use shm::{ANY_DEVICE, Control, GUARDED_DEVICES};
use topology::Plan;
use topology::plan::{InjectEngine, Protocol};

use crate::count::Count;
use crate::cut::{Pieces, SuperFrames, segment_len};
use crate::guard::Outgoing;
use crate::limit::Limit;
use crate::open::{Lane, Sockets};
use crate::pcap::Pcap;
use crate::sys::{BURST, Burst, Destination, MAX_HEAD, Scratch, TxRing, VNET};
use crate::tally::Tally;
use crate::way::{Choice, Way};
use crate::ways::{self, Change};

/// What puts records on the wire.
pub trait Engine {
    /// Sends every record of the batch, in order, and counts what became of it. Returns when the kernel has taken or
    /// refused the last one; waits some milliseconds at most.
    fn send<'p>(&mut self, batch: impl Iterator<Item = Outgoing<'p>>, tally: &mut Tally);

    /// Looks at what decides about the engines, and counts targets that change theirs. Called before each batch, and each beat.
    fn look(&mut self, _tally: &mut Tally) {}

    /// By which engine each target is sent to; none when that was told before.
    fn news(&mut self) -> Option<impl Iterator<Item = Choice>> {
        None::<std::iter::Empty<Choice>>
    }
}

/// The engines link, pcap and raw.
pub struct Sender {
    sockets: Sockets,
    /// For the link engine.
    ring: Option<TxRing>,
    paths: Vec<Path>,
    outside: Outside,
    /// Where libpcap is wanted.
    pcap: Option<Pcap>,
    scratch: Scratch,
    /// What to count when the kernel has taken a message.
    sent: Box<[Sent; BURST]>,
    ip_id: u16,
    /// Identification of the datagrams that leave in fragments, of IPv6 too.
    datagram_id: u32,
    pacer: Pacer,
    /// Super-frames given up in a row.
    refused: u32,
    told: bool,
    limit: Option<Limit>,
}

/// What decides about the engines, from outside this thread.
enum Outside {
    /// Raw IP alone, and why.
    Raw(Choice),
    /// Ways change, and so do the devices that are guarded.
    Link {
        /// From the thread that hears of them.
        changes: Consumer<Change>,
        /// Where the supervisor tells.
        control: &'static Control,
        /// What it said last.
        guarded: [u32; GUARDED_DEVICES],
    },
}

/// How one target is sent to.
struct Path {
    way: Result<Way, Choice>,
    to: Destination,
    choice: Choice,
}

/// One message's share in the counters.
#[derive(Clone, Copy, Default)]
struct Sent {
    bytes: u32,
    payload: u32,
    segments: u16,
    flags: u16,
    again: bool,
    detour: bool,
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
/// Super-frames given up in a row after which all are cut, until the ways change: the device takes none, whatever it says.
const REFUSALS: u32 = 4;

impl Sender {
    /// Raw IP alone. `ip_id` is where the IPv4 identification starts.
    pub fn raw(sockets: Sockets, ip_id: u16) -> Self {
        Self::new(sockets, ip_id, 0, Outside::Raw(Choice::RawAsked))
    }

    /// The engines of a plan, as far as the control words allow them; starts the thread that hears of the ways. `ip_id` is where
    /// the IPv4 identification starts.
    pub fn open(plan: &Plan, mut sockets: Sockets, control: &'static Control, ip_id: u16) -> Self {
        let outside = outside(plan, sockets.ways.take(), control);
        let mut sender = Self::new(sockets, ip_id, plan.targets.len(), outside);
        sender.pcap = (plan.inject == InjectEngine::Pcap).then(Pcap::new);
        sender
    }

    /// Takes the sockets over, for so many targets.
    fn new(mut sockets: Sockets, ip_id: u16, targets: usize, outside: Outside) -> Self {
        let ring = sockets.ring.take().and_then(|socket| {
            let slower = |error: &io::Error| {
                tracing::info!("mapping the packet ring failed ({error}): frames leave by sendmmsg alone");
            };
            TxRing::map(socket).inspect_err(slower).ok()
        });
        let why = match outside {
            Outside::Raw(why) => why,
            Outside::Link { .. } => Choice::Unknown,
        };
        let path = || Path { way: Err(why), to: Destination::link(0, 0), choice: why };
        Self {
            sockets,
            ring,
            paths: (0..targets).map(|_| path()).collect(),
            outside,
            pcap: None,
            scratch: Scratch::new(),
            sent: Box::new([Sent::default(); BURST]),
            ip_id,
            datagram_id: shm::monotonic_ns() as u32,
            pacer: Pacer::default(),
            refused: 0,
            told: false,
            limit: None,
        }
    }

    /// Keeps to these rates from now on: whoever sends waits where it must.
    pub(crate) fn keep_to(&mut self, limit: Limit) {
        self.limit = Some(limit);
    }
}

impl Engine for Sender {
    fn send<'p>(&mut self, batch: impl Iterator<Item = Outgoing<'p>>, tally: &mut Tally) {
        let Self {
            sockets, ring, paths, pcap, scratch, sent, ip_id, datagram_id, pacer, refused, limit, ..
        } = self;
        let most_bytes = limit.as_ref().map_or(u16::MAX, Limit::most_bytes);
        let most_segments = limit.as_ref().map_or(u16::MAX, Limit::most_segments);
        let cut_all = *refused >= REFUSALS;
        let burst = scratch.burst();
        let mut post = Post {
            burst,
            sent,
            lane: None,
            socket: None,
            ring,
            retries: RETRIES,
            pacer,
            refused,
            tally,
            limit,
        };
        for out in batch {
            let v4 = out.target.endpoint.addr.is_v4();
            let path = paths.get(usize::from(out.head.target));
            let again = out.head.bits & inject_bit::AGAIN != 0;
            let (client, target) = (out.head.client, out.target.endpoint);
            if out.target.protocol == Protocol::Udp {
                *datagram_id = datagram_id.wrapping_add(1);
                post.switch_to(if v4 { Lane::V4 } else { Lane::V6 }, sockets);
                post.datagram(&out, *datagram_id);
                continue;
            }
            if let Some(pcap) = pcap.as_mut()
                && let Some(way) =
                    path.filter(|path| path.choice == Choice::Pcap).and_then(|path| path.way.ok())
            {
                for (tcp, payload) in Pieces::new(&out.head, out.payload, way.mtu.min(most_bytes), v4) {
                    if !post.admit(tcp.flags) {
                        return;
                    }
                    *ip_id = ip_id.wrapping_add(1);
                    let done = pcap.send(&way, client, target, &tcp, payload, *ip_id);
                    post.tally.add(Count::Calls, 1);
                    match done {
                        Ok(bytes) => {
                            let sent = Sent { again, ..Sent::of(bytes, payload, tcp.flags) };
                            post.spend(&sent);
                            post.has_left();
                            sent.count(post.tally);
                        }
                        Err(error) => {
                            post.tally.add(Count::of_errno(error.raw_os_error().unwrap_or(0)), 1);
                            post.tally.add(Count::Dropped, 1);
                        }
                    }
                }
                continue;
            }
            let by_link = path.filter(|path| path.choice == Choice::Link);
            let wanted = match by_link {
                Some(_) => Lane::Link,
                None if v4 => Lane::V4,
                None => Lane::V6,
            };
            post.switch_to(wanted, sockets);
            if post.socket.is_none() {
                post.tally.add(Count::WrongFamily, 1);
                continue;
            }
            if let Some((path, way)) = by_link.and_then(|path| Some((path, path.way.ok()?))) {
                let most = if cut_all { SuperFrames::default() } else { way.super_frames };
                let most = SuperFrames {
                    bytes: most.bytes.min(most_bytes),
                    segments: most.segments.min(most_segments),
                };
                let mtu = way.mtu.min(most_bytes);
                let segment = segment_len(&out.head, mtu, v4);
                for (tcp, payload) in Pieces::super_frames(&out.head, out.payload, mtu, v4, most) {
                    if !post.admit(tcp.flags) {
                        return;
                    }
                    let segments = payload.len().div_ceil(segment).max(1) as u16;
                    let mut headers = 0;
                    post.push(&path.to, payload, |head| {
                        let len = frame(head, &way, client, target, &tcp, payload.len(), segment, *ip_id);
                        headers = len - VNET - way.head().len();
                        let bytes = headers * usize::from(segments) + payload.len();
                        let sent = Sent { segments, again, ..Sent::of(bytes, payload, tcp.flags) };
                        (len, sent)
                    });
                    *ip_id = ip_id.wrapping_add(segments);
                }
                continue;
            }
            let detour = path.is_some_and(|path| path.choice != Choice::RawAsked);
            for (tcp, payload) in Pieces::new(&out.head, out.payload, out.target.mtu.min(most_bytes), v4) {
                if !post.admit(tcp.flags) {
                    return;
                }
                *ip_id = ip_id.wrapping_add(1);
                post.push(&out.target.to, payload, |head| {
                    let head: &mut [u8; MAX_HEADERS] =
                        (&mut head[..MAX_HEADERS]).try_into().expect("it is longer");
                    let len = emit(head, client, target, &tcp, &[payload], *ip_id);
                    (len, Sent { again, detour, ..Sent::of(len + payload.len(), payload, tcp.flags) })
                });
            }
        }
        post.flush();
    }

    fn look(&mut self, tally: &mut Tally) {
        let Outside::Link { changes, control, guarded } = &mut self.outside else { return };
        let mut changed = false;
        while let Ok(Change { target, way }) = changes.pop() {
            if let Some(path) = self.paths.get_mut(usize::from(target)) {
                path.way = way;
                path.to = way.map_or(path.to, |way| Destination::link(way.device, way.protocol));
                changed = true;
            }
        }
        let now = control.guarded();
        if now != *guarded {
            *guarded = now;
            changed = true;
        }
        if !changed {
            return;
        }
        self.refused = 0;
        for path in &mut self.paths {
            let mut choice = choose(&path.way, self.pcap.is_some() || self.sockets.link.is_some(), guarded);
            if let (Some(pcap), Choice::Link, Ok(way)) = (&mut self.pcap, choice, &path.way) {
                choice = if pcap.is_ready(way.device) { Choice::Pcap } else { Choice::NoPcap };
            }
            let known = path.choice != Choice::Unknown;
            tally.add(Count::Switches, u64::from(known && choice.engine() != path.choice.engine()));
            self.told &= choice == path.choice;
            path.choice = choice;
        }
    }

    fn news(&mut self) -> Option<impl Iterator<Item = Choice>> {
        let told = std::mem::replace(&mut self.told, true);
        (!told).then(|| self.paths.iter().map(|path| path.choice))
    }
}

/// What decides about the engines of a plan.
fn outside(plan: &Plan, told: Option<OwnedFd>, control: &'static Control) -> Outside {
    if plan.inject == InjectEngine::Raw {
        return Outside::Raw(Choice::RawAsked);
    }
    let Some(told) = told else { return Outside::Raw(Choice::NoNetlink) };
    match ways::listen(told, plan.targets.len()) {
        Ok(changes) => Outside::Link { changes, control, guarded: Default::default() },
        Err(error) => {
            tracing::warn!(
                "there is no thread to hear of the ways to the targets ({error}): everything leaves by raw IP"
            );
            Outside::Raw(Choice::NoNetlink)
        }
    }
}

/// By which engine a target is sent to, from all that decides about it.
pub(crate) fn choose(way: &Result<Way, Choice>, has_socket: bool, guarded: &[u32]) -> Choice {
    match way {
        _ if !has_socket => Choice::NoSocket,
        Err(why) => *why,
        Ok(way) if guarded.contains(&way.device) || guarded.contains(&ANY_DEVICE) => Choice::Link,
        Ok(_) => Choice::NoGuard,
    }
}

/// Writes what stands before the payload of a frame, and returns its length: what the device is to do (`virtio_net_hdr` of
/// linux/virtio_net.h, in the byte order of this host), the link-layer header, IP and TCP. The device finishes the checksum, and
/// cuts a payload longer than a segment.
#[expect(clippy::too_many_arguments, reason = "each is a part of the frame")]
fn frame(
    head: &mut [u8; MAX_HEAD],
    way: &Way,
    client: Endpoint,
    target: Endpoint,
    tcp: &TcpFields,
    payload_len: usize,
    segment: usize,
    ip_id: u16,
) -> usize {
    let link = way.head();
    let ip = VNET + link.len();
    let room: &mut [u8; MAX_HEADERS] =
        (&mut head[ip..ip + MAX_HEADERS]).try_into().expect("there is room for all headers");
    let len = emit_partial(room, client, target, tcp, payload_len, ip_id);
    let v4 = target.addr.is_v4();
    let tcp_at = link.len() + if v4 { IPV4 } else { IPV6 };
    let (kind, cut_to, header_len) = match payload_len > segment {
        true => (if v4 { GSO_TCPV4 } else { GSO_TCPV6 }, segment as u16, (link.len() + len) as u16),
        false => (GSO_NONE, 0, 0),
    };
    head[0] = NEEDS_CHECKSUM;
    head[1] = kind;
    for (at, value) in [(2, header_len), (4, cut_to), (6, tcp_at as u16), (8, CHECKSUM_IN_TCP)] {
        head[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    head[VNET..ip].copy_from_slice(link);
    ip + len
}

const IPV4: usize = 20;
const IPV6: usize = 40;
/// linux/virtio_net.h: flags, kinds of super-frames.
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Where in a TCP header the checksum stands.
const CHECKSUM_IN_TCP: u16 = 16;

/// A burst on its way to one socket.
struct Post<'s, 'p> {
    burst: Burst<'s, 'p>,
    sent: &'s mut [Sent; BURST],
    lane: Option<Lane>,
    socket: Option<&'p OwnedFd>,
    ring: &'s mut Option<TxRing>,
    retries: u32,
    pacer: &'s mut Pacer,
    refused: &'s mut u32,
    tally: &'s mut Tally,
    limit: &'s mut Option<Limit>,
}

impl<'p> Post<'_, 'p> {
    /// What is pushed from now on leaves by this socket.
    fn switch_to(&mut self, lane: Lane, sockets: &'p Sockets) {
        if self.lane != Some(lane) {
            self.flush();
            self.lane = Some(lane);
            self.socket = sockets.get(lane);
        }
    }

    /// Waits until one more message may leave; what was added before leaves meanwhile. False when the run is halted: nothing leaves
    /// any more.
    fn admit(&mut self, flags: u16) -> bool {
        let Some(limit) = self.limit.as_mut() else { return true };
        let syn = flags & flag::SYN != 0;
        let wait_ns = limit.wait_ns(shm::monotonic_ns(), syn);
        if wait_ns == 0 {
            return true;
        }
        self.flush();
        // What it says now is another: the burst may have been late.
        while let Some(limit) = self.limit.as_mut() {
            match limit.wait_ns(shm::monotonic_ns(), syn) {
                0 => return true,
                wait_ns if !limit.sleep(wait_ns) => return false,
                _ => {}
            }
        }
        true
    }

    fn spend(&mut self, sent: &Sent) {
        if let Some(limit) = self.limit {
            limit.spend(shm::monotonic_ns(), sent.segments, sent.bytes, sent.flags & flag::SYN != 0);
        }
    }

    fn has_left(&mut self) {
        if let Some(limit) = self.limit {
            limit.has_left(shm::monotonic_ns());
        }
    }

    /// Adds a datagram, in fragments where the path takes no more. Always by raw IP: the device's help with checksums and cutting
    /// is for segments.
    fn datagram(&mut self, out: &Outgoing<'p>, id: u32) {
        if self.socket.is_none() {
            return self.tally.add(Count::WrongFamily, 1);
        }
        let (from, to) = (out.head.client, out.target.endpoint);
        let mtu = out.target.mtu.min(self.limit.as_ref().map_or(u16::MAX, Limit::most_bytes));
        let mut pieces = emit_udp::Pieces::new(from, to, out.payload, mtu, id).peekable();
        while let Some(piece) = pieces.next() {
            if !self.admit(0) {
                return;
            }
            let datagram = match (piece.is_fragment(), pieces.peek()) {
                (false, _) => Datagram::Whole,
                (true, Some(_)) => Datagram::Part,
                (true, None) => Datagram::Last(out.payload.len() as u32),
            };
            self.push(&out.target.to, piece.payload, |head| {
                let head: &mut [u8; MAX_HEADERS] =
                    (&mut head[..MAX_HEADERS]).try_into().expect("it is longer");
                let len = piece.emit(head);
                (len, Sent { datagram, ..Sent::of(len + piece.payload.len(), piece.payload, 0) })
            });
        }
    }

    /// Adds a message; `write` fills what stands before the payload, and says its length and what to count.
    fn push(
        &mut self,
        to: &'p Destination,
        payload: &'p [u8],
        write: impl FnOnce(&mut [u8; MAX_HEAD]) -> (usize, Sent),
    ) {
        if !self.burst.has_room() {
            self.flush();
        }
        let sent = &mut self.sent[self.burst.len()];
        self.burst.push(to, payload, |head| {
            let (len, what) = write(head);
            *sent = what;
            len
        });
        let sent = *sent;
        self.spend(&sent);
    }

    /// Hands the burst to the kernel, to the last message, and empties it.
    fn flush(&mut self) {
        let Some(socket) = self.socket else { return self.burst.clear() };
        let (mut next, mut taken) = (0, 0);
        // Each turn takes a message, skips one, or uses up a retry; EINTR cannot come, the calls do not block.
        while next < self.burst.len() {
            self.tally.add(Count::Calls, 1);
            match self.burst.send(socket, self.ring.as_mut(), next) {
                Ok(n) => {
                    for one in &self.sent[next..next + n] {
                        one.count(self.tally);
                        if one.segments > 1 {
                            *self.refused = 0;
                        }
                    }
                    next += n;
                    taken += n;
                }
                Err(e) => {
                    let errno = e.raw_os_error().unwrap_or(0);
                    self.tally.add(Count::of_errno(errno), 1);
                    if matches!(errno, libc::EAGAIN | libc::ENOBUFS) && self.retries > 0 {
                        self.retries -= 1;
                        self.tally.add(Count::Retries, 1);
                        wait_for_room(socket, errno, RETRIES - self.retries);
                    } else {
                        let segments = self.sent[next].segments;
                        self.tally.add(Count::Dropped, u64::from(segments));
                        let refused = u64::from(self.sent[next].datagram != Datagram::No);
                        self.tally.add(Count::DatagramPacketsRefused, refused);
                        *self.refused += u32::from(segments > 1);
                        next += 1;
                    }
                }
            }
        }
        self.pacer.after(self.burst.len(), taken);
        if self.burst.len() > 0 {
            self.has_left();
        }
        self.burst.clear();
    }
}

impl Sent {
    fn of(bytes: usize, payload: &[u8], flags: u16) -> Self {
        Self { bytes: bytes as u32, payload: payload.len() as u32, segments: 1, flags, ..Self::default() }
    }

    fn count(&self, tally: &mut Tally) {
        let whole = match self.datagram {
            Datagram::No => return self.count_segments(tally),
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

    fn count_segments(&self, tally: &mut Tally) {
        let segments = u64::from(self.segments);
        tally.add(Count::Segments, segments);
        tally.add(Count::Bytes, u64::from(self.bytes));
        tally.add(Count::PayloadBytes, u64::from(self.payload));
        tally.add(Count::SuperFrames, u64::from(segments > 1));
        tally.add(Count::Detours, u64::from(self.detour));
        for (bit, count) in [(flag::SYN, Count::Syn), (flag::FIN, Count::Fin), (flag::RST, Count::Rst)] {
            tally.add(count, u64::from(self.flags & bit != 0));
        }
        tally.add(Count::Again, if self.again { segments } else { 0 });
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
