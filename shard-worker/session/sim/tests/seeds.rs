//! Worlds that once showed a fault, and one of each family.

use sim::{Options, Profile, Scenario, run};

fn holds(seed: u64, profile: Profile) {
    let scenario = Scenario::new(seed, profile);
    if let Err(failure) = run(&scenario, Options::default()) {
        panic!(
            "after {} us: {}\n{scenario}\nscripts/sim.sh --seed {seed} --profile {}",
            failure.at_us,
            failure.what,
            profile.name()
        );
    }
}

#[test]
fn one_world_of_each_family() {
    for profile in Profile::ALL {
        holds(7, *profile);
    }
}

/// A retransmission captured late had a newer acknowledgement number than bytes captured before it: what lay behind a
/// hole counted as another turn when the hole was given up and as the same one when it was taken in.
#[test]
fn bytes_before_and_behind_a_hole_never_make_one_turn() {
    holds(307, Profile::Gap);
    holds(262, Profile::Storm);
}

/// The reset that breaks a connection off was lost, and the next one on the four-tuple met with what stood there still.
#[test]
fn a_lost_reset_does_not_close_a_four_tuple() {
    holds(2155, Profile::Loss5);
    holds(1257, Profile::Reuse);
    holds(2029, Profile::Storm);
}

/// A four-tuple came back behind a flow that had vanished, and its SYN was not captured.
#[test]
fn a_flow_that_looks_like_the_rest_of_another() {
    holds(3433, Profile::Storm);
}

/// Bytes captured after those behind them, at which the flow was joined, count as duplicates.
#[test]
fn bytes_from_before_the_place_where_a_flow_was_joined() {
    holds(11_605, Profile::Storm);
}

/// Without a clock, and without what was remembered of it, a four-tuple that came back had its former number again.
#[test]
fn a_four_tuple_that_comes_back_in_a_file() {
    holds(4996, Profile::Storm);
    holds(7508, Profile::Reuse);
}

/// A flow was joined behind its server's greeting, of which nobody knew.
#[test]
fn a_flow_that_was_joined_behind_a_greeting() {
    holds(27_502, Profile::Storm);
}

/// Equal seeds are equal worlds.
#[test]
fn a_seed_is_the_whole_story() {
    let world =
        || run(&Scenario::new(3, Profile::Storm), Options::default()).map(|figures| figures.line()).unwrap();
    assert_eq!(world(), world());
}
