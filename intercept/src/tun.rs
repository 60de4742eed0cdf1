//! `--tun`: a device of its own on the target host takes the route of the replayed clients, so that answers end in it and
//! nowhere else: a black hole by construction, without a second machine. Device and routes vanish with this process.
//!
//! A TUN device takes no kernel filter; instead each packet is read with a buffer of header size, and the kernel cuts it
//! (a short read truncates). Super-frames arrive whole, with a `struct virtio_net_hdr` (virtio 1.2, 5.1.6) in front. Nor does
//! the kernel tell when it saw a packet: one that is found after a nap is taken to have come in its middle, which is wrong by
//! half a nap at most and right on average; any other to have come now.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use flow::Range;
use nix::net::if_::if_nametoindex;

use crate::icmp::wire_len_of;
use crate::netlink::Netlink;
use crate::options::TunOptions;
use crate::source::{Frame, Source, wall_clock_ns};
use crate::sys;

/// Headers from a TUN device.
pub(crate) struct TunSource {
    file: File,
    name: String,
    dropped: u64,
    /// Nobody has looked for so long before the next drain.
    unseen: Duration,
}

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// No device file.
    #[error(
        "--tun needs /dev/net/tun, which this host has not: {0}. Load it with `modprobe tun`; in a container, pass the device in"
    )]
    NoDevice(io::Error),
    /// Not allowed.
    #[error(
        "making the device {name} for --tun needs CAP_NET_ADMIN. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep TCPTWIN"
    )]
    NotAllowed {
        /// The device.
        name: String,
    },
    /// The name is taken.
    #[error(
        "the device {name} exists already, perhaps from another `tcptwin intercept --tun`. Stop that one first"
    )]
    Taken {
        /// The device.
        name: String,
    },
    /// A route exists.
    #[error(
        "{range} has a route of its own on this host already (`ip route show {range}`). Remove it, or choose other clients with -c"
    )]
    Routed {
        /// The range.
        range: Range,
    },
    /// Anything else.
    #[error("setting up the device {name} for --tun failed at {step}: {source}")]
    Failed {
        /// The device.
        name: String,
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Packets that wait in the device while intercept is busy: 20 ms at 200,000 a second.
const QUEUE: u32 = 4096;
/// Bytes of `struct virtio_net_hdr` without the field for merged buffers.
const VNET: usize = 10;
/// Bytes of packet read: the longest headers of an ICMPv6 error, and more.
const HEADERS: usize = 176;

impl TunSource {
    /// Makes the device, takes it up and routes the ranges to it.
    pub(crate) fn open(options: &TunOptions) -> Result<Self, TunError> {
        let name = options.name.clone();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TunError::NotAllowed { name: name.clone() },
                _ => TunError::NoDevice(source),
            })?;
        let failed = |step: &str| {
            let (name, step) = (name.clone(), step.to_owned());
            // Not EACCES: that is what a route of IPv6 gets where IPv6 is switched off.
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM) => TunError::NotAllowed { name },
                _ => TunError::Failed { name, step, source },
            }
        };
        let made = sys::make_tun(file.as_fd(), &name).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => TunError::Taken { name: name.clone() },
            _ => failed("creating it")(source),
        })?;
        sys::accept_super_frames(file.as_fd()).map_err(failed("accepting super-frames"))?;
        let index = if_nametoindex(made.as_str()).map_err(|e| failed("finding it")(e.into()))?;
        let mut netlink = Netlink::open().map_err(failed("opening a netlink socket"))?;
        netlink.up(index, QUEUE).map_err(failed("taking it up"))?;
        for range in &options.ranges {
            netlink.route(range, index).map_err(|source| match source.raw_os_error() {
                Some(libc::EEXIST) => TunError::Routed { range: *range },
                _ => failed(&format!("routing {range} to it"))(source),
            })?;
        }
        Ok(Self { file, name: made, dropped: 0, unseen: Duration::ZERO })
    }
}

impl Source for TunSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn drain(&mut self, budget: usize, each: &mut dyn FnMut(&Frame<'_>)) -> usize {
        let mut buffer = [0; VNET + HEADERS];
        let half = std::mem::take(&mut self.unseen) / 2;
        let (mut count, mut time_ns) = (0, 0);
        while count < budget {
            let n = match self.file.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Nothing more for now; a device that was taken down (EIO, EBADFD) gives nothing either.
                Err(_) => break,
            };
            if count == 0 {
                time_ns = wall_clock_ns().saturating_sub(half.as_nanos() as u64);
            }
            count += 1;
            let packet = buffer.get(VNET..n).unwrap_or_default();
            // Offset 1: kind of super-frame, 0 for none; offset 4: payload of each of its segments.
            let segment_size = if buffer[1] == 0 { 0 } else { u16::from_ne_bytes([buffer[4], buffer[5]]) };
            // Never less than what was read: the header is the target's own, but whoever forwards here may lie.
            let wire_len = wire_len_of(packet).unwrap_or(0).max(packet.len() as u32);
            each(&Frame { packet, wire_len, time_ns, segment_size });
        }
        count
    }

    fn napped(&mut self, nap: Duration) {
        self.unseen = nap;
    }

    fn tend(&mut self) -> u64 {
        // Small files of the device; where they cannot be read (another mount namespace), drops stay unknown.
        let path = format!("/sys/class/net/{}/statistics/tx_dropped", self.name);
        let dropped = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        let dropped: u64 = dropped.unwrap_or(self.dropped);
        dropped.saturating_sub(std::mem::replace(&mut self.dropped, dropped))
    }

    fn recover(&mut self) -> Option<io::Error> {
        None
    }

    fn name(&self) -> &str {
        &self.name
    }
}
