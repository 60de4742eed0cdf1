//! Everything that is checked before anything is started. Each check ends in nothing or in one sentence; the order is the
//! one in which a person can mend things: rights first, then this host, then the network, then the other end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use injector::DialError;
use injector::{RouteFacts, route_to};
use returns::RefusedCode;
use shm::LockFile;
use topology::guard::{self, Taken};
use topology::plan::Clients;
use topology::{Key, Options, Plan, Refusal};

use crate::adopt::{self, Found};
use crate::{halt, place, procfs};

/// What the checks found.
pub(crate) struct Ready {
    /// The plan, with the MTU of each route and the client range that the intercepts agreed to.
    pub(crate) plan: Plan,
    /// What a dead instance of this name left; untouched so far.
    pub(crate) found: Found,
    /// One instance a name; every role inherits it.
    pub(crate) lock: LockFile,
    /// Where lock and control socket are.
    pub(crate) directory: PathBuf,
    /// The kill switch.
    pub(crate) halt_file: PathBuf,
    /// What the person should know, though it is no obstacle.
    pub(crate) notes: Vec<String>,
}

/// How long the roles of a dead supervisor may take to die.
const DYING_TIME: Duration = Duration::from_secs(2);
/// How long an intercept has to answer, over three tries.
const DIAL_TIME: Duration = Duration::from_millis(1500);
/// Ranges tried at most, when intercepts refuse the chosen one and name another.
const RANGE_TRIES: usize = 8;

/// Checks everything.
///
/// # Errors
/// One sentence, exit code 3.
pub(crate) fn check(mut plan: Plan, options: &Options) -> Result<Ready, Refusal> {
    rights(&plan)?;
    let directory = place::directory().map_err(Refusal::preflight)?;
    let halt_file = halt::file(options, &directory, &plan.name)?;
    let lock = lock(&plan.name, &directory)?;
    let mut notes = Vec::new();
    let found = adopt::look(&mut plan, &mut notes)?;
    interfaces(&plan)?;
    directory_of_files(&mut plan)?;
    if plan.records_only() {
        return Ok(Ready { plan, found, lock, directory, halt_file, notes });
    }
    notes.extend(of_another_host(&plan));
    let routes = routes(&mut plan, options.has(Key::Lab))?;
    let taken = taken(&plan, &routes);
    guard::client_ranges(&plan, &taken)?;
    match found {
        // Sessions wait: the receiver dials by itself, as after any outage, and an intercept that is away right now is no
        // reason to give them up.
        Found::Adopt(_) => {}
        Found::Nothing | Found::Remove => intercepts(&mut plan, &taken, &mut notes)?,
    }
    Ok(Ready { plan, found, lock, directory, halt_file, notes })
}

fn rights(plan: &Plan) -> Result<(), Refusal> {
    if procfs::capable(procfs::CAP_NET_RAW) {
        return Ok(());
    }
    let program = std::env::current_exe()
        .map_or_else(|_| "/usr/bin/tcptwin".to_owned(), |path| path.display().to_string());
    let on = match plan.capture.interfaces.as_slice() {
        [] => "any interface".to_owned(),
        names => names.join(", "),
    };
    let on = if plan.trace.is_some() { "the way to the target".to_owned() } else { on };
    Err(Refusal::preflight(format!(
        "opening a packet socket on {on} needs CAP_NET_RAW. Run with sudo, or once: sudo setcap cap_net_raw,cap_net_admin+ep {program}"
    )))
}

