//! The thread that writes. It sleeps while the ring is empty (some milliseconds: the ring holds far more), gathers blocks, and ends
//! files by size and age. What goes wrong is one line when it begins and one when it is over.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Acquire};
use std::time::{Duration, Instant};

use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rtrb::Consumer;

use crate::Options;
use crate::intake::{HEAD, Head};
use crate::part::{Amount, Part};
use crate::pcapng;
use crate::recount;
use crate::store::Store;
use crate::tally::{Figure, Tally};

/// Packets between two looks at the clock.
const BATCH: usize = 1_024;
/// Sleep with an empty ring: 10 Gbit/s fill 12 MB in that time. An end that is asked for cuts it short.
const NAP: Duration = Duration::from_millis(10);
/// A compressed file's packets go out at least so often; each time costs the compression a little.
const COMPRESSED_FLUSH_MS: u64 = 1_000;
/// Between tries while the disk takes nothing.
const RETRY_MS: u64 = 1_000;
/// Trouble is over when it did not come back for so long.
const CALM_MS: u64 = 3_000;

/// The writer.
pub(crate) struct Writer {
    options: Options,
    ring: Consumer<u8>,
    store: Store,
    tally: Tally,
    part: Option<Part>,
    /// When the file was begun, and when something of it went out last.
    begun_ms: u64,
    flushed_ms: u64,
    /// Time of the last packet, for the statistics at a file's end.
    last_ns: u64,
    block: Vec<u8>,
    disk: Trouble,
    full: Trouble,
    /// What had found the ring full at the last look.
    full_so_far: Amount,
}

/// Something that goes wrong for a while.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    since_ms: Option<u64>,
    last_ms: u64,
    /// Packets and bytes dropped before it began.
    before: Amount,
}

impl Trouble {
    /// It was there now; true when that is new.
    fn seen(&mut self, now_ms: u64, before: Amount) -> bool {
        self.last_ms = now_ms;
        let new = self.since_ms.is_none();
        if new {
            (self.since_ms, self.before) = (Some(now_ms), before);
        }
        new
    }

    /// Seconds that it lasted, when it is over now.
    fn over(&mut self, now_ms: u64) -> Option<f64> {
        let since_ms = self.since_ms.filter(|_| now_ms.saturating_sub(self.last_ms) >= CALM_MS)?;
        self.since_ms = None;
        Some(self.last_ms.saturating_sub(since_ms) as f64 / 1e3)
    }
}

impl Writer {
    pub(crate) fn new(options: &Options, ring: Consumer<u8>, tally: Tally) -> Self {
        Self {
            options: options.clone(),
            ring,
            store: Store::new(options.directory.clone(), options.owner.clone()),
            tally,
            part: None,
            begun_ms: 0,
            flushed_ms: 0,
            last_ns: 0,
            block: Vec::new(),
            disk: Trouble::default(),
            full: Trouble::default(),
            full_so_far: Amount::default(),
        }
    }

    /// Writes until it was asked to end and the ring is empty. Begins with a predecessor's ends.
    pub(crate) fn run(mut self, owed: Amount, stop: &AtomicBool) {
        leave_the_core();
        let begin = Instant::now();
        let now_ms = || begin.elapsed().as_millis() as u64;
        self.settle(owed);
        loop {
            // Acquire: before the look at the ring, or the last packets could come in between.
            let last = stop.load(Acquire);
            let busy = self.step(now_ms());
            if !busy && last {
                break;
            }
            if !busy {
                std::thread::park_timeout(NAP);
            }
        }
        self.end_file(now_ms());
    }

    /// What a dead predecessor had in hand and is in no file is lost. A part that it left may hold more than it had counted; what is
    /// in there beyond what was owed, it wrote before the capture had said that it was to be.
    fn settle(&mut self, owed: Amount) {
        let mut written = self.tally.written();
        if self.tally.get(Figure::Files) > 0
            && let Some(left) = self.store.left()
        {
            match recount::packets(&left) {
                Ok(Amount { packets, bytes }) => {
                    written.packets = written.packets.max(self.tally.get(Figure::BeforePackets) + packets);
                    written.bytes = written.bytes.max(self.tally.get(Figure::BeforeBytes) + bytes);
                }
                Err(error) => tracing::warn!(
                    "what a dead recorder had written last into {} cannot be counted ({error}): it counts as lost",
                    left.display()
                ),
            }
        }
        self.tally.set(Figure::WrittenPackets, written.packets);
        self.tally.set(Figure::WrittenBytes, written.bytes);
        self.tally.add(Figure::LostPackets, owed.packets.saturating_sub(written.packets));
        self.tally.add(Figure::LostBytes, owed.bytes.saturating_sub(written.bytes));
        self.tally.add(Figure::AgainPackets, written.packets.saturating_sub(owed.packets));
        self.tally.add(Figure::AgainBytes, written.bytes.saturating_sub(owed.bytes));
        // A gauge: what the dead one's disk did says nothing of now.
        self.tally.set(Figure::Failing, 0);
        self.full_so_far =
            Amount { packets: self.tally.get(Figure::FullPackets), bytes: self.tally.get(Figure::FullBytes) };
        self.store.finish_leftovers();
    }

