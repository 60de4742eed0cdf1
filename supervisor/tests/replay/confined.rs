//! What the processes of a run have: the kernel's word (/proc), not ours.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use lab::scratch::Scratch;
use lab::story::{Skipped, Story, step};
use lab::twin::{Kind, map};
use lab::{Instance, Load, Twin, real};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, chown};

use crate::stage::{ONLINE_PORT, SETTLE, Stage, clean, end};

pub(crate) const STORIES: &[Story] = &[
    ("roles_have_nothing_that_they_do_not_need", 60, roles_have_nothing_that_they_do_not_need),
    ("without_a_sandbox_only_when_asked_for", 60, without_a_sandbox_only_when_asked_for),
    ("a_role_that_its_sandbox_stops_is_replaced", 60, a_role_that_its_sandbox_stops_is_replaced),
    ("a_role_that_its_sandbox_stops_says_at_what", 60, a_role_that_its_sandbox_stops_says_at_what),
    ("a_user_with_one_capability_runs_it", 60, a_user_with_one_capability_runs_it),
    ("a_user_runs_a_file_that_has_capabilities", 90, a_user_runs_a_file_that_has_capabilities),
];

/// A process as /proc shows it.
pub(crate) struct Shown {
    status: String,
    pub(crate) open: Vec<String>,
}

impl Shown {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
        let list = fs::read_dir(format!("/proc/{pid}/fd")).context("its descriptors cannot be seen")?;
        let open = list.map(|entry| Ok(fs::read_link(entry?.path())?.display().to_string()));
        Ok(Self { status, open: open.collect::<Result<_>>()? })
    }

    fn field(&self, name: &str) -> Vec<&str> {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or("absent").split_whitespace().collect()
    }

    /// No capability, now or later, and a filter.
    pub(crate) fn is_bare(&self, who: &str) -> Result<()> {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            ensure!(self.field(set) == ["0000000000000000"], "{who}: {set} {:?}", self.field(set));
        }
        ensure!(self.field("NoNewPrivs") == ["1"], "{who} can get privileges");
        ensure!(self.field("Seccomp") == ["2"], "{who} has no filter");
        Ok(())
    }

    /// Another user than root, its group, and no other.
    pub(crate) fn is(&self, who: &str, uid: u32) -> Result<()> {
        let uid = uid.to_string();
        ensure!(self.field("Uid").iter().all(|one| *one == uid), "{who}: {:?}", self.field("Uid"));
        ensure!(!self.field("Gid").contains(&"0"), "{who}: {:?}", self.field("Gid"));
        ensure!(self.field("Groups").is_empty(), "{who}: {:?}", self.field("Groups"));
        Ok(())
    }
}

/// Whom roles become on this host.
pub(crate) fn nobody() -> Result<u32> {
    if !Uid::effective().is_root() || !fs::read_to_string("/proc/self/uid_map")?.contains("4294967295") {
        return Err(Skipped::NotHere("changing the user needs real root".to_owned()).into());
    }
    let named = |name| User::from_name(name).ok().flatten();
    let user = named("tcptwin").or_else(|| named("nobody")).context("this host has no user nobody")?;
    Ok(user.uid.as_raw())
}

fn roles(run: &Instance) -> Result<Vec<(String, Shown)>> {
    let roles = run.stats()?.roles()?;
    let others = roles.iter().filter(|role| role.role != "supervisor");
    others.map(|role| Ok((format!("{} {}", role.role, role.index), Shown::of(role.pid)?))).collect()
}

