//! Packets, options and ring records.

use flow::emit::{MAX_HEADERS, emit};
use flow::record::{flag, opt};
use flow::{Endpoint, Inject, Seq, TcpFields};
use zerocopy::IntoBytes;

use super::{Seed, named};
use crate::rewrite::TARGETS;

const V4: (&str, &str) = ("198.18.0.9:40000", "10.0.1.1:80");
const V6: (&str, &str) = ("[2001:2::9]:40000", "[fd00:1::1]:80");

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}

fn tcp(flags: u16) -> TcpFields {
    TcpFields {
        seq: Seq(1_000_000),
        ack: Seq(if flags & flag::ACK == 0 { 0 } else { 2_000_000 }),
        flags,
        window: 502,
        ..TcpFields::default()
    }
}

fn stamped(flags: u16) -> TcpFields {
    TcpFields { ts_val: 77_000, ts_ecr: 55_000, options: opt::TIMESTAMPS, ..tcp(flags) }
}

fn syn(flags: u16) -> TcpFields {
    TcpFields {
        mss: 1_460,
        window_scale: 7,
        options: opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS,
        ..stamped(flags)
    }
}

fn packet((src, dst): (&str, &str), tcp: &TcpFields, payload: &[u8]) -> Vec<u8> {
    let mut buf = [0; MAX_HEADERS];
    let len = emit(&mut buf, endpoint(src), endpoint(dst), tcp, &[payload], 7);
    [&buf[..len], payload].concat()
}

/// The packets of a datagram of so many bytes.
fn datagram((src, dst): (&str, &str), len: usize, mtu: u16) -> Vec<Vec<u8>> {
    let payload = vec![0x42; len];
    flow::emit_udp::Pieces::new(endpoint(src), endpoint(dst), &payload, mtu, 7)
        .map(|piece| {
            let mut buf = [0; MAX_HEADERS];
            let len = piece.emit(&mut buf);
            [&buf[..len], piece.payload].concat()
        })
        .collect()
}

/// Puts bytes into a packet and corrects nothing.
fn with(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    packet
}

/// An IPv4 acknowledgement with these TCP options, lengths right; `options` is a multiple of four long.
fn with_options(options: &[u8], payload: &[u8]) -> Vec<u8> {
    let bare = packet(V4, &tcp(flag::ACK), &[]);
    let mut bytes = [&bare, options, payload].concat();
    let len = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[32] = (5 + options.len() as u8 / 4) << 4;
    bytes
}

/// An IPv6 packet with extension headers between.
fn extended(first: u8, extensions: &[u8], tcp: &TcpFields) -> Vec<u8> {
    let bare = packet(V6, tcp, b"GET / HTTP/1.1\r\n\r\n");
    let mut bytes = [&bare[..40], extensions, &bare[40..]].concat();
    let len = bytes.len() as u16 - 40;
    bytes[4..6].copy_from_slice(&len.to_be_bytes());
    bytes[6] = first;
    bytes
}

const GET: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: online\r\n\r\n";

