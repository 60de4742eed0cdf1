//! What the capture filter and the return filter have in common. X holds the offset of the header under inspection
//! throughout, so one program serves frames with and without a VLAN tag in front of IP.

use std::net::IpAddr;

use flow::Range;

use super::assembler::{Assembler, Label, To, code};

/// Scratch words: an address as up to four words, a saved next-header value, the snap length to return.
pub(super) const ADDRESS: u32 = 0;
pub(super) const SAVED: u32 = 5;
pub(super) const SNAP: u32 = 6;
const ANSWERS: u32 = 7;
/// Where the packet ends, as offsets from X count, once X stands at a TCP header; 0 while it may stand at another.
pub(super) const TCP_END: u32 = 8;
/// The same, while nobody knows of what it is the end.
const END: u32 = 9;

/// Index of the loopback interface, in every network namespace.
pub(super) const LOOPBACK: u32 = 1;

pub(super) const TCP: u32 = 6;
pub(super) const UDP: u32 = 17;
pub(super) const ICMPV6: u32 = 58;

const ETH_IPV4: u32 = libc::ETH_P_IP as u32;
const ETH_IPV6: u32 = libc::ETH_P_IPV6 as u32;
const ETH_VLAN: u32 = libc::ETH_P_8021Q as u32;
const ETH_QINQ: u32 = libc::ETH_P_8021AD as u32;

/// Extension headers stepped over in the kernel; packets with more go up, where the parser decides.
const EXTENSIONS: usize = 2;

/// Loads what the kernel knows about the frame beside its bytes.
pub(super) fn ancillary(asm: &mut Assembler, field: i32) {
    asm.op(code::LD_ABS_W, (libc::SKF_AD_OFF + field) as u32);
}

/// Writes every scratch word once, at the very beginning. The kernel's check that words are written before they are read does not
/// stop at a return: it takes the words missing on any way to a return for missing in what stands behind it.
pub(super) fn scratch(asm: &mut Assembler) {
    asm.op(code::LD_IMM, 0);
    for word in [ADDRESS, ADDRESS + 1, ADDRESS + 2, ADDRESS + 3, SAVED, SNAP, ANSWERS, TCP_END, END] {
        asm.op(code::ST, word);
    }
}

/// Drops frames that are not for this host (or, when promiscuous, only those that it sends).
pub(super) fn direction(asm: &mut Assembler, promiscuous: bool) {
    ancillary(asm, libc::SKF_AD_PKTTYPE);
    if promiscuous {
        asm.branch(code::JEQ, u32::from(libc::PACKET_OUTGOING), To::Reject, To::Next);
    } else {
        asm.branch(code::JEQ, u32::from(libc::PACKET_HOST), To::Next, To::Reject);
    }
}

/// Where both directions are wanted: requests come in and answers go out, so each frame is looked at for what it can be, and none is
/// taken twice. On loopback every packet is seen going out and coming in, and coming in alone counts; a mirror port brings
/// both directions in. What goes out is at `outgoing`, all else at `requests`.
pub(super) fn directions(asm: &mut Assembler, promiscuous: bool, requests: Label, outgoing: Label) {
    ancillary(asm, libc::SKF_AD_PKTTYPE);
    let out = if promiscuous { To::Reject } else { To::Place(outgoing) };
    asm.branch(code::JEQ, u32::from(libc::PACKET_OUTGOING), out, To::Next);
    if !promiscuous {
        asm.branch(code::JEQ, u32::from(libc::PACKET_HOST), To::Next, To::Reject);
        ancillary(asm, libc::SKF_AD_IFINDEX);
        asm.branch(code::JEQ, LOOPBACK, To::Next, To::Place(requests));
    }
    asm.op(code::LD_IMM, 1);
    asm.op(code::ST, ANSWERS);
}

/// What goes out can be an answer, except on loopback; what came in and is no request goes on at `answers` only where
/// [`directions`] said so.
pub(super) fn outgoing(asm: &mut Assembler, outgoing: Label, answers: Label) {
    asm.bind(outgoing);
    ancillary(asm, libc::SKF_AD_IFINDEX);
    asm.branch(code::JEQ, LOOPBACK, To::Reject, To::Next);
    asm.op(code::LD_IMM, 1);
    asm.op(code::ST, ANSWERS);
    asm.bind(answers);
    asm.op(code::LD_MEM, ANSWERS);
    asm.branch(code::JEQ, 0, To::Reject, To::Next);
}

