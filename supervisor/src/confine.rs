//! What each process gives up before it meets a packet (`sandbox`): which of the lists of system calls, files and capabilities are
//! whose. The supervisor keeps some of root's rights ([`OF_STARTERS`]): it opens sockets for roles that are started again, watches
//! the kernel's guard, looks after neighbours, and touches no packet.
//!
//! | process | user | capabilities | files |
//! |---|---|---|---|
//! | shard worker | tcptwin, else nobody | none | none |
//! | injector | the same | none; CAP_NET_RAW with libpcap, which opens its own sockets | none; what libpcap reads |
//! | capturer | the same | none; CAP_NET_RAW likewise | none; what libpcap reads |
//! | … of packet files | the same | CAP_DAC_READ_SEARCH, for files of whoever started it | those files, to be read |
//! | … that records | who started it, to whom the files shall belong | CAP_DAC_OVERRIDE, where the directory is another's | that directory |
//! | intercept | the same as a worker | CAP_DAC_OVERRIDE, to take its control socket away | its own place; figures of its own and of its device, to be read |
//!
//! A process that was started without the right to change its user stays who it is, and has no files of that user in reach either.

use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sandbox::calls::{self, List};
use sandbox::{Access, Capability, Descriptor, Ids, Keep, Lack, Opening, Standing};
use topology::plan::{CaptureEngine, InjectEngine, Sandbox, TracePlan};
use topology::{Plan, Process, Refusal};

/// Private memory of any process beside what its plan names: code, stacks, buffers, and room to spare.
const DATA_BYTES: u64 = 256 << 20;
/// Private memory that a worker needs for each session slot and each chunk: hash index, timer wheel, free lists.
const SLOT_BYTES: u64 = 512;
/// The same for each live claim of kept clients, in the injector.
const CLAIM_BYTES: u64 = 256;
/// Private memory of intercept: a million claims while their table doubles, and the windows of 64 instances.
const INTERCEPT_BYTES: u64 = 768 << 20;
/// Windows and states of the compressor of recordings.
const ZSTD_BYTES: u64 = 64 << 20;
/// Of one packet file: the window of its compression, which may be 128 MiB, and its buffer.
const FILE_BYTES: u64 = 160 << 20;
/// Packet files that are open at once (`trace`).
const OPEN_FILES: usize = 16;

/// What of root's capabilities this process keeps, which opens and starts everything. With the others nobody can load a module, mount,
/// trace a process of somebody else's, reach the hardware or restart the host, by an exec neither.
const OF_STARTERS: [Capability; 16] = [
    // Packet and raw sockets; the guard, neighbours, buffers, a TUN device.
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_ADMIN,
    // `--metrics`, and intercept's door, at a low port.
    Capability::CAP_NET_BIND_SERVICE,
    // What roles do to themselves at their start.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    // They are another user's then, and have to be killed.
    Capability::CAP_KILL,
    // Memory that is not swapped; limits; a CPU priority as before for a role that is started again.
    Capability::CAP_IPC_LOCK,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_SYS_NICE,
    // Packet files, recordings, reports and sockets in directories of others.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_CHOWN,
    // The program of the xdp engine.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
];

/// Whom processes become; refuses where the kernel has not what was not renounced. This process, which starts them, gets no new
/// privileges from here on, keeps some of root's, and leaves no memory image.
///
/// # Errors
/// One sentence, exit code 3.
pub(crate) fn ready(sandbox: Sandbox) -> Result<Standing, Refusal> {
    if sandbox == Sandbox::Off {
        return Ok(Standing::Stays("it is off"));
    }
    refuse(sandbox, &sandbox::lacks())?;
    let refused = |error: sandbox::Error| Refusal::preflight(error.to_string());
    sandbox::have_at_most(&OF_STARTERS).map_err(refused)?;
    sandbox::seal().map_err(refused)?;
    Ok(Standing::find())
}

fn refuse(sandbox: Sandbox, lacks: &[Lack]) -> Result<(), Refusal> {
    let sentence = if lacks.contains(&Lack::Seccomp) {
        "this kernel, or the container around us, has no filters of system calls (seccomp), so the processes that meet packets could not be held. Linux 4.14 has them; --sandbox off starts without any of it"
    } else if lacks.contains(&Lack::Landlock) && sandbox == Sandbox::On {
        "this kernel cannot keep the processes that meet packets from files (Landlock: Linux 5.13, with `landlock` in the boot parameter lsm=). --sandbox no-landlock starts with the rest of the sandbox"
    } else {
        return Ok(());
    };
    Err(Refusal::preflight(sentence))
}

/// What a person should know of it at the start.
pub(crate) fn note(sandbox: Sandbox, standing: &Standing) -> String {
    let files = match sandbox {
        Sandbox::Off => {
            return "the sandbox is off: every process keeps the rights that this one has (--sandbox off)"
                .to_owned();
        }
        Sandbox::On => "no files but those named",
        Sandbox::NoLandlock => "every file of that user in reach (--sandbox no-landlock)",
    };
    match standing {
        Standing::Becomes(user) => {
            format!(
                "sandbox: packets are met as user {}, with no privileges, {files}, and few system calls",
                user.name
            )
        }
        Standing::Stays(why) => format!(
            "sandbox: packets are met with no privileges, {files}, and few system calls, but as the user who started this ({why})"
        ),
    }
}

