//! When replayed packets leave an online host, by the kernel's own time stamps at the port of the switch: what rates and halts
//! are held against.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::netlink;
use crate::network::{Host, Network};
use crate::outside::{SNAP, VNET, foreign_sources, v4};
use crate::sys::filtered_socket;

/// Notes under way.
pub struct Departures {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Departure>>>,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// CLOCK_REALTIME nanoseconds.
    pub time_ns: u64,
    /// Packets on a wire: a super-frame is several.
    pub packets: u64,
    /// Their bytes, from the IP headers on.
    pub bytes: u64,
    /// It begins a connection.
    pub syn: bool,
}

impl Departures {
    /// Notes what leaves this host under a source that is not its own, IPv4 and TCP.
    pub fn start(network: &Network, host: &Host) -> io::Result<Self> {
        let program = foreign_sources(v4(host.v4())?, None);
        let device = format!("to-{}", host.ns.name());
        let fd = network.switch.enter(move || filtered_socket(netlink::index(&device)?, &program))?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        // A second of many small frames, while this thread has no core.
        setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20))
            .or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &(16 << 20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("departures".to_owned()).spawn(move || note(&fd, &until))?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) -> io::Result<Vec<Departure>> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the noting thread panicked")))
    }
}

/// The most that `what` comes to in any `window_ns` of what was noted.
pub fn most_within(noted: &[Departure], window_ns: u64, what: impl Fn(&Departure) -> u64) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for one in noted {
        sum += what(one);
        while one.time_ns - noted[first].time_ns.min(one.time_ns) >= window_ns {
            sum -= what(&noted[first]);
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

fn note(fd: &OwnedFd, stop: &AtomicBool) -> io::Result<Vec<Departure>> {
    let mut noted = Vec::new();
    let mut frame = [0_u8; VNET + SNAP as usize];
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    loop {
        // What is there when it is told to stop is still noted.
        let last = stop.load(Relaxed);
        poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], 20_u8)?;
        loop {
            let mut parts = [IoSliceMut::new(&mut frame)];
            let message =
                match recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT) {
                    Ok(message) => message,
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => continue,
                    Err(errno) => return Err(errno.into()),
                };
            let time_ns = message.cmsgs()?.find_map(|one| match one {
                ControlMessageOwned::ScmTimestampns(at) => {
                    Some(at.tv_sec().cast_unsigned() * 1_000_000_000 + at.tv_nsec().cast_unsigned())
                }
                _ => None,
            });
            if let (Some(time_ns), Some(one)) = (time_ns, read(&frame)) {
                noted.push(Departure { time_ns, ..one });
            }
        }
        if last {
            noted.sort_by_key(|one| one.time_ns);
            return Ok(noted);
        }
    }
}

/// Size and flags out of the offload header (`virtio_net_hdr`: the size of a segment in bytes 4 and 5) and the headers.
fn read(frame: &[u8]) -> Option<Departure> {
    let half = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let ip = VNET + 14;
    let ip_header = u64::from(frame.get(ip)? & 15) * 4;
    let tcp = ip + ip_header as usize;
    let headers = ip_header + u64::from(frame.get(tcp + 12)? >> 4) * 4;
    let bytes = u64::from(half(ip + 2)?);
    let segment = u64::from(u16::from_ne_bytes(frame.get(4..6)?.try_into().ok()?));
    let packets = if segment == 0 { 1 } else { bytes.saturating_sub(headers).div_ceil(segment).max(1) };
    let syn = frame.get(tcp + 13)? & 2 != 0;
    Some(Departure { time_ns: 0, packets, bytes: bytes + (packets - 1) * headers, syn })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_slides_over_what_was_noted() {
        let at = |ms: u64| Departure { time_ns: ms * 1_000_000, packets: 1, bytes: 100, syn: false };
        let noted = [0, 50, 99, 100, 101, 300, 301].map(at);
        assert_eq!(most_within(&noted, 100_000_000, |one| one.packets), 4);
        assert_eq!(most_within(&noted, 2_000_000, |one| one.bytes), 200);
        assert_eq!(most_within(&[], 1, |one| one.packets), 0);
    }
}
