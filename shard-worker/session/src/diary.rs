//! What happened to each session lately, for `tcptwin doctor ADDRESS:PORT`: the last [`STEPS`] steps of those that there are, and of
//! the [`PAST`] that failed last. It lies behind the table's arena, where doctor reads it without a worker's notice.
//!
//! A diary and no truth: nothing is decided by it, no transaction puts it back, and after a worker's death a step may stand in it
//! twice. So a step costs one compare and one store.
//!
//! A page belongs to the session that was born last on it. There are [`PAGES`] at most, for the low bits of a slot's number: a
//! shard with more sessions keeps the diaries of the younger ones, because a page for each would be a quarter more memory.

use flow::named_enum;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::slot::Slot;
use crate::sys::prefetch;
use crate::tally::Count;

named_enum! {
    /// What can happen to a session. The number beside it is told with each; the same several times in a row is one step, its numbers
    /// added up and its time the last one's.
    pub enum Step {
        /// The client's SYN was captured.
        SynCaptured => "syn_captured",
        /// The client was first seen in the middle of its connection.
        Joined => "joined",
        /// Payload bytes of the client, in order.
        Captured => "captured",
        /// The client's FIN.
        ClientFin => "client_fin",
        /// The client's RST.
        ClientRst => "client_rst",
        /// Bytes of a hole in the capture that was given up.
        HoleGivenUp => "hole_given_up",
        /// SYNs sent.
        SynSent => "syn_sent",
        /// The target's SYN-ACK.
        SynAcked => "syn_acked",
        /// Payload bytes sent.
        Sent => "sent",
        /// Segments sent again.
        SentAgain => "sent_again",
        /// FIN sent.
        FinSent => "fin_sent",
        /// RSTs sent.
        RstSent => "rst_sent",
        /// Window and keep-alive probes sent.
        Probed => "probed",
        /// Payload bytes that the target acknowledged, where no answer came with it; none of its FIN.
        Acknowledged => "acknowledged",
        /// Answer bytes of the target.
        Answered => "answered",
        /// The target's FIN.
        TargetFin => "target_fin",
        /// The target's RST, or an ICMP error that refuses its connection.
        TargetRefused => "target_refused",
        /// Time-outs: nothing was acknowledged.
        TimedOut => "timed_out",
        /// Turns that were released although the answer before them was not as long as online.
        Guessed => "guessed",
        /// Turns that were released although the one before them was not answered.
        Unanswered => "unanswered",
        /// The session failed.
        Failed => "failed",
    }
}

/// Steps on a page.
pub(crate) const STEPS: usize = 16;
/// Pages of a shard at most: 2 MiB.
pub(crate) const PAGES: u32 = 16_384;
/// Sessions that failed, and are remembered.
pub(crate) const PAST: usize = 64;

/// Bits of an entry: a step and one, µs, the number.
const STEP_BITS: u32 = 5;
const TIME_BITS: u32 = 35;
const NUMBER_BITS: u32 = 24;
/// Largest number; more is told as this.
pub(crate) const MOST: u32 = (1 << NUMBER_BITS) - 1;
/// A time is known modulo this: 9 hours, and nobody idles for so long.
const TIMES: u64 = 1 << TIME_BITS;

const _: () = assert!(STEP_BITS + TIME_BITS + NUMBER_BITS == u64::BITS && Step::COUNT < 1 << STEP_BITS);

/// One step; zero is none.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
struct Entry(u64);

impl Entry {
    const fn new(now_us: u64, step: Step, number: u32) -> Self {
        let number = if number < MOST { number } else { MOST };
        Self((1 + step as u64) << (TIME_BITS + NUMBER_BITS) | (now_us % TIMES) << NUMBER_BITS | number as u64)
    }

    const fn is(self, step: Step) -> bool {
        self.0 >> (TIME_BITS + NUMBER_BITS) == 1 + step as u64
    }

    const fn number(self) -> u32 {
        self.0 as u32 & MOST
    }

    fn told(self, now_us: u64) -> Option<Told> {
        let step = (self.0 >> (TIME_BITS + NUMBER_BITS)).checked_sub(1)?;
        let ago_us = now_us.wrapping_sub(self.0 >> NUMBER_BITS) % TIMES;
        // Written after `now_us` was read.
        let ago_us = if ago_us > TIMES / 2 { 0 } else { ago_us };
        Some(Told { ago_us, step: *Step::ALL.get(step as usize)?, number: self.number() })
    }
}

