//! The way to a target as the kernel sees it: local address, device, next hop, MTU. Asked once per target before the
//! roles start, by the preflight of the supervisor, which also learns here that an address is no target at all: this
//! host, loopback, broadcast, multicast.
//!
//! `RTM_GETROUTE` names device and next hop (rtnetlink(7)); the MTU comes from a connected UDP socket (`IP_MTU`), which
//! knows route metrics and learned path MTUs too. Nothing leaves the host.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use topology::Plan;
use topology::guard::Place;

use crate::handshake::words;
use crate::rtnl::Rtnl;
use crate::sys;

/// The route to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteFacts {
    /// What kind of place it is.
    pub place: Place,
    /// The address that this host would send from.
    pub local: IpAddr,
    /// Largest IP packet of the route, bytes.
    pub mtu: u16,
    /// Name of the device that it leaves by; empty when the kernel names none.
    pub device: String,
    /// Index of that device; 0 when the kernel names none.
    pub device_index: u32,
    /// The gateway; none when the address is on the device's own link.
    pub next_hop: Option<IpAddr>,
}

/// Why there are no facts.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel has no route, or one that refuses.
    #[error(
        "this host has no route to {to} ({reason}). Check the address, then `ip route get {to}`, and add the route that is missing"
    )]
    NoRoute {
        /// The address asked for.
        to: IpAddr,
        /// The kernel's reason.
        reason: String,
    },
    /// Asking failed.
    #[error(
        "asking the kernel for the route to {to} failed at {step}: {source}. Without netlink nothing can be sent from here; is this a restricted container?"
    )]
    Ask {
        /// The address asked for.
        to: IpAddr,
        /// What was being done.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Asks the kernel how it would reach `to`.
pub fn route_to(to: SocketAddr) -> Result<RouteFacts, RouteError> {
    let ip = to.ip();
    let ask = |step| move |source| RouteError::Ask { to: ip, step, source };
    if let Some(place) = place_by_address(ip) {
        let facts = RouteFacts {
            place,
            local: ip,
            mtu: u16::MAX,
            device: String::new(),
            device_index: 0,
            next_hop: None,
        };
        return Ok(match place {
            // Loopback has a real route: a lab may replay over it.
            Place::Loopback => route_or(to, facts),
            _ => facts,
        });
    }
    let rtnl = Rtnl::open().map_err(ask("opening a netlink socket"))?;
    let answer = ask_route(&rtnl, to).map_err(ask("RTM_GETROUTE"))?;
    let answer = answer.map_err(|reason| RouteError::NoRoute { to: ip, reason })?;
    let place = match answer.kind {
        RouteType::Local | RouteType::Anycast => Place::ThisHost,
        RouteType::Broadcast => Place::Broadcast,
        RouteType::Multicast => Place::Multicast,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            return Err(RouteError::NoRoute { to: ip, reason: "the route refuses".to_owned() });
        }
        _ => Place::Remote,
    };
    let (local, mtu) = match place {
        Place::Broadcast | Place::Multicast => (answer.source.unwrap_or(ip), u16::MAX),
        _ => {
            let (local, mtu) = probe(to).map_err(ask("a UDP socket connected to it"))?;
            (answer.source.unwrap_or(local), mtu)
        }
    };
    let device = match answer.device_index {
        0 => String::new(),
        index => sys::device_name(index).unwrap_or_default(),
    };
    Ok(RouteFacts { place, local, mtu, device, device_index: answer.device_index, next_hop: answer.next_hop })
}

/// The address that a target's route to the replayed clients must name: the assistant's. Where intercept is reached by loopback it is
/// this host's own, as the target sees it. None where intercept is on the target itself.
pub fn gateway(plan: &Plan, target: SocketAddr) -> Option<IpAddr> {
    let at = plan.intercepts.iter().map(SocketAddr::ip).find(|ip| *ip != target.ip())?;
    let own = at.is_loopback().then(|| route_to(target).ok()).flatten();
    Some(own.map_or(at, |route| route.local))
}

/// What the address itself says, whatever the routes say.
fn place_by_address(ip: IpAddr) -> Option<Place> {
    match ip {
        _ if ip.is_unspecified() => Some(Place::Unspecified),
        _ if ip.is_loopback() => Some(Place::Loopback),
        _ if ip.is_multicast() => Some(Place::Multicast),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(Place::Broadcast),
        _ => None,
    }
}

/// The facts of a loopback address, as far as the kernel gives them.
fn route_or(to: SocketAddr, facts: RouteFacts) -> RouteFacts {
    let Ok(rtnl) = Rtnl::open() else { return facts };
    let (Ok(Ok(answer)), Ok((local, mtu))) = (ask_route(&rtnl, to), probe(to)) else { return facts };
    let device = sys::device_name(answer.device_index).unwrap_or_default();
    RouteFacts { local, mtu, device, device_index: answer.device_index, ..facts }
}

