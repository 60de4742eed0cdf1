//! Several files by time, bounds, pipes, and reading again.

use std::io::Write as _;

use lab::dump::{self, Order};
use trace::{Bound, Options, Reader, RewindError, Trouble};

use crate::{Files, gzip, read, segment};

const ORDER: Order = Order::Little;

/// A file with a packet at each of these times; the payload is the time.
fn file(times: &[u32]) -> Vec<u8> {
    let mut bytes = dump::pcap(ORDER, true, 101);
    for time in times {
        bytes.extend(dump::record(ORDER, 0, *time, &segment(&time.to_be_bytes()), 44));
    }
    bytes
}

fn times(reader: &mut Reader) -> Vec<u64> {
    read(reader).iter().map(|seen| seen.0).collect()
}

#[test]
fn files_are_merged_by_time_and_keep_their_own_order() {
    let files = Files::of(&[&file(&[10, 40, 40, 70]), &gzip(&file(&[5, 40, 60])), &file(&[40])]);
    let mut reader = files.open(Options::default());
    let mut seen = Vec::new();
    while let Some(packet) = reader.next() {
        seen.push((packet.time_ns, packet.place.file, packet.place.offset));
    }
    // A record is 60 bytes: a header of 16 and a packet of 44.
    assert_eq!(
        seen,
        [
            (5, 1, 24),
            (10, 0, 24),
            (40, 0, 84),
            (40, 0, 144),
            (40, 1, 84),
            (40, 2, 24),
            (60, 1, 144),
            (70, 0, 204)
        ]
    );
    let progress = reader.progress();
    assert_eq!(Some(progress.read), progress.total);
}

#[test]
fn time_that_goes_backwards_is_counted_and_stands_still() {
    let files = Files::of(&[&file(&[10, 30, 20, 25, 31])]);
    let mut reader = files.open(Options::default());
    let seen = read(&mut reader);
    let payloads: Vec<u8> = seen.iter().map(|seen| seen.1[43]).collect();
    assert_eq!(payloads, [10, 30, 20, 25, 31]);
    assert_eq!(seen.iter().map(|seen| seen.0).collect::<Vec<_>>(), [10, 30, 30, 30, 31]);
    assert_eq!(reader.report().count(Trouble::TimeBackwards), 2);
}

#[test]
fn a_day_of_rotated_files_in_any_order() {
    let mut files = Files::new();
    let expected: Vec<u64> = (0..3_000).collect();
    for n in (0..100_u32).rev() {
        files.add(&file(&(n * 30..n * 30 + 30).collect::<Vec<_>>()));
    }
    files.add(b"no packet file");
    let mut reader = files.open(Options::default());
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    assert_eq!(times(&mut reader), expected);
    assert!(before < 60, "{before} descriptors before the first packet");
    assert_eq!(reader.report().count(Trouble::UnknownFormat), 1);
    let progress = reader.progress();
    assert_eq!(Some(progress.read), progress.total);
}

#[test]
fn bounds_are_file_time_or_distance_from_the_first_packet() {
    let files = Files::of(&[&file(&[10, 20, 30]), &file(&[15, 25, 35])]);
    for (options, expected, before) in [
        (Options { from: Some(Bound::At(20)), ..Options::default() }, &[20, 25, 30, 35][..], 2),
        (
            Options { from: Some(Bound::After(15)), until: Some(Bound::After(20)), ..Options::default() },
            &[25, 30],
            3,
        ),
        (Options { until: Some(Bound::At(14)), ..Options::default() }, &[10], 0),
        (Options { limit: Some(3), ..Options::default() }, &[10, 15, 20], 0),
        (Options { from: Some(Bound::At(25)), limit: Some(1), ..Options::default() }, &[25], 3),
        (Options { from: Some(Bound::At(99)), ..Options::default() }, &[], 6),
    ] {
        let mut reader = files.open(options);
        assert_eq!(times(&mut reader), expected, "{options:?}");
        assert_eq!((reader.report().packets, reader.report().before), (expected.len() as u64, before));
    }
}

#[test]
fn files_can_be_read_again() {
    let files = Files::of(&[&file(&[10, 20]), &gzip(&file(&[15])), b"neither"]);
    let mut reader = files.open(Options::default());
    let first = read(&mut reader);
    let report = reader.report().clone();
    for _ in 0..3 {
        reader.rewind().unwrap();
        assert_eq!(read(&mut reader), first);
        assert_eq!(reader.report(), &report);
    }
    reader.rewind().unwrap();
    reader.next();
    reader.rewind().unwrap();
    assert_eq!(read(&mut reader), first, "from the middle as well");
}

#[test]
fn a_pipe_is_read_once() {
    let mut files = Files::of(&[&file(&[10, 30])]);
    let pipe = files.dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    files.paths.push(pipe.clone());
    let writer = std::thread::spawn(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
        // In pieces, as a slow capture arrives.
        for piece in gzip(&file(&[20, 40])).chunks(7) {
            pipe.write_all(piece).unwrap();
            pipe.flush().unwrap();
        }
    });
    let mut reader = files.open(Options::default());
    assert_eq!(times(&mut reader), [10, 20, 30, 40]);
    writer.join().unwrap();
    assert_eq!(reader.progress().total, None);
    assert!(matches!(reader.rewind(), Err(RewindError::Pipe(path)) if path == files.paths[1]));
}
