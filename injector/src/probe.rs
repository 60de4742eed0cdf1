//! One probe of the way to a target and back: a SYN from an endpoint that no session has, and what its answer says. Pure: sent
//! and matched by [`crate::canary`], which knows when; asked once, outside of a run, by [`crate::probing`].
//!
//! | hop | is proven by |
//! |---|---|
//! | this host → target | the kernel took the SYN, and the target answered it |
//! | target → intercept | intercept saw the answer |
//! | intercept → here | its header came |
//!
//! No connection is ever made: the SYN-ACK is answered with a reset, so that nothing comes into the service's accept queue.

use std::net::SocketAddr;

use flow::record::{flag, inject_bit, kind, opt};
use flow::{Addr, Endpoint, Inject, Returned, Seq, TcpFields, named_enum, probe};
use topology::Plan;
use topology::plan::{CanaryPlan, Clients, Protocol};

use crate::count::Count;
use crate::path::gateway;

/// A SYN that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Index of the target.
    pub target: u16,
    /// Its address and port.
    pub to: Endpoint,
    /// Where it speaks from.
    pub client: Endpoint,
    /// Initial sequence number.
    pub seq: Seq,
    /// When it was sent, microseconds.
    pub sent_us: u64,
}

/// What the other end says to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The service accepts connections.
    Accepted,
    /// Nobody listens at the port: both ways work, the service does not.
    Refused,
    /// An ICMP error: somebody on the way to the target does not let it pass. Type and code.
    Rejected(u8, u8),
}

/// Segment size that a probe offers: what fits everywhere.
const MSS: u16 = 1_220;

impl Probe {
    /// The SYN as a record for the sender; where flows are claimed one by one it asks for that.
    pub fn syn(&self, claim: bool) -> Inject {
        let tcp = TcpFields {
            seq: self.seq,
            flags: flag::SYN,
            window: u16::MAX,
            options: opt::MSS,
            mss: MSS,
            ..TcpFields::default()
        };
        let bits = if claim { inject_bit::CLAIM } else { 0 };
        Inject { tcp, bits, target: self.target, client: self.client, ..Inject::default() }
    }

    /// The reset that takes the half-open connection away: the very number that the target waits for (RFC 5961, section 3.2).
    pub fn reset(&self) -> Inject {
        let tcp = TcpFields { seq: self.seq + 1, flags: flag::RST, ..TcpFields::default() };
        Inject { tcp, target: self.target, client: self.client, ..Inject::default() }
    }

    /// What a returned header says about this probe; none when it is about another.
    pub fn answer(&self, record: &Returned) -> Option<Answer> {
        if record.client != self.client || record.target != self.to {
            return None;
        }
        match record.kind {
            kind::ICMP if record.tcp.seq == self.seq => {
                Some(Answer::Rejected(record.icmp_type, record.icmp_code))
            }
            kind::TCP if record.tcp.has(flag::ACK) && record.tcp.ack == self.seq + 1 => {
                let refused = record.tcp.has(flag::RST);
                (refused || record.tcp.has(flag::SYN)).then_some(if refused {
                    Answer::Refused
                } else {
                    Answer::Accepted
                })
            }
            _ => None,
        }
    }
}

/// The addresses that the probes of a plan speak from, IPv4 and IPv6; none where that family, or the whole, is not probed.
pub fn addresses(plan: &Plan) -> [Option<Addr>; 2] {
    match (&plan.canary, &plan.clients) {
        (CanaryPlan::Off, _) => [None, None],
        (_, Clients::Pool { v4, v6, .. }) => [v4, v6].map(|range| range.as_ref().map(probe::address)),
        (CanaryPlan::From(given), Clients::Keep) => [true, false].map(|v4| {
            let own = given.iter().find(|ip| ip.is_ipv4() == v4).map(|ip| Addr::from(*ip));
            own.or_else(|| Some(probe::stranger(v4, plan.instance)))
        }),
        (CanaryPlan::On, Clients::Keep) => [true, false].map(|v4| Some(probe::stranger(v4, plan.instance))),
    }
}

/// The targets of a plan that are probed, with where from: those of TCP. Nothing answers a datagram that is not the service's own.
pub fn probed(plan: &Plan) -> Vec<(u16, SocketAddr, Addr)> {
    let from = addresses(plan);
    let of = |(index, target): (usize, &topology::plan::Target)| {
        let from = from[usize::from(!target.addr.is_ipv4())]?;
        (target.protocol == Protocol::Tcp).then_some((index as u16, target.addr, from))
    };
    plan.targets.iter().enumerate().filter_map(of).collect()
}

