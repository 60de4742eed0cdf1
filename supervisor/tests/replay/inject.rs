//! How packets leave: the same traffic by each engine, and what changes on the way while it runs: the next hop's address, the
//! route, the device, the guard.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use capturer::sys::{Begin, PacketSocket};
use lab::impair::{Way, lose};
use lab::load::RunningLoad;
use lab::real::{self, run as tool};
use lab::scratch::Scratch;
use lab::story::{Skipped, Story, step};
use lab::tun::Tun;
use lab::{
    Fidelity, Host, HttpOptions, HttpService, Instance, Load, Mode, Namespace, Stats, netlink, network,
    outside::Outside, wait,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::faults::more;
use crate::stage::{ONLINE_PORT, SETTLE, Stage, TARGET_PORT, answered, end};

pub(crate) const STORIES: &[Story] = &[
    ("raw_ip_does_it_all", 120, raw_ip_does_it_all),
    ("link_does_it_all", 120, link_does_it_all),
    ("libpcap_does_it_all", 120, libpcap_does_it_all),
    ("link_is_the_default_where_it_is_guarded", 60, link_is_the_default_where_it_is_guarded),
    ("a_target_behind_a_tun_device_is_sent_to_by_link", 60, || behind_a_tun_device(None)),
    ("a_target_behind_a_tun_device_is_sent_to_by_raw_ip", 60, || behind_a_tun_device(Some("raw"))),
    ("a_target_behind_a_tun_device_is_sent_to_by_libpcap", 60, || behind_a_tun_device(Some("pcap"))),
    ("no_engine_leaves_entries_with_conntrack", 90, no_engine_leaves_entries_with_conntrack),
    ("kept_clients_are_sent_by_link", 60, kept_clients_are_sent_by_link),
    ("the_next_hop_gets_another_address", 90, the_next_hop_gets_another_address),
    ("the_route_leads_to_another_next_hop", 90, the_route_leads_to_another_next_hop),
    ("the_device_goes_down_and_another_takes_over", 120, the_device_goes_down_and_another_takes_over),
    ("somebody_removes_the_guard", 90, somebody_removes_the_guard),
    ("the_guard_stops_what_is_not_for_a_target", 60, the_guard_stops_what_is_not_for_a_target),
    (
        "the_guard_of_a_dead_instance_is_removed_by_another",
        60,
        the_guard_of_a_dead_instance_is_removed_by_another,
    ),
];

const LIMIT: Duration = Duration::from_secs(10);

/// The engine, and why it is not a better one.
fn engine(stats: &Stats) -> Result<(String, String)> {
    let text = |path: &str| {
        let text = stats.value().pointer(path).and_then(serde_json::Value::as_str);
        Ok::<_, anyhow::Error>(text.with_context(|| format!("no text at {path}"))?.to_owned())
    };
    Ok((text("/inject/engine")?, text("/inject/why")?))
}

pub(crate) fn wait_for_engine(run: &Instance, wanted: &str) -> Result<()> {
    wait::until(&format!("engine {wanted}"), SETTLE, || {
        run.stats().and_then(|stats| engine(&stats)).is_ok_and(|(engine, _)| engine == wanted)
    })?;
    Ok(())
}

fn raw_ip_does_it_all() -> Result<()> {
    by("raw")
}

fn link_does_it_all() -> Result<()> {
    by("link")
}

fn libpcap_does_it_all() -> Result<()> {
    if let Err(error) = libpcap::version() {
        return Err(Skipped::NotInstalled(error.to_string()).into());
    }
    by("pcap")
}

/// Requests of all kinds by one engine: small ones, large ones, short connections, IPv6, with loss, over a restart of the target.
fn by(wanted: &str) -> Result<()> {
    let mut stage = Stage::new()?;
    let target = stage.at_target().to_string();
    let target6 = SocketAddr::new(stage.net.target.v6(), TARGET_PORT);
    let _intercept = stage
        .twin
        .intercept(&stage.net.assistant, &["-x", &target, "-x", &target6.to_string(), "-i", "eth0"])?;
    // The same port of both families: an address of its own for each.
    let online6 = SocketAddr::new(stage.net.online.v6(), ONLINE_PORT);
    let maps = [format!("{}:{ONLINE_PORT}-{target}", stage.net.online.v4()), format!("{online6}-{target6}")];
    let args = ["-x", &maps[0], "-x", &maps[1], "-s", "10.88.0.5", "-i", "eth0", "--inject", wanted];
    let run = stage.twin.run(&stage.net.online, &args)?;
    ensure!(engine(&run.stats()?)?.0 == wanted, "{:?}", engine(&run.stats()?)?);
    let small = stage.send(Load { connections: 50, rate: Some(2_000.0), ..stage.load(3_000) })?;
    let mut bytes = small.request_bytes;
    let posts =
        Load { first_id: 10_000, connections: 8, rate: Some(100.0), body_bytes: 100_000, ..stage.load(200) };
    bytes += stage.send(posts)?.request_bytes;
    let short = Load { first_id: 20_000, mode: Mode::ClientCloses, rate: Some(500.0), ..stage.load(500) };
    bytes += stage.send(short)?.request_bytes;
    step("the same over IPv6");
    let six = Load { to: online6, first_id: 30_000, rate: Some(1_000.0), ..stage.load(1_000) };
    bytes += stage.send(six)?.request_bytes;
    let six =
        Load { to: online6, first_id: 40_000, rate: Some(50.0), body_bytes: 100_000, ..stage.load(100) };
    bytes += stage.send(six)?.request_bytes;
    step("one packet in a hundred is lost on the way");
    let net = &stage.net;
    let ways = [Way { from: &net.online, to: &net.target, what: "tcp dport 8080" }];
    let loss = lose(net, &ways, 10_000)?;
    let lossy = Load { first_id: 50_000, connections: 50, rate: Some(1_000.0), ..stage.load(2_000) };
    bytes += stage.send(lossy)?.request_bytes;
    stage.wait_for_target(1)?;
    ensure!(loss.end()? > 0, "no packet was lost");
    step("the device takes less at once than the target's segment size");
    stage.net.online.ns.enter(|| netlink::set_mtu("eth0", 1_300))?;
    let posts =
        Load { first_id: 60_000, connections: 8, rate: Some(50.0), body_bytes: 50_000, ..stage.load(100) };
    bytes += stage.send(posts)?.request_bytes;
    stage.wait_for_target(1)?;
    let whole = run.wait_quiet(SETTLE)?;
    crate::stage::clean(&whole, bytes)?;
    step("the target's service is away for half a second");
    let load = stage.start(Load { first_id: 70_000, rate: Some(500.0), ..stage.load(50_000) })?;
    stage.target_service.take();
    more(&load, 250)?;
    stage.restart_target()?;
    let recovered = 70_000 + more(&load, 1_000)?;
    more(&load, 500)?;
    let report = answered(load.stop()?)?;
    stage.wait_for(recovered..70_000 + report.sent)?;
    let stats = end(run)?;
    let late = Fidelity::of_ids(&stage.online, &stage.target, 1, recovered..70_000 + report.sent);
    ensure!(late.is_exact(), "after the restart: {late}; {}", stats.ledger());
    let supers = stats.number("/counters/injector-0/super_frames")?;
    ensure!((supers > 0) == (wanted == "link"), "{supers} super-frames by {wanted}");
    if wanted == "raw" {
        ensure!(stats.number("/inject/detours")? == 0, "raw IP is no detour when it is asked for");
    }
    Ok(())
}

/// A tunnel between the online host and one far away, made of a TUN device at each end: there is no Ethernet header, a packet is
/// the frame, and nobody asks for a neighbour.
fn behind_a_tun_device(wanted: Option<&str>) -> Result<()> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        return Err(Skipped::NotHere(format!("/dev/net/tun cannot be opened ({error})")).into());
    }
    if wanted == Some("pcap") {
        libpcap::version().map_err(|error| Skipped::NotInstalled(error.to_string()))?;
    }
    let stage = Stage::new()?;
    let near = IpAddr::from([10, 99, 1, 1]);
    let far = IpAddr::from([10, 99, 1, 2]);
    let host = Host { ns: Namespace::new("far")?, number: 99 };
    for all in ["all", "default"] {
        host.ns.set_sysctl(&format!("net/ipv4/conf/{all}/rp_filter"), "0")?;
    }
    let ends = [Tun::new(&stage.net.online.ns, near, 1_400)?, Tun::new(&host.ns, far, 1_400)?];
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let tunnel = std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while !ended.load(Relaxed) {
            let mut idle = true;
            for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                // What an end cannot take is lost, as in any tunnel.
                if let Ok(Some(packet)) = from.take(&mut buffer) {
                    let _ = to.give(packet);
                    idle = false;
                }
            }
            if idle {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    });
    let target = SocketAddr::new(far, TARGET_PORT);
    let witness = Arc::clone(&stage.target);
    let service = HttpService::start(&host.ns, target, HttpOptions::default(), witness)?;
    let intercept =
        stage.twin.intercept(&host, &["-x", &target.to_string(), "--tun", "-c", "198.18.0.0/15"])?;
    let map = lab::twin::map(ONLINE_PORT, target);
    let far = far.to_string();
    let mut args = vec!["-x", &map, "-s", &far, "-i", "eth0"];
    args.extend(wanted.into_iter().flat_map(|engine| ["--inject", engine]));
    let run = stage.twin.run(&stage.net.online, &args)?;
    let (engine, why) = engine(&run.stats()?)?;
    println!("    {engine} ({why})");
    let expected =
        if wanted.is_some() || real::find("nft").is_ok() { wanted.unwrap_or("link") } else { "raw" };
    ensure!(engine == expected, "sent by {engine} ({why})");
    let mut report = stage.send(Load { rate: Some(500.0), ..stage.load(1_000) })?;
    let posts =
        Load { first_id: 5_000, connections: 8, rate: Some(50.0), body_bytes: 20_000, ..stage.load(50) };
    report.request_bytes += stage.send(posts)?.request_bytes;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.number("/counters/injector-0/super_frames")? == 0, "the device cuts nothing");
    drop((intercept, service));
    over.store(true, Relaxed);
    tunnel.join().expect("the tunnel's thread ends");
    Ok(())
}

