//! `tcptwin doctor intercept`, run where intercept runs, with its arguments: what keeps it from starting, from seeing the
//! answers, and from being reached.

use serde_json::Value;
use topology::Listening;
use topology::guard::Place;

use super::finding::{Fault, Finding, Host};
use super::rules::{Rules, named};
use super::{Visit, devices, path, rights, tools};
use crate::control::{Request, ask};
use crate::place;

/// Notes all of it.
pub(crate) fn check(visit: &mut Visit<'_>, wanted: &Listening) {
    rights::check(visit);
    if wanted.tun.is_none() {
        devices::check(visit, &wanted.interfaces);
    } else if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        let why = crate::words::of_io(&error);
        visit.book.note(
            Finding::failed(
                Host::Intercept,
                "device",
                Fault::NoInterface,
                format!("/dev/net/tun cannot be opened ({why})"),
            )
            .mend(visit.this_host(), "modprobe tun"),
        );
    }
    forwarding(visit, wanted);
    for service in wanted.services.iter() {
        way_to(visit, wanted, *service);
    }
    let running = running(wanted);
    listening(visit, wanted, running.as_ref());
    if let Some(state) = running {
        seen(visit, &state);
    }
}

/// The port that runs dial.
fn port_of(wanted: &Listening) -> u16 {
    wanted.listen.first().map_or(intercept::DEFAULT_PORT, std::net::SocketAddr::port)
}

/// What a running intercept says: the one of this name, else the one at this port.
fn running(wanted: &Listening) -> Option<Value> {
    let is_one = |state: &Value| state["kind"] == "intercept";
    let state_of = |name: &str| ask(name, Request::Stats).ok().filter(is_one);
    state_of(&wanted.name).or_else(|| {
        let others = place::instances();
        others.iter().filter_map(|name| state_of(name)).find(|state| has_port(state, port_of(wanted)))
    })
}

fn has_port(state: &Value, port: u16) -> bool {
    let end = format!(":{port}");
    let at = |addr: &Value| addr.as_str().is_some_and(|addr| addr.ends_with(&end));
    state["listening"].as_array().is_some_and(|all| all.iter().any(at))
}

