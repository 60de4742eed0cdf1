//! `--max-pps`, `--max-bps`, `--max-cps`: the injector is the one place where packets leave, so it is where rates are kept, whatever
//! the shards do. A message that may not leave yet waits, and all behind it: nothing is dropped here. Shards learn of it by
//! their rings, and the supervisor by the time that was waited.

use std::time::Duration;

use shm::{Control, Heartbeat, monotonic_ns};
use topology::plan::Restraint;
use topology::restraint::{WINDOW_MS, piece, within_100_ms};

/// Longest sleep at a time: the beat goes on, and a halt is seen.
const NAP: Duration = Duration::from_millis(20);
/// The smallest bound on one packet's bytes: an Ethernet frame's.
const FRAME_BYTES: u64 = 1_500;
/// How much earlier than at its time a unit may leave: whoever had no core for as long catches up. Also the burst after a silence.
const SLACK_NS: u64 = 20_000_000;
const MS_NS: u64 = 1_000_000;

/// One rate, kept in two ways: units leave at their pace, and no window holds more than its share, whoever was late.
#[derive(Clone, Debug)]
struct Rate {
    unit_ps: u64,
    /// When what has left is paid for.
    paid_ps: u128,
    /// Units that a window may hold, and that may leave at once.
    most: u64,
    piece: u64,
    /// What has left in each of the last milliseconds, at its number modulo their count.
    left: [u64; WINDOW_MS],
    /// The last of them.
    ms: u64,
    /// What all of them hold.
    within: u64,
    /// What is about to leave.
    leaving: u64,
}

impl Rate {
    fn new(per_s: u64, piece: u64) -> Self {
        Self {
            unit_ps: 1_000_000_000_000 / per_s.max(1),
            paid_ps: 0,
            most: within_100_ms(per_s).max(piece),
            piece,
            left: [0; WINDOW_MS],
            ms: 0,
            within: 0,
            leaving: 0,
        }
    }

    /// How long the next piece must wait.
    fn wait_ns(&mut self, now_ns: u64) -> u64 {
        self.come_to(now_ns);
        let due_ns = u64::try_from(self.paid_ps / 1_000).unwrap_or(u64::MAX).saturating_sub(SLACK_NS);
        let mut over = (self.within + self.leaving + self.piece).saturating_sub(self.most);
        let mut room_ns = 0;
        // The oldest leave the window first.
        for ms in self.ms + 1..=self.ms + WINDOW_MS as u64 {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(self.left[ms as usize % WINDOW_MS]);
            room_ns = ms * MS_NS;
        }
        due_ns.max(room_ns).saturating_sub(now_ns)
    }

    /// Units are handed over to leave.
    fn spend(&mut self, now_ns: u64, units: u64) {
        // What was not used is not saved up.
        self.paid_ps =
            self.paid_ps.max(u128::from(now_ns) * 1_000) + u128::from(self.unit_ps) * u128::from(units);
        self.leaving += units;
    }

    /// They have left.
    fn have_left(&mut self, now_ns: u64) {
        if self.leaving > 0 {
            self.come_to(now_ns);
            self.left[self.ms as usize % WINDOW_MS] += self.leaving;
            self.within += std::mem::take(&mut self.leaving);
        }
    }

    /// Forgets what is older than the window.
    fn come_to(&mut self, now_ns: u64) {
        let now_ms = (now_ns / MS_NS).max(self.ms);
        for ms in (self.ms + 1..=now_ms).take(WINDOW_MS) {
            self.within -= std::mem::take(&mut self.left[ms as usize % WINDOW_MS]);
        }
        self.ms = now_ms;
    }
}

/// The rates of a run.
#[derive(Debug)]
pub(crate) struct Limit {
    packets: Option<Rate>,
    bytes: Option<Rate>,
    connections: Option<Rate>,
    most_segments: u16,
    most_bytes: u16,
    /// Time that was paid for and not told yet.
    untold_ps: u64,
    control: &'static Control,
    heartbeat: &'static Heartbeat,
}

impl Limit {
    /// None where no rate was asked for.
    pub(crate) fn new(
        wanted: &Restraint,
        control: &'static Control,
        heartbeat: &'static Heartbeat,
    ) -> Option<Self> {
        if !wanted.is_paced() && wanted.connections.is_none() {
            return None;
        }
        let most_segments = wanted.packets.map_or(u64::MAX, |rate| piece(rate, 1));
        let most_bytes =
            wanted.bits.map_or(u64::MAX, |bits| piece(bits / 8, FRAME_BYTES)).min(u16::MAX.into());
        Some(Self {
            packets: wanted.packets.map(|rate| Rate::new(rate, most_segments)),
            bytes: wanted.bits.map(|bits| Rate::new(bits / 8, most_bytes)),
            connections: wanted.connections.map(|rate| Rate::new(rate, 1)),
            untold_ps: 0,
            most_segments: u16::try_from(most_segments).unwrap_or(u16::MAX),
            most_bytes: most_bytes as u16,
            control,
            heartbeat,
        })
    }

    /// Segments that may leave at once.
    pub(crate) const fn most_segments(&self) -> u16 {
        self.most_segments
    }

    /// Bytes that may leave at once, from the IP header on.
    pub(crate) const fn most_bytes(&self) -> u16 {
        self.most_bytes
    }