/// Local address and MTU of the route, from a UDP socket that never sends.
fn probe(to: SocketAddr) -> io::Result<(IpAddr, u16)> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    // Port 9 (discard) when there is none: a connected UDP socket sends nothing.
    let mut peer = to;
    if peer.port() == 0 {
        peer.set_port(9);
    }
    socket.connect(peer)?;
    Ok((socket.local_addr()?.ip(), sys::route_mtu(&socket, to.is_ipv4())?))
}

/// MTU of the route to `to` as the kernel knows it now, bytes; `None` when there is no route.
pub(crate) fn mtu_to(to: SocketAddr) -> Option<u16> {
    probe(to).ok().map(|(_, mtu)| mtu)
}

/// What RTM_GETROUTE answered.
pub(crate) struct Answer {
    pub(crate) kind: RouteType,
    source: Option<IpAddr>,
    pub(crate) next_hop: Option<IpAddr>,
    pub(crate) device_index: u32,
    /// The kernel puts something around packets of this route (MPLS, segment routing, tunnels).
    pub(crate) encapsulated: bool,
}

/// RTM_GETROUTE about one address.
pub(crate) fn question_about(to: SocketAddr) -> RouteMessage {
    let mut question = RouteMessage::default();
    let (family, bits) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, 32),
        SocketAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question.attributes.push(RouteAttribute::Destination(RouteAddress::from(to.ip())));
    question
}

/// The outer error is ours (no netlink), the inner one the kernel's (no route).
pub(crate) fn ask_route(rtnl: &Rtnl, to: SocketAddr) -> io::Result<Result<Answer, String>> {
    let mut question = question_about(to);
    if let SocketAddr::V6(v6) = to
        && v6.scope_id() != 0
    {
        question.attributes.push(RouteAttribute::Oif(v6.scope_id()));
    }
    match rtnl.ask(RouteNetlinkMessage::GetRoute(question), 0)? {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(Ok(Answer::from(&route))),
        Ok(other) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("an unexpected answer: {other:?}")))
        }
        Err(refusal) => Ok(Err(words(&refusal))),
    }
}

impl From<&RouteMessage> for Answer {
    fn from(route: &RouteMessage) -> Self {
        let mut answer = Answer {
            kind: route.header.kind,
            source: None,
            next_hop: None,
            device_index: 0,
            encapsulated: false,
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::PrefSource(a) => answer.source = ip_of(a),
                RouteAttribute::Gateway(a) => answer.next_hop = ip_of(a),
                RouteAttribute::Via(RouteVia::Inet(a)) => answer.next_hop = Some(IpAddr::V4(*a)),
                RouteAttribute::Via(RouteVia::Inet6(a)) => answer.next_hop = Some(IpAddr::V6(*a)),
                RouteAttribute::Oif(index) => answer.device_index = *index,
                RouteAttribute::EncapType(_)
                | RouteAttribute::Encap(_)
                | RouteAttribute::NewDestination(_) => {
                    answer.encapsulated = true;
                }
                _ => {}
            }
        }
        answer
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        route_to(text.parse().unwrap()).unwrap().place
    }

    #[test]
    fn addresses_that_are_no_targets_are_named() {
        assert_eq!(place("127.0.0.1:80"), Place::Loopback);
        assert_eq!(place("[::1]:80"), Place::Loopback);
        assert_eq!(place("224.0.0.1:80"), Place::Multicast);
        assert_eq!(place("[ff02::1]:80"), Place::Multicast);
        assert_eq!(place("255.255.255.255:80"), Place::Broadcast);
        assert_eq!(place("0.0.0.0:80"), Place::Unspecified);
    }

    #[test]
    fn the_route_at_the_target_names_an_address_that_the_target_knows() {
        let at = |intercept: &str| Plan {
            intercepts: vec![intercept.parse().unwrap()],
            ..crate::testing::plan(&["10.0.3.2:8080"])
        };
        let target = "127.0.0.2:8080".parse().unwrap();
        assert_eq!(gateway(&at("10.0.4.2:36524"), target), Some("10.0.4.2".parse().unwrap()));
        assert_eq!(gateway(&at("127.0.0.2:36524"), target), None, "on the target it needs none");
        let own = route_to(target).unwrap().local;
        assert_eq!(gateway(&at("127.0.0.1:36524"), target), Some(own));
    }

    #[test]
    fn loopback_has_a_device_and_an_mtu() {
        let facts = route_to("127.0.0.1:80".parse().unwrap()).unwrap();
        assert_eq!(facts.device, "lo");
        assert_eq!(facts.local.to_string(), "127.0.0.1");
        assert!(facts.mtu >= 1_280, "{}", facts.mtu);
    }
}
