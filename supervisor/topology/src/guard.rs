//! The egress guard at the start (DESIGN 8): which targets and client ranges are refused, given what this host knows
//! about them. Pure: the preflight asks the kernel and hands the answers in.

use std::net::IpAddr;

use flow::Range;

use crate::Refusal;
use crate::plan::{Clients, Plan};

/// What kind of place an address is, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Another host: the only kind of target there is outside a lab.
    Remote,
    /// An address of this host that is not loopback.
    ThisHost,
    /// 127.0.0.0/8 or ::1.
    Loopback,
    /// A broadcast address of a network of this host, or 255.255.255.255.
    Broadcast,
    /// A multicast group.
    Multicast,
    /// The unspecified address.
    Unspecified,
}

/// Refuses a target that is not another host, unless `lab` allows this host and loopback.
///
/// # Errors
/// One sentence, exit code 3.
pub fn target(plan: &Plan, index: usize, place: Place, lab: bool) -> Result<(), Refusal> {
    let target = plan.targets[index].addr;
    if let Some(online) = captured_itself(plan, index) {
        return Err(Refusal::preflight(format!(
            "the target {target} is the captured service itself ({online}): every replayed request would be captured and replayed again. Name another host"
        )));
    }
    let elsewhere = "Name the host where the service under test runs";
    let why = match place {
        Place::Remote => return Ok(()),
        Place::ThisHost | Place::Loopback if lab => return on_this_host(plan, index),
        Place::ThisHost => format!("is this host. {elsewhere} (--lab allows it in experiments)"),
        Place::Loopback => format!(
            "is a loopback address: only this host would see the copies. {elsewhere} (--lab allows it in experiments)"
        ),
        Place::Broadcast => {
            format!("is a broadcast address: every host on that network would get the copies. {elsewhere}")
        }
        Place::Multicast => format!("is a multicast group, no service of one host. {elsewhere}"),
        Place::Unspecified => format!("is no address of a host. {elsewhere}"),
    };
    Err(Refusal::preflight(format!("the target {target} {why}")))
}

/// On this host a mapping without online address captures its port on every address, the target's included.
fn on_this_host(plan: &Plan, index: usize) -> Result<(), Refusal> {
    let target = plan.targets[index].addr;
    match plan.mappings.iter().find(|mapping| {
        mapping.online_ip.is_none()
            && mapping.online_port == target.port()
            && mapping.protocol == plan.targets[index].protocol
    }) {
        None => Ok(()),
        Some(_) => Err(Refusal::preflight(format!(
            "the target {target} is captured itself: -x {port}-... captures port {port} on every address of this host. Name the online address, for example -x ONLINE-IP:{port}-{target}",
            port = target.port()
        ))),
    }
}

/// The online endpoint that is the target, if there is one.
fn captured_itself(plan: &Plan, index: usize) -> Option<String> {
    let target = plan.targets[index].addr;
    plan.mappings
        .iter()
        .find(|mapping| {
            mapping.online_ip == Some(target.ip())
                && mapping.online_port == target.port()
                && mapping.protocol == plan.targets[index].protocol
        })
        .map(|_| target.to_string())
}

/// An address that must not be a replayed client's, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The address.
    pub addr: IpAddr,
    /// What it is: "the address of eth0", "the gateway to 10.0.3.2".
    pub what: String,
}

/// Refuses client ranges that hold an address of a host we know: answers to it would go astray.
///
/// # Errors
/// One sentence, exit code 3.
pub fn client_ranges(plan: &Plan, taken: &[Taken]) -> Result<(), Refusal> {
    let Clients::Pool { v4, v6, .. } = &plan.clients else { return Ok(()) };
    [v4, v6].into_iter().flatten().try_for_each(|range| free(range, taken))
}

