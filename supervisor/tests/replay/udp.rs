//! Datagrams beside connections: of every length, over IPv4 and IPv6, in fragments, copied and sampled, with processes dying.
//!
//! The services of both sides write down every payload with the endpoints it came from; they are held against each other, and
//! the ledger of datagrams against what the clients sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use lab::departures::most_within;
use lab::real::{Dnsmasq, dnsmasq};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::{Departures, Host, Instance, Load, Stats, wait};

use crate::stage::{SETTLE, Stage, clean, end};

pub(crate) const STORIES: &[Story] = &[
    ("datagrams_of_every_length_beside_connections", 90, datagrams_of_every_length_beside_connections),
    ("datagrams_that_are_handed_over_in_one", 60, datagrams_that_are_handed_over_in_one),
    ("datagrams_in_one_that_an_engine_is_not_told_of", 60, datagrams_in_one_that_an_engine_is_not_told_of),
    ("a_real_name_server", 60, a_real_name_server),
    (
        "three_copies_of_datagrams_come_from_three_clients",
        60,
        three_copies_of_datagrams_come_from_three_clients,
    ),
    ("one_and_a_half_copies_of_datagrams", 60, one_and_a_half_copies_of_datagrams),
    ("a_quarter_of_a_copy_of_datagrams", 60, a_quarter_of_a_copy_of_datagrams),
    ("half_of_the_flows_of_datagrams", 60, half_of_the_flows_of_datagrams),
    ("datagrams_go_on_without_an_intercept", 60, datagrams_go_on_without_an_intercept),
    ("a_worker_killed_under_datagrams", 90, a_worker_killed_under_datagrams),
    ("datagrams_of_real_client_addresses", 60, datagrams_of_real_client_addresses),
    ("datagrams_to_a_port_where_nobody_listens", 60, datagrams_to_a_port_where_nobody_listens),
    ("datagrams_while_paused", 60, datagrams_while_paused),
    ("datagrams_keep_to_a_rate", 120, datagrams_keep_to_a_rate),
];

const ONLINE: u16 = 53;
const TARGET: u16 = 5_353;

/// What a service received: each payload, and where it came from, as often as it came.
pub(crate) type Book = BTreeMap<Vec<u8>, Vec<SocketAddr>>;

/// A service that answers each datagram with the same bytes.
pub(crate) struct Echo {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start(host: &Host, ip: IpAddr, port: u16) -> Result<Self> {
        let (book, stop) = (Arc::new(Mutex::new(Book::new())), Arc::new(AtomicBool::new(false)));
        let socket = host.ns.enter(move || UdpSocket::bind((ip, port)))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        // The usual buffer holds some hundred small datagrams: less than a busy machine makes it wait for.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20));
        let (noted, ended) = (Arc::clone(&book), Arc::clone(&stop));
        let thread = host.ns.thread("echo", move || {
            let mut buffer = vec![0; 65_536];
            while !ended.load(Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                noted.lock().expect("no holder panics").entry(buffer[..len].to_vec()).or_default().push(from);
                let _ = socket.send_to(&buffer[..len], from);
            }
        })?;
        Ok(Self { book, stop, thread: Some(thread) })
    }

    fn received(&self) -> u64 {
        self.book.lock().expect("no holder panics").values().map(|from| from.len() as u64).sum()
    }

