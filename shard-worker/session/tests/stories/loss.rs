//! Loss, doubling and reordering between us and the target.

use flow::record::flag;
use session::Count;

use crate::kit::*;

fn body(n: u32) -> Vec<u8> {
    (0..n).map(|i| (i % 253) as u8).collect()
}

#[test]
fn one_lost_segment_of_many_is_repaired_without_a_time_out() {
    for sack in [true, false] {
        let mut world = World::with(config(), TargetOptions { sack, ..TargetOptions::default() });
        let mut n = 0;
        world.to_target = Box::new(move |_, head| {
            n += u32::from(head.payload_len > 0);
            if n == 4 && head.payload_len > 0 { Fate::Lose } else { Fate::Pass }
        });
        let mut client = Client::new(1);
        client.opens(&mut world);
        world.run(MS);
        client.sends(&mut world, &body(40_000));
        world.run(100 * MS);
        assert!(world.peer().read == body(40_000), "sack {sack}");
        assert_eq!(world.count(Count::TimeoutRetransmitted), 0);
        world.assert_all_delivered();
    }
}

#[test]
fn two_holes_cost_two_segments_with_sack() {
    let mut world = World::new();
    let mut n = 0;
    world.to_target = Box::new(move |_, head| {
        n += u32::from(head.payload_len > 0);
        if (n == 2 || n == 6) && head.payload_len > 0 { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    client.sends(&mut world, &body(60_000));
    world.run(150 * MS);
    assert!(world.peer().read == body(60_000));
    let again: usize =
        world.sent.iter().filter(|sent| sent.head.bits & 2 != 0).map(|sent| sent.payload.len()).sum();
    assert!(again <= 4 * 1448, "{again}");
}

#[test]
fn lost_last_segments_are_probed_for() {
    let mut world = World::new();
    let mut n = 0;
    world.to_target = Box::new(move |_, head| {
        n += u32::from(head.payload_len > 0);
        if head.payload_len > 0 && (n == 3 || n == 4) { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    client.sends(&mut world, &body(5_000));
    world.run(60 * MS);
    assert!(world.peer().read == body(5_000));
    assert_eq!((world.count(Count::TailProbes), world.count(Count::TimeoutRetransmitted)), (1, 0));
}

#[test]
fn a_lost_single_segment_waits_for_the_timer_only() {
    let mut world = World::new();
    let mut lose = true;
    world.to_target =
        Box::new(
            move |_, head| {
                if head.payload_len > 0 && std::mem::take(&mut lose) { Fate::Lose } else { Fate::Pass }
            },
        );
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"GET 10\n");
    world.run(150 * MS);
    assert!(world.peer().read.is_empty());
    world.run(100 * MS);
    assert_eq!(world.peer().text(), "GET 10\n");
    assert_eq!(world.count(Count::TimeoutRetransmitted), 1);
    world.assert_all_delivered();
}

#[test]
fn a_lost_acknowledgement_is_healed_by_a_repeat() {
    let mut world = World::with(config(), TargetOptions { app: App::Silent, ..TargetOptions::default() });
    let mut n = 0;
    world.to_us = Box::new(move |_, _| {
        n += 1;
        if n == 2 { Fate::Lose } else { Fate::Pass }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.sends(&mut world, b"GET 10\n");
    world.run(SECOND);
    assert_eq!(world.peer().text(), "GET 10\n");
    world.assert_all_delivered();
}

#[test]
fn a_lost_fin_is_repeated_on_both_sides() {
    for ours in [true, false] {
        let mut world = World::new();
        let mut lose = true;
        let mut at = move |fin: bool| if fin && std::mem::take(&mut lose) { Fate::Lose } else { Fate::Pass };
        if ours {
            world.to_target = Box::new(move |_, head| at(head.tcp.has(flag::FIN)));
        } else {
            world.to_us = Box::new(move |_, record| at(record.tcp.has(flag::FIN)));
        }
        let mut client = Client::new(1);
        client.opens(&mut world);
        client.asks(&mut world, "GET", 100);
        client.closes(&mut world);
        world.run(2 * SECOND);
        assert!(world.peer().is_closed(), "ours {ours}");
        assert_eq!(world.count(Count::SessionsCompleted), 1);
    }
}

#[test]
fn doubled_and_late_packets_change_nothing() {
    let mut world = World::new();
    let mut n = 0;
    world.to_target = Box::new(move |_, _| {
        n += 1;
        match n % 5 {
            0 => Fate::Twice,
            1 => Fate::Late(200),
            _ => Fate::Pass,
        }
    });
    let mut m = 0;
    world.to_us = Box::new(move |_, _| {
        m += 1;
        match m % 4 {
            0 => Fate::Twice,
            1 => Fate::Late(150),
            _ => Fate::Pass,
        }
    });
    let mut client = Client::new(1);
    client.opens(&mut world);
    for i in 0..50 {
        client.asks(&mut world, &format!("r{i}"), 300);
    }
    client.closes(&mut world);
    world.run(5 * SECOND);
    assert_eq!(world.peer().read, client.written);
    assert!(world.peer().is_closed());
    world.assert_all_delivered();
}

#[test]
fn a_target_that_is_away_for_two_seconds_is_served_when_it_is_back() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "before", 10);
    world.options.dead = true;
    for i in 0..20 {
        client.asks(&mut world, &format!("during {i}"), 10);
        world.run(100 * MS);
    }
    world.options.dead = false;
    world.run(1_500 * MS);
    assert_eq!(world.peer().read, client.written);
    world.assert_all_delivered();
}

#[test]
fn records_about_nobody_are_only_counted() {
    let mut world = World::new();
    let stray =
        flow::Returned { client: endpoint("198.18.0.9:999"), target: endpoint(TARGET), ..Default::default() };
    world.give_back(stray);
    world.run(MS);
    assert_eq!(world.count(Count::ReturnedUnknown), 1);
    assert!(world.sent.is_empty());
}
