//! The state in words: the summary at the end of a run, and what `tcptwin stats` prints.

use std::time::Duration;

use crate::recording;
use crate::stats::{Ledger, Quantiles, RoleStats, Stats, Udp, total};
use crate::words::{self, bytes, counted, memory, thousands};

/// The whole, a line an element.
pub(crate) fn lines(stats: &Stats) -> Vec<String> {
    let mut out = Vec::new();
    let time = words::elapsed(Duration::from_secs_f64(stats.uptime_s.max(0.0)));
    let mut add = |name: &str, text: String| out.push(format!("{name:<11}{text}"));
    add("instance", format!("{}, {} for {time}", stats.name, stats.state));
    if let Some(record) = &stats.record {
        for (i, line) in recording::lines(record).into_iter().enumerate() {
            add(if i == 0 { "recording" } else { "" }, line);
        }
        if record.only {
            add(
                "packets",
                format!(
                    "{} captured ({} dropped by the kernel)",
                    thousands(stats.capture.frames),
                    thousands(stats.capture.kernel_drops)
                ),
            );
            for (i, line) in roles(&stats.roles, stats.uptime_s).into_iter().enumerate() {
                add(if i == 0 { "processes" } else { "" }, line);
            }
            return out;
        }
    }
    let turns = &stats.turns;
    add(
        "turns",
        format!(
            "{} sent, {} answered{}",
            thousands(turns.sent),
            thousands(turns.answered),
            turn_notes(stats)
        ),
    );
    if let Some(replay) = &stats.replay {
        add(
            "files",
            format!(
                "{} read in {:.2} s, the last turn answered after {:.2} s",
                bytes(replay.read_bytes),
                replay.read_s,
                replay.answered_s
            ),
        );
    }
    for (i, line) in ledger(&stats.ledger).into_iter().enumerate() {
        add(if i == 0 { "ledger" } else { "" }, line);
    }
    for (i, line) in stats.udp.iter().flat_map(udp).enumerate() {
        add(if i == 0 { "datagrams" } else { "" }, line);
    }
    let sessions = &stats.sessions;
    add(
        "sessions",
        format!(
            "{} started, {} completed, {} open{}",
            thousands(sessions.started),
            thousands(sessions.completed),
            thousands(sessions.open),
            failures(stats)
        ),
    );
    add("latency", format!("target first byte {}", quantiles(stats.latency_us.target_first_byte)));
    if stats.latency_us.online_first_byte != Quantiles::default() {
        add("", format!("online first byte {}", quantiles(stats.latency_us.online_first_byte)));
    }
    add("", format!("lag               {}", quantiles(stats.latency_us.lag)));
    add("", format!("turn wait         {}", quantiles(stats.latency_us.turn_wait)));
    add(
        "packets",
        format!(
            "{} captured ({} dropped by the kernel), {} sent, {} headers back",
            thousands(stats.capture.frames),
            thousands(stats.capture.kernel_drops),
            thousands(stats.inject.segments),
            thousands(stats.returned.headers)
        ),
    );
    let inject = &stats.inject;
    if inject.switches > 0 || inject.detours > 0 || stats.guard.dropped > 0 {
        add(
            "",
            format!(
                "sent by {}: engine changed {}, {} by raw IP meanwhile, {} stopped by the guard",
                inject.engine,
                counted(inject.switches, "time"),
                thousands(inject.detours),
                thousands(stats.guard.dropped)
            ),
        );
    }
    for (errno, count) in stats.inject.errors.iter().filter(|(_, count)| **count > 0) {
        add("", format!("{} {errno} when sending", thousands(*count)));
    }
    for canary in stats.canary.iter().filter(|canary| canary.held || canary.failures > 0) {
        let now = if canary.held { canary.trouble.as_str() } else { "it is whole now" };
        add(
            "way",
            format!(
                "to {} and back: {} of probes failed; {now}",
                canary.addr,
                counted(canary.failures, "round")
            ),
        );
    }
    if let Some(restraint) = stats.restraint.as_ref().filter(|restraint| restraint.cpu_budget_percent > 0.0) {
        let step = restraint.step.replace('_', " ");
        let (used, budget) = (restraint.cpu_percent, restraint.cpu_budget_percent);
        add(
            "budget",
            format!(
                "CPU {used:.1} % of {budget} %, {step}: {:.1} % of new flows",
                restraint.admitted_percent
            ),
        );
    }
    for target in stats.targets.iter().filter(|target| target.state != "ok" || target.trips > 0) {
        let times = counted(target.trips, "time");
        add("target", format!("{} {}; new connections were held back {times}", target.addr, target.state));
    }
    for intercept in &stats.intercepts {
        let why = if intercept.trouble.is_empty() {
            String::new()
        } else {
            format!(", last lost: {}", intercept.trouble)
        };
        let gaps = if intercept.gaps > 0 {
            format!(", {} it could not keep", counted(intercept.gaps, "header"))
        } else {
            String::new()
        };
        add(
            "intercept",
            format!(
                "{} {}, {}{gaps}{why}",
                intercept.addr,
                intercept.state,
                counted(intercept.headers, "header")
            ),
        );
    }
    for (i, line) in roles(&stats.roles, stats.uptime_s).into_iter().enumerate() {
        add(if i == 0 { "processes" } else { "" }, line);
    }
    out
}

