//! What the demo prints: plain text in columns, one idea a line, at most 80 columns where the content allows.

use std::time::Duration;

use lab::user::Privilege;
use lab::{Fidelity, LoadReport, Stats};

use super::stage::{RoleCpu, Stage};

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
            millis(now.lag_p50_us),
            millis(now.lag_p99_us),
            size(now.dropped),
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
            size(end.wanted()),
            size(end.delivered()),
            size(end.in_flight()),
            size(end.dropped_in_all())
        );
        for (reason, bytes) in end.drops() {
            println!("             dropped as {reason}: {}", size(bytes));
        }
        if let Err(error) = end.check_ledger() {
            println!("             {error:#}");
        }
        let first_byte = &report.first_byte;
        let target = |key: &str| {
            end.number(&format!("/latency_us/target_first_byte/{key}")).map_or("?".to_owned(), millis)
        };
        println!(
            "latency    first byte online p50 {} p99 {} ms   target p50 {} p99 {} ms",
            millis(first_byte.percentile(50.0)),
            millis(first_byte.percentile(99.0)),
            target("p50"),
            target("p99")
        );
        let roles: Vec<String> = cpu.iter().map(|r| format!("{} {:.1} %", r.role, r.percent)).collect();
        println!("cpu        {}", roles.join("  "));
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

/// 1234567 as 1,234,567.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds as milliseconds with two significant places.
fn millis(us: u64) -> String {
    let ms = us as f64 / 1_000.0;
    match us {
        0..100 => format!("{ms:.2}"),
        100..10_000 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

/// Bytes with a decimal unit.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => thousands(bytes),
        10_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(millis(93), "0.09");
        assert_eq!(millis(1_100), "1.1");
        assert_eq!(millis(72_400), "72");
        assert_eq!(size(512), "512");
        assert_eq!(size(3_100_000), "3.1 MB");
    }
}
