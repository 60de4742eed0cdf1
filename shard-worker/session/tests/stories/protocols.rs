//! Turns of protocols as they are: uploads, long polls, pushes, 100-continue, streams of events.

use flow::record::flag;
use session::{Count, Rtt};

use crate::kit::*;

fn guesses(world: &World) -> u64 {
    world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered)
}

/// HTTP's `Expect: 100-continue`: the body waits for the interim answer, and only for it.
#[test]
fn a_body_waits_for_its_continue() {
    let slow = App::Lines { writes: 1, delay_us: 30 * MS, close_after: 0 };
    let mut world = World::with(config(), TargetOptions { app: slow, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "head expects", 25);
    client.sends(&mut world, &[b'b'; 3_000]);
    client.sends(&mut world, b" 200\n");
    client.reads(200);
    client.asks(&mut world, "next", 100);
    world.run(20 * MS);
    assert_eq!(world.peer().text(), "head expects 25\n", "the body is held");
    world.run(SECOND);
    let times: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
    assert!(times[1] - times[0] >= 30 * MS && times[1] - times[0] < 31 * MS, "{times:?}");
    assert_eq!((world.peer().lines, guesses(&world)), (3, 0));
    world.assert_all_delivered();
}

/// A long poll: the answer takes as long as it took online, and twice as long; the turn after it waits for it.
#[test]
fn a_long_poll_is_waited_for() {
    for factor in [1, 2] {
        let app = App::Lines { writes: 1, delay_us: factor * 20 * SECOND, close_after: 0 };
        let mut world = World::with(config(), TargetOptions { app, ..TargetOptions::default() });
        let mut client = Client::new(1);
        client.opens(&mut world);
        client.sends(&mut world, b"poll 300\n");
        world.run(20 * SECOND);
        client.reads(300);
        client.sends(&mut world, b"poll 300\n");
        world.run(50 * SECOND);
        let times: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
        assert_eq!(times.len(), 2);
        assert!(times[1] - times[0] >= factor * 20 * SECOND);
        assert_eq!(guesses(&world), 0);
    }
}

/// Events pushed unasked (SSE): the client only acknowledges them, and its next request waits for as many of them as it
/// had seen.
#[test]
fn a_request_after_pushed_events_waits_for_them() {
    let options = TargetOptions { app: App::Greets(500), ..TargetOptions::default() };
    let mut world = World::with(config(), options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    for _ in 0..5 {
        client.reads(100);
        client.acks(&mut world);
        world.run(MS);
    }
    client.asks(&mut world, "stop", 50);
    world.run(SECOND);
    assert_eq!((world.peer().lines, guesses(&world)), (1, 0));
    world.assert_all_delivered();
}

/// Messages in both directions at their own pace (WebSocket-like): each message of the client that had seen more of the
/// server's starts a turn, and none waits longer than the rules allow.
#[test]
fn messages_both_ways() {
    let mut config = config();
    config.rtt = Rtt::None;
    let mut world = World::with(config, TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..40 {
        client.reads(11);
        client.sends(&mut world, &[b'm'; 20]);
        world.run(3 * MS);
    }
    world.run(10 * SECOND);
    assert_eq!(world.peer().read.len(), 800, "three row-7 waits at most");
    assert_eq!(world.count(Count::TurnsUnanswered), 3);
    world.assert_all_delivered();
}

/// A half-duplex upload of many segments with the client's own retransmissions and disorder in the capture is one turn.
#[test]
fn an_upload_in_disorder_is_one_turn() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut segments = Vec::new();
    for i in 0..60u32 {
        let mut bytes = vec![b'a' + (i % 26) as u8; 1_000];
        if i == 59 {
            bytes.extend_from_slice(b" 100\n");
        }
        segments.push((client.segment(flag::ACK | flag::PSH), bytes.clone()));
        client.seq += bytes.len() as u32;
        client.written.extend_from_slice(&bytes);
    }
    for i in (0..60usize).map(|i| {
        if i % 4 == 1 {
            i + 1
        } else if i % 4 == 2 {
            i - 1
        } else {
            i
        }
    }) {
        let (segment, bytes) = &segments[i];
        world.capture(segment, bytes);
        if i % 5 == 0 {
            // Sent again later, after an acknowledgement of something else.
            let mut again = *segment;
            again.tcp.ack += 0;
            world.capture(&again, bytes);
        }
        world.run(200);
    }
    client.reads(100);
    client.asks(&mut world, "next", 10);
    world.run(SECOND);
    assert_eq!(world.peer().read, client.written);
    assert_eq!((world.count(Count::TurnsSent), guesses(&world)), (2, 0));
}

/// A target that is faster than online: a turn leaves as soon as it is captured, so nothing is added to it.
#[test]
fn a_faster_target_adds_no_wait() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut captured = Vec::new();
    for i in 0..20 {
        captured.push(world.now_us);
        client.asks(&mut world, &format!("r{i}"), 500);
        world.run(10 * MS);
    }
    let sent: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
    // The first one waits for the handshake alone.
    assert_eq!(sent[1..], captured[1..]);
    assert_eq!(world.table.tally().lag.max_us(), sent[0] - captured[0]);
}

/// A target that is slower: turns queue up and leave with its answers, in order, each as soon as its gate opens; what was
/// added to each is in the lag.
#[test]
fn a_slower_target_sets_the_pace_and_nothing_more() {
    let app = App::Lines { writes: 1, delay_us: 10 * MS, close_after: 0 };
    let mut world = World::with(config(), TargetOptions { app, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    for i in 0..50 {
        client.asks(&mut world, &format!("r{i}"), 500);
    }
    world.run(2 * SECOND);
    let sent: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
    assert!(sent.windows(2).all(|two| two[1] - two[0] == 10 * MS + 2 * WIRE_US), "{sent:?}");
    assert_eq!((world.peer().lines, guesses(&world)), (50, 0));
    assert!(world.table.tally().lag.max_us() > 400 * MS);
}
