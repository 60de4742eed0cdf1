//! The injector process: the drain in its main thread, the return receiver in a second one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use shm::{Heartbeat, Link, Region, Role, RoleState};
use topology::Plan;
use topology::plan::{Clients, InjectEngine};

use crate::claims;
use crate::drain::Drain;
use crate::gate::Gate;
use crate::guard::Guard;
use crate::limit::Limit;
use crate::open::Sockets;
use crate::receiver::Receiver;
use crate::sender::{Engine, Sender};
use crate::sorter::MIN_RING;

/// Why the role cannot work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Plan and region do not fit each other.
    #[error(
        "return rings of {bytes} bytes are too small, one batch of the return channel may need {MIN_RING}. Give the run more memory (--memory)"
    )]
    SmallRing {
        /// What the region has.
        bytes: u32,
    },
    /// What it should not have could not be given up.
    #[error("{0}")]
    Confine(Box<dyn std::error::Error + Send + Sync>),
    /// A system call that only fails when the system is out of something.
    #[error(
        "{what} failed: {source}. Check the limits of this process (ulimit -n, ulimit -u) and the free memory"
    )]
    System {
        /// What was being done.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Longest sleep of the drain; also its beat when nothing happens.
const BEAT: Duration = Duration::from_millis(100);

/// Works until the control word says halt, or until all shards are done and their rings are empty. `confine` is called once all is
/// open that needs privileges, before the first thread is started.
pub fn run(
    region: &'static Region,
    plan: &Plan,
    sockets: Sockets,
    confine: impl FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), RunError> {
    if (region.spec().return_ring as usize) < MIN_RING {
        return Err(RunError::SmallRing { bytes: region.spec().return_ring });
    }
    for role in [Role::Injector, Role::Receiver] {
        boot(region.heartbeat(role));
    }
    if plan.inject == InjectEngine::Pcap {
        // Code is loaded now or never. Where it cannot be, its first use says so.
        let _ = libpcap::version();
    }
    confine().map_err(RunError::Confine)?;
    let system = |what| move |source: io::Error| RunError::System { what, source };
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = EventFd::from_flags(flags).map_err(|e| system("making an event counter")(e.into()))?;
    let wake = Arc::new(wake);
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, claimed) = claims::queue(wake.clone());
    let receiver = Receiver::new(region, plan, claimed, wake.clone(), stop.clone())
        .map_err(|e| system("making an event poll")(e.into()))?;
    let (gate, ear) = Gate::of(plan, region).unzip();
    let receiver = receiver.with(ear);
    let thread = std::thread::Builder::new()
        .name("returns".to_owned())
        .spawn(move || receiver.run())
        .map_err(system("starting the return receiver's thread"))?;

    let rings = (0..region.spec().shards).map(|shard| region.consumer(Link::Inject(shard))).collect();
    // Anything will do to start from; not every instance should start from the same.
    let mut engine = Sender::open(plan, sockets, region.control(), shm::monotonic_ns() as u16);
    if let Some(limit) = Limit::new(&plan.restraint, region.control(), region.heartbeat(Role::Injector)) {
        // Sleeps between packets end up to 50 µs late without.
        let _ = shm::set_fine_timers();
        engine.keep_to(limit);
    }
    let claims = matches!(plan.clients, Clients::Keep).then_some(sender);
    drain_until_done(region, Drain::new(rings, Guard::new(plan), engine, claims).behind(gate));

    stop.store(true, Relaxed);
    // Full means it wakes anyway.
    let _ = wake.write(1);
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    region.heartbeat(Role::Injector).set_state(RoleState::Done);
    Ok(())
}

/// A killed predecessor's last word may be that input is pending, which makes who is only booting look hung.
fn boot(heartbeat: &Heartbeat) {
    heartbeat.set_pending(false);
    heartbeat.set_state(RoleState::Starting);
    heartbeat.set_epoch(heartbeat.epoch() + 1);
    heartbeat.beat(shm::monotonic_ms());
}

fn drain_until_done<E: Engine>(region: &'static Region, mut drain: Drain<E>) {
    let counters = region.counters(Role::Injector);
    let heartbeat = region.heartbeat(Role::Injector);
    let bell = region.doorbell(Role::Injector);
    let control = region.control();
    heartbeat.set_state(RoleState::Running);
    while !control.halt() {
        heartbeat.beat(shm::monotonic_ms());
        if drain.round() > 0 {
            drain.publish(&counters);
            continue;
        }
        // Only then is their word asked for: a damaged one must not end this role under load.
        if control.draining() && shards_are_done(region) && drain.is_empty() {
            break;
        }
        if control.draining() {
            heartbeat.set_state(RoleState::Draining);
            drain.end_waiting();
        }
        drain.publish(&counters);
        let ticket = bell.prepare();
        if (drain.is_empty() || drain.is_waiting()) && !control.halt() {
            heartbeat.set_pending(false);
            bell.wait(ticket, drain.rest(BEAT));
        } else {
            bell.cancel();
        }
        heartbeat.set_pending(true);
    }
    heartbeat.set_pending(false);
    drain.publish(&counters);
}

fn shards_are_done(region: &Region) -> bool {
    (0..region.spec().shards).all(|shard| region.heartbeat(Role::Shard(shard)).state() == RoleState::Done)
}

#[cfg(test)]
mod tests;
