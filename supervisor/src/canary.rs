//! The probe of the way to each target and back, as far as the supervisor has a part in it: what real clients' addresses need
//! before the start, what `stats` shows, and what a person is told when it changes. The probing is the injector's.

use injector::{Report, Sockets, Verdict, canary_index, probe, probing};
use shm::{Region, Role};
use topology::plan::{CanaryPlan, Clients, Target};
use topology::{Plan, Refusal};

use crate::stats::{Canary, HopTimes};
use crate::words;

/// With real clients' addresses a route that leads elsewhere sends the target's answers to real users: all ways must be seen to
/// be whole before the first packet.
///
/// # Errors
/// A way is not, as far as can be seen.
pub(crate) fn must_pass(region: &'static Region, plan: &Plan, sockets: &Sockets) -> Result<(), Refusal> {
    if !matches!(plan.clients, Clients::Keep) || plan.records_only() {
        return Ok(());
    }
    if let Some(target) = unprobed(plan) {
        return Err(Refusal::preflight(format!(
            "--keep-clients: datagrams cannot be probed, so the way to {target} and back is not proven, and real users might get its answers. Map TCP to {target} as well, here and at intercept: the probe goes there, and any answer proves the way, also that nobody listens. Or --canary off, where you have seen to the route yourself"
        )));
    }
    let findings = probing::probe(plan, sockets, Some(region.control())).map_err(|error| {
        let why = words::of_io(&error);
        Refusal::preflight(format!("probing the way to the targets failed ({why}). See `ulimit -n`"))
    })?;
    match findings.trouble(plan) {
        None => Ok(()),
        Some(trouble) => Err(Refusal::preflight(format!(
            "--keep-clients: the way to a target and back is not proven, and real users might get its answers: {trouble}"
        ))),
    }
}

/// A target of datagrams at an address where nothing is probed, unless nothing at all shall be.
fn unprobed(plan: &Plan) -> Option<std::net::SocketAddr> {
    if plan.canary == CanaryPlan::Off {
        return None;
    }
    let probed = probe::probed(plan);
    let is_probed = |target: &&Target| probed.iter().any(|(_, to, _)| to.ip() == target.addr.ip());
    plan.targets.iter().find(|target| !is_probed(target)).map(|target| target.addr)
}

/// What the injector found out about each target that is probed: its address, where from, and how it stands.
fn reports(region: &Region, plan: &Plan) -> Vec<(std::net::SocketAddr, flow::Addr, Report)> {
    let read = |target: u16| {
        let at = canary_index(usize::from(target));
        let word = |i| region.read_counter(Role::Injector, at + i);
        Report::from_words([word(0), word(1), word(2)])
    };
    probe::probed(plan).into_iter().map(|(index, to, from)| (to, from, read(index))).collect()
}

/// For `stats`.
pub(crate) fn look(region: &Region, plan: &Plan) -> Vec<Canary> {
    let now_us = shm::monotonic_us();
    let of = |(to, from, report): (std::net::SocketAddr, flow::Addr, Report)| Canary {
        addr: to.to_string(),
        from: from.to_string(),
        state: report.verdict.name().to_owned(),
        held: report.verdict.fails(),
        trouble: report.trouble(plan, to).unwrap_or_default(),
        failures: report.failures.into(),
        last_ok_s: (report.last_ok_us > 0).then(|| now_us.saturating_sub(report.last_ok_us) as f64 / 1e6),
        rtt_us: HopTimes {
            total: report.total_us.into(),
            out: report.out_us().into(),
            back: report.back_us.into(),
        },
    };
    reports(region, plan).into_iter().map(of).collect()
}

/// Tells what changed from one look to the next.
#[derive(Default)]
pub(crate) struct News {
    told: Vec<Verdict>,
}

impl News {
    /// Sentences about what is new since the last call.
    pub(crate) fn since(&mut self, region: &Region, plan: &Plan) -> Vec<String> {
        let now = reports(region, plan);
        self.told.resize(now.len(), Verdict::Waiting);
        now.iter()
            .zip(&mut self.told)
            .filter_map(|((to, _, report), told)| {
                let before = std::mem::replace(told, report.verdict);
                (before != report.verdict).then(|| said(plan, *to, before, report)).flatten()
            })
            .collect()
    }
}

