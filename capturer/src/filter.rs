//! The kernel filters: which frames come up at all. Classic BPF, assembled here, attached in `sys`, run by the kernel for every
//! frame of the interface, so that production traffic that is not captured costs nothing more than this.
//!
//! | file | holds |
//! |---|---|
//! | `filter` | the capture filter: client → server segments and datagrams of the mappings, and the answers where they are recorded |
//! | `filter/returns` | the return filter that intercept uses: headers of answers, and ICMP errors |
//! | `filter/parts` | what both have in common |
//! | `filter/assembler` | labels, branches of any distance, ends |
//! | `filter/join` | an expression's program and ours as one |
//! | `filter/machine` | programs run in user space |
//!
//! The filters let through a little more than is meant where that saves instructions (IPv6 with long chains of extension
//! headers; addresses, when there are too many for the 4,096 instructions); the dispatcher decides again, exactly.

#[cfg(test)]
mod against_libpcap;
mod assembler;
#[cfg(test)]
mod interpreter;
mod join;
mod machine;
mod parts;
mod returns;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use flow::Range;

pub use assembler::{Instruction, MAX_INSTRUCTIONS};
pub(crate) use join::{behind_any_link, joined};
pub use machine::{Machine, Unfit};
pub use returns::{ICMP_SNAP, ReturnFilter};

use assembler::{Assembler, To, code, plain};
use parts::Port;

/// The filter that lets nothing through.
#[cfg(test)]
pub(crate) const NOTHING: [Instruction; 1] = [plain(code::RET_K, 0)];

/// In place of a link header's length: the kernel counts from the network header (SKF_NET_OFF), whatever is in front of it. It reads
/// no further than a frame's linear part then, which holds the headers of whatever the network stack shows a packet socket.
pub const ANY_LINK: u32 = libc::SKF_NET_OFF as u32;

/// Which frames: three sockets share the traffic of an interface. Bytes are counted as the socket delivers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// All.
    All,
    /// Up to `most` bytes, and not what [`Frames::Bare`] takes up to `bare` bytes.
    UpTo {
        /// Longest frame.
        most: u32,
        /// Longest frame of the other socket.
        bare: u32,
    },
    /// Longer than that.
    Above(u32),
    /// Bare acknowledgements up to this many bytes, for which nobody need wake up: segments without payload, SYN, FIN, RST, PSH
    /// and URG.
    Bare(u32),
}

/// Bytes of a TCP header without options.
const TCP_HEADER: u32 = 20;
/// FIN, SYN, RST, PSH, URG: byte 13 of a TCP header.
const NOT_BARE: u32 = 0x2f;
/// Link headers are that long at most, where they are counted in a frame's length and not in the offsets within it ([`ANY_LINK`]).
const UNKNOWN_LINK: u32 = 20;

/// What is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureFilter {
    /// Online addresses and ports; no address means any of this host.
    pub online: Vec<(Option<IpAddr>, u16)>,
    /// The replayed clients' ranges: what comes from them is our own. Empty with real client addresses.
    pub clients: Vec<Range>,
    /// The targets: what goes to them under a mapping without an address is our own.
    pub targets: Vec<SocketAddr>,
    /// `--net`: only clients in one of these; empty for all.
    pub inside: Vec<Range>,
    /// `--not-net`: no client in one of these.
    pub outside: Vec<Range>,
    /// The same of UDP. With any, fragments come up too, whose ports nobody knows yet.
    pub udp: Services,
    /// Frames of other hosts too.
    pub promiscuous: bool,
    /// Server → client packets too.
    pub answers: bool,
    /// Length of the link header in front: 0 on SOCK_DGRAM sockets, 14 on SOCK_RAW sockets of Ethernet, [`ANY_LINK`] on those of
    /// devices of any kind.
    pub link_header: u32,
    /// Which lengths.
    pub frames: Frames,
}

/// Services of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// As [`CaptureFilter::online`].
    pub online: Vec<(Option<IpAddr>, u16)>,
    /// As [`CaptureFilter::targets`].
    pub targets: Vec<SocketAddr>,
}

/// Where client and service stand in the headers of one direction: addresses from the IP header on, the service's port from
/// the TCP header on.
struct Side {
    client_v4: u32,
    service_v4: u32,
    client_v6: u32,
    service_v6: u32,
    port: u32,
}

