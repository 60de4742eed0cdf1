//! Sequences at a session table: what clients, targets and time usually do.

use flow::record::flag;

use super::Seed;
use crate::table::{Op, act};

/// Writes a sequence.
struct Script {
    bytes: Vec<u8>,
}

const FIN: u16 = flag::ACK | flag::FIN;

impl Script {
    /// With the choices of the configuration: waits, pool of clients, RTT, join.
    fn new(choices: [u8; 4]) -> Self {
        Self { bytes: choices.to_vec() }
    }

    fn op(mut self, what: u8, which: u8, bend: u8, flags: u16, len: u16, word: u32) -> Self {
        self.bytes.extend(Op { what, which, bend, extra: 0, flags, len, word }.write());
        self
    }

    fn extra(mut self, extra: u8) -> Self {
        let at = self.bytes.len() - 9;
        self.bytes[at] = extra;
        self
    }

    fn capture(self, flow: u8, flags: u16, len: u16) -> Self {
        self.op(act::CAPTURE, flow, 0, flags, len, 0)
    }

    fn answer(self, which: u8, flags: u16, len: u16) -> Self {
        self.op(act::ANSWER, which, 0, flags, len, 0)
    }

    fn wait(self, us: u32) -> Self {
        self.op(act::WAIT, 0, 0, 0, 0, us)
    }

    fn deadlines(self, n: usize) -> Self {
        (0..n).fold(self, |script, _| script.op(act::DEADLINE, 0, 0, 0, 0, 0))
    }

    fn read(self, flow: u8, len: u16) -> Self {
        self.op(act::READ, flow, 0, 0, len, 0)
    }

    fn control(self, which: u8, len: u16, word: u32) -> Self {
        self.op(act::CONTROL, which, 0, 0, len, word)
    }

    /// Handshake of client and target; the target's is the last that was sent.
    fn opens(self, flow: u8) -> Self {
        self.capture(flow, flag::SYN, 0).answer(flow, 0, 0).wait(200).capture(flow, 0, 0)
    }

    /// A request, its answer at the target, the online answer read.
    fn asks(self, flow: u8, request: u16, answer: u16) -> Self {
        self.capture(flow, flag::ACK | flag::PSH, request)
            .wait(300)
            .answer(flow, flag::PSH, answer)
            .read(flow, answer)
            .deadlines(1)
    }

    fn closes(self, flow: u8) -> Self {
        self.capture(flow, FIN, 0).answer(flow, flag::FIN, 0).deadlines(2)
    }
}

