//! The live view: one line a second, made of the difference between two looks at the counters.
//!
//! ```text
//!   elapsed   captured   replayed    lag p50/p99  dropped   sessions   target
//!      14 s   1.9 MB/s   1.9 MB/s    0.90/2.8 ms      0 B      3,204   ok
//! ```
//! Captured and replayed are payload bytes (wanted, with copies; acknowledged by the target), lag is from a segment's
//! capture to its first replay, dropped is the payload that was given up in this second (retransmissions of the
//! clients and halves of requests begun before the capture are not: nothing was lost with them).

use std::time::Duration;

use crate::collect::Sample;
use crate::stats::{Stats, total};
use crate::words;

/// Drop reasons that are no loss: the bytes were taken before, or were never whole requests here.
const NO_LOSS: [&str; 4] = ["duplicate", "joined_midturn", "not_joined", "paused"];

/// The heading.
pub(crate) fn heading() -> String {
    "  elapsed   captured   replayed    lag p50/p99  dropped   sessions   target".to_owned()
}

/// A line of the view.
pub(crate) struct Line {
    /// Its text; a second line where an explanation needs one.
    pub(crate) text: String,
    /// Nothing in it asks for attention.
    pub(crate) good: bool,
    /// The condition that it tells.
    pub(crate) told: &'static str,
}

/// Conditions that ask for no attention.
const GOOD: [&str; 4] = ["ok", "no traffic", "paused", "draining"];

/// The line of one interval. `event` is what happened in it, if anything did; a condition that was `told` already is not
/// explained again.
pub(crate) fn line(
    before: &Sample,
    now: &Sample,
    elapsed: Duration,
    event: Option<&str>,
    told: &'static str,
    columns: usize,
) -> Line {
    let seconds = (now.stats.uptime_s - before.stats.uptime_s).max(0.001);
    let rate = |count: u64| format!("{}/s", words::bytes((count as f64 / seconds) as u64));
    let ledger = |stats: &Stats| (stats.ledger.wanted.payload_bytes, stats.ledger.delivered.payload_bytes);
    let ((wanted, delivered), (wanted_before, delivered_before)) =
        (ledger(&now.stats), ledger(&before.stats));
    let dropped = lost(&now.stats).saturating_sub(lost(&before.stats));
    let lag: Vec<u64> = now.lag.iter().zip(&before.lag).map(|(a, b)| a.saturating_sub(*b)).collect();
    let lag = if lag.iter().all(|count| *count == 0) {
        "-".to_owned()
    } else {
        let at = |q| words::ms(session::Histogram::quantile(&lag, q));
        format!("{}/{} ms", at(0.5), at(0.99))
    };
    let head = format!(
        "{:>9} {:>10} {:>10} {:>14} {:>8} {:>10}   ",
        words::elapsed(elapsed),
        rate(wanted.saturating_sub(wanted_before)),
        rate(delivered.saturating_sub(delivered_before)),
        lag,
        words::bytes(dropped),
        words::thousands(now.stats.sessions.open),
    );
    let (told, short, long) = match event {
        Some(event) => (told, "", event.to_owned()),
        None => match condition(&before.stats, &now.stats) {
            (short, _) if short == told => (told, short, String::new()),
            (short, long) => (short, short, long),
        },
    };
    let good = event.is_none() && GOOD.contains(&short);
    Line { text: join(head, short, &long, columns), good, told }
}

/// Events and explanations that do not fit behind the figures go on a line of their own.
fn join(head: String, short: &str, long: &str, columns: usize) -> String {
    match (short, long) {
        (short, "") => format!("{head}{short}"),
        ("", long) if head.len() + long.len() <= columns => format!("{head}{long}"),
        (short, long) => {
            let short = if short.is_empty() { "see below" } else { short };
            format!("{head}{short}\n            {long}")
        }
    }
}

/// How far the ramp is, while there is one.
pub(crate) fn ramp(stats: &Stats) -> Option<String> {
    let left_s = stats.restraint.as_ref()?.ramp_left_s;
    let percent = stats.control.percent;
    (left_s > 0.0)
        .then(|| format!("ramp {percent:.1} %, {} s to {} %", left_s.ceil(), stats.control.asked_percent))
}

