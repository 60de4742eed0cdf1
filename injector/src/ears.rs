//! What the receiver's thread hears for the canary in the drain's: headers for endpoints of probes, which no shard is to see,
//! whether sessions are answered, and how many intercepts are connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use flow::{Addr, Endpoint, Returned, probe};
use shm::Doorbell;

use crate::canary::{Channel, Heard};

/// The receiver's end.
pub(crate) struct Ear {
    queue: rtrb::Producer<Heard>,
    shared: Arc<Shared>,
    from: [Option<Addr>; 2],
    /// Of the plan, by index; none where it is not probed.
    targets: Vec<Option<Endpoint>>,
    /// Which of them spoke last.
    last: usize,
    /// Wakes the drain.
    bell: &'static Doorbell,
}

/// The drain's end.
pub(crate) struct Ears {
    queue: rtrb::Consumer<Heard>,
    shared: Arc<Shared>,
}

/// Words of their own; none of them guards other memory, so Relaxed is enough.
struct Shared {
    answered: Box<[AtomicBool]>,
    /// Intercepts that are up in the low half, of how many in the high one.
    channel: AtomicU64,
}

/// Headers that may wait: each target's tries, and what a peer repeats of them.
const QUEUE: usize = 4_096;

/// Both ends, for probes from these addresses to these targets.
pub(crate) fn pair(
    from: [Option<Addr>; 2],
    targets: Vec<Option<Endpoint>>,
    bell: &'static Doorbell,
) -> (Ear, Ears) {
    let (producer, consumer) = rtrb::RingBuffer::new(QUEUE);
    let shared = Arc::new(Shared {
        answered: targets.iter().map(|_| AtomicBool::new(false)).collect(),
        channel: AtomicU64::new(u64::from(u32::MAX) << 32),
    });
    let ears = Ears { queue: consumer, shared: Arc::clone(&shared) };
    (Ear { queue: producer, shared, from, targets, last: 0, bell }, ears)
}

impl Ear {
    /// Takes a header that came at `at_us`, `back_us` after intercept sent it; whether it is one for a probe.
    pub(crate) fn hear(&mut self, record: &Returned, at_us: u64, back_us: u32) -> bool {
        let client = &record.client;
        let of_probe = probe::PORTS.contains(&client.port)
            && self.from.iter().flatten().any(|from| *from == client.addr);
        if of_probe {
            // One that finds no room is missing like one that was lost on the way.
            let _ = self.queue.push(Heard { record: *record, at_us, back_us });
            self.bell.ring();
        } else if let Some(index) = self.index_of(&record.target)
            && !self.shared.answered[index].load(Relaxed)
        {
            self.shared.answered[index].store(true, Relaxed);
        }
        of_probe
    }

    fn index_of(&mut self, target: &Endpoint) -> Option<usize> {
        let is_it = |of: &Option<Endpoint>| of.as_ref() == Some(target);
        // Headers come in crowds from one target.
        if !self.targets.get(self.last).is_some_and(is_it) {
            self.last = self.targets.iter().position(is_it)?;
        }
        Some(self.last)
    }

    /// So many intercepts of so many are connected.
    pub(crate) fn tell(&self, up: usize, of: usize) {
        let word = up as u64 | (of as u64) << 32;
        if self.shared.channel.swap(word, Relaxed) != word {
            self.bell.ring();
        }
    }
}

impl Ears {
    /// The next header for a probe.
    pub(crate) fn next(&mut self) -> Option<Heard> {
        self.queue.pop().ok()
    }

    /// The targets whose sessions were answered since the last call.
    pub(crate) fn answered(&self) -> impl Iterator<Item = u16> {
        let answered = self.shared.answered.iter().enumerate();
        answered.filter(|(_, word)| word.load(Relaxed) && word.swap(false, Relaxed)).map(|(i, _)| i as u16)
    }

    /// How the return channel is; no intercept of many before the receiver has looked.
    pub(crate) fn channel(&self) -> Channel {
        let word = self.shared.channel.load(Relaxed);
        Channel { up: word as u32, of: (word >> 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::testing::{plan, region};

    #[test]
    fn probes_are_taken_out_and_sessions_are_noticed() {
        let bell = region(&plan(&["10.0.0.1:80"])).doorbell(shm::Role::Injector);
        let at = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
        let from = at("198.18.0.1:1").addr;
        let (mut ear, mut ears) = pair([Some(from), None], vec![None, Some(at("10.0.0.1:80"))], bell);
        let header =
            |client: &str| Returned { client: at(client), target: at("10.0.0.1:80"), ..Returned::default() };
        assert!(ear.hear(&header("198.18.0.1:1024"), 9, 3));
        assert_eq!(ears.next().map(|heard| (heard.at_us, heard.back_us)), Some((9, 3)));
        assert!(!ear.hear(&header("198.18.0.1:2048"), 9, 3), "a session's");
        assert!(!ear.hear(&header("198.18.0.2:1024"), 9, 3), "a session's");
        assert!(ears.next().is_none() && ears.answered().next() == Some(1));
        ear.hear(&header("198.18.0.2:1024"), 9, 3);
        assert_eq!(ears.answered().collect::<Vec<_>>(), [1]);
        assert_eq!(ears.answered().next(), None, "told once");
        assert!(!ears.channel().is_whole());
        ear.tell(2, 2);
        assert_eq!(ears.channel(), Channel { up: 2, of: 2 });
    }
}
