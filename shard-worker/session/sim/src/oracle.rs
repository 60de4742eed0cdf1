//! What must hold, whatever happens. The oracle sees every record that the table emits, every header that it is given
//! and every byte that the target's application reads, and knows what the clients have written.
//!
//! | rule | looked at |
//! |---|---|
//! | emitted bytes are a client's, in the order of its stream, and never another flow's | at each record |
//! | numbers are contiguous; what is sent again is the same bytes; nothing follows a FIN | at each record |
//! | the peer's window and segment size are kept | at each record and packet |
//! | endpoints are the table's own, of its shard, and rested | at each SYN |
//! | a request leaves after the answer that its client had read, except as counted | at each request, and at the end |
//! | the application reads the stream, in order and once, except what was dropped under a name | at each read, and at the end |

use std::collections::HashMap;

use flow::record::{flag, opt};
use flow::{Endpoint, Inject, Returned, Seq};

use crate::capture::Had;
use crate::figures::{Figure, Figures};
use crate::flows::{self, Flow, HEAD};
use crate::scenario::Scenario;

/// A broken rule, as a sentence.
pub(crate) type Broken = String;

/// Bytes of a connection that stand for bytes of its flow's stream.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u32,
    flow: u32,
    stream: u32,
    len: u32,
}

/// One connection of a replayed client.
pub(crate) struct Track {
    pub(crate) client: Endpoint,
    pub(crate) isn: Seq,
    pub(crate) flow: Option<u32>,
    pieces: Vec<Piece>,
    /// Bytes sent at least once.
    pub(crate) sent: u32,
    fin: bool,
    last_us: u64,
    /// How far the peer's window reaches, as far as we were told.
    edge: u32,
    shift: u8,
    mss: u32,
    synchronised: bool,
    /// What was delivered to the table: acknowledged bytes, answer bytes, and when they last grew.
    acked: u32,
    answer: Seq,
    progress_us: u64,
    /// Requests that have left, by number.
    requests: Vec<u32>,
    /// Answers that the target has sent whole (a greeting is one), counted in the flow's numbering.
    pub(crate) answered: u32,
    /// Bytes that the application has read, and that its TCP has acknowledged.
    pub(crate) read: u32,
    pub(crate) taken: u32,
    /// Something happened to it that a client would feel: bytes of it may be lost with it.
    pub(crate) troubled: bool,
}

/// What is known of one flow.
#[derive(Default)]
struct Known {
    captured_us: Vec<u64>,
    connections: u32,
    /// Stream ranges that applications have read.
    read: Vec<(u32, u32)>,
    troubled: bool,
}

/// The books of a world.
pub(crate) struct Oracle {
    pub(crate) tracks: Vec<Track>,
    live: HashMap<(Endpoint, u16), usize>,
    known: Vec<Known>,
    pub(crate) had: Vec<Had>,
    pub(crate) figures: Figures,
    starts: Option<HashMap<[u8; 8], (u32, u32)>>,
    rests_us: u64,
    mtu: u32,
    /// Turns wait in this world.
    waits: bool,
    /// The world is drained under way or has too little of something.
    scarce: bool,
    /// Requests out of turn, uncounted as yet: (flow, whether its lengths could mislead).
    early: Vec<u32>,
    /// The longest wait of a turn, and whose it was.
    pub(crate) longest: (u64, String),
}

impl Oracle {
    pub(crate) fn new(flows: &[Flow], had: Vec<Had>, scenario: &Scenario, rests_us: u64, mtu: u16) -> Self {
        let known = flows
            .iter()
            .map(|flow| Known { captured_us: vec![u64::MAX; flow.requests.len()], ..Known::default() })
            .collect();
        Self {
            tracks: Vec::new(),
            live: HashMap::new(),
            known,
            had,
            figures: Figures::default(),
            starts: None,
            rests_us,
            mtu: u32::from(mtu),
            waits: scenario.wait,
            scarce: scenario.is_scarce(),
            early: Vec::new(),
            longest: (0, String::new()),
        }
    }

    /// A captured segment is given to the table.
    pub(crate) fn captured(&mut self, now_us: u64, flow: &Flow, offset: u32, len: u32) {
        let known = &mut self.known[flow.id as usize];
        let first = flow.requests.partition_point(|request| request.start < offset);
        for (request, at) in flow.requests[first..].iter().zip(&mut known.captured_us[first..]) {
            if request.start >= offset + len {
                break;
            }
            *at = (*at).min(now_us);
        }
    }

