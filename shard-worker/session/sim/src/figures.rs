//! What a run comes to, in numbers that can be added up over worlds and handed from one process to another as a line.

use flow::{Drop, named_enum};
use session::Count;

named_enum! {
    /// What the worlds count themselves, beside the table's own counters.
    pub enum Figure {
        /// Worlds.
        Seeds => "seeds",
        /// Flows of real clients.
        Flows => "flows",
        /// Sessions that the table has opened.
        Sessions => "sessions",
        /// Captured segments.
        Captured => "captured segments",
        /// Packets on the link to the target.
        ToTarget => "packets to target",
        /// Packets on the link back.
        ToUs => "packets back",
        /// Packets that one of the two links lost or spoilt.
        Lost => "packets lost",
        /// Requests whose every byte was captured, times copies.
        Requests => "requests captured whole",
        /// Of these, read whole by the target's application.
        Read => "requests read by the target",
        /// Of the requests, those of flows that were captured whole and whose connections met with nothing but the link.
        Sound => "of flows without a fault",
        /// Of these, read whole by the target's application.
        SoundRead => "of these read by the target",
        /// Payload bytes captured at least once, times copies.
        Bytes => "bytes captured",
        /// Of these, never read by the target's application: dropped under a name, or read by nobody after a reset.
        Unread => "bytes not read by the target",
        /// Bytes never captured.
        Missed => "bytes missed",
        /// Requests that left before the answer that their client had read was sent.
        Early => "requests before their answer",
        /// Of these, released by an exact count of bytes, where the target's answers have other lengths than online.
        Coincidences => "of these by coincidence of lengths",
        /// Flows taken for the continuation of a former one on their four-tuple: neither its end nor their SYN was captured.
        Confused => "flows taken for a former one",
        /// Requests whose wait was measured.
        Waits => "turns measured",
        /// Simulated time, seconds.
        Virtual => "simulated seconds",
    }
}

/// Buckets of the waits: the n-th is below 2^n µs.
pub const BUCKETS: usize = 32;

/// The sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// By [`Figure::index`].
    pub figures: [u64; Figure::COUNT],
    /// The table's counters, by [`Count::index`].
    pub counts: [u64; Count::COUNT],
    /// Bytes dropped, by [`Drop::index`].
    pub dropped: [u64; Drop::COUNT],
    /// From the moment a turn could have left to its leaving.
    pub waits: [u64; BUCKETS],
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            figures: [0; Figure::COUNT],
            counts: [0; Count::COUNT],
            dropped: [0; Drop::COUNT],
            waits: [0; BUCKETS],
        }
    }
}

impl Figures {
    /// One of them.
    pub fn get(&self, figure: Figure) -> u64 {
        self.figures[figure.index()]
    }

    pub(crate) fn add(&mut self, figure: Figure, n: u64) {
        self.figures[figure.index()] += n;
    }

    pub(crate) fn wait(&mut self, us: u64) {
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.waits[bucket.min(BUCKETS - 1)] += 1;
        self.add(Figure::Waits, 1);
    }

    fn all(&self) -> impl Iterator<Item = &u64> {
        self.figures.iter().chain(&self.counts).chain(&self.dropped).chain(&self.waits)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.figures.iter_mut().chain(&mut self.counts).chain(&mut self.dropped).chain(&mut self.waits)
    }

    /// Adds the sums of another run.
    pub fn sum(&mut self, other: &Figures) {
        self.all_mut().zip(other.all()).for_each(|(sum, n)| *sum += n);
    }

    /// As a line of numbers.
    pub fn line(&self) -> String {
        self.all().map(u64::to_string).collect::<Vec<_>>().join(" ")
    }

    /// From such a line; `None` when it is not one.
    pub fn parse(line: &str) -> Option<Self> {
        let mut figures = Self::default();
        let mut numbers = line.split(' ');
        for n in figures.all_mut() {
            *n = numbers.next()?.parse().ok()?;
        }
        numbers.next().is_none().then_some(figures)
    }

    /// The wait below which this share (of a thousand) of the turns stayed, µs.
    pub fn wait_us(&self, per_mille: u64) -> u64 {
        let all: u64 = self.waits.iter().sum();
        let mut passed = 0;
        for (bucket, n) in self.waits.iter().enumerate() {
            passed += n;
            if passed * 1000 >= all * per_mille {
                return 1 << bucket;
            }
        }
        0
    }

    /// Read requests of captured ones, in percent; of all, or of flows without a fault.
    pub fn fidelity(&self, all: bool) -> f64 {
        let (requests, read) = match all {
            true => (self.get(Figure::Requests), self.get(Figure::Read)),
            false => (self.get(Figure::Sound), self.get(Figure::SoundRead)),
        };
        if requests == 0 { 100.0 } else { 100.0 * read as f64 / requests as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_was_summed() {
        let mut figures = Figures::default();
        figures.add(Figure::Seeds, 3);
        figures.wait(1000);
        figures.counts[4] = 9;
        let mut twice = Figures::parse(&figures.line()).expect("its own line");
        twice.sum(&figures);
        assert_eq!((twice.get(Figure::Seeds), twice.counts[4], twice.wait_us(500)), (6, 18, 1024));
        assert_eq!(Figures::parse("1 2 3"), None);
    }
}
