//! From frames to shards: parse, mapping, shard by hash of the client, one record in that shard's capture ring. Called by the
//! role for every frame of a batch.
//!
//! What a batch comes to is made public in one step ([`Dispatcher::commit`]): the records of all shards, the counters, and how
//! far the kernel's rings were read. So a capturer that is killed at any instruction neither loses nor repeats a frame, and
//! none is counted twice.
//!
//! It keeps no table: the shard follows from the client endpoint alone (DESIGN 4, "Flow identity and the hash rule"). It never
//! waits: a full ring costs the segment, counted, and the shard sees the hole in the sequence numbers.

use flow::datagram::{self, Seen};
use flow::emit_udp::{MAX_HEADERS, Pieces};
use flow::hash::{endpoint_hash, shard_of};
use flow::record::flag;
use flow::sample::copies;
use flow::{Captured, Datagram, Malformed, Segment, TcpFields, segment};
use shm::{Control, Counters, Doorbell, Journal, Link, Producer, Region, Role, Waiting, Word};
use topology::Plan;
use topology::plan::Protocol;
use zerocopy::IntoBytes as _;

use crate::count::{Count, POSITIONS};
use crate::expression;
use crate::filter::Machine;
use crate::fragments::Fragments;
use crate::online::{Meaning, Online};
use crate::source::{Carries, Frame};

/// The way to one shard.
#[derive(Debug)]
struct Lane {
    ring: Producer,
    bell: &'static Doorbell,
    /// Something was committed since the last publication.
    touched: bool,
    /// Records committed since the bell was last rung.
    unheard: u32,
    /// One of them should be looked at now.
    urgent: bool,
    /// SYNs; none where the source can wait.
    openings: Option<Waiting>,
}

/// Fewest that may wait, however small the ring is.
const LEAST_OPENINGS: usize = 2_048;

/// How many SYNs wait in a ring: not more than an eighth of it holds. A flood of them would else fill it, and whoever is connected
/// would lose requests and wait behind all of them. A host with nothing but short connections fills a seventh of a ring with them.
fn most_openings(ring: &Producer) -> u32 {
    // The largest record is half of the ring.
    (ring.max_record() / 4 / Producer::record_bytes(HEAD)).max(LEAST_OPENINGS) as u32
}

/// Bare acknowledgements that a shard is let sleep through.
const SLEPT_THROUGH: u32 = 256;

impl Lane {
    /// Wakes the shard, unless all there is are a few bare acknowledgements: nothing follows from one of them at once, and the
    /// shard finds them when it is awake next, for a request, an answer, a timer, or its beat.
    fn ring_bell(&mut self) {
        if self.urgent || self.unheard >= SLEPT_THROUGH {
            (self.urgent, self.unheard) = (false, 0);
            self.bell.ring();
        }
    }
}

/// Sorts frames to the shards.
#[derive(Debug)]
pub struct Dispatcher {
    online: Online,
    /// `-F`, once more and exactly.
    expression: Option<Machine>,
    /// Where datagrams are mapped.
    udp: Option<Box<Udp>>,
    lanes: Vec<Lane>,
    counters: Counters,
    /// What the open batch adds to the counters.
    counted: [u64; Count::COUNT],
    journal: Journal,
    shard_seed: u64,
    sample_seed: u64,
    control: &'static Control,
    /// See [`Captured::lap`].
    lap: u8,
    /// A recording takes answers too.
    recording: bool,
    /// Shards are told of answers: the packets come from a file.
    tells_answers: bool,
}

/// The services that speak UDP, and what is put together of their datagrams.
#[derive(Debug)]
struct Udp {
    online: Online,
    fragments: Fragments,
    instead: Instead,
}

/// What a recording takes in the place of the last frame: the packet that it was the last part of, or those that it was made of.
#[derive(Debug, Default)]
struct Instead {
    /// Empty where the frame itself is taken.
    packets: Vec<u8>,
    /// Bytes of each of them but the last.
    each: usize,
    /// How many packets were made so; their number is that of IPv4's identification.
    made: u16,
}

