//! A directory of one's own, removed with the value.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A directory only its owner can read.
pub struct Scratch {
    path: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    /// Makes `lab-PURPOSE-PID-N` in the system's directory for temporary files.
    pub fn new(purpose: &str) -> io::Result<Self> {
        Self::within(&std::env::temp_dir(), purpose)
    }

    /// The same in memory, where the system has what lives as long as it runs (file-hierarchy(7), `/run/`): no disk holds up who
    /// uses it.
    pub fn in_memory(purpose: &str) -> io::Result<Self> {
        Self::within(Path::new("/dev/shm"), purpose)
    }

    fn within(parent: &Path, purpose: &str) -> io::Result<Self> {
        let n = NEXT.fetch_add(1, Relaxed);
        let path = parent.join(format!("lab-{purpose}-{}-{n}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| io::Error::new(e.kind(), format!("making directory {}: {e}", path.display())))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it any more; what cannot be removed stays in the temporary directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}
