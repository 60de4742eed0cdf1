//! Files that are cut, damaged, empty, or no packet files at all.

use std::os::unix::fs::PermissionsExt as _;

use lab::dump::{self, Order};
use trace::{OpenError, Options, Reader, Trouble};

use crate::{Files, gzip, read, read_one, segment, zstd};

const ORDER: Order = Order::Little;
/// Bytes of a packet in `pcapng`: block and packet headers, 44 bytes, a comment of 12 with its head, the end of options.
const BLOCK: usize = 12 + 20 + 44 + 12 + 4;

fn pcap(packets: u32) -> Vec<u8> {
    let mut file = dump::pcap(ORDER, true, 101);
    (0..packets).for_each(|n| file.extend(dump::record(ORDER, 1, n, &segment(&n.to_be_bytes()), 44)));
    file
}

fn pcapng(packets: u32) -> Vec<u8> {
    let order = Order::Big;
    let mut file =
        [dump::section(order), dump::interface(order, 101, 0, &dump::option(order, 9, &[9]))].concat();
    for n in 0..packets {
        let comment = dump::option(order, 1, b"comment");
        file.extend(dump::enhanced(
            order,
            0,
            1_000_000_000 + u64::from(n),
            &segment(&n.to_be_bytes()),
            44,
            &comment,
        ));
    }
    file
}

/// How many packets are whole in the first `len` bytes.
fn whole(file: &[u8], len: usize) -> usize {
    let (head, record, packet_end) = if file[0] == 0x0a { (28 + 32, BLOCK, 72) } else { (24, 60, 60) };
    (0..).take_while(|n| head + n * record + packet_end <= len).count()
}

