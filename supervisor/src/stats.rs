//! What an instance has done so far: the object that `stats --json` prints, that crosses the control socket, and that
//! live view, summary and metrics are made of. Names and meanings are stable; fields may be added.
//!
//! Counters only ever grow. `wanted = delivered + in_flight + sum of dropped`, to the byte, at any quiet moment and at
//! the end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Name of the instance.
    pub(crate) name: String,
    /// Version of the program.
    pub(crate) version: String,
    /// Seconds since its start.
    pub(crate) uptime_s: f64,
    /// `starting`, `running`, `paused`, `draining`, `stopped`.
    pub(crate) state: String,
    /// How many supervisors had its sessions in hand, one after the other; 1 unless one died.
    #[serde(default)]
    pub(crate) epoch: u64,
    /// Its processes, the supervisor last.
    pub(crate) roles: Vec<RoleStats>,
    /// Capture.
    pub(crate) capture: Capture,
    /// Every captured byte.
    pub(crate) ledger: Ledger,
    /// Datagrams, where some are mapped: a ledger of their own.
    #[serde(default)]
    pub(crate) udp: Option<Udp>,
    /// The recording, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<Record>,
    /// How far a replay of files has come, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<Replay>,
    /// Sessions towards the targets.
    pub(crate) sessions: Sessions,
    /// Turns: requests, in protocols that have such.
    pub(crate) turns: Turns,
    /// Sent segments.
    pub(crate) inject: Inject,
    /// The return channel.
    pub(crate) returned: Returned,
    /// Latencies, microseconds.
    pub(crate) latency_us: Latency,
    /// What can be changed while running, as it stands.
    pub(crate) control: Control,
    /// What the run keeps itself to, where it was told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restraint: Option<Restraint>,
    /// Each target of the plan.
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
    /// The probe of the way to each target of TCP and back.
    #[serde(default)]
    pub(crate) canary: Vec<Canary>,
    /// The kernel's guard against packets that are not for a target.
    #[serde(default)]
    pub(crate) guard: Guard,
    /// Each intercept of the plan.
    pub(crate) intercepts: Vec<Intercept>,
    /// Bytes that stand in the rings, by link.
    pub(crate) rings: BTreeMap<String, u64>,
    /// Every counter of every role, by `ROLE-INDEX`.
    pub(crate) counters: BTreeMap<String, BTreeMap<String, u64>>,
    /// Every gauge of every role, likewise.
    pub(crate) gauges: BTreeMap<String, BTreeMap<String, u64>>,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoleStats {
    /// `capturer`, `injector`, `shard-worker`, `supervisor`.
    pub(crate) role: String,
    /// Number among its kind.
    pub(crate) index: u16,
    /// Process id; 0 while there is none.
    pub(crate) pid: u32,
    /// `starting`, `running`, `draining`, `done`, `dead`.
    pub(crate) state: String,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// CPU time so far, its dead predecessors included.
    pub(crate) cpu_s: f64,
    /// Resident memory.
    pub(crate) rss_bytes: u64,
    /// How long it was away when it was started again.
    #[serde(default)]
    pub(crate) recovery_us: RecoveryTime,
    /// The system call that its sandbox stopped it at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stopped_at: Option<String>,
}

/// From a death, as the supervisor sees it, to a successor that runs: microseconds; 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecoveryTime {
    /// The last one.
    pub(crate) last: u64,
    /// The longest of this supervisor's time.
    pub(crate) worst: u64,
}

/// Capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Capture {
    /// The engine: `ring`, `simple`, `pcap`, `xdp`.
    #[serde(default)]
    pub(crate) engine: String,
    /// Frames taken from the kernel.
    pub(crate) frames: u64,
    /// Frames that the kernel had no room for.
    pub(crate) kernel_drops: u64,
}

/// Segments and payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amount {
    /// Segments, or parts of one.
    pub(crate) segments: u64,
    /// Payload bytes.
    pub(crate) payload_bytes: u64,
}

/// Payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bytes {
    /// Payload bytes.
    pub(crate) payload_bytes: u64,
}

/// Every captured byte (REPLAY, "Ledger").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// Read from the kernel, duplicates included.
    pub(crate) captured: Amount,
    /// Captured times copies, after sampling.
    pub(crate) wanted: Bytes,
    /// Acknowledged by the target.
    pub(crate) delivered: Bytes,
    /// Held, or sent and not acknowledged.
    pub(crate) in_flight: Bytes,
    /// By reason.
    pub(crate) dropped: BTreeMap<String, Amount>,
    /// Holes: never captured, outside the identity.
    pub(crate) missed: Bytes,
}

