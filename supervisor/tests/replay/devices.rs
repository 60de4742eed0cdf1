//! Devices that stand on others: a bridge that has the host's address, a macvlan, an overlay. The service is captured there, and
//! what is sent leaves by them, by every engine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use lab::real::{self, run as tool};
use lab::story::{Skipped, Story, step};
use lab::{HttpOptions, HttpService, Instance, Load, network};

use crate::inject::wait_for_engine;
use crate::stage::{ONLINE_PORT, Stage, TARGET_PORT, tcp_counter};
use crate::udp::{self, Echo};

pub(crate) const STORIES: &[Story] = &[
    ("a_bridge_has_the_hosts_address", 120, || over(Kind::Bridge, "br0")),
    ("a_bridge_has_the_hosts_address_and_any_is_captured", 120, || over(Kind::Bridge, "any")),
    ("a_macvlan_has_the_hosts_address", 120, || over(Kind::Macvlan, "mv0")),
    ("a_macvlan_has_the_hosts_address_and_any_is_captured", 120, || over(Kind::Macvlan, "any")),
    ("a_target_behind_an_overlay", 120, a_target_behind_an_overlay),
    ("datagrams_come_once_where_a_bridge_and_its_port_are_captured", 60, || once_over_a_bridge("ring")),
    ("datagrams_come_once_where_libpcap_captures_a_bridge_and_its_port", 60, || once_over_a_bridge("pcap")),
];

#[derive(Clone, Copy)]
enum Kind {
    Bridge,
    Macvlan,
}

/// Runs `ip` with each line's words; one of the first lines may ask for a kind of device that this kernel does not have.
fn ip(host: &network::Host, lines: &str) -> Result<()> {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        tool(&host.ns, "ip", &words, std::time::Duration::from_secs(10)).map_err(|error| {
            match format!("{error:#}").contains("Unknown device type") {
                true => Skipped::NotHere(format!("this kernel knows no such device: ip {line}")).into(),
                false => error,
            }
        })?;
    }
    Ok(())
}

/// The host's addresses move from its device to one that stands on it.
fn stack(host: &network::Host, kind: Kind) -> Result<()> {
    let (v4, v6) = (host.v4(), host.v6());
    host.ns.set_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    // The device below does not answer for an address that is not its own any more.
    host.ns.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    let (name, made) = match kind {
        Kind::Bridge => ("br0", "link add br0 type bridge\n link set eth0 master br0"),
        Kind::Macvlan => ("mv0", "link add mv0 link eth0 type macvlan mode bridge"),
    };
    ip(
        host,
        &format!(
            "{made}
             address del {v4}/16 dev eth0
             address del {v6}/64 dev eth0
             link set {name} up
             address add {v4}/16 dev {name}
             address add {v6}/64 dev {name}"
        ),
    )
}

/// Bytes of a segment on the lab's devices at most.
const SEGMENT: u64 = 1_460;

/// Requests of all sizes over a device, by each engine in turn.
fn over(kind: Kind, captured: &str) -> Result<()> {
    let stage = Stage::new()?;
    stack(&stage.net.online, kind)?;
    let _intercept = stage.intercept()?;
    let mut first_id = 0;
    for wanted in engines() {
        // Each run has the books to itself.
        let run = stage.run(&["-i", captured, "--inject", wanted])?;
        wait_for_engine(&run, wanted)?;
        requests(&stage, run, first_id)?;
        first_id += 10_000;
    }
    Ok(())
}

/// Those that work here.
fn engines() -> Vec<&'static str> {
    let there = |engine: &&str| match *engine {
        "link" => real::find("nft").is_ok(),
        "pcap" => libpcap::version().is_ok(),
        _ => true,
    };
    ["raw", "link", "pcap"].into_iter().filter(there).collect()
}

