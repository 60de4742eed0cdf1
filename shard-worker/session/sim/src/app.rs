//! The service at the target: reads requests, answers them one after the other as the flow's plan says, closes when the
//! client has closed, and makes the trouble that was drawn for its connection.

use std::collections::VecDeque;

use crate::flows::{self, Answer, End, Flow, GREETING, HEAD};
use crate::oracle::{Broken, Oracle};

/// A connection as its service sees it.
pub(crate) trait Stream {
    /// Whether it stands and has not been closed on this side.
    fn may_send(&self) -> bool;
    /// Gives some of what has arrived to `each`; false when nothing has.
    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> bool;
    /// Takes as many of the bytes as there is room for; how many.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// The other side has closed, and all that it had sent was read.
    fn ended(&mut self) -> bool;
    fn close(&mut self);
    fn abort(&mut self);
}

/// What goes wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    Refuse,
    /// Closes after so many answers, whatever still comes.
    CloseAfter(u32),
    /// Resets after so many answers.
    ResetAfter(u32),
    /// Resets within the answer after so many.
    ResetWithin(u32),
    /// Stops reading after so many requests, for a while.
    Stall(u32, u64),
    /// Reads, but answers no more after so many.
    Mute(u32),
}

enum Parse {
    Head(Vec<u8>),
    Body {
        flow: u32,
        number: u32,
        left: u32,
    },
    /// Not a request: the service gives up.
    Garbled,
}

struct Writing {
    answer: Answer,
    /// Answers finished with this one, in the flow's numbering.
    unit: u32,
    writes_left: u32,
    bytes_left: u32,
    next_us: u64,
    closes: bool,
}

/// The service's side of one connection.
pub(crate) struct App {
    greets: bool,
    trouble: Trouble,
    parse: Parse,
    queue: VecDeque<(u64, Answer, u32, bool)>,
    writing: Option<Writing>,
    /// Bytes due for the socket.
    pending: u32,
    /// Bytes given to the socket.
    pub(crate) written: u32,
    ends: VecDeque<(u32, u32)>,
    units: u32,
    answers: u32,
    requests: u32,
    resumes_us: u64,
    closed: bool,
    resets_late: bool,
    /// Bytes read.
    pub(crate) taken: u32,
    pub(crate) garbled_now: bool,
}

const ZEROS: [u8; 4096] = [0; 4096];

impl App {
    pub(crate) fn new(greets: bool, trouble: Trouble, resets_late: bool) -> Self {
        Self {
            greets,
            trouble,
            parse: Parse::Head(Vec::new()),
            queue: VecDeque::new(),
            writing: None,
            pending: 0,
            written: 0,
            ends: VecDeque::new(),
            units: 0,
            answers: 0,
            requests: 0,
            resumes_us: 0,
            closed: false,
            resets_late,
            taken: 0,
            garbled_now: false,
        }
    }

    /// When it wants to act by itself.
    pub(crate) fn due_us(&self) -> u64 {
        if self.closed {
            return u64::MAX;
        }
        let stalled = if self.resumes_us > 0 { self.resumes_us } else { u64::MAX };
        match &self.writing {
            Some(writing) if self.pending == 0 => writing.next_us.min(stalled),
            _ => stalled,
        }
    }

    /// How many answers are on the wire whole, when so many bytes are.
    pub(crate) fn answered(&mut self, left: u32) -> u32 {
        while let Some(&(end, unit)) = self.ends.front() {
            if end > left {
                break;
            }
            self.units = self.units.max(unit);
            self.ends.pop_front();
        }
        self.units
    }

