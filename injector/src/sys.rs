//! The system calls that no safe wrapper offers: a raw socket that takes whole IPv6 packets, a packet socket that takes
//! super-frames, `sendmmsg` over prepared arrays, adoption of an inherited descriptor. Every `unsafe` of this crate stands
//! here.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::ptr;

use flow::emit::MAX_HEADERS;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, getsockopt, setsockopt,
    socket, sockopt,
};

use crate::way::ETHERNET;

mod tx_ring;

pub(crate) use tx_ring::{TxRing, open_ring};

/// Messages of one `sendmmsg` at most: enough for a whole 64 KiB super-frame at MSS 1,448, and small enough that
/// headers and vectors (16 KiB) stay in the first-level cache.
pub(crate) const BURST: usize = 64;

/// Opens a raw socket that takes packets from the IP header on. Never blocks, closed on exec.
pub(crate) fn open_raw(v4: bool) -> io::Result<OwnedFd> {
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd =
        socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, SockProtocol::Raw)?;
    // IPPROTO_RAW implies IP_HDRINCL for IPv4 (raw(7)); IPv6 must be told (ipv6(7), Linux 4.5).
    if !v4 {
        set_int(&fd, libc::IPPROTO_IPV6, IPV6_HDRINCL, 1)?;
    }
    hear_nothing(&fd)?;
    Ok(fd)
}

/// `IPV6_HDRINCL` of <linux/in6.h>.
const IPV6_HDRINCL: libc::c_int = 36;

/// Opens a packet socket that takes frames from the link-layer header on, each behind a header that says what is left to do
/// for the device (packet(7): PACKET_VNET_HDR, which needs SOCK_RAW). It receives nothing. Never blocks, closed on exec.
pub(crate) fn open_packet() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    set_int(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    // Straight to the driver; the kernel's egress hook stands before it all the same.
    set_int(&fd, libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1)?;
    setsockopt(&fd, sockopt::Mark, &MARK)?;
    hear_nothing(&fd)?;
    Ok(fd)
}