    /// The connection that a record belongs to.
    pub(crate) fn track(&self, client: &Endpoint, target: u16) -> Option<usize> {
        self.live.get(&(*client, target)).copied()
    }

    /// The table has emitted a record.
    pub(crate) fn emitted(
        &mut self,
        now_us: u64,
        flows: &[Flow],
        head: &Inject,
        payload: &[u8],
    ) -> Result<usize, Broken> {
        let key = (head.client, head.target);
        if head.tcp.has(flag::SYN) {
            return self.opened(now_us, head);
        }
        let Some(&id) = self.live.get(&key) else {
            return Err(format!("a record from {} without a SYN before", head.client));
        };
        let track = &mut self.tracks[id];
        track.last_us = now_us;
        if payload.is_empty() {
            if head.tcp.has(flag::FIN) {
                let at = head.tcp.seq.since(track.isn + 1);
                if at != track.sent as i32 {
                    return Err(format!("{}: a FIN at {at} after {} bytes", head.client, track.sent));
                }
                track.fin = true;
            }
            return Ok(id);
        }
        self.data(now_us, flows, id, head, payload)?;
        Ok(id)
    }

    fn opened(&mut self, now_us: u64, head: &Inject) -> Result<usize, Broken> {
        let key = (head.client, head.target);
        if let Some(&id) = self.live.get(&key) {
            let track = &mut self.tracks[id];
            if track.isn == head.tcp.seq {
                track.last_us = now_us;
                return Ok(id);
            }
            if now_us < track.last_us + self.rests_us {
                return Err(format!("{} is used again after {} us", head.client, now_us - track.last_us));
            }
        }
        self.tracks.push(Track {
            client: head.client,
            isn: head.tcp.seq,
            flow: None,
            pieces: Vec::new(),
            sent: 0,
            fin: false,
            last_us: now_us,
            edge: 0,
            shift: 0,
            mss: 0,
            synchronised: false,
            acked: 0,
            answer: Seq(0),
            progress_us: now_us,
            requests: Vec::new(),
            answered: 0,
            read: 0,
            taken: 0,
            troubled: false,
        });
        let id = self.tracks.len() - 1;
        self.live.insert(key, id);
        Ok(id)
    }

    fn data(
        &mut self,
        now_us: u64,
        flows: &[Flow],
        id: usize,
        head: &Inject,
        payload: &[u8],
    ) -> Result<(), Broken> {
        let track = &self.tracks[id];
        let client = track.client;
        let at = head.tcp.seq.since(track.isn + 1);
        let end = at + payload.len() as i32;
        if !track.synchronised {
            return Err(format!("{client}: data before the target's SYN"));
        }
        if at < 0 || at > track.sent as i32 {
            return Err(format!("{client}: data at {at} after {} bytes", track.sent));
        }
        if track.fin && end > track.sent as i32 {
            return Err(format!("{client}: data behind its FIN"));
        }
        if end > track.edge as i32 {
            return Err(format!("{client}: data up to {end} for a window up to {}", track.edge));
        }
        let options = if head.tcp.has_option(opt::TIMESTAMPS) { 12 } else { 0 };
        let segment = (payload.len() as u32).min(u32::from(head.mss));
        let headers = if client.addr.is_v4() { 40 } else { 60 };
        if segment + options > track.mss || segment + options + headers > self.mtu {
            return Err(format!("{client}: segments of {segment} bytes for an MSS of {}", track.mss));
        }
        let old = (track.sent as i32 - at).min(payload.len() as i32) as usize;
        self.same(flows, id, at as u32, &payload[..old])?;
        let fresh = &payload[old..];
        if !fresh.is_empty() {
            self.fresh(now_us, flows, id, fresh)?;
        }
        Ok(())
    }

    /// Bytes at a place of a connection are those of the stream.
    fn same(&self, flows: &[Flow], id: usize, at: u32, bytes: &[u8]) -> Result<(), Broken> {
        let track = &self.tracks[id];
        let first = track.pieces.partition_point(|piece| piece.at + piece.len <= at);
        let mut done = 0;
        for piece in &track.pieces[first..] {
            if done == bytes.len() {
                break;
            }
            let skip = (at + done as u32) - piece.at;
            let n = ((piece.len - skip) as usize).min(bytes.len() - done);
            let from = (piece.stream + skip) as usize;
            if flows[piece.flow as usize].stream[from..from + n] != bytes[done..done + n] {
                return Err(format!("{}: other bytes at {}", track.client, at + done as u32));
            }
            done += n;
        }
        match done == bytes.len() {
            true => Ok(()),
            false => Err(format!("{}: {} bytes that were never sent", track.client, bytes.len() - done)),
        }
    }

