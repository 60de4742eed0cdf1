//! The engines beside the ring: libpcap and AF_XDP; and what `-F`, `--net` and `--not-net` leave out with each.

use capturer::{Count, OpenError};
use topology::Plan;
use topology::plan::CaptureEngine;

use super::rig::{Rig, namespace, talk};
use super::{MAPPING, V4, V6, link_socket, mac, netlink, pair, pattern, send};
use crate::testing::{plan, segment};

/// Whether libpcap is on this host; says so where it is not.
pub(crate) fn libpcap_is_there() -> bool {
    libpcap::version().inspect_err(|error| eprintln!("SKIPPED: {error}")).is_ok()
}

/// The engines that can be tested here.
pub(crate) fn engines() -> Vec<CaptureEngine> {
    let mut engines = vec![CaptureEngine::Ring, CaptureEngine::Simple];
    if libpcap_is_there() {
        engines.push(CaptureEngine::Pcap);
    }
    engines
}

fn with_pcap(interfaces: &[&str]) -> Plan {
    let mut plan = plan(MAPPING);
    plan.capture.engine = CaptureEngine::Pcap;
    plan.capture.interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
    plan
}

/// A rig whose role has opened its devices.
fn opened(ns: std::sync::Arc<lab::Namespace>, plan: &Plan) -> Rig {
    let mut rig = Rig::start(ns, plan);
    rig.until("the devices are open", |rig| rig.count(Count::Opened) > 0);
    rig
}

fn captured_once(interfaces: &[&str], server: &str) {
    let Some(ns) = namespace().filter(|_| libpcap_is_there()) else { return };
    let mut rig = opened(ns, &with_pcap(interfaces));
    let (up, down) = (pattern(1_000_000), pattern(300_000));
    let client = talk(&rig.ns, server, &up, &down);
    rig.until("the end is there", |rig| rig.stream(client).fins > 0);
    let stream = rig.stop_and_read(client);
    assert_eq!(stream.bytes, up, "every byte, in its place");
    assert_eq!((stream.syns, stream.fins, stream.inversions), (1, 1, 0));
    assert!(stream.repeated * 10 < up.len(), "{} bytes were captured again", stream.repeated);
    assert!(stream.longest > 1_500, "super-frames are normal: the longest had {}", stream.longest);
    assert!(rig.seen.iter().all(|(head, _)| head.client == client), "nothing of the server's");
    assert_eq!(rig.count(Count::KernelDrops) + rig.count(Count::CutSegments), 0);
}

#[test]
fn a_connection_is_captured_once_by_libpcap() {
    captured_once(&["lo"], V4);
}

#[test]
fn a_connection_is_captured_once_by_libpcap_on_any_in_ipv6() {
    captured_once(&[], V6);
}

#[test]
fn a_device_that_was_down_is_captured_on_again_by_libpcap() {
    let Some(ns) = namespace().filter(|_| libpcap_is_there()) else { return };
    let mut rig = opened(ns, &with_pcap(&["lo"]));
    rig.ns.enter(|| netlink::set_up("lo", false).unwrap());
    rig.until("it is known to be down", |rig| rig.count(Count::InterfacesDown) == 1);
    rig.ns.enter(|| netlink::set_up("lo", true).unwrap());
    rig.until("it is up again", |rig| rig.count(Count::InterfacesDown) == 0);
    let client = talk(&rig.ns, V4, b"still here", b"yes");
    rig.until("it is captured on again", |rig| rig.stream(client).fins > 0);
    assert_eq!(rig.stop_and_read(client).bytes, b"still here");
    assert_eq!(rig.count(Count::LinkDowns), 1);
    let pauses = rig.count(Count::Sleeps) + rig.count(Count::Naps);
    assert!(pauses < 3_000, "it woke up {pauses} times");
}

