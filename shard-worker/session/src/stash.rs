//! Captured segments that lie behind a hole, until the hole is filled or given up. Entries stand in the order of their
//! capture; one that continues the last one grows it. An entry whose bytes have all been moved on is simply passed over,
//! and the whole list goes back when no entry lies ahead any more: nothing is ever changed in place but what of the last entry the
//! slot knows. Each entry says where the next one stands: every segment behind a hole asks all of them, and megabytes may lie
//! between (in uploads with holes, walking over those was a fifth of a shard's work).

use flow::Seq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::chunks::{Chunks, Place};
use crate::held::NoChunk;
use crate::slot::Slot;

/// Entries at most: beyond that a hole is given up before its time.
pub(crate) const ENTRIES: u16 = 64;

/// Header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Entry {
    /// Capture time.
    pub(crate) time_us: u64,
    /// First byte, online numbering.
    pub(crate) seq: Seq,
    /// Bytes; of the last entry the slot knows.
    pub(crate) len: u32,
    /// Acknowledgement number it came with.
    pub(crate) gate: Seq,
    /// Where the next entry stands; meaningless in the last.
    next: Place,
    reserved: [u16; 3],
}

const HEADER: usize = size_of::<Entry>();
const LEN_OFFSET: usize = std::mem::offset_of!(Entry, len);
const NEXT_OFFSET: usize = std::mem::offset_of!(Entry, next);

/// Keeps a segment.
pub(crate) fn keep(
    slot: &mut Slot,
    chunks: &mut Chunks,
    time_us: u64,
    seq: Seq,
    gate: Seq,
    bytes: &[u8],
) -> Result<(), NoChunk> {
    let last = entry_at(slot, chunks, slot.rare().stash_last).map(|(entry, _)| entry);
    let grows = last.is_some_and(|last| last.seq + last.len == seq && last.gate == gate);
    let header = if grows { 0 } else { HEADER };
    if slot.rare().stash.needs(header, bytes.len()) > chunks.available() {
        return Err(NoChunk);
    }
    let rare = slot.rare_mut();
    if !grows {
        let entry = Entry { time_us, seq, len: 0, gate, next: Place::NOWHERE, reserved: [0; 3] };
        let place = rare.stash.push_header(chunks, entry.as_bytes());
        if last.is_some() {
            rare.stash.patch(chunks, rare.stash_last, LEN_OFFSET, &rare.stash_last_len.to_ne_bytes());
            rare.stash.patch(chunks, rare.stash_last, NEXT_OFFSET, place.as_bytes());
        }
        rare.stash_last = place;
        rare.stash_last_len = 0;
        rare.stash_count += 1;
    }
    rare.stash.push(chunks, bytes);
    rare.stash_last_len += bytes.len() as u32;
    rare.stash_bytes += bytes.len() as u32;
    Ok(())
}

fn entry_at(slot: &Slot, chunks: &Chunks, place: Place) -> Option<(Entry, Place)> {
    let (place, bytes) = slot.rare().stash.bytes_at(chunks, place);
    let mut entry = Entry::read_from_prefix(bytes).ok()?.0;
    if place == slot.rare().stash_last {
        entry.len = slot.rare().stash_last_len;
    }
    let mut after = place;
    after.forward(HEADER);
    Some((entry, after))
}

/// Every entry, with the place of its first byte.
fn entries<'c>(slot: &'c Slot, chunks: &'c Chunks) -> impl Iterator<Item = (Entry, Place)> + 'c {
    let mut at = slot.rare().stash.start();
    (0..slot.rare().stash_count).map_while(move |_| {
        let (entry, bytes) = entry_at(slot, chunks, at)?;
        at = entry.next;
        Some((entry, bytes))
    })
}

