//! The way of a frame to a target: device, link-layer header, what the device takes at once. Asked by the supervisor before
//! the start, and followed by it while the role runs ([`crate::ways`]). Nobody types an address of a card.

use std::io;
use std::net::{IpAddr, SocketAddr};

use flow::named_enum;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::cut::SuperFrames;
use crate::ipsec;
use crate::path::{self, ask_route};
use crate::rtnl::Rtnl;
use crate::sys;

named_enum! {
    /// By which engine a target is sent to; where that is raw IP, why not by link.
    pub enum Choice {
        /// Nobody has looked yet.
        Unknown => "not asked yet",
        /// Frames of our own, on a guarded device.
        Link => "link",
        /// Frames of our own through libpcap.
        Pcap => "pcap",
        /// The person wants it so.
        RawAsked => "asked for",
        /// The kernel could not be asked about routes.
        NoNetlink => "no netlink",
        /// The packet socket could not be opened.
        NoSocket => "no packet socket",
        /// libpcap cannot send on the device.
        NoPcap => "libpcap could not open the device",
        /// Nothing in the kernel would stop a stray frame on the device.
        NoGuard => "no nftables guard",
        /// The kernel has no route, or one that refuses.
        NoRoute => "no route",
        /// The next hop's address on the link is not known; the kernel asks for it.
        NoNeighbour => "the next hop has not answered yet",
        /// The device of the route is down.
        Down => "the device is down",
        /// Loopback, or an address of this host.
        ThisHost => "a target on this host",
        /// Only the kernel can wrap packets as this route wants it.
        Encapsulated => "the route wraps packets",
        /// Only the kernel can protect packets as its policies want it.
        Ipsec => "IPsec has a policy for the target",
        /// A link layer that we cannot speak.
        OtherDevice => "the device is neither Ethernet nor plain IP",
    }
}

impl Choice {
    /// As `stats` names it.
    pub const fn engine(self) -> &'static str {
        match self {
            Choice::Link => "link",
            Choice::Pcap => "pcap",
            _ => "raw",
        }
    }

    /// Whether it may be another one soon, without anybody doing anything here.
    pub(crate) const fn may_pass(self) -> bool {
        matches!(self, Choice::Unknown | Choice::NoRoute | Choice::NoNeighbour | Choice::Down)
    }
}

/// How frames to a target are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Index of the device.
    pub(crate) device: u32,
    /// Largest IP packet of the route, bytes.
    pub(crate) mtu: u16,
    /// Link-layer header, where there is one.
    head: [u8; ETHERNET],
    head_len: u8,
    /// Of the packets: 0x0800 or 0x86dd.
    pub(crate) protocol: u16,
    /// What the device cuts by itself.
    pub(crate) super_frames: SuperFrames,
    /// The kernel knows the next hop from earlier and would ask again before it relied on it.
    stale: Option<IpAddr>,
}

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Larger ones need lengths that IP has no room for, and kernels that know how (BIG TCP).
const LARGEST_PACKET: u32 = 65_535;

impl Way {
    /// One that another process found ([`crate::ways`]); the kernel is looked after there. At most so much of the header as fits.
    pub(crate) fn told(
        device: u32,
        mtu: u16,
        header: &[u8],
        protocol: u16,
        super_frames: SuperFrames,
    ) -> Self {
        let mut head = [0; ETHERNET];
        let head_len = header.len().min(ETHERNET);
        head[..head_len].copy_from_slice(&header[..head_len]);
        Self { device, mtu, head, head_len: head_len as u8, protocol, super_frames, stale: None }
    }

    /// The link-layer header.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// Asks the kernel to look after the next hop as its own traffic would: without that an entry is never confirmed.
    pub(crate) fn keep_fresh(&self, rtnl: &Rtnl) {
        if let Some(hop) = self.stale {
            nudge(rtnl, self.device, hop);
        }
    }
}

