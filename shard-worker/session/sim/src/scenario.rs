//! What happens in one world: everything is drawn from the seed and a profile, before anything moves. Two equal seeds of
//! one profile are the same world, packet for packet.

use std::fmt;
use std::time::Duration;

use flow::named_enum;
use session::{Join, Limits, OnGap, Rtt, Times};

use crate::dice::Dice;

named_enum! {
    /// A family of worlds. Every family has all kinds of clients; they differ in what goes wrong.
    pub enum Profile {
        /// Nothing goes wrong but what clients do themselves.
        Clean => "clean",
        /// 0.1 % of the packets are lost each way between us and the target.
        Loss01 => "loss-0.1",
        /// 1 % likewise, some late, doubled or corrupted.
        Loss1 => "loss-1",
        /// 5 % likewise.
        Loss5 => "loss-5",
        /// Captured packets are missing; flows begin before the capture.
        Gap => "gap",
        /// The target refuses, closes early, resets, stalls, restarts, goes dark.
        Trouble => "trouble",
        /// Answers take up to seconds, other lengths than online, small windows, a narrow link.
        Slow => "slow",
        /// The target takes segments of 88 to 536 bytes; the path's MTU shrinks under way.
        TinyMss => "tiny-mss",
        /// All numbers and clocks pass their wrap.
        Wrap => "wrap",
        /// Several copies, one and a half, or a share of the flows.
        Copies => "copies",
        /// Four-tuples come back, with real client addresses.
        Reuse => "reuse",
        /// Everything at once.
        Storm => "storm",
    }
}

impl Profile {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|profile| profile.name() == name)
    }

    /// The profile of a seed in a mixed run.
    pub fn of_seed(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 99);
        Self::ALL[dice.below(Self::COUNT as u64) as usize]
    }

    /// The same with the kernel as the target.
    pub fn of_kernel_seed(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 98);
        Self::OF_THE_KERNEL[dice.below(Self::OF_THE_KERNEL.len() as u64) as usize]
    }

    /// Families in which nothing is asked of the target that the kernel would not do by itself.
    pub const OF_THE_KERNEL: [Self; 9] = [
        Self::Clean,
        Self::Loss01,
        Self::Loss1,
        Self::Loss5,
        Self::Gap,
        Self::Slow,
        Self::TinyMss,
        Self::Copies,
        Self::Reuse,
    ];
}

/// One direction of a link.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkSpec {
    pub(crate) delay_us: u64,
    pub(crate) jitter_us: u64,
    pub(crate) loss_ppm: u32,
    pub(crate) double_ppm: u32,
    pub(crate) late_ppm: u32,
    pub(crate) corrupt_ppm: u32,
    /// Bytes a millisecond; 0 is unlimited.
    pub(crate) rate: u64,
    /// Nothing passes from, until; relative to the start.
    pub(crate) dark: Option<(u64, u64)>,
}

impl fmt::Display for LinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}+{}us loss {} double {} late {} corrupt {} ppm",
            self.delay_us, self.jitter_us, self.loss_ppm, self.double_ppm, self.late_ppm, self.corrupt_ppm
        )?;
        if self.rate > 0 {
            write!(f, " {} B/ms", self.rate)?;
        }
        if let Some((from, until)) = self.dark {
            write!(f, " dark {}..{} ms", from / 1000, until / 1000)?;
        }
        Ok(())
    }
}

/// The real clients' way to the online server, and what the capture makes of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnlineSpec {
    /// Lost before the capture: the client sends again.
    pub(crate) loss_ppm: u32,
    /// Sent again although it had come.
    pub(crate) spurious_ppm: u32,
    /// Arrive after what was sent behind them.
    pub(crate) late_ppm: u32,
    /// Captured as super-frames.
    pub(crate) super_frames: bool,
    /// Missing from the capture, alone or in a row.
    pub(crate) hole_ppm: u32,
    /// Captured twice.
    pub(crate) double_ppm: u32,
    /// Cut by the snap length.
    pub(crate) cut_ppm: u32,
    /// Flows whose beginning the capture has not seen.
    pub(crate) midstream_percent: u32,
}

/// How the target's answers differ from the online ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    Equal,
    Longer(u32),
    Shorter(u32),
    Random(u32),
}

/// The target: its TCP and its application.
#[derive(Clone, Debug)]
pub(crate) struct TargetSpec {
    pub(crate) rx: usize,
    pub(crate) tx: usize,
    pub(crate) mtu: u16,
    pub(crate) nagle: bool,
    pub(crate) stamps: bool,
    pub(crate) ack_delay_us: u64,
    pub(crate) answers: Answers,
    /// Writes of one answer at most.
    pub(crate) writes: u32,
    pub(crate) write_gap_us: u64,
    /// Most time that an answer takes.
    pub(crate) delay_us: u64,
    /// Connections with some trouble.
    pub(crate) trouble_percent: u32,
    /// All connections are forgotten, and new ones refused for so long.
    pub(crate) restart: Option<(u64, u64)>,
    /// The path becomes this narrow.
    pub(crate) shrink: Option<(u64, u16)>,
    /// Segments are put together again on the way back.
    pub(crate) merges: bool,
}

