use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use flow::record::kind;
use flow::{Addr, Seq, ip};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use returns::{Hello, Mode, Policy, Position, Reason, RefusedCode};

use super::*;
use crate::stats::{Count, Door as Links};
use crate::testing::{Dialer, Running, TARGET, client, hello, part, until};

const KEY: [u8; 32] = [3; 32];

#[test]
fn every_instance_gets_the_answers_to_its_own_clients() {
    let running = Running::new(|_| {});
    let mut dialers: Vec<Dialer> =
        (0..4).map(|n| Dialer::welcome(&running, &hello(n, part(n as u8)))).collect();
    for seq in 0..4_000_u32 {
        running.feed.answer(client((seq % 4) as u8, 1000), seq);
    }
    for (n, dialer) in dialers.iter_mut().enumerate() {
        dialer.until("a thousand answers", |d| d.seqs.len() == 1_000);
        assert!(dialer.seqs.iter().copied().eq((0..1_000).map(|i| i * 4 + n as u32)));
        assert_eq!((dialer.gap, dialer.last), (0, 1_000));
    }
    running.feed.answer(client(9, 1), 0);
    running.feed.drained();
    until("counted", || running.stats.get(Count::Unknown) == 1);
    let summary = running.stop();
    assert_eq!((summary.captured, summary.sent, summary.without_owner), (4_001, 4_000, 1));
    dialers[0].until("a farewell", |d| d.closed);
}

#[test]
fn a_peer_that_never_reads_costs_the_others_nothing_and_is_told_of_its_gap() {
    let running = Running::new(|o| {
        o.limits.window = 1 << 10;
        o.limits.silence = Duration::from_secs(60);
    });
    let mut idle = Dialer::welcome(&running, &hello(1, part(1)));
    let mut busy = Dialer::welcome(&running, &hello(2, part(2)));
    // Until the kernel's buffers and the window of the idle one are full.
    let mut fed = 0;
    while running.stats.get(Count::QueueDropped) < 5_000 {
        for _ in 0..1_000 {
            running.feed.answer(client(1, 1), fed);
            fed += 1;
        }
        running.feed.answer(client(2, 1), fed);
        running.feed.drained();
        assert!(fed < 5_000_000, "the queue of the idle peer has no end");
    }
    let batches = fed as usize / 1_000;
    busy.until("answers in spite of the idle one", |d| d.seqs.len() == batches);
    assert_eq!(busy.gap, 0);
    idle.until("what was kept", |d| d.seqs.last() == Some(&(fed - 1)));
    assert_eq!(u64::from(fed), idle.seqs.len() as u64 + idle.gap);
    assert!(idle.gap >= 5_000);
    assert_eq!(idle.gap, running.stats.get(Count::QueueDropped));
}

#[test]
fn a_peer_that_reads_a_byte_now_and_then_costs_bounded_memory_and_hardly_any_time() {
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own, so that its CPU time is not that of the tests beside it.
        let name =
            "run::tests::a_peer_that_reads_a_byte_now_and_then_costs_bounded_memory_and_hardly_any_time";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        assert!(alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").status().unwrap().success());
        return;
    }
    let window = 1 << 10;
    let running = Running::new(|o| {
        o.limits.window = window;
        o.limits.silence = Duration::from_secs(60);
    });
    let mut slow = Dialer::welcome(&running, &hello(1, part(1)));
    // A window of a packet or two: with less, loopback's large packets come by the probe, one in seconds.
    setsockopt(&slow.stream, sockopt::RcvBuf, &(64 << 10)).unwrap();
    let mut busy = Dialer::welcome(&running, &hello(2, part(2)));
    let mut fed = 0;
    while running.stats.get(Count::QueueDropped) < 1_000 {
        (0..200).for_each(|_| {
            running.feed.answer(client(1, 1), fed);
            fed += 1;
        });
        running.feed.drained();
    }
    // It takes a byte each 10 ms, while the other gets an answer each 10 ms.
    let (mut taken, mut round) = (Vec::new(), 0);
    let (begin, before) = (Instant::now(), cpu_time());
    while begin.elapsed() < Duration::from_secs(2) {
        let mut byte = [0];
        assert_eq!(slow.stream.read(&mut byte).unwrap(), 1, "a byte waits");
        taken.push(byte[0]);
        running.feed.answer(client(1, 1), fed);
        running.feed.answer(client(2, 1), round);
        (fed, round) = (fed + 1, round + 1);
        std::thread::sleep(Duration::from_millis(10));
    }
    let (spent, time) = (cpu_time() - before, begin.elapsed());
    println!("{spent:?} of CPU time in {time:?}");
    assert!(spent * 20 <= time, "{spent:?} in {time:?}");
    busy.until("every answer in spite of the slow one", |d| d.seqs.len() == round as usize);
    assert!(busy.seqs.iter().copied().eq(0..round) && busy.gap == 0);
    // It reads on: what it took in single bytes and what follows are one stream, and what was dropped is told.
    setsockopt(&slow.stream, sockopt::RcvBuf, &(1 << 20)).unwrap();
    slow.link.receive_buffer()[..taken.len()].copy_from_slice(&taken);
    slow.link.received(taken.len());
    slow.until("what was kept", |d| d.seqs.last() == Some(&(fed - 1)));
    assert_eq!(u64::from(fed), slow.seqs.len() as u64 + slow.gap);
    assert!(slow.gap >= 1_000 && slow.error.is_none(), "{} {:?}", slow.gap, slow.error);
}

