//! The whole return receiver against a scripted intercept on loopback.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Instant;

use flow::{Returned, hash, record};
use returns::{Message, Position, Refused, RefusedCode, Welcome};
use shm::{Consumer, Link};

use super::*;
use crate::claims::{ClaimSender, queue};
use crate::count::{InterceptCount, LinkState, intercept_index};
use crate::testing::{ListenerEnd, named_region, plan, region};

/// A running receiver, its rings' other ends, and where it dials.
struct Rig {
    plan: Plan,
    region: &'static Region,
    rings: Vec<Consumer>,
    listener: TcpListener,
    claims: ClaimSender,
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Plan)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut plan = plan(&["10.0.0.1:80"]);
        plan.intercepts = vec![listener.local_addr().unwrap()];
        change(&mut plan);
        let region = region(&plan);
        Self::over(region, plan, listener)
    }

    fn over(region: &'static Region, plan: Plan, listener: TcpListener) -> Self {
        let wake = Arc::new(EventFd::new().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let (claims, claimed) = queue(wake.clone());
        let receiver = Receiver::new(region, &plan, claimed, wake.clone(), stop.clone()).unwrap();
        let rings = (0..plan.shards).map(|k| region.consumer(Link::Returns(k))).collect();
        let thread = Some(std::thread::spawn(move || receiver.run()));
        Self { plan, region, rings, listener, claims, wake, stop, thread }
    }

    /// Accepts the receiver's next dial and greets it. Gives its end and the position it asked to go on from.
    fn greet(&self, epoch: u64, next: u64) -> (ListenerEnd, Option<Position>) {
        let mut end = self.accept();
        let hello = end.hello().expect("a dialer greets");
        end.say(|out| out.welcome(&Welcome { software: "test".into(), epoch, next }));
        (end, hello.last)
    }

    fn accept(&self) -> ListenerEnd {
        ListenerEnd::new(self.listener.accept().unwrap().0)
    }

    /// Takes records out of the rings until `n` have come; checks that each lies in its client's ring.
    fn take(&mut self, n: usize) -> Vec<u64> {
        let mut positions = Vec::new();
        let shards = self.plan.shards;
        until(|| {
            for (shard, ring) in self.rings.iter_mut().enumerate() {
                let batch = ring.peek_batch(256);
                for bytes in &batch {
                    let (header, rest): (Returned, _) = record::split(bytes).expect("a whole record");
                    assert!(rest.is_empty());
                    let hash = hash::endpoint_hash(self.plan.seeds.shard, &header.client);
                    assert_eq!(usize::from(hash::shard_of(hash, shards)), shard);
                    positions.push(header.position);
                }
                batch.release();
            }
            positions.len() >= n
        });
        positions
    }

    fn count(&self, count: ReturnCount) -> u64 {
        self.region.read_counter(Role::Receiver, count.index())
    }

    fn link(&self, count: InterceptCount) -> u64 {
        self.region.read_counter(Role::Receiver, intercept_index(0, count))
    }

    fn stop(&mut self) {
        self.stop.store(true, Relaxed);
        self.wake.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Waits for something that another thread brings about; a bug makes it fail after a while instead of hanging.
fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn client(i: u64) -> flow::Endpoint {
    SocketAddr::from(([198, 18, (i >> 8) as u8, i as u8], 1_024 + (i % 60_000) as u16)).into()
}

/// Sends records with these positions in batches.
fn send(end: &mut ListenerEnd, positions: std::ops::RangeInclusive<u64>) {
    let target: SocketAddr = "10.0.0.1:80".parse().unwrap();
    for position in positions {
        let header =
            Returned { position, client: client(position), target: target.into(), ..Returned::default() };
        while !end.try_record(&header) {
            end.push_out();
        }
    }
    end.push_out();
}

#[test]
fn headers_reach_the_shard_of_their_client_in_order() {
    let mut rig = Rig::new(|plan| plan.shards = 3);
    let (mut end, last) = rig.greet(7, 1);
    assert_eq!(last, None);
    send(&mut end, 1..=500);
    let mut positions = rig.take(500);
    positions.sort_unstable();
    assert_eq!(positions, (1..=500).collect::<Vec<_>>());
    until(|| rig.count(ReturnCount::Headers) == 500);
    assert_eq!(rig.link(InterceptCount::State), LinkState::Up.index() as u64);
    assert_eq!(rig.count(ReturnCount::Connected), 1);
}

#[test]
fn a_lost_connection_goes_on_where_it_was_and_nothing_comes_twice() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=10);
    assert_eq!(rig.take(10), (1..=10).collect::<Vec<_>>());
    drop(end);
    let (mut end, last) = rig.greet(7, 8);
    assert_eq!(last, Some(Position { epoch: 7, last: 10 }));
    send(&mut end, 8..=12);
    assert_eq!(rig.take(2), [11, 12]);
    assert_eq!(rig.count(ReturnCount::Duplicates), 3);
    assert_eq!(rig.link(InterceptCount::Disconnects), 1);
}

