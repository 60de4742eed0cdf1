//! Payload memory: chunks of 1 KiB in the arena, handed out by number, and the byte lists that are made of them.
//!
//! Which chunks are free is private knowledge, rebuilt from the slots' lists (`walk`); those that were never taken stand behind a
//! mark in the arena. A list is head, tail, count and tail
//! length; whatever stands beyond those in a chunk is meaningless, so appending needs no undo log. What a transaction frees
//! can be taken again only when it has ended: until then a rollback could bring back the list that it was in. And nothing
//! that an earlier list may hold is changed in place.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::slot::NONE;

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 1024;
/// Of these, for payload.
pub(crate) const ROOM: usize = CHUNK - 8;

/// One chunk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Chunk {
    /// Next of the list; meaningless in the last.
    next: u32,
    /// Bytes in use; meaningless in the last.
    used: u16,
    reserved: u16,
    bytes: [u8; ROOM],
}

impl Chunk {
    /// Next of the list; meaningless in the last.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }
}

/// A position in a list: a chunk and an offset in its payload. Six bytes, since a slot has four of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub(crate) struct Place {
    chunk: u32,
    offset: u16,
}

impl Place {
    pub(crate) const NOWHERE: Place = Place { chunk: NONE, offset: 0 };

    fn at(chunk: u32, offset: usize) -> Self {
        Self { chunk, offset: offset as u16 }
    }

    pub(crate) fn is_nowhere(&self) -> bool {
        self.chunk == NONE
    }

    pub(crate) fn forward(&mut self, n: usize) {
        self.offset += n as u16;
    }
}

/// A list of chunks that holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct List {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) count: u32,
    /// Bytes in use in the tail chunk.
    pub(crate) tail_len: u16,
    reserved: u16,
}

/// The chunks of one arena.
pub(crate) struct Chunks {
    chunks: &'static mut [Chunk],
    /// First those that can be taken, last freed last, then those that the open transaction has freed.
    free: Vec<u32>,
    takeable: usize,
    /// Chunks from here on were never taken. The same stands in the arena.
    fresh: u32,
    fresh_mark: &'static AtomicU64,
    /// Of those that a predecessor has taken: which a list was found to have, a bit each. They keep it when they are freed.
    claimed: Vec<u64>,
    /// The next word of these that [`Chunks::sweep`] looks at.
    swept: usize,
}

impl Chunks {
    /// Those that a predecessor may have taken are not free until it is known which are.
    pub(crate) fn new(chunks: &'static mut [Chunk], fresh_mark: &'static AtomicU64) -> Self {
        let fresh = fresh_mark.load(Relaxed).min(chunks.len() as u64) as u32;
        let free = Vec::with_capacity(chunks.len());
        let mut claimed = vec![0; (fresh as usize).div_ceil(64)];
        if !fresh.is_multiple_of(64) {
            // Those behind the mark are nobody's yet.
            claimed[fresh as usize / 64] = u64::MAX << (fresh % 64);
        }
        Self { chunks, free, takeable: 0, fresh, fresh_mark, claimed, swept: 0 }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.chunks.as_bytes()
    }

    /// The mark as it stands in the arena.
    pub(crate) fn mark_word(&self) -> u64 {
        self.fresh_mark.load(Relaxed)
    }

    /// How many can be taken now.
    pub(crate) fn available(&self) -> usize {
        self.takeable + self.never_taken()
    }

    /// How many are in no list.
    pub(crate) fn unused(&self) -> usize {
        self.free.len() + self.never_taken()
    }

    fn never_taken(&self) -> usize {
        self.chunks.len() - self.fresh as usize
    }

    /// The transaction has ended: what it freed can be taken.
    pub(crate) fn settle(&mut self) {
        self.takeable = self.free.len();
    }

