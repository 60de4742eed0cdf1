//! One end of one connection. Received bytes go in, messages come out; messages go in, bytes to send come out.
//! Framing and encryption are hidden; every buffer is allocated once and bounded; the first error is final.
//!
//! Use, at either end (`socket` non-blocking):
//! ```text
//! n = socket.read(link.receive_buffer()); link.received(n);
//! while let Some(message) = link.next()? { ... link.outgoing().pong(token) ... }
//! link.outgoing().flush();
//! n = socket.write(link.pending()); link.sent(n);
//! ```
//! On an error the bytes still pending carry the verdict for the other end: write them once, then close.
//!
//! | state | goes on when | to |
//! |---|---|---|
//! | `Verdict` (dialer) | the listener's preamble and handshake message are there and agree | `Open`, hello queued |
//! | `Preamble` (listener) | the dialer's preamble and handshake message are there and agree | `Open` |
//! | `Open` | | stays; [`Link::split`] gives its halves to two threads |
//! | any | first error | `Failed` |

use std::net::SocketAddr;

use flow::{Endpoint, Returned};
use snow::HandshakeState;

use crate::LinkError;
use crate::crypt::{self, HANDSHAKE, PREAMBLE, Preamble, Seal, TAG, VERSION, Verdict};
use crate::hello::{Hello, MAX_SENTENCE, Refused, Welcome};
use crate::policy::Policy;
use crate::record::{MAX_RECORD, encode};
use crate::stream::{
    BATCH_HEAD, CLAIM_BYTES, MAX_BODY, MAX_FRAME, Message, finish_batch, parse, start_batch, tag,
};
use crate::wire::Writer;

/// One end of one connection of the return channel.
pub struct Link {
    peer: SocketAddr,
    policy: Policy,
    state: State,
    incoming: Incoming,
    outgoing: Outgoing,
}

enum State {
    Verdict { preamble: [u8; PREAMBLE], noise: Option<Box<HandshakeState>>, hello: Box<Hello> },
    Preamble,
    Open,
    Failed(LinkError),
}

impl Link {
    /// The end that dials. Its first bytes, and after the handshake its hello, are queued by themselves.
    pub fn dialer(policy: Policy, hello: &Hello, peer: SocketAddr) -> Result<Self, LinkError> {
        let preamble = Preamble::write(policy.stated(), Verdict::Accepted);
        let mut outgoing = Outgoing::new();
        outgoing.push_raw(&preamble);
        let noise = match crypt::key_of(&policy) {
            None => None,
            Some(key) => {
                let (state, message) = crypt::dial(key, &preamble).map_err(|_| LinkError::Random { peer })?;
                outgoing.push_raw(&message);
                Some(state)
            }
        };
        let state = State::Verdict { preamble, noise, hello: Box::new(hello.clone()) };
        Ok(Self { peer, policy, state, incoming: Incoming::new(peer, Side::Dialer), outgoing })
    }

    /// The end that listens, for one accepted connection.
    pub fn listener(policy: Policy, peer: SocketAddr) -> Self {
        let incoming = Incoming::new(peer, Side::Listener);
        Self { peer, policy, state: State::Preamble, incoming, outgoing: Outgoing::new() }
    }

    /// Where to read received bytes into; never empty as long as messages are taken out by [`Link::next`].
    pub fn receive_buffer(&mut self) -> &mut [u8] {
        self.incoming.receive_buffer()
    }

    /// Says how many bytes were read into [`Link::receive_buffer`].
    pub fn received(&mut self, n: usize) {
        self.incoming.received(n);
    }

    /// The next complete message; `None` until more bytes are received.
    #[expect(clippy::should_implement_trait, reason = "lends from its own buffer, which Iterator cannot")]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, LinkError> {
        if !matches!(self.state, State::Open) {
            if let State::Failed(error) = &self.state {
                return Err(error.clone());
            }
            match self.shake_hands() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
        self.incoming.next()
    }