/// On a host where connections are tracked: those of real clients are, and no replayed one is, whatever sends it.
fn no_engine_leaves_entries_with_conntrack() -> Result<()> {
    real::find("nft")?;
    let table = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack");
    let stage = Stage::new()?;
    if stage.net.online.ns.enter(table).is_err() {
        return Err(Skipped::NotHere("this kernel shows no table of tracked connections".to_owned()).into());
    }
    let scratch = Scratch::new("tracking")?;
    let rules = scratch.file("rules");
    std::fs::write(
        &rules,
        "table inet tracking {
            chain out { type filter hook output priority 0; ct state new counter; }
            chain in { type filter hook input priority 0; ct state new counter; }
        }
",
    )?;
    tool(&stage.net.online.ns, "nft", &["-f", rules.to_str().context("a path of plain text")?], LIMIT)?;
    let _intercept = stage.intercept()?;
    let engines = if libpcap::version().is_ok() { &["raw", "link", "pcap"][..] } else { &["raw", "link"] };
    for (&engine, first_id) in engines.iter().zip((0..).step_by(1_000)) {
        let run = stage.run(&["--inject", engine])?;
        let load = Load { mode: Mode::ClientCloses, rate: Some(500.0), first_id, ..stage.load(500) };
        stage.send(load)?;
        stage.wait_for(first_id..first_id + 500)?;
        let tracked = stage.net.online.ns.enter(table)?;
        let of = |from: &[&str]| {
            tracked.lines().filter(|line| from.iter().any(|from| line.contains(from))).count()
        };
        let (real, replayed) = (of(&["src=10.88.0.2 dst=10.88.0.3"]), of(&["src=198.18.", "src=198.19."]));
        println!("    {engine}: {real} entries of real clients, {replayed} of replayed ones");
        end(run)?;
        ensure!(real >= 500, "{real} entries of real clients: nothing is tracked here");
        ensure!(replayed == 0, "{replayed} replayed connections are tracked by {engine}");
    }
    Ok(())
}

