//! The sessions that may have something to emit: a queue through an array of links, each session in it at most once.

use crate::slot::NONE;
use crate::sys::prefetch;

/// Not in the queue: memory that nobody has touched yet.
const OUT: u32 = 0;
/// The queue's last.
const LAST: u32 = 1;

/// First in, first out, so that one busy session does not starve the others.
pub(crate) struct Ready {
    /// Two more than the next session, [`LAST`] or [`OUT`].
    next: Box<[u32]>,
    head: u32,
    tail: u32,
}

impl Ready {
    pub(crate) fn new(slots: u32) -> Self {
        Self { next: vec![OUT; slots as usize].into_boxed_slice(), head: NONE, tail: NONE }
    }

    /// Memory that it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.next)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// Asks for the link of a session.
    pub(crate) fn ask_for(&self, id: u32) {
        prefetch(&self.next[id as usize]);
    }

    pub(crate) fn push(&mut self, id: u32) {
        if self.next[id as usize] != OUT {
            return;
        }
        self.next[id as usize] = LAST;
        if self.tail == NONE {
            self.head = id;
        } else {
            self.next[self.tail as usize] = id + 2;
        }
        self.tail = id;
    }

    pub(crate) fn pop(&mut self) -> Option<u32> {
        let id = self.head;
        if id == NONE {
            return None;
        }
        (self.head, self.tail) = match std::mem::replace(&mut self.next[id as usize], OUT) {
            LAST => (NONE, NONE),
            next => (next - 2, self.tail),
        };
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_and_in_order() {
        let mut ready = Ready::new(4);
        for id in [2, 0, 2, 3] {
            ready.push(id);
        }
        assert_eq!([ready.pop(), ready.pop()], [Some(2), Some(0)]);
        ready.push(2);
        assert_eq!([ready.pop(), ready.pop(), ready.pop()], [Some(3), Some(2), None]);
        assert!(ready.is_empty());
    }
}
