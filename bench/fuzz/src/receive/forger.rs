//! Frames of an intercept that has the key and says anything: each is made at its place of the stream and then altered, most of them
//! so that the connection goes on, since behind one that ends it nothing is looked at.

use flow::Returned;
use flow::record::kind;
use returns::{MAX_BODY, MAX_RECORD, encode};
use zerocopy::FromBytes as _;

use super::hearing::{Place, tag};
use crate::dice::Dice;
use crate::mutate::{Shape, mutate};

pub(super) struct Forger {
    dice: Dice,
    body: Vec<u8>,
    /// One frame in so many ends the connection.
    ends: usize,
}

/// How rarely a frame ends the connection, which costs as much as hundreds of others.
const ENDS: usize = 128;
/// Alterations that are tried until one does what it should.
const TRIES: usize = 32;
/// One batch in so many is as long as a frame can be.
const LONG: usize = 512;
/// Where a gap goes to, beyond which a stream ends soon.
const FAR: u64 = 1 << 40;
const BYTES: Shape = Shape { head: 0, unit: 1, repair: |_, _| {} };

impl Forger {
    pub(super) const fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), body: Vec::new(), ends: ENDS }
    }

    pub(super) const fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    /// From now on no frame ends the connection.
    pub(super) const fn keep_on(&mut self) {
        self.ends = usize::MAX;
    }

    /// The inside of the next frame.
    pub(super) fn body(&mut self, at: Place) -> &[u8] {
        let ends = self.dice.once_in(self.ends);
        for _ in 0..TRIES {
            self.write(at);
            self.alter();
            let mut after = at;
            let goes_on = after.take(&self.body, &mut |_| {}) && after.next - at.next < FAR;
            if goes_on != ends {
                return &self.body;
            }
        }
        self.body.clear();
        self.body.push(if ends { u8::MAX } else { tag::PONG });
        self.body.extend_from_slice(&self.dice.roll().to_le_bytes());
        &self.body
    }

    /// Something that may be said here.
    fn write(&mut self, at: Place) {
        self.body.clear();
        match self.dice.below(16) {
            0 => self.words(tag::PING, &[0]),
            1 => self.words(tag::PONG, &[0]),
            2 => {
                let (dropped, far) = (self.dice.roll(), self.dice.below(4) as u64);
                self.words(tag::GAP, &[dropped, at.next.saturating_add(far)]);
            }
            3 => {
                let len = self.dice.below(64);
                self.body.push(self.dice.below(12) as u8);
                (0..len).for_each(|_| self.body.push(self.dice.roll() as u8));
            }
            _ => self.batch(at),
        }
    }

    fn words(&mut self, what: u8, words: &[u64]) {
        self.body.push(what);
        words.iter().for_each(|word| self.body.extend_from_slice(&word.to_le_bytes()));
    }

    fn batch(&mut self, at: Place) {
        let most = if self.dice.once_in(LONG) { MAX_BODY } else { self.dice.below(9) * MAX_RECORD };
        self.words(tag::BATCH, &[at.epoch, at.next]);
        let count_at = self.body.len();
        self.body.extend_from_slice(&[0; 2]);
        let mut count = 0u16;
        while self.body.len() + MAX_RECORD <= most {
            let mut room = [0; MAX_RECORD];
            let len = encode(&self.record(), &mut room);
            self.body.extend_from_slice(&room[..len]);
            count += 1;
        }
        self.body[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
    }

    /// Any header; in some of them most is zero.
    fn record(&mut self) -> Returned {
        let mut bytes = [0; size_of::<Returned>()];
        for word in bytes.chunks_mut(8) {
            let sparse = [0, 0xff, 0xffff_0000_ffff, u64::MAX][self.dice.below(4)];
            word.copy_from_slice(&(self.dice.roll() & sparse).to_le_bytes());
        }
        let mut record = Returned::read_from_bytes(&bytes).expect("it is as long");
        record.kind = *self.dice.pick(&[kind::TCP, kind::TCP, kind::UDP, kind::ICMP, kind::UDP_ICMP]);
        if self.dice.once_in(2) {
            for endpoint in [&mut record.client, &mut record.target] {
                endpoint.addr = flow::Addr::v4((self.dice.roll() as u32).to_le_bytes());
            }
        }
        record
    }

    fn alter(&mut self) {
        if self.body.len() > crate::mutate::LONGEST {
            // In place: it would be cut.
            let at = self.dice.below(self.body.len());
            self.body[at] ^= 1 << self.dice.below(8);
        } else {
            mutate(&mut self.dice, &BYTES, &mut self.body, &[]);
        }
    }
}