/// Sequences of every kind.
pub fn tables() -> Vec<Seed> {
    let plain = || Script::new([1, 0, 0, 0]);
    let keep = || Script::new([1, 1, 0, 0]);
    let ack = flag::ACK;
    let all: Vec<(&str, Script)> = vec![
        ("one_turn", plain().opens(0).asks(0, 80, 300).closes(0)),
        ("keep_alive", (0..5).fold(plain().opens(0), |s, n| s.asks(0, 40 + n, 500)).closes(0)),
        ("kept_client", keep().opens(0).asks(0, 80, 300).closes(0).opens(0).asks(0, 9, 9)),
        ("claimed", Script::new([0x41, 1, 0, 0]).opens(0).asks(0, 80, 300).closes(0)),
        (
            "no_waiting",
            Script::new([0, 0, 0, 0])
                .opens(0)
                .capture(0, 0, 900)
                .capture(0, 0, 900)
                .answer(0, 0, 10)
                .closes(0),
        ),
        (
            "measured_rtt",
            Script::new([1, 0, 1, 0])
                .capture(0, flag::SYN, 0)
                .wait(20_000)
                .capture(0, 0, 0)
                .answer(0, 0, 0)
                .asks(0, 70, 9)
                .closes(0),
        ),
        ("fixed_rtt", Script::new([1, 0, 2, 0]).opens(0).asks(0, 70, 9).deadlines(3).closes(0)),
        ("ipv6", plain().opens(3).asks(3, 80, 300).closes(3)),
        ("tiny_mtu", Script::new([1, 0x40, 0, 0]).opens(3).asks(3, 3_000, 300).answer(0, 0, 0).closes(3)),
        ("wraps", plain().opens(1).asks(1, 400, 5).asks(1, 900, 5).closes(1)),
        ("four_clients", (0..4).fold(plain(), |s, n| s.opens(n).asks(n, 100, 100)).closes(2).closes(0)),
        (
            "copies",
            Script::new([1, 0, 0, 4])
                .opens(0)
                .answer(1, 0, 0)
                .answer(2, 0, 0)
                .asks(0, 80, 30)
                .answer(1, 0, 9)
                .answer(2, 0, 9)
                .closes(0),
        ),
        ("bulk", (0..6).fold(plain().opens(0), |s, _| s.capture(0, ack, 1_448).answer(0, 0, 0)).closes(0)),
        ("too_much", (0..6).fold(plain().opens(0), |s, _| s.capture(0, ack, 9_000)).deadlines(3)),
        (
            "window_shut",
            plain()
                .opens(0)
                .capture(0, ack, 5_000)
                .answer(0, 0, 0)
                .extra(1)
                .deadlines(4)
                .answer(0, 0, 0)
                .closes(0),
        ),
        ("lost_to_target", plain().opens(0).capture(0, ack, 5_000).deadlines(5).answer(0, 0, 0).closes(0)),
        ("syn_lost", plain().capture(0, flag::SYN, 0).deadlines(4).answer(0, 0, 0).asks(0, 9, 9)),
        ("silent_target", plain().opens(0).capture(0, ack, 100).deadlines(14)),
        (
            "refused",
            plain()
                .capture(0, flag::SYN, 0)
                .answer(0, flag::RST | flag::SYN, 0)
                .capture(0, ack, 10)
                .deadlines(2),
        ),
        (
            "reset_by_target",
            plain().opens(0).asks(0, 10, 10).answer(0, flag::RST, 0).capture(0, ack, 30).deadlines(3),
        ),
        (
            "closed_by_target",
            plain()
                .opens(0)
                .asks(0, 10, 10)
                .answer(0, flag::FIN, 0)
                .capture(0, ack, 30)
                .answer(0, 0, 0)
                .asks(0, 5, 5)
                .closes(0),
        ),
        ("reset_by_client", plain().opens(0).capture(0, ack, 30).capture(0, flag::RST, 0).deadlines(2)),
        (
            "half_close",
            plain()
                .opens(0)
                .capture(0, ack, 1_000)
                .capture(0, FIN, 0)
                .answer(0, 0, 0)
                .answer(0, 0, 70)
                .answer(0, flag::FIN, 0)
                .deadlines(2),
        ),
        (
            "duplicates",
            plain()
                .opens(0)
                .capture(0, ack, 50)
                .op(act::CAPTURE, 0, 12, ack, 50, 50)
                .op(act::CAPTURE, 0, 10, ack, 50, 0)
                .answer(0, 0, 5)
                .closes(0),
        ),
        (
            "hole",
            plain()
                .opens(0)
                .capture(0, ack, 50)
                .op(act::CAPTURE, 0, 11, ack, 60, 700)
                .deadlines(2)
                .asks(0, 30, 30)
                .closes(0),
        ),
        (
            "reordered",
            plain()
                .opens(0)
                .op(act::CAPTURE, 0, 11, ack, 20, 20)
                .capture(0, ack, 20)
                .op(act::CAPTURE, 0, 0, ack, 20, 0)
                .answer(0, 0, 9)
                .closes(0),
        ),
        (
            "cut_by_snap",
            plain().opens(0).op(act::CAPTURE, 0, 0, ack, 200, 1_000).extra(0xe0).deadlines(2).asks(0, 9, 9),
        ),
        ("joined", Script::new([1, 0, 0, 5]).asks(0, 70, 70).asks(0, 70, 70).answer(0, 0, 0).closes(0)),
        (
            "joined_at_boundary",
            plain()
                .capture(0, ack, 70)
                .read(0, 9)
                .capture(0, ack, 70)
                .answer(0, 0, 0)
                .answer(0, 0, 9)
                .closes(0),
        ),
        ("never_joined", Script::new([1, 0, 0, 10]).asks(0, 70, 70).closes(0)),
        (
            "reused",
            keep()
                .opens(0)
                .asks(0, 9, 9)
                .op(act::CAPTURE, 0, 15, flag::SYN, 0, 77)
                .answer(0, 0, 0)
                .capture(0, ack, 9)
                .deadlines(9),
        ),
        (
            "one_address",
            Script::new([1, 2, 0, 0]).opens(0).opens(1).opens(2).asks(1, 10, 10).closes(1).closes(0),
        ),
        (
            "sack",
            plain()
                .opens(0)
                .capture(0, ack, 9_000)
                .op(act::ANSWER, 0x60, 0xc0, 0, 0, 3_000)
                .op(act::ANSWER, 0x60, 0xc0, 0, 0, 2_000)
                .op(act::ANSWER, 0x40, 0xc0, 0, 0, 2_900)
                .deadlines(2)
                .closes(0),
        ),
        (
            "challenge",
            plain().opens(0).asks(0, 9, 9).op(act::ANSWER, 0, 11, flag::RST, 0, 5).deadlines(2).op(
                act::ANSWER,
                0,
                0xf0,
                0,
                0,
                1 << 31,
            ),
        ),
        (
            "too_big",
            plain()
                .opens(0)
                .capture(0, ack, 4_000)
                .op(act::ICMP, 0, 0, 3, 576, 0)
                .extra(4)
                .deadlines(2)
                .answer(0, 0, 0)
                .op(act::ICMP, 0, 0, 3, 0, 0)
                .extra(4),
        ),
        ("unreachable", plain().capture(0, flag::SYN, 0).op(act::ICMP, 0, 0, 3, 0, 0).extra(1).deadlines(3)),
        (
            "restart",
            plain()
                .opens(0)
                .capture(0, ack, 700)
                .control(1, 0, 0)
                .deadlines(1)
                .answer(0, 0, 50)
                .asks(0, 20, 20)
                .control(1, 0, 0)
                .closes(0),
        ),
        (
            "drained",
            plain()
                .opens(0)
                .capture(0, ack, 700)
                .control(0, 0, 0)
                .capture(1, flag::SYN, 0)
                .answer(0, 0, 50)
                .closes(0),
        ),
        ("sampled", plain().control(2, 0, 500_000).opens(0).opens(1).opens(2).control(3, 2_500, 0).opens(3)),
        (
            "anything",
            plain()
                .opens(0)
                .op(act::ANY_CAPTURE, 0, 3, 0x1ff, 40, 0xdead_beef)
                .op(act::ANY_ANSWER, 0, 1, 0x1ff, 9, 0xffff_ffff)
                .op(act::ANY_ANSWER, 0, 1, 0x10, 9, 7)
                .extra(0x91)
                .deadlines(2),
        ),
        (
            "urgent",
            plain()
                .opens(0)
                .op(act::CAPTURE, 0, 0, ack | flag::URG, 30, 0)
                .extra(7)
                .answer(0, 0, 3)
                .closes(0),
        ),
        (
            "kept_copies",
            Script::new([1, 1, 0, 4]).opens(0).answer(1, 0, 0).answer(2, 0, 0).asks(0, 80, 30).closes(0),
        ),
        (
            "duplex",
            (0..5)
                .fold(plain().opens(0), |s, _| {
                    s.capture(0, ack, 30).wait(5_000_000).answer(0, 0, 0).read(0, 9)
                })
                .closes(0),
        ),
        (
            "sick_target",
            (0..14)
                .fold(plain(), |s, n| {
                    s.op(act::CAPTURE, n % 3, 15, flag::SYN, 0, 1_000 + u32::from(n) * 70_000).answer(
                        0,
                        flag::RST | flag::SYN,
                        0,
                    )
                })
                .deadlines(6),
        ),
        (
            "client_unspecified",
            keep()
                .op(act::ANY_CAPTURE, 0, 0, flag::SYN, 0, 7)
                .extra(2)
                .deadlines(2)
                .control(1, 0, 0)
                .closes(0),
        ),
        ("syn_with_data", plain().capture(0, flag::SYN, 100).answer(0, 0, 0).asks(0, 9, 9).closes(0)),
    ];
    all.into_iter().map(|(name, script)| (name.to_owned(), script.bytes)).collect()
}
