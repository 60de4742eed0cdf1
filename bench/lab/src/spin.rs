//! A process that computes without end, as after a bug: its main thread is led to a jump to itself, found somewhere in its
//! own program. Nothing in the program is there for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// `jmp .` of x86-64. It need not be one in the program: any two bytes that are executable and read like this will do.
const LOOP: [u8; 2] = [0xeb, 0xfe];
/// Bytes read at a time; one in 65,536 pairs of random bytes is the right one.
const PIECE: usize = 1 << 16;

/// Leads the main thread of a process into an endless loop. The process must be one that this user may trace.
#[cfg(target_arch = "x86_64")]
pub fn spin(pid: u32) -> Result<()> {
    let place = loop_in(pid)?;
    let pid = Pid::from_raw(pid.cast_signed());
    ptrace::attach(pid).with_context(|| format!("attaching to process {pid}"))?;
    let led = waitpid(pid, Some(WaitPidFlag::__WALL)).and_then(|_| {
        let mut registers = ptrace::getregs(pid)?;
        registers.rip = place;
        // In no system call: the kernel would begin an interrupted one anew, two bytes before.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(pid, registers)
    });
    let left = ptrace::detach(pid, None);
    led.and(left).with_context(|| format!("leading process {pid} into a loop"))
}

/// Other processors jump otherwise.
#[cfg(not(target_arch = "x86_64"))]
pub fn spin(_pid: u32) -> Result<()> {
    anyhow::bail!("making a process spin is written for x86-64 only; leave this fault out on this machine")
}

/// Address of a jump to itself in the executable memory of a process.
#[cfg(target_arch = "x86_64")]
fn loop_in(pid: u32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("reading what is mapped")?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("opening its memory")?;
    let mut piece = vec![0; PIECE];
    for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
        let span = line.split_once(' ').and_then(|(span, _)| span.split_once('-'));
        let number = |hex: &str| u64::from_str_radix(hex, 16);
        let Some((Ok(mut from), Ok(until))) = span.map(|(from, until)| (number(from), number(until))) else {
            continue;
        };
        while from < until {
            let wanted = PIECE.min((until - from) as usize);
            // Some pages that the kernel lends cannot be read in this way.
            let Ok(n) = read_some(&memory, &mut piece[..wanted], from) else { break };
            if let Some(at) = piece[..n].windows(LOOP.len()).position(|pair| pair == LOOP) {
                return Ok(from + at as u64);
            }
            from += n as u64;
        }
    }
    anyhow::bail!("process {pid} has no two executable bytes that jump to themselves")
}

fn read_some(memory: &File, piece: &mut [u8], at: u64) -> io::Result<usize> {
    match memory.read_at(piece, at)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => Ok(n),
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::process::Process;
    use crate::wait;

    #[test]
    fn a_sleeping_process_computes_without_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let cpu_s = || Process::read(child.id()).map_or(0.0, |p| p.cpu_s);
        assert!(cpu_s() < 0.1);
        // Its libraries are mapped a moment after it was started; its own few pages need not hold the two bytes.
        wait::until("it can be led", Duration::from_secs(20), || spin(child.id()).is_ok()).unwrap();
        wait::until("it has used a tenth of a second", Duration::from_secs(20), || cpu_s() > 0.1).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
