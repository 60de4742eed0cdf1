//! Watches every process through the shared region while faults go on, from a thread of its own: who died, when its
//! successor handled its first packet, and whether two ever worked at once.
//!
//! A role counts its starts in its heartbeat (`epoch`), as its first act in the region. So a start is seen within a
//! millisecond, and then: it must be one start, its predecessor must be gone from the process table, and somebody must
//! have asked for that death.

use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use injector::ReturnCount;
use lab::process::Delays;
use lab::spin::spin;
use lab::{Histogram, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shard_worker::counters::{WorkerCount, offset_worker};
use shm::{Region, Role, monotonic_us};
use topology::Process;

use crate::args::Kind;

/// The thread, and what it writes down.
pub(crate) struct Watch {
    shared: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is known.
pub(crate) struct Book {
    region: &'static Region,
    supervisor: u32,
    places: Vec<Place>,
    /// The return channel is out since; and the receiver's headers when it came back, with the time.
    link: Option<Outage>,
    /// The supervisor died at this time, and not every role has handled a packet since.
    headless_us: Option<u64>,
    tallies: Vec<Tally>,
    starts: u64,
    /// The last look.
    looked_us: u64,
    /// Rules that were broken, as sentences.
    broken: Vec<String>,
}

struct Outage {
    kind: Kind,
    healed: Option<(u64, u64)>,
}

/// One process of the pipeline.
struct Place {
    process: Process,
    pid: Option<u32>,
    epoch: u64,
    down: Option<Down>,
    last_death_us: u64,
}

/// What is done to a role.
#[derive(Clone, Copy)]
pub(crate) enum Blow {
    /// It gets this signal.
    Signal(Signal),
    /// It is led into an endless loop.
    Spin,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blow::Signal(signal) => signal.fmt(f),
            Blow::Spin => f.write_str("endless loop"),
        }
    }
}

/// A role that we put down.
#[derive(Clone, Copy)]
struct Down {
    at_us: u64,
    kind: Kind,
    /// When the process was first seen to be dead.
    dead_us: Option<u64>,
    reborn: Option<Reborn>,
    /// What the supervisor had waited for when it happened.
    supervisor: Delays,
    /// The longest time between two of our own looks.
    blink_us: u64,
    /// When it is told what all that could be waited for is doing, should there be no successor by then.
    puzzled_us: u64,
}

/// A successor, when its start was seen.
#[derive(Clone, Copy)]
struct Reborn {
    at_us: u64,
    /// What the role had handled by then.
    handled: u64,
}

impl Down {
    fn new(at_us: u64, kind: Kind, supervisor: u32) -> Self {
        let supervisor = Delays::of(supervisor);
        let puzzled_us = at_us + PUZZLING_US;
        Self { at_us, kind, dead_us: None, reborn: None, supervisor, blink_us: 0, puzzled_us }
    }
}

/// Faults of one kind, and how long each took to be over.
#[derive(Clone)]
pub(crate) struct Tally {
    pub(crate) kind: Kind,
    pub(crate) faults: u64,
    /// Death to first packet handled by the successor, or end of a cut to first header, µs.
    pub(crate) recovery: Histogram,
}

/// Time for a process to take a signal, on a machine that is busy with other things.
const SECOND_FAULT: Duration = Duration::from_secs(1);
/// A recovery that took longer is told with where the time went: five times the figure to reach for a death, p50; a hung
/// role has to be noticed first.
const SLOW_US: u64 = 50_000;
const SLOW_TO_NOTICE_US: u64 = 350_000;
/// Who has no successor after this time, and again after as long, makes us look at everybody's stack.
const PUZZLING_US: u64 = 1_000_000;
/// Between looks while all is well, and while somebody is down.
const CALM: Duration = Duration::from_millis(1);
const TENSE: Duration = Duration::from_micros(200);

