//! What /proc says about a process: CPU time, memory, scheduler state (proc_pid_stat(5), proc_pid_statm(5)).

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

/// A look at one process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Look {
    /// Scheduler state: R running or waiting for a core, S asleep, D in an uninterruptible call, T stopped, Z dead.
    pub(crate) state: char,
    /// It is being taken apart: no instruction of it is executed any more.
    pub(crate) exiting: bool,
    /// CPU time so far, user and system.
    pub(crate) cpu: Duration,
    /// Resident memory, bytes. Pages of the shared region count with every process that touched them.
    pub(crate) rss_bytes: u64,
}

/// `PF_EXITING` of linux/sched.h, in the flags of the stat line.
const EXITING: u64 = 4;

/// Looks at a process, or at this one's whole (`pid` 0). `None` when it is gone.
pub(crate) fn look(pid: u32) -> Option<Look> {
    let who = if pid == 0 { "self".to_owned() } else { pid.to_string() };
    parse(&fs::read_to_string(format!("/proc/{who}/stat")).ok()?)
}

/// The line's second field, the name in parentheses, may itself hold blanks and parentheses: count from its end.
fn parse(line: &str) -> Option<Look> {
    let rest = &line[line.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 of the manual is the first here.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)?;
    Some(Look {
        state: fields.first()?.chars().next()?,
        exiting: number(9)? & EXITING != 0,
        cpu: Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / ticks_per_second())),
        rss_bytes: number(24)?.saturating_mul(page_bytes()),
    })
}

fn ticks_per_second() -> u64 {
    static TICKS: OnceLock<u64> = OnceLock::new();
    *TICKS.get_or_init(|| of_system(nix::unistd::SysconfVar::CLK_TCK).unwrap_or(100))
}

fn page_bytes() -> u64 {
    static PAGE: OnceLock<u64> = OnceLock::new();
    *PAGE.get_or_init(|| of_system(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(4096))
}

fn of_system(what: nix::unistd::SysconfVar) -> Option<u64> {
    nix::unistd::sysconf(what)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
}

/// CPU time with nanoseconds (schedstat's first number): the stat line counts in ticks of 10 ms, too coarse to see
/// whether a process that nobody beats for did anything in 50 ms. Falls back to `look`'s where the kernel has none.
pub(crate) fn cpu_exact(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok();
    let nanoseconds = text.and_then(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok());
    nanoseconds.map(Duration::from_nanos).or_else(|| Some(look(pid)?.cpu))
}

/// CPU time of all threads of a process, the dead ones included: its own clock, exact, and cheaper than reading /proc.
pub(crate) fn cpu_of_process(pid: u32) -> Option<Duration> {
    // Other numbers mean this process, or none that there can be.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(pid)).ok()?;
    Some(nix::time::clock_gettime(clock).ok()?.into())
}

/// When the host runs out of memory, this process is chosen before others (proc_pid_oom_score_adj(5)): nothing of a replay is
/// worth a process of production. Never lowers what a service manager had set, and needs no privilege.
pub(crate) fn volunteer_for_oom(score: i32) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now >= score) {
        return;
    }
    if let Err(error) = fs::write(FILE, score.to_string()) {
        tracing::warn!(
            "the kernel was not told to choose this process first when memory runs out ({}): {FILE} cannot be written",
            crate::words::of_io(&error)
        );
    }
}

/// Roles go first of all: their successors find all sessions again.
pub(crate) const OOM_OF_ROLES: i32 = 1_000;
/// Then who watches them; with it they would all go.
pub(crate) const OOM_OF_SUPERVISORS: i32 = 900;

/// Whether this process holds a capability (its number in capabilities(7)) in its effective set.
pub(crate) fn capable(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits >> number & 1 == 1)
}

/// Raw and packet sockets.
pub(crate) const CAP_NET_RAW: u32 = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 7 1000 300 18446744073709551615 0 0";
        let look = parse(line).unwrap();
        assert_eq!((look.state, look.exiting, look.cpu), ('S', false, Duration::from_secs(3)));
        assert!(parse(&line.replace("4194560", "4194564")).unwrap().exiting);
        assert_eq!(look.rss_bytes, 300 * page_bytes());
        assert_eq!(parse("42 (a"), None);
        assert_eq!(parse("42 (a) S 1"), None);
    }

    #[test]
    fn this_process_lives() {
        let look = look(0).unwrap();
        assert!(look.rss_bytes > 0 && matches!(look.state, 'R' | 'S'));
        assert!(cpu_exact(std::process::id()).unwrap() > Duration::ZERO);
        assert_eq!(super::look(u32::MAX), None);
        let (before, begin) = (cpu_of_process(std::process::id()).unwrap(), std::time::Instant::now());
        std::thread::spawn(move || while begin.elapsed() < Duration::from_millis(30) {}).join().unwrap();
        let spent = cpu_of_process(std::process::id()).unwrap() - before;
        assert!(spent > Duration::from_millis(3), "threads that ended count too: {spent:?}");
        assert_eq!(cpu_of_process(u32::MAX), None);
    }
}
