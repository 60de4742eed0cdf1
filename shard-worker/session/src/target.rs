//! The returned side: headers of the target's segments, in any order, doubled or missing. RFC 9293, section 3.10.7, with
//! the checks of RFC 5961, for a client that has no use for the payload: it acknowledges past whatever it did not see.

use flow::record::{flag, kind, opt};
use flow::{Drop, Returned, Seq};

use crate::chunks::Chunks;
use crate::config::Rtt;
use crate::congestion;
use crate::diary::Step;
use crate::held::{self, Piece};
use crate::numbering::{
    LEAST_PEER_MSS, TIMESTAMP_BYTES, WINDOW, WINDOW_SCALE, default_mss, path_mss, plateau_below,
};
use crate::online::distance_us;
use crate::sack;
use crate::sender::RECORD_BYTES;
use crate::slot::{NEVER, Phase, Recovery, Slot, Timer, is, try_bit};
use crate::table::Table;
use crate::tally::{Count, Health};
use crate::turns;

/// Held data older than this means that the session lags, and the client's distance is no longer added.
pub(crate) const LAG_US: u64 = 5_000;
/// Unacceptable acknowledgements in SYN-SENT that are answered by a reset and a SYN at once.
const STALE_ANSWERS: u8 = 3;
/// First keep-alive probe while an answer is due; then twice as long each time.
const ALIVE_US: u64 = 1_000_000;
const ALIVE_SHIFT: u8 = 6;
/// An acknowledgement that data or a FIN of the client's is likely to follow at any moment (after the handshake, after a
/// first answer, after the target's FIN) waits so long to ride on it: three packets of six for each short connection.
pub(crate) const RIDE_US: u64 = 1_000;
/// In ping-pong, the acknowledgement of an answer waits so long for the next request, as the real client's kernel lets it
/// wait for 40 ms: one injected packet of two for each turn.
///
/// It leaves at a multiple of this time, the first that is a whole one away: one wake-up serves many sessions.
const PINGPONG_US: u64 = 20_000;
/// Whole answers in a row, plus one, that make a ping-pong. One that is not whole ends it, so a target that holds back
/// the rest of an answer until the first part is acknowledged (Nagle) costs one pause, not one for each turn.
const PINGPONG: u8 = 4;
/// Largest shift of a window (RFC 7323, section 2.3).
const WINDOW_SCALE_MAX: u8 = 14;

impl Table {
    pub(crate) fn take_returned(&mut self, now_us: u64, record: &Returned) {
        self.tally.one(Count::ReturnedHeaders);
        let Some(id) = self.session_of(record) else {
            self.tally.one(Count::ReturnedUnknown);
            return;
        };
        match record.kind {
            kind::TCP => {}
            kind::ICMP => return self.icmp(now_us, id, record),
            _ => return self.tally.one(Count::ReturnedRefused),
        }
        match self.slots.get(id).phase() {
            Phase::Opening => self.in_syn_sent(now_us, id, record),
            Phase::Open => self.in_open(now_us, id, record),
            Phase::Lingering => self.in_lingering(now_us, id, record),
            Phase::Free | Phase::Queued | Phase::Resetting | Phase::Parted => {
                self.tally.one(Count::ReturnedDuplicate);
            }
        }
    }

    fn in_syn_sent(&mut self, now_us: u64, id: u32, record: &Returned) {
        let tcp = &record.tcp;
        let slot = self.slots.get_mut(id);
        let acceptable = tcp.has(flag::ACK) && slot.outstanding() == 1 && tcp.ack == slot.snd_nxt;
        if tcp.has(flag::RST) {
            if acceptable {
                self.refused(now_us, id);
            } else {
                self.tally.one(Count::ReturnedRefused);
            }
            return;
        }
        if tcp.has(flag::ACK) && !acceptable {
            // The target remembers an older connection (its TIME_WAIT): a reset with its number clears that, and only
            // then a SYN is answered.
            self.tally.one(Count::ReturnedRefused);
            if slot.outstanding() == 1 && slot.rare().probes < STALE_ANSWERS {
                slot.rare_mut().probes += 1;
                slot.wl2 = tcp.ack;
                slot.set(is::OWE_RST | is::OWE_SYN);
                self.touch(id);
            }
            return;
        }
        if !tcp.has(flag::SYN | flag::ACK) {
            self.tally.one(Count::ReturnedRefused);
            return;
        }
        self.establish(now_us, id, record);
        self.touch(id);
    }

