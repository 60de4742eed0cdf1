//! FIN, half-close, RST, and the target closing while requests remain.

use flow::record::flag;
use flow::{Drop, Seq};
use session::{Clients, Count};

use crate::kit::*;

fn closing_after(close_after: u32) -> TargetOptions {
    TargetOptions { app: App::Lines { writes: 1, delay_us: 100, close_after }, ..TargetOptions::default() }
}

#[test]
fn one_request_and_the_client_closes() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "GET", 2000);
    client.closes(&mut world);
    world.run(5 * MS);
    client.leaves(&mut world);
    assert!(world.peer().is_closed());
    assert_eq!(world.peer().text(), "GET 2000\n");
    world.run(SECOND);
    assert_eq!(world.count(Count::SessionsCompleted), 1);
    assert_eq!(world.table.tally().open, 0);
    assert_eq!(world.count(Count::Resets), 0);
    world.assert_all_delivered();
}

#[test]
fn a_fin_waits_for_the_answer_that_the_client_had_read() {
    let mut world = World::with(
        config(),
        TargetOptions {
            app: App::Lines { writes: 1, delay_us: 50 * MS, close_after: 0 },
            ..TargetOptions::default()
        },
    );
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "GET", 2000);
    client.closes(&mut world);
    world.run(20 * MS);
    assert!(!world.sent.iter().any(|sent| sent.is(flag::FIN)));
    world.run(SECOND);
    assert!(world.peer().is_closed());
    assert_eq!(world.count(Count::TurnsAnswered), 1);
}

/// Data and FIN with the same acknowledgement number; the server answers only after the FIN.
#[test]
fn half_close_is_respected() {
    let mut world =
        World::with(config(), TargetOptions { app: App::AfterFin(5000), ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, &[b'x'; 1000]);
    client.closes(&mut world);
    world.run(100 * MS);
    let peer = world.peer();
    assert!(peer.is_closed() && peer.snd_una.since(peer.iss) == 5002, "{peer:?}");
    world.run(SECOND);
    assert_eq!(world.count(Count::SessionsCompleted), 1);
    world.assert_all_delivered();
}

#[test]
fn a_repeated_fin_of_the_target_is_acknowledged_while_we_linger() {
    let mut world = World::new();
    let mut lose = true;
    world.to_target = Box::new(move |_, head| {
        // Our acknowledgement of its FIN.
        let last = head.tcp.ack == Seq(700_001 + 100 + 1) && !head.tcp.has(flag::FIN);
        if last && std::mem::take(&mut lose) { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "GET", 100);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peer().is_closed());
}

#[test]
fn a_reset_of_the_client_follows_what_it_had_sent() {
    let mut world = World::new();
    let mut lose = 1;
    world.to_target = Box::new(move |_, head| {
        lose -= i32::from(head.payload_len > 0);
        if head.payload_len > 0 && lose == 0 { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"half a requ");
    client.resets(&mut world);
    world.run(10 * MS);
    assert_eq!(world.count(Count::Resets), 0, "not acknowledged yet");
    world.run(2 * SECOND);
    assert!(world.peer().reset && world.peer().text() == "half a requ");
    assert_eq!(world.count(Count::SessionsClientReset), 1);
    assert_eq!(world.table.tally().open, 0);
    world.assert_all_delivered();
}

#[test]
fn the_target_closes_after_each_answer_and_the_rest_goes_elsewhere() {
    let mut world = World::with(config(), closing_after(1));
    let mut client = Client::new(1);
    client.opens(&mut world);
    for i in 0..5 {
        client.asks(&mut world, &format!("r{i}"), 100);
    }
    world.run(2 * SECOND);
    let texts: Vec<String> = world.peers.iter().map(Peer::text).collect();
    assert_eq!(texts, ["r0 100\n", "r1 100\n", "r2 100\n", "r3 100\n", "r4 100\n"]);
    assert_eq!(world.count(Count::Reconnects), 4);
    let mut clients: Vec<_> = world.peers.iter().map(|peer| peer.client).collect();
    clients.dedup();
    assert_eq!(clients.len(), 5, "each from another endpoint");
    client.closes(&mut world);
    world.run(SECOND);
    assert_eq!(world.count(Count::SessionsCompleted), 1);
    world.assert_all_delivered();
}

#[test]
fn an_idle_connection_that_the_target_closes_is_replaced_at_the_next_turn() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.target_closes();
    world.run(10 * SECOND);
    assert_eq!(world.peers.len(), 1);
    client.asks(&mut world, "r1", 100);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peers[0].reset, "what we had of the old one is cleared away");
    assert_eq!(world.peers[1].text(), "r1 100\n");
    assert!(world.peers[1].is_closed());
    assert_eq!(world.count(Count::SessionsCompleted), 1);
    world.assert_all_delivered();
}

/// nginx reads and discards for a while after its close (lingering_close): its kernel acknowledges what nobody will
/// answer. What its FIN had not acknowledged goes elsewhere at once.
#[test]
fn a_turn_that_crosses_the_targets_fin_is_sent_once_more() {
    let mut world = World::new();
    world.options.discards_after_close = true;
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.target_closes();
    client.sends(&mut world, b"r1 100\n");
    world.run(100 * MS);
    assert_eq!(world.peers[1].text(), "r1 100\n");
    assert_eq!(world.count(Count::TurnsResent), 1);
    world.assert_all_delivered();
}

#[test]
fn a_turn_that_crosses_the_targets_reset_is_sent_once_more() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    // Its keep-alive time is over just now.
    world.peers[0].reset = true;
    client.sends(&mut world, b"r1 100\n");
    world.run(100 * MS);
    assert_eq!(world.peers[1].text(), "r1 100\n");
    assert_eq!(world.count(Count::TurnsResent), 1);
    assert_eq!((world.count(Count::TurnsSent), world.count(Count::TurnsAnswered)), (2, 2));
    world.assert_all_delivered();
}

#[test]
fn a_turn_is_not_sent_a_third_time() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    for _ in 0..2 {
        let last = world.peers.len() - 1;
        world.peers[last].reset = true;
        if world.peers.len() == 1 {
            // The second connection dies as soon as the turn reaches it.
            world.to_us = Box::new(|_, _| Fate::Pass);
            client.sends(&mut world, b"r1 100\n");
        }
        world.run(150);
        while world.peers.len() == 1 {
            world.run(10);
        }
    }
    world.run(SECOND);
    client.reads(100);
    client.asks(&mut world, "r2", 100);
    world.run(SECOND);
    assert_eq!(world.dropped(Drop::TargetClosed), 7);
    assert_eq!(world.peer().text(), "r2 100\n");
    world.assert_delivered_but(Drop::TargetClosed, 7);
}

