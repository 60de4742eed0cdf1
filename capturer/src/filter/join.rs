//! Two programs as one: an expression's, then ours. A packet must pass both; what ours returns is what counts.
//!
//! The expression's program was compiled for frames that begin at the IP header (DLT_RAW). So do the frames of a SOCK_DGRAM
//! socket, except those with a second VLAN tag in front of it: those go past the expression, and the dispatcher, which asks
//! again, decides.

use super::ANY_LINK;
use super::assembler::{Instruction, MAX_INSTRUCTIONS, code, plain};

/// Instructions in front: what the kernel calls the frame, twice compared, and the jump past the expression.
const HEAD: usize = 4;

/// Both, or ours alone where both together would be longer than the kernel takes.
pub(crate) fn joined(expression: &[Instruction], ours: Vec<Instruction>) -> Vec<Instruction> {
    let before = HEAD + expression.len();
    if expression.is_empty() || before + ours.len() > MAX_INSTRUCTIONS {
        return ours;
    }
    // From the instruction at this place to the first of ours. Conditional jumps reach 255 instructions, this one any number.
    let past = |at: usize| plain(code::JA, (before - at - 1) as u32);
    let called = |protocol: i32, jt, jf| Instruction { code: code::JEQ, jt, jf, k: protocol as u32 };
    let mut program = Vec::with_capacity(before + ours.len());
    program.push(plain(code::LD_ABS_W, (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32));
    program.push(called(libc::ETH_P_8021Q, 1, 0));
    program.push(called(libc::ETH_P_8021AD, 0, 1));
    program.push(past(HEAD - 1));
    program.extend(expression.iter().enumerate().map(|(i, &instruction)| {
        let takes = instruction.code == code::RET_K && instruction.k > 0;
        if takes { past(HEAD + i) } else { instruction }
    }));
    program.extend(ours);
    program
}

/// An expression's program for frames that begin at a link header of any length. None, when it asks how long a frame is: the
/// kernel would count the link header too, and let the wrong ones go.
pub(crate) fn behind_any_link(expression: &[Instruction]) -> Vec<Instruction> {
    let moved = |i: &Instruction| {
        let (class, mode) = (u32::from(i.code) & 7, u32::from(i.code) & 0xe0);
        match (class, mode) {
            (libc::BPF_LD | libc::BPF_LDX, libc::BPF_LEN) => None,
            // Ancillary data is asked for by an absolute offset, which stays.
            (libc::BPF_LD, libc::BPF_ABS) if i.k >= libc::SKF_AD_OFF as u32 => Some(*i),
            (libc::BPF_LD, libc::BPF_ABS | libc::BPF_IND) | (libc::BPF_LDX, libc::BPF_MSH) => {
                Some(Instruction { k: i.k.wrapping_add(ANY_LINK), ..*i })
            }
            _ => Some(*i),
        }
    };
    expression.iter().map(moved).collect::<Option<_>>().unwrap_or_default()
}