fn roles_have_nothing_that_they_do_not_need() -> Result<()> {
    let uid = nobody()?;
    let stage = Stage::new()?;
    let intercept = stage.intercept()?;
    let run = stage.run(&["--shards", "2"])?;
    let sent = stage.send(stage.load(200))?;
    step("what the roles have");
    let all = roles(&run)?;
    ensure!(all.len() == 4, "{} roles", all.len());
    for (who, shown) in &all {
        shown.is_bare(who)?;
        shown.is(who, uid)?;
        ensure!(
            who.starts_with(&shown.field("Name").join(" ")),
            "{who} calls itself {:?}",
            shown.field("Name")
        );
        ensure!(shown.field("CapBnd") == ["0000000000000000"], "{who}: {:?}", shown.field("CapBnd"));
        // Standard streams, the lock, the region; sockets for the two at the edges alone.
        let pipes = shown.open.iter().filter(|of| of.starts_with("pipe:")).count();
        ensure!(pipes == 1, "{who} has more than the log's pipe: {:?}", shown.open);
        let sockets = shown.open.iter().filter(|of| of.starts_with("socket:")).count();
        let edge = !who.starts_with("shard-worker");
        ensure!(edge == (sockets > 0), "{who} has {:?}", shown.open);
        let known = |of: &&String| {
            of.starts_with("/dev/null")
                || of.starts_with("/dev/shm/tcptwin-")
                || of.ends_with(".lock")
                || of.starts_with("pipe:")
                || edge && (of.starts_with("socket:") || of.starts_with("anon_inode:"))
        };
        let strange: Vec<_> = shown.open.iter().filter(|of| !known(of)).collect();
        ensure!(strange.is_empty(), "{who} has {strange:?}");
    }
    let supervisor = Shown::of(run.pid())?;
    ensure!(supervisor.field("NoNewPrivs") == ["1"], "the supervisor can get privileges");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let has = u64::from_str_radix(supervisor.field(set)[0], 16)?;
        // CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_BOOT (linux/capability.h).
        ensure!(
            [16, 17, 19, 21, 22].iter().all(|bit| has >> bit & 1 == 0),
            "the supervisor's {set}: {has:x}"
        );
    }
    let cores = fs::read_to_string(format!("/proc/{}/limits", run.pid()))?;
    let cores = cores.lines().find(|line| line.starts_with("Max core file size")).context("no such limit")?;
    ensure!(cores.split_whitespace().nth(4) == Some("0"), "{cores}");
    let shown = Shown::of(intercept.pid())?;
    shown.is("intercept", uid)?;
    ensure!(
        shown.field("Seccomp") == ["2"] && shown.field("NoNewPrivs") == ["1"],
        "intercept: {}",
        shown.status
    );
    // To take its control socket away: CAP_DAC_OVERRIDE.
    ensure!(shown.field("CapEff") == ["0000000000000002"], "intercept: {:?}", shown.field("CapEff"));
    stage.all_replayed(run, &sent, 1)?;
    Ok(())
}

fn without_a_sandbox_only_when_asked_for() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&["--sandbox", "off"])?;
    let sent = stage.send(stage.load(100))?;
    for (who, shown) in roles(&run)? {
        ensure!(shown.field("Seccomp") == ["0"] && shown.field("Uid")[0] == "0", "{who}: {}", shown.status);
    }
    run.wait_said("the sandbox is off")?;
    stage.all_replayed(run, &sent, 1)?;
    Ok(())
}

fn a_role_that_its_sandbox_stops_is_replaced() -> Result<()> {
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let old = run.signal_role("shard-worker", 0, Signal::SIGSYS)?;
    run.wait_restarted("shard-worker", 0, old, SETTLE)?;
    let sent = stage.send(stage.load(100))?;
    stage.all_replayed(run, &sent, 1)?;
    Ok(())
}

/// A worker is made to ask for its user, which it never does: in the call that it sleeps by, strace(1) puts another number, before
/// the filter looks.
fn a_role_that_its_sandbox_stops_says_at_what() -> Result<()> {
    nobody()?;
    let strace = real::find("strace")?;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let run = stage.run(&[])?;
    let roles = run.stats()?.roles()?;
    let worker = roles.iter().find(|role| role.role == "shard-worker").context("no worker")?.pid;
    let _ = Command::new(strace)
        .args(["-qq", "-e", "trace=futex", "-e", "inject=futex:retval=0:syscall=getuid:when=1"])
        .args(["-p", &worker.to_string()])
        .output()?;
    run.wait_restarted("shard-worker", 0, worker, SETTLE)?;
    let said = run.stderr();
    for part in [
        "shard-worker 0: stopped by its sandbox at the system call getuid",
        "shard-worker 0 restarted (stopped by its sandbox at the system call getuid, which is not on its list",
    ] {
        ensure!(said.contains(part), "it does not say `{part}`:\n{said}");
    }
    let stats = run.stats()?;
    let roles = stats.value()["roles"].as_array().context("no roles")?;
    let stopped: Vec<_> = roles.iter().filter_map(|role| role["stopped_at"].as_str()).collect();
    ensure!(stopped == ["getuid"], "{stopped:?}");
    let sent = stage.send(stage.load(100))?;
    stage.wait_for_target(1)?;
    ensure!(end(run)?.delivered() == sent.request_bytes, "not all arrived");
    Ok(())
}

/// As under a service manager: no root, one capability, which programs that it starts have too.
fn a_user_with_one_capability_runs_it() -> Result<()> {
    nobody()?;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    step("a run of a user with CAP_NET_RAW alone");
    let scratch = Scratch::new("somebody")?;
    let program = wrapped(&scratch, env!("CARGO_BIN_EXE_tcptwin"), "-all,+net_raw")?;
    let twin = Twin::new(program)?;
    own(twin.runtime())?;
    let (map, assistant) = (map(ONLINE_PORT, stage.at_target()), stage.net.assistant.v4().to_string());
    let mut run = twin.begin(Kind::Run, &stage.net.online, &["-x", &map, "-s", &assistant, "-i", "eth0"])?;
    run.wait_ready()?;
    let sent = stage.send(stage.load(200))?;
    for (who, shown) in roles(&run)? {
        shown.is_bare(&who)?;
        shown.is(&who, SOMEBODY)?;
    }
    let said = run.stderr();
    for part in
        ["as the user who started this (changing it needs root)", "nothing in the kernel guards what leaves"]
    {
        ensure!(said.contains(part), "it does not say `{part}`:\n{said}");
    }
    stage.all_replayed(run, &sent, 1)?;
    Ok(())
}

