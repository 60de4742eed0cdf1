//! The captured side: segments of real clients, in order, doubled, overlapping or with holes between them, become the
//! held stream. Every payload byte is taken in once or dropped under a reason here.

use flow::record::flag;
use flow::sample::copies;
use flow::{Captured, Drop, Seq, TcpFields};

use crate::chunks::{Chunks, ROOM};
use crate::config::{Join, OnGap, Rtt};
use crate::diary::Step;
use crate::held::{self, NoChunk, Piece, piece};
use crate::slot::{NONE, Phase, Slot, Timer, is, try_bit};
use crate::stash;
use crate::table::Table;
use crate::tally::Count;
use crate::target::RIDE_US;
use crate::wide::Wide;

/// A round-trip time of the client from this on is not believed: its SYN was lost on the way, or its user was asleep.
const RTT_VALID_US: u64 = 900_000;
/// A client nearer than this has no distance: a timer for each of its answers would cost more than it models, and its
/// handshake tells how long two hosts took to wake up (300 µs on a path of 10), not what an answer takes.
const NEXT_DOOR_US: u32 = 1_000;
/// Between looks at whether a file has gone on far enough behind a hole.
const FILE_LOOK_US: u64 = 20_000;
/// How far a file goes on behind a hole that the online server has too: six tries of the client's retransmission timer, which
/// begins at 200 ms and doubles.
const RETRIED_US: u64 = 15_000_000;
/// Sequence numbers further off than this belong to another connection: four times Linux' largest default buffer.
const FAR: i32 = 1 << 28;

/// What is done with bytes that are next in order.
enum Admit {
    Hold,
    Drop(Drop),
}

impl Table {
    pub(crate) fn take_captured(
        &mut self,
        now_us: u64,
        segment: &Captured,
        payload: &[u8],
        percent_ppm: u32,
        copies_milli: u32,
    ) {
        self.tally.one(Count::TakenSegments);
        self.tally.add(Count::TakenBytes, payload.len() as u64);
        self.file_clock.read(now_us, segment.time_ns / 1000);
        let (hash, mut first) = self.flow_of(segment);
        let opens = segment.tcp.has(flag::SYN) && !segment.tcp.has(flag::ACK);
        if let Some(id) = first
            && opens
            && !self.repeats_syn(id, segment)
        {
            self.detach_flow(now_us, id);
            first = None;
        }
        if let Some(id) = first {
            self.distribute(now_us, id, segment, payload);
            return;
        }
        let wanted = self.copies_wanted(segment, percent_ppm, copies_milli);
        if wanted == 0 {
            self.tally.one(Count::SampledOut);
            return;
        }
        if usize::from(segment.mapping) >= self.config.mappings.len() {
            self.tally.one(Count::Orphans);
            self.refuse(Drop::NotJoined, wanted, payload.len());
            return;
        }
        if opens {
            self.begin_flow(now_us, hash, segment, payload, wanted, false);
        } else if payload.is_empty() {
            if segment.tcp.has(flag::ACK) && segment.tcp.flags & (flag::FIN | flag::RST) == 0 {
                self.strangers.moved_on(hash, segment.tcp.ack);
            } else {
                self.tally.one(Count::Orphans);
            }
        } else {
            let joins = match self.config.join {
                // A keep-alive probe with its byte begins no turn.
                _ if looks_like_keep_alive(&segment.tcp, payload) => false,
                Join::First => segment.tcp.has(flag::ACK),
                Join::Boundary => {
                    segment.tcp.has(flag::ACK) && self.strangers.moved_on(hash, segment.tcp.ack)
                }
                Join::Never => false,
            };
            match joins {
                true => self.begin_flow(now_us, hash, segment, payload, wanted, true),
                false if self.config.join == Join::Never => {
                    self.refuse(Drop::NotJoined, wanted, payload.len());
                }
                false => self.refuse(Drop::JoinedMidturn, wanted, payload.len()),
            }
        }
    }

