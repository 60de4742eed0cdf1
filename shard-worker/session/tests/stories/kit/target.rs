//! The target's small TCP and its application: what a world does when a packet has reached it, or a timer has.

use flow::record::{SackBlock, flag, opt};
use flow::{Endpoint, Inject, Returned, Seq, TcpFields};
use session::Table;

use super::world::Event;
use super::{App, Peer, TARGET, World, endpoint};

impl World {
    pub(super) fn at_target(&mut self, head: &Inject, payload: &[u8]) {
        if self.options.dead {
            return;
        }
        let tcp = &head.tcp;
        let found = self.peers.iter().rposition(|peer| peer.client == head.client && !peer.reset);
        match found {
            Some(i) if tcp.has(flag::SYN) && self.peers[i].irs == tcp.seq => {
                self.reply(i, flag::SYN | flag::ACK, 0);
            }
            Some(i) if tcp.has(flag::SYN) && self.peers[i].is_closed() => self.after_time_wait(i, head),
            Some(i) if tcp.has(flag::RST) && self.peers[i].is_closed() => self.peers[i].reset = true,
            Some(i) => self.segment(i, head, payload),
            None if tcp.has(flag::SYN) && !self.options.refuse => self.accept(head),
            None if tcp.has(flag::RST) => {}
            None => {
                let mut record = record(head);
                record.tcp.flags = flag::RST | if tcp.has(flag::SYN) { flag::ACK } else { 0 };
                record.tcp.seq = if tcp.has(flag::ACK) { tcp.ack } else { Seq(0) };
                record.tcp.ack = tcp.seq + payload.len() as u32 + u32::from(tcp.has(flag::SYN));
                self.give_back(record);
            }
        }
    }

    /// A SYN finds an old connection of its four-tuple: it must be newer by its time stamp or by its number (RFC 6191,
    /// RFC 9293 section 3.10.7.4), else only an acknowledgement comes back.
    fn after_time_wait(&mut self, i: usize, head: &Inject) {
        let peer = &self.peers[i];
        let newer_stamp = peer.timestamps && Seq(head.tcp.ts_val).after(Seq(peer.ts_recent));
        if newer_stamp || head.tcp.seq.after(peer.rcv_nxt) {
            self.accept(head);
        } else {
            self.stale_syns += 1;
            self.reply(i, flag::ACK, 0);
        }
    }

    fn accept(&mut self, head: &Inject) {
        let tcp = &head.tcp;
        let iss = Seq(self.options.isn);
        self.options.isn = self.options.isn.wrapping_add(10_000_000);
        self.peers.push(Peer {
            client: head.client,
            established: false,
            reset: false,
            irs: tcp.seq,
            rcv_nxt: tcp.seq + 1,
            iss,
            snd_una: iss,
            snd_nxt: iss + 1,
            out_of_order: Vec::new(),
            read: Vec::new(),
            unread: Vec::new(),
            parsed: 0,
            lines: 0,
            client_fin: false,
            fin_at: None,
            fin_sent: false,
            ts_recent: tcp.ts_val,
            timestamps: self.options.timestamps && tcp.has_option(opt::TIMESTAMPS),
            sack: self.options.sack && tcp.has_option(opt::SACK_PERMITTED),
            answers: Vec::new(),
            retry_at: u64::MAX,
            tries: 0,
            largest: 0,
            sacks: Vec::new(),
        });
        let i = self.peers.len() - 1;
        self.reply(i, flag::SYN | flag::ACK, 0);
        self.arm(i);
    }

    fn arm(&mut self, i: usize) {
        let at = self.now_us + (200_000 << self.peers[i].tries.min(6));
        self.peers[i].retry_at = at;
        self.later(at, Event::Target);
    }

