//! What is known of each target as a whole: whether it is well, how fast connections to it may be made, and how large a
//! packet its path takes. Private memory: a restarted worker begins with targets that are well.
//!
//! The breaker. Each connection attempt has an outcome: a SYN-ACK, a refusal, or silence for [`SILENT_TRIES`] tries; one
//! that was established and ended before a single byte was acknowledged is turned into a failure afterwards.
//!
//! | state | a SYN leaves | becomes |
//! |---|---|---|
//! | well | at once; one that is not a flow's first as the bucket allows | sick when the share of failures among the last 64 outcomes reaches the limit |
//! | sick | one at a time, `pause` after the last one failed, which grows by a quarter with each | well after some in a row have succeeded |
//!
//! Whoever must wait asks again at a time with jitter, so nothing is queued here, the waiting are bounded by the table, and
//! a target that is back is not overrun: those that had to wait pass the bucket.

use crate::config::Pace;

/// A SYN without an answer counts as failed when its second time-out comes: three seconds.
pub(crate) const SILENT_TRIES: u8 = 2;
/// A single attempt that has neither succeeded nor failed by then counts as vanished with its session, µs.
const PROBE_PATIENCE_US: u64 = 5_000_000;
/// By what part of itself a sick target's pause grows: so it is a quarter of the time for which it was away, and one that was away
/// for 2 s is found again within the next. Doubled, it would be all of that time.
const GROWTH: u64 = 4;
/// Who must wait asks again within so long after the earliest moment, spread evenly, µs.
const SPREAD_US: u64 = 1_000_000;
/// Pause before asking again while a single attempt is under way, µs.
const RECHECK_US: u64 = 200_000;
/// A path's MTU is tried to be larger again after ten minutes (RFC 1191, section 6.3), µs.
const PATH_US: u64 = 600_000_000;
/// One connection in the bucket's units.
const TOKEN: u64 = 1_000_000;

/// When a SYN may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Now,
    /// Ask again at this time.
    At(u64),
}

/// A connection attempt that asks to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The first of a flow.
    First,
    /// A later one, or one that has waited.
    Paced,
    /// A SYN that is repeated.
    Repeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Well,
    Sick {
        pause_us: u64,
        /// When the next single attempt may leave.
        next_us: u64,
        /// Whose attempt is or was the last.
        probe: u32,
        /// Until when it is under way; 0 when its outcome is known.
        until_us: u64,
        /// Successes in a row.
        successes: u8,
    },
}

#[derive(Clone, Debug)]
struct Target {
    state: State,
    /// Outcomes, the latest in the lowest bit; 1 is a failure.
    history: u64,
    /// How many of them are known.
    known: u32,
    /// When the last one came.
    outcome_us: u64,
    /// The last pause of the last sickness, and when it was over: one that comes back at once goes on where it was.
    last_pause_us: u64,
    well_us: u64,
    trips: u64,
    /// The bucket, in millionths of a connection.
    tokens: u64,
    filled_us: u64,
    /// MTU that ICMP has told of, until when.
    path_mtu: u16,
    path_until_us: u64,
}

/// All targets of a table, by index.
pub(crate) struct Targets {
    list: Box<[Target]>,
    pace: Pace,
    dice: u64,
}

impl Targets {
    pub(crate) fn new(count: usize, pace: Pace, seed: u64) -> Self {
        let fresh = Target {
            state: State::Well,
            history: 0,
            known: 0,
            outcome_us: 0,
            last_pause_us: 0,
            well_us: 0,
            trips: 0,
            tokens: u64::from(pace.reconnect_burst) * TOKEN,
            filled_us: 0,
            path_mtu: u16::MAX,
            path_until_us: 0,
        };
        Self { list: vec![fresh; count].into_boxed_slice(), pace, dice: seed | 1 }
    }

    /// Whether a target is sick, and how often it became so.
    pub(crate) fn health(&self, target: u16) -> (bool, u64) {
        let target = &self.list[target as usize];
        (target.state != State::Well, target.trips)
    }

    /// Asks for a SYN of session `id` to leave.
    pub(crate) fn ask(&mut self, now_us: u64, target: u16, id: u32, attempt: Attempt) -> Leave {
        let jitter_us = self.jitter(SPREAD_US);
        let pace = self.pace;
        let target = &mut self.list[target as usize];
        match &mut target.state {
            State::Well if attempt == Attempt::Paced => match target.spend(&pace, now_us) {
                true => Leave::Now,
                false => Leave::At(now_us + RECHECK_US + jitter_us),
            },
            State::Well => Leave::Now,
            State::Sick { until_us, .. } if now_us < *until_us => Leave::At(now_us + RECHECK_US + jitter_us),
            State::Sick { next_us, .. } if now_us < *next_us => Leave::At(*next_us + jitter_us),
            State::Sick { probe, until_us, .. } => {
                (*probe, *until_us) = (id, now_us + PROBE_PATIENCE_US);
                Leave::Now
            }
        }
    }

