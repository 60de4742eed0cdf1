//! Packets as they come, cut, padded, chained, forged.

use proptest::prelude::*;

use super::*;
use crate::emit::{MAX_HEADERS, emit};
use crate::record::{flag, opt};

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

/// A data segment with timestamps: 20 or 40 bytes of IP, 32 of TCP, then the payload.
fn data(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let tcp = TcpFields {
        seq: Seq(1_000),
        ack: Seq(2_000),
        flags: flag::ACK | flag::PSH,
        window: 500,
        ts_val: 11,
        ts_ecr: 12,
        options: opt::TIMESTAMPS,
        ..TcpFields::default()
    };
    let mut buf = [0; MAX_HEADERS];
    let len = emit(&mut buf, endpoint(src), endpoint(dst), &tcp, &[payload], 1);
    [&buf[..len], payload].concat()
}

fn v4(payload: &[u8]) -> Vec<u8> {
    data("10.0.0.1:40000", "10.0.0.2:80", payload)
}

fn v6(payload: &[u8]) -> Vec<u8> {
    data("[fd00::1]:40000", "[fd00::2]:80", payload)
}

/// Puts extension headers between the IPv6 header and TCP; each is (its own number, its bytes with any first byte).
fn with_extensions(mut packet: Vec<u8>, chain: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![];
    for (i, (_, header)) in chain.iter().enumerate() {
        let mut header = header.clone();
        header[0] = chain.get(i + 1).map_or(ip::TCP, |next| next.0);
        bytes.extend(header);
    }
    packet[6] = chain[0].0;
    let len = u16::from_be_bytes([packet[4], packet[5]]) + bytes.len() as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet.splice(40..40, bytes);
    packet
}

fn whole(packet: &[u8]) -> Result<Segment<'_>, Malformed> {
    parse(packet, packet.len() as u32)
}

#[test]
fn a_packet_cut_in_its_payload_says_how_much_is_missing() {
    for packet in [v4(&[5; 1000]), v6(&[5; 1000])] {
        let len = packet.len() as u32;
        let segment = parse(&packet[..packet.len() - 300], len).unwrap();
        assert_eq!((segment.payload.len(), segment.wire_payload_len), (700, 1000));
    }
}

#[test]
fn a_capture_of_headers_only_still_counts_the_payload() {
    let packet = v4(&[5; 1000]);
    let segment = parse(&packet[..52], packet.len() as u32).unwrap();
    assert_eq!((segment.payload.len(), segment.wire_payload_len, segment.options_cut), (0, 1000, false));
    assert_eq!(segment.tcp.ts_ecr, 12);
}

#[test]
fn a_capture_that_ends_in_the_options_says_so() {
    let packet = v4(&[5; 1000]);
    let segment = parse(&packet[..44], packet.len() as u32).unwrap();
    assert!(segment.options_cut && !segment.tcp.has_option(opt::TIMESTAMPS));
    assert_eq!((segment.tcp.seq, segment.wire_payload_len), (Seq(1_000), 1000));
    assert_eq!(parse(&packet[..39], packet.len() as u32), Err(Malformed::ShortTcp));
    assert_eq!(parse(&packet[..19], packet.len() as u32), Err(Malformed::ShortIp));
}

#[test]
fn length_zero_takes_the_length_of_the_frame() {
    let mut packet = v4(&[5; 70_000]);
    assert_eq!(packet[2..4], [0, 0], "emit follows BIG TCP's convention");
    assert_eq!(whole(&packet).unwrap().wire_payload_len, 70_000);
    assert_eq!(parse(&packet[..60], 70_052).unwrap().wire_payload_len, 70_000);
    packet.truncate(52 + 100);
    assert_eq!(whole(&packet).unwrap().payload.len(), 100);
}

#[test]
fn ethernet_padding_is_not_payload() {
    let mut packet = v4(b"hi");
    packet.resize(64, 0);
    assert_eq!(whole(&packet).unwrap().payload, b"hi");
}

#[test]
fn ip_options_are_stepped_over() {
    let mut packet = v4(b"hi");
    packet[0] = 0x47;
    packet[3] += 8;
    packet.splice(20..20, [1; 8]);
    let segment = whole(&packet).unwrap();
    assert_eq!((segment.payload, segment.dst), (&b"hi"[..], endpoint("10.0.0.2:80")));
}

