//! Sizes and windows.

use flow::Seq;
use flow::record::kind;
use session::Count;

use crate::kit::*;

#[test]
fn a_super_frame_leaves_as_super_frames_and_is_cut_to_the_mss() {
    for (mss, timestamps, want) in
        [(Some(1460), true, 1448), (Some(536), false, 536), (None, true, 524), (Some(9000), true, 1448)]
    {
        let mut world = World::with(config(), TargetOptions { mss, timestamps, ..TargetOptions::default() });
        let mut client = Client::new(1);
        client.opens(&mut world);
        world.run(10 * MS);
        let body: Vec<u8> = (0..65_000u32).map(|i| (i % 251) as u8).collect();
        client.sends(&mut world, &body);
        world.run(SECOND);
        assert_eq!(world.peer().read, body);
        assert_eq!(world.peer().largest, want);
        assert!(world.data_sent().iter().any(|sent| sent.payload.len() >= 4 * want));
        world.assert_all_delivered();
    }
}

/// Each frame to the target costs an acknowledgement that comes back through all processes.
#[test]
fn where_windows_are_open_bytes_leave_in_the_longest_super_frames_that_devices_cut() {
    let mut config = config();
    config.limits.held_per_session = 1 << 20;
    let mut world = World::with(config, TargetOptions { buffer: 1 << 20, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    client.sends(&mut world, &[1; 300_000]);
    world.run(SECOND);
    let mark = world.data_sent().len();
    client.sends(&mut world, &[2; 200_000]);
    world.run(SECOND);
    let lens: Vec<_> = world.data_sent()[mark..].iter().map(|sent| sent.payload.len()).collect();
    assert_eq!(lens, [45 * 1448, 45 * 1448, 45 * 1448, 200_000 - 3 * 45 * 1448]);
    world.assert_all_delivered();
}

#[test]
fn slow_start_begins_with_ten_segments() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    client.sends(&mut world, &[1; 60_000]);
    let first: usize = world.data_sent().iter().map(|sent| sent.payload.len()).sum();
    assert_eq!(first, 10 * 1448);
    world.run(SECOND);
    assert_eq!(world.peer().read.len(), 60_000);
}

#[test]
fn numbers_wrap_on_all_sides() {
    let mut config = config();
    config.limits.held_per_session = 1 << 20;
    let options = TargetOptions { isn: u32::MAX - 700, ..TargetOptions::default() };
    let mut world = World::with(config, options);
    let mut client = Client::starting_at(1, u32::MAX - 500);
    client.opens(&mut world);
    client.ack = Seq(u32::MAX - 300);
    for i in 0..40 {
        client.asks(&mut world, &format!("{i:060}"), 100);
    }
    client.closes(&mut world);
    world.run(SECOND);
    assert_eq!(world.peer().read, client.written);
    assert!(world.peer().is_closed());
    assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
    world.assert_all_delivered();
}

#[test]
fn a_closed_window_is_probed_and_a_lost_update_does_no_harm() {
    let mut world =
        World::with(config(), TargetOptions { buffer: 8_000, stalled: true, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    client.sends(&mut world, &[1; 30_000]);
    world.run(5 * SECOND);
    assert!(world.count(Count::Delivered) <= 8_000);
    assert!((2..=8).contains(&world.count(Count::Probes)), "{}", world.count(Count::Probes));
    // The application reads again; the update that would say so is lost.
    world.unstall();
    world.run(20 * SECOND);
    assert_eq!(world.peer().read.len(), 30_000);
    world.assert_all_delivered();
}

#[test]
fn a_window_update_is_used_at_once() {
    let mut world =
        World::with(config(), TargetOptions { buffer: 8_000, stalled: true, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    client.sends(&mut world, &[1; 14_000]);
    world.run(50 * MS);
    world.unstall();
    world.window_update();
    world.run(10 * MS);
    assert_eq!(world.peer().read.len(), 14_000);
}

#[test]
fn a_target_without_window_scaling_is_served_within_its_window() {
    let options = TargetOptions { window_scale: None, buffer: 60_000, ..TargetOptions::default() };
    let mut world = World::with(config(), options);
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..5 {
        client.sends(&mut world, &[3; 60_000]);
    }
    world.run(SECOND);
    assert_eq!(world.peer().read.len(), 300_000);
    world.assert_all_delivered();
}

#[test]
fn a_smaller_path_is_learnt_from_icmp() {
    let mut world = World::new();
    // A router with an MTU of 1,280 drops what is larger and says so.
    world.to_target = Box::new(|_, head| if head.payload_len > 1_228 { Fate::Lose } else { Fate::Pass });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(MS);
    client.sends(&mut world, &[5; 20_000]);
    let first = world.data_sent()[0].head;
    let mut error = flow::Returned {
        client: first.client,
        target: endpoint(TARGET),
        kind: kind::ICMP,
        mtu: 1_280,
        ..Default::default()
    };
    error.tcp.seq = first.tcp.seq + 999_999;
    world.give_back(error);
    world.run(MS);
    assert_eq!(world.data_sent().last().unwrap().head.mss, 1448, "not about anything outstanding");
    error.tcp.seq = first.tcp.seq;
    world.give_back(error);
    world.run(100 * MS);
    assert_eq!(world.peer().read.len(), 20_000);
    assert_eq!(world.peer().largest, 1_228);
    world.assert_all_delivered();
}
