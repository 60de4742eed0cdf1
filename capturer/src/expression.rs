//! `-F EXPR`: compiled once, at the start, by libpcap; carried in the plan; run in the kernel in front of our own filter, and in
//! user space by the dispatcher, whatever the engine.
//!
//! It is compiled for frames that begin at the IP header (LINKTYPE_RAW), as those of our packet sockets do. The pcap engine
//! alone takes expressions that ask for a link layer, and leaves those to libpcap.

use libpcap::Error;
use topology::Plan;
use topology::plan::{CaptureEngine, FilterPlan, MAX_EXPRESSION};

use crate::filter::{Instruction, Machine};

/// Why an expression cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    /// There is nobody to compile it.
    #[error(
        "{0}. Or choose without an expression: clients with --net and --not-net, services with -x [ONLINE-IP:]PORT-TARGET:PORT"
    )]
    NoLibrary(Error),
    /// libpcap does not take it.
    #[error(
        "{0}. `man pcap-filter` has the language; it is compiled for packets that begin at the IP header, so what asks for a link layer (ether, vlan) goes with --capture pcap only"
    )]
    Refused(Error),
    /// Its program is too long.
    #[error(
        "its program has {len} instructions, and {} are possible. Write it shorter, or choose clients with --net and --not-net",
        MAX_EXPRESSION
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Its program is none that can be run beside ours.
    #[error(
        "libpcap's program for it cannot be used: {0}. Write it in another way; `protochain` makes loops, which no kernel runs"
    )]
    Unfit(crate::filter::Unfit),
}

impl ExpressionError {
    /// Whether what was written is wrong, rather than the host.
    pub const fn is_of_the_text(&self) -> bool {
        !matches!(self, Self::NoLibrary(_))
    }
}

/// Compiles an expression for packets that begin at the IP header.
///
/// # Errors
/// A sentence for the operator.
pub fn compile(expression: &str) -> Result<Vec<Instruction>, ExpressionError> {
    let program = libpcap::compile(libpcap::link::RAW, expression).map_err(|error| match error {
        Error::Absent { .. } | Error::Lacking { .. } => ExpressionError::NoLibrary(error),
        error => ExpressionError::Refused(error),
    })?;
    if program.len() > MAX_EXPRESSION {
        return Err(ExpressionError::TooLong { len: program.len() });
    }
    let program: Vec<Instruction> = program.into_iter().map(Instruction::from).collect();
    Machine::new(program.clone()).map_err(ExpressionError::Unfit)?;
    Ok(program)
}

/// Puts the program of a plan's expression into it. The pcap engine leaves expressions about the link layer to libpcap.
///
/// # Errors
/// A sentence for the operator.
pub fn put_in(plan: &mut Plan) -> Result<(), ExpressionError> {
    let FilterPlan { expression, program, .. } = &mut plan.capture.filter;
    let Some(text) = expression else { return Ok(()) };
    match compile(text) {
        Ok(compiled) => *program = spelt(&compiled),
        Err(ExpressionError::Refused(_)) if plan.capture.engine == CaptureEngine::Pcap => program.clear(),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The program that a plan carries; empty when there is none.
pub(crate) fn planned(plan: &Plan) -> Vec<Instruction> {
    read(&plan.capture.filter.program).expect("a plan carries what `spelt` has written")
}

/// The machine that decides again on each packet; `None` where nothing is to be decided.
pub(crate) fn machine(plan: &Plan) -> Option<Machine> {
    let program = planned(plan);
    (!program.is_empty()).then(|| Machine::new(program).expect("checked before it was put into the plan"))
}

impl From<libpcap::Instruction> for Instruction {
    fn from(i: libpcap::Instruction) -> Self {
        Self { code: i.code, jt: i.jt, jf: i.jf, k: i.k }
    }
}

/// 16 hexadecimal digits an instruction: code, jumps, operand.
fn spelt(program: &[Instruction]) -> String {
    program.iter().map(|i| format!("{:04x}{:02x}{:02x}{:08x}", i.code, i.jt, i.jf, i.k)).collect()
}

fn read(text: &str) -> Option<Vec<Instruction>> {
    let digits = text.as_bytes().chunks(16);
    digits
        .map(|digits| {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 16)?;
            let number = u64::from_str_radix(digits, 16).ok()?;
            Some(Instruction {
                code: (number >> 48) as u16,
                jt: (number >> 40) as u8,
                jf: (number >> 32) as u8,
                k: number as u32,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_crosses_the_plan_unchanged() {
        let program = [(0x28, 0, 0, 0xffff_f000_u32), (0x15, 255, 1, 0x8100), (6, 0, 0, u32::MAX)]
            .map(|(code, jt, jf, k)| Instruction { code, jt, jf, k });
        assert_eq!(read(&spelt(&program)), Some(program.to_vec()));
        assert_eq!(read(""), Some(vec![]));
        assert_eq!(read("00"), None);
    }

    #[test]
    fn what_needs_a_link_layer_is_refused_with_the_engine_that_takes_it() {
        if let Err(error) = libpcap::version() {
            return eprintln!("SKIPPED: {error}");
        }
        for text in ["ether host 1:2:3:4:5:6", "vlan 5"] {
            let said = compile(text).unwrap_err();
            assert!(said.is_of_the_text());
            assert!(said.to_string().contains("--capture pcap"), "{said}");
        }
        assert!(compile("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0").is_ok());
    }
}
