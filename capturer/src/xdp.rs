//! The live source on AF_XDP, for the interface of a mirror port: frames are taken in front of the network stack, which sees none
//! of them any more. Built in with the feature `xdp`.
//!
//! The supervisor attaches the program, and with its descriptors keeps it attached while capturers come and go; the program goes
//! with the last of them, however that process ended. The sockets are the role's: while there is none, frames pass on to the
//! stack and are missing here, counted as [`crate::Count::Opened`].
//!
//! Frames are cut by nobody: one longer than a chunk (3,840 bytes) is dropped by the kernel, and counted.

use topology::Plan;

use crate::error::{OpenError, RoleError};
use crate::interfaces::Interface;
use crate::open::CaptureSocket;
use crate::source::Source;

/// Descriptors of one interface, in this order: the map of sockets, the attached program, and a packet socket that keeps the
/// interface promiscuous.
#[cfg(feature = "xdp")]
const KEPT: usize = 3;

/// Attaches the program to each interface.
///
/// # Errors
/// An interface that carries the host's own traffic, unless forced; a kernel or device that cannot; not built in.
#[cfg(not(feature = "xdp"))]
pub(crate) fn open(_: &Plan, _: &[Option<&Interface>]) -> Result<Vec<CaptureSocket>, OpenError> {
    Err(OpenError::NoXdp)
}

/// The source on what [`open`] made.
///
/// # Errors
/// A socket could not be made.
#[cfg(not(feature = "xdp"))]
pub(crate) fn source(_: &Plan, _: Vec<CaptureSocket>) -> Result<Box<dyn Source>, RoleError> {
    Err(RoleError::NoXdp)
}

#[cfg(feature = "xdp")]
pub(crate) use there::{open, source};

#[cfg(feature = "xdp")]
mod there {
    use std::io;
    use std::net::IpAddr;
    use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use trace::link::kind;

    use super::{CaptureSocket, Interface, KEPT, OpenError, Plan, RoleError, Source};
    use crate::interfaces;
    use crate::source::{Frame, Links};
    use crate::sys::xdp::{Program, Queue, XskMap};
    use crate::sys::{Begin, PacketSocket, mtu};
    use crate::watch::{State, Watch};

    /// Sockets of one interface at most: one for each receive queue.
    const MAX_QUEUES: u32 = 64;

    pub(crate) fn open(plan: &Plan, wanted: &[Option<&Interface>]) -> Result<Vec<CaptureSocket>, OpenError> {
        let mut kept = vec![];
        for interface in wanted.iter().copied().flatten() {
            if !plan.capture.xdp_force
                && let Some(why) = carries(interface)
            {
                return Err(OpenError::Carries { interface: interface.name.clone(), why });
            }
            kept.extend(open_on(interface)?.map(|fd| CaptureSocket::from(PacketSocket::from(fd))));
        }
        Ok(kept)
    }

    fn open_on(interface: &Interface) -> Result<[OwnedFd; KEPT], OpenError> {
        let failed = |step| move |source| OpenError::Xdp { step, interface: interface.name.clone(), source };
        let map = XskMap::new(MAX_QUEUES).map_err(failed("making a map of sockets for"))?;
        let program = Program::load(&map).map_err(failed("loading the program for"))?;
        let link = program.attach(interface.index).map_err(failed("attaching the program to"))?;
        // A mirror port's frames are addressed to others.
        let promiscuous = PacketSocket::open(Begin::Network)
            .and_then(|socket| socket.promiscuous(interface.index).map(|()| socket))
            .map_err(failed("asking for everybody's frames on"))?;
        Ok([map.into(), link, promiscuous.into()])
    }