/// Says to a test that it has the process for itself.
const ALONE: &str = "TCPTWIN_TEST_ALONE";

/// CPU time of this process.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

#[test]
fn an_instance_says_how_its_answers_are_waited_for_until_it_leaves() {
    let running = Running::new(|_| {});
    let is_eager = |slot| running.stats.peer(slot).eager.load(Ordering::Relaxed);
    let mut first = Dialer::welcome(&running, &hello(1, part(1)));
    let mut second = Dialer::welcome(&running, &hello(2, part(2)));
    assert!(first.link.outgoing().pace(true));
    first.until("the first is heard", |_| is_eager(0) && !is_eager(1));
    let out = first.link.outgoing();
    assert!(out.pace(false) && out.pace(true) && out.pace(false) && second.link.outgoing().pace(true));
    first.until("the last word counts", |_| !is_eager(0));
    second.until("each speaks for itself", |_| is_eager(1) && !is_eager(0));
    drop(second);
    until("who is gone waits for nothing", || !is_eager(1));
}

#[test]
fn garbage_is_counted_by_kind_and_disturbs_nobody() {
    let running = Running::new(|_| {});
    let mut peer = Dialer::welcome(&running, &hello(1, part(1)));
    drop(TcpStream::connect(running.addr).unwrap());
    until("a port probe is noticed", || running.stats.door(Links::Left) == 1);
    let mut http = TcpStream::connect(running.addr).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = http.read_to_end(&mut answer);
    assert!(answer.is_empty(), "a stranger is told nothing");
    assert_eq!(running.stats.bad_handshakes(Reason::NotTcptwin), 1);
    // Garbage behind a good hello closes that connection only.
    let mut rude = Dialer::welcome(&running, &hello(2, part(2)));
    rude.stream.write_all(&[0xff; 64]).unwrap();
    rude.until("the connection is closed", |d| d.closed);
    assert_eq!(running.stats.door(Links::Violations), 1);
    running.feed.answer(client(1, 1), 7);
    peer.until("an answer", |d| d.seqs == [7]);
}

#[test]
fn slow_hands_are_bounded_and_let_others_in() {
    let running = Running::new(|_| {});
    let mut peer = Dialer::welcome(&running, &hello(1, part(1)));
    // Each says one byte of the magic and then nothing.
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(running.addr).unwrap();
            let _ = stream.write_all(b"t");
            stream
        })
        .collect();
    until("most are turned away", || running.stats.door(Links::Busy) >= 40);
    running.feed.answer(client(1, 1), 7);
    peer.until("an answer meanwhile", |d| d.seqs == [7]);
    let mut tries = 0;
    until("another instance is let in while they hang on", || {
        tries += 1;
        let mut dialer = Dialer::dial(running.addr, Policy::PlainLocal, &hello(2, part(2)));
        until("an answer of any kind", || {
            dialer.turn();
            dialer.welcome.is_some() || dialer.error.is_some() || dialer.closed
        });
        dialer.welcome.is_some()
    });
    drop(slow);
}

