//! Every option of `run`, `replay`, `record` and `intercept`, once: the supervisor builds its command line from this list and the
//! configuration file accepts the same names, so an option exists in both or in neither.
//!
//! Values stay the text a person wrote, with the place where it was written, until the planner reads them: an error
//! can then quote the text and name the place. The command line wins over the file.

use std::fmt;

use flow::named_enum;

use crate::Refusal;
use crate::look::{Command, Takes};

named_enum! {
    /// An option. Its name is the long name on the command line and the key in the file.
    pub enum Key {
        /// `-x`: what is captured and where it is replayed; for `intercept`, whose answers are returned.
        Map => "map",
        /// `-s`: where intercept listens.
        Intercept => "intercept",
        /// `-c`: the replayed client range.
        Clients => "clients",
        /// The real clients' addresses are kept.
        KeepClients => "keep-clients",
        /// `-i`: interfaces to capture on.
        Interface => "interface",
        /// `-n`: copies of each flow.
        Copies => "copies",
        /// `-r`: share of flows replayed.
        Percent => "percent",
        /// Number of shard workers.
        Shards => "shards",
        /// Cores of the roles.
        Cores => "cores",
        /// Size of the shared region.
        Memory => "memory",
        /// Sessions at most.
        MaxSessions => "max-sessions",
        /// Capture engine.
        Capture => "capture",
        /// Injection engine.
        Inject => "inject",
        /// Whether, and from where, the ways to the targets are probed.
        Canary => "canary",
        /// A rule against forwarding, where intercept's host forwards.
        Guard => "guard",
        /// An expression that captured traffic must match.
        Filter => "filter",
        /// Only clients in these ranges.
        Net => "net",
        /// No client in these ranges.
        NotNet => "not-net",
        /// The xdp engine may take an interface that carries this host's own traffic.
        XdpForce => "xdp-force",
        /// Kernel capture buffer of one interface.
        CaptureBuffer => "capture-buffer",
        /// Frames addressed to others: the interface is a mirror port.
        Mirror => "mirror",
        /// Record what is captured, beside the replay.
        Record => "record",
        /// `-o`: where `record` puts its files.
        Output => "output",
        /// Longest file of a recording.
        Rotate => "rotate",
        /// Oldest age at which a file ends.
        RotateEvery => "rotate-every",
        /// All files of a recording together.
        Keep => "keep",
        /// Bytes recorded of a packet.
        Snap => "snap",
        /// Compressed files.
        Zstd => "zstd",
        /// Room between capture and disk.
        RecordBuffer => "record-buffer",
        /// Whose distance replayed clients keep.
        Rtt => "rtt",
        /// Turns do not wait for answers.
        NoWait => "no-wait",
        /// When older flows are joined.
        Join => "join",
        /// What becomes of a session with a hole in its capture.
        OnGap => "on-gap",
        /// Silence after which an open session is closed.
        IdleTime => "idle-time",
        /// Time for the drain at the end.
        DrainTime => "drain-time",
        /// Capture the answers on a TUN device of its own.
        Tun => "tun",
        /// Where intercept listens.
        Listen => "listen",
        /// Pre-shared key of the return channel.
        KeyFile => "key",
        /// No key on the return channel.
        Plain => "plain",
        /// Loopback targets are allowed.
        Lab => "lab",
        /// Packet files that are replayed.
        Files => "files",
        /// How much faster than they were captured.
        Speed => "speed",
        /// Longest pause that is kept.
        MaxGap => "max-gap",
        /// How often the files are replayed.
        Loops => "loops",
        /// Packets before this time are left out.
        From => "from",
        /// Packets behind this time are left out.
        Until => "until",
        /// Packets read at most.
        Limit => "limit",
        /// Packets a second at most.
        Rate => "rate",
        /// Packets are taken out of tunnels.
        Decap => "decap",
        /// What the choices of a replay are drawn from.
        Seed => "seed",
        /// Say what would be replayed, and replay nothing.
        DryRun => "dry-run",
        /// CPU time of all processes together.
        BudgetCpu => "budget-cpu",
        /// Packets a second towards the targets.
        MaxPps => "max-pps",
        /// Bits a second towards the targets.
        MaxBps => "max-bps",
        /// Connections begun a second.
        MaxCps => "max-cps",
        /// Time in which the share of flows grows from nothing.
        Ramp => "ramp",
        /// CPU priority of the roles.
        Nice => "nice",
        /// The file that halts the run, and keeps it halted.
        HaltFile => "halt-file",
        /// What the processes give up before they work.
        Sandbox => "sandbox",
        /// Name of the instance.
        Name => "name",
        /// Address of the Prometheus text.
        Metrics => "metrics",
        /// No live view.
        Quiet => "quiet",
        /// Summary as JSON.
        Json => "json",
    }
}

