//! One connection of the service: bytes in, answers out, never more held than its two buffers.
//!
//! While an answer cannot be written nothing is read, so a client that pipelines without reading is held by its own
//! window.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use crate::digest::Digest;
use crate::head::{MAX_HEAD, content_length, field, head_len, request_id};
use crate::witness::Witness;

/// An accepted connection.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    phase: Phase,
    input: Box<[u8]>,
    /// Unread part of `input`.
    start: usize,
    end: usize,
    /// Heads and small bodies not written yet, from `written` on.
    output: Vec<u8>,
    written: usize,
    /// Bytes of a large body still to write after `output`.
    body_left: usize,
    close_after: bool,
    peer_done: bool,
    waits_to_write: bool,
}

enum Phase {
    Head,
    Body { id: u64, left: u64, digest: Digest, last: bool },
}

/// What the loop is to wait for.
pub(super) enum Next {
    Unchanged,
    Read,
    Write,
    Close,
}

const INPUT: usize = 32 * 1024;
/// Bodies up to this size are written together with their head.
const SMALL_BODY: usize = 4 * 1024;
/// Answers are collected up to this size before they are written.
const OUTPUT: usize = 32 * 1024;
const _: () = assert!(INPUT > MAX_HEAD);

static BODY: [u8; 64 * 1024] = [b'b'; 64 * 1024];

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            phase: Phase::Head,
            input: vec![0; INPUT].into_boxed_slice(),
            start: 0,
            end: 0,
            output: Vec::with_capacity(1_024),
            written: 0,
            body_left: 0,
            close_after: false,
            peer_done: false,
            waits_to_write: false,
        }
    }

    /// Reads once, answers everything that is complete, writes what it can.
    pub(super) fn drive(&mut self, witness: &Witness, response_bytes: usize) -> Next {
        let done = self.turn(witness, response_bytes).is_err();
        if done {
            return Next::Close;
        }
        match (self.pending(), self.waits_to_write) {
            (true, false) => {
                self.waits_to_write = true;
                Next::Write
            }
            (false, true) => {
                self.waits_to_write = false;
                Next::Read
            }
            _ => Next::Unchanged,
        }
    }

    /// An error means that the connection is over, also when it ended well.
    fn turn(&mut self, witness: &Witness, response_bytes: usize) -> io::Result<()> {
        self.write()?;
        if !self.pending() && !self.peer_done {
            self.read()?;
        }
        loop {
            let more = self.understand(witness, response_bytes)?;
            self.write()?;
            if self.pending() || !more {
                break;
            }
        }
        let over = self.close_after || self.peer_done;
        if over && !self.pending() { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn pending(&self) -> bool {
        self.written < self.output.len() || self.body_left > 0
    }

    fn read(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self.stream.read(&mut self.input[self.end..]) {
            Ok(0) => self.peer_done = true,
            Ok(n) => self.end += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Takes requests out of the input until it is used up (false) or enough is to be written first (true).
    fn understand(&mut self, witness: &Witness, response_bytes: usize) -> io::Result<bool> {
        while !self.close_after && self.start < self.end {
            if self.body_left > 0 || self.output.len() >= OUTPUT {
                return Ok(true);
            }
            let bytes = &self.input[self.start..self.end];
            match &mut self.phase {
                Phase::Head => {
                    let Some(len) = head_len(bytes) else {
                        if bytes.len() >= MAX_HEAD {
                            return Err(ErrorKind::InvalidData.into());
                        }
                        return Ok(false);
                    };
                    let head = &bytes[..len];
                    let (Some(id), Some(left)) = (request_id(head), content_length(head)) else {
                        self.output
                            .extend_from_slice(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                        self.close_after = true;
                        return Ok(false);
                    };
                    let last = field(head, "connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close"));
                    self.start += len;
                    if left == 0 {
                        self.answer(witness, id, 0, response_bytes, last);
                    } else {
                        self.phase = Phase::Body { id, left, digest: Digest::default(), last };
                    }
                }
                Phase::Body { id, left, digest, last } => {
                    let take = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    digest.update(&bytes[..take]);
                    *left -= take as u64;
                    self.start += take;
                    if *left == 0 {
                        let (id, body, last) = (*id, digest.finish(), *last);
                        self.phase = Phase::Head;
                        self.answer(witness, id, body, response_bytes, last);
                    }
                }
            }
        }
        Ok(false)
    }

    fn answer(&mut self, witness: &Witness, id: u64, body: u64, response_bytes: usize, last: bool) {
        witness.answer(id, body);
        let close = if last { "Connection: close\r\n" } else { "" };
        write!(
            self.output,
            "HTTP/1.1 200 OK\r\nServer: lab\r\nContent-Type: text/plain\r\nContent-Length: {response_bytes}\r\n{close}X-Id: {id}\r\n\r\n"
        )
        .expect("writing to memory cannot fail");
        if response_bytes <= SMALL_BODY {
            self.output.extend_from_slice(&BODY[..response_bytes]);
        } else {
            self.body_left = response_bytes;
        }
        self.close_after = last;
    }

    fn write(&mut self) -> io::Result<()> {
        while self.pending() {
            let sent = if self.written < self.output.len() {
                self.stream.write(&self.output[self.written..])
            } else {
                self.stream.write(&BODY[..self.body_left.min(BODY.len())])
            };
            match sent {
                Ok(n) if self.written < self.output.len() => self.written += n,
                Ok(n) => self.body_left -= n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}
