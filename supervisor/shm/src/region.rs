//! The named region: created by the supervisor, attached by every role, mapped for the rest of the process's life, and the
//! typed views into it.
//!
//! The `shared_memory` crate makes and opens the mapping. Its handles unlink the file when an owning one is dropped, even
//! by a forked child, so ownership is given up at once and the handle is never dropped: removing is an act of its own
//! ([`Region::remove`]). A view that must have one user at a time in a process (ring end, counters, arena) can be taken
//! once; across processes it is one because a role's successor starts only after the role is dead and reaped.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use shared_memory::{Shmem, ShmemConf, ShmemError};

use crate::clock::monotonic_ms;
use crate::control::Control;
use crate::counters::{Block, Counters};
use crate::doorbell::Doorbell;
use crate::error::RegionError;
use crate::header::{Header, boot_id};
use crate::heartbeat::{Heartbeat, RoleState};
use crate::journal::{Item, Journal, Record};
use crate::layout::{Layout, Link, PAGE, PLAN_BYTES, Role, Spec};
use crate::leftover::{self, Leftover};
use crate::memory::Memory;
use crate::pages;
use crate::ring::{self, Consumer, Indices, Producer};
use crate::sync::Ordering::Relaxed;

/// Where Linux keeps named shared memory (shm_overview(7)).
const DIRECTORY: &str = "/dev/shm";

/// A mapped region. Everything in it lives as long as the process.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    layout: Layout,
    instance: u64,
    taken: Taken,
}

// SAFETY: the pointer is to a mapping that is never unmapped; what is handed out of it is either made of atomics or can be
// taken only once.
unsafe impl Send for Region {}
// SAFETY: as above; `taken` is atomic.
unsafe impl Sync for Region {}

/// What was handed out in this process already.
#[derive(Debug)]
struct Taken {
    producers: Box<[AtomicBool]>,
    consumers: Box<[AtomicBool]>,
    counters: Box<[AtomicBool]>,
    journals: Box<[AtomicBool]>,
    arenas: Box<[AtomicBool]>,
}

/// The name that shm_open(3) knows the region by.
pub fn os_id(name: &str) -> String {
    format!("/tcptwin-{name}")
}

/// The file that the region of this instance is.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}{}", os_id(name)))
}