/// One step, told at some time after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// How long ago.
    pub ago_us: u64,
    /// What.
    pub step: Step,
    /// See [`Step`].
    pub number: u32,
}

impl Told {
    /// For a person.
    pub fn words(&self) -> String {
        let n = self.number;
        let more = if n >= MOST { " or more" } else { "" };
        let bytes = if n == 1 { "1 byte".to_owned() } else { format!("{n}{more} bytes") };
        let times = if n > 1 { format!(", {n} times") } else { String::new() };
        match self.step {
            Step::SynCaptured => "the client's SYN was captured".to_owned(),
            Step::Joined => "the client was first seen, in the middle of its connection".to_owned(),
            Step::Captured => format!("{bytes} of the client were captured"),
            Step::ClientFin => "the client closed".to_owned(),
            Step::ClientRst => "the client reset its connection".to_owned(),
            Step::HoleGivenUp => format!("{bytes} were missing from the capture and given up"),
            Step::SynSent => format!("SYN sent{times}"),
            Step::SynAcked => "the target's SYN-ACK came".to_owned(),
            Step::Sent => format!("{bytes} sent"),
            Step::SentAgain => format!("a segment was sent again{times}"),
            Step::FinSent => "FIN sent".to_owned(),
            Step::RstSent => "RST sent".to_owned(),
            Step::Probed => format!("the target was probed{times}"),
            Step::Acknowledged if n == 0 => "the target acknowledged the FIN".to_owned(),
            Step::Acknowledged => format!("the target acknowledged {bytes}"),
            Step::Answered => format!("the target answered {bytes}"),
            Step::TargetFin => "the target closed".to_owned(),
            Step::TargetRefused => format!("the target reset or refused the connection{times}"),
            Step::TimedOut => format!("time-out: nothing was acknowledged{times}"),
            Step::Guessed => format!("the next request was let go: the answer seemed to be whole{times}"),
            Step::Unanswered => format!("the next request was let go without an answer{times}"),
            Step::Failed => "it failed".to_owned(),
        }
    }
}

/// A session's diary.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Page {
    last: u32,
    reserved: u32,
    entries: [Entry; STEPS],
}

impl Page {
    #[inline]
    fn add(&mut self, now_us: u64, step: Step, number: u32) {
        let at = self.last as usize % STEPS;
        let last = self.entries[at];
        if last.is(step) {
            self.entries[at] = Entry::new(now_us, step, last.number().saturating_add(number));
        } else {
            let next = (at + 1) % STEPS;
            self.entries[next] = Entry::new(now_us, step, number);
            self.last = next as u32;
        }
    }

    /// Oldest first.
    fn told(&self, now_us: u64) -> Vec<Told> {
        let first = self.last as usize + 1;
        (first..first + STEPS).filter_map(|at| self.entries[at % STEPS].told(now_us)).collect()
    }
}

/// A session that failed.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Past {
    /// When it ended; 0 for none.
    at_us: u64,
    slot: Slot,
    page: Page,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    /// [`FORMAT`] with the number of pages.
    magic: u64,
    /// Sessions that failed so far.
    failed: u64,
    past: [Past; PAST],
}

/// Names the layout; changes with it, and with a slot's.
const FORMAT: u64 = 0x7477_696e_6469_0003 ^ (size_of::<Slot>() as u64) << 32;

/// The diaries of a table's sessions; of one without memory for them, nothing is kept.
#[derive(Default)]
pub struct Diary {
    head: Option<&'static mut Head>,
    /// Of each page: one more than the number of its session. All together, where a core's own cache has them: of many sessions most
    /// have none, and to learn that on the page itself would cost each packet a miss.
    owners: &'static mut [u32],
    pages: &'static mut [Page],
}

impl Diary {
    /// Bytes for a table of so many sessions.
    pub const fn bytes(sessions: u32) -> u64 {
        (size_of::<Head>() + pages(sessions) as usize * (size_of::<u32>() + size_of::<Page>())) as u64
    }

