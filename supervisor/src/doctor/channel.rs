//! The return channel: whether each intercept is there, holds the same key, speaks the same version, and takes this instance.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use injector::DialError;
use injector::facts::Neighbour;
use returns::{LinkError, RefusedCode};
use topology::Plan;
use topology::plan::Clients;
use topology::planner::DEFAULT_PORT;

use super::finding::{Fault, Finding, Host, Outcome};
use super::{Visit, path};

/// How long an intercept has to answer, over three tries.
const DIAL_TIME: Duration = Duration::from_millis(1_500);

/// Notes each intercept; whether all of them take this instance. A range that was chosen by itself gives way, as in a run.
pub(crate) fn check(visit: &mut Visit<'_>, plan: &mut Plan) -> bool {
    let mut all = true;
    for index in 0..plan.intercepts.len() {
        let at = plan.intercepts[index];
        let mut moved = String::new();
        let finding = loop {
            let started = Instant::now();
            match injector::handshake(at, plan, DIAL_TIME) {
                Ok(welcome) => {
                    let ms = started.elapsed().as_micros() as u64;
                    let key = if plan.key.is_some() { "key matches" } else { "no key" };
                    let seen =
                        format!("{} ms, version {}, {key}{moved}", crate::words::ms(ms), welcome.software);
                    break match welcome.software == env!("CARGO_PKG_VERSION") {
                        true => Finding::ok(Host::Intercept, at.to_string(), seen),
                        false => Finding::warning(Host::Intercept, at.to_string(), Fault::Version, seen).because(
                            format!("This is version {}. The channel is the same; still, run the same on both hosts.", env!("CARGO_PKG_VERSION")),
                        ),
                    };
                }
                Err(error) => match given_way(plan, &error) {
                    Some(words) if moved.is_empty() => moved = words,
                    _ => break trouble(visit, plan, at, &error),
                },
            }
        };
        all &= finding.outcome != Outcome::Failed;
        visit.book.note(finding);
    }
    all
}

/// Takes the free range that a refusing intercept names, where ours was not asked for.
fn given_way(plan: &mut Plan, error: &DialError) -> Option<String> {
    let DialError::Refused { code: RefusedCode::RangeTaken, suggestion: Some(free), .. } = error else {
        return None;
    };
    let Clients::Pool { v4, v6, chosen: true } = &mut plan.clients else { return None };
    let old = if free.is_v4() { v4 } else { v6 }.replace(*free)?;
    Some(format!(", {old} is in use: a run takes {free}"))
}

fn trouble(visit: &Visit<'_>, plan: &Plan, at: SocketAddr, error: &DialError) -> Finding {
    let there = format!("the assistant ({})", at.ip());
    let failed = |fault: Fault, seen: String| Finding::failed(Host::Intercept, at.to_string(), fault, seen);
    match error {
        DialError::NoAnswer { why, intercept, .. } => no_answer(visit, plan, at, why, intercept, &there),
        DialError::Refused { code, sentence, suggestion, .. } => {
            let fault = match code {
                RefusedCode::RangeTaken => Fault::PoolTaken,
                RefusedCode::RangeNotRouted => Fault::PoolNotRouted,
                RefusedCode::TargetsUnknown => Fault::TargetUnknown,
                _ => Fault::InterceptRefuses,
            };
            let finding = failed(fault, format!("refuses: {}", code.name().replace('_', " ")))
                .because(format!("{sentence}."));
            match (code, suggestion) {
                (RefusedCode::RangeTaken, Some(free)) => {
                    finding.mend(visit.this_host(), format!("tcptwin run -c {free} ... (or leave -c out)"))
                }
                (RefusedCode::TargetsUnknown, _) => {
                    let targets: Vec<String> = plan
                        .targets
                        .iter()
                        .map(|one| format!("{}{}", one.protocol.prefix(), one.addr))
                        .collect();
                    finding.mend(there, format!("tcptwin intercept -x {} ...", targets.join(",")))
                }
                (RefusedCode::RangeNotRouted, _) => {
                    let ranges = plan
                        .targets
                        .first()
                        .and_then(|target| visit.clients_of(target.addr))
                        .unwrap_or_default();
                    finding.mend(there, format!("tcptwin intercept --tun -c {ranges} ..."))
                }
                (_, _) => finding.mend(there, "tcptwin stats --name intercept"),
            }
        }
        DialError::Link(LinkError::WrongKey { .. }) => failed(Fault::WrongKey, "the keys differ".to_owned())
            .because("Both ends hold a key, but not the same one.")
            .mend(visit.this_host(), format!("scp root@{}:/etc/tcptwin/key /etc/tcptwin/key", at.ip()))
            .mend_if(
                "Then, if it ran with another file",
                there,
                "tcptwin intercept ... --key /etc/tcptwin/key",
            ),
        DialError::Link(LinkError::Mode { here, there: theirs, .. }) => {
            failed(Fault::KeyMode, format!("here {here}, there {theirs}"))
                .because("One end has a key and the other has none.")
                .mend(there, "tcptwin intercept ... --key /etc/tcptwin/key")
                .mend_if("Or, in a network that you trust", "both hosts", "add --plain")
        }
        DialError::Link(LinkError::Version { here, there: theirs, .. }) => {
            failed(Fault::Version, format!("channel version {theirs} there, {here} here"))
                .because("The two programs are of different versions.")
                .mend(there, "tcptwin --version")
                .mend_if(
                    "Copy the newer one over the older, for example",
                    visit.this_host(),
                    format!("scp {} root@{}:/usr/local/bin/tcptwin", program(), at.ip()),
                )
        }
        DialError::Link(LinkError::NotTcptwin { .. }) => wrong_port(visit, plan, at)
            .unwrap_or_else(|| failed(Fault::NotTcptwin, "another program listens there".to_owned()))
            .because("What speaks at this port is no return channel of tcptwin.")
            .mend(there, format!("ss -ltnp 'sport = :{}'", at.port()))
            .mend_if(
                "Where intercept listens is said by",
                format!("the assistant ({})", at.ip()),
                "tcptwin stats --name intercept",
            ),
        DialError::Link(error) => {
            failed(Fault::InterceptRefuses, "the conversation broke".to_owned()).because(format!("{error}."))
        }
    }
}

