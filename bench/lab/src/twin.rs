//! The built `tcptwin` in the lab: `run` and `intercept` as real processes in namespaces, read and ended as a person or
//! a script would, through the command line and signals.
//!
//! | file | holds |
//! |---|---|
//! | `stats` | what `stats --json` says, with the ledger's identity checked to the byte |
//!
//! Instances get names of their own, and control sockets in a directory of their own, so that labs do not meet.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Host;
use crate::process;
use crate::scratch::Scratch;
use crate::wait;

mod stats;

pub use stats::{RoleStats, Stats};

/// Which command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `tcptwin run`.
    Run,
    /// `tcptwin replay`.
    Replay,
    /// `tcptwin record`.
    Record,
    /// `tcptwin intercept`.
    Intercept,
}

/// A program file, and the directory in which its instances keep their control sockets.
pub struct Twin {
    binary: PathBuf,
    runtime: Scratch,
}

/// One running instance. Dropping it kills it with all its roles.
pub struct Instance {
    /// Its `--name`.
    pub name: String,
    /// Run or intercept.
    pub kind: Kind,
    /// The command line, as typed.
    pub command_line: String,
    child: Option<Child>,
    pid: u32,
    binary: PathBuf,
    runtime: PathBuf,
    files: Scratch,
}

/// How an instance ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Standard output: the summary as JSON.
    pub stdout: String,
    /// Standard error: log, warnings.
    pub stderr: String,
}

static NEXT: AtomicU32 = AtomicU32::new(1);
/// Time for a start on a machine that is busy with other things.
const START: Duration = Duration::from_secs(20);
/// Time for a line to be in the log.
const SAID: Duration = Duration::from_secs(15);
/// The port that intercept listens on unless told otherwise.
pub const RETURN_PORT: u16 = 36_524;

