//! Answers that get lost on the way back, one or all of them for a while: the target has answered, and who asks again learns it
//! from the number of a bare acknowledgement.

use flow::record::flag;
use session::Count;

use crate::kit::*;

/// When the turns that bear this text left.
fn left_at(world: &World, text: &str) -> Vec<u64> {
    world
        .data_sent()
        .iter()
        .filter(|sent| sent.payload.starts_with(text.as_bytes()))
        .map(|sent| sent.at_us)
        .collect()
}

/// Headers with payload get lost for five seconds, each repetition too.
fn without_answers() -> World {
    let mut world = World::new();
    world.to_us = Box::new(|now_us, record| {
        let lost = record.payload_len > 0 || record.tcp.has(flag::FIN);
        if lost && now_us < 1_005 * SECOND { Fate::Lose } else { Fate::Pass }
    });
    world
}

#[test]
fn a_probe_tells_that_the_answer_was_sent() {
    let mut world = without_answers();
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "one", 300);
    let asked_us = world.now_us;
    client.asks(&mut world, "two", 300);
    world.run(2 * SECOND);
    let two = left_at(&world, "two");
    assert!(two.len() == 1 && two[0] - asked_us < 1_100 * MS, "{two:?} after {asked_us}");
    assert_eq!((world.peer().lines, world.count(Count::ReturnHoles)), (2, 300));
    assert_eq!(world.count(Count::TurnsGuessed) + world.count(Count::TurnsUnanswered), 0);
    // What came back is acknowledged, so that the target does not go on.
    assert!(!world.peer().snd_una.before(world.peer().iss + 301));
    world.run(10 * SECOND);
    world.assert_all_delivered();
}

/// One number more may be a FIN: acknowledged by one who has not seen it, it would never come again.
#[test]
fn a_lost_fin_is_not_acknowledged_by_its_number() {
    let mut world = without_answers();
    world.options.app = App::Lines { writes: 1, delay_us: 100, close_after: 1 };
    let mut client = Client::new(1);
    client.opens(&mut world);
    client.asks(&mut world, "one", 300);
    client.sends(&mut world, b"two 300\n");
    world.run(1_500 * MS);
    assert!(world.count(Count::Probes) > 0 && world.peer().fin_sent);
    assert_eq!((world.peer().snd_una, world.count(Count::ReturnHoles)), (world.peer().iss + 1, 0));
    // The second request goes out on a connection of its own once the first is seen to have ended.
    world.run(20 * SECOND);
    assert_eq!(world.peers.iter().map(Peer::text).collect::<Vec<_>>(), ["one 300\n", "two 300\n"]);
}

/// A longer answer than online, as long as the last ones were: exactly that is believed too.
#[test]
fn a_steady_deviation_is_told_by_a_probe_as_well() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.opens(&mut world);
    for _ in 0..4 {
        client.sends(&mut world, b"r 310\n");
        world.run(50 * MS);
        client.reads(300);
    }
    let guessed = world.count(Count::TurnsGuessed);
    let from_us = world.now_us;
    world.to_us = Box::new(move |now_us, record| {
        if record.payload_len > 0 && now_us < from_us + 5 * SECOND { Fate::Lose } else { Fate::Pass }
    });
    client.sends(&mut world, b"lost 310\n");
    world.run(50 * MS);
    client.reads(300);
    client.sends(&mut world, b"next 310\n");
    world.run(1_200 * MS);
    assert_eq!((left_at(&world, "next").len(), world.count(Count::TurnsGuessed)), (1, guessed));
}

/// For ten seconds nothing comes back at all, and the pauses between tries have become long. When the way is whole again nobody
/// waits for the end of his.
#[test]
fn who_has_asked_in_vain_asks_again_as_soon_as_answers_can_come() {
    let mut config = config();
    (config.limits.sessions, config.limits.chunks) = (2_048, 4_096);
    let mut world = World::with(config, TargetOptions::default());
    let mut clients: Vec<Client> = (0..600).map(Client::new).collect();
    for client in &mut clients[..590] {
        client.opens(&mut world);
        client.asks(&mut world, "before", 10);
    }
    world.run(SECOND);
    let whole_us = world.now_us + 10 * SECOND;
    world.to_us = Box::new(move |now_us, _| if now_us < whole_us { Fate::Lose } else { Fate::Pass });
    // Some connections are begun in it, too.
    for client in &mut clients[590..] {
        client.opens(&mut world);
        client.asks(&mut world, "first", 10);
    }
    for client in &mut clients {
        client.asks(&mut world, "meanwhile", 10);
        client.sends(&mut world, b"after 10\n");
    }
    while world.now_us < whole_us {
        world.table.was_deaf(world.now_us);
        world.run((100 * MS).min(whole_us - world.now_us));
    }
    let answered =
        |world: &World| world.peers.iter().filter(|peer| peer.text().ends_with("after 10\n")).count();
    assert_eq!(answered(&world), 0);
    world.run(300 * MS);
    assert_eq!(answered(&world), 600);
    // Asked once, not over and over.
    let again = world
        .data_sent()
        .iter()
        .filter(|sent| sent.at_us >= whole_us && sent.payload.starts_with(b"mean"))
        .count();
    assert!(again <= 620, "{again}");
    world.run(SECOND);
    world.assert_all_delivered();
    // It is over, and one of long ago, which a successor may find noted, is no news.
    assert!(world.table.next_deadline_us().is_none_or(|at_us| at_us > world.now_us));
    world.table.was_deaf(world.now_us - 2 * SECOND);
    assert!(world.table.next_deadline_us().is_none_or(|at_us| at_us > world.now_us));
}