impl Region {
    /// Makes a region of zeros with all its memory in place, writes header and plan, and maps it.
    ///
    /// Fails when one of this name exists (see [`Region::leftover`]), and when shared memory has too little room.
    pub fn create(name: &str, spec: &Spec, plan: &[u8], instance: u64) -> Result<&'static Self, RegionError> {
        let path = checked_path(name)?;
        let layout = Layout::new(*spec).map_err(|reason| RegionError::BadSpec { reason })?;
        if plan.len() > PLAN_BYTES {
            return Err(RegionError::PlanTooLarge { bytes: plan.len(), limit: PLAN_BYTES });
        }
        let bytes = usize::try_from(layout.bytes())
            .map_err(|_| RegionError::BadSpec { reason: "it exceeds this machine's addresses".into() })?;
        let no_room = |free: u64| RegionError::NoRoom {
            path: path.clone(),
            needed_mib: layout.bytes().div_ceil(1 << 20),
            free_mib: free >> 20,
        };
        let free = free_bytes(&path)?;
        if path.exists() {
            return Err(RegionError::Exists { path });
        }
        if free.is_some_and(|free| free < layout.bytes()) {
            // Before asking for it: until it failed, the others would have nothing left.
            return Err(no_room(free.unwrap_or(0)));
        }
        let mut mapping = ShmemConf::new()
            .os_id(os_id(name))
            .size(bytes)
            .create()
            .map_err(|error| shmem_error(error, "creating", &path))?;
        mapping.set_owner(false);
        if let Err(error) = reserve_memory(&path, layout.bytes()) {
            // Best effort: what made us fail is what the user should read.
            let _ = std::fs::remove_file(&path);
            return Err(error.unwrap_or_else(|| no_room(free.unwrap_or(0))));
        }
        let base = leak(mapping);
        let region = Self::new(base, layout, instance);
        region.write_plan(plan);
        region.header().write(&layout, instance, boot_id(), plan.len());
        Ok(region)
    }

    /// Maps an existing region of this user after checking that it is one that this program could have made.
    pub fn attach(name: &str) -> Result<&'static Self, RegionError> {
        let path = checked_path(name)?;
        let (words, bytes) = leftover::checked(&path)?;
        // Refuse before mapping what is not laid out as we would.
        words.layout(bytes).map_err(|why| RegionError::Mismatch { path: path.clone(), why })?;
        let mut mapping = ShmemConf::new()
            .os_id(os_id(name))
            .open()
            .map_err(|error| shmem_error(error, "opening", &path))?;
        mapping.set_owner(false);
        let mapped_bytes = mapping.len() as u64;
        if mapped_bytes < PAGE {
            return Err(RegionError::Mismatch { path, why: format!("it is {mapped_bytes} bytes long") });
        }
        let base = leak(mapping);
        // SAFETY: a page is mapped at `base`, which is page aligned; Header is made of atomics and any bits are valid.
        let words = unsafe { base.cast::<Header>().as_ref() }.words();
        // Again, from what is mapped now: its instance may have been replaced in between.
        let layout = words.layout(mapped_bytes).map_err(|why| RegionError::Mismatch { path, why })?;
        Ok(Self::new(base, layout, words.instance))
    }

    /// Removes the file of a region; who has it mapped keeps it. No such file is success.
    pub fn remove(name: &str) -> Result<(), RegionError> {
        let path = checked_path(name)?;
        match leftover::checked(&path) {
            Ok(_) => match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(RegionError::Os { what: "removing", path, source })
                }
                _ => Ok(()),
            },
            Err(RegionError::NotFound { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// What stands under this name now.
    pub fn leftover(name: &str) -> Result<Leftover, RegionError> {
        leftover::inspect(&checked_path(name)?)
    }

    fn new(base: NonNull<u8>, layout: Layout, instance: u64) -> &'static Self {
        let flags = |count: usize| (0..count).map(|_| AtomicBool::new(false)).collect::<Box<[_]>>();
        let taken = Taken {
            producers: flags(layout.link_count()),
            consumers: flags(layout.link_count()),
            counters: flags(layout.role_count()),
            journals: flags(layout.role_count()),
            arenas: flags(layout.spec().shards.into()),
        };
        Box::leak(Box::new(Self { base, layout, instance, taken }))
    }

    /// Its sizes.
    pub const fn spec(&self) -> &Spec {
        self.layout.spec()
    }

    /// Size of the whole region, bytes.
    pub const fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// The plan, as given to [`Region::create`] or [`Region::adopt`] last.
    pub fn plan_bytes(&self) -> Vec<u8> {
        let len = usize::try_from(self.header().plan_len()).unwrap_or(usize::MAX).min(PLAN_BYTES);
        let mut plan = vec![0; len];
        // SAFETY: the section is mapped for good and at least PLAN_BYTES long; it is written only while no role lives
        // (`adopt`), and no reference into it is ever made.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at(self.layout.plan()).as_ptr(), plan.as_mut_ptr(), len);
        }
        plan
    }

    /// A supervisor that holds the instance's lock, so that no role lives, takes over what a dead one left: the plan is
    /// replaced, the epoch moves, and what the dead one had ordered or its roles had said of themselves is forgotten.
    /// Sessions, rings, counters and whether the run is paused stay.
    pub fn adopt(&self, plan: &[u8]) -> Result<(), RegionError> {
        if plan.len() > PLAN_BYTES {
            return Err(RegionError::PlanTooLarge { bytes: plan.len(), limit: PLAN_BYTES });
        }
        self.header().advance_epoch();
        let control = self.control();
        control.set_halt(false);
        control.set_draining(false);
        let shards = (0..self.spec().shards).map(Role::Shard);
        for role in [Role::Capturer, Role::Injector, Role::Receiver].into_iter().chain(shards) {
            let heartbeat = self.heartbeat(role);
            heartbeat.set_state(RoleState::Starting);
            heartbeat.set_pending(false);
            heartbeat.beat(monotonic_ms());
        }
        if self.plan_bytes() != plan {
            // Killed in between, it leaves a plan of no bytes, which no program takes for one.
            self.header().set_plan_len(0);
            self.write_plan(plan);
            self.header().set_plan_len(plan.len());
        }
        Ok(())
    }

    /// The instance's number, as given to [`Region::create`].
    pub const fn instance(&self) -> u64 {
        self.instance
    }

    /// How often a supervisor took this region over, its creator included.
    pub fn epoch(&self) -> u64 {
        self.header().epoch()
    }

    /// The control words.
    pub fn control(&self) -> &'static Control {
        // SAFETY: Control is made of atomics and stands at this offset (`layout`).
        unsafe { self.view(self.layout.control()) }
    }

    /// A role's liveness words. Panics, as everything here that names a shard, when the region has no such shard.
    pub fn heartbeat(&self, role: Role) -> &'static Heartbeat {
        // SAFETY: Heartbeat is made of atomics and stands at this offset (`layout`).
        unsafe { self.view(self.layout.heartbeat(role)) }
    }

    /// The doorbell of a role as a consumer.
    pub fn doorbell(&self, role: Role) -> &'static Doorbell {
        // SAFETY: Doorbell is made of atomics and stands at this offset (`layout`).
        unsafe { self.view(self.layout.doorbell(role)) }
    }

    /// The writing end of a role's counters. Panics when it was taken in this process before.
    pub fn counters(&self, role: Role) -> Counters {
        take(&self.taken.counters, self.layout.role_index(role), "the counters of", &role);
        Counters::new(self.block(role))
    }

    /// A counter of any role, by anybody. Panics when `index` is not below [`crate::COUNTERS_PER_ROLE`].
    pub fn read_counter(&self, role: Role, index: usize) -> u64 {
        self.block(role)[index].load(Relaxed)
    }

    /// The writing end of a role's journal; stores again what a predecessor had committed, so it comes before the role's ring
    /// ends. Panics when it was taken in this process before.
    pub fn journal(&'static self, role: Role) -> Journal {
        take(&self.taken.journals, self.layout.role_index(role), "the journal of", &role);
        Journal::new(self, role, self.record(role))
    }

    /// What a role is at, or was when it died.
    pub fn item(&self, role: Role) -> Item {
        self.record(role).item()
    }

    /// A copy of the record that a shard died of. Only between the death of one and the start of the next: nobody overwrites
    /// what was not released.
    pub fn record_of(&self, shard: u16, item: Item) -> Option<Vec<u8>> {
        let (link, position) = match item {
            Item::Captured(position) => (Link::Capture(shard), position),
            Item::Returned(position) => (Link::Returns(shard), position),
            Item::Nothing | Item::Sessions | Item::Session(_) => return None,
        };
        ring::copy_record(&self.ring(link), position)
    }

    /// Lets the next start of a role leave an item out. Only between the death of one and the start of the next.
    pub fn leave_out(&self, role: Role, item: Item) {
        self.record(role).leave_out(item);
    }

    /// The writing end of a ring; goes on where a predecessor's published tail is. Panics when it was taken in this
    /// process before.
    pub fn producer(&self, link: Link) -> Producer {
        take(&self.taken.producers, self.layout.link_index(link), "the writing end of", &link);
        Producer::new(self.ring(link))
    }

    /// The reading end of a ring; goes on where a predecessor's released head is. Panics when it was taken in this process
    /// before.
    pub fn consumer(&self, link: Link) -> Consumer {
        take(&self.taken.consumers, self.layout.link_index(link), "the reading end of", &link);
        Consumer::new(self.ring(link))
    }

    /// Published bytes that were not released yet; at most the ring's capacity.
    pub fn link_depth(&self, link: Link) -> u64 {
        self.indices(link).depth(self.layout.ring(link).1.into())
    }

    /// A shard's arena, page aligned. Panics when it was taken in this process before.
    pub fn arena(&self, shard: u16) -> &'static mut [u8] {
        let at = self.at(self.layout.arena(shard));
        take(&self.taken.arenas, shard.into(), "the arena of", &Role::Shard(shard));
        // SAFETY: the section is mapped for good and as long as the spec says (`layout`); it is handed out once, and to
        // nobody else since a shard's successor starts only after the shard is dead.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.spec().arena as usize) }
    }

    /// Where a shard's arena begins in the region's file, for who only looks: bytes from the file's begin.
    pub fn arena_at(&self, shard: u16) -> u64 {
        self.layout.arena(shard)
    }

    /// Where everything stands that roles write while they work, for who would damage it: bytes from the file's begin.
    #[cfg(feature = "scribble")]
    pub fn parts(&self) -> Vec<(crate::Part, std::ops::Range<u64>)> {
        self.layout.parts()
    }

    fn write_plan(&self, plan: &[u8]) {
        // SAFETY: the section is mapped, callers checked the length against it, and no reference into it exists.
        unsafe {
            std::ptr::copy_nonoverlapping(plan.as_ptr(), self.at(self.layout.plan()).as_ptr(), plan.len());
        }
    }

    fn header(&self) -> &'static Header {
        // SAFETY: Header is made of atomics and stands at the region's begin.
        unsafe { self.view(0) }
    }

    pub(crate) fn block(&self, role: Role) -> &'static Block {
        // SAFETY: the block is made of atomics and stands at this offset (`layout`).
        unsafe { self.view(self.layout.counters(role)) }
    }

    pub(crate) fn record(&self, role: Role) -> &'static Record {
        // SAFETY: the record is made of atomics and stands at this offset (`layout`).
        unsafe { self.view(self.layout.journal(role)) }
    }

    pub(crate) fn link_number(&self, link: Link) -> usize {
        self.layout.link_index(link)
    }

    pub(crate) fn link_of_number(&self, number: usize) -> Option<Link> {
        self.layout.link_at(number)
    }

    pub(crate) fn indices(&self, link: Link) -> &'static Indices {
        // SAFETY: Indices is made of atomics and stands at this offset (`layout`).
        unsafe { self.view(self.layout.ring_indices(link)) }
    }

    fn ring(&self, link: Link) -> Memory {
        let (at, bytes) = self.layout.ring(link);
        // SAFETY: indices and bytes are mapped for good, page aligned, a power of two (`layout`), and no other view covers
        // them.
        unsafe { Memory::mapped(self.indices(link), self.at(at), bytes as usize) }
    }

    fn at(&self, offset: u64) -> NonNull<u8> {
        debug_assert!(offset < self.layout.bytes(), "the layout's offsets lie in the region");
        // SAFETY: offsets come from the layout, whose size is that of the mapping.
        unsafe { self.base.add(offset as usize) }
    }

    /// # Safety
    /// A `T` made of atomics, for which any bits are valid, stands at `offset`.
    unsafe fn view<T>(&self, offset: u64) -> &'static T {
        let at = self.at(offset).cast::<T>();
        debug_assert!(at.is_aligned(), "the layout aligns its sections");
        // SAFETY: mapped for good, aligned by the layout; the rest is the caller's promise.
        unsafe { at.as_ref() }
    }
}

