//! `tcptwin doctor target`, run on the target: what no other host can see. The kernel is asked what it would do with a replayed
//! client's SYN and with the answer to it; what is left is the firewall, whose rules are shown. Meanwhile counters are watched: one
//! that moves tells what drops.

use std::net::{IpAddr, SocketAddr};

use flow::Range;
use injector::facts::{self, Entry};
use topology::guard::Place;
use topology::plan::Protocol;
use topology::{Key, Options, Refusal, clients, mapping, planner, value};

use super::drops::{Seen, Watch};
use super::finding::{Fault, Finding, Host};
use super::rules::named;
use super::sockets::Table;
use super::{Visit, rights, tools};

/// What the command line asks for.
pub(crate) struct Asked {
    services: Vec<SocketAddr>,
    /// Where answers should go; none with intercept on this host.
    via: Option<IpAddr>,
    ranges: Vec<Range>,
}

impl Asked {
    /// Reads the options.
    ///
    /// # Errors
    /// One sentence, exit code 2.
    pub(crate) fn from(options: &Options) -> Result<Self, Refusal> {
        let services = mapping::services(options)?;
        let services: Vec<SocketAddr> = services.iter().copied().collect();
        let given = clients::ranges(options)?;
        let has = |v4: bool| services.iter().any(|service| service.is_ipv4() == v4);
        let usual = [has(true).then(clients::default_v4), has(false).then(clients::default_v6)];
        let ranges = if given == [None, None] { usual } else { given };
        let via = options.one(Key::Intercept).map(|given| {
            value::endpoint(&given.text, "intercept", Some(planner::DEFAULT_PORT)).map(|at| at.ip()).map_err(
                |why| {
                    given
                        .refuse(format_args!("{why}. Write the assistant's address, for example -s 10.0.4.2"))
                },
            )
        });
        Ok(Self { services, via: via.transpose()?, ranges: ranges.into_iter().flatten().collect() })
    }
}

/// Notes all of it.
pub(crate) fn check(visit: &mut Visit<'_>, asked: &Asked) {
    rights::check(visit);
    let watch = Watch::begin();
    let mut reached = Vec::new();
    for &service in &asked.services {
        listens(visit, service);
        let Some(device) = device_of(service.ip()) else {
            visit.book.note(
                Finding::failed(
                    Host::Target,
                    "address",
                    Fault::BadTarget,
                    format!("{} is no address of this host", service.ip()),
                )
                .because("This belongs on the host where the service under test runs.")
                .mend(visit.this_host(), "ip -br address"),
            );
            continue;
        };
        let of_family = asked.ranges.iter().filter(|range| range.is_v4() == service.is_ipv4());
        for range in of_family {
            answers(visit, asked, range, service);
            entrance(visit, range, service, &device);
            reached.push((range, service));
        }
    }
    let seen = watch.end();
    kernel(visit, &seen);
    for (range, service) in reached {
        firewall(visit, range, service, &seen);
    }
}

/// What the kernel itself dropped while it was watched.
fn kernel(visit: &mut Visit<'_>, seen: &Seen) {
    let check = "drops";
    let here = visit.this_host();
    let time = format!("in {:.1} s", seen.time.as_secs_f64());
    if seen.kernel.is_empty() && seen.dropped.is_empty() {
        let silent = match seen.silent {
            0 => String::new(),
            rules => format!("; {} may drop without counting", crate::words::counted(rules as u64, "rule")),
        };
        let told = format!("no counter of drops moved {time}{silent}");
        visit.book.note(Finding::ok(Host::Target, check, told));
    }
    for &(name, what, packets) in &seen.kernel {
        let told = format!("{packets} {time}: {name}");
        let finding = if name == "IPReversePathFilter" {
            Finding::failed(Host::Target, check, Fault::TargetReversePath, told)
                .because(format!("So many packets were {what}: the way back to where they say they come from leads elsewhere."))
                .mend(&here, "sysctl -w net.ipv4.conf.all.rp_filter=2")
        } else {
            Finding::warning(Host::Target, check, Fault::TargetBusy, told)
                .because(format!("So many were {what}."))
                .mend(&here, "ss -ltn; sysctl net.core.somaxconn net.ipv4.tcp_max_syn_backlog")
        };
        visit.book.note(finding);
    }
}

