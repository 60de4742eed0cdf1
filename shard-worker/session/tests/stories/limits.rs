//! What happens at the bounds.

use flow::Drop;
use flow::record::flag;
use session::{Count, Join, Rtt};

use crate::kit::*;

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    let mut config = config();
    config.limits.sessions = 3;
    config.join = Join::First;
    let mut world = World::with(config, TargetOptions::default());
    let mut clients: Vec<Client> = (0..5).map(Client::new).collect();
    for client in &mut clients {
        client.opens(&mut world);
    }
    for client in &mut clients {
        client.asks(&mut world, "r", 10);
    }
    world.run(SECOND);
    assert_eq!(world.peers.iter().filter(|peer| peer.lines == 1).count(), 3);
    world.assert_delivered_but(Drop::TableFull, 10);
    // A place that is free again is used.
    clients[0].closes(&mut world);
    world.run(2 * SECOND);
    let mut late = Client::new(9);
    late.opens(&mut world);
    late.asks(&mut world, "late", 10);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "late 10\n");
}

/// A connection per request, faster than the ones that are over would leave by themselves.
#[test]
fn sessions_that_linger_make_room_in_a_full_table() {
    let mut config = config();
    config.limits.sessions = 3;
    let mut world = World::with(config, TargetOptions::default());
    for n in 0..12 {
        let mut client = Client::new(n);
        client.opens(&mut world);
        client.asks(&mut world, "r", 10);
        client.closes(&mut world);
        world.run(5 * MS);
        assert!(world.peer().is_closed() && world.peer().lines == 1, "the {n}th");
    }
    assert_eq!(world.count(Count::LingeredLess), 9, "the last three are there");
    assert_eq!(world.count(Count::RefusedTableFull), 0);
}

/// A flood of SYNs that nobody means: who means it is served, and so are those who were there before.
#[test]
fn half_open_sessions_make_room_in_a_full_table() {
    let mut config = config();
    config.limits.sessions = 40;
    config.rtt = Rtt::Measured;
    let mut world = World::with(config, TargetOptions::default());
    let mut old = Client::new(1);
    old.opens(&mut world);
    old.asks(&mut world, "r", 10);
    world.run(20 * MS);
    for round in 0..20 {
        for n in 0..50 {
            Client::new(100 + round * 50 + n).syn(&mut world);
            world.run(MS);
        }
        let mut new = Client::new(10 + round);
        new.opens(&mut world);
        new.asks(&mut world, "r", 10);
        old.asks(&mut world, "r", 10);
        world.run(20 * MS);
        new.closes(&mut world);
        world.run(5 * MS);
    }
    assert_eq!(world.peers.iter().map(|peer| peer.lines).sum::<u32>(), 41);
    assert_eq!(world.count(Count::RefusedTableFull), 0);
    assert!(world.count(Count::FailedHalfOpen) >= 900, "{}", world.count(Count::FailedHalfOpen));
    assert!(
        world.peers.iter().all(|peer| !peer.reset),
        "what the online server was not told, the target is not"
    );
    // By themselves they leave when the client can no longer be trying.
    world.run(80 * SECOND);
    assert_eq!(world.table.tally().open, 1);
}

/// The same where the target takes them for connections: it is told that they are none.
#[test]
fn half_open_sessions_that_the_target_has_accepted_are_reset() {
    let mut config = config();
    config.limits.sessions = 40;
    config.rtt = Rtt::None;
    let mut world = World::with(config, TargetOptions::default());
    for n in 0..100 {
        Client::new(n).syn(&mut world);
        world.run(MS);
    }
    let resets = world.peers.iter().filter(|peer| peer.reset).count() as u64;
    assert_eq!((resets, world.count(Count::RefusedTableFull)), (world.count(Count::FailedHalfOpen), 0));
    assert!(resets > 60, "{resets}");
    let mut next = Client::new(200);
    next.opens(&mut world);
    next.asks(&mut world, "r", 10);
    world.run(20 * MS);
    assert!(world.peer().lines == 1);
}

/// The reader of a file asks before each segment.
#[test]
fn a_file_waits_for_as_many_slots_as_a_flow_has_copies() {
    let mut config = config();
    config.limits.sessions = 3;
    let options = TargetOptions { app: App::Silent, ..TargetOptions::default() };
    let mut world = World::with(config, options);
    world.copies_milli = 2_000;
    let mut first = Client::new(1);
    first.opens(&mut world);
    let next = Client::new(2).segment(flag::SYN);
    let waits = |world: &mut World, copies: u32| world.table.should_wait(&next, 0, 1_000_000, copies * 1_000);
    assert!(!waits(&mut world, 2), "nobody is about to leave, so waiting would be for ever");
    first.asks(&mut world, "r", 10);
    first.closes(&mut world);
    world.run(5 * MS);
    assert!(waits(&mut world, 2) && waits(&mut world, 3));
    assert!(!waits(&mut world, 1) && !waits(&mut world, 0));
}

