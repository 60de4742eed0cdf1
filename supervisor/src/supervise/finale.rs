//! A replay of files begins when the answers can come back, and ends by itself: when they are read and nothing moves any more.

use std::time::{Duration, Instant};

use shm::{Link, RoleState};
use topology::{Process, wiring};

use super::{LINK_TIME, Phase, Supervisor};
use crate::collect::Sample;
use crate::{terminal, words};

/// After the last packet was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finale {
    moved: Instant,
    looked: Instant,
    seen: Seen,
}

/// What changes while the replay makes progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    delivered: u64,
    answers: u64,
    waiting: u64,
}

/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// Least time without progress after which the end comes though not all is delivered.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Whether this process may be started: the reader of files waits for the others and for the way back, or the first
    /// connections would begin with a second of silence.
    pub(super) fn may_start(&self, process: Process) -> bool {
        process != Process::Capturer || self.may_read()
    }

    pub(super) fn may_read(&self) -> bool {
        let works = |process: &Process| {
            *process == Process::Capturer
                || self.region.heartbeat(process.role()).state() == RoleState::Running
        };
        self.plan.trace.is_none()
            || self.was_running
            || self.collector.age() >= LINK_TIME
            || self.collector.links_up() && wiring::processes(&self.plan).iter().all(works)
    }

    /// Whether the reader of files said that nothing more comes.
    pub(super) fn has_read_all(&self) -> bool {
        self.plan.trace.is_some()
            && self.region.heartbeat(Process::Capturer.role()).state() == RoleState::Done
    }

    /// Begins the drain once the files are read, the rings empty and all bytes delivered, or after the drain time without any
    /// progress. For the last answers the shards wait, who know the sessions.
    pub(super) fn end_with_the_files(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Running) || !self.has_read_all() {
            return;
        }
        let mut finale = self.finale.unwrap_or(Finale { moved: now, looked: now, seen: Seen::default() });
        if self.finale.is_some() && now < finale.looked + LOOK {
            return;
        }
        finale.looked = now;
        let stats = self.sample().stats;
        let waiting = (0..self.plan.shards).map(|shard| self.region.link_depth(Link::Capture(shard))).sum();
        let seen = Seen {
            delivered: stats.ledger.delivered.payload_bytes,
            answers: stats.returned.headers,
            waiting,
        };
        if seen != finale.seen {
            (finale.seen, finale.moved) = (seen, now);
        }
        self.finale = Some(finale);
        let still = now.duration_since(finale.moved);
        let through = seen.waiting == 0 && stats.ledger.in_flight.payload_bytes == 0;
        let patience = Duration::from_millis(self.plan.replay.drain_ms.into()).max(LEAST_PATIENCE);
        if through || still >= patience {
            self.begin_drain(now);
        }
    }
}

/// How much of the files is read, and how long the rest will take.
pub(super) struct Progress {
    /// None when nobody knows how much there is: a pipe has no length.
    share: Option<f64>,
    /// The same in words.
    pub(super) text: String,
}

/// Cells of the bar: it stands in 80 columns with its words.
const CELLS: usize = 40;

pub(super) fn progress(now: &Sample, elapsed: Duration) -> Option<Progress> {
    let replay = now.stats.replay.as_ref()?;
    let (read, all) = (replay.read_bytes, replay.bytes);
    if all == 0 {
        let packets = words::counted(now.stats.capture.frames, "packet");
        let text = format!("{} read, {packets}", words::bytes(read));
        return (read > 0).then_some(Progress { share: None, text });
    }
    let share = (read as f64 / all as f64).min(1.0);
    let left = (share > 0.0).then(|| elapsed.mul_f64(((1.0 - share) / share).min(1e6)));
    let left = left.map_or_else(String::new, |left| format!(", {} left", words::elapsed(left)));
    Some(Progress { share: Some(share), text: format!("{:.0} % read{left}", share * 100.0) })
}

impl Progress {
    /// A bar, or a wheel where there is no end to be seen, that turns with `round`.
    pub(super) fn drawn(&self, round: u32) -> String {
        let figure = match self.share {
            Some(share) => terminal::bar(share, CELLS),
            None => ["|", "/", "-", "\\"][round as usize % 4].to_owned(),
        };
        format!("  {figure} {}", self.text)
    }
}
