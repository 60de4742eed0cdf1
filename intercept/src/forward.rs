//! What happens to each captured header: understood, its owner found, queued for it. Called by the capture thread for
//! every frame; nothing here allocates, waits or logs.
//!
//! | header | goes to |
//! |---|---|
//! | not from a watched target | nowhere, `not_target` |
//! | to a client inside an instance's range | that instance |
//! | to a client of a claimed flow | the claimant |
//! | to another client, while some instance claims its flows | held for a moment, then nowhere, `unclaimed` |
//! | to another client | nowhere, `unknown` |

use std::sync::Arc;

use flow::datagram::{self, Seen};
use flow::ip::Fragment;
use flow::record::{kind, returned_bit};
use flow::segment::{self, Malformed, Segment};
use flow::{Endpoint, Returned};

use crate::claims::{Claims, Owner};
use crate::command::Command;
use crate::held::Held;
use crate::icmp;
use crate::options::Limits;
use crate::owners::RangeTable;
use crate::peers::Peers;
use crate::source::{Frame, wall_clock_ns};
use crate::stats::{Count, Stats};

/// Nothing waits here for so long: who finds a frame older than that has had the clock set meanwhile.
const OLDEST_NS: u64 = 1_000_000_000;

/// The tables of the capture thread.
pub(crate) struct Forward {
    targets: Vec<Endpoint>,
    datagrams: Vec<Endpoint>,
    ranges: RangeTable,
    claims: Claims,
    /// Slots of instances that claim their flows, as bits.
    claimants: u64,
    held: Held,
    pub(crate) peers: Peers,
    stats: Arc<Stats>,
    now_us: u64,
    /// On the clock of the frames' time stamps.
    wall_ns: u64,
}

impl Forward {
    /// `epoch` tells this run of intercept from any other; `seed` keys the table of claims.
    pub(crate) fn new(
        targets: &[Endpoint],
        datagrams: &[Endpoint],
        limits: &Limits,
        epoch: u64,
        seed: u64,
        stats: Arc<Stats>,
    ) -> Self {
        let mut targets = targets.to_vec();
        targets.sort_unstable();
        Self {
            targets,
            datagrams: datagrams.to_vec(),
            ranges: RangeTable::new(),
            claims: Claims::new(limits.claims, limits.claim_idle.as_secs() as u32, seed),
            claimants: 0,
            held: Held::new(limits.held, limits.hold),
            peers: Peers::new(epoch, stats.clone()),
            stats,
            now_us: 0,
            wall_ns: 0,
        }
    }

    /// Sets the time of what follows, and drops what was held for too long.
    pub(crate) fn at(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.wall_ns = wall_clock_ns();
        let lost = self.held.expire(now_us);
        if lost > 0 {
            self.stats.count(Count::Unclaimed, lost);
        }
    }

    /// Takes one captured frame.
    pub(crate) fn frame(&mut self, frame: &Frame<'_>) {
        match segment::parse(frame.packet, frame.wire_len) {
            Ok(segment) => self.segment(frame, &segment),
            Err(Malformed::NotTcp | Malformed::Fragment) if self.datagram(frame) => {}
            Err(Malformed::NotTcp) => match icmp::parse(frame.packet, frame.wire_len) {
                Ok(Some(record)) => self.route(Returned { age_ns: self.age_ns(frame), ..record }),
                Ok(None) => self.stats.count(Count::IcmpOther, 1),
                Err(why) => self.stats.count_malformed(why),
            },
            Err(why) => self.stats.count_malformed(why),
        }
    }

    /// Takes a command of the link thread.
    pub(crate) fn command(&mut self, command: Command) {
        match command {
            Command::Claim { slot, tenure, client, target } => {
                self.claim(Owner { slot, tenure }, &client, &target);
            }
            Command::Attach(attach) => {
                self.ranges.set(attach.slot, &attach.ranges);
                let bit = 1 << attach.slot;
                self.claimants =
                    if attach.ranges.is_empty() { self.claimants | bit } else { self.claimants & !bit };
                self.peers.attach(*attach);
            }
            Command::Detach { slot, connection } => self.peers.detach(usize::from(slot), connection),
            Command::Forget { slot } => {
                self.ranges.set(usize::from(slot), &[]);
                self.claimants &= !(1 << slot);
                self.peers.forget(usize::from(slot));
            }
            Command::Pace { slot, connection, eager } => {
                self.peers.pace(usize::from(slot), connection, eager);
            }
            Command::Ping { slot, connection, token } => {
                self.peers.say(usize::from(slot), connection, |out| out.ping(token));
            }
            Command::Pong { slot, connection, token } => {
                self.peers.say(usize::from(slot), connection, |out| out.pong(token));
            }
        }
    }

