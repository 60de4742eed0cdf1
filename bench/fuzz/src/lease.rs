//! Memory for tables. A table wants its arena for ever, as a mapped region is; a fuzzer makes a million tables and must have
//! the memory back. This is the one `unsafe` of the crate.
#![allow(unsafe_code)]

use session::{Config, Table};
use zerocopy::IntoBytes;

/// A table, and the memory that it lives in.
pub(crate) struct Leased {
    /// Always there, except while one is exchanged for another.
    table: Option<Table>,
    memory: *mut [u64],
    config: Config,
}

impl Leased {
    /// An empty table.
    pub(crate) fn new(config: &Config) -> Self {
        Self::from_image(config, &[])
    }

    /// The worker dies and another goes on with what stands in the arena.
    pub(crate) fn restart(&mut self) {
        let image = self.table().image();
        *self = Self::from_image(&self.config, &image);
    }

    /// The table. Nobody in this crate moves it out.
    pub(crate) fn table(&mut self) -> &mut Table {
        self.table.as_mut().expect("taken out by drop alone")
    }

    fn from_image(config: &Config, image: &[u8]) -> Self {
        let bytes = Table::arena_bytes(config.limits.sessions, config.limits.chunks) as usize;
        let memory = Box::into_raw(vec![0u64; bytes.div_ceil(8)].into_boxed_slice());
        // SAFETY: just allocated, and this is the only reference made from it. It is not `'static` in truth: the table that
        // gets it is dropped before the memory is, in `drop`.
        let arena: &'static mut [u64] = unsafe { &mut *memory };
        let arena = arena.as_mut_bytes();
        arena[..image.len()].copy_from_slice(image);
        Self { table: Some(Table::new(arena, config.clone())), memory, config: config.clone() }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.table = None;
        // SAFETY: made by `Box::into_raw` in `from_image`, given back once, and the table that used it is gone.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}