    /// The header of an answer in a file, see `answers`.
    pub(crate) fn take_online_answer(&mut self, now_us: u64, segment: &Captured) {
        self.tally.one(Count::OnlineAnswers);
        self.file_clock.read(now_us, segment.time_ns / 1000);
        let (hash, first) = self.flow_of(segment);
        let Some(first) = first else {
            if segment.cut_len > 0 {
                // A flow older than the file: what acknowledges more than this comes behind an answer.
                self.strangers.moved_on(hash, segment.tcp.seq);
            }
            return;
        };
        let mut id = first;
        while id != NONE {
            let waited_us = self.answers.take(id, segment);
            if let Some(us) = waited_us
                && id == first
            {
                self.tally.online_first_byte.record(us.into());
            }
            let slot = self.slots.get(id);
            let next = slot.rare().next_copy;
            let opens = segment.tcp.has(flag::SYN | flag::ACK) && segment.tcp.ack.after(slot.online_isn);
            if opens && !slot.is(is::ANCHORED) {
                self.slots.get_mut(id).anchor(segment.tcp.seq + 1);
            }
            self.note_hole(now_us, id, None);
            id = next;
        }
    }

    /// How many sessions a flow that is not known would have.
    pub(crate) fn copies_wanted(&self, segment: &Captured, percent_ppm: u32, copies_milli: u32) -> u32 {
        copies(self.config.seeds.sample, &segment.client, &segment.server, 0, percent_ppm, copies_milli)
    }

    /// Bytes that are wanted but find no session.
    pub(crate) fn refuse(&mut self, reason: Drop, copies: u32, len: usize) {
        self.tally.add(Count::Wanted, u64::from(copies) * len as u64);
        for _ in 0..copies {
            self.tally.drop_bytes(reason, len as u32);
        }
    }

    fn begin_flow(
        &mut self,
        now_us: u64,
        hash: u64,
        segment: &Captured,
        payload: &[u8],
        copies: u32,
        joined: bool,
    ) {
        if self.draining {
            self.refuse(Drop::Stopped, copies, payload.len());
            return;
        }
        self.strangers.forget(hash);
        match self.birth(now_us, hash, segment, copies, joined) {
            Ok(first) => self.distribute(now_us, first, segment, payload),
            Err(reason) => self.refuse(reason, copies, payload.len()),
        }
    }

    /// Gives a segment to every copy of its flow.
    fn distribute(&mut self, now_us: u64, first: u32, segment: &Captured, payload: &[u8]) {
        let (copies, absent) =
            (self.slots.get(first).rare().copies, self.slots.get(first).rare().absent_reason);
        self.tally.add(Count::Wanted, u64::from(copies) * payload.len() as u64);
        let (mut id, mut present) = (first, 0);
        while id != NONE {
            let next = self.slots.get(id).rare().next_copy;
            self.take(now_us, id, segment, payload);
            present += 1;
            id = next;
        }
        for _ in present..copies {
            self.tally.drop_bytes(Drop::ALL[absent as usize % Drop::COUNT], payload.len() as u32);
        }
    }

    /// Whether a SYN is one more of the flow that the table knows.
    fn repeats_syn(&mut self, first: u32, segment: &Captured) -> bool {
        let slot = self.slots.get(first);
        if slot.is(is::JOINED) || slot.online_isn != segment.tcp.seq {
            return false;
        }
        let mut id = first;
        while id != NONE {
            let slot = self.slots.get_mut(id);
            if !slot.is(is::RTT_SETTLED) {
                // Which of the two SYNs was answered is not known (REPLAY, "RTT sample").
                slot.set(is::RTT_SETTLED);
                slot.client_rtt_us = 0;
            }
            id = slot.rare().next_copy;
        }
        true
    }

