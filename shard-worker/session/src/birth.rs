//! New sessions: one slot for each copy of a flow, each with a client endpoint of its own that hashes to this shard and
//! that no other session uses at the same target.

use flow::hash::{endpoint_hash, flow_hash, shard_of};
use flow::record::opt;
use flow::{Captured, Drop, Endpoint, Seq};

use crate::config::Clients;
use crate::diary::Step;
use crate::numbering;
use crate::sack;
use crate::slot::{NONE, Phase, Recovery, Timer, is, try_bit};
use crate::table::{Table, has_endpoint};
use crate::tally::Count;
use crate::undo::SESSION_IMAGES;

/// Ports tried for one further copy with real client addresses, times the number of shards.
const PORTS_TRIED: u32 = 64;
/// Ports given to further copies: not the privileged ones.
const FIRST_PORT: u32 = 1024;
/// Free slots below which half-open sessions give way: those of a batch.
const SPARE: usize = 32;
/// Slots looked at for one of them at most: a flood is not to cost more than it does by itself.
const HALF_OPEN_LOOKS: u32 = 16;
/// A reconnect that follows this many fruitless ones waits, twice as long each time.
const FRUITLESS_AT_ONCE: u8 = 1;
const RECONNECT_PAUSE_US: u64 = 10_000;
const LONGEST_PAUSE: u8 = 6;

/// A client endpoint for a new connection.
enum Choice {
    Free(Endpoint),
    /// The four-tuple still drains this session.
    After(u32, Endpoint),
}

impl Table {
    /// Makes the sessions of a flow and returns the first; `Err` when not even one could be made.
    pub(crate) fn birth(
        &mut self,
        now_us: u64,
        hash: u64,
        segment: &Captured,
        copies: u32,
        joined: bool,
    ) -> Result<u32, Drop> {
        let copies = copies.min(u32::from(u16::MAX)) as u16;
        let (mut first, mut last, mut absent) = (NONE, NONE, Drop::NotJoined);
        for copy in 0..copies {
            match self.birth_of_one(now_us, segment, copies, copy, joined) {
                Ok(id) if first == NONE => (first, last) = (id, id),
                Ok(id) => {
                    self.slots.get_mut(last).rare_mut().next_copy = id;
                    last = id;
                }
                Err(reason) => {
                    absent = reason;
                    self.tally.one(match reason {
                        Drop::TableFull => Count::RefusedTableFull,
                        _ => Count::FailedExhausted,
                    });
                }
            }
        }
        if first == NONE {
            return Err(absent);
        }
        self.tally.one(Count::Flows);
        self.index_flow(hash, first);
        let mut id = first;
        while id != NONE {
            // Only a flow that has fewer sessions than copies has use for it.
            if copies > 1 {
                self.slots.get_mut(id).rare_mut().absent_reason = absent as u8;
            }
            id = self.slots.get(id).rare().next_copy;
        }
        Ok(first)
    }

