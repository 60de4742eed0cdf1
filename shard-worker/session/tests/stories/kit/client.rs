//! A real client, whose every segment is captured, or none.

use flow::record::{flag, opt};
use flow::{Captured, Endpoint, Seq, TcpFields};

use super::{SERVER, World, endpoint};

/// A real client: writes captured segments.
#[derive(Clone, Debug)]
pub struct Client {
    pub at: Endpoint,
    pub server: Endpoint,
    pub seq: Seq,
    pub ack: Seq,
    pub isn: Seq,
    pub mss: u16,
    /// What the online server sends next.
    pub server_seq: Seq,
    pub written: Vec<u8>,
}

impl Client {
    pub fn new(n: u16) -> Self {
        let at = Endpoint::new(endpoint("10.9.0.1:1").addr, 40_000 + n);
        let isn = Seq(5_000_000 + u32::from(n) * 1_000_000);
        let (server, server_seq) = (endpoint(SERVER), Seq(89_999));
        Self { at, server, seq: isn, ack: Seq(0), isn, mss: 1460, server_seq, written: Vec::new() }
    }

    pub fn starting_at(n: u16, isn: u32) -> Self {
        Self { seq: Seq(isn), isn: Seq(isn), ..Self::new(n) }
    }

    pub fn segment(&self, flags: u16) -> Captured {
        Captured {
            tcp: TcpFields { seq: self.seq, ack: self.ack, flags, window: 500, ..TcpFields::default() },
            client: self.at,
            server: self.server,
            ..Captured::default()
        }
    }

    pub fn syn(&mut self, world: &mut World) {
        let mut segment = self.segment(flag::SYN);
        segment.tcp.options = opt::MSS | opt::WINDOW_SCALE;
        segment.tcp.mss = self.mss;
        world.capture(&segment, &[]);
        self.seq += 1;
        self.ack = Seq(90_000);
    }

    /// SYN and third packet, as a client next door does it.
    pub fn opens(&mut self, world: &mut World) {
        self.syn(world);
        world.run(100);
        self.acks(world);
    }

    /// A segment of the online server's, as a file holds it: it has all that the client has sent.
    pub fn answer(&mut self, flags: u16, len: u32) -> Captured {
        let mut segment = self.segment(flags);
        (segment.tcp.seq, segment.tcp.ack) = (self.server_seq, self.seq);
        (segment.answer, segment.cut_len) = (1, len);
        self.server_seq += len + u32::from(flags & flag::SYN != 0);
        segment
    }

    /// The online server answers so many bytes.
    pub fn is_answered(&mut self, world: &mut World, len: u32) {
        let answer = self.answer(flag::ACK | flag::PSH, len);
        world.capture(&answer, &[]);
    }

    /// The whole handshake, both directions.
    pub fn opens_in_a_file(&mut self, world: &mut World) {
        self.syn(world);
        let answer = self.answer(flag::SYN | flag::ACK, 0);
        world.capture(&answer, &[]);
        world.run(100);
        self.acks(world);
    }

    pub fn acks(&mut self, world: &mut World) {
        world.capture(&self.segment(flag::ACK), &[]);
    }

    /// A data segment that the capture sees.
    pub fn sends(&mut self, world: &mut World, bytes: &[u8]) {
        world.capture(&self.segment(flag::ACK | flag::PSH), bytes);
        self.seq += bytes.len() as u32;
        self.written.extend_from_slice(bytes);
    }

    /// One that the capture misses.
    pub fn sends_unseen(&mut self, bytes: &[u8]) {
        self.seq += bytes.len() as u32;
    }

    /// The online server's answer arrives: the next segment acknowledges it.
    pub fn reads(&mut self, n: u32) {
        self.ack += n;
    }

    /// One request and its answer, online; the target's answer has the same length.
    pub fn asks(&mut self, world: &mut World, text: &str, answer: u32) {
        self.sends(world, format!("{text} {answer}\n").as_bytes());
        world.run(400);
        self.reads(answer);
    }

    pub fn closes(&mut self, world: &mut World) {
        world.capture(&self.segment(flag::ACK | flag::FIN), &[]);
        self.seq += 1;
    }

    pub fn resets(&mut self, world: &mut World) {
        world.capture(&self.segment(flag::RST), &[]);
    }

    /// The server's FIN and the last acknowledgement.
    pub fn leaves(&mut self, world: &mut World) {
        self.ack += 1;
        self.acks(world);
    }
}