    /// One segment of one copy.
    fn take(&mut self, now_us: u64, id: u32, segment: &Captured, payload: &[u8]) {
        let tcp = &segment.tcp;
        let time_us = segment.time_ns / 1000;
        self.note_handshake(now_us, id, segment, time_us);
        let slot = self.slots.get_mut(id);
        slot.seen_us = now_us;
        if tcp.has(flag::URG) {
            self.tally.one(Count::Urgent);
        }
        let seq = tcp.seq + u32::from(tcp.has(flag::SYN));
        let gate = if tcp.has(flag::ACK) { slot.online(tcp.ack) } else { slot.last_gate };
        let end = seq + payload.len() as u32 + segment.cut_len;
        if end.since(slot.online_next).unsigned_abs() > FAR as u32 {
            self.tally.drop_bytes(Drop::NotJoined, payload.len() as u32);
            return;
        }
        if is_keep_alive(slot, tcp, payload) {
            // Its byte, if it has one, was taken before or was missed; it is none of the stream.
            self.tally.one(Count::KeepAlives);
            self.tally.drop_bytes(Drop::Duplicate, payload.len() as u32);
        } else if payload.is_empty() {
            // The client does something else than to go on with what it wrote.
            if slot.tries & try_bit::UNPUSHED != 0 {
                slot.tries &= !try_bit::UNPUSHED;
                self.touch(id);
            }
            self.drain_stash(now_us, id);
        } else {
            self.take_payload(now_us, id, seq, gate, segment, payload);
        }
        if segment.cut_len > 0 && self.slots.get(id).online_next == seq + payload.len() as u32 {
            self.take_cut(now_us, id, end);
        }
        let slot = self.slots.get_mut(id);
        if tcp.flags & (flag::FIN | flag::RST) != 0 && !slot.is(is::END_KNOWN) && slot.phase() != Phase::Free
        {
            slot.set(is::END_KNOWN);
            slot.put(is::END_RST, tcp.has(flag::RST));
            let end = if tcp.has(flag::RST) { end.max(slot.online_next) } else { end };
            let rare = slot.rare_mut();
            (rare.online_end, rare.end_gate) = (end, gate);
            let step = if tcp.has(flag::RST) { Step::ClientRst } else { Step::ClientFin };
            self.diary.note(id, now_us, step, 1);
        } else if tcp.has(flag::RST) && slot.is(is::END_KNOWN) {
            // After its FIN the client answered with a reset: what is held still goes first.
            slot.set(is::END_RST);
        }
        self.note_hole(now_us, id, tcp.has(flag::ACK).then_some(tcp.ack));
        self.take_end(now_us, id, time_us);
    }

    /// Sets the time of a hole, or brings it forward: a client that has read more than when it sent what lies behind the
    /// hole was answered by a server that has no hole there, so nobody will send those bytes again.
    fn note_hole(&mut self, now_us: u64, id: u32, ack: Option<Seq>) {
        let slot = self.slots.get(id);
        let end = slot.is(is::END_KNOWN) && slot.rare().online_end.after(slot.online_next);
        if slot.rare().stash_count == 0 && !end {
            return;
        }
        let end_gate = end.then_some(slot.rare().end_gate.seq());
        let nobody = slot.is(is::END_RST)
            || self.answers.has_byte(id, slot.online_next).unwrap_or(false)
            || stash::was_answered(slot, &self.chunks, ack, end_gate);
        let times = &self.config.times;
        let due = now_us + if nobody { times.hole_us } else { times.loss_us };
        let slot = self.slots.get_mut(id);
        if due < slot.deadline(Timer::Hole) {
            slot.arm(Timer::Hole, due);
            self.rearm(id);
        }
    }

