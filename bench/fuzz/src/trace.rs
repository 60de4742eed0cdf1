//! Target `trace`: any bytes as a packet file. Two bytes of control, then the file.
//!
//! | control | meaning |
//! |---|---|
//! | bit 0 of the first | tunnels are opened |
//! | the second | where the file is cut for a second reading: at that many 256ths |

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use trace::{Options, Reader, Report, Trouble};

use crate::reach;
use crate::stream::Sum;

/// Any bytes as a packet file.
pub fn trace(data: &[u8]) {
    let Some(([flags, cut], bytes)) = data.split_first_chunk::<2>() else { return };
    let options = Options { decap: flags & 1 != 0, ..Options::default() };
    let whole = read(bytes, options);
    let part = read(&bytes[..bytes.len() * usize::from(*cut) / 256], options);
    let (Some(whole), Some(part)) = (whole, part) else { return };
    // Compressed bytes may be damaged behind the cut, which a decoder that reads ahead says earlier.
    if !is_compressed(bytes) {
        // Where the cut took the end of a block, nobody can see that it contradicts the block's beginning.
        let sure = if whole.starts_with(&part) { part.len() } else { part.len() - 1 };
        assert!(whole.starts_with(&part[..sure]), "a cut file holds other packets than the whole one");
    }
}

/// A packet in short: time, offset, length, length on the wire, digest.
type Seen = (u64, u64, usize, u32, u64);

/// All packets of a file; none when it is not one.
fn read(bytes: &[u8], options: Options) -> Option<Vec<Seen>> {
    let path = place(bytes);
    let mut reader = match Reader::open(&[path], options) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(error.to_string().starts_with("none of the files can be read: "), "{error}");
            reach::note(if bytes.is_empty() { "empty" } else { "unknown_format" });
            return None;
        }
    };
    let first = pass(&mut reader, bytes);
    let report = reader.report().clone();
    reader.rewind().expect("it is a file");
    assert_eq!(pass(&mut reader, bytes), first, "read again it holds other packets");
    assert_eq!(reader.report(), &report);
    reach::note_all(|| {
        Trouble::ALL.iter().filter(|one| report.count(**one) > 0).map(|one| one.name()).collect()
    });
    Some(first)
}

fn pass(reader: &mut Reader, bytes: &[u8]) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    while let Some(packet) = reader.next() {
        assert!(matches!(packet.ip.first().map(|first| first >> 4), Some(4 | 6)));
        assert!(packet.wire_len as usize >= packet.ip.len() && packet.place.file == 0);
        if let Some((time_ns, offset, ..)) = seen.last() {
            assert!(packet.time_ns >= *time_ns && packet.place.offset > *offset);
        }
        let mut sum = Sum::new("packet");
        sum.bytes(packet.ip);
        seen.push((packet.time_ns, packet.place.offset, packet.ip.len(), packet.wire_len, sum.0));
        // A record is at least its header of 16 bytes, however well it was compressed.
        assert!(is_compressed(bytes) || seen.len() <= bytes.len() / 16);
    }
    adds_up(reader.report(), &seen);
    seen
}

fn adds_up(report: &Report, seen: &[Seen]) {
    assert_eq!(report.packets, seen.len() as u64);
    assert_eq!(report.bytes, seen.iter().map(|packet| packet.2 as u64).sum::<u64>());
    assert_eq!(
        (report.first_ns, report.last_ns),
        (seen.first().map(|one| one.0), seen.last().map(|one| one.0))
    );
    assert!(report.notes().len() <= 4 * Trouble::COUNT);
    let ends = [Trouble::Cut, Trouble::Damaged, Trouble::Unreadable];
    assert!(ends.iter().map(|end| report.count(*end)).sum::<u64>() <= 1, "{report:?}");
}

fn is_compressed(bytes: &[u8]) -> bool {
    matches!(bytes, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// One file a thread, without a name: it is gone with the thread.
fn place(bytes: &[u8]) -> PathBuf {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsRawFd as _;
    thread_local! {
        static FILE: RefCell<Option<File>> = const { RefCell::new(None) };
    }
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| {
            memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a file in memory").into()
        });
        file.set_len(0).expect("it is ours");
        file.seek(SeekFrom::Start(0)).expect("it is a file");
        file.write_all(bytes).expect("inputs are small");
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    })
}
