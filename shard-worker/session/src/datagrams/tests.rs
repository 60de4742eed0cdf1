//! A shard's flows of datagrams, over an arena that outlives the table.

use std::collections::BTreeSet;

use super::*;
use crate::config::{Join, Limits, OnGap, Pace, Rtt, Seeds, TargetConfig, Times};

fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

fn config(clients: Clients) -> Config {
    Config {
        shards: 4,
        shard: 2,
        seeds: Seeds { shard: 1, sample: 2, endpoint: 3, isn: 4, table: 5 },
        clients,
        targets: vec![
            TargetConfig { endpoint: endpoint("10.0.3.2:53"), mtu: 1_500 },
            TargetConfig { endpoint: endpoint("[fd00::32]:53"), mtu: 1_500 },
        ],
        mappings: vec![0, 1],
        wait: true,
        rtt: Rtt::None,
        join: Join::Boundary,
        on_gap: OnGap::Skip,
        pace: Pace::default(),
        limits: Limits { sessions: 1, chunks: 1, held_per_session: 1 },
        times: Times::default(),
        claim: matches!(clients, Clients::Keep),
        file_us: None,
        repeatable: false,
    }
}

fn pool(v4: &str) -> Clients {
    Clients::Pool { v4: Some(v4.parse().unwrap()), v6: Some("2001:2::/48".parse().unwrap()) }
}

/// Aligned memory with these bytes in it, then zeros.
fn arena(bytes: &[u8]) -> &'static mut [u8] {
    let words = vec![0u64; (Datagrams::arena_bytes() as usize).div_ceil(8)].leak();
    words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    words.as_mut_bytes()
}

fn table(clients: Clients) -> Datagrams {
    Datagrams::successor(arena(&[]), config(clients), vec![true, true])
}

/// What a successor finds in the memory of one that died.
fn successor(dead: &Datagrams) -> Datagrams {
    let memory = [dead.header.as_bytes(), dead.entries.as_bytes()].concat();
    Datagrams::successor(arena(&memory), dead.config.clone(), vec![true, true])
}

#[derive(Default)]
struct Out(Vec<(Inject, usize)>);

impl Sink for Out {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        self.0.push((*head, parts.map(<[u8]>::len).sum()));
    }
}

const ALL: Order = Order {
    paused: false,
    percent_ppm: 1_000_000,
    copies_milli: 1_000,
    admitted_ppm: 1_000_000,
    kept_ppm: 1_000_000,
};

fn datagram(port: u16, len: u32) -> Captured {
    Captured {
        client: endpoint(&format!("10.0.0.1:{port}")),
        server: endpoint("10.0.0.9:53"),
        payload_len: len,
        ..Captured::default()
    }
}

/// Gives a datagram to the table with all its copies; what it sent.
fn give(table: &mut Datagrams, now_us: u64, segment: &Captured, order: &Order) -> Vec<Inject> {
    let payload = vec![7; segment.payload_len as usize];
    let mut out = Out::default();
    let copies = table.copies(segment, order, false);
    for copy in 0..copies {
        table.send(now_us, segment, &payload, [copy, copies], &mut out);
    }
    assert!(out.0.iter().all(|(head, len)| head.payload_len as usize == *len));
    out.0.into_iter().map(|(head, _)| head).collect()
}

/// The ledger since the last call: wanted, sent and dropped bytes, and that they add up.
fn ledger(table: &mut Datagrams) -> [u64; 3] {
    let counts = table.take_counts();
    let dropped: u64 = table.take_dropped().iter().map(|(_, bytes)| bytes).sum();
    let read = |count: DatagramCount| counts[count.index()];
    let (wanted, sent) = (read(DatagramCount::WantedBytes), read(DatagramCount::SentBytes));
    assert_eq!(wanted, sent + dropped);
    [wanted, sent, dropped]
}

