//! Deaths, restarts and hangs. A successor never starts before its predecessor is dead, by the kernel's word (waitid(2)):
//! rings, counters and arenas have one user at a time because of that, and of nothing else.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use shm::RoleState;
use topology::Process;

use super::{Phase, Supervisor};
use crate::backoff::Verdict;
use crate::member::Death;
use crate::{aftermath, hang, procfs, spawn, words};

/// Between tries to start a role when the system refuses.
const START_AGAIN: Duration = Duration::from_secs(1);

/// What becomes of a dead worker's sessions.
fn words_of(verdict: aftermath::Verdict) -> String {
    match verdict {
        aftermath::Verdict::GoesOn => ", 0 sessions lost".to_owned(),
        aftermath::Verdict::LeavesOut(_, kept) => {
            let file = match kept {
                Ok(file) => format!("tcptwin autopsy {}", file.display()),
                Err(why) => format!("not kept: {why}"),
            };
            format!(", what it died of twice is left out, with its session ({file})")
        }
        aftermath::Verdict::BeginsAnew(lost) => format!(", {} given up", words::counted(lost, "session")),
    }
}

impl Supervisor {
    pub(super) fn see_deaths(&mut self, now: Instant) {
        for position in 0..self.members.len() {
            if let Some(death) = self.members[position].has_died(&self.undertaker) {
                self.died(position, &death, now);
            }
        }
    }

    /// A process is dead: only now may anybody else write what was its own.
    fn died(&mut self, position: usize, death: &Death, now: Instant) {
        let process = self.members[position].process;
        let heartbeat = self.region.heartbeat(process.role());
        let draining = !matches!(self.phase, Phase::Running);
        heartbeat.set_pending(false);
        let how = match death {
            Death::InOrder if draining => {
                heartbeat.set_state(RoleState::Done);
                return;
            }
            Death::InOrder if process == Process::Capturer && self.has_read_all() => return,
            Death::InOrder => "ended by itself".to_owned(),
            Death::Forbidden => self.stopped(position),
            Death::Crash(how) | Death::Kill(how) => how.clone(),
        };
        if self.is_the_last(process, now) {
            let sessions = self.give_up(process);
            // Those after it wait for this word.
            heartbeat.set_state(RoleState::Done);
            self.event(format!("{process} died while draining ({how}){sessions}"));
            return;
        }
        heartbeat.set_state(RoleState::Starting);
        let crashed =
            matches!(death, Death::Crash(_) | Death::Forbidden) || self.members[position].was_hung();
        let sessions = match process {
            Process::Shard(shard) => words_of(self.aftermath.of_a_death(shard, crashed)),
            _ => String::new(),
        };
        let member = &mut self.members[position];
        if std::mem::take(&mut member.leaving) {
            member.restarts += 1;
            return member.start_at(now);
        }
        match member.backoff.died(now) {
            Verdict::Restart(pause) => {
                member.restarts += 1;
                member.start_at(now + pause);
                let pause = if pause >= Duration::from_secs(1) {
                    format!(" in {} s", pause.as_secs())
                } else {
                    String::new()
                };
                self.event(format!("{process} restarted{pause} ({how}){sessions}"));
            }
            Verdict::Stop => {
                self.give_up(process);
                self.fail(
                    now,
                    format!(
                        "{process} died more than 20 times in a minute (last: {how}); replay was stopped"
                    ),
                );
            }
        }
    }

    /// At which system call a role was stopped by its sandbox: it left that in the region.
    fn stopped(&mut self, position: usize) -> String {
        let member = &mut self.members[position];
        let left = self.region.heartbeat(member.process.role()).stopped_at().swap(0, Relaxed);
        let Some(call) = sandbox::calls::named_by(left) else {
            return "killed by SIGSYS, which its sandbox had not sent".to_owned();
        };
        let how = format!(
            "stopped by its sandbox at the system call {call}, which is not on its list: a defect or an attack, please report it; --sandbox off runs without"
        );
        member.stopped_at = Some(call);
        how
    }

