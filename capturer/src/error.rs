//! Why capturing does not begin, or ends: sentences for the operator.

use std::io;
use std::path::PathBuf;

/// Why a capture socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The usual one.
    #[error(
        "opening a packet socket on {interface} needs CAP_NET_RAW. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep {}",
        program.display()
    )]
    NoCapability {
        /// Where.
        interface: String,
        /// This program.
        program: PathBuf,
    },
    /// No such interface.
    #[error(
        "there is no interface {name} to capture on. This host has: {existing}. Choose with -i, or leave -i out for all of them"
    )]
    NoInterface {
        /// As given.
        name: String,
        /// What there is, comma separated.
        existing: String,
    },
    /// More interfaces than can be told apart.
    #[error(
        "capturing on {count} interfaces is too many; at most {max} can be captured one by one. Leave -i out to capture on all"
    )]
    TooMany {
        /// How many.
        count: usize,
        /// How many are possible.
        max: usize,
    },
    /// The rings do not fit.
    #[error(
        "the kernel gave no {megabytes} MiB for the capture ring of {interface}: {source}. Ask for less with --capture-buffer, or free memory"
    )]
    Memory {
        /// Where.
        interface: String,
        /// What was asked for.
        megabytes: u64,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel has no packet sockets.
    #[error(
        "opening a packet socket failed: this kernel has none. Load them (modprobe af_packet), or use a kernel with CONFIG_PACKET"
    )]
    NoPacketSockets,
    /// A descriptor handed down is not what it should be.
    #[error(
        "descriptor {number} was handed down as a capture socket, but {source}. Roles are started by `tcptwin run`, not by hand"
    )]
    Inherited {
        /// The descriptor's number.
        number: i32,
        /// What is wrong with it.
        source: io::Error,
    },
    /// One that was kept over a restart is not what it should be.
    #[error("the kept capture socket {place} cannot be used: {source}")]
    Kept {
        /// Which, counted from 0.
        place: usize,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Not as many sockets as the plan asks for.
    #[error(
        "{got} capture sockets were handed down instead of {wanted}. Roles are started by `tcptwin run`, not by hand"
    )]
    Sockets {
        /// How many the plan asks for.
        wanted: usize,
        /// How many came.
        got: usize,
    },
    /// libpcap refused a device or the filter.
    #[error(
        "capturing on {interface} with libpcap failed: {source}. Try --capture ring, which needs no library"
    )]
    Pcap {
        /// Where.
        interface: String,
        /// What it said.
        source: libpcap::Error,
    },
    /// Not built in.
    #[error(
        "this program was built without the xdp engine. Build it with: cargo build --release -p tcptwin --features xdp; or leave --capture out"
    )]
    NoXdp,
    /// The xdp engine would cut the host off.
    #[error(
        "the xdp engine takes every frame of {interface} away from this host, and {why}. Give the interface of a mirror port, which carries nothing else; or --capture ring; or, if this host may lose {interface}, --xdp-force"
    )]
    Carries {
        /// Where.
        interface: String,
        /// What speaks against it.
        why: String,
    },
    /// The kernel or the device does not do AF_XDP.
    #[error(
        "{step} {interface} failed: {source}. The xdp engine needs root (or cap_bpf, cap_net_admin, cap_net_raw, and a limit of locked memory (ulimit -l) above --capture-buffer), a kernel of 5.9 or newer, and an interface without another XDP program (ip link show {interface}); --capture ring needs none of that"
    )]
    Xdp {
        /// What was tried.
        step: &'static str,
        /// Where.
        interface: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Frames of a kind in which no IP packet can be found.
    #[error(
        "libpcap opens {interface}, but its frames are of the link type {link}, in which this program finds no IP packet. Capture on another interface (-i)"
    )]
    LinkType {
        /// Where.
        interface: String,
        /// libpcap's name of it.
        link: String,
    },
    /// Anything else.
    #[error(
        "{step} on {interface} failed: {source}. Check that the interface is an ordinary one (ip link show {interface}) and the limits of this process (ulimit -n)"
    )]
    Other {
        /// What was tried.
        step: &'static str,
        /// Where.
        interface: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl OpenError {
    /// What a failed step of opening on `interface` means.
    pub(crate) fn new(step: &'static str, interface: &str, megabytes: u64, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NoCapability { interface, program: program() },
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => Self::NoPacketSockets,
            Some(libc::ENOMEM | libc::ENOBUFS) => Self::Memory { interface, megabytes, source },
            _ => Self::Other { step, interface, source },
        }
    }
}

fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "tcptwin".into())
}

/// Why the role ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// What it should not have could not be given up.
    #[error("{0}")]
    Confine(Box<dyn std::error::Error + Send + Sync>),
    /// A ring handed down could not be mapped.
    #[error(
        "mapping the capture ring of {interface} failed: {source}. The supervisor and this role must be of one version"
    )]
    Map {
        /// Where.
        interface: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The simple engine could not begin.
    #[error("capturing on {interface} with the simple engine failed: {source}. Try --capture ring")]
    Simple {
        /// Where.
        interface: String,
        /// What it answered.
        source: io::Error,
    },
    /// Not built in.
    #[error(
        "this program was built without the xdp engine. The supervisor and this role must be of one version"
    )]
    NoXdp,
    /// The xdp engine could not begin.
    #[error(
        "going on with the AF_XDP sockets of {interface} failed: {source}. The supervisor and this role must be of one version"
    )]
    Xdp {
        /// Where.
        interface: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The recorder could not begin.
    #[error(
        "starting the recorder's thread failed: {0}. Are the limits on processes (ulimit -u) or memory reached?"
    )]
    Recorder(io::Error),
    /// Waiting for frames failed.
    #[error("waiting for frames failed: {0}. Is the limit of open files (ulimit -n) reached?")]
    Wait(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_names_the_commands() {
        let said =
            OpenError::new("opening", "eth0", 64, io::Error::from_raw_os_error(libc::EPERM)).to_string();
        let start = "opening a packet socket on eth0 needs CAP_NET_RAW. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep /";
        assert!(said.starts_with(start), "{said}");
    }
}