    fn establish(&mut self, now_us: u64, id: u32, record: &Returned) {
        let tcp = &record.tcp;
        let rtt = self.config.rtt;
        let index = self.slots.get(id).target;
        let target = &self.config.targets[index as usize];
        let (mtu, v4) = (target.mtu, target.endpoint.addr.is_v4());
        let mtu = self.targets.path_mtu(now_us, index, mtu);
        self.targets.succeeded(now_us, index, id);
        self.note_health(index);
        self.diary.note(id, now_us, Step::SynAcked, 1);
        let slot = self.slots.get_mut(id);
        slot.enter(Phase::Open);
        slot.set(is::SYNCHRONISED);
        slot.snd_una = tcp.ack;
        slot.rtx_nxt = tcp.ack;
        (slot.rcv_nxt, slot.rcv_high) = (tcp.seq + 1, 1);
        slot.rcv_ack = slot.rcv_nxt;
        slot.ack_upto = slot.rcv_nxt;
        slot.anchor_target = slot.answered();
        slot.wscale = match tcp.has_option(opt::WINDOW_SCALE) {
            true => tcp.window_scale.min(WINDOW_SCALE_MAX),
            false => 0,
        };
        slot.put(is::PEER_TS, tcp.has_option(opt::TIMESTAMPS));
        slot.put(is::PEER_SACK, tcp.has_option(opt::SACK_PERMITTED));
        slot.ts_recent = if slot.is(is::PEER_TS) { tcp.ts_val } else { 0 };
        slot.ts_minutes = minutes(now_us);
        let peer = if tcp.has_option(opt::MSS) { tcp.mss } else { default_mss(v4) };
        let stamps = if slot.is(is::PEER_TS) { TIMESTAMP_BYTES } else { 0 };
        slot.mss = peer.min(path_mss(mtu, v4)).clamp(LEAST_PEER_MSS, RECORD_BYTES as u16) - stamps;
        slot.snd_wnd = u32::from(tcp.window);
        slot.max_wnd = slot.snd_wnd;
        (slot.wl1, slot.wl2) = (tcp.seq, tcp.ack);
        congestion::start(slot);
        if slot.rare().backoff == 0 {
            congestion::sample_rtt(slot, (now_us as u32).wrapping_sub(slot.rtt_start));
        }
        if let Some(rare) = slot.had_rare() {
            (rare.backoff, rare.probes) = (0, 0);
        }
        slot.answer_us = now_us;
        slot.progress_us = now_us;
        slot.turn_sent_us = now_us;
        slot.disarm(Timer::Rto);
        slot.arm(Timer::Ack, now_us + RIDE_US);
        // The third packet leaves when the client's own did: never, when that never comes, as in a flood of SYNs.
        if rtt == Rtt::Measured && (slot.is_half_open() || !slot.is(is::RTT_SETTLED)) {
            slot.set(is::HELD_BACK);
            slot.disarm(Timer::Ack);
        } else {
            let hold_us = distance_us(slot, rtt);
            if hold_us > 0 {
                slot.set(is::HELD_BACK);
                slot.arm(Timer::Ack, now_us + hold_us);
            }
        }
    }

