//! TCP options, both ways: read from a captured header whatever bytes stand there, written as Linux writes them.

use crate::record::{SackBlock, TcpFields, opt};
use crate::{Seq, record};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// Room that [`write`] may need: MSS 4, SACK permitted and timestamps 12, window scale 4.
pub(crate) const MAX_WRITTEN: usize = 20;

/// SACK blocks of one header, the first `count` of four.
pub(crate) type Sacks = ([SackBlock; 4], u8);

/// Reads options into `tcp`, and returns the SACK blocks. Stops at the end marker and at the first option whose length makes no
/// sense; an option of a known kind with another length than its RFC gives is skipped. At most 40 steps, for 40 bytes.
pub(crate) fn read(mut bytes: &[u8], tcp: &mut TcpFields) -> Sacks {
    let mut sacks = Sacks::default();
    // What nearly every segment carries (RFC 7323, appendix A).
    if let [NOP, NOP, TIMESTAMPS, 10, value @ ..] = bytes
        && let Some(value) = value.first_chunk::<8>()
        && bytes.len() == 12
    {
        timestamps(tcp, value);
        return sacks;
    }
    while let [kind, rest @ ..] = bytes {
        match *kind {
            END => break,
            NOP => bytes = rest,
            kind => {
                let Some(len) = rest.first().map(|&len| usize::from(len)).filter(|&len| len >= 2) else {
                    break;
                };
                let Some((option, behind)) = bytes.split_at_checked(len) else { break };
                known(kind, &option[2..], tcp, &mut sacks);
                bytes = behind;
            }
        }
    }
    sacks
}

fn known(kind: u8, value: &[u8], tcp: &mut TcpFields, (blocks, count): &mut Sacks) {
    match (kind, value) {
        (MSS, &[hi, lo]) => {
            tcp.options |= opt::MSS;
            tcp.mss = u16::from_be_bytes([hi, lo]);
        }
        (WINDOW_SCALE, &[shift]) => {
            tcp.options |= opt::WINDOW_SCALE;
            tcp.window_scale = shift;
        }
        (SACK_PERMITTED, []) => tcp.options |= opt::SACK_PERMITTED,
        (TIMESTAMPS, value) => {
            if let Ok(value) = value.try_into() {
                timestamps(tcp, value);
            }
        }
        (SACK, value) => {
            let (edges, rest) = value.as_chunks::<8>();
            if rest.is_empty() {
                for edge in edges.iter().take(blocks.len() - usize::from(*count)) {
                    let (left, right) = halves(edge);
                    blocks[usize::from(*count)] = SackBlock { left: Seq(left), right: Seq(right) };
                    *count += 1;
                }
            }
        }
        _ => {}
    }
}

fn timestamps(tcp: &mut TcpFields, value: &[u8; 8]) {
    tcp.options |= opt::TIMESTAMPS;
    (tcp.ts_val, tcp.ts_ecr) = halves(value);
}

fn halves(bytes: &[u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = *bytes;
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// Writes the options present in `tcp` and returns their length, a multiple of four. Order and padding are those of Linux.
pub(crate) fn write(buf: &mut [u8; MAX_WRITTEN], tcp: &record::TcpFields) -> usize {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        buf[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let has = |option| tcp.has_option(option);
    if has(opt::MSS) {
        let [hi, lo] = tcp.mss.to_be_bytes();
        put(&[MSS, 4, hi, lo]);
    }
    match (has(opt::SACK_PERMITTED), has(opt::TIMESTAMPS)) {
        (true, _) if has(opt::TIMESTAMPS) => put(&[SACK_PERMITTED, 2, TIMESTAMPS, 10]),
        (true, _) => put(&[NOP, NOP, SACK_PERMITTED, 2]),
        (false, true) => put(&[NOP, NOP, TIMESTAMPS, 10]),
        (false, false) => {}
    }
    if has(opt::TIMESTAMPS) {
        put(&tcp.ts_val.to_be_bytes());
        put(&tcp.ts_ecr.to_be_bytes());
    }
    if has(opt::WINDOW_SCALE) {
        put(&[NOP, WINDOW_SCALE, 3, tcp.window_scale]);
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_only(bytes: &[u8]) -> (TcpFields, Sacks) {
        let mut tcp = TcpFields::default();
        let sacks = read(bytes, &mut tcp);
        (tcp, sacks)
    }

    #[test]
    fn a_linux_syn() {
        let (tcp, _) = read_only(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7]);
        assert_eq!((tcp.mss, tcp.window_scale, tcp.ts_val, tcp.ts_ecr), (1460, 7, 1, 2));
        assert_eq!(tcp.options, opt::MSS | opt::SACK_PERMITTED | opt::TIMESTAMPS | opt::WINDOW_SCALE);
    }

    #[test]
    fn three_sack_blocks_beside_timestamps() {
        let mut bytes = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 26];
        for n in 1..=6u32 {
            bytes.extend(n.to_be_bytes());
        }
        let (tcp, (blocks, count)) = read_only(&bytes);
        assert!(tcp.has_option(opt::TIMESTAMPS));
        assert_eq!(count, 3);
        assert_eq!(blocks[2], SackBlock { left: Seq(5), right: Seq(6) });
    }

    #[test]
    fn lying_lengths_end_the_walk_and_keep_what_came_before() {
        for lie in [&[8, 0][..], &[8, 1], &[8, 11, 1], &[5], &[99, 200, 0]] {
            let mut bytes = vec![3, 3, 9];
            bytes.extend_from_slice(lie);
            let (tcp, _) = read_only(&bytes);
            assert_eq!((tcp.options, tcp.window_scale), (opt::WINDOW_SCALE, 9), "{lie:?}");
        }
    }

    #[test]
    fn a_known_kind_with_a_wrong_length_is_skipped() {
        let (tcp, (_, count)) = read_only(&[2, 3, 1, 5, 9, 1, 2, 3, 4, 5, 6, 7, 4, 2]);
        assert_eq!((tcp.options, count), (opt::SACK_PERMITTED, 0));
    }

    #[test]
    fn more_than_four_sack_blocks_are_cut_to_four() {
        let mut bytes = vec![];
        for _ in 0..3 {
            bytes.extend([5, 18]);
            bytes.extend([7; 16]);
        }
        assert_eq!(read_only(&bytes).1.1, 4);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            read_only(&bytes);
        }

        #[test]
        fn what_is_written_is_read(options in 0u8..16, mss: u16, window_scale: u8, ts_val: u32, ts_ecr: u32) {
            let mut tcp = TcpFields { options, ..TcpFields::default() };
            if options & opt::MSS != 0 { tcp.mss = mss; }
            if options & opt::WINDOW_SCALE != 0 { tcp.window_scale = window_scale; }
            if options & opt::TIMESTAMPS != 0 { (tcp.ts_val, tcp.ts_ecr) = (ts_val, ts_ecr); }
            let mut buf = [0; MAX_WRITTEN];
            let len = write(&mut buf, &tcp);
            prop_assert_eq!(len % 4, 0);
            prop_assert_eq!(read_only(&buf[..len]).0, tcp);
        }
    }
}
