//! Datagrams put together from their fragments: a captured datagram longer than the path takes arrives in several packets, of
//! which only the first names its ports. Called by the dispatcher, where datagrams are mapped.
//!
//! A fixed number of places and a bounded age, no allocation per packet. The kernel filter lets first fragments of mapped
//! ports alone through, but later ones of any, so only a place that has its first fragment counts when it is given up.
//! Fragments that overlap make their datagram worthless (RFC 5722); one that comes twice (an interface and `any`) does not.

use flow::Addr;
use flow::ip::{self, Fragment, Packet};

/// Datagrams that are put together at a time.
const PLACES: usize = 64;
/// How long the parts of one may take, ns: they leave their sender back to back.
const AGE_NS: u64 = 1_000_000_000;
/// Bytes of a datagram at most, its header included.
const LONGEST: usize = u16::MAX as usize;
/// In IPv4, whose length counts its own header too.
const LONGEST_V4: usize = LONGEST - 20;
/// Fragments are counted in units of eight bytes.
const UNIT: usize = 8;
const WORDS: usize = (LONGEST + 1) / UNIT / 64;

/// The places.
#[derive(Debug)]
pub(crate) struct Fragments {
    places: Box<[Place]>,
}

#[derive(Clone, Debug)]
struct Place {
    of: Option<Key>,
    begun_ns: u64,
    /// Bytes that are there, and how many there will be once that is known.
    have: usize,
    total: Option<usize>,
    seen: Box<[u64; WORDS]>,
    /// Zeroed by the kernel: a page costs memory only once a fragment stood in it.
    bytes: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    src: Addr,
    dst: Addr,
    id: u32,
}

impl Default for Fragments {
    fn default() -> Self {
        let place = || Place {
            of: None,
            begun_ns: 0,
            have: 0,
            total: None,
            seen: Box::new([0; WORDS]),
            bytes: vec![0; LONGEST].into_boxed_slice(),
        };
        Self { places: (0..PLACES).map(|_| place()).collect() }
    }
}

impl Fragments {
    /// Takes one fragment; the whole packet when it was the last one missing. `lost` grows by the datagrams that are given up.
    pub(crate) fn take(
        &mut self,
        part: &Packet<'_>,
        fragment: Fragment,
        now_ns: u64,
        lost: &mut u64,
    ) -> Option<Packet<'_>> {
        for place in &mut self.places {
            if place.of.is_some() && now_ns.saturating_sub(place.begun_ns) > AGE_NS {
                *lost += place.give_up();
            }
        }
        let key = Key { src: part.src, dst: part.dst, id: fragment.id };
        let known = self.places.iter().position(|place| place.of == Some(key));
        let at = known.or_else(|| self.places.iter().position(|place| place.of.is_none()));
        let at = at.unwrap_or_else(|| {
            let oldest = (0..PLACES).min_by_key(|&at| self.places[at].begun_ns).expect("there are places");
            *lost += self.places[oldest].give_up();
            oldest
        });
        let place = &mut self.places[at];
        if place.of.is_none() {
            place.begin(key, now_ns);
        }
        let whole_part = part.transport.len() == part.wire_len as usize;
        let longest = if part.src.is_v4() { LONGEST_V4 } else { LONGEST };
        let fits = usize::from(fragment.offset) + part.transport.len() <= longest;
        if !whole_part || !fits || !place.put(part.transport, fragment) {
            *lost += place.give_up();
            return None;
        }
        let total = place.total.filter(|total| *total == place.have)?;
        place.of = None;
        let (src, dst, ecn) = (part.src, part.dst, part.ecn);
        let transport = &place.bytes[..total];
        Some(Packet { src, dst, protocol: ip::UDP, transport, wire_len: total as u32, ecn })
    }
}

impl Place {
    fn begin(&mut self, key: Key, now_ns: u64) {
        self.of = Some(key);
        (self.begun_ns, self.have, self.total) = (now_ns, 0, None);
        self.seen.fill(0);
    }

    /// Frees the place; 1 when its datagram had a mapped port, which its first fragment says.
    fn give_up(&mut self) -> u64 {
        self.of = None;
        self.seen[0] & 1
    }

