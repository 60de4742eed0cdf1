//! One session as plain data: what must survive a restart of the worker stands here and nowhere else. No pointers;
//! links are slot or chunk numbers with [`NONE`]. All of it is written by the functions of this crate only, through
//! `Slots::get_mut`, which keeps the undo log.
//!
//! | phase | entered when | left when |
//! |---|---|---|
//! | `Free` | the session is over | a flow is born |
//! | `Queued` | born while its four-tuple still drains an older session | that one is freed, or time is over |
//! | `Opening` | SYN owed or sent | SYN-ACK → `Open`; RST, silence → `Parted` or `Free` |
//! | `Open` | established, possibly half closed | both FINs acknowledged → `Lingering`; RST, silence → `Parted`; reconnect → `Resetting` |
//! | `Resetting` | a reset is owed | it was emitted → `Free`, `Parted` or `Opening` as `after` says |
//! | `Parted` | the connection is gone, the client is not | the client's next turn → `Opening`; its end → `Free` |
//! | `Lingering` | over; repeated FINs are still acknowledged | time is over, or the four-tuple comes back → `Free` |

use flow::Captured;
use flow::record::SackBlock;
use flow::{Endpoint, Seq};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::chunks::{List, Place};
use crate::sys::{LANES, fletcher};
use crate::wide::Wide;

/// No slot, no chunk.
pub(crate) const NONE: u32 = u32::MAX;
/// A deadline that is not set.
pub(crate) const NEVER: u64 = u64::MAX;
/// Blocks kept of what the target selectively acknowledged.
pub(crate) const SACK_BLOCKS: usize = 4;

/// Where a session stands; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free,
    Queued,
    Opening,
    Open,
    Resetting,
    Parted,
    Lingering,
}

/// The deadlines of a slot; the wheel holds the earliest. Those that hardly any session has stand behind the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Timer {
    /// Retransmission (SYN, data, FIN), tail-loss probe, or the pause before a reconnect.
    Rto,
    /// A delayed acknowledgement is due (the client's distance).
    Ack,
    /// Keep-alive probe while an answer is due.
    Alive,
    /// Idle, lingering, queued or orphaned for too long.
    End,
    /// Zero-window probe.
    Persist,
    /// The next turn's gate is looked at again.
    Gate,
    /// A hole in the capture is given up.
    Hole,
}

/// Deadlines of [`Slot`], and of [`Rare`].
const USUAL_TIMERS: usize = Timer::End as usize + 1;
const RARE_TIMERS: usize = Timer::Hole as usize + 1 - USUAL_TIMERS;

/// What follows a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum After {
    Free = 0,
    Part = 1,
    Reopen = 2,
}

/// How the target's losses are being repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Recovery {
    /// Nothing is known to be lost.
    None = 0,
    /// Duplicate acknowledgements or SACK showed a loss (RFC 6675; RFC 6582 without SACK).
    Fast = 1,
    /// The retransmission timer fired: everything not selectively acknowledged counts as lost.
    Loss = 2,
}

