//! Target `frame`: any bytes as a captured packet. Four bytes of control, then the packet from its IP header on.
//!
//! | control | length on the wire |
//! |---|---|
//! | `0` | the packet's |
//! | `1 x y z` | longer by x + 256 y + 65536 z: cut by the snap length |
//! | `2 x` | shorter by x: what the kernel never says |
//! | other | all four bytes, little-endian |

use std::ops::Range;

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use flow::datagram::Seen;
use flow::record::{flag, opt};
use flow::segment::parse;
use flow::{Addr, Malformed, Segment};

use crate::{reach, rewrite};

/// Any bytes as a captured packet.
pub fn frame(data: &[u8]) {
    let Some((control, packet)) = data.split_first_chunk::<4>() else { return };
    let wire_len = wire_len(*control, packet.len());
    let whole = parse(packet, wire_len);
    datagram(packet, wire_len);
    match &whole {
        Ok(segment) => lies_inside(segment, packet, wire_len),
        Err(malformed) => has_a_name(*malformed),
    }
    let somewhere = usize::from(control[1]) + 13 * usize::from(control[3]);
    cut_shorter(packet, wire_len, &whole, somewhere % (packet.len() + 1));
    if wire_len as usize == packet.len() {
        padded(packet, &whole, somewhere % 64);
        agrees_with_etherparse(packet, &whole);
    }
    if let Ok(segment) = &whole {
        rewrite::again(segment);
    }
}

/// The same bytes as a datagram: what is found lies inside, and a first fragment is read like a whole one.
fn datagram(packet: &[u8], wire_len: u32) {
    let payload = match flow::datagram::parse(packet, wire_len) {
        Ok(Seen::Whole(datagram)) => {
            assert!(datagram.payload.len() as u32 <= datagram.wire_payload_len, "{datagram:?}");
            reach::note("datagram");
            datagram.payload
        }
        Ok(Seen::Part(part, fragment)) => {
            assert!(fragment.more || fragment.offset > 0, "{fragment:?}");
            assert!(part.transport.len() as u32 <= part.wire_len, "{part:?}");
            let _ = flow::datagram::head(&part);
            reach::note("fragment_of_datagram");
            part.transport
        }
        Err(malformed) => return has_a_name(malformed),
    };
    let (payload, bytes) = (addresses(payload), addresses(packet));
    assert!(payload.is_empty() || bytes.start + 20 <= payload.start && payload.end <= bytes.end);
}

fn wire_len(control: [u8; 4], len: usize) -> u32 {
    let [mode, x, y, z] = control;
    let len = u32::try_from(len).expect("inputs are small");
    match mode {
        0 => len,
        1 => len + u32::from_le_bytes([x, y, z, 0]),
        2 => len.saturating_sub(u32::from(x)),
        _ => u32::from_le_bytes(control),
    }
}

fn has_a_name(malformed: Malformed) {
    reach::note(malformed.name());
    assert!(!malformed.name().is_empty() && Malformed::ALL[malformed.index()] == malformed);
}

fn lies_inside(segment: &Segment<'_>, packet: &[u8], wire_len: u32) {
    let payload = addresses(segment.payload);
    let bytes = addresses(packet);
    assert!(
        payload.is_empty() || bytes.start + 40 <= payload.start && payload.end <= bytes.end,
        "{segment:?}"
    );
    assert!(segment.payload.len() <= segment.wire_payload_len as usize, "{segment:?}");
    assert!(segment.wire_payload_len + 40 <= wire_len, "{segment:?}");
    assert!(!segment.options_cut || segment.payload.is_empty(), "{segment:?}");
    assert!(segment.sack_count <= 4 && segment.ecn < 4 && segment.tcp.flags < 0x200, "{segment:?}");
    assert_eq!(segment.src.addr.is_v4(), segment.dst.addr.is_v4(), "{segment:?}");
}

fn addresses(bytes: &[u8]) -> Range<usize> {
    let bytes = bytes.as_ptr_range();
    bytes.start as usize..bytes.end as usize
}

/// The same packet of which less was captured is the same segment with less payload, or too short; a malformed one does not
/// become a segment.
fn cut_shorter(packet: &[u8], wire_len: u32, whole: &Result<Segment<'_>, Malformed>, len: usize) {
    match (whole, parse(&packet[..len], wire_len)) {
        (Err(_), Ok(cut)) => panic!("malformed, but a segment when cut to {len}: {cut:?}"),
        (Err(_), Err(_)) | (Ok(_), Err(Malformed::ShortIp | Malformed::ShortTcp)) => {}
        (Ok(_), Err(other)) => panic!("{} when cut to {len}", other.name()),
        (Ok(whole), Ok(cut)) => {
            let payload = &whole.payload[..cut.payload.len()];
            let tcp = if cut.options_cut { cut.tcp } else { whole.tcp };
            let (sack, sack_count) =
                if cut.options_cut { (cut.sack, cut.sack_count) } else { (whole.sack, whole.sack_count) };
            let expected = Segment { payload, tcp, sack, sack_count, options_cut: cut.options_cut, ..*whole };
            assert_eq!(cut, expected, "cut to {len}");
            let fixed = |s: &Segment<'_>| (s.tcp.seq, s.tcp.ack, s.tcp.flags, s.tcp.window, s.tcp.urgent);
            assert_eq!(fixed(&cut), fixed(whole), "cut to {len}");
        }
    }
}