impl Watch {
    /// Attaches to the region of an instance whose supervisor is `supervisor`.
    pub(crate) fn start(name: &str, supervisor: u32, shards: u16) -> Result<Self> {
        let region = Region::attach(name).context("attaching to the region")?;
        let processes =
            [Process::Capturer, Process::Injector].into_iter().chain((0..shards).map(Process::Shard));
        let places = processes.map(|process| Place {
            process,
            pid: None,
            epoch: region.heartbeat(process.role()).epoch(),
            down: None,
            last_death_us: 0,
        });
        let tally = |kind| Tally { kind, faults: 0, recovery: Histogram::default() };
        let mut book = Book {
            region,
            supervisor,
            places: places.collect(),
            link: None,
            headless_us: None,
            tallies: Kind::ALL.into_iter().map(tally).collect(),
            starts: 0,
            looked_us: monotonic_us(),
            broken: Vec::new(),
        };
        book.find_pids();
        let (shared, stop) = (Arc::new(Mutex::new(book)), Arc::new(AtomicBool::new(false)));
        let (theirs, until) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            while !until.load(Relaxed) {
                let tense = lock(&theirs).look(monotonic_us());
                std::thread::sleep(if tense { TENSE } else { CALM });
            }
        })?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.shared)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed; the run fails by what it did not write down.
            let _ = thread.join();
        }
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Book {
    /// Processes that are up, and were for so long.
    pub(crate) fn rested(&self, now_us: u64, spacing_us: u64) -> Vec<Process> {
        let rested =
            |p: &&Place| p.down.is_none() && p.pid.is_some() && now_us >= p.last_death_us + spacing_us;
        self.places.iter().filter(rested).map(|p| p.process).collect()
    }

    /// Whether all is well: nobody down, the return channel whole.
    pub(crate) fn is_calm(&self) -> bool {
        self.places.iter().all(|p| p.down.is_none()) && self.link.is_none() && self.headless_us.is_none()
    }

    /// Who is down, for a message.
    pub(crate) fn who_is_down(&self) -> String {
        let mut who: Vec<String> =
            self.places.iter().filter(|p| p.down.is_some()).map(|p| p.process.to_string()).collect();
        who.extend(self.link.as_ref().map(|link| format!("the return channel ({})", link.kind.name())));
        who.join(", ")
    }

    /// Does this to a role; its process id, or none when it could not be done now.
    pub(crate) fn strike(&mut self, kind: Kind, process: Process, blow: Blow) -> Result<Option<u32>> {
        let supervisor = self.supervisor;
        let place = self.places.iter_mut().find(|p| p.process == process).context("no such role")?;
        let pid = place.pid.context("it has no process")?;
        let send = |signal| {
            kill(Pid::from_raw(pid.cast_signed()), signal)
                .with_context(|| format!("signalling {process}, pid {pid}"))
        };
        if let Blow::Signal(Signal::SIGSEGV) = blow
            && catches_faults(pid)
        {
            // Rust's runtime takes the first for a possible stack overflow: it puts the default action back and returns, to
            // let the faulting instruction fault again. There is none, so the second one is the fault. A second that is sent
            // before the first was taken is none: they are one.
            send(Signal::SIGSEGV)?;
            if wait::until("the first SIGSEGV is taken", SECOND_FAULT, || !catches_faults(pid)).is_err() {
                return Ok(None);
            }
        }
        let at_us = monotonic_us();
        place.down = Some(Down::new(at_us, kind, supervisor));
        place.last_death_us = at_us;
        match blow {
            Blow::Signal(signal) => send(signal)?,
            Blow::Spin => spin(pid)?,
        }
        self.tally(kind).faults += 1;
        Ok(Some(pid))
    }

    /// The supervisor was killed, and all its roles with it.
    pub(crate) fn supervisor_died(&mut self) {
        let at_us = monotonic_us();
        for place in &mut self.places {
            place.down.get_or_insert(Down::new(at_us, Kind::Supervisor, self.supervisor));
            place.last_death_us = at_us;
        }
        self.headless_us = Some(at_us);
        self.tally(Kind::Supervisor).faults += 1;
    }

    /// A supervisor was started in its place.
    pub(crate) const fn supervisor_started(&mut self, pid: u32) {
        self.supervisor = pid;
    }

    /// The return channel is out, because of this.
    pub(crate) fn link_cut(&mut self, kind: Kind) {
        self.link = Some(Outage { kind, healed: None });
        self.tally(kind).faults += 1;
    }

    /// What had cut the return channel is over.
    pub(crate) fn link_healed(&mut self) {
        let headers = self.headers();
        if let Some(link) = &mut self.link {
            link.healed = Some((monotonic_us(), headers));
        }
    }

    /// A fault that no role recovers from.
    pub(crate) fn count(&mut self, kind: Kind) {
        self.tally(kind).faults += 1;
    }

    pub(crate) fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// Successors that were seen to start.
    pub(crate) const fn starts(&self) -> u64 {
        self.starts
    }

    pub(crate) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// Private memory of every role by name, bytes: what a leak would be in. The region's pages are not in it.
    pub(crate) fn private_bytes(&self) -> Vec<(String, u64)> {
        let roles =
            self.places.iter().filter_map(|p| Some((p.process.to_string(), process::private_bytes(p.pid?)?)));
        let supervisor =
            process::private_bytes(self.supervisor).map(|bytes| ("supervisor".to_owned(), bytes));
        roles.chain(supervisor).collect()
    }

    fn tally(&mut self, kind: Kind) -> &mut Tally {
        self.tallies.iter_mut().find(|tally| tally.kind == kind).expect("there is one for every kind")
    }

    fn headers(&self) -> u64 {
        self.region.read_counter(Role::Receiver, ReturnCount::Headers.index())
    }

    /// Looks at every role; true while somebody is down.
    fn look(&mut self, now_us: u64) -> bool {
        let mut started = false;
        for index in 0..self.places.len() {
            started |= self.look_at(index, now_us);
        }
        if started {
            self.find_pids();
        }
        if let Some(since_us) = self.headless_us
            && self.places.iter().all(|p| p.down.is_none())
        {
            self.headless_us = None;
            self.tally(Kind::Supervisor).recovery.record(now_us - since_us);
        }
        if let Some(Outage { kind, healed: Some((healed_us, before)) }) = self.link
            && self.headers() != before
        {
            self.link = None;
            self.tally(kind).recovery.record(now_us - healed_us);
        }
        self.looked_us = now_us;
        self.places.iter().any(|p| p.down.is_some()) || self.link.is_some()
    }

    /// True when the role was started since the last look.
    fn look_at(&mut self, index: usize, now_us: u64) -> bool {
        let region = self.region;
        let place = &mut self.places[index];
        let epoch = region.heartbeat(place.process.role()).epoch();
        if epoch != place.epoch {
            let (process, before) = (place.process, place.epoch);
            if epoch != before + 1 {
                self.broken.push(format!("{process}: start {before} was followed by start {epoch}"));
            }
            if let Some(pid) = place.pid.filter(|&pid| is_alive(pid)) {
                self.broken.push(format!("{process}: started while its predecessor, pid {pid}, lives"));
            }
            match &mut place.down {
                Some(down) => {
                    down.dead_us.get_or_insert(now_us);
                    down.reborn = Some(Reborn { at_us: now_us, handled: handled(region, process) });
                }
                None => self.broken.push(format!("{process}: died, and nobody killed it (start {epoch})")),
            }
            (place.epoch, place.pid) = (epoch, None);
            self.starts += 1;
            return true;
        }
        if let Some(down) = &mut place.down {
            down.blink_us = down.blink_us.max(now_us - self.looked_us.max(down.at_us));
            if down.reborn.is_none() && place.pid.is_none_or(|pid| !is_alive(pid)) {
                down.dead_us.get_or_insert(now_us);
            }
            if down.reborn.is_none() && now_us > down.puzzled_us {
                down.puzzled_us = now_us + PUZZLING_US;
                tell_who_waits(place.process, self.supervisor, place.pid);
            }
        }
        if let Some(down @ Down { at_us, kind, reborn: Some(reborn), .. }) = place.down
            && handled(region, place.process) != reborn.handled
        {
            place.down = None;
            self.tell_if_slow(index, &down, reborn, now_us);
            if kind != Kind::Supervisor {
                self.tally(kind).recovery.record(now_us - at_us);
            }
        }
        self.places[index].pid.is_none()
    }

    /// Where the time of a slow recovery went, by the kernel's books.
    fn tell_if_slow(&self, index: usize, down: &Down, reborn: Reborn, now_us: u64) {
        let is_noticed = matches!(down.kind, Kind::Hang | Kind::Spin | Kind::Supervisor);
        if now_us - down.at_us <= if is_noticed { SLOW_TO_NOTICE_US } else { SLOW_US } {
            return;
        }
        let Place { process, pid, .. } = self.places[index];
        let ms = |us: u64| format!("{:.1}", us.saturating_sub(down.at_us) as f64 / 1e3);
        let runs_us = self.region.heartbeat(process.role()).running_us();
        let (supervisor, role) = (Delays::of(self.supervisor), pid.map_or(Delays::default(), Delays::of));
        println!(
            "           slow: {process} dead after {} ms, started {}, running {}, first packet {}; waiting for a core: \
             supervisor {:.1}, successor {:.1}; for pages of files: {}, {}; we blinked for {:.1}",
            down.dead_us.map_or_else(|| "?".to_owned(), ms),
            ms(reborn.at_us),
            ms(runs_us),
            ms(now_us),
            supervisor.core_us.saturating_sub(down.supervisor.core_us) as f64 / 1e3,
            role.core_us as f64 / 1e3,
            supervisor.pages.saturating_sub(down.supervisor.pages),
            role.pages,
            down.blink_us as f64 / 1e3,
        );
    }

    /// Who is who among the supervisor's children.
    fn find_pids(&mut self) {
        for (kind, number, pid) in roles_of(self.supervisor) {
            let place = self
                .places
                .iter_mut()
                .find(|p| p.process.kind() == kind && p.process.index().to_string() == number);
            if let Some(place) = place
                && place.pid.is_none()
            {
                place.pid = Some(pid);
            }
        }
    }
}