    /// Once all lists are marked: makes those free that no list has, `words` times 64 of them at most; true when that was all.
    pub(crate) fn sweep(&mut self, words: usize) -> bool {
        let end = self.claimed.len().min(self.swept + words);
        for word in self.swept..end {
            let mut unclaimed = !self.claimed[word];
            while unclaimed != 0 {
                let id = word as u32 * 64 + unclaimed.trailing_zeros();
                unclaimed &= unclaimed - 1;
                self.find_free(id);
            }
        }
        self.swept = end;
        end == self.claimed.len()
    }

    /// One that can be taken at once.
    fn find_free(&mut self, id: u32) {
        self.free.push(id);
        let last = self.free.len() - 1;
        self.free.swap(self.takeable, last);
        self.takeable += 1;
    }

    /// Whether a list was found to have it, or nobody ever had it.
    fn is_claimed(&self, id: u32) -> bool {
        id >= self.fresh || self.claimed.get(id as usize / 64).is_none_or(|word| word >> (id % 64) & 1 != 0)
    }

    fn claim(&mut self, id: u32, claimed: bool) {
        let word = &mut self.claimed[id as usize / 64];
        *word = *word & !(1 << (id % 64)) | u64::from(claimed) << (id % 64);
    }

    fn take(&mut self) -> Option<u32> {
        let Some(takeable) = self.takeable.checked_sub(1) else {
            let id = self.fresh;
            if self.never_taken() == 0 {
                return None;
            }
            self.fresh += 1;
            self.fresh_mark.store(self.fresh.into(), Release);
            return Some(id);
        };
        self.takeable = takeable;
        // A freed one takes its place, which belongs to those from here on.
        Some(self.free.swap_remove(takeable))
    }

    fn give(&mut self, id: u32) {
        self.free.push(id);
    }
}

impl List {
    pub(crate) const EMPTY: List = List { head: NONE, tail: NONE, count: 0, tail_len: 0, reserved: 0 };

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that fit without another chunk.
    fn spare(&self) -> usize {
        if self.is_empty() { 0 } else { ROOM - self.tail_len as usize }
    }

    /// Chunks that must be free to append a header of `head` bytes (in one piece) and then `len` bytes.
    pub(crate) fn needs(&self, head: usize, len: usize) -> usize {
        let spare = self.spare();
        if spare >= head {
            (len + head).saturating_sub(spare).div_ceil(ROOM)
        } else {
            (len + head).div_ceil(ROOM)
        }
    }

    /// Appends a header that does not cross a chunk's end; the caller has asked [`List::needs`].
    pub(crate) fn push_header(&mut self, chunks: &mut Chunks, header: &[u8]) -> Place {
        if self.spare() < header.len() {
            self.grow(chunks);
        }
        let place = Place::at(self.tail, self.tail_len as usize);
        self.push(chunks, header);
        place
    }

