//! What this process may do, and what the kernel of this host has.

use super::Visit;
use super::finding::{Fault, Finding, Host};
use super::tools;
use crate::procfs;

/// Notes rights and features; whether packets can be captured and sent.
pub(crate) fn check(visit: &mut Visit<'_>) -> bool {
    let program = std::env::current_exe()
        .map_or_else(|_| "/usr/bin/tcptwin".to_owned(), |path| path.display().to_string());
    let setcap = format!("sudo setcap cap_net_raw,cap_net_admin+ep {program}");
    if !procfs::capable(procfs::CAP_NET_RAW) {
        visit.book.note(
            Finding::failed(visit.here, "privileges", Fault::NoCapability, "no CAP_NET_RAW")
                .because("Without it packets can be neither captured nor sent. Run this with sudo, or give the program the right once.")
                .mend(visit.this_host(), setcap),
        );
        return false;
    }
    let kernel = tools::sysctl("kernel/osrelease").unwrap_or_default();
    let admin = procfs::capable(CAP_NET_ADMIN);
    let nft = tools::asked("nft", &["list", "tables"]).is_some();
    let seen = format!(
        "CAP_NET_RAW{}, kernel {}, {}",
        if admin { ", CAP_NET_ADMIN" } else { "" },
        kernel.split('-').next().unwrap_or_default(),
        if nft { "nftables present" } else { "no nftables" }
    );
    let finding = match (admin && nft, visit.here) {
        (true, _) | (_, Host::Intercept | Host::Target) => Finding::ok(visit.here, "privileges", seen),
        (false, _) => {
            let finding = Finding::warning(visit.here, "privileges", Fault::NoGuard, seen).because(
                "There will be no guard of the kernel's on what leaves: frames are not sent by link, and replayed flows take room in the connection tracking where this host has it.",
            );
            match admin {
                true => finding.mend(visit.this_host(), "apt-get install nftables"),
                false => finding.mend(visit.this_host(), setcap),
            }
        }
    };
    visit.book.note(finding);
    true
}

/// Changing the network: guard, larger buffers, neighbours.
const CAP_NET_ADMIN: u32 = 12;
