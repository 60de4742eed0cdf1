//! What the injector counts. The order of each enum is the order of the counters in the role's block of the region.

use flow::named_enum;

use crate::probe::Report;

named_enum! {
    /// Counters of [`shm::Role::Injector`], by index.
    pub enum Count {
        /// Records taken from the inject rings.
        Records => "records",
        /// Segments handed to the kernel and accepted.
        Segments => "segments",
        /// Their bytes, from the IP header on.
        Bytes => "bytes",
        /// Payload bytes among them.
        PayloadBytes => "payload_bytes",
        /// SYNs sent.
        Syn => "syn",
        /// FINs sent.
        Fin => "fin",
        /// RSTs sent.
        Rst => "rst",
        /// Segments sent that the shard had marked as a retransmission or probe.
        Again => "again",
        /// System calls that sent.
        Calls => "calls",
        /// A send that was tried once more because the kernel had no room.
        Retries => "retries",
        /// Segments given up after the retries: the shard's own retransmission heals them.
        Dropped => "dropped",
        /// Refused by the guard: no such target in the sealed list.
        UnknownTarget => "unknown_target",
        /// Refused by the guard: client and target of different families, or no socket of that family.
        WrongFamily => "wrong_family",
        /// Refused by the guard: a client outside the announced ranges.
        ForeignClient => "foreign_client",
        /// Refused by the guard: payload without a segment size.
        ZeroMss => "zero_mss",
        /// Refused by the guard: a datagram longer than there are.
        LongDatagram => "long_datagram",
        /// Datagrams of which the kernel took the last packet.
        Datagrams => "datagrams",
        /// Their payload bytes.
        DatagramBytes => "datagram_bytes",
        /// Packets that were parts of a datagram.
        DatagramFragments => "datagram_fragments",
        /// Packets of datagrams that the kernel refused, after the retries: nothing sends them again.
        DatagramPacketsRefused => "datagram_packets_refused",
        /// Ring records whose lengths disagree.
        Malformed => "malformed",
        /// Times that a ring's bytes made no sense and all that was published in it was skipped.
        RingFaults => "ring_faults",
        /// Frames larger than one segment, which a device cut further.
        SuperFrames => "super_frames",
        /// Segments that left by raw IP though another engine was wanted: no way, or no guard.
        Detours => "detours",
        /// Times that a target changed from one engine to another.
        Switches => "switches",
        /// Packets of probes that the kernel took: SYNs, and the resets behind their answers. They are none of `segments`.
        Probes => "probes",
        /// Records not sent because the probe of their target's way fails: shards send segments again, datagrams are lost.
        Held => "held",
        /// Claims handed to the return receiver.
        Claims => "claims",
        /// Claims that found the queue to the receiver full; the SYN went out all the same.
        ClaimsLost => "claims_lost",
        /// Send errors, by name.
        Eperm => "EPERM",
        /// No buffer space.
        Enobufs => "ENOBUFS",
        /// The socket's send buffer is full.
        Eagain => "EAGAIN",
        /// No route.
        Enetunreach => "ENETUNREACH",
        /// No neighbour answer.
        Ehostunreach => "EHOSTUNREACH",
        /// Larger than the device or route takes.
        Emsgsize => "EMSGSIZE",
        /// The device is down.
        Enetdown => "ENETDOWN",
        /// The kernel did not like the packet.
        Einval => "EINVAL",
        /// This host has no address of the target's family to route from.
        Eaddrnotavail => "EADDRNOTAVAIL",
        /// Any other errno.
        OtherErrno => "other_errno",
    }
}

impl Count {
    /// The first of the counters named after an errno; they run to the end.
    pub const FIRST_ERRNO: Count = Count::Eperm;

    /// The counter of a send error.
    pub const fn of_errno(errno: i32) -> Count {
        match errno {
            libc::EPERM | libc::EACCES => Count::Eperm,
            libc::ENOBUFS | libc::ENOMEM => Count::Enobufs,
            libc::EAGAIN => Count::Eagain,
            libc::ENETUNREACH => Count::Enetunreach,
            libc::EHOSTUNREACH => Count::Ehostunreach,
            libc::EMSGSIZE => Count::Emsgsize,
            libc::ENETDOWN => Count::Enetdown,
            libc::EINVAL => Count::Einval,
            libc::EADDRNOTAVAIL => Count::Eaddrnotavail,
            _ => Count::OtherErrno,
        }
    }

    /// The counters named after an errno.
    pub fn errnos() -> &'static [Count] {
        &Count::ALL[Count::FIRST_ERRNO.index()..]
    }
}

/// Counter index of one target's [`crate::Choice`], a gauge, in the block of [`shm::Role::Injector`].
/// Panics when `target` is not below [`topology::plan::MAX_TARGETS`].
pub const fn choice_index(target: usize) -> usize {
    assert!(target < topology::plan::MAX_TARGETS);
    Count::COUNT + target
}

/// Counter index of the first of [`Report::WORDS`] gauges of the `target`-th target of the plan in the block of
/// [`shm::Role::Injector`]: how the probe of its way stands. Panics when `target` is not below [`topology::plan::MAX_TARGETS`].
pub const fn canary_index(target: usize) -> usize {
    assert!(target < topology::plan::MAX_TARGETS);
    choice_index(topology::plan::MAX_TARGETS - 1) + 1 + target * Report::WORDS
}

