//! The captured side: doubles, overlaps, disorder, and what the capture missed.

use flow::Drop;
use flow::record::flag;
use session::{Count, OnGap, Rtt};

use crate::kit::*;

#[test]
fn retransmissions_and_overlaps_are_taken_once() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let first = client.segment(flag::ACK | flag::PSH);
    client.sends(&mut world, b"0123456789");
    world.capture(&first, b"0123456789");
    let mut overlap = first;
    overlap.tcp.seq += 5;
    world.capture(&overlap, b"XXXXX 20\n");
    client.seq += 4;
    // A keep-alive probe: one old byte.
    let mut probe = client.segment(flag::ACK);
    probe.tcp.seq = probe.tcp.seq - 1;
    world.capture(&probe, b"?");
    world.run(50 * MS);
    assert_eq!(world.peer().text(), "0123456789 20\n", "the first copy wins");
    world.assert_delivered_but(Drop::Duplicate, 10 + 5 + 1);
}

#[test]
fn disorder_in_the_capture_is_put_right() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut segments = Vec::new();
    for i in 0..12u8 {
        segments.push((client.segment(flag::ACK), vec![b'a' + i; 100]));
        client.sends_unseen(&[0; 100]);
    }
    for i in [3, 1, 0, 2, 7, 5, 4, 11, 6, 9, 8, 10] {
        world.capture(&segments[i].0, &segments[i].1);
        world.run(MS);
    }
    world.run(20 * MS);
    let want: Vec<u8> = segments.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(world.peer().read, want);
    assert_eq!(world.count(Count::Holes), 0);
    world.assert_all_delivered();
}

#[test]
fn a_missing_request_is_skipped_and_only_it_is_lost() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends_unseen(b"r1 100\n");
    client.reads(100);
    client.asks(&mut world, "r2", 100);
    client.asks(&mut world, "r3", 100);
    assert_eq!(world.peer().text(), "r0 100\n", "the hole may still be filled");
    world.run(200 * MS);
    assert_eq!(world.peer().text(), "r0 100\nr2 100\nr3 100\n");
    assert_eq!(world.count(Count::Missed), 7);
    assert_eq!(world.count(Count::Holes), 1);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peer().is_closed());
    world.assert_all_delivered();
}

#[test]
fn a_hole_that_is_filled_in_time_is_none() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let late = client.segment(flag::ACK);
    client.sends_unseen(b"r0 ");
    client.sends(&mut world, b"100\n");
    world.run(40 * MS);
    world.capture(&late, b"r0 ");
    world.run(40 * MS);
    assert_eq!(world.peer().text(), "r0 100\n");
    assert_eq!(world.count(Count::Missed), 0);
}

#[test]
fn steady_traffic_behind_a_hole_does_not_put_off_its_end() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends_unseen(b"r0 100\n");
    client.reads(100);
    for i in 1..100 {
        client.asks(&mut world, &format!("r{i}"), 100);
        world.run(MS);
    }
    assert!(world.peer().lines > 50, "{}", world.peer().lines);
}

#[test]
fn a_request_with_a_hole_in_it_is_dropped_whole_before_it_is_sent() {
    let slow = TargetOptions {
        app: App::Lines { writes: 1, delay_us: 200 * MS, close_after: 0 },
        ..TargetOptions::default()
    };
    let mut world = World::with(config(), slow);
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    // The second request waits for the answer; its middle is missing.
    client.sends(&mut world, b"start-of-r1-");
    client.sends_unseen(b"middle");
    client.sends(&mut world, b"-end 100\n");
    client.reads(100);
    client.asks(&mut world, "r2", 100);
    world.run(2 * SECOND);
    assert_eq!(world.peer().text(), "r0 100\nr2 100\n");
    assert_eq!(world.peers.len(), 1);
    world.assert_delivered_but(Drop::Gap, 12 + 9);
    assert_eq!(world.count(Count::Missed), 6);
}

#[test]
fn a_request_that_was_partly_sent_needs_another_connection() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends(&mut world, b"start-of-r1-");
    client.sends_unseen(b"middle");
    client.sends(&mut world, b"-end 100\n");
    client.reads(100);
    world.run(100 * MS);
    client.asks(&mut world, "r2", 100);
    world.run(SECOND);
    assert_eq!(world.peers[0].text(), "r0 100\nstart-of-r1-");
    assert!(world.peers[0].reset);
    assert_eq!(world.peers[1].text(), "r2 100\n");
    assert_eq!(world.count(Count::GapReconnects), 1);
    world.assert_delivered_but(Drop::Gap, 9);
}

