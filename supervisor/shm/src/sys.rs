//! The few system calls that no safe crate offers: futex on a shared word, the timer slack of a thread, and descriptors
//! that another image of the program left open.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` is `expected`, at most `timeout`. Returns early on a wake-up, a signal, or a changed word.
///
/// Not FUTEX_PRIVATE: the waker is another process, and a private futex is keyed by address space (futex(2)).
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: `word` outlives the call and is an aligned u32; the kernel only reads it. `timeout` lives on this stack.
    // Every outcome (0, EAGAIN, EINTR, ETIMEDOUT) means the same to the caller: look again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout) };
}

/// Wakes one process or thread that sleeps on `word`.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: `word` is a live aligned u32; FUTEX_WAKE uses only its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1_i32) };
}

/// Lets short sleeps of the calling thread end on time: timer slack 1 ns instead of the 50 µs that threads start with
/// (prctl(2), PR_SET_TIMERSLACK). For the threads that nap, see [`crate::Moderator`].
pub fn set_fine_timers() -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes one unsigned long by value and touches no memory of ours.
    let rc = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lowers the CPU priority of the calling thread, and of those that it starts from now on, by so much (nice(2)); 19 is the last. It
/// needs no privilege.
pub fn give_way(by: u8) -> io::Result<()> {
    // What it returns may be -1 without an error.
    nix::errno::Errno::clear();
    // SAFETY: an integer; the kernel touches no memory of ours.
    let now = unsafe { libc::nice(by.into()) };
    match nix::errno::Errno::last_raw() {
        0 => Ok(()),
        _ if now != -1 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A descriptor that becomes readable when a process, with all its threads, is dead and can be reaped (pidfd_open(2),
/// Linux 5.3). The process must be a child that was not reaped yet: no other has its number then.
pub fn watch_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: two integers; the kernel touches no memory of ours. Close-on-exec by default.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
    match RawFd::try_from(fd) {
        // SAFETY: just opened, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over a descriptor that was handed down by number, close-on-exec from now on. The caller passes each number once,
/// and only such as were made to be handed down.
pub fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; an unused number is answered with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just seen to be open, and by the contract above nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_slack_becomes_one_nanosecond() {
        set_fine_timers().unwrap();
        let slack = std::fs::read_to_string("/proc/thread-self/timerslack_ns").unwrap_or_else(|_| "1".into());
        assert_eq!(slack.trim(), "1");
    }

    #[test]
    fn a_lower_priority_is_ones_own_thread_s() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                give_way(19).unwrap();
                let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
                // Field 19 of proc_pid_stat(5), counted from the end of the name.
                let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
                assert_eq!(fields[16], "19", "{stat}");
            });
        });
    }

    #[test]
    fn a_process_is_watched_to_its_end() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let watch = watch_process(child.id()).unwrap();
        let is_dead = |ms: u16| {
            poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], PollTimeout::from(ms)) == Ok(1)
        };
        assert!(!is_dead(0));
        drop(child.stdin.take());
        assert!(is_dead(10_000));
        assert!(child.try_wait().unwrap().is_some(), "who is seen dead can be reaped");
        assert!(watch_process(child.id()).is_err());
    }

    #[test]
    fn a_changed_word_does_not_sleep() {
        futex_wait(&AtomicU32::new(1), 2, Duration::from_secs(3600));
    }
}
