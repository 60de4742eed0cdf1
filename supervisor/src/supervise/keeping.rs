//! What the run keeps itself to: the budget of CPU time, what to do when rates make packets wait for too long, and the ramp.
//! Looked at each 100 ms.

use std::time::{Duration, Instant};

use shm::{Control, MILLION};

use super::{Phase, Supervisor, TICK};
use crate::budget::{Governor, Share, Step};
use crate::member::Member;
use crate::procfs;
use crate::stats::Restraint;
use topology::Plan;

/// What it keeps.
pub(super) struct Keeping {
    governor: Option<Governor>,
    /// Of the rate that is used most.
    rates: Option<Governor>,
    /// Time of it that was used.
    used_us: u64,
    /// As the injector had told last; a supervisor before this one may have heard most of it.
    told: Option<Told>,
    next: Instant,
    /// The ramp's part, parts per million.
    ramped_ppm: u32,
}

/// What the injector tells of its rates.
#[derive(Clone, Copy)]
struct Told {
    held_us: u64,
    paid_us: u64,
}

/// The part of a rate that may be used, thousandths: who uses more wants more than there is. So does who waits for nine tenths of
/// the time, as on a host where nobody gets a core in time.
const USED_MILLI: u32 = 970;
const WAITING_MILLI: u64 = 900;
impl Keeping {
    /// From this moment on.
    pub(super) fn new(plan: &Plan) -> Self {
        let wanted = &plan.restraint;
        // What comes from files waits there. Connections keep to their rate by themselves: one that would wait too long is shed.
        let rates = wanted.is_paced() && plan.trace.is_none();
        Self {
            governor: wanted.cpu_milli.map(Governor::new),
            rates: rates.then(|| Governor::of_rates(USED_MILLI)),
            used_us: 0,
            told: None,
            next: Instant::now(),
            ramped_ppm: MILLION,
        }
    }
}

impl Keeping {
    /// Takes what was used of the rates since the last look.
    fn note_use(&mut self, control: &Control) {
        let now = Told { held_us: control.held_us(), paid_us: control.paid_us() };
        let Some(before) = self.told.replace(now) else { return };
        let (held, paid) = (now.held_us - before.held_us, now.paid_us - before.paid_us);
        self.used_us += paid.max(held * u64::from(USED_MILLI) / WAITING_MILLI);
    }
}

impl Supervisor {
    /// What a supervisor before this one had kept to is kept to no more, unless this one finds so too.
    pub(super) fn keep_nothing_yet(&self) {
        self.apply(Share { admitted_ppm: MILLION, kept_ppm: MILLION, blind: false });
    }

    pub(super) fn keep(&mut self, now: Instant) {
        if now < self.keeping.next || !matches!(self.phase, Phase::Running) {
            return;
        }
        self.keeping.next = now + TICK;
        self.ramp();
        self.keep_to_the_budget();
    }

    /// Another share of flows is asked for; a ramp goes on towards it.
    pub(super) fn ask_percent(&mut self, ppm: u32) {
        let control = self.region.control();
        control.set_asked_ppm(ppm);
        if self.plan.restraint.ramp_ms == 0 {
            control.set_percent_ppm(ppm);
        }
        self.ramp();
    }

    /// The share of flows on its way to what was asked for.
    fn ramp(&mut self) {
        let (control, ramp_ms) = (self.region.control(), self.plan.restraint.ramp_ms);
        if ramp_ms == 0 || self.keeping.ramped_ppm == MILLION && control.percent_ppm() == control.asked_ppm()
        {
            return;
        }
        if control.ramp_begin_ms() == 0 {
            if !self.is_up() {
                return;
            }
            control.set_ramp_begin_ms(shm::monotonic_ms());
        }
        let passed_ms = shm::monotonic_ms().saturating_sub(control.ramp_begin_ms());
        self.keeping.ramped_ppm = part(passed_ms, ramp_ms);
        let share = u64::from(control.asked_ppm()) * u64::from(self.keeping.ramped_ppm) / u64::from(MILLION);
        control.set_percent_ppm(share as u32);
    }