#[test]
fn a_hole_as_long_as_whole_segments_takes_the_request_after_it_along() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    // A request of three full segments; the first is missing.
    client.sends_unseen(&[b'x'; 1460]);
    client.sends(&mut world, &[b'y'; 1460]);
    client.sends(&mut world, b"end 100\n");
    client.reads(100);
    client.asks(&mut world, "r2", 100);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "r0 100\nr2 100\n", "its rest is no request");
    world.assert_delivered_but(Drop::Gap, 1460 + 8);
}

#[test]
fn a_hole_before_the_end_is_given_up_too() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends_unseen(b"r1 100\n");
    client.reads(100);
    client.closes(&mut world);
    client.leaves(&mut world);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "r0 100\n");
    assert!(world.peer().is_closed());
    assert_eq!(world.count(Count::Missed), 7);
}

#[test]
fn what_a_snap_length_cut_off_is_a_hole() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut cut = client.segment(flag::ACK);
    cut.cut_len = 50;
    world.capture(&cut, b"begins");
    client.sends_unseen(&[0; 56]);
    client.reads(100);
    client.asks(&mut world, "next", 100);
    world.run(SECOND);
    assert_eq!(world.count(Count::Missed), 50);
    assert_eq!(world.peer().text(), "next 100\n");
}

#[test]
fn numbers_from_nowhere_are_not_believed() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut wild = client.segment(flag::ACK);
    wild.tcp.seq += 1 << 30;
    world.capture(&wild, b"wild");
    client.asks(&mut world, "r0", 100);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "r0 100\n");
    world.assert_delivered_but(Drop::NotJoined, 4);
}

/// Late retransmissions under a server that pushes every 5 ms: the repeat carries a newer acknowledgement number, and
/// nothing waits for an answer to itself.
#[test]
fn late_repeats_under_a_pushing_server() {
    let mut config = config();
    config.rtt = Rtt::Measured;
    let mut world = World::with(config, TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.syn(&mut world);
    world.run(20 * MS);
    client.acks(&mut world);
    for _ in 0..20 {
        let lost = client.segment(flag::ACK);
        client.sends_unseen(b"abc");
        client.sends(&mut world, b"def");
        world.run(5 * MS);
        client.reads(200);
        let mut again = lost;
        again.tcp.ack = client.ack;
        world.capture(&again, b"abc");
        world.run(5 * MS);
    }
    world.run(30 * SECOND);
    assert_eq!(world.peer().text(), "abcdef".repeat(20));
    world.assert_all_delivered();
}

fn on_gap(on_gap: OnGap) -> World {
    let mut config = config();
    config.on_gap = on_gap;
    World::with(config, TargetOptions::default())
}

/// `--on-gap resync`: the half request stays as it is, the next one follows on the same connection and without a wait for
/// an answer that may never come.
#[test]
fn resync_keeps_the_connection_of_a_request_that_was_partly_sent() {
    let mut world = on_gap(OnGap::Resync);
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends(&mut world, b"start-of-r1-");
    client.sends_unseen(b"middle");
    client.sends(&mut world, b"-end 100\n");
    client.reads(100);
    world.run(60 * MS);
    client.sends(&mut world, b"r2 100\n");
    world.run(100 * MS);
    assert_eq!(world.peers.len(), 1);
    assert_eq!(world.peer().text(), "r0 100\nstart-of-r1-r2 100\n");
    assert_eq!((world.count(Count::GapResyncs), world.count(Count::GapReconnects)), (1, 0));
    world.assert_delivered_but(Drop::Gap, 9);
    // And a request that was not sent yet is left out, as with skip.
    client.reads(100);
    client.sends_unseen(b"r3 100\n");
    client.reads(100);
    client.asks(&mut world, "r4", 100);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peer().is_closed() && world.peer().text().ends_with("r2 100\nr4 100\n"));
    assert_eq!(world.count(Count::SessionsCompleted), 1);
}

