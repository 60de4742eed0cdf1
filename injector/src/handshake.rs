//! Asks an intercept, before anything starts, whether it takes this instance. Blocking; called by the supervisor's
//! preflight. Its errors are what a new user sees most often, so each says what to type next.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use flow::Range;
use returns::{Link, LinkError, Message, Refused, RefusedCode, Welcome};
use topology::Plan;

use crate::greeting;

/// Why an intercept does not take this instance.
#[derive(Debug)]
pub enum DialError {
    /// Nobody answers.
    NoAnswer {
        /// Where it was tried.
        at: SocketAddr,
        /// What the last try ended with.
        why: String,
        /// How often.
        tries: u32,
        /// In which time.
        time: Duration,
        /// Options of the intercept that would answer.
        intercept: String,
        /// Options of the run that then succeeds.
        run: String,
    },
    /// It answers, and says no.
    Refused {
        /// Who.
        at: SocketAddr,
        /// The kind of reason.
        code: RefusedCode,
        /// Its sentence.
        sentence: String,
        /// A range that is free there, when ours was the trouble.
        suggestion: Option<Range>,
    },
    /// It answers, but the two cannot talk: another version, another key, another program.
    Link(LinkError),
}

/// Tries within the time given.
const TRIES: u32 = 3;

/// A connection to an intercept that has welcomed this instance, blocking.
pub(crate) struct Open {
    pub(crate) stream: TcpStream,
    pub(crate) link: Link,
    welcome: Welcome,
}

impl Open {
    /// Says farewell, so that the log there shows an end; if it does not arrive, the closed connection says the same.
    pub(crate) fn bye(mut self, sentence: &str) {
        if self.link.outgoing().bye(sentence) {
            let _ = self.stream.write_all(self.link.pending());
        }
    }
}

/// Dials the intercept at `at`, greets it as this plan's instance, and hangs up. Three tries, evenly spaced in `timeout`
/// (the preflight gives 1.5 s); what no repetition helps against is returned at once.
pub fn handshake(at: SocketAddr, plan: &Plan, timeout: Duration) -> Result<Welcome, DialError> {
    // Without a farewell: intercept keeps the range for us until the run dials.
    dial(at, plan, timeout).map(|open| open.welcome)
}

