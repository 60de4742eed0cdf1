//! The lab itself: hosts reach each other, the service answers the load, real servers start, and nothing is left behind.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::real::{self, Nginx, Redis, RedisLoad, nginx};
use lab::story::{Story, run_all, step};
use lab::witness::lag;
use lab::{
    Answers, Fidelity, Host, HttpOptions, HttpService, Load, Mode, Network, Outside, Witness, netlink,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};

const STORIES: &[Story] = &[
    ("every_mode_of_load_is_answered_id_by_id", 60, every_mode_of_load_is_answered_id_by_id),
    ("the_schedule_is_kept", 60, the_schedule_is_kept),
    ("bodies_and_large_answers_arrive_whole_over_ipv6", 60, bodies_and_large_answers_arrive_whole_over_ipv6),
    ("a_service_that_comes_back_is_found_again", 60, a_service_that_comes_back_is_found_again),
    ("connections_wait_for_a_busy_service", 60, connections_wait_for_a_busy_service),
    ("answers_to_replayed_clients_go_to_the_assistant", 60, answers_to_replayed_clients_go_to_the_assistant),
    ("what_is_astray_is_seen_and_a_replay_is_not", 60, what_is_astray_is_seen_and_a_replay_is_not),
    ("children_die_with_the_namespace", 60, children_die_with_the_namespace),
    ("nginx_logs_every_request", 60, nginx_logs_every_request),
    ("wrk_and_curl_run_against_nginx", 60, wrk_and_curl_run_against_nginx),
    ("redis_keeps_lists_in_order", 60, redis_keeps_lists_in_order),
];

fn main() -> ExitCode {
    run_all(STORIES, &[])
}

fn every_mode_of_load_is_answered_id_by_id() -> Result<()> {
    let net = Network::standard()?;
    let witness = Arc::new(Witness::new(10_000));
    let to = SocketAddr::new(net.online.v4(), 80);
    let service = HttpService::start(&net.online.ns, to, HttpOptions::default(), Arc::clone(&witness))?;
    let modes = [Mode::KeepAlive, Mode::ClientCloses, Mode::ServerCloses, Mode::Pipelined(8)];
    for (round, mode) in modes.into_iter().enumerate() {
        step(format!("1,000 requests as {mode:?}"));
        let first_id = round as u64 * 1_000;
        let load = Load { connections: 20, mode, first_id, ..Load::new(to, 1_000) };
        let report = load.run(&net.client.ns)?;
        ensure!(
            report.failed == 0 && report.answered == 1_000,
            "{} failed: {:?}",
            report.failed,
            report.error
        );
        ensure!((first_id..first_id + 1_000).all(|id| witness.times(id) == 1), "an id is missing or twice");
    }
    // Keep-alive and pipelined: 20 connections each; one a request for the other two.
    ensure!(witness.connections() == 20 + 1_000 + 1_000 + 20, "{} connections", witness.connections());
    service.stop()?;
    Ok(())
}

fn the_schedule_is_kept() -> Result<()> {
    let net = Network::standard()?;
    let witness = Arc::new(Witness::new(10_000));
    let to = SocketAddr::new(net.online.v4(), 80);
    let _service = HttpService::start(&net.online.ns, to, HttpOptions::default(), Arc::clone(&witness))?;
    let load = Load { connections: 10, rate: Some(1_000.0), ..Load::new(to, 1_000) };
    let report = load.run(&net.client.ns)?;
    ensure!(report.answered == 1_000, "{} answered", report.answered);
    // A schedule is never ahead of itself; how far a busy machine falls behind is its own affair.
    ensure!(report.elapsed >= Duration::from_millis(998), "over after {:?}", report.elapsed);
    step("a time limit ends a load that would take for ever");
    let load = Load { rate: Some(100.0), time: Duration::from_millis(300), ..Load::new(to, 1_000_000) };
    let report = load.run(&net.client.ns)?;
    ensure!(report.answered == report.sent && report.sent <= 31, "{} of {}", report.answered, report.sent);
    Ok(())
}

