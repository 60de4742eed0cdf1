//! The ways to all targets while the run lasts: followed by the supervisor, told to the role.
//!
//! ```text
//! supervisor                                                           injector
//! Lookout ─ thread `ways`: the kernel's news → questions → what is new ── socket ─▶ thread `ways` ── queue without locks ─▶ drain
//! ```
//!
//! The kernel answers some of the questions, and keeps neighbours fresh, for who may administer the network (CAP_NET_ADMIN: IPsec's
//! policies, NTF_USE), and takes that together with the right to change everything about it. The role that reads answers from outside
//! has no business with that, and not even with netlink: it is told. A role that was just started is told at once what is known,
//! so that it need not ask under locks that others may hold for long while packets wait.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, getsockopt, recv, send, socketpair, sockopt,
};
use rtrb::{Consumer, Producer, RingBuffer};
use topology::Plan;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cut::SuperFrames;
use crate::rtnl::{self, Rtnl};
use crate::way::{self, Choice, ETHERNET, Way};

/// A way that became another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Whose.
    pub(crate) target: u16,
    /// What it is now.
    pub(crate) way: Result<Way, Choice>,
}

/// Between two rounds of questions: a busy router's host hears of changes all the time.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest sleep when all is well. Neighbours are kept fresh then, and path MTUs, of which there is no news, asked for.
const CALM: Duration = Duration::from_secs(5);
/// The same while some target has no way.
const EAGER: Duration = Duration::from_millis(500);
/// Changes waiting at most in the role, for each target.
const QUEUE: usize = 4;
/// Between tries to put a change into a full queue: it empties with the drain's next turn.
const FULL: Duration = Duration::from_millis(10);

/// Follows the ways in a thread of its own, as long as this value lives.
#[derive(Debug)]
pub struct Lookout {
    ends: Option<Sender<OwnedFd>>,
    bell: Arc<EventFd>,
}

/// The thread.
struct Watcher {
    targets: Vec<SocketAddr>,
    known: Vec<Result<Way, Choice>>,
    /// Which of them the role has been told.
    told: Vec<bool>,
    rtnl: Rtnl,
    news: Socket,
    ends: Receiver<OwnedFd>,
    bell: Arc<EventFd>,
    /// To the role that was started last.
    end: Option<OwnedFd>,
}

impl Lookout {
    /// Starts to follow the ways to the targets of this plan, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// There is no netlink, or no thread to be had.
    pub fn start(plan: &Plan) -> io::Result<Self> {
        let targets: Vec<SocketAddr> = plan.targets.iter().map(|target| target.addr).collect();
        let groups = [&[rtnl::LINKS, rtnl::NEIGHBOURS][..], &rtnl::ROUTES].concat();
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (tell, ends) = channel();
        let watcher = Watcher {
            known: vec![Err(Choice::Unknown); targets.len()],
            told: vec![false; targets.len()],
            targets,
            // News first: what changes after the first look is heard.
            news: rtnl::news(NETLINK_ROUTE, &groups)?,
            rtnl: Rtnl::open()?,
            ends,
            bell: Arc::clone(&bell),
            end: None,
        };
        std::thread::Builder::new().name("ways".to_owned()).spawn(move || watcher.run())?;
        Ok(Self { ends: Some(tell), bell })
    }

    /// The end at which a role hears of the ways; whoever had one before hears no more.
    ///
    /// # Errors
    /// The limit of open files.
    pub fn attach(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // Both fail only where the thread is gone: nobody tells anything then, and all leaves by raw IP.
        let _ = self.ends.as_ref().map(|ends| ends.send(ours));
        let _ = self.bell.write(1);
        Ok(theirs)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.ends = None;
        // A counter that is full wakes as well.
        let _ = self.bell.write(1);
    }
}

impl Watcher {
    fn run(mut self) {
        let mut buffer = Vec::with_capacity(32 << 10);
        self.look();
        let mut looked = Instant::now();
        while self.take_ends() {
            self.tell();
            let lost = self.known.iter().any(|way| matches!(way, Err(why) if why.may_pass()));
            let sleep = if lost { EAGER } else { CALM };
            let mut heard = self.wait(sleep.saturating_sub(looked.elapsed()));
            if heard {
                // Several changes that belong together come one by one.
                std::thread::sleep(PAUSE.saturating_sub(looked.elapsed()));
                heard = rtnl::hear(&self.news, &mut buffer);
            }
            if heard || looked.elapsed() >= sleep {
                self.look();
                looked = Instant::now();
            }
        }
    }