#[test]
fn a_session_holds_no_more_than_its_limit() {
    let mut config = config();
    config.limits.held_per_session = 10_000;
    let options =
        TargetOptions { app: App::Silent, stalled: true, buffer: 1_000, ..TargetOptions::default() };
    let mut world = World::with(config, options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    for _ in 0..10 {
        client.sends(&mut world, &[1; 2_000]);
    }
    world.run(SECOND);
    assert_eq!(world.table.tally().in_flight, 0);
    assert!(world.dropped(Drop::Memory) >= 18_000);
    assert!(world.peer().reset, "the target is told");
    world.options = TargetOptions::default();
    client.reads(10);
    client.asks(&mut world, "again", 10);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "again 10\n", "the next turn has a new connection");
}

#[test]
fn all_sessions_together_hold_no_more_than_there_are_chunks() {
    let mut config = config();
    config.limits.chunks = 20;
    let mut world = World::with(config, TargetOptions { dead: true, ..TargetOptions::default() });
    let mut clients: Vec<Client> = (0..5).map(Client::new).collect();
    for client in &mut clients {
        client.opens(&mut world);
        client.sends(&mut world, &[1; 6_000]);
    }
    let tally = world.table.tally();
    assert!(tally.in_flight > 0 && tally.in_flight <= 20 * 1016);
    assert!(world.dropped(Drop::Memory) >= 12_000);
    world.table.abandon(world.now_us);
    world.pump();
    assert_eq!(world.table.tally().in_flight, 0);
}

/// The oldest backlog goes first: new sessions of a target in trouble are held at the expense of old ones, not refused.
#[test]
fn the_oldest_backlog_is_closed_first() {
    let mut config = config();
    config.limits.chunks = 40;
    let mut world = World::with(config, TargetOptions { dead: true, ..TargetOptions::default() });
    let mut clients: Vec<Client> = (0..10).map(Client::new).collect();
    for client in &mut clients {
        client.opens(&mut world);
        client.sends(&mut world, &[b'x'; 8_000]);
        world.run(10 * MS);
    }
    assert!(world.table.tally().in_flight >= 3 * 8_000);
    assert_eq!(world.count(Count::FailedMemory), 0, "parted, not over");
    let dropped = world.dropped(Drop::Memory);
    assert_eq!((dropped + world.table.tally().in_flight, dropped % 8_000), (80_000, 0));
    world.options.dead = false;
    world.run(5 * SECOND);
    let served: Vec<_> = world.peers.iter().filter(|peer| peer.read.len() == 8_000).collect();
    assert_eq!(served.len() as u64, (80_000 - dropped) / 8_000);
    // What was held longest went; the last clients' bytes arrived.
    client_is_served(&mut world, &mut clients[9]);
    client_is_served(&mut world, &mut clients[0]);
    world.assert_delivered_but(Drop::Memory, dropped);
}

fn client_is_served(world: &mut World, client: &mut Client) {
    let before: u32 = world.peers.iter().map(|peer| peer.lines).sum();
    client.reads(10);
    client.asks(world, "next", 10);
    // The request before it draws no answer: row 7.
    world.run(100 * SECOND);
    assert_eq!(world.peers.iter().map(|peer| peer.lines).sum::<u32>(), before + 1);
}

#[test]
fn a_stash_that_grows_too_long_gives_its_hole_up_early() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends_unseen(b"missing");
    for i in 0..70 {
        // Each is apart from the others.
        client.reads(1);
        client.sends(&mut world, format!("{i} 0\n").as_bytes());
        client.sends_unseen(b"?");
        world.run(100);
    }
    assert!(world.count(Count::Holes) >= 1, "after 7 ms already");
    world.run(10 * SECOND);
    assert_eq!(world.table.tally().in_flight, 0);
}

#[test]
fn an_idle_session_is_closed_in_the_end() {
    let mut config = config();
    config.times.idle_us = 5 * SECOND;
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r", 10);
    world.run(4 * SECOND);
    client.asks(&mut world, "r", 10);
    world.run(4 * SECOND);
    assert_eq!(world.table.tally().open, 1);
    world.run(3 * SECOND);
    assert_eq!((world.table.tally().open, world.count(Count::FailedIdle)), (0, 1));
    assert!(world.peer().reset);
}

#[test]
fn a_detached_session_does_not_wait_for_ever_for_the_targets_fin() {
    let mut world =
        World::with(config(), TargetOptions { close_with_client: false, ..TargetOptions::default() });
    let mut old = Client::new(1);
    old.opens(&mut world);
    old.asks(&mut world, "r", 10);
    let mut new = Client::starting_at(1, 400_000_000);
    new.opens(&mut world);
    world.run(15 * SECOND);
    assert!(world.peers[0].reset && world.peers[0].client_fin);
    assert_eq!(world.table.tally().open, 1);
}

#[test]
fn a_scan_of_resets_and_fins_leaves_nothing() {
    let mut world = World::new();
    for n in 0..100 {
        let client = Client::new(n);
        for flags in [flag::RST, flag::FIN | flag::ACK, flag::SYN | flag::ACK, 0, flag::URG] {
            world.capture(&client.segment(flags), &[]);
        }
    }
    assert_eq!(world.table.tally().open, 0);
    let mut client = Client::new(1);
    client.syn(&mut world);
    client.resets(&mut world);
    world.run(SECOND);
    assert_eq!(world.table.tally().open, 0);
    assert!(world.peer().reset);
}
