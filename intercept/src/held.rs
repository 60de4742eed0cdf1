//! Headers whose claim may still be on its way: kept in a bounded ring for a bounded moment, found by their flow when the
//! claim comes. A flow's claim leaves before its SYN, but by another path.

use std::time::Duration;

use flow::Returned;

/// The ring. Entries are numbered for ever; `tail..head` are in it.
pub(crate) struct Held {
    entries: Box<[Entry]>,
    /// For each hash bucket the newest entry, as number + 1; 0 is none. Entries of a bucket are chained backwards.
    buckets: Box<[u64]>,
    tail: u64,
    head: u64,
    /// Entries in the ring that were not taken yet.
    waiting: usize,
    hold_us: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    record: Returned,
    until_us: u64,
    /// The bucket's previous entry, as number + 1.
    previous: u64,
    taken: bool,
}

/// Headers of one flow released by one claim at most: an answer of an initial window and more.
const MAX_RELEASED: usize = 64;

impl Held {
    /// Room for `capacity` headers, each held for `hold`.
    pub(crate) fn new(capacity: usize, hold: Duration) -> Self {
        let capacity = capacity.next_power_of_two();
        let empty = Entry { record: Returned::default(), until_us: 0, previous: 0, taken: true };
        Self {
            entries: vec![empty; capacity].into_boxed_slice(),
            buckets: vec![0; capacity].into_boxed_slice(),
            tail: 0,
            head: 0,
            waiting: 0,
            hold_us: hold.as_micros() as u64,
        }
    }

    /// Whether nothing waits.
    pub(crate) const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// When the oldest must go.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        (self.waiting > 0).then(|| self.entries[self.index(self.tail)].until_us)
    }

    /// Holds a header whose flow has this hash; `false` when the ring is full.
    pub(crate) fn hold(&mut self, now_us: u64, hash: u64, record: &Returned) -> bool {
        if self.head - self.tail == self.entries.len() as u64 {
            return false;
        }
        let bucket = hash as usize & (self.buckets.len() - 1);
        let index = self.index(self.head);
        self.entries[index] = Entry {
            record: *record,
            until_us: now_us + self.hold_us,
            previous: self.buckets[bucket],
            taken: false,
        };
        self.head += 1;
        self.buckets[bucket] = self.head;
        self.waiting += 1;
        true
    }

    /// Gives the held headers of one flow to `each`, oldest first.
    pub(crate) fn release(
        &mut self,
        hash: u64,
        flow: impl Fn(&Returned) -> bool,
        mut each: impl FnMut(&Returned),
    ) {
        if self.waiting == 0 {
            return;
        }
        let (mut found, mut count) = ([0; MAX_RELEASED], 0);
        let mut link = self.buckets[hash as usize & (self.buckets.len() - 1)];
        // Entries before the tail are gone: what stands in their place belongs to another chain.
        while link > self.tail && count < MAX_RELEASED {
            let entry = &self.entries[self.index(link - 1)];
            if !entry.taken && flow(&entry.record) {
                found[count] = link - 1;
                count += 1;
            }
            link = entry.previous;
        }
        for &number in found[..count].iter().rev() {
            let index = self.index(number);
            self.entries[index].taken = true;
            self.waiting -= 1;
            each(&self.entries[index].record);
        }
        self.trim();
    }

    /// Drops what was held long enough; returns how many headers were lost by it.
    pub(crate) fn expire(&mut self, now_us: u64) -> u64 {
        let mut lost = 0;
        while self.tail < self.head {
            let index = self.index(self.tail);
            let entry = &mut self.entries[index];
            if !entry.taken {
                if entry.until_us > now_us {
                    break;
                }
                entry.taken = true;
                self.waiting -= 1;
                lost += 1;
            }
            self.tail += 1;
        }
        lost
    }

    /// Frees what was taken at the old end.
    fn trim(&mut self) {
        while self.tail < self.head && self.entries[self.index(self.tail)].taken {
            self.tail += 1;
        }
    }

    const fn index(&self, number: u64) -> usize {
        number as usize & (self.entries.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flow: u16, n: u32) -> Returned {
        let mut r = Returned { payload_len: n, ..Returned::default() };
        r.client.port = flow;
        r
    }

    fn released(held: &mut Held, flow: u16) -> Vec<u32> {
        let mut got = Vec::new();
        held.release(u64::from(flow) % 3, |r| r.client.port == flow, |r| got.push(r.payload_len));
        got
    }

    #[test]
    fn a_claim_releases_its_flow_in_order_and_once() {
        let mut held = Held::new(16, Duration::from_micros(200));
        for (flow, n) in [(1, 1), (4, 2), (1, 3), (2, 4), (4, 5), (1, 6)] {
            assert!(held.hold(0, u64::from(flow) % 3, &header(flow, n)));
        }
        assert_eq!(released(&mut held, 1), [1, 3, 6]);
        assert!(released(&mut held, 1).is_empty());
        assert_eq!(released(&mut held, 4), [2, 5]);
        assert_eq!(held.expire(1000), 1, "flow 2 had no claim");
        assert!(held.is_empty() && held.deadline_us().is_none());
    }

    #[test]
    fn a_full_ring_refuses_and_old_headers_go() {
        let mut held = Held::new(4, Duration::from_micros(200));
        for n in 0..4 {
            assert!(held.hold(u64::from(n) * 10, 1, &header(1, n)));
        }
        assert!(!held.hold(50, 1, &header(1, 9)));
        assert_eq!(held.deadline_us(), Some(200));
        assert_eq!(held.expire(210), 2);
        assert!(held.hold(215, 1, &header(1, 10)));
        assert_eq!(released(&mut held, 1), [2, 3, 10]);
    }

    #[test]
    fn a_ring_that_wrapped_many_times_finds_only_what_is_there() {
        let mut held = Held::new(8, Duration::from_micros(5));
        let mut model: Vec<(u16, u32, u64)> = Vec::new();
        for n in 0..10_000_u32 {
            let (now, flow) = (u64::from(n), (n.wrapping_mul(2_654_435_761) >> 20) as u16 % 7);
            held.expire(now);
            model.retain(|&(_, _, until)| until > now);
            if held.hold(now, u64::from(flow) % 3, &header(flow, n)) {
                model.push((flow, n, now + 5));
            }
            let asked = (n / 3 % 7) as u16;
            let want: Vec<u32> = model.iter().filter(|m| m.0 == asked).map(|m| m.1).collect();
            model.retain(|m| m.0 != asked);
            assert_eq!(released(&mut held, asked), want, "step {n}");
        }
    }
}