    pub(crate) fn read(&self) -> Book {
        self.book.lock().expect("no holder panics").clone()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the clients sent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sent {
    datagrams: u64,
    bytes: u64,
}

/// Each client sends one datagram of each length in turn and waits for the answer to it: `rounds` times.
pub(crate) fn ask(
    stage: &Stage,
    to: SocketAddr,
    clients: u32,
    rounds: u32,
    lengths: &[usize],
) -> Result<Sent> {
    let lengths = lengths.to_vec();
    step(format!("{clients} clients ask {to} {rounds} times with {lengths:?} bytes"));
    stage.net.client.ns.enter(move || {
        let mut sent = Sent::default();
        let mut buffer = vec![0; 65_536];
        for client in 0..clients {
            let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            for round in 0..rounds {
                for &len in &lengths {
                    let payload = payload(client, round, len);
                    socket.send(&payload)?;
                    let got = socket.recv(&mut buffer).context("the online service answers")?;
                    ensure!(buffer[..got] == payload, "the online service answered something else");
                    sent.datagrams += 1;
                    sent.bytes += len as u64;
                }
            }
        }
        Ok(sent)
    })
}

/// Bytes that tell client and round where there is room.
fn payload(client: u32, round: u32, len: usize) -> Vec<u8> {
    let head = [client.to_be_bytes(), round.to_be_bytes()].concat();
    (0..len).map(|i| head.get(i).copied().unwrap_or((i * 31 % 251) as u8)).collect()
}

/// Services on both sides, intercept and run with one mapping of datagrams beside the usual one of connections.
struct Scene {
    stage: Stage,
    online: Echo,
    target: Option<Echo>,
    intercept: Option<Instance>,
    run: Option<Instance>,
}

impl Scene {
    fn new(options: &[&str]) -> Result<Self> {
        Self::on(Stage::new()?, options)
    }

    fn on(stage: Stage, options: &[&str]) -> Result<Self> {
        let net = &stage.net;
        let online = Echo::start(&net.online, net.online.v4(), ONLINE)?;
        let target = Echo::start(&net.target, net.target.v4(), TARGET)?;
        let service = format!("udp:{}:{TARGET}", net.target.v4());
        let tcp = stage.at_target().to_string();
        let intercept = stage.twin.intercept(&net.assistant, &["-x", &tcp, "-x", &service, "-i", "eth0"])?;
        let map = format!("udp:{ONLINE}-{}:{TARGET}", net.target.v4());
        let run = stage.run(&[&["-x", &map], options].concat())?;
        Ok(Self { online, target: Some(target), intercept: Some(intercept), run: Some(run), stage })
    }

    fn at_online(&self) -> SocketAddr {
        SocketAddr::new(self.stage.net.online.v4(), ONLINE)
    }

    fn target(&self) -> &Echo {
        self.target.as_ref().expect("the target's service runs")
    }

    fn run(&self) -> &Instance {
        self.run.as_ref().expect("the run goes on")
    }

    /// Waits until the shards have taken as many, ends the run, and insists on the ledger. A run that is ended begins no
    /// flow any more, so one that only stands in a ring by then is dropped as `stopped`.
    fn end(&mut self, sent: Sent) -> Result<Stats> {
        step("the shards have taken the last datagrams");
        let taken = || -> Result<u64> {
            let stats = self.run().stats()?;
            let roles = stats.value()["counters"].as_object().context("counters of roles")?;
            Ok(roles.values().filter_map(|role| role["datagrams_taken"].as_u64()).sum())
        };
        wait::until("all datagrams are taken", SETTLE, || taken().is_ok_and(|n| n >= sent.datagrams))?;
        let stats = self.run.take().context("the run was ended before")?.stop_run()?;
        ledger(&stats, sent)?;
        Ok(stats)
    }

    /// Waits until the target has received so many.
    fn arrived(&self, datagrams: u64) -> Result<()> {
        wait::until("the copies arrive", SETTLE, || self.target().received() >= datagrams).with_context(
            || {
                let counters =
                    self.stage.net.target.ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
                let udp: Vec<String> = counters
                    .into_iter()
                    .flat_map(|text| {
                        text.lines()
                            .filter(|line| line.starts_with("Udp:") || line.starts_with("Ip:"))
                            .map(str::to_owned)
                            .collect::<Vec<_>>()
                    })
                    .collect();
                format!(
                    "{} of {datagrams} copies arrived; the target's kernel: {udp:?}",
                    self.target().received()
                )
            },
        )
    }
}

/// What was captured is what was sent, and what was wanted is accounted for, in datagrams and bytes.
fn ledger(stats: &Stats, sent: Sent) -> Result<()> {
    let read = |path: &str| stats.number(&format!("/udp{path}"));
    let udp = &stats.value()["udp"];
    ensure!(read("/captured/datagrams")? == sent.datagrams, "{} were sent: {udp}", sent.datagrams);
    ensure!(read("/captured/payload_bytes")? == sent.bytes, "{} bytes were sent: {udp}", sent.bytes);
    for unit in ["datagrams", "payload_bytes"] {
        let dropped = udp["dropped"].as_object().into_iter().flatten();
        let dropped: u64 = dropped.filter_map(|(_, amount)| amount[unit].as_u64()).sum();
        let (wanted, out) = (read(&format!("/wanted/{unit}"))?, read(&format!("/sent/{unit}"))?);
        ensure!(wanted == out + dropped, "{unit} do not add up: {udp}");
        ensure!(read(&format!("/inject/{unit}"))? == out, "the kernel did not take all {unit}: {udp}");
    }
    ensure!(read("/missed")? == 0, "datagrams were captured in part: {udp}");
    Ok(())
}

/// Every payload reached the target as often as the online service, times the copies.
pub(crate) fn same(online: &Book, target: &Book, copies: usize) -> Result<()> {
    let wanted: Vec<(&Vec<u8>, usize)> =
        online.iter().map(|(bytes, from)| (bytes, from.len() * copies)).collect();
    let got: Vec<(&Vec<u8>, usize)> = target.iter().map(|(bytes, from)| (bytes, from.len())).collect();
    let wrong = wanted.iter().zip(&got).find(|(a, b)| a != b);
    let shown = wrong.map(|(a, b)| ((a.0.len(), a.1), (b.0.len(), b.1)));
    ensure!(
        wanted == got,
        "{} payloads wanted, {} came; the first difference in length and number: {shown:?}",
        wanted.len(),
        got.len()
    );
    Ok(())
}

pub(crate) fn clients_of(book: &Book) -> BTreeSet<SocketAddr> {
    book.values().flatten().copied().collect()
}

fn datagrams_of_every_length_beside_connections() -> Result<()> {
    const LENGTHS: &[usize] = &[0, 1, 100, 1_452, 1_472, 1_473, 8_000, 65_507];
    let stage = Stage::new()?;
    let net = &stage.net;
    let online = [
        Echo::start(&net.online, net.online.v4(), ONLINE)?,
        Echo::start(&net.online, net.online.v6(), ONLINE)?,
    ];
    let target = [
        Echo::start(&net.target, net.target.v4(), TARGET)?,
        Echo::start(&net.target, net.target.v6(), TARGET)?,
    ];
    let places = [SocketAddr::new(net.target.v4(), TARGET), SocketAddr::new(net.target.v6(), TARGET)];
    let [four, six] = places.map(|place| format!("udp:{place}"));
    let tcp = stage.at_target().to_string();
    let _intercept =
        stage.twin.intercept(&net.assistant, &["-x", &tcp, "-x", &four, "-x", &six, "-i", "eth0"])?;
    // Each family of clients to the target of its own.
    let online4 = SocketAddr::new(net.online.v4(), ONLINE);
    let online6 = SocketAddr::new(net.online.v6(), ONLINE);
    let maps = [format!("udp:{online4}-{}", places[0]), format!("udp:{online6}-{}", places[1])];
    let run = stage.run(&["-x", &maps[0], "-x", &maps[1], "--shards", "2"])?;
    let load = stage.start(Load { rate: Some(300.0), ..stage.load(100_000) })?;
    let mut sent = ask(&stage, online4, 20, 3, LENGTHS)?;
    let more = ask(&stage, online6, 20, 3, LENGTHS)?;
    sent = Sent { datagrams: sent.datagrams + more.datagrams, bytes: sent.bytes + more.bytes };
    let report = crate::stage::answered(load.stop()?)?;
    for (online, target) in online.iter().zip(&target) {
        wait::until("the copies arrive", SETTLE, || target.received() >= online.received())?;
        same(&online.read(), &target.read(), 1)?;
        ensure!(clients_of(&target.read()).len() == 20, "a client of its own for each of 20");
    }
    step("the answers are counted");
    let replies = || run.stats().and_then(|stats| stats.number("/udp/replies/datagrams")).unwrap_or(0);
    wait::until("every answer is seen", SETTLE, || replies() >= sent.datagrams)?;
    let stats = stage.all_replayed(run, &report, 1)?;
    ledger(&stats, sent)?;
    ensure!(stats.number("/udp/sent/payload_bytes")? == sent.bytes, "all are sent: {}", stats.value()["udp"]);
    ensure!(stats.number("/udp/replies/payload_bytes")? == sent.bytes, "{}", stats.value()["udp"]);
    ensure!(stats.number("/udp/flows/started")? == 40, "{}", stats.value()["udp"]);
    ensure!(stats.number("/udp/inject/fragments")? > 0, "{}", stats.value()["udp"]);
    Ok(())
}

/// A client hands over `payload` to be sent in datagrams of `each` bytes (UDP_SEGMENT): one packet on virtual devices.
fn hand_over(stage: &Stage, to: SocketAddr, payload: &[u8], each: u16) -> Result<Sent> {
    let payload = payload.to_vec();
    stage.net.client.ns.enter(move || {
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(each))?;
        ensure!(socket.send(&payload)? == payload.len(), "not all of it was taken");
        let datagrams = payload.len().div_ceil(usize::from(each)) as u64;
        for _ in 0..datagrams {
            socket.recv(&mut [0; 65_536]).context("the online service answers each")?;
        }
        Ok(Sent { datagrams, bytes: payload.len() as u64 })
    })
}

/// Each datagram of a packet is captured, replayed and recorded by itself.
fn datagrams_that_are_handed_over_in_one() -> Result<()> {
    let scratch = Scratch::new("datagrams")?;
    let directory = scratch.path().to_str().context("a path of plain text")?;
    let mut scene = Scene::new(&["-n", "2", "--shards", "2", "--record", directory])?;
    let mut sent = Sent::default();
    for (client, (len, each)) in (0..).zip([(10_500, 1_000), (350, 100), (60_000, 1_200), (1_472, 1_472)]) {
        for round in 0..3 {
            let more = hand_over(&scene.stage, scene.at_online(), &payload(client, round, len), each)?;
            sent = Sent { datagrams: sent.datagrams + more.datagrams, bytes: sent.bytes + more.bytes };
        }
    }
    // Beside them such as are sent one by one, some in fragments.
    let more = ask(&scene.stage, scene.at_online(), 5, 2, &[100, 4_000])?;
    sent = Sent { datagrams: sent.datagrams + more.datagrams, bytes: sent.bytes + more.bytes };
    scene.arrived(2 * sent.datagrams)?;
    let stats = scene.end(sent)?;
    same(&scene.online.read(), &scene.target().read(), 2)?;
    let frames = stats.number("/capture/frames")?;
    println!("    {} datagrams in {frames} packets; {}", sent.datagrams, stats.value()["udp"]);
    step("the recording holds each by itself");
    let mut files =
        std::fs::read_dir(scratch.path())?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    let mut reader = trace::Reader::open(&files, trace::Options::default())?;
    let mut recorded: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    while let Some(packet) = reader.next() {
        let seen = flow::datagram::parse(packet.ip, packet.wire_len);
        let Ok(flow::datagram::Seen::Whole(datagram)) = seen else { continue };
        if datagram.dst == scene.at_online().into() {
            *recorded.entry(datagram.payload.to_vec()).or_default() += 1;
        }
    }
    let received: BTreeMap<Vec<u8>, usize> =
        scene.online.read().into_iter().map(|(payload, from)| (payload, from.len())).collect();
    ensure!(recorded == received, "{} payloads recorded of {}", recorded.len(), received.len());
    Ok(())
}

/// Engines beside the ring are not told how long the parts are. What is longer than the device sends is named, and nothing of it is
/// sent to the target as one.
fn datagrams_in_one_that_an_engine_is_not_told_of() -> Result<()> {
    let engines = if libpcap::version().is_ok() { &["simple", "pcap"][..] } else { &["simple"] };
    for engine in engines {
        let mut scene = Scene::new(&["--capture", engine])?;
        hand_over(&scene.stage, scene.at_online(), &payload(1, 1, 10_500), 1_000)?;
        let sent = ask(&scene.stage, scene.at_online(), 5, 2, &[100, 1_400])?;
        scene.arrived(sent.datagrams)?;
        let run = scene.run.take().context("the run goes on")?;
        let told = || run.stderr().contains("counted as datagrams_unsplit");
        wait::until("it is said", SETTLE, told)?;
        let stats = run.stop_run()?;
        ensure!(
            stats.number("/counters/capturer-0/datagrams_unsplit")? == 1,
            "{}",
            stats.value()["counters"]
        );
        let udp = &stats.value()["udp"];
        ensure!(stats.number("/udp/missed")? == 1, "{udp}");
        ensure!(stats.number("/udp/sent/datagrams")? == sent.datagrams, "{udp}");
        ensure!(scene.target().received() == sent.datagrams, "the target was sent something else");
    }
    Ok(())
}

/// Twenty clients ask a name server; its twin is asked the same, as often, and its answers are counted.
fn a_real_name_server() -> Result<()> {
    const CLIENTS: u32 = 20;
    const EACH: u32 = 150;
    let stage = Stage::new()?;
    let net = &stage.net;
    let (online, target) = (Dnsmasq::start(&net.online, ONLINE)?, Dnsmasq::start(&net.target, TARGET)?);
    let service = format!("udp:{}", target.address);
    let tcp = stage.at_target().to_string();
    let _intercept = stage.twin.intercept(&net.assistant, &["-x", &tcp, "-x", &service, "-i", "eth0"])?;
    let run = stage.run(&["-x", &format!("udp:{ONLINE}-{}", target.address), "--shards", "2"])?;
    step(format!("{CLIENTS} clients ask {EACH} questions each"));
    let at = online.address;
    let ask = |client: u32| {
        let ns = &net.client.ns;
        move || dnsmasq::ask(ns, at, "q", client * EACH..(client + 1) * EACH)
    };
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(ask(client))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client panicked"))
    })?;
    let asked = u64::from(CLIENTS * EACH);
    ensure!(online.questions("q-")?.len() as u64 == asked, "the online server was asked something else");
    let replies = || run.stats().and_then(|stats| stats.number("/udp/replies/datagrams")).unwrap_or(0);
    wait::until("every answer is counted", SETTLE, || replies() >= asked).with_context(|| {
        let there = target.questions("q-").map_or(0, |questions| questions.len());
        format!("{} of {asked} answers to {there} questions at the target", replies())
    })?;
    let stats = end(run)?;
    let udp = &stats.value()["udp"];
    ensure!(stats.number("/udp/sent/datagrams")? == asked && replies_of(&stats)? == asked, "{udp}");
    ensure!(online.questions("q-")? == target.questions("q-")?, "the target was asked something else");
    println!("    {udp}");
    Ok(())
}

