//! Where intercept's host forwards packets, the answers that it only looks at would go on to the clients' addresses: to real
//! users with `--keep-clients`, and to wherever somebody routes the benchmarking ranges else. So intercept refuses to run there
//! unless it holds a rule of its own that drops them (`--guard`): an nftables table named after the instance, behind the capture and
//! before the route.
//!
//! The rule is the kernel's and needs no process: it stands while intercept is killed and started again. It goes at an ordered
//! end. A thread watches it, with the right to change rules that the rest of the process has given up: what somebody removes is put back within a second, and where that cannot be done, or forwarding is
//! switched on without it, intercept stops, so that runs hear nothing more and send nothing more.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use injector::nft::{self, Family, News, NftError};
use sandbox::Capability::{CAP_NET_ADMIN, CAP_SETGID, CAP_SETUID};
use sandbox::hold_on_to;
use topology::mapping::Services;
use topology::{Refusal, clients};

/// Which packets of which interfaces must not go on.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// Name of the intercept.
    pub(crate) name: String,
    /// The targets' services.
    pub(crate) services: Services,
    /// Interfaces that the answers arrive on; empty means all.
    pub(crate) interfaces: Vec<String>,
    /// `--guard`.
    pub(crate) guard: bool,
    /// Where the kernel shows its settings.
    pub(crate) sysctl: &'static Path,
}

/// The watch over it; dropping it removes the rule.
pub(crate) struct Blackhole {
    /// It stood before: a killed predecessor's.
    found: bool,
    state: Arc<State>,
    order: Arc<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the watch is told.
#[derive(Default)]
struct Order {
    over: AtomicBool,
    /// The process has become who it goes on to be.
    confined: AtomicBool,
    /// The rule stays at the end.
    stays: AtomicBool,
}

/// What the watch knows, for `stats` and for the end.
#[derive(Default)]
pub(crate) struct State {
    installed: AtomicBool,
    restored: AtomicU64,
    dropped: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Where the kernel shows its settings.
pub(crate) const SYSCTL: &str = "/proc/sys";
/// Between looks at the settings, and the longest time that a removed rule is missing.
const LOOK: Duration = Duration::from_millis(500);
/// Between looks at the rule's counter when nothing is heard. The kernel tells of every change of rules.
const CALM: Duration = Duration::from_secs(10);
/// Tries to put it back, and the time between them.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_millis(200);
/// Tables of intercepts; other than those of runs, which remove each other's.
const PREFIX: &str = "blackhole_tcptwin_";
/// The counter in it.
const COUNTER: &str = "swallowed";

/// Refuses where answers would go on, or installs the rule; and watches.
///
/// # Errors
/// This host forwards, and there is no rule or none to be had.
pub(crate) fn hold(wanted: Wanted, stop: Arc<AtomicBool>) -> Result<Blackhole, Refusal> {
    let table = nft::table_of(PREFIX, &wanted.name);
    let on = wanted.forwards();
    if !wanted.guard {
        if let Some(sentence) = wanted.refusal(&on) {
            return Err(Refusal::preflight(sentence));
        }
        // One that a killed predecessor left is of no use any more; where there is no nft there is none either.
        let _ = nft::run(&[], &nft::removal(Family::Inet, &table));
    }
    let found = nft::run(&[], &format!("list table inet {table}\n")).is_ok();
    let mut hole = Blackhole { found, state: Arc::default(), order: Arc::default(), thread: None };
    // Heard from before the rule is installed: nothing changes it unheard.
    let news = News::listen().ok();
    let rule = if wanted.guard {
        let rule = Rule::install(&table, &wanted).map_err(|error| {
            Refusal::preflight(format!(
                "--guard: the rule against forwarding could not be installed ({error}). Run as root with nftables installed, or switch forwarding off where nothing else needs it: sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"
            ))
        })?;
        hole.state.installed.store(true, Relaxed);
        Some(rule)
    } else {
        None
    };
    if rule.is_some() && news.is_none() {
        tracing::warn!(
            "the kernel tells nothing of changed rules: the rule against forwarding is looked at every ten seconds"
        );
    }
    let watch =
        Watch { wanted, rule, news, state: Arc::clone(&hole.state), order: Arc::clone(&hole.order), stop };
    let (settled, is_settled) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("blackhole".to_owned()).spawn(move || {
        let rights = watch.settle();
        let goes_on = rights.is_ok();
        // Whoever waits for it is there until it has heard.
        let _ = settled.send(rights);
        if goes_on {
            watch.run();
        }
    });
    hole.thread = Some(thread.map_err(|error| {
        Refusal::preflight(format!("starting a thread failed ({error}). Check `ulimit -u`"))
    })?);
    match is_settled.recv() {
        Ok(Ok(())) => Ok(hole),
        Ok(Err(error)) => Err(Refusal::preflight(error.to_string())),
        Err(_) => Err(Refusal::preflight("the watch over the rule against forwarding ended at its start")),
    }
}

impl Blackhole {
    /// The start failed: what a killed predecessor left to guard this host stays.
    pub(crate) fn leave_as_found(self) {
        self.order.stays.store(self.found, Relaxed);
    }

