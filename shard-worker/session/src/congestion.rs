//! How much may be under way, what counts as lost, and when to try again: RFC 5681 with an initial window of ten
//! (RFC 6928), recovery by SACK in the manner of RFC 6675 (without SACK, RFC 6582), the retransmission timer of RFC 6298
//! with a floor of 200 ms, and a tail-loss probe (RFC 8985, section 7, for more than one segment).

use flow::Seq;

use crate::numbering::TIMESTAMP_BYTES;
use crate::sack;
use crate::slot::{NEVER, Recovery, Slot, Timer, is};

const INITIAL_SEGMENTS: u32 = 10;
/// No more is ever under way: half of what a capture or return ring may hold anyway.
const MOST: u32 = 4 << 20;
const RTO_INITIAL_US: u64 = 1_000_000;
const RTO_LEAST_US: u64 = 200_000;
/// Longest pause between two tries: a target that was away is served again soon after it is back.
pub(crate) const RTO_MOST_US: u64 = 8_000_000;
const TAIL_LEAST_US: u64 = 10_000;
const DUPLICATES: u8 = 3;

/// A connection is established.
pub(crate) fn start(slot: &mut Slot) {
    slot.cwnd = INITIAL_SEGMENTS * u32::from(slot.mss);
    slot.ssthresh = MOST;
}

/// RFC 6298, section 2.
pub(crate) fn sample_rtt(slot: &mut Slot, us: u32) {
    let us = us.clamp(1, i32::MAX as u32);
    if slot.srtt_us == 0 {
        slot.srtt_us = us;
        slot.rttvar_us = us / 2;
    } else {
        let off = slot.srtt_us.abs_diff(us);
        slot.rttvar_us = slot.rttvar_us - slot.rttvar_us / 4 + off / 4;
        slot.srtt_us = slot.srtt_us - slot.srtt_us / 8 + us / 8;
    }
}

/// Pause until the next try, back-off included.
pub(crate) fn rto_us(slot: &Slot) -> u64 {
    let base = match slot.srtt_us {
        0 => RTO_INITIAL_US,
        srtt => (u64::from(srtt) + 4 * u64::from(slot.rttvar_us)).clamp(RTO_LEAST_US, RTO_MOST_US),
    };
    (base << slot.rare().backoff.min(6)).min(RTO_MOST_US)
}

/// Pause until a SYN is repeated: a second at first (RFC 6298, section 2.1), whatever is known of other connections.
pub(crate) fn syn_rto_us(slot: &Slot) -> u64 {
    (RTO_INITIAL_US << slot.rare().backoff.min(6)).min(RTO_MOST_US)
}

/// Arms the retransmission timer anew, for a tail-loss probe where one helps.
pub(crate) fn arm(slot: &mut Slot, now_us: u64) {
    let mut pause = rto_us(slot);
    slot.unset(is::TAIL_TIMER);
    let probe = (2 * u64::from(slot.srtt_us)).max(TAIL_LEAST_US);
    if slot.recovery() == Recovery::None
        && slot.is(is::PEER_SACK)
        && slot.srtt_us > 0
        && slot.rare().backoff == 0
        && slot.outstanding() > u32::from(slot.mss)
        && probe < pause
    {
        slot.set(is::TAIL_TIMER);
        pause = probe;
    }
    slot.arm(Timer::Rto, now_us + pause);
}

/// Something leaves: the timer runs, if it does not yet (RFC 6298, section 5.1). A probe follows the last segment sent.
pub(crate) fn sent(slot: &mut Slot, now_us: u64) {
    if slot.deadline(Timer::Rto) == NEVER {
        slot.progress_us = now_us;
    }
    if slot.deadline(Timer::Rto) == NEVER || slot.is(is::TAIL_TIMER) {
        arm(slot, now_us);
    }
}

/// Numbers that are thought to be under way.
pub(crate) fn pipe(slot: &Slot) -> u32 {
    let highest = sack::highest(slot);
    let unsacked =
        |until: Seq| (until.since(slot.snd_una).max(0) as u32).saturating_sub(sack::bytes_below(slot, until));
    match slot.recovery() {
        Recovery::None => unsacked(slot.snd_nxt),
        Recovery::Fast if slot.rare().sack_count == 0 => slot.outstanding(),
        Recovery::Fast => slot.snd_nxt.since(highest) as u32 + unsacked(slot.rtx_nxt.min(highest)),
        Recovery::Loss => {
            unsacked(slot.rtx_nxt.min(slot.recover)) + slot.snd_nxt.since(slot.recover).max(0) as u32
        }
    }
}

