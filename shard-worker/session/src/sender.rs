//! What leaves. A visit gives one session its portion: first what was lost, then new turns whose gate is open and new
//! bytes as far as both windows allow, then the client's FIN, then a probe, and a bare acknowledgement only when one is
//! owed and nothing else carried it.
//!
//! Every header is built anew; what the client's had in it counts like this (the injector writes what stands here):
//!
//! | field or option of the client | becomes |
//! |---|---|
//! | sequence and acknowledgement number, window, time stamps, window scale | rewritten: our own connection's |
//! | MSS | rewritten: the client's, or the path's where that is less |
//! | SACK permitted | always offered |
//! | PSH | rewritten: at the end of what a segment, a write or a turn held |
//! | URG and urgent pointer | stripped, the byte stays in line (RFC 6093); counted `urgent_segments` |
//! | ECE, CWR, NS, the ECN bits of IP | stripped: ECN is never negotiated (RFC 3168, 6.1.1) |
//! | Fast Open cookie (RFC 7413), its data | cookie stripped; data held until the connection stands and the client speaks again |
//! | SACK blocks, MD5, AO, MPTCP, user time-out, EDO, unknown or malformed options | stripped: they speak of the online connection |
//! | payload beyond 64 KiB (BIG TCP, RFC 2675) | cut to the MSS like any super-frame |

use flow::emit::MAX_HEADERS;
use flow::record::{flag, inject_bit, opt};
use flow::{Drop, Inject, Seq, TcpFields};

use crate::chunks::Chunks;
use crate::config::Config;
use crate::congestion;
use crate::diary::{Diary, Step};
use crate::held::{self, Piece, piece};
use crate::numbering::{WINDOW, WINDOW_SCALE, path_mss, ts_val};
use crate::slot::{After, NEVER, Phase, Recovery, Slot, Timer, is, try_bit};
use crate::table::{BURST, BURST_BYTES, Sink, Table};
use crate::tally::{Count, Tally};
use crate::target::{LAG_US, lags};
use crate::targets::{Attempt, Leave};
use crate::turns::{self, Gate, Row};
use crate::undo::SESSION_IMAGES;

/// Payload of one record at most: the longest super-frame that a device cuts. Each is a frame to the target's host, and an
/// acknowledgement that comes back through all processes.
pub(crate) const RECORD_BYTES: u32 = u16::MAX as u32 - MAX_HEADERS as u32;
/// Records and bytes for one session in one visit.
const VISIT_RECORDS: i32 = 4;
const VISIT_BYTES: i32 = 64 * 1024;
/// With less room than for one segment of any size a call is over.
const LEAST_BYTES: i32 = 16 * 1024;
/// Time after the last packet within which the rest of a write without PSH is waited for, µs.
const WRITE_US: u64 = 200_000;
/// Sessions looked at in one call, so that a call stays short when most have nothing to say.
const VISITS: usize = 256;
/// A visit emits at most this many records beyond its portion: a FIN sent again, a probe, an acknowledgement; or two
/// resets.
const EXTRA_RECORDS: i32 = 3;

/// What may still be emitted.
#[derive(Clone, Copy)]
struct Room {
    records: i32,
    bytes: i32,
}

impl Room {
    fn take(&mut self, bytes: u32) {
        self.records -= 1;
        self.bytes -= bytes as i32;
    }

    /// Whether a record of `bytes` finds no room any more.
    fn is_over(&self, bytes: u32) -> bool {
        self.records <= 0 || self.bytes < bytes as i32
    }
}

/// Emits for one session and keeps the books of it.
struct Emit<'a, S: Sink> {
    config: &'a Config,
    tally: &'a mut Tally,
    diary: &'a mut Diary,
    id: u32,
    out: &'a mut S,
    room: &'a mut Room,
    now_us: u64,
}

