//! What one transaction of a shard moves together: the session table, what it emitted, the counters, and how far the inputs
//! are taken (DESIGN 6).
//!
//! | step | a worker that dies after it |
//! |---|---|
//! | the machine changes slots, each one's image noted first | never took the batch: its successor puts the images back |
//! | outputs lie beyond the published tail, values in the journal | the same |
//! | the journal is committed | took it: its successor stores the values again |
//! | outputs published, inputs freed, images and journal forgotten | took it |
//!
//! A batch is one transaction, unless the undo log or payload memory wants one in between.
//!
//! **Pause.** While the control word says pause, sessions that exist go on, because cutting them would make failures that the
//! target is not to blame for; flows that the machine does not know are not begun. It is told to sample everything out,
//! and what it refuses for that reason is counted as wanted and dropped as `paused`, with the copies that the flow would
//! have had. A flow that outlives the pause is joined like any flow older than the capture.
//!
//! **Shed.** While the run takes more than it may (`--budget-cpu`), flows above a draw are left out in the same way, as `shed`, and
//! if need be those that exist are ended (`session/src/shedding.rs`).
//!
//! **A file waits.** See [`Shard::is_full`] and [`Table::should_wait`]: offline nothing is dropped for want of room.
//!
//! **Datagrams.** One is copied as often as its flow wants while there is room in the inject ring; when that ends, the transaction
//! does, with the record still at the head of its ring, and how many copies are sent in two counters beside the others. So
//! its successor, or the next step, goes on with the next copy.
//!
//! **What a worker dies of.** Before each record, and before timers and output, the journal is told what is worked on. When
//! a worker has died of the same twice, the supervisor lets its successor leave that out: the record is turned away as
//! `quarantined`, and its session, which may be what is broken, is lost without another look at it.

use flow::{Captured, sample};
use session::{Count, Datagrams, Diary, Held, Order, SLICE, Table};
use shm::{Control, Doorbell, Item, Journal, Link, MILLION, Region, Role, Word};
use topology::Plan;

use crate::config::{datagrams, diary_at, machine_config, table_bytes};
use crate::counters::{Gauge, Publisher, WorkerCount};
use crate::inbox::{Found, Inbox, Taken};
use crate::outbox::{Book, Outbox};
use crate::pace::Pace;

/// Pumps of one step: 1,024 records, so that input waits a millisecond at most behind a long backlog of output.
const PUMPS: usize = 64;

/// The parts of a shard that a transaction moves.
pub(crate) struct Shard {
    number: u16,
    injector: &'static Doorbell,
    journal: Journal,
    outbox: Outbox,
    pub(crate) table: Table,
    datagrams: Option<Datagrams>,
    /// The captured record of which copies are sent, and how many.
    begun: Option<(u64, u32)>,
    pub(crate) publisher: Publisher,
    left_out: Item,
    known: Known,
    /// A first step was made.
    has_begun: bool,
    /// The source is a file, which can wait.
    patient: bool,
    /// Bytes of output that may wait for the injector, where it keeps to a rate: what waits there is too late to be thought over,
    /// and makes answers look slow.
    waiting_bytes: Option<u64>,
    pace: Pace,
    region: &'static Region,
}

/// Time for which output may wait for a rate: shorter than the shortest retransmission.
const WAITS_FOR_MS: u64 = 20;
/// A small packet in a ring, bytes.
const SMALL_RECORD: u64 = 256;
/// However slow the rate is, bytes: two full packets.
const LEAST_WAITING: u64 = 4_096;

/// What of the output of one shard may wait for the injector.
fn waiting_bytes(plan: &Plan) -> Option<u64> {
    let bits = plan.restraint.bits.map(|bits| bits / 8 * WAITS_FOR_MS / 1_000);
    let packets = plan.restraint.packets.map(|packets| packets * SMALL_RECORD * WAITS_FOR_MS / 1_000);
    let most = bits.into_iter().chain(packets).min()?;
    Some((most / u64::from(plan.shards.max(1))).max(LEAST_WAITING))
}

/// Absolute values of other parts as last published.
#[derive(Default)]
struct Known {
    faults: u64,
    refused: u64,
}

