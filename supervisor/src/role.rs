//! Being a role: the hidden command `role`, started by the supervisor only ([`crate::spawn`]).
//!
//! Boot, in order: block the terminal's signals, take its name, pin, log, attach, ask for the parent-death signal, check that the parent
//! still lives, abort on panic, look at what is open, open what needs privileges, give up all that is not needed ([`confine`]),
//! work. A change of user clears the parent-death signal, so it is asked for again behind that, and the parent is looked at
//! after it: if it died before, the signal would never come.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::getppid;
use sandbox::Ids;
use shm::Region;
use topology::{Plan, Process, Refusal};

use crate::{confine, logging, procfs};

/// The command line of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoleArgs {
    process: Process,
    name: String,
    epoch: u64,
    parent: u32,
    lock: RawFd,
    ids: Option<Ids>,
    fds: Vec<Option<RawFd>>,
    core: Option<u16>,
}

impl RoleArgs {
    /// For clap; hidden from the help.
    pub(crate) fn command() -> clap::Command {
        let value = |id: &'static str| Arg::new(id).long(id).required(true);
        clap::Command::new("role")
            .hide(true)
            .arg(Arg::new("kind").required(true))
            .arg(Arg::new("index").required(true))
            .arg(value("name"))
            .arg(value("epoch"))
            .arg(value("parent"))
            .arg(value("lock").required(false))
            .arg(value("user").required(false))
            .arg(value("fds").required(false))
            .arg(value("core").required(false))
    }

