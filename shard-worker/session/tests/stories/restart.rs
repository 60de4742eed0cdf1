//! A table made anew on the arena of one that is gone.

use flow::Drop;
use flow::record::flag;
use session::{Config, Count, Table};

use crate::kit::*;

fn dead_target() -> TargetOptions {
    TargetOptions { dead: true, ..TargetOptions::default() }
}

/// The next worker: a table on the same bytes.
fn successor(config: &Config, image: &[u8]) -> Table {
    let memory = arena(&config.limits);
    memory[..image.len()].copy_from_slice(image);
    Table::new(memory, config.clone())
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
fn a_slot_that_makes_no_sense_is_counted_and_emptied() {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (8, 16);
    let mut before = World::with(config.clone(), dead_target());
    let mut client = Client::new(1);
    client.opens(&mut before);
    client.sends(&mut before, &[1; 500]);
    let image = before.table.image();
    let slots = Table::arena_bytes(0, 0) as usize..Table::arena_bytes(8, 0) as usize;
    // Every word of the slot is overwritten, one at a time; none may hurt.
    for at in slots.step_by(4).filter(|&at| image[at..at + 4] != [0; 4]) {
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
