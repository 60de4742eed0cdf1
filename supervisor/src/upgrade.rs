//! Another image of the program in the same process: `tcptwin ctl upgrade`.
//!
//! 1. The file at our path is asked what it is ([`ask`], the hidden command `handover`): a tcptwin that lays the region out
//!    as it stands and understands what we hand over. Otherwise nothing is executed.
//! 2. What the next image must know goes into a memfd, descriptors lose their close-on-exec, and the file is executed
//!    ([`Handover::exec`]). Pid, children, their parent-death signal and every descriptor named stay; the roles work on.
//! 3. The next image finds the memfd by its environment ([`Handover::received`]), takes over what it names, and then
//!    replaces the roles one by one (`supervise/rolling`).
//!
//! Arguments stay as they were typed, for who reads a process list; the next image does not read them again, since files
//! that they name may have changed.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use shm::{Leftover, Region};

use crate::adopt;
use crate::supervise::House;
use crate::words;

/// What the next image must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// The process; in any other this is a leftover of the environment.
    pub(crate) pid: u32,
    /// Version of the image before.
    pub(crate) from: String,
    /// The instance.
    pub(crate) name: String,
    /// What stays the same.
    #[serde(flatten)]
    pub(crate) house: House,
    /// Descriptor that the control socket listens with.
    pub(crate) listener: RawFd,
    /// Capture and raw sockets.
    pub(crate) sockets: Vec<(String, RawFd)>,
    /// The processes.
    pub(crate) members: Vec<Heir>,
}

/// One process of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heir {
    /// Its pid and the descriptor that tells of its death; none while it is dead.
    pub(crate) alive: Option<(u32, RawFd)>,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// CPU time of its dead predecessors, nanoseconds.
    pub(crate) cpu_before_ns: u64,
    /// Last and worst recovery, microseconds.
    pub(crate) recovery_us: (u64, u64),
}

/// What a program file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// `tcptwin`.
    program: String,
    /// Its version.
    pub(crate) version: String,
    /// The form of [`Handover`] that it understands.
    handover: u32,
    /// Why it cannot go on with the region; none when it can.
    unfit: Option<String>,
}

/// Changes whenever [`Handover`] does.
const FORM: u32 = 3;
/// The variable that names the memfd.
const VARIABLE: &str = "TCPTWIN_HANDOVER";
/// Time for a program to say what it is. Some milliseconds are enough; the supervisor waits meanwhile.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Longest answer read, bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// What a program says about going on with our region.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It can.
    Fit(Answer),
    /// It is a tcptwin, but cannot: why.
    Unfit(Answer, String),
}

/// Asks the program at `path` whether it can go on with the instance `name`.
///
/// # Errors
/// A sentence: there is none, it cannot be executed, or it is another program.
pub(crate) fn ask(path: &Path, name: &str) -> anyhow::Result<Verdict> {
    let shown = path.display();
    let mut child = Command::new(path)
        .args(["handover", "--name", name])
        .env_remove(VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            anyhow::anyhow!(
                "{shown} cannot be executed ({}). Put the new program there and try again; this one goes on",
                words::of_io(&error)
            )
        })?;
    let until = Instant::now() + ANSWER_TIME;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= until => {
                // Ours, and not reaped yet.
                let _ = child.kill();
                break child.wait()?;
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        let _ = output.take(MAX_ANSWER).read_to_string(&mut text);
    }
    match serde_json::from_str::<Answer>(text.trim()) {
        Ok(answer) if status.success() && answer.program == "tcptwin" => Ok(judge(answer)),
        _ => bail!(
            "{shown} is no tcptwin that can take over a running instance. Put the new program there and try again; this one goes on"
        ),
    }
}

fn judge(answer: Answer) -> Verdict {
    match &answer.unfit {
        _ if answer.handover != FORM => Verdict::Unfit(answer, "it takes over in another form".to_owned()),
        Some(why) => {
            let why = why.clone();
            Verdict::Unfit(answer, why)
        }
        None => Verdict::Fit(answer),
    }
}