/// After `setcap`, as the README has it: the user has nothing, the file gives what the run has. Everything is done by that user:
/// recording, replaying, running.
fn a_user_runs_a_file_that_has_capabilities() -> Result<()> {
    nobody()?;
    let (setcap, nft) = (real::find("setcap")?, real::find("nft")?);
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    let (map, assistant) = (map(ONLINE_PORT, stage.at_target()), stage.net.assistant.v4().to_string());
    let replays = ["-x", &map, "-s", &assistant];
    let with = |capabilities: &str| -> Result<(Scratch, Twin)> {
        step(format!("a user, and a file with {capabilities}"));
        let scratch = Scratch::new("somebody")?;
        let program = scratch.file("program");
        fs::copy(env!("CARGO_BIN_EXE_tcptwin"), &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let done = Command::new(&setcap).arg(format!("{capabilities}+ep")).arg(&program).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let twin = Twin::new(wrapped(&scratch, as_text(&program)?, "-all")?)?;
        own(twin.runtime())?;
        Ok((scratch, twin))
    };
    let guards = || -> Result<bool> {
        let tables = stage.net.online.ns.spawn({
            let mut list = Command::new(&nft);
            list.args(["list", "tables"]).stdout(Stdio::piped());
            list
        })?;
        Ok(String::from_utf8_lossy(&tables.wait_with_output()?.stdout).contains("tcptwin_"))
    };

    let (scratch, twin) = with("cap_net_raw")?;
    let files = scratch.file("files");
    fs::create_dir(&files)?;
    own(&files)?;
    let record = twin.record(&stage.net.online, &["-x", "80", "-i", "eth0", "-o", as_text(&files)?])?;
    let first = stage.send(stage.load(200))?;
    let ended = record.stop()?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    let file = fs::read_dir(&files)?.next().context("nothing was recorded")??.path();
    ensure!(fs::metadata(&file)?.uid() == SOMEBODY, "whose is {}?", file.display());
    let args = [&[as_text(&file)?][..], &replays, &["--speed", "max"]].concat();
    let ended = twin.begin(Kind::Replay, &stage.net.online, &args)?.wait(SETTLE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    clean(&ended.stats()?, first.request_bytes)?;

    let run = |twin: &Twin, first_id, guarded| -> Result<()> {
        let run = twin.run(&stage.net.online, &[&replays[..], &["-i", "eth0"]].concat())?;
        let sent = stage.send(Load { first_id, ..stage.load(200) })?;
        for (who, shown) in roles(&run)? {
            shown.is_bare(&who)?;
            shown.is(&who, SOMEBODY)?;
        }
        let said = run.stderr();
        ensure!(said.contains("as the user who started this (changing it needs root)"), "{said}");
        ensure!(said.contains("nothing in the kernel guards what leaves") != guarded, "{said}");
        ensure!(guards()? == guarded, "the guard stands, or not: {said}");
        step("a role is started again, by a file that gives what it needs not");
        let old = run.kill_role("injector", 0)?;
        run.wait_restarted("injector", 0, old, SETTLE)?;
        stage.all_replayed(run, &sent, 1)?;
        ensure!(!guards()?, "the guard was left behind");
        Ok(())
    };
    run(&twin, 1_000, false)?;
    let (_scratch, twin) = with("cap_net_raw,cap_net_admin")?;
    run(&twin, 2_000, true)
}

/// Somebody, who is not root.
const SOMEBODY: u32 = 4_711;

fn own(path: &Path) -> Result<()> {
    Ok(chown(path, Some(Uid::from_raw(SOMEBODY)), Some(Gid::from_raw(SOMEBODY)))?)
}

fn as_text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A program that starts another as somebody with these capabilities.
fn wrapped(scratch: &Scratch, program: &str, capabilities: &str) -> Result<PathBuf> {
    let path: PathBuf = scratch.file("tcptwin");
    let drop = format!(
        "--reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups --inh-caps={capabilities} --ambient-caps={capabilities}"
    );
    fs::write(&path, format!("#!/bin/sh\nexec setpriv {drop} {program} \"$@\"\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(Path::new(scratch.path()), fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
