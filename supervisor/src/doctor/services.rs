//! Each mapped service: whether somebody listens there, and whether its clients' packets come to the capture. The wire is
//! watched with the real capture, the plan's own filter in the kernel; beside it with a wider one, which tells a wrong
//! interface and a filter that takes nobody from a service without clients.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use capturer::filter::{CaptureFilter, Frames, Services};
use capturer::live::Live;
use capturer::online::{Meaning, Online};
use capturer::packet_ring::{Hearing, PacketRing, RingSpec, Start, open_socket};
use capturer::source::Source as _;
use flow::{Endpoint, datagram, segment};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use topology::Plan;
use topology::plan::{CaptureEngine, Clients, FilterPlan, Mapping, Protocol};

use super::Visit;
use super::finding::{Fault, Finding, Host};
use super::sockets::Table;
use crate::words::{counted, thousands};

/// How long the wire is watched.
const WATCH: Duration = Duration::from_secs(3);
/// So long at least, even where every service has clients enough.
const LEAST: Duration = Duration::from_secs(1);
/// Packets of a service that are enough.
const ENOUGH: u64 = 20;
/// Kernel memory of the watching rings, for each interface.
const RING_BYTES: u64 = 4 << 20;
/// Slot of the wider watch: headers, and the kernel's own before them.
const SLOT_BYTES: u32 = 256;

/// What came for one mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// In the real capture.
    captured: u64,
    /// Longest packet of them, bytes.
    longest: u32,
    /// In the wider watch, by the index of the interface.
    elsewhere: BTreeMap<u32, u64>,
    /// Of these, from clients that the options take.
    meant: u64,
}

/// What the watch saw.
#[derive(Debug, Default)]
struct Watched {
    by_mapping: Vec<Seen>,
    dropped: u64,
    time: Duration,
}

/// Notes each mapping.
pub(crate) fn check(visit: &mut Visit<'_>, may_capture: bool) {
    let plan = visit.plan;
    let watched = match () {
        () if !may_capture => Err("needs CAP_NET_RAW".to_owned()),
        () if visit.book.has(Fault::NoInterface) => Err("needs the interface".to_owned()),
        () if plan.capture.engine == CaptureEngine::Xdp => {
            Err("--capture xdp would take its frames from the host".to_owned())
        }
        () => watch(plan).map_err(|error| format!("{error:#}")),
    };
    let tables = [Table::read(Protocol::Tcp), Table::read(Protocol::Udp)];
    for (index, mapping) in plan.mappings.iter().enumerate() {
        let table = &tables[usize::from(mapping.protocol == Protocol::Udp)];
        let listens = table.listens(mapping.online_ip, mapping.online_port);
        let what = name_of(mapping);
        if plan.capture.promiscuous {
            // The service is another host's.
        } else if listens {
            visit.book.note(Finding::ok(Host::Online, format!("service {what}"), "somebody listens"));
        } else {
            let came = watched.as_ref().is_ok_and(|seen| seen.by_mapping[index].captured > 0);
            visit.book.note(nobody_listens(visit, table, mapping, &what, came));
        }
        let finding = match &watched {
            Err(why) => Finding::skipped(Host::Online, format!("capture {what}"), why.clone()),
            Ok(watched) => captured(visit, &watched.by_mapping[index], watched.time, &what, listens),
        };
        visit.book.note(finding);
    }
    if let Ok(watched) = &watched
        && watched.dropped > 0
    {
        let frames = counted(watched.dropped, "frame");
        visit.book.note(
            Finding::warning(Host::Online, "capture room", Fault::CaptureDrops, format!("{frames} dropped by the kernel"))
                .because("This host was too busy even to count them, in a ring of 4 MiB. A run has a larger one; give it more with --capture-buffer."),
        );
    }
}

