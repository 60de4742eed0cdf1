//! The state machine with time, network and target in a test's hands.

use std::collections::HashMap;
use std::net::SocketAddr;

use flow::record::{flag, kind};

use super::*;

/// A canary and what it sent.
struct World {
    canary: Canary,
    now_us: u64,
    channel: Channel,
    sent: Vec<(u64, Inject)>,
    /// Why nothing leaves, if so.
    errno: Option<u16>,
}

const WHOLE: Channel = Channel { up: 1, of: 1 };
const BROKEN: Channel = Channel { up: 0, of: 1 };
const SECOND: u64 = 1_000_000;

fn at(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

fn birds(count: u16) -> impl Iterator<Item = (u16, Endpoint, Addr)> {
    (0..count).map(|i| (i, Endpoint::new(at("10.0.3.2:1").addr, 8_080 + i), at("198.18.0.1:1").addr))
}

impl World {
    fn new() -> Self {
        Self::of(birds(1), |_| Report::default())
    }

    fn of(birds: impl Iterator<Item = (u16, Endpoint, Addr)>, known: impl Fn(u16) -> Report) -> Self {
        let now_us = 100 * SECOND;
        let canary = Canary::new(birds, false, known, now_us, 7);
        Self { canary, now_us, channel: WHOLE, sent: Vec::new(), errno: None }
    }

    /// Lets time pass, as finely as the drain looks.
    fn run(&mut self, us: u64) {
        let until_us = self.now_us + us;
        loop {
            self.turn();
            if self.now_us >= until_us {
                return;
            }
            self.now_us = self.canary.due_us().clamp(self.now_us + 1_000, until_us);
        }
    }

    fn turn(&mut self) {
        let Self { canary, sent, now_us, errno, .. } = self;
        canary.turn(*now_us, self.channel, &mut |record| {
            sent.push((*now_us, *record));
            errno.map_or(Ok(()), Err)
        });
    }

    /// The SYNs so far.
    fn syns(&self) -> Vec<(u64, Inject)> {
        self.sent.iter().filter(|(_, r)| r.tcp.has(flag::SYN)).copied().collect()
    }

    fn resets(&self) -> usize {
        self.sent.iter().filter(|(_, r)| r.tcp.has(flag::RST)).count()
    }

    /// The target's answer to a SYN comes back.
    fn answer(&mut self, syn: &Inject, flags: u16) {
        let to = Endpoint::new(at("10.0.3.2:1").addr, 8_080 + syn.target);
        let mut record = Returned { client: syn.client, target: to, ..Returned::default() };
        (record.tcp.flags, record.tcp.ack) = (flags | flag::ACK, syn.tcp.seq + 1);
        self.hear(record);
    }

    fn hear(&mut self, record: Returned) {
        let Self { canary, sent, now_us, .. } = self;
        let heard = Heard { record, at_us: *now_us, back_us: 50 };
        canary.heard(&heard, &mut |record| {
            sent.push((*now_us, *record));
            Ok(())
        });
    }

    /// Answers whatever is sent for so long, `after_us` later.
    fn answered(&mut self, us: u64, after_us: u64) {
        let until_us = self.now_us + us;
        while self.now_us < until_us {
            let before = self.syns().len();
            self.turn();
            let new = self.syns()[before..].to_vec();
            self.now_us += if new.is_empty() { 10_000 } else { after_us };
            new.iter().for_each(|(_, syn)| self.answer(syn, flag::SYN));
        }
    }

    fn report(&self) -> Report {
        self.canary.reports().next().unwrap().1
    }
}

#[test]
fn an_answer_passes_at_once_and_the_accept_queue_stays_clean() {
    let mut world = World::new();
    world.turn();
    assert!(world.canary.is_waiting());
    world.now_us += 400;
    let syn = world.syns()[0].1;
    world.answer(&syn, flag::SYN);
    let report = world.report();
    assert_eq!((report.verdict, report.total_us, report.back_us), (Verdict::Ok, 400, 50));
    assert_eq!(report.out_us(), 350);
    let reset = world.sent.last().unwrap().1;
    assert!(reset.tcp.has(flag::RST) && reset.tcp.seq == syn.tcp.seq + 1 && reset.client == syn.client);
    // Nothing more for ten seconds.
    world.run(9 * SECOND);
    assert_eq!(world.sent.len(), 2);
    world.run(SECOND);
    assert_eq!(world.syns().len(), 2);
}

#[test]
fn each_probe_has_an_endpoint_of_its_own_for_hours() {
    let mut world = World::new();
    world.answered(3_600 * SECOND, 400);
    assert_eq!(world.report().verdict, Verdict::Ok);
    let mut last_used = HashMap::new();
    for (at_us, syn) in world.syns() {
        assert!(probe::PORTS.contains(&syn.client.port) && syn.client.addr == at("198.18.0.1:1").addr);
        let before = last_used.insert(syn.client.port, at_us);
        assert!(before.is_none_or(|before| at_us - before > 1_000 * SECOND));
    }
    assert!((355..=362).contains(&world.syns().len()), "{}", world.syns().len());
    assert_eq!(world.resets(), world.syns().len());
}

#[test]
fn three_tries_without_an_answer_pause_within_a_second() {
    let mut world = World::new();
    world.answered(5 * SECOND, 400);
    let before = world.syns().len();
    world.run(10 * SECOND);
    let failed: Vec<u64> = world.syns()[before..].iter().map(|(at_us, _)| *at_us).collect();
    assert_eq!(failed[1] - failed[0], TRY_US);
    assert_eq!(failed[2] - failed[0], 2 * TRY_US);
    let report = world.report();
    assert_eq!((report.verdict, report.failures > 0), (Verdict::Unseen, true));
    let mut world = World::new();
    world.run(ROUND_US - 1_000);
    assert!(world.canary.is_waiting());
    world.run(1_000);
    assert_eq!(world.report().verdict, Verdict::Unseen);
    assert!(world.now_us <= 101 * SECOND);
    assert_eq!(world.resets(), 3, "what is half open at the target is taken away");
}

#[test]
fn it_goes_on_by_itself_when_a_probe_passes() {
    let mut world = World::new();
    world.run(20 * SECOND);
    let tries = world.syns().len();
    assert!((19..=24).contains(&tries), "{tries} tries in 20 s");
    // Answers that sessions get do not say that the target can be reached.
    world.canary.traffic(0);
    world.run(SECOND);
    assert_eq!(world.report().verdict, Verdict::Unseen);
    world.answered(SECOND + 20_000, 400);
    assert_eq!(world.report().verdict, Verdict::Ok);
    assert!(world.report().failures >= 20);
}

#[test]
fn a_busy_target_that_answers_sessions_is_never_paused() {
    let mut world = World::new();
    world.answered(5 * SECOND, 400);
    for _ in 0..100 {
        world.run(SECOND / 2);
        world.canary.traffic(0);
        assert!(world.report().verdict.passes(), "{:?}", world.report());
    }
    assert_eq!((world.report().verdict, world.report().failures), (Verdict::Traffic, 0));
}

#[test]
fn a_doubt_is_asked_at_once_but_not_all_the_time() {
    let mut world = World::new();
    world.answered(3 * SECOND, 400);
    assert_eq!(world.syns().len(), 1);
    for _ in 0..60 {
        world.canary.doubt(0, world.now_us);
        world.answered(SECOND / 10, 400);
    }
    assert!((3..=4).contains(&world.syns().len()), "{} in six seconds of doubt", world.syns().len());
}

#[test]
fn a_service_that_is_down_is_a_way_that_works() {
    let mut world = World::new();
    world.turn();
    let syn = world.syns()[0].1;
    world.answer(&syn, flag::RST);
    assert_eq!(world.report().verdict, Verdict::Refused);
    assert!(world.report().verdict.passes());
    assert_eq!(world.resets(), 0);
}

#[test]
fn the_hop_that_failed_is_named() {
    let verdict = |change: &dyn Fn(&mut World)| {
        let mut world = World::new();
        change(&mut world);
        world.run(2 * SECOND);
        (world.report().verdict, world.report().detail)
    };
    assert_eq!(verdict(&|w| w.errno = Some(9)), (Verdict::NotSent, 9));
    assert_eq!(verdict(&|w| w.channel = BROKEN), (Verdict::ChannelDown, 0));
    assert_eq!(verdict(&|_| {}), (Verdict::Unseen, 0));
    let mut world = World::new();
    world.turn();
    let syn = world.syns()[0].1;
    let mut icmp = Returned {
        kind: kind::ICMP,
        client: syn.client,
        target: at("10.0.3.2:8080"),
        icmp_type: 3,
        icmp_code: 10,
        ..Returned::default()
    };
    icmp.tcp.seq = syn.tcp.seq;
    world.hear(icmp);
    world.run(SECOND);
    assert_eq!((world.report().verdict, world.report().detail), (Verdict::Rejected, 0x030a));
}

#[test]
fn a_channel_that_breaks_is_probed_at_once_and_again_when_it_is_whole() {
    let mut world = World::new();
    world.answered(SECOND, 400);
    let before = world.syns().len();
    world.channel = BROKEN;
    world.run(ROUND_US);
    assert_eq!(world.report().verdict, Verdict::ChannelDown);
    assert_eq!(world.syns().len() - before, 4, "three tries, and the first after the verdict");
    world.run(SECOND * 3 / 2);
    world.channel = WHOLE;
    let came_us = world.now_us;
    world.turn();
    assert_eq!(world.syns().last().unwrap().0, came_us);
    let syn = world.syns().last().unwrap().1;
    world.now_us += 300;
    world.answer(&syn, flag::SYN);
    assert_eq!(world.report().verdict, Verdict::Ok);
}

#[test]
fn a_blink_of_the_channel_is_no_failure() {
    let mut world = World::new();
    world.answered(SECOND, 400);
    world.channel = BROKEN;
    world.run(SECOND / 2);
    world.channel = WHOLE;
    world.answered(SECOND, 400);
    assert_eq!((world.report().verdict, world.report().failures), (Verdict::Ok, 0));
}

#[test]
fn a_successor_goes_on_with_what_is_known() {
    let known = Report { verdict: Verdict::Ok, last_ok_us: 98 * SECOND, ..Report::default() };
    let mut world = World::of(birds(1), |_| known);
    assert!(!world.canary.is_waiting());
    world.run(7 * SECOND);
    assert!(world.sent.is_empty());
    world.run(SECOND + 10_000);
    assert_eq!(world.syns().len(), 1);
    let failed = Report { verdict: Verdict::Unseen, failures: 4, ..Report::default() };
    let mut world = World::of(birds(1), |_| failed);
    world.turn();
    assert_eq!((world.report().verdict, world.syns().len()), (Verdict::Unseen, 1));
    // From the future: of another boot.
    let old = Report { verdict: Verdict::Ok, last_ok_us: 900 * SECOND, ..Report::default() };
    assert!(World::of(birds(1), |_| old).canary.is_waiting());
}

#[test]
fn targets_are_judged_one_by_one() {
    let mut world = World::of(birds(3), |_| Report::default());
    world.turn();
    let syns = world.syns();
    assert_eq!(syns.len(), 3);
    world.answer(&syns[1].1, flag::SYN);
    world.run(SECOND);
    let verdicts: Vec<Verdict> = world.canary.reports().map(|(_, report)| report.verdict).collect();
    assert_eq!(verdicts, [Verdict::Unseen, Verdict::Ok, Verdict::Unseen]);
}

#[test]
fn the_first_round_waits_for_the_channel_but_not_for_ever() {
    let mut world = World::new();
    world.channel = BROKEN;
    world.run(START_US - 10_000);
    assert!(world.sent.is_empty());
    world.channel = WHOLE;
    world.turn();
    assert_eq!(world.syns().len(), 1);
}

#[test]
fn answers_to_other_tries_change_nothing_but_are_reset() {
    let mut world = World::new();
    world.run(TRY_US);
    let syns = world.syns();
    assert_eq!(syns.len(), 2);
    world.answer(&syns[0].1, flag::SYN);
    let first = world.report();
    world.now_us += 1_000;
    world.answer(&syns[1].1, flag::SYN);
    assert_eq!((world.report(), world.resets()), (first, 2));
}
