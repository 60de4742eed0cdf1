//! What the demo prints: plain text in columns, one idea a line, at most 80 columns where the content allows.

use std::time::Duration;

use lab::user::Privilege;
use lab::{Fidelity, LoadReport, Stats};

use super::stage::{RoleCpu, Stage};
use crate::words::{bytes, ms, thousands};

/// One line of progress; totals, so that a difference of two gives rates.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) second: u64,
    pub(super) elapsed: Duration,
    /// Requests answered online.
    pub(super) online: u64,
    /// Requests answered by the target.
    pub(super) target: u64,
    pub(super) lag_p50_us: u64,
    pub(super) lag_p99_us: u64,
    /// Payload bytes dropped.
    pub(super) dropped: u64,
    /// Replayed sessions open.
    pub(super) sessions: u64,
}

/// Standard output.
pub(super) struct View;

/// Time that shares of a processor need.
const LEAST: Duration = Duration::from_secs(1);

impl View {
    pub(super) fn title(&self, privilege: Privilege) {
        println!("tcptwin demo: client, online, target and assistant in network namespaces of");
        println!("their own; nothing outside them is touched");
        if privilege == Privilege::UserNamespace {
            println!("  (as an ordinary user: in a user namespace of its own)");
        }
    }

    pub(super) fn scene(&self, stage: &Stage) {
        let [online, target] = stage.addresses().map(|a| a.to_string());
        println!("  online   {online:<18} HTTP service (embedded)");
        println!("  target   {target:<18} HTTP service (embedded)");
        let [run, intercept] = &stage.commands;
        println!(
            "  on the assistant and on the online host, as you would type it (with --key on your own hosts):"
        );
        println!("  $ {intercept}");
        println!("  $ {run}");
    }

    pub(super) fn header(&self) {
        println!("  elapsed    online     target   lag p50/p99 ms   dropped   sessions");
    }

    pub(super) fn line(&self, last: &Line, now: &Line) {
        let seconds = (now.elapsed - last.elapsed).as_secs_f64().max(0.001);
        let rate =
            |now: u64, last: u64| format!("{}/s", thousands(((now - last) as f64 / seconds).round() as u64));
        println!(
            "  {:>5} s {:>9}  {:>9}   {:>6}/{:<7} {:>9}   {:>8}",
            now.second,
            rate(now.online, last.online),
            rate(now.target, last.target),
            ms(now.lag_p50_us),
            ms(now.lag_p99_us),
            bytes(now.dropped),
            thousands(now.sessions),
        );
    }

    pub(super) fn result(&self, fidelity: &Fidelity, report: &LoadReport, end: &Stats, cpu: &[RoleCpu]) {
        let (online, target) = (thousands(fidelity.online), thousands(fidelity.target));
        let how = if fidelity.is_exact() {
            "100.00 %, none twice".to_owned()
        } else {
            format!("{:.2} % as they should be", fidelity.percent())
        };
        println!("requests   {online} answered online, {target} answered by the target: {how}");
        if !fidelity.is_exact() {
            println!(
                "           {} missing, {} too often, {} altered; for example ids {:?}",
                thousands(fidelity.missing),
                thousands(fidelity.surplus),
                thousands(fidelity.altered),
                fidelity.examples
            );
        }
        if report.failed > 0 {
            let why = report.error.as_deref().unwrap_or("no answer");
            println!("           {} were not even answered online: {why}", thousands(report.failed));
        }
        println!(
            "ledger     captured {} = delivered {} + in flight {} + dropped {}",
            bytes(end.wanted()),
            bytes(end.delivered()),
            bytes(end.in_flight()),
            bytes(end.dropped_in_all())
        );
        for (reason, amount) in end.drops() {
            println!("             dropped as {reason}: {}", bytes(amount));
        }
        if let Err(error) = end.check_ledger() {
            println!("             {error:#}");
        }
        let first_byte = &report.first_byte;
        let target = |key: &str| {
            end.number(&format!("/latency_us/target_first_byte/{key}")).map_or("?".to_owned(), ms)
        };
        println!(
            "latency    first byte online p50 {} p99 {} ms   target p50 {} p99 {} ms",
            ms(first_byte.percentile(50.0)),
            ms(first_byte.percentile(99.0)),
            target("p50"),
            target("p99")
        );
        // Of a moment, it would be the start's alone.
        if report.elapsed >= LEAST {
            let roles: Vec<String> = cpu.iter().map(|r| format!("{} {:.1} %", r.role, r.percent)).collect();
            println!("cpu        {}", roles.join("  "));
        }
    }

    pub(super) fn interrupted(&self) {
        println!("interrupted: the figures are those of the requests sent until then");
    }

    pub(super) fn farewell(&self, well: bool) {
        if well {
            println!("Next: README, \"On your own hosts\".");
        } else {
            println!("This is not as it should be: please report it, with this output.");
        }
    }
}
