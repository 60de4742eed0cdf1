//! From a link header to the IP header behind it, for the engines whose frames begin with one. Pure.

use libpcap::link;

use crate::vlan::is_tag;

/// What frames begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// The IP header.
    Network,
    /// Ethernet, with its VLAN tags.
    Ethernet,
    /// Linux cooked, with VLAN tags in the place of the protocol.
    Sll,
    /// Linux cooked of version 2.
    Sll2,
    /// BSD loopback: the address family in four bytes.
    Family,
}

impl Link {
    /// As libpcap numbers it; `None` for one that we do not know.
    pub(crate) const fn of(number: i32) -> Option<Self> {
        Some(match number {
            link::ETHERNET => Self::Ethernet,
            link::RAW => Self::Network,
            link::LINUX_SLL => Self::Sll,
            link::LINUX_SLL2 => Self::Sll2,
            link::NULL | link::LOOP => Self::Family,
            _ => return None,
        })
    }

    /// The packet from its IP header on. Whether it is one is for the parser to say.
    pub(crate) fn packet(self, frame: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Network => Some(frame),
            Self::Ethernet => behind_tags(frame, 14),
            Self::Sll => behind_tags(frame, 16),
            Self::Sll2 => frame.get(20..),
            Self::Family => frame.get(4..),
        }
    }
}

/// Behind a header of `header` bytes that ends with an EtherType, and up to two VLAN tags.
fn behind_tags(frame: &[u8], header: usize) -> Option<&[u8]> {
    let mut at = header;
    for _ in 0..2 {
        let kind = frame.get(at - 2..at)?.try_into().map(u16::from_be_bytes).ok()?;
        if !is_tag(kind) {
            break;
        }
        at += 4;
    }
    frame.get(at..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_stepped_over() {
        for (link, front) in [(Link::Ethernet, 12), (Link::Sll, 14)] {
            let frame = |tags: &[[u8; 4]]| [&vec![1; front][..], &tags.concat(), &[8, 0, 0x45, 7]].concat();
            for tags in [&[][..], &[[0x81, 0, 0, 5]], &[[0x88, 0xa8, 0, 5], [0x81, 0, 0, 6]]] {
                assert_eq!(link.packet(&frame(tags)), Some(&[0x45, 7][..]));
            }
            assert_eq!(link.packet(&vec![1; front + 1]), None);
        }
    }

    #[test]
    fn other_headers_have_one_length() {
        for (number, len) in [(0, 4), (108, 4), (12, 0), (276, 20)] {
            let link = Link::of(number).unwrap();
            assert_eq!(link.packet(&[&vec![9; len][..], &[0x45, 7]].concat()), Some(&[0x45, 7][..]));
        }
        assert_eq!(Link::Sll2.packet(&[0; 19]), None);
        assert_eq!(Link::of(147), None);
    }
}
