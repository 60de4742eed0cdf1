//! A load of HTTP requests from one thread: an open-loop schedule over connections that are each closed-loop.
//!
//! Runs in the client's namespace. Request number i is due at i / rate; it goes to an idle connection, or waits for one.
//! Every request has an id of its own, so that servers can be compared id by id. It ends by itself: after a count, after
//! a time, or when told, and then waits for the answers that are still out.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

use crate::clock::now_us;
use crate::histogram::Histogram;
use crate::namespace::Namespace;
use lane::{Lane, Outcome};

mod lane;

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One request at a time on connections that stay open.
    KeepAlive,
    /// A connection for each request; the client closes first.
    ClientCloses,
    /// A connection for each request, with `Connection: close`; the server closes first.
    ServerCloses,
    /// This many requests at once on connections that stay open, the next when all are answered.
    Pipelined(usize),
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// The service.
    pub to: SocketAddr,
    /// Own addresses to take turns with; empty leaves the choice to the kernel.
    pub sources: Vec<IpAddr>,
    /// Connections at a time.
    pub connections: usize,
    /// How they are used.
    pub mode: Mode,
    /// Requests per second; none sends as fast as answers come.
    pub rate: Option<f64>,
    /// Requests in all.
    pub requests: u64,
    /// Longest time that new requests are sent.
    pub time: Duration,
    /// How long the connections stay open after the last answer, unless told to stop.
    pub stays: Duration,
    /// Id of the first request.
    pub first_id: u64,
    /// Bytes of each request's body; more than 0 makes it a POST.
    pub body_bytes: usize,
}

impl Load {
    /// One keep-alive connection that sends `requests` requests as fast as they are answered, for 20 s at most.
    pub fn new(to: SocketAddr, requests: u64) -> Self {
        Self {
            to,
            sources: Vec::new(),
            connections: 1,
            mode: Mode::KeepAlive,
            rate: None,
            requests,
            time: Duration::from_secs(20),
            stays: Duration::ZERO,
            first_id: 0,
            body_bytes: 0,
        }
    }

    /// Starts sending from a namespace.
    pub fn start(self, ns: &Namespace) -> io::Result<RunningLoad> {
        crate::raise_descriptor_limit();
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let thread = ns.thread("load", move || Generator::new(self, shared)?.run())?;
        Ok(RunningLoad { progress, thread })
    }

    /// Sends everything and waits for the end.
    pub fn run(self, ns: &Namespace) -> io::Result<LoadReport> {
        self.start(ns)?.wait()
    }
}

/// Numbers that can be read while a load runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests sent.
    pub sent: AtomicU64,
    /// Requests answered in full.
    pub answered: AtomicU64,
    /// Set to stop sending.
    pub stop: AtomicBool,
}

/// A load under way.
pub struct RunningLoad {
    /// What it did so far.
    pub progress: Arc<Progress>,
    thread: JoinHandle<io::Result<LoadReport>>,
}

