//! ICMP errors: the path's MTU, and targets that routers cannot reach. RFC 1191, 8201, 5927, 4821.

use flow::Drop;
use session::{Count, TargetConfig};

use crate::kit::*;

/// A router that drops what is larger than its MTU: it says so in the way of the tests' caller.
fn router(world: &mut World, headers: u32, mtu: u32) {
    world.to_target =
        Box::new(move |_, head| if head.payload_len + headers > mtu { Fate::Lose } else { Fate::Pass });
}

fn upload(config: session::Config, options: TargetOptions, at: &str, n: usize) -> (World, Client) {
    let mut world = World::with(config, options);
    let mut client = Client::new(1);
    if at.starts_with('[') {
        client.at = endpoint(at);
    }
    client.opens(&mut world);
    world.run(MS);
    client.sends(&mut world, &vec![5; n]);
    (world, client)
}

/// RFC 1191, section 6: each error lowers the size, what is outstanding goes again in smaller pieces, no timer is needed.
#[test]
fn a_path_that_shrinks_twice_under_way() {
    let mut world = World::new();
    router(&mut world, 52, 1_280);
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    client.sends(&mut world, &[5; 20_000]);
    let first = world.data_sent()[0].head.tcp.seq;
    world.drawn_by(world.icmp(3, 4, first, 1_280));
    world.run(5 * MS);
    assert_eq!(world.peer().read.len(), 20_000);
    router(&mut world, 52, 576);
    client.sends(&mut world, &[6; 20_000]);
    let second = world.data_sent().last().unwrap().head.tcp.seq;
    world.drawn_by(world.icmp(3, 4, second, 576));
    world.run(20 * MS);
    assert_eq!(world.peer().read.len(), 40_000);
    let last = world.data_sent().last().unwrap().head;
    assert_eq!(last.mss, 576 - 52);
    assert_eq!((world.count(Count::PathShrank), world.count(Count::TimeoutRetransmitted)), (2, 2));
    world.assert_all_delivered();
}

/// Ten segments under way draw ten errors; the connection shrinks once.
#[test]
fn an_error_for_each_segment_shrinks_once() {
    let (mut world, _) = upload(config(), TargetOptions::default(), "", 14_480);
    let seqs: Vec<_> = (0..10).map(|i| world.data_sent()[0].head.tcp.seq + i * 1448).collect();
    for seq in seqs {
        world.drawn_by(world.icmp(3, 4, seq, 1_400));
    }
    assert_eq!(world.count(Count::PathShrank), 1);
    assert_eq!(world.data_sent().last().unwrap().head.mss, 1_348);
}

/// RFC 1191, section 5 and 7.1: a router from before it says 0; the next plateau is tried.
#[test]
fn a_router_that_does_not_say_how_much_fits() {
    let (mut world, _) = upload(config(), TargetOptions::default(), "", 5_000);
    let seq = world.data_sent()[0].head.tcp.seq;
    for mss in [1_440, 954, 456, 244, 76, 76] {
        world.drawn_by(world.icmp(3, 4, seq, 0));
        assert_eq!(world.data_sent().last().unwrap().head.mss, mss);
    }
}

/// No error can make a segment smaller than Linux' least over IPv4, nor an IPv6 packet smaller than every link carries
/// (RFC 8201, section 4).
#[test]
fn lies_stop_at_the_floor() {
    for (target, at, floor) in
        [(TARGET, "", 88 - 12), ("[2001:db8::2]:80", "[2001:db8:9::1]:41000", 1_220 - 12)]
    {
        let mut config = config();
        config.targets = vec![TargetConfig { endpoint: endpoint(target), mtu: 1500 }];
        let (mut world, _) = upload(config, TargetOptions::default(), at, 3_000);
        let seq = world.data_sent()[0].head.tcp.seq;
        let (kind, code) = if at.is_empty() { (3, 4) } else { (2, 0) };
        for mtu in [70, 1, 68, 40] {
            world.drawn_by(world.icmp(kind, code, seq, mtu));
        }
        assert_eq!(world.data_sent().last().unwrap().head.mss, floor);
        // A size above the present one is no news.
        world.drawn_by(world.icmp(kind, code, seq, 9_000));
        assert_eq!(world.data_sent().last().unwrap().head.mss, floor);
        world.run(SECOND);
        assert_eq!(world.peer().read.len(), 3_000);
        assert_eq!(world.peer().largest, 1_448.min(world.peer().largest));
    }
}

