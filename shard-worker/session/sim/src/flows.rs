//! What the real clients want: one plan for each flow, its bytes, and what online and target server answer to it.
//!
//! A flow's stream describes itself: every request begins with a head that names the flow, the request and its length,
//! and the bytes after it belong to this flow and this place alone. So whoever reads a stream knows whose it is.

use flow::{Addr, Endpoint};

use crate::dice::Dice;
use crate::scenario::{Answers, Scenario};

/// Bytes of a request's head: flow, mark, number of the request, length, check.
pub(crate) const HEAD: usize = 16;
const MARK: u16 = 0x7e57;
/// Ports of the online server: the plain service and the one that speaks first.
pub(crate) const PLAIN: u16 = 80;
pub(crate) const GREETS: u16 = 25;
/// What the service that speaks first says, online and at the target.
pub(crate) const GREETING: u32 = 40;

/// What a client does, as the field does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    KeepAlive,
    OneRequest,
    Pipelined(u32),
    Greeted,
    HalfClose,
    LongPoll,
    Push,
    Upload,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN once everything is read.
    Close,
    /// FIN right behind the last request.
    HalfClose,
    /// The server closes after its last answer.
    ServerCloses,
    Reset,
    /// It is never heard of again.
    Vanish,
}

/// An answer as one side gives it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) len: u32,
    /// From the whole request to the first byte.
    pub(crate) delay_us: u64,
    pub(crate) writes: u32,
    pub(crate) gap_us: u64,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) start: u32,
    pub(crate) len: u32,
    pub(crate) online: Answer,
    pub(crate) target: Answer,
    /// Leaves when this many answers (a greeting is one) are read, and after the thinking time.
    pub(crate) after: u32,
    pub(crate) think_us: u64,
    /// Written in so many goes.
    pub(crate) writes: u32,
    /// How many answers the client had read when its first byte left; known once the flow has been played online.
    pub(crate) read_before: u32,
}

/// One connection of a real client.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) id: u32,
    pub(crate) end: End,
    pub(crate) client: Endpoint,
    pub(crate) server: Endpoint,
    pub(crate) mapping: u16,
    pub(crate) isn: u32,
    pub(crate) server_isn: u32,
    pub(crate) mss: u32,
    pub(crate) stamps: bool,
    pub(crate) rtt_us: u64,
    /// Its SYN arrives at the online server, after the start.
    pub(crate) born_us: u64,
    pub(crate) copies: u32,
    pub(crate) requests: Vec<Request>,
    pub(crate) stream: Vec<u8>,
}

impl Flow {
    pub(crate) fn greeted(&self) -> u32 {
        u32::from(self.mapping == 1)
    }
}

/// The head of a request, if these are one: flow, number, length.
pub(crate) fn head(bytes: &[u8]) -> Option<(u32, u32, u32)> {
    let bytes = bytes.first_chunk::<HEAD>()?;
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (flow, number, len) = (word(0), u32::from(u16::from_be_bytes([bytes[6], bytes[7]])), word(8));
    let marked = bytes[4..6] == MARK.to_be_bytes() && word(12) == check(flow, number, len);
    marked.then_some((flow, number, len))
}

fn check(flow: u32, number: u32, len: u32) -> u32 {
    Dice::new(u64::from(flow) << 32 | u64::from(number), u64::from(len)).next() as u32
}

fn write_request(stream: &mut Vec<u8>, seed: u64, flow: u32, number: u32, len: u32) {
    let end = stream.len() + len as usize;
    stream.extend(flow.to_be_bytes());
    stream.extend(MARK.to_be_bytes());
    stream.extend((number as u16).to_be_bytes());
    stream.extend(len.to_be_bytes());
    stream.extend(check(flow, number, len).to_be_bytes());
    let mut dice = Dice::new(seed ^ u64::from(flow) << 20, u64::from(number) + 1000);
    while stream.len() < end {
        let word = dice.next().to_be_bytes();
        stream.extend(&word[..8.min(end - stream.len())]);
    }
}

const MS: u64 = 1000;

/// The plans of all flows of a world, in the order of their births.
pub(crate) fn plan(
    scenario: &Scenario,
    sample_seed: u64,
    usable: impl Fn(&Endpoint, u64) -> bool,
) -> Vec<Flow> {
    let mut dice = Dice::new(scenario.seed, 11);
    let mut births: Vec<u64> = (0..scenario.flows).map(|_| dice.below(scenario.spread_us)).collect();
    births.sort_unstable();
    let mut flows: Vec<Flow> = Vec::new();
    for (id, born_us) in births.into_iter().enumerate() {
        let mut flow = one(scenario, &mut dice, id as u32, born_us);
        for _ in 0..1 << 18 {
            if usable(&flow.client, born_us) && flows.iter().all(|other| other.client != flow.client) {
                break;
            }
            flow.client = client(scenario, &mut dice);
        }
        flow.copies = flow::sample::copies(
            sample_seed,
            &flow.client,
            &flow.server,
            0,
            scenario.percent_ppm,
            scenario.copies_milli,
        );
        flows.push(flow);
    }
    flows
}

fn client(scenario: &Scenario, dice: &mut Dice) -> Endpoint {
    let host = dice.below(1 << 16) as u32;
    let [a, b] = [(host >> 8) as u8, host as u8];
    let addr = match scenario.v6 {
        true => Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b]),
        false => Addr::v4([203, 0, a, b]),
    };
    Endpoint::new(addr, dice.between(1024, 65_536) as u16)
}

