//! The endpoints that a probe of a target's way speaks from. Sessions leave them alone, so that an answer to one of them is an
//! answer to a probe, whoever looks at it.

use crate::{Addr, Endpoint, Range};

/// Ports of the one address that is spoken from: of a range of a single address a sixty-third.
pub const PORTS: std::ops::Range<u16> = 1_024..2_048;

/// The address of a client range that probes speak from. Not the first where there is a choice: networks drop what looks like
/// the address of a network.
pub fn address(range: &Range) -> Addr {
    range.at(1 % range.len())
}

/// Whether no session may have this endpoint of a client range.
pub fn is_reserved(range: &Range, endpoint: &Endpoint) -> bool {
    PORTS.contains(&endpoint.port) && endpoint.addr == address(range)
}

/// The address that probes speak from where clients keep their own: of the ranges for documentation (RFC 5737, RFC 3849), which
/// nobody has, and to which no route leads that is not one for everybody. So answers to it go where answers to real clients go,
/// unlike those to the benchmarking ranges, which a target may have a route for from another day.
pub fn stranger(v4: bool, instance: u64) -> Addr {
    let [a, b, c, d, e, f, g, h] = instance.to_be_bytes();
    if v4 {
        return Addr::v4([203, 0, 113, 1 + (instance % 254) as u8]);
    }
    Addr::v6([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_of_a_range_has_reserved_ports() {
        for (range, address) in [("198.18.16.0/20", "198.18.16.1"), ("10.9.9.9/32", "10.9.9.9")] {
            let range: Range = range.parse().unwrap();
            let addr = self::address(&range);
            assert_eq!(addr.to_string(), address);
            assert!(range.contains(addr) && is_reserved(&range, &Endpoint::new(addr, 1_024)));
            assert!(!is_reserved(&range, &Endpoint::new(addr, 2_048)));
        }
        let range: Range = "198.18.16.0/20".parse().unwrap();
        assert!(!is_reserved(&range, &Endpoint::new(range.base(), 1_024)));
    }

    #[test]
    fn nobody_has_the_address_of_a_stranger() {
        let documentation: [Range; 2] = ["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        for instance in [0, 253, 254, u64::MAX] {
            let (v4, v6) = (stranger(true, instance), stranger(false, instance));
            assert!(documentation[0].contains(v4) && documentation[1].contains(v6));
            assert!(!["203.0.113.0", "203.0.113.255"].contains(&v4.to_string().as_str()));
        }
    }
}
