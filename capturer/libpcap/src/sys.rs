//! The library's functions, found once and kept for the life of the process, and its handles. The only unsafe code of this
//! crate; everything it returns is safe to use in any order.
//!
//! Signatures are those of `pcap/pcap.h` 1.5 to 1.10, which are one stable ABI.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_uint, c_void};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use crate::compile::Instruction;
use crate::error::Error;
use crate::live::{Direction, Options, Stats};

/// PCAP_ERRBUF_SIZE.
const ERRBUF_BYTES: usize = 256;
/// PCAP_NETMASK_UNKNOWN.
const NETMASK_UNKNOWN: u32 = 0xffff_ffff;
/// PCAP_TSTAMP_PRECISION_NANO.
const NANOSECONDS: c_int = 1;
/// PCAP_D_IN.
const ONLY_IN: c_int = 1;
/// PCAP_ERROR_PERM_DENIED and PCAP_ERROR_PROMISC_PERM_DENIED.
const DENIED: [c_int; 2] = [-8, -11];
/// Where a read waits for frames in blocking mode; ours never does, and immediate mode has none.
const TIMEOUT_MS: c_int = 1;

#[repr(C)]
struct RawHandle {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RawProgram {
    len: c_uint,
    instructions: *mut RawInstruction,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawInstruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

#[repr(C)]
struct RawHeader {
    time: libc::timeval,
    captured_len: u32,
    wire_len: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawStats {
    received: c_uint,
    dropped: c_uint,
    device_dropped: c_uint,
}

type Pcap = *mut RawHandle;

/// Declares the functions in use as a table of pointers that is filled in one go.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        struct Functions { $($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)* }

        impl Functions {
            /// Finds all of them.
            fn find(library: &'static Library) -> Result<Self, Error> {
                Ok(Self { $(
                    // SAFETY: the type is the declaration in pcap/pcap.h; the library stays loaded for ever.
                    $name: *unsafe {
                        library.get::<unsafe extern "C" fn($($arg),*) $(-> $ret)?>(
                            concat!("pcap_", stringify!($name)).as_bytes(),
                        )
                    }
                    .map_err(|_| Error::Lacking { symbol: concat!("pcap_", stringify!($name)) })?,
                )* })
            }
        }
    };
}

functions! {
    open_dead: fn(c_int, c_int) -> Pcap;
    create: fn(*const c_char, *mut c_char) -> Pcap;
    set_snaplen: fn(Pcap, c_int) -> c_int;
    set_promisc: fn(Pcap, c_int) -> c_int;
    set_timeout: fn(Pcap, c_int) -> c_int;
    set_immediate_mode: fn(Pcap, c_int) -> c_int;
    set_buffer_size: fn(Pcap, c_int) -> c_int;
    set_tstamp_precision: fn(Pcap, c_int) -> c_int;
    get_tstamp_precision: fn(Pcap) -> c_int;
    activate: fn(Pcap) -> c_int;
    setnonblock: fn(Pcap, c_int, *mut c_char) -> c_int;
    setdirection: fn(Pcap, c_int) -> c_int;
    compile: fn(Pcap, *mut RawProgram, *const c_char, c_int, u32) -> c_int;
    setfilter: fn(Pcap, *mut RawProgram) -> c_int;
    freecode: fn(*mut RawProgram);
    next_ex: fn(Pcap, *mut *mut RawHeader, *mut *const c_uchar) -> c_int;
    get_selectable_fd: fn(Pcap) -> c_int;
    stats: fn(Pcap, *mut RawStats) -> c_int;
    inject: fn(Pcap, *const c_void, usize) -> c_int;
    datalink: fn(Pcap) -> c_int;
    datalink_val_to_name: fn(c_int) -> *const c_char;
    geterr: fn(Pcap) -> *mut c_char;
    statustostr: fn(c_int) -> *const c_char;
    lib_version: fn() -> *const c_char;
    close: fn(Pcap);
}

/// Names of the library: everybody's, then Debian's.
const NAMES: [&str; 2] = ["libpcap.so.1", "libpcap.so.0.8"];

/// The functions, found at the first call.
fn functions() -> Result<&'static Functions, Error> {
    static FOUND: OnceLock<Result<Functions, Error>> = OnceLock::new();
    FOUND.get_or_init(|| load(&NAMES)).as_ref().map_err(Clone::clone)
}

