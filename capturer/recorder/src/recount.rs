//! How many packets a file holds that its writer did not live to count: the kernel may have taken the last of them in the instant
//! of its death. Called by a successor, once.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::part::Amount;
use crate::pcapng;
use crate::store::COMPRESSED;

/// A block's type and length.
const HEAD: usize = 8;
/// No block of ours is longer: the longest packet and what is around it.
const LONGEST: usize = 16 << 20;
const BUFFER: usize = 1 << 20;

/// The packets of whole blocks, and their bytes.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn packets(path: &Path) -> io::Result<Amount> {
    let file = BufReader::with_capacity(BUFFER, File::open(path)?);
    let compressed = path.with_extension("").to_string_lossy().ends_with(COMPRESSED);
    Ok(if compressed { walk(zstd::Decoder::with_buffer(file)?) } else { walk(file) })
}

/// Up to the first block that is not all there.
fn walk(mut from: impl Read) -> Amount {
    let mut found = Amount::default();
    let mut body = vec![];
    loop {
        let mut head = [0; HEAD];
        if from.read_exact(&mut head).is_err() {
            return found;
        }
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (kind, len) = (word(0), word(4) as usize);
        if !(HEAD + 4..=LONGEST).contains(&len) {
            return found;
        }
        body.resize(len - HEAD, 0);
        if from.read_exact(&mut body).is_err() {
            return found;
        }
        if let Some(bytes) = pcapng::packet_bytes(kind, &body) {
            found.packets += 1;
            found.bytes += u64::from(bytes);
        }
    }
}