    /// The process has become who it goes on to be.
    pub(crate) fn confined(&self) {
        self.order.confined.store(true, Relaxed);
    }

    /// What the watch knows.
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }
}

impl State {
    /// Why intercept had to stop, if so.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no holder panics").clone()
    }

    /// For `stats`.
    pub(crate) fn snapshot(&self) -> serde_json::Value {
        serde_json::json!({
            "installed": self.installed.load(Relaxed),
            "restored": self.restored.load(Relaxed),
            "dropped": self.dropped.load(Relaxed),
        })
    }
}

impl Drop for Blackhole {
    fn drop(&mut self) {
        self.order.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked it said so.
            let _ = thread.join();
        }
    }
}

impl Wanted {
    /// The settings by which answers would go on, as `sysctl` names them.
    fn forwards(&self) -> Vec<String> {
        let mut on = Vec::new();
        for (v4, family) in [(true, "ipv4"), (false, "ipv6")] {
            if !self.services.iter().any(|service| service.is_ipv4() == v4) {
                continue;
            }
            let conf = self.sysctl.join("net").join(family).join("conf");
            let mut names = self.interfaces.clone();
            if names.is_empty() {
                let entries = std::fs::read_dir(&conf).into_iter().flatten().flatten();
                names = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
                names.sort();
            }
            // What comes in by loopback never goes on; new devices begin with the default, those that are there have their own.
            names.retain(|name| !matches!(name.as_str(), "lo" | "default" | "all"));
            names.insert(0, "all".to_owned());
            let is_on = |name: &String| {
                std::fs::read_to_string(conf.join(name).join("forwarding"))
                    .is_ok_and(|text| text.trim() != "0")
            };
            // IPv6 asks the switch for all alone.
            let asked = if v4 { names.len() } else { 1 };
            let is_on = |name: &&String| is_on(name) && (v4 || name.as_str() == "all");
            if names == ["all"] && !self.interfaces.is_empty() {
                // Loopback alone.
                continue;
            }
            on.extend(
                names
                    .iter()
                    .take(asked)
                    .find(is_on)
                    .map(|name| format!("net.{family}.conf.{name}.forwarding")),
            );
        }
        on
    }

    fn refusal(&self, on: &[String]) -> Option<String> {
        let first = on.first()?;
        let off = on.iter().map(|name| format!("{name}=0")).collect::<Vec<_>>().join(" ");
        Some(format!(
            "this host forwards packets ({first} is on): it would send the test's answers on to the clients' addresses, which with --keep-clients are real users.\n  \
             If nothing here needs forwarding:  sysctl -w {off}\n  \
             Otherwise (containers, a router):  add --guard, which installs a rule that drops what {} to anybody beyond this host",
            match self.services.iter().count() {
                1 => "the target sends",
                _ => "the targets send",
            }
        ))
    }
}

/// The rule as it should stand.
struct Rule {
    script: String,
    table: String,
    /// As nft lists it.
    whole: String,
    /// Packets that were dropped by it before it was put back.
    dropped_before: u64,
}

impl Rule {
    /// In place of whatever stands under its name, in one step.
    fn install(table: &str, wanted: &Wanted) -> Result<Self, NftError> {
        let script = nft::removal(Family::Inet, table) + &rules(table, &wanted.services);
        let mut rule = Self { script, table: table.to_owned(), whole: String::new(), dropped_before: 0 };
        rule.put()?;
        Ok(rule)
    }

    fn put(&mut self) -> Result<(), NftError> {
        nft::run(&[], &self.script)?;
        self.whole = self.listed()?;
        Ok(())
    }