    fn in_open(&mut self, now_us: u64, id: u32, record: &Returned) {
        let tcp = &record.tcp;
        let slot = self.slots.get_mut(id);
        let ahead = tcp.seq.since(slot.rcv_nxt);
        if tcp.has(flag::RST) {
            // RFC 5961, section 3.2: only the exact number resets; another one in the window draws an acknowledgement, to
            // which the target answers with the exact one.
            if ahead == 0 || tcp.seq == slot.rcv_ack {
                self.diary.note(id, now_us, Step::TargetRefused, 1);
                self.target_reset(now_us, id);
            } else if ahead > 0 && ahead <= OUR_WINDOW {
                self.challenge(now_us, id, Count::ReturnedRefused);
            } else {
                self.tally.one(Count::ReturnedRefused);
            }
            return;
        }
        if is_outdated(slot, record, now_us) {
            return self.challenge(now_us, id, Count::ReturnedOutdated);
        }
        if tcp.has(flag::SYN | flag::ACK) {
            if slot.is(is::HELD_BACK) {
                // Its SYN-ACK once more: our third packet has not left yet.
                return self.tally.one(Count::ReturnedDuplicate);
            }
            // Our third packet was lost.
            return self.challenge(now_us, id, Count::ReturnedDuplicate);
        }
        // Beyond the window, a SYN (RFC 5961, section 4.2), or an acknowledgement of what was never sent or long ago
        // (section 5.2): nothing in such a segment is believed.
        let in_window =
            (-OUR_WINDOW..=OUR_WINDOW).contains(&ahead) && record.payload_len <= OUR_WINDOW as u32;
        let oldest = slot.snd_una - slot.max_wnd.max(LEAST_ACK_WINDOW);
        let acknowledges = tcp.has(flag::ACK) && !tcp.ack.after(slot.snd_nxt) && !tcp.ack.before(oldest);
        if !in_window || !acknowledges || tcp.has(flag::SYN) {
            return self.challenge(now_us, id, Count::ReturnedRefused);
        }
        if slot.is(is::PEER_TS) && tcp.has_option(opt::TIMESTAMPS) && ahead <= 0 {
            (slot.ts_recent, slot.ts_minutes) = (tcp.ts_val, minutes(now_us));
        }
        let news = self.take_ack(now_us, id, record) | self.take_answer(now_us, id, record);
        if news {
            self.slots.get_mut(id).seen_us = now_us;
        } else {
            self.tally.one(Count::ReturnedDuplicate);
        }
        self.touch(id);
    }

    /// A segment that is not believed draws an acknowledgement, from which a target that is in step learns what we expect
    /// (RFC 5961). Not more than one in half a second for each session, as in Linux, so that two ends that are out of step
    /// do not answer each other for ever, and [`CHALLENGES_PER_S`] for all of them together (section 7).
    fn challenge(&mut self, now_us: u64, id: u32, why: Count) {
        self.tally.one(why);
        let (tenths, second) = ((now_us / 100_000) as u16, now_us / 1_000_000);
        if self.challenges.0 != second {
            self.challenges = (second, 0);
        }
        let slot = self.slots.get_mut(id);
        let recent =
            slot.rare().challenged != 0 && tenths.wrapping_sub(slot.rare().challenged) < CHALLENGE_TENTHS;
        if recent || self.challenges.1 >= CHALLENGES_PER_S {
            self.tally.one(Count::ChallengesWithheld);
            return;
        }
        slot.rare_mut().challenged = tenths.max(1);
        self.challenges.1 += 1;
        slot.set(is::OWE_ACK);
        self.tally.one(Count::Challenges);
        self.touch(id);
    }

    /// The acknowledgement in a segment; whether it said anything new.
    fn take_ack(&mut self, now_us: u64, id: u32, record: &Returned) -> bool {
        let tcp = &record.tcp;
        let slot = self.slots.get_mut(id);
        if tcp.ack.before(slot.snd_una) {
            return false;
        }
        let blocks = record.sack.get(..record.sack_count as usize).unwrap_or(&record.sack);
        let sacked = slot.is(is::PEER_SACK) && sack::take(slot, tcp.ack, blocks);
        let window = u32::from(tcp.window) << slot.wscale;
        let mut news = sacked;
        if tcp.ack.after(slot.snd_una) {
            if record.payload_len == 0 {
                let acked = (tcp.ack.since(slot.snd_una) as u32).min(slot.sent_bytes());
                self.diary.note(id, now_us, Step::Acknowledged, acked);
            }
            self.advance(now_us, id, tcp.ack);
            news = true;
        } else if slot.outstanding() > 0
            && record.payload_len == 0
            && !tcp.has(flag::FIN)
            && window == slot.snd_wnd
            && (sacked || !slot.is(is::PEER_SACK))
        {
            congestion::duplicate(slot);
        }
        let slot = self.slots.get_mut(id);
        if sacked {
            congestion::look_for_loss(slot);
        }
        if slot.wl1.before(tcp.seq) || (slot.wl1 == tcp.seq && slot.wl2.at_or_before(tcp.ack)) {
            news |= window != slot.snd_wnd;
            slot.snd_wnd = window;
            slot.max_wnd = slot.max_wnd.max(window);
            (slot.wl1, slot.wl2) = (tcp.seq, tcp.ack);
            if window > 0 {
                slot.disarm(Timer::Persist);
            }
        }
        news
    }

