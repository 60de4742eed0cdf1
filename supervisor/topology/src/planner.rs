//! From options to a [`Plan`]: defaults, bounds, and a sentence for everything that is out of them. Facts about the
//! machine are arguments; whether host and network allow the plan is the preflight's question, not this one's.

use std::net::{IpAddr, SocketAddr};

use flow::Range;

use crate::clients::clients;
use crate::mapping;
use crate::options::{Given, Key, Options};
use crate::plan::{
    CanaryPlan, CaptureEngine, CapturePlan, FilterPlan, InjectEngine, Join, MAX_NETS, MAX_TARGETS, Mapping,
    OnGap, ReplayPlan, Rtt, Sandbox, Seeds, Target,
};
use crate::recording;
use crate::restraint::restraint;
use crate::sizes::{self, share_out};
use crate::{Plan, Refusal};
use crate::{trace, value};

/// What the planner must know about the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Cores that this process may use, ascending.
    pub cores: Vec<u16>,
    /// A number that stays the same on this machine (of /etc/machine-id).
    pub host_id: u64,
    /// Fresh random numbers: instance and five seeds.
    pub random: [u64; 6],
    /// The key that `--key` names, or that stands in its usual place.
    pub key: Option<[u8; 32]>,
    /// Bytes of an arena for so many sessions and chunks.
    pub arena_bytes: fn(u32, u32) -> u64,
    /// See [`Plan::format`].
    pub format: u64,
}

/// Port of the return channel unless given; TCPCopy's.
pub const DEFAULT_PORT: u16 = 36_524;
/// Name of a run unless given.
pub const DEFAULT_NAME: &str = "default";
/// Shards at most by default: beyond, one injector is the bottleneck.
pub const MAX_DEFAULT_SHARDS: usize = 8;
/// Shards at most.
pub const MAX_SHARDS: u16 = 64;
/// Copies at most.
pub const MAX_COPIES: u64 = 1_000;
/// Intercepts at most.
pub const MAX_INTERCEPTS: usize = 64;
/// Interfaces at most: each holds its own capture rings.
pub const MAX_INTERFACES: usize = 32;
/// `--capture-buffer` unless given: a third of a second at 100,000 small frames a second, and 500 super-frames.
pub const DEFAULT_CAPTURE_BUFFER: u64 = 64 << 20;
/// MTU until the route was asked.
pub const DEFAULT_MTU: u16 = 1500;

/// Makes the plan of `run` or, when files are named, of `replay`.
///
/// # Errors
/// One sentence, exit code 2.
pub fn plan_from(options: &Options, facts: &Facts) -> Result<Plan, Refusal> {
    options.check_rivals()?;
    let name = name(options, DEFAULT_NAME)?;
    let parsed = mapping::mappings(options)?;
    let (mappings, targets) = seal(&parsed)?;
    let intercepts = intercepts(options)?;
    let clients = clients(options, &parsed, facts.host_id, &name)?;
    let shards = match options.one(Key::Shards) {
        Some(given) => {
            read(given, |text| value::whole(text, "the number of shards", 1, MAX_SHARDS.into()))? as u16
        }
        None => default_shards(facts.cores.len()),
    };
    let sizes = sizes_of(options, shards, facts)?;
    let record = recording::beside_replay(options, facts.host_id)?;
    let [instance, shard, sample, endpoint, isn, table] = facts.random;
    let trace = trace::trace(options)?;
    let seeds = Seeds { shard, sample, endpoint, isn, table };
    let seeds = if trace.is_some() { trace::seeds(options, seeds)? } else { seeds };
    let mut replay = replay(options)?;
    if trace.as_ref().is_some_and(|trace| trace.speed_milli.is_none()) && !options.has(Key::Rtt) {
        replay.rtt = Rtt::None;
    }
    let plan = Plan {
        name,
        instance,
        format: facts.format,
        seeds,
        mappings,
        targets,
        clients,
        intercepts,
        key: None,
        capture: capture(options)?,
        trace,
        record,
        inject: options.one(Key::Inject).map_or(Ok(InjectEngine::Auto), inject)?,
        canary: canary(options)?,
        sandbox: sandbox(options)?,
        copies_milli: options.one(Key::Copies).map_or(Ok(1_000), |given| read(given, copies_milli))?,
        percent_ppm: options.one(Key::Percent).map_or(Ok(1_000_000), |given| read(given, percent_ppm))?,
        shards,
        cores: cores(options, shards, &facts.cores)?,
        limits: sizes.limits,
        rings: sizes.rings,
        replay,
        restraint: restraint(options)?,
    };
    recording::fits(options, &plan)?;
    // What was given is right; what is missing comes last.
    Ok(Plan { key: key(options, &plan.intercepts, facts)?, ..plan })
}

