//! Every target over its corpus, and over the first generated inputs (`scripts/fuzz.sh` runs the million).

use fuzzing::engine::Amount;
use fuzzing::{TARGETS, engine, reach};

#[test]
fn every_target_survives_its_corpus() {
    for target in TARGETS {
        for (name, bytes) in engine::corpus(target).unwrap() {
            println!("{}/{name}", target.name);
            (target.run)(&bytes);
            // Cut anywhere it is an input as well.
            for len in 0..bytes.len().min(200) {
                (target.run)(&bytes[..len]);
            }
        }
    }
}

#[test]
fn every_target_survives_generated_inputs() {
    for target in TARGETS {
        engine::run(target, 7, 0, Amount::Inputs(5_000)).unwrap();
    }
}

#[test]
fn the_corpus_is_small_and_holds_the_seeds_as_they_are_made_now() {
    let mut bytes = 0;
    for target in TARGETS {
        let corpus = engine::corpus(target).unwrap();
        bytes += corpus.iter().map(|(_, input)| input.len()).sum::<usize>();
        for (name, seed) in (target.seeds)() {
            let stored = corpus.iter().find(|(stored, _)| *stored == name).map(|(_, input)| input);
            assert!(
                stored == Some(&seed),
                "{}/{name} is another than seeds makes: scripts/fuzz.sh --seeds",
                target.name
            );
        }
    }
    assert!(bytes < 300_000, "{bytes} bytes of corpus in the tree");
}

/// What of `all` neither the corpus of a target nor a few generated inputs reach.
fn out_of_reach(target: &str, all: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let target = engine::target(target).expect("a target of this name");
    let corpus = engine::corpus(target).expect("its corpus");
    let reached = reach::watch(|| {
        corpus.iter().for_each(|(_, bytes)| (target.run)(bytes));
        engine::run(target, 7, 0, Amount::Inputs(20_000)).expect("it has a corpus");
    });
    all.filter(|name| !reached.contains(name)).collect()
}

#[test]
fn every_reason_to_refuse_input_is_reached() {
    let malformed = flow::Malformed::ALL.iter().map(|m| m.name());
    assert_eq!(out_of_reach("frame", malformed), [""; 0]);
    let refused = ["malformed", "unknown_target", "wrong_family", "foreign_client", "zero_mss"];
    assert_eq!(out_of_reach("rewrite", refused.into_iter()), [""; 0]);
    // A frame is altered under encryption, and the system has random bytes.
    let unencrypted = |name: &&str| !["altered", "wrong_key", "random"].contains(name);
    let reasons = returns::Reason::ALL.iter().map(|r| r.name()).filter(unencrypted);
    assert_eq!(out_of_reach("stream", reasons), [""; 0]);
    // What cannot be opened has no bytes.
    let troubles = trace::Trouble::ALL.iter().map(|t| t.name()).filter(|name| *name != "unopened");
    assert_eq!(out_of_reach("trace", troubles), [""; 0]);
    assert_eq!(out_of_reach("sealed", ["altered"].into_iter()), [""; 0]);
}

#[test]
fn nearly_all_that_a_table_counts_is_reached() {
    let counts = session::Count::ALL.iter().map(|count| count.name());
    // What finds no room in a ring never comes to a table.
    let of_a_table = |reason: &&flow::Drop| **reason != flow::Drop::RingFull;
    let drops = flow::Drop::ALL.iter().filter(of_a_table).map(|reason| reason.name());
    let all = session::Count::COUNT + flow::Drop::COUNT - 1;
    let missing = out_of_reach("table", counts.chain(drops));
    println!("out of reach: {missing:?}");
    assert!(missing.len() * 6 < all, "{} of {all} are out of reach: {missing:?}", missing.len());
}
