//! The probe of the way to each target and back: what it says of a whole way, how soon nothing is sent on a broken one, which hop
//! it names, and that real clients' addresses need it. A witness on the wire watches all the while that nothing goes astray.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::impair::{ALL, Way, lose};
use lab::outside::Outside;
use lab::story::{Story, step};
use lab::twin::Kind;
use lab::{Instance, Load, Stats, netlink, real, wait};

use crate::faults::more;
use crate::stage::{ONLINE_PORT, SETTLE, Stage, answered};

pub(crate) const STORIES: &[Story] = &[
    ("every_way_is_probed_and_no_service_notices", 60, every_way_is_probed_and_no_service_notices),
    ("answers_that_go_elsewhere_end_the_sending", 90, answers_that_go_elsewhere_end_the_sending),
    ("the_hop_that_is_broken_is_named", 90, the_hop_that_is_broken_is_named),
    ("a_target_that_takes_no_more_connections_goes_on", 60, a_target_that_takes_no_more_connections_goes_on),
    ("real_addresses_need_a_whole_way", 60, real_addresses_need_a_whole_way),
    ("a_killed_injector_sends_nothing_on_a_broken_way", 60, a_killed_injector_sends_nothing_on_a_broken_way),
    ("a_host_that_forwards_needs_a_rule", 90, a_host_that_forwards_needs_a_rule),
    ("forwarding_that_is_switched_on_stops_intercept", 60, forwarding_that_is_switched_on_stops_intercept),
];

/// From a failing probe to the verdict: three tries of 300 ms, and what a busy machine adds.
const VERDICT: Duration = Duration::from_millis(1_500);
/// Between probes of a whole way.
const EVERY: Duration = Duration::from_secs(10);

/// State, and whether nothing is sent.
fn canary(stats: &Stats) -> Result<(String, bool)> {
    let one = stats.value().pointer("/canary/0").context("stats have no canary")?;
    let state = one.get("state").and_then(serde_json::Value::as_str).context("no state")?;
    let held = one.get("held").and_then(serde_json::Value::as_bool).context("no word about holding")?;
    Ok((state.to_owned(), held))
}

fn wait_for(run: &Instance, state: &str, limit: Duration) -> Result<Stats> {
    let mut last = None;
    let seen = wait::until(&format!("the probe says {state}"), limit, || {
        last = run.stats().ok();
        last.as_ref().is_some_and(|stats| canary(stats).is_ok_and(|(now, _)| now == state))
    });
    let stats = last.context("no stats")?;
    seen.with_context(|| format!("it says {:?}; {}", canary(&stats), run.stderr()))?;
    Ok(stats)
}

fn every_way_is_probed_and_no_service_notices() -> Result<()> {
    let stage = Stage::new()?;
    let mut outside = Outside::new(&stage.net, stage.at_target())?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let first = wait_for(&run, "ok", SETTLE)?;
    let time = |hop: &str| first.number(&format!("/canary/0/rtt_us/{hop}"));
    println!("    {} us, {} of it out, {} back", time("total")?, time("out")?, time("back")?);
    ensure!(time("total")? > 0 && time("total")? == time("out")? + time("back")?, "the hops' times");
    step("the next round comes by itself");
    let probes = |stats: &Stats| stats.number("/counters/injector-0/probes");
    let sent = probes(&first)?;
    wait::until("another probe", EVERY + VERDICT, || {
        run.stats().and_then(|stats| probes(&stats)).is_ok_and(|now| now > sent)
    })?;
    // Its reset is behind it.
    std::thread::sleep(Duration::from_millis(300));
    ensure!(stage.target.connections() == 0, "{} connections were accepted", stage.target.connections());
    let half_open = stage.net.target.ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let states: Vec<&str> = half_open.lines().skip(1).filter_map(|l| l.split_whitespace().nth(3)).collect();
    ensure!(!states.contains(&"03"), "half open at the target: {half_open}");
    step("sessions have other endpoints");
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(
        stats.number("/canary/0/failures")? == 0 && stats.number("/guard/dropped")? == 0,
        "{:?}",
        stats.value()
    );
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    Ok(())
}