/// `-n` in thousandths; also what `ctl copies` takes.
pub fn copies_milli(text: &str) -> Result<u32, value::Why> {
    match value::decimal(text, 3) {
        Some(0) => {
            Err("nothing would be replayed. Leave flows out with -r, or pause with `tcptwin ctl pause`"
                .to_owned())
        }
        Some(milli) if milli <= MAX_COPIES * 1000 => Ok(milli as u32),
        _ => Err(format!(
            "copies are a number up to {MAX_COPIES} with at most three decimals, for example 1.5"
        )),
    }
}

/// `-r` in parts per million; also what `ctl percent` takes.
pub fn percent_ppm(text: &str) -> Result<u32, value::Why> {
    match value::decimal(text.strip_suffix('%').unwrap_or(text), 2) {
        Some(0) => Err("nothing would be replayed. Pause with `tcptwin ctl pause`".to_owned()),
        Some(hundredths) if hundredths <= 10_000 => Ok(hundredths as u32 * 100),
        _ => Err("the share is a percentage from 0.01 to 100 with at most two decimals, for example 12.5"
            .to_owned()),
    }
}

/// `--name`, or the usual one.
///
/// # Errors
/// One sentence, exit code 2.
pub fn name(options: &Options, usual: &str) -> Result<String, Refusal> {
    options.one(Key::Name).map_or_else(|| Ok(usual.to_owned()), |given| read(given, value::name))
}

/// `--metrics`.
///
/// # Errors
/// One sentence, exit code 2.
pub fn metrics_addr(options: &Options) -> Result<Option<SocketAddr>, Refusal> {
    let read_addr = |given: &Given| {
        value::endpoint(&given.text, "the metrics address", None).map_err(|why| {
            given.refuse(format_args!("{why}. Write ADDR:PORT, for example --metrics 127.0.0.1:9136"))
        })
    };
    options.one(Key::Metrics).map(read_addr).transpose()
}

/// `--interface`: names, or none for all.
///
/// # Errors
/// One sentence, exit code 2.
pub fn interfaces(options: &Options) -> Result<Vec<String>, Refusal> {
    let mut names: Vec<String> = Vec::new();
    let mut any = false;
    for given in options.all(Key::Interface) {
        let text = given.text.as_str();
        // IFNAMSIZ is 16 with its end.
        if text.is_empty() || text.len() > 15 || text.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(given.refuse(
                "this is no name of an interface. `ip -br link` lists them; write for example -i eth0",
            ));
        }
        if names.iter().any(|known| known == text) {
            return Err(given.refuse("this interface is given twice. Leave one out"));
        }
        any |= text == "any";
        names.push(text.to_owned());
        if any && names.len() > 1 {
            return Err(
                given.refuse("`any` stands for all interfaces already. Give `any` or names, not both")
            );
        }
        if names.len() > MAX_INTERFACES {
            return Err(given.refuse(format_args!(
                "there are more than {MAX_INTERFACES} interfaces. Give -i any instead"
            )));
        }
    }
    Ok(if any { Vec::new() } else { names })
}

pub(crate) fn read<T>(
    given: &Given,
    parse: impl FnOnce(&str) -> Result<T, value::Why>,
) -> Result<T, Refusal> {
    parse(&given.text).map_err(|why| given.refuse(why))
}

/// Mappings with target indices, and the sealed list they point into.
fn seal(parsed: &[mapping::Parsed]) -> Result<(Vec<Mapping>, Vec<Target>), Refusal> {
    let mut targets: Vec<Target> = Vec::new();
    let mut mappings = Vec::with_capacity(parsed.len());
    for one in parsed {
        let known = |target: &Target| target.addr == one.target && target.protocol == one.protocol;
        let target = match targets.iter().position(known) {
            Some(index) => index,
            None => {
                targets.push(Target { addr: one.target, mtu: DEFAULT_MTU, protocol: one.protocol });
                targets.len() - 1
            }
        };
        mappings.push(Mapping {
            online_ip: one.online_ip,
            online_port: one.online_port,
            target: target as u16,
            protocol: one.protocol,
        });
    }
    debug_assert!(
        targets.len() <= MAX_TARGETS,
        "as many targets as mappings at most, and both bounds are equal"
    );
    Ok((mappings, targets))
}

