//! One instance a name: a lock on DIR/NAME.lock that every role inherits.
//!
//! The lock (flock(2)) belongs to the open file description, so it is free only when the last process that inherited the
//! descriptor is gone: a supervisor that gets it knows that no role of the old instance lives, which pids cannot prove.
//! The descriptor is therefore not close-on-exec, and nothing ever unlocks it: it is closed or it is held.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::sys::inherit;

/// Why the lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error(
        "an instance named {name} runs already{}: stop it (tcptwin ctl --name {name} stop), or start this one with another --name",
        held_by.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The instance's name.
        name: String,
        /// The supervisor that locked it, if it could write its pid; a role of it may have outlived it.
        held_by: Option<u32>,
    },
    /// The system refused.
    #[error("{what} {} failed: {source}; the lock file needs a directory that this user can write", path.display())]
    Os {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl LockError {
    /// The supervisor's pid as it stands in the lock file, when somebody holds it.
    pub const fn held_by(&self) -> Option<u32> {
        match self {
            Self::Held { held_by, .. } => *held_by,
            Self::Os { .. } => None,
        }
    }
}

/// The lock, held as long as this or any inherited copy of its descriptor is open.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock of instance `name` in `dir`, which is made (0700) when it is missing. Does not wait.
    pub fn acquire(name: &str, dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(format!("{name}.lock"));
        let os = |what, source: io::Error| LockError::Os { what, path: path.clone(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| os("making the directory of", source))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| os("opening", source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let held_by = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Held { name: name.into(), held_by });
            }
            Err(TryLockError::Error(source)) => return Err(os("locking", source)),
        }
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|errno| os("making inheritable", errno.into()))?;
        let pid = std::process::id();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{pid}"))
            .map_err(|source| os("writing", source))?;
        Ok(Self { file, path })
    }

    /// Takes the lock over from the image of this process that acquired it and handed its descriptor down.
    pub fn inherit(name: &str, dir: &Path, number: RawFd) -> Result<Self, LockError> {
        let path = dir.join(format!("{name}.lock"));
        let os = |what, source: io::Error| LockError::Os { what, path: path.clone(), source };
        let file = File::from(inherit(number).map_err(|source| os("taking over", source))?);
        let same = |file: &File| {
            let (ours, there) = (file.metadata()?, path.metadata()?);
            Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        };
        if !same(&file).map_err(|source| os("looking at", source))? {
            return Err(os("taking over", io::Error::other("the descriptor is of another file")));
        }
        // The same open file description has it already; another's lock would be in the way.
        file.try_lock().map_err(|error| os("locking", error.into()))?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|errno| os("making inheritable", errno.into()))?;
        Ok(Self { file, path })
    }

    /// Where it stands. The file stays when the lock goes: removing it would let two instances lock two files.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
