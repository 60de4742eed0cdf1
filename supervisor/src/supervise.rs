//! The supervisor's loop: one thread that waits for what may happen (a role dies, somebody asks, a signal, the next tick)
//! and does what must follow. It touches no packet and holds none up: roles work on while it sleeps.
//!
//! | file | holds |
//! |---|---|
//! | `watch` | deaths, restarts, hangs |
//! | `orders` | what the control socket asks for |
//! | `engines` | by which engines packets leave, and whether the ways to the targets are whole |
//! | `rolling` | another image of the program: into it, and role by role after it |
//! | `halting` | the end at once |
//! | `keeping` | budget and ramp |
//! | `ending` | the ordered end |
//! | `finale` | when a replay of files begins, and when it is over |

mod ending;
mod engines;
mod finale;
mod halting;
mod keeping;
mod orders;
mod rolling;
mod watch;

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use injector::{Engines, Fence};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sandbox::Ids;
use serde::{Deserialize, Serialize};
use shm::{Link, Region, RoleState};
use topology::{Plan, wiring};

use crate::aftermath::Aftermath;
use crate::canary;
use crate::collect::{Collector, Sample};
use crate::control::Server;
use crate::halt::Switch;
use crate::live;
use crate::member::Member;
use crate::metrics::Board;
use crate::service::Service;
use crate::signals::Signals;
use crate::sockets::Sockets;
use crate::stats::Guard;
use crate::terminal::{self, Terminal};
use crate::undertaker::Undertaker;
use crate::upgrade::Handover;
use crate::{drain, hang, recording, words};
use rolling::Rolling;

/// What the loop works with.
pub(crate) struct Setup {
    /// The shared region.
    pub(crate) region: &'static Region,
    /// What runs.
    pub(crate) plan: Plan,
    /// Sockets of the roles.
    pub(crate) sockets: Sockets,
    /// The capture sockets are new ones and the region is not.
    pub(crate) renewed: bool,
    /// Whom the roles become.
    pub(crate) ids: Option<Ids>,
    /// The control socket.
    pub(crate) server: Server,
    /// Ctrl-C.
    pub(crate) signals: Signals,
    /// The view.
    pub(crate) terminal: Terminal,
    /// The service manager.
    pub(crate) service: Service,
    /// Where the exporter looks, if there is one.
    pub(crate) board: Option<Board>,
    /// What else a next image must know.
    pub(crate) house: House,
    /// The kernel's guard.
    pub(crate) fence: Option<Fence>,
    /// By which engines packets will leave, as the person was told.
    pub(crate) engines: Option<Engines>,
    /// What the image before this one left.
    pub(crate) before: Option<Handover>,
}

/// What stays the same from image to image of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct House {
    /// Where lock and control socket are.
    pub(crate) directory: PathBuf,
    /// Where the program was started from; the file may be another one by now.
    pub(crate) program: PathBuf,
    /// The kill switch.
    pub(crate) halt_file: PathBuf,
    /// Roles log warnings only, and there is no view.
    pub(crate) quiet: bool,
    /// The summary is JSON, and there is no view.
    pub(crate) json: bool,
    /// Where the exporter listens.
    pub(crate) metrics: Option<SocketAddr>,
    /// Descriptors of the log's pipe and of the stderr behind it.
    pub(crate) log: Option<(RawFd, RawFd)>,
    /// Descriptor of the lock.
    pub(crate) lock: RawFd,
    /// When the run started, CLOCK_MONOTONIC microseconds.
    pub(crate) started_us: u64,
}

/// The loop and what it knows.
pub(crate) struct Supervisor {
    region: &'static Region,
    plan: Plan,
    sockets: Sockets,
    renewed: bool,
    ids: Option<Ids>,
    server: Server,
    signals: Signals,
    terminal: Terminal,
    service: Service,
    board: Option<Board>,
    house: House,
    switch: Switch,
    fence: Option<Fence>,
    engines: Option<Engines>,
    canary: canary::News,
    /// Lines of figures are wanted.
    live: bool,
    members: Vec<Member>,
    undertaker: Undertaker,
    /// The rings that each member reads.
    inputs: Vec<Vec<Link>>,
    aftermath: Aftermath,
    collector: Collector,
    phase: Phase,
    rolling: Option<Rolling>,
    /// The program at our path was found fit: it is executed once the person who asked has the answer.
    upgrade: bool,
    events: Vec<String>,
    /// The condition that the view has explained.
    told: &'static str,
    failure: Option<String>,
    halted: bool,
    keeping: keeping::Keeping,
    was_running: bool,
    finale: Option<finale::Finale>,
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
    /// The service manager, for the last words.
    pub(crate) service: Service,
    /// The sockets, of which it may keep copies.
    pub(crate) sockets: Sockets,
    /// The kernel's guard, which goes last.
    pub(crate) fence: Option<Fence>,
}

