//! A recording for people: the lines at its start, its view, and its part of the summary.
//!
//! ```text
//!   elapsed   captured    written   on disk    dropped   files   recording
//!      14 s   1.9 MB/s   1.9 MB/s    26.6 MB       0 B       1   ok
//! ```

use std::time::Duration;

use topology::Plan;
use topology::plan::{Protocol, RecordPlan};

use crate::stats::{Record, Recorded, Stats};
use crate::words;

/// The first two lines of `record`.
pub(crate) fn opening(plan: &Plan, record: &RecordPlan, engine: &str) -> [String; 2] {
    let from = match plan.capture.interfaces.as_slice() {
        [] => "any interface".to_owned(),
        names => names.join(","),
    };
    let service = |mapping: &topology::plan::Mapping| {
        let protocol = if mapping.protocol == Protocol::Udp { "udp" } else { "" };
        match mapping.online_ip {
            None => format!("{protocol}:{}", mapping.online_port),
            Some(ip) if protocol.is_empty() => std::net::SocketAddr::new(ip, mapping.online_port).to_string(),
            Some(ip) => format!("{protocol}:{}", std::net::SocketAddr::new(ip, mapping.online_port)),
        }
    };
    let mut services: Vec<String> = plan.mappings.iter().take(3).map(service).collect();
    if plan.mappings.len() > 3 {
        services.push(format!("and {} more", plan.mappings.len() - 3));
    }
    [
        format!("tcptwin {}: {from} {}, {}", env!("CARGO_PKG_VERSION"), services.join(", "), whereto(record)),
        format!("engine: capture {engine}; both directions; stop with Ctrl-C"),
    ]
}

/// Where the files go, and what bounds them.
pub(crate) fn whereto(record: &RecordPlan) -> String {
    let kept = match record.keep_bytes {
        None => "all kept".to_owned(),
        Some(bytes) => format!("{} kept", words::memory(bytes)),
    };
    format!(
        "recorded into {}, files of {} or {}{}, {kept}",
        record.directory.display(),
        words::memory(record.rotate_bytes),
        words::elapsed(Duration::from_millis(record.rotate_ms)),
        if record.zstd { " (zstd)" } else { "" }
    )
}

/// The heading of the view.
pub(crate) fn heading() -> String {
    "  elapsed   captured    written    on disk  dropped      files   recording".to_owned()
}

/// A line of it, and whether nothing asks for attention. `event` is what happened since the last, if anything did.
pub(crate) fn line(before: &Stats, now: &Stats, elapsed: Duration, event: Option<&str>) -> (String, bool) {
    let (Some(was), Some(is)) = (&before.record, &now.record) else { return (String::new(), true) };
    let seconds = (now.uptime_s - before.uptime_s).max(0.001);
    let rate = |now: u64, before: u64| {
        format!("{}/s", words::bytes((now.saturating_sub(before) as f64 / seconds) as u64))
    };
    let dropped = is.dropped_in_all().bytes.saturating_sub(was.dropped_in_all().bytes);
    let kernel = now.capture.kernel_drops.saturating_sub(before.capture.kernel_drops);
    let condition = if is.failing {
        "the disk takes nothing: packets are dropped until it does; see the log".to_owned()
    } else if dropped > 0 {
        "the disk is too slow: cut packets with --snap, try --zstd, or give another -o".to_owned()
    } else if kernel > 0 {
        format!(
            "{} lost here: this host is too busy, or try a larger --capture-buffer",
            words::counted(kernel, "packet")
        )
    } else if is.wanted == was.wanted {
        "no traffic".to_owned()
    } else {
        "ok".to_owned()
    };
    let good = event.is_none() && !is.failing && dropped == 0 && kernel == 0;
    let head = format!(
        "{:>9} {:>10} {:>10} {:>10} {:>8} {:>10}   ",
        words::elapsed(elapsed),
        rate(is.wanted.bytes, was.wanted.bytes),
        rate(is.written.bytes, was.written.bytes),
        words::bytes(is.file_bytes.saturating_sub(is.removed_bytes)),
        words::bytes(dropped),
        words::thousands(is.files.saturating_sub(is.removed_files)),
    );
    let text = event.unwrap_or(&condition);
    if text.len() <= 12 {
        (format!("{head}{text}"), good)
    } else {
        (format!("{head}see below\n            {text}"), good)
    }
}