#[test]
fn resets_in_mid_frame_lose_nothing_and_nothing_comes_twice_or_astray() {
    let mut rig = Rig::new(|plan| plan.shards = 3);
    let (rounds, records) = (20, 60);
    let mut next = 1;
    for round in 0..=rounds {
        let mut end = rig.accept();
        let last = end.hello().expect("a dialer greets").last;
        let wanted = last.map_or(1, |place| place.last + 1);
        assert!(wanted >= next, "round {round}: it asks for {wanted} after {next}");
        next = wanted;
        end.say(|out| out.welcome(&Welcome { software: "test".into(), epoch: 7, next }));
        for position in next..next + records {
            let header = Returned { position, client: client(position), ..Returned::default() };
            assert!(end.try_record(&header));
        }
        if round == rounds {
            end.push_out();
            let mut positions = rig.take((next + records - 1) as usize);
            positions.sort_unstable();
            assert!(positions.into_iter().eq(1..next + records));
            return;
        }
        end.reset_after(round as usize * 997 % 2_500);
    }
}

#[test]
fn a_restarted_intercept_begins_a_new_stream() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=10);
    rig.take(10);
    drop(end);
    let (mut end, _) = rig.greet(8, 1);
    send(&mut end, 1..=3);
    assert_eq!(rig.take(3), [1, 2, 3]);
    assert_eq!(rig.count(ReturnCount::Duplicates), 0);
}

/// What stands in the region as our place may have been damaged with the predecessor.
#[test]
fn a_place_that_no_intercept_ever_gave_is_not_believed() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let (mut end, _) = rig.greet(7, 1 << 40);
    send(&mut end, 1 << 40..=1 << 40);
    rig.take(1);
    drop(end);
    let (mut end, last) = rig.greet(7, 1);
    assert_eq!(last, Some(Position { epoch: 7, last: 1 << 40 }));
    send(&mut end, 1..=3);
    assert_eq!(rig.take(3), [1, 2, 3]);
    assert_eq!(rig.count(ReturnCount::Duplicates), 0);
}

/// The shards are told how long nothing can have come back.
#[test]
fn the_region_says_until_when_an_intercept_was_missing() {
    let rig = Rig::new(|_| {});
    let deaf_ms = || rig.region.control().deaf_ms();
    let (end, _) = rig.greet(7, 1);
    until(|| rig.count(ReturnCount::Connected) == 1);
    let before = deaf_ms();
    assert!(before > 0, "it was missing at first");
    std::thread::sleep(Duration::from_millis(3 * BEAT_MS));
    assert_eq!(deaf_ms(), before);
    drop(end);
    until(|| deaf_ms() > before);
    let (_end, _) = rig.greet(7, 1);
}

#[test]
fn a_restarted_injector_goes_on_where_its_predecessor_was() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut plan = plan(&["10.0.0.1:80"]);
    plan.intercepts = vec![listener.local_addr().unwrap()];
    plan.shards = 1;
    let (first, name) = named_region(&plan);
    let second = Region::attach(&name).unwrap();
    Region::remove(&name).unwrap();
    let mut rig = Rig::over(first, plan.clone(), listener.try_clone().unwrap());
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=10);
    rig.take(10);
    rig.stop();
    let rig = Rig::over(second, plan, listener);
    assert_eq!(rig.greet(7, 11).1, Some(Position { epoch: 7, last: 10 }));
}

#[test]
fn gaps_that_intercept_owns_up_to_are_counted() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=2);
    end.say(|out| out.gap(40, 43));
    send(&mut end, 43..=44);
    assert_eq!(rig.take(4), [1, 2, 43, 44]);
    assert_eq!(rig.count(ReturnCount::Gaps), 40);
}

#[test]
fn bytes_that_make_no_sense_end_the_connection_and_it_is_dialled_again() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let mut end = rig.accept();
    end.say_garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let (mut end, _) = rig.greet(7, 1);
    end.say_garbage(&[3, 0, 0xee, 1, 2]);
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=1);
    assert_eq!(rig.take(1), [1]);
    assert_eq!(rig.link(InterceptCount::Faults), 2);
}