#[test]
fn a_device_that_went_is_opened_again_by_libpcap() {
    let Some((ns, far)) = pair().filter(|_| libpcap_is_there()) else { return };
    let mut rig = Rig::start(ns, &with_pcap(&["lo", "near"]));
    rig.until("both are open", |rig| rig.count(Count::Opened) == 2);
    drop(far);
    rig.until("it is known to be gone", |rig| rig.count(Count::InterfacesGone) == 1);
    let client = talk(&rig.ns, V4, b"over the other", b"ok");
    rig.until("the other goes on", |rig| rig.stream(client).bytes == b"over the other");
    let again = lab::Namespace::new("far again").unwrap();
    super::connect(&rig.ns, &again);
    rig.until("it is open again", |rig| {
        rig.count(Count::InterfacesGone) == 0 && rig.count(Count::Opened) == 3
    });
    let mac = rig.ns.enter(|| mac("near"));
    again.enter(move || {
        let socket = link_socket("far");
        send(&socket, &mac, 0x0800, &[], &segment("10.9.0.1:4000", "10.9.0.2:8080", 77, b"back"));
    });
    rig.until("it is captured on again", |rig| rig.seen.iter().any(|(head, _)| head.tcp.seq.0 == 77));
}

#[test]
fn a_successor_opens_its_own_device_and_that_is_counted() {
    let Some(ns) = namespace().filter(|_| libpcap_is_there()) else { return };
    let mut rig = opened(ns, &with_pcap(&["lo"]));
    let first = talk(&rig.ns, V4, b"seen by the first", b"ok");
    rig.until("the first bytes are there", |rig| rig.stream(first).fins > 0);
    rig.halt();
    rig.succeed();
    rig.until("the successor has opened it", |rig| rig.count(Count::Opened) == 2);
    let second = talk(&rig.ns, V4, b"seen by its successor", b"ok");
    rig.until("the next are there", |rig| rig.stream(second).fins > 0);
    rig.stop();
    assert_eq!(rig.count(Count::Segments), rig.seen.len() as u64, "each was counted once");
}

#[test]
fn libpcaps_device_is_tried_out_before_the_start() {
    let Some(ns) = namespace().filter(|_| libpcap_is_there()) else { return };
    ns.enter(|| {
        assert!(capturer::open(&with_pcap(&["lo"])).unwrap().is_empty(), "nothing to hand down");
        let mut wrong = with_pcap(&["lo"]);
        wrong.capture.filter.expression = Some("wlan type mgt".to_owned());
        let said = capturer::open(&wrong).unwrap_err().to_string();
        assert!(said.contains("lo with libpcap failed") && said.contains("802.11"), "{said}");
    });
}

#[test]
fn what_an_expression_and_ranges_leave_out_stays_out_with_every_engine() {
    let Some((ns, far)) = pair() else { return };
    if !libpcap_is_there() {
        return;
    }
    // The ring's frames begin elsewhere where datagrams are captured beside connections.
    let and_datagrams = [MAPPING, &["udp:53-10.0.3.2:53"]].concat();
    let cases = engines().into_iter().map(|engine| (engine, MAPPING));
    for (engine, mapping) in cases.chain([(CaptureEngine::Ring, &and_datagrams[..])]) {
        let mut plan = plan(mapping);
        plan.capture.engine = engine;
        plan.capture.interfaces = vec!["near".to_owned()];
        plan.capture.filter.expression = Some("not tcp src port 4001".to_owned());
        plan.capture.filter.inside = vec!["10.9.0.0/24".parse().unwrap()];
        plan.capture.filter.outside = vec!["10.9.0.9/32".parse().unwrap()];
        capturer::expression::put_in(&mut plan).unwrap();
        let mut rig = Rig::start(ns.clone(), &plan);
        if engine == CaptureEngine::Pcap {
            rig.until("the device is open", |rig| rig.count(Count::Opened) > 0);
        }
        let mac = rig.ns.enter(|| mac("near"));
        far.enter(move || {
            let socket = link_socket("far");
            let from = |client: &str, seq| segment(client, "10.9.0.2:8080", seq, b"data");
            let tags = [[0x88, 0xa8, 0, 5], [0x81, 0, 0, 6]];
            for (client, seq) in [
                ("10.9.0.1:4000", 1),
                ("10.9.0.1:4001", 2),
                ("10.9.0.9:4000", 3),
                ("10.8.0.1:4000", 4),
                ("10.9.0.1:4002", 5),
            ] {
                send(&socket, &mac, 0x0800, &[], &from(client, seq));
                send(&socket, &mac, 0x0800, &tags, &from(client, seq + 10));
            }
            send(&socket, &mac, 0x0800, &[], &from("10.9.0.1:4000", 99));
        });
        rig.until("the last one is there", |rig| rig.seen.iter().any(|(head, _)| head.tcp.seq.0 == 99));
        rig.stop();
        let mut seqs: Vec<u32> = rig.seen.iter().map(|(head, _)| head.tcp.seq.0).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, [1, 5, 11, 15, 99], "{engine:?}");
    }
}

