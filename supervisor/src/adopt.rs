//! What a killed instance left under our name, and whether its sessions can go on. Looked at before anything starts, with
//! the instance's lock held: so nobody of it lives. Nothing is changed here.
//!
//! | leftover | becomes |
//! |---|---|
//! | nothing | a fresh start |
//! | another user's, or no region at all | refused |
//! | of another boot, build or version, or unfinished | removed |
//! | of a run that a fault had stopped | removed |
//! | of a plan in which its bytes meant something else | removed |
//! | anything else | adopted: sessions, held payload, rings and counters go on |
//!
//! Whatever is removed is said in one sentence.

use shard_worker::counters::{Gauge, offset_gauge};
use shm::{Leftover, Region, Role};
use topology::plan::Clients;
use topology::{Plan, Refusal, wiring};

use crate::stats::total;
use crate::words;

/// What is to be done with the leftover, once all checks passed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    /// There is none.
    Nothing,
    /// It goes on.
    Adopt(&'static Region),
    /// It makes room.
    Remove,
}

/// Looks. A plan that shall go on with the leftover gets its instance, its seeds and its clients; one that shall not keeps
/// the instance's number, which to the intercepts is the same instance come back.
///
/// # Errors
/// Something stands there that is not ours to touch.
pub(crate) fn look(plan: &mut Plan, notes: &mut Vec<String>) -> Result<Found, Refusal> {
    let refused = |error: shm::RegionError| Refusal::preflight(error.to_string());
    let name = plan.name.as_str();
    let (instance, usable) = match Region::leftover(name).map_err(refused)? {
        Leftover::None => return Ok(Found::Nothing),
        Leftover::Foreign { why } => {
            return Err(Refusal::preflight(format!(
                "{} stands where the shared region belongs, and {why}. Remove it by hand, or use another --name",
                shm::path(name).display()
            )));
        }
        Leftover::Ours { boot_id_matches: false, .. } => (0, Err("it is of another boot".to_owned())),
        Leftover::Ours { instance, usable, .. } => (instance, usable),
    };
    let adopted = usable.and_then(|()| {
        let region = Region::attach(name).map_err(|error| error.to_string())?;
        let old = usable_plan(region)?;
        match difference(&old, plan) {
            Some(what) => Err(format!("it ran with another {what}")),
            None if region.control().failed() => Err("a fault had stopped it".to_owned()),
            None => Ok((region, old)),
        }
    });
    if instance != 0 {
        plan.instance = instance;
    }
    match adopted {
        Ok((region, old)) => {
            notes.push(going_on(region, &old));
            plan.seeds = old.seeds;
            plan.clients = old.clients;
            Ok(Found::Adopt(region))
        }
        Err(why) => {
            notes.push(format!(
                "a dead instance named {name} had left its shared region behind, but {why}: its sessions are not taken over, the region is removed"
            ));
            Ok(Found::Remove)
        }
    }
}

/// The plan of a region whose sessions this program can go on with. Otherwise why not, as the end of a sentence.
pub(crate) fn usable_plan(region: &Region) -> Result<Plan, String> {
    let plan = Plan::from_bytes(&region.plan_bytes())
        .map_err(|_| "its plan is not readable by this program".to_owned())?;
    let same = plan.format == crate::format::of_this_program();
    if !same || *region.spec() != wiring::region_spec(&plan, shard_worker::arena_bytes) {
        return Err("another build of this program keeps its sessions in another form".to_owned());
    }
    Ok(plan)
}

fn going_on(region: &Region, plan: &Plan) -> String {
    let of_shard = |shard| region.read_counter(Role::Shard(shard), offset_gauge(Gauge::Open));
    let open = total((0..plan.shards).map(of_shard));
    let paused = if region.control().paused() { "; it is still paused (tcptwin ctl resume)" } else { "" };
    format!(
        "an instance named {} had died; this one takes over what it left, {}{paused}",
        plan.name,
        words::counted(open, "open session")
    )
}

/// In which of the things that give a region's bytes their meaning two plans differ.
fn difference(old: &Plan, new: &Plan) -> Option<&'static str> {
    let targets =
        |plan: &Plan| plan.targets.iter().map(|target| (target.addr, target.protocol)).collect::<Vec<_>>();
    let clients = match (&old.clients, &new.clients) {
        // A part of the range that each chose itself: the old one's is as good.
        (Clients::Pool { v4, v6, chosen: true }, Clients::Pool { v4: new_v4, v6: new_v6, chosen: true }) => {
            (v4.is_some(), v6.is_some()) == (new_v4.is_some(), new_v6.is_some())
        }
        (old, new) => old == new,
    };
    [
        ("-x", old.mappings == new.mappings && targets(old) == targets(new)),
        ("range of clients (-c, --keep-clients)", clients),
        ("files, or another part of them", old.trace == new.trace),
        ("--shards", old.shards == new.shards),
        ("--memory or --max-sessions", old.limits == new.limits && old.rings == new.rings),
    ]
    .into_iter()
    .find_map(|(what, same)| (!same).then_some(what))
}