/// The hidden command `handover`: one line about this program and the instance `name`.
pub(crate) fn answer(name: &str) -> String {
    let usable = match Region::leftover(name) {
        Ok(Leftover::Ours { usable, .. }) => usable.and_then(|()| {
            let region = Region::attach(name).map_err(|error| error.to_string())?;
            adopt::usable_plan(region).map(drop)
        }),
        Ok(_) => Err("there is no region of this name".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let answer = Answer {
        program: "tcptwin".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        handover: FORM,
        unfit: usable.err(),
    };
    serde_json::to_string(&answer).expect("an answer holds only plain values")
}

impl Handover {
    /// What the image before handed over, if this process was executed by one.
    pub(crate) fn received() -> Option<anyhow::Result<Self>> {
        let number = std::env::var(VARIABLE).ok()?.parse().ok()?;
        let read = || -> anyhow::Result<Self> {
            let mut file = File::from(shm::inherit(number)?);
            file.rewind()?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(serde_json::from_str(&text)?)
        };
        match read() {
            Ok(handover) if handover.pid == std::process::id() => Some(Ok(handover)),
            // A process that one of ours started: the variable is not meant for it.
            Ok(_) => None,
            Err(error) => Some(Err(error.context("what the image before handed over cannot be read"))),
        }
    }

    /// Executes the program. Returns only when that failed; then everything is as before.
    pub(crate) fn exec(&self, descriptors: &[BorrowedFd<'_>]) -> anyhow::Error {
        match self.try_exec(descriptors) {
            Ok(never) => match never {},
            Err(error) => {
                for fd in descriptors {
                    // They were so before, and it is no error to set it again.
                    let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
                }
                let _ = asking_signals().thread_unblock();
                error.context(format!(
                    "executing {} failed; this program goes on",
                    self.house.program.display()
                ))
            }
        }
    }

    fn try_exec(&self, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<std::convert::Infallible> {
        let mut memory = File::from(memfd_create(c"tcptwin-handover", MFdFlags::empty())?);
        memory.write_all(&serde_json::to_vec(self)?)?;
        let c_text = |text: OsString| CString::new(text.into_vec()).context("an argument holds a zero byte");
        let program = c_text(self.house.program.clone().into_os_string())?;
        let args = std::env::args_os().map(c_text).collect::<anyhow::Result<Vec<_>>>()?;
        let variables = std::env::vars_os().filter(|(key, _)| key != VARIABLE);
        let variables = variables.map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            key
        });
        let ours = OsString::from(format!("{VARIABLE}={}", memory.as_raw_fd()));
        let variables = variables.chain([ours]).map(c_text).collect::<anyhow::Result<Vec<_>>>()?;
        for fd in descriptors {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // Handlers do not survive the exec; until the next image has its own, a signal waits.
        asking_signals().thread_block()?;
        Ok(nix::unistd::execve(&program, &args, &variables)?)
    }
}

/// Those by which somebody asks us to end.
fn asking_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// The next image listens: signals that waited come now.
pub(crate) fn listens_again() {
    // It can only fail for a wrong argument.
    let _ = asking_signals().thread_unblock();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> anyhow::Result<Verdict> {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("tcptwin-upgrade-{}-{number}", std::process::id()));
        // Another process writes the script: a descriptor of ours that is open for writing would be inherited by
        // whatever another test starts at that moment, and a file that somebody may write is not executed (ETXTBSY).
        let written = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod 700 "$1""#, "sh"])
            .args([path.as_os_str(), text.as_ref()])
            .status()
            .unwrap();
        assert!(written.success());
        let verdict = ask(&path, "no-such-instance");
        std::fs::remove_file(&path).unwrap();
        verdict
    }

    #[test]
    fn another_program_is_refused_with_a_sentence() {
        for text in ["echo hello", "exit 3", "echo '{\"program\":\"sh\",\"version\":\"1\",\"handover\":1}'"] {
            let error = said(text).unwrap_err().to_string();
            assert!(error.contains("is no tcptwin") && error.contains("goes on"), "{error}");
        }
        let begin = Instant::now();
        assert!(said("exec sleep 60").is_err());
        assert!(begin.elapsed() < 3 * ANSWER_TIME, "it does not wait for ever");
        let error = ask(Path::new("/no/such/program"), "a").unwrap_err().to_string();
        assert!(error.contains("cannot be executed (no such file or directory)"), "{error}");
    }

    #[test]
    fn form_and_region_must_fit() {
        let of = |form: u32, unfit: &str| {
            let line = format!(
                "{{\"program\":\"tcptwin\",\"version\":\"9.9.9\",\"handover\":{form},\"unfit\":{unfit}}}"
            );
            said(&format!("echo '{line}'")).unwrap()
        };
        assert!(matches!(of(FORM, "null"), Verdict::Fit(answer) if answer.version == "9.9.9"));
        assert!(matches!(of(FORM, "\"why\""), Verdict::Unfit(_, why) if why == "why"));
        assert!(matches!(of(FORM + 1, "null"), Verdict::Unfit(_, why) if why.contains("another form")));
    }

    #[test]
    fn this_program_says_what_it_can_go_on_with() {
        let own = |name: &str| serde_json::from_str::<Answer>(&answer(name)).unwrap();
        assert!(own("no-such-instance").unfit.unwrap().contains("no region"));
        let plan = crate::testing::plan(&format!("fit-{}", std::process::id()), &[]);
        let spec = topology::wiring::region_spec(&plan, shard_worker::arena_bytes);
        Region::create(&plan.name, &spec, &plan.to_bytes(), 1).unwrap();
        let fit = own(&plan.name);
        Region::remove(&plan.name).unwrap();
        assert_eq!(fit.unfit, None);
    }
}