#[test]
fn without_the_feature_the_xdp_engine_says_how_to_build_it() {
    if cfg!(feature = "xdp") {
        return;
    }
    let Some(ns) = namespace() else { return };
    ns.enter(|| {
        let mut plan = plan(MAPPING);
        plan.capture.engine = CaptureEngine::Xdp;
        match capturer::open(&plan) {
            Err(error @ OpenError::NoXdp) => assert!(error.to_string().contains("--features xdp"), "{error}"),
            other => panic!("{other:?}"),
        }
    });
}

#[cfg(feature = "xdp")]
mod xdp {
    use std::os::fd::OwnedFd;

    use capturer::sys::PacketSocket;

    use super::*;

    fn with_xdp() -> Plan {
        let mut plan = plan(MAPPING);
        plan.capture.engine = CaptureEngine::Xdp;
        plan.capture.interfaces = vec!["near".to_owned()];
        plan
    }

    /// A pair whose near end has no address, as the interface of a mirror port.
    fn mirror(mtu: u32) -> Option<(std::sync::Arc<lab::Namespace>, lab::Namespace)> {
        let near = namespace()?;
        let far = lab::Namespace::new("far").unwrap();
        super::super::cable(&near, &far, mtu);
        Some((near, far))
    }

    fn mirrored(far: &lab::Namespace, seqs: std::ops::Range<u32>) {
        far.enter(move || {
            let socket = link_socket("far");
            for seq in seqs {
                // To another host: what a mirror port shows.
                let packet = segment("10.9.0.1:4000", "10.9.0.2:8080", seq * 10, &[seq as u8; 1_000]);
                let tags: &[[u8; 4]] = if seq % 2 == 0 { &[] } else { &[[0x81, 0, 0, 5]] };
                send(&socket, &[2, 9, 9, 9, 9, 9], 0x0800, tags, &packet);
                let answer = segment("10.9.0.2:8080", "10.9.0.1:4000", seq * 10, b"an answer");
                send(&socket, &[2, 9, 9, 9, 9, 8], 0x0800, &[], &answer);
            }
        });
    }

