//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng): one section, one interface whose packets begin at the IP header
//! (LINKTYPE_RAW), packets, and statistics at the end. Native byte order, times in nanoseconds.

/// Options' codes.
mod option {
    pub(super) const END: u16 = 0;
    pub(super) const SHB_USERAPPL: u16 = 4;
    pub(super) const IF_NAME: u16 = 2;
    pub(super) const IF_TSRESOL: u16 = 9;
    pub(super) const ISB_IFRECV: u16 = 4;
    pub(super) const ISB_IFDROP: u16 = 5;
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Packets begin with an IPv4 or IPv6 header.
const LINKTYPE_RAW: u16 = 101;
/// Times count in 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Bytes of the statistics.
pub(crate) const STATISTICS_BYTES: u64 = 52;

/// What a file begins with.
pub(crate) fn header(out: &mut Vec<u8>, program: &str, interface: &str, snap: u32) {
    block(out, SECTION, |out| {
        out.extend(BYTE_ORDER.to_ne_bytes());
        out.extend(1_u16.to_ne_bytes());
        out.extend(0_u16.to_ne_bytes());
        // The section's length is not known beforehand.
        out.extend(u64::MAX.to_ne_bytes());
        option(out, option::SHB_USERAPPL, program.as_bytes());
        option(out, option::END, &[]);
    });
    block(out, INTERFACE, |out| {
        out.extend(LINKTYPE_RAW.to_ne_bytes());
        out.extend([0; 2]);
        // 0 is "no limit" here as it is in ours.
        out.extend(snap.to_ne_bytes());
        option(out, option::IF_NAME, interface.as_bytes());
        option(out, option::IF_TSRESOL, &[NANOSECONDS]);
        option(out, option::END, &[]);
    });
}

/// One packet, in two pieces as it lies in a ring.
pub(crate) fn packet(out: &mut Vec<u8>, time_ns: u64, wire_len: u32, (a, b): (&[u8], &[u8])) {
    block(out, PACKET, |out| {
        out.extend(0_u32.to_ne_bytes());
        time(out, time_ns);
        let len = (a.len() + b.len()) as u32;
        out.extend(len.to_ne_bytes());
        out.extend(wire_len.max(len).to_ne_bytes());
        out.extend_from_slice(a);
        out.extend_from_slice(b);
        pad(out, len as usize);
    });
}

/// How many bytes of a packet a block holds, if it is one of [`packet`]; `body` is what stands behind type and length.
pub(crate) fn packet_bytes(kind: u32, body: &[u8]) -> Option<u32> {
    let len = body.get(12..16)?;
    (kind == PACKET).then(|| u32::from_ne_bytes([len[0], len[1], len[2], len[3]]))
}

/// What a file ends with: packets that came up since the recording began, and those of them that are in no file.
pub(crate) fn statistics(out: &mut Vec<u8>, time_ns: u64, received: u64, dropped: u64) {
    block(out, STATISTICS, |out| {
        out.extend(0_u32.to_ne_bytes());
        time(out, time_ns);
        option(out, option::ISB_IFRECV, &received.to_ne_bytes());
        option(out, option::ISB_IFDROP, &dropped.to_ne_bytes());
        option(out, option::END, &[]);
    });
}

/// Type and length, the body, the length again. Bodies end on a multiple of four bytes.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_ne_bytes());
    out.extend([0; 4]);
    body(out);
    let len = ((out.len() - begin + 4) as u32).to_ne_bytes();
    out.extend(len);
    out[begin + 4..begin + 8].copy_from_slice(&len);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Names of interfaces together may be long; 64 KiB they are not.
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend(code.to_ne_bytes());
    out.extend((value.len() as u16).to_ne_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Upper and lower half, in this order whatever the byte order.
fn time(out: &mut Vec<u8>, time_ns: u64) {
    out.extend(((time_ns >> 32) as u32).to_ne_bytes());
    out.extend((time_ns as u32).to_ne_bytes());
}

fn pad(out: &mut Vec<u8>, len: usize) {
    out.extend(&[0; 3][..len.next_multiple_of(4) - len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_framed_by_its_length_and_ends_on_a_word() {
        let mut out = vec![];
        header(&mut out, "tcptwin 0", "eth0", 96);
        for len in 0..9 {
            packet(&mut out, 5, 9, (&[1; 9][..len], &[2; 3]));
        }
        let before = out.len();
        statistics(&mut out, 7, 10, 1);
        assert_eq!((out.len() - before) as u64, STATISTICS_BYTES);
        let word = |at: usize| u32::from_ne_bytes(out[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, vec![]);
        while at < out.len() {
            let len = word(at + 4) as usize;
            assert!(len.is_multiple_of(4) && len >= 12);
            assert_eq!(word(at + len - 4) as usize, len);
            kinds.push(word(at));
            at += len;
        }
        assert_eq!(at, out.len());
        assert_eq!(kinds, [&[SECTION, INTERFACE][..], &[PACKET; 9], &[STATISTICS]].concat());
    }
}
