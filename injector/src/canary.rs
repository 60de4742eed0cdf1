//! The canary: whether the way to each target and back is whole, known before sessions may use it, asked again all the while.
//! Pure: time, what came back and the sender are arguments. Driven by the injector's drain, and by [`crate::probing`].
//!
//! | verdict | a round begins | of | passes into |
//! |---|---|---|---|
//! | waiting | when the return channel is up, or half a second later | three tries, 300 ms apart | any, at its first answer or 900 ms after its first try |
//! | passing | every 10 s, when the channel broke, and when sessions are not answered any more | the same | the same |
//! | failing | every second, and when the channel is up again | one try | passing, at an answer to a probe |
//!
//! A round that got no answer while sessions with that target did has passed all the same ([`Verdict::Traffic`]): what cannot take
//! one more connection is busy, not out of reach. To begin again after a failure only a probe will do: answers that were under
//! way, or that a target repeats, do not say that it can be reached.

use flow::{Addr, Endpoint, Inject, Returned, Seq, probe};

use crate::probe::{Answer, Probe, Report, Verdict};

/// All probed targets.
pub(crate) struct Canary {
    birds: Vec<Bird>,
    /// Flows must be claimed before their SYNs leave.
    claims: bool,
    port: u16,
    number: u32,
    began_us: u64,
    channel: Channel,
    /// A report changed.
    news: bool,
}

/// One target.
struct Bird {
    target: u16,
    to: Endpoint,
    from: Addr,
    report: Report,
    next_us: u64,
    round: Option<Round>,
    /// Those that were sent last; what answers them late counts.
    recent: [Option<Probe>; RECENT],
}

/// Probes that are waited for together.
struct Round {
    began_us: u64,
    tries: u32,
    /// The last reason why one did not leave.
    not_sent: Option<u16>,
    rejected: Option<u16>,
    left: bool,
    /// Sessions were answered since it began.
    traffic: bool,
    /// An intercept was missing at some time of it.
    deaf: bool,
}

/// How the return channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channel {
    /// Intercepts that are connected.
    pub(crate) up: u32,
    /// Of how many.
    pub(crate) of: u32,
}

/// A header that came back for a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) record: Returned,
    pub(crate) at_us: u64,
    /// How long it took from intercept, 0 when that is not known.
    pub(crate) back_us: u32,
}

/// Sends a record; or the index of the [`crate::Count`] that says why not.
pub(crate) type Send<'a> = &'a mut dyn FnMut(&Inject) -> Result<(), u16>;

/// Tries of a round, the time between them, and until the verdict: within a second, with the time that it takes to act.
const TRIES: u32 = 3;
const TRY_US: u64 = 300_000;
const ROUND_US: u64 = TRIES as u64 * TRY_US;
/// Between rounds that pass.
const EVERY_US: u64 = 10_000_000;
/// The same where sessions are not answered: a service that is slow for a reason of its own is not asked more often.
const DOUBT_US: u64 = 2_000_000;
/// Between tries while a target fails; each is waited for that long.
const AGAIN_US: u64 = 1_000_000;
/// What a predecessor saw is believed for so long: two rounds.
const KNOWN_US: u64 = 2 * EVERY_US;
/// Time for the return channel to come up at the start.
const START_US: u64 = 500_000;
/// Probes of a target that are remembered.
const RECENT: usize = 4;

impl Channel {
    pub(crate) const fn is_whole(self) -> bool {
        self.up == self.of
    }
}