fn bodies_and_large_answers_arrive_whole_over_ipv6() -> Result<()> {
    let net = Network::standard()?;
    let options = HttpOptions { response_bytes: 1 << 20, ..HttpOptions::default() };
    let (online, target) = (Arc::new(Witness::new(100)), Arc::new(Witness::new(100)));
    let to_online = SocketAddr::new(net.online.v6(), 80);
    let to_target = SocketAddr::new(net.target.v6(), 80);
    let _a = HttpService::start(&net.online.ns, to_online, options, Arc::clone(&online))?;
    let _b = HttpService::start(&net.target.ns, to_target, options, Arc::clone(&target))?;
    for to in [to_online, to_target] {
        let load = Load { connections: 4, body_bytes: 100_000, ..Load::new(to, 50) };
        let report = load.run(&net.client.ns)?;
        ensure!(report.answered == 50, "{} answered: {:?}", report.answered, report.error);
    }
    let fidelity = Fidelity::of(&online, &target, 1);
    ensure!(fidelity.is_exact() && fidelity.ids == 50, "{fidelity}");
    ensure!(lag(&online, &target, 0..50).count() == 50, "no lag for some");
    step("a body on each connection, which the server closes");
    let load =
        Load { mode: Mode::ServerCloses, first_id: 50, body_bytes: 10_000, ..Load::new(to_online, 10) };
    ensure!(load.clone().run(&net.client.ns)?.answered == 10, "not all answered");
    Load { to: to_target, ..load }.run(&net.client.ns)?;
    step("another body under the same id is noticed");
    let load = Load { body_bytes: 99_999, ..Load::new(to_target, 1) };
    load.run(&net.client.ns)?;
    ensure!(Fidelity::of(&online, &target, 1).surplus == 1, "not noticed");
    Ok(())
}

fn a_service_that_comes_back_is_found_again() -> Result<()> {
    let net = Network::standard()?;
    let witness = Arc::new(Witness::new(100_000));
    let to = SocketAddr::new(net.online.v4(), 80);
    let start = || HttpService::start(&net.online.ns, to, HttpOptions::default(), Arc::clone(&witness));
    let service = start()?;
    let load = Load { connections: 5, rate: Some(500.0), ..Load::new(to, 100_000) }.start(&net.client.ns)?;
    let limit = Duration::from_secs(10);
    lab::wait::until("some answers", limit, || load.progress.answered.load(Relaxed) > 50)?;
    service.stop()?;
    step("the load waits for the service");
    let before = witness.answered();
    let _service = start()?;
    lab::wait::until("answers again", limit, || witness.answered() > before + 100)?;
    let report = load.stop()?;
    ensure!(report.answered == report.sent - report.failed, "{} of {}", report.answered, report.sent);
    ensure!(report.answered <= witness.answered(), "{} and {}", report.answered, witness.answered());
    Ok(())
}

/// As many as a replay of the benchmarks opens at once, while the service accepts none.
fn connections_wait_for_a_busy_service() -> Result<()> {
    const AT_ONCE: usize = 10_000;
    // A full queue stays full, so the patience is for a slow machine alone.
    const PATIENCE: Duration = Duration::from_secs(10);
    let net = Network::standard()?;
    let witness = Arc::new(Witness::new(1));
    let to = SocketAddr::new(net.online.v4(), 80);
    let options = HttpOptions { connections: 0, ..HttpOptions::default() };
    let _service = HttpService::start(&net.online.ns, to, options, witness)?;
    let established = net.client.ns.enter(move || {
        let connect = |_| TcpStream::connect_timeout(&to, PATIENCE);
        (0..AT_ONCE).map(connect).collect::<std::io::Result<Vec<_>>>()
    })?;
    ensure!(established.len() == AT_ONCE, "{} connections", established.len());
    Ok(())
}

fn answers_to_replayed_clients_go_to_the_assistant() -> Result<()> {
    let gateway = |net: &Network| {
        net.target.ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/route")).map(|routes| {
            // Destination 198.18.0.0 and gateway 10.88.0.5 in host byte order, as the file has them.
            routes.lines().any(|l| l.contains("000012C6\t0500580A"))
        })
    };
    ensure!(gateway(&Network::standard()?)?, "no route via the assistant");
    ensure!(!gateway(&Network::new(Answers::NoRoute)?)?, "a route nobody asked for");
    Ok(())
}

