//! A captured packet as a UDP datagram (RFC 768), whole or in fragments. Called for packets that are no TCP, where datagrams are
//! mapped, and for the targets' answers.
//!
//! Nothing is copied and nothing is trusted, as in [`crate::segment`]. Checksums are not verified: on veth and loopback they are
//! not filled in yet; IPv4 allows none at all (0), and IPv6 has none of 0 but from tunnels (RFC 6936), which are taken
//! as they are: what is sent has a checksum of its own in either case.
//!
//! Datagrams that the kernel carries in one packet (UDP_SEGMENT, UDP_GRO) are one here too: one header, and their payloads one
//! behind the other. The size of the parts is beside the packet, so who has it asks for [`Datagram::parts`].

use crate::ip::{self, Fragment, Packet};
use crate::{Endpoint, Malformed};

/// A UDP header.
pub const HEADER: usize = 8;
/// The longest payload: the length field's 16 bits count the header (without IPv6's jumbograms).
pub const MAX_PAYLOAD: usize = u16::MAX as usize - HEADER;

/// One UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Sender.
    pub src: Endpoint,
    /// Receiver.
    pub dst: Endpoint,
    /// Captured payload bytes.
    pub payload: &'a [u8],
    /// Payload bytes on the wire; more than `payload` holds when the capture was cut, or when this is a first fragment.
    pub wire_payload_len: u32,
}

impl<'a> Datagram<'a> {
    /// The datagrams of `bytes` payload each, but for the last, that this one carries; with `bytes` no less than its own, itself.
    /// Of a capture that was cut, those behind the cut come without bytes.
    pub fn parts(self, bytes: usize) -> impl Iterator<Item = Self> {
        let wire = self.wire_payload_len as usize;
        let bytes = bytes.clamp(1, wire.max(1));
        (0..wire.div_ceil(bytes).max(1)).map(move |i| {
            let (from, to) = (i * bytes, ((i + 1) * bytes).min(wire));
            let captured = self.payload.len();
            let payload = &self.payload[from.min(captured)..to.min(captured)];
            Self { payload, wire_payload_len: (to - from) as u32, ..self }
        })
    }
}

/// A packet that is UDP, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// All of it.
    Whole(Datagram<'a>),
    /// A part.
    Part(Packet<'a>, Fragment),
}

/// Takes a packet apart, from its IP header on. `wire_len` is its length on the wire, likewise from the IP header on.
///
/// Errors: [`Malformed`]; [`Malformed::NotTcp`] for other transports.
pub fn parse(packet: &[u8], wire_len: u32) -> Result<Seen<'_>, Malformed> {
    let (ip, fragment) = ip::parse_any(packet, wire_len)?;
    if ip.protocol != ip::UDP {
        return Err(if fragment.is_some() { Malformed::Fragment } else { Malformed::NotTcp });
    }
    match fragment {
        None => whole(&ip).map(Seen::Whole),
        Some(fragment) => Ok(Seen::Part(ip, fragment)),
    }
}

/// The datagram in the transport bytes of a packet, all of which were on the wire.
///
/// Errors: [`Malformed::ShortUdp`], or [`Malformed::BadLength`] when the length field contradicts the packet's.
pub fn whole<'a>(ip: &Packet<'a>) -> Result<Datagram<'a>, Malformed> {
    let datagram = head(ip)?;
    if datagram.wire_payload_len as usize + HEADER > ip.wire_len as usize {
        return Err(Malformed::BadLength);
    }
    Ok(datagram)
}

