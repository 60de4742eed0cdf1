//! Finding and running installed programs.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::namespace::Namespace;
use crate::scratch::Scratch;
use crate::story::Skipped;

/// Where a program is: in PATH, or where Debian keeps servers.
pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
        .ok_or_else(|| {
            let package = match program {
                "redis-benchmark" | "redis-cli" => "redis-tools",
                "nft" => "nftables",
                "dnsmasq" => "dnsmasq-base",
                other => other,
            };
            Skipped::NotInstalled(format!("{program} is not installed (apt-get install {package})")).into()
        })
}

/// What a program that ended well wrote.
#[derive(Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs an installed program in a namespace to its end. An error when it fails or takes longer than `limit`.
pub fn run(ns: &Namespace, program: &str, args: &[&str], limit: Duration) -> anyhow::Result<Output> {
    let scratch = Scratch::new("tool")?;
    let (out, err) = (scratch.file("out"), scratch.file("err"));
    let mut command = Command::new(find(program)?);
    command.args(args).stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let mut child = ns.spawn(command).with_context(|| format!("starting {program}"))?;
    let ended = wait_for(&mut child, limit)?;
    let read = |file: &PathBuf| std::fs::read(file).map(|b| String::from_utf8_lossy(&b).into_owned());
    let output = Output { stdout: read(&out)?, stderr: read(&err)? };
    if !ended {
        bail!("{program} {} was not over after {limit:?}; it wrote {output:?}", args.join(" "));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{program} {} ended with {status}; it wrote {output:?}", args.join(" "));
    }
    Ok(output)
}

/// Waits for a child's end, and kills it when the limit is over: false.
pub fn wait_for(child: &mut Child, limit: Duration) -> anyhow::Result<bool> {
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}
