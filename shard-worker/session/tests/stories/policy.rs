//! What of a client's headers reaches the target: the table at the top of `sender`.

use flow::record::{flag, opt};
use flow::{Drop, Seq};
use session::Count;

use crate::kit::*;

/// Flags and options that our own headers may have.
const OURS: u16 = flag::SYN | flag::ACK | flag::PSH | flag::FIN | flag::RST;

/// RFC 3168, section 6.1.1, and RFC 6093: neither ECN nor urgent pointers leave, whatever the client does; the urgent byte
/// stays in line.
#[test]
fn ecn_and_urgent_pointers_are_stripped() {
    let mut world = World::new();
    let mut client = Client::new(1);
    let mut syn = client.segment(flag::SYN | flag::ECE | flag::CWR);
    syn.tcp.options = 0xff;
    (syn.tcp.mss, syn.tcp.window_scale, syn.tcp.ts_val) = (9_000, 200, 5);
    world.capture(&syn, &[]);
    client.seq += 1;
    client.ack = Seq(90_000);
    world.run(100);
    client.acks(&mut world);
    for (flags, bytes) in [
        (flag::ACK | flag::CWR, &b"cwr "[..]),
        (flag::ACK | flag::ECE | flag::NS, b"ece "),
        (flag::ACK | flag::URG, b"urgent!"),
        (flag::ACK | flag::PSH | flag::URG, b" 10\n"),
    ] {
        let mut segment = client.segment(flags);
        segment.tcp.urgent = 3;
        world.capture(&segment, bytes);
        client.seq += bytes.len() as u32;
    }
    client.closes(&mut world);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "cwr ece urgent! 10\n");
    assert_eq!(world.count(Count::Urgent), 2);
    for sent in &world.sent {
        let tcp = &sent.head.tcp;
        assert_eq!((tcp.flags & !OURS, tcp.urgent), (0, 0), "{tcp:?}");
        let allowed = if sent.is(flag::SYN) { 0x0f } else { opt::TIMESTAMPS };
        assert_eq!(tcp.options & !allowed, 0);
    }
    assert_eq!(world.sent[0].head.tcp.mss, 1460, "the path's, below the client's 9,000");
    world.assert_all_delivered();
}

/// The client's MSS is kept where it is smaller than the path's.
#[test]
fn a_small_mss_of_the_client_is_offered() {
    for (mss, offered) in [(536, 536), (1, 1), (0, 1460), (9_000, 1460)] {
        let mut world = World::new();
        let mut client = Client::new(1);
        client.mss = mss;
        client.opens(&mut world);
        assert_eq!(world.sent[0].head.tcp.mss, offered);
        client.asks(&mut world, "r0", 10);
        world.run(SECOND);
        world.assert_all_delivered();
    }
}

/// RFC 9293, section 3.7.1 (packetdrill: mss): the target's option, its absence, and options that make no sense.
#[test]
fn the_targets_mss_is_obeyed_down_to_the_smallest() {
    for (mss, timestamps, largest) in [
        (Some(88), false, 88),
        (Some(88), true, 76),
        (Some(1), false, 48),
        (Some(1), true, 36),
        (Some(0), false, 48),
        (Some(u16::MAX), true, 1448),
        (None, false, 536),
    ] {
        let mut world = World::with(config(), TargetOptions { mss, timestamps, ..TargetOptions::default() });
        let mut client = Client::new(1);
        client.opens(&mut world);
        world.run(10 * MS);
        client.sends(&mut world, &[7; 5_000]);
        world.run(10 * SECOND);
        assert_eq!((world.peer().largest, world.peer().read.len()), (largest, 5_000), "{mss:?}");
        world.assert_all_delivered();
    }
}

/// RFC 7323, section 2.3: a shift beyond 14 counts as 14.
#[test]
fn a_window_scale_beyond_fourteen_is_fourteen() {
    let mut world = World::with(
        config(),
        TargetOptions { window_scale: Some(14), buffer: 1 << 30, ..TargetOptions::default() },
    );
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, &[7; 200_000]);
    world.run(SECOND);
    world.assert_all_delivered();
}

