//! Real sends in a network namespace of the test's own, read back by a packet socket.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use etherparse::{Ipv4Slice, Ipv6Slice, TcpSlice};
use flow::record::opt;
use flow::{Inject, Seq, TcpFields, segment};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use super::*;
use crate::guard::Guard;
use crate::testing::{add_v6, in_namespace, ip, plan, record};

/// Everything that a device of this namespace receives, from the IP header on.
struct Watch(OwnedFd);

impl Watch {
    fn new() -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&fd, sockopt::RcvBuf, &(8 << 20)).unwrap();
        Self(fd)
    }

    /// The first `n` packets of TCP or UDP. Loopback shows each twice, leaving and arriving: the
    /// arriving one counts, and it may take a moment on a busy machine.
    fn packets(&self, n: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buf = vec![0; 70_000];
        let start = Instant::now();
        while packets.len() < n && start.elapsed() < Duration::from_secs(20) {
            let Ok((len, from)) = recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buf) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let arrived = from.is_some_and(|a| i32::from(a.pkttype()) == i32::from(libc::PACKET_HOST));
            let ours = segment::parse(&buf[..len], len as u32).is_ok()
                || flow::datagram::parse(&buf[..len], len as u32).is_ok();
            if arrived && ours {
                packets.push(buf[..len].to_vec());
            }
        }
        packets
    }
}

fn head(client: &str, target: u16, flags: u16) -> Inject {
    let client: SocketAddr = client.parse().unwrap();
    let tcp = TcpFields { seq: Seq(1_000), ack: Seq(5), flags, window: 100, ..TcpFields::default() };
    Inject { tcp, client: client.into(), target, mss: 1_448, ..Inject::default() }
}

fn send(engine: &mut Sender, guard: &Guard, records: &[Vec<u8>]) -> Tally {
    let mut tally = Tally::default();
    engine.send(records.iter().map(|r| guard.check(r).unwrap()), &mut tally);
    tally
}

fn checksum_holds(packet: &[u8]) -> bool {
    if packet[0] >> 4 == 4 {
        let ip = Ipv4Slice::from_slice(packet).unwrap();
        let header = ip.header();
        let tcp = TcpSlice::from_slice(ip.payload().payload).unwrap();
        header.header_checksum() == header.to_header().calc_header_checksum()
            && tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap() == tcp.checksum()
    } else {
        let ip = Ipv6Slice::from_slice(packet).unwrap();
        let tcp = TcpSlice::from_slice(ip.payload().payload).unwrap();
        tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap() == tcp.checksum()
    }
}

#[test]
fn super_frames_arrive_as_segments_over_both_families() {
    in_namespace("super_frames_arrive_as_segments_over_both_families", || {
        ip("link set lo up");
        ip("addr add 10.9.9.1/32 dev lo");
        add_v6("fd00::9");
        let plan = plan(&["10.9.9.1:80", "[fd00::9]:8080"]);
        let guard = Guard::new(&plan);
        let mut engine = Sender::raw(crate::open(&plan).unwrap(), 41);
        let watch = Watch::new();
        let payload: Vec<u8> = (0..60_000u32).map(|i| (i * 7) as u8).collect();
        let mut stamped = head("198.18.0.7:1025", 0, flag::ACK | flag::PSH | flag::FIN);
        stamped.tcp.options = opt::TIMESTAMPS;
        let tally = send(
            &mut engine,
            &guard,
            &[
                record(stamped, &payload),
                record(head("[2001:2::7]:1026", 1, flag::ACK | flag::PSH), &payload[..5_000]),
                record(Inject { bits: inject_bit::AGAIN, ..head("198.18.0.7:1027", 0, flag::SYN) }, &[]),
            ],
        );
        let packets = watch.packets(47);
        assert_eq!(packets.len(), 42 + 4 + 1, "{tally:?}");
        assert!(packets.iter().all(|p| checksum_holds(p)));

        let mut whole = Vec::new();
        for (i, packet) in packets[..42].iter().enumerate() {
            let s = segment::parse(packet, packet.len() as u32).unwrap();
            assert_eq!(
                (s.src.to_string(), s.dst.to_string()),
                ("198.18.0.7:1025".into(), "10.9.9.1:80".into())
            );
            assert_eq!(s.tcp.seq, Seq(1_000) + whole.len() as u32);
            assert_eq!(s.tcp.has(flag::FIN | flag::PSH), i == 41);
            assert_eq!(
                u16::from_be_bytes([packet[4], packet[5]]),
                42 + i as u16,
                "the identification counts"
            );
            whole.extend_from_slice(s.payload);
        }
        assert_eq!(whole, payload);
        assert_eq!(tally.get(Count::Segments), 47);
        assert_eq!(tally.get(Count::PayloadBytes), 65_000);
        assert_eq!((tally.get(Count::Syn), tally.get(Count::Fin), tally.get(Count::Again)), (1, 1, 1));
        assert_eq!(tally.get(Count::Bytes), packets.iter().map(|p| p.len() as u64).sum::<u64>());
    });
}

