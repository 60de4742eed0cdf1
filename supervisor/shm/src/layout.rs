//! Every offset of the region, computed from a [`Spec`] in one place.
//!
//! ```text
//! header      one page
//! plan        64 KiB
//! roles       capturer, injector, receiver, shard 0, ...; each: heartbeat, doorbell, counters, journal (36 KiB)
//! indices     head and tail of each ring: capture[0..], inject[0..], returns[0..]
//! rings       their bytes, in the same order
//! arenas      shard 0, ...: sessions and held payload
//! ```
//! Every section begins on a page. Whoever changes anything here, or the meaning of a block, raises [`VERSION`].

use std::mem::size_of;

use crate::control::Control;
use crate::counters::Block;
use crate::doorbell::Doorbell;
use crate::header::Header;
use crate::heartbeat::Heartbeat;
use crate::journal::Record;
use crate::ring::{Indices, MAX_CAPACITY, MIN_CAPACITY};

/// Version of the layout and of what its blocks mean.
pub(crate) const VERSION: u64 = 4;
/// Bytes for the plan: 256 mappings and 256 targets as JSON are about 30 KiB.
pub const PLAN_BYTES: usize = 64 * 1024;
/// Shards at most.
pub const MAX_SHARDS: u16 = 256;
/// Alignment of sections and arenas.
pub(crate) const PAGE: u64 = 4096;

const ROLE_BYTES: u64 = 12 * PAGE;
const DOORBELL_IN_ROLE: u64 = 128;
const COUNTERS_IN_ROLE: u64 = PAGE;
const JOURNAL_IN_ROLE: u64 = 4 * PAGE;
/// Roles that there is one of: capturer, injector, receiver.
const SINGLE_ROLES: u64 = 3;
/// Links of one shard.
const LINKS: u64 = 3;
/// No arena is larger than this: far beyond any machine, and far from overflow.
const MAX_ARENA: u64 = 1 << 40;

const _: () = {
    assert!(size_of::<Header>() as u64 <= CONTROL_IN_HEADER);
    assert!(CONTROL_IN_HEADER + size_of::<Control>() as u64 <= PAGE);
    assert!(size_of::<Heartbeat>() as u64 <= DOORBELL_IN_ROLE);
    assert!(DOORBELL_IN_ROLE + size_of::<Doorbell>() as u64 <= COUNTERS_IN_ROLE);
    assert!(COUNTERS_IN_ROLE + size_of::<Block>() as u64 <= JOURNAL_IN_ROLE);
    assert!(JOURNAL_IN_ROLE + size_of::<Record>() as u64 <= ROLE_BYTES);
    assert!(size_of::<Indices>() == 256);
};

/// Where the control words stand within the first page.
const CONTROL_IN_HEADER: u64 = 2048;

/// What a region is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Shard workers, up to [`MAX_SHARDS`]; none where nothing is replayed.
    pub shards: u16,
    /// Bytes of each ring capturer → shard, a power of two.
    pub capture_ring: u32,
    /// Bytes of each ring shard → injector, a power of two.
    pub inject_ring: u32,
    /// Bytes of each ring return receiver → shard, a power of two.
    pub return_ring: u32,
    /// Bytes of each shard's arena.
    pub arena: u64,
}

/// Who has a block of liveness words, a doorbell and counters in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes frames from the kernel.
    Capturer,
    /// Sends segments.
    Injector,
    /// The injector process's thread that takes returned headers from the intercepts.
    Receiver,
    /// Shard worker k.
    Shard(u16),
}

/// A ring, by where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Capturer → shard k.
    Capture(u16),
    /// Shard k → injector.
    Inject(u16),
    /// Return receiver → shard k.
    Returns(u16),
}