fn nobody_listens(visit: &Visit<'_>, table: &Table, mapping: &Mapping, what: &str, came: bool) -> Finding {
    let busy: Vec<String> = table
        .busy()
        .iter()
        .take(4)
        .map(|(port, connections)| format!("{port} ({})", counted(*connections as u64, "connection")))
        .collect();
    let others = match busy.is_empty() {
        true => {
            let ports: Vec<String> =
                table.listening().iter().take(6).map(|at| at.port().to_string()).collect();
            if ports.is_empty() {
                String::new()
            } else {
                format!(" Ports that have a listener: {}.", ports.join(", "))
            }
        }
        false => format!(" Ports with clients now: {}.", busy.join(", ")),
    };
    let check = format!("service {what}");
    if came {
        return Finding::warning(Host::Online, check, Fault::OnlinePort, "nobody listens in this namespace")
            .because("Packets for it come all the same: is it in a container, or behind a redirection?");
    }
    let option = if mapping.protocol == Protocol::Udp { "-lun" } else { "-ltn" };
    Finding::failed(Host::Online, check, Fault::OnlinePort, "nobody listens at this port")
        .because(format!("-x names the port that clients speak to on this host.{others}"))
        .mend(visit.this_host(), format!("ss {option} 'sport = :{}'", mapping.online_port))
}

fn captured(visit: &Visit<'_>, seen: &Seen, time: Duration, what: &str, listens: bool) -> Finding {
    let check = format!("capture {what}");
    let plan = visit.plan;
    let on = match plan.capture.interfaces.as_slice() {
        [] => "any interface".to_owned(),
        names => names.join(","),
    };
    let seconds = time.as_secs_f64();
    if seen.captured > 0 {
        let mtu = plan.capture.interfaces.iter().filter_map(|name| capturer::interfaces::find(name));
        let mtu = mtu.filter_map(|one| injector::facts::device(one.index).ok()).map(|facts| facts.mtu).max();
        let joined = if seen.longest > mtu.unwrap_or(1_500) { ", super-frames on (fine)" } else { "" };
        let packets = thousands(seen.captured);
        return Finding::ok(
            Host::Online,
            check,
            format!("{on}, {packets} client packets in {seconds:.1} s{joined}"),
        );
    }
    let none = format!("{on}, no client packet in {seconds:.1} s");
    if let Some((&index, &packets)) = seen.elsewhere.iter().max_by_key(|(_, packets)| **packets) {
        let name = device_name(index);
        if plan.capture.interfaces.is_empty() || plan.capture.interfaces.contains(&name) {
            let taken = if seen.meant == 0 {
                "of none of the clients that --net and --not-net take"
            } else {
                "and -F takes none of them"
            };
            return Finding::failed(Host::Online, check, Fault::FilteredOut, none)
                .because(format!("{} came, {taken}.", counted(packets, "packet")))
                .mend(visit.this_host(), format!("tcpdump -ni {name} -c 5 {}", tcpdump(what)));
        }
        return Finding::failed(Host::Online, check, Fault::WrongInterface, none)
            .because(format!("On {name} came {} for it.", counted(packets, "packet")))
            .mend(visit.this_host(), format!("tcptwin run -i {name} ... (or leave -i out)"));
    }
    let why = match listens {
        true => {
            "The service has no clients now, or they come to another host: a replay has nothing to do until they come."
        }
        false => "Where nobody listens, no clients come.",
    };
    Finding::warning(Host::Online, check, Fault::NoTraffic, none).because(why)
}

/// `:80` in the words of tcpdump.
fn tcpdump(what: &str) -> String {
    let port = what.rsplit(':').next().unwrap_or_default();
    format!("dst port {port}")
}

/// `:80`, `10.0.3.1:80`, `udp::53`.
fn name_of(mapping: &Mapping) -> String {
    let online = mapping.online_ip.map_or_else(
        || format!(":{}", mapping.online_port),
        |ip| std::net::SocketAddr::new(ip, mapping.online_port).to_string(),
    );
    format!("{}{online}", mapping.protocol.prefix())
}

fn device_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .map_or_else(|_| format!("interface {index}"), |name| name.to_string_lossy().into_owned())
}

