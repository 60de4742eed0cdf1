//! Which client endpoint comes next: a keyed permutation of range × ports, walked by a cursor (REPLAY, "Endpoints").
//!
//! All shards walk the same permutation and each takes only what hashes back to itself, so no two ever choose the same
//! endpoint and a returned header finds its shard by hash alone (DESIGN 4). None is used again within [`REST_S`]:
//! positions are grouped into [`BLOCKS`] blocks, each with the time of its last use; the cursor enters a block only when
//! that lies far enough back. A range of up to 65,536 endpoints has one block each and is exact; larger ones are
//! cautious by less than a block.

use flow::{Addr, Endpoint, Range};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Seconds an endpoint rests after its last use: longer than Linux' TIME_WAIT (60 s) and RFC 9293's 2 MSL in practice.
pub const REST_S: u32 = 120;
/// Blocks of the permutation whose last use is remembered.
pub const BLOCKS: usize = 65_536;
/// First port used: below it stand the privileged ports.
const FIRST_PORT: u64 = 1024;
const PORTS: u64 = 65_536 - FIRST_PORT;
/// Candidates looked at in one call: once around a range of one address. Found after N on average with N shards.
const STEPS: u32 = BLOCKS as u32;
/// The same in a second in which a full search has already failed, so that exhaustion costs little.
const STEPS_EXHAUSTED: u32 = 64;
/// Addresses of a range that are used at most (larger IPv6 ranges): the cursor needs days for fewer.
const MAX_ADDRESSES: u64 = 1 << 32;

/// What must survive a restart: plain data in the arena, zero at first.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PoolState {
    /// Next position of the walk; grows by one a candidate.
    cursor: u64,
    /// One past the position up to which the current block was found rested.
    entered_until: u64,
    /// Second (plus one) in which a search last failed.
    failed_s: u32,
    reserved: u32,
    /// Second (plus one) of the last use of each block; 0 is never.
    last_used: [u32; BLOCKS],
}

/// The walk over one range.
#[derive(Clone)]
pub struct Pool {
    range: Range,
    /// Number of endpoints.
    size: u64,
    /// Positions per block.
    block: u64,
    half_bits: u32,
    keys: [u64; 4],
    shard_seed: u64,
    shard: u16,
    shards: u16,
}

