//! The live probe of each target, hop by hop: the SYN leaves, intercept sees its answer, the header comes here; then what follows
//! a handshake. Where an answer is missing, what this host can see besides says which causes are left, in their order.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use injector::probing::{self, Depth};
use injector::{Choice, Fence, Report, Verdict};
use shm::{Control, LockFile};
use topology::Plan;
use topology::plan::{InjectEngine, Protocol};

use super::finding::{Fault, Finding, Host};
use super::rules::Rules;
use super::tap::Tap;
use super::{Visit, path};
use crate::{place, words};

/// Patience of this host's own connection to a target.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a connection of this host's own to a target ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direct {
    /// It stands, after so many microseconds.
    Connected(u64),
    /// Nobody listens at the port.
    Refused,
    /// No answer, or an unreachable host.
    Silent,
}

/// Connects to a target as any client of this host would, and hangs up.
pub(crate) fn direct(to: SocketAddr) -> Direct {
    let started = Instant::now();
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => Direct::Connected(started.elapsed().as_micros() as u64),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Direct::Refused,
        Err(_) => Direct::Silent,
    }
}

/// Notes each target's service as this host itself sees it, and returns what it saw.
pub(crate) fn services(visit: &mut Visit<'_>) -> Vec<(SocketAddr, Direct)> {
    let mut found = Vec::new();
    let targets: Vec<_> =
        visit.plan.targets.iter().filter(|one| one.protocol == Protocol::Tcp).map(|one| one.addr).collect();
    for to in targets {
        let direct = direct(to);
        let check = "service";
        let finding = match direct {
            Direct::Connected(us) => Finding::ok(Host::Target, check, format!("{to} accepts a connection of this host, {} ms", words::ms(us))),
            Direct::Refused => refused(visit, to),
            Direct::Silent => Finding::warning(Host::Target, check, Fault::TargetSilent, format!("{to} does not answer this host either"))
                .because("A firewall there or between drops it, or the host is down; the probe says whether replayed clients fare better."),
        };
        visit.book.note(finding);
        found.push((to, direct));
    }
    found
}

/// Nobody listens at the target's port.
fn refused(visit: &Visit<'_>, to: SocketAddr) -> Finding {
    let online =
        visit.plan.mappings.iter().find(|one| visit.plan.targets[usize::from(one.target)].addr == to);
    let other = online.map(|one| SocketAddr::new(to.ip(), one.online_port)).filter(|other| *other != to);
    let hint = match other.filter(|other| matches!(self::direct(*other), Direct::Connected(_))) {
        Some(other) => format!(" Somebody listens at {other}, the online port: is that the one?"),
        None => String::new(),
    };
    let there = format!("the target ({})", to.ip());
    Finding::failed(Host::Target, "service", Fault::TargetRefuses, format!("{to} refuses connections"))
        .because(format!("The host answers, and nothing listens at this port: the service is down, or -x names another port than its own.{hint}"))
        .mend(&there, format!("ss -ltn 'sport = :{}'", to.port()))
        .mend_if("Which ports have a listener says", there, visit.doctor_target(to))
}

/// Probes every target and notes what was found.
pub(crate) fn check(visit: &mut Visit<'_>, plan: &Plan, rules: &Rules, direct: &[(SocketAddr, Direct)]) {
    let sockets = match injector::open(plan) {
        Ok(sockets) => sockets,
        Err(error) => {
            visit.book.note(Finding::skipped(Host::Probe, "SYN out", error.to_string()));
            return;
        }
    };
    // The same guard as a run's: by which engine packets leave, and whether they are tracked, depends on it.
    let guarded = Plan { name: format!("{}-doctor", plan.name), ..plan.clone() };
    // A run that starts meanwhile takes away guards whose lock is free.
    let lock =
        place::directory().ok().and_then(|directory| LockFile::acquire(&guarded.name, &directory).ok());
    let fence = Fence::install(&guarded).ok().map(|(fence, _)| fence);
    let control: &'static Control = Box::leak(Box::default());
    match plan.inject {
        InjectEngine::Link | InjectEngine::Pcap => control.set_guarded(&[shm::ANY_DEVICE]),
        _ => control.set_guarded(fence.as_ref().map_or(&[][..], Fence::devices)),
    }
    let taps: Vec<Option<Tap>> = plan.targets.iter().map(|target| Tap::open(target.addr).ok()).collect();
    let found = match probing::probe_deeply(plan, &sockets, Some(control)) {
        Ok(found) => found,
        Err(error) => {
            visit.book.note(Finding::skipped(Host::Probe, "SYN out", words::of_io(&error)));
            return;
        }
    };
    drop(fence);
    drop(lock);
    for way in &found.ways {
        let at = plan.targets.iter().position(|target| target.addr == way.target);
        let left = at.and_then(|at| taps[at].as_ref()).map(|tap| tap.saw(way.from.to_ip()));
        let direct = direct.iter().find(|(to, _)| *to == way.target).map(|one| one.1);
        told(visit, rules, way, Evidence { left, direct });
    }
    if found.ways.is_empty() {
        visit.book.note(Finding::skipped(
            Host::Probe,
            "SYN out",
            "datagrams are not probed: only the service's own would be answered",
        ));
    }
}