fn listens(visit: &mut Visit<'_>, service: SocketAddr) {
    let table = Table::read(Protocol::Tcp);
    let check = "service";
    if table.listens(Some(service.ip()), service.port()) {
        visit.book.note(Finding::ok(Host::Target, check, format!("somebody listens at {service}")));
        return;
    }
    let others: Vec<String> = table.listening().iter().take(8).map(ToString::to_string).collect();
    let others = if others.is_empty() {
        "no port has a listener".to_owned()
    } else {
        format!("there are listeners at {}", others.join(", "))
    };
    visit.book.note(
        Finding::failed(Host::Target, check, Fault::TargetRefuses, format!("nobody listens at {service}"))
            .because(format!(
                "The service is down, listens at another port, or only at another address: {others}."
            ))
            .mend(visit.this_host(), "ss -ltnp"),
    );
}

/// The device that has the address.
fn device_of(ip: IpAddr) -> Option<capturer::Interface> {
    let has = |one: &capturer::Interface| one.addresses.iter().any(|(addr, _)| *addr == ip);
    capturer::interfaces::interfaces().into_iter().find(has)
}

/// Where an answer to a replayed client goes.
fn answers(visit: &mut Visit<'_>, asked: &Asked, range: &Range, service: SocketAddr) {
    let client = client_of(range);
    let family = if service.is_ipv4() { "" } else { "-6 " };
    let check = "answers";
    let here = visit.this_host();
    let mend = match asked.via {
        Some(via) => format!("ip {family}route replace {range} via {via}"),
        None => format!("tcptwin intercept -x {service} --tun -c {range}"),
    };
    let finding = match injector::route_to(SocketAddr::new(client, 0)) {
        Err(_) => Finding::failed(Host::Target, check, Fault::TargetNoRoute, format!("no route to {client}"))
            .because("The kernel cannot answer a replayed client and drops its SYN without a word.")
            .mend(here, mend),
        Ok(route) => {
            let hop = route.next_hop.map_or_else(
                || format!("dev {}", route.device),
                |hop| format!("via {hop} dev {}", route.device),
            );
            let own_device = route.device.starts_with("tcptwin") || route.device.starts_with("tun");
            let right = match asked.via {
                Some(via) => route.next_hop == Some(via) || is_here(via) && own_device,
                None => own_device,
            };
            match right {
                true => Finding::ok(Host::Target, check, format!("to {range} go {hop}")),
                false => {
                    let wanted = asked
                        .via
                        .map_or_else(|| "into intercept's device".to_owned(), |via| format!("via {via}"));
                    Finding::failed(Host::Target, check, Fault::TargetWrongRoute, format!("to {range} go {hop}"))
                        .because(format!("They should go {wanted}: where they go now nobody waits for them, or a real host gets them."))
                        .mend(here, mend)
                }
            }
        }
    };
    visit.book.note(finding);
}

fn is_here(ip: IpAddr) -> bool {
    injector::route_to(SocketAddr::new(ip, 0))
        .is_ok_and(|route| matches!(route.place, Place::ThisHost | Place::Loopback))
}