fn replies_of(stats: &Stats) -> Result<u64> {
    stats.number("/udp/replies/datagrams")
}

fn three_copies_of_datagrams_come_from_three_clients() -> Result<()> {
    let mut scene = Scene::new(&["-n", "3", "--shards", "2"])?;
    let sent = ask(&scene.stage, scene.at_online(), 50, 4, &[9, 500, 4_000])?;
    scene.arrived(3 * sent.datagrams)?;
    let stats = scene.end(sent)?;
    let target = scene.target().read();
    same(&scene.online.read(), &target, 3)?;
    for from in target.values() {
        let apart: BTreeSet<_> = from.iter().collect();
        ensure!(apart.len() == 3, "three clients send a payload: {from:?}");
    }
    ensure!(clients_of(&target).len() == 150, "{} clients", clients_of(&target).len());
    ensure!(stats.number("/udp/flows/started")? == 150, "{}", stats.value()["udp"]);
    Ok(())
}

fn one_and_a_half_copies_of_datagrams() -> Result<()> {
    fraction(&["-n", "1.5"], [1, 2], 0.5)
}

fn a_quarter_of_a_copy_of_datagrams() -> Result<()> {
    fraction(&["-n", "0.25"], [0, 1], 0.25)
}

fn half_of_the_flows_of_datagrams() -> Result<()> {
    fraction(&["-r", "50"], [0, 1], 0.5)
}

