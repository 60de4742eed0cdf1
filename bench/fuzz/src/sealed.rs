//! Target `sealed`: two ends of one return channel, plain or encrypted, that say anything to each other over a line that
//! cuts the bytes anywhere and may alter them.
//!
//! The first byte: bit 0 encrypts; the others are unused. Then operations of twelve bytes: what, who (bit 0: the listener)
//! and ten bytes of arguments.
//!
//! The oracle: what was said is heard, in order and whole. Under encryption nothing else is ever heard, whatever happens on
//! the line: the first altered byte ends the connection with a named error.

use std::cell::RefCell;
use std::collections::VecDeque;

use flow::{Endpoint, Returned};
use returns::{Link, MAX_SENTENCE, Outgoing, Policy, Welcome};
use zerocopy::{FromBytes, IntoBytes};

use crate::data::Data;
use crate::reach;
use crate::stream::{PEER, Sum, digest, hello};

/// Bytes of one operation.
pub(crate) const OP: usize = 12;
/// Operations of one input at most.
const MOST: usize = 48;

/// Any conversation over any line.
pub fn sealed(data: &[u8]) {
    let mut data = Data::new(data);
    let Some(mode) = data.u8() else { return };
    let encrypted = mode & 1 != 0;
    let mut pair = Pair::take(encrypted);
    for _ in 0..MOST {
        let Some(op) = data.array::<OP>() else { break };
        if !pair.step(op) {
            return;
        }
    }
    pair.deliver_all();
    pair.keep();
}

/// One end and what it has said that the other has not heard yet.
struct End {
    link: Link,
    said: VecDeque<u64>,
    /// Records or claims said since the last flush; their digest is that of the message they will be.
    open: Option<Open>,
}

/// A message under construction.
enum Open {
    Claims(Sum),
    Batch { sum: Sum, next: u64 },
}

struct Pair {
    encrypted: bool,
    /// Dialer and listener.
    ends: [End; 2],
    /// Something was altered on the line.
    altered: bool,
    /// Position of the listener's next record.
    next: u64,
}

const EPOCH: u64 = 3;

thread_local! {
    /// Ends that have heard everything, plain and encrypted: a Noise handshake takes as long as a hundred inputs.
    static KEPT: RefCell<[Option<Pair>; 2]> = const { RefCell::new([None, None]) };
}

