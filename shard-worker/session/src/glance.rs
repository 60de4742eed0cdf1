//! One session in words, from a copy of its slot and its diary that somebody else works on: for `tcptwin doctor ADDRESS:PORT`.
//! Believes nothing: a slot that was copied while it changed has no seal, and is copied again by the caller.

use std::net::SocketAddr;

use flow::Endpoint;
use zerocopy::FromBytes as _;

use crate::arena::{self, FORMAT, Header};
use crate::config::Limits;
use crate::diary::{Diaries, Told};
use crate::slot::{NEVER, Phase, Slot, Timer, is, try_bit};
use crate::tally::Count;

/// Where the slots of an arena stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Offset of the first, bytes from the arena's begin.
    pub at: u64,
    /// Bytes of each.
    pub each: usize,
    /// How many were ever used.
    pub used: u32,
}

/// What an arena's head must hold to be read.
pub const HEAD: usize = Header::FIRST;

/// Finds the slots from the first [`HEAD`] bytes of an arena; none where no worker of this program has used it.
pub fn slots(head: &[u8], limits: &Limits) -> Option<Slots> {
    let mut whole = vec![0; size_of::<Header>()];
    whole.get_mut(..HEAD)?.copy_from_slice(head.get(..HEAD)?);
    let header = Header::read_from_bytes(&whole).ok()?;
    if !header.is_of(FORMAT, limits.sessions, limits.chunks) {
        return None;
    }
    let at = arena::slots_at(limits.sessions);
    Some(Slots { at: at as u64, each: size_of::<Slot>(), used: header.fresh.min(limits.sessions) })
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The real client.
    pub client: SocketAddr,
    /// The client as replayed, while there is a connection.
    pub replayed: Option<SocketAddr>,
    /// Index of the target.
    pub target: u16,
    /// Where it stands.
    pub phase: &'static str,
    /// Which copy of how many.
    pub copy: (u16, u16),
    /// How it stands and what it waits for.
    pub facts: Vec<String>,
    /// What happened to it last, oldest first; none where its diary was taken by a younger one.
    pub steps: Vec<Told>,
    /// How long it has been over.
    pub over_us: Option<u64>,
    /// Bytes of the client that the target has not acknowledged.
    pub in_flight: u32,
    /// Time-outs in a row of what was sent last.
    pub backoff: u8,
    /// Why it failed, once it did.
    pub failure: Option<&'static str>,
}

/// The sessions that failed last, the latest first.
pub fn past(diaries: &Diaries, now_us: u64) -> Vec<Glance> {
    let told = |(slot, over_us, steps)| {
        let one = glance(slot, now_us, steps).ok().flatten()?;
        Some(Glance { over_us: Some(over_us), ..one })
    };
    diaries.past(now_us).filter_map(told).collect()
}

/// The session in a slot of this number.
///
/// # Errors
/// The bytes are no whole slot: it was copied while it changed.
pub fn present(
    bytes: &[u8],
    id: u32,
    diaries: Option<&Diaries>,
    now_us: u64,
) -> Result<Option<Glance>, Torn> {
    let slot = Slot::read_from_bytes(bytes).map_err(|_| Torn)?;
    glance(&slot, now_us, diaries.map_or_else(Vec::new, |diaries| diaries.of_slot(id, now_us)))
}

/// What a slot says at a time on the clock of the worker; none where it is free.
fn glance(slot: &Slot, now_us: u64, steps: Vec<Told>) -> Result<Option<Glance>, Torn> {
    if !slot.is_intact() {
        return Err(Torn);
    }
    if slot.phase() == Phase::Free {
        return Ok(None);
    }
    Ok(Some(Glance {
        client: slot.client.to_socket_addr(),
        replayed: (slot.replayed != Endpoint::default()).then(|| slot.replayed.to_socket_addr()),
        target: slot.target,
        phase: match slot.phase() {
            Phase::Free => "free",
            Phase::Queued => "queued: an older session drains on its four-tuple",
            Phase::Opening => "opening: the SYN is owed or unanswered",
            Phase::Open => "open",
            Phase::Resetting => "resetting",
            Phase::Parted => "parted: the connection is gone, the client is not",
            Phase::Lingering => "over, and remembered for a while",
        },
        copy: (slot.rare().copy, slot.rare().copies),
        facts: facts(slot, now_us, steps.is_empty()),
        steps,
        over_us: None,
        in_flight: slot.in_flight(),
        backoff: slot.rare().backoff,
        failure: slot
            .rare()
            .failure
            .checked_sub(1)
            .and_then(|at| Count::ALL.get(usize::from(at)))
            .map(|count| count.name()),
    }))
}

/// A slot that was copied while it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn;

