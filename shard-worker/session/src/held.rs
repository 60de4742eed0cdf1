//! The stream that a session holds for the target: everything from the first unacknowledged byte on, in order, without
//! holes and without anything twice. It is cut into pieces, one for each turn, each with a header that says what opens
//! its gate; where a replay is to be repeatable a turn has one for each write of the client's (what ends with PSH), so that
//! segments end where they ended online, whoever was faster. The client's FIN or RST is the last piece, without bytes and with a
//! gate of its own.
//!
//! Two places move through it: `head` (acknowledged so far) and `cursor` (sent so far). Both stop at the end of a piece
//! until the next one is needed. The length of the last piece stands in the slot, not in its header, so that the
//! piece can grow while a rollback needs no more than the slot's image.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::chunks::{Chunks, List, Place, Slices};
use crate::slot::{Slot, is};
use crate::wide::Wide;

/// Header of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Piece {
    /// Capture time of its first segment.
    pub(crate) time_us: u64,
    /// Payload bytes.
    pub(crate) len: u32,
    /// Time since the client's data before it; 0 for the first.
    pub(crate) gap_us: u32,
    /// Acknowledgement number of the client's that the bytes came with, see `turns`.
    pub(crate) gate: Wide,
    /// See [`piece`].
    pub(crate) flags: u16,
}

/// Bits of [`Piece::flags`].
pub(crate) mod piece {
    /// Begins a turn.
    pub(crate) const NEW_TURN: u16 = 1;
    /// Cannot be an answer to an answer (row 2).
    pub(crate) const OVERLAPPED: u16 = 2;
    /// Requests before it were given up: its acknowledgement number covers answers that the target will never give.
    pub(crate) const AFTER_GAP: u16 = 4;
    /// The client's FIN.
    pub(crate) const FIN: u16 = 8;
    /// The client's RST.
    pub(crate) const RST: u16 = 16;
    /// Either.
    pub(crate) const END: u16 = FIN | RST;
}

/// Bytes of a header.
const HEADER: usize = size_of::<Piece>();

/// No chunk is free.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoChunk;

/// Begins a piece; `piece.len` is ignored.
pub(crate) fn begin(slot: &mut Slot, chunks: &mut Chunks, piece: &Piece, len: usize) -> Result<(), NoChunk> {
    if slot.held.needs(HEADER, len) > chunks.available() {
        return Err(NoChunk);
    }
    if !slot.tail_piece.is_nowhere() && !slot.is(is::HEAD_IN_TAIL) {
        finish_tail(slot, chunks);
    }
    let place = slot.held.push_header(chunks, piece.as_bytes());
    if slot.head.is_nowhere() {
        (slot.head, slot.cursor) = (place, place);
        (slot.head_left, slot.cursor_left) = (0, 0);
    }
    slot.tail_piece = place;
    slot.tail_piece_len = 0;
    slot.unset(is::CURSOR_IN_TAIL | is::HEAD_IN_TAIL);
    Ok(())
}

/// Whether the last piece can grow.
pub(crate) fn can_grow(slot: &Slot) -> bool {
    !slot.tail_piece.is_nowhere() && !slot.is(is::END_HELD)
}

/// Adds bytes to the last piece.
pub(crate) fn grow(slot: &mut Slot, chunks: &mut Chunks, bytes: &[u8]) -> Result<(), NoChunk> {
    if slot.held.needs(0, bytes.len()) > chunks.available() {
        return Err(NoChunk);
    }
    slot.held.push(chunks, bytes);
    let n = bytes.len() as u32;
    slot.held_len += n;
    slot.tail_piece_len += n;
    if slot.is(is::CURSOR_IN_TAIL) {
        slot.cursor_left += n;
    }
    if slot.is(is::HEAD_IN_TAIL) {
        slot.head_left += n;
    }
    Ok(())
}

/// Writes the last piece's length to its header, before another piece becomes the last. Not once the head is in that
/// piece: nobody will read the header again, and its chunk may have gone back.
fn finish_tail(slot: &Slot, chunks: &mut Chunks) {
    slot.held.patch(chunks, slot.tail_piece, LEN_OFFSET, &slot.tail_piece_len.to_ne_bytes());
}

