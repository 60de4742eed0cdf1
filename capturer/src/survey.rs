//! What a packet file holds and what a replay of it would be: sessions, turns, bytes, holes. Called by `replay --dry-run` with every
//! packet in order of time; pure, and bounded by [`Bounds`] however long the file is.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};

use flow::datagram::{self, Seen};
use flow::record::flag;
use flow::{Endpoint, Malformed, Segment, ip, segment};
use topology::Plan;
use topology::plan::Protocol;
use trace::Packet;

use crate::expression;
use crate::filter::{Instruction, Machine};
use crate::online::{Meaning, Online};

mod stream;

use stream::Stream;

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sessions at one time. Each takes about 200 bytes.
    pub flows: usize,
    /// Services.
    pub services: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { flows: 65_536, services: 4_096 }
    }
}

/// The sums over all mapped traffic, or over one mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Clients' packets.
    pub packets: u64,
    /// The services' packets back.
    pub answers: u64,
    /// Connections whose SYN is in the file.
    pub begun: u64,
    /// Connections that are older than the file.
    pub midstream: u64,
    /// Turns: data after some more of an answer was acknowledged.
    pub turns: u64,
    /// Bytes that clients sent, each once.
    pub request_bytes: u64,
    /// Bytes that services sent, as far as clients acknowledged them.
    pub answer_bytes: u64,
    /// Bytes that clients sent again.
    pub repeated_bytes: u64,
    /// Bytes that clients sent and that are not in the file.
    pub missing_bytes: u64,
    /// Clients' datagrams that are whole in one packet.
    pub datagrams: u64,
    /// Their payload.
    pub datagram_bytes: u64,
    /// The services' datagrams back.
    pub datagram_answers: u64,
}

/// Traffic of a service: one end of connections or of datagrams, mapped or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it listens, as far as can be told.
    pub at: Endpoint,
    /// A SYN was seen to it, or an answer to one from it; otherwise the lower port decided, as for every datagram.
    pub certain: bool,
    /// Packets in both directions.
    pub packets: u64,
    /// Payload bytes in both directions.
    pub bytes: u64,
    /// SYNs to it.
    pub syns: u64,
}

/// The survey.
pub struct Survey {
    online: Online,
    /// The services that speak UDP.
    udp: Option<Online>,
    /// `-F`.
    expression: Option<Machine>,
    bounds: Bounds,
    flows: HashMap<(Endpoint, Endpoint), Flow>,
    /// Flows that have ended, oldest first: they make room when the table is full.
    ended: VecDeque<(Endpoint, Endpoint)>,
    services: HashMap<(Protocol, Endpoint), Service>,
    by_mapping: Vec<Sums>,
    counts: Counts,
    first_ns: Option<u64>,
    last_ns: u64,
}

/// Packets by kind, and what a bound left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// TCP that no mapping wants.
    pub other_tcp: u64,
    /// What a replay itself had sent: from the replayed clients' range, or to a target.
    pub own: u64,
    /// Packets of mapped services that are left out by the client's address.
    pub left_out: u64,
    /// Packets of mapped services that the expression does not take.
    pub not_taken: u64,
    /// UDP that no mapping wants.
    pub udp: u64,
    /// Neither TCP nor UDP.
    pub other_ip: u64,
    /// Packets that make no sense, by [`Malformed`]; fragments are among them.
    pub malformed: [u64; Malformed::COUNT],
    /// Clients' packets of sessions that found the table full.
    pub overflow_packets: u64,
    /// Packets of services that found theirs full.
    pub overflow_services: u64,
}

struct Flow {
    mapping: u16,
    stream: Stream,
    ended: bool,
}

impl Survey {
    /// Of what `-x` wants: `mappings` of them.
    pub fn new(online: Online, mappings: usize, bounds: Bounds) -> Self {
        Self {
            online,
            udp: None,
            expression: None,
            bounds,
            flows: HashMap::new(),
            ended: VecDeque::new(),
            services: HashMap::new(),
            by_mapping: vec![Sums::default(); mappings],
            counts: Counts::default(),
            first_ns: None,
            last_ns: 0,
        }
    }

    /// Of what a plan wants.
    pub fn of_plan(plan: &Plan, bounds: Bounds) -> Self {
        let survey = Self::new(Online::new(plan, Protocol::Tcp), plan.mappings.len(), bounds);
        let udp = plan.replays(Protocol::Udp).then(|| Online::new(plan, Protocol::Udp));
        Self { udp, expression: expression::machine(plan), ..survey }
    }