    fn birth_of_one(
        &mut self,
        now_us: u64,
        segment: &Captured,
        copies: u16,
        copy: u16,
        joined: bool,
    ) -> Result<u32, Drop> {
        let target = self.config.mappings[usize::from(segment.mapping)];
        self.walk_until(|table| table.free_slots() > 0);
        // Those that are over leave first.
        if self.lingering.is_empty() {
            self.spare_a_slot(now_us, segment, copies - copy);
        }
        if self.free_slots() == 0 && !self.end_a_lingering_one(now_us, copies - copy) {
            self.spare_a_slot(now_us, segment, copies - copy);
            if self.free_slots() == 0 {
                return Err(Drop::TableFull);
            }
        }
        let choice = self.choose(now_us, segment, target, copy)?;
        let id = self.take_slot().expect("one was free a moment ago, and choosing frees only");
        self.answers.forget(id);
        self.diary.begin(id, now_us, if joined { Step::Joined } else { Step::SynCaptured });
        let tcp = &segment.tcp;
        let slot = self.slots.get_mut(id);
        slot.reset();
        slot.client = segment.client;
        slot.server = segment.server;
        slot.mapping = segment.mapping as u8;
        slot.lap = segment.lap;
        slot.target = target;
        if copies > 1 {
            (slot.rare_mut().copies, slot.rare_mut().copy) = (copies, copy);
        }
        slot.seen_us = now_us;
        slot.data_us = segment.time_ns / 1000;
        slot.online_isn = tcp.seq;
        slot.online_next = tcp.seq + u32::from(!joined);
        if tcp.has_option(opt::MSS) {
            slot.client_mss = tcp.mss;
        }
        if joined {
            slot.set(is::JOINED | is::RTT_SETTLED);
            slot.anchor(tcp.ack);
            self.tally.one(Count::SessionsJoined);
        }
        self.tally.one(Count::SessionsStarted);
        self.tally.open = self.tally.open.wrapping_add(1);
        let slot = self.slots.get_mut(id);
        match choice {
            Choice::Free(endpoint) => {
                slot.replayed = endpoint;
                self.occupy(id);
                self.connect(now_us, id, None);
                let slot = self.slots.get_mut(id);
                if slot.is_half_open() {
                    let times = &self.config.times;
                    slot.arm(Timer::End, now_us + times.half_open_us.min(times.idle_us));
                }
            }
            Choice::After(holder, endpoint) => {
                slot.replayed = endpoint;
                slot.enter(Phase::Queued);
                slot.arm(Timer::End, now_us + self.config.times.queue_us);
                self.slots.get_mut(holder).rare_mut().waiter = id;
                self.tally.one(Count::Queued);
                self.rearm(id);
            }
        }
        Ok(id)
    }

    /// Frees the slot of the session that lingers longest: it is over, and waits only in case its last acknowledgement was lost.
    /// False when there is none, or the transaction has no room for it and as many more as are still to be made.
    fn end_a_lingering_one(&mut self, now_us: u64, to_make: u16) -> bool {
        if !self.slots.has_room(u32::from(to_make) + SESSION_IMAGES) {
            return false;
        }
        let Some(id) = self.lingering.pop(&self.slots) else { return false };
        self.finish(now_us, id, Drop::TargetClosed);
        self.tally.one(Count::LingeredLess);
        true
    }

    /// Ends a session whose client has said nothing but its SYN, when few slots are free: a flood of SYNs must not keep out those who
    /// mean it. A hand goes round over the slots, and who is born takes one behind it, so it is the oldest that it finds. The
    /// target has not been told more than the online server, so it is not told of the end either; only one whose third packet has
    /// left (`--rtt none`) is reset, and its slot is free after that.
    fn spare_a_slot(&mut self, now_us: u64, segment: &Captured, to_make: u16) {
        let end = self.header.fresh.min(self.slots.len());
        // What a predecessor left free is found by the walk first.
        if self.is_walking()
            || self.free_slots() >= SPARE.min((self.slots.len() as usize / 8).max(1))
            || !self.slots.has_room(u32::from(to_make) + SESSION_IMAGES)
        {
            return;
        }
        for _ in 0..HALF_OPEN_LOOKS.min(end) {
            let id = self.half_open_hand % end;
            self.half_open_hand = id + 1;
            let slot = self.slots.get(id);
            if slot.is_half_open() && slot.client != segment.client {
                let told = slot.phase() == Phase::Open && !slot.is(is::HELD_BACK);
                self.slots.get_mut(id).rare_mut().failure = 1 + Count::FailedHalfOpen as u8;
                match told {
                    true => self.fail(now_us, id, Drop::TableFull, Count::FailedHalfOpen),
                    false => self.finish(now_us, id, Drop::TableFull),
                }
                return;
            }
        }
    }

