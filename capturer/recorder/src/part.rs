//! One file while it is written. Blocks gather in memory and go out together; what has gone out is whole blocks, so the file can be
//! read whenever its writer dies. Compressed, a zstd block ends there too.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use zstd::stream::write::Encoder;

use crate::store::Made;

/// So much gathers before it goes out: one system call for some 700 full packets.
const GATHERED: u64 = 1 << 20;
/// zstd's fast end: about as fast as the capture, and requests are text.
const LEVEL: i32 = 1;

/// A file that is being written.
pub(crate) struct Part {
    file: File,
    part: PathBuf,
    whole: PathBuf,
    sink: Sink,
    /// Bytes of the file that are known to be there.
    good: u64,
    /// Bytes gathered, before compression.
    gathered: u64,
    /// Gathered and not in the file yet.
    packets: Amount,
    /// Packets that have gone out.
    written: u64,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

enum Sink {
    Plain(Vec<u8>),
    Zstd(Encoder<'static, Vec<u8>>),
}

impl Part {
    /// Begins it with `header`, which goes out at once: a disk without room is found here.
    pub(crate) fn begin(made: Made, zstd: bool, header: &[u8]) -> io::Result<Self> {
        let Made { file, part, whole } = made;
        let sink = || -> io::Result<Sink> {
            Ok(match zstd {
                true => Sink::Zstd(Encoder::new(Vec::new(), LEVEL)?),
                false => Sink::Plain(Vec::with_capacity(GATHERED as usize * 2)),
            })
        };
        let begun = sink().and_then(|sink| {
            let mut begun = Self {
                file,
                part: part.clone(),
                whole,
                sink,
                good: 0,
                gathered: 0,
                packets: Amount::default(),
                written: 0,
            };
            begun.block(header)?;
            begun.flush()?;
            Ok(begun)
        });
        if begun.is_err() {
            // It holds nothing.
            let _ = fs::remove_file(&part);
        }
        begun
    }

    /// Adds a block.
    pub(crate) fn block(&mut self, block: &[u8]) -> io::Result<()> {
        self.gathered += block.len() as u64;
        match &mut self.sink {
            Sink::Plain(buffer) => {
                buffer.extend_from_slice(block);
                Ok(())
            }
            // Into memory: it fails for want of that only.
            Sink::Zstd(encoder) => encoder.write_all(block),
        }
    }

    /// Adds a packet's block, `bytes` of it the packet's own.
    pub(crate) fn packet(&mut self, block: &[u8], bytes: u64) -> io::Result<()> {
        self.packets.packets += 1;
        self.packets.bytes += bytes;
        self.block(block)
    }

    /// Whether enough has gathered.
    pub(crate) const fn is_full(&self) -> bool {
        self.gathered >= GATHERED
    }

    /// What has gathered.
    pub(crate) const fn gathered(&self) -> Amount {
        self.packets
    }

    /// How long the file is at most when all that has gathered is in it: compressed or not, it does not get longer.
    pub(crate) const fn bytes(&self) -> u64 {
        self.good + self.gathered
    }

    /// Whether any packet is in it, or gathered for it.
    pub(crate) const fn has_packets(&self) -> bool {
        self.written + self.packets.packets > 0
    }

    /// Everything gathered goes out. Says how many bytes the file grew by, and which packets are in it now.
    pub(crate) fn flush(&mut self) -> io::Result<(u64, Amount)> {
        if let Sink::Zstd(encoder) = &mut self.sink {
            encoder.flush()?;
        }
        self.write_out()
    }

    /// Ends it with `last`. Says how many bytes it grew by, and which packets came in. [`Part::name`] comes when they are counted.
    ///
    /// # Errors
    /// Not all of it went out: then it is to be given up.
    pub(crate) fn finish(&mut self, last: &[u8]) -> io::Result<(u64, Amount)> {
        self.block(last)?;
        if let Sink::Zstd(encoder) = &mut self.sink {
            encoder.do_finish()?;
        }
        self.write_out()
    }

    /// What the sink has ready goes to the file.
    fn write_out(&mut self) -> io::Result<(u64, Amount)> {
        let out = match &mut self.sink {
            Sink::Plain(buffer) => buffer,
            Sink::Zstd(encoder) => encoder.get_mut(),
        };
        self.file.write_all(out)?;
        let grown = out.len() as u64;
        out.clear();
        self.good += grown;
        self.gathered = 0;
        self.written += self.packets.packets;
        Ok((grown, std::mem::take(&mut self.packets)))
    }

    /// Gives a file that was ended its final name: a part alone may hold packets that nobody has counted.
    ///
    /// # Errors
    /// As rename(2).
    pub(crate) fn name(&self) -> io::Result<()> {
        fs::rename(&self.part, &self.whole)
    }

    /// Ends it where it was good last: what has gathered is given up. Without a packet it goes.
    pub(crate) fn give_up(self) -> Amount {
        let done = match self.written {
            0 => fs::remove_file(&self.part),
            _ => self.file.set_len(self.good).and_then(|()| fs::rename(&self.part, &self.whole)),
        };
        if let Err(error) = done {
            tracing::warn!("{} stays as it is ({error})", self.part.display());
        }
        self.packets
    }
}