#[test]
fn floods_from_a_few_addresses_give_way_to_another_at_once() {
    let running = Running::new(|_| {});
    let from = |last: u8| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, last, 0)).unwrap();
        let SocketAddr::V4(to) = running.addr else { panic!("it listens on IPv4") };
        connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
        TcpStream::from(fd)
    };
    let mut held: Vec<TcpStream> = (0..20).map(|n| from(2 + n % 2)).collect();
    until("there is no room", || running.stats.door(Links::Busy) >= 12);
    for n in 1..=12 {
        drop(Dialer::welcome(&running, &hello(u64::from(n), part(n))));
        held.push(from(2 + n % 2));
        until("it has left", || running.stats.door(Links::Gone) == u64::from(n));
    }
}

#[test]
fn a_reconnecting_receiver_goes_on_where_it_stopped() {
    let running = Running::new(|_| {});
    let hello = hello(1, part(1));
    let mut first = Dialer::welcome(&running, &hello);
    (0..100).for_each(|seq| running.feed.answer(client(1, 1), seq));
    first.until("the first hundred", |d| d.seqs.len() == 100);
    // It dies having taken 60, while more answers come.
    let last = Position { last: 60, ..first.position() };
    drop(first);
    until("it is missed", || running.stats.door(Links::Gone) == 1);
    (100..200).for_each(|seq| running.feed.answer(client(1, 1), seq));
    running.feed.drained();
    let mut second = Dialer::welcome(&running, &Hello { last: Some(last), ..hello.clone() });
    second.until("the rest", |d| d.seqs.len() == 140);
    assert!(second.seqs.iter().copied().eq(60..200) && second.gap == 0);
    // A position of another epoch is of no use: it starts with what comes next.
    let strange = Position { epoch: last.epoch + 1, last: 60 };
    let mut third = Dialer::welcome(&running, &Hello { last: Some(strange), ..hello });
    assert_eq!(third.welcome.as_ref().unwrap().next, 201);
    running.feed.answer(client(1, 1), 200);
    third.until("the next", |d| d.seqs == [200]);
    second.until("the replaced connection ends", |d| d.closed);
    assert_eq!(running.stats.door(Links::Replaced), 1);
}

#[test]
fn a_thousand_resets_in_mid_stream_lose_and_repeat_nothing() {
    let running = Running::new(|o| o.key = Some(KEY));
    let (mut last, mut got, mut fed) = (None, Vec::new(), 0);
    for round in 0..1_000_u32 {
        let mut dialer = Dialer::dial(running.addr, Policy::Keyed(KEY), &Hello { last, ..hello(1, part(1)) });
        dialer.until("a welcome", |d| d.welcome.is_some());
        for _ in 0..40 {
            running.feed.answer(client(1, 1), fed);
            fed += 1;
        }
        // Reads for a while, in the middle of whatever comes, and is gone without a farewell.
        let turns = round.wrapping_mul(2_654_435_761) >> 29;
        (0..turns).for_each(|_| dialer.turn());
        assert!(dialer.error.is_none(), "round {round}: {:?}", dialer.error);
        assert_eq!(dialer.gap, 0, "round {round}");
        // Before the first record the last position is the one before the next.
        let welcome = dialer.welcome.as_ref().unwrap();
        dialer.last = dialer.last.max(welcome.next - 1);
        last = Some(dialer.position());
        got.append(&mut dialer.seqs);
    }
    let mut dialer = Dialer::dial(running.addr, Policy::Keyed(KEY), &Hello { last, ..hello(1, part(1)) });
    dialer.until("the rest", |d| got.len() + d.seqs.len() == fed as usize);
    got.append(&mut dialer.seqs);
    assert!(got.into_iter().eq(0..fed));
}

#[test]
fn a_receiver_that_was_away_too_long_learns_how_much_it_missed() {
    let running = Running::new(|o| o.limits.window = 64);
    let hello = hello(1, part(1));
    let mut first = Dialer::welcome(&running, &hello);
    running.feed.answer(client(1, 1), 0);
    first.until("one", |d| d.seqs.len() == 1);
    let last = first.position();
    drop(first);
    until("it is missed", || running.stats.door(Links::Gone) == 1);
    (1..=100).for_each(|seq| running.feed.answer(client(1, 1), seq));
    running.feed.drained();
    let mut second = Dialer::welcome(&running, &Hello { last: Some(last), ..hello });
    second.until("what is left", |d| d.seqs.len() == 64);
    assert_eq!((second.seqs[0], second.gap), (37, 36));
}

