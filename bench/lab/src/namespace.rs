//! A network namespace that lives as long as one thread of this process.
//!
//! A worker thread calls `unshare(CLONE_NEWNET)` and then runs what it is given; threads and processes it starts inherit
//! its namespace. There is no name and no mount, so nothing is left behind when the process dies, even by SIGKILL, and
//! two labs coexist on one host. Used by `network`, and by everything that must run inside one of its hosts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use nix::sched::{CloneFlags, unshare};

use crate::sys::die_with_parent;

/// A network namespace and its worker thread. Dropping it ends the thread, which kills the processes spawned in it.
pub struct Namespace {
    name: String,
    jobs: Option<Sender<Job>>,
    worker: Option<JoinHandle<()>>,
    file: File,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Makes a namespace with nothing in it but a loopback device that is down. `name` is for messages only.
    pub fn new(name: &str) -> io::Result<Self> {
        Self::begin(name, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
                io::Error::new(io::Error::from(errno).kind(), format!("making a network namespace: {errno}"))
            })
        })
    }

    /// The one that this thread is in: for a process that was spawned in another's.
    pub fn here(name: &str) -> io::Result<Self> {
        Self::begin(name, || Ok(()))
    }

    fn begin(name: &str, enter: fn() -> io::Result<()>) -> io::Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, opened) = channel::<io::Result<File>>();
        let worker = Builder::new().name(format!("ns-{name}")).spawn(move || work(enter, &ready, &inbox))?;
        let file = opened.recv().map_err(|_| io::Error::other("the namespace thread ended at once"))??;
        Ok(Self { name: name.to_owned(), jobs: Some(jobs), worker: Some(worker), file })
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as a descriptor, for links whose other end is here.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` in this namespace and waits for it. Other work of this namespace waits meanwhile, so use it for what
    /// is over soon: opening a socket, starting a process, asking the kernel. A panic comes back to the caller.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let job: Job = Box::new(move || {
            // The other side always waits, so the send cannot fail.
            let _ = answer.send(catch_unwind(AssertUnwindSafe(work)));
        });
        self.jobs.as_ref().expect("present until drop").send(job).expect("the worker lives until drop");
        match answered.recv().expect("the worker answers every job") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Starts a process in this namespace. It dies with this `Namespace`, and with this process however that ends.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        die_with_parent(&mut command);
        self.enter(move || command.spawn())
    }

    /// Starts a thread in this namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let builder = Builder::new().name(name.to_owned());
        self.enter(move || builder.spawn(work))
    }

    /// Writes a sysctl of this namespace (`net/ipv4/ip_forward`). Does nothing when it has the value already, so that a
    /// read-only /proc/sys is a problem only where something must change.
    pub fn set_sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        let (file, value) = (format!("/proc/sys/{path}"), value.to_owned());
        self.enter(move || {
            if std::fs::read_to_string(&file).is_ok_and(|now| now.trim() == value) {
                return Ok(());
            }
            std::fs::write(&file, &value)
                .map_err(|e| io::Error::new(e.kind(), format!("writing {value} to {file}: {e}")))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(worker) = self.worker.take() {
            // A panic inside a job was already given to the job's caller.
            let _ = worker.join();
        }
    }
}

/// The worker thread: its namespace is the namespace, and its end is the end of the processes it started.
fn work(enter: fn() -> io::Result<()>, ready: &Sender<io::Result<File>>, inbox: &Receiver<Job>) {
    let opened = enter().and_then(|()| File::open("/proc/thread-self/ns/net"));
    let failed = opened.is_err();
    if ready.send(opened).is_err() || failed {
        return;
    }
    while let Ok(job) = inbox.recv() {
        job();
    }
}
