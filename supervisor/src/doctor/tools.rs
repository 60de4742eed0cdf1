//! Programs of the host that are asked, never told anything: nft and iptables-save.

use std::io;
use std::process::{Command, Stdio};

/// Runs a program of the administrators' to its end; what it printed, or none where it is not here or refuses.
pub(crate) fn asked(program: &str, options: &[&str]) -> Option<String> {
    // The paths of ordinary users often lack the administrators' directories.
    for place in [program.to_owned(), format!("/usr/sbin/{program}"), format!("/sbin/{program}")] {
        match Command::new(&place).args(options).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                return Some(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(_) => return None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    None
}

/// A kernel setting of this network namespace (`net/ipv4/ip_forward`).
pub(crate) fn sysctl(name: &str) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().to_owned())
}