    /// Something new is acknowledged.
    fn advance(&mut self, now_us: u64, id: u32, ack: Seq) {
        let slot = self.slots.get_mut(id);
        let acked = ack.since(slot.snd_una) as u32;
        let bytes = acked.min(slot.sent_bytes());
        if acked > bytes {
            slot.set(is::FIN_ACKED);
        }
        congestion::acknowledged(slot, ack, now_us);
        slot.snd_una = ack;
        slot.rtx_nxt = slot.rtx_nxt.max(ack);
        sack::forget_below(slot, ack);
        if bytes > 0 {
            held::acknowledge(slot, &mut self.chunks, bytes);
            self.tally.deliver(bytes);
            slot.tries |= try_bit::FRUITFUL;
        }
        let held_len = slot.held_len;
        if let Some(rare) = slot.had_rare() {
            rare.resent_left = rare.resent_left.min(held_len);
            (rare.backoff, rare.probes) = (0, 0);
            rare.fruitless = if bytes > 0 { 0 } else { rare.fruitless };
        }
        slot.progress_us = now_us;
        slot.unset(is::OWE_TAIL);
        if slot.outstanding() == 0 {
            slot.disarm(Timer::Rto);
            slot.unset(is::TAIL_TIMER | is::OWE_HEAD);
            if awaits_answer(slot) {
                // A lost RST would leave us waiting for ever: ask, as long as an answer is due.
                slot.arm(Timer::Alive, now_us + ALIVE_US);
            }
        } else {
            congestion::arm(slot, now_us);
        }
    }

    /// Payload and FIN of a segment; whether they said anything new.
    fn take_answer(&mut self, now_us: u64, id: u32, record: &Returned) -> bool {
        let tcp = &record.tcp;
        let rtt = self.config.rtt;
        let slot = self.slots.get_mut(id);
        let end = tcp.seq + record.payload_len;
        if record.payload_len == 0
            && !tcp.has(flag::FIN)
            && !turns::is_answered_by(slot, &self.chunks, tcp.seq)
        {
            if tcp.seq.before(slot.rcv_nxt) && !slot.is(is::PEER_FIN) {
                // A keep-alive probe of the target's: one number back, nothing in it.
                slot.put(is::OWE_ACK, slot.is(is::OWE_ACK) || tcp.seq + 1 == slot.rcv_nxt);
            }
            return false;
        }
        self.tally.add(Count::ReturnedBytes, u64::from(record.payload_len));
        let fresh = end.since(slot.rcv_nxt);
        let closes = tcp.has(flag::FIN) && !slot.is(is::PEER_FIN);
        if fresh < 0 || (fresh == 0 && !closes) {
            // Seen before: our acknowledgement was lost.
            slot.set(is::OWE_ACK);
            return false;
        }
        if slot.is(is::PEER_FIN) {
            // Beyond its own FIN nothing can follow.
            slot.set(is::OWE_ACK);
            return false;
        }
        self.tally.add(Count::ReturnHoles, tcp.seq.since(slot.rcv_nxt).max(0) as u64);
        slot.receive(end);
        let late = late_piece(slot, &self.chunks, now_us);
        let is_late = late.is_some();
        if fresh > 0 {
            self.diary.note(id, now_us, Step::Answered, fresh as u32);
            // A bare number is believed only of a whole answer.
            slot.put(is::ANSWER_PSH, tcp.has(flag::PSH) || record.payload_len == 0);
            slot.answer_parts = slot.answer_parts.saturating_add(1);
            if slot.answer_parts > 1 {
                slot.pingpong = 0;
            }
            if slot.turns_waiting > 0 {
                let turns = u64::from(slot.turns_waiting);
                let waited_us = now_us.saturating_sub(slot.turn_sent_us);
                self.tally.add(Count::TurnsAnswered, turns);
                // A FIN that is late makes nobody later.
                let is_awaited = late.is_some_and(|held| held.len > 0) && waited_us < LAG_US;
                self.tally.add(Count::TurnsAwaited, if is_awaited { turns } else { 0 });
                self.tally.first_byte.record(waited_us.saturating_sub(record.age_ns / 1_000));
                self.tally.answered_us = now_us;
                slot.turns_waiting = 0;
            }
            slot.answer_us = now_us;
            if let Some(rare) = slot.had_rare() {
                rare.probes = 0;
            }
            slot.arm(Timer::Alive, if awaits_answer(slot) { now_us + ALIVE_US } else { NEVER });
        }
        if tcp.has(flag::FIN) {
            slot.set(is::PEER_FIN);
            self.diary.note(id, now_us, Step::TargetFin, 1);
            slot.disarm(Timer::Alive);
            slot.turns_waiting = 0;
            slot.receive(slot.rcv_nxt + 1);
            slot.rcv_ack = slot.rcv_nxt;
        }
        let distance_us = if is_late { 0 } else { distance_us(slot, rtt) };
        if distance_us > 0 && !slot.is(is::PEER_FIN) {
            if slot.deadline(Timer::Ack) == NEVER {
                slot.ack_upto = slot.rcv_nxt;
                slot.arm(Timer::Ack, now_us + distance_us);
            }
            return true;
        }
        slot.rcv_ack = slot.rcv_nxt;
        slot.ack_upto = slot.rcv_nxt;
        if slot.is(is::HELD_BACK) {
            return true;
        }
        // One small segment with PSH, in a session whose answers come so: nothing is held back until we acknowledge it.
        let whole = slot.answer_parts == 1 && tcp.has(flag::PSH) && fresh <= i32::from(slot.mss);
        let pause_us = match slot.pingpong {
            _ if slot.is(is::PEER_FIN) => u64::from(!slot.is(is::FIN_SENT)) * RIDE_US,
            0 => 0,
            _ if !whole => 0,
            1..PINGPONG => RIDE_US,
            _ => (now_us + PINGPONG_US).next_multiple_of(PINGPONG_US) - now_us,
        };
        slot.put(is::OWE_ACK, pause_us == 0);
        slot.arm(Timer::Ack, if pause_us == 0 { NEVER } else { now_us + pause_us });
        true
    }

