//! Reads every role's block of the region, and /proc, into one [`Stats`]. The one place that knows which counter of which
//! role becomes which figure.
//!
//! Roles go on counting while they are read, so figures of one look may lie some microseconds apart; the ledger's identity
//! is exact when nothing moves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flow::Drop;
use injector::{InterceptCount, LinkState, ReturnCount, Trouble, intercept_index};
use session::{Count, DatagramCount, Histogram, histogram::BUCKETS};
use shard_worker::counters::{self as shard, Gauge, Latency as Timed, WorkerCount};
use shm::{Region, Role, RoleState};
use topology::plan::Protocol;
use topology::{Plan, wiring};

use crate::canary;
use crate::member::Member;
use crate::procfs;
use crate::stats::{
    Amount, Capture, Control, Datagrams, Guard, Inject, Intercept, Latency, Ledger, Quantiles, Record,
    Recorded, RecoveryTime, Replay, Returned, RoleStats, Sessions, Stats, Target, Turns, Udp, UdpFlows,
    UdpInject, total,
};

/// One look at everything.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The figures.
    pub(crate) stats: Stats,
    /// Buckets of all shards' lag histograms.
    pub(crate) lag: Vec<u64>,
}

/// Takes looks.
pub(crate) struct Collector {
    region: &'static Region,
    plan: Plan,
    started: Instant,
}

impl Collector {
    /// Of a run that started at this time.
    pub(crate) const fn new(region: &'static Region, plan: Plan, started: Instant) -> Self {
        Self { region, plan, started }
    }

    /// Time since the start.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the links to all intercepts are up.
    pub(crate) fn links_up(&self) -> bool {
        (0..self.plan.intercepts.len())
            .all(|i| self.link(i, InterceptCount::State) == LinkState::Up.index() as u64)
    }

    /// A look at everything. `state` is the run's.
    pub(crate) fn sample(&self, members: &[Member], state: &str) -> Sample {
        let lag = self.buckets(Timed::Lag);
        let first_byte = self.buckets(Timed::FirstByte);
        let control = self.region.control();
        let stats = Stats {
            name: self.plan.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: (self.age().as_secs_f64() * 1e3).round() / 1e3,
            state: state.to_owned(),
            epoch: self.region.epoch(),
            roles: self.roles(members),
            capture: Capture {
                engine: match self.plan.trace {
                    Some(_) => "file",
                    None => self.plan.capture.engine.name(),
                }
                .to_owned(),
                frames: self.capturer(capturer::Count::Frames),
                kernel_drops: self.capturer(capturer::Count::KernelDrops),
            },
            ledger: self.ledger(),
            udp: (self.plan.replays(Protocol::Udp) && !self.plan.records_only()).then(|| self.udp()),
            record: self.record(),
            replay: self.replay(),
            sessions: self.sessions(),
            turns: Turns {
                sent: self.shards(Count::TurnsSent),
                answered: self.shards(Count::TurnsAnswered),
                guessed: self.shards(Count::TurnsGuessed),
                unanswered: self.shards(Count::TurnsUnanswered),
                overlapped: self.shards(Count::TurnsOverlapped),
            },
            inject: self.inject(),
            returned: Returned {
                headers: self.region.read_counter(Role::Receiver, ReturnCount::Headers.index()),
            },
            latency_us: Latency {
                target_first_byte: self.quantiles(&first_byte, Timed::FirstByte),
                online_first_byte: self
                    .quantiles(&self.buckets(Timed::OnlineFirstByte), Timed::OnlineFirstByte),
                lag: self.quantiles(&lag, Timed::Lag),
                turn_wait: self.quantiles(&self.buckets(Timed::TurnWait), Timed::TurnWait),
            },
            control: Control {
                paused: control.paused(),
                percent: f64::from(control.percent_ppm()) / 1e4,
                asked_percent: f64::from(control.asked_ppm()) / 1e4,
                copies: f64::from(control.copies_milli()) / 1e3,
            },
            intercepts: self.intercepts(),
            // Known by the supervisor's loop.
            restraint: None,
            targets: self.targets(),
            canary: canary::look(self.region, &self.plan),
            // Known by the supervisor's loop.
            guard: Guard::default(),
            rings: self.rings(),
            counters: self.counters(),
            gauges: self.gauges(),
        };
        Sample { stats, lag }
    }

