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

use snow::HandshakeState;

use crate::LinkError;
use crate::crypt::{self, HANDSHAKE, PREAMBLE, Preamble, VERSION, Verdict};
use crate::hello::Hello;
use crate::incoming::{Incoming, Side};
use crate::outgoing::Outgoing;
use crate::policy::Policy;
use crate::stream::{MAX_FRAME, Message, tag};

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

/// Bytes of the buffer of each direction: four frames, so that one system call moves about a thousand records.
pub(crate) const BUFFER: usize = 4 * (MAX_FRAME + 2);

#[cfg(test)]
mod tests;
