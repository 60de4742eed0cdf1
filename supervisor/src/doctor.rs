//! `tcptwin doctor`: which hop is broken, how that was seen, and what to type where. With the arguments of `run` on the online
//! host, before or during a run; `doctor intercept` and `doctor target` say on the other two what no other host can see.
//!
//! | file | holds |
//! |---|---|
//! | `finding`, `book` | what one check found; all of them, for people and programs |
//! | `rights`, `devices` | what may be done here; the interfaces |
//! | `services`, `sockets` | the mapped services, and whether their packets are captured; who listens |
//! | `path`, `rules`, `tap` | the way out; the firewall's rules; what was seen to leave |
//! | `drops` | counters of dropped packets that move |
//! | `channel` | each intercept |
//! | `probe` | the live probe, hop by hop |
//! | `running`, `session` | a run that goes on; one client of it |
//! | `target`, `assistant` | the same from the other hosts |
//! | `tools` | programs and settings that are asked |
//!
//! One check is one file, and every one of them ends in a finding. Nothing stays changed: the guard that stands while the
//! probe is sent goes with it.

mod assistant;
mod book;
mod channel;
mod devices;
mod drops;
mod finding;
mod path;
mod probe;
mod rights;
mod rules;
mod running;
mod services;
mod session;
mod sockets;
mod tap;
mod target;
mod tools;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shm::{Region, Role};
use topology::plan::Clients;
use topology::{Key, Options, Plan, Refusal, listening_from, plan_from, planner};

use book::Book;
use finding::{Fault, Finding, Host};

use crate::control::{Request, ask};
use crate::stats::Stats;
use crate::{adopt, host, key, logging};

/// One look: what it is about, and what was found so far.
struct Visit<'a> {
    /// Where this is typed.
    here: Host,
    plan: &'a Plan,
    book: Book,
}

impl Visit<'_> {
    /// This host, as a person calls it.
    fn this_host(&self) -> String {
        let role = match self.here {
            Host::Intercept => "the assistant",
            Host::Target => "the target",
            Host::Online | Host::Probe | Host::Run => "the online host",
        };
        format!("{role} (here)")
    }

    /// The replayed clients of a target's family, where there is a range.
    fn clients_of(&self, target: SocketAddr) -> Option<String> {
        range_of(self.plan, target)
    }

    /// What to type on the target to know more.
    fn doctor_target(&self, target: SocketAddr) -> String {
        doctor_target(self.plan, target)
    }
}

fn range_of(plan: &Plan, target: SocketAddr) -> Option<String> {
    match &plan.clients {
        Clients::Pool { v4, v6, .. } => if target.is_ipv4() { v4 } else { v6 }.map(|range| range.to_string()),
        Clients::Keep => None,
    }
}

fn doctor_target(plan: &Plan, target: SocketAddr) -> String {
    let clients = range_of(plan, target).map_or_else(String::new, |range| format!(" -c {range}"));
    let via = injector::gateway(plan, target).map_or_else(String::new, |ip| format!(" -s {ip}"));
    format!("tcptwin doctor target -x {target}{via}{clients}")
}

/// On the online host: the arguments of a run, or none for one that goes on; or one client of it.
///
/// # Errors
/// Wrong use.
pub(crate) fn run(options: &Options, client: Option<&str>) -> anyhow::Result<ExitCode> {
    logging::start("doctor", logging::level(true));
    let name = planner::name(options, planner::DEFAULT_NAME)?;
    let live = ask(&name, Request::Stats).ok().and_then(|state| serde_json::from_value::<Stats>(state).ok());
    let json = options.has(Key::Json);
    if let Some(client) = client {
        return of_client(&name, client, json);
    }
    match live {
        Some(stats) => during(&name, options, &stats),
        None if !options.has(Key::Map) => Err(Refusal::usage(format!(
            "no instance named {name} runs here, and there is no -x. Give the arguments of `tcptwin run`, for example -x 80-10.0.3.2:8080 -s 10.0.4.2"
        ))
        .into()),
        None => before(options),
    }
}

