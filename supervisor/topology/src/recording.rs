//! What is recorded, and where: `tcptwin record`, and `--record` of `run`.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::mapping;
use crate::options::{Key, Options};
use crate::plan::{
    CanaryPlan, CaptureEngine, Clients, InjectEngine, Limits, MAX_MAPPINGS, Mapping, NOWHERE, Protocol,
    RecordPlan, Rings, Seeds,
};
use crate::planner::{self, DEFAULT_NAME, Facts};
use crate::restraint;
use crate::sizes;
use crate::value;
use crate::{Plan, Refusal};

/// `--rotate` unless given.
pub const DEFAULT_ROTATE: u64 = 1 << 30;
/// `--rotate-every` unless given.
pub const DEFAULT_ROTATE_MS: u64 = 3_600_000;
/// `--keep` unless given.
pub const DEFAULT_KEEP: u64 = 10 << 30;
/// `--record-buffer` unless given: a quarter of a second at 2 Gbit/s.
pub const DEFAULT_BUFFER: u64 = 64 << 20;
/// Smallest: sixteen super-frames.
const MIN_BUFFER: u64 = 1 << 20;
/// Largest.
const MAX_BUFFER: u64 = 4 << 30;
/// Smallest file: a super-frame and its frame.
const MIN_ROTATE: u64 = 1 << 20;
/// Longest packet.
const MAX_SNAP: u64 = 262_144;
/// Options that say how, and need one that says where.
const HOW: [Key; 6] = [Key::Rotate, Key::RotateEvery, Key::Keep, Key::Snap, Key::Zstd, Key::RecordBuffer];

/// The recording of a `run`; none without `--record`.
///
/// # Errors
/// One sentence, exit code 2.
pub fn beside_replay(options: &Options, host_id: u64) -> Result<Option<RecordPlan>, Refusal> {
    if !options.has(Key::Record)
        && let Some(given) = HOW.iter().find_map(|key| options.one(*key))
    {
        return Err(given.refuse("it goes with --record. Add --record DIR, or leave it out"));
    }
    recording(options, Key::Record, host_id)
}

/// Makes the plan of `record`: no target, no shard, the capturer alone.
///
/// # Errors
/// One sentence, exit code 2.
pub fn plan_to_record(options: &Options, facts: &Facts) -> Result<Plan, Refusal> {
    options.check_rivals()?;
    let mappings = services(options)?;
    let Some(record) = recording(options, Key::Output, facts.host_id)? else {
        return Err(Refusal::usage(
            "where to? There is no -o. Name a directory for the files, for example -o /var/tmp/web",
        ));
    };
    let [instance, shard, sample, endpoint, isn, table] = facts.random;
    let plan = Plan {
        name: planner::name(options, DEFAULT_NAME)?,
        instance,
        format: facts.format,
        seeds: Seeds { shard, sample, endpoint, isn, table },
        mappings,
        targets: Vec::new(),
        clients: Clients::Keep,
        intercepts: Vec::new(),
        key: None,
        capture: planner::capture(options)?,
        record: Some(record),
        trace: None,
        inject: InjectEngine::Auto,
        canary: CanaryPlan::Off,
        sandbox: planner::sandbox(options)?,
        copies_milli: 1_000,
        percent_ppm: 1_000_000,
        shards: 0,
        cores: planner::cores(options, 0, &facts.cores)?,
        // Of each shard, and there is none.
        limits: Limits { sessions_per_shard: 16, chunks_per_shard: 16, held_per_session: 1 << 16 },
        rings: Rings {
            capture: sizes::MIN_CAPTURE_RING as u32,
            inject: sizes::MIN_INJECT_RING as u32,
            returns: sizes::MIN_RETURN_RING as u32,
        },
        replay: planner::replay(options)?,
        restraint: restraint::of_a_recording(options)?,
    };
    fits(options, &plan)?;
    Ok(plan)
}