    /// Whether this session's SYN is the single attempt at a sick target.
    pub(crate) fn is_probe(&self, target: u16, id: u32) -> bool {
        matches!(self.list[target as usize].state, State::Sick { probe, until_us, .. } if probe == id && until_us > 0)
    }

    /// The SYN-ACK came.
    pub(crate) fn succeeded(&mut self, now_us: u64, target: u16, id: u32) {
        let well_after = self.pace.well_after;
        let target = &mut self.list[target as usize];
        match &mut target.state {
            State::Well => target.note(now_us, self.pace.forget_us, false),
            State::Sick { pause_us, next_us, probe, until_us, successes } => {
                *successes = successes.saturating_add(1);
                *next_us = now_us;
                if *probe == id {
                    *until_us = 0;
                }
                if *successes >= well_after {
                    (target.last_pause_us, target.well_us) = (*pause_us, now_us);
                    target.state = State::Well;
                    (target.history, target.known, target.tokens) = (0, 0, 0);
                    target.filled_us = now_us;
                }
            }
        }
    }

    /// It was refused, or nothing came.
    pub(crate) fn failed(&mut self, now_us: u64, target: u16, id: u32) {
        let pace = self.pace;
        let jitter_us = self.jitter(SPREAD_US / 4);
        let target = &mut self.list[target as usize];
        match &mut target.state {
            State::Well => {
                target.note(now_us, pace.forget_us, true);
                target.judge(now_us, &pace, jitter_us);
            }
            State::Sick { pause_us, next_us, probe, until_us, successes } if *probe == id => {
                *pause_us = (*pause_us + *pause_us / GROWTH).min(pace.probe_most_us);
                *next_us = now_us + *pause_us + jitter_us.min(*pause_us / 4);
                (*until_us, *successes) = (0, 0);
            }
            // An older attempt: nothing new.
            State::Sick { .. } => {}
        }
    }

    /// A connection that stood has ended with nothing acknowledged: its success was none.
    pub(crate) fn spoilt(&mut self, now_us: u64, target: u16, id: u32) {
        let pace = self.pace;
        let jitter_us = self.jitter(SPREAD_US / 4);
        let one = &mut self.list[target as usize];
        if one.state != State::Well {
            self.failed(now_us, target, id);
        } else if one.known > 0 {
            // The lowest zero is the latest success.
            one.history |= one.history + u64::from(one.history != u64::MAX);
            one.judge(now_us, &pace, jitter_us);
        }
    }

    /// The MTU of the path to a target, given that of the route.
    pub(crate) fn path_mtu(&self, now_us: u64, target: u16, route: u16) -> u16 {
        let target = &self.list[target as usize];
        if now_us < target.path_until_us { route.min(target.path_mtu) } else { route }
    }

    /// A router has said how large a packet may be.
    pub(crate) fn note_path(&mut self, now_us: u64, target: u16, mtu: u16) {
        let target = &mut self.list[target as usize];
        let known = if now_us < target.path_until_us { target.path_mtu } else { u16::MAX };
        (target.path_mtu, target.path_until_us) = (mtu.min(known), now_us + PATH_US);
    }

    /// A number below `bound`, another one each time; 0 when there is none.
    pub(crate) fn jitter(&mut self, bound: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }
}

impl Target {
    /// Takes one connection out of the bucket.
    fn spend(&mut self, pace: &Pace, now_us: u64) -> bool {
        let full = u64::from(pace.reconnect_burst.max(1)) * TOKEN;
        let since_us = now_us.saturating_sub(self.filled_us);
        let more = since_us.saturating_mul(u64::from(pace.reconnects_per_s));
        self.tokens = self.tokens.saturating_add(more).min(full);
        self.filled_us = now_us;
        let enough = self.tokens >= TOKEN;
        if enough {
            self.tokens -= TOKEN;
        }
        enough
    }

    fn note(&mut self, now_us: u64, forget_us: u64, failed: bool) {
        if now_us.saturating_sub(self.outcome_us) > forget_us {
            (self.history, self.known) = (0, 0);
        }
        self.outcome_us = now_us;
        self.history = self.history << 1 | u64::from(failed);
        self.known = (self.known + 1).min(u64::BITS);
    }