/// Where `len` stands in a header.
const LEN_OFFSET: usize = std::mem::offset_of!(Piece, len);

/// The header at a place that stands between pieces, and where its bytes begin; `None` at the end.
fn header_at(slot: &Slot, chunks: &Chunks, place: Place) -> Option<(Piece, Place, bool)> {
    let (place, bytes) = slot.held.bytes_at(chunks, place);
    let mut piece = Piece::read_from_prefix(bytes).ok()?.0;
    let last = place == slot.tail_piece;
    if last {
        piece.len = slot.tail_piece_len;
    }
    let mut after = place;
    after.forward(HEADER);
    Some((piece, after, last))
}

/// The piece that is next to be sent, when the cursor stands between pieces.
pub(crate) fn next_piece(slot: &Slot, chunks: &Chunks) -> Option<Piece> {
    if slot.cursor_left > 0 { None } else { header_at(slot, chunks, slot.cursor).map(|(piece, ..)| piece) }
}

/// Moves the cursor into the piece that [`next_piece`] showed.
pub(crate) fn enter_piece(slot: &mut Slot, chunks: &Chunks) {
    let Some((piece, after, last)) = header_at(slot, chunks, slot.cursor) else { return };
    slot.cursor = after;
    slot.cursor_left = piece.len;
    slot.put(is::CURSOR_IN_TAIL, last);
}

/// The next `n` bytes of the piece at the cursor.
pub(crate) fn at_cursor<'c>(slot: &Slot, chunks: &'c Chunks, n: u32) -> Slices<'c> {
    slot.held.slices(chunks, slot.cursor, n as usize)
}

/// Moves the cursor over `n` bytes of its piece.
pub(crate) fn advance(slot: &mut Slot, chunks: &Chunks, n: u32) {
    slot.cursor = slot.held.skip(chunks, slot.cursor, n as usize);
    slot.cursor_left -= n;
}

/// Everything counts as unsent again.
pub(crate) fn rewind(slot: &mut Slot) {
    slot.cursor = slot.head;
    slot.cursor_left = slot.head_left;
    slot.put(is::CURSOR_IN_TAIL, slot.is(is::HEAD_IN_TAIL));
    slot.unset(is::RELEASED);
}

/// Removes `n` acknowledged bytes from the front.
pub(crate) fn acknowledge(slot: &mut Slot, chunks: &mut Chunks, mut n: u32) {
    while n > 0 {
        if slot.head_left == 0 {
            let Some((piece, after, last)) = header_at(slot, chunks, slot.head) else { break };
            slot.head = after;
            slot.head_left = piece.len;
            slot.put(is::HEAD_IN_TAIL, last);
            if piece.flags & piece::NEW_TURN != 0 {
                slot.unset(is::HEAD_RESENT);
            }
            continue;
        }
        let step = n.min(slot.head_left);
        take_from_head(slot, chunks, step);
        n -= step;
    }
    reset_when_empty(slot, chunks);
}

fn take_from_head(slot: &mut Slot, chunks: &mut Chunks, n: u32) {
    slot.head = slot.held.skip(chunks, slot.head, n as usize);
    slot.head_left -= n;
    slot.held_len -= n;
    let head = slot.head;
    slot.held.release_before(chunks, head);
}

/// With no byte held and no piece ahead of the cursor the list goes back.
pub(crate) fn reset_when_empty(slot: &mut Slot, chunks: &mut Chunks) {
    if slot.held_len == 0
        && !slot.held.is_empty()
        && slot.cursor_left == 0
        && header_at(slot, chunks, slot.cursor).is_none()
    {
        clear(slot, chunks);
    }
}

