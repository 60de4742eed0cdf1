//! The demo's hosts, services and processes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lab::load::RunningLoad;
use lab::twin::Stats;
use lab::witness::lag;
use lab::{HttpOptions, HttpService, Instance, Load, Network, Twin, Witness};
use shm::Region;

use super::DemoArgs;
use super::view::Line;

/// Everything that runs during the demo. Processes are ended before the network they stand in.
pub(super) struct Stage {
    args: DemoArgs,
    run: Option<Instance>,
    /// Goes when the run is gone.
    _leftover: Leftover,
    intercept: Instance,
    /// The command lines, as typed.
    pub(super) commands: [String; 2],
    services: [HttpService; 2],
    /// What the online service answered.
    pub(super) online: Arc<Witness>,
    /// What the target service answered.
    pub(super) target: Arc<Witness>,
    _twin: Twin,
    network: Network,
}

/// CPU of one role, percent of a core.
pub(super) struct RoleCpu {
    pub(super) role: String,
    pub(super) percent: f64,
}

const ONLINE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8_080;

impl Stage {
    /// Builds the hosts and starts everything but the load.
    pub(super) fn build(args: DemoArgs) -> anyhow::Result<Self> {
        let network = Network::standard()?;
        // A load stops by itself after its count; ids beyond it cannot occur.
        let ids = usize::try_from(u64::from(args.rate) * u64::from(args.seconds))?;
        let (online, target) = (Arc::new(Witness::new(ids)), Arc::new(Witness::new(ids)));
        let at_online = SocketAddr::new(network.online.v4(), ONLINE_PORT);
        let at_target = SocketAddr::new(network.target.v4(), TARGET_PORT);
        let options = HttpOptions::default();
        let services = [
            HttpService::start(&network.online.ns, at_online, options, Arc::clone(&online))?,
            HttpService::start(&network.target.ns, at_target, options, Arc::clone(&target))?,
        ];
        let twin = Twin::new("/proc/self/exe")?;
        // Names of this process's own: two demos may run on one host.
        let [name, assistant_name] =
            ["demo", "demo-assistant"].map(|n| format!("{n}-{}", std::process::id()));
        let service = at_target.to_string();
        let intercept = twin.intercept(&network.assistant, &["-x", &service, "--name", &assistant_name])?;
        let (map, assistant) = (lab::twin::map(ONLINE_PORT, at_target), network.assistant.v4().to_string());
        let leftover = Leftover(name.clone());
        let run = twin.run(&network.online, &["-x", &map, "-s", &assistant, "--name", &name])?;
        Ok(Self {
            args,
            commands: [run.command_line.clone(), intercept.command_line.clone()],
            run: Some(run),
            _leftover: leftover,
            intercept,
            services,
            online,
            target,
            _twin: twin,
            network,
        })
    }

    /// Where the services listen: online, target.
    pub(super) fn addresses(&self) -> [SocketAddr; 2] {
        [self.services[0].address, self.services[1].address]
    }

    /// Starts the clients.
    pub(super) fn start_load(&self) -> anyhow::Result<RunningLoad> {
        let requests = u64::from(self.args.rate) * u64::from(self.args.seconds);
        let load = Load {
            connections: self.args.connections as usize,
            rate: Some(f64::from(self.args.rate)),
            time: Duration::from_secs(u64::from(self.args.seconds) + 5),
            ..Load::new(self.services[0].address, requests)
        };
        Ok(load.start(&self.network.client.ns)?)
    }

    /// The progress so far, from the run's control socket and both services.
    pub(super) fn line(&self, last: &Line, elapsed: Duration) -> anyhow::Result<Line> {
        let stats = self.run().stats()?;
        let (online, target) = (self.online.answered(), self.target.answered());
        let lag = lag(&self.online, &self.target, last.target..target);
        Ok(Line {
            second: elapsed.as_secs(),
            elapsed,
            online,
            target,
            lag_p50_us: lag.percentile(50.0),
            lag_p99_us: lag.percentile(99.0),
            dropped: stats.dropped_in_all(),
            sessions: stats.number("/sessions/open")?,
        })
    }

    /// Whether the target has answered as often as the online service.
    pub(super) fn has_arrived(&self) -> bool {
        self.target.answered() >= self.online.answered()
    }

    /// Whether the run is over although nobody ended it.
    pub(super) fn run_ended(&mut self) -> bool {
        self.run.as_mut().is_none_or(Instance::has_ended)
    }

    /// What each role cost since it started, spread over `elapsed`.
    pub(super) fn cpu(&self, elapsed: Duration) -> anyhow::Result<Vec<RoleCpu>> {
        let percent = |cpu_s: f64| cpu_s * 100.0 / elapsed.as_secs_f64().max(0.001);
        let mut roles: Vec<RoleCpu> = self
            .run()
            .stats()?
            .roles()?
            .into_iter()
            .map(|r| {
                let role = if r.role.starts_with("shard") { format!("shard-{}", r.index) } else { r.role };
                RoleCpu { role, percent: percent(r.cpu_s) }
            })
            .collect();
        roles.push(RoleCpu { role: "intercept".to_owned(), percent: percent(self.intercept.cpu_s()) });
        Ok(roles)
    }

    /// Ends the run as Ctrl-C does; its summary.
    pub(super) fn finish(&mut self) -> anyhow::Result<Stats> {
        let run = self.run.take().ok_or_else(|| anyhow::anyhow!("the run has ended already"))?;
        run.stop_run()
    }

    fn run(&self) -> &Instance {
        self.run.as_ref().expect("present until finish")
    }
}

/// What a run of this name leaves when it is killed: its shared region, for the next of that name. A demo's has no next.
struct Leftover(String);

impl Drop for Leftover {
    fn drop(&mut self) {
        // The name is this process's own. What cannot be removed is no worse than it was.
        let _ = Region::remove(&self.0);
    }
}
