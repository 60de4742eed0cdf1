//! The online side: one flow played between a model client and a model server, over the client's own way. What comes
//! out is what passes the server's interface from the client: handshake, requests with the client's own losses,
//! repetitions and disorder, acknowledgements, and the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::dice::Dice;
use crate::flows::{End, Flow, GREETING, HEAD};
use crate::scenario::OnlineSpec;

/// A segment of the client's where the capture stands. Numbers count from the initial ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Since the start of the world.
    pub(crate) at_us: u64,
    /// Place in the client's stream.
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// Answer bytes acknowledged, the server's FIN included.
    pub(crate) ack: u32,
    pub(crate) mark: Mark,
    pub(crate) push: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Syn,
    None,
    Fin,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The client writes its next request, or ends.
    Next,
    Write {
        offset: u32,
        len: u32,
    },
    Send {
        offset: u32,
        len: u32,
        tries: u32,
        push: bool,
    },
    /// A data segment reaches the server.
    Arrive {
        offset: u32,
        len: u32,
    },
    /// So many answer bytes reach the client.
    Read {
        bytes: u32,
        whole: bool,
    },
    DelayedAck,
    ServerFin,
}

/// Answers are acknowledged after so long at the latest, as Linux does.
const DELAYED_ACK_US: u64 = 40_000;
/// The client's own retransmission timer.
const RTO_US: u64 = 200_000;
/// Segments of the first flight.
const FLIGHT: u32 = 10;

struct Play<'a> {
    flow: &'a mut Flow,
    spec: &'a OnlineSpec,
    dice: &'a mut Dice,
    way_us: u64,
    events: BinaryHeap<Reverse<(u64, u32, Event)>>,
    serial: u32,
    seen: Vec<Seen>,
    /// Next request to be written.
    next: usize,
    waiting: bool,
    written: u32,
    /// Answer bytes read, answers read whole, and what was acknowledged of them.
    read: u32,
    answers: u32,
    acked: u32,
    /// What has reached the server: a contiguous part and pieces behind it.
    got: u32,
    pieces: Vec<(u32, u32)>,
    served: usize,
    busy_us: u64,
    last_us: u64,
    /// Until when earlier writes are being sent.
    sending_us: u64,
    ended: bool,
}

/// Plays a flow; fills in what the client had read before each request. The result is in the order of the capture.
pub(crate) fn play(flow: &mut Flow, spec: &OnlineSpec, dice: &mut Dice) -> Vec<Seen> {
    let way_us = flow.rtt_us / 2;
    let born = flow.born_us;
    let mut play = Play {
        flow,
        spec,
        dice,
        way_us,
        events: BinaryHeap::new(),
        serial: 0,
        seen: Vec::new(),
        next: 0,
        waiting: true,
        written: 0,
        read: 0,
        answers: 0,
        acked: 0,
        got: 0,
        pieces: Vec::new(),
        served: 0,
        busy_us: 0,
        last_us: born,
        sending_us: 0,
        ended: false,
    };
    play.run(born);
    let mut seen = play.seen;
    seen.sort_by_key(|seen| seen.at_us);
    seen
}

