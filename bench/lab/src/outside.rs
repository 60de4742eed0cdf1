//! A witness on the wire that none of our counters can talk into anything: packet sockets at the switch and at the hosts,
//! with filters in the kernel that let through only what must never be there.
//!
//! | where | what is astray |
//! |---|---|
//! | each host's port of the switch | an IPv4 packet whose source is not that host's, unless it is replayed: from an online host, or a router, to the target's service |
//! | the same | TCP over IPv6, which a lab that uses this witness does not have |
//! | client, online2, assistant2 | anything the target sends to them |
//!
//! Nothing is read in the good case, so it costs one short filter run a packet. Used by tests and by `bench/chaos`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::netlink;
use crate::network::{Host, Network};
use crate::sys::filtered_socket;

/// Packets that were where none may be.
pub struct Outside {
    posts: Vec<Post>,
    astray: u64,
    examples: Vec<String>,
}

/// One socket.
struct Post {
    place: String,
    fd: OwnedFd,
}

/// An instruction of classic BPF (linux/filter.h): code, jump if true, jump if false, operand.
pub(crate) type Instruction = (u16, u8, u8, u32);

/// Packets described in words; the rest are only counted.
const EXAMPLES: usize = 10;
/// Bytes of a packet that are looked at: Ethernet, IP and TCP headers.
pub(crate) const SNAP: u32 = 96;
/// The header that a packet socket with offloads puts before the frame.
pub(crate) const VNET: usize = 10;

impl Outside {
    /// Posts a witness at every host of a network whose only target is this one.
    pub fn new(network: &Network, target: SocketAddr) -> io::Result<Self> {
        Self::beside(network, target, &[])
    }

    /// The same where these hosts send on what is for the target.
    pub fn beside(network: &Network, target: SocketAddr, routers: &[&Host]) -> io::Result<Self> {
        let mut posts = Vec::new();
        for host in network.hosts() {
            let replays = [&network.online, &network.online2]
                .into_iter()
                .chain(routers.iter().copied())
                .any(|one| one.number == host.number);
            let program =
                foreign_sources(v4(host.v4())?, replays.then_some((v4(target.ip())?, target.port())));
            let device = format!("to-{}", host.ns.name());
            let fd = network.switch.enter(move || filtered_socket(netlink::index(&device)?, &program))?;
            posts.push(Post { place: format!("sent by {}", host.ns.name()), fd });
        }
        for host in [&network.client, &network.online2, &network.assistant2] {
            posts.push(answers(host, v4(target.ip())?)?);
        }
        Ok(Self { posts, astray: 0, examples: Vec::new() })
    }

    /// The same without what this host sends: it is a story's own attacker.
    pub fn but_for(mut self, host: &Host) -> Self {
        let place = format!("sent by {}", host.ns.name());
        self.posts.retain(|post| post.place != place);
        self
    }

    /// Reads what was seen since the last look; how many packets were astray so far.
    pub fn look(&mut self) -> io::Result<u64> {
        let mut frame = [0_u8; VNET + SNAP as usize];
        for post in &self.posts {
            loop {
                match recv(post.fd.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                    Ok(n) => {
                        self.astray += 1;
                        if self.examples.len() < EXAMPLES {
                            let packet = frame.get(VNET..n.min(frame.len())).unwrap_or_default();
                            self.examples.push(format!("{}: {}", post.place, describe(packet)));
                        }
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(self.astray)
    }

    /// The first that were astray.
    pub fn examples(&self) -> &[String] {
        &self.examples
    }
}

/// At a host: whatever the target addresses to it.
fn answers(host: &Host, target: Ipv4Addr) -> io::Result<Post> {
    let program = sent_to_us_by(target);
    let fd = host.ns.enter(move || filtered_socket(netlink::index("eth0")?, &program))?;
    Ok(Post { place: format!("received by {}", host.ns.name()), fd })
}

pub(crate) fn v4(ip: IpAddr) -> io::Result<Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Ok(v4),
        IpAddr::V6(_) => Err(io::Error::other("this witness watches a target of IPv4")),
    }
}

/// Absolute loads, comparisons and returns of classic BPF.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
const INDEX_IP_HEADER: u16 = 0xb1;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// The packet's type as the kernel sees it (SKF_AD_OFF + SKF_AD_PKTTYPE); 0 is a packet for this host.
const PACKET_TYPE: u32 = 0xffff_f004;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const TCP: u32 = 6;

/// Frames of which the source is not `own`, nor the destination `allowed`.
pub(crate) fn foreign_sources(own: Ipv4Addr, allowed: Option<(Ipv4Addr, u16)>) -> Vec<Instruction> {
    // Without an allowed destination no port is 65536.
    let (to, port) = allowed.map_or((own, 1 << 16), |(to, port)| (to, u32::from(port)));
    vec![
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, 0, 9, IPV4),
        (LOAD_WORD, 0, 0, 26),
        (EQUAL, 11, 0, own.to_bits()),
        (LOAD_WORD, 0, 0, 30),
        (EQUAL, 0, 8, to.to_bits()),
        (LOAD_BYTE, 0, 0, 23),
        (EQUAL, 0, 6, TCP),
        (INDEX_IP_HEADER, 0, 0, 14),
        (LOAD_HALF_INDEXED, 0, 0, 16),
        (EQUAL, 4, 3, port),
        (EQUAL, 0, 3, IPV6),
        (LOAD_BYTE, 0, 0, 20),
        (EQUAL, 0, 1, TCP),
        (RETURN, 0, 0, SNAP),
        (RETURN, 0, 0, 0),
    ]
}

/// Frames of IPv4 for this host, from `from`.
fn sent_to_us_by(from: Ipv4Addr) -> Vec<Instruction> {
    vec![
        (LOAD_WORD, 0, 0, PACKET_TYPE),
        (EQUAL, 0, 5, 0),
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, 0, 3, IPV4),
        (LOAD_WORD, 0, 0, 26),
        (EQUAL, 0, 1, from.to_bits()),
        (RETURN, 0, 0, SNAP),
        (RETURN, 0, 0, 0),
    ]
}

/// Addresses, ports and flags of a frame, as far as it has them.
fn describe(frame: &[u8]) -> String {
    let ip = frame.get(14..).unwrap_or_default();
    if frame.get(12..14) != Some(&[8, 0]) || ip.len() < 20 {
        return format!("{frame:02x?}");
    }
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let l4 = ip.get(usize::from(ip[0] & 15) * 4..).unwrap_or_default();
    let port = |at: usize| l4.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    format!(
        "protocol {} {}:{} -> {}:{} flags {:02x}",
        ip[9],
        address(12),
        port(0),
        address(16),
        port(2),
        l4.get(13).copied().unwrap_or(0)
    )
}
