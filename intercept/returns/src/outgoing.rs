//! The sending half of a [`crate::Link`]: messages become frames in a bounded buffer.

use flow::{Endpoint, Returned};

use crate::crypt::{Seal, TAG};
use crate::hello::{MAX_SENTENCE, Refused, Welcome};
use crate::link::BUFFER;
use crate::record::{MAX_RECORD, encode};
use crate::stream::{BATCH_HEAD, CLAIM_BYTES, MAX_BODY, finish_batch, start_batch, tag};
use crate::wire::Writer;

/// The sending half: messages become frames in a bounded buffer. Every method that takes a message says `false` when
/// there is no room for it now (or the connection is not open); nothing is taken by half.
pub struct Outgoing {
    pub(crate) open: bool,
    epoch: u64,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The message under construction: records or claims are added until it is full or flushed.
    body: Box<[u8]>,
    building: Building,
    pub(crate) seal: Option<Seal>,
}

#[derive(Clone, Copy)]
enum Building {
    Nothing,
    Batch { len: usize, count: u16, next: u64 },
    Claims { len: usize },
}

impl Outgoing {
    pub(crate) fn new() -> Self {
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

    /// Dialer: says whether its sessions can do nothing but wait for answers.
    pub fn pace(&mut self, eager: bool) -> bool {
        self.push(|w| {
            w.u8(tag::PACE);
            w.u8(eager.into());
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

    /// Queues any bytes as one frame, sealed where the connection is: an end that has the key and does not keep to the rules.
    #[cfg(feature = "hostile")]
    pub fn frame(&mut self, body: &[u8]) -> bool {
        self.flush();
        if body.len() > MAX_BODY || !self.has_room(body.len()) {
            return false;
        }
        push_frame(&mut self.buffer, &mut self.start, &mut self.end, self.seal.as_mut(), body);
        true
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
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Writer<'_>)) -> bool {
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
    pub(crate) fn push_raw(&mut self, bytes: &[u8]) {
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
