//! One intercept as the return receiver sees it: dialled, greeted, read; lost and dialled again, for ever.
//!
//! | state | goes on when | to |
//! |---|---|---|
//! | `Waiting` | the pause is over | `Connecting` |
//! | `Connecting` | the connection stands | `Up`, greeting queued |
//! | `Up`, not greeted | welcome | `Up`, greeted: records flow |
//! | any | refusal, silence of 3 s, end, error, bytes that make no sense | `Waiting` |
//!
//! Nothing here blocks. A quarter of the outage so far is the pause before the next dial, and no dial waits long for an
//! answer: an intercept that can be reached again is found within a second, however long it was away. One that speaks and
//! says no, or makes no sense, is asked again after up to 10 s.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use flow::Returned;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, socket, sockopt,
};
use returns::{Batch, Hello, Link, LinkError, Message, Policy, Position, Refused, Welcome};
use shm::Counters;

use crate::claims::{Claim, LiveClaims};
use crate::count::{InterceptCount, LinkState, ReturnCount, Trouble, intercept_index};
use crate::ears::Ear;
use crate::handshake::words;
use crate::sorter::Sorter;

/// What a peer works with and shares with the others.
pub(crate) struct Shared {
    pub(crate) epoll: Epoll,
    pub(crate) sorter: Sorter,
    pub(crate) counters: Counters,
    /// There when flows are claimed one by one.
    pub(crate) live: Option<LiveClaims>,
    /// There when the ways to the targets are probed.
    pub(crate) ear: Option<Ear>,
    /// A return ring is full: nothing is read until there is room.
    pub(crate) stalled: bool,
}

/// One intercept.
pub(crate) struct Peer {
    index: usize,
    at: SocketAddr,
    policy: Policy,
    hello: Hello,
    state: State,
    /// Where the stream of records stands.
    last: Option<Position>,
    /// When the outage began; kept over short-lived connections.
    lost_us: u64,
    /// Re-sending of live claims has come to here.
    claims_from: Option<usize>,
    /// The last trouble that was logged, so that an outage is one line.
    logged: Trouble,
    random: u64,
}

enum State {
    Waiting { until_us: u64 },
    Connecting { stream: TcpStream, since_us: u64 },
    Up(Box<Up>),
}

struct Up {
    stream: TcpStream,
    link: Link,
    greeted: bool,
    /// What intercept was told last of how answers are waited for.
    eager: bool,
    readable: bool,
    interest: EpollFlags,
    since_us: u64,
    heard_us: u64,
    pinged_us: u64,
}

/// Why a connection is given up.
struct Lost {
    trouble: Trouble,
    sentence: String,
}

const SECOND_US: u64 = 1_000_000;
/// Between pings.
const PING_US: u64 = SECOND_US;
/// Silence after which the other end is dead; also the time allowed to greet.
const SILENCE_US: u64 = 3 * SECOND_US;
/// Time allowed to connect: before the kernel would send a lost SYN again, and longer than any path between two hosts of
/// one site. With the pause it makes the second within which a path that is whole again is found.
const CONNECT_US: u64 = 600_000;
/// Shortest and longest pause between dials.
const PAUSE_US: (u64, u64) = (SECOND_US / 10, 10 * SECOND_US);
/// Longest pause while the other end is not there at all.
const AWAY_PAUSE_US: u64 = 300_000;
/// Records that an intercept may send once more after a reconnect: more than it keeps of a stream.
const REWIND: u64 = 1 << 16;
/// Reads of one connection in one turn, 64 KiB each: a fast intercept does not starve the others.
const READS: usize = 4;

impl Peer {
    pub(crate) fn new(
        index: usize,
        at: SocketAddr,
        policy: Policy,
        hello: Hello,
        shared: &Shared,
        now_us: u64,
    ) -> Self {
        let get = |count| shared.counters.get(intercept_index(index, count));
        // A predecessor's place in the stream; its connection goes on here, as far as intercept kept the records.
        let last = get(InterceptCount::Position)
            .checked_sub(1)
            .map(|last| Position { epoch: get(InterceptCount::Epoch), last });
        let random = (hello.instance ^ now_us ^ (index as u64) << 32) | 1;
        let peer = Self {
            index,
            at,
            policy,
            hello,
            state: State::Waiting { until_us: now_us },
            last,
            lost_us: now_us,
            claims_from: None,
            logged: Trouble::None,
            random,
        };
        peer.show(shared, LinkState::New, now_us);
        peer
    }

