//! A client on the online side, and a target that answers at once.

use std::net::{IpAddr, Ipv4Addr};

use flow::emit::{MAX_HEADERS, emit};
use flow::record::{flag, opt};
use flow::{Addr, Captured, Endpoint, Inject, Returned, Seq, TcpFields};

/// Bytes of a request.
pub const REQUEST: u32 = 200;
/// Bytes of the answer to it, online and at the target.
pub const ANSWER: u32 = 600;

/// A client on the online side, as far as its own segments show it.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its endpoint.
    pub at: Endpoint,
    number: u32,
    seq: Seq,
    ack: Seq,
}

impl Client {
    /// The client with this number; all have different endpoints.
    pub fn new(n: u32) -> Self {
        let addr = Addr::from(IpAddr::from(Ipv4Addr::from(0x0a09_0000 + n / 60_000)));
        Self { at: Endpoint::new(addr, (1_024 + n % 60_000) as u16), number: n, seq: Seq(n), ack: Seq(0) }
    }

    /// Its next segment, with so much payload.
    pub fn segment(&mut self, server: Endpoint, time_ns: u64, flags: u16, payload_len: u32) -> Captured {
        let tcp = TcpFields { seq: self.seq, ack: self.ack, flags, ..TcpFields::default() };
        self.seq += payload_len + u32::from(flags & (flag::SYN | flag::FIN) != 0);
        Captured { time_ns, tcp, payload_len, client: self.at, server, ..Captured::default() }
    }

    /// It was answered: what it sends from now on acknowledges so many bytes more.
    pub fn has_read(&mut self, bytes: u32) {
        self.ack += bytes;
    }

    /// A request as the packet that is captured, the answer to the one before read. It begins with the client's number.
    pub fn request_packet(&mut self, server: Endpoint) -> Vec<u8> {
        let head = self.segment(server, 0, flag::ACK | flag::PSH, REQUEST);
        self.has_read(ANSWER);
        let mut payload = [b'r'; REQUEST as usize];
        payload[..NUMBER].copy_from_slice(&self.number.to_be_bytes());
        packet(head.client, head.server, &head.tcp, &payload)
    }

    /// A part of an upload as the packet that is captured.
    pub fn upload_packet(&mut self, server: Endpoint, payload: &[u8]) -> Vec<u8> {
        let head = self.segment(server, 0, flag::ACK | flag::PSH, payload.len() as u32);
        packet(head.client, head.server, &head.tcp, payload)
    }

    /// The two packets that open its connection.
    pub fn greeting_packets(&mut self, server: Endpoint) -> [Vec<u8>; 2] {
        let syn = self.segment(server, 0, flag::SYN, 0);
        self.has_read(1);
        let ack = self.segment(server, 0, flag::ACK, 0);
        [&syn, &ack].map(|head| packet(head.client, head.server, &head.tcp, &[]))
    }
}

/// Whose request a payload is.
pub fn number_of(request: &[u8]) -> Option<u32> {
    request.first_chunk::<NUMBER>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Bytes of a client's number.
const NUMBER: usize = size_of::<u32>();

/// A segment as a packet from its IP header on.
pub fn packet(src: Endpoint, dst: Endpoint, tcp: &TcpFields, payload: &[u8]) -> Vec<u8> {
    let mut headers = [0; MAX_HEADERS];
    let len = emit(&mut headers, src, dst, tcp, &[payload], 0);
    [&headers[..len], payload].concat()
}

/// What a target at this end says at once to a record with so much payload: a request of [`REQUEST`] bytes gets [`ANSWER`]
/// bytes, anything longer an acknowledgement, an acknowledgement nothing.
pub fn answer(head: &Inject, target: Endpoint, payload_len: usize) -> Option<Returned> {
    let tcp = &head.tcp;
    let ends = tcp.flags & (flag::SYN | flag::FIN);
    if payload_len == 0 && ends == 0 {
        return None;
    }
    let mut answer = Returned { client: head.client, target, ..Returned::default() };
    answer.tcp = TcpFields {
        seq: tcp.ack,
        ack: tcp.seq + payload_len as u32 + u32::from(ends != 0),
        flags: flag::ACK | ends,
        window: 60_000,
        options: opt::TIMESTAMPS,
        ts_val: 1,
        ..TcpFields::default()
    };
    if tcp.has(flag::SYN) {
        answer.tcp.seq = Seq(77);
        answer.tcp.options |= opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED;
        (answer.tcp.mss, answer.tcp.window_scale) = (1_460, 7);
    } else if payload_len == REQUEST as usize {
        answer.payload_len = ANSWER;
        answer.tcp.flags |= flag::PSH;
    }
    Some(answer)
}
