//! Facts about this machine that the planner needs.

use std::ffi::OsString;
use std::fs;

use topology::Facts;

use crate::key;

/// Looks them up. `secret` is the key of the return channel.
pub(crate) fn facts(secret: Option<[u8; 32]>) -> anyhow::Result<Facts> {
    let mut random = [0; 48];
    key::random(&mut random)?;
    let mut numbers =
        random.chunks_exact(8).map(|eight| u64::from_ne_bytes(eight.try_into().expect("chunks of eight")));
    Ok(Facts {
        cores: cores(),
        host_id: host_id(),
        random: std::array::from_fn(|_| numbers.next().expect("48 bytes are six numbers")),
        key: secret,
        arena_bytes: shard_worker::session_bytes,
        format: crate::format::of_this_program(),
    })
}

/// Cores that this process may use: fewer than the machine has in a container or under taskset.
fn cores() -> Vec<u16> {
    let mut cores: Vec<u16> = affinity::get_thread_affinity()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|core| u16::try_from(core).ok())
        .collect();
    cores.sort_unstable();
    cores.dedup();
    if cores.is_empty() {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        cores = (0..count.min(usize::from(u16::MAX)) as u16).collect();
    }
    cores
}

/// A number of this machine that stays the same over restarts: /etc/machine-id (machine-id(5)), else the host name.
fn host_id() -> u64 {
    let id = fs::read("/etc/machine-id").ok().filter(|id| id.len() >= 16);
    let name = || nix::unistd::gethostname().map(OsString::into_encoded_bytes).unwrap_or_default();
    // The same in every build for ever, as the client range depends on it.
    rapidhash::v3::rapidhash_v3(&id.unwrap_or_else(name))
}
