//! What the tests of this crate share: plans, regions, packets, namespaces.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use flow::emit::{MAX_HEADERS, emit};
use flow::record::flag;
use flow::{Endpoint, Seq, TcpFields};
use shm::{Region, Spec};
use topology::Plan;
use topology::plan::{
    CaptureEngine, CapturePlan, Clients, Join, Limits, Mapping, OnGap, Protocol, ReplayPlan, Rings, Rtt,
    Seeds, Target,
};

/// A plan with these mappings (`[udp:][IP:]PORT-TARGET:PORT`) and the ranges 198.18.0.0/15 and 2001:2::/48 for replayed clients.
pub(crate) fn plan(mappings: &[&str]) -> Plan {
    let parse = |(text, target): (&&str, u16)| {
        let (protocol, text) =
            text.strip_prefix("udp:").map_or((Protocol::Tcp, *text), |text| (Protocol::Udp, text));
        let (online, addr) = text.split_once('-').expect("a mapping has a dash");
        let (online_ip, online_port) = match online.parse::<SocketAddr>() {
            Ok(addr) => (Some(addr.ip()), addr.port()),
            Err(_) => (None, online.parse().expect("a port")),
        };
        (
            Mapping { online_ip, online_port, target, protocol },
            Target { addr: addr.parse().expect("a target"), mtu: 1500, protocol },
        )
    };
    let (mappings, targets) = mappings.iter().zip(0..).map(parse).unzip();
    Plan {
        name: "test".to_owned(),
        instance: 1,
        format: 0,
        seeds: Seeds { shard: 11, sample: 12, endpoint: 13, isn: 14, table: 15 },
        mappings,
        targets,
        clients: Clients::Pool {
            v4: Some("198.18.0.0/15".parse().expect("a range")),
            v6: Some("2001:2::/48".parse().expect("a range")),
            chosen: true,
        },
        intercepts: vec![],
        key: None,
        capture: CapturePlan {
            engine: CaptureEngine::Ring,
            interfaces: vec!["lo".to_owned()],
            buffer_bytes: 16 << 20,
            promiscuous: false,
        },
        copies_milli: 1_000,
        percent_ppm: 1_000_000,
        shards: 2,
        cores: vec![],
        limits: Limits { sessions_per_shard: 16, chunks_per_shard: 16, held_per_session: 1 << 16 },
        rings: Rings { capture: 8 << 20, inject: 1 << 12, returns: 1 << 12 },
        replay: ReplayPlan {
            wait: true,
            rtt: Rtt::None,
            join: Join::Boundary,
            on_gap: OnGap::Skip,
            idle_s: 60,
            drain_ms: 1_000,
        },
    }
}

/// A region for a plan as this many processes would see it one after the other: each may take the rings' ends once. Its name is gone
/// at once, the memory stays.
pub(crate) fn regions(plan: &Plan, processes: usize) -> Vec<&'static Region> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("capturer-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let spec = Spec {
        shards: plan.shards,
        capture_ring: plan.rings.capture,
        inject_ring: plan.rings.inject,
        return_ring: plan.rings.returns,
        arena: 4_096,
    };
    let region = Region::create(&name, &spec, &plan.to_bytes(), plan.instance).expect("a small region fits");
    let mut views = vec![region];
    views.extend((1..processes).map(|_| Region::attach(&name).expect("it was just made")));
    Region::remove(&name).expect("it is ours");
    region.control().set_percent_ppm(plan.percent_ppm);
    region.control().set_copies_milli(plan.copies_milli);
    views
}

/// A data segment from its IP header on.
pub(crate) fn segment(src: &str, dst: &str, seq: u32, payload: &[u8]) -> Vec<u8> {
    let parse = |text: &str| Endpoint::from(text.parse::<SocketAddr>().expect("an address with port"));
    let tcp = TcpFields { seq: Seq(seq), flags: flag::ACK, ..TcpFields::default() };
    let mut buf = [0; MAX_HEADERS];
    let len = emit(&mut buf, parse(src), parse(dst), &tcp, &[payload], 0);
    [&buf[..len], payload].concat()
}