    /// When a pause ends, or the patience with a dial.
    pub(crate) fn wakes_us(&self) -> Option<u64> {
        match self.state {
            State::Waiting { until_us } => Some(until_us),
            State::Connecting { since_us, .. } => Some(since_us + CONNECT_US),
            State::Up(_) => None,
        }
    }

    /// What epoll said about this peer's socket.
    pub(crate) fn ready(&mut self, flags: EpollFlags) {
        if let State::Up(up) = &mut self.state {
            up.readable |=
                flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        }
    }

    /// Forwards a claim at once; when there is no room, all live ones are sent again later.
    pub(crate) fn claim(&mut self, claim: &Claim, shared: &Shared) {
        let State::Up(up) = &mut self.state else { return };
        if !up.greeted {
            return;
        }
        if up.link.outgoing().claim(&claim.client, &claim.target) {
            shared.counters.add(ReturnCount::Claims.index(), 1);
        } else {
            self.claims_from = Some(0);
        }
    }

    /// Tells intercept whether sessions can do nothing but wait for answers, when that is not what it was told.
    pub(crate) fn pace(&mut self, eager: bool) {
        if let State::Up(up) = &mut self.state
            && up.greeted
            && up.eager != eager
            && up.link.outgoing().pace(eager)
        {
            up.eager = eager;
        }
    }

    /// Does what can be done now without waiting.
    pub(crate) fn turn(&mut self, now_us: u64, shared: &mut Shared) {
        match self.step(now_us, shared) {
            Ok(()) => {}
            Err(lost) => self.lose(now_us, shared, &lost),
        }
    }

    /// Says farewell and closes.
    pub(crate) fn close(&mut self, sentence: &str) {
        if let State::Up(up) = &mut self.state
            && up.greeted
            && up.link.outgoing().bye(sentence)
        {
            // Best effort: a closed connection says the same.
            let _ = up.stream.write(up.link.pending());
        }
    }

    fn step(&mut self, now_us: u64, shared: &mut Shared) -> Result<(), Lost> {
        match &mut self.state {
            State::Waiting { until_us } if now_us >= *until_us => self.dial(now_us, shared),
            State::Waiting { .. } => Ok(()),
            State::Connecting { .. } => self.connected(now_us, shared),
            State::Up(_) => {
                self.read(now_us, shared)?;
                self.resend_claims(shared);
                self.speak(now_us, shared)
            }
        }
    }

    fn dial(&mut self, now_us: u64, shared: &Shared) -> Result<(), Lost> {
        let stream = start_dial(self.at)?;
        let interest = EpollEvent::new(EpollFlags::EPOLLOUT, self.index as u64);
        shared.epoll.add(stream.as_fd(), interest).map_err(io::Error::from)?;
        // Within an outage it stays shown as down, so that its length can be seen.
        let state = intercept_index(self.index, InterceptCount::State);
        if shared.counters.get(state) == LinkState::New.index() as u64 {
            self.show(shared, LinkState::Dialling, now_us);
        }
        self.state = State::Connecting { stream, since_us: now_us };
        Ok(())
    }

    fn connected(&mut self, now_us: u64, shared: &mut Shared) -> Result<(), Lost> {
        let State::Connecting { stream, since_us } = &self.state else { return Ok(()) };
        match getsockopt(stream, sockopt::SocketError).map_err(io::Error::from)? {
            0 if stream.peer_addr().is_ok() => {}
            0 if now_us - since_us >= CONNECT_US => {
                return Err(Lost::new(Trouble::TimedOut, "it does not answer"));
            }
            0 => return Ok(()),
            errno => return Err(io::Error::from_raw_os_error(errno).into()),
        }
        let State::Connecting { stream, .. } =
            std::mem::replace(&mut self.state, State::Waiting { until_us: now_us })
        else {
            return Ok(());
        };
        stream.set_nodelay(true)?;
        let hello = Hello { last: self.last, ..self.hello.clone() };
        let link = Link::dialer(self.policy, &hello, self.at).map_err(|e| Lost::link(&e))?;
        self.state = State::Up(Box::new(Up {
            stream,
            link,
            greeted: false,
            eager: false,
            readable: false,
            interest: EpollFlags::EPOLLOUT,
            since_us: now_us,
            heard_us: now_us,
            // At once: how long the channel takes is of use to the first probe.
            pinged_us: 0,
        }));
        self.speak(now_us, shared)
    }