const HEAD: usize = size_of::<Captured>();

impl Dispatcher {
    /// Takes the writing ends of all capture rings and the capturer's counters. Panics when they were taken before in this
    /// process.
    pub fn new(region: &'static Region, plan: &Plan) -> Self {
        // Before the rings: what a predecessor had committed is in place then.
        let mut journal = region.journal(Role::Capturer);
        journal.done();
        let lanes = (0..region.spec().shards)
            .map(|shard| {
                let ring = region.producer(Link::Capture(shard));
                Lane {
                    openings: plan.trace.is_none().then(|| Waiting::at_most(most_openings(&ring))),
                    ring,
                    bell: region.doorbell(Role::Shard(shard)),
                    touched: false,
                    unheard: 0,
                    urgent: false,
                }
            })
            .collect();
        Self {
            online: Online::new(plan, Protocol::Tcp),
            expression: expression::machine(plan),
            udp: plan.replays(Protocol::Udp).then(|| {
                Box::new(Udp {
                    online: Online::new(plan, Protocol::Udp),
                    fragments: Fragments::default(),
                    instead: Instead::default(),
                })
            }),
            lanes,
            counters: region.counters(Role::Capturer),
            counted: [0; Count::COUNT],
            journal,
            shard_seed: plan.seeds.shard,
            sample_seed: plan.seeds.sample,
            control: region.control(),
            lap: 0,
            recording: plan.record.is_some(),
            tells_answers: plan.trace.is_some(),
        }
    }

    /// The capturer's counters as they stand.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The number of the next frame of a capture ring, where a predecessor stopped; 0 in a ring that nobody has read from.
    pub fn position(&self, ring: u16) -> u64 {
        self.counters.get(POSITIONS + usize::from(ring))
    }

    /// Which loop of a file the frames come from.
    pub const fn set_lap(&mut self, lap: u8) {
        self.lap = lap;
    }

    /// Whether a packet of so many bytes finds room whichever shard it goes to: a source that may wait does until it does. One
    /// that no ring could ever hold is not waited for.
    pub fn has_room(&mut self, packet_bytes: usize) -> bool {
        let len = HEAD + packet_bytes;
        self.lanes
            .iter_mut()
            .all(|lane| len > lane.ring.max_record() || lane.ring.credits() >= Producer::record_bytes(len))
    }