/// What a role keeps; none when it keeps everything.
pub(crate) fn of_role(plan: &Plan, process: Process, ids: Option<Ids>) -> Option<Keep> {
    if plan.sandbox == Sandbox::Off {
        return None;
    }
    let mut keep = Keep {
        name: process.to_string(),
        user: ids,
        capabilities: Vec::new(),
        files: Some(Vec::new()),
        ports: Vec::new(),
        calls: vec![calls::LIVE],
        data_bytes: DATA_BYTES,
    };
    match process {
        Process::Shard(_) => {
            let slots = u64::from(plan.limits.sessions_per_shard) + u64::from(plan.limits.chunks_per_shard);
            keep.data_bytes += slots * SLOT_BYTES;
        }
        Process::Injector => injector(plan, &mut keep),
        Process::Capturer => capturer(plan, &mut keep),
    }
    if plan.sandbox == Sandbox::NoLandlock {
        keep.files = None;
    }
    Some(keep)
}

fn injector(plan: &Plan, keep: &mut Keep) {
    keep.calls.extend([
        calls::THREADS,
        calls::FINE_TIMERS,
        calls::WAIT,
        calls::EPOLL,
        calls::INJECT,
        calls::RETURNS,
    ]);
    keep.ports = plan.intercepts.iter().map(std::net::SocketAddr::port).collect();
    let sessions = u64::from(plan.limits.sessions_per_shard) * u64::from(plan.shards);
    keep.data_bytes += sessions * CLAIM_BYTES;
    if plan.inject == InjectEngine::Pcap {
        with_libpcap(keep);
    }
}

fn capturer(plan: &Plan, keep: &mut Keep) {
    let open = |path: &Path, access| Opening { path: path.to_owned(), access };
    keep.calls.extend([calls::WAIT, calls::FINE_TIMERS]);
    // Rings of the kernel are shared memory; these engines have private buffers of that size.
    keep.data_bytes += plan.capture.buffer_bytes * plan.capture.interfaces.len().max(1) as u64;
    match (&plan.trace, plan.capture.engine) {
        (Some(trace), _) => {
            keep.calls.push(calls::READ_FILES);
            keep.data_bytes += trace.files.len().min(OPEN_FILES) as u64 * FILE_BYTES;
            keep.capabilities.push(Capability::CAP_DAC_READ_SEARCH);
            keep.files.iter_mut().for_each(|files| {
                files.extend(trace.files.iter().map(|file| open(file, Access::Read)));
            });
        }
        (None, engine) => {
            keep.calls.extend([calls::EPOLL, calls::CAPTURE, calls::DEVICES]);
            match engine {
                CaptureEngine::Ring | CaptureEngine::Simple => {}
                CaptureEngine::Pcap => with_libpcap(keep),
                CaptureEngine::Xdp => keep.calls.push(calls::XDP),
            }
        }
    }
    let Some(record) = &plan.record else { return };
    keep.calls.extend([calls::THREADS, calls::READ_FILES, calls::WRITE_FILES]);
    keep.files.iter_mut().for_each(|files| files.push(open(&record.directory, Access::Record)));
    keep.data_bytes += record.buffer_bytes + if record.zstd { ZSTD_BYTES } else { 0 };
    keep.user = None;
    let owner = fs::metadata(&record.directory).map_or(0, |meta| meta.uid());
    if owner != nix::unistd::geteuid().as_raw() {
        keep.capabilities.push(Capability::CAP_DAC_OVERRIDE);
    }
}

/// libpcap takes no socket from outside: it opens its own, again when a device comes back, and looks for the device in /sys.
fn with_libpcap(keep: &mut Keep) {
    keep.calls.extend([calls::LIBPCAP, calls::DEVICES, calls::READ_FILES]);
    keep.capabilities.push(Capability::CAP_NET_RAW);
    let read = |path: &str| Opening { path: path.into(), access: Access::Read };
    keep.files.iter_mut().for_each(|files| files.extend(["/sys", "/proc"].map(read)));
}

/// What intercept keeps; none when it keeps everything. `device` is that of `--tun`.
pub(crate) fn of_intercept(
    sandbox: Sandbox,
    standing: &Standing,
    place: &Path,
    device: Option<&str>,
) -> Option<Keep> {
    if sandbox == Sandbox::Off {
        return None;
    }
    let lists: [List; 8] = [
        calls::LIVE,
        calls::THREADS,
        calls::FINE_TIMERS,
        calls::WAIT,
        calls::CAPTURE,
        calls::DEVICES,
        calls::READ_FILES,
        calls::SERVE,
    ];
    let mut files = vec![
        Opening { path: place.to_owned(), access: Access::Remove },
        Opening { path: PathBuf::from(format!("/proc/{}", std::process::id())), access: Access::Read },
    ];
    files.extend(device.map(|name| Opening {
        path: PathBuf::from(format!("/sys/class/net/{name}/statistics")),
        access: Access::Read,
    }));
    Some(Keep {
        name: "intercept".to_owned(),
        user: standing.user().map(|user| user.ids),
        capabilities: standing.user().map(|_| Capability::CAP_DAC_OVERRIDE).into_iter().collect(),
        files: (sandbox == Sandbox::On).then_some(files),
        ports: Vec::new(),
        calls: lists.to_vec(),
        data_bytes: INTERCEPT_BYTES,
    })
}

