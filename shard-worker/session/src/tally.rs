//! The counters of one table: the ledger (REPLAY, "Ledger"), what happened, and how long it took. The shard worker
//! publishes them; all only ever grow, except the gauges.

use flow::{Drop, named_enum};

use crate::histogram::Histogram;

named_enum! {
    /// What is counted, in the order of the counters that a shard publishes.
    pub enum Count {
        /// Captured segments taken from the ring.
        TakenSegments => "taken_segments",
        /// Payload bytes in them.
        TakenBytes => "taken_bytes",
        /// Ledger: captured bytes times copies, after sampling.
        Wanted => "wanted_bytes",
        /// Ledger: acknowledged by a target.
        Delivered => "delivered_bytes",
        /// Bytes in holes, never captured; outside the identity.
        Missed => "missed_bytes",
        /// Holes given up after their time.
        Holes => "holes",
        /// Of these, such as the online server had none of, by its answers in the file: the capture alone has lost the bytes.
        HolesOfCapture => "holes_of_capture",
        /// Flows that came into being, sampled ones only.
        Flows => "flows",
        /// Segments of flows that are sampled out.
        SampledOut => "sampled_out_segments",
        /// Sessions opened (one for each copy).
        SessionsStarted => "sessions_started",
        /// Of these, joined in the middle of a flow.
        SessionsJoined => "sessions_joined",
        /// Sessions that ended in order.
        SessionsCompleted => "sessions_completed",
        /// Sessions whose client reset its connection; also in order.
        SessionsClientReset => "sessions_client_reset",
        /// Sessions that ended because the target refused the connection.
        FailedRefused => "failed_refused",
        /// ... because the target did not answer.
        FailedTimedOut => "failed_timed_out",
        /// ... because the target reset it.
        FailedReset => "failed_reset",
        /// ... because the target closed it while requests remained.
        FailedTargetClosed => "failed_target_closed",
        /// ... at a memory limit.
        FailedMemory => "failed_memory",
        /// ... at a hole in the capture, as was asked for.
        FailedGap => "failed_gap",
        /// ... because no endpoint was free for it.
        FailedExhausted => "failed_endpoints_exhausted",
        /// ... because its four-tuple came back before it had drained.
        FailedSuperseded => "failed_superseded",
        /// ... after too long a silence.
        FailedIdle => "failed_idle",
        /// ... because its client had said nothing but its SYN, and a new one needed the slot.
        FailedHalfOpen => "failed_half_open",
        /// ... at the end of the run.
        FailedStopped => "failed_stopped",
        /// ... because their flows were shed.
        FailedShed => "failed_shed",
        /// ... with a worker.
        FailedWorkerLost => "failed_worker_lost",
        /// Flows refused because the table was full (per copy).
        RefusedTableFull => "refused_table_full",
        /// Sessions that were over and lingered less than they would have, because a new one needed their slot.
        LingeredLess => "lingered_less",
        /// Connections opened towards targets (SYNs, repeats not counted).
        Connections => "connections",
        /// Of these, anew in a session after the target had closed.
        Reconnects => "reconnects",
        /// Of these, because a turn that was partly sent lost the rest to a hole.
        GapReconnects => "gap_reconnects",
        /// Times that a SYN had to wait: its target is sick, reconnects are capped, or connections have a rate.
        ConnectsPaused => "connects_paused",
        /// Times that a target became sick.
        TargetTrips => "target_trips",
        /// Requests that were partly sent and end at a hole, their connection kept.
        GapResyncs => "gap_resyncs",
        /// Further copies and queued sessions that had to take another port than the client's.
        PortShifted => "port_shifted",
        /// Sessions that waited for an older one on the same four-tuple.
        Queued => "queued",
        /// Turns sent.
        TurnsSent => "turns_sent",
        /// Turns that drew an answer (its first byte).
        TurnsAnswered => "turns_answered",
        /// Of those, turns that held back bytes captured 5 ms and more before, and were answered within that time:
        /// how soon an answer is seen decides how fast such a session goes.
        TurnsAwaited => "turns_awaited",
        /// Turns released although the previous answer was not as long as online (rows 4 to 6 with a new deviation).
        TurnsGuessed => "turns_guessed",
        /// Turns released because the previous one drew no answer at all (row 7).
        TurnsUnanswered => "turns_unanswered",
        /// Turns that cannot be an answer to the previous answer: pipelined (row 2).
        TurnsOverlapped => "turns_overlapped",
        /// Turns sent again on a new connection.
        TurnsResent => "turns_resent",
        /// Sessions that stopped waiting for good (row 8).
        Duplex => "duplex_sessions",
        /// Records given to the injector.
        SentRecords => "sent_records",
        /// Payload bytes in them.
        SentBytes => "sent_bytes",
        /// Records with data sent again.
        Retransmitted => "retransmitted_records",
        /// Of these, after a time-out.
        TimeoutRetransmitted => "timeout_retransmitted_records",
        /// Repeated SYNs.
        SynRepeated => "syn_repeated",
        /// Window and keep-alive probes.
        Probes => "probes",
        /// Tail-loss probes.
        TailProbes => "tail_probes",
        /// Pure acknowledgements.
        PureAcks => "pure_acks",
        /// Resets.
        Resets => "resets",
        /// Returned records.
        ReturnedHeaders => "returned_headers",
        /// Returned payload bytes of matched records.
        ReturnedBytes => "returned_bytes",
        /// Returned records that no session knows.
        ReturnedUnknown => "returned_unknown",
        /// Returned records that carried nothing new.
        ReturnedDuplicate => "returned_duplicate",
        /// Returned records refused by the checks of RFC 9293 and RFC 5961.
        ReturnedRefused => "returned_refused",
        /// Returned records with a time stamp older than one seen before (RFC 7323, PAWS).
        ReturnedOutdated => "returned_outdated",
        /// Acknowledgements drawn by records that are not believed (RFC 5961).
        Challenges => "challenge_acks",
        /// Of these, not sent because there were enough of them.
        ChallengesWithheld => "challenge_acks_withheld",
        /// Answer bytes acknowledged without having been seen.
        ReturnHoles => "return_hole_bytes",
        /// ICMP errors about sessions.
        Icmp => "icmp",
        /// Of these, not about anything outstanding.
        IcmpRefused => "icmp_refused",
        /// Connections whose segments became smaller because a router said so.
        PathShrank => "path_shrank",
        /// Connections whose segments became smaller because large ones were lost again and again.
        SizeSuspected => "size_suspected",
        /// Captured segments with urgent data, replayed in line.
        Urgent => "urgent_segments",
        /// Keep-alive probes of clients.
        KeepAlives => "client_keep_alives",
        /// Segments that came out of order and waited.
        Stashed => "stashed_segments",
        /// Segments of flows that no session stands for and that cannot start one.
        Orphans => "orphan_segments",
        /// Answers of the online service taken, of flows with a session or without.
        OnlineAnswers => "online_answers",
        /// Slots found unusable after a restart.
        SlotsUnusable => "slots_unusable",
    }
}

