//! The sockets that outlive the role: opened by the supervisor before any role starts, inherited by number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use topology::Plan;
use topology::plan::InjectEngine;

use crate::{sys, ways};

/// Send buffer asked for, bytes: some 4,000 small packets queued below us, 40 ms at 100,000 packets a second.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// The raw sockets, one per family that the targets need, and the packet sockets of the link engine.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) v4: Option<OwnedFd>,
    pub(crate) v6: Option<OwnedFd>,
    pub(crate) link: Option<OwnedFd>,
    /// One with a transmit ring, which is of use to the link engine and no more.
    pub(crate) ring: Option<OwnedFd>,
    /// Where the supervisor tells of the ways to the targets ([`crate::Lookout`]); it is of one start of the role.
    pub(crate) ways: Option<OwnedFd>,
}

/// The socket that one kind of packet leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Raw IPv4.
    V4,
    /// Raw IPv6.
    V6,
    /// Frames.
    Link,
    /// Small frames, many at a time.
    Ring,
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The usual one.
    #[error(
        "opening a {kind} socket needs CAP_NET_RAW. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep {}",
        program.display()
    )]
    NoCapability {
        /// Which socket.
        kind: &'static str,
        /// This program.
        program: PathBuf,
    },
    /// The kernel lacks the family.
    #[error(
        "opening a {kind} socket failed: this kernel has none. Name only targets of the other family, or load it (for IPv6: modprobe ipv6; packet sockets: modprobe af_packet)"
    )]
    NoFamily {
        /// Which socket.
        kind: &'static str,
    },
    /// No libpcap, though it is asked for.
    #[error("--inject pcap: {0}. Or leave --inject out")]
    Pcap(#[from] libpcap::Error),
    /// Anything else.
    #[error(
        "opening a {kind} socket failed: {source}. Check the limits of this process (ulimit -n) and its sandbox"
    )]
    Other {
        /// Which socket.
        kind: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A descriptor handed down is not what it should be.
    #[error(
        "descriptor {number} was handed down as the {kind} socket, but {source}. Roles are started by `tcptwin run`, not by hand"
    )]
    Inherited {
        /// The descriptor's number.
        number: RawFd,
        /// Which socket.
        kind: &'static str,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// Opens what the plan's targets need. Called by the supervisor, before the roles start.
pub fn open(plan: &Plan) -> Result<Sockets, OpenError> {
    let open = |lane: Lane| -> Result<Option<OwnedFd>, OpenError> {
        if !lane.is_needed(plan) {
            return Ok(None);
        }
        let socket = match lane {
            Lane::V4 | Lane::V6 => sys::open_raw(lane == Lane::V4),
            Lane::Link => sys::open_packet(),
            Lane::Ring => sys::open_ring(),
        };
        let socket = socket.map_err(|e| OpenError::new(lane, e))?;
        sys::raise_send_buffer(&socket, SEND_BUFFER_BYTES);
        Ok(Some(socket))
    };
    if plan.inject == InjectEngine::Pcap {
        libpcap::version()?;
    }
    let link = match open(Lane::Link) {
        // Raw IP does as well, more slowly.
        Err(_) if plan.inject == InjectEngine::Auto => None,
        link => link?,
    };
    // Frames leave without it too.
    let ring = open(Lane::Ring).ok().flatten().filter(|_| link.is_some());
    Ok(Sockets { v4: open(Lane::V4)?, v6: open(Lane::V6)?, link, ring, ways: None })
}

impl Lane {
    /// Every lane, in the order of the role's command line.
    pub const ALL: [Lane; 4] = [Lane::V4, Lane::V6, Lane::Link, Lane::Ring];

    /// The name that a kept socket bears.
    pub const fn name(self) -> &'static str {
        match self {
            Lane::V4 => "v4",
            Lane::V6 => "v6",
            Lane::Link => "link",
            Lane::Ring => "ring",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Lane::V4 => "raw IPv4",
            Lane::V6 => "raw IPv6",
            Lane::Link => "packet",
            Lane::Ring => "packet ring",
        }
    }

    /// Raw sockets are there for every engine: what has no way yet leaves by them.
    fn is_needed(self, plan: &Plan) -> bool {
        match self {
            Lane::V4 => plan.targets.iter().any(|t| t.addr.is_ipv4()),
            Lane::V6 => plan.targets.iter().any(|t| t.addr.is_ipv6()),
            Lane::Link | Lane::Ring => matches!(plan.inject, InjectEngine::Auto | InjectEngine::Link),
        }
    }

    fn check(self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Lane::V4 | Lane::V6 => sys::check_raw(fd, self == Lane::V4),
            Lane::Link | Lane::Ring => sys::check_packet(fd),
        }
    }
}

impl Sockets {
    /// The socket of a lane.
    pub const fn get(&self, lane: Lane) -> Option<&OwnedFd> {
        match lane {
            Lane::V4 => self.v4.as_ref(),
            Lane::V6 => self.v6.as_ref(),
            Lane::Link => self.link.as_ref(),
            Lane::Ring => self.ring.as_ref(),
        }
    }

    /// The descriptors' numbers in the order of [`Lane::ALL`], for the role's command line.
    pub fn numbers(&self) -> [Option<RawFd>; 4] {
        Lane::ALL.map(|lane| self.get(lane).map(AsRawFd::as_raw_fd))
    }

