//! What a dead shard worker takes with it, to the byte.
//!
//! A worker publishes the values of its ledger after each batch, then frees the batch's inputs. When it dies, the inputs
//! of the unfinished batch are still in the rings and its successor takes them as if for the first time: nothing of that
//! batch was counted, so nothing of it is lost or counted twice. What is lost is what earlier batches took in and had
//! not finished, and that is exactly the published gauge `in_flight`. So, with everything of the dead worker published:
//!
//! ```text
//! wanted = delivered + in_flight + dropped                      as it stood
//! dropped[worker_lost] += in_flight;  in_flight = 0             holds again
//! ```
//!
//! Only a worker that died *inside* a publication (a few hundred plain stores, about a microsecond of each batch) leaves
//! values of two batches side by side, and the identity off by a part of one batch. That difference is settled too, into
//! counters of its own, so that it can hide no bug: too much wanted is dropped as `worker_lost` and counted in
//! `settled_lost_bytes`; too little is added to wanted and counted in `settled_wanted_bytes`. A difference that shows up
//! there without a kill, or beyond a batch a kill, is a bug.
//!
//! One inexactness remains until outputs and inputs are one transaction: a worker that died between publication and the
//! release of its inputs (some nanoseconds) takes that batch twice. Both takings are balanced; `captured` alone then
//! counts those bytes twice.
//!
//! The dead worker's slots and chunks may be half written and are cleared; its walk over the client range, which stands
//! before them, stays, so that the successor does not give out endpoints that the target still remembers. A worker that
//! dies again at once may be dying of what stands there: then that goes too.

use std::time::{Duration, Instant};

use flow::Drop;
use shard_worker::counters::{
    Gauge, WorkerCount, offset_count, offset_dropped_bytes, offset_dropped_segments, offset_gauge,
    offset_worker,
};
use shm::{Counters, Region, Role};

/// Looks after what dead shard workers leave.
pub(crate) struct Morgue {
    region: &'static Region,
    shards: Vec<Shard>,
}

/// Writing ends of a dead shard's counters and arena. They are taken once in this process, and used only between the
/// reaping of a worker and the start of its successor, when nobody else has them.
struct Shard {
    counters: Option<Counters>,
    arena: Option<&'static mut [u8]>,
    last_death: Option<Instant>,
}

/// A second death within this time clears the whole arena.
const AGAIN: Duration = Duration::from_secs(10);

impl Morgue {
    /// For all shards of a region.
    pub(crate) fn new(region: &'static Region) -> Self {
        let shards = (0..region.spec().shards)
            .map(|_| Shard { counters: None, arena: None, last_death: None })
            .collect();
        Self { region, shards }
    }

    /// Settles a dead worker's ledger, dropping what it had in flight under `reason`, and clears its arena. Returns how
    /// many sessions it had open. The worker must be reaped, and its successor not started.
    pub(crate) fn bury(&mut self, shard: u16, reason: Drop) -> u64 {
        let region = self.region;
        let place = &mut self.shards[usize::from(shard)];
        let counters = place.counters.get_or_insert_with(|| region.counters(Role::Shard(shard)));
        let open = counters.get(offset_gauge(Gauge::Open));
        let in_flight = counters.get(offset_gauge(Gauge::InFlight));
        settle(counters, reason, open, in_flight);
        if open == 0 && in_flight == 0 {
            // In order: it left nothing, and nobody follows.
            return 0;
        }
        let now = Instant::now();
        let again = place.last_death.replace(now).is_some_and(|last| now.duration_since(last) < AGAIN);
        let arena = place.arena.get_or_insert_with(|| region.arena(shard));
        let keep = if again { 0 } else { session::Table::arena_bytes(0, 0) as usize };
        if let Some(slots) = arena.get_mut(keep..) {
            slots.fill(0);
        }
        open
    }
}

