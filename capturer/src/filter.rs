//! The kernel filters: which frames come up at all. Classic BPF, assembled here, attached in `sys`, run by the kernel for every
//! frame of the interface, so that production traffic that is not captured costs nothing more than this.
//!
//! | file | holds |
//! |---|---|
//! | `filter` | the capture filter: client → server segments and datagrams of the mappings |
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
pub(crate) use join::joined;
pub use machine::{Machine, Unfit};
pub use returns::{ICMP_SNAP, ReturnFilter};

use assembler::{Assembler, To, code, plain};
use parts::Port;

/// The filter that lets nothing through.
pub const NOTHING: [Instruction; 1] = [plain(code::RET_K, 0)];

/// Which frames by their length: two sockets share the traffic of an interface, one with small and one with large slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// All.
    All,
    /// Up to this many bytes, counted as the socket delivers them.
    UpTo(u32),
    /// Longer than that.
    Above(u32),
}

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
    /// Length of the link header in front: 0 on SOCK_DGRAM sockets, 14 on SOCK_RAW sockets of Ethernet.
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

impl CaptureFilter {
    /// The program. With so many addresses that it would be too long, one that compares ports only.
    pub fn program(&self) -> Vec<Instruction> {
        let program = self.assemble(true);
        if program.len() <= MAX_INSTRUCTIONS { program } else { self.assemble(false) }
    }

    fn assemble(&self, exact: bool) -> Vec<Instruction> {
        let mut asm = Assembler::new(vec![plain(code::RET_K, u32::MAX)]);
        parts::scratch(&mut asm);
        match self.frames {
            Frames::All => {}
            Frames::UpTo(len) => {
                asm.op(code::LD_LEN, 0);
                asm.branch(code::JGT, len, To::Reject, To::Next);
            }
            Frames::Above(len) => {
                asm.op(code::LD_LEN, 0);
                asm.branch(code::JGT, len, To::Next, To::Reject);
            }
        }
        parts::direction(&mut asm, self.promiscuous);
        let (v4, v6, tcp) = (asm.label(), asm.label(), asm.label());
        let udp = (!self.udp.online.is_empty()).then(|| (asm.label(), asm.label()));
        parts::network(&mut asm, self.link_header, v4, v6);
        asm.bind(v4);
        asm.op(code::LD_B, 9);
        let other = udp.map_or(To::Reject, |(udp4, _)| To::Place(udp4));
        asm.branch(code::JEQ, parts::TCP, To::Next, other);
        // Fragments but the first have no ports; the first comes up, to be counted.
        asm.op(code::LD_H, 6);
        asm.branch(code::JSET, 0x1fff, To::Reject, To::Next);
        self.client(&mut asm, true, 12);
        parts::keep_address(&mut asm, 16, 1);
        parts::step_over_v4(&mut asm);
        asm.op(code::LD_H, 2);
        parts::ports(&mut asm, &ports(&self.online, &self.targets, true), true, exact);
        if let Some((udp4, _)) = udp {
            asm.bind(udp4);
            asm.branch(code::JEQ, parts::UDP, To::Next, To::Reject);
            parts::in_ranges(&mut asm, &self.clients, true, 12, To::Reject);
            asm.op(code::LD_H, 6);
            asm.branch(code::JSET, 0x1fff, To::Accept, To::Next);
            parts::keep_address(&mut asm, 16, 1);
            parts::step_over_v4(&mut asm);
            asm.op(code::LD_H, 2);
            parts::ports(&mut asm, &ports(&self.udp.online, &self.udp.targets, true), true, exact);
        }
        asm.bind(v6);
        self.client(&mut asm, false, 8);
        parts::keep_address(&mut asm, 24, 4);
        match udp {
            None => parts::step_over_v6(&mut asm, &[(parts::TCP, tcp)], To::Accept, To::Reject),
            Some((_, udp6)) => {
                let exits = [(parts::TCP, tcp), (parts::UDP, udp6)];
                parts::step_over_v6(&mut asm, &exits, To::Accept, To::Accept);
            }
        }
        asm.bind(tcp);
        asm.op(code::LD_H, 2);
        parts::ports(&mut asm, &ports(&self.online, &self.targets, false), false, exact);
        if let Some((_, udp6)) = udp {
            asm.bind(udp6);
            asm.op(code::LD_H, 2);
            parts::ports(&mut asm, &ports(&self.udp.online, &self.udp.targets, false), false, exact);
        }
        asm.finish()
    }

    /// Drops what comes from our own clients, and from clients that are not meant; the address stands at X + `offset`.
    fn client(&self, asm: &mut Assembler, v4: bool, offset: u32) {
        parts::in_ranges(asm, &self.clients, v4, offset, To::Reject);
        parts::in_ranges(asm, &self.outside, v4, offset, To::Reject);
        if !self.inside.is_empty() {
            let meant = asm.label();
            parts::in_ranges(asm, &self.inside, v4, offset, To::Place(meant));
            asm.goto(To::Reject);
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
