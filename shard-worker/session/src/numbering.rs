//! Numbers of our own: initial sequence numbers, time stamps, segment sizes.

use flow::hash::flow_hash;
use flow::{Endpoint, Seq};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Our window scale: with the whole window field it offers 8 MiB, so the target is never slowed down by us.
pub(crate) const WINDOW_SCALE: u8 = 7;
/// The window field of every segment.
pub(crate) const WINDOW: u16 = u16::MAX;
/// Bytes of the time stamps option with its padding.
pub(crate) const TIMESTAMP_BYTES: u16 = 12;
/// The smallest MSS that a path may ask for over IPv4: Linux' TCP_MIN_MSS. RFC 1191 would allow an MTU of 68, with which
/// half of each packet is header.
pub(crate) const LEAST_MSS_V4: u16 = 88;
/// The same over IPv6, whose links carry 1,280 bytes at least (RFC 8200, section 5); an error that says less is a lie or
/// wants a fragment header, and RFC 8201, section 4 says not to go below.
pub(crate) const LEAST_MSS_V6: u16 = 1220;
/// The smallest MSS taken from a target's option: room for all options and 8 bytes (Linux' TCP_MIN_SND_MSS).
pub(crate) const LEAST_PEER_MSS: u16 = 48;

/// Initial sequence number after RFC 6528: a clock plus a keyed hash of the endpoints, raised above what the target may
/// remember of the tuple (its TIME_WAIT takes a SYN without time stamps only above its `rcv_nxt`).
pub(crate) fn isn(clock: u32, seed: u64, client: &Endpoint, target: &Endpoint, floor: Option<Seq>) -> Seq {
    let isn = Seq(clock.wrapping_add(flow_hash(seed, client, target) as u32));
    match floor {
        Some(floor) if !isn.after(floor) => floor + ABOVE,
        _ => isn,
    }
}

/// How far above.
const ABOVE: u32 = 65_536;

/// A clock of 250 kHz.
pub(crate) const fn clock(now_us: u64) -> u32 {
    (now_us / 4) as u32
}

/// What stands for it where a replay is to be repeatable: the client's own first number. Its kernel had the same rules to keep
/// for a four-tuple that comes back; what we remember of one may be forgotten, and without a clock its next connection had
/// the very number of the last. A loop of the file, which comes with the same numbers, is a minute of the clock.
pub(crate) fn clock_of_client(online_isn: Seq, lap: u8) -> u32 {
    online_isn.0.wrapping_add(u32::from(lap) << 24)
}

/// Time stamp value: a clock of 1 kHz plus a keyed offset for each endpoint pair. Monotone across connections and
/// restarts, since the clock is the machine's.
pub(crate) fn ts_val(now_us: u64, offset: u32) -> u32 {
    ((now_us / 1000) as u32).wrapping_add(offset)
}

/// The offset of a pair.
pub(crate) fn ts_offset(seed: u64, client: &Endpoint, target: &Endpoint) -> u32 {
    (flow_hash(seed ^ 1, client, target) >> 32) as u32
}

/// MSS that the path allows: its MTU less the headers without options (RFC 6691).
pub(crate) fn path_mss(mtu: u16, v4: bool) -> u16 {
    match v4 {
        true => mtu.saturating_sub(40).max(LEAST_MSS_V4),
        false => mtu.saturating_sub(60).max(LEAST_MSS_V6),
    }
}

/// The MTU to try when a router that drops too large packets does not say how large they may be: the next of RFC 1191's
/// plateaus (section 7.1) below the size that did not fit.
pub(crate) fn plateau_below(mtu: u16) -> u16 {
    const PLATEAUS: [u16; 9] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296];
    PLATEAUS.into_iter().find(|&plateau| plateau < mtu).unwrap_or(68)
}

/// MSS to assume of a peer that does not say (RFC 9293, section 3.7.1).
pub(crate) const fn default_mss(v4: bool) -> u16 {
    if v4 { 536 } else { 1220 }
}

/// The last numbers used on some four-tuples (`Clients::Keep`, where a tuple comes back at once). Direct-mapped: a
/// collision forgets, and then the clock alone must do, as REPLAY's rule for TIME_WAIT provides for. In the arena, so that
/// a successor knows them too, but no part of any transaction: each is one word, and one that was noted too early only
/// raises the next connection's first number.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LastNumbers {
    /// Upper half of the tuple's hash, and the number; zero is none.
    entries: [u64; ENTRIES],
}

impl LastNumbers {
    pub(crate) fn note(&mut self, hash: u64, next: Seq) {
        self.entries[hash as usize % ENTRIES] = u64::from(tag(hash)) << 32 | u64::from(next.0);
    }

    pub(crate) fn get(&self, hash: u64) -> Option<Seq> {
        let entry = self.entries[hash as usize % ENTRIES];
        ((entry >> 32) as u32 == tag(hash)).then_some(Seq(entry as u32))
    }
}

fn tag(hash: u64) -> u32 {
    ((hash >> 32) as u32).max(1)
}

/// 64 KiB a shard.
const ENTRIES: usize = 8_192;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Endpoint, Endpoint) {
        let end = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        (end("198.18.0.1:5000"), end("10.0.3.2:80"))
    }

    #[test]
    fn isn_follows_its_clock_and_stays_above_the_floor() {
        let (client, target) = pair();
        let at = |now_us, floor| isn(clock(now_us), 9, &client, &target, floor);
        let first = at(1_000_000, None);
        assert_eq!(at(5_000_000, None), first + 1_000_000);
        let after_upload = first + 100_000_000;
        assert!(at(1_001_000, Some(after_upload)).after(after_upload));
        assert_eq!(at(1_001_000, Some(first)), first + 250);
    }

    #[test]
    fn time_stamps_never_step_back() {
        let (client, target) = pair();
        let offset = ts_offset(3, &client, &target);
        assert_eq!(ts_val(7_000, offset).wrapping_sub(ts_val(5_999, offset)), 2);
    }

    #[test]
    fn sizes_of_the_families() {
        assert_eq!([plateau_below(1500), plateau_below(1492), plateau_below(100)], [1492, 1006, 68]);
        assert_eq!(
            [path_mss(1500, true), path_mss(1500, false), path_mss(10, true), path_mss(600, false)],
            [1460, 1440, 88, 1220]
        );
    }
}