fn program() -> String {
    std::env::current_exe().map_or_else(|_| "/usr/bin/tcptwin".to_owned(), |path| path.display().to_string())
}

/// Nobody, nobody at this port, a firewall, or no host at all.
fn no_answer(
    visit: &Visit<'_>,
    plan: &Plan,
    at: SocketAddr,
    why: &str,
    intercept: &str,
    there: &str,
) -> Finding {
    let failed = |fault: Fault, seen: String| Finding::failed(Host::Intercept, at.to_string(), fault, seen);
    let check = "tcptwin doctor intercept";
    if why == "connection refused" {
        return wrong_port(visit, plan, at).unwrap_or_else(|| {
            failed(Fault::NoIntercept, why.to_owned())
                .because("The host is there, and nothing listens at this port: intercept does not run, or listens at another one. It does not start on a host that would pass the answers on (ip_forward).")
                .mend(there, format!("tcptwin intercept {intercept}"))
                .mend_if("If it says that it cannot", there, format!("{check} {intercept}"))
                .mend_if("If it runs, where it listens is said by", there, "tcptwin stats --name intercept")
        });
    }
    let route = injector::route_to(at);
    let (silent, hop) = match &route {
        Ok(route) => {
            let hop = route.next_hop.unwrap_or(at.ip());
            (path::neighbour(route, hop) == Some(Neighbour::Silent), hop)
        }
        Err(error) => {
            return failed(Fault::NoRoute, "no route".to_owned())
                .because(format!("{error}."))
                .mend(visit.this_host(), format!("ip route get {}", at.ip()));
        }
    };
    if silent || why.contains("unreachable") && !why.contains("port") {
        return failed(Fault::InterceptHost, why.to_owned())
            .because(format!(
                "{hop} does not answer for its address: the host is down, or -s names another one."
            ))
            .mend(visit.this_host(), format!("ip neigh show {hop}; ping -c 3 {}", at.ip()));
    }
    failed(Fault::InterceptFirewall, format!("{why}, though the host is there"))
        .because("Connections to this port are swallowed: most likely a firewall there, or between.")
        .mend(there, format!("nft insert rule inet filter input tcp dport {} accept", at.port()))
        .mend_if(
            "With the older tool",
            there,
            format!("iptables -I INPUT -p tcp --dport {} -j ACCEPT", at.port()),
        )
        .mend_if("Which rule it is says", there, format!("{check} {intercept}"))
}

/// Whether an intercept answers at the usual port instead.
fn wrong_port(visit: &Visit<'_>, plan: &Plan, at: SocketAddr) -> Option<Finding> {
    let usual = SocketAddr::new(at.ip(), DEFAULT_PORT);
    if at.port() == DEFAULT_PORT {
        return None;
    }
    match injector::handshake(usual, plan, DIAL_TIME / 3) {
        Err(DialError::NoAnswer { .. } | DialError::Link(LinkError::NotTcptwin { .. })) => None,
        _ => Some(
            Finding::failed(
                Host::Intercept,
                at.to_string(),
                Fault::InterceptPort,
                "no intercept at this port",
            )
            .because(format!("One answers at {usual}."))
            .mend(visit.this_host(), format!("tcptwin run -s {} ...", at.ip())),
        ),
    }
}