/// `dated`: what its times tell too, for want of a diary.
fn facts(slot: &Slot, now_us: u64, dated: bool) -> Vec<String> {
    let ago = |at_us: u64| format!("{:.3} s ago", now_us.saturating_sub(at_us) as f64 / 1e6);
    let mut past: Vec<(u64, String)> = Vec::new();
    let mut at = |when_us: u64, what: String| {
        if dated && when_us != 0 && when_us != NEVER {
            past.push((when_us, format!("{what} {}", ago(when_us))));
        }
    };
    let synchronised = slot.is(is::SYNCHRONISED);
    at(
        slot.data_us,
        if slot.is(is::HAD_DATA) {
            "the client's last data was captured".to_owned()
        } else {
            "the client's SYN was captured".to_owned()
        },
    );
    at(slot.turn_sent_us, "the last byte of the last turn was sent".to_owned());
    at(
        slot.answer_us,
        if synchronised { "the target's last answer came".to_owned() } else { "an answer came".to_owned() },
    );
    at(slot.progress_us, "the target acknowledged something new, or was first owed it,".to_owned());
    at(slot.seen_us, "the last packet of either side passed".to_owned());
    past.sort();
    let mut facts: Vec<String> = past.into_iter().map(|one| one.1).collect();
    if slot.is(is::JOINED) {
        facts.insert(0, "joined in the middle: its SYN was built".to_owned());
    }
    let mut add = |holds: bool, what: String| {
        if holds {
            facts.push(what);
        }
    };
    let outstanding = slot.snd_nxt.since(slot.snd_una);
    add(!synchronised, "the target has not answered the SYN".to_owned());
    add(
        synchronised,
        format!(
            "{outstanding} numbers sent and not acknowledged (from {} on), window {}",
            slot.snd_una.0, slot.snd_wnd
        ),
    );
    add(slot.in_flight() > 0, format!("{} bytes of the client are held or under way", slot.in_flight()));
    add(
        slot.rare().backoff > 0,
        format!("{} time-outs in a row: the same is sent again", slot.rare().backoff),
    );
    add(slot.rare().dupacks > 0, format!("{} duplicate acknowledgements", slot.rare().dupacks));
    add(slot.rare().probes > 0, format!("{} probes without an answer", slot.rare().probes));
    add(slot.turns_waiting > 0, format!("{} turns wait for the answer before them", slot.turns_waiting));
    add(
        slot.rare().unanswered > 0,
        format!("{} turns in a row were released without an answer", slot.rare().unanswered),
    );
    add(
        slot.rare().fruitless > 0,
        format!("{} connections in a row ended without an acknowledged byte", slot.rare().fruitless),
    );
    add(
        slot.rare().stash_bytes > 0,
        format!("{} bytes wait behind a hole in the capture", slot.rare().stash_bytes),
    );
    add(slot.is(is::SKIPPING), "data is dropped until the client's next turn begins".to_owned());
    add(
        slot.is(is::END_KNOWN),
        if slot.is(is::END_RST) {
            "the client reset its connection".to_owned()
        } else {
            "the client has closed".to_owned()
        },
    );
    add(
        slot.is(is::FIN_SENT),
        if slot.is(is::FIN_ACKED) {
            "our FIN was acknowledged".to_owned()
        } else {
            "our FIN was sent".to_owned()
        },
    );
    add(slot.is(is::PEER_FIN), "the target has closed".to_owned());
    add(slot.tries & try_bit::GIVEN_UP != 0, "nothing more of the flow is replayed".to_owned());
    for (timer, what) in TIMERS {
        let due_us = slot.deadline(timer);
        add(due_us != NEVER, format!("next: {what} in {:.3} s", due_us.saturating_sub(now_us) as f64 / 1e6));
    }
    facts
}

const TIMERS: [(Timer, &str); 7] = [
    (Timer::Rto, "what is not acknowledged is sent again, or a connection is tried again,"),
    (Timer::Persist, "the closed window is probed"),
    (Timer::Gate, "the waiting turn is looked at again"),
    (Timer::Ack, "the target's data is acknowledged"),
    (Timer::Hole, "the hole in the capture is given up"),
    (Timer::Alive, "the target is asked for a sign of life"),
    (Timer::End, "the session is ended"),
];

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn opening() -> Slot {
        let mut slot = Slot::empty();
        slot.enter(Phase::Opening);
        slot.client = "10.0.0.7:40001".parse::<SocketAddr>().unwrap().into();
        slot.replayed = "198.18.16.9:40001".parse::<SocketAddr>().unwrap().into();
        (slot.rare_mut().backoff, slot.data_us) = (3, 1_000_000);
        slot.arm(Timer::Rto, 9_000_000);
        slot.seal();
        slot
    }

    #[test]
    fn a_session_that_gets_no_answer_says_so() {
        let said = present(opening().as_bytes(), 3, None, 5_000_000).unwrap().unwrap();
        assert_eq!((said.client.to_string(), said.backoff), ("10.0.0.7:40001".to_owned(), 3));
        assert!(said.phase.starts_with("opening"));
        let all = said.facts.join("\n");
        for part in [
            "SYN was captured 4.000 s ago",
            "has not answered the SYN",
            "3 time-outs in a row",
            "tried again, in 4.000 s",
        ] {
            assert!(all.contains(part), "{all}");
        }
    }

    #[test]
    fn a_free_slot_is_no_session_and_a_torn_one_none_that_is_believed() {
        let mut free = Slot::empty();
        free.seal();
        assert_eq!(present(free.as_bytes(), 3, None, 0), Ok(None));
        let mut bytes = opening().as_bytes().to_vec();
        bytes[8] ^= 1;
        assert_eq!(present(&bytes, 3, None, 0), Err(Torn));
        assert_eq!(present(&bytes[1..], 3, None, 0), Err(Torn));
    }
}