    /// When something has to be done though no frame comes.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        self.held.deadline_us()
    }

    /// Whether headers wait for a claim.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    fn segment(&mut self, frame: &Frame<'_>, segment: &Segment<'_>) {
        let cut = if segment.options_cut { returned_bit::TRUNCATED } else { 0 };
        self.route(Returned {
            age_ns: self.age_ns(frame),
            tcp: segment.tcp,
            payload_len: segment.wire_payload_len,
            client: segment.dst,
            target: segment.src,
            sack: segment.sack,
            sack_count: segment.sack_count,
            bits: cut | segment.ecn << returned_bit::ECN_SHIFT,
            segments: frame.segments(segment.wire_payload_len),
            ..Returned::default()
        });
    }

    /// Takes a datagram, or the first part of one; false when it is none.
    fn datagram(&mut self, frame: &Frame<'_>) -> bool {
        if self.datagrams.is_empty() {
            return false;
        }
        let datagram = match datagram::parse(frame.packet, frame.wire_len) {
            Ok(Seen::Whole(datagram)) => datagram,
            Ok(Seen::Part(part, Fragment { offset: 0, .. })) => match datagram::head(&part) {
                Ok(datagram) => datagram,
                Err(_) => return false,
            },
            // The first part has said how long it is.
            Ok(Seen::Part(..)) => return true,
            Err(_) => return false,
        };
        self.route(Returned {
            kind: kind::UDP,
            age_ns: self.age_ns(frame),
            payload_len: datagram.wire_payload_len,
            client: datagram.dst,
            target: datagram.src,
            ..Returned::default()
        });
        true
    }

    fn route(&mut self, record: Returned) {
        let watched = match record.kind {
            kind::UDP | kind::UDP_ICMP => self.datagrams.contains(&record.target),
            _ => self.is_target(&record.target),
        };
        if !watched {
            self.stats.count(Count::NotTarget, 1);
            return;
        }
        if let Some(slot) = self.ranges.find(record.client.addr) {
            self.deliver(slot, &record);
            return;
        }
        if self.claimants == 0 {
            self.stats.count(Count::Unknown, 1);
            return;
        }
        let hash = self.claims.hash(&record.client, &record.target);
        if let Some(owner) = self.claims.find(self.now_s(), hash, &record.client, &record.target)
            && self.peers.tenure(usize::from(owner.slot)) == Some(owner.tenure)
        {
            self.deliver(usize::from(owner.slot), &record);
            return;
        }
        let held = self.held.hold(self.now_us, hash, &record);
        self.stats.count(if held { Count::Held } else { Count::HeldFull }, 1);
    }

    fn deliver(&mut self, slot: usize, record: &Returned) {
        let count = match (self.peers.push(slot, record), record.kind) {
            (true, kind::ICMP | kind::UDP_ICMP) => Count::Icmp,
            (true, _) => Count::Headers,
            (false, _) => Count::Unknown,
        };
        self.stats.count(count, 1);
    }

    fn claim(&mut self, owner: Owner, client: &Endpoint, target: &Endpoint) {
        let slot = usize::from(owner.slot);
        let claims_flows = self.claimants & (1 << slot) != 0;
        if !claims_flows
            || self.peers.tenure(slot) != Some(owner.tenure)
            || !(self.is_target(target) || self.datagrams.contains(target))
        {
            self.stats.count(Count::ClaimsForeign, 1);
            return;
        }
        let hash = self.claims.hash(client, target);
        let noted = self.claims.note(self.now_s(), hash, client, target, owner);
        self.stats.count(if noted { Count::Claims } else { Count::ClaimsFull }, 1);
        let (peers, stats) = (&mut self.peers, &self.stats);
        self.held.release(
            hash,
            |r| r.client == *client && r.target == *target,
            |r| {
                peers.push(slot, r);
                stats.count(Count::Headers, 1);
            },
        );
    }

    /// A handful of targets is compared in line; a long list is searched.
    fn is_target(&self, target: &Endpoint) -> bool {
        match self.targets.as_slice() {
            [only] => only == target,
            few if few.len() <= 4 => few.contains(target),
            many => many.binary_search(target).is_ok(),
        }
    }

    /// How long ago the kernel saw a frame.
    fn age_ns(&self, frame: &Frame<'_>) -> u64 {
        let age_ns = self.wall_ns.saturating_sub(frame.time_ns);
        if age_ns < OLDEST_NS { age_ns } else { 0 }
    }

    const fn now_s(&self) -> u32 {
        (self.now_us / 1_000_000) as u32
    }
}
