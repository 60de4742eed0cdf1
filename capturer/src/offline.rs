//! Packet files as the source: what a live capturer takes from the kernel comes from [`trace::Reader`], at its time, through the same
//! dispatch. One thread.
//!
//! **It waits, and drops nothing.** A packet that finds a shard's ring full stays where it is; a shard takes no more once its
//! sessions hold much (`shard-worker/src/shard.rs` says why neither can wait for the other for ever).
//!
//! **Where it stands** is a part of each batch's step, like a kernel ring's position: the loop, how many of its packets were handed
//! over, and the times they count from. A successor reads the files again up to there, which is exact whatever was merged,
//! bounded or taken out of tunnels, for the price of reading. From a pipe nothing
//! can be read again: what the dead one had read ahead is gone and with it the place where a packet begins, so the replay ends
//! there, and says so.
//!
//! **A pipe that has nothing** is waited for, however long: what was taken before is handed over first, and the role beats
//! meanwhile.
//!
//! **Pause** stops the reading; sessions go on, and the rest of the file comes as much later.

use std::sync::Arc;
use std::time::Duration;

use shm::{Control, Heartbeat, Region, Role, RoleState, monotonic_ns};
use topology::plan::{TracePlan, TraceTime};
use trace::{Bound, Reader};

use crate::count::Count;
use crate::dispatch::Dispatcher;
use crate::due::Due;
use crate::error::RoleError;
use crate::source::Frame;

/// Packets of one batch.
const BATCH: u32 = 256;
/// A role beats at least this often, and looks at the control words.
const BEAT: Duration = Duration::from_millis(50);
/// Between looks at a full ring: nobody rings when it empties.
const ROOM_PAUSE: Duration = Duration::from_micros(200);
/// How far a rate may catch up on what it was held up.
const RATE_SLACK_NS: u64 = 10_000_000;

/// Which number of the journal holds what.
mod at {
    pub(super) const PACKETS: u16 = 0;
    pub(super) const LAP: u16 = 1;
    pub(super) const START_NS: u16 = 2;
    pub(super) const PASSED_NS: u16 = 3;
}

/// Reads until the files, their loops or the run end.
pub(crate) fn run(
    region: &'static Region,
    plan: &TracePlan,
    dispatcher: Dispatcher,
) -> Result<(), RoleError> {
    let control = region.control();
    let heartbeat = region.heartbeat(Role::Capturer);
    let [packets, lap, start_ns, passed_ns] =
        [at::PACKETS, at::LAP, at::START_NS, at::PASSED_NS].map(|number| dispatcher.position(number));
    heartbeat.set_state(RoleState::Running);
    heartbeat.beat(shm::monotonic_ms());
    let begun = start_ns > 0;
    let pipe = plan.files.iter().find(|file| !trace::is_regular(file));
    if begun && let Some(pipe) = pipe {
        let name = if pipe.as_os_str() == topology::trace::STDIN {
            "standard input".to_owned()
        } else {
            pipe.display().to_string()
        };
        tracing::error!(
            "the capturer died while it read {name}, which cannot be read again: what follows packet {packets} is not replayed. Save it to a file, and replay that"
        );
        heartbeat.set_state(RoleState::Done);
        return Ok(());
    }
    if !begun {
        dispatcher.counters().set(Count::FileBegun.index(), shm::monotonic_us());
    }
    // A pipe may have nothing for as long as it likes.
    let idle = move || {
        heartbeat.beat(shm::monotonic_ms());
        !control.halt() && !control.draining()
    };
    let reader = match Reader::open_patiently(&plan.files, options(plan), Arc::new(idle)) {
        Ok(reader) => reader,
        Err(error) => {
            // A successor would find the same. Who is asked to end while it waits for a pipe's writer has nothing to say.
            if !control.halt() && !control.draining() {
                tracing::error!("{error}");
            }
            heartbeat.set_state(RoleState::Done);
            return Ok(());
        }
    };
    let start_ns = if begun { start_ns } else { monotonic_ns() };
    let due = Due::new(plan, start_ns, passed_ns);
    let mut offline = Offline {
        control,
        heartbeat,
        dispatcher,
        reader,
        held: Held::default(),
        due,
        lap_passed_ns: passed_ns,
        packets: 0,
        lap,
        loops: plan.loops.into(),
        packet_ns: plan.rate.map_or(0, |rate| 1_000_000_000 / u64::from(rate.max(1))),
        rated_ns: 0,
        beat_ns: 0,
        handed_us: 0,
    };
    offline.go_to(packets);
    offline.work();
    heartbeat.set_pending(false);
    heartbeat.set_state(RoleState::Done);
    Ok(())
}

/// What is read of the files.
pub fn options(plan: &TracePlan) -> trace::Options {
    let bound = |time| match time {
        TraceTime::At(ns) => Bound::At(ns),
        TraceTime::After(ns) => Bound::After(ns),
    };
    trace::Options {
        decap: plan.decap,
        from: plan.from.map(bound),
        until: plan.until.map(bound),
        limit: plan.limit,
    }
}

struct Offline {
    control: &'static Control,
    heartbeat: &'static Heartbeat,
    dispatcher: Dispatcher,
    reader: Reader,
    held: Held,
    due: Due,
    /// [`Due::passed_ns`] when this loop began.
    lap_passed_ns: u64,
    /// Packets of this loop that were handed over.
    packets: u64,
    lap: u64,
    loops: u64,
    /// Time of one packet at the greatest rate; 0 without one.
    packet_ns: u64,
    /// Until then the rate is used up.
    rated_ns: u64,
    beat_ns: u64,
    /// When the last packet was handed over.
    handed_us: u64,
}

