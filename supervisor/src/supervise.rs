//! The supervisor's loop: one thread that waits for what may happen (a role dies, somebody asks, a signal, the next tick)
//! and does what must follow. It touches no packet and holds none up: roles work on while it sleeps.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shm::{Region, RoleState};
use topology::{Plan, Process, wiring};

use crate::backoff::Verdict;
use crate::cli::Order;
use crate::collect::{Collector, Sample};
use crate::control::{Reply, Request, Server};
use crate::hang::{self, Hung};
use crate::live;
use crate::lost::Morgue;
use crate::member::{Death, Member};
use crate::metrics::Board;
use crate::signals::Signals;
use crate::spawn::{self, Sockets};
use crate::terminal::{self, Terminal};
use crate::{drain, procfs, words};

/// What the loop works with.
pub(crate) struct Supervisor {
    /// The shared region.
    pub(crate) region: &'static Region,
    /// What runs.
    pub(crate) plan: Plan,
    /// Sockets of the roles.
    pub(crate) sockets: Sockets,
    /// The control socket.
    pub(crate) server: Server,
    /// Ctrl-C.
    pub(crate) signals: Signals,
    /// The view.
    pub(crate) terminal: Terminal,
    /// Lines of figures are wanted.
    pub(crate) live: bool,
    /// Where the exporter looks, if there is one.
    pub(crate) board: Option<Board>,
    members: Vec<Member>,
    morgue: Morgue,
    collector: Collector,
    phase: Phase,
    events: Vec<String>,
    failure: Option<String>,
    was_running: bool,
}

/// Where in its life the run is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// Roles are started, watched and started again.
    Running,
    /// In order, by stages.
    Draining(drain::Drain),
    /// Nothing lives any more.
    Over,
}

/// How a run ended.
pub(crate) struct Ended {
    /// The last figures.
    pub(crate) sample: Sample,
    /// Why it ended, if nobody asked for it.
    pub(crate) failure: Option<String>,
    /// The view, for the last lines.
    pub(crate) terminal: Terminal,
}

/// Between looks at heartbeats: a hung role is found within 250 to 350 ms.
const TICK: Duration = Duration::from_millis(100);
/// The same while draining, where each stage waits for the one before.
const DRAIN_TICK: Duration = Duration::from_millis(10);
/// Between lines of a terminal's view.
const LINE: Duration = Duration::from_secs(1);
/// Between lines where nobody watches: a log file holds a day of them.
const LOG_LINE: Duration = Duration::from_secs(10);
/// Time that the return channel gets to come up before the run counts as running without it.
const LINK_TIME: Duration = Duration::from_secs(3);
/// Between tries to start a role when the system refuses.
const START_AGAIN: Duration = Duration::from_secs(1);
/// Lines of a terminal's view between two headings.
const LINES_A_HEADING: u32 = 20;

impl Supervisor {
    /// A supervisor of a region that it has just made; no role is started yet.
    #[allow(clippy::too_many_arguments, reason = "each is made elsewhere and handed over once")]
    pub(crate) fn new(
        region: &'static Region,
        plan: Plan,
        sockets: Sockets,
        server: Server,
        signals: Signals,
        terminal: Terminal,
        live: bool,
        board: Option<Board>,
    ) -> Self {
        let members = wiring::processes(&plan).into_iter().map(Member::new).collect();
        let morgue = Morgue::new(region);
        let collector = Collector::new(region, plan.clone(), Instant::now());
        Self {
            region,
            plan,
            sockets,
            server,
            signals,
            terminal,
            live,
            board,
            members,
            morgue,
            collector,
            phase: Phase::Running,
            events: Vec::new(),
            failure: None,
            was_running: false,
        }
    }

    /// Runs until the end. Must be called by the main thread ([`crate::spawn`]).
    pub(crate) fn run(mut self) -> Ended {
        let begin = Instant::now();
        let every = if self.terminal.is_terminal { LINE } else { LOG_LINE };
        let mut last = self.sample();
        let (mut next_line, mut next_sample) = (begin + every, begin + LINE);
        let mut lines = 0;
        loop {
            self.wait();
            let now = Instant::now();
            self.answer(now);
            self.reap(now);
            self.start_due(now);
            self.watch(now);
            self.end_if_asked(now);
            if let Phase::Draining(drain) = self.phase {
                self.phase = self.advance(drain, now);
            }
            if let Phase::Over = self.phase {
                break;
            }
            if now >= next_sample && self.board.is_some() {
                next_sample = now + LINE;
                let sample = self.sample();
                self.publish(sample);
            }
            if now >= next_line {
                next_line = now + every;
                last = self.show(&last, now.duration_since(begin), &mut lines);
            }
        }
        for event in std::mem::take(&mut self.events) {
            self.terminal.line(event);
        }
        let sample = self.sample();
        self.publish(sample.clone());
        Ended { sample, failure: self.failure, terminal: self.terminal }
    }

