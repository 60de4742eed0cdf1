//! The capture engines: the same traffic through each of them, what `-F`, `--net` and `--not-net` leave out, and a capturer
//! killed where no socket outlives it.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::story::{Skipped, Story, step};
use lab::{Answers, HttpOptions, Instance, Load, Mode, impair, netlink};

use crate::faults::more;
use crate::stage::{ONLINE_PORT, SETTLE, Stage, answered, end};

pub(crate) const STORIES: &[Story] = &[
    ("keep_alive_with_the_simple_engine", 60, || keep_alive("simple", "eth0")),
    ("keep_alive_with_the_pcap_engine", 60, || keep_alive("pcap", "eth0")),
    ("keep_alive_with_the_pcap_engine_on_any", 60, || keep_alive("pcap", "any")),
    ("short_connections_with_the_simple_engine", 60, || short_connections("simple")),
    ("short_connections_with_the_pcap_engine", 60, || short_connections("pcap")),
    ("large_bodies_both_ways_with_the_simple_engine", 60, || large_bodies("simple")),
    ("large_bodies_both_ways_with_the_pcap_engine", 60, || large_bodies("pcap")),
    ("ipv6_with_the_simple_engine", 60, || ipv6("simple")),
    ("ipv6_with_the_pcap_engine", 60, || ipv6("pcap")),
    ("an_expression_leaves_a_client_out_with_the_ring", 60, || leaves_out(&["-F", NOT_IT])),
    ("an_expression_leaves_a_client_out_with_the_simple_engine", 60, || {
        leaves_out(&["-F", NOT_IT, "--capture", "simple"])
    }),
    ("an_expression_leaves_a_client_out_with_the_pcap_engine", 60, || {
        leaves_out(&["-F", NOT_IT, "--capture", "pcap"])
    }),
    ("a_link_layer_expression_leaves_a_client_out_with_the_pcap_engine", 60, link_layer_expression),
    ("ranges_leave_a_client_out", 60, || leaves_out(&["--net", "10.88.0.0/16", "--not-net", "10.88.0.7"])),
    ("a_killed_capturer_of_the_simple_engine", 90, || a_killed_capturer("simple")),
    ("a_killed_capturer_of_the_pcap_engine", 90, || a_killed_capturer("pcap")),
    ("a_mirror_port_with_the_xdp_engine", 90, a_mirror_port),
];

/// Assistant2 plays a second client here.
const NOT_IT: &str = "not src host 10.88.0.7";

/// Whether this machine has what an engine or an expression needs.
fn libpcap_is_there() -> Result<()> {
    libpcap::version().map_err(|error| Skipped::NotInstalled(error.to_string()))?;
    Ok(())
}

/// A run with this engine, which says so itself.
fn run(stage: &Stage, engine: &str, more: &[&str]) -> Result<Instance> {
    if engine == "pcap" {
        libpcap_is_there()?;
    }
    let run = stage.run(&[&["--capture", engine], more].concat())?;
    let said = run.stats()?.value()["capture"]["engine"].clone();
    ensure!(said == engine, "stats says that {said} captures");
    Ok(run)
}

