//! When a turn may go out: the table of REPLAY, "Turns".
//!
//! `E` is how many answer bytes the real client had read before it sent the turn, `G` how many answer bytes we have let
//! the target know that we have, both counted from the anchors: an online and a target number that stand for the same
//! point of the conversation. Every release moves the anchors to the turn's own gate, so both stay small.
//!
//! | row | condition | release |
//! |---|---|---|
//! | 1 | E = 0: the gate did not rise | at once |
//! | 3 | G = E, or overlapped and G ≥ E | anchors move on together |
//! | 4 | G − E is the last whole answer's deviation, PSH | re-anchor |
//! | 5 | G ≥ ⅞ E, PSH, ours acknowledged, quiet for 2 SRTT (1–10 ms) | re-anchor, `guessed` |
//! | 6 | G > 0, ours acknowledged, quiet for the online gap (20 ms–1 s) | re-anchor, `guessed` |
//! | 7 | G = 0 for four online gaps (3–60 s) since ours were acknowledged | re-anchor, `unanswered`; the third in a row is row 8 |
//!
//! After requests that the capture missed, `E` counts answers that the target will never give: such a turn goes out when
//! whatever was asked is answered and quiet as in row 5, or at once when nothing was asked.
//!
//! Row 2 (overlapped) is decided at capture, rows 9 to 11 follow from these: a server that speaks first is an E before
//! the first turn.

use flow::Seq;

use crate::chunks::Chunks;
use crate::held::{self, Piece, piece};
use crate::slot::{NEVER, Slot, Timer, is};
use crate::tally::{Count, Tally};

/// Which row opened a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// Nothing to wait for: no gate, not waiting, or a new connection.
    Free,
    Exact,
    Deviation,
    Guessed,
    Unanswered,
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open(Row),
    /// Closed; look again at this time, or when something is returned.
    Closed(u64),
}

/// Row-7 releases in a row after which a session never waits again (row 8).
const DUPLEX_AFTER: u8 = 3;

/// Looks at the gate of the piece that is next.
pub(crate) fn gate(slot: &Slot, next: &Piece, now_us: u64, wait: bool) -> Gate {
    let gated = next.flags & (piece::NEW_TURN | piece::END) != 0;
    if !gated || !wait || slot.is(is::DUPLEX | is::REANCHOR | is::PEER_FIN) {
        return Gate::Open(Row::Free);
    }
    let expected = next.gate.beyond(slot.anchor_online);
    let got = slot.answered().beyond(slot.anchor_target);
    let overlapped = next.flags & piece::OVERLAPPED != 0;
    if expected == 0 || got == expected || (overlapped && got >= expected) {
        return Gate::Open(Row::Exact);
    }
    if slot.rcv_ack != slot.rcv_nxt {
        // The client's distance: what came is not known to the target as read yet.
        return Gate::Closed(slot.deadline(Timer::Ack));
    }
    let psh = slot.is(is::ANSWER_PSH);
    if got > 0 && psh && slot.deviation != 0 && deviation(got, expected) == slot.deviation {
        return Gate::Open(Row::Deviation);
    }
    if slot.outstanding() > 0 {
        return Gate::Closed(NEVER);
    }
    if nothing_asked(slot, next, got) {
        return Gate::Open(Row::Guessed);
    }
    let (at_us, row) = after_silence(slot, next, expected, got);
    if now_us >= at_us { Gate::Open(row) } else { Gate::Closed(at_us) }
}

/// Whether a bare acknowledgement with this number says that the answer is whole which the next turn waits for: its headers were
/// lost on the way to us, and the target would send it again when its own pause is over. Only what ends exactly where it
/// should is believed: one number more may be the target's FIN, which nobody may acknowledge who has not seen it.
pub(crate) fn is_answered_by(slot: &Slot, chunks: &Chunks, seq: Seq) -> bool {
    if !seq.after(slot.rcv_nxt) || slot.is(is::DUPLEX | is::REANCHOR | is::PEER_FIN) {
        return false;
    }
    held::next_piece(slot, chunks).is_some_and(|next| {
        let expected = next.gate.beyond(slot.anchor_online);
        let sent = slot.answered().near(seq).beyond(slot.anchor_target);
        let off = deviation(sent, expected);
        expected > 0 && (sent == expected || off != 0 && off == slot.deviation)
    })
}

