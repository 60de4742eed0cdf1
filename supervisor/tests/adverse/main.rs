//! Live replay over networks that lose, delay, reorder and refuse: real clients, real servers, kernel TCP on both sides.
//!
//! As in the stories of `replay`, the target is held against the online server request by request, and the ledger
//! against the bytes that the load sent. Each story also insists that its network really misbehaved.
//!
//! | file | holds |
//! |---|---|
//! | `loss` | random loss on the way to the target and back; reordering and delay |
//! | `around` | loss elsewhere: the clients' own path, the return channel, the capture |
//! | `target` | a target that goes away, resets, has little room, or lies behind a narrow path; refused sends |

use std::process::ExitCode;

mod around;
mod loss;
#[path = "../replay/stage.rs"]
#[allow(dead_code, reason = "the stage of all stories; these need a part of it")]
mod stage;
mod target;

/// The sum of one counter of the shard workers.
fn counted(stats: &lab::Stats, name: &str) -> u64 {
    let roles = stats.value()["counters"].as_object().into_iter().flatten();
    let shards = roles.filter(|(role, _)| role.starts_with("shard-worker"));
    shards.filter_map(|(_, counters)| counters[name].as_u64()).sum()
}

fn main() -> ExitCode {
    lab::story::run_all(&[loss::STORIES, around::STORIES, target::STORIES].concat(), &[])
}
