//! A captured packet as a TCP segment. Called once per captured packet and per answer of a target.
//!
//! Nothing is copied and nothing is trusted: any bytes give a segment or a named [`Malformed`]. Header slices of `etherparse` do
//! the fixed parts; lengths are ours, because packets cut by the snap length and super-frames with length 0 are normal
//! here and its strict packet slices refuse both. Checksums are not verified: on veth and loopback they are not filled in yet.

use etherparse::TcpHeaderSlice;

use crate::record::{SackBlock, TcpFields};
use crate::{Endpoint, Seq, ip, named_enum, options};

named_enum! {
    /// Why a packet is not a segment.
    pub enum Malformed {
        /// Neither IPv4 nor IPv6.
        NotIp => "not_ip",
        /// Another transport than TCP, and than UDP where datagrams are replayed.
        NotTcp => "not_tcp",
        /// A fragment of a larger datagram; fragments are not put together.
        Fragment => "fragment",
        /// The packet, or what was captured of it, ends within its IP headers.
        ShortIp => "short_ip",
        /// The packet, or what was captured of it, ends within the 20 fixed bytes of the TCP header.
        ShortTcp => "short_tcp",
        /// The IP header's lengths contradict each other or the packet's.
        BadLength => "bad_length",
        /// The TCP header's length is below 20 bytes or beyond the packet.
        BadOffset => "bad_offset",
        /// More IPv6 extension headers than [`ip::MAX_EXTENSIONS`].
        Extensions => "too_many_extensions",
        /// An IPv6 header with an IPv4-mapped address: never valid on the wire, and one of ours would be taken for IPv4.
        MappedAddress => "mapped_address",
        /// The packet, or what was captured of it, ends within the UDP header.
        ShortUdp => "short_udp",
    }
}

/// One TCP segment, or one super-frame of several that the kernel has put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sender.
    pub src: Endpoint,
    /// Receiver.
    pub dst: Endpoint,
    /// The header's fields and options.
    pub tcp: TcpFields,
    /// SACK blocks; the first `sack_count` are meaningful.
    pub sack: [SackBlock; 4],
    /// How many SACK blocks, 0 to 4.
    pub sack_count: u8,
    /// Captured payload bytes.
    pub payload: &'a [u8],
    /// Payload bytes on the wire; more than `payload` holds when the capture was cut.
    pub wire_payload_len: u32,
    /// The two ECN bits of the IP header.
    pub ecn: u8,
    /// The capture ends within the options: those behind the cut are missing.
    pub options_cut: bool,
}

/// The fixed part of a TCP header.
const FIXED: usize = 20;
/// The longest TCP header: 15 words.
const LONGEST: usize = 60;

/// Takes a packet apart, from its IP header on. `wire_len` is its length on the wire, likewise from the IP header on.
pub fn parse(packet: &[u8], wire_len: u32) -> Result<Segment<'_>, Malformed> {
    let ip = ip::parse(packet, wire_len)?;
    if ip.protocol != ip::TCP {
        return Err(Malformed::NotTcp);
    }
    let captured = ip.transport;
    if captured.len() < FIXED {
        return Err(Malformed::ShortTcp);
    }
    let header_len = usize::from(captured[12] >> 4) * 4;
    if header_len < FIXED || header_len as u32 > ip.wire_len {
        return Err(Malformed::BadOffset);
    }
    let options_cut = captured.len() < header_len;
    let mut whole = [0; LONGEST];
    let header = if options_cut {
        // Only for the slice type, which wants a whole header; the options are read from the captured bytes alone.
        whole[..captured.len()].copy_from_slice(captured);
        &whole[..header_len]
    } else {
        &captured[..header_len]
    };
    let fixed = TcpHeaderSlice::from_slice(header).map_err(|_| Malformed::BadOffset)?;
    let mut tcp = TcpFields {
        seq: Seq(fixed.sequence_number()),
        ack: Seq(fixed.acknowledgment_number()),
        flags: u16::from_be_bytes([header[12], header[13]]) & 0x1ff,
        window: fixed.window_size(),
        urgent: fixed.urgent_pointer(),
        ..TcpFields::default()
    };
    let (sack, sack_count) = options::read(&captured[FIXED..header_len.min(captured.len())], &mut tcp);
    Ok(Segment {
        src: Endpoint::new(ip.src, fixed.source_port()),
        dst: Endpoint::new(ip.dst, fixed.destination_port()),
        tcp,
        sack,
        sack_count,
        payload: captured.get(header_len..).unwrap_or_default(),
        wire_payload_len: ip.wire_len - header_len as u32,
        ecn: ip.ecn,
        options_cut,
    })
}

#[cfg(test)]
mod tests;
