//! Link-layer headers: where the IP packet begins in a frame, of a file or of a live capture. Pure. Numbers of link types: tcpdump.org/linktypes.html.

/// Link types that are understood. libpcap's own numbers (`pcap/dlt.h`) of these are the same, but for raw IP, of which it has more.
pub mod kind {
    /// BSD loopback: the address family in four bytes of whatever order.
    pub const NULL: u16 = 0;
    /// Ethernet.
    pub const ETHERNET: u16 = 1;
    /// Point to point.
    pub const PPP: u16 = 9;
    /// Raw IP: libpcap's number on most systems.
    pub const RAW_BSD: u16 = 12;
    /// Raw IP: its number on OpenBSD.
    pub const RAW_OPENBSD: u16 = 14;
    /// Point to point with HDLC framing.
    pub const PPP_HDLC: u16 = 50;
    /// Raw IP: its number in files.
    pub const RAW: u16 = 101;
    /// OpenBSD loopback.
    pub const LOOP: u16 = 108;
    /// Linux cooked, 16 bytes.
    pub const COOKED: u16 = 113;
    /// Raw IPv4.
    pub const IPV4: u16 = 228;
    /// Raw IPv6.
    pub const IPV6: u16 = 229;
    /// Linux cooked of version 2, 20 bytes.
    pub const COOKED_2: u16 = 276;
}

/// Why a frame gives no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// It carries something else.
    NotIp,
    /// More than two VLAN tags.
    DeepTags,
    /// It ends within the link-layer header.
    Short,
    /// The link type is not understood.
    Unknown,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and what was used before the latter.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const MOST_TAGS: usize = 2;

/// Whether packets can be found in frames of this type.
pub fn is_known(link: u16) -> bool {
    ip_offset(link, &[]) != Err(Without::Unknown)
}

/// Where the IP header begins, by up to two VLAN tags.
///
/// # Errors
/// The frame carries none that is understood.
pub fn ip_offset(link: u16, frame: &[u8]) -> Result<usize, Without> {
    let at = match link {
        kind::ETHERNET => by_ethertype(frame, 12, 14)?,
        kind::COOKED => by_ethertype(frame, 14, 16)?,
        kind::COOKED_2 => by_ethertype(frame, 0, 20)?,
        kind::RAW | kind::RAW_BSD | kind::RAW_OPENBSD | kind::IPV4 | kind::IPV6 => 0,
        kind::NULL | kind::LOOP => by_family(frame)?,
        kind::PPP | kind::PPP_HDLC => by_ppp(frame)?,
        _ => return Err(Without::Unknown),
    };
    match frame.get(at).map(|first| first >> 4) {
        Some(4 | 6) => Ok(at),
        Some(_) => Err(Without::NotIp),
        None => Err(Without::Short),
    }
}

fn by_ethertype(frame: &[u8], type_at: usize, mut body: usize) -> Result<usize, Without> {
    let mut kind = be16(frame, type_at)?;
    for _ in 0..MOST_TAGS {
        if !TAGS.contains(&kind) {
            break;
        }
        kind = be16(frame, body + 2)?;
        body += 4;
    }
    match kind {
        IPV4 | IPV6 => Ok(body),
        tag if TAGS.contains(&tag) => Err(Without::DeepTags),
        _ => Err(Without::NotIp),
    }
}

/// The address family, in the byte order of whoever captured, whichever that was.
fn by_family(frame: &[u8]) -> Result<usize, Without> {
    let family = *frame.first_chunk::<4>().ok_or(Without::Short)?;
    let family = u32::from_le_bytes(family).min(u32::from_be_bytes(family));
    match family {
        // AF_INET; AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, Darwin.
        2 | 10 | 24 | 28 | 30 => Ok(4),
        _ => Err(Without::NotIp),
    }
}

fn by_ppp(frame: &[u8]) -> Result<usize, Without> {
    let at = if frame.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
    match be16(frame, at)? {
        0x0021 | 0x0057 => Ok(at + 2),
        _ => Err(Without::NotIp),
    }
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, Without> {
    let pair = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Without::Short)?;
    Ok(u16::from_be_bytes(*pair))
}
