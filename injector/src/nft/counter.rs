//! A named counter of nf_tables, asked of the kernel itself (linux/netfilter/nfnetlink.h, nf_tables.h): a look at it every ten
//! seconds starts no program.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlasIterator, parse_u64_be,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Family;
use crate::rtnl;

/// Messages: of nf_tables, in the upper byte; "get an object", and the answer.
const GET_OBJECT: u16 = 10 << 8 | 19;
const NEW_OBJECT: u16 = 10 << 8 | 18;
/// `struct nfgenmsg`: family, version, resource.
const GENERAL_LEN: usize = 4;
/// Attributes of an object, and its kind.
const TABLE: u16 = 1;
const NAME: u16 = 2;
const KIND: u16 = 3;
const DATA: u16 = 4;
const COUNTER: u32 = 1;
/// An attribute of a counter's data.
const PACKETS: u16 = 2;

/// Which counter.
struct Question {
    family: u8,
    attributes: [DefaultNla; 3],
}

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        GET_OBJECT
    }

    fn buffer_len(&self) -> usize {
        GENERAL_LEN + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (general, attributes) = buffer.split_at_mut(GENERAL_LEN);
        general.copy_from_slice(&[self.family, 0, 0, 0]);
        self.attributes.as_slice().emit(attributes);
    }
}

/// What it has counted.
struct Packets(u64);

impl NetlinkDeserializable for Packets {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let general = payload.get(GENERAL_LEN..).filter(|_| header.message_type == NEW_OBJECT);
        let data = find(general.unwrap_or_default(), DATA)?;
        Ok(Self(parse_u64_be(find(data, PACKETS)?)?))
    }
}

/// The value of the first attribute of this kind.
fn find(attributes: &[u8], kind: u16) -> Result<&[u8], DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            let value = NLA_HEADER_SIZE..usize::from(attribute.length());
            return Ok(attribute.into_inner().get(value).unwrap_or_default());
        }
    }
    Err(DecodeError::from(format!("no attribute {kind} in an answer about a counter")))
}

/// Packets that a named counter of a table has seen, in the network namespace of the calling thread; `None` where there is none,
/// or whoever asks may not know.
pub(super) fn packets(family: Family, table: &str, counter: &str) -> Option<u64> {
    let text = |kind, text: &str| DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat());
    let kind = DefaultNla::new(KIND, COUNTER.to_be_bytes().to_vec());
    let question =
        Question { family: family as u8, attributes: [text(TABLE, table), text(NAME, counter), kind] };
    let socket = rtnl::connected(NETLINK_NETFILTER).ok()?;
    let Packets(packets) = rtnl::ask(&socket, question, 0).ok()?.ok()??;
    Some(packets)
}
