//! What the tests of this crate share: a plan, ring records, a network namespace of one's own.

use std::process::Command;

use flow::Inject;
use nix::sched::{CloneFlags, unshare};
use topology::Plan;
use topology::plan::{
    CaptureEngine, CapturePlan, Clients, Join, Limits, Mapping, ReplayPlan, Rings, Rtt, Seeds, Target,
};
use zerocopy::IntoBytes;

/// A plan with these targets and the default pools.
pub(crate) fn plan(targets: &[&str]) -> Plan {
    Plan {
        name: "test".to_owned(),
        instance: 7,
        seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
        mappings: vec![Mapping { online_ip: None, online_port: 80, target: 0 }],
        targets: targets.iter().map(|t| Target { addr: t.parse().unwrap(), mtu: 1_500 }).collect(),
        clients: Clients::Pool {
            v4: Some("198.18.0.0/15".parse().unwrap()),
            v6: Some("2001:2::/48".parse().unwrap()),
            chosen: false,
        },
        intercepts: Vec::new(),
        key: None,
        capture: CapturePlan {
            engine: CaptureEngine::Ring,
            interfaces: Vec::new(),
            buffer_bytes: 1 << 20,
            promiscuous: false,
        },
        copies_milli: 1_000,
        percent_ppm: 1_000_000,
        shards: 2,
        cores: Vec::new(),
        limits: Limits { sessions_per_shard: 64, chunks_per_shard: 64, held_per_session: 1 << 16 },
        rings: Rings { capture: 1 << 18, inject: 1 << 18, returns: 1 << 18 },
        replay: ReplayPlan { wait: true, rtt: Rtt::None, join: Join::Boundary, idle_s: 60, drain_ms: 1_000 },
    }
}

/// A ring record: the head with its payload length set, then the payload.
pub(crate) fn record(head: Inject, payload: &[u8]) -> Vec<u8> {
    let head = Inject { payload_len: payload.len() as u32, ..head };
    [head.as_bytes(), payload].concat()
}

/// Runs `story` in a network namespace of its own, on a thread of its own; says so loudly where that is not allowed.
pub(crate) fn in_namespace(name: &str, story: impl FnOnce() + Send + 'static) {
    let told = name.to_owned();
    let thread = std::thread::Builder::new().name(told.clone()).spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            return eprintln!("SKIPPED {told}: a network namespace needs root here ({e})");
        }
        story();
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip ARGUMENTS` in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}
