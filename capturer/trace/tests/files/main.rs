//! Packet files of every kind, whole and broken, as `trace` reads them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod bad;
mod formats;
mod links;
mod merging;

use std::io::Write as _;
use std::path::PathBuf;

use flow::emit::{MAX_HEADERS, emit};
use flow::record::flag;
use flow::{Endpoint, Seq, TcpFields};
use lab::scratch::Scratch;
use trace::{Options, Reader};

/// A data segment from its IP header on; the payload tells segments apart.
fn segment(payload: &[u8]) -> Vec<u8> {
    between("10.0.0.1:40000", "10.0.0.9:80", payload)
}

fn between(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let at = |text: &str| Endpoint::from(text.parse::<std::net::SocketAddr>().unwrap());
    let tcp = TcpFields { seq: Seq(1), ack: Seq(1), flags: flag::ACK, ..TcpFields::default() };
    let mut head = [0; MAX_HEADERS];
    let len = emit(&mut head, at(src), at(dst), &tcp, &[payload], 0);
    [&head[..len], payload].concat()
}

/// Files of one test.
struct Files {
    dir: Scratch,
    paths: Vec<PathBuf>,
}

impl Files {
    fn new() -> Self {
        Self { dir: Scratch::new("trace").unwrap(), paths: vec![] }
    }

    fn of(contents: &[&[u8]]) -> Self {
        let mut files = Self::new();
        contents.iter().for_each(|bytes| files.add(bytes));
        files
    }

    fn add(&mut self, bytes: &[u8]) {
        let path = self.dir.path().join(format!("file-{}", self.paths.len()));
        std::fs::write(&path, bytes).unwrap();
        self.paths.push(path);
    }

    fn open(&self, options: Options) -> Reader {
        Reader::open(&self.paths, options).unwrap()
    }
}

/// What a test compares of a packet: time, bytes, length on the wire.
type Seen = (u64, Vec<u8>, u32);

fn read(reader: &mut Reader) -> Vec<Seen> {
    let mut seen = Vec::new();
    while let Some(packet) = reader.next() {
        assert!(packet.wire_len as usize >= packet.ip.len());
        seen.push((packet.time_ns, packet.ip.to_vec(), packet.wire_len));
    }
    assert!(reader.next().is_none(), "the end stays the end");
    seen
}

fn read_one(bytes: &[u8], options: Options) -> (Vec<Seen>, trace::Report) {
    let files = Files::of(&[bytes]);
    let mut reader = files.open(options);
    let seen = read(&mut reader);
    (seen, reader.report().clone())
}

fn whole(time_ns: u64, ip: &[u8]) -> Seen {
    (time_ns, ip.to_vec(), ip.len() as u32)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}
