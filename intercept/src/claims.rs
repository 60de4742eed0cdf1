//! Which instance owns a flow that its client's address alone does not tell: a fixed table of claims with idle expiry.
//!
//! Buckets of eight; a flow may stand in one of two buckets, the emptier when it comes: so such a table fills to four
//! fifths before the first is refused (seen; nothing is moved later), and it is made larger by that. Tags lie apart from
//! the claims, so that a miss touches two cache lines.

use flow::{Endpoint, hash::flow_hash};
use zerocopy::{FromZeros, KnownLayout};

/// An owner: the slot of its instance, and how many owners that slot had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) slot: u8,
    pub(crate) tenure: u32,
}

/// 48 bytes; with its tag 50 a flow.
#[derive(Clone, Copy, FromZeros, KnownLayout)]
#[repr(C)]
struct Claim {
    client: Endpoint,
    target: Endpoint,
    slot: u16,
    tenure: u32,
    seen_s: u32,
}

/// The table.
pub(crate) struct Claims {
    tags: Vec<[u16; WAYS]>,
    claims: Vec<[Claim; WAYS]>,
    seed: u64,
    idle_s: u32,
}

const WAYS: usize = 8;
/// A claim idle for this long gives way when both buckets are full, seconds.
const YIELDS_S: u32 = 30;

impl Claims {
    /// Room for `capacity` flows; a claim idle for `idle_s` seconds is forgotten. `seed` is random, against crafted tuples.
    pub(crate) fn new(capacity: usize, idle_s: u32, seed: u64) -> Self {
        let buckets = (capacity + capacity / 4).div_ceil(WAYS).next_power_of_two();
        // Zeroed by the kernel: a page costs memory only once a claim stands in it.
        let claims = <[Claim; WAYS]>::new_vec_zeroed(buckets).expect("a table of 50 MiB can be reserved");
        Self { tags: vec![[0; WAYS]; buckets], claims, seed, idle_s }
    }

    /// The hash by which a flow is found here (and in the ring of held headers).
    pub(crate) fn hash(&self, client: &Endpoint, target: &Endpoint) -> u64 {
        flow_hash(self.seed, client, target)
    }

    /// The owner of a flow, whose claim is young again by this.
    pub(crate) fn find(
        &mut self,
        now_s: u32,
        hash: u64,
        client: &Endpoint,
        target: &Endpoint,
    ) -> Option<Owner> {
        let tag = tag(hash);
        for bucket in self.buckets(hash) {
            for way in 0..WAYS {
                if self.tags[bucket][way] != tag {
                    continue;
                }
                let claim = &mut self.claims[bucket][way];
                if claim.client == *client && claim.target == *target {
                    if now_s.saturating_sub(claim.seen_s) > self.idle_s {
                        return None;
                    }
                    claim.seen_s = now_s;
                    return Some(Owner { slot: claim.slot as u8, tenure: claim.tenure });
                }
            }
        }
        None
    }

    /// Notes a claim; the latest claim of a flow counts. `false` when there is no place for it.
    pub(crate) fn note(
        &mut self,
        now_s: u32,
        hash: u64,
        client: &Endpoint,
        target: &Endpoint,
        owner: Owner,
    ) -> bool {
        let Some((bucket, way)) = self.place(now_s, hash, client, target) else { return false };
        self.tags[bucket][way] = tag(hash);
        self.claims[bucket][way] = Claim {
            client: *client,
            target: *target,
            slot: u16::from(owner.slot),
            tenure: owner.tenure,
            seen_s: now_s,
        };
        true
    }