fn of_client(name: &str, client: &str, json: bool) -> anyhow::Result<ExitCode> {
    let wrong =
        || Refusal::usage(format!("{client} is no client. Write ADDRESS:PORT, for example 10.0.0.7:40001"));
    let client: SocketAddr = client.parse().map_err(|_| wrong())?;
    let (region, plan) = region_of(name)?;
    let mut visit = Visit { here: Host::Online, plan: &plan, book: Book::new(json) };
    let more = session::check(&mut visit, region, client).map_err(|error| {
        Refusal::preflight(format!("reading the region of {name} failed: {}", crate::words::of_io(&error)))
    })?;
    Ok(visit.book.close(more))
}

fn region_of(name: &str) -> Result<(&'static Region, Plan), Refusal> {
    let refused = |why: String| Refusal::preflight(format!("the instance {name} cannot be looked at: {why}"));
    let region = Region::attach(name).map_err(|error| refused(error.to_string()))?;
    let plan = adopt::usable_plan(region).map_err(refused)?;
    Ok((region, plan))
}

/// A run of this name goes on: its plan is what counts, and its own probes tell of the way.
fn during(name: &str, options: &Options, stats: &Stats) -> anyhow::Result<ExitCode> {
    let (region, plan) = region_of(name)?;
    let mut visit = Visit { here: Host::Online, plan: &plan, book: Book::new(options.has(Key::Json)) };
    let clock = Clock::now();
    let may_capture = rights::check(&mut visit);
    if plan.trace.is_none() {
        devices::check(&mut visit, &plan.capture.interfaces);
        services::check(&mut visit, may_capture);
    }
    let mut more = json!({ "name": name });
    if !plan.records_only() {
        let routes = path::check(&mut visit, true);
        path::pool(&mut visit, &routes);
        path::firewall(&mut visit, &rules::Rules::read());
        clock.check(&mut visit);
        probe::services(&mut visit);
        canary(&mut visit, region);
    }
    // Of a region that cannot be read, the counters are told at least.
    let failed = session::failed_last(&plan, region).unwrap_or_default();
    running::check(&mut visit, stats, &failed);
    if let (Value::Object(more), Value::Object(failures)) = (&mut more, running::failures(stats, &failed)) {
        more.extend(failures);
    }
    Ok(visit.book.close(more))
}

/// What the run's own probes found: another connection to intercept would take the run's away.
fn canary(visit: &mut Visit<'_>, region: &'static Region) {
    let plan = visit.plan;
    for (index, to, from) in injector::probe::probed(plan) {
        let at = injector::canary_index(usize::from(index));
        let words = std::array::from_fn(|word| region.read_counter(Role::Injector, at + word));
        let report = injector::Report::from_words(words);
        let check = "way and back";
        let finding = match report.trouble(plan, to) {
            None if report.verdict == injector::Verdict::Waiting => {
                Finding::skipped(Host::Probe, check, format!("the run has not probed {to} yet"))
            }
            None => Finding::ok(Host::Probe, check, {
                let [seen, back] = probe::hop_times(&report);
                format!("{from} -> {to}: at intercept{seen}, here{back}; {} failed so far", report.failures)
            }),
            Some(trouble) => {
                let fault = match report.verdict {
                    injector::Verdict::Refused => Fault::TargetRefuses,
                    injector::Verdict::NotSent => Fault::LocalFirewall,
                    injector::Verdict::Rejected => Fault::TargetRejects,
                    injector::Verdict::ChannelDown => Fault::ChannelBroke,
                    _ => Fault::AnswerUnseen,
                };
                Finding::failed(
                    Host::Probe,
                    check,
                    fault,
                    format!("{from} -> {to}: {}", report.verdict.name().replace('_', " ")),
                )
                .because(format!("{trouble}."))
                .mend(format!("the target ({})", to.ip()), visit.doctor_target(to))
            }
        };
        visit.book.note(finding);
    }
}

