//! ICMP and ICMPv6 errors addressed to replayed clients: they quote the segment that they are about (RFC 792, RFC 4443),
//! and the quoted addresses and sequence number say which session it concerns.

use flow::record::kind;
use flow::segment::Malformed;
use flow::{Endpoint, Returned, Seq, ip};

/// Understands a packet that is no TCP. `Ok(None)`: an ICMP message, but no error about a segment or datagram from the address
/// that it came to. The record has neither position nor time.
pub(crate) fn parse(packet: &[u8], wire_len: u32) -> Result<Option<Returned>, Malformed> {
    let outer = ip::parse(packet, wire_len)?;
    let Some((head, quoted)) = outer.transport.split_first_chunk::<8>() else { return Ok(None) };
    let (icmp_type, icmp_code) = (head[0], head[1]);
    let rest = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let mtu = match (outer.protocol, icmp_type, icmp_code) {
        // Fragmentation needed: next-hop MTU in the lower half (RFC 1191).
        (ip::ICMP, 3, 4) => rest & 0xffff,
        // Unreachable, source quench (historic), time exceeded, parameter problem.
        (ip::ICMP, 3 | 4 | 11 | 12, _) => 0,
        // Packet too big.
        (ip::ICMPV6, 2, _) => rest,
        // Unreachable, time exceeded, parameter problem.
        (ip::ICMPV6, 1 | 3 | 4, _) => 0,
        (ip::ICMP | ip::ICMPV6, ..) => return Ok(None),
        _ => return Err(Malformed::NotTcp),
    };
    // The quote is cut anywhere behind the first eight bytes of TCP, so its length says nothing about the wire.
    let Some(inner) = quoted_packet(quoted) else { return Ok(None) };
    let Some(tcp) = inner.transport.first_chunk::<8>() else { return Ok(None) };
    let about = match inner.protocol {
        ip::TCP => kind::ICMP,
        ip::UDP => kind::UDP_ICMP,
        _ => return Ok(None),
    };
    if inner.src != outer.dst {
        return Ok(None);
    }
    let [s0, s1, d0, d1, q0, q1, q2, q3] = *tcp;
    let mut record = Returned {
        kind: about,
        client: Endpoint::new(inner.src, u16::from_be_bytes([s0, s1])),
        target: Endpoint::new(inner.dst, u16::from_be_bytes([d0, d1])),
        icmp_type,
        icmp_code,
        mtu,
        ..Returned::default()
    };
    if about == kind::ICMP {
        record.tcp.seq = Seq(u32::from_be_bytes([q0, q1, q2, q3]));
    }
    Ok(Some(record))
}

/// The quoted IP packet, whose length field speaks of the original.
fn quoted_packet(quoted: &[u8]) -> Option<ip::Packet<'_>> {
    ip::parse(quoted, wire_len_of(quoted)?.max(quoted.len() as u32)).ok()
}

/// Length of a packet on the wire as its own IP header says; of the bytes at hand where it says nothing (BIG TCP).
pub(crate) fn wire_len_of(packet: &[u8]) -> Option<u32> {
    let len = match packet.first()? >> 4 {
        4 => u32::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?])),
        6 => match u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]) {
            0 => 0,
            payload => 40 + u32::from(payload),
        },
        _ => return None,
    };
    Some(if len == 0 { packet.len() as u32 } else { len })
}

#[cfg(test)]
mod tests {
    use flow::Addr;

    use super::*;

    fn v4(protocol: u8, src: [u8; 4], dst: [u8; 4], total: u16, body: &[u8]) -> Vec<u8> {
        let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        p[2..4].copy_from_slice(&total.to_be_bytes());
        p.extend(src);
        p.extend(dst);
        p.extend(body);
        p
    }

    const CLIENT: [u8; 4] = [198, 18, 0, 7];
    const TARGET: [u8; 4] = [10, 0, 3, 2];
    const ROUTER: [u8; 4] = [10, 0, 1, 1];

    /// Eight bytes of TCP: ports 40000 and 8080, sequence number 0x01020304.
    const TCP: [u8; 8] = [0x9c, 0x40, 0x1f, 0x90, 1, 2, 3, 4];

