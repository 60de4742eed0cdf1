//! What the canary means for the drain. Until every target is known to be reached or not to be, nothing is taken out of the
//! rings, a few milliseconds at the start; what is for a target that is not reached is taken and not sent, and counted: the
//! shard sends it again.
//!
//! Datagrams are not probed. They share the fate of the probed targets at their address, because the route back is one for all.

use flow::record::flag;
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
    /// By target of the plan: itself, where it is probed, or the probed ones whose fate it shares.
    follows: Vec<Vec<u16>>,
    /// By target of the plan: not to be sent to.
    shut: Vec<bool>,
    /// By target of the plan: since when what was sent waits for any sign of life, microseconds; 0 when nothing does.
    silent_us: Vec<u64>,
    now_us: u64,
    /// The end is near: nothing waits any more.
    over: bool,
    told: bool,
}

/// Silence of a target that was sent something after which its way is doubted: longer than a retransmission takes.
const SILENCE_US: u64 = 1_000_000;

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
        let (shut, silent_us) = (vec![false; follows.len()], vec![0; follows.len()]);
        let mut gate = Self { canary, ears, follows, shut, silent_us, now_us: 0, over: false, told: false };
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
            self.silent_us[usize::from(target)] = 0;
        }
        for (target, since_us) in self.silent_us.iter_mut().enumerate() {
            if *since_us != 0 && now_us.saturating_sub(*since_us) >= SILENCE_US {
                *since_us = now_us;
                self.canary.doubt(target as u16, now_us);
            }
        }
        self.canary.turn(now_us, self.ears.channel(), send);
        self.now_us = now_us;
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

    /// A record is sent to a target; what bears payload or a SYN draws an answer from any host that gets it.
    pub(crate) fn sends(&mut self, head: &Inject) {
        let draws = head.payload_len > 0 || head.tcp.has(flag::SYN);
        if let Some(since_us) = self.silent_us.get_mut(usize::from(head.target))
            && draws
            && *since_us == 0
        {
            *since_us = self.now_us;
        }
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
