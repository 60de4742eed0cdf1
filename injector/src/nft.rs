//! nftables by its program: scripts in, what it printed out; and the kernel's news of changed rules. Used by the fence, and by
//! whoever else keeps a table of its own.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::rtnl;

mod counter;

/// Why a script did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// No program `nft`.
    #[error("nft is not installed. Install nftables")]
    Missing,
    /// It refused; the line that says why.
    #[error("nft: {0}")]
    Refused(String),
}

/// News of rules (linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;

/// Runs a script; what nft printed.
///
/// # Errors
/// There is no nft, or it refused: then the kernel took nothing of the script.
pub fn run(options: &[&str], script: &str) -> Result<String, NftError> {
    // The paths of ordinary users often lack the administrators' directories.
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        match run_as(program, options, script) {
            Ok(output) if output.status.success() => {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said
                    .lines()
                    .find(|l| l.contains("rror"))
                    .or(said.lines().next())
                    .unwrap_or("no reason given");
                return Err(NftError::Refused(said.trim().to_owned()));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(NftError::Refused(e.to_string())),
        }
    }
    Err(NftError::Missing)
}

fn run_as(program: &str, options: &[&str], script: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(options)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A child that reads nothing answers by its status.
    let _ = child.stdin.take().expect("stdin was asked for").write_all(script.as_bytes());
    child.wait_with_output()
}

/// Families of tables (linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Both versions of IP.
    Inet = 1,
    /// Frames at devices.
    Netdev = 5,
}

impl fmt::Display for Family {
    /// As nft has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        })
    }
}

/// A script that removes a table. `add` before `delete` makes it work whether or not the table exists.
pub fn removal(family: Family, table: &str) -> String {
    format!("add table {family} {table}\ndelete table {family} {table}\n")
}

/// Packets that a named counter of a table has seen, in the network namespace of the calling thread; 0 where there is none.
pub fn counted(family: Family, table: &str, counter: &str) -> u64 {
    counter::packets(family, table, counter).unwrap_or(0)
}

/// An identifier that nft takes and that no other instance name gives: other characters than letters and digits as
/// underscore and two hexadecimal digits.
pub fn table_of(prefix: &str, name: &str) -> String {
    let mut table = String::from(prefix);
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() {
            table.push(char::from(byte));
        } else {
            write!(table, "_{byte:02x}").expect("a string takes all");
        }
    }
    table
}

/// The other way round; none where the table has another prefix.
pub fn name_of(prefix: &str, table: &str) -> Option<String> {
    let mut rest = table.strip_prefix(prefix)?.bytes();
    let mut name = Vec::new();
    while let Some(byte) = rest.next() {
        name.push(match byte {
            b'_' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(name).ok()
}

/// Hears of changed rules.
pub struct News {
    socket: Socket,
    buffer: Vec<u8>,
}

impl News {
    /// From now on, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn listen() -> io::Result<Self> {
        let socket = rtnl::news(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
        Ok(Self { socket, buffer: Vec::with_capacity(32 << 10) })
    }

    /// The socket, for a poll over several.
    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Takes what waits; whether it was anything.
    pub(crate) fn hear(&mut self) -> bool {
        rtnl::hear(&self.socket, &mut self.buffer)
    }

    /// Sleeps until a rule changes, for that long at most; whether one did.
    pub fn wait(&mut self, time: Duration) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        // Whatever poll says, the read that follows tells.
        let _ = poll(&mut fds, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        self.hear()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_namespace, ip};

    #[test]
    fn a_counter_is_read_as_nft_shows_it() {
        in_namespace("a_counter_is_read_as_nft_shows_it", || {
            ip("link set lo up");
            let script = "table inet t {\n counter c {\n }\n chain out {\n type filter hook output priority 0\n \
                udp dport 9 counter name c drop\n }\n }\n\
                table netdev t {\n counter c {\n packets 12345678901 bytes 0\n }\n }\n";
            match run(&[], script) {
                Err(NftError::Missing) => return eprintln!("SKIPPED: {}", NftError::Missing),
                done => done.unwrap(),
            };
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for sent in 0..3 {
                assert_eq!(counted(Family::Inet, "t", "c"), sent);
                // The rule says no to the sender.
                socket.send_to(b"x", "127.0.0.1:9").unwrap_err();
            }
            let shown = run(&[], "list counter inet t c").unwrap();
            assert!(shown.contains("packets 3 bytes 87"), "{shown}");
            assert_eq!(counted(Family::Netdev, "t", "c"), 12_345_678_901);
            for (family, table, counter) in
                [(Family::Inet, "t", "d"), (Family::Inet, "u", "c"), (Family::Netdev, "", "c")]
            {
                assert_eq!(counted(family, table, counter), 0, "there is none");
            }
        });
    }

    #[test]
    fn names_become_identifiers_and_stay_apart() {
        let table = |name| table_of("tcptwin_", name);
        assert_eq!(table("default"), "tcptwin_default");
        assert_ne!(table("a-b"), table("a_b"));
        assert!(table("x; flush ruleset").chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        for name in ["default", "a-b_c", "x; flush ruleset"] {
            assert_eq!(name_of("tcptwin_", &table(name)).as_deref(), Some(name));
        }
        assert_eq!(name_of("tcptwin_", "filter"), None);
        assert_eq!(name_of("tcptwin_", "tcptwin_a_zz"), None);
    }
}
