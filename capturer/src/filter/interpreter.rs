//! What tests add to the machine: what the kernel knows beside a frame, and everything that the kernel's verifier refuses.

use super::{Instruction, machine};

/// What the kernel knows about a frame beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aside {
    pub(super) protocol: u16,
    pub(super) packet_type: u8,
    pub(super) interface: u32,
}

/// Checks a program like the kernel's `bpf_check_classic`: length, jumps within it, known codes, an end, scratch words in range.
pub(super) fn check(program: &[Instruction]) {
    assert!(
        !program.is_empty() && program.len() <= super::MAX_INSTRUCTIONS,
        "{} instructions",
        program.len()
    );
    for (at, i) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        let class = u32::from(i.code) & 7;
        if class == libc::BPF_JMP {
            if u32::from(i.code) & 0xf0 == libc::BPF_JA {
                assert!((i.k as usize) < left, "jump out of the program at {at}");
            } else {
                assert!(
                    usize::from(i.jt) < left && usize::from(i.jf) < left,
                    "branch out of the program at {at}"
                );
            }
        }
        if class == libc::BPF_ST || (class == libc::BPF_LD && u32::from(i.code) & 0xe0 == libc::BPF_MEM) {
            assert!(i.k < 16, "scratch word {} at {at}", i.k);
        }
    }
    assert_eq!(u32::from(program[program.len() - 1].code) & 7, libc::BPF_RET);
    check_scratch(program);
}

/// Every scratch word is written before it is read, as the kernel's `check_load_and_stores` sees it: a return does not
/// end its walk.
fn check_scratch(program: &[Instruction]) {
    let mut known = vec![u16::MAX; program.len()];
    let mut written = 0;
    for (at, i) in program.iter().enumerate() {
        written &= known[at];
        let code = u32::from(i.code);
        match code & 7 {
            libc::BPF_ST => written |= 1 << i.k,
            libc::BPF_LD if code & 0xe0 == libc::BPF_MEM => {
                assert!(
                    written & (1 << i.k) != 0,
                    "scratch word {} is read at {at} before it is written",
                    i.k
                );
            }
            libc::BPF_JMP => {
                let skips = if code & 0xf0 == libc::BPF_JA { [i.k; 2] } else { [i.jt.into(), i.jf.into()] };
                for skip in skips {
                    known[at + 1 + skip as usize] &= written;
                }
                written = u16::MAX;
            }
            _ => {}
        }
    }
}

/// Runs a program; a load beyond the packet ends it with 0, as in the kernel.
pub(super) fn run(program: &[Instruction], packet: &[u8], aside: Aside) -> u32 {
    machine::run(program, packet, packet.len() as u32, |field| match field {
        libc::SKF_AD_PROTOCOL => Some(u32::from(aside.protocol)),
        libc::SKF_AD_PKTTYPE => Some(u32::from(aside.packet_type)),
        libc::SKF_AD_IFINDEX => Some(aside.interface),
        _ => None,
    })
}
