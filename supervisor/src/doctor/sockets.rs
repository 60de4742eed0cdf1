//! Who listens and who is connected on this host, as /proc/net says (proc_net(5)).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use topology::plan::Protocol;

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    local: SocketAddr,
    remote: SocketAddr,
    /// Listens, or takes datagrams from anybody.
    listens: bool,
}

/// The sockets of one protocol.
pub(crate) struct Table(Vec<Entry>);

/// State of a listening socket of TCP, and of an unconnected one of UDP.
const LISTENS: [&str; 2] = ["0A", "07"];

impl Table {
    /// Reads it, in the namespace of this thread.
    pub(crate) fn read(protocol: Protocol) -> Self {
        let (names, listens) = match protocol {
            Protocol::Tcp => (["tcp", "tcp6"], LISTENS[0]),
            Protocol::Udp => (["udp", "udp6"], LISTENS[1]),
        };
        let read = |name: &&str| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
        };
        Self(names.iter().map(read).flat_map(|text| parse(&text, listens)).collect())
    }

    /// Whether somebody listens at this port: at the address, or at every one.
    pub(crate) fn listens(&self, ip: Option<IpAddr>, port: u16) -> bool {
        self.0.iter().any(|entry| {
            let at = entry.local.ip();
            entry.listens
                && entry.local.port() == port
                && ip.is_none_or(|ip| at == ip || at.is_unspecified() && (ip.is_ipv4() || at.is_ipv6()))
        })
    }

    /// Addresses at which somebody listens, but for loopback, by port.
    pub(crate) fn listening(&self) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> = self
            .0
            .iter()
            .filter(|entry| entry.listens && !entry.local.ip().is_loopback())
            .map(|entry| entry.local)
            .collect();
        found.sort_by_key(|at| (at.port(), at.ip()));
        found.dedup_by_key(|at| at.port());
        found
    }

    /// Services of this host with clients elsewhere, the busiest first: port and connections.
    pub(crate) fn busy(&self) -> Vec<(u16, usize)> {
        let mut count: BTreeMap<u16, usize> = BTreeMap::new();
        for entry in self.0.iter().filter(|entry| !entry.listens && !entry.remote.ip().is_loopback()) {
            if self.listens(None, entry.local.port()) {
                *count.entry(entry.local.port()).or_default() += 1;
            }
        }
        let mut ports: Vec<(u16, usize)> = count.into_iter().collect();
        ports.sort_by_key(|(port, connections)| (std::cmp::Reverse(*connections), *port));
        ports
    }
}

fn parse(text: &str, listens: &str) -> Vec<Entry> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, remote) = (address(fields.get(1)?)?, address(fields.get(2)?)?);
        Some(Entry { local, remote, listens: *fields.get(3)? == listens })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:1F90`: the address in words of the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u32>> = (0..ip.len() / 8)
        .map(|i| ip.get(i * 8..i * 8 + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok()))
        .collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::V4(Ipv4Addr::from(four)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_read_as_its_kernel_writes_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let table = Table::read(Protocol::Tcp);
        assert!(table.listens(Some(at.ip()), at.port()));
        assert!(!table.listens(Some("127.0.0.9".parse().unwrap()), at.port()));
        let six = std::net::TcpListener::bind("[::1]:0").map(|listener| listener.local_addr().unwrap());
        if let Ok(six) = six {
            assert_eq!(
                address(&format!("{}:{:04X}", "00000000000000000000000001000000", six.port())),
                Some(six)
            );
        }
    }

    #[test]
    fn a_service_at_every_address_is_one_at_each() {
        let text = "head\n 0: 00000000:0050 00000000:0000 0A x\n 1: 0300580A:0050 0200580A:9C40 01 x\n 2: 0300580A:9C41 0900580A:1F90 01 x\n";
        let table = Table(parse(text, LISTENS[0]));
        assert!(table.listens(Some("10.88.0.3".parse().unwrap()), 80) && table.listens(None, 80));
        assert!(!table.listens(Some("fd88::3".parse().unwrap()), 80));
        assert_eq!(table.busy(), [(80, 1)], "a connection of ours to elsewhere is no client");
        assert_eq!(table.listening().len(), 1);
    }
}
