//! `--max-pps`, `--max-bps`, `--max-cps`: the injector is the one place where packets leave, so it is where rates are kept, whatever
//! the shards do. A message that may not leave yet waits, and all behind it: nothing is dropped here. Shards learn of it by
//! their rings, and the supervisor by the time that was waited.

use std::time::Duration;

use shm::{Control, Heartbeat, monotonic_ns};
use topology::plan::Restraint;
use topology::restraint::{SLACK_NS, piece, unit_ps};

/// Longest sleep at a time: the beat goes on, and a halt is seen.
const NAP: Duration = Duration::from_millis(20);
/// The smallest bound on one packet's bytes: an Ethernet frame's.
const FRAME_BYTES: u64 = 1_500;
/// Sending takes so long without being late.
const USUAL_NS: u64 = 200_000;

/// One rate.
#[derive(Clone, Debug)]
struct Rate {
    unit_ps: u128,
    /// When what has left is paid for.
    paid_ps: u128,
}

impl Rate {
    fn new(per_s: u64, most: u64) -> Self {
        Self { unit_ps: unit_ps(per_s, most).into(), paid_ps: 0 }
    }

    /// How long the next unit must wait.
    fn wait_ns(&self, now_ns: u64) -> u64 {
        let due_ns = u64::try_from(self.paid_ps / 1_000).unwrap_or(u64::MAX).saturating_sub(SLACK_NS);
        due_ns.saturating_sub(now_ns)
    }

    fn spend(&mut self, now_ns: u64, units: u64) {
        // What was not used is not saved up.
        self.paid_ps = self.paid_ps.max(u128::from(now_ns) * 1_000) + self.unit_ps * u128::from(units);
    }

    fn put_off(&mut self, ns: u64) {
        self.paid_ps += u128::from(ns) * 1_000;
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
    pub(crate) fn wait_ns(&self, now_ns: u64, syn: bool) -> u64 {
        let connections = self.connections.as_ref().filter(|_| syn);
        let rates = [self.packets.as_ref(), self.bytes.as_ref(), connections];
        rates.into_iter().flatten().map(|rate| rate.wait_ns(now_ns)).max().unwrap_or(0)
    }

    /// A message leaves.
    pub(crate) fn spend(&mut self, now_ns: u64, segments: u16, bytes: u32, syn: bool) {
        for (rate, units) in [
            (&mut self.packets, u64::from(segments)),
            (&mut self.bytes, u64::from(bytes)),
            (&mut self.connections, u64::from(syn)),
        ] {
            if let Some(rate) = rate.as_mut().filter(|_| units > 0) {
                rate.spend(now_ns, units);
            }
        }
    }

    /// What was to leave at `due_ns` left now only: those behind it are not to follow closer than they may.
    pub(crate) fn has_left(&mut self, due_ns: u64, now_ns: u64) {
        let late_ns = now_ns.saturating_sub(due_ns);
        if late_ns > USUAL_NS {
            for rate in [&mut self.packets, &mut self.bytes, &mut self.connections].into_iter().flatten() {
                rate.put_off(late_ns);
            }
        }
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
                if pauses && draw(50) == 0 {
                    now_ns += draw(60_000_000);
                }
                continue;
            }
            let units = 1 + draw(most);
            rate.spend(now_ns, units);
            all += units;
            within += units;
            recent.push_back((now_ns, units));
            while recent.front().is_some_and(|(at_ns, _)| now_ns - at_ns >= WINDOW_NS) {
                within -= recent.pop_front().map_or(0, |(_, units)| units);
            }
            worst = worst.max(within);
            now_ns += 1_000;
        }
        (worst, all as f64 / 5.0)
    }

    #[test]
    fn no_100_ms_hold_more_than_five_percent_above_the_rate() {
        for per_s in [10, 17, 100, 1_000, 33_333, 500_000] {
            for most in [1, piece(per_s, 1)] {
                for pauses in [false, true] {
                    let (worst, mean) = run(per_s, most, pauses);
                    assert!(worst <= per_s * 105 / 1_000, "{per_s} in pieces of {most}: {worst}");
                    assert!(
                        pauses || mean >= per_s as f64 * 0.5,
                        "{per_s} in pieces of {most}: {mean} a second"
                    );
                }
            }
        }
        for bits in [1_000_000, 10_000_000, 1_000_000_000_u64] {
            let (worst, mean) = run(bits / 8, piece(bits / 8, FRAME_BYTES), false);
            assert!(worst * 8 <= bits * 105 / 1_000, "{bits}: {worst} bytes");
            assert!(mean * 8.0 >= bits as f64 * 0.85, "{bits}: {mean} bytes a second");
        }
    }

    #[test]
    fn what_left_late_is_not_made_up_for() {
        let mut rate = Rate::new(1_000, 1);
        rate.spend(1_000_000_000, 1);
        assert_eq!(rate.wait_ns(1_000_000_000), 0, "within the slack");
        rate.put_off(30_000_000);
        assert!(rate.wait_ns(1_000_000_000) >= 28_000_000);
    }
}