impl Ledger {
    /// Payload bytes dropped under all reasons.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        total(self.dropped.values().map(|amount| amount.payload_bytes))
    }

    /// What `wanted` exceeds the other side by; 0 when the identity holds.
    pub(crate) fn imbalance(&self) -> i128 {
        let accounted = u128::from(self.delivered.payload_bytes)
            + u128::from(self.in_flight.payload_bytes)
            + u128::from(self.dropped_bytes());
        i128::from(self.wanted.payload_bytes) - accounted as i128
    }
}

/// Datagrams and payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    /// Whole datagrams, whatever the number of their packets.
    pub(crate) datagrams: u64,
    /// Payload bytes.
    pub(crate) payload_bytes: u64,
}

/// Every captured datagram. Nobody acknowledges one, so `sent` stands where a stream's ledger has `delivered`, and nothing is
/// ever in flight: `wanted = sent + sum of dropped`, in datagrams and to the byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Udp {
    /// Read from the kernel and put together.
    pub(crate) captured: Datagrams,
    /// Captured times copies, after sampling.
    pub(crate) wanted: Datagrams,
    /// Handed to the injector. What the kernel then refused stands in `inject`.
    pub(crate) sent: Datagrams,
    /// By reason.
    pub(crate) dropped: BTreeMap<String, Datagrams>,
    /// That were captured in part only: fragments missing, or cut; outside the identity.
    pub(crate) missed: u64,
    /// The injector's part.
    pub(crate) inject: UdpInject,
    /// Answers that intercept saw.
    pub(crate) replies: Datagrams,
    /// Mean time from a datagram to the first answer behind it, microseconds.
    pub(crate) first_reply_us: u64,
    /// ICMP errors about datagrams: nobody listens at the target's port, for one.
    pub(crate) icmp_errors: u64,
    /// Client endpoints, one for each copy.
    pub(crate) flows: UdpFlows,
}

/// What became of sent datagrams at the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UdpInject {
    /// Whole datagrams accepted.
    pub(crate) datagrams: u64,
    /// Their payload bytes.
    pub(crate) payload_bytes: u64,
    /// Packets that were parts of one.
    pub(crate) fragments: u64,
    /// Packets refused; the errno is among those of `inject`.
    pub(crate) refused: u64,
}

/// Flows of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UdpFlows {
    /// Now.
    pub(crate) open: u64,
    /// So far.
    pub(crate) started: u64,
    /// Ended after their silence, or to make room.
    pub(crate) expired: u64,
}

/// A sum of counters: any word of the region may be damaged, and nobody is to stop for it who adds up what stands there.
pub(crate) fn total(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::wrapping_add)
}

/// Packets, and their bytes from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// Packets.
    pub(crate) packets: u64,
    /// Bytes of them that were to be kept.
    pub(crate) bytes: u64,
}

impl Recorded {
    /// Both together.
    pub(crate) fn and(self, other: &Self) -> Self {
        Self { packets: total([self.packets, other.packets]), bytes: total([self.bytes, other.bytes]) }
    }
}

/// A recording: `wanted = written + sum of dropped + waiting`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where its files are.
    pub(crate) directory: String,
    /// Captured to be recorded, both directions.
    pub(crate) wanted: Recorded,
    /// In files.
    pub(crate) written: Recorded,
    /// By reason: `ring_full` (the disk was too slow), `disk` (it was full or failed), `capturer_lost` (on their way when a
    /// capturer died).
    pub(crate) dropped: BTreeMap<String, Recorded>,
    /// On their way to a file.
    pub(crate) waiting: Recorded,
    /// Files begun.
    pub(crate) files: u64,
    /// Their bytes on the disk.
    pub(crate) file_bytes: u64,
    /// Oldest files removed by `--keep`.
    pub(crate) removed_files: u64,
    /// Their bytes on the disk.
    pub(crate) removed_bytes: u64,
    /// The disk takes nothing now.
    pub(crate) failing: bool,
    /// Nothing is replayed.
    pub(crate) only: bool,
}

impl Record {
    /// Dropped under all reasons.
    pub(crate) fn dropped_in_all(&self) -> Recorded {
        self.dropped.values().fold(Recorded::default(), Recorded::and)
    }
}

/// A replay of files. Seconds count from when their first byte was read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Replay {
    /// Bytes read of them as they lie on the disk, all loops together.
    pub(crate) read_bytes: u64,
    /// All there are to be read; 0 when a pipe is among them.
    pub(crate) bytes: u64,
    /// Until the last packet so far was handed over.
    pub(crate) read_s: f64,
    /// Until the last turn so far was answered.
    pub(crate) answered_s: f64,
    /// Answers of the online service among the packets: of a file without any, less is known.
    pub(crate) online_answers: u64,
}

