//! `tcptwin replay`: the files are looked at first, then it is a run like any other. What was mapped is asked at its end.

use std::collections::HashMap;
use std::process::ExitCode;

use topology::plan::TracePlan;
use topology::{Command, Key, Options, Plan, Refusal};
use trace::Reader;

use crate::{run, survey, words};

/// Packets of the files that are looked at for services, when nothing was mapped.
const LOOKED_AT: u64 = 1_000_000;
/// Services told apart at most.
const SERVICES: usize = 65_536;
/// Services named.
const NAMED: usize = 5;

/// Replays until the files end.
///
/// # Errors
/// A [`Refusal`] before the start; anything else is a failure while running.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !options.has(Key::Files) {
        return Err(Refusal::usage(
            "which file? Name one that `tcpdump -w` or Wireshark has written, or - for standard input",
        )
        .into());
    }
    if options.has(Key::DryRun) {
        return survey::run(options);
    }
    run::run(options, Command::Replay)
}

/// Makes sure that the files can be read, here and by every successor of a role: their names no longer depend on where the
/// command was typed.
///
/// # Errors
/// None of them is a packet file.
pub(crate) fn settle(plan: &mut Plan) -> Result<(), Refusal> {
    let Some(trace) = &mut plan.trace else { return Ok(()) };
    for file in &mut trace.files {
        if file.as_os_str() != topology::trace::STDIN
            && let Ok(absolute) = std::path::absolute(&*file)
        {
            *file = absolute;
        }
    }
    // A pipe can be opened once, and that is for the capturer to do.
    if trace.files.iter().all(|file| file.is_file() || !file.exists() || file.is_dir()) && !is_stdin(trace) {
        Reader::open(&trace.files, trace::Options::default())
            .map_err(|error| Refusal::preflight(error.to_string()))?;
    }
    Ok(())
}

/// Whether standard input is among the files.
pub(crate) fn is_stdin(trace: &TracePlan) -> bool {
    trace.files.iter().any(|file| file.as_os_str() == topology::trace::STDIN)
}

/// Why a replay of these files replayed nothing: what they hold instead, and which `-x` would take it.
pub(crate) fn nothing_mapped(plan: &Plan, trace: &TracePlan) -> String {
    let wanted: Vec<String> =
        plan.mappings.iter().take(NAMED).map(|one| one.online_port.to_string()).collect();
    let head = format!("the files hold no packet from a client to port {}", wanted.join(" or "));
    if is_stdin(trace) {
        return format!("{head}. Look at what was piped in: tcpdump -nr FILE tcp");
    }
    let mut services = services(trace);
    services.sort_unstable_by_key(|(service, packets)| (std::cmp::Reverse(*packets), *service));
    let Some((first, _)) = services.first() else {
        return format!("{head}, and no other TCP either. Was the capture made where this traffic passes?");
    };
    let named: Vec<String> = services
        .iter()
        .take(NAMED)
        .map(|(service, packets)| {
            format!("\n  {:<28} {}", service.to_string(), words::counted(*packets, "packet"))
        })
        .collect();
    let target = plan.targets.first().map_or_else(String::new, |target| target.addr.to_string());
    format!("{head}. They do hold{}\nTry: -x {}-{target}", named.concat(), first.port)
}

/// Where the packets of the files go to: the ends that SYNs went to, else the lower ports.
fn services(trace: &TracePlan) -> Vec<(flow::Endpoint, u64)> {
    let options = trace::Options { decap: trace.decap, limit: Some(LOOKED_AT), ..trace::Options::default() };
    let Ok(mut reader) = Reader::open(&trace.files, options) else { return Vec::new() };
    let mut packets: HashMap<flow::Endpoint, u64> = HashMap::new();
    while let Some(packet) = reader.next() {
        let Ok(segment) = flow::segment::parse(packet.ip, packet.wire_len) else { continue };
        let to_server = segment.dst.port < segment.src.port;
        let service = if to_server { segment.dst } else { segment.src };
        if packets.len() < SERVICES || packets.contains_key(&service) {
            *packets.entry(service).or_default() += 1;
        }
    }
    packets.into_iter().collect()
}
