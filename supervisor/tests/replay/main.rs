//! Live replay on real traffic: real clients, real servers, the built `tcptwin`, hosts in namespaces.
//!
//! Each story holds the target against the online server request by request, and the ledger against the bytes that the
//! load sent. What the pipeline says of itself is never the only evidence.
//!
//! | file | holds |
//! |---|---|
//! | `stage` | hosts, services and instances that most stories start from |
//! | `http` | keep-alive, a connection per request, pipelined, IPv6, wrk |
//! | `bulk` | large requests and answers in super-frames |
//! | `databases` | redis, in order and at once |
//! | `joining` | connections older than the capture |
//! | `hosts` | several online hosts, several intercepts |
//! | `amount` | copies and percent |
//! | `modes` | `any`, loopback, `--tun`, kept clients, the simple engine, a key |
//! | `engines` | by link and by raw IP, and what changes on the way |
//! | `offline` | packet files instead of live traffic |
//! | `faults` | what dies and comes back under load |
//! | `surviving` | the supervisor dies, is upgraded, or gives up |
//! | `ending` | names, drain, and what is left behind |

use std::process::ExitCode;

mod amount;
mod bulk;
mod databases;
mod ending;
mod engines;
mod faults;
mod hosts;
mod http;
mod joining;
mod modes;
mod offline;
mod stage;
mod surviving;

fn main() -> ExitCode {
    let groups = [
        http::STORIES,
        bulk::STORIES,
        databases::STORIES,
        joining::STORIES,
        hosts::STORIES,
        amount::STORIES,
        modes::STORIES,
        engines::STORIES,
        offline::STORIES,
        faults::STORIES,
        surviving::STORIES,
        ending::STORIES,
    ];
    lab::story::run_all(&groups.concat())
}
