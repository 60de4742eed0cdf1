//! The canary once, outside of a run: dials the intercepts, sends a SYN to each target by the engine that its sessions would
//! have, and says what came back. Blocking; called by the supervisor before a start that needs it, and by whoever wants to
//! know what is wrong.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use flow::{Addr, Endpoint, Inject};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use returns::Message;
use shm::Control;
use topology::Plan;
use topology::plan::{Clients, InjectEngine};

use crate::canary::{Canary, Channel, Heard};
use crate::drain::post;
use crate::guard::Guard;
use crate::handshake::{DialError, Open, dial};
use crate::open::Sockets;
use crate::probe::{self, Report, Verdict};
use crate::sender::{Engine, Sender};
use crate::tally::Tally;
use crate::way::Choice;
use crate::ways::Lookout;

mod depth;

pub use depth::Depth;

/// What was found out.
#[derive(Debug)]
pub struct Findings {
    /// Each intercept of the plan: the channel's round trip in microseconds (0 when it was not answered), or why it does not
    /// take this instance.
    pub links: Vec<(SocketAddr, Result<u32, DialError>)>,
    /// Each target that is probed.
    pub ways: Vec<Finding>,
}

/// One target.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its address and port.
    pub target: SocketAddr,
    /// Where the probe spoke from.
    pub from: Addr,
    /// By which engine it left.
    pub engine: Choice,
    /// What came of it.
    pub report: Report,
    /// How far a conversation comes, where that was asked and the SYN was answered.
    pub depth: Option<Depth>,
}

/// How long an intercept has to answer, over three tries.
const DIAL_TIME: Duration = Duration::from_millis(1_500);
/// Time for a ping's answer, before the first probe.
const PING_TIME: Duration = Duration::from_millis(200);
/// Time for the ways to be known.
const WAYS_TIME: Duration = Duration::from_millis(600);
/// Three tries, and some time for a machine that is busy.
const PROBE_TIME: Duration = Duration::from_millis(1_500);

/// Probes every target of the plan. `control` says which devices are guarded, so that frames of our own may leave there; without
/// one everything leaves by raw IP. The instance of the plan must not be running: its connections would be taken from it.
///
/// # Errors
/// The sockets cannot be used by two.
pub fn probe(plan: &Plan, sockets: &Sockets, control: Option<&'static Control>) -> io::Result<Findings> {
    ask(plan, sockets, control, false)
}

/// The same, and what comes behind a handshake.
///
/// # Errors
/// The sockets cannot be used by two.
pub fn probe_deeply(
    plan: &Plan,
    sockets: &Sockets,
    control: Option<&'static Control>,
) -> io::Result<Findings> {
    ask(plan, sockets, control, true)
}

fn ask(
    plan: &Plan,
    sockets: &Sockets,
    control: Option<&'static Control>,
    deeply: bool,
) -> io::Result<Findings> {
    let (mut lines, mut links) = (Vec::new(), Vec::new());
    for &at in &plan.intercepts {
        match dial(at, plan, DIAL_TIME) {
            Ok(open) => {
                links.push((at, Ok(0)));
                lines.push(Line::new(at, open));
            }
            Err(error) => links.push((at, Err(error))),
        }
    }
    let mut round = Round::new(plan, sockets.try_clone()?, control, lines);
    round.ask_for_round_trips();
    for line in &round.lines {
        if let Some((_, known)) = links.iter_mut().find(|(at, _)| *at == line.at) {
            *known = Ok(line.rtt_us);
        }
    }
    let engines = round.wait_for_ways();
    round.run();
    let reports: Vec<(u16, Report)> = round.canary.reports().collect();
    let verdict = |index: u16| reports.iter().find(|(of, _)| *of == index).map(|one| one.1.verdict);
    let probed = probe::probed(plan);
    let depths: Vec<Option<Depth>> = probed
        .iter()
        .map(|way| {
            let asked = deeply && verdict(way.0) == Some(Verdict::Ok);
            asked.then(|| round.depth(*way, plan.targets[usize::from(way.0)].mtu))
        })
        .collect();
    round.lines.into_iter().for_each(|line| line.open.bye("probe only"));
    let finding = |((index, target, from), depth): ((u16, SocketAddr, Addr), Option<Depth>)| Finding {
        target,
        from,
        engine: engines.get(usize::from(index)).copied().unwrap_or(Choice::RawAsked),
        report: reports.iter().find(|(of, _)| *of == index).map_or_else(Report::default, |one| one.1),
        depth,
    };
    Ok(Findings { links, ways: probed.into_iter().zip(depths).map(finding).collect() })
}

impl Findings {
    /// The first thing that is wrong, as a sentence; none when every way is whole.
    pub fn trouble(&self, plan: &Plan) -> Option<String> {
        let way = self.ways.iter().find(|way| !way.report.verdict.passes())?;
        let down = self.links.iter().find_map(|(_, link)| link.as_ref().err());
        match (way.report.verdict, down) {
            (Verdict::ChannelDown, Some(error)) => Some(error.to_string()),
            _ => way.report.trouble(plan, way.target),
        }
    }
}

/// One intercept.
struct Line {
    at: SocketAddr,
    open: Open,
    rtt_us: u32,
    is_down: bool,
}

/// What works together for one probing.
struct Round {
    lines: Vec<Line>,
    of: u32,
    guard: Guard,
    engine: Sender,
    canary: Canary,
    from: HashSet<Addr>,
    /// Tells the engine of the ways as long as it lives.
    _lookout: Option<Lookout>,
    /// Flows are claimed one by one.
    claims: bool,
}

