//! Draws faults and commits them, and takes back those that last a while.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::impair::{ALL, Impairment, Way, lose};
use lab::{Instance, Network};
use nix::sys::signal::Signal;
use shm::monotonic_us;
use topology::Process;

use crate::args::{Args, Kind};
use crate::random::Random;
use crate::stage::Stage;
use crate::watch::{Blow, Watch};

/// Commits faults on one stage.
pub(crate) struct Faults<'a> {
    stage: &'a Stage,
    watch: &'a Watch,
    args: &'a Args,
    random: Random,
    begin_us: u64,
    next_us: u64,
    committed: u64,
    /// What is to be taken back, and when.
    lasting: Vec<(u64, Lasting<'a>)>,
    /// There unless it was killed and is not started again yet.
    intercept: Option<Instance>,
    /// Likewise.
    run: Option<Instance>,
    blind: Vec<(u64, u64)>,
}

/// What an instance that has ended says of the reason.
fn last_words(run: &Instance) -> String {
    let said = run.stderr();
    let reason = said.lines().rev().find(|line| line.contains("error") || line.contains("died more than"));
    let advice = if said.contains("died more than") { "; a larger --spacing keeps below that" } else { "" };
    format!("{}{advice}", reason.or_else(|| said.lines().last()).unwrap_or("it said nothing").trim())
}

/// What is there when all faults are over.
pub(crate) struct Survivors {
    pub(crate) run: Instance,
    pub(crate) intercept: Instance,
    /// Times without anybody to capture, µs: from a supervisor's death until its successor was at work.
    pub(crate) blind: Vec<(u64, u64)>,
}

