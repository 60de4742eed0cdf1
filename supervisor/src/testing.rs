//! What unit tests share.

use topology::planner::Facts;
use topology::{Key, Options, Place, Plan, plan_from};

/// The plan of a small run of this name, with options added; instance and seeds differ from call to call.
pub(crate) fn plan(name: &str, more: &[(Key, &str)]) -> Plan {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let usual = [
        (Key::Name, name),
        (Key::Map, "80-10.0.3.2:8080"),
        (Key::Intercept, "127.0.0.1"),
        (Key::Shards, "2"),
        (Key::MaxSessions, "64"),
    ];
    let mut options = Options::default();
    let given = |key: Key| more.iter().any(|(other, _)| *other == key);
    for (key, text) in usual.iter().filter(|(key, _)| !given(*key)).chain(more) {
        options.give(*key, text, Place::CommandLine);
    }
    let facts = Facts {
        cores: vec![0, 1],
        host_id: 1,
        random: [NEXT.fetch_add(1, Relaxed); 6],
        key: None,
        arena_bytes: shard_worker::session_bytes,
        format: crate::format::of_this_program(),
    };
    plan_from(&options, &facts).unwrap()
}
