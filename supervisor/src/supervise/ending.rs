//! From being asked to end to the last process being gone ([`crate::drain`] holds the times).

use std::time::Instant;

use shm::RoleState;
use topology::{Process, wiring};

use super::{Phase, Supervisor};
use crate::drain;
use crate::member::Member;

impl Supervisor {
    pub(super) fn end_if_asked(&mut self, now: Instant) {
        match (self.signals.asked(), self.phase) {
            (0, _) | (_, Phase::Over) => {}
            (1, Phase::Running) => self.begin_drain(now),
            (1, Phase::Draining(_)) => {}
            (_, Phase::Draining(drain)) if drain.is_at_once() => {}
            _ => {
                self.region.control().set_draining(true);
                self.phase = Phase::Draining(drain::Drain::at_once(now));
            }
        }
    }

    pub(super) fn begin_drain(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Running) {
            self.region.control().set_draining(true);
            self.service.stopping();
            self.ring_all();
            // The last look at their memory: the summary comes when they are gone.
            let _ = self.sample();
            self.phase = Phase::Draining(drain::Drain::begin(now, self.plan.replay.drain_ms));
            if self.plan.trace.is_some() && self.terminal.rewrites {
                self.terminal.below(String::new());
            }
            let text = match self.plan.records_only() {
                true => "capture ended; what came is being written; Ctrl-C stops at once",
                false => "draining: capture ended, open requests may finish; Ctrl-C stops at once",
            };
            if self.live {
                self.terminal.line(format!("  {text}"));
            } else {
                tracing::info!("{text}");
            }
        }
    }

    /// Stops replaying safely, because of a fault.
    pub(super) fn fail(&mut self, now: Instant, why: String) {
        tracing::error!("{why}");
        self.service.stopping();
        self.service.status(why.clone());
        self.failure.get_or_insert(why);
        self.region.control().set_failed(true);
        self.region.control().set_draining(true);
        self.phase = Phase::Draining(drain::Drain::at_once(now));
    }

    /// One step of the drain.
    pub(super) fn advance(&mut self, drain: drain::Drain, now: Instant) -> Phase {
        let in_stage = |member: &Member| drain.stage().holds(member.process);
        if drain.wants_halt(now) && !self.region.control().halt() {
            self.region.control().set_halt(true);
            self.ring_all();
        }
        for member in self.members.iter_mut().filter(|member| in_stage(member)) {
            // The capturer takes nothing any more: one that is dead need not come back.
            if member.due().is_some() && (drain.is_at_once() || member.process == Process::Capturer) {
                member.finish();
                self.region.heartbeat(member.process.role()).set_state(RoleState::Done);
            }
            if member.is_alive() && drain.wants_kill(now) {
                member.kill();
            }
        }
        if self.members.iter().filter(|member| in_stage(member)).all(Member::is_finished) {
            self.ring_all();
            return match drain.next(now) {
                Some(next) => Phase::Draining(next),
                None => Phase::Over,
            };
        }
        Phase::Draining(drain)
    }

    /// Wakes every role, that it sees a control word now and not at its next beat.
    pub(super) fn ring_all(&self) {
        for process in wiring::processes(&self.plan) {
            self.region.doorbell(process.role()).ring();
        }
        self.region.doorbell(shm::Role::Receiver).ring();
    }
}