fn intercepts(options: &Options) -> Result<Vec<SocketAddr>, Refusal> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for given in options.all(Key::Intercept) {
        let addr = value::endpoint(&given.text, "intercept", Some(DEFAULT_PORT)).map_err(|why| {
            given.refuse(format_args!("{why}. Write ADDR or ADDR:PORT, for example -s 10.0.4.2"))
        })?;
        if addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return Err(given.refuse(format_args!(
                "{} is not the address of a host. Write for example -s 10.0.4.2",
                addr.ip()
            )));
        }
        if found.contains(&addr) {
            return Err(given.refuse("this intercept is given twice. Leave one out"));
        }
        found.push(addr);
        if found.len() > MAX_INTERCEPTS {
            return Err(given.refuse(format_args!(
                "there are more than {MAX_INTERCEPTS} intercepts. Split them over two instances (--name)"
            )));
        }
    }
    Ok(found)
}

/// The channel is plain only between loopback ends or when `--plain` says so.
fn key(options: &Options, intercepts: &[SocketAddr], facts: &Facts) -> Result<Option<[u8; 32]>, Refusal> {
    if intercepts.is_empty() {
        return Err(Refusal::usage(
            "who brings the answers back? There is no -s. Give the host where `tcptwin intercept` runs, for example -s 10.0.4.2",
        ));
    }
    if options.has(Key::Plain) {
        return Ok(None);
    }
    if facts.key.is_some() {
        return Ok(facts.key);
    }
    match intercepts.iter().find(|addr| !addr.ip().is_loopback()) {
        None => Ok(None),
        Some(addr) => Err(Refusal::usage(format!(
            "the return channel to {addr} has no key. Either make one and give the same file to both hosts:\n  \
             tcptwin keygen /etc/tcptwin/key      (found there by itself, elsewhere named with --key FILE)\n\
             or, in a network that you trust, give --plain here and to `tcptwin intercept`"
        ))),
    }
}

fn default_shards(cores: usize) -> u16 {
    if cores <= 2 { 1 } else { (cores / 2).clamp(1, MAX_DEFAULT_SHARDS) as u16 }
}

fn sizes_of(options: &Options, shards: u16, facts: &Facts) -> Result<sizes::Sizes, Refusal> {
    let memory_given = options.one(Key::Memory);
    let memory = memory_given.map_or(Ok(sizes::DEFAULT_MEMORY), |given| read(given, value::size))?;
    let sessions_given = options.one(Key::MaxSessions);
    let sessions = sessions_given.map_or(Ok(u64::from(sizes::DEFAULT_SESSIONS)), |given| {
        read(given, |text| value::whole(text, "the number of sessions", 16, 16_000_000))
    })? as u32;
    let too_small = |enough: u64| {
        let enough = format!("{}MiB", enough.div_ceil(1 << 20));
        let need = format!(
            "{sessions} sessions in {shards} shard{} need --memory {enough}",
            if shards == 1 { "" } else { "s" }
        );
        match (memory_given, sessions_given) {
            (Some(given), _) => given.refuse(format_args!(
                "this is too small: {need}. Give that much, or fewer with --max-sessions"
            )),
            (None, Some(given)) => {
                given.refuse(format_args!("the usual memory is too small: {need}. Add --memory {enough}"))
            }
            (None, None) => {
                Refusal::usage(format!("the usual memory is too small: {need}. Add --memory {enough}"))
            }
        }
    };
    // Without --memory, more sessions or shards simply take more memory; a given size is kept.
    match share_out(memory, shards, sessions, facts.arena_bytes) {
        Ok(sizes) => Ok(sizes),
        Err(enough) if memory_given.is_none() => {
            share_out(enough.max(sizes::DEFAULT_MEMORY), shards, sessions, facts.arena_bytes)
                .map_err(too_small)
        }
        Err(enough) => Err(too_small(enough)),
    }
}

