//! Files by size, age and total, and what a killed recorder leaves; read again by the reader of `tcptwin replay`.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use lab::scratch::Scratch;
use trace::Reader;

use super::*;
use crate::{Intake, Owner};

struct Bench {
    scratch: Scratch,
    options: Options,
    tally: Tally,
}

/// A packet of `len` bytes whose first tell its number.
fn packet(number: u64, len: usize) -> Vec<u8> {
    let mut packet = vec![0x45; len];
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[20..28].copy_from_slice(&number.to_be_bytes());
    packet
}

const SECOND: u64 = 1_000_000_000;

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new("recorder").unwrap();
        let options = Options {
            directory: scratch.path().to_owned(),
            owner: Owner { name: "web".to_owned(), host: 1, run: 2 },
            interface: "eth0".to_owned(),
            rotate_bytes: 1 << 30,
            rotate_ms: 3_600_000,
            keep_bytes: None,
            snap: 0,
            zstd: false,
            ring_bytes: 1 << 20,
        };
        let tally = Tally::new(Vec::leak((0..Figure::COUNT).map(|_| AtomicU64::new(0)).collect()));
        Self { scratch, options, tally }
    }

    fn writer(&self) -> (Intake, Writer) {
        let (producer, consumer) = rtrb::RingBuffer::new(self.options.ring_bytes);
        let intake = Intake::new(producer, self.options.snap, self.tally);
        (intake, Writer::new(&self.options, consumer, self.tally))
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.scratch.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// What the files hold: number, length and length on the wire of each packet.
    fn read(&self) -> Vec<(u64, usize, u32)> {
        let mut reader = Reader::open(&self.files(), trace::Options::default()).unwrap();
        let mut found = vec![];
        while let Some(packet) = reader.next() {
            let number = packet.ip[20..28].try_into().map(u64::from_be_bytes).unwrap();
            assert_eq!(packet.time_ns, number * SECOND);
            found.push((number, packet.ip.len(), packet.wire_len));
        }
        found
    }
}

fn put(intake: &mut Intake, numbers: impl IntoIterator<Item = u64>, len: usize) {
    for number in numbers {
        intake.packet(number * SECOND, len as u32, &packet(number, len));
    }
}

#[test]
fn what_goes_in_comes_out_of_the_reader_byte_for_byte() {
    for zstd in [false, true] {
        let mut bench = Bench::new();
        bench.options.zstd = zstd;
        let (mut intake, mut writer) = bench.writer();
        for len in 28..600 {
            put(&mut intake, [len as u64], len);
            writer.step(0);
        }
        assert!(bench.files()[0].to_str().unwrap().ends_with(".part"));
        writer.end_file(0);
        let name = bench.files()[0].to_str().unwrap().to_owned();
        assert!(name.ends_with(if zstd { ".pcapng.zst" } else { ".pcapng" }), "{name}");
        let wanted: Vec<_> = (28..600).map(|len| (len as u64, len, len as u32)).collect();
        assert_eq!(bench.read(), wanted);
        assert_eq!(writer.tally.get(Figure::WrittenPackets), 572);
        assert_eq!(writer.tally.get(Figure::FileBytes), fs::metadata(&bench.files()[0]).unwrap().len());
    }
}

#[test]
fn a_file_ends_before_it_is_too_long() {
    for zstd in [false, true] {
        let mut bench = Bench::new();
        (bench.options.rotate_bytes, bench.options.zstd) = (10_000, zstd);
        let (mut intake, mut writer) = bench.writer();
        for number in 1..=100 {
            put(&mut intake, [number], 1_000);
            writer.step(0);
        }
        writer.end_file(0);
        let files = bench.files();
        assert!(zstd || files.len() == 12, "{files:?}");
        for file in &files {
            assert!(fs::metadata(file).unwrap().len() <= 10_000);
        }
        assert_eq!(bench.read().len(), 100);
    }
}