fn link_is_the_default_where_it_is_guarded() -> Result<()> {
    real::find("nft")?;
    let stage = Stage::new()?;
    let own = SocketAddr::new(stage.net.online.v4(), TARGET_PORT);
    let targets = [stage.at_target().to_string(), own.to_string()];
    let _intercept =
        stage.twin.intercept(&stage.net.assistant, &["-x", &targets[0], "-x", &targets[1], "-i", "eth0"])?;
    let run = stage.run(&[])?;
    ensure!(engine(&run.stats()?)? == ("link".into(), String::new()), "{:?}", engine(&run.stats()?)?);
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(stats.number("/inject/switches")? == 0, "the engine was changed");
    step("a target on this host is no matter of frames, and each target has its own engine");
    let maps = [lab::twin::map(ONLINE_PORT, stage.at_target()), lab::twin::map(81, own)];
    let args = ["-x", &maps[0], "-x", &maps[1], "-s", "10.88.0.5", "-i", "eth0", "--lab"];
    let run = stage.twin.run(&stage.net.online, &args)?;
    let (name, why) = engine(&run.stats()?)?;
    ensure!(name == "mixed" && why == "10.88.0.3:8080: a target on this host", "{name}: {why}");
    run.stop()?;
    Ok(())
}

fn kept_clients_are_sent_by_link() -> Result<()> {
    real::find("nft")?;
    let stage = Stage::new()?;
    stage.route_real_clients()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--keep-clients"])?;
    ensure!(engine(&run.stats()?)?.0 == "link", "{:?}", engine(&run.stats()?)?);
    let mut report = stage.send(Load { rate: Some(1_000.0), ..stage.load(1_000) })?;
    let posts = Load { first_id: 5_000, rate: Some(50.0), body_bytes: 100_000, ..stage.load(100) };
    report.request_bytes += stage.send(posts)?.request_bytes;
    stage.all_replayed(run, &report, 1)?;
    Ok(())
}

