//! The Internet checksum (RFC 1071) over bytes that lie in several places. Called for every segment that is emitted.
//!
//! A sum is kept as ones-complement partial sums in a `u64`, so nothing overflows and parts summed apart (a payload once, headers
//! per copy) can be joined. What must hold: parts are joined in wire order, because a part of odd length shifts the
//! byte lanes of everything behind it.

use crate::Addr;

/// A ones-complement sum under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Sum of 16-bit words in the machine's own byte order; folding keeps it far below 2^64.
    words: u64,
    /// Whether an odd number of bytes was taken, so that the next byte is the low half of a word.
    odd: bool,
}

impl Sum {
    /// Of nothing.
    pub const fn new() -> Self {
        Self { words: 0, odd: false }
    }

    /// With these bytes behind what was taken so far.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        self.join(Sum { words: words(bytes), odd: bytes.len() % 2 == 1 })
    }

    /// With a number as it stands in a header, big-endian.
    #[must_use]
    pub fn with_u16(self, number: u16) -> Self {
        self.with(&number.to_be_bytes())
    }

    /// With a number as it stands in a header, big-endian.
    #[must_use]
    pub fn with_u32(self, number: u32) -> Self {
        self.with(&number.to_be_bytes())
    }

    /// With a sum taken apart, whose bytes lie behind those of this one.
    #[must_use]
    pub fn join(self, later: Sum) -> Self {
        let part = fold(later.words);
        let part = if self.odd { part.swap_bytes() } else { part };
        Sum { words: self.words + u64::from(part), odd: self.odd ^ later.odd }
    }

    /// The sum without the final complement: what a device that finishes the checksum itself expects in the field.
    pub fn partial(self) -> u16 {
        u16::from_be(fold(self.words))
    }

    /// The checksum, as a number to be written big-endian.
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

/// The pseudo header of TCP and ICMPv6 (RFC 9293, section 3.1; RFC 8200, section 8.1). `len` counts header and payload.
pub fn pseudo_header(src: &Addr, dst: &Addr, protocol: u8, len: u32) -> Sum {
    let sum = match (src.as_v4(), dst.as_v4()) {
        (Some(src), Some(dst)) => Sum::new().with(&src).with(&dst),
        _ => Sum::new().with(&src.0).with(&dst.0),
    };
    sum.with_u16(u16::from(protocol)).with_u32(len)
}

/// The TCP checksum over pseudo header, header (its checksum field zero) and the payload's parts.
pub fn tcp(src: &Addr, dst: &Addr, header: &[u8], payload: &[&[u8]]) -> u16 {
    let len = header.len() + payload.iter().map(|part| part.len()).sum::<usize>();
    let sum = pseudo_header(src, dst, crate::ip::TCP, len as u32).with(header);
    payload.iter().fold(sum, |sum, part| sum.with(part)).finish()
}

/// Sum of native 32-bit words, the tail padded with zeros. Four lanes, so that the compiler adds them side by side.
fn words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<16>();
    let mut lanes = [0u64; 4];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<4>();
    let mut sum: u64 = lanes.iter().sum();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    sum + u64::from(u32::from_ne_bytes(last))
}

const fn fold(mut words: u64) -> u16 {
    while words > 0xffff {
        words = (words >> 16) + (words & 0xffff);
    }
    words as u16
}

#[cfg(test)]
mod tests {
    use etherparse::checksum::Sum16BitWords;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::new().with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    #[test]
    fn a_super_frame_of_ones_does_not_overflow() {
        let ones = vec![0xff; 1 << 20];
        assert_eq!(Sum::new().with(&ones).finish(), 0);
    }

    proptest! {
        #[test]
        fn equals_the_reference_on_any_bytes(bytes: Vec<u8>) {
            let theirs = Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be();
            prop_assert_eq!(Sum::new().with(&bytes).finish(), theirs);
        }

        #[test]
        fn parts_of_any_length_sum_to_the_whole(bytes: Vec<u8>, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let parts: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let one_by_one = parts.iter().fold(Sum::new(), |sum, part| sum.with(part));
            let joined = parts.iter().fold(Sum::new(), |sum, part| sum.join(Sum::new().with(part)));
            let whole = Sum::new().with(&bytes);
            prop_assert_eq!(one_by_one.finish(), whole.finish());
            prop_assert_eq!(joined.finish(), whole.finish());
        }
    }
}
