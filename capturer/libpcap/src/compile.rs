//! An expression as a classic BPF program.

use crate::error::Error;
use crate::sys;

/// One instruction, as the kernel's `struct sock_filter` and libpcap's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, size, mode, operation.
    pub code: u16,
    /// Instructions skipped when the condition holds.
    pub jt: u8,
    /// Instructions skipped when it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Compiles an expression (pcap-filter(7)) for frames of a link type, without any device.
///
/// # Errors
/// The library is absent, or does not take the expression.
pub fn compile(link_type: i32, expression: &str) -> Result<Vec<Instruction>, Error> {
    sys::Handle::dead(link_type)?.compile(expression)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link;

    fn there() -> bool {
        match sys::version() {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                false
            }
        }
    }

    #[test]
    fn an_expression_becomes_a_program_that_ends() {
        if !there() {
            return;
        }
        let program = compile(link::RAW, "tcp dst port 80").unwrap();
        assert!(program.len() > 5, "{program:?}");
        assert_eq!(program.last().unwrap().code & 7, 6, "the last instruction returns");
        assert_ne!(compile(link::RAW, "tcp dst port 80"), compile(link::RAW, "tcp dst port 81"));
        assert_ne!(compile(link::RAW, "tcp dst port 80"), compile(link::ETHERNET, "tcp dst port 80"));
    }

    #[test]
    fn what_is_no_expression_is_refused_in_the_librarys_words() {
        if !there() {
            return;
        }
        let said = |text: &str| compile(link::RAW, text).unwrap_err().to_string();
        assert!(said("tcp dst port").contains("syntax error"), "{}", said("tcp dst port"));
        assert!(said("ether host 1:2:3:4:5:6").contains("thernet"));
        assert!(said("vlan 5").contains("VLAN"));
        assert!(said("a\0b").contains("zero byte"));
    }

    #[test]
    fn threads_compile_at_the_same_time() {
        if !there() {
            return;
        }
        let threads: Vec<_> = (1..9_u16)
            .map(|port| std::thread::spawn(move || compile(link::RAW, &format!("tcp dst port {port}"))))
            .collect();
        for (port, thread) in (1..9_u16).zip(threads) {
            let program = thread.join().unwrap().unwrap();
            assert!(program.iter().any(|i| i.k == port.into()), "{port}: {program:?}");
        }
    }
}
