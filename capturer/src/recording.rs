//! The recorder seen from the capturer: packets go in, its figures go into the capturer's counters, where they outlive this
//! process.
//!
//! What was on its way to a file when a capturer died is `record_lost`: to be recorded, as the counters of its last batch say, and
//! neither written nor dropped when it told of that last. So `record = written + full + disk + lost + waiting` holds over any
//! number of deaths; a packet that had reached the file in the last instant is counted as lost nevertheless.

use std::io;

use recorder::{Figure, Intake, Options, Owner, Recorder};
use shm::Counters;
use topology::Plan;
use topology::plan::RecordPlan;

use crate::count::{Count, of_figure};
use crate::source::Frame;

/// A recorder, and what its predecessors had counted.
pub(crate) struct Recording {
    intake: Intake,
    recorder: Recorder,
    before: [u64; Figure::COUNT],
}

impl Recording {
    /// Starts it, if the plan wants one.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start(plan: &Plan, counters: &Counters) -> io::Result<Option<Self>> {
        let Some(record) = &plan.record else { return Ok(None) };
        settle(counters);
        let mut before = [0; Figure::COUNT];
        for &figure in Figure::ALL {
            before[figure.index()] = of_figure(figure).map_or(0, |count| counters.get(count.index()));
        }
        // A gauge: what the dead one's disk did says nothing of now.
        before[Figure::Failing.index()] = 0;
        let (intake, recorder) = Recorder::start(&options(plan, record))?;
        Ok(Some(Self { intake, recorder, before }))
    }

    /// Takes a packet; says how many bytes of it were to be recorded.
    pub(crate) fn packet(&mut self, frame: &Frame<'_>) -> usize {
        self.intake.packet(frame.time_ns, frame.wire_len, frame.packet)
    }

    /// Puts the figures where the supervisor reads them.
    pub(crate) fn tell(&self, counters: &Counters) {
        self.intake.kernel_drops(counters.get(Count::KernelDrops.index()));
        let tally = self.recorder.tally();
        for &figure in Figure::ALL {
            if let Some(count) = of_figure(figure) {
                counters.set(count.index(), self.before[figure.index()] + tally.get(figure));
            }
        }
    }

    /// No packet comes any more.
    pub(crate) fn stop(&self) {
        self.recorder.stop();
    }

    /// Whether all that came is in files.
    pub(crate) fn is_finished(&self) -> bool {
        self.recorder.is_finished()
    }
}

/// What a dead predecessor had in hand is lost.
fn settle(counters: &Counters) {
    let open = |all: Count, others: [Count; 4]| {
        let others: u64 = others.iter().map(|count| counters.get(count.index())).sum();
        counters.get(all.index()).saturating_sub(others)
    };
    use Count as C;
    let packets = [C::RecordWrittenPackets, C::RecordFullPackets, C::RecordDiskPackets, C::RecordLostPackets];
    let bytes = [C::RecordWrittenBytes, C::RecordFullBytes, C::RecordDiskBytes, C::RecordLostBytes];
    counters.add(C::RecordLostPackets.index(), open(C::RecordPackets, packets));
    counters.add(C::RecordLostBytes.index(), open(C::RecordBytes, bytes));
}

fn options(plan: &Plan, record: &RecordPlan) -> Options {
    let interface = match plan.capture.interfaces.as_slice() {
        [] => "any".to_owned(),
        names => names.join(","),
    };
    let (instance, name) = (plan.instance, plan.name.clone());
    Options {
        directory: record.directory.clone(),
        owner: Owner { name, host: record.host, run: (instance ^ (instance >> 32)) as u32 },
        interface,
        rotate_bytes: record.rotate_bytes,
        rotate_ms: record.rotate_ms,
        keep_bytes: record.keep_bytes,
        snap: record.snap,
        zstd: record.zstd,
        ring_bytes: usize::try_from(record.buffer_bytes).unwrap_or(usize::MAX),
    }
}