impl Round {
    fn new(plan: &Plan, sockets: Sockets, control: Option<&'static Control>, lines: Vec<Line>) -> Self {
        let number = shm::monotonic_ns() as u32;
        // Without one everything leaves by raw IP, as in a run.
        let lookout = Lookout::start(plan).ok();
        let engine = match control {
            Some(control) if plan.inject != InjectEngine::Raw => {
                let sockets = match lookout.as_ref().and_then(|lookout| lookout.attach().ok()) {
                    Some(ways) => sockets.told_by(ways),
                    None => sockets,
                };
                Sender::open(plan, sockets, control, number as u16)
            }
            _ => Sender::raw(sockets, number as u16),
        };
        let probed = probe::probed(plan);
        let birds = probed.iter().map(|&(index, to, from)| (index, Endpoint::from(to), from));
        let claims = matches!(plan.clients, Clients::Keep);
        Self {
            of: plan.intercepts.len() as u32,
            guard: Guard::new(plan),
            engine,
            canary: Canary::new(birds, claims, |_| Report::default(), shm::monotonic_us(), number),
            from: probed.iter().map(|one| one.2).collect(),
            claims,
            lines,
            _lookout: lookout,
        }
    }

    fn ask_for_round_trips(&mut self) {
        for line in &mut self.lines {
            line.say(|out| out.ping(shm::monotonic_us()));
        }
        let until = Instant::now() + PING_TIME;
        while self.lines.iter().any(|line| line.rtt_us == 0 && !line.is_down) && Instant::now() < until {
            self.listen(until);
        }
    }

    /// Lets the engine find its ways; by which engine each target is sent to.
    fn wait_for_ways(&mut self) -> Vec<Choice> {
        let until = Instant::now() + WAYS_TIME;
        let (mut tally, mut engines) = (Tally::default(), Vec::new());
        loop {
            self.engine.look(&mut tally);
            if let Some(news) = self.engine.news() {
                engines = news.collect();
            }
            let known = |choice: &Choice| !matches!(choice, Choice::Unknown | Choice::NoNeighbour);
            if engines.iter().all(known) || Instant::now() >= until {
                return engines;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn run(&mut self) {
        let until = Instant::now() + PROBE_TIME;
        while self.canary.is_waiting() && Instant::now() < until {
            let now_us = shm::monotonic_us();
            let up = self.lines.iter().filter(|line| !line.is_down).count() as u32;
            let channel = Channel { up, of: self.of };
            self.with_post(|canary, send| canary.turn(now_us, channel, send));
            let rest = Duration::from_micros(self.canary.due_us().saturating_sub(now_us));
            for heard in self.listen((Instant::now() + rest).min(until)) {
                self.with_post(|canary, send| canary.heard(&heard, send));
            }
        }
    }

    /// Lets the canary send; flows are claimed at every intercept first.
    fn with_post(&mut self, work: impl FnOnce(&mut Canary, crate::canary::Send<'_>)) {
        let Self { lines, guard, engine, canary, .. } = self;
        work(canary, &mut |record: &Inject| {
            if record.bits & flow::record::inject_bit::CLAIM != 0
                && let Some(target) = guard.target(record.target)
            {
                lines.iter_mut().for_each(|line| line.say(|out| out.claim(&record.client, &target)));
            }
            post(engine, guard, None, &mut Tally::default(), record)
        });
    }

    /// Waits for what the intercepts say, until then at most; the headers among it that are for us.
    fn listen(&mut self, until: Instant) -> Vec<Heard> {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait is not repeated for the rest of a millisecond.
        let ms = (left.as_micros().div_ceil(1_000)).min(1_000) as u16;
        let mut fds: Vec<PollFd<'_>> = self
            .lines
            .iter()
            .filter(|line| !line.is_down)
            .map(|line| PollFd::new(line.open.stream.as_fd(), PollFlags::POLLIN))
            .collect();
        // Whatever poll says, the reads that follow tell.
        let _ = poll(&mut fds, PollTimeout::from(ms));
        drop(fds);
        let mut heard = Vec::new();
        for line in self.lines.iter_mut().filter(|line| !line.is_down) {
            line.is_down = line.read(&self.from, &mut heard).is_err();
        }
        heard
    }
}

impl Line {
    fn new(at: SocketAddr, open: Open) -> Self {
        // One that cannot be set up is as good as none: what it would say never comes.
        let is_down = open.stream.set_nonblocking(true).is_err();
        Self { at, open, rtt_us: 0, is_down }
    }

    /// Sends a small message; a socket of our own that is empty takes it.
    fn say(&mut self, message: impl FnOnce(&mut returns::Outgoing) -> bool) {
        let Open { stream, link, .. } = &mut self.open;
        message(link.outgoing());
        link.outgoing().flush();
        match stream.write(link.pending()) {
            Ok(n) => link.sent(n),
            Err(_) => self.is_down = true,
        }
    }

    fn read(&mut self, from: &HashSet<Addr>, heard: &mut Vec<Heard>) -> io::Result<()> {
        loop {
            let Open { stream, link, .. } = &mut self.open;
            match stream.read(link.receive_buffer()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => link.received(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let at_us = shm::monotonic_us();
            let mut pong = None;
            while let Some(message) = link.next().map_err(|error| io::Error::other(error.to_string()))? {
                match message {
                    Message::Batch(batch) => {
                        let records = batch.records().flatten().filter(|r| from.contains(&r.client.addr));
                        heard.extend(records.map(|record| Heard { record, at_us, back_us: self.rtt_us / 2 }));
                    }
                    Message::Ping(token) => pong = Some(token),
                    Message::Pong(token) => {
                        self.rtt_us = u32::try_from(at_us.saturating_sub(token)).unwrap_or(u32::MAX).max(1);
                    }
                    _ => {}
                }
            }
            if let Some(token) = pong {
                self.say(|out| out.pong(token));
            }
        }
    }
}
