//! What the processes of a run have: the kernel's word (/proc), not ours.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lab::scratch::Scratch;
use lab::story::{Skipped, Story, step};
use lab::twin::{Kind, map};
use lab::{Instance, Twin};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, chown};

use crate::stage::{ONLINE_PORT, SETTLE, Stage};

pub(crate) const STORIES: &[Story] = &[
    ("roles_have_nothing_that_they_do_not_need", 60, roles_have_nothing_that_they_do_not_need),
    ("without_a_sandbox_only_when_asked_for", 60, without_a_sandbox_only_when_asked_for),
    ("a_role_that_its_sandbox_stops_is_replaced", 60, a_role_that_its_sandbox_stops_is_replaced),
    ("a_user_with_one_capability_runs_it", 60, a_user_with_one_capability_runs_it),
];

/// A process as /proc shows it.
struct Shown {
    status: String,
    open: Vec<String>,
}

impl Shown {
    fn of(pid: u32) -> Result<Self> {
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
    fn is_bare(&self, who: &str) -> Result<()> {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            ensure!(self.field(set) == ["0000000000000000"], "{who}: {set} {:?}", self.field(set));
        }
        ensure!(self.field("NoNewPrivs") == ["1"], "{who} can get privileges");
        ensure!(self.field("Seccomp") == ["2"], "{who} has no filter");
        Ok(())
    }

    /// Another user than root, its group, and no other.
    fn is(&self, who: &str, uid: u32) -> Result<()> {
        let uid = uid.to_string();
        ensure!(self.field("Uid").iter().all(|one| *one == uid), "{who}: {:?}", self.field("Uid"));
        ensure!(!self.field("Gid").contains(&"0"), "{who}: {:?}", self.field("Gid"));
        ensure!(self.field("Groups").is_empty(), "{who}: {:?}", self.field("Groups"));
        Ok(())
    }
}

/// Whom roles become on this host.
fn nobody() -> Result<u32> {
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
        ensure!(shown.field("CapBnd") == ["0000000000000000"], "{who}: {:?}", shown.field("CapBnd"));
        // Standard streams, the lock, the region; sockets for the two at the edges alone.
        let sockets = shown.open.iter().filter(|of| of.starts_with("socket:")).count();
        let edge = !who.starts_with("shard-worker");
        ensure!(edge == (sockets > 0), "{who} has {:?}", shown.open);
        let known = |of: &&String| {
            of.starts_with("/dev/null")
                || of.starts_with("/dev/shm/tcptwin-")
                || of.ends_with(".lock")
                || of.ends_with("/err")
                || edge && (of.starts_with("socket:") || of.starts_with("anon_inode:"))
        };
        let strange: Vec<_> = shown.open.iter().filter(|of| !known(of)).collect();
        ensure!(strange.is_empty(), "{who} has {strange:?}");
    }
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
    ensure!(run.stderr().contains("the sandbox is off"), "{}", run.stderr());
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

/// As after `setcap cap_net_raw+ep`: no root, one capability.
fn a_user_with_one_capability_runs_it() -> Result<()> {
    const SOMEBODY: u32 = 4_711;
    nobody()?;
    let stage = Stage::new()?;
    let _intercept = stage.intercept()?;
    step("a run of a user with CAP_NET_RAW alone");
    let scratch = Scratch::new("somebody")?;
    let program = wrapped(&scratch, env!("CARGO_BIN_EXE_tcptwin"), SOMEBODY)?;
    let twin = Twin::new(program)?;
    chown(twin.runtime(), Some(Uid::from_raw(SOMEBODY)), Some(Gid::from_raw(SOMEBODY)))?;
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

/// A program that starts another as a user with CAP_NET_RAW.
fn wrapped(scratch: &Scratch, program: &str, uid: u32) -> Result<PathBuf> {
    let path: PathBuf = scratch.file("tcptwin");
    let drop = format!(
        "--reuid {uid} --regid {uid} --clear-groups --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw"
    );
    fs::write(&path, format!("#!/bin/sh\nexec setpriv {drop} {program} \"$@\"\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(Path::new(scratch.path()), fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
