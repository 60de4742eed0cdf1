//! Becoming root of a user namespace of our own, so that a lab needs no privilege.
//!
//! Called once at the very start of a program (demo, test runner, benchmark), while it still has a single thread: the
//! kernel refuses `unshare(CLONE_NEWUSER)` otherwise.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use thiserror::Error;

/// How this process may make network namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// It was root already.
    Root,
    /// It is root of a user namespace of its own, and an ordinary user outside.
    UserNamespace,
}

/// Why this process can make no network namespace.
#[derive(Debug, Error)]
pub enum UserError {
    /// The host forbids user namespaces.
    #[error(
        "making a user namespace as uid {uid}: {errno}. This host forbids them to ordinary users \
         (kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns or \
         user.max_user_namespaces). Run the same command with sudo"
    )]
    Forbidden {
        /// Who asked.
        uid: u32,
        /// What the kernel said.
        errno: Errno,
    },
    /// Root, but without the capability.
    #[error(
        "making a network namespace as root: {0}. In a container, add CAP_SYS_ADMIN and CAP_NET_ADMIN \
         (docker run --privileged), or run outside it"
    )]
    RootWithout(Errno),
    /// The maps could not be written.
    #[error("writing {file} of the new user namespace: {error}. Run the same command with sudo")]
    Map {
        /// Which file.
        file: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Makes sure that this process may create network namespaces: as root, or else as root of a new user namespace in which
/// only the current user exists. Must be called while the process has one thread.
pub fn become_root_in_user_namespace() -> Result<Privilege, UserError> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return match try_network_namespace() {
            Ok(()) => Ok(Privilege::Root),
            Err(errno) => Err(UserError::RootWithout(errno)),
        };
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| UserError::Forbidden { uid: uid.as_raw(), errno })?;
    let write = |file: &'static str, text: String| {
        fs::write(file, text).map_err(|error| UserError::Map { file, error })
    };
    // gid_map is writable without privilege only after setgroups was given up (user_namespaces(7)).
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    try_network_namespace().map_err(|errno| UserError::Forbidden { uid: uid.as_raw(), errno })?;
    Ok(Privilege::UserNamespace)
}

/// Tries in a thread that ends at once, so that this process keeps its own network.
fn try_network_namespace() -> Result<(), Errno> {
    std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap_or(Err(Errno::EIO))
}