const REQUESTS: Side = Side { client_v4: 12, service_v4: 16, client_v6: 8, service_v6: 24, port: 2 };
const ANSWERS: Side = Side { client_v4: 16, service_v4: 12, client_v6: 24, service_v6: 8, port: 0 };

impl CaptureFilter {
    /// The program. With so many addresses that it would be too long, one that compares ports only.
    pub fn program(&self) -> Vec<Instruction> {
        let program = self.assemble(true);
        if program.len() <= MAX_INSTRUCTIONS { program } else { self.assemble(false) }
    }

    fn assemble(&self, exact: bool) -> Vec<Instruction> {
        let take = plain(code::RET_K, u32::MAX);
        let leave = plain(code::RET_K, 0);
        let mut asm = Assembler::new(match self.frames {
            Frames::All | Frames::Above(_) => vec![take],
            Frames::UpTo { bare, .. } => self.sorted(bare, leave, take),
            Frames::Bare(most) => self.sorted(most, take, leave),
        });
        parts::scratch(&mut asm);
        match self.frames {
            Frames::All => {}
            Frames::UpTo { most, .. } | Frames::Bare(most) => {
                asm.op(code::LD_LEN, 0);
                asm.branch(code::JGT, most, To::Reject, To::Next);
            }
            Frames::Above(len) => {
                asm.op(code::LD_LEN, 0);
                asm.branch(code::JGT, len, To::Next, To::Reject);
            }
        }
        if !self.answers {
            parts::direction(&mut asm, self.promiscuous);
            self.half(&mut asm, &REQUESTS, exact, To::Reject);
            return asm.finish();
        }
        let (requests, outgoing, answers) = (asm.label(), asm.label(), asm.label());
        parts::directions(&mut asm, self.promiscuous, requests, outgoing);
        asm.bind(requests);
        self.half(&mut asm, &REQUESTS, exact, To::Place(answers));
        parts::outgoing(&mut asm, outgoing, answers);
        self.half(&mut asm, &ANSWERS, exact, To::Reject);
        asm.finish()
    }

    /// What is done with a packet that is meant, X at its transport: `bare` for bare acknowledgements of at most so many bytes,
    /// `other` for the rest. A header that is not whole is no acknowledgement, so that it is counted as what it is.
    fn sorted(&self, most: u32, bare: Instruction, other: Instruction) -> Vec<Instruction> {
        let least = TCP_HEADER + if self.link_header == ANY_LINK { UNKNOWN_LINK } else { 0 };
        let jump = |code, k, jt, jf| Instruction { code, jt, jf, k };
        vec![
            plain(code::LD_MEM, parts::TCP_END),
            jump(code::JEQ, 0, 15, 0),
            plain(code::LD_LEN, 0),
            jump(code::JGT, most, 13, 0),
            plain(code::SUB_X, 0),
            // Where offsets count from the network header, they are SKF_NET_OFF and more.
            plain(code::AND_K, !ANY_LINK),
            jump(code::JGE, least, 0, 10),
            plain(code::LD_B, 13),
            jump(code::JSET, NOT_BARE, 8, 0),
            // The header ends where the packet does.
            plain(code::LD_B, 12),
            plain(code::RSH_K, 2),
            plain(code::AND_K, 0x3c),
            plain(code::ADD_X, 0),
            plain(code::TAX, 0),
            plain(code::LD_MEM, parts::TCP_END),
            jump(code::JEQ_X, 0, 0, 1),
            bare,
            other,
        ]
    }

