//! Links, addresses and routes by rtnetlink, so that a lab needs no `ip` command.
//!
//! Each function opens a socket in the namespace of the calling thread: call them through `Namespace::enter`. A request
//! is sent with an acknowledgement asked for, and the kernel's refusal comes back as an error that names the request.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Makes a bridge and sets it up. Without spanning tree: a port forwards at once.
pub fn add_bridge(name: &str) -> io::Result<()> {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, &format!("making bridge {name}"))?;
    set_up(name, true)
}

/// Makes a pair of Ethernet devices: `name` here, `peer_name` in the namespace behind `peer_namespace`. Offloads stay at
/// their defaults, so super-frames and unfilled checksums occur as on any host.
pub fn add_veth(name: &str, peer_name: &str, peer_namespace: RawFd) -> io::Result<()> {
    let mut peer = named(peer_name);
    peer.attributes.push(LinkAttribute::NetNsFd(peer_namespace));
    let mut link = named(name);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let what = format!("making veth {name} with peer {peer_name}");
    request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, &what)
}

/// Sets a device up or down.
pub fn set_up(name: &str, up: bool) -> io::Result<()> {
    let mut link = existing(name)?;
    link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    link.header.change_mask = LinkFlags::Up;
    request(
        RouteNetlinkMessage::SetLink(link),
        0,
        &format!("setting {name} {}", if up { "up" } else { "down" }),
    )
}

/// Makes a device a port of a bridge.
pub fn set_bridge(name: &str, bridge: &str) -> io::Result<()> {
    let mut link = existing(name)?;
    link.attributes.push(LinkAttribute::Controller(index(bridge)?));
    request(RouteNetlinkMessage::SetLink(link), 0, &format!("adding {name} to bridge {bridge}"))
}

/// Takes a device out of its bridge.
pub fn leave_bridge(name: &str) -> io::Result<()> {
    let mut link = existing(name)?;
    link.attributes.push(LinkAttribute::Controller(0));
    request(RouteNetlinkMessage::SetLink(link), 0, &format!("taking {name} out of its bridge"))
}

/// Sets the MTU of a device, bytes.
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let mut link = existing(name)?;
    link.attributes.push(LinkAttribute::Mtu(mtu));
    request(RouteNetlinkMessage::SetLink(link), 0, &format!("setting the MTU of {name} to {mtu}"))
}

/// Gives a device an address; IPv6 without duplicate address detection, so that it is usable at once.
pub fn add_address(name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index(name)?;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    let what = format!("giving {name} the address {address}/{prefix}");
    request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, &what)
}

/// Routes a destination through a gateway, replacing an equal route.
pub fn add_route(destination: IpAddr, prefix: u8, gateway: IpAddr) -> io::Result<()> {
    let what = format!("routing {destination}/{prefix} via {gateway}");
    let message = route(destination, prefix, gateway);
    request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, &what)
}

/// Removes a route made by [`add_route`].
pub fn remove_route(destination: IpAddr, prefix: u8, gateway: IpAddr) -> io::Result<()> {
    let what = format!("removing the route of {destination}/{prefix} via {gateway}");
    request(RouteNetlinkMessage::DelRoute(route(destination, prefix, gateway)), 0, &what)
}

fn route(destination: IpAddr, prefix: u8, gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(destination)),
        RouteAttribute::Gateway(RouteAddress::from(gateway)),
    ];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn existing(name: &str) -> io::Result<LinkMessage> {
    let mut link = LinkMessage::default();
    link.header.index = index(name)?;
    Ok(link)
}

/// The index of a device of the calling thread's namespace.
pub fn index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|errno| io::Error::other(format!("finding device {name}: {errno}")))
}

/// Sends one request and waits for the kernel's acknowledgement.
fn request(message: RouteNetlinkMessage, flags: u16, what: &str) -> io::Result<()> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    header.sequence_number = 1;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    socket.send(&bytes, 0).map_err(failed)?;
    let (answer, _) = socket.recv_from_full().map_err(failed)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|e| failed(io::Error::other(format!("the kernel's answer makes no sense: {e}"))))?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(failed(error.to_io())),
        _ => Ok(()),
    }
}