/// The packet that is next, taken out of the reader's buffer: it may have to wait.
#[derive(Default)]
struct Held {
    is_there: bool,
    ip: Vec<u8>,
    wire_len: u32,
    /// When it was captured, by the file.
    time_ns: u64,
    due_ns: u64,
}

/// What a batch came to.
enum Step {
    /// Packets were handed over.
    Worked,
    /// The next one's time is then.
    NotBefore(u64),
    /// A shard has no room.
    Full,
    /// There is nothing more.
    End,
}

impl Offline {
    fn work(&mut self) {
        while !self.control.halt() && !self.control.draining() {
            self.beat();
            if self.control.paused() || self.control.blind() {
                self.pause();
                continue;
            }
            match self.batch() {
                Step::Worked => {}
                Step::NotBefore(at_ns) => {
                    self.heartbeat.set_pending(false);
                    std::thread::sleep(BEAT.min(Duration::from_nanos(at_ns.saturating_sub(monotonic_ns()))));
                    self.heartbeat.set_pending(true);
                }
                Step::Full => {
                    self.dispatcher.counters().add(Count::RoomWaits.index(), 1);
                    self.heartbeat.set_pending(false);
                    std::thread::sleep(ROOM_PAUSE);
                    self.heartbeat.set_pending(true);
                }
                Step::End => break,
            }
        }
        self.progress();
    }

    /// Hands over what is due, up to a batch, and makes it public.
    fn batch(&mut self) -> Step {
        let mut taken = 0;
        let end = loop {
            // What was taken does not wait for what a pipe may bring.
            if taken == BATCH || taken > 0 && self.reader.may_wait() {
                break Step::Worked;
            }
            if !self.fetch() {
                if self.next_lap() {
                    break Step::Worked;
                }
                break Step::End;
            }
            let now_ns = monotonic_ns();
            let due_ns = if self.due.waits() { self.held.due_ns } else { 0 };
            let not_before = due_ns.max(self.rated_ns);
            if not_before > now_ns {
                break Step::NotBefore(not_before);
            }
            if !self.dispatcher.has_room(self.held.ip.len()) {
                break Step::Full;
            }
            self.hand_over();
            if self.packet_ns > 0 {
                self.rated_ns = self.rated_ns.max(now_ns.saturating_sub(RATE_SLACK_NS)) + self.packet_ns;
            }
            self.handed_us = now_ns / 1_000;
            taken += 1;
        };
        if taken > 0 || matches!(end, Step::Worked) {
            self.commit();
        }
        if taken > 0 { Step::Worked } else { end }
    }

    /// Makes sure that the next packet is at hand; false at the end of the files.
    fn fetch(&mut self) -> bool {
        if self.held.is_there {
            return true;
        }
        let Some(packet) = self.reader.next() else { return false };
        let Held { is_there, ip, wire_len, time_ns, due_ns } = &mut self.held;
        ip.clear();
        ip.extend_from_slice(packet.ip);
        (*is_there, *wire_len, *time_ns) = (true, packet.wire_len, packet.time_ns);
        *due_ns = self.due.next(packet.time_ns);
        true
    }

    fn hand_over(&mut self) {
        let Held { is_there, ip, wire_len, time_ns, due_ns } = &mut self.held;
        self.dispatcher.frame(&Frame::plain(ip, *wire_len, *time_ns), *due_ns);
        *is_there = false;
        self.packets += 1;
    }

    fn commit(&mut self) {
        let (packets, lap, start_ns, passed_ns) =
            (self.packets, self.lap, self.due.start_ns, self.lap_passed_ns);
        self.dispatcher.commit(|note| {
            note(at::PACKETS, packets);
            note(at::LAP, lap);
            note(at::START_NS, start_ns);
            note(at::PASSED_NS, passed_ns);
        });
    }

    /// Begins the files again; false when that was the last time.
    fn next_lap(&mut self) -> bool {
        // Who stops it knows that there was more.
        if self.lap == 0 && !self.control.halt() && !self.control.draining() {
            for note in self.reader.report().notes() {
                tracing::warn!("{note}");
            }
        }
        if self.lap + 1 >= self.loops || self.packets == 0 {
            return false;
        }
        if let Err(error) = self.reader.rewind() {
            tracing::error!("{error}");
            return false;
        }
        self.lap += 1;
        self.packets = 0;
        self.lap_passed_ns = self.due.passed_ns;
        self.due.again();
        self.dispatcher.set_lap(self.lap as u8);
        true
    }

    /// Reads up to where a predecessor stopped.
    fn go_to(&mut self, packets: u64) {
        self.dispatcher.set_lap(self.lap as u8);
        while self.packets < packets && self.fetch() && !self.control.halt() {
            self.held.is_there = false;
            self.packets += 1;
            self.beat();
        }
    }

    /// Waits while the run is paused; what is to come is put off as long.
    fn pause(&mut self) {
        let before_ns = monotonic_ns();
        self.heartbeat.set_pending(false);
        std::thread::sleep(BEAT);
        self.heartbeat.set_pending(true);
        let waited_ns = monotonic_ns() - before_ns;
        self.due.start_ns += waited_ns;
        self.held.due_ns += waited_ns;
    }

    fn beat(&mut self) {
        let now_ns = monotonic_ns();
        if now_ns - self.beat_ns >= BEAT.as_nanos() as u64 {
            self.beat_ns = now_ns;
            self.progress();
        }
        self.heartbeat.beat(now_ns / 1_000_000);
    }

    fn progress(&self) {
        let progress = self.reader.progress();
        let counters = self.dispatcher.counters();
        let total = progress.total.unwrap_or(0);
        counters.set(Count::FileRead.index(), self.lap * total + progress.read);
        counters.set(Count::FileBytes.index(), self.loops * total);
        counters.set(Count::FileLast.index(), self.handed_us);
    }
}
