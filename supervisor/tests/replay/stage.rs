//! Where most stories start: online and target services that write down every id, one intercept on the assistant host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::load::RunningLoad;
use lab::story::step;
use lab::{
    Answers, Fidelity, Host, HttpOptions, HttpService, Instance, Load, LoadReport, Network, Stats, Twin,
    Witness, network, wait,
};

/// Port of the captured service.
pub(crate) const ONLINE_PORT: u16 = 80;
/// Port of the service under test.
pub(crate) const TARGET_PORT: u16 = 8_080;
/// Longest wait for the last requests to reach the target, on a machine that is busy with other things.
pub(crate) const SETTLE: Duration = Duration::from_secs(15);
/// Ids that a story may use.
const IDS: usize = 200_000;

/// The built program.
pub(crate) fn twin() -> Result<Twin> {
    Twin::new(env!("CARGO_BIN_EXE_tcptwin"))
}

/// Hosts and embedded services.
pub(crate) struct Stage {
    pub(crate) twin: Twin,
    pub(crate) online: Arc<Witness>,
    pub(crate) target: Arc<Witness>,
    pub(crate) target_service: Option<HttpService>,
    _online_services: [HttpService; 2],
    _target_v6: HttpService,
    pub(crate) net: Network,
}

impl Stage {
    /// The three-host set-up with small answers.
    pub(crate) fn new() -> Result<Self> {
        Self::with(Answers::ViaAssistant, HttpOptions::default())
    }

    /// Another route of the answers, other services.
    pub(crate) fn with(answers: Answers, options: HttpOptions) -> Result<Self> {
        let net = Network::new(answers)?;
        let (online, target) = (Arc::new(Witness::new(IDS)), Arc::new(Witness::new(IDS)));
        let serve = |host: &Host, ip, port, witness: &Arc<Witness>| {
            HttpService::start(&host.ns, SocketAddr::new(ip, port), options, Arc::clone(witness))
        };
        Ok(Self {
            twin: twin()?,
            _online_services: [
                serve(&net.online, net.online.v4(), ONLINE_PORT, &online)?,
                serve(&net.online, net.online.v6(), ONLINE_PORT, &online)?,
            ],
            target_service: Some(serve(&net.target, net.target.v4(), TARGET_PORT, &target)?),
            _target_v6: serve(&net.target, net.target.v6(), TARGET_PORT, &target)?,
            online,
            target,
            net,
        })
    }

    /// The captured service.
    pub(crate) fn at_online(&self) -> SocketAddr {
        SocketAddr::new(self.net.online.v4(), ONLINE_PORT)
    }

    /// The service under test.
    pub(crate) fn at_target(&self) -> SocketAddr {
        SocketAddr::new(self.net.target.v4(), TARGET_PORT)
    }

    /// Starts the target's service again after it was stopped.
    pub(crate) fn restart_target(&mut self) -> Result<()> {
        let service = HttpService::start(
            &self.net.target.ns,
            self.at_target(),
            HttpOptions::default(),
            Arc::clone(&self.target),
        )?;
        self.target_service = Some(service);
        Ok(())
    }

    /// An intercept on the assistant host.
    pub(crate) fn intercept(&self) -> Result<Instance> {
        step("intercept on the assistant host");
        self.twin.intercept(&self.net.assistant, &["-x", &self.at_target().to_string(), "-i", "eth0"])
    }

    /// Sends the answers to real clients by the assistant: those of the experiment, and as by a route for everybody those to nobody
    /// in particular.
    pub(crate) fn route_real_clients(&self) -> Result<()> {
        let Network { target, client, assistant, .. } = &self.net;
        network::route_range(target, client.v4(), 32, assistant.v4())?;
        network::route_range(target, IpAddr::from([203, 0, 113, 0]), 24, assistant.v4())?;
        Ok(())
    }

    /// A run on the online host with options added.
    pub(crate) fn run(&self, options: &[&str]) -> Result<Instance> {
        step(format!("run on the online host {options:?}"));
        let map = lab::twin::map(ONLINE_PORT, self.at_target());
        let assistant = self.net.assistant.v4().to_string();
        let mut args = vec!["-x", &map, "-s", &assistant];
        if !options.contains(&"-i") {
            args.extend(["-i", "eth0"]);
        }
        args.extend(options);
        self.twin.run(&self.net.online, &args)
    }

