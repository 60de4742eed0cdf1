//! AF_XDP: the program in front of the stack by bpf(2), and a socket for each receive queue, whose rings and chunks outlive the
//! process that reads them: the chunks lie in a memfd, and a successor maps all again.
//!
//! `Documentation/networking/af_xdp.rst`, `linux/if_xdp.h` and `linux/bpf.h` of the kernel are the sources.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{PacketSocket, check};

/// Commands, types and flags of `linux/bpf.h` and `linux/if_link.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const OBJECT_INFO: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const MODE_GENERIC: u32 = 1 << 1;
const MODE_DRIVER: u32 = 1 << 2;
const XDP_PASS: i32 = 2;
const REDIRECT_MAP: i32 = 51;
const PSEUDO_MAP_FD: u8 = 1;
/// Where `rx_queue_index` stands in `struct xdp_md`.
const RX_QUEUE_INDEX: i16 = 16;

/// Chunks of one queue at least and at most; they hold one frame each, and both rings have an entry for each.
const CHUNKS: std::ops::RangeInclusive<u64> = 1_024..=65_536;
const CHUNK_BYTES: u64 = 4_096;
/// Behind the chunks: how many lost frames were told, an [`AtomicU64`].
const TOLD_BYTES: u64 = 4_096;
/// The kernel wants a ring of sent frames, of which there are none.
const NO_SENT: u32 = 2;
/// ETHTOOL_GCHANNELS of `linux/ethtool.h`.
const GET_CHANNELS: u32 = 0x3c;

/// Receive queue → socket; of a kind that is open, borrowed or owned.
#[derive(Debug)]
pub(crate) struct XskMap<F>(pub(crate) F);

#[repr(C)]
#[derive(Default)]
struct CreateMap {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    program_type: u32,
    instructions: u32,
    first: u64,
    licence: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjectInfo {
    fd: u32,
    bytes: u32,
    info: u64,
}

/// `bpf_link_info` as far as it is asked for.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    reserved: [u32; 3],
}

impl XskMap<OwnedFd> {
    /// An empty one. EPERM without CAP_BPF and CAP_NET_ADMIN.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let request =
            CreateMap { map_type: MAP_TYPE_XSKMAP, key_bytes: 4, value_bytes: 4, entries, flags: 0 };
        opened(MAP_CREATE, &request).map(Self)
    }
}

impl<F: AsFd> XskMap<F> {
    /// From now on the frames of this queue go to this socket; when it is closed, the entry goes.
    pub(crate) fn put(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        self.element(MAP_UPDATE_ELEM, &queue, &raw const value as u64)
    }

    /// From now on the frames of this queue pass on to the stack.
    pub(crate) fn remove(&self, queue: u32) -> io::Result<()> {
        match self.element(MAP_DELETE_ELEM, &queue, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        }
    }

    fn element(&self, command: libc::c_int, queue: &u32, value: u64) -> io::Result<()> {
        let key = std::ptr::from_ref(queue) as u64;
        let map = self.0.as_fd().as_raw_fd() as u32;
        bpf(command, &Element { map, key, value, ..Element::default() }).map(drop)
    }
}

/// The program: a frame goes to the socket of its queue, or on to the stack where there is none.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Loads it.
    pub(crate) fn load(map: &XskMap<OwnedFd>) -> io::Result<Self> {
        let instruction = |code: u8, to: u8, from: u8, offset: i16, immediate: i32| {
            u64::from(code)
                | u64::from(to | from << 4) << 8
                | u64::from(offset as u16) << 16
                | u64::from(immediate as u32) << 32
        };
        // return bpf_redirect_map(map, context->rx_queue_index, XDP_PASS);
        let program = [
            instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0),
            instruction(0x18, 1, PSEUDO_MAP_FD, 0, map.0.as_raw_fd()),
            instruction(0x00, 0, 0, 0, 0),
            instruction(0xb7, 3, 0, 0, XDP_PASS),
            instruction(0x85, 0, 0, 0, REDIRECT_MAP),
            instruction(0x95, 0, 0, 0, 0),
        ];
        let licence = c"Dual MIT/GPL";
        let request = LoadProgram {
            program_type: PROG_TYPE_XDP,
            instructions: program.len() as u32,
            first: program.as_ptr() as u64,
            licence: licence.as_ptr() as u64,
            ..LoadProgram::default()
        };
        Ok(Self { fd: opened(PROG_LOAD, &request)? })
    }

    /// Attaches it for as long as the result is open in any process: in the driver where that is possible, else in front of the
    /// stack. EBUSY when another program is there.
    pub(crate) fn attach(&self, interface: u32) -> io::Result<OwnedFd> {
        let attach = |flags| {
            let program = self.fd.as_raw_fd() as u32;
            opened(LINK_CREATE, &CreateLink { program, interface, attach_type: ATTACH_XDP, flags })
        };
        match attach(MODE_DRIVER) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => attach(MODE_GENERIC),
            attached => attached,
        }
    }
}