    fn roles(&self, members: &[Member]) -> Vec<RoleStats> {
        let mut roles: Vec<RoleStats> = members.iter().map(|member| self.role(member)).collect();
        roles.sort_by_key(|role| (ORDER.iter().position(|kind| *kind == role.role), role.index));
        let own = procfs::look(0);
        roles.push(RoleStats {
            role: "supervisor".to_owned(),
            index: 0,
            pid: std::process::id(),
            state: "running".to_owned(),
            restarts: 0,
            cpu_s: own.map_or(0.0, |look| look.cpu.as_secs_f64()),
            rss_bytes: own.map_or(0, |look| look.rss_bytes),
            recovery_us: RecoveryTime::default(),
            stopped_at: None,
        });
        roles
    }

    fn role(&self, member: &Member) -> RoleStats {
        let pid = member.pid();
        let state = match (pid, self.region.heartbeat(member.process.role()).state()) {
            (None, _) if member.is_finished() => "done",
            (None, _) => "dead",
            (Some(_), RoleState::Starting) => "starting",
            (Some(_), RoleState::Running) => "running",
            (Some(_), RoleState::Draining) => "draining",
            (Some(_), RoleState::Done) => "done",
        };
        RoleStats {
            role: member.process.kind().to_owned(),
            index: member.process.index(),
            pid: pid.unwrap_or(0),
            state: state.to_owned(),
            restarts: member.restarts,
            cpu_s: member.cpu().as_secs_f64(),
            rss_bytes: member.rss_bytes(),
            recovery_us: RecoveryTime { last: member.recovery.last_us, worst: member.recovery.worst_us },
            stopped_at: member.stopped_at.clone(),
        }
    }

    /// `wanted` of a full ring is counted by the capturer: it knows the flow's copies without a table.
    fn ledger(&self) -> Ledger {
        let dropped = |reason: Drop| {
            let mut amount = Amount {
                segments: self.over_shards(shard::offset_dropped_segments(reason)),
                payload_bytes: self.over_shards(shard::offset_dropped_bytes(reason)),
            };
            if reason == Drop::RingFull {
                let more = |sum: &mut u64, count| *sum = total([*sum, self.capturer(count)]);
                more(&mut amount.segments, capturer::Count::RingFullSegments);
                more(&mut amount.payload_bytes, capturer::Count::RingFullWantedBytes);
            }
            amount
        };
        let bytes = |payload_bytes| crate::stats::Bytes { payload_bytes };
        Ledger {
            captured: Amount {
                segments: self.capturer(capturer::Count::Segments),
                payload_bytes: self.capturer(capturer::Count::PayloadBytes),
            },
            wanted: bytes(total([
                self.shards(Count::Wanted),
                self.capturer(capturer::Count::RingFullWantedBytes),
            ])),
            delivered: bytes(self.shards(Count::Delivered)),
            in_flight: bytes(self.over_shards(shard::offset_gauge(Gauge::InFlight))),
            dropped: Drop::ALL.iter().map(|reason| (reason.name().to_owned(), dropped(*reason))).collect(),
            missed: bytes(self.shards(Count::Missed)),
        }
    }

    /// `wanted` of a full ring is the capturer's, as with segments.
    fn udp(&self) -> Udp {
        let shards = |count: DatagramCount| self.over_shards(shard::offset_datagrams(count));
        let both =
            |datagrams, bytes| Datagrams { datagrams: shards(datagrams), payload_bytes: shards(bytes) };
        let ring_full = Datagrams {
            datagrams: self.capturer(capturer::Count::DatagramsRingFull),
            payload_bytes: self.capturer(capturer::Count::DatagramsRingFullWantedBytes),
        };
        let plus = |one: Datagrams, other: Datagrams| Datagrams {
            datagrams: total([one.datagrams, other.datagrams]),
            payload_bytes: total([one.payload_bytes, other.payload_bytes]),
        };
        let dropped = |reason: Drop| {
            let at = shard::offset_datagrams_dropped(reason);
            let here = Datagrams { datagrams: self.over_shards(at), payload_bytes: self.over_shards(at + 1) };
            if reason == Drop::RingFull { plus(here, ring_full) } else { here }
        };
        let inject = |count: injector::Count| self.region.read_counter(Role::Injector, count.index());
        let open = self.over_shards(shard::offset_gauge(Gauge::DatagramFlows));
        let started = self.over_shards(shard::offset_worker(WorkerCount::DatagramFlowsOpened));
        Udp {
            captured: Datagrams {
                datagrams: self.capturer(capturer::Count::Datagrams),
                payload_bytes: self.capturer(capturer::Count::DatagramBytes),
            },
            wanted: plus(both(DatagramCount::Wanted, DatagramCount::WantedBytes), ring_full),
            sent: both(DatagramCount::Sent, DatagramCount::SentBytes),
            dropped: Drop::ALL
                .iter()
                .map(|reason| (reason.name().to_owned(), dropped(*reason)))
                .filter(|(_, amount)| *amount != Datagrams::default())
                .collect(),
            missed: total([
                self.capturer(capturer::Count::DatagramsIncomplete),
                self.capturer(capturer::Count::DatagramsCut),
                self.capturer(capturer::Count::DatagramsUnsplit),
            ]),
            inject: UdpInject {
                datagrams: inject(injector::Count::Datagrams),
                payload_bytes: inject(injector::Count::DatagramBytes),
                fragments: inject(injector::Count::DatagramFragments),
                refused: inject(injector::Count::DatagramPacketsRefused),
            },
            replies: both(DatagramCount::Replies, DatagramCount::ReplyBytes),
            first_reply_us: shards(DatagramCount::FirstReplyUs)
                .checked_div(shards(DatagramCount::FirstReplies))
                .unwrap_or(0),
            icmp_errors: shards(DatagramCount::Unreachable),
            flows: UdpFlows { open, started, expired: started.saturating_sub(open) },
        }
    }