/// Bytes dropped under one reason, and in how many goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Segments, or parts of one.
    pub segments: u64,
    /// Payload bytes.
    pub payload_bytes: u64,
}

/// How a target does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// New connections wait: too many have failed.
    pub sick: bool,
    /// How often it became so.
    pub trips: u64,
}

/// All counters of a table.
pub struct Tally {
    counts: [u64; Count::COUNT],
    dropped: [Dropped; Drop::COUNT],
    /// Gauge: sessions that exist. Both gauges begin with what a predecessor has left as its sums, which may be damaged: they wrap,
    /// and are put right when all slots are known.
    pub open: u64,
    /// Gauge: ledger bytes held, or sent and not acknowledged.
    pub in_flight: u64,
    /// In flight when the table took its arena over: counted as wanted by a predecessor. What slots are found to hold beyond it is
    /// added, and is a bug.
    pub inherited: u64,
    /// Bytes of [`Tally::inherited`] that no slot was found to hold, although no session was lost. Always 0, or a bug.
    pub unexplained: u64,
    /// Each target, by its index.
    pub targets: Box<[Health]>,
    /// From the capture of a piece to its first emission, µs.
    pub lag: Histogram,
    /// From the last byte of a turn to the first byte of the answer, µs.
    pub first_byte: Histogram,
    /// The same of the online service, where a file holds its answers.
    pub online_first_byte: Histogram,
    /// Gauge: when the last turn was answered, the table's clock; 0 before.
    pub answered_us: u64,
    /// From the capture of a turn's first byte to the moment its gate opened, µs; 0 when it was open already.
    pub turn_wait: Histogram,
}

