//! `flow::Returned` as few bytes: an IPv4 answer with timestamps takes 48 instead of 128. Little-endian.
//!
//! ```text
//! u16 shape | u8 kind | u8 bits | u64 age_ns | client addr, port | target addr, port | u32 seq
//! TCP:  u32 ack | u16 flags | u16 window [| u32 payload_len][| u16 segments][| u8 options, u16 mss, u8 window_scale]
//!       [| u32 ts_val, u32 ts_ecr][| u16 urgent][| sack blocks, 8 bytes each]
//! ICMP, also about a datagram: u8 type | u8 code | u32 mtu
//! UDP:  u32 payload_len | u16 segments
//! ```
//! What is in brackets is there when its bit of `shape` is set. Addresses take 4 bytes when both are IPv4, else 16.
//! The position is not in the record: it follows from the batch. `reserved` fields are not carried.

use flow::record::kind;
use flow::record::{SackBlock, opt};
use flow::{Addr, Endpoint, Returned, TcpFields};

use crate::wire::{Reader, Writer};

/// The longest encoding of a record, bytes: a TCP header over IPv6 with everything present.
pub const MAX_RECORD: usize = 4 + 8 + 36 + 4 + 8 + 4 + 2 + 4 + 8 + 2 + 32;
/// The shortest, bytes: an ICMP error or a datagram over IPv4.
pub const MIN_RECORD: usize = 4 + 8 + 12 + 4 + 6;

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// They end before the record does.
    #[error("a record is cut")]
    Cut,
    /// Neither TCP, UDP nor ICMP.
    #[error("a record is of unknown kind")]
    Kind,
    /// Bits of the shape that have no meaning, or five and more SACK blocks.
    #[error("a record has an unknown shape")]
    Shape,
}

/// Writes the record to the front of `out`, which must have room for [`MAX_RECORD`] bytes. Returns its length.
pub fn encode(record: &Returned, out: &mut [u8]) -> usize {
    let tcp = &record.tcp;
    let sack = &record.sack[..usize::from(record.sack_count).min(record.sack.len())];
    let mut shape = 0;
    let mut with = |bit: u16, present: bool| {
        shape |= if present { bit } else { 0 };
        present
    };
    let addrs = record.client.addr.as_v4().zip(record.target.addr.as_v4());
    with(shape::V4, addrs.is_some());
    let record_kind = match record.kind {
        kind @ (kind::ICMP | kind::UDP | kind::UDP_ICMP) => kind,
        _ => kind::TCP,
    };
    let is_tcp = record_kind == kind::TCP;
    let payload = with(shape::PAYLOAD, is_tcp && record.payload_len != 0);
    let segments = with(shape::SEGMENTS, is_tcp && record.segments != 1);
    let options = with(shape::OPTIONS, is_tcp && (tcp.options & !opt::TIMESTAMPS != 0));
    let stamps = with(shape::TIMESTAMPS, is_tcp && tcp.has_option(opt::TIMESTAMPS));
    let urgent = with(shape::URGENT, is_tcp && tcp.urgent != 0);
    if is_tcp {
        shape |= (sack.len() as u16) << shape::SACK_SHIFT;
    }

    let mut w = Writer::new(out);
    w.u16(shape);
    w.u8(record_kind);
    w.u8(record.bits);
    w.u64(record.age_ns);
    for (endpoint, v4) in [(&record.client, addrs.map(|a| a.0)), (&record.target, addrs.map(|a| a.1))] {
        match v4 {
            Some(octets) => w.bytes(&octets),
            None => w.bytes(&endpoint.addr.0),
        }
        w.u16(endpoint.port);
    }
    w.u32(tcp.seq.0);
    if record_kind == kind::UDP {
        w.u32(record.payload_len);
        w.u16(record.segments);
        return w.len();
    }
    if !is_tcp {
        w.u8(record.icmp_type);
        w.u8(record.icmp_code);
        w.u32(record.mtu);
        return w.len();
    }
    w.u32(tcp.ack.0);
    w.u16(tcp.flags);
    w.u16(tcp.window);
    if payload {
        w.u32(record.payload_len);
    }
    if segments {
        w.u16(record.segments);
    }
    if options {
        w.u8(tcp.options);
        w.u16(tcp.mss);
        w.u8(tcp.window_scale);
    }
    if stamps {
        w.u32(tcp.ts_val);
        w.u32(tcp.ts_ecr);
    }
    if urgent {
        w.u16(tcp.urgent);
    }
    for block in sack {
        w.u32(block.left.0);
        w.u32(block.right.0);
    }
    w.len()
}