    /// Bytes that leave for the first time on their connection: whose are they?
    fn fresh(&mut self, now_us: u64, flows: &[Flow], id: usize, bytes: &[u8]) -> Result<(), Broken> {
        let last = self.tracks[id].pieces.last().copied();
        let follows = last.and_then(|last| {
            let from = self.next_in(&flows[last.flow as usize], last.stream + last.len, bytes)?;
            Some((last.flow, from))
        });
        let (flow, from) = match (follows, last) {
            (Some(place), _) => place,
            (None, None) => self
                .whose(flows, bytes)
                .ok_or_else(|| format!("{}: bytes that no client has written", self.tracks[id].client))?,
            (None, Some(last)) => self.confused(flows, &last, bytes).ok_or_else(|| {
                let next = last.stream + last.len;
                format!("{}: bytes that do not follow {next} of flow {}", self.tracks[id].client, last.flow)
            })?,
        };
        let track = &mut self.tracks[id];
        if track.flow != Some(flow) {
            track.flow = Some(flow);
            let known = &mut self.known[flow as usize];
            known.connections += 1;
            known.troubled |= track.troubled;
        }
        match track.pieces.last_mut() {
            Some(last) if last.flow == flow && last.stream + last.len == from => {
                last.len += bytes.len() as u32;
            }
            _ => track.pieces.push(Piece { at: track.sent, flow, stream: from, len: bytes.len() as u32 }),
        }
        track.sent += bytes.len() as u32;
        self.requests(now_us, &flows[flow as usize], id, from, from + bytes.len() as u32);
        Ok(())
    }

    /// The four-tuple has come back, and neither the former flow's end nor the new one's SYN was captured: nobody can
    /// tell them apart when their numbers are near one another. Counted, never silent.
    fn confused(&mut self, flows: &[Flow], last: &Piece, bytes: &[u8]) -> Option<(u32, u32)> {
        let former = &flows[last.flow as usize];
        let (flow, from) = self.whose(flows, bytes)?;
        let same =
            flows[flow as usize].client == former.client && flows[flow as usize].server == former.server;
        let unseen = !self.had[flow as usize].syn && !self.had[last.flow as usize].end;
        if !(same && unseen && flow > last.flow) {
            return None;
        }
        self.figures.add(Figure::Confused, 1);
        Some((flow, from))
    }

    /// Where in the stream bytes stand that are expected at `next` or, past a hole, later.
    fn next_in(&self, flow: &Flow, next: u32, bytes: &[u8]) -> Option<u32> {
        let fits = |from: u32| flow.stream.get(from as usize..).is_some_and(|rest| rest.starts_with(bytes));
        if fits(next) {
            return Some(next);
        }
        let starts = &self.had[flow.id as usize].starts;
        let requests = flow.requests.iter().map(|request| request.start);
        starts
            .iter()
            .copied()
            .chain(requests)
            .filter(|&from| from > next && fits(from))
            .min()
            .or_else(|| (next..flow.stream.len() as u32).find(|&from| bytes.len() >= 4 && fits(from)))
    }

    fn whose(&mut self, flows: &[Flow], bytes: &[u8]) -> Option<(u32, u32)> {
        let fits = |flow: &Flow, from: u32| {
            flow.stream.get(from as usize..).is_some_and(|rest| rest.starts_with(bytes))
        };
        if let Some((flow, number, _)) = flows::head(bytes) {
            let flow = flows.get(flow as usize)?;
            let from = flow.requests.get(number as usize)?.start;
            return fits(flow, from).then_some((flow.id, from));
        }
        if let Some(first) = bytes.first_chunk::<8>() {
            let had = &self.had;
            let starts = self.starts.get_or_insert_with(|| {
                let of = |flow: &Flow| {
                    let id = flow.id;
                    let starts = had[id as usize].starts.iter().copied();
                    let requests = flow.requests.iter().map(|request| request.start);
                    let key = |from: u32| flow.stream[from as usize..].first_chunk::<8>().copied();
                    starts
                        .chain(requests)
                        .filter_map(|from| Some((key(from)?, (id, from))))
                        .collect::<Vec<_>>()
                };
                flows.iter().flat_map(of).collect()
            });
            if let Some(&(flow, from)) = starts.get(first)
                && fits(&flows[flow as usize], from)
            {
                return Some((flow, from));
            }
        }
        flows.iter().find_map(|flow| {
            let starts = &self.had[flow.id as usize].starts;
            starts.iter().find(|&&from| fits(flow, from)).map(|&from| (flow.id, from))
        })
    }