/// What a process keeps that takes what a worker died of; nothing where the kernel has no filters. It has the file in its memory by
/// then, and writes to what is open.
pub(crate) fn of_autopsy(plan: &Plan) -> Option<Keep> {
    let lacks = sandbox::lacks();
    let slots = u64::from(plan.limits.sessions_per_shard) + u64::from(plan.limits.chunks_per_shard);
    (!lacks.contains(&Lack::Seccomp)).then(|| Keep {
        name: "autopsy".to_owned(),
        user: Standing::find().user().map(|user| user.ids),
        capabilities: Vec::new(),
        files: (!lacks.contains(&Lack::Landlock)).then(Vec::new),
        ports: Vec::new(),
        calls: vec![calls::LIVE],
        // The arena, which a worker has in the region, is its own.
        data_bytes: DATA_BYTES + slots * SLOT_BYTES + shard_worker::arena_bytes(plan),
    })
}

/// Descriptors that packet files name: the shell made them, for a `<(command)`.
pub(crate) fn named_by<'f>(files: impl Iterator<Item = &'f Path>) -> Vec<RawFd> {
    let number = |file: &Path| {
        let number = ["/dev/fd", "/proc/self/fd"].iter().find_map(|list| file.strip_prefix(list).ok())?;
        number.to_str()?.parse().ok()
    };
    files.filter_map(number).collect()
}

/// The same of a plan.
pub(crate) fn named_by_plan(trace: Option<&TracePlan>) -> Vec<RawFd> {
    named_by(trace.into_iter().flat_map(|trace| &trace.files).map(PathBuf::as_path))
}

/// Whether a role was started with what is its own, and nothing else.
///
/// # Errors
/// Which descriptor is not.
pub(crate) fn only(open: &[Descriptor], own: &[RawFd]) -> Result<(), String> {
    match open.iter().find(|one| one.number > 2 && !own.contains(&one.number)) {
        None => Ok(()),
        Some(Descriptor { number, of }) => Err(format!(
            "this process was started with descriptor {number} ({of}) open, which is none of its own. Roles are started by `tcptwin run`; if this one was, it is a defect: please report it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use topology::Key;

    #[test]
    fn what_the_kernel_lacks_must_be_renounced() {
        let said = |sandbox, lacks: &[Lack]| refuse(sandbox, lacks).err().map(|refusal| refusal.sentence);
        assert!(said(Sandbox::On, &[Lack::Landlock]).unwrap().contains("--sandbox no-landlock"));
        assert!(said(Sandbox::NoLandlock, &[Lack::Seccomp]).unwrap().contains("--sandbox off"));
        assert_eq!(said(Sandbox::NoLandlock, &[Lack::Landlock]), None);
        assert_eq!(said(Sandbox::On, &[]), None);
    }

    #[test]
    fn only_libpcap_and_files_need_capabilities() {
        let plan = testing::plan("confine", &[]);
        for process in [Process::Capturer, Process::Injector, Process::Shard(0)] {
            let keep = of_role(&plan, process, None).unwrap();
            assert_eq!((keep.capabilities, keep.files), (vec![], Some(vec![])), "{process}");
        }
        let pcap = testing::plan("confine", &[(Key::Capture, "pcap"), (Key::Inject, "pcap")]);
        for process in [Process::Capturer, Process::Injector] {
            assert_eq!(of_role(&pcap, process, None).unwrap().capabilities, [Capability::CAP_NET_RAW]);
        }
        let off = testing::plan("confine", &[(Key::Sandbox, "off")]);
        assert!(of_role(&off, Process::Shard(0), None).is_none());
        let half = testing::plan("confine", &[(Key::Sandbox, "no-landlock")]);
        assert!(of_role(&half, Process::Shard(0), None).unwrap().files.is_none());
    }

    #[test]
    fn a_stray_descriptor_is_named() {
        let open = |number| Descriptor { number, of: "socket:[7]".to_owned() };
        let all = [0, 1, 2, 5, 9].map(open);
        assert_eq!(only(&all, &[9, 5, 11]), Ok(()));
        assert!(only(&all, &[5]).unwrap_err().contains("descriptor 9 (socket:[7])"));
        let files = ["/dev/fd/63", "/proc/self/fd/7", "/tmp/5", "/dev/fd/x"].map(Path::new);
        assert_eq!(named_by(files.into_iter()), [63, 7]);
    }
}