#[test]
fn what_is_left_of_a_turn_that_was_begun_is_target_closed() {
    let mut world =
        World::with(config(), TargetOptions { buffer: 2_000, stalled: true, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, &[b'x'; 5_000]);
    world.run(10 * MS);
    world.target_resets();
    world.run(10 * MS);
    assert_eq!(world.count(Count::Delivered), 1448);
    client.sends(&mut world, b"still the same turn");
    world.options.stalled = false;
    world.options.buffer = 1 << 20;
    client.reads(10);
    client.asks(&mut world, "next", 10);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "next 10\n");
    world.assert_delivered_but(Drop::TargetClosed, 5_000 - 1448 + 19);
}

#[test]
fn a_target_that_closes_early_and_a_client_that_closes_later() {
    let mut world = World::with(config(), closing_after(1));
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "only", 100);
    world.run(100 * MS);
    assert!(world.peer().fin_sent);
    client.ack += 1;
    client.closes(&mut world);
    world.run(100 * MS);
    assert!(world.peer().is_closed());
    assert_eq!(world.count(Count::Resets), 0);
    world.run(SECOND);
    assert_eq!(world.count(Count::SessionsCompleted), 1);
}

#[test]
fn a_lost_reset_is_found_by_a_probe() {
    let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"who answers\n");
    world.run(100 * MS);
    // Crashed and back; its reset never arrived.
    world.peers[0].reset = true;
    world.run(3 * SECOND);
    assert_eq!(world.count(Count::Probes), 1);
    client.reads(10);
    client.asks(&mut world, "next", 10);
    world.run(SECOND);
    assert_eq!(world.peers.len(), 2);
    world.assert_all_delivered();
}

/// FIN-WAIT-2: the target's FIN was lost, and so was the target. Long before the idle time a probe finds it.
#[test]
fn a_lost_fin_of_a_target_that_is_gone_is_found_by_a_probe() {
    let mut world = World::new();
    world.to_us = Box::new(|_, record| if record.tcp.has(flag::FIN) { Fate::Lose } else { Fate::Pass });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.closes(&mut world);
    world.run(100 * MS);
    world.peers[0].reset = true;
    world.run(2 * SECOND);
    assert_eq!((world.table.tally().open, world.count(Count::Probes)), (0, 1));
    world.assert_all_delivered();
}

#[test]
fn a_reset_beyond_what_we_saw_draws_an_acknowledgement_and_then_the_exact_one() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    let peer = world.peers[0].clone();
    let mut wrong = flow::Returned { client: peer.client, target: endpoint(TARGET), ..Default::default() };
    wrong.tcp.flags = flag::RST;
    wrong.tcp.seq = peer.snd_nxt + 500;
    let mark = world.sent.len();
    world.give_back(wrong);
    world.run(MS);
    assert_eq!(world.sent.len(), mark + 1);
    assert!(world.sent[mark].is(flag::ACK) && world.sent[mark].payload.is_empty());
    wrong.tcp.seq = peer.snd_nxt - 40;
    world.give_back(wrong);
    world.run(MS);
    client.asks(&mut world, "r1", 100);
    assert_eq!(world.peers.len(), 1, "neither was believed");
    wrong.tcp.seq = world.peers[0].snd_nxt;
    world.give_back(wrong);
    world.run(MS);
    client.asks(&mut world, "r2", 100);
    assert_eq!(world.peers.len(), 2);
}

