//! What happens when a deadline comes. The wheel has the earliest of each slot's deadlines, or one before it: what fires early (most
//! do, since deadlines move away with every packet) is put back.

use flow::Drop;

use crate::congestion;
use crate::diary::Step;
use crate::slot::{Phase, Timer, is, try_bit};
use crate::table::{DUE, Table};
use crate::tally::Count;
use crate::target::{alive_pause_us, awaits_answer};
use crate::targets::SILENT_TRIES;
use crate::undo::SESSION_IMAGES;

/// So far ahead of the timer that runs a slot is asked for: the time of a miss or two.
const AHEAD: usize = 2;

impl Table {
    pub(crate) fn run_timers(&mut self, now_us: u64) {
        let mut due = std::mem::take(&mut self.due);
        if due.is_empty() {
            self.wheel.expire(now_us, DUE, &mut due);
        }
        due.iter().take(AHEAD).for_each(|&id| self.foresee_slot(id));
        let mut done = 0;
        while done < due.len() && self.slots.has_room(SESSION_IMAGES) {
            let id = due[done];
            if let Some(&later) = due.get(done + AHEAD) {
                self.foresee_slot(later);
            }
            self.at(id);
            self.run_deadlines(now_us, id);
            self.rearm(id);
            done += 1;
        }
        due.drain(..done);
        self.due = due;
    }

    fn run_deadlines(&mut self, now_us: u64, id: u32) {
        if self.slots.get(id).phase() == Phase::Free || self.slots.get(id).earliest() > now_us {
            return;
        }
        if self.slots.get_mut(id).fired(Timer::End, now_us) {
            self.end_due(now_us, id);
        }
        if self.slots.get_mut(id).fired(Timer::Hole, now_us) {
            self.give_up_hole(now_us, id);
        }
        if self.slots.get_mut(id).fired(Timer::Rto, now_us) {
            self.retransmission_due(now_us, id);
        }
        if self.slots.get_mut(id).fired(Timer::Persist, now_us) {
            self.persist_due(now_us, id);
        }
        if self.slots.get_mut(id).fired(Timer::Alive, now_us) {
            self.alive_due(now_us, id);
        }
        if self.slots.get_mut(id).fired(Timer::Ack, now_us) {
            self.ack_due(now_us, id);
        }
        self.slots.get_mut(id).fired(Timer::Gate, now_us);
        if self.slots.get(id).phase() != Phase::Free {
            self.touch(id);
        }
    }

    fn retransmission_due(&mut self, now_us: u64, id: u32) {
        let (dead_us, deaf_us) = (self.config.times.dead_us, self.hearing.deaf_us);
        let v4 = self.config.targets[self.slots.get(id).target as usize].endpoint.addr.is_v4();
        let slot = self.slots.get_mut(id);
        match slot.phase() {
            Phase::Opening | Phase::Open
                if now_us.saturating_sub(slot.progress_us.max(deaf_us)) >= dead_us =>
            {
                self.part(now_us, id, Drop::TimedOut, Count::FailedTimedOut);
            }
            // It waited for its turn.
            Phase::Opening if slot.outstanding() == 0 || slot.tries & try_bit::WAITING != 0 => {
                slot.set(is::OWE_SYN);
            }
            Phase::Opening => {
                self.diary.note(id, now_us, Step::TimedOut, 1);
                let rare = slot.rare_mut();
                rare.backoff = rare.backoff.saturating_add(1);
                // What the target remembers of an older connection may be cleared again: that reset may have been lost.
                rare.probes = 0;
                slot.set(is::OWE_SYN);
                let (target, tries) = (slot.target, slot.rare().backoff);
                if tries == SILENT_TRIES || self.targets.is_probe(target, id) {
                    self.attempt_failed(now_us, id);
                }
            }
            Phase::Open if slot.outstanding() == 0 => {}
            Phase::Open if slot.is(is::TAIL_TIMER) => {
                slot.unset(is::TAIL_TIMER);
                slot.set(is::OWE_TAIL);
                slot.arm(Timer::Rto, now_us + congestion::rto_us(slot));
            }
            Phase::Open => {
                self.diary.note(id, now_us, Step::TimedOut, 1);
                congestion::timed_out(slot);
                if congestion::suspect_size(slot, v4) {
                    self.tally.one(Count::SizeSuspected);
                }
                slot.arm(Timer::Rto, now_us + congestion::rto_us(slot));
            }
            _ => {}
        }
    }

