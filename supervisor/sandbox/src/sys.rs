//! The only unsafe code of this crate: a flag of a descriptor known by its number, a flag of a thread, a setting of the C library,
//! and the last words of a process that the filter stops.
//!
//! The filter answers a forbidden call with SIGSYS in place of it (SECCOMP_RET_TRAP), and not with the process's death at once, so
//! that somebody learns which call it was. It comes to the same: the call is not made, the handler stands once and cannot be set
//! again (the filter lets no one), and behind it is nothing but the signal's own end. A process that blocks the signal is killed by the
//! kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::calls;

/// Whose last words, and where else they are left.
static WHO: OnceLock<(String, Option<&'static AtomicU32>)> = OnceLock::new();

/// `si_code` of a SIGSYS that a filter sent (asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

/// The part of `siginfo_t` that SIGSYS fills (asm-generic/siginfo.h); libc has no names for it.
#[repr(C)]
struct Info {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    /// Where it was called from, in a union that is aligned as a pointer.
    from: *const libc::c_void,
    number: libc::c_int,
    arch: libc::c_uint,
}

/// From now on SIGSYS ends the process with a line on stderr, and leaves the call's number in `left` ([`calls::named_by`]).
pub(crate) fn say_last_words(name: &str, left: Option<&'static AtomicU32>) -> io::Result<()> {
    // Said once: a process has one filter.
    let _ = WHO.set((name.to_owned(), left));
    // SAFETY: an all-zero sigaction is valid: no flags, nothing blocked, the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = last_words as *const () as usize;
    // Once only, and not blocked meanwhile: the second one ends the process.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the action is initialised, and its handler is of the form that SA_SIGINFO asks for and calls what
    // signal-safety(7) allows.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Securebit of capabilities(7): a change of user leaves this thread's capabilities alone.
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// Sets it for this thread. Needs CAP_SETPCAP.
pub(crate) fn keep_capabilities_over_a_change_of_user() -> io::Result<()> {
    // SAFETY: the call takes plain numbers and touches no memory.
    let done = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The C library keeps memory that is freed. Before it gives any back from a heap of a thread, it opens
/// `/proc/sys/vm/overcommit_memory` (glibc, `check_may_shrink_heap`), which the filter forbids: a thread's end would be the
/// process's.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes plain numbers and locks what it changes. It can only fail for an unknown parameter.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) };
    }
}

extern "C" fn last_words(_: libc::c_int, info: *const Info, _: *const libc::c_void) {
    // SAFETY: the kernel hands the handler a siginfo_t, of which this is the beginning, valid for SIGSYS.
    let (code, number) = unsafe { ((*info).code, (*info).number) };
    if code == SYS_SECCOMP {
        let (name, left) = WHO.get().map_or(("a role", None), |(name, left)| (name, *left));
        if let Some(left) = left {
            left.store(calls::word_of(number), Relaxed);
        }
        let mut line = Line { bytes: [0; 256], len: 0 };
        line.add(b"ERROR ");
        line.add(name.as_bytes());
        line.add(b": stopped by its sandbox at the system call ");
        match calls::name(number) {
            Some(name) => line.add(name.as_bytes()),
            None => line.number(number.unsigned_abs()),
        }
        line.add(b", which is not on its list (seccomp). A defect or an attack: please report it; --sandbox off runs without\n");
        // SAFETY: the buffer is live and of that length.
        unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
    }
    // SAFETY: no memory is touched; with the default action in place (SA_RESETHAND) this does not return.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGSYS) };
}

/// Text put together without asking anybody for memory.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        for (to, from) in self.bytes[self.len..].iter_mut().zip(text) {
            *to = *from;
        }
        self.len = (self.len + text.len()).min(self.bytes.len());
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.add(&digits[first..]);
    }
}

/// Closes a descriptor when the process becomes another program.
pub(crate) fn close_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: no memory is touched; an unused number is answered with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_fits() {
        let mut line = Line { bytes: [0; 256], len: 0 };
        line.add(b"call ");
        line.number(0);
        line.add(b" ");
        line.number(4_294_967_295);
        assert_eq!(&line.bytes[..line.len], b"call 0 4294967295");
        line.add(&[b'x'; 300]);
        assert_eq!((line.len, line.bytes[255]), (256, b'x'));
    }

    #[test]
    fn the_kernels_form_of_the_signal_is_ours() {
        assert_eq!(
            std::mem::offset_of!(Info, number),
            if cfg!(target_pointer_width = "64") { 24 } else { 16 }
        );
        assert!(size_of::<Info>() <= size_of::<libc::siginfo_t>());
    }
}
