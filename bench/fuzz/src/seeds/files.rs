//! Packet files.

use std::io::Write as _;

use flow::emit::{MAX_HEADERS, emit};
use flow::record::flag;
use flow::{Endpoint, Seq, TcpFields};
use lab::dump::{self, Order};

use super::{Seed, named};

const ETHERNET: u16 = 1;
const RAW: u16 = 101;

fn segment(payload: &[u8]) -> Vec<u8> {
    let at =
        |text: &str| Endpoint::from(text.parse::<std::net::SocketAddr>().expect("an address and a port"));
    let tcp = TcpFields { seq: Seq(9), ack: Seq(7), flags: flag::ACK, window: 500, ..TcpFields::default() };
    let mut head = [0; MAX_HEADERS];
    let len = emit(&mut head, at("10.0.0.1:40000"), at("10.0.0.9:80"), &tcp, &[payload], 0);
    [&head[..len], payload].concat()
}

fn pcap(order: Order, nanoseconds: bool, link: u16, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = dump::pcap(order, nanoseconds, link);
    for (frame, n) in frames.iter().zip(1..) {
        bytes.extend(dump::record(order, 1_000, n, frame, frame.len() as u32));
    }
    bytes
}

/// A section with every kind of block.
fn pcapng(order: Order) -> Vec<u8> {
    let comment = dump::option(order, 1, b"a word");
    let frame = dump::ethernet(0x0800, &segment(b"e"));
    [
        dump::section(order),
        dump::interface(order, ETHERNET, 0, &dump::option(order, 9, &[9])),
        dump::interface(order, RAW, 60, &[dump::option(order, 14, &[1; 8]), comment.clone()].concat()),
        dump::enhanced(order, 0, 5_000, &frame, frame.len() as u32, &comment),
        dump::enhanced(order, 1, 6_000, &segment(b"r"), 99, &[]),
        dump::block(order, 4, &[0; 4]),
        dump::old_packet(order, 1, 7_000, &segment(b"o"), 41),
        dump::block(order, 0x0bad_cafe, b"any"),
        dump::simple(order, &frame, frame.len() as u32),
        dump::enhanced(order, 7, 5_000, &frame, frame.len() as u32, &[]),
        dump::block(order, 5, &[0; 12]),
    ]
    .concat()
}

fn tunnels() -> Vec<Vec<u8>> {
    let inner = dump::ethernet(0x0800, &segment(b"in"));
    let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
    let geneve = [&[1, 0, 0x65, 0x58, 0, 0, 1, 0, 0, 0, 0, 0][..], &inner].concat();
    vec![dump::udp(4_789, &vxlan), dump::udp(6_081, &geneve), dump::udp(53, b"question")]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Stored, so that mutation reaches the file within, and every version of the library makes the same.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory does not fail")
}

/// A frame of one raw block (RFC 8878, section 3.1.1); at most 255 bytes.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("one byte for the length");
    let block = (u32::from(len) << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, len][..], &block[..3], bytes].concat()
}

/// Packet files behind two bytes of control.
pub fn files() -> Vec<Seed> {
    let (little, big) = (Order::Little, Order::Big);
    let two = [dump::ethernet(0x0800, &segment(b"one")), dump::ethernet(0x86dd, &[0x60; 48])];
    let tag = [0, 5, 0x81, 0];
    let tagged = |n| dump::ethernet(0x8100, &[&tag.repeat(n)[..], &[0, 5, 8, 0], &segment(b"v")].concat());
    let raw = [segment(b"raw"), segment(b"raw again")];
    let mut back = dump::pcap(little, true, RAW);
    for seconds in [9, 5, 10] {
        back.extend(dump::record(little, seconds, 0, &segment(b"t"), 41));
    }
    let mut damaged = pcap(little, true, RAW, &raw);
    damaged[24 + 8..24 + 12].copy_from_slice(&[0xff; 4]);
    let mut bad = pcapng(little);
    let at = bad.len();
    bad.extend(dump::enhanced(little, 0, 1, &segment(b"x"), 41, &[]));
    bad[at + 20] = 0xff;
    let cooked = [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0][..], &segment(b"c")].concat();
    let cooked_2 = [&[8, 0][..], &[0; 18], &segment(b"c")].concat();
    let small = pcap(little, true, RAW, &raw[..1]);
    let files = [
        ("pcap_little", pcap(little, false, ETHERNET, &two)),
        ("pcap_big_ns", pcap(big, true, ETHERNET, &two)),
        ("pcap_tags", pcap(little, false, ETHERNET, &[tagged(0), tagged(1), tagged(2)])),
        ("pcap_raw", pcap(little, true, RAW, &raw)),
        ("pcap_null", pcap(little, true, 0, &[[&[2, 0, 0, 0][..], &segment(b"n")].concat()])),
        ("pcap_cooked", pcap(little, true, 113, &[cooked])),
        ("pcap_cooked_2", pcap(big, true, 276, &[cooked_2])),
        ("pcap_unknown_link", pcap(little, true, 147, &raw)),
        ("pcap_short_frame", pcap(little, true, ETHERNET, &[vec![0; 5]])),
        ("pcap_tunnels", pcap(little, true, RAW, &tunnels())),
        ("pcap_back", back),
        ("pcap_damaged", damaged),
        ("pcap_no_packet", pcap(little, true, RAW, &[])),
        ("pcapng_little", pcapng(little)),
        ("pcapng_big", pcapng(big)),
        ("pcapng_sections", [pcapng(big), pcapng(little)].concat()),
        ("pcapng_bad_packet", bad),
        ("gzip", gzip(&pcap(little, true, RAW, &raw))),
        ("gzip_members", [gzip(&small[..30]), gzip(&small[30..])].concat()),
        ("zstd", zstd(&small)),
        ("zstd_frames", [zstd(&small[..30]), zstd(&small[30..])].concat()),
        ("no_file", b"GET / HTTP/1.1\r\n\r\n".repeat(3)),
        ("empty", vec![]),
    ];
    named(files.map(|(name, bytes)| (name, [&[1, 200], &bytes[..]].concat())))
}