fn plain_frames() -> Vec<(&'static str, Vec<u8>)> {
    let ack = flag::ACK;
    let v4 = packet(V4, &tcp(ack | flag::PSH), GET);
    let v6 = packet(V6, &stamped(ack | flag::PSH), GET);
    let sacked: Vec<u8> = [1, 1, 5, 26].into_iter().chain((0..24).map(|n| n * 10)).collect();
    vec![
        ("v4_syn", packet(V4, &syn(flag::SYN), &[])),
        ("v4_syn_ack", packet(V4, &syn(flag::SYN | ack), &[])),
        ("v4_ack", packet(V4, &tcp(ack), &[])),
        ("v4_ack_stamped", packet(V4, &stamped(ack), &[])),
        ("v4_get", v4.clone()),
        ("v4_fin", packet(V4, &tcp(ack | flag::FIN), b"bye")),
        ("v4_rst", packet(V4, &tcp(flag::RST), &[])),
        ("v4_urgent", packet(V4, &TcpFields { urgent: 3, ..tcp(ack | flag::URG) }, b"\xff\xf4\xffx")),
        ("v4_ecn", with(packet(V4, &tcp(ack | flag::ECE | flag::CWR | flag::NS), b"x"), 1, &[3])),
        ("v4_long", packet(V4, &stamped(ack), &[0x41; 900])),
        ("v4_sack", with_options(&sacked, &[])),
        ("v4_fast_open", with_options(&[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 0], b"early")),
        ("v4_ip_options", {
            let bytes = [&v4[..20], &[7, 4, 4, 0], &v4[20..]].concat();
            let len = bytes.len() as u16;
            with(with(bytes, 0, &[0x46]), 2, &len.to_be_bytes())
        }),
        ("v4_padded", [&packet(V4, &tcp(ack), &[])[..], &[0; 6]].concat()),
        ("v4_length_zero", with(v4.clone(), 2, &[0, 0])),
        ("v4_length_beyond", with(v4.clone(), 2, &[0xff, 0xff])),
        ("v4_length_short", with(v4.clone(), 2, &[0, 30])),
        ("v4_fragment_first", with(v4.clone(), 6, &[0x20, 0])),
        ("v4_fragment_later", with(v4.clone(), 6, &[0, 99])),
        ("v4_ihl_short", with(v4.clone(), 0, &[0x44])),
        ("v4_ihl_long", with(v4.clone(), 0, &[0x4f])),
        ("v4_offset_short", with(v4.clone(), 32, &[0x40])),
        ("v4_offset_long", with(packet(V4, &tcp(ack), &[]), 32, &[0xf0])),
        ("v4_udp", with(v4.clone(), 9, &[17])),
        ("v4_authenticated", {
            let auth = [6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
            let bytes = [&v4[..20], &auth, &v4[20..]].concat();
            let len = bytes.len() as u16;
            with(with(bytes, 9, &[51]), 2, &len.to_be_bytes())
        }),
        ("v6_syn", packet(V6, &syn(flag::SYN), &[])),
        ("v6_get", v6.clone()),
        ("v6_ack", packet(V6, &stamped(ack), &[])),
        ("v6_length_zero", with(v6.clone(), 4, &[0, 0])),
        ("v6_mapped", with(v6.clone(), 8, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1])),
        ("v6_hop_by_hop", extended(0, &[6, 0, 5, 2, 0, 0, 1, 0], &tcp(ack))),
        (
            "v6_all_kinds",
            extended(
                0,
                &[
                    60, 0, 1, 4, 0, 0, 0, 0, 43, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 51, 0, 0, 0,
                    0, 0, 0, 1, 60, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 6, 0, 1, 4, 0, 0, 0, 0,
                ],
                &tcp(ack),
            ),
        ),
        ("v6_atomic_fragment", extended(44, &[6, 0, 0, 0, 0, 0, 0, 9], &tcp(ack))),
        ("v6_fragment", extended(44, &[6, 0, 0, 1, 0, 0, 0, 9], &tcp(ack))),
        ("v6_too_many", extended(60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat(), &tcp(ack))),
        ("v6_extension_beyond", extended(60, &[6, 200, 1, 4, 0, 0, 0, 0], &tcp(ack))),
        ("v6_jumbo", with(extended(0, &[6, 0, 0xc2, 4, 0, 1, 0, 0], &tcp(ack)), 4, &[0, 0])),
        ("arp", vec![0, 1, 8, 0, 6, 4, 0, 1]),
        ("short", vec![0x45, 0, 0]),
        ("v4_udp_short", with(with(v4[..24].to_vec(), 2, &[0, 24]), 9, &[17])),
        ("v4_datagram", datagram(V4, 5, 1_500).remove(0)),
        ("v6_datagram", datagram(V6, 5, 1_500).remove(0)),
        ("v4_datagram_first", datagram(V4, 100, 100).remove(0)),
        ("v6_datagram_later", datagram(V6, 100, 100).remove(1)),
    ]
}

