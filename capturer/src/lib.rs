//! The capturer role: sources, kernel filter, dispatch to the shards.
//!
//! | file | holds |
//! |---|---|
//! | `open` | the sockets that outlive the role, opened by the supervisor |
//! | `role` | the process: batches, sleeping, stopping |
//! | `source` | the trait that engines and files implement |
//! | `live` | the live source on packet rings |
//! | `simple` | the live source on `pnet_datalink` |
//! | `pcap` | the live source on libpcap |
//! | `xdp` | the live source on AF_XDP (feature `xdp`) |
//! | `expression` | `-F`: compiled, carried, decided |
//! | `offline` | packet files instead: reading, waiting, loops |
//! | `due` | when a file's packets are due |
//! | `recording` | the recorder seen from the capturer |
//! | `dispatch` | frame → mapping → shard → record |
//! | `again` | frames that `any` shows at a device and at the one on it |
//! | `fragments` | datagrams put together from their fragments |
//! | `online` | which mapping a packet belongs to |
//! | `survey` | what a packet file holds and a replay of it would be |
//! | `packet_ring` | a receive ring shared with the kernel; intercept uses it too |
//! | `filter` | the kernel filters, assembled; intercept's too |
//! | `interfaces` | the interfaces of this host |
//! | `vlan` | a second tag in front of IP |
//! | `watch` | whether an interface is there and up |
//! | `clock` | frame times as monotonic time |
//! | `count`, `error` | what is counted, what is said |
//! | `sys` | system calls on packet sockets: the only unsafe code |

mod again;
pub mod clock;
pub mod count;
pub mod dispatch;
mod due;
pub mod error;
pub mod expression;
pub mod filter;
mod fragments;
pub mod interfaces;
pub mod live;
pub mod offline;
pub mod online;
pub mod open;
pub mod packet_ring;
pub mod pcap;
mod recording;
pub mod role;
pub mod simple;
pub mod source;
pub mod survey;
pub mod sys;
#[cfg(test)]
mod testing;
mod vlan;
mod watch;
mod xdp;

pub use count::Count;
pub use error::{OpenError, RoleError};
pub use interfaces::Interface;
pub use open::{CaptureSocket, begin_anew, deafen, inherit, is_held_by_sockets, name, open, take_over};
pub use role::run;
