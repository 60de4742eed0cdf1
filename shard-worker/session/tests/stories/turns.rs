//! When turns go out: the table of REPLAY, "Turns", end to end.

use flow::record::flag;
use session::{Config, Count, Rtt};

use crate::kit::*;

fn lines(delay_us: u64, writes: u32) -> TargetOptions {
    TargetOptions { app: App::Lines { writes, delay_us, close_after: 0 }, ..TargetOptions::default() }
}

#[test]
fn a_closed_loop_waits_for_a_slower_target() {
    let mut world = World::with(config(), lines(20 * MS, 1));
    let mut client = Client::new(1);
    client.opens(&mut world);
    for i in 0..10 {
        client.asks(&mut world, &format!("request {i}"), 500);
    }
    // Ten requests were captured within 5 ms; each goes out when the one before is answered.
    assert_eq!(world.data_sent().len(), 1);
    world.run(SECOND);
    let times: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
    assert_eq!(times.len(), 10);
    assert!(times.windows(2).all(|two| two[1] - two[0] >= 20 * MS && two[1] - two[0] < 22 * MS), "{times:?}");
    assert_eq!(world.peer().read, client.written);
    assert_eq!(world.count(Count::TurnsSent), 10);
    assert_eq!(world.count(Count::TurnsAnswered), 10);
    assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
    world.assert_all_delivered();
}

/// How soon answers are seen is what such a session goes by; not where the target is slow, nor where a FIN alone is held back.
#[test]
fn turns_that_hold_back_others_for_want_of_an_answer_are_counted() {
    let awaited = |delay_us, requests: u64, closes| {
        let mut world = World::with(config(), lines(delay_us, 1));
        let mut client = Client::new(1);
        client.opens(&mut world);
        for i in 0..requests {
            client.asks(&mut world, &format!("request {i}"), 500);
        }
        if closes {
            client.closes(&mut world);
        }
        world.run(SECOND);
        assert_eq!(world.count(Count::TurnsAnswered), requests);
        world.count(Count::TurnsAwaited)
    };
    assert!((6..=9).contains(&awaited(3 * MS, 10, false)), "all but the last, and those of the first 5 ms");
    assert_eq!(awaited(20 * MS, 10, false), 0);
    assert_eq!(awaited(3 * MS, 2, true), 0);
}

/// How long intercept let a header rest is nothing that the target took.
#[test]
fn a_first_byte_is_as_late_as_the_target_made_it() {
    let after = |age_us: u64| {
        let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
        let mut client = Client::new(1);
        client.opens(&mut world);
        client.sends(&mut world, b"r0\n");
        world.run(10 * MS);
        let mut answer = world.in_step();
        (answer.payload_len, answer.age_ns) = (700, age_us * 1_000);
        answer.tcp.flags |= flag::PSH;
        world.drawn_by(answer);
        assert_eq!(world.count(Count::TurnsAnswered), 1);
        world.table.tally().first_byte.max_us()
    };
    let whole = after(0);
    assert!(whole >= 9 * MS, "{whole}");
    assert_eq!([after(2 * MS), after(whole), after(SECOND)], [whole - 2 * MS, 0, 0]);
}

#[test]
fn an_answer_in_three_writes_is_waited_for() {
    let mut world = World::with(config(), lines(MS, 3));
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..20 {
        client.asks(&mut world, "r", 1000);
    }
    world.run(SECOND);
    assert_eq!(world.peer().lines, 20);
    assert_eq!(world.count(Count::TurnsGuessed), 0);
}

#[test]
fn in_ping_pong_acknowledgements_ride_on_requests() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..50 {
        client.asks(&mut world, "r", 500);
        world.run(5 * MS);
    }
    world.run(100 * MS);
    assert_eq!(world.peer().lines, 50);
    assert!(world.count(Count::PureAcks) < 8, "{}", world.count(Count::PureAcks));
    assert_eq!(world.peer().snd_una, world.peer().snd_nxt, "the last one is acknowledged alone");
}

/// Row 6 waits for silence, and a target with Nagle is silent until it knows that we have the start of its answer.
#[test]
fn silence_counts_from_our_acknowledgement() {
    for (rtt, pause) in [(Rtt::None, 10 * MS), (Rtt::Fixed(20_000), 15 * MS), (Rtt::Fixed(20_000), 25 * MS)] {
        let mut world = World::with(
            Config { rtt, ..config() },
            TargetOptions { nagle: true, ..TargetOptions::default() },
        );
        let mut client = Client::new(1);
        client.opens(&mut world);
        for _ in 0..10 {
            client.asks(&mut world, "r", 500);
            world.run(30 * MS);
        }
        world.options.app = App::Lines { writes: 2, delay_us: 100, close_after: 0 };
        for _ in 0..20 {
            client.asks(&mut world, "r", 500);
            world.run(pause);
        }
        world.run(SECOND);
        assert_eq!(world.peer().lines, 30);
        assert_eq!(world.count(Count::TurnsGuessed), 0, "{rtt:?}, a turn each {pause} us");
    }
}

