//! Where each value stands in a shard's block of counters, and how a tally gets there.
//!
//! ```text
//! session::Count | segments and bytes of each flow::Drop | Gauge | WorkerCount | histogram and maximum of each Latency | targets
//! | session::DatagramCount | copies and bytes of datagrams for each flow::Drop
//! ```
//! Counters grow by what the tally grew, so a restarted worker's fresh tally continues its predecessor's values; gauges are
//! set. Histograms are published at most every 100 ms, everything else with each batch, as a part of its transaction.

use flow::{Drop, named_enum};
use session::histogram::BUCKETS;
use session::tally::Dropped;
use session::{Count, DatagramCount, Datagrams, Health, Histogram, Tally};
use shm::{Counters, Journal, Word};
use topology::plan::MAX_TARGETS;

named_enum! {
    /// Values that fall as well as rise.
    pub enum Gauge {
        /// Sessions that exist.
        Open => "open",
        /// Ledger bytes held, or sent and not acknowledged.
        InFlight => "in_flight_bytes",
        /// Flows of datagrams that exist, one for each copy.
        DatagramFlows => "datagram_flows",
        /// Copies of a datagram that are sent while others still wait for room.
        DatagramCopies => "datagram_copies_sent",
        /// Where its record stands in the capture ring.
        DatagramBegun => "datagram_begun_at",
        /// When the last turn was answered, CLOCK_MONOTONIC microseconds.
        Answered => "answered_at_us",
    }
}

named_enum! {
    /// What the worker itself counts, beside its machine.
    pub enum WorkerCount {
        /// Steps that took input or sent output.
        Batches => "batches",
        /// Captured records whose lengths disagree.
        MalformedCaptured => "malformed_captured",
        /// Returned records of a wrong length.
        MalformedReturned => "malformed_returned",
        /// Steps that took no input because the inject ring had no room for its consequences.
        CreditWaits => "credit_waits",
        /// Times that an input ring's bytes made no sense and all that was published in it was skipped.
        RingFaults => "ring_faults",
        /// Records that the outbox refused: always 0, or a bug.
        OutboxRefused => "outbox_refused",
        /// After a crash: bytes found in the slots that were not counted as wanted; counted as wanted now. Always 0, or a bug.
        SettledWanted => "settled_wanted_bytes",
        /// After a crash: bytes counted as wanted and found nowhere, although no slot was lost; dropped as `worker_lost` now.
        /// Always 0, or a bug.
        SettledLost => "settled_lost_bytes",
        /// Starts that found a transaction committed and made it public again.
        Repeated => "transactions_repeated",
        /// Records that were left out because the worker had died of them twice.
        LeftOut => "records_left_out",
        /// Flows of datagrams ever opened, one for each copy.
        DatagramFlowsOpened => "datagram_flows_opened",
    }
}

named_enum! {
    /// Histograms, microseconds.
    pub enum Latency {
        /// From the capture of a piece to its first emission.
        Lag => "lag",
        /// From the last byte of a turn to the first byte of its answer.
        FirstByte => "target_first_byte",
        /// From the capture of a turn's first byte to the moment its gate opened.
        TurnWait => "turn_wait",
        /// From the last byte of a turn to the first byte of its answer online, as a file has it.
        OnlineFirstByte => "online_first_byte",
    }
}

const DROPS: usize = Count::COUNT;
const GAUGES: usize = DROPS + 2 * Drop::COUNT;
const WORKER: usize = GAUGES + Gauge::COUNT;
const HISTOGRAMS: usize = WORKER + WorkerCount::COUNT;
/// One histogram: its buckets, then its maximum.
const HISTOGRAM: usize = BUCKETS + 1;

const TARGETS: usize = HISTOGRAMS + Latency::COUNT * HISTOGRAM;

const DATAGRAMS: usize = TARGETS + MAX_TARGETS;
const DATAGRAM_DROPS: usize = DATAGRAMS + DatagramCount::COUNT;

const _: () = assert!(DATAGRAM_DROPS + 2 * Drop::COUNT <= shm::COUNTERS_PER_ROLE);

