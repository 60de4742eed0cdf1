//! The capturer against real kernel TCP, in network namespaces of the test's own. Needs root (or CAP_SYS_ADMIN); without, every
//! story says that it was skipped.
#![allow(clippy::unwrap_used)]

#[path = "../src/testing.rs"]
mod testing;

#[path = "kernel/datagrams.rs"]
mod datagrams;
#[path = "kernel/engines.rs"]
mod engines;
#[path = "kernel/rig.rs"]
mod rig;
#[path = "kernel/rings.rs"]
mod rings;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use capturer::filter::Instruction;
use capturer::sys::{Begin, PacketSocket};
use capturer::{Count, OpenError};
use flow::record::flag;
use lab::{Namespace, netlink};
use rig::{Rig, namespace, talk};
use testing::{plan, segment};
use topology::plan::CaptureEngine;

const V4: &str = "127.0.0.1:8080";
const V6: &str = "[::1]:8080";
const MAPPING: &[&str] = &["8080-10.0.3.2:8080"];

/// Bytes that differ everywhere, so that a slip in order or place shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn captured_once(change: impl FnOnce(&mut topology::Plan), server: &str) {
    let Some(ns) = namespace() else { return };
    let mut plan = plan(MAPPING);
    change(&mut plan);
    let simple = plan.capture.engine == CaptureEngine::Simple;
    let mut rig = Rig::start(ns, &plan);
    let (up, down) = (pattern(1_000_000), pattern(300_000));
    let client = talk(&rig.ns, server, &up, &down);
    let stream = rig.stop_and_read(client);
    assert_eq!(stream.bytes, up, "every byte, in its place");
    assert_eq!(stream.syns, 1, "loopback shows each packet twice, and we take one");
    assert!(stream.repeated * 10 < up.len(), "{} bytes were captured again", stream.repeated);
    assert!(stream.longest > 1_500, "super-frames are normal: the longest had {}", stream.longest);
    assert_eq!(
        rig.seen.iter().filter(|(head, _)| head.client != client).count(),
        0,
        "nothing of the server's"
    );
    assert!(simple || rig.count(Count::ChecksumUnfilled) > 0, "and so are checksums that are not filled in");
    assert_eq!(rig.count(Count::KernelDrops) + rig.count(Count::CutSegments), 0);
    assert_eq!(rig.count(Count::Segments), rig.seen.len() as u64);
}

#[test]
fn a_connection_over_loopback_is_captured_once() {
    captured_once(|_| {}, V4);
}

#[test]
fn a_connection_over_loopback_is_captured_once_in_ipv6() {
    captured_once(|_| {}, V6);
}

#[test]
fn a_connection_is_captured_once_on_any() {
    captured_once(|plan| plan.capture.interfaces = vec![], V4);
}

#[test]
fn a_connection_is_captured_once_by_the_simple_engine() {
    captured_once(|plan| plan.capture.engine = CaptureEngine::Simple, V4);
}

#[test]
fn a_connection_is_captured_once_by_the_simple_engine_on_any_in_ipv6() {
    let simple = |plan: &mut topology::Plan| {
        plan.capture.engine = CaptureEngine::Simple;
        plan.capture.interfaces = vec![];
    };
    captured_once(simple, V6);
}

