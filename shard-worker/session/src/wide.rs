//! Numbers of answer bytes that do not wrap: 48 bits, of which the low 32 are a TCP sequence number. One answer of a
//! database or an object store may be longer than the 4 GiB after which those begin anew.

use flow::Seq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Six bytes, so that a slot can have several. 256 TiB on one connection wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Wide([u16; 3]);

impl Wide {
    pub(crate) const ZERO: Self = Self([0; 3]);

    /// Of the first number seen: one round up, so that an earlier one that is late does not lie below zero.
    pub(crate) fn first(seq: Seq) -> Self {
        Self::of(1 << 32 | u64::from(seq.0))
    }

    pub(crate) fn of_halves(high: u16, low: Seq) -> Self {
        Self::of(u64::from(high) << 32 | u64::from(low.0))
    }

    fn of(value: u64) -> Self {
        Self([(value >> 32) as u16, (value >> 16) as u16, value as u16])
    }

    pub(crate) fn get(self) -> u64 {
        let [high, middle, low] = self.0;
        u64::from(high) << 32 | u64::from(middle) << 16 | u64::from(low)
    }

    /// The low half.
    pub(crate) fn seq(self) -> Seq {
        Seq(self.get() as u32)
    }

    /// The number with this low half that lies nearest to this one.
    pub(crate) fn near(self, seq: Seq) -> Self {
        self + i64::from(seq.since(self.seq()))
    }

    /// How far this one lies beyond an earlier one; 0 when it lies before it.
    pub(crate) fn beyond(self, earlier: Self) -> u64 {
        self.get().saturating_sub(earlier.get())
    }
}

impl std::ops::Add<i64> for Wide {
    type Output = Self;
    fn add(self, n: i64) -> Self {
        Self::of(self.get().wrapping_add_signed(n))
    }
}

impl PartialOrd for Wide {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Wide {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_half_wraps_and_the_whole_does_not() {
        let mut at = Wide::first(Seq(u32::MAX - 10));
        let start = at;
        for _ in 0..10 {
            at = at.near(at.seq() + 1_000_000_000);
        }
        assert_eq!((at.beyond(start), start.beyond(at)), (10_000_000_000, 0));
        assert!(at > start && at.near(at.seq() - 5) < at);
        assert_eq!(Wide::first(Seq(5)).near(Seq(u32::MAX)).get(), u64::from(u32::MAX));
    }
}
