//! What the capture makes of the packets: holes, doubles, super-frames, cut frames, flows whose beginning it missed.

use crate::dice::Dice;
use crate::flows::Flow;
use crate::online::{Mark, Seen};
use crate::scenario::OnlineSpec;

/// A captured segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shot {
    pub(crate) flow: u32,
    pub(crate) seen: Seen,
    /// Bytes that the snap length cut off its end.
    pub(crate) cut: u32,
}

/// What the capture has of one flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Had {
    /// Stream bytes captured at least once, as ranges in order.
    pub(crate) ranges: Vec<(u32, u32)>,
    /// Everything was captured, from the SYN on, and what was late came before it was given up.
    pub(crate) whole: bool,
    /// A SYN was captured; a FIN or RST was.
    pub(crate) syn: bool,
    pub(crate) end: bool,
    /// Where captured segments begin, in order.
    pub(crate) starts: Vec<u32>,
}

impl Had {
    /// Bytes of the stream that were captured.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(from, to)| u64::from(to - from)).sum()
    }
}

/// Largest super-frame.
const SUPER: u32 = 64_000;
/// Segments that follow one another so closely are put together.
const TOGETHER_US: u64 = 200;

/// Adds what is captured of a flow to `shots`.
pub(crate) fn capture(
    flow: &Flow,
    seen: &[Seen],
    spec: &OnlineSpec,
    hole_us: u64,
    dice: &mut Dice,
    shots: &mut Vec<Shot>,
) -> Had {
    let frames = if spec.super_frames { together(seen) } else { seen.to_vec() };
    let begun = dice.percent(spec.midstream_percent) && frames.len() > 1;
    let begins = if begun { dice.between(1, frames.len() as u64) as usize } else { 0 };
    let mut had = Had { whole: begins == 0, ..Had::default() };
    let mut hole = 0;
    for seen in &frames[begins..] {
        if hole == 0 && dice.ppm(spec.hole_ppm) {
            hole = dice.weighted(&[(6, 1), (1, 3), (1, 10)]);
        }
        if hole > 0 {
            hole -= 1;
            had.whole = false;
            continue;
        }
        had.syn |= seen.mark == Mark::Syn;
        had.end |= matches!(seen.mark, Mark::Fin | Mark::Reset);
        let mut shot = Shot { flow: flow.id, seen: *seen, cut: 0 };
        if seen.len > 200 && dice.ppm(spec.cut_ppm) {
            shot.cut = seen.len - 100;
            had.whole = false;
        }
        shots.push(shot);
        if seen.len > 0 {
            had.ranges.push((seen.offset, seen.offset + seen.len - shot.cut));
            had.starts.push(seen.offset);
        }
        if dice.ppm(spec.double_ppm) {
            shot.seen.at_us += dice.below(4);
            shots.push(shot);
        }
    }
    had.whole &= !has_long_hole(&frames, hole_us);
    had.starts.sort_unstable();
    had.starts.dedup();
    had.ranges.sort_unstable();
    had.ranges.dedup_by(|next, last| {
        let touches = next.0 <= last.1;
        if touches {
            last.1 = last.1.max(next.1);
        }
        touches
    });
    had
}

/// Whether bytes arrive so much later than others behind them that a hole in the capture is seen in between: the client's
/// own retransmission takes a round trip or more.
fn has_long_hole(frames: &[Seen], hole_us: u64) -> bool {
    let mut frames: Vec<&Seen> = frames.iter().filter(|seen| seen.mark != Mark::Syn).collect();
    frames.sort_by_key(|seen| seen.at_us);
    let (mut next, mut behind, mut since) = (0, Vec::new(), 0);
    for seen in frames {
        let (from, to) = (seen.offset, seen.offset + seen.len);
        if !behind.is_empty() && seen.at_us >= since + hole_us {
            return true;
        }
        if from > next {
            since = if behind.is_empty() { seen.at_us } else { since };
            behind.push((from, to));
            continue;
        }
        next = next.max(to);
        while let Some(at) = behind.iter().position(|&(from, _)| from <= next) {
            next = next.max(behind.swap_remove(at).1);
            since = seen.at_us;
        }
    }
    false
}

/// As the network card's driver hands segments over: those that continue one another become one.
fn together(seen: &[Seen]) -> Vec<Seen> {
    let mut frames: Vec<Seen> = Vec::with_capacity(seen.len());
    for seen in seen {
        match frames.last_mut() {
            Some(last)
                if last.len > 0
                    && seen.len > 0
                    && last.offset + last.len == seen.offset
                    && last.ack == seen.ack
                    && !last.push
                    && last.mark == Mark::None
                    && last.len + seen.len <= SUPER
                    && seen.at_us - last.at_us <= TOGETHER_US =>
            {
                last.len += seen.len;
                last.push = seen.push;
            }
            _ => frames.push(*seen),
        }
    }
    frames
}