/// RFC 5927, section 4: only an error that quotes what is outstanding is about us.
#[test]
fn errors_about_nothing_outstanding_are_not_believed() {
    let (mut world, _) = upload(config(), TargetOptions::default(), "", 3_000);
    let first = world.data_sent()[0].head.tcp.seq;
    for seq in [first - 1, first + 3_000, first + (1 << 30)] {
        assert!(world.drawn_by(world.icmp(3, 4, seq, 576)).is_empty());
    }
    world.run(MS);
    world.drawn_by(world.icmp(3, 4, first, 576));
    assert_eq!((world.count(Count::IcmpRefused), world.count(Count::PathShrank)), (4, 0));
}

/// RFC 1122, section 4.2.3.9 and Linux: before the connection stands, unreachable is a refusal. Not for another number.
#[test]
fn unreachable_in_syn_sent_is_a_refusal() {
    for (target, at, kind, code) in [
        (TARGET, "", 3, 1),
        (TARGET, "", 3, 3),
        (TARGET, "", 3, 13),
        ("[2001:db8::2]:80", "[2001:db8:9::1]:41000", 1, 4),
    ] {
        let mut config = config();
        config.targets = vec![TargetConfig { endpoint: endpoint(target), mtu: 1500 }];
        let mut world = World::with(config, TargetOptions { dead: true, ..TargetOptions::default() });
        let mut client = Client::new(1);
        if !at.is_empty() {
            client.at = endpoint(at);
        }
        client.opens(&mut world);
        client.sends(&mut world, b"one 10\n");
        let syn = world.sent[0].head.tcp.seq;
        world.drawn_by(world.icmp(kind, code, syn + 1, 0));
        assert_eq!(world.dropped(Drop::Refused), 0);
        world.drawn_by(world.icmp(kind, code, syn, 0));
        world.assert_delivered_but(Drop::Refused, 7);
        assert_eq!(world.sent.len(), 1, "nothing to reset");
        world.options.dead = false;
        client.reads(10);
        client.asks(&mut world, "two", 10);
        world.run(SECOND);
        assert_eq!(world.peer().text(), "two 10\n");
    }
}

/// RFC 5927, section 5.2: in an established connection even a hard error is soft.
#[test]
fn hard_errors_do_not_end_an_established_connection() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 10);
    world.options.dead = true;
    client.sends(&mut world, b"r1 10\n");
    let seq = world.data_sent().last().unwrap().head.tcp.seq;
    for code in [0, 1, 2, 3, 13] {
        world.drawn_by(world.icmp(3, code, seq, 0));
    }
    for (kind, code) in [(11, 0), (12, 0), (4, 0), (5, 1)] {
        world.drawn_by(world.icmp(kind, code, seq, 0));
    }
    world.options.dead = false;
    world.run(SECOND);
    assert_eq!((world.peers.len(), world.peer().text().as_str()), (1, "r0 10\nr1 10\n"));
    world.assert_all_delivered();
}

/// RFC 4821, section 7.7: a router that drops large packets and tells nobody (packetdrill: mtu_probe).
#[test]
fn a_black_hole_for_large_packets_is_found_by_the_timer() {
    for mtu in [1_300, 600] {
        let mut world = World::new();
        router(&mut world, 52, mtu);
        let mut client = Client::new(1);
        client.opens(&mut world);
        client.asks(&mut world, "small", 10);
        client.sends(&mut world, &[b'x'; 10_000]);
        world.run(30 * SECOND);
        assert_eq!(world.peer().read.len(), 9 + 10_000, "mtu {mtu}");
        assert!(world.count(Count::SizeSuspected) >= 1);
        world.assert_all_delivered();
    }
}

/// A target that is away for a while is no black hole for small requests.
#[test]
fn small_segments_are_never_suspected() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "small", 10);
    world.options.dead = true;
    client.asks(&mut world, "small too", 10);
    world.run(20 * SECOND);
    world.options.dead = false;
    world.run(10 * SECOND);
    assert_eq!(world.peer().lines, 2);
    assert_eq!(world.count(Count::SizeSuspected), 0);
}