impl Twin {
    /// For a built program.
    pub fn new(binary: impl Into<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self { binary: binary.into(), runtime: Scratch::in_memory("run")? })
    }

    /// The program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where the control sockets are.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// Starts `tcptwin run ARGS --plain --json --name ...` on a host and waits until it captures.
    pub fn run(&self, host: &Host, args: &[&str]) -> anyhow::Result<Instance> {
        let mut run = self.begin(Kind::Run, host, args)?;
        run.wait_ready()?;
        Ok(run)
    }

    /// Starts `tcptwin record ARGS --json --name ...` on a host and waits until it captures.
    pub fn record(&self, host: &Host, args: &[&str]) -> anyhow::Result<Instance> {
        let mut record = self.begin(Kind::Record, host, args)?;
        record.wait_ready()?;
        Ok(record)
    }

    /// Starts `tcptwin intercept ARGS --plain --json --name ...` on a host and waits until it listens.
    pub fn intercept(&self, host: &Host, args: &[&str]) -> anyhow::Result<Instance> {
        let mut intercept = self.begin(Kind::Intercept, host, args)?;
        intercept.wait_ready()?;
        Ok(intercept)
    }

    /// Starts an instance without waiting for it. `--name` and `--key` in `args` replace the lab's own.
    pub fn begin(&self, kind: Kind, host: &Host, args: &[&str]) -> anyhow::Result<Instance> {
        self.begin_with(kind, host, args, |command| command)
    }

    /// The same with standard input from a pipe.
    pub fn begin_fed(
        &self,
        kind: Kind,
        host: &Host,
        args: &[&str],
        input: PipeReader,
    ) -> anyhow::Result<Instance> {
        self.begin_with(kind, host, args, |mut command| {
            command.stdin(input);
            command
        })
    }

    /// The same with a pipe in the place of standard error, read by the caller or by nobody.
    pub fn begin_logging_to(
        &self,
        kind: Kind,
        host: &Host,
        args: &[&str],
        stderr: PipeWriter,
    ) -> anyhow::Result<Instance> {
        self.launch(kind, host, args, |command| command, Some(stderr))
    }

    /// The same with the command changed by `dress`; its output is the lab's.
    pub(crate) fn begin_with(
        &self,
        kind: Kind,
        host: &Host,
        args: &[&str],
        dress: impl FnOnce(Command) -> Command,
    ) -> anyhow::Result<Instance> {
        self.launch(kind, host, args, dress, None)
    }

    fn launch(
        &self,
        kind: Kind,
        host: &Host,
        args: &[&str],
        dress: impl FnOnce(Command) -> Command,
        stderr: Option<PipeWriter>,
    ) -> anyhow::Result<Instance> {
        let name = match args.iter().position(|a| *a == "--name").and_then(|at| args.get(at + 1)) {
            Some(given) => (*given).to_owned(),
            None => format!("lab{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)),
        };
        let verb = match kind {
            Kind::Run => "run",
            Kind::Replay => "replay",
            Kind::Record => "record",
            Kind::Intercept => "intercept",
        };
        let mut words: Vec<String> = vec![verb.to_owned()];
        words.extend(args.iter().map(|&a| a.to_owned()));
        if !args.contains(&"--key") && kind != Kind::Record {
            words.push("--plain".to_owned());
        }
        words.push("--json".to_owned());
        // All stories of a test program by another engine than the default.
        let engine = std::env::var("LAB_INJECT")
            .ok()
            .filter(|_| kind != Kind::Intercept && !args.contains(&"--inject"));
        words.extend(engine.into_iter().flat_map(|engine| ["--inject".to_owned(), engine]));
        if !args.contains(&"--name") {
            words.extend(["--name".to_owned(), name.clone()]);
        }
        let files = Scratch::in_memory("tcptwin")?;
        let mut command = Command::new(&self.binary);
        command.args(&words).env("XDG_RUNTIME_DIR", self.runtime.path()).env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        let mut command = dress(command);
        command.stdout(File::create(files.file("out"))?);
        match stderr {
            Some(pipe) => command.stderr(pipe),
            None => command.stderr(File::create(files.file("err"))?),
        };
        let child = host.ns.spawn(command).with_context(|| format!("starting {}", self.binary.display()))?;
        Ok(Instance {
            name,
            kind,
            command_line: format!("tcptwin {}", words.join(" ")),
            pid: child.id(),
            child: Some(child),
            binary: self.binary.clone(),
            runtime: self.runtime.path().to_owned(),
            files,
        })
    }
}

