//! A 64-bit digest of request bodies, eight bytes a step: it finds lost, doubled, swapped and altered bytes of a replayed
//! upload at memory speed. Not a cryptographic hash.

/// Digest of a stream of bytes that arrives in pieces; equal streams give equal digests however they were cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest {
    state: u64,
    /// Bytes that do not fill a word yet, little-endian.
    partial: u64,
    len: u64,
}

/// The golden ratio's fraction, odd: multiplication by it is a permutation that mixes upwards.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Digest {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !self.len.is_multiple_of(8) && !bytes.is_empty() {
            self.byte(bytes[0]);
            bytes = &bytes[1..];
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        self.len += words.len() as u64 * 8;
        rest.iter().for_each(|&b| self.byte(b));
    }

    /// The digest of everything so far; 0 for nothing at all.
    pub fn finish(mut self) -> u64 {
        if self.len == 0 {
            return 0;
        }
        let len = self.len;
        self.word(self.partial);
        self.word(len);
        self.state
    }

    fn byte(&mut self, byte: u8) {
        self.partial |= u64::from(byte) << (8 * (self.len % 8));
        self.len += 1;
        if self.len.is_multiple_of(8) {
            self.word(self.partial);
            self.partial = 0;
        }
    }

    fn word(&mut self, word: u64) {
        self.state = (self.state.rotate_left(29) ^ word).wrapping_mul(STEP);
    }
}

/// Fills a body that belongs to an id: different ids have different bytes everywhere.
pub fn fill_body(id: u64, body: &mut [u8]) {
    let mut word = (id + 1).wrapping_mul(STEP);
    for chunk in body.chunks_mut(8) {
        word = word.wrapping_add(STEP).rotate_left(17);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pieces: &[&[u8]]) -> u64 {
        let mut d = Digest::default();
        pieces.iter().for_each(|p| d.update(p));
        d.finish()
    }

    #[test]
    fn however_it_is_cut_the_digest_is_the_same() {
        let mut body = [0; 1_000];
        fill_body(7, &mut body);
        let whole = of(&[&body]);
        for cut in 0..body.len() {
            assert_eq!(of(&[&body[..cut], &body[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn another_byte_another_order_or_another_length_is_seen() {
        let mut body = [0; 64];
        fill_body(1, &mut body);
        let whole = of(&[&body]);
        for i in 0..body.len() {
            let mut other = body;
            other[i] ^= 1;
            assert_ne!(of(&[&other]), whole);
        }
        assert_ne!(of(&[&body[8..16], &body[..8], &body[16..]]), whole);
        assert_ne!(of(&[&body, &[0]]), whole);
        assert_eq!(of(&[]), 0);
    }
}
