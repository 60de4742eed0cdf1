//! Whether IPsec has a word about packets to a target: then only the kernel can send them as its owner wants them sent, and a
//! frame of ours would pass by in the clear.
//!
//! The kernel's policies come by XFRM netlink (linux/xfrm.h), for which there is no crate; three fields of each are read.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr};

/// Whether a policy for outgoing packets covers this address. No, where the kernel has none or does not tell: without
/// CAP_NET_ADMIN there is no guard either, and so no frame by itself.
pub(crate) fn covers(target: IpAddr) -> bool {
    ask(target).unwrap_or(false)
}

fn ask(target: IpAddr) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    let mut question = Vec::with_capacity(HEADER);
    question.extend_from_slice(&(HEADER as u32).to_ne_bytes());
    question.extend_from_slice(&XFRM_MSG_GETPOLICY.to_ne_bytes());
    question.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    question.extend_from_slice(&[0; 8]);
    socket.send_to(&question, &SocketAddr::new(0, 0), 0)?;
    let mut found = false;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, body, later)) = message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => return Ok(found),
                _ => found |= kind == XFRM_MSG_NEWPOLICY && is_about(body, target),
            }
            rest = later;
        }
        if answer.is_empty() {
            return Ok(found);
        }
    }
}

/// Type and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let later = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(HEADER..len)?, later))
}

/// Whether a `xfrm_userpolicy_info` is for outgoing packets to this address.
fn is_about(policy: &[u8], target: IpAddr) -> bool {
    let (Some(selector), Some(&direction)) = (policy.get(..SELECTOR), policy.get(DIRECTION)) else {
        return false;
    };
    let family = u16::from_ne_bytes([selector[FAMILY], selector[FAMILY + 1]]);
    let (wanted, address) = match target {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let prefix = usize::from(selector[PREFIX]).min(address.len() * 8);
    let same = (0..prefix).all(|bit| {
        let mask = 0x80 >> (bit % 8);
        selector[bit / 8] & mask == address[bit / 8] & mask
    });
    direction == XFRM_POLICY_OUT && i32::from(family) == wanted && same
}

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_POLICY_OUT: u8 = 1;
/// Of `xfrm_selector`, which comes first: its size, and where family and length of the destination's prefix stand.
const SELECTOR: usize = 56;
const FAMILY: usize = 40;
const PREFIX: usize = 42;
/// Of `xfrm_userpolicy_info`: behind the selector, two lifetimes (64 and 32 bytes), priority and index.
const DIRECTION: usize = SELECTOR + 64 + 32 + 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespace;

    #[test]
    fn a_policy_covers_what_it_selects() {
        in_namespace("a_policy_covers_what_it_selects", || {
            let add = "xfrm policy add dir out src 0.0.0.0/0 dst 10.9.0.0/17 tmpl proto esp mode transport";
            let added = std::process::Command::new("ip").args(add.split(' ')).output().unwrap();
            if !added.status.success() {
                return eprintln!("SKIPPED: no IPsec here: {}", String::from_utf8_lossy(&added.stderr));
            }
            assert!(covers([10, 9, 127, 1].into()));
            assert!(!covers([10, 9, 128, 1].into()));
            assert!(!covers(std::net::Ipv6Addr::LOCALHOST.into()));
        });
    }
}
