//! The returned side: headers of the target's segments, in any order, doubled or missing. RFC 9293, section 3.10.7, with
//! the checks of RFC 5961, for a client that has no use for the payload: it acknowledges past whatever it did not see.

use flow::record::{flag, kind, opt};
use flow::{Drop, Returned, Seq};

use crate::config::Rtt;
use crate::congestion;
use crate::held;
use crate::numbering::{TIMESTAMP_BYTES, WINDOW, WINDOW_SCALE, default_mss, path_mss};
use crate::online::{RTT_VALID_US, distance_us};
use crate::sack;
use crate::sender::RECORD_BYTES;
use crate::slot::{NEVER, Phase, Recovery, Slot, Timer, is};
use crate::table::Table;
use crate::tally::Count;

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
const PINGPONG_US: u64 = 20_000;
/// Whole answers in a row, plus one, that make a ping-pong. One that is not whole ends it, so a target that holds back
/// the rest of an answer until the first part is acknowledged (Nagle) costs one pause, not one for each turn.
const PINGPONG: u8 = 4;
/// Largest shift of a window (RFC 7323, section 2.3).
const WINDOW_SCALE_MAX: u8 = 14;

impl Table {
    pub(crate) fn take_returned(&mut self, now_us: u64, record: &Returned) {
        self.tally.one(Count::ReturnedHeaders);
        let Some(id) = self.find_replayed(&record.client, &record.target) else {
            self.tally.one(Count::ReturnedUnknown);
            return;
        };
        match record.kind {
            kind::TCP => {}
            kind::ICMP => return self.icmp(id, record),
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
                slot.fruitless = slot.fruitless.saturating_add(1);
                self.part_with(now_us, id, Drop::Refused, Count::FailedRefused, false);
            } else {
                self.tally.one(Count::ReturnedRefused);
            }
            return;
        }
        if tcp.has(flag::ACK) && !acceptable {
            // The target remembers an older connection (its TIME_WAIT): a reset with its number clears that, and only
            // then a SYN is answered.
            self.tally.one(Count::ReturnedRefused);
            if slot.outstanding() == 1 && slot.probes < STALE_ANSWERS {
                slot.probes += 1;
                slot.reply_seq = tcp.ack;
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
        let target = &self.config.targets[self.slots.get(id).target as usize];
        let (mtu, v4) = (target.mtu, target.endpoint.addr.is_v4());
        let slot = self.slots.get_mut(id);
        slot.enter(Phase::Open);
        slot.set(is::SYNCHRONISED);
        slot.snd_una = tcp.ack;
        slot.rtx_nxt = tcp.ack;
        slot.rcv_nxt = tcp.seq + 1;
        slot.rcv_ack = slot.rcv_nxt;
        slot.ack_upto = slot.rcv_nxt;
        slot.anchor_target = slot.rcv_nxt;
        slot.wscale = match tcp.has_option(opt::WINDOW_SCALE) {
            true => tcp.window_scale.min(WINDOW_SCALE_MAX),
            false => 0,
        };
        slot.put(is::PEER_TS, tcp.has_option(opt::TIMESTAMPS));
        slot.put(is::PEER_SACK, tcp.has_option(opt::SACK_PERMITTED));
        slot.ts_recent = if slot.is(is::PEER_TS) { tcp.ts_val } else { 0 };
        let peer = if tcp.has_option(opt::MSS) { tcp.mss } else { default_mss(v4) };
        let stamps = if slot.is(is::PEER_TS) { TIMESTAMP_BYTES } else { 0 };
        slot.mss = peer.min(path_mss(mtu, v4)).clamp(TIMESTAMP_BYTES + 36, RECORD_BYTES as u16) - stamps;
        slot.snd_wnd = u32::from(tcp.window);
        slot.max_wnd = slot.snd_wnd;
        (slot.wl1, slot.wl2) = (tcp.seq, tcp.ack);
        congestion::start(slot);
        if slot.backoff == 0 {
            congestion::sample_rtt(slot, (now_us as u32).wrapping_sub(slot.rtt_start));
        }
        slot.backoff = 0;
        slot.probes = 0;
        slot.answer_us = now_us;
        slot.progress_us = now_us;
        slot.turn_sent_us = now_us;
        slot.disarm(Timer::Rto);
        slot.arm(Timer::Ack, now_us + RIDE_US);
        // The third packet leaves when the client's own did, as far as that is known.
        let hold_us = match rtt {
            Rtt::Measured if !slot.is(is::RTT_SETTLED) => RTT_VALID_US,
            _ => distance_us(slot, rtt),
        };
        if hold_us > 0 {
            slot.set(is::HELD_BACK);
            slot.arm(Timer::Ack, now_us + hold_us);
        }
    }

    fn in_open(&mut self, now_us: u64, id: u32, record: &Returned) {
        let tcp = &record.tcp;
        let slot = self.slots.get_mut(id);
        slot.seen_us = now_us;
        let ahead = tcp.seq.since(slot.rcv_nxt);
        if tcp.has(flag::RST) {
            // RFC 5961, section 3.2: only the exact number resets; another one in the window draws an acknowledgement, to
            // which the target answers with the exact one.
            if ahead == 0 || tcp.seq == slot.rcv_ack {
                self.target_reset(now_us, id);
            } else if ahead > 0 && ahead <= OUR_WINDOW {
                slot.set(is::OWE_ACK);
                self.tally.one(Count::ReturnedRefused);
                self.touch(id);
            } else {
                self.tally.one(Count::ReturnedRefused);
            }
            return;
        }
        if tcp.has(flag::SYN) || !tcp.has(flag::ACK) || !(-OUR_WINDOW..=OUR_WINDOW).contains(&ahead) {
            // A repeated SYN-ACK: our third packet was lost. Anything else of the kind draws a challenge (RFC 5961, 4.2).
            let repeated = tcp.has(flag::SYN | flag::ACK);
            self.tally.one(if repeated { Count::ReturnedDuplicate } else { Count::ReturnedRefused });
            slot.set(is::OWE_ACK);
            self.touch(id);
            return;
        }
        if slot.is(is::PEER_TS) && tcp.has_option(opt::TIMESTAMPS) && ahead <= 0 {
            // RFC 7323, section 4.3, serial arithmetic.
            slot.ts_recent = Seq(slot.ts_recent).max(Seq(tcp.ts_val)).0;
        }
        let news = self.take_ack(now_us, id, record) | self.take_answer(now_us, id, record);
        if !news {
            self.tally.one(Count::ReturnedDuplicate);
        }
        self.touch(id);
    }

    /// The acknowledgement in a segment; whether it said anything new.
    fn take_ack(&mut self, now_us: u64, id: u32, record: &Returned) -> bool {
        let tcp = &record.tcp;
        let slot = self.slots.get_mut(id);
        if tcp.ack.after(slot.snd_nxt) {
            // Of something never sent (RFC 5961, section 5.2).
            slot.set(is::OWE_ACK);
            self.tally.one(Count::ReturnedRefused);
            return false;
        }
        if tcp.ack.before(slot.snd_una) {
            return false;
        }
        let blocks = record.sack.get(..record.sack_count as usize).unwrap_or(&record.sack);
        let sacked = slot.is(is::PEER_SACK) && sack::take(slot, tcp.ack, blocks);
        let window = u32::from(tcp.window) << slot.wscale;
        let mut news = sacked;
        if tcp.ack.after(slot.snd_una) {
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
            self.tally.deliver(slot, bytes);
            slot.fruitless = 0;
        }
        slot.resent_left = slot.resent_left.min(slot.held_len);
        slot.progress_us = now_us;
        slot.backoff = 0;
        slot.probes = 0;
        slot.unset(is::OWE_TAIL);
        if slot.outstanding() == 0 {
            slot.disarm(Timer::Rto);
            slot.unset(is::TAIL_TIMER | is::OWE_HEAD);
            if slot.turns_waiting > 0 {
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
        if record.payload_len == 0 && !tcp.has(flag::FIN) {
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
        slot.rcv_nxt = end;
        if fresh > 0 {
            slot.put(is::ANSWER_PSH, tcp.has(flag::PSH));
            slot.answer_parts = slot.answer_parts.saturating_add(1);
            if slot.answer_parts > 1 {
                slot.pingpong = 0;
            }
            if slot.turns_waiting > 0 {
                self.tally.add(Count::TurnsAnswered, u64::from(slot.turns_waiting));
                self.tally.first_byte.record(now_us.saturating_sub(slot.turn_sent_us));
                slot.turns_waiting = 0;
            }
            slot.answer_us = now_us;
            slot.disarm(Timer::Alive);
            slot.probes = 0;
        }
        if tcp.has(flag::FIN) {
            slot.set(is::PEER_FIN);
            slot.disarm(Timer::Alive);
            slot.turns_waiting = 0;
            slot.rcv_nxt += 1;
            slot.rcv_ack = slot.rcv_nxt;
        }
        let distance_us = if lags(slot, &self.chunks, now_us) { 0 } else { distance_us(slot, rtt) };
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
            _ => PINGPONG_US,
        };
        slot.put(is::OWE_ACK, pause_us == 0);
        slot.arm(Timer::Ack, if pause_us == 0 { NEVER } else { now_us + pause_us });
        true
    }

    fn in_lingering(&mut self, now_us: u64, id: u32, record: &Returned) {
        self.tally.one(Count::ReturnedDuplicate);
        if record.tcp.has(flag::RST) {
            self.finish(now_us, id, Drop::TargetClosed);
        } else if record.tcp.has(flag::FIN) || record.payload_len > 0 {
            self.slots.get_mut(id).set(is::OWE_ACK);
            self.touch(id);
        }
    }

    /// An ICMP error to a replayed client: only "too big" has an effect, and only about something that is outstanding.
    fn icmp(&mut self, id: u32, record: &Returned) {
        self.tally.one(Count::Icmp);
        let target = &self.config.targets[self.slots.get(id).target as usize];
        let v4 = target.endpoint.addr.is_v4();
        let slot = self.slots.get_mut(id);
        let offset = record.tcp.seq.since(slot.snd_una);
        let ours = slot.phase() == Phase::Open && offset >= 0 && (offset as u32) < slot.outstanding();
        if record.mtu == 0 || !ours {
            return;
        }
        let mtu = record.mtu.min(u32::from(u16::MAX)) as u16;
        let stamps = if slot.is(is::PEER_TS) { TIMESTAMP_BYTES } else { 0 };
        let mss = path_mss(mtu, v4) - stamps;
        if mss < slot.mss {
            slot.mss = mss;
            slot.set_recovery(Recovery::Loss);
            (slot.rtx_nxt, slot.recover) = (slot.snd_una, slot.snd_nxt);
            self.touch(id);
        }
    }
}

/// The window that we offer.
pub(crate) const OUR_WINDOW: i32 = (WINDOW as i32) << WINDOW_SCALE;

/// Whether held data has waited for longer than a little while.
pub(crate) fn lags(slot: &Slot, chunks: &crate::chunks::Chunks, now_us: u64) -> bool {
    held::next_piece(slot, chunks).is_some_and(|next| now_us > next.time_us + LAG_US)
}

/// When the next keep-alive probe follows the `n`-th.
pub(crate) fn alive_pause_us(n: u8) -> u64 {
    ALIVE_US << n.min(ALIVE_SHIFT)
}
