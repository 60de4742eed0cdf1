//! Anything at all on both sides: numbers near the valid ones, every flag, lying lengths and blocks, restarts in between.
//! Nothing may panic or get stuck, and the ledger stays exact to the byte at every step.

use flow::record::{SackBlock, flag, kind, opt};
use flow::{Captured, Inject, Returned, Seq, TcpFields};
use proptest::prelude::*;
use session::{Clients, Config, Count, Join, OnGap, Rtt, Sink, Table, Times};

use crate::kit::*;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn near(&mut self, seq: Seq) -> Seq {
        match self.roll(8) {
            0 => seq + 1,
            1 => seq - 1,
            2 => seq + self.roll(3_000) as u32,
            3 => seq - self.roll(3_000) as u32,
            4 => Seq(self.roll(1 << 32) as u32),
            _ => seq,
        }
    }

    fn flags(&mut self, usual: u16) -> u16 {
        if self.roll(4) > 0 { usual } else { self.roll(512) as u16 }
    }
}

/// Remembers the last record of each client, to make answers that are nearly right.
#[derive(Default)]
struct Last {
    heads: Vec<Inject>,
    records: usize,
}

impl Sink for Last {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        let bytes: usize = parts.map(<[u8]>::len).sum();
        assert_eq!(bytes, head.payload_len as usize);
        assert!(head.client.port > 0 && head.mss > 0);
        self.records += 1;
        self.heads.retain(|old| old.client != head.client);
        self.heads.push(*head);
        if self.heads.len() > 12 {
            self.heads.remove(0);
        }
    }
}

fn captured(dice: &mut Dice, flows: &mut [(Client, Seq)], now_us: u64) -> (Captured, Vec<u8>) {
    let i = dice.roll(flows.len() as u64) as usize;
    let (client, next) = &mut flows[i];
    let usual = [flag::SYN, flag::ACK, flag::ACK | flag::PSH, flag::ACK | flag::PSH, flag::ACK | flag::FIN]
        [dice.roll(5) as usize];
    let mut segment = client.segment(dice.flags(usual));
    segment.tcp.seq = dice.near(*next);
    segment.tcp.ack = dice.near(client.ack);
    segment.tcp.options = dice.roll(16) as u8;
    segment.tcp.mss = dice.roll(2_000) as u16;
    segment.cut_len = if dice.roll(20) == 0 { dice.roll(3_000) as u32 } else { 0 };
    segment.mapping = u16::from(dice.roll(50) == 0);
    segment.time_ns = (now_us - dice.roll(MS)) * 1000;
    let len = match dice.roll(6) {
        0 | 1 => 0,
        2 => dice.roll(20_000),
        _ => dice.roll(300),
    };
    let payload = vec![dice.roll(256) as u8; len as usize];
    segment.payload_len = len as u32;
    if segment.tcp.seq == *next && dice.roll(10) > 0 {
        *next = segment.tcp.seq + len as u32 + u32::from(segment.tcp.flags & flag::SYN != 0);
    }
    if dice.roll(3) == 0 {
        client.ack += dice.roll(400) as u32;
    }
    (segment, payload)
}

fn returned(dice: &mut Dice, last: &Last) -> Option<Returned> {
    if last.heads.is_empty() {
        return None;
    }
    let head = last.heads[dice.roll(last.heads.len() as u64) as usize];
    let usual = if head.tcp.has(flag::SYN) {
        flag::SYN | flag::ACK
    } else {
        [flag::ACK, flag::ACK | flag::PSH, flag::ACK, flag::ACK | flag::FIN, flag::RST][dice.roll(5) as usize]
    };
    let end = head.tcp.seq + head.payload_len + u32::from(head.tcp.flags & (flag::SYN | flag::FIN) != 0);
    let mut record = Returned {
        client: head.client,
        target: endpoint(TARGET),
        payload_len: if dice.roll(2) == 0 { dice.roll(3_000) as u32 } else { 0 },
        kind: if dice.roll(40) == 0 { dice.roll(4) as u8 } else { kind::TCP },
        mtu: dice.roll(2_000) as u32,
        sack_count: dice.roll(256) as u8 % 7,
        ..Returned::default()
    };
    record.tcp = TcpFields {
        seq: dice.near(head.tcp.ack),
        ack: dice.near(end),
        flags: dice.flags(usual),
        window: dice.roll(1 << 16) as u16 >> dice.roll(16),
        ts_val: dice.roll(1 << 32) as u32,
        mss: dice.roll(3_000) as u16,
        window_scale: dice.roll(256) as u8,
        options: dice.roll(16) as u8 | (opt::SACK_PERMITTED * (dice.roll(2) as u8)),
        ..TcpFields::default()
    };
    for block in &mut record.sack {
        *block = SackBlock { left: dice.near(head.tcp.seq), right: dice.near(end) };
    }
    Some(record)
}

