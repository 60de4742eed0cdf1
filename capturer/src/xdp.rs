//! The live source on AF_XDP, for the interface of a mirror port: frames are taken in front of the network stack, which sees none
//! of them any more. Built in with the feature `xdp`.
//!
//! The supervisor attaches the program and binds the sockets, and with their descriptors keeps all of it while capturers come and
//! go: the kernel goes on filling the rings, and a successor begins where its predecessor stopped. Program and sockets go with the
//! last of these descriptors, however that process ended.
//!
//! Frames are cut by nobody: one longer than a chunk (3,840 bytes) is dropped by the kernel, and counted.

use std::io;
use std::os::fd::OwnedFd;

use topology::Plan;

use crate::error::{OpenError, RoleError};
use crate::interfaces::Interface;
use crate::open::CaptureSocket;
use crate::source::Source;

/// Attaches the program to each interface, and binds a socket to each of its queues.
///
/// # Errors
/// An interface that carries the host's own traffic, unless forced; a kernel or device that cannot; not built in.
#[cfg(not(feature = "xdp"))]
pub(crate) fn open(_: &Plan, _: &[Option<&Interface>]) -> Result<Vec<CaptureSocket>, OpenError> {
    Err(OpenError::NoXdp)
}

/// Takes over what [`open`] made under another supervisor, for the same interfaces. What was closed is open then.
///
/// # Errors
/// It is on other interfaces, or incomplete.
#[cfg(not(feature = "xdp"))]
pub(crate) fn take_over(_: &[Option<&Interface>], _: Vec<OwnedFd>) -> Result<Vec<CaptureSocket>, OpenError> {
    Err(OpenError::NoXdp)
}

/// Lets the frames of all queues pass on to the stack.
///
/// # Errors
/// The first of those that go on; the others are closed all the same.
#[cfg(not(feature = "xdp"))]
pub(crate) fn deafen(_: &[CaptureSocket]) -> io::Result<()> {
    Ok(())
}

/// The source on what [`open`] made. `position` gives the number of the next frame of each queue, counted through all interfaces.
///
/// # Errors
/// It is not what it should be.
#[cfg(not(feature = "xdp"))]
pub(crate) fn source(
    _: &Plan,
    _: Vec<CaptureSocket>,
    _: impl Fn(u16) -> u64,
) -> Result<Box<dyn Source>, RoleError> {
    Err(RoleError::NoXdp)
}

#[cfg(feature = "xdp")]
pub(crate) use there::{deafen, open, source, take_over};

#[cfg(feature = "xdp")]
mod there {
    use std::net::IpAddr;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use trace::link::kind;

    use super::{CaptureSocket, Interface, OpenError, OwnedFd, Plan, RoleError, Source, io};
    use crate::count::MAX_RINGS;
    use crate::source::{Frame, Links};
    use crate::sys::xdp::{Program, Queue, XskMap, attached_to, is_queue, queues_of};
    use crate::sys::{Begin, PacketSocket, mtu};
    use crate::watch::{State, Watch};

    /// Sockets of one interface at most: one for each receive queue.
    const MAX_QUEUES: u32 = 64;

    /// Descriptors of one interface, in this order. How many queues it has is told by what they are.
    struct Held<F> {
        map: XskMap<F>,
        /// The attached program.
        link: F,
        /// A packet socket that keeps the interface promiscuous.
        promiscuous: F,
        /// The socket of each queue, and its memory.
        queues: Vec<[F; 2]>,
    }

    impl<F: AsFd> Held<F> {
        /// Those of each interface; what is no whole one at the end is left out.
        fn each(descriptors: impl IntoIterator<Item = F>) -> Vec<Self> {
            let mut descriptors = descriptors.into_iter().peekable();
            let mut all = vec![];
            while let (Some(map), Some(link), Some(promiscuous)) =
                (descriptors.next(), descriptors.next(), descriptors.next())
            {
                let mut queues = vec![];
                while let Some(socket) = descriptors.next_if(|next| is_queue(next.as_fd()))
                    && let Some(memory) = descriptors.next()
                {
                    queues.push([socket, memory]);
                }
                all.push(Self { map: XskMap(map), link, promiscuous, queues });
            }
            all
        }

        fn into_descriptors(self) -> impl Iterator<Item = F> {
            [self.map.0, self.link, self.promiscuous].into_iter().chain(self.queues.into_iter().flatten())
        }

        /// The frames of all queues go to their sockets.
        fn begin(&self) -> io::Result<()> {
            (0..).zip(&self.queues).try_for_each(|(number, [socket, _])| self.map.put(number, socket.as_fd()))
        }
    }

    pub(crate) fn open(plan: &Plan, wanted: &[Option<&Interface>]) -> Result<Vec<CaptureSocket>, OpenError> {
        let mut all = vec![];
        for interface in wanted.iter().copied().flatten() {
            if !plan.capture.xdp_force
                && let Some(why) = carries(interface)
            {
                return Err(OpenError::Carries { interface: interface.name.clone(), why });
            }
            all.push(open_on(interface, plan.capture.buffer_bytes)?);
        }
        let queues: usize = all.iter().map(|held| held.queues.len()).sum();
        if queues > MAX_RINGS {
            return Err(OpenError::TooMany { count: queues, max: MAX_RINGS });
        }
        Ok(sockets(all))
    }

