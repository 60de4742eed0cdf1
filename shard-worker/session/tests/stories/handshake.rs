//! Opening a connection.

use flow::record::{flag, opt};
use flow::{Drop, Returned, Seq};
use session::{Clients, Count, Rtt, TargetConfig};

use crate::kit::*;

#[test]
fn the_syn_is_ours_and_data_rides_right_after_it() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.syn(&mut world);
    let syn = world.sent[0].clone();
    assert!(syn.is(flag::SYN) && !syn.is(flag::ACK));
    assert_eq!(syn.head.tcp.options, opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED | opt::TIMESTAMPS);
    assert_ne!(syn.head.client, client.at);
    assert_eq!(syn.head.tcp.mss, 1460);
    client.acks(&mut world);
    client.sends(&mut world, b"hello 10\n");
    assert_eq!(world.sent.len(), 1, "nothing before the SYN-ACK");
    world.run(10 * MS);
    let second = &world.sent[1];
    assert_eq!((second.payload.as_slice(), second.head.tcp.ack), (&b"hello 10\n"[..], Seq(700_001)));
    assert_eq!(second.head.tcp.seq, syn.head.tcp.seq + 1);
    assert_eq!(second.head.mss, 1448, "time stamps take twelve bytes");
    assert_eq!(world.peer().text(), "hello 10\n");
    world.assert_all_delivered();
}

#[test]
fn a_lost_syn_and_a_lost_syn_ack_are_repeated() {
    let mut world = World::new();
    let mut lost = 0;
    world.to_target = Box::new(move |_, head| {
        lost += u32::from(head.tcp.has(flag::SYN));
        if head.tcp.has(flag::SYN) && lost == 1 { Fate::Lose } else { Fate::Pass }
    });
    let mut dropped = false;
    world.to_us = Box::new(move |_, record| {
        if record.tcp.has(flag::SYN) && !std::mem::replace(&mut dropped, true) {
            Fate::Lose
        } else {
            Fate::Pass
        }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"hello 10\n");
    world.run(8 * SECOND);
    assert_eq!(world.peer().text(), "hello 10\n");
    assert!(world.count(Count::SynRepeated) >= 1);
    world.assert_all_delivered();
}

#[test]
fn a_lost_third_packet_is_healed_by_what_follows() {
    let mut world = World::new();
    let mut seen = 0;
    world.to_target = Box::new(move |_, head| {
        seen += 1;
        if seen == 2 && !head.tcp.has(flag::SYN) { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(SECOND);
    client.asks(&mut world, "a", 10);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "a 10\n");
    world.assert_all_delivered();
}

#[test]
fn refused_drops_what_is_held_and_the_next_turn_tries_again() {
    let mut world = World::new();
    world.options.refuse = true;
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"one 10\n");
    world.run(SECOND);
    assert_eq!(world.dropped(Drop::Refused), 7);
    world.options.refuse = false;
    client.sends(&mut world, b"more of one 10\n");
    assert_eq!(world.dropped(Drop::Refused), 22, "the rest of a refused turn");
    client.reads(10);
    client.asks(&mut world, "two", 10);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "two 10\n");
    world.assert_delivered_but(Drop::Refused, 22);
}

#[test]
fn silence_times_out() {
    let mut world = World::new();
    world.options.dead = true;
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"one 10\n");
    world.run(100 * SECOND);
    world.assert_delivered_but(Drop::TimedOut, 7);
    assert!(world.sent.len() < 20, "with a pause that doubles");
    client.resets(&mut world);
    assert_eq!(world.count(Count::FailedTimedOut), 1);
    assert_eq!(world.table.tally().open, 0);
}

#[test]
fn a_target_in_time_wait_gets_a_reset_and_a_syn_at_once() {
    let mut world = World::new();
    let mut first = true;
    world.to_target = Box::new(move |_, _| if std::mem::take(&mut first) { Fate::Lose } else { Fate::Pass });
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut stale =
        Returned { client: world.sent[0].head.client, target: endpoint(TARGET), ..Returned::default() };
    stale.tcp.flags = flag::ACK;
    stale.tcp.ack = Seq(12_345);
    world.give_back(stale);
    world.run(200);
    assert!(world.sent[1].is(flag::RST) && world.sent[1].head.tcp.seq == Seq(12_345));
    assert!(world.sent[2].is(flag::SYN) && world.sent[2].head.tcp.seq == world.sent[0].head.tcp.seq);
    world.run(10 * MS);
    assert!(world.peer().established);
}

