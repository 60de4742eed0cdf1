//! The IP header of a captured packet: addresses, the transport's bytes, and how long they were on the wire.
//!
//! Called by [`crate::segment::parse`] and by whoever looks into ICMP errors. Packets may be cut by the snap length, padded by
//! Ethernet, longer than 64 KiB (BIG TCP, whose length field is 0), or made up by an attacker.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use crate::Addr;
use crate::segment::Malformed;

/// Protocol numbers (IANA).
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// ICMPv6.
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// IPv6 extension headers walked at most. RFC 8200 expects each kind once, destination options twice; eight leaves room.
pub const MAX_EXTENSIONS: usize = 8;

/// An IP packet taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Sender.
    pub src: Addr,
    /// Receiver.
    pub dst: Addr,
    /// The transport's protocol number.
    pub protocol: u8,
    /// Captured bytes of the transport: its header and payload, without Ethernet padding.
    pub transport: &'a [u8],
    /// Length of the transport on the wire, at least `transport.len()`.
    pub wire_len: u32,
    /// The two ECN bits.
    pub ecn: u8,
}

/// Which part of a larger datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Where it stands in the datagram's transport bytes.
    pub offset: u16,
    /// Whether more follow behind it.
    pub more: bool,
}

/// Takes a packet apart. `wire_len` is the packet's length on the wire from the IP header on; where the header's own length field
/// is 0 (BIG TCP; offloads that leave it to the device), it alone decides.
///
/// Errors: [`Malformed`]; a fragment of a larger datagram is [`Malformed::Fragment`], whatever it carries, since its
/// transport cannot be trusted. An IPv6 "atomic" fragment (RFC 6946) is whole and passes.
pub fn parse(packet: &[u8], wire_len: u32) -> Result<Packet<'_>, Malformed> {
    match parse_any(packet, wire_len)? {
        (packet, None) => Ok(packet),
        (_, Some(_)) => Err(Malformed::Fragment),
    }
}

/// The same for fragments too: `transport` is then the fragment's part of it.
///
/// Errors: [`Malformed`], never [`Malformed::Fragment`].
pub fn parse_any(packet: &[u8], wire_len: u32) -> Result<(Packet<'_>, Option<Fragment>), Malformed> {
    let packet = packet.get(..wire_len as usize).unwrap_or(packet);
    match packet.first().map(|first| first >> 4) {
        Some(4) => parse_v4(packet, wire_len),
        Some(6) => parse_v6(packet, wire_len),
        Some(_) => Err(Malformed::NotIp),
        None => Err(Malformed::ShortIp),
    }
}

type Parsed<'a> = Result<(Packet<'a>, Option<Fragment>), Malformed>;

fn parse_v4(packet: &[u8], wire_len: u32) -> Parsed<'_> {
    let ip = Ipv4HeaderSlice::from_slice(packet).map_err(|error| match error {
        etherparse::err::ipv4::HeaderSliceError::Len(_) => Malformed::ShortIp,
        etherparse::err::ipv4::HeaderSliceError::Content(_) => Malformed::BadLength,
    })?;
    let fragment = ip.is_fragmenting_payload().then(|| Fragment {
        id: ip.identification().into(),
        offset: ip.fragments_offset().value() << 3,
        more: ip.more_fragments(),
    });
    let header = ip.slice().len();
    let (transport, wire_len) = body(packet, header, u32::from(ip.total_len()), wire_len)?;
    let packet = Packet {
        src: Addr::v4(ip.source()),
        dst: Addr::v4(ip.destination()),
        protocol: ip.protocol().0,
        transport,
        wire_len,
        ecn: packet[1] & 3,
    };
    Ok((packet, fragment))
}

fn parse_v6(packet: &[u8], wire_len: u32) -> Parsed<'_> {
    const HEADER: usize = 40;
    let ip = Ipv6HeaderSlice::from_slice(packet).map_err(|_| Malformed::ShortIp)?;
    let total = match ip.payload_length() {
        0 => 0,
        len => u32::from(len) + HEADER as u32,
    };
    let (body, body_len) = body(packet, HEADER, total, wire_len)?;
    let (protocol, skipped, fragment) = skip_extensions(ip.next_header().0, body)?;
    let wire_len = body_len.checked_sub(skipped as u32).ok_or(Malformed::BadLength)?;
    let (src, dst) = (Addr::v6(ip.source()), Addr::v6(ip.destination()));
    if src.is_v4() || dst.is_v4() {
        return Err(Malformed::MappedAddress);
    }
    let packet =
        Packet { src, dst, protocol, transport: &body[skipped..], wire_len, ecn: (packet[1] >> 4) & 3 };
    Ok((packet, fragment))
}

/// What stands behind a header of `header` bytes: captured bytes and length on the wire. `total` is what the header says about
/// the whole packet, 0 for nothing.
fn body(packet: &[u8], header: usize, total: u32, wire_len: u32) -> Result<(&[u8], u32), Malformed> {
    let total = if total == 0 { wire_len } else { total };
    if total > wire_len {
        return Err(Malformed::BadLength);
    }
    let wire_len = total.checked_sub(header as u32).ok_or(Malformed::BadLength)?;
    let captured = packet.get(header..).ok_or(Malformed::ShortIp)?;
    Ok((captured.get(..wire_len as usize).unwrap_or(captured), wire_len))
}

/// Walks IPv6 extension headers; returns the transport's protocol and the bytes before it. The walk ends at the header of a
/// fragment: what stands behind it may be the middle of anything.
fn skip_extensions(mut next: u8, body: &[u8]) -> Result<(u8, usize, Option<Fragment>), Malformed> {
    let mut at = 0;
    for _ in 0..=MAX_EXTENSIONS {
        // Units of 8 bytes not counting the first, but of 4 bytes not counting the first two in the authentication header.
        let (unit, first) = match next {
            HOP_BY_HOP | ROUTING | DESTINATION => (8, 8),
            AUTHENTICATION => (4, 8),
            FRAGMENT => (0, 8),
            _ => return Ok((next, at, None)),
        };
        let header = body.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or(Malformed::ShortIp)?;
        // Offset and "more fragments" of the fragment header; the two reserved bits between them do not count.
        let place = u16::from_be_bytes([header[2], header[3]]);
        if next == FRAGMENT && place & 0xfff9 != 0 {
            let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let fragment = Fragment { id, offset: place & 0xfff8, more: place & 1 != 0 };
            return Ok((header[0], at + 8, Some(fragment)));
        }
        next = header[0];
        at += first + unit * usize::from(header[1]);
        if at > body.len() {
            return Err(Malformed::ShortIp);
        }
    }
    Err(Malformed::Extensions)
}
