//! The records that cross the rings: plain data, fixed layout, native byte order. Payload bytes follow a record directly.
//!
//! A reader must not trust a record more than its bytes: lengths are checked against the ring record's length by
//! [`split`], and every bit pattern is a valid value of every field.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Addr, Endpoint, Seq};

/// The fields of a TCP header that the pipeline speaks about, options included; 28 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpFields {
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgement number; meaningful when `flags` has [`flag::ACK`].
    pub ack: Seq,
    /// The nine flags, see [`flag`].
    pub flags: u16,
    /// The window field as it stands in the header, unscaled.
    pub window: u16,
    /// Timestamp value; meaningful when `options` has [`opt::TIMESTAMPS`].
    pub ts_val: u32,
    /// Timestamp echo reply; likewise.
    pub ts_ecr: u32,
    /// Maximum segment size; meaningful when `options` has [`opt::MSS`].
    pub mss: u16,
    /// Window scale shift, as it stands in the option (RFC 7323 caps it at 14 when used).
    pub window_scale: u8,
    /// Which options are present, see [`opt`].
    pub options: u8,
    /// Urgent pointer.
    pub urgent: u16,
    /// Keeps the size a multiple of four.
    pub reserved: u16,
}

/// TCP flag bits in [`TcpFields::flags`] (RFC 9293, section 3.1; NS is the historic ninth).
pub mod flag {
    #![allow(missing_docs)]
    pub const FIN: u16 = 0x001;
    pub const SYN: u16 = 0x002;
    pub const RST: u16 = 0x004;
    pub const PSH: u16 = 0x008;
    pub const ACK: u16 = 0x010;
    pub const URG: u16 = 0x020;
    pub const ECE: u16 = 0x040;
    pub const CWR: u16 = 0x080;
    pub const NS: u16 = 0x100;
}

/// Option presence bits in [`TcpFields::options`].
pub mod opt {
    #![allow(missing_docs)]
    pub const MSS: u8 = 0x01;
    pub const WINDOW_SCALE: u8 = 0x02;
    pub const SACK_PERMITTED: u8 = 0x04;
    pub const TIMESTAMPS: u8 = 0x08;
}

impl TcpFields {
    /// Whether all of the given flag bits are set.
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Whether the given option is present.
    pub const fn has_option(&self, option: u8) -> bool {
        self.options & option == option
    }
}

/// capturer → shard: one client→server segment; 88 bytes, then `payload_len` bytes. Or, where packets come from a file, the
/// header of an answer to one ([`Captured::is_answer`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Captured {
    /// When the kernel saw the frame, CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// The TCP header.
    pub tcp: TcpFields,
    /// Payload bytes in this record.
    pub payload_len: u32,
    /// Payload bytes that the segment had on the wire but that were not captured (snap length). Of an answer, all it had.
    pub cut_len: u32,
    /// The real client.
    pub client: Endpoint,
    /// The online service it talks to.
    pub server: Endpoint,
    /// Index of the mapping (`-x`) that matched.
    pub mapping: u16,
    /// Which loop of a replayed file, modulo 256: part of the flow's identity, because sessions of the loop before may be
    /// open still. 0 in live capture.
    pub lap: u8,
    /// Not 0: the segment went from the server to the client.
    pub answer: u8,
    /// When the packet was captured, by its own clock or its file's, microseconds, low half: what lies between two packets
    /// whatever the speed of a replay.
    pub stamp_us: u32,
}

/// shard → injector: one segment, or one super-frame to be cut into segments of `mss`; 64 bytes, then `payload_len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Inject {
    /// The TCP header of the (first) segment. FIN and PSH belong to the last one when it is cut.
    pub tcp: TcpFields,
    /// Payload bytes in this record.
    pub payload_len: u32,
    /// Payload bytes per segment at most, options already allowed for; never 0 when there is payload.
    pub mss: u16,
    /// Index into the sealed list of targets; the injector alone turns it into an address.
    pub target: u16,
    /// The client as replayed.
    pub client: Endpoint,
    /// See [`inject_bit`].
    pub bits: u16,
    /// Fills up to 64 bytes.
    pub reserved: [u8; 8],
}

/// Bits in [`Inject::bits`].
pub mod inject_bit {
    /// A SYN whose flow must be claimed at the intercepts before it leaves.
    pub const CLAIM: u16 = 0x1;
    /// A retransmission or probe (for counters only).
    pub const AGAIN: u16 = 0x2;
}

