//! What crosses the return channel. Streams are made by the channel's own sending halves.

use flow::record::{SackBlock, flag, kind, opt, returned_bit};
use flow::{Endpoint, Returned, Seq, TcpFields};
use returns::{
    Hello, Link, MAX_RECORD, Mode, Outgoing, Policy, Position, Refused, RefusedCode, Welcome, encode,
};
use zerocopy::IntoBytes;

use super::{Seed, named};
use crate::stream::{PEER, hello};

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().expect("an address and a port").into()
}

fn v4() -> Returned {
    Returned {
        position: 1,
        age_ns: 123_456_789_000,
        tcp: TcpFields {
            seq: Seq(700_001),
            ack: Seq(1_043),
            flags: flag::ACK | flag::PSH,
            window: 501,
            ..TcpFields::default()
        },
        payload_len: 1_448,
        client: endpoint("198.18.0.9:40000"),
        target: endpoint("10.0.3.2:8080"),
        ..Returned::default()
    }
}

fn shapes() -> Vec<(&'static str, Returned)> {
    let v4 = v4();
    let v6 = Returned { client: endpoint("[2001:2::9]:40000"), target: endpoint("[fd00:3::2]:8080"), ..v4 };
    let syn_ack = TcpFields {
        flags: flag::SYN | flag::ACK,
        mss: 1_460,
        window_scale: 7,
        ts_val: 9,
        ts_ecr: 8,
        options: opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS,
        ..v4.tcp
    };
    let sack = [SackBlock { left: Seq(2_000), right: Seq(3_000) }; 4];
    let icmp = Returned { kind: kind::ICMP, icmp_type: 3, icmp_code: 4, mtu: 1_280, payload_len: 0, ..v4 };
    vec![
        ("data", v4),
        ("data_v6", v6),
        ("ack", Returned { payload_len: 0, tcp: TcpFields { flags: flag::ACK, ..v4.tcp }, ..v4 }),
        ("syn_ack", Returned { payload_len: 0, tcp: syn_ack, ..v4 }),
        ("syn_ack_v6", Returned { payload_len: 0, tcp: syn_ack, ..v6 }),
        ("stamps", Returned { tcp: TcpFields { options: opt::TIMESTAMPS, ts_val: 1, ..v4.tcp }, ..v4 }),
        ("sack", Returned { payload_len: 0, sack, sack_count: 3, ..v4 }),
        (
            "everything",
            Returned {
                sack,
                sack_count: 4,
                segments: 44,
                payload_len: 64_000,
                tcp: TcpFields { urgent: 5, ..syn_ack },
                ..v6
            },
        ),
        (
            "truncated",
            Returned {
                bits: returned_bit::TRUNCATED | returned_bit::BAD_CHECKSUM | 3 << returned_bit::ECN_SHIFT,
                ..v4
            },
        ),
        ("rst", Returned { payload_len: 0, tcp: TcpFields { flags: flag::RST, ..v4.tcp }, ..v4 }),
        ("icmp", icmp),
        ("udp", Returned { kind: kind::UDP, ..v4 }),
        ("udp_v6", Returned { kind: kind::UDP, ..v6 }),
        ("udp_icmp", Returned { kind: kind::UDP_ICMP, icmp_code: 3, ..icmp }),
        ("icmp_v6", Returned { icmp_type: 2, icmp_code: 0, client: v6.client, target: v6.target, ..icmp }),
        ("mixed_families", Returned { target: v6.target, ..v4 }),
    ]
}

/// Each shape packed, and some plain as they stand in a ring.
pub fn records() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, record) in shapes() {
        let mut room = [0; MAX_RECORD];
        let len = encode(&record, &mut room);
        seeds.push((format!("packed_{name}"), room[..len].to_vec()));
        seeds.push((format!("plain_{name}"), record.as_bytes().to_vec()));
    }
    seeds.push(("five_blocks".to_owned(), [&[0x40, 1, 1][..], &[0; 80]].concat()));
    seeds.push(("unknown_shape".to_owned(), [&[1, 2, 1][..], &[0; 60]].concat()));
    seeds.push(("unknown_kind".to_owned(), [&[1, 0, 9][..], &[0; 60]].concat()));
    seeds
}

/// Everything that an end has to send, framed, without preamble.
fn said(dialer: bool, hello: &Hello, talk: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
    let mut ends = [
        Link::dialer(Policy::Plain, hello, PEER).expect("a plain dialer needs no random bytes"),
        Link::listener(Policy::Plain, PEER),
    ];
    for (from, to) in [(0, 1), (1, 0)] {
        let bytes = ends[from].pending().to_vec();
        ends[from].sent(bytes.len());
        ends[to].receive_buffer()[..bytes.len()].copy_from_slice(&bytes);
        ends[to].received(bytes.len());
        ends[to].next().expect("an honest preamble");
    }
    let end = &mut ends[usize::from(!dialer)];
    talk(end.outgoing());
    end.outgoing().flush();
    end.pending().to_vec()
}

