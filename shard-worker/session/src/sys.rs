//! The instructions that have no safe name: a cache line asked for before it is needed, and sums of four lanes at once.
#![allow(unsafe_code)]

/// Words that are summed side by side.
pub(crate) const LANES: usize = 4;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Asks for all lines of a value, if the processor has such an instruction. It changes nothing and waits for nothing.
#[inline]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of::<T>()).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let place = std::ptr::from_ref(value).cast::<i8>().wrapping_add(line);
        // SAFETY: a prefetch has no effect but on caches; an address that is not mapped is ignored by it (Intel SDM,
        // PREFETCHh), and this one lies in a value that is borrowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Fletcher's two sums of each lane: of the words, and of the sums after each row. In vector registers: left to itself, the compiler
/// makes eight scalar chains of it, some of them in memory, and three times the instructions.
#[inline]
pub(crate) fn fletcher<const ROWS: usize>(rows: &[[u32; LANES]; ROWS]) -> [[u32; LANES]; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_add_epi32, _mm_loadu_si128, _mm_setzero_si128, _mm_storeu_si128};
        let mut found = [[0; LANES]; 2];
        // SAFETY: SSE2 is a part of every x86-64. Each load is of a whole row, each store to one, and neither need be aligned.
        unsafe {
            let (mut sums, mut of_sums) = (_mm_setzero_si128(), _mm_setzero_si128());
            for row in rows {
                sums = _mm_add_epi32(sums, _mm_loadu_si128(row.as_ptr().cast()));
                of_sums = _mm_add_epi32(of_sums, sums);
            }
            _mm_storeu_si128(found[0].as_mut_ptr().cast(), sums);
            _mm_storeu_si128(found[1].as_mut_ptr().cast(), of_sums);
        }
        found
    }
    #[cfg(not(target_arch = "x86_64"))]
    plain(rows)
}

/// The same for any processor.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain(rows: &[[u32; LANES]]) -> [[u32; LANES]; 2] {
    let [mut sums, mut of_sums] = [[0u32; LANES]; 2];
    for row in rows {
        for lane in 0..LANES {
            sums[lane] = sums[lane].wrapping_add(row[lane]);
            of_sums[lane] = of_sums[lane].wrapping_add(sums[lane]);
        }
    }
    [sums, of_sums]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_sums_are_fletchers(rows in any::<[[u32; LANES]; 28]>()) {
            prop_assert_eq!(fletcher(&rows), plain(&rows));
        }
    }
}
