//! What follows from the death of a shard worker. Nothing, as a rule: its successor finds sessions, rings and counters as
//! the last whole batch left them (`shard-worker`, "shard"), and goes on. Two things are the supervisor's to do, between
//! the death of a worker and the start of the next, when nobody else has what was its own.
//!
//! **A worker that dies of what it reads.** The journal says what it was at. One that crashed (a signal of its own making, an
//! exit code, a hang) at the same record twice would do so for ever: its successor leaves that record out, and the session
//! that it belongs to is lost. Should that not help, the shard begins anew.
//!
//! | crashes at one item | then |
//! |---|---|
//! | 1 | the successor tries it again |
//! | 2 | the successor leaves it out, and its session; both are kept in a file (`quarantine`) |
//! | 3 | all sessions of the shard are given up |
//!
//! **A worker that nobody follows**, at the end of the run. What it had in flight is dropped, to the byte: that is the
//! published gauge, since it moves with everything else.
//!
//! ```text
//! wanted = delivered + in_flight + dropped                  as it stood at the last commit
//! dropped[reason] += in_flight;  in_flight = 0              holds again
//! ```

use std::path::PathBuf;

use flow::Drop;
use session::{Count, Table};
use shard_worker::counters::{
    Gauge, offset_count, offset_dropped_bytes, offset_dropped_segments, offset_gauge,
};
use shm::{Counters, Item, Journal, Region, Role};
use topology::Plan;

use crate::quarantine;

/// Looks after what dead shard workers leave.
pub(crate) struct Aftermath {
    region: &'static Region,
    plan: Plan,
    /// Where what is left out is kept.
    directory: PathBuf,
    shards: Vec<Shard>,
}

/// Writing ends of what was a dead worker's. They are taken once in this process, and used only while no worker lives.
struct Shard {
    counters: Option<Counters>,
    journal: Option<Journal>,
    arena: Option<&'static mut [u8]>,
    /// What the last crash happened at, and how often in a row.
    suspect: Item,
    crashes: u32,
}

/// What a death comes to, before a successor starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on where the dead one was.
    GoesOn,
    /// It goes on, but for one record or session, which is kept in this file; or why not.
    LeavesOut(Item, Result<PathBuf, String>),
    /// So many sessions were given up.
    BeginsAnew(u64),
}

/// Crashes at one item after which it is left out.
const LEAVE_OUT: u32 = 2;
/// Crashes at one item after which leaving it out has not helped.
const BEGIN_ANEW: u32 = 3;

impl Aftermath {
    /// For all shards of a region.
    pub(crate) fn new(region: &'static Region, plan: Plan, directory: PathBuf) -> Self {
        let shard =
            || Shard { counters: None, journal: None, arena: None, suspect: Item::Nothing, crashes: 0 };
        Self { region, plan, directory, shards: (0..region.spec().shards).map(|_| shard()).collect() }
    }

    /// A worker died, and another will follow. `crashed`: it died of something that it did.
    pub(crate) fn of_a_death(&mut self, number: u16, crashed: bool) -> Verdict {
        let (region, role) = (self.region, Role::Shard(number));
        let shard = &mut self.shards[usize::from(number)];
        if !crashed {
            return Verdict::GoesOn;
        }
        let item = match region.item(role) {
            // The table knows which.
            Item::Sessions => {
                Table::last_at(shard.arena(region, number)).map_or(Item::Nothing, Item::Session)
            }
            item => item,
        };
        if item == Item::Nothing {
            return Verdict::GoesOn;
        }
        shard.crashes = if item == shard.suspect { shard.crashes + 1 } else { 1 };
        shard.suspect = item;
        match shard.crashes {
            BEGIN_ANEW.. => {
                shard.crashes = 0;
                Verdict::BeginsAnew(shard.give_up(region, number, Drop::WorkerLost))
            }
            LEAVE_OUT => {
                region.leave_out(role, item);
                let arena = shard.arena(region, number);
                let kept = quarantine::keep(&self.directory, region, &self.plan, number, item, arena);
                Verdict::LeavesOut(item, kept.map_err(|error| format!("{error:#}")))
            }
            _ => Verdict::GoesOn,
        }
    }

    /// A worker is gone and nobody follows: drops what it had in flight under `reason`. Returns how many sessions it had open.
    pub(crate) fn of_the_last(&mut self, number: u16, reason: Drop) -> u64 {
        self.shards[usize::from(number)].give_up(self.region, number, reason)
    }
}

impl Shard {
    fn arena(&mut self, region: &'static Region, number: u16) -> &mut [u8] {
        self.arena.get_or_insert_with(|| region.arena(number))
    }