/// What stands at a place of the region; without what is written once, and without the orders in the control words.
#[cfg(feature = "scribble")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of any role.
    Heartbeat,
    /// Of any role.
    Doorbell,
    /// Of any role.
    Counters,
    /// Of any role.
    Journal,
    /// Head and tail of a ring.
    Indices(Link),
    /// A ring's bytes.
    Ring(Link),
    /// A shard's arena.
    Arena(u16),
}

impl Spec {
    /// Why no region can have these sizes, if so.
    fn check(&self) -> Result<(), String> {
        if self.shards > MAX_SHARDS {
            return Err(format!("{} shards; there can be {MAX_SHARDS} at most (--shards)", self.shards));
        }
        for (what, bytes) in
            [("capture", self.capture_ring), ("inject", self.inject_ring), ("return", self.return_ring)]
        {
            if !bytes.is_power_of_two() || !(MIN_CAPACITY..=MAX_CAPACITY).contains(&bytes) {
                return Err(format!(
                    "a {what} ring of {bytes} bytes; it must be a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}"
                ));
            }
        }
        if self.arena > MAX_ARENA {
            return Err(format!(
                "an arena of {} bytes a shard; at most {MAX_ARENA} (--memory, --max-sessions)",
                self.arena
            ));
        }
        Ok(())
    }
}

/// Offsets of everything, bytes from the region's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    spec: Spec,
    plan: u64,
    roles: u64,
    indices: u64,
    rings: u64,
    arenas: u64,
    bytes: u64,
}

impl Layout {
    /// Lays a region out; the error is a half sentence.
    pub(crate) fn new(spec: Spec) -> Result<Self, String> {
        spec.check()?;
        let shards = u64::from(spec.shards);
        let plan = PAGE;
        let roles = plan + PLAN_BYTES as u64;
        let indices = roles + (SINGLE_ROLES + shards) * ROLE_BYTES;
        let rings = page_up(indices + shards * LINKS * size_of::<Indices>() as u64);
        let ring_bytes = [spec.capture_ring, spec.inject_ring, spec.return_ring]
            .iter()
            .map(|&bytes| shards * page_up(u64::from(bytes)))
            .sum::<u64>();
        let arenas = rings + ring_bytes;
        let bytes = arenas + shards * page_up(spec.arena);
        Ok(Self { spec, plan, roles, indices, rings, arenas, bytes })
    }

