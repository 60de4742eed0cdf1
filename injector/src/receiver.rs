//! The return receiver: a thread of the injector process that brings the headers of the targets' answers from the
//! intercepts to the shards, and claims from the drain to the intercepts.
//!
//! One poll over all connections, never a wait on one. When a return ring is full, nothing is read until there is room,
//! and the intercepts' bounded queues do the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use shm::{Region, Role, RoleState};
use topology::Plan;
use topology::plan::Clients;

use crate::claims::{Claim, LiveClaims};
use crate::count::{MAX_INTERCEPTS, ReturnCount};
use crate::ears::Ear;
use crate::greeting;
use crate::peer::{Peer, Shared};
use crate::sorter::Sorter;

/// The thread's state.
pub struct Receiver {
    region: &'static Region,
    peers: Vec<Peer>,
    shared: Shared,
    claims: rtrb::Consumer<Claim>,
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    /// Silence after which a claim is forgotten.
    claim_life_us: u64,
    /// The run goes as fast as answers come.
    eager: bool,
}

/// Longest sleep; also the beat when nothing happens.
const BEAT_MS: u64 = 100;
/// Pause before a full ring is looked at again.
const STALL: Duration = Duration::from_micros(500);
/// Claims forwarded in one turn.
const CLAIMS: usize = 4_096;
/// Intercepts are told that sessions are behind for so long after a shard last said so, ms.
const BEHIND_MS: u64 = 100;
/// Live claims remembered at most: 130 bytes each.
const LIVE_CLAIMS: usize = 1 << 20;
/// What epoll calls the event counter.
const WAKE: u64 = u64::MAX;

impl Receiver {
    /// Opens what the thread needs. `claims` comes from the drain, `wake` interrupts the poll.
    pub fn new(
        region: &'static Region,
        plan: &Plan,
        claims: rtrb::Consumer<Claim>,
        wake: Arc<EventFd>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let sessions = usize::from(plan.shards.max(1)) * plan.limits.sessions_per_shard as usize;
        let live = match plan.clients {
            Clients::Keep => Some(LiveClaims::new(sessions.min(LIVE_CLAIMS))),
            Clients::Pool { .. } => None,
        };
        let shared = Shared {
            epoll,
            sorter: Sorter::new(region, plan.seeds.shard),
            counters: region.counters(Role::Receiver),
            live,
            ear: None,
            stalled: false,
        };
        let now_us = shm::monotonic_us();
        // Grows with each start of this process: a predecessor's late connection does not replace ours.
        let hello = greeting::hello(plan, shm::monotonic_ns(), None);
        let peers = plan.intercepts.iter().take(MAX_INTERCEPTS).enumerate();
        let peers = peers
            .map(|(i, &at)| Peer::new(i, at, greeting::policy(plan, at), hello.clone(), &shared, now_us))
            .collect();
        let eager = greeting::is_eager(plan);
        let claim_life_us = u64::from(plan.replay.idle_s + 60) * 1_000_000;
        Ok(Self { region, peers, shared, claims, wake, stop, claim_life_us, eager })
    }

    /// Tells the canary what it hears.
    pub(crate) fn with(mut self, ear: Option<Ear>) -> Self {
        self.shared.ear = ear;
        self
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        let heartbeat = self.region.heartbeat(Role::Receiver);
        heartbeat.set_state(RoleState::Running);
        while !self.stop.load(Relaxed) {
            heartbeat.beat(shm::monotonic_ms());
            heartbeat.set_pending(false);
            self.wait(shm::monotonic_us(), BEAT_MS);
            heartbeat.set_pending(true);
            self.turn(shm::monotonic_us());
        }
        for peer in &mut self.peers {
            peer.close("the run has ended");
        }
        heartbeat.set_pending(false);
        heartbeat.set_state(RoleState::Done);
    }

    /// One round of it at a time of the caller's; sleeps for at most so long.
    pub fn round(&mut self, now_us: u64, most_ms: u64) {
        self.wait(now_us, most_ms);
        self.turn(now_us);
    }

    /// Sleeps until a socket is ready, a claim comes, a pause ends, or the time is over.
    fn wait(&mut self, now_us: u64, most_ms: u64) {
        let mut timeout_ms = most_ms;
        if self.shared.stalled {
            // Readable sockets would end the sleep at once.
            std::thread::sleep(STALL);
            self.shared.stalled = false;
            timeout_ms = 0;
        }
        for until_us in self.peers.iter().filter_map(Peer::wakes_us) {
            timeout_ms = timeout_ms.min(until_us.saturating_sub(now_us).div_ceil(1_000));
        }
        let mut events = [EpollEvent::empty(); 64];
        let timeout = EpollTimeout::from(timeout_ms as u16);
        // EINTR and the like: nothing is ready, the turn finds out.
        let ready = self.shared.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..ready] {
            match event.data() {
                WAKE => drop(self.wake.read()),
                index => {
                    if let Some(peer) = self.peers.get_mut(index as usize) {
                        peer.ready(event.events());
                    }
                }
            }
        }
    }

    fn turn(&mut self, now_us: u64) {
        self.forward_claims(now_us);
        let eager = self.eager || now_us / 1_000 < self.region.control().behind_ms() + BEHIND_MS;
        self.shared.counters.set(ReturnCount::Eager.index(), eager.into());
        for peer in &mut self.peers {
            peer.pace(eager);
            peer.turn(now_us, &mut self.shared);
        }
        let up = self.peers.iter().filter(|p| p.is_up()).count();
        self.shared.counters.set(ReturnCount::Connected.index(), up as u64);
        if let Some(ear) = &self.shared.ear {
            ear.tell(up, self.peers.len());
        }
        if up < self.peers.len() {
            self.region.control().set_deaf_ms(now_us / 1_000);
        }
        if let Some(live) = &mut self.shared.live {
            live.expire(now_us.saturating_sub(self.claim_life_us));
            self.shared.counters.set(ReturnCount::ClaimsLive.index(), live.len() as u64);
        }
    }

    /// Takes claims from the drain: into the table, and on to every intercept that is up.
    fn forward_claims(&mut self, now_us: u64) {
        for _ in 0..CLAIMS {
            let Ok(claim) = self.claims.pop() else { return };
            if let Some(live) = &mut self.shared.live {
                let evicted = live.insert(now_us, claim);
                self.shared.counters.add(ReturnCount::ClaimsEvicted.index(), u64::from(evicted));
            }
            for peer in &mut self.peers {
                peer.claim(&claim, &self.shared);
            }
        }
        // More wait: come back at once.
        let _ = self.wake.write(1);
    }
}

#[cfg(test)]
mod tests;