#[test]
fn a_four_tuple_that_comes_back_gets_a_session_of_its_own() {
    let slow = TargetOptions {
        app: App::Lines { writes: 1, delay_us: 30 * MS, close_after: 0 },
        ..TargetOptions::default()
    };
    for keep in [false, true] {
        let mut config = config();
        if keep {
            config.clients = Clients::Keep;
        }
        let mut world = World::with(config, slow.clone());
        let mut old = Client::new(1);
        old.opens(&mut world);
        old.asks(&mut world, "old one", 100);
        old.asks(&mut world, "old two", 100);
        let mut new = Client::starting_at(1, old.isn.0 + 77_000_000);
        new.opens(&mut world);
        new.asks(&mut world, "new", 100);
        world.run(5 * SECOND);
        assert_eq!(world.peers[0].text(), "old one 100\nold two 100\n", "keep {keep}");
        assert_eq!(world.peers[1].text(), "new 100\n");
        assert_eq!(world.peers[0].client == world.peers[1].client, keep);
        assert_eq!(world.count(Count::Queued), u64::from(keep));
        assert!(world.peers[0].is_closed());
        world.assert_all_delivered();
    }
}

#[test]
fn a_queue_for_a_four_tuple_has_an_end() {
    let mut config = config();
    config.clients = Clients::Keep;
    let mut world = World::with(
        config,
        TargetOptions { app: App::Silent, stalled: true, buffer: 1000, ..TargetOptions::default() },
    );
    let mut old = Client::new(1);
    old.opens(&mut world);
    old.sends(&mut world, &[1; 3000]);
    world.run(100 * MS);
    let mut new = Client::starting_at(1, 99_000_000);
    new.opens(&mut world);
    new.sends(&mut world, b"new");
    world.run(20 * SECOND);
    assert_eq!(world.count(Count::FailedSuperseded), 1);
    assert!(world.dropped(Drop::Superseded) >= 2000);
    assert_eq!(world.peers.len(), 2);
}

#[test]
fn a_repeated_syn_is_not_a_new_connection() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.syn(&mut world);
    world.run(MS);
    let mut again = client.segment(flag::SYN);
    again.tcp.seq = client.isn;
    world.capture(&again, &[]);
    client.acks(&mut world);
    client.asks(&mut world, "x", 10);
    world.run(MS);
    assert_eq!(world.peers.len(), 1);
    assert_eq!(world.count(Count::Flows), 1);
}

/// Reconnects on the kept tuple within the millisecond, with and without time stamps, also after an upload that left the
/// clock of the initial sequence numbers far behind.
#[test]
fn numbers_on_a_kept_tuple_always_rise() {
    for timestamps in [true, false] {
        let mut config = config();
        config.clients = Clients::Keep;
        let mut world = World::with(config, TargetOptions { timestamps, ..closing_after(1) });
        let mut client = Client::new(1);
        client.opens(&mut world);
        for i in 0..4 {
            // At 250 numbers a millisecond the clock needs seconds for this.
            client.sends(&mut world, &[b'x'; 100_000]);
            client.asks(&mut world, &format!("r{i}"), 100);
        }
        world.run(5 * SECOND);
        // The same client comes back on the same port.
        client.closes(&mut world);
        world.run(SECOND);
        let mut again = Client::starting_at(1, client.isn.0 + 3_000_000);
        again.opens(&mut world);
        again.asks(&mut world, "again", 100);
        world.run(SECOND);
        assert_eq!(world.peers.len(), 5, "time stamps {timestamps}");
        assert_eq!(world.peer().text(), "again 100\n");
        for two in world.peers.windows(2) {
            assert_eq!(two[0].client, two[1].client);
            assert!(two[1].irs.after(two[0].rcv_nxt));
        }
        let stamps: Vec<u32> =
            world.sent.iter().filter(|sent| sent.is(flag::SYN)).map(|sent| sent.head.tcp.ts_val).collect();
        assert!(stamps.windows(2).all(|two| two[1].wrapping_sub(two[0]) < 1 << 31));
        assert_eq!(world.stale_syns, 0);
        world.assert_all_delivered();
    }
}

#[test]
fn stopping_resets_what_is_open_and_names_what_was_held() {
    let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let (mut one, mut two) = (Client::new(1), Client::new(2));
    one.opens(&mut world);
    two.opens(&mut world);
    one.sends(&mut world, b"asked\n");
    one.reads(50);
    one.sends(&mut world, b"waits for an answer\n");
    world.table.drain(world.now_us);
    world.run(100 * MS);
    let mut three = Client::new(3);
    three.syn(&mut world);
    assert_eq!(world.count(Count::Flows), 2, "no new ones");
    assert!(!world.table.is_quiet());
    world.table.abandon(world.now_us);
    world.pump();
    world.run(MS);
    assert!(world.peers.iter().all(|peer| peer.reset));
    assert_eq!(world.table.tally().open, 0);
    assert!(world.table.is_quiet());
    world.assert_delivered_but(Drop::Stopped, 20);
    assert_eq!((world.count(Count::FailedStopped), world.count(Count::SessionsCompleted)), (1, 1));
}