#[test]
fn a_target_with_nagle_is_acknowledged_at_once() {
    let mut world = World::with(config(), TargetOptions { nagle: true, ..lines(100, 3) });
    let mut client = Client::new(1);
    client.opens(&mut world);
    let start = world.now_us;
    for _ in 0..50 {
        client.asks(&mut world, "r", 500);
    }
    while world.peer().lines < 50 {
        world.run(MS);
        assert!(world.now_us - start < 200 * MS, "{} turns", world.peer().lines);
    }
    world.run(50 * MS);
    assert_eq!(world.count(Count::TurnsGuessed), 0);
    // And when its answers come whole for a while and then in parts again, one pause is all it costs.
    world.options.app = LINES;
    for _ in 0..20 {
        client.asks(&mut world, "r", 500);
        world.run(MS);
    }
    world.options.app = App::Lines { writes: 2, delay_us: 100, close_after: 0 };
    let start = world.now_us;
    for _ in 0..20 {
        client.asks(&mut world, "r", 500);
    }
    while world.peer().lines < 90 {
        world.run(MS);
        assert!(world.now_us - start < 80 * MS, "{} turns", world.peer().lines);
    }
}

#[test]
fn a_short_connection_takes_three_packets() {
    let options = TargetOptions {
        app: App::Lines { writes: 1, delay_us: 100, close_after: 1 },
        ..TargetOptions::default()
    };
    let mut world = World::with(config(), options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "GET", 500);
    client.ack += 1;
    client.closes(&mut world);
    world.run(SECOND);
    assert!(world.peer().is_closed());
    assert_eq!(world.sent.len(), 3, "SYN, request, FIN");
}

#[test]
fn without_waiting_everything_leaves_as_it_comes() {
    let mut config = config();
    config.wait = false;
    let mut world = World::with(config, lines(20 * MS, 1));
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..10 {
        client.asks(&mut world, "r", 500);
    }
    assert_eq!(world.data_sent().len(), 10);
    world.run(SECOND);
    assert_eq!(world.peer().lines, 10);
    world.assert_all_delivered();
}

/// Opens a connection whose handshake takes so long online.
fn opens_at(world: &mut World, client: &mut Client, rtt_us: u64) {
    client.syn(world);
    world.run(rtt_us);
    client.acks(world);
    world.run(100);
}

/// Sixteen requests under way at any time: each answer read draws one more within microseconds.
fn pipelines(world: &mut World, client: &mut Client) {
    for _ in 0..16 {
        client.sends(world, b"r 100\n");
    }
    for _ in 0..64 {
        client.reads(100);
        client.sends(world, b"r 100\n");
        world.run(20);
    }
    world.run(10 * SECOND);
}

#[test]
fn pipelined_requests_overlap_instead_of_waiting() {
    let mut world = World::with(Config { rtt: Rtt::Measured, ..config() }, lines(MS, 1));
    let mut client = Client::new(1);
    opens_at(&mut world, &mut client, 20 * MS);
    pipelines(&mut world, &mut client);
    assert_eq!(world.peer().lines, 80);
    assert!(world.count(Count::TurnsOverlapped) > 50);
    assert_eq!(world.count(Count::TurnsUnanswered), 0);
    world.assert_all_delivered();
}

/// On a path of 10 µs a cold handshake takes far longer than an answer does: nothing in a closed loop is pipelined for it.
/// Below a millisecond it says nothing; beyond that, once a shorter one was seen from the same address.
#[test]
fn a_cold_handshake_does_not_make_a_closed_loop_a_pipeline() {
    for (cold_us, warm_us, overlapped) in [(300, None, 0), (3 * MS, None, 199), (3 * MS, Some(10), 0)] {
        let mut world = World::with(config(), lines(100, 1));
        let mut other = Client::new(2);
        let mut client = Client::new(1);
        opens_at(&mut world, &mut client, cold_us);
        if let Some(warm_us) = warm_us {
            opens_at(&mut world, &mut other, warm_us);
        }
        for _ in 0..200 {
            client.sends(&mut world, b"r 100\n");
            world.run(60);
            client.reads(100);
        }
        world.run(SECOND);
        assert_eq!(world.count(Count::TurnsOverlapped), overlapped, "{cold_us} us, then {warm_us:?}");
        assert_eq!(world.count(Count::TurnsSent), 200);
        assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
        world.assert_all_delivered();
    }
}