/// What this host knows besides.
#[derive(Clone, Copy)]
struct Evidence {
    /// Whether the tap on the device saw the SYN leave.
    left: Option<bool>,
    direct: Option<Direct>,
}

fn told(visit: &mut Visit<'_>, rules: &Rules, way: &probing::Finding, evidence: Evidence) {
    let (to, from, report) = (way.target, way.from.to_ip(), way.report);
    let by = way.engine.engine();
    let device = injector::route_to(to).map_or_else(|_| String::new(), |route| route.device);
    let sent = format!("{from} -> {to} left {device} by {by}");
    // Frames of our own go straight to the driver, past every tap.
    let swallowed = way.engine != Choice::Link && evidence.left == Some(false);
    match report.verdict {
        Verdict::NotSent => {
            let errno =
                injector::Count::ALL.get(usize::from(report.detail)).map_or("refused", |count| count.name());
            let finding = path::did_not_leave(
                visit,
                rules,
                to,
                from,
                format!("{from} -> {to} was refused here ({errno})"),
            );
            visit.book.note(finding);
            return skip_from(visit, &["SYN-ACK seen", "header back", "data"]);
        }
        _ if swallowed && !report.verdict.passes() => {
            let finding = path::did_not_leave(
                visit,
                rules,
                to,
                from,
                format!("{from} -> {to} did not come to {device}"),
            );
            visit.book.note(finding);
            return skip_from(visit, &["SYN-ACK seen", "header back", "data"]);
        }
        _ => visit.book.note(Finding::ok(Host::Probe, "SYN out", sent)),
    }
    match report.verdict {
        Verdict::Ok | Verdict::Traffic => {
            let [seen, back] = hop_times(&report);
            visit.book.note(Finding::ok(Host::Probe, "SYN-ACK seen", format!("by intercept{seen}")));
            visit.book.note(Finding::ok(Host::Probe, "header back", format!("here{back}")));
            depth(visit, to, way.depth);
        }
        Verdict::Refused => {
            let finding = refused(visit, to);
            let seen = format!("intercept saw a reset of {to}");
            visit.book.note(Finding { host: Host::Probe, check: "SYN-ACK seen".to_owned(), seen, ..finding });
            skip_from(visit, &["data"]);
        }
        Verdict::Rejected => {
            visit.book.note(rejected(visit, to, report.detail));
            skip_from(visit, &["header back", "data"]);
        }
        Verdict::ChannelDown => {
            visit.book.note(
                Finding::failed(
                    Host::Probe,
                    "header back",
                    Fault::ChannelBroke,
                    "the return channel is down",
                )
                .because("No answer can come back until it stands; see the intercept above."),
            );
        }
        Verdict::Unseen | Verdict::Waiting | Verdict::NotSent => {
            visit.book.note(unseen(visit, to, from, evidence.direct));
            skip_from(visit, &["header back", "data"]);
        }
    }
}

/// When the answer was at intercept, and here. The clocks of two hosts are never compared: the way back is taken to be half of the
/// channel's round trip, and where that is longer than the whole, as on one machine, the whole alone is told.
pub(crate) fn hop_times(report: &Report) -> [String; 2] {
    let ms = |us: u32| words::ms(us.into());
    match report.out_us() {
        0 => [String::new(), format!(", {} ms after the SYN", ms(report.total_us))],
        out => [format!(", {} ms after the SYN", ms(out)), format!(", {} ms later", ms(report.back_us))],
    }
}

fn skip_from(visit: &mut Visit<'_>, checks: &[&str]) {
    for check in checks {
        visit.book.note(Finding::skipped(Host::Probe, *check, "needs the step above"));
    }
}

/// ICMP says no.
fn rejected(visit: &Visit<'_>, to: SocketAddr, detail: u16) -> Finding {
    let (kind, code) = (detail >> 8, detail & 0xff);
    let there = format!("the target ({})", to.ip());
    let clients = visit.clients_of(to).unwrap_or_default();
    let family = if to.is_ipv4() { "ip" } else { "ip6" };
    Finding::failed(
        Host::Probe,
        "SYN-ACK seen",
        Fault::TargetRejects,
        format!("refused on the way (ICMP type {kind}, code {code})"),
    )
    .because("A firewall on the target or before it refuses what the replayed clients send, and says so.")
    .mend(
        &there,
        format!("nft insert rule inet filter input {family} saddr {clients} tcp dport {} accept", to.port()),
    )
    .mend_if(
        "With the older tool",
        &there,
        format!("iptables -I INPUT -s {clients} -p tcp --dport {} -j ACCEPT", to.port()),
    )
    .mend_if("Which rule it is says", &there, visit.doctor_target(to))
}