/// How the target does, in a word, and what to do about it.
fn condition(before: &Stats, now: &Stats) -> (&'static str, String) {
    let grew = |now: u64, before: u64| now.saturating_sub(before);
    if let Some(down) = now.intercepts.iter().find(|intercept| intercept.state != "up") {
        let why = if down.trouble.is_empty() { String::new() } else { format!(" ({})", down.trouble) };
        return (
            "no answers",
            format!(
                "intercept {} is {}{why}: nothing new is replayed there until it is back",
                down.addr, down.state
            ),
        );
    }
    if now.control.paused {
        return ("paused", String::new());
    }
    if now.state == "draining" {
        return ("draining", String::new());
    }
    if let Some(restraint) = now.restraint.as_ref().filter(|restraint| restraint.step != "whole") {
        let (used, budget) = (restraint.cpu_percent, restraint.cpu_budget_percent);
        let what = match restraint.step.as_str() {
            "blind" => "nothing is captured until there is room again".to_owned(),
            _ => format!(
                "{:.1} % of the flows are replayed, the others are `shed`",
                restraint.admitted_percent
            ),
        };
        let why = match used > 0.0 && budget > 0.0 {
            true => format!("CPU {used:.0} % of a core, budget {budget} %"),
            false => "at the limit of packets or bits".to_owned(),
        };
        return ("over budget", format!("{why}: {what}"));
    }
    let reason =
        |stats: &Stats, name: &str| stats.ledger.dropped.get(name).map_or(0, |amount| amount.segments);
    let full = grew(reason(now, "ring_full"), reason(before, "ring_full"));
    let kernel = grew(now.capture.kernel_drops, before.capture.kernel_drops);
    if full > 0 || kernel > 0 {
        let what = words::counted(total([full, kernel]), "segment");
        return (
            "overload",
            format!(
                "{what} lost here before the replay: this host is too busy; more --shards, or fewer flows with -r"
            ),
        );
    }
    let errors = |stats: &Stats| total(stats.inject.errors.values().copied());
    let failed = grew(errors(now), errors(before));
    if failed > 0 {
        let worst =
            now.inject.errors.iter().max_by_key(|(name, count)| {
                grew(**count, before.inject.errors.get(*name).copied().unwrap_or(0))
            });
        let name = worst.map_or("error", |(name, _)| name.as_str());
        return (
            "send errors",
            format!(
                "{} ({name}): see `ip route get TARGET` and the log",
                words::counted(failed, "send error")
            ),
        );
    }
    if let Some(held) = now.canary.iter().find(|canary| canary.held) {
        return ("held", format!("nothing is sent to {} until a probe passes: {}", held.addr, held.trouble));
    }
    if let Some(sick) = now.targets.iter().find(|target| target.state == "sick") {
        return (
            "sick",
            format!(
                "{} refuses, resets or does not answer: new connections wait, single ones are tried until it is back",
                sick.addr
            ),
        );
    }
    let refused = |stats: &Stats| stats.sessions.failed.get("refused").copied().unwrap_or(0);
    let (refusals, started) =
        (grew(refused(now), refused(before)), grew(now.sessions.started, before.sessions.started));
    if refusals > 0 && refusals >= started.div_ceil(2) {
        return (
            "refuses",
            format!(
                "{} refused: is the service on the target running?",
                words::counted(refusals, "connection")
            ),
        );
    }
    let unanswered = grew(now.turns.unanswered, before.turns.unanswered);
    let sent = grew(now.turns.sent, before.turns.sent).max(unanswered);
    if unanswered >= sent.div_ceil(100) && unanswered > 0 {
        return (
            "slow",
            format!(
                "{} % of turns had no answer in time; `tcptwin doctor` explains",
                u128::from(unanswered) * 100 / u128::from(sent.max(1))
            ),
        );
    }
    let waiting = |stats: &Stats| stats.ledger.in_flight.payload_bytes > 0;
    if waiting(before) && waiting(now) && now.returned.headers == before.returned.headers {
        return (
            "silent",
            "nothing comes back: is the service up, and does the target send answers for our clients to intercept? \
             `tcptwin doctor` tells which"
                .to_owned(),
        );
    }
    let quiet = now.ledger.wanted == before.ledger.wanted && now.sessions.open == 0;
    (if quiet { "no traffic" } else { "ok" }, String::new())
}