impl<S: Sink> Emit<'_, S> {
    fn note(&mut self, step: Step, number: u32) {
        self.diary.note(self.id, self.now_us, step, number);
    }

    /// One record of an established connection. It carries whatever acknowledgement there is.
    fn segment<'p>(
        &mut self,
        slot: &mut Slot,
        seq: Seq,
        flags: u16,
        bits: u16,
        len: u32,
        parts: impl Iterator<Item = &'p [u8]>,
    ) {
        let mut tcp = TcpFields { seq, flags, window: WINDOW, ..TcpFields::default() };
        if flags & flag::ACK != 0 {
            tcp.ack = slot.rcv_ack;
            slot.unset(is::OWE_ACK);
            if slot.rcv_ack == slot.rcv_nxt {
                slot.disarm(Timer::Ack);
            }
        }
        if slot.is(is::PEER_TS) {
            tcp.options = opt::TIMESTAMPS;
            tcp.ts_val = ts_val(self.now_us, slot.ts_offset);
            tcp.ts_ecr = slot.ts_recent;
        }
        self.record(slot, tcp, bits, len, parts);
    }

    fn record<'p>(
        &mut self,
        slot: &Slot,
        tcp: TcpFields,
        bits: u16,
        len: u32,
        parts: impl Iterator<Item = &'p [u8]>,
    ) {
        let head = Inject {
            tcp,
            payload_len: len,
            mss: slot.mss.max(1),
            target: slot.target,
            client: slot.replayed,
            bits,
            ..Inject::default()
        };
        self.out.emit(&head, parts);
        self.room.take(len);
        self.tally.one(Count::SentRecords);
        self.tally.add(Count::SentBytes, u64::from(len));
    }

    fn bare(&mut self, slot: &mut Slot, seq: Seq, flags: u16, bits: u16) {
        self.segment(slot, seq, flags, bits, 0, std::iter::empty());
    }

    fn syn(&mut self, slot: &mut Slot) {
        let target = &self.config.targets[slot.target as usize];
        let path = path_mss(target.mtu, target.endpoint.addr.is_v4());
        let again = slot.outstanding() > 0;
        let tcp = TcpFields {
            seq: slot.snd_una,
            flags: flag::SYN,
            window: WINDOW,
            options: opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS,
            mss: if slot.client_mss == 0 { path } else { slot.client_mss.min(path) },
            window_scale: WINDOW_SCALE,
            ts_val: ts_val(self.now_us, slot.ts_offset),
            ..TcpFields::default()
        };
        let claim = if self.config.claim { inject_bit::CLAIM } else { 0 };
        let repeat = if again { inject_bit::AGAIN } else { 0 };
        self.record(slot, tcp, claim | repeat, 0, std::iter::empty());
        self.note(Step::SynSent, 1);
        slot.unset(is::OWE_SYN);
        slot.snd_nxt = slot.snd_una + 1;
        if again {
            self.tally.one(Count::SynRepeated);
        } else {
            slot.rtt_start = self.now_us as u32;
            slot.progress_us = self.now_us;
        }
        slot.arm(Timer::Rto, self.now_us + congestion::syn_rto_us(slot));
    }

    /// A reset with the number that the target expects; when it may have less than was sent, both numbers.
    fn reset(&mut self, slot: &mut Slot) {
        let flags = if slot.is(is::SYNCHRONISED) { flag::RST | flag::ACK } else { flag::RST };
        self.bare(slot, slot.snd_nxt, flags, 0);
        if slot.snd_una != slot.snd_nxt {
            self.bare(slot, slot.snd_una, flags, 0);
        }
        self.note(Step::RstSent, 1);
        self.tally.one(Count::Resets);
    }
}

impl Table {
    pub(crate) fn send_ready(&mut self, now_us: u64, out: &mut impl Sink) -> bool {
        let mut room = Room { records: BURST as i32, bytes: BURST_BYTES as i32 };
        for _ in 0..VISITS {
            if room.records <= EXTRA_RECORDS
                || room.bytes < LEAST_BYTES
                || !self.slots.has_room(SESSION_IMAGES)
            {
                break;
            }
            let Some(id) = self.ready.pop() else { return false };
            self.at(id);
            if self.visit(now_us, id, out, &mut room) {
                self.ready.push(id);
            }
            self.rearm(id);
        }
        !self.ready.is_empty()
    }

