//! How much of its traffic a run may replay so that it stays within `--budget-cpu`; and, with the part of a rate
//! that is used in place of the CPU time, within its rates. Pure: it is told time and CPU time, and says
//! what follows.
//!
//! | step | is taken when the last one was not enough |
//! |---|---|
//! | `Whole` | |
//! | `LeavesOut` | new flows above a draw are left out |
//! | `Sheds` | flows above it are ended, and the draw goes down to none |
//! | `Blind` | nothing is captured |
//!
//! CPU time is taken as proportional to the flows, apart from a part that stays: so what is left of the budget tells how far the
//! share may grow, and where it lands is inside the dead band. After each change only what is measured since counts. An
//! attempt to grow that led over the budget makes the next one wait twice as long. So it does not swing, whatever the load.

use std::collections::VecDeque;

use shm::MILLION;

/// The share of flows that is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Draws of new flows are below this, parts per million.
    pub(crate) admitted_ppm: u32,
    /// Draws of all flows are below this.
    pub(crate) kept_ppm: u32,
    /// Nothing is captured.
    pub(crate) blind: bool,
}

/// How far it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// All that was asked for.
    #[default]
    Whole,
    /// New flows are left out.
    LeavesOut,
    /// Open ones were ended.
    Sheds,
    /// Nothing is captured.
    Blind,
}

impl Step {
    /// In `stats`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::LeavesOut => "leaving_out",
            Self::Sheds => "shedding",
            Self::Blind => "blind",
        }
    }
}

/// Over which the budget is meant, ms.
const WINDOW_MS: u64 = 1_000;
/// Too much by half is too much before a second is over, ms.
const SHORT_MS: u64 = 300;
/// While flows are left out already, ms.
const NEXT_MS: u64 = 500;
/// How it comes to its budget.
#[derive(Clone, Copy, Debug)]
struct Band {
    /// Below this part of the budget the share may grow, percent.
    room_percent: u64,
    /// Where it is meant to land, percent: inside the dead band.
    aim_percent: u64,
    /// What a share that is too large is cut to at most, percent: more, and it takes long where most of what is used is no
    /// flow's.
    cut_percent: u64,
}

const CPU: Band = Band { room_percent: 80, aim_percent: 90, cut_percent: 75 };
/// A rate is kept whatever is asked of it: that it comes near costs nobody anything. And that more is asked than can leave does
/// not tell how much more.
const RATES: Band = Band { room_percent: 95, aim_percent: 97, cut_percent: 90 };
/// The smallest share above none.
const LEAST_PPM: u32 = 10_000;
/// Calm before the share grows, ms; it doubles after each attempt that failed.
const CALM_MS: u64 = 2_000;
const LONGEST_CALM_MS: u64 = 120_000;
/// Growth that holds for so long was no mistake, ms: flows that stay open for long fill a larger share slowly.
const HELD_MS: u64 = 60_000;

/// Keeps the account.
#[derive(Debug)]
pub(crate) struct Governor {
    band: Band,
    budget_milli: u64,
    /// (time, CPU time so far), oldest first.
    looks: VecDeque<(u64, u64)>,
    /// Of new flows.
    share_ppm: u32,
    step: Step,
    calm_ms: u64,
    grown_ms: Option<u64>,
    /// Since when there is room.
    room_ms: Option<u64>,
    used_milli: u64,
}

impl Governor {
    /// For a budget in thousandths of a core.
    pub(crate) const fn new(budget_milli: u32) -> Self {
        Self::within(CPU, budget_milli)
    }

    /// For rates of which so many thousandths may be used.
    pub(crate) const fn of_rates(budget_milli: u32) -> Self {
        Self::within(RATES, budget_milli)
    }

    const fn within(band: Band, budget_milli: u32) -> Self {
        Self {
            band,
            budget_milli: budget_milli as u64,
            looks: VecDeque::new(),
            share_ppm: MILLION,
            step: Step::Whole,
            calm_ms: CALM_MS,
            grown_ms: None,
            room_ms: None,
            used_milli: 0,
        }
    }

    /// Takes the CPU time so far (microseconds) of all processes; `asked_ppm` is the share without any budget.
    pub(crate) fn look(&mut self, now_ms: u64, cpu_us: u64, asked_ppm: u32) -> Share {
        self.note(now_ms, cpu_us);
        let span_ms = now_ms - self.looks[0].0;
        let long = self.milli_since(WINDOW_MS);
        self.used_milli = long;
        let short = self.milli_since(SHORT_MS);
        let over = span_ms >= WINDOW_MS && long > self.budget_milli
            || span_ms >= SHORT_MS && short > self.budget_milli + self.budget_milli / 2
            || span_ms >= NEXT_MS && self.step != Step::Whole && long > self.budget_milli;
        if over {
            self.room_ms = None;
            self.shrink(now_ms, long.max(short), asked_ppm);
        } else if self.step == Step::Whole || span_ms < WINDOW_MS {
            // Nothing to be given back, or too early to say.
        } else if long * 100 >= self.budget_milli * self.band.room_percent {
            self.room_ms = None;
        } else if now_ms - *self.room_ms.get_or_insert(now_ms) >= self.calm_ms {
            self.grow(now_ms, long, asked_ppm);
        }
        if self.grown_ms.is_some_and(|at_ms| now_ms - at_ms >= HELD_MS.max(2 * self.calm_ms)) {
            (self.grown_ms, self.calm_ms) = (None, CALM_MS);
        }
        self.share()
    }

