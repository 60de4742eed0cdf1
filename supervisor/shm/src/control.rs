//! Words that may change while the pipeline runs. The supervisor writes them (signals, control socket), but for the last,
//! which is the return receiver's; every role reads them once a batch. They are independent of each other and guard no
//! other memory, so Relaxed is enough throughout.

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
    failed: AtomicU32,
    leaving: AtomicU64,
    guarded: [AtomicU32; GUARDED_DEVICES],
}

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

    /// Which start of the capturer shall end its recording and leave, because another takes its place; 0 is none.
    pub fn leaving(&self) -> u64 {
        self.leaving.load(Relaxed)
    }

    /// See [`Control::leaving`].
    pub fn set_leaving(&self, epoch: u64) {
        self.leaving.store(epoch, Relaxed);
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