/// What is lost and was not sent again yet: the first such range.
pub(crate) fn lost(slot: &Slot) -> Option<(Seq, u32)> {
    let limit = match slot.recovery() {
        Recovery::None => return None,
        Recovery::Fast => sack::highest(slot),
        Recovery::Loss => slot.recover,
    };
    sack::gap(slot, slot.rtx_nxt.max(slot.snd_una), limit)
}

/// One more duplicate acknowledgement.
pub(crate) fn duplicate(slot: &mut Slot) {
    let rare = slot.rare_mut();
    rare.dupacks = rare.dupacks.saturating_add(1);
    if slot.recovery() == Recovery::Fast && slot.rare().sack_count == 0 {
        slot.cwnd = (slot.cwnd + u32::from(slot.mss)).min(MOST);
    } else if slot.rare().dupacks >= DUPLICATES {
        fast(slot);
    }
}

/// SACK shows a loss once more than two segments lie beyond it (RFC 6675, section 4); with fewer than four segments under
/// way, once all but one are there (RFC 5827).
pub(crate) fn look_for_loss(slot: &mut Slot) {
    let mss = u32::from(slot.mss);
    let (sacked, outstanding) = (sack::bytes_below(slot, slot.snd_nxt), slot.outstanding());
    if sacked > 2 * mss || (outstanding < 4 * mss && sacked > 0 && sacked + mss >= outstanding) {
        fast(slot);
    }
}

fn fast(slot: &mut Slot) {
    if slot.recovery() != Recovery::None {
        return;
    }
    let mss = u32::from(slot.mss);
    slot.ssthresh = (pipe(slot) / 2).max(2 * mss);
    slot.cwnd = slot.ssthresh + if slot.rare().sack_count == 0 { 3 * mss } else { 0 };
    slot.set_recovery(Recovery::Fast);
    slot.recover = slot.snd_nxt;
    slot.rtx_nxt = slot.snd_una;
    slot.set(is::OWE_HEAD);
    slot.unset(is::TIMING);
}

/// The retransmission timer fired.
pub(crate) fn timed_out(slot: &mut Slot) {
    let mss = u32::from(slot.mss);
    if slot.rare().backoff == 0 {
        slot.ssthresh = (pipe(slot) / 2).max(2 * mss);
    } else {
        // It may have forgotten what it selectively acknowledged (RFC 2018, section 8).
        sack::forget(slot);
    }
    slot.cwnd = mss;
    let rare = slot.rare_mut();
    rare.backoff = rare.backoff.saturating_add(1);
    rare.dupacks = 0;
    slot.set_recovery(Recovery::Loss);
    slot.recover = slot.snd_nxt;
    slot.rtx_nxt = slot.snd_una;
    slot.unset(is::TIMING | is::OWE_HEAD | is::OWE_TAIL | is::TAIL_TIMER);
}

/// Segments become smaller; the number of them that may be under way stays.
pub(crate) fn cut_smaller(slot: &mut Slot, mss: u16) {
    let segments = (slot.cwnd / u32::from(slot.mss.max(1))).max(2);
    slot.cwnd = segments * u32::from(mss);
    slot.mss = mss;
}

/// After several time-outs in a row of segments larger than this one smaller size is tried: a router that drops them may say
/// so to nobody (RFC 4821, section 7.7, with its size to begin with; then what every host takes).
pub(crate) fn suspect_size(slot: &mut Slot, v4: bool) -> bool {
    let size = match (slot.rare().backoff, v4) {
        (3, true) => 1024,
        (5, true) => 536,
        (3, false) => 1220,
        _ => return false,
    };
    let stamps = if slot.is(is::PEER_TS) { TIMESTAMP_BYTES } else { 0 };
    let mss = size - stamps;
    let tries_it = slot.mss > mss && slot.sent_bytes() > u32::from(mss);
    if tries_it {
        slot.mss = mss;
        slot.cwnd = u32::from(mss);
    }
    tries_it
}

