//! VXLAN (RFC 7348) and GENEVE (RFC 8926), as the traffic mirrors of clouds send them: the IP packet within the IP packet.

use flow::ip;

use crate::link::{self, Without, kind};

/// An inner packet: where it begins in the outer one and how long it was on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inner {
    pub(crate) at: usize,
    pub(crate) wire_len: u32,
}

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const TUNNEL_HEADER: usize = 8;
/// VXLAN's port, and that of Linux before there was one.
const VXLAN: [u16; 2] = [4_789, 8_472];
const GENEVE: u16 = 6_081;
/// "Transparent Ethernet bridging", as the protocol within GENEVE.
const BRIDGED: u16 = 0x6558;

/// The packet inside; `Ok(None)` when this is no tunnel's.
pub(crate) fn inner(packet: &[u8], wire_len: u32) -> Result<Option<Inner>, Without> {
    let Ok(outer) = ip::parse(packet, wire_len) else { return Ok(None) };
    let udp = outer.transport;
    if outer.protocol != UDP || udp.len() < UDP_HEADER {
        return Ok(None);
    }
    let port = u16::from_be_bytes([udp[2], udp[3]]);
    let body = &udp[UDP_HEADER..];
    let Some(head) = body.first_chunk::<TUNNEL_HEADER>() else { return Ok(None) };
    let (header, link) = if VXLAN.contains(&port) && head[0] & 0x08 != 0 {
        (TUNNEL_HEADER, kind::ETHERNET)
    } else if port == GENEVE && head[0] >> 6 == 0 {
        let header = TUNNEL_HEADER + 4 * usize::from(head[0] & 0x3f);
        match u16::from_be_bytes([head[2], head[3]]) {
            BRIDGED => (header, kind::ETHERNET),
            0x0800 | 0x86dd => (header, kind::RAW),
            _ => return Err(Without::NotIp),
        }
    } else {
        return Ok(None);
    };
    let frame = body.get(header..).ok_or(Without::Short)?;
    let before = UDP_HEADER + header + link::ip_offset(link, frame)?;
    let transport_at = udp.as_ptr() as usize - packet.as_ptr() as usize;
    // `ip_offset` found a byte there, and `parse` promises at least as many on the wire as captured.
    let wire_len = outer.wire_len - before as u32;
    Ok(Some(Inner { at: transport_at + before, wire_len }))
}
