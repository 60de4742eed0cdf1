//! An HTTP/1.1 service in one thread: `GET` or `POST /id/N` is answered with a fixed number of bytes and written down in
//! a `Witness`.
//!
//! Runs inside a namespace as the online or the target service of the demo and the benchmarks: keep-alive, pipelining,
//! bodies, `Connection: close`. An epoll loop with buffers made at the start of each connection; it answers 20,000
//! requests a second on well under half a core.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::namespace::Namespace;
use crate::witness::Witness;
use connection::{Connection, Next};

mod connection;

/// How the service answers.
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// Bytes of each response's body.
    pub response_bytes: usize,
    /// Connections at a time; more wait in the listen queue.
    pub connections: usize,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { response_bytes: 200, connections: 20_000 }
    }
}

/// A running service. Dropping it closes its sockets.
pub struct HttpService {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl HttpService {
    /// Listens on `address` in a namespace and answers until stopped.
    pub fn start(
        ns: &Namespace,
        address: SocketAddr,
        options: HttpOptions,
        witness: Arc<Witness>,
    ) -> io::Result<Self> {
        crate::raise_descriptor_limit();
        let listener = ns.enter(move || listen_on(address))?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let bell = Arc::clone(&stop);
        let thread = ns.thread(&format!("http-{}", ns.name()), move || {
            Service {
                epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
                listener,
                options,
                witness,
                slots: Vec::new(),
                free: Vec::new(),
            }
            .serve(&bell)
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Closes every connection and waits for the thread. The error that ended it early, if one did.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stop.write(1)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the HTTP service panicked")))
    }
}

impl Drop for HttpService {
    fn drop(&mut self) {
        // An error of a service nobody asks about any more has no reader.
        let _ = self.end();
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind_to(&fd, address)?;
    // As many as the host allows (`net.core.somaxconn`, 16,384 on ours): a replay as fast as possible opens all connections of its
    // file at once, and what finds the queue full comes again a second later. A number above libc's SOMAXCONN is refused by nix.
    listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(fd))
}

fn bind_to(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(|errno| {
        io::Error::new(io::Error::from(errno).kind(), format!("listening on {address}: {errno}"))
    })
}

/// The thread's state.
struct Service {
    epoll: Epoll,
    listener: TcpListener,
    options: HttpOptions,
    witness: Arc<Witness>,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
}

const LISTENER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
/// Connections accepted in a row before those already open get their turn.
const ACCEPTS: usize = 64;

impl Service {
    fn serve(mut self, stop: &EventFd) -> io::Result<()> {
        self.epoll.add(&self.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        self.epoll.add(stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for event in &events[..ready] {
                match event.data() {
                    STOP => return Ok(()),
                    LISTENER => self.accept()?,
                    index => self.drive(index)?,
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS {
            if self.slots.len() - self.free.len() >= self.options.connections {
                return Ok(());
            }
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The peer gave up while it waited in the queue.
                Err(e) if e.raw_os_error() == Some(libc::ECONNABORTED) => continue,
                Err(e) => return Err(e),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.witness.connection();
            let index = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            });
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            self.slots[index] = Some(Connection::new(stream));
        }
        Ok(())
    }

    fn drive(&mut self, index: u64) -> io::Result<()> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Some(connection) = slot.as_mut() else { return Ok(()) };
        let flags = match connection.drive(&self.witness, self.options.response_bytes) {
            Next::Unchanged => return Ok(()),
            Next::Read => EpollFlags::EPOLLIN,
            Next::Write => EpollFlags::EPOLLOUT,
            Next::Close => {
                // Closing the descriptor takes it out of the epoll set.
                *slot = None;
                self.free.push(index);
                return Ok(());
            }
        };
        self.epoll.modify(&connection.stream, &mut EpollEvent::new(flags, index as u64))?;
        Ok(())
    }
}
