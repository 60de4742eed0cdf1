//! `replay FILE... --dry-run` of the built program: what it says about packet files, and how it ends.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use flow::emit::{MAX_HEADERS, emit};
use flow::record::flag;
use flow::{Endpoint, Seq, TcpFields};
use lab::dump::{self, Order};
use lab::scratch::Scratch;

#[path = "survey/bad.rs"]
mod bad;

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.9:80";

/// Ends, flags, numbers and payload bytes of a segment.
type Sent = (&'static str, &'static str, u16, u32, u32, usize);

/// It as a packet from its IP header on.
fn packet((src, dst, flags, seq, ack, len): Sent) -> Vec<u8> {
    let at =
        |text: &str| Endpoint::from(text.parse::<std::net::SocketAddr>().expect("an address and a port"));
    let tcp = TcpFields { seq: Seq(seq), ack: Seq(ack), flags, ..TcpFields::default() };
    let payload = vec![b'x'; len];
    let mut head = [0; MAX_HEADERS];
    let head_len = emit(&mut head, at(src), at(dst), &tcp, &[&payload], 0);
    [&head[..head_len], &payload].concat()
}

/// One connection of two turns of 10 bytes; answers of 300.
fn connection() -> Vec<u8> {
    let mut file = dump::pcap(Order::Little, true, 1);
    let packets = [
        (CLIENT, SERVER, flag::SYN, 99, 0, 0),
        (SERVER, CLIENT, flag::SYN | flag::ACK, 499, 100, 0),
        (CLIENT, SERVER, flag::ACK, 100, 500, 10),
        (SERVER, CLIENT, flag::ACK, 500, 110, 300),
        (CLIENT, SERVER, flag::ACK, 110, 800, 10),
        (CLIENT, SERVER, flag::ACK | flag::FIN, 120, 800, 0),
    ];
    for (sent, n) in packets.into_iter().zip(1..) {
        let frame = dump::ethernet(0x0800, &packet(sent));
        file.extend(dump::record(Order::Little, n, 0, &frame, frame.len() as u32));
    }
    file
}

struct Room(Scratch);

impl Room {
    fn new() -> Self {
        Self(Scratch::new("survey").expect("a directory"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.file(name);
        std::fs::write(&path, bytes).expect("it is ours");
        path
    }

    fn run(&self, line: &str) -> (Output, String) {
        self.run_args(line, &[])
    }

    /// With arguments that hold spaces.
    fn run_args(&self, line: &str, more: &[&str]) -> (Output, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_tcptwin"))
            .args(line.split_whitespace())
            .args(more)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output, said)
    }
}

#[test]
fn it_counts_what_would_be_replayed() {
    let room = Room::new();
    room.file("x.pcap", &connection());
    let (output, said) = room.run("replay x.pcap -x 80-10.0.3.2:8080 --dry-run");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for part in [
        "1 session\n",
        "2 turns, 20 B of requests, 300 B of answers\n",
        "4 packets of clients, 2 back\n",
        "5.000 s from the first mapped packet to the last\n",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    assert!(said.lines().all(|line| line.len() <= 80), "{said}");
}

#[test]
fn datagrams_of_a_mapping_are_counted_beside_connections() {
    let room = Room::new();
    let mut file = connection();
    // From 10.9.0.1 to 10.9.0.2; the other port is 50,000.
    for (port, n) in [(53, 10), (53, 10), (54, 10)] {
        let frame = dump::ethernet(0x0800, &dump::udp(port, &vec![b'q'; n]));
        file.extend(dump::record(Order::Little, 9, 0, &frame, frame.len() as u32));
    }
    room.file("x.pcap", &file);
    let (output, said) = room.run("replay x.pcap -x 80-10.0.3.2:80,udp:53-10.0.3.2:53 --dry-run");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for part in [
        "1 UDP of other services\n",
        "map        udp:53-10.0.3.2:53\n           2 datagrams of clients with 20 B, 0 back\n",
        "2 turns, 20 B of requests",
        "8.000 s from the first mapped packet to the last\n",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    let (output, said) = room.run("replay x.pcap -x udp:50000-10.0.3.2:53 --dry-run --json");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&found["traffic"]["datagrams"], &found["traffic"]["datagram_answers"]),
        (&0.into(), &3.into())
    );
}

#[test]
fn json_says_the_same_and_names_troubles() {
    let room = Room::new();
    let whole = connection();
    room.file("cut.pcap", &whole[..whole.len() - 1]);
    let (output, said) = room.run("replay cut.pcap absent -x 80-10.0.3.2:8080 --dry-run --json");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(found["traffic"]["sessions"], 1);
    assert_eq!(found["traffic"]["request_bytes"], 20);
    assert_eq!(found["mappings"][0]["map"], "80-10.0.3.2:8080");
    assert_eq!(found["troubles"], serde_json::json!({"cut": 1, "unopened": 1}));
    assert_eq!(found["notes"].as_array().map(Vec::len), Some(2));
}

#[test]
fn files_without_mapped_traffic_are_told_apart_and_an_x_is_suggested() {
    let room = Room::new();
    room.file("x.pcap", &connection());
    let (output, said) = room.run("replay x.pcap -x 81-10.0.3.2:8080 --dry-run");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        said.contains("services   10.0.0.9:80 ") && said.ends_with("\n  -x 80-10.0.3.2:8080\n"),
        "{said}"
    );
    let (output, said) = room.run("replay x.pcap --dry-run");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said.ends_with("\n  -x 80-TARGET:PORT\n"), "{said}");
}

