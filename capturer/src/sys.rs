//! Packet sockets: the system calls that no safe crate offers, and the memory that a ring shares with the kernel. The only
//! unsafe code of this crate; everything it returns is safe to use in any order.
//!
//! packet(7) and `Documentation/networking/packet_mmap.rst` of the kernel are the sources.
#![allow(unsafe_code)]

#[cfg(feature = "xdp")]
pub(crate) mod xdp;

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{sockaddr_ll, tpacket2_hdr};

use crate::filter::{Instruction, MAX_INSTRUCTIONS};
use crate::packet_ring::RingSpec;

/// Bytes in front of a packet in its slot: header, address, padding, for SOCK_DGRAM without reserve (`tpacket_rcv`).
pub(crate) const SLOT_OVERHEAD: u32 = (align(libc::TPACKET2_HDRLEN) + 16) as u32;
/// Bytes of the kernel's `struct virtio_net_hdr`, which stands in front of the link header where it was asked for.
pub(crate) const OFFLOAD_BYTES: u32 = 10;
/// What its second byte says of several datagrams in one packet (VIRTIO_NET_HDR_GSO_UDP_L4).
const GSO_UDP_L4: u8 = 5;
/// Where the size of the parts stands in it.
const GSO_SIZE_AT: usize = 4;
/// Slots are multiples of this.
pub(crate) const SLOT_ALIGNMENT: u32 = libc::TPACKET_ALIGNMENT as u32;
/// Where the address stands in a slot.
const ADDRESS_AT: usize = align(size_of::<tpacket2_hdr>());

const fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(libc::TPACKET_ALIGNMENT)
}

/// What the socket's frames begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The network header (SOCK_DGRAM).
    Network,
    /// The link header (SOCK_RAW).
    Link,
}

/// Where a packet socket listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// On all interfaces, or nowhere yet.
    Any,
    /// On this interface.
    Interface(u32),
    /// On one that does not exist any more.
    Gone,
}

/// A protocol of nobody, for local experiments (IEEE 802, and no filter of ours takes it): what a closed socket is bound to.
/// Protocol 0 would say "as before".
const NO_PROTOCOL: u16 = 0x88b6;