/// Drops everything that is held, the end included.
pub(crate) fn clear(slot: &mut Slot, chunks: &mut Chunks) {
    slot.held.clear(chunks);
    slot.held_len = 0;
    (slot.head, slot.cursor, slot.tail_piece) = (Place::NOWHERE, Place::NOWHERE, Place::NOWHERE);
    (slot.head_left, slot.cursor_left, slot.tail_piece_len) = (0, 0, 0);
    slot.unset(is::CURSOR_IN_TAIL | is::HEAD_IN_TAIL | is::RELEASED);
}

/// Whether the first held bytes begin a turn, none of which was acknowledged.
pub(crate) fn head_is_whole(slot: &Slot, chunks: &Chunks) -> bool {
    slot.head_left == 0
        && header_at(slot, chunks, slot.head)
            .is_some_and(|(piece, ..)| piece.flags & (piece::NEW_TURN | piece::END) != 0)
}

/// Drops the turn at the front, or what is left of it, and rewinds the cursor. Returns its bytes, and whether it was
/// the last one, so that more of it may still be captured.
pub(crate) fn drop_head_turn(slot: &mut Slot, chunks: &mut Chunks) -> (u32, bool) {
    let mut dropped = slot.head_left;
    let mut open_end = slot.is(is::HEAD_IN_TAIL);
    let mut whole = head_is_whole(slot, chunks);
    take_from_head_to_end_of_piece(slot, chunks);
    while let Some((piece, after, last)) = header_at(slot, chunks, slot.head) {
        let begins = piece.flags & piece::NEW_TURN != 0 && !std::mem::take(&mut whole);
        if begins || piece.flags & piece::END != 0 {
            open_end = false;
            break;
        }
        dropped += piece.len;
        slot.head = after;
        slot.head_left = piece.len;
        slot.put(is::HEAD_IN_TAIL, last);
        open_end = last;
        take_from_head_to_end_of_piece(slot, chunks);
    }
    slot.unset(is::HEAD_RESENT);
    rewind(slot);
    reset_when_empty(slot, chunks);
    (dropped, open_end && !slot.is(is::END_HELD))
}

fn take_from_head_to_end_of_piece(slot: &mut Slot, chunks: &mut Chunks) {
    let n = slot.head_left;
    if n > 0 {
        take_from_head(slot, chunks, n);
    }
}

/// Whether the piece that is being sent, or is next, is the last one.
pub(crate) fn sends_tail(slot: &Slot, chunks: &Chunks) -> bool {
    if slot.cursor_left > 0 {
        return slot.is(is::CURSOR_IN_TAIL);
    }
    header_at(slot, chunks, slot.cursor).is_some_and(|(.., last)| last)
}

/// The first piece of the last turn that lies wholly ahead of the cursor: where its header is, whether it begins the turn, and the
/// bytes from there on.
fn ahead_of_cursor(slot: &Slot, chunks: &Chunks) -> Option<(Place, bool, u32)> {
    let mut found: Option<(Place, bool, u32)> = None;
    let mut at = slot.held.skip(chunks, slot.cursor, slot.cursor_left as usize);
    while let Some((piece, after, _)) = header_at(slot, chunks, at) {
        let (place, _) = slot.held.bytes_at(chunks, at);
        let begins = piece.flags & piece::NEW_TURN != 0;
        found = match found {
            Some((first, whole, bytes)) if !begins => Some((first, whole, bytes + piece.len)),
            _ => Some((place, begins, piece.len)),
        };
        at = slot.held.skip(chunks, after, piece.len as usize);
    }
    found
}

