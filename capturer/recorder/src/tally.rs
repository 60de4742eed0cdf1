//! What both ends count: one figure has one writer, so a plain load and store is enough. The figures lie where their reader wants
//! them and outlive this process, if he does: each is true the instant that it is stored.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flow::named_enum;

use crate::part::Amount;

named_enum! {
    /// A figure; packets and bytes are those that were to be written, after the cut of `snap`.
    pub enum Figure {
        /// Packets in files.
        WrittenPackets => "written_packets",
        /// Their bytes.
        WrittenBytes => "written_bytes",
        /// Packets that found the ring full: the writer was too slow, or the disk.
        FullPackets => "full_packets",
        /// Their bytes.
        FullBytes => "full_bytes",
        /// Packets that the disk did not take: it is full, or fails.
        DiskPackets => "disk_packets",
        /// Their bytes.
        DiskBytes => "disk_bytes",
        /// Files begun.
        Files => "files",
        /// Bytes in files, as they lie on the disk.
        FileBytes => "file_bytes",
        /// Oldest files that made room.
        RemovedFiles => "removed_files",
        /// Their bytes on the disk.
        RemovedBytes => "removed_bytes",
        /// Gauge: 1 while the disk takes nothing.
        Failing => "failing",
        /// Packets that were on their way to a file when a recorder died.
        LostPackets => "lost_packets",
        /// Their bytes.
        LostBytes => "lost_bytes",
        /// Packets that a dead recorder wrote before anybody had counted that they were to be; they may come again.
        AgainPackets => "again_packets",
        /// Their bytes.
        AgainBytes => "again_bytes",
        /// [`Figure::WrittenPackets`] when the file was begun that is being written.
        BeforePackets => "before_packets",
        /// [`Figure::WrittenBytes`] at that time.
        BeforeBytes => "before_bytes",
        /// Told by the capture thread: frames that the kernel had no room for.
        KernelDrops => "kernel_drops",
    }
}

/// The figures.
#[derive(Clone, Copy, Debug)]
pub struct Tally(&'static [AtomicU64]);

impl Tally {
    /// In this memory, which may hold a dead predecessor's. Panics when there is not room for all.
    pub fn new(figures: &'static [AtomicU64]) -> Self {
        Self(&figures[..Figure::COUNT])
    }

    /// A figure as it stands.
    pub fn get(&self, figure: Figure) -> u64 {
        self.0[figure.index()].load(Relaxed)
    }

    /// Sets it; by its one writer.
    pub fn set(&self, figure: Figure, value: u64) {
        self.0[figure.index()].store(value, Relaxed);
    }

    pub(crate) fn add(&self, figure: Figure, n: u64) {
        self.set(figure, self.get(figure) + n);
    }

    /// Packets given up here, for whatever reason.
    pub(crate) fn dropped(&self) -> u64 {
        self.get(Figure::FullPackets) + self.get(Figure::DiskPackets) + self.get(Figure::LostPackets)
    }

    /// What is in files.
    pub(crate) fn written(&self) -> Amount {
        Amount { packets: self.get(Figure::WrittenPackets), bytes: self.get(Figure::WrittenBytes) }
    }
}