fn take(flags: &[AtomicBool], index: usize, what: &str, whose: &dyn std::fmt::Debug) {
    assert!(!flags[index].swap(true, Relaxed), "{what} {whose:?} is taken in this process already");
}

fn checked_path(name: &str) -> Result<PathBuf, RegionError> {
    let good = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if good { Ok(path(name)) } else { Err(RegionError::BadName { name: name.into() }) }
}

fn shmem_error(error: ShmemError, what: &'static str, path: &Path) -> RegionError {
    let errno = |code: u32| io::Error::from_raw_os_error(code as i32);
    let source = match error {
        ShmemError::MappingIdExists => return RegionError::Exists { path: path.into() },
        ShmemError::MapCreateFailed(code)
        | ShmemError::MapOpenFailed(code)
        | ShmemError::UnknownOsError(code) => errno(code),
        other => io::Error::other(other.to_string()),
    };
    RegionError::Os { what, path: path.into(), source }
}

/// Room in the file system of shared memory, bytes; `None` when it has no limit.
fn free_bytes(path: &Path) -> Result<Option<u64>, RegionError> {
    let stat = nix::sys::statvfs::statvfs(DIRECTORY).map_err(|errno| RegionError::Os {
        what: "asking for the room for",
        path: path.into(),
        source: errno.into(),
    })?;
    Ok((stat.blocks() != 0).then(|| stat.blocks_available() * stat.fragment_size()))
}