impl Pair {
    /// A pair whose connection is open and greeted, with nothing on the line.
    fn take(encrypted: bool) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| kept[usize::from(encrypted)].take());
        kept.unwrap_or_else(|| Self::new(encrypted))
    }

    fn keep(self) {
        let at = usize::from(self.encrypted);
        KEPT.with_borrow_mut(|kept| kept[at] = Some(self));
    }

    fn new(encrypted: bool) -> Self {
        let policy = if encrypted { Policy::Keyed([7; 32]) } else { Policy::Plain };
        let end = |link| End { link, said: VecDeque::new(), open: None };
        let mut ends = [
            end(Link::dialer(policy, &hello(), PEER).expect("the system has random bytes")),
            end(Link::listener(policy, PEER)),
        ];
        for _ in 0..3 {
            for (from, to) in [(0, 1), (1, 0)] {
                let bytes = ends[from].link.pending().to_vec();
                ends[from].link.sent(bytes.len());
                let room = ends[to].link.receive_buffer();
                room[..bytes.len()].copy_from_slice(&bytes);
                ends[to].link.received(bytes.len());
                if let Some(message) = ends[to].link.next().expect("an honest handshake") {
                    assert_eq!(message.noun(), if to == 1 { "a hello" } else { "a welcome" });
                    if to == 1 {
                        let welcome = Welcome { software: String::new(), epoch: EPOCH, next: 1 };
                        assert!(ends[to].link.outgoing().welcome(&welcome));
                    }
                }
            }
        }
        assert!(ends.iter().all(|end| end.link.is_open() && end.link.is_encrypted() == encrypted));
        assert!(ends.iter().all(|end| end.link.pending().is_empty()));
        Self { encrypted, ends, altered: false, next: 1 }
    }

    /// False when the connection has ended.
    fn step(&mut self, [what, who, args @ ..]: [u8; OP]) -> bool {
        let who = usize::from(who & 1);
        let mut args = Data::new(&args);
        let number = args.array().map_or(0, u64::from_le_bytes);
        let small = args.u16().unwrap_or(0);
        match what % 32 {
            0..=2 => self.say_records(number, small),
            3..=4 => self.say_claims(number, small),
            5 => self.say(who, "a ping", |sum| sum.number(number), |out| out.ping(number)),
            6 => self.say(who, "a pong", |sum| sum.number(number), |out| out.pong(number)),
            7 => self.say_gap(number, small),
            8 => self.say_bye(who, number, small),
            9 => self.flush(who),
            10 => self.say(0, "a pace", |sum| sum.number(number & 1), |out| out.pace(number & 1 == 1)),
            14 => return self.carry(who, usize::from(small), Some((number, number >> 32))),
            15..=22 => {
                self.flush(who);
                return self.carry(who, usize::MAX, None);
            }
            _ => return self.carry(who, usize::from(small), None),
        }
        true
    }

    /// The listener sends headers of a few shapes; a run of them shares a batch.
    fn say_records(&mut self, number: u64, small: u16) {
        for n in 0..=small % 8 {
            let mut bytes = [0; size_of::<Returned>()];
            for (i, word) in bytes.chunks_mut(8).enumerate() {
                let word_at = number.rotate_left(7 * i as u32) & mask(small.wrapping_add(n), i);
                word.copy_from_slice(&word_at.to_le_bytes());
            }
            let mut record = Returned::read_from_bytes(&bytes).expect("it is as long");
            record.kind = flow::record::kind::TCP;
            record.position = self.next;
            let mut room = [0; returns::MAX_RECORD];
            let len = returns::encode(&record, &mut room);
            let carried = returns::decode(&room[..len], record.position).expect("what was encoded").0;
            let end = &mut self.ends[1];
            if !matches!(end.open, Some(Open::Batch { next, .. }) if next == record.position) {
                end.close();
            }
            let room_before = end.link.outgoing().room();
            if !end.link.outgoing().record(&record) {
                end.close();
                return;
            }
            if end.link.outgoing().room() != room_before {
                // The batch was full: it went, and this record begins another.
                end.close();
            }
            self.next += 1;
            let open = end.open.take();
            let mut sum = match open {
                Some(Open::Batch { sum, .. }) => sum,
                _ => {
                    let mut sum = Sum::new("records");
                    sum.number(EPOCH);
                    sum
                }
            };
            sum.bytes(carried.as_bytes());
            end.open = Some(Open::Batch { sum, next: self.next });
        }
    }

    /// The dialer claims flows.
    fn say_claims(&mut self, number: u64, small: u16) {
        for n in 0..=u64::from(small % 8) {
            let mut bytes = [0; 36];
            bytes.chunks_mut(9).for_each(|part| part[..8].copy_from_slice(&(number ^ n).to_le_bytes()));
            let (client, target) = split(bytes);
            let end = &mut self.ends[0];
            let room_before = end.link.outgoing().room();
            if !end.link.outgoing().claim(&client, &target) {
                end.close();
                return;
            }
            if end.link.outgoing().room() != room_before {
                end.close();
            }
            let mut sum = match end.open.take() {
                Some(Open::Claims(sum)) => sum,
                _ => Sum::new("claims"),
            };
            sum.claim(&client, &target);
            end.open = Some(Open::Claims(sum));
        }
    }

    /// The listener has lost records.
    fn say_gap(&mut self, number: u64, small: u16) {
        let after = self.next + u64::from(small);
        let write = |sum: &mut Sum| {
            sum.number(number);
            sum.number(after);
        };
        let before = self.ends[1].said.len();
        self.say(1, "a gap", write, |out| out.gap(number, after));
        if self.ends[1].said.len() > before {
            self.next = after;
        }
    }

    fn say_bye(&mut self, who: usize, number: u64, small: u16) {
        let text: String = (0..small % 1024)
            .map(|i| char::from_u32((number >> (i % 24)) as u32 & 0x1ffff).unwrap_or('\u{fffd}'))
            .collect();
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let cut = (0..=clean.len().min(MAX_SENTENCE)).rev().find(|&at| clean.is_char_boundary(at));
        let sentence = &clean[..cut.unwrap_or(0)];
        self.say(who, "a farewell", |sum| sum.bytes(sentence.as_bytes()), |out| out.bye(&text));
    }

    /// Says one message; what is open goes before it.
    fn say(
        &mut self,
        who: usize,
        noun: &str,
        what: impl FnOnce(&mut Sum),
        how: impl FnOnce(&mut Outgoing) -> bool,
    ) {
        let end = &mut self.ends[who];
        let said = how(end.link.outgoing());
        end.close();
        if said {
            let mut sum = Sum::new(noun);
            what(&mut sum);
            end.said.push_back(sum.0);
        }
    }

    fn flush(&mut self, who: usize) {
        self.ends[who].link.outgoing().flush();
        self.ends[who].close();
    }

    /// Carries at most `most` bytes of what `who` says to the other end, altered as told. False when the other end has ended
    /// the connection.
    fn carry(&mut self, who: usize, most: usize, alter: Option<(u64, u64)>) -> bool {
        let (first, second) = self.ends.split_at_mut(1);
        let (from, to) =
            if who == 0 { (&mut first[0], &mut second[0]) } else { (&mut second[0], &mut first[0]) };
        let room = to.link.receive_buffer();
        assert!(!room.is_empty(), "no room although all messages were taken");
        let n = from.link.pending().len().min(most).min(room.len());
        room[..n].copy_from_slice(&from.link.pending()[..n]);
        if let (Some((at, by)), 1..) = (alter, n) {
            let by = (by as u8).max(1);
            room[at as usize % n] ^= by;
            self.altered = true;
        }
        to.link.received(n);
        from.link.sent(n);
        loop {
            match to.link.next() {
                Ok(None) => return true,
                Ok(Some(message)) => {
                    let heard = digest(&message);
                    let said = from.said.pop_front();
                    assert!(
                        said == Some(heard) || self.altered && !self.encrypted,
                        "{message:?} was never said"
                    );
                }
                Err(error) => {
                    assert!(self.altered, "an honest line, but {error}");
                    reach::note(error.reason().name());
                    assert_eq!(to.link.next().err(), Some(error), "the first error is final");
                    return false;
                }
            }
        }
    }

    /// Everything that was said is heard, unless the line altered some of it.
    fn deliver_all(&mut self) {
        for who in [0, 1] {
            self.flush(who);
            while !self.ends[who].link.pending().is_empty() {
                if !self.carry(who, usize::MAX, None) {
                    // A new pair next time.
                    *self = Self::new(self.encrypted);
                    return;
                }
            }
        }
        if self.altered {
            *self = Self::new(self.encrypted);
        }
        assert!(self.ends.iter().all(|end| end.said.is_empty()), "said but never heard");
    }
}

impl End {
    /// What was open is a message now.
    fn close(&mut self) {
        if let Some(Open::Claims(sum) | Open::Batch { sum, .. }) = self.open.take() {
            self.said.push_back(sum.0);
        }
    }
}

/// Which bits of word `i` of a record may be set: all, few or none, by the shape.
const fn mask(shape: u16, i: usize) -> u64 {
    match (shape as usize + i) % 4 {
        0 => 0,
        1 => 0xff,
        2 => 0xffff_0000_ffff,
        _ => u64::MAX,
    }
}

fn split(bytes: [u8; 36]) -> (Endpoint, Endpoint) {
    let (client, target) = bytes.split_at(18);
    let read = |bytes| Endpoint::read_from_bytes(bytes).expect("an endpoint has 18 bytes");
    (read(client), read(target))
}
