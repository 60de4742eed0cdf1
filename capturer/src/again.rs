//! Frames that come up twice where all interfaces are captured at once: the kernel shows a frame at the device that received it, and
//! again at the one that stands on that: a bridge or a bond, whose hardware address is its port's, or a VLAN. Called by the
//! sources of `any`.
//!
//! Two frames that begin with the same bytes are one when they came within a millisecond by two devices; the source on libpcap
//! does not learn by which, and goes by the kernel's stamp: the same nanosecond, if somebody wants stamps (SO_TIMESTAMPNS) and
//! the frame came from a wire. (Seen with a bridge: 166574884 ns at the port and at the bridge; what a TCP sender on this machine hands to
//! a virtual device bears a time of its own, and each socket then asks the clock.)

/// Frames that may lie between the two, from other cores.
const WINDOW: usize = 16;
/// Bytes compared: both headers of a segment or a datagram.
const HEAD: usize = 56;
/// Both are shown in one go, unless something interrupts that.
const WITHIN_NS: u64 = 1_000_000;

/// The frames seen last.
#[derive(Clone, Debug)]
pub(crate) struct Again {
    seen: [Seen; WINDOW],
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    time_ns: u64,
    device: u32,
    head: [u8; HEAD],
}

impl Default for Again {
    fn default() -> Self {
        Self { seen: [Seen { time_ns: 0, device: 0, head: [0; HEAD] }; WINDOW], next: 0 }
    }
}

impl Again {
    /// Whether this frame was seen before; notes it. `device` is the same of all where it is not known.
    pub(crate) fn is(&mut self, time_ns: u64, device: u32, packet: &[u8]) -> bool {
        let mut head = [0; HEAD];
        let len = packet.len().min(HEAD);
        head[..len].copy_from_slice(&packet[..len]);
        let one = |seen: &Seen| {
            let apart_ns = seen.time_ns.abs_diff(time_ns);
            apart_ns == 0 || (seen.device != device && apart_ns < WITHIN_NS)
        };
        if self.seen.iter().any(|seen| one(seen) && seen.head == head) {
            return true;
        }
        self.seen[self.next] = Seen { time_ns, device, head };
        self.next = (self.next + 1) % WINDOW;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_at_two_devices_is_seen_once_and_two_frames_twice() {
        let mut again = Again::default();
        assert!(!again.is(5, 0, b"one"));
        assert!(!again.is(5, 0, b"another, of another core"));
        assert!(again.is(5, 0, b"one"));
        assert!(again.is(5, 0, b"one"), "three devices on each other");
        assert!(!again.is(6, 0, b"one"), "sent again");
        for time_ns in 7..7 + WINDOW as u64 {
            assert!(!again.is(time_ns, 0, b"one"));
        }
        assert!(!again.is(5, 0, b"one"), "long ago");
    }

    #[test]
    fn where_devices_are_known_they_decide() {
        let mut again = Again::default();
        let at = 9 * WITHIN_NS;
        assert!(!again.is(at, 2, b"one"));
        assert!(again.is(at + 900, 3, b"one"), "each socket's own clock");
        assert!(!again.is(at + 2_000, 2, b"one"), "the same bytes once more by one device");
        assert!(!again.is(at + 2_000 + WITHIN_NS, 3, b"one"));
    }
}