/// Each flow is copied `low` or `high` times, the higher with probability `p`, whole.
fn fraction(options: &[&str], [low, high]: [usize; 2], p: f64) -> Result<()> {
    const FLOWS: u32 = 400;
    const EACH: usize = 3;
    let mut scene = Scene::new(options)?;
    let sent = ask(&scene.stage, scene.at_online(), FLOWS, EACH as u32, &[64])?;
    let stats = scene.end(sent)?;
    scene.arrived(stats.number("/udp/sent/datagrams")?)?;
    let target = scene.target().read();
    let times = |client: u32, round: u32| target.get(&payload(client, round, 64)).map_or(0, Vec::len);
    let mut more = 0;
    for client in 0..FLOWS {
        let each: BTreeSet<usize> = (0..EACH as u32).map(|round| times(client, round)).collect();
        let whole = each == [low].into() || each == [high].into();
        ensure!(whole, "client {client} was copied {each:?} times; {}", stats.value()["udp"]);
        more += u32::from(each.contains(&high));
    }
    // Five standard deviations.
    let (mean, slack) = (f64::from(FLOWS) * p, 5.0 * (f64::from(FLOWS) * p * (1.0 - p)).sqrt());
    ensure!((f64::from(more) - mean).abs() < slack, "{more} of {FLOWS} flows, {mean} were to be expected");
    Ok(())
}

