//! The capture thread's end of the ring, and the form of what lies in it: 16 bytes (time, length on the wire, length here), then the
//! packet. The head comes first and alone, so the reader takes a packet only when all of it is there.

use rtrb::Producer;

use crate::tally::{Figure, Tally};

/// Bytes in front of a packet in the ring.
pub(crate) const HEAD: usize = 16;

/// Where captured packets go in.
#[derive(Debug)]
pub struct Intake {
    ring: Producer<u8>,
    snap: usize,
    tally: Tally,
}

impl Intake {
    pub(crate) fn new(ring: Producer<u8>, snap: u32, tally: Tally) -> Self {
        let snap = if snap == 0 { usize::MAX } else { snap as usize };
        Self { ring, snap, tally }
    }

    /// Takes a packet, from its IP header on, seen at `time_ns` (nanoseconds since the Unix epoch) with `wire_len` bytes.
    /// Returns how many bytes of it were to be written, whether or not there was room. Never waits.
    pub fn packet(&mut self, time_ns: u64, wire_len: u32, packet: &[u8]) -> usize {
        let kept = &packet[..packet.len().min(self.snap)];
        if self.ring.slots() < HEAD + kept.len() {
            self.tally.add(Figure::FullPackets, 1);
            self.tally.add(Figure::FullBytes, kept.len() as u64);
            return kept.len();
        }
        let head = Head { time_ns, wire_len, len: kept.len() as u32 }.to_bytes();
        let room = "there was room for both, and only this thread takes any";
        self.ring.push_entire_slice(&head).expect(room);
        self.ring.push_entire_slice(kept).expect(room);
        kept.len()
    }

    /// Frames that the kernel had no room for so far: for the files' statistics.
    pub fn kernel_drops(&self, drops: u64) {
        self.tally.set(Figure::KernelDrops, drops);
    }
}

/// What stands in front of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) time_ns: u64,
    pub(crate) wire_len: u32,
    pub(crate) len: u32,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.time_ns.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.wire_len.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.len.to_ne_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, d] = *bytes.as_chunks::<4>().0 else { unreachable!("16 bytes are four words") };
        let mut time = [0; 8];
        time[..4].copy_from_slice(&a);
        time[4..].copy_from_slice(&b);
        Self {
            time_ns: u64::from_ne_bytes(time),
            wire_len: u32::from_ne_bytes(c),
            len: u32::from_ne_bytes(d),
        }
    }
}