#[test]
fn a_target_without_a_route_does_not_hold_up_the_others() {
    in_namespace("a_target_without_a_route_does_not_hold_up_the_others", || {
        ip("link set lo up");
        ip("addr add 10.9.9.1/32 dev lo");
        let plan = plan(&["10.9.9.1:80", "10.200.0.1:80"]);
        let guard = Guard::new(&plan);
        let mut engine = Sender::raw(crate::open(&plan).unwrap(), 0);
        let watch = Watch::new();
        let records: Vec<_> =
            (0..200).map(|i| record(head("198.18.0.7:1025", i % 2, flag::ACK), b"hello")).collect();
        let tally = send(&mut engine, &guard, &records);
        assert_eq!(tally.get(Count::Enetunreach), 100);
        assert_eq!(tally.get(Count::Dropped), 100);
        assert_eq!(tally.get(Count::Segments), 100);
        assert_eq!(watch.packets(100).len(), 100);
    });
}

#[test]
fn an_empty_namespace_refuses_everything_and_nothing_breaks() {
    in_namespace("an_empty_namespace_refuses_everything_and_nothing_breaks", || {
        let plan = plan(&["10.9.9.1:80", "[fd00::9]:80"]);
        let guard = Guard::new(&plan);
        let mut engine = Sender::raw(crate::open(&plan).unwrap(), 0);
        let records = [
            record(head("198.18.0.7:1025", 0, flag::ACK), &[1; 3_000]),
            record(head("[2001:2::7]:1025", 1, flag::ACK), &[1; 3_000]),
        ];
        let mut refused = Tally::default();
        for _ in 0..20 {
            engine.send(records.iter().map(|r| guard.check(r).unwrap()), &mut refused);
        }
        // Without any IPv6 address the choice of a source fails before the route does.
        assert_eq!(refused.get(Count::Enetunreach), 20 * 3, "{refused:?}");
        assert_eq!(refused.get(Count::Eaddrnotavail), 20 * 3, "{refused:?}");
        assert_eq!(refused.get(Count::Dropped), 20 * 6, "{refused:?}");
        // The route comes back: so does the traffic, with the very same sockets.
        ip("link set lo up");
        ip("addr add 10.9.9.1/32 dev lo");
        add_v6("fd00::9");
        assert_eq!(send(&mut engine, &guard, &records).get(Count::Segments), 6);
    });
}

#[test]
fn packets_beyond_the_devices_mtu_are_counted_and_skipped() {
    in_namespace("packets_beyond_the_devices_mtu_are_counted_and_skipped", || {
        ip("link set lo up mtu 1300");
        ip("addr add 10.9.9.1/32 dev lo");
        let plan = plan(&["10.9.9.1:80"]);
        let guard = Guard::new(&plan);
        let mut engine = Sender::raw(crate::open(&plan).unwrap(), 0);
        let records = [
            record(head("198.18.0.7:1025", 0, flag::ACK), &[1; 1_400]),
            record(head("198.18.0.7:1025", 0, flag::ACK), &[1; 400]),
        ];
        let tally = send(&mut engine, &guard, &records);
        assert_eq!((tally.get(Count::Emsgsize), tally.get(Count::Segments)), (1, 1));
    });
}

