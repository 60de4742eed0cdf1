//! A table made anew on the arena of one that is gone.

use flow::record::flag;
use flow::{Captured, Drop};
use session::{Config, Count, Table};

use crate::kit::*;

fn dead_target() -> TargetOptions {
    TargetOptions { dead: true, ..TargetOptions::default() }
}

/// The next worker: a table on the same bytes, which knows them all.
fn successor(config: &Config, image: &[u8]) -> Table {
    let memory = arena(&config.limits);
    memory[..image.len()].copy_from_slice(image);
    Table::new(memory, config.clone())
}

/// The same, which has yet to look at them.
fn heir(config: &Config, image: &[u8]) -> Table {
    let memory = arena(&config.limits);
    memory[..image.len()].copy_from_slice(image);
    Table::successor(memory, config.clone(), false, |_| false)
}

/// Twelve sessions of six flows with something held and stashed each, and the clients they are of.
fn populated(config: &Config) -> (World, Vec<Client>) {
    let mut world = World::with(config.clone(), dead_target());
    world.copies_milli = 2_000;
    let mut clients: Vec<Client> = (0..6).map(Client::new).collect();
    for client in &mut clients {
        client.opens(&mut world);
        client.sends(&mut world, &[b'x'; 3_000]);
        client.sends_unseen(b"a hole");
        client.sends(&mut world, b"stashed");
    }
    (world, clients)
}

#[test]
fn a_flow_goes_on_before_its_successor_has_looked_at_it() {
    let (before, clients) = populated(&config());
    for mut client in clients {
        let mut after = World::on(heir(&config(), &before.table.image()), TargetOptions::default());
        (after.now_us, after.copies_milli) = (before.now_us, 2_000);
        let known = after.table.tally().in_flight;
        client.sends(&mut after, b"more");
        assert_eq!(after.table.tally().in_flight, known + 8, "both copies were found");
        assert_eq!(after.count(Count::SessionsStarted), 0);
        assert!(after.table.is_walking());
        // Somebody else begins meanwhile.
        Client::new(77).opens(&mut after);
        while after.table.walk(1) {}
        after.table.check().unwrap();
        assert_eq!(after.table.tally().open, 14);
        assert_eq!(after.count(Count::SlotsUnusable) + after.table.tally().unexplained, 0);
    }
}

/// Wherever a walk is killed, and however little of it each successor gets to, what comes of it is what one walk makes.
#[test]
fn a_walk_can_be_killed_anywhere() {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (20, 100);
    let (before, _) = populated(&config);
    let image = before.table.image();
    let whole = successor(&config, &image);
    let steps = {
        let mut table = heir(&config, &image);
        1 + (0..).take_while(|_| table.walk(1)).count()
    };
    assert!(steps > 12, "slots, then chunks");
    for killed_after in 0..=steps {
        let mut image = image.clone();
        for _ in 0..3 {
            let mut table = heir(&config, &image);
            (0..killed_after).for_each(|_| _ = table.walk(1));
            image = table.image();
        }
        let mut table = heir(&config, &image);
        while table.walk(1) {}
        table.check().unwrap();
        assert_eq!(table.digest(), whole.digest(), "killed after {killed_after}");
        let (tally, expected) = (table.tally(), whole.tally());
        assert_eq!((tally.open, tally.in_flight), (expected.open, expected.in_flight));
        assert_eq!(tally.count(Count::SlotsUnusable) + tally.unexplained, 0);
    }
}