    /// Over memory that is empty, or has what a predecessor wrote. What somebody else wrote there is forgotten.
    ///
    /// Panics when it is smaller than [`Diary::bytes`] or not aligned to eight: the caller made it.
    pub fn over(memory: &'static mut [u8], sessions: u32) -> Self {
        let memory = &mut memory[..Self::bytes(sessions) as usize];
        let magic = FORMAT ^ u64::from(pages(sessions));
        if u64::read_from_prefix(memory).is_ok_and(|(found, _)| found != magic && found != 0) {
            memory.fill(0);
        }
        let (head, rest) = Head::mut_from_prefix(memory).expect("the size was checked");
        head.magic = magic;
        let (owners, rest) = <[u32]>::mut_from_prefix_with_elems(rest, pages(sessions) as usize)
            .expect("the size was checked");
        let pages = <[Page]>::mut_from_bytes(rest).expect("the size was checked");
        Self { head: Some(head), owners, pages }
    }

    /// A session is born.
    pub(crate) fn begin(&mut self, id: u32, now_us: u64, step: Step) {
        let at = self.page_of(id);
        if let (Some(owner), Some(page)) = (self.owners.get_mut(at), self.pages.get_mut(at)) {
            *owner = id + 1;
            *page = Page::new_zeroed();
            page.add(now_us, step, 1);
        }
    }

    /// Asks for its page, if it has one.
    pub(crate) fn ask_for(&self, id: u32) {
        let at = self.page_of(id);
        if self.owners.get(at) == Some(&(id + 1)) {
            prefetch(&self.pages[at]);
        }
    }

    fn page_of(&self, id: u32) -> usize {
        id as usize & self.owners.len().wrapping_sub(1)
    }

    /// Something happens to it. Never inline: where it is called registers are scarce, and what was kept in them costs more than a
    /// call (106 instructions a turn, of 5,400).
    #[inline(never)]
    pub(crate) fn note(&mut self, id: u32, now_us: u64, step: Step, number: u32) {
        let at = self.page_of(id);
        if self.owners.get(at) == Some(&(id + 1)) {
            self.pages[at].add(now_us, step, number);
        }
    }

    /// It is over: one that failed is remembered.
    pub(crate) fn end(&mut self, id: u32, now_us: u64, slot: &Slot) {
        use Count::{FailedStopped, SessionsClientReset, SessionsCompleted};
        let Some(why) = slot.rare().failure.checked_sub(1) else { return };
        if [FailedStopped, SessionsClientReset, SessionsCompleted].map(|count| count as u8).contains(&why) {
            return;
        }
        let Some(head) = &mut self.head else { return };
        let past = &mut head.past[head.failed as usize % PAST];
        past.at_us = now_us;
        past.slot = *slot;
        past.slot.seal();
        let at = id as usize & self.owners.len().wrapping_sub(1);
        past.page = match self.owners.get(at) == Some(&(id + 1)) {
            true => self.pages[at],
            false => Page::new_zeroed(),
        };
        head.failed += 1;
    }
}

const fn pages(sessions: u32) -> u32 {
    // Two at least: pages are aligned to eight bytes behind their owners.
    let all = if sessions < 2 { 2 } else { sessions.next_power_of_two() };
    if all < PAGES { all } else { PAGES }
}

/// A copy of the diaries of a table that somebody else works on: believes nothing.
pub struct Diaries {
    head: Box<Head>,
    owners: Vec<u32>,
    pages: Vec<Page>,
}

impl Diaries {
    /// From their bytes; none where no worker of this program has used them.
    pub fn of(bytes: &[u8], sessions: u32) -> Option<Self> {
        let (head, rest) = Head::read_from_prefix(bytes).ok()?;
        let count = pages(sessions) as usize;
        let (owners, rest) = rest.split_at_checked(count * size_of::<u32>())?;
        let owners =
            owners.chunks_exact(size_of::<u32>()).filter_map(|owner| u32::read_from_bytes(owner).ok());
        let whole = rest.chunks_exact(size_of::<Page>()).take(count);
        let pages: Vec<Page> = whole.filter_map(|page| Page::read_from_bytes(page).ok()).collect();
        let is_whole = head.magic == FORMAT ^ count as u64 && pages.len() == count;
        is_whole.then(|| Self { head: Box::new(head), owners: owners.collect(), pages })
    }

    /// The last steps of the session in a slot, oldest first; none where its page is a younger one's.
    pub(crate) fn of_slot(&self, id: u32, now_us: u64) -> Vec<Told> {
        let at = id as usize & (self.pages.len() - 1);
        if self.owners[at] == id + 1 { self.pages[at].told(now_us) } else { Vec::new() }
    }