/// Bits of [`Slot::flags`].
pub(crate) mod is {
    /// Head of the flow's chain of copies: the one that the captured index finds.
    pub(crate) const FIRST: u32 = 1;
    /// No captured segment reaches this session any more.
    pub(crate) const DETACHED: u32 = 1 << 1;
    /// Joined in the middle of the flow: the SYN is built.
    pub(crate) const JOINED: u32 = 1 << 2;
    /// The client's FIN or RST was captured; `online_end` and `end_gate` are valid.
    pub(crate) const END_KNOWN: u32 = 1 << 3;
    /// That end is an RST.
    pub(crate) const END_RST: u32 = 1 << 4;
    /// The end stands in the held stream as its last piece.
    pub(crate) const END_HELD: u32 = 1 << 5;
    /// Our FIN was sent at least once; it takes the number before `snd_nxt`.
    pub(crate) const FIN_SENT: u32 = 1 << 6;
    /// ... and acknowledged.
    pub(crate) const FIN_ACKED: u32 = 1 << 7;
    /// The target's FIN was seen.
    pub(crate) const PEER_FIN: u32 = 1 << 8;
    /// The target speaks time stamps.
    pub(crate) const PEER_TS: u32 = 1 << 9;
    /// The target speaks SACK.
    pub(crate) const PEER_SACK: u32 = 1 << 10;
    /// Established, but our third packet waits for the client's distance.
    pub(crate) const HELD_BACK: u32 = 1 << 11;
    /// The client's round-trip time is settled (measured or found invalid).
    pub(crate) const RTT_SETTLED: u32 = 1 << 12;
    /// `anchor_online` and `last_gate` are valid.
    pub(crate) const ANCHORED: u32 = 1 << 13;
    /// New connection: the first gate is where the anchors are.
    pub(crate) const REANCHOR: u32 = 1 << 14;
    /// Data of the client was taken.
    pub(crate) const HAD_DATA: u32 = 1 << 15;
    /// Data is dropped (`skip_reason`) until the client's next turn begins.
    pub(crate) const SKIPPING: u32 = 1 << 16;
    /// The piece at the send cursor is released by its gate.
    pub(crate) const RELEASED: u32 = 1 << 17;
    /// The send cursor stands in the last piece, which may still grow.
    pub(crate) const CURSOR_IN_TAIL: u32 = 1 << 18;
    /// The first unacknowledged byte lies in the last piece.
    pub(crate) const HEAD_IN_TAIL: u32 = 1 << 19;
    /// The target's numbers are known: its SYN-ACK came.
    pub(crate) const SYNCHRONISED: u32 = 1 << 20;
    /// The turn at the head was sent on an earlier connection already.
    pub(crate) const HEAD_RESENT: u32 = 1 << 21;
    /// An acknowledgement must leave.
    pub(crate) const OWE_ACK: u32 = 1 << 22;
    /// A SYN must leave.
    pub(crate) const OWE_SYN: u32 = 1 << 23;
    /// A probe must leave.
    pub(crate) const OWE_PROBE: u32 = 1 << 24;
    /// An RST with the number in `wl2` must leave before the SYN.
    pub(crate) const OWE_RST: u32 = 1 << 25;
    /// The first unacknowledged segment must be sent again.
    pub(crate) const OWE_HEAD: u32 = 1 << 26;
    /// The last segment must be sent again (tail-loss probe).
    pub(crate) const OWE_TAIL: u32 = 1 << 27;
    /// The retransmission timer stands for a tail-loss probe.
    pub(crate) const TAIL_TIMER: u32 = 1 << 28;
    /// A segment is being timed (`rtt_seq`, `rtt_start`).
    pub(crate) const TIMING: u32 = 1 << 29;
    /// The target's last data segment had PSH.
    pub(crate) const ANSWER_PSH: u32 = 1 << 30;
    /// Never waits for answers again (row 8).
    pub(crate) const DUPLEX: u32 = 1 << 31;
}

/// Bits of [`Slot::tries`].
pub(crate) mod try_bit {
    /// The connection is not its flow's first, or it has waited: it passes the target's bucket.
    pub(crate) const PACED: u8 = 1;
    /// The SYN waits until the target may have it.
    pub(crate) const WAITING: u8 = 2;
    /// Something was acknowledged on this connection.
    pub(crate) const FRUITFUL: u8 = 4;
    /// The moment of the SYN is booked, see [`crate::table::Sink::book`].
    pub(crate) const BOOKED: u8 = 8;
    /// Bytes before the next turn were given up: what it waits for is not known exactly.
    pub(crate) const AFTER_GAP: u8 = 16;
    /// Nothing more of the flow is replayed (`OnGap::Abort`).
    pub(crate) const GIVEN_UP: u8 = 32;
    /// The client's last segment had no PSH, so more of the same write follows: the last piece grows, and only whole segments of it
    /// leave. Where replays are repeatable, and nowhere else.
    pub(crate) const UNPUSHED: u8 = 64;
    /// Those that say something of the flow, whatever connection it has.
    pub(crate) const OF_FLOW: u8 = AFTER_GAP | GIVEN_UP | UNPUSHED;
}

