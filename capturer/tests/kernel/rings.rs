//! Filters and rings by themselves: what intercept uses of them, what the kernel accepts, and taking a ring over.

use std::net::{IpAddr, SocketAddr};

use capturer::filter::{CaptureFilter, Frames, ReturnFilter, Services};
use capturer::packet_ring::{Hearing, PacketRing, RingSpec, Start, open_socket};
use capturer::sys::{Begin, PacketSocket};
use lab::{Namespace, netlink};

use super::rig::{namespace, talk};
use super::testing::segment;
use super::{V4, V6, address, link_socket, pattern, send};

#[test]
fn intercepts_ring_holds_headers_of_answers_and_icmp_errors() {
    let Some(ns) = namespace() else { return };
    let filter = ReturnFilter {
        targets: vec![address(V4), address(V6)],
        datagrams: vec![],
        clients: vec![],
        payload: 0,
        promiscuous: false,
        link_header: 0,
    };
    let spec = RingSpec::with_slots(256, 1 << 20);
    let opening = filter.program();
    let ring = ns.enter(move || {
        let socket = open_socket(&spec, &opening, netlink::index("lo").unwrap(), Hearing::default()).unwrap();
        PacketRing::map(socket, spec, Start::Fresh).unwrap()
    });
    let mut ring = ring;
    for server in [V4, V6] {
        talk(&ns, server, b"a question", &pattern(200_000));
    }
    ns.enter(|| {
        let asked = segment("127.0.0.1:4000", V4, 77, b"");
        let mut error = asked[..20].to_vec();
        error[9] = 1;
        error[2..4].copy_from_slice(&68u16.to_be_bytes());
        error.extend([3, 4, 0, 0, 0, 0, 5, 0]);
        error.extend(&asked);
        send(&link_socket("lo"), &[0; 6], 0x0800, &[], &error);
    });
    let (mut payload, mut icmp) = ([0u64; 2], 0);
    while let Some((meta, bytes)) = ring.peek() {
        match flow::segment::parse(bytes, meta.len) {
            Ok(segment) => {
                assert_eq!(segment.src.port, 8080, "answers only");
                assert!(segment.payload.is_empty() && !segment.options_cut, "cut right behind the header");
                payload[usize::from(!segment.src.addr.is_v4())] += u64::from(segment.wire_payload_len);
            }
            Err(flow::Malformed::NotTcp) => {
                assert_eq!((bytes[9], bytes[20], bytes.len()), (1, 3, 68));
                icmp += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
        ring.advance();
    }
    ring.release();
    assert_eq!((payload, icmp), ([200_000, 200_000], 1));
    assert_eq!(ring.take_dropped().unwrap(), 0);
}

#[test]
fn the_kernel_accepts_the_largest_filters() {
    let Some(ns) = namespace() else { return };
    let v6 = |i: u16| IpAddr::from([0xfd00, 0, i, 0, 0, 0, i, i]);
    let targets: Vec<SocketAddr> = (0..256).map(|i| SocketAddr::new(v6(i), 7 * i + 1)).collect();
    let capture = |online| {
        let targets = targets.clone();
        let (clients, frames) =
            (vec!["2001:2::/48".parse().unwrap()], Frames::UpTo { most: 1_968, bare: 180 });
        CaptureFilter {
            online,
            clients,
            targets,
            inside: vec![],
            outside: vec![],
            udp: Services::default(),
            promiscuous: false,
            answers: false,
            link_header: 0,
            frames,
        }
        .program()
    };
    let clients = vec!["198.18.0.0/15".parse().unwrap(), "2001:2::/48".parse().unwrap()];
    let returns = ReturnFilter {
        targets: targets.clone(),
        datagrams: vec![],
        clients,
        payload: 64,
        promiscuous: true,
        link_header: 0,
    };
    let programs = [
        capture((0..256).map(|i| (None, 7 * i + 1)).collect()),
        capture((0..256).map(|i| (Some(v6(i)), 80)).collect()),
        capture((0..2_000).map(|i| (Some(v6(i)), 80)).collect()),
        returns.program(),
    ];
    ns.enter(move || {
        let socket = PacketSocket::open(Begin::Network).unwrap();
        for program in programs {
            socket.attach(&program).unwrap();
        }
    });
}

/// Sends segments with these sequence numbers over loopback, into whatever captures there.
fn number(ns: &Namespace, seqs: std::ops::Range<u32>) {
    ns.enter(move || {
        let socket = link_socket("lo");
        for seq in seqs {
            send(&socket, &[0; 6], 0x0800, &[], &segment("10.9.0.1:4000", "10.9.0.2:8080", seq, b"x"));
        }
    });
}

/// Reads up to `max` frames without giving them back; their sequence numbers.
fn read(ring: &mut PacketRing, max: usize) -> Vec<u32> {
    let mut seqs = vec![];
    while seqs.len() < max
        && let Some((meta, bytes)) = ring.peek()
    {
        seqs.push(flow::segment::parse(bytes, meta.len).unwrap().tcp.seq.0);
        ring.advance();
    }
    seqs
}

#[test]
fn a_ring_is_taken_over_in_whatever_state_it_was_left() {
    let Some(ns) = namespace() else { return };
    let filter = CaptureFilter {
        online: vec![(None, 8080)],
        clients: vec![],
        targets: vec![],
        inside: vec![],
        outside: vec![],
        udp: Services::default(),
        promiscuous: false,
        answers: false,
        link_header: 0,
        frames: Frames::All,
    };
    let spec = RingSpec::with_slots(2_048, 128 << 10);
    let slots = spec.slots();
    let program = filter.program();
    let socket = ns.enter(move || {
        open_socket(&spec, &program, netlink::index("lo").unwrap(), Hearing::default()).unwrap()
    });
    let map = |start| PacketRing::map(socket.duplicate().unwrap(), spec, start).unwrap();

    number(&ns, 0..10);
    let mut first = map(Start::Fresh);
    assert_eq!(read(&mut first, 4), [0, 1, 2, 3]);
    let position = first.position();
    drop(first);
    // Died before it gave four slots back: they are given back, and reading goes on behind them.
    let mut second = map(Start::At(position));
    assert_eq!(read(&mut second, 3), [4, 5, 6]);
    second.release();
    drop(second);
    // Without a position, and with a wrong one, the frames are found.
    let mut third = map(Start::Unknown);
    assert_eq!(read(&mut third, 1), [7]);
    third.release();
    drop(third);
    let mut fourth = map(Start::At(40));
    assert_eq!(read(&mut fourth, 9), [8, 9]);
    fourth.release();
    let position = fourth.position();
    assert!(position > 40, "numbers go on");
    // Full to the last slot and beyond.
    number(&ns, 10..10 + slots + 5);
    drop(fourth);
    let mut fifth = map(Start::At(position));
    assert_eq!(read(&mut fifth, usize::MAX), (10..10 + slots).collect::<Vec<_>>());
    assert!(fifth.peek().is_none(), "what was read is not read again before it is given back");
    assert_eq!(fifth.take_dropped().unwrap(), 5);
    fifth.release();
    drop(fifth);
    // Full, and nobody knows from where on.
    number(&ns, 1_000..1_000 + slots);
    let mut sixth = map(Start::Unknown);
    assert_eq!(read(&mut sixth, usize::MAX), (1_000..1_000 + slots).collect::<Vec<_>>());
    sixth.release();
    // Empty and in the wrong place: the next wait that sees nothing leads to a search.
    drop(sixth);
    let mut seventh = map(Start::Unknown);
    number(&ns, 5_000..5_003);
    if read(&mut seventh, 9).is_empty() {
        assert!(seventh.readable());
        seventh.relocate();
        assert_eq!(read(&mut seventh, 9), [5_000, 5_001, 5_002]);
    }
}
