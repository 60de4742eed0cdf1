//! The command line, built with clap from the one list of options ([`topology::Key`]), and its errors as sentences.
//!
//! Values stay text here: the planner reads them, so that the configuration file and the command line fail alike.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args as _, FromArgMatches as _};
use topology::look::Takes;
use topology::{Command, Key, Options, Place, Refusal, file, planner, value};

use crate::demo::DemoArgs;
use crate::generate::What;
use crate::role::RoleArgs;

/// What the person asked for.
#[derive(Debug)]
pub(crate) enum Action {
    /// Replay live traffic.
    Run(Options),
    /// Replay packet files.
    Replay(Options),
    /// Record live traffic.
    Record(Options),
    /// See the targets' answers and return their headers.
    Intercept(Options),
    /// Find the broken hop.
    Doctor(Doctor),
    /// Print the state of an instance.
    Stats {
        /// Its name.
        name: String,
        /// As one JSON object.
        json: bool,
    },
    /// Print the state of an instance again and again.
    Top {
        /// Its name.
        name: String,
    },
    /// Change a running instance.
    Ctl {
        /// Its name.
        name: String,
        /// What to change.
        order: Order,
    },
    /// Show a process what a worker died of.
    Autopsy {
        /// The file that was kept.
        file: String,
        /// This is that process.
        inside: bool,
    },
    /// Make a key.
    Keygen {
        /// Where.
        file: String,
    },
    /// Write manual pages or completions.
    Generate {
        /// Which.
        what: What,
        /// Where.
        directory: String,
    },
    /// Show the whole on this machine alone.
    Demo(DemoArgs),
    /// Be a role of an instance (started by the supervisor only).
    Role(RoleArgs),
    /// Say whether this program could go on with an instance (asked by a running supervisor).
    Handover {
        /// Its name.
        name: String,
    },
    /// Text that was asked for (`--help`, `--version`), to stdout.
    Print(StyledStr),
}

/// Where the broken hop is looked for.
#[derive(Debug)]
pub(crate) enum Doctor {
    /// On the online host, with the options of a run; or one client of a run that goes on.
    Online {
        /// As of `run`.
        options: Options,
        /// ADDRESS:PORT.
        client: Option<String>,
    },
    /// On the assistant.
    Intercept(Options),
    /// On the target.
    Target(Options),
}

/// What `ctl` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Capture goes on, but nothing new is replayed.
    Pause,
    /// Undoes `Pause`.
    Resume,
    /// Drain and end.
    Stop,
    /// Share of flows, parts per million.
    Percent(u32),
    /// Copies, thousandths.
    Copies(u32),
    /// Go on as the program that stands at the instance's path now.
    Upgrade,
    /// The kill switch.
    Halt,
}

/// Reads the command line of this process.
///
/// # Errors
/// One sentence, exit code 2.
pub(crate) fn read() -> Result<Action, Refusal> {
    read_from(std::env::args_os())
}

fn read_from(
    args: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
) -> Result<Action, Refusal> {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Action::Print(error.render()));
        }
        Err(error) => return Err(sentence(&error)),
    };
    let (verb, matches) = matches.subcommand().expect("a subcommand is required");
    match verb {
        "run" => Ok(Action::Run(options(matches, Command::Run)?)),
        "replay" => Ok(Action::Replay(options(matches, Command::Replay)?)),
        "record" => Ok(Action::Record(options(matches, Command::Record)?)),
        "intercept" => Ok(Action::Intercept(options(matches, Command::Intercept)?)),
        "doctor" => Ok(Action::Doctor(doctor(matches)?)),
        "stats" => Ok(Action::Stats { name: name(matches)?, json: matches.get_flag("json") }),
        "top" => Ok(Action::Top { name: name(matches)? }),
        "ctl" => Ok(Action::Ctl { name: name(matches)?, order: order(matches)? }),
        "autopsy" => Ok(Action::Autopsy { file: text(matches, "file"), inside: matches.get_flag("inside") }),
        "keygen" => Ok(Action::Keygen { file: text(matches, "file") }),
        "generate" => Ok(Action::Generate {
            what: *matches.get_one("what").expect("clap demands it"),
            directory: text(matches, "directory"),
        }),
        "demo" => Ok(Action::Demo(DemoArgs::from_arg_matches(matches).map_err(|error| sentence(&error))?)),
        "handover" => Ok(Action::Handover { name: name(matches)? }),
        "role" => Ok(Action::Role(RoleArgs::from_matches(matches)?)),
        other => unreachable!("clap accepts only the commands it was given, not {other}"),
    }
}