/// Index of a machine's counter.
pub const fn offset_count(count: Count) -> usize {
    count.index()
}

/// Index of the number of segments dropped under a reason.
pub const fn offset_dropped_segments(reason: Drop) -> usize {
    DROPS + 2 * reason.index()
}

/// Index of the payload bytes dropped under a reason.
pub const fn offset_dropped_bytes(reason: Drop) -> usize {
    DROPS + 2 * reason.index() + 1
}

/// Index of a gauge.
pub const fn offset_gauge(gauge: Gauge) -> usize {
    GAUGES + gauge.index()
}

/// Index of one of the worker's own counters.
pub const fn offset_worker(count: WorkerCount) -> usize {
    WORKER + count.index()
}

/// Index of the first of a histogram's [`BUCKETS`] counters.
pub const fn offset_histogram(latency: Latency) -> usize {
    HISTOGRAMS + latency.index() * HISTOGRAM
}

/// Index of a histogram's largest sample.
pub const fn offset_histogram_max(latency: Latency) -> usize {
    offset_histogram(latency) + BUCKETS
}

/// Index of a target's health, see [`health`].
pub const fn offset_target(target: usize) -> usize {
    assert!(target < MAX_TARGETS, "a plan has no more targets");
    TARGETS + target
}

/// Index of a counter of datagrams.
pub const fn offset_datagrams(count: DatagramCount) -> usize {
    DATAGRAMS + count.index()
}

/// Index of the copies of datagrams dropped under a reason; their payload bytes stand behind it.
pub const fn offset_datagrams_dropped(reason: Drop) -> usize {
    DATAGRAM_DROPS + 2 * reason.index()
}

/// A target's health out of its counter.
pub const fn health(counter: u64) -> Health {
    Health { sick: counter & 1 != 0, trips: counter >> 1 }
}

/// Captured bytes that were left out under a reason, while the machine took them for sampled out.
#[derive(Clone, Copy, Debug, Default)]
struct LeftOut {
    segments: u64,
    wanted_segments: u64,
    wanted_bytes: u64,
}

/// Publishes tallies into the shard's block, by way of the journal.
pub(crate) struct Publisher {
    counters: Counters,
    /// What the block will hold; differs from it in `changed` alone.
    totals: Box<[u64; shm::COUNTERS_PER_ROLE]>,
    changed: Vec<u16>,
    counts: [u64; Count::COUNT],
    dropped: [Dropped; Drop::COUNT],
    /// As `paused`, and as `shed`.
    left_out: [LeftOut; LEFT_OUT.len()],
    latencies: [Histogram; Latency::COUNT],
    latencies_us: u64,
    /// What predecessors had in flight, and what of it nobody knows about, as published last.
    inherited: u64,
    unexplained: u64,
    /// Each target: the trips that predecessors have counted, and what was published last.
    targets: Vec<(u64, Option<Health>)>,
}

/// Reasons under which flows are left out that the machine is told to sample out.
const LEFT_OUT: [Drop; 2] = [Drop::Paused, Drop::Shed];
/// Histograms are published this often at most.
const HISTOGRAMS_US: u64 = 100_000;

impl Publisher {
    /// Over the shard's block. Settles what a crashed predecessor left uncounted, so that the ledger is exact again.
    pub(crate) fn new(counters: Counters, fresh: &Tally) -> Self {
        let mut publisher = Self {
            totals: Box::new(std::array::from_fn(|index| counters.get(index))),
            changed: Vec::with_capacity(shm::COUNTERS_PER_ROLE),
            counters,
            counts: [0; Count::COUNT],
            dropped: [Dropped::default(); Drop::COUNT],
            left_out: [LeftOut::default(); LEFT_OUT.len()],
            latencies: std::array::from_fn(|_| Histogram::default()),
            latencies_us: 0,
            inherited: fresh.inherited,
            unexplained: 0,
            targets: Vec::new(),
        };
        let known = |target| health(publisher.totals[offset_target(target)]).trips;
        publisher.targets = (0..fresh.targets.len()).map(|target| (known(target), None)).collect();
        publisher.settle(fresh);
        publisher
    }

