//! Where and how it captures, replays and returns: `any`, loopback, `--tun`, kept clients, the simple engine, a key.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Result, ensure};
use lab::story::{Skipped, Story, step};
use lab::{Answers, HttpOptions, HttpService, Load, Mode};

use crate::stage::{ONLINE_PORT, Stage, answered, tcp_counter};

pub(crate) const STORIES: &[Story] = &[
    ("capture_on_all_interfaces", 60, capture_on_all_interfaces),
    ("capture_on_loopback", 60, capture_on_loopback),
    ("capture_on_loopback_and_all_others_at_once", 60, capture_on_loopback_and_all_others_at_once),
    ("intercept_on_the_target_with_a_tun_device", 60, intercept_on_the_target_with_a_tun_device),
    ("real_client_addresses_are_kept", 60, real_client_addresses_are_kept),
    ("the_simple_capture_engine", 60, the_simple_capture_engine),
    ("a_return_channel_with_a_key", 60, a_return_channel_with_a_key),
    ("requests_that_wait_for_no_answer", 60, requests_that_wait_for_no_answer),
];

fn capture_on_all_interfaces() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["-i", "any"])?;
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn loopback_service(stage: &Stage) -> Result<(HttpService, SocketAddr)> {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ONLINE_PORT);
    let witness = std::sync::Arc::clone(&stage.online);
    let service = HttpService::start(&stage.net.online.ns, address, HttpOptions::default(), witness)?;
    Ok((service, address))
}

fn capture_on_loopback() -> Result<()> {
    let stage = Stage::new()?;
    let (_service, address) = loopback_service(&stage)?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["-i", "lo"])?;
    step("clients on the online host itself");
    let load = Load { to: address, rate: Some(1_000.0), ..stage.load(2_000) };
    let mut report = answered(load.run(&stage.net.online.ns)?)?;
    step("with bodies in super-frames of 64 KiB");
    let load = Load { to: address, first_id: 5_000, rate: Some(50.0), body_bytes: 200_000, ..stage.load(50) };
    report.request_bytes += answered(load.run(&stage.net.online.ns)?)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn capture_on_loopback_and_all_others_at_once() -> Result<()> {
    let stage = Stage::new()?;
    let (_service, address) = loopback_service(&stage)?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["-i", "any"])?;
    let mut report = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    step("clients on the online host itself");
    let load = Load { to: address, mode: Mode::ClientCloses, first_id: 5_000, ..stage.load(500) };
    report.request_bytes += answered(load.run(&stage.net.online.ns)?)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn intercept_on_the_target_with_a_tun_device() -> Result<()> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        return Err(Skipped::NotHere(format!(
            "/dev/net/tun cannot be opened ({error}): load the tun module, run as root"
        ))
        .into());
    }
    let stage = Stage::with(Answers::NoRoute, HttpOptions::default())?;
    step("intercept --tun on the target host");
    let target = stage.at_target().to_string();
    let intercept = stage.twin.intercept(&stage.net.target, &["-x", &target, "--tun"])?;
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let run = stage.twin.run(&stage.net.online, &["-x", &map, "-s", "10.88.0.4", "-i", "eth0"])?;
    let mut report = stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    step("a connection per request, and bodies");
    let load = Load {
        mode: Mode::ClientCloses,
        first_id: 5_000,
        rate: Some(100.0),
        body_bytes: 50_000,
        ..stage.load(200)
    };
    report.request_bytes += stage.send(load)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    step("the device goes with its process");
    let ended = intercept.stop()?;
    ensure!(ended.status.success(), "intercept ended with {}: {}", ended.status, ended.stderr);
    let left = stage.net.target.ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/route"))?;
    ensure!(left.lines().count() == 2, "a route is left behind: {left}");
    Ok(())
}

fn real_client_addresses_are_kept() -> Result<()> {
    let stage = Stage::new()?;
    // As an operator would: only the answers to the clients of the experiment go to the assistant.
    stage.route_real_clients()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--keep-clients", "--shards", "2"])?;
    let mut report = stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    step("a connection per request");
    let load = Load { mode: Mode::ClientCloses, first_id: 5_000, rate: Some(500.0), ..stage.load(1_000) };
    report.request_bytes += stage.send(load)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    // An answer of the target that reached the real client would have been refused by its kernel with an RST.
    let resets = tcp_counter(&stage.net.client, "OutRsts")?;
    ensure!(resets == 0, "the real client sent {resets} RSTs: answers of the target reached it");
    Ok(())
}

fn the_simple_capture_engine() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--capture", "simple"])?;
    let mut report = stage.send(Load { rate: Some(500.0), ..stage.load(1_000) })?;
    step("bodies in super-frames");
    let load = Load { first_id: 5_000, rate: Some(50.0), body_bytes: 100_000, ..stage.load(50) };
    report.request_bytes += stage.send(load)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn a_return_channel_with_a_key() -> Result<()> {
    let stage = Stage::new()?;
    let dir = lab::scratch::Scratch::new("key")?;
    let make = |name: &str| -> Result<String> {
        let file = dir.file(name).to_string_lossy().into_owned();
        let made = Command::new(env!("CARGO_BIN_EXE_tcptwin")).args(["keygen", &file]).output()?;
        ensure!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
        Ok(file)
    };
    let (key, other) = (make("key")?, make("other")?);
    let target = stage.at_target().to_string();
    let _intercept =
        stage.twin.intercept(&stage.net.assistant, &["-x", &target, "-i", "eth0", "--key", &key])?;
    step("another key is refused");
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let args = ["-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--key", &other];
    let refused = stage.twin.begin(lab::twin::Kind::Run, &stage.net.online, &args)?;
    let ended = refused.wait(crate::stage::SETTLE)?;
    ensure!(
        ended.status.code() == Some(3),
        "a run with another key ended with {}: {}",
        ended.status,
        ended.stderr
    );
    ensure!(ended.stderr.contains("key"), "the refusal does not speak of the key: {}", ended.stderr);
    step("the same key works");
    let run = stage.run(&["--key", &key])?;
    let report = stage.send(Load { rate: Some(500.0), ..stage.load(1_000) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn requests_that_wait_for_no_answer() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--no-wait"])?;
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(2_000) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}