pub(crate) fn command() -> clap::Command {
    let name = Arg::new("name")
        .long("name")
        .value_name("NAME")
        .default_value(planner::DEFAULT_NAME)
        .help("Name of the instance");
    let named = |command: clap::Command| command.arg(name.clone());
    let named_anywhere = |command: clap::Command| command.arg(name.clone().global(true));
    clap::Command::new("tcptwin")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Replays the live TCP traffic of a production service on a test server, packet by packet.")
        .after_help("Start with `tcptwin run --help`; when nothing arrives, `tcptwin doctor`. Exit: 0 well, 1 runtime failure, 2 wrong use, 3 refused by the checks before the start.")
        .subcommand_required(true)
        .arg_required_else_help(false)
        .disable_help_subcommand(true)
        .max_term_width(100)
        .subcommand(
            of_options(Command::Run)
                .about("Capture live traffic on this host and replay it on a target")
                .after_help("Example: tcptwin run -x 80-10.0.3.2:8080 -s 10.0.4.2 -n 1.5"),
        )
        .subcommand(
            of_options(Command::Replay)
                .about("Replay packet files (pcap, pcapng) on a target")
                .after_help("Examples: tcptwin replay day.pcap -x 80-10.0.3.2:8080 -s 10.0.4.2 --speed 2\n          tcptwin replay day.pcap -x 80-10.0.3.2:8080 --dry-run"),
        )
        .subcommand(
            of_options(Command::Record)
                .about("Capture live traffic on this host, requests and answers, into rotating pcapng files")
                .after_help("Example: tcptwin record -x 80 -o /var/tmp/web --keep 10GiB --zstd\n\nThe files hold what the clients sent: only their owner can read them. They open in Wireshark."),
        )
        .subcommand(
            of_options(Command::Intercept)
                .about("See the target's answers and return their headers to `tcptwin run`")
                .after_help("Examples: tcptwin intercept -x 10.0.3.2:8080 -i eth0\n          tcptwin intercept -x 10.0.3.2:8080 --tun        (on the target itself)"),
        )
        .subcommand(doctor_command())
        .subcommand(
            named(clap::Command::new("stats").about("Print what a running instance has done so far"))
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As one JSON object")),
        )
        .subcommand(named(clap::Command::new("top").about("Print it every second, until Ctrl-C")))
        .subcommand(named_anywhere(
            clap::Command::new("ctl")
                .about("Change a running instance")
                .subcommand_required(true)
                .disable_help_subcommand(true)
                .subcommand(clap::Command::new("pause").about("Start no new session; what is captured meanwhile is counted as `paused`"))
                .subcommand(clap::Command::new("resume").about("Go on after `pause`"))
                .subcommand(clap::Command::new("stop").about("Drain and end, as Ctrl-C does"))
                .subcommand(clap::Command::new("halt").about("The kill switch: capture and send nothing any more, now; nothing of this name starts before the file that it names is removed"))
                .subcommand(clap::Command::new("upgrade").about("Go on as the program that stands at the instance's path now, with all sessions; drain when it cannot take them over"))
                .subcommand(clap::Command::new("percent").about("Share of new flows to replay").arg(number("PERCENT")))
                .subcommand(clap::Command::new("copies").about("Copies of each new flow").arg(number("N"))),
        ))
        .subcommand(
            clap::Command::new("keygen")
                .about("Make a key for the return channel")
                .arg(Arg::new("file").value_name("FILE").required(true).help("Where to write it; never overwritten"))
                .after_help("Copy the file to the hosts of `run` and `intercept` and name it with --key, or keep it at /etc/tcptwin/key."),
        )
        .subcommand(
            clap::Command::new("autopsy")
                .about("Take again what a shard worker died of twice, in a process of its own")
                .arg(Arg::new("file").value_name("FILE").required(true).help("A file that `run` has kept and named"))
                .arg(Arg::new("inside").long("inside").hide(true).action(ArgAction::SetTrue)),
        )
        .subcommand(
            DemoArgs::augment_args(clap::Command::new("demo"))
                .about("Show the whole on this machine alone, in network namespaces of its own"),
        )
        .subcommand(
            clap::Command::new("generate")
                .hide(true)
                .about("Write manual pages or shell completions, as a package needs them")
                .arg(Arg::new("what").value_parser(clap::value_parser!(What)).required(true))
                .arg(Arg::new("directory").value_name("DIR").required(true)),
        )
        .subcommand(named(clap::Command::new("handover").hide(true)))
        .subcommand(RoleArgs::command())
}

