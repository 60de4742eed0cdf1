//! A second VLAN tag. The kernel keeps the outer tag of a frame aside; a second one stands in front of the IP header, four bytes:
//! the tag and the EtherType of what follows. Pure.

/// The EtherTypes of tags (802.1Q, 802.1ad).
pub(crate) const fn is_tag(protocol: u16) -> bool {
    matches!(protocol as i32, libc::ETH_P_8021Q | libc::ETH_P_8021AD)
}

/// Whether a frame from a SOCK_DGRAM socket begins with a tag, and if so the EtherType behind it.
///
/// `protocol` is what the kernel calls the frame. Older kernels call it a tag; newer ones (seen: 6.18) tell the protocol behind the
/// tag and leave the tag in place, so it must be recognised. `tagged` says that an outer tag was kept aside, without which
/// there is no second; `len` is the frame's length with everything that is in front of IP.
pub(crate) fn behind_tag(protocol: u16, tagged: bool, len: u32, bytes: &[u8]) -> Option<u16> {
    if !tagged && !is_tag(protocol) {
        return None;
    }
    let inner = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    if is_tag(protocol) {
        return Some(inner);
    }
    let version = |at: usize| bytes.get(at).map(|byte| byte >> 4);
    let wanted = match i32::from(protocol) {
        libc::ETH_P_IP => Some(4),
        libc::ETH_P_IPV6 => Some(6),
        _ => return None,
    };
    // An untagged packet can look like that too, if its length or flow label happens to read like the EtherType. Then its
    // own length field fits the frame.
    let whole = version(0) == wanted && own_length(protocol, bytes) == Some(len);
    (inner == protocol && version(4) == wanted && !whole).then_some(inner)
}

/// The length that an IP header at the start gives itself.
fn own_length(protocol: u16, bytes: &[u8]) -> Option<u32> {
    let (at, more) = if i32::from(protocol) == libc::ETH_P_IP { (2, 0) } else { (4, 40) };
    Some(u32::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])) + more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::segment;

    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;

    fn tagged(tci: u16, packet: &[u8]) -> Vec<u8> {
        let inner = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
        [&tci.to_be_bytes()[..], &inner.to_be_bytes(), packet].concat()
    }

    fn look(protocol: u16, frame: &[u8]) -> Option<u16> {
        behind_tag(protocol, true, frame.len() as u32, frame)
    }

    #[test]
    fn a_second_tag_is_seen_whatever_the_kernel_calls_the_frame() {
        for (src, dst, inner) in [("10.0.0.1:1", "10.0.0.2:2", IPV4), ("[fd00::1]:1", "[fd00::2]:2", IPV6)] {
            for len in [0, 1, 2048 - 40, 2048 - 44, 30_000] {
                let packet = segment(src, dst, 0, &vec![7; len]);
                // Among them tags whose first byte reads like the first of an IP header.
                for tci in [0, 5, 0x4545, 0x6005, 0xffff] {
                    let frame = tagged(tci, &packet);
                    assert_eq!(look(0x8100, &frame), Some(inner));
                    if (frame.len(), tci, inner) != (2048, 0x4545, IPV4) {
                        assert_eq!(look(inner, &frame), Some(inner), "{len} {tci:#x}");
                    }
                }
                assert_eq!(look(inner, &packet), None, "{len}");
                assert_eq!(behind_tag(inner, false, packet.len() as u32, &packet), None);
            }
        }
        assert_eq!(look(0x8100, &[0, 5, 8]), None);
    }
}
