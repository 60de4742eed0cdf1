//! The hosts, the services that write down every request, the load, and the instances under test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{fs, process};

use anyhow::{Context, Result, ensure};
use lab::load::RunningLoad;
use lab::twin::Kind as Command;
use lab::{
    HttpOptions, HttpService, Instance, Load, LoadReport, Mode, Network, Twin, Witness, network, wait,
};

use crate::args::Args;

/// Where everything happens; made once.
pub(crate) struct Stage {
    pub(crate) online: Arc<Witness>,
    pub(crate) target: Arc<Witness>,
    pub(crate) net: Network,
    pub(crate) at_online: SocketAddr,
    pub(crate) at_target: SocketAddr,
    twin: Twin,
    name: String,
    keep_clients: bool,
    shards: String,
    _services: [HttpService; 2],
}

/// Port of the captured service, and of the one under test.
const PORTS: (u16, u16) = (80, 8_080);
/// Bytes of an upload.
const UPLOAD: usize = 100_000;
/// Connections of the uploads.
const UPLOADERS: usize = 8;
/// Connections of one request each that may be open at a time.
const SHORT_LIVED: usize = 200;
/// Ids for the requests of fresh flows after a campaign of flips.
pub(crate) const FRESH: u64 = 2_000;
const SETTLE: Duration = Duration::from_secs(30);

/// The loads under way.
pub(crate) struct Loads(Vec<RunningLoad>);

impl Stage {
    /// `ids` requests may be written down.
    pub(crate) fn new(args: &Args, ids: u64) -> Result<Self> {
        let net = Network::standard().context("making the hosts")?;
        let ids = usize::try_from(ids)?;
        let (online, target) = (Arc::new(Witness::new(ids)), Arc::new(Witness::new(ids)));
        let at_online = SocketAddr::new(net.online.v4(), PORTS.0);
        let at_target = SocketAddr::new(net.target.v4(), PORTS.1);
        let options = HttpOptions::default();
        // An assistant that would send answers on to the client, were it not for the rule of intercept.
        net.assistant.ns.set_sysctl("net/ipv4/ip_forward", "1")?;
        let (clients, length) = network::CLIENTS_V4;
        network::route_range(&net.assistant, clients.into(), length, net.client.v4())?;
        // As a machine that takes over an address tells the others.
        net.target.ns.set_sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
        if args.keep_clients {
            network::route_range(&net.target, net.client.v4(), 32, net.assistant.v4())?;
            // Where the probe of the way speaks from.
            network::route_range(&net.target, [203, 0, 113, 0].into(), 24, net.assistant.v4())?;
        }
        Ok(Self {
            _services: [
                HttpService::start(&net.online.ns, at_online, options, Arc::clone(&online))?,
                HttpService::start(&net.target.ns, at_target, options, Arc::clone(&target))?,
            ],
            online,
            target,
            at_online,
            at_target,
            twin: Twin::new(
                args.tcptwin.canonicalize().with_context(|| args.tcptwin.display().to_string())?,
            )?,
            name: format!("chaos{}", std::process::id()),
            keep_clients: args.keep_clients,
            shards: args.shards.to_string(),
            net,
        })
    }

    /// The instance's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts `tcptwin run`, or starts it again, without waiting for it.
    pub(crate) fn begin_run(&self) -> Result<Instance> {
        let map = lab::twin::map(PORTS.0, self.at_target);
        let assistant = self.net.assistant.v4().to_string();
        let mut args =
            vec!["-x", &map, "-s", &assistant, "-i", "eth0", "--shards", &self.shards, "--name", &self.name];
        if self.keep_clients {
            args.push("--keep-clients");
        }
        self.twin.begin(Command::Run, &self.net.online, &args)
    }

    /// Starts `tcptwin intercept` without waiting for it.
    pub(crate) fn begin_intercept(&self) -> Result<Instance> {
        let target = self.at_target.to_string();
        let name = format!("{}-hole", self.name);
        let args = ["-x", &target, "-i", "eth0", "--guard", "--name", &name];
        self.twin.begin(Command::Intercept, &self.net.assistant, &args)
    }