/// One world.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// The family.
    pub profile: Profile,
    pub(crate) flows: u32,
    pub(crate) spread_us: u64,
    pub(crate) start_us: u64,
    pub(crate) v6: bool,
    pub(crate) keep: bool,
    pub(crate) shards: u16,
    pub(crate) copies_milli: u32,
    pub(crate) percent_ppm: u32,
    pub(crate) wait: bool,
    pub(crate) rtt: Rtt,
    pub(crate) join: Join,
    pub(crate) on_gap: OnGap,
    pub(crate) limits: Limits,
    pub(crate) times: Times,
    pub(crate) reuse_percent: u32,
    pub(crate) wraps: bool,
    pub(crate) online: OnlineSpec,
    pub(crate) to_target: LinkSpec,
    pub(crate) to_us: LinkSpec,
    pub(crate) target: TargetSpec,
    /// The worker is replaced by another over the same arena.
    pub(crate) successor_us: Option<u64>,
    /// No new sessions from here on, and an end after so long.
    pub(crate) drain: Option<(u64, u64)>,
    /// The target is the kernel, and time is real.
    pub(crate) kernel: bool,
    /// Longest that it may last beyond its last captured packet.
    pub(crate) most_us: u64,
}

/// Room for everything that a world has.
const USUAL: Limits = Limits { sessions: 1024, chunks: 65_536, held_per_session: 4 << 20 };
/// Longer than the longest answer takes.
const KERNEL_IDLE_US: u64 = 20 * SECOND;
/// Beyond it no session of a virtual world is left, idle times aside.
const MOST_US: u64 = 3600 * SECOND;
/// The longest wait of a turn that is right (row 7 waits for 60 s), a stalled window, and the idle time.
const KERNEL_MOST_US: u64 = 180 * SECOND;
/// A virtual world takes less than a second; this is for a loaded machine and every check after every step.
const MOST_WALL: Duration = Duration::from_secs(300);
/// What a world in real time may take beside its own time: flows played online, a namespace made, a loaded machine.
const SET_UP: Duration = Duration::from_secs(60);
const MS: u64 = 1000;
const SECOND: u64 = 1_000_000;

impl Scenario {
    /// The world of a seed.
    pub fn new(seed: u64, profile: Profile) -> Self {
        let mut dice = Dice::new(seed, 1 + profile.index() as u64);
        let mut scenario = Self::usual(seed, profile, &mut dice);
        scenario.apply(profile, &mut dice);
        scenario.most_us = MOST_US + 3 * scenario.times.idle_us;
        scenario
    }

    /// The world of a seed with the kernel as the target, in real time: clients that vanish are not waited for as long.
    pub fn on_kernel(seed: u64, profile: Profile) -> Self {
        let mut scenario = Self::new(seed, profile);
        scenario.kernel = true;
        scenario.times.idle_us = KERNEL_IDLE_US;
        scenario.most_us = KERNEL_MOST_US;
        if scenario.v6 {
            // Linux has no IPv6 on a smaller link.
            scenario.target.mtu = scenario.target.mtu.max(1280);
        }
        scenario
    }

