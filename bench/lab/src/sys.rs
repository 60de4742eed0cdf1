//! The only unsafe code of this crate: the closure that runs between fork and exec of a child, packet sockets and TUN
//! devices.
//!
//! Called by `namespace` when it spawns a process, by `wire` and by `tun`. What must hold: nothing in the closure allocates or
//! takes a lock, because the forked child has only one thread of the parent's.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::getppid;

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

/// A packet socket for whole frames of one device of the calling thread's namespace, each behind its offload header
/// (packet(7), PACKET_VNET_HDR). It does not see what this host sends on the device.
pub(crate) fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it receives nothing until it is bound.
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>)?;
    set(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    // Whole windows of super-frames wait here while the loop is off the core; more than the host's limit is cut to it.
    let _ = set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20);
    let _ = set(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 64 << 20);
    // SAFETY: sockaddr_ll is plain data for which all zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `len` bytes and lives through the call, which only reads it.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if bound == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
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

/// linux/if_packet.h; not in every libc.
const PACKET_VNET_HDR: libc::c_int = 15;

fn set(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an int of `len` bytes and lives through the call, which only reads it.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