/// Payload bytes given up so far: what a session or a worker loses at once is one entry, but may be much.
fn lost(stats: &Stats) -> u64 {
    let losses = stats.ledger.dropped.iter().filter(|(reason, _)| !NO_LOSS.contains(&reason.as_str()));
    total(losses.map(|(_, amount)| amount.payload_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Amount, Canary, Intercept, Target};

    fn sample(uptime_s: f64) -> Sample {
        let mut stats = Stats { uptime_s, state: "running".into(), ..Stats::default() };
        stats.intercepts.push(Intercept {
            addr: "10.0.4.2:36524".into(),
            state: "up".into(),
            ..Intercept::default()
        });
        Sample { stats, lag: vec![0; session::histogram::BUCKETS] }
    }

    /// Two looks one second apart; `change` is what happened in between.
    fn shown(change: impl FnOnce(&mut Sample), event: Option<&str>) -> String {
        let before = sample(13.0);
        let mut now = sample(14.0);
        change(&mut now);
        line(&before, &now, Duration::from_secs(14), event, "", 80).text
    }

    #[test]
    fn a_good_second_stands_in_80_columns_under_its_heading() {
        let line = shown(
            |now| {
                now.stats.ledger.wanted.payload_bytes = 1_900_000;
                now.stats.ledger.delivered.payload_bytes = 1_850_000;
                now.stats.sessions.open = 3_204;
                now.lag[60] = 100;
            },
            None,
        );
        assert!(line.contains("1.9 MB/s") && line.contains("3,204") && line.ends_with("ok"), "{line}");
        assert!(line.len() <= 80 && heading().len() <= 80);
        let end = |text: &str, column: &str| text.find(column).unwrap() + column.len();
        assert_eq!(end(&heading(), "sessions"), end(&line, "3,204"), "\n{}\n{line}", heading());
    }

    #[test]
    fn retransmissions_are_no_loss() {
        let line = shown(
            |now| {
                now.stats.ledger.wanted.payload_bytes = 1;
                now.stats
                    .ledger
                    .dropped
                    .insert("duplicate".into(), Amount { segments: 500, payload_bytes: 600 });
                let lost = Amount { segments: 1, payload_bytes: 23_900_000 };
                now.stats.ledger.dropped.insert("worker_lost".into(), lost);
            },
            None,
        );
        assert!(line.contains(" 23.9 MB "), "{line}");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        for (change, part) in [
            (
                Box::new(|now: &mut Sample| now.stats.intercepts[0].state = "down".into())
                    as Box<dyn FnOnce(&mut Sample)>,
                "intercept 10.0.4.2:36524 is down",
            ),
            (Box::new(|now: &mut Sample| now.stats.capture.kernel_drops = 9), "9 segments lost here"),
            (
                Box::new(|now: &mut Sample| now.stats.inject.errors = [("EPERM".to_owned(), 3)].into()),
                "3 send errors (EPERM)",
            ),
            (
                Box::new(|now: &mut Sample| now.stats.sessions.failed = [("refused".to_owned(), 3)].into()),
                "is the service on the target running?",
            ),
            (
                Box::new(|now: &mut Sample| (now.stats.turns.sent, now.stats.turns.unanswered) = (100, 9)),
                "9 % of turns",
            ),
            (
                Box::new(|now: &mut Sample| {
                    let addr = "10.0.3.2:8080".to_owned();
                    now.stats.targets.push(Target { addr, state: "sick".into(), trips: 1 });
                }),
                "10.0.3.2:8080 refuses, resets or does not answer",
            ),
            (
                Box::new(|now: &mut Sample| {
                    let (addr, trouble) = ("10.0.3.2:8080".to_owned(), "a SYN left".to_owned());
                    now.stats.canary.push(Canary { addr, trouble, held: true, ..Canary::default() });
                }),
                "nothing is sent to 10.0.3.2:8080 until a probe passes: a SYN left",
            ),
            (Box::new(|now: &mut Sample| now.stats.control.paused = true), "paused"),
            (
                Box::new(|now: &mut Sample| {
                    now.stats.restraint = Some(crate::stats::Restraint {
                        cpu_percent: 61.0,
                        cpu_budget_percent: 50.0,
                        step: "shedding".into(),
                        admitted_percent: 40.0,
                        ..Default::default()
                    });
                }),
                "CPU 61 % of a core, budget 50 %: 40.0 % of the flows",
            ),
            (Box::new(|_: &mut Sample| {}), "no traffic"),
        ] {
            let line = shown(change, None);
            assert!(line.contains(part), "{line}");
            assert!(line.lines().next().unwrap().len() <= 80, "{line}");
        }
    }

    #[test]
    fn a_target_that_never_answers_is_not_called_ok() {
        let (mut before, mut now) = (sample(13.0), sample(14.0));
        for look in [&mut before, &mut now] {
            (look.stats.sessions.open, look.stats.ledger.in_flight.payload_bytes) = (20, 1_600);
        }
        let said = line(&before, &now, Duration::from_secs(14), None, "", 80).text;
        assert!(said.contains("silent") && said.contains("nothing comes back"), "{said}");
        now.stats.returned.headers = 1;
        assert!(line(&before, &now, Duration::from_secs(14), None, "", 80).text.ends_with("ok"));
    }

    #[test]
    fn what_to_do_is_said_once_until_the_condition_changes() {
        let before = sample(13.0);
        let mut now = sample(14.0);
        now.stats.intercepts[0].state = "down".into();
        let mut told = "";
        let mut said = |now: &Sample, event: Option<&str>| {
            let line = line(&before, now, Duration::from_secs(14), event, told, 80);
            told = line.told;
            (line.text.contains("is down"), line.text.contains("no answers"))
        };
        assert_eq!(said(&now, None), (true, true));
        assert_eq!(said(&now, None), (false, true));
        assert_eq!(said(&now, Some("shard-worker 2 restarted")), (false, false));
        assert_eq!(said(&now, None), (false, true), "an event changes nothing");
        assert_eq!(said(&sample(14.0), None), (false, false));
        assert_eq!(said(&now, None), (true, true), "again");
    }

    #[test]
    fn an_event_takes_the_place_of_the_condition() {
        let line = shown(|_| {}, Some("shard-worker 2 restarted (killed by SIGKILL), 12 sessions lost"));
        assert!(line.lines().nth(1).unwrap().trim_start().starts_with("shard-worker 2 restarted"), "{line}");
    }
}