    /// Requests whose first byte leaves now: was it their turn?
    fn requests(&mut self, now_us: u64, flow: &Flow, id: usize, from: u32, to: u32) {
        let first = flow.requests.partition_point(|request| request.start < from);
        for (number, request) in flow.requests.iter().enumerate().skip(first) {
            if request.start >= to {
                break;
            }
            let track = &mut self.tracks[id];
            let known = &self.known[flow.id as usize];
            // Of the answers that its client had read, those that this connection has asked for (and that have a byte).
            let needs = request.read_before.saturating_sub(flow.greeted());
            let answers = |other: &&u32| **other < needs && flow.requests[**other as usize].online.len > 0;
            let asked = track.requests.iter().rev().find(answers);
            let owed = match asked {
                Some(other) => other + 1 + flow.greeted(),
                // Of a flow that was joined under way nobody knows whether its server had greeted.
                None if known.connections == 1 && self.had[flow.id as usize].syn => {
                    request.read_before.min(flow.greeted())
                }
                None => 0,
            };
            if self.waits && track.answered < owed {
                self.early.push(flow.id);
            } else if asked.is_some() {
                let could = track.progress_us.max(known.captured_us[number]);
                let wait = now_us.saturating_sub(could);
                self.figures.wait(wait);
                if wait > self.longest.0 {
                    self.longest = (wait, format!("request {number} of flow {}, {}", flow.id, track.client));
                }
            }
            track.requests.push(number as u32);
        }
    }

    /// A returned header is given to the table.
    pub(crate) fn returned(&mut self, now_us: u64, id: usize, record: &Returned) {
        let track = &mut self.tracks[id];
        let tcp = &record.tcp;
        if tcp.has(flag::RST) || !tcp.has(flag::ACK) {
            return;
        }
        if tcp.has(flag::SYN) {
            if tcp.ack != track.isn + 1 {
                return;
            }
            track.shift = if tcp.has_option(opt::WINDOW_SCALE) { tcp.window_scale.min(14) } else { 0 };
            track.mss = if tcp.has_option(opt::MSS) { u32::from(tcp.mss) } else { 536 };
            if !track.synchronised {
                track.synchronised = true;
                track.answer = tcp.seq + 1;
                track.progress_us = now_us;
            }
            track.edge = track.edge.max(u32::from(tcp.window));
            return;
        }
        let acked = tcp.ack.since(track.isn + 1);
        if !track.synchronised || acked < 0 {
            return;
        }
        let acked = acked as u32;
        track.edge = track.edge.max(acked + (u32::from(tcp.window) << track.shift));
        let end = tcp.seq + record.payload_len;
        if acked > track.acked || end.after(track.answer) {
            track.acked = track.acked.max(acked);
            track.answer = track.answer.max(end);
            track.progress_us = now_us;
        }
    }

    /// The target's application reads.
    pub(crate) fn read(&mut self, flows: &[Flow], id: usize, bytes: &[u8]) -> Result<(), Broken> {
        let at = self.tracks[id].read;
        self.same(flows, id, at, bytes).map_err(|why| format!("the application reads: {why}"))?;
        self.tracks[id].read += bytes.len() as u32;
        Ok(())
    }

    /// A connection meets with trouble.
    pub(crate) fn troubled(&mut self, id: usize) {
        self.tracks[id].troubled = true;
        if let Some(flow) = self.tracks[id].flow {
            self.known[flow as usize].troubled = true;
        }
    }

    /// What the applications have read of each flow, as stream ranges.
    fn settle(&mut self) {
        for track in &self.tracks {
            for piece in &track.pieces {
                if piece.at >= track.read {
                    break;
                }
                let n = piece.len.min(track.read - piece.at);
                self.known[piece.flow as usize].read.push((piece.stream, piece.stream + n));
            }
        }
    }

