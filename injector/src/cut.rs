//! Cuts one record into the segments that fit: at most the record's segment size, at most the route's MTU. Pure.
//!
//! The rules are those of a card that segments for the kernel: the sequence number advances; FIN and PSH stand on the
//! last piece only; SYN (which takes a number of its own), its options and CWR stand on the first only; the urgent
//! pointer keeps pointing to the same byte.

use flow::record::{flag, opt};
use flow::{Inject, TcpFields};

/// The segments of one record, in order; at least one.
#[derive(Clone, Debug)]
pub struct Pieces<'p> {
    tcp: TcpFields,
    rest: &'p [u8],
    /// Payload bytes of one piece at most.
    limit: usize,
    first: bool,
    done: bool,
}

/// Options that belong to a SYN alone.
const SYN_OPTIONS: u8 = opt::MSS | opt::WINDOW_SCALE | opt::SACK_PERMITTED;

/// A piece is never cut below this: an MTU smaller than the headers would otherwise make a packet of every byte.
const SMALLEST_PIECE: usize = 8;

impl<'p> Pieces<'p> {
    /// Cuts `payload` for a route of `mtu` bytes.
    pub fn new(head: &Inject, payload: &'p [u8], mtu: u16, v4: bool) -> Self {
        let limit = segment_len(head, mtu, v4);
        Self { tcp: head.tcp, rest: payload, limit, first: true, done: false }
    }

    /// Cuts `payload` for a device that cuts further itself: into as many whole segments a piece as it takes.
    pub fn super_frames(head: &Inject, payload: &'p [u8], mtu: u16, v4: bool, most: SuperFrames) -> Self {
        let segment = segment_len(head, mtu, v4);
        let room = usize::from(most.bytes).saturating_sub(header_len(&head.tcp, v4));
        // A device repeats everything but FIN, PSH and CWR on each segment, and none of these only on the first.
        let plain = head.tcp.flags & !(flag::ACK | flag::PSH | flag::FIN) == 0;
        let segments = if plain { (room / segment).min(usize::from(most.segments)).max(1) } else { 1 };
        Self { tcp: head.tcp, rest: payload, limit: segments * segment, first: true, done: false }
    }
}

/// The largest that a device takes and cuts by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuperFrames {
    /// Bytes from the IP header on; 0 where it takes none.
    pub bytes: u16,
    /// Segments.
    pub segments: u16,
}

/// Payload bytes of one segment at most.
pub fn segment_len(head: &Inject, mtu: u16, v4: bool) -> usize {
    let room = usize::from(mtu).saturating_sub(header_len(&head.tcp, v4)).max(SMALLEST_PIECE);
    usize::from(head.mss).max(1).min(room)
}

impl<'p> Iterator for Pieces<'p> {
    type Item = (TcpFields, &'p [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let (now, later) = self.rest.split_at(self.rest.len().min(self.limit));
        self.rest = later;
        self.done = later.is_empty();
        let mut tcp = self.tcp;
        if !self.done {
            tcp.flags &= !(flag::FIN | flag::PSH);
        }
        if !self.first {
            tcp.flags &= !(flag::SYN | flag::CWR);
            tcp.options &= !SYN_OPTIONS;
        }
        let taken = now.len() as u32 + u32::from(tcp.has(flag::SYN));
        self.tcp.seq += taken;
        if self.tcp.has(flag::URG) {
            // Beyond its byte the pointer means nothing any more.
            match u32::from(self.tcp.urgent).checked_sub(taken) {
                Some(further @ 1..) => self.tcp.urgent = further as u16,
                _ => {
                    self.tcp.urgent = 0;
                    self.tcp.flags &= !flag::URG;
                }
            }
        }
        self.first = false;
        Some((tcp, now))
    }
}

/// Bytes of the IP and TCP headers, options padded one by one: never less than what is written.
fn header_len(tcp: &TcpFields, v4: bool) -> usize {
    let option = |bit, bytes| if tcp.has_option(bit) { bytes } else { 0 };
    let ip = if v4 { 20 } else { 40 };
    ip + 20
        + option(opt::MSS, 4)
        + option(opt::WINDOW_SCALE, 4)
        + option(opt::SACK_PERMITTED, 4)
        + option(opt::TIMESTAMPS, 12)
}

#[cfg(test)]
mod tests {
    use flow::Seq;
    use proptest::prelude::*;

    use super::*;

    fn head(flags: u16, mss: u16) -> Inject {
        let tcp = TcpFields { seq: Seq(u32::MAX - 99), flags, ..TcpFields::default() };
        Inject { tcp, mss, ..Inject::default() }
    }

    fn cut(head: &Inject, payload: &[u8], mtu: u16) -> Vec<(TcpFields, Vec<u8>)> {
        Pieces::new(head, payload, mtu, true).map(|(t, p)| (t, p.to_vec())).collect()
    }