/// A packet socket.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl From<OwnedFd> for PacketSocket {
    /// One that another process opened.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<PacketSocket> for OwnedFd {
    fn from(socket: PacketSocket) -> Self {
        socket.fd
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PacketSocket {
    /// A non-blocking socket that sees nothing until it is bound, so that filter and ring are in place before the first frame.
    /// EPERM without CAP_NET_RAW.
    pub fn open(begin: Begin) -> io::Result<Self> {
        let kind = match begin {
            Begin::Network => libc::SOCK_DGRAM,
            Begin::Link => libc::SOCK_RAW,
        };
        // SAFETY: no pointers.
        let fd = check(unsafe {
            libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        })?;
        // SAFETY: `fd` was just opened and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Takes over a descriptor that was inherited by number, after a check that it is a packet socket.
    pub fn adopt(number: RawFd) -> io::Result<Self> {
        let (mut domain, mut len): (c_int, _) = (0, size_of::<c_int>() as libc::socklen_t);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_DOMAIN);
        // SAFETY: the kernel writes at most `len` bytes into the integer; any number may be asked about.
        check(unsafe { libc::getsockopt(number, level, name, (&raw mut domain).cast(), &raw mut len) })?;
        if domain != libc::AF_PACKET {
            return Err(io::Error::other("it is another kind of socket"));
        }
        // SAFETY: no pointers. Close-on-exec, like every descriptor that we open.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        // SAFETY: it is open (just asked), and was handed to this process as its own: the caller passes each number once.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(number) } })
    }

    /// Another descriptor of the same socket.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Sets the filter, for good: whoever holds the socket from here on can neither replace it nor take it away (EPERM).
    pub fn filter_for_good(&self, program: &[Instruction]) -> io::Result<()> {
        self.attach(program)?;
        self.lock_filter()
    }

    /// Leaves the filter as it is, for good (SO_LOCK_FILTER of socket(7)).
    pub fn lock_filter(&self) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1_i32)
    }

    /// Sets the filter, or replaces it.
    pub fn attach(&self, program: &[Instruction]) -> io::Result<()> {
        let filter: Vec<libc::sock_filter> =
            program.iter().map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        let len = u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
        // The kernel copies the instructions before the call returns, and writes none of them.
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Asks for frames in the ring form of version 2 and gives the ring its slots. ENOMEM when they are too many.
    pub fn set_ring(&self, spec: &RingSpec) -> io::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as c_int))?;
        let request = libc::tpacket_req {
            tp_block_size: spec.block_bytes(),
            tp_block_nr: spec.blocks(),
            tp_frame_size: spec.slot_bytes(),
            tp_frame_nr: spec.slots(),
        };
        self.set(libc::SOL_PACKET, libc::PACKET_RX_RING, &request)
    }

    /// Has the kernel say of each frame what offloads made of it. Before the ring; only where frames begin at the link header.
    pub fn tell_offload(&self) -> io::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)
    }

    /// Leaves out frames that this host sends (Linux 4.20; before that the filter does it, later and for more).
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)
    }

    /// Asks the interface for frames to other hosts too; ends with the socket.
    pub fn promiscuous(&self, interface: u32) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: interface as c_int,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    /// Begins to see frames of every protocol: of one interface, or of all with 0.
    pub fn bind(&self, interface: u32) -> io::Result<()> {
        self.bind_to(interface, libc::ETH_P_ALL as u16)
    }

    /// Sees nothing more; what it holds can still be read. The kernel waits until no core is at such a frame any more: 8 to
    /// 12 ms each (measured), during which nothing new comes in.
    pub fn close(&self) -> io::Result<()> {
        self.bind_again(NO_PROTOCOL)
    }

    /// Sees frames again, where it did before it was closed.
    pub fn reopen(&self) -> io::Result<()> {
        if self.is_open()? { Ok(()) } else { self.bind_again(libc::ETH_P_ALL as u16) }
    }

    /// Whether it sees frames, as far as its interface has some.
    pub fn is_open(&self) -> io::Result<bool> {
        Ok(u16::from_be(self.address()?.sll_protocol) == libc::ETH_P_ALL as u16)
    }

    fn bind_again(&self, protocol: u16) -> io::Result<()> {
        match self.bound()? {
            // It sees nothing as it is.
            Bound::Gone => Ok(()),
            Bound::Any => self.bind_to(0, protocol),
            Bound::Interface(index) => self.bind_to(index, protocol),
        }
    }

    fn bind_to(&self, interface: u32, protocol: u16) -> io::Result<()> {
        // SAFETY: zeros are a valid sockaddr_ll.
        let mut address: sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = interface as c_int;
        let len = size_of::<sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is a live sockaddr_ll of the length given.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(())
    }

    /// Where it listens.
    pub fn bound(&self) -> io::Result<Bound> {
        Ok(match self.address()?.sll_ifindex {
            0 => Bound::Any,
            index => u32::try_from(index).map_or(Bound::Gone, Bound::Interface),
        })
    }

    fn address(&self) -> io::Result<sockaddr_ll> {
        // SAFETY: zeros are a valid sockaddr_ll.
        let mut address: sockaddr_ll = unsafe { zeroed() };
        let mut len = size_of::<sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, and `address` has that many.
        check(unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
        Ok(address)
    }

    /// The filter as the kernel holds it (SO_GET_FILTER of socket(7), which answers in instructions, not bytes); empty
    /// when there is none.
    pub fn filter(&self) -> io::Result<Vec<Instruction>> {
        let none = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
        let mut program = vec![none; MAX_INSTRUCTIONS];
        let mut len = MAX_INSTRUCTIONS as libc::socklen_t;
        let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        // SAFETY: the kernel writes `len` instructions at most, and `program` has that many.
        check(unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), level, name, program.as_mut_ptr().cast(), &raw mut len)
        })?;
        program.truncate(len as usize);
        Ok(program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
    }

    /// Whether its frames come in the ring form of version 2 and begin with this; with the link header, whether it tells of
    /// offloads too.
    pub fn is_ring_of(&self, begin: Begin) -> io::Result<bool> {
        let (mut version, mut kind, mut told): (c_int, c_int, c_int) = (0, 0, 0);
        self.get(libc::SOL_PACKET, libc::PACKET_VERSION, &mut version)?;
        self.get(libc::SOL_SOCKET, libc::SO_TYPE, &mut kind)?;
        self.get(libc::SOL_PACKET, libc::PACKET_VNET_HDR, &mut told)?;
        let wanted = match begin {
            Begin::Network => (libc::SOCK_DGRAM, 0),
            Begin::Link => (libc::SOCK_RAW, 1),
        };
        Ok(version == libc::tpacket_versions::TPACKET_V2 as c_int && (kind, told) == wanted)
    }

    /// Frames that passed the filter, and those of them that found no slot, since the last call.
    pub fn statistics(&self) -> io::Result<(u32, u32)> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        self.get(libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)?;
        Ok((stats.tp_packets, stats.tp_drops))
    }

    /// The pending error, if any; poll(2) reports one until it is taken.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        let mut error: c_int = 0;
        self.get(libc::SOL_SOCKET, libc::SO_ERROR, &mut error)?;
        Ok((error != 0).then(|| io::Error::from_raw_os_error(error)))
    }

    fn set<T>(&self, level: c_int, name: c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is live and of the length given; the kernel only reads it (and, for a filter, what it points to).
        check(unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, name, (&raw const *value).cast(), len)
        })?;
        Ok(())
    }

    fn get<T>(&self, level: c_int, name: c_int, value: &mut T) -> io::Result<()> {
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes; callers pass types of plain integers.
        check(unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), level, name, (&raw mut *value).cast(), &raw mut len)
        })?;
        Ok(())
    }
}

