//! The bytes below a ring: in a mapped region, or on the heap for rings between threads, tests, Miri and loom.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::ring::{Indices, LINE};

/// One cache line, which is also the alignment of records.
#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; LINE]>);

/// A ring that lives on the heap.
struct Heap {
    indices: Indices,
    lines: Box<[Line]>,
    /// What loom watches instead of the bytes: one cell a line.
    #[cfg(loom)]
    watched: Vec<loom::cell::UnsafeCell<()>>,
}

// SAFETY: the bytes are reached only through `Memory`, whose users own disjoint spans of them by the ring protocol.
unsafe impl Send for Heap {}
// SAFETY: as above.
unsafe impl Sync for Heap {}

/// Where a ring lies. Copies of it speak of the same ring; producer and consumer have one each.
#[derive(Clone)]
pub(crate) struct Memory {
    indices: NonNull<Indices>,
    base: NonNull<u8>,
    capacity: usize,
    /// Keeps a ring on the heap alive; a mapped region is never unmapped.
    heap: Option<Arc<Heap>>,
}

// SAFETY: `Memory` is an address and a length; the memory stays valid (see `heap`) and who may touch which bytes is the
// ring protocol's business (`ring`), not a property of the thread.
unsafe impl Send for Memory {}

impl Memory {
    /// A ring in a mapped region.
    ///
    /// # Safety
    /// `indices` and `capacity` bytes from `base` are mapped for the rest of the process's life, `base` is 64-byte aligned,
    /// `capacity` is a power of two of at least one line, and no reference to the bytes exists outside ring ends.
    #[cfg(not(loom))]
    pub(crate) unsafe fn mapped(indices: &'static Indices, base: NonNull<u8>, capacity: usize) -> Self {
        Self { indices: NonNull::from(indices), base, capacity, heap: None }
    }

    /// A ring on the heap; `capacity` is a power of two of at least one line.
    pub(crate) fn heap(capacity: usize) -> Self {
        let lines: Box<[Line]> = (0..capacity / LINE).map(|_| Line(UnsafeCell::new([0; LINE]))).collect();
        let heap = Arc::new(Heap {
            indices: Indices::default(),
            #[cfg(loom)]
            watched: lines.iter().map(|_| loom::cell::UnsafeCell::new(())).collect(),
            lines,
        });
        // From the slice's pointer, so that it may reach all lines; UnsafeCell allows writing through it.
        let base =
            NonNull::new(heap.lines.as_ptr().cast_mut().cast::<u8>()).expect("a box is not at address 0");
        Self { indices: NonNull::from(&heap.indices), base, capacity, heap: Some(heap) }
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn indices(&self) -> &Indices {
        // SAFETY: valid for as long as `self` (see `mapped` and `heap`); Indices holds only atomics, so sharing is fine.
        unsafe { self.indices.as_ref() }
    }

    /// The eight bytes at `at`, read exactly once.
    ///
    /// # Safety
    /// The caller owns these bytes for reading by the ring protocol. `at` is a multiple of eight.
    pub(crate) unsafe fn read_head(&self, at: usize) -> u64 {
        assert!(at + 8 <= self.capacity, "a record's head lies in the ring");
        self.watch_read(at, 8);
        // SAFETY: in bounds by the assertion, aligned because `base` is and `at` is. Volatile, so that the compiler cannot
        // read it again after the checks: a hostile writer may change it in between.
        unsafe { self.base.as_ptr().add(at).cast::<u64>().read_volatile() }
    }

    /// # Safety
    /// The caller owns these bytes for writing by the ring protocol. `at` is a multiple of eight.
    pub(crate) unsafe fn write_head(&self, at: usize, head: u64) {
        assert!(at + 8 <= self.capacity, "a record's head lies in the ring");
        self.watch_write(at, 8);
        // SAFETY: in bounds by the assertion, aligned as above.
        unsafe { self.base.as_ptr().add(at).cast::<u64>().write(head) }
    }

    /// # Safety
    /// The caller owns these bytes for reading by the ring protocol, for as long as the slice lives.
    pub(crate) unsafe fn read(&self, at: usize, len: usize) -> &[u8] {
        assert!(len <= self.capacity && at <= self.capacity - len, "a record lies in the ring");
        self.watch_read(at, len);
        // SAFETY: in bounds by the assertion; initialised since the mapping or the box was made; not written while the
        // slice lives, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len) }
    }

    /// # Safety
    /// The caller owns these bytes for writing by the ring protocol and makes only one such slice at a time.
    #[expect(
        clippy::mut_from_ref,
        reason = "the bytes are shared memory; exclusiveness is the caller's promise"
    )]
    pub(crate) unsafe fn write(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(len <= self.capacity && at <= self.capacity - len, "a record lies in the ring");
        self.watch_write(at, len);
        // SAFETY: as in `read`, and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), len) }
    }

    #[cfg(not(loom))]
    #[inline]
    fn watch_read(&self, _at: usize, _len: usize) {}

    #[cfg(not(loom))]
    #[inline]
    fn watch_write(&self, _at: usize, _len: usize) {}

    /// Tells loom that these lines are read here: it fails when a write to them does not happen before.
    #[cfg(loom)]
    fn watch_read(&self, at: usize, len: usize) {
        let heap = self.heap.as_ref().expect("under loom rings lie on the heap");
        for line in at / LINE..(at + len).div_ceil(LINE) {
            heap.watched[line].with(|_| ());
        }
    }

    /// Tells loom that these lines are written here.
    #[cfg(loom)]
    fn watch_write(&self, at: usize, len: usize) {
        let heap = self.heap.as_ref().expect("under loom rings lie on the heap");
        for line in at / LINE..(at + len).div_ceil(LINE) {
            heap.watched[line].with_mut(|_| ());
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("capacity", &self.capacity)
            .field("heap", &self.heap.is_some())
            .finish()
    }
}