const _: () = assert!(
    canary_index(topology::plan::MAX_TARGETS - 1) + Report::WORDS <= shm::COUNTERS_PER_ROLE,
    "the block holds all of them"
);

named_enum! {
    /// Counters of [`shm::Role::Receiver`], by index; then one [`InterceptCount`] block for each intercept of the plan.
    pub enum ReturnCount {
        /// Headers written to the return rings.
        Headers => "headers",
        /// Headers that found no room in a ring that had said it had; never with sound rings.
        Lost => "lost",
        /// Headers that came a second time after a reconnect.
        Duplicates => "duplicates",
        /// Headers that intercept dropped because this side or the link was slow.
        Gaps => "gaps",
        /// Turns in which nothing was read because a return ring was full.
        RingFull => "ring_full",
        /// Bytes read from the return channel.
        Bytes => "bytes",
        /// Claims sent, to all intercepts together.
        Claims => "claims",
        /// Live claims sent again after an intercept came back.
        ClaimsAgain => "claims_again",
        /// Live claims forgotten because the table was full.
        ClaimsEvicted => "claims_evicted",
        /// Gauge: claims held as live.
        ClaimsLive => "claims_live",
        /// Gauge: connections that are up.
        Connected => "connected",
        /// Gauge: 1 while intercepts are told that sessions can do nothing but wait for answers.
        Eager => "eager",
    }
}

named_enum! {
    /// Counters of one intercept of the plan, see [`intercept_index`].
    pub enum InterceptCount {
        /// Gauge: see [`LinkState`].
        State => "state",
        /// Gauge: CLOCK_MONOTONIC milliseconds at which the state last changed.
        SinceMs => "since_ms",
        /// Times the link came up.
        Connects => "connects",
        /// Times it was lost.
        Disconnects => "disconnects",
        /// Times intercept refused us.
        Refusals => "refusals",
        /// Times its bytes made no sense or failed their authentication.
        Faults => "faults",
        /// Headers received from it.
        Headers => "headers",
        /// Headers it said it had dropped.
        Gaps => "gaps",
        /// Gauge: [`Trouble`] of the last loss, 0 when there was none.
        LastTrouble => "last_trouble",
        /// Gauge: 1 + index of the [`returns::RefusedCode`] of the last refusal, 0 when there was none.
        LastRefusal => "last_refusal",
        /// Gauge: round trip of the last ping, µs.
        RttUs => "rtt_us",
        /// Gauge: epoch of the intercept whose records were received last; with the next it survives a restart of ours.
        Epoch => "epoch",
        /// Gauge: position of the last record received, plus one; 0 when there was none.
        Position => "position",
    }
}

/// Intercepts of one plan at most: each has a block of counters.
pub const MAX_INTERCEPTS: usize = 64;

/// Counter index of one value of the `intercept`-th intercept in the block of [`shm::Role::Receiver`].
/// Panics when `intercept` is not below [`MAX_INTERCEPTS`].
pub const fn intercept_index(intercept: usize, count: InterceptCount) -> usize {
    assert!(intercept < MAX_INTERCEPTS);
    ReturnCount::COUNT + intercept * InterceptCount::COUNT + count.index()
}

named_enum! {
    /// How the link to one intercept stands.
    pub enum LinkState {
        /// Not tried yet.
        New => "new",
        /// Being dialled.
        Dialling => "dialling",
        /// Greeted; records flow.
        Up => "up",
        /// Down; it is dialled again after a pause.
        Down => "down",
        /// Refused by the other side; dialled again all the same, since an owner may leave.
        Refused => "refused",
    }
}

named_enum! {
    /// Why a link went down, as a number that fits a counter.
    pub enum Trouble {
        /// It did not.
        None => "none",
        /// Nobody listens there.
        ConnectionRefused => "connection refused",
        /// No answer to the dial or the greeting in time.
        TimedOut => "no answer in time",
        /// No route, no neighbour.
        Unreachable => "unreachable",
        /// It closed the connection.
        Closed => "closed by intercept",
        /// Connected, then silent for three seconds.
        Silent => "silent for 3 s",
        /// Another program listens there.
        NotTcptwin => "not a tcptwin intercept",
        /// Another version of the return channel.
        Version => "another version",
        /// One end has a key and the other has none, or another.
        Key => "the keys of the two ends disagree",
        /// It takes no more connections now.
        Busy => "too many connections there",
        /// Its bytes make no sense, or do not authenticate.
        Garbage => "bytes that make no sense",
        /// It refused us with a reason (logged).
        Refused => "refused by intercept",
        /// Any other error of the socket.
        Io => "socket error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_counter_stands_at_the_end() {
        let names: Vec<_> = Count::errnos().iter().map(|c| c.name()).collect();
        assert_eq!(names.first(), Some(&"EPERM"));
        assert_eq!(names.last(), Some(&"other_errno"));
        assert_eq!(names.len(), 10);
    }

    #[test]
    fn intercepts_do_not_share_counters() {
        assert_eq!(intercept_index(0, InterceptCount::State), ReturnCount::COUNT);
        assert_eq!(
            intercept_index(1, InterceptCount::State),
            intercept_index(0, InterceptCount::Position) + 1
        );
        assert!(intercept_index(MAX_INTERCEPTS - 1, InterceptCount::Position) < shm::COUNTERS_PER_ROLE);
    }
}