#[test]
fn a_firewall_that_refuses_is_counted_and_its_end_is_noticed() {
    in_namespace("a_firewall_that_refuses_is_counted_and_its_end_is_noticed", || {
        ip("link set lo up");
        ip("addr add 10.9.9.1/32 dev lo");
        let nft =
            |args: &[&str]| std::process::Command::new("nft").args(args).status().is_ok_and(|s| s.success());
        let drop =
            "table ip t {\n chain o {\n type filter hook output priority 0\n ip daddr 10.9.9.1 drop\n }\n}\n";
        let file = std::env::temp_dir().join(format!("injector-drop-{}.nft", std::process::id()));
        std::fs::write(&file, drop).unwrap();
        let installed = nft(&["-f", file.to_str().unwrap()]);
        std::fs::remove_file(&file).unwrap();
        if !installed {
            return eprintln!("SKIPPED: nft is not usable here");
        }
        let plan = plan(&["10.9.9.1:80"]);
        let guard = Guard::new(&plan);
        let mut engine = Sender::raw(crate::open(&plan).unwrap(), 0);
        let one = [record(head("198.18.0.7:1025", 0, flag::ACK), b"hello")];
        let refused = send(&mut engine, &guard, &one);
        assert_eq!((refused.get(Count::Eperm), refused.get(Count::Dropped)), (1, 1), "{refused:?}");
        assert!(nft(&["delete", "table", "ip", "t"]));
        assert_eq!(send(&mut engine, &guard, &one).get(Count::Segments), 1);
    });
}

#[test]
fn a_full_socket_is_asked_again_a_bounded_number_of_times() {
    in_namespace("a_full_socket_is_asked_again_a_bounded_number_of_times", || {
        // Nobody answers ARP behind v0, so packets wait for the neighbour and fill the socket's small buffer.
        ip("link add v0 type veth peer name v1");
        ip("addr add 10.8.0.1/24 dev v0");
        ip("link set v0 up");
        ip("link set v1 up");
        let plan = plan(&["10.8.0.9:80"]);
        let guard = Guard::new(&plan);
        let sockets = crate::open(&plan).unwrap();
        setsockopt(sockets.v4.as_ref().unwrap(), sockopt::SndBuf, &4_096).unwrap();
        let mut engine = Sender::raw(sockets, 0);
        let records: Vec<_> =
            (0..100).map(|_| record(head("198.18.0.7:1025", 0, flag::ACK), &[0; 1_000])).collect();
        let tally = send(&mut engine, &guard, &records);
        assert_eq!(tally.get(Count::Retries), u64::from(RETRIES), "{tally:?}");
        assert!(tally.get(Count::Eagain) > u64::from(RETRIES), "{tally:?}");
        assert_eq!(tally.get(Count::Segments) + tally.get(Count::Dropped), 100, "{tally:?}");
    });
}

#[test]
fn the_pauses_grow_to_a_bound_and_one_success_ends_them() {
    let mut pacer = Pacer::default();
    let mut last = Duration::ZERO;
    for _ in 0..12 {
        assert!(pacer.pause() >= last && pacer.pause() <= Pacer::LONGEST);
        last = pacer.pause();
        pacer.failed += 1;
    }
    assert_eq!(last, Pacer::LONGEST);
    pacer.after(64, 1);
    assert_eq!(pacer.pause(), Duration::ZERO);
}

/// A target behind a pair of devices, both here: what v0 sends arrives at v1, addressed to it.
struct Link {
    plan: topology::Plan,
    guard: Guard,
    region: &'static shm::Region,
    sender: Sender,
    tally: Tally,
    device: u32,
    _lookout: crate::Lookout,
}

impl Link {
    fn new(targets: &[&str]) -> Self {
        ip("link set lo up");
        ip("link add v0 address 02:00:00:00:00:01 type veth peer name v1 address 02:00:00:00:00:02");
        ip("addr add 10.8.0.1/24 dev v0");
        ip("addr add fd08::1/64 dev v0 nodad");
        ip("link set v0 up");
        ip("link set v1 up");
        ip("neigh replace 10.8.0.9 lladdr 02:00:00:00:00:02 dev v0");
        ip("neigh replace fd08::9 lladdr 02:00:00:00:00:02 dev v0");
        let plan = plan(targets);
        let region = crate::testing::region(&plan);
        let lookout = crate::Lookout::start(&plan).unwrap();
        let sockets = crate::open(&plan).unwrap().told_by(lookout.attach().unwrap());
        let mut sender = Sender::open(&plan, sockets, region.control(), 41);
        let start = Instant::now();
        while sender.paths.iter().any(|path| path.choice == Choice::Unknown) {
            assert!(start.elapsed() < Duration::from_secs(10), "nobody looked");
            sender.look(&mut Tally::default());
        }
        let device = nix::net::if_::if_nametoindex("v0").unwrap();
        Self {
            guard: Guard::new(&plan),
            plan,
            region,
            sender,
            tally: Tally::default(),
            device,
            _lookout: lookout,
        }
    }

