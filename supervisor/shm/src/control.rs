//! Words that may change while the pipeline runs. The supervisor writes them (signals, control socket, budgets), but for
//! `deaf_ms`, which is the return receiver's, and `behind_ms` and the book of connections, which are all shards'; every role reads
//! them once a batch. They are independent of each other and guard no other memory, so Relaxed is enough throughout.

use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The control words of a region.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Control {
    halt: AtomicU32,
    paused: AtomicU32,
    draining: AtomicU32,
    percent_ppm: AtomicU32,
    copies_milli: AtomicU32,
    deaf_ms: AtomicU64,
    behind_ms: AtomicU64,
    failed: AtomicU32,
    leaving: AtomicU64,
    guarded: [AtomicU32; GUARDED_DEVICES],
    blind: AtomicU32,
    /// As what is left out, so that fresh memory leaves out nothing.
    refused_ppm: AtomicU32,
    shed_ppm: AtomicU32,
    asked_ppm: AtomicU32,
    ramp_begin_ms: AtomicU64,
    connect_ns: AtomicU64,
    held_us: AtomicU64,
    paid_us: AtomicU64,
}

/// All, in the parts per million in which shares stand here.
pub const MILLION: u32 = 1_000_000;

/// Devices that may be guarded at a time.
pub const GUARDED_DEVICES: usize = 8;
/// Among the guarded devices: any device may be used.
pub const ANY_DEVICE: u32 = u32::MAX;

impl Control {
    /// Stop at once: nothing more is captured, nothing more is sent.
    pub fn halt(&self) -> bool {
        self.halt.load(Relaxed) != 0
    }

    /// See [`Control::halt`].
    pub fn set_halt(&self, on: bool) {
        self.halt.store(u32::from(on), Relaxed);
    }

    /// The supervisor stopped the run because of a fault. Not to be gone on with by a successor that nobody told so.
    pub fn failed(&self) -> bool {
        self.failed.load(Relaxed) != 0
    }

    /// See [`Control::failed`].
    pub fn set_failed(&self, on: bool) {
        self.failed.store(u32::from(on), Relaxed);
    }

    /// No new sessions are begun; those that exist go on.
    pub fn paused(&self) -> bool {
        self.paused.load(Relaxed) != 0
    }

    /// See [`Control::paused`].
    pub fn set_paused(&self, on: bool) {
        self.paused.store(u32::from(on), Relaxed);
    }

    /// The orderly end: the capturer stops, the shards finish what they have, the injector empties its rings.
    pub fn draining(&self) -> bool {
        self.draining.load(Relaxed) != 0
    }

    /// See [`Control::draining`].
    pub fn set_draining(&self, on: bool) {
        self.draining.store(u32::from(on), Relaxed);
    }

    /// Share of flows that are replayed, parts per million.
    pub fn percent_ppm(&self) -> u32 {
        self.percent_ppm.load(Relaxed)
    }

    /// See [`Control::percent_ppm`].
    pub fn set_percent_ppm(&self, ppm: u32) {
        self.percent_ppm.store(ppm, Relaxed);
    }

    /// Copies of each replayed flow, thousandths.
    pub fn copies_milli(&self) -> u32 {
        self.copies_milli.load(Relaxed)
    }

    /// See [`Control::copies_milli`].
    pub fn set_copies_milli(&self, milli: u32) {
        self.copies_milli.store(milli, Relaxed);
    }

    /// When an intercept was last missing, CLOCK_MONOTONIC milliseconds; 0 if none ever was. Until then a target's silence
    /// says nothing about the target.
    pub fn deaf_ms(&self) -> u64 {
        self.deaf_ms.load(Relaxed)
    }

    /// See [`Control::deaf_ms`].
    pub fn set_deaf_ms(&self, now_ms: u64) {
        self.deaf_ms.store(now_ms, Relaxed);
    }

    /// When the sessions of some shard were last found to fall behind for want of answers alone, CLOCK_MONOTONIC milliseconds.
    pub fn behind_ms(&self) -> u64 {
        self.behind_ms.load(Relaxed)
    }

    /// See [`Control::behind_ms`].
    pub fn set_behind_ms(&self, now_ms: u64) {
        self.behind_ms.store(now_ms, Relaxed);
    }

    /// Which start of the capturer shall end its recording and leave, because another takes its place; 0 is none.
    pub fn leaving(&self) -> u64 {
        self.leaving.load(Relaxed)
    }

    /// See [`Control::leaving`].
    pub fn set_leaving(&self, epoch: u64) {
        self.leaving.store(epoch, Relaxed);
    }

    /// Nothing is captured for the time being: the host has no room for it.
    pub fn blind(&self) -> bool {
        self.blind.load(Relaxed) != 0
    }

    /// See [`Control::blind`].
    pub fn set_blind(&self, on: bool) {
        self.blind.store(u32::from(on), Relaxed);
    }

