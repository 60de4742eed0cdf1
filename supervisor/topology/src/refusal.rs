//! Why a run is not started: one sentence for a person at a terminal, and the exit code that goes with it.

use std::fmt;

/// A run that is not started. The sentence says what was tried, on what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Process exit code: [`Refusal::USAGE`] or [`Refusal::PREFLIGHT`].
    pub exit: u8,
    /// What was tried, on what, and what to do; further lines are indented by two.
    pub sentence: String,
}

impl Refusal {
    /// Wrong use or configuration.
    pub const USAGE: u8 = 2;
    /// The options are well formed, but this host or network cannot run them, or must not.
    pub const PREFLIGHT: u8 = 3;

    /// Wrong use or configuration: exit code 2.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self { exit: Self::USAGE, sentence: sentence.into() }
    }

    /// Refused by what was found on this host or network: exit code 3.
    pub fn preflight(sentence: impl Into<String>) -> Self {
        Self { exit: Self::PREFLIGHT, sentence: sentence.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refusal {}