/// An assistant that forwards would carry the answers on to whoever has the clients' addresses.
fn forwarding(visit: &mut Visit<'_>, wanted: &Listening) {
    if wanted.tun.is_some() {
        visit.book.note(Finding::ok(Host::Intercept, "forwarding", "answers end in the device of --tun"));
        return;
    }
    let here = visit.this_host();
    let has = |v4: bool| wanted.services.iter().any(|service| service.is_ipv4() == v4);
    let settings = [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")];
    for (_, setting) in settings.into_iter().filter(|(v4, _)| has(*v4)) {
        let dotted = setting.replace('/', ".");
        let on = tools::sysctl(setting).is_some_and(|value| value != "0");
        let finding = match (on, wanted.guard) {
            (false, _) => Finding::ok(Host::Intercept, "forwarding", format!("off ({dotted})")),
            (true, true) => Finding::ok(Host::Intercept, "forwarding", format!("{dotted}=1, held by the rule of --guard")),
            (true, false) => Finding::failed(Host::Intercept, "forwarding", Fault::Forwarding, format!("{dotted}=1"))
                .because("This host would pass the target's answers on to the clients' addresses, which with --keep-clients are real users'. Intercept does not start like that.")
                .mend(&here, format!("sysctl -w {dotted}=0"))
                .mend_if("If others need it (containers, a router)", &here, "tcptwin intercept ... --guard"),
        };
        visit.book.note(finding);
    }
}

fn way_to(visit: &mut Visit<'_>, wanted: &Listening, service: std::net::SocketAddr) {
    let check = "target";
    let finding = match injector::route_to(service) {
        Err(error) => Finding::failed(Host::Intercept, check, Fault::NoRoute, format!("{service}: no route"))
            .because(format!("{error}."))
            .mend(visit.this_host(), format!("ip route get {}", service.ip())),
        Ok(route) if matches!(route.place, Place::ThisHost | Place::Loopback) => match wanted.tun {
            Some(_) => Finding::ok(Host::Intercept, check, format!("{service} is this host")),
            None => {
                Finding::failed(Host::Intercept, check, Fault::BadTarget, format!("{service} is this host"))
                    .because("On the target itself the answers are taken by a device of intercept's own.")
                    .mend(visit.this_host(), format!("tcptwin intercept -x {service} --tun"))
            }
        },
        Ok(route) => {
            let hop = route.next_hop.unwrap_or(service.ip());
            let via = route.next_hop.map_or_else(String::new, |hop| format!(" via {hop}"));
            let seen =
                format!("{}{via} dev {}, this host is {} to it", service.ip(), route.device, route.local);
            match path::neighbour(&route, hop) {
                Some(injector::facts::Neighbour::Silent) => {
                    Finding::failed(Host::Intercept, check, Fault::NextHopSilent, format!("{seen}, {hop} silent"))
                        .because("It does not answer for its address: the host is down, or the address is not on this network.")
                        .mend(visit.this_host(), format!("ip neigh show {hop}"))
                }
                _ if route.next_hop.is_some() => Finding::warning(Host::Intercept, check, Fault::NextHopSilent, seen).because(
                    "It is behind a router. The target's route can name this host only where both are on one network: else the router must have the route too, or intercept runs on the target with --tun.",
                ),
                _ => Finding::ok(Host::Intercept, check, seen),
            }
        }
    };
    visit.book.note(finding);
}

/// Whether the port is ours, or free; and whether the firewall lets anybody in.
fn listening(visit: &mut Visit<'_>, wanted: &Listening, running: Option<&Value>) {
    let port = port_of(wanted);
    let name = running.and_then(|state| state["name"].as_str()).unwrap_or(&wanted.name);
    let ours = running.map(|state| has_port(state, port));
    let table = super::sockets::Table::read(topology::plan::Protocol::Tcp);
    let here = visit.this_host();
    let check = "listening";
    let finding = match (ours, table.listens(None, port)) {
        (Some(true), _) => Finding::ok(Host::Intercept, check, format!("intercept {name} at port {port}")),
        (Some(false), _) => Finding::failed(
            Host::Intercept,
            check,
            Fault::InterceptPort,
            format!("intercept {name} runs, and not at port {port}"),
        )
        .because("It listens where its --listen said.")
        .mend(&here, format!("tcptwin stats --name {name}")),
        (None, true) => Finding::failed(
            Host::Intercept,
            check,
            Fault::NotTcptwin,
            format!("another program has port {port}"),
        )
        .mend(&here, format!("ss -ltnp 'sport = :{port}'"))
        .mend_if("Or choose another port", &here, "tcptwin intercept --listen ADDR:PORT ..."),
        (None, false) => Finding::warning(
            Host::Intercept,
            check,
            Fault::NoIntercept,
            format!("no intercept named {name} runs here; port {port} is free"),
        )
        .mend(&here, "tcptwin intercept ... (the same arguments)"),
    };
    visit.book.note(finding);
    let rules = Rules::read();
    let suspects = rules.suspects(&["ingress", "prerouting", "input"]);
    let finding = match (rules.readable(), suspects.as_slice()) {
        (false, _) => {
            Finding::skipped(Host::Intercept, "firewall in", "needs nft or iptables-save, and root")
        }
        (true, []) => Finding::ok(Host::Intercept, "firewall in", "no rule drops anything"),
        (true, some) => {
            let command = some[0].exception(&format!("tcp dport {port}"), &format!("-p tcp --dport {port}"));
            Finding::warning(Host::Intercept, "firewall in", Fault::ListenFirewall, crate::words::counted(some.len() as u64, "rule") + " may drop connections")
                .because(format!("Runs must reach port {port}; these may not let them: {}. Answers of the target are seen before them.", named(some)))
                .mend(&here, command)
        }
    };
    visit.book.note(finding);
}

/// What a running one sees of the targets.
fn seen(visit: &mut Visit<'_>, state: &Value) {
    let number = |path: &str| state.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (captured, headers, unknown) =
        (number("/capture/captured"), number("/capture/headers"), number("/capture/unknown"));
    let peers = state.pointer("/peers").and_then(|peers| peers.as_array()).map_or(0, Vec::len);
    let thousands = crate::words::thousands;
    let seen = format!(
        "{} answers seen, {} returned, {} for nobody, {}",
        thousands(captured),
        thousands(headers),
        thousands(unknown),
        crate::words::counted(peers as u64, "run")
    );
    let finding = match (captured, unknown) {
        (0, _) => Finding::warning(Host::Intercept, "answers", Fault::NothingSeen, seen).because(
            "Nothing of the target came here so far: nothing was replayed yet, or its answers go elsewhere. On the target, `tcptwin doctor target` tells which.",
        ),
        (all, lost) if lost * 2 > all => Finding::warning(Host::Intercept, "answers", Fault::NothingSeen, seen)
            .because("Most of what comes belongs to no run that is connected: a run that ended, or clients outside of its range."),
        _ => Finding::ok(Host::Intercept, "answers", seen),
    };
    visit.book.note(finding);
}
