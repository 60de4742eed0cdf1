//! The plan as the session machine's configuration.

use session::{
    Clients, Config, Datagrams, Diary, Join, Limits, OnGap, Pace, Rtt, Seeds, Table, TargetConfig, Times,
};
use topology::Plan;
use topology::plan::{self, TracePlan};

/// Bytes of the arena that one shard of this plan needs.
pub fn arena_bytes(plan: &Plan) -> u64 {
    diary_at(plan) + Diary::bytes(plan.limits.sessions_per_shard)
}

/// Where in it the diaries of its sessions stand, the last of all.
pub fn diary_at(plan: &Plan) -> u64 {
    let udp = if plan.replays(plan::Protocol::Udp) { Datagrams::arena_bytes() } else { 0 };
    (table_bytes(plan) + udp).next_multiple_of(64)
}

/// Bytes for so many sessions and chunks, datagrams apart: what `--memory` is shared out by.
pub const fn session_bytes(sessions: u32, chunks: u32) -> u64 {
    Table::arena_bytes(sessions, chunks) + Diary::bytes(sessions)
}

/// Bytes of it that the sessions take, which stand first.
pub(crate) fn table_bytes(plan: &Plan) -> u64 {
    let bytes = Table::arena_bytes(plan.limits.sessions_per_shard, plan.limits.chunks_per_shard);
    bytes.next_multiple_of(64)
}

/// The part of a shard's arena that [`datagrams`] lie in.
pub fn arena_of_datagrams<'a>(arena: &'a [u8], plan: &Plan) -> &'a [u8] {
    arena.get(table_bytes(plan) as usize..).unwrap_or_default()
}

/// The flows of datagrams, over their part of the arena; none where only TCP is replayed.
pub fn datagrams(arena: &'static mut [u8], plan: &Plan, shard: u16) -> Option<Datagrams> {
    let udp = plan.mappings.iter().map(|mapping| mapping.protocol == plan::Protocol::Udp).collect();
    let replayed = plan.replays(plan::Protocol::Udp);
    replayed.then(|| Datagrams::successor(arena, machine_config(plan, shard), udp))
}

/// What the machine of shard `shard` is told.
pub fn machine_config(plan: &Plan, shard: u16) -> Config {
    let seeds = &plan.seeds;
    let (clients, claim) = match plan.clients {
        plan::Clients::Pool { v4, v6, .. } => (Clients::Pool { v4, v6 }, false),
        plan::Clients::Keep => (Clients::Keep, true),
    };
    Config {
        shards: plan.shards,
        shard,
        seeds: Seeds {
            shard: seeds.shard,
            sample: seeds.sample,
            endpoint: seeds.endpoint,
            isn: seeds.isn,
            table: seeds.table,
        },
        clients,
        targets: plan.targets.iter().map(|t| TargetConfig { endpoint: t.addr.into(), mtu: t.mtu }).collect(),
        mappings: plan.mappings.iter().map(|m| m.target).collect(),
        wait: plan.replay.wait,
        rtt: match plan.replay.rtt {
            plan::Rtt::Measured => Rtt::Measured,
            plan::Rtt::None => Rtt::None,
            plan::Rtt::Fixed(us) => Rtt::Fixed(us),
        },
        join: match plan.replay.join {
            plan::Join::First => Join::First,
            plan::Join::Boundary => Join::Boundary,
            plan::Join::Never => Join::Never,
        },
        on_gap: match plan.replay.on_gap {
            plan::OnGap::Skip => OnGap::Skip,
            plan::OnGap::Resync => OnGap::Resync,
            plan::OnGap::Abort => OnGap::Abort,
        },
        pace: pace(plan.shards),
        limits: Limits {
            sessions: plan.limits.sessions_per_shard,
            chunks: plan.limits.chunks_per_shard,
            held_per_session: plan.limits.held_per_session,
        },
        times: times(plan),
        claim,
        file_us: plan.trace.as_ref().map(file_us),
        repeatable: plan.trace.is_some(),
    }
}

/// Waits for holes pass in the file's own time. Where it runs with the day they are those of live capture, only shorter when
/// it runs faster; as fast as possible, the file alone is asked and looked at often.
fn times(plan: &Plan) -> Times {
    let usual = Times { idle_us: u64::from(plan.replay.idle_s) * 1_000_000, ..Times::default() };
    let loss_us = match plan.trace.as_ref().map(|trace| trace.speed_milli) {
        None => usual.loss_us,
        Some(Some(milli)) => (usual.loss_us * 1_000 / u64::from(milli.max(1_000))).max(usual.hole_us),
        Some(None) => usual.hole_us,
    };
    Times { loss_us, ..usual }
}

/// How far a file must have gone on behind a hole: its stamps are scaled to the speed, except at the greatest.
fn file_us(trace: &TracePlan) -> u64 {
    let usual = Times::default();
    if trace.speed_milli.is_some() { usual.hole_us } else { usual.loss_us }
}

/// What the machine's defaults allow a target in all, shared out to the shards; none gets less than a usable part.
fn pace(shards: u16) -> Pace {
    let whole = Pace::default();
    let shards = u32::from(shards.max(1));
    Pace {
        reconnects_per_s: (whole.reconnects_per_s / shards).max(100),
        reconnect_burst: (whole.reconnect_burst / shards).max(25),
        ..whole
    }
}