/// Next door a rolling pipeline is not told from a closed loop. No turn leaves before the answers that it had seen online.
#[test]
fn a_pipeline_next_door_is_still_in_order() {
    let mut world = World::with(config(), lines(MS, 1));
    let mut client = Client::new(1);
    opens_at(&mut world, &mut client, 300);
    pipelines(&mut world, &mut client);
    assert_eq!((world.peer().lines, world.peer().read == client.written), (80, true));
    assert_eq!(world.count(Count::TurnsOverlapped) + world.count(Count::TurnsUnanswered), 0);
    assert!(world.count(Count::TurnsGuessed) <= 1, "{}", world.count(Count::TurnsGuessed));
    world.assert_all_delivered();
}

/// What waiting adds to each turn: nothing to one whose gate was open at its capture, else the time from then until the
/// answer before it was there.
#[test]
fn the_added_wait_of_each_turn_is_measured() {
    let mut world = World::with(config(), lines(10 * MS, 1));
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    let mut captured = Vec::new();
    for i in 0..20 {
        captured.push(world.now_us);
        client.asks(&mut world, "r", 500);
        // The first half faster than the target answers, the rest long after it has.
        world.run(if i < 10 { MS } else { 300 * MS });
    }
    world.run(SECOND);
    let sent: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
    let waits: Vec<u64> = sent.iter().zip(&captured).map(|(sent, captured)| sent - captured).collect();
    assert!(waits[0] == 0 && waits[1..=10].iter().all(|&us| us > 8 * MS), "{waits:?}");
    assert!(waits[11..].iter().all(|&us| us == 0), "{waits:?}");
    let measured = &world.table.tally().turn_wait;
    assert_eq!(measured.counts().iter().sum::<u64>(), 20);
    assert_eq!(measured.counts()[0], 10, "those that found their gate open");
    assert_eq!(Some(measured.max_us()), waits.iter().copied().max());
    let bounds = |i| session::Histogram::bucket_bounds(i);
    for (i, &n) in measured.counts().iter().enumerate() {
        let (low, high) = bounds(i);
        let real = waits.iter().filter(|us| (low..=high).contains(us)).count() as u64;
        assert_eq!(n, real, "{low} to {high} us");
    }
}

#[test]
fn a_server_that_speaks_first_is_waited_for() {
    let mut world = World::with(config(), TargetOptions { app: App::Greets(40), ..TargetOptions::default() });
    let mut late = true;
    world.to_us = Box::new(move |_, record| {
        if record.payload_len == 40 && std::mem::take(&mut late) { Fate::Late(300 * MS) } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.reads(40);
    client.asks(&mut world, "EHLO", 60);
    world.run(100 * MS);
    assert!(world.data_sent().is_empty(), "the greeting is not there yet");
    world.run(500 * MS);
    assert_eq!(world.peer().text(), "EHLO 60\n");
    assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
}

#[test]
fn longer_and_shorter_answers_cost_one_guess_and_then_nothing() {
    for by in [10i32, -10] {
        let mut world = World::with(config(), lines(2 * MS, 1));
        let mut client = Client::new(1);
        client.opens(&mut world);
        for _ in 0..50 {
            client.sends(&mut world, format!("r {}\n", 500 + by).as_bytes());
            world.run(400);
            client.reads(500);
        }
        world.run(5 * SECOND);
        assert_eq!(world.peer().lines, 50);
        assert_eq!(world.count(Count::TurnsGuessed), 1, "{by}");
        let times: Vec<u64> = world.data_sent().iter().map(|sent| sent.at_us).collect();
        assert!(times.windows(2).all(|two| two[1] - two[0] >= 2 * MS), "no overtaking");
        world.assert_all_delivered();
    }
}

#[test]
fn random_deviations_never_overtake_uncounted() {
    let mut world = World::with(config(), lines(2 * MS, 3));
    let mut client = Client::new(1);
    client.opens(&mut world);
    let mut x = 12_345u32;
    for i in 0..200u32 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let target = match i % 40 {
            39 => 0,
            _ => 500 + (x >> 16) % 41 - 20,
        };
        client.sends(&mut world, format!("r {target}\n").as_bytes());
        world.run(400);
        client.reads(500);
    }
    world.run(60 * SECOND);
    assert_eq!(world.peer().lines, 200);
    let released = world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered);
    let sent = world.data_sent();
    let early = sent.windows(2).filter(|two| two[1].at_us - two[0].at_us < 2 * MS + 600).count() as u64;
    assert!(early <= released, "{early} left before the whole answer, {released} are counted");
    assert!(world.count(Count::TurnsUnanswered) <= 5);
    world.assert_all_delivered();
}

