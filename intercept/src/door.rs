//! The link thread: who comes in. It accepts, shakes hands, decides about hellos and reads what peers send (claims, signs
//! of life); everything that is sent after the welcome is the capture thread's. Strangers, slow hands and floods are bounded
//! here and never reach the thread that forwards.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use returns::{Hello, Incoming, Link, LinkError, Message, Mode, Policy, Refused};
use rtrb::Producer;
use shm::monotonic_ms;
use tracing::{info, warn};

use crate::MAX_PEERS;
use crate::command::{Attach, Bell, COMMANDS, Command};
use crate::guide::Guide;
use crate::limiter::Limiter;
use crate::listen::plain_addr;
use crate::options::Limits;
use crate::owners::{Admitted, Registry};
use crate::stats::{Door as Count, PeerAbout, Stats};
use crate::window::Window;

/// Everything the thread works with.
pub(crate) struct Door {
    listeners: Vec<TcpListener>,
    registry: Registry,
    commands: Producer<Command>,
    bell: Arc<Bell>,
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    limits: Limits,
    key: Option<[u8; 32]>,
    plain: bool,
    software: String,
    guide: Guide,
    log: Limiter,
    pending: Vec<Pending>,
    peers: [Option<Peer>; MAX_PEERS],
    connections: u64,
    /// No accepting before this time: there were no file descriptors left.
    shut_until_ms: u64,
}

/// A connection before its hello, or one that only waits to be closed.
struct Pending {
    stream: TcpStream,
    link: Link,
    addr: SocketAddr,
    since_ms: u64,
    until_ms: u64,
    /// The last word was said; what still comes is thrown away until the other end closes too. Closing at once could
    /// reset the connection and take the last word away from the other end.
    closing: bool,
}

/// A connection after its hello was accepted: the reading half.
struct Peer {
    stream: Arc<TcpStream>,
    incoming: Incoming,
    name: String,
    addr: SocketAddr,
    tenure: u32,
    connection: u64,
    heard_ms: u64,
    asked_ms: u64,
}

/// What came of reading from a pending connection.
enum Step {
    Wait,
    Hello(Hello),
    Close,
}

/// What ended a connection.
enum End {
    Closed,
    Farewell,
    Silent,
    Violation(LinkError),
}

/// Accepted in one round, so that a flood of connections does not keep peers waiting.
const ACCEPTS: usize = 32;
/// Reads from one peer in one round.
const READS: usize = 4;
/// Commands that one read can lead to: claims of 36 bytes in a buffer of 64 KiB.
const COMMANDS_PER_READ: usize = 2048;
/// Pending connections of one address at most: half of all, so that one host cannot shut out the others.
const fn per_address(pending: usize) -> usize {
    if pending > 1 { pending / 2 } else { 1 }
}
/// A handshake this old gives way to any new one when there are too many: an honest one takes two round trips.
const YIELDS_MS: u64 = 500;
/// Time that the other end gets to read our last word.
const LINGER_MS: u64 = 1_000;
/// A peer that was silent for this long is asked for a sign of life.
const ASK_MS: u64 = 1_000;
/// The longest sleep: stop is noticed that late.
const LONGEST_SLEEP_MS: u64 = 200;

/// What the link thread is made of, apart from its own state.
pub(crate) struct Parts {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) registry: Registry,
    pub(crate) commands: Producer<Command>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) limits: Limits,
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) plain: bool,
    pub(crate) software: String,
    pub(crate) guide: Guide,
}

