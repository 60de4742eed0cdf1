//! Trouble at the target, and on the last hop to it. What was not in the outage arrives; what was is counted.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::impair::{Impairment, refuse_frames, refuse_sends, reset};
use lab::load::RunningLoad;
use lab::real;
use lab::story::{Skipped, Story, step};
use lab::{Fidelity, Host, HttpOptions, HttpService, Instance, Load, Namespace, Stats, netlink, wait};

use crate::counted;
use crate::stage::{ONLINE_PORT, SETTLE, Stage, TARGET_PORT, answered, clean, end};

pub(crate) const STORIES: &[Story] = &[
    ("the_target_is_away_for_two_seconds", 60, the_target_is_away_for_two_seconds),
    ("the_target_resets_everything_for_two_seconds", 60, the_target_resets_everything_for_two_seconds),
    ("frames_are_refused_for_two_seconds", 60, frames_are_refused_for_two_seconds),
    ("sends_are_refused_for_two_seconds", 60, sends_are_refused_for_two_seconds),
    ("a_target_with_a_tiny_receive_window", 60, a_target_with_a_tiny_receive_window),
    ("a_path_of_1280_bytes_by_raw_ip", 60, || a_path_of_1280_bytes("raw")),
    ("a_path_of_1280_bytes_by_link", 60, || a_path_of_1280_bytes("link")),
    ("a_path_of_1280_bytes_by_libpcap", 60, || a_path_of_1280_bytes("pcap")),
];

/// How long an outage lasts.
const OUTAGE: Duration = Duration::from_secs(2);
/// The target is back, or the rules are gone, for so long before requests count again: connections are tried again with
/// a back-off of at most a second in the first seconds.
const RECOVERY: Duration = Duration::from_secs(2);

fn sent(load: &RunningLoad) -> u64 {
    load.progress.sent.load(Relaxed)
}

fn the_target_is_away_for_two_seconds() -> Result<()> {
    let mut stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    std::thread::sleep(Duration::from_millis(500));
    step("the service stops");
    let before = sent(&load);
    stage.target_service.take();
    std::thread::sleep(OUTAGE);
    step("it is back");
    stage.restart_target()?;
    std::thread::sleep(RECOVERY);
    let after = sent(&load);
    std::thread::sleep(Duration::from_secs(2));
    let report = answered(load.stop()?)?;
    outage(&stage, run, before.saturating_sub(40), after, report)
}

fn the_target_resets_everything_for_two_seconds() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    std::thread::sleep(Duration::from_millis(500));
    step("every segment is answered by a reset");
    let before = sent(&load);
    let resets = reset(&stage.net.target, "tcp dport 8080")?;
    std::thread::sleep(OUTAGE);
    ensure!(resets.end()? > 0, "nothing was reset");
    step("no more");
    std::thread::sleep(RECOVERY);
    let after = sent(&load);
    std::thread::sleep(Duration::from_secs(2));
    let report = answered(load.stop()?)?;
    outage(&stage, run, before.saturating_sub(40), after, report)
}

/// All requests before and after the outage arrived once, none twice, and every byte of those in it is counted.
fn outage(stage: &Stage, run: Instance, before: u64, after: u64, report: lab::LoadReport) -> Result<()> {
    step("the last requests arrive");
    let wanted = [0..before, after..report.sent];
    let there = || wanted.iter().cloned().flatten().all(|id| stage.target.times(id) > 0);
    // Not an error yet: the comparison that follows says which ids are missing.
    let _ = wait::until("the target has answered", SETTLE, there);
    let stats = end(run)?;
    let all = Fidelity::of(&stage.online, &stage.target, 1);
    println!("    {all}; {}", stats.ledger());
    for ids in wanted {
        let part = Fidelity::of_ids(&stage.online, &stage.target, 1, ids.clone());
        ensure!(
            part.is_exact() && part.ids == ids.end - ids.start,
            "ids {ids:?}: {part}; {}",
            stats.ledger()
        );
    }
    ensure!(all.surplus == 0 && all.altered == 0, "in all: {all}; {}", stats.ledger());
    let others = stats.dropped_in_all() - stats.dropped("duplicate");
    ensure!(stats.delivered() + others == report.request_bytes, "bytes without a name: {}", stats.ledger());
    ensure!(stats.missed() == 0 && stats.in_flight() == 0, "{}", stats.ledger());
    stats.check_ledger()
}

const TO_TARGET: &str = "ip daddr 10.88.0.4 tcp dport 8080";

fn sends_are_refused_for_two_seconds() -> Result<()> {
    refused_for_two_seconds("raw", "EPERM", |host| refuse_sends(host, TO_TARGET))
}

fn frames_are_refused_for_two_seconds() -> Result<()> {
    refused_for_two_seconds("link", "ENOBUFS", |host| refuse_frames(host, TO_TARGET))
}