#[test]
fn a_file_cut_at_any_byte_gives_every_packet_before_it() {
    for file in [pcap(5), pcapng(5)] {
        for len in 0..=file.len() {
            let files = Files::of(&[&file[..len]]);
            match Reader::open(&files.paths, Options::default()) {
                Ok(mut reader) => {
                    assert_eq!(
                        read(&mut reader).len(),
                        whole(&file, len).min(5),
                        "{len} of {} bytes",
                        file.len()
                    );
                    let (notes, cut) = (reader.report().notes().len(), reader.report().count(Trouble::Cut));
                    let head = if file[0] == 0x0a { 60 } else { 24 };
                    let record = (file.len() - head) / 5;
                    let at_end = len >= head && (len - head) % record == 0 || len == 28 && head == 60;
                    assert_eq!(
                        (notes, cut),
                        if at_end { (0, 0) } else { (1, 1) },
                        "{len} of {} bytes",
                        file.len()
                    );
                }
                Err(OpenError::Nothing(why)) => {
                    assert!(len < 24, "{len}: {why}");
                    assert!(why.contains("file-0: "), "{why}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_compressed_file_cut_at_any_byte_ends_in_order() {
    let file = pcap(40);
    for compressed in [gzip(&file), zstd(&file)] {
        for len in 0..compressed.len() {
            let files = Files::of(&[&compressed[..len]]);
            let Ok(mut reader) = Reader::open(&files.paths, Options::default()) else { continue };
            let seen = read(&mut reader).len();
            let named = reader.report().count(Trouble::Unreadable) + reader.report().count(Trouble::Cut);
            assert!(named == 1 || seen == 40, "{len}: {:?}", reader.report());
        }
    }
}

#[test]
fn impossible_lengths_end_a_file_and_are_named() {
    for (len, offset) in [(262_145_u32, 84), (u32::MAX, 84)] {
        let mut file = pcap(3);
        file[84 + 8..84 + 12].copy_from_slice(&len.to_le_bytes());
        let (seen, report) = read_one(&file, Options::default());
        assert_eq!((seen.len(), report.count(Trouble::Damaged)), (1, 1));
        assert_eq!(report.notes()[0].offset, offset);
        assert!(report.notes()[0].to_string().ends_with(&format!("(a packet of {len} bytes)")));
    }
    let first = 28 + 32;
    for len in [0_u32, 8, 13, 2_000_000, 0xffff_fffc] {
        let mut file = pcapng(3);
        file[first + BLOCK + 4..first + BLOCK + 8].copy_from_slice(&len.to_be_bytes());
        let (seen, report) = read_one(&file, Options::default());
        assert_eq!((seen.len(), report.count(Trouble::Damaged)), (1, 1), "{len}");
        assert_eq!(report.notes()[0].offset as usize, first + BLOCK);
    }
    // A block that nobody reads may say it is longer than the file: the file ends within it.
    let mut file = pcapng(1);
    let unknown = dump::block(Order::Big, 99, &[0; 8]);
    let at = file.len();
    file.extend(unknown);
    file[at + 4..at + 8].copy_from_slice(&0x4000_0000_u32.to_be_bytes());
    let (seen, report) = read_one(&file, Options::default());
    assert_eq!((seen.len(), report.count(Trouble::Cut)), (1, 1));
}

#[test]
fn a_packet_longer_than_its_block_is_left_out_alone() {
    let mut file = pcapng(3);
    let at = 28 + 32 + BLOCK + 20;
    file[at..at + 4].copy_from_slice(&5_000_u32.to_be_bytes());
    let (seen, report) = read_one(&file, Options::default());
    assert_eq!((seen.len(), report.count(Trouble::BadRecord)), (2, 1));
}

#[test]
fn notes_are_few_however_many_the_troubles() {
    let mut file = dump::pcap(ORDER, true, 147);
    (0..10_000).for_each(|n| file.extend(dump::record(ORDER, 1, n, b"?", 1)));
    let (seen, report) = read_one(&file, Options::default());
    assert_eq!((seen.len(), report.count(Trouble::UnknownLink), report.notes().len()), (0, 10_000, 4));
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_used() {
    let mut files =
        Files::of(&[&pcap(2), b"", b"GET / HTTP/1.1\r\n\r\n and so on and so on", &gzip(b"text")]);
    files.paths.push(files.dir.path().to_owned());
    files.paths.push(files.dir.path().join("absent"));
    files.add(&pcap(1));
    std::fs::set_permissions(&files.paths[6], std::fs::Permissions::from_mode(0o000)).unwrap();
    let readable_by_root = std::fs::File::open(&files.paths[6]).is_ok();
    let mut reader = files.open(Options::default());
    assert_eq!(read(&mut reader).len(), 2 + usize::from(readable_by_root));
    let told: Vec<String> = reader.report().notes().iter().map(ToString::to_string).collect();
    let expected = [
        "file-1: the file is empty",
        "file-2: neither pcap nor pcapng, plain or in gzip or zstd",
        "file-3: neither pcap nor pcapng, plain or in gzip or zstd",
        " is a directory; name the files in it",
        "absent does not exist",
    ];
    for part in expected {
        assert!(told.iter().any(|note| note.ends_with(part)), "{part} is not in {told:#?}");
    }
    if !readable_by_root {
        assert!(told.iter().any(|note| note.contains("may not be read by this user")), "{told:#?}");
    }
}

#[test]
fn nothing_readable_at_all_is_one_sentence() {
    let open = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(std::path::PathBuf::from).collect();
        Reader::open(&paths, Options::default()).err().expect("nothing is there").to_string()
    };
    assert_eq!(
        open(&[]),
        "no file is named. Write at least one pcap or pcapng file, or - for standard input"
    );
    assert!(
        open(&["/nowhere/x.pcap"])
            .starts_with("none of the files can be read: /nowhere/x.pcap does not exist")
    );
    assert!(open(&["-", "-"]).contains("named twice"));
}

#[test]
fn bytes_behind_a_gzip_member_are_named() {
    let (seen, report) = read_one(&[gzip(&pcap(3)), b"garbage".to_vec()].concat(), Options::default());
    assert_eq!((seen.len(), report.count(Trouble::Unreadable)), (3, 1));
}
