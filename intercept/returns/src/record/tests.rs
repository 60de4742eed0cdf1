use flow::record::{opt, returned_bit};
use flow::{Endpoint, Seq};
use proptest::prelude::*;

use super::*;

fn endpoint(v4: bool) -> impl Strategy<Value = Endpoint> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(bytes, port)| {
        let [a, b, c, d, ..] = bytes;
        Endpoint::new(if v4 { Addr::v4([a, b, c, d]) } else { Addr(bytes) }, port)
    })
}

/// Any record whose meaningless fields are zero, which is what a parser makes.
fn any_record() -> impl Strategy<Value = Returned> {
    let head = (any::<bool>(), any::<bool>()).prop_flat_map(|(a, b)| {
        (endpoint(a), endpoint(b), any::<u64>(), any::<u64>(), any::<u8>(), any::<u32>())
    });
    let fields = (any::<u32>(), any::<u16>(), any::<u16>(), any::<u32>(), any::<u16>(), any::<u16>());
    let options = (any::<u8>(), any::<u16>(), any::<u8>(), any::<u32>(), any::<u32>());
    let sack = proptest::collection::vec((any::<u32>(), any::<u32>()), 0..=4);
    let icmp = (kind::TCP..=kind::UDP_ICMP, any::<u8>(), any::<u8>(), any::<u32>());
    (head, fields, options, sack, icmp).prop_map(|(head, fields, options, sack, icmp)| {
        let (client, target, position, age_ns, bits, seq) = head;
        let mut r = Returned { client, target, position, age_ns, bits, ..Returned::default() };
        r.tcp.seq = Seq(seq);
        let (kind, icmp_type, icmp_code, mtu) = icmp;
        if matches!(kind, kind::ICMP | kind::UDP_ICMP) {
            return Returned { kind, icmp_type, icmp_code, mtu, ..r };
        }
        let (ack, flags, window, payload_len, segments, urgent) = fields;
        if kind == kind::UDP {
            return Returned { kind, payload_len, segments, ..r };
        }
        let (present, mss, window_scale, ts_val, ts_ecr) = options;
        r.tcp.ack = Seq(ack);
        (r.tcp.flags, r.tcp.window, r.tcp.urgent, r.tcp.options) = (flags, window, urgent, present);
        (r.payload_len, r.segments) = (payload_len, segments);
        if present & !opt::TIMESTAMPS != 0 {
            (r.tcp.mss, r.tcp.window_scale) = (mss, window_scale);
        }
        if present & opt::TIMESTAMPS != 0 {
            (r.tcp.ts_val, r.tcp.ts_ecr) = (ts_val, ts_ecr);
        }
        r.sack_count = sack.len() as u8;
        for (block, (left, right)) in r.sack.iter_mut().zip(sack) {
            *block = SackBlock { left: Seq(left), right: Seq(right) };
        }
        r
    })
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(record in any_record(), rest in any::<[u8; 5]>()) {
        let mut bytes = [0; MAX_RECORD + 5];
        let n = encode(&record, &mut bytes);
        prop_assert!((MIN_RECORD..=MAX_RECORD).contains(&n), "{n}");
        bytes[n..n + 5].copy_from_slice(&rest);
        prop_assert_eq!(decode(&bytes[..n + 5], record.position), Ok((record, n)));
    }

    #[test]
    fn a_record_cut_anywhere_is_an_error(record in any_record()) {
        let mut bytes = [0; MAX_RECORD];
        let n = encode(&record, &mut bytes);
        for cut in 0..n {
            prop_assert!(decode(&bytes[..cut], 0).is_err(), "cut at {cut} of {n}");
        }
    }

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
        if let Ok((record, used)) = decode(&bytes, 7) {
            prop_assert!(used <= bytes.len());
            prop_assert!(record.sack_count <= 4);
            // What was understood can be said again, and then means the same.
            let mut again = [0; MAX_RECORD];
            let n = encode(&record, &mut again);
            prop_assert_eq!(decode(&again[..n], 7).map(|(r, _)| r), Ok(record));
        }
    }
}

#[test]
fn an_ipv4_answer_with_timestamps_is_short() {
    let mut r = Returned {
        client: "198.18.0.1:40000".parse::<std::net::SocketAddr>().unwrap().into(),
        target: "10.0.3.2:8080".parse::<std::net::SocketAddr>().unwrap().into(),
        payload_len: 1448,
        bits: returned_bit::TRUNCATED,
        ..Returned::default()
    };
    r.tcp.options = opt::TIMESTAMPS;
    let mut bytes = [0; MAX_RECORD];
    assert_eq!(encode(&r, &mut bytes), 48);
}

#[test]
fn a_lying_sack_count_reads_nothing_beyond_the_four() {
    let record = Returned { sack_count: 200, ..Returned::default() };
    let mut bytes = [0; MAX_RECORD];
    let n = encode(&record, &mut bytes);
    assert_eq!(decode(&bytes[..n], 0).unwrap().0.sack_count, 4);
    bytes[0] |= 0x40;
    bytes[1] |= 0x01;
    assert_eq!(decode(&bytes, 0), Err(BadRecord::Shape));
}
