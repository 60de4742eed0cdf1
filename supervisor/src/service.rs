//! The service manager, when one started us: systemd with `Type=notify`, or anything that speaks its protocol
//! (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), and systemd.io/FILE_DESCRIPTOR_STORE).
//!
//! It hears that we are ready, how we are, and that we end; it restarts us when the loop stops turning; and it keeps the
//! sockets over our death, so that the kernel goes on capturing into rings that the next start finds where this one left
//! them. Without a manager everything here does nothing. A manager that does not listen never holds the loop for long.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::sockets::Kept;

/// The manager.
pub(crate) struct Service {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
    status: String,
    is_ready: bool,
}

struct Watchdog {
    every: Duration,
    next: Instant,
}

/// The first descriptor that a manager hands down (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// Descriptors taken at most: two of each interface, three that send, and as many again of an earlier plan.
const MAX_KEPT: RawFd = 256;
/// A manager that takes no message for so long misses it.
const PATIENCE: Duration = Duration::from_millis(100);

impl Service {
    /// The one that the environment names, or none.
    pub(crate) fn of_environment() -> Self {
        let text = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let socket = text("NOTIFY_SOCKET").and_then(|at| match connect(&at) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(
                    "the service manager cannot be told anything ({}: {error})",
                    at.to_string_lossy()
                );
                None
            }
        });
        let number = |name: &str| text(name)?.to_str()?.parse::<u64>().ok();
        let for_us = |name: &str| number(name).is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|us| *us > 0 && for_us("WATCHDOG_PID"));
        Self {
            watchdog: limit.filter(|_| socket.is_some()).map(|us| Watchdog {
                // The manager's documents ask for half; a third survives one late turn of the loop.
                every: Duration::from_micros(us / 3),
                next: Instant::now(),
            }),
            socket,
            status: String::new(),
            is_ready: false,
        }
    }

    /// Whether there is one.
    pub(crate) const fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The descriptors that it kept for us. Once in a process, and before anything else is opened.
    pub(crate) fn kept() -> Vec<Kept> {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        if text("LISTEN_PID").parse() != Ok(std::process::id()) {
            return Vec::new();
        }
        let count = text("LISTEN_FDS").parse::<RawFd>().unwrap_or(0).clamp(0, MAX_KEPT);
        let names = text("LISTEN_FDNAMES");
        let mut names = names.split(':');
        let take = |number| {
            let name = names.next().unwrap_or_default().to_owned();
            match shm::inherit(number) {
                Ok(fd) => Some((name, fd)),
                Err(error) => {
                    tracing::warn!("the service manager's descriptor {number} ({name}) is none: {error}");
                    None
                }
            }
        };
        (FIRST..FIRST + count).filter_map(take).collect()
    }

    /// Asks it to keep a socket over our death.
    pub(crate) fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
        // Without FDPOLL=0 a packet socket would go with its first error, and a link that is down is one.
        self.say(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[socket.as_raw_fd()]);
    }

    /// Asks it to close what it keeps under this name.
    pub(crate) fn forget(&self, name: &str) {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }

    /// Everything works. Said once.
    pub(crate) fn ready(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.say(&format!("READY=1\nMAINPID={}", std::process::id()), &[]);
        }
    }

    /// The end has begun.
    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1", &[]);
    }

    /// One line for a person (`systemctl status`); sent when it changed.
    pub(crate) fn status(&mut self, text: String) {
        if self.is_there() && text != self.status {
            self.say(&format!("STATUS={}", text.replace('\n', " ")), &[]);
            self.status = text;
        }
    }

    /// A sign of life, when one is due and `all_well` says so. Called at each turn of the loop.
    pub(crate) fn alive(&mut self, now: Instant, all_well: impl FnOnce() -> bool) {
        let due = self.watchdog.as_ref().is_some_and(|watchdog| now >= watchdog.next);
        if due && all_well() {
            self.say("WATCHDOG=1", &[]);
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.next = now + watchdog.every;
            }
        }
    }

    fn say(&self, message: &str, fds: &[RawFd]) {
        let Some(socket) = &self.socket else { return };
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let bytes = [IoSlice::new(message.as_bytes())];
        let sent = sendmsg::<()>(socket.as_raw_fd(), &bytes, rights, MsgFlags::MSG_NOSIGNAL, None);
        if let Err(errno) = sent {
            let first = message.lines().next().unwrap_or_default();
            tracing::warn!("the service manager did not take {first}: {errno}");
        }
    }
}

/// A path, or a name in the abstract namespace behind `@`.
fn connect(at: &OsString) -> io::Result<UnixDatagram> {
    let at: &OsStr = at;
    let address = match at.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(at)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Service, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let watchdog = Some(Watchdog { every: Duration::from_secs(1), next: Instant::now() });
        (Service { socket: Some(ours), watchdog, status: String::new(), is_ready: false }, theirs)
    }

    fn heard(manager: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 256];
        let bytes = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..bytes].to_vec()).unwrap())
    }

    #[test]
    fn a_sign_of_life_needs_time_and_health() {
        let (mut service, manager) = pair();
        let now = Instant::now();
        service.alive(now, || false);
        assert_eq!(heard(&manager), None, "not all is well");
        service.alive(now, || true);
        assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
        service.alive(now + Duration::from_millis(900), || panic!("not due"));
        service.alive(now + Duration::from_secs(1), || true);
        assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
    }

    #[test]
    fn what_is_said_once_is_said_once() {
        let (mut service, manager) = pair();
        service.ready();
        service.ready();
        assert_eq!(heard(&manager), Some(format!("READY=1\nMAINPID={}", std::process::id())));
        service.status("running\nwell".to_owned());
        service.status("running\nwell".to_owned());
        assert_eq!(heard(&manager).as_deref(), Some("STATUS=running well"));
        assert_eq!(heard(&manager), None);
    }

    #[test]
    fn a_manager_that_does_not_listen_costs_little() {
        let (mut service, _manager) = pair();
        service.socket.as_ref().unwrap().set_nonblocking(true).unwrap();
        // Until its queue is full; net.unix.max_dgram_qlen is 10 or 512.
        (0..1_000).for_each(|i| service.status(format!("{i}")));
        service.socket.as_ref().unwrap().set_nonblocking(false).unwrap();
        service.socket.as_ref().unwrap().set_write_timeout(Some(PATIENCE)).unwrap();
        let begin = Instant::now();
        service.status("too much".to_owned());
        assert!(begin.elapsed() < 5 * PATIENCE);
    }

    #[test]
    fn an_abstract_name_is_found() {
        let name = format!("tcptwin-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        connect(&format!("@{name}").into()).unwrap().send(b"READY=1").unwrap();
        assert_eq!(heard(&manager).as_deref(), Some("READY=1"));
        assert!(connect(&"/no/such/socket".into()).is_err());
    }
}
