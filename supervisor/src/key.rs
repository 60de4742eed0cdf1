//! The pre-shared key of the return channel: 32 random bytes as 64 hexadecimal digits in a file that its owner alone
//! may read.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use topology::{Key, Options, Refusal};

use crate::words;

/// Where a key is found without `--key`.
pub(crate) const USUAL_PLACE: &str = "/etc/tcptwin/key";

/// The key that `--key` names, or the one that a service manager hands down, or the one in the usual place; none with
/// `--plain` or where there is none.
///
/// # Errors
/// One sentence, exit code 2: the file cannot be read, is open to others, or holds no key.
pub(crate) fn of_options(options: &Options) -> Result<Option<[u8; 32]>, Refusal> {
    if options.has(Key::Plain) {
        return Ok(None);
    }
    match options.one(Key::KeyFile) {
        Some(given) => read(Path::new(&given.text)).map(Some).map_err(|why| given.refuse(why)),
        None => {
            // One that may not be looked at is there, and the reading will say why it cannot be used.
            let is_there = |place: &PathBuf| place.try_exists().unwrap_or(true);
            let handed_down = credential().filter(|place| !stands_for_none(place));
            let found = handed_down.into_iter().chain([PathBuf::from(USUAL_PLACE)]).find(is_there);
            // A key that stands there but cannot be used is said, not passed over: it was meant.
            found.map(|place| read(&place).map_err(|why| unusable(&place, &why))).transpose()
        }
    }
}

/// The key among the credentials of this service (systemd.exec(5), LoadCredential=key:FILE).
fn credential() -> Option<PathBuf> {
    Some(Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join("key"))
}

/// What the units hand down where there is no key: a credential whose file is missing would end the service before this program
/// could say a word (systemd.exec(5), SetCredential=, has the value that is taken then).
fn stands_for_none(place: &Path) -> bool {
    fs::read_to_string(place).is_ok_and(|text| text.trim() == "none")
}

fn unusable(place: &Path, why: &str) -> Refusal {
    Refusal::usage(format!("{}: {why}, or give --plain to do without a key", place.display()))
}

/// Writes a new key to a file that must not exist.
pub(crate) fn make(file: &str) -> anyhow::Result<()> {
    let path = Path::new(file);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        fs::create_dir_all(parent).with_context(|| {
            format!(
                "making the directory {} failed. Choose another place, or run with sudo",
                parent.display()
            )
        })?;
    }
    let mut key = [0; 32];
    random(&mut key)?;
    let mut made = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(made) => made,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!(
                "{file} exists already and is not overwritten: hosts may use it. Choose another name, or remove it first"
            )
        }
        Err(error) => {
            bail!("writing {file} failed ({}). Choose another place, or run with sudo", words::of_io(&error))
        }
    };
    writeln!(made, "{}", hex(&key))
        .and_then(|()| made.sync_all())
        .with_context(|| format!("writing {file} failed"))?;
    println!("{file}: a new key, readable by its owner only.");
    println!("Copy it to the other host by a safe way (scp), and give both ends --key FILE");
    println!("(not needed where it stands in {USUAL_PLACE}).");
    Ok(())
}

/// Fills a buffer with random bytes of the kernel.
pub(crate) fn random(bytes: &mut [u8]) -> anyhow::Result<()> {
    let mut source = fs::File::open("/dev/urandom")
        .context("opening /dev/urandom failed; without random numbers nothing can start")?;
    source.read_exact(bytes).context("reading /dev/urandom failed; without random numbers nothing can start")
}

fn read(path: &Path) -> Result<[u8; 32], String> {
    let why = |error: &std::io::Error| {
        let hint = if error.kind() == ErrorKind::PermissionDenied {
            "Run with sudo"
        } else {
            "Make one with `tcptwin keygen FILE`"
        };
        format!("the key cannot be read ({}). {hint}", words::of_io(error))
    };
    let file = fs::File::open(path).map_err(|error| why(&error))?;
    let about = file.metadata().map_err(|error| why(&error))?;
    if !about.is_file() {
        return Err("this is no file. Make a key with `tcptwin keygen FILE`".to_owned());
    }
    let mode = about.permissions().mode();
    // Who may open a credential is the service manager's word: it may be an access list, which shows as the group's bits.
    if mode & 0o077 != 0 && credential().as_deref() != Some(path) {
        return Err(format!(
            "others may open this key (mode {:04o}). Run: chmod 600 {}",
            mode & 0o7777,
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(1024).read_to_string(&mut text).map_err(|error| why(&error))?;
    parse(text.trim()).ok_or_else(|| {
        "this is not a key: a key is one line of 64 hexadecimal digits. Make one with `tcptwin keygen FILE`".to_owned()
    })
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let dir = std::env::temp_dir().join(format!("tcptwin-key-{}", std::process::id()));
        let path = dir.join("key");
        make(path.to_str().unwrap()).unwrap();
        let key = read(&path).unwrap();
        assert_ne!(key, [0; 32]);
        assert!(make(path.to_str().unwrap()).unwrap_err().to_string().contains("not overwritten"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap_err().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(read(&path).unwrap_err().contains("64 hexadecimal digits"));
        fs::remove_dir_all(&dir).unwrap();
        assert!(read(&path).unwrap_err().contains("no such file"));
    }

    #[test]
    fn the_units_word_for_no_key_is_none() {
        let scratch = lab::scratch::Scratch::new("key").unwrap();
        let file = scratch.file("key");
        for (text, is_none) in [("none", true), ("none\n", true), ("", false), (&"0f".repeat(32), false)] {
            fs::write(&file, text).unwrap();
            assert_eq!(stands_for_none(&file), is_none, "{text}");
        }
        assert!(!stands_for_none(&scratch.file("absent")));
    }

    #[test]
    fn only_64_digits_are_a_key() {
        assert_eq!(parse(&"0f".repeat(32)), Some([15; 32]));
        assert_eq!(parse(&"0g".repeat(32)), None);
        assert_eq!(parse(&"é".repeat(32)), None);
        assert_eq!(parse(""), None);
    }
}