    /// What the first packets of a connection tell: the client's distance, and where the server's numbers begin.
    fn note_handshake(&mut self, now_us: u64, id: u32, segment: &Captured, time_us: u64) {
        let rtt = self.config.rtt;
        let slot = self.slots.get_mut(id);
        if segment.tcp.has(flag::SYN) || slot.is(is::ANCHORED) && slot.is(is::RTT_SETTLED) {
            return;
        }
        if segment.tcp.has(flag::ACK) && !slot.is(is::ANCHORED) {
            slot.anchor(segment.tcp.ack);
        }
        if !slot.is(is::RTT_SETTLED) {
            slot.set(is::RTT_SETTLED);
            let sample = time_us.saturating_sub(slot.data_us);
            if sample < RTT_VALID_US {
                slot.client_rtt_us = sample as u32;
                self.nearest.note(&slot.client, &slot.server, sample as u32);
            }
        }
        if slot.is(is::HELD_BACK) {
            if rtt == Rtt::Measured {
                slot.arm(Timer::Ack, slot.answer_us + distance_us(slot, rtt));
            }
            if slot.deadline(Timer::Ack) <= now_us {
                slot.unset(is::HELD_BACK);
                slot.arm(Timer::Ack, now_us + RIDE_US);
            }
            self.touch(id);
        }
    }

    fn take_payload(
        &mut self,
        now_us: u64,
        id: u32,
        seq: Seq,
        gate: Wide,
        segment: &Captured,
        payload: &[u8],
    ) {
        let time_us = segment.time_ns / 1000;
        let slot = self.slots.get(id);
        let mut bytes = payload;
        // Beyond the client's own end nothing can follow.
        if slot.is(is::END_KNOWN) {
            let room = slot.rare().online_end.since(seq).max(0) as usize;
            let (within, beyond) = bytes.split_at(bytes.len().min(room));
            self.tally.drop_bytes(Drop::NotJoined, beyond.len() as u32);
            bytes = within;
        }
        let known = slot.online_next.since(seq).max(0) as usize;
        let (doubled, fresh) = bytes.split_at(bytes.len().min(known));
        self.tally.drop_bytes(Drop::Duplicate, doubled.len() as u32);
        if fresh.is_empty() {
            return;
        }
        let seq = seq + doubled.len() as u32;
        let held = u64::from(slot.held_len) + u64::from(slot.rare().stash_bytes) + fresh.len() as u64;
        if held > u64::from(self.config.limits.held_per_session) || !self.has_room(fresh.len()) {
            self.tally.drop_bytes(Drop::Memory, fresh.len() as u32);
            self.overflow(now_us, id, seq + fresh.len() as u32);
            return;
        }
        let slot = self.slots.get(id);
        let early = !slot.is(is::ANCHORED);
        if seq == slot.online_next && !early {
            let gate = lowered(slot, &self.chunks, gate);
            let pushed = segment.tcp.has(flag::PSH);
            if self.append(now_us, id, gate, time_us, fresh, pushed).is_err() {
                self.tally.drop_bytes(Drop::Memory, fresh.len() as u32);
                self.overflow(now_us, id, seq + fresh.len() as u32);
                return;
            }
            self.answers.asked(id, seq, seq + fresh.len() as u32, segment.stamp_us);
        } else if stash::has(slot, &self.chunks, seq, fresh.len() as u32) {
            self.tally.drop_bytes(Drop::Duplicate, fresh.len() as u32);
        } else {
            // Behind a hole; or data in a SYN, which waits for the client's third packet (RFC 7413: it may be a repeat).
            if slot.rare().stash_count == 0 {
                self.answers.hole(id);
            }
            let slot = self.slots.get_mut(id);
            if stash::keep(slot, &mut self.chunks, time_us, seq, gate.seq(), fresh).is_err() {
                self.tally.drop_bytes(Drop::Memory, fresh.len() as u32);
                self.overflow(now_us, id, seq + fresh.len() as u32);
                return;
            }
            self.tally.one(Count::Stashed);
            self.tally.hold(fresh.len() as u32);
            if slot.rare().stash_count >= stash::ENTRIES {
                slot.arm(Timer::Hole, now_us);
            }
        }
        self.drain_stash(now_us, id);
        self.touch(id);
    }

