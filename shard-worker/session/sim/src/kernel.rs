//! The kernel's own TCP as the target, behind a TUN device in a network namespace, in real time: the slower tier. The
//! link between, the service and the oracle are those of the virtual worlds; what no seed decides is the kernel's clock.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use flow::Endpoint;
use flow::record::flag;
use lab::{Namespace, Tun};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::app::{App, Stream, Trouble};
use crate::flows::Flow;
use crate::oracle::{Broken, Oracle};
use crate::scenario::Scenario;
use crate::target::{Back, OnWire, Packet, returned};

/// A host with nothing but services and a TUN device.
pub(crate) struct Kernel {
    /// Goes last: the device and all sockets are of it.
    tun: Tun,
    listeners: Vec<TcpListener>,
    conns: Vec<Conn>,
    live: HashMap<(Endpoint, u16), usize>,
    addresses: Vec<Endpoint>,
    nodelay: bool,
    start: (Instant, u64),
    swept_us: u64,
    _ns: Namespace,
}

struct Conn {
    track: usize,
    wire: OnWire,
    app: App,
    socket: Option<KernelStream>,
}

/// All connections are looked after so often, whatever their packets say.
const SWEEP_US: u64 = 20_000;
/// Longest packet that the kernel hands over.
const MOST: usize = 65_536;
const BACKLOG: i32 = 1024;

impl Kernel {
    pub(crate) fn new(scenario: &Scenario, addresses: Vec<Endpoint>) -> io::Result<Self> {
        let ns = Namespace::new("kernel")?;
        let spec = scenario.target.clone();
        ns.set_sysctl("net/ipv4/tcp_timestamps", if spec.stamps { "1" } else { "0" })?;
        let at: Vec<SocketAddr> = addresses.iter().map(socket_address).collect();
        ns.set_sysctl("net/ipv4/route/min_adv_mss", "88")?;
        let tun = Tun::new(&ns, at[0].ip(), u32::from(spec.mtu))?;
        let listeners =
            ns.enter(move || at.iter().map(|at| service(*at, spec.rx, spec.tx)).collect::<io::Result<_>>())?;
        Ok(Self {
            tun,
            listeners,
            conns: Vec::new(),
            live: HashMap::new(),
            addresses,
            nodelay: !scenario.target.nagle,
            start: (Instant::now(), scenario.start_us),
            swept_us: 0,
            _ns: ns,
        })
    }

    /// Waits for the kernel to say something, until `next_us` at most; the time then.
    pub(crate) fn wait(&self, next_us: u64) -> io::Result<u64> {
        let least = Duration::from_micros(next_us.saturating_sub(self.now_us()));
        if !least.is_zero() {
            self.tun.wait(least.min(Duration::from_micros(SWEEP_US)))?;
        }
        Ok(self.now_us())
    }

    fn now_us(&self) -> u64 {
        self.start.1 + self.start.0.elapsed().as_micros() as u64
    }

    /// A packet arrives.
    pub(crate) fn arrive(
        &mut self,
        now_us: u64,
        packet: &Packet,
        flows: &[Flow],
        oracle: &mut Oracle,
    ) -> Result<Option<usize>, Broken> {
        let &Packet { track, client, target, ref tcp, .. } = packet;
        if tcp.has(flag::SYN) && !tcp.has(flag::ACK) {
            let known = self.live.get(&(client, target));
            if known.is_none_or(|&id| self.conns[id].wire.isn != tcp.seq) {
                self.live.insert((client, target), self.conns.len());
                let app = App::new(target == 1, Trouble::None, false);
                self.conns.push(Conn { track, wire: OnWire::new(tcp.seq), app, socket: None });
            }
        }
        // What makes no sense as a packet any more is refused at the device.
        let _ = self.tun.give(&packet.bytes);
        self.accept().map_err(|error| format!("accepting at the kernel: {error}"))?;
        let conn = self.live.get(&(client, target)).copied();
        if let Some(id) = conn {
            self.poll(now_us, id, flows, oracle)?;
        }
        Ok(conn)
    }

    fn accept(&mut self) -> io::Result<()> {
        for (target, listener) in self.listeners.iter().enumerate() {
            loop {
                let (stream, peer) = match listener.accept() {
                    Ok(accepted) => accepted,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // It was reset before it was accepted.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error),
                };
                stream.set_nonblocking(true)?;
                stream.set_nodelay(self.nodelay)?;
                if let Some(&id) = self.live.get(&(Endpoint::from(peer), target as u16)) {
                    self.conns[id].socket =
                        Some(KernelStream { stream: Some(stream), ended: false, closed: false });
                }
            }
        }
        Ok(())
    }