/// An h2-like upload: 31 segments of 13 bytes, each acknowledging a window update that the target never sends.
#[test]
fn an_upload_that_waits_for_window_updates_becomes_duplex() {
    let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..31 {
        client.sends(&mut world, &[7; 13]);
        client.reads(13);
        world.run(MS);
    }
    world.run(15 * SECOND);
    assert_eq!(world.peer().read.len(), 31 * 13);
    assert_eq!(world.count(Count::TurnsUnanswered), 3);
    assert_eq!(world.count(Count::Duplex), 1);
    world.assert_all_delivered();
}

/// A recovered retransmission carries a newer acknowledgement number than the lost original.
#[test]
fn a_late_copy_does_not_raise_its_gate() {
    let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    let lost = client.segment(flag::ACK | flag::PSH);
    client.sends_unseen(b"first-");
    client.sends(&mut world, b"second-");
    client.sends(&mut world, b"third");
    world.run(5 * MS);
    let mut again = lost;
    again.tcp.ack += 5_000;
    world.capture(&again, b"first-");
    world.run(10 * MS);
    assert_eq!(world.peer().text(), "first-second-third", "nobody waits for 5,000 bytes");
    assert_eq!(world.count(Count::TurnsSent), 1);
    world.assert_all_delivered();
}

#[test]
fn lost_rest_of_an_answer_is_acknowledged_past() {
    let mut world = World::with(config(), lines(MS, 3));
    let mut n = 0;
    world.to_us = Box::new(move |_, record| {
        n += u32::from(record.payload_len > 0);
        if record.payload_len > 0 && n == 2 { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "one", 900);
    client.asks(&mut world, "two", 900);
    world.run(SECOND);
    assert_eq!(world.peer().lines, 2);
    assert_eq!(world.count(Count::ReturnHoles), 300);
    assert_eq!(world.count(Count::TurnsGuessed), 0);
    assert_eq!(world.peer().snd_una, world.peer().snd_nxt);
}

#[test]
fn many_connections_take_their_turns_in_portions() {
    let mut world = World::new();
    let mut elephant = Client::new(0);
    elephant.opens(&mut world);
    world.run(10 * MS);
    let mut mice: Vec<Client> = (1..20).map(Client::new).collect();
    mice.iter_mut().for_each(|mouse| mouse.opens(&mut world));
    world.run(10 * MS);
    let mark = world.sent.len();
    // All of it is ready before the first pump.
    let mut big = elephant.segment(flag::ACK);
    big.time_ns = world.now_us * 1000;
    let bytes = vec![b'x'; 60_000];
    world.table.captured(world.now_us, &big, &bytes, 1_000_000, 1_000);
    for mouse in &mut mice {
        let mut small = mouse.segment(flag::ACK | flag::PSH);
        small.time_ns = world.now_us * 1000;
        world.table.captured(world.now_us, &small, b"squeak 5\n", 1_000_000, 1_000);
    }
    world.pump();
    let after: Vec<usize> = world.sent[mark..].iter().map(|sent| sent.payload.len()).collect();
    assert_eq!(after.iter().filter(|&&n| n == 9).count(), 19);
    let first_mouse = after.iter().position(|&n| n == 9).unwrap();
    assert!(first_mouse <= 4, "{after:?}");
}

/// One answer of five gibibytes, both online and at the target: the next turn leaves when all of it is there, not when its
/// low 32 bits are.
#[test]
fn an_answer_beyond_four_gibibytes() {
    const STEP: u32 = 4 << 20;
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    world.options.dead = true;
    client.sends(&mut world, b"all of it\n");
    let mut answer = world.in_step();
    answer.tcp.ack += 10;
    answer.tcp.flags |= flag::PSH;
    answer.payload_len = STEP;
    for _ in 0..5 << 8 {
        client.reads(STEP);
        client.acks(&mut world);
    }
    client.sends(&mut world, b"next\n");
    for step in 0..5 << 8 {
        assert_eq!(world.data_sent().len(), 1, "after {step} steps");
        world.drawn_by(answer);
        answer.tcp.seq += STEP;
        world.run(MS);
    }
    assert_eq!(world.data_sent().len(), 2);
    assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
    assert_eq!(world.count(Count::ReturnedBytes), 5 << 30);
}