    /// From what clap read.
    ///
    /// # Errors
    /// Somebody typed it by hand.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Result<Self, Refusal> {
        Self::parse(matches).ok_or_else(|| {
            Refusal::usage(
                "`tcptwin role` is started by `tcptwin run`, not by hand. Start with `tcptwin run --help`",
            )
        })
    }

    fn parse(matches: &ArgMatches) -> Option<Self> {
        let text = |id: &str| matches.get_one::<String>(id).map(String::as_str);
        let index = text("index")?.parse().ok()?;
        let process = match text("kind")? {
            "capturer" => Process::Capturer,
            "injector" => Process::Injector,
            "shard-worker" => Process::Shard(index),
            _ => return None,
        };
        let fd = |one: &str| match one {
            "none" => Some(None),
            number => number.parse().ok().filter(|number| *number > 2).map(Some),
        };
        Some(Self {
            process,
            name: text("name")?.to_owned(),
            epoch: text("epoch")?.parse().ok()?,
            parent: text("parent")?.parse().ok()?,
            lock: text("lock")?.parse().ok()?,
            ids: match text("user") {
                Some(both) => {
                    let (uid, gid) = both.split_once(':')?;
                    Some(Ids { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
                }
                None => None,
            },
            fds: text("fds").map_or_else(|| Some(Vec::new()), |list| list.split(',').map(fd).collect())?,
            core: match text("core") {
                Some(number) => Some(number.parse().ok()?),
                None => None,
            },
        })
    }
}

/// Lives as a role until its work is over.
pub(crate) fn be(args: &RoleArgs) -> ExitCode {
    logging::start(&args.process.to_string(), logging::level(false));
    match live(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn live(args: &RoleArgs) -> anyhow::Result<()> {
    block_signals();
    call_itself(args.process);
    pin(args.core);
    let open =
        sandbox::opened().context("looking at the descriptors that are open failed; is /proc mounted?")?;
    let region = Region::attach(&args.name)?;
    die_with(args.parent)?;
    if region.epoch() != args.epoch {
        bail!(
            "the region {} belongs to another start ({} instead of {})",
            args.name,
            region.epoch(),
            args.epoch
        );
    }
    abort_on_panic();
    procfs::volunteer_for_oom(procfs::OOM_OF_ROLES);
    let plan = Plan::from_bytes(&region.plan_bytes())
        .context("the plan in the region is not readable by this program")?;
    // Before any thread is started: each has a priority of its own, and begins with that of who started it.
    let nice = plan.nice(args.process);
    if let Err(error) = shm::give_way(nice) {
        tracing::warn!("CPU priority {nice} could not be had ({error}); running with the usual one");
    }
    let keep = confine::of_role(&plan, args.process, args.ids);
    if keep.is_some() {
        let own = [confine::named_by_plan(plan.trace.as_ref()), args.fds.iter().flatten().copied().collect()];
        confine::only(&open, &[own.concat(), vec![args.lock]].concat()).map_err(anyhow::Error::msg)?;
    }
    let confine = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(keep) = keep else { return Ok(()) };
        let filter = keep.give_up()?;
        die_with(args.parent)?;
        Ok(filter.enter(Some(region.heartbeat(args.process.role()).stopped_at()))?)
    };
    match args.process {
        Process::Capturer => {
            let fds: Vec<RawFd> = args.fds.iter().flatten().copied().collect();
            let sockets = capturer::inherit(&plan, &fds)?;
            capturer::run(region, &plan, sockets, confine)?;
        }
        Process::Injector => {
            let sockets = injector::Sockets::inherit(&args.fds)?;
            injector::run(region, &plan, sockets, confine)?;
        }
        Process::Shard(shard) => {
            confine().map_err(anyhow::Error::from_boxed)?;
            shard_worker::run(region, &plan, shard)?;
        }
    }
    Ok(())
}

/// The name that `ps` and `top` show: that of the link by which the program was started says nothing.
fn call_itself(process: Process) {
    if let Ok(name) = CString::new(process.to_string()) {
        // At worst it is called as before.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// Asks to die with the supervisor, and makes sure that it lives.
fn die_with(parent: u32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking for the parent-death signal failed")?;
    if i64::from(getppid().as_raw()) != i64::from(parent) {
        bail!("the supervisor (pid {parent}) is gone; nothing to do without it");
    }
    Ok(())
}

/// Ctrl-C reaches the whole process group, and a service manager's SIGTERM every process of the service: the supervisor
/// alone acts on them and drains. Blocked, not ignored: threads that start later inherit it.
fn block_signals() {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    // It can only fail for a wrong argument; at worst Ctrl-C ends this role and the supervisor replaces it.
    let _ = set.thread_block();
}

/// Pins this thread, and threads that it starts later. The core is checked first: the crate writes beyond its set, and
/// the process aborts, for a number of 1024 or more.
fn pin(core: Option<u16>) {
    let Some(core) = core.map(usize::from) else { return };
    let allowed = affinity::get_thread_affinity().unwrap_or_default();
    if core >= 1024 || !allowed.contains(&core) {
        tracing::warn!(
            "core {core} is not available any more; running unpinned. Start again with another --cores"
        );
        return;
    }
    if let Err(error) = affinity::set_thread_affinity([core]) {
        tracing::warn!("pinning to core {core} failed ({error}); running unpinned");
    }
}

/// A panic is a bug: one line says where, and the process dies at once, so that the supervisor replaces it and no other
/// thread of it goes on half alive.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        match panic.location() {
            Some(at) => tracing::error!("panic at {}:{}: {message}", at.file(), at.line()),
            None => tracing::error!("panic: {message}"),
        }
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<RoleArgs, Refusal> {
        let matches = RoleArgs::command().try_get_matches_from(line.split_whitespace()).unwrap();
        RoleArgs::from_matches(&matches)
    }

    #[test]
    fn what_the_supervisor_writes_is_what_the_role_reads() {
        let args = parse(
            "role injector 0 --name web --epoch 3 --parent 77 --lock 3 --user 12:13 --fds none,5 --core 4",
        )
        .unwrap();
        assert_eq!(args.process, Process::Injector);
        assert_eq!((args.epoch, args.parent, args.core), (3, 77, Some(4)));
        assert_eq!(args.fds, [None, Some(5)]);
        assert_eq!((args.lock, args.ids), (3, Some(Ids { uid: 12, gid: 13 })));
        assert_eq!(
            parse("role shard-worker 2 --name web --epoch 1 --parent 7 --lock 3").unwrap().process,
            Process::Shard(2)
        );
    }

    #[test]
    fn typed_by_hand_it_says_so() {
        for line in [
            "role cook 0 --name a --epoch 1 --parent 1 --lock 3",
            "role capturer x --name a --epoch 1 --parent 1 --lock 3",
            "role capturer 0 --name a --epoch 1 --parent 1 --lock 3 --fds 1",
            "role capturer 0 --name a --epoch 1 --parent 1 --lock 3 --fds 5,x",
            "role capturer 0 --name a --epoch 1 --parent 1 --lock 3 --user 5",
        ] {
            assert!(parse(line).unwrap_err().sentence.contains("not by hand"), "{line}");
        }
    }
}