fn turn_notes(stats: &Stats) -> String {
    let turns = &stats.turns;
    let notes = [
        (turns.guessed, "after another length than online"),
        (turns.unanswered, "unanswered"),
        (turns.overlapped, "pipelined"),
    ];
    let notes: Vec<String> = notes
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", thousands(*count)))
        .collect();
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) }
}

/// The identity on one line, each reason of a drop on its own.
fn ledger(ledger: &Ledger) -> Vec<String> {
    let mut out = vec![format!(
        "wanted {} = delivered {} + in flight {} + dropped {}{}",
        bytes(ledger.wanted.payload_bytes),
        bytes(ledger.delivered.payload_bytes),
        bytes(ledger.in_flight.payload_bytes),
        bytes(ledger.dropped_bytes()),
        match ledger.imbalance() {
            0 => String::new(),
            off => format!("   (off by {off} bytes while it moves)"),
        }
    )];
    out.push(format!(
        "captured {} in {}",
        bytes(ledger.captured.payload_bytes),
        counted(ledger.captured.segments, "segment")
    ));
    for (reason, amount) in
        ledger.dropped.iter().filter(|(_, amount)| amount.payload_bytes > 0 || amount.segments > 0)
    {
        out.push(format!(
            "  dropped {reason:<20} {:>10} in {}",
            bytes(amount.payload_bytes),
            counted(amount.segments, "segment")
        ));
    }
    if ledger.missed.payload_bytes > 0 {
        out.push(format!("  missed (never captured)      {:>10}", bytes(ledger.missed.payload_bytes)));
    }
    out
}

/// The ledger of datagrams, and what came back.
fn udp(udp: &Udp) -> Vec<String> {
    let dropped = total(udp.dropped.values().map(|amount| amount.datagrams));
    let mut out = vec![format!(
        "wanted {} = sent {} + dropped {} ({} sent)",
        thousands(udp.wanted.datagrams),
        thousands(udp.sent.datagrams),
        thousands(dropped),
        bytes(udp.sent.payload_bytes)
    )];
    let reply = match udp.first_reply_us {
        0 => String::new(),
        us => format!(", first after {} ms", words::ms(us)),
    };
    out.push(format!(
        "captured {}; {} seen{reply}; {} open",
        thousands(udp.captured.datagrams),
        match udp.replies.datagrams {
            1 => "1 reply".to_owned(),
            n => format!("{} replies", thousands(n)),
        },
        counted(udp.flows.open, "flow")
    ));
    for (reason, amount) in &udp.dropped {
        out.push(format!(
            "  dropped {reason:<20} {:>10} in {}",
            bytes(amount.payload_bytes),
            counted(amount.datagrams, "datagram")
        ));
    }
    for (count, what) in [
        (udp.missed, "missed: fragments or bytes never captured"),
        (udp.inject.refused, "packets refused by the kernel when sending"),
        (udp.icmp_errors, "ICMP errors: is a service listening at the target?"),
    ] {
        if count > 0 {
            out.push(format!("  {} {what}", thousands(count)));
        }
    }
    out
}