    /// Appends bytes; the caller has asked [`List::needs`].
    pub(crate) fn push(&mut self, chunks: &mut Chunks, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.spare() == 0 {
                self.grow(chunks);
            }
            let n = bytes.len().min(self.spare());
            let at = self.tail_len as usize;
            chunks.chunks[self.tail as usize].bytes[at..at + n].copy_from_slice(&bytes[..n]);
            self.tail_len += n as u16;
            bytes = &bytes[n..];
        }
    }

    /// Overwrites bytes of a header that [`List::push_header`] put at a place.
    pub(crate) fn patch(&self, chunks: &mut Chunks, place: Place, offset: usize, bytes: &[u8]) {
        let at = place.offset as usize + offset;
        chunks.chunks[place.chunk as usize].bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn grow(&mut self, chunks: &mut Chunks) {
        let id = chunks.take().expect("the caller made sure that chunks are free");
        if self.is_empty() {
            self.head = id;
        } else {
            let tail = &mut chunks.chunks[self.tail as usize];
            tail.used = self.tail_len;
            tail.next = id;
        }
        self.tail = id;
        self.tail_len = 0;
        self.count += 1;
    }

    /// Bytes in use in one of its chunks.
    #[inline]
    fn used(&self, chunks: &Chunks, chunk: u32) -> usize {
        let used = if chunk == self.tail { self.tail_len } else { chunks.chunks[chunk as usize].used };
        (used as usize).min(ROOM)
    }

    pub(crate) fn start(&self) -> Place {
        if self.is_empty() { Place::NOWHERE } else { Place::at(self.head, 0) }
    }

    /// The bytes from a place to the end of its chunk; at the end of a chunk, those of the next. Empty at the list's end.
    #[inline]
    pub(crate) fn bytes_at<'c>(&self, chunks: &'c Chunks, place: Place) -> (Place, &'c [u8]) {
        if place.is_nowhere() {
            return (place, &[]);
        }
        let (place, end) = self.span_at(chunks, place);
        (place, &chunks.chunks[place.chunk as usize].bytes[place.offset as usize..end])
    }

    /// The same bytes as a place and the offset of their end.
    #[inline]
    fn span_at(&self, chunks: &Chunks, mut place: Place) -> (Place, usize) {
        let mut end = self.used(chunks, place.chunk);
        if place.offset as usize >= end {
            if place.chunk != self.tail {
                place = Place::at(chunks.chunks[place.chunk as usize].next, 0);
                end = self.used(chunks, place.chunk);
            }
            place.offset = place.offset.min(end as u16);
        }
        (place, end)
    }

    /// Moves a place over `n` bytes. It stops at the end of a chunk rather than at the start of the next.
    pub(crate) fn skip(&self, chunks: &Chunks, place: Place, mut n: usize) -> Place {
        let mut place = place;
        while n > 0 && !place.is_nowhere() {
            let (at, end) = self.span_at(chunks, place);
            let step = n.min(end - at.offset as usize);
            if step == 0 {
                break;
            }
            place = at;
            place.forward(step);
            n -= step;
        }
        place
    }

    /// The part of the slices from `place` on that makes `n` bytes.
    pub(crate) fn slices<'c>(&self, chunks: &'c Chunks, place: Place, n: usize) -> Slices<'c> {
        Slices { list: *self, chunks, place, left: n }
    }

    /// Frees the chunks before the one of `place`.
    pub(crate) fn release_before(&mut self, chunks: &mut Chunks, place: Place) {
        while self.head != place.chunk && self.count > 1 {
            let head = self.head;
            self.head = chunks.chunks[head as usize].next;
            self.count -= 1;
            chunks.give(head);
        }
    }

    /// Ends the list at `end`. It is made anew from copies, since what is appended next must not lie where an earlier list has
    /// bytes. `places` before the end stand at the same bytes afterwards. False, and nothing changed, when too few chunks
    /// are free.
    pub(crate) fn cut(&mut self, chunks: &mut Chunks, end: Place, mut places: [&mut Place; 3]) -> bool {
        let (mut kept, mut from) = (1, self.head);
        while from != end.chunk {
            from = chunks.chunks[from as usize].next;
            kept += 1;
        }
        if chunks.available() < kept {
            return false;
        }
        let mut copy = List::EMPTY;
        from = self.head;
        for left in (0..kept).rev() {
            copy.grow(chunks);
            let used = if left == 0 { end.offset as usize } else { self.used(chunks, from) };
            let bytes = chunks.chunks[from as usize].bytes;
            chunks.chunks[copy.tail as usize].bytes[..used].copy_from_slice(&bytes[..used]);
            copy.tail_len = used as u16;
            for place in &mut places {
                if place.chunk == from {
                    place.chunk = copy.tail;
                }
            }
            from = chunks.chunks[from as usize].next;
        }
        self.clear(chunks);
        *self = copy;
        true
    }

    /// Frees everything.
    pub(crate) fn clear(&mut self, chunks: &mut Chunks) {
        let mut at = self.head;
        for _ in 0..self.count {
            let next = chunks.chunks[at as usize].next;
            chunks.give(at);
            at = next;
        }
        *self = List::EMPTY;
    }

    /// After a restart: marks the list's chunks as claimed; false, and nothing marked, when it is not a proper list of
    /// chunks that nobody else has.
    pub(crate) fn mark(&self, chunks: &mut Chunks) -> bool {
        if self.is_empty() {
            return *self == List::EMPTY;
        }
        let (mut at, mut marked) = (self.head, 0);
        while marked < self.count && !chunks.is_claimed(at) {
            chunks.claim(at, true);
            marked += 1;
            if marked == self.count && at == self.tail && self.tail_len as usize <= ROOM {
                return true;
            }
            at = chunks.chunks[at as usize].next;
        }
        self.unmark(chunks, marked);
        false
    }

    /// Takes the marks of its first chunks back.
    pub(crate) fn unmark(&self, chunks: &mut Chunks, count: u32) {
        let mut at = self.head;
        for _ in 0..count {
            chunks.claim(at, false);
            at = chunks.chunks[at as usize].next;
        }
    }

    /// Whether it is a proper list of chunks that are not marked, which they are then: with `used` of a size for all chunks.
    pub(crate) fn check(&self, chunks: &Chunks, used: &mut [bool]) -> bool {
        let (mut at, mut last) = (self.head, NONE);
        for _ in 0..self.count {
            let Some(used) = used.get_mut(at as usize).filter(|used| !**used) else { return false };
            *used = true;
            last = at;
            at = chunks.chunks[at as usize].next;
        }
        last == self.tail && self.tail_len as usize <= ROOM
    }
}