impl Canary {
    /// For these targets, each with its index and the address to speak from. `known` is what a predecessor found out; `number` is
    /// any number, the next time another.
    pub(crate) fn new(
        targets: impl Iterator<Item = (u16, Endpoint, Addr)>,
        claims: bool,
        known: impl Fn(u16) -> Report,
        now_us: u64,
        number: u32,
    ) -> Self {
        let bird = |(target, to, from)| {
            let report = known(target);
            // Of long ago, of another boot, or damaged: it says nothing about now.
            let age_us = now_us.wrapping_sub(report.last_ok_us);
            let report = match report.verdict.passes() && age_us > KNOWN_US {
                true => Report { verdict: Verdict::Waiting, ..report },
                false => report,
            };
            let next_us =
                if report.verdict.passes() { now_us + EVERY_US.saturating_sub(age_us) } else { now_us };
            Bird { target, to, from, report, next_us, round: None, recent: [None; RECENT] }
        };
        let ports = probe::PORTS.end - probe::PORTS.start;
        Self {
            birds: targets.map(bird).collect(),
            claims,
            port: (number >> 8) as u16 % ports,
            number,
            began_us: now_us,
            channel: Channel::default(),
            news: false,
        }
    }

    /// Sends what is due, and judges rounds whose time is over.
    pub(crate) fn turn(&mut self, now_us: u64, channel: Channel, send: Send<'_>) {
        let (came, broke) = (channel.up > self.channel.up, channel.up < self.channel.up);
        self.channel = channel;
        let may_start = channel.is_whole() || now_us >= self.began_us + START_US;
        for index in 0..self.birds.len() {
            let bird = &mut self.birds[index];
            let fails = bird.report.verdict.fails();
            if came && fails {
                // The probe that is out has no way back; the next one has.
                bird.round = None;
            }
            if broke || (came && fails) {
                bird.next_us = bird.next_us.min(now_us);
            }
            if let Some(round) = &mut bird.round {
                round.deaf |= !channel.is_whole();
                if now_us >= round.over_us(fails) {
                    bird.judge(now_us, &mut *send);
                    self.news = true;
                } else if !fails
                    && round.tries < TRIES
                    && now_us >= round.began_us + u64::from(round.tries) * TRY_US
                {
                    self.try_once(index, now_us, &mut *send);
                }
            }
            let bird = &mut self.birds[index];
            let waits = bird.report.verdict == Verdict::Waiting && !may_start;
            if bird.round.is_none() && now_us >= bird.next_us && !waits {
                bird.round = Some(Round::begin(now_us, !channel.is_whole()));
                self.try_once(index, now_us, &mut *send);
            }
        }
    }

    /// Takes a header for an endpoint of the probes.
    pub(crate) fn heard(&mut self, heard: &Heard, send: Send<'_>) {
        let (client, target) = (heard.record.client.addr, heard.record.target);
        for bird in self.birds.iter_mut().filter(|bird| bird.to == target && bird.from == client) {
            self.news |= bird.heard(heard, &mut *send);
        }
    }

    /// Sessions with this target were answered just now.
    pub(crate) fn traffic(&mut self, target: u16) {
        let round = self.birds.iter_mut().find(|bird| bird.target == target).and_then(|b| b.round.as_mut());
        if let Some(round) = round {
            round.traffic = true;
        }
    }

    /// What sessions send to this target is not answered: a probe shall say why, unless one just did.
    pub(crate) fn doubt(&mut self, target: u16, now_us: u64) {
        if let Some(bird) = self.birds.iter_mut().find(|bird| bird.target == target)
            && bird.report.verdict.passes()
        {
            bird.next_us = bird.next_us.min(now_us.max(bird.report.last_ok_us + DOUBT_US));
        }
    }

