//! A tap of our own on the device that a target's packets leave by: whether what was sent was seen to leave. Packets by raw IP
//! pass it behind the firewall; frames of the link engine go straight to the driver and pass no tap.

use std::io;
use std::net::{IpAddr, SocketAddr};

use capturer::filter::Instruction;
use capturer::packet_ring::{Hearing, PacketRing, RingSpec, Start, open_socket};
use flow::segment;
use std::cell::RefCell;

/// What leaves for one target.
pub(crate) struct Tap {
    ring: RefCell<PacketRing>,
    to: SocketAddr,
}

/// Slot and ring: headers of a few packets.
const SLOT_BYTES: u32 = 256;
const RING_BYTES: u64 = 256 << 10;

impl Tap {
    /// Opens it where the route leads now.
    pub(crate) fn open(to: SocketAddr) -> io::Result<Self> {
        let route = injector::route_to(to).map_err(io::Error::other)?;
        let spec = RingSpec::with_slots(SLOT_BYTES, RING_BYTES);
        let hearing = Hearing { promiscuous: false, outgoing: true };
        let socket = open_socket(&spec, &leaving(to.ip()), route.device_index, hearing)?;
        Ok(Self { ring: RefCell::new(PacketRing::map(socket, spec, Start::Fresh)?), to })
    }

    /// Whether anything from this address to the target's service left since it was opened, or the last look.
    pub(crate) fn saw(&self, from: IpAddr) -> bool {
        let mut ring = self.ring.borrow_mut();
        let mut saw = false;
        while let Some((meta, packet)) = ring.peek() {
            if let Ok(segment) = segment::parse(packet, meta.len) {
                saw |= segment.src.addr.to_ip() == from && segment.dst.to_socket_addr() == self.to;
            }
            ring.advance();
            ring.release();
        }
        saw
    }
}

/// Outgoing packets to an address; they begin at the IP header.
fn leaving(to: IpAddr) -> Vec<Instruction> {
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let words: Vec<(u32, u32)> = match to {
        IpAddr::V4(v4) => vec![(16, v4.to_bits())],
        IpAddr::V6(v6) => {
            let words = v6.octets();
            let word = |i: usize| u32::from_be_bytes(words[i * 4..i * 4 + 4].try_into().expect("four bytes"));
            (0..4).map(|i| (24 + 4 * i as u32, word(i))).collect()
        }
    };
    let conditions = std::iter::once((PACKET_TYPE, u32::from(libc::PACKET_OUTGOING))).chain(words);
    let conditions: Vec<(u32, u32)> = conditions.collect();
    let count = conditions.len();
    let mut program = Vec::new();
    for (i, (offset, value)) in conditions.into_iter().enumerate() {
        program.push(Instruction { code: load, jt: 0, jf: 0, k: offset });
        // To the last instruction: the rest of the conditions, two each, and the one that keeps the packet.
        let jf = (2 * (count - 1 - i) + 1) as u8;
        program.push(Instruction { code: equal, jt: 0, jf, k: value });
    }
    program.push(Instruction { code: end, jt: 0, jf: 0, k: u32::MAX });
    program.push(Instruction { code: end, jt: 0, jf: 0, k: 0 });
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_leads_to_the_last_instruction() {
        for to in ["10.0.3.2", "fd00::2"] {
            let program = leaving(to.parse().unwrap());
            let last = program.len() - 1;
            assert_eq!((program[last].k, program[last - 1].k), (0, u32::MAX));
            for (at, instruction) in program.iter().enumerate().filter(|(_, one)| one.jf > 0) {
                assert_eq!(at + 1 + usize::from(instruction.jf), last, "{to}");
            }
        }
    }
}
