//! Intercept on hosts of its own: capture on an assistant, the device of `--tun` on the target, links that go down, and
//! mistakes. The targets' answers are those of real kernels; the replayed client is made of raw packets here.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flow::emit::{MAX_HEADERS, emit};
use flow::record::{flag, kind, opt};
use flow::{Endpoint, Range, Returned, Seq, TcpFields};
use intercept::{Count, Intercept, InterceptError, Options, Stats, Summary, TunOptions};
use lab::network::Host;
use lab::story::{Story, run_all, step};
use lab::wait::until;
use lab::{Answers, Network, netlink};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, sendto,
    setsockopt, socket, sockopt,
};
use returns::{Hello, Link, Message, Mode, Policy};

const STORIES: &[Story] = &[
    ("answers_are_captured_on_the_assistant", 60, answers_are_captured_on_the_assistant),
    (
        "answers_end_in_the_tun_device_super_frames_whole",
        60,
        answers_end_in_the_tun_device_super_frames_whole,
    ),
    ("a_link_that_went_down_is_captured_again", 60, a_link_that_went_down_is_captured_again),
    (
        "an_interface_that_was_made_anew_is_captured_again",
        60,
        an_interface_that_was_made_anew_is_captured_again,
    ),
    ("the_device_and_its_routes_vanish_with_intercept", 60, the_device_and_its_routes_vanish_with_intercept),
    ("mistakes_are_sentences", 60, mistakes_are_sentences),
];

const KEY: [u8; 32] = [5; 32];
const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 8080;

fn main() -> ExitCode {
    run_all(STORIES, &[])
}

/// An intercept running in a host's namespace.
struct Running {
    addr: SocketAddr,
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<Summary, InterceptError>>>,
}

impl Running {
    fn start(host: &Host, targets: Vec<SocketAddr>, change: impl FnOnce(&mut Options)) -> Result<Self> {
        let mut options = Options::new(targets);
        options.listen = vec![SocketAddr::new(host.v4(), 36524)];
        options.key = Some(KEY);
        change(&mut options);
        let (stats, stop) = (options.stats.clone(), Arc::new(AtomicBool::new(false)));
        let (addr, flag) = (options.listen[0], stop.clone());
        let intercept = host.ns.enter(move || Intercept::open(options))?;
        let thread = host.ns.thread("intercept", move || intercept.run(flag))?;
        Ok(Self { addr, stats, stop, thread: Some(thread) })
    }

    fn stop(&mut self) -> Result<Summary> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("stopped once")?;
        Ok(thread.join().map_err(|_| anyhow!("intercept panicked"))??)
    }
}

/// The receiver of an instance, on the online host.
struct Receiver {
    stream: TcpStream,
    link: Link,
    records: Vec<Returned>,
    welcome: bool,
}