fn watch(plan: &Plan) -> anyhow::Result<Watched> {
    let mut narrow = plan.clone();
    (narrow.capture.engine, narrow.capture.buffer_bytes) = (CaptureEngine::Ring, RING_BYTES);
    // Recordings hear the answers too, which is not what is counted here.
    narrow.record = None;
    let mut live = Live::new(&narrow, capturer::open(&narrow)?, |_| 0)?;
    let mut wide = wider(plan).context("opening a packet socket on all interfaces failed")?;
    let real = [Online::new(&narrow, Protocol::Tcp), Online::new(&narrow, Protocol::Udp)];
    narrow.capture.filter = FilterPlan::default();
    let all = [Online::new(&narrow, Protocol::Tcp), Online::new(&narrow, Protocol::Udp)];
    let mut by_mapping = vec![Seen::default(); plan.mappings.len()];
    let started = Instant::now();
    loop {
        while live.drain(64, &mut |frame| {
            if let Some(mapping) = mapping_of(&real, frame.packet, frame.wire_len) {
                let seen = &mut by_mapping[usize::from(mapping)];
                seen.captured += 1;
                seen.longest = seen.longest.max(frame.wire_len);
            }
        }) > 0
        {
            live.release();
        }
        while let Some((meta, packet)) = wide.peek() {
            if let Some(mapping) = mapping_of(&all, packet, meta.len) {
                let seen = &mut by_mapping[usize::from(mapping)];
                *seen.elsewhere.entry(meta.interface).or_default() += 1;
                seen.meant += u64::from(mapping_of(&real, packet, meta.len).is_some());
            }
            wide.advance();
            wide.release();
        }
        let time = started.elapsed();
        let enough = by_mapping.iter().all(|seen| seen.captured >= ENOUGH);
        if time >= WATCH || enough && time >= LEAST {
            let dropped = live.take_dropped();
            return Ok(Watched { by_mapping, dropped, time });
        }
        let mut fds: Vec<PollFd<'_>> =
            live.fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Whatever poll says, the next look tells.
        let _ = poll(&mut fds, PollTimeout::from(50u8));
    }
}

/// Every interface, every client.
fn wider(plan: &Plan) -> std::io::Result<PacketRing> {
    let of = |protocol: Protocol| {
        let mappings = plan.mappings.iter().filter(move |mapping| mapping.protocol == protocol);
        let targets = plan.targets.iter().filter(move |target| target.protocol == protocol);
        Services {
            online: mappings.map(|mapping| (mapping.online_ip, mapping.online_port)).collect(),
            targets: targets.map(|target| target.addr).collect(),
        }
    };
    let tcp = of(Protocol::Tcp);
    let filter = CaptureFilter {
        online: tcp.online,
        clients: match &plan.clients {
            Clients::Pool { v4, v6, .. } => v4.iter().chain(v6).copied().collect(),
            Clients::Keep => Vec::new(),
        },
        targets: tcp.targets,
        inside: Vec::new(),
        outside: Vec::new(),
        udp: of(Protocol::Udp),
        promiscuous: plan.capture.promiscuous,
        answers: false,
        link_header: 0,
        frames: Frames::All,
    };
    let spec = RingSpec::with_slots(SLOT_BYTES, RING_BYTES / 4);
    let hearing = Hearing { promiscuous: plan.capture.promiscuous, outgoing: false };
    PacketRing::map(open_socket(&spec, &filter.program(), 0, hearing)?, spec, Start::Fresh)
}

/// The mapping that a client's packet belongs to.
fn mapping_of(online: &[Online; 2], packet: &[u8], wire_len: u32) -> Option<u16> {
    let meaning = |protocol: usize, src: &Endpoint, dst: &Endpoint| match online[protocol].meaning(src, dst) {
        Meaning::Mapping(mapping) => Some(mapping),
        _ => None,
    };
    match segment::parse(packet, wire_len) {
        Ok(segment) => meaning(0, &segment.src, &segment.dst),
        Err(_) => match datagram::parse(packet, wire_len) {
            Ok(datagram::Seen::Whole(whole)) => meaning(1, &whole.src, &whole.dst),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn services_are_named_as_they_are_typed() {
        use topology::Key;
        let plan = testing::plan("doctor", &[(Key::Map, "10.0.3.1:80-10.0.3.2:8080,udp:53-10.0.3.2:53")]);
        let names: Vec<String> = plan.mappings.iter().map(name_of).collect();
        assert_eq!(names, ["10.0.3.1:80", "udp::53"]);
        assert_eq!(tcpdump(&names[0]), "dst port 80");
    }
}
