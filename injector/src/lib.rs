//! The injector role: drains the shards, sends to the targets, receives returned headers.
//!
//! | file | holds |
//! |---|---|
//! | `limit` | rates that are kept |
//! | `open` | the sockets that outlive the role, opened by the supervisor |
//! | `path` | the route to a target, for the preflight |
//! | `way`, `ways` | how frames to a target are made, and how that is followed; `rtnl` and `ipsec` ask the kernel |
//! | `facts` | what the kernel says about devices, neighbours and packets, for `doctor` |
//! | `handshake` | asks an intercept whether it takes this instance, for the preflight |
//! | `probe`, `canary` | a SYN that asks for the way to a target and back; when it is asked, and what follows |
//! | `probing` | the same once, outside of a run |
//! | `gate`, `ears` | what that means for the drain; from the receiver to it |
//! | `nft` | nftables by its program |
//! | `fence` | the kernel's guard and the notrack rules, kept by the supervisor |
//! | `engines` | which engine each target has, and why, in words |
//! | `role` | the process: drain in the main thread, receiver in a second |
//! | `drain` | round robin over the shards' rings |
//! | `guard` | the sealed list: the only place where a target index becomes an address |
//! | `cut` | super-frames into segments |
//! | `sender`, `sys` | the engines link and raw, and their system calls; `pcap` is the one through libpcap |
//! | `receiver` | the return receiver's loop over all intercepts |
//! | `peer` | one intercept: dialled, greeted, read, dialled again |
//! | `greeting` | what this instance says to an intercept first |
//! | `sorter` | returned headers into the shards' rings |
//! | `claims` | flows claimed one by one (`--keep-clients`) |
//! | `tally`, `count` | what is counted |

mod canary;
pub mod claims;
pub mod count;
pub mod cut;
pub mod drain;
mod ears;
pub mod engines;
pub mod facts;
pub mod fence;
mod gate;
mod greeting;
pub mod guard;
pub mod handshake;
mod ipsec;
mod limit;
pub mod nft;
pub mod open;
pub mod path;
mod pcap;
mod peer;
pub mod probe;
pub mod probing;
pub mod receiver;
pub mod role;
mod rtnl;
pub mod sender;
mod sorter;
mod sys;
pub mod tally;
#[cfg(test)]
mod testing;
mod way;
mod ways;

pub use count::{
    Count, InterceptCount, LinkState, MAX_INTERCEPTS, ReturnCount, Trouble, canary_index, choice_index,
    intercept_index,
};
pub use engines::Engines;
pub use fence::Fence;
pub use handshake::{DialError, handshake};
pub use open::{Lane, OpenError, Sockets, open};
pub use path::{RouteError, RouteFacts, gateway, route_to};
pub use probe::{Report, Verdict};
pub use role::{RunError, run};
pub use way::Choice;
pub use ways::Lookout;