    /// Takes what lies in the ring, [`BATCH`] packets at most, and does what is due. Says whether there was any.
    fn step(&mut self, now_ms: u64) -> bool {
        let taken = (0..BATCH).take_while(|_| self.take(now_ms)).count();
        if taken < BATCH {
            let since_ms = now_ms.saturating_sub(self.flushed_ms);
            if !self.options.zstd || since_ms >= COMPRESSED_FLUSH_MS {
                self.flush(now_ms);
            }
        }
        if self.part.is_some() && now_ms.saturating_sub(self.begun_ms) >= self.options.rotate_ms {
            self.end_file(now_ms);
        }
        self.tell(now_ms);
        taken > 0
    }

    /// Takes one packet out of the ring; false when there is none.
    fn take(&mut self, now_ms: u64) -> bool {
        let Ok(chunk) = self.ring.read_chunk(HEAD) else { return false };
        let mut head = [0; HEAD];
        let (a, b) = chunk.as_slices();
        head[..a.len()].copy_from_slice(a);
        head[a.len()..].copy_from_slice(b);
        let Head { time_ns, wire_len, len } = Head::from_bytes(head);
        // Its head may be there before it is.
        let Ok(chunk) = self.ring.read_chunk(HEAD + len as usize) else { return false };
        let (a, b) = chunk.as_slices();
        let packet = if a.len() >= HEAD { (&a[HEAD..], b) } else { (&b[HEAD - a.len()..], &[][..]) };
        self.block.clear();
        pcapng::packet(&mut self.block, time_ns, wire_len, packet);
        chunk.commit_all();
        self.last_ns = time_ns;
        self.write(time_ns, len.into(), now_ms);
        true
    }

    /// Puts the block of a packet into a file that has room for it.
    fn write(&mut self, time_ns: u64, bytes: u64, now_ms: u64) {
        let grown = self.block.len() as u64 + pcapng::STATISTICS_BYTES;
        let full = |part: &Part| part.has_packets() && part.bytes() + grown > self.options.rotate_bytes;
        if self.part.as_ref().is_some_and(full) {
            self.end_file(now_ms);
        }
        if self.part.is_none() && !self.begin_file(time_ns, now_ms) {
            return self.dropped(Amount { packets: 1, bytes });
        }
        let Some(part) = &mut self.part else { return };
        if let Err(error) = part.packet(&self.block, bytes) {
            return self.failed(&error, now_ms);
        }
        if part.is_full() {
            self.flush(now_ms);
        }
    }

    /// Begins a file, unless the disk took nothing a moment ago.
    fn begin_file(&mut self, time_ns: u64, now_ms: u64) -> bool {
        if self.disk.since_ms.is_some() && now_ms.saturating_sub(self.disk.last_ms) < RETRY_MS {
            return false;
        }
        let Options { rotate_bytes, keep_bytes, zstd, snap, interface, .. } = &self.options;
        if let Some(keep) = *keep_bytes {
            self.store.make_room(keep, *rotate_bytes, self.tally);
        }
        let before = self.tally.written();
        self.tally.set(Figure::BeforePackets, before.packets);
        self.tally.set(Figure::BeforeBytes, before.bytes);
        let mut header = vec![];
        let program = concat!("tcptwin ", env!("CARGO_PKG_VERSION"));
        pcapng::header(&mut header, program, interface, *snap);
        match self.store.make(time_ns, *zstd).and_then(|made| Part::begin(made, *zstd, &header)) {
            Ok(part) => {
                self.tally.add(Figure::Files, 1);
                self.tally.add(Figure::FileBytes, part.bytes());
                self.part = Some(part);
                (self.begun_ms, self.flushed_ms) = (now_ms, now_ms);
                true
            }
            Err(error) => {
                self.failed(&error, now_ms);
                false
            }
        }
    }

