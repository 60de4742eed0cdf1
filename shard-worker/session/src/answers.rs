//! What a file's answers tell of a flow: the headers that the online service sent to the client, in the order of the file. Live
//! capture sees one direction only, and there nothing is kept.
//!
//! | told | used for |
//! |---|---|
//! | its SYN-ACK | where answers begin to be counted, though the client's first acknowledgements were missed |
//! | how far it had answered when the client sent | a turn that acknowledges no more than that is pipelined, for certain (row 2 of `turns`) |
//! | how far it has acknowledged | a hole that it has none of is the capture's, and nobody sends those bytes again; one that it has too is waited for |
//! | what it had read when it answered | a hole that ends there is made of whole turns |
//! | the first byte behind a turn | the online service's latency, beside the target's |
//! | all that it answered | when the last answer of a replayed connection is whole, though no later turn tells |
//!
//! Private memory: after a restart a flow counts as one of which no answer was seen, until the next one.

use flow::record::flag;
use flow::{Captured, Seq};
use zerocopy::{FromZeros, Immutable};

/// Bits of [`Entry::known`].
mod known {
    /// An answer was seen: `sent` and `acked` are valid.
    pub(super) const ANSWERS: u32 = 1;
    /// `sent_before` is.
    pub(super) const BEFORE: u32 = 2;
    /// `asked_to` and `asked_us` are: what was asked last is not answered yet.
    pub(super) const ASKED: u32 = 4;
    /// `read` is.
    pub(super) const READ: u32 = 8;
    /// `turn_at` is.
    pub(super) const TURN_AT: u32 = 16;
}

/// What is known of one session's flow. Zeros: nothing.
#[derive(Clone, Copy, Default, FromZeros, Immutable)]
#[repr(C)]
struct Entry {
    known: u32,
    /// One past the highest byte that the server has sent, its numbering.
    sent: Seq,
    /// The same when the client's last data was captured.
    sent_before: Seq,
    /// The highest number that the server has acknowledged.
    acked: Seq,
    /// The number that its last answer with data acknowledged.
    read: Seq,
    /// `read` when the hole came up that is waited for now.
    turn_at: Seq,
    /// One past the client's last byte, and when it was captured.
    asked_to: Seq,
    asked_us: u32,
}

/// One entry for each session; none without a file.
pub(crate) struct Answers {
    entries: Vec<Entry>,
}

impl Answers {
    /// For so many sessions: 0 without a file.
    pub(crate) fn new(sessions: u32) -> Self {
        let entries = <[Entry]>::new_box_zeroed_with_elems(sessions as usize);
        Self { entries: entries.expect("memory for 32 bytes a session").into_vec() }
    }

    fn get(&self, id: u32, known: u32) -> Option<&Entry> {
        self.entries.get(id as usize).filter(|entry| entry.known & known == known)
    }

    /// A session begins in this slot.
    pub(crate) fn forget(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(id as usize) {
            *entry = Entry::default();
        }
    }

    /// Takes an answer; says how long its client has waited for it, µs, when it is the first behind what was asked last.
    pub(crate) fn take(&mut self, id: u32, segment: &Captured) -> Option<u32> {
        let entry = self.entries.get_mut(id as usize)?;
        let tcp = &segment.tcp;
        if tcp.has(flag::RST) || !tcp.has(flag::ACK) {
            // A reset's numbers are what it was sent for, not what the server has.
            return None;
        }
        let end = tcp.seq + u32::from(tcp.has(flag::SYN)) + segment.cut_len;
        if entry.known & known::ANSWERS == 0 {
            (entry.sent, entry.acked) = (end, tcp.ack);
            entry.known |= known::ANSWERS;
        }
        (entry.sent, entry.acked) = (entry.sent.max(end), entry.acked.max(tcp.ack));
        if segment.cut_len == 0 {
            return None;
        }
        entry.read = tcp.ack;
        entry.known |= known::READ;
        if entry.known & known::ASKED == 0 || tcp.ack.before(entry.asked_to) {
            return None;
        }
        entry.known &= !known::ASKED;
        Some(segment.stamp_us.wrapping_sub(entry.asked_us))
    }