    /// Whether the handshake is done.
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Whether the connection is encrypted (known once it is open).
    pub const fn is_encrypted(&self) -> bool {
        self.outgoing.seal.is_some()
    }

    /// The sending half. Before the connection is open it takes no message.
    pub const fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Bytes to send now.
    pub fn pending(&self) -> &[u8] {
        self.outgoing.pending()
    }

    /// Says how many of [`Link::pending`] were sent.
    pub fn sent(&mut self, n: usize) {
        self.outgoing.sent(n);
    }

    /// The halves, for one thread that reads and one that writes; `None` before the connection is open.
    pub fn split(self) -> Option<(Incoming, Outgoing)> {
        matches!(self.state, State::Open).then_some((self.incoming, self.outgoing))
    }

    fn shake_hands(&mut self) -> Result<bool, LinkError> {
        match std::mem::replace(&mut self.state, State::Open) {
            State::Verdict { preamble, noise, hello } => self.read_verdict(preamble, noise, hello),
            State::Preamble => self.judge(),
            State::Open | State::Failed(_) => Ok(true),
        }
    }

    /// The dialer's step: `Ok(false)` and the state put back while bytes are missing.
    fn read_verdict(
        &mut self,
        preamble: [u8; PREAMBLE],
        noise: Option<Box<HandshakeState>>,
        hello: Box<Hello>,
    ) -> Result<bool, LinkError> {
        let peer = self.peer;
        let Some(theirs) = self.read_preamble()? else {
            self.state = State::Verdict { preamble, noise, hello };
            return Ok(false);
        };
        theirs.judged(self.policy.stated(), peer)?;
        if let Some(state) = noise {
            let Some(message) = self.incoming.peek::<HANDSHAKE>(PREAMBLE) else {
                self.state = State::Verdict { preamble, noise: Some(state), hello };
                return Ok(false);
            };
            let seal = crypt::finish(state, &message).map_err(|_| LinkError::WrongKey { peer })?;
            self.incoming.consume(HANDSHAKE);
            self.incoming.seal = Some(seal.clone());
            self.outgoing.seal = Some(seal);
        }
        self.incoming.consume(PREAMBLE);
        self.outgoing.open = true;
        let queued = self.outgoing.push(|w| {
            w.u8(tag::HELLO);
            hello.write(w);
        });
        debug_assert!(queued, "the buffer is empty after the handshake");
        Ok(true)
    }

    /// The listener's step.
    fn judge(&mut self) -> Result<bool, LinkError> {
        let (peer, here) = (self.peer, self.policy.stated());
        let Some(theirs) = self.read_preamble()? else {
            self.state = State::Preamble;
            return Ok(false);
        };
        if theirs.version != VERSION {
            self.outgoing.push_raw(&Preamble::write(here, Verdict::Version));
            return Err(LinkError::Version { peer, here: VERSION, there: theirs.version });
        }
        if !here.agrees(theirs.stated) {
            self.outgoing.push_raw(&Preamble::write(here, Verdict::Mode));
            return Err(LinkError::Mode { peer, here, there: theirs.stated });
        }
        if let Some(key) = crypt::key_of(&self.policy) {
            let Some(message) = self.incoming.peek::<HANDSHAKE>(PREAMBLE) else {
                self.state = State::Preamble;
                return Ok(false);
            };
            let prologue = self.incoming.peek::<PREAMBLE>(0).expect("the preamble was read above");
            match crypt::answer(key, &prologue, &message) {
                Ok((seal, answer)) => {
                    self.outgoing.push_raw(&Preamble::write(here, Verdict::Accepted));
                    self.outgoing.push_raw(&answer);
                    self.incoming.seal = Some(seal.clone());
                    self.outgoing.seal = Some(seal);
                }
                Err(snow::Error::Rng) => return Err(LinkError::Random { peer }),
                Err(_) => {
                    self.outgoing.push_raw(&Preamble::write(here, Verdict::WrongKey));
                    return Err(LinkError::WrongKey { peer });
                }
            }
            self.incoming.consume(HANDSHAKE);
        } else {
            self.outgoing.push_raw(&Preamble::write(here, Verdict::Accepted));
        }
        self.incoming.consume(PREAMBLE);
        self.outgoing.open = true;
        Ok(true)
    }