    /// Bytes that are next in order: they begin a turn, continue one, or belong to one that is given up. `pushed`: nothing more of
    /// what the client wrote follows.
    fn append(
        &mut self,
        now_us: u64,
        id: u32,
        gate: Wide,
        time_us: u64,
        bytes: &[u8],
        pushed: bool,
    ) -> Result<(), NoChunk> {
        match self.admit(now_us, id, gate, time_us, bytes.len())? {
            Admit::Hold => {
                let slot = self.slots.get_mut(id);
                held::grow(slot, &mut self.chunks, bytes)?;
                if self.config.repeatable && !pushed {
                    slot.tries |= try_bit::UNPUSHED;
                } else {
                    slot.tries &= !try_bit::UNPUSHED;
                }
                self.tally.hold(bytes.len() as u32);
                self.diary.note(id, now_us, Step::Captured, bytes.len() as u32);
            }
            Admit::Drop(reason) => self.tally.drop_bytes(reason, bytes.len() as u32),
        }
        self.slots.get_mut(id).online_next += bytes.len() as u32;
        Ok(())
    }

    /// Decides about bytes that are next in order, and begins a piece for them when they need one.
    fn admit(
        &mut self,
        now_us: u64,
        id: u32,
        gate: Wide,
        time_us: u64,
        len: usize,
    ) -> Result<Admit, NoChunk> {
        let slot = self.slots.get(id);
        let first = !slot.is(is::HAD_DATA);
        let gate = gate.max(slot.last_gate);
        let begins = first || gate > slot.last_gate;
        let gap_us = if first { 0 } else { time_us.saturating_sub(slot.data_us) };
        let overlapped = begins && !first && self.overlaps(id, gate, gap_us);
        let slot = self.slots.get_mut(id);
        slot.set(is::HAD_DATA);
        slot.data_us = time_us.max(slot.data_us);
        slot.last_gate = gate;
        if slot.is(is::SKIPPING) {
            if !begins || slot.tries & try_bit::GIVEN_UP != 0 {
                return Ok(Admit::Drop(Drop::ALL[slot.rare().skip_reason as usize % Drop::COUNT]));
            }
            slot.unset(is::SKIPPING);
        }
        let another_write = self.config.repeatable && slot.tries & try_bit::UNPUSHED == 0;
        if begins || another_write || !held::can_grow(slot) {
            let mut flags = if overlapped { piece::OVERLAPPED } else { 0 };
            if begins {
                flags |= piece::NEW_TURN;
                if slot.tries & try_bit::AFTER_GAP != 0 {
                    flags |= piece::AFTER_GAP;
                }
                slot.tries &= !try_bit::AFTER_GAP;
            }
            let gap_us = gap_us.min(u64::from(u32::MAX)) as u32;
            held::begin(slot, &mut self.chunks, &Piece { time_us, len: 0, gate, gap_us, flags }, len)?;
        }
        if slot.phase() == Phase::Parted
            && let Err(reason) = self.reopen(now_us, id)
        {
            return Ok(Admit::Drop(reason));
        }
        Ok(Admit::Hold)
    }

    /// Row 2 of the turns: what comes less than half of the client's round trip after its previous data, the shortest one
    /// ever seen, cannot be an answer to an answer to it. Answers in a file leave nothing to be guessed.
    fn overlaps(&self, id: u32, gate: Wide, gap_us: u64) -> bool {
        if let Some(pipelined) = self.answers.is_pipelined(id, gate.seq()) {
            return pipelined;
        }
        let slot = self.slots.get(id);
        let too_soon = |rtt_us: u32| rtt_us >= NEXT_DOOR_US && gap_us < u64::from(rtt_us) / 2;
        too_soon(slot.client_rtt_us) && self.nearest.rtt_us(&slot.client, &slot.server).is_none_or(too_soon)
    }