fn datagrams_go_on_without_an_intercept() -> Result<()> {
    let mut scene = Scene::new(&[])?;
    step("intercept dies");
    scene.intercept.take().context("intercept runs")?.kill()?;
    let sent = ask(&scene.stage, scene.at_online(), 30, 10, &[100, 3_000])?;
    scene.arrived(sent.datagrams)?;
    let stats = scene.end(sent)?;
    same(&scene.online.read(), &scene.target().read(), 1)?;
    ensure!(stats.number("/udp/replies/datagrams")? == 0, "nobody saw a reply: {}", stats.value()["udp"]);
    Ok(())
}

fn a_worker_killed_under_datagrams() -> Result<()> {
    let mut scene = Scene::new(&["-n", "2"])?;
    let mut sent = Sent::default();
    for round in 0..6 {
        step(format!("kill {round}"));
        let (at, stop) = (scene.at_online(), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&stop);
        let clients = scene.stage.net.client.ns.thread("clients", move || -> Result<Sent> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let mut sent = Sent::default();
            while !ended.load(Relaxed) {
                // Rounds from a million on: other payloads than those of the clients that wait.
                let payload = payload(round, 1_000_000 + sent.datagrams as u32, 700);
                socket.send_to(&payload, at)?;
                sent = Sent { datagrams: sent.datagrams + 1, bytes: sent.bytes + payload.len() as u64 };
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(sent)
        })?;
        std::thread::sleep(Duration::from_millis(150));
        let pid = scene.run().kill_role("shard-worker", 0)?;
        scene.run().wait_restarted("shard-worker", 0, pid, SETTLE)?;
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        let more = clients.join().expect("the clients' thread ends")?;
        sent = Sent { datagrams: sent.datagrams + more.datagrams, bytes: sent.bytes + more.bytes };
    }
    scene.arrived(2 * sent.datagrams)?;
    let stats = scene.end(sent)?;
    same(&scene.online.read(), &scene.target().read(), 2)?;
    ensure!(clients_of(&scene.target().read()).len() == 12, "flows keep their clients over a death");
    ensure!(stats.number("/udp/flows/started")? == 12, "{}", stats.value()["udp"]);
    Ok(())
}

