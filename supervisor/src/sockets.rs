//! The sockets that outlive the roles, and may outlive the supervisor: opened here, kept by a service manager or by the
//! image before this one, and taken over by name.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use injector::{Lane, Lookout};
use topology::plan::InjectEngine;
use topology::{Plan, Refusal};

/// The kernel goes on capturing into these while a capturer is replaced.
pub(crate) struct Sockets {
    /// Of the capturer.
    pub(crate) capture: Vec<capturer::CaptureSocket>,
    /// Of the injector.
    pub(crate) inject: injector::Sockets,
    /// Of nobody: what the injector is told of the ways to its targets is found here.
    pub(crate) ways: Option<Lookout>,
}

/// A descriptor that somebody kept, and what it was called.
pub(crate) type Kept = (String, OwnedFd);

impl Sockets {
    /// Opens those of a plan.
    ///
    /// # Errors
    /// A sentence, exit code 3.
    pub(crate) fn open(plan: &Plan) -> Result<Self, Refusal> {
        let inject = injector::open(plan).map_err(|error| Refusal::preflight(error.to_string()))?;
        let capture = capturer::open(plan).map_err(|error| Refusal::preflight(error.to_string()))?;
        Ok(Self { capture, inject, ways: ways(plan) })
    }

    /// Those that were kept, when they are what this plan would open. What is no socket of ours stays in `kept`.
    ///
    /// # Errors
    /// Why they are not; those are closed then.
    pub(crate) fn take_over(plan: &Plan, kept: &mut Vec<Kept>) -> Result<Self, String> {
        let mut take = |name: &str| {
            let at = kept.iter().position(|(kept, _)| kept == name)?;
            Some(kept.swap_remove(at).1)
        };
        let names = (0..).map_while(|place| capturer::name(plan, place));
        let capture: Vec<OwnedFd> = names.map_while(|name| take(&name)).collect();
        let inject = injector::Sockets::take_over(plan, |lane| take(&inject_name(lane)))
            .ok_or("the kept raw sockets are not those that the targets need")?;
        let capture = if capturer::name(plan, 0).is_none() {
            capturer::open(plan)
        } else {
            capturer::take_over(plan, capture)
        };
        let capture = capture.map_err(|error| error.to_string())?;
        Ok(Self { capture, inject, ways: ways(plan) })
    }

    /// Each socket that is worth keeping, with its name.
    pub(crate) fn named(&self, plan: &Plan) -> Vec<(String, BorrowedFd<'_>)> {
        let names = (0..).map_while(|place| capturer::name(plan, place));
        let capture = names.zip(self.capture.iter().map(|socket| socket.as_fd()));
        let inject = self.inject.each().map(|(lane, socket)| (inject_name(lane), socket.as_fd()));
        capture.chain(inject).collect()
    }
}

/// Follows the ways, where anything may leave by them.
fn ways(plan: &Plan) -> Option<Lookout> {
    if plan.records_only() || plan.inject == InjectEngine::Raw {
        return None;
    }
    let failed = |error: &std::io::Error| {
        tracing::warn!("the ways to the targets cannot be followed ({error}): everything leaves by raw IP");
    };
    Lookout::start(plan).inspect_err(failed).ok()
}

fn inject_name(lane: Lane) -> String {
    format!("inject-{}", lane.name())
}
