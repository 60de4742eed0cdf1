//! An Ethernet frame behind the offload header of a packet socket (`struct virtio_net_hdr`, little endian on this kernel's
//! terms: packet(7), PACKET_VNET_HDR).
//!
//! | byte | field |
//! |---|---|
//! | 0 | flags: 1 the checksum is still to be filled in, 2 it was found right |
//! | 1 | kind of super-frame, 0 none |
//! | 2–5 | header length, segment size |
//! | 6–7 | where the checksum begins |
//! | 8–9 | where it is stored, counted from there |

/// A frame with its offload header.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Frame {
    bytes: Vec<u8>,
}

/// Longest frame: a super-frame of 64 KiB, with its headers, and as much again for kernels with larger ones.
pub(super) const LONGEST: usize = 128 * 1024;
/// Bytes of the offload header.
const OFFLOAD: usize = 10;
/// The first byte that may be altered: behind the Ethernet header, whose loss of meaning would be no TCP matter.
const FIRST: usize = OFFLOAD + 14;
const NEEDS_CHECKSUM: u8 = 1;

impl Frame {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes on the cable.
    pub(super) fn wire_len(&self) -> u64 {
        self.bytes.len().saturating_sub(OFFLOAD) as u64
    }

    /// Changes one bit as `draw` says; whether that was possible. Whoever receives it must be able to notice, so a
    /// checksum that was left to the hardware is filled in first; of a super-frame that is not possible.
    pub(super) fn alter(&mut self, draw: u64) -> bool {
        let Some(behind) = self.bytes.len().checked_sub(FIRST).filter(|&n| n > 0) else { return false };
        let (flags, kind) = (self.bytes[0], self.bytes[1]);
        if kind != 0 || (flags & NEEDS_CHECKSUM != 0 && !self.fill_checksum()) {
            return false;
        }
        // Neither to be filled in nor known to be right: the receiver has to look.
        self.bytes[..OFFLOAD].fill(0);
        let bit = draw % (behind as u64 * 8);
        self.bytes[FIRST + (bit / 8) as usize] ^= 1 << (bit % 8);
        true
    }

    /// Internet checksum (RFC 1071) over the transport segment; the field holds the pseudo header's sum already.
    fn fill_checksum(&mut self) -> bool {
        let field = |at: usize| usize::from(u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]));
        let (start, at) = (OFFLOAD + field(6), OFFLOAD + field(6) + field(8));
        if at + 2 > self.bytes.len() {
            return false;
        }
        let mut sum: u32 = 0;
        for pair in self.bytes[start..].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        self.bytes[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_filled_in_before_a_bit_is_changed() {
        // Four words of payload behind Ethernet and an offload header that asks for the sum at bytes 14 + 2.
        let mut bytes = vec![1, 0, 0, 0, 0, 0];
        bytes.extend(14_u16.to_ne_bytes());
        bytes.extend(2_u16.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.extend([0x12, 0x34, 0x00, 0x00, 0xff, 0xff, 0x00, 0x01]);
        let mut frame = Frame::new(&bytes);
        assert!(frame.fill_checksum());
        assert_eq!(frame.bytes[26..28], [0xed, 0xca], "of 0x1234 + 0xffff + 0x0001");
        let mut altered = Frame::new(&bytes);
        assert!(altered.alter(77));
        let different = frame.bytes[FIRST..].iter().zip(&altered.bytes[FIRST..]);
        assert_eq!(different.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>(), 1);
        assert_eq!(altered.bytes[..OFFLOAD], [0; OFFLOAD]);
    }

    #[test]
    fn a_super_frame_and_a_stub_stay_as_they_are() {
        let mut large = vec![0; 200];
        large[1] = 1;
        assert!(!Frame::new(&large).alter(3));
        assert!(!Frame::new(&[0; FIRST]).alter(3));
        assert!(!Frame::new(&[]).alter(3));
        let mut lying = vec![0xff; 40];
        lying[1] = 0;
        assert!(!Frame::new(&lying).alter(3), "a checksum beyond the end");
    }
}