impl Instance {
    /// Process id of the supervisor.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until a run says `running`, or an intercept listens.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let what = format!("`{}` is ready", self.command_line);
        let ready = wait::until(&what, START, || {
            self.has_ended()
                || match self.kind {
                    Kind::Run | Kind::Replay | Kind::Record => {
                        self.stats().is_ok_and(|s| s.state() == "running")
                    }
                    Kind::Intercept => self.listens(),
                }
        });
        if self.has_ended() {
            bail!("`{}` ended at once:\n{}", self.command_line, self.stderr());
        }
        ready.with_context(|| self.stderr())
    }

    /// Whether the process is gone.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|c| !matches!(c.try_wait(), Ok(None)))
    }

    /// Whether any socket of the instance's namespace listens at the return port.
    fn listens(&self) -> bool {
        ["tcp", "tcp6"].iter().any(|table| {
            let text = fs::read_to_string(format!("/proc/{}/net/{table}", self.pid)).unwrap_or_default();
            // Local address, remote address, state 0A (LISTEN), all in hexadecimal.
            text.lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields.get(3) == Some(&"0A")
                    && fields.get(1).is_some_and(|local| local.ends_with(&format!(":{RETURN_PORT:04X}")))
            })
        })
    }

    /// What `tcptwin stats --json --name NAME` prints now of a run.
    pub fn stats(&self) -> anyhow::Result<Stats> {
        Stats::parse(&self.told()?)
    }

    /// A number among them, by its path. Also of intercept, which has no ledger.
    pub fn figure(&self, path: &str) -> anyhow::Result<u64> {
        stats::number(&serde_json::from_str(&self.told()?)?, path)
    }

    /// What `tcptwin stats --json --name NAME` prints now.
    fn told(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.binary)
            .args(["stats", "--json", "--name", &self.name])
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .stdin(Stdio::null())
            .output()
            .context("running tcptwin stats")?;
        ensure!(
            output.status.success(),
            "tcptwin stats --name {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Kills (SIGKILL) one role, found by its name and index in `stats --json`, and returns its old process id.
    pub fn kill_role(&self, role: &str, index: u64) -> anyhow::Result<u32> {
        self.signal_role(role, index, Signal::SIGKILL)
    }

    /// Sends one role, found likewise, a signal, and returns its process id.
    pub fn signal_role(&self, role: &str, index: u64, signal: Signal) -> anyhow::Result<u32> {
        let stats = self.stats()?;
        let found = stats.roles()?.into_iter().find(|r| r.role == role && r.index == index);
        let pid = found.with_context(|| format!("stats name no role {role} {index}"))?.pid;
        ensure!(
            process::descends_from(pid, self.pid),
            "pid {pid} of {role} {index} is no child of this instance"
        );
        kill(Pid::from_raw(pid.cast_signed()), signal)?;
        Ok(pid)
    }

    /// Gives it an order through the command line, and returns what the order printed.
    pub fn ctl(&self, order: &[&str]) -> anyhow::Result<String> {
        let done = Command::new(&self.binary)
            .args(["ctl", "--name", &self.name])
            .args(order)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .stdin(Stdio::null())
            .output()?;
        ensure!(done.status.success(), "ctl {order:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    /// Waits until a role that was killed runs again with another process id.
    pub fn wait_restarted(
        &self,
        role: &str,
        index: u64,
        old_pid: u32,
        limit: Duration,
    ) -> anyhow::Result<()> {
        wait::until(&format!("{role} {index} (was pid {old_pid}) runs again"), limit, || {
            self.stats().and_then(|s| s.roles()).is_ok_and(|roles| {
                roles.iter().any(|r| {
                    r.role == role
                        && r.index == index
                        && r.pid != old_pid
                        && r.state == "running"
                        && r.restarts > 0
                })
            })
        })
    }

    /// Waits until nothing is in flight and nothing more is delivered.
    pub fn wait_quiet(&self, limit: Duration) -> anyhow::Result<Stats> {
        let mut last = None;
        let quiet = wait::until("nothing is in flight any more", limit, || {
            let Ok(now) = self.stats() else { return false };
            let figures = (now.captured(), now.wanted(), now.delivered(), now.in_flight());
            let still = now.in_flight() == 0 && last.replace(figures) == Some(figures);
            if !still {
                // Counters are published every 100 ms: two equal readings must lie further apart than that.
                std::thread::sleep(Duration::from_millis(150));
            }
            still
        });
        let stats = self.stats()?;
        quiet.with_context(|| stats.ledger())?;
        Ok(stats)
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.pid.cast_signed()), signal)?)
    }

    /// Ends it as Ctrl-C does and waits for the summary.
    pub fn stop(self) -> anyhow::Result<Ended> {
        self.signal(Signal::SIGINT)?;
        self.wait(Duration::from_secs(30))
    }

    /// Ends a run as Ctrl-C does: exit code 0, and a summary whose ledger is exact.
    pub fn stop_run(self) -> anyhow::Result<Stats> {
        let line = self.command_line.clone();
        let ended = self.stop()?;
        ensure!(ended.status.success(), "`{line}` ended with {}:\n{}", ended.status, ended.stderr);
        let stats = ended.stats().with_context(|| format!("the summary of `{line}`: {}", ended.stdout))?;
        stats.check_ledger()?;
        Ok(stats)
    }

    /// Waits for the end, whatever made it end.
    pub fn wait(mut self, limit: Duration) -> anyhow::Result<Ended> {
        let ended = wait::until(&format!("`{}` ends", self.command_line), limit, || self.has_ended());
        if let Err(error) = ended {
            return Err(error.context(self.stderr()));
        }
        let status = self.child.take().context("it ended before")?.wait()?;
        let read = |name: &str| fs::read_to_string(self.files.file(name)).unwrap_or_default();
        Ok(Ended { status, stdout: read("out"), stderr: read("err") })
    }

    /// Waits until its log has this; lines come by a thread of their own.
    pub fn wait_said(&self, text: &str) -> anyhow::Result<()> {
        wait::until(&format!("the log has `{text}`"), SAID, || self.stderr().contains(text))
            .with_context(|| self.stderr())
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.files.file("err")).unwrap_or_default()
    }

    /// CPU seconds of all its processes so far, by /proc: also of those that have ended, as `nft` does.
    pub fn cpu_s(&self) -> f64 {
        process::tree(self.pid).iter().map(|p| p.cpu_s + p.children_s).sum()
    }

    /// Kills the supervisor, as a crash does.
    pub fn kill(mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && matches!(child.try_wait(), Ok(None))
        {
            // In order, so that it removes what it made outside its process; then by force.
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGINT);
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGINT);
            if !crate::real::tool::wait_for(&mut child, Duration::from_secs(20)).unwrap_or(false) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

