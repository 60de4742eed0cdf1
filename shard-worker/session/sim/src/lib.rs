//! Deterministic simulation of the replay machine: seeded clients, bad links and another TCP as the target, around a
//! [`session::Table`] in virtual time. A seed is a world and, when a rule breaks in it, a bug report.
//!
//! | file | holds |
//! |---|---|
//! | `scenario` | what happens in a world, drawn from its seed: profiles, links, target |
//! | `flows`, `online`, `capture` | what clients want, how it passes the online server, what is captured of it |
//! | `world` | virtual time: capture, links, timers, table |
//! | `bounded` | a world with an end to the waiting for it |
//! | `link` | one direction: delay, loss, doubles, disorder, corruption, rate, darkness |
//! | `host` | the target host: one of the next two |
//! | `target` | a model of one with smoltcp's TCP, in virtual time |
//! | `kernel` | the kernel's own TCP behind a TUN device, in real time: the slower tier |
//! | `app` | the service at the target |
//! | `oracle` | what must hold, at every record and at the end |
//! | `figures` | sums |
//! | `dice` | chance |

mod app;
mod bounded;
mod capture;
mod dice;
pub mod figures;
mod flows;
mod host;
mod kernel;
mod link;
mod online;
mod oracle;
pub mod scenario;
mod target;
pub mod world;

pub use bounded::run_within;
pub use figures::{Figure, Figures};
pub use scenario::{Profile, Scenario};
pub use world::{Failure, Options, run};
