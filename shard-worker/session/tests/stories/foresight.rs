//! Batches that were foreseen, in a table that is large enough for it.

use flow::record::flag;
use flow::{Captured, Endpoint, Inject, Returned, Seq, TcpFields};
use session::{Clients, Config, Count, Limits, Sink, Table, TargetConfig};

use crate::kit::*;

const SESSIONS: u32 = 18_000;
const BATCH: usize = 32;

/// What the target says to each SYN.
#[derive(Default)]
struct SynAcks(Vec<Returned>);

impl Sink for SynAcks {
    fn emit<'p>(&mut self, head: &Inject, _: impl Iterator<Item = &'p [u8]>) {
        if head.tcp.has(flag::SYN) {
            let tcp = TcpFields {
                seq: Seq(77),
                ack: head.tcp.seq + 1,
                flags: flag::SYN | flag::ACK,
                window: 60_000,
                ..TcpFields::default()
            };
            let target = endpoint(SERVER);
            self.0.push(Returned { client: head.client, target, tcp, ..Returned::default() });
        }
    }
}

fn segment(n: u32, flags: u16) -> Captured {
    let client = Endpoint::new(endpoint("10.9.0.1:1").addr, 1_024 + n as u16);
    let seq = Seq(n) + u32::from(flags & flag::SYN == 0);
    let tcp = TcpFields { seq, ack: Seq(900), flags, ..TcpFields::default() };
    Captured { client, server: endpoint(SERVER), tcp, ..Captured::default() }
}

/// The target has the online server's address and clients keep theirs, so that a flow and its answers are between the same two
/// ends; what was foreseen of the one says nothing about the other, and nothing about who comes in its place.
#[test]
fn packets_that_come_otherwise_than_foreseen_find_their_sessions() {
    let config = Config {
        clients: Clients::Keep,
        targets: vec![TargetConfig { endpoint: endpoint(SERVER), mtu: 1500 }],
        limits: Limits { sessions: SESSIONS + 100, chunks: 256, held_per_session: 1 << 20 },
        ..config()
    };
    let mut table = Table::new(arena(&config.limits), config);
    let (mut now_us, mut target) = (1_000 * SECOND, SynAcks::default());
    for n in 0..SESSIONS {
        table.captured(now_us, &segment(n, flag::SYN), &[], 1_000_000, 1_000);
        while table.pump(now_us, &mut target) {}
        table.settle();
        now_us += 1;
    }
    assert_eq!(target.0.len() as u32, SESSIONS);
    let third_packets: Vec<Captured> = (0..SESSIONS).map(|n| segment(n, flag::ACK)).collect();
    for (number, (answers, acks)) in target.0.chunks(BATCH).zip(third_packets.chunks(BATCH)).enumerate() {
        let (mut answers, mut acks) = (answers.to_vec(), acks.to_vec());
        table.foresee(acks.iter().copied(), answers.iter().copied());
        if number % 3 == 1 {
            answers.reverse();
            acks.reverse();
        }
        if number % 3 == 2 {
            acks.iter().for_each(|ack| table.captured(now_us, ack, &[], 1_000_000, 1_000));
            answers.iter().for_each(|answer| table.returned(now_us, answer));
        } else {
            answers.iter().for_each(|answer| table.returned(now_us, answer));
            acks.iter().for_each(|ack| table.captured(now_us, ack, &[], 1_000_000, 1_000));
        }
        while table.pump(now_us, &mut SynAcks::default()) {}
        table.settle();
        now_us += 1;
    }
    let tally = table.tally();
    assert_eq!(tally.open, u64::from(SESSIONS));
    for count in [Count::ReturnedUnknown, Count::ReturnedDuplicate, Count::ReturnedRefused, Count::Orphans] {
        assert_eq!(tally.count(count), 0, "{count:?}");
    }
    table.check().unwrap();
}