named_enum! {
    /// How the way to a target and back stands.
    pub enum Verdict {
        /// Not known yet.
        Waiting => "waiting",
        /// The service accepted the probe.
        Ok => "ok",
        /// The probe got no answer, but sessions did meanwhile: the target has no room for connections, perhaps.
        Traffic => "traffic",
        /// The ways are whole; nobody listens at the port.
        Refused => "refused",
        /// The probe did not leave this host.
        NotSent => "not_sent",
        /// It was refused by ICMP on its way.
        Rejected => "rejected",
        /// It left, and intercept saw no answer.
        Unseen => "unseen",
        /// An intercept is not connected, and none of the others saw an answer.
        ChannelDown => "channel_down",
    }
}

impl Verdict {
    /// Whether sessions may send.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Ok | Self::Traffic | Self::Refused)
    }

    /// Whether it is known that they may not.
    pub const fn fails(self) -> bool {
        !self.passes() && !matches!(self, Self::Waiting)
    }
}

/// What is known about one target. Three words of shared memory, so that a successor goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it stands.
    pub verdict: Verdict,
    /// With [`Verdict::NotSent`] the errno's [`Count`], with [`Verdict::Rejected`] type and code of the ICMP error.
    pub detail: u16,
    /// Rounds of probes that failed so far.
    pub failures: u32,
    /// When the way was last seen to be whole, CLOCK_MONOTONIC microseconds; 0 when it never was.
    pub last_ok_us: u64,
    /// From the SYN to the header of its answer, the last time, microseconds.
    pub total_us: u32,
    /// The part of it between intercept and here: half of the return channel's own round trip. 0 when that is not known.
    pub back_us: u32,
}

impl Default for Report {
    fn default() -> Self {
        Self { verdict: Verdict::Waiting, detail: 0, failures: 0, last_ok_us: 0, total_us: 0, back_us: 0 }
    }
}

impl Report {
    /// Words that a report takes.
    pub const WORDS: usize = 3;

    /// As it stands in counters.
    pub fn to_words(self) -> [u64; Self::WORDS] {
        let first =
            self.verdict.index() as u64 | u64::from(self.detail) << 16 | u64::from(self.failures) << 32;
        [first, self.last_ok_us, u64::from(self.total_us) << 32 | u64::from(self.back_us)]
    }

    /// The other way round; a verdict that is none reads as `Waiting`.
    pub fn from_words([first, last_ok_us, times]: [u64; Self::WORDS]) -> Self {
        Self {
            verdict: Verdict::ALL.get(usize::from(first as u16)).copied().unwrap_or(Verdict::Waiting),
            detail: (first >> 16) as u16,
            failures: (first >> 32) as u32,
            last_ok_us,
            total_us: (times >> 32) as u32,
            back_us: times as u32,
        }
    }

    /// From the SYN until intercept saw its answer, microseconds.
    pub const fn out_us(&self) -> u32 {
        self.total_us.saturating_sub(self.back_us)
    }

