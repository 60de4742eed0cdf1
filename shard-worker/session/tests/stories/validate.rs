//! Which returned segments are believed: RFC 5961, RFC 7323 (PAWS), RFC 9293 section 3.10.7.4.

use flow::record::{flag, opt};
use flow::{Returned, Seq};
use session::Count;

use crate::kit::*;

fn established() -> (World, Client) {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.run(100 * MS);
    (world, client)
}

fn changed(world: &World, change: impl FnOnce(&mut Returned)) -> Returned {
    let mut record = world.in_step();
    change(&mut record);
    record
}

/// The answer is an acknowledgement with what we expect, and nothing of the segment is used.
fn challenged(world: &mut World, record: Returned) {
    let drawn = world.drawn_by(record);
    assert_eq!(drawn.len(), 1, "{record:?}");
    assert!(drawn[0].head.tcp.flags == flag::ACK && drawn[0].payload.is_empty());
    assert_eq!(drawn[0].head.tcp.ack, world.peer().snd_nxt);
    world.run(SECOND);
}

/// RFC 5961, section 5.2: an acknowledgement of what was never sent, or too long ago.
#[test]
fn acknowledgements_out_of_range_are_challenged_and_nothing_of_them_is_taken() {
    let (mut world, _) = established();
    let delivered = world.count(Count::Delivered);
    for off in [1, 1_000, 1 << 30] {
        let record = changed(&world, |r| {
            r.tcp.ack += off;
            r.payload_len = 50;
        });
        challenged(&mut world, record);
    }
    // The target's largest window was 8 MiB or what its scale makes of it.
    let record = changed(&world, |r| {
        r.tcp.ack = r.tcp.ack - (1 << 28);
        r.payload_len = 50;
    });
    challenged(&mut world, record);
    assert_eq!(world.count(Count::Challenges), 4);
    assert_eq!(world.count(Count::ReturnedRefused), 4);
    assert_eq!(world.count(Count::Delivered), delivered);
}

/// RFC 5961, section 4.2: a SYN in an established connection, whatever its number.
#[test]
fn a_syn_in_an_established_connection_is_challenged() {
    let (mut world, mut client) = established();
    for off in [0, 100, 1 << 29] {
        let record = changed(&world, |r| {
            r.tcp.flags = flag::SYN;
            r.tcp.seq += off;
        });
        challenged(&mut world, record);
    }
    client.asks(&mut world, "r1", 100);
    world.run(MS);
    assert_eq!((world.peers.len(), world.peer().lines), (1, 2));
}

/// RFC 9293, section 3.10.7.4: numbers and lengths beyond the window.
#[test]
fn segments_beyond_the_window_are_challenged() {
    let (mut world, mut client) = established();
    for (off, len) in [(1 << 24, 10), (0, 1 << 24), (0, u32::MAX)] {
        let record = changed(&world, |r| {
            r.tcp.seq += off;
            r.payload_len = len;
        });
        challenged(&mut world, record);
    }
    client.asks(&mut world, "r1", 100);
    world.run(MS);
    assert_eq!(world.count(Count::ReturnHoles), 0);
    assert_eq!(world.count(Count::TurnsGuessed), 0);
}

/// RFC 5961, section 7, and Linux' half second: two ends that are out of step do not answer each other for ever.
#[test]
fn challenges_are_limited_for_each_session_and_in_all() {
    let (mut world, _) = established();
    let record = changed(&world, |r| r.tcp.ack += 9_999);
    let before = world.sent.len();
    for _ in 0..1_000 {
        world.drawn_by(record);
        world.run(MS);
    }
    assert_eq!(world.sent.len() - before, 2, "two in a second");
    assert_eq!(world.count(Count::ChallengesWithheld), 998);
}

/// RFC 9293, section 3.10.7.4: without ACK a segment is dropped.
#[test]
fn a_segment_without_ack_opens_no_gate() {
    let (mut world, mut client) = established();
    client.reads(100);
    let record = changed(&world, |r| {
        r.tcp.flags = flag::PSH;
        r.payload_len = 100;
    });
    world.drawn_by(record);
    client.sends(&mut world, b"r1 10\n");
    client.reads(10);
    client.sends(&mut world, b"r2 10\n");
    world.run(100 * MS);
    assert_eq!(world.count(Count::TurnsGuessed), 1, "r1 had read 100 more bytes online than there were");
}

/// RFC 7323, section 5.3 R1 (packetdrill: ts_recent): an older time stamp is answered and not used.
#[test]
fn an_older_time_stamp_is_not_believed() {
    let (mut world, _) = established();
    let record = changed(&world, |r| {
        r.tcp.ts_val -= 2;
        r.tcp.window = 0;
        r.payload_len = 30;
        r.tcp.flags |= flag::PSH;
    });
    challenged(&mut world, record);
    assert_eq!((world.count(Count::ReturnedOutdated), world.count(Count::ReturnedBytes)), (1, 100));
}

