//! The kernel's guard of a run, set up before anything of it may send: leftovers of dead instances go, the fence is
//! installed, and the region's control words tell the injector on which devices it may send frames of its own.

use std::path::Path;

use injector::{Engines, Fence};
use shm::{ANY_DEVICE, LockFile, Region};
use topology::Plan;
use topology::plan::InjectEngine;

use crate::sockets::Sockets;

/// What was set up.
#[derive(Default)]
pub(crate) struct Guarding {
    /// The fence, where there is one.
    pub(crate) fence: Option<Fence>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
    /// Devices on which frames may be sent.
    devices: Vec<u32>,
}

/// Sets it up. Whatever cannot be had is in the notes: a run without a guard sends by raw IP, unless it is told otherwise.
pub(crate) fn set_up(region: &'static Region, plan: &Plan, directory: &Path) -> Guarding {
    if plan.records_only() {
        return Guarding::default();
    }
    let mut notes = Vec::new();
    // `nft` is a program of its own, which gets nothing of what a file's capabilities gave to this one.
    if let Err(error) = sandbox::hand_down(sandbox::Capability::CAP_NET_ADMIN) {
        notes.push(format!("nft will have no right to install the guard: {error}"));
    }
    notes.extend(remove_leftovers(&plan.name, directory));
    let forced = matches!(plan.inject, InjectEngine::Link | InjectEngine::Pcap);
    let mut fence = match Fence::install(plan) {
        Ok((fence, note)) => {
            notes.extend(note.map(|note| note.to_string()));
            Some(fence)
        }
        Err(note) => {
            notes.push(note.to_string());
            None
        }
    };
    let mut devices = fence.as_ref().map_or_else(Vec::new, |fence| fence.devices().to_vec());
    region.control().set_guarded(&devices);
    if let Some(fence) = &mut fence
        && !devices.is_empty()
        && let Err(error) = fence.watch(|devices| region.control().set_guarded(devices))
    {
        notes.push(format!("the nftables guard cannot be watched ({error}), so nothing relies on it"));
        devices.clear();
    }
    if forced && devices.is_empty() {
        devices.push(ANY_DEVICE);
    }
    // What the watch saw by now counts more than what was installed.
    if devices.is_empty() || devices.contains(&ANY_DEVICE) {
        region.control().set_guarded(&devices);
    }
    Guarding { fence, notes, devices }
}

impl Guarding {
    /// Which engines the injector will find, and how the line at the start names them.
    pub(crate) fn foresee(&self, plan: &Plan, sockets: &Sockets) -> (Engines, String) {
        let engines = Engines::foresee(plan, &sockets.inject, &self.devices);
        let mut words = engines.words(plan.inject, &self.devices);
        if self.fence.is_none() && engines.engine() != "link" {
            words += ", tracked";
        }
        (engines, words)
    }
}

/// Takes away the guards of dead instances that had their locks here. One whose lock is elsewhere may live.
fn remove_leftovers(own: &str, directory: &Path) -> Vec<String> {
    let others = Fence::instances().into_iter().filter(|name| name != own);
    others.filter_map(|name| remove_if_dead(&name, directory)).collect()
}

fn remove_if_dead(name: &str, directory: &Path) -> Option<String> {
    if !directory.join(format!("{name}.lock")).exists() {
        return None;
    }
    let _lock = LockFile::acquire(name, directory).ok()?;
    Fence::remove_leftover(name).ok()?;
    Some(format!("a dead instance named {name} had left its nftables guard behind; it is removed"))
}
