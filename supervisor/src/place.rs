//! Where an instance keeps its lock and its control socket: `/run/tcptwin` for root, else `$XDG_RUNTIME_DIR/tcptwin`,
//! else a directory of this user's own under /tmp (root of an unprivileged user namespace has neither).
//!
//! A login session's directory (/run/user/UID) vanishes when its user logs out, so root's instances do not live there
//! even where the variable says so; one that was set to another place was set on purpose, and comes first.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The directories in which an instance of this user, or of root, may be found; the first usable one is where a new
/// instance goes.
pub(crate) fn candidates() -> Vec<PathBuf> {
    let mut list = vec![PathBuf::from("/run/tcptwin")];
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        let of_session = Path::new(&dir).starts_with("/run/user");
        list.insert(usize::from(of_session), Path::new(&dir).join("tcptwin"));
    }
    list.push(PathBuf::from(format!("/tmp/tcptwin-{}", nix::unistd::getuid())));
    list
}

/// The directory for a new instance, made when it is missing: the first candidate that is this user's own and writable.
pub(crate) fn directory() -> Result<PathBuf, String> {
    let mut why = String::new();
    for dir in candidates() {
        match own(&dir) {
            Ok(()) => return Ok(dir),
            Err(reason) => why = format!("{}: {reason}", dir.display()),
        }
    }
    Err(format!(
        "there is no directory for the control socket ({why}). Run as root, or set XDG_RUNTIME_DIR to a directory of your own"
    ))
}

/// The control socket of an instance, if it has one here.
pub(crate) fn socket_of(name: &str) -> Option<PathBuf> {
    candidates()
        .into_iter()
        .map(|dir| dir.join(format!("{name}.sock")))
        .find(|path| path.symlink_metadata().is_ok())
}

/// Names of the instances that answer at a control socket here. A killed one leaves its socket behind.
pub(crate) fn instances() -> Vec<String> {
    let mut names: Vec<String> = candidates()
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten()
        .filter(|entry| UnixStream::connect(entry.path()).is_ok())
        .filter_map(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_suffix(".sock")).map(str::to_owned)
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn own(dir: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| crate::words::of_io(&error))?;
    let about = fs::symlink_metadata(dir).map_err(|error| crate::words::of_io(&error))?;
    if !about.is_dir() || about.uid() != nix::unistd::geteuid().as_raw() {
        return Err("it belongs to another user".to_owned());
    }
    if about.mode() & 0o022 != 0 {
        return Err(format!("others may write there (mode {:04o})", about.mode() & 0o7777));
    }
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK)
        .map_err(|error| crate::words::of_io(&error.into()))
}