fn answers_that_go_elsewhere_end_the_sending() -> Result<()> {
    let stage = Stage::new()?;
    let mut outside = Outside::new(&stage.net, stage.at_target())?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2", "-c", "198.18.16.0/20"])?;
    wait_for(&run, "ok", SETTLE)?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 500)?;
    step("the target's route leads to a host that is not there");
    let (range, wrong) = ("198.18.16.0".parse()?, std::net::IpAddr::from([10, 88, 0, 99]));
    stage.net.target.ns.enter(move || netlink::add_route(range, 20, wrong))?;
    let begin = Instant::now();
    // Sessions are not answered for a second, then the probe is not for another one.
    let failed = wait_for(&run, "unseen", Duration::from_secs(2) + VERDICT)?;
    println!("    noticed after {:?}", begin.elapsed());
    ensure!(canary(&failed)?.1, "it is not held");
    step("nothing but probes leaves");
    std::thread::sleep(Duration::from_millis(200));
    let sent = run.stats()?.number("/inject/segments")?;
    // Eight seconds is the longest time to a retransmission.
    let held = |stats: Stats| stats.number("/counters/injector-0/held");
    wait::until("something is held back", SETTLE, || run.stats().and_then(held).is_ok_and(|held| held > 20))?;
    ensure!(run.stats()?.number("/inject/segments")? == sent, "segments left while the way was broken");
    let said = run.stderr();
    ensure!(said.contains("ip route replace 198.18.16.0/20 via 10.88.0.5"), "{said}");
    step("the route is right again");
    stage.net.target.ns.enter(move || netlink::remove_route(range, 20, wrong))?;
    let mended = Instant::now();
    wait_for(&run, "ok", Duration::from_secs(4))?;
    println!("    whole again after {:?}", mended.elapsed());
    more(&load, 1_000)?;
    let report = answered(load.stop()?)?;
    stage.all_replayed(run, &report, 1)?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    Ok(())
}

fn nft(host: &lab::Host, rules: &str) -> Result<()> {
    let words = format!("{rules}\n");
    real::run(&host.ns, "nft", &[&words], SETTLE)?;
    Ok(())
}

fn the_hop_that_is_broken_is_named() -> Result<()> {
    real::find("nft")?;
    let mut stage = Stage::new()?;
    let intercept = stage.intercept()?;
    step("the target's firewall drops");
    let target = |stage: &Stage, verdict: &str| {
        nft(
            &stage.net.target,
            &format!(
                "table inet wall {{ chain in {{ type filter hook input priority 0; tcp dport 8080 {verdict}; }}; }}"
            ),
        )
    };
    let open = |stage: &Stage| nft(&stage.net.target, "delete table inet wall");
    target(&stage, "drop")?;
    let run = stage.run(&["--inject", "raw"])?;
    wait_for(&run, "unseen", SETTLE)?;
    run.wait_said("nothing is sent to 10.88.0.4:8080 until a probe passes")?;
    step("it refuses by ICMP");
    open(&stage)?;
    target(&stage, "reject with icmpx type admin-prohibited")?;
    wait_for(&run, "rejected", SETTLE)?;
    step("this host's firewall does not let it out");
    nft(
        &stage.net.online,
        "table inet wall { chain out { type filter hook output priority 0; tcp dport 8080 drop; }; }",
    )?;
    wait_for(&run, "not_sent", SETTLE)?;
    run.wait_said("did not leave this host (EPERM)")?;
    nft(&stage.net.online, "delete table inet wall")?;
    step("nobody listens");
    open(&stage)?;
    stage.target_service.take();
    let refused = wait_for(&run, "refused", SETTLE)?;
    ensure!(!canary(&refused)?.1, "a service that is down is no broken way");
    stage.restart_target()?;
    step("intercept is killed");
    intercept.kill()?;
    wait_for(&run, "channel_down", SETTLE)?;
    let _intercept = stage.intercept()?;
    step("all is well");
    wait_for(&run, "ok", SETTLE)?;
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(500) })?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

