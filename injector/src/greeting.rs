//! What this instance says to an intercept first, made from the plan: by the preflight, and by the return receiver at each
//! reconnect.

use std::net::SocketAddr;

use returns::{Hello, Mode, Policy, Position};
use topology::Plan;
use topology::plan::Clients;

/// The hello of this instance. `incarnation` grows with each start of the dialing role.
pub(crate) fn hello(plan: &Plan, incarnation: u64, last: Option<Position>) -> Hello {
    let mode = match &plan.clients {
        Clients::Pool { v4, v6, .. } => Mode::Ranges(v4.iter().chain(v6).copied().collect()),
        Clients::Keep => Mode::Claims,
    };
    Hello {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        instance: plan.instance,
        incarnation,
        name: plan.name.clone(),
        mode,
        targets: plan.targets.iter().map(|t| t.addr.into()).collect(),
        last,
    }
}

/// Whether the run goes as fast as answers come: a file as fast as possible.
pub(crate) fn is_eager(plan: &Plan) -> bool {
    plan.trace.as_ref().is_some_and(|trace| trace.speed_milli.is_none())
}

/// How the connection to this intercept is protected. That a plan without a key may speak plain to another host was
/// checked when the plan was made.
pub(crate) fn policy(plan: &Plan, intercept: SocketAddr) -> Policy {
    let loopback = intercept.ip().is_loopback();
    Policy::choose(plan.key, !loopback, loopback).unwrap_or(Policy::Unwilling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    #[test]
    fn pools_announce_ranges_and_real_clients_are_claimed() {
        let pool = plan(&["10.0.0.1:80"]);
        assert!(matches!(hello(&pool, 1, None).mode, Mode::Ranges(r) if r.len() == 2));
        let keep = Plan { clients: Clients::Keep, ..pool };
        assert_eq!(hello(&keep, 1, None).mode, Mode::Claims);
    }

    #[test]
    fn a_file_as_fast_as_possible_waits_for_each_answer() {
        let trace = topology::plan::TracePlan {
            files: vec!["-".into()],
            speed_milli: None,
            max_gap_ms: None,
            loops: 1,
            from: None,
            until: None,
            limit: None,
            rate: None,
            decap: false,
        };
        let live = plan(&[]);
        let timed = Plan {
            trace: Some(topology::plan::TracePlan { speed_milli: Some(1_000), ..trace.clone() }),
            ..live.clone()
        };
        let fast = Plan { trace: Some(trace), ..live.clone() };
        assert_eq!([live, timed, fast].map(|plan| is_eager(&plan)), [false, false, true]);
    }

    #[test]
    fn a_key_is_used_wherever_the_intercept_is() {
        let keyed = Plan { key: Some([3; 32]), ..plan(&[]) };
        assert!(matches!(policy(&keyed, "127.0.0.1:1".parse().unwrap()), Policy::Keyed(_)));
        assert!(matches!(policy(&plan(&[]), "127.0.0.1:1".parse().unwrap()), Policy::PlainLocal));
        assert!(matches!(policy(&plan(&[]), "10.0.0.1:1".parse().unwrap()), Policy::Plain));
    }
}
