//! A real nginx with one worker and an access log that tells each request apart.
//!
//! | location | answer |
//! |---|---|
//! | `/id/N` | a short text |
//! | `/big/N` | a file of 1 MiB, by sendfile |
//! | `/upload/N` | a short text, after the whole body was read |

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Host;
use crate::real::tool;
use crate::scratch::Scratch;
use crate::wait;

/// A running nginx in a directory of its own.
pub struct Nginx {
    scratch: Scratch,
    child: Option<Child>,
    ports: [SocketAddr; 2],
}

/// Requests as their log lines, with how often each was seen.
pub type Requests = HashMap<String, u32>;

/// Bytes of the file behind `/big/`.
pub const BIG: usize = 1 << 20;

impl Nginx {
    /// Starts nginx on both addresses of a host.
    pub fn start(host: &Host, port: u16) -> anyhow::Result<Self> {
        let program = tool::find("nginx")?;
        let scratch = Scratch::new("nginx")?;
        let ports = [SocketAddr::new(host.v4(), port), SocketAddr::new(host.v6(), port)];
        fs::write(scratch.file("big.bin"), vec![b'B'; BIG])?;
        fs::write(scratch.file("nginx.conf"), configuration(&scratch, ports))?;
        let mut nginx = Self { scratch, child: None, ports };
        nginx.run(host, program)?;
        Ok(nginx)
    }

    /// Kills the server at once, as a crash does: the kernel resets its connections or closes them.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again after [`Nginx::kill`], with the same log.
    pub fn restart(&mut self, host: &Host) -> anyhow::Result<()> {
        self.kill()?;
        self.run(host, tool::find("nginx")?)
    }

    fn run(&mut self, host: &Host, program: std::path::PathBuf) -> anyhow::Result<()> {
        // A killed server leaves its socket file, and the next one refuses to start because of it.
        let _ = fs::remove_file(self.scratch.file("sink.sock"));
        let mut command = Command::new(program);
        let error_log = self.scratch.file("error.log");
        command
            .arg("-p")
            .arg(self.scratch.path())
            .arg("-e")
            .arg(&error_log)
            .args(["-c", "nginx.conf"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = host.ns.spawn(command).context("starting nginx")?;
        let address = self.ports[0];
        let sink = self.scratch.file("sink.sock");
        let ready = wait::until(&format!("nginx at {address}"), Duration::from_secs(10), || {
            sink.exists()
                && matches!(child.try_wait(), Ok(None))
                && host.ns.enter(move || std::net::TcpStream::connect(address).is_ok())
        });
        if let Err(error) = ready {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(error_log).unwrap_or_default();
            return Err(error.context(format!("nginx did not start: {log}")));
        }
        self.child = Some(child);
        Ok(())
    }

    /// All requests answered so far; the log's buffer is flushed first.
    pub fn requests(&self) -> anyhow::Result<Requests> {
        let mut requests = Requests::new();
        for line in self.log()?.lines() {
            if let Some((_, request)) = line.split_once(' ') {
                *requests.entry(request.to_owned()).or_default() += 1;
            }
        }
        Ok(requests)
    }

    /// How many requests were answered so far.
    pub fn answered(&self) -> anyhow::Result<u64> {
        Ok(self.log()?.lines().count() as u64)
    }

    /// Seconds since the epoch at which each request was logged, by log line; the last one counts.
    pub fn times(&self) -> anyhow::Result<HashMap<String, f64>> {
        let log = self.log()?;
        Ok(log
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(at, request)| Some((request.to_owned(), at.parse().ok()?)))
            .collect())
    }

    /// USR1 writes what is buffered of the log, and opens it anew. Returns once the error log tells that this begins.
    fn reopen_logs(&self, child: &Child) -> anyhow::Result<()> {
        let errors = self.scratch.file("error.log");
        let before = fs::metadata(&errors).map_or(0, |m| m.len());
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGUSR1)?;
        wait::until("nginx writes its log", Duration::from_secs(10), || {
            let Ok(mut file) = fs::File::open(&errors) else { return false };
            let mut new = String::new();
            file.seek(SeekFrom::Start(before)).is_ok()
                && file.read_to_string(&mut new).is_ok()
                && new.contains("reopening logs")
        })
    }

    fn log(&self) -> anyhow::Result<String> {
        let path = self.scratch.file("access.log");
        if let Some(child) = &self.child {
            // It says so before it does so: a second time, the first is over.
            self.reopen_logs(child)?;
            self.reopen_logs(child)?;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(
            text.is_empty() || text.ends_with('\n') || self.child.is_none(),
            "the access log ends within a line"
        );
        Ok(text)
    }

    /// Process id of the running server.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The process is gone in any case: killed here, or by its parent-death signal.
        let _ = self.kill();
    }
}

fn configuration(scratch: &Scratch, ports: [SocketAddr; 2]) -> String {
    let dir = scratch.path().display();
    let [v4, v6] = ports;
    // One process without a master: a kill takes the whole server, and no uid is switched (a user namespace has one).
    // "root" is the one user that a user namespace has: another could not own the directories for temporary files.
    // The log's first field is the time, the rest tells the request. Bodies are read whole before the proxy answers.
    format!(
        "user root; daemon off; master_process off; pid nginx.pid; error_log {dir}/error.log notice;
events {{ worker_connections 8192; multi_accept on; }}
http {{
  log_format request '$msec $request_method $request_uri $request_length $status';
  access_log {dir}/access.log request buffer=64k flush=1s;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  client_max_body_size 16m; client_body_buffer_size 256k; client_body_in_single_buffer on;
  keepalive_requests 100000000; keepalive_timeout 300s; reset_timedout_connection off;
  sendfile on; tcp_nopush on; tcp_nodelay on; default_type text/plain;
  server {{
    listen {v4} backlog=16384; listen {v6} backlog=16384;
    location /id/ {{ return 200 'answered by nginx, for a replay to be compared with\\n'; }}
    location /big/ {{ root {dir}; rewrite ^ /big.bin break; }}
    location /upload/ {{ proxy_pass http://unix:{dir}/sink.sock:; proxy_http_version 1.1; }}
  }}
  server {{
    listen unix:{dir}/sink.sock; access_log off;
    location / {{ return 200 'taken\\n'; }}
  }}
}}
"
    )
}

/// Two logs as multisets: an empty list when they are equal, else the first differences as sentences.
pub fn differences(online: &Requests, target: &Requests, copies: u32) -> Vec<String> {
    let mut found = Vec::new();
    for (request, &times) in online {
        let wanted = times * copies;
        let got = target.get(request).copied().unwrap_or(0);
        if got != wanted {
            found.push(format!("{request}: wanted {wanted}, the target answered {got}"));
        }
    }
    for (request, &times) in target {
        if !online.contains_key(request) {
            found.push(format!("{request}: never online, the target answered {times}"));
        }
    }
    found.sort();
    let more = found.len().saturating_sub(10);
    found.truncate(10);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_both_ways() {
        let log = |lines: &[(&str, u32)]| lines.iter().map(|&(l, n)| (l.to_owned(), n)).collect::<Requests>();
        assert!(differences(&log(&[("a", 1), ("b", 2)]), &log(&[("b", 2), ("a", 1)]), 1).is_empty());
        assert!(differences(&log(&[("a", 1)]), &log(&[("a", 3)]), 3).is_empty());
        assert_eq!(differences(&log(&[("a", 1)]), &log(&[("b", 1)]), 1).len(), 2);
        assert_eq!(differences(&log(&[("a", 1)]), &log(&[("a", 2)]), 1).len(), 1);
    }
}
