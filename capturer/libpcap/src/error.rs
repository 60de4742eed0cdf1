//! What can go wrong, as sentences.

/// Why libpcap did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The library is not installed.
    #[error(
        "libpcap is not installed on this host ({why}). Install the package libpcap0.8 (Debian, Ubuntu) or libpcap (Fedora, RHEL, Alpine, Arch)"
    )]
    Absent {
        /// What the loader said of each name tried.
        why: String,
    },
    /// A library of that name lacks a function.
    #[error(
        "the libpcap of this host has no function {symbol}: it is older than 1.5. Update the package libpcap0.8 (Debian, Ubuntu) or libpcap (Fedora, RHEL, Alpine, Arch)"
    )]
    Lacking {
        /// The function.
        symbol: &'static str,
    },
    /// The expression is not one, or asks for what the link type has not.
    #[error("libpcap does not take this expression: {why}")]
    Expression {
        /// What it said.
        why: String,
    },
    /// Text with a zero byte.
    #[error("{what} holds a zero byte. Write it in plain characters")]
    ZeroByte {
        /// Which text.
        what: &'static str,
    },
    /// The device may not be used.
    #[error(
        "libpcap may not open {device}: {why}. Run with sudo, or give the program cap_net_raw and cap_net_admin"
    )]
    Permission {
        /// Its name.
        device: String,
        /// What it said.
        why: String,
    },
    /// Anything else about a device.
    #[error("libpcap could not {step} {device}: {why}")]
    Device {
        /// What was tried.
        step: &'static str,
        /// Its name.
        device: String,
        /// What it said.
        why: String,
    },
}