/// Finds the IP header behind `link` bytes of link header and goes on at `v4` or `v6` with its offset in X. The outer VLAN tag is
/// not among the bytes any more (the kernel keeps it aside); a second one stands in front of the IP header, and here every kernel
/// still calls the frame a tagged one.
pub(super) fn network(asm: &mut Assembler, link: u32, v4: Label, v6: Label) {
    let tagged = asm.label();
    asm.op(code::LDX_IMM, link);
    ancillary(asm, libc::SKF_AD_PROTOCOL);
    asm.branch(code::JEQ, ETH_IPV4, To::Place(v4), To::Next);
    asm.branch(code::JEQ, ETH_IPV6, To::Place(v6), To::Next);
    asm.branch(code::JEQ, ETH_VLAN, To::Place(tagged), To::Next);
    asm.branch(code::JEQ, ETH_QINQ, To::Place(tagged), To::Reject);
    asm.bind(tagged);
    asm.op(code::LDX_IMM, link + 4);
    asm.op(code::LD_ABS_H, link + 2);
    asm.branch(code::JEQ, ETH_IPV4, To::Place(v4), To::Next);
    asm.branch(code::JEQ, ETH_IPV6, To::Place(v6), To::Reject);
}

/// From an IPv4 header at X to its transport.
pub(super) fn step_over_v4(asm: &mut Assembler) {
    asm.op(code::LD_B, 0);
    asm.op(code::AND_K, 0xf);
    asm.op(code::LSH_K, 2);
    asm.op(code::ADD_X, 0);
    asm.op(code::TAX, 0);
}

/// Moves X ahead by `bytes`; A is lost.
pub(super) fn step(asm: &mut Assembler, bytes: u32) {
    asm.op(code::TXA, 0);
    asm.op(code::ADD_K, bytes);
    asm.op(code::TAX, 0);
}

/// From an IPv6 header at X to one of the transports in `exits`. Other transports are dropped; fragments but the first go to
/// `later`, chains longer than [`EXTENSIONS`] and authentication headers to `unsure`.
pub(super) fn step_over_v6(asm: &mut Assembler, exits: &[(u32, Label)], unsure: To, later: To) {
    asm.op(code::LD_B, 6);
    asm.op(code::ST, SAVED);
    step(asm, 40);
    asm.op(code::LD_MEM, SAVED);
    for level in 0..=EXTENSIONS {
        for &(protocol, label) in exits {
            asm.branch(code::JEQ, protocol, To::Place(label), To::Next);
        }
        let (options, fragment, next) = (asm.label(), asm.label(), asm.label());
        let last = level == EXTENSIONS;
        for header in [0, 43, 60] {
            asm.branch(code::JEQ, header, if last { unsure } else { To::Place(options) }, To::Next);
        }
        asm.branch(code::JEQ, 51, unsure, To::Next);
        asm.branch(code::JEQ, 44, if last { unsure } else { To::Place(fragment) }, To::Reject);
        if last {
            break;
        }
        asm.bind(options);
        asm.op(code::LD_B, 0);
        asm.op(code::ST, SAVED);
        asm.op(code::LD_B, 1);
        asm.op(code::ADD_K, 1);
        asm.op(code::LSH_K, 3);
        asm.op(code::ADD_X, 0);
        asm.op(code::TAX, 0);
        asm.op(code::LD_MEM, SAVED);
        asm.goto(To::Place(next));
        asm.bind(fragment);
        asm.op(code::LD_H, 2);
        asm.branch(code::JSET, 0xfff8, later, To::Next);
        asm.op(code::LD_B, 0);
        asm.op(code::ST, SAVED);
        step(asm, 8);
        asm.op(code::LD_MEM, SAVED);
        asm.bind(next);
    }
    asm.island();
}

/// Keeps where the IPv4 packet at X ends, which is one of TCP.
pub(super) fn keep_end_v4(asm: &mut Assembler) {
    asm.op(code::LD_H, 2);
    asm.op(code::ADD_X, 0);
    asm.op(code::ST, TCP_END);
}

