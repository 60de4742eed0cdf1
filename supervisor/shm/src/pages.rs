//! Pages of 2 MiB for the region, where the kernel gives them: with a million sessions each packet meets half a dozen pages, and
//! no processor remembers where 4 KiB ones are.
//!
//! What the mount of /dev/shm says about large pages (`huge=`, `never` nearly everywhere) is about page faults. MADV_COLLAPSE
//! (Linux 6.1) asks for them by name and heeds neither mount nor sysfs (madvise(2)); and since the pages belong to the file, all that
//! map it later at a fitting address have them too. Nobody relies on it: what the kernel refuses stays as it was.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};

use libc::c_void;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::layout::PAGE;

/// Bytes of a large page (x86-64, and arm64 with pages of 4 KiB).
const LARGE: usize = 2 << 20;

/// Gives a new file, which has no memory yet, as much of it as goes in large pages. Cheaper than the same memory in small ones
/// (0.03 to 0.12 s of CPU time for 512 MiB against 0.12), so it comes before the rest is reserved.
pub(crate) fn enlarge(file: &File, bytes: usize) {
    // A stretch without any page is not collapsed, one with a single page is.
    for at in (0..bytes / LARGE).map(|n| n * LARGE) {
        if fallocate(file, FallocateFlags::empty(), at as i64, PAGE as i64).is_err() {
            return;
        }
    }
    let Ok(place) = Place::reserve(bytes) else { return };
    let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: `place` is ours, `bytes` long, and nothing else is there; it is unmapped below and nobody learns of the address.
    unsafe {
        let mapped = libc::mmap(place.aligned, bytes, rights, flags, fd, 0);
        if mapped == place.aligned {
            libc::madvise(mapped, bytes, libc::MADV_COLLAPSE);
        }
        libc::munmap(place.begin, place.bytes);
    }
}

/// Moves a mapping to where large pages of its file fit, if it can be moved. What reaches around it stays reserved.
///
/// # Safety
/// `bytes` from `base` are a whole mapping that nobody has a reference into.
pub(crate) unsafe fn align(base: NonNull<u8>, bytes: usize) -> NonNull<u8> {
    let Ok(place) = Place::reserve(bytes) else { return base };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the old place is the caller's to give up, the new one is ours and nothing is there.
    let moved = unsafe { libc::mremap(base.as_ptr().cast(), bytes, bytes, flags, place.aligned) };
    if moved == place.aligned { NonNull::new(moved.cast()).unwrap_or(base) } else { base }
}

/// Addresses without memory, with room for a mapping that begins where a large page can.
struct Place {
    begin: *mut c_void,
    bytes: usize,
    aligned: *mut c_void,
}

impl Place {
    fn reserve(bytes: usize) -> io::Result<Self> {
        let bytes = bytes + LARGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, which nothing can be read from or written to.
        let begin = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if begin == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let gap = begin.align_offset(LARGE);
        Ok(Self { begin, bytes, aligned: begin.wrapping_byte_add(gap) })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Region, Spec};

    /// What the kernel says of the mapping that holds an address (proc_pid_smaps(5)), KiB.
    fn smaps(address: usize, field: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-') {
                let number = |hex| usize::from_str_radix(hex, 16).unwrap();
                here = (number(from)..number(to)).contains(&address);
            } else if here && first == field {
                return words.next().unwrap().parse().unwrap();
            }
        }
        panic!("no {field} of {address:x}");
    }

    #[test]
    fn who_attaches_finds_what_was_written_in_pages_as_large_as_the_creator_s() {
        let name = format!("pages-{}", std::process::id());
        let (ring, arena) = (1 << 16, 8 << 20);
        let spec = Spec { shards: 1, capture_ring: ring, inject_ring: ring, return_ring: ring, arena };
        let one = Region::create(&name, &spec, b"", 1).unwrap();
        let other = Region::attach(&name);
        Region::remove(&name).unwrap();
        let [one, other] = [one, other.unwrap()].map(|region| region.arena(0));
        one.fill(7);
        assert!(other.iter().all(|&byte| byte == 7));
        let large = [&one, &other].map(|arena| smaps(arena.as_ptr() as usize, "ShmemPmdMapped:"));
        assert_eq!(large[0], large[1], "KiB in large pages");
        // Whether there are any is this machine's kernel's affair.
        println!("{} KiB in large pages", large[0]);
    }
}