impl Pool {
    /// A walk over all endpoints of `range`. `seed` keys the permutation and must be the same for all shards.
    pub fn new(range: Range, seed: u64, shard_seed: u64, shard: u16, shards: u16) -> Self {
        let size = range.len().min(MAX_ADDRESSES) * PORTS;
        let bits = u64::BITS - (size - 1).leading_zeros();
        let keys = [1, 2, 3, 4].map(|round: u64| mix(seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let block = size.div_ceil(BLOCKS as u64);
        Self { range, size, block, half_bits: bits.div_ceil(2), keys, shard_seed, shard, shards }
    }

    /// The range walked.
    pub fn range(&self) -> &Range {
        &self.range
    }

    /// The next endpoint that hashes to this shard, is rested, is no probe's, and that `free` agrees to; `None`: exhausted for
    /// now.
    pub fn take(
        &self,
        state: &mut PoolState,
        now_s: u32,
        mut free: impl FnMut(&Endpoint) -> bool,
    ) -> Option<Endpoint> {
        let stamp = now_s.saturating_add(1);
        let steps = if state.failed_s == stamp { STEPS_EXHAUSTED } else { STEPS };
        for _ in 0..steps {
            let position = state.cursor % self.size;
            let block = (position / self.block) as usize;
            if state.cursor >= state.entered_until {
                let block_end = state.cursor - position + ((block as u64 + 1) * self.block).min(self.size);
                let used = state.last_used[block];
                if used != 0 && stamp.saturating_sub(used) < REST_S {
                    state.cursor = block_end;
                    continue;
                }
                state.entered_until = block_end;
            }
            state.cursor += 1;
            let endpoint = self.endpoint(self.permute(position));
            let hash = flow::hash::endpoint_hash(self.shard_seed, &endpoint);
            let ours = flow::hash::shard_of(hash, self.shards) == self.shard;
            if ours && !flow::probe::is_reserved(&self.range, &endpoint) && free(&endpoint) {
                state.last_used[block] = stamp;
                return Some(endpoint);
            }
        }
        state.failed_s = stamp;
        None
    }

    /// Notes the end of a session: its endpoint rests from now on.
    pub fn rest(&self, state: &mut PoolState, endpoint: &Endpoint, now_s: u32) {
        let Some(index) = self.index(endpoint) else { return };
        let position = self.invert(index);
        let block = (position / self.block) as usize;
        state.last_used[block] = now_s.saturating_add(1);
        // A session older than a whole walk that ends just ahead of the cursor: leave the rest of its block.
        let at = state.cursor % self.size;
        if state.cursor < state.entered_until && position >= at && position / self.block == at / self.block {
            state.cursor = state.entered_until;
        }
    }

    fn endpoint(&self, index: u64) -> Endpoint {
        Endpoint::new(self.range.at(index / PORTS), (FIRST_PORT + index % PORTS) as u16)
    }

    fn index(&self, endpoint: &Endpoint) -> Option<u64> {
        if !self.range.contains(endpoint.addr) || u64::from(endpoint.port) < FIRST_PORT {
            return None;
        }
        let host = low_bits(endpoint.addr).wrapping_sub(low_bits(self.range.base()));
        let index = host.checked_mul(PORTS)? + u64::from(endpoint.port) - FIRST_PORT;
        (index < self.size).then_some(index)
    }

    /// Position → index: a Feistel network over the next even number of bits, walked until it lands inside.
    fn permute(&self, position: u64) -> u64 {
        let mut x = position;
        loop {
            x = self.keys.iter().fold(x, |x, &key| self.round(x, key));
            if x < self.size {
                return x;
            }
        }
    }

    /// Index → position.
    fn invert(&self, index: u64) -> u64 {
        let mut x = index;
        loop {
            x = self.keys.iter().rev().fold(x, |x, &key| self.unround(x, key));
            if x < self.size {
                return x;
            }
        }
    }

    fn round(&self, x: u64, key: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (left, right) = (x >> self.half_bits, x & mask);
        (right << self.half_bits) | (left ^ (mix(right ^ key) & mask))
    }

    fn unround(&self, x: u64, key: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (left, right) = (x >> self.half_bits, x & mask);
        ((right ^ (mix(left ^ key) & mask)) << self.half_bits) | left
    }
}

fn low_bits(addr: Addr) -> u64 {
    u64::from_be_bytes(addr.0[8..].try_into().expect("eight of sixteen bytes"))
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use zerocopy::FromZeros;

    /// Endpoints of a range of one address that are left to probes.
    const PROBES: u64 = flow::probe::PORTS.end as u64 - flow::probe::PORTS.start as u64;

    fn pool(range: &str, shard: u16, shards: u16) -> Pool {
        Pool::new(range.parse().unwrap(), 7, 11, shard, shards)
    }

    fn state() -> Box<PoolState> {
        PoolState::new_box_zeroed().unwrap()
    }

    #[test]
    fn the_permutation_is_one_and_inverts() {
        for range in ["10.0.0.1/32", "10.0.0.0/30", "10.0.0.0/24", "2001:2::/48"] {
            let pool = pool(range, 0, 1);
            for position in (0..pool.size).step_by((pool.size / 5_000).max(1) as usize) {
                assert_eq!(pool.invert(pool.permute(position)), position, "{range}");
                let endpoint = pool.endpoint(pool.permute(position));
                assert_eq!(pool.index(&endpoint), Some(pool.permute(position)), "{range}");
            }
        }
    }

    #[test]
    fn one_address_gives_each_port_once_over_all_shards_and_then_rests() {
        let mut seen = HashSet::new();
        for shard in 0..4 {
            let (pool, mut state) = (pool("10.9.9.9/32", shard, 4), state());
            let mut now_s = 5;
            // Exhaustion answers `None`; within the resting time that stays so.
            while let Some(endpoint) = pool.take(&mut state, now_s, |_| true) {
                assert!(seen.insert(endpoint), "{endpoint} twice");
                assert!(endpoint.port >= 1024 && pool.range().contains(endpoint.addr));
                assert!(!flow::probe::is_reserved(pool.range(), &endpoint), "{endpoint} is a probe's");
            }
            now_s += REST_S - 1;
            assert_eq!(pool.take(&mut state, now_s, |_| true), None);
            now_s += 2;
            assert!(pool.take(&mut state, now_s, |_| true).is_some());
        }
        assert_eq!(seen.len() as u64, PORTS - PROBES);
    }

    #[test]
    fn an_endpoint_that_ended_late_rests_from_its_end() {
        let (pool, mut state) = (pool("10.9.9.9/32", 0, 1), state());
        let first = pool.take(&mut state, 0, |_| true).unwrap();
        while pool.take(&mut state, 0, |_| true).is_some() {}
        pool.rest(&mut state, &first, 100);
        let mut again = HashSet::new();
        while let Some(endpoint) = pool.take(&mut state, 130, |_| true) {
            again.insert(endpoint);
        }
        assert_eq!(again.len() as u64, PORTS - PROBES - 1);
        assert!(!again.contains(&first));
        assert_eq!(pool.take(&mut state, 221, |_| true), Some(first));
    }

    #[test]
    fn what_is_not_free_is_passed_over() {
        let (pool, mut state) = (pool("10.9.9.0/30", 0, 1), state());
        let taken = pool.take(&mut state, 0, |e| e.port % 2 == 0).unwrap();
        assert_eq!(taken.port % 2, 0);
    }

    #[test]
    fn a_busy_large_range_does_not_run_dry() {
        let (pool, mut state) = (pool("198.18.16.0/20", 1, 2), state());
        let mut seen = HashSet::new();
        for second in 0..100 {
            for _ in 0..2_000 {
                let endpoint = pool.take(&mut state, second, |_| true).expect("plenty left");
                assert!(seen.insert(endpoint));
                pool.rest(&mut state, &endpoint, second);
            }
        }
    }

    #[test]
    fn the_cursor_goes_on_where_its_state_left_off() {
        let (pool, mut state) = (pool("10.9.9.0/24", 0, 1), state());
        let before: Vec<_> = (0..50).map(|_| pool.take(&mut state, 0, |_| true).unwrap()).collect();
        let mut revived = self::state();
        revived.as_mut_bytes().copy_from_slice(state.as_bytes());
        let after: Vec<_> = (0..50).map(|_| pool.take(&mut revived, 0, |_| true).unwrap()).collect();
        assert!(after.iter().all(|e| !before.contains(e)));
    }
}