    #[test]
    fn frames_of_a_mirror_port_are_taken_in_front_of_the_stack() {
        let Some((ns, far)) = mirror(1_500) else { return };
        let mut rig = Rig::start(ns, &with_xdp());
        mirrored(&far, 0..500);
        rig.until("all are there", |rig| rig.seen.len() == 500);
        assert!(rig.seen.iter().all(|(head, payload)| payload[..] == [(head.tcp.seq.0 / 10) as u8; 1_000]));
        assert_eq!(rig.count(Count::KernelDrops), 0);
        assert!(rig.count(Count::Frames) >= 1_000, "both directions came, one is of use");

        // Replaced, twice: the kernel goes on meanwhile, and nothing is taken again.
        for round in 1..3 {
            rig.halt();
            mirrored(&far, 500 * round..500 * round + 400);
            rig.succeed();
            mirrored(&far, 500 * round + 400..500 * (round + 1));
            let all = 500 * (round as usize + 1);
            rig.until("it goes on", |rig| rig.seen.len() == all);
        }
        rig.stop();
        let mut seqs: Vec<u32> = rig.seen.iter().map(|(head, _)| head.tcp.seq.0 / 10).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, (0..1_500).collect::<Vec<u32>>());
        assert_eq!(rig.count(Count::Segments), 1_500);
        assert_eq!(rig.count(Count::KernelDrops) + rig.count(Count::UnseenMs), 0);
    }

    /// More frames than there are chunks, so that every one of them comes back.
    #[test]
    fn chunks_come_round() {
        let Some((ns, far)) = mirror(1_500) else { return };
        let mut plan = with_xdp();
        plan.capture.buffer_bytes = 1;
        let mut rig = Rig::start(ns, &plan);
        for round in 0..20 {
            mirrored(&far, 200 * round..200 * (round + 1));
            rig.until("all are there", |rig| rig.seen.len() as u32 == 200 * (round + 1));
            if round % 5 == 4 {
                rig.halt();
                rig.succeed();
            }
        }
        assert!(rig.seen.iter().all(|(head, payload)| payload[..] == [(head.tcp.seq.0 / 10) as u8; 1_000]));
        assert_eq!(rig.count(Count::KernelDrops), 0);
    }

    #[test]
    fn kept_sockets_are_taken_over_on_their_own_interface_only() {
        let Some((ns, _far)) = mirror(1_500) else { return };
        let fds = |sockets: Vec<capturer::CaptureSocket>| -> Vec<OwnedFd> {
            sockets.into_iter().map(|socket| OwnedFd::from(PacketSocket::from(socket))).collect()
        };
        ns.enter(move || {
            let refused = |plan: &Plan, kept, part: &str| {
                let said = capturer::take_over(plan, kept).unwrap_err().to_string();
                assert!(said.contains(part), "{said}");
            };
            let mut lo = with_xdp();
            lo.capture.interfaces = vec!["lo".to_owned()];
            refused(&lo, fds(capturer::open(&with_xdp()).unwrap()), "its program is on another interface");
            let mut without_queues = fds(capturer::open(&with_xdp()).unwrap());
            without_queues.truncate(3);
            refused(&with_xdp(), without_queues, "3 capture sockets were handed down");
            let kept = fds(capturer::open(&with_xdp()).unwrap());
            let count = kept.len();
            assert!(capturer::name(&with_xdp(), count - 1).is_some());
            assert_eq!(capturer::take_over(&with_xdp(), kept).unwrap().len(), count);
        });
    }

    #[test]
    fn an_expression_decides_in_user_space() {
        let Some((ns, far)) = mirror(1_500) else { return };
        if !libpcap_is_there() {
            return;
        }
        let mut plan = with_xdp();
        plan.capture.filter.expression = Some("tcp[4:4] >= 1000".to_owned());
        capturer::expression::put_in(&mut plan).unwrap();
        let mut rig = Rig::start(ns, &plan);
        mirrored(&far, 0..200);
        rig.until("those meant are there", |rig| rig.seen.len() == 100);
        rig.stop();
        assert_eq!(rig.count(Count::LeftOut), 100);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        // Too long for the driver's mode of this device: the program runs in front of the stack instead, and a chunk holds
        // no frame of 8 KB.
        let Some((ns, far)) = mirror(9_000) else { return };
        let mut rig = Rig::start(ns, &with_xdp());
        far.enter(|| {
            let socket = link_socket("far");
            for seq in 0..50 {
                let packet = segment("10.9.0.1:4000", "10.9.0.2:8080", seq, &[1; 8_000]);
                send(&socket, &[2, 9, 9, 9, 9, 9], 0x0800, &[], &packet);
            }
        });
        rig.until("they are reported", |rig| rig.count(Count::KernelDrops) == 50);
        mirrored(&far, 0..10);
        rig.until("others come", |rig| rig.seen.len() == 10);
    }

    #[test]
    fn the_program_goes_with_its_last_descriptor() {
        let Some((ns, _far)) = mirror(1_500) else { return };
        ns.enter(|| {
            let first = capturer::open(&with_xdp()).unwrap();
            let busy = capturer::open(&with_xdp()).unwrap_err().to_string();
            assert!(busy.contains("attaching the program to near failed"), "{busy}");
            drop(first);
            assert!(capturer::open(&with_xdp()).is_ok(), "nothing of the first is left");
        });
    }

    #[test]
    fn an_interface_that_carries_the_hosts_own_traffic_is_refused() {
        let Some((ns, _far)) = pair() else { return };
        ns.enter(|| {
            let said = |plan: &Plan| capturer::open(plan).unwrap_err().to_string();
            assert!(said(&with_xdp()).contains("it has the address 10.9.0.2"), "{}", said(&with_xdp()));
            let mut lo = with_xdp();
            lo.capture.interfaces = vec!["lo".to_owned()];
            assert!(said(&lo).contains("loopback"), "{}", said(&lo));
            let mut forced = with_xdp();
            forced.capture.xdp_force = true;
            assert!(capturer::open(&forced).is_ok());
        });
    }
}
