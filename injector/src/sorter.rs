//! Sorts returned headers into the shards' rings by the hash of the replayed client: the very hash by which the shard chose
//! or kept that client, so no table is needed.

use flow::{Returned, hash};
use shm::{Doorbell, Link, Producer, Region, Role};
use zerocopy::IntoBytes;

/// The writing ends of all return rings.
pub(crate) struct Sorter {
    rings: Vec<(Producer, &'static Doorbell)>,
    seed: u64,
}

/// Ring bytes that the largest batch of the return channel can take in one ring. Room is made before a batch is taken.
pub(crate) const BATCH_BYTES: usize =
    returns::MAX_BODY / returns::MIN_RECORD * Producer::record_bytes(size_of::<Returned>());

/// The smallest return ring: the largest batch fits into whichever half of it is free.
pub(crate) const MIN_RING: usize = 2 * BATCH_BYTES;

impl Sorter {
    pub(crate) fn new(region: &'static Region, seed: u64) -> Self {
        let rings = (0..region.spec().shards)
            .map(|shard| (region.producer(Link::Returns(shard)), region.doorbell(Role::Shard(shard))))
            .collect();
        Self { rings, seed }
    }

    /// Whether every ring takes the largest batch now, whichever shards its records are for.
    pub(crate) fn has_room(&mut self) -> bool {
        self.rings.iter_mut().all(|(ring, _)| ring.credits() >= BATCH_BYTES)
    }

    /// Puts one header into its shard's ring, not visible yet. False only when there was no room after all, which a
    /// ring with sound indices does not do after [`Sorter::has_room`].
    pub(crate) fn put(&mut self, record: &Returned) -> bool {
        let shard = hash::shard_of(hash::endpoint_hash(self.seed, &record.client), self.rings.len() as u16);
        self.rings[usize::from(shard)].0.push(record.as_bytes())
    }

    /// Makes everything put so far visible and wakes the shards it is for, once each.
    pub(crate) fn publish(&mut self) {
        for (ring, bell) in &mut self.rings {
            if ring.publish() {
                bell.ring();
            }
        }
    }
}
