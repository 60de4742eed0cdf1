//! CLOCK_MONOTONIC, the one clock of all roles on a host: comparable across processes, never stepped.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC (about 20 ns a call through the vDSO).
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// Microseconds of CLOCK_MONOTONIC.
pub fn monotonic_us() -> u64 {
    monotonic_ns() / 1_000
}

/// Milliseconds of CLOCK_MONOTONIC.
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_agree_and_time_does_not_go_back() {
        let ns = monotonic_ns();
        let us = monotonic_us();
        let ms = monotonic_ms();
        assert!(us >= ns / 1_000 && ms >= us / 1_000);
        assert!(monotonic_ns() >= ns);
    }
}
