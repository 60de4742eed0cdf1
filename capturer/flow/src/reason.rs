//! Why a captured byte was not delivered. One noun everywhere: here, in counters, in `stats --json`, in documents.

use crate::named_enum;

named_enum! {
    /// The reason under which a wanted byte was dropped (REPLAY, "Ledger"). Each byte is dropped once, by whoever discards it.
    pub enum Drop {
        /// A capture ring was full; counted by the capturer.
        RingFull => "ring_full",
        /// Retransmission, overlap, keep-alive byte or doubled capture: the byte was taken before.
        Duplicate => "duplicate",
        /// The flow began before the capture and its first turn boundary had not come yet.
        JoinedMidturn => "joined_midturn",
        /// The flow began before the capture and `--join never` was asked for, or no session accepts the byte any more.
        NotJoined => "not_joined",
        /// Captured, but given up because of a hole before it.
        Gap => "gap",
        /// The target closed the connection before it took the byte, and the reconnect rule did not send it again.
        TargetClosed => "target_closed",
        /// The target refused the connection (RST to our SYN).
        Refused => "refused",
        /// The target did not answer within the limits.
        TimedOut => "timed_out",
        /// The limit on held bytes (per session, per shard or in all) was reached.
        Memory => "memory",
        /// The session table was full.
        TableFull => "table_full",
        /// No client endpoint of the range was free and rested.
        EndpointsExhausted => "endpoints_exhausted",
        /// The client reset its connection before the byte could be replayed.
        ClientReset => "client_reset",
        /// A new connection on the same four-tuple took the session's place.
        Superseded => "superseded",
        /// It was in a session whose memory was damaged when its worker died.
        WorkerLost => "worker_lost",
        /// Its segment was left out because the worker had died of it twice.
        Quarantined => "quarantined",
        /// Held or unacknowledged when the run was stopped and the drain time was over.
        Stopped => "stopped",
        /// Captured while replay was paused.
        Paused => "paused",
        /// Its flow was left out or ended, so that the run stays within what it was told to keep to (`--budget-cpu`, `--max-…`).
        Shed => "shed",
    }
}