/// Drops the bytes of the last turn that were never sent; returns how many, and whether some of the turn were sent. Of a turn in
/// several pieces the one that is being sent goes out whole.
pub(crate) fn drop_unsent_tail(slot: &mut Slot, chunks: &mut Chunks) -> Result<(u32, bool), NoChunk> {
    if !can_grow(slot) {
        return Ok((0, false));
    }
    if let Some((mut place, whole, unsent)) = ahead_of_cursor(slot, chunks) {
        let end = slot.held.skip(chunks, place, HEADER);
        if !slot.held.cut(chunks, end, [&mut slot.head, &mut slot.cursor, &mut place]) {
            return Err(NoChunk);
        }
        (slot.tail_piece, slot.tail_piece_len) = (place, 0);
        slot.held_len -= unsent;
        reset_when_empty(slot, chunks);
        return Ok((unsent, !whole));
    }
    let unsent = slot.cursor_left;
    let keep = slot.tail_piece_len - unsent;
    let end = if slot.is(is::HEAD_IN_TAIL) {
        slot.held.skip(chunks, slot.head, (slot.head_left - unsent) as usize)
    } else {
        slot.held.skip(chunks, slot.tail_piece, HEADER + keep as usize)
    };
    if !slot.held.cut(chunks, end, [&mut slot.head, &mut slot.cursor, &mut slot.tail_piece]) {
        return Err(NoChunk);
    }
    slot.tail_piece_len = keep;
    slot.held_len -= unsent;
    slot.cursor_left = 0;
    if slot.is(is::HEAD_IN_TAIL) {
        slot.head_left -= unsent;
    }
    reset_when_empty(slot, chunks);
    Ok((unsent, true))
}

/// The bytes from `offset` after the first unacknowledged one, at most `n`, headers left out, as (length, slices).
pub(crate) fn from_head<'c>(slot: &Slot, chunks: &'c Chunks, offset: u32, n: u32) -> Walk<'c> {
    let mut walk = Walk {
        list: slot.held,
        chunks,
        place: slot.head,
        piece_left: slot.head_left,
        left: u32::MAX,
        tail_piece: slot.tail_piece,
        tail_piece_len: slot.tail_piece_len,
    };
    let mut skip = offset;
    while skip > 0 {
        let Some(step) = walk.step(skip) else { break };
        skip -= step.len() as u32;
    }
    walk.left = n;
    walk
}

/// See [`from_head`].
pub(crate) struct Walk<'c> {
    list: List,
    chunks: &'c Chunks,
    place: Place,
    piece_left: u32,
    left: u32,
    tail_piece: Place,
    tail_piece_len: u32,
}

impl<'c> Walk<'c> {
    fn step(&mut self, max: u32) -> Option<&'c [u8]> {
        while self.piece_left == 0 {
            let (place, bytes) = self.list.bytes_at(self.chunks, self.place);
            let piece = Piece::read_from_prefix(bytes).ok()?.0;
            self.piece_left = if place == self.tail_piece { self.tail_piece_len } else { piece.len };
            self.place = place;
            self.place.forward(HEADER);
        }
        let (place, bytes) = self.list.bytes_at(self.chunks, self.place);
        let n = (bytes.len() as u32).min(max).min(self.piece_left) as usize;
        if n == 0 {
            return None;
        }
        self.place = place;
        self.place.forward(n);
        self.piece_left -= n as u32;
        Some(&bytes[..n])
    }
}

impl<'c> Iterator for Walk<'c> {
    type Item = &'c [u8];

    fn next(&mut self) -> Option<&'c [u8]> {
        if self.left == 0 {
            return None;
        }
        let bytes = self.step(self.left)?;
        self.left -= bytes.len() as u32;
        Some(bytes)
    }
}