    /// What all worlds have in common.
    fn usual(seed: u64, profile: Profile, dice: &mut Dice) -> Self {
        let v6 = dice.percent(25);
        let flows = dice.between(40, 200) as u32;
        let rx = [4096, 16_384, 65_535, 65_535, 262_144][dice.below(5) as usize];
        Self {
            seed,
            profile,
            flows,
            spread_us: dice.between(20, 4000) * MS,
            start_us: SECOND * dice.between(10, 100_000),
            v6,
            keep: dice.percent(40),
            shards: dice.weighted(&[(3, 1), (1, 4)]),
            copies_milli: 1000,
            percent_ppm: 1_000_000,
            wait: !dice.percent(4),
            rtt: dice.weighted(&[(3, Rtt::Measured), (2, Rtt::None), (1, Rtt::Fixed(20_000))]),
            join: dice.weighted(&[(6, Join::Boundary), (1, Join::First), (1, Join::Never)]),
            on_gap: dice.weighted(&[(4, OnGap::Skip), (1, OnGap::Resync), (1, OnGap::Abort)]),
            limits: USUAL,
            times: Times {
                idle_us: SECOND * dice.between(30, 700),
                hole_us: dice.weighted(&[(2, Times::default().hole_us), (2, 400 * MS), (1, 3 * SECOND)]),
                ..Times::default()
            },
            reuse_percent: 0,
            wraps: false,
            online: OnlineSpec {
                loss_ppm: dice.weighted(&[(2, 0), (2, 2_000), (1, 20_000)]),
                spurious_ppm: dice.weighted(&[(2, 0), (2, 2_000), (1, 20_000)]),
                late_ppm: dice.weighted(&[(2, 0), (2, 2_000), (1, 20_000)]),
                super_frames: dice.percent(50),
                ..OnlineSpec::default()
            },
            to_target: LinkSpec { delay_us: dice.between(20, 300), ..LinkSpec::default() },
            to_us: LinkSpec { delay_us: dice.between(20, 600), ..LinkSpec::default() },
            target: TargetSpec {
                rx,
                tx: [8192, 65_536][dice.below(2) as usize],
                mtu: dice.weighted(&[(6, 1500), (1, 1400), (1, 9000)]),
                nagle: dice.percent(30),
                stamps: dice.percent(70),
                ack_delay_us: dice.weighted(&[(2, 10 * MS), (1, 0), (1, 40 * MS)]),
                answers: Answers::Equal,
                writes: 1 + dice.below(3) as u32,
                write_gap_us: dice.below(2 * MS),
                delay_us: dice.weighted(&[(1, 0), (3, 2 * MS), (1, 20 * MS)]),
                trouble_percent: 0,
                restart: None,
                shrink: None,
                merges: dice.percent(50),
            },
            successor_us: dice.percent(5).then(|| dice.between(1, 4000) * MS),
            drain: dice.percent(3).then(|| (dice.between(1, 4000) * MS, dice.between(1, 2000) * MS)),
            kernel: false,
            most_us: 0,
        }
    }

    /// Longest that running it may take on the wall; after that it hangs.
    pub fn most_wall(&self) -> Duration {
        match self.kernel {
            true => Duration::from_micros(self.most_us) + SET_UP,
            false => MOST_WALL,
        }
    }

    /// Whether sessions end before their time, or find no room, by design.
    pub(crate) fn is_scarce(&self) -> bool {
        let usual = USUAL;
        self.drain.is_some()
            || self.limits.sessions < usual.sessions
            || self.limits.chunks < usual.chunks
            || self.limits.held_per_session < usual.held_per_session
    }

    /// Whether the target may be silent for longer than a session waits.
    pub(crate) fn may_time_out(&self) -> bool {
        self.to_target.dark.is_some() || self.to_us.dark.is_some() || self.target.trouble_percent > 0
    }

    fn loss(&mut self, ppm: u32, dice: &mut Dice) {
        for link in [&mut self.to_target, &mut self.to_us] {
            link.loss_ppm = ppm;
            link.jitter_us = dice.below(300);
            link.late_ppm = dice.below(2 * u64::from(ppm)) as u32;
            link.double_ppm = dice.below(u64::from(ppm)) as u32;
            link.corrupt_ppm = dice.below(u64::from(ppm) / 2) as u32;
        }
    }

    fn gap(&mut self, dice: &mut Dice) {
        self.online.hole_ppm = dice.weighted(&[(1, 1_000), (2, 10_000), (1, 50_000)]);
        self.online.double_ppm = dice.weighted(&[(2, 0), (1, 10_000), (1, 1_000_000)]);
        self.online.cut_ppm = dice.weighted(&[(3, 0), (1, 5_000)]);
        self.online.midstream_percent = dice.weighted(&[(1, 0), (1, 10), (1, 50)]);
    }

    fn trouble(&mut self, dice: &mut Dice) {
        self.target.trouble_percent = dice.weighted(&[(1, 3), (2, 20), (1, 60)]);
        if dice.percent(25) {
            self.target.restart =
                Some((dice.between(0, self.spread_us + SECOND), dice.between(1, 3000) * MS));
        }
        if dice.percent(30) {
            let from = dice.between(0, self.spread_us + SECOND);
            let dark = Some((from, from + dice.size(80 * SECOND)));
            match dice.below(3) {
                0 => self.to_target.dark = dark,
                1 => self.to_us.dark = dark,
                _ => (self.to_target.dark, self.to_us.dark) = (dark, dark),
            }
        }
    }

    fn slow(&mut self, dice: &mut Dice) {
        let target = &mut self.target;
        target.delay_us = dice.weighted(&[(2, 50 * MS), (2, 500 * MS), (1, 5 * SECOND)]);
        target.write_gap_us = dice.weighted(&[(1, MS), (1, 30 * MS), (1, 300 * MS)]);
        target.rx = dice.weighted(&[(1, 600), (2, 3000), (2, 65_535)]);
        let by = 1 + dice.below(400) as u32;
        target.answers = dice.weighted(&[
            (1, Answers::Equal),
            (1, Answers::Longer(by)),
            (1, Answers::Shorter(by)),
            (1, Answers::Random(by)),
        ]);
        if dice.percent(40) {
            self.to_target.rate = dice.between(200, 20_000);
        }
    }

