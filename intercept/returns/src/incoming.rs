//! The receiving half of a [`crate::Link`]: a bounded buffer, an incremental parser, and who may say what when.
//!
//! | side | before its greeting | after |
//! |---|---|---|
//! | listener receives | hello | claims, ping, pong, farewell |
//! | dialer receives | welcome, refusal, ping, pong, farewell | batches and gaps with rising positions of one epoch, ping, pong, farewell |

use std::net::SocketAddr;

use crate::LinkError;
use crate::crypt::Seal;
use crate::link::BUFFER;
use crate::stream::{MAX_FRAME, Message, parse};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Dialer,
    Listener,
}

/// The receiving half: a bounded buffer and an incremental parser.
pub struct Incoming {
    peer: SocketAddr,
    side: Side,
    /// Hello (or welcome) has been received.
    greeted: bool,
    /// Position that the next batch must start at, and its epoch; set by the welcome.
    next: u64,
    epoch: u64,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    plain: Box<[u8]>,
    pub(crate) seal: Option<Seal>,
    failed: Option<LinkError>,
}

impl Incoming {
    pub(crate) fn new(peer: SocketAddr, side: Side) -> Self {
        Self {
            peer,
            side,
            greeted: false,
            next: 0,
            epoch: 0,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            plain: vec![0; MAX_FRAME].into_boxed_slice(),
            seal: None,
            failed: None,
        }
    }

    /// See [`Link::receive_buffer`].
    pub fn receive_buffer(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < 2 + MAX_FRAME {
            // Only a part of one frame is left when all messages were taken: a short copy.
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// See [`Link::received`].
    pub fn received(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buffer.len());
    }

    /// See [`Link::next`].
    #[expect(clippy::should_implement_trait, reason = "lends from its own buffer, which Iterator cannot")]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let peer = self.peer;
        let unread = &self.buffer[self.start..self.end];
        let Some((head, rest)) = unread.split_first_chunk::<2>() else { return Ok(None) };
        let len = usize::from(u16::from_le_bytes(*head));
        if len > MAX_FRAME {
            return Err(self.failed.insert(LinkError::FrameLength { peer, len }).clone());
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.start += 2 + len;
        let body = match &mut self.seal {
            None => frame,
            Some(seal) => match seal.open(frame, &mut self.plain) {
                Some(n) => &self.plain[..n],
                None => return Err(self.failed.insert(LinkError::Altered { peer }).clone()),
            },
        };
        let message = match parse(body) {
            Ok(message) => message,
            Err(what) => return Err(self.failed.insert(LinkError::Malformed { peer, what }).clone()),
        };
        let verdict = match self.side {
            Side::Listener => admit_to_listener(&mut self.greeted, &message),
            Side::Dialer => admit_to_dialer(&mut self.greeted, &mut self.next, &mut self.epoch, &message),
        };
        match verdict {
            Ok(()) => Ok(Some(message)),
            Err(Misplaced::Message) => {
                Err(self.failed.insert(LinkError::Unexpected { peer, what: message.noun() }).clone())
            }
            Err(Misplaced::Position) => {
                let what = "position or epoch of the records";
                Err(self.failed.insert(LinkError::Malformed { peer, what }).clone())
            }
        }
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn peek<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.unread().get(at..)?.first_chunk::<N>().copied()
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end, "only bytes that were peeked are consumed");
    }
}

enum Misplaced {
    Message,
    Position,
}

fn admit_to_listener(greeted: &mut bool, message: &Message<'_>) -> Result<(), Misplaced> {
    match (*greeted, message) {
        (false, Message::Hello(_)) => {
            *greeted = true;
            Ok(())
        }
        (
            true,
            Message::Claims(_)
            | Message::Pace { .. }
            | Message::Ping(_)
            | Message::Pong(_)
            | Message::Bye { .. },
        ) => Ok(()),
        _ => Err(Misplaced::Message),
    }
}

fn admit_to_dialer(
    greeted: &mut bool,
    next: &mut u64,
    epoch: &mut u64,
    message: &Message<'_>,
) -> Result<(), Misplaced> {
    match (*greeted, message) {
        (false, Message::Welcome(welcome)) => {
            (*greeted, *next, *epoch) = (true, welcome.next, welcome.epoch);
            Ok(())
        }
        (false, Message::Refused(_)) => Ok(()),
        (true, Message::Batch(batch)) => {
            if batch.first != *next || batch.epoch != *epoch {
                return Err(Misplaced::Position);
            }
            *next = next.checked_add(batch.len() as u64).ok_or(Misplaced::Position)?;
            Ok(())
        }
        (true, Message::Gap { next: after, .. }) => {
            if after < next {
                return Err(Misplaced::Position);
            }
            *next = *after;
            Ok(())
        }
        (_, Message::Ping(_) | Message::Pong(_) | Message::Bye { .. }) => Ok(()),
        _ => Err(Misplaced::Message),
    }
}