/// The number of the interface at which a program is attached; 0 when that is gone.
pub(crate) fn attached_to(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = LinkInfo::default();
    let bytes = size_of::<LinkInfo>() as u32;
    bpf(OBJECT_INFO, &ObjectInfo { fd: link.as_raw_fd() as u32, bytes, info: &raw mut info as u64 })?;
    Ok(info.interface)
}

fn opened<T>(command: libc::c_int, request: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, request)?;
    // SAFETY: just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel takes a shorter request than its own for one that ends in zeros, and sets close-on-exec itself.
fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<libc::c_int> {
    // SAFETY: `request` is live and of the length given; what it points to is live in the callers, and of the kind that the command
    // reads or writes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(request), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Receive queues that the interface has in use; one where its driver does not say.
pub(crate) fn queues_of(interface: &str) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        most: [u32; 4],
        receiving: u32,
        sending: u32,
        other: u32,
        combined: u32,
    }
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    let any = PacketSocket::open(super::Begin::Network)?;
    // SAFETY: this command reads and writes one `ethtool_channels` behind the request's pointer, which is live and of that size.
    let asked = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    match check(asked) {
        Ok(_) => Ok((channels.receiving + channels.combined).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(error),
    }
}

/// Whether a descriptor is a socket of this family.
pub(crate) fn is_queue(fd: BorrowedFd<'_>) -> bool {
    get::<libc::c_int>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).is_ok_and(|domain| domain == libc::AF_XDP)
}

/// Where the words and entries of a ring stand in its mapping (`xdp_ring_offset`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RingOffsets {
    producer: u64,
    consumer: u64,
    entries: u64,
    flags: u64,
}

/// `xdp_mmap_offsets`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Offsets {
    received: RingOffsets,
    to_send: RingOffsets,
    free: RingOffsets,
    sent: RingOffsets,
}

/// `xdp_umem_reg`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    start: u64,
    bytes: u64,
    chunk_bytes: u32,
    headroom: u32,
    flags: u32,
    metadata: u32,
}

/// `sockaddr_xdp`.
#[repr(C)]
#[derive(Default)]
struct Address {
    family: u16,
    flags: u16,
    interface: u32,
    queue: u32,
    shared: u32,
}

/// `xdp_statistics` of the first kernels; later ones have more behind.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Statistics {
    dropped: u64,
    invalid: u64,
    invalid_to_send: u64,
    ring_full: u64,
    no_chunk: u64,
    nothing_to_send: u64,
}

/// One received frame (`xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Received {
    at: u64,
    len: u32,
    options: u32,
}

/// Memory that is shared with the kernel, as long as this value lives.
struct Mapped {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapped {
    fn new(fd: BorrowedFd<'_>, bytes: u64, offset: libc::off_t) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        let (fd, bytes) = (fd.as_raw_fd(), usize::try_from(bytes).map_err(io::Error::other)?);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { start, bytes })
    }