fn one(scenario: &Scenario, dice: &mut Dice, id: u32, born_us: u64) -> Flow {
    let depth = 2 + dice.below(8) as u32;
    let kind = dice.weighted(&[
        (40, Kind::KeepAlive),
        (20, Kind::OneRequest),
        (8, Kind::Pipelined(depth)),
        (6, Kind::Greeted),
        (5, Kind::HalfClose),
        (5, Kind::LongPoll),
        (8, Kind::Push),
        (8, Kind::Upload),
    ]);
    let end = match kind {
        Kind::HalfClose => End::HalfClose,
        Kind::OneRequest => dice.weighted(&[(2, End::Close), (2, End::ServerCloses)]),
        _ => dice.weighted(&[
            (12, End::Close),
            (2, End::ServerCloses),
            (2, End::Reset),
            (1, End::Vanish),
            (1, End::HalfClose),
        ]),
    };
    let mapping = u16::from(kind == Kind::Greeted);
    let host = if scenario.v6 {
        Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    } else {
        Addr::v4([10, 0, 1, 1])
    };
    let near_wrap = scenario.wraps || dice.percent(2);
    let isn = |dice: &mut Dice| match near_wrap {
        true => 0u32.wrapping_sub(dice.size(40_000) as u32),
        false => dice.next() as u32,
    };
    let mut flow = Flow {
        id,

        end,
        client: client(scenario, dice),
        server: Endpoint::new(host, if mapping == 1 { GREETS } else { PLAIN }),
        mapping,
        isn: isn(dice),
        server_isn: isn(dice),
        mss: dice.weighted(&[(8, 1460), (1, 1400), (1, 536)]),
        stamps: dice.percent(80),
        rtt_us: dice.size(150 * MS).max(60),
        born_us,
        copies: 1,
        requests: Vec::new(),
        stream: Vec::new(),
    };
    let count = match kind {
        Kind::OneRequest | Kind::HalfClose => 1,
        Kind::Upload | Kind::LongPoll => 1 + dice.below(2),
        Kind::Push => 4 + dice.below(8),
        Kind::KeepAlive | Kind::Greeted | Kind::Pipelined(_) => 1 + dice.size(16),
    };
    for number in 0..count as u32 {
        let request = request(scenario, dice, kind, number, flow.greeted(), flow.stream.len() as u32);
        write_request(&mut flow.stream, scenario.seed, id, number, request.len);
        flow.requests.push(request);
    }
    flow
}

fn request(
    scenario: &Scenario,
    dice: &mut Dice,
    kind: Kind,
    number: u32,
    greeted: u32,
    start: u32,
) -> Request {
    let len = match kind {
        Kind::Upload => dice.between(10_000, 150_000),
        Kind::Push => HEAD as u64 + dice.below(60),
        _ if dice.percent(12) => dice.size(20_000),
        _ => HEAD as u64 + dice.size(600),
    };
    let after = match kind {
        Kind::Pipelined(depth) => (number + 1).saturating_sub(depth),
        Kind::Push => 0,
        _ => number + greeted,
    };
    let think_us = match kind {
        Kind::Push if number > 0 => dice.size(60 * MS),
        Kind::Pipelined(_) => dice.below(50),
        _ if dice.percent(30) => dice.size(300 * MS),
        _ => dice.below(500),
    };
    let online = match kind {
        Kind::Push if number == 0 => Answer {
            len: dice.size(20_000) as u32,
            delay_us: 500,
            writes: 20,
            gap_us: 1 + dice.size(20 * MS),
        },
        Kind::Push => Answer { len: 0, ..Answer::default() },
        Kind::LongPoll => {
            Answer { len: 1 + dice.size(2000) as u32, delay_us: dice.size(5000 * MS), writes: 1, gap_us: 0 }
        }
        _ => Answer {
            len: 1 + if dice.percent(9) { dice.size(60_000) } else { dice.size(3000) } as u32,
            delay_us: dice.size(5 * MS),
            writes: 1 + dice.below(2) as u32,
            gap_us: dice.below(MS),
        },
    };
    let target = at_target(scenario, dice, kind, online);
    Request {
        start,
        len: (len as u32).max(HEAD as u32),
        online,
        target,
        after,
        think_us,
        writes: dice.weighted(&[(8, 1), (1, 2), (1, 6)]),
        read_before: 0,
    }
}

fn at_target(scenario: &Scenario, dice: &mut Dice, kind: Kind, online: Answer) -> Answer {
    let target = &scenario.target;
    let len = match (online.len, target.answers) {
        (0, _) => 0,
        (len, Answers::Equal) => len,
        (len, Answers::Longer(by)) => len + by,
        (len, Answers::Shorter(by)) => len.saturating_sub(by).max(1),
        (len, Answers::Random(by)) => {
            (len + dice.below(2 * u64::from(by) + 1) as u32).saturating_sub(by).max(1)
        }
    };
    Answer {
        len,
        delay_us: match kind {
            Kind::LongPoll => online.delay_us / 4 + dice.below(online.delay_us + 1),
            _ => dice.below(target.delay_us + 1),
        },
        writes: if kind == Kind::Push { online.writes } else { 1 + dice.below(target.writes.into()) as u32 },
        gap_us: if kind == Kind::Push { online.gap_us } else { target.write_gap_us },
    }
}