    /// Puts a fragment where it belongs; false when it contradicts what is there.
    fn put(&mut self, part: &[u8], fragment: Fragment) -> bool {
        let (from, to) = (usize::from(fragment.offset), usize::from(fragment.offset) + part.len());
        let ends_well = if fragment.more { part.len().is_multiple_of(UNIT) } else { true };
        if part.is_empty() || !ends_well || to > LONGEST {
            return false;
        }
        if !fragment.more && self.total.replace(to).is_some_and(|total| total != to) {
            return false;
        }
        if self.total.is_some_and(|total| to > total) {
            return false;
        }
        let units = from / UNIT..to.div_ceil(UNIT);
        let seen = units.clone().filter(|unit| self.seen[unit / 64] >> (unit % 64) & 1 != 0).count();
        if seen == units.len() {
            return true;
        }
        if seen > 0 {
            return false;
        }
        for unit in units {
            self.seen[unit / 64] |= 1 << (unit % 64);
        }
        self.bytes[from..to].copy_from_slice(part);
        self.have += part.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use flow::datagram::{Seen, parse};
    use flow::emit_udp::{MAX_HEADERS, Pieces};
    use proptest::prelude::*;

    use super::*;

    fn packets(id: u32, payload: &[u8]) -> Vec<Vec<u8>> {
        let at = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        Pieces::new(at("10.0.0.1:9"), at("10.0.0.2:53"), payload, 1_500, id)
            .map(|piece| {
                let mut buf = [0; MAX_HEADERS];
                let len = piece.emit(&mut buf);
                [&buf[..len], piece.payload].concat()
            })
            .collect()
    }

    /// Gives a packet to the table; the payload when a datagram is whole.
    fn give(table: &mut Fragments, packet: &[u8], now_ns: u64, lost: &mut u64) -> Option<Vec<u8>> {
        let Ok(Seen::Part(part, fragment)) = parse(packet, packet.len() as u32) else {
            panic!("no fragment")
        };
        let whole = table.take(&part, fragment, now_ns, lost)?;
        Some(flow::datagram::whole(&whole).unwrap().payload.to_vec())
    }

    proptest! {
        #[test]
        fn any_order_with_doubles_gives_the_datagram_once(
            len in 1_473usize..=65_507, order in any::<prop::sample::Index>(), doubled: bool
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
            let mut packets = packets(7, &payload);
            let at = order.index(packets.len());
            packets.rotate_left(at);
            if doubled {
                packets.insert(1, packets[0].clone());
            }
            let (mut table, mut lost) = (Fragments::default(), 0);
            let mut whole: Vec<Vec<u8>> = packets.iter().filter_map(|p| give(&mut table, p, 5, &mut lost)).collect();
            prop_assert_eq!(whole.len(), 1);
            prop_assert!(whole.pop() == Some(payload));
            prop_assert_eq!(lost, 0);
        }

        #[test]
        fn any_fragments_are_survived(
            parts in prop::collection::vec((0u32..3, 0u16..9_000, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..60)
        ) {
            let (mut table, mut lost) = (Fragments::default(), 0);
            for (n, (id, unit, more, bytes)) in (0..).zip(&parts) {
                let fragment = Fragment { id: *id, offset: (unit % 8_192) << 3, more: *more };
                let part = Packet {
                    src: Addr::v4([1; 4]), dst: Addr::v4([2; 4]), protocol: ip::UDP,
                    transport: bytes, wire_len: bytes.len() as u32, ecn: 0,
                };
                table.take(&part, fragment, n * 20_000_000, &mut lost);
            }
        }
    }

    #[test]
    fn what_stays_incomplete_is_counted_when_it_has_its_first_part() {
        let (mut table, mut lost) = (Fragments::default(), 0);
        let [first, later] = [packets(1, &[1; 4_000]).remove(0), packets(2, &[1; 4_000]).remove(1)];
        assert_eq!(give(&mut table, &first, 0, &mut lost), None);
        assert_eq!(give(&mut table, &later, 0, &mut lost), None);
        assert_eq!(give(&mut table, &packets(3, &[1; 4_000])[0], 2 * AGE_NS, &mut lost), None);
        assert_eq!(lost, 1);
    }

    #[test]
    fn the_oldest_gives_way_when_all_places_are_taken() {
        let (mut table, mut lost) = (Fragments::default(), 0);
        for id in 0..=PLACES as u32 {
            assert_eq!(give(&mut table, &packets(id + 1, &[1; 2_000])[0], u64::from(id), &mut lost), None);
        }
        assert_eq!(lost, 1);
        assert_eq!(give(&mut table, &packets(1, &[1; 2_000])[1], 99, &mut lost), None);
        assert_eq!(
            give(&mut table, &packets(PLACES as u32, &[1; 2_000])[1], 99, &mut lost),
            Some(vec![1; 2_000])
        );
    }

    #[test]
    fn parts_that_overlap_are_worth_nothing() {
        let (mut table, mut lost) = (Fragments::default(), 0);
        let good = packets(1, &[1; 4_000]);
        assert_eq!(give(&mut table, &good[0], 0, &mut lost), None);
        let mut crossing = good[1].clone();
        crossing[6..8].copy_from_slice(&(0x2000u16 | 100).to_be_bytes());
        assert_eq!(give(&mut table, &crossing, 0, &mut lost), None);
        assert_eq!(lost, 1);
    }
}