fn settle(counters: &Counters, reason: Drop, open: u64, in_flight: u64) {
    let at = |count: session::Count| offset_count(count);
    if in_flight > 0 || open > 0 {
        counters.add(offset_dropped_segments(reason), u64::from(in_flight > 0));
        counters.add(offset_dropped_bytes(reason), in_flight);
        let failed = if reason == Drop::Stopped {
            session::Count::FailedStopped
        } else {
            session::Count::FailedWorkerLost
        };
        counters.add(at(failed), open);
        counters.set(offset_gauge(Gauge::InFlight), 0);
        counters.set(offset_gauge(Gauge::Open), 0);
    }
    let wanted = counters.get(at(session::Count::Wanted));
    let dropped: u64 = Drop::ALL.iter().map(|reason| counters.get(offset_dropped_bytes(*reason))).sum();
    let accounted = counters.get(at(session::Count::Delivered)) + dropped;
    let (missing, extra) = (accounted.saturating_sub(wanted), wanted.saturating_sub(accounted));
    if missing > 0 {
        counters.add(at(session::Count::Wanted), missing);
        counters.add(offset_worker(WorkerCount::SettledWanted), missing);
    }
    if extra > 0 {
        counters.add(offset_dropped_segments(reason), 1);
        counters.add(offset_dropped_bytes(reason), extra);
        counters.add(offset_worker(WorkerCount::SettledLost), extra);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session::Count;

    struct Scene {
        name: String,
        region: &'static Region,
        morgue: Morgue,
    }

    impl Scene {
        fn new(tag: &str) -> Self {
            let name = format!("lost-{tag}-{}", std::process::id());
            let spec = shm::Spec {
                shards: 1,
                capture_ring: 4096,
                inject_ring: 4096,
                return_ring: 4096,
                arena: 1 << 20,
            };
            let region = Region::create(&name, &spec, b"{}", 1).unwrap();
            Self { name, region, morgue: Morgue::new(region) }
        }

        /// What the worker had published, by index and value.
        fn published(&mut self, values: &[(usize, u64)]) {
            let counters =
                self.morgue.shards[0].counters.get_or_insert_with(|| self.region.counters(Role::Shard(0)));
            values.iter().for_each(|(index, value)| counters.set(*index, *value));
        }

        fn read(&self, index: usize) -> u64 {
            self.region.read_counter(Role::Shard(0), index)
        }

        fn is_balanced(&self) -> bool {
            let dropped: u64 = Drop::ALL.iter().map(|reason| self.read(offset_dropped_bytes(*reason))).sum();
            self.read(offset_count(Count::Wanted))
                == self.read(offset_count(Count::Delivered))
                    + self.read(offset_gauge(Gauge::InFlight))
                    + dropped
        }
    }

    impl std::ops::Drop for Scene {
        fn drop(&mut self) {
            Region::remove(&self.name).unwrap();
        }
    }

    const WANTED: usize = offset_count(Count::Wanted);
    const DELIVERED: usize = offset_count(Count::Delivered);
    const IN_FLIGHT: usize = offset_gauge(Gauge::InFlight);
    const OPEN: usize = offset_gauge(Gauge::Open);

    #[test]
    fn what_was_in_flight_is_dropped_under_the_reason() {
        let mut scene = Scene::new("flight");
        scene.published(&[
            (WANTED, 1000),
            (DELIVERED, 700),
            (IN_FLIGHT, 260),
            (OPEN, 3),
            (offset_dropped_bytes(Drop::Gap), 40),
        ]);
        assert_eq!(scene.morgue.bury(0, Drop::WorkerLost), 3);
        assert!(scene.is_balanced());
        assert_eq!(scene.read(offset_dropped_bytes(Drop::WorkerLost)), 260);
        assert_eq!(scene.read(offset_count(Count::FailedWorkerLost)), 3);
        assert_eq!((scene.read(IN_FLIGHT), scene.read(OPEN)), (0, 0));
        assert_eq!(scene.read(offset_worker(WorkerCount::SettledLost)), 0, "nothing was torn");
    }

    #[test]
    fn a_death_inside_a_publication_is_settled_in_its_own_counters() {
        let mut scene = Scene::new("torn-more");
        // The new `wanted` is there, the gauge is still the old one.
        scene.published(&[(WANTED, 1500), (DELIVERED, 700), (IN_FLIGHT, 300), (OPEN, 1)]);
        scene.morgue.bury(0, Drop::WorkerLost);
        assert!(scene.is_balanced());
        assert_eq!(scene.read(offset_worker(WorkerCount::SettledLost)), 500);
        let mut scene = Scene::new("torn-less");
        // Delivered grew by what the gauge had not lost yet.
        scene.published(&[(WANTED, 1000), (DELIVERED, 900), (IN_FLIGHT, 300), (OPEN, 1)]);
        scene.morgue.bury(0, Drop::WorkerLost);
        assert!(scene.is_balanced());
        assert_eq!(scene.read(offset_worker(WorkerCount::SettledWanted)), 200);
    }

    #[test]
    fn an_orderly_end_changes_nothing() {
        let mut scene = Scene::new("order");
        scene.published(&[(WANTED, 1000), (DELIVERED, 1000)]);
        assert_eq!(scene.morgue.bury(0, Drop::WorkerLost), 0);
        assert_eq!((scene.read(WANTED), scene.read(offset_dropped_bytes(Drop::WorkerLost))), (1000, 0));
    }

    #[test]
    fn slots_are_cleared_but_the_walk_over_the_range_stays_unless_it_dies_again() {
        let mut scene = Scene::new("arena");
        let keep = session::Table::arena_bytes(0, 0) as usize;
        let fill = |scene: &mut Scene| {
            scene.morgue.shards[0].arena.get_or_insert_with(|| scene.region.arena(0)).fill(7);
            scene.published(&[(OPEN, 1)]);
        };
        fill(&mut scene);
        scene.morgue.bury(0, Drop::WorkerLost);
        let arena = scene.morgue.shards[0].arena.as_ref().unwrap();
        assert!(arena[..keep].iter().all(|byte| *byte == 7) && arena[keep..].iter().all(|byte| *byte == 0));
        fill(&mut scene);
        scene.morgue.bury(0, Drop::WorkerLost);
        assert!(scene.morgue.shards[0].arena.as_ref().unwrap().iter().all(|byte| *byte == 0));
    }
}
