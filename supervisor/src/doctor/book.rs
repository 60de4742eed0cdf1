//! All findings of one look, in the order in which they were made: told to a person as they come, or to a program at the end.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::finding::{Fault, Finding, Outcome};
use crate::{logging, words};

/// The findings.
pub(crate) struct Book {
    findings: Vec<Finding>,
    json: bool,
    colour: bool,
}

/// Columns of a sentence below a finding.
const COLUMNS: usize = 96;
/// What was refused by what was found.
const FAILED: u8 = 3;

impl Book {
    /// An empty one.
    pub(crate) fn new(json: bool) -> Self {
        let colour = !json && io::stdout().is_terminal() && logging::colour_allowed();
        Self { findings: Vec::new(), json, colour }
    }

    /// Notes a finding, and shows it.
    pub(crate) fn note(&mut self, finding: Finding) {
        if !self.json && finding.outcome != Outcome::Skipped {
            for line in lines(&finding, self.colour) {
                // A reader that is gone (`| head`) is no failure.
                let _ = writeln!(io::stdout(), "{line}");
            }
            let _ = io::stdout().flush();
        }
        self.findings.push(finding);
    }

    /// Whether this was found.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.findings.iter().any(|finding| finding.fault == Some(fault))
    }

    /// What a check said is wrong.
    #[cfg(test)]
    pub(crate) fn said(&self, check: &str) -> Option<&str> {
        self.findings.iter().find(|finding| finding.check == check).map(|finding| finding.wrong.as_str())
    }

    /// Ends it: the last lines, or the whole as JSON; what the shell is told. `more` goes into the object beside the findings.
    pub(crate) fn close(self, more: Value) -> ExitCode {
        let failed = self.count(Outcome::Failed);
        let exit = if failed > 0 { FAILED } else { 0 };
        let text = if self.json { self.object(more, exit).to_string() } else { self.last_lines().join("\n") };
        let _ = writeln!(io::stdout(), "{text}");
        ExitCode::from(exit)
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.findings.iter().filter(|finding| finding.outcome == outcome).count()
    }

    fn object(&self, more: Value, exit: u8) -> Value {
        let mut whole = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "exit": exit,
            "failed": self.count(Outcome::Failed),
            "warnings": self.count(Outcome::Warning),
            "findings": self.findings,
        });
        if let (Value::Object(whole), Value::Object(more)) = (&mut whole, more) {
            whole.extend(more);
        }
        whole
    }

    fn last_lines(&self) -> Vec<String> {
        let skipped = self.findings.iter().filter(|finding| finding.outcome == Outcome::Skipped);
        let mut lines: Vec<String> = skipped
            .map(|one| format!("not checked: {} {} ({})", one.host.name(), one.check, one.seen))
            .collect();
        let warned = match self.count(Outcome::Warning) {
            0 => String::new(),
            count => format!(", {}", words::counted(count as u64, "warning")),
        };
        lines.push(match self.count(Outcome::Failed) {
            0 => format!("all well{warned}"),
            count => format!("{}{warned}", words::counted(count as u64, "failure")),
        });
        lines
    }
}

/// One finding for a person.
fn lines(finding: &Finding, colour: bool) -> Vec<String> {
    let word = format!("{:<5}", finding.outcome.word());
    let word = match finding.outcome {
        Outcome::Failed if colour => format!("\x1b[1;31m{word}\x1b[0m"),
        Outcome::Warning if colour => format!("\x1b[33m{word}\x1b[0m"),
        _ => word,
    };
    let mut lines =
        vec![format!("{:<10} {:<17} {word} {}", finding.host.name(), finding.check, finding.seen)];
    lines.extend(wrapped(&finding.wrong));
    lines.extend(finding.lines.iter().cloned());
    let heads: Vec<String> = finding
        .remedies
        .iter()
        .map(|remedy| match remedy.when.as_str() {
            "" => format!("On {}:", remedy.on),
            when => format!("{when}, on {}:", remedy.on),
        })
        .collect();
    let widest = heads.iter().map(|head| head.chars().count()).max().unwrap_or(0);
    let commands = heads.iter().zip(&finding.remedies);
    lines.extend(commands.map(|(head, remedy)| format!("  {head:<widest$}  {}", remedy.command)));
    lines
}

/// A sentence in lines of its own, indented.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= COLUMNS) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(format!("  {word}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Host;

    fn unseen() -> Finding {
        Finding::failed(Host::Probe, "SYN-ACK seen", Fault::AnswerUnseen, "intercept saw nothing for 1 s")
            .because("The target sends answers elsewhere, or drops our SYN.")
            .mend("the target (10.0.3.2)", "ip route replace 198.18.16.0/20 via 10.0.4.2")
            .mend_if("If that is set", "the target (10.0.3.2)", "sysctl -w net.ipv4.conf.all.rp_filter=2")
    }

    #[test]
    fn a_failure_is_told_with_its_commands_one_below_the_other() {
        let said = lines(&unseen(), false);
        assert_eq!(said[0], "probe      SYN-ACK seen      FAIL  intercept saw nothing for 1 s");
        assert_eq!(said[1], "  The target sends answers elsewhere, or drops our SYN.");
        let at = |line: &str, part: &str| line.find(part).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(at(&said[2], "ip route"), at(&said[3], "sysctl"), "{said:?}");
        assert!(said[3].starts_with("  If that is set, on the target (10.0.3.2):"), "{said:?}");
    }

    #[test]
    fn long_sentences_are_broken_between_words() {
        let text = "word ".repeat(60);
        let broken = wrapped(&text);
        assert!(broken.len() == 4 && broken.iter().all(|line| line.len() <= COLUMNS), "{broken:?}");
        assert_eq!(broken.concat().split_whitespace().count(), 60 - 3 + 3);
    }

    #[test]
    fn a_program_finds_fault_host_and_command() {
        let mut book = Book::new(true);
        book.note(Finding::ok(Host::Online, "privileges", "CAP_NET_RAW"));
        book.note(unseen());
        book.note(Finding::skipped(Host::Probe, "header back", "needs the step above"));
        let object = book.object(json!({"name": "web"}), 3);
        assert_eq!(
            (&object["failed"], &object["exit"], &object["name"]),
            (&json!(1), &json!(3), &json!("web"))
        );
        let finding = &object["findings"][1];
        assert_eq!((&finding["fault"], &finding["host"]), (&json!("answer_unseen"), &json!("probe")));
        assert_eq!(finding["remedies"][0]["command"], "ip route replace 198.18.16.0/20 via 10.0.4.2");
        assert_eq!(object["findings"][0].get("fault"), None);
        assert!(book.last_lines()[0].starts_with("not checked: probe header back (needs"));
        assert_eq!(book.last_lines()[1], "1 failure");
    }
}
