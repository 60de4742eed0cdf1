//! The table of sessions: what the shard worker calls.

use flow::{Captured, Inject, Returned};

use crate::config::Config;
use crate::tally::{Count, Tally};

/// Records one [`Table::pump`] emits at most.
pub const BURST: usize = 16;
/// Payload bytes one [`Table::pump`] emits at most.
pub const BURST_BYTES: usize = 128 * 1024;

/// Where [`Table::pump`] puts what it emits. Must take [`BURST`] records with [`BURST_BYTES`] of payload together.
pub trait Sink {
    /// One record; the parts together are `head.payload_len` bytes.
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>);
}

/// The sessions of one shard.
pub struct Table {
    config: Config,
    tally: Tally,
}

impl Table {
    /// Bytes that the arena must have for so many sessions and chunks.
    pub fn arena_bytes(sessions: u32, chunks: u32) -> u64 {
        u64::from(sessions) * 448 + u64::from(chunks) * 1024 + (1 << 20)
    }

    /// A table over an arena: empty when the arena is zeroed, else rebuilt from the slots that stand there.
    pub fn new(_arena: &'static mut [u8], config: Config) -> Table {
        Table { config, tally: Tally::new() }
    }

    /// Takes one captured segment.
    pub fn captured(
        &mut self,
        _now_us: u64,
        _segment: &Captured,
        payload: &[u8],
        _percent_ppm: u32,
        _copies_milli: u32,
    ) {
        self.tally.one(Count::TakenSegments);
        self.tally.add(Count::TakenBytes, payload.len() as u64);
    }

    /// Takes one returned header.
    pub fn returned(&mut self, _now_us: u64, _record: &Returned) {
        self.tally.one(Count::ReturnedHeaders);
    }

    /// Runs the timers that are due.
    pub fn tick(&mut self, _now_us: u64) {}

    /// Emits what may leave now, at most [`BURST`] records and [`BURST_BYTES`] of payload; true when more waits.
    pub fn pump(&mut self, _now_us: u64, _out: &mut impl Sink) -> bool {
        false
    }

    /// When [`Table::tick`] should run next.
    pub fn next_deadline_us(&self) -> Option<u64> {
        None
    }

    /// No new sessions from now on.
    pub fn drain(&mut self, _now_us: u64) {}

    /// Nothing is held or in flight.
    pub fn is_quiet(&self) -> bool {
        self.tally.in_flight == 0
    }

    /// Gives up everything: the rest is dropped as `stopped`, [`Table::pump`] emits the resets.
    pub fn abandon(&mut self, _now_us: u64) {}

    /// The counters.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What the table was told at its start.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
