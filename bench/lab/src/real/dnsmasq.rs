//! A real name server, dnsmasq, that knows every name under `lab` and writes down each question; and a client that asks one question
//! after the other and reads the answers (RFC 1035).

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::namespace::Namespace;
use crate::network::Host;
use crate::real::tool;
use crate::scratch::Scratch;
use crate::wait;

/// What every name under `lab` stands for.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// Between a client's questions. A twin is asked at the same pace without anybody who waits for its answers: a crowd in closed loop
/// would ask faster than a server on a busy machine empties its socket.
const BETWEEN: Duration = Duration::from_millis(5);

/// A running dnsmasq.
pub struct Dnsmasq {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    scratch: Scratch,
}

impl Dnsmasq {
    /// Starts it on a host's IPv4 address.
    pub fn start(host: &Host, port: u16) -> anyhow::Result<Self> {
        let program = tool::find("dnsmasq")?;
        let scratch = Scratch::new("dnsmasq")?;
        let address = SocketAddr::new(host.v4(), port);
        let mut command = Command::new(program);
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll"])
            .args(["--bind-interfaces", "--except-interface=lo", "--user=root", "--group=root"])
            .args([format!("--port={port}"), format!("--listen-address={}", host.v4())])
            .args([format!("--address=/lab/{ADDRESS}"), "--log-queries".to_owned()])
            .arg(format!("--log-facility={}", scratch.file("log").display()))
            .arg(format!("--pid-file={}", scratch.file("pid").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = host.ns.spawn(command).context("starting dnsmasq")?;
        let dnsmasq = Self { address, child, scratch };
        let ready = || ask(&host.ns, address, "ready", 0..1).is_ok();
        wait::until(&format!("dnsmasq at {address}"), Duration::from_secs(10), ready)?;
        Ok(dnsmasq)
    }

    /// How often it was asked each name that begins so.
    pub fn questions(&self, prefix: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut found = BTreeMap::new();
        for line in fs::read_to_string(self.scratch.file("log"))?.lines() {
            let name = line.split_once("query[A] ").and_then(|(_, rest)| rest.split(' ').next());
            if let Some(name) = name.filter(|name| name.starts_with(prefix)) {
                *found.entry(name.to_owned()).or_default() += 1;
            }
        }
        Ok(found)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for `PREFIX-N.lab` for each number, one after the other from one port, and insists on the right answer.
pub fn ask(
    ns: &Namespace,
    server: SocketAddr,
    prefix: &str,
    numbers: std::ops::Range<u32>,
) -> anyhow::Result<()> {
    let prefix = prefix.to_owned();
    ns.enter(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        for number in numbers {
            std::thread::sleep(BETWEEN);
            let id = number as u16;
            socket.send(&question(id, &format!("{prefix}-{number}")))?;
            let mut answer = [0; 512];
            let len = socket.recv(&mut answer).context("no answer of the name server")?;
            let answer = &answer[..len];
            // Identification, an answer without an error to one question, one record, whose address comes last.
            let head = answer.get(..8).context("an answer without a header")?;
            let good = head[..2] == id.to_be_bytes() && head[2] & 0x80 != 0 && head[3] & 0xf == 0;
            ensure!(good && head[6..8] == [0, 1], "question {number}: {head:02x?}");
            ensure!(answer.ends_with(&ADDRESS.octets()), "question {number} got another address");
        }
        Ok(())
    })
}

/// For the address of `NAME.lab`, recursion desired.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [name, "lab"] {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}