/// Nothing runs yet: everything is tried out.
fn before(options: &Options) -> anyhow::Result<ExitCode> {
    let mut plan = plan_from(options, &host::facts(key::of_options(options)?)?)?;
    if let Some(given) = options.one(Key::Filter) {
        capturer::expression::put_in(&mut plan).map_err(|error| given.refuse(error))?;
    }
    let lab = options.has(Key::Lab);
    let first = plan.clone();
    let mut visit = Visit { here: Host::Online, plan: &first, book: Book::new(options.has(Key::Json)) };
    let clock = Clock::now();
    let may = rights::check(&mut visit);
    devices::check(&mut visit, &first.capture.interfaces);
    services::check(&mut visit, may);
    let routes = path::check(&mut visit, lab);
    path::pool(&mut visit, &routes);
    let rules = rules::Rules::read();
    path::firewall(&mut visit, &rules);
    clock.check(&mut visit);
    for (index, route) in &routes {
        plan.targets[*index].mtu = route.mtu.max(576);
    }
    let whole = routes.len() == plan.targets.len();
    let taken = channel::check(&mut visit, &mut plan);
    // A range that gave way is the one to speak of from here on.
    let Visit { book, .. } = visit;
    let mut visit = Visit { here: Host::Online, plan: &plan, book };
    let direct = if whole { probe::services(&mut visit) } else { Vec::new() };
    let why = match () {
        () if !may => Some("needs CAP_NET_RAW"),
        () if !whole => Some("needs a way to the target"),
        () if visit.book.has(Fault::PoolInUse) => Some("needs a client range that nobody has"),
        () if !taken => Some("needs the intercept"),
        () => None,
    };
    match why {
        Some(why) => {
            visit.book.note(Finding::skipped(Host::Probe, "SYN out, SYN-ACK seen, header back, data", why));
        }
        None => probe::check(&mut visit, &plan, &rules, &direct),
    }
    Ok(visit.book.close(json!({ "name": plan.name })))
}

/// On the assistant, with the arguments of `intercept`.
///
/// # Errors
/// Wrong use.
pub(crate) fn of_intercept(options: &Options) -> anyhow::Result<ExitCode> {
    logging::start("doctor", logging::level(true));
    let wanted = listening_from(options, key::of_options(options)?)?;
    let plan = empty();
    let mut visit = Visit { here: Host::Intercept, plan: &plan, book: Book::new(options.has(Key::Json)) };
    assistant::check(&mut visit, &wanted);
    Ok(visit.book.close(json!({ "name": wanted.name })))
}

/// On the target.
///
/// # Errors
/// Wrong use.
pub(crate) fn of_target(options: &Options) -> anyhow::Result<ExitCode> {
    logging::start("doctor", logging::level(true));
    let asked = target::Asked::from(options)?;
    let plan = empty();
    let mut visit = Visit { here: Host::Target, plan: &plan, book: Book::new(options.has(Key::Json)) };
    target::check(&mut visit, &asked);
    Ok(visit.book.close(json!({})))
}

/// The other hosts have no plan.
fn empty() -> Plan {
    Plan::small(&[])
}

/// Both clocks at one moment. Frames bear the time of day, and everything else here counts from the start of the host: what
/// moves one against the other moves what was captured.
struct Clock {
    offset_us: i64,
}

/// A clock that is slewed gains less than this in some seconds (adjtimex(2): 500 ppm).
const STEP_US: u64 = 20_000;

impl Clock {
    fn now() -> Self {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Self { offset_us: real as i64 - shm::monotonic_us().cast_signed() }
    }

    fn check(&self, visit: &mut Visit<'_>) {
        let moved_us = (Self::now().offset_us - self.offset_us).unsigned_abs();
        let finding = if moved_us < STEP_US {
            Finding::ok(Host::Online, "clock", format!("steady to {} ms", crate::words::ms(moved_us)))
        } else {
            Finding::warning(Host::Online, "clock", Fault::ClockStepped, format!("set by {} ms while it was watched", crate::words::ms(moved_us)))
                .because("Captured frames bear the time of day: each such step moves the distances that are replayed. Let a time service slew it.")
                .mend(visit.this_host(), "timedatectl status")
        };
        visit.book.note(finding);
    }
}
