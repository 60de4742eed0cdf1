//! Whether a connection is encrypted or plain. Both ends state theirs in the first bytes, so that a disagreement is a
//! sentence at both ends and not a hang. The rules (DESIGN 7): a key means encrypted; without one, plain is allowed
//! when both ends are on loopback or when `--plain` was given.

use std::fmt;

/// What this end demands of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Encrypted and authenticated with this pre-shared key.
    Keyed([u8; 32]),
    /// Plain because the operator said `--plain`.
    Plain,
    /// Plain because both ends are on loopback.
    PlainLocal,
    /// This end has no key and may not speak plain either. A listener says so, that the dialer's user learns why.
    Unwilling,
}

/// This end can neither encrypt nor speak plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no key was given for the return channel, and without one it is only spoken on loopback. \
     Make one with `tcptwin keygen FILE`, copy it, and give both ends --key FILE; or give both ends --plain"
)]
pub struct NoPolicy;

impl Policy {
    /// Chooses by the rules; `loopback` says that both addresses of the connection are loopback addresses.
    /// A key wins over `plain`: whoever holds one means to use it.
    pub const fn choose(key: Option<[u8; 32]>, plain: bool, loopback: bool) -> Result<Self, NoPolicy> {
        match (key, plain, loopback) {
            (Some(key), _, _) => Ok(Self::Keyed(key)),
            (None, true, _) => Ok(Self::Plain),
            (None, false, true) => Ok(Self::PlainLocal),
            (None, false, false) => Err(NoPolicy),
        }
    }

    /// What is said about it on the wire.
    pub(crate) const fn stated(&self) -> Stated {
        match self {
            Self::Keyed(_) => Stated::Keyed,
            Self::Plain => Stated::Plain,
            Self::PlainLocal => Stated::PlainLocal,
            Self::Unwilling => Stated::Unwilling,
        }
    }
}

/// The key stays out of logs and panics.
impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.stated(), f)
    }
}

/// A policy as it stands in the first bytes: without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stated {
    /// Encrypted.
    Keyed,
    /// Plain by option.
    Plain,
    /// Plain by loopback.
    PlainLocal,
    /// Neither.
    Unwilling,
    /// Something this version does not know.
    Unknown(u8),
}

impl Stated {
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Keyed => 1,
            Self::Plain => 2,
            Self::PlainLocal => 3,
            Self::Unwilling => 4,
            Self::Unknown(b) => b,
        }
    }

    pub(crate) const fn from_byte(b: u8) -> Self {
        match b {
            1 => Self::Keyed,
            2 => Self::Plain,
            3 => Self::PlainLocal,
            4 => Self::Unwilling,
            other => Self::Unknown(other),
        }
    }

    const fn is_plain(self) -> bool {
        matches!(self, Self::Plain | Self::PlainLocal)
    }

    /// Whether two ends can talk. Each plain end checked its own right to be plain before it stated it.
    pub(crate) const fn agrees(self, other: Self) -> bool {
        matches!((self, other), (Self::Keyed, Self::Keyed)) || (self.is_plain() && other.is_plain())
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyed => f.write_str("encrypted with a key"),
            Self::Plain => f.write_str("plain (--plain)"),
            Self::PlainLocal => f.write_str("plain (loopback)"),
            Self::Unwilling => f.write_str("no key, and plain not allowed between hosts"),
            Self::Unknown(b) => write!(f, "an unknown mode ({b})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_needs_loopback_or_the_option() {
        let key = [7; 32];
        assert_eq!(Policy::choose(None, false, false), Err(NoPolicy));
        assert_eq!(Policy::choose(None, false, true), Ok(Policy::PlainLocal));
        assert_eq!(Policy::choose(None, true, false), Ok(Policy::Plain));
        for (plain, loopback) in [(false, false), (true, false), (false, true)] {
            assert_eq!(Policy::choose(Some(key), plain, loopback), Ok(Policy::Keyed(key)));
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        assert!(!format!("{:?}", Policy::Keyed([0xab; 32])).contains("171"));
    }
}