/// Each word of both indices, damaged in two ways; then all of them.
#[test]
fn a_damaged_index_is_put_right_by_the_walk() {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (16, 100);
    let (before, clients) = populated(&config);
    let image = before.table.image();
    let end = Table::arena_bytes(16, 0) as usize - 16 * Table::SLOT_BYTES;
    let indices = end - 2 * 24 * 8..end;
    let mut damaged: Vec<Vec<u8>> = Vec::new();
    for at in indices.clone().step_by(8) {
        for mask in [0x0000_0040_0000_0000u64, 0xffff_ffff_ffff_ffff, 7] {
            let mut bytes = image.clone();
            bytes[at..at + 8].iter_mut().zip(mask.to_ne_bytes()).for_each(|(byte, mask)| *byte ^= mask);
            damaged.push(bytes);
        }
    }
    for filling in [0, 0xff, 0x11] {
        let mut bytes = image.clone();
        bytes[indices.clone()].fill(filling);
        damaged.push(bytes);
    }
    for (number, bytes) in damaged.iter().enumerate() {
        let mut after = World::on(heir(&config, bytes), TargetOptions::default());
        (after.now_us, after.copies_milli) = (before.now_us, 2_000);
        while after.table.walk(1) {}
        assert_eq!(after.table.tally().open, 12, "damage {number}");
        let known = after.table.tally().in_flight;
        for client in &clients {
            let segment = Captured { payload_len: 4, ..client.segment(flag::ACK | flag::PSH) };
            after.table.captured(after.now_us, &segment, b"more", 1_000_000, 2_000);
        }
        assert_eq!(after.count(Count::SessionsStarted), 0, "damage {number}");
        assert_eq!(
            after.table.tally().in_flight,
            known + 6 * 2 * 4,
            "damage {number}: all copies were found"
        );
    }
}

/// What the index did not lead to when its packets came has a second session. It stays, and the first is lost.
#[test]
fn of_two_sessions_of_one_flow_the_one_that_was_served_stays() {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (16, 100);
    config.join = session::Join::First;
    let (before, mut clients) = populated(&config);
    let mut image = before.table.image();
    let end = Table::arena_bytes(16, 0) as usize - 16 * Table::SLOT_BYTES;
    image[end - 2 * 24 * 8..end].fill(0);
    let mut after = World::on(heir(&config, &image), TargetOptions::default());
    (after.now_us, after.copies_milli) = (before.now_us, 2_000);
    clients[0].sends(&mut after, b"more");
    assert_eq!(after.count(Count::SessionsStarted), 2);
    while after.table.walk(1) {}
    after.table.check().unwrap();
    let tally = after.table.tally();
    assert_eq!(
        (tally.open, tally.count(Count::FailedWorkerLost)),
        (13, 1),
        "the first copy; others have no flow"
    );
    assert!(tally.dropped(Drop::WorkerLost).payload_bytes > 3_000);
    assert_eq!(tally.unexplained, 0);
}

#[test]
fn sessions_go_on_after_a_restart() {
    let mut before = World::with(config(), dead_target());
    let mut clients: Vec<Client> = (0..5).map(Client::new).collect();
    before.copies_milli = 2_000;
    for client in &mut clients {
        client.opens(&mut before);
        client.sends(&mut before, b"held 100\n");
        client.reads(100);
        client.sends(&mut before, &[b'x'; 3_000]);
    }
    clients[0].sends_unseen(b"a hole");
    clients[0].sends(&mut before, b"stashed");
    let held = before.table.tally().in_flight;
    assert_eq!(held, 2 * (5 * 3_009 + 7));
    let mut after = World::on(successor(&config(), &before.table.image()), TargetOptions::default());
    after.now_us = before.now_us;
    after.copies_milli = 2_000;
    let tally = after.table.tally();
    assert_eq!((tally.open, tally.in_flight, tally.inherited), (10, held, held));
    after.table.check().unwrap();
    after.run(10 * SECOND);
    for client in &mut clients[1..] {
        client.asks(&mut after, "after", 100);
    }
    after.run(20 * SECOND);
    assert_eq!(after.peers.len(), 10);
    let whole = after.peers.iter().filter(|peer| peer.text().ends_with("xafter 100\n")).count();
    assert_eq!(whole, 8, "the same sessions, the same streams");
    assert_eq!(after.count(Count::SessionsStarted), 0);
    assert_eq!(after.table.tally().in_flight, 0);
}