/// Everything before `ack` is acknowledged; called before `snd_una` moves.
pub(crate) fn acknowledged(slot: &mut Slot, ack: Seq, now_us: u64) {
    let mss = u32::from(slot.mss);
    let acked = ack.since(slot.snd_una) as u32;
    if slot.is(is::TIMING) && ack.at_or_after(slot.rtt_seq) {
        slot.unset(is::TIMING);
        sample_rtt(slot, (now_us as u32).wrapping_sub(slot.rtt_start));
    }
    if let Some(rare) = slot.had_rare() {
        rare.dupacks = 0;
    }
    match slot.recovery() {
        Recovery::None => grow(slot, acked, mss),
        _ if ack.at_or_after(slot.recover) => {
            if slot.recovery() == Recovery::Fast {
                slot.cwnd = slot.ssthresh;
            } else {
                grow(slot, acked, mss);
            }
            slot.set_recovery(Recovery::None);
        }
        Recovery::Fast if slot.rare().sack_count == 0 => {
            // A partial acknowledgement: the next segment is lost too (RFC 6582).
            slot.cwnd = slot.cwnd.saturating_sub(acked).max(mss) + mss;
            slot.set(is::OWE_HEAD);
        }
        Recovery::Fast => {}
        Recovery::Loss => grow(slot, acked, mss),
    }
}

/// Slow start, then one segment for each window; only as far as the window was in use.
fn grow(slot: &mut Slot, acked: u32, mss: u32) {
    if slot.outstanding().saturating_mul(2) < slot.cwnd {
        return;
    }
    let more = match slot.cwnd < slot.ssthresh {
        true => acked,
        false => (u64::from(mss) * u64::from(acked) / u64::from(slot.cwnd.max(1))).max(1) as u32,
    };
    slot.cwnd = slot.cwnd.saturating_add(more).min(MOST);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::record::SackBlock;

    /// Ten segments of 1,000 bytes are outstanding.
    fn slot() -> Slot {
        let mut slot = Slot::empty();
        slot.mss = 1000;
        start(&mut slot);
        (slot.snd_una, slot.snd_nxt, slot.rtx_nxt, slot.recover) =
            (Seq(5000), Seq(15_000), Seq(5000), Seq(5000));
        slot.set(is::PEER_SACK);
        slot
    }

    #[test]
    fn sack_beyond_two_segments_starts_recovery_of_the_hole_alone() {
        let mut slot = slot();
        let block = |left, right| SackBlock { left: Seq(left), right: Seq(right) };
        sack::take(&mut slot, Seq(5000), &[block(6000, 8000)]);
        look_for_loss(&mut slot);
        assert_eq!(slot.recovery(), Recovery::None);
        sack::take(&mut slot, Seq(5000), &[block(6000, 9000)]);
        look_for_loss(&mut slot);
        assert_eq!(slot.recovery(), Recovery::Fast);
        assert_eq!(lost(&slot), Some((Seq(5000), 1000)));
        assert_eq!(pipe(&slot), 6000);
        slot.rtx_nxt = Seq(6000);
        assert_eq!((lost(&slot), pipe(&slot)), (None, 7000));
        acknowledged(&mut slot, Seq(15_000), 0);
        assert_eq!((slot.recovery(), slot.cwnd), (Recovery::None, slot.ssthresh));
    }

    #[test]
    fn after_a_time_out_everything_goes_again_from_one_segment() {
        let mut slot = slot();
        timed_out(&mut slot);
        assert_eq!((slot.cwnd, pipe(&slot), lost(&slot)), (1000, 0, Some((Seq(5000), 10_000))));
        slot.rtx_nxt = Seq(6000);
        assert_eq!(pipe(&slot), 1000);
        acknowledged(&mut slot, Seq(6000), 0);
        assert_eq!(slot.cwnd, 2000);
    }

    #[test]
    fn the_timer_has_a_floor_and_backs_off() {
        let mut slot = slot();
        assert_eq!(rto_us(&slot), 1_000_000);
        sample_rtt(&mut slot, 500);
        assert_eq!(rto_us(&slot), 200_000);
        slot.rare_mut().backoff = 3;
        assert_eq!(rto_us(&slot), 1_600_000);
        slot.rare_mut().backoff = 60;
        assert_eq!(rto_us(&slot), 8_000_000);
    }
}