/// Keeps where the IPv6 packet at X ends.
pub(super) fn keep_end_v6(asm: &mut Assembler) {
    asm.op(code::LD_H, 4);
    asm.op(code::ADD_X, 0);
    asm.op(code::ADD_K, 40);
    asm.op(code::ST, END);
}

/// X has come to a TCP header.
pub(super) fn ends_tcp(asm: &mut Assembler) {
    asm.op(code::LD_MEM, END);
    asm.op(code::ST, TCP_END);
}

/// Keeps the address at X + `offset` for [`ports`].
pub(super) fn keep_address(asm: &mut Assembler, offset: u32, words: u32) {
    for word in 0..words {
        asm.op(code::LD_W, offset + 4 * word);
        asm.op(code::ST, ADDRESS + word);
    }
}

/// Goes to `hit` when the address at X + `offset` lies in one of the ranges of its family, else falls through.
pub(super) fn in_ranges(asm: &mut Assembler, ranges: &[Range], v4: bool, offset: u32, hit: To) {
    for range in ranges.iter().filter(|range| range.is_v4() == v4) {
        let base = words(&range.base().to_ip());
        let miss = asm.label();
        let bits = u32::from(range.prefix());
        let used = bits.div_ceil(32);
        if used == 0 {
            asm.goto(hit);
            return;
        }
        for word in 0..used {
            asm.op(code::LD_W, offset + 4 * word);
            let here = (bits - 32 * word).min(32);
            if here < 32 {
                asm.op(code::AND_K, u32::MAX << (32 - here));
            }
            let matched = if word + 1 == used { hit } else { To::Next };
            asm.branch(code::JEQ, base[word as usize], matched, To::Place(miss));
        }
        asm.bind(miss);
    }
}

/// Which packets to one port are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Port {
    /// The port.
    pub(super) port: u16,
    /// Any address, except `except`; else only `only`.
    pub(super) any: bool,
    /// These addresses.
    pub(super) only: Vec<IpAddr>,
    /// Not these, when any.
    pub(super) except: Vec<IpAddr>,
}

/// With a port in A and an address kept: accepts what is meant, sends the rest to `miss`. A search tree, because a filter that runs for every
/// frame of the host should not try 256 ports one after the other. `ports` are sorted. Without `exact` addresses are not
/// compared (the reader of the socket does so again anyway).
pub(super) fn ports(asm: &mut Assembler, ports: &[Port], v4: bool, exact: bool, miss: To) {
    let middle = ports.len() / 2;
    match ports {
        [] => asm.goto(miss),
        [port] => leaf(asm, port, v4, exact, miss),
        _ => {
            let right = asm.label();
            asm.branch(code::JGE, u32::from(ports[middle].port), To::Place(right), To::Next);
            self::ports(asm, &ports[..middle], v4, exact, miss);
            asm.bind(right);
            self::ports(asm, &ports[middle..], v4, exact, miss);
        }
    }
    asm.island();
}

fn leaf(asm: &mut Assembler, port: &Port, v4: bool, exact: bool, miss: To) {
    let family = |ips: &[IpAddr]| ips.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect::<Vec<_>>();
    let (only, except) = (family(&port.only), family(&port.except));
    let meant = u32::from(port.port);
    if !exact || (port.any && except.is_empty()) {
        let reachable = port.any || !only.is_empty();
        asm.branch(code::JEQ, meant, if reachable { To::Accept } else { miss }, miss);
        return;
    }
    asm.branch(code::JEQ, meant, To::Next, miss);
    for ip in &only {
        address_is(asm, ip, To::Accept);
    }
    if port.any {
        for ip in &except {
            address_is(asm, ip, miss);
        }
    }
    asm.goto(if port.any { To::Accept } else { miss });
}

/// Goes to `hit` when the kept address is this one, else falls through. Last word first: addresses differ there.
fn address_is(asm: &mut Assembler, ip: &IpAddr, hit: To) {
    let miss = asm.label();
    let words = words(ip);
    for (word, &value) in words.iter().enumerate().rev() {
        asm.op(code::LD_MEM, ADDRESS + word as u32);
        asm.branch(code::JEQ, value, if word == 0 { hit } else { To::Next }, To::Place(miss));
    }
    asm.bind(miss);
}

fn words(ip: &IpAddr) -> Vec<u32> {
    let octets = match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    octets.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word)).collect()
}
