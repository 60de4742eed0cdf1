//! The headers of a datagram to be sent: whole where the path takes it, else cut into IP fragments. Called by the injector for
//! every datagram.
//!
//! A raw socket that is given the IP header refuses what is longer than the device takes, so cutting is done here: the identical
//! identification in every part (IPv4, RFC 791), a fragment header (IPv6, RFC 8200, section 4.5). The checksum covers all of it
//! and stands in the first part. A sum of 0 is written as all ones, in IPv4 (where 0 means none) and in IPv6 (where
//! 0 is not allowed).

use crate::datagram::HEADER;
use crate::{Endpoint, checksum, ip};

/// Room that [`Piece::emit`] asks for; the same as a segment's, so that one array serves both.
pub use crate::emit::MAX_HEADERS;

const IPV4: usize = 20;
const IPV6: usize = 40;
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;
const HOPS: u8 = 64;
const MORE_FRAGMENTS: u16 = 0x2000;
/// The narrowest path that is cut for: below this IPv4 need not carry anything (RFC 791), and a piece would be all header.
const NARROWEST: usize = 68;

/// The packets of one datagram, in order; at least one.
#[derive(Clone, Debug)]
pub struct Pieces<'p> {
    src: Endpoint,
    dst: Endpoint,
    udp: [u8; HEADER],
    id: u32,
    /// Transport bytes of one fragment at most, a multiple of eight; none when the whole fits.
    unit: Option<usize>,
    rest: &'p [u8],
    /// Transport bytes before `rest`.
    offset: usize,
    done: bool,
}

/// One packet of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'p> {
    src: Endpoint,
    dst: Endpoint,
    udp: Option<[u8; HEADER]>,
    fragment: Option<ip::Fragment>,
    id: u32,
    /// The part of the payload that it carries.
    pub payload: &'p [u8],
}

impl<'p> Pieces<'p> {
    /// For a path of `mtu` bytes. `src` and `dst` are of one family; `id` tells this datagram's fragments from others, its low
    /// 16 bits in IPv4. At most [`crate::datagram::MAX_PAYLOAD`] bytes of payload.
    pub fn new(src: Endpoint, dst: Endpoint, payload: &'p [u8], mtu: u16, id: u32) -> Self {
        debug_assert_eq!(src.addr.is_v4(), dst.addr.is_v4(), "a datagram's endpoints are of one family");
        let v4 = src.addr.is_v4();
        let (room, extra) = (usize::from(mtu).max(NARROWEST), if v4 { 0 } else { FRAGMENT_HEADER });
        let header = if v4 { IPV4 } else { IPV6 };
        let transport = HEADER + payload.len();
        let unit = (header + transport > room).then(|| (room.saturating_sub(header + extra) & !7).max(8));
        Self::cut(src, dst, payload, unit, id)
    }

    /// All of it in one packet, however long: what was put together of fragments, or stood behind others in one piece. `id` is that
    /// of IPv4.
    pub fn whole(src: Endpoint, dst: Endpoint, payload: &'p [u8], id: u16) -> Piece<'p> {
        let mut one = Self::cut(src, dst, payload, None, id.into());
        one.next().expect("a datagram has one piece at least")
    }

    fn cut(src: Endpoint, dst: Endpoint, payload: &'p [u8], unit: Option<usize>, id: u32) -> Self {
        let transport = HEADER + payload.len();
        let mut udp = [0; HEADER];
        udp[0..2].copy_from_slice(&src.port.to_be_bytes());
        udp[2..4].copy_from_slice(&dst.port.to_be_bytes());
        udp[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
        let sum = checksum::pseudo_header(&src.addr, &dst.addr, ip::UDP, transport as u32);
        let sum = match sum.with(&udp).with(payload).finish() {
            0 => u16::MAX,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        Self { src, dst, udp, id, unit, rest: payload, offset: 0, done: false }
    }
}

impl<'p> Iterator for Pieces<'p> {
    type Item = Piece<'p>;

    fn next(&mut self) -> Option<Piece<'p>> {
        if self.done {
            return None;
        }
        let first = self.offset == 0;
        let head = if first { HEADER } else { 0 };
        let take = self.unit.map_or(self.rest.len(), |unit| (unit - head).min(self.rest.len()));
        let (payload, rest) = self.rest.split_at(take);
        self.done = rest.is_empty();
        let offset = self.offset as u16;
        let fragment = self.unit.map(|_| ip::Fragment { id: self.id, offset, more: !self.done });
        self.rest = rest;
        self.offset += head + take;
        let udp = first.then_some(self.udp);
        Some(Piece { src: self.src, dst: self.dst, udp, fragment, id: self.id, payload })
    }
}

impl Piece<'_> {
    /// Whether it is a part of something larger.
    pub const fn is_fragment(&self) -> bool {
        self.fragment.is_some()
    }

    /// Writes the headers into `buf` and returns their length.
    pub fn emit(&self, buf: &mut [u8; MAX_HEADERS]) -> usize {
        let udp = self.udp.as_ref().map_or(&[][..], |udp| &udp[..]);
        let behind = udp.len() + self.payload.len();
        let at = match (self.src.addr.as_v4(), self.dst.addr.as_v4()) {
            (Some(src), Some(dst)) => self.write_v4(buf, src, dst, behind),
            _ => self.write_v6(buf, behind),
        };
        buf[at..at + udp.len()].copy_from_slice(udp);
        at + udp.len()
    }

    fn write_v4(&self, buf: &mut [u8], src: [u8; 4], dst: [u8; 4], behind: usize) -> usize {
        let place = self
            .fragment
            .map_or(0, |fragment| fragment.offset >> 3 | if fragment.more { MORE_FRAGMENTS } else { 0 });
        let head = &mut buf[..IPV4];
        head[0..2].copy_from_slice(&[0x45, 0]);
        head[2..4].copy_from_slice(&((IPV4 + behind) as u16).to_be_bytes());
        // The kernel gives an identification of 0 another value, each fragment its own.
        head[4..6].copy_from_slice(&(self.id as u16).max(1).to_be_bytes());
        head[6..8].copy_from_slice(&place.to_be_bytes());
        head[8..12].copy_from_slice(&[HOPS, ip::UDP, 0, 0]);
        head[12..16].copy_from_slice(&src);
        head[16..20].copy_from_slice(&dst);
        let sum = checksum::Sum::new().with(head).finish();
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        IPV4
    }

    fn write_v6(&self, buf: &mut [u8], behind: usize) -> usize {
        let extra = if self.is_fragment() { FRAGMENT_HEADER } else { 0 };
        buf[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
        buf[4..6].copy_from_slice(&((extra + behind) as u16).to_be_bytes());
        buf[6] = if self.is_fragment() { FRAGMENT } else { ip::UDP };
        buf[7] = HOPS;
        buf[8..24].copy_from_slice(&self.src.addr.0);
        buf[24..40].copy_from_slice(&self.dst.addr.0);
        if let Some(fragment) = self.fragment {
            let place = fragment.offset | u16::from(fragment.more);
            buf[40..42].copy_from_slice(&[ip::UDP, 0]);
            buf[42..44].copy_from_slice(&place.to_be_bytes());
            buf[44..48].copy_from_slice(&fragment.id.to_be_bytes());
        }
        IPV6 + extra
    }
}