/// Which bits of [`Slot::state`] are whose.
mod state {
    pub(super) const PHASE: u8 = 0b111;
    pub(super) const AFTER: u8 = 0b11 << AFTER_SHIFT;
    pub(super) const AFTER_SHIFT: u32 = 3;
    pub(super) const RECOVERY: u8 = 0b11 << RECOVERY_SHIFT;
    pub(super) const RECOVERY_SHIFT: u32 = 5;
    /// Something stands in [`super::Slot::rare`].
    pub(super) const RARE: u8 = 1 << 7;
}

/// The bit of [`Slot::check`] that says that the open transaction has touched the slot. A slot with it in a log's image or
/// outside of any transaction is no transaction's work.
const UNSEALED: u32 = 1;

/// One session, in whole cache lines (`arena` puts the first where one begins): each line that a packet touches is one that no
/// cache holds when there are many. So what most sessions have nothing of stands apart, in [`Rare`]: those lines are neither
/// read nor written, copied nor summed, while there is nothing in them.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Slot {
    deadlines: [u64; USUAL_TIMERS],
    /// Last packet of either side, for the idle time.
    pub(crate) seen_us: u64,
    /// Capture time of the client's last data segment; before the first, of its SYN.
    pub(crate) data_us: u64,
    /// When the last byte of the last turn was first sent.
    pub(crate) turn_sent_us: u64,
    /// When the target's last new data (or SYN-ACK) came, or our acknowledgement of it left, if that was later.
    pub(crate) answer_us: u64,
    /// When the target last acknowledged something new, or when something was first outstanding again.
    pub(crate) progress_us: u64,

    pub(crate) flags: u32,

    // Online numbering.
    pub(crate) online_isn: Seq,
    /// Next byte of the client's stream in order.
    pub(crate) online_next: Seq,
    /// The client's round-trip time; 0 when unknown.
    pub(crate) client_rtt_us: u32,

    /// The stream from the first unacknowledged byte on.
    pub(crate) held: List,
    pub(crate) held_len: u32,
    /// What is left of the pieces that `head` and `cursor` are in, and the length of the last (its header's own is not valid yet).
    pub(crate) head_left: u32,
    pub(crate) tail_piece_len: u32,
    pub(crate) cursor_left: u32,

    // Target numbering, ours.
    pub(crate) snd_una: Seq,
    pub(crate) snd_nxt: Seq,
    /// Next number to send again while recovering.
    pub(crate) rtx_nxt: Seq,
    /// Recovery is over when this is acknowledged.
    pub(crate) recover: Seq,
    pub(crate) snd_wnd: u32,
    pub(crate) max_wnd: u32,
    pub(crate) wl1: Seq,
    /// Before the target's numbers are known: the number of the RST owed.
    pub(crate) wl2: Seq,
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    pub(crate) srtt_us: u32,
    pub(crate) rttvar_us: u32,
    pub(crate) rtt_seq: Seq,
    /// Low half of the time at which the timed segment left.
    pub(crate) rtt_start: u32,
    /// Offset of our time stamps.
    pub(crate) ts_offset: u32,

    // Target numbering, its own.
    /// One past the highest byte seen.
    pub(crate) rcv_nxt: Seq,
    /// What we let the target know we have: `rcv_nxt`, or behind it by the client's distance.
    pub(crate) rcv_ack: Seq,
    /// What `rcv_ack` becomes when the acknowledgement timer fires.
    pub(crate) ack_upto: Seq,
    pub(crate) ts_recent: u32,

    // Turns.
    /// How much longer the target's last whole answer was than the online one's.
    pub(crate) deviation: i32,

    /// First unacknowledged byte.
    pub(crate) head: Place,
    /// Header of the last piece.
    pub(crate) tail_piece: Place,
    /// Next byte to send for the first time.
    pub(crate) cursor: Place,

    pub(crate) turns_waiting: u16,
    /// Index of the mapping: there are 256 at most.
    pub(crate) mapping: u8,
    /// See `Captured::lap`.
    pub(crate) lap: u8,
    pub(crate) target: u16,
    /// Payload bytes per segment towards the target.
    pub(crate) mss: u16,
    /// MSS option of the client's SYN; 0 when unknown.
    pub(crate) client_mss: u16,

    /// [`Phase`], [`After`] and [`Recovery`], see [`state`].
    state: u8,
    pub(crate) wscale: u8,
    /// One more than the answers in a row that came whole in one segment; 0 once one did not.
    pub(crate) pingpong: u8,
    /// Segments with new bytes since the last turn left.
    pub(crate) answer_parts: u8,
    /// See [`try_bit`].
    pub(crate) tries: u8,
    reserved: u8,

    pub(crate) client: Endpoint,
    pub(crate) server: Endpoint,
    pub(crate) replayed: Endpoint,
    /// When `ts_recent` was last heard, minutes.
    pub(crate) ts_minutes: u16,
    /// Highest acknowledgement number of the client seen.
    pub(crate) online_ack: Wide,
    /// Gate of the last byte taken.
    pub(crate) last_gate: Wide,
    /// An online and a target number that stand for the same point of the conversation, see `turns`.
    pub(crate) anchor_online: Wide,
    pub(crate) anchor_target: Wide,
    /// `rcv_nxt`, its high half.
    pub(crate) rcv_high: u16,
    /// See [`Slot::seal`] and [`UNSEALED`].
    check: u32,
    /// Means something only where [`state::RARE`] says so.
    rare: Rare,
}