/// Refuses a plan that cannot be recorded, or that a mirror port cannot serve.
///
/// # Errors
/// One sentence, exit code 2.
pub fn fits(options: &Options, plan: &Plan) -> Result<(), Refusal> {
    if let (Some(_), Some(given), CaptureEngine::Xdp, false) =
        (&plan.record, options.one(Key::Capture), plan.capture.engine, options.has(Key::Mirror))
    {
        return Err(given.refuse(
            "this engine sees what comes in alone, and a recording has the answers too. Add --mirror for a mirror port that brings both, or give another engine",
        ));
    }
    let Some(mirror) = options.one(Key::Mirror) else { return Ok(()) };
    if plan.capture.interfaces.is_empty() {
        return Err(mirror.refuse(
            "which interface is the mirror port's? All of them cannot be made to take frames of others. Name it, for example -i eth1",
        ));
    }
    let of_this_host = plan.mappings.iter().find(|mapping| mapping.online_ip.is_none());
    let Some(mapping) = of_this_host else { return Ok(()) };
    let port = mapping.online_port;
    let rest =
        plan.targets.get(usize::from(mapping.target)).map_or_else(String::new, |t| format!("-{}", t.addr));
    Err(mirror.refuse(format_args!(
        "the mirrored service is on another host, and -x {port}{rest} says no address, which means this one. Name the online address, for example -x 10.0.3.1:{port}{rest}"
    )))
}

fn recording(options: &Options, place: Key, host_id: u64) -> Result<Option<RecordPlan>, Refusal> {
    let Some(given) = options.one(place) else { return Ok(None) };
    if given.text.is_empty() {
        return Err(given.refuse("this is no directory. Name one, for example /var/tmp/web"));
    }
    let keep_bytes = match options.one(Key::Keep) {
        None => Some(DEFAULT_KEEP),
        Some(given) if given.text == "all" => None,
        Some(given) => Some(planner::read(given, value::size)?),
    };
    if let (Some(given), Some(keep)) = (options.one(Key::Keep), keep_bytes)
        && keep < 4 * MIN_ROTATE
    {
        return Err(given.refuse("the total is at least 4MiB, or `all`"));
    }
    let rotate_bytes = match options.one(Key::Rotate) {
        // Four files at least, so that the oldest that goes is not nearly all there is.
        None => keep_bytes.map_or(DEFAULT_ROTATE, |keep| DEFAULT_ROTATE.min(keep / 4)),
        Some(given) => {
            let bytes = planner::read(given, value::size)?;
            if bytes < MIN_ROTATE {
                return Err(given.refuse("a file is at least 1MiB long, for example 1GiB"));
            }
            if let Some(keep) = keep_bytes.filter(|keep| bytes > keep / 2) {
                return Err(given.refuse(format_args!(
                    "two files of this size do not fit into --keep {}MiB, and one is written while the oldest goes. Take smaller files, or keep more",
                    keep >> 20
                )));
            }
            bytes
        }
    };
    let rotate_ms = options.one(Key::RotateEvery).map_or(Ok(DEFAULT_ROTATE_MS), |given| {
        planner::read(given, |text| value::time_ms(text, 1_000, 30 * 24 * 3_600_000))
    })?;
    let snap = options.one(Key::Snap).map_or(Ok(0), |given| {
        planner::read(given, |text| match value::whole(text, "the length", 0, MAX_SNAP) {
            Ok(bytes @ 1..64) => Err(format!("{bytes} bytes hold no headers. Give 64 or more, or 0 for all")),
            other => other,
        })
    })?;
    let buffer_bytes =
        options.one(Key::RecordBuffer).map_or(Ok(DEFAULT_BUFFER), |given| {
            match planner::read(given, value::size)? {
                bytes @ MIN_BUFFER..=MAX_BUFFER => Ok(bytes),
                _ => Err(given.refuse("the buffer is from 1MiB to 4GiB, for example 64MiB")),
            }
        })?;
    Ok(Some(RecordPlan {
        directory: PathBuf::from(&given.text),
        host: (host_id ^ (host_id >> 32)) as u32,
        rotate_bytes,
        rotate_ms,
        keep_bytes,
        snap: snap as u32,
        zstd: options.has(Key::Zstd),
        buffer_bytes,
    }))
}