/// RFC 7323, section 5.3: a reset is not subject to PAWS.
#[test]
fn a_reset_needs_no_time_stamp() {
    let (mut world, _) = established();
    let record = changed(&world, |r| {
        r.tcp.flags = flag::RST;
        r.tcp.ts_val -= 1_000;
    });
    world.drawn_by(record);
    assert_eq!(world.table.tally().open, 1);
    world.run(700 * SECOND);
    assert_eq!((world.table.tally().open, world.count(Count::Resets)), (0, 0), "parted, then idle");
}

/// RFC 7323, section 5.5: after a long silence an old value protects nothing any more.
#[test]
fn after_a_long_silence_any_time_stamp_is_believed() {
    let mut config = config();
    config.times.idle_us = 60 * 24 * 3_600 * SECOND;
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    // 25 days: a clock of a kilohertz has passed half its way round.
    world.run(25 * 24 * 3_600 * SECOND);
    world.set_stamps(5_000u32.wrapping_add(1 << 31).wrapping_add(77));
    for i in 1..4 {
        client.asks(&mut world, &format!("r{i}"), 100);
    }
    world.run(SECOND);
    assert_eq!(world.peer().lines, 4);
    assert_eq!(world.count(Count::ReturnedOutdated), 0);
    world.assert_all_delivered();
}

/// RFC 7323, section 5.2: the target's clock wraps in the middle of everything.
#[test]
fn time_stamps_wrap() {
    let mut world = World::new();
    world.set_stamps(u32::MAX - 20);
    let mut client = Client::new(1);
    client.opens(&mut world);
    for i in 0..50 {
        client.asks(&mut world, &format!("r{i}"), 100);
    }
    world.run(SECOND);
    assert_eq!((world.peer().lines, world.count(Count::ReturnedOutdated)), (50, 0));
    let echoed = world.sent.last().unwrap().head.tcp.ts_ecr;
    assert!(echoed < 1_000, "{echoed}");
    world.assert_all_delivered();
}

/// RFC 7323, section 4.3 (packetdrill: ts_recent): a segment from beyond a hole does not become the echo.
#[test]
fn the_echo_is_of_the_segment_in_order() {
    let (mut world, mut client) = established();
    let record = changed(&world, |r| {
        r.tcp.seq += 500;
        r.tcp.ts_val += 500;
    });
    world.drawn_by(record);
    client.sends(&mut world, b"r1 100\n");
    let last = world.data_sent().last().unwrap().head.tcp;
    assert!(last.ts_ecr < record.tcp.ts_val);
}

/// RFC 7323, section 3.2: a target that did not agree to time stamps is sent none, and its own are not read.
#[test]
fn time_stamps_only_where_agreed() {
    let mut world = World::with(config(), TargetOptions { timestamps: false, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.run(100 * MS);
    assert_eq!(world.data_sent()[0].head.tcp.options, 0);
    assert_eq!(world.data_sent()[0].head.mss, 1460);
    for ts_val in [1_000_000, 5] {
        let record = changed(&world, |r| {
            r.tcp.options = opt::TIMESTAMPS;
            r.tcp.ts_val = ts_val;
        });
        world.drawn_by(record);
    }
    assert_eq!(world.count(Count::ReturnedOutdated), 0);
}

/// A reset of what is over is only believed with the exact number (RFC 1337, RFC 5961).
#[test]
fn a_wrong_reset_does_not_end_the_linger() {
    let (mut world, mut client) = established();
    client.closes(&mut world);
    world.run(10 * MS);
    assert!(world.peer().is_closed());
    let wrong = changed(&world, |r| {
        r.tcp.flags = flag::RST;
        r.tcp.seq = r.tcp.seq - 5;
    });
    world.drawn_by(wrong);
    assert_eq!(world.table.tally().open, 1);
    let right = changed(&world, |r| r.tcp.flags = flag::RST);
    world.drawn_by(right);
    assert_eq!((world.table.tally().open, world.count(Count::SessionsCompleted)), (0, 1));
}

/// RFC 9293, section 3.10.7.3: in SYN-SENT only the exact acknowledgement counts, of a reset too.
#[test]
fn a_wrong_reset_does_not_refuse() {
    let mut world = World::with(config(), TargetOptions { dead: true, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    let syn = world.sent[0].head;
    for (flags, ack) in [
        (flag::RST, Seq(0)),
        (flag::RST | flag::ACK, syn.tcp.seq),
        (flag::RST | flag::ACK, syn.tcp.seq + 2),
        (flag::SYN, Seq(0)),
        (0, Seq(0)),
        (flag::PSH, Seq(0)),
    ] {
        let mut record = Returned { client: syn.client, target: endpoint(TARGET), ..Returned::default() };
        (record.tcp.flags, record.tcp.ack) = (flags, ack);
        assert!(world.drawn_by(record).is_empty(), "{record:?}");
    }
    assert_eq!((world.count(Count::ReturnedRefused), world.count(Count::FailedRefused)), (6, 0));
    let mut record = Returned { client: syn.client, target: endpoint(TARGET), ..Returned::default() };
    (record.tcp.flags, record.tcp.ack) = (flag::RST | flag::ACK, syn.tcp.seq + 1);
    world.drawn_by(record);
    client.resets(&mut world);
    assert_eq!(world.count(Count::FailedRefused), 1);
}
