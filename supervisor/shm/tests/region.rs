//! The named region as supervisor and roles use it, on the real /dev/shm.

use std::os::unix::fs::PermissionsExt;

use proptest::test_runner::{Config, TestRunner};
use shm::{COUNTERS_PER_ROLE, Leftover, Link, PLAN_BYTES, Region, RegionError, Role, RoleState, Spec, path};

const SPEC: Spec =
    Spec { shards: 2, capture_ring: 1 << 16, inject_ring: 1 << 15, return_ring: 4096, arena: 10_000 };

/// A name of this test's own, removed at the end whatever happens.
struct Name(String);

impl Name {
    fn new(test: &str) -> Self {
        Self(format!("test-{test}-{}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(path(&self.0));
    }
}

#[test]
fn an_adopted_region_forgets_orders_and_keeps_the_rest() {
    let name = Name::new("adopted");
    let dead = Region::create(&name.0, &SPEC, b"the old plan", 42).unwrap();
    dead.control().set_halt(true);
    dead.control().set_draining(true);
    dead.control().set_paused(true);
    dead.heartbeat(Role::Shard(1)).set_state(RoleState::Done);
    dead.heartbeat(Role::Receiver).set_pending(true);
    dead.counters(Role::Capturer).add(3, 5);
    dead.arena(1)[0] = 7;
    let mut producer = dead.producer(Link::Inject(0));
    assert!(producer.push(b"a segment") && producer.publish());

    let heir = Region::attach(&name.0).unwrap();
    heir.adopt(b"a plan of another length").unwrap();
    assert_eq!((heir.epoch(), heir.instance()), (2, 42));
    assert_eq!(heir.plan_bytes(), b"a plan of another length");
    assert_eq!(Region::attach(&name.0).unwrap().plan_bytes(), b"a plan of another length");
    let control = heir.control();
    assert!(!control.halt() && !control.draining() && control.paused());
    assert_eq!(heir.heartbeat(Role::Shard(1)).state(), RoleState::Starting);
    assert!(!heir.heartbeat(Role::Receiver).pending() && heir.heartbeat(Role::Receiver).last_ms() > 0);
    assert_eq!(heir.read_counter(Role::Capturer, 3), 5);
    assert_eq!(heir.arena(1)[0], 7);
    assert_eq!(heir.consumer(Link::Inject(0)).next(), Some(&b"a segment"[..]));
    let too_long = vec![0; PLAN_BYTES + 1];
    assert!(matches!(heir.adopt(&too_long), Err(RegionError::PlanTooLarge { .. })));
    assert_eq!(heir.epoch(), 2, "refused before anything was changed");
}

#[test]
fn a_role_finds_what_the_supervisor_made() {
    let name = Name::new("finds");
    let made = Region::create(&name.0, &SPEC, b"the plan", 42).unwrap();
    let role = Region::attach(&name.0).unwrap();
    assert_eq!((role.spec(), role.plan_bytes(), role.instance()), (&SPEC, b"the plan".to_vec(), 42));
    assert_eq!(role.epoch(), 1);

    made.control().set_percent_ppm(250_000);
    made.control().set_copies_milli(1_500);
    made.control().set_paused(true);
    assert_eq!((role.control().percent_ppm(), role.control().copies_milli()), (250_000, 1_500));
    assert!(role.control().paused() && !role.control().halt() && !role.control().draining());

    role.heartbeat(Role::Shard(1)).set_state(RoleState::Running);
    role.heartbeat(Role::Shard(1)).beat(99);
    assert_eq!(made.heartbeat(Role::Shard(1)).state(), RoleState::Running);
    assert_eq!(made.heartbeat(Role::Shard(1)).last_ms(), 99);
    assert_eq!(made.heartbeat(Role::Shard(0)).state(), RoleState::Starting);

    let counters = role.counters(Role::Injector);
    counters.add(3, 5);
    counters.add(3, 5);
    counters.set(COUNTERS_PER_ROLE - 1, 7);
    assert_eq!((made.read_counter(Role::Injector, 3), counters.get(3)), (10, 10));
    assert_eq!(made.read_counter(Role::Injector, COUNTERS_PER_ROLE - 1), 7);
    assert_eq!(made.read_counter(Role::Receiver, 3), 0);

    let mut producer = role.producer(Link::Capture(1));
    let mut consumer = made.consumer(Link::Capture(1));
    assert!(producer.push(b"a frame") && producer.publish());
    assert_eq!((made.link_depth(Link::Capture(1)), made.link_depth(Link::Capture(0))), (64, 0));
    assert_eq!(consumer.next(), Some(&b"a frame"[..]));
    consumer.release();
    assert_eq!(made.link_depth(Link::Capture(1)), 0);

    let arena = role.arena(1);
    assert_eq!((arena.len(), arena.as_ptr() as usize % 4096), (10_000, 0));
    assert!(arena.iter().all(|byte| *byte == 0));
    arena.fill(1);
    assert!(made.arena(0).iter().all(|byte| *byte == 0), "an arena is one shard's");
}

#[test]
fn every_ring_has_its_own_bytes() {
    let name = Name::new("rings");
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    let links = (0..2).flat_map(|k| [Link::Capture(k), Link::Inject(k), Link::Returns(k)]);
    let mut ends: Vec<_> = links.map(|link| (region.producer(link), region.consumer(link))).collect();
    for (number, (producer, _)) in ends.iter_mut().enumerate() {
        while producer.push(&[number as u8; 50]) {}
        producer.publish();
        assert_eq!(producer.credits(), 0);
    }
    for (number, (producer, consumer)) in ends.iter_mut().enumerate() {
        let mut lines = 0;
        while let Some(record) = consumer.next() {
            assert_eq!(record, [number as u8; 50]);
            lines += 1;
        }
        assert_eq!((lines * 64, consumer.faults()), (producer.capacity(), 0));
    }
}

#[test]
fn the_file_is_for_its_owner_only_and_all_there() {
    use std::os::unix::fs::MetadataExt;
    let name = Name::new("mode");
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    let meta = std::fs::metadata(path(&name.0)).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert_eq!(meta.len(), region.bytes());
    assert!(meta.blocks() * 512 >= region.bytes(), "memory that is not in place faults later");
}

#[test]
fn a_second_instance_of_one_name_is_refused_and_harms_nothing() {
    let name = Name::new("second");
    Region::create(&name.0, &SPEC, b"first", 1).unwrap();
    let error = Region::create(&name.0, &SPEC, b"second", 2).unwrap_err();
    assert!(matches!(error, RegionError::Exists { .. }), "{error}");
    assert!(error.to_string().contains("--name"), "{error}");
    assert_eq!(Region::attach(&name.0).unwrap().plan_bytes(), b"first");
}

#[test]
fn too_small_a_file_system_is_a_sentence() {
    let name = Name::new("room");
    let spec = Spec { arena: 1 << 40, ..SPEC };
    let error = Region::create(&name.0, &spec, &[], 1).unwrap_err();
    let text = error.to_string();
    let RegionError::NoRoom { needed_mib, free_mib, .. } = error else { panic!("{text}") };
    assert!(needed_mib > 2 << 20 && free_mib < needed_mib, "{text}");
    for word in ["--memory", "--max-sessions", "--shards", &format!("{free_mib} MiB free")] {
        assert!(text.contains(word), "{text}");
    }
    assert!(!path(&name.0).exists(), "a refused region leaves nothing behind");
}

#[test]
fn a_removed_region_stays_with_those_who_have_it() {
    let name = Name::new("removed");
    let region = Region::create(&name.0, &SPEC, b"stays", 1).unwrap();
    Region::remove(&name.0).unwrap();
    assert!(!path(&name.0).exists());
    assert_eq!(region.plan_bytes(), b"stays");
    assert!(matches!(Region::attach(&name.0), Err(RegionError::NotFound { .. })));
    assert_eq!(Region::leftover(&name.0).unwrap(), Leftover::None);
    Region::remove(&name.0).unwrap();
}

#[test]
fn a_leftover_of_ours_is_recognised() {
    let name = Name::new("leftover");
    Region::create(&name.0, &SPEC, &[], 4711).unwrap();
    let ours = Leftover::Ours { instance: 4711, epoch: 1, boot_id_matches: true, usable: Ok(()) };
    assert_eq!(Region::leftover(&name.0).unwrap(), ours);
}

#[test]
fn an_unfinished_leftover_is_ours_but_not_usable() {
    let name = Name::new("unfinished");
    std::fs::write(path(&name.0), [0; 8192]).unwrap();
    std::fs::set_permissions(path(&name.0), PermissionsExt::from_mode(0o600)).unwrap();
    let Leftover::Ours { usable: Err(why), .. } = Region::leftover(&name.0).unwrap() else { panic!() };
    assert!(why.contains("did not finish"), "{why}");
    assert!(matches!(Region::attach(&name.0), Err(RegionError::Mismatch { .. })));
    Region::remove(&name.0).unwrap();
}

#[test]
fn files_of_others_are_not_touched() {
    let name = Name::new("foreign");
    let file = path(&name.0);
    let refused = |word: &str| {
        let Leftover::Foreign { why } = Region::leftover(&name.0).unwrap() else { panic!("not foreign") };
        assert!(why.contains(word), "{why}");
        assert!(matches!(Region::attach(&name.0), Err(RegionError::Foreign { .. })));
        assert!(matches!(Region::remove(&name.0), Err(RegionError::Foreign { .. })));
        assert!(file.symlink_metadata().is_ok());
    };
    Region::create(&name.0, &SPEC, &[], 1).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o660)).unwrap();
    refused("mode 0660");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    if std::os::unix::fs::chown(&file, Some(12_345), None).is_ok() {
        refused("uid 12345");
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
    }
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    refused("begin like one");
    std::fs::write(&file, b"short").unwrap();
    refused("too short");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
    refused("not a regular file");
}

