//! The way out to each target: route, next hop, MTU, rules that can drop; and that no real network has the clients' addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flow::Range;
use injector::RouteFacts;
use injector::facts::{self, Neighbour};
use topology::guard::{self, Place, Taken};
use topology::plan::Clients;

use super::Visit;
use super::finding::{Fault, Finding, Host};
use super::rules::{Rules, named};
use crate::preflight;

/// Time for a neighbour to answer.
const PATIENCE: Duration = Duration::from_millis(1_200);

/// Notes each target's way; the routes of those that have one, with the target's index.
pub(crate) fn check(visit: &mut Visit<'_>, lab: bool) -> Vec<(usize, RouteFacts)> {
    let mut routes = Vec::new();
    for index in 0..visit.plan.targets.len() {
        let to = visit.plan.targets[index].addr;
        let check = "path out";
        let route = match injector::route_to(to) {
            Ok(route) => route,
            Err(error) => {
                let on = visit.this_host();
                visit.book.note(
                    Finding::failed(Host::Online, check, Fault::NoRoute, format!("{}: no route", to.ip()))
                        .because(format!("{error}."))
                        .mend(&on, format!("ip route get {}", to.ip()))
                        .mend_if(
                            "Where a gateway is known",
                            &on,
                            format!("ip route add {} via GATEWAY", to.ip()),
                        ),
                );
                continue;
            }
        };
        if let Err(refusal) = guard::target(visit.plan, index, route.place, lab) {
            visit.book.note(
                Finding::failed(Host::Online, check, Fault::BadTarget, to.to_string())
                    .because(refusal.sentence),
            );
            continue;
        }
        let hop = route.next_hop.unwrap_or(to.ip());
        let via = route.next_hop.map_or_else(String::new, |hop| format!(" via {hop}"));
        let seen = format!("{}{via} dev {}, MTU {}", to.ip(), route.device, route.mtu);
        let finding = match neighbour(&route, hop) {
            Some(Neighbour::Silent) => {
                let what = if route.next_hop.is_some() { "The gateway" } else { "The target" };
                Finding::failed(Host::Online, check, Fault::NextHopSilent, format!("{seen}, {hop} silent"))
                    .because(format!("{what} does not answer for its address on {}: it is down, or the address is not on this network.", route.device))
                    .mend(visit.this_host(), format!("ip neigh show {hop} dev {}", route.device))
                    .mend_if("If it is down", format!("the host {hop}"), "ip -br address")
            }
            Some(_) => Finding::ok(Host::Online, check, format!("{seen}, neighbour reachable")),
            None => Finding::ok(Host::Online, check, seen),
        };
        visit.book.note(finding);
        routes.push((index, route));
    }
    routes
}

/// How the next hop stands, where there is one to ask for.
pub(crate) fn neighbour(route: &RouteFacts, hop: IpAddr) -> Option<Neighbour> {
    let asked = route.place == Place::Remote && route.device_index != 0;
    asked.then(|| facts::next_hop(route.device_index, hop, PATIENCE).ok()).flatten()
}

/// Notes whether the client range is anybody's.
pub(crate) fn pool(visit: &mut Visit<'_>, routes: &[(usize, RouteFacts)]) {
    let Clients::Pool { v4, v6, .. } = &visit.plan.clients else {
        visit.book.note(Finding::ok(Host::Online, "clients", "their own addresses (--keep-clients)"));
        return;
    };
    let mut taken = guard::own_addresses(visit.plan);
    taken.extend(preflight::of_this_host());
    for (index, route) in routes {
        let what = format!("the gateway to {}", visit.plan.targets[*index].addr.ip());
        taken.extend(route.next_hop.map(|addr| Taken { addr, what: what.clone() }));
    }
    let ranges: Vec<Range> = v4.iter().chain(v6).copied().collect();
    let networks = networks();
    for range in &ranges {
        let holds = taken.iter().find(|one| range.contains(one.addr.into()));
        let overlaps = networks.iter().find(|(network, _)| network.overlaps(range));
        let why = match (holds, overlaps) {
            (Some(one), _) => format!("{} is {}", one.addr, one.what),
            (None, Some((network, device))) => format!("{network} is the network on {device}"),
            (None, None) => continue,
        };
        let free = if range.is_v4() { "198.18.16.0/20" } else { "2001:2:0:1::/64" };
        visit.book.note(
            Finding::failed(Host::Online, "clients", Fault::PoolInUse, format!("{range} is a real network's"))
                .because(format!("{why}: answers to replayed clients would reach real hosts, or never leave the target's network."))
                .mend(visit.this_host(), format!("tcptwin run -c {free} ... (or leave -c out)")),
        );
        return;
    }
    let shown: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    visit.book.note(Finding::ok(
        Host::Online,
        "clients",
        format!("as {}, which nobody here has", shown.join(" and ")),
    ));
}

/// The networks that this host is on.
fn networks() -> Vec<(Range, String)> {
    let mut found = Vec::new();
    for interface in capturer::interfaces::interfaces() {
        let network = |(addr, prefix): &(IpAddr, u8)| Range::new((*addr).into(), *prefix);
        found.extend(
            interface.addresses.iter().filter_map(network).map(|range| (range, interface.name.clone())),
        );
    }
    found
}

/// Notes what the firewall here may do to packets that leave by raw IP. What it does is for the probe to say.
pub(crate) fn firewall(visit: &mut Visit<'_>, rules: &Rules) {
    let suspects = rules.suspects(OUT);
    let tracked = super::tools::sysctl("net/netfilter/nf_conntrack_count");
    let tracking = tracked.map_or_else(String::new, |count| format!(", {count} tracked connections"));
    let seen = match (rules.readable(), suspects.as_slice()) {
        (false, _) => "its rules cannot be read here; the probe tells".to_owned(),
        (true, []) => format!("no rule drops what leaves{tracking}"),
        (true, some) => format!(
            "{} that may drop, see the probe{tracking}",
            crate::words::counted(some.len() as u64, "rule")
        ),
    };
    visit.book.note(Finding::ok(Host::Online, "firewall out", seen));
}

/// The hooks that a packet of this host's own passes.
pub(crate) const OUT: &[&str] = &["output", "postrouting", "egress"];

/// A SYN that did not leave: by which rule, and what lets it.
pub(crate) fn did_not_leave(
    visit: &Visit<'_>,
    rules: &Rules,
    to: SocketAddr,
    from: IpAddr,
    seen: String,
) -> Finding {
    let suspects = rules.suspects(OUT);
    let clients = visit.clients_of(to).unwrap_or_else(|| from.to_string());
    let finding = Finding::failed(Host::Probe, "SYN out", Fault::LocalFirewall, seen);
    if suspects.is_empty() {
        return finding
            .because("The kernel of this host took it and did not let it out, and no rule could be found that says so.")
            .mend(visit.this_host(), "nft list ruleset; iptables-save; tc filter show");
    }
    let mut finding =
        finding.because(format!("A rule of this host's firewall drops it: {}.", named(&suspects)));
    let family = if to.is_ipv4() { "ip" } else { "ip6" };
    let (nft, iptables) = (
        format!("{family} saddr {clients} {family} daddr {}", to.ip()),
        format!("-s {clients} -d {}", to.ip()),
    );
    let mut told: Vec<String> = Vec::new();
    for suspect in &suspects {
        let command = suspect.exception(&nft, &iptables);
        if !told.contains(&command) {
            let when = if told.is_empty() { "" } else { "And" };
            finding = finding.mend_if(when, visit.this_host(), command.clone());
            told.push(command);
        }
    }
    finding
}