impl Receiver {
    fn dial(host: &Host, to: SocketAddr, ranges: &[&str], targets: &[SocketAddr]) -> Result<Self> {
        let stream = host.ns.enter(move || TcpStream::connect(to))?;
        stream.set_nonblocking(true)?;
        let hello = Hello {
            software: "test".to_owned(),
            instance: 1,
            incarnation: 1,
            name: "test".to_owned(),
            mode: Mode::Ranges(ranges.iter().map(|r| r.parse()).collect::<Result<_, _>>()?),
            targets: targets.iter().map(|&t| t.into()).collect(),
            last: None,
        };
        let link = Link::dialer(Policy::Keyed(KEY), &hello, to)?;
        let mut receiver = Self { stream, link, records: Vec::new(), welcome: false };
        receiver.until("the welcome", |r| r.welcome)?;
        Ok(receiver)
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let mut failed = None;
        until(what, LIMIT, || {
            failed = self.turn().err();
            failed.is_some() || done(self)
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn turn(&mut self) -> Result<()> {
        match self.stream.write(self.link.pending()) {
            Ok(n) => self.link.sent(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        match self.stream.read(self.link.receive_buffer()) {
            Ok(0) => bail!("intercept closed the connection"),
            Ok(n) => self.link.received(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        while let Some(message) = self.link.next()? {
            match message {
                Message::Welcome(_) => self.welcome = true,
                Message::Refused(refused) => bail!("refused: {}", refused.sentence),
                Message::Batch(batch) => {
                    for record in batch.records() {
                        self.records.push(record?);
                    }
                }
                Message::Ping(token) => {
                    self.link.outgoing().pong(token);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A replayed client: sends segments with an address that no host has.
struct Forger {
    socket: OwnedFd,
    client: Endpoint,
    server: Endpoint,
}

impl Forger {
    fn new(host: &Host, client: &str, server: SocketAddr) -> Result<Self> {
        let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let open = move || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        let socket = host.ns.enter(open)?;
        Ok(Self { socket, client: client.parse::<SocketAddr>()?.into(), server: server.into() })
    }

    fn send(&self, tcp: &TcpFields) -> Result<()> {
        let mut headers = [0; MAX_HEADERS];
        let len = emit(&mut headers, self.client, self.server, tcp, &[], 1);
        let to = SockaddrStorage::from(SocketAddr::new(self.server.addr.to_ip(), 0));
        sendto(self.socket.as_raw_fd(), &headers[..len], &to, MsgFlags::empty())?;
        Ok(())
    }

    fn syn(&self) -> Result<()> {
        self.send(&TcpFields {
            seq: Seq(1_000),
            flags: flag::SYN,
            window: 65_535,
            mss: 1460,
            window_scale: 7,
            ts_val: 1,
            options: opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS,
            ..TcpFields::default()
        })
    }

    fn ack(&self, syn_ack: &Returned) -> Result<()> {
        self.send(&TcpFields {
            seq: Seq(1_001),
            ack: syn_ack.tcp.seq + 1,
            flags: flag::ACK,
            window: 60_000,
            ts_val: 2,
            ts_ecr: syn_ack.tcp.ts_val,
            options: opt::TIMESTAMPS,
            ..TcpFields::default()
        })
    }
}

/// A service that says a lot as soon as somebody connects.
fn talkative(host: &Host, at: SocketAddr) -> Result<()> {
    let listener = host.ns.enter(move || TcpListener::bind(at))?;
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(&[b'x'; 200_000]);
            open.push(stream);
        }
    });
    Ok(())
}

fn targets(net: &Network) -> [SocketAddr; 2] {
    [SocketAddr::new(net.target.v4(), PORT), SocketAddr::new(net.target.v6(), PORT)]
}

const RANGES: [&str; 2] = ["198.18.16.0/20", "2001:2:0:1::/64"];
const CLIENTS: [&str; 2] = ["198.18.16.7:40001", "[2001:2:0:1::7]:40001"];

/// A handshake and the first answer, of both families. Returns how old the SYN-ACKs were, nanoseconds.
fn talk(net: &Network, receiver: &mut Receiver, super_frames: bool) -> Result<Vec<u64>> {
    let mut ages = vec![];
    for (client, target) in CLIENTS.into_iter().zip(targets(net)) {
        step(format!("{client} asks {target}"));
        receiver.records.clear();
        let forger = Forger::new(&net.online, client, target)?;
        forger.syn()?;
        // The forger before acknowledged nothing, so what it was answered comes again.
        let ours = |r: &Receiver| -> Vec<Returned> {
            r.records.iter().filter(|r| r.target == forger.server).copied().collect()
        };
        receiver.until("the SYN-ACK", |r| ours(r).iter().any(|r| r.tcp.has(flag::SYN | flag::ACK)))?;
        let syn_ack = ours(receiver).into_iter().find(|r| r.tcp.has(flag::SYN)).context("seen above")?;
        ensure!(syn_ack.client == forger.client, "{syn_ack:?}");
        ensure!(syn_ack.tcp.ack == Seq(1_001) && syn_ack.tcp.has_option(opt::MSS | opt::TIMESTAMPS));
        ensure!(syn_ack.payload_len == 0 && syn_ack.segments == 1);
        ages.push(syn_ack.age_ns);
        forger.ack(&syn_ack)?;
        // The initial window of ten segments; each end of a veth is a super-frame engine.
        let answered = |r: &Receiver| ours(r).iter().map(|r| r.payload_len).sum::<u32>() >= 14_000;
        receiver.until("the initial window of the answer", answered)?;
        let ours = ours(receiver);
        let largest = ours.iter().max_by_key(|r| r.payload_len).context("answered")?;
        if super_frames {
            ensure!(largest.payload_len > 1_448, "no super-frame: {largest:?}");
        }
        ensure!(u32::from(largest.segments) == largest.payload_len.div_ceil(1_448), "{largest:?}");
        ensure!(ours.iter().all(|r| r.tcp.seq.at_or_after(syn_ack.tcp.seq)));
    }
    Ok(ages)
}

fn answers_are_captured_on_the_assistant() -> Result<()> {
    for interfaces in [vec!["eth0".to_owned()], vec![]] {
        let net = Network::new(Answers::ViaAssistant)?;
        targets(&net).into_iter().try_for_each(|at| talkative(&net.target, at))?;
        step(format!("capture on {interfaces:?}"));
        let mut running =
            Running::start(&net.assistant, targets(&net).to_vec(), |o| o.interfaces = interfaces)?;
        let mut receiver = Receiver::dial(&net.online, running.addr, &RANGES, &targets(&net))?;
        let ages = talk(&net, &mut receiver, true)?;
        ensure!(ages.iter().all(|age_ns| *age_ns > 0), "{ages:?}");
        step("nothing of it was lost or seen twice");
        let summary = running.stop()?;
        ensure!(summary.kernel_drops == 0 && summary.without_owner == 0, "{summary:?}");
        ensure!(running.stats.get(Count::NotTarget) == 0);
    }
    Ok(())
}

fn answers_end_in_the_tun_device_super_frames_whole() -> Result<()> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(lab::story::Skipped::NotHere("this machine has no /dev/net/tun".to_owned()).into());
    }
    let net = Network::new(Answers::NoRoute)?;
    targets(&net).into_iter().try_for_each(|at| talkative(&net.target, at))?;
    let routes = ["198.18.0.0/15".parse::<Range>()?, "2001:2::/48".parse()?];
    let service = targets(&net)[0];
    let mut running = Running::start(&net.target, targets(&net).to_vec(), |o| {
        o.tun = Some(TunOptions::new(routes.to_vec()));
        o.datagrams = vec![service];
    })?;
    let mut receiver = Receiver::dial(&net.online, running.addr, &RANGES, &targets(&net))?;
    let ages = talk(&net, &mut receiver, true)?;
    ensure!(ages[0] == 0, "intercept waited for it: {ages:?}");
    step("answers that come faster than intercept looks are as old as half a nap");
    receiver.records.clear();
    let sent = 500;
    net.target.ns.enter(move || -> std::io::Result<()> {
        let socket = UdpSocket::bind(service)?;
        (0..sent).try_for_each(|_| {
            std::thread::sleep(Duration::from_micros(100));
            socket.send_to(b"!", "198.18.16.7:40000").map(|_| ())
        })
    })?;
    // Beside them the forgers' answers come again and again.
    let ages = |r: &Receiver| -> Vec<u64> {
        r.records.iter().filter(|r| r.kind == kind::UDP).map(|r| r.age_ns).collect()
    };
    receiver.until("the datagrams", |r| ages(r).len() == sent)?;
    let oldest = ages(&receiver).into_iter().max().context("sent some")?;
    // Naps are a millisecond and more.
    ensure!(oldest > 400_000, "{oldest}");
    running.stop()?;
    Ok(())
}

/// The target tries to reach a replayed client from the service's port; returns once the attempt was seen.
fn answer(net: &Network, receiver: &mut Receiver, client_port: u16) -> Result<()> {
    receiver.records.clear();
    let target: SocketAddr = targets(net)[0];
    let forger = Forger::new(&net.online, &format!("198.18.16.7:{client_port}"), target)?;
    let mut again = 0;
    until("an answer", LIMIT, || {
        // Neighbours are asked for anew after a link was down, so one SYN may be lost.
        if again % 20 == 0 {
            let _ = forger.syn();
        }
        again += 1;
        receiver.turn().is_ok() && receiver.records.iter().any(|r| r.client.port == client_port)
    })
}

fn a_link_that_went_down_is_captured_again() -> Result<()> {
    let net = Network::new(Answers::ViaAssistant)?;
    talkative(&net.target, targets(&net)[0])?;
    let mut running = Running::start(&net.assistant, targets(&net).to_vec(), |o| {
        o.interfaces = vec!["eth0".to_owned()];
    })?;
    let mut receiver = Receiver::dial(&net.online, running.addr, &RANGES, &targets(&net))?;
    answer(&net, &mut receiver, 41_000)?;
    for round in 1..=3 {
        step(format!("down and up, round {round}"));
        net.assistant.ns.enter(|| netlink::set_up("eth0", false))?;
        let down = || running.stats.get(Count::CaptureErrors) >= round;
        until("the capture notices", LIMIT, down)?;
        net.assistant.ns.enter(|| netlink::set_up("eth0", true))?;
        answer(&net, &mut receiver, 41_000 + round as u16)?;
    }
    ensure!(running.stats.get(Count::CaptureErrors) < 100, "it did not spin on the error");
    running.stop()?;
    Ok(())
}

fn an_interface_that_was_made_anew_is_captured_again() -> Result<()> {
    let net = Network::new(Answers::ViaAssistant)?;
    // A link of its own between the assistant and a host that plays the target.
    let make = |net: &Network| -> Result<()> {
        let peer = net.online2.ns.fd().as_raw_fd();
        net.assistant.ns.enter(move || -> std::io::Result<()> {
            netlink::add_veth("eth1", "eth1", peer)?;
            netlink::set_up("eth1", true)?;
            netlink::add_address("eth1", IpAddr::from([10, 99, 0, 2]), 24)
        })?;
        net.online2.ns.enter(|| -> std::io::Result<()> {
            netlink::set_up("eth1", true)?;
            netlink::add_address("eth1", IpAddr::from([10, 99, 0, 1]), 24)?;
            netlink::add_route(IpAddr::from([198, 18, 16, 0]), 20, IpAddr::from([10, 99, 0, 2]))
        })?;
        Ok(())
    };
    make(&net)?;
    let watched: SocketAddr = "10.99.0.1:8080".parse()?;
    let mut running =
        Running::start(&net.assistant, vec![watched], |o| o.interfaces = vec!["eth1".to_owned()])?;
    let mut receiver = Receiver::dial(&net.online, running.addr, &RANGES, &[watched])?;
    let mut seen = |what: &str| -> Result<()> {
        step(what);
        receiver.records.clear();
        until("an answer", LIMIT, || {
            net.online2.ns.enter(move || say_something(watched));
            receiver.turn().is_ok() && !receiver.records.is_empty()
        })
    };
    seen("as it was at the start")?;
    let mut delete = Command::new("ip");
    delete.args(["link", "delete", "eth1"]);
    let deleted = net.assistant.ns.spawn(delete).and_then(|mut child| child.wait());
    if !deleted.is_ok_and(|status| status.success()) {
        return Err(lab::story::Skipped::NotInstalled("`ip` (iproute2) is not installed".to_owned()).into());
    }
    make(&net)?;
    seen("after it was made anew")?;
    running.stop()?;
    Ok(())
}

/// A segment from the watched address to a replayed client: a SYN, but that is all the same to intercept.
fn say_something(from: SocketAddr) {
    let Ok(fd) = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None) else { return };
    let _ = setsockopt(&fd, sockopt::ReuseAddr, &true);
    let _ = bind(fd.as_raw_fd(), &SockaddrStorage::from(from));
    let _ = connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from(([198, 18, 16, 7], 42_000))));
    // Closing it at once would take the SYN back while the neighbour is being asked for.
    std::thread::sleep(Duration::from_millis(20));
}

fn the_device_and_its_routes_vanish_with_intercept() -> Result<()> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(lab::story::Skipped::NotHere("this machine has no /dev/net/tun".to_owned()).into());
    }
    let net = Network::new(Answers::NoRoute)?;
    let tun =
        || TunOptions { name: "twin7".to_owned(), ranges: vec!["198.18.0.0/15".parse().expect("a range")] };
    let mut running = Running::start(&net.target, targets(&net).to_vec(), |o| o.tun = Some(tun()))?;
    ensure!(net.target.ns.enter(|| netlink::index("twin7")).is_ok());
    step("a second one of the name is refused");
    let again = Running::start(&net.target, targets(&net).to_vec(), |o| o.tun = Some(tun()));
    let sentence = again.map(|_| ()).expect_err("the name is taken").to_string();
    ensure!(sentence.contains("the device twin7 exists already"), "{sentence}");
    step("after the end device and route are free again");
    running.stop()?;
    ensure!(net.target.ns.enter(|| netlink::index("twin7")).is_err());
    Running::start(&net.target, targets(&net).to_vec(), |o| o.tun = Some(tun()))?.stop()?;
    Ok(())
}

fn mistakes_are_sentences() -> Result<()> {
    let net = Network::new(Answers::ViaAssistant)?;
    let sentence = |change: &dyn Fn(&mut Options)| {
        let started = Running::start(&net.assistant, targets(&net).to_vec(), |o| change(o));
        started.map(|_| ()).expect_err("it cannot start").to_string()
    };
    let no_interface = sentence(&|o| o.interfaces = vec!["nope0".to_owned()]);
    ensure!(no_interface.contains("-i nope0: this host has no interface"), "{no_interface}");
    let foreign = sentence(&|o| o.listen = vec!["192.0.2.1:36524".parse().expect("an address")]);
    ensure!(foreign.contains("192.0.2.1:36524") && foreign.contains("ip addr"), "{foreign}");
    let routed =
        |o: &mut Options| o.tun = Some(TunOptions::new(vec!["198.18.0.0/15".parse().expect("a range")]));
    if std::path::Path::new("/dev/net/tun").exists() {
        let mut listening = Options::new(targets(&net).to_vec());
        listening.listen = vec![SocketAddr::new(net.target.v4(), 36524)];
        routed(&mut listening);
        let taken =
            net.target.ns.enter(|| Intercept::open(listening)).map(|_| ()).expect_err("a route is there");
        ensure!(taken.to_string().contains("198.18.0.0/15 has a route"), "{taken}");
    }
    Ok(())
}