enum Lasting<'a> {
    NoIntercept,
    NoSupervisor,
    Channel(Impairment<'a>),
    Target(Impairment<'a>),
    Route,
}

/// A host that is not there.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 99);
/// Prefix length of half of the clients' range.
const HALF: u8 = lab::network::CLIENTS_V4.1 + 1;

/// The clients' range in two, which a route prefers to the whole.
fn halves() -> [IpAddr; 2] {
    let base = lab::network::CLIENTS_V4.0;
    [base, Ipv4Addr::from_bits(base.to_bits() + (1 << (32 - HALF)))].map(IpAddr::from)
}

/// Packets of the return channel.
const CHANNEL: &str = "tcp dport 36524";
const CHANNEL_BACK: &str = "tcp sport 36524";
/// Deaths by a signal; the last two are what a crash does.
const DEADLY: [Signal; 3] = [Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGABRT];
/// Tries to start a successor of the supervisor, and the pause after each.
const STARTS: u32 = 10;
const START_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait for a successor of the supervisor.
const START: Duration = Duration::from_secs(20);

impl<'a> Faults<'a> {
    pub(crate) fn new(
        stage: &'a Stage,
        watch: &'a Watch,
        args: &'a Args,
        run: Instance,
        intercept: Instance,
    ) -> Self {
        let begin_us = monotonic_us();
        Self {
            stage,
            watch,
            args,
            random: Random::new(args.seed),
            begin_us,
            next_us: begin_us,
            committed: 0,
            lasting: Vec::new(),
            intercept: Some(intercept),
            run: Some(run),
            blind: Vec::new(),
        }
    }

    /// Whether as many were committed as were asked for.
    pub(crate) fn is_over(&self) -> bool {
        self.args.kills.is_some_and(|kills| self.committed >= kills)
    }

    /// Does what is due now.
    pub(crate) fn turn(&mut self) -> Result<()> {
        if let Some(run) = &mut self.run
            && run.has_ended()
        {
            bail!("the run ended by itself after {} faults: {}", self.committed, last_words(run));
        }
        let now_us = monotonic_us();
        self.take_back(now_us)?;
        if now_us < self.next_us {
            return Ok(());
        }
        let (least, most) = (self.args.every * 500, self.args.every * 1_500);
        self.next_us = now_us + self.random.between(least, most);
        let Some(kind) = self.random.of(&self.args.faults) else { return Ok(()) };
        // One that cannot be committed now is left out: the next is drawn from the same seed.
        if self.commit(kind, now_us)? {
            self.committed += 1;
        }
        Ok(())
    }

    /// Takes back whatever still lasts.
    pub(crate) fn end(mut self) -> Result<Survivors> {
        self.take_back(u64::MAX)?;
        Ok(Survivors {
            run: self.run.context("no supervisor is left")?,
            intercept: self.intercept.context("no intercept is left")?,
            blind: self.blind,
        })
    }

    fn commit(&mut self, kind: Kind, now_us: u64) -> Result<bool> {
        let rested = self.watch.book().rested(now_us, self.args.spacing * 1_000);
        let roles: Vec<Process> = rested
            .into_iter()
            .filter(|process| match kind {
                Kind::Capturer => *process == Process::Capturer,
                Kind::Injector => *process == Process::Injector,
                Kind::Shard => matches!(process, Process::Shard(_)),
                _ => true,
            })
            .collect();
        match kind {
            Kind::Capturer | Kind::Shard | Kind::Injector | Kind::Hang | Kind::Spin => {
                self.strike(kind, &roles)
            }
            Kind::Intercept => self.kill_intercept(now_us),
            Kind::Channel => self.cut_channel(now_us),
            Kind::Target => self.cut_target(now_us),
            Kind::Supervisor => self.kill_supervisor(now_us),
            Kind::Guard => self.remove_guard(),
            Kind::Route => self.mislead_answers(now_us),
            Kind::Neighbour => self.change_neighbour(),
        }
    }

    /// Nobody is down and nothing is cut: then how long a recovery takes is that fault's own doing.
    fn is_calm(&self) -> bool {
        self.lasting.is_empty() && self.watch.book().is_calm()
    }

    fn strike(&mut self, kind: Kind, roles: &[Process]) -> Result<bool> {
        let Some(process) = self.random.of(roles).filter(|_| self.run.is_some()) else { return Ok(false) };
        let blow = match kind {
            Kind::Hang => Blow::Signal(Signal::SIGSTOP),
            Kind::Spin => Blow::Spin,
            _ => Blow::Signal(self.random.of(&DEADLY).unwrap_or(DEADLY[0])),
        };
        let Some(pid) = self.watch.book().strike(kind, process, blow)? else { return Ok(false) };
        self.log(&format!("{} {process} pid {pid} {blow}", kind.name()));
        Ok(true)
    }

    fn kill_intercept(&mut self, now_us: u64) -> Result<bool> {
        if !self.is_calm() {
            return Ok(false);
        }
        let Some(intercept) = self.intercept.take() else { return Ok(false) };
        let away_us = self.random.between(0, 1_000_000);
        self.watch.book().link_cut(Kind::Intercept);
        self.log(&format!("intercept pid {} SIGKILL, back in {} ms", intercept.pid(), away_us / 1_000));
        intercept.kill()?;
        self.lasting.push((now_us + away_us, Lasting::NoIntercept));
        Ok(true)
    }

    fn cut_channel(&mut self, now_us: u64) -> Result<bool> {
        if !self.is_calm() {
            return Ok(false);
        }
        let us = self.random.between(100_000, self.args.cut.max(100) * 1_000);
        self.log(&format!("channel cut for {} ms", us / 1_000));
        let Network { online, assistant, .. } = &self.stage.net;
        let ways = [
            Way { from: online, to: assistant, what: CHANNEL },
            Way { from: assistant, to: online, what: CHANNEL_BACK },
        ];
        let cut = lose(&self.stage.net, &ways, ALL)?;
        self.watch.book().link_cut(Kind::Channel);
        self.lasting.push((now_us + us, Lasting::Channel(cut)));
        Ok(true)
    }

    fn cut_target(&mut self, now_us: u64) -> Result<bool> {
        if !self.is_calm() {
            return Ok(false);
        }
        let us = self.random.between(50_000, 1_000_000);
        self.log(&format!("target path cut for {} ms", us / 1_000));
        let Network { online, target, assistant, .. } = &self.stage.net;
        let (to, from) = (format!("tcp dport {}", self.stage.at_target.port()), self.stage.at_target.port());
        let back = format!("tcp sport {from}");
        let ways =
            [Way { from: online, to: target, what: &to }, Way { from: target, to: assistant, what: &back }];
        let cut = lose(&self.stage.net, &ways, ALL)?;
        self.watch.book().count(Kind::Target);
        self.lasting.push((now_us + us, Lasting::Target(cut)));
        Ok(true)
    }

    fn remove_guard(&mut self) -> Result<bool> {
        if !self.is_calm() {
            return Ok(false);
        }
        let ns = &self.stage.net.online.ns;
        let tables = lab::real::run(ns, "nft", &["list", "tables"], START)?.stdout;
        let tables: Vec<&str> = tables
            .lines()
            .filter_map(|line| line.strip_prefix("table "))
            .filter(|t| t.contains("tcptwin"))
            .collect();
        let Some(table) = self.random.of(&tables) else { return Ok(false) };
        let (family, name) = table.split_once(' ').context("a table has a family and a name")?;
        lab::real::run(ns, "nft", &["delete", "table", family, name], START)?;
        self.watch.book().count(Kind::Guard);
        self.log(&format!("guard {table} removed"));
        Ok(true)
    }

    fn mislead_answers(&mut self, now_us: u64) -> Result<bool> {
        // With kept clients their own routes are the ones in use.
        if !self.is_calm() || self.args.keep_clients {
            return Ok(false);
        }
        let us = self.random.between(100_000, 3_000_000);
        for half in halves() {
            lab::network::route_range(&self.stage.net.target, half, HALF, NOBODY.into())?;
        }
        self.watch.book().count(Kind::Route);
        self.log(&format!("answers lead nowhere for {} ms", us / 1_000));
        self.lasting.push((now_us + us, Lasting::Route));
        Ok(true)
    }

    fn change_neighbour(&mut self) -> Result<bool> {
        if !self.is_calm() {
            return Ok(false);
        }
        let address = format!("02:00:00:00:01:{:02x}", self.random.between(1, 255));
        let words = ["link", "set", "eth0", "address", &address];
        lab::real::run(&self.stage.net.target.ns, "ip", &words, START)?;
        self.watch.book().count(Kind::Neighbour);
        self.log(&format!("the target's card is {address}"));
        Ok(true)
    }

    fn kill_supervisor(&mut self, now_us: u64) -> Result<bool> {
        // A start asks every intercept first, so the channel has to be whole.
        if !self.is_calm() {
            return Ok(false);
        }
        let Some(run) = self.run.take() else { return Ok(false) };
        self.log(&format!("supervisor pid {} SIGKILL", run.pid()));
        self.watch.book().supervisor_died();
        run.kill()?;
        self.blind.push((now_us, u64::MAX));
        // As soon as a service manager would: at once.
        self.lasting.push((now_us, Lasting::NoSupervisor));
        Ok(true)
    }

    fn take_back(&mut self, now_us: u64) -> Result<()> {
        while let Some(at) = self.lasting.iter().position(|(due_us, _)| *due_us <= now_us) {
            match self.lasting.swap_remove(at).1 {
                Lasting::NoIntercept => {
                    self.intercept = Some(self.stage.begin_intercept()?);
                    self.watch.book().link_healed();
                }
                Lasting::Channel(cut) => {
                    let hits = cut.end()?;
                    self.watch.book().link_healed();
                    self.log(&format!("channel whole again; {hits} packets were dropped"));
                }
                Lasting::Target(cut) => {
                    let hits = cut.end()?;
                    self.log(&format!("target path whole again; {hits} packets were dropped"));
                }
                Lasting::Route => {
                    for half in halves() {
                        let gone = move || lab::netlink::remove_route(half, HALF, NOBODY.into());
                        self.stage.net.target.ns.enter(gone)?;
                    }
                    self.log("answers lead to the assistant again");
                }
                Lasting::NoSupervisor => self.start_supervisor()?,
            }
        }
        Ok(())
    }

    fn start_supervisor(&mut self) -> Result<()> {
        let mut run = self.stage.begin_run()?;
        for _ in 0..STARTS {
            std::thread::sleep(START_PAUSE);
            if !run.has_ended() {
                break;
            }
            // The roles of the dead one may hold its lock a moment longer; a service manager tries again, too.
            run = self.stage.begin_run()?;
        }
        self.watch.book().supervisor_started(run.pid());
        self.log(&format!("supervisor started again, pid {}", run.pid()));
        let calm = lab::wait::until("every role works again", START, || {
            run.has_ended() || self.watch.book().is_calm()
        });
        if run.has_ended() || calm.is_err() {
            let who = self.watch.book().who_is_down();
            let ended = if run.has_ended() { "it ended" } else { "it runs" };
            return Err(anyhow::anyhow!("{ended}; down: {who}\n{}", run.stderr()))
                .context("the supervisor's successor did not take the region over");
        }
        if let Some(last) = self.blind.last_mut() {
            last.1 = monotonic_us();
        }
        self.run = Some(run);
        Ok(())
    }

    fn log(&self, what: &str) {
        let s = (monotonic_us() - self.begin_us) as f64 / 1e6;
        println!("{s:9.3}  {what}");
    }
}
