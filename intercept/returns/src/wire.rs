//! Little-endian reading and writing with every length checked. Used by every message of the channel.

use flow::{Addr, Endpoint, Range, Seq};

/// Reads from the front of a slice; `None` when it is too short.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn seq(&mut self) -> Option<Seq> {
        self.u32().map(Seq)
    }

    /// Sixteen address bytes, then the port.
    pub(crate) fn endpoint(&mut self) -> Option<Endpoint> {
        Some(Endpoint::new(Addr(self.array()?), self.u16()?))
    }

    /// Sixteen address bytes, then the prefix length in the family's own terms.
    pub(crate) fn range(&mut self) -> Option<Range> {
        Range::new(Addr(self.array()?), self.u8()?)
    }

    /// A text with its length in front (u16), at most `max` bytes, valid UTF-8 without control characters.
    pub(crate) fn text(&mut self, max: usize) -> Option<String> {
        let len = usize::from(self.u16()?);
        if len > max {
            return None;
        }
        let text = std::str::from_utf8(self.take(len)?).ok()?;
        (!text.chars().any(char::is_control)).then(|| text.to_owned())
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes into a slice that the caller made large enough; running over is a bug of ours and panics.
pub(crate) struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.buf[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    #[inline]
    pub(crate) fn u8(&mut self, v: u8) {
        self.bytes(&[v]);
    }

    #[inline]
    pub(crate) fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }

    #[inline]
    pub(crate) fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }

    #[inline]
    pub(crate) fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }

    pub(crate) fn endpoint(&mut self, e: &Endpoint) {
        self.bytes(&e.addr.0);
        self.u16(e.port);
    }

    pub(crate) fn range(&mut self, r: &Range) {
        self.bytes(&r.base().0);
        self.u8(r.prefix());
    }

    /// The text, cut at a character boundary to at most `max` bytes; control characters become spaces.
    pub(crate) fn text(&mut self, text: &str, max: usize) {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut end = clean.len().min(max);
        while !clean.is_char_boundary(end) {
            end -= 1;
        }
        self.u16(u16::try_from(end).expect("texts are bounded far below 64 KiB"));
        self.bytes(&clean.as_bytes()[..end]);
    }
}