    fn read_preamble(&self) -> Result<Option<Preamble>, LinkError> {
        let foreign = LinkError::NotTcptwin { peer: self.peer };
        match self.incoming.peek::<PREAMBLE>(0) {
            Some(bytes) => Preamble::read(&bytes).map(Some).ok_or(foreign),
            None if Preamble::plausible(self.incoming.unread()) => Ok(None),
            None => Err(foreign),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
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
    seal: Option<Seal>,
    failed: Option<LinkError>,
}

impl Incoming {
    fn new(peer: SocketAddr, side: Side) -> Self {
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

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn peek<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.unread().get(at..)?.first_chunk::<N>().copied()
    }

    fn consume(&mut self, n: usize) {
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
        (true, Message::Claims(_) | Message::Ping(_) | Message::Pong(_) | Message::Bye { .. }) => Ok(()),
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

/// The sending half: messages become frames in a bounded buffer. Every method that takes a message says `false` when
/// there is no room for it now (or the connection is not open); nothing is taken by half.
pub struct Outgoing {
    open: bool,
    epoch: u64,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The message under construction: records or claims are added until it is full or flushed.
    body: Box<[u8]>,
    building: Building,
    seal: Option<Seal>,
}

#[derive(Clone, Copy)]
enum Building {
    Nothing,
    Batch { len: usize, count: u16, next: u64 },
    Claims { len: usize },
}

impl Outgoing {
    fn new() -> Self {
        Self {
            open: false,
            epoch: 0,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            body: vec![0; MAX_BODY].into_boxed_slice(),
            building: Building::Nothing,
            seal: None,
        }
    }

    /// Adds a record to the current batch, or begins one: records of consecutive positions share a batch.
    /// [`Outgoing::flush`] makes the batch ready to be sent.
    pub fn record(&mut self, record: &Returned) -> bool {
        if let Building::Batch { len, count, next } = &mut self.building
            && *next == record.position
            && *len + MAX_RECORD <= MAX_BODY
        {
            *len += encode(record, &mut self.body[*len..]);
            *count += 1;
            *next += 1;
            return true;
        }
        self.flush();
        if !self.has_room(MAX_BODY) {
            return false;
        }
        let head = start_batch(&mut self.body, self.epoch, record.position);
        debug_assert_eq!(head, BATCH_HEAD);
        let len = head + encode(record, &mut self.body[head..]);
        self.building = Building::Batch { len, count: 1, next: record.position.wrapping_add(1) };
        true
    }

    /// Adds a claim of the flow from `client` (as replayed) to `target`.
    pub fn claim(&mut self, client: &Endpoint, target: &Endpoint) -> bool {
        let mut at = match self.building {
            Building::Claims { len } if len + CLAIM_BYTES <= MAX_BODY => len,
            _ => {
                self.flush();
                if !self.has_room(MAX_BODY) {
                    return false;
                }
                self.body[0] = tag::CLAIMS;
                1
            }
        };
        let mut w = Writer::new(&mut self.body[at..]);
        w.endpoint(client);
        w.endpoint(target);
        at += w.len();
        self.building = Building::Claims { len: at };
        true
    }

    /// Closes the current batch of records or claims, so that it is part of [`Outgoing::pending`].
    pub fn flush(&mut self) {
        let len = match std::mem::replace(&mut self.building, Building::Nothing) {
            Building::Nothing => return,
            Building::Batch { len, count, .. } => {
                finish_batch(&mut self.body, count);
                len
            }
            Building::Claims { len } => len,
        };
        // Room was made certain when the batch was begun, and nothing else is queued while it is open.
        push_frame(&mut self.buffer, &mut self.start, &mut self.end, self.seal.as_mut(), &self.body[..len]);
    }

    /// Listener: accepts the dialer. Batches carry this epoch from now on.
    pub fn welcome(&mut self, welcome: &Welcome) -> bool {
        self.epoch = welcome.epoch;
        self.push(|w| {
            w.u8(tag::WELCOME);
            welcome.write(w);
        })
    }

    /// Listener: refuses the dialer; write what is pending and close.
    pub fn refuse(&mut self, refused: &Refused) -> bool {
        self.push(|w| {
            w.u8(tag::REFUSED);
            refused.write(w);
        })
    }

    /// Listener: `dropped` records could not be kept; the next record has position `next`.
    pub fn gap(&mut self, dropped: u64, next: u64) -> bool {
        self.push(|w| {
            w.u8(tag::GAP);
            w.u64(dropped);
            w.u64(next);
        })
    }

    /// Asks for a sign of life.
    pub fn ping(&mut self, token: u64) -> bool {
        self.push(|w| {
            w.u8(tag::PING);
            w.u64(token);
        })
    }

    /// Answers a ping.
    pub fn pong(&mut self, token: u64) -> bool {
        self.push(|w| {
            w.u8(tag::PONG);
            w.u64(token);
        })
    }

    /// Says farewell, with the reason for people (cut to [`MAX_SENTENCE`] bytes).
    pub fn bye(&mut self, sentence: &str) -> bool {
        let clean: String = sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut end = clean.len().min(MAX_SENTENCE);
        while !clean.is_char_boundary(end) {
            end -= 1;
        }
        self.push(|w| {
            w.u8(tag::BYE);
            w.bytes(&clean.as_bytes()[..end]);
        })
    }

    /// Bytes to send now. A batch under construction is not among them before [`Outgoing::flush`].
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Says how many of [`Outgoing::pending`] were sent.
    pub fn sent(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Free bytes of the buffer; at least a frame's worth of them is needed to begin a batch.
    pub fn room(&self) -> usize {
        self.buffer.len() - (self.end - self.start)
    }

    /// Queues one message of at most [`MAX_BODY`] bytes.
    fn push(&mut self, write: impl FnOnce(&mut Writer<'_>)) -> bool {
        self.flush();
        let mut w = Writer::new(&mut self.body);
        write(&mut w);
        let len = w.len();
        if !self.has_room(len) {
            return false;
        }
        push_frame(&mut self.buffer, &mut self.start, &mut self.end, self.seal.as_mut(), &self.body[..len]);
        true
    }

    fn has_room(&self, body: usize) -> bool {
        self.open && self.room() >= 2 + body + TAG
    }

    /// Bytes of the handshake: outside frames, before anything else.
    fn push_raw(&mut self, bytes: &[u8]) {
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }
}

/// Appends one frame; the caller made sure of room for length, body and tag.
fn push_frame(buffer: &mut [u8], start: &mut usize, end: &mut usize, seal: Option<&mut Seal>, body: &[u8]) {
    if buffer.len() - *end < 2 + body.len() + TAG {
        buffer.copy_within(*start..*end, 0);
        (*start, *end) = (0, *end - *start);
    }
    let (head, rest) = buffer[*end..].split_at_mut(2);
    let len = match seal {
        Some(seal) => seal.seal(body, rest),
        None => {
            rest[..body.len()].copy_from_slice(body);
            body.len()
        }
    };
    head.copy_from_slice(&u16::try_from(len).expect("a frame is at most 16 KiB").to_le_bytes());
    *end += 2 + len;
}

/// Bytes of the buffer of each direction: four frames, so that one system call moves about a thousand records.
const BUFFER: usize = 4 * (MAX_FRAME + 2);

#[cfg(test)]
mod tests;
