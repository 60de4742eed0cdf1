//! Both input rings. A batch of each is looked at where it lies and freed only after everything that followed from it was
//! published: outputs first, inputs last. A worker that dies in between finds the same inputs again.

use flow::{Captured, Returned, record};
use shm::{Batch, Consumer};

/// Records of each ring in one step (DESIGN 6).
pub(crate) const BATCH: usize = 32;

/// The reading ends of the capture and return rings.
pub(crate) struct Inbox {
    captured: Consumer,
    returned: Consumer,
}

/// A batch of each.
pub(crate) struct Taken<'i> {
    captured: Batch<'i>,
    returned: Batch<'i>,
}

impl Inbox {
    pub(crate) fn new(captured: Consumer, returned: Consumer) -> Self {
        Self { captured, returned }
    }

    /// The next records of both rings, possibly none.
    pub(crate) fn take(&mut self) -> Taken<'_> {
        Taken { captured: self.captured.peek_batch(BATCH), returned: self.returned.peek_batch(BATCH) }
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

    /// The returned headers; `None` for a record of another length.
    pub(crate) fn returned(&self) -> impl Iterator<Item = Option<Returned>> {
        self.returned.iter().map(|bytes| {
            let (header, rest) = record::split::<Returned>(bytes)?;
            rest.is_empty().then_some(header)
        })
    }

    /// The captured segments with their payload; `None` for a record whose lengths disagree.
    pub(crate) fn captured(&self) -> impl Iterator<Item = Option<(Captured, &[u8])>> {
        self.captured.iter().map(Captured::split)
    }

    /// Frees both.
    pub(crate) fn release(self) {
        self.captured.release();
        self.returned.release();
    }
}