fn load(names: &[&str]) -> Result<Functions, Error> {
    let mut why = vec![];
    for name in names {
        // SAFETY: libpcap has no initialisers that need anything of us.
        match unsafe { Library::new(*name) } {
            // Never unloaded: its functions are kept in a static.
            Ok(library) => return Functions::find(Box::leak(Box::new(library))),
            // The loader's own words stand behind the crate's.
            Err(error) => why.push(match std::error::Error::source(&error) {
                Some(words) => words.to_string(),
                None => format!("{name}: {error}"),
            }),
        }
    }
    Err(Error::Absent { why: why.join("; ") })
}

/// The library's words about itself.
///
/// # Errors
/// The library is absent or too old.
pub fn version() -> Result<String, Error> {
    let functions = functions()?;
    // SAFETY: no arguments; it returns a string that lives as long as the library.
    Ok(unsafe { text((functions.lib_version)()) })
}

/// The library's name of a link type, or its number.
pub(crate) fn link_name(link_type: i32) -> String {
    let Ok(functions) = functions() else { return link_type.to_string() };
    // SAFETY: any number may be asked about; a static string or null comes back.
    let name = unsafe { text((functions.datalink_val_to_name)(link_type)) };
    if name.is_empty() { link_type.to_string() } else { name }
}

/// A frame as the library gives it.
pub(crate) struct RawPacket<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) wire_len: u32,
    pub(crate) seconds: u64,
    pub(crate) fraction: u64,
}

/// A live handle, and what the library remarked.
pub(crate) struct Opened {
    pub(crate) handle: Handle,
    pub(crate) remark: Option<String>,
}

/// A `pcap_t`. Used by one thread at a time, since everything that touches its state takes `&mut self`.
#[derive(Debug)]
pub(crate) struct Handle {
    raw: NonNull<RawHandle>,
    functions: &'static Functions,
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Functions")
    }
}

// SAFETY: a handle is not tied to a thread; the library only forbids two at once.
unsafe impl Send for Handle {}

