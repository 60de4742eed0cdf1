//! Options of `replay` about its files: which, and when their packets are due.

use std::path::PathBuf;

use crate::Refusal;
use crate::options::{Given, Key, Options};
use crate::plan::{Seeds, TracePlan, TraceTime};
use crate::value;

/// Standard input's name.
pub const STDIN: &str = "-";
/// Times the capture's speed at most.
pub const MAX_SPEED: u64 = 10_000;
/// Loops at most.
pub const MAX_LOOPS: u64 = 1_000_000;
/// Files at most: their names stand in the plan, which has 64 KiB.
pub const MAX_FILES: usize = 1_000;
/// Bytes of all names together at most.
const MAX_NAMES: usize = 40 << 10;
/// `--seed` unless given: a run is repeatable without a thought.
const DEFAULT_SEED: u64 = 1;

/// The files of a replay; none when no file is named.
///
/// # Errors
/// One sentence, exit code 2.
pub fn trace(options: &Options) -> Result<Option<TracePlan>, Refusal> {
    let files: Vec<PathBuf> = options.all(Key::Files).map(|given| PathBuf::from(&given.text)).collect();
    let Some(last) = options.one(Key::Files) else { return Ok(None) };
    if files.iter().any(|file| file.as_os_str().is_empty()) {
        return Err(Refusal::usage("a name of a file is empty. Name a file that `tcpdump -w` has written"));
    }
    let names: usize = files.iter().map(|file| file.as_os_str().len()).sum();
    if files.len() > MAX_FILES || names > MAX_NAMES {
        return Err(last.refuse(format_args!(
            "there are too many files: at most {MAX_FILES}, and {MAX_NAMES} bytes of names. Merge some with mergecap"
        )));
    }
    let stdins = files.iter().filter(|file| file.as_os_str() == STDIN).count();
    if stdins > 1 {
        return Err(last.refuse("standard input is named twice, and can be read once. Write - once"));
    }
    let whole = |key: Key, what: &str, high: u64| {
        let parse = |given: &Given| read(given, |text| value::whole(text, what, 1, high));
        options.one(key).map(parse).transpose()
    };
    let loops = whole(Key::Loops, "the number of loops", MAX_LOOPS)?.unwrap_or(1) as u32;
    if loops > 1 && stdins > 0 {
        let given = options.one(Key::Loops).expect("more than one is given");
        return Err(given.refuse("standard input can be read once. Save it to a file, and name that"));
    }
    let max_gap_ms = options
        .one(Key::MaxGap)
        .map(|given| read(given, |text| value::time_ms(text, 0, 7 * 24 * 3_600_000)))
        .transpose()?;
    let (from, until) = (moment(options, Key::From)?, moment(options, Key::Until)?);
    let backwards = match (from, until) {
        (Some(TraceTime::At(from)), Some(TraceTime::At(until)))
        | (Some(TraceTime::After(from)), Some(TraceTime::After(until))) => from > until,
        _ => false,
    };
    if backwards {
        let given = options.one(Key::Until).expect("it was read");
        return Err(given.refuse("this is before --from, and nothing lies between. Give a later time"));
    }
    Ok(Some(TracePlan {
        files,
        speed_milli: speed(options)?,
        max_gap_ms,
        loops,
        from,
        until,
        limit: whole(Key::Limit, "the number of packets", u64::MAX)?,
        rate: whole(Key::Rate, "the number of packets a second", 100_000_000)?.map(|rate| rate as u32),
        decap: options.has(Key::Decap),
    }))
}

