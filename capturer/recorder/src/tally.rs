//! What both ends count: one figure has one writer, so a plain load and store is enough.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flow::named_enum;

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
        /// Told by the capture thread: frames that the kernel had no room for.
        KernelDrops => "kernel_drops",
    }
}

/// The figures.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; Figure::COUNT]);

impl Tally {
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
        self.get(Figure::FullPackets) + self.get(Figure::DiskPackets)
    }
}
