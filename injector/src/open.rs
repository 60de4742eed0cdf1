//! The sockets that outlive the role: opened by the supervisor before any role starts, inherited by number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use topology::Plan;

use crate::sys;

/// Send buffer asked for, bytes: some 4,000 small packets queued below us, 40 ms at 100,000 packets a second.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// The raw sockets, one per family that the targets need.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) v4: Option<OwnedFd>,
    pub(crate) v6: Option<OwnedFd>,
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The usual one.
    #[error(
        "opening a raw {family} socket needs CAP_NET_RAW. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep {}",
        program.display()
    )]
    NoCapability {
        /// IPv4 or IPv6.
        family: &'static str,
        /// This program.
        program: PathBuf,
    },
    /// The kernel lacks the family.
    #[error(
        "opening a raw {family} socket failed: this kernel has no {family}. Name only targets of the other family, or load it (for IPv6: modprobe ipv6)"
    )]
    NoFamily {
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// Anything else.
    #[error(
        "opening a raw {family} socket failed: {source}. Check the limits of this process (ulimit -n) and its sandbox"
    )]
    Other {
        /// IPv4 or IPv6.
        family: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A descriptor handed down is not what it should be.
    #[error(
        "descriptor {number} was handed down as the raw {family} socket, but {source}. Roles are started by `tcptwin run`, not by hand"
    )]
    Inherited {
        /// The descriptor's number.
        number: RawFd,
        /// IPv4 or IPv6.
        family: &'static str,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// Opens what the plan's targets need. Called by the supervisor, before the roles start.
pub fn open(plan: &Plan) -> Result<Sockets, OpenError> {
    let open = |v4: bool| -> Result<Option<OwnedFd>, OpenError> {
        if !plan.targets.iter().any(|t| t.addr.is_ipv4() == v4) {
            return Ok(None);
        }
        let socket = sys::open_raw(v4).map_err(|e| OpenError::new(v4, e))?;
        sys::raise_send_buffer(&socket, SEND_BUFFER_BYTES);
        Ok(Some(socket))
    };
    Ok(Sockets { v4: open(true)?, v6: open(false)? })
}

impl Sockets {
    /// The descriptors' numbers, IPv4 first, for the role's command line.
    pub fn numbers(&self) -> (Option<RawFd>, Option<RawFd>) {
        (self.v4.as_ref().map(AsRawFd::as_raw_fd), self.v6.as_ref().map(AsRawFd::as_raw_fd))
    }

    /// Takes over sockets that outlived their supervisor; `None` when they are not those that the plan's targets need.
    pub fn take_over(plan: &Plan, v4: Option<OwnedFd>, v6: Option<OwnedFd>) -> Option<Self> {
        let fits = |socket: &Option<OwnedFd>, v4: bool| match socket {
            None => plan.targets.iter().all(|t| t.addr.is_ipv4() != v4),
            Some(socket) => sys::check_raw(socket.as_fd(), v4).is_ok(),
        };
        (fits(&v4, true) && fits(&v6, false)).then_some(Self { v4, v6 })
    }

    /// Each socket with the family's name, IPv4 first.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &OwnedFd)> {
        self.v4.iter().map(|fd| ("v4", fd)).chain(self.v6.iter().map(|fd| ("v6", fd)))
    }

    /// Takes over descriptors inherited by number. Each is checked to be a raw socket of its family.
    pub fn inherit(v4: Option<RawFd>, v6: Option<RawFd>) -> Result<Self, OpenError> {
        let adopt = |number: Option<RawFd>, v4: bool| {
            number
                .map(|n| {
                    sys::adopt_raw(n, v4).map_err(|source| OpenError::Inherited {
                        number: n,
                        family: family(v4),
                        source,
                    })
                })
                .transpose()
        };
        Ok(Self { v4: adopt(v4, true)?, v6: adopt(v6, false)? })
    }

    /// Lets a process that is exec'ed from here on keep them (`true`), or not (`false`, as after `open`).
    pub fn keep_on_exec(&self, keep: bool) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        for socket in self.v4.iter().chain(&self.v6) {
            fcntl(socket.as_fd(), FcntlArg::F_SETFD(flags))?;
        }
        Ok(())
    }
}

impl OpenError {
    fn new(v4: bool, source: io::Error) -> Self {
        let family = family(v4);
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenError::NoCapability { family, program: program() },
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => OpenError::NoFamily { family },
            _ => OpenError::Other { family, source },
        }
    }
}

/// The path for `setcap`; the plain name when the system does not tell.
fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/tcptwin"))
}

const fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_says_what_to_type() {
        let said = OpenError::new(true, io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(said.contains("needs CAP_NET_RAW") && said.contains("sudo setcap"), "{said}");
    }

    #[test]
    fn kept_sockets_must_be_those_of_the_plan() {
        let plan = crate::testing::plan(&["10.0.0.1:80"]);
        let file = || Some(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert!(Sockets::take_over(&plan, None, None).is_none(), "one is missing");
        assert!(Sockets::take_over(&plan, file(), None).is_none(), "one is a file");
        match open(&plan) {
            Ok(sockets) => assert!(Sockets::take_over(&plan, sockets.v4, None).is_some()),
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }

    #[test]
    fn a_descriptor_that_is_no_raw_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let said = Sockets::inherit(Some(file.as_raw_fd()), None).unwrap_err().to_string();
        assert!(said.contains("handed down"), "{said}");
        assert!(Sockets::inherit(None, Some(9_999)).is_err());
        // The refused file is still ours and open.
        assert!(file.metadata().is_ok());
    }
}
