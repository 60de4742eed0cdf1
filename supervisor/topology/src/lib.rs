//! Arguments and configuration to processes, links and cores: the one page of wiring. Pure.
//!
//! | file | holds |
//! |---|---|
//! | `options` | every option of `run` and `intercept`, once, for command line and file |
//! | `look` | how each option looks to a person: letter, placeholder, help |
//! | `file` | the configuration file |
//! | `value` | sizes, times, decimals, addresses as a person writes them |
//! | `mapping` | `-x` |
//! | `clients` | `-c`, `--keep-clients`, the default ranges and their parts |
//! | `sizes` | how the memory is shared out |
//! | `trace` | the files of `replay`: which, and when their packets are due |
//! | `recording` | `record`, and `--record` of `run` |
//! | `planner` | options → plan |
//! | `plan` | what a run is: everything the roles need to know, written once into the region |
//! | `listening` | options → what `intercept` does |
//! | `wiring` | plan → processes, links, cores, region |
//! | `guard` | targets and client ranges that are refused, given what the host knows about them |
//! | `restraint` | budgets, rates, ramp and priority |
//! | `refusal` | why nothing is started: a sentence and an exit code |

pub mod clients;
pub mod file;
pub mod guard;
pub mod listening;
pub mod look;
pub mod mapping;
pub mod options;
pub mod plan;
pub mod planner;
pub mod recording;
pub mod refusal;
pub mod restraint;
pub mod sizes;
pub mod trace;
pub mod value;
pub mod wiring;

pub use listening::{Listening, listening_from};
pub use look::Command;
pub use options::{Given, Key, Options, Place};
pub use plan::Plan;
pub use planner::{Facts, plan_from};
pub use refusal::Refusal;
pub use wiring::Process;
