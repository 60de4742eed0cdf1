//! A service manager as far as a restart needs one: it does what systemd does for a service with `Type=notify` and a
//! file descriptor store (sd_notify(3), sd_listen_fds(3), systemd.io/FILE_DESCRIPTOR_STORE), without being one.
//!
//! It listens at a datagram socket named by NOTIFY_SOCKET, keeps descriptors that come with `FDSTORE=1` under their
//! `FDNAME`, drops them on `FDSTOREREMOVE=1`, and hands all it keeps to the next start from descriptor 3 on, with
//! LISTEN_FDS, LISTEN_FDNAMES and the LISTEN_PID of that very process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::network::Host;
use crate::scratch::Scratch;
use crate::sys;
use crate::twin::{Instance, Kind, Twin};

/// The manager of one service. Dropping it closes what it keeps.
pub struct Manager {
    place: Scratch,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
    /// WATCHDOG_USEC of the service.
    pub watchdog: Option<Duration>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    kept: Vec<(String, OwnedFd)>,
    heard: Vec<String>,
}

impl Manager {
    /// Begins to listen.
    pub fn new() -> anyhow::Result<Self> {
        let place = Scratch::new("manager")?;
        let socket = UnixDatagram::bind(place.file("notify"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let listener =
            std::thread::Builder::new().name("manager".to_owned()).spawn(move || listen(&socket, &theirs))?;
        Ok(Self { place, shared, listener: Some(listener), watchdog: None })
    }

    /// Starts `tcptwin run` on a host as its service and waits until it captures.
    pub fn run(&self, twin: &Twin, host: &Host, args: &[&str]) -> anyhow::Result<Instance> {
        let mut run = twin.begin_with(Kind::Run, host, args, |command| self.dress(command))?;
        run.wait_ready()?;
        Ok(run)
    }

    /// Names of the descriptors that it keeps, in order.
    pub fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> = self.book().kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Puts a descriptor among those that it keeps.
    pub fn add(&self, name: &str, fd: OwnedFd) {
        self.book().kept.push((name.to_owned(), fd));
    }

    /// How often it heard a message that begins like this.
    pub fn heard(&self, begin: &str) -> usize {
        self.book().heard.iter().filter(|line| line.starts_with(begin)).count()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command as a service of this manager. Only the process itself knows its pid, so a shell sets it before it becomes
    /// the program.
    fn dress(&self, command: Command) -> Command {
        let mut service = Command::new("sh");
        service
            .args(["-c", "LISTEN_PID=$$ && export LISTEN_PID && exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
            .env("NOTIFY_SOCKET", self.place.file("notify"));
        if let Some(limit) = self.watchdog {
            service.env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        let book = self.book();
        let names: Vec<&str> = book.kept.iter().map(|(name, _)| name.as_str()).collect();
        service.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let copies = book.kept.iter().map(|(_, fd)| fd.try_clone().expect("a descriptor is left for it"));
        sys::hand_down(&mut service, copies.collect());
        service
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn listen(socket: &UnixDatagram, shared: &Shared) {
    while !shared.stop.load(Relaxed) {
        let (text, fds) = match sys::receive_with_descriptors(socket.as_raw_fd()) {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        let mut book = shared.book.lock().unwrap_or_else(PoisonError::into_inner);
        let says = |what: &str| text.lines().any(|line| line == what);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        if says("FDSTORE=1") {
            book.kept.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        } else if says("FDSTOREREMOVE=1") {
            book.kept.retain(|(kept, _)| *kept != name);
        }
        book.heard.push(text);
    }
}
