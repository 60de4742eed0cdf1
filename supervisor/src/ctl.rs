//! The clients of the control socket: `stats`, `top`, `ctl`.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::cli::Order;
use crate::control::{Request, ask};
use crate::stats::Stats;
use crate::summary;

/// `tcptwin stats`.
///
/// # Errors
/// The instance cannot be asked.
pub(crate) fn stats(name: &str, json: bool) -> anyhow::Result<ExitCode> {
    let state = ask(name, Request::Stats)?;
    let text = if json { state.to_string() } else { shown(&state).join("\n") };
    // A reader that is gone (`| head`) is no failure.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}

/// `tcptwin top`: the same each second, until Ctrl-C or the instance's end.
///
/// # Errors
/// The instance cannot be asked in the first place.
pub(crate) fn top(name: &str) -> anyhow::Result<ExitCode> {
    let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    let mut state = ask(name, Request::Stats)?;
    loop {
        let text = shown(&state).join("\n");
        if writeln!(io::stdout(), "{clear}{text}").and_then(|()| io::stdout().flush()).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_secs(1));
        state = match ask(name, Request::Stats) {
            Ok(state) => state,
            Err(over) => {
                let _ = writeln!(io::stdout(), "{over}");
                return Ok(ExitCode::SUCCESS);
            }
        };
    }
}

/// `tcptwin ctl`.
///
/// # Errors
/// The instance cannot be asked, or refuses.
pub(crate) fn ctl(name: &str, order: Order) -> anyhow::Result<ExitCode> {
    let request = match order {
        Order::Pause => Request::Pause,
        Order::Resume => Request::Resume,
        Order::Stop => Request::Stop,
        Order::Percent(ppm) => Request::Percent { ppm },
        Order::Copies(milli) => Request::Copies { milli },
        Order::Upgrade => Request::Upgrade,
        Order::Halt => Request::Halt,
    };
    let reply = ask(name, request)?;
    let text = reply.as_str().map_or_else(|| reply.to_string(), str::to_owned);
    let _ = writeln!(io::stdout(), "{name}: {text}");
    Ok(ExitCode::SUCCESS)
}

/// A run in words; an intercept, which counts other things, as names and values.
fn shown(state: &Value) -> Vec<String> {
    match serde_json::from_value::<Stats>(state.clone()) {
        Ok(stats) => summary::lines(&stats),
        Err(_) => {
            let mut lines = Vec::new();
            flatten("", state, &mut lines);
            lines
        }
    }
}

/// Values that are zero or empty are left out: there are many counters, and few of them say something.
fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(&inner(key), value, lines)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&inner(&i.to_string()), value, lines));
        }
        Value::Number(number) if number.as_f64() == Some(0.0) => {}
        Value::String(text) if text.is_empty() => {}
        Value::Null => {}
        Value::String(text) => lines.push(format!("{path:<32} {text}")),
        other => lines.push(format!("{path:<32} {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intercepts_state_is_shown_without_its_zeros() {
        let state = serde_json::json!({"name": "a", "capture": {"captured": 7, "kernel_drops": 0}, "peers": [{"name": "web"}]});
        let lines = shown(&state);
        assert_eq!(lines.len(), 3);
        assert!(
            lines.iter().any(|line| line.starts_with("capture.captured ") && line.ends_with(" 7")),
            "{lines:?}"
        );
        assert!(lines.iter().any(|line| line.starts_with("peers.0.name ")), "{lines:?}");
    }

    #[test]
    fn a_runs_state_is_shown_as_its_summary() {
        let state = serde_json::to_value(Stats { name: "web".into(), ..Stats::default() }).unwrap();
        assert!(shown(&state)[0].starts_with("instance   web"));
    }
}