/// The same without hanging up.
pub(crate) fn dial(at: SocketAddr, plan: &Plan, timeout: Duration) -> Result<Open, DialError> {
    let start = Instant::now();
    let slot = timeout / TRIES;
    let mut why = String::new();
    for attempt in 1..=TRIES {
        let until = start + slot * attempt;
        match attempt_once(at, plan, until) {
            Ok(Ok(open)) => return Ok(open),
            Ok(Err(Refused { code, sentence, suggestion })) => {
                return Err(DialError::Refused { at, code, sentence, suggestion });
            }
            Err(Trial::Link(e)) if !e.may_pass() => return Err(DialError::Link(e)),
            Err(Trial::Link(e)) => why = e.to_string(),
            Err(Trial::Io(e)) => why = words(&e),
        }
        if attempt < TRIES {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }
    Err(no_answer(at, plan, why, timeout))
}

/// What to type on both hosts: an intercept on the target itself takes the answers with a device of its own.
fn no_answer(at: SocketAddr, plan: &Plan, why: String, time: Duration) -> DialError {
    let targets = plan.targets.iter().map(|t| format!("{}{}", t.protocol.prefix(), t.addr));
    let targets = targets.collect::<Vec<_>>().join(",");
    let on_target = plan.targets.iter().all(|t| t.addr.ip() == at.ip());
    let answers = if on_target { "--tun" } else { "-i eth0" };
    let plain = if plan.key.is_none() && !at.ip().is_loopback() { " --plain" } else { "" };
    let intercept = format!("-x {targets} {answers}{plain}");
    let run = format!("-x {} -s {at}{plain}", mappings(plan));
    DialError::NoAnswer { at, why, tries: TRIES, time, intercept, run }
}

enum Trial {
    Io(io::Error),
    Link(LinkError),
}

impl From<io::Error> for Trial {
    fn from(e: io::Error) -> Self {
        Trial::Io(e)
    }
}

fn attempt_once(at: SocketAddr, plan: &Plan, until: Instant) -> Result<Result<Open, Refused>, Trial> {
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&at, left()?)?;
    stream.set_nodelay(true)?;
    let hello = greeting::hello(plan, 0, None);
    let mut link = Link::dialer(greeting::policy(plan, at), &hello, at).map_err(Trial::Link)?;
    loop {
        stream.set_write_timeout(Some(left()?))?;
        let pending = link.pending().len();
        stream.write_all(link.pending())?;
        link.sent(pending);
        let verdict = match link.next().map_err(Trial::Link)? {
            Some(Message::Welcome(welcome)) => Some(Ok(welcome)),
            Some(Message::Refused(refused)) => Some(Err(refused)),
            Some(_) => continue,
            None => None,
        };
        if let Some(verdict) = verdict {
            return Ok(verdict.map(|welcome| Open { stream, link, welcome }));
        }
        if !link.pending().is_empty() {
            continue;
        }
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(link.receive_buffer()) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => link.received(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The error in a few words, as they stand inside a sentence.
pub(crate) fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer".to_owned(),
        io::ErrorKind::UnexpectedEof => "connected, then closed without a word".to_owned(),
        io::ErrorKind::ConnectionReset => "connected, then reset".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        _ => flow::words::of_io(error),
    }
}

/// The plan's `-x` as it may be typed.
fn mappings(plan: &Plan) -> String {
    let one = |m: &topology::plan::Mapping| {
        let target = plan.targets.get(usize::from(m.target))?.addr;
        Some(match m.online_ip {
            Some(ip) => format!("{}{}-{target}", m.protocol.prefix(), SocketAddr::new(ip, m.online_port)),
            None => format!("{}{}-{target}", m.protocol.prefix(), m.online_port),
        })
    };
    plan.mappings.iter().filter_map(one).collect::<Vec<_>>().join(",")
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::NoAnswer { at, why, tries, time, intercept, run } => {
                let there = format!("On {} run:", at.ip());
                let width = there.len();
                writeln!(
                    f,
                    "no intercept answers at {at} ({why} after {tries} tries in {:.1} s).",
                    time.as_secs_f64()
                )?;
                writeln!(f, "  {there}  tcptwin intercept {intercept}")?;
                write!(f, "  {:width$}  tcptwin run {run}", "Then here:")
            }
            DialError::Refused { at, sentence, suggestion, .. } => {
                write!(f, "the intercept at {at} refuses this run: {sentence}")?;
                match suggestion {
                    Some(range) => write!(f, "\n  Free there:  -c {range}"),
                    None => Ok(()),
                }
            }
            DialError::Link(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for DialError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DialError::Link(e) => Some(e),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, intercept, plan};

    fn dial(at: SocketAddr, plan: &Plan) -> Result<Welcome, DialError> {
        handshake(at, plan, Duration::from_millis(300))
    }

    #[test]
    fn a_welcome_comes_back() {
        let at = intercept(Answer::Welcome { epoch: 5, next: 1 });
        assert_eq!(dial(at, &plan(&["10.0.3.2:8080"])).unwrap().epoch, 5);
    }

    #[test]
    fn nobody_there_means_the_commands_to_type() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = unused.local_addr().unwrap();
        drop(unused);
        let said = dial(at, &plan(&["10.0.3.2:8080"])).unwrap_err().to_string();
        assert_eq!(
            said,
            format!(
                "no intercept answers at {at} (connection refused after 3 tries in 0.3 s).\n  \
                 On 127.0.0.1 run:  tcptwin intercept -x 10.0.3.2:8080 -i eth0\n  \
                 Then here:         tcptwin run -x 80-10.0.3.2:8080 -s {at}"
            )
        );
    }

    #[test]
    fn the_commands_fit_the_hosts_and_the_channel() {
        let said = |at: &str, plan: &Plan| {
            no_answer(at.parse().unwrap(), plan, "no answer".to_owned(), Duration::from_secs(1)).to_string()
        };
        let plain = Plan { key: None, ..plan(&["10.0.3.2:8080"]) };
        let on_target = said("10.0.3.2:36524", &plain);
        assert!(on_target.contains("intercept -x 10.0.3.2:8080 --tun --plain\n"), "{on_target}");
        assert!(on_target.ends_with("run -x 80-10.0.3.2:8080 -s 10.0.3.2:36524 --plain"), "{on_target}");
        let keyed = Plan { key: Some([9; 32]), ..plain };
        let beside = said("10.0.4.2:36524", &keyed);
        assert!(beside.contains("intercept -x 10.0.3.2:8080 -i eth0\n"), "{beside}");
        assert!(beside.ends_with("-s 10.0.4.2:36524"), "{beside}");
    }

    #[test]
    fn a_refusal_is_told_with_the_free_range() {
        let refused = Refused {
            code: RefusedCode::RangeTaken,
            sentence: "198.18.0.0/20 is used by web-1".to_owned(),
            suggestion: Some("198.18.16.0/20".parse().unwrap()),
        };
        let error = dial(intercept(Answer::Refuse(refused)), &plan(&["10.0.3.2:8080"])).unwrap_err();
        assert!(matches!(&error, DialError::Refused { code: RefusedCode::RangeTaken, .. }));
        let said = error.to_string();
        assert!(said.contains("used by web-1") && said.contains("-c 198.18.16.0/20"), "{said}");
    }

    #[test]
    fn another_key_is_said_at_once_and_not_tried_again() {
        let keyed = Plan { key: Some([9; 32]), ..plan(&["10.0.3.2:8080"]) };
        let error = dial(intercept(Answer::Welcome { epoch: 5, next: 1 }), &keyed).unwrap_err();
        assert!(matches!(error, DialError::Link(LinkError::Mode { .. })), "{error}");
    }

    #[test]
    fn another_program_is_told_from_an_intercept() {
        let error = dial(intercept(Answer::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n")), &plan(&["10.0.3.2:8080"]))
            .unwrap_err();
        assert!(matches!(error, DialError::Link(LinkError::NotTcptwin { .. })), "{error}");
    }

    #[test]
    fn silence_ends_with_the_time_given() {
        let error = dial(intercept(Answer::Silence), &plan(&["10.0.3.2:8080"])).unwrap_err();
        assert!(error.to_string().contains("no answer after 3 tries"), "{error}");
    }
}