    fn segment(&mut self, i: usize, head: &Inject, payload: &[u8]) {
        let tcp = &head.tcp;
        let peer = &mut self.peers[i];
        let end = tcp.seq + payload.len() as u32;
        if tcp.has(flag::RST) {
            if tcp.seq == peer.rcv_nxt {
                peer.reset = true;
            } else if tcp.seq.after(peer.rcv_nxt) {
                self.reply(i, flag::ACK, 0);
            }
            return;
        }
        if tcp.has(flag::SYN) {
            // A stranger's SYN into a live connection: a challenge.
            self.reply(i, flag::ACK, 0);
            return;
        }
        if tcp.has(flag::ACK) {
            if tcp.ack.after(peer.snd_nxt) {
                self.reply(i, flag::ACK, 0);
                return;
            }
            if tcp.ack.after(peer.snd_una) {
                peer.snd_una = tcp.ack;
                peer.tries = 0;
                if !peer.established {
                    peer.established = true;
                    if let App::Greets(n) = self.options.app {
                        self.peers[i].answers.push((self.now_us, n, true));
                        self.later(self.now_us, Event::Target);
                    }
                }
                let peer = &mut self.peers[i];
                if peer.snd_una == peer.snd_nxt {
                    peer.retry_at = u64::MAX;
                    self.later(self.now_us, Event::Target);
                } else {
                    self.arm(i);
                }
            }
        }
        let peer = &mut self.peers[i];
        if !peer.established {
            return;
        }
        peer.largest = peer.largest.max(payload.len());
        let old = end.at_or_before(peer.rcv_nxt)
            && !(tcp.has(flag::FIN) && end == peer.rcv_nxt && !peer.client_fin);
        if peer.timestamps && tcp.seq.at_or_before(peer.rcv_nxt) {
            peer.ts_recent = tcp.ts_val;
        }
        if payload.is_empty() && !tcp.has(flag::FIN) {
            if tcp.seq.before(peer.rcv_nxt) {
                self.reply(i, flag::ACK, 0);
            }
            return;
        }
        if peer.fin_sent && !payload.is_empty() && !self.options.discards_after_close {
            // Closed for good: nobody reads any more.
            self.reply(i, flag::RST | flag::ACK, 0);
            self.peers[i].reset = true;
            return;
        }
        let gone = peer.fin_sent && peer.client_fin;
        if old || gone {
            self.reply(i, flag::ACK, 0);
            return;
        }
        if tcp.has(flag::FIN) {
            peer.fin_at = Some(end);
        }
        let window = self.options.buffer.saturating_sub(peer.unread.len() as u32);
        if i64::from(end.since(peer.rcv_nxt)) <= i64::from(window) {
            peer.out_of_order.push((tcp.seq, payload.to_vec()));
            peer.sacks.insert(0, SackBlock { left: tcp.seq, right: end });
        }
        self.assemble(i);
        self.reply(i, flag::ACK, 0);
        self.serve(i);
    }

    fn assemble(&mut self, i: usize) {
        let peer = &mut self.peers[i];
        while let Some(at) = peer.out_of_order.iter().position(|(seq, bytes)| {
            seq.at_or_before(peer.rcv_nxt) && (*seq + bytes.len() as u32).after(peer.rcv_nxt)
        }) {
            let (seq, bytes) = peer.out_of_order.remove(at);
            let skip = peer.rcv_nxt.since(seq) as usize;
            peer.unread.extend_from_slice(&bytes[skip..]);
            peer.rcv_nxt += (bytes.len() - skip) as u32;
        }
        let next = peer.rcv_nxt;
        peer.out_of_order.retain(|(seq, bytes)| (*seq + bytes.len() as u32).after(next));
        let kept: Vec<_> =
            peer.out_of_order.iter().map(|(seq, bytes)| (*seq, *seq + bytes.len() as u32)).collect();
        peer.sacks.retain(|b| kept.iter().any(|(l, r)| b.left == *l && b.right == *r));
        if peer.fin_at == Some(peer.rcv_nxt) && !peer.client_fin {
            peer.client_fin = true;
            peer.rcv_nxt += 1;
        }
    }