#[test]
fn services_of_datagrams_are_listed_and_suggested_too() {
    let room = Room::new();
    let mut file = connection();
    for _ in 0..3 {
        let frame = dump::ethernet(0x0800, &dump::udp(53, b"who?"));
        file.extend(dump::record(Order::Little, 9, 0, &frame, frame.len() as u32));
    }
    room.file("x.pcap", &file);
    let (output, said) = room.run("replay x.pcap -x udp:54-10.0.3.2:5353 --dry-run");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains(" udp:10.9.0.2:53        3 datagrams, 12 B (by its lower port)\n"), "{said}");
    assert!(said.ends_with("\n  -x udp:53-10.0.3.2:5353\n"), "{said}");
    let (_, said) = room.run("replay x.pcap -x 81-10.0.3.2:8080 --dry-run");
    assert!(
        said.ends_with("\n  -x 80-10.0.3.2:8080\n"),
        "a connection for who asked for connections: {said}"
    );
}

#[test]
fn what_options_leave_out_is_counted_and_said() {
    let room = Room::new();
    room.file("x.pcap", &connection());
    let dry = "replay x.pcap -x 80-10.0.3.2:8080 --dry-run";
    let (output, said) = room.run(&format!("{dry} --net 10.1.0.0/16"));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains("6 left out by the client's address (--net, --not-net)\n"), "{said}");
    assert!(
        said.ends_with(
            "-x: all packets of its services are left out, 6 packets by the client's address (--net, --not-net). Widen these options\n"
        ),
        "{said}"
    );
    let (output, said) = room.run(&format!("{dry} --from 4s --not-net 10.1.0.0/16"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said.contains("4 before --from, left out\n") && said.contains("1 turn, 10 B"), "{said}");
}

#[test]
fn an_expression_narrows_a_dry_run_as_it_does_a_replay() {
    let room = Room::new();
    room.file("x.pcap", &connection());
    let dry = |expression: &str, more: &str| {
        room.run_args(&format!("replay x.pcap -x 80-10.0.3.2:8080 --dry-run {more}"), &["-F", expression])
    };
    let (output, said) = dry("tcp dst port 80", "--json");
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) && error.contains("libpcap is not installed") {
        assert!(error.contains("--net and --not-net"), "{error}");
        return eprintln!("SKIPPED: {error}");
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(found["traffic"]["turns"], 2, "{said}");
    assert_eq!(found["other"]["left_out_by_expression"], 2, "the answers");
    let (output, said) = dry("src host 10.0.0.2", "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains("6 left out by the expression (-F)"), "{said}");
    let (output, _) = dry("tcp dst prot 80", "");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with("error: -F tcp dst prot 80: libpcap does not take"), "{error}");
}

#[test]
fn nothing_to_read_is_one_sentence() {
    let room = Room::new();
    room.file("text", b"no packets here, only a text that is long enough");
    let (output, said) = room.run("replay text -x 80-10.0.3.2:8080 --dry-run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_str()), (Some(3), ""), "{error}");
    assert!(
        error.starts_with("error: none of the files can be read: text: neither pcap nor pcapng"),
        "{error}"
    );
}