    /// Where a `T` stands. Panics when that is not inside, or not aligned.
    fn at<T>(&self, offset: u64) -> *mut T {
        let offset = offset as usize;
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.bytes);
        // SAFETY: inside of the mapping, which begins at a page.
        unsafe { self.start.as_ptr().add(offset) }.cast()
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: inside and aligned (`at`); both sides use atomic accesses.
        unsafe { &*self.at::<AtomicU32>(offset) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `new`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A ring of `T`, of which one end is the kernel's.
struct Ring<T> {
    mapped: Mapped,
    offsets: RingOffsets,
    mask: u32,
    entries: std::marker::PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    fn map(
        socket: BorrowedFd<'_>,
        offsets: RingOffsets,
        entries: u32,
        page: libc::off_t,
    ) -> io::Result<Self> {
        let bytes = offsets.entries + u64::from(entries) * size_of::<T>() as u64;
        let mapped = Mapped::new(socket, bytes, page)?;
        Ok(Self { mapped, offsets, mask: entries - 1, entries: std::marker::PhantomData })
    }

    fn producer(&self) -> &AtomicU32 {
        self.mapped.word(self.offsets.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.mapped.word(self.offsets.consumer)
    }

    fn entry(&self, number: u32) -> *mut T {
        self.mapped.at(self.offsets.entries + u64::from(number & self.mask) * size_of::<T>() as u64)
    }
}

/// A socket on one receive queue.
///
/// Each chunk that was read goes back where its frame stood: frame number n is entry n of the ring of received frames, and its
/// chunk becomes entry n + chunks of the ring of free ones. So the one ring's number follows from the other's, and a successor that
/// knows which frames were handed over can give their chunks back, whether its predecessor had done that or not.
pub(crate) struct Queue {
    socket: OwnedFd,
    received: Ring<Received>,
    free: Ring<u64>,
    memory: Mapped,
    chunks: u32,
    /// Number of the next frame, and of the first whose chunk was not given back.
    next: u32,
    back: u32,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Queue {
    /// Binds to a queue, without copies where driver and kernel can do that, with `bytes` of memory, and returns the socket and the
    /// memory. EINVAL when the queue is not in use.
    pub(crate) fn open(interface: u32, queue: u32, bytes: u64) -> io::Result<[OwnedFd; 2]> {
        let chunks = (bytes / CHUNK_BYTES).clamp(*CHUNKS.start(), *CHUNKS.end()).next_power_of_two() as u32;
        let bytes = u64::from(chunks) * CHUNK_BYTES;
        // SAFETY: no pointers; the result is checked.
        let socket = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: just opened, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: the name ends in a zero.
        let memory = check(unsafe { libc::memfd_create(c"xdp".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: likewise.
        let memory = unsafe { OwnedFd::from_raw_fd(memory) };
        // SAFETY: no pointers.
        check(unsafe { libc::ftruncate(memory.as_raw_fd(), (bytes + TOLD_BYTES) as libc::off_t) })?;
        // The kernel holds the pages themselves from then on, whoever has them mapped.
        let mapped = Mapped::new(memory.as_fd(), bytes, 0)?;
        let start = mapped.start.as_ptr() as u64;
        let registered = Memory { start, bytes, chunk_bytes: CHUNK_BYTES as u32, ..Memory::default() };
        set(socket.as_fd(), libc::XDP_UMEM_REG, &registered)?;
        set(socket.as_fd(), libc::XDP_UMEM_FILL_RING, &chunks)?;
        set(socket.as_fd(), libc::XDP_UMEM_COMPLETION_RING, &NO_SENT)?;
        set(socket.as_fd(), libc::XDP_RX_RING, &chunks)?;
        let free = Self::free_ring(socket.as_fd(), chunks)?;
        for chunk in 0..chunks {
            // SAFETY: inside and aligned (`entry`); the kernel reads it once it is published.
            unsafe { free.entry(chunk).write(u64::from(chunk) * CHUNK_BYTES) };
        }
        free.producer().store(chunks, Ordering::Release);
        let address = Address { family: libc::AF_XDP as u16, interface, queue, ..Address::default() };
        let bytes = size_of::<Address>() as libc::socklen_t;
        // SAFETY: the address is live and of this length.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) })?;
        Ok([socket, memory])
    }

    fn free_ring(socket: BorrowedFd<'_>, chunks: u32) -> io::Result<Ring<u64>> {
        let offsets = get::<Offsets>(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
        Ring::map(socket, offsets.free, chunks, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t)
    }

    /// Goes on with what [`Queue::open`] made, at the frame of this number: those before it were handed over. One that is not in
    /// the ring is of another socket's, and frames are taken from where the ring begins.
    pub(crate) fn take(socket: OwnedFd, memory: OwnedFd, next: u32) -> io::Result<Self> {
        let bytes = nix::sys::stat::fstat(&memory)?.st_size as u64;
        let chunks = bytes.saturating_sub(TOLD_BYTES) / CHUNK_BYTES;
        if !CHUNKS.contains(&chunks) || !chunks.is_power_of_two() {
            return Err(io::Error::other("its memory is of another size"));
        }
        let (memory, chunks) = (Mapped::new(memory.as_fd(), bytes, 0)?, chunks as u32);
        let offsets = get::<Offsets>(socket.as_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
        let received =
            Ring::<Received>::map(socket.as_fd(), offsets.received, chunks, libc::XDP_PGOFF_RX_RING)?;
        let free = Self::free_ring(socket.as_fd(), chunks)?;
        let back = received.consumer().load(Ordering::Acquire);
        // Acquire: the kernel has written the entries before this one.
        let held = received.producer().load(Ordering::Acquire).wrapping_sub(back);
        let next = if next.wrapping_sub(back) <= held { next } else { back };
        let mut queue = Self { socket, received, free, memory, chunks, next, back };
        queue.release();
        Ok(queue)
    }

    /// Number of the next frame.
    pub(crate) const fn position(&self) -> u32 {
        self.next
    }

    /// Hands over at most `max` frames, from the link header on; they stay until [`Queue::release`].
    pub(crate) fn read(&mut self, max: u32, mut sink: impl FnMut(&[u8])) -> u32 {
        // Acquire: the kernel has written entries and frames before it publishes them.
        let there = self.received.producer().load(Ordering::Acquire).wrapping_sub(self.next);
        let taken = there.min(max);
        for _ in 0..taken {
            // SAFETY: inside and aligned (`entry`), and published; the kernel writes it again after `release`.
            let frame = unsafe { self.received.entry(self.next).read() };
            self.next = self.next.wrapping_add(1);
            let end = frame.at.saturating_add(frame.len.into());
            if end <= u64::from(self.chunks) * CHUNK_BYTES {
                // SAFETY: inside of the mapping; the kernel has no use for a chunk that was not given back.
                let bytes = unsafe {
                    std::slice::from_raw_parts(
                        self.memory.start.as_ptr().add(frame.at as usize),
                        frame.len as usize,
                    )
                };
                sink(bytes);
            }
        }
        taken
    }

    /// Gives the memory of everything handed over back to the kernel.
    pub(crate) fn release(&mut self) {
        let mut number = self.back;
        while number != self.next {
            // SAFETY: both inside and aligned (`entry`). The first is ours until the ring's end is stored below, and as many entries
            // of the second are free as frames were received.
            unsafe {
                let frame = self.received.entry(number).read();
                self.free.entry(number).write(frame.at / CHUNK_BYTES * CHUNK_BYTES);
            }
            number = number.wrapping_add(1);
        }
        // Release: the kernel reads the entries once it sees this. Whoever dies before the second store is told by its own number
        // that these frames were handed over, and a successor comes to the same two values.
        self.free.producer().store(self.next.wrapping_add(self.chunks), Ordering::Release);
        self.received.consumer().store(self.next, Ordering::Release);
        self.back = self.next;
    }

    /// Frames that the kernel dropped since the last call, whoever made it: longer than a chunk, no chunk free, or the ring full.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        let asked = get::<Statistics>(self.socket.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS);
        let Ok(Statistics { dropped, ring_full, .. }) = asked else { return 0 };
        let dropped = dropped + ring_full;
        // SAFETY: inside and aligned (`at`); only this process reads and writes it now.
        let told = unsafe { &*self.memory.at::<AtomicU64>(u64::from(self.chunks) * CHUNK_BYTES) };
        dropped.saturating_sub(told.swap(dropped, Ordering::Relaxed))
    }
}

/// A socket option of the family, as [`PacketSocket`]'s are set.
fn set<T>(socket: BorrowedFd<'_>, name: libc::c_int, value: &T) -> io::Result<()> {
    let (value, len) = (std::ptr::from_ref(value), size_of::<T>() as libc::socklen_t);
    // SAFETY: the value is live and of this length.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, name, value.cast(), len) }).map(drop)
}

/// Asks for an option that is plain integers.
fn get<T: Copy + Default>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let (mut value, mut len) = (T::default(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes of integers into the value.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    })?;
    Ok(value)
}