    fn tiny(&mut self, dice: &mut Dice) {
        let headers = if self.v6 { 60 } else { 40 };
        self.target.mtu = headers + dice.weighted(&[(1, 88), (1, 216), (1, 536)]);
        if self.v6 {
            // An IPv6 link takes 1280 bytes (RFC 8200, section 5), whatever its host's segment size.
            self.target.mtu = self.target.mtu.max(headers + 536);
        }
        if dice.percent(50) {
            self.target.mtu = 1500;
            let least = if self.v6 { 1280 } else { 576 };
            self.target.shrink =
                Some((dice.below(self.spread_us), dice.weighted(&[(1, 1400), (1, 1280), (1, least)])));
        }
    }

    fn copies(&mut self, dice: &mut Dice) {
        self.flows /= 2;
        self.copies_milli = dice.weighted(&[(2, 2000), (1, 1500), (1, 4000), (1, 1000), (1, 100)]);
        self.percent_ppm = dice.weighted(&[(3, 1_000_000), (1, 300_000)]);
    }

    fn reuse(&mut self, dice: &mut Dice) {
        self.keep = true;
        self.reuse_percent = dice.between(20, 80) as u32;
    }

    fn few_resources(&mut self, dice: &mut Dice) {
        match dice.below(4) {
            0 => self.limits.sessions = dice.between(4, 60) as u32,
            1 => self.limits.chunks = dice.between(8, 300) as u32,
            2 => self.limits.held_per_session = dice.between(1000, 60_000) as u32,
            _ => {}
        }
    }

    fn apply(&mut self, profile: Profile, dice: &mut Dice) {
        match profile {
            Profile::Clean => {}
            Profile::Loss01 => self.loss(1_000, dice),
            Profile::Loss1 => self.loss(10_000, dice),
            Profile::Loss5 => self.loss(50_000, dice),
            Profile::Gap => self.gap(dice),
            Profile::Trouble => self.trouble(dice),
            Profile::Slow => self.slow(dice),
            Profile::TinyMss => self.tiny(dice),
            Profile::Wrap => {
                self.wraps = true;
                self.shards = 1;
                self.keep = true;
                // The 32-bit microseconds and milliseconds of the machine pass their wrap in this world.
                let wrap = dice.weighted(&[(1, 1 << 32), (1, 1000 << 32)]);
                self.start_us = wrap - dice.below(self.spread_us + 2 * SECOND);
                if dice.percent(50) {
                    self.loss(10_000, dice);
                }
            }
            Profile::Copies => self.copies(dice),
            Profile::Reuse => {
                self.reuse(dice);
                if dice.percent(40) {
                    self.loss(10_000, dice);
                }
            }
            Profile::Storm => {
                self.loss(10_000, dice);
                if dice.percent(50) {
                    self.gap(dice);
                }
                if dice.percent(50) {
                    self.trouble(dice);
                }
                if dice.percent(50) {
                    self.slow(dice);
                }
                if dice.percent(30) {
                    self.tiny(dice);
                }
                if dice.percent(30) {
                    self.copies(dice);
                }
                if dice.percent(30) {
                    self.reuse(dice);
                }
                if dice.percent(50) {
                    self.few_resources(dice);
                }
            }
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, online, limits, .. } = self;
        write!(
            f,
            "{} {} flows in {} ms, ipv{}, {}, {} shards, copies {}, {} ppm, wait {}, rtt {:?}, join {:?}, gap {:?}, ",
            self.profile.name(),
            self.flows,
            self.spread_us / 1000,
            if self.v6 { 6 } else { 4 },
            if self.keep { "keep" } else { "pool" },
            self.shards,
            self.copies_milli,
            self.percent_ppm,
            self.wait,
            self.rtt,
            self.join,
            self.on_gap,
        )?;
        write!(
            f,
            "limits {}/{}/{}, idle {} s, holes {} ms; online {online:?}; to target {}; back {}; {target:?}",
            limits.sessions,
            limits.chunks,
            limits.held_per_session,
            self.times.idle_us / SECOND,
            self.times.hole_us / MS,
            self.to_target,
            self.to_us,
        )?;
        if let Some(at) = self.successor_us {
            write!(f, "; successor at {} ms", at / 1000)?;
        }
        if let Some((at, end)) = self.drain {
            write!(f, "; drains at {} ms for {} ms", at / 1000, end / 1000)?;
        }
        Ok(())
    }
}