impl Handle {
    /// One without a device, to compile for a link type.
    pub(crate) fn dead(link_type: i32) -> Result<Self, Error> {
        let functions = functions()?;
        // SAFETY: plain numbers.
        let raw = unsafe { (functions.open_dead)(link_type, crate::MAX_SNAPLEN) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, functions }),
            None => Err(Error::Expression { why: "there is no memory for it".to_owned() }),
        }
    }

    /// A device, active and non-blocking.
    pub(crate) fn live(device: &str, options: Options) -> Result<Opened, Error> {
        let functions = functions()?;
        let name = CString::new(device).map_err(|_| Error::ZeroByte { what: "the name of the device" })?;
        let failed = |step, why| Error::Device { step, device: device.to_owned(), why };
        let mut errbuf = [0 as c_char; ERRBUF_BYTES];
        // SAFETY: a string with its end, and a buffer of PCAP_ERRBUF_SIZE.
        let raw = unsafe { (functions.create)(name.as_ptr(), errbuf.as_mut_ptr()) };
        let Some(raw) = NonNull::new(raw) else { return Err(failed("open", words(&errbuf))) };
        let handle = Self { raw, functions };
        let buffer = options.buffer_bytes.map(|bytes| c_int::try_from(bytes).unwrap_or(c_int::MAX));
        // SAFETY: the handle is new and not active; these fail only on active ones, or change nothing (no nanoseconds).
        unsafe {
            (functions.set_snaplen)(handle.raw(), options.snaplen);
            (functions.set_promisc)(handle.raw(), options.promiscuous.into());
            (functions.set_timeout)(handle.raw(), TIMEOUT_MS);
            (functions.set_immediate_mode)(handle.raw(), 1);
            (functions.set_tstamp_precision)(handle.raw(), NANOSECONDS);
            if let Some(bytes) = buffer {
                (functions.set_buffer_size)(handle.raw(), bytes);
            }
        }
        // SAFETY: activated once.
        let status = unsafe { (functions.activate)(handle.raw()) };
        if status < 0 {
            let why = handle.words_of(status);
            return Err(match DENIED.contains(&status) {
                true => Error::Permission { device: device.to_owned(), why },
                false => failed("open", why),
            });
        }
        // SAFETY: an active handle, and a buffer of PCAP_ERRBUF_SIZE.
        if unsafe { (functions.setnonblock)(handle.raw(), 1, errbuf.as_mut_ptr()) } != 0 {
            return Err(failed("read without waiting from", words(&errbuf)));
        }
        // SAFETY: an active handle.
        let set_direction = || unsafe { (functions.setdirection)(handle.raw(), ONLY_IN) };
        if options.direction == Direction::In && set_direction() != 0 {
            return Err(failed("leave out what leaves through", handle.error()));
        }
        let remark = (status > 0).then(|| handle.words_of(status));
        Ok(Opened { handle, remark })
    }

    /// Compiles an expression for this handle's link type.
    pub(crate) fn compile(&self, expression: &str) -> Result<Vec<Instruction>, Error> {
        let program = self.program(expression)?;
        let raw = &program.raw;
        // SAFETY: the library wrote `len` instructions there, and they live until `freecode`.
        let instructions = unsafe { std::slice::from_raw_parts(raw.instructions, raw.len as usize) };
        Ok(instructions.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
    }

    /// Compiles an expression and sets it.
    pub(crate) fn set_filter(&mut self, expression: &str, device: &str) -> Result<(), Error> {
        let mut program = self.program(expression)?;
        // SAFETY: an active handle and a program of this handle's; the library copies it.
        if unsafe { (self.functions.setfilter)(self.raw(), &raw mut program.raw) } != 0 {
            return Err(Error::Device {
                step: "set the filter of",
                device: device.to_owned(),
                why: self.error(),
            });
        }
        Ok(())
    }

    fn program(&self, expression: &str) -> Result<Program, Error> {
        /// Compiling was not thread-safe before 1.8.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let source = CString::new(expression).map_err(|_| Error::ZeroByte { what: "the expression" })?;
        let mut raw = RawProgram { len: 0, instructions: null_mut() };
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a live handle, an empty program to be filled, a string with its end.
        let status = unsafe {
            (self.functions.compile)(self.raw(), &raw mut raw, source.as_ptr(), 1, NETMASK_UNKNOWN)
        };
        if status != 0 || raw.instructions.is_null() {
            return Err(Error::Expression { why: self.error() });
        }
        Ok(Program { raw, functions: self.functions })
    }

    /// The next frame. It lies in the library's memory until the next call on the handle, which needs `&mut self` as well.
    pub(crate) fn next(&mut self) -> Result<Option<RawPacket<'_>>, String> {
        let (mut header, mut bytes): (*mut RawHeader, *const c_uchar) = (null_mut(), null());
        // SAFETY: an active handle; both places are written when 1 comes back.
        match unsafe { (self.functions.next_ex)(self.raw(), &raw mut header, &raw mut bytes) } {
            1 => {
                // SAFETY: the library says that both are valid until the next call.
                let header = unsafe { &*header };
                // SAFETY: likewise, with `captured_len` bytes.
                let bytes = unsafe { std::slice::from_raw_parts(bytes, header.captured_len as usize) };
                Ok(Some(RawPacket {
                    bytes,
                    wire_len: header.wire_len,
                    seconds: header.time.tv_sec as u64,
                    fraction: header.time.tv_usec as u64,
                }))
            }
            0 => Ok(None),
            _ => Err(self.error()),
        }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: a live handle.
        let fd = unsafe { (self.functions.get_selectable_fd)(self.raw()) };
        // SAFETY: open as long as the handle, which the result borrows.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    pub(crate) fn stats(&mut self) -> Result<Stats, String> {
        let mut stats = RawStats::default();
        // SAFETY: an active handle and a live place of the right type.
        if unsafe { (self.functions.stats)(self.raw(), &raw mut stats) } != 0 {
            return Err(self.error());
        }
        let RawStats { received, dropped, device_dropped } = stats;
        Ok(Stats { received, dropped, device_dropped })
    }

    pub(crate) fn inject(&mut self, frame: &[u8]) -> Result<usize, (io::Error, String)> {
        // SAFETY: an active handle, and as many readable bytes as said.
        let sent = unsafe { (self.functions.inject)(self.raw(), frame.as_ptr().cast(), frame.len()) };
        usize::try_from(sent).map_err(|_| (io::Error::last_os_error(), self.error()))
    }

    pub(crate) fn link_type(&self) -> i32 {
        // SAFETY: an active or dead handle.
        unsafe { (self.functions.datalink)(self.raw()) }
    }

    pub(crate) fn has_nanoseconds(&self) -> bool {
        // SAFETY: an active handle.
        unsafe { (self.functions.get_tstamp_precision)(self.raw()) == NANOSECONDS }
    }

    /// What a status of activation means: the library's own words, then what the handle adds.
    fn words_of(&self, status: c_int) -> String {
        // SAFETY: any number may be asked about; a static string comes back.
        let kind = unsafe { text((self.functions.statustostr)(status)) };
        let more = self.error();
        if more.is_empty() || more == kind { kind } else { format!("{kind} ({more})") }
    }

    fn error(&self) -> String {
        // SAFETY: a live handle; the string is copied before the next call.
        unsafe { text((self.functions.geterr)(self.raw())) }
    }

    const fn raw(&self) -> Pcap {
        self.raw.as_ptr()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by this library, closed once; nothing borrowed from it is left.
        unsafe { (self.functions.close)(self.raw()) };
    }
}

