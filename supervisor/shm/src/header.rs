//! The region's first words: what it is, whose, and laid out how. The creator writes them once, the magic last; whoever
//! attaches reads the magic first and believes nothing before the rest agrees too.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::layout::{Layout, Spec, VERSION};
use crate::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

const MAGIC: u64 = u64::from_be_bytes(*b"TCPTWIN\x01");

/// The header as it stands in the region.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Header {
    magic: AtomicU64,
    version: AtomicU64,
    layout_hash: AtomicU64,
    bytes: AtomicU64,
    instance: AtomicU64,
    epoch: AtomicU64,
    boot_id: [AtomicU64; 2],
    plan_len: AtomicU64,
    shards: AtomicU64,
    capture_ring: AtomicU64,
    inject_ring: AtomicU64,
    return_ring: AtomicU64,
    arena: AtomicU64,
}

/// The same words as plain values, from a region or a file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
pub(crate) struct Words {
    magic: u64,
    version: u64,
    layout_hash: u64,
    bytes: u64,
    pub(crate) instance: u64,
    pub(crate) epoch: u64,
    pub(crate) boot_id: [u64; 2],
    pub(crate) plan_len: u64,
    shards: u64,
    capture_ring: u64,
    inject_ring: u64,
    return_ring: u64,
    arena: u64,
}

const _: () = assert!(size_of::<Header>() == size_of::<Words>());

impl Header {
    /// Writes everything, the magic last. Release; pairs with the Acquire in [`Header::words`].
    pub(crate) fn write(&self, layout: &Layout, instance: u64, boot_id: [u64; 2], plan_len: usize) {
        let spec = layout.spec();
        self.version.store(VERSION, Relaxed);
        self.layout_hash.store(layout.hash(), Relaxed);
        self.bytes.store(layout.bytes(), Relaxed);
        self.instance.store(instance, Relaxed);
        self.epoch.store(1, Relaxed);
        self.boot_id[0].store(boot_id[0], Relaxed);
        self.boot_id[1].store(boot_id[1], Relaxed);
        self.plan_len.store(plan_len as u64, Relaxed);
        self.shards.store(spec.shards.into(), Relaxed);
        self.capture_ring.store(spec.capture_ring.into(), Relaxed);
        self.inject_ring.store(spec.inject_ring.into(), Relaxed);
        self.return_ring.store(spec.return_ring.into(), Relaxed);
        self.arena.store(spec.arena, Relaxed);
        self.magic.store(MAGIC, Release);
    }

    /// Everything, each word read once.
    pub(crate) fn words(&self) -> Words {
        // Acquire: pairs with the Release in `write`.
        let magic = self.magic.load(Acquire);
        Words {
            magic,
            version: self.version.load(Relaxed),
            layout_hash: self.layout_hash.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            instance: self.instance.load(Relaxed),
            epoch: self.epoch.load(Relaxed),
            boot_id: [self.boot_id[0].load(Relaxed), self.boot_id[1].load(Relaxed)],
            plan_len: self.plan_len.load(Relaxed),
            shards: self.shards.load(Relaxed),
            capture_ring: self.capture_ring.load(Relaxed),
            inject_ring: self.inject_ring.load(Relaxed),
            return_ring: self.return_ring.load(Relaxed),
            arena: self.arena.load(Relaxed),
        }
    }

    pub(crate) fn plan_len(&self) -> u64 {
        self.plan_len.load(Relaxed)
    }

    pub(crate) fn set_plan_len(&self, bytes: usize) {
        self.plan_len.store(bytes as u64, Relaxed);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// One supervisor at a time owns the region (see `lock`), so this needs no atomic addition.
    pub(crate) fn advance_epoch(&self) {
        self.epoch.store(self.epoch.load(Relaxed) + 1, Relaxed);
    }
}

impl Words {
    /// From the first bytes of a region's file; `None` when there are too few.
    pub(crate) fn from_file(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(words, _)| words)
    }

    pub(crate) const fn is_ours(&self) -> bool {
        self.magic == MAGIC
    }

    /// The layout that these words describe, if this program would lay it out the same way in a file of `bytes` bytes.
    pub(crate) fn layout(&self, bytes: u64) -> Result<Layout, String> {
        if !self.is_ours() {
            return Err("its creator did not finish it, or it is no region at all".into());
        }
        if self.version != VERSION {
            return Err(format!("its layout has version {}, this program's has {VERSION}", self.version));
        }
        let spec = Spec {
            shards: self.shards.try_into().unwrap_or(0),
            capture_ring: self.capture_ring.try_into().unwrap_or(0),
            inject_ring: self.inject_ring.try_into().unwrap_or(0),
            return_ring: self.return_ring.try_into().unwrap_or(0),
            arena: self.arena,
        };
        let layout = Layout::new(spec).map_err(|why| format!("its header is damaged ({why})"))?;
        if layout.hash() != self.layout_hash {
            return Err("another build of this program laid it out differently".into());
        }
        if layout.bytes() != self.bytes || bytes != self.bytes {
            return Err(format!("it is {bytes} bytes long and should be {}", layout.bytes()));
        }
        if self.plan_len > crate::layout::PLAN_BYTES as u64 {
            return Err(format!("its header is damaged (a plan of {} bytes)", self.plan_len));
        }
        Ok(layout)
    }
}

/// The kernel's random number of this boot; zero where it cannot be read.
pub(crate) fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits = text.trim().replace('-', "");
    let id = u128::from_str_radix(&digits, 16).unwrap_or(0);
    [(id >> 64) as u64, id as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> (Words, Layout) {
        let spec = Spec { shards: 2, capture_ring: 4096, inject_ring: 4096, return_ring: 4096, arena: 4096 };
        let layout = Layout::new(spec).unwrap();
        let header = Header::default();
        header.write(&layout, 77, [1, 2], 10);
        (header.words(), layout)
    }

    #[test]
    fn what_was_written_describes_the_layout() {
        let (words, layout) = written();
        assert_eq!(words.layout(layout.bytes()), Ok(layout));
        assert_eq!((words.instance, words.epoch, words.plan_len), (77, 1, 10));
    }

    #[test]
    fn each_damage_is_refused() {
        let (good, layout) = written();
        for bad in [
            Words { magic: 0, ..good },
            Words { version: VERSION + 1, ..good },
            Words { layout_hash: !good.layout_hash, ..good },
            Words { shards: 1 << 20, ..good },
            Words { capture_ring: u64::MAX, ..good },
            Words { arena: 8192, ..good },
            Words { bytes: 1, ..good },
            Words { plan_len: 1 << 20, ..good },
        ] {
            assert!(bad.layout(layout.bytes()).is_err(), "{bad:?}");
        }
        assert!(good.layout(layout.bytes() - 1).is_err());
    }
}
