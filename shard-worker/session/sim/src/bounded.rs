//! A world with an end to the waiting for it. A rule about the world's own time is the world's business (`world`); here is
//! what it cannot see itself: a step that never returns.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use crate::figures::Figures;
use crate::scenario::Scenario;
use crate::world::{Failure, Options, run};

/// What [`run`] says of a world, within so much time on the wall; `None` when it hangs. Its thread is left behind then,
/// so the process had better end. A panic of the world's comes back to the caller.
pub fn run_within(wall: Duration, scenario: &Scenario, options: Options) -> Option<Result<Figures, Failure>> {
    let (say, said) = channel();
    let own = scenario.clone();
    let world = Builder::new()
        .name(format!("world-{}", scenario.seed))
        .spawn(move || {
            // Whoever has given up hears nothing more.
            let _ = say.send(run(&own, options));
        })
        .expect("this process may have a second thread");
    match said.recv_timeout(wall) {
        Ok(result) => Some(result),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            resume_unwind(world.join().expect_err("a world that said nothing has panicked"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Profile;

    #[test]
    fn a_world_is_waited_for_so_long_and_no_longer() {
        let scenario = Scenario::new(7, Profile::Clean);
        let figures = run(&scenario, Options::default()).unwrap();
        let same = run_within(scenario.most_wall(), &scenario, Options::default());
        assert_eq!(same.expect("it ends").unwrap(), figures);
        assert!(run_within(Duration::ZERO, &scenario, Options::default()).is_none());
    }

    #[test]
    fn a_world_that_goes_on_too_long_says_what_is_open() {
        let mut scenario = Scenario::new(7, Profile::Clean);
        // Less than the vanished clients of this world are waited for.
        scenario.most_us = scenario.times.idle_us / 2;
        let failure = run(&scenario, Options::default()).unwrap_err();
        assert!(failure.what.contains("have not ended"), "{}", failure.what);
    }
}