/// Whether the kernel takes a replayed client's packet in.
fn entrance(visit: &mut Visit<'_>, range: &Range, service: SocketAddr, device: &capturer::Interface) {
    let client = client_of(range);
    let check = "reverse path";
    let here = visit.this_host();
    let name = &device.name;
    let finding = match facts::entry(client, service, device.index) {
        Ok(Entry::Taken) => Finding::ok(Host::Target, check, format!("packets from {range} are taken on {name}")),
        Ok(Entry::Dropped) if filters_reverse_path(name) => Finding::failed(Host::Target, check, Fault::TargetReversePath, format!("strict on {name}: packets from {range} are dropped"))
            .because("The way back to them leads to another device, and the kernel drops what did not come from there.")
            .mend(here, format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2")),
        Ok(Entry::Dropped) => Finding::failed(Host::Target, check, Fault::TargetReversePath, format!("packets from {range} are impossible on {name}"))
            .because("The range holds an address of this host, or the kernel takes it for none of a host.")
            .mend(here, format!("ip route get {} from {client} iif {name}", service.ip())),
        Ok(Entry::Refused) => Finding::failed(Host::Target, check, Fault::TargetNoRoute, format!("packets from {range} are refused on {name}"))
            .because("A route of this host refuses them.")
            .mend(here, format!("ip route get {} from {client} iif {name}", service.ip())),
        Err(error) => Finding::skipped(Host::Target, check, format!("asking the kernel failed: {}", crate::words::of_io(&error))),
    };
    visit.book.note(finding);
}

/// Whether the reverse path of what comes in by a device is looked at: the larger of two settings counts (ip-sysctl, rp_filter).
fn filters_reverse_path(device: &str) -> bool {
    ["all", device].iter().any(|name| {
        tools::sysctl(&format!("net/ipv4/conf/{name}/rp_filter")).is_some_and(|value| value != "0")
    })
}

/// Rules that may drop what comes from replayed clients, or the answers.
fn firewall(visit: &mut Visit<'_>, range: &Range, service: SocketAddr, seen: &Seen) {
    let check = "firewall";
    if !seen.rules.readable() {
        visit.book.note(Finding::skipped(Host::Target, check, "needs nft or iptables-save, and root"));
        return;
    }
    let met: u64 = seen.dropped.iter().map(|one| one.1).sum();
    // What was seen to drop is the one.
    let suspects = match met {
        0 => seen.suspects(),
        _ => seen.dropped.iter().map(|one| one.0.clone()).collect(),
    };
    if suspects.is_empty() {
        visit.book.note(Finding::ok(Host::Target, check, "no rule drops anything"));
        return;
    }
    let invalid = suspects.iter().any(|one| one.rule.contains("invalid") || one.rule.contains("INVALID"));
    let others: Vec<_> = suspects
        .iter()
        .filter(|one| !one.rule.contains("invalid") && !one.rule.contains("INVALID"))
        .collect();
    let here = visit.this_host();
    let family = if service.is_ipv4() { "ip" } else { "ip6" };
    let tracked = tools::sysctl("net/netfilter/nf_conntrack_count").is_some();
    let mut finding = Finding::failed(
        Host::Target,
        check,
        Fault::TargetFirewall,
        match met {
            0 => crate::words::counted(suspects.len() as u64, "rule") + " may drop them",
            _ => format!("{met} packets dropped in {:.1} s", seen.time.as_secs_f64()),
        },
    )
    .because(format!(
        "{}: {}.{}",
        match met {
            0 => "The route and the reverse path let replayed clients in, these may not",
            _ => "Counted while it was watched",
        },
        named(&suspects),
        if invalid && tracked {
            " What conntrack calls invalid is what follows a SYN of which it did not see the answer."
        } else {
            ""
        }
    ));
    // With other obstacles it is only a suspect; alone it is the one that is left.
    if visit.book.has(Fault::TargetNoRoute)
        || visit.book.has(Fault::TargetWrongRoute)
        || visit.book.has(Fault::TargetReversePath)
        || visit.book.has(Fault::TargetRefuses)
    {
        finding.outcome = super::finding::Outcome::Warning;
    }
    let mut told = Vec::new();
    for suspect in others {
        let nft = format!("{family} saddr {range} tcp dport {}", service.port());
        let command = suspect.exception(&nft, &format!("-s {range} -p tcp --dport {}", service.port()));
        if !told.contains(&command) {
            finding = finding.mend_if(if told.is_empty() { "" } else { "And" }, &here, command.clone());
            told.push(command);
        }
    }
    if invalid {
        finding = finding.mend_if(
            if told.is_empty() { "" } else { "And" },
            &here,
            format!("nft 'table inet replayed {{ chain c {{ type filter hook prerouting priority -300; {family} saddr {range} notrack; }}; }}'"),
        );
    }
    visit.book.note(finding);
}

/// The client that a probe speaks as.
fn client_of(range: &Range) -> IpAddr {
    flow::probe::address(range).to_ip()
}
