//! Flows that this instance owns at the intercepts (`--keep-clients`). The drain hands each over before its SYN leaves; the
//! receiver thread forwards it at once and remembers it, so that an intercept that comes back is told again.
//!
//! What is remembered dies with the process. Its successor learns it from the answers that come, and claims again whatever
//! is sent again.
//!
//! The memory is bounded twice: by a number of flows, past which the one silent longest is forgotten, and by silence.

use std::collections::HashMap;
use std::sync::Arc;

use flow::Endpoint;
use nix::sys::eventfd::EventFd;

/// One claimed flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The client as replayed.
    pub client: Endpoint,
    /// Address and port of the target.
    pub target: Endpoint,
}

/// The drain's end of the queue to the receiver thread.
pub struct ClaimSender {
    queue: rtrb::Producer<Claim>,
    wake: Arc<EventFd>,
    sent: bool,
}

/// Claims that may wait for the receiver thread: at 50,000 connections a second some 300 ms.
const QUEUE: usize = 16_384;

/// The queue between drain and receiver; `wake` makes the receiver's poll return.
pub fn queue(wake: Arc<EventFd>) -> (ClaimSender, rtrb::Consumer<Claim>) {
    let (queue, receiver) = rtrb::RingBuffer::new(QUEUE);
    (ClaimSender { queue, wake, sent: false }, receiver)
}

impl ClaimSender {
    /// Hands one claim over; false when the queue is full.
    pub(crate) fn push(&mut self, claim: Claim) -> bool {
        let taken = self.queue.push(claim).is_ok();
        self.sent |= taken;
        taken
    }

    /// Wakes the receiver, once for all claims since the last call.
    pub(crate) fn wake(&mut self) {
        if std::mem::take(&mut self.sent) {
            // A counter at its limit still wakes.
            let _ = self.wake.write(1);
        }
    }
}

/// The live claims, least recently heard of first.
pub(crate) struct LiveClaims {
    slots: Vec<Slot>,
    index: HashMap<Claim, u32>,
    free: u32,
    oldest: u32,
    newest: u32,
    limit: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    /// None in a free slot.
    claim: Option<Claim>,
    touched_us: u64,
    /// Towards the newest; in a free slot the next free one.
    newer: u32,
    older: u32,
}

const NONE: u32 = u32::MAX;

impl LiveClaims {
    /// Room for `limit` claims, all of it allocated here.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: Vec::with_capacity(limit),
            index: HashMap::with_capacity(limit),
            free: NONE,
            oldest: NONE,
            newest: NONE,
            limit: limit.max(1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Remembers a claim as of now. True when an old one had to go for it.
    pub(crate) fn insert(&mut self, now_us: u64, claim: Claim) -> bool {
        if self.touch(now_us, &claim) {
            return false;
        }
        let full = self.index.len() >= self.limit;
        if full {
            self.remove(self.oldest);
        }
        let slot = Slot { claim: Some(claim), touched_us: now_us, newer: NONE, older: NONE };
        let at = match self.free {
            NONE => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
            at => {
                self.free = self.slots[at as usize].newer;
                self.slots[at as usize] = slot;
                at
            }
        };
        self.index.insert(claim, at);
        self.append(at);
        full
    }

    /// Something of this flow is new. True when the flow is known.
    fn touch(&mut self, now_us: u64, claim: &Claim) -> bool {
        let Some(&at) = self.index.get(claim) else { return false };
        self.slots[at as usize].touched_us = now_us;
        if at != self.newest {
            self.detach(at);
            self.append(at);
        }
        true
    }

    /// Forgets what was silent since `before_us`, at most a few at a time so that no call takes long.
    pub(crate) fn expire(&mut self, before_us: u64) {
        for _ in 0..EXPIRED_AT_ONCE {
            match self.slots.get(self.oldest as usize) {
                Some(slot) if slot.touched_us < before_us => self.remove(self.oldest),
                _ => return,
            }
        }
    }

    /// The first live claim at or after slot `cursor`, and where to go on; `None` when there is none.
    pub(crate) fn from(&self, cursor: usize) -> Option<(Claim, usize)> {
        let rest = self.slots.get(cursor..)?;
        rest.iter().enumerate().find_map(|(i, slot)| Some((slot.claim?, cursor + i + 1)))
    }

    fn remove(&mut self, at: u32) {
        self.detach(at);
        let slot = &mut self.slots[at as usize];
        if let Some(claim) = slot.claim.take() {
            self.index.remove(&claim);
        }
        slot.newer = self.free;
        self.free = at;
    }

    fn detach(&mut self, at: u32) {
        let Slot { newer, older, .. } = self.slots[at as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
    }

    fn append(&mut self, at: u32) {
        let last = self.newest;
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (last, NONE);
        match last {
            NONE => self.oldest = at,
            last => self.slots[last as usize].newer = at,
        }
        self.newest = at;
    }
}

/// Claims forgotten in one call.
const EXPIRED_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn claim(port: u16) -> Claim {
        let client: SocketAddr = ([203, 0, 113, 1], port).into();
        Claim { client: client.into(), target: "10.0.0.1:80".parse::<SocketAddr>().unwrap().into() }
    }

    fn ports(live: &LiveClaims) -> Vec<u16> {
        let mut ports = Vec::new();
        let mut at = 0;
        while let Some((claim, next)) = live.from(at) {
            ports.push(claim.client.port);
            at = next;
        }
        ports.sort_unstable();
        ports
    }

    #[test]
    fn the_one_silent_longest_goes_first() {
        let mut live = LiveClaims::new(3);
        for port in 1..=3 {
            assert!(!live.insert(u64::from(port), claim(port)));
        }
        assert!(live.touch(10, &claim(1)));
        assert!(live.insert(11, claim(4)), "an old one had to go");
        assert_eq!(ports(&live), [1, 3, 4]);
    }

    #[test]
    fn silence_ends_a_claim_and_its_slot_is_used_again() {
        let mut live = LiveClaims::new(8);
        (1..=5).for_each(|port| {
            live.insert(u64::from(port) * 100, claim(port));
        });
        live.expire(350);
        assert_eq!(ports(&live), [4, 5]);
        assert!(!live.touch(400, &claim(1)));
        live.insert(600, claim(9));
        assert_eq!(ports(&live), [4, 5, 9]);
        assert_eq!(live.slots.len(), 5, "no new slot was needed");
    }

    #[test]
    fn the_same_flow_claimed_twice_is_one() {
        let mut live = LiveClaims::new(8);
        live.insert(1, claim(1));
        live.insert(2, claim(1));
        assert_eq!(live.len(), 1);
    }

    #[test]
    fn the_receiver_is_woken_once_a_batch() {
        let wake = Arc::new(EventFd::new().unwrap());
        let (mut sender, mut receiver) = queue(wake.clone());
        assert!(sender.push(claim(1)) && sender.push(claim(2)));
        sender.wake();
        sender.wake();
        assert_eq!(wake.read().unwrap(), 1);
        assert_eq!(receiver.pop().unwrap(), claim(1));
        for _ in 0..QUEUE {
            sender.push(claim(3));
        }
        assert!(!sender.push(claim(3)), "a full queue says so");
    }
}