#[test]
fn small_and_large_frames_of_a_connection_come_in_order() {
    let Some(ns) = namespace() else { return };
    let mut rig = Rig::start(ns, &plan(MAPPING));
    // Turns of a few bytes and of 100 KB take turns, so every other frame is in the other ring.
    let client = rig.ns.enter(|| {
        let listener = TcpListener::bind(V4).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buf = vec![0; 100_000];
            for turn in 0..100 {
                stream.read_exact(&mut buf[..turn_len(turn)]).unwrap();
                stream.write_all(b"ok").unwrap();
            }
        });
        let mut stream = TcpStream::connect(V4).unwrap();
        stream.set_nodelay(true).unwrap();
        let client = stream.local_addr().unwrap();
        let data = pattern(100_000);
        for turn in 0..100 {
            stream.write_all(&data[..turn_len(turn)]).unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
        }
        server.join().unwrap();
        client.into()
    });
    let stream = rig.stop_and_read(client);
    assert_eq!(stream.bytes.len(), (0..100).map(turn_len).sum::<usize>());
    // What the small ring's slots do not hold comes through the other one.
    let through = |small: bool| rig.seen.iter().any(|(_, payload)| (payload.len() < 1_500) == small);
    assert!(through(true) && through(false), "both rings took part");
    assert!(stream.inversions <= 2, "{} segments came before one with a lower number", stream.inversions);
}

fn turn_len(turn: usize) -> usize {
    if turn.is_multiple_of(2) { 7 } else { 100_000 }
}

