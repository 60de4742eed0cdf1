//! The configuration file (`-f FILE.toml`): one flat TOML table whose keys are the long names of the options.
//!
//! Read through the document tree instead of a serde struct, because every slip must name its line, and a number must
//! reach the planner as it was written (`copies = 1.10`), not as a binary fraction.

use toml::de::{DeTable, DeValue};

use crate::Refusal;
use crate::look::{Command, Takes};
use crate::options::{Key, Options, Place};

/// Reads the text of a file called `file` as options of `command`.
///
/// # Errors
/// Syntax errors, unknown keys (with the nearest known one), keys of another command and values of a wrong type, each
/// with file and line, exit code 2.
pub fn read(file: &str, text: &str, command: Command) -> Result<Options, Refusal> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let reason = error.message().lines().next().unwrap_or("not TOML");
        Refusal::usage(format!(
            "{file}, line {line}: this is not TOML ({reason}). Write KEY = VALUE, for example copies = 1.5"
        ))
    })?;
    let mut options = Options::default();
    // The tree is sorted by key; a person reads from the top, and the first slip is the one to name.
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (name, value) in entries {
        let line = line_of(text, name.span().start);
        let place = Place::File { file: file.to_owned(), line };
        let key = known(file, line, name.get_ref(), command)?;
        take(&mut options, key, value.get_ref(), &place).map_err(|wanted| {
            Refusal::usage(format!(
                "{file}, line {line}: `{}` takes {wanted}, but this is {}. Write for example {}",
                key.name(),
                kind(value.get_ref()),
                example(key)
            ))
        })?;
    }
    Ok(options)
}

fn known(file: &str, line: usize, name: &str, command: Command) -> Result<Key, Refusal> {
    let verb = command.name();
    match Key::by_name(name) {
        Some(key) if key.look().help(command).is_some() => Ok(key),
        Some(_) => Err(Refusal::usage(format!(
            "{file}, line {line}: `{name}` is not an option of `tcptwin {verb}`. Leave it out; `tcptwin {verb} --help` lists what there is"
        ))),
        None => {
            let hint = match Key::nearest(name, command) {
                Some(near) => format!("Did you mean `{}`?", near.name()),
                None => format!("`tcptwin {verb} --help` lists what there is"),
            };
            Err(Refusal::usage(format!("{file}, line {line}: there is no option `{name}`. {hint}")))
        }
    }
}

/// Adds the value, or says what the option takes.
fn take(options: &mut Options, key: Key, value: &DeValue<'_>, place: &Place) -> Result<(), &'static str> {
    match (key.look().takes, value) {
        (Takes::Flag, DeValue::Boolean(set)) => {
            if *set {
                options.give(key, "", place.clone());
            }
            Ok(())
        }
        (Takes::Flag, _) => Err("true or false"),
        (Takes::One(_), value) => {
            options.give(key, &scalar(value).ok_or("one text or number")?, place.clone());
            Ok(())
        }
        (Takes::Many(_) | Takes::Files(_), DeValue::Array(values)) => {
            for value in values.iter() {
                options.give(
                    key,
                    &scalar(value.get_ref()).ok_or("a text or a list of texts")?,
                    place.clone(),
                );
            }
            Ok(())
        }
        (Takes::Many(_) | Takes::Files(_), value) => {
            options.give(key, &scalar(value).ok_or("a text or a list of texts")?, place.clone());
            Ok(())
        }
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn example(key: Key) -> String {
    let name = key.name();
    match key {
        Key::Map => format!("{name} = [\"80-10.0.3.2:8080\"]"),
        Key::Copies => format!("{name} = 1.5"),
        Key::Percent | Key::Shards => format!("{name} = 2"),
        _ => match key.look().takes {
            Takes::Flag => format!("{name} = true"),
            Takes::One(_) => format!("{name} = \"...\""),
            Takes::Many(_) | Takes::Files(_) => format!("{name} = [\"...\"]"),
        },
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_examples_hold_and_so_does_each_line_that_they_leave_out() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/examples");
        for (name, command) in [("web.toml", Command::Run), ("intercept.toml", Command::Intercept)] {
            let text = std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
            read(name, &text, command).unwrap();
            let left_out = |line: &&str| line.strip_prefix('#').is_some_and(|rest| !rest.starts_with(' '));
            let lines: Vec<&str> = text.lines().filter(left_out).collect();
            assert!(!lines.is_empty(), "{name} shows nothing more");
            for line in lines {
                read(name, &line[1..], command).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
            }
        }
    }

    #[test]
    fn texts_numbers_lists_and_flags_are_read_with_their_lines() {
        let text = "# production\nmap = [\"80-10.0.3.2:8080\", \"81-10.0.3.2:8081\"]\ncopies = 1.10\nshards = 2\nkeep-clients = true\nno-wait = false\n";
        let options = read("live.toml", text, Command::Run).unwrap();
        assert_eq!(options.all(Key::Map).count(), 2);
        let copies = options.one(Key::Copies).unwrap();
        assert_eq!(copies.text, "1.10");
        assert_eq!(copies.place, Place::File { file: "live.toml".into(), line: 3 });
        assert!(options.has(Key::KeepClients) && !options.has(Key::NoWait));
    }

    #[test]
    fn every_slip_names_file_and_line_and_what_to_write() {
        for (text, line, part) in [
            ("copys = 2", 1, "Did you mean `copies`?"),
            ("\n\nfoo = 1", 3, "there is no option `foo`"),
            ("keep_clients = true", 1, "Did you mean `keep-clients`?"),
            ("\nmap = 80 - 10", 2, "not TOML"),
            ("map = [\"80-10.0.3.2:8080\"", 1, "not TOML"),
            ("copies = true", 1, "takes one text or number"),
            ("copies = [1, 2]", 1, "takes one text or number, but this is a list"),
            ("plain = \"yes\"", 1, "takes true or false"),
            ("map = [1, [2]]", 1, "a list of texts"),
            ("[run]\ncopies = 1", 1, "there is no option `run`"),
            ("[map]\na = 1", 1, "this is a table"),
            ("tun = true", 1, "not an option of `tcptwin run`"),
            ("copies = 1\ncopies = 2", 2, "not TOML"),
            ("shards = 0x10", 1, "takes one text or number"),
            ("rtt = 2026-01-01", 1, "this is a date"),
        ] {
            let refusal = read("live.toml", text, Command::Run).unwrap_err();
            assert_eq!(refusal.exit, 2);
            assert!(
                refusal.sentence.starts_with(&format!("live.toml, line {line}: ")),
                "{}",
                refusal.sentence
            );
            assert!(refusal.sentence.contains(part), "{text:?}: {}", refusal.sentence);
        }
    }

    #[test]
    fn the_first_slip_from_the_top_is_named() {
        let refusal = read("live.toml", "zzz = 1\naaa = 2\n", Command::Run).unwrap_err();
        assert!(refusal.sentence.contains("`zzz`"), "{}", refusal.sentence);
    }

    #[test]
    fn the_command_line_wins_over_a_file() {
        let file =
            read("live.toml", "copies = 3\npercent = 5.5\nclients = \"198.18.0.0/20\"\n", Command::Run)
                .unwrap();
        let mut line = Options::default();
        line.give(Key::Copies, "2", Place::CommandLine);
        line.give(Key::KeepClients, "", Place::CommandLine);
        let both = line.over(file);
        assert_eq!(both.one(Key::Copies).unwrap().text, "2");
        assert_eq!(both.one(Key::Percent).unwrap().text, "5.5");
        assert!(!both.has(Key::Clients));
    }
}
