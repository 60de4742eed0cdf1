//! What the table sends, cut as the injector cuts it, and what happens to it under way.

use flow::Inject;
use flow::record::flag;
use session::Sink;

/// One segment on the way to the target, cut by the injector.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at_us: u64,
    pub head: Inject,
    pub payload: Vec<u8>,
}

impl Sent {
    pub fn is(&self, flags: u16) -> bool {
        self.head.tcp.has(flags)
    }
}

pub(super) struct Wire<'a> {
    pub(super) at_us: u64,
    pub(super) sent: &'a mut Vec<Sent>,
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Sink for Wire<'_> {
    fn emit<'p>(&mut self, head: &Inject, parts: impl Iterator<Item = &'p [u8]>) {
        let payload: Vec<u8> = parts.flatten().copied().collect();
        assert_eq!(payload.len(), head.payload_len as usize, "parts are what the head says: {head:?}");
        assert!(head.client.port != 0, "no session sends without an endpoint: {head:?}");
        self.records += 1;
        self.bytes += payload.len();
        self.sent.push(Sent { at_us: self.at_us, head: *head, payload });
    }
}

/// What happens to a packet under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Lose,
    /// Arrives later by so much.
    Late(u64),
    Twice,
}

/// What the injector does with a super-frame.
pub(super) fn cut(sent: &Sent) -> Vec<(Inject, Vec<u8>)> {
    if sent.payload.is_empty() {
        return vec![(sent.head, Vec::new())];
    }
    let mss = usize::from(sent.head.mss);
    let last = sent.payload.len().div_ceil(mss) - 1;
    let pieces = sent.payload.chunks(mss).enumerate();
    pieces
        .map(|(i, bytes)| {
            let mut head = sent.head;
            head.tcp.seq += (i * mss) as u32;
            head.payload_len = bytes.len() as u32;
            if i < last {
                head.tcp.flags &= !(flag::FIN | flag::PSH);
            }
            (head, bytes.to_vec())
        })
        .collect()
}
