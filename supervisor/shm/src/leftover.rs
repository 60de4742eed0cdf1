//! The file that stands under an instance's name: whose it is and whether it can be trusted. Asked before creating (is a
//! leftover of a dead instance in the way?) and before attaching.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::RegionError;
use crate::header::{Words, boot_id};

/// What stands under a name in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing.
    None,
    /// A region of this user. Whether its instance still lives is for the lock to say ([`crate::LockFile`]).
    Ours {
        /// Its instance number.
        instance: u64,
        /// How often a supervisor took it over, the creator included.
        epoch: u64,
        /// Made since this machine booted.
        boot_id_matches: bool,
        /// Complete and laid out as this program would; a successor could adopt it. Otherwise: why not.
        usable: Result<(), String>,
    },
    /// Another user's, open to others, or no region at all: not to be touched.
    Foreign {
        /// What is wrong with it, a half sentence.
        why: String,
    },
}

/// Looks at the file without mapping it.
pub(crate) fn inspect(path: &Path) -> Result<Leftover, RegionError> {
    match checked(path) {
        Ok((words, bytes)) => Ok(Leftover::Ours {
            instance: words.instance,
            epoch: words.epoch,
            boot_id_matches: words.boot_id == boot_id(),
            usable: words.layout(bytes).map(|_| ()),
        }),
        Err(RegionError::NotFound { .. }) => Ok(Leftover::None),
        Err(RegionError::Foreign { why, .. }) => Ok(Leftover::Foreign { why }),
        Err(other) => Err(other),
    }
}

/// The header of a file that belongs to this user and to nobody else, and the file's size.
///
/// Once this holds it goes on to hold: the directory is sticky, so that nobody else can put another file under the name.
pub(crate) fn checked(path: &Path) -> Result<(Words, u64), RegionError> {
    let os = |what, source: io::Error| RegionError::Os { what, path: path.into(), source };
    let foreign = |why: String| RegionError::Foreign { path: path.into(), why };
    // By its own metadata first: another user's file may not be readable at all.
    let seen = match path.symlink_metadata() {
        Ok(seen) => seen,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
            return Err(RegionError::NotFound { path: path.into() });
        }
        Err(other) => return Err(os("looking at", other)),
    };
    if !seen.is_file() {
        return Err(foreign("it is not a regular file".into()));
    }
    let me = nix::unistd::geteuid().as_raw();
    if seen.uid() != me {
        return Err(foreign(format!("it belongs to uid {}, this program runs as {me}", seen.uid())));
    }
    if seen.mode() & 0o077 != 0 {
        return Err(foreign(format!("other users may open it (mode {:04o})", seen.mode() & 0o7777)));
    }
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| os("opening", source))?;
    let mut first = [0; size_of::<Words>()];
    let words = match file.read_exact(&mut first) {
        Ok(()) => Words::from_file(&first).expect("as many bytes as words take"),
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(foreign("it is too short to be one".into()));
        }
        Err(other) => return Err(os("reading", other)),
    };
    // A creator killed before it wrote the magic leaves zeros: ours by its name, owner and mode.
    if !words.is_ours() && first != [0; size_of::<Words>()] {
        return Err(foreign("it does not begin like one".into()));
    }
    Ok((words, seen.len()))
}