/// RFC 9293, section 3.10.7.3: a connection that the target still has is cleared by a reset with its number, a few times
/// for each SYN. Each of these resets may be lost, so the next SYN begins anew.
#[test]
fn a_target_that_has_an_older_connection_still_is_reset_until_it_knows() {
    let mut world = World::new();
    world.to_target = Box::new(|_, _| Fate::Lose);
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut stale =
        Returned { client: world.sent[0].head.client, target: endpoint(TARGET), ..Returned::default() };
    stale.tcp.flags = flag::ACK;
    stale.tcp.ack = Seq(12_345);
    let resets = |world: &World| world.sent.iter().filter(|sent| sent.is(flag::RST)).count();
    for _ in 0..5 {
        world.give_back(stale);
        world.run(10 * MS);
    }
    assert_eq!(resets(&world), 3, "two hosts out of step do not answer each other for ever");
    world.run(1000 * MS);
    world.to_target = Box::new(|_, _| Fate::Pass);
    world.give_back(stale);
    world.run(10 * MS);
    assert_eq!(resets(&world), 4);
    assert!(world.peer().established);
}

#[test]
fn a_real_clients_distance_is_kept() {
    let mut config = config();
    config.rtt = Rtt::Measured;
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.syn(&mut world);
    world.run(20 * MS);
    assert_eq!(world.sent.len(), 1, "the third packet waits for the client's");
    world.run(10 * MS);
    client.acks(&mut world);
    client.sends(&mut world, b"one 100\n");
    world.run(5 * MS);
    let start = world.sent[0].at_us;
    let third = &world.sent[1];
    assert!((30 * MS..31 * MS).contains(&(third.at_us - start)), "{}", third.at_us - start);
    world.run(60 * MS);
    // The answer came at about 30.3 ms; its acknowledgement is 30 ms later, and a turn that is already there goes with it.
    let ack = world.sent.last().unwrap();
    assert!(ack.payload.is_empty() && ack.head.tcp.ack == Seq(700_101));
    assert!((60 * MS..61 * MS).contains(&(ack.at_us - start)), "{}", ack.at_us - start);
    client.reads(100);
    client.sends(&mut world, b"two 100\n");
    world.run(MS);
    assert_eq!(world.peer().text(), "one 100\ntwo 100\n");
}

#[test]
fn data_in_a_syn_is_held_until_the_connection_stands() {
    let mut world = World::new();
    let mut client = Client::new(1);
    let syn = client.segment(flag::SYN);
    world.capture(&syn, b"early 10\n");
    world.run(200 * MS);
    assert!(world.data_sent().is_empty(), "TCP Fast Open's data may be a repeat");
    client.seq += 1 + 9;
    client.ack = Seq(90_000);
    client.acks(&mut world);
    client.sends(&mut world, b"more 10\n");
    world.run(100 * MS);
    assert_eq!(world.peer().text(), "early 10\nmore 10\n");
    world.assert_all_delivered();
}

#[test]
fn ipv6_clients_come_from_their_own_range() {
    let mut config = config();
    config.targets = vec![TargetConfig { endpoint: endpoint("[2001:db8::2]:80"), mtu: 1500 }];
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.at = endpoint("[2001:db8:9::1]:41000");
    client.opens(&mut world);
    let syn = &world.sent[0].head;
    assert!(!syn.client.addr.is_v4());
    assert_eq!(syn.tcp.mss, 1440);
    client.sends(&mut world, &[b'x'; 20_000]);
    client.asks(&mut world, "", 300);
    client.closes(&mut world);
    world.run(SECOND);
    assert_eq!(world.peer().read, client.written);
    assert_eq!(world.peer().largest, 1428);
    assert!(world.peer().is_closed());
    world.assert_all_delivered();
}

#[test]
fn a_family_without_a_range_is_not_replayed() {
    let mut config = config();
    config.clients = Clients::Pool { v4: None, v6: None };
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"x");
    client.reads(1);
    client.sends(&mut world, b"yy");
    assert!(world.sent.is_empty());
    assert_eq!(world.dropped(Drop::EndpointsExhausted) + world.dropped(Drop::JoinedMidturn), 3);
}