    /// What is wrong with the way to `to`, and what to do about it, as a sentence for a person; none when nothing is.
    pub fn trouble(&self, plan: &Plan, to: SocketAddr) -> Option<String> {
        let from =
            addresses(plan)[usize::from(!to.is_ipv4())].map_or_else(String::new, |addr| addr.to_string());
        let host = to.ip();
        Some(match self.verdict {
            Verdict::Ok | Verdict::Traffic | Verdict::Waiting => return None,
            Verdict::Refused => format!(
                "{to} refuses connections (the way there and back is whole). Is the service running, and is this its port?"
            ),
            Verdict::NotSent => {
                let errno = Count::ALL.get(usize::from(self.detail)).map_or("refused", |count| count.name());
                format!(
                    "a SYN from {from} to {to} did not leave this host ({errno}). See `ip route get {host}` and, for EPERM, the output rules of the firewall here"
                )
            }
            Verdict::Rejected => format!(
                "a SYN from {from} to {to} was refused on its way (ICMP type {}, code {}): a firewall on {host} or before it does not let it pass. Allow the clients' range there",
                self.detail >> 8,
                self.detail & 0xff
            ),
            Verdict::Unseen => {
                let (family, clients) = match &plan.clients {
                    Clients::Pool { v4, v6, .. } => {
                        let range = if to.is_ipv4() { v4 } else { v6 };
                        let range = range.map_or_else(|| from.clone(), |range| range.to_string());
                        (if to.is_ipv4() { "" } else { "-6 " }, range)
                    }
                    Clients::Keep => (if to.is_ipv4() { "" } else { "-6 " }, "CLIENTS".to_owned()),
                };
                let own = match plan.clients {
                    Clients::Keep => format!(
                        " {from} is an address that nobody has; where the target has no route for everybody but only for some, name one of those that nobody has: --canary ADDRESS."
                    ),
                    Clients::Pool { .. } => String::new(),
                };
                let loose = "sysctl -w net.ipv4.conf.all.rp_filter=2";
                let mend = match gateway(plan, to) {
                    Some(via) => {
                        format!("ip {family}route replace {clients} via {via}; if that is set: {loose}")
                    }
                    None => loose.to_owned(),
                };
                format!(
                    "a SYN from {from} to {to} left, and intercept saw no answer: the target sends answers for {clients} elsewhere, or drops the SYN (firewall, rp_filter).{own} On the target ({host}): {mend}"
                )
            }
            Verdict::ChannelDown => {
                let at = plan.intercepts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format!(
                    "no answer of {to} can come back: the return channel is down. Is intercept running at {at}?"
                )
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    fn probe() -> Probe {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap().into();
        Probe {
            target: 1,
            to: at("10.0.3.2:8080"),
            client: at("198.18.0.1:1024"),
            seq: Seq(u32::MAX),
            sent_us: 5,
        }
    }

    fn returned(flags: u16, ack: u32) -> Returned {
        let probe = probe();
        let mut record = Returned { client: probe.client, target: probe.to, ..Returned::default() };
        (record.tcp.flags, record.tcp.ack) = (flags, Seq(ack));
        record
    }

    #[test]
    fn a_syn_is_answered_by_its_own_number_alone() {
        let said = |record: &Returned| probe().answer(record);
        assert_eq!(said(&returned(flag::SYN | flag::ACK, 0)), Some(Answer::Accepted));
        assert_eq!(said(&returned(flag::RST | flag::ACK, 0)), Some(Answer::Refused));
        // Of an older connection of the same endpoints, or of another probe.
        assert_eq!(said(&returned(flag::SYN | flag::ACK, 1)), None);
        assert_eq!(said(&returned(flag::ACK, 0)), None);
        let mut other = returned(flag::SYN | flag::ACK, 0);
        other.client.port += 1;
        assert_eq!(said(&other), None);
        let mut icmp = Returned { kind: kind::ICMP, icmp_type: 3, icmp_code: 13, ..returned(0, 0) };
        icmp.tcp.seq = Seq(u32::MAX);
        assert_eq!(said(&icmp), Some(Answer::Rejected(3, 13)));
        icmp.tcp.seq = Seq(0);
        assert_eq!(said(&icmp), None);
    }

    #[test]
    fn the_reset_bears_the_number_that_the_target_waits_for() {
        assert_eq!((probe().reset().tcp.seq, probe().reset().tcp.flags), (Seq(0), flag::RST));
        assert_eq!(probe().syn(true).bits, inject_bit::CLAIM);
    }

    #[test]
    fn a_report_crosses_shared_memory_whole_and_damage_is_no_verdict() {
        for &verdict in Verdict::ALL {
            let report = Report {
                verdict,
                detail: 0x030d,
                failures: u32::MAX,
                last_ok_us: 77,
                total_us: 900,
                back_us: 100,
            };
            assert_eq!(Report::from_words(report.to_words()), report);
        }
        assert_eq!(Report::from_words([0xffff, 0, 0]).verdict, Verdict::Waiting);
        assert_eq!(Report::from_words([0; 3]), Report::default());
    }

    #[test]
    fn targets_of_tcp_are_probed_from_where_no_session_speaks() {
        let mut plan =
            Plan { canary: CanaryPlan::On, ..plan(&["10.0.3.2:80", "10.0.3.2:53", "[fd00::2]:80"]) };
        plan.targets[1].protocol = Protocol::Udp;
        let from = |plan: &Plan| -> Vec<String> {
            probed(plan).iter().map(|(index, _, from)| format!("{index} {from}")).collect()
        };
        assert_eq!(from(&plan), ["0 198.18.0.1", "2 2001:2::1"]);
        plan.clients = Clients::Keep;
        assert_eq!(from(&plan)[0], "0 203.0.113.8", "an address that nobody has");
        plan.canary = CanaryPlan::From(vec!["10.7.7.7".parse().unwrap()]);
        assert_eq!(from(&plan)[0], "0 10.7.7.7");
        plan.canary = CanaryPlan::Off;
        assert!(from(&plan).is_empty());
    }

    #[test]
    fn each_failing_hop_is_named_with_what_to_type() {
        let plan = Plan {
            canary: CanaryPlan::On,
            intercepts: vec!["10.0.4.2:36524".parse().unwrap()],
            ..plan(&["10.0.3.2:8080"])
        };
        let said = |verdict, detail| {
            let report = Report { verdict, detail, ..Report::default() };
            report.trouble(&plan, plan.targets[0].addr).unwrap_or_default()
        };
        let eperm = Count::of_errno(libc::EPERM).index() as u16;
        for (verdict, detail, part) in [
            (Verdict::NotSent, eperm, "did not leave this host (EPERM)"),
            (Verdict::Rejected, 0x030d, "(ICMP type 3, code 13)"),
            (Verdict::Unseen, 0, "ip route replace 198.18.0.0/15 via 10.0.4.2"),
            (Verdict::ChannelDown, 0, "Is intercept running at 10.0.4.2:36524?"),
            (Verdict::Refused, 0, "refuses connections"),
        ] {
            assert!(said(verdict, detail).contains(part), "{}", said(verdict, detail));
        }
        assert_eq!(said(Verdict::Ok, 0), "");
    }
}
