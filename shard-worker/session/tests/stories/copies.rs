//! Several sessions for one flow, and none.

use std::collections::HashSet;

use flow::Drop;
use flow::hash::{endpoint_hash, shard_of};
use session::{Clients, Count};

use crate::kit::*;

#[test]
fn three_copies_are_three_connections_with_the_same_stream() {
    let mut world = World::new();
    world.copies_milli = 3_000;
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.asks(&mut world, "r1", 100);
    client.closes(&mut world);
    world.run(SECOND);
    assert_eq!(world.peers.len(), 3);
    assert!(world.peers.iter().all(|peer| peer.text() == "r0 100\nr1 100\n" && peer.is_closed()));
    let clients: HashSet<_> = world.peers.iter().map(|peer| peer.client).collect();
    assert_eq!(clients.len(), 3);
    assert_eq!(world.count(Count::Wanted), 3 * 14);
    assert_eq!(world.count(Count::SessionsCompleted), 3);
    world.assert_all_delivered();
}

#[test]
fn a_copy_that_ends_alone_leaves_the_others_alone() {
    let mut world = World::new();
    world.copies_milli = 3_000;
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.peers[0].reset = true;
    client.asks(&mut world, "r1", 100);
    world.run(SECOND);
    client.asks(&mut world, "r2", 100);
    world.run(SECOND);
    assert_eq!(world.peers[1].lines + world.peers[2].lines, 6);
    assert_eq!(world.peers[3].text(), "r1 100\nr2 100\n");
    world.assert_all_delivered();
}

#[test]
fn fractions_are_drawn_for_each_flow() {
    for (milli, ppm, low, high) in
        [(1_500, 1_000_000, 130, 170), (250, 1_000_000, 13, 40), (1_000, 500_000, 35, 65)]
    {
        let mut config = config();
        config.limits.sessions = 512;
        let mut world = World::with(config, TargetOptions::default());
        (world.copies_milli, world.percent_ppm) = (milli, ppm);
        for n in 0..100 {
            let mut client = Client::new(n);
            client.opens(&mut world);
            client.asks(&mut world, "r", 10);
        }
        world.run(SECOND);
        let sessions = world.count(Count::SessionsStarted);
        assert!((low..=high).contains(&sessions), "{milli} {ppm}: {sessions}");
        assert_eq!(world.count(Count::Wanted), sessions * 5);
        assert_eq!(world.peers.iter().filter(|peer| peer.lines == 1).count() as u64, sessions);
        world.assert_all_delivered();
    }
}

#[test]
fn kept_addresses_get_other_ports_of_the_same_shard() {
    let mut config = config();
    config.clients = Clients::Keep;
    (config.shards, config.shard) = (4, 2);
    let seed = config.seeds.shard;
    let mut world = World::with(config, TargetOptions::default());
    world.copies_milli = 3_000;
    let client =
        (0..).map(Client::new).find(|client| shard_of(endpoint_hash(seed, &client.at), 4) == 2).unwrap();
    let mut client = client;
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.run(SECOND);
    assert_eq!(world.peers.len(), 3);
    let ports: HashSet<u16> = world.peers.iter().map(|peer| peer.client.port).collect();
    assert!(ports.len() == 3 && ports.contains(&client.at.port));
    for peer in &world.peers {
        assert_eq!(peer.client.addr, client.at.addr);
        assert_eq!(shard_of(endpoint_hash(seed, &peer.client), 4), 2);
    }
    // A real client comes along on a port that a copy has: both go on.
    let taken = world.peers.iter().find(|peer| peer.client.port != client.at.port).unwrap().client;
    let mut other = Client::new(7);
    other.at = taken;
    other.opens(&mut world);
    other.asks(&mut world, "mine", 100);
    world.run(SECOND);
    assert_eq!(world.count(Count::PortShifted), 1);
    assert_eq!(world.peers.iter().filter(|peer| peer.text() == "mine 100\n").count(), 3);
    world.assert_all_delivered();
}

#[test]
fn an_exhausted_range_refuses_and_says_so() {
    let mut config = config();
    config.clients = Clients::Pool { v4: Some("198.18.0.1/32".parse().unwrap()), v6: None };
    // Of 64,512 endpoints about one in 6,000 is this shard's.
    (config.shards, config.shard) = (6_000, 17);
    config.join = session::Join::First;
    let mut world = World::with(config, TargetOptions::default());
    for n in 0..40 {
        let mut client = Client::new(n);
        client.opens(&mut world);
        client.asks(&mut world, "r", 10);
        world.run(10 * MS);
    }
    let started = world.count(Count::SessionsStarted);
    assert!((3..30).contains(&started), "{started}");
    assert_eq!(world.peers.iter().filter(|peer| peer.lines == 1).count() as u64, started);
    world.assert_delivered_but(Drop::EndpointsExhausted, (40 - started) * 5);
}
