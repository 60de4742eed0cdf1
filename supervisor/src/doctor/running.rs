//! A run that goes on: what its own counters say about sessions that fail, each reason with its count and with what it means.

use serde_json::{Value, json};
use session::glance::Glance;
use topology::Plan;

use super::Visit;
use super::finding::{Fault, Finding, Host};
use crate::stats::Stats;
use crate::words::{counted, thousands};

/// Why sessions fail, and what to do; by the names in `sessions.failed`.
const MEANINGS: [(&str, &str); 13] = [
    ("refused", "the target refused the connection: its service is down, or -x names another port"),
    (
        "timed_out",
        "the target did not answer: it is down or overloaded, or its answers do not come to intercept",
    ),
    ("reset", "the target reset the connection: its own limits or time-outs, or a firewall in between"),
    (
        "target_closed",
        "the target closed while requests remained: it closes sooner than the online service does",
    ),
    ("memory", "the run's memory was full; give it more with --memory, or replay less with -r"),
    ("shed", "the run kept itself to --budget-cpu or a rate: give it more, or replay less with -r"),
    ("gap", "a hole in the capture, and --on-gap abort; see kernel drops and ring_full"),
    ("endpoints_exhausted", "no client address and port was free; give a larger range with -c"),
    ("superseded", "the client used its port again before the target was done"),
    ("idle", "nothing happened for --idle-time"),
    (
        "half_open",
        "clients said nothing but a SYN while the table was full: a flood, or too few --max-sessions",
    ),
    ("stopped", "the run was ended"),
    ("worker_lost", "a worker died with it; the log says why"),
];

/// Why a session failed, and what to do; by the name of its counter.
pub(crate) fn told(counter: &str) -> String {
    let name = counter.strip_prefix("failed_").unwrap_or(counter);
    let meaning = MEANINGS.iter().find(|(of, _)| *of == name).map_or("see `tcptwin stats`", |one| one.1);
    format!("{} ({meaning})", name.replace('_', " "))
}

/// Notes what a run says of itself; `failed` are the sessions that failed last.
pub(crate) fn check(visit: &mut Visit<'_>, stats: &Stats, failed: &[Glance]) {
    let uptime = crate::words::elapsed(std::time::Duration::from_secs_f64(stats.uptime_s.max(0.0)));
    let paused = if stats.control.paused { ", paused: `tcptwin ctl resume` goes on" } else { "" };
    visit.book.note(Finding::ok(
        Host::Run,
        stats.name.clone(),
        format!("{} for {uptime}{paused}", stats.state),
    ));
    for intercept in &stats.intercepts {
        let check = intercept.addr.clone();
        visit.book.note(match intercept.state.as_str() {
            "up" => Finding::ok(
                Host::Intercept,
                check,
                format!(
                    "up, {} headers, {} lost for slowness",
                    thousands(intercept.headers),
                    thousands(intercept.gaps)
                ),
            ),
            state => Finding::failed(
                Host::Intercept,
                check,
                Fault::NoIntercept,
                format!("{state} ({})", intercept.trouble),
            )
            .because("No answer can come back: sessions wait until it is there again.")
            .mend("the assistant", "tcptwin doctor intercept ... (the arguments of intercept)"),
        });
    }
    for target in stats.targets.iter().filter(|target| target.state == "sick") {
        visit.book.note(
            Finding::failed(Host::Run, "target", Fault::TargetRefuses, format!("{} is sick", target.addr))
                .because("Half of the last connections were refused, reset or not answered: new ones wait, single ones are tried.")
                .mend("the target", format!("ss -ltn; tcptwin doctor target -x {}", target.addr)),
        );
    }
    let returned = stats.returned.headers;
    let waiting = stats.ledger.in_flight.payload_bytes;
    if returned == 0 && waiting > 0 {
        visit.book.note(
            Finding::failed(
                Host::Run,
                "answers",
                Fault::AnswerUnseen,
                format!("{} sent, no header came back", thousands(stats.inject.segments)),
            )
            .because("Packets leave and nothing of the target comes to intercept. The last command says why.")
            .mend("the target", doctor_target(visit.plan)),
        );
    }
    sessions(visit, stats, failed);
}