impl Door {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { listeners, registry, commands, bell, stats, stop, limits, key, plain, software, guide } =
            parts;
        Self {
            listeners,
            registry,
            commands,
            bell,
            stats,
            stop,
            limits,
            key,
            plain,
            software,
            guide,
            log: Limiter::new(),
            pending: Vec::with_capacity(limits.pending),
            peers: [const { None }; MAX_PEERS],
            connections: 0,
            shut_until_ms: 0,
        }
    }

    /// Works until told to stop.
    pub(crate) fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let ready = self.wait();
            let now_ms = monotonic_ms();
            if ready.listener && now_ms >= self.shut_until_ms {
                self.accept(now_ms);
            }
            self.serve_pending(now_ms);
            for slot in 0..MAX_PEERS {
                if ready.peers & (1 << slot) != 0 {
                    self.read_peer(now_ms, slot);
                }
            }
            self.look_after(now_ms);
            self.stats.count_door(Count::Turns);
        }
    }

    fn wait(&self) -> Ready {
        let starved = self.commands.slots() < COMMANDS_PER_READ;
        let sleep_ms = match (starved, self.pending.is_empty()) {
            (true, _) => 1,
            (false, false) => 50,
            (false, true) => LONGEST_SLEEP_MS,
        };
        let open = monotonic_ms() >= self.shut_until_ms;
        let mut fds: Vec<PollFd<'_>> =
            Vec::with_capacity(self.listeners.len() + self.pending.len() + MAX_PEERS);
        let listeners = if open { &self.listeners[..] } else { &[] };
        fds.extend(listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.pending.iter().map(|p| PollFd::new(p.stream.as_fd(), PollFlags::POLLIN)));
        let first_peer = fds.len();
        let slots: Vec<usize> = (0..MAX_PEERS).filter(|&s| !starved && self.peers[s].is_some()).collect();
        let streams = slots.iter().filter_map(|&s| self.peers[s].as_ref());
        fds.extend(streams.map(|p| PollFd::new(p.stream.as_fd(), PollFlags::POLLIN)));
        let timeout = PollTimeout::from(sleep_ms as u8);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                warn!("waiting for peers failed: {error}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        let reported = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        let listener = fds[..listeners.len()].iter().any(reported);
        let peers = slots.iter().zip(&fds[first_peer..]).filter(|(_, fd)| reported(fd));
        Ready { listener, peers: peers.fold(0, |bits, (slot, _)| bits | 1 << slot) }
    }

    fn accept(&mut self, now_ms: u64) {
        let mut turned_away = Vec::new();
        'listeners: for listener in &self.listeners {
            for _ in 0..ACCEPTS {
                match listener.accept() {
                    Ok((stream, addr)) => {
                        self.stats.count_door(Count::Accepted);
                        turned_away.push((stream, plain_addr(addr)));
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    // The connection was gone before we took it.
                    Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                    Err(error) => {
                        self.stats.count_door(Count::AcceptErrors);
                        self.shut_until_ms = now_ms + 100;
                        self.log.warn(now_ms, "accept", || format!("accepting a connection failed: {error}"));
                        break 'listeners;
                    }
                }
            }
        }
        for (stream, addr) in turned_away {
            self.receive(now_ms, stream, addr);
        }
    }

    /// Makes an accepted connection a pending one, if there is room.
    fn receive(&mut self, now_ms: u64, mut stream: TcpStream, addr: SocketAddr) {
        if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
            return;
        }
        if !self.make_room(now_ms, addr.ip()) {
            self.stats.count_door(Count::Busy);
            let _ = stream.write(&returns::busy());
            return;
        }
        let local = stream.local_addr().map(plain_addr);
        let loopback = addr.ip().is_loopback() && local.is_ok_and(|l| l.ip().is_loopback());
        let policy = Policy::choose(self.key, self.plain, loopback).unwrap_or(Policy::Unwilling);
        self.pending.push(Pending {
            stream,
            link: Link::listener(policy, addr),
            addr,
            since_ms: now_ms,
            until_ms: now_ms + self.limits.handshake.as_millis() as u64,
            closing: false,
        });
    }

    fn make_room(&mut self, now_ms: u64, ip: IpAddr) -> bool {
        let of = |ip: IpAddr| self.pending.iter().filter(|p| p.addr.ip() == ip).count();
        let same = of(ip);
        let crowded = same >= per_address(self.limits.pending);
        if !crowded && self.pending.len() < self.limits.pending {
            return true;
        }
        let yields = |p: &Pending| {
            p.closing
                || now_ms.saturating_sub(p.since_ms) >= YIELDS_MS
                // Whoever floods from a few addresses gives way to everybody else at once.
                || !crowded && of(p.addr.ip()) > same + 1
        };
        let others = self.pending.iter().enumerate().filter(|(_, p)| !crowded || p.addr.ip() == ip);
        let oldest = others.filter(|(_, p)| yields(p)).min_by_key(|(_, p)| (!p.closing, p.since_ms));
        let Some((index, _)) = oldest else { return false };
        if !self.pending.swap_remove(index).closing {
            self.stats.count_door(Count::Slow);
        }
        true
    }

    /// Goes on with all handshakes; there are few.
    fn serve_pending(&mut self, now_ms: u64) {
        let mut index = 0;
        while index < self.pending.len() {
            let pending = &mut self.pending[index];
            let step = if pending.closing { throw_away(pending) } else { self.shake_hands(now_ms, index) };
            let pending = &mut self.pending[index];
            match step {
                Step::Hello(hello) => {
                    let pending = self.pending.swap_remove(index);
                    self.decide(now_ms, pending, hello);
                }
                Step::Close => {
                    self.pending.swap_remove(index);
                }
                Step::Wait if now_ms >= pending.until_ms => {
                    if !pending.closing {
                        self.stats.count_door(Count::Slow);
                    }
                    self.pending.swap_remove(index);
                }
                Step::Wait => index += 1,
            }
        }
    }

    /// Reads what came of a handshake, goes on with it, and writes what it says.
    fn shake_hands(&mut self, now_ms: u64, index: usize) -> Step {
        let pending = &mut self.pending[index];
        match pending.stream.read(pending.link.receive_buffer()) {
            Ok(0) => {
                self.stats.count_door(Count::Left);
                return Step::Close;
            }
            Ok(n) => pending.link.received(n),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Step::Wait;
            }
            Err(_) => {
                self.stats.count_door(Count::Left);
                return Step::Close;
            }
        }
        let result = match pending.link.next() {
            Ok(Some(Message::Hello(hello))) => Ok(Some(hello)),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        };
        let wrote = pending.stream.write(pending.link.pending());
        pending.link.sent(wrote.unwrap_or(0));
        match result {
            Ok(Some(hello)) => Step::Hello(hello),
            Ok(None) => Step::Wait,
            Err(error) => {
                self.stats.count_bad(error.reason());
                self.log
                    .warn(now_ms, error.reason().name(), || format!("a connection was turned away: {error}"));
                begin_closing(now_ms, pending);
                Step::Wait
            }
        }
    }

    /// Lets an instance in, or refuses it.
    fn decide(&mut self, now_ms: u64, pending: Pending, hello: Hello) {
        self.connections += 1;
        match self.registry.admit(now_ms, &hello, self.connections) {
            Ok(admitted) => self.welcome(now_ms, pending, hello, admitted),
            Err(refused) => self.refuse(now_ms, pending, &hello, &refused),
        }
    }

    fn refuse(&mut self, now_ms: u64, mut pending: Pending, hello: &Hello, refused: &Refused) {
        self.stats.count_refused(refused.code);
        let (name, addr) = (&hello.name, pending.addr);
        self.log.warn(now_ms, refused.code.name(), || {
            format!("`{name}` at {addr} was refused: {}", refused.sentence)
        });
        pending.link.outgoing().refuse(refused);
        let wrote = pending.stream.write(pending.link.pending());
        pending.link.sent(wrote.unwrap_or(0));
        begin_closing(now_ms, &mut pending);
        self.pending.push(pending);
    }

    fn welcome(&mut self, now_ms: u64, pending: Pending, hello: Hello, admitted: Admitted) {
        let Admitted { slot, tenure, fresh, replaced, forgotten } = admitted;
        let (addr, encrypted) = (pending.addr, pending.link.is_encrypted());
        let Some((incoming, outgoing)) = pending.link.split() else { return };
        for slot in forgotten {
            self.forget(slot);
        }
        if replaced.is_some()
            && let Some(old) = self.peers[slot].take()
        {
            self.stats.count_door(Count::Replaced);
            let _ = old.stream.shutdown(Shutdown::Both);
        }
        self.stats.count_door(Count::Welcomed);
        let ranges = match &hello.mode {
            Mode::Ranges(ranges) => ranges.clone(),
            Mode::Claims => Vec::new(),
        };
        let clients = match ranges.as_slice() {
            [] => "their real addresses".to_owned(),
            some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        info!(
            "`{}` at {addr} {} (version {}, {}), clients as {clients}",
            hello.name,
            if fresh { "connected" } else { "reconnected" },
            hello.software,
            if encrypted { "encrypted" } else { "plain" },
        );
        self.guide.owner(&ranges);
        self.stats.set_about(
            slot,
            Some(PeerAbout {
                name: hello.name.clone(),
                instance: hello.instance,
                addr,
                software: hello.software,
                clients,
                encrypted,
                connected: true,
            }),
        );
        let stream = Arc::new(pending.stream);
        let connection = self.connections;
        self.tell(Command::Attach(Box::new(Attach {
            slot,
            tenure,
            connection,
            stream: stream.clone(),
            outgoing,
            ranges,
            fresh: fresh.then(|| Window::new(self.limits.window)),
            last: hello.last,
            software: self.software.clone(),
        })));
        let (name, heard_ms, asked_ms) = (hello.name, now_ms, now_ms);
        self.peers[slot] =
            Some(Peer { stream, incoming, name, addr, tenure, connection, heard_ms, asked_ms });
        // Claims may have come right behind the hello.
        self.read_peer(now_ms, slot);
    }

    /// Takes what a peer sent.
    fn read_peer(&mut self, now_ms: u64, slot: usize) {
        let Some(mut peer) = self.peers[slot].take() else { return };
        let mut end = None;
        for _ in 0..READS {
            if self.commands.slots() < COMMANDS_PER_READ {
                break;
            }
            if let Err(error) = self.take_messages(slot, &mut peer) {
                end = Some(error);
                break;
            }
            match (&*peer.stream).read(peer.incoming.receive_buffer()) {
                Ok(0) => {
                    end = Some(End::Closed);
                    break;
                }
                Ok(n) => {
                    peer.incoming.received(n);
                    peer.heard_ms = now_ms;
                    if let Err(error) = self.take_messages(slot, &mut peer) {
                        end = Some(error);
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    end = Some(End::Closed);
                    break;
                }
            }
        }
        match end {
            None => self.peers[slot] = Some(peer),
            Some(end) => self.part(now_ms, slot, &peer, &end),
        }
    }

    /// Takes the complete messages of a peer. Of several pings at once the last is answered, of several paces the last is kept.
    fn take_messages(&mut self, slot: usize, peer: &mut Peer) -> Result<(), End> {
        let (slot, mut claims, mut ping, mut pace) = (slot as u8, 0, None, None);
        let result = loop {
            match peer.incoming.next() {
                Ok(Some(Message::Claims(batch))) => {
                    for (client, target) in batch.iter() {
                        let claim = Command::Claim { slot, tenure: peer.tenure, client, target };
                        claims += usize::from(self.commands.push(claim).is_ok());
                    }
                }
                Ok(Some(Message::Ping(token))) => ping = Some(token),
                Ok(Some(Message::Pace { eager })) => pace = Some(eager),
                Ok(Some(Message::Bye { .. })) => break Err(End::Farewell),
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(End::Violation(error)),
            }
        };
        if self.commands.slots() < COMMANDS / 2 {
            self.bell.ring();
        } else if claims > 0 {
            self.bell.ring_for_claims();
        }
        if let Some(eager) = pace {
            self.tell(Command::Pace { slot, connection: peer.connection, eager });
        }
        if let Some(token) = ping {
            self.tell(Command::Pong { slot, connection: peer.connection, token });
        }
        result
    }

    /// A connection is over.
    fn part(&mut self, now_ms: u64, slot: usize, peer: &Peer, end: &End) {
        let _ = peer.stream.shutdown(Shutdown::Both);
        let (name, addr) = (&peer.name, peer.addr);
        match end {
            End::Closed | End::Farewell => {
                self.stats.count_door(Count::Gone);
                self.log.info(now_ms, "gone", || format!("`{name}` at {addr} closed its connection"));
            }
            End::Silent => {
                self.stats.count_door(Count::Silent);
                let s = self.limits.silence.as_secs_f32();
                self.log
                    .warn(now_ms, "silent", || format!("`{name}` at {addr} gave no sign of life for {s} s"));
            }
            End::Violation(error) => {
                self.stats.count_door(Count::Violations);
                self.log.warn(now_ms, "violation", || format!("`{name}`: {error}"));
            }
        }
        self.registry.left(now_ms, slot, peer.connection, matches!(end, End::Farewell));
        self.stats.set_connected(slot, false);
        self.tell(Command::Detach { slot: slot as u8, connection: peer.connection });
    }

    /// Asks silent peers, parts from dead ones, forgets those that stayed away, gives advice again where it is due.
    fn look_after(&mut self, now_ms: u64) {
        let silence_ms = self.limits.silence.as_millis() as u64;
        for slot in 0..MAX_PEERS {
            let Some(peer) = &mut self.peers[slot] else { continue };
            if now_ms.saturating_sub(peer.heard_ms) >= silence_ms {
                let peer = self.peers[slot].take().expect("looked at above");
                self.part(now_ms, slot, &peer, &End::Silent);
            } else if now_ms.saturating_sub(peer.heard_ms.max(peer.asked_ms)) >= ASK_MS {
                peer.asked_ms = now_ms;
                let (connection, token) = (peer.connection, now_ms);
                self.tell(Command::Ping { slot: slot as u8, connection, token });
            }
        }
        for slot in self.registry.expire(now_ms) {
            self.forget(slot);
        }
        self.log.flush(now_ms);
    }

    fn forget(&mut self, slot: usize) {
        self.stats.count_door(Count::Forgotten);
        self.stats.set_about(slot, None);
        self.tell(Command::Forget { slot: slot as u8 });
    }

    /// Gives the capture thread a command that is no claim. The ring has room for these: reading stops long before it
    /// is full, and the capture thread empties it at every frame and every ring of the bell.
    fn tell(&mut self, command: Command) {
        let mut command = command;
        loop {
            match self.commands.push(command) {
                Ok(()) => break,
                Err(rtrb::PushError::Full(back)) => {
                    if self.stop.load(Ordering::Relaxed) || self.commands.is_abandoned() {
                        return;
                    }
                    command = back;
                    self.bell.ring();
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        }
        self.bell.ring();
    }
}

struct Ready {
    listener: bool,
    /// Slots, as bits.
    peers: u64,
}

fn begin_closing(now_ms: u64, pending: &mut Pending) {
    let _ = pending.stream.shutdown(Shutdown::Write);
    (pending.closing, pending.until_ms) = (true, now_ms + LINGER_MS);
}

/// Reads and forgets what a connection that is being closed still sends.
fn throw_away(pending: &mut Pending) -> Step {
    let mut waste = [0; 4096];
    for _ in 0..READS {
        match pending.stream.read(&mut waste) {
            Ok(0) => return Step::Close,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
            Err(_) => return Step::Close,
        }
    }
    Step::Wait
}