    /// The client's data from `start` up to `end` was captured in order, at `stamp_us`.
    pub(crate) fn asked(&mut self, id: u32, start: Seq, end: Seq, stamp_us: u32) {
        let Some(entry) = self.entries.get_mut(id as usize) else { return };
        if entry.known & known::ANSWERS != 0 && entry.acked.after(start) {
            // Answered already: the file has the two directions out of order, or had missed this data before.
            return self.lost_order(id);
        }
        (entry.asked_to, entry.asked_us) = (end, stamp_us);
        entry.known |= known::ASKED;
        if entry.known & known::ANSWERS != 0 {
            entry.sent_before = entry.sent;
            entry.known |= known::BEFORE;
        }
    }

    /// Data that was captured earlier is taken now: how far the server had answered then is not known any more.
    pub(crate) fn lost_order(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(id as usize) {
            entry.known &= !(known::BEFORE | known::ASKED);
        }
    }

    /// Whether client data that acknowledges `ack` was asked without a look at an answer to the data before it: what it had
    /// read was sent before that was captured. `None` where the file does not tell.
    pub(crate) fn is_pipelined(&self, id: u32, ack: Seq) -> Option<bool> {
        self.get(id, known::BEFORE).map(|entry| ack.at_or_before(entry.sent_before))
    }

    /// Whether the server has the client's byte `seq`.
    pub(crate) fn has_byte(&self, id: u32, seq: Seq) -> Option<bool> {
        self.get(id, known::ANSWERS).map(|entry| entry.acked.after(seq))
    }

    /// A hole came up: what had the server read when it answered last?
    pub(crate) fn hole(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(id as usize) else { return };
        entry.turn_at = entry.read;
        entry.known &= !known::TURN_AT;
        if entry.known & known::READ != 0 {
            entry.known |= known::TURN_AT;
        }
    }

    /// Whether a turn begins at `seq`, behind the hole: the server had answered all before it.
    pub(crate) fn turn_begins(&self, id: u32, seq: Seq) -> bool {
        self.get(id, known::TURN_AT).is_some_and(|entry| entry.turn_at == seq)
    }

    /// One past the last byte that the server has sent.
    pub(crate) fn sent(&self, id: u32) -> Option<Seq> {
        self.get(id, known::ANSWERS).map(|entry| entry.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::TcpFields;

    fn answer(seq: u32, ack: u32, len: u32, stamp_us: u32) -> Captured {
        let tcp = TcpFields { seq: Seq(seq), ack: Seq(ack), flags: flag::ACK, ..TcpFields::default() };
        Captured { tcp, cut_len: len, stamp_us, answer: 1, ..Captured::default() }
    }

    #[test]
    fn without_a_file_nothing_is_known_or_kept() {
        let mut answers = Answers::new(0);
        assert_eq!(answers.take(0, &answer(1, 1, 5, 9)), None);
        answers.asked(0, Seq(1), Seq(5), 1);
        assert_eq!((answers.is_pipelined(0, Seq(1)), answers.has_byte(0, Seq(1))), (None, None));
    }

    #[test]
    fn the_first_byte_behind_a_turn_is_its_latency_across_the_wrap_of_the_clock() {
        let mut answers = Answers::new(1);
        answers.asked(0, Seq(90), Seq(100), u32::MAX - 9);
        assert_eq!(answers.take(0, &answer(1, 100, 0, 5)), None, "an acknowledgement is no answer");
        assert_eq!(answers.take(0, &answer(1, 90, 10, 5)), None, "it had not read the request");
        assert_eq!(answers.take(0, &answer(11, 100, 10, 20)), Some(30));
        assert_eq!(answers.take(0, &answer(21, 100, 10, 50)), None, "not its first byte");
    }

    #[test]
    fn what_was_sent_before_the_last_request_makes_the_next_one_pipelined() {
        let mut answers = Answers::new(1);
        answers.take(0, &answer(1_000, 100, 50, 0));
        answers.asked(0, Seq(100), Seq(150), 0);
        assert_eq!(answers.is_pipelined(0, Seq(1_050)), Some(true));
        answers.take(0, &answer(1_050, 150, 50, 0));
        assert_eq!(answers.is_pipelined(0, Seq(1_050)), Some(true));
        assert_eq!(answers.is_pipelined(0, Seq(1_051)), Some(false));
        answers.asked(0, Seq(140), Seq(200), 0);
        assert_eq!(answers.is_pipelined(0, Seq(1_050)), None, "it was answered before it was seen");
    }

    #[test]
    fn a_reset_tells_nothing() {
        let mut answers = Answers::new(1);
        let mut reset = answer(7, 900, 0, 0);
        reset.tcp.flags |= flag::RST;
        answers.take(0, &reset);
        assert_eq!(answers.has_byte(0, Seq(5)), None);
    }
}