/// Ethernet pads short frames; where the IP header says how long the packet is, that changes nothing.
fn padded(packet: &[u8], whole: &Result<Segment<'_>, Malformed>, padding: usize) {
    let Some(whole) = whole.as_ref().ok().filter(|_| says_its_length(packet)) else { return };
    let mut longer = packet.to_vec();
    longer.resize(packet.len() + padding, 0x5a);
    assert_eq!(parse(&longer, longer.len() as u32), Ok(*whole), "with {padding} bytes of padding");
}

/// Whether the header's length field is set; 0 is what offloads and packets beyond 64 KiB leave there.
fn says_its_length(packet: &[u8]) -> bool {
    let at = if packet[0] >> 4 == 4 { 2 } else { 4 };
    packet[at] != 0 || packet[at + 1] != 0
}

/// Two readers of one packet. Where they differ by design, the reason is named here.
fn agrees_with_etherparse(packet: &[u8], ours: &Result<Segment<'_>, Malformed>) {
    let sliced = SlicedPacket::from_ip(packet);
    let theirs = match &sliced {
        Ok(SlicedPacket { net: Some(net), transport: Some(TransportSlice::Tcp(tcp)), .. }) => {
            Some((net, tcp))
        }
        _ => None,
    };
    match (ours, theirs) {
        (Ok(ours), Some((net, tcp))) => same(ours, net, tcp),
        (Err(_), None) => {}
        (Err(malformed), Some((net, _))) => {
            let by_design = match (malformed, net) {
                // Ours to refuse: an address that would be taken for IPv4, more extensions than anybody sends.
                (Malformed::MappedAddress | Malformed::Extensions, NetSlice::Ipv6(_)) => true,
                // IPsec's authentication header before TCP: never between a client and a service that one may replay.
                (Malformed::NotTcp, NetSlice::Ipv4(ip)) => ip.extensions().auth.is_some(),
                _ => false,
            };
            assert!(by_design, "{} for us, a segment for etherparse: {net:?}", malformed.name());
        }
        (Ok(ours), None) => {
            // We take length 0, hop-by-hop options wherever they stand, and an authentication header without a value.
            let extended = packet[0] >> 4 == 6 && packet[6] != 6;
            let by_design = !says_its_length(packet) || extended;
            assert!(by_design, "{sliced:?} for etherparse, for us {ours:?}");
        }
    }
}

fn same(ours: &Segment<'_>, net: &NetSlice<'_>, tcp: &TcpSlice<'_>) {
    let (src, dst, ecn) = match net {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            (Addr::v4(ip.source()), Addr::v4(ip.destination()), ip.ecn().value())
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            (Addr::v6(ip.source()), Addr::v6(ip.destination()), ip.ecn().value())
        }
        NetSlice::Arp(_) => panic!("an IP packet became {net:?}"),
    };
    assert_eq!((ours.src.addr, ours.dst.addr, ours.ecn), (src, dst, ecn));
    assert_eq!((ours.src.port, ours.dst.port), (tcp.source_port(), tcp.destination_port()));
    let bits = [
        (tcp.fin(), flag::FIN),
        (tcp.syn(), flag::SYN),
        (tcp.rst(), flag::RST),
        (tcp.psh(), flag::PSH),
        (tcp.ack(), flag::ACK),
        (tcp.urg(), flag::URG),
        (tcp.ece(), flag::ECE),
        (tcp.cwr(), flag::CWR),
        (tcp.ns(), flag::NS),
    ];
    let flags = bits.iter().filter(|(set, _)| *set).fold(0, |flags, (_, bit)| flags | bit);
    let fields = &ours.tcp;
    assert_eq!(
        (fields.seq.0, fields.ack.0, fields.flags, fields.window, fields.urgent),
        (tcp.sequence_number(), tcp.acknowledgment_number(), flags, tcp.window_size(), tcp.urgent_pointer())
    );
    assert_eq!(ours.payload, tcp.payload());
    assert_eq!(ours.wire_payload_len as usize, tcp.payload().len());
    assert!(!ours.options_cut);
    crate::options::agree(ours, tcp.options());
    assert_eq!(ours.tcp.options & !(opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS), 0);
}
