//! The first messages inside a connection: who dials and what it owns, and intercept's answer. They are exchanged
//! once per connection, so they may allocate; every list and text in them is bounded.

use flow::{Endpoint, Range, named_enum};

use crate::wire::{Reader, Writer};

/// Longest name of an instance, bytes.
pub const MAX_NAME: usize = 64;
/// Longest software version text, bytes.
pub const MAX_SOFTWARE: usize = 32;
/// Ranges of one instance at most: a few of each family are plenty, and every one is searched on the packet path.
pub const MAX_RANGES: usize = 16;
/// Targets of one instance at most; as many as a plan may hold.
pub const MAX_TARGETS: usize = 256;
/// Longest sentence of a refusal, bytes.
pub const MAX_SENTENCE: usize = 512;

/// A place in the stream of records that one intercept sends to one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Changes with each start of intercept.
    pub epoch: u64,
    /// Position of the last record received.
    pub last: u64,
}

/// How intercept knows the dialer's flows from those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the range of the replayed client's address; no two live instances share one. 1 to [`MAX_RANGES`].
    Ranges(Vec<Range>),
    /// Flow by flow, each claimed before its SYN leaves (`--keep-clients`).
    Claims,
}

/// The dialer's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Software version, for people (`tcptwin doctor`).
    pub software: String,
    /// Identity of the run, constant over reconnects and restarts of its roles. A later connection of the same
    /// instance replaces an earlier one.
    pub instance: u64,
    /// Grows with each start of the dialing role, so that a predecessor's late connection cannot replace its successor's.
    pub incarnation: u64,
    /// Name of the instance, for people.
    pub name: String,
    /// How its flows are known.
    pub mode: Mode,
    /// The targets it replays to; at most [`MAX_TARGETS`].
    pub targets: Vec<Endpoint>,
    /// Where the stream stopped, if a stream of this intercept was received before.
    pub last: Option<Position>,
}

/// Intercept's consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Software version, for people.
    pub software: String,
    /// Changes with each start of intercept. When it differs from the last one known, live claims must be sent again.
    pub epoch: u64,
    /// Position of the next record. When it is more than one above the last received, records were lost in between
    /// (a `Gap` message says so as well).
    pub next: u64,
}

named_enum! {
    /// Why intercept refuses an instance.
    pub enum RefusedCode {
        /// Its range overlaps that of another live instance.
        RangeTaken => "range_taken",
        /// Its range is not routed into this intercept's TUN device.
        RangeNotRouted => "range_not_routed",
        /// None of its targets is watched here.
        TargetsUnknown => "targets_unknown",
        /// A younger incarnation of the same instance is connected.
        Superseded => "superseded",
        /// As many instances as allowed are connected.
        TooMany => "too_many",
        /// Intercept is stopping.
        Stopping => "stopping",
    }
}

/// Intercept's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind.
    pub code: RefusedCode,
    /// The reason, for people, with what to do.
    pub sentence: String,
    /// A free range of the same family and kind, when the range was the trouble.
    pub suggestion: Option<Range>,
}

impl Hello {
    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.text(&self.software, MAX_SOFTWARE);
        w.u64(self.instance);
        w.u64(self.incarnation);
        w.text(&self.name, MAX_NAME);
        match &self.mode {
            Mode::Claims => w.u8(0),
            Mode::Ranges(ranges) => {
                let ranges = &ranges[..ranges.len().min(MAX_RANGES)];
                w.u8(ranges.len() as u8);
                ranges.iter().for_each(|r| w.range(r));
            }
        }
        let targets = &self.targets[..self.targets.len().min(MAX_TARGETS)];
        w.u16(targets.len() as u16);
        targets.iter().for_each(|t| w.endpoint(t));
        match self.last {
            None => w.u8(0),
            Some(position) => {
                w.u8(1);
                w.u64(position.epoch);
                w.u64(position.last);
            }
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let software = r.text(MAX_SOFTWARE)?;
        let (instance, incarnation) = (r.u64()?, r.u64()?);
        let name = r.text(MAX_NAME)?;
        let mode = match usize::from(r.u8()?) {
            0 => Mode::Claims,
            n if n <= MAX_RANGES => Mode::Ranges((0..n).map(|_| r.range()).collect::<Option<_>>()?),
            _ => return None,
        };
        let count = usize::from(r.u16()?);
        if count > MAX_TARGETS {
            return None;
        }
        let targets = (0..count).map(|_| r.endpoint()).collect::<Option<_>>()?;
        let last = match r.u8()? {
            0 => None,
            1 => Some(Position { epoch: r.u64()?, last: r.u64()? }),
            _ => return None,
        };
        Some(Self { software, instance, incarnation, name, mode, targets, last })
    }
}

impl Welcome {
    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.text(&self.software, MAX_SOFTWARE);
        w.u64(self.epoch);
        w.u64(self.next);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self { software: r.text(MAX_SOFTWARE)?, epoch: r.u64()?, next: r.u64()? })
    }
}

impl Refused {
    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.u8(self.code.index() as u8);
        w.text(&self.sentence, MAX_SENTENCE);
        match &self.suggestion {
            None => w.u8(0),
            Some(range) => {
                w.u8(1);
                w.range(range);
            }
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let code = *RefusedCode::ALL.get(usize::from(r.u8()?))?;
        let sentence = r.text(MAX_SENTENCE)?;
        let suggestion = match r.u8()? {
            0 => None,
            1 => Some(r.range()?),
            _ => return None,
        };
        Some(Self { code, sentence, suggestion })
    }
}