    /// Where a flow stands or may stand: its own place, else a free or expired one of the emptier bucket, else the
    /// one idle for longest if that is long enough.
    fn place(&self, now_s: u32, hash: u64, client: &Endpoint, target: &Endpoint) -> Option<(usize, usize)> {
        let tag = tag(hash);
        let mut best: Option<(u32, usize, usize)> = None;
        let mut free: [Option<usize>; 2] = [None; 2];
        let mut free_count = [0; 2];
        let buckets = self.buckets(hash);
        for (choice, &bucket) in buckets.iter().enumerate() {
            for way in 0..WAYS {
                let claim = &self.claims[bucket][way];
                if self.tags[bucket][way] == 0 {
                    free[choice] = Some(way);
                    free_count[choice] += 1;
                    continue;
                }
                if self.tags[bucket][way] == tag && claim.client == *client && claim.target == *target {
                    return Some((bucket, way));
                }
                let idle = now_s.saturating_sub(claim.seen_s);
                if idle > self.idle_s {
                    free[choice] = Some(way);
                    free_count[choice] += 1;
                } else if idle >= YIELDS_S && best.is_none_or(|(longest, ..)| idle > longest) {
                    best = Some((idle, bucket, way));
                }
            }
        }
        let choice = usize::from(free_count[1] > free_count[0]);
        match free[choice] {
            Some(way) => Some((buckets[choice], way)),
            None => best.map(|(_, bucket, way)| (bucket, way)),
        }
    }

    fn buckets(&self, hash: u64) -> [usize; 2] {
        let mask = self.tags.len() - 1;
        [hash as usize & mask, (hash >> 32) as usize & mask]
    }
}

/// Sixteen bits that mark a used place; never 0, which marks a free one.
const fn tag(hash: u64) -> u16 {
    let bits = (hash >> 24) as u16;
    if bits == 0 { 1 } else { bits }
}

#[cfg(test)]
mod tests {
    use flow::Addr;

    use super::*;

    const SERVER: Endpoint = Endpoint::new(Addr::v4([10, 0, 3, 2]), 80);
    const A: Owner = Owner { slot: 1, tenure: 4 };
    const B: Owner = Owner { slot: 2, tenure: 1 };

    fn client(n: u32) -> Endpoint {
        let [_, b, c, d] = n.to_be_bytes();
        Endpoint::new(Addr::v4([192, b, c, d]), 1000)
    }

    fn note(claims: &mut Claims, now_s: u32, n: u32, owner: Owner) -> bool {
        let hash = claims.hash(&client(n), &SERVER);
        claims.note(now_s, hash, &client(n), &SERVER, owner)
    }

    fn find(claims: &mut Claims, now_s: u32, n: u32) -> Option<Owner> {
        let hash = claims.hash(&client(n), &SERVER);
        claims.find(now_s, hash, &client(n), &SERVER)
    }

    #[test]
    fn the_latest_claim_of_a_flow_counts() {
        let mut claims = Claims::new(64, 100, 7);
        assert!(note(&mut claims, 0, 1, A));
        assert_eq!(find(&mut claims, 0, 1), Some(A));
        assert_eq!(find(&mut claims, 0, 2), None);
        assert!(note(&mut claims, 1, 1, B));
        assert_eq!(find(&mut claims, 1, 1), Some(B));
    }

    #[test]
    fn an_idle_claim_is_forgotten_and_a_busy_one_is_not() {
        let mut claims = Claims::new(64, 100, 7);
        note(&mut claims, 0, 1, A);
        note(&mut claims, 0, 2, A);
        assert_eq!(find(&mut claims, 90, 1), Some(A));
        assert_eq!(find(&mut claims, 180, 1), Some(A));
        assert_eq!(find(&mut claims, 180, 2), None);
    }

    #[test]
    fn the_table_takes_what_it_was_made_for_and_then_refuses_without_losing_anybody() {
        let mut claims = Claims::new(6500, 100, 7);
        let taken: Vec<u32> = (0..16_384).filter(|&n| note(&mut claims, 5, n, A)).collect();
        let first_refused = (0..).find(|n| !taken.contains(n)).unwrap();
        assert!(first_refused >= 6500, "{first_refused}");
        assert!(taken.len() <= 8192);
        assert!(taken.iter().all(|&n| find(&mut claims, 5, n) == Some(A)));
        // Later the idle ones give way.
        assert!((20_000..22_000).all(|n| note(&mut claims, 50, n, B)));
        assert!((20_000..22_000).all(|n| find(&mut claims, 50, n) == Some(B)));
    }
}
