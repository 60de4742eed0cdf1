//! The only unsafe code of this crate: the closures that run between fork and exec of a child, packet sockets, TUN
//! devices, descriptors that come in messages, and waiting for a child with what it cost.
//!
//! Called by `namespace` when it spawns a process, by `wire`, `outside`, `flood`, `tun`, `manager` and `story`. What must hold:
//! nothing in the closures allocates or takes a lock, because the forked child has only one thread of the parent's.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, socket,
};
use nix::unistd::getppid;

use crate::outside::Instruction;

/// Makes the child die (SIGKILL) with the thread that spawns it, however that thread ends, and gives it a process group
/// of its own, so that a terminal's Ctrl-C reaches only the lab's owner, which then stops its children in order.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    command.process_group(0);
    // SAFETY: prctl(PR_SET_PDEATHSIG) and getppid are plain system calls, safe between fork and exec; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Gives the child these descriptors from number 3 on, in this order.
pub(crate) fn hand_down(command: &mut Command, fds: Vec<OwnedFd>) {
    // SAFETY: dup2, fcntl and close are plain system calls, safe between fork and exec; the vector was allocated before.
    unsafe {
        command.pre_exec(move || {
            // First out of the way of their own targets, then into place; dup2 clears close-on-exec.
            for (i, fd) in fds.iter().enumerate() {
                check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, ASIDE + i as libc::c_int))?;
            }
            for i in 0..fds.len() as libc::c_int {
                check(libc::dup2(ASIDE + i, FIRST + i))?;
                check(libc::close(ASIDE + i))?;
            }
            Ok(())
        });
    }
}

/// Where a service's descriptors begin.
const FIRST: libc::c_int = 3;
/// Above all that this process has open when it starts a service.
const ASIDE: libc::c_int = 900;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One message of a datagram socket, with the descriptors that came with it.
pub(crate) fn receive_with_descriptors(socket: RawFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut text = [0; 4096];
    let mut room = nix::cmsg_space!([RawFd; 16]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just opened them for this process, and nobody else knows them.
            fds.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    let bytes = message.bytes;
    Ok((String::from_utf8_lossy(&text[..bytes]).into_owned(), fds))
}

/// A packet socket for whole frames of one device of the calling thread's namespace, each behind its offload header
/// (packet(7), PACKET_VNET_HDR). It does not see what this host sends on the device.
pub(crate) fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let fd = unbound_socket()?;
    // Whole windows of super-frames wait here while the loop is off the core; more than the host's limit is cut to it.
    let _ = set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER);
    let _ = set(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER);
    bind_to(&fd, index)?;
    Ok(fd)
}

/// The same, for those frames only that this filter lets through.
pub(crate) fn filtered_socket(index: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    let fd = unbound_socket()?;
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    set(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)?;
    bind_to(&fd, index)?;
    Ok(fd)
}

fn unbound_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it receives nothing until it is bound.
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>)?;
    set(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, ON)?;
    set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, ON)?;
    Ok(fd)
}

/// A packet socket that only sends, on one device of the calling thread's namespace: whole frames, past the device's queue
/// (packet(7), PACKET_QDISC_BYPASS), as fast as the device takes them.
pub(crate) fn sending_socket(index: u32) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
    set(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, ON)?;
    bind(&fd, index, 0)?;
    Ok(fd)
}

fn bind_to(fd: &OwnedFd, index: u32) -> io::Result<()> {
    bind(fd, index, libc::ETH_P_ALL as u16)
}

fn bind(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data for which all zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `len` bytes and lives through the call, which only reads it.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes an open file of /dev/net/tun a TUN device of this name, in the calling thread's namespace: plain IP packets, cut
/// to the MTU and with checksums filled in. It vanishes with the file.
pub(crate) fn make_tun(file: &impl AsRawFd, name: &str) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid: it holds bytes, numbers and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is live; the file is open for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for a process; how it ended, and the CPU time of it and of all that it waited for.
pub(crate) fn wait_with_cpu_time(child: Child) -> io::Result<(ExitStatus, Duration)> {
    let (mut status, pid) = (0, child.id().cast_signed());
    // SAFETY: an all-zero rusage is valid: it holds numbers.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both places are live and of the type that wait4 writes. The process is not reaped yet, as `child` was taken
        // whole and waits only when asked to, so the number is still its own.
        match check(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut used) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec.cast_unsigned(), t.tv_usec as u32 * 1_000);
    Ok((ExitStatus::from_raw(status), time(used.ru_utime) + time(used.ru_stime)))
}

const ON: libc::c_int = 1;
/// Bytes that wait in a socket.
const BUFFER: libc::c_int = 64 << 20;
/// linux/if_packet.h; not in every libc.
const PACKET_VNET_HDR: libc::c_int = 15;

/// `value` is what the option takes: an int, or a filter program whose instructions live through the call.
fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has `len` bytes and lives through the call, which only reads it and what it points to.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
