//! What the answers in a file are used for: the table at the top of `answers`.

use flow::Drop;
use flow::record::flag;
use session::{Count, Histogram};

use crate::kit::*;

/// A table that is told of answers. Holes are judged three seconds of the file behind them.
fn world(options: TargetOptions) -> World {
    let mut config = config();
    config.file_us = Some(3 * SECOND);
    World::with(config, options)
}

/// The file goes on: packets of another client, for so long.
fn goes_on(world: &mut World, other: &mut Client, us: u64) {
    for _ in 0..us / (10 * MS) {
        other.acks(world);
        world.run(10 * MS);
    }
}

/// Next door no pause tells a pipeline; the answers in between do.
#[test]
fn turns_with_an_answer_in_between_are_two_and_others_are_a_pipeline() {
    for (pipelined, overlapped) in [(false, 0), (true, 2)] {
        let mut world = world(TargetOptions::default());
        let mut client = Client::new(1);
        client.opens_in_a_file(&mut world);
        client.sends(&mut world, b"r0 100\n");
        if pipelined {
            client.sends(&mut world, b"r1 100\n");
        }
        for i in 0..2 {
            // The server answers what came first. In a pipeline one more request has come before the client reads that.
            client.is_answered(&mut world, 100);
            if pipelined {
                client.sends(&mut world, format!("p{i} 100\n").as_bytes());
            }
            world.run(100);
            client.reads(100);
            client.sends(&mut world, format!("q{i} 100\n").as_bytes());
        }
        world.run(SECOND);
        assert_eq!(world.count(Count::TurnsOverlapped), overlapped);
        assert_eq!(world.peer().read, client.written);
        world.assert_all_delivered();
    }
}

#[test]
fn the_online_services_latency_stands_beside_the_targets() {
    let mut world = world(TargetOptions::default());
    let mut client = Client::new(1);
    client.opens_in_a_file(&mut world);
    for _ in 0..10 {
        client.sends(&mut world, b"r 100\n");
        world.run(5 * MS);
        client.is_answered(&mut world, 100);
        world.run(5 * MS);
        client.reads(100);
    }
    let tally = world.table.tally();
    let p50 = |of: &Histogram| Histogram::quantile(of.counts(), 0.5);
    assert!((5 * MS..6 * MS).contains(&p50(&tally.online_first_byte)), "{}", p50(&tally.online_first_byte));
    assert!(p50(&tally.first_byte) < MS, "{}", p50(&tally.first_byte));
    assert_eq!(tally.online_first_byte.counts().iter().sum::<u64>(), 10);
    assert!(tally.answered_us > 0 && world.count(Count::OnlineAnswers) == 11);
}

/// Half of a request is missing and its answer is there: nobody will send that half again.
#[test]
fn a_hole_that_the_server_has_not_is_given_up_soon() {
    let mut world = world(TargetOptions::default());
    let (mut client, mut other) = (Client::new(1), Client::new(2));
    other.opens_in_a_file(&mut world);
    client.opens_in_a_file(&mut world);
    client.sends_unseen(b"half of ");
    client.sends(&mut world, b"a request 100\n");
    goes_on(&mut world, &mut other, 500 * MS);
    assert_eq!(world.count(Count::Holes), 0, "the client may send it again");
    client.is_answered(&mut world, 100);
    goes_on(&mut world, &mut other, 100 * MS);
    assert_eq!((world.count(Count::Holes), world.count(Count::HolesOfCapture)), (1, 1));
    client.reads(100);
    client.asks(&mut world, "next", 100);
    world.run(SECOND);
    assert_eq!(world.peer().text(), "next 100\n");
    world.assert_delivered_but(Drop::Gap, 14);
}

/// The segment was lost on the client's way, and comes again after more than the usual three seconds.
#[test]
fn a_hole_that_the_server_has_too_is_waited_for() {
    let mut world = world(TargetOptions::default());
    let (mut client, mut other) = (Client::new(1), Client::new(2));
    other.opens_in_a_file(&mut world);
    client.opens_in_a_file(&mut world);
    let lost = client.segment(flag::ACK);
    let behind = client.answer(flag::ACK, 0);
    client.sends_unseen(b"half of ");
    client.sends(&mut world, b"a request 100\n");
    world.capture(&behind, &[]);
    goes_on(&mut world, &mut other, 6 * SECOND);
    world.capture(&lost, b"half of ");
    world.run(SECOND);
    assert_eq!(world.peer().text(), "half of a request 100\n");
    assert_eq!(world.count(Count::Holes), 0);
    world.assert_all_delivered();
}