    pub(crate) const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Size of the whole region.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One number for all offsets and the meaning of the blocks: two programs that disagree on it must not share a region.
    pub(crate) fn hash(&self) -> u64 {
        let spec = &self.spec;
        let facts = [
            VERSION,
            u64::from(spec.shards),
            u64::from(spec.capture_ring),
            u64::from(spec.inject_ring),
            u64::from(spec.return_ring),
            spec.arena,
            self.plan,
            self.roles,
            self.indices,
            self.rings,
            self.arenas,
            self.bytes,
            size_of::<Header>() as u64,
            size_of::<Control>() as u64,
            size_of::<Heartbeat>() as u64,
            size_of::<Doorbell>() as u64,
            size_of::<Block>() as u64,
            size_of::<Record>() as u64,
            size_of::<Indices>() as u64,
            CONTROL_IN_HEADER,
            DOORBELL_IN_ROLE,
            COUNTERS_IN_ROLE,
            JOURNAL_IN_ROLE,
            ROLE_BYTES,
            u64::from_ne_bytes(*b"tcptwin\0"),
        ];
        // FNV-1a over the bytes.
        facts
            .iter()
            .flat_map(|fact| fact.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Everything that roles write while they work, part by part.
    #[cfg(feature = "scribble")]
    pub(crate) fn parts(&self) -> Vec<(Part, std::ops::Range<u64>)> {
        let span = |at: u64, bytes: u64| at..at + bytes;
        let roles = [Role::Capturer, Role::Injector, Role::Receiver].into_iter();
        let shards = || 0..self.spec.shards;
        let of_roles = roles.chain(shards().map(Role::Shard)).flat_map(|role| {
            [
                (Part::Heartbeat, span(self.heartbeat(role), size_of::<Heartbeat>() as u64)),
                (Part::Doorbell, span(self.doorbell(role), size_of::<Doorbell>() as u64)),
                (Part::Counters, span(self.counters(role), size_of::<Block>() as u64)),
                (Part::Journal, span(self.journal(role), size_of::<Record>() as u64)),
            ]
        });
        let links = shards().flat_map(|k| [Link::Capture(k), Link::Inject(k), Link::Returns(k)]);
        let of_links = links.flat_map(|link| {
            let (at, bytes) = self.ring(link);
            let indices = span(self.ring_indices(link), size_of::<Indices>() as u64);
            [(Part::Indices(link), indices), (Part::Ring(link), span(at, bytes.into()))]
        });
        let arenas = shards().map(|k| (Part::Arena(k), span(self.arena(k), self.spec.arena)));
        of_roles.chain(of_links).chain(arenas).collect()
    }

    pub(crate) const fn control(&self) -> u64 {
        CONTROL_IN_HEADER
    }

    pub(crate) const fn plan(&self) -> u64 {
        self.plan
    }

    pub(crate) fn heartbeat(&self, role: Role) -> u64 {
        self.roles + self.role_index(role) as u64 * ROLE_BYTES
    }

    pub(crate) fn doorbell(&self, role: Role) -> u64 {
        self.heartbeat(role) + DOORBELL_IN_ROLE
    }

    pub(crate) fn counters(&self, role: Role) -> u64 {
        self.heartbeat(role) + COUNTERS_IN_ROLE
    }

    pub(crate) fn journal(&self, role: Role) -> u64 {
        self.heartbeat(role) + JOURNAL_IN_ROLE
    }

    pub(crate) fn ring_indices(&self, link: Link) -> u64 {
        self.indices + self.link_index(link) as u64 * size_of::<Indices>() as u64
    }

    /// Offset and size of a ring's bytes.
    pub(crate) fn ring(&self, link: Link) -> (u64, u32) {
        let shards = u64::from(self.spec.shards);
        let (capture, inject, returns) =
            (self.spec.capture_ring, self.spec.inject_ring, self.spec.return_ring);
        let injects = self.rings + shards * page_up(u64::from(capture));
        let returnses = injects + shards * page_up(u64::from(inject));
        let (first, bytes) = match link {
            Link::Capture(_) => (self.rings, capture),
            Link::Inject(_) => (injects, inject),
            Link::Returns(_) => (returnses, returns),
        };
        (first + u64::from(self.shard(link.shard())) * page_up(u64::from(bytes)), bytes)
    }

    pub(crate) fn arena(&self, shard: u16) -> u64 {
        self.arenas + u64::from(self.shard(shard)) * page_up(self.spec.arena)
    }

    /// Position of a role among all roles. Panics when there is no such shard.
    pub(crate) fn role_index(&self, role: Role) -> usize {
        match role {
            Role::Capturer => 0,
            Role::Injector => 1,
            Role::Receiver => 2,
            Role::Shard(shard) => SINGLE_ROLES as usize + usize::from(self.shard(shard)),
        }
    }

    pub(crate) fn role_count(&self) -> usize {
        SINGLE_ROLES as usize + usize::from(self.spec.shards)
    }

    /// Position of a link among all links. Panics when there is no such shard.
    pub(crate) fn link_index(&self, link: Link) -> usize {
        let kind = match link {
            Link::Capture(_) => 0,
            Link::Inject(_) => 1,
            Link::Returns(_) => 2,
        };
        kind * usize::from(self.spec.shards) + usize::from(self.shard(link.shard()))
    }

    /// The link at a position among all links.
    pub(crate) fn link_at(&self, index: usize) -> Option<Link> {
        let shards = usize::from(self.spec.shards);
        let shard = (index % shards) as u16;
        match index / shards {
            0 => Some(Link::Capture(shard)),
            1 => Some(Link::Inject(shard)),
            2 => Some(Link::Returns(shard)),
            _ => None,
        }
    }

    pub(crate) fn link_count(&self) -> usize {
        LINKS as usize * usize::from(self.spec.shards)
    }

    fn shard(&self, shard: u16) -> u16 {
        assert!(shard < self.spec.shards, "shard {shard} of a region with {} shards", self.spec.shards);
        shard
    }
}

impl Link {
    const fn shard(self) -> u16 {
        match self {
            Self::Capture(shard) | Self::Inject(shard) | Self::Returns(shard) => shard,
        }
    }
}

const fn page_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec { shards: 3, capture_ring: 1 << 16, inject_ring: 1 << 15, return_ring: 2048, arena: 10_000 }
    }

