//! What a process of the pipeline gives up before it looks at a byte from outside: its user, its capabilities, files, system
//! calls, memory, and the means to get any of it back.
//!
//! | file | holds |
//! |---|---|
//! | `keep` | what one process keeps, and the order in which the rest goes |
//! | `calls` | the system calls, each with its reason |
//! | `filter` | of those lists, a program for the kernel (seccomp(2)) |
//! | `files` | what of the file system stays in reach (landlock(7)) |
//! | `privileges` | user, groups, capabilities, limits |
//! | `user` | whom a role becomes |
//! | `descriptors` | what is open |
//! | `kernel` | what this kernel has of all that |
//! | `sys` | the only unsafe code: the last words of a process that the filter stops |
//!
//! The supervisor decides (`supervisor/src/confine.rs`); a role does it to itself, once, before its threads start.

pub mod calls;
mod descriptors;
mod files;
mod filter;
mod keep;
mod kernel;
mod privileges;
mod sys;
mod user;

pub use caps::Capability;
pub use descriptors::{Descriptor, keep_from_children, opened};
pub use files::{Access, Opening};
pub use filter::Filter;
pub use keep::{Error, Keep};
pub use kernel::{Lack, lacks};
pub use privileges::{hand_down, has as has_capability, have_at_most, hold_on_to, seal};
pub use user::{Ids, Standing, User};