#[test]
fn a_flow_keeps_its_endpoint_and_no_two_share_one() {
    let mut table = table(pool("198.18.0.0/20"));
    let three = Order { copies_milli: 3_000, ..ALL };
    let first: Vec<Vec<Inject>> =
        (0..1_000).map(|i| give(&mut table, 1, &datagram(1_000 + i, 20), &three)).collect();
    let again: Vec<Vec<Inject>> =
        (0..1_000).map(|i| give(&mut table, 2, &datagram(1_000 + i, 20), &three)).collect();
    assert!(first == again);
    let clients: BTreeSet<Endpoint> = first.iter().flatten().map(|head| head.client).collect();
    assert_eq!(clients.len(), 3_000);
    for client in &clients {
        assert_eq!(shard_of(endpoint_hash(1, client), 4), 2, "{client} hashes back to its shard");
        assert!("198.18.0.0/20".parse::<Range>().unwrap().contains(client.addr) && client.port >= 1_024);
    }
    assert_eq!((table.opened(), table.open_flows()), (3_000, 3_000));
    assert_eq!(ledger(&mut table), [120_000, 120_000, 0]);
}

#[test]
fn the_targets_family_decides_and_an_empty_datagram_is_one() {
    let mut table = table(pool("198.18.0.0/20"));
    let six = Captured { mapping: 1, ..datagram(5, 0) };
    let sent = give(&mut table, 1, &six, &ALL);
    assert_eq!(sent.len(), 1);
    assert!("2001:2::/48".parse::<Range>().unwrap().contains(sent[0].client.addr));
    assert_eq!((sent[0].target, table.take_counts()[DatagramCount::Sent.index()]), (1, 1));
}

#[test]
fn real_clients_are_kept_claimed_and_claimed_again() {
    let mut table = table(Clients::Keep);
    let bits = |heads: &[Inject]| heads.iter().map(|head| head.bits).collect::<Vec<_>>();
    let two = Order { copies_milli: 2_000, ..ALL };
    let sent = give(&mut table, 5, &datagram(9, 1), &two);
    assert_eq!(sent[0].client, datagram(9, 1).client);
    assert_eq!(sent[1].client.addr, sent[0].client.addr, "a copy has another port");
    assert_ne!(sent[1].client, sent[0].client);
    assert_eq!(bits(&sent), [inject_bit::CLAIM; 2]);
    assert_eq!(bits(&give(&mut table, 6, &datagram(9, 1), &two)), [0; 2]);
    assert_eq!(
        bits(&give(&mut table, 6 + 2 * CLAIM_AGAIN_US, &datagram(9, 1), &two)),
        [inject_bit::CLAIM; 2]
    );
}

#[test]
fn replies_are_counted_and_the_first_one_is_timed() {
    let mut table = table(pool("198.18.0.0/20"));
    let sent = give(&mut table, 1_000, &datagram(9, 1), &ALL)[0];
    let reply = Returned {
        kind: kind::UDP,
        client: sent.client,
        target: endpoint("10.0.3.2:53"),
        payload_len: 50,
        ..Returned::default()
    };
    table.returned(1_700, &reply);
    table.returned(1_900, &reply);
    table.returned(1_900, &Returned { kind: kind::UDP_ICMP, ..reply });
    table.returned(1_900, &Returned { target: endpoint("10.0.3.2:54"), ..reply });
    let counts = table.take_counts();
    let read = |count: DatagramCount| counts[count.index()];
    assert_eq!([read(DatagramCount::Replies), read(DatagramCount::ReplyBytes)], [2, 100]);
    assert_eq!([read(DatagramCount::FirstReplies), read(DatagramCount::FirstReplyUs)], [1, 700]);
    assert_eq!([read(DatagramCount::Unreachable), read(DatagramCount::Strays)], [1, 1]);
}

#[test]
fn a_silent_flow_is_forgotten_and_comes_back_as_the_same_client() {
    let mut table = table(pool("198.18.0.0/20"));
    let before = give(&mut table, 1, &datagram(9, 1), &ALL)[0].client;
    give(&mut table, SILENCE_US, &datagram(10, 1), &ALL);
    assert!(!table.tick(SILENCE_US) && table.tick(SILENCE_US + 1));
    assert_eq!((table.opened(), table.open_flows()), (2, 1));
    assert_eq!(give(&mut table, SILENCE_US + 2, &datagram(9, 1), &ALL)[0].client, before);
}

