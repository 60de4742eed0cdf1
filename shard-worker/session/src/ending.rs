//! How connections and sessions end.
//!
//! | what ends | then |
//! |---|---|
//! | both FINs acknowledged | `Lingering`, then free: completed |
//! | client RST, all delivered | exact RST, free |
//! | target FIN or RST, requests remain | the turn at the front is sent once more on a new connection if none of it was acknowledged; else its rest is `target_closed` and the next turn goes on |
//! | target RST, nothing remains | `Parted` until the client's next turn or end |
//! | refused, timed out, memory | everything held is dropped; `Parted` likewise |
//! | idle, superseded, stopped | RST, free |

use flow::{Drop, Seq};

use crate::diary::Step;
use crate::held;
use crate::slot::{After, NONE, Phase, Timer, is, try_bit};
use crate::stash;
use crate::table::Table;
use crate::tally::Count;
use crate::turns;

/// A target that has said nothing for so long at the end says nothing more.
const LAST_WORD_US: u64 = 1_000_000;

/// Connections in a row without one acknowledged byte, after which the held turns are given up.
const FRUITLESS: u8 = 8;

impl Table {
    /// The flow's four-tuple begins a new connection: the sessions of the old one go on draining on their own.
    pub(crate) fn detach_flow(&mut self, now_us: u64, first: u32) {
        let slot = self.slots.get(first);
        let hash = self.flow_hash(&slot.client, &slot.server, slot.lap);
        self.unindex_flow(hash, first);
        let mut id = first;
        while id != NONE {
            let slot = self.slots.get_mut(id);
            let next = slot.had_rare().map_or(NONE, |rare| std::mem::replace(&mut rare.next_copy, NONE));
            slot.set(is::DETACHED);
            self.close_stream(now_us, id);
            id = next;
        }
    }

    /// The client of a detached session is gone: what is in order is still delivered, then a FIN.
    fn close_stream(&mut self, now_us: u64, id: u32) {
        let orphan_us = self.config.times.orphan_us;
        let slot = self.slots.get_mut(id);
        match slot.phase() {
            Phase::Free | Phase::Resetting => return,
            Phase::Lingering => return,
            Phase::Parted => {
                self.finish(now_us, id, Drop::Gap);
                return;
            }
            Phase::Queued => {}
            Phase::Opening | Phase::Open => slot.arm(Timer::End, now_us + orphan_us),
        }
        let lost = stash::clear(slot, &mut self.chunks);
        self.tally.discard(Drop::Gap, lost);
        slot.disarm(Timer::Hole);
        if !slot.is(is::END_HELD) {
            if !slot.is(is::END_KNOWN) {
                slot.set(is::END_KNOWN);
                slot.rare_mut().end_gate = slot.last_gate;
            }
            slot.rare_mut().online_end = slot.online_next;
            self.take_end(now_us, id, now_us);
        }
        self.touch(id);
    }

    /// The target's FIN was seen, but requests remain: they need another connection. At once when the turn at the front
    /// was not acknowledged at all (a closing nginx acknowledges for a while what it only throws away); else once all that
    /// was sent is acknowledged, or reset.
    pub(crate) fn go_on_elsewhere(&mut self, now_us: u64, id: u32) {
        let slot = self.slots.get(id);
        if slot.phase() == Phase::Open
            && slot.is(is::PEER_FIN)
            && !slot.is(is::FIN_SENT)
            && slot.held_len > 0
            && (slot.sent_bytes() == 0 || held::head_is_whole(slot, &self.chunks))
        {
            self.reconnect(now_us, id, Drop::TargetClosed, true);
        }
    }

    /// Part of a request stands at the target and can never be completed.
    pub(crate) fn break_off(&mut self, now_us: u64, id: u32) {
        self.reconnect(now_us, id, Drop::Gap, true);
    }