#[test]
fn fragments_are_named() {
    for (hi, lo) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
        let mut packet = v4(b"hi");
        (packet[6], packet[7]) = (hi, lo);
        assert_eq!(whole(&packet), Err(Malformed::Fragment));
    }
    let fragment =
        |offset: [u8; 2]| with_extensions(v6(b"hi"), &[(44, vec![0, 0, offset[0], offset[1], 0, 0, 0, 9])]);
    assert_eq!(whole(&fragment([0, 1])), Err(Malformed::Fragment));
    assert_eq!(whole(&fragment([0, 8])), Err(Malformed::Fragment));
    assert_eq!(whole(&fragment([0, 0])).unwrap().payload, b"hi", "an atomic fragment is whole");
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    let options =
        |number, units: u8| (number, [&[0, units][..], &vec![1; 6 + 8 * usize::from(units)]].concat());
    let packet = with_extensions(
        v6(b"hi"),
        &[
            options(0, 0),
            options(60, 2),
            options(43, 1),
            (51, vec![0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ],
    );
    let segment = whole(&packet).unwrap();
    assert_eq!((segment.payload, segment.src), (&b"hi"[..], endpoint("[fd00::1]:40000")));
    let deep: Vec<_> = (0..ip::MAX_EXTENSIONS).map(|_| options(60, 0)).collect();
    assert!(whole(&with_extensions(v6(b"hi"), &deep)).is_ok());
    let deeper: Vec<_> = (0..=ip::MAX_EXTENSIONS).map(|_| options(60, 0)).collect();
    assert_eq!(whole(&with_extensions(v6(b"hi"), &deeper)), Err(Malformed::Extensions));
    let mut liar = packet;
    liar[41] = 255;
    assert_eq!(whole(&liar), Err(Malformed::ShortIp));
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    let story = |change: fn(&mut Vec<u8>)| {
        let mut packet = v4(b"hi");
        change(&mut packet);
        whole(&packet).unwrap_err()
    };
    assert_eq!(story(|p| p[3] = 19), Malformed::BadLength);
    assert_eq!(story(|p| p[3] = 200), Malformed::BadLength);
    assert_eq!(story(|p| p[0] = 0x44), Malformed::BadLength);
    assert_eq!(story(|p| p[3] = 30), Malformed::ShortTcp);
    assert_eq!(story(|p| p[32] = 0x40), Malformed::BadOffset);
    assert_eq!(story(|p| p[32] = 0xf0), Malformed::BadOffset);
    assert_eq!(story(|p| p[9] = 17), Malformed::NotTcp);
    assert_eq!(story(|p| p[0] = 0x55), Malformed::NotIp);
    assert_eq!(story(Vec::clear), Malformed::ShortIp);
}

#[test]
fn an_ipv6_packet_cannot_pose_as_ipv4() {
    let mut packet = v6(b"hi");
    packet[8..24].copy_from_slice(&crate::Addr::v4([10, 0, 0, 1]).0);
    assert_eq!(whole(&packet), Err(Malformed::MappedAddress));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), wire in 0..400u32, version: bool) {
        if let Some(first) = bytes.first_mut() {
            *first = if version { 0x40 | (*first & 0xf) } else { 0x60 };
        }
        if let Ok(segment) = parse(&bytes, wire) {
            prop_assert!(segment.payload.len() as u32 <= segment.wire_payload_len);
            prop_assert!(segment.wire_payload_len <= wire);
        }
    }

    #[test]
    fn a_good_packet_with_any_bytes_changed_or_cut_is_survived(
        which: bool, changes in prop::collection::vec((0..92usize, any::<u8>()), 0..6), cut in 0..120usize, wire in 0..200u32,
    ) {
        let mut packet = if which { v4(&[9; 40]) } else { v6(&[9; 40]) };
        for (at, value) in changes {
            packet[at] = value;
        }
        packet.truncate(cut);
        if let Ok(segment) = parse(&packet, wire) {
            prop_assert!(segment.payload.len() as u32 <= segment.wire_payload_len);
            prop_assert!(segment.wire_payload_len <= wire);
        }
    }
}