fn story(seed: u64, steps: usize) {
    let mut dice = Dice(seed | 1);
    let mut config: Config = config();
    if dice.roll(2) == 0 {
        config.clients = Clients::Keep;
    }
    config.wait = dice.roll(4) > 0;
    config.on_gap = [OnGap::Skip, OnGap::Resync, OnGap::Abort][dice.roll(3) as usize];
    config.rtt = [Rtt::None, Rtt::Measured, Rtt::Fixed(5_000)][dice.roll(3) as usize];
    config.join = [Join::First, Join::Boundary, Join::Never][dice.roll(3) as usize];
    (config.limits.sessions, config.limits.chunks) = (12, 60);
    config.limits.held_per_session = 30_000;
    config.times = Times { idle_us: 30 * SECOND, dead_us: 10 * SECOND, ..Times::default() };
    let mut table = Table::new(arena(&config.limits), config.clone());
    let mut now_us = 1_000 * SECOND;
    let mut last = Last::default();
    let mut flows: Vec<(Client, Seq)> = (0..5).map(|n| (Client::new(n), Client::new(n).isn)).collect();
    let mut settled = table.digest();
    for step in 0..steps {
        match dice.roll(20) {
            0..=7 => {
                let (segment, payload) = captured(&mut dice, &mut flows, now_us);
                let copies_milli = 1_000 + dice.roll(2_000) as u32;
                if !table.admits(now_us, &segment, payload.len(), 1_000_000, copies_milli) {
                    table.settle();
                    settled = table.digest();
                }
                table.captured(now_us, &segment, &payload, 1_000_000, copies_milli);
            }
            8..=15 => {
                if let Some(record) = returned(&mut dice, &last) {
                    table.returned(now_us, &record);
                }
            }
            16 => now_us += dice.roll(2 * SECOND),
            17 if dice.roll(8) == 0 => {
                // The worker is killed in the middle of a transaction, or just past the point of no return.
                let committed = dice.roll(2) == 0;
                if committed {
                    table.seal();
                    settled = table.digest();
                }
                let memory = arena(&config.limits);
                let image = table.image();
                memory[..image.len()].copy_from_slice(&image);
                table = Table::successor(memory, config.clone(), committed, |_| false);
                assert_eq!(table.digest(), settled, "seed {seed:#x} step {step} committed {committed}");
                assert_eq!(table.tally().count(Count::SlotsUnusable), 0, "seed {seed:#x} step {step}");
            }
            _ => now_us += dice.roll(3 * MS),
        }
        // A successor learns little at a time what it has taken over.
        table.walk(dice.roll(3) as u32);
        if dice.roll(3) > 0 {
            table.tick(now_us);
            while table.pump(now_us, &mut last) {}
        }
        if let Err(why) = table.check() {
            panic!("seed {seed:#x} step {step}: {why}");
        }
        if dice.roll(3) == 0 {
            table.settle();
            settled = table.digest();
        }
        table.tick(now_us);
        if let Some(next) = table.next_deadline_us() {
            assert!(next + 1_000 > now_us, "seed {seed:#x} step {step}: a deadline is never served");
        }
    }
    table.drain(now_us);
    while !table.abandon(now_us) {
        table.walk(1);
        table.settle();
    }
    while table.pump(now_us, &mut last) {}
    table.check().expect("abandoned in order");
    assert_eq!((table.tally().open, table.tally().in_flight), (0, 0), "seed {seed:#x}");
}

proptest! {
    #[test]
    fn nothing_breaks_the_table(seed in any::<u64>()) {
        story(seed, 600);
    }
}