/// `doctor` has the options of a run, and says the same from the other two hosts with those of theirs.
fn doctor_command() -> clap::Command {
    let of_target = [
        (Key::Map, "The service under test, an address of this host: TARGET:PORT; repeatable"),
        (Key::Intercept, "Where intercept runs; leave it out where it runs here with --tun"),
        (
            Key::Clients,
            "The replayed clients' range, as `run` says it [default: the whole of 198.18.0.0/15 or 2001:2::/48]",
        ),
        (Key::Json, "As one JSON object"),
    ];
    let target = of_target.into_iter().fold(clap::Command::new("target"), |command, (key, help)| {
        let arg = Arg::new(key.name()).long(key.name()).help(help);
        let arg = match key.look().short {
            Some(letter) => arg.short(letter),
            None => arg,
        };
        command.arg(match key.look().takes {
            Takes::Flag => arg.action(ArgAction::SetTrue),
            Takes::One(placeholder) | Takes::Many(placeholder) | Takes::Files(placeholder) => {
                arg.value_name(placeholder).action(ArgAction::Append)
            }
        })
    });
    of_options(Command::Run)
        .name("doctor")
        .about("Find the broken hop: with the arguments of `run`, before one or during it")
        .arg(Arg::new("client").value_name("ADDRESS:PORT").help("Of a run that goes on: what became of this client's connection"))
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(of_options(Command::Intercept).about("The same from the assistant, with the arguments of `intercept`"))
        .subcommand(target.about("The same from the target: its route, its reverse path, its firewall"))
        .after_help("Examples: tcptwin doctor -x 80-10.0.3.2:8080 -s 10.0.4.2\n          tcptwin doctor 10.0.0.7:40001\n          tcptwin doctor intercept -x 10.0.3.2:8080 -i eth0\n          tcptwin doctor target -x 10.0.3.2:8080 -s 10.0.4.2\n\nExit: 0 all well, 3 something failed.")
}

fn doctor(matches: &ArgMatches) -> Result<Doctor, Refusal> {
    Ok(match matches.subcommand() {
        None => Doctor::Online {
            options: options(matches, Command::Run)?,
            client: matches.get_one::<String>("client").cloned(),
        },
        Some(("intercept", matches)) => Doctor::Intercept(options(matches, Command::Intercept)?),
        Some((_, matches)) => {
            let mut line = Options::default();
            for key in [Key::Map, Key::Intercept, Key::Clients] {
                for text in matches.get_many::<String>(key.name()).into_iter().flatten() {
                    line.give(key, text, Place::CommandLine);
                }
            }
            if matches.get_flag(Key::Json.name()) {
                line.give(Key::Json, "", Place::CommandLine);
            }
            Doctor::Target(line)
        }
    })
}

fn number(placeholder: &'static str) -> Arg {
    Arg::new("value").value_name(placeholder).required(true).allow_negative_numbers(true)
}

/// A command whose options are those of the list.
fn of_options(of: Command) -> clap::Command {
    let mut command =
        clap::Command::new(of.name())
            .arg(Arg::new("file").short('f').long("file").value_name("FILE.toml").help(
            "Read options from this file too; its keys are the long names here, and the command line wins",
        ));
    for (order, key) in Key::ALL.iter().enumerate() {
        let look = key.look();
        let Some(help) = look.help(of) else { continue };
        let mut arg =
            Arg::new(key.name()).long(key.name()).help(help).help_heading(look.group).display_order(order);
        if let Some(letter) = look.short {
            arg = arg.short(letter);
        }
        command = command.arg(match look.takes {
            Takes::Flag => arg.action(ArgAction::SetTrue),
            Takes::One(placeholder) => {
                arg.value_name(placeholder).action(ArgAction::Append).allow_negative_numbers(true)
            }
            Takes::Many(placeholder) => {
                arg.value_name(placeholder).action(ArgAction::Append).allow_negative_numbers(true)
            }
            Takes::Files(placeholder) => {
                Arg::new(key.name()).help(help).help_heading(look.group).value_name(placeholder).num_args(0..)
            }
        });
    }
    command
}