/// Between looks at heartbeats of roles that beat.
const TICK: Duration = Duration::from_millis(100);
/// The same where each step waits for the one before, while draining and while roles are replaced; and while a role is
/// suspect.
const SHORT_TICK: Duration = Duration::from_millis(10);
/// Between lines of a terminal's view.
const LINE: Duration = Duration::from_secs(1);
/// Between lines where nobody watches: a log file holds a day of them.
const LOG_LINE: Duration = Duration::from_secs(10);
/// Time that the return channel gets to come up before the run counts as running without it.
const LINK_TIME: Duration = Duration::from_secs(3);
/// Lines of a terminal's view between two headings.
const LINES_A_HEADING: u32 = 20;

impl Supervisor {
    /// A supervisor; no role is started by it yet.
    ///
    /// # Errors
    /// A process of the image before cannot be taken over, or there is no thread to be had.
    pub(crate) fn new(setup: Setup) -> anyhow::Result<Self> {
        let Setup {
            region,
            plan,
            sockets,
            renewed,
            ids,
            server,
            signals,
            terminal,
            service,
            board,
            house,
            fence,
            engines,
            before,
        } = setup;
        let processes = wiring::processes(&plan);
        let inputs = processes.iter().map(|process| wiring::inputs(&plan, *process)).collect();
        let members = match &before {
            None => processes.into_iter().map(Member::new).collect(),
            Some(before) if before.members.len() == processes.len() => processes
                .into_iter()
                .zip(&before.members)
                .map(|(process, heir)| Member::inherited(process, *heir))
                .collect::<std::io::Result<_>>()
                .context("taking over a role of the image before failed")?,
            Some(_) => anyhow::bail!("the image before had other roles than the plan in the region"),
        };
        let aftermath = Aftermath::new(region, plan.clone(), house.directory.clone());
        let age = Duration::from_micros(shm::monotonic_us().saturating_sub(house.started_us));
        let now = Instant::now();
        let keeping = keeping::Keeping::new(&plan);
        let collector = Collector::new(region, plan.clone(), now.checked_sub(age).unwrap_or(now));
        Ok(Self {
            region,
            plan,
            sockets,
            renewed,
            ids,
            server,
            signals,
            terminal,
            service,
            board,
            live: !house.quiet && !house.json,
            switch: Switch::watch(house.halt_file.clone()),
            house,
            fence,
            engines,
            canary: canary::News::default(),
            members,
            undertaker: Undertaker::start()?,
            inputs,
            aftermath,
            collector,
            phase: Phase::Running,
            was_running: before.is_some(),
            rolling: before.map(|before| Rolling::begin(before.from)),
            upgrade: false,
            events: Vec::new(),
            told: "",
            failure: None,
            halted: false,
            keeping,
            finale: None,
        })
    }

    /// Runs until the end. Must be called by the main thread ([`crate::spawn`]).
    pub(crate) fn run(mut self) -> Ended {
        let begin = Instant::now();
        self.keep_nothing_yet();
        let every = if self.terminal.is_terminal { LINE } else { LOG_LINE };
        let mut last = self.sample();
        let (mut next_line, mut next_sample) = (begin + every, begin + LINE);
        let mut lines = 0;
        loop {
            self.wait();
            let now = Instant::now();
            self.halt_if_thrown(now);
            self.see_deaths(now);
            self.start_due(now);
            self.answer(now);
            self.watch(now);
            self.keep(now);
            self.roll(now);
            self.end_if_asked(now);
            self.end_with_the_files(now);
            self.report(now);
            self.watch_engines();
            self.watch_ways();
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
            let draining = matches!(self.phase, Phase::Draining(_));
            if now >= next_line || (draining && now + LINE < next_line) {
                next_line = now + if draining { LINE } else { every };
                last = self.show(&last, now.duration_since(begin), &mut lines);
            }
        }
        for event in std::mem::take(&mut self.events).into_iter().filter(|_| self.live) {
            self.terminal.line(event);
        }
        let sample = self.sample();
        self.publish(sample.clone());
        Ended {
            sample,
            failure: self.failure,
            terminal: self.terminal,
            service: self.service,
            sockets: self.sockets,
            fence: self.fence,
        }
    }

