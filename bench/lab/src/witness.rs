//! What a server answered, id by id: the ground truth that a replay is held against.
//!
//! One `Witness` per server, filled by `http` while it answers, read by tests, demo and benchmarks. It outlives the
//! server, so that a restarted one goes on in the same book.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::clock::now_us;
use crate::histogram::Histogram;

/// Counts, digests and times of requests with ids below a bound.
pub struct Witness {
    entries: Vec<Entry>,
    answered: AtomicU64,
    beyond: AtomicU64,
    connections: AtomicU64,
}

/// One id.
#[derive(Default)]
struct Entry {
    /// Times it was answered.
    times: AtomicU32,
    /// Wrapping sum of the digests of its bodies.
    body: AtomicU64,
    /// When it was answered first, µs of the monotonic clock; 0 if never.
    first_us: AtomicU64,
}

impl Witness {
    /// A book for ids 0 to `ids` − 1.
    pub fn new(ids: usize) -> Self {
        Self {
            entries: (0..ids).map(|_| Entry::default()).collect(),
            answered: AtomicU64::new(0),
            beyond: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }

    /// Writes down one answer. `body` is the digest of the request's body.
    pub fn answer(&self, id: u64, body: u64) {
        self.answered.fetch_add(1, Relaxed);
        let Some(entry) = usize::try_from(id).ok().and_then(|i| self.entries.get(i)) else {
            self.beyond.fetch_add(1, Relaxed);
            return;
        };
        if entry.times.fetch_add(1, Relaxed) == 0 {
            entry.first_us.store(now_us(), Relaxed);
        }
        entry.body.fetch_add(body, Relaxed);
    }

    /// Writes down one accepted connection.
    pub fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// Answers in all, whatever their ids.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Accepted connections in all.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Ids answered at least once, in order.
    pub fn ids(&self) -> Vec<u64> {
        let answered = |(_, e): &(u64, &Entry)| e.times.load(Relaxed) > 0;
        (0..).zip(&self.entries).filter(answered).map(|(id, _)| id).collect()
    }

    /// How often one id was answered.
    pub fn times(&self, id: u64) -> u32 {
        usize::try_from(id).ok().and_then(|i| self.entries.get(i)).map_or(0, |e| e.times.load(Relaxed))
    }

    /// When an id was answered first, µs of the monotonic clock; none if it never was.
    pub fn first_us(&self, id: u64) -> Option<u64> {
        let entry = usize::try_from(id).ok().and_then(|i| self.entries.get(i))?;
        Some(entry.first_us.load(Relaxed)).filter(|&us| us > 0)
    }
}

/// What two witnesses say of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fidelity {
    /// Answers given online.
    pub online: u64,
    /// Answers given by the target.
    pub target: u64,
    /// Different ids that were answered online.
    pub ids: u64,
    /// Ids whose number of answers at the target is exactly what was wanted, bodies equal.
    pub equal: u64,
    /// Ids answered online and too seldom, or never, by the target.
    pub missing: u64,
    /// Ids answered by the target more often than wanted.
    pub surplus: u64,
    /// Ids with the right number of answers but other bodies.
    pub altered: u64,
    /// The first ids that are not equal, for the message.
    pub examples: Vec<u64>,
}

impl Fidelity {
    /// Compares two servers: each id answered n times online must be answered n × `copies` times by the target.
    pub fn of(online: &Witness, target: &Witness, copies: u32) -> Self {
        let ids = online.entries.len().max(target.entries.len()) as u64;
        let mut f = Self::of_ids(online, target, copies, 0..ids);
        f.surplus += target.beyond.load(Relaxed);
        f
    }

