//! What the target has selectively acknowledged (RFC 2018): up to four ranges beyond the first unacknowledged byte. A
//! fifth displaces the highest; then some bytes are sent again for nothing.

use flow::Seq;
use flow::record::SackBlock;

use crate::slot::{SACK_BLOCKS, Slot};

/// The ranges, lowest first, apart from one another.
pub(crate) fn ranges(slot: &Slot) -> &[SackBlock] {
    &slot.rare().sack[..(slot.rare().sack_count as usize).min(SACK_BLOCKS)]
}

/// Adds blocks of a segment that acknowledges `ack`; whether they said anything new. Blocks that lie outside what is
/// outstanding are passed over, and with them the reports of doubles (RFC 2883).
pub(crate) fn take(slot: &mut Slot, ack: Seq, blocks: &[SackBlock]) -> bool {
    let mut news = false;
    for block in blocks {
        let sane = block.left.after(ack)
            && block.left.after(slot.snd_una)
            && block.left.before(block.right)
            && block.right.at_or_before(slot.snd_nxt);
        if sane {
            news |= add(slot, *block);
        }
    }
    news
}

fn add(slot: &mut Slot, block: SackBlock) -> bool {
    if ranges(slot).iter().any(|r| r.left.at_or_before(block.left) && r.right.at_or_after(block.right)) {
        return false;
    }
    let mut merged = block;
    let mut kept = [SackBlock::default(); SACK_BLOCKS + 1];
    let mut n = 0;
    for range in ranges(slot) {
        if range.right.before(merged.left) || range.left.after(merged.right) {
            kept[n] = *range;
            n += 1;
        } else {
            merged.left = merged.left.min(range.left);
            merged.right = merged.right.max(range.right);
        }
    }
    let at = kept[..n].iter().position(|r| r.left.after(merged.left)).unwrap_or(n);
    kept.copy_within(at..n, at + 1);
    kept[at] = merged;
    n = (n + 1).min(SACK_BLOCKS);
    let rare = slot.rare_mut();
    rare.sack.copy_from_slice(&kept[..SACK_BLOCKS]);
    rare.sack_count = n as u8;
    true
}

/// Forgets all of it.
pub(crate) fn forget(slot: &mut Slot) {
    if let Some(rare) = slot.had_rare() {
        (rare.sack, rare.sack_count) = ([SackBlock::default(); SACK_BLOCKS], 0);
    }
}

/// Forgets what is acknowledged by now.
pub(crate) fn forget_below(slot: &mut Slot, una: Seq) {
    let (mut kept, mut n) = ([SackBlock::default(); SACK_BLOCKS], 0);
    for range in ranges(slot) {
        if range.right.after(una) {
            kept[n] = SackBlock { left: range.left.max(una), right: range.right };
            n += 1;
        }
    }
    if let Some(rare) = slot.had_rare() {
        (rare.sack, rare.sack_count) = (kept, n as u8);
    }
}

/// Numbers in the ranges, up to `limit`.
pub(crate) fn bytes_below(slot: &Slot, limit: Seq) -> u32 {
    ranges(slot).iter().map(|r| r.right.min(limit).since(r.left).max(0) as u32).sum()
}

/// Highest number selectively acknowledged, or the first unacknowledged one.
pub(crate) fn highest(slot: &Slot) -> Seq {
    ranges(slot).last().map_or(slot.snd_una, |range| range.right)
}

/// The first gap at or after `from` and below `limit`.
pub(crate) fn gap(slot: &Slot, from: Seq, limit: Seq) -> Option<(Seq, u32)> {
    let mut from = from;
    let mut end = limit;
    for range in ranges(slot) {
        if range.right.at_or_before(from) {
            continue;
        }
        if range.left.at_or_before(from) {
            from = range.right;
        } else {
            end = end.min(range.left);
            break;
        }
    }
    from.before(end).then(|| (from, end.since(from) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(left: u32, right: u32) -> SackBlock {
        SackBlock { left: Seq(left), right: Seq(right) }
    }

    fn slot() -> Slot {
        let mut slot = Slot::empty();
        (slot.snd_una, slot.snd_nxt) = (Seq(100), Seq(1000));
        slot
    }

    #[test]
    fn ranges_merge_and_stay_in_order() {
        let mut slot = slot();
        assert!(take(&mut slot, Seq(100), &[block(500, 600), block(300, 400), block(700, 800)]));
        assert!(!take(&mut slot, Seq(100), &[block(510, 600)]));
        assert!(take(&mut slot, Seq(100), &[block(400, 500)]));
        assert_eq!(ranges(&slot), [block(300, 600), block(700, 800)]);
        assert_eq!((bytes_below(&slot, Seq(750)), highest(&slot)), (350, Seq(800)));
        assert_eq!(gap(&slot, Seq(100), Seq(800)), Some((Seq(100), 200)));
        assert_eq!(gap(&slot, Seq(350), Seq(800)), Some((Seq(600), 100)));
        assert_eq!(gap(&slot, Seq(700), Seq(800)), None);
        forget_below(&mut slot, Seq(650));
        assert_eq!(ranges(&slot), [block(700, 800)]);
    }

    #[test]
    fn lies_and_reports_of_doubles_are_passed_over() {
        let mut slot = slot();
        assert!(!take(
            &mut slot,
            Seq(100),
            &[block(50, 80), block(900, 2000), block(300, 300), block(90, 200)]
        ));
        assert_eq!(slot.rare().sack_count, 0);
    }

    #[test]
    fn a_fifth_range_displaces_the_highest() {
        let mut slot = slot();
        for left in [200, 400, 600, 800, 300] {
            assert!(take(&mut slot, Seq(100), &[block(left, left + 50)]));
        }
        assert_eq!(ranges(&slot), [block(200, 250), block(300, 350), block(400, 450), block(600, 650)]);
    }
}
