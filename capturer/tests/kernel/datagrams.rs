//! Datagrams that the kernel carries several in one packet: each comes up once, with its bytes, or what cannot be taken apart is
//! named.

use std::net::{IpAddr, UdpSocket};

use capturer::Count;
use flow::Endpoint;
use nix::sys::socket::{setsockopt, sockopt};
use topology::Plan;
use topology::plan::CaptureEngine;

use super::engines::engines;
use super::rig::Rig;
use super::{Namespace, address, netlink, pair, pattern};
use crate::testing::plan;

/// What the near end is asked at, over both families.
const SERVICES: [&str; 2] = ["10.9.0.2:53", "[fd09::2]:53"];

fn with_udp(engine: CaptureEngine) -> Plan {
    let mut plan = plan(&["8080-10.0.3.2:8080", "udp:53-10.0.3.2:53"]);
    plan.capture.engine = engine;
    plan.capture.interfaces = vec!["near".to_owned()];
    plan
}

/// A rig at the near end of a cable whose two ends can speak over both families.
fn rig(engine: CaptureEngine) -> Option<(Rig, Namespace)> {
    let (near, far) = pair()?;
    for (ns, device, ips) in [(&*near, "near", &["fd09::2"][..]), (&far, "far", &["10.9.0.1", "fd09::1"][..])]
    {
        ns.set_sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), "0").unwrap();
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        ns.enter(move || {
            for ip in ips {
                netlink::add_address(device, ip, if ip.is_ipv4() { 24 } else { 64 }).unwrap();
            }
        });
    }
    let mut rig = Rig::start(near, &with_udp(engine));
    if engine == CaptureEngine::Pcap {
        rig.until("the device is open", |rig| rig.count(Count::Opened) > 0);
    }
    Some((rig, far))
}

/// Hands `payload` over in one call, to be sent in datagrams of `each` bytes; returns the sender.
fn send_in_one(far: &Namespace, to: &str, payload: &[u8], each: u16) -> Endpoint {
    let (to, payload) = (address(to), payload.to_vec());
    far.enter(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(to).unwrap();
        setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(each)).unwrap();
        assert_eq!(socket.send(&payload).unwrap(), payload.len());
        socket.local_addr().unwrap().into()
    })
}

fn payloads(rig: &Rig, client: Endpoint) -> Vec<&[u8]> {
    rig.seen.iter().filter(|(head, _)| head.client == client).map(|(_, payload)| &payload[..]).collect()
}

#[test]
fn what_a_sender_hands_over_in_one_comes_up_as_the_datagrams_it_is() {
    let Some((mut rig, far)) = rig(CaptureEngine::Ring) else { return };
    // In both rings; to the byte as long as several, and one that is not cut at all; as many as the kernel carries in one.
    let cases: [(usize, u16); 7] =
        [(10_500, 1_000), (350, 100), (2_000, 1_000), (700, 1_200), (1, 1_000), (62_000, 1_000), (64, 1)];
    let mut frames = 0;
    for service in SERVICES {
        for (len, each) in cases {
            let bytes = pattern(len);
            let client = send_in_one(&far, service, &bytes, each);
            let wanted: Vec<&[u8]> = bytes.chunks(each.into()).collect();
            rig.until("each is there", |rig| payloads(rig, client).len() >= wanted.len());
            assert_eq!(payloads(&rig, client), wanted, "{len} bytes in parts of {each} to {service}");
            frames += 1;
        }
    }
    rig.stop();
    assert_eq!(rig.count(Count::Datagrams), rig.seen.len() as u64);
    assert_eq!(rig.count(Count::DatagramsUnsplit) + rig.count(Count::DatagramsCut), 0);
    assert_eq!(rig.count(Count::Frames), frames, "the kernel carried each call's datagrams in one packet");
}

#[test]
fn an_engine_that_is_not_told_names_what_it_cannot_take_apart() {
    for engine in engines().into_iter().filter(|engine| *engine != CaptureEngine::Ring) {
        let Some((mut rig, far)) = rig(engine) else { return };
        for service in SERVICES {
            send_in_one(&far, service, &pattern(10_500), 1_000);
            let one = pattern(1_400);
            let client = send_in_one(&far, service, &one, 1_410);
            rig.until("the single one is there", |rig| payloads(rig, client) == [&one[..]]);
        }
        rig.stop();
        assert_eq!((rig.seen.len(), rig.count(Count::Datagrams)), (2, 2), "{engine:?}");
        assert_eq!(rig.count(Count::DatagramsUnsplit), 2, "{engine:?}");
    }
}