impl RunningLoad {
    /// Waits until everything is sent and answered.
    pub fn wait(self) -> io::Result<LoadReport> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the load generator panicked")))
    }

    /// Sends no more, and waits for what is out.
    pub fn stop(self) -> io::Result<LoadReport> {
        self.progress.stop.store(true, Relaxed);
        self.wait()
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

/// What a load did.
#[derive(Clone, Default)]
pub struct LoadReport {
    /// Requests sent, at least in part.
    pub sent: u64,
    /// Requests answered in full, with status 200.
    pub answered: u64,
    /// Requests whose connection broke, that were answered otherwise, or not within [`GRACE`].
    pub failed: u64,
    /// Bytes of the requests sent, heads and bodies.
    pub request_bytes: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// From the last byte of a request to the first byte of its answer, µs.
    pub first_byte: Histogram,
    /// Why the last connection that broke did.
    pub error: Option<String>,
}

impl LoadReport {
    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Pause before a broken connection is opened again: a service that is away is not flooded.
const RETRY_US: u64 = 20_000;
/// How long the last answers may take.
pub const GRACE: Duration = Duration::from_secs(10);

/// The thread's state.
struct Generator {
    load: Load,
    progress: Arc<Progress>,
    epoll: Epoll,
    lanes: Vec<Lane>,
    /// Those that wait for a request; the one that waits longest is next, so that all are used alike.
    idle: VecDeque<usize>,
    /// Connections that broke, with the time to try again, in order.
    down: VecDeque<(u64, usize)>,
    report: LoadReport,
    started_us: u64,
    next_source: usize,
    scratch: Box<[u8]>,
}

impl Generator {
    fn new(load: Load, progress: Arc<Progress>) -> io::Result<Self> {
        let lanes: Vec<Lane> =
            (0..load.connections.max(1)).map(|_| Lane::new(load.mode, load.body_bytes)).collect();
        let mut generator = Self {
            idle: VecDeque::with_capacity(lanes.len()),
            down: VecDeque::new(),
            lanes,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            report: LoadReport::default(),
            started_us: now_us(),
            next_source: 0,
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
            load,
            progress,
        };
        for index in 0..generator.lanes.len() {
            if generator.keeps_connections() {
                generator.connect(index)?;
            } else {
                generator.idle.push_back(index);
            }
        }
        Ok(generator)
    }

    fn keeps_connections(&self) -> bool {
        matches!(self.load.mode, Mode::KeepAlive | Mode::Pipelined(_))
    }

    fn run(mut self) -> io::Result<LoadReport> {
        let mut events = vec![EpollEvent::empty(); 512];
        self.started_us = now_us();
        let limit = u64::try_from(self.load.time.as_micros()).unwrap_or(u64::MAX);
        let mut ended_us = None;
        loop {
            let now = now_us() - self.started_us;
            let all_sent = self.report.sent >= self.load.requests;
            if ended_us.is_none() && (all_sent || now >= limit || self.progress.stop.load(Relaxed)) {
                ended_us = Some(now);
            }
            if let Some(ended) = ended_us {
                let out = self.report.sent - self.report.answered - self.report.failed;
                if out == 0 || now - ended > GRACE.as_micros() as u64 {
                    self.report.failed += out;
                    break;
                }
            } else {
                self.dispatch(now)?;
            }
            while let Some(&(due, index)) = self.down.front()
                && due <= now_us()
            {
                self.down.pop_front();
                self.connect(index)?;
            }
            let ready = self.wait(&mut events, ended_us.is_some())?;
            for event in &events[..ready] {
                self.drive(usize::try_from(event.data()).unwrap_or(usize::MAX))?;
            }
        }
        self.report.elapsed = Duration::from_micros(now_us() - self.started_us);
        let over = Instant::now() + self.load.stays;
        while Instant::now() < over && !self.progress.stop.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self.report)
    }

    /// Gives the requests that are due to idle connections.
    fn dispatch(&mut self, now: u64) -> io::Result<()> {
        let due = match self.load.rate {
            Some(rate) => ((now as f64 * rate / 1e6) as u64).saturating_add(1).min(self.load.requests),
            None => self.load.requests,
        };
        let batch = match self.load.mode {
            Mode::Pipelined(depth) => depth.max(1) as u64,
            _ => 1,
        };
        while self.report.sent < due {
            let take = batch.min(self.load.requests - self.report.sent);
            if due - self.report.sent < take {
                break;
            }
            let Some(index) = self.idle.pop_front() else { break };
            let first = self.load.first_id + self.report.sent;
            self.lanes[index].queue(first, take);
            self.report.sent += take;
            self.progress.sent.store(self.report.sent, Relaxed);
            if self.keeps_connections() {
                self.drive(index)?;
            } else {
                self.connect(index)?;
            }
        }
        Ok(())
    }

    /// Waits for events, at the longest until the next request is due.
    fn wait(&mut self, events: &mut [EpollEvent], ended: bool) -> io::Result<usize> {
        let mut pause = Duration::from_millis(50);
        if let (Some(rate), false, false) = (self.load.rate, ended, self.idle.is_empty()) {
            let due_us = self.started_us + (self.report.sent as f64 * 1e6 / rate) as u64;
            pause = pause.min(Duration::from_micros(due_us.saturating_sub(now_us())));
        }
        if let Some(&(due, _)) = self.down.front() {
            pause = pause.min(Duration::from_micros(due.saturating_sub(now_us())));
        }
        // epoll counts milliseconds only; ppoll on the epoll descriptor counts nanoseconds.
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.epoll.0), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(pause)), None) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(0),
            Ok(_) => Ok(self.epoll.wait(events, EpollTimeout::ZERO)?),
            Err(errno) => Err(errno.into()),
        }
    }

    fn connect(&mut self, index: usize) -> io::Result<()> {
        let source = (!self.load.sources.is_empty())
            .then(|| self.load.sources[self.next_source % self.load.sources.len()]);
        self.next_source += 1;
        let lane = &mut self.lanes[index];
        match lane.connect(self.load.to, source) {
            Ok(stream) => {
                let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
                self.epoll.add(stream, EpollEvent::new(both, index as u64))?;
                Ok(())
            }
            Err(error) => {
                self.report.error = Some(error.to_string());
                self.report.failed += lane.abandon();
                if self.keeps_connections() {
                    self.down.push_back((now_us() + RETRY_US, index));
                } else {
                    self.idle.push_back(index);
                }
                Ok(())
            }
        }
    }

    /// Lets one connection go on.
    fn drive(&mut self, index: usize) -> io::Result<()> {
        let Some(lane) = self.lanes.get_mut(index) else { return Ok(()) };
        let before = self.report.answered;
        let outcome = lane.drive(&mut self.report, &mut self.scratch);
        if self.report.answered != before {
            self.progress.answered.store(self.report.answered, Relaxed);
        }
        match outcome {
            Outcome::Busy => Ok(()),
            Outcome::Idle => {
                self.idle.push_back(index);
                Ok(())
            }
            Outcome::Closed => {
                self.report.failed += self.lanes[index].abandon();
                if self.keeps_connections() {
                    self.idle.retain(|&i| i != index);
                    self.down.push_back((now_us() + RETRY_US, index));
                } else {
                    self.idle.push_back(index);
                }
                Ok(())
            }
        }
    }
}