    /// Takes messages while the return rings have room, and bytes while there are any.
    fn read(&mut self, now_us: u64, shared: &mut Shared) -> Result<(), Lost> {
        self.take_and_publish(now_us, shared)?;
        for _ in 0..READS {
            let State::Up(up) = &mut self.state else { return Ok(()) };
            if shared.stalled {
                // We do not listen, so silence means nothing.
                up.heard_us = now_us;
                return Ok(());
            }
            if !up.readable {
                break;
            }
            match up.stream.read(up.link.receive_buffer()) {
                Ok(0) => return Err(Lost::new(Trouble::Closed, "it closed the connection")),
                Ok(n) => {
                    up.link.received(n);
                    up.heard_us = now_us;
                    shared.counters.add(ReturnCount::Bytes.index(), n as u64);
                    self.take_and_publish(now_us, shared)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => up.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        match &self.state {
            State::Up(up) if now_us.saturating_sub(up.heard_us) > SILENCE_US => {
                Err(Lost::silence(if up.greeted { Trouble::Silent } else { Trouble::TimedOut }))
            }
            _ => Ok(()),
        }
    }

    fn take_and_publish(&mut self, now_us: u64, shared: &mut Shared) -> Result<(), Lost> {
        let taken = self.take_messages(now_us, shared);
        shared.sorter.publish();
        self.note_position(shared);
        taken
    }

    fn take_messages(&mut self, now_us: u64, shared: &mut Shared) -> Result<(), Lost> {
        loop {
            // Room for the largest batch first, then the message: a batch is never left half done.
            if !shared.sorter.has_room() {
                if !std::mem::replace(&mut shared.stalled, true) {
                    shared.counters.add(ReturnCount::RingFull.index(), 1);
                }
                return Ok(());
            }
            let State::Up(up) = &mut self.state else { return Ok(()) };
            let pong = match up.link.next().map_err(|e| Lost::link(&e))? {
                None => return Ok(()),
                Some(Message::Batch(batch)) => {
                    take_batch(&batch, self.index, &mut self.last, now_us, shared)?;
                    None
                }
                Some(Message::Gap { dropped, next }) => {
                    shared.counters.add(ReturnCount::Gaps.index(), dropped);
                    shared.counters.add(intercept_index(self.index, InterceptCount::Gaps), dropped);
                    if let (Some(last), Some(before)) = (&mut self.last, next.checked_sub(1)) {
                        last.last = last.last.max(before);
                    }
                    None
                }
                Some(Message::Welcome(welcome)) => {
                    self.greeted(&welcome, now_us, shared);
                    None
                }
                Some(Message::Refused(refused)) => return Err(self.refused(&refused, shared)),
                Some(Message::Ping(token)) => Some(token),
                Some(Message::Pong(token)) => {
                    let rtt_us = now_us.saturating_sub(token);
                    shared.counters.set(intercept_index(self.index, InterceptCount::RttUs), rtt_us);
                    None
                }
                Some(Message::Bye { sentence }) => {
                    return Err(Lost::new(Trouble::Closed, &format!("it said farewell: {sentence}")));
                }
                // The link lets neither of them through to a dialer.
                Some(Message::Hello(_) | Message::Claims(_) | Message::Pace { .. }) => None,
            };
            if let (Some(token), State::Up(up)) = (pong, &mut self.state) {
                // Without room the next of its pings is answered.
                up.link.outgoing().pong(token);
            }
        }
    }

    fn greeted(&mut self, welcome: &Welcome, now_us: u64, shared: &Shared) {
        let State::Up(up) = &mut self.state else { return };
        up.greeted = true;
        // Another start of intercept is another stream; so is one far below what we believe we had, which can only be what
        // a damaged region left us. Without this all of it would be taken for what came before.
        let goes_on =
            |last: &Position| last.epoch == welcome.epoch && welcome.next.saturating_add(REWIND) > last.last;
        if !self.last.as_ref().is_some_and(goes_on) {
            self.last = welcome.next.checked_sub(1).map(|last| Position { epoch: welcome.epoch, last });
        }
        // Claims made while the link was down are missing there, after its restart all are.
        self.claims_from = shared.live.is_some().then_some(0);
        self.logged = Trouble::None;
        shared.counters.add(intercept_index(self.index, InterceptCount::Connects), 1);
        tracing::info!("intercept {}: connected (version {})", self.at, welcome.software);
        self.show(shared, LinkState::Up, now_us);
    }

    fn refused(&mut self, refused: &Refused, shared: &Shared) -> Lost {
        let index = |count| intercept_index(self.index, count);
        shared.counters.add(index(InterceptCount::Refusals), 1);
        shared.counters.set(index(InterceptCount::LastRefusal), 1 + refused.code.index() as u64);
        let free = refused.suggestion.map(|range| format!("; free there: {range}")).unwrap_or_default();
        Lost::new(Trouble::Refused, &format!("it refuses this run: {}{free}", refused.sentence))
    }

    fn resend_claims(&mut self, shared: &Shared) {
        let (State::Up(up), Some(live)) = (&mut self.state, &shared.live) else { return };
        while up.greeted
            && let Some(from) = self.claims_from
        {
            match live.from(from) {
                None => self.claims_from = None,
                Some((claim, next)) => {
                    if !up.link.outgoing().claim(&claim.client, &claim.target) {
                        return;
                    }
                    self.claims_from = Some(next);
                    shared.counters.add(ReturnCount::ClaimsAgain.index(), 1);
                }
            }
        }
    }

    /// Pings when it is time, sends what is pending, and asks epoll for what is waited for.
    fn speak(&mut self, now_us: u64, shared: &Shared) -> Result<(), Lost> {
        let State::Up(up) = &mut self.state else { return Ok(()) };
        if up.greeted && now_us.saturating_sub(up.pinged_us) >= PING_US {
            up.pinged_us = now_us;
            // Without room something is on its way already, which is as good a sign of life.
            up.link.outgoing().ping(now_us);
        }
        up.link.outgoing().flush();
        while !up.link.pending().is_empty() {
            match up.stream.write(up.link.pending()) {
                Ok(n) => up.link.sent(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut interest = EpollFlags::EPOLLIN;
        interest.set(EpollFlags::EPOLLOUT, !up.link.pending().is_empty());
        if interest != up.interest {
            let mut event = EpollEvent::new(interest, self.index as u64);
            shared.epoll.modify(up.stream.as_fd(), &mut event).map_err(io::Error::from)?;
            up.interest = interest;
        }
        Ok(())
    }

    /// So that a successor of this process goes on where we are.
    fn note_position(&self, shared: &Shared) {
        if let Some(last) = self.last {
            shared.counters.set(intercept_index(self.index, InterceptCount::Epoch), last.epoch);
            shared
                .counters
                .set(intercept_index(self.index, InterceptCount::Position), last.last.wrapping_add(1));
        }
    }

    fn lose(&mut self, now_us: u64, shared: &Shared, lost: &Lost) {
        if let State::Up(up) = &mut self.state {
            // What is pending may be the verdict that tells the other end why.
            let _ = up.stream.write(up.link.pending());
            if up.greeted {
                shared.counters.add(intercept_index(self.index, InterceptCount::Disconnects), 1);
                if now_us - up.since_us > SECOND_US {
                    self.lost_us = now_us;
                }
            }
        }
        let garbage = matches!(lost.trouble, Trouble::Garbage | Trouble::NotTcptwin);
        shared.counters.add(intercept_index(self.index, InterceptCount::Faults), u64::from(garbage));
        shared
            .counters
            .set(intercept_index(self.index, InterceptCount::LastTrouble), lost.trouble.index() as u64);
        let pause_us = self.pause_us(now_us, lost.trouble);
        if self.logged != lost.trouble {
            self.logged = lost.trouble;
            tracing::warn!("intercept {}: {}; it is dialled again until it answers", self.at, lost.sentence);
        }
        // Dropping the stream takes it out of epoll.
        self.state = State::Waiting { until_us: now_us + pause_us };
        let shown = if lost.trouble == Trouble::Refused { LinkState::Refused } else { LinkState::Down };
        self.show(shared, shown, now_us);
    }

    /// A quarter of the outage, give or take a quarter of that, within the bounds.
    fn pause_us(&mut self, now_us: u64, trouble: Trouble) -> u64 {
        // xorshift64: jitter needs no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let (least, most) = match trouble {
            Trouble::Refused => (SECOND_US, PAUSE_US.1),
            Trouble::ConnectionRefused
            | Trouble::TimedOut
            | Trouble::Unreachable
            | Trouble::Silent
            | Trouble::Closed
            | Trouble::Io => (PAUSE_US.0, AWAY_PAUSE_US),
            _ => PAUSE_US,
        };
        let pause = (now_us.saturating_sub(self.lost_us) / 4).clamp(least, most);
        pause * 3 / 4 + self.random % (pause / 2)
    }

    fn show(&self, shared: &Shared, state: LinkState, now_us: u64) {
        let index = |count| intercept_index(self.index, count);
        let (counter, since) = (index(InterceptCount::State), index(InterceptCount::SinceMs));
        if shared.counters.get(counter) != state.index() as u64 || shared.counters.get(since) == 0 {
            shared.counters.set(since, now_us / 1_000);
        }
        shared.counters.set(counter, state.index() as u64);
    }

    /// Whether records flow.
    pub(crate) fn is_up(&self) -> bool {
        matches!(&self.state, State::Up(up) if up.greeted)
    }
}

/// Sorts the records of a batch into the rings, those that came before aside.
fn take_batch(
    batch: &Batch<'_>,
    index: usize,
    last: &mut Option<Position>,
    now_us: u64,
    shared: &mut Shared,
) -> Result<(), Lost> {
    let (mut headers, mut probes, mut duplicates, mut lost, mut evicted) = (0, 0, 0, 0, 0);
    let back_us = shared.counters.get(intercept_index(index, InterceptCount::RttUs)) / 2;
    let mut verdict = Ok(());
    for record in batch.records() {
        let record: Returned = match record {
            Ok(record) => record,
            Err(bad) => {
                verdict = Err(Lost::new(Trouble::Garbage, &format!("{bad}; the connection was closed")));
                break;
            }
        };
        if last.is_some_and(|last| last.epoch == batch.epoch && record.position <= last.last) {
            duplicates += 1;
            continue;
        }
        *last = Some(Position { epoch: batch.epoch, last: record.position });
        if let Some(ear) = &mut shared.ear
            && ear.hear(&record, now_us, back_us as u32)
        {
            probes += 1;
            continue;
        }
        headers += 1;
        lost += u64::from(!shared.sorter.put(&record));
        if let Some(live) = &mut shared.live {
            // What comes to us is ours: so a process that was started again learns its predecessor's claims.
            evicted += u64::from(live.insert(now_us, Claim { client: record.client, target: record.target }));
        }
    }
    let add = |count: ReturnCount, n| shared.counters.add(count.index(), n);
    add(ReturnCount::Headers, headers);
    add(ReturnCount::Duplicates, duplicates);
    add(ReturnCount::Lost, lost);
    add(ReturnCount::ClaimsEvicted, evicted);
    shared.counters.add(intercept_index(index, InterceptCount::Headers), headers + probes);
    verdict
}

fn start_dial(at: SocketAddr) -> io::Result<TcpStream> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(at)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(e) => Err(e.into()),
    }
}

impl Lost {
    fn new(trouble: Trouble, sentence: &str) -> Self {
        Self { trouble, sentence: sentence.to_owned() }
    }

    fn silence(trouble: Trouble) -> Self {
        Self::new(trouble, "no sign of life for 3 s")
    }

    fn link(error: &LinkError) -> Self {
        let trouble = match error {
            LinkError::NotTcptwin { .. } => Trouble::NotTcptwin,
            LinkError::Version { .. } => Trouble::Version,
            LinkError::Mode { .. } | LinkError::WrongKey { .. } => Trouble::Key,
            LinkError::Busy { .. } => Trouble::Busy,
            LinkError::Random { .. } => Trouble::Io,
            LinkError::FrameLength { .. }
            | LinkError::Altered { .. }
            | LinkError::Malformed { .. }
            | LinkError::Unexpected { .. } => Trouble::Garbage,
        };
        Self { trouble, sentence: error.to_string() }
    }
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        let trouble = match error.kind() {
            io::ErrorKind::ConnectionRefused => Trouble::ConnectionRefused,
            io::ErrorKind::TimedOut => Trouble::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Trouble::Unreachable,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Trouble::Closed,
            _ => Trouble::Io,
        };
        Self { trouble, sentence: words(&error) }
    }
}

impl From<Errno> for Lost {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

#[cfg(test)]
mod tests;
