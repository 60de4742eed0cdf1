//! What is open in this process (proc_pid_fd(5)).

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use crate::sys;

/// Where the kernel lists them.
const LIST: &str = "/proc/self/fd";

/// One open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: RawFd,
    /// What it is of: a path, or `socket:[17]`.
    pub of: String,
}

/// All of them, by number.
///
/// # Errors
/// There is no /proc to ask.
pub fn opened() -> io::Result<Vec<Descriptor>> {
    let number =
        |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    let numbers: Vec<Option<RawFd>> = fs::read_dir(LIST)?.map(number).collect::<io::Result<_>>()?;
    // The one that read the list is closed by now, and is none.
    let look = |number: RawFd| {
        let of = fs::read_link(Path::new(LIST).join(number.to_string())).ok()?;
        Some(Descriptor { number, of: of.display().to_string() })
    };
    let mut all: Vec<Descriptor> = numbers.into_iter().flatten().filter_map(look).collect();
    all.sort_unstable_by_key(|descriptor| descriptor.number);
    Ok(all)
}

/// Closes, in programs that this process starts from here on, what whoever started this one had left open; but for the three that
/// everybody has, and `but`.
///
/// # Errors
/// There is no /proc to ask.
pub fn keep_from_children(but: &[RawFd]) -> io::Result<()> {
    for Descriptor { number, .. } in opened()? {
        if number > 2 && !but.contains(&number) {
            sys::close_on_exec(number)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn what_is_open_is_listed_and_what_is_closed_is_not() {
        let file = fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        let listed = || opened().unwrap().iter().any(|one| one.number == number && one.of == "/dev/null");
        assert!(listed());
        let all = opened().unwrap();
        // Other tests open and close theirs meanwhile; the list's own is never among them.
        assert!(all.iter().all(|one| !one.of.ends_with("/fd")), "{all:?}");
    }
}