#[test]
fn a_successor_knows_who_lingers() {
    let mut config = config();
    config.limits.sessions = 1;
    let mut before = World::with(config.clone(), TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut before);
    client.asks(&mut before, "r", 10);
    client.closes(&mut before);
    before.run(5 * MS);
    assert_eq!(before.table.tally().open, 1);
    let mut after = World::on(successor(&config, &before.table.image()), TargetOptions::default());
    after.now_us = before.now_us;
    let mut late = Client::new(2);
    late.opens(&mut after);
    late.asks(&mut after, "late", 10);
    after.run(5 * MS);
    assert_eq!(after.peer().text(), "late 10\n");
    assert_eq!(after.count(Count::LingeredLess), 1);
}

#[test]
fn established_sessions_keep_their_numbers() {
    let mut before = World::new();
    let mut client = Client::new(1);
    client.opens(&mut before);
    client.asks(&mut before, "one", 100);
    before.run(MS);
    let mut after = World::on(successor(&config(), &before.table.image()), TargetOptions::default());
    (after.now_us, after.peers) = (before.now_us, before.peers.clone());
    client.asks(&mut after, "two", 100);
    client.closes(&mut after);
    after.run(SECOND);
    assert_eq!(after.peers.len(), 1);
    assert_eq!(after.peer().text(), "one 100\ntwo 100\n");
    assert!(after.peer().is_closed());
    assert_eq!(after.count(Count::TurnsGuessed) + after.count(Count::TurnsUnanswered), 0);
}

/// A target's TIME_WAIT takes a SYN without a newer time stamp only above the last number (RFC 9293, section 3.10.7.4), and a
/// fast upload is ahead of the clock that first numbers are made of.
#[test]
fn a_four_tuple_of_a_dead_workers_is_used_again_above_its_last_number() {
    let mut config = config();
    config.clients = session::Clients::Keep;
    let mut before = World::with(config.clone(), TargetOptions::default());
    let mut client = Client::starting_at(1, 1_000_000);
    client.opens(&mut before);
    for _ in 0..80 {
        client.sends(&mut before, &[b'x'; 50_000]);
        before.run(MS);
    }
    client.asks(&mut before, "r", 100);
    client.closes(&mut before);
    before.run(3 * MS);
    client.leaves(&mut before);
    before.run(5 * SECOND);
    assert_eq!(before.table.tally().open, 0);
    let last = before.peer().rcv_nxt;
    let mut after = World::on(successor(&config, &before.table.image()), TargetOptions::default());
    after.now_us = before.now_us;
    Client::starting_at(1, 900_000_000).opens(&mut after);
    let first = after.sent.iter().find(|sent| sent.is(flag::SYN)).unwrap().head.tcp.seq;
    assert!(first.after(last), "{first:?} after {last:?}");
}

#[test]
fn whatever_makes_no_sense_costs_sessions_and_is_counted() {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (8, 16);
    let mut before = World::with(config.clone(), dead_target());
    let mut client = Client::new(1);
    client.opens(&mut before);
    client.sends(&mut before, &[1; 500]);
    let image = before.table.image();
    let all = Table::LASTING_BYTES..Table::arena_bytes(8, 0) as usize;
    // Every word of marks, undo log, indices and the slot is overwritten, one at a time; none may hurt.
    for at in all.step_by(4).filter(|&at| image[at..at + 4] != [0; 4]) {
        let mut bytes = image.clone();
        bytes[at..at + 4].copy_from_slice(&0x00ff_fff0u32.to_le_bytes());
        let mut table = successor(&config, &bytes);
        let tally = table.tally();
        assert_eq!(
            tally.inherited,
            tally.in_flight + tally.dropped(Drop::WorkerLost).payload_bytes,
            "word {at}"
        );
        table.abandon(before.now_us);
    }
}