/// What a returned record is about.
pub mod kind {
    /// A TCP segment from a target to a replayed client.
    pub const TCP: u8 = 1;
    /// An ICMP or ICMPv6 error addressed to a replayed client; `tcp.seq` is the quoted sequence number.
    pub const ICMP: u8 = 2;
    /// A UDP datagram from a target to a replayed client; `tcp` is zero.
    pub const UDP: u8 = 3;
    /// An ICMP or ICMPv6 error about a datagram; `tcp` is zero.
    pub const UDP_ICMP: u8 = 4;
}

/// Bits in [`Returned::bits`].
pub mod returned_bit {
    /// The header was cut before its options ended; options may be missing.
    pub const TRUNCATED: u8 = 0x1;
    /// The capture says that the checksum is wrong.
    pub const BAD_CHECKSUM: u8 = 0x2;
    /// IP ECN field, two bits.
    pub const ECN_SHIFT: u8 = 6;
}

/// One SACK block, left and right edge (RFC 2018), in target sequence numbers as the target wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SackBlock {
    /// First byte of the block.
    pub left: Seq,
    /// The byte after the last.
    pub right: Seq,
}

/// intercept → shard: the header of one answer of a target, or one ICMP error (REPLAY, "Returned record"); 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Returned {
    /// Position in the stream of records that this intercept sends to this instance.
    pub position: u64,
    /// How long before intercept sent it on its kernel had seen it, nanoseconds; an estimate from a TUN device. Clocks of two
    /// hosts do not agree, this much of one does.
    pub age_ns: u64,
    /// The TCP header of the answer. For ICMP: `seq` is the quoted sequence number, the rest is zero.
    pub tcp: TcpFields,
    /// Payload bytes of the answer, all segments of a super-frame together.
    pub payload_len: u32,
    /// The replayed client (destination of the answer).
    pub client: Endpoint,
    /// The target (source of the answer).
    pub target: Endpoint,
    /// SACK blocks; the first `sack_count` are meaningful.
    pub sack: [SackBlock; 4],
    /// How many SACK blocks, 0 to 4.
    pub sack_count: u8,
    /// See [`kind`].
    pub kind: u8,
    /// See [`returned_bit`].
    pub bits: u8,
    /// ICMP type (for [`kind::ICMP`]).
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Keeps the size a multiple of eight.
    pub reserved: u8,
    /// Segments in the super-frame, at least 1.
    pub segments: u16,
    /// Next-hop MTU of a "fragmentation needed" / "packet too big" error, else 0.
    pub mtu: u32,
}

impl Default for Returned {
    fn default() -> Self {
        let mut zero = Self::new_zeroed();
        zero.kind = kind::TCP;
        zero.segments = 1;
        zero
    }
}

impl Default for Captured {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl Default for Inject {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

use zerocopy::FromZeros as _;

/// Splits the bytes of a ring record into its typed head and the rest; `None` when they are too short.
pub fn split<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

impl Captured {
    /// Whether it is the header of an answer of the online service: its `tcp` is the server's, its payload stayed behind.
    pub const fn is_answer(&self) -> bool {
        self.answer != 0
    }

    /// Splits a ring record into head and payload; `None` when the lengths do not agree.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = split::<Self>(bytes)?;
        Some((head, rest.get(..head.payload_len as usize)?))
    }
}

impl Inject {
    /// Splits a ring record into head and payload; `None` when the lengths do not agree.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = split::<Self>(bytes)?;
        Some((head, rest.get(..head.payload_len as usize)?))
    }
}

/// The unspecified address, for "any".
pub const ANY: Addr = Addr([0; 16]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_the_comments_say() {
        assert_eq!(size_of::<TcpFields>(), 28);
        assert_eq!(size_of::<Captured>(), 88);
        assert_eq!(size_of::<Inject>(), 64);
        assert_eq!(size_of::<Returned>(), 128);
    }

    #[test]
    fn a_lying_payload_length_is_refused() {
        let head = Captured { payload_len: 10, ..Captured::default() };
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(&[1; 9]);
        assert!(Captured::split(&bytes).is_none());
        bytes.push(1);
        assert_eq!(Captured::split(&bytes).unwrap().1, &[1; 10]);
    }
}