    #[test]
    fn a_device_that_cuts_gets_whole_segments_and_no_more_than_it_takes() {
        let payload = [7; 64_000];
        let lens = |flags, bytes, segments| -> Vec<usize> {
            let most = SuperFrames { bytes, segments };
            let head = head(flags, 1_448);
            Pieces::super_frames(&head, &payload, 1_500, true, most).map(|(_, bytes)| bytes.len()).collect()
        };
        assert_eq!(lens(flag::ACK | flag::PSH, 65_535, u16::MAX), [64_000]);
        assert_eq!(lens(flag::ACK, 30_000, u16::MAX), [20 * 1_448, 20 * 1_448, 64_000 - 40 * 1_448]);
        assert_eq!(lens(flag::ACK, 65_535, 40), [40 * 1_448, 64_000 - 40 * 1_448]);
        assert_eq!(lens(flag::ACK, 0, 0).len(), 45);
        assert_eq!(lens(flag::ACK | flag::URG, 65_535, u16::MAX).len(), 45, "the pointer moves");
    }

    #[test]
    fn a_super_frame_leaves_as_segments_that_join_up() {
        let payload: Vec<u8> = (0..64_000u32).map(|i| i as u8).collect();
        let pieces = cut(&head(flag::ACK | flag::PSH | flag::FIN | flag::CWR, 1_448), &payload, 1_500);
        assert_eq!(pieces.len(), 45);
        let mut seq = Seq(u32::MAX - 99);
        let mut whole = Vec::new();
        for (i, (tcp, bytes)) in pieces.iter().enumerate() {
            assert_eq!(tcp.seq, seq, "piece {i}");
            assert_eq!(tcp.has(flag::PSH | flag::FIN), i == 44, "piece {i}");
            assert_eq!(tcp.has(flag::CWR), i == 0, "piece {i}");
            assert!(tcp.has(flag::ACK) && bytes.len() <= 1_448);
            seq += bytes.len() as u32;
            whole.extend_from_slice(bytes);
        }
        assert_eq!(whole, payload);
    }

    #[test]
    fn the_route_is_obeyed_when_it_is_narrower() {
        let mut head = head(flag::ACK, 1_448);
        head.tcp.options = opt::TIMESTAMPS;
        let pieces = cut(&head, &[7; 3_000], 1_280);
        assert_eq!(pieces.iter().map(|p| p.1.len()).collect::<Vec<_>>(), [1_228, 1_228, 544]);
        assert!(pieces.iter().all(|p| p.0.has_option(opt::TIMESTAMPS)));
    }

    #[test]
    fn a_segment_without_payload_is_one_piece() {
        let pieces = cut(&head(flag::SYN, 0), &[], 1_500);
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].0.has(flag::SYN) && pieces[0].1.is_empty());
    }

    #[test]
    fn a_syn_takes_a_number_and_keeps_its_options_to_itself() {
        let mut head = head(flag::SYN, 10);
        head.tcp.options = opt::MSS | opt::TIMESTAMPS;
        let pieces = cut(&head, &[1; 15], 1_500);
        assert!(pieces[0].0.has(flag::SYN) && pieces[0].0.has_option(opt::MSS));
        assert!(!pieces[1].0.has(flag::SYN) && pieces[1].0.options == opt::TIMESTAMPS);
        assert_eq!(pieces[1].0.seq, pieces[0].0.seq + 11);
    }

    #[test]
    fn the_urgent_byte_stays_the_same_byte() {
        let mut head = head(flag::ACK | flag::URG, 100);
        head.tcp.urgent = 150;
        let pieces = cut(&head, &[0; 300], 1_500);
        assert_eq!(pieces[0].0.urgent, 150);
        assert!(pieces[1].0.has(flag::URG) && pieces[1].0.urgent == 50);
        assert!(!pieces[2].0.has(flag::URG) && pieces[2].0.urgent == 0);
    }

    #[test]
    fn an_absurd_mtu_neither_panics_nor_makes_a_packet_of_every_byte() {
        assert_eq!(cut(&head(flag::ACK, 1_448), &[0; 80], 0).len(), 10);
    }

    proptest! {
        #[test]
        fn pieces_always_join_up_and_fit(
            len in 0usize..9_000,
            mss in 1u16..3_000,
            mtu in 68u16..,
            flags in 0u16..512,
            options in 0u8..16,
            seq: u32,
            urgent: u16,
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let tcp = TcpFields { seq: Seq(seq), flags, options, urgent, ..TcpFields::default() };
            let head = Inject { tcp, mss, ..Inject::default() };
            let pieces: Vec<_> = Pieces::new(&head, &payload, mtu, false).collect();
            let mut next = Seq(seq);
            for (i, (piece, bytes)) in pieces.iter().enumerate() {
                prop_assert_eq!(piece.seq, next);
                prop_assert!(bytes.len() <= usize::from(mss));
                prop_assert!(bytes.len() <= SMALLEST_PIECE || header_len(piece, false) + bytes.len() <= usize::from(mtu));
                let (first, last) = (i == 0, i + 1 == pieces.len());
                prop_assert_eq!(piece.has(flag::SYN), first && flags & flag::SYN != 0);
                prop_assert_eq!(piece.has(flag::FIN), last && flags & flag::FIN != 0);
                prop_assert_eq!(piece.flags & flag::RST, flags & flag::RST);
                next += bytes.len() as u32 + u32::from(piece.has(flag::SYN));
            }
            prop_assert_eq!(pieces.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect::<Vec<_>>(), payload);
        }
    }
}
