//! How the memory of one region is shared out: rings, session slots, held payload.
//!
//! One half of a shard's share is for what waits: sessions and held payload. A quarter is for its capture ring, the one
//! that must outlast a worker's restart (bytes/s × three times the slowest restart seen, `reference/faults.md`); the
//! inject and return rings carry a few milliseconds and take an eighth and a thirty-second.

use crate::plan::{Limits, Rings};

/// `--memory` unless given: 60 MiB of held payload, half a second of 100 MB/s in the capture rings, on any machine.
pub const DEFAULT_MEMORY: u64 = 192 << 20;
/// `--max-sessions` unless given.
pub const DEFAULT_SESSIONS: u32 = 65_536;
/// Smallest capture ring: sixteen super-frames.
pub const MIN_CAPTURE_RING: u64 = 1 << 20;
/// Smallest inject ring: several full bursts of a shard (128 KiB each), since a record may take at most half a ring.
pub const MIN_INJECT_RING: u64 = 1 << 19;
/// Smallest return ring: some 1,300 headers.
pub const MIN_RETURN_RING: u64 = 1 << 18;
/// Largest ring: beyond it a longer queue is only a later answer.
pub const MAX_RING: u64 = 256 << 20;
/// Fewest payload chunks of a shard: 4 MiB.
pub const MIN_CHUNKS: u32 = 4096;
/// Most bytes one session may hold: an upload of that size waits in full for a slow target.
pub const MAX_HELD_PER_SESSION: u64 = 16 << 20;

/// Sizes of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Its rings.
    pub rings: Rings,
    /// Its bounds.
    pub limits: Limits,
}

/// Shares `memory` bytes out to `shards` shards that together hold `sessions` sessions. `arena_bytes` says how large an
/// arena for so many sessions and chunks is (the session machine knows).
///
/// # Errors
/// The memory that would be enough, bytes.
pub fn share_out(
    memory: u64,
    shards: u16,
    sessions: u32,
    arena_bytes: fn(u32, u32) -> u64,
) -> Result<Sizes, u64> {
    let shards64 = u64::from(shards.max(1));
    let share = memory / shards64;
    let ring = |part: u64, least: u64| ((share / part).max(1)).clamp(least, MAX_RING);
    let rings = Rings {
        capture: power_below(ring(4, MIN_CAPTURE_RING)),
        inject: power_below(ring(8, MIN_INJECT_RING)),
        returns: power_below(ring(32, MIN_RETURN_RING)),
    };
    let ring_bytes = u64::from(rings.capture) + u64::from(rings.inject) + u64::from(rings.returns);
    let sessions_per_shard = per_shard(sessions, shards);
    let least = arena_bytes(sessions_per_shard, MIN_CHUNKS) + ring_bytes;
    let Some(arena) = share.checked_sub(ring_bytes).filter(|_| share >= least) else {
        return Err(enough(shards64, sessions_per_shard, arena_bytes));
    };
    let chunks = most_chunks(arena, sessions_per_shard, arena_bytes);
    let chunk_bytes =
        arena_bytes(sessions_per_shard, 2).saturating_sub(arena_bytes(sessions_per_shard, 1)).max(1);
    let held = (u64::from(chunks) * chunk_bytes / 4).min(MAX_HELD_PER_SESSION);
    let limits = Limits { sessions_per_shard, chunks_per_shard: chunks, held_per_session: held as u32 };
    Ok(Sizes { rings, limits })
}

/// Session slots of one shard: its even part and a sixteenth more, because hashing is never quite even.
fn per_shard(sessions: u32, shards: u16) -> u32 {
    let even = sessions.div_ceil(u32::from(shards.max(1)));
    if shards <= 1 { even } else { even.saturating_add(even / 16 + 64) }
}

/// Memory with which `share_out` succeeds: found by doubling, since a larger share also makes larger rings.
fn enough(shards: u64, sessions: u32, arena_bytes: fn(u32, u32) -> u64) -> u64 {
    let arena = arena_bytes(sessions, MIN_CHUNKS);
    let least_rings = MIN_CAPTURE_RING + MIN_INJECT_RING + MIN_RETURN_RING;
    // Rings take at most 13/32 of a share, the least ones a fixed sum: either way this is enough.
    let share = (arena * 32 / 19).max(arena + least_rings) + (1 << 16);
    (share * shards).next_multiple_of(1 << 20)
}

fn most_chunks(arena: u64, sessions: u32, arena_bytes: fn(u32, u32) -> u64) -> u32 {
    let (mut low, mut high) = (MIN_CHUNKS, u32::MAX >> 1);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if arena_bytes(sessions, middle) <= arena { low = middle } else { high = middle - 1 }
    }
    low
}

/// The largest power of two not above `bytes`.
fn power_below(bytes: u64) -> u32 {
    1 << bytes.max(1).ilog2().min(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(sessions: u32, chunks: u32) -> u64 {
        u64::from(sessions) * 512 + u64::from(chunks) * 1040 + (1 << 20)
    }

    #[test]
    fn the_whole_is_never_more_than_asked_for() {
        for shards in [1, 2, 3, 4, 8, 16] {
            for memory in [64 << 20, DEFAULT_MEMORY, 1 << 30, 8 << 30] {
                let Ok(sizes) = share_out(memory, shards, 10_000, arena) else { continue };
                let Rings { capture, inject, returns } = sizes.rings;
                assert!(capture.is_power_of_two() && inject.is_power_of_two() && returns.is_power_of_two());
                let one = u64::from(capture)
                    + u64::from(inject)
                    + u64::from(returns)
                    + arena(sizes.limits.sessions_per_shard, sizes.limits.chunks_per_shard);
                assert!(one * u64::from(shards) <= memory, "{shards} shards, {memory}");
                // Nor much less, for small regions whose rings have not reached their bounds.
                assert!(
                    memory > 1 << 30 || one * u64::from(shards) > memory * 99 / 100,
                    "{shards} shards, {memory}"
                );
            }
        }
    }

    #[test]
    fn the_default_holds_its_sessions_for_one_and_eight_shards() {
        for shards in [1, 2, 8] {
            let sizes = share_out(DEFAULT_MEMORY, shards, DEFAULT_SESSIONS, arena).unwrap();
            assert!(
                u64::from(sizes.limits.sessions_per_shard) * u64::from(shards) >= u64::from(DEFAULT_SESSIONS)
            );
            assert!(sizes.limits.held_per_session >= 1 << 20, "{sizes:?}");
        }
    }

    #[test]
    fn what_would_be_enough_is_enough() {
        for (shards, sessions) in [(1, 1_000), (2, 65_536), (8, 1_000_000), (64, 100)] {
            let enough = share_out(1 << 20, shards, sessions, arena).unwrap_err();
            assert!(
                share_out(enough, shards, sessions, arena).is_ok(),
                "{shards} shards, {sessions} sessions, {enough}"
            );
        }
    }
}