/// Every byte of every entry (for checks).
pub(crate) fn bytes<'c>(slot: &'c Slot, chunks: &'c Chunks) -> impl Iterator<Item = &'c [u8]> + 'c {
    entries(slot, chunks)
        .flat_map(|(entry, place)| slot.rare().stash.slices(chunks, place, entry.len as usize))
}

/// Entries with bytes that are still ahead.
fn ahead<'c>(slot: &'c Slot, chunks: &'c Chunks) -> impl Iterator<Item = (Entry, Place)> + 'c {
    let next = slot.online_next;
    entries(slot, chunks).filter(move |(entry, _)| (entry.seq + entry.len).after(next))
}

/// Whether an entry already has all of these bytes.
pub(crate) fn has(slot: &Slot, chunks: &Chunks, seq: Seq, len: u32) -> bool {
    slot.rare().stash_count > 0
        && entries(slot, chunks)
            .any(|(entry, _)| entry.seq.at_or_before(seq) && (entry.seq + entry.len).at_or_after(seq + len))
}

/// The lowest acknowledgement number among what is ahead: captured earlier than what now fills the hole before it.
pub(crate) fn lowest_gate(slot: &Slot, chunks: &Chunks) -> Option<Seq> {
    ahead(slot, chunks).map(|(entry, _)| entry.gate).reduce(Seq::min)
}

/// Whether `ack`, or something ahead, acknowledges more than the first of what is ahead did. `end`: the acknowledgement
/// number of the stream's end, where that is known and lies behind the hole too.
pub(crate) fn was_answered(slot: &Slot, chunks: &Chunks, ack: Option<Seq>, end: Option<Seq>) -> bool {
    let first = lowest_gate(slot, chunks).or(end);
    let last = ahead(slot, chunks).map(|(entry, _)| entry.gate).chain(ack).chain(end).reduce(Seq::max);
    matches!((first, last), (Some(first), Some(last)) if last.after(first))
}

/// When the first of what lies behind the hole was captured.
pub(crate) fn first_time_us(slot: &Slot, chunks: &Chunks) -> Option<u64> {
    ahead(slot, chunks).map(|(entry, _)| entry.time_us).min()
}

/// The first byte after the hole.
pub(crate) fn first_byte(slot: &Slot, chunks: &Chunks) -> Option<Seq> {
    ahead(slot, chunks).map(|(entry, _)| entry.seq).reduce(Seq::min)
}

/// Bytes that can move on: an entry that covers the next byte in order.
pub(crate) struct Ready {
    pub(crate) time_us: u64,
    pub(crate) gate: Seq,
    pub(crate) len: u32,
    place: Place,
}

/// The first entry that covers the next byte in order, up to where an earlier one begins: the first copy wins.
pub(crate) fn ready(slot: &Slot, chunks: &Chunks) -> Option<Ready> {
    let next = slot.online_next;
    let mut limit = None;
    let (entry, place) = ahead(slot, chunks).find(|(entry, _)| {
        let covers = entry.seq.at_or_before(next);
        if !covers {
            limit = Some(limit.map_or(entry.seq, |limit: Seq| limit.min(entry.seq)));
        }
        covers
    })?;
    let passed = next.since(entry.seq) as u32;
    let end = entry.seq + entry.len;
    Some(Ready {
        time_us: entry.time_us,
        gate: entry.gate,
        len: limit.map_or(end, |limit| limit.min(end)).since(next) as u32,
        place: slot.rare().stash.skip(chunks, place, passed as usize),
    })
}

/// The next bytes of what is ready, into `buffer`; returns how many.
pub(crate) fn read(slot: &Slot, chunks: &Chunks, ready: &mut Ready, buffer: &mut [u8]) -> usize {
    let want = buffer.len().min(ready.len as usize);
    let mut filled = 0;
    for bytes in slot.rare().stash.slices(chunks, ready.place, want) {
        buffer[filled..filled + bytes.len()].copy_from_slice(bytes);
        filled += bytes.len();
    }
    ready.place = slot.rare().stash.skip(chunks, ready.place, filled);
    ready.len -= filled as u32;
    filled
}