    /// Moves on what is in order now.
    fn drain_stash(&mut self, now_us: u64, id: u32) {
        if self.slots.get(id).rare().stash_count == 0 || !self.slots.get(id).is(is::ANCHORED) {
            return;
        }
        let mut moved = false;
        while let Some(mut ready) = stash::ready(self.slots.get(id), &self.chunks) {
            moved = true;
            self.answers.lost_order(id);
            let slot = self.slots.get(id);
            let of_syn = !slot.is(is::HAD_DATA | is::JOINED) && slot.online_next == slot.online_isn + 1;
            let gate = if of_syn { slot.last_gate } else { slot.online_ack.near(ready.gate) };
            let gate = lowered(slot, &self.chunks, gate);
            let mut buffer = [0; ROOM];
            while ready.len > 0 {
                let n = stash::read(self.slots.get(id), &self.chunks, &mut ready, &mut buffer);
                // Which of its segments had PSH is not kept.
                let pushed = ready.len == 0;
                if !self.has_room(n)
                    || self.append(now_us, id, gate, ready.time_us, &buffer[..n], pushed).is_err()
                {
                    self.overflow(now_us, id, self.slots.get(id).online_next);
                    return;
                }
                // They were in flight in the stash already.
                self.slots.get_mut(id).rare_mut().stash_bytes -= n as u32;
                self.tally.in_flight -= n as u64;
            }
        }
        let slot = self.slots.get_mut(id);
        let doubled = stash::reset_when_passed(slot, &mut self.chunks);
        self.tally.discard(Drop::Duplicate, doubled);
        if slot.rare().stash_count == 0 {
            slot.disarm(Timer::Hole);
        } else if moved {
            // The next hole has its own time.
            slot.disarm(Timer::Hole);
            self.note_hole(now_us, id, None);
        }
    }

    /// A hole's time is over: it is skipped, and with it the turn that it was in.
    pub(crate) fn give_up_hole(&mut self, now_us: u64, id: u32) {
        let slot = self.slots.get(id);
        if !slot.is(is::ANCHORED) {
            // Not a hole: data in a SYN, which waits for the client's next packet.
            return;
        }
        let behind_us = stash::first_time_us(slot, &self.chunks).unwrap_or(slot.data_us);
        let server_has = self.answers.has_byte(id, slot.online_next);
        let within_us = match server_has {
            Some(true) => Some(self.config.times.hole_us),
            Some(false) => Some(RETRIED_US),
            None => None,
        };
        if self.file_clock.may_fill(now_us, behind_us, within_us) && slot.rare().stash_count < stash::ENTRIES
        {
            self.slots.get_mut(id).arm(Timer::Hole, now_us + FILE_LOOK_US);
            self.rearm(id);
            return;
        }
        if !self.reserve_for_stash(now_us, id) {
            // There is room for what moves on once this transaction has ended.
            self.slots.get_mut(id).arm(Timer::Hole, now_us);
            self.rearm(id);
            return;
        }
        let slot = self.slots.get(id);
        let next = stash::first_byte(slot, &self.chunks);
        let end = slot.is(is::END_KNOWN).then_some(slot.rare().online_end);
        let Some(to) = [next, end].into_iter().flatten().reduce(Seq::min) else { return };
        let missed = to.since(slot.online_next);
        if missed > 0 {
            self.tally.one(Count::Holes);
            self.tally.add(Count::HolesOfCapture, u64::from(server_has == Some(true)));
            self.tally.add(Count::Missed, missed as u64);
            self.diary.note(id, now_us, Step::HoleGivenUp, missed as u32);
            match self.config.on_gap {
                OnGap::Abort => self.abort(now_us, id, to),
                OnGap::Skip | OnGap::Resync => self.skip_hole(now_us, id, to, missed as u32),
            }
        }
        self.drain_stash(now_us, id);
        self.take_end(now_us, id, self.slots.get(id).data_us);
        self.touch(id);
    }

