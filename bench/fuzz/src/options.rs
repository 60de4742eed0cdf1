//! Target `options`: any bytes as the options of a TCP header, of which the capture may have cut the last.
//!
//! The walker is private to `flow`, so the bytes get a header in front, as in life.

use etherparse::{TcpOptionElement, TcpOptionsIterator};
use flow::record::{SackBlock, TcpFields, opt};
use flow::segment::parse;
use flow::{Segment, Seq};

use crate::rewrite;

/// Options of the longest header, bytes.
pub(crate) const LONGEST: usize = 40;

/// Any bytes as TCP options.
pub fn options(data: &[u8]) {
    let options = &data[..data.len().min(LONGEST)];
    let words = 5 + options.len().div_ceil(4);
    let mut packet = [0; 40 + LONGEST];
    packet[..40].copy_from_slice(&HEADERS);
    packet[32] = (words as u8) << 4;
    packet[40..40 + options.len()].copy_from_slice(options);
    let wire_len = 20 + 4 * words;
    packet[3] = wire_len as u8;
    let segment = parse(&packet[..40 + options.len()], wire_len as u32).expect("its header is in order");
    assert_eq!(segment.options_cut, !options.len().is_multiple_of(4));
    assert!(segment.payload.is_empty() && segment.wire_payload_len == 0);
    let mut tcp = TcpFields { flags: segment.tcp.flags, ..TcpFields::default() };
    let (sack, sack_count) = walk(options, &mut tcp);
    assert_eq!((segment.tcp, segment.sack_count, segment.sack), (tcp, sack_count, sack));
    agree(&segment, options);
    rewrite::again(&segment);
}

/// IPv4 and TCP, an acknowledgement; lengths are filled in.
const HEADERS: [u8; 40] = {
    let mut bytes = [0; 40];
    bytes[0] = 0x45;
    bytes[9] = flow::ip::TCP;
    bytes[12] = 10;
    bytes[16] = 10;
    bytes[33] = flow::record::flag::ACK as u8;
    bytes
};

/// The walker once more, as plain as the RFCs say it (9293 section 3.2, 7323, 2018): one index, one step an option.
fn walk(bytes: &[u8], tcp: &mut TcpFields) -> ([SackBlock; 4], u8) {
    let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
    let (mut sack, mut count) = ([SackBlock::default(); 4], 0);
    let mut at = 0;
    while at < bytes.len() && bytes[at] != 0 {
        if bytes[at] == 1 {
            at += 1;
            continue;
        }
        if at + 1 == bytes.len() || bytes[at + 1] < 2 || at + usize::from(bytes[at + 1]) > bytes.len() {
            break;
        }
        let len = usize::from(bytes[at + 1]);
        match (bytes[at], len) {
            (2, 4) => (tcp.options, tcp.mss) = (tcp.options | opt::MSS, u16_at(at + 2)),
            (3, 3) => {
                (tcp.options, tcp.window_scale) = (tcp.options | opt::WINDOW_SCALE, bytes[at + 2]);
            }
            (4, 2) => tcp.options |= opt::SACK_PERMITTED,
            (5, _) if len % 8 == 2 => {
                for block in (at + 2..at + len).step_by(8) {
                    if count < 4 {
                        sack[count] = SackBlock { left: Seq(u32_at(block)), right: Seq(u32_at(block + 4)) };
                        count += 1;
                    }
                }
            }
            (8, 10) => {
                tcp.options |= opt::TIMESTAMPS;
                (tcp.ts_val, tcp.ts_ecr) = (u32_at(at + 2), u32_at(at + 6));
            }
            _ => {}
        }
        at += len;
    }
    (sack, count as u8)
}

/// As long as etherparse understands the options (it stops at a kind it does not know and at a length that is not the
/// RFC's), it sees what we see.
pub(crate) fn agree(ours: &Segment<'_>, options: &[u8]) {
    let mut tcp = TcpFields::default();
    let (mut sack, mut count) = ([SackBlock::default(); 4], 0);
    for element in TcpOptionsIterator::from_slice(options) {
        match element {
            Err(_) => return,
            Ok(TcpOptionElement::Noop) => {}
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => {
                (tcp.options, tcp.mss) = (tcp.options | opt::MSS, mss);
            }
            Ok(TcpOptionElement::WindowScale(shift)) => {
                (tcp.options, tcp.window_scale) = (tcp.options | opt::WINDOW_SCALE, shift);
            }
            Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => tcp.options |= opt::SACK_PERMITTED,
            Ok(TcpOptionElement::Timestamp(val, ecr)) => {
                (tcp.options, tcp.ts_val, tcp.ts_ecr) = (tcp.options | opt::TIMESTAMPS, val, ecr);
            }
            Ok(TcpOptionElement::SelectiveAcknowledgement(first, more)) => {
                for (left, right) in [Some(first)].into_iter().chain(more).flatten() {
                    if count < sack.len() {
                        sack[count] = SackBlock { left: Seq(left), right: Seq(right) };
                        count += 1;
                    }
                }
            }
        }
    }
    let seen = |tcp: &TcpFields| (tcp.options, tcp.mss, tcp.window_scale, tcp.ts_val, tcp.ts_ecr);
    assert_eq!(seen(&ours.tcp), seen(&tcp));
    assert_eq!((usize::from(ours.sack_count), ours.sack), (count, sack));
}
