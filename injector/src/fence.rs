//! The kernel's guard: nftables rules that drop any forged packet that is not for a target, whatever this program does. A
//! table in two families, named after the instance:
//!
//! | table | hook | for |
//! |---|---|---|
//! | `inet` | output | raw IP: packets from the client range to anybody but a target go nowhere; and none of them is tracked, or each replayed connection would leave an entry in SYN_SENT for 120 s in production's conntrack table |
//! | `netdev` | egress of each device that a route to a target leaves by | frames of the link engine, and whatever else leaves there: the same; also anything at all that our packet socket sends elsewhere, known by its mark |
//!
//! Egress lies behind connection tracking, which frames of our own never meet, and before the driver, also for sockets that
//! bypass the queueing discipline. With `--keep-clients` there is no range: there the mark alone guards, and raw IP, whose
//! packets bear none (it could turn their routes), has only the injector's own sealed list.
//!
//! Called by the supervisor, as root, where `nft` is at hand; without it a note for the operator, never an error. The rules go
//! when the value is dropped. A table that a killed instance left is replaced by the next of its name in one step. While the
//! instance runs, a thread watches: the kernel tells of every change of rules and routes, and the table is then compared with
//! what it was. Until it is whole again no frame leaves by link. As long as it tells nothing only the counters are read, and
//! no program is started for that: four runs of `nft` every ten seconds were a third of what an idle run costs.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use shm::GUARDED_DEVICES;
use topology::Plan;
use topology::guard::Place;
use topology::plan::{Clients, Protocol};

use crate::nft::{self, Family, News, NftError};
use crate::path::route_to;
use crate::rtnl;
use crate::sys::MARK;

/// The guard is in place; dropping this removes it.
pub struct Fence {
    table: String,
    devices: Vec<u32>,
    /// Until the thread that watches has them.
    rules: Option<Rules>,
    watch: Option<Watch>,
}

/// Why there is no guard, or only a part of it, as a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// No program `nft`.
    #[error(
        "nft is not installed: nothing in the kernel guards what leaves, frames are not sent by link, and replayed flows are tracked by conntrack if this host uses it (one entry each, 120 s). Install nftables"
    )]
    NoNft,
    /// It refused.
    #[error(
        "nft could not install the guard ({said}): nothing in the kernel guards what leaves, frames are not sent by link, and replayed flows are tracked by conntrack if this host uses it. Run as root"
    )]
    Refused {
        /// The last line that nft printed.
        said: String,
    },
    /// It took the rules of raw IP, but none at a device.
    #[error(
        "nft could not guard {devices} ({said}): frames are not sent by link. Linux 5.16 with CONFIG_NETFILTER_EGRESS can"
    )]
    NoEgress {
        /// The devices.
        devices: String,
        /// The last line that nft printed.
        said: String,
    },
}

impl From<NftError> for Note {
    fn from(error: NftError) -> Self {
        match error {
            NftError::Missing => Note::NoNft,
            NftError::Refused(said) => Note::Refused { said },
        }
    }
}

/// The rules as they should stand in the kernel.
struct Rules {
    plan: Plan,
    table: String,
    /// Guarded devices: index and name.
    devices: Vec<(u32, String)>,
    /// What nft lists of the table when it is whole.
    whole: String,
    /// Packets dropped under tables that were replaced since.
    dropped_before: u64,
}

/// The thread, seen from outside.
struct Watch {
    thread: Option<JoinHandle<()>>,
    stop: Arc<EventFd>,
    news: Receiver<String>,
    dropped: Arc<AtomicU64>,
}

/// Between two looks at the table: where other programs change rules all the time, nft would cost a core.
const PAUSE: Duration = Duration::from_secs(1);
/// Between looks at the counters when nothing is heard.
const CALM: Duration = Duration::from_secs(10);

impl Fence {
    /// Installs the guard of this plan. Also what of it is not in place, if anything.
    pub fn install(plan: &Plan) -> Result<(Self, Option<Note>), Note> {
        let table = nft::table_of(PREFIX, &plan.name);
        let mut rules = Rules {
            plan: plan.clone(),
            table: table.clone(),
            devices: Vec::new(),
            whole: String::new(),
            dropped_before: 0,
        };
        let note = rules.install()?;
        Ok((Self { table, devices: rules.indices(), rules: Some(rules), watch: None }, note))
    }