    /// A hole, and nothing more of the flow is to be replayed (`OnGap::Abort`). The session stays, parted, until its
    /// client's end: otherwise the flow would be taken for one older than the capture and joined again.
    pub(crate) fn abort(&mut self, now_us: u64, id: u32, to: Seq) {
        let slot = self.slots.get_mut(id);
        slot.online_next = slot.online_next.max(to);
        let tries = slot.tries;
        slot.tries |= try_bit::GIVEN_UP;
        if tries & try_bit::GIVEN_UP == 0 {
            self.part(now_us, id, Drop::Gap, Count::FailedGap);
        }
    }

    /// The target's RST.
    pub(crate) fn target_reset(&mut self, now_us: u64, id: u32) {
        let slot = self.slots.get_mut(id);
        if slot.held_len > 0 {
            self.reconnect(now_us, id, Drop::TargetClosed, false);
            return;
        }
        if slot.turns_waiting > 0 {
            slot.rare_mut().failure = 1 + Count::FailedReset as u8;
            self.diary.note(id, now_us, Step::Failed, 1);
        }
        self.leave(now_us, id, Drop::TargetClosed, false);
    }

    /// The reconnect rule: the turn at the front is sent again only if none of it was acknowledged, and once.
    fn reconnect(&mut self, now_us: u64, id: u32, reason: Drop, reset: bool) {
        if reason == Drop::TargetClosed {
            self.connection_ended(now_us, id);
        }
        let slot = self.slots.get_mut(id);
        let mut sent = slot.sent_bytes();
        held::rewind(slot);
        if reason == Drop::Gap {
            // The last turn is the one that will never be whole; those before it are sent again.
            let Ok((dropped, _)) = held::drop_unsent_tail(slot, &mut self.chunks) else {
                self.part_with(now_us, id, Drop::Memory, Count::FailedMemory, reset);
                return;
            };
            self.tally.discard(reason, dropped);
        }
        let again = slot.held_len == 0 || held::head_is_whole(slot, &self.chunks);
        if !again || (sent > 0 && slot.is(is::HEAD_RESENT)) {
            let (dropped, grows) = held::drop_head_turn(slot, &mut self.chunks);
            self.tally.discard(Drop::TargetClosed, dropped);
            sent = sent.saturating_sub(dropped);
            if grows {
                slot.set(is::SKIPPING);
                slot.rare_mut().skip_reason = Drop::TargetClosed as u8;
            }
            slot.rare_mut().failure = 1 + Count::FailedTargetClosed as u8;
        } else if sent > 0 && slot.held_len > 0 {
            slot.set(is::HEAD_RESENT);
            self.tally.one(Count::TurnsResent);
        }
        let resent = sent.min(slot.held_len);
        let rare = slot.rare_mut();
        rare.resent_left = resent;
        rare.fruitless = rare.fruitless.saturating_add(1);
        if slot.rare().fruitless > FRUITLESS {
            self.part_with(now_us, id, reason, Count::FailedTargetClosed, reset);
        } else if slot.held_len == 0 {
            self.leave(now_us, id, reason, reset);
        } else if reset {
            slot.set_after(After::Reopen);
            self.owe_reset(id);
        } else {
            // A failure parts the session, which is all there is to do about it.
            let _ = self.reopen(now_us, id);
        }
    }

    /// Gives up the connection and everything held for it.
    pub(crate) fn part(&mut self, now_us: u64, id: u32, reason: Drop, failure: Count) {
        let reset = matches!(self.slots.get(id).phase(), Phase::Open | Phase::Opening);
        self.part_with(now_us, id, reason, failure, reset);
    }

    /// The same, saying whether the target must be told.
    pub(crate) fn part_with(&mut self, now_us: u64, id: u32, reason: Drop, failure: Count, reset: bool) {
        let slot = self.slots.get_mut(id);
        if slot.phase() == Phase::Queued {
            self.fail(now_us, id, reason, failure);
            return;
        }
        let held = slot.held_len;
        held::clear(slot, &mut self.chunks);
        self.tally.discard(reason, held);
        slot.rare_mut().failure = 1 + failure as u8;
        self.diary.note(id, now_us, Step::Failed, 1);
        self.leave(now_us, id, reason, reset);
    }