impl Tally {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::of_targets(1)
    }

    pub(crate) fn of_targets(targets: usize) -> Self {
        Self {
            targets: vec![Health::default(); targets].into_boxed_slice(),
            counts: [0; Count::COUNT],
            dropped: [Dropped::default(); Drop::COUNT],
            open: 0,
            in_flight: 0,
            inherited: 0,
            unexplained: 0,
            lag: Histogram::default(),
            first_byte: Histogram::default(),
            online_first_byte: Histogram::default(),
            answered_us: 0,
            turn_wait: Histogram::default(),
        }
    }

    /// One counter.
    pub fn count(&self, count: Count) -> u64 {
        self.counts[count.index()]
    }

    /// All counters, by [`Count::index`].
    pub fn counts(&self) -> &[u64; Count::COUNT] {
        &self.counts
    }

    /// What was dropped under one reason.
    pub fn dropped(&self, reason: Drop) -> Dropped {
        self.dropped[reason.index()]
    }

    /// Payload bytes dropped in all.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped.iter().map(|d| d.payload_bytes).sum()
    }

    pub(crate) fn add(&mut self, count: Count, n: u64) {
        self.counts[count.index()] += n;
    }

    pub(crate) fn one(&mut self, count: Count) {
        self.add(count, 1);
    }

    /// Drops wanted bytes that were never in flight.
    pub(crate) fn drop_bytes(&mut self, reason: Drop, bytes: u32) {
        if bytes > 0 {
            let dropped = &mut self.dropped[reason.index()];
            dropped.segments += 1;
            dropped.payload_bytes += u64::from(bytes);
        }
    }

    /// Takes wanted bytes into a session.
    pub(crate) fn hold(&mut self, bytes: u32) {
        self.in_flight = self.in_flight.wrapping_add(bytes.into());
    }

    /// Drops bytes out of a session.
    pub(crate) fn discard(&mut self, reason: Drop, bytes: u32) {
        self.in_flight = self.in_flight.wrapping_sub(bytes.into());
        self.drop_bytes(reason, bytes);
    }

    /// The target has acknowledged bytes of a session.
    pub(crate) fn deliver(&mut self, bytes: u32) {
        self.in_flight = self.in_flight.wrapping_sub(bytes.into());
        self.add(Count::Delivered, u64::from(bytes));
    }

    /// All slots of a predecessor are known: this much of what they held together is in none of them.
    pub(crate) fn settle(&mut self, missing: i64, explained: bool) {
        self.in_flight = self.in_flight.wrapping_sub(missing.cast_unsigned());
        if missing > 0 {
            let missing = missing.cast_unsigned();
            let lost = &mut self.dropped[Drop::WorkerLost.index()];
            lost.segments += 1;
            lost.payload_bytes += missing;
            self.unexplained += if explained { 0 } else { missing };
        } else {
            self.inherited += missing.unsigned_abs();
        }
    }

    /// The ledger's identity.
    pub fn balanced(&self) -> bool {
        let accounted = self.count(Count::Delivered) + self.dropped_bytes();
        self.count(Count::Wanted).wrapping_add(self.inherited) == self.in_flight.wrapping_add(accounted)
    }
}
