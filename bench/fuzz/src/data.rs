//! An input, read from its front. What an input lacks is simply not done: no input is invalid.

/// The rest of an input.
#[derive(Clone, Debug)]
pub(crate) struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// So many bytes, or what there is.
    pub(crate) fn up_to(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }
}