    /// Nothing is held any more and the connection is gone or has to go: the session waits for its client's next turn, or
    /// is over when the client is.
    fn leave(&mut self, now_us: u64, id: u32, reason: Drop, reset: bool) {
        let slot = self.slots.get_mut(id);
        held::clear(slot, &mut self.chunks);
        let over = slot.is(is::DETACHED | is::END_HELD);
        if !over {
            // The rest of a turn that the target has not wholly taken is of no use without its start.
            slot.set(is::SKIPPING);
            slot.rare_mut().skip_reason = reason as u8;
        }
        slot.set_after(if over { After::Free } else { After::Part });
        if reset && slot.phase() != Phase::Parted {
            self.owe_reset(id);
        } else {
            self.after_reset(now_us, id);
        }
    }

    fn owe_reset(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        slot.enter(Phase::Resetting);
        slot.disarm_connection();
        self.touch(id);
    }

    /// What was to follow a reset.
    pub(crate) fn after_reset(&mut self, now_us: u64, id: u32) {
        match self.slots.get(id).after() {
            After::Free => self.finish(now_us, id, Drop::TargetClosed),
            After::Reopen => {
                // A failure parts the session, which is all there is to do about it.
                let _ = self.reopen(now_us, id);
            }
            After::Part => {
                let idle_us = self.config.times.idle_us;
                let slot = self.slots.get_mut(id);
                slot.snd_una = slot.snd_nxt;
                slot.enter(Phase::Parted);
                slot.disarm_connection();
                slot.arm(Timer::End, now_us + idle_us);
                if self.slots.get(id).held_len > 0 {
                    // The next turn came while the reset was owed. A failure parts the session again.
                    let _ = self.reopen(now_us, id);
                    return;
                }
                if self.slots.get(id).is(is::END_HELD) {
                    self.finish(now_us, id, Drop::TargetClosed);
                    return;
                }
                if self.pools.iter().any(Option::is_some) {
                    self.vacate(now_us, id);
                }
                self.rearm(id);
                if self.slots.get(id).is(is::END_KNOWN) {
                    self.take_end(now_us, id, now_us);
                }
            }
        }
    }

    /// Both directions are closed: the numbers are kept for a moment.
    pub(crate) fn linger(&mut self, now_us: u64, id: u32) {
        let linger_us = self.config.times.linger_us;
        let slot = self.slots.get_mut(id);
        held::clear(slot, &mut self.chunks);
        if slot.rare().waiter != NONE {
            self.finish(now_us, id, Drop::Superseded);
            return;
        }
        slot.enter(Phase::Lingering);
        slot.disarm_all();
        slot.arm(Timer::End, now_us + linger_us);
        self.rearm(id);
        self.lingering.push(&self.slots, id);
    }

    /// Ends a session before its time, under a reason.
    pub(crate) fn fail(&mut self, now_us: u64, id: u32, reason: Drop, failure: Count) {
        if self.slots.get(id).phase() == Phase::Free {
            return;
        }
        let slot = self.slots.get_mut(id);
        let stashed = stash::clear(slot, &mut self.chunks);
        let held = slot.held_len;
        let phase = slot.phase();
        self.tally.discard(reason, stashed);
        self.tally.discard(reason, held);
        held::clear(slot, &mut self.chunks);
        slot.disarm(Timer::Hole);
        if phase != Phase::Lingering && phase != Phase::Resetting {
            slot.rare_mut().failure = 1 + failure as u8;
            self.diary.note(id, now_us, Step::Failed, 1);
        }
        slot.set_after(After::Free);
        match phase {
            Phase::Open | Phase::Opening | Phase::Resetting => {
                self.unlink(id);
                self.slots.get_mut(id).set(is::DETACHED);
                self.owe_reset(id);
            }
            _ => self.finish(now_us, id, reason),
        }
    }