    /// Every section of the region with its size.
    fn sections(layout: &Layout) -> Vec<(u64, u64)> {
        let shards = layout.spec().shards;
        let roles =
            [Role::Capturer, Role::Injector, Role::Receiver].into_iter().chain((0..shards).map(Role::Shard));
        let links = (0..shards).flat_map(|k| [Link::Capture(k), Link::Inject(k), Link::Returns(k)]);
        let mut all = vec![
            (0, size_of::<Header>() as u64),
            (layout.control(), size_of::<Control>() as u64),
            (layout.plan(), PLAN_BYTES as u64),
        ];
        for role in roles {
            all.push((layout.heartbeat(role), size_of::<Heartbeat>() as u64));
            all.push((layout.doorbell(role), size_of::<Doorbell>() as u64));
            all.push((layout.counters(role), size_of::<Block>() as u64));
            all.push((layout.journal(role), size_of::<Record>() as u64));
        }
        for link in links {
            assert_eq!(layout.link_at(layout.link_index(link)), Some(link));
            all.push((layout.ring_indices(link), size_of::<Indices>() as u64));
            let (at, bytes) = layout.ring(link);
            assert_eq!(at % PAGE, 0);
            all.push((at, u64::from(bytes)));
        }
        for shard in 0..shards {
            assert_eq!(layout.arena(shard) % PAGE, 0);
            all.push((layout.arena(shard), layout.spec().arena));
        }
        all
    }

    #[test]
    fn nothing_overlaps_and_everything_fits() {
        for shards in [1, 3, MAX_SHARDS] {
            let layout = Layout::new(Spec { shards, ..spec() }).unwrap();
            let mut all = sections(&layout);
            all.sort_unstable();
            for pair in all.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            }
            let (at, bytes) = all.last().unwrap();
            assert!(at + bytes <= layout.bytes());
            assert_eq!(layout.bytes() % PAGE, 0);
        }
    }

    #[test]
    fn every_size_changes_the_hash() {
        let mut hashes = vec![
            spec(),
            Spec { shards: 4, ..spec() },
            Spec { capture_ring: 1 << 17, ..spec() },
            Spec { inject_ring: 1 << 17, ..spec() },
            Spec { return_ring: 1 << 17, ..spec() },
            Spec { arena: 10_001, ..spec() },
        ]
        .into_iter()
        .map(|spec| Layout::new(spec).unwrap().hash())
        .collect::<Vec<_>>();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 6);
    }

    #[test]
    fn impossible_sizes_are_named() {
        for (bad, word) in [
            (Spec { shards: MAX_SHARDS + 1, ..spec() }, "--shards"),
            (Spec { capture_ring: 1000, ..spec() }, "capture"),
            (Spec { inject_ring: 64, ..spec() }, "inject"),
            (Spec { return_ring: 1 << 31, ..spec() }, "return"),
            (Spec { arena: u64::MAX, ..spec() }, "--memory"),
        ] {
            let why = Layout::new(bad).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    #[should_panic(expected = "shard 3 of a region with 3 shards")]
    fn a_shard_that_is_not_there_is_a_bug() {
        Layout::new(spec()).unwrap().ring(Link::Capture(3));
    }
}
