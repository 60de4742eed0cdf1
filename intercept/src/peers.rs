//! The sending side of all peers, in the capture thread: what was captured leaves in the same drain, without a second
//! hop. No send ever waits. What a socket does not take stays in the instance's window, where new records overwrite the
//! oldest; the peer is told of the gap, and its socket is polled until it takes more. So a slow, silent or absent peer
//! costs a bounded amount of memory and nobody else any time.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flow::Returned;
use returns::{Outgoing, Welcome};

use crate::MAX_PEERS;
use crate::command::Attach;
use crate::stats::{Count, Stats, add};
use crate::window::Window;

/// All peers by slot.
pub(crate) struct Peers {
    slots: [Option<Peer>; MAX_PEERS],
    /// Slots with something to send, as bits.
    dirty: u64,
    /// Slots whose socket was full, as bits.
    stuck: u64,
    /// Slots of connected instances whose sessions can do nothing but wait for answers, as bits.
    eager: u64,
    epoch: u64,
    /// The first position that no forgotten instance was given.
    unused: u64,
    stats: Arc<Stats>,
}

struct Peer {
    tenure: u32,
    window: Window,
    /// Position of the next record to send.
    unsent: u64,
    /// Records lost since the peer was last told.
    gap: u64,
    wire: Option<Wire>,
}

struct Wire {
    connection: u64,
    stream: Arc<TcpStream>,
    outgoing: Outgoing,
}

const _: () = assert!(MAX_PEERS <= u64::BITS as usize, "slots are bits of a word");

impl Peers {
    pub(crate) fn new(epoch: u64, stats: Arc<Stats>) -> Self {
        Self { slots: [const { None }; MAX_PEERS], dirty: 0, stuck: 0, eager: 0, epoch, unused: 1, stats }
    }

    /// How many owners the slot had before its present one; `None` when nobody is there.
    pub(crate) fn tenure(&self, slot: usize) -> Option<u32> {
        self.slots[slot].as_ref().map(|p| p.tenure)
    }

    /// Queues a record for the instance in a slot; `false` when there is none.
    pub(crate) fn push(&mut self, slot: usize, record: &Returned) -> bool {
        let Some(peer) = &mut self.slots[slot] else { return false };
        peer.window.push(record);
        if peer.unsent < peer.window.oldest() {
            peer.unsent += 1;
            peer.gap += 1;
            self.stats.count(Count::QueueDropped, 1);
            add(&self.stats.peer(slot).dropped, 1);
        }
        self.dirty |= 1 << slot;
        true
    }

    /// A connection of the instance in a slot is there: welcomes it and goes on where its stream stopped.
    pub(crate) fn attach(&mut self, attach: Attach) {
        let Attach { slot, tenure, connection, stream, outgoing, fresh, last, software, .. } = attach;
        if let Some(window) = fresh {
            self.retire(slot);
            // An instance that was forgotten remembers where its old stream was: this one must not look like a part of it.
            let window = window.beginning_at(self.unused);
            let unsent = window.next();
            self.slots[slot] = Some(Peer { tenure, window, unsent, gap: 0, wire: None });
            for counter in [&self.stats.peer(slot).sent, &self.stats.peer(slot).dropped] {
                counter.store(0, Ordering::Relaxed);
            }
        }
        let Some(peer) = &mut self.slots[slot] else { return };
        let (next, oldest) = (peer.window.next(), peer.window.oldest());
        // A stream of another epoch is none of ours; so is a position that we never gave.
        let wanted = last.filter(|p| p.epoch == self.epoch && p.last < next).map(|p| p.last + 1);
        let lost = match wanted {
            Some(wanted) => oldest.saturating_sub(wanted),
            None => next - peer.unsent,
        };
        // What was overwritten before it was sent has been counted already.
        let uncounted = match wanted {
            Some(_) => 0,
            None => lost,
        };
        self.stats.count(Count::QueueDropped, uncounted);
        add(&self.stats.peer(slot).dropped, uncounted);
        peer.unsent = wanted.map_or(next, |wanted| wanted.max(oldest));
        peer.gap = if wanted.is_some() { lost } else { 0 };
        let mut wire = Wire { connection, stream, outgoing };
        wire.outgoing.welcome(&Welcome { software, epoch: self.epoch, next: peer.unsent });
        peer.wire = Some(wire);
        self.dirty |= 1 << slot;
        self.stuck &= !(1 << slot);
        self.set_eager(slot, false);
    }

    /// An instance's sessions can do nothing but wait for answers, or that is over.
    pub(crate) fn pace(&mut self, slot: usize, connection: u64, eager: bool) {
        if self.wire(slot, connection).is_some() {
            self.set_eager(slot, eager);
        }
    }

