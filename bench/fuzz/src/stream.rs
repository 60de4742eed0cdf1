//! Target `stream`: any bytes as what an end of a plain return channel receives, in portions of any size.
//!
//! The first byte says which end and how it is framed, the second how it is cut into portions:
//!
//! | bit | set | clear |
//! |---|---|---|
//! | 0 | a dialer receives | a listener receives |
//! | 1 | raw: the bytes begin with the preamble | framed: the preamble is put in front, every length is made to fit |
//! | 2 to 5 | a number of farewells behind the first frame, so that the buffer goes round | none |
//!
//! The oracle is the same stream given at once: portions change nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use flow::Endpoint;
use returns::{
    Hello, Link, LinkError, MAX_BODY, MAX_RANGES, MAX_SENTENCE, MAX_TARGETS, Message, Mode, Policy,
};
use zerocopy::IntoBytes;

use crate::dice::Dice;
use crate::reach;

/// Where the other end is said to be.
pub(crate) const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 36_524);

/// Type byte of a farewell.
const FAREWELL: u8 = 9;

/// Any bytes as what is received.
pub fn stream(data: &[u8]) {
    let Some((&[shape, portions], bytes)) = data.split_first_chunk::<2>() else { return };
    let dialer = shape & 1 != 0;
    let stream = if shape & 2 == 0 {
        framed(dialer, bytes, usize::from(shape >> 2 & 15) * 11)
    } else {
        bytes.to_vec()
    };
    let at_once = receive(end(dialer), &stream, usize::MAX);
    let in_portions = receive(end(dialer), &stream, usize::from(portions).pow(2));
    assert_eq!(in_portions, at_once, "portions of {portions}");
}

/// A link before its first byte.
fn end(dialer: bool) -> Link {
    match dialer {
        true => Link::dialer(Policy::Plain, &hello(), PEER).expect("a plain dialer needs no random bytes"),
        false => Link::listener(Policy::Plain, PEER),
    }
}

/// A hello as our dialers send it.
pub(crate) fn hello() -> Hello {
    Hello {
        software: "0.1.0".to_owned(),
        instance: 7,
        incarnation: 1,
        name: "fuzz".to_owned(),
        mode: Mode::Ranges(vec!["198.18.0.0/20".parse().expect("a range")]),
        targets: vec![PEER.into()],
        last: None,
    }
}

/// Preamble, then frames whose lengths are those of what follows.
fn framed(to_dialer: bool, mut bytes: &[u8], mut farewells: usize) -> Vec<u8> {
    let preamble = if to_dialer { &PREAMBLES.1 } else { &PREAMBLES.0 };
    let mut stream = preamble.clone();
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len()).min(MAX_BODY);
        stream.extend_from_slice(&(len as u16).to_le_bytes());
        let (body, behind) = rest.split_at(len);
        stream.extend_from_slice(body);
        bytes = behind;
        for n in 0..std::mem::take(&mut farewells) {
            let len = 400 + n % 100;
            stream.extend_from_slice(&(len as u16).to_le_bytes());
            stream.push(FAREWELL);
            stream.resize(stream.len() + len - 1, b'z');
        }
    }
    stream
}

/// What a plain dialer and a plain listener say first.
static PREAMBLES: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let (dialer, mut listener) = (end(true), end(false));
    let first = dialer.pending().to_vec();
    listener.receive_buffer()[..first.len()].copy_from_slice(&first);
    listener.received(first.len());
    assert!(matches!(listener.next(), Ok(None)) && listener.is_open());
    let second = listener.pending().to_vec();
    (first, second)
});

/// What a stream comes to: a digest of each message, then the error that ended it.
type Heard = (Vec<u64>, Option<LinkError>);

/// Gives the link everything, at most `most` bytes at a time.
fn receive(mut link: Link, stream: &[u8], most: usize) -> Heard {
    let mut dice = Dice::new(most as u64);
    let mut heard = Vec::new();
    let mut rest = stream;
    // Every message takes at least its length and type from the stream.
    let bound = stream.len() / 3 + 1;
    loop {
        loop {
            match link.next() {
                Ok(None) => break,
                Ok(Some(message)) => heard.push(digest(&message)),
                Err(error) => {
                    reach::note(error.reason().name());
                    assert!(!error.reason().name().is_empty() && error.to_string().len() > 20);
                    assert_eq!(link.next().err().as_ref(), Some(&error), "the first error is final");
                    return (heard, Some(error));
                }
            }
            assert!(heard.len() <= bound, "{} messages of {} bytes", heard.len(), stream.len());
        }
        if rest.is_empty() {
            return (heard, None);
        }
        let room = link.receive_buffer();
        assert!(!room.is_empty(), "no room although all messages were taken");
        let n = room.len().min(rest.len()).min(1 + dice.below(most.max(1)));
        room[..n].copy_from_slice(&rest[..n]);
        link.received(n);
        rest = &rest[n..];
    }
}

/// Looks at all that a message holds, within the bounds that it promises; two messages with one digest are the same.
pub(crate) fn digest(message: &Message<'_>) -> u64 {
    reach::note(message.noun());
    let mut sum = Sum::new(message.noun());
    match message {
        Message::Hello(hello) => {
            assert!(hello.targets.len() <= MAX_TARGETS);
            if let Mode::Ranges(ranges) = &hello.mode {
                assert!((1..=MAX_RANGES).contains(&ranges.len()));
            }
            sum.bytes(format!("{hello:?}").as_bytes());
        }
        Message::Welcome(welcome) => sum.bytes(format!("{welcome:?}").as_bytes()),
        Message::Refused(refused) => {
            assert!(refused.sentence.len() <= MAX_SENTENCE);
            sum.bytes(format!("{refused:?}").as_bytes());
        }
        Message::Claims(claims) => {
            assert_eq!(claims.iter().count(), claims.len());
            claims.iter().for_each(|(client, target)| sum.claim(&client, &target));
        }
        Message::Pace { eager } => sum.number(u64::from(*eager)),
        Message::Batch(batch) => {
            sum.number(batch.epoch);
            let mut position = batch.first;
            let mut count = 0;
            for record in batch.records() {
                count += 1;
                assert!(count <= batch.len() + 1, "a batch of {} has no end", batch.len());
                match record {
                    Ok(record) => {
                        assert_eq!(record.position, position);
                        position = position.wrapping_add(1);
                        sum.bytes(record.as_bytes());
                    }
                    Err(bad) => sum.bytes(bad.to_string().as_bytes()),
                }
            }
        }
        Message::Gap { dropped, next } => {
            sum.number(*dropped);
            sum.number(*next);
        }
        Message::Ping(token) | Message::Pong(token) => sum.number(*token),
        Message::Bye { sentence } => {
            assert!(sentence.len() <= MAX_SENTENCE);
            sum.bytes(sentence.as_bytes());
        }
    }
    sum.0
}

/// A running digest: FNV-1a in steps of eight bytes; nobody attacks it.
pub(crate) struct Sum(pub(crate) u64);

impl Sum {
    pub(crate) fn new(noun: &str) -> Self {
        let mut sum = Self(0xcbf2_9ce4_8422_2325);
        sum.bytes(noun.as_bytes());
        sum
    }

    pub(crate) const fn number(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let (words, tail) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.number(u64::from_le_bytes(*word)));
        tail.iter().for_each(|byte| self.number(u64::from(*byte)));
    }

    pub(crate) fn claim(&mut self, client: &Endpoint, target: &Endpoint) {
        self.bytes(client.as_bytes());
        self.bytes(target.as_bytes());
    }
}
