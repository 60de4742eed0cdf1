//! One instance a name, held until the last process that inherited the lock is gone.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shm::{LockError, LockFile};

/// The lock is inherited by every process that is started while it is held, so only one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory of this test's own.
struct Dir(PathBuf, #[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Dir {
    fn new(test: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self(std::env::temp_dir().join(format!("tcptwin-lock-{test}-{}", std::process::id())), alone)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_second_is_told_who_holds_it() {
    let dir = Dir::new("second");
    let held = LockFile::acquire("default", &dir.0).unwrap();
    assert_eq!(held.path(), dir.0.join("default.lock"));
    let error = LockFile::acquire("default", &dir.0).unwrap_err();
    assert_eq!(error.held_by(), Some(std::process::id()));
    let text = error.to_string();
    assert!(text.contains("default") && text.contains(&format!("pid {}", std::process::id())), "{text}");
    LockFile::acquire("another", &dir.0).unwrap();
    drop(held);
    LockFile::acquire("default", &dir.0).unwrap();
}

#[test]
fn a_child_that_outlives_us_keeps_it() {
    let dir = Dir::new("child");
    let held = LockFile::acquire("default", &dir.0).unwrap();
    // Ends when its standard input does.
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    drop(held);
    assert!(matches!(LockFile::acquire("default", &dir.0), Err(LockError::Held { .. })));
    drop(child.stdin.take());
    child.wait().unwrap();
    LockFile::acquire("default", &dir.0).unwrap();
}

#[test]
fn a_directory_that_cannot_be_is_a_sentence() {
    let text = LockFile::acquire("default", "/proc/nowhere".as_ref()).unwrap_err().to_string();
    assert!(text.contains("/proc/nowhere/default.lock"), "{text}");
}
