//! What comes of the frames that reach a dialer who was welcomed: the rules of `returns::incoming` once more, as plainly as they can be
//! said, so that the target `receive` knows of every frame what the receiver has to make of it.

use flow::Returned;
use returns::{MAX_FRAME, decode};

use crate::reach;

/// Where the stream of records stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) epoch: u64,
    /// Position of the next record.
    pub(super) next: u64,
}

/// Types of messages after a welcome; every other one ends the connection.
pub(super) mod tag {
    pub(crate) const BATCH: u8 = 5;
    pub(crate) const GAP: u8 = 6;
    pub(crate) const PING: u8 = 7;
    pub(crate) const PONG: u8 = 8;
}

impl Place {
    /// Takes the inside of one frame, and gives its headers to `heard`; false when the connection ends with it.
    pub(super) fn take(&mut self, body: &[u8], heard: &mut dyn FnMut(Returned)) -> bool {
        let Some((&what, rest)) = body.split_first() else { return false };
        match what {
            tag::BATCH => self.batch(rest, heard).is_some(),
            tag::GAP => {
                let Ok(words) = <[u8; 16]>::try_from(rest) else { return false };
                let next = u64::from_le_bytes(words[8..].try_into().expect("eight bytes"));
                let goes_on = next >= self.next;
                self.next = self.next.max(next);
                goes_on
            }
            tag::PING | tag::PONG => rest.len() == 8,
            _ => false,
        }
    }

    /// None when something is wrong with it; what stands before that is heard.
    fn batch(&mut self, rest: &[u8], heard: &mut dyn FnMut(Returned)) -> Option<()> {
        let (epoch, rest) = rest.split_first_chunk()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (count, mut records) = rest.split_first_chunk()?;
        let after = self.next.checked_add(u16::from_le_bytes(*count).into())?;
        if u64::from_le_bytes(*epoch) != self.epoch || u64::from_le_bytes(*first) != self.next {
            return None;
        }
        for position in std::mem::replace(&mut self.next, after)..after {
            let (record, used) = decode(records, position).ok()?;
            records = &records[used..];
            heard(record);
        }
        records.is_empty().then_some(())
    }
}

/// The other end of one connection.
pub(super) struct Hearing {
    place: Place,
    /// Bytes of a plain line that are no whole frame yet.
    line: Vec<u8>,
    over: bool,
}

impl Hearing {
    pub(super) const fn new(place: Place) -> Self {
        Self { place, line: Vec::new(), over: false }
    }

    pub(super) const fn place(&self) -> Place {
        self.place
    }

    /// Whether the connection has to end.
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    /// The inside of one frame.
    pub(super) fn body(&mut self, body: &[u8], heard: &mut dyn FnMut(Returned)) {
        if self.over {
            return;
        }
        self.over = !self.place.take(body, heard);
        reach::count(if self.over { "refused" } else { "taken" }, 1);
    }

    /// Bytes of a plain line, cut anywhere.
    pub(super) fn line(&mut self, bytes: &[u8], heard: &mut dyn FnMut(Returned)) {
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(bytes);
        let mut rest = &line[..];
        while let Some((len, behind)) = rest.split_first_chunk()
            && !self.over
        {
            let len = usize::from(u16::from_le_bytes(*len));
            if len > MAX_FRAME {
                self.over = true;
                reach::count("refused", 1);
                break;
            }
            let Some((body, behind)) = behind.split_at_checked(len) else { break };
            self.body(body, heard);
            rest = behind;
        }
        let left = rest.len();
        line.drain(..line.len() - left);
        self.line = line;
    }
}