    fn send(&mut self, records: &[Vec<u8>]) {
        self.sender.look(&mut self.tally);
        self.sender.send(records.iter().map(|r| self.guard.check(r).unwrap()), &mut self.tally);
    }

    /// Looks until the first target is sent to so.
    fn until(&mut self, wanted: Choice) {
        let start = Instant::now();
        while self.choices()[0] != wanted {
            assert!(start.elapsed() < Duration::from_secs(10), "{wanted:?} never came: {:?}", self.choices());
            std::thread::sleep(Duration::from_millis(2));
            self.sender.look(&mut self.tally);
        }
    }

    /// Looks until the first target's way is such.
    fn until_way(&mut self, wanted: impl Fn(&Way) -> bool) {
        let start = Instant::now();
        while !self.sender.paths[0].way.is_ok_and(|way| wanted(&way)) {
            assert!(start.elapsed() < Duration::from_secs(10), "the change was not followed");
            std::thread::sleep(Duration::from_millis(2));
            self.sender.look(&mut self.tally);
        }
    }

    fn choices(&self) -> Vec<Choice> {
        self.sender.paths.iter().map(|path| path.choice).collect()
    }
}

fn headers_of(packet: &[u8]) -> (usize, usize) {
    let v4 = packet[0] >> 4 == 4;
    let tcp = if v4 { IPV4 } else { IPV6 };
    (tcp, tcp + usize::from(packet[tcp + 12] >> 4) * 4)
}

/// The rest is the device's work: the field holds the sum of the pseudo header.
fn checksum_is_begun(packet: &[u8]) -> bool {
    let s = segment::parse(packet, packet.len() as u32).unwrap();
    let (tcp, _) = headers_of(packet);
    let sum = flow::checksum::pseudo_header(&s.src.addr, &s.dst.addr, 6, (packet.len() - tcp) as u32);
    packet[tcp + 16..tcp + 18] == sum.partial().to_be_bytes()
}

#[test]
fn by_link_super_frames_leave_whole_over_both_families() {
    in_namespace("by_link_super_frames_leave_whole_over_both_families", || {
        let mut link = Link::new(&["10.8.0.9:80", "[fd08::9]:8080"]);
        link.region.control().set_guarded(&[link.device]);
        let watch = Watch::new();
        let payload: Vec<u8> = (0..60_000u32).map(|i| (i * 7) as u8).collect();
        link.send(&[
            record(head("198.18.0.7:1025", 0, flag::ACK | flag::PSH | flag::FIN), &payload),
            record(head("[2001:2::7]:1026", 1, flag::ACK | flag::PSH), &payload[..5_000]),
            record(head("198.18.0.7:1027", 0, flag::SYN), &[]),
        ]);
        let packets = watch.packets(3);
        assert_eq!(packets.len(), 3, "{:?}", link.tally);
        assert!(packets.iter().all(|packet| checksum_is_begun(packet)));
        for (packet, payload) in packets.iter().zip([&payload[..], &payload[..5_000], &[]]) {
            assert_eq!(&packet[headers_of(packet).1..], payload);
        }
        assert_eq!(link.tally.get(Count::Calls), 1, "one system call for both families");
        assert_eq!(link.tally.get(Count::Segments), 42 + 4 + 1);
        assert_eq!(link.tally.get(Count::SuperFrames), 2);
        assert_eq!(link.tally.get(Count::Bytes), 65_000 + 43 * 40 + 4 * 60, "as they are on the wire");
        assert_eq!(link.tally.get(Count::Detours), 0);
        assert!(
            link.tally.get(Count::Switches) <= 2,
            "each target once at most, when its device was guarded"
        );

        // A device that takes no more than this at once, of which the kernel gives no notice: refusals tell first.
        ip("link set v0 gso_max_size 20000");
        let one = [record(head("198.18.0.7:1025", 0, flag::ACK), &payload)];
        (0..REFUSALS).for_each(|_| link.send(&one));
        assert_eq!(link.tally.get(Count::Dropped), u64::from(REFUSALS) * 42, "{:?}", link.tally);
        link.send(&one);
        assert!(watch.packets(42).iter().all(|packet| packet.len() <= 1_500));
        link.until_way(|way| way.super_frames.bytes < 20_000);
        link.send(&one);
        assert_eq!(watch.packets(4)[0].len(), 40 + 13 * 1_448);
    });
}