/// Sessions towards the targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sessions {
    /// Now.
    pub(crate) open: u64,
    /// Opened so far, one for each copy.
    pub(crate) started: u64,
    /// Ended in order.
    pub(crate) completed: u64,
    /// Ended otherwise, by reason.
    pub(crate) failed: BTreeMap<String, u64>,
}

/// Turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turns {
    /// Sent.
    pub(crate) sent: u64,
    /// That drew an answer.
    pub(crate) answered: u64,
    /// Released although the answer before had another length than online.
    pub(crate) guessed: u64,
    /// Released because the one before drew no answer at all.
    pub(crate) unanswered: u64,
    /// Pipelined: no answer to the one before was read in between.
    pub(crate) overlapped: u64,
}

/// Sent segments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inject {
    /// Accepted by the kernel.
    pub(crate) segments: u64,
    /// Their bytes, from the IP header on.
    pub(crate) bytes: u64,
    /// Send errors by errno.
    pub(crate) errors: BTreeMap<String, u64>,
    /// `link`, `raw`, `pcap`, or `mixed` where targets differ.
    #[serde(default)]
    pub(crate) engine: String,
    /// Why it is not a better one; empty where it is the best.
    #[serde(default)]
    pub(crate) why: String,
    /// Times that a target changed from one engine to another.
    #[serde(default)]
    pub(crate) switches: u64,
    /// Segments that left by raw IP though another engine was wanted.
    #[serde(default)]
    pub(crate) detours: u64,
}

/// The return channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Returned {
    /// Headers received.
    pub(crate) headers: u64,
}

/// Latencies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// From the last byte of a turn to the first of its answer.
    pub(crate) target_first_byte: Quantiles,
    /// The same of the online service, where a file holds its answers; all 0 without.
    #[serde(default)]
    pub(crate) online_first_byte: Quantiles,
    /// From a segment's capture to its first replay.
    pub(crate) lag: Quantiles,
    /// From the capture of a turn's first byte until the answer before it was there: what waiting for answers adds.
    #[serde(default)]
    pub(crate) turn_wait: Quantiles,
}

/// Quantiles of a histogram, microseconds; upper bounds of its buckets, an eighth too high at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 90 of 100 are not longer.
    pub p90: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// The longest.
    pub(crate) max: u64,
}

/// What can be changed while running.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Control {
    /// Nothing new is replayed.
    pub(crate) paused: bool,
    /// Share of flows, as far as the ramp is.
    pub(crate) percent: f64,
    /// Share of flows that was asked for.
    #[serde(default)]
    pub(crate) asked_percent: f64,
    /// Copies of each flow.
    pub(crate) copies: f64,
}

/// What a run keeps itself to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restraint {
    /// CPU time of all processes in the last second, percent of one core.
    pub(crate) cpu_percent: f64,
    /// What it may be; 0 without a budget.
    pub(crate) cpu_budget_percent: f64,
    /// `whole`, `leaving_out` (new flows), `shedding` (open ones too), `blind` (nothing is captured).
    pub(crate) step: String,
    /// Draws of new flows are below this.
    pub(crate) admitted_percent: f64,
    /// Draws of open flows are below this.
    pub(crate) kept_percent: f64,
    /// Time for which packets waited because of a rate, so far.
    #[serde(default)]
    pub(crate) held_s: f64,
    /// `--max-pps`; 0 without.
    #[serde(default)]
    pub(crate) max_packets_per_s: u64,
    /// `--max-bps`; 0 without.
    #[serde(default)]
    pub(crate) max_bits_per_s: u64,
    /// `--max-cps`; 0 without.
    #[serde(default)]
    pub(crate) max_connections_per_s: u64,
    /// Time until the share of flows is what was asked for.
    pub(crate) ramp_left_s: f64,
}

/// One target of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Its address and port.
    pub(crate) addr: String,
    /// `ok`, or `sick`: too many connections were refused, reset or not answered; new ones wait, single ones are tried.
    pub(crate) state: String,
    /// How often it became sick, counted in each shard.
    pub(crate) trips: u64,
}

/// The probe of the way to one target and back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Canary {
    /// The target's address and port.
    pub(crate) addr: String,
    /// The address that probes speak from.
    pub(crate) from: String,
    /// `waiting`, `ok`, `traffic` (sessions are answered, probes are not), `refused` (the ways are whole, the service is down); and
    /// where nothing is sent: `not_sent`, `rejected`, `unseen`, `channel_down`.
    pub(crate) state: String,
    /// Nothing is sent there until a probe passes.
    pub(crate) held: bool,
    /// What is wrong, and what to do; empty where nothing is.
    pub(crate) trouble: String,
    /// Rounds of probes that failed.
    pub(crate) failures: u64,
    /// Seconds since the way was last seen to be whole; none if it never was.
    pub(crate) last_ok_s: Option<f64>,
    /// How long the last answer took.
    pub(crate) rtt_us: HopTimes,
}

