//! Where a replay can be repeated, segments end where the client's writes ended, whoever was faster, and sequence numbers come
//! from the client's.

use flow::Seq;
use flow::record::flag;
use session::{Clients, Config, Count};

use crate::kit::*;

fn repeatable() -> Config {
    Config { repeatable: true, ..config() }
}

/// Captures a write in segments of `size` bytes, one each `pause_us`; only the last has PSH.
fn writes(world: &mut World, client: &mut Client, bytes: &[u8], size: usize, pause_us: u64) {
    let last = bytes.len().div_ceil(size) - 1;
    for (i, part) in bytes.chunks(size).enumerate() {
        let push = if i == last { flag::PSH } else { 0 };
        world.capture(&client.segment(flag::ACK | push), part);
        client.seq += part.len() as u32;
        world.run(pause_us);
    }
}

/// Two uploads on one connection, each a head and a body.
fn uploads(size: usize, pause_us: u64) -> Vec<(Seq, u32, bool)> {
    let mut world = World::with(repeatable(), TargetOptions::default());
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..2 {
        writes(&mut world, &mut client, &[b'h'; 120], size, pause_us);
        let mut body = vec![b'b'; 40_000];
        body.extend_from_slice(b" 100\n");
        writes(&mut world, &mut client, &body, size, pause_us);
        world.run(400);
        client.reads(100);
        client.acks(&mut world);
    }
    client.closes(&mut world);
    world.run(SECOND);
    assert_eq!(world.count(Count::Retransmitted), 0);
    assert_eq!(world.peer().read.len(), 2 * 40_125);
    assert!(world.peer().is_closed());
    world.assert_all_delivered();
    let super_frames = world.data_sent().iter().any(|sent| sent.payload.len() >= 4 * 1448);
    assert!(super_frames || size < 65_000, "whole segments of a write leave together");
    world.segments_sent()
}

#[test]
fn segments_end_where_writes_did_at_any_pace_and_however_they_were_captured() {
    let first = uploads(65_000, 0);
    let one = [vec![(120, true)], vec![(1448, false); 27], vec![(909, true)]].concat();
    let told: Vec<_> = first.iter().map(|(_, len, push)| (*len, *push)).collect();
    assert_eq!(told, one.repeat(2));
    for (size, pause_us) in [(65_000, 400), (1448, 0), (1448, 40), (1448, 700), (1000, 0), (1000, 90)] {
        assert_eq!(uploads(size, pause_us), first, "segments of {size} each {pause_us} us");
    }
}

#[test]
fn what_is_never_pushed_leaves_when_the_client_does_something_else_or_nothing_more() {
    for silent in [false, true] {
        let mut world = World::with(repeatable(), TargetOptions::default());
        let mut client = Client::new(1);
        client.opens(&mut world);
        world.capture(&client.segment(flag::ACK), b"r0 100\n");
        client.seq += 7;
        world.run(150 * MS);
        assert!(world.data_sent().is_empty(), "more of it may come");
        if !silent {
            client.acks(&mut world);
        }
        world.run(if silent { 60 * MS } else { MS });
        assert_eq!(world.peer().text(), "r0 100\n", "silent: {silent}");
        world.assert_all_delivered();
    }
}

/// Three requests; the one in the middle is two writes, of whose second the capture missed a part.
fn around_a_hole(options: TargetOptions) -> World {
    let mut world = World::with(repeatable(), options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 100);
    client.sends(&mut world, b"head ");
    client.sends(&mut world, b"bo");
    client.sends_unseen(b"d");
    client.sends(&mut world, b"y 100\n");
    client.reads(100);
    client.asks(&mut world, "r2", 100);
    client.closes(&mut world);
    world.run(3 * SECOND);
    world
}

#[test]
fn a_request_of_several_writes_with_a_hole_is_dropped_whole_before_it_is_sent() {
    let slow = TargetOptions {
        app: App::Lines { writes: 1, delay_us: 300 * MS, close_after: 0 },
        ..TargetOptions::default()
    };
    let world = around_a_hole(slow);
    assert_eq!(world.peer().text(), "r0 100\nr2 100\n");
    assert_eq!((world.count(Count::Missed), world.count(Count::GapReconnects)), (1, 0));
    world.assert_delivered_but(flow::Drop::Gap, 13);
}

#[test]
fn one_that_was_sent_in_part_is_broken_off() {
    let world = around_a_hole(TargetOptions::default());
    assert_eq!(world.peer().text(), "r2 100\n", "on a connection of its own");
    assert_eq!((world.count(Count::Missed), world.count(Count::GapReconnects)), (1, 1));
}

/// First numbers on the wire of two connections of one four-tuple, `pause_us` after the other; the clock says `now_us` at first.
fn first_numbers(now_us: u64, pause_us: u64) -> Vec<Seq> {
    let mut world = World::with(Config { clients: Clients::Keep, ..repeatable() }, TargetOptions::default());
    world.run(now_us);
    for client in [Client::new(1), Client::starting_at(1, Client::new(1).isn.0 + 50_000_000)].iter_mut() {
        client.opens(&mut world);
        client.asks(&mut world, "r0", 100);
        client.closes(&mut world);
        world.run(pause_us);
    }
    world.assert_all_delivered();
    world.sent.iter().filter(|sent| sent.head.tcp.has(flag::SYN)).map(|sent| sent.head.tcp.seq).collect()
}

/// Without a clock the target would tell them apart only by what we remember of the first, and that may be forgotten.
#[test]
fn a_four_tuple_that_comes_back_moves_on_as_its_client_did() {
    let first = first_numbers(0, 100 * MS);
    assert_eq!(first.len(), 2);
    assert_eq!(first[1].since(first[0]), 50_000_000);
    assert_eq!(first_numbers(7 * SECOND, 3 * SECOND), first, "whenever it is");
}