/// RFC 7413: the server does not take the SYN's data; the client sends it again after the handshake.
#[test]
fn fast_open_data_that_is_sent_again_is_taken_once() {
    let mut world = World::new();
    let mut client = Client::new(1);
    let syn = client.segment(flag::SYN);
    world.capture(&syn, b"early 10\n");
    world.run(MS);
    world.capture(&syn, b"early 10\n");
    client.seq += 1;
    client.ack = Seq(90_000);
    client.acks(&mut world);
    client.sends(&mut world, b"early 10\n");
    client.asks(&mut world, "more", 10);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "early 10\nmore 10\n");
    world.assert_delivered_but(Drop::Duplicate, 18);
}

/// Data in a SYN whose client never speaks again ends with the session.
#[test]
fn a_syn_with_data_and_nothing_after_it_is_not_kept_for_ever() {
    let mut config = config();
    config.times.idle_us = 5 * SECOND;
    let mut world = World::with(config, TargetOptions::default());
    let client = Client::new(1);
    world.capture(&client.segment(flag::SYN), b"early 10\n");
    world.run(30 * SECOND);
    assert_eq!(world.table.tally().open, 0);
    world.assert_delivered_but(Drop::TimedOut, 9);
}

/// Super-frames beyond 64 KiB, both ways (BIG TCP): captured ones are cut, returned ones count whole.
#[test]
fn segments_beyond_64_kib() {
    let mut config = config();
    (config.limits.chunks, config.limits.held_per_session) = (4_096, 3 << 20);
    let mut world = World::with(config, TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    let mut body: Vec<u8> = (0..500_000u32).map(|i| 32 + (i % 90) as u8).collect();
    body.extend_from_slice(b" 400000\n");
    client.sends(&mut world, &body);
    world.run(SECOND);
    assert_eq!((world.peer().largest, world.peer().read.len()), (1448, body.len()));
    client.reads(400_000);
    client.asks(&mut world, "next", 10);
    world.run(SECOND);
    assert_eq!(world.peer().lines, 2);
    assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
    world.assert_all_delivered();
}

/// RFC 1122, section 4.2.3.6: probes of the client are no data, with a byte and without; a byte counts as a duplicate.
#[test]
fn keep_alive_probes_of_the_client_are_no_data() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    world.run(SECOND);
    let mark = world.sent.len();
    for bytes in [&b""[..], b"\0", b"?"] {
        let mut probe = client.segment(flag::ACK);
        probe.tcp.seq = probe.tcp.seq - 1;
        world.capture(&probe, bytes);
        world.run(10 * SECOND);
    }
    assert_eq!(world.sent.len(), mark, "the target sees none of it");
    assert_eq!(world.count(Count::KeepAlives), 3);
    client.asks(&mut world, "r1", 100);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "r0 100\nr1 100\n");
    world.assert_delivered_but(Drop::Duplicate, 2);
    // One that stands beyond a request the capture has missed is none either.
    client.sends_unseen(b"r2 100\n");
    client.reads(100);
    let mut probe = client.segment(flag::ACK);
    probe.tcp.seq = probe.tcp.seq - 1;
    world.capture(&probe, b"\0");
    world.run(SECOND);
    client.asks(&mut world, "r3", 100);
    client.acks(&mut world);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "r0 100\nr1 100\nr3 100\n");
    assert_eq!((world.peers.len(), world.count(Count::Missed)), (1, 7));
    world.assert_delivered_but(Drop::Duplicate, 3);
}

/// A probe of a flow older than the capture begins no session.
#[test]
fn a_flow_is_not_joined_at_a_keep_alive_probe() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.seq += 5_000;
    client.ack = Seq(40_000);
    client.acks(&mut world);
    client.reads(300);
    let mut probe = client.segment(flag::ACK);
    probe.tcp.seq = probe.tcp.seq - 1;
    world.capture(&probe, b"\0");
    assert!(world.sent.is_empty());
    client.asks(&mut world, "r1", 100);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "r1 100\n");
    world.assert_delivered_but(Drop::JoinedMidturn, 1);
}