    /// One more of the worker's own counts.
    pub(crate) fn add(&mut self, count: WorkerCount, n: u64) {
        self.grow(offset_worker(count), n);
    }

    fn grow(&mut self, index: usize, n: u64) {
        self.set(index, self.totals[index].wrapping_add(n));
    }

    fn set(&mut self, index: usize, value: u64) {
        let total = &mut self.totals[index];
        if value != *total {
            if *total == self.counters.get(index) {
                self.changed.push(index as u16);
            }
            *total = value;
        }
    }

    /// An absolute value of one of the worker's own counts, kept elsewhere in this process.
    pub(crate) fn raise(&mut self, count: WorkerCount, known: &mut u64, now: u64) {
        self.add(count, now - *known);
        *known = now;
    }

    /// A segment of a flow that is not begun although it is wanted; it would have gone to `copies` sessions.
    pub(crate) fn leave_out(&mut self, paused: bool, copies: u32, payload_bytes: usize) {
        if copies > 0 {
            let left_out = &mut self.left_out[usize::from(!paused)];
            left_out.segments += 1;
            left_out.wanted_segments += u64::from(copies);
            left_out.wanted_bytes += u64::from(copies) * payload_bytes as u64;
        }
    }

    /// A gauge as it was published last.
    pub(crate) fn gauge(&self, gauge: Gauge) -> u64 {
        self.totals[offset_gauge(gauge)]
    }

    /// Notes what datagrams came to, and of which record how many copies are sent.
    pub(crate) fn note_datagrams(&mut self, datagrams: &mut Datagrams, begun: Option<(u64, u32)>) {
        for (count, n) in DatagramCount::ALL.iter().zip(datagrams.take_counts()) {
            self.grow(offset_datagrams(*count), n);
        }
        for (reason, (copies, bytes)) in Drop::ALL.iter().zip(datagrams.take_dropped()) {
            self.grow(offset_datagrams_dropped(*reason), copies);
            self.grow(offset_datagrams_dropped(*reason) + 1, bytes);
        }
        self.set(offset_worker(WorkerCount::DatagramFlowsOpened), datagrams.opened());
        self.set(offset_gauge(Gauge::DatagramFlows), datagrams.open_flows());
        let (position, copies) = begun.unwrap_or((0, 0));
        self.set(offset_gauge(Gauge::DatagramCopies), copies.into());
        self.set(offset_gauge(Gauge::DatagramBegun), position);
    }

    /// Notes what changed; true if anything did. Histograms only when it is time for them, or `all` is asked for.
    pub(crate) fn note(&mut self, now_us: u64, tally: &Tally, all: bool) -> bool {
        self.note_counts(tally);
        for (target, &now) in tally.targets.iter().enumerate() {
            let (before, known) = self.targets[target];
            if known != Some(now) {
                self.targets[target].1 = Some(now);
                self.set(offset_target(target), (now.trips + before) << 1 | u64::from(now.sick));
            }
        }
        if all || now_us.saturating_sub(self.latencies_us) >= HISTOGRAMS_US {
            self.latencies_us = now_us;
            self.note_latency(Latency::Lag, &tally.lag);
            self.note_latency(Latency::FirstByte, &tally.first_byte);
            self.note_latency(Latency::TurnWait, &tally.turn_wait);
            self.note_latency(Latency::OnlineFirstByte, &tally.online_first_byte);
        }
        !self.changed.is_empty()
    }

    /// Writes it down, to be stored with the commit.
    pub(crate) fn write(&mut self, journal: &mut Journal) {
        for index in self.changed.drain(..).map(usize::from) {
            journal.put(Word::Counter(index), self.totals[index]);
        }
    }

