//! What comes behind a handshake: a SYN may pass where nothing else does. A firewall that sees one direction only calls the
//! second packet of a connection invalid, and a path may be narrower than its ends know.
//!
//! A connection that has sent its SYN-ACK answers a segment far outside of its window with an acknowledgement and takes nothing
//! of it (RFC 9293, section 3.10.7.4). So one short and one as long as the route allows are sent, and then the reset: nothing
//! ever comes into the service's accept queue.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flow::record::{flag, kind};
use flow::{Addr, Endpoint, Inject, Returned, Seq, TcpFields};
use zerocopy::IntoBytes as _;

use super::Round;
use crate::probe::Probe;
use crate::sender::Engine as _;
use crate::tally::Tally;

/// How far a conversation with the target comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Short and long segments are answered.
    Whole {
        /// The longest packet that was sent, bytes.
        bytes: u16,
    },
    /// The SYN is answered, a short segment behind it is not.
    SecondLost,
    /// A short segment is answered, a long one is not.
    LongLost {
        /// The packet that was not, bytes.
        bytes: u16,
    },
    /// Somebody on the way says that the long one was too long.
    TooLong {
        /// The packet that was not, bytes.
        bytes: u16,
        /// What fits, as it says; 0 where it does not say.
        mtu: u32,
    },
    /// The SYN was not answered this time.
    NoAnswer,
}

/// Time for each answer, and how often it is asked for.
const PATIENCE: Duration = Duration::from_millis(300);
const TRIES: u32 = 2;
/// The port spoken from: the last of those that probes have, which the canary reaches after many hours.
const PORT: u16 = flow::probe::PORTS.end - 1;
/// Beyond every window that a SYN-ACK can offer: its field is not scaled.
const BEYOND: u32 = 1 << 20;

impl Round {
    /// Asks one target.
    pub(super) fn depth(&mut self, (index, to, from): (u16, SocketAddr, Addr), mtu: u16) -> Depth {
        let seq = Seq(shm::monotonic_ns() as u32);
        let client = Endpoint::new(from, PORT);
        let probe = Probe { target: index, to: to.into(), client, seq, sent_us: shm::monotonic_us() };
        let is_syn_ack = |record: &Returned| {
            record.kind == kind::TCP && record.tcp.has(flag::SYN | flag::ACK) && record.tcp.ack == seq + 1
        };
        let (syn, ours) = (probe.syn(self.claims), |record: &Returned| {
            record.client == client && record.target == probe.to
        });
        let answer = self.ask(&[], &syn, |record| ours(record) && is_syn_ack(record));
        let Some(answer) = answer else { return Depth::NoAnswer };
        let said = |record: &Returned| ours(record) && !is_syn_ack(record);
        let segment = |bytes: u16| {
            let tcp = TcpFields {
                seq: seq + BEYOND,
                ack: answer.tcp.seq + 1,
                flags: flag::ACK,
                window: u16::MAX,
                ..TcpFields::default()
            };
            Inject { tcp, payload_len: bytes.into(), mss: bytes, target: index, client, ..Inject::default() }
        };
        let headers = if to.is_ipv4() { 40 } else { 60 };
        let long = mtu.saturating_sub(headers).max(1);
        let payload = vec![0; usize::from(long)];
        let depth = match self.ask(&payload[..1], &segment(1), said) {
            None => Depth::SecondLost,
            Some(_) => match self.ask(&payload, &segment(long), said) {
                None => Depth::LongLost { bytes: mtu },
                Some(word) if word.kind == kind::ICMP => Depth::TooLong { bytes: mtu, mtu: word.mtu },
                Some(_) => Depth::Whole { bytes: mtu },
            },
        };
        let reset = probe.reset();
        self.with_post(|_, send| {
            // Without it the target gives the half-open connection up by itself.
            let _ = send(&reset);
        });
        depth
    }

    /// Sends a record until an answer comes.
    fn ask(&mut self, payload: &[u8], head: &Inject, is_it: impl Fn(&Returned) -> bool) -> Option<Returned> {
        for _ in 0..TRIES {
            if payload.is_empty() {
                // A SYN, which may have to be claimed.
                self.with_post(|_, send| {
                    // One that is not sent is not answered.
                    let _ = send(head);
                });
            } else {
                let mut bytes = head.as_bytes().to_vec();
                bytes.extend_from_slice(payload);
                let Self { guard, engine, .. } = self;
                if let Ok(out) = guard.check(&bytes) {
                    engine.send(std::iter::once(out), &mut Tally::default());
                }
            }
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until {
                if let Some(heard) = self.listen(until).into_iter().find(|heard| is_it(&heard.record)) {
                    return Some(heard.record);
                }
            }
        }
        None
    }
}
