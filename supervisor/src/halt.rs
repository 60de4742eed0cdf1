//! The kill switch: `tcptwin ctl halt`, or a file that somebody puts in its place. Either way nothing is captured or sent
//! within 100 ms, the run ends, and the file keeps every other of its name from starting until a person removes it.
//!
//! In the order in which it counts: the word `halt`, which every role looks at once a batch; the capture filters, which the
//! supervisor exchanges itself, so that no role need have a core for it; the injector, which is killed when it has not
//! ended by then; the file. Everything else that a run leaves is taken away by its ordinary end (`supervise/ending`).

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use topology::{Options, Refusal, restraint};

use crate::words;

/// How long the injector gets to end by itself. A batch takes a few milliseconds; the rest of the 100 is for a host on
/// which the supervisor has to wait for a core.
pub(crate) const PATIENCE: Duration = Duration::from_millis(40);
/// How long a killed one may take to be gone: it leaves the kernel after the call that it is in.
pub(crate) const DYING_TIME: Duration = Duration::from_millis(50);

/// The file, and who tells when it appears.
#[derive(Debug)]
pub(crate) struct Switch {
    path: PathBuf,
    /// News of its directory. Where there are none (another kind of file system, no watch left), the next tick sees it.
    news: Option<Inotify>,
}

impl Switch {
    /// Watches for the file.
    pub(crate) fn watch(path: PathBuf) -> Self {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).and_then(|news| {
            news.add_watch(directory_of(&path), flags)?;
            Ok(news)
        });
        Self { path, news: news.ok() }
    }

    /// Becomes readable when something appeared beside the file, or the file itself.
    pub(crate) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.news.as_ref().map(|news| news.as_fd())
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is there.
    pub(crate) fn is_thrown(&self) -> bool {
        if let Some(news) = &self.news {
            // What they say is looked at below; unread they would keep the loop awake.
            let _ = news.read_events();
        }
        self.path.symlink_metadata().is_ok()
    }

    /// Puts the file there, with a line about who did; one that is there stays as it is.
    pub(crate) fn throw(&self, by: &str) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        match file {
            Ok(mut file) => writeln!(file, "{by}, {}", moment(SystemTime::now())),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The file of an instance, when nothing of it is halted.
///
/// # Errors
/// It is there: the instance was halted, and nobody has taken that back. Or it has no directory to be put into.
pub(crate) fn file(options: &Options, directory: &Path, name: &str) -> Result<PathBuf, Refusal> {
    let given = restraint::halt_file(options)?;
    let path = given.unwrap_or_else(|| directory.join(format!("{name}.halt")));
    // Roles and the next image may run elsewhere.
    let path = std::path::absolute(&path).unwrap_or(path);
    if !directory_of(&path).is_dir() {
        return Err(Refusal::preflight(format!(
            "--halt-file {}: its directory does not exist, so nobody could put it there in an emergency. Make it, or name another",
            path.display()
        )));
    }
    match path.symlink_metadata() {
        Ok(_) => Err(Refusal::preflight(halted(&path, name))),
        Err(_) => Ok(path),
    }
}

/// Why nothing of this name starts.
fn halted(path: &Path, name: &str) -> String {
    let note = std::fs::read_to_string(path).unwrap_or_default();
    // A file that somebody made with `touch` says nothing.
    let why = note.lines().next().map(str::trim).filter(|line| !line.is_empty() && line.len() < 200);
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    format!(
        "the run {name} was halted{why}, and stays so while {0} is there. To start again: rm {0}",
        path.display()
    )
}

/// How to take it back, as the end of a sentence.
pub(crate) fn to_clear(path: &Path) -> String {
    format!("no run of this name starts while {0} is there. To start again: rm {0}", path.display())
}

/// Why the file could not be written, as the end of a sentence.
pub(crate) fn not_sticky(path: &Path, error: &io::Error) -> String {
    format!(
        "{} could not be written ({}), so nothing keeps it from being started again",
        path.display(),
        words::of_io(error)
    )
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Seconds since 1970: whoever reads it knows `date -d @…`, and a calendar is no work for a kill switch.
fn moment(now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("at {} s since 1970", since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use topology::{Key, Place};

    struct Room(PathBuf);

    impl Room {
        fn new(tag: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("tcptwin-halt-{tag}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_that_appears_wakes_and_is_seen() {
        let room = Room::new("appears");
        let switch = Switch::watch(room.0.join("a.halt"));
        let wakes = |ms: u16| {
            let mut fds = [PollFd::new(switch.news().unwrap(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(ms)) == Ok(1)
        };
        assert!(!wakes(0) && !switch.is_thrown());
        std::fs::write(room.0.join("b.halt"), "").unwrap();
        assert!(wakes(1_000) && !switch.is_thrown(), "another's");
        assert!(!wakes(0), "what was read wakes no more");
        std::fs::write(room.0.join("elsewhere"), "").unwrap();
        assert!(wakes(1_000) && !switch.is_thrown());
        std::fs::rename(room.0.join("elsewhere"), switch.path()).unwrap();
        assert!(wakes(1_000) && switch.is_thrown());
    }

    #[test]
    fn what_is_halted_stays_so_until_the_file_is_removed() {
        let room = Room::new("stays");
        let of = || file(&Options::default(), &room.0, "web");
        let path = of().unwrap();
        assert_eq!(path, room.0.join("web.halt"));
        Switch::watch(path.clone()).throw("by tcptwin ctl halt").unwrap();
        let refusal = of().unwrap_err();
        assert_eq!(refusal.exit, 3);
        assert!(refusal.sentence.contains("halted (by tcptwin ctl halt, at "), "{refusal}");
        assert!(refusal.sentence.ends_with(&format!("rm {}", path.display())), "{refusal}");
        Switch::watch(path.clone()).throw("again").unwrap();
        assert!(of().unwrap_err().sentence.contains("by tcptwin ctl halt"), "the first word stays");
        std::fs::remove_file(&path).unwrap();
        of().unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(of().unwrap_err().sentence.contains("web was halted, and stays so"));
    }

    #[test]
    fn a_file_that_could_not_be_put_there_is_refused() {
        let room = Room::new("nowhere");
        let mut options = Options::default();
        let there = room.0.join("no/such/directory/stop");
        options.give(Key::HaltFile, there.to_str().unwrap(), Place::CommandLine);
        let refusal = file(&options, &room.0, "web").unwrap_err();
        assert!(refusal.sentence.contains("its directory does not exist"), "{refusal}");
    }
}