/// What a session has when something is lost, missing, ending or waiting, or when it is one of several copies.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Rare {
    deadlines: [u64; RARE_TIMERS],
    /// Captured segments behind a hole.
    pub(crate) stash: List,
    pub(crate) stash_last_len: u32,
    /// Bytes in the stash that have not been moved on.
    pub(crate) stash_bytes: u32,
    /// What the target has selectively acknowledged; zeros behind the first `sack_count`.
    pub(crate) sack: [SackBlock; SACK_BLOCKS],
    /// Next copy of the same flow.
    pub(crate) next_copy: u32,
    /// The session that waits for this one's four-tuple.
    pub(crate) waiter: u32,
    /// Bytes from the head on that an earlier connection sent already: not counted again.
    pub(crate) resent_left: u32,
    /// One past the client's last byte.
    pub(crate) online_end: Seq,
    pub(crate) end_gate: Wide,
    pub(crate) stash_last: Place,
    pub(crate) stash_count: u16,
    /// Number of copies of the flow, and which one this is.
    pub(crate) copies: u16,
    pub(crate) copy: u16,
    /// When the last challenge left, tenths of a second; 0 is never.
    pub(crate) challenged: u16,
    pub(crate) sack_count: u8,
    pub(crate) dupacks: u8,
    pub(crate) backoff: u8,
    pub(crate) probes: u8,
    /// Row-7 releases in a row.
    pub(crate) unanswered: u8,
    /// Connections in a row that ended without an acknowledged byte.
    pub(crate) fruitless: u8,
    /// `Drop` index: why bytes are skipped.
    pub(crate) skip_reason: u8,
    /// `Drop` index: why the flow has fewer sessions than copies.
    pub(crate) absent_reason: u8,
    /// One more than the `Count` index under which the session failed; 0 while it has not.
    pub(crate) failure: u8,
    reserved: [u8; 3],
}

