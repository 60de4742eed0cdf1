//! Addresses and ports. IPv4 is held as v4-mapped IPv6 (RFC 4291, section 2.5.5.2), so that one table serves both.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IP address in 16 bytes; IPv4 as `::ffff:a.b.c.d`.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// From the four bytes of an IPv4 header.
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// From the sixteen bytes of an IPv6 header.
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// Whether this is an IPv4 address in its mapped form.
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, _, _, _, _])
    }

    /// The four bytes that an IPv4 header carries, if this is IPv4.
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// As the standard library's type: IPv4 comes out as IPv4.
    pub fn to_ip(self) -> IpAddr {
        match self.as_v4() {
            Some(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
            None => IpAddr::V6(Ipv6Addr::from(self.0)),
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and a port (host byte order); 18 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port, in host byte order.
    pub port: u16,
}

impl Endpoint {
    /// From an address and a port in host byte order.
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port }
    }

    /// As the standard library's type.
    pub fn to_socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.addr.to_ip(), self.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(s: SocketAddr) -> Self {
        Self { addr: s.ip().into(), port: s.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_socket_addr().fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_survives_the_mapped_form() {
        let s: SocketAddr = "10.1.2.3:80".parse().unwrap();
        let e = Endpoint::from(s);
        assert!(e.addr.is_v4());
        assert_eq!(e.to_socket_addr(), s);
        assert_eq!(e.to_string(), "10.1.2.3:80");
    }

    #[test]
    fn ipv6_is_kept_as_it_is() {
        let s: SocketAddr = "[2001:2::1]:443".parse().unwrap();
        assert_eq!(Endpoint::from(s).to_string(), "[2001:2::1]:443");
        assert!(!Endpoint::from(s).addr.is_v4());
    }
}