/// The SYN left, and intercept saw nothing. What is left depends on whether this host is answered itself.
fn unseen(visit: &Visit<'_>, to: SocketAddr, from: IpAddr, direct: Option<Direct>) -> Finding {
    let there = format!("the target ({})", to.ip());
    let clients = visit.clients_of(to).unwrap_or_else(|| from.to_string());
    let via = injector::gateway(visit.plan, to);
    let on_target = visit.plan.intercepts.iter().any(|at| at.ip() == to.ip());
    let route = match via {
        Some(via) if !on_target => {
            format!("ip {}route replace {clients} via {via}", if to.is_ipv4() { "" } else { "-6 " })
        }
        _ => format!("ip {}route get {from}", if to.is_ipv4() { "" } else { "-6 " }),
    };
    let finding =
        Finding::failed(Host::Probe, "SYN-ACK seen", Fault::AnswerUnseen, "intercept saw nothing for 1 s");
    let finding = match direct {
        Some(Direct::Silent) => finding.because(format!("{to} answers this host neither: it is down, or a firewall there drops what comes to the port. Which of these it is, the last command says.")),
        _ if on_target => finding.because(format!("The service answers this host, so the port is right. The target drops what {clients} sends: by its reverse path (strict rp_filter, as the way back leads into intercept's device), or by its firewall. Which of these it is, the last command says.")),
        _ => finding.because(format!("The service answers this host, so the port is right. Most likely the target sends answers for {clients} elsewhere (no route, or another host's), or drops what they send (rp_filter, firewall). Which of these it is, the last command says.")),
    };
    let finding = match (direct, on_target) {
        (Some(Direct::Silent), _) => {
            finding.mend(&there, format!("nft insert rule inet filter input tcp dport {} accept", to.port()))
        }
        (_, false) => finding.mend(&there, route).mend_if(
            "If that is set",
            &there,
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        ),
        (_, true) => finding.mend(&there, "sysctl -w net.ipv4.conf.all.rp_filter=2"),
    };
    finding.mend_if("Which it is says", there, visit.doctor_target(to))
}

/// What follows the handshake.
fn depth(visit: &mut Visit<'_>, to: SocketAddr, depth: Option<Depth>) {
    let there = format!("the target ({})", to.ip());
    let clients = visit.clients_of(to).unwrap_or_default();
    let check = "data";
    let finding = match depth {
        None | Some(Depth::NoAnswer) => Finding::skipped(Host::Probe, check, "the SYN was not answered again"),
        Some(Depth::Whole { bytes }) => Finding::ok(Host::Probe, check, format!("packets of up to {bytes} bytes are answered")),
        Some(Depth::SecondLost) => Finding::failed(Host::Probe, check, Fault::SecondPacketLost, "the SYN is answered, what follows it is not")
            .because("A firewall that tracks connections sees our packets and not the answers, which go another way, and drops the second packet as invalid: on the target, or between.")
            .mend(&there, format!("nft 'table inet replayed {{ chain c {{ type filter hook prerouting priority -300; {} saddr {clients} notrack; }}; }}'", if to.is_ipv4() { "ip" } else { "ip6" }))
            .mend_if("With the older tool", &there, format!("iptables -t raw -I PREROUTING -s {clients} -j NOTRACK"))
            .mend_if("Which rule it is says", &there, visit.doctor_target(to)),
        Some(Depth::LongLost { bytes }) => too_long(visit, to, bytes, 0, &format!("packets of {bytes} bytes vanish on the way, short ones pass")),
        Some(Depth::TooLong { bytes, mtu }) => too_long(visit, to, bytes, mtu, &format!("packets of {bytes} bytes are refused on the way")),
    };
    visit.book.note(finding);
}

fn too_long(visit: &Visit<'_>, to: SocketAddr, bytes: u16, mtu: u32, seen: &str) -> Finding {
    let fits = if mtu == 0 { "MTU".to_owned() } else { mtu.to_string() };
    let device = injector::route_to(to).map_or_else(|_| "DEVICE".to_owned(), |route| route.device);
    Finding::failed(Host::Probe, "data", Fault::PathMtu, seen)
        .because(format!("The route of this host allows {bytes} bytes and something between it and the target does not. A route with a smaller MTU makes replayed segments fit; what fits is found by the first command."))
        .mend(visit.this_host(), format!("tracepath -n {}", to.ip()))
        .mend_if("Then", visit.this_host(), format!("ip route replace {} dev {device} mtu {fits}", to.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_time_that_is_not_known_is_not_told() {
        let report = Report { total_us: 900, back_us: 200, ..Report::default() };
        assert_eq!(hop_times(&report), [", 0.70 ms after the SYN", ", 0.20 ms later"]);
        let near = Report { total_us: 100, back_us: 300, ..Report::default() };
        assert_eq!(hop_times(&near), ["", ", 0.10 ms after the SYN"]);
    }
}