/// What was asked before `next` was given up, and nothing else is due.
fn nothing_asked(slot: &Slot, next: &Piece, got: u64) -> bool {
    next.flags & piece::AFTER_GAP != 0 && got == 0 && slot.turns_waiting == 0
}

/// When silence opens the gate of `next`, by which row.
fn after_silence(slot: &Slot, next: &Piece, expected: u64, got: u64) -> (u64, Row) {
    let after_gap = next.flags & piece::AFTER_GAP != 0;
    if got == 0 {
        let since_us = slot.progress_us.max(slot.turn_sent_us).max(next.time_us);
        (since_us + (4 * u64::from(next.gap_us)).clamp(3_000_000, 60_000_000), Row::Unanswered)
    } else if slot.is(is::ANSWER_PSH) && (after_gap || got * 8 >= expected * 7) {
        (slot.answer_us + (2 * u64::from(slot.srtt_us)).clamp(1_000, 10_000), Row::Guessed)
    } else {
        (slot.answer_us + u64::from(next.gap_us).clamp(20_000, 1_000_000), Row::Guessed)
    }
}

/// Whether the answer to the last turn is whole. `online`: one past the last byte of the online server's, where a file tells; what
/// is longer or shorter than that is whole when the target is quiet, as in rows 5 and 6.
pub(crate) fn last_answer_is_in(slot: &Slot, online: Option<Seq>, now_us: u64) -> bool {
    if !slot.is(is::HAD_DATA) && online.is_none() {
        return true;
    }
    let got = slot.answered().beyond(slot.anchor_target);
    let expected = online.map(|online| slot.online_ack.near(online).beyond(slot.anchor_online));
    if expected.is_some_and(|expected| got >= expected) {
        return true;
    }
    let whole = slot.is(is::ANSWER_PSH) && expected.is_none_or(|expected| got * 8 >= expected * 7);
    let quiet_us = if whole { (2 * u64::from(slot.srtt_us)).clamp(10_000, 100_000) } else { 1_000_000 };
    now_us >= slot.answer_us + quiet_us
}

/// How long the gate of `next`, which `row` has opened, kept it after its capture; 0 when it was open already. To be asked
/// before [`release`] moves the anchors.
///
/// Told by what opened the gate, not by when somebody looked: a turn behind one that waits for the target's window may find
/// its own gate open for a while.
pub(crate) fn wait_us(slot: &Slot, next: &Piece, row: Row, waits: bool) -> u64 {
    let expected = next.gate.beyond(slot.anchor_online);
    let got = slot.answered().beyond(slot.anchor_target);
    let opened_us = match row {
        _ if expected == 0 => 0,
        Row::Free if !waits || slot.is(is::DUPLEX) => 0,
        Row::Free | Row::Exact | Row::Deviation => slot.answer_us,
        Row::Guessed if nothing_asked(slot, next, got) => 0,
        Row::Guessed | Row::Unanswered => after_silence(slot, next, expected, got).0,
    };
    opened_us.saturating_sub(next.time_us)
}

/// How much longer an answer was; 0, which is never steady, when it cannot be said in 32 bits.
fn deviation(got: u64, expected: u64) -> i32 {
    (got as i64 - expected as i64).try_into().unwrap_or(0)
}

