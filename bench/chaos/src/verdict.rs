//! What a run came to, rule by rule. Each rule is judged by an outside witness where there is one: the services' books,
//! packet sockets on the wire, /proc.

use lab::{Fidelity, LoadReport, Stats};

use crate::args::Kind;
use crate::stage::Stage;
use crate::watch::Tally;

/// Collects lines of the report, and the rules that were broken.
#[derive(Default)]
pub(crate) struct Verdict {
    broken: Vec<String>,
}

/// Drop reasons that lose nothing: bytes that were taken before.
const HARMLESS: [&str; 1] = ["duplicate"];
/// What a time without a supervisor may cost besides: nobody captured, so connections that went on have a hole, and those
/// begun in it are joined at a request.
const BLIND: [&str; 3] = ["gap", "joined_midturn", "not_joined"];
/// Requests so close to a blind time that they may belong to it: frames that stood in the dead capturer's ring, and
/// answers written down after the request was sent, µs.
const MARGIN_US: u64 = 250_000;
/// Private memory that may be added during a run: intercept's window fills, allocators round up.
const GROWTH: u64 = 8 << 20;
/// The tables of a million claims at either end, reserved at the start and paid page by page as claims come.
const CLAIM_TABLES: u64 = 144 << 20;

/// Files that an instance keeps at most of what killed its workers.
const QUARANTINE: u64 = 16;

impl Verdict {
    /// A rule was broken.
    pub(crate) fn broken(&mut self, what: impl Into<String>) {
        let what = what.into();
        println!("BROKEN     {what}");
        self.broken.push(what);
    }

    fn rule(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(what());
        }
    }

    /// How many rules were broken.
    pub(crate) const fn count(&self) -> usize {
        self.broken.len()
    }

    /// The load on production.
    pub(crate) fn load(&mut self, report: &LoadReport) {
        println!(
            "load       {} requests in {:.0} s, {} answered, {} failed; first byte p50 {} µs, p99 {} µs",
            report.sent,
            report.elapsed.as_secs_f64(),
            report.answered,
            report.failed,
            report.first_byte.percentile(50.0),
            report.first_byte.percentile(99.0),
        );
        self.rule(report.failed == 0, || {
            format!("production: {} requests failed: {:?}", report.failed, report.error)
        });
    }

    /// Every id: answered online means answered exactly once by the target, unless nobody was there to capture it.
    pub(crate) fn fidelity(&mut self, stage: &Stage, blind: &[(u64, u64)]) {
        let fidelity = Fidelity::of(&stage.online, &stage.target, 1);
        let missing = |id: &u64| stage.target.times(*id) < stage.online.times(*id);
        let excused = |id: &u64| {
            let first_us = stage.online.first_us(*id).unwrap_or(0);
            blind
                .iter()
                .any(|&(from, to)| first_us + MARGIN_US >= from && first_us <= to.saturating_add(MARGIN_US))
        };
        let lost: Vec<u64> = stage.online.ids().into_iter().filter(missing).collect();
        let unseen = lost.iter().filter(|id| excused(id)).count() as u64;
        println!("requests   {fidelity}");
        if !blind.is_empty() {
            println!("           {unseen} of the missing while no supervisor ran ({} times)", blind.len());
        }
        self.rule(fidelity.surplus == 0, || format!("{} requests arrived too often", fidelity.surplus));
        self.rule(fidelity.altered == 0, || format!("{} requests arrived altered", fidelity.altered));
        self.rule(fidelity.missing <= unseen, || {
            let inexcusable: Vec<&u64> = lost.iter().filter(|id| !excused(id)).take(10).collect();
            format!("{} requests are missing, for example {inexcusable:?}", fidelity.missing - unseen)
        });
    }

    /// The summary: identity to the byte, nothing dropped but what was taken twice, no session lost.
    pub(crate) fn ledger(&mut self, stats: &Stats, blind: bool) {
        println!("ledger     {}", stats.ledger());
        if let Err(error) = stats.check_ledger() {
            self.broken(format!("{error:#}"));
        }
        let allowed = |reason: &str| HARMLESS.contains(&reason) || (blind && BLIND.contains(&reason));
        for (reason, bytes) in stats.drops() {
            self.rule(allowed(&reason), || format!("{bytes} bytes were dropped as {reason}"));
        }
        self.rule(stats.in_flight() == 0, || "bytes are in flight after the end".to_owned());
        self.rule(blind || stats.missed() == 0, || format!("{} bytes were never captured", stats.missed()));
        let failed = stats.value().pointer("/sessions/failed").and_then(|f| f.as_object());
        let failed: Vec<String> = failed
            .into_iter()
            .flatten()
            .filter(|(_, n)| n.as_u64() != Some(0))
            .map(|(reason, n)| format!("{reason} {n}"))
            .collect();
        let number = |path: &str| stats.number(path).unwrap_or(0);
        println!(
            "sessions   {} started, {} completed, failed: {}",
            number("/sessions/started"),
            number("/sessions/completed"),
            if failed.is_empty() { "none".to_owned() } else { failed.join(", ") }
        );
        let dropped = number("/guard/dropped");
        self.rule(dropped == 0, || format!("the kernel's guard had to stop {dropped} packets of ours"));
        let lost = number("/sessions/failed/worker_lost");
        self.rule(lost == 0, || format!("{lost} sessions were lost with their workers"));
    }

    /// Packets where none may be.
    pub(crate) fn outside(&mut self, astray: u64, examples: &[String]) {
        println!("witness    {astray} packets astray");
        self.rule(astray == 0, || format!("{astray} packets were where none may be: {examples:?}"));
    }

    /// Records that a worker died of twice.
    pub(crate) fn specimens(&mut self, specimens: &[String]) {
        println!("quarantine {} records", specimens.len());
        for told in specimens {
            println!("           {}", told.lines().next().unwrap_or_default());
        }
        self.rule(specimens.len() as u64 <= QUARANTINE, || {
            format!("{} specimens were kept", specimens.len())
        });
    }

    /// Private memory, before and after; with flows claimed one by one the tables of claims are in it.
    pub(crate) fn memory(&mut self, before: &[(String, u64)], after: &[(String, u64)], claims: bool) {
        let mut words = Vec::new();
        for (role, then) in before {
            let Some((_, now)) = after.iter().find(|(name, _)| name == role) else { continue };
            words.push(format!("{role} {:.1} -> {:.1}", mib(*then), mib(*now)));
            let tables = claims && matches!(role.as_str(), "intercept" | "injector");
            self.rule(*now <= then + if tables { CLAIM_TABLES } else { GROWTH }, || {
                format!("{role} grew from {:.1} to {:.1} MiB", mib(*then), mib(*now))
            });
        }
        println!("memory     MiB private: {}", words.join(", "));
    }

    /// Faults and recoveries.
    pub(crate) fn table(tallies: &[Tally]) {
        println!("\nfaults          number   recovered   p50 ms   p99 ms   max ms");
        for tally in tallies.iter().filter(|tally| tally.faults > 0) {
            let ms = |us: u64| format!("{:.1}", us as f64 / 1_000.0);
            let (kind, recovery) = (tally.kind.name(), &tally.recovery);
            if matches!(tally.kind, Kind::Target | Kind::Guard | Kind::Route | Kind::Neighbour) {
                println!("{kind:<14} {:>7}", tally.faults);
                continue;
            }
            println!(
                "{kind:<14} {:>7} {:>11} {:>8} {:>8} {:>8}",
                tally.faults,
                recovery.count(),
                ms(recovery.percentile(50.0)),
                ms(recovery.percentile(99.0)),
                ms(recovery.max()),
            );
        }
        println!();
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