    fn sockets(all: Vec<Held<OwnedFd>>) -> Vec<CaptureSocket> {
        let each = all.into_iter().flat_map(Held::into_descriptors);
        each.map(|fd| CaptureSocket::from(PacketSocket::from(fd))).collect()
    }

    fn open_on(interface: &Interface, bytes: u64) -> Result<Held<OwnedFd>, OpenError> {
        let failed = |step| move |source| OpenError::Xdp { step, interface: interface.name.clone(), source };
        let map = XskMap::new(MAX_QUEUES).map_err(failed("making a map of sockets for"))?;
        let program = Program::load(&map).map_err(failed("loading the program for"))?;
        let link = program.attach(interface.index).map_err(failed("attaching the program to"))?;
        // A mirror port's frames are addressed to others.
        let promiscuous = PacketSocket::open(Begin::Network)
            .and_then(|socket| socket.promiscuous(interface.index).map(|()| socket))
            .map_err(failed("asking for everybody's frames on"))?;
        let count = queues_of(&interface.name).map_err(failed("counting the queues of"))?.min(MAX_QUEUES);
        let queues = (0..count)
            .map(|number| patiently(|| Queue::open(interface.index, number, bytes / u64::from(count))))
            .collect::<io::Result<_>>()
            .map_err(failed("binding to the queues of"))?;
        let held = Held { map, link, promiscuous: promiscuous.into(), queues };
        held.begin().map_err(failed("capturing on"))?;
        Ok(held)
    }

    /// The kernel gives a queue free a little after its last socket was closed.
    fn patiently<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
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

    pub(crate) fn take_over(
        wanted: &[Option<&Interface>],
        descriptors: Vec<OwnedFd>,
    ) -> Result<Vec<CaptureSocket>, OpenError> {
        let (got, all) = (descriptors.len(), Held::each(descriptors));
        if all.len() != wanted.len() || all.iter().any(|held| held.queues.is_empty()) {
            return Err(OpenError::Sockets { wanted: wanted.len(), got });
        }
        for (place, (held, wanted)) in all.iter().zip(wanted).enumerate() {
            let failed = |source| OpenError::Kept { place, source };
            let at = attached_to(held.link.as_fd()).map_err(failed)?;
            if wanted.is_none_or(|wanted| wanted.index != at) {
                return Err(failed(io::Error::other("its program is on another interface")));
            }
            // Its capturer had begun to drain.
            held.begin().map_err(failed)?;
        }
        Ok(sockets(all))
    }

    pub(crate) fn deafen(sockets: &[CaptureSocket]) -> io::Result<()> {
        let end = |held: &Held<BorrowedFd<'_>>| {
            (0..held.queues.len() as u32).map(|queue| held.map.remove(queue)).fold(Ok(()), io::Result::and)
        };
        Held::each(sockets.iter().map(AsFd::as_fd)).iter().map(end).fold(Ok(()), io::Result::and)
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

    pub(crate) fn source(
        plan: &Plan,
        sockets: Vec<CaptureSocket>,
        position: impl Fn(u16) -> u64,
    ) -> Result<Box<dyn Source>, RoleError> {
        let mut source = Xdp { interfaces: vec![], turn: 0 };
        let mut first = 0;
        let descriptors = sockets.into_iter().map(|socket| OwnedFd::from(PacketSocket::from(socket)));
        for (name, held) in plan.capture.interfaces.iter().zip(Held::each(descriptors)) {
            // Program and promiscuous mode are the supervisor's to keep: a second holder would keep them too long.
            let Held { map, link, queues, .. } = held;
            let failed = |source| RoleError::Xdp { interface: name.clone(), source };
            // Removed before this role began, it has the number that no interface has.
            let index = attached_to(link.as_fd()).map_err(failed)?;
            let next = first + queues.len() as u16;
            let take = |(ring, [socket, memory]): (u16, [OwnedFd; 2])| {
                Queue::take(socket, memory, position(ring) as u32)
            };
            let queues = if index == 0 { vec![] } else { queues };
            source.interfaces.push(Watched {
                watch: Watch::new(name.clone(), Some(index)),
                mtu: mtu(name).unwrap_or(u32::MAX),
                map,
                queues: (first..).zip(queues).map(take).collect::<io::Result<_>>().map_err(failed)?,
                first,
            });
            first = next;
        }
        Ok(Box::new(source))
    }

    struct Xdp {
        interfaces: Vec<Watched>,
        turn: usize,
    }

    struct Watched {
        watch: Watch,
        map: XskMap<OwnedFd>,
        queues: Vec<Queue>,
        /// Number of the first queue.
        first: u16,
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

        fn positions(&self, note: &mut dyn FnMut(u16, u64)) {
            let rings = self.interfaces.iter().flat_map(|one| (one.first..).zip(&one.queues));
            rings.for_each(|(ring, queue)| note(ring, queue.position().into()));
        }

        fn fds(&self) -> Vec<BorrowedFd<'_>> {
            self.interfaces.iter().flat_map(|one| &one.queues).map(|queue| queue.as_fd()).collect()
        }

        fn take_dropped(&mut self) -> u64 {
            self.interfaces.iter_mut().flat_map(|one| &mut one.queues).map(Queue::take_dropped).sum()
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