pub(crate) fn capture(options: &Options) -> Result<CapturePlan, Refusal> {
    let engine = match options.one(Key::Capture) {
        None => CaptureEngine::Ring,
        Some(given) => match given.text.as_str() {
            "ring" => CaptureEngine::Ring,
            "simple" => CaptureEngine::Simple,
            "pcap" => CaptureEngine::Pcap,
            "xdp" => CaptureEngine::Xdp,
            _ => {
                return Err(given.refuse(
                    "the engine is `ring`, `simple`, `pcap` or `xdp`. Leave it out for the fast one",
                ));
            }
        },
    };
    let interfaces = interfaces(options)?;
    if matches!(engine, CaptureEngine::Simple | CaptureEngine::Xdp) && interfaces.is_empty() {
        let given = options.one(Key::Capture).expect("only a given engine is simple or xdp");
        return Err(given.refuse(format_args!(
            "the {} engine captures on named interfaces only. Add -i, for example -i eth0",
            engine.name()
        )));
    }
    let xdp_force = match options.one(Key::XdpForce) {
        Some(given) if engine != CaptureEngine::Xdp => {
            return Err(given.refuse("it goes with --capture xdp only. Leave it out"));
        }
        given => given.is_some(),
    };
    let buffer = options.one(Key::CaptureBuffer).map_or(Ok(DEFAULT_CAPTURE_BUFFER), |given| {
        let bytes = read(given, value::size)?;
        if (MIN_CAPTURE_BUFFER..=MAX_CAPTURE_BUFFER).contains(&bytes) {
            return Ok(bytes);
        }
        Err(given.refuse("the capture buffer is from 1MiB to 4GiB, for example 64MiB"))
    })?;
    Ok(CapturePlan {
        engine,
        interfaces,
        buffer_bytes: buffer,
        promiscuous: options.has(Key::Mirror),
        filter: filter(options)?,
        xdp_force,
    })
}

/// `-F`, `--net` and `--not-net`. Whether the expression is one is for libpcap to say; its program is put in then.
///
/// # Errors
/// One sentence, exit code 2.
pub fn filter(options: &Options) -> Result<FilterPlan, Refusal> {
    let nets = |key: Key| {
        let mut ranges: Vec<Range> = vec![];
        for given in options.all(key) {
            let range = given.text.parse::<Range>().map_err(|_| {
                given.refuse(
                    "this is no range of addresses, or not written with its first one. Write for example 10.0.0.0/8, fd00::/8 or 10.0.0.7",
                )
            })?;
            if ranges.len() == MAX_NETS {
                return Err(given.refuse(format_args!(
                    "there are more than {MAX_NETS} ranges. Take larger ones, or write an expression with -F"
                )));
            }
            ranges.push(range);
        }
        Ok(ranges)
    };
    let expression = match options.one(Key::Filter) {
        Some(given) if given.text.is_empty() => {
            return Err(given.refuse(
                "the expression is empty. Write one, for example -F 'not src host 10.0.0.7', or leave -F out",
            ));
        }
        given => given.map(|given| given.text.clone()),
    };
    let (inside, outside) = (nets(Key::Net)?, nets(Key::NotNet)?);
    Ok(FilterPlan { expression, program: String::new(), inside, outside })
}

fn inject(given: &Given) -> Result<InjectEngine, Refusal> {
    match given.text.as_str() {
        "link" => Ok(InjectEngine::Link),
        "raw" => Ok(InjectEngine::Raw),
        "pcap" => Ok(InjectEngine::Pcap),
        _ => Err(given.refuse("the engine is `link`, `raw` or `pcap`. Leave it out for the best one here")),
    }
}

/// `--canary`: what real clients' addresses rest on cannot be switched off.
fn canary(options: &Options) -> Result<CanaryPlan, Refusal> {
    let keep = options.has(Key::KeepClients);
    let mut from = Vec::new();
    for given in options.all(Key::Canary) {
        match given.text.as_str() {
            "off" if keep => {
                return Err(given.refuse(
                    "with --keep-clients a wrong route would send the target's answers to real users, and the probe is what notices. Leave it on",
                ));
            }
            "off" => return Ok(CanaryPlan::Off),
            text => match text.parse::<IpAddr>() {
                Ok(ip) if keep => from.push(ip),
                Ok(_) => {
                    return Err(given.refuse(
                        "an address to probe from is for --keep-clients only; a client range has one of its own",
                    ));
                }
                Err(_) => {
                    return Err(given.refuse(
                        "say `off`, or an address that nobody has and that the target answers by the intercept",
                    ));
                }
            },
        }
    }
    Ok(if from.is_empty() { CanaryPlan::On } else { CanaryPlan::From(from) })
}

/// What the processes give up.
pub(crate) fn sandbox(options: &Options) -> Result<Sandbox, Refusal> {
    let Some(given) = options.one(Key::Sandbox) else { return Ok(Sandbox::On) };
    match given.text.as_str() {
        "on" => Ok(Sandbox::On),
        "no-landlock" => Ok(Sandbox::NoLandlock),
        "off" => Ok(Sandbox::Off),
        _ => Err(given.refuse("the sandbox is `on`, `no-landlock` or `off`. Leave it out for a whole one")),
    }
}

/// Smallest capture buffer: eight super-frames and some hundred small ones.
const MIN_CAPTURE_BUFFER: u64 = 1 << 20;
/// Largest: the kernel counts a ring's blocks in 32 bits.
const MAX_CAPTURE_BUFFER: u64 = 4 << 30;