    /// Looks after a connection's service.
    pub(crate) fn poll(
        &mut self,
        now_us: u64,
        id: usize,
        flows: &[Flow],
        oracle: &mut Oracle,
    ) -> Result<(), Broken> {
        let conn = &mut self.conns[id];
        let Some(socket) = &mut conn.socket else { return Ok(()) };
        while conn.app.work(now_us, socket, conn.track, flows, oracle)? {}
        if socket.is_over() {
            conn.socket = None;
        }
        Ok(())
    }

    /// When a connection's service wants to act.
    pub(crate) fn due_us(&self, id: usize) -> u64 {
        let conn = &self.conns[id];
        conn.socket.as_ref().map_or(u64::MAX, |_| conn.app.due_us())
    }

    /// What the kernel has sent; now and then all services are looked after too.
    pub(crate) fn hear(
        &mut self,
        now_us: u64,
        flows: &[Flow],
        oracle: &mut Oracle,
        back: &mut Vec<Back>,
    ) -> Result<(), Broken> {
        if now_us >= self.swept_us + SWEEP_US {
            self.swept_us = now_us;
            self.accept().map_err(|error| format!("accepting at the kernel: {error}"))?;
            for id in 0..self.conns.len() {
                self.poll(now_us, id, flows, oracle)?;
            }
        }
        let mut buffer = vec![0; MOST];
        loop {
            let packet =
                self.tun.take(&mut buffer).map_err(|error| format!("reading the TUN device: {error}"))?;
            let Some(packet) = packet else { return Ok(()) };
            let Some(record) = returned(packet) else { continue };
            let target = self.addresses.iter().position(|address| *address == record.target);
            let Some(&id) = target.and_then(|target| self.live.get(&(record.client, target as u16))) else {
                continue;
            };
            let conn = &mut self.conns[id];
            let track = &mut oracle.tracks[conn.track];
            conn.wire.sends(&record, conn.app.written, track);
            conn.wire.note_answers(&mut conn.app, track);
            back.push((conn.track, record));
        }
    }
}

fn socket_address(endpoint: &Endpoint) -> SocketAddr {
    let ip = match endpoint.addr.as_v4() {
        Some(octets) => IpAddr::from(octets),
        None => IpAddr::from(endpoint.addr.0),
    };
    SocketAddr::new(ip, endpoint.port)
}

/// A listening socket whose connections have buffers of these sizes.
fn service(at: SocketAddr, rx: usize, tx: usize) -> io::Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // Connections inherit them; the kernel doubles them for its own books.
    setsockopt(&fd, sockopt::RcvBuf, &(rx / 2))?;
    setsockopt(&fd, sockopt::SndBuf, &(tx / 2))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&fd, nix::sys::socket::Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// A connection of the kernel's.
struct KernelStream {
    /// Gone after a reset of either side.
    stream: Option<TcpStream>,
    /// The other side's FIN was read.
    ended: bool,
    /// Ours was sent.
    closed: bool,
}

impl KernelStream {
    /// Nothing can come or go any more. Before that it must not be dropped: the kernel would reset what it has not read.
    fn is_over(&self) -> bool {
        self.stream.is_none() || (self.ended && self.closed)
    }

    /// What a call said, when it said anything: a connection that was reset is gone.
    fn outcome(&mut self, result: io::Result<usize>) -> Option<usize> {
        match result {
            Ok(n) => Some(n),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(_) => {
                self.stream = None;
                None
            }
        }
    }
}

impl Stream for KernelStream {
    fn may_send(&self) -> bool {
        self.stream.is_some() && !self.closed
    }

    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended) else { return false };
        let mut buffer = [0; 16_384];
        let result = stream.read(&mut buffer);
        match self.outcome(result) {
            Some(0) => {
                self.ended = true;
                false
            }
            Some(n) => {
                each(&buffer[..n]);
                true
            }
            None => false,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.closed) else { return 0 };
        let result = stream.write(bytes);
        self.outcome(result).unwrap_or(0)
    }

    fn ended(&mut self) -> bool {
        self.ended
    }

    fn close(&mut self) {
        self.closed = true;
        if let Some(stream) = &self.stream {
            // A connection that is gone already is as good as closed.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn abort(&mut self) {
        if let Some(stream) = self.stream.take() {
            // To close it with a time of 0 is what resets it.
            let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(&stream, sockopt::Linger, &now);
        }
    }
}
