//! Numbers and errors as a person reads them: thousands separators, units, lower-case system messages.

use std::time::Duration;

pub(crate) use flow::words::of_io;

/// `1234567` → `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in decimal units, as network people count: `3.1 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Memory in binary units: `8.0 MiB`.
pub(crate) fn memory(count: u64) -> String {
    if count < 1 << 30 {
        format!("{:.1} MiB", count as f64 / f64::from(1 << 20))
    } else {
        format!("{:.1} GiB", count as f64 / f64::from(1 << 30))
    }
}

/// Microseconds as milliseconds with as many places as help: `0.13`, `3.1`, `880`.
pub(crate) fn ms(us: u64) -> String {
    match us {
        0..1_000 => format!("{:.2}", us as f64 / 1e3),
        1_000..100_000 => format!("{:.1}", us as f64 / 1e3),
        _ => thousands(us / 1_000),
    }
}

/// `75 s`, `12 min`, `3 h 05`.
pub(crate) fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{}m{:02}", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}", seconds / 3600, seconds / 60 % 60),
    }
}

/// `1 session`, `2 sessions`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// `1 copy`, `1.5 copies`.
pub(crate) fn copies(milli: u32) -> String {
    format!("{} {}", f64::from(milli) / 1e3, if milli == 1_000 { "copy" } else { "copies" })
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
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(3_100_000), "3.1 MB");
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!(memory(8 << 20), "8.0 MiB");
        assert_eq!((ms(130), ms(3_100), ms(880_000)), ("0.13".into(), "3.1".into(), "880".into()));
        assert_eq!(elapsed(Duration::from_secs(14)), "14 s");
        assert_eq!(elapsed(Duration::from_secs(7_500)), "2h05");
        assert_eq!(counted(1, "session"), "1 session");
        assert_eq!([copies(1_000), copies(250), copies(3_000)], ["1 copy", "0.25 copies", "3 copies"]);
    }
}