impl Shard {
    /// Takes over a shard of a region in whatever state it was left, and its inputs.
    pub(crate) fn attach(region: &'static Region, plan: &Plan, number: u16) -> (Self, Inbox) {
        let mut journal = region.journal(Role::Shard(number));
        let mut inbox = Inbox::new(
            number,
            region.consumer(Link::Capture(number)),
            region.consumer(Link::Returns(number)),
        );
        let left_out = journal.left_out();
        let found = inbox.take().find(left_out);
        let condemned = move |held: &Held<'_>| match (&found, left_out) {
            (Some(Found::Captured(segment)), _) => held.is_of(segment),
            (Some(Found::Returned(header)), _) => held.is_answered_by(header),
            (None, Item::Session(id)) => held.id == id,
            (None, _) => false,
        };
        let repeated = journal.repeated();
        let (arena, diary) = region.arena(number).split_at_mut(diary_at(plan) as usize);
        let (arena, rest) = arena.split_at_mut(table_bytes(plan) as usize);
        let mut table = Table::successor(arena, machine_config(plan, number), repeated, condemned);
        table.keep_diary(Diary::over(diary, plan.limits.sessions_per_shard));
        if left_out != Item::Nothing {
            // Which is in any slot, and the order is given once.
            while !table.is_full() && table.walk(SLICE) {}
        }
        let datagrams = datagrams(rest, plan, number);
        journal.done();
        let mut publisher = Publisher::new(region.counters(Role::Shard(number)), table.tally());
        publisher.add(WorkerCount::Repeated, repeated.into());
        let injector = region.doorbell(Role::Injector);
        let book = |per_s| Book::new(region.control(), per_s, plan.trace.is_some());
        let book = plan.restraint.connections.map(book);
        let outbox = Outbox::new(region.producer(Link::Inject(number)), book);
        let copies = publisher.gauge(Gauge::DatagramCopies) as u32;
        let begun = (copies > 0).then(|| (publisher.gauge(Gauge::DatagramBegun), copies));
        let mut shard = Self {
            number,
            injector,
            journal,
            outbox,
            table,
            datagrams,
            begun,
            publisher,
            left_out,
            known: Known::default(),
            has_begun: false,
            patient: plan.trace.is_some(),
            waiting_bytes: waiting_bytes(plan),
            pace: Pace::default(),
            region,
        };
        if matches!(left_out, Item::Session(_)) {
            shard.has_left_out();
        }
        shard.commit(shm::monotonic_us(), None, true);
        // Published by a predecessor that died before it could say so.
        shard.injector.ring();
        (shard, inbox)
    }

    /// Whether whatever a step emits finds room.
    pub(crate) fn has_room(&mut self) -> bool {
        self.outbox.has_room()
    }

    /// Whether output has to wait because of a rate.
    pub(crate) fn is_held_back(&self) -> bool {
        self.waiting_bytes.is_some_and(|bytes| self.region.link_depth(Link::Inject(self.number)) > bytes)
    }

    /// Whether captured segments wait where they are, because sessions hold half of the memory there is.
    ///
    /// Nobody waits for ever. What is held moves without any more input: a turn leaves when its gate opens or its longest wait
    /// is over (REPLAY, rows 5 to 7), a request that is not whole yet is sent as far as the window goes, what stands behind
    /// a hole is given up once the file has stood still for a second, and a target that takes nothing times its sessions
    /// out. Answers are taken all the while, so each of these frees chunks until there is room again.
    pub(crate) fn is_full(&self) -> bool {
        self.patient && (self.table.is_crowded() || self.is_held_back())
    }

    /// Gives a batch to the machine: answers first, so that the turns they open go out with what was captured meanwhile.
    pub(crate) fn feed(&mut self, now_us: u64, taken: &mut Taken<'_>, control: &Control) {
        let datagrams = self.datagrams.as_ref();
        taken.foresee(&mut self.table, |head| {
            datagrams.is_some_and(|datagrams| datagrams.concerns(head.mapping))
        });
        while let Some((name, header)) = taken.next_returned() {
            self.journal.at(name);
            match header {
                _ if name == self.left_out => self.has_left_out(),
                Some(header) if Datagrams::is_answer(&header) => match &mut self.datagrams {
                    Some(datagrams) => datagrams.returned(now_us, &header),
                    None => self.publisher.add(WorkerCount::MalformedReturned, 1),
                },
                Some(header) => self.table.returned(now_us, &header),
                None => self.publisher.add(WorkerCount::MalformedReturned, 1),
            }
            taken.returned_is_done();
            if self.table.is_full() {
                self.commit(now_us, Some(taken), false);
            }
        }
        let ordered = Ordered {
            // A file's reader pauses by itself, and what it had read before is not to be lost.
            paused: control.paused() && !self.patient,
            percent_ppm: control.percent_ppm(),
            copies_milli: control.copies_milli(),
            // A file waits instead.
            admitted_ppm: if self.patient { MILLION } else { control.admitted_ppm() },
            kept_ppm: if self.patient { MILLION } else { control.kept_ppm() },
        };
        while let Some((name, segment)) = taken.next_captured() {
            self.journal.at(name);
            if let Some((head, payload)) = &segment
                && let Some(datagrams) = self.datagrams.as_ref()
                && datagrams.concerns(head.mapping)
            {
                if !self.datagram(now_us, name, head, payload, &ordered) {
                    break;
                }
                taken.captured_is_done();
                continue;
            }
            if let Some((segment, payload)) = &segment
                && self.patient
                && self.table.should_wait(segment, payload.len(), ordered.percent_ppm, ordered.copies_milli)
            {
                break;
            }
            let admitted =
                segment.is_none_or(|(segment, payload)| self.admits(now_us, &segment, payload, &ordered));
            if !admitted {
                self.commit(now_us, Some(taken), false);
                self.journal.at(name);
            }
            match taken.next_captured() {
                Some((_, Some((segment, payload)))) if name == self.left_out => {
                    let Ordered { percent_ppm, copies_milli, .. } = ordered;
                    let reason = flow::Drop::Quarantined;
                    self.table.turn_away(&segment, payload.len(), reason, percent_ppm, copies_milli);
                    self.has_left_out();
                }
                Some((_, Some((segment, payload)))) => self.captured(now_us, &segment, payload, &ordered),
                _ => self.publisher.add(WorkerCount::MalformedCaptured, 1),
            }
            taken.captured_is_done();
        }
        self.journal.at(Item::Nothing);
    }

    fn admits(&mut self, now_us: u64, segment: &Captured, payload: &[u8], ordered: &Ordered) -> bool {
        self.table.admits(now_us, segment, payload.len(), ordered.percent(), ordered.copies_milli)
    }

    /// Sends a datagram's copies; false when there is no room for all of them yet.
    fn datagram(
        &mut self,
        now_us: u64,
        name: Item,
        segment: &Captured,
        payload: &[u8],
        ordered: &Ordered,
    ) -> bool {
        let Some(datagrams) = &mut self.datagrams else { return true };
        let &Ordered { paused, percent_ppm, copies_milli, admitted_ppm, kept_ppm } = ordered;
        let order = Order { paused, percent_ppm, copies_milli, admitted_ppm, kept_ppm };
        let Item::Captured(position) = name else { return true };
        let done = self.begun.take().filter(|(at, _)| *at == position).map_or(0, |(_, copies)| copies);
        if name == self.left_out {
            datagrams.turn_away(segment, flow::Drop::Quarantined, &order, done);
            self.has_left_out();
            return true;
        }
        if !self.patient
            && self
                .waiting_bytes
                .is_some_and(|bytes| self.region.link_depth(Link::Inject(self.number)) > bytes)
        {
            // A datagram that waits is of no use to anybody.
            datagrams.turn_away(segment, flow::Drop::Shed, &order, done);
            return true;
        }
        let copies = datagrams.copies(segment, &order, done > 0);
        for copy in done..copies {
            if !self.outbox.has_room() {
                // At least one went: a step begins with room for it.
                self.begun = Some((position, copy));
                return false;
            }
            datagrams.send(now_us, segment, payload, [copy, copies], &mut self.outbox);
        }
        true
    }

    /// No new flow is begun any more.
    pub(crate) fn drain(&mut self, now_us: u64) {
        self.table.drain(now_us);
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.drain();
        }
    }

    fn captured(&mut self, now_us: u64, segment: &Captured, payload: &[u8], ordered: &Ordered) {
        let before = self.table.tally().count(Count::SampledOut);
        self.table.captured(now_us, segment, payload, ordered.percent(), ordered.copies_milli);
        if ordered.leaves_out() && self.table.tally().count(Count::SampledOut) != before {
            // How many sessions the flow would have, had it been begun; the machine asks in the same way.
            let (seed, copies_milli) = (self.table.config().seeds.sample, ordered.copies_milli);
            let (client, server) = (&segment.client, &segment.server);
            let copies = sample::copies(seed, client, server, 0, ordered.percent_ppm, copies_milli);
            self.publisher.leave_out(ordered.paused, copies, payload.len());
        }
    }

    /// Ends flows that there is no room for; true when more are to be looked at.
    pub(crate) fn shed(&mut self, now_us: u64, control: &Control) -> bool {
        if self.patient {
            return false;
        }
        self.journal.at(Item::Sessions);
        self.table.shed(now_us, control.kept_ppm())
    }

    /// Whether the end may come: nothing is held, and of a file, which nobody waits to see stopped, the last answers are in.
    pub(crate) fn is_through(&mut self, now_us: u64) -> bool {
        self.table.is_quiet() && (!self.patient || self.table.has_last_answers(now_us))
    }

    /// Looks at some of what a predecessor left, if one did; true while there is more. Not in the first step, for whose input
    /// somebody has waited since the predecessor's death: the first pages of an arena that this process touches cost most.
    pub(crate) fn walk(&mut self) -> bool {
        let walks = self.table.is_walking();
        if walks && std::mem::replace(&mut self.has_begun, true) {
            self.journal.at(Item::Sessions);
            self.table.walk(SLICE);
        }
        walks
    }

    /// Runs the timers that are due; true if any were.
    pub(crate) fn tick(&mut self, now_us: u64) -> bool {
        let due = self.table.is_due(now_us);
        if due {
            self.journal.at(Item::Sessions);
            self.table.tick(now_us);
        }
        let expired = self.datagrams.as_mut().is_some_and(|datagrams| datagrams.tick(now_us));
        due || expired
    }

    /// Whether sessions were just found to fall behind for want of answers alone; see [`Pace`]. Where a rate is kept to, they do
    /// for want of that.
    pub(crate) fn is_behind(&mut self, now_us: u64) -> bool {
        let count = |count| self.table.tally().count(count);
        self.pace.is_behind(now_us, count(Count::TurnsAnswered), count(Count::TurnsAwaited))
            && self.waiting_bytes.is_none()
    }

    /// Lets the machine emit; true when it has more to say than there is room for.
    pub(crate) fn pump(&mut self, now_us: u64) -> bool {
        self.journal.at(Item::Sessions);
        let mut more = true;
        for _ in 0..PUMPS {
            more = self.table.pump(now_us, &mut self.outbox);
            if !more || self.table.is_full() || !self.outbox.has_room() {
                break;
            }
        }
        more
    }

    /// Ends the transaction; true if it sent anything. `all`: late figures too.
    pub(crate) fn commit(&mut self, now_us: u64, mut taken: Option<&mut Taken<'_>>, all: bool) -> bool {
        self.publisher.raise(WorkerCount::OutboxRefused, &mut self.known.refused, self.outbox.refused());
        if let Some(datagrams) = &mut self.datagrams {
            self.publisher.note_datagrams(datagrams, self.begun);
        }
        let counted = self.publisher.note(now_us, self.table.tally(), all);
        if !counted && taken.is_none() && !self.table.has_changed() && !self.outbox.is_staged() {
            self.journal.at(Item::Nothing);
            return false;
        }
        self.table.seal();
        self.publisher.write(&mut self.journal);
        self.journal.put(Word::Tail(Link::Inject(self.number)), self.outbox.staged());
        if let Some(taken) = &taken {
            taken.note(&mut self.journal);
        }
        self.journal.commit();
        let sent = self.outbox.publish();
        if let Some(taken) = &mut taken {
            taken.free();
        }
        self.table.conclude();
        self.journal.done();
        if sent {
            self.injector.ring();
        }
        sent
    }

    /// The last word: nothing is taken or emitted any more.
    pub(crate) fn last(&mut self, now_us: u64) {
        self.commit(now_us, None, true);
    }

    /// Counts what the inputs' rings found wrong, in all.
    pub(crate) fn note_faults(&mut self, faults: u64) {
        self.publisher.raise(WorkerCount::RingFaults, &mut self.known.faults, faults);
    }

    fn has_left_out(&mut self) {
        self.left_out = Item::Nothing;
        self.journal.has_left_out();
        self.publisher.add(WorkerCount::LeftOut, 1);
    }
}

/// What the control words say, once a batch.
struct Ordered {
    paused: bool,
    percent_ppm: u32,
    copies_milli: u32,
    admitted_ppm: u32,
    kept_ppm: u32,
}

impl Ordered {
    /// While paused, flows that are not known are sampled out; while there is no room for them, some.
    fn percent(&self) -> u32 {
        if self.paused { 0 } else { self.percent_ppm.min(self.admitted_ppm) }
    }

    /// Whether flows are sampled out that are wanted.
    fn leaves_out(&self) -> bool {
        self.percent() < self.percent_ppm
    }
}