/// The datagram of which these are the first transport bytes: the header's word is taken for its length.
///
/// Errors: as [`whole`].
pub fn head<'a>(ip: &Packet<'a>) -> Result<Datagram<'a>, Malformed> {
    let (header, rest) = ip.transport.split_first_chunk::<HEADER>().ok_or(Malformed::ShortUdp)?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let wire_payload_len = field(4).checked_sub(HEADER as u16).ok_or(Malformed::BadLength)?;
    Ok(Datagram {
        src: Endpoint::new(ip.src, field(0)),
        dst: Endpoint::new(ip.dst, field(2)),
        payload: rest.get(..usize::from(wire_payload_len)).unwrap_or(rest),
        wire_payload_len: wire_payload_len.into(),
    })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::emit_udp::{MAX_HEADERS, Pieces};

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    fn pieces(src: &str, dst: &str, payload: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let pieces = Pieces::new(endpoint(src), endpoint(dst), payload, mtu, 77);
        pieces
            .map(|piece| {
                let mut buf = [0; MAX_HEADERS];
                let len = piece.emit(&mut buf);
                [&buf[..len], piece.payload].concat()
            })
            .collect()
    }

    fn parse_whole(packet: &[u8]) -> Datagram<'_> {
        match parse(packet, packet.len() as u32).unwrap() {
            Seen::Whole(datagram) => datagram,
            Seen::Part(..) => panic!("a fragment"),
        }
    }

    proptest! {
        #[test]
        fn what_another_library_wrote_is_read_and_what_is_written_is_what_it_writes(
            payload in prop::collection::vec(any::<u8>(), 0..1_400), v4: bool, ports: (u16, u16)
        ) {
            let (src, dst) = if v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
            let at = |ip: &str, port| std::net::SocketAddr::new(ip.parse().unwrap(), port).to_string();
            let (src, dst) = (at(src, ports.0), at(dst, ports.1));
            let builder = if v4 {
                PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            } else {
                let ip = |n| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n];
                PacketBuilder::ipv6(ip(1), ip(2), 64)
            };
            let mut theirs = Vec::new();
            builder.udp(ports.0, ports.1).write(&mut theirs, &payload).unwrap();
            let read = parse_whole(&theirs);
            prop_assert_eq!(read.payload, payload.as_slice());
            prop_assert_eq!((read.src, read.dst), (endpoint(&src), endpoint(&dst)));
            let ours = pieces(&src, &dst, &payload, 1_500);
            prop_assert_eq!(ours.len(), 1);
            let transport = if v4 { 20 } else { 40 };
            prop_assert_eq!(&ours[0][transport..], &theirs[transport..], "header, checksum and payload");
            prop_assert_eq!(parse_whole(&ours[0]), read);
        }

        #[test]
        fn fragments_fit_the_path_and_join_up(
            len in 0usize..=65_507, mtu in 576u16..9_001, v4: bool
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let (src, dst) = if v4 { ("10.0.0.1:9", "10.0.0.2:53") } else { ("[fd00::1]:9", "[fd00::2]:53") };
            let mtu = if v4 { mtu } else { mtu.max(1_280) };
            let packets = pieces(src, dst, &payload, mtu);
            let whole_fits = len + HEADER + if v4 { 20 } else { 40 } <= usize::from(mtu);
            prop_assert_eq!(packets.len() == 1, whole_fits);
            let mut joined = Vec::new();
            for (i, packet) in packets.iter().enumerate() {
                prop_assert!(packet.len() <= usize::from(mtu));
                match parse(packet, packet.len() as u32).unwrap() {
                    Seen::Whole(_) => prop_assert!(whole_fits),
                    Seen::Part(ip, fragment) => {
                        prop_assert_eq!(usize::from(fragment.offset), joined.len());
                        prop_assert_eq!(fragment.more, i + 1 < packets.len());
                        prop_assert_eq!(fragment.id, 77);
                        joined.extend_from_slice(ip.transport);
                    }
                }
            }
            if !whole_fits {
                let (src, dst) = (endpoint(src), endpoint(dst));
                let sum = crate::checksum::pseudo_header(&src.addr, &dst.addr, ip::UDP, joined.len() as u32);
                prop_assert_eq!(sum.with(&joined).finish(), 0, "the checksum covers all of it");
                prop_assert_eq!(&joined[HEADER..], payload.as_slice());
            }
        }

        #[test]
        fn any_bytes_give_a_datagram_or_a_reason(bytes: Vec<u8>, wire in 0u32..70_000) {
            if let Ok(Seen::Whole(datagram)) = parse(&bytes, wire) {
                prop_assert!(datagram.payload.len() as u32 <= datagram.wire_payload_len);
            }
        }
    }

    #[test]
    fn parts_are_its_bytes_in_order_whatever_was_captured() {
        let payload: Vec<u8> = (0..100).collect();
        let packet = pieces("10.0.0.1:9", "10.0.0.2:53", &payload, 1_500).remove(0);
        for captured in [0, 1, 33, 66, 70, 100] {
            let cut = parse(&packet[..28 + captured], packet.len() as u32);
            let Ok(Seen::Whole(datagram)) = cut else { panic!("{cut:?}") };
            for (bytes, count) in [(1, 100), (33, 4), (50, 2), (99, 2), (100, 1), (101, 1), (usize::MAX, 1)] {
                let parts: Vec<_> = datagram.parts(bytes).collect();
                assert_eq!(parts.len(), count);
                assert_eq!(parts.iter().flat_map(|part| part.payload).count(), captured);
                for (part, wanted) in parts.iter().zip(payload.chunks(bytes)) {
                    assert_eq!(part.wire_payload_len as usize, wanted.len());
                    assert!(wanted.starts_with(part.payload));
                }
            }
        }
        let empty = pieces("10.0.0.1:9", "10.0.0.2:53", &[], 1_500).remove(0);
        assert_eq!(parse_whole(&empty).parts(5).count(), 1, "an empty one is one, too");
    }

    #[test]
    fn a_length_field_that_lies_is_named() {
        let mut packet = pieces("10.0.0.1:9", "10.0.0.2:53", b"hello", 1_500).remove(0);
        packet[24..26].copy_from_slice(&14u16.to_be_bytes());
        assert_eq!(parse(&packet, packet.len() as u32), Err(Malformed::BadLength));
        packet[24..26].copy_from_slice(&7u16.to_be_bytes());
        assert_eq!(parse(&packet, packet.len() as u32), Err(Malformed::BadLength));
        assert_eq!(parse(&packet[..27], 27 + 6), Err(Malformed::ShortUdp));
        packet[24..26].copy_from_slice(&10u16.to_be_bytes());
        assert_eq!(parse_whole(&packet).payload, b"he", "what stands behind it is padding");
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_all_ones() {
        // The one payload of two bytes for which the sum comes to nothing.
        let (src, dst) = ("[fd00::1]:9", "[fd00::2]:53");
        let zero = pieces(src, dst, &[0, 0], 1_500).remove(0);
        let complement = [zero[46], zero[47]];
        let packet = pieces(src, dst, &complement, 1_500).remove(0);
        assert_eq!(packet[46..48], [0xff, 0xff]);
    }
}
