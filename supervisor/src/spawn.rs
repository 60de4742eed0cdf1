//! Starting a role: fork and exec of this very program with the hidden command `role`. Start and restart are one path.
//!
//! Only the main thread may call this: the parent-death signal that a role asks for fires when the *thread* that started
//! it ends (prctl(2)). Descriptors are close-on-exec except while their role is started, so a role inherits what is its
//! own: its sockets and the instance's lock. A pidfd wakes the supervisor's poll when all of the role is dead, and not
//! before: woken by the first of a dying role's threads, it would only take their core.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sandbox::Ids;
use topology::{Plan, Process, wiring};

use crate::sockets::Sockets;
use crate::{logging, relay};

/// A role that was started.
pub(crate) struct Started {
    /// The process.
    pub(crate) pid: u32,
    /// Becomes readable when the process is dead.
    pub(crate) alive: OwnedFd,
}

/// Variables that a role may see. Not RUST_BACKTRACE: for a backtrace, files would have to be opened.
const ENVIRONMENT: [&str; 4] = ["NO_COLOR", "TERM", logging::LEVEL, "LANG"];

/// What every role of a run is started with.
#[derive(Clone, Copy)]
pub(crate) struct Outfit<'r> {
    /// Of the region that it attaches.
    pub(crate) plan: &'r Plan,
    /// Of that region.
    pub(crate) epoch: u64,
    /// Some of these are its own.
    pub(crate) sockets: &'r Sockets,
    /// The instance's lock, which it holds as long as it lives.
    pub(crate) lock: RawFd,
    /// Whom it becomes.
    pub(crate) ids: Option<Ids>,
    /// It logs warnings only.
    pub(crate) quiet: bool,
}

/// Starts a role.
///
/// # Errors
/// The system is out of something: processes, memory, descriptors.
pub(crate) fn start(process: Process, outfit: Outfit<'_>) -> anyhow::Result<Started> {
    let Outfit { plan, epoch, sockets, lock, ids, quiet } = outfit;
    // Of this start alone; our copy goes when the role has its own.
    let ways = match (process, &sockets.ways) {
        (Process::Injector, Some(ways)) => {
            Some(ways.attach().context("making a socket for the injector failed")?)
        }
        _ => None,
    };
    let mut fds = descriptors(process, sockets);
    fds.extend(ways.as_ref().map(|ways| Some(ways.as_raw_fd())));
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("role")
        .arg(process.kind())
        .arg(process.index().to_string())
        .args(["--name", &plan.name])
        .args(["--epoch", &epoch.to_string()])
        .args(["--lock", &lock.to_string()])
        .args(["--parent", &std::process::id().to_string()]);
    if !fds.is_empty() {
        command.args(["--fds", &fds.iter().map(|fd| fd_text(*fd)).collect::<Vec<_>>().join(",")]);
    }
    if let Some(Ids { uid, gid }) = ids {
        command.args(["--user", &format!("{uid}:{gid}")]);
    }
    if let Some(core) = wiring::core(plan, process) {
        command.args(["--core", &core.to_string()]);
    }
    // Packets from a pipe are the capturer's to read.
    let piped = process == Process::Capturer && plan.trace.as_ref().is_some_and(crate::replaying::is_stdin);
    let stdin = if piped { Stdio::inherit() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::null()).env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|key| Some((key, std::env::var_os(key)?))));
    // What a shard finds its sessions by grows with them, and lies in large pages if the C library asks for them.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    if quiet {
        command.env(logging::LEVEL, "warn");
    }
    if relay::ends_at_a_terminal() {
        command.env(logging::COLOUR, "1");
    }
    ways.iter().try_for_each(|ways| inherit(ways, true))?;
    keep_sockets(process, sockets, true)?;
    let child = command.spawn();
    keep_sockets(process, sockets, false)?;
    let mut child = child.with_context(|| {
        format!("starting {process} failed; are the limits on processes (ulimit -u) or memory reached?")
    })?;
    let pid = child.id();
    match shm::watch_process(pid) {
        Ok(alive) => Ok(Started { pid, alive }),
        Err(error) => {
            // Unwatched it is of no use.
            let _ = child.kill();
            let _ = child.wait();
            Err(error).with_context(|| {
                format!("watching {process} failed; is the limit of open files (ulimit -n) reached?")
            })
        }
    }
}

/// The descriptors of a role, in the order in which it takes them over; `None` where it has no such socket.
fn descriptors(process: Process, sockets: &Sockets) -> Vec<Option<RawFd>> {
    match process {
        Process::Capturer => sockets.capture.iter().map(|socket| Some(socket.as_fd().as_raw_fd())).collect(),
        Process::Injector => sockets.inject.numbers().to_vec(),
        Process::Shard(_) => Vec::new(),
    }
}

fn fd_text(fd: Option<RawFd>) -> String {
    fd.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

fn keep_sockets(process: Process, sockets: &Sockets, keep: bool) -> anyhow::Result<()> {
    match process {
        Process::Capturer => sockets.capture.iter().try_for_each(|socket| inherit(socket, keep)),
        Process::Injector => Ok(sockets.inject.keep_on_exec(keep)?),
        Process::Shard(_) => Ok(()),
    }
}

/// Lets processes that are started from here on keep the descriptor, or not.
fn inherit(fd: &impl AsFd, keep: bool) -> anyhow::Result<()> {
    let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(flags)).context("marking a descriptor for a role failed")?;
    Ok(())
}
