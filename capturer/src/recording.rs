//! The recorder seen from the capturer: packets go in, its figures lie among the capturer's counters, where they outlive this process.
//!
//! What a batch gives to the recorder is counted in the batch's step, and what is in a file as soon as the kernel has it. So of a dead
//! capturer it is known what was owed, and by the file that it left what was written: the rest is `record_lost`, to the packet.
//! Frames of a batch that was not counted come again from a ring; those of them that were in the file already are
//! `record_again`, and twice in the files. `record + again = written + full + disk + lost + waiting` over any number of deaths.

use std::io;

use recorder::{Amount, Figure, Intake, Options, Owner, Recorder, Tally};
use shm::Counters;
use topology::plan::RecordPlan;
use topology::{Plan, Process};

use crate::count::{Count, FIGURES};
use crate::source::Frame;

/// A recorder.
pub(crate) struct Recording {
    intake: Intake,
    recorder: Recorder,
}

impl Recording {
    /// Starts it, if the plan wants one.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start(plan: &Plan, counters: &Counters) -> io::Result<Option<Self>> {
        let Some(record) = &plan.record else { return Ok(None) };
        let tally = Tally::new(counters.part(FIGURES, Figure::COUNT));
        let nice = plan.restraint.nice - plan.nice(Process::Capturer);
        let give_way = move || {
            if let Err(error) = shm::give_way(nice) {
                tracing::warn!("the recorder's thread has the capturer's CPU priority ({error})");
            }
        };
        let (intake, recorder) = Recorder::start(&options(plan, record), tally, owed(counters), give_way)?;
        Ok(Some(Self { intake, recorder }))
    }

    /// Takes a packet; says how many bytes of it were to be recorded.
    pub(crate) fn packet(&mut self, frame: &Frame<'_>) -> usize {
        self.intake.packet(frame.time_ns, frame.wire_len, frame.packet)
    }

    /// Tells it what the kernel had no room for, for the files' statistics.
    pub(crate) fn kernel_drops(&self, drops: u64) {
        self.intake.kernel_drops(drops);
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

/// What a dead predecessor had taken and neither dropped nor given up: it is in files, or lost.
fn owed(counters: &Counters) -> Amount {
    let open = |taken: [Count; 2], gone: [Count; 3]| {
        let sum = |of: &[Count]| of.iter().map(|count| counters.get(count.index())).sum::<u64>();
        sum(&taken).saturating_sub(sum(&gone))
    };
    use Count as C;
    Amount {
        packets: open(
            [C::RecordPackets, C::RecordAgainPackets],
            [C::RecordFullPackets, C::RecordDiskPackets, C::RecordLostPackets],
        ),
        bytes: open(
            [C::RecordBytes, C::RecordAgainBytes],
            [C::RecordFullBytes, C::RecordDiskBytes, C::RecordLostBytes],
        ),
    }
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
