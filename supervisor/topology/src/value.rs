//! Values of options as a person writes them: sizes, times, decimals, addresses, names. Each parser returns the reason
//! of its refusal, to which the caller adds what was written and where.

use std::net::{IpAddr, SocketAddr};

/// Why a value is refused: half a sentence that follows the quoted value.
pub type Why = String;

/// A whole number within bounds.
pub fn whole(text: &str, what: &str, low: u64, high: u64) -> Result<u64, Why> {
    let wrong =
        || format!("{what} is a whole number from {low} to {high}, for example {}", low.max(2).min(high));
    let number = plain_digits(text).and_then(|digits| digits.parse::<u64>().ok()).ok_or_else(wrong)?;
    if (low..=high).contains(&number) { Ok(number) } else { Err(wrong()) }
}

/// A decimal with at most `places` places, as an integer of that many places: `decimal("1.5", 3)` is 1500.
/// `None` for anything else, a sign or an exponent included.
pub fn decimal(text: &str, places: u32) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || fraction.len() > places as usize || (fraction.is_empty() && text.contains('.')) {
        return None;
    }
    let digits = format!("{whole}{fraction:0<width$}", width = places as usize);
    plain_digits(&digits)?.parse().ok()
}

/// A size in bytes: a number with B, KiB, MiB, GiB (or k, M, G, which mean the same here); a bare number is bytes.
pub fn size(text: &str) -> Result<u64, Why> {
    let wrong = || "a size is a number with KiB, MiB or GiB, for example 256MiB".to_owned();
    let cut = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(wrong()),
    };
    let thousandths = decimal(number.trim_end(), 3).ok_or_else(wrong)?;
    let bytes = (u128::from(thousandths) << shift) / 1000;
    u64::try_from(bytes).map_err(|_| wrong())
}

/// A rate: a number with k, M or G, thousands, millions and thousands of millions.
pub fn rate(text: &str, what: &str, low: u64, high: u64) -> Result<u64, Why> {
    let wrong = || {
        format!(
            "{what} are a number from {} to {}, for example {}",
            short(low),
            short(high),
            short(low.saturating_mul(100))
        )
    };
    let cut = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let thousandths = decimal(number.trim_end(), 3).ok_or_else(wrong)?;
    let rate = u64::try_from(u128::from(thousandths) * u128::from(factor) / 1000).map_err(|_| wrong())?;
    if (low..=high).contains(&rate) { Ok(rate) } else { Err(wrong()) }
}

/// A rate as [`rate`] reads it.
pub fn short(rate: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match units.into_iter().find(|(factor, _)| rate >= *factor) {
        Some((factor, unit)) if rate.is_multiple_of(factor) => format!("{}{unit}", rate / factor),
        Some((factor, unit)) => {
            let text = format!("{:.3}", rate as f64 / factor as f64);
            format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
        }
        None => rate.to_string(),
    }
}

/// A time in milliseconds: a number with ms, s, m or h; a bare number is seconds.
pub fn time_ms(text: &str, low_ms: u64, high_ms: u64) -> Result<u64, Why> {
    let wrong = || {
        format!(
            "a time is a number with ms, s, m or h, from {} to {}, for example 10s",
            shown_ms(low_ms),
            shown_ms(high_ms)
        )
    };
    let cut = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let thousandths = decimal(number.trim_end(), 3).ok_or_else(wrong)?;
    let ms = u64::try_from(u128::from(thousandths) * factor / 1000).map_err(|_| wrong())?;
    if (low_ms..=high_ms).contains(&ms) { Ok(ms) } else { Err(wrong()) }
}

/// A moment in UTC after RFC 3339 (`2026-01-31T12:00:00.5Z`), as nanoseconds since the Unix epoch; none for anything else.
pub fn moment_ns(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix(['Z', 'z'])?.split_once(['T', 't', ' '])?;
    let field = |text: &str, width: usize| match text.len() == width {
        true => plain_digits(text)?.parse::<u64>().ok(),
        false => None,
    };
    let mut days = date.splitn(3, '-');
    let (year, month, day) = (field(days.next()?, 4)?, field(days.next()?, 2)?, field(days.next()?, 2)?);
    let mut clock = time.splitn(3, ':');
    let (hour, minute, second) = (field(clock.next()?, 2)?, field(clock.next()?, 2)?, clock.next()?);
    let second_ns = decimal(second, 9).filter(|_| second.split('.').next().is_some_and(|s| s.len() == 2))?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if year < 1970 || !(1..=length).contains(&day) || hour > 23 || minute > 59 || second_ns >= 60_000_000_000
    {
        return None;
    }
    let before = year - 1;
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let of_years = (year - 1970) * 365 + leaps(before) - leaps(1969);
    let of_months: u64 = lengths[..month as usize - 1].iter().sum();
    let seconds = (of_years + of_months + day - 1) * 86_400 + hour * 3_600 + minute * 60;
    seconds.checked_mul(1_000_000_000)?.checked_add(second_ns)
}

/// A port, never 0.
pub fn port(text: &str) -> Result<u16, Why> {
    if text.is_empty() {
        return Err("the port is missing".to_owned());
    }
    match plain_digits(text).map(str::parse::<u32>) {
        Some(Ok(0)) => Err("port 0 is no service's port; ports go from 1 to 65535".to_owned()),
        Some(Ok(number)) if number <= 65_535 => Ok(number as u16),
        Some(_) => Err(format!("port {text} is too large; ports go from 1 to 65535")),
        None => Err(format!("`{text}` is not a port number; ports go from 1 to 65535")),
    }
}

