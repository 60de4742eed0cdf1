//! What this kernel has of what a sandbox is made of.

use std::fs;

use landlock::{ABI, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _};

/// Something that this kernel has not, or that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Filters of system calls.
    Seccomp,
    /// Keeping a process from files.
    Landlock,
}

/// The actions that filters may end in, where there are filters (Linux 4.14).
const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";

/// What is missing; nothing on Linux 5.13 and later, as distributions build it.
pub fn lacks() -> Vec<Lack> {
    let actions = fs::read_to_string(ACTIONS).unwrap_or_default();
    let traps = actions.split_whitespace().any(|action| action == "trap");
    let landlock = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_write(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok();
    let missing = [(!traps, Lack::Seccomp), (!landlock, Lack::Landlock)];
    missing.into_iter().filter_map(|(missing, lack)| missing.then_some(lack)).collect()
}
