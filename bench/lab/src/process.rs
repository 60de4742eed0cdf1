//! What /proc says of processes: an outside witness for who runs, who is whose child, and what it costs.

use std::fs;

/// One line of /proc/PID/stat (proc(5)).
#[derive(Clone, Debug)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Run state: R, S, D, Z, T...
    pub state: char,
    /// Name of the executable, cut to 15 characters.
    pub name: String,
    /// CPU time, user and system, seconds.
    pub cpu_s: f64,
    /// User time, seconds, as the ticks tell; system time.
    pub user_s: f64,
    /// See [`Process::user_s`].
    pub system_s: f64,
    /// CPU time of its children that it has waited for, and of theirs, seconds, as the ticks tell.
    pub children_s: f64,
    /// Kernel flags (`PF_` of linux/sched.h).
    flags: u64,
}

impl Process {
    /// Reads one process; none when it is gone.
    pub fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in brackets and may hold any character, brackets too.
        let (head, rest) = text.rsplit_once(") ")?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
        let (user, system) = (number(11)?, number(12)?);
        let ticks = user + system;
        Some(Self {
            pid,
            parent: u32::try_from(number(1)?).ok()?,
            flags: number(6)?,
            state: fields.first()?.chars().next()?,
            name,
            user_s: user as f64 / 100.0,
            children_s: (number(13)? + number(14)?) as f64 / 100.0,
            system_s: system as f64 / 100.0,
            // The ticks still count threads that ended, the finer clock does not.
            cpu_s: run_time_s(pid).unwrap_or(0.0).max(ticks as f64 / 100.0 - 0.01),
        })
    }

    /// Its arguments, with blanks between them.
    pub fn command_line(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if text.trim().is_empty() { format!("[{}]", self.name) } else { text.trim().to_owned() }
    }

    /// Whether no instruction of it is executed any more: it is a zombie, or on the way there. That way can be long: its locks
    /// are free already while the kernel closes its packet sockets, which waits for all processors.
    pub fn has_ended(&self) -> bool {
        self.is_zombie() || self.flags & EXITING != 0
    }

    /// Whether it is the kernel's own thread.
    pub fn is_the_kernels(&self) -> bool {
        self.flags & KERNEL_THREAD != 0
    }

    /// Whether it has ended and only waits to be reaped.
    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

/// `PF_EXITING`.
const EXITING: u64 = 4;
/// `PF_KTHREAD`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Run time of all living threads of a process in nanosecond resolution (/proc/PID/task/TID/schedstat).
fn run_time_s(pid: u32) -> Option<f64> {
    let mut ns = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        ns += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(ns as f64 / 1e9)
}

/// What a process waited for since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// For a core, ready to run, microseconds (/proc/PID/schedstat).
    pub core_us: u64,
    /// For pages of files that were not in memory: how many (`majflt` of /proc/PID/stat).
    pub pages: u64,
}

impl Delays {
    /// Of the main thread; nothing when the process is gone.
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let stat = read("stat");
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest);
        Self {
            core_us: number(read("schedstat").split(' ').nth(1)) / 1_000,
            pages: number(after_name.and_then(|rest| rest.split(' ').nth(9))),
        }
    }
}

/// Where in the kernel each thread of a process is: name, run state and functions, innermost first (/proc/PID/task/TID/stack,
/// proc_pid_stack(5); root's to read). A thread that runs has none.
pub fn places_in_the_kernel(pid: u32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let place = |task: fs::DirEntry| {
        // A thread has a place of its own in /proc, which is not listed.
        let Process { name, state, .. } = Process::read(task.file_name().to_str()?.parse().ok()?)?;
        let stack = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        let functions = stack.lines().filter_map(|line| line.split_whitespace().nth(1)?.split('+').next());
        Some(format!("{name} {state} {}", functions.collect::<Vec<_>>().join(" < ")))
    };
    tasks.filter_map(|task| place(task.ok()?)).collect()
}

/// Every process that can be seen.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter_map(Process::read).collect()
}

/// Resident anonymous memory of a process, bytes (proc_pid_status(5)): what a leak would be in.
pub fn private_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// Whether `pid` is a child of `ancestor`, or a child's child, and so on.
pub fn descends_from(mut pid: u32, ancestor: u32) -> bool {
    for _ in 0..64 {
        match Process::read(pid) {
            Some(p) if p.parent == ancestor => return true,
            Some(p) if p.parent > 1 => pid = p.parent,
            _ => return false,
        }
    }
    false
}

/// A process and everything that descends from it.
pub fn tree(root: u32) -> Vec<Process> {
    all().into_iter().filter(|p| p.pid == root || descends_from(p.pid, root)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read_and_descends_from_its_parent() {
        let me = Process::read(std::process::id()).unwrap();
        assert!(me.cpu_s >= 0.0 && !me.has_ended());
        assert!(descends_from(me.pid, me.parent));
        assert!(!descends_from(me.parent, me.pid));
        assert!(tree(me.pid).iter().any(|p| p.pid == me.pid));
    }

    #[test]
    fn a_child_counts_when_it_has_been_waited_for() {
        let children_s = || Process::read(std::process::id()).unwrap().children_s;
        let before = children_s();
        let works = "i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", works]).status().unwrap().success());
        assert!(children_s() > before, "{before} s before");
    }

    #[test]
    fn one_thread_more_than_cores_waits_for_one() {
        use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
        use std::time::{Duration, Instant};
        let stop = AtomicBool::new(false);
        let cores = std::thread::available_parallelism().unwrap().get();
        let has_waited = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap();
            let mut threads = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
            threads.any(|thread| Delays::of(thread).core_us > 0)
        };
        let waited = std::thread::scope(|scope| {
            for _ in 0..=cores {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let until = Instant::now() + Duration::from_secs(10);
            while !has_waited() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            let waited = has_waited();
            stop.store(true, Relaxed);
            waited
        });
        assert!(waited, "each of {} busy threads had a core each time", cores + 1);
    }

    #[test]
    fn every_thread_of_a_process_has_a_place() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let waits = move || {
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("sleeper".to_owned()).spawn(waits).unwrap();
        let sleeps = |place: &String| place.starts_with("sleeper S ");
        while !places_in_the_kernel(std::process::id()).iter().any(sleeps) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        drop(end);
        thread.join().unwrap();
    }
}
