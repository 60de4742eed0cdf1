//! Loss recovery, one returned header at a time: RFC 5681, 6582, 6675, 2018, 2883, 6298.

use flow::record::{SackBlock, flag};
use flow::{Returned, Seq};
use session::Count;

use crate::kit::*;

const MSS: u32 = 1_448;

/// Ten segments of an upload are under way and nobody but the story answers. Returns the first number.
fn ten_under_way(sack: bool) -> (World, Seq) {
    let mut world = World::with(config(), TargetOptions { sack, ..TargetOptions::default() });
    let mut client = Client::new(1);
    client.opens(&mut world);
    world.run(10 * MS);
    world.options.dead = true;
    client.sends(&mut world, &[b'u'; 60_000]);
    let first = world.data_sent()[0].head.tcp.seq;
    let sent: usize = world.data_sent().iter().map(|sent| sent.payload.len()).sum();
    assert_eq!(sent as u32, 10 * MSS);
    (world, first)
}

/// An acknowledgement of so many bytes, with these segments selectively acknowledged.
fn ack(world: &World, first: Seq, segments: u32, sacked: &[(u32, u32)]) -> Returned {
    let mut record = world.in_step();
    record.tcp.ack = first + segments * MSS;
    for (block, (left, right)) in record.sack.iter_mut().zip(sacked) {
        *block = SackBlock { left: first + left * MSS, right: first + right * MSS };
        record.sack_count += 1;
    }
    record
}

fn again(sent: &[Sent]) -> Vec<Seq> {
    sent.iter().filter(|sent| sent.head.bits & 2 != 0).map(|sent| sent.head.tcp.seq).collect()
}

/// RFC 5681, section 3.2 (packetdrill: fast_retransmit): the third duplicate, not the second, sends the head again.
#[test]
fn three_duplicates_without_sack() {
    let (mut world, first) = ten_under_way(false);
    world.drawn_by(ack(&world, first, 1, &[]));
    let duplicate = ack(&world, first, 1, &[]);
    assert!(again(&world.drawn_by(duplicate)).is_empty());
    assert!(again(&world.drawn_by(duplicate)).is_empty());
    assert_eq!(again(&world.drawn_by(duplicate)), [first + MSS]);
    assert!(again(&world.drawn_by(duplicate)).is_empty(), "once");
    assert_eq!(world.count(Count::TimeoutRetransmitted), 0);
}

/// RFC 5681, section 2: what carries data, a FIN or another window is no duplicate.
#[test]
fn not_every_repeated_number_is_a_duplicate() {
    for change in [
        |record: &mut Returned| record.payload_len = 1,
        |record: &mut Returned| record.tcp.window += 1,
        |record: &mut Returned| record.tcp.flags |= flag::FIN,
    ] {
        let (mut world, first) = ten_under_way(false);
        world.drawn_by(ack(&world, first, 1, &[]));
        for n in 0..5 {
            let mut record = ack(&world, first, 1, &[]);
            record.tcp.window += n * 10;
            change(&mut record);
            assert!(again(&world.drawn_by(record)).is_empty());
        }
    }
}

/// RFC 6675, section 5: with SACK duplicates count by what they report, and only the holes are sent again.
#[test]
fn only_the_holes_are_sent_again() {
    let (mut world, first) = ten_under_way(true);
    assert!(again(&world.drawn_by(ack(&world, first, 0, &[(1, 2)]))).is_empty());
    assert!(again(&world.drawn_by(ack(&world, first, 0, &[(1, 2), (3, 4)]))).is_empty());
    let drawn = world.drawn_by(ack(&world, first, 0, &[(1, 2), (3, 6)]));
    assert_eq!(again(&drawn)[0], first);
    world.drawn_by(ack(&world, first, 0, &[(1, 2), (3, 12)]));
    let sent = again(&world.sent);
    assert!(sent.contains(&first) && sent.contains(&(first + 2 * MSS)), "{sent:?}");
    assert_eq!(sent.len(), 2, "{sent:?}");
}

/// RFC 6675, section 2: without new SACK information a repeated number is no duplicate.
#[test]
fn repeated_sack_blocks_are_no_news() {
    let (mut world, first) = ten_under_way(true);
    for _ in 0..6 {
        assert!(again(&world.drawn_by(ack(&world, first, 0, &[(1, 2)]))).is_empty());
    }
}