    /// What a recording takes of the frame that [`Dispatcher::frame`] said so of, given to `take`, which says how many bytes it
    /// keeps: the frame, or the datagram of which it was the last part to come, or the datagrams that it carried.
    pub(crate) fn record(&mut self, frame: &Frame<'_>, mut take: impl FnMut(&Frame<'_>) -> usize) {
        let (mut packets, mut bytes) = (0, 0);
        let mut keep = |frame: &Frame<'_>| {
            packets += 1;
            bytes += take(frame) as u64;
        };
        match &self.udp {
            Some(udp) if !udp.instead.packets.is_empty() => {
                for packet in udp.instead.packets.chunks(udp.instead.each) {
                    keep(&Frame::plain(packet, packet.len() as u32, frame.time_ns));
                }
            }
            _ => keep(frame),
        }
        self.count(Count::RecordPackets, packets);
        self.count(Count::RecordBytes, bytes);
    }

    /// Takes one frame, seen at `time_ns` (CLOCK_MONOTONIC). Says whether it is one that a recording takes.
    pub fn frame(&mut self, frame: &Frame<'_>, time_ns: u64) -> bool {
        self.count(Count::Frames, 1);
        self.count(Count::FrameBytes, frame.packet.len() as u64);
        if frame.again {
            self.count(Count::SeenTwice, 1);
            return false;
        }
        if let Some(udp) = &mut self.udp {
            udp.instead.packets.clear();
        }
        let segment = match segment::parse(frame.packet, frame.wire_len) {
            Ok(segment) => segment,
            Err(Malformed::NotTcp | Malformed::Fragment) if self.udp.is_some() => {
                return self.udp(frame, time_ns);
            }
            Err(malformed) => {
                self.count(malformed.into(), 1);
                return false;
            }
        };
        match self.online.meaning(&segment.src, &segment.dst) {
            Meaning::Mapping(_) if !self.takes(frame) => self.count(Count::LeftOut, 1),
            Meaning::Mapping(mapping) => {
                self.segment(frame, &segment, mapping, time_ns);
                return true;
            }
            Meaning::Own => self.count(Count::Own, 1),
            Meaning::LeftOut => self.count(Count::LeftOut, 1),
            Meaning::Other if self.recording => return self.answer(frame, &segment),
            Meaning::Other if self.tells_answers => self.tell_answer(frame, &segment, time_ns),
            Meaning::Other => self.count(Count::NotMapped, 1),
        }
        false
    }

    /// An answer, which a recording takes and no shard does.
    fn answer(&mut self, frame: &Frame<'_>, segment: &Segment<'_>) -> bool {
        let what = match self.online.answer(&segment.src, &segment.dst) {
            Meaning::Mapping(_) if self.takes(frame) => Count::Answers,
            Meaning::Mapping(_) | Meaning::LeftOut => Count::LeftOut,
            Meaning::Own => Count::Own,
            Meaning::Other => Count::NotMapped,
        };
        self.count(what, 1);
        what == Count::Answers
    }

    /// An answer in a file: the shard of its client gets the header, which counts as no segment anywhere. What the expression says
    /// of it is not asked: a flow that the expression leaves out has no session.
    fn tell_answer(&mut self, frame: &Frame<'_>, segment: &Segment<'_>, time_ns: u64) {
        let Meaning::Mapping(mapping) = self.online.answer(&segment.src, &segment.dst) else {
            return self.count(Count::NotMapped, 1);
        };
        self.count(Count::Answers, 1);
        let head = Captured {
            time_ns,
            tcp: segment.tcp,
            payload_len: 0,
            cut_len: segment.wire_payload_len,
            client: segment.dst,
            server: segment.src,
            mapping,
            lap: self.lap,
            answer: 1,
            stamp_us: stamp_us(frame),
        };
        // The reader has waited for room; without it the flow is judged as if the file had no answers.
        let _ = self.lanes.is_empty() || self.hand_over(&head, &[]);
    }

    /// Whether the expression takes a packet, if there is one.
    fn takes(&self, frame: &Frame<'_>) -> bool {
        self.expression.as_ref().is_none_or(|machine| machine.matches(frame.packet, frame.wire_len))
    }

    fn segment(&mut self, frame: &Frame<'_>, segment: &Segment<'_>, mapping: u16, time_ns: u64) {
        let payload = segment.payload;
        let payload_len = payload.len() as u32;
        let cut_len = segment.wire_payload_len - payload_len;
        self.count(Count::Segments, 1);
        self.count(Count::PayloadBytes, payload_len.into());
        if frame.checksum_unfilled {
            self.count(Count::ChecksumUnfilled, 1);
        }
        if cut_len > 0 {
            self.count(Count::CutSegments, 1);
            self.count(Count::CutBytes, cut_len.into());
        }
        if self.lanes.is_empty() {
            return;
        }
        let head = Captured {
            time_ns,
            tcp: segment.tcp,
            payload_len,
            cut_len,
            client: segment.src,
            server: segment.dst,
            mapping,
            lap: self.lap,
            answer: 0,
            stamp_us: stamp_us(frame),
        };
        if !self.hand_over(&head, payload) {
            self.ring_full(segment);
        }
    }

    /// A packet that is no segment, where datagrams are mapped. Says whether a recording takes it.
    fn udp(&mut self, frame: &Frame<'_>, time_ns: u64) -> bool {
        let Some(mut udp) = self.udp.take() else { return false };
        let mut wanted = false;
        let (mut fragments, mut incomplete) = (0, 0);
        let each = match frame.carries {
            Carries::Each(bytes) => usize::from(bytes.get()),
            Carries::One | Carries::Several => usize::MAX,
        };
        let seen = match datagram::parse(frame.packet, frame.wire_len) {
            Ok(Seen::Whole(datagram)) => Ok(Some(datagram)),
            Ok(Seen::Part(part, fragment)) => {
                fragments = 1;
                let whole = udp.fragments.take(&part, fragment, time_ns, &mut incomplete);
                whole.map(|packet| datagram::whole(&packet)).transpose()
            }
            Err(malformed) => Err(malformed),
        };
        match seen {
            Ok(None) => {}
            Ok(Some(datagram)) => {
                let mut meaning = udp.online.meaning(&datagram.src, &datagram.dst);
                let answer = self.recording && meaning == Meaning::Other;
                if answer {
                    meaning = udp.online.answer(&datagram.src, &datagram.dst);
                }
                match meaning {
                    // Of fragments the expression saw the first alone, in the kernel.
                    Meaning::Mapping(_) if fragments == 0 && !self.takes(frame) => {
                        self.count(Count::LeftOut, 1);
                    }
                    // Neither what it carried nor that it was one datagram would be true.
                    Meaning::Mapping(_) if frame.carries == Carries::Several => {
                        self.count(Count::DatagramsUnsplit, 1);
                    }
                    Meaning::Mapping(mapping) => {
                        for one in datagram.parts(each) {
                            if answer {
                                self.count(Count::Answers, 1);
                            } else {
                                self.datagram(&one, mapping, time_ns);
                            }
                        }
                        wanted = true;
                    }
                    Meaning::Own => self.count(Count::Own, 1),
                    Meaning::LeftOut => self.count(Count::LeftOut, 1),
                    Meaning::Other => self.count(Count::NotMapped, 1),
                }
                if wanted && self.recording && (fragments > 0 || each < datagram.payload.len()) {
                    udp.instead.write(&datagram, each);
                }
            }
            Err(malformed) => self.count(malformed.into(), 1),
        }
        self.count(Count::DatagramFragments, fragments);
        self.count(Count::DatagramsIncomplete, incomplete);
        self.udp = Some(udp);
        wanted
    }

    fn datagram(&mut self, datagram: &Datagram<'_>, mapping: u16, time_ns: u64) {
        let payload = datagram.payload;
        let payload_len = payload.len() as u32;
        if payload_len < datagram.wire_payload_len {
            // Half a datagram is none.
            return self.count(Count::DatagramsCut, 1);
        }
        self.count(Count::Datagrams, 1);
        self.count(Count::DatagramBytes, payload_len.into());
        if self.lanes.is_empty() {
            return;
        }
        let head = Captured {
            time_ns,
            tcp: TcpFields::default(),
            payload_len,
            client: datagram.src,
            server: datagram.dst,
            mapping,
            lap: self.lap,
            ..Captured::default()
        };
        if !self.hand_over(&head, payload) {
            let (percent, milli) = (self.control.percent_ppm(), self.control.copies_milli());
            let copies = copies(self.sample_seed, &datagram.src, &datagram.dst, 0, percent, milli);
            self.count(Count::DatagramsRingFull, u64::from(copies));
            self.count(Count::DatagramsRingFullWantedBytes, u64::from(payload_len) * u64::from(copies));
        }
    }

    /// Puts a record into its shard's ring; false when there is no room.
    fn hand_over(&mut self, head: &Captured, payload: &[u8]) -> bool {
        let hash = endpoint_hash(self.shard_seed, &head.client);
        let shard = shard_of(hash, self.lanes.len() as u16);
        let lane = &mut self.lanes[usize::from(shard)];
        let len = HEAD + payload.len();
        let opens = head.tcp.flags & (flag::SYN | flag::ACK) == flag::SYN;
        if opens && let Some(openings) = &mut lane.openings {
            if !openings.has_room(&mut lane.ring) {
                return false;
            }
            openings.put();
        }
        let Some(record) = lane.ring.reserve(len) else { return false };
        record[..HEAD].copy_from_slice(head.as_bytes());
        record[HEAD..].copy_from_slice(payload);
        lane.ring.commit(len);
        lane.touched = true;
        lane.unheard += 1;
        lane.urgent |= !head.is_answer()
            && (head.payload_len > 0
                || !head.tcp.has(flag::ACK)
                || head.tcp.flags & (flag::SYN | flag::FIN | flag::RST) != 0);
        true
    }

    /// The shard will never see this segment, so what it would have wanted is counted here: as wanted and as dropped.
    #[cold]
    fn ring_full(&mut self, segment: &Segment<'_>) {
        let payload_len = segment.payload.len() as u64;
        // Without a table the flow's first sequence number is known for its SYN alone.
        let isn = if segment.tcp.has(flag::SYN) { segment.tcp.seq.0 } else { 0 };
        let (percent, milli) = (self.control.percent_ppm(), self.control.copies_milli());
        let copies = copies(self.sample_seed, &segment.src, &segment.dst, isn, percent, milli);
        self.count(Count::RingFullSegments, 1);
        self.count(Count::RingFullBytes, payload_len);
        self.count(Count::RingFullWantedBytes, payload_len * u64::from(copies));
    }

    /// Ends the batch in one step: its records become visible, its counts are added, and `positions` tells the number of the
    /// next frame of each ring that was read. Only afterwards may frames be given back to the kernel. At most one wake-up
    /// for each shard that got something.
    pub fn commit(&mut self, positions: impl FnOnce(&mut dyn FnMut(u16, u64))) {
        let Self { lanes, counters, counted, journal, .. } = self;
        counted[Count::Batches.index()] = u64::from(lanes.iter().any(|lane| lane.touched));
        for (shard, lane) in (0..).zip(lanes.iter()).filter(|(_, lane)| lane.touched) {
            journal.put(Word::Tail(Link::Capture(shard)), lane.ring.staged());
        }
        for (index, n) in counted.iter_mut().enumerate().filter(|(_, n)| **n > 0) {
            journal.put(Word::Counter(index), counters.get(index).wrapping_add(std::mem::take(n)));
        }
        positions(&mut |ring, number| {
            let index = POSITIONS + usize::from(ring);
            if counters.get(index) != number {
                journal.put(Word::Counter(index), number);
            }
        });
        journal.commit();
        for lane in lanes {
            if std::mem::take(&mut lane.touched) && lane.ring.publish() {
                lane.ring_bell();
            }
        }
        journal.done();
    }

    fn count(&mut self, what: Count, n: u64) {
        self.counted[what.index()] += n;
    }
}

impl Instead {
    /// Writes packets for a recording: one for each datagram of `each` payload bytes that this one stands for.
    fn write(&mut self, datagram: &Datagram<'_>, each: usize) {
        for one in datagram.parts(each) {
            self.made = self.made.wrapping_add(1);
            let piece = Pieces::whole(one.src, one.dst, one.payload, self.made);
            let mut headers = [0; MAX_HEADERS];
            let len = piece.emit(&mut headers);
            let first = self.packets.is_empty();
            self.packets.extend_from_slice(&headers[..len]);
            self.packets.extend_from_slice(piece.payload);
            if first {
                self.each = self.packets.len();
            }
        }
    }
}

/// See [`Captured::stamp_us`].
const fn stamp_us(frame: &Frame<'_>) -> u32 {
    (frame.time_ns / 1_000) as u32
}

#[cfg(test)]
mod tests;
