//! A classic BPF machine for tests: runs programs as the kernel does, and refuses what its verifier refuses.

use super::Instruction;

/// What the kernel knows about a frame beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aside {
    pub(super) protocol: u16,
    pub(super) packet_type: u8,
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
    let (mut a, mut x, mut scratch, mut pc) = (0u32, 0u32, [None::<u32>; 16], 0usize);
    loop {
        let i = program[pc];
        pc += 1;
        let code = u32::from(i.code);
        match code & 7 {
            libc::BPF_LD => {
                let size = match code & 0x18 {
                    libc::BPF_W => 4,
                    libc::BPF_H => 2,
                    _ => 1,
                };
                a = match code & 0xe0 {
                    libc::BPF_IMM => i.k,
                    libc::BPF_LEN => packet.len() as u32,
                    libc::BPF_MEM => scratch[i.k as usize].expect("scratch is written before it is read"),
                    mode => {
                        let ancillary = i.k.wrapping_sub(libc::SKF_AD_OFF as u32) as i32;
                        let offset = if mode == libc::BPF_IND { x.wrapping_add(i.k) } else { i.k };
                        match ancillary {
                            libc::SKF_AD_PROTOCOL => u32::from(aside.protocol),
                            libc::SKF_AD_PKTTYPE => u32::from(aside.packet_type),
                            _ => match load(packet, offset, size) {
                                Some(value) => value,
                                None => return 0,
                            },
                        }
                    }
                };
            }
            libc::BPF_LDX => x = i.k,
            libc::BPF_ST => scratch[i.k as usize] = Some(a),
            libc::BPF_ALU => {
                let by = if code & 8 == libc::BPF_X { x } else { i.k };
                a = match code & 0xf0 {
                    libc::BPF_ADD => a.wrapping_add(by),
                    libc::BPF_AND => a & by,
                    libc::BPF_LSH => a << by,
                    libc::BPF_RSH => a >> by,
                    other => panic!("operation {other:#x}"),
                };
            }
            libc::BPF_JMP => {
                let yes = match code & 0xf0 {
                    libc::BPF_JA => {
                        pc += i.k as usize;
                        continue;
                    }
                    libc::BPF_JEQ => a == i.k,
                    libc::BPF_JGT => a > i.k,
                    libc::BPF_JGE => a >= i.k,
                    libc::BPF_JSET => a & i.k != 0,
                    other => panic!("jump {other:#x}"),
                };
                pc += usize::from(if yes { i.jt } else { i.jf });
            }
            libc::BPF_RET => return if code & 0x18 == libc::BPF_A { a } else { i.k },
            _ if code & 0xf8 == libc::BPF_TXA => a = x,
            _ => x = a,
        }
    }
}

fn load(packet: &[u8], offset: u32, size: usize) -> Option<u32> {
    let bytes = packet.get(offset as usize..)?.get(..size)?;
    Some(bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}