fn datagrams_of_real_client_addresses() -> Result<()> {
    let stage = Stage::new()?;
    // As an operator would: only the answers to the clients of the experiment go to the assistant.
    stage.route_real_clients()?;
    let mut scene = Scene::on(stage, &["--keep-clients"])?;
    let sent = ask(&scene.stage, scene.at_online(), 30, 10, &[100])?;
    scene.arrived(sent.datagrams)?;
    let replies =
        || scene.run().stats().and_then(|stats| stats.number("/udp/replies/datagrams")).unwrap_or(0);
    wait::until("every answer is seen", SETTLE, || replies() >= sent.datagrams)
        .with_context(|| format!("{} of {} answers were seen", replies(), sent.datagrams))?;
    scene.end(sent)?;
    ensure!(scene.online.read() == scene.target().read(), "the same payloads from the same endpoints");
    Ok(())
}

fn datagrams_to_a_port_where_nobody_listens() -> Result<()> {
    let mut scene = Scene::new(&[])?;
    drop(scene.target.take());
    let sent = ask(&scene.stage, scene.at_online(), 5, 1, &[100])?;
    let errors = || scene.run().stats().and_then(|stats| stats.number("/udp/icmp_errors")).unwrap_or(0);
    wait::until("an ICMP error is counted", SETTLE, || errors() > 0)?;
    let stats = scene.end(sent)?;
    ensure!(stats.number("/udp/sent/datagrams")? == sent.datagrams, "{}", stats.value()["udp"]);
    Ok(())
}

