//! Targets that refuse, reset, go dark and come back: the breaker, the pace of reconnects.

use flow::Drop;
use flow::record::flag;
use session::{Clients, Config, Count, Health, TargetConfig};

use crate::kit::*;

fn roomy() -> Config {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (2_048, 4_096);
    config
}

fn syns(world: &World, from_us: u64) -> usize {
    world.sent.iter().filter(|sent| sent.is(flag::SYN) && sent.at_us >= from_us).count()
}

/// Clients with one request each, one every 50 ms, none of which ever closes.
fn arrive(world: &mut World, clients: &mut Vec<Client>, n: u16) {
    for _ in 0..n {
        let mut client = Client::new(clients.len() as u16);
        client.opens(world);
        client.sends(world, b"r0 10\n");
        client.reads(10);
        clients.push(client);
        world.run(50 * MS - 100);
    }
}

fn health(world: &World) -> Health {
    world.table.tally().targets[0]
}

/// Twenty connections a second for forty seconds: after the first ten not two SYNs in a hundred leave.
#[test]
fn a_dark_target_is_not_stormed() {
    let mut world = World::with(roomy(), TargetOptions { dead: true, ..TargetOptions::default() });
    let start = world.now_us;
    let mut clients = Vec::new();
    arrive(&mut world, &mut clients, 800);
    let late = syns(&world, start + 10 * SECOND);
    assert!((1..12).contains(&late), "{late} for 600 connections");
    assert_eq!(health(&world), Health { sick: true, trips: 1 });
    // What waited for too long is dropped under its name, the rest is served when the target is back.
    world.options.dead = false;
    let back = world.now_us;
    world.run(15 * SECOND);
    assert_eq!(health(&world), Health { sick: false, trips: 1 });
    let first = world.sent.iter().find(|sent| sent.at_us > back && !sent.payload.is_empty()).unwrap();
    assert!(first.at_us - back < 12 * SECOND);
    world.run(SECOND);
    let served: u32 = world.peers.iter().map(|peer| peer.lines).sum();
    assert_eq!(world.dropped(Drop::TimedOut) + u64::from(served) * 6, 4_800);
    assert!(served >= 790, "{served}");
    assert_eq!(world.table.tally().in_flight, 0);
}

/// The way back is cut for three minutes: the target takes what it is sent, and nobody can know. No session dies of it, and
/// everything is delivered once the way is whole again.
#[test]
fn who_hears_nothing_because_it_is_deaf_does_not_time_out() {
    let mut config = roomy();
    config.times.dead_us = 10 * SECOND;
    let mut world = World::with(config, TargetOptions::default());
    let mut clients = Vec::new();
    arrive(&mut world, &mut clients, 50);
    world.options.dead = true;
    clients.iter_mut().for_each(|client| client.sends(&mut world, b"r1 10\n"));
    for _ in 0..180 {
        world.table.was_deaf(world.now_us + SECOND);
        world.run(SECOND);
    }
    assert_eq!(world.count(Count::FailedTimedOut), 0);
    world.options.dead = false;
    world.run(9 * SECOND);
    world.assert_delivered_but(Drop::TimedOut, 0);
    assert_eq!(world.table.tally().in_flight, 0);
}

/// The same with kept addresses, and a client that opens the same four-tuple again and again meanwhile: the second waits for
/// the first, further ones take other ports, none is given up.
#[test]
fn a_four_tuple_that_comes_back_while_deaf_supersedes_nobody() {
    let mut config = roomy();
    config.clients = Clients::Keep;
    let mut world = World::with(config, TargetOptions::default());
    let mut first = Client::new(1);
    first.opens(&mut world);
    first.asks(&mut world, "r0", 10);
    world.options.dead = true;
    first.sends(&mut world, b"r1 10\n");
    first.closes(&mut world);
    for again in 1..4 {
        let mut next = Client::starting_at(1, first.isn.0 + again * 50_000_000);
        next.opens(&mut world);
        next.sends(&mut world, b"r2 10\n");
        next.closes(&mut world);
        for _ in 0..20 {
            world.table.was_deaf(world.now_us + SECOND);
            world.run(SECOND);
        }
    }
    world.options.dead = false;
    world.run(30 * SECOND);
    assert_eq!((world.count(Count::FailedSuperseded), world.count(Count::Queued)), (0, 1));
    assert_eq!(world.count(Count::PortShifted), 2);
    world.assert_delivered_but(Drop::TimedOut, 0);
    assert_eq!(world.table.tally().in_flight, 0);
}