    /// Lets one session emit; true when it has more.
    fn visit(&mut self, now_us: u64, id: u32, out: &mut impl Sink, room: &mut Room) -> bool {
        match self.slots.get(id).phase() {
            Phase::Free | Phase::Queued | Phase::Parted => false,
            Phase::Resetting => {
                let (slot, mut emit, _) = self.emitting(now_us, id, out, room);
                if slot.snd_nxt != slot.snd_una || slot.is(is::SYNCHRONISED) {
                    emit.reset(slot);
                }
                self.after_reset(now_us, id);
                false
            }
            Phase::Opening => {
                let (slot, mut emit, _) = self.emitting(now_us, id, out, room);
                if slot.is(is::OWE_RST) {
                    slot.unset(is::OWE_RST);
                    let tcp = TcpFields { seq: slot.wl2, flags: flag::RST, ..TcpFields::default() };
                    emit.record(slot, tcp, 0, 0, std::iter::empty());
                    emit.tally.one(Count::Resets);
                }
                let owes = slot.is(is::OWE_SYN);
                if owes {
                    self.open(now_us, id, out, room);
                }
                false
            }
            Phase::Lingering => {
                let (slot, mut emit, _) = self.emitting(now_us, id, out, room);
                if slot.is(is::OWE_ACK) {
                    emit.bare(slot, slot.snd_nxt, flag::ACK, 0);
                    emit.tally.one(Count::PureAcks);
                }
                false
            }
            Phase::Open => self.visit_open(now_us, id, out, room),
        }
    }

