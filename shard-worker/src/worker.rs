//! The poll loop of one shard, its pause, its drain and its end.
//!
//! One step is: room for the output, then a batch of input, timers, output, one publish, one ring of the injector's bell, the
//! counters, and only then the inputs are freed. With nothing to do the worker sleeps on its own bell until the next timer,
//! 100 ms at most.
//!
//! | phase | goes on when | to |
//! |---|---|---|
//! | `Running` | the control word says drain | `Draining`: the machine opens no new session |
//! | `Draining` | input is over and the machine quiet, or the drain time is over | `Abandoning`: it resets what is left |
//! | `Abandoning` | the resets are out, or the injector takes nothing for a second | done |
//! | any | the control word says halt | done |
//!
//! **Pause.** While the control word says pause, sessions that exist go on, because cutting them would make failures that the
//! target is not to blame for; flows that the machine does not know are not begun. It is told to sample everything out,
//! and what it refuses for that reason is counted as wanted and dropped as `paused`, with the copies that the flow would
//! have had. A flow that outlives the pause is joined like any flow older than the capture.

use std::time::Duration;

use flow::{Captured, sample};
use session::{Count, Table};
use shm::{Control, Doorbell, Heartbeat, Link, Region, Role, RoleState};
use topology::Plan;

use crate::config::{arena_bytes, machine_config};
use crate::counters::{Publisher, WorkerCount};
use crate::inbox::{Inbox, Taken};
use crate::outbox::{MIN_RING, Outbox};

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
/// Pumps of one step: 1,024 records, so that input waits a millisecond at most behind a long backlog of output.
const PUMPS: usize = 64;
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
    injector: &'static Doorbell,
    inbox: Inbox,
    outbox: Outbox,
    table: Table,
    publisher: Publisher,
    phase: Phase,
    drain_us: u64,
    known: Known,
}

/// Absolute values of other parts as last published.
#[derive(Default)]
struct Known {
    faults: u64,
    refused: u64,
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
        let table = Table::new(region.arena(shard), machine_config(plan, shard));
        let publisher = Publisher::new(region.counters(Role::Shard(shard)), table.tally());
        Self {
            region,
            control: region.control(),
            heartbeat,
            bell: region.doorbell(Role::Shard(shard)),
            injector: region.doorbell(Role::Injector),
            inbox: Inbox::new(region.consumer(Link::Capture(shard)), region.consumer(Link::Returns(shard))),
            outbox: Outbox::new(region.producer(Link::Inject(shard))),
            table,
            publisher,
            phase: Phase::Running,
            drain_us: u64::from(plan.replay.drain_ms) * 1_000,
            known: Known::default(),
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
        self.publisher.publish(shm::monotonic_us(), self.table.tally(), true);
        self.heartbeat.set_pending(false);
        self.heartbeat.set_state(RoleState::Done);
        // The injector ends with the last shard.
        self.injector.ring();
    }

    fn step(&mut self, now_us: u64) -> Step {
        if !self.outbox.has_room() {
            self.publisher.add(WorkerCount::CreditWaits, 1);
            return Step::Blocked;
        }
        let Self { inbox, outbox, table, publisher, control, injector, phase, known, .. } = self;
        table.was_deaf(control.deaf_ms() * 1_000);
        let abandoning = matches!(phase, Phase::Abandoning { .. });
        // After giving up, no input is taken any more: what is left in the rings stays there, and counts as such.
        let taken = (!abandoning).then(|| inbox.take()).filter(|taken| !taken.is_empty());
        if let Some(taken) = &taken {
            feed(taken, now_us, table, publisher, control);
        }
        let due = table.next_deadline_us().is_some_and(|at_us| at_us <= now_us);
        if due {
            table.tick(now_us);
        }
        let mut more = true;
        for _ in 0..PUMPS {
            more = table.pump(now_us, outbox);
            if !more || !outbox.has_room() {
                break;
            }
        }
        let sent = outbox.publish();
        if sent {
            injector.ring();
        }
        if let Phase::Abandoning { pumped, .. } = phase {
            *pumped = !more;
        }
        if taken.is_none() && !due && !sent {
            // Late histograms: the last batch may have been too early for them.
            publisher.publish(now_us, table.tally(), false);
            return if more { Step::Blocked } else { Step::Idle };
        }
        publisher.add(WorkerCount::Batches, 1);
        publisher.raise(WorkerCount::OutboxRefused, &mut known.refused, outbox.refused());
        publisher.publish(now_us, table.tally(), false);
        // Outputs first, inputs last.
        if let Some(taken) = taken {
            taken.release();
        }
        publisher.raise(WorkerCount::RingFaults, &mut known.faults, inbox.faults());
        Step::Worked
    }

    /// Moves from phase to phase; true when the work is done.
    fn advance(&mut self, now_us: u64) -> bool {
        match &mut self.phase {
            Phase::Running => {
                if self.control.draining() {
                    self.heartbeat.set_state(RoleState::Draining);
                    self.table.drain(now_us);
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
                if (*input_over && self.table.is_quiet()) || now_us >= *over_us {
                    self.table.abandon(now_us);
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
        let timer =
            self.table.next_deadline_us().map(|at_us| Duration::from_micros(at_us.saturating_sub(now_us)));
        timer.map_or(BEAT, |timer| timer.min(BEAT))
    }
}

/// Gives a batch to the machine: answers first, so that the turns they open go out with what was captured meanwhile.
fn feed(taken: &Taken<'_>, now_us: u64, table: &mut Table, publisher: &mut Publisher, control: &Control) {
    for header in taken.returned() {
        match header {
            Some(header) => table.returned(now_us, &header),
            None => publisher.add(WorkerCount::MalformedReturned, 1),
        }
    }
    let paused = control.paused();
    let (percent_ppm, copies_milli) = (control.percent_ppm(), control.copies_milli());
    for segment in taken.captured() {
        match segment {
            None => publisher.add(WorkerCount::MalformedCaptured, 1),
            Some((segment, payload)) if paused => {
                let before = table.tally().count(Count::SampledOut);
                table.captured(now_us, &segment, payload, 0, copies_milli);
                if table.tally().count(Count::SampledOut) != before {
                    let copies = copies_of(&segment, table.config().seeds.sample, percent_ppm, copies_milli);
                    publisher.paused(copies, payload.len());
                }
            }
            Some((segment, payload)) => table.captured(now_us, &segment, payload, percent_ppm, copies_milli),
        }
    }
}

/// How many sessions the flow of this segment would have, had it been begun; the machine asks in the same way.
fn copies_of(segment: &Captured, seed: u64, percent_ppm: u32, copies_milli: u32) -> u32 {
    sample::copies(seed, &segment.client, &segment.server, 0, percent_ppm, copies_milli)
}

#[cfg(test)]
mod tests;