fn a_target_that_takes_no_more_connections_goes_on() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    wait_for(&run, "ok", SETTLE)?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 200)?;
    step("no SYN is answered any more, as by a service whose queue is full");
    let (online, target) = (&stage.net.online, &stage.net.target);
    let syn = "tcp dport 8080 tcp flags & (syn | ack) == syn";
    let full = lose(&stage.net, &[Way { from: online, to: target, what: syn }], ALL)?;
    let stats = wait_for(&run, "traffic", EVERY + VERDICT)?;
    ensure!(!canary(&stats)?.1, "a busy target was taken for one out of reach");
    ensure!(full.end()? >= 3, "the probe was not tried three times");
    more(&load, 500)?;
    let report = answered(load.stop()?)?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.number("/counters/injector-0/held")? == 0, "something was held back");
    Ok(())
}

fn real_addresses_need_a_whole_way() -> Result<()> {
    let stage = Stage::new()?;
    let mut outside = Outside::new(&stage.net, stage.at_target())?;
    let _intercept = stage.intercept()?;
    let map = lab::twin::map(ONLINE_PORT, stage.at_target());
    let keep = ["-x", &map, "-s", "10.88.0.5", "-i", "eth0", "--keep-clients"];
    step("the target has a route for the benchmarking ranges alone: its answers would go to the clients");
    let load = stage.start(Load { rate: Some(200.0), ..stage.load(50_000) })?;
    let ended = stage.twin.begin(Kind::Run, &stage.net.online, &keep)?.wait(SETTLE)?;
    ensure!(ended.status.code() == Some(3), "{}: {}", ended.status, ended.stderr);
    ensure!(ended.stderr.contains("real users might get its answers"), "{}", ended.stderr);
    ensure!(ended.stderr.contains("--canary ADDRESS"), "{}", ended.stderr);
    ensure!(stage.target.connections() == 0, "something was replayed");
    load.stop()?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    step("with the route it starts, and probes on");
    stage.route_real_clients()?;
    let run = stage.run(&["--keep-clients"])?;
    let stats = wait_for(&run, "ok", SETTLE)?;
    let from = stats.value().pointer("/canary/0/from").and_then(serde_json::Value::as_str);
    ensure!(from.is_some_and(|from| from.starts_with("203.0.113.")), "it speaks from {from:?}");
    run.stop_run()?;
    step("an address of the experiment that nobody has does as well");
    let own = std::net::IpAddr::from([10, 88, 9, 9]);
    lab::network::route_range(&stage.net.target, own, 32, stage.net.assistant.v4())?;
    let run = stage.run(&["--keep-clients", "--canary", "10.88.9.9"])?;
    wait_for(&run, "ok", SETTLE)?;
    run.stop_run()?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    Ok(())
}

/// Tables of nftables at a host.
fn tables(host: &lab::Host) -> Result<String> {
    Ok(real::run(&host.ns, "nft", &["list", "tables"], SETTLE)?.stdout)
}