/// The command line's options over the file's.
fn options(matches: &ArgMatches, of: Command) -> Result<Options, Refusal> {
    let mut line = Options::default();
    for key in Key::ALL.iter().filter(|key| key.look().help(of).is_some()) {
        match key.look().takes {
            Takes::Flag if matches.get_flag(key.name()) => line.give(*key, "", Place::CommandLine),
            Takes::Flag => {}
            Takes::One(_) | Takes::Many(_) | Takes::Files(_) => {
                for text in matches.get_many::<String>(key.name()).into_iter().flatten() {
                    line.give(*key, text, Place::CommandLine);
                }
            }
        }
    }
    let Some(path) = matches.get_one::<String>("file") else { return Ok(line) };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let why = crate::words::of_io(&error);
        Refusal::usage(format!("-f {path}: the file cannot be read ({why}). Check its name, or leave -f out"))
    })?;
    Ok(line.over(file::read(path, &text, of)?))
}

fn name(matches: &ArgMatches) -> Result<String, Refusal> {
    let given = text(matches, "name");
    value::name(&given).map_err(|why| Refusal::usage(format!("--name {given}: {why}")))
}

fn order(matches: &ArgMatches) -> Result<Order, Refusal> {
    let (verb, matches) = matches.subcommand().expect("a subcommand is required");
    let number = |read: fn(&str) -> Result<u32, value::Why>| {
        let given = text(matches, "value");
        read(&given).map_err(|why| Refusal::usage(format!("ctl {verb} {given}: {why}")))
    };
    Ok(match verb {
        "pause" => Order::Pause,
        "resume" => Order::Resume,
        "stop" => Order::Stop,
        "upgrade" => Order::Upgrade,
        "halt" => Order::Halt,
        "percent" => Order::Percent(number(planner::percent_ppm)?),
        "copies" => Order::Copies(number(planner::copies_milli)?),
        other => unreachable!("clap accepts only the commands it was given, not {other}"),
    })
}

fn text(matches: &ArgMatches, id: &str) -> String {
    matches.get_one::<String>(id).cloned().unwrap_or_default()
}