    /// Passes over missing bytes. Where the request with the hole begins and ends is told by acknowledgement numbers:
    ///
    /// | the bytes after the hole | then |
    /// |---|---|
    /// | continue the turn before it | that turn has the hole: what was not sent of it, and all that follows of it, is given up |
    /// | begin another turn, and the hole is as long as whole segments | the new turn's start is probably missing: it is given up |
    /// | begin another turn otherwise, or the server had answered all before them | whole requests are missing; nothing else is lost |
    fn skip_hole(&mut self, now_us: u64, id: u32, to: Seq, missed: u32) {
        let after = self.gate_at(id, to);
        let slot = self.slots.get_mut(id);
        let risen = after.unwrap_or(slot.rare().end_gate) > slot.last_gate;
        slot.online_next = to;
        slot.tries |= try_bit::AFTER_GAP;
        if risen {
            if let Some(gate) = after
                && splits_a_request(slot, missed)
                && !self.answers.turn_begins(id, to)
            {
                slot.set(is::SKIPPING | is::HAD_DATA);
                slot.rare_mut().skip_reason = Drop::Gap as u8;
                slot.last_gate = gate;
            }
            return;
        }
        if !slot.is(is::SKIPPING) {
            self.lose_turn(now_us, id, after.is_some());
        }
    }

    /// The turn that is being captured has a hole: what was not sent of it is given up, and what still comes of it.
    fn lose_turn(&mut self, now_us: u64, id: u32, goes_on: bool) {
        let slot = self.slots.get_mut(id);
        let had_data = slot.is(is::HAD_DATA);
        slot.set(is::SKIPPING | is::HAD_DATA);
        slot.rare_mut().skip_reason = Drop::Gap as u8;
        slot.tries |= try_bit::AFTER_GAP;
        if had_data {
            let Ok((dropped, partly_sent)) = held::drop_unsent_tail(slot, &mut self.chunks) else {
                let to = slot.online_next;
                self.overflow(now_us, id, to);
                return;
            };
            self.tally.discard(Drop::Gap, dropped);
            let sent = partly_sent || (dropped == 0 && slot.held.is_empty());
            if sent && goes_on && slot.phase() == Phase::Open {
                // Part of a request stands at the target and its rest will never come.
                if self.config.on_gap == OnGap::Resync {
                    self.tally.one(Count::GapResyncs);
                    // Whether it draws an answer nobody knows: the next turn does not wait for one.
                    self.slots.get_mut(id).turns_waiting = 0;
                } else {
                    self.tally.one(Count::GapReconnects);
                    self.break_off(now_us, id);
                }
            }
        }
    }

    /// The snap length cut bytes off a segment that is in order: a hole in its turn for certain.
    fn take_cut(&mut self, now_us: u64, id: u32, end: Seq) {
        let slot = self.slots.get_mut(id);
        let missed = end.since(slot.online_next);
        if missed <= 0 {
            return;
        }
        slot.online_next = end;
        self.tally.one(Count::Holes);
        self.tally.add(Count::Missed, missed as u64);
        if self.config.on_gap == OnGap::Abort {
            self.abort(now_us, id, end);
        } else if !slot.is(is::SKIPPING) {
            self.lose_turn(now_us, id, true);
        }
    }

    /// The acknowledgement number that the bytes at `seq` came with.
    fn gate_at(&self, id: u32, seq: Seq) -> Option<Wide> {
        let mut probe = *self.slots.get(id);
        probe.online_next = seq;
        let ready = stash::ready(&probe, &self.chunks)?;
        Some(lowered(&probe, &self.chunks, probe.online_ack.near(ready.gate)))
    }