/// A load under which something happens; every request must arrive, by link at the end, and nothing anywhere else. Routers may send on
/// what is for the target.
fn while_it_runs(
    stage: &Stage,
    routers: &[&network::Host],
    happens: impl FnOnce(&Instance, &RunningLoad) -> Result<()>,
) -> Result<Stats> {
    real::find("nft")?;
    let mut outside = Outside::beside(&stage.net, stage.at_target(), routers)?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    wait_for_engine(&run, "link")?;
    let load = stage.start(Load { rate: Some(500.0), ..stage.load(50_000) })?;
    more(&load, 250)?;
    happens(&run, &load)?;
    wait_for_engine(&run, "link")?;
    more(&load, 250)?;
    let report = answered(load.stop()?)?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    Ok(stats)
}

fn ip(host: &network::Host, words: &str) -> Result<()> {
    let words: Vec<&str> = words.split_whitespace().collect();
    tool(&host.ns, "ip", &words, LIMIT)?;
    Ok(())
}

fn the_next_hop_gets_another_address() -> Result<()> {
    let stage = Stage::new()?;
    // As a machine that takes over an address tells the others.
    stage.net.target.ns.set_sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
    let stats = while_it_runs(&stage, &[], |_, load| {
        step("another card has the target's address");
        ip(&stage.net.target, "link set eth0 address 02:00:00:00:00:44")?;
        more(load, 500)?;
        Ok(())
    })?;
    ensure!(stats.number("/inject/switches")? <= 2, "{} switches", stats.number("/inject/switches")?);
    Ok(())
}