fn to_dialer(talk: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
    [&[1, 30][..], &said(false, &hello(), talk)].concat()
}

fn welcomed(talk: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
    to_dialer(|out| {
        out.welcome(&Welcome { software: "0.1.0".to_owned(), epoch: 3, next: 1 });
        talk(out);
    })
}

fn to_listener(hello: &Hello, talk: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
    [&[0, 30][..], &said(true, hello, talk)].concat()
}

/// Streams to either end.
pub fn streams() -> Vec<Seed> {
    let nothing = |_: &mut Outgoing| {};
    let claims = Hello { mode: Mode::Claims, last: Some(Position { epoch: 3, last: 99 }), ..hello() };
    let many = Hello {
        mode: Mode::Ranges((0..16).map(|n| format!("10.{n}.0.0/16").parse().expect("a range")).collect()),
        targets: (0..40).map(|n| endpoint(&format!("10.0.3.2:{}", 8_000 + n))).collect(),
        name: "größer".to_owned(),
        ..hello()
    };
    let refused = |code, suggestion: Option<&str>| {
        to_dialer(|out| {
            let sentence = "the range 198.18.0.0/20 belongs to instance a".to_owned();
            let suggestion = suggestion.map(|text| text.parse().expect("a range"));
            out.refuse(&Refused { code, sentence, suggestion });
        })
    };
    // Farewells in the middle, more than the buffer holds, in large portions.
    let long = |stream: Vec<u8>| [&[stream[0] | 15 << 2, 200], &stream[2..]].concat();
    let framed = |bytes: &[u8]| [&[0, 3][..], &(bytes.len() as u16).to_le_bytes(), bytes].concat();
    let raw = |side: u8, bytes: &[u8]| [&[2 | side, 9][..], bytes].concat();
    let preamble = Link::dialer(Policy::Plain, &hello(), PEER).expect("plain").pending().to_vec();
    let stream_raw = raw(0, &[&preamble[..], &said(true, &hello(), nothing)].concat());
    let mut other_version = preamble.clone();
    other_version[8] = 9;
    let mut keyed = preamble.clone();
    keyed[10] = 1;
    named([
        ("hello", to_listener(&hello(), nothing)),
        ("hello_claims", to_listener(&claims, nothing)),
        ("hello_many", to_listener(&many, nothing)),
        (
            "claims",
            to_listener(&claims, |out| {
                for n in 0..20u16 {
                    out.claim(&endpoint(&format!("203.0.113.9:{}", 40_000 + n)), &endpoint("10.0.3.2:8080"));
                }
                out.ping(7);
            }),
        ),
        (
            "paces",
            to_listener(&hello(), |out| {
                out.pace(true);
                out.pace(false);
            }),
        ),
        ("pace_of_neither_kind", framed(&[10, 2])),
        (
            "dialer_bye",
            to_listener(&hello(), |out| {
                out.ping(1);
                out.pong(2);
                out.bye("stopped by the operator");
            }),
        ),
        ("welcome", welcomed(nothing)),
        (
            "batch",
            welcomed(|out| {
                for (n, (_, record)) in shapes().into_iter().enumerate() {
                    out.record(&Returned { position: 1 + n as u64, ..record });
                }
            }),
        ),
        (
            "batches",
            welcomed(|out| {
                for n in 1..9 {
                    out.record(&Returned { position: n, ..v4() });
                    if n % 3 == 0 {
                        out.flush();
                    }
                }
                out.gap(5, 14);
                out.record(&Returned { position: 14, ..v4() });
                out.pong(1);
            }),
        ),
        (
            "long_to_listener",
            long(to_listener(&claims, |out| {
                out.claim(&endpoint("203.0.113.9:40000"), &endpoint("10.0.3.2:8080"));
            })),
        ),
        (
            "position_back",
            welcomed(|out| {
                out.record(&Returned { position: 1, ..v4() });
                out.gap(1, 1);
            }),
        ),
        ("refused_range", refused(RefusedCode::RangeTaken, Some("198.18.16.0/20"))),
        ("refused_v6", refused(RefusedCode::RangeNotRouted, Some("2001:2::/64"))),
        ("refused_stopping", refused(RefusedCode::Stopping, None)),
        (
            "ping_before_welcome",
            to_dialer(|out| {
                out.ping(1);
            }),
        ),
        ("empty_frame", framed(&[])),
        ("unknown_type", framed(&[77, 1, 2])),
        ("too_long", raw(0, &[&preamble[..], &[0xff, 0xff, 1]].concat())),
        ("raw", stream_raw),
        ("other_version", raw(0, &other_version)),
        ("keyed_against_plain", raw(0, &[&keyed[..], &[7; 48]].concat())),
        ("http", raw(0, b"GET / HTTP/1.1\r\nHost: intercept:36524\r\n\r\n")),
        ("busy", raw(1, &returns::busy())),
    ])
}