impl Play<'_> {
    fn run(&mut self, born: u64) {
        self.show(born, 0, 0, Mark::Syn, false);
        if self.spec.loss_ppm > 0 && self.dice.ppm(self.spec.loss_ppm) {
            self.show(born + 1_000_000, 0, 0, Mark::Syn, false);
        }
        let established = self.last_us + self.flow.rtt_us;
        self.show(established, 0, 0, Mark::None, false);
        self.busy_us = established;
        if self.flow.greeted() == 1 {
            self.answer(established, GREETING, 1, 0, true);
        }
        self.at(established - self.way_us.min(established), Event::Next);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if self.ended {
                break;
            }
            self.happen(at, event);
        }
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at_us, self.serial, event)));
    }

    fn show(&mut self, at_us: u64, offset: u32, len: u32, mark: Mark, push: bool) {
        self.seen.push(Seen { at_us, offset, len, ack: self.acked, mark, push });
        self.last_us = self.last_us.max(at_us);
    }

    fn happen(&mut self, now: u64, event: Event) {
        match event {
            Event::Next => self.go_on(now),
            Event::Write { offset, len } => self.write(now, offset, len),
            Event::Send { offset, len, tries, push } => self.send(now, offset, len, tries, push),
            Event::Arrive { offset, len } => self.arrive(now, offset, len),
            Event::Read { bytes, whole } => {
                self.read += bytes;
                self.answers += u32::from(whole);
                if self.read - self.acked >= 2 * self.flow.mss || self.dice.percent(20) {
                    self.acknowledge(now);
                } else {
                    self.at(now + DELAYED_ACK_US, Event::DelayedAck);
                }
                self.go_on(now);
            }
            Event::DelayedAck if self.read > self.acked => self.acknowledge(now),
            Event::DelayedAck => {}
            Event::ServerFin => {
                self.read += 1;
                self.acked = self.read;
                let (at, end) = (now + self.way_us, self.written);
                self.show(at, end, 0, Mark::None, false);
                self.show(at + 10, end, 0, Mark::Fin, false);
                self.ended = true;
            }
        }
    }

    fn acknowledge(&mut self, now: u64) {
        self.acked = self.read;
        self.show(now + self.way_us, self.written, 0, Mark::None, false);
    }

    /// Writes the next request if it is time; ends when there is none.
    fn go_on(&mut self, now: u64) {
        if self.next == self.flow.requests.len() {
            self.finish(now);
            return;
        }
        let request = &self.flow.requests[self.next];
        if self.answers < request.after {
            return;
        }
        if self.waiting {
            self.waiting = false;
            let at = now + request.think_us;
            self.at(at, Event::Next);
            return;
        }
        self.waiting = true;
        let (start, len) = (request.start, request.len);
        // The first write has the whole head: it says whose the bytes are.
        let writes = request.writes.min(len / HEAD as u32);
        self.flow.requests[self.next].read_before = self.answers;
        self.next += 1;
        let mut at = now;
        for i in 0..writes {
            let (from, to) = (len / writes * i, if i + 1 == writes { len } else { len / writes * (i + 1) });
            self.at(at, Event::Write { offset: start + from, len: to - from });
            at += self.dice.size(10_000);
        }
        self.at(at, Event::Next);
    }

    fn finish(&mut self, now: u64) {
        let all = self.answers as usize == self.flow.requests.len() + self.flow.greeted() as usize;
        let sent = self.got as usize == self.flow.stream.len();
        let at = now + self.way_us;
        match self.flow.end {
            End::HalfClose => {
                let sends = |event: &Event| matches!(event, Event::Send { .. } | Event::Write { .. });
                if self.events.iter().any(|Reverse((_, _, event))| sends(event)) {
                    self.at(now + 1000, Event::Next);
                    return;
                }
                self.show(at.max(self.last_us + 1), self.written, 0, Mark::Fin, false);
                // What it still reads is acknowledged at once, and that is all it says.
                while let Some(Reverse((at, _, event))) = self.events.pop() {
                    match event {
                        Event::Read { .. } | Event::Arrive { .. } | Event::Send { .. } => {
                            self.happen_after_fin(at, event);
                        }
                        _ => {}
                    }
                }
                self.ended = true;
            }
            End::Close if all && sent => {
                self.acked = self.read;
                self.show(at.max(self.last_us + 1), self.written, 0, Mark::Fin, false);
                self.acked = self.read + 1;
                self.show(self.last_us + self.flow.rtt_us + 10, self.written + 1, 0, Mark::None, false);
                self.ended = true;
            }
            End::ServerCloses if all && sent => self.at(now, Event::ServerFin),
            End::Reset if all && sent => {
                self.show(at.max(self.last_us + 1), self.written, 0, Mark::Reset, false);
                self.ended = true;
            }
            End::Vanish if all && sent => self.ended = true,
            _ => {}
        }
    }

    fn happen_after_fin(&mut self, now: u64, event: Event) {
        match event {
            Event::Read { bytes, whole } => {
                self.read += bytes;
                self.answers += u32::from(whole);
                self.acked = self.read;
                self.show(now + self.way_us, self.written + 1, 0, Mark::None, false);
            }
            Event::Arrive { offset, len } => self.arrive(now, offset, len),
            Event::Send { offset, len, tries, push } => self.send(now, offset, len, tries, push),
            _ => {}
        }
    }

    /// Cuts a write into segments, flight after flight.
    fn write(&mut self, now: u64, offset: u32, len: u32) {
        let piece = match self.flow.mss {
            mss if self.flow.stamps => mss - 12,
            mss => mss,
        };
        let (mut done, mut at, mut flight, mut left) = (0, now.max(self.sending_us), FLIGHT, FLIGHT);
        while done < len {
            let n = piece.min(len - done);
            self.at(at, Event::Send { offset: offset + done, len: n, tries: 0, push: done + n == len });
            done += n;
            left -= 1;
            at += 1 + self.dice.below(3);
            if left == 0 {
                at += self.flow.rtt_us;
                flight *= 2;
                left = flight;
            }
        }
        self.sending_us = at;
        self.written = self.written.max(offset + len);
    }

    fn send(&mut self, now: u64, offset: u32, len: u32, tries: u32, push: bool) {
        self.acked = self.read;
        if tries < 4 && self.dice.ppm(self.spec.loss_ppm) {
            let last = offset + len == self.written;
            let pause = if last || tries > 0 { RTO_US << tries } else { self.flow.rtt_us + 1000 };
            self.at(now + pause, Event::Send { offset, len, tries: tries + 1, push });
            return;
        }
        let late = if self.dice.ppm(self.spec.late_ppm) { self.dice.below(3000) } else { 0 };
        let arrives = now + self.way_us + late;
        self.show(arrives, offset, len, Mark::None, push);
        self.at(arrives, Event::Arrive { offset, len });
        if self.dice.ppm(self.spec.spurious_ppm) {
            self.at(now + RTO_US, Event::Send { offset, len, tries: 4, push });
        }
    }

    fn arrive(&mut self, now: u64, offset: u32, len: u32) {
        if offset > self.got {
            self.pieces.push((offset, offset + len));
        } else {
            self.got = self.got.max(offset + len);
            while let Some(at) = self.pieces.iter().position(|(from, _)| *from <= self.got) {
                let (_, to) = self.pieces.swap_remove(at);
                self.got = self.got.max(to);
            }
        }
        while let Some(request) = self.flow.requests.get(self.served) {
            if self.got < request.start + request.len {
                break;
            }
            self.served += 1;
            let online = request.online;
            let from = now.max(self.busy_us) + online.delay_us;
            self.answer(from, online.len, online.writes, online.gap_us, true);
        }
    }

    /// The server writes an answer; the client reads it after the way back.
    fn answer(&mut self, from: u64, len: u32, writes: u32, gap_us: u64, whole: bool) {
        let writes = writes.min(len).max(1);
        let mut at = from;
        for i in 0..writes {
            let bytes = if i + 1 == writes { len - len / writes * i } else { len / writes };
            self.at(at + self.way_us, Event::Read { bytes, whole: whole && i + 1 == writes });
            at += gap_us;
        }
        self.busy_us = at;
    }
}