/// See [`List::slices`].
pub(crate) struct Slices<'c> {
    list: List,
    chunks: &'c Chunks,
    place: Place,
    left: usize,
}

impl<'c> Iterator for Slices<'c> {
    type Item = &'c [u8];

    fn next(&mut self) -> Option<&'c [u8]> {
        if self.left == 0 {
            return None;
        }
        let (place, bytes) = self.list.bytes_at(self.chunks, self.place);
        let n = bytes.len().min(self.left);
        if n == 0 {
            return None;
        }
        self.place = place;
        self.place.forward(n);
        self.left -= n;
        Some(&bytes[..n])
    }
}

#[cfg(test)]
pub(crate) fn chunks_for_tests(n: usize) -> Chunks {
    use zerocopy::FromZeros;
    Chunks::new(Vec::leak(Chunk::new_vec_zeroed(n).unwrap()), Box::leak(Box::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_went_in_and_chunks_too() {
        let mut chunks = chunks_for_tests(8);
        let mut list = List::EMPTY;
        let text: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        assert_eq!(list.needs(0, text.len()), 3);
        list.push(&mut chunks, &text[..1016]);
        assert_eq!(list.needs(24, 0), 1);
        list.push(&mut chunks, &text[1016..]);
        let got: Vec<u8> = list.slices(&chunks, list.start(), 3000).flatten().copied().collect();
        assert_eq!(got, text);
        let middle = list.skip(&chunks, list.start(), 1016);
        assert_eq!(list.slices(&chunks, middle, 5).flatten().copied().collect::<Vec<_>>(), &text[1016..1021]);
        let later = list.skip(&chunks, list.start(), 1500);
        list.release_before(&mut chunks, later);
        assert_eq!((list.count, chunks.available(), chunks.unused()), (2, 5, 6), "one was freed just now");
        chunks.settle();
        assert_eq!(chunks.available(), 6);
        let before = list;
        let (mut at, mut nowhere, mut end) = (list.start(), Place::NOWHERE, later);
        assert!(list.cut(&mut chunks, later, [&mut at, &mut nowhere, &mut end]));
        assert_eq!((list.count, list.tail_len, chunks.available(), chunks.unused()), (1, 484, 5, 7));
        assert_eq!((at, { end.chunk }, nowhere), (list.start(), list.head, Place::NOWHERE));
        list.push(&mut chunks, &[7; 600]);
        let whole: Vec<u8> = before.slices(&chunks, before.start(), 3000).flatten().copied().collect();
        assert_eq!(whole, &text[1016..], "what was there before is untouched");
        chunks.settle();
        list.clear(&mut chunks);
        chunks.settle();
        assert_eq!((list, chunks.available()), (List::EMPTY, 8));
    }
}
