//! The return filter: what intercept wants to see. TCP headers of the targets' answers, cut right behind the header before they are
//! copied, and ICMP errors about packets that were sent to a target.

use std::net::SocketAddr;

use flow::Range;

use super::assembler::{Assembler, Instruction, Label, MAX_INSTRUCTIONS, To, code, plain};
use super::parts::{self, ICMPV6, Port, SNAP, TCP, UDP};

/// Bytes kept of an ICMP error: IPv6 header, ICMPv6 header, quoted IPv6 header and quoted TCP header with options are 148.
pub const ICMP_SNAP: u32 = 160;

/// What intercept captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnFilter {
    /// The targets whose answers count.
    pub targets: Vec<SocketAddr>,
    /// The targets whose datagrams count.
    pub datagrams: Vec<SocketAddr>,
    /// Only answers to these ranges; empty means to anyone.
    pub clients: Vec<Range>,
    /// Payload bytes kept behind the TCP header.
    pub payload: u32,
    /// Frames for other hosts too.
    pub promiscuous: bool,
    /// Length of the link header in front: 0 on SOCK_DGRAM sockets.
    pub link_header: u32,
}

impl ReturnFilter {
    /// The program. It returns the number of bytes to keep, counted from the first byte that the socket delivers.
    pub fn program(&self) -> Vec<Instruction> {
        let program = self.assemble(true);
        if program.len() <= MAX_INSTRUCTIONS { program } else { self.assemble(false) }
    }

    pub(super) fn assemble(&self, exact: bool) -> Vec<Instruction> {
        let mut asm = Assembler::new(vec![plain(code::LD_MEM, SNAP), plain(code::RET_A, 0)]);
        parts::scratch(&mut asm);
        parts::direction(&mut asm, self.promiscuous);
        let (v4, v6) = (asm.label(), asm.label());
        parts::network(&mut asm, self.link_header, v4, v6);
        asm.bind(v4);
        self.v4(&mut asm, exact);
        asm.bind(v6);
        self.v6(&mut asm, exact);
        asm.finish()
    }

    fn v4(&self, asm: &mut Assembler, exact: bool) {
        let (tcp, icmp, quoted, ports) = (asm.label(), asm.label(), asm.label(), asm.label());
        let udp = self.udp(asm);
        asm.op(code::LD_H, 6);
        asm.branch(code::JSET, 0x1fff, To::Reject, To::Next);
        self.to_clients(asm, true, 16);
        asm.op(code::LD_B, 9);
        asm.branch(code::JEQ, TCP, To::Place(tcp), To::Next);
        if let Some([udp, ..]) = udp {
            asm.branch(code::JEQ, UDP, To::Place(udp), To::Next);
        }
        asm.branch(code::JEQ, 1, To::Place(icmp), To::Reject);
        asm.bind(icmp);
        parts::step_over_v4(asm);
        asm.op(code::LD_B, 0);
        // Destination unreachable ("fragmentation needed" among them) and time exceeded.
        asm.branch(code::JEQ, 3, To::Place(quoted), To::Next);
        asm.branch(code::JEQ, 11, To::Place(quoted), To::Reject);
        asm.bind(quoted);
        parts::step(asm, 8);
        asm.op(code::LD_B, 9);
        let other = udp.map_or(To::Reject, |[_, quoted, _]| To::Place(quoted));
        asm.branch(code::JEQ, TCP, To::Next, other);
        self.quoted_v4(asm);
        asm.goto(To::Place(ports));
        asm.bind(tcp);
        parts::keep_address(asm, 12, 1);
        parts::step_over_v4(asm);
        self.answer(asm);
        asm.bind(ports);
        parts::ports(asm, &of_targets(&self.targets, true), true, exact, To::Reject);
        if let Some([udp, quoted, ports]) = udp {
            asm.bind(quoted);
            asm.branch(code::JEQ, UDP, To::Next, To::Reject);
            self.quoted_v4(asm);
            asm.goto(To::Place(ports));
            asm.bind(udp);
            parts::keep_address(asm, 12, 1);
            parts::step_over_v4(asm);
            datagram(asm);
            asm.bind(ports);
            parts::ports(asm, &of_targets(&self.datagrams, true), true, exact, To::Reject);
        }
    }

    /// At an IPv4 header that an ICMP error quotes: leaves the quoted destination port in A.
    fn quoted_v4(&self, asm: &mut Assembler) {
        asm.op(code::LD_H, 6);
        asm.branch(code::JSET, 0x1fff, To::Reject, To::Next);
        parts::keep_address(asm, 16, 1);
        snap(asm, self.link_header + ICMP_SNAP);
        parts::step_over_v4(asm);
        asm.op(code::LD_H, 2);
    }