    /// The same for some ids only.
    pub fn of_ids(online: &Witness, target: &Witness, copies: u32, ids: Range<u64>) -> Self {
        let mut f = Self { online: online.answered(), target: target.answered(), ..Self::default() };
        let nothing = Entry::default();
        for id in ids.start as usize..ids.end as usize {
            let (on, at) =
                (online.entries.get(id).unwrap_or(&nothing), target.entries.get(id).unwrap_or(&nothing));
            let wanted = u64::from(on.times.load(Relaxed)) * u64::from(copies);
            let got = u64::from(at.times.load(Relaxed));
            if wanted == 0 && got == 0 {
                continue;
            }
            f.ids += u64::from(wanted > 0);
            let same_body = at.body.load(Relaxed) == on.body.load(Relaxed).wrapping_mul(u64::from(copies));
            match got.cmp(&wanted) {
                std::cmp::Ordering::Less => f.missing += 1,
                std::cmp::Ordering::Greater => f.surplus += 1,
                std::cmp::Ordering::Equal if !same_body => f.altered += 1,
                std::cmp::Ordering::Equal => {
                    f.equal += 1;
                    continue;
                }
            }
            if f.examples.len() < 10 {
                f.examples.push(id as u64);
            }
        }
        f
    }

    /// Whether every request arrived as often as wanted, with its body, and no other did.
    pub fn is_exact(&self) -> bool {
        self.equal == self.ids && self.missing == 0 && self.surplus == 0 && self.altered == 0
    }

    /// Share of the ids that arrived exactly as wanted, percent.
    pub fn percent(&self) -> f64 {
        if self.ids == 0 { 0.0 } else { self.equal as f64 * 100.0 / self.ids as f64 }
    }
}

impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} answered online, {} by the target; of {} ids {} equal, {} missing, {} too often, {} with other bodies",
            self.online, self.target, self.ids, self.equal, self.missing, self.surplus, self.altered
        )?;
        if !self.examples.is_empty() {
            write!(f, "; for example ids {:?}", self.examples)?;
        }
        Ok(())
    }
}

/// How far the target was behind: first answer by the target minus first answer online, for ids in `ids`. An id that the
/// target answered first (possible when both run on one machine) counts as 0.
pub fn lag(online: &Witness, target: &Witness, ids: Range<u64>) -> Histogram {
    let mut histogram = Histogram::default();
    for id in ids {
        let Ok(index) = usize::try_from(id) else { break };
        let (Some(on), Some(at)) = (online.entries.get(index), target.entries.get(index)) else { break };
        let (on, at) = (on.first_us.load(Relaxed), at.first_us.load(Relaxed));
        if on != 0 && at != 0 {
            histogram.record(at.saturating_sub(on));
        }
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(answers: &[(u64, u64)]) -> Witness {
        let w = Witness::new(8);
        answers.iter().for_each(|&(id, body)| w.answer(id, body));
        w
    }

    #[test]
    fn equal_books_are_exact() {
        let f = Fidelity::of(&book(&[(1, 0), (2, 7)]), &book(&[(2, 7), (1, 0)]), 1);
        assert!(f.is_exact(), "{f}");
        assert_eq!((f.ids, f.percent()), (2, 100.0));
    }

    #[test]
    fn a_lost_a_doubled_a_foreign_and_an_altered_request_are_each_found() {
        let online = book(&[(1, 0), (2, 0), (3, 5)]);
        let target = book(&[(2, 0), (2, 0), (3, 6), (4, 0)]);
        let f = Fidelity::of(&online, &target, 1);
        assert_eq!((f.missing, f.surplus, f.altered, f.equal), (1, 2, 1, 0), "{f}");
        assert!(!f.is_exact());
    }

    #[test]
    fn copies_multiply_what_is_wanted() {
        let target = book(&[(1, 4), (1, 4), (1, 4)]);
        assert!(Fidelity::of(&book(&[(1, 4)]), &target, 3).is_exact());
        assert!(!Fidelity::of(&book(&[(1, 4)]), &target, 2).is_exact());
    }

    #[test]
    fn an_id_beyond_the_book_is_not_forgotten() {
        let f = Fidelity::of(&book(&[]), &book(&[(99, 0)]), 1);
        assert_eq!(f.surplus, 1);
    }
}