#[test]
fn a_refusal_is_shown_and_an_owner_that_leaves_makes_room() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let mut end = rig.accept();
    assert!(end.hello().is_some());
    let refused = Refused {
        code: RefusedCode::RangeTaken,
        sentence: "198.18.0.0/15 is used by web-1".into(),
        suggestion: None,
    };
    end.say(|out| out.refuse(&refused));
    until(|| rig.link(InterceptCount::State) == LinkState::Refused.index() as u64);
    assert_eq!(rig.link(InterceptCount::LastRefusal), 1 + RefusedCode::RangeTaken.index() as u64);
    assert_eq!(rig.link(InterceptCount::Refusals), 1);
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=1);
    assert_eq!(rig.take(1), [1]);
}

#[test]
fn a_full_ring_stops_the_reading_and_loses_nothing() {
    let mut rig = Rig::new(|plan| plan.shards = 1);
    let (end, _) = rig.greet(7, 1);
    let sender = std::thread::spawn(move || {
        let mut end = end;
        send(&mut end, 1..=20_000);
        end
    });
    // 256 KiB take some 1,300 headers, and nobody takes them out.
    until(|| rig.count(ReturnCount::RingFull) > 3);
    assert!(rig.count(ReturnCount::Headers) < 1_400);
    assert_eq!(rig.take(20_000), (1..=20_000).collect::<Vec<_>>());
    assert_eq!((rig.count(ReturnCount::Lost), rig.count(ReturnCount::Duplicates)), (0, 0));
    drop(sender.join().unwrap());
}

#[test]
fn an_intercept_is_told_while_sessions_are_behind_and_again_after_a_reconnect() {
    let rig = Rig::new(|_| {});
    let paced = |end: &mut ListenerEnd, wanted: bool| {
        end.wait_for(|m| matches!(m, Message::Pace { eager } if *eager == wanted).then_some(())).is_some()
    };
    let (mut end, _) = rig.greet(7, 1);
    let far_ms = shm::monotonic_us() / 1_000 + 60_000;
    rig.region.control().set_behind_ms(far_ms);
    assert!(paced(&mut end, true));
    drop(end);
    let (mut end, _) = rig.greet(7, 1);
    assert!(paced(&mut end, true), "another connection knows nothing of it");
    assert_eq!(rig.count(ReturnCount::Eager), 1);
    rig.region.control().set_behind_ms(1);
    assert!(paced(&mut end, false), "and when it is over");
    assert_eq!(rig.count(ReturnCount::Eager), 0);
}

#[test]
fn pings_are_answered() {
    let rig = Rig::new(|_| {});
    let (mut end, _) = rig.greet(7, 1);
    end.say(|out| out.ping(99));
    assert!(end.wait_for(|m| matches!(m, Message::Pong(99)).then_some(())).is_some());
}

#[test]
fn live_claims_are_forwarded_at_once_and_again_after_a_restart() {
    let mut rig = Rig::new(|plan| plan.clients = Clients::Keep);
    let target: SocketAddr = "10.0.0.1:80".parse().unwrap();
    let claim = |i: u64| Claim { client: client(i), target: target.into() };
    let collect = |end: &mut ListenerEnd, n: usize| {
        let mut seen = BTreeMap::new();
        end.wait_for(|message| {
            if let Message::Claims(claims) = message {
                seen.extend(claims.iter());
            }
            (seen.len() >= n).then_some(())
        })
        .expect("the claims come");
        seen
    };
    let (mut end, _) = rig.greet(7, 1);
    until(|| rig.count(ReturnCount::Connected) == 1);
    (0..3).for_each(|i| assert!(rig.claims.push(claim(i))));
    rig.claims.wake();
    assert_eq!(collect(&mut end, 3).len(), 3);
    drop(end);
    // One more while nobody is there.
    assert!(rig.claims.push(claim(3)));
    rig.claims.wake();
    let (mut end, _) = rig.greet(8, 50);
    let seen = collect(&mut end, 4);
    assert_eq!(seen.get(&client(3)), Some(&target.into()));
    until(|| rig.count(ReturnCount::ClaimsLive) == 4);
    // Answers to flows that a predecessor of this process claimed: they are ours, and claimed from now on.
    send(&mut end, 50..=51);
    rig.take(2);
    drop(end);
    let (mut end, _) = rig.greet(9, 1);
    assert_eq!(collect(&mut end, 6).get(&client(51)), Some(&target.into()));
}

#[test]
fn an_intercept_that_is_away_does_not_hold_up_another() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = gone.local_addr().unwrap();
    drop(gone);
    // Accepts in the kernel's queue and never answers.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(|plan| {
        plan.shards = 1;
        plan.intercepts.splice(0..0, [nowhere, mute.local_addr().unwrap()]);
    });
    let (mut end, _) = rig.greet(7, 1);
    send(&mut end, 1..=5);
    assert_eq!(rig.take(5), [1, 2, 3, 4, 5]);
}