/// clap's error as one sentence that says what to do.
fn sentence(error: &clap::Error) -> Refusal {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let arg = || context(ContextKind::InvalidArg).unwrap_or_else(|| "an option".to_owned());
    let help = "`tcptwin --help` lists the commands, `tcptwin COMMAND --help` their options";
    let text = match error.kind() {
        ErrorKind::UnknownArgument => {
            let near = match context(ContextKind::SuggestedArg) {
                Some(near) => format!("Did you mean {near}?"),
                None => help.to_owned(),
            };
            let arg = arg();
            match arg.starts_with('-') {
                true => format!("there is no option {arg} here. {near}"),
                false => format!("`{arg}` belongs to no option. {help}"),
            }
        }
        ErrorKind::InvalidSubcommand => {
            let given = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            match context(ContextKind::SuggestedSubcommand) {
                Some(near) => format!("there is no command `{given}`. Did you mean `{near}`?"),
                None => format!("there is no command `{given}`. {help}"),
            }
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let known = context(ContextKind::ValidSubcommand);
            let known = known.map_or_else(String::new, |known| format!("There are {known}. "));
            format!("which command? {known}{help}")
        }
        ErrorKind::InvalidValue
            if context(ContextKind::InvalidValue).is_none_or(|value| value.is_empty()) =>
        {
            format!("{} has no value. Write one behind it; {help}", arg())
        }
        ErrorKind::ArgumentConflict => {
            format!("{} is given twice, or beside an option that excludes it. Give it once", arg())
        }
        ErrorKind::MissingRequiredArgument => format!("{} is missing. {help}", arg()),
        ErrorKind::InvalidUtf8 => {
            "the command line holds bytes that are no UTF-8 text. Write it in plain characters".to_owned()
        }
        _ => {
            // The first line of clap's own words; it begins with "error: ".
            let whole = error.render().to_string();
            let first = whole.lines().next().unwrap_or_default().trim_start_matches("error: ");
            format!("{first}. {help}")
        }
    };
    Refusal::usage(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Action, Refusal> {
        read_from(line.split_whitespace())
    }

    #[test]
    fn clap_itself_finds_the_command_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn letters_and_long_names_are_the_same_options() {
        let Ok(Action::Run(short)) = read("tcptwin run -x 80-10.0.3.2:8080 -s 10.0.4.2 -n 1.5 -r 10 -i eth0")
        else {
            panic!()
        };
        let Ok(Action::Run(long)) = read(
            "tcptwin run --map 80-10.0.3.2:8080 --intercept 10.0.4.2 --copies 1.5 --percent 10 --interface eth0",
        ) else {
            panic!()
        };
        assert_eq!(short, long);
    }

    #[test]
    fn doctor_has_the_options_of_the_host_it_is_typed_on() {
        let Ok(Action::Doctor(Doctor::Online { options, client: None })) =
            read("tcptwin doctor -x 80-10.0.3.2:8080 -s 10.0.4.2 --json")
        else {
            panic!()
        };
        assert!(options.has(Key::Map) && options.has(Key::Json));
        let one = read("tcptwin doctor --name web 10.0.0.7:40001");
        assert!(
            matches!(&one, Ok(Action::Doctor(Doctor::Online { client: Some(at), .. })) if at == "10.0.0.7:40001"),
            "{one:?}"
        );
        let beside = read("tcptwin doctor intercept -x 10.0.3.2:8080 -i eth0");
        assert!(
            matches!(&beside, Ok(Action::Doctor(Doctor::Intercept(options))) if options.has(Key::Interface))
        );
        let there = read("tcptwin doctor target -x 10.0.3.2:8080 -s 10.0.4.2 -c 198.18.0.0/20");
        assert!(matches!(&there, Ok(Action::Doctor(Doctor::Target(options))) if options.has(Key::Clients)));
    }

    #[test]
    fn orders_are_checked_before_anything_is_sent() {
        for line in ["tcptwin ctl percent 12.5 --name web", "tcptwin ctl --name web percent 12.5"] {
            let Ok(Action::Ctl { order, name }) = read(line) else { panic!("{line}") };
            assert_eq!((order, name.as_str()), (Order::Percent(125_000), "web"));
        }
    }

    #[test]
    fn every_wrong_use_is_a_sentence() {
        for (line, part) in [
            ("tcptwin", "which command?"),
            ("tcptwin rum", "there is no command `rum`. Did you mean `run`?"),
            ("tcptwin replays x", "there is no command `replays`"),
            ("tcptwin run --copis 2", "there is no option --copis here. Did you mean --copies?"),
            ("tcptwin run 80-10.0.3.2:8080", "belongs to no option"),
            ("tcptwin run -x", "has no value"),
            ("tcptwin run --tun", "there is no option --tun here"),
            ("tcptwin intercept -s 10.0.0.1", "there is no option -s here"),
            ("tcptwin ctl", "which command?"),
            ("tcptwin ctl percent", "is missing"),
            ("tcptwin ctl percent 120", "from 0.01 to 100"),
            ("tcptwin ctl copies -1", "up to 1000"),
            ("tcptwin keygen", "is missing"),
            ("tcptwin autopsy", "is missing"),
            ("tcptwin doctor --copis 2", "there is no option --copis here"),
            ("tcptwin doctor target -i eth0", "there is no option -i here"),
            ("tcptwin doctor intercept -s 10.0.0.1", "there is no option -s here"),
            ("tcptwin stats --name a/b", "1 to 32 letters"),
            ("tcptwin run -f /no/such/file.toml", "the file cannot be read (no such file or directory)"),
            ("tcptwin run --quiet=yes", ""),
        ] {
            let refusal = read(line).expect_err(line);
            assert_eq!(refusal.exit, 2, "{line}");
            assert!(refusal.sentence.contains(part), "{line} said: {refusal}");
            assert!(!refusal.sentence.contains("Usage:"), "{line} said: {refusal}");
        }
    }
}