/// Puts all memory in place, so that a file system that is too small is an error now and not a SIGBUS at the first touch of
/// some page later. The error is `None` when there is too little.
fn reserve_memory(path: &Path, bytes: u64) -> Result<(), Option<RegionError>> {
    let os = |what, source: io::Error| Some(RegionError::Os { what, path: path.into(), source });
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| os("opening", source))?;
    let meta = file.metadata().map_err(|source| os("looking at", source))?;
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me || meta.mode() & 0o077 != 0 {
        let why = format!("it was made with uid {} and mode {:04o}", meta.uid(), meta.mode() & 0o7777);
        return Err(Some(RegionError::Foreign { path: path.into(), why }));
    }
    pages::enlarge(&file, bytes as usize);
    loop {
        match fallocate(&file, FallocateFlags::empty(), 0, bytes as i64) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOSPC | Errno::ENOMEM) => return Err(None),
            Err(errno) => return Err(os("reserving the memory of", errno.into())),
        }
    }
}

/// The mapping stays for the rest of the process's life.
fn leak(mapping: Shmem) -> NonNull<u8> {
    let base = NonNull::new(mapping.as_ptr()).expect("mmap does not map address 0");
    let bytes = mapping.len();
    std::mem::forget(mapping);
    // SAFETY: a whole mapping, whose only handle is forgotten, and nobody has looked into it.
    unsafe { pages::align(base, bytes) }
}