    /// Takes over sockets that outlived their supervisor; `None` when they are not those that the plan's targets need. Packet
    /// sockets that the run before did not have are opened now.
    pub fn take_over(plan: &Plan, mut kept: impl FnMut(Lane) -> Option<OwnedFd>) -> Option<Self> {
        let [v4, v6, link, ring] = Lane::ALL.map(&mut kept);
        let mut sockets = Self { v4, v6, link, ring, ways: None };
        let fits = |lane: Lane| match sockets.get(lane) {
            None => !lane.is_needed(plan),
            Some(socket) => lane.check(socket.as_fd()).is_ok(),
        };
        if !fits(Lane::V4) || !fits(Lane::V6) {
            return None;
        }
        let fits_link = Lane::Link.is_needed(plan) && fits(Lane::Link) && fits(Lane::Ring);
        if !fits_link {
            let new = open(plan).ok()?;
            (sockets.link, sockets.ring) = (new.link, new.ring);
        }
        Some(sockets)
    }

    /// The same sockets once more; nobody tells them of the ways yet.
    ///
    /// # Errors
    /// There are no more descriptors to be had.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |socket: &Option<OwnedFd>| socket.as_ref().map(OwnedFd::try_clone).transpose();
        let [v4, v6] = [again(&self.v4)?, again(&self.v6)?];
        Ok(Self { v4, v6, link: again(&self.link)?, ring: again(&self.ring)?, ways: None })
    }

    /// Each socket with its lane.
    pub fn each(&self) -> impl Iterator<Item = (Lane, &OwnedFd)> {
        Lane::ALL.into_iter().filter_map(|lane| Some((lane, self.get(lane)?)))
    }

    /// The same, and where the supervisor tells of the ways.
    #[must_use]
    pub fn told_by(self, ways: OwnedFd) -> Self {
        Self { ways: Some(ways), ..self }
    }

    /// Takes over descriptors inherited by number, in the order of [`Lane::ALL`], and behind them where the supervisor tells of
    /// the ways. Each is checked to be of its kind.
    pub fn inherit(numbers: &[Option<RawFd>]) -> Result<Self, OpenError> {
        let adopt = |place: usize, kind: &'static str, check: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>| {
            let number = numbers.get(place).copied().flatten();
            let inherited = |number| move |source| OpenError::Inherited { number, kind, source };
            number.map(|number| sys::adopt(number, check).map_err(inherited(number))).transpose()
        };
        let of = |lane: Lane| adopt(lane as usize, lane.kind(), &|fd| lane.check(fd));
        let (v4, v6) = (of(Lane::V4)?, of(Lane::V6)?);
        let (link, ring) = (of(Lane::Link)?, of(Lane::Ring)?);
        Ok(Self { v4, v6, link, ring, ways: adopt(Lane::ALL.len(), "ways", &ways::check)? })
    }

    /// Lets a process that is exec'ed from here on keep them (`true`), or not (`false`, as after `open`).
    pub fn keep_on_exec(&self, keep: bool) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        for (_, socket) in self.each() {
            fcntl(socket.as_fd(), FcntlArg::F_SETFD(flags))?;
        }
        Ok(())
    }
}

impl OpenError {
    fn new(lane: Lane, source: io::Error) -> Self {
        let kind = lane.kind();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenError::NoCapability { kind, program: program() },
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => OpenError::NoFamily { kind },
            _ => OpenError::Other { kind, source },
        }
    }
}

/// The path for `setcap`; the plain name when the system does not tell.
fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/tcptwin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_says_what_to_type() {
        let said = OpenError::new(Lane::V4, io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(said.contains("needs CAP_NET_RAW") && said.contains("sudo setcap"), "{said}");
    }

    #[test]
    fn kept_sockets_must_be_those_of_the_plan() {
        let plan = crate::testing::plan(&["10.0.0.1:80"]);
        let file = || Some(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert!(Sockets::take_over(&plan, |_| None).is_none(), "one is missing");
        assert!(Sockets::take_over(&plan, |_| file()).is_none(), "they are files");
        match open(&plan) {
            Ok(Sockets { mut v4, mut link, mut ring, .. }) => {
                for socket in [&v4, &link, &ring].map(|socket| socket.as_ref().unwrap()) {
                    let again = sys::hear_nothing(socket).unwrap_err();
                    assert_eq!(again.kind(), io::ErrorKind::PermissionDenied, "its filter is locked");
                }
                let number = link.as_ref().unwrap().as_raw_fd();
                let taken = Sockets::take_over(&plan, |lane| match lane {
                    Lane::V4 => v4.take(),
                    Lane::V6 => None,
                    Lane::Link => link.take(),
                    Lane::Ring => ring.take(),
                });
                let taken = taken.unwrap();
                assert_eq!(taken.numbers()[2], Some(number), "the same packet socket");
                let mut v4 = taken.v4;
                let older = Sockets::take_over(&plan, |lane| (lane == Lane::V4).then(|| v4.take()).flatten());
                let older = older.unwrap();
                assert!(
                    older.link.is_some() && older.ring.is_some(),
                    "those of a run that had no packet sockets"
                );
            }
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }

    #[test]
    fn a_descriptor_that_is_no_raw_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let said = Sockets::inherit(&[Some(file.as_raw_fd())]).unwrap_err().to_string();
        assert!(said.contains("handed down"), "{said}");
        assert!(Sockets::inherit(&[None, Some(9_999)]).is_err());
        // The refused file is still ours and open.
        assert!(file.metadata().is_ok());
    }
}