    /// The window is closed and nothing is under way: an update may have been lost.
    fn persist_due(&mut self, now_us: u64, id: u32) {
        let idle_us = self.config.times.idle_us;
        let slot = self.slots.get_mut(id);
        if slot.phase() != Phase::Open || slot.unsent() == 0 {
            return;
        }
        if now_us.saturating_sub(slot.progress_us.max(self.hearing.deaf_us)) >= idle_us {
            self.part(now_us, id, Drop::TimedOut, Count::FailedTimedOut);
            return;
        }
        slot.set(is::OWE_PROBE);
        slot.rare_mut().probes = slot.rare().probes.saturating_add(1);
        let pause = (congestion::rto_us(slot) << slot.rare().probes.min(5)).min(10_000_000);
        slot.arm(Timer::Persist, now_us + pause);
    }

    /// An answer is due and nothing says that the target still knows the connection.
    fn alive_due(&mut self, now_us: u64, id: u32) {
        let slot = self.slots.get_mut(id);
        if slot.phase() == Phase::Open && slot.outstanding() == 0 && awaits_answer(slot) {
            slot.set(is::OWE_PROBE);
            slot.rare_mut().probes = slot.rare().probes.saturating_add(1);
            slot.arm(Timer::Alive, now_us + alive_pause_us(slot.rare().probes));
        }
    }

    /// The client's distance is over: the target may know what was there then.
    fn ack_due(&mut self, now_us: u64, id: u32) {
        let rtt = self.config.rtt;
        let slot = self.slots.get_mut(id);
        if slot.phase() != Phase::Open {
            return;
        }
        slot.set(is::OWE_ACK);
        if slot.is(is::HELD_BACK) {
            slot.unset(is::HELD_BACK);
            return;
        }
        slot.rcv_ack = slot.ack_upto;
        // What the target holds back until it knows this (Nagle) can only come from now on.
        slot.answer_us = now_us;
        if slot.rcv_ack != slot.rcv_nxt {
            slot.ack_upto = slot.rcv_nxt;
            slot.arm(Timer::Ack, now_us + crate::online::distance_us(slot, rtt).max(1_000));
        }
    }

    /// Something has lasted too long.
    fn end_due(&mut self, now_us: u64, id: u32) {
        let times = self.config.times;
        let queue_until_us = self.hears_again_us() + times.queue_us;
        let slot = self.slots.get_mut(id);
        match slot.phase() {
            Phase::Free | Phase::Resetting => {}
            Phase::Lingering => self.finish(now_us, id, Drop::TargetClosed),
            Phase::Queued if now_us < queue_until_us => slot.arm(Timer::End, queue_until_us),
            Phase::Queued => {
                // The older session on the four-tuple does not come to an end: it has to.
                if let Some(holder) = self.holder_of(id) {
                    self.fail(now_us, holder, Drop::Superseded, Count::FailedSuperseded);
                }
            }
            Phase::Opening | Phase::Open | Phase::Parted => {
                let limit = match slot.is(is::DETACHED) {
                    true => times.orphan_us,
                    false if slot.is_half_open() => times.half_open_us.min(times.idle_us),
                    false => times.idle_us,
                };
                let quiet_since = slot.seen_us.max(slot.progress_us);
                // Data of a SYN waits for a client that never came again; everything else held has deadlines of its own.
                let only_early = slot.held_len == 0 && !slot.is(is::ANCHORED);
                if slot.in_flight() > 0 && !only_early {
                    slot.arm(Timer::End, now_us + limit);
                } else if quiet_since + limit > now_us {
                    slot.arm(Timer::End, quiet_since + limit);
                } else {
                    self.fail(now_us, id, Drop::TimedOut, Count::FailedIdle);
                }
            }
        }
    }

    /// The session whose four-tuple a queued one waits for.
    pub(crate) fn holder_of(&mut self, waiter: u32) -> Option<u32> {
        let slot = self.slots.get(waiter);
        let (replayed, target) = (slot.replayed, self.config.targets[slot.target as usize].endpoint);
        let holder = self.find_replayed(&replayed, &target)?;
        (self.slots.get(holder).rare().waiter == waiter).then_some(holder)
    }
}