    /// New flows whose draw (`flow::sample::draw`) is not below this are left out as `shed`, parts per million.
    pub fn admitted_ppm(&self) -> u32 {
        MILLION - self.refused_ppm.load(Relaxed).min(MILLION)
    }

    /// See [`Control::admitted_ppm`].
    pub fn set_admitted_ppm(&self, ppm: u32) {
        self.refused_ppm.store(MILLION - ppm.min(MILLION), Relaxed);
    }

    /// Flows whose draw is not below this are ended, those that are open too, parts per million.
    pub fn kept_ppm(&self) -> u32 {
        MILLION - self.shed_ppm.load(Relaxed).min(MILLION)
    }

    /// See [`Control::kept_ppm`].
    pub fn set_kept_ppm(&self, ppm: u32) {
        self.shed_ppm.store(MILLION - ppm.min(MILLION), Relaxed);
    }

    /// The share of flows that [`Control::percent_ppm`] grows to; the supervisor's own.
    pub fn asked_ppm(&self) -> u32 {
        self.asked_ppm.load(Relaxed)
    }

    /// See [`Control::asked_ppm`].
    pub fn set_asked_ppm(&self, ppm: u32) {
        self.asked_ppm.store(ppm, Relaxed);
    }

    /// When that began, CLOCK_MONOTONIC milliseconds; 0 if it did not yet. The supervisor's own.
    pub fn ramp_begin_ms(&self) -> u64 {
        self.ramp_begin_ms.load(Relaxed)
    }

    /// See [`Control::ramp_begin_ms`].
    pub fn set_ramp_begin_ms(&self, ms: u64) {
        self.ramp_begin_ms.store(ms, Relaxed);
    }

    /// Time for which packets waited because of a rate, microseconds in all; the injector's.
    pub fn held_us(&self) -> u64 {
        self.held_us.load(Relaxed)
    }

    /// See [`Control::held_us`].
    pub fn add_held_us(&self, us: u64) {
        self.held_us.fetch_add(us, Relaxed);
    }

    /// Time that what has left takes at its rate, microseconds in all; the injector's.
    pub fn paid_us(&self) -> u64 {
        self.paid_us.load(Relaxed)
    }

    /// See [`Control::paid_us`].
    pub fn add_paid_us(&self, us: u64) {
        self.paid_us.fetch_add(us, Relaxed);
    }

    /// Books the next moment at which a connection may be begun, when one may be each `interval_ns`, whichever shard asks: says
    /// when that is, CLOCK_MONOTONIC nanoseconds. None when it is further away than `most_ns`; nothing is booked then.
    pub fn book_connection(&self, now_ns: u64, interval_ns: u64, most_ns: u64) -> Option<u64> {
        let slot = |free_ns: u64| {
            let at_ns = free_ns.max(now_ns);
            (at_ns - now_ns <= most_ns).then(|| at_ns.saturating_add(interval_ns))
        };
        let before = self.connect_ns.fetch_update(Relaxed, Relaxed, slot).ok()?;
        Some(before.max(now_ns))
    }

    /// Indices of the network devices on which forged frames may leave, because the kernel's guard stands there; 0 is none.
    /// Fresh memory says: on none.
    pub fn guarded(&self) -> [u32; GUARDED_DEVICES] {
        std::array::from_fn(|i| self.guarded[i].load(Relaxed))
    }

    /// See [`Control::guarded`]; those beyond the bound are left out.
    pub fn set_guarded(&self, devices: &[u32]) {
        for (i, word) in self.guarded.iter().enumerate() {
            word.store(devices.get(i).copied().unwrap_or(0), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_leaves_nothing_out() {
        let control = Control::default();
        assert_eq!((control.admitted_ppm(), control.kept_ppm()), (MILLION, MILLION));
        control.set_admitted_ppm(250_000);
        control.set_kept_ppm(0);
        assert_eq!((control.admitted_ppm(), control.kept_ppm()), (250_000, 0));
    }

    #[test]
    fn connections_are_booked_one_behind_the_other_by_all_shards_together() {
        const SHARDS: u64 = 4;
        const EACH: u64 = 1_000;
        let control = Control::default();
        let book =
            || (0..EACH).filter_map(|_| control.book_connection(5_000, 1_000, u64::MAX)).collect::<Vec<_>>();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..SHARDS).map(|_| scope.spawn(book)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert_eq!(all, (0..SHARDS * EACH).map(|i| 5_000 + i * 1_000).collect::<Vec<_>>());
    }

    #[test]
    fn what_would_wait_too_long_is_not_booked() {
        let control = Control::default();
        let booked = (0..10).filter_map(|_| control.book_connection(1_000, 100, 250)).collect::<Vec<_>>();
        assert_eq!(booked, [1_000, 1_100, 1_200]);
        assert_eq!(control.connect_ns.load(Relaxed), 1_300);
        assert_eq!(
            control.book_connection(9_000, 100, 250),
            Some(9_000),
            "what was not used is not saved up"
        );
    }
}
