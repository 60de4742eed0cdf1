//! The injector role: drains the shards, sends to the targets, receives returned headers.
//!
//! | file | holds |
//! |---|---|
//! | `open` | the sockets that outlive the role, opened by the supervisor |
//! | `path` | the route to a target, for the preflight |
//! | `notrack` | rules that keep forged flows out of conntrack |
//! | `guard` | the sealed list: the only place where a target index becomes an address |
//! | `cut` | super-frames into segments |
//! | `raw`, `sys` | the raw IP engine and its system calls |
//! | `tally`, `count` | what is counted |

pub mod count;
pub mod cut;
pub mod guard;
pub mod notrack;
pub mod open;
pub mod path;
pub mod raw;
mod sys;
pub mod tally;
#[cfg(test)]
mod testing;

pub use count::{Count, InterceptCount, LinkState, ReturnCount, Trouble, intercept_index};
pub use notrack::NoTrack;
pub use open::{OpenError, Sockets, open};
pub use path::{Place, RouteFacts, route_to};