    fn keep_to_the_budget(&mut self) {
        let (control, now_ms) = (self.region.control(), shm::monotonic_ms());
        let (mut cpu, mut rates) = (self.keeping.governor.take(), self.keeping.rates.take());
        let asked_ppm = control.percent_ppm();
        let mut share = Share { admitted_ppm: MILLION, kept_ppm: MILLION, blind: false };
        if let Some(governor) = &mut cpu {
            let own = procfs::cpu_of_process(std::process::id()).unwrap_or_default();
            let spent = self.members.iter().map(Member::cpu_exact).sum::<Duration>() + own;
            let spent_us = spent.as_micros() as u64;
            if self.plan.trace.is_some() {
                share.blind = governor.makes_wait(now_ms, spent_us);
            } else {
                let (before, used) = (governor.step(), governor.used_milli());
                share = governor.look(now_ms, spent_us, asked_ppm);
                if let Some(text) = words(before, governor.step(), share) {
                    let used = used.max(governor.used_milli()) as f64 / 10.0;
                    let budget = self.plan.restraint.cpu_milli.map_or(0.0, |milli| f64::from(milli) / 10.0);
                    self.event(format!("CPU {used:.0} % of a core, budget {budget} %: {text}"));
                }
            }
        }
        if let Some(governor) = &mut rates {
            self.keeping.note_use(control);
            let before = governor.step();
            let other = governor.look(now_ms, self.keeping.used_us, asked_ppm);
            if let Some(text) = words(before, governor.step(), other) {
                self.event(format!("at the limit of packets or bits: {text}"));
            }
            share.admitted_ppm = share.admitted_ppm.min(other.admitted_ppm);
            share.kept_ppm = share.kept_ppm.min(other.kept_ppm);
        }
        if cpu.is_some() || rates.is_some() {
            self.apply(share);
        }
        (self.keeping.governor, self.keeping.rates) = (cpu, rates);
    }

    fn apply(&self, share: Share) {
        let control = self.region.control();
        // New flows first: what is shed must not come back.
        control.set_admitted_ppm(share.admitted_ppm);
        control.set_kept_ppm(share.kept_ppm);
        control.set_blind(share.blind);
    }

    /// For `stats`; none where nothing was asked for.
    pub(super) fn restraint(&self) -> Option<Restraint> {
        let (wanted, control) = (&self.plan.restraint, self.region.control());
        let governor = self.keeping.governor.as_ref();
        let rates = self.keeping.rates.as_ref();
        let rated = wanted.is_paced() || wanted.connections.is_some();
        if governor.is_none() && wanted.ramp_ms == 0 && !rated {
            return None;
        }
        let steps = [governor, rates].into_iter().flatten().map(Governor::step);
        let passed_ms = match control.ramp_begin_ms() {
            0 => 0,
            begin_ms => shm::monotonic_ms().saturating_sub(begin_ms),
        };
        Some(Restraint {
            cpu_percent: governor.map_or(0.0, |governor| governor.used_milli() as f64 / 10.0),
            cpu_budget_percent: wanted.cpu_milli.map_or(0.0, |milli| f64::from(milli) / 10.0),
            step: steps.max().unwrap_or_default().name().to_owned(),
            held_s: control.held_us() as f64 / 1e6,
            max_packets_per_s: wanted.packets.unwrap_or(0),
            max_bits_per_s: wanted.bits.unwrap_or(0),
            max_connections_per_s: wanted.connections.unwrap_or(0),
            admitted_percent: f64::from(control.admitted_ppm()) / 1e4,
            kept_percent: f64::from(control.kept_ppm()) / 1e4,
            ramp_left_s: wanted.ramp_ms.saturating_sub(passed_ms) as f64 / 1e3,
        })
    }
}

/// Of a ramp, parts per million.
fn part(passed_ms: u64, ramp_ms: u64) -> u32 {
    (passed_ms.min(ramp_ms) * u64::from(MILLION)).checked_div(ramp_ms).map_or(MILLION, |ppm| ppm as u32)
}

/// What is said about a step, when it is another one.
fn words(before: Step, now: Step, share: Share) -> Option<String> {
    if before == now {
        return None;
    }
    let percent = f64::from(share.admitted_ppm) / 1e4;
    Some(match now {
        Step::Whole => "all flows are replayed again".to_owned(),
        Step::LeavesOut => format!("new flows beyond {percent:.1} % are left out (`shed`)"),
        Step::Sheds if before == Step::Blind => "capture goes on, without flows at first".to_owned(),
        Step::Sheds => format!("flows beyond {percent:.1} % are ended (`shed`)"),
        Step::Blind => "capture stops until there is room again".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_is_a_straight_line_and_ends() {
        assert_eq!(
            [0, 150_000, 300_000, u64::MAX].map(|ms| part(ms, 300_000)),
            [0, 500_000, MILLION, MILLION]
        );
        assert_eq!(part(7, 0), MILLION);
    }

    #[test]
    fn a_step_is_told_once() {
        let share = Share { admitted_ppm: 400_000, kept_ppm: 400_000, blind: false };
        assert_eq!(words(Step::Sheds, Step::Sheds, share), None);
        assert!(words(Step::LeavesOut, Step::Sheds, share).unwrap().contains("beyond 40.0 % are ended"));
        assert!(words(Step::Blind, Step::Sheds, share).unwrap().contains("capture goes on"));
    }
}