    /// The run is over for this session.
    pub(crate) fn stop(&mut self, now_us: u64, id: u32) {
        let failure = match self.slots.get(id).in_flight() {
            0 => Count::SessionsCompleted,
            _ => Count::FailedStopped,
        };
        self.fail(now_us, id, Drop::Stopped, failure);
    }

    /// Whether nothing more is expected of any target, once nothing is in flight and nothing more comes in: all closing is done,
    /// and the last answers are in. A file tells how long these were online; else a target that has pushed its last byte and is
    /// quiet has said all.
    pub fn has_last_answers(&mut self, now_us: u64) -> bool {
        if self.is_walking() {
            return false;
        }
        let end = self.header.fresh.min(self.slots.len());
        while self.answered < end && self.has_last_answer(now_us, self.answered) {
            self.answered += 1;
        }
        self.answered >= end
    }

    fn has_last_answer(&self, now_us: u64, id: u32) -> bool {
        let slot = self.slots.get(id);
        let open = match slot.phase() {
            Phase::Free | Phase::Parted | Phase::Lingering => return true,
            Phase::Queued | Phase::Opening | Phase::Resetting => false,
            Phase::Open => true,
        };
        // Not by what it says to our probes.
        let asked_us = slot.answer_us.max(slot.turn_sent_us);
        let since_us = if open && !slot.is(is::FIN_SENT) { asked_us } else { slot.seen_us };
        if now_us >= since_us + LAST_WORD_US {
            return true;
        }
        if !open || slot.is(is::FIN_SENT) || slot.turns_waiting > 0 {
            return false;
        }
        slot.is(is::PEER_FIN) || turns::last_answer_is_in(slot, self.answers.sent(id), now_us)
    }

    /// Takes the session out of its flow's chain.
    fn unlink(&mut self, id: u32) {
        let slot = self.slots.get(id);
        if slot.is(is::DETACHED) {
            return;
        }
        let next = slot.rare().next_copy;
        let flow = slot.flow();
        let hash = self.flow_hash(&flow.client, &flow.server, flow.lap);
        if slot.is(is::FIRST) {
            self.unindex_flow(hash, id);
            if next != NONE {
                self.index_flow(hash, next);
            }
        } else if let Some(first) = self.find_flow(hash, &flow) {
            let mut before = first;
            while before != NONE && self.slots.get(before).rare().next_copy != id {
                before = self.slots.get(before).rare().next_copy;
            }
            if before != NONE {
                self.slots.get_mut(before).rare_mut().next_copy = next;
            }
        }
        if let Some(rare) = self.slots.get_mut(id).had_rare() {
            rare.next_copy = NONE;
        }
    }

    /// The session is over: what it still had in flight is dropped under `reason`, everything of it is free again.
    pub(crate) fn finish(&mut self, now_us: u64, id: u32, reason: Drop) {
        self.unlink(id);
        self.diary.end(id, now_us, self.slots.get(id));
        if self.slots.get(id).phase() == Phase::Queued
            && let Some(holder) = self.holder_of(id)
        {
            self.slots.get_mut(holder).rare_mut().waiter = NONE;
        }
        self.vacate(now_us, id);
        let slot = self.slots.get_mut(id);
        self.tally.discard(reason, slot.in_flight());
        stash::clear(slot, &mut self.chunks);
        held::clear(slot, &mut self.chunks);
        let failure = slot.rare().failure.checked_sub(1).and_then(|index| Count::ALL.get(index as usize));
        self.tally.one(failure.copied().unwrap_or(Count::SessionsCompleted));
        let waiter = slot.rare().waiter;
        slot.reset();
        self.wheel.disarm(id);
        self.free.push(id);
        self.tally.open = self.tally.open.wrapping_sub(1);
        if waiter != NONE && self.slots.get(waiter).phase() == Phase::Queued {
            self.start_waiter(now_us, waiter);
        }
    }
}