    fn error_v4(icmp_type: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
        let mut body = vec![icmp_type, code, 0, 0];
        body.extend(rest);
        body.extend(quoted);
        v4(ip::ICMP, ROUTER, CLIENT, 28 + quoted.len() as u16, &body)
    }

    fn record(packet: &[u8]) -> Option<Returned> {
        parse(packet, packet.len() as u32).unwrap()
    }

    #[test]
    fn fragmentation_needed_gives_tuple_sequence_and_mtu() {
        // A quote of 28 bytes of a segment that was 1,500 bytes long.
        let quoted = v4(ip::TCP, CLIENT, TARGET, 1500, &TCP);
        let r = record(&error_v4(3, 4, [0, 0, 0x05, 0x14], &quoted)).unwrap();
        assert_eq!((r.kind, r.icmp_type, r.icmp_code, r.mtu), (kind::ICMP, 3, 4, 1300));
        assert_eq!(
            (r.client.to_string(), r.target.to_string()),
            ("198.18.0.7:40000".into(), "10.0.3.2:8080".into())
        );
        assert_eq!(r.tcp.seq, Seq(0x0102_0304));
    }

    #[test]
    fn packet_too_big_gives_its_32_bit_mtu() {
        let (client, target) = ([0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], [0xfd; 16]);
        let v6 = |next: u8, src: [u8; 16], dst: [u8; 16], len: u16, body: &[u8]| {
            let mut p = vec![0x60, 0, 0, 0, 0, 0, next, 64];
            p[4..6].copy_from_slice(&len.to_be_bytes());
            p.extend(src);
            p.extend(dst);
            p.extend(body);
            p
        };
        let quoted = v6(ip::TCP, client, target, 1400, &TCP);
        let mut body = vec![2, 0, 0, 0, 0, 0, 0x05, 0x00];
        body.extend(&quoted);
        let r = record(&v6(ip::ICMPV6, [0xfe; 16], client, body.len() as u16, &body)).unwrap();
        assert_eq!((r.icmp_type, r.mtu, r.client.addr), (2, 1280, Addr(client)));
    }

    #[test]
    fn an_error_about_a_datagram_has_a_kind_of_its_own_and_no_sequence() {
        let r = record(&error_v4(3, 3, [0; 4], &v4(ip::UDP, CLIENT, TARGET, 60, &TCP))).unwrap();
        assert_eq!((r.kind, r.icmp_type, r.icmp_code), (kind::UDP_ICMP, 3, 3));
        assert_eq!((r.client.port, r.target.port, r.tcp.seq), (40_000, 8_080, Seq(0)));
    }

    #[test]
    fn other_icmp_is_none_of_ours() {
        let quoted = v4(ip::TCP, CLIENT, TARGET, 60, &TCP);
        assert_eq!(record(&error_v4(8, 0, [0; 4], &quoted)), None, "an echo request");
        assert_eq!(record(&error_v4(3, 1, [0; 4], &v4(132, CLIENT, TARGET, 60, &TCP))), None, "about SCTP");
        assert_eq!(
            record(&error_v4(3, 1, [0; 4], &v4(ip::TCP, ROUTER, TARGET, 60, &TCP))),
            None,
            "another sender"
        );
        assert_eq!(record(&error_v4(3, 1, [0; 4], &quoted[..24])), None, "a quote without ports");
        assert_eq!(record(&error_v4(3, 1, [0; 4], &[])), None, "no quote");
        let udp = v4(17, ROUTER, CLIENT, 28, &[0; 8]);
        assert_eq!(parse(&udp, 28), Err(Malformed::NotTcp));
    }

    #[test]
    fn every_cut_is_survived() {
        let whole = error_v4(3, 4, [0, 0, 0x05, 0x14], &v4(ip::TCP, CLIENT, TARGET, 1500, &TCP));
        for cut in 0..whole.len() {
            let _ = parse(&whole[..cut], whole.len() as u32);
            let _ = parse(&whole[..cut], cut as u32);
        }
    }
}