/// Lets nothing in by a socket that is for sending alone, for good: whoever gets hold of it cannot listen by it. A filter that takes
/// nothing, and its lock (SO_LOCK_FILTER of socket(7)).
pub(crate) fn hear_nothing(fd: &OwnedFd) -> io::Result<()> {
    // `ret #0`.
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: ptr::from_mut(&mut nothing) };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set_int(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// Mark of the frames that leave by our packet socket, by which the kernel's guard knows them whatever their source. They meet
/// no rule of routing on the way, which a mark could lead astray.
pub(crate) const MARK: u32 = u32::from_be_bytes(*b"twin");
/// linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;

/// Raises the send buffer; past the system's limit where we may. Returns what the kernel granted, bytes.
pub(crate) fn raise_send_buffer(fd: &OwnedFd, bytes: usize) -> usize {
    if setsockopt(fd, sockopt::SndBufForce, &bytes).is_err() {
        // Without CAP_NET_ADMIN the system's limit (net.core.wmem_max) cuts it; a smaller buffer is no error.
        let _ = setsockopt(fd, sockopt::SndBuf, &bytes);
    }
    getsockopt(fd, sockopt::SndBuf).unwrap_or(0)
}

fn set_int(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set(fd, level, name, &value)
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` lives through the call, with what it points to (a filter's one instruction), and its size is the one given;
    // the kernel only reads it. The descriptor is open (borrowed).
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a descriptor that was inherited by number, if it passes the check.
pub(crate) fn adopt(
    number: RawFd,
    check: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD touches no memory; an unused number is answered with EBADF.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just seen to be open, and used only within this function, where nothing closes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    check(borrowed)?;
    // SAFETY: the number is open, and by the contract of the role's command line it is handed to this process to own;
    // nothing else in the process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a descriptor is a raw socket of that family.
pub(crate) fn check_raw(fd: BorrowedFd<'_>, v4: bool) -> io::Result<()> {
    let family = nix::sys::socket::getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family();
    let wanted = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    if getsockopt(&fd, sockopt::SockType)? != SockType::Raw || family != Some(wanted) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a raw socket of that family"));
    }
    Ok(())
}

/// Whether a descriptor is a packet socket as [`open_packet`] and [`open_ring`] make them.
pub(crate) fn check_packet(fd: BorrowedFd<'_>) -> io::Result<()> {
    let family = nix::sys::socket::getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family();
    let is_ours = getsockopt(&fd, sockopt::SockType)? == SockType::Raw
        && family == Some(AddressFamily::Packet)
        && get_int(fd, libc::SOL_PACKET, PACKET_VNET_HDR)? == 1;
    if is_ours { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not our packet socket")) }
}

/// Whether a device cuts TCP super-frames itself (ethtool's `tcp-segmentation-offload`); no, where it does not say.
pub(crate) fn segments_tcp(device: &str) -> bool {
    ethtool_value(device, ETHTOOL_GTSO).is_ok_and(|value| value != 0)
}

/// Whether a device's received segments are joined to super-frames (ethtool's `generic-receive-offload`).
pub(crate) fn joins_received(device: &str) -> bool {
    ethtool_value(device, ETHTOOL_GGRO).is_ok_and(|value| value != 0)
}

/// One of the settings that ethtool's older commands read.
fn ethtool_value(device: &str, command: u32) -> io::Result<u32> {
    // Any socket will do.
    let any = UnixDatagram::unbound()?;
    let mut value = [command, 0u32];
    // SAFETY: an all-zero ifreq is valid: it holds bytes, numbers and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads the request and, for these commands, reads and writes one `ethtool_value` behind its pointer:
    // two 32-bit words, which live through the call. The socket is open.
    let done = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value[1]) }
}

/// linux/ethtool.h.
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GGRO: u32 = 0x2b;

/// MTU of the route of a connected socket, bytes (`IP_MTU` of ip(7), `IPV6_MTU` of ipv6(7)).
pub(crate) fn route_mtu(socket: &UdpSocket, v4: bool) -> io::Result<u16> {
    let (level, name) =
        if v4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mtu = get_int(socket.as_fd(), level, name)?;
    // Loopback and some tunnels say 65,536: one more than a length field holds.
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn get_int(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both out-pointers are valid for the sizes given, and the descriptor is open (borrowed).
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_mut(&mut value).cast(),
            ptr::from_mut(&mut len),
        )
    };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Name of a network device.
pub(crate) fn device_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok().map(|name| name.to_string_lossy().into_owned())
}

/// A destination in the form that the kernel wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination(Address);

#[derive(Clone, Copy, Debug)]
enum Address {
    Ip(SockaddrStorage),
    Link(libc::sockaddr_ll),
}

impl Destination {
    /// For raw sockets the port field is a protocol number and stays zero (raw(7)).
    pub(crate) fn new(to: SocketAddr) -> Self {
        let mut to = to;
        to.set_port(0);
        Self(Address::Ip(to.into()))
    }

    /// A device, for packet sockets: the frame itself says the rest.
    pub(crate) fn link(device: u32, protocol: u16) -> Self {
        // SAFETY: sockaddr_ll is plain data for which all zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = device.cast_signed();
        Self(Address::Link(address))
    }

    /// What [`Destination::link`] was told.
    fn device(&self) -> Option<(u32, u16)> {
        match &self.0 {
            Address::Ip(_) => None,
            Address::Link(link) => Some((link.sll_ifindex.cast_unsigned(), u16::from_be(link.sll_protocol))),
        }
    }

    /// As a message names it; valid as long as this value is.
    fn name(&self) -> (*mut libc::c_void, libc::socklen_t) {
        match &self.0 {
            Address::Ip(ip) => (ip.as_ptr().cast_mut().cast(), ip.len()),
            Address::Link(link) => {
                (ptr::from_ref(link).cast_mut().cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
            }
        }
    }
}

/// Room for what stands before the payload: what a device is to do, link-layer header, IP and TCP headers.
pub(crate) const MAX_HEAD: usize = VNET + ETHERNET + MAX_HEADERS;
/// Bytes of `virtio_net_hdr` (linux/virtio_net.h), which a packet socket takes before each frame.
pub(crate) const VNET: usize = 10;

/// Whether a frame is for the device to cut: `gso_type` of its `virtio_net_hdr`.
const fn is_super_frame(head: &[u8; MAX_HEAD]) -> bool {
    head[1] != 0
}

/// The prepared arrays of `sendmmsg`, made once.
pub(crate) struct Scratch {
    headers: Box<[[u8; MAX_HEAD]; BURST]>,
    vectors: Box<[[libc::iovec; 2]; BURST]>,
    messages: Box<[libc::mmsghdr; BURST]>,
    /// Of frames that a slot of a transmit ring holds, by what device and protocol they leave.
    small: Box<[Option<(u32, u16)>; BURST]>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        // SAFETY: iovec and mmsghdr are plain C structs of integers and pointers; all zeroes is a valid value of both.
        let (vectors, messages) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: Box::new([[0; MAX_HEAD]; BURST]),
            vectors: Box::new(vectors),
            messages: Box::new(messages),
            small: Box::new([None; BURST]),
        }
    }

    /// Starts an empty burst. Whatever an earlier one left behind is not looked at.
    pub(crate) fn burst<'p>(&mut self) -> Burst<'_, 'p> {
        Burst { scratch: self, len: 0, payload: PhantomData }
    }
}

/// Frames of one device in a row that make a call of their own worth it.
const WORTH_RING: usize = 2;

/// Messages being gathered for one `sendmmsg`. Payload is not copied: it must live as long as the burst (`'p`).
pub(crate) struct Burst<'s, 'p> {
    scratch: &'s mut Scratch,
    len: usize,
    payload: PhantomData<&'p [u8]>,
}

impl<'p> Burst<'_, 'p> {
    /// How many messages are waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether another message still fits.
    pub(crate) fn has_room(&self) -> bool {
        self.len < BURST
    }

    /// Forgets the messages.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds one message: `write` fills what stands before the payload and returns its length. Panics when there is no room.
    pub(crate) fn push(
        &mut self,
        to: &'p Destination,
        payload: &'p [u8],
        write: impl FnOnce(&mut [u8; MAX_HEAD]) -> usize,
    ) {
        let i = self.len;
        let header_len = write(&mut self.scratch.headers[i]).min(MAX_HEAD);
        self.scratch.vectors[i] = [
            libc::iovec { iov_base: ptr::null_mut(), iov_len: header_len },
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() },
        ];
        let message = &mut self.scratch.messages[i].msg_hdr;
        (message.msg_name, message.msg_namelen) = to.name();
        message.msg_iovlen = if payload.is_empty() { 1 } else { 2 };
        let fits = header_len + payload.len() <= tx_ring::MOST && !is_super_frame(&self.scratch.headers[i]);
        self.scratch.small[i] = if fits { to.device() } else { None };
        self.len += 1;
    }

    /// Hands the messages from `first` on to the kernel, by the ring where a run of them fits into one; how many of them it took (at
    /// least one), or why it refused the first. Never blocks.
    pub(crate) fn send(
        &mut self,
        fd: impl AsFd,
        ring: Option<&mut TxRing>,
        first: usize,
    ) -> io::Result<usize> {
        let Some(ring) = ring else { return self.send_messages(fd, first, self.len) };
        match self.run(first) {
            end if end >= first + WORTH_RING => match self.send_by_ring(ring, first, end)? {
                0 => self.send_messages(fd, first, end),
                taken => Ok(taken),
            },
            _ => {
                let next_run = (first + 1..self.len).find(|i| self.run(*i) >= i + WORTH_RING);
                self.send_messages(fd, first, next_run.unwrap_or(self.len))
            }
        }
    }

    /// Behind the last of the messages from `first` on that a ring may send in one go; `first` itself, where it is none.
    fn run(&self, first: usize) -> usize {
        let small = &self.scratch.small[first..self.len];
        let Some(Some(device)) = small.first() else { return first };
        first + small.iter().take_while(|one| **one == Some(*device)).count()
    }

    /// By a ring, those before `end`; none, where it has no room.
    fn send_by_ring(&self, ring: &mut TxRing, first: usize, end: usize) -> io::Result<usize> {
        let Some((device, protocol)) = self.scratch.small[first] else { return Ok(0) };
        let Scratch { headers, vectors, messages, .. } = &*self.scratch;
        let frames = (first..end).map(|i| {
            let [head, payload] = &vectors[i];
            let payload = match messages[i].msg_hdr.msg_iovlen {
                1 => &[][..],
                // SAFETY: `push` of this very burst wrote the vector, and the payload that it points to is borrowed for 'p, which outlives
                // the burst.
                _ => unsafe { std::slice::from_raw_parts(payload.iov_base.cast::<u8>(), payload.iov_len) },
            };
            [&headers[i][..head.iov_len], payload]
        });
        ring.send(&Destination::link(device, protocol), frames)
    }

    /// By `sendmmsg`, those before `end`.
    fn send_messages(&mut self, fd: impl AsFd, first: usize, end: usize) -> io::Result<usize> {
        if first >= end {
            return Ok(0);
        }
        let Scratch { headers, vectors, messages, .. } = &mut *self.scratch;
        // The pointers between the arrays are set only now, when nothing borrows them mutably any more.
        for i in first..end {
            vectors[i][0].iov_base = headers[i].as_mut_ptr().cast();
            messages[i].msg_hdr.msg_iov = vectors[i].as_mut_ptr();
        }
        let waiting = &mut messages[first..end];
        // SAFETY: each message in first..end was filled by `push` of this very burst: its name points to a Destination and
        // its second vector to payload, both borrowed for 'p, which outlives the burst; its first vector points to its
        // header, and the vectors to each other's array, all owned by the scratch that is borrowed here. The kernel only
        // reads through them and writes msg_len. Lengths are those of the slices.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_fd().as_raw_fd(),
                waiting.as_mut_ptr(),
                waiting.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}
