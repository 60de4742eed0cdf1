//! Drains the shards' inject rings: round robin, a bounded batch of each, so that a busy shard never starves another.
//!
//! A ring's cursor is published after its batch was sent: a successor of a killed injector repeats at most that batch,
//! and TCP ignores what comes twice.

use std::time::Duration;

use flow::record::inject_bit;
use flow::{Endpoint, Inject};
use shm::{Consumer, Counters};
use zerocopy::IntoBytes as _;

use crate::claims::{Claim, ClaimSender};
use crate::count::{Count, canary_index, choice_index};
use crate::gate::Gate;
use crate::guard::Guard;
use crate::sender::Engine;
use crate::tally::Tally;

/// Records of one ring in one turn: one `sendmmsg` when they are small, 4 MiB when all are super-frames.
pub const BATCH: usize = 64;

/// Between two looks at the routes: shorter than the shortest retransmission, so that it is cut right the first time.
const LOOK_MS: u64 = 100;

/// The rings, the guard, the engine.
pub struct Drain<E> {
    rings: Vec<Consumer>,
    guard: Guard,
    engine: E,
    claims: Option<ClaimSender>,
    /// There when the ways to the targets are probed.
    gate: Option<Gate>,
    tally: Tally,
    /// What the guard refused: counted while the engine holds `tally`.
    refused: Tally,
    faults: u64,
    /// When the routes' MTUs were last asked for again, CLOCK_MONOTONIC milliseconds.
    looked_ms: u64,
}

impl<E: Engine> Drain<E> {
    /// Over these rings. `claims` is there when flows are claimed one by one.
    pub(crate) fn new(rings: Vec<Consumer>, guard: Guard, engine: E, claims: Option<ClaimSender>) -> Self {
        Self {
            rings,
            guard,
            engine,
            claims,
            gate: None,
            tally: Tally::default(),
            refused: Tally::default(),
            faults: 0,
            looked_ms: 0,
        }
    }

    /// Sends only where this lets it.
    pub(crate) fn behind(mut self, gate: Option<Gate>) -> Self {
        self.gate = gate;
        self
    }

    /// One turn over all rings; how many records were taken.
    pub fn round(&mut self) -> usize {
        self.engine.look(&mut self.tally);
        self.look_at_ways();
        if self.is_waiting() {
            return 0;
        }
        (0..self.rings.len()).map(|ring| self.turn(ring)).sum()
    }

    /// Whether nothing waits in any ring, as of now.
    pub fn is_empty(&mut self) -> bool {
        self.rings.iter_mut().all(Consumer::is_empty)
    }

    /// Whether nothing is taken before it is known which targets are reached.
    pub(crate) fn is_waiting(&self) -> bool {
        self.gate.as_ref().is_some_and(Gate::is_waiting)
    }

    /// The run ends: nothing is waited for any more.
    pub(crate) fn end_waiting(&mut self) {
        self.gate.iter_mut().for_each(Gate::end_waiting);
    }

    /// Time until there is something to do though nothing comes, `most` at most.
    pub(crate) fn rest(&self, most: Duration) -> Duration {
        let due_us = self.gate.as_ref().map_or(u64::MAX, Gate::due_us);
        most.min(Duration::from_micros(due_us.saturating_sub(shm::monotonic_us())))
    }

    /// Probes the ways to the targets, by the very engine that sends to each of them.
    fn look_at_ways(&mut self) {
        let Self { guard, engine, claims, gate, tally, .. } = self;
        if let Some(gate) = gate {
            gate.turn(shm::monotonic_us(), &mut |record| post(engine, guard, claims.as_mut(), tally, record));
        }
    }

    /// Adds what was counted since the last call to the role's block.
    pub fn publish(&mut self, counters: &Counters) {
        self.tally.drain(|index, n| counters.add(index, n));
        self.refused.drain(|index, n| counters.add(index, n));
        let faults = self.rings.iter().map(Consumer::faults).sum::<u64>();
        counters.add(Count::RingFaults.index(), faults - self.faults);
        self.faults = faults;
        for (target, choice) in self.engine.news().into_iter().flatten().enumerate() {
            counters.set(choice_index(target), choice.index() as u64);
        }
        for (target, report) in self.gate.as_mut().and_then(Gate::news).into_iter().flatten() {
            for (word, value) in report.to_words().into_iter().enumerate() {
                counters.set(canary_index(usize::from(target)) + word, value);
            }
        }
    }

