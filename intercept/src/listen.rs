//! The listening sockets of the return channel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::options::{DEFAULT_PORT, InterceptError};

/// Opens a listener for each address; with none given one for all of IPv4 and IPv6, or of IPv4 where there is no IPv6.
pub(crate) fn open(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>, InterceptError> {
    if !addrs.is_empty() {
        return addrs.iter().map(|&addr| open_one(addr)).collect();
    }
    let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), DEFAULT_PORT);
    match open_one(both) {
        Ok(listener) => Ok(vec![listener]),
        Err(InterceptError::Listen { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            Ok(vec![open_one(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_PORT))?])
        }
        Err(error) => Err(error),
    }
}

fn open_one(addr: SocketAddr) -> Result<TcpListener, InterceptError> {
    listener(addr).map_err(|errno| {
        let hint = match errno {
            nix::Error::EADDRINUSE => "Another program listens there, perhaps another intercept; stop it, or choose another port with --listen",
            nix::Error::EADDRNOTAVAIL => "This host has no such address; `ip addr` shows the ones it has",
            nix::Error::EACCES => "Ports below 1024 need root; choose a higher one with --listen",
            _ => "Choose another address with --listen",
        };
        InterceptError::Listen { addr, source: errno.into(), hint }
    })
}

fn listener(addr: SocketAddr) -> nix::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        // [::] means every address, those of IPv4 included, whatever net.ipv6.bindv6only says.
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(fd.into())
}

/// An address as a person writes it: IPv4 that came over an IPv6 socket is IPv4.
pub(crate) fn plain_addr(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Addresses that listeners got.
pub(crate) fn bound(listeners: &[TcpListener]) -> io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}