/// A partition of minutes: the instance is forgotten, and comes back with the place it had. Its new stream must not begin
/// below that, or it would take all of it for what it had before.
#[test]
fn an_instance_that_was_forgotten_is_not_given_its_old_positions_again() {
    let running = Running::new(|o| o.limits.away = Duration::from_millis(100));
    let hello = hello(1, part(1));
    let mut first = Dialer::welcome(&running, &hello);
    (0..100).for_each(|seq| running.feed.answer(client(1, 1), seq));
    first.until("the first hundred", |d| d.seqs.len() == 100);
    let last = first.position();
    drop(first);
    until("it is forgotten", || running.stats.door(Links::Forgotten) == 1);
    let mut second = Dialer::welcome(&running, &Hello { last: Some(last), ..hello });
    assert_eq!(second.welcome.as_ref().unwrap().next, last.last + 1);
    running.feed.answer(client(1, 1), 100);
    second.until("the next", |d| d.seqs == [100]);
    assert_eq!((second.gap, second.last), (0, 101));
}

#[test]
fn overlapping_ranges_are_refused_and_the_suggestion_works() {
    let running = Running::new(|_| {});
    let _first = Dialer::welcome(&running, &hello(1, part(0)));
    let mut second = Dialer::dial(running.addr, Policy::PlainLocal, &hello(2, part(0)));
    second.until("a refusal", |d| d.refused.is_some());
    let refused = second.refused.clone().unwrap();
    assert_eq!(refused.code, RefusedCode::RangeTaken);
    assert!(
        refused.sentence.contains("198.18.0.0/20 overlaps the clients of `run-1`"),
        "{}",
        refused.sentence
    );
    second.until("closed", |d| d.closed);
    let free = refused.suggestion.unwrap();
    assert_eq!(free.to_string(), "198.18.16.0/20");
    Dialer::welcome(&running, &hello(2, Mode::Ranges(vec![free])));
    assert_eq!(running.stats.refused(RefusedCode::RangeTaken), 1);
}

#[test]
fn another_key_or_none_is_told_to_both_ends() {
    let running = Running::new(|o| o.key = Some(KEY));
    let mut right = Dialer::dial(running.addr, Policy::Keyed(KEY), &hello(1, part(1)));
    right.until("a welcome", |d| d.welcome.is_some());
    running.feed.answer(client(1, 1), 5);
    right.until("an encrypted answer", |d| d.seqs == [5]);
    assert!(right.link.is_encrypted());
    for (policy, reason) in [(Policy::Keyed([9; 32]), Reason::WrongKey), (Policy::PlainLocal, Reason::Mode)] {
        let mut wrong = Dialer::dial(running.addr, policy, &hello(2, part(2)));
        wrong.until("an error", |d| d.error.is_some());
        assert_eq!(wrong.error.unwrap().reason(), reason);
        assert_eq!(running.stats.bad_handshakes(reason), 1);
    }
}

#[test]
fn a_header_before_its_claim_is_held_and_an_unclaimed_one_is_dropped() {
    let running = Running::new(|o| o.limits.hold = Duration::from_millis(300));
    let mut a = Dialer::welcome(&running, &hello(1, Mode::Claims));
    let mut b = Dialer::welcome(&running, &hello(2, Mode::Claims));
    let flow = |n: u8| Endpoint::new(Addr::v4([192, 0, 2, n]), 40_000);
    let target: Endpoint = TARGET.parse::<SocketAddr>().unwrap().into();
    // Claimed first.
    assert!(a.link.outgoing().claim(&flow(1), &target));
    a.turn();
    until("the claim is noted", || running.stats.get(Count::Claims) == 1);
    running.feed.answer(flow(1), 11);
    a.until("its answer", |d| d.seqs == [11]);
    // Seen first; of two such headers the order is kept.
    running.feed.answer(flow(2), 21);
    running.feed.answer(flow(2), 22);
    running.feed.answer(flow(3), 31);
    until("three are held", || running.stats.get(Count::Held) == 3);
    assert!(b.link.outgoing().claim(&flow(2), &target));
    b.until("what was held", |d| d.seqs == [21, 22]);
    until("the third is given up", || running.stats.get(Count::Unclaimed) == 1);
    // A claim of a flow to another target is not noted.
    let foreign = Endpoint::new(Addr::v4([10, 9, 9, 9]), 80);
    assert!(b.link.outgoing().claim(&flow(4), &foreign));
    b.turn();
    until("the foreign claim is counted", || running.stats.get(Count::ClaimsForeign) == 1);
    assert_eq!(a.seqs, [11]);
}