/// Frames whole, cut by the snap length, and with lengths that lie.
pub fn frames() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    for (i, (name, packet)) in plain_frames().into_iter().enumerate() {
        // The third byte has no meaning here but chooses how far the target cuts it shorter.
        seeds.push((name.to_owned(), [&[0, (7 * i % 256) as u8, 0, 5][..], &packet].concat()));
    }
    let long = packet(V4, &syn(flag::ACK), &[0x42; 300]);
    for (name, len) in
        [("cut_payload", 200), ("cut_header_only", 60), ("cut_options", 51), ("cut_tcp", 30), ("cut_ip", 11)]
    {
        let missing = (long.len() - len) as u16;
        seeds.push((name.to_owned(), [&[1][..], &missing.to_le_bytes(), &[0], &long[..len]].concat()));
    }
    seeds.push(("shorter_on_the_wire".to_owned(), [&[2, 200, 0, 0], &long[..]].concat()));
    let super_frame = with(long, 2, &[0, 0]);
    seeds.push(("super_frame".to_owned(), [&[1, 0, 0, 2], &super_frame[..]].concat()));
    seeds.push(("longest_on_the_wire".to_owned(), [&[0xff; 4], &super_frame[..]].concat()));
    seeds
}

/// Options of every kind, and lies about their lengths.
pub fn options() -> Vec<Seed> {
    let stamps = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let blocks = |n: u8| -> Vec<u8> { [5, 2 + 8 * n].into_iter().chain((0..8 * n).map(|i| i * 3)).collect() };
    named([
        ("none", vec![]),
        ("linux_syn", [&[2, 4, 5, 0xb4, 4, 2][..], &stamps, &[1, 3, 3, 7]].concat()),
        ("windows_syn", vec![2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2]),
        ("macos_syn", [&[2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1][..], &stamps, &[4, 2, 0, 0]].concat()),
        ("bsd_syn", [&[2, 4, 5, 0xb4, 1, 3, 3, 6, 4, 2][..], &stamps].concat()),
        ("stamps_aligned", [&[1, 1][..], &stamps].concat()),
        ("stamps_last", [&stamps[..], &[1, 1]].concat()),
        ("stamps_twice", [&stamps[..], &stamps, &[0, 0, 0, 0]].concat()),
        ("sack_one", [&[1, 1][..], &stamps, &[1, 1], &blocks(1)].concat()),
        ("sack_three", [&[1, 1][..], &stamps, &[1, 1], &blocks(3)].concat()),
        ("sack_four", [&[1, 1][..], &blocks(4)].concat()),
        ("sack_five_in_parts", [blocks(2), blocks(2)].concat()),
        ("sack_empty", vec![5, 2, 1, 1]),
        ("sack_cut", vec![5, 9, 1, 2, 3, 4, 5, 6, 7, 1, 1, 1]),
        ("fast_open", vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 0]),
        ("experimental", vec![254, 4, 0xf9, 0x89, 30, 12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("md5", [&[19, 18][..], &[7; 16], &[1, 1]].concat()),
        ("user_timeout", vec![28, 4, 0x80, 5]),
        ("nops", vec![1; 40]),
        ("ends_early", vec![2, 4, 5, 0xb4, 0, 3, 3, 7]),
        ("length_zero", vec![2, 4, 5, 0xb4, 8, 0, 1, 1]),
        ("length_one", vec![3, 3, 9, 8, 1, 1, 1, 1]),
        ("length_beyond", vec![3, 3, 9, 8, 11, 1, 1, 1]),
        ("length_wrong", vec![2, 3, 1, 5, 9, 1, 2, 3, 4, 5, 6, 7]),
        ("length_missing", vec![1, 1, 1, 8]),
        ("scale_too_large", vec![3, 3, 255, 1]),
        ("mss_zero", vec![2, 4, 0, 0]),
        ("cut_in_an_option", vec![2, 4, 5]),
        ("cut_behind_a_kind", vec![1, 1, 8, 10, 0, 0, 0, 1, 0]),
    ])
}

/// Bytes to sum.
pub fn checksums() -> Vec<Seed> {
    let segment = packet(V4, &syn(flag::ACK), b"odd");
    let addresses: Vec<u8> = (0..32).map(|n| n * 7).collect();
    let with_addresses = |cuts: &[u8], transport: &[u8]| [cuts, &addresses, transport].concat();
    named([
        ("nothing", vec![0]),
        ("one_byte", vec![0, 0x80]),
        ("rfc_1071", vec![2, 1, 5, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
        ("ones", [&[3, 1, 2, 250][..], &[0xff; 1_500]].concat()),
        ("zeros", vec![0; 70]),
        ("segment", with_addresses(&[1, 33], &segment[20..])),
        ("segment_even", with_addresses(&[2, 10, 40], &packet(V4, &tcp(flag::ACK), &[0xfe; 64])[20..])),
        (
            "segment_long",
            with_addresses(&[7, 1, 3, 5, 7, 9, 11, 13], &packet(V6, &tcp(flag::ACK), &[0x11; 1_401])[40..]),
        ),
        ("not_a_header", with_addresses(&[0], &[0; 30])),
    ])
}

/// Records of the inject ring, with the control bytes of the target.
pub fn records() -> Vec<Seed> {
    let record = |mtu: u16, keep: u8, client: &str, target: u16, tcp: TcpFields, mss: u16, payload: &[u8]| {
        let head = Inject {
            tcp,
            payload_len: payload.len() as u32,
            mss,
            target,
            client: endpoint(client),
            ..Inject::default()
        };
        [&mtu.to_le_bytes()[..], &[keep, 0], head.as_bytes(), payload].concat()
    };
    let ack = flag::ACK;
    let pool = ["198.18.0.9:40000", "[2001:2::9]:40000"];
    let urgent = TcpFields { urgent: 900, ..tcp(ack | flag::URG) };
    assert_eq!(TARGETS.len(), pool.len(), "a client for each target");
    named([
        ("syn", record(1_500, 0, pool[0], 0, syn(flag::SYN), 0, &[])),
        ("syn_v6", record(1_500, 0, pool[1], 1, syn(flag::SYN), 0, &[])),
        ("ack", record(1_500, 0, pool[0], 0, stamped(ack), 0, &[])),
        ("get", record(1_500, 0, pool[0], 0, stamped(ack | flag::PSH), 1_448, GET)),
        ("get_v6", record(1_280, 0, pool[1], 1, stamped(ack | flag::PSH), 1_208, GET)),
        ("kept", record(1_500, 1, "203.0.113.9:50000", 0, tcp(ack | flag::PSH), 1_460, GET)),
        ("super_frame", record(1_500, 0, pool[0], 0, stamped(ack | flag::PSH), 1_448, &[0x61; 3_700])),
        (
            "small_segments",
            record(1_500, 0, pool[0], 0, tcp(ack | flag::PSH | flag::FIN | flag::CWR), 9, &[0x62; 100]),
        ),
        ("narrow_route", record(68, 0, pool[0], 0, stamped(ack), 1_448, &[0x63; 90])),
        ("no_route", record(0, 0, pool[1], 1, stamped(ack), 1_448, &[0x64; 90])),
        ("urgent", record(1_500, 0, pool[0], 0, urgent, 500, &[0x65; 1_200])),
        ("syn_with_data", record(1_500, 0, pool[0], 0, syn(flag::SYN), 20, &[0x66; 50])),
        (
            "wraps",
            record(1_500, 0, pool[0], 0, TcpFields { seq: Seq(u32::MAX - 9), ..tcp(ack) }, 8, &[0x67; 60]),
        ),
        ("rst", record(1_500, 0, pool[0], 0, tcp(flag::RST), 0, &[])),
        ("unknown_target", record(1_500, 0, pool[0], 2, tcp(ack), 0, &[])),
        ("wrong_family", record(1_500, 0, pool[0], 1, tcp(ack), 0, &[])),
        ("foreign_client", record(1_500, 0, "10.9.0.1:1", 0, tcp(ack), 0, &[])),
        ("no_segment_size", record(1_500, 0, pool[0], 0, tcp(ack), 0, GET)),
        ("length_beyond", with(record(1_500, 0, pool[0], 0, tcp(ack), 9, GET), 32, &[0xff, 0xff, 0, 0])),
        ("cut", record(1_500, 0, pool[0], 0, tcp(ack), 9, GET)[..50].to_vec()),
    ])
}
