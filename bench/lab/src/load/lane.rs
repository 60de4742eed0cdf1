//! One connection of a load: its request out, its answers in.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::{LoadReport, Mode};
use crate::clock::now_us;
use crate::digest::fill_body;
use crate::head::{MAX_HEAD, content_length, decimal, field, head_len};

/// A connection, or the place of one.
pub(super) struct Lane {
    mode: Mode,
    body_bytes: usize,
    stream: Option<TcpStream>,
    connected: bool,
    idle: bool,
    output: Vec<u8>,
    written: usize,
    input: Box<[u8]>,
    filled: usize,
    /// Bytes of the current answer's body still to come.
    body_left: u64,
    /// Whether an answer's head was read and its body is not complete.
    in_body: bool,
    /// Requests not answered yet, and the id of the first of them.
    waiting: u64,
    expected: u64,
    /// When the last byte of the request left, µs; none once the first byte of the answer came.
    sent_us: Option<u64>,
}

/// What became of a lane when it was driven.
pub(super) enum Outcome {
    /// Nothing that matters to others.
    Busy,
    /// It can take the next request; said once.
    Idle,
    /// The connection broke, or the server closed it.
    Closed,
}

impl Lane {
    pub(super) fn new(mode: Mode, body_bytes: usize) -> Self {
        Self {
            mode,
            body_bytes,
            stream: None,
            connected: false,
            idle: false,
            output: Vec::with_capacity(512 + body_bytes),
            written: 0,
            input: vec![0; MAX_HEAD].into_boxed_slice(),
            filled: 0,
            body_left: 0,
            in_body: false,
            waiting: 0,
            expected: 0,
            sent_us: None,
        }
    }

    /// Begins a connection; what is queued goes out as soon as it stands.
    pub(super) fn connect(&mut self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<&TcpStream> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        if let Some(ip) = source {
            // The port is chosen at connect, when the destination is known: 64 k ports per source and destination.
            setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, 0)))?;
        }
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.connected = false;
        self.idle = false;
        self.filled = 0;
        self.in_body = false;
        Ok(self.stream.insert(TcpStream::from(fd)))
    }

    /// Takes `count` requests with ids from `first` on.
    pub(super) fn queue(&mut self, first: u64, count: u64) {
        self.idle = false;
        self.output.clear();
        self.written = 0;
        self.waiting = count;
        self.expected = first;
        let close = if self.mode == Mode::ServerCloses { "Connection: close\r\n" } else { "" };
        for id in first..first + count {
            let (method, length) = match self.body_bytes {
                0 => ("GET", String::new()),
                n => ("POST", format!("Content-Length: {n}\r\n")),
            };
            write!(
                self.output,
                "{method} /id/{id} HTTP/1.1\r\nHost: lab\r\nUser-Agent: lab-load/1\r\nAccept: */*\r\n{close}{length}\r\n"
            )
            .expect("writing to memory cannot fail");
            let body = self.output.len();
            self.output.resize(body + self.body_bytes, 0);
            fill_body(id, &mut self.output[body..]);
        }
    }

    /// Forgets the connection and what was asked on it; how many requests that are.
    pub(super) fn abandon(&mut self) -> u64 {
        self.stream = None;
        self.idle = false;
        self.output.clear();
        self.written = 0;
        self.sent_us = None;
        std::mem::take(&mut self.waiting)
    }

    /// Writes and reads until the kernel has no more.
    pub(super) fn drive(&mut self, report: &mut LoadReport, scratch: &mut [u8]) -> Outcome {
        if self.stream.is_none() {
            return Outcome::Busy;
        }
        match self.write(report).and_then(|()| self.read(report, scratch)) {
            Ok(outcome) => outcome,
            Err(error) => {
                if self.waiting > 0 {
                    report.error = Some(error.to_string());
                }
                Outcome::Closed
            }
        }
    }

    fn write(&mut self, report: &mut LoadReport) -> io::Result<()> {
        let Some(stream) = self.stream.as_mut() else { return Ok(()) };
        while self.written < self.output.len() {
            match stream.write(&self.output[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    report.request_bytes += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
            if self.written == self.output.len() {
                self.sent_us = Some(now_us());
            }
        }
        Ok(())
    }

    fn read(&mut self, report: &mut LoadReport, scratch: &mut [u8]) -> io::Result<Outcome> {
        loop {
            if self.waiting == 0 {
                match self.mode {
                    Mode::ClientCloses => {
                        self.stream = None;
                        return Ok(self.rest());
                    }
                    Mode::KeepAlive | Mode::Pipelined(_) if self.idle => {}
                    Mode::KeepAlive | Mode::Pipelined(_) => {
                        return Ok(if self.is_connected()? { self.rest() } else { Outcome::Busy });
                    }
                    Mode::ServerCloses => {}
                }
            }
            let Some(stream) = self.stream.as_mut() else { return Ok(Outcome::Busy) };
            let room = if self.in_body {
                let most = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(scratch.len());
                &mut scratch[..most]
            } else {
                &mut self.input[self.filled..]
            };
            let n = match stream.read(room) {
                Ok(0) if self.mode == Mode::ServerCloses && self.waiting == 0 => {
                    self.stream = None;
                    return Ok(self.rest());
                }
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Outcome::Busy),
                Err(e) => return Err(e),
            };
            if let Some(sent) = self.sent_us.take() {
                report.first_byte.record(now_us() - sent);
            }
            if self.in_body {
                self.body_left -= n as u64;
                self.finish_body(report);
            } else {
                self.filled += n;
                self.understand(report)?;
            }
        }
    }

    /// Says once that the lane is free.
    fn rest(&mut self) -> Outcome {
        if std::mem::replace(&mut self.idle, true) { Outcome::Busy } else { Outcome::Idle }
    }

    fn is_connected(&mut self) -> io::Result<bool> {
        if self.connected {
            return Ok(true);
        }
        let Some(stream) = self.stream.as_ref() else { return Ok(false) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => {
                self.connected = true;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Takes complete heads, and bodies as far as they came with them, out of the input.
    fn understand(&mut self, report: &mut LoadReport) -> io::Result<()> {
        let mut at = 0;
        while !self.in_body {
            let Some(len) = head_len(&self.input[at..self.filled]) else {
                if self.filled - at >= MAX_HEAD {
                    return Err(io::Error::new(ErrorKind::InvalidData, "an answer's head is too long"));
                }
                break;
            };
            let head = &self.input[at..at + len];
            if self.waiting == 0 {
                return Err(io::Error::new(ErrorKind::InvalidData, "an answer to no request"));
            }
            if !head.starts_with(b"HTTP/1.1 200 ") {
                let line =
                    String::from_utf8_lossy(head.split(|&b| b == b'\r').next().unwrap_or(head)).into_owned();
                return Err(io::Error::new(ErrorKind::InvalidData, format!("answered with {line}")));
            }
            if let Some((id, _)) = field(head, "x-id").and_then(decimal)
                && id != self.expected
            {
                let text = format!("asked {} and was answered {id}", self.expected);
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            self.body_left = content_length(head).ok_or(ErrorKind::InvalidData)?;
            self.in_body = true;
            at += len;
            let have = (self.filled - at).min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
            self.body_left -= have as u64;
            at += have;
            self.finish_body(report);
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    fn finish_body(&mut self, report: &mut LoadReport) {
        if self.body_left == 0 {
            self.in_body = false;
            self.waiting -= 1;
            self.expected += 1;
            report.answered += 1;
        }
    }
}
