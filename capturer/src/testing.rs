//! What the tests of this crate share: plans, regions, packets, namespaces.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use flow::emit::{MAX_HEADERS, emit};
use flow::record::flag;
use flow::{Endpoint, Seq, TcpFields};
use shm::Region;
use topology::Plan;
use topology::plan::{CapturePlan, Rings};

/// A plan with these mappings (`[IP:]PORT-TARGET:PORT`), two shards and large capture rings.
pub(crate) fn plan(mappings: &[&str]) -> Plan {
    let small = Plan::small(mappings);
    Plan {
        shards: 2,
        capture: CapturePlan { buffer_bytes: 16 << 20, ..small.capture },
        rings: Rings { capture: 8 << 20, ..small.rings },
        ..small
    }
}

/// A region for a plan as this many processes would see it one after the other: each may take the rings' ends once. Its name is gone
/// at once, the memory stays.
pub(crate) fn regions(plan: &Plan, processes: usize) -> Vec<&'static Region> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("capturer-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let spec = topology::wiring::region_spec(plan, |_| 4_096);
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
    flagged(flag::ACK, src, dst, seq, payload)
}

/// The same with other flags.
pub(crate) fn flagged(flags: u16, src: &str, dst: &str, seq: u32, payload: &[u8]) -> Vec<u8> {
    let parse = |text: &str| Endpoint::from(text.parse::<SocketAddr>().expect("an address with port"));
    let tcp = TcpFields { seq: Seq(seq), flags, ..TcpFields::default() };
    let mut buf = [0; MAX_HEADERS];
    let len = emit(&mut buf, parse(src), parse(dst), &tcp, &[payload], 0);
    [&buf[..len], payload].concat()
}