    /// How long the next message must wait; `syn`: it begins a connection.
    pub(crate) fn wait_ns(&mut self, now_ns: u64, syn: bool) -> u64 {
        let connections = self.connections.as_mut().filter(|_| syn);
        let rates = [self.packets.as_mut(), self.bytes.as_mut(), connections];
        rates.into_iter().flatten().map(|rate| rate.wait_ns(now_ns)).max().unwrap_or(0)
    }

    /// A message is handed over to leave.
    pub(crate) fn spend(&mut self, now_ns: u64, segments: u16, bytes: u32, syn: bool) {
        if let Some(rate) = self.connections.as_mut().filter(|_| syn) {
            rate.spend(now_ns, 1);
        }
        // Connections were booked at their pace: that all of it is used tells nothing.
        let mut paid_ps = 0;
        for (rate, units) in [(&mut self.packets, u64::from(segments)), (&mut self.bytes, u64::from(bytes))] {
            if let Some(rate) = rate.as_mut().filter(|_| units > 0) {
                rate.spend(now_ns, units);
                paid_ps = paid_ps.max(rate.unit_ps * units);
            }
        }
        self.untold_ps += paid_ps;
    }

    /// What was handed over has left.
    pub(crate) fn has_left(&mut self, now_ns: u64) {
        for rate in [&mut self.packets, &mut self.bytes, &mut self.connections].into_iter().flatten() {
            rate.have_left(now_ns);
        }
        self.control.add_paid_us(self.untold_ps / 1_000_000);
        self.untold_ps %= 1_000_000;
    }

    /// Sleeps; false when the run is halted meanwhile.
    pub(crate) fn sleep(&self, wait_ns: u64) -> bool {
        let begin_ns = monotonic_ns();
        let until_ns = begin_ns.saturating_add(wait_ns);
        let mut now_ns = begin_ns;
        while now_ns < until_ns && !self.control.halt() {
            std::thread::sleep(NAP.min(Duration::from_nanos(until_ns - now_ns)));
            let before_ns = std::mem::replace(&mut now_ns, monotonic_ns());
            self.heartbeat.beat(now_ns / 1_000_000);
            self.control.add_held_us((now_ns - before_ns) / 1_000);
        }
        !self.control.halt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const WINDOW_NS: u64 = 100_000_000;

    /// Leaves units as fast as they may go, in pieces up to `most`, from a thread that now and then gets no core; the most that any
    /// window holds, and what a second holds in the mean.
    fn run(per_s: u64, most: u64, pauses: bool) -> (u64, f64) {
        let mut rate = Rate::new(per_s, most);
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |n: u64| {
            dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (dice >> 33) % n
        };
        let (begin_ns, mut now_ns, mut all) = (1_000_000_000, 1_000_000_000_u64, 0);
        let (mut recent, mut within, mut worst) = (VecDeque::new(), 0, 0);
        while now_ns < begin_ns + 5_000_000_000 {
            let wait_ns = rate.wait_ns(now_ns);
            if wait_ns > 0 {
                now_ns += wait_ns + draw(100_000);
                if pauses && draw(20) == 0 {
                    now_ns += draw(15_000_000);
                }
                continue;
            }
            let units = 1 + draw(most);
            rate.spend(now_ns, units);
            // The look at the clock is behind it, the wire is not always.
            now_ns += if pauses && draw(per_s / 5 + 1) == 0 { draw(10_000_000) } else { 1_000 };
            all += units;
            within += units;
            recent.push_back((now_ns, units));
            rate.have_left(now_ns);
            while recent.front().is_some_and(|(at_ns, _)| now_ns - at_ns >= WINDOW_NS) {
                within -= recent.pop_front().map_or(0, |(_, units)| units);
            }
            worst = worst.max(within);
        }
        (worst, all as f64 / 5.0)
    }

    #[test]
    fn no_100_ms_hold_more_than_the_rate_and_little_is_given_away() {
        for per_s in [10, 17, 100, 1_000, 33_333, 500_000] {
            for most in [1, piece(per_s, 1)] {
                for pauses in [false, true] {
                    let (worst, mean) = run(per_s, most, pauses);
                    let what =
                        format!("{per_s} in pieces of {most}, pauses {pauses}: {worst}, {mean} a second");
                    assert!(worst <= within_100_ms(per_s), "{what}");
                    let whole = (within_100_ms(per_s) * 10) as f64;
                    assert!(mean >= whole * if pauses { 0.85 } else { 0.93 }, "{what}");
                }
            }
        }
        for bits in [1_000_000, 10_000_000, 1_000_000_000_u64] {
            let (worst, mean) = run(bits / 8, piece(bits / 8, FRAME_BYTES), false);
            assert!(worst * 80 <= bits, "{bits}: {worst} bytes");
            assert!(mean * 8.0 >= bits as f64 * 0.85, "{bits}: {mean} bytes a second");
        }
    }

    #[test]
    fn who_was_late_catches_up_and_no_further() {
        let mut rate = Rate::new(1_000, 1);
        let at = |ms: u64| 1_000_000_000 + ms * MS_NS;
        let mut sent = 0;
        // Nobody looked for 15 ms, and then for a second.
        for (ms, most) in [(0, 21), (15, 15), (1_015, 21)] {
            let before = sent;
            while rate.wait_ns(at(ms)) == 0 {
                rate.spend(at(ms), 1);
                rate.have_left(at(ms));
                sent += 1;
            }
            assert_eq!(sent - before, most, "after {ms} ms");
        }
    }
}