fn datagrams_while_paused() -> Result<()> {
    let mut scene = Scene::new(&[])?;
    scene.run().ctl(&["pause"])?;
    let held = ask(&scene.stage, scene.at_online(), 10, 2, &[80])?;
    let wanted = || scene.run().stats().and_then(|stats| stats.number("/udp/wanted/datagrams")).unwrap_or(0);
    wait::until("the paused ones are counted", SETTLE, || wanted() >= held.datagrams)?;
    ensure!(scene.target().received() == 0, "nothing is sent during a pause");
    scene.run().ctl(&["resume"])?;
    let sent = ask(&scene.stage, scene.at_online(), 10, 2, &[81])?;
    scene.arrived(sent.datagrams)?;
    let both = Sent { datagrams: held.datagrams + sent.datagrams, bytes: held.bytes + sent.bytes };
    let stats = scene.end(both)?;
    let paused = stats.number("/udp/dropped/paused/datagrams")?;
    ensure!(paused == held.datagrams, "{paused} were dropped for the pause: {}", stats.value()["udp"]);
    clean(&stats, 0)
}

/// Faster than they may leave: as many leave as may, the others are shed at once, because one that waits is of no use, and every one
/// is accounted for.
fn datagrams_keep_to_a_rate() -> Result<()> {
    const IN_100_MS: u64 = 40;
    let mut scene = Scene::new(&["--max-pps", "400", "--canary", "off", "--shards", "2"])?;
    let departures = Departures::start(&scene.stage.net, &scene.stage.net.online)?;
    let mut sent = Sent::default();
    for _ in 0..5 {
        let more = ask(&scene.stage, scene.at_online(), 60, 40, &[100])?;
        sent = Sent { datagrams: sent.datagrams + more.datagrams, bytes: sent.bytes + more.bytes };
    }
    step("the last leave");
    let number = |path: &str| scene.run().stats().and_then(|stats| stats.number(path)).unwrap_or(0);
    let accounted = || number("/udp/sent/datagrams") + number("/udp/dropped/shed/datagrams");
    wait::until("all are accounted for", SETTLE, || accounted() >= sent.datagrams)?;
    let left = number("/udp/sent/datagrams");
    scene.arrived(left)?;
    let noted = departures.stop()?;
    let worst = most_within(&noted, 100_000_000, |one| one.packets);
    let stats = scene.end(sent)?;
    let span_ns = noted.last().zip(noted.first()).map_or(0, |(last, first)| last.time_ns - first.time_ns);
    let mean = left as f64 * 1e8 / span_ns.max(1) as f64;
    step(format!(
        "{left} of {} left, in 100 ms {mean:.1} in the mean, {worst} at most, {IN_100_MS} allowed",
        sent.datagrams
    ));
    ensure!(worst <= IN_100_MS && mean >= IN_100_MS as f64 * 0.8, "{mean:.1} in 100 ms, {worst} at most");
    ensure!(scene.target().received() == left, "{} of {left} arrived", scene.target().received());
    let others =
        stats.value()["udp"]["dropped"].as_object().into_iter().flatten().filter(|(name, _)| *name != "shed");
    let others: u64 = others.filter_map(|(_, amount)| amount["datagrams"].as_u64()).sum();
    ensure!(others == 0, "{}", stats.value()["udp"]);
    Ok(())
}