fn refused_for_two_seconds(
    engine: &str,
    errno: &str,
    refuse: impl Fn(&Host) -> Result<Impairment<'_>>,
) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2", "--inject", engine])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(2_500) })?;
    std::thread::sleep(Duration::from_millis(500));
    step(format!("every send to the target fails with {errno}"));
    let rules = refuse(&stage.net.online)?;
    std::thread::sleep(OUTAGE);
    ensure!(rules.end()? > 0, "nothing was refused");
    step("no more");
    let report = answered(load.wait()?)?;
    let stats = stage.all_replayed(run, &report, 1)?;
    let errors = stats.number(&format!("/inject/errors/{errno}"))?;
    ensure!(errors > 0, "no send error was counted");
    Ok(())
}

fn a_target_with_a_tiny_receive_window() -> Result<()> {
    let mut stage = Stage::new()?;
    // The least that the kernel grants; it offers a part of it, less than two full segments.
    stage.net.target.ns.set_sysctl("net/ipv4/tcp_rmem", "4096 4096 4096")?;
    stage.target_service.take();
    stage.restart_target()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let posts = Load { connections: 8, rate: Some(20.0), body_bytes: 100_000, ..stage.load(60) };
    let one = stage.send(posts)?;
    let two = stage.send(Load { first_id: 1_000, rate: Some(1_000.0), ..stage.load(1_000) })?;
    stage.wait_for_target(1)?;
    let stats = end(run)?;
    // Two segments at a time and no more.
    let records = counted(&stats, "sent_records");
    ensure!(
        records * 3_000 > stats.delivered(),
        "{} bytes in {records} records: no tiny window",
        stats.delivered()
    );
    whole(&stage, &stats, one.request_bytes + two.request_bytes)
}

fn whole(stage: &Stage, stats: &Stats, bytes: u64) -> Result<()> {
    let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
    ensure!(fidelity.is_exact(), "{fidelity}; {}", stats.ledger());
    clean(stats, bytes)
}

/// The service behind a router whose second link takes 1,280 bytes while every host believes in 1,500: the router's ICMP
/// errors go to the replayed clients, that is to intercept. Whatever cut the packets that were too long, what follows is
/// shorter.
fn a_path_of_1280_bytes(engine: &str) -> Result<()> {
    match engine {
        "link" => drop(real::find("nft")?),
        "pcap" => libpcap::version().map(drop).map_err(|error| Skipped::NotInstalled(error.to_string()))?,
        _ => {}
    }
    let stage = Stage::new()?;
    let net = &stage.net;
    step("a router with a narrow link");
    let router = Namespace::new("router")?;
    router.set_sysctl("net/ipv4/ip_forward", "1")?;
    router.set_sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    let (in_router, in_target) = (router.fd().as_raw_fd(), net.target.ns.fd().as_raw_fd());
    net.switch.enter(move || {
        netlink::add_veth("to-router", "eth0", in_router)?;
        netlink::set_bridge("to-router", "br0")?;
        netlink::set_up("to-router", true)
    })?;
    let ip = |a, b, c, d| std::net::IpAddr::from(Ipv4Addr::new(a, b, c, d));
    router.enter(move || {
        netlink::add_veth("eth1", "eth1", in_target)?;
        netlink::set_up("lo", true)?;
        for (device, address) in [("eth0", ip(10, 88, 0, 20)), ("eth1", ip(10, 99, 0, 1))] {
            netlink::set_up(device, true)?;
            netlink::add_address(device, address, if device == "eth0" { 16 } else { 24 })?;
        }
        netlink::set_mtu("eth1", 1_280)?;
        netlink::add_route(ip(198, 18, 0, 0), 15, ip(10, 88, 0, 5))
    })?;
    net.target.ns.enter(move || {
        netlink::set_up("eth1", true)?;
        netlink::add_address("eth1", ip(10, 99, 0, 4), 24)
    })?;
    net.online.ns.enter(move || netlink::add_route(ip(10, 99, 0, 0), 24, ip(10, 88, 0, 20)))?;
    let target = SocketAddr::new(ip(10, 99, 0, 4), TARGET_PORT);
    let _service =
        HttpService::start(&net.target.ns, target, HttpOptions::default(), Arc::clone(&stage.target))?;
    let _intercept = stage.twin.intercept(&net.assistant, &["-x", &target.to_string(), "-i", "eth0"])?;
    let map = lab::twin::map(ONLINE_PORT, target);
    let args = ["-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--shards", "2", "--inject", engine];
    let run = stage.twin.run(&net.online, &args)?;
    wait::until("the engine is chosen", SETTLE, || {
        run.stats().is_ok_and(|stats| stats.value()["inject"]["engine"] == engine)
    })?;
    let posts = Load { connections: 8, rate: Some(50.0), body_bytes: 100_000, ..stage.load(150) };
    let one = stage.send(posts)?;
    let two = stage.send(Load { first_id: 1_000, rate: Some(500.0), ..stage.load(1_000) })?;
    stage.wait_for_target(1)?;
    let stats = end(run)?;
    let (errors, shrunk) = (counted(&stats, "icmp"), counted(&stats, "path_shrank"));
    println!("    {errors} ICMP errors came back, {shrunk} sessions obeyed one");
    ensure!(errors > 0 && shrunk > 0, "{errors} ICMP errors came back, {shrunk} sessions obeyed one");
    ensure!(stats.number("/inject/switches")? == 0, "not all was sent by {engine}");
    whole(&stage, &stats, one.request_bytes + two.request_bytes)
}
