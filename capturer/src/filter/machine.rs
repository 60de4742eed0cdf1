//! A classic BPF machine: runs a program in user space as the kernel runs it in its own. For engines and files that no kernel
//! filter stands in front of, and after every kernel filter that lets through a little more than is meant.
//!
//! A program is checked once, when the machine is made; running it then neither fails nor goes on for ever, since no jump goes
//! back.

use super::{Instruction, MAX_INSTRUCTIONS};

/// Scratch words (BPF_MEMWORDS).
const WORDS: usize = 16;

/// Why a program cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No instruction, or more than the kernel takes.
    #[error("it has {0} instructions, and 1 to 4,096 can be run")]
    Length(usize),
    /// A jump leaves the program.
    #[error("instruction {0} jumps out of it")]
    Jump(usize),
    /// No such instruction.
    #[error("instruction {0} is none that this machine knows")]
    Unknown(usize),
    /// It does not end in a return.
    #[error("it has no end")]
    NoEnd,
}

/// A checked program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    program: Vec<Instruction>,
}

impl Machine {
    /// Checks a program, as the kernel's `bpf_check_classic` does.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn new(program: Vec<Instruction>) -> Result<Self, Unfit> {
        let len = program.len();
        if len == 0 || len > MAX_INSTRUCTIONS {
            return Err(Unfit::Length(len));
        }
        for (at, i) in program.iter().enumerate() {
            if !is_known(i) {
                return Err(Unfit::Unknown(at));
            }
            let left = len - at - 1;
            let farthest = match u32::from(i.code) & 7 {
                libc::BPF_JMP if u32::from(i.code) & 0xf0 == libc::BPF_JA => i.k as usize,
                libc::BPF_JMP => usize::from(i.jt.max(i.jf)),
                _ => continue,
            };
            if farthest >= left {
                return Err(Unfit::Jump(at));
            }
        }
        match u32::from(program[len - 1].code) & 7 {
            libc::BPF_RET => Ok(Self { program }),
            _ => Err(Unfit::NoEnd),
        }
    }

    /// Whether the program takes a packet: `packet` from where the program was compiled for, `wire_len` its length on the
    /// wire from there.
    pub fn matches(&self, packet: &[u8], wire_len: u32) -> bool {
        run(&self.program, packet, wire_len, |_| None) > 0
    }
}

fn is_known(i: &Instruction) -> bool {
    let code = u32::from(i.code);
    let word = (i.k as usize) < WORDS;
    match code & 7 {
        libc::BPF_LD => match code & 0xe0 {
            libc::BPF_IMM | libc::BPF_LEN => code & 0x18 == libc::BPF_W,
            libc::BPF_MEM => code & 0x18 == libc::BPF_W && word,
            libc::BPF_ABS | libc::BPF_IND => code & 0x18 != 0x18,
            _ => false,
        },
        libc::BPF_LDX => match code & 0xe0 {
            libc::BPF_IMM | libc::BPF_LEN => code & 0x18 == libc::BPF_W,
            libc::BPF_MEM => code & 0x18 == libc::BPF_W && word,
            libc::BPF_MSH => code & 0x18 == libc::BPF_B,
            _ => false,
        },
        libc::BPF_ST | libc::BPF_STX => word,
        libc::BPF_ALU => {
            let by_zero = code & 8 == libc::BPF_K && i.k == 0;
            match code & 0xf0 {
                libc::BPF_DIV | libc::BPF_MOD => !by_zero,
                other => other <= libc::BPF_XOR,
            }
        }
        libc::BPF_JMP => code & 0xf0 <= libc::BPF_JSET,
        libc::BPF_RET => matches!(code & 0x18, libc::BPF_K | libc::BPF_A),
        _ => matches!(code & 0xf8, libc::BPF_TAX | libc::BPF_TXA),
    }
}