/// A literal address; `whose` names it in the sentence ("the target"). IPv6 with or without brackets.
pub fn address(text: &str, whose: &str) -> Result<IpAddr, Why> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(|| format!("{whose}'s bracket is not closed"))?;
            if inner.parse::<std::net::Ipv4Addr>().is_ok() {
                return Err(format!("brackets are for IPv6; write {inner} without them"));
            }
            inner
        }
        None => text,
    };
    if bare.is_empty() {
        return Err(format!("{whose} has no address"));
    }
    if let Some((_, zone)) = bare.split_once('%') {
        return Err(format!(
            "{whose}'s address has an interface in it (%{zone}); use an address that needs none"
        ));
    }
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(format!("{whose}'s address is IPv4 in IPv6 clothes; write {v4}")),
            None => Ok(IpAddr::V6(v6)),
        },
        Ok(v4) => Ok(v4),
        Err(_) if looks_like_name(bare) => Err(format!(
            "{whose} must be a literal address: tcptwin resolves no names. `getent hosts {bare}` prints the address"
        )),
        Err(_) => Err(format!("`{bare}` is not an IPv4 or IPv6 address")),
    }
}

/// `ADDR:PORT`, or `ADDR` alone where a port is given for it. IPv6 with a port needs brackets.
pub fn endpoint(text: &str, whose: &str, otherwise: Option<u16>) -> Result<SocketAddr, Why> {
    let no_port = || match otherwise {
        Some(port) => Ok(port),
        None => Err(format!("{whose} has no port")),
    };
    if let Some(rest) = text.strip_prefix('[') {
        let Some((inner, after)) = rest.split_once(']') else {
            return Err(format!("{whose}'s bracket is not closed"));
        };
        let ip = address(&format!("[{inner}]"), whose)?;
        return match after.strip_prefix(':') {
            Some(number) => Ok(SocketAddr::new(ip, port(number)?)),
            None if after.is_empty() => Ok(SocketAddr::new(ip, no_port()?)),
            None => Err(format!("after {whose}'s bracket comes `:PORT`, not `{after}`")),
        };
    }
    if text.matches(':').count() > 1 {
        return match (text.parse::<IpAddr>(), otherwise) {
            (Ok(_), Some(port)) => Ok(SocketAddr::new(address(text, whose)?, port)),
            _ => Err(format!("write {whose}'s IPv6 address in brackets, for example [2001:db8::2]:8080")),
        };
    }
    match text.split_once(':') {
        Some((addr, number)) => Ok(SocketAddr::new(address(addr, whose)?, port(number)?)),
        None if otherwise.is_none() && plain_digits(text).is_some() => Err(format!("{whose} has no address")),
        None => {
            let ip = address(text, whose)?;
            Ok(SocketAddr::new(ip, no_port()?))
        }
    }
}

/// The name of an instance: it becomes a file name of region, lock and socket.
pub fn name(text: &str) -> Result<String, Why> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=MAX_NAME).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err(format!("a name has 1 to {MAX_NAME} letters, digits, - or _, for example web-1"))
}

/// Longest name of an instance, bytes: with its directory it must fit a socket address (108 bytes).
pub const MAX_NAME: usize = 32;

fn plain_digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

fn looks_like_name(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphabetic();
    text.contains(letters)
        && !text.contains(':')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn shown_ms(ms: u64) -> String {
    match ms {
        ms if ms % 3_600_000 == 0 && ms > 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 && ms > 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        assert_eq!(decimal("1.5", 3), Some(1500));
        assert_eq!(decimal("0.25", 3), Some(250));
        assert_eq!(decimal("1.10", 3), Some(1100));
        assert_eq!(decimal("100", 2), Some(10_000));
        for wrong in [
            "",
            ".",
            "1.",
            ".5",
            "1.2345",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "nan",
            "1.5.0",
            " 1",
            "99999999999999999999",
        ] {
            assert_eq!(decimal(wrong, 3), None, "{wrong:?}");
        }
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(size("256MiB").unwrap(), 256 << 20);
        assert_eq!(size("1.5G").unwrap(), 3 << 29);
        assert_eq!(size("64 KiB").unwrap(), 65_536);
        assert_eq!(size("4096").unwrap(), 4096);
        for wrong in ["", "MiB", "12 parsecs", "-1k", "1TiBx", "1e9"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(time_ms("500ms", 0, 10_000).unwrap(), 500);
        assert_eq!(time_ms("10", 0, 10_000).unwrap(), 10_000);
        assert_eq!(time_ms("1.5m", 0, 100_000).unwrap(), 90_000);
        assert!(time_ms("11s", 0, 10_000).unwrap_err().contains("from 0s to 10s"));
        assert!(time_ms("soon", 0, 10_000).is_err());
    }

    #[test]
    fn an_endpoint_takes_the_port_it_is_given_or_the_usual_one() {
        let usual = Some(36_524);
        for (text, meant) in [
            ("10.0.4.2", "10.0.4.2:36524"),
            ("10.0.4.2:99", "10.0.4.2:99"),
            ("2001:db8::2", "[2001:db8::2]:36524"),
            ("[2001:db8::2]", "[2001:db8::2]:36524"),
            ("[2001:db8::2]:99", "[2001:db8::2]:99"),
        ] {
            assert_eq!(endpoint(text, "intercept", usual).unwrap().to_string(), meant);
        }
    }
}