/// Its part of the summary: what was to be recorded, and where each packet of it is.
pub(crate) fn lines(record: &Record) -> Vec<String> {
    let amount =
        |of: Recorded| format!("{} in {}", words::bytes(of.bytes), words::counted(of.packets, "packet"));
    let mut out = vec![
        format!(
            "captured {} = written {} + dropped {}{}",
            words::bytes(record.wanted.bytes),
            words::bytes(record.written.bytes),
            words::bytes(record.dropped_in_all().bytes),
            match record.waiting.packets {
                0 => String::new(),
                _ => format!(" + not written yet {}", amount(record.waiting)),
            }
        ),
        format!(
            "{} into {} ({} there) in {}",
            amount(record.written),
            words::counted(record.files, "file"),
            words::bytes(record.file_bytes.saturating_sub(record.removed_bytes)),
            record.directory
        ),
    ];
    for (reason, dropped) in record.dropped.iter().filter(|(_, dropped)| dropped.packets > 0) {
        out.push(format!(
            "  dropped {reason:<20} {:>10} in {}",
            words::bytes(dropped.bytes),
            words::counted(dropped.packets, "packet")
        ));
    }
    if record.removed_files > 0 {
        out.push(format!(
            "{} of them removed by --keep ({})",
            words::thousands(record.removed_files),
            words::bytes(record.removed_bytes)
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let amount = |packets, bytes| Recorded { packets, bytes };
        Record {
            directory: "/var/tmp/web".into(),
            wanted: amount(1_100, 1_100_000),
            written: amount(1_000, 1_000_000),
            dropped: [("ring_full".to_owned(), amount(100, 100_000)), ("disk".to_owned(), amount(0, 0))]
                .into(),
            files: 3,
            file_bytes: 1_032_000,
            removed_files: 1,
            removed_bytes: 500_000,
            ..Record::default()
        }
    }

    #[test]
    fn every_packet_has_its_place_in_the_summary() {
        let text = lines(&record()).join("\n");
        for part in [
            "captured 1.1 MB = written 1.0 MB + dropped 100.0 kB\n",
            "1.0 MB in 1,000 packets into 3 files (532.0 kB there) in /var/tmp/web",
            "dropped ring_full",
            "1 of them removed by --keep (500.0 kB)",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("dropped disk") && !text.contains("not written"), "{text}");
    }

    #[test]
    fn the_view_says_what_is_wrong_and_what_to_do() {
        let stats = |record: Record, uptime_s| Stats { uptime_s, record: Some(record), ..Stats::default() };
        let none = Record { dropped: Default::default(), ..Record::default() };
        let shown =
            |now: Record| line(&stats(none.clone(), 13.0), &stats(now, 14.0), Duration::from_secs(14), None);
        let (text, good) = shown(Record { dropped: Default::default(), ..record() });
        assert!(good && text.ends_with("ok") && text.len() <= 80 && heading().len() <= 80, "{text}");
        let end = |text: &str, column: &str| text.find(column).unwrap() + column.len();
        assert_eq!(end(&heading(), "on disk"), end(&text, "532.0 kB"), "\n{}\n{text}", heading());
        let (text, good) = shown(record());
        assert!(!good && text.contains("the disk is too slow") && text.contains("100.0 kB"), "{text}");
        let (text, good) = shown(Record { failing: true, ..record() });
        assert!(!good && text.contains("the disk takes nothing"), "{text}");
        assert!(shown(none.clone()).0.ends_with("no traffic"));
    }
}
