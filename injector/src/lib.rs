//! The injector role: drains the shards, sends to the targets, receives returned headers.
//!
//! | file | holds |
//! |---|---|
//! | `open` | the sockets that outlive the role, opened by the supervisor |
//! | `path` | the route to a target, for the preflight |
//! | `handshake` | asks an intercept whether it takes this instance, for the preflight |
//! | `notrack` | rules that keep forged flows out of conntrack, kept by the supervisor |
//! | `role` | the process: drain in the main thread, receiver in a second |
//! | `drain` | round robin over the shards' rings |
//! | `guard` | the sealed list: the only place where a target index becomes an address |
//! | `cut` | super-frames into segments |
//! | `raw`, `sys` | the raw IP engine and its system calls |
//! | `receiver` | the return receiver's loop over all intercepts |
//! | `peer` | one intercept: dialled, greeted, read, dialled again |
//! | `greeting` | what this instance says to an intercept first |
//! | `sorter` | returned headers into the shards' rings |
//! | `claims` | flows claimed one by one (`--keep-clients`) |
//! | `tally`, `count` | what is counted |

mod claims;
pub mod count;
pub mod cut;
pub mod drain;
mod greeting;
pub mod guard;
pub mod handshake;
pub mod notrack;
pub mod open;
pub mod path;
mod peer;
pub mod raw;
mod receiver;
pub mod role;
mod sorter;
mod sys;
pub mod tally;
#[cfg(test)]
mod testing;

pub use count::{Count, InterceptCount, LinkState, MAX_INTERCEPTS, ReturnCount, Trouble, intercept_index};
pub use handshake::{DialError, handshake};
pub use notrack::NoTrack;
pub use open::{OpenError, Sockets, open};
pub use path::{RouteError, RouteFacts, route_to};
pub use role::{RunError, run};