    fn listed(&self) -> Result<String, NftError> {
        nft::run(&["-s"], &format!("list table inet {}\n", self.table))
    }

    fn is_whole(&self) -> bool {
        self.listed().is_ok_and(|listed| listed == self.whole)
    }
}

/// Drops what the services send to anybody but this host, and whatever else their hosts send to the benchmarking ranges: errors,
/// fragments. Before the kernel has a route for it: for a packet that it is about to forward to where it came from, it tells the
/// sender of a better way (ICMP redirect) before it asks the hook of forwarded ones, and the target would take that way.
fn rules(table: &str, services: &Services) -> String {
    let mut lines = String::new();
    let write = |lines: &mut String, family: &str, protocol: &str, of: &[SocketAddr]| {
        if !of.is_empty() {
            let list =
                of.iter().map(|at| format!("{} . {}", at.ip(), at.port())).collect::<Vec<_>>().join(", ");
            writeln!(
                lines,
                "    {family} saddr . {protocol} sport {{ {list} }} counter name \"{COUNTER}\" drop"
            )
            .expect("a string takes all");
        }
    };
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let of = |list: &[SocketAddr]| {
            list.iter().filter(|at| at.is_ipv4() == v4).copied().collect::<Vec<SocketAddr>>()
        };
        let (tcp, udp) = (of(&services.tcp), of(&services.udp));
        write(&mut lines, family, "tcp", &tcp);
        write(&mut lines, family, "udp", &udp);
        let mut hosts: Vec<String> = tcp.iter().chain(&udp).map(|at| at.ip().to_string()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        if !hosts.is_empty() {
            let range = if v4 { clients::default_v4() } else { clients::default_v6() };
            writeln!(
                lines,
                "    {family} saddr {{ {} }} {family} daddr {range} counter name \"{COUNTER}\" drop",
                hosts.join(", ")
            )
            .expect("a string takes all");
        }
    }
    format!(
        "table inet {table} {{\n  counter {COUNTER} {{\n  }}\n  chain forward {{\n    type filter hook prerouting priority -300; policy accept;\n    fib daddr type local accept\n{lines}  }}\n}}\n"
    )
}

/// The thread.
struct Watch {
    wanted: Wanted,
    rule: Option<Rule>,
    news: Option<News>,
    state: Arc<State>,
    order: Arc<Order>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Rules can be changed by this thread alone, whatever the process becomes: by the programs that it starts, too.
    fn settle(&self) -> Result<(), sandbox::Error> {
        match self.rule {
            Some(_) => hold_on_to(CAP_NET_ADMIN, &[CAP_SETUID, CAP_SETGID]),
            None => Ok(()),
        }
    }

    /// Watches until told that it is over, and takes the rule away.
    fn run(mut self) {
        self.watch();
        while !self.order.over.load(Relaxed) {
            // Intercept stops because of what this thread has seen; until it has stopped, what is left of the rule stands.
            std::thread::sleep(AGAIN);
        }
        let Some(rule) = self.rule.filter(|_| !self.order.stays.load(Relaxed)) else { return };
        if let Err(error) = nft::run(&[], &nft::removal(Family::Inet, &rule.table)) {
            let table = &rule.table;
            tracing::warn!(
                "removing the rule failed ({error}); remove it with: nft delete table inet {table}"
            );
        }
    }

    fn watch(&mut self) {
        let mut looked = Instant::now();
        let mut settled = self.rule.is_none();
        while !self.order.over.load(Relaxed) {
            if !settled && self.order.confined.load(Relaxed) {
                settled = true;
                if let Err(error) = hold_on_to(CAP_NET_ADMIN, &[]) {
                    tracing::warn!(
                        "the watch over the rule against forwarding keeps more rights than it needs: {error}"
                    );
                }
            }
            let heard = match &mut self.news {
                Some(news) => news.wait(LOOK),
                None => {
                    std::thread::sleep(LOOK);
                    looked.elapsed() >= CALM
                }
            };
            if self.order.over.load(Relaxed) {
                return;
            }
            let verdict = match &mut self.rule {
                None => self.wanted.refusal(&self.wanted.forwards()).map_or(Ok(()), Err),
                Some(rule) if heard || looked.elapsed() >= CALM => {
                    looked = Instant::now();
                    count(rule, &self.state);
                    if heard { mend(rule, &self.state) } else { Ok(()) }
                }
                Some(_) => Ok(()),
            };
            if let Err(sentence) = verdict {
                self.state.installed.store(false, Relaxed);
                *self.state.failure.lock().expect("no holder panics") = Some(sentence);
                // Runs lose their connection, and with it the leave to send.
                self.stop.store(true, Relaxed);
                return;
            }
        }
    }
}

