//! Target `checksum`: any bytes in parts of any length, summed by us, by etherparse and by the book.
//!
//! One byte says how many parts (0 to 7), one byte each where they end; the rest is summed.

use etherparse::TcpHeaderSlice;
use etherparse::checksum::Sum16BitWords;
use flow::Addr;
use flow::checksum::{self, Sum};

use crate::data::Data;

/// Any bytes, summed.
pub fn checksum(data: &[u8]) {
    let mut data = Data::new(data);
    let Some(cuts) = data.u8() else { return };
    let mut cuts = data.up_to(usize::from(cuts % 8)).to_vec();
    let bytes = data.rest();
    cuts.sort_unstable();
    let mut parts = Vec::with_capacity(8);
    let (mut rest, mut taken) = (bytes, 0);
    for cut in cuts {
        let (part, behind) = rest.split_at((usize::from(cut) - taken).min(rest.len()));
        (rest, taken) = (behind, usize::from(cut));
        parts.push(part);
    }
    parts.push(rest);

    let whole = by_the_book(bytes);
    assert_eq!(
        Sum16BitWords::new().add_slice(bytes).ones_complement().to_be(),
        whole,
        "etherparse by the book"
    );
    assert_eq!(Sum::new().with(bytes).finish(), whole);
    assert_eq!(parts.iter().fold(Sum::new(), |sum, part| sum.with(part)).finish(), whole);
    assert_eq!(parts.iter().fold(Sum::new(), |sum, part| sum.join(Sum::new().with(part))).finish(), whole);
    tcp(bytes);
}

/// RFC 1071, section 1, word by word.
fn by_the_book(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The bytes as addresses, TCP header and payload.
fn tcp(bytes: &[u8]) {
    let Some((addresses, rest)) = bytes.split_first_chunk::<32>() else { return };
    let (src, dst) = addresses.split_at(16);
    let array = |bytes: &[u8]| -> [u8; 16] { bytes.try_into().expect("half of 32") };
    let Ok(header) = TcpHeaderSlice::from_slice(rest) else { return };
    let payload = &rest[header.slice().len()..];
    let mut unsummed = header.slice().to_vec();
    unsummed[16..18].fill(0);
    let (front, back) = payload.split_at(payload.len() / 3);

    let theirs = header.calc_checksum_ipv6_raw(array(src), array(dst), payload).expect("it is short enough");
    let (a, b) = (Addr::v6(array(src)), Addr::v6(array(dst)));
    if !(a.is_v4() && b.is_v4()) {
        assert_eq!(checksum::tcp(&a, &b, &unsummed, &[front, back]), theirs);
    }
    let quad = |bytes: &[u8]| -> [u8; 4] { bytes[..4].try_into().expect("four of 16") };
    let theirs = header.calc_checksum_ipv4_raw(quad(src), quad(dst), payload).expect("it is short enough");
    let (a, b) = (Addr::v4(quad(src)), Addr::v4(quad(dst)));
    assert_eq!(checksum::tcp(&a, &b, &unsummed, &[front, back]), theirs);
}
