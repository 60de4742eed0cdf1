//! One small program per question. Here is what several of them share.

pub mod client;
pub mod machine;

use std::process::ExitCode;

use lab::user::become_root_in_user_namespace;
use nix::time::{ClockId, clock_gettime};

pub use client::{ANSWER, Client, REQUEST, answer, number_of, packet};

/// Whether data is wanted instead of a table (`--json`), and the other arguments.
pub fn arguments() -> (bool, Vec<String>) {
    let (json, others): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|arg| arg == "--json");
    (!json.is_empty(), others)
}

/// CPU time of this thread, nanoseconds: the wall clock says little on a machine that is shared.
pub fn cpu_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has this clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// A bench's `main`: how it ended as an exit status, and why it failed on standard error.
pub fn ended(measured: anyhow::Result<()>) -> ExitCode {
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The same for one that makes namespaces: exit status 3 where this user may not.
pub fn in_namespaces(measure: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    if let Err(error) = become_root_in_user_namespace() {
        eprintln!("error: {error}");
        return ExitCode::from(3);
    }
    ended(measure())
}