/// Refuses a range of replayed clients, of a run or of a device that takes its route, that holds an address of a host we
/// know.
///
/// # Errors
/// One sentence, exit code 3.
pub fn free(range: &Range, taken: &[Taken]) -> Result<(), Refusal> {
    match taken.iter().find(|one| range.contains(one.addr.into())) {
        None => Ok(()),
        Some(one) => Err(Refusal::preflight(format!(
            "the client range {range} holds {} ({}). Give a range that nobody uses, for example -c {}",
            one.addr,
            one.what,
            if range.is_v4() { "198.18.16.0/20" } else { "2001:2:0:1::/64" },
        ))),
    }
}

/// The addresses of the plan itself that no client may have: targets, intercepts, online services.
pub fn own_addresses(plan: &Plan) -> Vec<Taken> {
    let taken = |addr: IpAddr, what: &str| Taken { addr, what: what.to_owned() };
    let targets = plan.targets.iter().map(|target| taken(target.addr.ip(), "a target"));
    let intercepts = plan.intercepts.iter().map(|addr| taken(addr.ip(), "an intercept"));
    let online = plan.mappings.iter().filter_map(|m| m.online_ip).map(|ip| taken(ip, "the online service"));
    targets.chain(intercepts).chain(online).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Key, Options, Place as Written};
    use crate::planner::{Facts, plan_from};

    fn plan(map: &str, clients: Option<&str>) -> Plan {
        let mut options = Options::default();
        options.give(Key::Map, map, Written::CommandLine);
        options.give(Key::Intercept, "10.0.4.2", Written::CommandLine);
        if let Some(range) = clients {
            options.give(Key::Clients, range, Written::CommandLine);
        }
        let facts = Facts {
            cores: vec![0],
            host_id: 1,
            random: [0; 6],
            key: Some([0; 32]),
            arena_bytes: |sessions, chunks| u64::from(sessions) * 448 + u64::from(chunks) * 1024,
            format: 0,
        };
        plan_from(&options, &facts).unwrap()
    }

    #[test]
    fn only_another_host_is_a_target() {
        let plan = plan("80-10.0.3.2:8080", None);
        assert_eq!(target(&plan, 0, Place::Remote, false), Ok(()));
        for (place, part) in [
            (Place::ThisHost, "is this host"),
            (Place::Loopback, "loopback"),
            (Place::Broadcast, "broadcast"),
            (Place::Multicast, "multicast"),
            (Place::Unspecified, "no address"),
        ] {
            let refusal = target(&plan, 0, place, false).unwrap_err();
            assert_eq!(refusal.exit, 3);
            assert!(refusal.sentence.contains(part), "{refusal}");
        }
    }

    #[test]
    fn a_lab_allows_this_host_but_not_the_captured_port() {
        assert_eq!(target(&plan("80-127.0.0.1:8080", None), 0, Place::Loopback, true), Ok(()));
        let looped = plan("8080-127.0.0.1:8080", None);
        assert!(target(&looped, 0, Place::Loopback, true).unwrap_err().sentence.contains("captured itself"));
        assert!(target(&looped, 0, Place::Broadcast, true).is_err());
    }

    #[test]
    fn the_captured_service_is_no_target_of_itself() {
        let refusal = target(&plan("10.0.0.1:80-10.0.0.1:80", None), 0, Place::Remote, true).unwrap_err();
        assert!(refusal.sentence.contains("the captured service itself"), "{refusal}");
    }

    #[test]
    fn a_range_with_somebody_in_it_is_refused() {
        let plan = plan("80-10.0.3.2:8080", Some("10.0.0.0/16"));
        let gateway = Taken { addr: "10.0.0.1".parse().unwrap(), what: "the gateway to 10.0.3.2".into() };
        let refusal = client_ranges(&plan, &[gateway]).unwrap_err();
        assert!(refusal.sentence.contains("holds 10.0.0.1 (the gateway to 10.0.3.2)"), "{refusal}");
        assert!(client_ranges(&plan, &own_addresses(&plan)).unwrap_err().sentence.contains("a target"));
        let elsewhere = Taken { addr: "10.1.0.1".parse().unwrap(), what: "eth0".into() };
        assert_eq!(client_ranges(&plan, &[elsewhere]), Ok(()));
    }
}