    fn record(&self) -> Option<Record> {
        use capturer::Count as C;
        let plan = self.plan.record.as_ref()?;
        let amount =
            |packets: C, bytes: C| Recorded { packets: self.capturer(packets), bytes: self.capturer(bytes) };
        // What is counted later is read first: packets are wanted before they are anything else.
        let written = amount(C::RecordWrittenPackets, C::RecordWrittenBytes);
        let dropped = [
            ("ring_full", amount(C::RecordFullPackets, C::RecordFullBytes)),
            ("disk", amount(C::RecordDiskPackets, C::RecordDiskBytes)),
            ("capturer_lost", amount(C::RecordLostPackets, C::RecordLostBytes)),
        ];
        let done = dropped.iter().fold(written, |sum, (_, one)| sum.and(one));
        let again = amount(C::RecordAgainPackets, C::RecordAgainBytes);
        let wanted = amount(C::RecordPackets, C::RecordBytes).and(&again);
        // A packet may be in a file an instant before the step of its batch counts it.
        let wanted =
            Recorded { packets: wanted.packets.max(done.packets), bytes: wanted.bytes.max(done.bytes) };
        Some(Record {
            directory: plan.directory.display().to_string(),
            wanted,
            written,
            dropped: dropped.into_iter().map(|(reason, one)| (reason.to_owned(), one)).collect(),
            waiting: Recorded {
                packets: wanted.packets.saturating_sub(done.packets),
                bytes: wanted.bytes.saturating_sub(done.bytes),
            },
            files: self.capturer(C::RecordFiles),
            file_bytes: self.capturer(C::RecordFileBytes),
            removed_files: self.capturer(C::RecordRemovedFiles),
            removed_bytes: self.capturer(C::RecordRemovedBytes),
            failing: self.capturer(C::RecordFailing) > 0,
            only: self.plan.records_only(),
        })
    }

    fn replay(&self) -> Option<Replay> {
        use capturer::Count as C;
        self.plan.trace.as_ref()?;
        let answered = (0..self.plan.shards)
            .map(|k| self.region.read_counter(Role::Shard(k), shard::offset_gauge(Gauge::Answered)))
            .max();
        let begun_us = self.capturer(C::FileBegun);
        let since = |at_us: u64| at_us.saturating_sub(begun_us) as f64 / 1e6;
        Some(Replay {
            read_bytes: self.capturer(C::FileRead),
            bytes: self.capturer(C::FileBytes),
            read_s: since(self.capturer(C::FileLast)),
            answered_s: since(answered.unwrap_or(0)),
            online_answers: self.capturer(C::Answers),
        })
    }