impl Key {
    /// The option that cannot stand beside this one.
    pub const fn rival(self) -> Option<Key> {
        match self {
            Key::Clients => Some(Key::KeepClients),
            Key::KeepClients => Some(Key::Clients),
            Key::KeyFile => Some(Key::Plain),
            Key::Plain => Some(Key::KeyFile),
            _ => None,
        }
    }

    /// By its long name.
    pub fn by_name(name: &str) -> Option<Key> {
        Key::ALL.iter().copied().find(|key| key.name() == name)
    }

    /// The option whose name looks most like this one, when one comes close.
    pub fn nearest(name: &str, command: Command) -> Option<Key> {
        let wanted = name.to_lowercase().replace('_', "-");
        Key::ALL
            .iter()
            .copied()
            .filter(|key| key.look().help(command).is_some())
            .map(|key| (distance(&wanted, key.name()), key))
            .filter(|(far, key)| *far <= 2.max(key.name().len() / 3))
            .min_by_key(|(far, _)| *far)
            .map(|(_, key)| key)
    }

    /// As a person types it: the letter where it has one, else the long name.
    pub fn typed(self) -> String {
        if let Takes::Files(placeholder) = self.look().takes {
            return placeholder.to_owned();
        }
        match self.look().short {
            Some(letter) => format!("-{letter}"),
            None => format!("--{}", self.name()),
        }
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the command line.
    CommandLine,
    /// In the configuration file.
    File {
        /// The file as it was named with `-f`.
        file: String,
        /// Line, counted from 1.
        line: usize,
    },
}

/// One value as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which option.
    pub key: Key,
    /// The text; empty for flags.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

impl Given {
    /// A refusal that quotes this value: `-x 80: …` or `live.toml, line 3: map = "80": …`.
    pub fn refuse(&self, sentence: impl fmt::Display) -> Refusal {
        Refusal::usage(format!("{self}: {sentence}"))
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = self.key.look().takes == Takes::Flag;
        match &self.place {
            Place::CommandLine if flag => f.write_str(&self.key.typed()),
            Place::CommandLine => write!(f, "{} {}", self.key.typed(), shown(&self.text)),
            Place::File { file, line } if flag => {
                write!(f, "{file}, line {line}: {} = true", self.key.name())
            }
            Place::File { file, line } => {
                write!(f, "{file}, line {line}: {} = \"{}\"", self.key.name(), self.text)
            }
        }
    }
}

/// The options of one start: values as written, none where nothing was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    given: Vec<Given>,
}

impl Options {
    /// Adds one value. Comma separated values become several; an empty part stays, so that it can be refused.
    pub fn give(&mut self, key: Key, text: &str, place: Place) {
        match key.look().takes {
            Takes::Many(_) => {
                for part in text.split(',') {
                    self.given.push(Given { key, text: part.trim().to_owned(), place: place.clone() });
                }
            }
            Takes::One(_) => self.given.push(Given { key, text: text.trim().to_owned(), place }),
            Takes::Files(_) => self.given.push(Given { key, text: text.to_owned(), place }),
            Takes::Flag => self.given.push(Given { key, text: String::new(), place }),
        }
    }

    /// The value of an option that takes one; the last where several were given.
    pub fn one(&self, key: Key) -> Option<&Given> {
        self.given.iter().rev().find(|given| given.key == key)
    }

