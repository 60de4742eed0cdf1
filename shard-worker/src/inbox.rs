//! Both input rings. A batch of each is looked at where it lies and freed only after everything that followed from it was
//! published: outputs first, inputs last. A worker that dies in between finds the same inputs again.

use flow::{Captured, Returned, record};
use session::{Datagrams, Table};
use shm::{Batch, Consumer, Item, Journal, Link, Word};

/// Records of each ring in one step (DESIGN 6).
pub(crate) const BATCH: usize = 32;

/// A batch of fewer packets has no misses that could overlap.
const FEW: usize = 4;

/// The reading ends of the capture and return rings.
pub(crate) struct Inbox {
    shard: u16,
    captured: Consumer,
    returned: Consumer,
}

/// A batch of each, and how far they are done.
pub(crate) struct Taken<'i> {
    shard: u16,
    captured: Batch<'i>,
    returned: Batch<'i>,
    captured_done: usize,
    returned_done: usize,
}

impl Inbox {
    pub(crate) fn new(shard: u16, captured: Consumer, returned: Consumer) -> Self {
        Self { shard, captured, returned }
    }

    /// The next records of both rings, possibly none.
    pub(crate) fn take(&mut self) -> Taken<'_> {
        self.take_up_to(BATCH)
    }

    /// The next answers alone.
    pub(crate) fn take_returned(&mut self) -> Taken<'_> {
        self.take_up_to(0)
    }

    fn take_up_to(&mut self, captured: usize) -> Taken<'_> {
        Taken {
            shard: self.shard,
            captured: self.captured.peek_batch(captured),
            returned: self.returned.peek_batch(BATCH),
            captured_done: 0,
            returned_done: 0,
        }
    }

    /// Whether nothing waits, as of now.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.captured.is_empty() && self.returned.is_empty()
    }

    /// Whether no captured segment waits, as of now.
    pub(crate) fn no_captures(&mut self) -> bool {
        self.captured.is_empty()
    }

    /// Times that a ring's bytes made no sense and all that was published in it was skipped.
    pub(crate) fn faults(&self) -> u64 {
        self.captured.faults() + self.returned.faults()
    }
}

impl Taken<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.captured.is_empty() && self.returned.is_empty()
    }

    /// Lets the machine ask for the memory that this batch will need, but for datagrams, which are not its own.
    pub(crate) fn foresee(&self, table: &mut Table, is_datagram: impl Fn(&Captured) -> bool) {
        // Also then: what was foreseen of the batch before is over.
        let few = self.captured.len() + self.returned.len() < FEW;
        let captured = self.captured.iter().filter_map(|bytes| Captured::split(bytes).map(|(head, _)| head));
        let returned =
            self.returned.iter().filter_map(|bytes| record::split::<Returned>(bytes).map(|(head, _)| head));
        table.foresee(
            captured.filter(|head| !few && !is_datagram(head)),
            returned.filter(|head| !few && !Datagrams::is_answer(head)),
        );
    }

    /// The next returned header, and its name; `None` inside for a record of another length.
    pub(crate) fn next_returned(&self) -> Option<(Item, Option<Returned>)> {
        let position = self.returned.position(self.returned_done)?;
        let header = self.returned.get(self.returned_done).and_then(|bytes| {
            let (header, rest) = record::split::<Returned>(bytes)?;
            rest.is_empty().then_some(header)
        });
        Some((Item::Returned(position), header))
    }

    /// The next captured segment, and its name; `None` inside for a record whose lengths disagree.
    pub(crate) fn next_captured(&self) -> Option<(Item, Option<Segment<'_>>)> {
        let position = self.captured.position(self.captured_done)?;
        Some((Item::Captured(position), self.captured.get(self.captured_done).and_then(Captured::split)))
    }

    /// The record with this name, if it is among these.
    pub(crate) fn find(mut self, name: Item) -> Option<Found> {
        while let Some((item, header)) = self.next_returned() {
            if item == name {
                return header.map(Found::Returned);
            }
            self.returned_is_done();
        }
        while let Some((item, segment)) = self.next_captured() {
            if item == name {
                return segment.map(|(segment, _)| Found::Captured(segment));
            }
            self.captured_is_done();
        }
        None
    }

    pub(crate) fn returned_is_done(&mut self) {
        self.returned_done += 1;
    }

    /// Whether nothing of the batch was done.
    pub(crate) fn is_untouched(&self) -> bool {
        self.captured_done == 0 && self.returned_done == 0
    }

    pub(crate) fn captured_is_done(&mut self) {
        self.captured_done += 1;
    }

    /// Where both rings stand once what is done is freed.
    pub(crate) fn note(&self, journal: &mut Journal) {
        journal.put(Word::Head(Link::Capture(self.shard)), self.captured.head_after(self.captured_done));
        journal.put(Word::Head(Link::Returns(self.shard)), self.returned.head_after(self.returned_done));
    }

    /// Frees what is done.
    pub(crate) fn free(&mut self) {
        self.captured.free_first(self.captured_done);
        self.returned.free_first(self.returned_done);
    }
}

/// A captured segment and its payload.
type Segment<'i> = (Captured, &'i [u8]);

/// See [`Taken::find`].
pub(crate) enum Found {
    Captured(Captured),
    Returned(Returned),
}
