//! Target `rewrite`: any bytes as a record of the inject ring, on its way through guard, cutter and headers; and what was
//! parsed from a captured packet, written again.
//!
//! Two bytes are the MTU of the route, one says whether clients are of a pool (even) or kept (odd), one is unused so that
//! the record begins aligned; the rest is the record: [`flow::Inject`] and its payload.

use std::net::SocketAddr;
use std::sync::LazyLock;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use flow::emit::{MAX_HEADERS, emit};
use flow::record::{flag, opt};
use flow::segment::parse;
use flow::{Captured, Endpoint, Inject, Segment, Seq, TcpFields};
use injector::cut::Pieces;
use injector::guard::Guard;
use topology::plan::Clients;

use crate::data::Data;
use crate::reach;

/// The sealed targets of the guards below.
pub(crate) const TARGETS: [&str; 2] = ["10.0.3.2:8080", "[fd00:3::2]:8080"];
/// Pieces of one record that are looked at byte by byte: there may be one a payload byte.
const CLOSELY: usize = 24;

/// Any bytes as a record for the injector.
pub fn rewrite(data: &[u8]) {
    let mut data = Data::new(data);
    let (Some(mtu), Some([keep, _])) = (data.u16(), data.array()) else { return };
    let bytes = data.rest();
    if let Some((head, payload)) = Captured::split(bytes) {
        assert_eq!(payload.len(), head.payload_len as usize);
    }
    let guard = &GUARDS[usize::from(keep % 2)];
    let out = match guard.check(bytes) {
        Ok(out) => out,
        Err(count) => {
            reach::note(count.name());
            return assert!(!count.name().is_empty());
        }
    };
    let (head, target, client) = (&out.head, out.target.endpoint, out.head.client);
    assert_eq!(out.payload, &bytes[size_of::<Inject>()..][..head.payload_len as usize]);
    assert!(TARGETS.contains(&target.to_string().as_str()), "{target} is not on the list");

    let v4 = client.addr.is_v4();
    let (mut seq, mut taken, mut count) = (head.tcp.seq, 0, 0);
    for (tcp, piece) in Pieces::new(head, out.payload, mtu, v4) {
        count += 1;
        assert!(count <= out.payload.len().max(1), "a record of {} bytes has no end", out.payload.len());
        assert_eq!(tcp.seq, seq, "piece {count}");
        assert_eq!(piece, &out.payload[taken..][..piece.len()], "piece {count}");
        taken += piece.len();
        let last = taken == out.payload.len();
        assert_eq!(tcp.has(flag::SYN), head.tcp.has(flag::SYN) && count == 1, "piece {count}");
        assert_eq!(tcp.has(flag::FIN), head.tcp.has(flag::FIN) && last, "piece {count}");
        seq += piece.len() as u32 + u32::from(tcp.has(flag::SYN));
        if count <= CLOSELY || last {
            let packet = written(client, target, &tcp, piece);
            let fits = packet.len() <= usize::from(mtu) || piece.len() <= 8;
            assert!(fits, "a packet of {} bytes on a route of {mtu}", packet.len());
        }
    }
    assert_eq!(taken, out.payload.len(), "no byte is left behind");
}

/// What was read from a packet is written, and read again.
pub(crate) fn again(segment: &Segment<'_>) {
    written(segment.src, segment.dst, &segment.tcp, segment.payload);
}

/// Writes one packet, reads it with two readers, and returns it.
fn written(src: Endpoint, dst: Endpoint, tcp: &TcpFields, payload: &[u8]) -> Vec<u8> {
    let (front, back) = payload.split_at(payload.len() / 3);
    let mut buf = [0xee; MAX_HEADERS];
    let len = emit(&mut buf, src, dst, tcp, &[front, back], tcp.seq.0 as u16);
    let mut packet = Vec::with_capacity(len + payload.len());
    packet.extend_from_slice(&buf[..len]);
    packet.extend_from_slice(payload);

    let seen = parse(&packet, packet.len() as u32).expect("what we write is a segment");
    assert_eq!((seen.src, seen.dst, seen.payload), (src, dst, payload));
    assert_eq!(seen.tcp, on_the_wire(tcp));
    assert_eq!((seen.sack_count, seen.options_cut), (0, false));

    if packet.len() < 1 << 16 {
        let theirs = SlicedPacket::from_ip(&packet).expect("what we write, anybody can read");
        let Some(TransportSlice::Tcp(theirs_tcp)) = &theirs.transport else {
            panic!("{theirs:?} is not TCP")
        };
        let sum = match &theirs.net {
            Some(NetSlice::Ipv4(ip)) => {
                let ip = ip.header();
                assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
                theirs_tcp.calc_checksum_ipv4(ip.source(), ip.destination())
            }
            Some(NetSlice::Ipv6(ip)) => {
                theirs_tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
            }
            other => panic!("{other:?} is not IP"),
        };
        assert_eq!(sum.expect("it is short enough"), theirs_tcp.checksum());
    }
    packet
}

/// What of these fields a header carries: nine flags, four options, and of an absent option nothing.
fn on_the_wire(tcp: &TcpFields) -> TcpFields {
    let has = |option, value: u32| if tcp.has_option(option) { value } else { 0 };
    TcpFields {
        seq: Seq(tcp.seq.0),
        flags: tcp.flags & 0x1ff,
        options: tcp.options & (opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS),
        ts_val: has(opt::TIMESTAMPS, tcp.ts_val),
        ts_ecr: has(opt::TIMESTAMPS, tcp.ts_ecr),
        mss: has(opt::MSS, u32::from(tcp.mss)) as u16,
        window_scale: has(opt::WINDOW_SCALE, u32::from(tcp.window_scale)) as u8,
        reserved: 0,
        ..*tcp
    }
}

/// One for clients of a pool, one for kept clients.
static GUARDS: LazyLock<[Guard; 2]> = LazyLock::new(|| {
    let targets = TARGETS.map(|text| (text.parse::<SocketAddr>().expect("an address and a port"), 1_500));
    let range = |text: &str| Some(text.parse().expect("a range"));
    let pool = Clients::Pool { v4: range("198.18.0.0/15"), v6: range("2001:2::/48"), chosen: false };
    [Guard::of(&targets, &pool), Guard::of(&targets, &Clients::Keep)]
});