/// Small and large requests from an id on: all arrive, and no byte is dropped, not even as one that came twice, but what the client's
/// kernel itself sent twice, as it does on a busy machine.
fn requests(stage: &Stage, run: Instance, first_id: u64) -> Result<()> {
    let sent_again = || tcp_counter(&stage.net.client, "RetransSegs");
    let before = sent_again()?;
    let small = stage.send(Load { first_id, rate: Some(1_000.0), ..stage.load(1_000) })?;
    let posts = Load {
        first_id: first_id + 5_000,
        connections: 8,
        rate: Some(50.0),
        body_bytes: 100_000,
        ..stage.load(50)
    };
    let large = stage.send(posts)?;
    stage.wait_for(first_id..first_id + 1_000)?;
    stage.wait_for(first_id + 5_000..first_id + 5_050)?;
    let stats = crate::stage::end(run)?;
    crate::stage::clean(&stats, small.request_bytes + large.request_bytes)?;
    let doubled = stats.dropped("duplicate");
    let again = sent_again()? - before;
    println!("    {doubled} bytes came twice, the client sent {again} segments again; {}", stats.ledger());
    ensure!(doubled <= again * SEGMENT, "packets are captured twice: {}", stats.ledger());
    Ok(())
}

/// Between the two hosts stands an overlay: what goes to the target is wrapped in datagrams, by a device whose MTU is less.
fn a_target_behind_an_overlay() -> Result<()> {
    let stage = Stage::new()?;
    let (online, target) = (&stage.net.online, &stage.net.target);
    for (host, there, last) in [(online, target, 1), (target, online, 2)] {
        let (local, remote) = (host.v4(), there.v4());
        ip(
            host,
            &format!(
                "link add vx0 type vxlan id 7 dstport 4789 local {local} remote {remote}
                 address add 10.97.0.{last}/24 dev vx0
                 link set vx0 up"
            ),
        )?;
    }
    let at = SocketAddr::new(IpAddr::from([10, 97, 0, 2]), TARGET_PORT);
    let witness = Arc::clone(&stage.target);
    let _service = HttpService::start(&target.ns, at, HttpOptions::default(), witness)?;
    let _intercept = stage.twin.intercept(&stage.net.assistant, &["-x", &at.to_string(), "-i", "eth0"])?;
    let map = lab::twin::map(ONLINE_PORT, at);
    let assistant = stage.net.assistant.v4().to_string();
    let mut first_id = 0;
    for wanted in engines() {
        let args = ["-x", &map, "-s", &assistant, "-i", "eth0", "--inject", wanted];
        let run = stage.twin.run(online, &args)?;
        wait_for_engine(&run, wanted)?;
        requests(&stage, run, first_id)?;
        first_id += 10_000;
    }
    Ok(())
}

/// A bridge takes its port's hardware address, so a frame is for this host at both: `any` sees it twice.
fn once_over_a_bridge(capture: &str) -> Result<()> {
    if capture == "pcap" {
        libpcap::version().map_err(|error| Skipped::NotInstalled(error.to_string()))?;
    }
    let stage = Stage::new()?;
    stack(&stage.net.online, Kind::Bridge)?;
    let net = &stage.net;
    let at = SocketAddr::new(net.online.v4(), 53);
    let (online, target) =
        (Echo::start(&net.online, at.ip(), 53)?, Echo::start(&net.target, net.target.v4(), 5_353)?);
    let (tcp, service) = (stage.at_target().to_string(), format!("udp:{}:5353", net.target.v4()));
    let _intercept = stage.twin.intercept(&net.assistant, &["-x", &tcp, "-x", &service, "-i", "eth0"])?;
    let map = format!("udp:53-{}:5353", net.target.v4());
    let run = stage.run(&["-i", "any", "-x", &map, "--capture", capture])?;
    // 180 frames, which come up at the port and at the bridge. libpcap has room for 512 (`kernel_drops` tells of others), and on a
    // busy machine a capturer, whose priority is low, may not run before the last one was sent.
    udp::ask(&stage, at, 10, 3, &[100, 1_472, 5_000])?;
    step("the last datagrams arrive");
    let arrived =
        lab::wait::until("all arrive", crate::stage::SETTLE, || target.read().len() >= online.read().len());
    let stats = run.stop_run()?;
    let counted = || ["udp", "canary", "counters"].map(|part| stats.value()[part].to_string()).join("\n");
    arrived.with_context(counted)?;
    udp::same(&online.read(), &target.read(), 1).with_context(counted)?;
    ensure!(stats.number("/counters/capturer-0/seen_twice")? > 0, "nothing came twice");
    Ok(())
}
