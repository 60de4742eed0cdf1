//! What happens to a frame on its way one way, and when it arrives: pure, with the time as an argument.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::frame::Frame;

/// What a cable does in one direction. The default passes everything on at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    /// Least time on the way.
    pub least: Duration,
    /// Most; each frame's is drawn evenly between the two. Unless in order, frames overtake each other.
    pub most: Duration,
    /// Frames arrive in the order in which they came.
    pub in_order: bool,
    /// Frames lost, parts per million.
    pub lost_ppm: u32,
    /// Frames that arrive twice, each with a delay of its own.
    pub doubled_ppm: u32,
    /// Frames with one bit changed behind the Ethernet header.
    pub altered_ppm: u32,
    /// Bytes per second; none is unlimited.
    pub rate: Option<u64>,
}

impl Course {
    /// A delay between two numbers of milliseconds, with reordering.
    pub fn between_ms(least: u64, most: u64) -> Self {
        Self { least: Duration::from_millis(least), most: Duration::from_millis(most), ..Self::default() }
    }
}

/// What became of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) lost: bool,
    pub(super) doubled: bool,
    pub(super) altered: bool,
}

/// Frames on their way in one direction.
pub(super) struct Lane {
    on_their_way: BinaryHeap<Reverse<Arrival>>,
    random: u64,
    came: u64,
    /// Number of the latest frame that arrived.
    arrived: u64,
    /// When the last one in order arrives.
    last_due: u64,
    /// When a slow cable has sent everything that it was given.
    free_at: u64,
}

/// Ordered by arrival, then by number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    due: u64,
    number: u64,
    frame: Frame,
}

/// How far a slow cable may lag behind before it loses frames: a queue of 100 ms.
const QUEUE_NS: u64 = 100_000_000;

impl Lane {
    pub(super) fn new(seed: u64) -> Self {
        Self { on_their_way: BinaryHeap::new(), random: seed, came: 0, arrived: 0, last_due: 0, free_at: 0 }
    }

    /// A frame comes.
    pub(super) fn take(&mut self, course: &Course, mut frame: Frame, now: u64) -> Taken {
        let mut taken = Taken { lost: self.happens(course.lost_ppm), ..Taken::default() };
        let mut sent_at = now;
        if let Some(rate) = course.rate {
            sent_at = self.free_at.max(now);
            taken.lost |= sent_at - now > QUEUE_NS;
            if !taken.lost {
                sent_at += frame.wire_len() * 1_000_000_000 / rate.max(1);
                self.free_at = sent_at;
            }
        }
        if taken.lost {
            return taken;
        }
        if self.happens(course.altered_ppm) {
            let place = self.draw();
            taken.altered = frame.alter(place);
        }
        self.came += 1;
        if self.happens(course.doubled_ppm) {
            taken.doubled = true;
            self.push(course, frame.clone(), sent_at);
        }
        self.push(course, frame, sent_at);
        taken
    }

    fn push(&mut self, course: &Course, frame: Frame, sent_at: u64) {
        let (least, most) = (course.least.as_nanos() as u64, course.most.as_nanos() as u64);
        let mut due = sent_at + least + self.draw() % (most.saturating_sub(least) + 1);
        if course.in_order {
            due = due.max(self.last_due);
        }
        self.last_due = due;
        self.on_their_way.push(Reverse(Arrival { due, number: self.came, frame }));
    }

    /// The next frame that has arrived by `now`, and whether a later one was before it.
    pub(super) fn arrived(&mut self, now: u64) -> Option<(Frame, bool)> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(arrival) = self.on_their_way.pop()?;
        let overtaken = arrival.number < self.arrived;
        self.arrived = self.arrived.max(arrival.number);
        Some((arrival.frame, overtaken))
    }

    /// When the next frame arrives, ns.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.on_their_way.peek().map(|Reverse(arrival)| arrival.due)
    }

    fn happens(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.draw() % 1_000_000 < u64::from(ppm)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough for draws of faults.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: u8) -> Frame {
        Frame::new(&[n; 80])
    }

    /// Sends `frames` frames a microsecond apart; what arrives, as their first bytes.
    fn through(course: &Course, frames: u8, seed: u64) -> Vec<u8> {
        let mut lane = Lane::new(seed);
        for n in 0..frames {
            lane.take(course, frame(n), u64::from(n) * 1_000);
        }
        std::iter::from_fn(|| lane.arrived(u64::MAX)).map(|(f, _)| f.bytes()[0]).collect()
    }

    #[test]
    fn nothing_happens_by_default() {
        assert_eq!(through(&Course::default(), 100, 1), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn a_seed_repeats_its_faults_and_another_has_others() {
        let course = Course { lost_ppm: 200_000, doubled_ppm: 100_000, ..Course::between_ms(1, 20) };
        let first = through(&course, 200, 7);
        assert_eq!(first, through(&course, 200, 7));
        assert_ne!(first, through(&course, 200, 8));
        let distinct = first.iter().collect::<std::collections::HashSet<_>>().len();
        assert!((120..=190).contains(&distinct) && first.len() > distinct, "{distinct} {}", first.len());
        assert!(!first.is_sorted(), "nothing was overtaken");
    }

    #[test]
    fn in_order_nothing_is_overtaken_and_no_frame_is_early() {
        let course = Course { in_order: true, ..Course::between_ms(1, 20) };
        assert!(through(&course, 200, 3).is_sorted());
        let mut lane = Lane::new(3);
        lane.take(&course, frame(0), 0);
        assert!(lane.arrived(999_999).is_none());
    }

    #[test]
    fn a_slow_cable_spaces_frames_and_loses_what_does_not_fit_its_queue() {
        // 70 bytes behind the offload header at 7,000 bytes a second: 10 ms a frame.
        let course = Course { rate: Some(7_000), ..Course::default() };
        let mut lane = Lane::new(1);
        let lost = (0..20).filter(|&n| lane.take(&course, frame(n), 0).lost).count();
        assert_eq!((lost, lane.next_due()), (9, Some(10_000_000)));
        assert!(lane.arrived(10_000_000).is_some() && lane.arrived(10_000_000).is_none());
    }

    #[test]
    fn an_altered_frame_differs_in_one_bit() {
        let course = Course { altered_ppm: 1_000_000, ..Course::default() };
        let mut lane = Lane::new(5);
        let plain = [0_u8; 80];
        assert!(lane.take(&course, Frame::new(&plain), 0).altered);
        let (frame, _) = lane.arrived(0).unwrap();
        let ones: u32 = frame.bytes().iter().map(|b| b.count_ones()).sum();
        assert_eq!(ones, 1);
    }
}