    /// The same where nothing is ever left out, because what there is can wait: whether it has to, now.
    pub(crate) fn makes_wait(&mut self, now_ms: u64, cpu_us: u64) -> bool {
        self.note(now_ms, cpu_us);
        self.used_milli = self.milli_since(WINDOW_MS);
        self.used_milli > self.budget_milli
    }

    fn note(&mut self, now_ms: u64, cpu_us: u64) {
        self.looks.push_back((now_ms, cpu_us));
        while self.looks.get(1).is_some_and(|(at_ms, _)| now_ms - at_ms >= WINDOW_MS) {
            self.looks.pop_front();
        }
    }

    /// How far it went.
    pub(crate) const fn step(&self) -> Step {
        self.step
    }

    /// CPU time in the last second, thousandths of a core.
    pub(crate) const fn used_milli(&self) -> u64 {
        self.used_milli
    }

    const fn share(&self) -> Share {
        let (admitted_ppm, kept_ppm, blind) = match self.step {
            Step::Whole => (MILLION, MILLION, false),
            Step::LeavesOut => (self.share_ppm, MILLION, false),
            Step::Sheds => (self.share_ppm, self.share_ppm, false),
            Step::Blind => (0, 0, true),
        };
        Share { admitted_ppm, kept_ppm, blind }
    }

    /// Mean use over the last so many milliseconds.
    fn milli_since(&self, ms: u64) -> u64 {
        let Some(&(now_ms, now_us)) = self.looks.back() else { return 0 };
        let begin = self.looks.iter().rev().find(|(at_ms, _)| now_ms - at_ms >= ms).or(self.looks.front());
        // µs in a ms are thousandths of a core.
        begin.map_or(0, |&(at_ms, at_us)| now_us.saturating_sub(at_us) / (now_ms - at_ms).max(1))
    }

    fn shrink(&mut self, now_ms: u64, used_milli: u64, asked_ppm: u32) {
        if self.grown_ms.take().is_some() {
            self.calm_ms = (self.calm_ms * 2).min(LONGEST_CALM_MS);
        }
        let share = u64::from(self.share_ppm.min(asked_ppm));
        let aim = share * self.budget_milli * self.band.aim_percent / 100 / used_milli.max(1);
        // Not to nothing after a moment.
        let next = aim.clamp(share / 4, share * self.band.cut_percent / 100) as u32;
        let next = if next < LEAST_PPM { 0 } else { next };
        match self.step {
            Step::Whole => (self.step, self.share_ppm) = (Step::LeavesOut, next),
            Step::LeavesOut => (self.step, self.share_ppm) = (Step::Sheds, next),
            Step::Sheds if self.share_ppm > 0 => self.share_ppm = next,
            Step::Sheds | Step::Blind => self.step = Step::Blind,
        }
        self.measure_anew(now_ms);
    }

    fn grow(&mut self, now_ms: u64, used_milli: u64, asked_ppm: u32) {
        if self.step == Step::Blind {
            // To see what capturing alone costs.
            (self.step, self.share_ppm) = (Step::Sheds, 0);
        } else {
            let share = u64::from(self.share_ppm);
            let aim = share * self.budget_milli * self.band.aim_percent / 100 / used_milli.max(1);
            let next = aim.min(share * 3 / 2).max(u64::from(LEAST_PPM.min(asked_ppm)));
            if next >= u64::from(asked_ppm) {
                (self.step, self.share_ppm) = (Step::Whole, MILLION);
            } else {
                self.share_ppm = next as u32;
            }
        }
        self.grown_ms = Some(now_ms);
        self.room_ms = None;
        self.measure_anew(now_ms);
    }