fn a_host_that_forwards_needs_a_rule() -> Result<()> {
    real::find("nft")?;
    let stage = Stage::new()?;
    let mut outside = Outside::new(&stage.net, stage.at_target())?;
    stage.route_real_clients()?;
    let assistant = &stage.net.assistant;
    assistant.ns.set_sysctl("net/ipv4/ip_forward", "1")?;
    let target = stage.at_target().to_string();
    let plain = ["-x", &target, "-i", "eth0"];
    let guarded = ["-x", &target, "-i", "eth0", "--guard", "--name", "hole"];
    step("without a rule it is refused");
    let ended = stage.twin.begin(Kind::Intercept, assistant, &plain)?.wait(SETTLE)?;
    ensure!(ended.status.code() == Some(3), "{}: {}", ended.status, ended.stderr);
    for part in ["this host forwards packets", "sysctl -w net.ipv4.conf.all.forwarding=0", "--guard"] {
        ensure!(ended.stderr.contains(part), "{part} is not in {}", ended.stderr);
    }
    step("with one no answer goes on to a real client");
    let intercept = stage.twin.intercept(assistant, &guarded)?;
    ensure!(tables(assistant)?.contains("blackhole_tcptwin_hole"), "{}", tables(assistant)?);
    let run = stage.run(&["--keep-clients"])?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 500)?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    step("what it drops is counted, at the latest when rules change");
    nft(assistant, "add table inet another")?;
    wait::until("the count was read", Duration::from_secs(3), || {
        intercept.figure("/guard/dropped").is_ok_and(|packets| packets > 0)
    })?;
    step("killed, the black hole stays");
    intercept.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(tables(assistant)?.contains("blackhole_tcptwin_hole"), "{}", tables(assistant)?);
    let intercept = stage.twin.intercept(assistant, &guarded)?;
    more(&load, 500)?;
    let report = answered(load.stop()?)?;
    stage.all_replayed(run, &report, 1)?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    step("removed by somebody, it is put back within a second");
    nft(assistant, "delete table inet blackhole_tcptwin_hole")?;
    let begin = Instant::now();
    wait::until("it stands again", Duration::from_secs(2), || {
        intercept.stderr().contains("it stands again")
    })?;
    ensure!(tables(assistant)?.contains("blackhole_tcptwin_hole"), "{}", tables(assistant)?);
    println!("    after {:?}", begin.elapsed());
    let run = stage.run(&["--keep-clients"])?;
    let again = stage.send(Load { rate: Some(500.0), first_id: 100_000, ..stage.load(500) })?;
    wait::until("all of it arrived", SETTLE, || {
        run.stats().is_ok_and(|s| s.delivered() == again.request_bytes)
    })?;
    run.stop_run()?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    step("it goes with intercept");
    let ended = intercept.stop()?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    ensure!(!tables(assistant)?.contains("blackhole"), "{}", tables(assistant)?);
    Ok(())
}

fn forwarding_that_is_switched_on_stops_intercept() -> Result<()> {
    let stage = Stage::new()?;
    let mut intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    wait_for(&run, "ok", SETTLE)?;
    step("somebody switches forwarding on at the assistant");
    stage.net.assistant.ns.set_sysctl("net/ipv4/ip_forward", "1")?;
    let begin = Instant::now();
    wait::until("intercept stops", SETTLE, || intercept.has_ended())?;
    println!("    after {:?}", begin.elapsed());
    let ended = intercept.wait(SETTLE)?;
    ensure!(ended.status.code() == Some(1), "{}: {}", ended.status, ended.stderr);
    ensure!(ended.stderr.contains("add --guard"), "{}", ended.stderr);
    let stats = wait_for(&run, "channel_down", Duration::from_secs(1) + VERDICT)?;
    println!("    nothing is sent any more after {:?}", begin.elapsed());
    ensure!(canary(&stats)?.1, "it is not held");
    Ok(())
}

fn a_killed_injector_sends_nothing_on_a_broken_way() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let (online, target) = (&stage.net.online, &stage.net.target);
    let lost = lose(&stage.net, &[Way { from: online, to: target, what: "tcp dport 8080" }], ALL)?;
    let run = stage.run(&[])?;
    wait_for(&run, "unseen", SETTLE)?;
    let load = stage.start(Load { rate: Some(200.0), ..stage.load(50_000) })?;
    more(&load, 200)?;
    let old = run.kill_role("injector", 0)?;
    run.wait_restarted("injector", 0, old, SETTLE)?;
    more(&load, 200)?;
    let stats = run.stats()?;
    ensure!(canary(&stats)? == ("unseen".to_owned(), true), "{:?}", canary(&stats)?);
    ensure!(stats.number("/inject/segments")? == 0, "its successor sent something");
    step("the way is whole");
    lost.end()?;
    wait_for(&run, "ok", SETTLE)?;
    more(&load, 500)?;
    let old = run.kill_role("injector", 0)?;
    run.wait_restarted("injector", 0, old, SETTLE)?;
    ensure!(canary(&run.stats()?)? == ("ok".to_owned(), false), "{:?}", canary(&run.stats()?)?);
    more(&load, 500)?;
    let report = answered(load.stop()?)?;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}
