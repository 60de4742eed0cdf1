//! What a run keeps itself to: `--budget-cpu`, `--max-pps`, `--max-bps`, `--max-cps`, `--ramp`, `--nice`, `--halt-file`.

use std::path::PathBuf;

use crate::Refusal;
use crate::options::{Key, Options};
use crate::plan::Restraint;
use crate::planner::read;
use crate::value;

/// Priority of the roles unless given, a live capturer's by half ([`crate::Plan::nice`]): beside busy production they wait, and on
/// an idle core they notice nothing of it.
pub const DEFAULT_NICE: u8 = 10;
/// The lowest rates: one packet or connection in any 100 ms, and a few full packets.
const LEAST_RATE: u64 = 10;
const LEAST_BITS: u64 = 1_000_000;
/// The highest: beyond what a host could send.
const MOST_RATE: u64 = 100_000_000;
const MOST_BITS: u64 = 1_000_000_000_000;
/// Longest ramp: a week.
const LONGEST_RAMP_MS: u64 = 7 * 24 * 3_600_000;

/// Time between two connections, nanoseconds, when so many may be begun a second: a little more than their share, so that no window of
/// [`WINDOW_MS`] is ever full and holds up what is behind.
pub fn connection_ns(per_s: u64) -> u64 {
    let window_ns = (WINDOW_MS as u64 + 1) * 1_000_000;
    (window_ns / within_100_ms(per_s)).max(1_000_000_000 / per_s.max(1))
}

/// Units that may leave at once: a fiftieth of what 100 ms may hold, and `least`.
pub fn piece(per_s: u64, least: u64) -> u64 {
    (within_100_ms(per_s) / 50).max(least)
}

/// What any 100 ms may hold.
pub fn within_100_ms(per_s: u64) -> u64 {
    (per_s / 10).max(1)
}

/// The window that is watched, in milliseconds of the clock: the first of them is not whole, and one passes between the look at the
/// clock and the wire.
pub const WINDOW_MS: usize = 102;

/// From the options; none given is none, but for the priority.
pub(crate) fn restraint(options: &Options) -> Result<Restraint, Refusal> {
    let rate = |key: Key, what: &str, low: u64, high: u64| {
        options.one(key).map(|given| read(given, |text| value::rate(text, what, low, high))).transpose()
    };
    Ok(Restraint {
        nice: options.one(Key::Nice).map_or(Ok(DEFAULT_NICE), |given| read(given, nice))?,
        cpu_milli: options.one(Key::BudgetCpu).map(|given| read(given, cpu_milli)).transpose()?,
        packets: rate(Key::MaxPps, "packets a second", LEAST_RATE, MOST_RATE)?,
        bits: rate(Key::MaxBps, "bits a second", LEAST_BITS, MOST_BITS)?,
        connections: rate(Key::MaxCps, "connections a second", LEAST_RATE, MOST_RATE)?,
        ramp_ms: options
            .one(Key::Ramp)
            .map_or(Ok(0), |given| read(given, |text| value::time_ms(text, 0, LONGEST_RAMP_MS)))?,
    })
}

/// What a recording keeps itself to: its priority.
pub(crate) fn of_a_recording(options: &Options) -> Result<Restraint, Refusal> {
    let nice = options.one(Key::Nice).map_or(Ok(DEFAULT_NICE), |given| read(given, nice))?;
    Ok(Restraint { nice, ..Restraint::default() })
}

/// `--halt-file`, as it was given.
///
/// # Errors
/// One sentence, exit code 2.
pub fn halt_file(options: &Options) -> Result<Option<PathBuf>, Refusal> {
    match options.one(Key::HaltFile) {
        Some(given) if given.text.is_empty() => {
            Err(given.refuse("the file has no name. Write for example --halt-file /run/tcptwin/stop-all"))
        }
        given => Ok(given.map(|given| PathBuf::from(&given.text))),
    }
}

fn nice(text: &str) -> Result<u8, value::Why> {
    value::whole(text, "the priority", 0, 19).map(|nice| nice as u8)
}

/// Percent of one core in thousandths of it: a tenth of a percent is the least that can be told.
fn cpu_milli(text: &str) -> Result<u32, value::Why> {
    match value::decimal(text.strip_suffix('%').unwrap_or(text), 1) {
        Some(milli @ 10..=100_000) => Ok(milli as u32),
        _ => Err(
            "the budget is in percent of one core, from 1 to 10000 with at most one decimal, for example 50"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Place;

    fn of(given: &[(Key, &str)]) -> Result<Restraint, Refusal> {
        let mut options = Options::default();
        given.iter().for_each(|(key, text)| options.give(*key, text, Place::CommandLine));
        restraint(&options)
    }

    #[test]
    fn units_are_those_of_networks() {
        let all = of(&[
            (Key::BudgetCpu, "12.5%"),
            (Key::MaxPps, "1.5k"),
            (Key::MaxBps, "2.5G"),
            (Key::MaxCps, "200"),
            (Key::Ramp, "5m"),
            (Key::Nice, "0"),
        ])
        .unwrap();
        let want = Restraint {
            nice: 0,
            cpu_milli: Some(125),
            packets: Some(1_500),
            bits: Some(2_500_000_000),
            connections: Some(200),
            ramp_ms: 300_000,
        };
        assert_eq!(all, want);
        assert_eq!(of(&[]).unwrap(), Restraint { nice: DEFAULT_NICE, ..Restraint::default() });
    }

    #[test]
    fn connections_keep_their_rate_without_giving_much_away() {
        for per_s in [10_u64, 15, 100, 999, 1_000, 12_345, 1_000_000] {
            let rate = 1e9 / connection_ns(per_s) as f64;
            assert!(rate <= per_s as f64 * 1.001, "{per_s}: {rate}");
            assert!(rate >= (within_100_ms(per_s) * 10) as f64 * 0.97, "{per_s}: {rate}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_an_example() {
        for (key, text, part) in [
            (Key::BudgetCpu, "0", "percent of one core"),
            (Key::BudgetCpu, "fast", "for example 50"),
            (Key::MaxPps, "9", "from 10 to 100M, for example 1k"),
            (Key::MaxBps, "100Mbit", "from 1M to 1000G, for example 100M"),
            (Key::MaxBps, "500k", "bits a second"),
            (Key::MaxCps, "-5", "connections a second"),
            (Key::Nice, "20", "from 0 to 19"),
            (Key::Nice, "-5", "from 0 to 19"),
            (Key::Ramp, "soon", "a time is"),
        ] {
            let refusal = of(&[(key, text)]).unwrap_err();
            assert!(refusal.sentence.contains(part), "{refusal}");
        }
    }
}