    /// An endpoint for a copy of a flow.
    fn choose(&mut self, now_us: u64, segment: &Captured, target: u16, copy: u16) -> Result<Choice, Drop> {
        let Captured { client, lap, .. } = segment;
        if let Clients::Pool { .. } = self.config.clients {
            return self.next_of_pool(now_us, target).map(Choice::Free).ok_or(Drop::EndpointsExhausted);
        }
        if *client == Endpoint::default() {
            // It stands for "none" in a slot. Nobody speaks from there, but a frame may say so.
            return Err(Drop::EndpointsExhausted);
        }
        if copy == 0 && *lap == 0 {
            let address = self.config.targets[target as usize].endpoint;
            let Some(holder) = self.find_replayed(client, &address) else { return Ok(Choice::Free(*client)) };
            let slot = self.slots.get(holder);
            let (waiting, phase) = (slot.rare().waiter, slot.phase());
            // While nothing can come back the older ones cannot end, and are not to be blamed for it.
            let deaf = waiting != NONE && now_us < self.hears_again_us();
            if slot.client == *client && slot.is(is::DETACHED) && !deaf {
                if waiting != NONE {
                    // Only the newest waits.
                    self.fail(now_us, waiting, Drop::Superseded, Count::FailedSuperseded);
                }
                if phase == Phase::Lingering || phase == Phase::Parted {
                    self.finish(now_us, holder, Drop::Superseded);
                    return Ok(Choice::Free(*client));
                }
                return Ok(Choice::After(holder, *client));
            }
            self.tally.one(Count::PortShifted);
        }
        self.other_port(segment, target, copy).map(Choice::Free).ok_or(Drop::EndpointsExhausted)
    }

    fn next_of_pool(&mut self, now_us: u64, target: u16) -> Option<Endpoint> {
        let address = self.config.targets[target as usize].endpoint;
        let family = usize::from(!address.addr.is_v4());
        let (slots, targets, by_replayed) = (&self.slots, &self.config.targets, &self.by_replayed);
        let (seed, fresh) = (self.replayed_seed(), self.header.fresh);
        let pool = self.pools[family].as_ref()?;
        pool.take(&mut self.header.pools[family], (now_us / 1_000_000) as u32, |endpoint| {
            let has = |id| id < fresh && has_endpoint(slots.get(id), targets, endpoint, &address);
            by_replayed.find(flow_hash(seed, endpoint, &address), has).is_none()
        })
    }

    /// The client's address with another port that hashes to this shard and is free.
    fn other_port(&self, segment: &Captured, target: u16, copy: u16) -> Option<Endpoint> {
        let Captured { client, server, lap, .. } = segment;
        let address = self.config.targets[target as usize].endpoint;
        let shards = self.config.shards.max(1);
        let nth = u64::from(copy) | u64::from(*lap) << 16;
        let start = flow_hash(self.config.seeds.endpoint ^ nth, client, server) as u32;
        let ports = 65_536 - FIRST_PORT;
        (0..PORTS_TRIED.saturating_mul(u32::from(shards)).min(ports))
            .map(|i| Endpoint::new(client.addr, (FIRST_PORT + start.wrapping_add(i) % ports) as u16))
            .find(|endpoint| {
                endpoint != client
                    && shard_of(endpoint_hash(self.config.seeds.shard, endpoint), shards) == self.config.shard
                    && self.peek_replayed(endpoint, &address).is_none()
            })
    }

    /// Puts the session's replayed endpoint into the index; see `index_flow` for when that may be.
    pub(crate) fn occupy(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let (replayed, target) = (slot.replayed, self.config.targets[slot.target as usize].endpoint);
        let hash = self.replayed_hash(&replayed, &target);
        self.put_endpoint(hash, id);
    }

    /// Takes it out again; from the pool's ranges it rests from now on.
    pub(crate) fn vacate(&mut self, now_us: u64, id: u32) {
        let slot = &*self.slots.get_mut(id);
        if slot.replayed == Endpoint::default() {
            return;
        }
        let (replayed, next) = (slot.replayed, slot.snd_nxt);
        let target = self.config.targets[slot.target as usize].endpoint;
        let hash = self.replayed_hash(&replayed, &target);
        if !self.by_replayed.remove(hash, id) {
            return;
        }
        let family = usize::from(!replayed.addr.is_v4());
        match &self.pools[family] {
            Some(pool) => pool.rest(&mut self.header.pools[family], &replayed, (now_us / 1_000_000) as u32),
            None => self.header.last_numbers.note(hash, next),
        }
        self.slots.get_mut(id).replayed = Endpoint::default();
    }