    /// All values of an option, in the order given.
    pub fn all(&self, key: Key) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(move |given| given.key == key)
    }

    /// Whether a flag is set (or a value given).
    pub fn has(&self, key: Key) -> bool {
        self.one(key).is_some()
    }

    /// The command line's options with the file's where the command line says nothing about them. An option of the
    /// command line also silences the file's rival of it: `--keep-clients` wins over `clients = …`.
    #[must_use]
    pub fn over(mut self, file: Options) -> Options {
        let ours: Vec<Key> = self.given.iter().map(|given| given.key).collect();
        let silent =
            |key: Key| !ours.contains(&key) && !key.rival().is_some_and(|rival| ours.contains(&rival));
        self.given.extend(file.given.into_iter().filter(|given| silent(given.key)));
        self
    }

    /// Refuses options that cannot stand beside each other.
    pub fn check_rivals(&self) -> Result<(), Refusal> {
        for given in &self.given {
            if let Some(rival) = given.key.rival().filter(|rival| self.has(*rival)) {
                return Err(given.refuse(format_args!(
                    "{} and {} exclude each other. Give one of them",
                    given.key.typed(),
                    rival.typed()
                )));
            }
        }
        Ok(())
    }
}

fn shown(text: &str) -> &str {
    if text.is_empty() { "\"\"" } else { text }
}

/// Levenshtein distance in bytes; option names are short.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swap = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = swap.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(key: Key, text: &str) -> Options {
        let mut options = Options::default();
        options.give(key, text, Place::CommandLine);
        options
    }

    fn file(key: Key, text: &str) -> Options {
        let mut options = Options::default();
        options.give(key, text, Place::File { file: "live.toml".into(), line: 3 });
        options
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let both = cli(Key::Copies, "2").over(file(Key::Copies, "3"));
        assert_eq!(both.one(Key::Copies).unwrap().text, "2");
        let other = cli(Key::Copies, "2").over(file(Key::Percent, "10"));
        assert_eq!(other.one(Key::Percent).unwrap().text, "10");
    }

    #[test]
    fn repeated_values_of_the_command_line_replace_the_files_list() {
        let both = cli(Key::Map, "80-10.0.0.2:80,81-10.0.0.2:81").over(file(Key::Map, "90-10.0.0.2:90"));
        let texts: Vec<_> = both.all(Key::Map).map(|given| given.text.as_str()).collect();
        assert_eq!(texts, ["80-10.0.0.2:80", "81-10.0.0.2:81"]);
    }

    #[test]
    fn a_rival_on_the_command_line_silences_the_files_option() {
        let both = cli(Key::KeepClients, "").over(file(Key::Clients, "198.18.0.0/20"));
        assert!(!both.has(Key::Clients));
        assert!(both.check_rivals().is_ok());
        let mut beside = cli(Key::Plain, "");
        beside.give(Key::KeyFile, "k", Place::CommandLine);
        assert!(beside.check_rivals().unwrap_err().sentence.contains("exclude each other"));
    }

    #[test]
    fn a_value_is_quoted_as_it_was_written() {
        let of_file = file(Key::Map, "80");
        assert_eq!(of_file.one(Key::Map).unwrap().to_string(), "live.toml, line 3: map = \"80\"");
        assert_eq!(cli(Key::Map, "80").one(Key::Map).unwrap().to_string(), "-x 80");
        assert_eq!(cli(Key::Name, "").one(Key::Name).unwrap().to_string(), "--name \"\"");
    }

    #[test]
    fn a_slip_of_the_pen_finds_the_option_meant() {
        for (wrong, meant) in [
            ("copys", Key::Copies),
            ("keep_clients", Key::KeepClients),
            ("interfaces", Key::Interface),
            ("drian-time", Key::DrainTime),
        ] {
            assert_eq!(Key::nearest(wrong, Command::Run), Some(meant), "{wrong}");
        }
        assert_eq!(Key::nearest("zzzzzzzz", Command::Run), None);
    }

    #[test]
    fn every_option_belongs_to_a_command_and_letters_are_unique() {
        let mut letters = Vec::new();
        for key in Key::ALL {
            let look = key.look();
            let commands = [look.run, look.replay, look.record, look.intercept];
            assert!(commands.iter().any(Option::is_some), "{}", key.name());
            letters.extend(look.short);
        }
        let count = letters.len();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), count);
    }
}