#[test]
fn a_file_ends_when_it_is_too_old_and_the_next_begins_with_a_packet() {
    let bench = Bench::new();
    let (mut intake, mut writer) = bench.writer();
    put(&mut intake, [1], 100);
    writer.step(5_000);
    writer.step(5_000 + 3_599_999);
    assert!(bench.files()[0].to_str().unwrap().ends_with(".part"));
    writer.step(5_000 + 3_600_000);
    assert!(bench.files()[0].to_str().unwrap().ends_with(".pcapng"));
    writer.step(8_000_000);
    assert_eq!(bench.files().len(), 1, "no empty file");
    put(&mut intake, [2], 100);
    writer.step(9_000_000);
    assert_eq!(bench.files().len(), 2);
}

#[test]
fn the_total_stays_within_its_bound_at_every_moment() {
    let mut bench = Bench::new();
    (bench.options.rotate_bytes, bench.options.keep_bytes) = (10_000, Some(35_000));
    let (mut intake, mut writer) = bench.writer();
    let foreign = bench.scratch.file("capture.pcapng");
    fs::write(&foreign, [0; 50_000]).unwrap();
    for number in 1..=100 {
        put(&mut intake, [number], 1_000);
        writer.step(0);
        let ours = bench.files().into_iter().filter(|file| *file != foreign);
        let total: u64 = ours.map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!(total <= 35_000, "{total} bytes after packet {number}");
    }
    writer.end_file(0);
    let removed = writer.tally.get(Figure::RemovedFiles);
    assert_eq!(removed + bench.files().len() as u64 - 1, writer.tally.get(Figure::Files));
    assert!(removed > 0 && foreign.exists());
    fs::remove_file(foreign).unwrap();
    let left: Vec<u64> = bench.read().iter().map(|(number, ..)| *number).collect();
    assert_eq!(*left.last().unwrap(), 100, "the newest stay");
    assert!(left.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn a_snap_length_cuts_and_keeps_the_length_on_the_wire() {
    let mut bench = Bench::new();
    bench.options.snap = 64;
    let (mut intake, mut writer) = bench.writer();
    assert_eq!(intake.packet(SECOND, 1_400, &packet(1, 1_400)), 64);
    assert_eq!(intake.packet(2 * SECOND, 40, &packet(2, 40)), 40);
    writer.step(0);
    writer.end_file(0);
    assert_eq!(bench.read(), [(1, 64, 1_400), (2, 40, 40)]);
}

#[test]
fn a_full_ring_costs_packets_that_are_counted_and_nothing_else() {
    let mut bench = Bench::new();
    bench.options.ring_bytes = 10_000;
    let (mut intake, mut writer) = bench.writer();
    put(&mut intake, 1..=20, 984);
    let tally = writer.tally;
    assert_eq!((tally.get(Figure::FullPackets), tally.get(Figure::FullBytes)), (10, 9_840));
    while writer.step(0) {}
    put(&mut intake, 21..=25, 984);
    writer.step(10);
    assert!(writer.full.since_ms.is_some());
    writer.step(CALM_MS);
    assert!(writer.full.since_ms.is_none(), "it is over");
    writer.end_file(CALM_MS);
    let numbers: Vec<u64> = bench.read().iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=10).chain(21..=25).collect::<Vec<_>>());
}