impl Ended {
    /// The summary.
    pub fn stats(&self) -> anyhow::Result<Stats> {
        Stats::parse(&self.stdout)
    }
}

/// What a run left behind on this machine after its end, as sentences; nothing when all is well.
pub fn leftovers(name: &str, pid: u32, runtime: &Path, host: &Host) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev/shm")? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        if file.contains(name) {
            found.push(format!("region /dev/shm/{file}"));
        }
    }
    for entry in walk(runtime) {
        // The lock file stays on purpose: whoever removed it could take it from under an instance that just locked it.
        let is_lock = entry.extension().is_some_and(|e| e == "lock");
        if entry.to_string_lossy().contains(name) && !is_lock {
            found.push(format!("file {}", entry.display()));
        }
    }
    for p in process::all() {
        let line = p.command_line();
        if p.pid != pid && (p.parent == pid || line.contains(name)) && !p.is_zombie() {
            found.push(format!("process {} {line}", p.pid));
        }
    }
    if let Ok(output) = crate::real::run(&host.ns, "nft", &["list", "tables"], Duration::from_secs(10)) {
        found.extend(output.stdout.lines().map(|l| format!("nft {l}")));
    }
    found.extend(sockets(host));
    let links = crate::real::run(&host.ns, "ip", &["-details", "-oneline", "link"], Duration::from_secs(10));
    if let Ok(output) = links {
        let promiscuous = output.stdout.lines().filter(|l| !l.contains("promiscuity 0 "));
        found.extend(promiscuous.map(|l| format!("promiscuous {l}")));
    }
    Ok(found)
}

/// Packet and raw sockets of a host, whoever holds them (/proc/net/packet, /proc/net/raw).
fn sockets(host: &Host) -> Vec<String> {
    host.ns.enter(|| {
        let of = |table: &str| {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
            text.lines().skip(1).map(|line| format!("{table} socket {line}")).collect::<Vec<_>>()
        };
        ["packet", "raw", "raw6"].into_iter().flat_map(of).collect()
    })
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .flat_map(|entry| {
            let path = entry.path();
            let mut below = if path.is_dir() { walk(&path) } else { Vec::new() };
            below.push(path);
            below
        })
        .collect()
}

/// `80-10.88.0.4:8080`.
pub fn map(online_port: u16, target: SocketAddr) -> String {
    format!("{online_port}-{target}")
}