    fn in_lingering(&mut self, now_us: u64, id: u32, record: &Returned) {
        self.tally.one(Count::ReturnedDuplicate);
        let slot = self.slots.get_mut(id);
        if record.tcp.has(flag::RST) {
            if record.tcp.seq == slot.rcv_nxt {
                self.finish(now_us, id, Drop::TargetClosed);
            }
        } else if record.tcp.has(flag::FIN) || record.payload_len > 0 {
            slot.set(is::OWE_ACK);
            self.touch(id);
        }
    }

    /// An ICMP error to a replayed client. Only one that quotes something outstanding is believed (RFC 5927, section 4):
    ///
    /// | error | before the SYN-ACK | later |
    /// |---|---|---|
    /// | destination unreachable, any code | the connection counts as refused | passed over: retransmission decides (section 5.2) |
    /// | fragmentation needed, packet too big | passed over: a SYN fits everywhere | segments become smaller |
    /// | any other | passed over | passed over |
    fn icmp(&mut self, now_us: u64, id: u32, record: &Returned) {
        self.tally.one(Count::Icmp);
        let target = &self.config.targets[self.slots.get(id).target as usize];
        let v4 = target.endpoint.addr.is_v4();
        let slot = self.slots.get_mut(id);
        let offset = record.tcp.seq.since(slot.snd_una);
        let about_ours = offset >= 0 && (offset as u32) < slot.outstanding();
        if !about_ours {
            self.tally.one(Count::IcmpRefused);
            return;
        }
        let too_big = record.mtu > 0 || (v4 && (record.icmp_type, record.icmp_code) == (3, 4));
        let unreachable = !too_big && record.icmp_type == if v4 { 3 } else { 1 };
        match slot.phase() {
            Phase::Opening if unreachable => self.refused(now_us, id),
            Phase::Open if too_big => self.path_shrank(now_us, id, record.mtu, v4),
            _ => {}
        }
    }

    /// A router has dropped a packet for its size. What is outstanding is sent again in smaller segments, without a penalty:
    /// nothing was congested (RFC 1191, section 6.5).
    fn path_shrank(&mut self, now_us: u64, id: u32, mtu: u32, v4: bool) {
        let slot = self.slots.get_mut(id);
        let stamps = if slot.is(is::PEER_TS) { TIMESTAMP_BYTES } else { 0 };
        let mtu = match mtu {
            0 => plateau_below(slot.mss + stamps + 40),
            mtu => mtu.min(u32::from(u16::MAX)) as u16,
        };
        let mss = path_mss(mtu, v4) - stamps;
        if mss < slot.mss {
            congestion::cut_smaller(slot, mss);
            slot.set_recovery(Recovery::Loss);
            (slot.rtx_nxt, slot.recover) = (slot.snd_una, slot.snd_nxt);
            let target = slot.target;
            self.targets.note_path(now_us, target, mtu);
            self.tally.one(Count::PathShrank);
            self.touch(id);
        }
    }