impl Rare {
    /// What it is to have nothing of it.
    const NOTHING: Self = Self {
        deadlines: [NEVER; RARE_TIMERS],
        stash: List::EMPTY,
        stash_last_len: 0,
        stash_bytes: 0,
        sack: [SackBlock { left: Seq(0), right: Seq(0) }; SACK_BLOCKS],
        next_copy: NONE,
        waiter: NONE,
        resent_left: 0,
        online_end: Seq(0),
        end_gate: Wide::ZERO,
        stash_last: Place::NOWHERE,
        stash_count: 0,
        copies: 1,
        copy: 0,
        challenged: 0,
        sack_count: 0,
        dupacks: 0,
        backoff: 0,
        probes: 0,
        unanswered: 0,
        fruitless: 0,
        skip_reason: 0,
        absent_reason: 0,
        failure: 0,
        reserved: [0; 3],
    };
}

/// Bytes of a slot before [`Rare`].
const USUAL: usize = std::mem::offset_of!(Slot, rare);

impl Slot {
    /// A slot with nothing in it, phase `Free`.
    const EMPTY: Self = {
        let mut slot: Self = zerocopy::transmute!([0u8; size_of::<Self>()]);
        slot.deadlines = [NEVER; USUAL_TIMERS];
        slot.held = List::EMPTY;
        slot.head = Place::NOWHERE;
        slot.tail_piece = Place::NOWHERE;
        slot.cursor = Place::NOWHERE;
        slot
    };