    /// Sleeps until there is news, or a new role; whether it was news.
    fn wait(&self, sleep: Duration) -> bool {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(self.news.as_fd()), readable(self.bell.as_fd())];
        // Whatever poll says, the looks at socket, channel and clock tell.
        let _ = poll(&mut fds, PollTimeout::try_from(sleep).unwrap_or(PollTimeout::MAX));
        fds[0].any().unwrap_or(false)
    }

    /// False when nobody wants to know any more.
    fn take_ends(&mut self) -> bool {
        // Empty is as good.
        let _ = self.bell.read();
        loop {
            match self.ends.try_recv() {
                Ok(end) => {
                    self.end = Some(end);
                    self.told.fill(false);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn look(&mut self) {
        for (index, target) in self.targets.iter().enumerate() {
            let way = way::find(&self.rtnl, *target);
            if let Ok(way) = &way {
                way.keep_fresh(&self.rtnl);
            }
            if way != self.known[index] {
                self.known[index] = way;
                self.told[index] = false;
            }
        }
    }

    /// Says what the role does not know yet. What its socket has no room for is said next time.
    fn tell(&mut self) {
        let Some(end) = &self.end else { return };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        for (index, way) in self.known.iter().enumerate().filter(|(_, way)| **way != Err(Choice::Unknown)) {
            if self.told[index] {
                continue;
            }
            let word = Word::from(&Change { target: index as u16, way: *way });
            match send(end.as_raw_fd(), word.as_bytes(), flags) {
                Ok(_) => self.told[index] = true,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => return,
                // It died; its successor brings another.
                Err(_) => {
                    self.end = None;
                    return;
                }
            }
        }
    }
}

/// Hears, in the role, what a [`Lookout`] tells: a thread that sleeps until there is something.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn listen(end: OwnedFd, targets: usize) -> io::Result<Consumer<Change>> {
    let (changes, consumer) = RingBuffer::new(QUEUE * targets);
    std::thread::Builder::new().name("ways".to_owned()).spawn(move || hear(&end, changes))?;
    Ok(consumer)
}

/// Until the drain or the supervisor is gone. After an upgrade the supervisor's end is: the ways stay as they are for the
/// moment until this role is replaced too.
fn hear(end: &OwnedFd, mut changes: Producer<Change>) {
    let mut bytes = [0; size_of::<Word>()];
    while !changes.is_abandoned() {
        match recv(end.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(len) if len == bytes.len() => {
                let Some(change) = Word::read_from_bytes(&bytes).ok().and_then(|word| word.change()) else {
                    continue;
                };
                while changes.push(change).is_err() && !changes.is_abandoned() {
                    std::thread::sleep(FULL);
                }
            }
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// Whether a descriptor is such an end.
pub(crate) fn check(fd: BorrowedFd<'_>) -> io::Result<()> {
    if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket of whole messages"));
    }
    Ok(())
}

/// A change as it crosses the socket; both ends are of one program.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Word {
    device: u32,
    target: u16,
    mtu: u16,
    protocol: u16,
    /// Of a super-frame.
    bytes: u16,
    segments: u16,
    head: [u8; ETHERNET],
    head_len: u16,
    /// [`Choice::Link`] where there is a way, else why there is none.
    choice: u16,
}

impl From<&Change> for Word {
    fn from(change: &Change) -> Self {
        let target = change.target;
        let none = Self {
            device: 0,
            target,
            mtu: 0,
            protocol: 0,
            bytes: 0,
            segments: 0,
            head: [0; ETHERNET],
            head_len: 0,
            choice: 0,
        };
        match &change.way {
            Err(why) => Self { choice: why.index() as u16, ..none },
            Ok(way) => {
                let mut word = Self {
                    device: way.device,
                    mtu: way.mtu,
                    protocol: way.protocol,
                    bytes: way.super_frames.bytes,
                    segments: way.super_frames.segments,
                    head_len: way.head().len() as u16,
                    choice: Choice::Link.index() as u16,
                    ..none
                };
                word.head[..way.head().len()].copy_from_slice(way.head());
                word
            }
        }
    }
}

impl Word {
    fn change(&self) -> Option<Change> {
        let Self { device, target, mtu, protocol, bytes, segments, head, head_len, choice } = *self;
        let way = match *Choice::ALL.get(usize::from(choice))? {
            Choice::Link => {
                let head = head.get(..usize::from(head_len))?;
                Ok(Way::told(device, mtu, head, protocol, SuperFrames { bytes, segments }))
            }
            why => Err(why),
        };
        Some(Change { target, way })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_crosses_the_socket_as_it_was() {
        let super_frames = SuperFrames { bytes: 65_000, segments: 40 };
        let way = Way::told(3, 1_500, &[7; ETHERNET], 0x86dd, super_frames);
        for way in [Ok(way), Ok(Way::told(9, 1_400, &[], 0x0800, SuperFrames::default())), Err(Choice::Ipsec)]
        {
            let change = Change { target: 5, way };
            assert_eq!(Word::from(&change).change(), Some(change));
        }
        let word = Word::from(&Change { target: 5, way: Ok(way) });
        assert_eq!(Word { head_len: 15, ..word }.change(), None);
        assert_eq!(Word { choice: u16::MAX, ..word }.change(), None);
    }

    #[test]
    fn each_role_is_told_all_from_the_begin() {
        let plan = crate::testing::plan(&["127.0.0.1:80", "127.0.0.1:81"]);
        let lookout = Lookout::start(&plan).unwrap();
        for _ in 0..2 {
            let mut changes = listen(lookout.attach().unwrap(), 2).unwrap();
            let start = Instant::now();
            for target in 0..2 {
                let change = loop {
                    if let Ok(change) = changes.pop() {
                        break change;
                    }
                    assert!(start.elapsed() < Duration::from_secs(10), "nobody told");
                    std::thread::sleep(Duration::from_millis(1));
                };
                assert_eq!(change, Change { target, way: Err(Choice::ThisHost) });
            }
        }
    }
}