fn what_is_astray_is_seen_and_a_replay_is_not() -> Result<()> {
    let net = Network::standard()?;
    let target = SocketAddr::new(net.target.v4(), 8_080);
    let mut outside = Outside::new(&net, target)?;
    let replayed: IpAddr = "198.18.0.9".parse()?;
    net.online.ns.enter(move || netlink::add_address("eth0", replayed, 32))?;
    let send = |host: &Host, from: IpAddr, to: SocketAddr| {
        host.ns.enter(move || -> Result<()> {
            let socket = std::net::UdpSocket::bind((from, 8_080))?;
            socket.send_to(b"x", to)?;
            Ok(())
        })
    };
    let connect = |from: IpAddr| {
        net.online.ns.enter(move || -> Result<()> {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
            // The SYN leaves; nobody waits for its answer.
            let _ = connect(fd.as_raw_fd(), &SockaddrStorage::from(target));
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        })
    };
    step("a replayed SYN to the target, and a real one: neither is astray");
    connect(replayed)?;
    connect(net.online.v4())?;
    send(&net.client, net.client.v4(), SocketAddr::new(net.online.v4(), 80))?;
    ensure!(outside.look()? == 0, "{:?}", outside.examples());
    step("a forged source to somebody else");
    send(&net.online, replayed, SocketAddr::new(net.client.v4(), 80))?;
    let seen = outside.look()?;
    ensure!(seen == 1 && outside.examples()[0].starts_with("sent by online"), "{:?}", outside.examples());
    step("a forged source to the target, but not to its service");
    send(&net.online, replayed, target)?;
    ensure!(outside.look()? == 2, "{:?}", outside.examples());
    step("an answer of the target at the real client");
    send(&net.target, net.target.v4(), SocketAddr::new(net.client.v4(), 80))?;
    let seen = outside.look()?;
    let last = outside.examples().last().map_or("", String::as_str);
    ensure!(seen == 3 && last.starts_with("received by client"), "{:?}", outside.examples());
    Ok(())
}

fn children_die_with_the_namespace() -> Result<()> {
    let net = Network::standard()?;
    let mut command = Command::new("sleep");
    command.arg("600").stdout(Stdio::null());
    let mut child = net.client.ns.spawn(command)?;
    ensure!(child.try_wait()?.is_none(), "it ended at once");
    drop(net);
    let status = child.wait()?;
    ensure!(!status.success(), "it slept on");
    Ok(())
}

fn nginx_logs_every_request() -> Result<()> {
    let net = Network::standard()?;
    let online = Nginx::start(&net.online, 80)?;
    let mut target = Nginx::start(&net.target, 8080)?;
    for (host, port) in [(&net.online, 80), (&net.target, 8080)] {
        let load = Load { connections: 10, ..Load::new(SocketAddr::new(host.v4(), port), 2_000) };
        ensure!(load.run(&net.client.ns)?.answered == 2_000, "not all answered");
    }
    ensure!(online.answered()? == 2_000, "{} logged", online.answered()?);
    let found = nginx::differences(&online.requests()?, &target.requests()?, 1);
    ensure!(found.is_empty(), "{found:?}");
    step("a killed server keeps its book when it comes back");
    target.restart(&net.target)?;
    let load = Load { first_id: 5_000, ..Load::new(SocketAddr::new(net.target.v6(), 8080), 10) };
    ensure!(load.run(&net.client.ns)?.answered == 10, "not all answered");
    let found = nginx::differences(&online.requests()?, &target.requests()?, 1);
    ensure!(found.len() == 10, "{found:?}");
    Ok(())
}

fn wrk_and_curl_run_against_nginx() -> Result<()> {
    let net = Network::standard()?;
    let online = Nginx::start(&net.online, 80)?;
    let limit = Duration::from_secs(20);
    real::run(&net.client.ns, "curl", &["-sS", "--fail", "http://10.88.0.3/id/7"], limit)?;
    real::run(
        &net.client.ns,
        "curl",
        &["-sS", "--fail", "-o", "/dev/null", "http://[fd88::3]/big/8"],
        limit,
    )?;
    real::run(&net.client.ns, "curl", &["-sS", "--fail", "-d", "body", "http://10.88.0.3/upload/9"], limit)?;
    let before = online.requests()?;
    ensure!(before.len() == 3, "{before:?}");
    real::run(&net.client.ns, "wrk", &["-t1", "-c4", "-d1s", "http://10.88.0.3/id/10"], limit)?;
    ensure!(online.answered()? > 100, "wrk made {} requests", online.answered()?);
    Ok(())
}

fn redis_keeps_lists_in_order() -> Result<()> {
    let net = Network::standard()?;
    let redis = Redis::start(&net.online, 6379)?;
    let load =
        RedisLoad { to: redis.address, connections: 3, commands: 500, pipeline: 10, value_bytes: 1_000 };
    load.run(&net.client.ns)?;
    for n in 0..3 {
        ensure!(redis.list(&net.online.ns, n)? == (0..500).collect::<Vec<u64>>(), "list {n} differs");
    }
    ensure!(redis.keys(&net.online.ns)? == 3 * 500 + 3, "{} keys", redis.keys(&net.online.ns)?);
    ensure!(redis.calls(&net.online.ns, "rpush")? == 1_500, "wrong number of calls");
    let args = ["-h", "10.88.0.3", "-t", "set,incr", "-n", "1000", "-c", "5", "-P", "4", "-q"];
    real::run(&net.client.ns, "redis-benchmark", &args, Duration::from_secs(20))?;
    ensure!(redis.calls(&net.online.ns, "incr")? == 1_000, "redis-benchmark's calls differ");
    Ok(())
}
