//! The poll loop of one shard, its drain and its end.
//!
//! One step is: room for the output, then a batch of input, some of what a dead predecessor left, timers, output, and all of it
//! is one transaction (`shard`). With
//! nothing to do the worker sleeps on its own bell until the next timer, 100 ms at most.
//!
//! | phase | goes on when | to |
//! |---|---|---|
//! | `Running` | the control word says drain | `Draining`: the machine opens no new session |
//! | `Draining` | input is over and the machine quiet, or the drain time is over | `Abandoning`: it resets what is left |
//! | `Abandoning` | the resets are out, or the injector takes nothing for a second | done |
//! | any | the control word says halt | done |

use std::time::Duration;

use shm::{Control, Doorbell, Heartbeat, Region, Role, RoleState};
use topology::Plan;

use crate::config::arena_bytes;
use crate::counters::WorkerCount;
use crate::inbox::{Inbox, Taken};
use crate::outbox::MIN_RING;
use crate::shard::Shard;

/// Why a shard cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The region's inject rings are too small for one burst.
    #[error(
        "inject rings of {bytes} bytes are too small, one burst needs {MIN_RING}. Give the run more memory (--memory)"
    )]
    SmallRing {
        /// What the region has.
        bytes: u32,
    },
    /// The region's arenas do not fit the plan's limits.
    #[error(
        "an arena of {bytes} bytes does not hold the sessions and chunks of the plan ({needed} bytes); region and plan are not of one run"
    )]
    SmallArena {
        /// What the region has.
        bytes: u64,
        /// What the plan needs.
        needed: u64,
    },
    /// The plan has no such shard.
    #[error(
        "there is no shard {shard}: the run has {shards}. Roles are started by `tcptwin run`, not by hand"
    )]
    NoSuchShard {
        /// What was asked for.
        shard: u16,
        /// What there is.
        shards: u16,
    },
}

/// Longest sleep; also the beat when nothing happens.
const BEAT: Duration = Duration::from_millis(100);
/// Pause before a full inject ring is looked at again: nobody rings when it empties.
const ROOM_PAUSE: Duration = Duration::from_micros(500);
/// Between looks whether a drain is over.
const DRAIN_LOOK: Duration = Duration::from_millis(5);
/// Time that the injector has to take the last resets.
const LAST_WORDS_US: u64 = 1_000_000;

/// Works as shard `shard` until the run ends.
pub fn run(region: &'static Region, plan: &Plan, shard: u16) -> Result<(), WorkerError> {
    let spec = region.spec();
    if shard >= spec.shards || shard >= plan.shards {
        return Err(WorkerError::NoSuchShard { shard, shards: spec.shards.min(plan.shards) });
    }
    if (spec.inject_ring as usize) < MIN_RING {
        return Err(WorkerError::SmallRing { bytes: spec.inject_ring });
    }
    if spec.arena < arena_bytes(plan) {
        return Err(WorkerError::SmallArena { bytes: spec.arena, needed: arena_bytes(plan) });
    }
    Worker::new(region, plan, shard).work();
    Ok(())
}

struct Worker {
    region: &'static Region,
    control: &'static Control,
    heartbeat: &'static Heartbeat,
    bell: &'static Doorbell,
    inbox: Inbox,
    shard: Shard,
    phase: Phase,
    drain_us: u64,
}

enum Phase {
    Running,
    /// `over_us`: when what is left is given up; set for good once the input is over.
    Draining {
        over_us: u64,
        input_over: bool,
    },
    Abandoning {
        until_us: u64,
        pumped: bool,
    },
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something was taken or sent.
    Worked,
    /// Nothing to do.
    Idle,
    /// There is something to do, and no room for it.
    Blocked,
}

impl Worker {
    fn new(region: &'static Region, plan: &Plan, shard: u16) -> Self {
        // First of all: a killed predecessor's last word may be that input is pending, which makes who is only booting
        // look hung.
        let heartbeat = region.heartbeat(Role::Shard(shard));
        heartbeat.set_pending(false);
        heartbeat.set_state(RoleState::Starting);
        heartbeat.set_epoch(heartbeat.epoch() + 1);
        heartbeat.beat(shm::monotonic_ms());
        let bell = region.doorbell(Role::Shard(shard));
        let (shard, inbox) = Shard::attach(region, plan, shard);
        Self {
            region,
            control: region.control(),
            heartbeat,
            bell,
            inbox,
            shard,
            phase: Phase::Running,
            drain_us: u64::from(plan.replay.drain_ms) * 1_000,
        }
    }