/// From a probe to its answer, microseconds; 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HopTimes {
    /// The whole.
    pub(crate) total: u64,
    /// Until intercept saw the answer.
    pub(crate) out: u64,
    /// From there to here, by the return channel's own round trip.
    pub(crate) back: u64,
}

/// The kernel's guard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guard {
    /// Packets that it dropped: they bore a replayed client's address or our mark, and were not for a target.
    pub(crate) dropped: u64,
}

/// One intercept of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intercept {
    /// Where it listens.
    pub(crate) addr: String,
    /// `new`, `dialling`, `up`, `down`, `refused`.
    pub(crate) state: String,
    /// Why it was lost last; empty when it never was.
    pub(crate) trouble: String,
    /// Times the link came up.
    pub(crate) connects: u64,
    /// Headers received.
    pub(crate) headers: u64,
    /// Headers that it dropped because this side was slow.
    pub(crate) gaps: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field that scripts rely on, with nothing left out.
    const PROMISED: &str = r#"{"name":"default","uptime_s":12.3,"state":"running",
 "roles":[{"role":"capturer","index":0,"pid":1,"state":"running","restarts":0,"cpu_s":0.1,"rss_bytes":1}],
 "capture":{"frames":0,"kernel_drops":0},
 "ledger":{"captured":{"segments":0,"payload_bytes":0},
           "wanted":{"payload_bytes":0},
           "delivered":{"payload_bytes":0},
           "in_flight":{"payload_bytes":0},
           "dropped":{"ring_full":{"segments":0,"payload_bytes":0}},
           "missed":{"payload_bytes":0}},
 "sessions":{"open":0,"started":0,"completed":0,"failed":{"refused":0}},
 "turns":{"sent":0,"answered":0,"guessed":0,"unanswered":0,"overlapped":0},
 "inject":{"segments":0,"bytes":0,"errors":{"ENOBUFS":0}},
 "returned":{"headers":0},
 "latency_us":{"target_first_byte":{"p50":0,"p90":0,"p99":0,"max":0},
  "lag":{"p50":0,"p90":0,"p99":0,"max":0},"turn_wait":{"p50":0,"p90":0,"p99":0,"max":0}}}"#;

    /// Every path of `promised` exists in `ours` with a value of the same kind.
    fn covers(promised: &serde_json::Value, ours: &serde_json::Value, path: &str) {
        use serde_json::Value;
        match (promised, ours) {
            (Value::Object(wanted), Value::Object(have)) => {
                for (key, value) in wanted {
                    let inner = have.get(key).unwrap_or_else(|| panic!("{path}.{key} is missing"));
                    covers(value, inner, &format!("{path}.{key}"));
                }
            }
            (Value::Array(wanted), Value::Array(have)) => covers(&wanted[0], &have[0], &format!("{path}[0]")),
            (Value::Number(_), Value::Number(_)) | (Value::String(_), Value::String(_)) => {}
            _ => panic!("{path} is of another kind"),
        }
    }

    #[test]
    fn the_object_holds_what_scripts_rely_on() {
        let stats = Stats {
            roles: vec![RoleStats::default()],
            ledger: Ledger {
                dropped: [("ring_full".to_owned(), Amount::default())].into(),
                ..Ledger::default()
            },
            sessions: Sessions { failed: [("refused".to_owned(), 0)].into(), ..Sessions::default() },
            inject: Inject { errors: [("ENOBUFS".to_owned(), 0)].into(), ..Inject::default() },
            ..Stats::default()
        };
        let ours = serde_json::to_value(&stats).unwrap();
        covers(&serde_json::from_str(PROMISED).unwrap(), &ours, "");
        assert_eq!(serde_json::from_value::<Stats>(ours).unwrap(), stats);
    }

    #[test]
    fn the_identity_is_checked_to_the_byte() {
        let mut ledger = Ledger { wanted: Bytes { payload_bytes: 100 }, ..Ledger::default() };
        ledger.delivered.payload_bytes = 60;
        ledger.in_flight.payload_bytes = 10;
        ledger.dropped.insert("gap".into(), Amount { segments: 1, payload_bytes: 29 });
        assert_eq!(ledger.imbalance(), 1);
        ledger.delivered.payload_bytes = 61;
        assert_eq!(ledger.imbalance(), 0);
    }
}