    /// The same.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self::EMPTY
    }

    /// What the session has that most have not.
    #[inline]
    pub(crate) fn rare(&self) -> &Rare {
        if self.state & state::RARE == 0 { &Rare::NOTHING } else { &self.rare }
    }

    /// The same for writing, where there is something. What is to be as with most sessions is so where there is nothing.
    #[inline]
    pub(crate) fn had_rare(&mut self) -> Option<&mut Rare> {
        (self.state & state::RARE != 0).then_some(&mut self.rare)
    }

    /// For writing what most sessions do not have.
    pub(crate) fn rare_mut(&mut self) -> &mut Rare {
        if self.state & state::RARE == 0 {
            self.state |= state::RARE;
            self.rare = Rare::NOTHING;
        }
        &mut self.rare
    }

    /// What every packet needs of it, see `prefetch`.
    #[inline]
    pub(crate) fn usual(&self) -> &[u8; USUAL] {
        self.as_bytes().first_chunk().expect("it begins so")
    }

    /// Becomes what another slot is, and touches no more memory than that means something.
    #[inline]
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.as_mut_bytes()[..USUAL].copy_from_slice(other.usual());
        if other.state & state::RARE != 0 {
            self.rare = other.rare;
        }
    }

    /// What names its flow.
    pub(crate) fn flow(&self) -> Captured {
        let (client, server, mapping) = (self.client, self.server, self.mapping.into());
        Captured { client, server, mapping, lap: self.lap, ..Captured::default() }
    }

    /// Whether a captured segment belongs to its flow.
    pub(crate) fn is_of(&self, segment: &Captured) -> bool {
        (self.client, self.server, u16::from(self.mapping), self.lap)
            == (segment.client, segment.server, segment.mapping, segment.lap)
    }

    /// Empties the slot; it stays in the transaction that it is in.
    pub(crate) fn reset(&mut self) {
        let check = self.check;
        self.copy_from(&Self::EMPTY);
        self.check = check;
    }

    /// Puts the checksum in place: at the end of each transaction that touched the slot.
    pub(crate) fn seal(&mut self) {
        if self.had_rare().is_some_and(|rare| rare.as_bytes() == Rare::NOTHING.as_bytes()) {
            self.state &= !state::RARE;
        }
        self.check = self.checksum() & !UNSEALED;
    }

    /// Takes it away: the transaction touches the slot.
    pub(crate) fn unseal(&mut self) {
        self.check |= UNSEALED;
    }

    /// Whether the open transaction has not touched the slot.
    pub(crate) fn is_sealed(&self) -> bool {
        self.check & UNSEALED == 0
    }

    /// Whether the slot is as a transaction left it. A slot of zeros is, like the memory that an arena begins with.
    pub(crate) fn is_intact(&self) -> bool {
        self.check == self.checksum() & !UNSEALED
    }

    /// Fletcher's sums over the words that mean something, four lanes side by side. The checksum's own place counts as zero: it is
    /// taken out of the sums, since a store just before they are made would hold up the load that needs it.
    fn checksum(&self) -> u32 {
        const { assert!(std::mem::offset_of!(Slot, check) + 4 == USUAL, "it is the last of the usual words") };
        const ROW: usize = 4 * LANES;
        let rows: &[[u32; LANES]; size_of::<Slot>() / ROW] = zerocopy::transmute_ref!(self);
        let usual: &[_; USUAL / ROW] = rows.first_chunk().expect("it begins so");
        let ([mut sums, mut of_sums], behind) = match self.state & state::RARE {
            0 => (fletcher(usual), 0),
            _ => (fletcher(rows), size_of::<Rare>() / ROW),
        };
        sums[LANES - 1] = sums[LANES - 1].wrapping_sub(self.check);
        of_sums[LANES - 1] = of_sums[LANES - 1].wrapping_sub(self.check.wrapping_mul(1 + behind as u32));
        // Odd factors, so that no lane's sum can stand for another's.
        (0..LANES).fold(0, |hash, lane| {
            let factor = 0x9e37_79b1u32.wrapping_mul(2 * lane as u32 + 1);
            let both = sums[lane] ^ of_sums[lane].rotate_left(16);
            hash ^ both.wrapping_mul(factor).rotate_left(7 * lane as u32)
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.state & state::PHASE {
            1 => Phase::Queued,
            2 => Phase::Opening,
            3 => Phase::Open,
            4 => Phase::Resetting,
            5 => Phase::Parted,
            6 => Phase::Lingering,
            _ => Phase::Free,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.state = self.state & !state::PHASE | phase as u8;
    }

    pub(crate) fn after(&self) -> After {
        match (self.state & state::AFTER) >> state::AFTER_SHIFT {
            1 => After::Part,
            2 => After::Reopen,
            _ => After::Free,
        }
    }

    pub(crate) fn set_after(&mut self, after: After) {
        self.state = self.state & !state::AFTER | (after as u8) << state::AFTER_SHIFT;
    }

    pub(crate) fn recovery(&self) -> Recovery {
        match (self.state & state::RECOVERY) >> state::RECOVERY_SHIFT {
            1 => Recovery::Fast,
            2 => Recovery::Loss,
            _ => Recovery::None,
        }
    }

    pub(crate) fn set_recovery(&mut self, recovery: Recovery) {
        self.state = self.state & !state::RECOVERY | (recovery as u8) << state::RECOVERY_SHIFT;
    }

    /// Whether the client has said nothing but its SYN.
    pub(crate) fn is_half_open(&self) -> bool {
        matches!(self.phase(), Phase::Opening | Phase::Open | Phase::Parted)
            && !self.is(is::ANCHORED | is::DETACHED)
    }

    /// Whether any of the bits is set.
    pub(crate) fn is(&self, bits: u32) -> bool {
        self.flags & bits != 0
    }

    pub(crate) fn set(&mut self, bits: u32) {
        self.flags |= bits;
    }

    pub(crate) fn unset(&mut self, bits: u32) {
        self.flags &= !bits;
    }

    pub(crate) fn put(&mut self, bits: u32, on: bool) {
        if on { self.set(bits) } else { self.unset(bits) }
    }

    #[inline]
    pub(crate) fn deadline(&self, timer: Timer) -> u64 {
        match (timer as usize).checked_sub(USUAL_TIMERS) {
            Some(rare) => self.rare().deadlines[rare],
            None => self.deadlines[timer as usize],
        }
    }

    #[inline]
    pub(crate) fn arm(&mut self, timer: Timer, at_us: u64) {
        match (timer as usize).checked_sub(USUAL_TIMERS) {
            Some(rare) if at_us != NEVER => self.rare_mut().deadlines[rare] = at_us,
            Some(_) => self.disarm(timer),
            None => self.deadlines[timer as usize] = at_us,
        }
    }

    #[inline]
    pub(crate) fn disarm(&mut self, timer: Timer) {
        match (timer as usize).checked_sub(USUAL_TIMERS) {
            Some(rare) => drop(self.had_rare().map(|had| had.deadlines[rare] = NEVER)),
            None => self.deadlines[timer as usize] = NEVER,
        }
    }

    /// What is the session's own, its hole and its end, stays.
    pub(crate) fn disarm_connection(&mut self) {
        for timer in [Timer::Rto, Timer::Ack, Timer::Alive, Timer::Persist, Timer::Gate] {
            self.disarm(timer);
        }
    }

    pub(crate) fn disarm_all(&mut self) {
        self.deadlines = [NEVER; USUAL_TIMERS];
        if let Some(rare) = self.had_rare() {
            rare.deadlines = [NEVER; RARE_TIMERS];
        }
    }

    /// Whether the deadline has come; if so it is disarmed.
    pub(crate) fn fired(&mut self, timer: Timer, now_us: u64) -> bool {
        let due = self.deadline(timer) <= now_us;
        if due {
            self.disarm(timer);
        }
        due
    }

    pub(crate) fn earliest(&self) -> u64 {
        let usual = self.deadlines.into_iter().fold(NEVER, u64::min);
        if self.state & state::RARE == 0 {
            return usual;
        }
        self.rare.deadlines.into_iter().fold(usual, u64::min)
    }

    /// Ledger bytes held, stashed, or sent and unacknowledged.
    pub(crate) fn in_flight(&self) -> u32 {
        self.held_len.wrapping_add(self.rare().stash_bytes)
    }

    /// The whole of a captured acknowledgement number.
    pub(crate) fn online(&mut self, ack: Seq) -> Wide {
        let ack = self.online_ack.near(ack);
        self.online_ack = self.online_ack.max(ack);
        ack
    }

    /// The first acknowledgement number of a flow: from there on answers are counted.
    pub(crate) fn anchor(&mut self, ack: Seq) {
        self.set(is::ANCHORED);
        self.online_ack = Wide::first(ack);
        (self.anchor_online, self.last_gate) = (self.online_ack, self.online_ack);
    }

    /// Moves `rcv_nxt` forward.
    pub(crate) fn receive(&mut self, to: Seq) {
        self.rcv_high = self.rcv_high.wrapping_add(u16::from(to.0 < self.rcv_nxt.0));
        self.rcv_nxt = to;
    }

    /// The whole of what we let the target know we have.
    pub(crate) fn answered(&self) -> Wide {
        Wide::of_halves(self.rcv_high, self.rcv_nxt).near(self.rcv_ack)
    }

    /// Numbers sent and not acknowledged, FIN and SYN included.
    pub(crate) fn outstanding(&self) -> u32 {
        self.snd_nxt.0.wrapping_sub(self.snd_una.0)
    }

    /// Whether our FIN is outstanding.
    pub(crate) fn fin_outstanding(&self) -> bool {
        self.is(is::FIN_SENT) && !self.is(is::FIN_ACKED)
    }

    /// Whether answer bytes that came are not acknowledged yet, only so that the acknowledgement may ride on data.
    pub(crate) fn withholds_ack(&self) -> bool {
        self.deadline(Timer::Ack) != NEVER && self.rcv_ack == self.rcv_nxt && !self.is(is::HELD_BACK)
    }

    /// Payload bytes sent and not acknowledged.
    pub(crate) fn sent_bytes(&self) -> u32 {
        match self.phase() {
            Phase::Open => self.outstanding() - u32::from(self.fin_outstanding()),
            _ => 0,
        }
    }

    /// Payload bytes held that were never sent on this connection.
    pub(crate) fn unsent(&self) -> u32 {
        self.held_len - self.sent_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros as _;

    use crate::index::Index;
    use crate::ready::Ready;
    use crate::strangers::Strangers;
    use crate::sys::LINE;
    use crate::wheel::Wheel;

    /// Each word that means something counts, and where it stands; the checksum's own does not.
    #[test]
    fn a_changed_word_is_noticed() {
        let mut usual = Slot::empty();
        usual.seal();
        let mut rare = usual;
        rare.rare_mut().waiter = 7;
        rare.unseal();
        rare.seal();
        assert!(usual.is_intact() && usual.is_sealed() && Slot::new_zeroed().is_intact());
        assert!(rare.is_intact() && rare.rare().waiter == 7);
        for (mut slot, end) in [(usual, USUAL), (rare, size_of::<Slot>())] {
            let bytes = slot.as_bytes().to_vec();
            let read = |bytes: &[u8]| Slot::read_from_bytes(bytes).unwrap();
            for word in (0..end).step_by(4) {
                for bit in 0..32 {
                    let mut bytes = bytes.clone();
                    bytes[word + bit / 8] ^= 1 << (bit % 8);
                    assert!(!read(&bytes).is_intact(), "word {word} bit {bit}");
                }
                let mut swapped = bytes.clone();
                swapped[word..end].rotate_left(4);
                assert!(swapped == bytes || !read(&swapped).is_intact(), "moved from word {word} on");
            }
            let before = slot.check;
            slot.unseal();
            assert!(!slot.is_sealed() && !slot.is_intact());
            slot.seal();
            assert_eq!(slot.check, before);
        }
    }

    /// What stands where nothing rare is means nothing, and goes nowhere.
    #[test]
    fn a_session_without_anything_rare_has_nothing_of_it() {
        let mut slot = Slot::empty();
        slot.as_mut_bytes()[USUAL..].fill(0x5a);
        slot.seal();
        assert!(slot.is_intact() && *slot.rare() == Rare::NOTHING && slot.had_rare().is_none());
        assert_eq!((slot.earliest(), slot.in_flight()), (NEVER, 0));
        let mut other = Slot::empty();
        other.copy_from(&slot);
        assert_eq!(other.as_bytes()[USUAL..], Slot::empty().as_bytes()[USUAL..]);

        slot.arm(Timer::Hole, NEVER);
        slot.disarm(Timer::Gate);
        assert!(slot.had_rare().is_none());
        slot.arm(Timer::Hole, 5);
        assert_eq!((slot.earliest(), slot.rare().waiter), (5, NONE));
        other.copy_from(&slot);
        assert_eq!(other.deadline(Timer::Hole), 5);
        slot.seal();
        assert!(slot.had_rare().is_some());
        slot.disarm(Timer::Hole);
        slot.seal();
        assert!(slot.had_rare().is_none() && slot.is_intact());
    }

    /// 512 bytes a session all told, at any capacity: slot, both indices, wheel, ready list, free list, strangers. Their
    /// fixed parts come to a quarter of a mebibyte at most.
    #[test]
    fn a_session_keeps_within_the_budget() {
        for sessions in [1_000, 16_385, 65_536, 65_537, 100_000, 1_000_001] {
            let private = 2 * Index::new(sessions).bytes()
                + Wheel::new(sessions, 0).bytes()
                + Ready::new(sessions).bytes()
                + Strangers::new(sessions).bytes()
                + size_of::<u32>() * sessions as usize;
            let bytes = size_of::<Slot>() * sessions as usize + private;
            assert!(bytes <= 512 * sessions as usize + (1 << 18), "{sessions}: {bytes}");
        }
        assert!(size_of::<Slot>() <= 448 && size_of::<Slot>().is_multiple_of(LINE), "{}", size_of::<Slot>());
    }
}