    /// Why taking everything away from this interface would cut the host off.
    fn carries(interface: &Interface) -> Option<String> {
        if interface.loopback {
            return Some("it is the loopback interface".to_owned());
        }
        // Every interface that is up has a link-local address of its own in IPv6.
        let local = |ip: IpAddr| match ip {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if let Some((ip, _)) = interface.addresses.iter().find(|(ip, _)| !local(*ip)) {
            return Some(format!("it has the address {ip}"));
        }
        if has_default_route(&interface.name) {
            return Some("the default route leads through it".to_owned());
        }
        let above = std::fs::read_dir(format!("/sys/class/net/{}", interface.name)).ok()?;
        above
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find_map(|name| name.strip_prefix("upper_").map(|upper| format!("{upper} is on top of it")))
    }

    /// From the kernel's tables of this network namespace.
    fn has_default_route(interface: &str) -> bool {
        let table =
            |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        // Interface, destination, …, mask in the eighth column.
        let v4 = table("route").lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            matches!(columns[..], [name, "00000000", _, _, _, _, _, "00000000", ..] if name == interface)
        });
        // Destination, its prefix length, …, interface in the last column.
        let v6 = table("ipv6_route").lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            matches!(columns[..], [to, "00", .., name] if name == interface && to.bytes().all(|b| b == b'0'))
            // Unreachable routes of every namespace are spelt like that too, on lo, which was asked before.
        });
        v4 || v6
    }

    pub(crate) fn source(plan: &Plan, sockets: Vec<CaptureSocket>) -> Result<Box<dyn Source>, RoleError> {
        let mut source = Xdp { interfaces: vec![], turn: 0, opened: 0 };
        let mut sockets = sockets.into_iter();
        for name in &plan.capture.interfaces {
            // The program and the promiscuous mode are the supervisor's to keep: a second holder would keep them too long.
            let (Some(map), Some(_), Some(_)) = (sockets.next(), sockets.next(), sockets.next()) else {
                break;
            };
            let map = XskMap::from(OwnedFd::from(PacketSocket::from(map)));
            // Removed before this role began: reported as gone.
            let found = interfaces::find(name);
            let queues = found.as_ref().map_or(Ok(vec![]), |found| {
                queues(found, plan.capture.buffer_bytes, &map)
                    .map_err(|source| RoleError::Xdp { interface: name.clone(), source })
            })?;
            source.opened += u64::from(!queues.is_empty());
            source.interfaces.push(Watched {
                // No interface has the index 0.
                watch: Watch::new(name.clone(), Some(found.map_or(0, |found| found.index))),
                mtu: mtu(name).unwrap_or(u32::MAX),
                map,
                queues,
            });
        }
        Ok(Box::new(source))
    }

    /// A socket for each receive queue of the interface, all of them in the map.
    fn queues(interface: &Interface, bytes: u64, map: &XskMap) -> io::Result<Vec<Queue>> {
        let count = Queue::count(interface.index)?.clamp(1, MAX_QUEUES);
        let mut queues = vec![];
        for number in 0..count {
            match patiently(|| Queue::open(interface.index, number, bytes / u64::from(count))) {
                Ok(queue) => {
                    map.put(number, queue.as_fd())?;
                    queues.push(queue);
                }
                // The device could have more queues than are in use.
                Err(error) if number > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(queues)
    }

    /// The kernel gives a queue free a little after its last socket was closed.
    fn patiently(open: impl Fn() -> io::Result<Queue>) -> io::Result<Queue> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let until = Instant::now() + PATIENCE;
        loop {
            match open() {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return opened,
            }
        }
    }

    struct Xdp {
        interfaces: Vec<Watched>,
        turn: usize,
        opened: u64,
    }

    struct Watched {
        watch: Watch,
        map: XskMap,
        queues: Vec<Queue>,
        /// Packets longer than this were several: in front of a virtual device's stack they are still one.
        mtu: u32,
    }

    impl Source for Xdp {
        fn drain(&mut self, max: u32, sink: &mut dyn FnMut(&Frame<'_>)) -> u32 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // The socket has no time stamps: a batch is seen when it is read.
            let time_ns = now.as_nanos() as u64;
            let count = self.interfaces.len();
            let mut taken = 0;
            for i in 0..count {
                let Watched { queues, mtu, .. } = &mut self.interfaces[(self.turn + i) % count];
                for queue in queues {
                    taken += queue.read(max - taken, |frame| {
                        let len = frame.len() as u32;
                        if let Some(frame) = Frame::behind(kind::ETHERNET, frame, len, time_ns, *mtu) {
                            sink(&frame);
                        }
                    });
                }
            }
            self.turn = (self.turn + 1) % count.max(1);
            taken
        }

        fn release(&mut self) {
            self.interfaces.iter_mut().flat_map(|one| &mut one.queues).for_each(Queue::release);
        }

        fn positions(&self, _note: &mut dyn FnMut(u16, u64)) {}

        fn fds(&self) -> Vec<BorrowedFd<'_>> {
            self.interfaces.iter().flat_map(|one| &one.queues).map(|queue| queue.as_fd()).collect()
        }

        fn take_dropped(&mut self) -> u64 {
            self.interfaces.iter_mut().flat_map(|one| &mut one.queues).map(Queue::take_dropped).sum()
        }

        fn take_opened(&mut self) -> u64 {
            std::mem::take(&mut self.opened)
        }

        fn attend(&mut self) -> Links {
            let states: Vec<State> = self.interfaces.iter_mut().map(|one| one.watch.look()).collect();
            let count = |wanted| states.iter().filter(|&&state| state == wanted).count() as u64;
            let downs = self.interfaces.iter().map(|one| one.watch.downs()).sum();
            Links { downs, down: count(State::Down), gone: count(State::Gone) }
        }

        fn relocate(&mut self) {}

        /// Without sockets in the map the program lets everything pass; what the sockets hold is still read.
        fn close(&mut self) {
            for one in &self.interfaces {
                for queue in 0..one.queues.len() as u32 {
                    if let Err(error) = one.map.remove(queue) {
                        tracing::warn!("ending the capture on {} failed: {error}", one.watch.name());
                    }
                }
            }
        }

        fn reopen(&mut self) {
            for one in &self.interfaces {
                for (number, queue) in (0..).zip(&one.queues) {
                    if let Err(error) = one.map.put(number, queue.as_fd()) {
                        tracing::warn!("capturing on {} again failed: {error}", one.watch.name());
                    }
                }
            }
        }
    }
}
