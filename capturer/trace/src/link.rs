//! Link-layer headers: where the IP packet begins in a frame. Numbers of link types: tcpdump.org/linktypes.html.

/// Link types that are understood.
pub(crate) mod kind {
    pub(crate) const NULL: u16 = 0;
    pub(crate) const ETHERNET: u16 = 1;
    pub(crate) const PPP: u16 = 9;
    pub(crate) const RAW_BSD: u16 = 12;
    pub(crate) const RAW_OPENBSD: u16 = 14;
    pub(crate) const PPP_HDLC: u16 = 50;
    pub(crate) const RAW: u16 = 101;
    pub(crate) const LOOP: u16 = 108;
    pub(crate) const COOKED: u16 = 113;
    pub(crate) const IPV4: u16 = 228;
    pub(crate) const IPV6: u16 = 229;
    pub(crate) const COOKED_2: u16 = 276;
}

/// Why a frame gives no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Without {
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

/// Where the IP header begins.
pub(crate) fn ip_offset(link: u16, frame: &[u8]) -> Result<usize, Without> {
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
