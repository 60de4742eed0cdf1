//! Logs: one line on stderr with level and role, which nobody waits for ([`crate::relay`]). Set up anew in each process;
//! `TCPTWIN_LOG` (error, warn, info, debug, trace) says how much.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::relay;

/// The variable that says how much is logged.
pub(crate) const LEVEL: &str = "TCPTWIN_LOG";
/// The variable that asks for colours where stderr is no terminal itself (bixense.com/clicolors): so roles, whose lines cross a
/// pipe, are told that there is one behind it.
pub(crate) const COLOUR: &str = "CLICOLOR_FORCE";

/// Sends this process's log lines to stderr under the name of its role: `level` and above, unless the variable says
/// another. A second call does nothing.
pub(crate) fn start(role: &str, level: Level) {
    let level = std::env::var(LEVEL).ok().and_then(|text| text.parse().ok()).unwrap_or(level);
    let asked = std::env::var_os(COLOUR).is_some_and(|value| !value.is_empty() && value != "0");
    let ansi = colour_allowed() && (asked || relay::ends_at_a_terminal());
    let lines = Lines { role: role.to_owned() };
    // Refused only when it was done before, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(ansi)
        .with_writer(relay::lines)
        .event_format(lines)
        .try_init();
}

/// The same where lines may never be waited for; [`relay::carry`] is owed. Without the pipe the log goes on as it was.
pub(crate) fn start_apart(role: &str, level: Level) {
    let laid = relay::lay();
    start(role, level);
    if let Err(error) = laid {
        tracing::warn!(
            "no pipe for the log ({}): a stderr that takes nothing will hold this process up",
            crate::words::of_io(&error)
        );
    }
}

/// The level of a command with or without `--quiet`.
pub(crate) const fn level(quiet: bool) -> Level {
    if quiet { Level::WARN } else { Level::INFO }
}

/// Colours are allowed unless NO_COLOR is set to anything but the empty text (no-color.org), or the terminal is dumb.
pub(crate) fn colour_allowed() -> bool {
    let no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `WARN shard-worker 2: message field=value`.
struct Lines {
    role: String,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let (name, colour) = match level {
            Level::ERROR => ("ERROR", 31),
            Level::WARN => ("WARN ", 33),
            Level::INFO => ("INFO ", 32),
            Level::DEBUG => ("DEBUG", 36),
            Level::TRACE => ("TRACE", 35),
        };
        if out.has_ansi_escapes() {
            write!(out, "\x1b[{colour}m{name}\x1b[0m {}: ", self.role)?;
        } else {
            write!(out, "{name} {}: ", self.role)?;
        }
        context.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}