    /// Of these services' datagrams too; their mappings are among those of [`Survey::new`].
    #[must_use]
    pub fn with_datagrams(self, online: Online) -> Self {
        Self { udp: Some(online), ..self }
    }

    /// Only packets that this program takes too: what [`crate::expression::compile`] made.
    #[must_use]
    pub fn taking(mut self, program: Vec<Instruction>) -> Self {
        self.expression = Some(Machine::new(program).expect("it was checked when it was compiled"));
        self
    }

    /// Takes the next packet.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        let segment = match segment::parse(packet.ip, packet.wire_len) {
            Ok(segment) => segment,
            Err(Malformed::NotTcp) => return self.not_tcp(packet),
            Err(malformed) => {
                self.counts.malformed[malformed.index()] += 1;
                return;
            }
        };
        self.service(&segment);
        match self.online.meaning(&segment.src, &segment.dst) {
            Meaning::Mapping(_) if !self.takes(packet) => self.counts.not_taken += 1,
            Meaning::Mapping(mapping) => {
                self.seen(packet);
                self.request(mapping, &segment);
            }
            Meaning::Own => self.counts.own += 1,
            Meaning::LeftOut => self.counts.left_out += 1,
            Meaning::Other => match self.online.meaning(&segment.dst, &segment.src) {
                Meaning::Mapping(_) if !self.takes(packet) => self.counts.not_taken += 1,
                Meaning::Mapping(mapping) => {
                    self.last_ns = packet.time_ns;
                    self.by_mapping[usize::from(mapping)].answers += 1;
                }
                Meaning::Own => self.counts.own += 1,
                Meaning::LeftOut => self.counts.left_out += 1,
                Meaning::Other => self.counts.other_tcp += 1,
            },
        }
    }

    /// The sums of each mapping, in the order of the mappings.
    pub fn by_mapping(&self) -> Vec<Sums> {
        let mut sums = self.by_mapping.clone();
        for flow in self.flows.values() {
            sums[usize::from(flow.mapping)].missing_bytes += flow.stream.open_holes();
        }
        sums
    }

    /// The sums of all mappings.
    pub fn sums(&self) -> Sums {
        let mut all = Sums::default();
        for sums in self.by_mapping() {
            all.packets += sums.packets;
            all.answers += sums.answers;
            all.begun += sums.begun;
            all.midstream += sums.midstream;
            all.turns += sums.turns;
            all.request_bytes += sums.request_bytes;
            all.answer_bytes += sums.answer_bytes;
            all.repeated_bytes += sums.repeated_bytes;
            all.missing_bytes += sums.missing_bytes;
            all.datagrams += sums.datagrams;
            all.datagram_bytes += sums.datagram_bytes;
            all.datagram_answers += sums.datagram_answers;
        }
        all
    }

    /// Packets by kind.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// From the first mapped packet to the last, nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.first_ns.map_or(0, |first_ns| self.last_ns - first_ns)
    }

    /// The services with the most packets, at most `n`.
    pub fn top(&self, n: usize) -> Vec<Service> {
        let mut services: Vec<Service> = self.services.values().copied().collect();
        services.sort_unstable_by_key(|service| {
            (std::cmp::Reverse(service.packets), service.at, service.protocol.prefix())
        });
        services.truncate(n);
        services
    }

    /// Whether a mapping wants what is sent to this service.
    pub fn is_mapped(&self, service: &Service) -> bool {
        // Any client will do that is not one of the replayed range.
        let nobody = Endpoint { addr: flow::Addr::v4([0; 4]), port: 0 };
        let online = match service.protocol {
            Protocol::Tcp => Some(&self.online),
            Protocol::Udp => self.udp.as_ref(),
        };
        online.is_some_and(|online| matches!(online.meaning(&nobody, &service.at), Meaning::Mapping(_)))
    }

    /// Whether the expression takes a packet, if there is one.
    fn takes(&self, packet: &Packet<'_>) -> bool {
        self.expression.as_ref().is_none_or(|machine| machine.matches(packet.ip, packet.wire_len))
    }

    /// A client's packet of a mapping.
    fn seen(&mut self, packet: &Packet<'_>) {
        self.first_ns.get_or_insert(packet.time_ns);
        self.last_ns = packet.time_ns;
    }

    fn not_tcp(&mut self, packet: &Packet<'_>) {
        const UDP: u8 = 17;
        match ip::parse(packet.ip, packet.wire_len) {
            Ok(found) if found.protocol == UDP => self.datagram(packet),
            _ => self.counts.other_ip += 1,
        }
    }

    fn datagram(&mut self, packet: &Packet<'_>) {
        let Ok(Seen::Whole(datagram)) = datagram::parse(packet.ip, packet.wire_len) else {
            self.counts.udp += 1;
            return;
        };
        let at = if datagram.src.port < datagram.dst.port { datagram.src } else { datagram.dst };
        self.count_service(Protocol::Udp, at, datagram.wire_payload_len, false, false);
        let Some(online) = &self.udp else {
            self.counts.udp += 1;
            return;
        };
        let request = online.meaning(&datagram.src, &datagram.dst);
        let answer = online.meaning(&datagram.dst, &datagram.src);
        match (request, answer) {
            (Meaning::Own, _) | (Meaning::Other, Meaning::Own) => self.counts.own += 1,
            (Meaning::LeftOut, _) | (Meaning::Other, Meaning::LeftOut) => self.counts.left_out += 1,
            (Meaning::Other, Meaning::Other) => self.counts.udp += 1,
            _ if !self.takes(packet) => self.counts.not_taken += 1,
            (Meaning::Mapping(mapping), _) => {
                self.seen(packet);
                let sums = &mut self.by_mapping[usize::from(mapping)];
                sums.datagrams += 1;
                sums.datagram_bytes += u64::from(datagram.wire_payload_len);
            }
            (Meaning::Other, Meaning::Mapping(mapping)) => {
                self.last_ns = packet.time_ns;
                self.by_mapping[usize::from(mapping)].datagram_answers += 1;
            }
        }
    }

    fn request(&mut self, mapping: u16, segment: &Segment<'_>) {
        self.by_mapping[usize::from(mapping)].packets += 1;
        let key = (segment.src, segment.dst);
        let begins = segment.tcp.flags & (flag::SYN | flag::RST) == flag::SYN;
        let anew = match self.flows.get(&key) {
            None => begins || segment.wire_payload_len > 0,
            Some(flow) => begins && flow.stream.is_another(segment),
        };
        if anew {
            if let Some(flow) = self.flows.remove(&key) {
                self.by_mapping[usize::from(flow.mapping)].missing_bytes += flow.stream.open_holes();
            } else if self.flows.len() == self.bounds.flows && !self.make_room() {
                self.counts.overflow_packets += 1;
                return;
            }
            let sums = &mut self.by_mapping[usize::from(mapping)];
            *(if begins { &mut sums.begun } else { &mut sums.midstream }) += 1;
            self.flows.insert(key, Flow { mapping, stream: Stream::new(segment), ended: false });
        }
        let Some(flow) = self.flows.get_mut(&key) else { return };
        flow.stream.take(segment, &mut self.by_mapping[usize::from(mapping)]);
        if segment.tcp.flags & (flag::FIN | flag::RST) != 0 && !flow.ended {
            flow.ended = true;
            self.ended.push_back(key);
        }
    }

    /// Forgets the flow that ended first; false when none has.
    fn make_room(&mut self) -> bool {
        while let Some(key) = self.ended.pop_front() {
            // One that began anew under the same endpoints has not ended.
            if self.flows.get(&key).is_some_and(|flow| flow.ended) {
                let flow = self.flows.remove(&key).expect("it was just there");
                self.by_mapping[usize::from(flow.mapping)].missing_bytes += flow.stream.open_holes();
                return true;
            }
        }
        false
    }

    /// Counts for the end of the connection that listens.
    fn service(&mut self, segment: &Segment<'_>) {
        let (src, dst) = (segment.src, segment.dst);
        let syn = segment.tcp.flags & (flag::SYN | flag::ACK);
        let certain =
            |at: &Endpoint| self.services.get(&(Protocol::Tcp, *at)).is_some_and(|service| service.certain);
        let (at, sure) = match syn {
            flag::SYN => (dst, true),
            both if both == flag::SYN | flag::ACK => (src, true),
            _ if certain(&dst) => (dst, false),
            _ if certain(&src) => (src, false),
            _ if src.port < dst.port => (src, false),
            _ => (dst, false),
        };
        self.count_service(Protocol::Tcp, at, segment.wire_payload_len, sure, syn == flag::SYN);
    }

    fn count_service(&mut self, protocol: Protocol, at: Endpoint, bytes: u32, certain: bool, syn: bool) {
        let room = self.services.len() < self.bounds.services;
        let service = match self.services.entry((protocol, at)) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) if room => {
                free.insert(Service { protocol, at, certain: false, packets: 0, bytes: 0, syns: 0 })
            }
            Entry::Vacant(_) => {
                self.counts.overflow_services += 1;
                return;
            }
        };
        service.certain |= certain;
        service.packets += 1;
        service.bytes += u64::from(bytes);
        service.syns += u64::from(syn);
    }
}

#[cfg(test)]
mod tests;
