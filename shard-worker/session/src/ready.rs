//! The sessions that may have something to emit: a queue, each session in it at most once.
//!
//! A ring of slot numbers and a bit for each slot, all of which a core's own cache holds: links through an array would be one
//! more line of memory for each session in it.

/// First in, first out, so that one busy session does not starve the others.
pub(crate) struct Ready {
    /// Room for every slot.
    ring: Box<[u32]>,
    /// Which slots are in it.
    queued: Box<[u64]>,
    first: u32,
    len: u32,
}

impl Ready {
    pub(crate) fn new(slots: u32) -> Self {
        let (ring, queued) = (vec![0; slots as usize], vec![0; (slots as usize).div_ceil(64)]);
        Self { ring: ring.into_boxed_slice(), queued: queued.into_boxed_slice(), first: 0, len: 0 }
    }

    /// Memory that it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.ring) + size_of_val(&*self.queued)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, id: u32) {
        let (word, bit) = (&mut self.queued[id as usize / 64], 1 << (id % 64));
        if *word & bit != 0 {
            return;
        }
        *word |= bit;
        let at = self.after(self.first, self.len);
        self.ring[at as usize] = id;
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        let id = self.ring[self.first as usize];
        self.first = self.after(self.first, 1);
        self.queued[id as usize / 64] &= !(1 << (id % 64));
        Some(id)
    }

    /// The place so many steps on.
    fn after(&self, at: u32, steps: u32) -> u32 {
        let (at, places) = (u64::from(at) + u64::from(steps), self.ring.len() as u64);
        (if at < places { at } else { at - places }) as u32
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

    #[test]
    fn there_is_room_for_all_wherever_the_first_stands() {
        let mut ready = Ready::new(3);
        for round in 0..5 {
            (0..3).for_each(|n| ready.push((n + round) % 3));
            assert_eq!([(); 3].map(|()| ready.pop()), [0, 1, 2].map(|n| Some((n + round) % 3)));
            ready.push(0);
            assert_eq!((ready.pop(), ready.pop()), (Some(0), None));
        }
    }
}