/// Runs a checked program; a load beyond the packet and a division by zero end it with 0, as in the kernel. `beside` gives what
/// the kernel knows about the frame beside its bytes (SKF_AD_*).
pub(super) fn run(
    program: &[Instruction],
    packet: &[u8],
    wire_len: u32,
    beside: impl Fn(i32) -> Option<u32>,
) -> u32 {
    let (mut a, mut x, mut scratch, mut pc) = (0u32, 0u32, [0u32; WORDS], 0usize);
    loop {
        let i = program[pc];
        pc += 1;
        let code = u32::from(i.code);
        match code & 7 {
            libc::BPF_LD => {
                let loaded = match code & 0xe0 {
                    libc::BPF_IMM => Some(i.k),
                    libc::BPF_LEN => Some(wire_len),
                    libc::BPF_MEM => Some(scratch[i.k as usize]),
                    mode => {
                        let offset = if mode == libc::BPF_IND { x.wrapping_add(i.k) } else { i.k };
                        let ancillary = i.k.wrapping_sub(libc::SKF_AD_OFF as u32) as i32;
                        beside(ancillary).or_else(|| load(packet, offset, code & 0x18))
                    }
                };
                let Some(loaded) = loaded else { return 0 };
                a = loaded;
            }
            libc::BPF_LDX => {
                x = match code & 0xe0 {
                    libc::BPF_IMM => i.k,
                    libc::BPF_LEN => wire_len,
                    libc::BPF_MEM => scratch[i.k as usize],
                    _ => match load(packet, i.k, libc::BPF_B) {
                        Some(byte) => (byte & 0xf) * 4,
                        None => return 0,
                    },
                }
            }
            libc::BPF_ST => scratch[i.k as usize] = a,
            libc::BPF_STX => scratch[i.k as usize] = x,
            libc::BPF_ALU => {
                let by = if code & 8 == libc::BPF_X { x } else { i.k };
                let Some(result) = compute(code & 0xf0, a, by) else { return 0 };
                a = result;
            }
            libc::BPF_JMP => {
                let with = if code & 8 == libc::BPF_X { x } else { i.k };
                let yes = match code & 0xf0 {
                    libc::BPF_JA => {
                        pc += i.k as usize;
                        continue;
                    }
                    libc::BPF_JEQ => a == with,
                    libc::BPF_JGT => a > with,
                    libc::BPF_JGE => a >= with,
                    _ => a & with != 0,
                };
                pc += usize::from(if yes { i.jt } else { i.jf });
            }
            libc::BPF_RET => return if code & 0x18 == libc::BPF_A { a } else { i.k },
            _ if code & 0xf8 == libc::BPF_TXA => a = x,
            _ => x = a,
        }
    }
}

fn compute(operation: u32, a: u32, by: u32) -> Option<u32> {
    Some(match operation {
        libc::BPF_ADD => a.wrapping_add(by),
        libc::BPF_SUB => a.wrapping_sub(by),
        libc::BPF_MUL => a.wrapping_mul(by),
        libc::BPF_DIV => a.checked_div(by)?,
        libc::BPF_MOD => a.checked_rem(by)?,
        libc::BPF_OR => a | by,
        libc::BPF_AND => a & by,
        libc::BPF_XOR => a ^ by,
        libc::BPF_LSH => a.wrapping_shl(by),
        libc::BPF_RSH => a.wrapping_shr(by),
        _ => a.wrapping_neg(),
    })
}

fn load(packet: &[u8], offset: u32, size: u32) -> Option<u32> {
    let bytes = packet.get(offset as usize..)?;
    Some(match size {
        libc::BPF_W => u32::from_be_bytes(*bytes.first_chunk()?),
        libc::BPF_H => u16::from_be_bytes(*bytes.first_chunk()?).into(),
        _ => (*bytes.first()?).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code: code as u16, jt, jf, k }
    }

    #[test]
    fn unfit_programs_are_refused() {
        let end = instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 1);
        let new = |program: &[Instruction]| Machine::new(program.to_vec());
        assert!(new(&[end]).is_ok());
        assert_eq!(new(&[]), Err(Unfit::Length(0)));
        assert_eq!(new(&vec![end; 4_097]), Err(Unfit::Length(4_097)));
        assert_eq!(new(&[instruction(libc::BPF_JMP | libc::BPF_JEQ, 1, 0, 0), end]), Err(Unfit::Jump(0)));
        assert_eq!(
            new(&[instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, u32::MAX), end]),
            Err(Unfit::Jump(0))
        );
        assert_eq!(new(&[end, instruction(libc::BPF_ST, 0, 0, 16), end]), Err(Unfit::Unknown(1)));
        assert_eq!(new(&[instruction(libc::BPF_ALU | libc::BPF_DIV, 0, 0, 0), end]), Err(Unfit::Unknown(0)));
        assert_eq!(new(&[end, instruction(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0)]), Err(Unfit::NoEnd));
    }

    #[test]
    fn a_load_beyond_the_packet_is_a_no() {
        let program = vec![
            instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 3),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 1),
        ];
        let machine = Machine::new(program).unwrap();
        assert!(machine.matches(&[0; 5], 5));
        assert!(!machine.matches(&[0; 4], 5));
    }
}
