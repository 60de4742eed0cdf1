//! Flows ended to make room, and connections that wait for their moment.

use flow::record::flag;
use flow::sample::draw;
use flow::{Captured, Drop, Inject};
use session::{Config, Count, Sink, Table};

use crate::kit::*;

const KEPT_PPM: u32 = 400_000;
const CLIENTS: u16 = 200;

fn roomy() -> Config {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (2_048, 4_096);
    config
}

#[test]
fn flows_above_the_draw_are_ended_whole_and_the_others_go_on() {
    let mut world = World::with(roomy(), TargetOptions::default());
    world.copies_milli = 2_000;
    let mut clients: Vec<Client> = (0..CLIENTS).map(Client::new).collect();
    for client in &mut clients {
        client.opens(&mut world);
        client.sends(&mut world, b"r0 10\n");
        client.reads(10);
    }
    world.run(SECOND);
    let seed = world.table.config().seeds.sample;
    let above = |client: &Client| draw(seed, &client.at, &client.server, 0) >= KEPT_PPM;
    let shed = clients.iter().filter(|client| above(client)).count();
    assert!((80..160).contains(&shed), "{shed}");

    let from = world.sent.len();
    while world.table.shed(world.now_us, KEPT_PPM) {
        world.table.settle();
        world.table.check().expect("in order between two portions");
    }
    world.table.settle();
    world.run(SECOND);
    let resets = world.sent[from..].iter().filter(|sent| sent.is(flag::RST)).count();
    assert_eq!(resets, 2 * shed, "each copy's target is told");
    assert_eq!(world.count(Count::FailedShed), 2 * shed as u64);
    assert_eq!(world.table.tally().open, 2 * (u64::from(CLIENTS) - shed as u64));

    // As a shard does: what was shed is not begun again.
    world.percent_ppm = KEPT_PPM;
    for client in &mut clients {
        client.sends(&mut world, b"r0 10\n");
        client.reads(10);
    }
    world.run(SECOND);
    let lines: u32 = world.peers.iter().map(|peer| peer.lines).sum();
    assert_eq!(u64::from(lines), 2 * (2 * u64::from(CLIENTS) - shed as u64));
    world.assert_delivered_but(Drop::Shed, 0);
    assert!(!world.table.shed(world.now_us, KEPT_PPM), "nothing is left to be looked at");
}

/// One connection each 10 ms, half a second ahead at most.
#[derive(Default)]
struct Booked {
    free_us: u64,
    syns_us: Vec<u64>,
    now_us: u64,
}

impl Sink for Booked {
    fn emit<'p>(&mut self, head: &Inject, _: impl Iterator<Item = &'p [u8]>) {
        assert!(head.tcp.has(flag::SYN), "nobody answers");
        self.syns_us.push(self.now_us);
    }

    fn book(&mut self, now_us: u64) -> Option<u64> {
        let at_us = self.free_us.max(now_us);
        (at_us - now_us <= 500 * MS).then(|| {
            self.free_us = at_us + 10 * MS;
            at_us
        })
    }
}

#[test]
fn connections_leave_at_their_moment_or_not_at_all() {
    let config = roomy();
    let mut table = Table::new(arena(&config.limits), config);
    let (mut out, begin_us) = (Booked::default(), 1_000 * SECOND);
    let opens: Vec<Captured> = (0..CLIENTS).map(|n| Client::new(n).segment(flag::SYN)).collect();
    for now_us in (begin_us..begin_us + 900 * MS).step_by(MS as usize) {
        if now_us == begin_us {
            for segment in &opens {
                table.captured(now_us, segment, &[], 1_000_000, 1_000);
                table.settle();
            }
        }
        out.now_us = now_us;
        table.tick(now_us);
        while table.pump(now_us, &mut out) {
            table.settle();
        }
        table.settle();
    }
    assert_eq!(out.syns_us.len(), 51, "the others would have had to wait too long");
    assert!(out.syns_us.windows(2).all(|two| two[1] - two[0] >= 8 * MS), "{:?}", out.syns_us);
    assert_eq!(table.tally().count(Count::FailedShed), u64::from(CLIENTS) - 51);
    assert_eq!(table.tally().open, 51);
}
