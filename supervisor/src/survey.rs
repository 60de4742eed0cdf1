//! `replay FILE... --dry-run`: what a replay of packet files would be, in words or as one JSON object. Nothing is sent, and no
//! privilege is needed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use capturer::expression;
use capturer::online::Online;
use capturer::survey::{Bounds, Service, Sums, Survey};
use flow::Malformed;
use serde_json::{Map, Value, json};
use topology::mapping::{self, Parsed};
use topology::plan::{Mapping, Protocol, TracePlan};
use topology::{Key, Options, Plan, Refusal, clients, planner};
use trace::{Reader, Report, Trouble};

use crate::replaying;
use crate::words::{self, bytes, counted, thousands};

/// Services listed at most.
const LISTED: usize = 10;

/// What the command line asks for.
///
/// # Errors
/// Wrong use, or files of which none can be read.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let Some(trace) = topology::trace::trace(options)? else {
        return Err(Refusal::usage("which file? Name one that `tcpdump -w` or Wireshark has written").into());
    };
    let mappings = if options.has(Key::Map) { mapping::mappings(options)? } else { vec![] };
    let filter = planner::filter(options)?;
    let online = |protocol| online(&mappings, protocol).narrowed(&filter);
    let mut survey = Survey::new(online(Protocol::Tcp), mappings.len(), Bounds::default());
    if mappings.iter().any(|one| one.protocol == Protocol::Udp) {
        survey = survey.with_datagrams(online(Protocol::Udp));
    }
    if let Some(given) = options.one(Key::Filter) {
        survey = survey
            .taking(expression::compile(&given.text).map_err(|error| crate::run::refused(given, error))?);
    }
    look(&trace.files, capturer::offline::options(&trace), &mappings, survey, options.has(Key::Json))
}

