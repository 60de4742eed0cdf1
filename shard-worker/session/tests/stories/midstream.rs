//! Flows that began before the capture.

use flow::record::flag;
use flow::{Drop, Seq};
use session::{Count, Join};

use crate::kit::*;

fn world(join: Join) -> World {
    let mut config = config();
    config.join = join;
    World::with(config, TargetOptions::default())
}

fn old_client(n: u16) -> Client {
    let mut client = Client::new(n);
    client.seq += 123_456;
    client.ack = Seq(777_000);
    client
}

#[test]
fn a_flow_is_joined_where_a_turn_begins() {
    let mut world = world(Join::Boundary);
    let mut client = old_client(1);
    client.sends(&mut world, b"the middle of ");
    client.sends(&mut world, b"a request 100\n");
    assert!(world.sent.is_empty());
    client.reads(100);
    client.asks(&mut world, "next", 100);
    client.asks(&mut world, "and another", 100);
    world.run(SECOND);
    assert!(world.sent[0].is(flag::SYN));
    assert_eq!(world.peer().text(), "next 100\nand another 100\n");
    assert_eq!(world.count(Count::SessionsJoined), 1);
    world.assert_delivered_but(Drop::JoinedMidturn, 28);
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peer().is_closed());
}

#[test]
fn acknowledgements_of_a_long_answer_make_the_next_request_a_boundary() {
    let mut world = world(Join::Boundary);
    let mut client = old_client(1);
    for _ in 0..5 {
        client.acks(&mut world);
        client.reads(20_000);
    }
    client.acks(&mut world);
    assert_eq!(world.table.tally().open, 0, "acknowledgements alone cost no session");
    client.asks(&mut world, "next", 100);
    world.run(100 * MS);
    assert_eq!(world.peer().text(), "next 100\n");
    world.assert_all_delivered();
}

#[test]
fn first_takes_whatever_comes_and_never_nothing() {
    let mut first = world(Join::First);
    let mut client = old_client(1);
    client.sends(&mut first, b"x 10\n");
    first.run(100 * MS);
    assert_eq!(first.peer().text(), "x 10\n");
    let mut never = world(Join::Never);
    let mut client = old_client(1);
    client.sends(&mut never, b"x 10\n");
    client.reads(10);
    client.sends(&mut never, b"x 10\n");
    never.run(100 * MS);
    assert!(never.sent.is_empty());
    never.assert_delivered_but(Drop::NotJoined, 10);
}

#[test]
fn a_joined_flow_waits_for_answers_like_any_other() {
    let mut config = config();
    config.join = Join::First;
    let slow = TargetOptions {
        app: App::Lines { writes: 1, delay_us: 30 * MS, close_after: 0 },
        ..TargetOptions::default()
    };
    let mut world = World::with(config, slow);
    let mut client = old_client(1);
    for _ in 0..4 {
        client.asks(&mut world, "r", 300);
    }
    world.run(SECOND);
    let times: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
    assert_eq!(times.len(), 4);
    assert!(times.windows(2).all(|two| two[1] - two[0] >= 30 * MS));
    assert_eq!(world.count(Count::TurnsGuessed), 0);
}

#[test]
fn many_silent_flows_do_not_fill_the_table() {
    let mut world = world(Join::Boundary);
    for n in 0..500 {
        old_client(n).acks(&mut world);
    }
    assert_eq!(world.table.tally().open, 0);
}