    /// Where datagrams, quoted datagrams and their ports are handled, when there are any.
    fn udp(&self, asm: &mut Assembler) -> Option<[Label; 3]> {
        (!self.datagrams.is_empty()).then(|| [asm.label(), asm.label(), asm.label()])
    }

    fn v6(&self, asm: &mut Assembler, exact: bool) {
        let (tcp, icmp, quoted, unsure, ports) =
            (asm.label(), asm.label(), asm.label(), asm.label(), asm.label());
        let udp = self.udp(asm);
        // A load beyond the packet rejects it: without its whole header it answers nobody.
        asm.op(code::LD_B, 39);
        self.to_clients(asm, false, 24);
        parts::keep_address(asm, 8, 4);
        match udp {
            None => {
                parts::step_over_v6(asm, &[(TCP, tcp), (ICMPV6, icmp)], To::Place(unsure), To::Reject);
            }
            Some([udp, ..]) => {
                let exits = [(TCP, tcp), (ICMPV6, icmp), (UDP, udp)];
                parts::step_over_v6(asm, &exits, To::Place(unsure), To::Reject);
            }
        }
        asm.bind(unsure);
        snap(asm, self.link_header + ICMP_SNAP);
        asm.goto(To::Accept);
        asm.bind(icmp);
        asm.op(code::LD_B, 0);
        // Destination unreachable, packet too big, time exceeded.
        asm.branch(code::JEQ, 0, To::Reject, To::Next);
        asm.branch(code::JGT, 3, To::Reject, To::Place(quoted));
        asm.bind(quoted);
        parts::step(asm, 8);
        asm.op(code::LD_B, 6);
        let other = udp.map_or(To::Reject, |[_, quoted, _]| To::Place(quoted));
        asm.branch(code::JEQ, TCP, To::Next, other);
        self.quoted_v6(asm);
        asm.goto(To::Place(ports));
        asm.bind(tcp);
        self.answer(asm);
        asm.bind(ports);
        parts::ports(asm, &of_targets(&self.targets, false), false, exact, To::Reject);
        if let Some([udp, quoted, ports]) = udp {
            asm.bind(quoted);
            asm.branch(code::JEQ, UDP, To::Next, To::Reject);
            self.quoted_v6(asm);
            asm.goto(To::Place(ports));
            asm.bind(udp);
            datagram(asm);
            asm.bind(ports);
            parts::ports(asm, &of_targets(&self.datagrams, false), false, exact, To::Reject);
        }
    }

    /// At an IPv6 header that an ICMPv6 error quotes: leaves the quoted destination port in A.
    fn quoted_v6(&self, asm: &mut Assembler) {
        parts::keep_address(asm, 24, 4);
        snap(asm, self.link_header + ICMP_SNAP);
        asm.op(code::LD_H, 40 + 2);
    }

    /// Drops what does not go to a replayed client.
    fn to_clients(&self, asm: &mut Assembler, v4: bool, offset: u32) {
        if !self.clients.is_empty() {
            let ours = asm.label();
            parts::in_ranges(asm, &self.clients, v4, offset, To::Place(ours));
            asm.goto(To::Reject);
            asm.bind(ours);
        }
    }

    /// At a TCP header: notes where it ends, and leaves its source port in A.
    fn answer(&self, asm: &mut Assembler) {
        asm.op(code::LD_B, 12);
        asm.op(code::AND_K, 0xf0);
        asm.op(code::RSH_K, 2);
        asm.op(code::ADD_X, 0);
        if self.payload > 0 {
            asm.op(code::ADD_K, self.payload);
        }
        asm.op(code::ST, SNAP);
        asm.op(code::LD_H, 0);
    }
}

/// At a UDP header: notes where it ends, and leaves its source port in A.
fn datagram(asm: &mut Assembler) {
    asm.op(code::TXA, 0);
    asm.op(code::ADD_K, 8);
    asm.op(code::ST, SNAP);
    asm.op(code::LD_H, 0);
}

fn of_targets(targets: &[SocketAddr], v4: bool) -> Vec<Port> {
    let mut ports: Vec<Port> = vec![];
    for target in targets.iter().filter(|target| target.is_ipv4() == v4) {
        let at = ports.partition_point(|port| port.port < target.port());
        if ports.get(at).is_none_or(|port| port.port != target.port()) {
            ports.insert(at, Port { port: target.port(), ..Port::default() });
        }
        if !ports[at].only.contains(&target.ip()) {
            ports[at].only.push(target.ip());
        }
    }
    ports
}

fn snap(asm: &mut Assembler, bytes: u32) {
    asm.op(code::LD_IMM, bytes);
    asm.op(code::ST, SNAP);
}