    /// A connection, if it is still the one of its instance.
    fn wire(&mut self, slot: usize, connection: u64) -> Option<&mut Wire> {
        let wire = self.slots[slot].as_mut()?.wire.as_mut()?;
        (wire.connection == connection).then_some(wire)
    }

    fn set_eager(&mut self, slot: usize, eager: bool) {
        self.eager = self.eager & !(1 << slot) | u64::from(eager) << slot;
        self.stats.peer(slot).eager.store(eager, Ordering::Relaxed);
    }

    /// Whether the sessions of some instance can do nothing but wait for answers.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.eager != 0
    }

    /// A connection is over.
    pub(crate) fn detach(&mut self, slot: usize, connection: u64) {
        if let Some(peer) = &mut self.slots[slot]
            && peer.wire.as_ref().is_some_and(|w| w.connection == connection)
        {
            peer.wire = None;
            self.stuck &= !(1 << slot);
            self.set_eager(slot, false);
        }
    }

    /// The instance in a slot is forgotten.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.retire(slot);
        self.stuck &= !(1 << slot);
        self.dirty &= !(1 << slot);
        self.set_eager(slot, false);
    }

    /// Empties a slot.
    fn retire(&mut self, slot: usize) {
        if let Some(peer) = self.slots[slot].take() {
            self.unused = self.unused.max(peer.window.next());
        }
    }

    /// Queues a small message on a connection, if it is still the one.
    pub(crate) fn say(&mut self, slot: usize, connection: u64, message: impl FnOnce(&mut Outgoing) -> bool) {
        if let Some(wire) = self.wire(slot, connection)
            && message(&mut wire.outgoing)
        {
            self.dirty |= 1 << slot;
        }
    }

    /// Sends what there is to send, as far as the sockets take it. Called at the end of each drain. Sockets that were
    /// full are tried again only if `all`: they are polled otherwise.
    pub(crate) fn flush(&mut self, all: bool) {
        let mut slots = if all { self.dirty | self.stuck } else { self.dirty & !self.stuck };
        self.dirty = 0;
        while slots != 0 {
            let slot = slots.trailing_zeros() as usize;
            slots &= slots - 1;
            self.flush_one(slot);
        }
    }

    /// A farewell to everybody, once and without waiting.
    pub(crate) fn bye(&mut self, sentence: &str) {
        self.flush(true);
        for slot in 0..MAX_PEERS {
            if let Some(wire) = self.slots[slot].as_mut().and_then(|p| p.wire.as_mut()) {
                wire.outgoing.bye(sentence);
                let _ = write(&mut wire.outgoing, &wire.stream);
                let _ = wire.stream.shutdown(Shutdown::Write);
            }
        }
    }

    /// Sockets that were full, to be polled for room.
    pub(crate) fn stuck(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let wires = self.slots.iter().enumerate().filter(|(slot, _)| self.stuck & (1 << slot) != 0);
        wires.filter_map(|(_, p)| Some(p.as_ref()?.wire.as_ref()?.stream.as_fd()))
    }

    fn flush_one(&mut self, slot: usize) {
        let Some(peer) = &mut self.slots[slot] else { return };
        let Some(wire) = &mut peer.wire else { return };
        self.stuck &= !(1 << slot);
        let next = peer.window.next();
        let counters = self.stats.peer(slot);
        loop {
            if peer.gap > 0 && wire.outgoing.gap(peer.gap, peer.unsent) {
                peer.gap = 0;
            }
            let from = peer.unsent;
            while peer.gap == 0 && peer.unsent < next && wire.outgoing.record(peer.window.get(peer.unsent)) {
                peer.unsent += 1;
            }
            wire.outgoing.flush();
            let taken = peer.unsent - from;
            self.stats.count(Count::Sent, taken);
            add(&counters.sent, taken);
            match write(&mut wire.outgoing, &wire.stream) {
                Ok(true) if peer.unsent < next || peer.gap > 0 => {}
                Ok(true) => break,
                Ok(false) => {
                    self.stats.count(Count::Blocked, 1);
                    self.stuck |= 1 << slot;
                    break;
                }
                Err(_) => {
                    // The link thread sees the end of the connection and tells who it was.
                    let _ = wire.stream.shutdown(Shutdown::Both);
                    peer.wire = None;
                    break;
                }
            }
        }
        counters.queued.store(next - peer.unsent, Ordering::Relaxed);
        if peer.wire.is_none() {
            self.set_eager(slot, false);
        }
    }
}

/// Writes what is pending; `Ok(false)` when the socket is full.
fn write(outgoing: &mut Outgoing, mut stream: &TcpStream) -> std::io::Result<bool> {
    while !outgoing.pending().is_empty() {
        match stream.write(outgoing.pending()) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => outgoing.sent(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
