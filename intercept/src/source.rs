//! Where headers come from: a packet ring of one interface, or a TUN device.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// One captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// From the IP header on, cut to the headers.
    pub packet: &'a [u8],
    /// Length on the wire, from the IP header on.
    pub wire_len: u32,
    /// When the kernel saw it, nanoseconds; where it does not tell, as near as can be known.
    pub time_ns: u64,
    /// Payload bytes of each segment of a super-frame, where the source knows; else 0.
    pub segment_size: u16,
}

/// Payload of a segment with time stamps over Ethernet. A super-frame whose segment size is not known is counted in these.
const USUAL_SEGMENT: u32 = 1448;
/// Payload of the longest single segment of a 1,500-byte MTU.
const LONGEST_SEGMENT: u32 = 1460;

impl Frame<'_> {
    /// Segments in the frame. Where the source does not know their size it is an estimate.
    pub fn segments(&self, payload: u32) -> u16 {
        let count = match self.segment_size {
            0 if payload <= LONGEST_SEGMENT => 1,
            0 => payload.div_ceil(USUAL_SEGMENT),
            size => payload.div_ceil(size.into()).max(1),
        };
        u16::try_from(count).unwrap_or(u16::MAX)
    }
}

/// A source of frames, non-blocking.
pub trait Source: Send {
    /// Readable when frames wait.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Gives up to `budget` frames to `each`; returns how many.
    fn drain(&mut self, budget: usize, each: &mut dyn FnMut(&Frame<'_>)) -> usize;
    /// Nobody looked for so long, whatever came. For a source whose kernel tells no times.
    fn napped(&mut self, _: Duration) {}
    /// Now and then: looks after the source; returns the frames that the kernel had no room for since the last call.
    fn tend(&mut self) -> u64;
    /// Takes a pending error off the descriptor, so that polling does not report it for ever.
    fn recover(&mut self) -> Option<io::Error>;
    /// For logs.
    fn name(&self) -> &str;
}

/// The clock of the frames' time stamps, nanoseconds.
pub(crate) fn wall_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has CLOCK_REALTIME");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_frames_are_counted_in_segments() {
        let frame = |segment_size| Frame { packet: &[], wire_len: 0, time_ns: 0, segment_size };
        assert_eq!([0, 1, 1448, 1460, 1461, 65_160].map(|p| frame(0).segments(p)), [1, 1, 1, 1, 2, 45]);
        assert_eq!([0, 500, 501, 1000].map(|p| frame(500).segments(p)), [1, 1, 2, 2]);
        assert_eq!(frame(1).segments(70_000), u16::MAX);
    }
}