/// Where the supervisor, the role that has no successor, and all who wait within the kernel stand; and threads of the kernel that
/// want a core, which may have the lock that is waited for: `kdamond`, which looks at the host's memory page by page, was seen
/// within the list of a program's mappings while processes of that program waited to be gone.
fn tell_who_waits(role: Process, supervisor: u32, pid: Option<u32>) {
    println!("           {role} has no successor yet");
    let ours = [("supervisor", Some(supervisor)), ("the role", pid)];
    let ours = ours.into_iter().filter_map(|(what, pid)| Some((what, pid?)));
    let is_told = |at: u32| at == supervisor || Some(at) == pid;
    let is_suspect = |p: &process::Process| p.state == 'D' || p.state == 'R' && p.is_the_kernels();
    let others = process::all().into_iter().filter(|p| is_suspect(p) && !is_told(p.pid));
    for (what, pid) in ours.chain(others.map(|p| ("waits", p.pid)).take(20)) {
        for place in process::places_in_the_kernel(pid) {
            println!("             {what} {pid}: {place}");
        }
    }
}

/// A counter that grows when the role has handled a packet.
fn handled(region: &Region, process: Process) -> u64 {
    let index = match process {
        Process::Capturer => capturer::Count::Segments.index(),
        Process::Injector => injector::Count::Records.index(),
        Process::Shard(_) => offset_worker(WorkerCount::Batches),
    };
    region.read_counter(process.role(), index)
}

/// Whether a handler of its own takes a process's SIGSEGV (`SigCgt` of proc_pid_status(5)).
fn catches_faults(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught & (1 << (Signal::SIGSEGV as u32 - 1)) != 0
}

/// Whether it still executes anything of its own.
fn is_alive(pid: u32) -> bool {
    process::Process::read(pid).is_some_and(|p| !p.has_ended())
}

/// The roles among a supervisor's children: kind, number, process id.
pub(crate) fn roles_of(supervisor: u32) -> Vec<(String, String, u32)> {
    let role = |pid: u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        let ["role", kind, number] = words.get(1..4)? else { return None };
        Some(((*kind).to_owned(), (*number).to_owned(), pid))
    };
    children(supervisor).into_iter().filter_map(role).collect()
}

fn children(pid: u32) -> Vec<u32> {
    match fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        Ok(list) => list.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        // A kernel without this file.
        Err(_) => process::all().into_iter().filter(|p| p.parent == pid).map(|p| p.pid).collect(),
    }
}
