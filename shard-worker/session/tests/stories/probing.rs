//! Windows that close, shrink and open by a little, and targets that say nothing: RFC 9293 section 3.8.6, RFC 1122, RFC 5482.

use flow::Drop;
use session::Count;

use crate::kit::*;

/// The handshake stands, an upload has filled the window, and nobody but the story answers.
fn full(buffer: u32, bytes: usize) -> (World, Client) {
    let options = TargetOptions {
        buffer,
        window_scale: None,
        stalled: true,
        app: App::Silent,
        ..TargetOptions::default()
    };
    let mut world = World::with(config(), options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    client.sends(&mut world, &vec![b'w'; bytes]);
    world.run(100 * MS);
    (world, client)
}

/// RFC 9293, section 3.8.6.1 (packetdrill: zero_window): probes at pauses that double, for as long as they are answered;
/// the session outlives every other limit.
#[test]
fn a_closed_window_is_probed_for_as_long_as_it_is_answered() {
    let (mut world, _) = full(8_000, 20_000);
    let before = world.sent.len();
    world.run(300 * SECOND);
    let times: Vec<u64> = world.sent[before..].iter().map(|sent| sent.at_us).collect();
    let pauses: Vec<u64> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!((20..60).contains(&pauses.len()), "{}", pauses.len());
    assert!(pauses.iter().all(|&pause| pause <= 11 * SECOND));
    assert!(pauses[2] > pauses[0] && pauses[8] > pauses[2], "{pauses:?}");
    assert_eq!(world.table.tally().open, 1);
    world.unstall();
    world.run(20 * SECOND);
    assert_eq!(world.peer().read.len(), 20_000);
    world.assert_all_delivered();
}

/// RFC 9293, section 3.8.6.2.1: a window that opens by less than a segment draws no small one.
#[test]
fn a_silly_window_is_not_used() {
    let (mut world, _) = full(8_000, 20_000);
    let before = world.data_sent().len();
    for window in [1, 100, 700] {
        let mut record = world.in_step();
        record.tcp.window = window;
        world.drawn_by(record);
    }
    assert_eq!(world.data_sent().len(), before);
    let mut record = world.in_step();
    record.tcp.window = 3_000;
    world.drawn_by(record);
    assert_eq!(world.data_sent().last().unwrap().payload.len(), 2 * 1_448);
}

/// RFC 9293, section 3.8.6: the target takes back window that it gave; what is out stays out, nothing new follows.
#[test]
fn a_window_that_shrinks_is_obeyed() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    world.options.dead = true;
    client.sends(&mut world, &[b'w'; 60_000]);
    let sent = world.data_sent().len();
    let mut record = world.in_step();
    record.tcp.ack += 1_448;
    record.tcp.window = 10;
    world.drawn_by(record);
    assert_eq!(world.data_sent().len(), sent, "nothing new");
    // The rest of what was out is acknowledged; the window stays shut.
    record.tcp.ack += 9 * 1_448;
    record.tcp.window = 0;
    world.drawn_by(record);
    world.run(SECOND);
    assert_eq!(world.data_sent().len(), sent);
    assert!(world.count(Count::Probes) >= 1);
    assert_eq!(world.count(Count::Delivered), 14_480);
}

/// RFC 9293, section 3.10.7.4: SND.WL1 and SND.WL2 keep an old segment from changing the window.
#[test]
fn an_old_window_update_is_not_used() {
    let (mut world, _) = full(8_000, 20_000);
    let mut late = world.in_step();
    late.tcp.ack = late.tcp.ack - 1;
    late.tcp.window = 60_000;
    let mut older = world.in_step();
    older.tcp.seq = older.tcp.seq - 1;
    older.tcp.window = 60_000;
    let before = world.data_sent().len();
    world.drawn_by(late);
    world.drawn_by(older);
    assert_eq!(world.data_sent().len(), before);
    assert_eq!(world.count(Count::Delivered), 5 * 1_448);
}

/// RFC 5482 and RFC 9293, section 3.8.3 (packetdrill: user_timeout): without any acknowledgement the connection is given
/// up when its time is over, and only then.
#[test]
fn what_nobody_acknowledges_is_given_up_in_time() {
    let mut config = config();
    config.times.dead_us = 20 * SECOND;
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 10);
    world.options.dead = true;
    client.asks(&mut world, "r1", 10);
    world.run(19 * SECOND);
    assert_eq!(world.dropped(Drop::TimedOut), 0);
    world.run(12 * SECOND);
    world.assert_delivered_but(Drop::TimedOut, 6);
    client.resets(&mut world);
    assert_eq!((world.table.tally().open, world.count(Count::FailedTimedOut)), (0, 1));
}

/// RFC 1122, section 4.2.3.6: a probe of the target's is answered, whenever it comes, and keeps nothing else alive.
#[test]
fn keep_alive_probes_of_the_target_are_answered() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 10);
    world.run(SECOND);
    for _ in 0..5 {
        let mut probe = world.in_step();
        probe.tcp.seq = probe.tcp.seq - 1;
        let drawn = world.drawn_by(probe);
        assert!(drawn.len() == 1 && drawn[0].head.tcp.ack == world.peer().snd_nxt);
        world.run(60 * SECOND);
    }
    // The same with a byte of garbage: a repeat.
    let mut probe = world.in_step();
    probe.tcp.seq = probe.tcp.seq - 1;
    probe.payload_len = 1;
    assert_eq!(world.drawn_by(probe).len(), 1);
}