    /// What the run kept of records that killed a worker twice: each was read by `tcptwin autopsy`, and is removed.
    pub(crate) fn specimens(&self) -> Result<Vec<String>> {
        let directory = self.twin.runtime().join("tcptwin").join(format!("{}.quarantine", self.name));
        if !directory.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let file = entry?.path();
            let told = process::Command::new(self.twin.binary()).arg("autopsy").arg(&file).output()?;
            let text = String::from_utf8_lossy(&told.stdout).into_owned();
            // It may die of what the file holds; the process that tells of it may not.
            ensure!(
                told.status.code().is_some() && text.contains("of which shard"),
                "autopsy of {}: {}: {text}{}",
                file.display(),
                told.status,
                String::from_utf8_lossy(&told.stderr)
            );
            found.push(text);
        }
        fs::remove_dir_all(&directory)?;
        Ok(found)
    }

    /// What the run left of its region and its files.
    pub(crate) fn leftovers(&self) -> Result<Vec<String>> {
        lab::twin::leftovers(&self.name, std::process::id(), self.twin.runtime(), &self.net.online)
    }

    /// All kinds of traffic, from the client host; each request has an id of its own.
    pub(crate) fn start_loads(&self, args: &Args, seconds: f64) -> Result<Loads> {
        let plan = IdPlan::new(args, seconds);
        let base = Load { time: Duration::from_secs_f64(seconds), ..Load::new(self.at_online, 0) };
        let mut loads = vec![Load {
            connections: args.connections,
            rate: Some(args.rate),
            requests: plan.keep_alive,
            ..base.clone()
        }];
        let half = plan.short / 2;
        for (mode, first_id) in
            [(Mode::ClientCloses, plan.keep_alive), (Mode::ServerCloses, plan.keep_alive + half)]
        {
            loads.push(Load {
                connections: SHORT_LIVED,
                mode,
                rate: Some(args.short / 2.0),
                requests: half,
                first_id,
                ..base.clone()
            });
        }
        loads.push(Load {
            connections: UPLOADERS,
            rate: Some(args.posts),
            requests: plan.posts,
            first_id: plan.keep_alive + plan.short,
            body_bytes: UPLOAD,
            ..base
        });
        let running = loads.into_iter().filter(|load| load.requests > 0);
        let running =
            running.map(|load| load.start(&self.net.client.ns)).collect::<std::io::Result<Vec<_>>>();
        let loads = Loads(running?);
        wait::until("the first requests are answered", SETTLE, || loads.answered() > 100)?;
        Ok(loads)
    }

    /// Fresh flows: a connection for each request, with ids from `first_id` on.
    pub(crate) fn fresh_flows(&self, first_id: u64) -> Result<LoadReport> {
        let load = Load {
            connections: 20,
            mode: Mode::ClientCloses,
            rate: Some(400.0),
            first_id,
            ..Load::new(self.at_online, FRESH)
        };
        Ok(load.run(&self.net.client.ns)?)
    }
}

impl Drop for Stage {
    /// A run that was killed leaves its region for a successor, which there is none of any more.
    fn drop(&mut self) {
        let _ = shm::Region::remove(&self.name);
    }
}

/// How many ids each load may use.
pub(crate) struct IdPlan {
    keep_alive: u64,
    short: u64,
    posts: u64,
}

impl IdPlan {
    pub(crate) fn new(args: &Args, seconds: f64) -> Self {
        let ids = |rate: f64| (rate * (seconds + 1.0)).ceil() as u64;
        Self {
            keep_alive: ids(args.rate),
            short: ids(args.short).next_multiple_of(2),
            posts: ids(args.posts),
        }
    }

    pub(crate) const fn in_all(&self) -> u64 {
        self.keep_alive + self.short + self.posts
    }
}

impl Loads {
    pub(crate) fn answered(&self) -> u64 {
        self.0.iter().map(|load| load.progress.answered.load(Relaxed)).sum()
    }

    /// Sends no more, waits for what is out, and adds everything up.
    pub(crate) fn stop(self) -> Result<LoadReport> {
        self.0.iter().for_each(|load| load.progress.stop.store(true, Relaxed));
        let mut sum = LoadReport::default();
        for load in self.0 {
            let report = load.wait()?;
            sum.sent += report.sent;
            sum.answered += report.answered;
            sum.failed += report.failed;
            sum.elapsed = sum.elapsed.max(report.elapsed);
            sum.first_byte.merge(&report.first_byte);
            sum.error = sum.error.or(report.error);
        }
        Ok(sum)
    }
}
