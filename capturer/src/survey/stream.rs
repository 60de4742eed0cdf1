//! One client's byte stream as the file shows it: what is new, what came again, what is missing, and where turns begin.

use flow::record::flag;
use flow::{Segment, Seq};

use super::Sums;

/// The state of one stream.
pub(super) struct Stream {
    /// Initial sequence number, where the SYN was seen.
    isn: Option<Seq>,
    /// Behind the highest byte seen or known to have been sent.
    next: Seq,
    /// Acknowledgement number of the last new data.
    gate: Option<Seq>,
    /// Highest acknowledgement number, once there was one.
    acked: Option<Seq>,
    /// Holes below `next`, as first byte and the byte behind; the first `count` are meaningful.
    holes: [(Seq, Seq); HOLES],
    count: usize,
}

/// Holes of one stream that can still be filled; more are missing for good. Reordering makes one or two.
const HOLES: usize = 4;

impl Stream {
    /// Begins with the first segment that is seen.
    pub(super) fn new(segment: &Segment<'_>) -> Self {
        let syn = segment.tcp.flags & flag::SYN != 0;
        let seq = segment.tcp.seq;
        Self {
            isn: syn.then_some(seq),
            next: if syn { seq + 1 } else { seq },
            gate: None,
            acked: None,
            holes: [(Seq(0), Seq(0)); HOLES],
            count: 0,
        }
    }

    /// Whether a SYN begins another connection, and is not this one's again.
    pub(super) fn is_another(&self, syn: &Segment<'_>) -> bool {
        self.isn != Some(syn.tcp.seq)
    }

    /// Bytes of the holes that were not filled.
    pub(super) fn open_holes(&self) -> u64 {
        self.holes[..self.count].iter().map(|(from, to)| distance(*from, *to)).sum()
    }

    /// Takes the next segment and adds to the sums what it is.
    pub(super) fn take(&mut self, segment: &Segment<'_>, sums: &mut Sums) {
        let tcp = &segment.tcp;
        if tcp.flags & flag::ACK != 0 {
            match self.acked {
                Some(before) if tcp.ack.after(before) => {
                    sums.answer_bytes += distance(before, tcp.ack);
                    self.acked = Some(tcp.ack);
                }
                Some(_) => {}
                None => self.acked = Some(tcp.ack),
            }
        }
        if segment.wire_payload_len == 0 {
            return;
        }
        let begin = if tcp.flags & flag::SYN != 0 { tcp.seq + 1 } else { tcp.seq };
        let (seen, end) = (begin + segment.payload.len() as u32, begin + segment.wire_payload_len);
        if end.after(self.next) {
            if self.gate.is_none_or(|gate| tcp.ack.after(gate)) {
                sums.turns += 1;
                self.gate = Some(tcp.ack);
            }
            if begin.after(self.next) {
                self.hole(self.next, begin, sums);
            }
        }
        self.known(begin, seen.min(self.next), sums);
        let fresh_from = begin.max(self.next);
        if seen.after(fresh_from) {
            sums.request_bytes += distance(fresh_from, seen);
        }
        // What the snap length cut off.
        let cut_from = seen.max(self.next);
        if end.after(cut_from) {
            self.hole(cut_from, end, sums);
        }
        self.next = self.next.max(end);
    }

    /// Bytes below `next`: they fill holes, or came again.
    fn known(&mut self, from: Seq, to: Seq, sums: &mut Sums) {
        if !to.after(from) {
            return;
        }
        let mut filled = 0;
        let (before, count) = (self.holes, self.count);
        self.count = 0;
        for (hole_from, hole_to) in before.into_iter().take(count) {
            let (a, b) = (hole_from.max(from), hole_to.min(to));
            if !b.after(a) {
                self.hole(hole_from, hole_to, sums);
                continue;
            }
            filled += distance(a, b);
            if a.after(hole_from) {
                self.hole(hole_from, a, sums);
            }
            if hole_to.after(b) {
                self.hole(b, hole_to, sums);
            }
        }
        sums.request_bytes += filled;
        sums.repeated_bytes += distance(from, to) - filled;
    }

    fn hole(&mut self, from: Seq, to: Seq, sums: &mut Sums) {
        if self.count == HOLES {
            let (oldest_from, oldest_to) = self.holes[0];
            sums.missing_bytes += distance(oldest_from, oldest_to);
            self.holes.copy_within(1.., 0);
            self.count -= 1;
        }
        self.holes[self.count] = (from, to);
        self.count += 1;
    }
}

/// Bytes from one number to a later one.
fn distance(from: Seq, to: Seq) -> u64 {
    u64::from(to.0.wrapping_sub(from.0))
}
