//! The first bytes of a connection, the Noise handshake and sealed frames.
//!
//! Both ends begin with a preamble whose layout never changes: magic, version, policy, verdict. The dialer sends its
//! own at once, with the first Noise message behind it when it holds a key; the listener looks at both and answers with
//! a verdict. So every disagreement is known to both ends after one round trip, and a stranger that does not know
//! the magic is told nothing. The preamble of the dialer is the handshake's prologue.
//!
//! Noise_NNpsk0_25519_AESGCM_SHA256 (noiseprotocol.org, revision 34): ephemeral keys, authenticated by the
//! pre-shared key alone. Each direction counts its frames; an altered, repeated or reordered one does not authenticate.

use std::net::SocketAddr;
use std::sync::Arc;

use snow::{HandshakeState, StatelessTransportState};

use crate::LinkError;
use crate::policy::{Policy, Stated};

/// Version of the channel. Both ends must speak the same.
pub const VERSION: u16 = 3;
/// Bytes of a preamble.
pub const PREAMBLE: usize = 16;
/// Bytes of each of the two handshake messages: an X25519 key and the tag of an empty payload.
pub(crate) const HANDSHAKE: usize = 48;
/// Bytes that sealing adds to a frame.
pub(crate) const TAG: usize = 16;

const MAGIC: [u8; 8] = *b"tcptwin\xa5";
const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// The listener's judgement, in its preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Version,
    Mode,
    WrongKey,
    Busy,
}

impl Verdict {
    const fn from_byte(b: u8) -> Option<Self> {
        Some(match b {
            0 => Self::Accepted,
            1 => Self::Version,
            2 => Self::Mode,
            3 => Self::WrongKey,
            4 => Self::Busy,
            _ => return None,
        })
    }
}

/// A preamble, understood.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preamble {
    pub(crate) version: u16,
    pub(crate) stated: Stated,
    verdict: u8,
}

impl Preamble {
    pub(crate) fn write(stated: Stated, verdict: Verdict) -> [u8; PREAMBLE] {
        let mut out = [0; PREAMBLE];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = stated.to_byte();
        out[11] = verdict as u8;
        out
    }

    /// `None` when the magic is not ours.
    pub(crate) fn read(bytes: &[u8; PREAMBLE]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, v0, v1, stated, verdict, ..] = *bytes;
        ([a, b, c, d, e, f, g, h] == MAGIC).then(|| Self {
            version: u16::from_le_bytes([v0, v1]),
            stated: Stated::from_byte(stated),
            verdict,
        })
    }

    /// Whether these first bytes (fewer than a preamble perhaps) can still become one of ours.
    pub(crate) fn plausible(bytes: &[u8]) -> bool {
        bytes.iter().zip(MAGIC).all(|(&got, want)| got == want)
    }

    /// The listener's verdict as the dialer's error.
    pub(crate) fn judged(&self, here: Stated, peer: SocketAddr) -> Result<(), LinkError> {
        if self.version != VERSION {
            return Err(LinkError::Version { peer, here: VERSION, there: self.version });
        }
        match Verdict::from_byte(self.verdict) {
            Some(Verdict::Busy) => Err(LinkError::Busy { peer }),
            Some(Verdict::Accepted) if here.agrees(self.stated) => Ok(()),
            Some(Verdict::Accepted | Verdict::Mode) => {
                Err(LinkError::Mode { peer, here, there: self.stated })
            }
            Some(Verdict::WrongKey) => Err(LinkError::WrongKey { peer }),
            Some(Verdict::Version) | None => Err(LinkError::Malformed { peer, what: "verdict" }),
        }
    }
}

/// What a listener without room writes to a new connection before it closes it.
pub fn busy() -> [u8; PREAMBLE] {
    Preamble::write(Stated::Unwilling, Verdict::Busy)
}

/// Starts the dialer's handshake: its state, and the message that follows the preamble.
pub(crate) fn dial(
    key: &[u8; 32],
    preamble: &[u8; PREAMBLE],
) -> Result<(Box<HandshakeState>, [u8; HANDSHAKE]), snow::Error> {
    let mut state = builder(key, preamble)?.build_initiator()?;
    let mut message = [0; HANDSHAKE];
    state.write_message(&[], &mut message)?;
    Ok((Box::new(state), message))
}

/// Finishes the dialer's handshake with the listener's message.
pub(crate) fn finish(mut state: Box<HandshakeState>, message: &[u8; HANDSHAKE]) -> Result<Seal, snow::Error> {
    state.read_message(message, &mut [])?;
    Ok(Seal::new(state.into_stateless_transport_mode()?))
}

/// The listener's side: checks the dialer's message, gives the answer. `Err(Decrypt)` means another key.
pub(crate) fn answer(
    key: &[u8; 32],
    preamble: &[u8; PREAMBLE],
    message: &[u8; HANDSHAKE],
) -> Result<(Seal, [u8; HANDSHAKE]), snow::Error> {
    let mut state = builder(key, preamble)?.build_responder()?;
    state.read_message(message, &mut [])?;
    let mut answer = [0; HANDSHAKE];
    state.write_message(&[], &mut answer)?;
    Ok((Seal::new(state.into_stateless_transport_mode()?), answer))
}

fn builder<'a>(key: &'a [u8; 32], prologue: &'a [u8]) -> Result<snow::Builder<'a>, snow::Error> {
    snow::Builder::new(PATTERN.parse()?).psk(0, key)?.prologue(prologue)
}

/// One direction of an encrypted connection: the shared cipher and this direction's frame number.
#[derive(Clone)]
pub(crate) struct Seal {
    cipher: Arc<StatelessTransportState>,
    nonce: u64,
}

impl Seal {
    fn new(cipher: StatelessTransportState) -> Self {
        Self { cipher: Arc::new(cipher), nonce: 0 }
    }

    /// Encrypts `body` to the front of `out`; returns the length. `out` has room for the tag.
    pub(crate) fn seal(&mut self, body: &[u8], out: &mut [u8]) -> usize {
        let n = self
            .cipher
            .write_message(self.nonce, body, out)
            .expect("frames are far below the cipher's limit");
        self.nonce += 1;
        n
    }

    /// Decrypts a frame to the front of `out`; `None` when it does not authenticate as the next one.
    pub(crate) fn open(&mut self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        if frame.len() < TAG {
            return None;
        }
        let n = self.cipher.read_message(self.nonce, frame, out).ok()?;
        self.nonce += 1;
        Some(n)
    }
}

/// The stated policy and, for encryption, the key.
pub(crate) const fn key_of(policy: &Policy) -> Option<&[u8; 32]> {
    match policy {
        Policy::Keyed(key) => Some(key),
        Policy::Plain | Policy::PlainLocal | Policy::Unwilling => None,
    }
}