#[test]
fn a_recorder_that_was_killed_leaves_what_had_gone_out_and_the_next_finishes_and_counts_it() {
    // How many of the packets in the file it had counted, and how many of all the capture had.
    for (counted, owed, lost, again) in [(100, 120, 20, 0), (0, 120, 20, 0), (60, 100, 0, 0), (60, 90, 0, 10)]
    {
        for zstd in [false, true] {
            let mut bench = Bench::new();
            (bench.options.zstd, bench.options.rotate_ms) = (zstd, 1_000_000);
            let (mut intake, mut writer) = bench.writer();
            put(&mut intake, 1..=10, 500);
            writer.step(0);
            writer.end_file(0);
            put(&mut intake, 11..=110, 500);
            writer.step(0);
            writer.step(COMPRESSED_FLUSH_MS);
            put(&mut intake, 111..=130, 500);
            // As a kill leaves it: nothing is ended, and its locks are gone with it.
            let Part { .. } = writer.part.take().unwrap();
            drop((intake, writer));
            bench.tally.set(Figure::WrittenPackets, 10 + counted);
            bench.tally.set(Figure::WrittenBytes, (10 + counted) * 500);
            let (mut intake, mut heir) = bench.writer();
            heir.settle(Amount { packets: 10 + owed, bytes: (10 + owed) * 500 });
            let figures = |packets, bytes| (bench.tally.get(packets), bench.tally.get(bytes));
            assert_eq!(figures(Figure::WrittenPackets, Figure::WrittenBytes), (110, 55_000));
            assert_eq!(figures(Figure::LostPackets, Figure::LostBytes), (lost, lost * 500));
            assert_eq!(figures(Figure::AgainPackets, Figure::AgainBytes), (again, again * 500));
            put(&mut intake, 131..=140, 500);
            heir.step(0);
            heir.end_file(0);
            let files = bench.files();
            assert!(files.len() == 3 && files.iter().all(|file| !file.to_str().unwrap().ends_with(".part")));
            let numbers: Vec<u64> = bench.read().iter().map(|(number, ..)| *number).collect();
            assert_eq!(numbers, (1..=110).chain(131..=140).collect::<Vec<_>>(), "zstd {zstd}");
            assert_eq!(bench.tally.get(Figure::WrittenPackets), 120);
        }
    }
}

#[test]
fn a_block_that_the_kernel_took_in_part_counts_for_nothing() {
    let bench = Bench::new();
    let (mut intake, mut writer) = bench.writer();
    put(&mut intake, 1..=3, 100);
    writer.step(0);
    let part = bench.files().remove(0);
    let whole = fs::read(&part).unwrap();
    for (cut, packets) in [(0, 3), (1, 2), (131, 2), (132, 2), (133, 1), (300, 0)] {
        fs::write(&part, &whole[..whole.len() - cut]).unwrap();
        let wanted = Amount { packets, bytes: packets * 100 };
        assert_eq!(recount::packets(&part).unwrap(), wanted, "{cut} bytes less");
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_readable_up_to_there() {
    let bench = Bench::new();
    let (mut intake, mut writer) = bench.writer();
    put(&mut intake, 1..=3, 100);
    writer.step(0);
    writer.end_file(0);
    let path = bench.files().remove(0);
    let whole = fs::read(&path).unwrap();
    let mut last = 0;
    for len in (whole.len() - 52 - 3 * 132)..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let count = if len < whole.len() - 52 - 2 * 132 { 0 } else { bench.read().len() };
        assert!(count >= last && count <= 3, "{count} packets in {len} bytes");
        last = count;
    }
    assert_eq!(last, 3);
}

#[test]
fn a_directory_that_goes_costs_packets_until_it_is_back() {
    let mut bench = Bench::new();
    bench.options.directory = bench.scratch.file("disk");
    let (mut intake, mut writer) = bench.writer();
    put(&mut intake, 1..=5, 100);
    writer.step(0);
    assert_eq!(writer.tally.get(Figure::DiskPackets), 5);
    assert_eq!(writer.tally.get(Figure::Failing), 1);
    fs::create_dir(&bench.options.directory).unwrap();
    put(&mut intake, [6], 100);
    writer.step(RETRY_MS - 1);
    assert_eq!(writer.tally.get(Figure::DiskPackets), 6, "not tried yet");
    put(&mut intake, [7], 100);
    writer.step(RETRY_MS);
    writer.step(CALM_MS);
    assert_eq!((writer.tally.get(Figure::DiskPackets), writer.tally.get(Figure::Failing)), (6, 0));
    writer.end_file(CALM_MS);
    assert_eq!(writer.tally.get(Figure::WrittenPackets), 1);
}