    /// Sleeps until something happens or the next tick.
    fn wait(&mut self) {
        let tick = if matches!(self.phase, Phase::Running) { TICK } else { DRAIN_TICK };
        let now = Instant::now();
        let due =
            self.members.iter().filter_map(Member::due).map(|at| at.saturating_duration_since(now)).min();
        let sleep = due.map_or(tick, |due| due.min(tick));
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.signals.bell())];
        fds.extend(self.members.iter().filter_map(Member::alive).map(readable));
        fds.extend(self.server.waits_for().map(|(fd, writing)| {
            PollFd::new(fd, if writing { PollFlags::POLLOUT } else { PollFlags::POLLIN })
        }));
        // Rounded up, or the last millisecond before a tick would be spent spinning.
        let ms = sleep.as_micros().div_ceil(1000).min(1000) as u16;
        // EINTR: a signal; its count is looked at anyway.
        let _ = poll(&mut fds, PollTimeout::from(ms));
        let rang = fds.first().and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        drop(fds);
        if rang {
            self.signals.heard();
        }
    }

    fn answer(&mut self, now: Instant) {
        let mut server = std::mem::replace(&mut self.server, Server::closed());
        server.serve(now, |request| self.reply(request, now));
        self.server = server;
    }

    fn reply(&mut self, request: Request, now: Instant) -> Reply {
        let control = self.region.control();
        let said = |text: String| Reply::Ok(serde_json::Value::String(text));
        let order = match request {
            Request::Stats => {
                return match serde_json::to_value(self.sample().stats) {
                    Ok(stats) => Reply::Ok(stats),
                    Err(error) => Reply::Error(format!("the figures cannot be written: {error}")),
                };
            }
            Request::Pause => Order::Pause,
            Request::Resume => Order::Resume,
            Request::Stop => Order::Stop,
            Request::Percent { ppm } => Order::Percent(ppm),
            Request::Copies { milli } => Order::Copies(milli),
        };
        if !matches!(self.phase, Phase::Running) {
            return Reply::Error(format!("the instance {} is ending already", self.plan.name));
        }
        match order {
            Order::Pause => {
                control.set_paused(true);
                self.event("paused by ctl".to_owned());
                said("paused: what is captured from now on is counted as `paused`; `tcptwin ctl resume` goes on".to_owned())
            }
            Order::Resume => {
                control.set_paused(false);
                self.event("resumed by ctl".to_owned());
                said("resumed".to_owned())
            }
            Order::Stop => {
                self.begin_drain(now);
                said(format!("draining, at most {} s", self.plan.replay.drain_ms.div_ceil(1000)))
            }
            Order::Percent(ppm) if (1..=1_000_000).contains(&ppm) => {
                control.set_percent_ppm(ppm);
                self.event(format!("{} % of new flows by ctl", f64::from(ppm) / 1e4));
                said(format!("{} % of new flows from now on; open ones go on", f64::from(ppm) / 1e4))
            }
            Order::Copies(milli) if (1..=topology::planner::MAX_COPIES * 1000).contains(&milli.into()) => {
                control.set_copies_milli(milli);
                self.event(format!("{} copies of new flows by ctl", f64::from(milli) / 1e3));
                said(format!("{} copies of new flows from now on; open ones go on", f64::from(milli) / 1e3))
            }
            Order::Percent(_) | Order::Copies(_) => {
                Reply::Error("this number is out of its bounds".to_owned())
            }
        }
    }

    fn reap(&mut self, now: Instant) {
        for position in 0..self.members.len() {
            if let Some(death) = self.members[position].reap() {
                self.died(position, &death, now);
            }
        }
    }

    /// A process is gone and out of the process table: only now may anybody else write what was its own.
    fn died(&mut self, position: usize, death: &Death, now: Instant) {
        let process = self.members[position].process;
        let heartbeat = self.region.heartbeat(process.role());
        let draining = !matches!(self.phase, Phase::Running);
        let lost = match process {
            Process::Shard(shard) => self.morgue.bury(shard, self.reason_of_loss()),
            _ => 0,
        };
        heartbeat.set_pending(false);
        let how = match death {
            Death::InOrder if draining => {
                heartbeat.set_state(RoleState::Done);
                return;
            }
            Death::InOrder => "ended by itself".to_owned(),
            Death::Other(how) => how.clone(),
        };
        let sessions = match process {
            Process::Shard(_) => format!(", {} lost", words::counted(lost, "session")),
            _ => String::new(),
        };
        if draining {
            // Those after it wait for this word.
            heartbeat.set_state(RoleState::Done);
            self.event(format!("{process} died while draining ({how}){sessions}"));
            return;
        }
        heartbeat.set_state(RoleState::Starting);
        let member = &mut self.members[position];
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
            Verdict::Stop => self.fail(
                now,
                format!("{process} died more than 20 times in a minute (last: {how}); replay was stopped"),
            ),
        }
    }

    fn start_due(&mut self, now: Instant) {
        for position in 0..self.members.len() {
            if !self.members[position].is_due(now) {
                continue;
            }
            let process = self.members[position].process;
            match spawn::start(process, &self.plan, self.region.epoch(), &self.sockets) {
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
    fn watch(&mut self, now: Instant) {
        let now_ms = shm::monotonic_ms();
        for member in &mut self.members {
            let Some(pid) = member.pid() else { continue };
            let heartbeat = self.region.heartbeat(member.process.role());
            let sample = hang::Sample { pending: heartbeat.pending(), beat_ms: heartbeat.last_ms(), now_ms };
            let look = || Some((procfs::look(pid)?.state, procfs::cpu_exact(pid)?));
            if let Some(hung) = member.watchdog.judge(now, sample, look) {
                self.events.push(format!("{} {}: killed", member.process, Hung::words(hung)));
                tracing::warn!("{} {}: killed, to be started again", member.process, hung.words());
                member.kill();
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

    fn end_if_asked(&mut self, now: Instant) {
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

    fn begin_drain(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Running) {
            self.region.control().set_draining(true);
            self.ring_all();
            self.phase = Phase::Draining(drain::Drain::begin(now, self.plan.replay.drain_ms));
            self.event(
                "draining: capture has ended, open requests may finish; Ctrl-C again stops at once"
                    .to_owned(),
            );
        }
    }

    /// Stops replaying safely, because of a fault.
    fn fail(&mut self, now: Instant, why: String) {
        tracing::error!("{why}");
        self.failure.get_or_insert(why);
        self.region.control().set_draining(true);
        self.phase = Phase::Draining(drain::Drain::at_once(now));
    }

    /// One step of the drain.
    fn advance(&mut self, drain: drain::Drain, now: Instant) -> Phase {
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
    fn ring_all(&self) {
        for process in wiring::processes(&self.plan) {
            self.region.doorbell(process.role()).ring();
        }
        self.region.doorbell(shm::Role::Receiver).ring();
    }

    /// Under which reason a dead worker's bytes are dropped.
    const fn reason_of_loss(&self) -> flow::Drop {
        match self.phase {
            Phase::Draining(drain) if drain.is_at_once() => flow::Drop::Stopped,
            _ => flow::Drop::WorkerLost,
        }
    }

    fn event(&mut self, text: String) {
        tracing::info!("{text}");
        self.events.push(text);
    }

    /// The figures now.
    fn sample(&mut self) -> Sample {
        let up = self.is_up();
        let state = match self.phase {
            Phase::Over => "stopped",
            Phase::Draining(_) => "draining",
            Phase::Running if self.region.control().paused() => "paused",
            Phase::Running if up => "running",
            Phase::Running => "starting",
        };
        self.collector.sample(&self.members, state)
    }

    /// Whether every role works, or once did, and the return channel is up, or had its time.
    fn is_up(&mut self) -> bool {
        let running =
            |member: &Member| self.region.heartbeat(member.process.role()).state() == RoleState::Running;
        let late = self.collector.age() >= LINK_TIME;
        if !self.was_running && self.members.iter().all(running) {
            self.was_running = late || self.collector.links_up();
        }
        self.was_running
    }

    fn publish(&self, sample: Sample) {
        if let Some(board) = &self.board {
            *board.lock().expect("no holder panics") = Some(sample.stats);
        }
    }

    /// A line of the view; returns the figures that it was made of.
    fn show(&mut self, before: &Sample, elapsed: Duration, lines: &mut u32) -> Sample {
        let now = self.sample();
        let events = std::mem::take(&mut self.events);
        if !self.live {
            return now;
        }
        if let Phase::Draining(drain) = self.phase {
            let left = drain.left(Instant::now()).as_secs();
            let stats = &now.stats;
            self.terminal.line(format!(
                "  draining  {left} s left, {} open, {} in flight",
                words::counted(stats.sessions.open, "session"),
                words::bytes(stats.ledger.in_flight.payload_bytes)
            ));
            return now;
        }
        if lines.is_multiple_of(LINES_A_HEADING) {
            self.terminal.line(live::heading());
        }
        *lines += 1;
        let columns = terminal::columns();
        let event = match events.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            [.., last] => Some(format!("{last} (and {} more, see the log)", events.len() - 1)),
        };
        let live::Line { text, good } = live::line(before, &now, elapsed, event.as_deref(), columns);
        // Yellow where it asks for attention.
        let paint = self.terminal.colour && !good;
        self.terminal.line(if paint { format!("\x1b[33m{text}\x1b[0m") } else { text });
        now
    }
}
