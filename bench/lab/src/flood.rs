//! SYNs from addresses that nobody has, as many as asked for or as this machine can make: a flood at a service.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, MsgFlags, MultiHeaders, sendmmsg};

use crate::cores::stay_on_one_core;
use crate::namespace::Namespace;
use crate::netlink;
use crate::network::Host;
use crate::outside::v4;
use crate::sys::sending_socket;

/// A flood under way.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    begun: Instant,
    thread: JoinHandle<io::Result<()>>,
}

/// Sources: shared address space (RFC 6598), which no host of the lab has a route to, so that nobody answers them.
const SOURCES: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const SOURCE_BITS: u32 = 22;
/// The same in words of nft.
pub const FROM_NOBODY: &str = "ip saddr 100.64.0.0/10";
/// Frames handed to the kernel at once.
const BATCH: usize = 64;
/// Ethernet, IPv4 and TCP without options.
const FRAME: usize = 14 + 20 + 20;
const PAUSE: Duration = Duration::from_micros(100);

/// A wire of its own to a host: what comes by it comes from nobody's switch, and costs what frames from a network card cost.
pub struct Hose {
    ns: Namespace,
}

/// The device at the host's end of it.
pub const HOSE: &str = "eth1";

impl Hose {
    /// Plugs it in.
    pub fn plug(to: &Host) -> io::Result<Self> {
        let (ns, peer) = (Namespace::new("hose")?, to.ns.fd().as_raw_fd());
        ns.enter(move || {
            netlink::add_veth("eth0", HOSE, peer)?;
            netlink::set_up("eth0", true)
        })?;
        to.ns.enter(|| netlink::set_up(HOSE, true))?;
        Ok(Self { ns })
    }

    /// Sends SYNs to a service of that host, from one core, as a network card's interrupts come to one: what the kernel does with a
    /// frame on its way in is done there, too.
    pub fn flood(&self, to: &Host, port: u16, rate: u64, time: Duration) -> io::Result<Flood> {
        Flood::over(&self.ns, to, HOSE, port, rate, time, stay_on_one_core)
    }
}

impl Flood {
    /// Sends SYNs from one host to a service of another, `rate` a second, for `time` at most.
    pub fn start(from: &Host, to: &Host, port: u16, rate: u64, time: Duration) -> io::Result<Self> {
        Self::over(&from.ns, to, "eth0", port, rate, time, || Ok(()))
    }

    /// Out of the device `eth0`, into a device of the host.
    fn over(
        from: &Namespace,
        to: &Host,
        device: &'static str,
        port: u16,
        rate: u64,
        time: Duration,
        begin: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let theirs = to.ns.enter(move || link_address(device))?;
        let service = SocketAddr::new(to.v4(), port);
        let (socket, ours) = from.enter(|| -> io::Result<_> {
            Ok((sending_socket(netlink::index("eth0")?)?, link_address("eth0")?))
        })?;
        let frame = template(theirs, ours, v4(service.ip())?, port);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count, begun) = (Arc::clone(&stop), Arc::clone(&sent), Instant::now());
        let thread = std::thread::Builder::new().name("flood".to_owned()).spawn(move || {
            begin()?;
            while !until.load(Relaxed) && begun.elapsed() < time {
                let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
                match due.saturating_sub(count.load(Relaxed)) {
                    0 => std::thread::sleep(PAUSE),
                    due => {
                        let sent = send(&socket, &frame, count.load(Relaxed), (due as usize).min(BATCH))?;
                        count.fetch_add(sent, Relaxed);
                    }
                }
            }
            Ok(())
        })?;
        Ok(Self { stop, sent, begun, thread })
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Ends it; frames sent, and how long it took.
    pub fn stop(self) -> io::Result<(u64, Duration)> {
        self.stop.store(true, Relaxed);
        let took = self.begun.elapsed();
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the flooding thread panicked")))?;
        Ok((self.sent.load(Relaxed), took))
    }
}

/// Sends the frames from number `first` on; how many the kernel took.
fn send(socket: &OwnedFd, template: &[u8; FRAME], first: u64, count: usize) -> io::Result<u64> {
    let mut frames = [*template; BATCH];
    for (frame, number) in frames[..count].iter_mut().zip(first..) {
        number_frame(frame, number);
    }
    let parts: Vec<[IoSlice<'_>; 1]> = frames[..count].iter().map(|frame| [IoSlice::new(frame)]).collect();
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(count, None);
    let nowhere = vec![None; count];
    match sendmmsg(socket.as_raw_fd(), &mut headers, &parts, &nowhere, [], MsgFlags::empty()) {
        Ok(sent) => Ok(sent.count() as u64),
        // The device is full: a flood does not mind.
        Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

fn link_address(device: &str) -> io::Result<[u8; 6]> {
    let found = getifaddrs()?
        .find_map(|one| (one.interface_name == device).then(|| one.address?.as_link_addr()?.addr()));
    found.flatten().ok_or_else(|| io::Error::other(format!("{device} has no link address")))
}

/// A frame without source, port, numbers and checksums.
fn template(theirs: [u8; 6], ours: [u8; 6], to: Ipv4Addr, port: u16) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&theirs);
    frame[6..12].copy_from_slice(&ours);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..34];
    (ip[0], ip[3], ip[8], ip[9]) = (0x45, 40, 64, 6);
    ip[16..].copy_from_slice(&to.octets());
    let tcp = &mut frame[34..];
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    // Twenty bytes of header, SYN, a window.
    (tcp[12], tcp[13], tcp[14]) = (0x50, 2, 0xff);
    frame
}

/// Makes the SYN of this number of it.
fn number_frame(frame: &mut [u8; FRAME], number: u64) {
    // A multiplication by an odd number visits every address before it comes back to one.
    let mixed = (number as u32).wrapping_mul(0x9e37_79b1);
    let source = SOURCES.to_bits() | mixed >> (32 - SOURCE_BITS);
    let port = 1_024 + (number >> SOURCE_BITS) as u16 % 60_000;
    frame[26..30].copy_from_slice(&source.to_be_bytes());
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[38..42].copy_from_slice(&mixed.to_be_bytes());
    let checksum = sum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    // The pseudo header: addresses, protocol, length.
    let pseudo: u32 = frame[26..34].chunks_exact(2).map(word).sum::<u32>() + 6 + 20;
    let checksum = sum(&frame[34..], pseudo);
    frame[50..52].copy_from_slice(&checksum.to_be_bytes());
}

/// The Internet checksum (RFC 1071) of bytes whose own field is zero.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start + bytes.chunks_exact(2).map(word).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn word(pair: &[u8]) -> u32 {
    u32::from(pair[0]) << 8 | u32::from(pair[1])
}