    /// The client's FIN or RST becomes the last piece once everything before it is there.
    pub(crate) fn take_end(&mut self, now_us: u64, id: u32, time_us: u64) {
        let slot = self.slots.get_mut(id);
        if !slot.is(is::END_KNOWN)
            || slot.is(is::END_HELD)
            || slot.online_next.before(slot.rare().online_end)
            || slot.phase() == Phase::Free
        {
            return;
        }
        let rest = stash::clear(slot, &mut self.chunks);
        self.tally.discard(Drop::NotJoined, rest);
        slot.disarm(Timer::Hole);
        if slot.phase() == Phase::Parted {
            self.finish(now_us, id, Drop::TargetClosed);
            return;
        }
        let gate = if slot.is(is::ANCHORED) {
            slot.rare().end_gate.max(slot.last_gate)
        } else {
            slot.rare().end_gate
        };
        let mut flags = if slot.is(is::END_RST) { piece::RST } else { piece::FIN };
        if slot.tries & try_bit::AFTER_GAP != 0 {
            flags |= piece::AFTER_GAP;
        }
        let gap_us = time_us.saturating_sub(slot.data_us).min(u64::from(u32::MAX)) as u32;
        let end = Piece { time_us, len: 0, gate, gap_us, flags };
        if held::begin(slot, &mut self.chunks, &end, 0).is_err() {
            let to = slot.rare().online_end;
            self.overflow(now_us, id, to);
            return;
        }
        slot.set(is::END_HELD);
        self.touch(id);
    }

    /// A limit on memory was reached: the session's connection is closed and its rest dropped; `to` is one past the byte
    /// that found no room.
    pub(crate) fn overflow(&mut self, now_us: u64, id: u32, to: Seq) {
        let slot = self.slots.get_mut(id);
        let rest = stash::clear(slot, &mut self.chunks);
        self.tally.discard(Drop::Memory, rest);
        slot.disarm(Timer::Hole);
        slot.online_next = slot.online_next.max(to);
        self.part(now_us, id, Drop::Memory, Count::FailedMemory);
    }
}

/// A higher byte that was captured earlier lowers the gate (a recovered retransmission has a newer number).
fn lowered(slot: &Slot, chunks: &Chunks, gate: Wide) -> Wide {
    stash::lowest_gate(slot, chunks).map_or(gate, |lowest| slot.online_ack.near(lowest).min(gate))
}

/// A keep-alive probe (RFC 1122, section 4.2.3.6): nothing, or one byte of garbage, in the place of a byte that the server
/// has acknowledged. Beyond a hole it stands where the client's stream ends, and tells only that the rest was missed.
fn is_keep_alive(slot: &Slot, tcp: &TcpFields, payload: &[u8]) -> bool {
    let ahead = tcp.seq.since(slot.online_next);
    let at_end = ahead == -1 && payload.len() <= 1 && tcp.flags & (flag::SYN | flag::FIN | flag::RST) == 0;
    at_end || (ahead > 0 && looks_like_keep_alive(tcp, payload))
}

/// One byte that nobody pushes: what a client writes byte by byte carries PSH.
fn looks_like_keep_alive(tcp: &TcpFields, payload: &[u8]) -> bool {
    payload.len() == 1 && tcp.flags & (flag::PSH | flag::FIN | flag::SYN) == 0
}

/// Whether a hole of this length lies inside a request: TCP cuts at whole segments, so what is missing from the middle of
/// a longer request is a multiple of the client's segment size, with or without time stamps.
fn splits_a_request(slot: &Slot, missed: u32) -> bool {
    let mss = u32::from(slot.client_mss);
    mss > 12 && (missed.is_multiple_of(mss) || missed.is_multiple_of(mss - 12))
}

/// The distance that this session's acknowledgements keep.
pub(crate) fn distance_us(slot: &Slot, rtt: Rtt) -> u64 {
    let us = match rtt {
        Rtt::Measured => slot.client_rtt_us,
        Rtt::Fixed(us) => us,
        Rtt::None => 0,
    };
    if us < NEXT_DOOR_US { 0 } else { u64::from(us) }
}
