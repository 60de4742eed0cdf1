//! What this host's kernel says about a device, a neighbour, or a packet that somebody might send it; for `tcptwin doctor`.
//! Nothing is changed, and nothing leaves the host but the kernel's own question for a neighbour.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};

use crate::path::question_about;
use crate::rtnl::Rtnl;
use crate::sys;
use crate::way::{neighbour, nudge};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its name.
    pub name: String,
    /// Set up by the administrator.
    pub is_up: bool,
    /// Connected.
    pub has_carrier: bool,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Cuts what is sent in one piece (TSO).
    pub cuts: bool,
    /// Joins what it receives (GRO).
    pub joins: bool,
}

/// How the kernel sees the next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its address on the link is known.
    Known,
    /// Nobody answers for it.
    Silent,
    /// The device asks for none.
    NotNeeded,
}

/// What the kernel would do with a packet that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Take it.
    Taken,
    /// Drop it for its source: by the reverse path (rp_filter), or as one that nobody elsewhere can have.
    Dropped,
    /// Refuse it: a route says so.
    Refused,
}

/// Asks about a device.
pub fn device(index: u32) -> io::Result<DeviceFacts> {
    let mut question = LinkMessage::default();
    question.header.index = index;
    let answer = Rtnl::open()?.ask(RouteNetlinkMessage::GetLink(question), 0)??;
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no description of the device"));
    };
    let mut facts = DeviceFacts {
        name: String::new(),
        is_up: link.header.flags.contains(LinkFlags::Up),
        has_carrier: link.header.flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        cuts: false,
        joins: false,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => {
                (facts.cuts, facts.joins) = (sys::segments_tcp(name), sys::joins_received(name));
                facts.name.clone_from(name);
            }
            LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
            _ => {}
        }
    }
    Ok(facts)
}

/// Whether the next hop is there, after so much time at most. Makes the kernel ask for it.
pub fn next_hop(device: u32, hop: IpAddr, patience: Duration) -> io::Result<Neighbour> {
    let rtnl = Rtnl::open()?;
    let until = Instant::now() + patience;
    let mut nudged = false;
    loop {
        let state = match rtnl.ask(RouteNetlinkMessage::GetNeighbour(neighbour(device, hop)), 0)? {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => {
                let known = entry.attributes.iter().any(|attribute| {
                    matches!(attribute, NeighbourAttribute::LinkLayerAddress(mac) if !mac.is_empty())
                });
                Some((entry.header.state, known))
            }
            _ => None,
        };
        match state {
            Some((NeighbourState::Noarp, _)) => return Ok(Neighbour::NotNeeded),
            Some((NeighbourState::Failed, _)) if nudged => return Ok(Neighbour::Silent),
            Some((NeighbourState::Incomplete | NeighbourState::Failed, _)) | None => {}
            Some((_, known)) => return Ok(if known { Neighbour::Known } else { Neighbour::NotNeeded }),
        }
        if !nudged {
            nudge(&rtnl, device, hop);
            nudged = true;
        }
        if Instant::now() >= until {
            return Ok(Neighbour::Silent);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the kernel would do with a packet from `from` to `to` that came in by a device: its own word, reverse path and all
/// (RTM_GETROUTE with RTA_IIF, as `ip route get TO from FROM iif DEVICE`).
pub fn entry(from: IpAddr, to: SocketAddr, device: u32) -> io::Result<Entry> {
    let mut question = question_about(to);
    question.header.source_prefix_length = question.header.destination_prefix_length;
    question
        .attributes
        .extend([RouteAttribute::Source(RouteAddress::from(from)), RouteAttribute::Iif(device)]);
    Ok(match Rtnl::open()?.ask(RouteNetlinkMessage::GetRoute(question), 0)? {
        Ok(_) => Entry::Taken,
        Err(refusal) => match refusal.raw_os_error() {
            // Kernels before 6.13 tell the reverse path (EXDEV) from the rest, later ones do not.
            Some(libc::EXDEV | libc::EINVAL) => Entry::Dropped,
            _ => Entry::Refused,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_up_and_needs_no_neighbour() {
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        let lo = device(index).unwrap();
        assert_eq!(lo.name, "lo");
        assert!(lo.mtu >= 1_500, "{lo:?}");
        assert!(device(u32::MAX >> 1).is_err());
    }

    #[test]
    fn the_kernel_is_asked_about_a_packet_that_would_come_in() {
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        // On loopback itself it is none; what matters here is that the kernel's word comes back at all.
        let word = entry("127.0.0.1".parse().unwrap(), "127.0.0.1:80".parse().unwrap(), index).unwrap();
        assert!(matches!(word, Entry::Taken | Entry::Dropped), "{word:?}");
    }
}