/// Bytes from the first unacknowledged one to the end, counted piece by piece (for checks).
pub(crate) fn count_bytes(slot: &Slot, chunks: &Chunks) -> u32 {
    from_head(slot, chunks, 0, u32::MAX).map(|bytes| bytes.len() as u32).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks::chunks_for_tests;
    use flow::Seq;

    fn turn(gate: u32) -> Piece {
        Piece { time_us: 0, len: 0, gate: Wide::first(Seq(gate)), gap_us: 0, flags: piece::NEW_TURN }
    }

    fn put(slot: &mut Slot, chunks: &mut Chunks, gate: u32, bytes: &[u8]) {
        begin(slot, chunks, &turn(gate), bytes.len()).unwrap();
        grow(slot, chunks, bytes).unwrap();
    }

    fn text(slot: &Slot, chunks: &Chunks, offset: u32) -> Vec<u8> {
        from_head(slot, chunks, offset, u32::MAX).flatten().copied().collect()
    }

    fn send(slot: &mut Slot, chunks: &Chunks, n: u32) -> Vec<u8> {
        if slot.cursor_left == 0 {
            enter_piece(slot, chunks);
        }
        let got = at_cursor(slot, chunks, n).flatten().copied().collect();
        advance(slot, chunks, n);
        got
    }

    #[test]
    fn a_piece_grows_after_it_was_sent() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(4));
        put(&mut slot, &mut chunks, 1, b"abc");
        assert_eq!(send(&mut slot, &chunks, 3), b"abc");
        grow(&mut slot, &mut chunks, b"def").unwrap();
        acknowledge(&mut slot, &mut chunks, 2);
        assert_eq!(text(&slot, &chunks, 0), b"cdef");
        assert_eq!(send(&mut slot, &chunks, 3), b"def");
        acknowledge(&mut slot, &mut chunks, 4);
        assert!(slot.held.is_empty() && chunks.unused() == 4);
    }

    #[test]
    fn headers_never_show_in_the_bytes() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(16));
        let mut all = Vec::new();
        for gate in 1..40 {
            let bytes: Vec<u8> = (0..gate * 7).map(|i| (i + gate) as u8).collect();
            put(&mut slot, &mut chunks, gate, &bytes);
            all.extend(bytes);
        }
        for offset in [0, 1, 6, 7, 500, 1016, 3000] {
            assert_eq!(text(&slot, &chunks, offset), &all[offset as usize..]);
        }
        assert_eq!(next_piece(&slot, &chunks).unwrap().len, 7);
        for gate in 1..40u32 {
            assert_eq!(next_piece(&slot, &chunks).unwrap().gate, Wide::first(Seq(gate)));
            send(&mut slot, &chunks, gate * 7);
        }
        acknowledge(&mut slot, &mut chunks, 1000);
        assert_eq!(text(&slot, &chunks, 0), &all[1000..]);
        acknowledge(&mut slot, &mut chunks, all.len() as u32 - 1000);
        assert_eq!(chunks.unused(), 16);
    }

    #[test]
    fn a_reconnect_drops_the_touched_turn_and_sends_the_others_again() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(8));
        put(&mut slot, &mut chunks, 1, b"first");
        put(&mut slot, &mut chunks, 2, b"second");
        send(&mut slot, &chunks, 5);
        send(&mut slot, &chunks, 6);
        acknowledge(&mut slot, &mut chunks, 2);
        assert!(!head_is_whole(&slot, &chunks));
        assert_eq!(drop_head_turn(&mut slot, &mut chunks), (3, false));
        assert!(head_is_whole(&slot, &chunks));
        assert_eq!(send(&mut slot, &chunks, 6), b"second");
        rewind(&mut slot);
        assert_eq!(drop_head_turn(&mut slot, &mut chunks), (6, true));
        assert_eq!(chunks.unused(), 8);
    }

    #[test]
    fn only_what_was_not_sent_is_dropped_at_the_tail() {
        let (mut slot, mut chunks) = (Slot::empty(), chunks_for_tests(8));
        put(&mut slot, &mut chunks, 1, b"one");
        put(&mut slot, &mut chunks, 2, &[7; 3000]);
        send(&mut slot, &chunks, 3);
        send(&mut slot, &chunks, 1200);
        assert_eq!(drop_unsent_tail(&mut slot, &mut chunks), Ok((1800, true)));
        put(&mut slot, &mut chunks, 3, b"three");
        let got = text(&slot, &chunks, 0);
        assert_eq!((got.len(), &got[1203..]), (1208, &b"three"[..]));
        assert_eq!(drop_unsent_tail(&mut slot, &mut chunks), Ok((5, false)));
        acknowledge(&mut slot, &mut chunks, 1203);
        // The emptied piece still has its gate.
        assert_eq!(next_piece(&slot, &chunks).unwrap().len, 0);
        enter_piece(&mut slot, &chunks);
        reset_when_empty(&mut slot, &mut chunks);
        assert_eq!(chunks.unused(), 8);
    }
}