/// Small frames of one device and protocol in a row go by the ring, in one call; nothing overtakes anything.
#[test]
fn by_link_small_frames_and_large_ones_leave_in_order() {
    in_namespace("by_link_small_frames_and_large_ones_leave_in_order", || {
        let mut link = Link::new(&["10.8.0.9:80", "[fd08::9]:8080"]);
        link.region.control().set_guarded(&[link.device]);
        let watch = Watch::new();
        let payload = [7; 3_000];
        // Of each frame its payload, and whether it goes over IPv6.
        let frames = [(0, false), (9, false), (500, false), (3_000, false), (1, false), (3_000, false)]
            .into_iter()
            .chain([(1, true), (0, true), (1_400, true), (2, false), (3, false)]);
        let records: Vec<_> = (0..)
            .zip(frames.clone())
            .map(|(seq, (len, v6))| {
                let mut head = match v6 {
                    false => head("198.18.0.7:1025", 0, flag::ACK),
                    true => head("[2001:2::7]:1026", 1, flag::ACK),
                };
                head.tcp.seq = Seq(seq);
                record(head, &payload[..len])
            })
            .collect();
        link.send(&records);
        let packets = watch.packets(records.len());
        assert_eq!(packets.len(), records.len(), "{:?}", link.tally);
        for ((seq, (len, v6)), packet) in (0..).zip(frames).zip(&packets) {
            let s = segment::parse(packet, packet.len() as u32).unwrap();
            assert_eq!((s.tcp.seq, s.payload.len(), packet[0] >> 4 == 6), (Seq(seq), len, v6));
            assert!(checksum_is_begun(packet), "{seq}");
        }
        assert_eq!(
            link.tally.get(Count::Calls),
            4,
            "three small, then three with a large one, three of IPv6, two"
        );
    });
}

#[test]
fn without_a_guard_or_a_neighbour_raw_ip_takes_over() {
    in_namespace("without_a_guard_or_a_neighbour_raw_ip_takes_over", || {
        let mut link = Link::new(&["10.8.0.9:80", "127.0.0.1:80"]);
        let watch = Watch::new();
        let one = [record(head("198.18.0.7:1025", 0, flag::ACK), b"hello")];
        link.send(&one);
        assert_eq!(link.choices(), [Choice::NoGuard, Choice::ThisHost]);
        assert!(checksum_holds(&watch.packets(1)[0]), "the kernel was given the whole packet");
        link.region.control().set_guarded(&[77, link.device]);
        link.send(&one);
        assert_eq!(link.choices(), [Choice::Link, Choice::ThisHost]);
        assert!(checksum_is_begun(&watch.packets(1)[0]));
        link.region.control().set_guarded(&[]);
        link.send(&one);
        assert!(checksum_holds(&watch.packets(1)[0]));
        link.region.control().set_guarded(&[shm::ANY_DEVICE]);
        link.send(&one);
        assert!(checksum_is_begun(&watch.packets(1)[0]));
        assert_eq!((link.tally.get(Count::Switches), link.tally.get(Count::Detours)), (3, 2));

        ip("neigh del 10.8.0.9 dev v0");
        link.until(Choice::NoNeighbour);
        ip("neigh replace 10.8.0.9 lladdr 02:00:00:00:00:02 dev v0");
        link.until(Choice::Link);
        ip("link set v0 down");
        link.until(Choice::NoRoute);
        ip("link set v0 up");
        ip("neigh replace 10.8.0.9 lladdr 02:00:00:00:00:02 dev v0");
        link.until(Choice::Link);
        assert_eq!(link.plan.targets.len(), 2);
    });
}

#[test]
fn another_address_of_the_next_hop_is_taken_over() {
    in_namespace("another_address_of_the_next_hop_is_taken_over", || {
        let mut link = Link::new(&["10.8.0.9:80"]);
        link.region.control().set_guarded(&[link.device]);
        link.send(&[]);
        let leads_to = |way: &Way, mac: u8| way.head()[..6] == [2, 0, 0, 0, 0, mac];
        assert!(leads_to(&link.sender.paths[0].way.unwrap(), 2));
        let start = Instant::now();
        ip("neigh replace 10.8.0.9 lladdr 02:00:00:00:00:33 dev v0");
        link.until_way(|way| leads_to(way, 0x33));
        // A gateway comes between.
        ip("neigh replace 10.8.0.254 lladdr 02:00:00:00:00:44 dev v0");
        ip("route add 10.8.0.9/32 via 10.8.0.254");
        link.until_way(|way| leads_to(way, 0x44));
        assert!(start.elapsed() < Duration::from_secs(2), "each within a second: {:?}", start.elapsed());
        assert_eq!(link.tally.get(Count::Switches), 1, "when it was guarded, and never since");
    });
}