/// Reads the files and says what they hold, and what of it `mappings` want. Without any the services are listed.
///
/// # Errors
/// None of the files can be read.
fn look(
    files: &[PathBuf],
    options: trace::Options,
    mappings: &[Parsed],
    mut survey: Survey,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::open(files, options).map_err(|error| Refusal::preflight(error.to_string()))?;
    while let Some(packet) = reader.next() {
        survey.packet(&packet);
    }
    let found = Found { mappings, survey: &survey, report: reader.report(), files: files.len() };
    let text = if json { found.json().to_string() } else { found.lines().join("\n") };
    print(&text);
    // A mapping for which there is nothing is most likely a slip, and a script must not take it for a success.
    let nothing = !mappings.is_empty() && survey.sums() == Sums::default();
    Ok(if nothing { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// What the mappings of a protocol want. Packets of the default client ranges are those of another replay.
fn online(mappings: &[Parsed], protocol: Protocol) -> Online {
    let of_it = || mappings.iter().zip(0..).filter(|(one, _)| one.protocol == protocol);
    let services = of_it().map(|(one, index)| (one.online_ip, one.online_port, index));
    let targets = of_it().map(|(one, _)| one.target.into()).collect();
    Online::of(services, targets, vec![clients::default_v4(), clients::default_v6()])
}

fn print(text: &str) {
    use std::io::Write as _;
    // A reader that is gone (`| head`) is no failure.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// All that is told.
struct Found<'a> {
    mappings: &'a [Parsed],
    survey: &'a Survey,
    report: &'a Report,
    files: usize,
}

impl Found<'_> {
    fn lines(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut add = |name: &str, text: String| out.push(format!("{name:<11}{text}"));
        let report = self.report;
        let over = span_ns(report).map_or(String::new(), |ns| format!(" over {}", span(ns)));
        let read = format!("{}, {}", counted(report.packets, "packet"), bytes(report.bytes));
        add("read", format!("{}: {read}{over}", counted(self.files as u64, "file")));
        for (i, text) in self.left_out().into_iter().enumerate() {
            add(if i == 0 { "of these" } else { "" }, text);
        }
        for (mapping, sums) in self.mappings.iter().zip(self.survey.by_mapping()) {
            add("map", text_of(mapping));
            let texts = match mapping.protocol {
                Protocol::Tcp => replayed(&sums),
                Protocol::Udp => vec![datagrams(&sums)],
            };
            for text in texts {
                add("", text);
            }
        }
        if !self.mappings.is_empty() && self.survey.sums() != Sums::default() {
            let time = span(self.survey.duration_ns());
            add("duration", format!("{time} from the first mapped packet to the last"));
        }
        if self.survey.counts().overflow_packets > 0 {
            let packets = counted(self.survey.counts().overflow_packets, "packet");
            add(
                "beyond",
                format!("{packets} of sessions for which the survey had no room (65,536 at one time)"),
            );
        }
        let top = self.survey.top(LISTED);
        for (i, service) in top.iter().enumerate() {
            add(if i == 0 { "services" } else { "" }, line_of(self.survey, service));
        }
        for (i, note) in report.notes().iter().enumerate() {
            add(if i == 0 { "troubles" } else { "" }, note.to_string());
        }
        for trouble in Trouble::ALL {
            let noted = report.notes().iter().filter(|note| note.trouble == *trouble).count() as u64;
            if report.count(*trouble) > noted {
                let more = thousands(report.count(*trouble) - noted);
                add("", format!("and {more} more of {}", trouble.name()));
            }
        }
        out.extend(self.advice());
        out
    }

    /// What to type instead, when nothing is mapped.
    fn advice(&self) -> Vec<String> {
        if self.survey.sums() != Sums::default() {
            return vec![];
        }
        if let Some(why) = narrowed_to_nothing(self.survey) {
            return vec![why];
        }
        let (wanted, target) = self
            .mappings
            .first()
            .map_or((Protocol::Tcp, "TARGET:PORT".to_owned()), |one| (one.protocol, one.target.to_string()));
        let Some(suggested) = suggestion(self.survey, &busiest(self.survey, wanted, LISTED), &target) else {
            return vec![
                "The files hold no TCP and no UDP packet at all. Was the right interface captured?"
                    .to_owned(),
            ];
        };
        let why = match self.mappings {
            [] => "No -x is given. For the busiest service:".to_owned(),
            _ => "The files hold no packet to any service of -x. For the busiest one they hold:".to_owned(),
        };
        vec![why, format!("  {suggested}")]
    }

    /// Packets that are no TCP of a mapped service, and what the reader left out.
    fn left_out(&self) -> Vec<String> {
        let (counts, report) = (self.survey.counts(), self.report);
        let malformed =
            Malformed::ALL.iter().zip(counts.malformed).filter(|(kind, _)| **kind != Malformed::Fragment);
        [
            (counts.other_tcp, "TCP of other services"),
            (counts.udp, "UDP of other services"),
            (counts.other_ip, "other protocols"),
            (counts.own, "sent by a replay"),
            (counts.left_out, "left out by the client's address (--net, --not-net)"),
            (counts.not_taken, "left out by the expression (-F), answers among them"),
            (report.fragments, "fragments, which are not put together"),
            (malformed.map(|(_, count)| count).sum(), "malformed"),
            (report.cut_packets, "cut by the snap length; what is missing becomes holes"),
            (report.decapsulated, "out of tunnels"),
            (report.not_ip, "frames without IP, left out"),
            (report.before, "before --from, left out"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{:>9} {what}", thousands(count)))
        .collect()
    }

    fn json(&self) -> Value {
        let (counts, report) = (self.survey.counts(), self.report);
        let by_name = |pairs: Vec<(&str, u64)>| -> Map<String, Value> {
            pairs.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n.into())).collect()
        };
        let mappings: Vec<Value> = self
            .mappings
            .iter()
            .zip(self.survey.by_mapping())
            .map(|(mapping, sums)| json!({"map": text_of(mapping), "traffic": sums_json(&sums)}))
            .collect();
        let services: Vec<Value> = self
            .survey
            .top(LISTED)
            .iter()
            .map(|service| {
                json!({
                    "service": name_of(service), "mapped": self.survey.is_mapped(service),
                    "certain": service.certain, "packets": service.packets, "payload_bytes": service.bytes,
                    "syns": service.syns,
                })
            })
            .collect();
        json!({
            "files": self.files,
            "packets": report.packets, "bytes": report.bytes,
            "first_ns": report.first_ns, "last_ns": report.last_ns,
            "duration_ns": self.survey.duration_ns(),
            "traffic": sums_json(&self.survey.sums()),
            "mappings": mappings,
            "services": services,
            "other": {
                "tcp": counts.other_tcp, "udp": counts.udp, "ip": counts.other_ip, "own": counts.own,
                "left_out_by_address": counts.left_out, "left_out_by_expression": counts.not_taken,
                "before_from": report.before,
                "malformed": by_name(Malformed::ALL.iter().map(|kind| kind.name()).zip(counts.malformed).collect()),
                "not_ip": report.not_ip, "fragments": report.fragments, "cut": report.cut_packets,
                "decapsulated": report.decapsulated,
                "beyond_sessions": counts.overflow_packets, "beyond_services": counts.overflow_services,
            },
            "troubles": by_name(Trouble::ALL.iter().map(|one| (one.name(), report.count(*one))).collect()),
            "notes": report.notes().iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }
}

/// Why a replay of these files replayed nothing: what they hold instead, and which `-x` would take it. Asked at the replay's end,
/// so at most so many packets are looked at. `packets`: how many were read.
pub(crate) fn nothing_replayed(plan: &Plan, trace: &TracePlan, packets: u64) -> String {
    const LOOKED_AT: u64 = 1_000_000;
    const NAMED: usize = 5;
    let name = |one: &Mapping| format!("{}{}", one.protocol.prefix(), one.online_port);
    let wanted: Vec<String> = plan.mappings.iter().take(NAMED).map(name).collect();
    let head = format!("the files hold no packet from a client to port {}", wanted.join(" or "));
    if let Some(pipe) = replaying::pipe(trace) {
        let name = match pipe.as_os_str() == topology::trace::STDIN {
            true => "standard input".to_owned(),
            false => format!("the pipe {}", pipe.display()),
        };
        return match packets {
            0 => format!(
                "no packet came out of {name}. Is whoever writes to it running? For example: tcpdump -w {}",
                pipe.display()
            ),
            _ => format!("{head}. Look at what was piped in: tcpdump -nr FILE"),
        };
    }
    let options = capturer::offline::options(trace);
    let limit = Some(options.limit.map_or(LOOKED_AT, |limit| limit.min(LOOKED_AT)));
    let Ok(mut reader) = Reader::open(&trace.files, trace::Options { limit, ..options }) else {
        return head;
    };
    let mut survey = Survey::of_plan(plan, Bounds::default());
    while let Some(packet) = reader.next() {
        survey.packet(&packet);
    }
    let report = reader.report();
    if report.packets == 0 && report.before > 0 {
        let before = counted(report.before, "packet");
        return format!(
            "the files hold no packet between --from and --until; {before} lie before. Give an earlier --from, or leave it out"
        );
    }
    if let Some(why) = narrowed_to_nothing(&survey) {
        return why;
    }
    let (wanted, target) = plan
        .targets
        .first()
        .map_or((Protocol::Tcp, String::new()), |target| (target.protocol, target.addr.to_string()));
    let top = busiest(&survey, wanted, NAMED);
    let Some(suggested) = suggestion(&survey, &top, &target) else {
        return format!(
            "{head}, and no other TCP or UDP either. Was the capture made where this traffic passes?"
        );
    };
    let named: Vec<String> = top.iter().map(|service| format!("\n  {}", line_of(&survey, service))).collect();
    format!("{head}. They do hold{}\nTry: {suggested}", named.concat())
}

/// The services with the most packets, at most `n`, those of the protocol that was asked for first.
fn busiest(survey: &Survey, wanted: Protocol, n: usize) -> Vec<Service> {
    let mut top = survey.top(Bounds::default().services);
    top.sort_by_key(|service| service.protocol != wanted);
    top.truncate(n);
    top
}

/// One service that files hold.
fn line_of(survey: &Survey, service: &Service) -> String {
    let mapped = if survey.is_mapped(service) { ", mapped" } else { "" };
    let guess = if service.certain { "" } else { " (by its lower port)" };
    let (what, syns) = match service.protocol {
        Protocol::Tcp => ("packet", format!(", {}", counted(service.syns, "SYN"))),
        Protocol::Udp => ("datagram", String::new()),
    };
    format!(
        "{:<22} {}, {}{syns}{mapped}{guess}",
        name_of(service),
        counted(service.packets, what),
        bytes(service.bytes),
    )
}

fn name_of(service: &Service) -> String {
    format!("{}{}", service.protocol.prefix(), service.at)
}

/// What to type for the first service that nothing is mapped to.
fn suggestion(survey: &Survey, top: &[Service], target: &str) -> Option<String> {
    let service = top.iter().find(|service| !survey.is_mapped(service))?;
    Some(format!("-x {}{}-{target}", service.protocol.prefix(), service.at.port))
}

/// The sentence for files that hold packets to services of `-x`, all of which other options leave out.
fn narrowed_to_nothing(survey: &Survey) -> Option<String> {
    let counts = survey.counts();
    let left_out = [
        (counts.left_out, "by the client's address (--net, --not-net)"),
        (counts.not_taken, "by the expression (-F)"),
    ];
    let by: Vec<String> = left_out
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, how)| format!("{} {how}", counted(count, "packet")))
        .collect();
    (!by.is_empty()).then(|| {
        format!("-x: all packets of its services are left out, {}. Widen these options", by.join(", "))
    })
}

fn replayed(sums: &Sums) -> Vec<String> {
    let older = match sums.midstream {
        0 => String::new(),
        older => format!(", {} of them older than the files", thousands(older)),
    };
    let mut lines = vec![
        format!("{}{older}", counted(sums.begun + sums.midstream, "session")),
        format!(
            "{}, {} of requests, {} of answers",
            counted(sums.turns, "turn"),
            bytes(sums.request_bytes),
            bytes(sums.answer_bytes)
        ),
        format!("{} of clients, {} back", counted(sums.packets, "packet"), thousands(sums.answers)),
    ];
    if sums.repeated_bytes > 0 {
        lines.push(format!("{} sent again by clients", bytes(sums.repeated_bytes)));
    }
    if sums.missing_bytes > 0 {
        lines.push(format!("{} missing: sent by clients, and not in the files", bytes(sums.missing_bytes)));
    }
    lines
}

fn datagrams(sums: &Sums) -> String {
    let (sent, of) = (counted(sums.datagrams, "datagram"), bytes(sums.datagram_bytes));
    format!("{sent} of clients with {of}, {} back", thousands(sums.datagram_answers))
}

fn sums_json(sums: &Sums) -> Value {
    json!({
        "sessions": sums.begun + sums.midstream, "midstream": sums.midstream, "turns": sums.turns,
        "packets": sums.packets, "answer_packets": sums.answers,
        "request_bytes": sums.request_bytes, "answer_bytes": sums.answer_bytes,
        "repeated_bytes": sums.repeated_bytes, "missing_bytes": sums.missing_bytes,
        "datagrams": sums.datagrams, "datagram_bytes": sums.datagram_bytes, "datagram_answers": sums.datagram_answers,
    })
}

fn text_of(mapping: &Parsed) -> String {
    let prefix = mapping.protocol.prefix();
    match mapping.online_ip {
        Some(ip) => {
            format!("{prefix}{}-{}", std::net::SocketAddr::new(ip, mapping.online_port), mapping.target)
        }
        None => format!("{prefix}{}-{}", mapping.online_port, mapping.target),
    }
}

fn span_ns(report: &Report) -> Option<u64> {
    Some(report.last_ns? - report.first_ns?)
}

/// Short times with milliseconds.
fn span(ns: u64) -> String {
    if ns < 100_000_000_000 {
        format!("{:.3} s", ns as f64 / 1e9)
    } else {
        words::elapsed(Duration::from_nanos(ns))
    }
}