fn said(plan: &Plan, to: std::net::SocketAddr, before: Verdict, report: &Report) -> Option<String> {
    let trouble = report.trouble(plan, to);
    match trouble {
        Some(trouble) if report.verdict.fails() => {
            Some(format!("nothing is sent to {to} until a probe passes: {trouble}"))
        }
        Some(trouble) => Some(trouble),
        None if before.fails() => {
            let took = words::ms(report.total_us.into());
            Some(format!("the way to {to} and back is whole again ({took} ms): the replay goes on"))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::plan::Protocol;

    fn set(counters: &shm::Counters, report: Report) {
        for (word, value) in report.to_words().into_iter().enumerate() {
            counters.set(canary_index(0) + word, value);
        }
    }

    fn plan() -> Plan {
        Plan {
            canary: topology::plan::CanaryPlan::On,
            intercepts: vec!["10.0.4.2:36524".parse().unwrap()],
            ..Plan::small(&["80-10.0.3.2:8080"])
        }
    }

    #[test]
    fn datagrams_to_real_clients_need_a_probe_at_their_target() {
        let of = |maps: &[&str]| {
            let mut plan = Plan { clients: Clients::Keep, ..Plan::small(maps) };
            plan.canary = CanaryPlan::From(vec![[192, 0, 2, 9].into()]);
            plan
        };
        let udp = |mut plan: Plan, index: usize| {
            plan.targets[index].protocol = Protocol::Udp;
            plan
        };
        let target = |text: &str| Some(text.parse().unwrap());
        assert_eq!(unprobed(&udp(of(&["53-10.0.3.2:53"]), 0)), target("10.0.3.2:53"));
        let two = udp(of(&["80-10.0.3.2:80", "53-10.0.3.3:53"]), 1);
        assert_eq!(unprobed(&two), target("10.0.3.3:53"), "another host's way is another");
        assert_eq!(unprobed(&udp(of(&["53-10.0.3.2:54", "53-10.0.3.2:53"]), 1)), None);
        assert_eq!(unprobed(&Plan { canary: CanaryPlan::Off, ..two }), None, "renounced");
    }

    #[test]
    fn a_failure_is_told_once_and_so_is_its_end() {
        let plan = plan();
        let name = format!("canary-test-{}", std::process::id());
        let spec = topology::wiring::region_spec(&plan, shard_worker::arena_bytes);
        let region = Region::create(&name, &spec, &plan.to_bytes(), plan.instance).unwrap();
        let counters = region.counters(Role::Injector);
        let mut news = News::default();
        assert!(news.since(region, &plan).is_empty(), "nothing is known");
        set(&counters, Report { verdict: Verdict::Ok, ..Report::default() });
        assert!(news.since(region, &plan).is_empty(), "all is well");
        set(&counters, Report { verdict: Verdict::Unseen, failures: 1, ..Report::default() });
        let said = news.since(region, &plan);
        assert!(said[0].contains("nothing is sent to 10.0.3.2:8080 until a probe passes"), "{said:?}");
        assert!(said[0].contains("ip route replace 198.18.0.0/15 via 10.0.4.2"), "{said:?}");
        set(&counters, Report { verdict: Verdict::Unseen, failures: 2, ..Report::default() });
        assert!(news.since(region, &plan).is_empty(), "it was told");
        assert!(look(region, &plan)[0].held);
        set(&counters, Report { verdict: Verdict::Ok, total_us: 400, last_ok_us: 1, ..Report::default() });
        assert!(news.since(region, &plan)[0].contains("whole again (0.40 ms)"));
        let look = look(region, &plan);
        assert_eq!((look[0].state.as_str(), look[0].rtt_us.total, look[0].held), ("ok", 400, false));
        Region::remove(&name).unwrap();
    }
}
