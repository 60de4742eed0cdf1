//! The programs against plain Rust that says the same, over made and random packets.

use std::net::SocketAddr;

use flow::emit::{MAX_HEADERS, emit};
use flow::record::flag;
use flow::{Endpoint, TcpFields};
use proptest::prelude::*;

use super::interpreter::{Aside, check, run};
use super::*;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const HOST: u8 = 0;
const OTHER_HOST: u8 = 3;
const OUTGOING: u8 = 4;

fn filter() -> CaptureFilter {
    CaptureFilter {
        online: vec![
            (None, 80),
            (Some("10.0.0.9".parse().unwrap()), 6379),
            (Some("fd00::9".parse().unwrap()), 6379),
        ],
        clients: vec!["198.18.0.0/15".parse().unwrap(), "2001:2::/48".parse().unwrap()],
        targets: vec!["10.0.3.2:80".parse().unwrap(), "[fd00::32]:80".parse().unwrap()],
        inside: vec![],
        outside: vec![],
        udp: Services::default(),
        promiscuous: false,
        answers: false,
        link_header: 0,
        frames: Frames::All,
    }
}

fn segment(src: &str, dst: &str, payload: usize) -> Vec<u8> {
    let parse = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
    let tcp = TcpFields { flags: flag::ACK, ..TcpFields::default() };
    let payload = vec![7; payload];
    let mut buf = [0; MAX_HEADERS];
    let len = emit(&mut buf, parse(src), parse(dst), &tcp, &[&payload], 0);
    [&buf[..len], &payload].concat()
}

fn aside(packet: &[u8]) -> Aside {
    Aside { protocol: if packet[0] >> 4 == 4 { IPV4 } else { IPV6 }, packet_type: HOST, interface: 2 }
}

fn verdict(filter: &CaptureFilter, packet: &[u8], aside: Aside) -> bool {
    let program = filter.program();
    check(&program);
    let verdict = run(&program, packet, aside) > 0;
    assert_eq!(verdict, oracle(filter, packet, aside).is_some(), "filter and oracle disagree: {packet:02x?}");
    verdict
}

fn takes(src: &str, dst: &str) -> bool {
    let packet = segment(src, dst, 10);
    verdict(&filter(), &packet, aside(&packet))
}

#[test]
fn client_to_server_comes_up_and_nothing_else() {
    assert!(takes("10.0.0.1:40000", "10.0.0.2:80"), "any address of a mapping without one");
    assert!(!takes("10.0.0.2:80", "10.0.0.1:40000"), "the server's answer");
    assert!(!takes("10.0.0.1:40000", "10.0.0.2:81"), "another port");
    assert!(takes("10.0.0.1:40000", "10.0.0.9:6379"));
    assert!(!takes("10.0.0.1:40000", "10.0.0.8:6379"), "another address of a mapping with one");
    assert!(takes("[fd00::1]:40000", "[fd00::2]:80"));
    assert!(!takes("[fd00::2]:80", "[fd00::1]:40000"));
    assert!(takes("[fd00::1]:40000", "[fd00::9]:6379"));
    assert!(!takes("[fd00::1]:40000", "[fd00::19]:6379"));
}

#[test]
fn own_packets_stay_down() {
    assert!(!takes("198.18.7.7:40000", "10.0.0.2:80"), "from the replayed range");
    assert!(!takes("198.19.255.255:40000", "10.0.0.9:6379"));
    assert!(takes("198.20.0.0:40000", "10.0.0.2:80"), "just behind the range");
    assert!(!takes("10.0.0.1:40000", "10.0.3.2:80"), "to a target, with the client's real address");
    assert!(!takes("[2001:2:0:5::1]:40000", "[fd00::2]:80"));
    assert!(takes("[2001:2:1::1]:40000", "[fd00::2]:80"));
    assert!(!takes("[fd00::1]:40000", "[fd00::32]:80"));
}

#[test]
fn frames_of_others_and_our_own_sends_stay_down() {
    let packet = segment("10.0.0.1:40000", "10.0.0.2:80", 10);
    let with = |packet_type, promiscuous| {
        let filter = CaptureFilter { promiscuous, ..filter() };
        verdict(&filter, &packet, Aside { packet_type, ..aside(&packet) })
    };
    assert!(with(HOST, false) && with(HOST, true));
    assert!(!with(OTHER_HOST, false) && with(OTHER_HOST, true));
    assert!(!with(OUTGOING, false) && !with(OUTGOING, true));
}