/// Roles die with their supervisor, but not in the same instant: a lock whose owner is dead is waited for.
fn lock(name: &str, directory: &Path) -> Result<LockFile, Refusal> {
    let until = Instant::now() + DYING_TIME;
    loop {
        match LockFile::acquire(name, directory) {
            Ok(lock) => return Ok(lock),
            Err(error) => {
                let owner = error.held_by().and_then(procfs::look);
                let dying = error.held_by().is_some() && owner.is_none_or(|owner| owner.state == 'Z');
                if !dying || Instant::now() >= until {
                    return Err(Refusal::preflight(error.to_string()));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn interfaces(plan: &Plan) -> Result<(), Refusal> {
    if plan.capture.interfaces.is_empty() {
        return Ok(());
    }
    let known = capturer::interfaces::interfaces();
    let names = || known.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    match plan.capture.interfaces.iter().find(|name| known.iter().all(|one| one.name != **name)) {
        None => Ok(()),
        Some(name) => Err(Refusal::preflight(format!(
            "-i {name}: this host has no such interface. It has {}; `-i any` captures on all",
            names()
        ))),
    }
}

/// Makes the directory of the recording; roles may run elsewhere, so its path becomes absolute.
fn directory_of_files(plan: &mut Plan) -> Result<(), Refusal> {
    let Some(record) = &mut plan.record else { return Ok(()) };
    if let Ok(absolute) = std::path::absolute(&record.directory) {
        record.directory = absolute;
    }
    recorder::prepare(&record.directory).map_err(|error| Refusal::preflight(error.to_string()))
}

/// An online address of another host is right with a mirror port only. Addresses may come later, so this is no refusal.
fn of_another_host(plan: &Plan) -> Option<String> {
    let ours: Vec<_> = of_this_host().into_iter().map(|taken| taken.addr).collect();
    let elsewhere = |ip: &std::net::IpAddr| !ours.contains(ip);
    let mut named = plan.mappings.iter().filter_map(|mapping| mapping.online_ip);
    match (plan.capture.promiscuous, named.find(elsewhere)) {
        (false, Some(ip)) => Some(format!(
            "{ip} of -x is no address of this host, so nothing is captured for it as long as that is so. Where an interface here is its host's mirror port, add --mirror"
        )),
        _ => None,
    }
}

/// Asks the kernel for the way to each target; refuses those that are none; notes their MTU.
fn routes(plan: &mut Plan, lab: bool) -> Result<Vec<RouteFacts>, Refusal> {
    let mut routes = Vec::with_capacity(plan.targets.len());
    for index in 0..plan.targets.len() {
        let route =
            route_to(plan.targets[index].addr).map_err(|error| Refusal::preflight(error.to_string()))?;
        guard::target(plan, index, route.place, lab)?;
        // The smallest MTU that IPv4 must carry; a route below it is broken, and a segment must hold some payload.
        plan.targets[index].mtu = route.mtu.max(576);
        routes.push(route);
    }
    Ok(routes)
}

/// Addresses that no replayed client may have.
fn taken(plan: &Plan, routes: &[RouteFacts]) -> Vec<Taken> {
    let mut taken = guard::own_addresses(plan);
    taken.extend(of_this_host());
    for (route, target) in routes.iter().zip(&plan.targets) {
        taken.extend(
            route.next_hop.map(|ip| Taken { addr: ip, what: format!("the gateway to {}", target.addr.ip()) }),
        );
    }
    taken
}

/// The addresses of this host.
pub(crate) fn of_this_host() -> Vec<Taken> {
    let mut taken = Vec::new();
    for interface in capturer::interfaces::interfaces() {
        let of = |addr| Taken { addr, what: format!("an address of {}", interface.name) };
        taken.extend(interface.addresses.iter().map(|(addr, _)| of(*addr)));
    }
    taken
}

/// Every intercept must answer, understand us and take our range. A range that was chosen here gives way to the one that
/// the refusing intercept names as free; then all are asked anew.
fn intercepts(plan: &mut Plan, taken: &[Taken], notes: &mut Vec<String>) -> Result<(), Refusal> {
    for _ in 0..RANGE_TRIES {
        let Some((at, error)) = first_refusal(plan) else { return Ok(()) };
        let DialError::Refused { code: RefusedCode::RangeTaken, suggestion: Some(free), .. } = &error else {
            return Err(Refusal::preflight(error.to_string()));
        };
        let Clients::Pool { v4, v6, chosen: true } = &mut plan.clients else {
            return Err(Refusal::preflight(error.to_string()));
        };
        let slot = if free.is_v4() { v4 } else { v6 };
        let Some(old) = slot.replace(*free) else { return Err(Refusal::preflight(error.to_string())) };
        notes.push(format!("the client range {old} is in use at the intercept {at}; taking {free} instead"));
        guard::client_ranges(plan, taken)?;
    }
    Err(Refusal::preflight(format!(
        "after {RANGE_TRIES} tries there is still no client range that all intercepts take. Give one with -c"
    )))
}

fn first_refusal(plan: &Plan) -> Option<(SocketAddr, DialError)> {
    let dial = |at: &SocketAddr| injector::handshake(*at, plan, DIAL_TIME).err().map(|error| (*at, error));
    plan.intercepts.iter().find_map(dial)
}
