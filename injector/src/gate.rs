//! What the canary means for the drain. Until every target is known to be reached or not to be, nothing is taken out of the
//! rings, a few milliseconds at the start; what is for a target that is not reached is taken and not sent, and counted: the
//! shard sends it again.
//!
//! Datagrams are not probed. They share the fate of the probed targets at their address, because the route back is one for all.

use flow::{Endpoint, Inject};
use shm::{Region, Role};
use topology::Plan;
use topology::plan::Clients;

use crate::canary::{Canary, Send};
use crate::count::canary_index;
use crate::ears::{self, Ear, Ears};
use crate::probe::{self, Report};

/// The canary of a run, and its verdicts by target.
pub(crate) struct Gate {
    canary: Canary,
    ears: Ears,
    /// By target of the plan: where it stands in `reports` of the canary, or those that it follows.
    follows: Vec<Vec<u16>>,
    shut: Vec<bool>,
    /// The end is near: nothing waits any more.
    over: bool,
    told: bool,
}

impl Gate {
    /// Of a plan, with the receiver's end; none where nothing is probed. Goes on with what a predecessor wrote into the region.
    pub(crate) fn of(plan: &Plan, region: &'static Region) -> Option<(Self, Ear)> {
        let probed = probe::probed(plan);
        if probed.is_empty() {
            return None;
        }
        let known = |target: u16| {
            let word = |i| region.read_counter(Role::Injector, canary_index(usize::from(target)) + i);
            Report::from_words([word(0), word(1), word(2)])
        };
        let mut at: Vec<Option<Endpoint>> = vec![None; plan.targets.len()];
        let birds: Vec<_> = probed.iter().map(|&(index, to, from)| (index, to.into(), from)).collect();
        birds.iter().for_each(|&(index, to, _)| at[usize::from(index)] = Some(to));
        let claims = matches!(plan.clients, Clients::Keep);
        let number = shm::monotonic_ns() as u32;
        let canary = Canary::new(birds.into_iter(), claims, known, shm::monotonic_us(), number);
        let follows = plan.targets.iter().enumerate().map(|(index, target)| match at[index] {
            Some(_) => vec![index as u16],
            None => probed.iter().filter(|(_, to, _)| to.ip() == target.addr.ip()).map(|one| one.0).collect(),
        });
        let follows: Vec<_> = follows.collect();
        let (ear, ears) = ears::pair(probe::addresses(plan), at, region.doorbell(Role::Injector));
        let shut = vec![false; follows.len()];
        let mut gate = Self { canary, ears, follows, shut, over: false, told: false };
        gate.decide();
        Some((gate, ear))
    }

    /// Listens, probes what is due, judges.
    pub(crate) fn turn(&mut self, now_us: u64, send: Send<'_>) {
        while let Some(heard) = self.ears.next() {
            self.canary.heard(&heard, &mut *send);
        }
        for target in self.ears.answered() {
            self.canary.traffic(target);
        }
        self.canary.turn(now_us, self.ears.channel(), send);
        self.ears.ask(self.canary.is_asking());
        if self.canary.has_news() {
            self.told = false;
            self.decide();
        }
    }

    fn decide(&mut self) {
        let reports: Vec<(u16, Report)> = self.canary.reports().collect();
        let fails =
            |target: &u16| reports.iter().any(|(index, report)| index == target && report.verdict.fails());
        for (shut, follows) in self.shut.iter_mut().zip(&self.follows) {
            *shut = !follows.is_empty() && follows.iter().all(fails);
        }
    }

    /// Whether nothing may be taken yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.over && self.canary.is_waiting()
    }

    /// Nothing waits from now on.
    pub(crate) fn end_waiting(&mut self) {
        self.over = true;
    }

    /// Whether a target is not to be sent to.
    pub(crate) fn shuts(&self, target: u16) -> bool {
        self.shut.get(usize::from(target)).copied().unwrap_or(false)
    }

    /// Whether no target is sent to: their silence means nothing then.
    pub(crate) fn shuts_all(&self) -> bool {
        self.is_waiting() || self.shut.iter().all(|shut| *shut)
    }

    /// When it has something to do again.
    pub(crate) fn due_us(&self) -> u64 {
        self.canary.due_us()
    }

    /// What is known of each probed target; none when that was told before.
    pub(crate) fn news(&mut self) -> Option<impl Iterator<Item = (u16, Report)>> {
        let told = std::mem::replace(&mut self.told, true);
        (!told).then(|| self.canary.reports())
    }
}

/// The target that a record is for, if it is whole enough to say so.
pub(crate) fn target_of(bytes: &[u8]) -> Option<u16> {
    Inject::split(bytes).map(|(head, _)| head.target)
}