#[test]
fn where_answers_are_wanted_each_packet_comes_up_once() {
    let (request, answer) =
        (segment("10.0.0.1:40000", "10.0.0.2:80", 10), segment("10.0.0.2:80", "10.0.0.1:40000", 10));
    let with = |packet: &[u8], packet_type, interface, promiscuous| {
        let filter = CaptureFilter { promiscuous, answers: true, ..filter() };
        verdict(&filter, packet, Aside { packet_type, interface, ..aside(packet) })
    };
    let (lo, eth) = (1, 2);
    assert!(with(&request, HOST, eth, false) && !with(&request, OUTGOING, eth, false));
    assert!(with(&answer, OUTGOING, eth, false) && !with(&answer, HOST, eth, false), "not another host's");
    for packet in [&request, &answer] {
        assert!(with(packet, HOST, lo, false) && !with(packet, OUTGOING, lo, false));
        assert!(!with(packet, OTHER_HOST, eth, false), "a flood's");
        assert!(with(packet, OTHER_HOST, eth, true) && !with(packet, OUTGOING, eth, true));
    }
    let own = segment("198.18.7.7:80", "10.0.3.2:8080", 10);
    assert!(!with(&own, OUTGOING, eth, false), "a replayed client with the service's port");
    let to_ours = segment("10.0.0.2:80", "198.18.7.7:40000", 10);
    assert!(!with(&to_ours, OUTGOING, eth, false), "an answer to a replayed client");
}

#[test]
fn a_second_vlan_tag_stands_in_front_of_ip() {
    for (src, dst) in [("10.0.0.1:1", "10.0.0.2:80"), ("[fd00::1]:1", "[fd00::2]:80")] {
        let packet = segment(src, dst, 10);
        let inner = aside(&packet).protocol.to_be_bytes();
        let tagged = [&[0x60, 5][..], &inner, &packet].concat();
        for protocol in [0x8100, 0x88a8] {
            assert!(verdict(&filter(), &tagged, Aside { protocol, packet_type: HOST, interface: 2 }));
        }
        let raw = CaptureFilter { link_header: 14, ..filter() };
        let framed = [&[9; 14][..], &tagged].concat();
        assert!(verdict(&raw, &framed, Aside { protocol: 0x8100, packet_type: HOST, interface: 2 }));
        let framed = [&[9; 14][..], &packet].concat();
        assert!(verdict(&raw, &framed, aside(&packet)));
    }
}

#[test]
fn lengths_are_split_between_two_sockets() {
    for (payload, small) in [(0, true), (1968 - 40, true), (1968 - 39, false), (60_000, false)] {
        let packet = segment("10.0.0.1:1", "10.0.0.2:80", payload);
        let with = |frames| verdict(&CaptureFilter { frames, ..filter() }, &packet, aside(&packet));
        assert_eq!(with(Frames::UpTo { most: 1968, bare: 0 }), small);
        assert_eq!(with(Frames::Above(1968)), !small);
    }
}

/// Frames as three sockets share them; `bare` is the longest frame of the last.
fn shared(most: u32, bare: u32) -> [Frames; 3] {
    [Frames::UpTo { most, bare }, Frames::Above(most), Frames::Bare(bare)]
}

/// Which of the three takes a packet.
fn takers(filter: &CaptureFilter, packet: &[u8], aside: Aside, frames: [Frames; 3]) -> [bool; 3] {
    frames.map(|frames| {
        let program = CaptureFilter { frames, ..filter.clone() }.program();
        check(&program);
        run(&program, packet, aside) > 0
    })
}

#[test]
fn bare_acknowledgements_go_where_nobody_waits() {
    for (src, dst, at) in [("10.0.0.1:1", "10.0.0.2:80", 20), ("[fd00::1]:1", "[fd00::2]:80", 40)] {
        let with = |flags: u8, options: usize, payload: usize| {
            let mut packet = segment(src, dst, options + payload);
            packet[at + 12] = (5 + options as u8 / 4) << 4;
            packet[at + 13] = flags;
            takers(&filter(), &packet, aside(&packet), shared(1968, 180))
        };
        let (awaited, bare) = ([true, false, false], [false, false, true]);
        for options in [0, 12, 40] {
            assert_eq!(with(0x10, options, 0), bare, "an acknowledgement");
            assert_eq!(with(0x50, options, 0), bare, "one that echoes congestion");
            for flag in [0x01, 0x02, 0x04, 0x08, 0x20] {
                assert_eq!(with(0x10 | flag, options, 0), awaited, "flag {flag:#x}");
            }
            assert_eq!(with(0x10, options, 1), awaited, "payload without PSH");
        }
        let mut padded = segment(src, dst, 0);
        padded.extend([0; 6]);
        padded[at + 13] = 0x10;
        assert_eq!(takers(&filter(), &padded, aside(&padded), shared(1968, 180)), bare, "a link's padding");
    }
    // A datagram's fourteenth byte says nothing; nor does that of a header which is not whole.
    let udp = CaptureFilter { udp: Services { online: vec![(None, 80)], targets: vec![] }, ..filter() };
    let datagram = datagram("10.0.0.1:1", "10.0.0.2:80", 20).remove(0);
    assert_eq!(takers(&udp, &datagram, aside(&datagram), shared(1968, 180)), [true, false, false]);
    let mut cut = segment("10.0.0.1:1", "10.0.0.2:80", 0);
    cut[33] = 0x10;
    cut.truncate(39);
    assert_eq!(takers(&filter(), &cut, aside(&cut), shared(1968, 180)), [true, false, false]);
}

