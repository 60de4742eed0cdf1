//! The only unsafe code of this crate: the closure that runs between fork and exec of a child.
//!
//! Called by `namespace` when it spawns a process. What must hold: nothing in the closure allocates or takes a lock,
//! because the forked child has only one thread of the parent's.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// Makes the child die (SIGKILL) with the thread that spawns it, however that thread ends, and gives it a process group
/// of its own, so that a terminal's Ctrl-C reaches only the lab's owner, which then stops its children in order.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    command.process_group(0);
    // SAFETY: prctl(PR_SET_PDEATHSIG) and getppid are plain system calls, safe between fork and exec; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