/// RFC 2883: reports of doubles say nothing of losses.
#[test]
fn reports_of_doubles_are_passed_over() {
    let (mut world, first) = ten_under_way(true);
    world.drawn_by(ack(&world, first, 4, &[]));
    for _ in 0..6 {
        assert!(again(&world.drawn_by(ack(&world, first, 4, &[(1, 3)]))).is_empty());
    }
    world.run(2 * MS);
    assert_eq!(world.count(Count::ReturnedDuplicate), 6);
}

/// RFC 2018: blocks beyond what was sent, empty or inside out are lies (packetdrill: sack).
#[test]
fn lying_sack_blocks_are_passed_over() {
    let (mut world, first) = ten_under_way(true);
    let mut record = ack(&world, first, 0, &[(5, 6), (5, 6), (5, 6), (5, 6)]);
    record.sack[0].right = first + 90 * MSS;
    record.sack[1] = SackBlock { left: first + 7 * MSS, right: first + 6 * MSS };
    record.sack[2].right = record.sack[2].left;
    record.sack[3] = SackBlock { left: first - 9_000, right: first + 3 * MSS };
    record.sack_count = 200;
    assert!(again(&world.drawn_by(record)).is_empty());
    world.drawn_by(ack(&world, first, 10, &[]));
    assert_eq!(world.count(Count::Delivered), u64::from(10 * MSS));
}

/// RFC 2018, section 8: a target may forget what it reported; after the second time-out so do we.
#[test]
fn a_target_that_reneges_gets_everything_again() {
    let (mut world, first) = ten_under_way(true);
    world.drawn_by(ack(&world, first, 0, &[(1, 10)]));
    world.run(2 * SECOND);
    world.drawn_by(ack(&world, first, 1, &[]));
    world.run(SECOND);
    let sent = again(&world.sent);
    assert!(sent.contains(&(first + MSS)), "{sent:?}");
}

/// RFC 6582, section 3.2: a partial acknowledgement shows the next hole.
#[test]
fn a_partial_acknowledgement_without_sack() {
    let (mut world, first) = ten_under_way(false);
    for _ in 0..4 {
        world.drawn_by(ack(&world, first, 0, &[]));
    }
    assert_eq!(again(&world.sent), [first]);
    let drawn = world.drawn_by(ack(&world, first, 3, &[]));
    assert_eq!(again(&drawn)[0], first + 3 * MSS);
}

/// RFC 5681, section 3.1 and RFC 6298, section 5: one segment after a time-out, and pauses that double.
#[test]
fn after_a_time_out_one_segment_at_a_time_and_twice_the_pause() {
    let (mut world, first) = ten_under_way(true);
    let mark = world.sent.len();
    world.run(30 * SECOND);
    let times: Vec<u64> =
        world.sent[mark..].iter().filter(|sent| sent.head.tcp.seq == first).map(|sent| sent.at_us).collect();
    let pauses: Vec<u64> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.len() >= 4, "{pauses:?}");
    for two in pauses.windows(2) {
        assert!(two[1] >= 2 * two[0] - MS || two[1] >= 8 * SECOND - MS, "{pauses:?}");
    }
    assert!(world.sent[mark..].iter().all(|sent| sent.payload.len() <= MSS as usize));
}

/// RFC 6298, section 3 (Karn): what was sent twice is not timed.
#[test]
fn a_repeated_segment_is_not_timed() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "r0", 10);
    world.options.dead = true;
    client.asks(&mut world, "r1", 10);
    // Repeated after 0.2 s and more, and acknowledged six seconds later.
    world.run(3_100 * MS);
    world.options.dead = false;
    world.run(4 * SECOND);
    assert_eq!(world.peer().lines, 2);
    client.asks(&mut world, "r2", 10);
    world.run(MS);
    let mark = world.sent.len();
    world.options.dead = true;
    client.asks(&mut world, "r3", 10);
    world.run(300 * MS);
    assert!(world.sent.len() > mark + 1, "the timer still knows a short way");
}

/// RFC 5681, section 3.2: half of what was under way, then on from there.
#[test]
fn recovery_halves_what_is_under_way() {
    let (mut world, first) = ten_under_way(true);
    world.drawn_by(ack(&world, first, 0, &[(1, 5)]));
    // All of it arrives: five segments may be under way now.
    let mark = world.sent.len();
    world.drawn_by(ack(&world, first, 10, &[]));
    let fresh: u32 = world.sent[mark..].iter().map(|sent| sent.payload.len() as u32).sum();
    assert!((2 * MSS..=6 * MSS).contains(&fresh), "{fresh}");
}
