//! A TUN device: whoever holds it is the network of a host, and every packet of the host's passes through its hands.
//!
//! Used by the simulation, which stands between a session table and the kernel's own TCP.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::namespace::Namespace;
use crate::netlink;
use crate::sys::make_tun;

/// A host's only device, from outside. The device vanishes with it.
pub struct Tun {
    file: File,
}

const NAME: &str = "tun0";

impl Tun {
    /// Gives a namespace the device, an address, and a route to everybody through it.
    pub fn new(ns: &Namespace, address: IpAddr, mtu: u32) -> io::Result<Self> {
        ns.enter(move || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open("/dev/net/tun")?;
            make_tun(&file, NAME)?;
            netlink::set_mtu(NAME, mtu)?;
            netlink::set_up(NAME, true)?;
            // There is nobody behind the gateway's address, and the device asks for nobody's.
            let (prefix, everybody, gateway) = match address {
                IpAddr::V4(own) => {
                    let [a, b, c, _] = own.octets();
                    (24, IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(a, b, c, 254)))
                }
                IpAddr::V6(own) => {
                    let other = Ipv6Addr::from_bits(own.to_bits() ^ 0xff00);
                    (64, IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(other))
                }
            };
            netlink::add_address(NAME, address, prefix)?;
            netlink::add_route(everybody, 0, gateway)?;
            Ok(Self { file })
        })
    }

    /// A packet for the host, from its IP header on. What the host does with it is done when this returns.
    pub fn give(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(|_| ())
    }

    /// The host's next packet; nothing when there is none.
    pub fn take<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        match (&self.file).read(buffer) {
            Ok(n) => Ok(Some(&buffer[..n])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for a packet of the host's, so long at most.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(most)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