/// Reads one record from the front of `bytes`. Returns it, with the given position, and the bytes it took.
pub fn decode(bytes: &[u8], position: u64) -> Result<(Returned, usize), BadRecord> {
    let mut r = Reader(bytes);
    let shape = r.u16().ok_or(BadRecord::Cut)?;
    let record_kind = r.u8().ok_or(BadRecord::Cut)?;
    let sack_count = shape >> shape::SACK_SHIFT & 0x7;
    if shape & !shape::KNOWN != 0 || sack_count > 4 {
        return Err(BadRecord::Shape);
    }
    let mut record = match record_kind {
        kind::TCP => read_tcp(&mut r, shape, sack_count as u8).ok_or(BadRecord::Cut)?,
        kind::ICMP | kind::UDP_ICMP if shape & !shape::V4 == 0 => {
            Returned { kind: record_kind, ..read_icmp(&mut r, shape).ok_or(BadRecord::Cut)? }
        }
        kind::UDP if shape & !shape::V4 == 0 => read_udp(&mut r, shape).ok_or(BadRecord::Cut)?,
        kind::ICMP | kind::UDP | kind::UDP_ICMP => return Err(BadRecord::Shape),
        _ => return Err(BadRecord::Kind),
    };
    record.position = position;
    Ok((record, bytes.len() - r.0.len()))
}

fn read_head(r: &mut Reader<'_>, shape: u16) -> Option<Returned> {
    let mut record = Returned { bits: r.u8()?, age_ns: r.u64()?, ..Returned::default() };
    for endpoint in [&mut record.client, &mut record.target] {
        let addr = if shape & shape::V4 != 0 { Addr::v4(r.array()?) } else { Addr(r.array()?) };
        *endpoint = Endpoint::new(addr, r.u16()?);
    }
    record.tcp.seq = r.seq()?;
    Some(record)
}

fn read_tcp(r: &mut Reader<'_>, shape: u16, sack_count: u8) -> Option<Returned> {
    let mut record = read_head(r, shape)?;
    let has = |bit: u16| shape & bit != 0;
    let mut tcp = TcpFields {
        seq: record.tcp.seq,
        ack: r.seq()?,
        flags: r.u16()?,
        window: r.u16()?,
        ..TcpFields::default()
    };
    if has(shape::PAYLOAD) {
        record.payload_len = r.u32()?;
    }
    if has(shape::SEGMENTS) {
        record.segments = r.u16()?;
    }
    if has(shape::OPTIONS) {
        tcp.options = r.u8()?;
        tcp.mss = r.u16()?;
        tcp.window_scale = r.u8()?;
    }
    // Presence and values of timestamps always travel together.
    tcp.options &= !opt::TIMESTAMPS;
    if has(shape::TIMESTAMPS) {
        tcp.options |= opt::TIMESTAMPS;
        tcp.ts_val = r.u32()?;
        tcp.ts_ecr = r.u32()?;
    }
    if has(shape::URGENT) {
        tcp.urgent = r.u16()?;
    }
    for block in &mut record.sack[..usize::from(sack_count)] {
        *block = SackBlock { left: r.seq()?, right: r.seq()? };
    }
    record.sack_count = sack_count;
    record.tcp = tcp;
    Some(record)
}

fn read_icmp(r: &mut Reader<'_>, shape: u16) -> Option<Returned> {
    let mut record = read_head(r, shape)?;
    record.kind = kind::ICMP;
    record.icmp_type = r.u8()?;
    record.icmp_code = r.u8()?;
    record.mtu = r.u32()?;
    Some(record)
}

fn read_udp(r: &mut Reader<'_>, shape: u16) -> Option<Returned> {
    let mut record = read_head(r, shape)?;
    record.kind = kind::UDP;
    record.payload_len = r.u32()?;
    record.segments = r.u16()?;
    Some(record)
}

/// Bits of the first two bytes.
mod shape {
    pub(super) const V4: u16 = 0x0001;
    pub(super) const PAYLOAD: u16 = 0x0002;
    pub(super) const SEGMENTS: u16 = 0x0004;
    pub(super) const OPTIONS: u16 = 0x0008;
    pub(super) const TIMESTAMPS: u16 = 0x0010;
    pub(super) const URGENT: u16 = 0x0020;
    pub(super) const SACK_SHIFT: u16 = 6;
    pub(super) const KNOWN: u16 = 0x01ff;
}

#[cfg(test)]
mod tests;