/// What the kernel wrote about a frame, as it stands in the slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotHeader {
    pub(crate) status: u32,
    pub(crate) len: u32,
    pub(crate) snaplen: u32,
    pub(crate) mac: u16,
    pub(crate) net: u16,
    pub(crate) sec: u32,
    pub(crate) nsec: u32,
    pub(crate) vlan_tci: u16,
    pub(crate) protocol: u16,
    pub(crate) interface: u32,
    pub(crate) packet_type: u8,
}

impl SlotHeader {
    /// When the kernel saw the frame, CLOCK_REALTIME nanoseconds.
    pub(crate) fn time_ns(&self) -> u64 {
        u64::from(self.sec) * 1_000_000_000 + u64::from(self.nsec)
    }

    /// Bytes of the link header that was captured.
    pub(crate) fn link_bytes(&self) -> u32 {
        self.net.saturating_sub(self.mac).into()
    }
}

/// Where a slot begins, bytes from the ring's start; multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) usize);

/// A socket's ring, mapped. A slot belongs to the kernel or to us, as its status word says: we read it only while it is ours and
/// give it back only through `&mut self`, when no slice of it can be left.
#[derive(Debug)]
pub(crate) struct RingMemory {
    base: NonNull<u8>,
    spec: RingSpec,
}