#[test]
fn the_guard_stops_a_stray_frame_before_the_wire() {
    in_namespace("the_guard_stops_a_stray_frame_before_the_wire", || {
        let mut link = Link::new(&["10.8.0.9:80", "10.8.0.9:81"]);
        link.region.control().set_guarded(&[link.device]);
        let only_one = topology::Plan { targets: link.plan.targets[..1].to_vec(), ..link.plan.clone() };
        let fence = match crate::Fence::install(&only_one) {
            Ok((fence, None)) => fence,
            Ok((_, Some(note))) | Err(note) => return eprintln!("SKIPPED: {note}"),
        };
        let watch = Watch::new();
        // As if the sealed list had failed: port 81 is not the fence's target. A client of no range is known by the mark.
        let keep = Guard::of(
            &[("10.8.0.9:80".parse().unwrap(), 1_500), ("10.8.0.9:81".parse().unwrap(), 1_500)],
            &topology::plan::Clients::Keep,
        );
        link.guard = keep;
        link.send(&[
            record(head("198.18.0.7:1025", 1, flag::ACK), b"stray"),
            record(head("203.0.113.7:1025", 1, flag::ACK), b"stray"),
            record(head("198.18.0.7:1025", 1, flag::ACK), &[7; 20_000]),
            record(head("203.0.113.7:1025", 0, flag::ACK), b"right"),
        ]);
        let packets = watch.packets(1);
        assert_eq!(&packets[0][headers_of(&packets[0]).1..], b"right");
        assert!(link.tally.get(Count::Enobufs) >= 3, "{:?}", link.tally);
        assert_eq!(link.tally.get(Count::Segments), 1, "{:?}", link.tally);
        drop(fence);
        link.send(&[record(head("198.18.0.7:1025", 1, flag::ACK), b"now")]);
        assert_eq!(&watch.packets(1)[0][40..], b"now");
    });
}

/// Datagrams of every length reach a socket of the kernel whole, which checks lengths, checksums and fragments.
fn datagrams_arrive(name: &'static str, mtu: u32, v4: bool) {
    in_namespace(name, move || {
        ip(&format!("link set lo up mtu {mtu}"));
        let target = if v4 {
            ip("addr add 10.9.9.1/32 dev lo");
            "10.9.9.1:53"
        } else {
            add_v6("2001:db8::9");
            "[2001:db8::9]:53"
        };
        let service = std::net::UdpSocket::bind(target).unwrap();
        service.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        setsockopt(&service, sockopt::RcvBuf, &(1 << 20)).unwrap();
        let mut plan = plan(&[target]);
        plan.targets[0].protocol = Protocol::Udp;
        let mut guard = Guard::new(&plan);
        guard.look_at_routes();
        let mut engine = Sender::raw(crate::open(&plan).unwrap(), 0);
        // A route back, for a kernel that checks where senders are.
        let client = if v4 { "198.18.0.7:4000" } else { "[2001:2::7]:4000" };
        let mut buf = vec![0; 70_000];
        let mut fragments = 0;
        for len in [0usize, 1, 2, 1_232, 1_233, 1_452, 1_453, 1_472, 1_473, 8_000, 65_507] {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7 % 255) as u8).collect();
            let head = Inject { mss: 0, ..head(client, 0, 0) };
            let tally =
                send(&mut engine, &guard, &[record(Inject { tcp: TcpFields::default(), ..head }, &payload)]);
            assert_eq!(tally.get(Count::Datagrams), 1, "{len} bytes: {}", tally.get(Count::Emsgsize));
            assert_eq!(tally.get(Count::DatagramBytes), len as u64);
            assert_eq!(tally.get(Count::Segments) + tally.get(Count::DatagramPacketsRefused), 0);
            fragments += tally.get(Count::DatagramFragments);
            let (got, from) = service.recv_from(&mut buf).unwrap();
            assert!(buf[..got] == payload, "{len} bytes became {got}");
            assert_eq!(from.to_string(), client);
        }
        assert!(fragments > 40, "{fragments}");
    });
}

#[test]
fn datagrams_arrive_whole_over_ipv4() {
    datagrams_arrive("datagrams_arrive_whole_over_ipv4", 1_500, true);
}

#[test]
fn datagrams_arrive_whole_over_ipv6() {
    datagrams_arrive("datagrams_arrive_whole_over_ipv6", 1_280, false);
}
