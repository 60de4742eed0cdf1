//! What drops packets on this host while it is watched: counters of the kernel and of the firewall's rules that move. Only what
//! is sent meanwhile can move one: a run whose probes fail sends one each second, and `doctor` on the online host some.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::rules::{Rules, Suspect};

/// How long it is watched: a run that reaches nobody probes each second.
const WATCHED: Duration = Duration::from_millis(2_500);
/// Hooks on the way of a client's packet to the service, and of its answer.
const HOOKS: [&str; 5] = ["ingress", "prerouting", "input", "output", "postrouting"];

/// Counters of the kernel that stand for a packet which a service never saw (/proc/net/netstat; Documentation/networking/snmp_counter).
pub(crate) const KERNEL: [(&str, &str); 4] = [
    ("IPReversePathFilter", "dropped by the reverse path filter"),
    ("ListenOverflows", "connections refused because the service does not accept fast enough"),
    ("TCPReqQFullDrop", "connections refused because too many are half open"),
    ("TCPDeferAcceptDrop", "dropped because the service waits for data first"),
];

/// The beginning of a look.
pub(crate) struct Watch {
    since: Instant,
    suspects: Vec<Suspect>,
    kernel: BTreeMap<String, u64>,
}

/// What moved.
pub(crate) struct Seen {
    /// The rules at the end.
    pub(crate) rules: Rules,
    /// Rules that dropped something meanwhile, and how many packets.
    pub(crate) dropped: Vec<(Suspect, u64)>,
    /// Counters of [`KERNEL`] likewise.
    pub(crate) kernel: Vec<(&'static str, &'static str, u64)>,
    /// Rules that drop and count nothing.
    pub(crate) silent: usize,
    /// Time that it was watched.
    pub(crate) time: Duration,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        Self { since: Instant::now(), suspects: Rules::read().suspects(&HOOKS), kernel: kernel() }
    }

    /// Waits until it was watched for long enough.
    pub(crate) fn end(self) -> Seen {
        std::thread::sleep(WATCHED.saturating_sub(self.since.elapsed()));
        let (rules, now) = (Rules::read(), kernel());
        let suspects = rules.suspects(&HOOKS);
        let silent = suspects.iter().filter(|one| one.packets.is_none()).count();
        let met = suspects.into_iter().map(|one| (one.met_since(&self.suspects), one));
        let dropped = met.filter(|(met, _)| *met > 0).map(|(met, one)| (one, met)).collect();
        let count = |all: &BTreeMap<String, u64>, name: &str| all.get(name).copied().unwrap_or(0);
        let moved = KERNEL
            .into_iter()
            .map(|(name, what)| (name, what, count(&now, name).saturating_sub(count(&self.kernel, name))));
        let kernel = moved.filter(|one| one.2 > 0).collect();
        Seen { rules, dropped, kernel, silent, time: self.since.elapsed() }
    }
}

impl Seen {
    /// All rules that can drop a packet.
    pub(crate) fn suspects(&self) -> Vec<Suspect> {
        self.rules.suspects(&HOOKS)
    }
}

fn kernel() -> BTreeMap<String, u64> {
    parse(&std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default())
}

/// Two lines a group: names, then values.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.chunks_exact(2).flat_map(|pair| {
        let words = |line: &'_ str| line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>();
        words(pair[0]).into_iter().zip(words(pair[1]))
    });
    pairs.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_its_counters_and_every_one_of_ours_is_among_them() {
        let read =
            parse("TcpExt: ListenOverflows IPReversePathFilter\nTcpExt: 3 4\nIpExt: InOctets\nIpExt: 7\n");
        assert_eq!((read["ListenOverflows"], read["IPReversePathFilter"], read["InOctets"]), (3, 4, 7));
        let here = kernel();
        let missing: Vec<&str> =
            KERNEL.iter().map(|one| one.0).filter(|name| !here.contains_key(*name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