/// `--on-gap abort`: the target sees the beginning of the stream and a reset; the flow is not joined again, and others
/// do not notice.
#[test]
fn abort_ends_the_session_and_nothing_more_of_the_flow_is_replayed() {
    for partly_sent in [false, true] {
        let mut world = on_gap(OnGap::Abort);
        let (mut client, mut other) = (Client::new(1), Client::new(2));
        client.opens(&mut world);
        other.opens(&mut world);
        client.asks(&mut world, "r0", 100);
        let start: &[u8] = if partly_sent { b"start-of-r1-" } else { b"" };
        if partly_sent {
            client.sends(&mut world, start);
        }
        client.sends_unseen(b"r1 100\n");
        client.reads(100);
        for i in 2..6 {
            client.asks(&mut world, &format!("r{i}"), 100);
            other.asks(&mut world, &format!("o{i}"), 100);
            world.run(30 * MS);
        }
        let first = world.peers[0].clone();
        assert!(first.reset && first.text() == format!("r0 100\n{}", String::from_utf8_lossy(start)));
        assert_eq!(world.peers.len(), 2, "no other connection for it");
        assert_eq!(world.peers[1].text(), "o2 100\no3 100\no4 100\no5 100\n");
        client.closes(&mut world);
        world.run(SECOND);
        assert_eq!((world.table.tally().open, world.count(Count::FailedGap)), (1, 1));
        world.assert_delivered_but(Drop::Gap, 4 * 7);
        assert_eq!(world.count(Count::Missed), 7);
        // The client's next connection is a new flow.
        let mut again = Client::starting_at(1, 900_000_000);
        again.opens(&mut world);
        again.asks(&mut world, "again", 100);
        world.run(SECOND);
        assert_eq!(world.peer().text(), "again 100\n");
    }
}

#[test]
fn abort_at_a_snap_length_and_at_a_hole_before_the_end() {
    let mut world = on_gap(OnGap::Abort);
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut cut = client.segment(flag::ACK);
    cut.cut_len = 50;
    world.capture(&cut, b"begins");
    client.sends_unseen(&[0; 56]);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peer().reset);
    let mut client = Client::new(2);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends_unseen(b"r1 100\n");
    client.closes(&mut world);
    client.leaves(&mut world);
    world.run(SECOND);
    assert!(world.peer().reset && !world.peer().client_fin);
    assert_eq!((world.table.tally().open, world.count(Count::FailedGap)), (0, 2));
    assert_eq!(world.table.tally().in_flight, 0);
}

#[test]
fn the_last_request_is_missing_before_the_clients_end() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends_unseen(b"r1 100\n");
    client.reads(100);
    client.acks(&mut world);
    world.run(10 * MS);
    client.closes(&mut world);
    client.leaves(&mut world);
    world.run(SECOND);
    assert_eq!((world.count(Count::Missed), world.count(Count::Holes)), (7, 1));
    assert!(world.peer().is_closed());
    world.assert_all_delivered();
}

#[test]
fn a_segment_lost_on_the_clients_way_is_waited_for() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    let lost = client.segment(flag::ACK);
    client.sends_unseen(b"r1 ");
    client.sends(&mut world, b"100");
    client.sends(&mut world, b"\n");
    // The server has the hole as well and answers nothing, so the client's timer fires, twice.
    world.run(650 * MS);
    world.capture(&lost, b"r1 ");
    client.reads(100);
    client.asks(&mut world, "r2", 100);
    world.run(20 * MS);
    assert_eq!(world.peer().text(), "r0 100\nr1 100\nr2 100\n");
    assert_eq!((world.count(Count::Missed), world.peers.len()), (0, 1));
    world.assert_all_delivered();
}

#[test]
fn a_hole_that_nobody_fills_is_given_up_at_last() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends_unseen(b"start-");
    client.sends(&mut world, b"end 100\n");
    world.run(2 * SECOND);
    assert_eq!(world.count(Count::Missed), 0);
    world.run(2 * SECOND);
    assert_eq!(world.count(Count::Missed), 6);
}

#[test]
fn an_answer_read_behind_a_hole_shows_that_the_capture_missed_it() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends_unseen(b"start-");
    client.sends(&mut world, b"end 100\n");
    world.run(10 * MS);
    client.reads(100);
    client.acks(&mut world);
    world.run(100 * MS);
    assert_eq!(world.count(Count::Missed), 6);
}
