//! Random clients over a random network. The oracle: what the target's application read is what the client wrote, in
//! order and once; the ledger is exact at every step; sessions end.

use std::cell::RefCell;
use std::rc::Rc;

use flow::record::flag;
use proptest::prelude::*;
use session::{Clients, Count, Rtt};

use crate::kit::*;

/// A small generator of its own, so that one number is the whole story.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.roll(1000) < per_mille
    }
}

fn fate(dice: &mut Dice, bad: u64) -> Fate {
    if dice.chance(bad) {
        Fate::Lose
    } else if dice.chance(bad) {
        Fate::Late(dice.roll(3 * MS))
    } else if dice.chance(bad) {
        Fate::Twice
    } else {
        Fate::Pass
    }
}

fn story(seed: u64, bad: u64, clients: u16, copies: u32, keep: bool) {
    let mut dice = Dice(seed | 1);
    let mut config = config();
    config.rtt = if dice.chance(300) { Rtt::Measured } else { Rtt::None };
    if keep {
        config.clients = Clients::Keep;
    }
    let options = TargetOptions {
        app: App::Lines { writes: 1 + dice.roll(3) as u32, delay_us: dice.roll(3 * MS), close_after: 0 },
        sack: dice.chance(700),
        timestamps: dice.chance(700),
        window_scale: dice.chance(700).then_some(7),
        buffer: 20_000 + dice.roll(200_000) as u32,
        mss: [Some(1460), Some(536), None][dice.roll(3) as usize],
        isn: dice.roll(u64::from(u32::MAX)) as u32,
        ..TargetOptions::default()
    };
    let mut world = World::with(config, options);
    world.copies_milli = copies * 1000;
    let shared = Rc::new(RefCell::new(dice.clone()));
    let (out, back) = (Rc::clone(&shared), Rc::clone(&shared));
    world.to_target = Box::new(move |_, _| fate(&mut out.borrow_mut(), bad));
    world.to_us = Box::new(move |_, _| fate(&mut back.borrow_mut(), bad));

    let mut all: Vec<Client> =
        (0..clients).map(|n| Client::starting_at(n, dice.roll(1 << 32) as u32)).collect();
    for client in &mut all {
        client.syn(&mut world);
        world.run(dice.roll(5 * MS));
        client.acks(&mut world);
    }
    for turn in 0..6 {
        for client in &mut all {
            let size = match dice.roll(4) {
                0 => 3_000 + dice.roll(40_000),
                _ => 5 + dice.roll(300),
            };
            let answer = 1 + dice.roll(5_000) as u32;
            let mut request = vec![b'a' + turn as u8; size as usize];
            request.extend_from_slice(format!(" {answer}\n").as_bytes());
            let mut segments = Vec::new();
            let mut rest = &request[..];
            while !rest.is_empty() {
                let n = (1 + dice.roll(20_000) as usize).min(rest.len());
                segments.push((client.segment(flag::ACK | flag::PSH), rest[..n].to_vec()));
                client.seq += n as u32;
                rest = &rest[n..];
            }
            client.written.extend_from_slice(&request);
            // The capture sees them in some disorder, some twice, some cut otherwise; none is missing.
            for i in 1..segments.len() {
                if dice.chance(2 * bad) {
                    segments.swap(i - 1, i);
                }
            }
            for (segment, bytes) in &segments {
                world.capture(segment, bytes);
                if dice.chance(2 * bad) {
                    world.capture(segment, bytes);
                }
                if dice.chance(2 * bad) && bytes.len() > 2 {
                    let mut part = *segment;
                    part.tcp.seq += 1;
                    world.capture(&part, &bytes[1..]);
                }
                world.run(dice.roll(300));
            }
            client.reads(answer);
            world.run(dice.roll(4 * MS));
        }
    }
    for client in &mut all {
        client.closes(&mut world);
    }
    world.run(400 * SECOND);

    let open = world.table.tally().open;
    for client in &all {
        let same = world.peers.iter().filter(|peer| peer.read == client.written).count();
        assert!(same as u32 >= copies, "seed {seed:#x}: {same} of {copies} streams arrived whole");
    }
    assert_eq!(
        world.peers.iter().filter(|peer| !peer.read.is_empty()).count() as u32,
        u32::from(clients) * copies
    );
    assert_eq!(open, 0, "seed {seed:#x}: sessions that did not end");
    assert_eq!(world.table.tally().in_flight, 0);
    let dropped = world.table.tally().dropped_bytes() - world.dropped(flow::Drop::Duplicate);
    assert_eq!(dropped, 0, "seed {seed:#x}");
    assert_eq!(world.count(Count::Holes), 0);
}

proptest! {
    #[test]
    fn streams_arrive_whole_over_a_bad_network(
        seed in any::<u64>(),
        bad in prop_oneof![Just(0u64), Just(5), Just(30), Just(80)],
        clients in 1u16..4,
        copies in 1u32..3,
        keep in any::<bool>(),
    ) {
        story(seed, bad, clients, copies, keep);
    }
}