#[test]
fn bare_acknowledgements_wake_nobody_and_are_captured() {
    const SENT: u32 = 100;
    let Some(ns) = namespace() else { return };
    let mut rig = Rig::start(ns, &plan(MAPPING));
    let mut send_each_2_ms = |payload: &'static [u8], captured: u64| {
        let (before, begin) = (rig.count(Count::Sleeps), Instant::now());
        rig.ns.enter(move || {
            let socket = link_socket("lo");
            for seq in 0..SENT {
                let packet = segment("10.9.0.1:4000", "10.9.0.2:8080", seq, payload);
                send(&socket, &[0; 6], 0x0800, &[], &packet);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        rig.until("all are captured", |rig| rig.count(Count::Segments) == captured);
        (rig.count(Count::Sleeps) - before, begin.elapsed().as_millis() as u64)
    };
    let (sleeps, ms) = send_each_2_ms(b"", SENT.into());
    assert!(sleeps <= ms / 10 + 5, "{sleeps} in {ms} ms");
    let (sleeps, _) = send_each_2_ms(b"bytes", 2 * u64::from(SENT));
    assert!(sleeps >= u64::from(SENT) / 2, "{sleeps}");
}

#[test]
fn frames_for_which_the_ring_has_no_room_are_reported() {
    let Some(ns) = namespace() else { return };
    let mut plan = plan(MAPPING);
    plan.capture.buffer_bytes = 256 << 10;
    let mut rig = Rig::open(ns, &plan);
    // Nobody reads yet, and the small ring has 56 slots.
    const SENT: u64 = 1_000;
    rig.ns.enter(|| {
        let socket = link_socket("lo");
        for i in 0..SENT {
            let packet = segment("10.9.0.1:4000", "10.9.0.2:8080", i as u32 * 10, b"0123456789");
            send(&socket, &[0; 6], 0x0800, &[], &packet);
        }
    });
    rig.run();
    rig.until("all frames are accounted for", |rig| {
        rig.count(Count::Segments) + rig.count(Count::KernelDrops) == SENT
    });
    assert_eq!(rig.count(Count::Segments), 56);
}

#[test]
fn tags_fragments_and_extension_headers_are_taken_for_what_they_are() {
    let Some((ns, far)) = pair() else { return };
    let mut plan = plan(MAPPING);
    plan.capture.interfaces = vec!["near".to_owned()];
    for engine in engines::engines() {
        plan.capture.engine = engine;
        let mut rig = Rig::start_in(ns.clone(), &plan);
        if engine == CaptureEngine::Pcap {
            rig.until("the device is open", |rig| rig.count(Count::Opened) > 0);
        }
        let mac = rig.ns.enter(|| mac("near"));
        far.enter(move || {
            let socket = link_socket("far");
            let data = |seq| segment("10.9.0.1:4000", "10.9.0.2:8080", seq, b"data");
            let data6 = |seq| segment("[fd09::1]:4000", "[fd09::2]:8080", seq, b"data");
            send(&socket, &mac, 0x0800, &[], &data(1));
            send(&socket, &mac, 0x0800, &[[0x81, 0, 0, 5]], &data(2));
            send(&socket, &mac, 0x0800, &[[0x88, 0xa8, 0, 5], [0x81, 0, 0, 6]], &data(3));
            send(&socket, &mac, 0x86dd, &[], &data6(4));
            send(&socket, &mac, 0x86dd, &[[0x81, 0, 0, 5]], &data6(5));
            send(&socket, &mac, 0x86dd, &[[0x81, 0, 0, 5], [0x81, 0, 0, 6]], &data6(6));
            let mut extended = data6(7);
            extended.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
            extended[5] += 8;
            extended[6] = 60;
            send(&socket, &mac, 0x86dd, &[], &extended);
            let mut fragment = data(8);
            fragment[6] = 0x20;
            send(&socket, &mac, 0x0800, &[], &fragment);
            fragment[7] = 1;
            send(&socket, &mac, 0x0800, &[], &fragment);
            // To another host's address, from the replayed range, and to a target: none of these is a client of ours.
            send(&socket, &[2, 9, 9, 9, 9, 9], 0x0800, &[], &data(9));
            send(&socket, &mac, 0x0800, &[], &segment("198.18.0.9:4000", "10.9.0.2:8080", 10, b"data"));
            send(&socket, &mac, 0x0800, &[], &segment("10.9.0.1:4000", "10.0.3.2:8080", 11, b"data"));
            send(&socket, &mac, 0x0800, &[], &data(12));
        });
        rig.until("the last one is there", |rig| rig.seen.iter().any(|(head, _)| head.tcp.seq.0 == 12));
        rig.stop();
        let mut seqs: Vec<u32> = rig.seen.iter().map(|(head, _)| head.tcp.seq.0).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, [1, 2, 3, 4, 5, 6, 7, 12], "{engine:?}");
        assert!(rig.seen.iter().all(|(_, payload)| payload == b"data"));
        assert_eq!((rig.count(Count::Fragment), rig.count(Count::Own)), (1, 0));
    }
}

#[test]
fn a_link_that_flaps_is_survived_without_spinning() {
    let Some(ns) = namespace() else { return };
    for engine in [CaptureEngine::Ring, CaptureEngine::Simple] {
        let mut plan = plan(MAPPING);
        plan.capture.engine = engine;
        let mut rig = Rig::start_in(ns.clone(), &plan);
        for _ in 0..20 {
            rig.ns.enter(|| {
                netlink::set_up("lo", false).unwrap();
                netlink::set_up("lo", true).unwrap();
            });
        }
        rig.ns.enter(|| netlink::set_up("lo", false).unwrap());
        rig.until("the link is known to be down", |rig| rig.count(Count::InterfacesDown) == 1);
        rig.ns.enter(|| netlink::set_up("lo", true).unwrap());
        let client = talk(&rig.ns, V4, b"still here", b"yes");
        let stream = rig.stop_and_read(client);
        assert_eq!(stream.bytes, b"still here");
        assert!(rig.count(Count::LinkDowns) >= 1);
        let pauses = rig.count(Count::Sleeps) + rig.count(Count::Naps);
        assert!(pauses < 2_000, "{engine:?} woke up {pauses} times for 21 flaps");
    }
}

#[test]
fn an_interface_that_goes_leaves_the_others_and_is_taken_again() {
    let Some((ns, far)) = pair() else { return };
    let mut plan = plan(MAPPING);
    plan.capture.interfaces = vec!["lo".to_owned(), "near".to_owned()];
    let mut rig = Rig::start_in(ns, &plan);
    // A device whose peer's namespace ends is gone.
    drop(far);
    rig.until("it is known to be gone", |rig| rig.count(Count::InterfacesGone) == 1);
    let client = talk(&rig.ns, V4, b"over the other", b"ok");
    rig.until("the other goes on", |rig| rig.stream(client).bytes == b"over the other");

    let again = Namespace::new("far again").unwrap();
    connect(&rig.ns, &again);
    rig.until("it is known to be back", |rig| rig.count(Count::InterfacesGone) == 0);
    let mac = rig.ns.enter(|| mac("near"));
    again.enter(move || {
        let socket = link_socket("far");
        send(&socket, &mac, 0x0800, &[], &segment("10.9.0.1:4000", "10.9.0.2:8080", 77, b"back"));
    });
    rig.until("it is captured on again", |rig| rig.seen.iter().any(|(head, _)| head.tcp.seq.0 == 77));
}

#[test]
fn a_successor_goes_on_where_the_predecessor_stopped() {
    let Some(ns) = namespace() else { return };
    let mut rig = Rig::start(ns, &plan(MAPPING));
    let mut clients = vec![talk(&rig.ns, V4, b"seen by the first", b"ok")];
    for generation in 0..5 {
        rig.until("the first bytes are there", |rig| !rig.stream(clients[generation]).bytes.is_empty());
        rig.halt();
        // Nobody reads now; the kernel does.
        clients.push(talk(&rig.ns, V4, b"seen by its successor", b"ok"));
        rig.succeed();
    }
    rig.until("all is there", |rig| clients.iter().all(|client| rig.stream(*client).fins > 0));
    rig.stop();
    for client in clients {
        let stream = rig.stream(client);
        let bytes = &stream.bytes[..];
        assert!(bytes == b"seen by the first" || bytes == b"seen by its successor", "nothing is lost");
        assert_eq!((stream.syns, stream.fins, stream.repeated), (1, 1, 0), "nothing comes twice");
    }
    assert_eq!(rig.count(Count::Segments), rig.seen.len() as u64, "each was counted once");
    assert_eq!(rig.count(Count::KernelDrops), 0);
}

#[test]
fn new_sockets_for_an_old_region_are_read_from_their_first_slot() {
    let Some(ns) = namespace() else { return };
    let mut rig = Rig::start(ns, &plan(MAPPING));
    let first = talk(&rig.ns, V4, b"seen by the first", b"ok");
    rig.until("the first bytes are there", |rig| rig.stream(first).fins > 0);
    rig.halt();
    rig.renew();
    let second = talk(&rig.ns, V4, b"seen by its successor", b"ok");
    rig.until("the next are there", |rig| rig.stream(second).fins > 0);
    rig.stop();
    assert_eq!(rig.stream(second).bytes, b"seen by its successor");
    assert_eq!(rig.count(Count::Segments), rig.seen.len() as u64, "each was counted once");
}

#[test]
fn kept_sockets_are_taken_over_by_the_same_plan_only() {
    let Some(ns) = namespace() else { return };
    let fds = |sockets: Vec<capturer::CaptureSocket>| -> Vec<OwnedFd> {
        sockets.into_iter().map(|socket| OwnedFd::from(PacketSocket::from(socket))).collect()
    };
    ns.enter(move || {
        let ours = plan(MAPPING);
        let kept = || fds(capturer::open(&ours).unwrap());
        let names = |plan: &topology::Plan| -> Vec<String> {
            (0..).map_while(|place| capturer::name(plan, place)).collect()
        };
        assert_eq!(names(&ours).len(), 3);
        assert_eq!(capturer::take_over(&ours, kept()).unwrap().len(), 3);
        let refused = |plan: &topology::Plan, kept, part: &str| {
            let said = capturer::take_over(plan, kept).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        };
        refused(&plan(&["8081-10.0.3.2:8080"]), kept(), "its filter is another plan's");
        let mut any = plan(MAPPING);
        any.capture.interfaces = vec![];
        refused(&any, kept(), "it listens on another interface");
        let mut large = plan(MAPPING);
        large.capture.buffer_bytes *= 2;
        refused(&large, kept(), "its ring is of another size");
        assert_ne!(names(&large), names(&ours));
        let closed: Vec<PacketSocket> = kept().into_iter().map(PacketSocket::from).collect();
        closed.iter().for_each(|socket| socket.close().unwrap());
        let closed = closed.into_iter().map(OwnedFd::from).collect();
        for socket in capturer::take_over(&ours, closed).unwrap() {
            assert!(PacketSocket::from(socket).is_open().unwrap(), "a capturer died while it drained");
        }
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(capturer::take_over(&ours, vec![file(), file()]).is_err());
        refused(&ours, vec![file()], "1 capture sockets");
        let mut swapped = kept();
        swapped.reverse();
        refused(&ours, swapped, "its filter is another plan's");
    });
}

#[test]
fn draining_takes_what_the_kernel_holds_and_nothing_later() {
    let Some(ns) = namespace() else { return };
    let mut rig = Rig::open(ns, &plan(MAPPING));
    let before = talk(&rig.ns, V4, &pattern(100_000), b"ok");
    rig.region.control().set_draining(true);
    rig.run();
    rig.wait_for_end();
    let after = talk(&rig.ns, V4, b"too late", b"ok");
    rig.pump();
    assert_eq!(rig.stream(before).bytes.len(), 100_000);
    assert!(rig.stream(after).bytes.is_empty());
}

#[test]
fn a_capture_that_is_closed_sees_nothing_until_it_is_opened_again() {
    for engine in [CaptureEngine::Ring, CaptureEngine::Simple] {
        let Some(ns) = namespace() else { return };
        let mut plan = plan(MAPPING);
        plan.capture.engine = engine;
        plan.restraint.cpu_milli = Some(1_000);
        let mut rig = Rig::start(ns, &plan);
        let first = talk(&rig.ns, V4, b"while it is open", b"ok");
        rig.until("it is open", |rig| rig.stream(first).fins > 0);
        rig.region.control().set_blind(true);
        rig.until("it is closed", |rig| rig.all_see(false));
        let meanwhile = talk(&rig.ns, V4, b"while it is closed", b"ok");
        rig.region.control().set_blind(false);
        rig.until("it is open again", |rig| rig.all_see(true));
        let last = talk(&rig.ns, V4, b"open once more", b"ok");
        assert_eq!(rig.stop_and_read(last).bytes, b"open once more", "{engine:?}");
        assert!(rig.stream(meanwhile).bytes.is_empty(), "{engine:?}");
    }
}

#[test]
fn nobody_changes_the_filter_of_a_capture_socket() {
    let Some(ns) = namespace() else { return };
    ns.enter(|| {
        for engine in [CaptureEngine::Ring, CaptureEngine::Simple] {
            let mut plan = plan(MAPPING);
            plan.capture.engine = engine;
            for socket in capturer::open(&plan).unwrap().into_iter().map(PacketSocket::from) {
                let before = socket.filter().unwrap();
                let everything = [Instruction { code: 6, jt: 0, jf: 0, k: u32::MAX }];
                let refused = socket.attach(&everything).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{engine:?}");
                assert_eq!(socket.filter().unwrap(), before, "{engine:?}");
            }
        }
    });
}

#[test]
fn frame_times_are_on_the_monotonic_clock() {
    let Some(ns) = namespace() else { return };
    let before = shm::monotonic_ns();
    let mut rig = Rig::start(ns, &plan(MAPPING));
    let client = talk(&rig.ns, V4, b"when", b"now");
    let _ = rig.stop_and_read(client);
    let after = shm::monotonic_ns();
    // The slack is what a stamp may lie before the ring was seen empty.
    let inside = |time_ns: u64| (before - 2_000_000..=after).contains(&time_ns);
    assert!(rig.seen.iter().all(|(head, _)| inside(head.time_ns)));
}

#[test]
fn a_wrong_interface_is_answered_with_those_that_exist() {
    let Some(ns) = namespace() else { return };
    let said = ns.enter(|| {
        let mut plan = plan(MAPPING);
        plan.capture.interfaces = vec!["eth7".to_owned()];
        match capturer::open(&plan) {
            Err(error @ OpenError::NoInterface { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(
        said,
        "there is no interface eth7 to capture on. This host has: lo. Choose with -i, or leave -i out for all of them"
    );
}

#[test]
fn sockets_handed_down_by_number_are_checked() {
    let Some(ns) = namespace() else { return };
    ns.enter(|| {
        let plan = plan(MAPPING);
        let sockets = capturer::open(&plan).unwrap();
        let numbers: Vec<i32> = sockets
            .into_iter()
            .map(|s| std::os::fd::IntoRawFd::into_raw_fd(std::os::fd::OwnedFd::from(PacketSocket::from(s))))
            .collect();
        assert!(matches!(
            capturer::inherit(&plan, &numbers[..1]),
            Err(OpenError::Sockets { wanted: 3, got: 1 })
        ));
        assert_eq!(capturer::inherit(&plan, &numbers).unwrap().len(), 3);
        let file = std::fs::File::open("/dev/null").unwrap();
        let wrong = capturer::inherit(&plan, &[file.as_raw_fd(); 3]).unwrap_err();
        assert!(wrong.to_string().contains("was handed down as a capture socket, but"), "{wrong}");
    });
}

#[test]
fn the_handshake_and_the_end_come_too() {
    let Some(ns) = namespace() else { return };
    let mut rig = Rig::start(ns, &plan(MAPPING));
    let client = talk(&rig.ns, V4, b"hi", b"ho");
    let stream = rig.stop_and_read(client);
    assert_eq!((stream.syns, stream.fins), (1, 1));
    let syn = &rig.seen.iter().find(|(head, _)| head.tcp.has(flag::SYN)).unwrap().0;
    assert!(syn.tcp.mss > 1_000 && syn.tcp.options != 0);
    assert!(rig.seen.len() >= 4, "pure acknowledgements are captured as well");
}

/// Two namespaces with a cable between them: `near` is an interface of the first, `far` of the second.
fn pair() -> Option<(std::sync::Arc<Namespace>, Namespace)> {
    let near = namespace()?;
    let far = Namespace::new("far").unwrap();
    connect(&near, &far);
    Some((near, far))
}

fn connect(near: &Namespace, far: &Namespace) {
    cable(near, far, 1_500);
    near.enter(|| netlink::add_address("near", "10.9.0.2".parse::<IpAddr>().unwrap(), 24).unwrap());
}

/// The cable alone: `near` has no address.
fn cable(near: &Namespace, far: &Namespace, mtu: u32) {
    let fd = far.fd().as_raw_fd();
    near.enter(move || {
        netlink::add_veth("near", "far", fd).unwrap();
        netlink::set_mtu("near", mtu).unwrap();
        netlink::set_up("near", true).unwrap();
    });
    far.enter(move || {
        netlink::set_mtu("far", mtu).unwrap();
        netlink::set_up("far", true).unwrap();
    });
}

/// A socket to send frames as they are.
fn link_socket(interface: &str) -> PacketSocket {
    let socket = PacketSocket::open(Begin::Link).unwrap();
    socket.bind(netlink::index(interface).unwrap()).unwrap();
    socket
}

fn send(socket: &PacketSocket, to: &[u8; 6], protocol: u16, tags: &[[u8; 4]], packet: &[u8]) {
    let frame = [&to[..], &[2, 0, 0, 0, 0, 1], &tags.concat(), &protocol.to_be_bytes(), packet].concat();
    nix::unistd::write(socket, &frame).unwrap();
}

fn mac(interface: &str) -> [u8; 6] {
    let all = pnet_datalink::interfaces();
    let mac = all.into_iter().find(|i| i.name == interface).and_then(|i| i.mac).unwrap();
    mac.octets()
}

/// Used by the rig.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server's address as given in these stories.
pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
