//! What a table must hold for one record to be taken as it was: parts of an arena, cut out after a worker died of that record,
//! so that another table can be made of them later, far away from the traffic.

use std::collections::HashMap;

use zerocopy::FromBytes;

use crate::arena::{self, Header, MARKS};
use crate::chunks::{CHUNK, Chunk, List};
use crate::config::Config;
use crate::slot::{Phase, Slot};
use crate::table::Held;
use crate::undo;

/// Bytes of an arena, and where they stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset from the arena's begin.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Cuts the sessions that are `wanted` out of an arena whose worker is dead, as its last transaction left them, with what they
/// hold; not more than `most` bytes.
pub fn specimen(arena: &[u8], config: &Config, most: usize, wanted: impl Fn(&Held<'_>) -> bool) -> Vec<Part> {
    let (sessions, chunks) = (config.limits.sessions, config.limits.chunks);
    let slots_at = arena::slots_at(sessions);
    let chunks_at = slots_at + sessions as usize * size_of::<Slot>();
    let Some(slots) = arena.get(slots_at..chunks_at) else { return Vec::new() };
    let images = arena.get(MARKS.end..MARKS.end + undo::bytes(sessions)).map_or(&[][..], undo::images);
    let images: HashMap<u32, &Slot> = images.iter().map(|image| (image.id(), image.slot())).collect();
    // The words that say whose arena it is; walks and numbers behind them are long and not needed.
    let part = |range: std::ops::Range<usize>| Part { at: range.start as u64, bytes: arena[range].to_vec() };
    let mut parts = vec![part(0..Header::FIRST), part(MARKS)];
    let mut left = most.saturating_sub(Header::FIRST + MARKS.len());
    let mut add = |at: usize, bytes: &[u8]| {
        let fits = bytes.len() <= left;
        if fits {
            left -= bytes.len();
            parts.push(Part { at: at as u64, bytes: bytes.to_vec() });
        }
        fits
    };
    for (id, bytes) in (0..sessions).zip(slots.chunks_exact(size_of::<Slot>())) {
        let Some(slot) = images.get(&id).map(|slot| **slot).or_else(|| Slot::read_from_bytes(bytes).ok())
        else {
            continue;
        };
        if slot.phase() == Phase::Free || !wanted(&Held::new(id, &slot)) {
            continue;
        }
        if !add(slots_at + id as usize * size_of::<Slot>(), zerocopy::IntoBytes::as_bytes(&slot)) {
            break;
        }
        for list in [slot.held, slot.rare().stash] {
            each_chunk(arena, chunks_at, chunks, &list, &mut add);
        }
    }
    parts
}

/// Walks a list that may make no sense: not further than it says it is long.
fn each_chunk(
    arena: &[u8],
    chunks_at: usize,
    chunks: u32,
    list: &List,
    add: &mut impl FnMut(usize, &[u8]) -> bool,
) {
    let mut id = list.head;
    for _ in 0..list.count.min(chunks) {
        let at = chunks_at + id as usize * CHUNK;
        let Some(bytes) = (id < chunks).then(|| arena.get(at..at + CHUNK)).flatten() else { return };
        let Ok(chunk) = Chunk::ref_from_bytes(bytes) else { return };
        if !add(at, bytes) {
            return;
        }
        id = chunk.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_leads_nowhere_ends() {
        let mut arena = vec![0xffu8; 2 * CHUNK];
        let mut found = Vec::new();
        let mut list = List::EMPTY;
        (list.head, list.tail, list.count) = (0, 1, u32::MAX);
        // The first chunk's next is no chunk.
        each_chunk(&arena, 0, 2, &list, &mut |at, _| {
            found.push(at);
            true
        });
        assert_eq!(found, [0]);
        // A ring of chunks is walked as often as there are chunks.
        arena[..4].copy_from_slice(&0u32.to_ne_bytes());
        let mut count = 0;
        each_chunk(&arena, 0, 2, &list, &mut |_, _| {
            count += 1;
            true
        });
        assert_eq!(count, 2);
    }
}