    /// Sleeps until something happens or the next tick.
    fn wait(&mut self) {
        let suspects = self.members.iter().any(|member| member.watchdog.suspects());
        let calm = matches!(self.phase, Phase::Running)
            && self.rolling.is_none()
            && !suspects
            && self.finale.is_none()
            && self.may_read();
        let tick = if calm { TICK } else { SHORT_TICK };
        let now = Instant::now();
        let due = self
            .members
            .iter()
            .filter(|member| self.may_start(member.process))
            .filter_map(Member::due)
            .map(|at| at.saturating_duration_since(now))
            .min();
        let sleep = due.map_or(tick, |due| due.min(tick)).min(self.until_silent(tick));
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.signals.bell())];
        fds.extend(self.switch.news().map(readable));
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

    /// Time until the next role that lives could be noticed for its silence: it is looked at then and not a tick later.
    fn until_silent(&self, tick: Duration) -> Duration {
        let now_ms = shm::monotonic_ms();
        let left = |member: &Member| {
            let noticed_ms = self.region.heartbeat(member.process.role()).last_ms() + hang::NOTICE_MS;
            // One that is silent already is looked at every tick.
            noticed_ms.checked_sub(now_ms).filter(|left| *left > 0).map(Duration::from_millis)
        };
        self.members.iter().filter(|member| member.is_alive()).filter_map(left).min().unwrap_or(tick)
    }

    fn answer(&mut self, now: Instant) {
        let mut server = std::mem::replace(&mut self.server, Server::closed());
        server.serve(now, |request| self.reply(request, now));
        self.server = server;
    }

    /// Tells the service manager that the loop turns, and how things are.
    fn report(&mut self, now: Instant) {
        if !self.service.is_there() {
            return;
        }
        if matches!(self.phase, Phase::Running) && self.is_up() {
            self.service.ready();
        }
        let (region, members) = (self.region, &self.members);
        self.service.alive(now, || {
            let now_ms = shm::monotonic_ms();
            // A role that pauses before its next start is cared for; one that neither works nor dies is not.
            members.iter().all(|member| {
                let silent = now_ms.saturating_sub(region.heartbeat(member.process.role()).last_ms());
                !member.is_alive() || silent <= 2 * hang::PATIENCE_MS
            })
        });
    }

    /// Something happened that a person should know: in the view, and in the log unless both are the same terminal.
    fn event(&mut self, text: String) {
        if !(self.live && self.terminal.is_terminal) {
            tracing::warn!("{text}");
        }
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
        let mut sample = self.collector.sample(&self.members, state);
        let inject = &mut sample.stats.inject;
        if let Some(engines) = &self.engines {
            (inject.engine, inject.why) = (engines.engine().to_owned(), engines.why());
        }
        sample.stats.guard = Guard { dropped: self.fence.as_ref().map_or(0, Fence::dropped) };
        sample.stats.restraint = self.restraint();
        sample
    }

    /// Whether every role works, or once did, and the return channel is up, or had its time.
    fn is_up(&mut self) -> bool {
        let running = |member: &Member| match self.region.heartbeat(member.process.role()).state() {
            RoleState::Running => true,
            // A short file is read before anybody looks.
            RoleState::Done => self.plan.trace.is_some(),
            _ => false,
        };
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
        if self.plan.records_only() {
            return self.show_recording(before, now, &events, elapsed, lines);
        }
        self.service.status(format!(
            "{}, {}, {} delivered",
            now.stats.state,
            words::counted(now.stats.sessions.open, "open session"),
            words::bytes(now.stats.ledger.delivered.payload_bytes)
        ));
        if !self.live {
            return now;
        }
        if let Phase::Draining(drain) = self.phase {
            let left = drain.left_for_requests(Instant::now()).as_secs();
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
            // Who looks only now has not seen it.
            self.told = "";
        }
        *lines += 1;
        let columns = terminal::columns();
        let event = in_one(&events);
        let live::Line { text, good, told } =
            live::line(before, &now, elapsed, event.as_deref(), self.told, columns);
        self.told = told;
        // Yellow where it asks for attention.
        let progress = finale::progress(&now, elapsed);
        let text = match &progress {
            Some(progress) if !self.terminal.rewrites => format!("{text}   {}", progress.text),
            _ => text,
        };
        let text = match live::ramp(&now.stats) {
            Some(ramp) => format!("{text}   {ramp}"),
            None => text,
        };
        self.paint(text, good);
        if let Some(progress) = progress.filter(|_| self.terminal.rewrites) {
            self.terminal.below(progress.drawn(*lines));
        }
        now
    }

    /// The same where nothing is replayed.
    fn show_recording(
        &mut self,
        before: &Sample,
        now: Sample,
        events: &[String],
        elapsed: Duration,
        lines: &mut u32,
    ) -> Sample {
        let written = now.stats.record.as_ref().map_or(0, |record| record.written.bytes);
        self.service.status(format!("{}, {} recorded", now.stats.state, words::bytes(written)));
        if !self.live {
            return now;
        }
        if lines.is_multiple_of(LINES_A_HEADING) {
            self.terminal.line(recording::heading());
        }
        *lines += 1;
        let (text, good) = recording::line(&before.stats, &now.stats, elapsed, in_one(events).as_deref());
        self.paint(text, good);
        now
    }

    fn paint(&mut self, text: String, good: bool) {
        let paint = self.terminal.colour && !good;
        self.terminal.line(if paint { format!("\x1b[33m{text}\x1b[0m") } else { text });
    }
}

/// What happened since the last line, in one.
fn in_one(events: &[String]) -> Option<String> {
    match events {
        [] => None,
        [one] => Some(one.clone()),
        [.., last] => Some(format!("{last} (and {} more before)", events.len() - 1)),
    }
}
