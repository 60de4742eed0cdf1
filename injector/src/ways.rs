//! Follows the ways to all targets while the role runs: a thread of its own that sleeps until the kernel tells of a change of
//! devices, routes or neighbours, asks again, and hands what is new to the drain through a queue without locks.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::rtnl::{self, Rtnl};
use crate::way::{self, Choice, Way};

/// A way that became another.
#[derive(Clone, Copy, Debug)]
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
/// Changes waiting at most, for each target.
const QUEUE: usize = 4;

/// The follower.
struct Ways {
    targets: Vec<SocketAddr>,
    known: Vec<Result<Way, Choice>>,
    rtnl: Rtnl,
    news: Socket,
    changes: Producer<Change>,
}

/// Starts to follow. The first look is the thread's too: the kernel answers some of the questions under a lock that others may
/// hold for long, and a role that was just started again has packets to send.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn follow(targets: Vec<SocketAddr>) -> io::Result<Consumer<Change>> {
    let (mut changes, consumer) = RingBuffer::new(QUEUE * targets.len());
    std::thread::Builder::new().name("ways".to_owned()).spawn(move || match open() {
        Ok((rtnl, news)) => {
            let known = vec![Err(Choice::Unknown); targets.len()];
            Ways { targets, known, rtnl, news, changes }.run();
        }
        Err(error) => {
            tracing::warn!(
                "the ways to the targets cannot be followed ({error}): everything leaves by raw IP"
            );
            for target in 0..targets.len() as u16 {
                // There is room for several of each.
                let _ = changes.push(Change { target, way: Err(Choice::NoNetlink) });
            }
        }
    })?;
    Ok(consumer)
}

fn open() -> io::Result<(Rtnl, Socket)> {
    let groups = [&[rtnl::LINKS, rtnl::NEIGHBOURS][..], &rtnl::ROUTES].concat();
    // News first: what changes after the first look is heard.
    let news = rtnl::news(NETLINK_ROUTE, &groups)?;
    Ok((Rtnl::open()?, news))
}

impl Ways {
    /// Until the drain is gone.
    fn run(mut self) {
        let mut buffer = Vec::with_capacity(32 << 10);
        self.look();
        let mut looked = Instant::now();
        while !self.changes.is_abandoned() {
            let lost = self.known.iter().any(|way| matches!(way, Err(why) if why.may_pass()));
            let sleep = if lost { EAGER } else { CALM };
            self.wait(sleep.saturating_sub(looked.elapsed()));
            // Several changes that belong together come one by one.
            std::thread::sleep(PAUSE.saturating_sub(looked.elapsed()));
            let heard = rtnl::hear(&self.news, &mut buffer);
            if heard || looked.elapsed() >= sleep {
                self.look();
                looked = Instant::now();
            }
        }
    }

    fn wait(&self, sleep: Duration) {
        let ms = PollTimeout::try_from(sleep).unwrap_or(PollTimeout::MAX);
        // Whatever poll says, the look at the socket and the clock tells.
        let _ = poll(&mut [PollFd::new(self.news.as_fd(), PollFlags::POLLIN)], ms);
    }

    fn look(&mut self) {
        for (index, target) in self.targets.iter().enumerate() {
            let way = way::find(&self.rtnl, *target);
            if let Ok(way) = &way {
                way.keep_fresh(&self.rtnl);
            }
            let change = Change { target: index as u16, way };
            // A full queue empties with the drain's next turn; until then the old way stands, and this is tried again.
            if way != self.known[index] && self.changes.push(change).is_ok() {
                self.known[index] = way;
            }
        }
    }
}
