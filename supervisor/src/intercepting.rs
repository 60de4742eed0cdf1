//! `tcptwin intercept`: one process. The capture and link threads are the `intercept` crate's; here are its options, its
//! control socket and its end.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use intercept::{Count, Door, Intercept, Stats, TunOptions};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use shm::LockFile;
use topology::guard::{self, Place, Taken};
use topology::{Key, Options, Refusal, listening_from, planner};

use crate::blackhole::{self, Blackhole, State, Wanted};
use crate::control::{Reply, Request, Server};
use crate::service::Service;
use crate::{confine, key, logging, metrics, place, preflight, procfs, relay, words};

/// Works until it is asked to end.
///
/// # Errors
/// A [`Refusal`] before the start; anything else is a failure while running.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    logging::start_apart("intercept", logging::level(options.has(Key::Quiet)));
    procfs::volunteer_for_oom(procfs::OOM_OF_SUPERVISORS);
    let wanted = listening_from(options, key::of_options(options)?)?;
    let exporter = planner::metrics_addr(options)?;
    if !procfs::capable(procfs::CAP_NET_RAW) {
        let program = std::env::current_exe()
            .map_or_else(|_| "/usr/bin/tcptwin".to_owned(), |path| path.display().to_string());
        return Err(Refusal::preflight(format!(
            "seeing the answers needs CAP_NET_RAW. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep {program}"
        ))
        .into());
    }
    let standing = confine::ready(wanted.sandbox)?;
    let directory = place::directory().map_err(Refusal::preflight)?;
    let lock =
        LockFile::acquire(&wanted.name, &directory).map_err(|error| Refusal::preflight(error.to_string()))?;

    let mut taken = preflight::of_this_host();
    taken.extend(
        wanted.services.iter().map(|service| Taken { addr: service.ip(), what: "a target".to_owned() }),
    );
    wanted.tun.iter().flatten().try_for_each(|range| guard::free(range, &taken))?;
    if wanted.tun.is_some() {
        for service in wanted.services.iter().filter(|service| !is_here(**service)) {
            tracing::warn!(
                "--tun sees only answers that pass this host, and {} is none of its addresses: run this on the target's \
                 host, unless it is a container or guest of this one whose answers are routed here",
                service.ip()
            );
        }
    }

    let stop = Arc::new(AtomicBool::new(false));
    let hole = match wanted.tun {
        // A device of its own: what comes into it ends there.
        Some(_) => None,
        None => Some(blackhole::hold(
            Wanted {
                name: wanted.name.clone(),
                services: wanted.services.clone(),
                interfaces: wanted.interfaces.clone(),
                guard: wanted.guard,
                sysctl: Path::new(blackhole::SYSCTL),
            },
            Arc::clone(&stop),
        )?),
    };

    let mut order = intercept::Options::new(wanted.services.tcp);
    order.datagrams = wanted.services.udp;
    order.name.clone_from(&wanted.name);
    order.interfaces = wanted.interfaces;
    order.tun = wanted.tun.map(TunOptions::new);
    order.listen = wanted.listen;
    order.key = wanted.key;
    order.plain = wanted.plain;
    let stats = Arc::clone(&order.stats);
    let device = order.tun.as_ref().map(|tun| tun.name.clone());
    let opened = match Intercept::open(order) {
        Ok(opened) => opened,
        Err(error) => {
            hole.into_iter().for_each(Blackhole::leave_as_found);
            return Err(Refusal::preflight(error.to_string()).into());
        }
    };
    let started = Instant::now();
    let exporter = exporter.map(listen_for_readers).transpose()?;
    let server = Server::bind(&directory, &wanted.name)
        .with_context(|| format!("opening the control socket in {} failed", directory.display()))?;
    let service = Service::of_environment();
    tracing::info!("{}", confine::note(wanted.sandbox, &standing));
    // All is open now, and no thread runs yet but the one that watches whether this host forwards.
    if let Some(keep) = confine::of_intercept(wanted.sandbox, &standing, &directory, device.as_deref()) {
        keep.give_up()?.enter(None)?;
    }
    relay::carry().context("starting the thread of the log failed")?;
    hole.iter().for_each(Blackhole::confined);
    if let Some(listener) = exporter {
        let (stats, name) = (Arc::clone(&stats), wanted.name.clone());
        let held = hole.as_ref().map(Blackhole::state);
        metrics::serve(listener, move || {
            metrics::feed_value(&name, "tcptwin_intercept", &figures(&stats, held.as_deref()));
        })
        .context("starting the thread of the figures failed")?;
    }

    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        // The second one does not wait.
        if asked.swap(true, Relaxed) {
            std::process::exit(1);
        }
    })
    .context("listening for Ctrl-C failed")?;
    let held = hole.as_ref().map(Blackhole::state);
    let desk = Desk {
        name: wanted.name,
        stats: Arc::clone(&stats),
        stop: Arc::clone(&stop),
        started,
        service,
        turns: (0, 0),
        held: held.clone(),
    };
    let over = Arc::new(AtomicBool::new(false));
    let thread = {
        let over = Arc::clone(&over);
        std::thread::Builder::new().name("control".to_owned()).spawn(move || desk.serve(server, &over))?
    };
    let summary = opened.run(stop);
    over.store(true, Relaxed);
    // It closes the control socket.
    let _ = thread.join();
    let failure = held.and_then(|held| held.failure());
    drop(hole);
    drop(lock);
    if let Some(sentence) = failure {
        anyhow::bail!("{sentence}");
    }
    let summary = summary?;
    if options.has(Key::Json) {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        let shown = words::thousands;
        println!(
            "{:<11}{} captured ({} dropped by the kernel)",
            "headers",
            shown(summary.captured),
            shown(summary.kernel_drops)
        );
        println!(
            "{:<11}{} to {}",
            "returned",
            shown(summary.sent),
            words::counted(summary.welcomed, "connection")
        );
        println!(
            "{:<11}{} for slow or absent runs, {} that nobody owned",
            "not sent",
            shown(summary.queue_dropped),
            shown(summary.without_owner)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What was counted, and the guard where there may be one.
fn figures(stats: &Stats, held: Option<&State>) -> Value {
    let mut all = stats.snapshot();
    if let (Some(held), Value::Object(all)) = (held, &mut all) {
        all.insert("guard".to_owned(), held.snapshot());
    }
    all
}

/// Opens the address of the Prometheus text.
fn listen_for_readers(at: SocketAddr) -> Result<TcpListener, Refusal> {
    TcpListener::bind(at).map_err(|error| {
        let why = words::of_io(&error);
        Refusal::preflight(format!(
            "--metrics {at}: listening there failed ({why}). Choose another address or port"
        ))
    })
}

/// Whether this host has the address; one that the kernel knows no way to is elsewhere.
fn is_here(addr: SocketAddr) -> bool {
    let here = |route: injector::RouteFacts| matches!(route.place, Place::ThisHost | Place::Loopback);
    injector::route_to(addr).is_ok_and(here)
}

/// Answers at the control socket.
struct Desk {
    name: String,
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    started: Instant,
    service: Service,
    /// Turns of the capture loop and of the loop of connections at the last sign of life.
    turns: (u64, u64),
    /// There where answers could be forwarded.
    held: Option<Arc<State>>,
}

/// Between looks whether it is over.
const TICK: Duration = Duration::from_millis(200);

impl Desk {
    fn serve(mut self, mut server: Server, over: &AtomicBool) {
        while !over.load(Relaxed) {
            self.tell_manager(Instant::now());
            let mut fds: Vec<PollFd<'_>> = server
                .waits_for()
                .map(|(fd, writing)| {
                    PollFd::new(fd, if writing { PollFlags::POLLOUT } else { PollFlags::POLLIN })
                })
                .collect();
            // EINTR and the like: the next round looks again.
            let _ = poll(&mut fds, PollTimeout::from(TICK.as_millis() as u16));
            drop(fds);
            server.serve(Instant::now(), |request| self.reply(request));
        }
        self.service.stopping();
    }

    /// Tells the service manager what is new. A loop that stands still gets no sign of life, and the manager restarts us.
    fn tell_manager(&mut self, now: Instant) {
        if !self.service.is_there() || !self.stats.is_ready() {
            return;
        }
        self.service.ready();
        let turns = (self.stats.get(Count::Drains), self.stats.door(Door::Turns));
        let both_went_on = turns.0 != self.turns.0 && turns.1 != self.turns.1;
        self.service.alive(now, || both_went_on);
        if both_went_on {
            self.turns = turns;
        }
        let sent = self.stats.get(Count::Sent);
        self.service.status(format!("{} headers returned", words::thousands(sent)));
    }

    fn reply(&self, request: Request) -> Reply {
        match request {
            Request::Stats => Reply::Ok(self.state()),
            Request::Stop => {
                self.stop.store(true, Relaxed);
                Reply::Ok(Value::String("stopping".to_owned()))
            }
            Request::Pause
            | Request::Resume
            | Request::Percent { .. }
            | Request::Copies { .. }
            | Request::Upgrade
            | Request::Halt => Reply::Error(format!(
                "{} is an intercept, which only knows `stop`. Ask the run instead: tcptwin ctl --name NAME ...",
                self.name
            )),
        }
    }

    fn state(&self) -> Value {
        let look = procfs::look(0);
        let state = match (self.stop.load(Relaxed), self.stats.is_ready()) {
            (true, _) => "stopping",
            (false, true) => "running",
            (false, false) => "starting",
        };
        let mut whole = json!({
            "name": self.name,
            "kind": "intercept",
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            "state": state,
            "roles": [{
                "role": "intercept",
                "index": 0,
                "pid": std::process::id(),
                "state": state,
                "restarts": 0,
                "cpu_s": look.map_or(0.0, |look| look.cpu.as_secs_f64()),
                "rss_bytes": look.map_or(0, |look| look.rss_bytes),
            }],
        });
        if let (Value::Object(whole), Value::Object(counted)) =
            (&mut whole, figures(&self.stats, self.held.as_deref()))
        {
            whole.extend(counted);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_among_the_figures_where_there_may_be_one() {
        let stats = Stats::default();
        assert!(figures(&stats, None).get("guard").is_none());
        let with = figures(&stats, Some(&State::default()));
        assert_eq!((&with["guard"]["dropped"], &with["guard"]["installed"]), (&json!(0), &json!(false)));
        assert!(with.as_object().unwrap().len() > 1, "beside what was counted");
    }
}