    fn note_counts(&mut self, tally: &Tally) {
        let left_out = std::mem::take(&mut self.left_out);
        for (index, &now) in tally.counts().iter().enumerate() {
            let more = now - std::mem::replace(&mut self.counts[index], now);
            self.grow(index, more);
        }
        for (left_out, reason) in left_out.iter().zip(LEFT_OUT).filter(|(left_out, _)| left_out.segments != 0)
        {
            // What the machine took for sampled out: wrapping, since a counter only grows.
            self.grow(offset_count(Count::SampledOut), left_out.segments.wrapping_neg());
            self.grow(offset_count(Count::Wanted), left_out.wanted_bytes);
            self.grow(offset_dropped_segments(reason), left_out.wanted_segments);
            self.grow(offset_dropped_bytes(reason), left_out.wanted_bytes);
        }
        for &reason in Drop::ALL {
            let now = tally.dropped(reason);
            let known = std::mem::replace(&mut self.dropped[reason.index()], now);
            if now != known {
                self.grow(offset_dropped_segments(reason), now.segments - known.segments);
                self.grow(offset_dropped_bytes(reason), now.payload_bytes - known.payload_bytes);
            }
        }
        let uncounted = tally.inherited - std::mem::replace(&mut self.inherited, tally.inherited);
        self.grow(offset_count(Count::Wanted), uncounted);
        self.add(WorkerCount::SettledWanted, uncounted);
        let lost = tally.unexplained - std::mem::replace(&mut self.unexplained, tally.unexplained);
        self.add(WorkerCount::SettledLost, lost);
        self.set(offset_gauge(Gauge::Open), tally.open);
        self.set(offset_gauge(Gauge::InFlight), tally.in_flight);
        let answered = self.totals[offset_gauge(Gauge::Answered)];
        self.set(offset_gauge(Gauge::Answered), answered.max(tally.answered_us));
    }

    fn note_latency(&mut self, latency: Latency, now: &Histogram) {
        let first = offset_histogram(latency);
        for (bucket, &now) in now.counts().iter().enumerate() {
            let known = self.latencies[latency.index()].counts()[bucket];
            self.grow(first + bucket, now - known);
        }
        let max = offset_histogram_max(latency);
        self.set(max, self.totals[max].max(now.max_us()));
        self.latencies[latency.index()].clone_from(now);
    }

    /// `wanted = delivered + in flight + dropped` holds for what is published and what the slots held at the last commit. Any
    /// difference gets a counter of its own, so that it hides nothing. What the slots turn out not to hold comes later, with
    /// the table's own counts.
    fn settle(&mut self, fresh: &Tally) {
        let wanted = self.totals[offset_count(Count::Wanted)];
        let delivered = self.totals[offset_count(Count::Delivered)];
        let dropped: u64 = Drop::ALL.iter().map(|&reason| self.totals[offset_dropped_bytes(reason)]).sum();
        let found = delivered.wrapping_add(dropped).wrapping_add(fresh.inherited);
        let uncounted = found.saturating_sub(wanted);
        let lost = wanted.saturating_sub(found);
        self.grow(offset_count(Count::Wanted), uncounted);
        self.add(WorkerCount::SettledWanted, uncounted);
        if lost > 0 {
            self.grow(offset_dropped_segments(Drop::WorkerLost), 1);
            self.grow(offset_dropped_bytes(Drop::WorkerLost), lost);
            self.add(WorkerCount::SettledLost, lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_values_share_a_counter() {
        let mut indices: Vec<usize> = Vec::new();
        indices.extend(Count::ALL.iter().map(|&c| offset_count(c)));
        indices.extend(Drop::ALL.iter().map(|&d| offset_dropped_segments(d)));
        indices.extend(Drop::ALL.iter().map(|&d| offset_dropped_bytes(d)));
        indices.extend(Gauge::ALL.iter().map(|&g| offset_gauge(g)));
        indices.extend(WorkerCount::ALL.iter().map(|&w| offset_worker(w)));
        for &latency in Latency::ALL {
            indices.extend(offset_histogram(latency)..offset_histogram(latency) + BUCKETS);
            indices.push(offset_histogram_max(latency));
        }
        indices.extend((0..MAX_TARGETS).map(offset_target));
        indices.extend(DatagramCount::ALL.iter().map(|&c| offset_datagrams(c)));
        indices.extend(Drop::ALL.iter().map(|&d| offset_datagrams_dropped(d)));
        indices.extend(Drop::ALL.iter().map(|&d| offset_datagrams_dropped(d) + 1));
        let count = indices.len();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), count);
    }
}
