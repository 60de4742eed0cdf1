//! The IP and TCP header of a segment to be sent. Called by the injector for every segment, by tests to build packets.
//!
//! `emit` and [`crate::segment::parse`] are inverse on everything that an injected segment carries.

use crate::record::TcpFields;
use crate::{Endpoint, checksum, ip, options};

/// Room that [`emit`] asks for: an IPv6 header and the longest TCP header.
pub const MAX_HEADERS: usize = 100;

const IPV4: usize = 20;
const IPV6: usize = 40;
/// Time to live, hop limit: what Linux takes by default.
const HOPS: u8 = 64;
/// "Do not fragment": a path that is too narrow shall say so, and the session cuts smaller.
const DONT_FRAGMENT: u16 = 0x4000;

/// Writes the headers of one segment into `buf` and returns their length. The payload, given in parts, is not copied; the TCP
/// checksum covers it. `src` and `dst` are of one family; `ip_id` is the identification of IPv4.
///
/// A packet longer than the 16-bit length field gets the length 0 (BIG TCP's convention), for engines that send super-frames.
pub fn emit(
    buf: &mut [u8; MAX_HEADERS],
    src: Endpoint,
    dst: Endpoint,
    tcp: &TcpFields,
    payload: &[&[u8]],
    ip_id: u16,
) -> usize {
    let payload_len: usize = payload.iter().map(|part| part.len()).sum();
    write(buf, src, dst, tcp, payload_len, ip_id, |header| {
        checksum::tcp(&src.addr, &dst.addr, header, payload)
    })
}

/// The same for a device, or its kernel, that finishes the checksum: the field holds the sum of the pseudo header alone, and the
/// payload is not looked at.
pub fn emit_partial(
    buf: &mut [u8; MAX_HEADERS],
    src: Endpoint,
    dst: Endpoint,
    tcp: &TcpFields,
    payload_len: usize,
    ip_id: u16,
) -> usize {
    write(buf, src, dst, tcp, payload_len, ip_id, |header| {
        let len = (header.len() + payload_len) as u32;
        checksum::pseudo_header(&src.addr, &dst.addr, ip::TCP, len).partial()
    })
}

fn write(
    buf: &mut [u8; MAX_HEADERS],
    src: Endpoint,
    dst: Endpoint,
    tcp: &TcpFields,
    payload_len: usize,
    ip_id: u16,
    checksum: impl FnOnce(&[u8]) -> u16,
) -> usize {
    debug_assert_eq!(src.addr.is_v4(), dst.addr.is_v4(), "a segment's endpoints are of one family");
    let start = if src.addr.is_v4() { IPV4 } else { IPV6 };
    let tcp_len = write_tcp(&mut buf[start..], src.port, dst.port, tcp);
    let transport_len = tcp_len + payload_len;
    let (head, rest) = buf.split_at_mut(start);
    let header = &mut rest[..tcp_len];
    let sum = checksum(header);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    match (src.addr.as_v4(), dst.addr.as_v4()) {
        (Some(src), Some(dst)) => write_v4(head, src, dst, transport_len, ip_id),
        _ => write_v6(head, &src.addr.0, &dst.addr.0, transport_len),
    }
    start + tcp_len
}