    /// Well, or sick from now on?
    fn judge(&mut self, now_us: u64, pace: &Pace, jitter_us: u64) {
        let known = self.history & u64::MAX.checked_shl(self.known).map_or(u64::MAX, |above| !above);
        if self.known < pace.sick_attempts || known.count_ones() * 100 < pace.sick_percent * self.known {
            return;
        }
        let relapse = self.trips > 0 && now_us.saturating_sub(self.well_us) < pace.forget_us;
        let pause_us =
            if relapse { self.last_pause_us * 2 } else { pace.probe_least_us }.min(pace.probe_most_us);
        let next_us = now_us + pause_us + jitter_us.min(pause_us / 4);
        self.state = State::Sick { pause_us, next_us, probe: u32::MAX, until_us: 0, successes: 0 };
        self.trips += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn targets() -> Targets {
        Targets::new(2, Pace::default(), 9)
    }

    fn sick() -> Targets {
        let mut targets = targets();
        (0..16).for_each(|id| targets.failed(SECOND, 0, id));
        assert_eq!((targets.health(0), targets.health(1)), ((true, 1), (false, 0)));
        targets
    }

    #[test]
    fn half_of_the_attempts_must_fail_and_enough_must_be_known() {
        let mut targets = targets();
        (0..15).for_each(|id| targets.failed(SECOND, 0, id));
        assert!(!targets.health(0).0);
        // Old failures are forgotten in a pause.
        targets.failed(20 * SECOND, 0, 15);
        assert!(!targets.health(0).0);
        for i in 0..64 {
            targets.succeeded(20 * SECOND, 0, i);
        }
        for i in 0..31 {
            targets.failed(20 * SECOND, 0, i);
        }
        assert!(!targets.health(0).0);
        targets.failed(20 * SECOND, 0, 99);
        assert!(targets.health(0).0);
    }

    #[test]
    fn a_sick_target_gets_one_attempt_at_a_time_ever_more_rarely() {
        let mut targets = sick();
        let (mut now_us, mut left) = (SECOND, Vec::new());
        while now_us < 100 * SECOND {
            now_us += 10_000;
            if targets.ask(now_us, 0, 7, Attempt::First) == Leave::Now {
                left.push(now_us);
                assert!(matches!(targets.ask(now_us, 0, 8, Attempt::First), Leave::At(at) if at > now_us));
                targets.failed(now_us, 0, 7);
            }
        }
        let pauses: Vec<u64> = left.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.windows(2).all(|two| two[1] + SECOND > two[0]), "{pauses:?}");
        assert!((16..=26).contains(&left.len()) && pauses.last().is_some_and(|&last| last >= 10 * SECOND));
    }

    #[test]
    fn some_successes_in_a_row_make_it_well_and_a_relapse_is_remembered() {
        let mut targets = sick();
        for round in 0..3 {
            let now_us = 3 * SECOND + round;
            assert_eq!(targets.ask(now_us, 0, 50, Attempt::Paced), Leave::Now);
            assert!(targets.is_probe(0, 50));
            targets.succeeded(now_us, 0, 50);
        }
        assert_eq!(targets.health(0), (false, 1));
        // Those that waited come out of an empty bucket.
        assert!(matches!(targets.ask(3 * SECOND + 2, 0, 1, Attempt::Paced), Leave::At(_)));
        assert_eq!(targets.ask(3 * SECOND + 2, 0, 1, Attempt::First), Leave::Now);
        (0..16).for_each(|id| targets.failed(4 * SECOND, 0, id));
        let first = targets.ask(4 * SECOND + 450_000, 0, 1, Attempt::First);
        assert!(matches!(first, Leave::At(_)), "half a second now");
    }

    #[test]
    fn a_success_that_came_to_nothing_is_a_failure() {
        let mut targets = targets();
        for id in 0..16 {
            targets.succeeded(SECOND, 0, id);
            targets.spoilt(SECOND, 0, id);
        }
        assert!(targets.health(0).0);
    }

    #[test]
    fn the_bucket_holds_its_rate() {
        let mut targets = targets();
        let mut passed = 0;
        for now_us in (SECOND..11 * SECOND).step_by(100) {
            passed += u64::from(targets.ask(now_us, 0, 1, Attempt::Paced) == Leave::Now);
        }
        let pace = Pace::default();
        let most = u64::from(pace.reconnect_burst) + 10 * u64::from(pace.reconnects_per_s);
        assert!((most - 100..=most).contains(&passed), "{passed}");
    }

    #[test]
    fn a_path_is_remembered_for_ten_minutes() {
        let mut targets = targets();
        targets.note_path(SECOND, 0, 1_280);
        targets.note_path(SECOND, 0, 1_400);
        assert_eq!(targets.path_mtu(2 * SECOND, 0, 1_500), 1_280);
        assert_eq!(targets.path_mtu(2 * SECOND, 1, 1_500), 1_500);
        assert_eq!(targets.path_mtu(602 * SECOND, 0, 1_500), 1_500);
    }
}