#[test]
fn ten_thousand_claims_right_behind_the_hello_all_arrive() {
    let running = Running::new(|_| {});
    let mut dialer = Dialer::welcome(&running, &hello(1, Mode::Claims));
    let target: Endpoint = TARGET.parse::<SocketAddr>().unwrap().into();
    let flow = |n: u32| Endpoint::new(Addr::v4([10, 99, (n >> 8) as u8, n as u8]), 1);
    for n in 0..10_000 {
        while !dialer.link.outgoing().claim(&flow(n), &target) {
            dialer.turn();
        }
    }
    dialer.until("all are noted", |_| running.stats.get(Count::Claims) == 10_000);
    (0..10_000).for_each(|n| running.feed.answer(flow(n), n));
    dialer.until("all answers", |d| d.seqs.len() == 10_000);
    assert_eq!(running.stats.get(Count::Held), 0);
}

#[test]
fn a_ping_is_answered_and_a_silent_peer_is_parted_with() {
    let running = Running::new(|o| o.limits.silence = Duration::from_millis(1_500));
    let mut alive = Dialer::welcome(&running, &hello(1, part(1)));
    assert!(alive.link.outgoing().ping(42));
    alive.until("a pong", |d| d.pongs == [42]);
    // It answers the pings that come; the other one does nothing at all.
    let silent = Dialer::welcome(&running, &hello(2, part(2)));
    alive.until("the silent one is gone", |_| running.stats.door(Links::Silent) == 1);
    assert!(!alive.closed);
    drop(silent);
}

#[test]
fn an_icmp_error_reaches_the_owner_of_the_client() {
    let running = Running::new(|_| {});
    let mut dialer = Dialer::welcome(&running, &hello(1, part(1)));
    let ip_packet = |protocol: u8, src: [u8; 4], dst: [u8; 4], total: u16, body: &[u8]| {
        let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        p[2..4].copy_from_slice(&total.to_be_bytes());
        p.extend(src.iter().chain(&dst).chain(body));
        p
    };
    let quoted =
        ip_packet(ip::TCP, [198, 18, 16, 1], [10, 0, 3, 2], 1500, &[0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 9]);
    let mut body = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
    body.extend(&quoted);
    let total = 20 + body.len() as u16;
    running.feed.packet(ip_packet(ip::ICMP, [10, 0, 0, 1], [198, 18, 16, 1], total, &body));
    dialer.until("the error", |d| d.records.len() == 1);
    let r = dialer.records[0];
    assert_eq!((r.kind, r.mtu, r.tcp.seq, r.client.port), (kind::ICMP, 1400, Seq(9), 40_000));
    assert_eq!(running.stats.get(Count::Icmp), 1);
}

#[test]
fn strangers_to_the_watch_list_and_broken_packets_are_counted_and_dropped() {
    let running = Running::new(|_| {});
    let mut dialer = Dialer::welcome(&running, &hello(1, part(1)));
    running.feed.answer_from(Endpoint::new(Addr::v4([10, 0, 3, 2]), 8081), client(1, 1), 1);
    for cut in 0..40 {
        running.feed.packet(vec![0x45; cut]);
    }
    running.feed.answer(client(1, 1), 2);
    dialer.until("the good one", |d| d.seqs == [2]);
    assert_eq!(running.stats.get(Count::NotTarget), 1);
    let json = running.stats.snapshot();
    let broken: u64 = json["capture"]["malformed"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!(broken, 40);
    assert_eq!(json["peers"][0]["name"], "run-1");
}

#[test]
fn mistakes_at_the_start_are_sentences() {
    let no_target = Intercept::open(Options::new(Vec::new())).map(|_| ()).unwrap_err();
    assert!(no_target.to_string().contains("-x TARGET:PORT"));
    let running = Running::new(|_| {});
    let mut options = Options::new(vec![TARGET.parse().unwrap()]);
    options.listen = vec![running.addr];
    let taken = Intercept::with_sources(options, Vec::new()).map(|_| ()).unwrap_err().to_string();
    assert!(taken.contains(&running.addr.to_string()) && taken.contains("--listen"), "{taken}");
}