    /// At the end: (bytes captured but not read, of these in flows that nothing happened to, bytes read more than once
    /// too often).
    pub(crate) fn close(&mut self, flows: &[Flow]) -> Balance {
        self.settle();
        let mut balance = Balance { early: std::mem::take(&mut self.early), ..Balance::default() };
        for flow in flows {
            let known = &self.known[flow.id as usize];
            let had = &self.had[flow.id as usize];
            let (missing, excess) = compare(&had.ranges, &known.read, flow.copies);
            balance.missing += missing;
            balance.excess += excess;
            if missing > 0 && had.whole && !known.troubled {
                balance.unexplained += missing;
                balance.whose.push((flow.id, missing));
            }
            let copies = u64::from(flow.copies);
            self.figures.add(Figure::Bytes, had.bytes() * copies);
            self.figures.add(Figure::Unread, missing);
            for request in &flow.requests {
                let range = (request.start, request.start + request.len);
                let whole = had.ranges.iter().any(|had| had.0 <= range.0 && had.1 >= range.1);
                if whole {
                    let read = times_read(&known.read, range).min(u64::from(flow.copies));
                    self.figures.add(Figure::Requests, copies);
                    self.figures.add(Figure::Read, read);
                    if had.whole && !known.troubled && !self.scarce {
                        self.figures.add(Figure::Sound, copies);
                        self.figures.add(Figure::SoundRead, read);
                    }
                }
            }
        }
        balance.untouched =
            self.tracks.iter().map(|track| u64::from(track.taken.saturating_sub(track.read))).sum();
        self.figures.add(Figure::Flows, flows.len() as u64);
        balance
    }
}

/// What does not add up at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balance {
    /// Bytes captured but not read by an application, times copies.
    pub(crate) missing: u64,
    /// Of these, in flows that were captured whole and whose connections met with nothing.
    pub(crate) unexplained: u64,
    pub(crate) whose: Vec<(u32, u64)>,
    /// Bytes that the target's TCP has acknowledged and its application has not read.
    pub(crate) untouched: u64,
    /// Bytes read more often than there are copies.
    pub(crate) excess: u64,
    /// Flows of requests that left early.
    pub(crate) early: Vec<u32>,
}

/// How often a whole range was read.
fn times_read(read: &[(u32, u32)], range: (u32, u32)) -> u64 {
    let mut edges: Vec<(u32, i32)> = Vec::new();
    for &(from, to) in read {
        let (from, to) = (from.max(range.0), to.min(range.1));
        if from < to {
            edges.extend([(from, 1), (to, -1)]);
        }
    }
    edges.sort_unstable();
    let (mut depth, mut least, mut at) = (0, i32::MAX, range.0);
    for (place, step) in edges {
        if place > at {
            least = least.min(depth);
            at = place;
        }
        depth += step;
    }
    if at < range.1 { 0 } else { u64::try_from(least).unwrap_or(0) }
}

/// Bytes of the captured ranges that were read less often than `copies` times, and bytes that were read more often.
fn compare(had: &[(u32, u32)], read: &[(u32, u32)], copies: u32) -> (u64, u64) {
    let mut edges: Vec<(u32, i32, i32)> = Vec::with_capacity(2 * (had.len() + read.len()));
    for &(from, to) in had {
        edges.extend([(from, copies as i32, 0), (to, -(copies as i32), 0)]);
    }
    for &(from, to) in read {
        edges.extend([(from, 0, 1), (to, 0, -1)]);
    }
    edges.sort_unstable();
    let (mut wanted, mut got, mut at, mut missing, mut excess) = (0i32, 0i32, 0, 0, 0);
    for (place, more_wanted, more_got) in edges {
        let n = u64::from(place - at);
        missing += n * (wanted - got).max(0) as u64;
        excess += n * (got - wanted).max(0) as u64;
        at = place;
        wanted += more_wanted;
        got += more_got;
    }
    (missing, excess)
}

/// A request's head never spans more bytes than a request has.
const _: () = assert!(HEAD == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_compared_copy_by_copy() {
        assert_eq!(compare(&[(0, 100)], &[(0, 100), (0, 60)], 2), (40, 0));
        assert_eq!(compare(&[(0, 50), (60, 100)], &[(0, 50), (60, 100), (90, 100)], 1), (0, 10));
        assert_eq!(times_read(&[(0, 30), (30, 100), (10, 60)], (20, 50)), 2);
        assert_eq!(times_read(&[(0, 30), (31, 100)], (20, 50)), 0);
    }
}