/// When nothing is ahead: frees the list and returns the bytes in it that were there twice.
pub(crate) fn reset_when_passed(slot: &mut Slot, chunks: &mut Chunks) -> u32 {
    if slot.rare().stash_count == 0 || ahead(slot, chunks).next().is_some() {
        return 0;
    }
    clear(slot, chunks)
}

/// Frees everything; returns the bytes that were not moved on.
pub(crate) fn clear(slot: &mut Slot, chunks: &mut Chunks) -> u32 {
    let Some(rare) = slot.had_rare() else { return 0 };
    rare.stash.clear(chunks);
    rare.stash_last = Place::NOWHERE;
    rare.stash_last_len = 0;
    rare.stash_count = 0;
    std::mem::take(&mut rare.stash_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks::chunks_for_tests;

    #[test]
    fn entries_come_out_in_stream_order_and_doubles_are_counted() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(8));
        slot.online_next = Seq(100);
        keep(&mut slot, &mut chunks, 1, Seq(120), Seq(7), &[2; 10]).unwrap();
        keep(&mut slot, &mut chunks, 2, Seq(105), Seq(6), &[1; 15]).unwrap();
        // Continues the entry before it, but its bytes came first in the one before that.
        keep(&mut slot, &mut chunks, 3, Seq(120), Seq(6), &[9; 5]).unwrap();
        assert!(has(&slot, &chunks, Seq(122), 8) && !has(&slot, &chunks, Seq(122), 9));
        assert_eq!(first_byte(&slot, &chunks), Some(Seq(105)));
        assert_eq!(lowest_gate(&slot, &chunks), Some(Seq(6)));
        assert!(ready(&slot, &chunks).is_none());
        slot.online_next = Seq(110);
        let mut buffer = [0; 64];
        let mut got = Vec::new();
        while let Some(mut ready) = ready(&slot, &chunks) {
            let n = read(&slot, &chunks, &mut ready, &mut buffer);
            got.extend_from_slice(&buffer[..n]);
            slot.online_next += n as u32;
            slot.rare_mut().stash_bytes -= n as u32;
        }
        assert_eq!(got, [vec![1; 10], vec![2; 10]].concat());
        assert_eq!(reset_when_passed(&mut slot, &mut chunks), 5 + 5);
        assert_eq!(chunks.unused(), 8);
    }

    #[test]
    fn entries_of_many_chunks_are_found_behind_each_other() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(64));
        slot.online_next = Seq(0);
        let lens = [5_000, 1, 3_000, 1_016, 2_032, 7];
        let mut seq = Seq(10);
        for (n, len) in lens.into_iter().enumerate() {
            keep(&mut slot, &mut chunks, n as u64, seq, Seq(7), &vec![n as u8; len]).unwrap();
            // The rest of a hole that another entry ended.
            seq += len as u32 + 1;
        }
        let found: Vec<_> =
            entries(&slot, &chunks).map(|(entry, _)| (entry.time_us, entry.len as usize)).collect();
        assert_eq!(found, (0..).zip(lens).collect::<Vec<_>>());
        let all: Vec<u8> = bytes(&slot, &chunks).flatten().copied().collect();
        assert_eq!(all, lens.iter().enumerate().flat_map(|(n, &len)| vec![n as u8; len]).collect::<Vec<_>>());
    }

    #[test]
    fn what_continues_the_last_entry_grows_it() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(8));
        slot.online_next = Seq(0);
        for i in 0..100 {
            keep(&mut slot, &mut chunks, 1, Seq(10 + i * 20), Seq(7), &[i as u8; 20]).unwrap();
        }
        assert_eq!(slot.rare().stash_count, 1);
        slot.online_next = Seq(10);
        assert_eq!(ready(&slot, &chunks).unwrap().len, 2000);
    }
}