    /// Whether any target is not known to be reached or not to be reached yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.birds.iter().any(|bird| bird.report.verdict == Verdict::Waiting)
    }

    /// Whether a report changed since the last call.
    pub(crate) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// When [`Canary::turn`] has something to do again, whatever happens.
    pub(crate) fn due_us(&self) -> u64 {
        self.birds.iter().map(Bird::due_us).min().unwrap_or(u64::MAX)
    }

    /// What is known of each probed target, by its index.
    pub(crate) fn reports(&self) -> impl Iterator<Item = (u16, Report)> {
        self.birds.iter().map(|bird| (bird.target, bird.report))
    }

    fn try_once(&mut self, index: usize, now_us: u64, send: Send<'_>) {
        let ports = probe::PORTS.end - probe::PORTS.start;
        self.port = (self.port + 1) % ports;
        // Further on than any window, so that a target that remembers the endpoint takes the SYN for a new one.
        self.number = self.number.wrapping_add(0x1234_5679);
        let (seq, port) = (Seq(self.number), probe::PORTS.start + self.port);
        let bird = &mut self.birds[index];
        let client = Endpoint::new(bird.from, port);
        let probe = Probe { target: bird.target, to: bird.to, client, seq, sent_us: now_us };
        let Some(round) = &mut bird.round else { return };
        round.tries += 1;
        match send(&probe.syn(self.claims)) {
            Ok(()) => round.left = true,
            Err(count) => round.not_sent = Some(count),
        }
        bird.recent.rotate_right(1);
        bird.recent[0] = Some(probe);
    }
}

impl Round {
    const fn begin(now_us: u64, deaf: bool) -> Self {
        Self { began_us: now_us, tries: 0, not_sent: None, rejected: None, left: false, traffic: false, deaf }
    }

    const fn over_us(&self, fails: bool) -> u64 {
        self.began_us + if fails { AGAIN_US } else { ROUND_US }
    }
}

impl Bird {
    fn due_us(&self) -> u64 {
        match &self.round {
            None => self.next_us,
            Some(round) if self.report.verdict.fails() || round.tries >= TRIES => {
                round.over_us(self.report.verdict.fails())
            }
            Some(round) => round.began_us + u64::from(round.tries) * TRY_US,
        }
    }

    /// True when the report changed.
    fn heard(&mut self, heard: &Heard, send: Send<'_>) -> bool {
        let found = self.recent.iter().flatten().find_map(|p| Some((*p, p.answer(&heard.record)?)));
        let Some((probe, answer)) = found else { return false };
        let verdict = match answer {
            Answer::Accepted => Verdict::Ok,
            Answer::Refused => Verdict::Refused,
            Answer::Rejected(kind, code) => {
                if let Some(round) = &mut self.round {
                    round.rejected = Some(u16::from(kind) << 8 | u16::from(code));
                }
                return false;
            }
        };
        if verdict == Verdict::Ok {
            // What does not leave is tried again by the target's own patience: it repeats its SYN-ACK.
            let _ = send(&probe.reset());
        }
        if self.round.take().is_none() && self.report.verdict.passes() {
            // The answer to a second try: the first has said it all.
            return false;
        }
        let total_us = u32::try_from(heard.at_us.saturating_sub(probe.sent_us)).unwrap_or(u32::MAX);
        self.report = Report {
            verdict,
            detail: 0,
            last_ok_us: heard.at_us,
            total_us,
            back_us: heard.back_us.min(total_us),
            ..self.report
        };
        self.next_us = heard.at_us + EVERY_US;
        true
    }

    /// The time of the round is over, and no probe of it was answered.
    fn judge(&mut self, now_us: u64, send: Send<'_>) {
        let Some(round) = self.round.take() else { return };
        for probe in self.recent.iter().flatten().filter(|probe| probe.sent_us >= round.began_us) {
            // It may have come to the target all the same.
            if round.left {
                let _ = send(&probe.reset());
            }
        }
        if round.traffic && !self.report.verdict.fails() {
            self.report = Report { verdict: Verdict::Traffic, detail: 0, last_ok_us: now_us, ..self.report };
            self.next_us = now_us + EVERY_US;
            return;
        }
        let (verdict, detail) = match (round.left, round.not_sent, round.rejected) {
            (false, Some(count), _) => (Verdict::NotSent, count),
            (_, _, Some(icmp)) => (Verdict::Rejected, icmp),
            _ if round.deaf => (Verdict::ChannelDown, 0),
            _ => (Verdict::Unseen, 0),
        };
        let failures = self.report.failures.saturating_add(1);
        self.report = Report { verdict, detail, failures, ..self.report };
        self.next_us = now_us;
    }
}

#[cfg(test)]
mod tests;