    /// Those that failed last, the latest first: the slot, how long ago it ended, its last steps.
    pub(crate) fn past(&self, now_us: u64) -> impl Iterator<Item = (&Slot, u64, Vec<Told>)> {
        let last = self.head.failed as usize;
        (1..=PAST.min(last)).map(move |back| {
            let past = &self.head.past[last.wrapping_sub(back) % PAST];
            (&past.slot, now_us.saturating_sub(past.at_us), past.page.told(now_us))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(sessions: u32) -> &'static mut [u8] {
        vec![0u64; Diary::bytes(sessions).div_ceil(8) as usize].leak().as_mut_bytes()
    }

    fn seen(diary: &Diary, sessions: u32) -> Diaries {
        let head = diary.head.as_ref().unwrap().as_bytes();
        Diaries::of(&[head, diary.owners.as_bytes(), diary.pages.as_bytes()].concat(), sessions).unwrap()
    }

    fn steps(diary: &Diary, id: u32, now_us: u64) -> Vec<(Step, u32, u64)> {
        let told = seen(diary, 8).of_slot(id, now_us);
        told.into_iter().map(|told| (told.step, told.number, told.ago_us)).collect()
    }

    #[test]
    fn steps_are_told_in_order_and_the_same_in_a_row_as_one() {
        let mut diary = Diary::over(memory(8), 8);
        diary.begin(3, 1_000, Step::SynCaptured);
        diary.note(3, 2_000, Step::Answered, 1_460);
        diary.note(3, 2_500, Step::Answered, 40);
        assert_eq!(steps(&diary, 3, 3_000), [(Step::SynCaptured, 1, 2_000), (Step::Answered, 1_500, 500)]);
        diary.note(3, 2_600, Step::Answered, u32::MAX);
        assert_eq!(steps(&diary, 3, 2_600)[1], (Step::Answered, MOST, 0));
        for n in 0..100 {
            diary.note(3, 3_000 + n, if n % 2 == 0 { Step::Sent } else { Step::Answered }, n as u32);
        }
        let last = steps(&diary, 3, 3_099);
        assert_eq!((last.len(), last[0], last[15]), (16, (Step::Sent, 84, 15), (Step::Answered, 99, 0)));
    }

    #[test]
    fn a_page_is_of_the_session_born_last_on_it() {
        let mut diary = Diary::over(memory(8), 8);
        diary.begin(3, 1, Step::SynCaptured);
        diary.begin(11, 2, Step::Joined);
        diary.note(3, 3, Step::Sent, 1);
        assert_eq!((steps(&diary, 3, 4), steps(&diary, 11, 4)), (vec![], vec![(Step::Joined, 1, 2)]));
        // Without memory nothing is kept.
        let mut none = Diary::default();
        none.begin(0, 1, Step::Joined);
        none.note(0, 1, Step::Sent, 1);
    }

    #[test]
    fn those_that_failed_are_remembered_over_a_death_and_the_others_not() {
        let place = memory(8);
        let again = memory(8);
        let mut diary = Diary::over(place, 8);
        let mut slot = Slot::empty();
        for (id, failure) in
            [(0, 0), (1, 1 + Count::FailedRefused as u8), (2, 1 + Count::FailedStopped as u8)]
        {
            slot.rare_mut().failure = failure;
            diary.begin(id, 10, Step::SynCaptured);
            diary.end(id, 20, &slot);
        }
        let of = |diary: &Diary| {
            let all = seen(diary, 8);
            all.past(25).map(|(slot, ago, steps)| (slot.rare().failure, ago, steps.len())).collect::<Vec<_>>()
        };
        assert_eq!(of(&diary), [(1 + Count::FailedRefused as u8, 5, 1)]);
        for n in 0..PAST as u64 {
            slot.rare_mut().failure = 1 + Count::FailedTimedOut as u8;
            diary.end(7, 30 + n, &slot);
        }
        assert_eq!(of(&diary).len(), PAST);
        assert!(of(&diary).iter().all(|one| one.0 == 1 + Count::FailedTimedOut as u8));
        // What a successor finds is its predecessor's, or nobody's.
        let head = diary.head.unwrap();
        again.copy_from_slice(&[head.as_bytes(), diary.owners.as_bytes(), diary.pages.as_bytes()].concat());
        let after = Diary::over(again, 8);
        assert_eq!(of(&after).len(), PAST);
        let strange = memory(8);
        strange.fill(0xa5);
        let after = Diary::over(strange, 8);
        assert!(of(&after).is_empty() && steps(&after, 3, 9).is_empty());
    }
}