    fn turn(&mut self, ring: usize) -> usize {
        let Self { rings, guard, engine, claims, gate, tally, refused, .. } = self;
        let batch = rings[ring].peek_batch(BATCH);
        if batch.is_empty() {
            return 0;
        }
        let taken = batch.len();
        tally.add(Count::Records, taken as u64);
        if let Some(claims) = claims {
            for (client, target) in batch.iter().filter_map(|bytes| claimed(guard, bytes)) {
                let count =
                    if claims.push(Claim { client, target }) { Count::Claims } else { Count::ClaimsLost };
                tally.add(count, 1);
            }
            claims.wake();
        }
        let allowed = batch.iter().filter_map(|bytes| match guard.check(bytes) {
            Ok(out) if gate.as_ref().is_some_and(|gate| gate.shuts(out.head.target)) => {
                refused.add(Count::Held, 1);
                None
            }
            Ok(out) => {
                gate.iter_mut().for_each(|gate| gate.sends(&out.head));
                Some(out)
            }
            Err(count) => {
                refused.add(count, 1);
                None
            }
        });
        let too_large = tally.get(Count::Emsgsize);
        engine.send(allowed, tally);
        batch.release();
        if tally.get(Count::Emsgsize) != too_large {
            self.look_at_routes();
        }
        taken
    }

    /// What was too large is cut smaller when the shard sends it again.
    #[cold]
    fn look_at_routes(&mut self) {
        let now_ms = shm::monotonic_ms();
        if now_ms >= self.looked_ms + LOOK_MS {
            self.looked_ms = now_ms;
            self.guard.look_at_routes();
        }
    }
}

/// Sends one packet of a probe; what is counted about it is no part of the figures of sessions.
pub(crate) fn post<E: Engine>(
    engine: &mut E,
    guard: &Guard,
    claims: Option<&mut ClaimSender>,
    tally: &mut Tally,
    record: &Inject,
) -> Result<(), u16> {
    let bytes = record.as_bytes();
    let out = guard.check(bytes).map_err(|count| count.index() as u16)?;
    if let (Some(claims), Some((client, target))) = (claims, claimed(guard, bytes)) {
        // One that is lost is one that intercept answers nothing to: the next try claims again.
        claims.push(Claim { client, target });
        claims.wake();
    }
    let mut sent = Tally::default();
    engine.send(std::iter::once(out), &mut sent);
    if sent.get(Count::Segments) > 0 {
        tally.add(Count::Probes, 1);
        return Ok(());
    }
    let errno = Count::errnos().iter().find(|count| sent.get(**count) > 0);
    Err(errno.copied().unwrap_or(Count::OtherErrno).index() as u16)
}