fn write_v4(head: &mut [u8], src: [u8; 4], dst: [u8; 4], transport_len: usize, ip_id: u16) {
    let total = u16::try_from(transport_len + IPV4).unwrap_or(0);
    head[0] = 0x45;
    head[1] = 0;
    head[2..4].copy_from_slice(&total.to_be_bytes());
    head[4..6].copy_from_slice(&ip_id.to_be_bytes());
    head[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    head[8] = HOPS;
    head[9] = ip::TCP;
    head[10..12].copy_from_slice(&[0, 0]);
    head[12..16].copy_from_slice(&src);
    head[16..20].copy_from_slice(&dst);
    let sum = checksum::Sum::new().with(head).finish();
    head[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn write_v6(head: &mut [u8], src: &[u8; 16], dst: &[u8; 16], transport_len: usize) {
    let len = u16::try_from(transport_len).unwrap_or(0);
    head[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
    head[4..6].copy_from_slice(&len.to_be_bytes());
    head[6] = ip::TCP;
    head[7] = HOPS;
    head[8..24].copy_from_slice(src);
    head[24..40].copy_from_slice(dst);
}

/// The TCP header with checksum 0; returns its length.
fn write_tcp(out: &mut [u8], src_port: u16, dst_port: u16, tcp: &TcpFields) -> usize {
    let mut written = [0; options::MAX_WRITTEN];
    let options_len = options::write(&mut written, tcp);
    let len = 20 + options_len;
    let offset_and_flags = ((len as u16 / 4) << 12) | (tcp.flags & 0x1ff);
    out[0..2].copy_from_slice(&src_port.to_be_bytes());
    out[2..4].copy_from_slice(&dst_port.to_be_bytes());
    out[4..8].copy_from_slice(&tcp.seq.0.to_be_bytes());
    out[8..12].copy_from_slice(&tcp.ack.0.to_be_bytes());
    out[12..14].copy_from_slice(&offset_and_flags.to_be_bytes());
    out[14..16].copy_from_slice(&tcp.window.to_be_bytes());
    out[16..18].copy_from_slice(&[0, 0]);
    out[18..20].copy_from_slice(&tcp.urgent.to_be_bytes());
    out[20..len].copy_from_slice(&written[..options_len]);
    len
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Slice, Ipv6Slice, TcpSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::record::{flag, opt};
    use crate::{Addr, Seq, segment};

    fn packet(src: &str, dst: &str, tcp: &TcpFields, payload: &[&[u8]]) -> Vec<u8> {
        let parse = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        let mut buf = [0xee; MAX_HEADERS];
        let len = emit(&mut buf, parse(src), parse(dst), tcp, payload, 7);
        [&buf[..len], &payload.concat()].concat()
    }

    #[test]
    fn a_syn_is_what_etherparse_takes_for_one() {
        let tcp = TcpFields {
            seq: Seq(77),
            flags: flag::SYN,
            window: 64_240,
            mss: 1460,
            window_scale: 7,
            ts_val: 9,
            options: opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS,
            ..TcpFields::default()
        };
        let bytes = packet("198.18.0.1:4000", "10.0.0.2:80", &tcp, &[]);
        let ip = Ipv4Slice::from_slice(&bytes).unwrap();
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
        assert!(ip.header().dont_fragment());
        let theirs = TcpSlice::from_slice(ip.payload().payload).unwrap();
        assert!(theirs.syn() && !theirs.ack());
        assert_eq!(theirs.calc_checksum_ipv4([198, 18, 0, 1], [10, 0, 0, 2]).unwrap(), theirs.checksum());
        assert_eq!(theirs.options().len(), 20);
    }

    #[test]
    fn an_ipv6_checksum_is_etherparses() {
        let tcp = TcpFields { flags: flag::ACK | flag::PSH, ..TcpFields::default() };
        let bytes = packet("[2001:2::1]:4000", "[fd00::2]:80", &tcp, &[b"GET ", b"/ HTTP/1.1\r\n\r\n", b"x"]);
        let ip = Ipv6Slice::from_slice(&bytes).unwrap();
        let theirs = TcpSlice::from_slice(ip.payload().payload).unwrap();
        let (src, dst) = (ip.header().source(), ip.header().destination());
        assert_eq!(theirs.calc_checksum_ipv6(src, dst).unwrap(), theirs.checksum());
        assert_eq!(theirs.payload(), b"GET / HTTP/1.1\r\n\r\nx");
    }

    #[test]
    fn a_packet_beyond_64_kib_has_length_zero_and_parses_by_its_wire_length() {
        let payload = vec![7; 100_000];
        for (src, dst) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let bytes = packet(src, dst, &TcpFields::default(), &[&payload]);
            let segment = segment::parse(&bytes, bytes.len() as u32).unwrap();
            assert_eq!(segment.payload.len(), 100_000);
            assert_eq!(segment.wire_payload_len, 100_000);
        }
    }

    #[test]
    fn a_partial_checksum_and_the_rest_of_the_packet_make_the_whole_one() {
        let tcp = TcpFields { seq: Seq(9), flags: flag::ACK | flag::PSH, window: 7, ..TcpFields::default() };
        for (src, dst) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let parse = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
            let (src, dst): (Endpoint, Endpoint) = (parse(src), parse(dst));
            let (mut whole, mut partial) = ([0; MAX_HEADERS], [0; MAX_HEADERS]);
            let len = emit(&mut whole, src, dst, &tcp, &[b"hello"], 7);
            assert_eq!(emit_partial(&mut partial, src, dst, &tcp, 5, 7), len);
            // What a device does: the sum from the TCP header on, the field as it stands included.
            let start = if src.addr.is_v4() { IPV4 } else { IPV6 };
            let sum = checksum::Sum::new().with(&partial[start..len]).with(b"hello").finish();
            partial[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(partial, whole);
        }
    }

    fn fields() -> impl Strategy<Value = TcpFields> {
        (any::<[u32; 4]>(), any::<[u16; 3]>(), any::<u8>(), 0..0x200u16, 0..16u8).prop_map(
            |([seq, ack, ts_val, ts_ecr], [window, mss, urgent], window_scale, flags, options)| {
                let on = |bit| options & bit != 0;
                TcpFields {
                    seq: Seq(seq),
                    ack: Seq(ack),
                    flags,
                    window,
                    urgent,
                    options,
                    ts_val: if on(opt::TIMESTAMPS) { ts_val } else { 0 },
                    ts_ecr: if on(opt::TIMESTAMPS) { ts_ecr } else { 0 },
                    mss: if on(opt::MSS) { mss } else { 0 },
                    window_scale: if on(opt::WINDOW_SCALE) { window_scale } else { 0 },
                    reserved: 0,
                }
            },
        )
    }

    fn endpoints() -> impl Strategy<Value = (Endpoint, Endpoint)> {
        let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (Addr::v4(a), Addr::v4(b)));
        let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(mut a, mut b)| {
            (a[0], b[0]) = (0x20, 0xfd);
            (Addr::v6(a), Addr::v6(b))
        });
        (prop_oneof![v4, v6], any::<(u16, u16)>())
            .prop_map(|((a, b), (p, q))| (Endpoint::new(a, p), Endpoint::new(b, q)))
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(
            (src, dst) in endpoints(), tcp in fields(), ip_id: u16,
            payload in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            padding in 0..20usize,
        ) {
            let parts: Vec<&[u8]> = payload.iter().map(Vec::as_slice).collect();
            let mut buf = [0xee; MAX_HEADERS];
            let len = emit(&mut buf, src, dst, &tcp, &parts, ip_id);
            let mut bytes = [&buf[..len], &payload.concat()].concat();
            // Ethernet pads short frames; the IP length says where the packet ends.
            bytes.resize(bytes.len() + padding, 0xaa);
            let segment = segment::parse(&bytes, bytes.len() as u32).unwrap();
            prop_assert_eq!((segment.src, segment.dst, segment.tcp), (src, dst, tcp));
            prop_assert_eq!(segment.payload, payload.concat());
            prop_assert!(!segment.options_cut);
        }
    }
}