/// Conversations: operations of [`crate::sealed`].
pub fn talks() -> Vec<Seed> {
    let op = |what: u8, who: u8, number: u64, small: u16| {
        [&[what, who][..], &number.to_le_bytes(), &small.to_le_bytes()].concat()
    };
    let carry = |who, n| op(10, who, 0, n);
    let all = |who| op(15, who, 0, 0);
    let honest = [
        op(0, 1, 0x0102_0304_0506_0708, 5),
        op(5, 0, 7, 0),
        all(0),
        all(1),
        all(1),
        op(6, 1, 7, 0),
        op(7, 1, 3, 9),
        op(1, 1, 99, 2),
        all(1),
        all(1),
    ]
    .concat();
    let claims = [vec![op(3, 0, 0x7777, 7); 9].concat(), all(0), all(0), op(5, 0, 1, 0), all(0)].concat();
    let drips = [op(0, 1, 5, 7), op(9, 1, 0, 0), vec![carry(1, 3); 40].concat(), op(8, 1, 0x41, 99)].concat();
    let altered = |at: u64| {
        [op(5, 0, 1, 0), op(5, 0, 2, 0), op(14, 0, at | 4 << 32, 0xffff), carry(0, 0xffff)].concat()
    };
    let long = (0..45u64)
        .flat_map(|n| op((n % 10) as u8, (n / 3) as u8, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n as u16))
        .collect::<Vec<_>>();
    let farewell = [op(8, 0, 0x1f600, 900), op(8, 1, 0x41, 20), all(0), all(1)].concat();
    let bodies = [
        ("honest", honest),
        ("claims", claims),
        ("drips", drips),
        ("altered_length", altered(0)),
        ("altered_body", altered(9)),
        ("long", long),
        ("farewell", farewell),
        ("nothing", vec![]),
    ];
    let mut seeds = Vec::new();
    for (name, body) in bodies {
        // A connection that broke costs the next input a handshake: one seed of each kind is enough.
        if name != "altered_body" {
            seeds.push((format!("plain_{name}"), [&[0], &body[..]].concat()));
        }
        if name != "altered_length" {
            seeds.push((format!("keyed_{name}"), [&[1], &body[..]].concat()));
        }
    }
    seeds
}

/// What an intercept says: operations of the target `receive`.
pub fn intercepts() -> Vec<Seed> {
    let op = |what: u8, bytes: &[u8]| [&[what, bytes.len() as u8], bytes].concat();
    let packed = |names: &[&str]| {
        let mut bytes = vec![names.len() as u8];
        for (_, record) in shapes().iter().filter(|(name, _)| names.contains(name)) {
            let mut room = [0; MAX_RECORD];
            let len = encode(record, &mut room);
            bytes.extend_from_slice(&room[..len]);
        }
        op(0, &bytes)
    };
    let (few, gap, again) = (op(4, &[5]), op(5, &[9]), op(7, &[]));
    let shapes =
        [packed(&["data", "ack", "syn_ack"]), packed(&["data_v6", "stamps"]), packed(&["everything"])]
            .concat();
    let altered = op(6, &[3, 40, 0x10]);
    let burst = |seed: u8| op(8, &[seed]);
    let bursts = |mode: u8, seed: u8| {
        let ops = (0..8).flat_map(|n| burst(seed + n));
        std::iter::once(mode).chain(ops).collect::<Vec<_>>()
    };
    named([
        ("plain_headers", [vec![0], shapes.clone(), few.clone(), gap.clone(), few.clone()].concat()),
        ("plain_ping", [vec![0], op(2, &[7, 1, 2, 3, 4, 5, 6, 7, 8]), few.clone()].concat()),
        ("plain_wrong_place", [vec![0], op(2, &[5; 19]), few.clone()].concat()),
        ("plain_garbage", [vec![0], op(3, b"HTTP/1.1 400 Bad Request\r\n\r\n")].concat()),
        ("plain_altered", [vec![0], few.clone(), altered.clone(), few.clone()].concat()),
        ("keyed_honest", [vec![1], few.clone(), gap, few.clone()].concat()),
        ("keyed_altered", [vec![1], few.clone(), altered, few.clone()].concat()),
        ("keyed_again", [vec![1], few.clone(), again.clone(), few.clone()].concat()),
        ("keyed_headers", [vec![1], shapes, few.clone()].concat()),
        ("keyed_unknown", [vec![1], op(2, &[0x55; 60]), few.clone()].concat()),
        ("keyed_invented", [vec![1], op(3, &[0x55; 60]), few.clone()].concat()),
        ("keyed_cut", [vec![1], few.clone(), op(3, &[200, 0, 1, 2, 3]), few].concat()),
        ("plain_bursts_1", bursts(0, 0)),
        ("plain_bursts_2", bursts(0, 100)),
        ("plain_bursts_3", bursts(0, 200)),
        ("keyed_bursts_1", bursts(1, 0)),
        ("keyed_bursts_2", bursts(1, 100)),
        ("keyed_bursts_3", bursts(1, 200)),
    ])
}
