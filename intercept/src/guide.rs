//! Tells the operator once what each new owner's range needs. Lines of advice go to the log, with the exact commands.

use std::net::SocketAddr;
use std::path::Path;

use flow::Range;
use tracing::{info, warn};

use crate::advice;

/// Which ranges were spoken about already.
pub(crate) struct Guide {
    targets: Vec<SocketAddr>,
    /// Name of the TUN device, if that takes the route.
    tun: Option<String>,
    told: Vec<Range>,
}

/// Ranges remembered at most.
const MAX_TOLD: usize = 256;

impl Guide {
    pub(crate) fn new(targets: Vec<SocketAddr>, tun: Option<String>) -> Self {
        Self { targets, tun, told: Vec::new() }
    }

    /// At the start: settings of this host that would do harm.
    pub(crate) fn start(&self) {
        if let Some(tun) = &self.tun
            && let Some(line) = advice::strict_rp_filter(Path::new(advice::SYSCTL), tun)
        {
            warn!("{line}");
        }
    }

    /// An instance with these ranges (none: it keeps its clients' addresses) is there.
    pub(crate) fn owner(&mut self, ranges: &[Range]) {
        let new: Vec<Range> = ranges.iter().filter(|r| !self.told.contains(r)).copied().collect();
        if new.is_empty() || self.told.len() + new.len() > MAX_TOLD {
            return;
        }
        self.told.extend(&new);
        if self.tun.is_some() {
            return;
        }
        let commands: Vec<String> =
            new.iter().filter_map(|range| advice::route_command(range, &self.targets)).collect();
        if !commands.is_empty() {
            info!("answers must come here; if that is not set up yet, {}", commands.join("\n  and "));
            info!("{}", advice::rp_filter_hint());
        }
    }
}