    fn work(mut self) {
        self.heartbeat.set_state(RoleState::Running);
        self.heartbeat.set_pending(true);
        while !self.control.halt() {
            let now_us = shm::monotonic_us();
            self.heartbeat.beat(now_us / 1_000);
            let step = self.step(now_us);
            if self.advance(now_us) {
                break;
            }
            if step != Step::Worked {
                self.sleep(now_us, step);
            }
        }
        self.shard.last(shm::monotonic_us());
        self.heartbeat.set_pending(false);
        self.heartbeat.set_state(RoleState::Done);
        // The injector ends with the last shard.
        self.region.doorbell(Role::Injector).ring();
    }

    fn step(&mut self, now_us: u64) -> Step {
        let Self { inbox, shard, control, phase, .. } = self;
        if !shard.has_room() {
            shard.publisher.add(WorkerCount::CreditWaits, 1);
            shard.commit(now_us, None, false);
            return Step::Blocked;
        }
        shard.table.was_deaf(control.deaf_ms() * 1_000);
        let abandoning = matches!(phase, Phase::Abandoning { .. });
        // After giving up, no input is taken any more: what is left in the rings stays there, and counts as such.
        let full = shard.is_full();
        let mut taken = if abandoning {
            None
        } else if full {
            Some(inbox.take_returned())
        } else {
            Some(inbox.take())
        }
        .filter(|taken| !taken.is_empty());
        if let Some(taken) = &mut taken {
            shard.feed(now_us, taken, control);
        }
        let held_up = full || taken.as_ref().is_some_and(Taken::is_untouched);
        let walks = shard.walk();
        let due = shard.tick(now_us);
        let shedding = !abandoning && shard.shed(now_us, control);
        let all_given_up = !abandoning || shard.table.abandon(now_us);
        // The last words do not wait: there is a second for them.
        let more = !abandoning && shard.is_held_back() || shard.pump(now_us);
        if shard.is_behind(now_us) {
            control.set_behind_ms(now_us / 1_000);
        }
        let had_input = taken.as_ref().is_some_and(|taken| !taken.is_untouched());
        let sent = shard.commit(now_us, taken.as_mut(), false);
        if let Phase::Abandoning { pumped, .. } = phase {
            *pumped = all_given_up && !more;
        }
        shard.note_faults(inbox.faults());
        if had_input || due || sent || shedding {
            shard.publisher.add(WorkerCount::Batches, 1);
            Step::Worked
        } else if walks {
            Step::Worked
        } else if more || held_up {
            Step::Blocked
        } else {
            Step::Idle
        }
    }

    /// Moves from phase to phase; true when the work is done.
    fn advance(&mut self, now_us: u64) -> bool {
        match &mut self.phase {
            Phase::Running => {
                if self.control.draining() {
                    self.heartbeat.set_state(RoleState::Draining);
                    self.shard.drain(now_us);
                    // Twice the time allowed for a capturer that never says it is done.
                    self.phase = Phase::Draining { over_us: now_us + 2 * self.drain_us, input_over: false };
                }
                false
            }
            Phase::Draining { over_us, input_over } => {
                if !*input_over
                    && self.region.heartbeat(Role::Capturer).state() == RoleState::Done
                    && self.inbox.no_captures()
                {
                    *input_over = true;
                    *over_us = (*over_us).min(now_us + self.drain_us);
                }
                if (*input_over && self.shard.is_through(now_us)) || now_us >= *over_us {
                    self.phase = Phase::Abandoning { until_us: now_us + LAST_WORDS_US, pumped: false };
                }
                false
            }
            Phase::Abandoning { until_us, pumped } => *pumped || now_us >= *until_us,
        }
    }

    /// Sleeps until something comes, a timer is due, or it is time to beat.
    fn sleep(&mut self, now_us: u64, step: Step) {
        if let Phase::Abandoning { .. } = self.phase
            && step == Step::Idle
        {
            return;
        }
        let ticket = self.bell.prepare();
        let timeout = if step == Step::Blocked {
            ROOM_PAUSE
        } else {
            if !self.inbox.is_empty() || self.control.halt() {
                return self.bell.cancel();
            }
            self.heartbeat.set_pending(false);
            self.until_next_timer(now_us)
        };
        self.bell.wait(ticket, timeout);
        self.heartbeat.set_pending(true);
    }

    fn until_next_timer(&self, now_us: u64) -> Duration {
        let at_us = self.shard.table.next_deadline_us();
        let timer = at_us.map(|at_us| Duration::from_micros(at_us.saturating_sub(now_us)));
        let longest = if matches!(self.phase, Phase::Draining { .. }) { DRAIN_LOOK } else { BEAT };
        timer.map_or(longest, |timer| timer.min(longest))
    }
}

#[cfg(test)]
mod tests;