pub(crate) fn replay(options: &Options) -> Result<ReplayPlan, Refusal> {
    let rtt = match options.one(Key::Rtt) {
        None => Rtt::Measured,
        Some(given) => match given.text.as_str() {
            "measured" => Rtt::Measured,
            "none" => Rtt::None,
            text => match value::decimal(text.strip_suffix("ms").unwrap_or(text), 3) {
                Some(us) if us <= MAX_RTT_US => Rtt::Fixed(us as u32),
                _ => return Err(given.refuse(
                    "the distance is `measured`, `none` or milliseconds up to 10000, for example --rtt 20",
                )),
            },
        },
    };
    let join = match options.one(Key::Join) {
        None => Join::Boundary,
        Some(given) => match given.text.as_str() {
            "first" => Join::First,
            "boundary" => Join::Boundary,
            "never" => Join::Never,
            _ => return Err(given.refuse(
                "older connections are joined at `first`, `boundary` or `never`. Leave it out for boundary",
            )),
        },
    };
    let on_gap =
        match options.one(Key::OnGap) {
            None => OnGap::Skip,
            Some(given) => match given.text.as_str() {
                "skip" => OnGap::Skip,
                "resync" => OnGap::Resync,
                "abort" => OnGap::Abort,
                _ => return Err(given.refuse(
                    "after a hole in the capture sessions `skip`, `resync` or `abort`. Leave it out for skip",
                )),
            },
        };
    let time = |key: Key, usual: u64, low: u64, high: u64| {
        options.one(key).map_or(Ok(usual), |given| read(given, |text| value::time_ms(text, low, high)))
    };
    let idle_ms = time(Key::IdleTime, 600_000, 1_000, 7 * 24 * 3_600_000)?;
    let drain_ms = time(Key::DrainTime, 10_000, 0, 3_600_000)?;
    Ok(ReplayPlan {
        wait: !options.has(Key::NoWait),
        rtt,
        join,
        on_gap,
        idle_s: (idle_ms / 1_000) as u32,
        drain_ms: drain_ms as u32,
    })
}

/// Longest distance that `--rtt` takes, µs.
const MAX_RTT_US: u64 = 10_000_000;

/// Core of each role: capturer, injector, shards.
pub(crate) fn cores(options: &Options, shards: u16, usable: &[u16]) -> Result<Vec<u16>, Refusal> {
    let roles = usize::from(shards) + 2;
    let Some(given) = options.one(Key::Cores) else { return Ok(default_cores(roles, usable)) };
    if given.text == "none" {
        return Ok(Vec::new());
    }
    let list = core_list(&given.text).ok_or_else(|| {
        given.refuse("cores are a list of numbers and spans, for example 2-5 or 1,3,5, or `none`")
    })?;
    if let Some(core) = list.iter().find(|core| !usable.contains(core)) {
        return Err(given.refuse(format_args!(
            "this process may not run on core {core}; it may use {}. Name some of these, or `none`",
            spans(usable)
        )));
    }
    Ok(list.iter().copied().cycle().take(roles).collect())
}

/// The last cores, one each while they last: shards first, then injector and capturer. The first core, where most
/// machines handle their interrupts, stays free. None with two cores or fewer: there pinning only forbids the
/// scheduler to help.
fn default_cores(roles: usize, usable: &[u16]) -> Vec<u16> {
    if usable.len() <= 2 {
        return Vec::new();
    }
    let mut from_last: Vec<u16> = usable[1..].iter().rev().copied().cycle().take(roles).collect();
    from_last.reverse();
    from_last
}

/// `2-5`, `1,3,5`, `0,4-7`: in the order written, repeats allowed.
fn core_list(text: &str) -> Option<Vec<u16>> {
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u16>().ok()).flatten()
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        list.extend(first..=last);
        if list.len() > usize::from(MAX_SHARDS) * 2 {
            return None;
        }
    }
    (!list.is_empty()).then_some(list)
}

/// Ascending numbers as spans: `0-3,6`.
pub fn spans(numbers: &[u16]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some(first) = rest.first() {
        let run =
            rest.iter().enumerate().take_while(|(i, n)| usize::from(**n) == usize::from(*first) + i).count();
        let comma = if text.is_empty() { "" } else { "," };
        match run {
            1 => text.push_str(&format!("{comma}{first}")),
            _ => text.push_str(&format!("{comma}{first}-{}", rest[run - 1])),
        }
        rest = &rest[run..];
    }
    text
}

#[cfg(test)]
mod tests;