    /// A session, what emits for it, and the payload memory.
    fn emitting<'a, S: Sink>(
        &'a mut self,
        now_us: u64,
        id: u32,
        out: &'a mut S,
        room: &'a mut Room,
    ) -> (&'a mut Slot, Emit<'a, S>, &'a mut Chunks) {
        let Self { config, tally, diary, slots, chunks, .. } = self;
        (slots.get_mut(id), Emit { config, tally, diary, id, out, room, now_us }, chunks)
    }

    /// A SYN leaves, if the target may have it now.
    fn open(&mut self, now_us: u64, id: u32, out: &mut impl Sink, room: &mut Room) {
        let slot = self.slots.get_mut(id);
        let attempt = match slot.tries & try_bit::PACED != 0 {
            true => Attempt::Paced,
            false if slot.outstanding() > 0 => Attempt::Repeat,
            false => Attempt::First,
        };
        let booked = slot.tries & try_bit::BOOKED != 0;
        let leave = self.targets.ask(now_us, slot.target, id, attempt);
        if leave == Leave::Now && !booked && !self.book(now_us, id, out) {
            return;
        }
        let slot = self.slots.get_mut(id);
        match leave {
            Leave::Now => {
                slot.tries &= !(try_bit::PACED | try_bit::WAITING | try_bit::BOOKED);
                let (slot, mut emit, _) = self.emitting(now_us, id, out, room);
                emit.syn(slot);
            }
            Leave::At(at_us) => {
                slot.tries |= try_bit::PACED | try_bit::WAITING;
                slot.unset(is::OWE_SYN);
                slot.arm(Timer::Rto, at_us);
                self.tally.one(Count::ConnectsPaused);
            }
        }
    }

    /// Whether a SYN may leave now as to the rate of connections. If not, it is put off to the moment that is booked for it, or
    /// the flow is left out when that is too far away; a repeated one asks again.
    fn book(&mut self, now_us: u64, id: u32, out: &mut impl Sink) -> bool {
        /// Until a repeated SYN asks again, µs.
        const AGAIN_US: u64 = 1_000_000;
        let at_us = out.book(now_us);
        if at_us.is_some_and(|at_us| at_us <= now_us) {
            return true;
        }
        let slot = self.slots.get_mut(id);
        let (at_us, booked) = match at_us {
            Some(at_us) => (at_us, try_bit::BOOKED),
            None if slot.outstanding() > 0 => (now_us + AGAIN_US, 0),
            None => {
                self.fail(now_us, id, Drop::Shed, Count::FailedShed);
                return false;
            }
        };
        // Whoever waited for its target has waited.
        slot.tries = slot.tries & !try_bit::PACED | try_bit::WAITING | booked;
        slot.unset(is::OWE_SYN);
        slot.arm(Timer::Rto, at_us);
        self.tally.one(Count::ConnectsPaused);
        false
    }

    fn visit_open(&mut self, now_us: u64, id: u32, out: &mut impl Sink, room: &mut Room) -> bool {
        if !self.may_speak(now_us, id) {
            return false;
        }
        self.go_on_elsewhere(now_us, id);
        if self.slots.get(id).phase() != Phase::Open {
            return self.slots.get(id).phase() != Phase::Free;
        }
        // A portion, so that the others have their turn; what is left over stays in the call's room.
        let mut portion = Room {
            records: (room.records - EXTRA_RECORDS).min(VISIT_RECORDS),
            bytes: room.bytes.min(VISIT_BYTES),
        };
        let before = portion;
        let (slot, mut emit, chunks) = self.emitting(now_us, id, out, &mut portion);
        let mut more = emit.lost(slot, chunks);
        if !more {
            more = emit.fresh(slot, chunks);
        }
        if slot.is(is::OWE_PROBE) {
            // Nothing new, one number back: draws an acknowledgement with the present window, or the RST that was lost.
            slot.unset(is::OWE_PROBE);
            emit.bare(slot, slot.snd_una - 1, flag::ACK, inject_bit::AGAIN);
            emit.tally.one(Count::Probes);
            emit.note(Step::Probed, 1);
        }
        if slot.is(is::OWE_ACK) {
            emit.bare(slot, slot.snd_nxt, flag::ACK, 0);
            emit.tally.one(Count::PureAcks);
        }
        held::reset_when_empty(slot, chunks);
        room.records -= before.records - portion.records;
        room.bytes -= before.bytes - portion.bytes;
        let slot = self.slots.get_mut(id);
        if slot.held_len == 0 && slot.sent_bytes() == 0 && slot.is(is::END_HELD) {
            self.close_if_done(now_us, id);
            more |= self.slots.get(id).phase() == Phase::Resetting;
        }
        more
    }

    /// Everything is delivered and the client's end was reached: is the session over?
    fn close_if_done(&mut self, now_us: u64, id: u32) {
        let slot = self.slots.get_mut(id);
        let resets = slot.is(is::END_RST) && slot.held.is_empty();
        if resets && (!slot.is(is::FIN_SENT) || slot.is(is::FIN_ACKED)) {
            slot.rare_mut().failure = 1 + Count::SessionsClientReset as u8;
            slot.set_after(After::Free);
            slot.enter(Phase::Resetting);
        } else if slot.is(is::FIN_ACKED) && slot.is(is::PEER_FIN) {
            self.linger(now_us, id);
        }
    }

    /// Whether our third packet has left or may leave now (the client's distance).
    fn may_speak(&mut self, now_us: u64, id: u32) -> bool {
        let slot = self.slots.get_mut(id);
        if !slot.is(is::HELD_BACK) {
            return true;
        }
        let due = slot.deadline(Timer::Ack);
        if due <= now_us || lags(slot, &self.chunks, now_us) {
            slot.unset(is::HELD_BACK);
            slot.disarm(Timer::Ack);
            return true;
        }
        if let Some(next) = held::next_piece(slot, &self.chunks) {
            slot.arm(Timer::Ack, due.min(next.time_us + LAG_US + 1));
        }
        false
    }
}

