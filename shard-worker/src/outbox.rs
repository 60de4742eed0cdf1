//! The inject ring as the machine's sink. Before any input is taken there must be room for one full burst: a shard takes no
//! input that it could not answer (DESIGN 4), so a slow injector slows the shard and loses nothing.

use flow::Inject;
use session::{BURST, BURST_BYTES, Sink};
use shm::{Control, Producer, Waiting};
use topology::restraint::connection_ns;
use zerocopy::IntoBytes;

/// Ring bytes of the largest burst: each record is its head, its payload, the ring's own head, rounded up to a line.
pub(crate) const BURST_ROOM: usize = BURST_BYTES + BURST * (Producer::record_bytes(size_of::<Inject>()) + 63);

/// The smallest inject ring: a burst fits into whichever half of it is free, and a burst of one record into one record.
pub(crate) const MIN_RING: usize = 2 * BURST_ROOM;

/// Records that wait for the injector at most. What waits behind more of them is only late: a ring full of SYNs is a second's work
/// for an injector, and whoever is connected would wait through it with each request. A core that comes late by some milliseconds
/// still finds work for as long as the shard sleeps.
const MOST_WAITING: u32 = 4_096;

/// The writing end of the inject ring.
pub(crate) struct Outbox {
    ring: Producer,
    waiting: Waiting,
    /// Records that found no room although it had been made, or whose parts are not as long as their head says: bugs.
    refused: u64,
    /// The rate of connections, where there is one.
    book: Option<Book>,
}

/// How connections are booked.
#[derive(Clone, Copy)]
pub(crate) struct Book {
    control: &'static Control,
    interval_ns: u64,
    most_ns: u64,
}

/// Longest that a connection waits for its moment, and where more is asked for than there is, how long all of them wait: less than
/// until a client sends its SYN again (RFC 6298, 2.1).
const MOST_NS: u64 = 1_000_000_000;

impl Book {
    /// For so many connections a second; what comes from a file waits as long as it takes.
    pub(crate) fn new(control: &'static Control, per_s: u64, patient: bool) -> Self {
        let most_ns = if patient { u64::MAX } else { MOST_NS };
        Self { control, interval_ns: connection_ns(per_s), most_ns }
    }
}

impl Outbox {
    pub(crate) fn new(ring: Producer, book: Option<Book>) -> Self {
        Self { ring, waiting: Waiting::at_most(MOST_WAITING), refused: 0, book }
    }

    /// Whether a full burst fits now, and will not be late.
    pub(crate) fn has_room(&mut self) -> bool {
        self.waiting.has_room(&mut self.ring) && self.ring.credits() >= BURST_ROOM
    }

    /// Whether anything was emitted that is not visible yet.
    pub(crate) fn is_staged(&self) -> bool {
        self.ring.is_staged()
    }

    /// Up to where the ring will be published.
    pub(crate) fn staged(&self) -> u64 {
        self.ring.staged()
    }

    /// Makes what was emitted visible; true if there was anything.
    pub(crate) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// See the field.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }
}

impl Sink for Outbox {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        let len = size_of::<Inject>() + head.payload_len as usize;
        let Some(record) = self.ring.reserve(len) else {
            self.refused += 1;
            return;
        };
        let (start, mut room) = record.split_at_mut(size_of::<Inject>());
        start.copy_from_slice(head.as_bytes());
        for part in parts {
            let Some((now, later)) = room.split_at_mut_checked(part.len()) else {
                self.refused += 1;
                return;
            };
            now.copy_from_slice(part);
            room = later;
        }
        if room.is_empty() {
            self.ring.commit(len);
            self.waiting.put();
        } else {
            self.refused += 1;
        }
    }

    fn book(&mut self, now_us: u64) -> Option<u64> {
        let Some(Book { control, interval_ns, most_ns }) = self.book else { return Some(now_us) };
        let at_ns = control.book_connection(now_us * 1_000, interval_ns, most_ns)?;
        Some(at_ns.div_ceil(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(len: usize) -> Inject {
        Inject { payload_len: len as u32, mss: 1_448, ..Inject::default() }
    }

    #[test]
    fn the_largest_burst_fits_whenever_there_is_room() {
        let (ring, mut injector) = shm::ring::heap(MIN_RING.next_power_of_two() as u32);
        let mut outbox = Outbox::new(ring, None);
        let payload = vec![7; BURST_BYTES];
        let mut seen = 0;
        for lap in 0..400usize {
            if outbox.has_room() {
                // One record takes all the payload, at another place each lap; the others are bare.
                for i in 0..BURST {
                    let part = if i == lap % BURST { &payload[lap..] } else { &[] };
                    outbox.emit(&head(part.len()), part.chunks(1_024));
                }
                assert!(outbox.publish());
            }
            // The injector takes uneven bites.
            let batch = injector.peek_batch(1 + lap * 7 % 23);
            for bytes in &batch {
                assert!(Inject::split(bytes).is_some());
                seen += 1;
            }
            batch.release();
        }
        assert_eq!(outbox.refused(), 0);
        assert!(seen > 100);
    }

    #[test]
    fn no_more_waits_than_leaves_soon() {
        let (ring, mut injector) = shm::ring::heap(1 << 24);
        let mut outbox = Outbox::new(ring, None);
        let mut fill = |injector: &mut shm::Consumer| {
            let mut emitted = 0;
            while outbox.has_room() {
                (0..BURST).for_each(|_| outbox.emit(&head(0), std::iter::empty()));
                emitted += BURST;
            }
            outbox.publish();
            assert!(!injector.is_empty());
            emitted
        };
        let most = MOST_WAITING as usize;
        assert_eq!(fill(&mut injector), most);
        for _ in 0..10 {
            for _ in 0..most / 2 {
                assert!(injector.next().is_some());
            }
            injector.release();
            assert_eq!(fill(&mut injector), most / 2, "when the older half has left");
        }
    }

    #[test]
    fn parts_that_do_not_add_up_are_not_sent() {
        let (ring, mut injector) = shm::ring::heap(1 << 16);
        let mut outbox = Outbox::new(ring, None);
        outbox.emit(&head(10), [&[1u8; 4][..]].into_iter());
        outbox.emit(&head(3), [&[1u8; 4][..]].into_iter());
        assert!(!outbox.publish() && injector.is_empty());
        assert_eq!(outbox.refused(), 2);
    }
}
