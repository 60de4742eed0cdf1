//! `ctl upgrade`: first the supervisor becomes the program that stands at its path, then that one replaces the roles one
//! by one. At each moment all but one of them work, and the one that does not leaves its sessions, rings and sockets to a
//! successor as any dead one does.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use shm::{Role, RoleState};
use topology::plan::CaptureEngine;
use topology::{Plan, Process};

use super::{Phase, Supervisor};
use crate::control::Reply;
use crate::member::Member;
use crate::upgrade::{self, Handover, Verdict};
use crate::{relay, words};

/// The replacement of roles by such of this image.
pub(crate) struct Rolling {
    /// Version of the image before.
    from: String,
    /// The member whose turn it is.
    position: usize,
    /// When it was told to leave.
    left: Option<Instant>,
    begun: Instant,
}

/// Time that a capturer gets to take what the kernel holds for it, and to end its recording; a disk may be slow.
const LEAVE_TIME: Duration = Duration::from_secs(2);
/// Time that a new injector gets to have its return channel up before the next role is replaced.
const LINK_TIME: Duration = Duration::from_secs(2);

impl Rolling {
    /// From the first role on.
    pub(super) fn begin(from: String) -> Self {
        Self { from, position: 0, left: None, begun: Instant::now() }
    }
}

/// Whether a capturer has something in hand that would die with it: a recording, or what was taken out of a buffer and nobody
/// numbered.
fn holds_something(plan: &Plan) -> bool {
    let numbered = matches!(plan.capture.engine, CaptureEngine::Ring | CaptureEngine::Xdp);
    plan.trace.is_none() && (plan.record.is_some() || !numbered)
}

impl Supervisor {
    /// Somebody asks for an upgrade: looks at the program, and says what follows.
    pub(super) fn prepare_upgrade(&mut self, now: Instant) -> Reply {
        if self.rolling.is_some() || self.upgrade {
            return Reply::Error("an upgrade is under way already".to_owned());
        }
        let program = self.house.program.display();
        match upgrade::ask(&self.house.program, &self.plan.name) {
            Err(error) => Reply::Error(format!("{error:#}")),
            Ok(Verdict::Fit(answer)) => {
                self.upgrade = true;
                let roles = words::counted(self.members.len() as u64, "role");
                Reply::Ok(
                    format!(
                        "going on as version {} from {program}; the {roles} follow one by one, sessions go on",
                        answer.version
                    )
                    .into(),
                )
            }
            Ok(Verdict::Unfit(answer, why)) => {
                let text = format!(
                    "version {} at {program} cannot take the sessions over ({why}): draining, at most {} s; then start it again",
                    answer.version,
                    self.plan.replay.drain_ms.div_ceil(1000)
                );
                tracing::warn!("upgrade: {text}");
                self.begin_drain(now);
                Reply::Ok(text.into())
            }
        }
    }

    /// One step.
    pub(super) fn roll(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Running) {
            self.rolling = None;
            return;
        }
        if std::mem::take(&mut self.upgrade) {
            let error = self.become_next();
            tracing::error!("{error:#}");
            self.events.push("upgrade failed; see the log".to_owned());
        }
        let Some(rolling) = &mut self.rolling else { return };
        let Some(member) = self.members.get_mut(rolling.position) else {
            let text = format!(
                "upgraded from version {} to {}, {} replaced in {} ms",
                rolling.from,
                env!("CARGO_PKG_VERSION"),
                words::counted(self.members.len() as u64, "role"),
                now.duration_since(rolling.begun).as_millis()
            );
            self.rolling = None;
            tracing::info!("{text}");
            self.events.push(text);
            return;
        };
        let Some(left) = rolling.left else {
            rolling.left = Some(now);
            // One that is dead comes back as this image by itself.
            member.leaving = member.is_alive();
            if member.process == Process::Capturer && holds_something(&self.plan) {
                self.region.control().set_leaving(self.region.heartbeat(Role::Capturer).epoch());
            } else {
                member.kill();
            }
            return;
        };
        if member.leaving && now.duration_since(left) >= LEAVE_TIME {
            member.kill();
        }
        let running = self.region.heartbeat(member.process.role()).state() == RoleState::Running;
        let linked = member.process != Process::Injector
            || self.collector.links_up()
            || now.duration_since(left) >= LINK_TIME;
        if member.is_alive() && !member.leaving && !member.recovery.is_due() && running && linked {
            (rolling.position, rolling.left) = (rolling.position + 1, None);
        }
    }

    /// Executes the program. Comes back with an error, or not at all.
    fn become_next(&mut self) -> anyhow::Error {
        let sockets = self.sockets.named(&self.plan);
        let alive: Vec<BorrowedFd<'_>> = self.members.iter().filter_map(Member::alive).collect();
        let Some(listener) = self.server.listener() else {
            return anyhow::anyhow!("the control socket is closed; this program goes on");
        };
        self.undertaker.finish();
        let handover = Handover {
            pid: std::process::id(),
            from: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.plan.name.clone(),
            house: self.house.clone(),
            listener: listener.as_raw_fd(),
            sockets: sockets.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect(),
            members: self.members.iter().map(Member::heir).collect(),
        };
        let descriptors: Vec<BorrowedFd<'_>> = sockets
            .iter()
            .map(|(_, fd)| *fd)
            .chain(alive)
            .chain([listener])
            .chain(relay::descriptors())
            .collect();
        handover.exec(&descriptors)
    }
}