    fn sessions(&self) -> Sessions {
        let failed = [
            ("refused", Count::FailedRefused),
            ("timed_out", Count::FailedTimedOut),
            ("reset", Count::FailedReset),
            ("target_closed", Count::FailedTargetClosed),
            ("memory", Count::FailedMemory),
            ("gap", Count::FailedGap),
            ("endpoints_exhausted", Count::FailedExhausted),
            ("superseded", Count::FailedSuperseded),
            ("idle", Count::FailedIdle),
            ("half_open", Count::FailedHalfOpen),
            ("stopped", Count::FailedStopped),
            ("shed", Count::FailedShed),
            ("worker_lost", Count::FailedWorkerLost),
            ("table_full", Count::RefusedTableFull),
        ];
        Sessions {
            open: self.over_shards(shard::offset_gauge(Gauge::Open)),
            started: self.shards(Count::SessionsStarted),
            completed: total([
                self.shards(Count::SessionsCompleted),
                self.shards(Count::SessionsClientReset),
            ]),
            failed: failed.iter().map(|(name, count)| ((*name).to_owned(), self.shards(*count))).collect(),
        }
    }

    fn inject(&self) -> Inject {
        let read = |count: injector::Count| self.region.read_counter(Role::Injector, count.index());
        let errors = injector::Count::errnos().iter();
        Inject {
            segments: read(injector::Count::Segments),
            bytes: read(injector::Count::Bytes),
            errors: errors.map(|count| (count.name().to_owned(), read(*count))).collect(),
            switches: read(injector::Count::Switches),
            detours: read(injector::Count::Detours),
            // Known by the supervisor's loop.
            engine: String::new(),
            why: String::new(),
        }
    }

    fn intercepts(&self) -> Vec<Intercept> {
        let name_of = |names: &[&'static str], value: u64| {
            usize::try_from(value)
                .ok()
                .and_then(|index| names.get(index))
                .copied()
                .unwrap_or("unknown")
                .to_owned()
        };
        let states: Vec<&str> = LinkState::ALL.iter().map(|state| state.name()).collect();
        let troubles: Vec<&str> = Trouble::ALL.iter().map(|trouble| trouble.name()).collect();
        let of = |(i, addr): (usize, &std::net::SocketAddr)| Intercept {
            addr: addr.to_string(),
            state: name_of(&states, self.link(i, InterceptCount::State)),
            trouble: match self.link(i, InterceptCount::LastTrouble) {
                0 => String::new(),
                trouble => name_of(&troubles, trouble),
            },
            connects: self.link(i, InterceptCount::Connects),
            headers: self.link(i, InterceptCount::Headers),
            gaps: self.link(i, InterceptCount::Gaps),
        };
        self.plan.intercepts.iter().enumerate().map(of).collect()
    }

    /// A target is sick when it is to any shard: each finds out for itself.
    fn targets(&self) -> Vec<Target> {
        let of = |(i, target): (usize, &topology::plan::Target)| {
            let looks = (0..self.plan.shards)
                .map(|k| shard::health(self.region.read_counter(Role::Shard(k), shard::offset_target(i))));
            let (sick, trips) =
                looks.fold((false, 0), |(sick, trips), look| (sick | look.sick, total([trips, look.trips])));
            let state = if sick { "sick" } else { "ok" }.to_owned();
            Target { addr: format!("{}{}", target.protocol.prefix(), target.addr), state, trips }
        };
        self.plan.targets.iter().enumerate().map(of).collect()
    }

    fn rings(&self) -> BTreeMap<String, u64> {
        let name = |link| match link {
            shm::Link::Capture(k) => format!("capture-{k}"),
            shm::Link::Inject(k) => format!("inject-{k}"),
            shm::Link::Returns(k) => format!("returns-{k}"),
        };
        wiring::wires(&self.plan)
            .iter()
            .map(|wire| (name(wire.link), self.region.link_depth(wire.link)))
            .collect()
    }

