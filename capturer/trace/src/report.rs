//! What was read, what was left out and where. Bounded: each trouble is counted, and the first few of each kind are named.

use std::fmt;
use std::path::PathBuf;

use flow::named_enum;

named_enum! {
    /// What can be wrong with a file.
    pub enum Trouble {
        /// It cannot be opened.
        Unopened => "unopened",
        /// It holds no byte.
        Empty => "empty",
        /// It is neither pcap nor pcapng.
        UnknownFormat => "unknown_format",
        /// It ends within a record.
        Cut => "cut",
        /// A record's lengths cannot be; what is behind it cannot be found.
        Damaged => "damaged",
        /// Reading or decompressing failed.
        Unreadable => "unreadable",
        /// A record that is left out; the ones behind it are read.
        BadRecord => "bad_record",
        /// A packet of an interface that was not described.
        UnknownInterface => "unknown_interface",
        /// A link type that is not understood.
        UnknownLink => "unknown_link",
        /// More than two VLAN tags.
        DeepTags => "deep_tags",
        /// A frame that ends within its link-layer header.
        ShortFrame => "short_frame",
        /// Time stamps that go backwards; the packet is taken at the latest time seen in the file.
        TimeBackwards => "time_backwards",
    }
}

impl Trouble {
    const fn sentence(self) -> &'static str {
        match self {
            Self::Unopened => "nothing of it was read",
            Self::Empty => "the file is empty",
            Self::UnknownFormat => "neither pcap nor pcapng, plain or in gzip or zstd",
            Self::Cut => "the file ends within a record; all before it was used",
            Self::Damaged => "impossible lengths; all before them was used and nothing behind",
            Self::Unreadable => "reading failed; all before was used",
            Self::BadRecord => "a record that contradicts itself was left out",
            Self::UnknownInterface => "a packet of an interface that the file does not describe was left out",
            Self::UnknownLink => "packets of a link type that is not understood were left out",
            Self::DeepTags => "a frame with more than two VLAN tags was left out",
            Self::ShortFrame => "a frame that ends within its link-layer header was left out",
            Self::TimeBackwards => "time goes backwards; the packet was taken at the latest time seen",
        }
    }
}

/// Where a trouble was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it is.
    pub trouble: Trouble,
    /// In which file.
    pub path: PathBuf,
    /// At which byte of the uncompressed file.
    pub offset: u64,
    /// More about it; may be empty.
    pub detail: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.trouble {
            Trouble::Unopened => return write!(f, "{path} {}", self.detail),
            Trouble::Empty | Trouble::UnknownFormat => write!(f, "{path}: {}", self.trouble.sentence())?,
            _ => write!(f, "{path} at byte {}: {}", self.offset, self.trouble.sentence())?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// What one pass over the files found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Packets handed over.
    pub packets: u64,
    /// Their captured bytes, from the IP header on.
    pub bytes: u64,
    /// Of these, packets of which less was captured than was on the wire.
    pub cut_packets: u64,
    /// Of these, fragments of larger datagrams.
    pub fragments: u64,
    /// Of these, packets out of a tunnel.
    pub decapsulated: u64,
    /// Of these, packets without a time of their own (simple packet blocks): taken at the latest time seen.
    pub untimed: u64,
    /// Frames without an IP packet (ARP and the like), left out.
    pub not_ip: u64,
    /// Packets before `from`, left out.
    pub before: u64,
    /// Time of the first packet handed over, nanoseconds since the Unix epoch.
    pub first_ns: Option<u64>,
    /// Time of the last.
    pub last_ns: Option<u64>,
    troubles: [u64; Trouble::COUNT],
    notes: Vec<Note>,
}

/// Notes of one kind at most.
const OF_A_KIND: u64 = 4;

impl Report {
    /// How often.
    pub fn count(&self, trouble: Trouble) -> u64 {
        self.troubles[trouble.index()]
    }

    /// The first few of each kind, in the order they were met.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Counts one; `note` says where, and is asked only for the first few.
    pub(crate) fn add(&mut self, trouble: Trouble, note: impl FnOnce() -> (PathBuf, u64, String)) {
        let count = &mut self.troubles[trouble.index()];
        *count += 1;
        if *count <= OF_A_KIND {
            let (path, offset, detail) = note();
            self.notes.push(Note { trouble, path, offset, detail });
        }
    }

    /// Adds what another found in a file that has no packet.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.not_ip += other.not_ip;
        for (mine, theirs) in self.troubles.iter_mut().zip(other.troubles) {
            *mine += theirs;
        }
        for note in other.notes {
            let of_this_kind = self.notes.iter().filter(|mine| mine.trouble == note.trouble).count();
            if (of_this_kind as u64) < OF_A_KIND {
                self.notes.push(note);
            }
        }
    }
}