/// `-x [udp:][IP:]PORT`.
fn services(options: &Options) -> Result<Vec<Mapping>, Refusal> {
    let form = "Write [udp:][IP:]PORT, for example -x 80";
    let mut found: Vec<(Option<IpAddr>, u16, Protocol)> = Vec::new();
    for given in options.all(Key::Map) {
        if let Ok(parsed) = mapping::parse(&given.text) {
            let (ip, port) = (parsed.online_ip, parsed.online_port);
            let online =
                ip.map_or_else(|| port.to_string(), |ip| std::net::SocketAddr::new(ip, port).to_string());
            return Err(given.refuse(format_args!(
                "a recording has no target. Write -x {online}, or add --record DIR to `tcptwin run`"
            )));
        }
        let (protocol, text) = mapping::protocol(&given.text).map_err(|why| given.refuse(why))?;
        let (ip, port) =
            mapping::online_side(text).map_err(|why| given.refuse(format_args!("{why}. {form}")))?;
        let service = (ip, port, protocol);
        if found.contains(&service) {
            return Err(given.refuse("this service is given twice. Leave one out"));
        }
        found.push(service);
        if found.len() > MAX_MAPPINGS {
            return Err(given.refuse(format_args!(
                "there are more than {MAX_MAPPINGS} services. Split them over two instances (--name)"
            )));
        }
    }
    if found.is_empty() {
        return Err(Refusal::usage(format!("nothing to record: there is no -x. {form}")));
    }
    let mapping =
        |(online_ip, online_port, protocol)| Mapping { online_ip, online_port, target: NOWHERE, protocol };
    Ok(found.into_iter().map(mapping).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Place;

    fn facts() -> Facts {
        Facts {
            cores: vec![0, 1],
            host_id: 1,
            random: [7; 6],
            key: Some([0; 32]),
            arena_bytes: |sessions, chunks| u64::from(sessions) * 448 + u64::from(chunks) * 1024,
            format: 0,
        }
    }

    fn options(given: &[(Key, &str)]) -> Options {
        let mut options = Options::default();
        for (key, text) in given {
            options.give(*key, text, Place::CommandLine);
        }
        options
    }

    fn record(given: &[(Key, &str)]) -> Result<Plan, Refusal> {
        plan_to_record(&options(given), &facts())
    }

    fn run(given: &[(Key, &str)]) -> Result<Plan, Refusal> {
        let usual = [(Key::Map, "80-10.0.3.2:8080"), (Key::Intercept, "10.0.4.2")];
        let usual: Vec<_> =
            usual.into_iter().filter(|(key, _)| given.iter().all(|(k, _)| k != key)).collect();
        crate::plan_from(&options(&[usual, given.to_vec()].concat()), &facts())
    }

    const WHERE: (Key, &str) = (Key::Output, "rec");

    #[test]
    fn the_smallest_command_line_records_a_port_of_this_host() {
        let plan = record(&[(Key::Map, "80,10.0.0.9:81"), WHERE]).unwrap();
        assert!(plan.records_only() && plan.targets.is_empty() && plan.mappings.len() == 2);
        assert_eq!((plan.mappings[0].online_ip, plan.mappings[1].online_port), (None, 81));
        let record = plan.record.clone().unwrap();
        assert_eq!((record.rotate_bytes, record.rotate_ms), (1 << 30, 3_600_000));
        assert_eq!((record.keep_bytes, record.snap, record.zstd), (Some(10 << 30), 0, false));
        assert_eq!(Plan::from_bytes(&plan.to_bytes()).unwrap(), plan);
    }

    #[test]
    fn files_are_never_nearly_all_that_is_kept() {
        let with = |more: &[(Key, &str)]| record(&[&[(Key::Map, "80"), WHERE], more].concat());
        assert_eq!(with(&[(Key::Keep, "100MiB")]).unwrap().record.unwrap().rotate_bytes, 25 << 20);
        assert_eq!(with(&[(Key::Keep, "all")]).unwrap().record.unwrap().keep_bytes, None);
        let said = with(&[(Key::Keep, "100MiB"), (Key::Rotate, "60MiB")]).unwrap_err().sentence;
        assert!(said.contains("two files of this size do not fit into --keep 100MiB"), "{said}");
    }

    #[test]
    fn every_slip_has_a_sentence() {
        for (given, part) in [
            (vec![WHERE], "nothing to record"),
            (vec![(Key::Map, "80")], "There is no -o"),
            (vec![(Key::Map, "80"), (Key::Output, "")], "this is no directory"),
            (vec![(Key::Map, "80-10.0.3.2:8080"), WHERE], "a recording has no target. Write -x 80, or"),
            (vec![(Key::Map, "http"), WHERE], "is not a port number"),
            (vec![(Key::Map, "80,80"), WHERE], "given twice"),
            (vec![(Key::Map, "udp:53,udp:53"), WHERE], "given twice"),
            (vec![(Key::Map, "80"), WHERE, (Key::Rotate, "1KiB")], "at least 1MiB"),
            (vec![(Key::Map, "80"), WHERE, (Key::RotateEvery, "0")], "a time is a number"),
            (vec![(Key::Map, "80"), WHERE, (Key::Keep, "1MiB")], "at least 4MiB"),
            (vec![(Key::Map, "80"), WHERE, (Key::Snap, "20")], "hold no headers"),
            (vec![(Key::Map, "80"), WHERE, (Key::RecordBuffer, "1")], "from 1MiB to 4GiB"),
            (
                vec![(Key::Map, "80"), WHERE, (Key::Capture, "xdp"), (Key::Interface, "eth1")],
                "sees what comes in alone",
            ),
            (
                vec![(Key::Map, "80"), WHERE, (Key::Mirror, ""), (Key::Interface, "eth1")],
                "Name the online address",
            ),
            (vec![(Key::Map, "10.0.0.9:80"), WHERE, (Key::Mirror, "")], "for example -i eth1"),
        ] {
            let refusal = record(&given).expect_err(part);
            assert!(refusal.exit == 2 && refusal.sentence.contains(part), "{refusal}");
        }
        let both = record(&[(Key::Map, "53,udp:53"), WHERE]).unwrap().mappings;
        assert_eq!(both.iter().map(|one| one.protocol).collect::<Vec<_>>(), [Protocol::Tcp, Protocol::Udp]);
        assert!(
            record(&[(Key::Map, "10.0.0.9:80"), WHERE, (Key::Mirror, ""), (Key::Interface, "eth1")]).is_ok()
        );
    }

    #[test]
    fn a_run_records_when_it_is_told_where() {
        assert_eq!(run(&[]).unwrap().record, None);
        let record =
            run(&[(Key::Record, "rec"), (Key::Zstd, ""), (Key::Snap, "96")]).unwrap().record.unwrap();
        assert_eq!((record.directory, record.zstd, record.snap), (PathBuf::from("rec"), true, 96));
        let plan = run(&[(Key::Record, "rec"), (Key::Map, "udp:53-10.0.3.2:53")]).unwrap();
        assert!(plan.record.is_some() && plan.replays(Protocol::Udp));
        let said = run(&[(Key::Zstd, "")]).unwrap_err().sentence;
        assert!(said.contains("--zstd: it goes with --record"), "{said}");
    }

    #[test]
    fn a_mirror_port_needs_the_online_address() {
        let mirror = [(Key::Mirror, ""), (Key::Interface, "eth1")];
        let said = run(&mirror).unwrap_err().sentence;
        assert!(said.contains("for example -x 10.0.3.1:80-10.0.3.2:8080"), "{said}");
        let plan = run(&[&mirror[..], &[(Key::Map, "10.0.0.9:80-10.0.3.2:8080")]].concat()).unwrap();
        assert!(plan.capture.promiscuous);
    }
}
