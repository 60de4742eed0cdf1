//! Ctrl-C, SIGTERM and SIGHUP: counted, and a byte in a pipe wakes the supervisor's poll. The first asks for an orderly
//! end, the second for one at once.

use std::io::{PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::Context as _;

/// How often we were asked to end.
pub(crate) struct Signals {
    asked: Arc<AtomicU32>,
    bell: PipeReader,
}

impl Signals {
    /// Begins to listen. Once in a process. The `ctrlc` crate runs the handler in a thread of its own, so it may write.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let (bell, mut hammer) = std::io::pipe().context("making a pipe for signals failed")?;
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        ctrlc::set_handler(move || {
            count.fetch_add(1, Relaxed);
            // The pipe holds 64 Ki signals; one more changes nothing.
            let _ = hammer.write(b"!");
        })
        .context("listening for Ctrl-C failed")?;
        Ok(Self { asked, bell })
    }

    /// How often.
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Relaxed)
    }

    /// Readable when somebody asked.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// After the bell was seen readable: takes what is in it.
    pub(crate) fn heard(&mut self) {
        // Never blocks: the poll said that there is something.
        let _ = self.bell.read(&mut [0; 64]);
    }
}
