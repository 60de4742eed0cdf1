//! The records of one instance by position: at once the bounded queue of a slow peer and the memory that a reconnecting
//! one resumes from. The newest `capacity` records are kept; older ones are overwritten.

use flow::Returned;

/// A ring of records. Positions never repeat within an epoch, whoever owns the slot.
pub(crate) struct Window {
    slots: Box<[Returned]>,
    /// Position that its first record got.
    first: u64,
    /// Position that the next record gets.
    next: u64,
}

impl Window {
    /// `capacity` records, a power of two; memory is touched only as it fills.
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "the position is masked to find its slot");
        let slots = <[Returned] as zerocopy::FromZeros>::new_box_zeroed_with_elems(capacity)
            .expect("a window of a few MiB can be allocated");
        Self { slots, first: 1, next: 1 }
    }

    /// The same, still empty, with the next position at `first` or beyond: an owner before it had those below.
    pub(crate) const fn beginning_at(mut self, first: u64) -> Self {
        (self.first, self.next) = (first, first);
        self
    }

    /// Keeps a record; returns its position.
    pub(crate) fn push(&mut self, record: &Returned) -> u64 {
        let position = self.next;
        let index = self.index(position);
        self.slots[index] = Returned { position, ..*record };
        self.next += 1;
        position
    }

    /// Position that the next record gets.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// Position of the oldest record that is still there.
    pub(crate) fn oldest(&self) -> u64 {
        self.next.saturating_sub(self.slots.len() as u64).max(self.first)
    }

    /// The record at a position from `oldest` up to, but not including, `next`.
    pub(crate) fn get(&self, position: u64) -> &Returned {
        debug_assert!((self.oldest()..self.next).contains(&position));
        &self.slots[self.index(position)]
    }

    const fn index(&self, position: u64) -> usize {
        position as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_records_are_kept_by_position() {
        let mut window = Window::new(4);
        assert_eq!((window.oldest(), window.next()), (1, 1));
        for n in 1..=10 {
            assert_eq!(window.push(&Returned { payload_len: n, ..Returned::default() }), u64::from(n));
        }
        assert_eq!((window.oldest(), window.next()), (7, 11));
        for position in 7..11 {
            let r = window.get(position);
            assert_eq!((r.position, u64::from(r.payload_len)), (position, position));
        }
    }

    #[test]
    fn a_window_that_begins_later_has_nothing_from_before() {
        let mut window = Window::new(4).beginning_at(100);
        assert_eq!((window.oldest(), window.next()), (100, 100));
        window.push(&Returned::default());
        assert_eq!((window.oldest(), window.next(), window.get(100).position), (100, 101, 100));
    }
}