/// What is missing is as long as whole segments, as if it were the start of the next request; the server had answered it.
#[test]
fn a_hole_that_ends_with_an_answer_is_made_of_whole_turns() {
    for (answered, gap) in [(true, 0), (false, 9)] {
        let mut world = world(TargetOptions::default());
        let mut client = Client::new(1);
        client.opens_in_a_file(&mut world);
        client.asks(&mut world, "r0", 100);
        client.sends_unseen(&[b'x'; 1460]);
        if answered {
            client.is_answered(&mut world, 100);
        }
        client.reads(100);
        client.asks(&mut world, "next", 100);
        world.run(3 * SECOND);
        assert_eq!(world.dropped(Drop::Gap), gap);
        assert_eq!(world.peer().text().ends_with("next 100\n"), answered, "{}", world.peer().text());
    }
}

/// The server speaks first, and the client's first packets were missed.
#[test]
fn a_greeting_is_waited_for_though_nobody_saw_it_acknowledged() {
    let mut world = world(TargetOptions { app: App::Greets(100), ..TargetOptions::default() });
    world.to_us = Box::new(|_, record| if record.payload_len > 0 { Fate::Late(20 * MS) } else { Fate::Pass });
    let mut client = Client::new(1);
    client.syn(&mut world);
    let answer = client.answer(flag::SYN | flag::ACK, 0);
    world.capture(&answer, &[]);
    client.reads(100);
    let began_us = world.now_us;
    client.sends(&mut world, b"login 10\n");
    world.run(SECOND);
    let sent_us = world.data_sent()[0].at_us - began_us;
    assert!((20 * MS..25 * MS).contains(&sent_us), "{sent_us}");
    assert_eq!(world.count(Count::TurnsGuessed), 0);
}

#[test]
fn a_file_that_begins_with_an_answer_is_joined_at_the_request_behind_it() {
    for seen in [true, false] {
        let mut world = world(TargetOptions::default());
        let mut client = Client::new(1);
        (client.ack, client.server_seq) = (flow::Seq(777_000), flow::Seq(777_000));
        if seen {
            client.is_answered(&mut world, 100);
        }
        client.reads(100);
        client.asks(&mut world, "first", 100);
        client.asks(&mut world, "second", 100);
        world.run(SECOND);
        assert_eq!(world.peer().text(), if seen { "first 100\nsecond 100\n" } else { "second 100\n" });
    }
}

/// At the end of a file no later request says how long the last answer is.
#[test]
fn the_last_answer_is_in_when_it_is_as_long_as_online() {
    for (online, at_us) in [(Some(300), 10 * MS), (Some(310), 20 * MS), (None, 20 * MS)] {
        let app = App::Lines { writes: 3, delay_us: 10 * MS, close_after: 0 };
        let mut world = world(TargetOptions { app, ..TargetOptions::default() });
        let mut client = Client::new(1);
        match online {
            Some(_) => client.opens_in_a_file(&mut world),
            None => client.opens(&mut world),
        }
        client.sends(&mut world, b"r 300\n");
        online.into_iter().for_each(|len| client.is_answered(&mut world, len));
        let began_us = world.now_us;
        while !world.table.has_last_answers(world.now_us) {
            world.run(MS);
        }
        let took_us = world.now_us - began_us;
        assert!((at_us..at_us + 5 * MS).contains(&took_us), "{online:?}: {took_us}");
        assert_eq!(world.table.tally().first_byte.counts().iter().sum::<u64>(), 1);
    }
}

/// A target that never answers holds the end up for a second.
#[test]
fn an_answer_that_does_not_come_is_not_waited_for_long() {
    let mut world = world(TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens_in_a_file(&mut world);
    client.sends(&mut world, b"r 300\n");
    client.is_answered(&mut world, 300);
    world.run(900 * MS);
    assert!(!world.table.has_last_answers(world.now_us));
    world.run(200 * MS);
    assert!(world.table.has_last_answers(world.now_us));
}
