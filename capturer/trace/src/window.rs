//! A file's bytes through a buffer that only grows to the largest record. Called by the formats, which look at what is buffered and
//! then consume it; so a packet lies where it was read to until the next is asked for.

use std::io::{self, ErrorKind, Read};

/// The buffer and where it stands in the file.
pub(crate) struct Window {
    source: Box<dyn Read + Send>,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    end_of_file: bool,
    failed: Option<io::Error>,
}

/// Bytes at first: large enough that a read costs nothing beside parsing, small enough for 64 open files in 16 MiB.
const CAPACITY: usize = 256 << 10;

impl Window {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        let buf = vec![0; CAPACITY];
        Self { source, buf, start: 0, end: 0, offset: 0, end_of_file: false, failed: None }
    }

    /// Where the first buffered byte stands in the uncompressed file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// What is buffered.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Reads until `n` bytes are buffered; false when the file ends, or cannot be read, before. Callers bound `n`.
    pub(crate) fn fill(&mut self, n: usize) -> bool {
        if self.end - self.start >= n {
            return true;
        }
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if n > self.buf.len() {
            self.buf.resize(n, 0);
        }
        while self.end < n && !self.end_of_file {
            match self.source.read(&mut self.buf[self.end..]) {
                Ok(0) => self.end_of_file = true,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.end_of_file = true;
                    self.failed = Some(error);
                }
            }
        }
        self.end >= n
    }

    /// Goes on by `n` bytes, buffered or not; false when the file ends before.
    pub(crate) fn consume(&mut self, mut n: u64) -> bool {
        loop {
            let here = (self.end - self.start) as u64;
            if n <= here {
                self.start += n as usize;
                self.offset += n;
                return true;
            }
            self.offset += here;
            n -= here;
            self.start = self.end;
            if !self.fill(1) {
                return false;
            }
        }
    }

    /// Why the file ended, when that was an error.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        self.failed.take()
    }
}