// SAFETY: the mapping belongs to this value alone (within this process) and is not tied to a thread.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Maps the ring of a socket whose ring was set to `spec`; the kernel refuses (EINVAL) when sizes differ.
    pub(crate) fn map(socket: &PacketSocket, spec: RingSpec) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), spec.bytes(), protection, flags, socket.fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { base, spec })
    }

    /// Whether a slot holds a frame for us.
    pub(crate) fn is_ours(&self, slot: Slot) -> bool {
        self.status(slot).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// A slot's header, if the slot is ours.
    #[inline]
    pub(crate) fn header(&self, slot: Slot) -> Option<SlotHeader> {
        // Acquire: pairs with the kernel's barrier between writing the frame and its status.
        let status = self.status(slot).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let at = self.at(slot);
        // SAFETY: the slot lies in the mapping (`at`), is aligned to 16 and at least SLOT_OVERHEAD long; the kernel does not write it
        // while it is ours. Both types are plain integers.
        let (header, address) =
            unsafe { (at.cast::<tpacket2_hdr>().read(), at.add(ADDRESS_AT).cast::<sockaddr_ll>().read()) };
        Some(SlotHeader {
            status,
            len: header.tp_len,
            snaplen: header.tp_snaplen,
            mac: header.tp_mac,
            net: header.tp_net,
            sec: header.tp_sec,
            nsec: header.tp_nsec,
            vlan_tci: header.tp_vlan_tci,
            protocol: u16::from_be(address.sll_protocol),
            interface: address.sll_ifindex as u32,
            packet_type: address.sll_pkttype,
        })
    }

    /// The captured bytes of a slot whose header was just read, from the network header on, never more than the slot holds.
    #[inline]
    pub(crate) fn packet(&self, slot: Slot, header: &SlotHeader) -> &[u8] {
        if !self.is_ours(slot) {
            return &[];
        }
        let from = u32::from(header.net).min(self.spec.slot_bytes());
        let len = header.snaplen.saturating_sub(header.link_bytes()).min(self.spec.slot_bytes() - from);
        // SAFETY: [from, from + len) lies in the slot, and the slot is ours: the kernel does not write it until `give_back`, which
        // needs `&mut self` and so waits for this borrow to end.
        unsafe { std::slice::from_raw_parts(self.at(slot).add(from as usize).as_ptr(), len as usize) }
    }

    /// Of several datagrams in one packet how many bytes each has; for a slot whose header was just read, of a ring that tells.
    #[inline]
    pub(crate) fn datagram_bytes(&self, slot: Slot, header: &SlotHeader) -> Option<u16> {
        let link = u32::from(header.mac).min(self.spec.slot_bytes());
        let from = link.checked_sub(OFFLOAD_BYTES)? as usize;
        if !self.is_ours(slot) {
            return None;
        }
        // SAFETY: [from, from + OFFLOAD_BYTES) lies in the slot, which is ours until `give_back`, and any bytes are an array of them.
        let told: [u8; OFFLOAD_BYTES as usize] = unsafe { self.at(slot).add(from).cast().read() };
        // In the order of the host's bytes, as in all legacy virtio headers.
        let size = u16::from_ne_bytes([told[GSO_SIZE_AT], told[GSO_SIZE_AT + 1]]);
        (told[1] & 0x7f == GSO_UDP_L4).then_some(size)
    }

    /// Gives a slot back to the kernel.
    #[inline]
    pub(crate) fn give_back(&mut self, slot: Slot) {
        // Release: our reads of the frame end before the kernel may write it again.
        self.status(slot).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }

    fn status(&self, slot: Slot) -> &AtomicU32 {
        // SAFETY: inside the mapping, aligned, and changed by both sides with single stores only.
        unsafe { AtomicU32::from_ptr(self.at(slot).add(offset_of!(tpacket2_hdr, tp_status)).cast().as_ptr()) }
    }

    #[inline]
    fn at(&self, Slot(offset): Slot) -> NonNull<u8> {
        let inside =
            offset.checked_add(self.spec.slot_bytes() as usize).is_some_and(|end| end <= self.spec.bytes());
        assert!(inside && offset.is_multiple_of(libc::TPACKET_ALIGNMENT), "a slot lies in its ring, aligned");
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for RingMemory {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `map`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast::<c_void>(), self.spec.bytes()) };
    }
}

/// The kind of link header of an interface (ARPHRD_*).
pub fn link_type(interface: &str) -> io::Result<u16> {
    let told = ask(interface, libc::SIOCGIFHWADDR)?;
    // SAFETY: that is the member which SIOCGIFHWADDR fills.
    Ok(unsafe { told.ifr_ifru.ifru_hwaddr.sa_family })
}

/// The longest packet that an interface sends, bytes from the network header on.
pub fn mtu(interface: &str) -> io::Result<u32> {
    let told = ask(interface, libc::SIOCGIFMTU)?;
    // SAFETY: that is the member which SIOCGIFMTU fills.
    Ok(unsafe { told.ifr_ifru.ifru_mtu }.unsigned_abs())
}

/// One of the questions about an interface that are asked by its name.
fn ask(interface: &str, what: libc::Ioctl) -> io::Result<libc::ifreq> {
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just opened, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: both questions that are asked here read the name and write their answer into the request, which is live.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut request) })?;
    Ok(request)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