/// Puts the region into the hands of this supervisor. What `ctl` had changed stays, unless the command line asks for
/// another value than the old one did.
///
/// # Errors
/// The plan does not fit; then nothing was changed.
pub(crate) fn take(region: &Region, plan: &Plan) -> Result<(), shm::RegionError> {
    let old = Plan::from_bytes(&region.plan_bytes()).ok();
    region.adopt(&plan.to_bytes())?;
    let control = region.control();
    if old.as_ref().is_none_or(|old| old.percent_ppm != plan.percent_ppm) {
        control.set_asked_ppm(plan.percent_ppm);
    }
    // Where a ramp goes on, the supervisor's loop sets its part of it.
    if plan.restraint.ramp_ms == 0 {
        control.set_percent_ppm(control.asked_ppm());
    }
    if old.as_ref().is_none_or(|old| old.copies_milli != plan.copies_milli) {
        control.set_copies_milli(plan.copies_milli);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    struct Left(String);

    impl Drop for Left {
        fn drop(&mut self) {
            let _ = Region::remove(&self.0);
        }
    }

    /// A region as a dead instance of this plan would leave it.
    fn left(plan: &Plan) -> (Left, &'static Region) {
        let spec = wiring::region_spec(plan, shard_worker::arena_bytes);
        let region = Region::create(&plan.name, &spec, &plan.to_bytes(), plan.instance).unwrap();
        (Left(plan.name.clone()), region)
    }

    fn plan(tag: &str, more: &[(topology::Key, &str)]) -> Plan {
        testing::plan(&format!("adopt-{tag}-{}", std::process::id()), more)
    }

    #[test]
    fn the_same_command_line_goes_on_with_the_old_instance() {
        use topology::Key;
        let old = plan("same", &[]);
        let (_left, _) = left(&old);
        let mut new = plan("same", &[(Key::Percent, "50"), (Key::DrainTime, "3")]);
        assert_ne!((new.instance, new.seeds), (old.instance, old.seeds));
        let mut notes = vec![];
        let Found::Adopt(region) = look(&mut new, &mut notes).unwrap() else { panic!("{notes:?}") };
        assert_eq!((new.instance, new.seeds, &new.clients), (old.instance, old.seeds, &old.clients));
        assert!(notes[0].contains("0 open sessions"), "{notes:?}");
        assert_eq!(region.epoch(), 1, "looking changes nothing");

        region.control().set_percent_ppm(100_000);
        region.control().set_copies_milli(3_000);
        take(region, &new).unwrap();
        assert_eq!(region.epoch(), 2);
        assert_eq!(region.control().percent_ppm(), 500_000, "the new command line's");
        assert_eq!(region.control().copies_milli(), 3_000, "as ctl had set it");
        assert_eq!(Plan::from_bytes(&region.plan_bytes()).unwrap(), new);
    }

    #[test]
    fn what_gives_the_bytes_their_meaning_must_be_the_same() {
        use topology::Key;
        let old = plan("other", &[]);
        let (_left, region) = left(&old);
        for (key, value, part) in [
            (Key::Map, "81-10.0.3.2:8080", "another -x"),
            (Key::Clients, "198.19.0.0/24", "another range of clients"),
            (Key::Shards, "3", "another --shards"),
            (Key::MaxSessions, "100", "another --memory or --max-sessions"),
        ] {
            let (mut new, mut notes) = (plan("other", &[(key, value)]), vec![]);
            assert!(matches!(look(&mut new, &mut notes).unwrap(), Found::Remove), "{part}");
            assert!(notes[0].contains(part) && notes[0].contains("not taken over"), "{notes:?}");
            assert_eq!(new.instance, old.instance);
        }
        region.control().set_failed(true);
        let (mut new, mut notes) = (plan("other", &[]), vec![]);
        assert!(matches!(look(&mut new, &mut notes).unwrap(), Found::Remove));
        assert!(notes[0].contains("a fault had stopped it"), "{notes:?}");
    }

    #[test]
    fn what_cannot_be_read_is_never_misread() {
        use std::os::unix::fs::FileExt as _;
        let old = plan("damage", &[]);
        // Offsets of the header's words: version, layout hash, boot id.
        for (at, part) in [(8, "has version"), (16, "laid it out differently"), (48, "of another boot")] {
            let (_left, _) = left(&old);
            let file = std::fs::OpenOptions::new().write(true).open(shm::path(&old.name)).unwrap();
            file.write_all_at(&77_u64.to_ne_bytes(), at).unwrap();
            let (mut new, mut notes) = (plan("damage", &[]), vec![]);
            assert!(matches!(look(&mut new, &mut notes).unwrap(), Found::Remove), "{part}");
            assert!(notes[0].contains(part), "{notes:?}");
        }
        {
            let (_left, _) = left(&Plan { format: 1, ..old.clone() });
            let (mut new, mut notes) = (plan("damage", &[]), vec![]);
            assert!(matches!(look(&mut new, &mut notes).unwrap(), Found::Remove));
            assert!(notes[0].contains("keeps its sessions in another form"), "{notes:?}");
        }
        let (_left, region) = left(&old);
        region.adopt(b"").unwrap();
        let (mut new, mut notes) = (plan("damage", &[]), vec![]);
        assert!(matches!(look(&mut new, &mut notes).unwrap(), Found::Remove));
        assert!(notes[0].contains("its plan is not readable"), "{notes:?}");
    }
}