    /// Takes one direction; what is not of it goes to `miss`. Nothing falls through.
    fn half(&self, asm: &mut Assembler, side: &Side, exact: bool, miss: To) {
        let (v4, v6, tcp) = (asm.label(), asm.label(), asm.label());
        let udp = (!self.udp.online.is_empty()).then(|| (asm.label(), asm.label()));
        parts::network(asm, self.link_header, v4, v6);
        asm.bind(v4);
        asm.op(code::LD_B, 9);
        let other = udp.map_or(To::Reject, |(udp4, _)| To::Place(udp4));
        asm.branch(code::JEQ, parts::TCP, To::Next, other);
        // Fragments but the first have no ports; the first comes up, to be counted.
        asm.op(code::LD_H, 6);
        asm.branch(code::JSET, 0x1fff, To::Reject, To::Next);
        self.client(asm, true, side.client_v4, miss);
        self.own(asm, side, true, miss);
        parts::keep_address(asm, side.service_v4, 1);
        parts::keep_end_v4(asm);
        parts::step_over_v4(asm);
        asm.op(code::LD_H, side.port);
        parts::ports(asm, &ports(&self.online, &self.targets, true), true, exact, miss);
        if let Some((udp4, _)) = udp {
            asm.bind(udp4);
            asm.branch(code::JEQ, parts::UDP, To::Next, To::Reject);
            parts::in_ranges(asm, &self.clients, true, side.client_v4, miss);
            self.own(asm, side, true, miss);
            asm.op(code::LD_H, 6);
            asm.branch(code::JSET, 0x1fff, To::Accept, To::Next);
            parts::keep_address(asm, side.service_v4, 1);
            parts::step_over_v4(asm);
            asm.op(code::LD_H, side.port);
            let ports = ports(&self.udp.online, &self.udp.targets, true);
            parts::ports(asm, &ports, true, exact, miss);
        }
        asm.bind(v6);
        self.client(asm, false, side.client_v6, miss);
        self.own(asm, side, false, miss);
        parts::keep_address(asm, side.service_v6, 4);
        parts::keep_end_v6(asm);
        match udp {
            None => parts::step_over_v6(asm, &[(parts::TCP, tcp)], To::Accept, To::Reject),
            Some((_, udp6)) => {
                let exits = [(parts::TCP, tcp), (parts::UDP, udp6)];
                parts::step_over_v6(asm, &exits, To::Accept, To::Accept);
            }
        }
        asm.bind(tcp);
        parts::ends_tcp(asm);
        asm.op(code::LD_H, side.port);
        parts::ports(asm, &ports(&self.online, &self.targets, false), false, exact, miss);
        if let Some((_, udp6)) = udp {
            asm.bind(udp6);
            asm.op(code::LD_H, side.port);
            let ports = ports(&self.udp.online, &self.udp.targets, false);
            parts::ports(asm, &ports, false, exact, miss);
        }
    }

    /// A replayed client may have a service's port: what it sends to a target goes out like an answer.
    fn own(&self, asm: &mut Assembler, side: &Side, v4: bool, miss: To) {
        if side.port == ANSWERS.port {
            let offset = if v4 { side.service_v4 } else { side.service_v6 };
            parts::in_ranges(asm, &self.clients, v4, offset, miss);
        }
    }

    /// Leaves out our own clients, and clients that are not meant; the address stands at X + `offset`.
    fn client(&self, asm: &mut Assembler, v4: bool, offset: u32, miss: To) {
        parts::in_ranges(asm, &self.clients, v4, offset, miss);
        parts::in_ranges(asm, &self.outside, v4, offset, miss);
        if !self.inside.is_empty() {
            let meant = asm.label();
            parts::in_ranges(asm, &self.inside, v4, offset, To::Place(meant));
            asm.goto(miss);
            asm.island();
            asm.bind(meant);
        }
    }
}

/// The mappings by port, sorted; those without a way to match in this family are left out.
fn ports(online: &[(Option<IpAddr>, u16)], targets: &[SocketAddr], v4: bool) -> Vec<Port> {
    let mut ports: Vec<Port> = vec![];
    for &(ip, number) in online {
        if ip.is_some_and(|ip| ip.is_ipv4() != v4) {
            continue;
        }
        let at = ports.partition_point(|port| port.port < number);
        if ports.get(at).is_none_or(|port| port.port != number) {
            ports.insert(at, Port { port: number, ..Port::default() });
        }
        match ip {
            None => ports[at].any = true,
            Some(ip) if ports[at].only.contains(&ip) => {}
            Some(ip) => ports[at].only.push(ip),
        }
    }
    for target in targets.iter().filter(|target| target.is_ipv4() == v4) {
        if let Ok(at) = ports.binary_search_by_key(&target.port(), |port| port.port) {
            ports[at].except.push(target.ip());
        }
    }
    ports
}