#[test]
fn first_fragments_come_up_to_be_counted_and_others_do_not() {
    let mut packet = segment("10.0.0.1:1", "10.0.0.2:80", 10);
    packet[6] = 0x20;
    assert!(verdict(&filter(), &packet, aside(&packet)));
    packet[7] = 1;
    assert!(!verdict(&filter(), &packet, aside(&packet)));
}

#[test]
fn ip_options_and_extension_headers_are_stepped_over() {
    let mut packet = segment("10.0.0.1:1", "10.0.0.2:80", 10);
    packet[0] = 0x4f;
    packet.splice(20..20, [1; 40]);
    assert!(verdict(&filter(), &packet, aside(&packet)));
    for (dst, want) in [("[fd00::2]:80", true), ("[fd00::2]:81", false)] {
        let mut packet = segment("[fd00::1]:1", dst, 10);
        packet[6] = 0;
        packet.splice(40..40, [60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(verdict(&filter(), &packet, aside(&packet)), want);
    }
    let mut long = segment("[fd00::1]:1", "[fd00::2]:9", 10);
    long[6] = 60;
    for next in [6, 60, 60] {
        long.splice(40..40, [next, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert!(verdict(&filter(), &long, aside(&long)), "too long a chain is left to the parser");
}

#[test]
fn the_largest_configurations_fit_and_still_decide() {
    let v6 = |i: u16| IpAddr::from([0xfd00, 0, i, 0, 0, 0, i, i]);
    let worst: [CaptureFilter; 4] = [
        CaptureFilter { online: (0..256).map(|i| (Some(v6(i)), 80)).collect(), ..filter() },
        CaptureFilter { online: (0..256).map(|i| (Some(v6(i)), 1000 + i)).collect(), ..filter() },
        CaptureFilter { online: (0..256).map(|i| (None, 7 * i + 1)).collect(), ..filter() },
        CaptureFilter {
            online: (0..256).map(|i| (None, 7 * i + 1)).collect(),
            targets: (0..256).map(|i| SocketAddr::new(v6(i), 7 * i + 1)).collect(),
            ..filter()
        },
    ];
    for filter in worst {
        let program = filter.assemble(true);
        check(&program);
        for &(ip, port) in filter.online.iter().step_by(17) {
            let dst = SocketAddr::new(ip.unwrap_or("fd00::77".parse().unwrap()), port).to_string();
            let packet = segment("[fd01::1]:5", &dst, 1);
            assert!(verdict(&filter, &packet, aside(&packet)), "{dst}");
            let packet = segment("[fd01::1]:5", &dst.replace("]:", "]:6"), 1);
            verdict(&filter, &packet, aside(&packet));
        }
        for target in filter.targets.iter().filter(|target| target.is_ipv6()).step_by(11) {
            let packet = segment("[fd01::1]:5", &target.to_string(), 1);
            verdict(&filter, &packet, aside(&packet));
        }
    }
}

#[test]
fn what_does_not_fit_compares_ports_only() {
    let v6 = |i: u16| IpAddr::from([0xfd00, 0, i, 0, 0, 0, i, i]);
    let filter = CaptureFilter { online: (0..1_000).map(|i| (Some(v6(i)), 80)).collect(), ..filter() };
    assert!(filter.assemble(true).len() > MAX_INSTRUCTIONS);
    let program = filter.program();
    check(&program);
    let packet = segment("[fd01::1]:5", "[fd77::1]:80", 1);
    assert!(run(&program, &packet, aside(&packet)) > 0);
}

fn returns() -> ReturnFilter {
    ReturnFilter {
        targets: vec!["10.0.3.2:80".parse().unwrap(), "[fd00::32]:80".parse().unwrap()],
        datagrams: vec![],
        clients: vec!["198.18.0.0/15".parse().unwrap(), "2001:2::/48".parse().unwrap()],
        payload: 0,
        promiscuous: false,
        link_header: 0,
    }
}

fn snap(filter: &ReturnFilter, packet: &[u8]) -> u32 {
    let program = filter.program();
    check(&program);
    run(&program, packet, aside(packet))
}

#[test]
fn answers_are_cut_behind_their_header() {
    let answer = segment("10.0.3.2:80", "198.18.0.7:4000", 1_000);
    assert_eq!(snap(&returns(), &answer), 40);
    assert_eq!(snap(&ReturnFilter { payload: 16, ..returns() }, &answer), 56);
    let mut options = answer.clone();
    options[32] = 0xf0;
    assert_eq!(snap(&returns(), &options), 80);
    assert_eq!(snap(&returns(), &segment("[fd00::32]:80", "[2001:2::5]:4000", 1_000)), 60);
    for (src, dst) in [
        ("10.0.3.2:81", "198.18.0.7:4000"),
        ("10.0.3.3:80", "198.18.0.7:4000"),
        ("10.0.3.2:80", "198.20.0.7:4000"),
        ("198.18.0.7:4000", "10.0.3.2:80"),
        ("[fd00::33]:80", "[2001:2::5]:4000"),
        ("[fd00::32]:80", "[2001:3::5]:4000"),
    ] {
        assert_eq!(snap(&returns(), &segment(src, dst, 9)), 0, "{src} {dst}");
    }
    let anyone = ReturnFilter { clients: vec![], ..returns() };
    assert_eq!(snap(&anyone, &segment("10.0.3.2:80", "203.0.113.5:4000", 9)), 40);
}

/// An ICMP error about a packet, from a router to that packet's sender.
fn icmp_about(quoted: &[u8], kind: u8) -> Vec<u8> {
    if quoted[0] >> 4 == 4 {
        let mut outer = quoted[..20].to_vec();
        outer[9] = 1;
        outer[12..16].copy_from_slice(&[10, 0, 0, 254]);
        outer[16..20].copy_from_slice(&quoted[12..16]);
        [&outer, &[kind, 4, 0, 0, 0, 0, 5, 0][..], &quoted[..28]].concat()
    } else {
        let mut outer = quoted[..40].to_vec();
        outer[6] = 58;
        outer[8..24].copy_from_slice(&[0xfe; 16]);
        outer[24..40].copy_from_slice(&quoted[8..24]);
        [&outer, &[kind, 0, 0, 0, 0, 0, 5, 0][..], quoted].concat()
    }
}

#[test]
fn icmp_errors_about_our_packets_come_up() {
    let v4 = segment("198.18.0.7:4000", "10.0.3.2:80", 0);
    let v6 = segment("[2001:2::5]:4000", "[fd00::32]:80", 0);
    for (packet, kind, want) in [
        (&v4, 3, ICMP_SNAP),
        (&v4, 11, ICMP_SNAP),
        (&v4, 8, 0),
        (&v4, 5, 0),
        (&v6, 1, ICMP_SNAP),
        (&v6, 2, ICMP_SNAP),
        (&v6, 3, ICMP_SNAP),
        (&v6, 0, 0),
        (&v6, 4, 0),
        (&v6, 135, 0),
    ] {
        assert_eq!(snap(&returns(), &icmp_about(packet, kind)), want, "type {kind}");
    }
    let other = segment("198.18.0.7:4000", "10.0.3.9:80", 0);
    assert_eq!(snap(&returns(), &icmp_about(&other, 3)), 0);
    let mut udp = v4;
    udp[9] = 17;
    assert_eq!(snap(&returns(), &icmp_about(&udp, 3)), 0);
}

#[test]
fn the_largest_return_filter_fits() {
    let targets = (0..256u16)
        .map(|i| SocketAddr::new(IpAddr::from([0xfd00, 0, i, 0, 0, 0, i, i]), 80 + i % 3))
        .collect();
    let filter = ReturnFilter { targets, ..returns() };
    let program = filter.assemble(true);
    check(&program);
    for target in filter.targets.iter().step_by(5) {
        assert_eq!(snap(&filter, &segment(&target.to_string(), "[2001:2::5]:4000", 9)), 60);
    }
}

/// The same decision in plain Rust. `None` also where a load beyond the packet would end the program.
/// The packets of one datagram for a path of 1,500 bytes.
fn datagram(src: &str, dst: &str, payload: usize) -> Vec<Vec<u8>> {
    let parse = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
    let payload = vec![7; payload];
    flow::emit_udp::Pieces::new(parse(src), parse(dst), &payload, 1_500, 9)
        .map(|piece| {
            let mut buf = [0; MAX_HEADERS];
            let len = piece.emit(&mut buf);
            [&buf[..len], piece.payload].concat()
        })
        .collect()
}

fn with_udp() -> CaptureFilter {
    CaptureFilter {
        udp: Services {
            online: vec![
                (None, 53),
                (Some("10.0.0.9".parse().unwrap()), 443),
                (Some("fd00::9".parse().unwrap()), 443),
            ],
            targets: vec!["10.0.3.2:53".parse().unwrap(), "[fd00::32]:53".parse().unwrap()],
        },
        ..filter()
    }
}

#[test]
fn datagrams_of_mapped_ports_come_up_beside_segments() {
    for link_header in [0, 14] {
        let (with, without) =
            (CaptureFilter { link_header, ..with_udp() }, CaptureFilter { link_header, ..filter() });
        let takes = |filter: &CaptureFilter, packet: &[u8]| {
            let program = filter.program();
            check(&program);
            let framed = [&vec![0; link_header as usize], packet].concat();
            run(&program, &framed, aside(packet)) > 0
        };
        let of = |src: &str, dst: &str, len: usize| {
            datagram(src, dst, len).iter().map(|p| takes(&with, p)).collect::<Vec<_>>()
        };
        assert_eq!(of("10.0.0.1:4", "10.0.0.2:53", 5), [true]);
        assert_eq!(of("10.0.0.1:4", "10.0.0.2:80", 5), [false], "a port of TCP");
        assert_eq!(of("10.0.0.1:4", "10.0.0.9:443", 0), [true]);
        assert_eq!(of("10.0.0.1:4", "10.0.0.8:443", 0), [false]);
        assert_eq!(of("10.0.0.1:4", "10.0.3.2:53", 5), [false], "to a target");
        assert_eq!(of("198.18.7.7:4", "10.0.0.2:53", 3_000), [false; 3], "our own, its fragments too");
        assert_eq!(of("10.0.0.1:4", "10.0.0.2:53", 3_000), [true; 3]);
        assert_eq!(of("10.0.0.1:4", "10.0.0.2:54", 3_000), [false, true, true], "later parts have no port");
        assert_eq!(of("[fd00::1]:4", "[fd00::2]:53", 5), [true]);
        assert_eq!(of("[fd00::1]:4", "[fd00::8]:443", 5), [false]);
        assert_eq!(of("[fd00::1]:4", "[fd00::2]:53", 3_000), [true; 3]);
        assert_eq!(of("[2001:2:0:5::1]:4", "[fd00::2]:53", 3_000), [false; 3]);
        assert!(takes(&with, &segment("10.0.0.1:4", "10.0.0.2:80", 5)));
        assert!(!takes(&with, &segment("10.0.0.1:4", "10.0.0.2:53", 5)), "a port of UDP");
        for packet in datagram("10.0.0.1:4", "10.0.0.2:53", 3_000) {
            assert!(!takes(&without, &packet));
        }
    }
}

#[test]
fn where_answers_are_wanted_those_in_datagrams_come_up_too() {
    let filter = CaptureFilter { answers: true, ..with_udp() };
    let program = filter.program();
    check(&program);
    let of = |src: &str, dst: &str, len, packet_type| {
        let taken = |packet: &Vec<u8>| run(&program, packet, Aside { packet_type, ..aside(packet) }) > 0;
        datagram(src, dst, len).iter().map(taken).collect::<Vec<_>>()
    };
    for (service, client, own) in
        [("10.0.0.2", "10.0.0.1:4", "198.18.7.7:53"), ("[fd00::2]", "[fd00::1]:4", "[2001:2:0:5::1]:53")]
    {
        let at = |port: u16| format!("{service}:{port}");
        assert_eq!(of(&at(53), client, 5, OUTGOING), [true]);
        assert_eq!(of(&at(53), client, 5, HOST), [false], "another host's");
        assert_eq!(of(&at(54), client, 5, OUTGOING), [false], "another port");
        assert_eq!(of(&at(54), client, 3_000, OUTGOING), [false, true, true], "later parts have no port");
        assert_eq!(of(own, client, 3_000, OUTGOING), [false; 3], "a replayed client's");
        assert_eq!(of(&at(53), own, 3_000, OUTGOING), [false; 3], "to a replayed client");
        assert_eq!(of(client, &at(53), 5, HOST), [true], "a request");
        assert_eq!(of(client, &at(53), 5, OUTGOING), [false], "a request of this host's own");
    }
    assert!(
        run(
            &program,
            &segment("10.0.0.2:80", "10.0.0.1:4", 5),
            Aside { packet_type: OUTGOING, ..aside(&[0x45]) }
        ) > 0
    );
}

#[test]
fn answers_in_datagrams_are_cut_behind_their_header() {
    let with = ReturnFilter {
        datagrams: vec!["10.0.3.2:53".parse().unwrap(), "[fd00::32]:53".parse().unwrap()],
        ..returns()
    };
    let snap = |filter: &ReturnFilter, packet: &[u8]| {
        let program = filter.program();
        check(&program);
        run(&program, packet, aside(packet))
    };
    let of = |src, dst, len| datagram(src, dst, len).iter().map(|p| snap(&with, p)).collect::<Vec<_>>();
    assert_eq!(of("10.0.3.2:53", "198.18.0.1:9", 500), [28]);
    assert_eq!(of("10.0.3.2:53", "198.18.0.1:9", 2_000), [28, 0], "the first part says the length");
    assert_eq!(of("[fd00::32]:53", "[2001:2::1]:9", 500), [48]);
    assert_eq!(of("[fd00::32]:53", "[2001:2::1]:9", 2_000), [56, 0]);
    assert_eq!(of("10.0.3.2:54", "198.18.0.1:9", 5), [0], "another port");
    assert_eq!(of("10.0.3.2:53", "10.0.0.1:9", 5), [0], "another client");
    assert_eq!(of("10.0.3.2:80", "198.18.0.1:9", 5), [0], "a target of TCP");
    assert!(snap(&with, &segment("10.0.3.2:80", "198.18.0.1:9", 5)) > 0);
    assert_eq!(snap(&returns(), &datagram("10.0.3.2:53", "198.18.0.1:9", 5)[0]), 0);
    // Port unreachable: IPv4 header, eight bytes of ICMP, the packet that it is about.
    for (port, seen) in [(53, ICMP_SNAP), (54, 0)] {
        let quoted = datagram("198.18.0.1:9", &format!("10.0.3.2:{port}"), 5).remove(0);
        let mut packet = datagram("10.0.3.2:9", "198.18.0.1:9", 0).remove(0)[..20].to_vec();
        packet[9] = 1;
        packet.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        packet.extend(quoted);
        assert_eq!(snap(&with, &packet), seen);
    }
}

fn oracle(filter: &CaptureFilter, packet: &[u8], aside: Aside) -> Option<()> {
    let len = packet.len() as u32;
    let length_fits = match filter.frames {
        Frames::All => true,
        Frames::UpTo { most: limit, bare: 0 } => len <= limit,
        Frames::UpTo { .. } | Frames::Bare(_) => unreachable!("told by how they share what all take"),
        Frames::Above(limit) => len > limit,
    };
    if !length_fits {
        return None;
    }
    let outgoing = aside.packet_type == OUTGOING;
    let incoming = if filter.promiscuous { !outgoing } else { aside.packet_type == HOST };
    let loopback = aside.interface == 1;
    if !filter.answers {
        return if incoming { one_way(filter, packet, aside, false)?.then_some(()) } else { None };
    }
    let answers = match (filter.promiscuous, outgoing) {
        (true, _) => incoming,
        (false, true) => !loopback,
        (false, false) => incoming && loopback,
    };
    let request = incoming && one_way(filter, packet, aside, false)?;
    (request || (answers && one_way(filter, packet, aside, true)?)).then_some(())
}

/// One direction of it.
fn one_way(filter: &CaptureFilter, packet: &[u8], aside: Aside, answer: bool) -> Option<bool> {
    let u8_at = |at: usize| packet.get(at).copied();
    let u16_at = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let turned = |(a, b): (IpAddr, IpAddr)| if answer { (b, a) } else { (a, b) };
    // Before the ports are looked at, which may be missing.
    let passed_over = |client: IpAddr, service: IpAddr| {
        let among = |ranges: &[Range]| crate::online::among(ranges, client.into());
        let own = among(&filter.clients) || (answer && crate::online::among(&filter.clients, service.into()));
        own || among(&filter.outside) || !(filter.inside.is_empty() || among(&filter.inside))
    };
    let mut ip = filter.link_header as usize;
    let mut protocol = aside.protocol;
    if matches!(protocol, 0x8100 | 0x88a8) {
        protocol = u16_at(ip + 2)?;
        ip += 4;
    }
    let (src, dst, tcp): (IpAddr, IpAddr, usize);
    match protocol {
        IPV4 => {
            if u8_at(ip + 9)? != 6 || u16_at(ip + 6)? & 0x1fff != 0 {
                return Some(false);
            }
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            (src, dst) = turned((address(ip + 12)?, address(ip + 16)?));
            if passed_over(src, dst) {
                return Some(false);
            }
            tcp = ip + usize::from(u8_at(ip)? & 0xf) * 4;
        }
        IPV6 => {
            let address =
                |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            (src, dst) = turned((address(ip + 8)?, address(ip + 24)?));
            if passed_over(src, dst) {
                return Some(false);
            }
            let (mut next, mut at, mut left) = (u8_at(ip + 6)?, ip + 40, 2);
            loop {
                match next {
                    6 => break,
                    51 => return Some(true),
                    0 | 43 | 60 | 44 if left == 0 => return Some(true),
                    44 if u16_at(at + 2)? & 0xfff8 != 0 => return Some(false),
                    44 => (next, at) = (u8_at(at)?, at + 8),
                    0 | 43 | 60 => (next, at) = (u8_at(at)?, at + 8 * (usize::from(u8_at(at + 1)?) + 1)),
                    _ => return Some(false),
                }
                left -= 1;
            }
            tcp = at;
        }
        _ => return Some(false),
    }
    let port = u16_at(tcp + if answer { 0 } else { 2 })?;
    let exact = filter.online.iter().any(|&(online, number)| online == Some(dst) && number == port);
    let any = filter.online.iter().any(|&(online, number)| online.is_none() && number == port);
    let target = filter.targets.contains(&SocketAddr::new(dst, port));
    Some(exact || (any && !target))
}

/// The return filter's decision in plain Rust: how many bytes to keep.
fn return_oracle(filter: &ReturnFilter, packet: &[u8], protocol: u16) -> Option<u32> {
    let u8_at = |at: usize| packet.get(at).copied();
    let u16_at = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let ip4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let ip6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let client = |ip: IpAddr| {
        filter.clients.is_empty() || filter.clients.iter().any(|range| range.contains(ip.into()))
    };
    let target = |ip, port| filter.targets.contains(&SocketAddr::new(ip, port));
    let header_end = |tcp: usize| Some(tcp as u32 + u32::from(u8_at(tcp + 12)? >> 4) * 4 + filter.payload);
    let transport4 = |at: usize| Some(at + usize::from(u8_at(at)? & 0xf) * 4);
    match protocol {
        IPV4 => {
            if u16_at(6)? & 0x1fff != 0 || !client(ip4(16)?) {
                return None;
            }
            let at = transport4(0)?;
            match u8_at(9)? {
                6 => {
                    let keep = header_end(at)?;
                    target(ip4(12)?, u16_at(at)?).then_some(keep)
                }
                1 if matches!(u8_at(at)?, 3 | 11) => {
                    let quoted = at + 8;
                    if u8_at(quoted + 9)? != 6 || u16_at(quoted + 6)? & 0x1fff != 0 {
                        return None;
                    }
                    target(ip4(quoted + 16)?, u16_at(transport4(quoted)? + 2)?).then_some(ICMP_SNAP)
                }
                _ => None,
            }
        }
        IPV6 => {
            if !client(ip6(24)?) {
                return None;
            }
            let src = ip6(8)?;
            let (mut next, mut at, mut left) = (u8_at(6)?, 40, 2);
            loop {
                match next {
                    6 => {
                        let keep = header_end(at)?;
                        return target(src, u16_at(at)?).then_some(keep);
                    }
                    58 => break,
                    51 => return Some(ICMP_SNAP),
                    0 | 43 | 60 | 44 if left == 0 => return Some(ICMP_SNAP),
                    44 if u16_at(at + 2)? & 0xfff8 != 0 => return None,
                    44 => (next, at) = (u8_at(at)?, at + 8),
                    0 | 43 | 60 => (next, at) = (u8_at(at)?, at + 8 * (usize::from(u8_at(at + 1)?) + 1)),
                    _ => return None,
                }
                left -= 1;
            }
            let quoted = at + 8;
            if !matches!(u8_at(at)?, 1..=3) || u8_at(quoted + 6)? != 6 {
                return None;
            }
            target(ip6(quoted + 24)?, u16_at(quoted + 42)?).then_some(ICMP_SNAP)
        }
        _ => None,
    }
}

fn address() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["10.0.0.9", "10.0.3.2", "198.18.0.1", "198.20.0.1", "10.0.0.1"])
        .prop_map(String::from)
}

fn address6() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["[fd00::9]", "[fd00::32]", "[2001:2::1]", "[2001:2:1::1]", "[fd00::1]"])
        .prop_map(String::from)
}

fn pair() -> impl Strategy<Value = (String, String)> {
    prop_oneof![(address(), address()), (address6(), address6())]
}

fn nets() -> impl Strategy<Value = Vec<Range>> {
    let nets =
        ["10.0.0.0/28", "10.0.3.0/24", "0.0.0.0/0", "198.16.0.0/12", "fd00::/124", "fd00::/16", "::/0"];
    prop::collection::vec(prop::sample::select(nets.map(|net| net.parse().unwrap()).to_vec()), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn filter_and_oracle_agree_on_mutilated_packets(
        (src, dst) in pair(), ports in (0..4usize, 0..4usize),
        changes in prop::collection::vec((0..70usize, prop::sample::select(vec![0u8, 1, 6, 43, 44, 51, 60, 0x45, 0x46, 0x60, 255])), 0..5),
        cut in 0..100usize, tag: bool, packet_type in 0..5u8, interface in 1..3u32, promiscuous: bool, answers: bool,
        frames in prop::sample::select(vec![Frames::All, Frames::UpTo { most: 60, bare: 0 }, Frames::Above(60)]),
        link_header in prop::sample::select(vec![0u32, 14]), nets in (nets(), nets()),
    ) {
        let numbers = [80u16, 6379, 443, 40000];
        let mut packet = segment(&format!("{src}:{}", numbers[ports.0]), &format!("{dst}:{}", numbers[ports.1]), 20);
        let protocol = aside(&packet).protocol;
        for (at, value) in changes {
            if at < packet.len() {
                packet[at] = value;
            }
        }
        packet.truncate(cut.max(1));
        let mut aside = Aside { protocol, packet_type, interface };
        if tag {
            packet.splice(0..0, [0, 5, (protocol >> 8) as u8, protocol as u8]);
            aside.protocol = 0x8100;
        }
        packet.splice(0..0, vec![9; link_header as usize]);
        let (inside, outside) = nets;
        let filter = CaptureFilter { promiscuous, answers, frames, link_header, inside, outside, ..filter() };
        verdict(&filter, &packet, aside);
        let whole = verdict(&CaptureFilter { frames: Frames::All, ..filter.clone() }, &packet, aside);
        let takers = takers(&filter, &packet, aside, shared(70, 64));
        prop_assert_eq!(takers.iter().filter(|takes| **takes).count(), usize::from(whole), "{:?}", takers);
    }

    #[test]
    fn return_filter_and_oracle_agree_on_mutilated_packets(
        (src, dst) in pair(), ports in (0..3usize, 0..3usize), icmp in prop::option::of(0..12u8), any_client: bool,
        changes in prop::collection::vec((0..90usize, prop::sample::select(vec![0u8, 1, 2, 3, 6, 11, 43, 44, 51, 58, 60, 0x45, 0x50, 255])), 0..4),
        cut in 0..160usize, payload in 0..20u32,
    ) {
        let numbers = [80u16, 443, 40000];
        let mut packet = segment(&format!("{src}:{}", numbers[ports.0]), &format!("{dst}:{}", numbers[ports.1]), 20);
        let protocol = aside(&packet).protocol;
        if let Some(kind) = icmp {
            packet = icmp_about(&packet, kind);
        }
        for (at, value) in changes {
            if at < packet.len() {
                packet[at] = value;
            }
        }
        packet.truncate(cut.max(1));
        let mut filter = ReturnFilter { payload, ..returns() };
        if any_client {
            filter.clients.clear();
        }
        let program = filter.program();
        let verdict = run(&program, &packet, Aside { protocol, packet_type: HOST, interface: 2 });
        prop_assert_eq!(verdict, return_oracle(&filter, &packet, protocol).unwrap_or(0), "{:02x?}", packet);
    }

    #[test]
    fn any_configuration_assembles(
        online in prop::collection::vec((prop::option::of(any::<IpAddr>()), any::<u16>()), 0..300),
        targets in prop::collection::vec(any::<SocketAddr>(), 0..300),
        packet in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let filter = CaptureFilter { online, targets: targets.clone(), ..filter() };
        let returns = ReturnFilter { targets, ..returns() };
        for program in [filter.program(), returns.program()] {
            check(&program);
            run(&program, &packet, Aside { protocol: IPV4, packet_type: HOST, interface: 2 });
            run(&program, &packet, Aside { protocol: IPV6, packet_type: HOST, interface: 2 });
        }
    }
}
