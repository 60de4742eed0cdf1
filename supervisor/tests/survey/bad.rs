//! Files that are cut, damaged, unreadable or none at all, given to the program: it names the file and the place, uses what can be
//! used, and always ends.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::dump::{self, Order};
use lab::real::tool::wait_for;

use super::{CLIENT, Room, SERVER, packet};

const RAW: u16 = 101;
const LIMIT: Duration = Duration::from_secs(30);

/// A client's segment with ten bytes of payload.
fn segment(n: u32) -> Vec<u8> {
    packet((CLIENT, SERVER, flow::record::flag::ACK, 100 + 10 * n, 500, 10))
}

fn pcap(order: Order, nanoseconds: bool, packets: u32) -> Vec<u8> {
    let mut file = dump::pcap(order, nanoseconds, RAW);
    (0..packets).for_each(|n| file.extend(dump::record(order, 1 + n, 0, &segment(n), 50)));
    file
}

fn pcapng(order: Order, packets: u32) -> Vec<u8> {
    let mut file = [dump::section(order), dump::interface(order, RAW, 0, &[])].concat();
    for n in 0..packets {
        let comment = dump::option(order, 1, b"a comment");
        file.extend(dump::enhanced(order, 0, 1_000_000 + u64::from(n), &segment(n), 50, &comment));
    }
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory does not fail")
}

/// What the program came to: exit status, both outputs. It must have ended in time.
fn run(room: &Room, line: &str) -> (Option<i32>, String, String) {
    let [out, err] = ["out", "err"].map(|name| room.0.file(name));
    let create = |path| std::fs::File::create(path).expect("the directory is ours");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tcptwin"))
        .args(line.split_whitespace())
        .current_dir(room.0.path())
        .stdin(Stdio::null())
        .stdout(create(&out))
        .stderr(create(&err))
        .spawn()
        .expect("the program starts");
    assert!(wait_for(&mut child, LIMIT).expect("it is ours"), "`{line}` did not end within {LIMIT:?}");
    let read = |path| std::fs::read_to_string(path).expect("it wrote text");
    (child.wait().expect("it has ended").code(), read(&out), read(&err))
}

#[test]
fn files_cut_at_every_byte_are_used_up_to_there() {
    let room = Room::new();
    let (little, big) = (pcap(Order::Little, true, 2), pcap(Order::Big, false, 2));
    let blocks = [pcapng(Order::Little, 2), pcapng(Order::Big, 2)];
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("memory does not fail");
    let corpus = [
        ("little.pcap", little.clone()),
        ("big.pcap", big.clone()),
        ("little.pcapng", blocks[0].clone()),
        ("big.pcapng", blocks[1].clone()),
        ("pcap.gz", gzip(&big)),
        ("pcapng.zst", zstd(&blocks[0])),
    ];
    for (name, bytes) in corpus {
        let mut before = 0;
        for len in 0..=bytes.len() {
            room.file(name, &bytes[..len]);
            let line = format!("replay {name} -x 80-10.0.3.2:8080 --dry-run --json");
            let (code, out, error) = run(&room, &line);
            let what = format!("{len} of {} bytes of {name}: {out}{error}", bytes.len());
            if out.is_empty() {
                assert_eq!(code, Some(3), "{what}");
                let begins = format!("error: none of the files can be read: {name}");
                assert!(error.starts_with(&begins) && error.lines().count() == 1, "{what}");
                assert!(before == 0, "{what}");
                continue;
            }
            let found: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            let packets = found["packets"].as_u64().expect("a number");
            assert!((before..=2).contains(&packets), "{what}");
            assert_eq!(code, Some(if packets > 0 { 0 } else { 3 }), "{what}");
            let notes = found["notes"].as_array().expect("a list");
            assert!(notes.len() <= 1 && (packets == 2 || len < bytes.len()), "{what}");
            for note in notes {
                let note = note.as_str().expect("a sentence");
                assert!(note.starts_with(&format!("{name} at byte ")), "{what}");
            }
            before = packets;
        }
        assert_eq!(before, 2, "the whole of {name}");
    }
}

#[test]
fn what_is_no_packet_file_is_refused_by_name() {
    let room = Room::new();
    room.file("empty", b"");
    room.file("text", b"no packets here, only a text that is long enough");
    room.file("locked.pcap", &pcap(Order::Little, true, 1));
    std::fs::create_dir(room.0.file("directory")).expect("the directory is ours");
    let lock = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(room.0.file("locked.pcap"), lock).expect("it is ours");
    let mut cases = vec![
        ("empty", "empty: the file is empty"),
        ("text", "text: neither pcap nor pcapng, plain or in gzip or zstd"),
        ("directory", "directory is a directory; name the files in it"),
        ("absent", "absent does not exist"),
        // No page lies at address 0, so reading fails for whoever tries.
        ("/proc/self/mem", "/proc/self/mem cannot be read: input/output error"),
    ];
    if std::fs::File::open(room.0.file("locked.pcap")).is_err() {
        cases.push(("locked.pcap", "locked.pcap may not be read by this user"));
    }
    // A replay says the same as a dry run, before it asks for anything else.
    for rest in ["--dry-run", "--dry-run -x 80-10.0.3.2:8080", "-x 80-10.0.3.2:8080 -s 10.0.4.2 --plain"] {
        for (name, part) in &cases {
            let (code, out, error) = run(&room, &format!("replay {name} {rest}"));
            assert_eq!((code, out.as_str()), (Some(3), ""), "{name} {rest}: {error}");
            assert!(error.starts_with("error: none of the files can be read: "), "{name} {rest}: {error}");
            assert!(error.contains(part), "{name} {rest}: {error}");
            assert!(error.trim_end().ends_with("Name a file that `tcpdump -w` or Wireshark has written"));
        }
    }
}

#[test]
fn odd_records_are_named_with_their_place() {
    let room = Room::new();
    let mut strange = dump::pcap(Order::Little, true, 147);
    strange.extend(dump::record(Order::Little, 1, 0, b"whatever", 8));
    room.file("strange.pcap", &strange);
    let mut back = pcap(Order::Little, true, 1);
    let offset = back.len();
    back.extend(dump::record(Order::Little, 0, 0, &segment(1), 50));
    let huge = back.len();
    back.extend(dump::record(Order::Little, 2, 0, &segment(2), 50));
    back[huge + 8..huge + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    room.file("back.pcap", &back);
    let (code, out, error) = run(&room, "replay strange.pcap back.pcap -x 80-10.0.3.2:8080 --dry-run");
    assert_eq!(code, Some(0), "{error}");
    for part in [
        "strange.pcap at byte 24: packets of a link type that is not understood were left out (link type 147)"
            .to_owned(),
        format!("back.pcap at byte {offset}: time goes backwards; the packet was taken at the latest time seen (by 1000.000 ms)"),
        format!("back.pcap at byte {huge}: impossible lengths; all before them was used and nothing behind"),
        "1 turn, 20 B of requests".to_owned(),
    ] {
        assert!(out.contains(&part), "{part} is not in:\n{out}");
    }
}

#[test]
fn a_pipe_that_nobody_writes_to_is_given_up() {
    let room = Room::new();
    let pipe = room.0.file("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("the directory is ours");
    let (code, _, error) = run(&room, "replay pipe --dry-run");
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("pipe is a pipe that nobody has written to for 10 s"), "{error}");
}
