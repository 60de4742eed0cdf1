//! The directory: what files are called, what a dead recorder left, and the total.
//!
//! `tcptwin-20260131T120000.000000001Z-NAME-HHHHHHHHRRRRRRRR.pcapng[.zst]`, and `.part` behind it while it is written: the time of
//! the first packet, the instance, numbers of host and run. So files sort by time and instance, and no two recorders choose the
//! same name. Ours are those of this name and host, whatever run they are of; nothing else is ever touched. A part that somebody
//! writes is locked (flock), so it is told from one whose writer died.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::Owner;
use crate::tally::{Figure, Tally};

const BEGIN: &str = "tcptwin-";
/// Length of a time in a name.
const TIME: usize = "20260131T120000.000000001Z".len();
/// While it is written.
const PART: &str = ".part";
const PLAIN: &str = ".pcapng";
pub(crate) const COMPRESSED: &str = ".pcapng.zst";
/// Names tried for one file, each a nanosecond later.
const TRIES: u64 = 1_000;

/// Why a directory cannot be recorded into.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be recorded into ({source}). Name a directory that this user may write, on a disk with room", directory.display())]
pub struct PrepareError {
    directory: PathBuf,
    source: io::Error,
}

/// Makes the directory where there is none, for its owner alone: the files hold what the clients sent. Insists that a file can be
/// made there.
///
/// # Errors
/// A sentence.
pub fn prepare(directory: &Path) -> Result<(), PrepareError> {
    let failed = |source| PrepareError { directory: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let probe = directory.join(format!(".tcptwin-probe-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe);
    made.and_then(|_| fs::remove_file(&probe)).map_err(failed)
}

/// One owner's files of one directory.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    owner: Owner,
}

/// A file that was made to be written.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) file: File,
    /// Its path while it is written.
    pub(crate) part: PathBuf,
    /// Its path when it is whole.
    pub(crate) whole: PathBuf,
}

impl Store {
    pub(crate) const fn new(directory: PathBuf, owner: Owner) -> Self {
        Self { directory, owner }
    }

    /// A new file whose first packet was seen at `time_ns`, locked.
    pub(crate) fn make(&self, time_ns: u64, zstd: bool) -> io::Result<Made> {
        let Owner { name, host, run } = &self.owner;
        let end = if zstd { COMPRESSED } else { PLAIN };
        for time_ns in (time_ns..=u64::MAX).take(TRIES as usize) {
            let whole = format!("{BEGIN}{}-{name}-{host:08x}{run:08x}{end}", written(time_ns));
            let (part, whole) = (self.directory.join(format!("{whole}{PART}")), self.directory.join(whole));
            if whole.exists() {
                continue;
            }
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part) {
                Ok(file) => {
                    // Where there are no locks, nobody can be told that it is being written; so be it.
                    let _ = file.try_lock();
                    return Ok(Made { file, part, whole });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// The file that a dead recorder of this run was writing, if it was: the newest, and a part still.
    pub(crate) fn left(&self) -> Option<PathBuf> {
        let run = format!("{:08x}.", self.owner.run);
        let is_of_it =
            |file: &Found| file.path.file_name().is_some_and(|name| name.to_string_lossy().contains(&run));
        self.files().into_iter().rfind(is_of_it).filter(|file| file.is_part).map(|file| file.path)
    }

    /// Gives parts whose writer died their final name; they can be read up to where they end. Says how many.
    pub(crate) fn finish_leftovers(&self) -> u64 {
        let parts = self.files().into_iter().filter(|file| file.is_part);
        parts.map(|part| u64::from(self.finish(&part.path))).sum()
    }

    fn finish(&self, part: &Path) -> bool {
        let shown = part.display();
        let Ok(file) = File::open(part) else { return false };
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return false;
        }
        let whole = part.with_extension("");
        let done = match file.metadata() {
            Ok(meta) if meta.len() == 0 => fs::remove_file(part),
            _ if whole.exists() => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            _ => fs::rename(part, &whole),
        };
        match done {
            Ok(()) => {
                tracing::info!(
                    "a recorder had died while it wrote {shown}; the file is readable up to there and has its name now"
                );
                true
            }
            Err(error) => {
                tracing::warn!(
                    "{shown} is of a dead recorder and cannot be given its name ({error}); it is left as it is"
                );
                false
            }
        }
    }

    /// Removes the oldest whole files until all of them and `reserve` bytes more stay within `keep`.
    pub(crate) fn make_room(&self, keep: u64, reserve: u64, tally: Tally) {
        let files = self.files();
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        for file in files.iter().filter(|file| !file.is_part) {
            if total.saturating_add(reserve) <= keep {
                return;
            }
            let shown = file.path.display();
            match fs::remove_file(&file.path) {
                Ok(()) => {
                    tracing::info!(
                        "removed the oldest recording {shown} ({} bytes) to stay within --keep",
                        file.bytes
                    );
                    total -= file.bytes;
                    tally.add(Figure::RemovedFiles, 1);
                    tally.add(Figure::RemovedBytes, file.bytes);
                }
                Err(error) => tracing::warn!(
                    "the oldest recording {shown} cannot be removed ({error}): --keep may be exceeded"
                ),
            }
        }
    }

    /// Ours, oldest first. A directory that cannot be read has none: the next write says what is wrong with it.
    fn files(&self) -> Vec<Found> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut found: Vec<Found> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let is_part = self.is_ours(&name)?;
                // Of the entry itself: a link is none of ours.
                let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                Some(Found { path: entry.path(), is_part, bytes: meta.len() })
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Whether a file of this name is ours, and if so, whether it is a part.
    fn is_ours(&self, file: &str) -> Option<bool> {
        let (whole, is_part) = match file.strip_suffix(PART) {
            Some(whole) => (whole, true),
            None => (file, false),
        };
        let stem = whole.strip_suffix(COMPRESSED).or_else(|| whole.strip_suffix(PLAIN))?;
        let rest = stem.strip_prefix(BEGIN)?;
        let (time, rest) = rest.split_at_checked(TIME)?;
        let (name, numbers) = rest.strip_prefix('-')?.rsplit_once('-')?;
        let digit = |byte: u8| byte.is_ascii_digit();
        let is_time = time
            .bytes()
            .zip("20260131T120000.000000001Z".bytes())
            .all(|(byte, form)| if digit(form) { digit(byte) } else { byte == form });
        let is_number = numbers.len() == 16 && numbers.bytes().all(|byte| byte.is_ascii_hexdigit());
        let host = format!("{:08x}", self.owner.host);
        (is_time && is_number && name == self.owner.name && numbers.starts_with(&host)).then_some(is_part)
    }
}

/// A file of ours.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    is_part: bool,
    bytes: u64,
}

/// `20260131T120000.000000001Z`.
fn written(time_ns: u64) -> String {
    let (seconds, ns) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{ns:09}Z")
}

/// Year, month and day of a day since the Unix epoch; years begin in March, so that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, of_era) = (days / ERA, days % ERA);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use lab::scratch::Scratch;

    fn tally() -> Tally {
        Tally::new(Vec::leak((0..Figure::COUNT).map(|_| AtomicU64::new(0)).collect()))
    }

    fn owner(name: &str) -> Owner {
        Owner { name: name.to_owned(), host: 0xabc, run: 7 }
    }

    fn store(scratch: &Scratch, name: &str) -> Store {
        Store::new(scratch.path().to_owned(), owner(name))
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        assert_eq!(written(0), "19700101T000000.000000000Z");
        assert_eq!(written(951_782_400_000_000_001), "20000229T000000.000000001Z");
        assert_eq!(written(1_769_860_799_999_999_999), "20260131T115959.999999999Z");
        assert_eq!(written(4_107_542_400_000_000_000), "21000301T000000.000000000Z");
    }

    #[test]
    fn names_sort_by_time_and_never_meet() {
        let scratch = Scratch::new("recordings").unwrap();
        let (ours, run) = (store(&scratch, "a-b"), Owner { run: 8, ..owner("a-b") });
        let other = Store::new(scratch.path().to_owned(), run);
        let made: Vec<Made> =
            [ours.make(5, false), ours.make(5, false), other.make(5, true), ours.make(9, true)]
                .map(Result::unwrap)
                .into();
        let mut names: Vec<_> = made.iter().map(|made| made.whole.clone()).collect();
        let in_order = [&names[0], &names[2], &names[1], &names[3]].map(Clone::clone);
        names.sort();
        assert_eq!(names, in_order);
        assert!(ours.files().iter().all(|file| file.is_part) && ours.files().len() == 4);
    }

    #[test]
    fn only_our_own_files_are_ours() {
        let scratch = Scratch::new("recordings").unwrap();
        let ours = store(&scratch, "web");
        let name = |whole: &Path| whole.file_name().unwrap().to_str().unwrap().to_owned();
        let good = name(&ours.make(1, false).unwrap().whole);
        assert_eq!(ours.is_ours(&good), Some(false));
        assert_eq!(ours.is_ours(&format!("{good}.part")), Some(true));
        for bad in [
            "capture.pcapng".to_owned(),
            format!("x{good}"),
            format!("{good}.bak"),
            good.replace("-web-", "-web2-"),
            good.replace("-web-", "-web-web-"),
            good.replace("00000abc", "00000abd"),
            good.replace("19700101T", "19700101_"),
            good.replace("7.pcapng", "g.pcapng"),
            "tcptwin-é".to_owned(),
        ] {
            assert_eq!(ours.is_ours(&bad), None, "{bad}");
        }
    }

    #[test]
    fn the_oldest_go_first_and_nothing_of_others() {
        let scratch = Scratch::new("recordings").unwrap();
        let ours = store(&scratch, "web");
        for time_ns in 1..=4 {
            let made = ours.make(time_ns, false).unwrap();
            fs::write(&made.part, [0; 100]).unwrap();
            fs::rename(&made.part, &made.whole).unwrap();
        }
        let foreign = scratch.file("tcptwin-19700101T000000.000000000Z-other-00000abc00000007.pcapng");
        fs::write(&foreign, [0; 100]).unwrap();
        let link = scratch.file("tcptwin-19700101T000000.000000000Z-web-00000abc00000007.pcapng");
        std::os::unix::fs::symlink(&foreign, &link).unwrap();
        let tally = tally();
        ours.make_room(400, 150, tally);
        assert_eq!((tally.get(Figure::RemovedFiles), tally.get(Figure::RemovedBytes)), (2, 200));
        let left: Vec<_> = ours.files().iter().map(|file| file.path.clone()).collect();
        assert_eq!(left.len(), 2);
        assert!(left[0].to_str().unwrap().contains("000000003Z") && foreign.exists() && link.is_symlink());
    }

    #[test]
    fn a_dead_recorders_part_gets_its_name_and_a_living_ones_does_not() {
        let scratch = Scratch::new("recordings").unwrap();
        let ours = store(&scratch, "web");
        let living = ours.make(1, false).unwrap();
        let dead = ours.make(2, true).unwrap();
        fs::write(&dead.part, b"some").unwrap();
        let empty = ours.make(3, false).unwrap();
        let (part, whole, nothing) = (dead.part.clone(), dead.whole.clone(), empty.part.clone());
        drop((dead, empty));
        assert_eq!(ours.finish_leftovers(), 2);
        assert!(!part.exists() && !nothing.exists() && living.part.exists() && !living.whole.exists());
        assert_eq!(fs::read(whole).unwrap(), b"some");
    }

    #[test]
    fn a_directory_is_made_for_its_owner_alone_and_must_be_writable() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = Scratch::new("recordings").unwrap();
        let new = scratch.file("a/b");
        prepare(&new).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&new).unwrap().count(), 0, "the probe is gone");
        let file = scratch.file("file");
        fs::write(&file, b"").unwrap();
        let said = prepare(&file).unwrap_err().to_string();
        assert!(said.contains("cannot be recorded into") && said.contains("Name a directory"), "{said}");
    }
}
