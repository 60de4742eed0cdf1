//! The kill switch is thrown ([`crate::halt`]).

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use topology::Process;

use super::{Phase, Supervisor};
use crate::control::Reply;
use crate::drain::Drain;
use crate::halt;
use crate::member::Member;

impl Supervisor {
    /// Somebody put the file there.
    pub(super) fn halt_if_thrown(&mut self, now: Instant) {
        if !self.halted && self.switch.is_thrown() {
            let by = format!("by the file {}", self.switch.path().display());
            if let Reply::Error(why) = self.halt(now, &by) {
                tracing::error!("{why}");
            }
        }
    }

    /// Comes back when nothing is captured or sent any more. The rest of the end follows in the loop.
    pub(super) fn halt(&mut self, now: Instant, by: &str) -> Reply {
        let path = self.switch.path().to_owned();
        if self.halted {
            return Reply::Ok(format!("halted already; {}", halt::to_clear(&path)).into());
        }
        self.halted = true;
        let control = self.region.control();
        control.set_halt(true);
        control.set_draining(true);
        // Who finds the region after a death in the middle of this must not go on with it.
        control.set_failed(true);
        self.ring_all();
        let deaf = capturer::deafen(&self.plan, &self.sockets.capture);
        self.end_senders();
        let after = now.elapsed();
        let sticky = self.switch.throw(by);

        self.service.stopping();
        let text = format!("halted {by}");
        self.service.status(text.clone());
        self.event(text.clone());
        self.failure.get_or_insert(format!("{text}: {}", halt::to_clear(&path)));
        self.phase = Phase::Draining(Drain::at_once(now));
        let mut said =
            format!("halted in {} ms: nothing is captured or sent any more", after.as_millis().max(1));
        if let Err(error) = deaf {
            // The role that reads from it is told to end, and killed within a second.
            tracing::warn!("closing a capture filter failed ({error}); it goes with its process");
        }
        if let Err(error) = sticky {
            return Reply::Error(format!("{said}, but {}", halt::not_sticky(&path, &error)));
        }
        said = format!("{said}; {}", halt::to_clear(&path));
        Reply::Ok(said.into())
    }

    /// Waits until the injector is gone, and a capturer whose sockets are its own: by themselves for a moment, then by SIGKILL.
    fn end_senders(&self) {
        let sockets = capturer::is_held_by_sockets(&self.plan);
        let ends = |member: &&Member| match member.process {
            Process::Injector => true,
            Process::Capturer => !sockets,
            Process::Shard(_) => false,
        };
        let senders: Vec<&Member> = self.members.iter().filter(ends).collect();
        wait_for(&senders, halt::PATIENCE);
        let living: Vec<&Member> =
            senders.into_iter().filter(|member| !is_dead(member, Duration::ZERO)).collect();
        for member in &living {
            member.kill();
        }
        wait_for(&living, halt::DYING_TIME);
    }
}

fn wait_for(members: &[&Member], time: Duration) {
    let until = Instant::now() + time;
    for member in members {
        is_dead(member, until.saturating_duration_since(Instant::now()));
    }
}

/// Whether it is dead, or dies within this time.
fn is_dead(member: &Member, within: Duration) -> bool {
    let Some(alive) = member.alive() else { return true };
    let ms = within.as_micros().div_ceil(1000).min(1000) as u16;
    poll(&mut [PollFd::new(alive, PollFlags::POLLIN)], PollTimeout::from(ms)) == Ok(1)
}