/// The flow of a record that asks to be claimed, or that is sent again: perhaps its answer had no owner, because an intercept
/// lost its claims and we, started again as well, do not know them any more.
fn claimed(guard: &Guard, bytes: &[u8]) -> Option<(Endpoint, Endpoint)> {
    let (head, _) = Inject::split(bytes)?;
    let asks = head.bits & (inject_bit::CLAIM | inject_bit::AGAIN) != 0;
    asks.then_some((head.client, guard.target(head.target)?))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::guard::Outgoing;
    use crate::sender::Sender;
    use crate::testing::{in_namespace, ip, plan, record};

    /// Notes what it is asked to send.
    #[derive(Default)]
    struct Notebook(Vec<(u16, usize)>);

    impl Engine for Notebook {
        fn send<'p>(&mut self, batch: impl Iterator<Item = Outgoing<'p>>, _: &mut Tally) {
            self.0.extend(batch.map(|out| (out.head.client.port, out.payload.len())));
        }
    }

    fn head(port: u16) -> Inject {
        let client: SocketAddr = ([198, 18, 0, 1], port).into();
        Inject { client: client.into(), mss: 1_448, ..Inject::default() }
    }

    #[test]
    fn a_busy_shard_does_not_starve_another() {
        let (mut busy, busy_end) = shm::ring::heap(1 << 18);
        let (mut calm, calm_end) = shm::ring::heap(1 << 18);
        let guard = Guard::new(&plan(&["10.0.0.1:80"]));
        let mut drain = Drain::new(vec![busy_end, calm_end], guard, Notebook::default(), None);
        for _ in 0..3 * BATCH {
            assert!(busy.push(&record(head(1), b"x")));
        }
        assert!(calm.push(&record(head(2), b"yy")));
        assert!(busy.publish() && calm.publish());
        assert_eq!(drain.round(), BATCH + 1);
        assert_eq!(drain.engine.0.last(), Some(&(2, 2)));
        assert!(!drain.is_empty());
        while drain.round() > 0 {}
        assert!(drain.is_empty());
        assert_eq!(drain.engine.0.len(), 3 * BATCH + 1);
    }

    #[test]
    fn what_the_guard_refuses_is_counted_and_the_rest_is_sent() {
        let (mut shard, end) = shm::ring::heap(1 << 16);
        let guard = Guard::new(&plan(&["10.0.0.1:80"]));
        let mut drain = Drain::new(vec![end], guard, Notebook::default(), None);
        assert!(shard.push(&record(Inject { target: 9, ..head(1) }, b"x")));
        assert!(shard.push(b"torn"));
        assert!(shard.push(&record(head(2), b"x")));
        shard.publish();
        assert_eq!(drain.round(), 3);
        assert_eq!(drain.engine.0, [(2, 1)]);
        assert_eq!(drain.refused.get(Count::UnknownTarget), 1);
        assert_eq!(drain.refused.get(Count::Malformed), 1);
    }

    #[test]
    fn a_route_that_became_narrower_is_noticed() {
        in_namespace("a_route_that_became_narrower_is_noticed", || {
            ip("link set lo up mtu 1500");
            ip("addr add 10.9.9.1/32 dev lo");
            let plan = plan(&["10.9.9.1:80"]);
            let (mut shard, end) = shm::ring::heap(1 << 16);
            let engine = Sender::raw(crate::open(&plan).unwrap(), 0);
            let mut drain = Drain::new(vec![end], Guard::new(&plan), engine, None);
            let mut send = |segments: u64, refused: u64| {
                assert!(shard.push(&record(head(1), &[1; 1_448])) && shard.publish());
                drain.round();
                assert_eq!(drain.tally.get(Count::Segments), segments);
                assert_eq!(drain.tally.get(Count::Emsgsize), refused);
            };
            send(1, 0);
            ip("link set lo mtu 1300");
            send(1, 1);
            // Sent again it leaves in two pieces.
            send(3, 1);
        });
    }

    #[test]
    fn a_claim_is_handed_over_with_the_targets_address() {
        let (mut shard, end) = shm::ring::heap(1 << 16);
        let guard = Guard::new(&plan(&["10.0.0.1:80"]));
        let (sender, mut claims) = crate::claims::queue(Arc::new(EventFd::new().unwrap()));
        let mut drain = Drain::new(vec![end], guard, Notebook::default(), Some(sender));
        assert!(shard.push(&record(Inject { bits: inject_bit::CLAIM, ..head(7) }, &[])));
        assert!(shard.push(&record(head(8), &[])));
        assert!(shard.push(&record(Inject { bits: inject_bit::AGAIN, ..head(9) }, b"x")));
        shard.publish();
        drain.round();
        let mut next = || claims.pop().map(|claim| (claim.client.port, claim.target.to_string()));
        assert_eq!(next(), Ok((7, "10.0.0.1:80".to_owned())));
        assert_eq!(next(), Ok((9, "10.0.0.1:80".to_owned())));
        assert!(next().is_err());
        assert_eq!(drain.tally.get(Count::Claims), 2);
    }
}
