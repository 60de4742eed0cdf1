//! Is a role alive, and what does it do? Each role writes its own block; the supervisor reads all of them. A role beats
//! when it works and every 100 ms when idle; it is hung when input is pending and no beat came for 250 ms.
//!
//! The words are independent and guard no other memory, so Relaxed is enough, except for the state: who reads `Done`
//! also wants to see the counters written before it.

use crate::clock::monotonic_us;
use crate::sync::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// What a role is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RoleState {
    /// Booting: not attached yet, or rebuilding.
    Starting = 0,
    /// Working.
    Running = 1,
    /// Finishing what it has; takes nothing new.
    Draining = 2,
    /// Finished; its counters are final.
    Done = 3,
}

/// One role's block of liveness words.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Heartbeat {
    last_ms: AtomicU64,
    epoch: AtomicU64,
    pending: AtomicU32,
    state: AtomicU32,
    running_us: AtomicU64,
    stopped_at: AtomicU32,
}

impl Heartbeat {
    /// I live; `now_ms` is CLOCK_MONOTONIC in milliseconds.
    pub fn beat(&self, now_ms: u64) {
        self.last_ms.store(now_ms, Relaxed);
    }

    /// The last beat, CLOCK_MONOTONIC milliseconds; 0 before the first.
    pub fn last_ms(&self) -> u64 {
        self.last_ms.load(Relaxed)
    }

    /// Input waits that this role should be working on.
    pub fn set_pending(&self, pending: bool) {
        self.pending.store(u32::from(pending), Relaxed);
    }

    /// See [`Heartbeat::set_pending`].
    pub fn pending(&self) -> bool {
        self.pending.load(Relaxed) != 0
    }

    /// How often this role was started in this region.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Relaxed);
    }

    /// See [`Heartbeat::set_epoch`].
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// What the role does now. Release; pairs with the Acquire in [`Heartbeat::state`].
    pub fn set_state(&self, state: RoleState) {
        if state == RoleState::Running {
            self.running_us.store(monotonic_us(), Relaxed);
        }
        self.state.store(state as u32, Release);
    }

    /// When the role, or its last predecessor, said that it is `Running`, CLOCK_MONOTONIC microseconds; 0 before the
    /// first.
    pub fn running_us(&self) -> u64 {
        self.running_us.load(Relaxed)
    }

    /// Where a role that its sandbox stops leaves the number of the system call, as it dies of it; what is left there is taken by
    /// whoever sees the death.
    pub fn stopped_at(&self) -> &AtomicU32 {
        &self.stopped_at
    }

    /// What the role said last; a word that is no state reads as `Starting`. Acquire; pairs with the Release in
    /// [`Heartbeat::set_state`], so that the counters of a role that is `Done` are final to the reader.
    pub fn state(&self) -> RoleState {
        match self.state.load(Acquire) {
            1 => RoleState::Running,
            2 => RoleState::Draining,
            3 => RoleState::Done,
            _ => RoleState::Starting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_role_says_is_what_a_reader_sees() {
        let heartbeat = Heartbeat::default();
        assert_eq!(
            (heartbeat.state(), heartbeat.pending(), heartbeat.last_ms()),
            (RoleState::Starting, false, 0)
        );
        for state in [RoleState::Running, RoleState::Draining, RoleState::Done, RoleState::Starting] {
            heartbeat.set_state(state);
            assert_eq!(heartbeat.state(), state);
        }
        heartbeat.beat(17);
        heartbeat.set_pending(true);
        heartbeat.set_epoch(3);
        assert_eq!((heartbeat.pending(), heartbeat.last_ms(), heartbeat.epoch()), (true, 17, 3));
    }

    #[test]
    fn the_time_of_the_last_start_stays_through_other_states() {
        let heartbeat = Heartbeat::default();
        let before = monotonic_us();
        heartbeat.set_state(RoleState::Running);
        let running = heartbeat.running_us();
        assert!((before..=monotonic_us()).contains(&running));
        heartbeat.set_state(RoleState::Starting);
        assert_eq!(heartbeat.running_us(), running);
    }

    #[test]
    fn a_scribbled_state_reads_as_starting() {
        let heartbeat = Heartbeat::default();
        heartbeat.state.store(77, Relaxed);
        assert_eq!(heartbeat.state(), RoleState::Starting);
    }
}
