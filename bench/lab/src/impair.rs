//! What real networks do to packets, done by nftables inside the lab's namespaces: random loss, resets, refused sends, a
//! mirror port that misses frames.
//!
//! Used by tests and benchmarks. Every rule set is a table of its own that goes with its [`Impairment`], and with the
//! namespace in any case. Each counts what it hit, so that a story can insist that anything was impaired at all.
//!
//! Loss between hosts happens in the bridge, where no socket sees a packet twice: the sender's kernel has sent it, the
//! receiver's never knows of it. A super-frame is lost whole.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::namespace::Namespace;
use crate::network::{Host, Network};
use crate::real;
use crate::scratch::Scratch;

/// Packets from one host to another, one way.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// Who sends.
    pub from: &'a Host,
    /// Who is the next hop.
    pub to: &'a Host,
    /// Which packets, in the words of nft: `tcp dport 8080`.
    pub what: &'a str,
}

/// Rules in force. Dropping it takes them away.
pub struct Impairment<'a> {
    ns: &'a Namespace,
    family: &'static str,
    table: String,
}

/// All of a kind, in parts per million.
pub const ALL: u32 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(20);
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Loses `ppm` of the packets that go one of these ways, each by a draw of its own.
pub fn lose<'a>(network: &'a Network, ways: &[Way<'_>], ppm: u32) -> anyhow::Result<Impairment<'a>> {
    let rules = ways.iter().map(|way| {
        let (from, to) = (port_of(way.from), port_of(way.to));
        format!("iifname \"{from}\" oifname \"{to}\" {} {} counter drop", way.what, drawn(ppm))
    });
    Impairment::set(&network.switch, "bridge", "forward", &rules.collect::<Vec<_>>())
}

/// Answers packets that arrive at a host with a TCP reset, before any socket sees them.
pub fn reset<'a>(host: &'a Host, what: &str) -> anyhow::Result<Impairment<'a>> {
    Impairment::set(&host.ns, "inet", "input", &[format!("{what} counter reject with tcp reset")])
}

/// A host defends itself: packets that arrive at a device are dropped before its stack sees them, behind whoever captures there.
pub fn shield<'a>(host: &'a Host, device: &str, what: &str) -> anyhow::Result<Impairment<'a>> {
    Impairment::set(
        &host.ns,
        "netdev",
        &format!("ingress device {device}"),
        &[format!("{what} counter drop")],
    )
}

/// Refuses the sending of frames on a host's device, also to sockets that bypass its stack: the sender's system call fails
/// with ENOBUFS.
pub fn refuse_frames<'a>(host: &'a Host, what: &str) -> anyhow::Result<Impairment<'a>> {
    Impairment::set(&host.ns, "netdev", "egress device eth0", &[format!("{what} counter drop")])
}

/// Refuses the sending of packets: the sender's system call fails with EPERM.
pub fn refuse_sends<'a>(host: &'a Host, what: &str) -> anyhow::Result<Impairment<'a>> {
    Impairment::set(&host.ns, "inet", "output", &[format!("{what} counter drop")])
}

/// Copies packets that `from` sends to the switch to a device of the switch's namespace, all but `ppm` of those that are
/// `missable` too, which are counted. The packets themselves go their way.
pub fn mirror<'a>(
    network: &'a Network,
    from: &Host,
    what: &str,
    device: &str,
    missable: &str,
    ppm: u32,
) -> anyhow::Result<Impairment<'a>> {
    let hook = format!("ingress device {}", port_of(from));
    let rules = [
        format!("{what} {missable} {} counter accept", drawn(ppm)),
        format!("{what} dup to \"{device}\" accept"),
    ];
    Impairment::set(&network.switch, "netdev", &hook, &rules)
}

impl<'a> Impairment<'a> {
    fn set(ns: &'a Namespace, family: &'static str, hook: &str, rules: &[String]) -> anyhow::Result<Self> {
        let table = format!("impair{}", NEXT.fetch_add(1, Relaxed));
        let text = format!(
            "table {family} {table} {{\n chain c {{\n  type filter hook {hook} priority 0;\n  {}\n }}\n}}\n",
            rules.join("\n  ")
        );
        let scratch = Scratch::new("nft")?;
        let file = scratch.file("rules");
        std::fs::write(&file, &text)?;
        real::run(ns, "nft", &["-f", &file.to_string_lossy()], LIMIT)
            .with_context(|| format!("setting these rules in {}:\n{text}", ns.name()))?;
        Ok(Self { ns, family, table })
    }

    /// How many packets were hit so far.
    pub fn hits(&self) -> anyhow::Result<u64> {
        let list = real::run(self.ns, "nft", &["list", "table", self.family, &self.table], LIMIT)?.stdout;
        let counted = list.split("counter packets ").skip(1);
        let hits = counted.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).collect::<Vec<_>>();
        ensure!(!hits.is_empty(), "no counter in {list}");
        Ok(hits.iter().sum())
    }

    /// Takes the rules away; how many packets they hit.
    pub fn end(self) -> anyhow::Result<u64> {
        self.hits()
    }
}

impl Drop for Impairment<'_> {
    fn drop(&mut self) {
        // The rules end with the namespace if not now.
        let _ = real::run(self.ns, "nft", &["delete", "table", self.family, &self.table], LIMIT);
    }
}

/// The switch's end of a host's cable.
fn port_of(host: &Host) -> String {
    format!("to-{}", host.ns.name())
}

fn drawn(ppm: u32) -> String {
    if ppm >= ALL { String::new() } else { format!("numgen random mod {ALL} < {ppm}") }
}