/// A compiled program in the library's memory.
struct Program {
    raw: RawProgram,
    functions: &'static Functions,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: filled by `compile`, freed once.
        unsafe { (self.functions.freecode)(&raw mut self.raw) };
    }
}

/// A copy of a string of the library's; empty for null.
///
/// # Safety
/// `from` is null or a string with its end.
unsafe fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().trim().to_owned()
}

/// What stands in an error buffer.
fn words(errbuf: &[c_char; ERRBUF_BYTES]) -> String {
    let bytes = errbuf.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect::<Vec<u8>>();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_is_a_sentence_that_names_the_package() {
        let Err(error) = load(&["libpcap-that-nobody-has.so.9"]) else { panic!("such a library exists") };
        let said = error.to_string();
        assert!(said.contains("libpcap0.8 (Debian") && said.contains("libpcap (Fedora"), "{said}");
        assert!(said.contains("libpcap-that-nobody-has.so.9"), "{said}");
    }

    #[test]
    fn another_library_of_that_name_lacks_a_function() {
        let Err(error) = load(&["libc.so.6"]) else { panic!("libc has the functions of libpcap") };
        assert_eq!(error, Error::Lacking { symbol: "pcap_open_dead" });
    }

    #[test]
    fn a_device_that_does_not_exist_is_named() {
        let Ok(_) = version() else { return };
        let options =
            Options { snaplen: 1_000, promiscuous: false, buffer_bytes: None, direction: Direction::In };
        let said = Handle::live("no-such-device", options).err().map(|error| error.to_string());
        assert!(said.as_ref().is_some_and(|said| said.contains("no-such-device")), "{said:?}");
    }
}