/// Behind the breaker nothing is kept longer than for any other dark target.
#[test]
fn who_waits_for_a_sick_target_does_not_wait_for_ever() {
    let mut config = roomy();
    config.times.dead_us = 10 * SECOND;
    let mut world = World::with(config, TargetOptions { dead: true, ..TargetOptions::default() });
    let mut clients = Vec::new();
    arrive(&mut world, &mut clients, 100);
    // Single attempts at it have their own ten seconds.
    world.run(60 * SECOND);
    world.assert_delivered_but(Drop::TimedOut, 600);
    clients.iter_mut().for_each(|client| client.resets(&mut world));
    assert_eq!((world.table.tally().open, world.count(Count::FailedTimedOut)), (0, 100));
}

#[test]
fn a_refusing_target_gets_single_attempts_and_recovers() {
    let mut world = World::with(roomy(), TargetOptions { refuse: true, ..TargetOptions::default() });
    let start = world.now_us;
    let mut clients = Vec::new();
    arrive(&mut world, &mut clients, 400);
    assert!(health(&world).sick);
    let early = syns(&world, start) - syns(&world, start + 10 * SECOND);
    assert!(early < 30 && syns(&world, start + 10 * SECOND) <= 6, "{early}");
    world.options.refuse = false;
    arrive(&mut world, &mut clients, 300);
    assert_eq!(health(&world), Health { sick: false, trips: 1 });
    world.run(5 * SECOND);
    // Only what was refused is lost: the first sixteen, and the single attempts.
    let refused = world.dropped(Drop::Refused) / 6;
    assert!(refused < 30, "{refused}");
    world.assert_delivered_but(Drop::Refused, refused * 6);
    assert!(world.count(Count::ConnectsPaused) > 300);
}

/// A proxy whose backend is gone accepts and resets: that is no success.
#[test]
fn a_target_that_resets_what_it_accepts_is_sick() {
    let mut world = World::new();
    let mut clients = Vec::new();
    for step in 0..15_000 {
        if step % 200 == 0 && clients.len() < 60 {
            let mut client = Client::new(clients.len() as u16);
            client.syn(&mut world);
            client.acks(&mut world);
            client.sends(&mut world, b"r0 10\n");
            clients.push(client);
        }
        world.run(100);
        // It goes away before the request reaches it.
        world.peers.iter_mut().for_each(|peer| peer.reset = true);
    }
    assert!(health(&world).sick);
    assert!(world.peers.len() < 40, "{} connections for 60 clients with 8 tries each", world.peers.len());
    assert!(world.peers.iter().all(|peer| peer.read.is_empty()));
}

/// Others do not notice.
#[test]
fn a_sick_target_does_not_hold_up_another() {
    let mut config = roomy();
    // The second one is nowhere.
    config.targets.push(TargetConfig { endpoint: endpoint("10.0.3.3:80"), mtu: 1500 });
    config.mappings = vec![0, 1];
    let mut world = World::with(config, TargetOptions::default());
    for n in 0..300 {
        let mut client = Client::new(n);
        let syn = client.segment(flag::SYN);
        let mapped = flow::Captured { mapping: n % 2, ..syn };
        world.capture(&mapped, &[]);
        client.seq += 1;
        client.ack = flow::Seq(90_000);
        let segment = flow::Captured { mapping: n % 2, ..client.segment(flag::ACK | flag::PSH) };
        world.capture(&segment, b"r0 10\n");
        world.run(40 * MS);
    }
    let targets = &world.table.tally().targets;
    assert!(!targets[0].sick && targets[1].sick);
    assert_eq!(world.peers.iter().filter(|peer| peer.client.port > 0 && peer.lines == 1).count(), 150);
}

/// The target restarts: every connection is reset at once. The reconnects are spread by the bucket, and all are served.
#[test]
fn a_restart_does_not_draw_all_reconnects_at_once() {
    let mut config = roomy();
    (config.pace.reconnects_per_s, config.pace.reconnect_burst) = (50, 10);
    let mut world = World::with(config, TargetOptions::default());
    let mut clients: Vec<Client> = (0..200).map(Client::new).collect();
    for client in &mut clients {
        client.opens(&mut world);
        client.asks(&mut world, "before", 10);
    }
    world.run(SECOND);
    world.peers.iter_mut().for_each(|peer| peer.reset = true);
    let restart = world.now_us;
    for client in &mut clients {
        client.sends(&mut world, b"after 10\n");
    }
    world.run(10 * SECOND);
    let mut times: Vec<u64> = world
        .sent
        .iter()
        .filter(|sent| sent.is(flag::SYN) && sent.at_us >= restart)
        .map(|sent| sent.at_us - restart)
        .collect();
    times.sort_unstable();
    assert_eq!(times.len(), 200);
    for second in 0..10 {
        let window = second * SECOND..(second + 1) * SECOND;
        let within = times.iter().filter(|at| window.contains(at)).count();
        assert!(within <= 60, "{within} in second {second}");
    }
    assert_eq!(world.peers.iter().filter(|peer| peer.text() == "after 10\n").count(), 200);
    assert!(!health(&world).sick);
    world.assert_all_delivered();
}
