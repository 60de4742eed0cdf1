//! Takes dead roles out of the process table, in a thread of its own. Removing the entry has the kernel throw away what it
//! keeps of /proc/PID, and while anybody else is about to let go of a part of that, it tries again and again: on a busy
//! host with somebody who reads /proc `wait4` was seen to take up to four seconds of CPU time. The successor does not wait
//! for it: that a role is dead, with all its threads and its memory, was known before (`Member::has_died`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// The thread.
#[derive(Clone)]
pub(crate) struct Undertaker {
    dead: Sender<Pid>,
    waiting: Arc<AtomicUsize>,
}

/// The longest wait for those that are not out of the table yet.
const PATIENCE: Duration = Duration::from_secs(5);

impl Undertaker {
    /// Starts the thread; it ends with the last copy of this.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (dead, comes) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        let work = move || {
            for pid in comes {
                // It is a dead child of ours that nobody else waits for.
                let _ = waitpid(pid, None);
                left.fetch_sub(1, SeqCst);
            }
        };
        std::thread::Builder::new()
            .name("undertaker".to_owned())
            .spawn(work)
            .context("starting a thread failed; is the limit on processes (ulimit -u) reached?")?;
        Ok(Self { dead, waiting })
    }

    /// Takes a dead child out of the process table, soon.
    pub(crate) fn bury(&self, pid: Pid) {
        self.waiting.fetch_add(1, SeqCst);
        if self.dead.send(pid).is_err() {
            // The thread never ends before us; without it the entry stays until we end.
            self.waiting.fetch_sub(1, SeqCst);
        }
    }

    /// Waits, within bounds, until none is left: what is not done when another image takes over is nobody's.
    pub(crate) fn finish(&self) {
        let begin = Instant::now();
        while self.waiting.load(SeqCst) > 0 && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "the undertaker waits for them")]
    fn the_dead_leave_the_process_table() {
        let undertaker = Undertaker::start().unwrap();
        let pids: Vec<Pid> = (0..8)
            .map(|_| {
                let child = std::process::Command::new("true").spawn().unwrap();
                Pid::from_raw(child.id().cast_signed())
            })
            .collect();
        pids.iter().for_each(|pid| undertaker.bury(*pid));
        undertaker.finish();
        for pid in pids {
            assert_eq!(waitpid(pid, None), Err(nix::errno::Errno::ECHILD), "{pid} was buried");
        }
    }
}