fn the_route_leads_to_another_next_hop() -> Result<()> {
    let stage = Stage::new()?;
    let router = &stage.net.assistant2;
    router.ns.set_sysctl("net/ipv4/ip_forward", "1")?;
    router.ns.set_sysctl("net/ipv4/conf/all/send_redirects", "0")?;
    router.ns.set_sysctl("net/ipv4/conf/eth0/send_redirects", "0")?;
    let forwarded = || -> Result<u64> {
        let text = router.ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let values = text.lines().filter(|line| line.starts_with("Ip:")).nth(1).context("no counters")?;
        Ok(values.split(' ').nth(6).context("no ForwDatagrams")?.parse()?)
    };
    while_it_runs(&stage, &[router], |_, load| {
        step("a router comes between");
        ip(&stage.net.online, "route add 10.88.0.4/32 via 10.88.0.7")?;
        // The neighbour is asked for, and the next look finds it.
        std::thread::sleep(Duration::from_secs(1));
        let before = forwarded()?;
        more(load, 500)?;
        ensure!(forwarded()? >= before + 400, "{} packets went by the router", forwarded()? - before);
        step("and goes");
        ip(&stage.net.online, "route del 10.88.0.4/32 via 10.88.0.7")?;
        std::thread::sleep(Duration::from_secs(1));
        let before = forwarded()?;
        more(load, 250)?;
        ensure!(forwarded()? == before, "{} packets went by the router", forwarded()? - before);
        Ok(())
    })?;
    Ok(())
}

fn the_device_goes_down_and_another_takes_over() -> Result<()> {
    let stage = Stage::new()?;
    // Two devices on one link: each answers for its own address alone.
    stage.net.online.ns.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    let peer = stage.net.online.ns.fd().as_raw_fd();
    stage.net.switch.enter(move || {
        netlink::add_veth("to-online-b", "eth1", peer)?;
        netlink::set_bridge("to-online-b", "br0")?;
        netlink::set_up("to-online-b", true)
    })?;
    let (online, other) = (&stage.net.online, IpAddr::from(Ipv4Addr::new(10, 88, 0, 33)));
    let bring_up = || {
        ip(online, "link set eth1 up")?;
        ip(online, "route replace 10.88.0.4/32 dev eth1")
    };
    online.ns.enter(move || netlink::add_address("eth1", other, 32))?;
    bring_up()?;
    let stats = while_it_runs(&stage, &[], |run, load| {
        step("the device of the route goes down: the route by the other one stays");
        ip(online, "link set eth1 down")?;
        more(load, 500)?;
        wait_for_engine(run, "link")?;
        step("it comes back with its route");
        bring_up()?;
        more(load, 500)?;
        Ok(())
    })?;
    ensure!(stats.number("/inject/switches")? >= 2, "the new device was used without its guard");
    Ok(())
}

fn somebody_removes_the_guard() -> Result<()> {
    let stage = Stage::new()?;
    let stats = while_it_runs(&stage, &[], |run, load| {
        let tables = tool(&stage.net.online.ns, "nft", &["list", "tables"], LIMIT)?.stdout;
        let table =
            tables.lines().find_map(|line| line.strip_prefix("table netdev ")).context(tables.clone())?;
        step(format!("nft delete table netdev {table}"));
        tool(&stage.net.online.ns, "nft", &["delete", "table", "netdev", table], LIMIT)?;
        more(load, 250)?;
        let said = || run.stderr();
        wait::until("it is said", SETTLE, || said().contains("was changed or removed by somebody"))?;
        wait::until("it is put back", SETTLE, || said().contains("stands again"))?;
        Ok(())
    })?;
    ensure!(stats.number("/inject/switches")? == 2, "{} switches", stats.number("/inject/switches")?);
    Ok(())
}

