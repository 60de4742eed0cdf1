//! What the capturer counts. The order is the order in its block of the region, so the supervisor reads it by the same enum.

use flow::{Malformed, named_enum};

named_enum! {
    /// Counters and gauges of the capturer.
    pub enum Count {
        /// Frames read from the kernel.
        Frames => "frames",
        /// Their bytes as captured, from the IP header on.
        FrameBytes => "frame_bytes",
        /// Frames that passed the filter and found no room in the kernel's ring.
        KernelDrops => "kernel_drops",
        /// Client → server segments of a mapping ("captured" in the ledger).
        Segments => "segments",
        /// Their payload bytes.
        PayloadBytes => "payload_bytes",
        /// Segments of which the capture is cut.
        CutSegments => "cut_segments",
        /// Payload bytes that were on the wire but not captured.
        CutBytes => "cut_bytes",
        /// Segments for which the shard's ring had no room.
        RingFullSegments => "ring_full_segments",
        /// Their payload bytes, once each.
        RingFullBytes => "ring_full_bytes",
        /// Their payload bytes times the copies that were wanted: goes to `wanted` and to `dropped` alike.
        RingFullWantedBytes => "ring_full_wanted_bytes",
        /// Packets that no mapping names; the filter lets few of these through.
        NotMapped => "not_mapped",
        /// Frames that were seen at a device and again at the one that stands on it, where all are captured: taken once.
        SeenTwice => "seen_twice",
        /// Packets of our own making, seen again.
        Own => "own",
        /// Packets of a mapping that `-F`, `--net` or `--not-net` leave out and no kernel filter had.
        LeftOut => "left_out",
        /// As [`Malformed::NotIp`]; this and the following stand in the order of that enum.
        NotIp => "malformed_not_ip",
        /// As [`Malformed::NotTcp`].
        NotTcp => "malformed_not_tcp",
        /// As [`Malformed::Fragment`].
        Fragment => "malformed_fragment",
        /// As [`Malformed::ShortIp`].
        ShortIp => "malformed_short_ip",
        /// As [`Malformed::ShortTcp`].
        ShortTcp => "malformed_short_tcp",
        /// As [`Malformed::BadLength`].
        BadLength => "malformed_bad_length",
        /// As [`Malformed::BadOffset`].
        BadOffset => "malformed_bad_offset",
        /// As [`Malformed::Extensions`].
        Extensions => "malformed_too_many_extensions",
        /// As [`Malformed::MappedAddress`].
        MappedAddress => "malformed_mapped_address",
        /// As [`Malformed::ShortUdp`].
        ShortUdp => "malformed_short_udp",
        /// Segments whose transport checksum was not filled in yet: normal on veth, loopback and with offloads.
        ChecksumUnfilled => "checksum_unfilled",
        /// Batches handed to the shards.
        Batches => "batches",
        /// Times it slept until the kernel reported a frame.
        Sleeps => "sleeps",
        /// Times it napped.
        Naps => "naps",
        /// How often a link went down.
        LinkDowns => "link_downs",
        /// Gauge: interfaces that are down now.
        InterfacesDown => "interfaces_down",
        /// Gauge: interfaces that do not exist any more.
        InterfacesGone => "interfaces_gone",
        /// How often a device was opened by a capturer of an engine whose buffer dies with it: each time but the first of an
        /// interface, frames of the time between are missing.
        Opened => "opened",
        /// Gauge: bytes read of the replayed files as they lie on the disk, all loops together.
        FileRead => "file_read",
        /// Gauge: bytes of all loops of the replayed files; 0 when a pipe is among them.
        FileBytes => "file_bytes",
        /// Gauge: when the first byte of the files was read, CLOCK_MONOTONIC microseconds.
        FileBegun => "file_begun_at_us",
        /// Gauge: when the last packet so far was handed over, likewise.
        FileLast => "file_last_at_us",
        /// Times that a file's packet waited until a shard had room.
        RoomWaits => "room_waits",
        /// Client → server datagrams of a mapping, whole.
        Datagrams => "datagrams",
        /// Their payload bytes.
        DatagramBytes => "datagram_bytes",
        /// Fragments of datagrams, of whatever service.
        DatagramFragments => "datagram_fragments",
        /// Datagrams of a mapping of which not all fragments came in time, or that contradict each other.
        DatagramsIncomplete => "datagrams_incomplete",
        /// Datagrams of which the capture is cut: not replayed.
        DatagramsCut => "datagrams_cut",
        /// Packets of several datagrams of a mapping that this engine is not told the sizes of: not replayed.
        DatagramsUnsplit => "datagrams_unsplit",
        /// Datagrams for which the shard's ring had no room, times the copies that were wanted.
        DatagramsRingFull => "datagrams_ring_full",
        /// Their payload bytes times the copies that were wanted: goes to `wanted` and to `dropped` alike.
        DatagramsRingFullWantedBytes => "datagrams_ring_full_wanted_bytes",
        /// Server → client packets, which a recording takes, and a replay of files for what their headers tell.
        Answers => "answers",
        /// Packets that were to be recorded, both directions.
        RecordPackets => "record_packets",
        /// Their bytes, as far as they were to be kept.
        RecordBytes => "record_bytes",
        /// As [`recorder::Figure::WrittenPackets`]; this and the following are that enum's, in its order.
        RecordWrittenPackets => "record_written_packets",
        /// As [`recorder::Figure::WrittenBytes`].
        RecordWrittenBytes => "record_written_bytes",
        /// As [`recorder::Figure::FullPackets`].
        RecordFullPackets => "record_full_packets",
        /// As [`recorder::Figure::FullBytes`].
        RecordFullBytes => "record_full_bytes",
        /// As [`recorder::Figure::DiskPackets`].
        RecordDiskPackets => "record_disk_packets",
        /// As [`recorder::Figure::DiskBytes`].
        RecordDiskBytes => "record_disk_bytes",
        /// As [`recorder::Figure::Files`].
        RecordFiles => "record_files",
        /// As [`recorder::Figure::FileBytes`].
        RecordFileBytes => "record_file_bytes",
        /// As [`recorder::Figure::RemovedFiles`].
        RecordRemovedFiles => "record_removed_files",
        /// As [`recorder::Figure::RemovedBytes`].
        RecordRemovedBytes => "record_removed_bytes",
        /// Gauge: as [`recorder::Figure::Failing`].
        RecordFailing => "record_failing",
        /// As [`recorder::Figure::LostPackets`].
        RecordLostPackets => "record_lost_packets",
        /// As [`recorder::Figure::LostBytes`].
        RecordLostBytes => "record_lost_bytes",
        /// As [`recorder::Figure::AgainPackets`].
        RecordAgainPackets => "record_again_packets",
        /// As [`recorder::Figure::AgainBytes`].
        RecordAgainBytes => "record_again_bytes",
        /// As [`recorder::Figure::BeforePackets`].
        RecordBeforePackets => "record_before_packets",
        /// As [`recorder::Figure::BeforeBytes`].
        RecordBeforeBytes => "record_before_bytes",
        /// As [`recorder::Figure::KernelDrops`].
        RecordKernelDrops => "record_kernel_drops",
        /// Gauge: when somebody looked for frames last, CLOCK_MONOTONIC milliseconds.
        SeenMs => "seen_ms",
        /// Time in which nobody captured, because what a capturer or its supervisor held for it died with it: from its last sign of
        /// life to the successor's first look, milliseconds.
        UnseenMs => "unseen_ms",
    }
}

impl From<Malformed> for Count {
    fn from(malformed: Malformed) -> Self {
        Count::ALL[Count::NotIp.index() + malformed.index()]
    }
}

/// Where the recorder's figures begin; its thread alone writes them, but for those that the capture thread tells.
pub(crate) const FIGURES: usize = Count::RecordWrittenPackets.index();

/// Where the number of the next frame of each capture ring stands in the block, for a successor to go on there.
pub(crate) const POSITIONS: usize = 512;
/// Capture rings at most.
pub(crate) const MAX_RINGS: usize = shm::COUNTERS_PER_ROLE - POSITIONS;

const _: () = assert!(Count::COUNT <= POSITIONS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorders_figures_keep_their_names() {
        for (&figure, count) in recorder::Figure::ALL.iter().zip(&Count::ALL[FIGURES..]) {
            assert_eq!(count.name(), format!("record_{}", figure.name()));
        }
    }

    #[test]
    fn malformed_packets_are_counted_under_their_name() {
        for &malformed in Malformed::ALL {
            assert_eq!(Count::from(malformed).name(), format!("malformed_{}", malformed.name()));
        }
    }
}