    /// Removes what an instance of this name may have left behind. Nothing there is fine.
    pub fn remove_leftover(name: &str) -> Result<(), Note> {
        Ok(nft::run(&[], &removal(&nft::table_of(PREFIX, name))).map(drop)?)
    }

    /// The instances whose guards stand in this network namespace, those of dead ones too.
    pub fn instances() -> Vec<String> {
        let listed = nft::run(&[], "list tables\n").unwrap_or_default();
        let table = |line: &str| Some(line.strip_prefix("table ")?.split_once(' ')?.1.to_owned());
        let mut names: Vec<String> =
            listed.lines().filter_map(|line| nft::name_of(PREFIX, &table(line)?)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The nftables table (families `inet` and `netdev`).
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Indices of the devices that are guarded, as of the installation.
    pub fn devices(&self) -> &[u32] {
        &self.devices
    }

    /// Watches from now on, in a thread of its own. `guarded` is told which devices are guarded whenever that changes.
    ///
    /// # Errors
    /// The kernel does not tell of changes, or there is no thread to be had: nothing may rely on the guard then.
    pub fn watch(&mut self, guarded: impl Fn(&[u32]) + Send + 'static) -> io::Result<()> {
        let Some(rules) = self.rules.take() else { return Ok(()) };
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let groups = [&[rtnl::LINKS][..], &rtnl::ROUTES].concat();
        let (rules_news, route_news) = (News::listen()?, rtnl::news(NETLINK_ROUTE, &groups)?);
        let (tell, news) = channel();
        let dropped = Arc::new(AtomicU64::new(0));
        let watcher = Watcher {
            rules,
            rules_news,
            route_news,
            stop: Arc::clone(&stop),
            tell,
            dropped: Arc::clone(&dropped),
            guarded,
            missing: false,
        };
        let thread = std::thread::Builder::new().name("fence".to_owned()).spawn(move || watcher.run())?;
        self.watch = Some(Watch { thread: Some(thread), stop, news, dropped });
        Ok(())
    }

    /// What a person should know, since the last call.
    pub fn news(&self) -> Vec<String> {
        self.watch.iter().flat_map(|watch| watch.news.try_iter()).collect()
    }

    /// Packets that the guard dropped, as of its last look.
    pub fn dropped(&self) -> u64 {
        self.watch.as_ref().map_or(0, |watch| watch.dropped.load(Relaxed))
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if let Some(Watch { thread, stop, .. }) = &mut self.watch {
            // A counter that is full wakes as well.
            let _ = stop.write(1);
            if let Some(thread) = thread.take() {
                // If it panicked it said so; the rules go all the same.
                let _ = thread.join();
            }
        }
        if let Err(note) = nft::run(&[], &removal(&self.table)) {
            tracing::warn!(
                "removing the nftables tables {} failed: {note}; remove them with: nft delete table inet {0}; nft delete table netdev {0}",
                self.table
            );
        }
    }
}

impl Rules {
    /// Puts the rules in place of whatever stands under their name, in one step, and notes how they look.
    fn install(&mut self) -> Result<Option<Note>, Note> {
        self.dropped_before += dropped(&self.table);
        self.devices = devices(&self.plan);
        let names: Vec<&str> = self.devices.iter().map(|(_, name)| name.as_str()).collect();
        let inet = inet(&self.table, &self.plan);
        let mut note = None;
        if names.is_empty() {
            nft::run(&[], &format!("{}{inet}", removal(&self.table)))?;
        } else {
            let both = format!("{}{inet}{}", removal(&self.table), netdev(&self.table, &self.plan, &names));
            if let Err(refused) = nft::run(&[], &both) {
                // An old kernel has no egress; what there is of the rest is worth having.
                nft::run(&[], &format!("{}{inet}", nft::removal(Family::Inet, &self.table)))?;
                let said = match refused {
                    NftError::Refused(said) => said,
                    NftError::Missing => refused.to_string(),
                };
                note = Some(Note::NoEgress { devices: names.join(", "), said });
                self.devices.clear();
            }
        }
        self.whole = self.listed()?;
        Ok(note)
    }

    fn indices(&self) -> Vec<u32> {
        self.devices.iter().map(|(index, _)| *index).collect()
    }

    /// The tables as they stand, without their counts. One a call: nft 1.0.6 does not find the second of a script.
    fn listed(&self) -> Result<String, Note> {
        let list = |family: Family| {
            nft::run(&["-s"], &format!("list table {family} {}\n", self.table)).map_err(Note::from)
        };
        let egress = if self.devices.is_empty() { String::new() } else { list(Family::Netdev)? };
        Ok(list(Family::Inet)? + &egress)
    }
}

/// The devices that routes to targets leave by, as of now.
fn devices(plan: &Plan) -> Vec<(u32, String)> {
    let mut devices: Vec<(u32, String)> = Vec::new();
    for target in &plan.targets {
        let Ok(route) = route_to(target.addr) else { continue };
        let device = (route.device_index, route.device);
        let counts = route.place == Place::Remote && device.0 != 0 && !device.1.is_empty();
        if counts && !devices.contains(&device) && devices.len() < GUARDED_DEVICES {
            devices.push(device);
        }
    }
    devices.sort();
    devices
}

/// The thread.
struct Watcher<G> {
    rules: Rules,
    rules_news: News,
    route_news: Socket,
    stop: Arc<EventFd>,
    tell: Sender<String>,
    dropped: Arc<AtomicU64>,
    guarded: G,
    /// The guard is gone and could not be put back yet.
    missing: bool,
}

impl<G: Fn(&[u32])> Watcher<G> {
    fn run(mut self) {
        let mut buffer = Vec::with_capacity(32 << 10);
        // Nobody told of what changed between the installation and the first news.
        self.look();
        let mut looked = Instant::now();
        loop {
            let sleep = if self.missing { PAUSE } else { CALM }.saturating_sub(looked.elapsed());
            let heard = self.wait(sleep, &mut buffer);
            let rest = PAUSE.saturating_sub(looked.elapsed());
            if heard && !rest.is_zero() {
                // Changes come in crowds: the first is looked at when the last look is long enough ago.
                self.wait_for_the_end(rest);
            }
            if self.is_over() {
                return;
            }
            if heard || self.missing {
                self.look();
            }
            self.count();
            looked = Instant::now();
        }
    }

    /// Whether anything was heard before the time was over.
    fn wait(&mut self, sleep: Duration, buffer: &mut Vec<u8>) -> bool {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [
            readable(self.stop.as_fd()),
            readable(self.rules_news.socket().as_fd()),
            readable(self.route_news.as_fd()),
        ];
        // Whatever poll says, the looks that follow tell.
        let _ = poll(&mut fds, PollTimeout::try_from(sleep).unwrap_or(PollTimeout::MAX));
        let routes = rtnl::hear(&self.route_news, buffer);
        self.rules_news.hear() | routes
    }

    fn wait_for_the_end(&self, time: Duration) {
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
    }

    fn is_over(&self) -> bool {
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Compares what stands with what should, and mends it.
    fn look(&mut self) {
        let whole = self.rules.listed().is_ok_and(|listed| listed == self.rules.whole);
        let moved = devices(&self.rules.plan) != self.rules.devices;
        if whole && !moved && !self.missing {
            return;
        }
        if !whole && !self.missing {
            // First the frames, then the words.
            (self.guarded)(&[]);
            self.say(format!(
                "the nftables guard (table {}) was changed or removed by somebody: sending by raw IP until it stands again",
                self.rules.table
            ));
        }
        match self.rules.install() {
            Ok(None) => {
                (self.guarded)(&self.rules.indices());
                if !whole {
                    self.say(format!("the nftables guard (table {}) stands again", self.rules.table));
                }
                self.missing = false;
            }
            Ok(Some(note)) | Err(note) => {
                (self.guarded)(&[]);
                if !std::mem::replace(&mut self.missing, true) && (whole || moved) {
                    self.say(note.to_string());
                }
            }
        }
    }

    fn count(&self) {
        let now = self.rules.dropped_before + dropped(&self.rules.table);
        let before = self.dropped.swap(now, Relaxed);
        if now > before {
            self.say(format!(
                "the nftables guard dropped {} that {} not for a target; `nft list table netdev {}` shows the rules",
                if now - before == 1 { "a packet".to_owned() } else { format!("{} packets", now - before) },
                if now - before == 1 { "was" } else { "were" },
                self.rules.table
            ));
        }
    }

    fn say(&self, text: String) {
        // Nobody listens only at the very end.
        let _ = self.tell.send(text);
    }
}

/// Packets that the tables' rules dropped so far.
fn dropped(table: &str) -> u64 {
    nft::counted(Family::Inet, table, COUNTER) + nft::counted(Family::Netdev, table, COUNTER)
}

/// The counter of what was dropped.
const COUNTER: &str = "astray";

/// Both tables.
fn removal(table: &str) -> String {
    nft::removal(Family::Inet, table) + &nft::removal(Family::Netdev, table)
}

/// Raw IP: not tracked, and only to targets. The last word of all output chains: priority 300.
fn inet(table: &str, plan: &Plan) -> String {
    let mut untracked = String::new();
    let mut guarded = String::new();
    match &plan.clients {
        Clients::Pool { v4, v6, .. } => {
            for range in v4.iter().chain(v6) {
                let family = if range.is_v4() { "ip" } else { "ip6" };
                writeln!(untracked, "    {family} saddr {range} notrack").expect("a string takes all");
                writeln!(guarded, "    {family} saddr {range} jump forged").expect("a string takes all");
            }
        }
        Clients::Keep => {
            for target in &plan.targets {
                let family = if target.addr.is_ipv4() { "ip" } else { "ip6" };
                let (ip, port) = (target.addr.ip(), target.addr.port());
                writeln!(
                    untracked,
                    "    {family} daddr {ip} {} dport {port} fib saddr type != local notrack",
                    word(target.protocol)
                )
                .expect("a string takes all");
            }
        }
    }
    format!(
        "table inet {table} {{\n  counter {COUNTER} {{\n  }}\n{}  chain untracked {{\n    type filter hook output priority raw; policy accept;\n{untracked}  }}\n  chain guard {{\n    type filter hook output priority 300; policy accept;\n{guarded}  }}\n}}\n",
        forged(plan)
    )
}

/// At the devices: a production packet costs three comparisons.
fn netdev(table: &str, plan: &Plan, devices: &[&str]) -> String {
    let mut guarded = String::new();
    if let Clients::Pool { v4, v6, .. } = &plan.clients {
        for range in v4.iter().chain(v6) {
            let family = if range.is_v4() { "ip" } else { "ip6" };
            writeln!(guarded, "    {family} saddr {range} jump forged").expect("a string takes all");
        }
    }
    writeln!(guarded, "    meta mark {MARK:#010x} jump forged").expect("a string takes all");
    let devices: Vec<String> = devices.iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        "table netdev {table} {{\n  counter {COUNTER} {{\n  }}\n{}  chain guard {{\n    type filter hook egress devices = {{ {} }} priority 0; policy accept;\n{guarded}  }}\n}}\n",
        forged(plan),
        devices.join(", ")
    )
}

/// What a forged packet may do: go to a target.
fn forged(plan: &Plan) -> String {
    let mut rules = String::new();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let targets: Vec<_> = plan
                .targets
                .iter()
                .filter(|target| target.addr.is_ipv4() == v4 && target.protocol == protocol)
                .map(|target| target.addr)
                .collect();
            if targets.is_empty() {
                continue;
            }
            let ports: Vec<_> = targets.iter().map(|at| format!("{} . {}", at.ip(), at.port())).collect();
            writeln!(
                rules,
                "    {family} daddr . {} dport {{ {} }} accept",
                word(protocol),
                ports.join(", ")
            )
            .expect("a string takes all");
            if protocol == Protocol::Udp {
                // Only the first fragment of a datagram has its ports.
                let fragment = if v4 { "ip frag-off & 0x1fff != 0" } else { "exthdr frag exists" };
                let mut hosts: Vec<_> = targets.iter().map(|at| at.ip().to_string()).collect();
                hosts.sort_unstable();
                hosts.dedup();
                writeln!(rules, "    {family} daddr {{ {} }} {fragment} accept", hosts.join(", "))
                    .expect("a string takes all");
            }
        }
    }
    format!("  chain forged {{\n{rules}    counter name \"{COUNTER}\" drop\n  }}\n")
}

/// As nft writes it.
fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

const PREFIX: &str = "tcptwin_";

#[cfg(test)]
mod tests;