#[test]
fn what_is_not_begun_has_a_reason() {
    let mut table = table(pool("198.18.0.0/20"));
    let known = datagram(9, 10);
    give(&mut table, 1, &known, &ALL);
    ledger(&mut table);
    let paused = Order { paused: true, copies_milli: 2_000, ..ALL };
    assert_eq!(give(&mut table, 2, &datagram(10, 10), &paused).len(), 0);
    assert_eq!(give(&mut table, 2, &known, &paused).len(), 1, "a flow that exists goes on");
    assert_eq!(ledger(&mut table), [30, 10, 20]);
    assert_eq!(give(&mut table, 3, &datagram(11, 10), &Order { percent_ppm: 0, ..ALL }).len(), 0);
    assert_eq!(ledger(&mut table), [0; 3], "sampled out is not wanted");
    table.drain();
    assert_eq!(give(&mut table, 4, &datagram(12, 10), &ALL).len(), 0);
    assert_eq!(ledger(&mut table), [10, 0, 10]);
    table.turn_away(&known, Drop::Quarantined, &ALL, 0);
    assert_eq!(ledger(&mut table), [10, 0, 10]);
}

#[test]
fn a_range_that_is_used_up_and_a_full_table_are_told() {
    // One address, a quarter of whose ports hash to this shard: fewer than there are entries.
    let mut table = table(pool("198.18.0.7/32"));
    let flow = |i: u32| Captured {
        client: Endpoint::new(Addr::v4((0x0a00_0000 + i).to_be_bytes()), 9),
        ..datagram(9, 1)
    };
    let sent: usize = (0..40_000).map(|i| give(&mut table, 1, &flow(i), &ALL).len()).sum();
    let exhausted = table.take_dropped()[Drop::EndpointsExhausted.index()].0;
    assert!(sent as u64 + exhausted == 40_000 && (14_000..=16_500).contains(&sent), "{sent}");

    let mut table = self::table(pool("198.18.0.0/15"));
    for i in 0..FLOWS {
        assert_eq!(give(&mut table, u64::from(i), &flow(i), &ALL).len(), 1);
    }
    assert_eq!(give(&mut table, 40_000, &flow(FLOWS), &ALL).len(), 0);
    assert_eq!(table.take_dropped()[Drop::TableFull.index()], (1, 1));
    assert_eq!(
        give(&mut table, YIELDS_US, &flow(FLOWS), &ALL).len(),
        1,
        "the one that was silent longest gives way"
    );
    assert_eq!(table.take_counts()[DatagramCount::Yielded.index()], 1);
    assert_eq!(table.open_flows(), u64::from(FLOWS));
}

#[test]
fn a_successor_knows_the_flows_and_a_torn_one_is_none() {
    let mut dead = table(pool("198.18.0.0/20"));
    let sent: Vec<Endpoint> =
        (0..50).map(|i| give(&mut dead, 10 + u64::from(i), &datagram(100 + i, 1), &ALL)[0].client).collect();
    let torn = dead.find(&datagram(107, 1), 0).unwrap();
    dead.entries[torn as usize].replayed.port ^= 1;
    dead.header.opened = 40;
    let mut heir = successor(&dead);
    assert_eq!((heir.opened(), heir.open_flows()), (50, 49), "the entries say how many were opened");
    for (i, before) in (0..).zip(&sent) {
        assert_eq!(give(&mut heir, 100, &datagram(100 + i, 1), &ALL)[0].client, *before);
    }
    assert_eq!((heir.opened(), heir.open_flows()), (51, 50));
    assert_eq!(heir.age.oldest(), heir.find(&datagram(100, 1), 0), "the order of age is made anew");
}

#[test]
fn any_bytes_in_the_arena_are_survived() {
    let noise: Vec<u8> = (0..Datagrams::arena_bytes()).map(|i| spread(i) as u8).collect();
    let mut table = Datagrams::successor(arena(&noise), config(pool("198.18.0.0/20")), vec![true, true]);
    assert_eq!((table.opened(), table.open_flows()), (0, 0));
    let mut marked = noise;
    marked[..8].copy_from_slice(&FORMAT.to_ne_bytes());
    table = Datagrams::successor(arena(&marked), config(pool("198.18.0.0/20")), vec![true, true]);
    assert_eq!(table.open_flows(), 0);
    assert_eq!(give(&mut table, 1, &datagram(9, 1), &ALL).len(), 1);
}