/// Moves the anchors to the gate that opened, and counts.
pub(crate) fn release(slot: &mut Slot, tally: &mut Tally, next: &Piece, row: Row) {
    slot.set(is::RELEASED);
    slot.disarm(Timer::Gate);
    if next.flags & (piece::NEW_TURN | piece::END) == 0 {
        return;
    }
    let expected = next.gate.beyond(slot.anchor_online);
    let got = slot.answered().beyond(slot.anchor_target);
    slot.anchor_online = next.gate;
    slot.unset(is::REANCHOR);
    match row {
        Row::Exact => {
            slot.anchor_target = slot.anchor_target + expected as i64;
            if got == expected && expected > 0 {
                slot.deviation = 0;
            }
        }
        Row::Free | Row::Deviation | Row::Unanswered => slot.anchor_target = slot.answered(),
        Row::Guessed => {
            let after_gap = next.flags & piece::AFTER_GAP != 0;
            slot.deviation = if after_gap { 0 } else { deviation(got, expected) };
            slot.anchor_target = slot.answered();
            tally.one(Count::TurnsGuessed);
        }
    }
    if expected > 0 && matches!(row, Row::Exact | Row::Deviation) && slot.answer_parts == 1 {
        slot.pingpong = slot.pingpong.saturating_add(1);
    }
    if row == Row::Unanswered {
        tally.one(Count::TurnsUnanswered);
        slot.rare_mut().unanswered += 1;
        if slot.rare().unanswered >= DUPLEX_AFTER {
            slot.set(is::DUPLEX);
            tally.one(Count::Duplex);
        }
    } else if expected > 0
        && let Some(rare) = slot.had_rare()
    {
        rare.unanswered = 0;
    }
    if next.flags & piece::OVERLAPPED != 0 {
        tally.one(Count::TurnsOverlapped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wide::Wide;

    /// Anchors at 1,000 online and 9,000 at the target; `got` answer bytes have come at 1 s, all acknowledged.
    fn slot(got: u32) -> Slot {
        let mut slot = Slot::empty();
        slot.anchor(Seq(1_000));
        slot.anchor_target = Wide::first(Seq(9_000));
        (slot.rcv_high, slot.rcv_nxt) = (1, Seq(9_000));
        slot.receive(Seq(9_000) + got);
        slot.rcv_ack = slot.rcv_nxt;
        slot.answer_us = 1_000_000;
        slot.srtt_us = 1_500;
        slot.set(is::ANSWER_PSH);
        slot
    }

    fn turn(expected: u32) -> Piece {
        Piece {
            time_us: 900_000,
            len: 1,
            gate: Wide::first(Seq(1_000)) + i64::from(expected),
            gap_us: 50_000,
            flags: piece::NEW_TURN,
        }
    }

    fn look(slot: &Slot, next: &Piece, now_us: u64) -> Gate {
        gate(slot, next, now_us, true)
    }

    #[test]
    fn the_whole_answer_opens_at_once_and_a_part_does_not() {
        assert_eq!(look(&slot(500), &turn(500), 0), Gate::Open(Row::Exact));
        assert_eq!(look(&slot(500), &turn(0), 0), Gate::Open(Row::Exact));
        assert_eq!(look(&slot(400), &turn(500), 1_000_000), Gate::Closed(1_050_000));
        assert_eq!(look(&slot(400), &turn(500), 1_050_000), Gate::Open(Row::Guessed));
    }

    #[test]
    fn almost_everything_with_psh_needs_only_a_short_silence() {
        assert_eq!(look(&slot(490), &turn(500), 1_000_000), Gate::Closed(1_003_000));
        assert_eq!(look(&slot(510), &turn(500), 1_003_000), Gate::Open(Row::Guessed));
        let mut waiting = slot(490);
        waiting.snd_nxt += 1;
        assert_eq!(look(&waiting, &turn(500), 9_000_000), Gate::Closed(NEVER), "ours are not acknowledged");
    }

    #[test]
    fn a_steady_deviation_is_learnt() {
        let (mut slot, mut tally) = (slot(510), Tally::new());
        release(&mut slot, &mut tally, &turn(500), Row::Guessed);
        assert_eq!((slot.deviation, tally.count(Count::TurnsGuessed)), (10, 1));
        slot.rcv_nxt += 210;
        slot.rcv_ack = slot.rcv_nxt;
        let next = Piece { gate: Wide::first(Seq(1_700)), ..turn(0) };
        assert_eq!(look(&slot, &next, 0), Gate::Open(Row::Deviation));
        release(&mut slot, &mut tally, &next, Row::Deviation);
        assert_eq!((slot.anchor_online.seq(), slot.anchor_target.seq()), (Seq(1_700), Seq(9_720)));
    }

    #[test]
    fn an_overlapped_turn_may_find_more_than_it_expects() {
        let mut next = turn(500);
        assert_eq!(look(&slot(900), &next, 1_000_000), Gate::Closed(1_003_000));
        next.flags |= piece::OVERLAPPED;
        assert_eq!(look(&slot(900), &next, 1_000_000), Gate::Open(Row::Exact));
        let (mut slot, mut tally) = (slot(900), Tally::new());
        release(&mut slot, &mut tally, &next, Row::Exact);
        assert_eq!(slot.anchor_target.seq(), Seq(9_500), "400 bytes belong to later turns");
    }

    #[test]
    fn no_answer_opens_after_seconds_and_three_times_make_it_duplex() {
        let (mut slot, mut tally) = (slot(0), Tally::new());
        slot.progress_us = 1_000_000;
        for i in 1..=3 {
            let next = Piece { gate: slot.anchor_online + 13, ..turn(0) };
            assert_eq!(look(&slot, &next, 1_000_000), Gate::Closed(4_000_000));
            assert_eq!(look(&slot, &next, 4_000_000), Gate::Open(Row::Unanswered));
            release(&mut slot, &mut tally, &next, Row::Unanswered);
            assert_eq!(tally.count(Count::TurnsUnanswered), i);
        }
        assert_eq!(look(&slot, &turn(900), 0), Gate::Open(Row::Free));
    }

    #[test]
    fn after_a_gap_only_what_was_asked_is_waited_for() {
        let next = Piece { flags: piece::NEW_TURN | piece::AFTER_GAP, ..turn(5_000) };
        assert_eq!(look(&slot(100), &next, 1_000_000), Gate::Closed(1_003_000));
        assert_eq!(look(&slot(0), &next, 0), Gate::Open(Row::Guessed));
        let mut asked = slot(0);
        asked.turns_waiting = 1;
        assert!(matches!(look(&asked, &next, 1_000_000), Gate::Closed(_)));
    }

    #[test]
    fn totals_may_wrap() {
        let mut slot = slot(0);
        slot.anchor(Seq(u32::MAX - 9));
        slot.anchor_target = Wide::first(Seq(u32::MAX - 99));
        (slot.rcv_high, slot.rcv_nxt) = (1, Seq(u32::MAX - 99));
        slot.receive(Seq(100));
        slot.rcv_ack = slot.rcv_nxt;
        let gate = slot.online(Seq(190));
        assert_eq!(look(&slot, &Piece { gate, ..turn(0) }, 0), Gate::Open(Row::Exact));
    }

    /// Beyond 4 GiB a part of the answer has the same low half as the whole.
    #[test]
    fn an_answer_longer_than_a_round_of_numbers_is_waited_for() {
        let mut slot = slot(0);
        for _ in 0..5 {
            slot.online(slot.online_ack.seq() + (1 << 30));
        }
        let next = Piece { gate: slot.online_ack, ..turn(0) };
        let mut got: u64 = 0;
        loop {
            let open = matches!(look(&slot, &next, 1_000_000), Gate::Open(_));
            assert_eq!(open, got == 5 << 30, "{got} bytes");
            if open {
                break;
            }
            slot.receive(slot.rcv_nxt + (1 << 29));
            slot.rcv_ack = slot.rcv_nxt;
            got += 1 << 29;
        }
    }
}
