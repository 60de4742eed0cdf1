//! Address ranges: the replayed clients (`-c`), announced to intercept and walked by the shards.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Addr;

/// A CIDR block. The prefix length counts in the mapped 128-bit form, so IPv4 `/15` is held as 111.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    base: Addr,
    prefix: u8,
}

impl Range {
    /// A block from any address in it and a prefix length in the family's own terms (0–32 or 0–128);
    /// `None` when the length is too long for the family.
    pub fn new(addr: Addr, prefix: u8) -> Option<Self> {
        let prefix = match addr.is_v4() {
            true if prefix <= 32 => prefix + 96,
            false if prefix <= 128 => prefix,
            _ => return None,
        };
        let base = Addr((u128::from_be_bytes(addr.0) & mask(prefix)).to_be_bytes());
        Some(Self { base, prefix })
    }

    /// The first address.
    pub const fn base(&self) -> Addr {
        self.base
    }

    /// The prefix length in the family's own terms.
    pub const fn prefix(&self) -> u8 {
        if self.base.is_v4() { self.prefix.saturating_sub(96) } else { self.prefix }
    }

    /// Whether the block is of IPv4.
    pub const fn is_v4(&self) -> bool {
        self.base.is_v4()
    }

    /// How many addresses, at most 2^64 − 1 (larger blocks are cut to that).
    pub fn len(&self) -> u64 {
        let bits = 128 - u32::from(self.prefix);
        if bits >= 64 { u64::MAX } else { 1 << bits }
    }

    /// Never: a block holds at least one address. (Beside `len` by convention.)
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The address at a position counted from the first; positions beyond the block wrap around.
    pub fn at(&self, position: u64) -> Addr {
        let host = u128::from(position) & !mask(self.prefix);
        Addr((u128::from_be_bytes(self.base.0) | host).to_be_bytes())
    }

    /// Whether the address lies in the block.
    pub fn contains(&self, addr: Addr) -> bool {
        u128::from_be_bytes(addr.0) & mask(self.prefix) == u128::from_be_bytes(self.base.0)
    }

    /// Whether the two blocks share an address.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// The `index`-th block of length `prefix` (the family's own terms) inside this one; `None` when there is none.
    pub fn part(&self, prefix: u8, index: u64) -> Option<Range> {
        let inner = Range::new(self.base, prefix)?;
        let depth = inner.prefix.checked_sub(self.prefix)?;
        if depth < 64 && index >= 1 << depth {
            return None;
        }
        let step = u128::from(index) << (128 - u32::from(inner.prefix));
        Some(Range {
            base: Addr((u128::from_be_bytes(self.base.0) | step).to_be_bytes()),
            prefix: inner.prefix,
        })
    }
}

const fn mask(prefix: u8) -> u128 {
    if prefix == 0 { 0 } else { u128::MAX << (128 - prefix as u32) }
}

/// Why a text is not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a range of addresses; write ADDRESS/LENGTH, for example 198.18.16.0/20, or a.b.c.x for a.b.c.0/24"
)]
pub struct BadRange(String);

impl FromStr for Range {
    type Err = BadRange;

    /// CIDR, a single address, or TCPCopy's `a.b.c.x`. An address that is not the block's first is refused.
    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        if let Some(three) = text.strip_suffix(".x") {
            let base: Ipv4Addr = format!("{three}.0").parse().map_err(|_| bad())?;
            return Range::new(Addr::v4(base.octets()), 24).ok_or_else(bad);
        }
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix.parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let ip: IpAddr = addr.parse().map_err(|_| bad())?;
        let prefix = prefix.unwrap_or(if ip.is_ipv4() { 32 } else { 128 });
        let range = Range::new(ip.into(), prefix).ok_or_else(bad)?;
        if range.base == Addr::from(ip) { Ok(range) } else { Err(bad()) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix())
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Range {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_range_splits_into_parts() {
        let all: Range = "198.18.0.0/15".parse().unwrap();
        assert_eq!(all.len(), 131_072);
        assert_eq!(all.part(20, 1).unwrap().to_string(), "198.18.16.0/20");
        assert_eq!(all.part(20, 31).unwrap().to_string(), "198.19.240.0/20");
        assert_eq!(all.part(20, 32), None);
        let v6: Range = "2001:2::/48".parse().unwrap();
        assert_eq!(v6.part(64, 5).unwrap().to_string(), "2001:2:0:5::/64");
        assert_eq!(v6.part(64, 5).unwrap().at(9).to_string(), "2001:2:0:5::9");
    }

    #[test]
    fn tcpcopys_form_is_understood_and_slips_are_named() {
        assert_eq!("10.1.2.x".parse::<Range>().unwrap().to_string(), "10.1.2.0/24");
        for wrong in ["10.1.2.3/8", "10.1.2.0/33", "x", "10.1.2/24", "", "::1/129", "10.1.x.x"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let (big, small): (Range, Range) =
            ("198.18.0.0/15".parse().unwrap(), "198.19.4.0/24".parse().unwrap());
        assert!(big.overlaps(&small) && small.overlaps(&big));
        assert!(!small.overlaps(&"198.19.5.0/24".parse().unwrap()));
        assert!(!big.overlaps(&"2001:2::/48".parse().unwrap()));
    }
}
