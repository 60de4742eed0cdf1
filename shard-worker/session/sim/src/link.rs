//! One direction of a link: delay, loss, doubles, disorder, corruption, rate, darkness.

use crate::dice::Dice;
use crate::scenario::LinkSpec;

/// A packet that found its way: when it arrives, and whether a bit of it is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) at_us: u64,
    pub(crate) wrong: bool,
}

/// The state of a direction.
pub(crate) struct Link {
    spec: LinkSpec,
    dice: Dice,
    start_us: u64,
    /// The last arrival in order.
    last_us: u64,
    /// Until when the packets in the queue keep the link busy.
    busy_us: u64,
    /// Packets that did not arrive as they were sent.
    pub(crate) lost: u64,
}

/// A late packet is so late at most.
const LATE_US: u64 = 4000;
/// What waits for a narrow link longer than this is dropped.
const QUEUE_US: u64 = 100_000;

impl Link {
    pub(crate) fn new(spec: &LinkSpec, start_us: u64, dice: Dice) -> Self {
        Self { spec: spec.clone(), dice, start_us, last_us: 0, busy_us: 0, lost: 0 }
    }

    /// What becomes of a packet: nothing, one arrival, or two.
    pub(crate) fn carry(&mut self, now_us: u64, bytes: usize) -> [Option<Arrival>; 2] {
        let dark =
            self.spec.dark.is_some_and(|(from, until)| (from..until).contains(&(now_us - self.start_us)));
        if dark || self.dice.ppm(self.spec.loss_ppm) {
            self.lost += 1;
            return [None, None];
        }
        let mut leaves = now_us;
        if let Some(sending_us) = (bytes as u64 * 1000).checked_div(self.spec.rate) {
            leaves = leaves.max(self.busy_us);
            if leaves > now_us + QUEUE_US {
                self.lost += 1;
                return [None, None];
            }
            self.busy_us = leaves + sending_us;
            leaves = self.busy_us;
        }
        let mut at_us = leaves + self.spec.delay_us + self.dice.below(self.spec.jitter_us + 1);
        if self.dice.ppm(self.spec.late_ppm) {
            at_us += self.dice.below(LATE_US);
        } else {
            at_us = at_us.max(self.last_us);
            self.last_us = at_us;
        }
        let wrong = self.dice.ppm(self.spec.corrupt_ppm);
        self.lost += u64::from(wrong);
        let double = self.dice.ppm(self.spec.double_ppm);
        let second = double.then(|| Arrival { at_us: at_us + self.dice.below(500), wrong: false });
        [Some(Arrival { at_us, wrong }), second]
    }

    /// Which bit of a packet is wrong.
    pub(crate) fn spoil(&mut self, packet: &mut [u8]) {
        let bit = self.dice.below(packet.len() as u64 * 8) as usize;
        packet[bit / 8] ^= 1 << (bit % 8);
    }
}
