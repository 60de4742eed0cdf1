//! The messages of a connection and their bytes. A frame is a little-endian u16 length and that many bytes; inside
//! (after decryption, where there is any) a type byte and its fields.
//!
//! Records are decoded one at a time while iterating, so a batch costs no allocation and no second pass.

use flow::{Endpoint, Returned};

use crate::hello::{Hello, MAX_SENTENCE, Refused, Welcome};
use crate::record::{BadRecord, decode};
use crate::wire::{Reader, Writer};

/// Longest frame on the wire behind its length, bytes: enough for 250 records, so that encryption is paid per batch.
pub const MAX_FRAME: usize = 16 * 1024;
/// Longest message inside a frame: an encrypted frame carries a tag of 16 bytes.
pub const MAX_BODY: usize = MAX_FRAME - 16;

/// One message, as received.
#[derive(Clone, Debug)]
pub enum Message<'a> {
    /// Dialer's first.
    Hello(Hello),
    /// Listener's first, or
    Welcome(Welcome),
    /// its refusal; the listener closes after it.
    Refused(Refused),
    /// Flows that the dialer owns from now on.
    Claims(Claims<'a>),
    /// Whether the dialer's sessions can do nothing but wait for answers, so that each is worth a wake-up of its own.
    Pace {
        /// They do. Not so before this was said.
        eager: bool,
    },
    /// Records.
    Batch(Batch<'a>),
    /// Records that the listener could not keep for this dialer.
    Gap {
        /// How many.
        dropped: u64,
        /// Position of the next record.
        next: u64,
    },
    /// The other end asks for a sign of life; answer with `Pong` and the same token.
    Ping(u64),
    /// The answer to our ping.
    Pong(u64),
    /// The other end closes in order.
    Bye {
        /// Why, for people.
        sentence: &'a str,
    },
}

impl Message<'_> {
    /// A noun with its article, for sentences.
    pub const fn noun(&self) -> &'static str {
        match self {
            Self::Hello(_) => "a hello",
            Self::Welcome(_) => "a welcome",
            Self::Refused(_) => "a refusal",
            Self::Claims(_) => "claims",
            Self::Pace { .. } => "a pace",
            Self::Batch(_) => "records",
            Self::Gap { .. } => "a gap",
            Self::Ping(_) => "a ping",
            Self::Pong(_) => "a pong",
            Self::Bye { .. } => "a farewell",
        }
    }
}

/// A batch of records with consecutive positions.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Epoch of the intercept that sends.
    pub epoch: u64,
    /// Position of the first record.
    pub first: u64,
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Batch<'a> {
    /// How many records the batch announces.
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The records in order. The first bad one ends the iteration; so do bytes left over after the last.
    pub const fn records(&self) -> Records<'a> {
        Records { position: self.first, left: self.count, bytes: self.bytes }
    }
}

/// Iterator over the records of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    position: u64,
    left: u16,
    bytes: &'a [u8],
}

impl Iterator for Records<'_> {
    type Item = Result<Returned, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = !std::mem::take(&mut self.bytes).is_empty();
            return rest.then_some(Err(BadRecord::Shape));
        }
        match decode(self.bytes, self.position) {
            Ok((record, used)) => {
                self.bytes = &self.bytes[used..];
                self.left -= 1;
                self.position = self.position.wrapping_add(1);
                Some(Ok(record))
            }
            Err(bad) => {
                self.left = 0;
                self.bytes = &[];
                Some(Err(bad))
            }
        }
    }
}

/// A batch of claimed flows.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a>(&'a [u8]);

impl Claims<'_> {
    /// How many.
    pub const fn len(&self) -> usize {
        self.0.len() / CLAIM_BYTES
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The flows as (replayed client, target).
    pub fn iter(&self) -> impl Iterator<Item = (Endpoint, Endpoint)> {
        let mut r = Reader(self.0);
        std::iter::from_fn(move || Some((r.endpoint()?, r.endpoint()?)))
    }
}

/// One claim: two endpoints.
pub(crate) const CLAIM_BYTES: usize = 36;
/// Bytes of a batch message before its records.
pub(crate) const BATCH_HEAD: usize = 1 + 8 + 8 + 2;

pub(crate) mod tag {
    pub(crate) const HELLO: u8 = 1;
    pub(crate) const WELCOME: u8 = 2;
    pub(crate) const REFUSED: u8 = 3;
    pub(crate) const CLAIMS: u8 = 4;
    pub(crate) const BATCH: u8 = 5;
    pub(crate) const GAP: u8 = 6;
    pub(crate) const PING: u8 = 7;
    pub(crate) const PONG: u8 = 8;
    pub(crate) const BYE: u8 = 9;
    pub(crate) const PACE: u8 = 10;
}

/// Understands the inside of one frame; the error names the message that made no sense.
pub(crate) fn parse(body: &[u8]) -> Result<Message<'_>, &'static str> {
    let mut r = Reader(body);
    let r = &mut r;
    let message = match r.u8().ok_or("an empty frame")? {
        tag::HELLO => Message::Hello(Hello::read(r).ok_or("hello")?),
        tag::WELCOME => Message::Welcome(Welcome::read(r).ok_or("welcome")?),
        tag::REFUSED => Message::Refused(Refused::read(r).ok_or("refusal")?),
        tag::CLAIMS => {
            let bytes = std::mem::take(&mut r.0);
            if !bytes.len().is_multiple_of(CLAIM_BYTES) {
                return Err("claims");
            }
            Message::Claims(Claims(bytes))
        }
        tag::BATCH => Message::Batch(read_batch(r).ok_or("batch")?),
        tag::GAP => Message::Gap { dropped: r.u64().ok_or("gap")?, next: r.u64().ok_or("gap")? },
        tag::PING => Message::Ping(r.u64().ok_or("ping")?),
        tag::PONG => Message::Pong(r.u64().ok_or("pong")?),
        tag::BYE => {
            let bytes = std::mem::take(&mut r.0);
            let sentence = std::str::from_utf8(bytes).map_err(|_| "farewell")?;
            if bytes.len() > MAX_SENTENCE || sentence.chars().any(char::is_control) {
                return Err("farewell");
            }
            Message::Bye { sentence }
        }
        tag::PACE => match r.u8().ok_or("pace")? {
            eager @ (0 | 1) => Message::Pace { eager: eager == 1 },
            _ => return Err("pace"),
        },
        _ => return Err("a message of unknown type"),
    };
    if r.is_empty() { Ok(message) } else { Err("bytes after the end of a message") }
}

fn read_batch<'a>(r: &mut Reader<'a>) -> Option<Batch<'a>> {
    let (epoch, first, count) = (r.u64()?, r.u64()?, r.u16()?);
    Some(Batch { epoch, first, count, bytes: std::mem::take(&mut r.0) })
}

/// Writes the head of a batch; the count is set by [`finish_batch`].
pub(crate) fn start_batch(out: &mut [u8], epoch: u64, first: u64) -> usize {
    let mut w = Writer::new(out);
    w.u8(tag::BATCH);
    w.u64(epoch);
    w.u64(first);
    w.u16(0);
    w.len()
}

/// Sets the count of a batch whose head starts at `out[0]`.
pub(crate) fn finish_batch(out: &mut [u8], count: u16) {
    out[BATCH_HEAD - 2..BATCH_HEAD].copy_from_slice(&count.to_le_bytes());
}