    /// Reads and writes what can be; whether the socket has something new to do.
    pub(crate) fn work(
        &mut self,
        now_us: u64,
        stream: &mut impl Stream,
        track: usize,
        flows: &[Flow],
        oracle: &mut Oracle,
    ) -> Result<bool, Broken> {
        if self.closed {
            return Ok(self.after_close(stream));
        }
        let mut acted = false;
        if self.greets && stream.may_send() {
            self.greets = false;
            self.pending = GREETING;
            self.ends.push_back((GREETING, 1));
        }
        if self.resumes_us > 0 && now_us >= self.resumes_us {
            self.resumes_us = 0;
        }
        while self.resumes_us == 0 {
            let mut result = Ok(());
            let some = stream.read(&mut |bytes| {
                result = oracle.read(flows, track, bytes);
                self.parse(now_us, bytes, flows);
                self.taken += bytes.len() as u32;
            });
            result?;
            if !some {
                break;
            }
            acted = true;
        }
        acted |= self.write(now_us, stream);
        let done = self.queue.is_empty() && self.writing.is_none() && self.pending == 0;
        let garbled = matches!(self.parse, Parse::Garbled);
        if matches!(self.trouble, Trouble::ResetAfter(n) if self.answers >= n && self.requests > n)
            || matches!(self.trouble, Trouble::ResetWithin(n) if self.answers == n && self.written > 0 && self.writing.is_some())
        {
            stream.abort();
            self.closed = true;
            return Ok(true);
        }
        let early = matches!(self.trouble, Trouble::CloseAfter(n) if self.answers >= n && stream.may_send() && self.writing.is_none() && self.pending == 0);
        let eof = (done || matches!(self.trouble, Trouble::Mute(_))) && stream.ended();
        if early || garbled || eof {
            stream.close();
            self.closed = true;
            return Ok(true);
        }
        Ok(acted)
    }

    /// What still comes is thrown away, or answered by a reset: services do one or the other.
    fn after_close(&mut self, stream: &mut impl Stream) -> bool {
        let mut some = false;
        while stream.read(&mut |_| {}) {
            some = true;
            if self.resets_late {
                stream.abort();
                break;
            }
        }
        some
    }

    fn write(&mut self, now_us: u64, stream: &mut impl Stream) -> bool {
        let mut acted = false;
        loop {
            while self.pending > 0 {
                let n = stream.write(&ZEROS[..(self.pending as usize).min(ZEROS.len())]);
                if n == 0 {
                    break;
                }
                acted = true;
                self.pending -= n as u32;
                self.written += n as u32;
            }
            if self.pending > 0 {
                return acted;
            }
            if self.writing.is_none() {
                let Some((at, answer, unit, closes)) = self.queue.pop_front() else { return acted };
                self.writing = Some(Writing {
                    answer,
                    unit,
                    writes_left: answer.writes.min(answer.len).max(1),
                    bytes_left: answer.len,
                    next_us: at.max(now_us) + answer.delay_us,
                    closes,
                });
            }
            let Some(writing) = &mut self.writing else { return acted };
            if writing.next_us > now_us {
                return acted;
            }
            let n = match writing.writes_left {
                0 | 1 => writing.bytes_left,
                left => writing.bytes_left / left,
            };
            self.pending += n;
            writing.bytes_left -= n;
            writing.writes_left -= 1;
            writing.next_us = now_us + writing.answer.gap_us;
            if writing.writes_left == 0 {
                self.ends.push_back((self.written + self.pending, writing.unit));
                self.answers += 1;
                if writing.closes {
                    self.trouble = Trouble::CloseAfter(0);
                }
                self.writing = None;
            }
        }
    }

    fn parse(&mut self, now_us: u64, mut bytes: &[u8], flows: &[Flow]) {
        while !bytes.is_empty() {
            match &mut self.parse {
                Parse::Garbled => return,
                Parse::Head(got) => {
                    let n = (HEAD - got.len()).min(bytes.len());
                    got.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if got.len() < HEAD {
                        return;
                    }
                    self.parse = match flows::head(got) {
                        Some((flow, number, len)) => Parse::Body { flow, number, left: len - HEAD as u32 },
                        None => {
                            self.garbled_now = true;
                            Parse::Garbled
                        }
                    };
                }
                Parse::Body { left, .. } => {
                    let n = (*left as usize).min(bytes.len());
                    *left -= n as u32;
                    bytes = &bytes[n..];
                }
            }
            if let Parse::Body { flow, number, left: 0 } = self.parse {
                self.parse = Parse::Head(Vec::new());
                self.request(now_us, &flows[flow as usize], number);
            }
        }
    }

    fn request(&mut self, now_us: u64, flow: &Flow, number: u32) {
        let request = &flow.requests[number as usize];
        self.requests += 1;
        match self.trouble {
            Trouble::Mute(after) if self.requests > after => return,
            Trouble::Stall(after, us) if self.requests > after => {
                self.resumes_us = now_us + us;
                self.trouble = Trouble::None;
            }
            _ => {}
        }
        let last = number as usize + 1 == flow.requests.len();
        let closes = last && flow.end == End::ServerCloses;
        self.queue.push_back((now_us, request.target, number + 1 + flow.greeted(), closes));
    }
}