    /// The session's endpoint is free at last for the one that waited for it.
    pub(crate) fn start_waiter(&mut self, now_us: u64, id: u32) {
        self.slots.get_mut(id).disarm(Timer::End);
        self.occupy(id);
        self.connect(now_us, id, None);
    }

    /// A new connection for a session whose last one is gone: in pool mode from the next endpoint. `Err` tells why there
    /// is none, and the session is parted or over.
    pub(crate) fn reopen(&mut self, now_us: u64, id: u32) -> Result<(), Drop> {
        let slot = self.slots.get(id);
        let target = slot.target;
        let floor = slot.snd_nxt;
        if let Clients::Pool { .. } = self.config.clients {
            self.vacate(now_us, id);
            let Some(endpoint) = self.next_of_pool(now_us, target) else {
                self.part_with(now_us, id, Drop::EndpointsExhausted, Count::FailedExhausted, false);
                return Err(Drop::EndpointsExhausted);
            };
            self.slots.get_mut(id).replayed = endpoint;
            self.occupy(id);
        }
        self.tally.one(Count::Reconnects);
        self.connect(now_us, id, Some(floor));
        let slot = self.slots.get_mut(id);
        slot.set(is::REANCHOR);
        slot.tries |= try_bit::PACED;
        let fruitless = slot.rare().fruitless;
        if fruitless > FRUITLESS_AT_ONCE {
            // A target that closes every connection at once is not stormed.
            let pause = RECONNECT_PAUSE_US << fruitless.min(LONGEST_PAUSE);
            let pause = pause + self.targets.jitter(pause / 4);
            let slot = self.slots.get_mut(id);
            slot.unset(is::OWE_SYN);
            slot.arm(Timer::Rto, now_us + pause);
            self.rearm(id);
        }
        Ok(())
    }

    /// Numbers for a new connection; the SYN leaves with the next pump.
    pub(crate) fn connect(&mut self, now_us: u64, id: u32, floor: Option<Seq>) {
        let slot = self.slots.get(id);
        let target = self.config.targets[slot.target as usize].endpoint;
        let replayed = slot.replayed;
        let floor = floor.or_else(|| self.header.last_numbers.get(self.replayed_hash(&replayed, &target)));
        let clock = match self.config.repeatable {
            true => numbering::clock_of_client(slot.online_isn, slot.lap),
            false => numbering::clock(now_us),
        };
        let isn = numbering::isn(clock, self.config.seeds.isn, &replayed, &target, floor);
        let idle_us = self.config.times.idle_us;
        let slot = self.slots.get_mut(id);
        slot.ts_offset = numbering::ts_offset(self.config.seeds.isn, &replayed, &target);
        (slot.snd_una, slot.snd_nxt, slot.rtx_nxt, slot.recover) = (isn, isn, isn, isn);
        (slot.snd_wnd, slot.max_wnd, slot.turns_waiting) = (0, 0, 0);
        sack::forget(slot);
        if let Some(rare) = slot.had_rare() {
            (rare.backoff, rare.probes, rare.dupacks) = (0, 0, 0);
        }
        (slot.deviation, slot.ts_recent, slot.wscale) = (0, 0, 0);
        (slot.pingpong, slot.answer_parts) = (1, 0);
        slot.tries &= try_bit::OF_FLOW;
        slot.set_recovery(Recovery::None);
        slot.unset(
            is::SYNCHRONISED
                | is::FIN_SENT
                | is::FIN_ACKED
                | is::PEER_FIN
                | is::PEER_TS
                | is::PEER_SACK
                | is::HELD_BACK
                | is::OWE_ACK
                | is::OWE_PROBE
                | is::OWE_RST
                | is::OWE_HEAD
                | is::OWE_TAIL
                | is::TAIL_TIMER
                | is::TIMING
                | is::ANSWER_PSH,
        );
        slot.disarm_connection();
        slot.arm(Timer::End, now_us + idle_us);
        slot.progress_us = now_us;
        slot.set(is::OWE_SYN);
        slot.enter(Phase::Opening);
        self.tally.one(Count::Connections);
        self.touch(id);
    }
}
