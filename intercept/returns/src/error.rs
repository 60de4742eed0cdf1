//! What goes wrong on a connection: a sentence for a person, and a named reason for a counter. The first error ends
//! the connection.

use std::net::SocketAddr;

use flow::named_enum;

use crate::policy::Stated;
use crate::stream::MAX_FRAME;

/// Why a connection of the return channel cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The first bytes were not ours.
    #[error(
        "what speaks at {peer} is not a return channel of tcptwin; check address and port (intercept listens on 36524 by default)"
    )]
    NotTcptwin {
        /// The other end.
        peer: SocketAddr,
    },
    /// Another version of the channel.
    #[error(
        "{peer} speaks version {there} of the return channel, this end speaks version {here}; run the same tcptwin on both hosts"
    )]
    Version {
        /// The other end.
        peer: SocketAddr,
        /// Our version.
        here: u16,
        /// Theirs.
        there: u16,
    },
    /// One end encrypts, the other does not, or one may do neither.
    #[error(
        "the two ends of the return channel disagree: here it is {here}, at {peer} it is {there}. Give both ends the same --key FILE, or --plain to both"
    )]
    Mode {
        /// The other end.
        peer: SocketAddr,
        /// Our policy.
        here: Stated,
        /// Theirs.
        there: Stated,
    },
    /// Both hold a key, but not the same one.
    #[error("the key here differs from the one at {peer}; copy one key file to both hosts")]
    WrongKey {
        /// The other end.
        peer: SocketAddr,
    },
    /// The listener takes no more connections now.
    #[error(
        "{peer} takes no more connections of the return channel now (too many at once); it is tried again"
    )]
    Busy {
        /// The other end.
        peer: SocketAddr,
    },
    /// A frame length beyond the limit.
    #[error(
        "{peer} announced a frame of {len} bytes, at most {MAX_FRAME} are allowed; the connection was closed"
    )]
    FrameLength {
        /// The other end.
        peer: SocketAddr,
        /// The length it announced.
        len: usize,
    },
    /// An encrypted frame that does not authenticate.
    #[error("a frame from {peer} was altered, replayed or reordered on the way; the connection was closed")]
    Altered {
        /// The other end.
        peer: SocketAddr,
    },
    /// A message whose bytes make no sense.
    #[error("{peer} sent a message that makes no sense ({what}); the connection was closed")]
    Malformed {
        /// The other end.
        peer: SocketAddr,
        /// Which part.
        what: &'static str,
    },
    /// A well-formed message at the wrong time or in the wrong direction.
    #[error("{peer} sent {what} where it must not; the connection was closed")]
    Unexpected {
        /// The other end.
        peer: SocketAddr,
        /// Which message.
        what: &'static str,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes for the handshake with {peer}")]
    Random {
        /// The other end.
        peer: SocketAddr,
    },
}

named_enum! {
    /// The kinds of [`LinkError`], as counters.
    pub enum Reason {
        /// Foreign first bytes: a port probe, an HTTP client, the predecessor's tool.
        NotTcptwin => "not_tcptwin",
        /// Another version.
        Version => "version",
        /// Encrypted against plain.
        Mode => "mode",
        /// Another key.
        WrongKey => "wrong_key",
        /// The listener was full.
        Busy => "busy",
        /// A frame longer than allowed.
        FrameLength => "frame_length",
        /// A frame that does not authenticate.
        Altered => "altered",
        /// A message that makes no sense.
        Malformed => "malformed",
        /// A message at the wrong time.
        Unexpected => "unexpected",
        /// No random bytes.
        Random => "random",
    }
}

impl LinkError {
    /// The kind, for a counter.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotTcptwin { .. } => Reason::NotTcptwin,
            Self::Version { .. } => Reason::Version,
            Self::Mode { .. } => Reason::Mode,
            Self::WrongKey { .. } => Reason::WrongKey,
            Self::Busy { .. } => Reason::Busy,
            Self::FrameLength { .. } => Reason::FrameLength,
            Self::Altered { .. } => Reason::Altered,
            Self::Malformed { .. } => Reason::Malformed,
            Self::Unexpected { .. } => Reason::Unexpected,
            Self::Random { .. } => Reason::Random,
        }
    }

    /// Whether trying again later may help without anybody changing an option.
    pub const fn may_pass(&self) -> bool {
        !matches!(
            self,
            Self::NotTcptwin { .. } | Self::Version { .. } | Self::Mode { .. } | Self::WrongKey { .. }
        )
    }
}