fn count(rule: &Rule, state: &State) {
    let now = rule.dropped_before + nft::counted(Family::Inet, &rule.table, COUNTER);
    state.dropped.fetch_max(now, Relaxed);
}

/// Compares what stands with what should, and mends it.
fn mend(rule: &mut Rule, state: &State) -> Result<(), String> {
    if rule.is_whole() {
        return Ok(());
    }
    rule.dropped_before = state.dropped.load(Relaxed);
    let mut why = None;
    for attempt in 0..TRIES {
        match rule.put() {
            Ok(()) => {
                state.restored.fetch_add(1, Relaxed);
                tracing::warn!(
                    "the rule against forwarding (table inet {}) was changed or removed by somebody; it stands again",
                    rule.table
                );
                return Ok(());
            }
            Err(error) => why = Some(error),
        }
        if attempt + 1 < TRIES {
            std::thread::sleep(AGAIN);
        }
    }
    let why = why.map_or_else(String::new, |error| format!(" ({error})"));
    Err(format!(
        "the rule against forwarding (table inet {}) is gone and could not be put back{why}: intercept stops, so that nothing more is replayed through this host. Start it again with --guard",
        rule.table
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(sysctl: &Path, interfaces: &[&str], service: &str) -> Wanted {
        Wanted {
            name: "t".to_owned(),
            services: Services { tcp: vec![service.parse().unwrap()], udp: Vec::new() },
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            guard: false,
            sysctl: Box::leak(sysctl.to_owned().into_boxed_path()),
        }
    }

    #[test]
    fn forwarding_is_found_by_family_and_interface() {
        let dir = std::env::temp_dir().join(format!("tcptwin-blackhole-{}", std::process::id()));
        let set = |family: &str, name: &str, value: &str| {
            let place = dir.join("net").join(family).join("conf").join(name);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("forwarding"), format!("{value}\n")).unwrap();
        };
        for (name, value) in [("all", "0"), ("default", "1"), ("eth0", "0"), ("eth1", "1"), ("lo", "1")] {
            set("ipv4", name, value);
        }
        set("ipv6", "all", "1");
        let on = |interfaces: &[&str], service: &str| wanted(&dir, interfaces, service).forwards();
        assert!(on(&["eth0"], "10.0.3.2:80").is_empty());
        assert_eq!(on(&["eth1"], "10.0.3.2:80"), ["net.ipv4.conf.eth1.forwarding"]);
        assert_eq!(on(&[], "10.0.3.2:80"), ["net.ipv4.conf.eth1.forwarding"]);
        assert_eq!(on(&["eth0"], "[fd00::2]:80"), ["net.ipv6.conf.all.forwarding"]);
        set("ipv4", "all", "1");
        assert_eq!(on(&["eth0"], "10.0.3.2:80"), ["net.ipv4.conf.all.forwarding"]);
        assert!(on(&["lo"], "127.0.0.1:80").is_empty(), "loopback never goes on");
        let said = wanted(&dir, &[], "10.0.3.2:80").refusal(&on(&[], "10.0.3.2:80")).unwrap();
        assert!(
            said.contains("sysctl -w net.ipv4.conf.all.forwarding=0") && said.contains("--guard"),
            "{said}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_rule_names_the_services_and_their_hosts() {
        let services = Services {
            tcp: vec!["10.0.3.2:80".parse().unwrap(), "[fd00::2]:80".parse().unwrap()],
            udp: vec!["10.0.3.2:53".parse().unwrap()],
        };
        let rules = rules("t", &services);
        for line in [
            "ip saddr . tcp sport { 10.0.3.2 . 80 } counter",
            "ip saddr . udp sport { 10.0.3.2 . 53 } counter",
            "ip saddr { 10.0.3.2 } ip daddr 198.18.0.0/15 counter",
            "ip6 saddr . tcp sport { fd00::2 . 80 } counter",
            "ip6 saddr { fd00::2 } ip6 daddr 2001:2::/48 counter",
        ] {
            assert!(rules.contains(line), "{line} is not in\n{rules}");
        }
    }
}
