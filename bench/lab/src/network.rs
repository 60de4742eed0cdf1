//! The hosts of a replay, each in a network namespace of its own, on one bridge.
//!
//! Made by tests, demo and benchmarks. Nothing outside the namespaces is touched, and everything is gone with this value.
//!
//! | host | IPv4 | IPv6 |
//! |---|---|---|
//! | client | 10.88.0.2 | fd88::2 |
//! | online | 10.88.0.3 | fd88::3 |
//! | target | 10.88.0.4 | fd88::4 |
//! | assistant | 10.88.0.5 | fd88::5 |
//! | online2 | 10.88.0.6 | fd88::6 |
//! | assistant2 | 10.88.0.7 | fd88::7 |

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use crate::namespace::Namespace;
use crate::netlink;

/// A host of the lab: a namespace with one device, `eth0`.
pub struct Host {
    /// Where its processes run.
    pub ns: Namespace,
    /// Last byte of its addresses.
    pub number: u8,
}

impl Host {
    /// 10.88.0.N.
    pub fn v4(&self) -> IpAddr {
        v4(self.number)
    }

    /// fd88::N.
    pub fn v6(&self) -> IpAddr {
        v6(self.number)
    }
}

/// Where the target sends its answers to replayed clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Via the assistant host, which drops them: the three-host set-up.
    ViaAssistant,
    /// Lower half of the client range via the assistant, upper half via assistant2: two intercepts of one run.
    ViaTwoAssistants,
    /// No route of ours: for `tcptwin intercept --tun` on the target.
    NoRoute,
}

/// The lab's network.
pub struct Network {
    /// Where real clients are.
    pub client: Host,
    /// The production host.
    pub online: Host,
    /// A second production host.
    pub online2: Host,
    /// The host under test.
    pub target: Host,
    /// Where `tcptwin intercept` runs.
    pub assistant: Host,
    /// Where a second one runs.
    pub assistant2: Host,
    /// Where the bridge is, with a port `to-NAME` for each host.
    pub switch: Namespace,
}

/// The replayed clients' range, as `tcptwin` takes it by default (RFC 2544).
pub const CLIENTS_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// The same for IPv6 (RFC 5180).
pub const CLIENTS_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);

impl Network {
    /// The three-host set-up: the target answers replayed clients via the assistant.
    pub fn standard() -> io::Result<Self> {
        Self::new(Answers::ViaAssistant)
    }

    /// The hosts, with the target's route as asked.
    pub fn new(answers: Answers) -> io::Result<Self> {
        let switch = Namespace::new("switch")?;
        switch.enter(|| netlink::add_bridge("br0"))?;
        let host = |name: &str, number: u8| join(&switch, name, number);
        let network = Self {
            client: host("client", 2)?,
            online: host("online", 3)?,
            target: host("target", 4)?,
            assistant: host("assistant", 5)?,
            online2: host("online2", 6)?,
            assistant2: host("assistant2", 7)?,
            switch,
        };
        // A client that opens thousands of connections a second needs ports, and may take again those in TIME_WAIT.
        network.client.ns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        network.client.ns.set_sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        network.target.ns.enter(move || route_answers(answers))?;
        Ok(network)
    }

    /// All hosts, in the order of their addresses.
    pub fn hosts(&self) -> [&Host; 6] {
        [&self.client, &self.online, &self.target, &self.assistant, &self.online2, &self.assistant2]
    }
}

/// Sends the answers to a client range of the tests' own choosing via a gateway; called in the target's namespace.
pub fn route_range(target: &Host, destination: IpAddr, prefix: u8, gateway: IpAddr) -> io::Result<()> {
    target.ns.enter(move || netlink::add_route(destination, prefix, gateway))
}

fn route_answers(answers: Answers) -> io::Result<()> {
    let (net4, len4) = CLIENTS_V4;
    let (net6, len6) = CLIENTS_V6;
    match answers {
        Answers::ViaAssistant => {
            netlink::add_route(net4.into(), len4, v4(5))?;
            netlink::add_route(net6.into(), len6, v6(5))
        }
        Answers::ViaTwoAssistants => {
            netlink::add_route(net4.into(), len4 + 1, v4(5))?;
            netlink::add_route(Ipv4Addr::new(198, 19, 0, 0).into(), len4 + 1, v4(7))?;
            netlink::add_route(net6.into(), len6, v6(5))
        }
        Answers::NoRoute => Ok(()),
    }
}

/// Makes a host and plugs it into the bridge.
fn join(switch: &Namespace, name: &str, number: u8) -> io::Result<Host> {
    let ns = Namespace::new(name)?;
    // IPv6 first, so that the device comes up without waiting for duplicate address detection.
    ns.set_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    ns.set_sysctl("net/ipv6/conf/all/accept_dad", "0")?;
    for (path, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/tcp_max_syn_backlog", "16384"),
        ("net/core/somaxconn", "16384"),
    ] {
        ns.set_sysctl(path, value)?;
    }
    let (port, peer) = (format!("to-{name}"), ns.fd().as_raw_fd());
    switch.enter(move || {
        netlink::add_veth(&port, "eth0", peer)?;
        netlink::set_bridge(&port, "br0")?;
        netlink::set_up(&port, true)
    })?;
    ns.enter(move || {
        netlink::set_up("lo", true)?;
        netlink::set_up("eth0", true)?;
        netlink::add_address("eth0", v4(number), 16)?;
        netlink::add_address("eth0", v6(number), 64)
    })?;
    ns.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
    Ok(Host { ns, number })
}

fn v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 88, 0, number).into()
}

fn v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, u16::from(number)).into()
}