fn keep_alive(engine: &str, interface: &str) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = run(&stage, engine, &["-i", interface])?;
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn short_connections(engine: &str) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = run(&stage, engine, &[])?;
    let report = stage.send(Load { mode: Mode::ClientCloses, rate: Some(300.0), ..stage.load(600) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn large_bodies(engine: &str) -> Result<()> {
    let options = HttpOptions { response_bytes: 100_000, ..HttpOptions::default() };
    let stage = Stage::with(Answers::ViaAssistant, options)?;
    let _intercept = stage.intercept()?;
    let run = run(&stage, engine, &[])?;
    let load = Load { connections: 8, rate: Some(50.0), body_bytes: 100_000, ..stage.load(100) };
    let report = stage.send(load)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn ipv6(engine: &str) -> Result<()> {
    let stage = Stage::new()?;
    let target = std::net::SocketAddr::new(stage.net.target.v6(), crate::stage::TARGET_PORT);
    let _intercept =
        stage.twin.intercept(&stage.net.assistant, &["-x", &target.to_string(), "-i", "eth0"])?;
    if engine == "pcap" {
        libpcap_is_there()?;
    }
    let map = lab::twin::map(ONLINE_PORT, target);
    let assistant = stage.net.assistant.v4().to_string();
    let args = ["-x", &map, "-s", &assistant, "-i", "eth0", "--capture", engine];
    let run = stage.twin.run(&stage.net.online, &args)?;
    let to = std::net::SocketAddr::new(stage.net.online.v6(), ONLINE_PORT);
    let report = stage.send(Load { to, rate: Some(500.0), ..stage.load(500) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

/// Two clients, of which one is left out by these options.
fn leaves_out(options: &[&str]) -> Result<()> {
    if options.contains(&"-F") {
        libpcap_is_there()?;
    }
    leaves_out_of(&Stage::new()?, options)
}

fn leaves_out_of(stage: &Stage, options: &[&str]) -> Result<()> {
    let _intercept = stage.intercept()?;
    let run = stage.run(options)?;
    step("a client that is left out, and one that is not");
    let out = Load { rate: Some(500.0), first_id: 10_000, ..stage.load(300) };
    answered(out.run(&stage.net.assistant2.ns)?)?;
    let report = stage.send(Load { rate: Some(500.0), ..stage.load(300) })?;
    let (target, wanted) = (&stage.target, report.request_bytes);
    lab::wait::until("the target has answered", SETTLE, || (0..300).all(|id| target.times(id) > 0))?;
    let stats = end(run)?;
    let left: Vec<u64> = (10_000..10_300).filter(|&id| stage.target.times(id) > 0).collect();
    ensure!(left.is_empty(), "{} requests of the client that is left out were replayed", left.len());
    ensure!((0..300).all(|id| stage.target.times(id) == 1), "each of the other client's arrives once");
    crate::stage::clean(&stats, wanted)
}

fn link_layer_expression() -> Result<()> {
    libpcap_is_there()?;
    let stage = Stage::new()?;
    let mac = stage.net.assistant2.ns.enter(|| capturer::interfaces::find("eth0").and_then(|one| one.mac));
    let octets: Vec<String> = mac.into_iter().flatten().map(|octet| format!("{octet:02x}")).collect();
    ensure!(octets.len() == 6, "assistant2 has a link address");
    let expression = format!("not ether src {}", octets.join(":"));
    leaves_out_of(&stage, &["-F", &expression, "--capture", "pcap"])?;
    step("another engine refuses it and names this one");
    let output = Command::new(env!("CARGO_BIN_EXE_tcptwin"))
        .args(["run", "-x", "80-10.88.0.4:8080", "-s", "10.88.0.5", "--plain", "-F", "ether src 2:0:0:0:0:1"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("--capture pcap"), "it said: {said}");
    Ok(())
}

/// What the kernel held for the dead one is missing; what comes later is not, and the ledger says which is which.
fn a_killed_capturer(engine: &str) -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = run(&stage, engine, &[])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(20_000) })?;
    more(&load, 300)?;
    step("kill the capturer");
    let old = run.kill_role("capturer", 0)?;
    run.wait_restarted("capturer", 0, old, SETTLE)?;
    more(&load, 300)?;
    answered(load.stop()?)?;
    step("what comes afterwards on new connections is whole");
    stage.send(Load { rate: Some(500.0), first_id: 50_000, ..stage.load(500) })?;
    stage.wait_for(50_000..50_500)?;
    let stats = end(run)?;
    let missing: Vec<u64> = (50_000..50_500).filter(|&id| stage.target.times(id) != 1).collect();
    ensure!(missing.is_empty(), "{} requests after the recovery are missing or doubled", missing.len());
    if engine == "pcap" {
        let opened = stats.number("/counters/capturer-0/opened")?;
        ensure!(opened == 2, "the device was opened {opened} times");
    }
    Ok(())
}

/// A sensor host with an interface of its own for what the switch mirrors there.
fn a_mirror_port() -> Result<()> {
    if !cfg!(feature = "xdp") {
        return Err(Skipped::NotHere("built without the feature xdp".to_owned()).into());
    }
    let stage = Stage::new()?;
    let sensor = &stage.net.online2;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&sensor.ns.fd());
    stage.net.switch.enter(move || {
        netlink::add_veth("to-mirror", "mirror0", fd)?;
        netlink::set_up("to-mirror", true)
    })?;
    sensor.ns.enter(|| netlink::set_up("mirror0", true))?;
    let _mirror =
        impair::mirror(&stage.net, &stage.net.client, "tcp dport 80", "to-mirror", "tcp dport 9", 0)?;
    let _intercept = stage.intercept()?;
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let assistant = stage.net.assistant.v4().to_string();
    let args = ["-x", &map, "-s", &assistant, "-i", "mirror0", "--capture", "xdp"];
    step("an interface with an address is refused");
    let wrong = ["-x", &map, "-s", &assistant, "-i", "eth0", "--capture", "xdp"];
    let said = match stage.twin.run(sensor, &wrong) {
        Ok(_) => "nothing".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    ensure!(said.contains("it has the address 10.88.0.6"), "it said: {said}");
    step("run on the sensor host");
    let run = stage.twin.run(sensor, &args)?;
    let mut report = stage.send(Load { rate: Some(500.0), ..stage.load(1_000) })?;
    step("with larger bodies");
    let load = Load { first_id: 5_000, rate: Some(50.0), body_bytes: 20_000, ..stage.load(50) };
    report.request_bytes += stage.send(load)?.request_bytes;
    step("the kernel goes on capturing when the capturer is killed");
    stage.wait_for_target(1)?;
    let load = stage.start(Load { first_id: 6_000, rate: Some(500.0), ..stage.load(1_000) })?;
    for _ in 0..3 {
        let old = run.kill_role("capturer", 0)?;
        run.wait_restarted("capturer", 0, old, SETTLE)?;
    }
    report.request_bytes += load.wait()?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    step("nothing of it is left on the interface");
    stage.twin.run(sensor, &args)?.stop_run()?;
    Ok(())
}
