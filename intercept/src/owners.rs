//! Who owns which replayed clients. The link thread decides it here, once per hello; the capture thread looks it up in a
//! [`RangeTable`] that it is sent.
//!
//! | hello | decision |
//! |---|---|
//! | none of its targets is watched | refused |
//! | a younger incarnation of the instance is connected | refused |
//! | a range outside the routes of the TUN device | refused, a free part of those is named |
//! | a range of another live instance overlaps | refused, a free part of the benchmarking ranges is named |
//! | a range of an instance that is away overlaps | that one is forgotten |
//! | every slot belongs to a live instance | refused |
//! | the instance is known | its new connection replaces the old one and resumes |

use flow::{Addr, Endpoint, Range};
use returns::{Hello, Mode, Refused, RefusedCode};

use crate::MAX_PEERS;

/// An instance that is connected, or was a moment ago.
struct Instance {
    id: u64,
    incarnation: u64,
    name: String,
    ranges: Vec<Range>,
    /// Number of its connection, while it has one.
    connection: Option<u64>,
    /// When it was last connected.
    left_ms: u64,
    /// It said that it closes: nobody need wait for it.
    farewell: bool,
}

/// All instances.
pub(crate) struct Registry {
    slots: [Option<Instance>; MAX_PEERS],
    tenures: [u32; MAX_PEERS],
    targets: Vec<Endpoint>,
    /// Ranges that arrive here at all: the routes of the TUN device. Empty: whatever is routed to this host.
    routed: Vec<Range>,
    away_ms: u64,
}

/// An instance was let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) slot: usize,
    pub(crate) tenure: u32,
    /// It has no stream to resume.
    pub(crate) fresh: bool,
    /// Its connection that this one replaces.
    pub(crate) replaced: Option<u64>,
    /// Slots of instances that were forgotten for it.
    pub(crate) forgotten: Vec<usize>,
}

/// An instance that lost its connection without a farewell keeps its range against others for this long: a reconnect takes less.
const GRACE_MS: u64 = 5_000;
/// The parts that are suggested: /20 of IPv4, /64 of IPv6.
const PART_V4: u8 = 20;
const PART_V6: u8 = 64;

impl Registry {
    pub(crate) fn new(mut targets: Vec<Endpoint>, routed: Vec<Range>, away_ms: u64) -> Self {
        targets.sort_unstable();
        Self { slots: [const { None }; MAX_PEERS], tenures: [0; MAX_PEERS], targets, routed, away_ms }
    }

    /// Decides about a hello that came over connection `connection`.
    pub(crate) fn admit(&mut self, now_ms: u64, hello: &Hello, connection: u64) -> Result<Admitted, Refused> {
        let ranges = match &hello.mode {
            Mode::Ranges(ranges) => ranges.as_slice(),
            Mode::Claims => &[],
        };
        self.check_targets(hello)?;
        let known = self.find(hello.instance);
        if let Some(instance) = known.and_then(|slot| self.slots[slot].as_ref())
            && instance.connection.is_some()
            && instance.incarnation > hello.incarnation
        {
            return Err(Refused {
                code: RefusedCode::Superseded,
                sentence: "a younger receiver of the same instance is connected already; this one may end"
                    .to_owned(),
                suggestion: None,
            });
        }
        self.check_routed(ranges)?;
        let away = self.check_overlap(now_ms, known, ranges)?;
        let slot = match known {
            Some(slot) => slot,
            None => self.free_slot(now_ms, &away)?,
        };
        let mut forgotten = away;
        if known.is_none() && self.slots[slot].is_some() && !forgotten.contains(&slot) {
            forgotten.push(slot);
        }
        for &slot in &forgotten {
            self.forget(slot);
        }
        let old = self.slots[slot].take();
        if old.is_none() {
            self.tenures[slot] = self.tenures[slot].wrapping_add(1);
        }
        let tenure = self.tenures[slot];
        self.slots[slot] = Some(Instance {
            id: hello.instance,
            incarnation: hello.incarnation,
            name: hello.name.clone(),
            ranges: ranges.to_vec(),
            connection: Some(connection),
            left_ms: now_ms,
            farewell: false,
        });
        Ok(Admitted {
            slot,
            tenure,
            fresh: old.is_none(),
            replaced: old.and_then(|o| o.connection),
            forgotten,
        })
    }

    /// A connection ended, with a farewell or without. Ignored when another one has replaced it.
    pub(crate) fn left(&mut self, now_ms: u64, slot: usize, connection: u64, farewell: bool) -> bool {
        match &mut self.slots[slot] {
            Some(instance) if instance.connection == Some(connection) => {
                (instance.connection, instance.left_ms) = (None, now_ms);
                instance.farewell = farewell;
                true
            }
            _ => false,
        }
    }