    /// The application reads and answers.
    pub fn serve(&mut self, i: usize) {
        if self.options.stalled {
            return;
        }
        let now = self.now_us;
        let peer = &mut self.peers[i];
        let reading = std::mem::take(&mut peer.unread);
        peer.read.extend_from_slice(&reading);
        let mut at = now;
        match self.options.app {
            App::Lines { .. } | App::Greets(_) => {
                let (writes, delay, close_after) = match self.options.app {
                    App::Lines { writes, delay_us, close_after } => (writes, delay_us, close_after),
                    _ => (1, 100, 0),
                };
                while let Some(n) = peer.read[peer.parsed..].iter().position(|&b| b == b'\n') {
                    let line = &peer.read[peer.parsed..peer.parsed + n];
                    let size = std::str::from_utf8(line)
                        .ok()
                        .and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok())
                        .unwrap_or(0);
                    peer.parsed += n + 1;
                    peer.lines += 1;
                    at += delay;
                    for w in 0..writes {
                        let part = size / writes + if w == 0 { size % writes } else { 0 };
                        let close = close_after > 0 && peer.lines == close_after && w + 1 == writes;
                        if part > 0 || close {
                            peer.answers.push((at + u64::from(w) * 300, part, close_after == 0 || !close));
                        }
                        if close {
                            peer.answers.push((at + u64::from(w) * 300, 0, false));
                        }
                    }
                }
            }
            App::AfterFin(n) if peer.client_fin && peer.lines == 0 => {
                peer.lines = 1;
                peer.answers.push((at + 100, n, true));
            }
            App::AfterFin(_) | App::Silent => {}
        }
        if peer.client_fin && self.options.close_with_client {
            peer.answers.push((at + 150, 0, false));
        }
        let times: Vec<u64> = self.peers[i].answers.iter().map(|(at, ..)| *at).collect();
        for at in times {
            self.later(at, Event::Target);
        }
    }

    /// The application reads again, and says so.
    pub fn unstall(&mut self) {
        self.options.stalled = false;
        for i in 0..self.peers.len() {
            self.serve(i);
        }
    }

    pub fn window_update(&mut self) {
        let i = self.peers.len() - 1;
        self.reply(i, flag::ACK, 0);
    }

    /// Closes the target's side of its newest connection.
    pub fn target_closes(&mut self) {
        let i = self.peers.len() - 1;
        self.peers[i].answers.push((self.now_us, 0, false));
        self.later(self.now_us, Event::Target);
    }

    /// The target's newest connection is reset.
    pub fn target_resets(&mut self) {
        let i = self.peers.len() - 1;
        self.reply(i, flag::RST | flag::ACK, 0);
        self.peers[i].reset = true;
    }

    pub(super) fn target_timers(&mut self) {
        let now = self.now_us;
        for i in 0..self.peers.len() {
            if self.peers[i].reset {
                continue;
            }
            let mut due: Vec<_> =
                self.peers[i].answers.iter().filter(|(at, ..)| *at <= now).copied().collect();
            self.peers[i].answers.retain(|(at, ..)| *at > now);
            due.sort_by_key(|(at, ..)| *at);
            for (at, n, open) in due {
                if self.peers[i].fin_sent {
                    continue;
                }
                if self.options.nagle && self.peers[i].snd_una != self.peers[i].snd_nxt {
                    self.peers[i].answers.push((at, n, open));
                    continue;
                }
                if n > 0 {
                    self.reply(i, flag::ACK | flag::PSH, n);
                    self.peers[i].snd_nxt += n;
                }
                if n == 0 && !open {
                    self.reply(i, flag::ACK | flag::FIN, 0);
                    self.peers[i].snd_nxt += 1;
                    self.peers[i].fin_sent = true;
                }
                self.arm(i);
            }
            if self.peers[i].retry_at <= now && self.peers[i].snd_una != self.peers[i].snd_nxt {
                self.peers[i].tries += 1;
                if self.peers[i].tries > 8 {
                    self.peers[i].retry_at = u64::MAX;
                    continue;
                }
                self.repeat(i);
                self.arm(i);
            }
        }
    }

    /// The target's retransmission of everything unacknowledged.
    fn repeat(&mut self, i: usize) {
        let peer = &self.peers[i];
        if !peer.established {
            self.reply(i, flag::SYN | flag::ACK, 0);
            return;
        }
        let fin = u32::from(peer.fin_sent);
        let n = peer.snd_nxt.since(peer.snd_una) as u32 - fin;
        let next = peer.snd_nxt;
        let una = peer.snd_una;
        self.peers[i].snd_nxt = una;
        let flags = flag::ACK | if n > 0 { flag::PSH } else { 0 } | if fin > 0 { flag::FIN } else { 0 };
        self.reply(i, flags, n);
        self.peers[i].snd_nxt = next;
    }

    fn reply(&mut self, i: usize, flags: u16, payload_len: u32) {
        let options = &self.options;
        let peer = &self.peers[i];
        let mut record =
            Returned { client: peer.client, target: endpoint_of(&self.table), ..Returned::default() };
        let scale = if flags & flag::SYN != 0 { 0 } else { options.window_scale.unwrap_or(0) };
        let window = options.buffer.saturating_sub(peer.unread.len() as u32) >> scale;
        record.tcp = TcpFields {
            seq: if flags & flag::SYN != 0 { peer.iss } else { peer.snd_nxt },
            ack: peer.rcv_nxt,
            flags,
            window: window.min(65_535) as u16,
            ..TcpFields::default()
        };
        if flags & flag::SYN != 0 {
            if let Some(mss) = options.mss {
                record.tcp.options |= opt::MSS;
                record.tcp.mss = mss;
            }
            if let Some(scale) = options.window_scale {
                record.tcp.options |= opt::WINDOW_SCALE;
                record.tcp.window_scale = scale;
            }
            if peer.sack {
                record.tcp.options |= opt::SACK_PERMITTED;
            }
        }
        if peer.timestamps {
            self.ts = self.ts.wrapping_add(1);
            record.tcp.options |= opt::TIMESTAMPS;
            record.tcp.ts_val = self.ts;
            record.tcp.ts_ecr = peer.ts_recent;
        }
        if peer.sack && flags & flag::SYN == 0 {
            for (to, block) in record.sack.iter_mut().zip(peer.sacks.iter().take(3)) {
                *to = *block;
                record.sack_count += 1;
            }
        }
        record.payload_len = payload_len;
        self.give_back(record);
    }
}

pub(super) fn endpoint_of(table: &Table) -> Endpoint {
    table.config().targets[0].endpoint
}

pub(super) fn record(head: &Inject) -> Returned {
    Returned { client: head.client, target: endpoint(TARGET), ..Returned::default() }
}