    fn measure_anew(&mut self, now_ms: u64) {
        let last = self.looks.back().map_or((now_ms, 0), |last| *last);
        self.looks.clear();
        self.looks.push_back(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which a part of the time is proportional to the flows that are replayed.
    struct Host {
        governor: Governor,
        now_ms: u64,
        cpu_us: u64,
        share: Share,
        /// Flows that are open, as a share; they end by themselves at this rate a second.
        open: f64,
        turnover: f64,
        changes: u32,
        worst_milli: f64,
    }

    impl Host {
        fn new(budget_milli: u32, turnover: f64) -> Self {
            let share = Share { admitted_ppm: MILLION, kept_ppm: MILLION, blind: false };
            Self {
                governor: Governor::new(budget_milli),
                now_ms: 1_000,
                cpu_us: 0,
                share,
                open: 1.0,
                turnover,
                changes: 0,
                worst_milli: 0.0,
            }
        }

        /// So many seconds with these costs, thousandths of a core: of capturing alone, and of replaying everything.
        fn runs(&mut self, seconds: u64, capture: f64, whole: impl Fn(u64) -> f64) {
            let mut recent = VecDeque::new();
            for _ in 0..seconds * 10 {
                let (admitted, kept) =
                    (f64::from(self.share.admitted_ppm) / 1e6, f64::from(self.share.kept_ppm) / 1e6);
                self.open += (admitted - self.open) * (self.turnover / 10.0).min(1.0);
                self.open = self.open.min(kept);
                let used = if self.share.blind { 2.0 } else { capture + whole(self.now_ms) * self.open };
                self.cpu_us += (used * 100.0) as u64;
                self.now_ms += 100;
                recent.push_back(used);
                if recent.len() > 10 {
                    recent.pop_front();
                    self.worst_milli = self.worst_milli.max(recent.iter().sum::<f64>() / 10.0);
                }
                let share = self.governor.look(self.now_ms, self.cpu_us, MILLION);
                self.changes += u32::from(share != self.share);
                self.share = share;
            }
        }
    }

    #[test]
    fn a_run_within_its_budget_is_left_alone() {
        let mut host = Host::new(500, 1.0);
        host.runs(600, 50.0, |ms| if ms % 7_000 < 300 { 650.0 } else { 350.0 });
        assert_eq!(
            (host.changes, host.governor.step()),
            (0, Step::Whole),
            "bursts within a second are no matter"
        );
    }

    #[test]
    fn short_flows_are_left_out_and_long_ones_ended() {
        let mut short = Host::new(300, 20.0);
        short.runs(10, 50.0, |_| 500.0);
        assert!(matches!(short.governor.step(), Step::LeavesOut | Step::Sheds));
        let mut long = Host::new(300, 0.001);
        long.runs(10, 50.0, |_| 500.0);
        assert_eq!(long.governor.step(), Step::Sheds);
        for host in [&mut short, &mut long] {
            host.worst_milli = 0.0;
            host.runs(20, 50.0, |_| 500.0);
            assert!(host.worst_milli <= 300.0, "{}", host.worst_milli);
            assert!(host.share.admitted_ppm > 200_000, "{:?}: more was left out than had to be", host.share);
        }
    }

    #[test]
    fn where_capturing_alone_is_too_much_it_stops() {
        let mut host = Host::new(50, 1.0);
        host.runs(8, 200.0, |_| 500.0);
        assert_eq!((host.governor.step(), host.share.blind), (Step::Blind, true));
        host.changes = 0;
        host.runs(600, 200.0, |_| 500.0);
        assert!(host.changes < 30, "{} attempts in ten minutes", host.changes);
    }

    #[test]
    fn it_does_not_swing_under_any_steady_load() {
        for budget in [20, 100, 300, 500, 900] {
            for capture in [5.0, 60.0, 290.0] {
                for whole in [100.0, 350.0, 800.0, 3_000.0] {
                    for turnover in [0.01, 0.3, 5.0] {
                        let mut host = Host::new(budget, turnover);
                        host.runs(60, capture, |_| whole);
                        (host.changes, host.worst_milli) = (0, 0.0);
                        host.runs(600, capture, |_| whole);
                        let what = format!("{budget} {capture} {whole} {turnover}: {} changes", host.changes);
                        assert!(host.changes <= 40, "{what}");
                        // What an attempt to grow may cost for less than a second.
                        let most = f64::from(budget).max(capture) * 1.3;
                        assert!(host.worst_milli <= most, "{what}, worst {} milli", host.worst_milli);
                    }
                }
            }
        }
    }

    #[test]
    fn all_comes_back_when_there_is_room_again() {
        let mut host = Host::new(300, 1.0);
        host.runs(20, 50.0, |_| 900.0);
        assert_ne!(host.governor.step(), Step::Whole);
        host.runs(180, 20.0, |_| 150.0);
        assert_eq!((host.governor.step(), host.share.admitted_ppm), (Step::Whole, MILLION));
        let mut blind = Host::new(50, 1.0);
        blind.runs(20, 200.0, |_| 500.0);
        assert!(blind.share.blind);
        blind.runs(400, 5.0, |_| 20.0);
        assert_eq!((blind.governor.step(), blind.share.blind), (Step::Whole, false));
    }

    #[test]
    fn files_are_read_for_a_share_of_the_time() {
        let mut governor = Governor::new(250);
        let (mut cpu_us, mut waits, mut spent) = (0, false, 0);
        for look in 0..1_000_u64 {
            // All of a core while reading.
            let used = if waits { 0 } else { 100_000 };
            cpu_us += used;
            spent += used;
            waits = governor.makes_wait(1_000 + look * 100, cpu_us);
        }
        let share = spent as f64 / 100e6;
        assert!((0.15..=0.32).contains(&share), "{share} of a core");
    }
}
