//! What can be asked for.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Kills, stops and cuts off every process of a live replay between network namespaces, and counts what arrives.
///
/// Faults are drawn from the seed and logged with time, kind and process id. It ends by itself. Exit status: 0 when every
/// rule held, 1 when one was broken, with the command that repeats the run.
#[derive(Clone, Debug, Parser)]
#[command(name = "chaos")]
pub(crate) struct Args {
    /// The program under test.
    #[arg(long, default_value = "target/release/tcptwin")]
    pub(crate) tcptwin: PathBuf,
    /// Names the run.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How long faults go on.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) minutes: f64,
    /// Ends earlier, after so many faults.
    #[arg(long, value_name = "N")]
    pub(crate) kills: Option<u64>,
    /// Which faults.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [
        Kind::Capturer, Kind::Shard, Kind::Injector, Kind::Hang, Kind::Spin, Kind::Intercept, Kind::Channel,
        Kind::Target, Kind::Supervisor, Kind::Guard, Kind::Route, Kind::Neighbour,
    ])]
    pub(crate) faults: Vec<Kind>,
    /// Time between faults of any kind, milliseconds, give or take half of it.
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub(crate) every: u64,
    /// Time between deaths of one process, milliseconds. Below ten seconds the supervisor pauses before it restarts, and
    /// more than 20 deaths in a minute end the run.
    #[arg(long, value_name = "MS", default_value_t = 10_200)]
    pub(crate) spacing: u64,
    /// The longest cut of the return channel, milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub(crate) cut: u64,
    /// Keep-alive requests a second.
    #[arg(long, value_name = "N", default_value_t = 5_000.0)]
    pub(crate) rate: f64,
    /// Keep-alive connections; each is idle for connections / rate between two requests.
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub(crate) connections: usize,
    /// Connections a second that carry one request each.
    #[arg(long, value_name = "N", default_value_t = 200.0)]
    pub(crate) short: f64,
    /// Uploads of 100 KB a second.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    pub(crate) posts: f64,
    /// Shard workers.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) shards: u16,
    /// Replay with the real clients' addresses: flows are claimed one by one.
    #[arg(long)]
    pub(crate) keep_clients: bool,
    /// Instead of faults: flips so many random bytes of the region under load.
    #[arg(long, value_name = "N", conflicts_with_all = ["kills", "faults"])]
    pub(crate) flips: Option<u64>,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// The capturer dies: SIGKILL, SIGSEGV or SIGABRT.
    Capturer,
    /// A shard worker dies likewise.
    Shard,
    /// The injector dies likewise.
    Injector,
    /// One of these three is stopped (SIGSTOP) and never continued.
    Hang,
    /// One of these three computes without end.
    Spin,
    /// Intercept dies (SIGKILL) and is started again within a second.
    Intercept,
    /// The return channel is cut: packets between online and assistant host are dropped for a while.
    Channel,
    /// The path to the target is cut for up to a second.
    Target,
    /// The supervisor dies (SIGKILL) and is started again with the same name.
    Supervisor,
    /// Somebody removes the kernel's guard at the online host.
    Guard,
    /// The target's route for the replayed clients leads nowhere for a while.
    Route,
    /// The target gets another link-layer address.
    Neighbour,
}

impl Kind {
    pub(crate) const ALL: [Kind; 12] = [
        Kind::Capturer,
        Kind::Shard,
        Kind::Injector,
        Kind::Hang,
        Kind::Spin,
        Kind::Intercept,
        Kind::Channel,
        Kind::Target,
        Kind::Supervisor,
        Kind::Guard,
        Kind::Route,
        Kind::Neighbour,
    ];

    /// As typed.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Capturer => "capturer",
            Kind::Shard => "shard",
            Kind::Injector => "injector",
            Kind::Hang => "hang",
            Kind::Spin => "spin",
            Kind::Intercept => "intercept",
            Kind::Channel => "channel",
            Kind::Target => "target",
            Kind::Supervisor => "supervisor",
            Kind::Guard => "guard",
            Kind::Route => "route",
            Kind::Neighbour => "neighbour",
        }
    }
}

impl Args {
    /// The command that repeats this run.
    pub(crate) fn again(&self) -> String {
        let what = match self.flips {
            Some(flips) => format!("--flips {flips}"),
            None => {
                let names: Vec<&str> = self.faults.iter().map(|kind| kind.name()).collect();
                let kills = self.kills.map(|n| format!(" --kills {n}")).unwrap_or_default();
                format!("--faults {}{kills}", names.join(","))
            }
        };
        let Self { seed, minutes, every, spacing, cut, rate, connections, short, posts, shards, .. } = self;
        format!(
            "scripts/chaos.sh --seed {seed} --minutes {minutes} {what} --every {every} --spacing {spacing} --cut {cut} \
             --rate {rate} --connections {connections} --short {short} --posts {posts} --shards {shards}{}",
            if self.keep_clients { " --keep-clients" } else { "" }
        )
    }
}