/// The way to a target as it is now; where the next hop is not known, the kernel is made to ask for it.
pub(crate) fn find(rtnl: &Rtnl, target: SocketAddr) -> Result<Way, Choice> {
    if target.ip().is_loopback() {
        return Err(Choice::ThisHost);
    }
    let Ok(Ok(route)) = ask_route(rtnl, target) else { return Err(Choice::NoRoute) };
    match route.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Anycast => return Err(Choice::ThisHost),
        _ => return Err(Choice::NoRoute),
    }
    if route.encapsulated {
        return Err(Choice::Encapsulated);
    }
    if ipsec::covers(target.ip()) {
        return Err(Choice::Ipsec);
    }
    let mtu = path::mtu_to(target).ok_or(Choice::NoRoute)?;
    let device = Device::ask(rtnl, route.device_index).map_err(|_| Choice::NoRoute)?;
    if !device.is_up {
        return Err(Choice::Down);
    }
    let protocol = if target.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 } as u16;
    let mut way = Way {
        device: route.device_index,
        mtu,
        head: [0; ETHERNET],
        head_len: 0,
        protocol,
        super_frames: SuperFrames::default(),
        stale: None,
    };
    match device.kind {
        // TUN, WireGuard, tunnels of IP in IP: a packet is the frame.
        LinkLayerType::None | LinkLayerType::Rawip => {}
        LinkLayerType::Ether if device.resolves => {
            let hop = route.next_hop.unwrap_or(target.ip());
            let (mac, fresh) = match ask_neighbour(rtnl, route.device_index, hop) {
                Some(known) => known,
                None => {
                    nudge(rtnl, route.device_index, hop);
                    return Err(Choice::NoNeighbour);
                }
            };
            way.stale = (!fresh).then_some(hop);
            way.head[..6].copy_from_slice(&mac);
            way.head[6..12].copy_from_slice(&device.mac);
            way.head[12..].copy_from_slice(&protocol.to_be_bytes());
            way.head_len = ETHERNET as u8;
        }
        _ => return Err(Choice::OtherDevice),
    }
    way.super_frames = device.super_frames(target.is_ipv4(), way.head_len);
    Ok(way)
}

/// What a link-layer header needs to know of a device.
struct Device {
    kind: LinkLayerType,
    is_up: bool,
    /// Its neighbours are asked for (ARP, neighbour discovery).
    resolves: bool,
    mac: [u8; 6],
    max_bytes: u32,
    max_bytes_v4: u32,
    max_segments: u32,
    cuts: bool,
}

impl Device {
    fn ask(rtnl: &Rtnl, index: u32) -> io::Result<Self> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answer = rtnl.ask(RouteNetlinkMessage::GetLink(question), 0)??;
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no description of the device"));
        };
        let mut device = Self {
            kind: link.header.link_layer_type,
            is_up: link.header.flags.contains(LinkFlags::Up),
            resolves: !link.header.flags.contains(LinkFlags::Noarp),
            mac: [0; 6],
            max_bytes: LARGEST_PACKET,
            max_bytes_v4: LARGEST_PACKET,
            max_segments: u32::from(u16::MAX),
            cuts: false,
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.cuts = sys::segments_tcp(name),
                LinkAttribute::Address(mac) => device.mac = mac.as_slice().try_into().unwrap_or_default(),
                LinkAttribute::GsoMaxSize(bytes) => device.max_bytes = *bytes,
                LinkAttribute::GsoIpv4MaxSize(bytes) => device.max_bytes_v4 = *bytes,
                LinkAttribute::GsoMaxSegs(segments) => device.max_segments = *segments,
                _ => {}
            }
        }
        Ok(device)
    }

    /// A frame that the device does not cut itself is lost: the direct way to its driver leads past the code that would.
    fn super_frames(&self, v4: bool, head_len: u8) -> SuperFrames {
        if !self.cuts {
            return SuperFrames::default();
        }
        let most = if v4 { self.max_bytes.min(self.max_bytes_v4) } else { self.max_bytes };
        // Its limit is one of frames, and they must stay below it (netif_skb_features).
        let bytes = most.saturating_sub(u32::from(head_len) + 1).min(LARGEST_PACKET);
        SuperFrames { bytes: bytes as u16, segments: self.max_segments.min(u32::from(u16::MAX)) as u16 }
    }
}

/// The next hop's address on the link, and whether the kernel relies on it.
fn ask_neighbour(rtnl: &Rtnl, device: u32, hop: IpAddr) -> Option<([u8; 6], bool)> {
    let question = RouteNetlinkMessage::GetNeighbour(neighbour(device, hop));
    let Ok(Ok(Some(RouteNetlinkMessage::NewNeighbour(entry)))) = rtnl.ask(question, 0) else { return None };
    let fresh = match entry.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => true,
        // Being asked again already, but used meanwhile, as the kernel does.
        NeighbourState::Delay | NeighbourState::Probe => true,
        NeighbourState::Stale => false,
        _ => return None,
    };
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some((mac.as_slice().try_into().ok()?, fresh)),
        _ => None,
    })
}

/// Tells the kernel that somebody wants to send there: it asks for the neighbour, or makes sure of it. Needs CAP_NET_ADMIN;
/// without it the first packet by raw IP does the same.
pub(crate) fn nudge(rtnl: &Rtnl, device: u32, hop: IpAddr) {
    let mut message = neighbour(device, hop);
    message.header.flags = NeighbourFlags::Use;
    let _ = rtnl.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_ACK);
}

pub(crate) fn neighbour(device: u32, hop: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = device;
    let (family, address) = match hop {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}