    /// A load from the client host at the online service, ready to be changed.
    pub(crate) fn load(&self, requests: u64) -> Load {
        Load { connections: 20, ..Load::new(self.at_online(), requests) }
    }

    /// Sends a load and insists that the online service answered all of it.
    pub(crate) fn send(&self, load: Load) -> Result<LoadReport> {
        step(format!("{} requests as {:?} on {} connections", load.requests, load.mode, load.connections));
        let wanted = load.requests;
        let report = answered(load.run(&self.net.client.ns)?)?;
        ensure!(report.sent == wanted, "only {} of {wanted} requests were sent in time", report.sent);
        Ok(report)
    }

    /// Starts a load that goes on until stopped.
    pub(crate) fn start(&self, load: Load) -> Result<RunningLoad> {
        step(format!("a load as {:?} on {} connections", load.mode, load.connections));
        let load = load.start(&self.net.client.ns)?;
        wait::until("the load has begun", SETTLE, || load.progress.answered.load(Relaxed) > 20)?;
        Ok(load)
    }

    /// Waits for the target, ends the run as Ctrl-C does, and insists on the whole result: every id as often as wanted,
    /// no byte dropped but doubled ones, and as many bytes delivered as the load sent, times the copies.
    pub(crate) fn all_replayed(&self, run: Instance, sent: &LoadReport, copies: u32) -> Result<Stats> {
        self.wait_for_target(copies)?;
        let stats = end(run)?;
        let fidelity = Fidelity::of(&self.online, &self.target, copies);
        ensure!(fidelity.is_exact(), "{fidelity}; {}", stats.ledger());
        clean(&stats, sent.request_bytes * u64::from(copies))?;
        Ok(stats)
    }

    /// Waits until the target has answered as often as it should, or until it does not get any further.
    pub(crate) fn wait_for_target(&self, copies: u32) -> Result<()> {
        step("the last requests arrive");
        let wanted = self.online.answered() * u64::from(copies);
        // Not an error yet: the comparison that follows says which ids are missing.
        let _ =
            wait::until("the target has answered everything", SETTLE, || self.target.answered() >= wanted);
        Ok(())
    }
}

/// Insists that nothing failed online.
pub(crate) fn answered(report: LoadReport) -> Result<LoadReport> {
    ensure!(
        report.failed == 0 && report.answered == report.sent,
        "online: {} sent, {} answered, {} failed: {:?}",
        report.sent,
        report.answered,
        report.failed,
        report.error
    );
    Ok(report)
}

/// Waits for a quiet moment, checks the ledger there, ends the run as Ctrl-C does, checks it again.
pub(crate) fn end(run: Instance) -> Result<Stats> {
    step("a quiet moment");
    run.wait_quiet(SETTLE)?.check_ledger().context("at a quiet moment")?;
    step("drain and summary");
    run.stop_run()
}

/// No role made a system call that it must not make: it is replaced so soon that nothing else would tell.
fn not_stopped(stats: &Stats) -> Result<()> {
    let roles = stats.value()["roles"].as_array().context("the stats have no roles")?;
    match roles.iter().find(|role| role.get("stopped_at").is_some()) {
        None => Ok(()),
        Some(role) => bail!("stopped by its sandbox: {role}"),
    }
}

/// A counter of a host's TCP (/proc/net/snmp: a line of names, a line of values).
pub(crate) fn tcp_counter(host: &Host, name: &'static str) -> Result<u64> {
    host.ns.enter(move || {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter(|l| l.starts_with("Tcp:"));
        let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let found = names.split(' ').zip(values.split(' ')).find(|(n, _)| *n == name);
        Ok(found.map_or("missing", |(_, v)| v).parse()?)
    })
}

/// Nothing dropped but doubled bytes, nothing missed, and exactly the wanted bytes delivered.
pub(crate) fn clean(stats: &Stats, delivered: u64) -> Result<()> {
    not_stopped(stats)?;
    let others = stats.dropped_in_all() - stats.dropped("duplicate");
    ensure!(others == 0, "dropped: {}", stats.ledger());
    ensure!(
        stats.missed() == 0 && stats.in_flight() == 0,
        "not all captured or delivered: {}",
        stats.ledger()
    );
    ensure!(stats.delivered() == delivered, "{delivered} bytes were to be delivered: {}", stats.ledger());
    Ok(())
}
