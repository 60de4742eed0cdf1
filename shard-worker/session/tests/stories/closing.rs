//! How connections close, in every order of the two FINs: RFC 9293, section 3.6 and 3.10.

use flow::record::flag;
use session::Count;

use crate::kit::*;

fn asked() -> (World, Client) {
    let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"r0\n");
    world.run(10 * MS);
    world.options.dead = true;
    (world, client)
}

/// RFC 9293, figure 13 (packetdrill: close): both FINs cross under way.
#[test]
fn a_simultaneous_close() {
    let (mut world, mut client) = asked();
    client.closes(&mut world);
    let ours = world.sent.last().unwrap().clone();
    assert!(ours.is(flag::FIN));
    let mut theirs = world.in_step();
    theirs.tcp.flags |= flag::FIN;
    world.drawn_by(theirs);
    world.run(10 * MS);
    let last = world.sent.last().unwrap();
    assert_eq!((last.head.tcp.ack, last.head.tcp.seq), (theirs.tcp.seq + 1, ours.head.tcp.seq + 1));
    let mut end = theirs;
    end.tcp.flags = flag::ACK;
    end.tcp.seq += 1;
    end.tcp.ack += 1;
    world.drawn_by(end);
    world.run(SECOND);
    assert_eq!((world.table.tally().open, world.count(Count::SessionsCompleted)), (0, 1));
    assert_eq!(world.count(Count::Resets), 0);
    world.assert_all_delivered();
}

/// The answer, the FIN and the acknowledgement of our FIN in one segment.
#[test]
fn data_and_fin_in_one_segment() {
    let (mut world, mut client) = asked();
    client.closes(&mut world);
    let mut all = world.in_step();
    all.tcp.flags |= flag::FIN | flag::PSH;
    all.tcp.ack += 1;
    all.payload_len = 700;
    world.drawn_by(all);
    world.run(10 * MS);
    assert_eq!(world.sent.last().unwrap().head.tcp.ack, all.tcp.seq + 701);
    world.run(SECOND);
    assert_eq!((world.table.tally().open, world.count(Count::SessionsCompleted)), (0, 1));
    assert_eq!(world.count(Count::TurnsAnswered), 1);
}

/// The FIN comes, what was before it never does: it is acknowledged past, as we have no use for the bytes.
#[test]
fn a_fin_beyond_a_hole_closes() {
    let (mut world, mut client) = asked();
    client.closes(&mut world);
    let mut fin = world.in_step();
    fin.tcp.flags |= flag::FIN;
    fin.tcp.seq += 5_000;
    fin.tcp.ack += 1;
    world.drawn_by(fin);
    world.run(SECOND);
    assert_eq!(world.sent.last().unwrap().head.tcp.ack, fin.tcp.seq + 1);
    assert_eq!((world.table.tally().open, world.count(Count::ReturnHoles)), (0, 5_000));
}

/// RFC 9293, section 3.10.7.4, seventh: after its FIN nothing of the target's counts.
#[test]
fn data_beyond_the_targets_fin_is_answered_and_not_counted() {
    let (mut world, _client) = asked();
    let mut fin = world.in_step();
    fin.tcp.flags |= flag::FIN;
    world.drawn_by(fin);
    world.run(10 * MS);
    let bytes = world.count(Count::ReturnHoles);
    let mut beyond = world.in_step();
    beyond.tcp.seq += 1;
    beyond.payload_len = 900;
    let drawn = world.drawn_by(beyond);
    assert!(drawn.len() == 1 && drawn[0].head.tcp.ack == fin.tcp.seq + 1);
    assert_eq!(world.count(Count::ReturnHoles), bytes);
}

/// RFC 9293, section 3.10.7.4: a reset in FIN-WAIT ends the session; everything had been delivered.
#[test]
fn a_reset_after_our_fin_ends_it() {
    let (mut world, mut client) = asked();
    client.closes(&mut world);
    let mut reset = world.in_step();
    reset.tcp.flags = flag::RST;
    world.drawn_by(reset);
    world.run(MS);
    assert_eq!(world.table.tally().open, 0);
    world.assert_all_delivered();
}

/// Half-close (packetdrill: shutdown): the target goes on sending for as long as it likes after our FIN, and is acknowledged.
#[test]
fn answers_after_our_fin_are_acknowledged() {
    let (mut world, mut client) = asked();
    client.closes(&mut world);
    let mut part = world.in_step();
    part.tcp.ack += 1;
    part.tcp.flags |= flag::PSH;
    part.payload_len = 1_448;
    for _ in 0..20 {
        world.drawn_by(part);
        part.tcp.seq += 1_448;
        world.run(5 * SECOND);
        assert_eq!(world.sent.last().unwrap().head.tcp.ack, part.tcp.seq);
    }
    part.payload_len = 0;
    part.tcp.flags = flag::ACK | flag::FIN;
    world.drawn_by(part);
    world.run(SECOND);
    assert_eq!((world.table.tally().open, world.count(Count::SessionsCompleted)), (0, 1));
}

/// RFC 9293, section 3.10.4: the FIN waits for its place behind everything that is held, however small the window is.
#[test]
fn a_fin_behind_a_closed_window_waits() {
    let options =
        TargetOptions { buffer: 3_000, stalled: true, app: App::Silent, ..TargetOptions::default() };
    let mut world = World::with(config(), options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    client.sends(&mut world, &[b'x'; 9_000]);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(!world.sent.iter().any(|sent| sent.is(flag::FIN)));
    world.unstall();
    world.run(20 * SECOND);
    assert!(world.peer().is_closed());
    assert_eq!(world.peer().read.len(), 9_000);
    world.assert_all_delivered();
}

/// RFC 6191: the target's TIME_WAIT is left by a SYN with a newer time stamp, without a reset.
#[test]
fn a_four_tuple_is_used_again_at_once() {
    let mut config = config();
    config.clients = session::Clients::Keep;
    let mut world = World::with(config, TargetOptions::default());
    for round in 0..4u32 {
        let mut client = Client::starting_at(1, 1_000_000 + round * 50_000_000);
        client.opens(&mut world);
        client.asks(&mut world, "r", 100);
        client.closes(&mut world);
        world.run(3 * MS);
        client.leaves(&mut world);
    }
    world.run(SECOND);
    assert_eq!(world.peers.iter().filter(|peer| peer.lines == 1).count(), 4);
    assert_eq!((world.stale_syns, world.count(Count::Resets)), (0, 0));
    world.assert_all_delivered();
}
