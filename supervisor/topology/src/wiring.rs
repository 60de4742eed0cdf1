//! The one page of wiring: which processes a plan becomes, how they are linked, and where each runs.
//!
//! ```text
//! kernel ─▶ capturer ─capture[k]─▶ shard k ─inject[k]─▶ injector ─▶ targets
//!                                     ▲                    │
//!                                     └─returns[k]── receiver (a thread of the injector) ◀─ intercepts
//! ```

use std::fmt;

use shm::{Link, Role, Spec};

use crate::Plan;

/// A process of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    /// Takes frames from the kernel.
    Capturer,
    /// Sends segments; its second thread takes returned headers from the intercepts.
    Injector,
    /// Shard worker k.
    Shard(u16),
}

impl Process {
    /// Its block in the region.
    pub const fn role(self) -> Role {
        match self {
            Process::Capturer => Role::Capturer,
            Process::Injector => Role::Injector,
            Process::Shard(shard) => Role::Shard(shard),
        }
    }

    /// What it is, without a number; `role` in `stats --json`.
    pub const fn kind(self) -> &'static str {
        match self {
            Process::Capturer => "capturer",
            Process::Injector => "injector",
            Process::Shard(_) => "shard-worker",
        }
    }

    /// Its number among its kind.
    pub const fn index(self) -> u16 {
        match self {
            Process::Capturer | Process::Injector => 0,
            Process::Shard(shard) => shard,
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Process::Shard(shard) => write!(f, "shard-worker {shard}"),
            other => f.write_str(other.kind()),
        }
    }
}

/// A link with its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// The ring.
    pub link: Link,
    /// Who writes.
    pub from: Role,
    /// Who reads.
    pub to: Role,
}

/// Every process, in the order of their start: consumers before the producer that would fill their rings.
pub fn processes(plan: &Plan) -> Vec<Process> {
    if plan.records_only() {
        return vec![Process::Capturer];
    }
    let shards = (0..plan.shards).map(Process::Shard);
    [Process::Injector].into_iter().chain(shards).chain([Process::Capturer]).collect()
}

/// Every link.
pub fn wires(plan: &Plan) -> Vec<Wire> {
    (0..plan.shards)
        .flat_map(|k| {
            [
                Wire { link: Link::Capture(k), from: Role::Capturer, to: Role::Shard(k) },
                Wire { link: Link::Inject(k), from: Role::Shard(k), to: Role::Injector },
                Wire { link: Link::Returns(k), from: Role::Receiver, to: Role::Shard(k) },
            ]
        })
        .collect()
}

/// The links that a process reads.
pub fn inputs(plan: &Plan, process: Process) -> Vec<Link> {
    wires(plan).into_iter().filter(|wire| wire.to == process.role()).map(|wire| wire.link).collect()
}

/// The region that the plan needs. `arena_bytes` says how large the arena of one shard is.
pub fn region_spec(plan: &Plan, arena_bytes: fn(&Plan) -> u64) -> Spec {
    Spec {
        shards: plan.shards,
        capture_ring: plan.rings.capture,
        inject_ring: plan.rings.inject,
        return_ring: plan.rings.returns,
        arena: arena_bytes(plan),
    }
}

/// The core that a process is pinned to; none where the plan pins nothing.
pub fn core(plan: &Plan, process: Process) -> Option<u16> {
    let position = match process {
        Process::Capturer => 0,
        Process::Injector => 1,
        Process::Shard(shard) => 2 + usize::from(shard),
    };
    plan.cores.get(position).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Key, Options, Place};
    use crate::planner::{Facts, plan_from};

    fn plan() -> Plan {
        let mut options = Options::default();
        for (key, text) in [
            (Key::Map, "80-10.0.3.2:8080"),
            (Key::Intercept, "127.0.0.1"),
            (Key::Shards, "3"),
            (Key::Cores, "1-5"),
        ] {
            options.give(key, text, Place::CommandLine);
        }
        let facts = Facts {
            cores: (0..8).collect(),
            host_id: 1,
            random: [0; 6],
            key: None,
            arena_bytes: |sessions, chunks| u64::from(sessions) * 448 + u64::from(chunks) * 1024,
            format: 0,
        };
        plan_from(&options, &facts).unwrap()
    }

    #[test]
    fn every_ring_has_one_writer_and_one_reader() {
        let wires = wires(&plan());
        assert_eq!(wires.len(), 9);
        for wire in &wires {
            assert_eq!(wires.iter().filter(|other| other.link == wire.link).count(), 1);
            assert_ne!(wire.from, wire.to);
        }
        assert_eq!(inputs(&plan(), Process::Shard(1)), [Link::Capture(1), Link::Returns(1)]);
        assert_eq!(inputs(&plan(), Process::Injector).len(), 3);
        assert!(inputs(&plan(), Process::Capturer).is_empty());
    }

    #[test]
    fn the_capturer_starts_last_and_cores_go_by_role() {
        let plan = plan();
        assert_eq!(processes(&plan).last(), Some(&Process::Capturer));
        assert_eq!(core(&plan, Process::Capturer), Some(1));
        assert_eq!(core(&plan, Process::Injector), Some(2));
        assert_eq!(core(&plan, Process::Shard(2)), Some(5));
        assert_eq!(Process::Shard(2).to_string(), "shard-worker 2");
    }
}