/// The seeds of a replay: all that decides what is sent comes from `--seed`, so that a replay can be repeated. The key of the
/// tables decides nothing, and stays a secret from whoever made the file.
///
/// # Errors
/// One sentence, exit code 2.
pub fn seeds(options: &Options, random: Seeds) -> Result<Seeds, Refusal> {
    let seed = match options.one(Key::Seed) {
        None => DEFAULT_SEED,
        Some(given) => read(given, |text| value::whole(text, "the seed", 0, u64::MAX))?,
    };
    // SplitMix64: neighbouring seeds give unrelated numbers.
    let draw = |nth: u64| {
        let n = seed.wrapping_add(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    };
    Ok(Seeds { shard: draw(1), sample: draw(2), endpoint: draw(3), isn: draw(4), table: random.table })
}

fn speed(options: &Options) -> Result<Option<u32>, Refusal> {
    let Some(given) = options.one(Key::Speed) else { return Ok(Some(1_000)) };
    match given.text.as_str() {
        "max" => Ok(None),
        text => match value::decimal(text.strip_suffix('x').unwrap_or(text), 3) {
            Some(milli) if (1..=MAX_SPEED * 1_000).contains(&milli) => Ok(Some(milli as u32)),
            _ => Err(given.refuse(format_args!(
                "the speed is a number from 0.001 to {MAX_SPEED}, or `max`, for example --speed 2"
            ))),
        },
    }
}

fn moment(options: &Options, key: Key) -> Result<Option<TraceTime>, Refusal> {
    let parse = |given: &Given| {
        if let Some(at_ns) = value::moment_ns(&given.text) {
            return Ok(TraceTime::At(at_ns));
        }
        match value::time_ms(&given.text, 0, 10 * 365 * 24 * 3_600_000) {
            Ok(ms) => Ok(TraceTime::After(ms * 1_000_000)),
            Err(_) => Err(given.refuse(
                "this is no time. Write one behind the first packet (90s, 5m, 1h), or a moment in UTC (2026-01-31T12:00:00Z)",
            )),
        }
    };
    options.one(key).map(parse).transpose()
}

fn read<T>(given: &Given, parse: impl FnOnce(&str) -> Result<T, value::Why>) -> Result<T, Refusal> {
    parse(&given.text).map_err(|why| given.refuse(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Place;

    fn read(extra: &[(Key, &str)]) -> Result<TracePlan, Refusal> {
        let mut options = Options::default();
        options.give(Key::Files, "a,b.pcap", Place::CommandLine);
        extra.iter().for_each(|(key, text)| options.give(*key, text, Place::CommandLine));
        trace(&options).map(|trace| trace.expect("a file is named"))
    }

    #[test]
    fn a_file_alone_is_replayed_once_as_it_was_captured() {
        let trace = read(&[]).unwrap();
        assert_eq!(trace.files, [PathBuf::from("a,b.pcap")]);
        assert_eq!((trace.speed_milli, trace.loops, trace.max_gap_ms), (Some(1_000), 1, None));
    }

    #[test]
    fn values_are_read_exactly() {
        let trace = read(&[
            (Key::Speed, "0.25"),
            (Key::MaxGap, "1s"),
            (Key::From, "2026-01-31T12:00:00.5Z"),
            (Key::Until, "5m"),
            (Key::Limit, "10"),
        ])
        .unwrap();
        assert_eq!((trace.speed_milli, trace.max_gap_ms, trace.limit), (Some(250), Some(1_000), Some(10)));
        assert_eq!(trace.from, Some(TraceTime::At(1_769_860_800_500_000_000)));
        assert_eq!(trace.until, Some(TraceTime::After(300_000_000_000)));
        assert_eq!(read(&[(Key::Speed, "max")]).unwrap().speed_milli, None);
    }

    #[test]
    fn every_wrong_value_is_refused_with_what_to_write() {
        for (key, text, part) in [
            (Key::Speed, "fast", "or `max`"),
            (Key::Speed, "0", "from 0.001"),
            (Key::Loops, "0", "from 1 to"),
            (Key::MaxGap, "long", "a time is a number"),
            (Key::From, "noon", "this is no time"),
            (Key::From, "2026-13-01T00:00:00Z", "this is no time"),
            (Key::Limit, "-1", "whole number"),
            (Key::Files, "", "is empty"),
        ] {
            let refusal = read(&[(key, text)]).unwrap_err();
            assert!(refusal.sentence.contains(part), "{refusal}");
        }
        let refusal = read(&[(Key::From, "2m"), (Key::Until, "1m")]).unwrap_err();
        assert!(refusal.sentence.contains("before --from"), "{refusal}");
        let refusal = read(&[(Key::Files, "-"), (Key::Loops, "2")]).unwrap_err();
        assert!(refusal.sentence.contains("read once"), "{refusal}");
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_gives_others() {
        let random = Seeds { shard: 0, sample: 0, endpoint: 0, isn: 0, table: 77 };
        let of = |text: Option<&str>| {
            let mut options = Options::default();
            text.into_iter().for_each(|text| options.give(Key::Seed, text, Place::CommandLine));
            seeds(&options, random).unwrap()
        };
        assert_eq!(of(None), of(Some("1")));
        assert_ne!(of(Some("2")).endpoint, of(Some("1")).endpoint);
        assert_eq!(of(Some("2")).table, 77);
    }
}
