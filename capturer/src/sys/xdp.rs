//! AF_XDP: the program in front of the stack by bpf(2), and a socket for each receive queue by the crate `xdp`, whose rings and
//! chunks are safe only as long as they live together; here they do.
//!
//! `Documentation/networking/af_xdp.rst` and `linux/bpf.h` of the kernel are the sources.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use xdp::nic::NicIndex;
use xdp::slab::{HeapSlab, Slab as _};
use xdp::socket::{SocketError, XdpSocket, XdpSocketBuilder};
use xdp::umem::{FrameSize, UmemCfgBuilder};
use xdp::{Packet, RingConfigBuilder, Rings, Umem};

/// Commands, types and flags of `linux/bpf.h` and `linux/if_link.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
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

/// Chunks of one queue at least and at most; they hold one frame each.
const CHUNKS: std::ops::RangeInclusive<u64> = 1_024..=65_536;
const CHUNK_BYTES: u64 = 4_096;
/// Frames taken from a ring at once.
const BATCH: usize = 256;

/// Receive queue → socket.
#[derive(Debug)]
pub(crate) struct XskMap {
    fd: OwnedFd,
}

impl From<OwnedFd> for XskMap {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<XskMap> for OwnedFd {
    fn from(map: XskMap) -> Self {
        map.fd
    }
}

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

impl XskMap {
    /// An empty one. EPERM without CAP_BPF and CAP_NET_ADMIN.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let request =
            CreateMap { map_type: MAP_TYPE_XSKMAP, key_bytes: 4, value_bytes: 4, entries, flags: 0 };
        Ok(Self { fd: opened(MAP_CREATE, &request)? })
    }

    /// From now on the frames of this queue go to this socket; when it is closed, the entry goes.
    pub(crate) fn put(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        self.element(MAP_UPDATE_ELEM, &queue, &raw const value as u64)
    }

    /// From now on the frames of this queue pass on to the stack.
    pub(crate) fn remove(&self, queue: u32) -> io::Result<()> {
        self.element(MAP_DELETE_ELEM, &queue, 0)
    }

    fn element(&self, command: libc::c_int, queue: &u32, value: u64) -> io::Result<()> {
        let key = std::ptr::from_ref(queue) as u64;
        bpf(command, &Element { map: self.fd.as_raw_fd() as u32, key, value, ..Element::default() }).map(drop)
    }
}

/// The program: a frame goes to the socket of its queue, or on to the stack where there is none.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Loads it.
    pub(crate) fn load(map: &XskMap) -> io::Result<Self> {
        let instruction = |code: u8, to: u8, from: u8, offset: i16, immediate: i32| {
            u64::from(code)
                | u64::from(to | from << 4) << 8
                | u64::from(offset as u16) << 16
                | u64::from(immediate as u32) << 32
        };
        // return bpf_redirect_map(map, context->rx_queue_index, XDP_PASS);
        let program = [
            instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0),
            instruction(0x18, 1, PSEUDO_MAP_FD, 0, map.fd.as_raw_fd()),
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

fn opened<T>(command: libc::c_int, request: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, request)?;
    // SAFETY: just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel takes a shorter request than its own for one that ends in zeros, and sets close-on-exec itself.
fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<libc::c_int> {
    // SAFETY: `request` is live and of the length given; what it points to is live in the callers, and of the kind that the command
    // reads.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(request), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// A socket on one receive queue. Fields go in this order: the socket before the memory that the kernel writes to.
pub(crate) struct Queue {
    socket: XdpSocket,
    rings: Rings,
    memory: Umem,
    slab: HeapSlab,
    /// Handed over and not given back yet.
    held: Vec<Packet>,
    /// What [`Queue::take_dropped`] told so far.
    told: u64,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the socket, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.socket.raw_fd()) }
    }
}

impl Queue {
    /// Receive queues that the interface may have; those in use are the first of them.
    pub(crate) fn count(interface: u32) -> io::Result<u32> {
        let queues = NicIndex::new(interface).queue_counts()?;
        Ok(if queues.combined() { queues.rx_max() } else { queues.rx_count() })
    }

    /// Binds to a queue, without copies where driver and kernel can do that, with `bytes` of memory. EINVAL when the queue is
    /// not in use.
    pub(crate) fn open(interface: u32, queue: u32, bytes: u64) -> io::Result<Self> {
        let chunks = (bytes / CHUNK_BYTES).clamp(*CHUNKS.start(), *CHUNKS.end()).next_power_of_two() as u32;
        let memory =
            UmemCfgBuilder { frame_size: FrameSize::FourK, frame_count: chunks, ..UmemCfgBuilder::default() };
        let mut memory = Umem::map(memory.build().map_err(io::Error::other)?)?;
        let rings =
            RingConfigBuilder { rx_count: chunks, tx_count: 0, fill_count: chunks, completion_count: 1 };
        let mut builder = XdpSocketBuilder::new().map_err(reason)?;
        let rings = rings.build().map_err(io::Error::other)?;
        let (mut rings, flags) = builder.build_rings(&memory, rings).map_err(reason)?;
        // SAFETY: the memory outlives the socket: both go with this value, the socket first.
        unsafe { rings.fill_ring.enqueue(&mut memory, chunks as usize) };
        let socket = builder.bind(NicIndex::new(interface), queue, flags).map_err(reason)?;
        let held = Vec::with_capacity(BATCH);
        Ok(Self { socket, rings, memory, slab: HeapSlab::with_capacity(BATCH), held, told: 0 })
    }

    /// Hands over at most `max` frames, from the link header on; they stay until [`Queue::release`].
    pub(crate) fn read(&mut self, max: u32, mut sink: impl FnMut(&[u8])) -> u32 {
        let Some(ring) = &mut self.rings.rx_ring else { return 0 };
        let mut taken = 0;
        while taken < max {
            if self.slab.is_empty() {
                // SAFETY: packets go back into this memory before it goes.
                unsafe { ring.recv(&self.memory, &mut self.slab) };
            }
            let Some(packet) = self.slab.pop_back() else { break };
            sink(&packet);
            self.held.push(packet);
            taken += 1;
        }
        taken
    }

    /// Gives the memory of everything handed over back to the kernel.
    pub(crate) fn release(&mut self) {
        let count = self.held.len();
        for packet in self.held.drain(..) {
            self.memory.free_packet(packet);
        }
        // SAFETY: the memory outlives the socket.
        unsafe { self.rings.fill_ring.enqueue(&mut self.memory, count) };
    }

    /// Frames that the kernel dropped since the last call: longer than a chunk, no chunk free, or the ring full.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        let Ok(stats) = self.socket.statistics() else { return 0 };
        let dropped = stats.rx_dropped + stats.rx_ring_full;
        dropped - std::mem::replace(&mut self.told, dropped)
    }
}

fn reason(error: SocketError) -> io::Error {
    match error {
        SocketError::SocketCreation(inner)
        | SocketError::SetSockOpt { inner, .. }
        | SocketError::GetSockOpt { inner, .. }
        | SocketError::RingMap { inner, .. }
        | SocketError::Bind(inner) => inner,
    }
}