    fn flush(&mut self, now_ms: u64) {
        let Some(part) = &mut self.part else { return };
        self.flushed_ms = now_ms;
        if part.gathered() == Amount::default() {
            return;
        }
        match part.flush() {
            Ok((grown, gathered)) => self.written(grown, gathered),
            Err(error) => self.failed(&error, now_ms),
        }
    }

    /// Ends the file that there is, with what was counted so far.
    fn end_file(&mut self, now_ms: u64) {
        let Some(mut part) = self.part.take() else { return };
        let (kernel, ours) = (self.tally.get(Figure::KernelDrops), self.tally.dropped());
        let seen = self.tally.get(Figure::WrittenPackets) + part.gathered().packets + ours;
        let mut last = vec![];
        pcapng::statistics(&mut last, self.last_ns, seen + kernel, ours + kernel);
        match part.finish(&last) {
            Ok((grown, gathered)) => {
                self.written(grown, gathered);
                if let Err(error) = part.name() {
                    self.part = Some(part);
                    self.failed(&error, now_ms);
                }
            }
            Err(error) => {
                self.part = Some(part);
                self.failed(&error, now_ms);
            }
        }
    }

    fn written(&self, grown: u64, Amount { packets, bytes }: Amount) {
        self.tally.add(Figure::FileBytes, grown);
        self.tally.add(Figure::WrittenPackets, packets);
        self.tally.add(Figure::WrittenBytes, bytes);
    }

    fn dropped(&self, Amount { packets, bytes }: Amount) {
        self.tally.add(Figure::DiskPackets, packets);
        self.tally.add(Figure::DiskBytes, bytes);
    }

    /// The disk did not take something: the file ends where it was good, and the next is tried in a second.
    fn failed(&mut self, error: &io::Error, now_ms: u64) {
        let before = self.lost_to_disk();
        if let Some(part) = self.part.take() {
            self.dropped(part.give_up());
        }
        self.tally.set(Figure::Failing, 1);
        if self.disk.seen(now_ms, before) {
            tracing::warn!(
                "recording into {} failed ({error}): packets are dropped, capture goes on, and writing is tried again each second. Make room, or give another directory",
                self.options.directory.display()
            );
        }
    }

    /// Says what began and what is over. Of a full ring the capture thread tells by its figures only.
    fn tell(&mut self, now_ms: u64) {
        let full =
            Amount { packets: self.tally.get(Figure::FullPackets), bytes: self.tally.get(Figure::FullBytes) };
        if full.packets > self.full_so_far.packets {
            let before = std::mem::replace(&mut self.full_so_far, full);
            if self.full.seen(now_ms, before) {
                tracing::warn!(
                    "the disk of {} is slower than the capture: packets are dropped (ring_full) and capture goes on. Cut packets with --snap, try --zstd, or give a faster disk",
                    self.options.directory.display()
                );
            }
        }
        if let Some(seconds) = self.full.over(now_ms) {
            let Amount { packets, bytes } = less(full, self.full.before);
            tracing::info!(
                "recording keeps up again: {packets} packets ({bytes} bytes) were dropped in {seconds:.1} s"
            );
        }
        let lost = self.lost_to_disk();
        // What is not written now cannot have failed: it is over only where something was.
        if self.part.is_some()
            && let Some(seconds) = self.disk.over(now_ms)
        {
            let Amount { packets, bytes } = less(lost, self.disk.before);
            self.tally.set(Figure::Failing, 0);
            tracing::info!(
                "recording goes on: {packets} packets ({bytes} bytes) were dropped in {seconds:.1} s"
            );
        }
    }

    fn lost_to_disk(&self) -> Amount {
        Amount { packets: self.tally.get(Figure::DiskPackets), bytes: self.tally.get(Figure::DiskBytes) }
    }
}

/// The capture thread's core is its own: this thread runs wherever the supervisor, which is never pinned, may.
fn leave_the_core() {
    let done = sched_getaffinity(Pid::parent()).and_then(|cores| sched_setaffinity(Pid::from_raw(0), &cores));
    if let Err(error) = done {
        tracing::warn!("the recorder's thread shares the capturer's core ({error})");
    }
}

fn less(now: Amount, before: Amount) -> Amount {
    Amount { packets: now.packets - before.packets, bytes: now.bytes - before.bytes }
}

#[cfg(test)]
mod tests;
