//! TCP sequence numbers in serial arithmetic (RFC 9293, section 3.4): comparisons hold across the wrap at 2^32.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A sequence or acknowledgement number, in host byte order. Compared by its methods, never by `<`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Seq(pub u32);

impl Seq {
    /// How far `self` lies after `earlier`; negative when it lies before.
    pub const fn since(self, earlier: Seq) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// Whether `self` lies before `other`.
    pub const fn before(self, other: Seq) -> bool {
        self.since(other) < 0
    }

    /// Whether `self` lies after `other`.
    pub const fn after(self, other: Seq) -> bool {
        self.since(other) > 0
    }

    /// `self` is `other` or lies before it.
    pub const fn at_or_before(self, other: Seq) -> bool {
        self.since(other) <= 0
    }

    /// `self` is `other` or lies after it.
    pub const fn at_or_after(self, other: Seq) -> bool {
        self.since(other) >= 0
    }

    /// The later of two.
    #[must_use]
    pub const fn max(self, other: Seq) -> Seq {
        if self.after(other) { self } else { other }
    }

    /// The earlier of two.
    #[must_use]
    pub const fn min(self, other: Seq) -> Seq {
        if self.before(other) { self } else { other }
    }
}

impl std::ops::Add<u32> for Seq {
    type Output = Seq;
    fn add(self, n: u32) -> Seq {
        Seq(self.0.wrapping_add(n))
    }
}

impl std::ops::Sub<u32> for Seq {
    type Output = Seq;
    fn sub(self, n: u32) -> Seq {
        Seq(self.0.wrapping_sub(n))
    }
}

impl std::ops::AddAssign<u32> for Seq {
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_across_the_wrap() {
        let high = Seq(u32::MAX - 9);
        let low = high + 20;
        assert_eq!(low.0, 10);
        assert!(high.before(low) && low.after(high));
        assert_eq!(low.since(high), 20);
        assert_eq!(high.max(low), low);
        assert_eq!(high.min(low), high);
    }
}