#[test]
fn a_cut_region_is_not_mapped() {
    let name = Name::new("cut");
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path(&name.0)).unwrap();
    file.set_len(region.bytes() - 4096).unwrap();
    let error = Region::attach(&name.0).unwrap_err();
    assert!(matches!(error, RegionError::Mismatch { .. }), "{error}");
    file.set_len(100).unwrap();
    assert!(Region::attach(&name.0).is_err());
}

#[test]
fn any_header_bytes_are_survived() {
    let name = Name::new("header");
    Region::create(&name.0, &SPEC, b"plan", 1).unwrap();
    let good = std::fs::read(path(&name.0)).unwrap();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
    runner
        .run(&(0..112_usize, 1..=255_u8), |(at, flip)| {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            std::fs::write(path(&name.0), &bytes).unwrap();
            // Instance, epoch and boot id may hold anything, and so may a plan's length within its section.
            if let Ok(region) = Region::attach(&name.0) {
                assert!((32..64).contains(&at) || (64..72).contains(&at), "byte {at} ^ {flip} was believed");
                assert!(region.plan_bytes().len() <= PLAN_BYTES);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn names_and_plans_are_checked() {
    for name in ["", ".hidden", "a/b", "../up", "white space", &"x".repeat(65)] {
        let error = Region::create(name, &SPEC, &[], 1).unwrap_err();
        assert!(matches!(error, RegionError::BadName { .. }), "{name:?}: {error}");
    }
    let name = Name::new("plan");
    let error = Region::create(&name.0, &SPEC, &vec![0; PLAN_BYTES + 1], 1).unwrap_err();
    assert!(matches!(error, RegionError::PlanTooLarge { .. }), "{error}");
    let error = Region::create(&name.0, &Spec { shards: shm::MAX_SHARDS + 1, ..SPEC }, &[], 1).unwrap_err();
    assert!(matches!(error, RegionError::BadSpec { .. }), "{error}");
    assert!(!path(&name.0).exists());
}

/// Whether taking it a second time panics.
fn second_time_panics<T>(take: impl Fn() -> T) -> bool {
    let _first = take();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let second = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(take())));
    std::panic::set_hook(hook);
    second.is_err()
}

#[test]
fn what_has_one_user_can_be_taken_once() {
    let name = Name::new("once");
    let region = Region::create(&name.0, &SPEC, &[], 1).unwrap();
    assert!(second_time_panics(|| region.producer(Link::Inject(0))));
    assert!(second_time_panics(|| region.consumer(Link::Inject(0))));
    assert!(second_time_panics(|| region.counters(Role::Capturer)));
    assert!(second_time_panics(|| region.arena(0)));
    region.producer(Link::Inject(1));
}
