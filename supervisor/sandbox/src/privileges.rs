//! User, groups, capabilities, and what a process may never get or leave behind.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::keep::Error;
use crate::sys;
use crate::user::Ids;

/// Whether this thread holds a capability in its effective set.
pub fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Becomes this user, with these of the capabilities that it has and no others.
pub(crate) fn change_user(user: Option<Ids>, keep: &[Capability]) -> Result<(), Error> {
    const CAPABILITIES: &str = "capabilities";
    // Without the right to it the set stays: with no new privileges an exec gains nothing from it.
    if has(Capability::CAP_SETPCAP) {
        caps::clear(None, CapSet::Bounding).map_err(Error::of(CAPABILITIES))?;
    }
    let held = caps::read(None, CapSet::Permitted).map_err(Error::of(CAPABILITIES))?;
    let kept: CapsHashSet = keep.iter().copied().filter(|capability| held.contains(capability)).collect();
    if let Some(user) = user {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        prctl::set_keepcaps(true).map_err(Error::of(CAPABILITIES))?;
        setgroups(&[]).map_err(Error::of("groups"))?;
        setresgid(gid, gid, gid).map_err(Error::of("the group"))?;
        setresuid(uid, uid, uid).map_err(Error::of("the user"))?;
        prctl::set_keepcaps(false).map_err(Error::of(CAPABILITIES))?;
    }
    // Kernels before 4.3 have no ambient set.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(Error::of(CAPABILITIES))?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(Error::of(CAPABILITIES))?;
    // Effective first: it must stay within the permitted ones.
    caps::clear(None, CapSet::Effective).map_err(Error::of(CAPABILITIES))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(Error::of(CAPABILITIES))?;
    caps::set(None, CapSet::Effective, &kept).map_err(Error::of(CAPABILITIES))?;
    Ok(())
}

/// Leaves this thread this capability, for the programs that it starts too, and over the process's change to another user, and for
/// itself `meanwhile`. A thread without the capability stays as it is.
///
/// A change of user is made by all threads, and the C library ends a process in which one of them cannot (nptl(7)): a thread that
/// is there before it needs CAP_SETUID and CAP_SETGID until then.
///
/// # Errors
/// The system refuses.
pub fn hold_on_to(capability: Capability, meanwhile: &[Capability]) -> Result<(), Error> {
    const CAPABILITIES: &str = "capabilities";
    if !has(capability) {
        return Ok(());
    }
    if has(Capability::CAP_SETPCAP) {
        sys::keep_capabilities_over_a_change_of_user().map_err(Error::of(CAPABILITIES))?;
    }
    let kept = CapsHashSet::from([capability]);
    let own: CapsHashSet = meanwhile.iter().copied().filter(|one| has(*one)).chain([capability]).collect();
    caps::set(None, CapSet::Effective, &own).map_err(Error::of(CAPABILITIES))?;
    caps::set(None, CapSet::Permitted, &own).map_err(Error::of(CAPABILITIES))?;
    caps::set(None, CapSet::Inheritable, &kept).map_err(Error::of(CAPABILITIES))?;
    // Kernels before 4.3 have no ambient set.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::set(None, CapSet::Ambient, &kept).map_err(Error::of(CAPABILITIES))?;
    }
    Ok(())
}

/// Gives this capability too to programs that this thread starts from here on, and threads that it starts: an exec takes
/// from who is not root all that the file does not give. A thread without the capability stays as it is.
///
/// # Errors
/// The system refuses.
pub fn hand_down(capability: Capability) -> Result<(), Error> {
    const CAPABILITIES: &str = "capabilities";
    if has(capability) && caps::runtime::ambient_set_supported().is_ok() {
        caps::raise(None, CapSet::Inheritable, capability).map_err(Error::of(CAPABILITIES))?;
        caps::raise(None, CapSet::Ambient, capability).map_err(Error::of(CAPABILITIES))?;
    }
    Ok(())
}

/// From here on neither this process nor a program that it starts gets privileges by an exec that it has not (what a file's
/// capabilities give it and it has, stays), and its memory comes on no disk and into no debugger of the same user. The latter ends
/// with an exec.
///
/// # Errors
/// The system refuses.
pub fn seal() -> Result<(), Error> {
    prctl::set_no_new_privs().map_err(Error::of("new privileges"))?;
    prctl::set_dumpable(false).map_err(Error::of("core dumps"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Error::of("core dumps"))
}

/// From here on neither this process nor a program that it starts has other capabilities than these, whoever it is: what an
/// exec gives to root stays within them. Without CAP_SETPCAP it has few by its start, and they stay.
///
/// # Errors
/// The system refuses.
pub fn have_at_most(these: &[Capability]) -> Result<(), Error> {
    const CAPABILITIES: &str = "capabilities";
    if !has(Capability::CAP_SETPCAP) {
        return Ok(());
    }
    for beyond in caps::runtime::thread_all_supported().into_iter().filter(|one| !these.contains(one)) {
        caps::drop(None, CapSet::Bounding, beyond).map_err(Error::of(CAPABILITIES))?;
        // Effective first: it must stay within the permitted ones.
        for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::drop(None, set, beyond).map_err(Error::of(CAPABILITIES))?;
        }
    }
    Ok(())
}

/// So much private memory.
pub(crate) fn bound(data_bytes: u64) -> Result<(), Error> {
    setrlimit(Resource::RLIMIT_DATA, data_bytes, data_bytes).map_err(Error::of("memory"))?;
    Ok(())
}
