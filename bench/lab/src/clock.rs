//! Monotonic time, one clock for every thread and process of the lab.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux always has CLOCK_MONOTONIC");
    // Both parts are never negative for this clock.
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// Microseconds of CLOCK_MONOTONIC.
pub fn now_us() -> u64 {
    now_ns() / 1_000
}