    /// Whether a process that died now has no successor: all end anyway, and it is not the one whose work is waited for.
    fn is_the_last(&self, process: Process, now: Instant) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Draining(drain) => {
                drain.is_at_once() || drain.wants_kill(now) || !matches!(process, Process::Shard(_))
            }
            Phase::Over => true,
        }
    }

    /// What a process without a successor takes with it, in words.
    fn give_up(&mut self, process: Process) -> String {
        let Process::Shard(shard) = process else { return String::new() };
        let lost = self.aftermath.of_the_last(shard, self.reason_of_loss());
        format!(", {} lost", words::counted(lost, "session"))
    }

    pub(super) fn start_due(&mut self, now: Instant) {
        for position in 0..self.members.len() {
            if !self.members[position].is_due(now) {
                continue;
            }
            let process = self.members[position].process;
            if !self.may_start(process) {
                continue;
            }
            if process == Process::Capturer && std::mem::take(&mut self.renewed) {
                // Nobody else writes the capturer's counters now.
                capturer::begin_anew(self.region, &self.plan);
            }
            let outfit = spawn::Outfit {
                plan: &self.plan,
                epoch: self.region.epoch(),
                sockets: &self.sockets,
                lock: self.house.lock,
                ids: self.ids,
                quiet: self.house.quiet,
            };
            match spawn::start(process, outfit) {
                Ok(started) => {
                    // A fresh role has not beaten yet: its time begins now.
                    self.region.heartbeat(process.role()).beat(shm::monotonic_ms());
                    self.members[position].started(started);
                }
                Err(error) => {
                    tracing::error!("{error:#}; trying again in a second");
                    self.members[position].start_at(now + START_AGAIN);
                }
            }
        }
    }

    /// Kills roles that hang; their death is seen like any other.
    pub(super) fn watch(&mut self, now: Instant) {
        let now_ms = shm::monotonic_ms();
        let region = self.region;
        for (member, inputs) in self.members.iter_mut().zip(&self.inputs) {
            let heartbeat = region.heartbeat(member.process.role());
            member.recovery.runs(heartbeat.running_us());
            let Some(pid) = member.pid() else { continue };
            let pending = heartbeat.pending() || inputs.iter().any(|link| region.link_depth(*link) > 0);
            let starting = heartbeat.state() == RoleState::Starting;
            let sample = hang::Sample { pending, starting, beat_ms: heartbeat.last_ms(), now_ms };
            let look = || {
                let look = procfs::look(pid).filter(|look| !look.exiting)?;
                Some((look.state, procfs::cpu_exact(pid)?))
            };
            if let Some(hung) = member.watchdog.judge(now, sample, look) {
                tracing::warn!("{} {}: killed, to be started again", member.process, hung.words());
                self.events.push(format!("{} {}: killed", member.process, hung.words()));
                member.kill_hung(hung);
            }
        }
        self.watch_receiver(now_ms);
    }

    /// The injector's second thread has no process of its own to look at: it is given the whole patience.
    fn watch_receiver(&mut self, now_ms: u64) {
        let heartbeat = self.region.heartbeat(shm::Role::Receiver);
        let silent = now_ms.saturating_sub(heartbeat.last_ms());
        if heartbeat.state() != RoleState::Running || !heartbeat.pending() || silent < hang::PATIENCE_MS {
            return;
        }
        if let Some(injector) = self.members.iter().find(|member| member.process == Process::Injector) {
            tracing::warn!(
                "the return receiver did nothing for {silent} ms: the injector is killed, to be started again"
            );
            heartbeat.beat(now_ms);
            injector.kill();
        }
    }

    /// Under which reason a dead worker's bytes are dropped.
    pub(super) const fn reason_of_loss(&self) -> flow::Drop {
        match self.phase {
            Phase::Draining(drain) if drain.is_at_once() => flow::Drop::Stopped,
            _ => flow::Drop::WorkerLost,
        }
    }
}