    /// Settles the ledger and clears the sessions; what stands before them stays, so that a successor does not
    /// give out endpoints, or numbers, that the target still remembers.
    fn give_up(&mut self, region: &'static Region, number: u16, reason: Drop) -> u64 {
        // First what was committed and not made public.
        self.journal.get_or_insert_with(|| region.journal(Role::Shard(number))).done();
        let counters = self.counters.get_or_insert_with(|| region.counters(Role::Shard(number)));
        let open = counters.get(offset_gauge(Gauge::Open));
        let in_flight = counters.get(offset_gauge(Gauge::InFlight));
        if open == 0 && in_flight == 0 {
            return 0;
        }
        counters.add(offset_dropped_segments(reason), u64::from(in_flight > 0));
        counters.add(offset_dropped_bytes(reason), in_flight);
        let failed = if reason == Drop::Stopped { Count::FailedStopped } else { Count::FailedWorkerLost };
        counters.add(offset_count(failed), open);
        counters.set(offset_gauge(Gauge::InFlight), 0);
        counters.set(offset_gauge(Gauge::Open), 0);
        let keep = Table::LASTING_BYTES;
        if let Some(sessions) = self.arena(region, number).get_mut(keep..) {
            sessions.fill(0);
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use lab::scratch::Scratch;

    use super::*;

    struct Scene {
        name: String,
        region: &'static Region,
        aftermath: Aftermath,
        _scratch: Scratch,
    }

    impl Scene {
        fn new(tag: &str) -> Self {
            let name = format!("aftermath-{tag}-{}", std::process::id());
            let spec = shm::Spec {
                shards: 1,
                capture_ring: 4096,
                inject_ring: 4096,
                return_ring: 4096,
                arena: 1 << 20,
            };
            let region = Region::create(&name, &spec, b"{}", 1).unwrap();
            let scratch = Scratch::new("aftermath").unwrap();
            let plan = crate::testing::plan(&name, &[]);
            let aftermath = Aftermath::new(region, plan, scratch.path().to_owned());
            Self { name, region, aftermath, _scratch: scratch }
        }

        /// What the worker had published, by index and value.
        fn published(&mut self, values: &[(usize, u64)]) {
            let region = self.region;
            let counters =
                self.aftermath.shards[0].counters.get_or_insert_with(|| region.counters(Role::Shard(0)));
            values.iter().for_each(|(index, value)| counters.set(*index, *value));
        }

        fn read(&self, index: usize) -> u64 {
            self.region.read_counter(Role::Shard(0), index)
        }

        fn is_balanced(&self) -> bool {
            let dropped: u64 = Drop::ALL.iter().map(|reason| self.read(offset_dropped_bytes(*reason))).sum();
            self.read(WANTED) == self.read(DELIVERED) + self.read(IN_FLIGHT) + dropped
        }

        /// A worker crashes at an item.
        fn crash(&mut self, item: Item) -> Verdict {
            Region::attach(&self.name).unwrap().journal(Role::Shard(0)).at(item);
            self.aftermath.of_a_death(0, true)
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
    fn what_the_last_had_in_flight_is_dropped_under_the_reason() {
        let mut scene = Scene::new("flight");
        scene.published(&[
            (WANTED, 1000),
            (DELIVERED, 700),
            (IN_FLIGHT, 260),
            (OPEN, 3),
            (offset_dropped_bytes(Drop::Gap), 40),
        ]);
        assert_eq!(scene.aftermath.of_the_last(0, Drop::Stopped), 3);
        assert!(scene.is_balanced());
        assert_eq!(scene.read(offset_dropped_bytes(Drop::Stopped)), 260);
        assert_eq!(scene.read(offset_count(Count::FailedStopped)), 3);
        assert_eq!((scene.read(IN_FLIGHT), scene.read(OPEN)), (0, 0));
        assert_eq!(scene.aftermath.of_the_last(0, Drop::Stopped), 0, "once");
    }

    #[test]
    fn a_kill_from_outside_suspects_nothing() {
        let mut scene = Scene::new("outside");
        Region::attach(&scene.name).unwrap().journal(Role::Shard(0)).at(Item::Captured(64));
        for _ in 0..9 {
            assert_eq!(scene.aftermath.of_a_death(0, false), Verdict::GoesOn);
        }
        assert_eq!(scene.crash(Item::Nothing), Verdict::GoesOn);
    }

    #[test]
    fn the_second_crash_at_an_item_leaves_it_out_and_the_third_gives_the_shard_up() {
        let mut scene = Scene::new("poison");
        scene.published(&[(WANTED, 10), (IN_FLIGHT, 10), (OPEN, 2)]);
        let item = Item::Captured(640);
        assert_eq!(scene.crash(item), Verdict::GoesOn);
        assert_eq!(scene.crash(Item::Returned(640)), Verdict::GoesOn, "another one");
        assert_eq!(scene.crash(item), Verdict::GoesOn);
        let Verdict::LeavesOut(left, Ok(file)) = scene.crash(item) else { panic!("it is left out and kept") };
        assert_eq!(left, item);
        assert!(file.ends_with("1.json") && file.exists());
        assert_eq!(Region::attach(&scene.name).unwrap().journal(Role::Shard(0)).left_out(), item);
        let keep = Table::LASTING_BYTES;
        scene.aftermath.shards[0].arena(scene.region, 0).fill(7);
        assert_eq!(scene.crash(item), Verdict::BeginsAnew(2));
        let arena = scene.aftermath.shards[0].arena(scene.region, 0);
        assert!(arena[..keep].iter().all(|byte| *byte == 7) && arena[keep..].iter().all(|byte| *byte == 0));
        assert!(scene.is_balanced());
        assert_eq!(scene.read(offset_dropped_bytes(Drop::WorkerLost)), 10);
    }

    #[test]
    fn a_session_that_kills_is_known_by_its_number() {
        let mut scene = Scene::new("session");
        assert_eq!(scene.crash(Item::Sessions), Verdict::GoesOn);
        assert!(matches!(scene.crash(Item::Sessions), Verdict::LeavesOut(Item::Session(0), Ok(_))));
    }
}