fn failures(stats: &Stats) -> String {
    let failed: Vec<String> = stats
        .sessions
        .failed
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{} {}", thousands(*count), reason.replace('_', " ")))
        .collect();
    if failed.is_empty() { String::new() } else { format!("; failed: {}", failed.join(", ")) }
}

fn quantiles(of: Quantiles) -> String {
    if of == Quantiles::default() {
        return "-".to_owned();
    }
    format!("p50 {} p99 {} max {} ms", words::ms(of.p50), words::ms(of.p99), words::ms(of.max))
}

fn roles(roles: &[RoleStats], uptime_s: f64) -> Vec<String> {
    let several = |kind: &str| roles.iter().filter(|role| role.role == kind).count() > 1;
    roles
        .iter()
        .map(|role| {
            let name =
                if several(&role.role) { format!("{} {}", role.role, role.index) } else { role.role.clone() };
            let restarts = if role.restarts > 0 {
                let away = match role.recovery_us.worst {
                    0 => String::new(),
                    us => format!(", away {} ms at most", words::ms(us)),
                };
                format!("   restarted {}{away}", counted(role.restarts, "time"))
            } else {
                String::new()
            };
            format!(
                "{name:<16} {:>6.1} % cpu ({:.2} s)  {:>10}{restarts}",
                role.cpu_s * 100.0 / uptime_s.max(0.001),
                role.cpu_s,
                memory(role.rss_bytes)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Amount, Intercept, Target};

    fn stats() -> Stats {
        let mut stats =
            Stats { name: "default".into(), state: "stopped".into(), uptime_s: 90.0, ..Stats::default() };
        stats.ledger.wanted.payload_bytes = 3_100_000;
        stats.ledger.delivered.payload_bytes = 3_000_000;
        stats.ledger.dropped.insert("gap".into(), Amount { segments: 3, payload_bytes: 100_000 });
        stats.ledger.dropped.insert("refused".into(), Amount::default());
        stats.sessions.started = 1_234;
        stats.sessions.failed.insert("timed_out".into(), 2);
        stats.turns.sent = 20_000;
        stats.turns.guessed = 5;
        let target =
            |addr: &str, state: &str, trips| Target { addr: addr.into(), state: state.into(), trips };
        stats.targets = vec![target("10.0.3.2:8080", "sick", 2), target("10.0.3.2:8443", "ok", 0)];
        stats.intercepts.push(Intercept {
            addr: "10.0.4.2:36524".into(),
            state: "up".into(),
            headers: 7,
            ..Intercept::default()
        });
        for index in 0..2 {
            stats.roles.push(RoleStats {
                role: "shard-worker".into(),
                index,
                cpu_s: 9.0,
                rss_bytes: 8 << 20,
                ..RoleStats::default()
            });
        }
        stats
    }

    #[test]
    fn every_line_stands_in_80_columns_or_close_to_it() {
        for line in lines(&stats()) {
            assert!(line.len() <= 92, "{} columns: {line}", line.len());
        }
    }

    #[test]
    fn ledger_reasons_and_failures_are_named_where_there_are_any() {
        let text = lines(&stats()).join("\n");
        for part in [
            "wanted 3.1 MB = delivered 3.0 MB + in flight 0 B + dropped 100.0 kB",
            "dropped gap",
            "failed: 2 timed out",
            "20,000 sent",
            "shard-worker 1",
            "10.0.3.2:8080 sick; new connections were held back 2 times",
            "10.0 % cpu",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("dropped refused") && !text.contains("off by"), "{text}");
        assert!(!text.contains("8443"), "a target that is well needs no line: {text}");
    }
}