fn the_guard_stops_what_is_not_for_a_target() -> Result<()> {
    real::find("nft")?;
    let stage = Stage::new()?;
    let mut outside = Outside::new(&stage.net, stage.at_target())?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["-c", "198.18.16.0/20"])?;
    let report = stage.send(Load { rate: Some(1_000.0), ..stage.load(500) })?;
    step(
        "somebody on the online host sends as one of our clients, to a real one and to another port of the target",
    );
    let raw =
        stage.net.online.ns.enter(|| {
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        })?;
    let to = |last: u8, port: u16| SocketAddrV4::new(Ipv4Addr::new(10, 88, 0, last), port);
    for to in [to(2, 8_080), to(4, 8_081), to(2, 40_000)] {
        ensure!(send(&raw, to).is_err(), "a forged packet to {to} left");
        send_frame(&stage, to)?;
    }
    let begin = Instant::now();
    wait::until("the guard's count is read", Duration::from_secs(25), || {
        run.stats().and_then(|stats| stats.number("/guard/dropped")).is_ok_and(|count| count == 6)
    })?;
    println!("    counted after {:?}", begin.elapsed());
    run.wait_said("the nftables guard dropped")?;
    stage.all_replayed(run, &report, 1)?;
    ensure!(outside.look()? == 0, "on the wire: {:?}", outside.examples());
    step("without the run nobody stops it");
    send(&raw, to(2, 8_080))?;
    ensure!(outside.look()? == 1, "the witness saw nothing");
    Ok(())
}

/// A SYN of a client in the range.
fn forged(to: SocketAddrV4) -> Vec<u8> {
    use flow::record::flag;
    let client = SocketAddr::from(([198, 18, 16, 9], 1_025));
    let tcp = flow::TcpFields { flags: flag::SYN, ..flow::TcpFields::default() };
    let mut headers = [0; flow::emit::MAX_HEADERS];
    let len = flow::emit::emit(&mut headers, client.into(), SocketAddr::V4(to).into(), &tcp, &[], 1);
    headers[..len].to_vec()
}

fn send(socket: &OwnedFd, to: SocketAddrV4) -> Result<()> {
    sendto(
        socket.as_raw_fd(),
        &forged(to),
        &SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0)),
        MsgFlags::empty(),
    )?;
    Ok(())
}

/// By a packet socket, past the firewall of the output hook. Whether it was dropped behind that, the kernel does not always say.
fn send_frame(stage: &Stage, to: SocketAddrV4) -> Result<()> {
    stage.net.online.ns.enter(move || {
        let socket = PacketSocket::open(Begin::Link)?;
        socket.bind(netlink::index("eth0")?)?;
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 0], &forged(to)].concat();
        match nix::unistd::write(&socket, &frame) {
            Ok(_) | Err(nix::errno::Errno::ENOBUFS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    })
}

fn the_guard_of_a_dead_instance_is_removed_by_another() -> Result<()> {
    real::find("nft")?;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let tables =
        || Ok::<_, anyhow::Error>(tool(&stage.net.online.ns, "nft", &["list", "tables"], LIMIT)?.stdout);
    let names = ["first", "second", "third"].map(|name| format!("{name}{}", std::process::id()));
    let run = stage.run(&["--name", &names[0]])?;
    step("the first instance is killed");
    run.kill()?;
    ensure!(tables()?.contains("netdev tcptwin_first"), "{}", tables()?);
    let run = stage.run(&["--name", &names[1]])?;
    shm::Region::remove(&names[0])?;
    ensure!(!tables()?.contains("tcptwin_first"), "{}", tables()?);
    run.wait_said("a dead instance named first")?;
    step("a living one's stays");
    let other = lab::twin::map(81, stage.at_target());
    let third = stage
        .twin
        .run(&stage.net.online, &["-x", &other, "-s", "10.88.0.5", "-i", "eth0", "--name", &names[2]])?;
    ensure!(tables()?.contains("netdev tcptwin_second"), "{}", tables()?);
    end(third)?;
    end(run)?;
    ensure!(!tables()?.contains("tcptwin"), "{}", tables()?);
    Ok(())
}
