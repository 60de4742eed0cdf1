//! Atomics as the rest of this crate uses them: the standard library's, or loom's when the orderings are being checked
//! (`--cfg loom`). Loom's are larger than the words they stand for, so nothing that is cast from shared bytes exists then.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