    fn counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let block = |role: Role, columns: Vec<(&str, usize)>| -> BTreeMap<String, u64> {
            columns
                .into_iter()
                .map(|(name, index)| (name.to_owned(), self.region.read_counter(role, index)))
                .collect()
        };
        let mut all = BTreeMap::new();
        let capturer = capturer::Count::ALL.iter().map(|count| (count.name(), count.index())).collect();
        all.insert("capturer-0".to_owned(), block(Role::Capturer, capturer));
        let injector = injector::Count::ALL.iter().map(|count| (count.name(), count.index())).collect();
        all.insert("injector-0".to_owned(), block(Role::Injector, injector));
        let is_counter = |count: &&ReturnCount| !RETURN_GAUGES.contains(count);
        let receiver =
            ReturnCount::ALL.iter().filter(is_counter).map(|count| (count.name(), count.index())).collect();
        all.insert("receiver-0".to_owned(), block(Role::Receiver, receiver));
        for k in 0..self.plan.shards {
            let machine = Count::ALL.iter().map(|count| (count.name(), shard::offset_count(*count)));
            let worker = WorkerCount::ALL.iter().map(|count| (count.name(), shard::offset_worker(*count)));
            let datagrams =
                DatagramCount::ALL.iter().map(|count| (count.name(), shard::offset_datagrams(*count)));
            let mut values = block(Role::Shard(k), machine.chain(worker).chain(datagrams).collect());
            for reason in Drop::ALL {
                let bytes = self.region.read_counter(Role::Shard(k), shard::offset_dropped_bytes(*reason));
                values.insert(format!("dropped_{}_bytes", reason.name()), bytes);
            }
            all.insert(format!("shard-worker-{k}"), values);
        }
        all
    }

    fn gauges(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        let receiver = RETURN_GAUGES
            .iter()
            .map(|count| (count.name().to_owned(), self.region.read_counter(Role::Receiver, count.index())));
        all.insert("receiver-0".to_owned(), receiver.collect());
        for k in 0..self.plan.shards {
            let read = |gauge: &Gauge| {
                (
                    gauge.name().to_owned(),
                    self.region.read_counter(Role::Shard(k), shard::offset_gauge(*gauge)),
                )
            };
            all.insert(format!("shard-worker-{k}"), Gauge::ALL.iter().map(read).collect());
        }
        all
    }

    fn buckets(&self, of: Timed) -> Vec<u64> {
        let first = shard::offset_histogram(of);
        (0..BUCKETS).map(|bucket| self.over_shards(first + bucket)).collect()
    }

    fn quantiles(&self, buckets: &[u64], of: Timed) -> Quantiles {
        let maxima = (0..self.plan.shards)
            .map(|k| self.region.read_counter(Role::Shard(k), shard::offset_histogram_max(of)));
        let max = maxima.max().unwrap_or(0);
        // A bucket's upper bound may lie beyond the largest sample.
        let at = |q| Histogram::quantile(buckets, q).min(max);
        Quantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max }
    }

    fn capturer(&self, count: capturer::Count) -> u64 {
        self.region.read_counter(Role::Capturer, count.index())
    }

    fn link(&self, intercept: usize, count: InterceptCount) -> u64 {
        self.region.read_counter(Role::Receiver, intercept_index(intercept, count))
    }

    fn shards(&self, count: Count) -> u64 {
        self.over_shards(shard::offset_count(count))
    }

    fn over_shards(&self, index: usize) -> u64 {
        total((0..self.plan.shards).map(|k| self.region.read_counter(Role::Shard(k), index)))
    }
}

/// The order of a packet's walk.
const ORDER: [&str; 3] = ["capturer", "shard-worker", "injector"];
/// Values of the receiver that fall as well as rise.
const RETURN_GAUGES: [ReturnCount; 3] = [ReturnCount::ClaimsLive, ReturnCount::Connected, ReturnCount::Eager];

#[cfg(test)]
mod tests {
    use super::*;
    use topology::wiring;

    use crate::{live, summary};

    /// Whatever stands in the region, it is told; nobody stops for it.
    #[test]
    fn damaged_counters_are_added_up_all_the_same() {
        let name = format!("collect-{}", std::process::id());
        let plan =
            crate::testing::plan(&name, &[(topology::Key::Map, "80-10.0.3.2:8080,udp:53-10.0.3.2:53")]);
        let spec = wiring::region_spec(&plan, shard_worker::arena_bytes);
        let region: &'static Region = Region::create(&name, &spec, &plan.to_bytes(), 1).unwrap();
        Region::remove(&name).unwrap();
        let roles = [Role::Capturer, Role::Injector, Role::Receiver, Role::Shard(0), Role::Shard(1)];
        let before = Collector::new(region, plan.clone(), Instant::now()).sample(&[], "running");
        for role in roles {
            let counters = region.counters(role);
            (0..shm::COUNTERS_PER_ROLE).for_each(|index| counters.set(index, u64::MAX - 1));
        }
        let after = Collector::new(region, plan, Instant::now()).sample(&[], "running");
        assert_eq!(after.stats.ledger.delivered.payload_bytes, u64::MAX - 3, "both shards together");
        assert!(!summary::lines(&after.stats).is_empty());
        for (one, other) in [(&before, &after), (&after, &before)] {
            live::line(one, other, Duration::from_secs(1), None, "", 120);
        }
    }
}
