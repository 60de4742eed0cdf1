//! What the tests of the link side share: a source of made-up answers, an intercept on loopback, a dialer.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flow::record::flag;
use flow::{Addr, Endpoint, Returned, Seq, TcpFields};
use nix::sys::eventfd::{EfdFlags, EventFd};
use returns::{Hello, Link, LinkError, Message, Mode, Policy, Position, Refused, Welcome};

use crate::options::{InterceptError, Options, Summary};
use crate::run::Intercept;
use crate::source::{Frame, Source};
use crate::stats::Stats;

pub(crate) const TARGET: &str = "10.0.3.2:8080";

pub(crate) fn target() -> Endpoint {
    TARGET.parse::<SocketAddr>().unwrap().into()
}

/// Answers put in by a test.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Inner>);

struct Inner {
    packets: Mutex<VecDeque<Vec<u8>>>,
    event: EventFd,
}

impl Feed {
    pub(crate) fn new() -> Self {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
        Self(Arc::new(Inner { packets: Mutex::default(), event }))
    }

    /// An answer of the target to a client, recognisable by its sequence number.
    pub(crate) fn answer(&self, client: Endpoint, seq: u32) {
        self.answer_from(target(), client, seq);
    }

    pub(crate) fn answer_from(&self, target: Endpoint, client: Endpoint, seq: u32) {
        let tcp = TcpFields { seq: Seq(seq), flags: flag::ACK, ..TcpFields::default() };
        let mut headers = [0; flow::emit::MAX_HEADERS];
        let len = flow::emit::emit(&mut headers, target, client, &tcp, &[], 0);
        self.packet(headers[..len].to_vec());
    }

    pub(crate) fn packet(&self, packet: Vec<u8>) {
        self.0.packets.lock().unwrap().push_back(packet);
        self.0.event.write(1).unwrap();
    }

    /// Waits until everything was taken.
    pub(crate) fn drained(&self) {
        until("the capture takes what was fed", || self.0.packets.lock().unwrap().is_empty());
    }
}

impl Source for Feed {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    fn drain(&mut self, budget: usize, each: &mut dyn FnMut(&Frame<'_>)) -> usize {
        let mut packets = self.0.packets.lock().unwrap();
        let count = budget.min(packets.len());
        for packet in packets.drain(..count) {
            each(&Frame { packet: &packet, wire_len: packet.len() as u32, time_ns: 1, segment_size: 0 });
        }
        if packets.is_empty() {
            let _ = self.0.event.read();
        }
        count
    }

    fn tend(&mut self) -> u64 {
        0
    }

    fn recover(&mut self) -> Option<io::Error> {
        None
    }

    fn name(&self) -> &str {
        "a test"
    }
}

/// An intercept on loopback with answers from a [`Feed`].
pub(crate) struct Running {
    pub(crate) feed: Feed,
    pub(crate) addr: SocketAddr,
    pub(crate) stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Summary, InterceptError>>>,
}

impl Running {
    pub(crate) fn new(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new(vec![TARGET.parse().unwrap()]);
        options.listen = vec!["127.0.0.1:0".parse().unwrap()];
        change(&mut options);
        let (feed, stats, stop) = (Feed::new(), options.stats.clone(), Arc::new(AtomicBool::new(false)));
        let intercept = Intercept::with_sources(options, vec![Box::new(feed.clone())]).unwrap();
        let addr = intercept.listening()[0];
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || intercept.run(stop)
        });
        Self { feed, addr, stats, stop, thread: Some(thread) }
    }

    pub(crate) fn stop(mut self) -> Summary {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks until it is so; fails after ten seconds, which a loaded machine needs.
pub(crate) fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ask() {
        assert!(start.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn client(range: u8, n: u16) -> Endpoint {
    Endpoint::new(Addr::v4([198, 18, range * 16, 1]), n)
}

pub(crate) fn hello(instance: u64, mode: Mode) -> Hello {
    Hello {
        software: "0.1.0".to_owned(),
        instance,
        incarnation: 1,
        name: format!("run-{instance}"),
        mode,
        targets: vec![target()],
        last: None,
    }
}

/// The `n`-th /20 of the usual range.
pub(crate) fn part(n: u8) -> Mode {
    Mode::Ranges(vec![format!("198.18.{}.0/20", n * 16).parse().unwrap()])
}

/// A receiver: the dialer's end over a real socket.
pub(crate) struct Dialer {
    pub(crate) stream: TcpStream,
    pub(crate) link: Link,
    pub(crate) welcome: Option<Welcome>,
    pub(crate) refused: Option<Refused>,
    pub(crate) error: Option<LinkError>,
    pub(crate) seqs: Vec<u32>,
    pub(crate) records: Vec<Returned>,
    pub(crate) gap: u64,
    pub(crate) pongs: Vec<u64>,
    pub(crate) closed: bool,
    pub(crate) last: u64,
}

impl Dialer {
    pub(crate) fn dial(addr: SocketAddr, policy: Policy, hello: &Hello) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nonblocking(true).unwrap();
        let link = Link::dialer(policy, hello, addr).unwrap();
        Self {
            stream,
            link,
            welcome: None,
            refused: None,
            error: None,
            seqs: Vec::new(),
            records: Vec::new(),
            gap: 0,
            pongs: Vec::new(),
            closed: false,
            last: 0,
        }
    }

    /// A plain one that is welcome.
    pub(crate) fn welcome(running: &Running, hello: &Hello) -> Self {
        let mut dialer = Self::dial(running.addr, Policy::PlainLocal, hello);
        dialer.until("a welcome", |d| d.welcome.is_some());
        dialer
    }

    /// One step: write, read, understand.
    pub(crate) fn turn(&mut self) {
        self.link.outgoing().flush();
        match self.stream.write(self.link.pending()) {
            Ok(n) => self.link.sent(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
        match self.stream.read(self.link.receive_buffer()) {
            Ok(0) => self.closed = true,
            Ok(n) => self.link.received(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
        loop {
            match self.link.next() {
                Ok(Some(Message::Welcome(welcome))) => self.welcome = Some(welcome),
                Ok(Some(Message::Refused(refused))) => self.refused = Some(refused),
                Ok(Some(Message::Batch(batch))) => {
                    for record in batch.records() {
                        let record = record.unwrap();
                        self.last = record.position;
                        self.seqs.push(record.tcp.seq.0);
                        self.records.push(record);
                    }
                }
                Ok(Some(Message::Gap { dropped, .. })) => self.gap += dropped,
                Ok(Some(Message::Pong(token))) => self.pongs.push(token),
                Ok(Some(Message::Ping(token))) => {
                    self.link.outgoing().pong(token);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
    }

    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        until(what, || {
            self.turn();
            done(self)
        });
    }

    pub(crate) fn position(&self) -> Position {
        Position { epoch: self.welcome.as_ref().unwrap().epoch, last: self.last }
    }
}
