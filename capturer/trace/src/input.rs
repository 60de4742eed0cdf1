//! Opening a file, a pipe or standard input, and what is inside its compression. Recognised by content: names lie, and pipes have none.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, ErrorKind, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::window::Window;

/// What the files of one reader share.
#[derive(Default)]
pub(crate) struct Feed {
    /// Bytes read of them, still compressed.
    pub(crate) read: AtomicU64,
    /// A pipe had nothing more when it was last read.
    pub(crate) is_drained: AtomicBool,
    /// What is done while a pipe has nothing.
    pub(crate) idle: Option<Idle>,
}

/// Called twenty times a second while a pipe has nothing to read; false ends the waiting, and with it the pipe.
pub type Idle = Arc<dyn Fn() -> bool + Send + Sync>;

impl Feed {
    /// Waits until a pipe has something to read or is closed, at most so long; false when neither came.
    fn wait(&self, file: &File, most_ms: Option<u32>) -> bool {
        let mut waited_ms = 0;
        while !is_readable(file, LOOK_MS) {
            waited_ms += u32::from(LOOK_MS);
            let goes_on = self.idle.as_ref().is_none_or(|idle| idle());
            if !goes_on || most_ms.is_some_and(|most_ms| waited_ms >= most_ms) {
                return false;
            }
        }
        true
    }
}

fn is_readable(file: &File, within_ms: u16) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    // An error of poll is one of read too, which has the words for it.
    poll(&mut fds, PollTimeout::from(within_ms)).map_or_else(|errno| errno != Errno::EINTR, |ready| ready > 0)
}

/// Half of what an idle role may be silent.
const LOOK_MS: u16 = 50;
/// Milliseconds that a named pipe may be without a writer: whoever feeds it is usually started at the same time.
const WRITER_MS: u32 = 10_000;

/// How an input is spelled that is standard input.
pub(crate) const STDIN: &str = "-";

/// Whether it can be opened again and its size is known.
pub fn is_regular(path: &Path) -> bool {
    path != Path::new(STDIN) && std::fs::metadata(path).is_ok_and(|is| is.is_file())
}

/// Opens it.
///
/// # Errors
/// Half a sentence: what is wrong with it and what to do.
pub(crate) fn open(path: &Path, feed: &Arc<Feed>) -> Result<Window, String> {
    let file = if path == Path::new(STDIN) { standard_input() } else { named(path, feed) }?;
    let is_regular = file.metadata().is_ok_and(|is| is.is_file());
    let mut source = Counted { file, is_regular, feed: Arc::clone(feed) };
    let mut magic = [0; 4];
    let len = read_up_to(&mut source, &mut magic).map_err(|error| words(&error))?;
    let whole = Cursor::new(magic).take(len as u64).chain(source);
    let plain: Box<dyn Read + Send> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        // A frame, or a skippable one in front of it (RFC 8878, section 3.1).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::stream::read::Decoder::new(whole).map_err(|error| words(&error))?)
        }
        _ => Box::new(whole),
    };
    Ok(Window::new(plain))
}

fn standard_input() -> Result<File, String> {
    Ok(io::stdin().as_fd().try_clone_to_owned().map_err(|error| words(&error))?.into())
}

fn named(path: &Path, feed: &Feed) -> Result<File, String> {
    // Without O_NONBLOCK a pipe that nobody writes to blocks the open itself, for ever.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| words(&error))?;
    let kind = file.metadata().map_err(|error| words(&error))?.file_type();
    if kind.is_dir() {
        return Err("is a directory; name the files in it".to_owned());
    }
    if kind.is_fifo() && !feed.wait(&file, Some(WRITER_MS)) {
        return Err(format!("is a pipe that nobody has written to for {} s", WRITER_MS / 1_000));
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| words(&errno.into()))?;
    Ok(file)
}

fn read_up_to(source: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < room.len() {
        match source.read(&mut room[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// The system's words without its number.
pub(crate) fn words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => "may not be read by this user (permission denied)".to_owned(),
        ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {}", flow::words::of_io(error)),
    }
}

/// A file that says how much of it was read, and waits for a pipe where others can look after something else.
struct Counted {
    file: File,
    is_regular: bool,
    feed: Arc<Feed>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.is_regular && !self.feed.wait(&self.file, None) {
            return Ok(0);
        }
        let read = self.file.read(buf)?;
        self.feed.read.fetch_add(read as u64, Relaxed);
        if !self.is_regular {
            self.feed.is_drained.store(!is_readable(&self.file, 0), Relaxed);
        }
        Ok(read)
    }
}