fn sessions(visit: &mut Visit<'_>, stats: &Stats, failed_last: &[Glance]) {
    let failed: u64 = stats.sessions.failed.values().sum();
    let seen = format!(
        "{} started, {} completed, {} open, {} failed",
        thousands(stats.sessions.started),
        thousands(stats.sessions.completed),
        thousands(stats.sessions.open),
        thousands(failed)
    );
    let mut reasons: Vec<(&String, u64)> = stats
        .sessions
        .failed
        .iter()
        .map(|(name, count)| (name, *count))
        .filter(|(_, count)| *count > 0)
        .collect();
    reasons.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let whys: Vec<String> =
        reasons.iter().map(|(name, count)| format!("{} {}", thousands(*count), told(name))).collect();
    // The end of a run, or a silence, is nobody's failure.
    let own: u64 = reasons
        .iter()
        .filter(|(name, _)| !["stopped", "idle"].contains(&name.as_str()))
        .map(|one| one.1)
        .sum();
    let example =
        failed_last.first().map_or_else(|| "CLIENT-ADDRESS:PORT".to_owned(), |one| one.client.to_string());
    let finding = match own {
        0 => Finding::ok(Host::Run, "sessions", seen),
        own if own * 100 < stats.sessions.started => {
            Finding::warning(Host::Run, "sessions", Fault::SessionsFail, seen)
                .because(format!("{}.", whys.join("; ")))
                .mend_if(
                    "What happened to the last one",
                    visit.this_host(),
                    format!("tcptwin doctor --name {} {example}", stats.name),
                )
        }
        _ => Finding::failed(Host::Run, "sessions", Fault::SessionsFail, seen)
            .because(format!("{}.", whys.join("; ")))
            .mend_if(
                "What happened to the last one",
                visit.this_host(),
                format!("tcptwin doctor --name {} {example}", stats.name),
            ),
    };
    visit.book.note(finding);
    let dropped: Vec<String> = stats
        .ledger
        .dropped
        .iter()
        .filter(|(_, amount)| amount.payload_bytes > 0)
        .map(|(name, amount)| {
            format!("{} {}", crate::words::bytes(amount.payload_bytes), name.replace('_', " "))
        })
        .collect();
    let kernel = stats.capture.kernel_drops;
    if kernel > 0 {
        visit.book.note(
            Finding::warning(Host::Run, "capture room", Fault::CaptureDrops, format!("{} dropped by the kernel", counted(kernel, "frame")))
                .because("The capturer was too slow: a larger --capture-buffer, more --shards, or fewer flows with -r."),
        );
    }
    let seen = if dropped.is_empty() { "nothing".to_owned() } else { dropped.join(", ") };
    visit.book.note(Finding::ok(Host::Run, "given up", seen));
}

fn doctor_target(plan: &Plan) -> String {
    plan.targets
        .first()
        .map_or_else(|| "tcptwin doctor target".to_owned(), |target| super::doctor_target(plan, target.addr))
}

/// For the JSON object.
pub(crate) fn failures(stats: &Stats, failed: &[Glance]) -> Value {
    let failed: Vec<Value> = failed.iter().map(super::session::object).collect();
    json!({ "sessions": stats.sessions, "dropped": stats.ledger.dropped, "failed_last": failed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::book::Book;
    use crate::testing;

    #[test]
    fn every_way_to_fail_has_a_meaning() {
        let names = session::Count::ALL.iter().filter_map(|count| count.name().strip_prefix("failed_"));
        let unknown: Vec<&str> = names.filter(|name| MEANINGS.iter().all(|one| one.0 != *name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn sessions_that_fail_are_told_with_the_likeliest_first() {
        let plan = testing::plan("running", &[]);
        let mut visit = Visit { here: Host::Online, plan: &plan, book: Book::new(true) };
        let mut stats = Stats { name: "web".to_owned(), ..Stats::default() };
        stats.sessions.started = 100;
        stats.sessions.failed =
            [("refused".to_owned(), 40), ("reset".to_owned(), 2), ("stopped".to_owned(), 9)].into();
        sessions(&mut visit, &stats, &[]);
        assert!(visit.book.has(Fault::SessionsFail));
        let said = visit.book.said("sessions").unwrap_or_default();
        let at = |part: &str| said.find(part).unwrap_or_else(|| panic!("{said}"));
        assert!(at("40 refused") < at("9 stopped") && at("9 stopped") < at("2 reset"), "{said}");
        let mut calm = Visit { here: Host::Online, plan: &plan, book: Book::new(true) };
        stats.sessions.failed = [("stopped".to_owned(), 9)].into();
        sessions(&mut calm, &stats, &[]);
        assert!(!calm.book.has(Fault::SessionsFail));
    }
}
