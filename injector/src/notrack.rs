//! Keeps forged flows out of production's connection tracking. A raw socket's packets pass the output hook, and each
//! replayed connection would leave an entry in SYN_SENT for 120 s; a full table drops real users' packets.
//!
//! Called by the supervisor, as root, where `nft` is at hand; without it a note for the operator, never an error. The
//! rules stand in a table of this instance's own, in a chain at priority `raw` (before conntrack), and go when the value
//! is dropped. A table left behind by a killed instance of the same name is replaced in the same transaction.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use topology::Plan;
use topology::plan::{Clients, Protocol};

/// The rules are in place; dropping this removes them.
#[derive(Debug)]
pub struct NoTrack {
    table: String,
}

/// Why there are no rules, as a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Note {
    /// No program `nft`.
    #[error(
        "nft is not installed, so replayed flows are tracked by conntrack if this host uses it (one entry each, 120 s). Install nftables, or watch net.netfilter.nf_conntrack_count"
    )]
    NoNft,
    /// It refused.
    #[error(
        "nft could not install the notrack rules ({said}), so replayed flows are tracked by conntrack if this host uses it. Run as root, or watch net.netfilter.nf_conntrack_count"
    )]
    Refused {
        /// The last line that nft printed.
        said: String,
    },
}

impl NoTrack {
    /// Installs the rules of this plan.
    pub fn install(plan: &Plan) -> Result<Self, Note> {
        let table = table_of(&plan.name);
        nft(&rules(&table, plan))?;
        Ok(Self { table })
    }

    /// Removes what an instance of this name may have left behind. Nothing there is fine.
    pub fn remove_leftover(name: &str) -> Result<(), Note> {
        nft(&removal(&table_of(name)))
    }

    /// The nftables table that holds the rules (family `inet`).
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl Drop for NoTrack {
    fn drop(&mut self) {
        if let Err(note) = nft(&removal(&self.table)) {
            tracing::warn!(
                "removing nftables table {} failed: {note}; remove it with: nft delete table inet {0}",
                self.table
            );
        }
    }
}

/// `add` before `delete` makes the deletion work whether or not the table exists.
fn removal(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

fn rules(table: &str, plan: &Plan) -> String {
    let mut text = removal(table);
    let mut rule = String::new();
    match &plan.clients {
        Clients::Pool { v4, v6, .. } => {
            for range in v4.iter().chain(v6) {
                let family = if range.is_v4() { "ip" } else { "ip6" };
                writeln!(rule, "    {family} saddr {range} notrack").expect("a string takes all");
            }
        }
        Clients::Keep => {
            for target in &plan.targets {
                let family = if target.addr.is_ipv4() { "ip" } else { "ip6" };
                let (ip, port) = (target.addr.ip(), target.addr.port());
                let protocol = match target.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                writeln!(
                    rule,
                    "    {family} daddr {ip} {protocol} dport {port} fib saddr type != local notrack"
                )
                .expect("a string takes all");
            }
        }
    }
    write!(
        text,
        "table inet {table} {{\n  chain output {{\n    type filter hook output priority raw; policy accept;\n{rule}  }}\n}}\n"
    )
    .expect("a string takes all");
    text
}

/// An identifier that nft takes and that no other instance name gives: other characters than letters and digits as
/// underscore and two hexadecimal digits.
fn table_of(name: &str) -> String {
    let mut table = String::from("tcptwin_");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() {
            table.push(char::from(byte));
        } else {
            write!(table, "_{byte:02x}").expect("a string takes all");
        }
    }
    table
}

fn nft(script: &str) -> Result<(), Note> {
    // The paths of ordinary users often lack the administrators' directories.
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        match run(program, script) {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said
                    .lines()
                    .find(|l| l.contains("rror"))
                    .or(said.lines().next())
                    .unwrap_or("no reason given");
                return Err(Note::Refused { said: said.trim().to_owned() });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Note::Refused { said: e.to_string() }),
        }
    }
    Err(Note::NoNft)
}

fn run(program: &str, script: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // A child that reads nothing answers by its status.
    let _ = child.stdin.take().expect("stdin was asked for").write_all(script.as_bytes());
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_namespace, plan};

    #[test]
    fn names_become_identifiers_and_stay_apart() {
        assert_eq!(table_of("default"), "tcptwin_default");
        assert_ne!(table_of("a-b"), table_of("a_b"));
        assert!(table_of("x; flush ruleset").chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    }

    #[test]
    fn pool_rules_name_the_range_and_keep_rules_the_target() {
        let pool = plan(&["10.0.0.1:80"]);
        assert!(rules("t", &pool).contains("ip saddr 198.18.0.0/15 notrack"));
        let keep = Plan { clients: Clients::Keep, ..pool };
        assert!(rules("t", &keep).contains("ip daddr 10.0.0.1 tcp dport 80 fib saddr type != local notrack"));
    }

    #[test]
    fn the_table_comes_and_goes() {
        in_namespace("the_table_comes_and_goes", || {
            let listed = || {
                let out = Command::new("nft").args(["list", "tables"]).output().unwrap();
                String::from_utf8(out.stdout).unwrap()
            };
            for plan in [plan(&["10.0.0.1:80"]), Plan { clients: Clients::Keep, ..plan(&["10.0.0.1:80"]) }] {
                match NoTrack::install(&plan) {
                    Err(note @ Note::NoNft) => return eprintln!("SKIPPED: {note}"),
                    other => {
                        let rules = other.unwrap();
                        assert!(listed().contains(rules.table()), "{}", listed());
                        // As if the instance had been killed: the next of its name replaces the table.
                        std::mem::forget(rules);
                    }
                }
                let again = NoTrack::install(&plan).unwrap();
                drop(again);
                assert!(!listed().contains("tcptwin"), "{}", listed());
            }
        });
    }
}
