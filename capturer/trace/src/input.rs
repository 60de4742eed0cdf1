//! Opening a file, a pipe or standard input, and what is inside its compression. Recognised by content: names lie, and pipes have none.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, ErrorKind, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::window::Window;

/// Milliseconds that a named pipe may be without a writer: whoever feeds it is usually started at the same time.
const WRITER_MS: u16 = 10_000;

/// How an input is spelled that is standard input.
pub(crate) const STDIN: &str = "-";

/// Whether it can be opened again and its size is known.
pub(crate) fn is_regular(path: &Path) -> bool {
    path != Path::new(STDIN) && std::fs::metadata(path).is_ok_and(|is| is.is_file())
}

/// Opens it. What is read of it, still compressed, is added to `read`.
///
/// # Errors
/// Half a sentence: what is wrong with it and what to do.
pub(crate) fn open(path: &Path, read: &Arc<AtomicU64>) -> Result<Window, String> {
    let file = if path == Path::new(STDIN) { standard_input() } else { named(path) }?;
    let mut source = Counted { file, read: Arc::clone(read) };
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

fn named(path: &Path) -> Result<File, String> {
    // Without O_NONBLOCK a pipe that nobody writes to blocks the open itself, for ever.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| words(&error))?;
    let kind = file.metadata().map_err(|error| words(&error))?.file_type();
    if kind.is_dir() {
        return Err("is a directory; name the files in it".to_owned());
    }
    if kind.is_fifo() {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(WRITER_MS)).is_ok_and(|ready| ready == 0) {
            return Err(format!("is a pipe that nobody has written to for {} s", WRITER_MS / 1_000));
        }
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
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match error.kind() {
        ErrorKind::PermissionDenied => "may not be read by this user (permission denied)".to_owned(),
        ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {text}"),
    }
}

/// A file that says how much of it was read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buf)?;
        self.read.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}