impl<S: Sink> Emit<'_, S> {
    /// Sends again what is lost; true when there is more of it.
    fn lost(&mut self, slot: &mut Slot, chunks: &Chunks) -> bool {
        let segment = u32::from(slot.mss);
        if slot.is(is::OWE_TAIL) {
            if self.room.is_over(segment) {
                return true;
            }
            slot.unset(is::OWE_TAIL);
            let n = u32::from(slot.mss).min(slot.sent_bytes());
            let from = slot.snd_nxt - u32::from(slot.fin_outstanding()) - n;
            self.again(slot, chunks, from, n.max(1));
            self.tally.one(Count::TailProbes);
        }
        if slot.is(is::OWE_HEAD) {
            if self.room.is_over(segment) {
                return true;
            }
            slot.unset(is::OWE_HEAD);
            if let Some((from, len)) = crate::sack::gap(slot, slot.snd_una, slot.snd_nxt) {
                let n = len.min(u32::from(slot.mss));
                self.again(slot, chunks, from, n);
                slot.rtx_nxt = slot.rtx_nxt.max(from + n);
            }
        }
        while let Some((from, len)) = congestion::lost(slot) {
            if self.room.is_over(segment) {
                return true;
            }
            let mss = segment;
            let allowed = slot.cwnd.saturating_sub(congestion::pipe(slot));
            if allowed < mss.min(len) {
                break;
            }
            let mut n = len.min(allowed).min(RECORD_BYTES).min(self.room.bytes as u32);
            if n < len && n > mss {
                n -= n % mss;
            }
            if slot.recovery() == Recovery::Loss && from == slot.snd_una {
                self.tally.one(Count::TimeoutRetransmitted);
            }
            self.again(slot, chunks, from, n);
            slot.rtx_nxt = from + n;
        }
        false
    }

    /// Sends `n` numbers from `from` on again: bytes, or the FIN after them.
    fn again(&mut self, slot: &mut Slot, chunks: &Chunks, from: Seq, n: u32) {
        slot.unset(is::TIMING);
        let offset = from.since(slot.snd_una).max(0) as u32;
        let bytes = n.min(slot.sent_bytes().saturating_sub(offset));
        if bytes > 0 {
            let parts = held::from_head(slot, chunks, offset, bytes);
            self.segment(slot, from, flag::ACK | flag::PSH, inject_bit::AGAIN, bytes, parts);
            self.tally.one(Count::Retransmitted);
            self.note(Step::SentAgain, 1);
        }
        if bytes < n && slot.fin_outstanding() {
            self.bare(slot, slot.snd_nxt - 1, flag::FIN | flag::ACK, inject_bit::AGAIN);
        }
        congestion::sent(slot, self.now_us);
        if slot.deadline(Timer::Rto) == NEVER {
            congestion::arm(slot, self.now_us);
        }
    }

    /// Sends what was never sent; true when only the portion stopped it.
    fn fresh(&mut self, slot: &mut Slot, chunks: &Chunks) -> bool {
        loop {
            let mut next = None;
            if slot.cursor_left == 0 {
                let Some(found) = held::next_piece(slot, chunks) else { return false };
                if !self.opened(slot, &found) {
                    return false;
                }
                if found.flags & piece::END != 0 {
                    return self.end(slot, chunks, &found);
                }
                if found.len == 0 {
                    // Its bytes were given up. Its gate counted; for an answer to it the next turn need not wait.
                    held::enter_piece(slot, chunks);
                    slot.unset(is::RELEASED);
                    slot.set(is::REANCHOR);
                    continue;
                }
                next = Some(found);
            }
            let mut left = next.map_or(slot.cursor_left, |next| next.len);
            let grows = self.grows(slot, chunks);
            if grows {
                left -= left % u32::from(slot.mss.max(1));
                if left == 0 {
                    slot.arm(Timer::Gate, slot.seen_us + WRITE_US);
                    return false;
                }
            }
            if self.room.is_over(left.min(u32::from(slot.mss))) {
                return true;
            }
            let n = self.allowed(slot, left);
            if n == 0 {
                return false;
            }
            if let Some(next) = next {
                self.begin(slot, chunks, &next);
            }
            self.send(slot, chunks, n, grows);
        }
    }

    /// Whether the gate of the next piece is open; if not, when to look again.
    fn opened(&mut self, slot: &mut Slot, next: &Piece) -> bool {
        if slot.is(is::RELEASED) {
            return true;
        }
        let mut gate = turns::gate(slot, next, self.now_us, self.config.wait);
        if slot.withholds_ack() && !matches!(gate, Gate::Open(Row::Free | Row::Exact | Row::Deviation)) {
            // The answer is not whole, and the target may hold the rest back until it knows that we have the start
            // (Nagle): it is told at once, and silence counts from now on.
            slot.set(is::OWE_ACK);
            slot.disarm(Timer::Ack);
            slot.answer_us = self.now_us;
            gate = turns::gate(slot, next, self.now_us, self.config.wait);
        }
        match gate {
            Gate::Open(row) => {
                if next.flags & piece::NEW_TURN != 0 && next.len > 0 && slot.rare().resent_left == 0 {
                    self.tally.turn_wait.record(turns::wait_us(slot, next, row, self.config.wait));
                }
                turns::release(slot, self.tally, next, row);
                match row {
                    Row::Guessed => self.note(Step::Guessed, 1),
                    Row::Unanswered => self.note(Step::Unanswered, 1),
                    Row::Free | Row::Exact | Row::Deviation => {}
                }
                true
            }
            Gate::Closed(until) => {
                slot.arm(Timer::Gate, until);
                false
            }
        }
    }

    /// How much of `left` bytes may leave now: both windows, and no silly small segments (RFC 9293, 3.8.6.2.1).
    fn allowed(&mut self, slot: &mut Slot, left: u32) -> u32 {
        let mss = u32::from(slot.mss);
        let window = slot.snd_wnd.saturating_sub(slot.outstanding());
        let congestion = slot.cwnd.saturating_sub(congestion::pipe(slot));
        let allowed = window.min(congestion);
        let mut n = left.min(allowed).min(RECORD_BYTES).min(self.room.bytes as u32);
        if n < left && n >= mss {
            n -= n % mss;
        }
        let small = n < left && n < mss;
        let idle = slot.outstanding() == 0;
        let override_it = n >= slot.max_wnd / 2 || slot.rare().probes > 0;
        if small && !(idle && n > 0 && override_it) {
            n = 0;
        }
        if n == 0 && idle && slot.deadline(Timer::Persist) == NEVER {
            slot.arm(Timer::Persist, self.now_us + congestion::rto_us(slot));
        }
        n
    }

    /// The first byte of a piece leaves.
    fn begin(&mut self, slot: &mut Slot, chunks: &Chunks, next: &Piece) {
        held::enter_piece(slot, chunks);
        slot.unset(is::RELEASED);
        if slot.rare().resent_left == 0 {
            self.tally.lag.record(self.now_us.saturating_sub(next.time_us));
        }
        if next.flags & piece::NEW_TURN != 0 {
            if slot.rare().resent_left == 0 {
                self.tally.one(Count::TurnsSent);
            }
            slot.turns_waiting = slot.turns_waiting.saturating_add(1);
            slot.answer_parts = 0;
        }
    }

    /// Whether the client is still writing what is at the cursor, and not for too long.
    fn grows(&self, slot: &Slot, chunks: &Chunks) -> bool {
        slot.tries & try_bit::UNPUSHED != 0
            && self.now_us < slot.seen_us + WRITE_US
            && held::sends_tail(slot, chunks)
    }

    fn send(&mut self, slot: &mut Slot, chunks: &Chunks, n: u32, grows: bool) {
        let last = n == slot.cursor_left && !grows;
        let flags = flag::ACK | if last { flag::PSH } else { 0 };
        let parts = held::at_cursor(slot, chunks, n);
        let seq = slot.snd_nxt;
        self.segment(slot, seq, flags, 0, n, parts);
        self.note(Step::Sent, n);
        held::advance(slot, chunks, n);
        slot.snd_nxt += n;
        if let Some(rare) = slot.had_rare() {
            rare.resent_left = rare.resent_left.saturating_sub(n);
        }
        if last {
            slot.turn_sent_us = self.now_us;
        }
        slot.disarm(Timer::Persist);
        slot.disarm(Timer::Alive);
        if !slot.is(is::TIMING) && slot.recovery() == Recovery::None {
            slot.set(is::TIMING);
            slot.rtt_seq = slot.snd_nxt;
            slot.rtt_start = self.now_us as u32;
        }
        congestion::sent(slot, self.now_us);
    }

    /// The client's FIN, after everything; its RST only once everything is acknowledged.
    fn end(&mut self, slot: &mut Slot, chunks: &Chunks, next: &Piece) -> bool {
        if next.flags & piece::RST != 0 {
            if slot.outstanding() == 0 {
                held::enter_piece(slot, chunks);
            }
            return false;
        }
        if self.room.is_over(0) {
            return true;
        }
        held::enter_piece(slot, chunks);
        slot.unset(is::RELEASED);
        self.bare(slot, slot.snd_nxt, flag::FIN | flag::ACK, 0);
        slot.snd_nxt += 1;
        self.note(Step::FinSent, 1);
        slot.set(is::FIN_SENT);
        congestion::sent(slot, self.now_us);
        false
    }
}