    /// The target, or a router on the way to it, does not want the connection.
    fn refused(&mut self, now_us: u64, id: u32) {
        self.attempt_failed(now_us, id);
        self.diary.note(id, now_us, Step::TargetRefused, 1);
        let slot = self.slots.get_mut(id);
        let rare = slot.rare_mut();
        rare.fruitless = rare.fruitless.saturating_add(1);
        self.part_with(now_us, id, Drop::Refused, Count::FailedRefused, false);
    }
}

impl Table {
    /// A connection attempt has come to nothing.
    pub(crate) fn attempt_failed(&mut self, now_us: u64, id: u32) {
        let target = self.slots.get(id).target;
        self.targets.failed(now_us, target, id);
        self.note_health(target);
    }

    /// A connection that stood has ended; when nothing was acknowledged on it, it was none.
    pub(crate) fn connection_ended(&mut self, now_us: u64, id: u32) {
        let slot = self.slots.get(id);
        let target = slot.target;
        if slot.phase() == Phase::Open && slot.tries & try_bit::FRUITFUL == 0 {
            self.targets.spoilt(now_us, target, id);
            self.note_health(target);
        }
    }

    fn note_health(&mut self, target: u16) {
        let (sick, trips) = self.targets.health(target);
        let known = &mut self.tally.targets[target as usize];
        let more = trips - known.trips;
        *known = Health { sick, trips };
        self.tally.add(Count::TargetTrips, more);
    }
}

/// PAWS (RFC 7323, section 5): the segment is older than one that was seen. A value that has not been heard for half an
/// hour protects nothing any more, and a target with a clock of a microsecond may have gone halfway round. Of a bare
/// acknowledgement the number says enough, and records come in some disorder (Linux: tcp_disordered_ack).
fn is_outdated(slot: &Slot, record: &Returned, now_us: u64) -> bool {
    let tcp = &record.tcp;
    slot.is(is::PEER_TS)
        && (record.payload_len > 0 || tcp.flags & (flag::SYN | flag::FIN) != 0)
        && tcp.has_option(opt::TIMESTAMPS)
        && Seq(tcp.ts_val).before(Seq(slot.ts_recent))
        && minutes(now_us).wrapping_sub(slot.ts_minutes) < PAWS_MINUTES
}

/// Low half of the time in minutes.
fn minutes(now_us: u64) -> u16 {
    (now_us / 60_000_000) as u16
}

const PAWS_MINUTES: u16 = 30;
/// Tenths of a second between two challenges of one session.
const CHALLENGE_TENTHS: u16 = 5;
/// Challenges of a table in a second.
const CHALLENGES_PER_S: u32 = 1_000;
/// Acknowledgements so far back are still believed, however small the target's window: reordered records.
const LEAST_ACK_WINDOW: u32 = 65_535;

/// The window that we offer.
pub(crate) const OUR_WINDOW: i32 = (WINDOW as i32) << WINDOW_SCALE;

/// What is held and to be sent next, if it has waited for longer than a little while.
fn late_piece(slot: &Slot, chunks: &Chunks, now_us: u64) -> Option<Piece> {
    held::next_piece(slot, chunks).filter(|next| now_us > next.time_us + LAG_US)
}

/// Whether there is such a piece.
pub(crate) fn lags(slot: &Slot, chunks: &Chunks, now_us: u64) -> bool {
    late_piece(slot, chunks, now_us).is_some()
}

/// Whether the target owes something: an answer, or its FIN after ours.
pub(crate) fn awaits_answer(slot: &Slot) -> bool {
    slot.turns_waiting > 0 || (slot.is(is::FIN_ACKED) && !slot.is(is::PEER_FIN))
}

/// When the next keep-alive probe follows the `n`-th.
pub(crate) fn alive_pause_us(n: u8) -> u64 {
    ALIVE_US << n.min(ALIVE_SHIFT)
}
