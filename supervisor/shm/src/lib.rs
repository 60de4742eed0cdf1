//! The shared region: layout, rings, doorbells, counters, heartbeats. What every role of one instance shares, and nearly
//! every `unsafe` of the workspace. It never looks at packets: records are bytes here.
//!
//! | file | holds |
//! |---|---|
//! | `region` | the named mapping: create, attach, remove, and the typed views into it |
//! | `pages` | large pages below it |
//! | `leftover` | the file that stands under a name: whose it is and whether it can be trusted |
//! | `layout` | every offset of the region, computed from a [`Spec`] in one place |
//! | `header` | first page: magic, version, layout hash, instance, epoch, boot id |
//! | `ring` | SPSC byte ring: `ring/producer`, `ring/consumer`; `memory` is the bytes below it |
//! | `doorbell` | sleeping and waking across processes without losing a wake-up |
//! | `counters` | counters with one writer each |
//! | `journal` | what makes a role's batch one step: a redo record of cursors and counters |
//! | `heartbeat` | is a role alive, what does it do |
//! | `control` | what may change while running: halt, pause, drain, percent, copies |
//! | `lock` | the file lock that every role inherits: one instance a name |
//! | `moderate` | when an edge role sleeps and when it naps |
//! | `clock` | monotonic time |
//! | `sys` | the system calls no safe crate offers: futex, timer slack |
//! | `sync` | atomics, exchanged for loom's under `--cfg loom` |
//!
//! Under `--cfg loom` only the parts with orderings to check exist: rings on the heap and doorbells.

mod doorbell;
mod memory;
pub mod ring;
mod sync;

#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
mod control;
#[cfg(not(loom))]
mod counters;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod header;
#[cfg(not(loom))]
mod heartbeat;
#[cfg(not(loom))]
mod journal;
#[cfg(not(loom))]
mod layout;
#[cfg(not(loom))]
mod leftover;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
mod moderate;
#[cfg(not(loom))]
mod pages;
#[cfg(not(loom))]
mod region;
#[cfg(not(loom))]
mod sys;

pub use doorbell::Doorbell;
pub use ring::{Batch, Consumer, Producer, Waiting};

#[cfg(all(feature = "scribble", not(loom)))]
pub use layout::Part;

#[cfg(not(loom))]
pub use {
    clock::{monotonic_ms, monotonic_ns, monotonic_us},
    control::{ANY_DEVICE, Control, GUARDED_DEVICES, MILLION},
    counters::{COUNTERS_PER_ROLE, Counters},
    error::RegionError,
    heartbeat::{Heartbeat, RoleState},
    journal::{Item, Journal, Word},
    layout::{Link, MAX_SHARDS, PLAN_BYTES, Role, Spec},
    leftover::Leftover,
    lock::{LockError, LockFile},
    moderate::{Moderator, Pause},
    region::{Region, os_id, path},
    sys::{give_way, inherit, set_fine_timers, watch_process},
};
