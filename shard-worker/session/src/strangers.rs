//! What is remembered about flows without a session: one acknowledgement number each, in a small table that forgets.
//!
//! A flow older than the capture may only be joined where a turn begins: at a data segment that acknowledges more than an
//! earlier packet of the flow did (REPLAY, "Mid-stream join"). The earliest number seen is the one to keep: with it,
//! pure acknowledgements of a long answer make the next request a boundary. Flows that never send data again cost nothing
//! but their entry.

use flow::Seq;
use zerocopy::FromZeros;

/// Entries of one set; a new flow takes the place of the oldest.
const WAYS: usize = 4;
/// Entries at least.
const LEAST: u32 = 8_192;

#[derive(Clone, Copy, Default, FromZeros)]
struct Entry {
    /// High half of the flow's hash; 0 is empty.
    tag: u32,
    ack: Seq,
}

/// The table.
pub(crate) struct Strangers {
    sets: Box<[[Entry; WAYS]]>,
}

impl Strangers {
    /// Of a size that fits a table of so many sessions: 4 bytes a session and never less than 64 KiB.
    pub(crate) fn new(sessions: u32) -> Self {
        let sets = ((sessions / 2).max(LEAST) as usize).div_ceil(WAYS);
        let sets = <[Entry; WAYS]>::new_vec_zeroed(sets).expect("memory for strangers");
        Self { sets: sets.into_boxed_slice() }
    }

    fn set(&mut self, hash: u64) -> (&mut [Entry; WAYS], u32) {
        let at = ((u64::from(hash as u32) * self.sets.len() as u64) >> 32) as usize;
        (&mut self.sets[at], ((hash >> 32) as u32).max(1))
    }

    /// Memory that it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    /// Notes a packet of the flow; whether it acknowledges more than the first one noted did.
    pub(crate) fn moved_on(&mut self, hash: u64, ack: Seq) -> bool {
        let (set, tag) = self.set(hash);
        match set.iter().find(|entry| entry.tag == tag) {
            Some(entry) => ack.after(entry.ack),
            None => {
                set.rotate_right(1);
                set[0] = Entry { tag, ack };
                false
            }
        }
    }

    /// The flow is in the table of sessions now, or over.
    pub(crate) fn forget(&mut self, hash: u64) {
        let (set, tag) = self.set(hash);
        set.iter_mut().filter(|entry| entry.tag == tag).for_each(|entry| *entry = Entry::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_is_where_the_client_has_read_something() {
        let mut strangers = Strangers::new(100);
        assert!(!strangers.moved_on(1 << 40, Seq(50)));
        assert!(!strangers.moved_on(1 << 40, Seq(50)));
        assert!(strangers.moved_on(1 << 40, Seq(51)));
        strangers.forget(1 << 40);
        assert!(!strangers.moved_on(1 << 40, Seq(90)));
    }

    #[test]
    fn too_many_flows_are_forgotten_not_kept() {
        let mut strangers = Strangers::new(100);
        for flow in 1..100u64 {
            assert!(!strangers.moved_on(flow << 32, Seq(1)));
        }
        assert!(!strangers.moved_on(1 << 32, Seq(2)), "the oldest of its set went");
        assert!(strangers.moved_on(99 << 32, Seq(2)));
    }
}