    /// Forgets instances that stayed away; returns their slots.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<usize> {
        let gone = |i: &Instance| i.connection.is_none() && now_ms.saturating_sub(i.left_ms) > self.away_ms;
        let slots: Vec<usize> =
            (0..MAX_PEERS).filter(|&slot| self.slots[slot].as_ref().is_some_and(gone)).collect();
        slots.iter().for_each(|&slot| self.forget(slot));
        slots
    }

    fn forget(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.tenures[slot] = self.tenures[slot].wrapping_add(1);
    }

    fn find(&self, id: u64) -> Option<usize> {
        self.slots.iter().position(|s| s.as_ref().is_some_and(|i| i.id == id))
    }

    fn check_targets(&self, hello: &Hello) -> Result<(), Refused> {
        if hello.targets.iter().any(|t| self.targets.binary_search(t).is_ok()) {
            return Ok(());
        }
        let list =
            |of: &[Endpoint]| of.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Refused {
            code: RefusedCode::TargetsUnknown,
            sentence: format!(
                "this intercept watches {}, not {}; give it the same -x target",
                list(&self.targets),
                list(&hello.targets)
            ),
            suggestion: None,
        })
    }

    fn check_routed(&self, ranges: &[Range]) -> Result<(), Refused> {
        let inside = |range: &Range| {
            self.routed.iter().any(|r| r.contains(range.base()) && r.prefix() <= range.prefix())
        };
        match ranges.iter().find(|range| !self.routed.is_empty() && !inside(range)) {
            None => Ok(()),
            Some(range) => {
                let suggestion = self.free_part(range, None);
                let routes = self.routed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Err(Refused {
                    code: RefusedCode::RangeNotRouted,
                    sentence: format!(
                        "{range} does not arrive here: the device of --tun has the routes {routes}; {}",
                        advise(suggestion)
                    ),
                    suggestion,
                })
            }
        }
    }

    /// Slots of instances that are away and must be forgotten for these ranges.
    fn check_overlap(
        &self,
        now_ms: u64,
        known: Option<usize>,
        ranges: &[Range],
    ) -> Result<Vec<usize>, Refused> {
        let mut away = Vec::new();
        for (slot, other) in self.others(known) {
            let Some(range) = ranges.iter().find(|range| other.ranges.iter().any(|o| o.overlaps(range)))
            else {
                continue;
            };
            if !is_live(other, now_ms) {
                away.push(slot);
                continue;
            }
            let suggestion = self.free_part(range, known);
            return Err(Refused {
                code: RefusedCode::RangeTaken,
                sentence: format!(
                    "{range} overlaps the clients of `{}`, which is replaying now; {}",
                    other.name,
                    advise(suggestion)
                ),
                suggestion,
            });
        }
        Ok(away)
    }

    fn free_slot(&self, now_ms: u64, away: &[usize]) -> Result<usize, Refused> {
        if let Some(slot) = self.slots.iter().position(Option::is_none).or_else(|| away.first().copied()) {
            return Ok(slot);
        }
        let longest_away =
            self.others(None).filter(|(_, i)| !is_live(i, now_ms)).min_by_key(|(_, i)| i.left_ms);
        longest_away.map(|(slot, _)| slot).ok_or_else(|| Refused {
            code: RefusedCode::TooMany,
            sentence: format!(
                "{MAX_PEERS} instances are connected, which is the limit; use another intercept"
            ),
            suggestion: None,
        })
    }

    fn others(&self, known: Option<usize>) -> impl Iterator<Item = (usize, &Instance)> {
        let all = self.slots.iter().enumerate().filter_map(|(slot, i)| i.as_ref().map(|i| (slot, i)));
        all.filter(move |(slot, _)| Some(*slot) != known)
    }

    /// A part of the usual size, in the family of `wanted`, that no instance holds.
    fn free_part(&self, wanted: &Range, known: Option<usize>) -> Option<Range> {
        let taken: Vec<Range> = self.others(known).flat_map(|(_, i)| i.ranges.iter().copied()).collect();
        let usual = if wanted.is_v4() {
            Range::new(Addr::v4([198, 18, 0, 0]), 15)
        } else {
            Range::new(Addr([0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 48)
        };
        let granularity = if wanted.is_v4() { PART_V4 } else { PART_V6 };
        let usual = [usual.expect("15 and 48 are prefix lengths of their families")];
        let blocks = if self.routed.is_empty() { &usual[..] } else { &self.routed };
        blocks
            .iter()
            .filter(|b| b.is_v4() == wanted.is_v4())
            .find_map(|block| first_free(block, granularity.max(block.prefix()), &taken))
    }
}

fn is_live(instance: &Instance, now_ms: u64) -> bool {
    let within_grace = now_ms.saturating_sub(instance.left_ms) < GRACE_MS;
    instance.connection.is_some() || !instance.farewell && within_grace
}

fn advise(suggestion: Option<Range>) -> String {
    match suggestion {
        Some(range) => format!("{range} is free: -c {range}"),
        None => "no part of the usual size is free, choose another range with -c".to_owned(),
    }
}

/// The first part of `block` that overlaps none of `taken`. Jumps over what a larger range covers, so the number of
/// steps is bounded by the number of taken ranges.
fn first_free(block: &Range, prefix: u8, taken: &[Range]) -> Option<Range> {
    let mut index = 0;
    loop {
        let part = block.part(prefix, index)?;
        match taken.iter().filter(|t| t.overlaps(&part)).map(Range::prefix).min() {
            None => return Some(part),
            // To the end of what the larger one covers.
            Some(p) if p < prefix => index = (index | (1_u64.checked_shl(u32::from(prefix - p))? - 1)) + 1,
            Some(_) => index += 1,
        }
    }
}

/// Address → slot, for the capture thread: ranges of the instances, sorted; they never overlap.
pub(crate) struct RangeTable {
    rows: Vec<(u128, u128, u8)>,
}

impl RangeTable {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::with_capacity(MAX_PEERS * returns::MAX_RANGES) }
    }

    /// Takes away the ranges of a slot and gives it these.
    pub(crate) fn set(&mut self, slot: usize, ranges: &[Range]) {
        self.rows.retain(|row| usize::from(row.2) != slot);
        for range in ranges {
            let first = u128::from_be_bytes(range.base().0);
            let bits = u32::from(if range.is_v4() { 32 - range.prefix() } else { 128 - range.prefix() });
            let last = first | 1_u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1);
            self.rows.push((first, last, slot as u8));
        }
        self.rows.sort_unstable();
    }

    /// The slot that owns a client's address.
    pub(crate) fn find(&self, client: Addr) -> Option<usize> {
        let addr = u128::from_be_bytes(client.0);
        let after = self.rows.partition_point(|row| row.0 <= addr);
        let row = self.rows.get(after.checked_sub(1)?)?;
        (addr <= row.1).then_some(usize::from(row.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Endpoint {
        Endpoint::new(Addr::v4([10, 0, 3, 2]), 8080)
    }

    fn hello(instance: u64, ranges: &[&str]) -> Hello {
        Hello {
            software: String::new(),
            instance,
            incarnation: 1,
            name: format!("run-{instance}"),
            mode: Mode::Ranges(ranges.iter().map(|r| r.parse().unwrap()).collect()),
            targets: vec![target()],
            last: None,
        }
    }

    fn registry() -> Registry {
        Registry::new(vec![target()], Vec::new(), 60_000)
    }

    fn code(refused: Result<Admitted, Refused>) -> (RefusedCode, Option<String>) {
        let refused = refused.unwrap_err();
        (refused.code, refused.suggestion.map(|r| r.to_string()))
    }

    #[test]
    fn overlapping_ranges_of_two_live_instances_are_refused_naming_a_free_part() {
        let mut r = registry();
        assert!(r.admit(0, &hello(1, &["198.18.0.0/20", "2001:2::/64"]), 1).unwrap().fresh);
        r.admit(0, &hello(2, &["198.18.16.0/20"]), 2).unwrap();
        assert_eq!(
            code(r.admit(0, &hello(3, &["198.18.1.0/24"]), 3)),
            (RefusedCode::RangeTaken, Some("198.18.32.0/20".into()))
        );
        assert_eq!(
            code(r.admit(0, &hello(3, &["2001:2::/48"]), 3)),
            (RefusedCode::RangeTaken, Some("2001:2:0:1::/64".into()))
        );
        // The whole default range taken: nothing of it can be suggested.
        let mut r = registry();
        r.admit(0, &hello(1, &["198.18.0.0/15"]), 1).unwrap();
        let refused = r.admit(0, &hello(2, &["198.19.0.0/24"]), 2).unwrap_err();
        assert!(refused.suggestion.is_none() && refused.sentence.contains("`run-1`"), "{}", refused.sentence);
    }

    #[test]
    fn a_reconnect_replaces_and_an_older_incarnation_does_not() {
        let mut r = registry();
        let first = r.admit(0, &hello(1, &["198.18.0.0/20"]), 10).unwrap();
        let again = r.admit(5, &Hello { incarnation: 2, ..hello(1, &["198.18.0.0/19"]) }, 11).unwrap();
        assert_eq!(
            (again.slot, again.tenure, again.fresh, again.replaced),
            (first.slot, first.tenure, false, Some(10))
        );
        assert_eq!(code(r.admit(6, &hello(1, &["198.18.0.0/20"]), 12)).0, RefusedCode::Superseded);
        assert!(!r.left(7, first.slot, 10, false), "the old connection is no longer of interest");
        assert!(r.left(7, first.slot, 11, false));
    }

    #[test]
    fn an_instance_that_is_away_keeps_its_range_for_a_moment_only() {
        let mut r = registry();
        let first = r.admit(0, &hello(1, &["198.18.0.0/20"]), 1).unwrap();
        r.left(1_000, first.slot, 1, false);
        assert_eq!(code(r.admit(2_000, &hello(2, &["198.18.0.0/20"]), 2)).0, RefusedCode::RangeTaken);
        let taken = r.admit(6_001, &hello(2, &["198.18.0.0/20"]), 3).unwrap();
        assert_eq!(taken.forgotten, [first.slot]);
        assert!(r.slots[taken.slot].as_ref().is_some_and(|i| i.id == 2));
        assert!(r.expire(1_000_000).is_empty(), "a connected instance is never forgotten");
        r.left(1_000_000, taken.slot, 3, false);
        assert_eq!(r.expire(1_060_001), [taken.slot]);
    }

    #[test]
    fn an_instance_that_said_farewell_keeps_its_stream_and_not_its_range() {
        let mut r = registry();
        let first = r.admit(0, &hello(1, &["198.18.0.0/20"]), 1).unwrap();
        r.left(1_000, first.slot, 1, true);
        let again = r.admit(1_001, &hello(1, &["198.18.0.0/20"]), 2).unwrap();
        assert_eq!((again.slot, again.fresh), (first.slot, false), "it comes back all the same");
        r.left(1_002, first.slot, 2, true);
        assert_eq!(r.admit(1_003, &hello(2, &["198.18.0.0/20"]), 3).unwrap().forgotten, [first.slot]);
    }

    #[test]
    fn a_slots_next_owner_has_another_tenure() {
        let mut r = registry();
        let first = r.admit(0, &hello(1, &[]), 1).unwrap();
        r.left(0, first.slot, 1, false);
        r.expire(100_000);
        let second = r.admit(100_000, &hello(2, &[]), 2).unwrap();
        assert_eq!(first.slot, second.slot);
        assert_ne!(first.tenure, second.tenure);
    }

    #[test]
    fn sixty_five_instances_are_one_too_many_unless_one_is_away() {
        let mut r = registry();
        for n in 0..MAX_PEERS as u64 {
            r.admit(0, &hello(n, &[&format!("10.{n}.0.0/16")]), n).unwrap();
        }
        assert_eq!(code(r.admit(0, &hello(99, &["172.16.0.0/16"]), 99)).0, RefusedCode::TooMany);
        r.left(1, 7, 7, false);
        assert_eq!(r.admit(9_000, &hello(99, &["172.16.0.0/16"]), 99).unwrap().slot, 7);
    }

    #[test]
    fn foreign_targets_and_unrouted_ranges_are_refused() {
        let mut r = Registry::new(vec![target()], vec!["198.19.0.0/16".parse().unwrap()], 0);
        let other = Hello { targets: vec![Endpoint::new(Addr::v4([10, 9, 9, 9]), 80)], ..hello(1, &[]) };
        assert_eq!(code(r.admit(0, &other, 1)).0, RefusedCode::TargetsUnknown);
        let (got, suggestion) = code(r.admit(0, &hello(1, &["198.18.0.0/20"]), 1));
        assert_eq!((got, suggestion.as_deref()), (RefusedCode::RangeNotRouted, Some("198.19.0.0/20")));
        assert!(r.admit(0, &hello(1, &["198.19.0.0/20"]), 1).is_ok());
    }

    #[test]
    fn an_address_finds_its_owner_at_the_very_edges() {
        let mut table = RangeTable::new();
        table.set(3, &["198.18.16.0/20".parse().unwrap(), "2001:2::/64".parse().unwrap()]);
        table.set(4, &["198.18.32.0/20".parse().unwrap(), "0.0.0.0/1".parse().unwrap()]);
        let find = |ip: &str| table.find(ip.parse::<std::net::IpAddr>().unwrap().into());
        assert_eq!(
            (find("198.18.16.0"), find("198.18.31.255"), find("198.18.32.0")),
            (Some(3), Some(3), Some(4))
        );
        assert_eq!(
            (find("198.18.15.255"), find("198.18.48.0"), find("0.0.0.0"), find("127.0.0.1")),
            (None, None, Some(4), Some(4))
        );
        assert_eq!((find("2001:2::ffff"), find("2001:2:0:1::"), find("::")), (Some(3), None, None));
        table.set(3, &[]);
        assert_eq!(table.find(Addr::v4([198, 18, 16, 0])), None);
    }
}
