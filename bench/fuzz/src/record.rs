//! Target `record`: any bytes as a returned header, packed as on the return channel and plain as in the return ring.

use flow::Returned;
use flow::record::{self, kind, opt};
use returns::{MAX_RECORD, MIN_RECORD, decode, encode};

/// Any bytes as a returned header.
pub fn record(data: &[u8]) {
    packed(data);
    if let Some((plain, _)) = record::split::<Returned>(data) {
        survives(&plain);
    }
}

/// The bytes as the channel carries them: whatever is understood is packed again, and is never longer.
fn packed(bytes: &[u8]) {
    let position = bytes.len() as u64;
    match decode(bytes, position) {
        Ok((found, used)) => {
            assert!((MIN_RECORD..=MAX_RECORD).contains(&used) && used <= bytes.len(), "{used} bytes");
            assert_eq!(found.position, position);
            assert!(found.sack_count <= 4 && (kind::TCP..=kind::UDP_ICMP).contains(&found.kind), "{found:?}");
            let mut room = [0; MAX_RECORD];
            let len = encode(&found, &mut room);
            assert!((MIN_RECORD..=used).contains(&len), "{used} bytes became {len}: {found:?}");
            assert_eq!(decode(&room[..len], position), Ok((without_absent(&found), len)));
            assert!(decode(&bytes[..used - 1], position).is_err(), "a cut record is none");
        }
        Err(bad) => assert!(!bad.to_string().is_empty()),
    }
}

/// Any header that a ring may hold is packed and unpacked; what has no meaning is not carried.
fn survives(plain: &Returned) {
    let mut room = [0; MAX_RECORD];
    let len = encode(plain, &mut room);
    assert_eq!(decode(&room[..len], plain.position), Ok((without_absent(plain), len)));
}

/// What of a record the channel carries.
fn without_absent(record: &Returned) -> Returned {
    let mut r = *record;
    r.reserved = 0;
    r.tcp.reserved = 0;
    let bare = Returned {
        position: r.position,
        age_ns: r.age_ns,
        tcp: flow::TcpFields { seq: r.tcp.seq, ..flow::TcpFields::default() },
        client: r.client,
        target: r.target,
        kind: r.kind,
        bits: r.bits,
        ..Returned::default()
    };
    if r.kind == kind::UDP {
        return Returned { payload_len: r.payload_len, segments: r.segments, ..bare };
    }
    if matches!(r.kind, kind::ICMP | kind::UDP_ICMP) {
        return Returned { icmp_type: r.icmp_type, icmp_code: r.icmp_code, mtu: r.mtu, ..bare };
    }
    r.kind = kind::TCP;
    (r.icmp_type, r.icmp_code, r.mtu) = (0, 0, 0);
    r.sack_count = r.sack_count.min(4);
    r.sack[usize::from(r.sack_count)..].fill(flow::record::SackBlock::default());
    if !r.tcp.has_option(opt::TIMESTAMPS) {
        (r.tcp.ts_val, r.tcp.ts_ecr) = (0, 0);
    }
    if r.tcp.options & !opt::TIMESTAMPS == 0 {
        (r.tcp.mss, r.tcp.window_scale) = (0, 0);
    }
    r
}
